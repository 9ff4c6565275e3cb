"""Seconds to generate a log of a million events, and the best possible recommender's seconds on its test targets.

    python benchmarks/simulate_speed.py

20,000 users, 10,000 items, 40 categories; one thread. The result goes to benchmarks/results/simulate-speed.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import time
from datetime import UTC, datetime
from pathlib import Path

from largerec.doctor import processor
from largerec.oracle import Asking, Histories, negative_log, next_item_probabilities
from largerec.sequences import SplitOptions, build_sequences
from largerec.simulate import SimulateOptions, log_of_world
from largerec.world import World

RESULT = Path(__file__).parent / "results" / "simulate-speed.json"
OPTIONS = SimulateOptions(users=20_000, items=10_000, events=1_000_000, categories=40)
ASKED = 2_000  # targets a block, which bounds the memory


def main() -> None:
    started = time.perf_counter()
    world = World(OPTIONS)
    log = log_of_world(world)
    generated = time.perf_counter() - started
    sequences = build_sequences(log, SplitOptions())
    histories, rows = Histories.of(world, sequences), sequences.targets("test")
    started = time.perf_counter()
    losses = 0.0
    for start in range(0, len(rows), ASKED):
        block = rows[start : start + ASKED]
        losses += negative_log(next_item_probabilities(world, histories, block, Asking()), histories.item_N[block]).sum()
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "command": "python benchmarks/simulate_speed.py",
        "events": log.events.height,
        "targets": len(rows),
        "seconds_to_generate": round(generated, 2),
        "seconds_of_the_oracle": round(time.perf_counter() - started, 2),
        "cross_entropy": round(losses / len(rows), 4),
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
