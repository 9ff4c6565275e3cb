"""What cures take out of training rows, against the labels of faults that were put in.

    python benchmarks/curate_faults.py

The steps are the default cures and, after them, mis-clicks. The faults are those of audit_detectors.py (2 % of the users bots,
2 % of the events duplicated, mis-clicked and mistimed, all at once), with the same seeds, put into the generated log, MovieLens
latest and Globo.com. Leave-one-out says which rows are training; cures see no other row, and no labels. Precision: of the rows
that a step removed or mended, the share with its fault (`precision_any`: with some fault). Recall: of the training rows with its
fault that were there when the step began, the share that it removed or mended. `within_minute`, `within_hour`: of the rows whose
time was mended, those now so near the true one. The result goes to benchmarks/results/curate-faults.json.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from audit_detectors import FAULTS, LOGS, REPORTED, SHARED, keep
from rich.console import Console

from largerec.curate.plan import plan_of
from largerec.curate.taking import stage_column, take
from largerec.curate.versions import ROW, Version, first_version
from largerec.datasets import DataOptions, load_log
from largerec.doctor import processor
from largerec.events import EventLog
from largerec.faults import LABEL, FaultOptions, with_faults
from largerec.sequences import SplitOptions

RESULT = Path(__file__).parent / "results" / "curate-faults.json"
STEPS = ("duplicates", "clocks", "bots", "bursts", "misclicks")  # the default cures, then mis-clicks
MEANT = {"duplicates": "duplicate", "clocks": "clock error", "bots": "bot", "bursts": "bot", "misclicks": "misclick"}
NEAR_MS = {"minute": 60_000, "hour": 3_600_000}


def labels_of(version: Version) -> pl.DataFrame:
    """Row and fault of each training row."""
    return version.log.events.filter(version.is_training).select(ROW, pl.col(LABEL).fill_null("").alias("fault"))


def judged(before: Version, after: Version, step: str, name: str) -> dict[str, Any]:
    """What a step did, against the labels."""
    training = labels_of(before)
    removed = after.removed.filter(pl.col("version") == name)[ROW]
    mended = after.changed.filter(pl.col("version") == name)[ROW]
    hit = training.filter(pl.col(ROW).is_in(pl.concat([removed, mended]).implode()))
    fault = pl.col("fault") == MEANT[step]
    meant, right = training.filter(fault).height, hit.filter(fault).height
    return {
        "rows": training.height,
        "removed": removed.len(),
        "mended": mended.len(),
        "faults": meant,
        "precision": round(right / hit.height, 4) if hit.height else None,
        "precision_any": round(hit.filter(pl.col("fault") != "").height / hit.height, 4) if hit.height else None,
        "recall": round(right / meant, 4) if meant else None,
        "sound_rows_removed": training.filter(pl.col(ROW).is_in(removed.implode()) & (pl.col("fault") == "")).height,
    }


def cured(log: EventLog, seed: int) -> dict[str, Any]:
    """Every step on a log with faults of this seed."""
    faulty = with_faults(log, FaultOptions(seed=seed, **FAULTS))
    true_time = with_faults(log, FaultOptions(seed=seed, **{**FAULTS, "clock_errors": 0})).events["timestamp"]
    version = first_version(faulty, stage_column(faulty, SplitOptions()))
    found: dict[str, Any] = {"events": faulty.events.height}
    for number, step in enumerate(plan_of(STEPS).step, 1):
        name = f"{number:02d}-{step.name}"
        after, _ = take(version, step, 0, name)
        found[step.name] = judged(version, after, step.name, name)
        if step.name == "clocks":
            lines = after.changed.filter((pl.col("version") == name) & (pl.col("column") == "timestamp"))
            true = true_time.gather(lines[ROW] - 1).to_numpy()
            off = np.abs(lines["after"].cast(pl.Int64).to_numpy() - true)
            for kind, most in NEAR_MS.items():
                found[step.name][f"within_{kind}"] = round(float((off <= most).mean()), 4) if len(off) else None
        version = after
    kept = labels_of(version)["fault"]
    found["training_rows_left"] = {str(name or "sound"): count for name, count in kept.value_counts(sort=True).iter_rows()}
    return found


def measure(names: list[str], seeds: list[int]) -> dict[str, Any]:
    """Each log with faults of each seed, and as it is."""
    rows: dict[str, Any] = {}
    for name in names:
        folder = LOGS[name]
        if folder is None or (SHARED / folder).is_dir():
            log = load_log(DataOptions(path=None if folder is None else str(SHARED / folder)))
            rows[name] = {str(seed): cured(log, seed) for seed in seeds}
    return rows


def table(logs: dict[str, Any]) -> list[str]:
    """Rows of Markdown: the worst precision and recall over the seeds."""
    lines = [f"| log | {' | '.join(STEPS)} | mended times within a minute / an hour |", f"|{'---|' * (len(STEPS) + 2)}"]
    for name, runs in logs.items():
        cells = []
        for step in STEPS:
            both = [[run[step][kind] for run in runs.values() if run[step][kind] is not None] for kind in ("precision", "recall")]
            shown = " / ".join(f"{min(values):.3f}" if values else "-" for values in both)
            cells.append(shown if both[0] else "nothing taken")
        near = " / ".join(f"{min(run['clocks'][f'within_{kind}'] or 0.0 for run in runs.values()):.3f}" for kind in NEAR_MS)
        lines.append(f"| {name} | {' | '.join(cells)} | {near} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(REPORTED))
    parser.add_argument("--logs", nargs="+", choices=list(LOGS), default=list(LOGS))
    parser.add_argument("--json", action="store_true", help="print one JSON document, write no file")
    given = parser.parse_args()
    logs = measure(given.logs, given.seeds)
    found = {
        "faults": FAULTS,
        "steps": list(STEPS),
        "logs": logs,
        "polars": pl.__version__,
        "hardware": processor(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/curate_faults.py --seeds {' '.join(map(str, given.seeds))} --logs {' '.join(given.logs)}",
    }
    Console().print("\n".join(table(logs)), markup=False, soft_wrap=True)
    keep(found, RESULT, as_json=given.json)


if __name__ == "__main__":
    main()
