"""Time and peak memory of an audit, from a file of many events to all findings, and of the clicks of Globo.com where they are.

    python benchmarks/audit_speed.py                      # 20 million events as Parquet
    python benchmarks/audit_speed.py --events 2000000

The generated log is that of `read_speed.py`: users and items drawn with popularity, seconds as times, a rating. Each log is
audited in a process of its own. `wall_seconds` says what a user waits, `cpu_seconds` what the work is on a machine that does
other work beside; `load` is the load average when the reading began. The result goes to benchmarks/results/audit-speed.json;
with --json it goes to the last line of standard output instead.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from read_speed import GLOBO, processor, write_log
from rich.console import Console

from largerec import show
from largerec.audit import audit
from largerec.datasets import DataOptions, load_log

RESULT = Path(__file__).parent / "results" / "audit-speed.json"


def measure(path: Path) -> dict[str, Any]:
    """Read and audit a log; return seconds by part and this process's peak memory in MB (10^6 bytes)."""
    load = os.getloadavg()[0]
    wall, cpu = [time.perf_counter()], [time.process_time()]
    log = load_log(DataOptions(path=str(path)))
    wall.append(time.perf_counter())
    cpu.append(time.process_time())
    found = audit(log)
    wall.append(time.perf_counter())
    cpu.append(time.process_time())
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "file": path.name,
        "events": log.events.height,
        "users": found.shape["users"],
        "items": found.shape["items"],
        "findings": len(found.findings),
        "wall_seconds": {"read": round(wall[1] - wall[0], 2), "audit": round(wall[2] - wall[1], 2)},
        "cpu_seconds": {"read": round(cpu[1] - cpu[0], 2), "audit": round(cpu[2] - cpu[1], 2)},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6),
        "load": round(load, 1),
    }


def alone(path: Path) -> dict[str, Any]:
    """Measure a log in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--file", str(path)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--file", help="measure this log only, in this process")
    parser.add_argument("--json", action="store_true", help="print one JSON document, write no file")
    given = parser.parse_args()
    if given.file:
        print(json.dumps(measure(Path(given.file))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder), given.events)
        rows = [alone(Path(folder) / "log.parquet")]
    rows += [alone(GLOBO)] if GLOBO.is_dir() else []
    found = {
        "logs": rows,
        "threads": pl.thread_pool_size(),
        "hardware": f"{processor()}, {os.cpu_count()} cores",
        "polars": pl.__version__,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/audit_speed.py --events {given.events}",
    }
    if given.json:
        print(json.dumps(found))
        return
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        show.fields(row, row["file"])
    Console().print(f"written to {RESULT}")


if __name__ == "__main__":
    main()
