"""Time and peak memory of an audit, from a file of many events to all findings, and of the clicks of Globo.com where they are.

    python benchmarks/audit_speed.py                      # 20 million events as Parquet
    python benchmarks/audit_speed.py --events 2000000

The generated log is that of `read_speed.py`: users and items drawn with popularity, seconds as times, a rating. Each log is
audited in a process of its own. `wall_seconds` says what a user waits, `cpu_seconds` what the work is on a machine that does
other work beside; `load` is the load average when the reading began. The result goes to benchmarks/results/audit-speed.json;
with --json it goes to the last line of standard output instead.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from read_speed import run

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


if __name__ == "__main__":
    run(__file__, __doc__, measure, ("log.parquet",), RESULT)
