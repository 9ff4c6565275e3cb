"""Where a run is trained: the processor or a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from largerec.errors import LargeRecError, Unfit
from largerec.recipe import Recipe


def device_of(recipe: Recipe) -> torch.device:
    """The device that ``train.device`` names.

    Raises:
        LargeRecError: torch sees no CUDA device here, or one that the kernels are not written for.
    """
    if recipe.train.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LargeRecError(
            f"train.device='cuda', but torch {torch.__version__} sees no CUDA device here (`largerec doctor` says more). "
            "Use train.device=cpu."
        )
    if not capable(torch.cuda.get_device_properties(0)):
        raise LargeRecError(
            f"train.device='cuda' needs an NVIDIA device of compute capability 8 (A100) or newer, and this is "
            f"{torch.cuda.get_device_name()}; use train.device=cpu."
        )
    # Of cuDNN's recurrences (GRU4Rec); products of torch itself are as torch.set_float32_matmul_precision says, exact by default.
    torch.backends.cudnn.allow_tf32 = recipe.train.precision == "bf16"
    return torch.device("cuda")


def capable(card: Any) -> bool:
    """Whether a card (what ``torch.cuda.get_device_properties`` gives) can train: NVIDIA's of compute capability 8 or newer."""
    return torch.version.cuda is not None and card.major >= 8


def named(device: torch.device) -> str:
    """What a result says of a device: ``cpu``, or the name of the card."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


@contextmanager
def memory_advised() -> Iterator[None]:
    """A card that has run out of memory is told with what to change.

    Raises:
        Unfit: it has.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Unfit(
            f"the CUDA device has too little memory ({str(error).split('.')[0]}). Lower batch.tokens, set train.precision=bf16, "
            "train.recompute=true or a larger train.accumulate; the run's last checkpoint is kept."
        ) from None


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
