"""Training speed at MovieLens-1M's shapes: whole steps, tokens a second, and the loss after 300 steps on both kernel paths.

    python benchmarks/train_speed.py --preset ml-1m-hstu --json
    python benchmarks/train_speed.py --preset ml-1m-hstu-large --json

128 users a step whose lengths follow MovieLens-1M's (capped at 200), width 50, 3,416 items, 128 uniform negatives of each
position (``--shared``: one set a step), sampled softmax, AdamW, dropout .2, both relative biases; gaps between events are drawn
from a log-normal around 20 seconds (from under a second to a month). Items follow a random walk that can be learned. A step is
what a run does, in the same order: pack a batch in the background, seed, forward, loss, check, backward, clip, AdamW.
The rate is the median over the steps after the first 20.

``loss_300`` is the mean loss of steps 291 to 300; ``loss_300_reference`` the same from a second process on plain torch
(LARGEREC_KERNELS=plain), which takes some ten times as long; --no-reference leaves it out. --out FILE keeps the document.
--depth, --heads, --width, --items change the preset; with --length every history is that long and a step holds 16,384 tokens
(benchmarks/train_sweeps.py uses these).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from largerec.batches import TokenRows, pack_training
from largerec.doctor import processor
from largerec.heads import HeadOptions, ItemHead
from largerec.kernels import describe
from largerec.models import build_model
from largerec.models.hstu import HSTUOptions
from largerec.objectives import Objective, SampledSoftmaxOptions
from largerec.optim import OptimOptions, build_optimizer, learning_rate_at
from largerec.prefetch import prefetch

ITEMS_OF_ML_1M, NEGATIVES, TOKENS_A_STEP = 3416, 128, 16_384
# Inputs of MovieLens-1M's users (training events less one, at most 200) at every twentieth of the users.
QUANTILES = (15, 20, 24, 29, 34, 41, 48, 57, 67, 78, 93, 106, 123, 145, 170, 200, 200, 200, 200, 200, 200)
USERS, WARMUP, TAIL = 2000, 20, 10


@dataclass(frozen=True)
class Shape:
    """What a step works on; ``length``: that of every history, or None for MovieLens-1M's."""

    depth: int
    heads: int
    width: int = 50
    items: int = ITEMS_OF_ML_1M
    length: int | None = None

    @property
    def users_a_step(self) -> int:
        return 128 if self.length is None else max(1, TOKENS_A_STEP // self.length)

    @property
    def longest(self) -> int:
        return self.length or QUANTILES[-1]


PRESETS = {"ml-1m-hstu": Shape(depth=2, heads=1), "ml-1m-hstu-large": Shape(depth=8, heads=2)}


def synthetic_rows(shape: Shape, seed: int = 0) -> tuple[TokenRows, np.ndarray]:
    """Packed events of all users, one more than inputs, and the users' offsets."""
    rng = np.random.default_rng(seed)
    users = USERS if shape.length is None else 4 * shape.users_a_step
    length_U = np.interp(rng.random(users), np.linspace(0, 1, len(QUANTILES)), QUANTILES).round().astype(np.int64) + 1
    if shape.length is not None:
        length_U[:] = shape.length + 1
    offsets_U1 = np.concatenate([[0], np.cumsum(length_U)])
    total = int(offsets_U1[-1])
    weight = 1 / (np.arange(shape.items) + 30.0)
    token = rng.choice(shape.items, size=total, p=weight / weight.sum())
    successor, follows = rng.permutation(shape.items), rng.random(total) < 0.4
    for i in np.flatnonzero(follows):  # a walk: some events are the fixed successor of the one before
        token[i] = successor[token[i - 1]]
    gap_ms = np.exp(rng.normal(3.0, 2.5, total)) * 1000
    time_ms = np.cumsum(gap_ms).astype(np.int64) + 10**12
    return TokenRows(token, time_ms, None, np.arange(total + 1)), offsets_U1


def train(shape: Shape, shared: bool, precision: str, steps: int, threads: int) -> dict[str, Any]:
    """Train for some steps; returns rates, seconds by part and the last losses."""
    torch.set_num_threads(threads)
    rows, offsets_U1 = synthetic_rows(shape)
    torch.manual_seed(0)
    model = build_model(
        HSTUOptions(depth=shape.depth, width=shape.width, heads=shape.heads, dropout=0.2), shape.items, shape.longest
    ).train()
    head = ItemHead(HeadOptions())
    objective = Objective(SampledSoftmaxOptions(negatives=NEGATIVES, shared=shared), torch.ones(shape.items))
    options = OptimOptions(learning_rate=0.001)
    optimizer = build_optimizer(model, options)
    rng = np.random.default_rng(1)
    users = [rng.choice(len(offsets_U1) - 1, shape.users_a_step, replace=False) for _ in range(steps)]
    batches = prefetch(partial(pack_training, rows, offsets_U1[u], offsets_U1[u + 1] - 1) for u in users)
    low_precision = precision == "bf16"
    parts: dict[str, list[float]] = {name: [] for name in ("data", "forward", "loss", "backward", "optimizer")}
    tokens, losses, started = [], [], time.perf_counter()

    def done(part: str) -> None:
        nonlocal started
        now = time.perf_counter()
        parts[part].append(now - started)
        started = now

    for step, batch in enumerate(batches):
        assert batch.target_T is not None
        done("data")
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, options, 0.001)
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            hidden_TD = model(batch)
        queries_TD = head.queries(hidden_TD[batch.loss_mask_T].float())
        done("forward")
        target_T = batch.target_T[batch.loss_mask_T]
        loss = objective(queries_TD, head.keys(model.item_table_VD), target_T, low_precision=low_precision)
        losses.append(float(loss.detach()))
        assert np.isfinite(losses[-1])
        done("loss")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        assert np.isfinite(float(torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)))
        done("backward")
        optimizer.step()
        done("optimizer")
        tokens.append(batch.n_tokens)
    warm = min(WARMUP, steps // 2)
    seconds = np.sum([parts[name] for name in parts], axis=0)[warm:]
    rates = np.array(tokens)[warm:] / seconds
    return {
        "tokens_per_s": round(float(np.median(rates)), 1),
        "tokens_per_s_quartiles": [round(float(np.quantile(rates, q)), 1) for q in (0.25, 0.75)],
        f"loss_{steps}": float(np.mean(losses[-TAIL:])),
        "tokens_a_step": round(float(np.mean(tokens)), 1),
        "seconds_by_part": {name: round(float(np.median(values[warm:])), 5) for name, values in parts.items()},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "kernels": describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed at MovieLens-1M's shapes; see the file's head.")
    parser.add_argument("--preset", choices=list(PRESETS), required=True)
    parser.add_argument("--shared", action="store_true", help="one set of negatives a step instead of one a position")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    for name in ("depth", "heads", "width", "items", "length"):
        parser.add_argument(f"--{name}", type=int, help=f"another {name} than the preset's")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference", action=argparse.BooleanOptionalAction, default=True, help="also train on plain torch")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line")
    parser.add_argument("--out", type=Path, help="also write the document to this file")
    given = parser.parse_args()
    changes = {name: value for name in ("depth", "heads", "width", "items", "length") if (value := getattr(given, name))}
    shape = replace(PRESETS[given.preset], **changes)
    found = train(shape, given.shared, given.precision, given.steps, given.threads)
    if given.reference:
        command = [
            sys.executable,
            __file__,
            "--preset",
            given.preset,
            "--precision",
            given.precision,
            "--steps",
            str(given.steps),
        ]
        command += ["--threads", str(given.threads), *(["--shared"] if given.shared else []), "--no-reference", "--json"]
        command += [word for name, value in changes.items() for word in (f"--{name}", str(value))]
        child = subprocess.run(
            command, env=os.environ | {"LARGEREC_KERNELS": "plain"}, check=True, capture_output=True, text=True
        )
        reference = json.loads(child.stdout.splitlines()[-1])
        found[f"loss_{given.steps}_reference"] = reference[f"loss_{given.steps}"]
        found["tokens_per_s_reference"] = reference["tokens_per_s"]
    found |= {
        "preset": given.preset,
        **asdict(shape),
        "negatives": "shared" if given.shared else "per position",
        "precision": given.precision,
        "threads": given.threads,
        "hardware": processor(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python benchmarks/train_speed.py", *sys.argv[1:]]),
    }
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
