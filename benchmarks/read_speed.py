"""Time and peak memory from a file of many events to Sequences, and of the clicks of Globo.com where they are.

    python benchmarks/read_speed.py                      # 20 million events as Parquet and as CSV
    python benchmarks/read_speed.py --events 2000000

The log is generated: users and items drawn with popularity, seconds as times, a rating; CSV and Parquet hold the same rows. Each
file is read in a process of its own. `wall_seconds` says what a user waits, `cpu_seconds` what the work is on a machine that does
other work beside; `load` is the load average when the reading began. The result goes to benchmarks/results/read-speed.json; with
--json it goes to the last line of standard output instead.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from largerec import show
from largerec.datasets import DataOptions, load_log
from largerec.doctor import processor
from largerec.sequences import SplitOptions, build_sequences

RESULT = Path(__file__).parent / "results" / "read-speed.json"
GLOBO = Path(__file__).resolve().parents[2] / "shared" / "data" / "globo-news"


def write_log(folder: Path, events: int, seed: int = 0) -> None:
    """Write ``log.csv`` and ``log.parquet``: about 100 events a user, a tenth as many items as users."""
    draw = np.random.default_rng(seed)
    users, items = max(10, events // 100), max(20, events // 1000)
    table = pl.DataFrame(
        {
            "user_id": draw.integers(users, size=events),
            "item_id": (items * draw.random(events) ** 2).astype(np.int64),
            "rating": draw.integers(1, 11, size=events) / 2,
            "timestamp": 1_500_000_000 + draw.integers(100_000_000, size=events),
        }
    )
    table.write_csv(folder / "log.csv")
    table.write_parquet(folder / "log.parquet")


def measure(path: Path) -> dict[str, Any]:
    """Read a log and make Sequences of it; return seconds by part and this process's peak memory in MB (10^6 bytes)."""
    load = os.getloadavg()[0]
    wall, cpu = [time.perf_counter()], [time.process_time()]
    log = load_log(DataOptions(path=str(path)))
    wall.append(time.perf_counter())
    cpu.append(time.process_time())
    sequences = build_sequences(log, SplitOptions())
    wall.append(time.perf_counter())
    cpu.append(time.process_time())
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "file": path.name,
        "bytes": path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir()),
        "events": log.events.height,
        "users": sequences.n_users,
        "items": len(sequences.item_ids),
        "wall_seconds": {"read": round(wall[1] - wall[0], 2), "sequences": round(wall[2] - wall[1], 2)},
        "cpu_seconds": {"read": round(cpu[1] - cpu[0], 2), "sequences": round(cpu[2] - cpu[1], 2)},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6),
        "load": round(load, 1),
    }


def alone(script: str, path: Path) -> dict[str, Any]:
    """Measure a file in a process of its own."""
    done = subprocess.run([sys.executable, script, "--file", str(path)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(script: str, about: str | None, measure: Callable[[Path], dict[str, Any]], files: Sequence[str], result: Path) -> None:
    """What the command line of a script like this one does; ``files``: those of :func:`write_log` that are measured."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--file", help="measure this log only, in this process")
    parser.add_argument("--json", action="store_true", help="print one JSON document, write no file")
    given = parser.parse_args()
    if given.file:
        print(json.dumps(measure(Path(given.file))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder), given.events)
        rows = [alone(script, Path(folder) / name) for name in files]
    rows += [alone(script, GLOBO)] if GLOBO.is_dir() else []
    found = {
        "logs": rows,
        "threads": pl.thread_pool_size(),
        "hardware": processor(),
        "polars": pl.__version__,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/{Path(script).name} --events {given.events}",
    }
    if given.json:
        print(json.dumps(found))
        return
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        show.fields(row, row["file"])
    Console().print(f"written to {result}")


if __name__ == "__main__":
    run(__file__, __doc__, measure, ("log.parquet", "log.csv"), RESULT)
