"""Peak memory and time of an evaluation over a catalogue of a million items: a random model and overall popularity.

    python benchmarks/evaluate_memory.py

Each user has as many items of their own as it takes to fill the catalogue, and two more as targets. The whole of evaluation runs:
masked and unmasked ranks, top lists, slices, intervals, the baseline. The result goes to benchmarks/results/evaluate-memory.json;
with --json it goes to the last line of standard output instead.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console

from largerec import show
from largerec.engine import Engine
from largerec.engine.engine import build_scorer
from largerec.evaluate import evaluate_engine
from largerec.events import EventLog
from largerec.metrics import EvaluateOptions
from largerec.recipe import recipe_from
from largerec.sequences import SplitOptions, build_sequences
from largerec.tokenizers import AtomicTokenizer

RESULT = Path(__file__).parent / "results" / "evaluate-memory.json"
RECIPE = {"model": {"name": "hstu", "depth": 1, "width": 8, "heads": 1}, "batch": {"max_length": 10}}


def build_log(items: int, users: int, seed: int = 0) -> EventLog:
    """Every item is trained on once, by the user whose turn it is; two random items of each user follow as targets."""
    item_N = np.concatenate([np.arange(items), np.random.default_rng(seed).integers(items, size=2 * users)])
    user_N = np.arange(len(item_N)) % users
    events = pl.DataFrame({"user_id": user_N, "item_id": item_N, "timestamp": np.arange(len(item_N))})
    return EventLog(events, None, "order", (), "generated")


def build_engine(log: EventLog) -> Engine:
    """An engine with fresh weights: what a score is worth does not matter here."""
    sequences = build_sequences(log, SplitOptions())
    tokenizer = AtomicTokenizer.fit(sequences)
    torch.manual_seed(0)
    return Engine(build_scorer(recipe_from(RECIPE).resolved(), tokenizer, sequences).prepared(), tokenizer, sequences)


def measure_evaluation(items: int, users: int) -> dict[str, Any]:
    """Evaluate and return sizes, seconds and this process's peak memory in MB (10^6 bytes)."""
    engine = build_engine(build_log(items, users))
    started = time.perf_counter()
    document, _ = evaluate_engine(engine, "test", EvaluateOptions(), seed=0)
    seconds = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "items": engine.tokenizer.size,
        "users": document["targets"]["n"],
        "scorers": 1 + len(document["baselines"]),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6),
        "torch": torch.__version__,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/evaluate_memory.py --items {items} --users {users}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--json", action="store_true", help="print one JSON document, write no file")
    given = parser.parse_args()
    found = measure_evaluation(given.items, given.users)
    if given.json:
        print(json.dumps(found))
        return
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show.fields(found, "Evaluation memory")
    Console().print(f"written to {RESULT}")


if __name__ == "__main__":
    main()
