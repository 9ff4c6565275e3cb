"""How near the sequence denoiser comes to the best possible detector of mis-clicks, on generated logs with labelled ones.

    python benchmarks/denoise_oracle.py                     # the seeds that are reported
    python benchmarks/denoise_oracle.py --seeds 1 --json    # the seed that it was developed with

The generated log of the default options gets 5 % mis-clicks (`data.faults.misclicks`), each on a random item three seconds before
the event that was meant. The likelihood-ratio oracle of `audit_detectors.py` knows the world's law and the labels of all other
events. The denoiser knows neither; it trains two small models on each half of the users. AUC over all mis-clicks that have a
sound event of the user before and after them, and a sample of sound events: by items alone (haste off), which is the test, since
the pause of three seconds gives a mis-click away; and with haste. `removed` is what the step takes out at its default certainty.
The result goes to benchmarks/results/denoise-oracle.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from audit_detectors import Observed, auc, keep, scored
from rich.console import Console

from largerec.audit import misclicks
from largerec.curate.rows import Training
from largerec.cures.sequence_denoise import SequenceDenoiseStep
from largerec.doctor import processor
from largerec.events import EventLog
from largerec.faults import LABEL, FaultOptions, with_faults
from largerec.simulate import SimulateOptions, World, log_of_world

RESULT = Path(__file__).parent / "results" / "denoise-oracle.json"
SHARE = 0.05
REPORTED = (201, 202, 203)


def training_of(log: EventLog, seed: int) -> Training:
    """A whole log as training rows, without the labels of its faults."""
    count = log.events.height
    seen = replace(log, events=log.events.drop(LABEL))
    return Training(seen, np.full(count, np.iinfo(np.int64).max), np.ones(count), log.events["user_id"].unique(), seed)


def measure(seed: int, most: int) -> dict[str, Any]:
    """AUC of the oracle, the denoiser and the counts of the audit on the same events, and what the denoiser removes."""
    world = World(SimulateOptions(seed=seed))
    log = with_faults(log_of_world(world), FaultOptions(misclicks=SHARE, seed=seed))
    seen = Observed.of(world, log)
    user_N = seen.ordered.user_N
    before_N = np.cumsum(~seen.misclick_N) - ~seen.misclick_N
    offsets = seen.sound.offsets_U1
    inside_N = (before_N > offsets[user_N]) & (before_N + ~seen.misclick_N < offsets[user_N + 1])
    random = np.random.default_rng(seed)
    at = np.concatenate(
        [random.permutation(np.flatnonzero(inside_N & kind))[:most] for kind in (seen.misclick_N, ~seen.misclick_N)]
    )
    at.sort()
    label, ratio = seen.misclick_N[at], np.clip(seen.ratios(at), -1e3, 1e3)
    started, training = time.perf_counter(), training_of(log, seed)
    plain, share = SequenceDenoiseStep(haste=False).probabilities(training)
    seconds = time.perf_counter() - started
    pause_N = np.exp(-misclicks.haste(training.ordered))
    odds_N = plain / np.maximum(1 - plain, 1e-12)
    ordering = np.log(np.maximum(odds_N, 1e-12))
    found: dict[str, Any] = {
        "oracle": auc(ratio, label),
        "denoiser": auc(ordering[at], label),
        "audit": auc(misclicks.misfit(training.ordered)[at], label),
        "denoiser_with_haste": auc((ordering - 0.7 * np.log(np.maximum(pause_N, 1e-6)))[at], label),
    }
    found["share"] = found["denoiser"] / found["oracle"]
    found |= {"true_share": float(seen.misclick_N.mean()), "estimated_share": share, "seconds": seconds}
    rounded = {name: round(value, 4) for name, value in found.items()}
    return rounded | {"removed": scored(plain >= 0.5, seen.misclick_N), "events": len(at), "misclicks": int(label.sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(REPORTED))
    parser.add_argument("--most", type=int, default=2000, help="mis-clicks, and sound events, that are asked of the oracle")
    parser.add_argument("--json", action="store_true", help="print one JSON document, write no file")
    given = parser.parse_args()
    seeds = {str(seed): measure(seed, given.most) for seed in given.seeds}
    found = {
        "misclicks": SHARE,
        "seeds": seeds,
        "worst_share": min(row["share"] for row in seeds.values()),
        "hardware": processor(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/denoise_oracle.py --seeds {' '.join(map(str, given.seeds))} --most {given.most}",
    }
    for seed, row in seeds.items():
        Console().print(
            f"seed {seed}: AUC by items: oracle {row['oracle']:.3f}, denoiser {row['denoiser']:.3f} "
            f"({row['share']:.3f} of it), audit {row['audit']:.3f}; removed: precision {row['removed']['precision']:.3f}, "
            f"recall {row['removed']['recall']:.3f}",
            markup=False,
        )
    keep(found, RESULT, as_json=given.json)


if __name__ == "__main__":
    main()
