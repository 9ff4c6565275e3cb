"""Linear attention with decay, forward and backward: the compiled recurrence beside plain torch in chunks.

    python benchmarks/linear_attention.py

The three channels of a FuXi-Linear block of width 128 with two heads, over about 2,048 tokens in histories of one length. Medians
of 9 calls in turn, in milliseconds of one thread's own time, so that other work on the machine counts little.
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

from largerec.doctor import processor
from largerec.kernels import cpu, linear

RESULT = Path(__file__).parent / "results" / "linear-attention.json"
TOKENS, LENGTHS = 2048, (6, 50, 200, 1000)
CHANNELS = {"retention": (2, 64, 64, True), "temporal": (16, 2, 8, True), "positional": (1, 16, 128, False)}
"""Heads, numbers of a key, numbers of a value, and whether it decays."""
PATHS: dict[str, Callable[..., torch.Tensor]] = {"compiled": cpu.linear_attention, "chunks": linear.linear_attention}


def inputs(length: int, heads: int, width: int, values: int, decayed: bool) -> list[torch.Tensor]:
    """Queries, keys, values, offsets, and where there is decay rates and clocks."""
    generator, users = torch.Generator().manual_seed(0), max(1, TOKENS // length)
    tokens = users * length
    q, k, v = (torch.randn(tokens, heads, n, generator=generator).requires_grad_() for n in (width, width, values))
    found = [q, k, v, torch.arange(users + 1) * length]
    if decayed:
        found += [torch.rand(heads, generator=generator).requires_grad_(), torch.arange(length).double().repeat(users)]
    return found


def measure(channel: str, length: int) -> dict[str, Any]:
    """One channel over histories of one length."""
    x = inputs(length, *CHANNELS[channel])
    learned = [one for one in x if one.requires_grad]
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    for _ in range(9):
        for path, function in PATHS.items():
            started = time.process_time()
            torch.autograd.grad(function(*x).sum(), learned)
            seconds[path].append(time.process_time() - started)
    return {
        "channel": channel,
        "length": length,
        "tokens": len(x[0]),
        **{f"{path}_ms": round(1e3 * median(taken), 1) for path, taken in seconds.items()},
    }


def main() -> None:
    works, says = cpu.available()
    if not works:
        raise SystemExit(f"there is nothing to compare: {says}")
    torch.set_num_threads(1)
    points = [measure(channel, length) for length in LENGTHS for channel in CHANNELS]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "command": "python benchmarks/linear_attention.py",
        "threads": 1,
        "points": points,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("| history length | " + " | ".join(CHANNELS) + " |\n|" + "---|" * (1 + len(CHANNELS)))
    for length in LENGTHS:
        of_length = [p for p in points if p["length"] == length]
        print(f"| {length:,} | " + " | ".join(f"{p['chunks_ms']} -> {p['compiled_ms']}" for p in of_length) + " |")


if __name__ == "__main__":
    main()
