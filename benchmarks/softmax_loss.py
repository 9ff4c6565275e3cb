"""The softmax over the whole catalogue in bfloat16, forward and backward: one operator beside plain torch in chunks.

    python benchmarks/softmax_loss.py

Shapes are those of a step of recipes/amazon-*.toml and recipes/ml-1m.toml. Milliseconds are medians of 15 calls in turn; the rate
counts the three matrix products (6 T V D operations), beside the machine's rate of large products. Needs AVX-512 BF16.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from largerec.doctor import matrix_gflops, processor
from largerec.kernels import cpu, softmax_loss
from largerec.objectives import _ChunkedSoftmax

RESULT = Path(__file__).parent / "results" / "softmax-loss.json"
SHAPES = {"amazon-beauty": (1500, 12_083, 128), "amazon-sports": (1500, 18_284, 128), "ml-1m": (4096, 3416, 128)}


def in_chunks(queries_TD: torch.Tensor, keys_VD: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor | None:
    """The loss as it is made where there is no operator."""
    loss: torch.Tensor = _ChunkedSoftmax.apply(queries_TD, keys_VD, target_T, True, None)  # type: ignore[no-untyped-call]
    return loss


PATHS: dict[str, Callable[..., torch.Tensor | None]] = {"operator": softmax_loss, "chunks": in_chunks}


def inputs(tokens: int, items: int, width: int) -> list[torch.Tensor]:
    """Queries, keys and targets."""
    generator = torch.Generator().manual_seed(0)
    q, k = ((0.3 * torch.randn(n, width, generator=generator)).requires_grad_() for n in (tokens, items))
    return [q, k, torch.randint(items, (tokens,), generator=generator)]


def measure(name: str, threads: int) -> dict[str, Any]:
    """One shape with one number of threads."""
    torch.set_num_threads(threads)
    tokens, items, width = SHAPES[name]
    x = inputs(tokens, items, width)
    point: dict[str, Any] = {"shape": name, "tokens": tokens, "items": items, "width": width, "threads": threads}
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    for _ in range(15):
        for path, function in PATHS.items():
            started = time.perf_counter()
            loss = function(*x)
            assert loss is not None, "this machine has no such operator"
            torch.autograd.grad(loss, x[:2])
            seconds[path].append(time.perf_counter() - started)
    for path, taken in seconds.items():
        point[f"{path}_ms"] = round(1e3 * median(taken), 1)
        point[f"{path}_gflops"] = round(6 * tokens * items * width / median(taken) / 1e9, 1)
    return point


def main() -> None:
    if not (cpu.avx512_bf16() and cpu.available()[0]):
        raise SystemExit("this needs a CPU with AVX-512 BF16 and a C++ compiler; `largerec doctor` says what is missing.")
    points = [measure(name, threads) for name in SHAPES for threads in (1, 2)]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "command": "python benchmarks/softmax_loss.py",
        "gflops_of_matrix_products": {str(n): round(matrix_gflops(torch, torch.bfloat16, n), 1) for n in (1, 2)},
        "points": points,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("| shape | threads | chunks | operator |\n|---|---|---|---|")
    for p in points:
        print(
            f"| {p['shape']} | {p['threads']} | {p['chunks_ms']} ms, {p['chunks_gflops']:.0f} GFLOP/s | {p['operator_ms']} ms, "
            f"{p['operator_gflops']:.0f} GFLOP/s |"
        )


if __name__ == "__main__":
    main()
