"""Attention forward and backward on a CUDA device, beside the rate of that device's own matrix products.

    python benchmarks/gpu_kernels.py

Length 4,096, head width 128, bfloat16, both kinds, without and with both biases. Operations are those of the formula, with the
causal half counted once: two products forward, five backward. Times are the best of several runs, after tuning. Beside them
torch's own causal attention (scaled_dot_product_attention), which is softmax without biases. The result goes to
benchmarks/results/gpu-kernels.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from largerec.devices import device_gflops
from largerec.kernels import BucketedTime, describe, triton
from largerec.kernels.reference import TIME_BUCKETS

RESULT = Path(__file__).parent / "results" / "gpu-kernels.json"
EVENTS_A_DAY_MS = 86_400_000 / 10


def seconds(run: Callable[[], Any], repeats: int = 20) -> float:
    """The best time of a call on the device; the first calls, which compile and tune, are not counted."""
    for _ in range(3):
        run()
    best = float("inf")
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        best = min(best, first.elapsed_time(last) / 1e3)
    return best


def measure(length: int, users: int, heads: int, width: int, softmax: bool, biased: bool) -> dict[str, Any]:
    """Rates of one kind of attention, with both biases or none."""
    tokens = users * length
    q, k, v, d_out = (torch.randn(tokens, heads, width, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    offsets = torch.arange(0, tokens + 1, length, device="cuda")
    position = torch.randn(heads, length, device="cuda").requires_grad_() if biased else None
    time = None
    if biased:
        gaps = (torch.rand(users, length, device="cuda", dtype=torch.float64) * 2 * EVENTS_A_DAY_MS).long()
        clock = gaps.cumsum(1).flatten()
        time = BucketedTime(torch.randn(heads, TIME_BUCKETS, device="cuda").requires_grad_(), clock, clock)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    if position is not None and time is not None:
        leaves += [position, time.table_HK]
    scale = width**-0.5 if softmax else 1 / length

    def forward() -> torch.Tensor:
        return triton.attention(q, k, v, offsets, softmax, scale, position, time)

    out = forward()
    product = 2 * users * heads * length**2 / 2 * width  # one causal product
    kind, biases = "softmax" if softmax else "silu", "both" if biased else "none"
    return rates(kind, biases, product, seconds(forward), seconds(lambda: grad(out, leaves, d_out)))


def measure_torch(length: int, users: int, heads: int, width: int) -> dict[str, Any]:
    """Rates of torch's own causal softmax attention, without biases."""
    q, k, v, d_out = (torch.randn(users, heads, length, width, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    out = forward()
    product = 2 * users * heads * length**2 / 2 * width
    return rates("torch softmax", "none", product, seconds(forward), seconds(lambda: grad(out, leaves, d_out)))


def grad(out: torch.Tensor, leaves: list[torch.Tensor], d_out: torch.Tensor) -> Any:
    """The gradients of leaves; the graph is kept for the next time."""
    return torch.autograd.grad(out, leaves, d_out, retain_graph=True)


def rates(kind: str, biases: str, product: float, forward_s: float, backward_s: float) -> dict[str, Any]:
    """A row of the result: seven causal products of ``product`` operations, two of them forward."""
    return {
        "kind": kind,
        "biases": biases,
        "forward_ms": round(forward_s * 1e3, 3),
        "backward_ms": round(backward_s * 1e3, 3),
        "forward_tflops": round(2 * product / forward_s / 1e12, 1),
        "backward_tflops": round(5 * product / backward_s / 1e12, 1),
        "both_tflops": round(7 * product / (forward_s + backward_s) / 1e12, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("length", 4096), ("users", 16), ("heads", 4), ("width", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This measures a CUDA device, and torch sees none here. A CPU's part: docs/performance.md, On a CUDA device.")
    if not triton.available()[0]:
        sys.exit(f"This measures the Triton kernels, which cannot run here: {describe('cuda')}")
    limit = device_gflops(torch.device("cuda"), torch.bfloat16) / 1e3
    print(f"{torch.cuda.get_device_name()}: {limit:.0f} TFLOP/s of large bfloat16 products")
    print("| kind | biases | forward TFLOP/s | backward TFLOP/s | both | share of products |\n|---|---|---|---|---|---|")
    points = []
    shape = (asked.length, asked.users, asked.heads, asked.width)
    kinds: list[Callable[..., dict[str, Any]]] = [measure_torch]
    kinds += [partial(measure, softmax=softmax, biased=biased) for softmax in (True, False) for biased in (False, True)]
    for each in kinds:
        found = each(*shape)
        points.append({**found, "share": round(found["both_tflops"] / limit, 3)})
        cells = [found[key] for key in ("kind", "biases", "forward_tflops", "backward_tflops", "both_tflops")]
        print("| " + " | ".join(map(str, [*cells, f"{points[-1]['share']:.0%}"])) + " |", flush=True)
    document = {
        "benchmark": "gpu-kernels",
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/gpu_kernels.py",
        "hardware": torch.cuda.get_device_name(),
        "software": f"torch {torch.__version__}, {describe('cuda')}",
        "shape": {name: getattr(asked, name) for name in ("length", "users", "heads", "width")},
        "matrix_tflops": round(limit, 1),
        "points": points,
    }
    asked.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
