"""Seconds a training step over the size of the catalogue: the whole item table updated each step, or the rows that it used.

    python benchmarks/table_rows.py

HSTU of width 64, 4,096 tokens and 8,192 shared negatives a step (at most 16,384 rows), on a generated log of 1.2 million
events in which every item occurs. Each point is `largerec bench train` on that log. The result goes to
benchmarks/results/table-rows.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from largerec.bench import bench_train
from largerec.doctor import processor
from largerec.recipe import recipe_from

RESULT = Path(__file__).parent / "results" / "table-rows.json"
EVENTS, EVENTS_A_USER = 1_200_000, 60


def write_log(path: Path, items: int) -> None:
    """Every item at least once, the rest long-tailed, in random order."""
    rng = np.random.default_rng(0)
    tail = (items * rng.random(EVENTS - items) ** 3).astype(np.int64)
    item_N = rng.permutation(np.concatenate([np.arange(items), tail]))
    pl.DataFrame(
        {"user_id": np.arange(EVENTS) // EVENTS_A_USER, "item_id": item_N, "timestamp": np.arange(EVENTS)}
    ).write_parquet(path)


def main() -> None:
    points = []
    print("| items | table | ms a step | optimizer | tokens a second | peak MB |\n|---|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for items in (10_000, 100_000, 1_000_000):
            path = Path(folder) / f"{items}.parquet"
            write_log(path, items)
            for table in ("adamw", "lazy-adam", "rowwise-adagrad"):
                recipe = {
                    "threads": 2,
                    "data": {"path": str(path), "time_kind": "order"},
                    "batch": {"max_length": 60, "tokens": 4096},
                    "model": {"name": "hstu", "depth": 2, "width": 64, "heads": 1},
                    "objective": {"name": "sampled-softmax", "negatives": 8192},
                    "optim": {"table": table},
                }
                found = bench_train(recipe_from(recipe), steps=15, warmup=3)
                step = sum(found["seconds_by_part"].values())
                points.append({"items": items, "table": table, "seconds_a_step": round(step, 5), **found})
                optimizer = 1e3 * found["seconds_by_part"]["optimizer"]
                cells = (
                    f"{items:,}",
                    table,
                    f"{1e3 * step:.0f}",
                    f"{optimizer:.0f}",
                    f"{found['tokens_per_s']:,.0f}",
                    found["memory_peak_mb"],
                )
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
    head = {"date": datetime.now(UTC).date().isoformat(), "hardware": processor(), "command": "python benchmarks/table_rows.py"}
    RESULT.write_text(json.dumps({**head, "points": points}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
