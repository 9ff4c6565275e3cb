"""Where a run is trained: the processor or a CUDA device."""

from __future__ import annotations

import torch

from largerec.errors import LargeRecError
from largerec.recipe import Recipe


def device_of(recipe: Recipe) -> torch.device:
    """The device that ``train.device`` names.

    Raises:
        LargeRecError: torch sees no CUDA device here, or the recipe has parts that only a CPU trains yet.
    """
    if recipe.train.device == "cpu":
        return torch.device("cpu")
    asked = "tasks" if recipe.tasks else "lists.choice" if recipe.lists.choice else None
    if asked is not None:
        raise LargeRecError(f"train.device='cuda' trains what retrieves, and this recipe has {asked}; use train.device=cpu.")
    if not torch.cuda.is_available():
        raise LargeRecError(
            f"train.device='cuda', but torch {torch.__version__} sees no CUDA device here (`largerec doctor` says more). "
            "Use train.device=cpu."
        )
    if torch.version.cuda is None or torch.cuda.get_device_capability() < (8, 0):
        raise LargeRecError(
            f"train.device='cuda' needs an NVIDIA device of compute capability 8 (A100) or newer, and this is "
            f"{torch.cuda.get_device_name()}; use train.device=cpu."
        )
    # What matrix products of cuDNN's recurrences are made of; those of torch are as torch.set_float32_matmul_precision says.
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if recipe.train.precision == "bf16" else "ieee"  # type: ignore[attr-defined]
    return torch.device("cuda")


def named(device: torch.device) -> str:
    """What a result says of a device: ``cpu``, or the name of the card."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_gflops(device: torch.device, kind: torch.dtype, size: int = 8192, repeats: int = 20) -> float:
    """The best observed rate of square matrix products of random numbers on a CUDA device, in GFLOP/s."""
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best = float("inf")
    for number in range(repeats + 3):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        left @ right
        last.record()
        wait_for(device)
        if number >= 3:  # the first calls choose a kernel
            best = min(best, first.elapsed_time(last) / 1e3)
    return 2 * size**3 / best / 1e9
