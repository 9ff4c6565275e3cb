"""Precision and recall of the audit's detectors on labelled faults: on the generated log, MovieLens latest and Globo.com.

    python benchmarks/audit_detectors.py                     # the seeds that are reported
    python benchmarks/audit_detectors.py --seeds 1 --json    # the seed that the detectors were developed with

The settings of the faults were fixed first: 2 % of the users bots, 2 % of the events duplicated, mis-clicked and mistimed, all at
once (`data.faults.*`). Detectors see neither labels nor settings. A log without faults is looked at too: what is found there is
the log's own. For mis-clicks on the generated log a likelihood-ratio oracle knows the world's law and, for each event, the labels
of all other events of its user: P(item | any) P(next | before) / (P(item | before) P(next | before, item)) from `oracle.py`.
`items` compares scores without times; with times, the pause of a mis-click (three seconds, where the world's own are ten and
more) gives it away to the oracle and to the detector alike. The result goes to benchmarks/results/audit-detectors.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from scipy.stats import rankdata

from largerec.audit import bots, clocks, misclicks, repeats
from largerec.audit.ordered import Ordered
from largerec.datasets import DataOptions, load_log
from largerec.doctor import processor
from largerec.events import EventLog
from largerec.faults import LABEL, MISCLICK_MS, FaultOptions, with_faults
from largerec.oracle import Asking, Histories, next_item_probabilities
from largerec.simulate import SimulateOptions, World, log_of_world
from largerec.world import STAGES, day_of

RESULT = Path(__file__).parent / "results" / "audit-detectors.json"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FAULTS = {"bots": 0.02, "duplicates": 0.02, "misclicks": 0.02, "clock_errors": 0.02}
REPORTED = (101, 102, 103)
LOGS = {"generated": None, "ml-latest": "movielens-latest-206k", "globo": "globo-news"}


def scored(found: np.ndarray, meant: np.ndarray) -> dict[str, Any]:
    """Precision and recall of a mask, and the counts behind them."""
    right = int((found & meant).sum())
    return {
        "precision": round(right / max(1, int(found.sum())), 4),
        "recall": round(right / max(1, int(meant.sum())), 4),
        "found": int(found.sum()),
        "faults": int(meant.sum()),
    }


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half."""
    rank, count = rankdata(score), int(positive.sum())
    return float((rank[positive].sum() - count * (count + 1) / 2) / (count * (len(score) - count)))


def detect(log: EventLog) -> dict[str, Any]:
    """All detectors on a labelled log, against its labels."""
    ordered = Ordered.of(log)
    label = log.events[LABEL].fill_null("")[ordered.row_N]
    meant = {name: (label == name).to_numpy() for name in ("bot", "duplicate", "misclick", "clock error")}
    bot_U = np.zeros(len(ordered.length_U), dtype=bool)
    bot_U[ordered.user_N[meant["bot"]]] = True
    found: dict[str, Any] = {
        "events": len(ordered),
        "bots": scored(bots.signs(ordered).suspect_U, bot_U),
        "duplicates": scored(repeats.exact(ordered), meant["duplicate"]),
        "clock errors": scored(clocks.WrongTimes.of(ordered).any_N, meant["clock error"]),
    }
    some = ordered.some_users(misclicks.SAMPLE)
    label_N = (log.events[LABEL].fill_null("")[some.row_N] == "misclick").to_numpy()
    scores = {"auc": misclicks.scores(some), "auc_items": misclicks.misfit(some)}
    found["mis-clicks"] = {name: round(auc(score, label_N), 4) for name, score in scores.items()}
    return found


def own(log: EventLog) -> dict[str, int]:
    """What the detectors find in a log as it is."""
    ordered = Ordered.of(log)
    wrong = clocks.WrongTimes.of(ordered)
    return {
        "bots": int(bots.signs(ordered).suspect_U.sum()),
        "duplicates": int(repeats.exact(ordered).sum()),
        "clock errors": int(wrong.any_N.sum()),
    }


# --- the oracle of mis-clicks ---------------------------------------------------------------------------------------------


Altered = tuple[Histories, np.ndarray]


@dataclass(frozen=True)
class Observed:
    """A faulty log of a known world: its events in order [N], and the sound ones among them as the world numbers them [S]."""

    world: World
    ordered: Ordered
    misclick_N: np.ndarray
    item_N: np.ndarray
    sound: Histories

    @classmethod
    def of(cls, world: World, log: EventLog) -> Observed:
        ordered = Ordered.of(log)
        misclick_N = (log.events[LABEL].fill_null("")[ordered.row_N] == "misclick").to_numpy()
        number = {name: n for n, name in enumerate(world.item_ids)}
        item_N = np.array([number[name] for name in ordered.item_ids.to_list()])[ordered.item_N]
        stage = log.events["behavior"][ordered.row_N].replace_strict({name: n for n, name in enumerate(STAGES)})
        offsets = np.concatenate([[0], np.cumsum(np.bincount(ordered.user_N[~misclick_N], minlength=len(ordered.length_U)))])
        rows = ~misclick_N
        sound = Histories(offsets, item_N[rows], stage.to_numpy()[rows], day_of(ordered.time_N[rows]))
        return cls(world, ordered, misclick_N, item_N, sound)

    def law(self, histories: Histories, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """P(item | the sound events before the row, and the row's period) [Q], in blocks."""
        found = np.zeros(len(rows))
        for start in range(0, len(rows), 1000):
            some = slice(start, start + 1000)
            law_QV = next_item_probabilities(self.world, histories, rows[some], Asking(query_time=True))
            found[some] = law_QV[np.arange(len(law_QV)), items[some]]
        return found

    def altered(
        self, first_Q: np.ndarray, end_Q: np.ndarray, next_Q: np.ndarray, more_Q: np.ndarray
    ) -> tuple[Histories, np.ndarray]:
        """Histories ``first:end``, one more item (unless -1) as a view at the time of the next event, then that event, each as a
        user of its own; and the rows of the next events."""
        sound, items, stages, days = self.sound, [], [], []
        for first, end, after, more in zip(first_Q, end_Q, next_Q, more_Q, strict=True):
            extra = [] if more < 0 else [more]
            items.append(np.r_[sound.item_N[first:end], extra, sound.item_N[after]])
            stages.append(np.r_[sound.stage_N[first:end], [0] * len(extra), sound.stage_N[after]])
            days.append(np.r_[sound.day_N[first:end], [sound.day_N[after]] * len(extra), sound.day_N[after]])
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in items])])
        parts = (np.concatenate(one).astype(np.int64) for one in (items, stages, days))
        return Histories(offsets, *parts), offsets[1:] - 1

    def ratios(self, at: np.ndarray) -> np.ndarray:
        """log P(item | mis-click) P(next | before) - log P(item | before) P(next | before, item) of events with both [Q]."""
        mis_Q, user_Q, item_Q = self.misclick_N[at], self.ordered.user_N[at], self.item_N[at]
        end_Q = np.cumsum(~self.misclick_N)[at] - ~mis_Q  # sound events before, of all users
        first_Q, next_Q = self.sound.offsets_U1[user_Q], end_Q + ~mis_Q
        own_Q = self.law(self.sound, end_Q, item_Q)
        usual_Q = self.law(self.sound, next_Q, self.sound.item_N[next_Q])  # of a sound event: with it; of a mis-click: without
        ratio_Q = np.full(len(at), np.inf)
        possible = np.flatnonzero(own_Q > 0)
        more_Q = np.where(mis_Q, item_Q, -1)[possible]
        histories, rows = self.altered(first_Q[possible], end_Q[possible], next_Q[possible], more_Q)
        other_Q = self.law(histories, rows, self.sound.item_N[next_Q[possible]])
        without = np.where(mis_Q[possible], usual_Q[possible], other_Q)
        with_it = np.where(mis_Q[possible], other_Q, usual_Q[possible])
        with np.errstate(divide="ignore"):
            ratio_Q[possible] = np.log(without) - np.log(with_it) - np.log(own_Q[possible]) - np.log(len(self.world.category_V))
        return ratio_Q


def oracle(seed: int, most: int = 6000) -> dict[str, float]:
    """AUC of the likelihood ratio and of the detector on the same events: all mis-clicks, and a sample of the others.

    Events have a sound event of the user before and after them.
    """
    world = World(SimulateOptions())
    log = with_faults(log_of_world(world), FaultOptions(misclicks=FAULTS["misclicks"], seed=seed))
    seen = Observed.of(world, log)
    user_N = seen.ordered.user_N
    before_N = np.cumsum(~seen.misclick_N) - ~seen.misclick_N
    offsets = seen.sound.offsets_U1
    inside_N = (before_N > offsets[user_N]) & (before_N + ~seen.misclick_N < offsets[user_N + 1])
    sound = np.random.default_rng(seed).permutation(np.flatnonzero(inside_N & ~seen.misclick_N))[:most]
    at = np.sort(np.concatenate([np.flatnonzero(inside_N & seen.misclick_N), sound]))
    ratio, label = seen.ratios(at), seen.misclick_N[at]
    pause_N = np.append(seen.ordered.pause_N[1:], -1)
    timed = np.where(pause_N[at] == MISCLICK_MS, 1e6, 0.0) + np.clip(ratio, -1e3, 1e3)
    found = {
        "oracle_items": auc(ratio, label),
        "detector_items": auc(misclicks.misfit(seen.ordered)[at], label),
        "oracle": auc(timed, label),
        "detector": auc(misclicks.scores(seen.ordered)[at], label),
    }
    found["share_items"] = found["detector_items"] / found["oracle_items"]
    found["share"] = found["detector"] / found["oracle"]
    return {name: round(value, 4) for name, value in found.items()} | {"events": len(at), "misclicks": int(label.sum())}


# --- the command ----------------------------------------------------------------------------------------------------------


def measure(names: list[str], seeds: list[int]) -> dict[str, Any]:
    """Each log as it is, and with faults of each seed."""
    rows: dict[str, Any] = {}
    for name in names:
        folder = LOGS[name]
        if folder is not None and not (SHARED / folder).is_dir():
            continue
        log = load_log(DataOptions(path=None if folder is None else str(SHARED / folder)))
        rows[name] = {"as_it_is": own(log), "seeds": {}}
        for seed in seeds:
            rows[name]["seeds"][str(seed)] = detect(with_faults(log, FaultOptions(seed=seed, **FAULTS)))
    return rows


def table(logs: dict[str, Any], oracles: dict[str, Any]) -> list[str]:
    """Rows of Markdown: the worst precision and recall over the seeds, the mean AUC."""
    lines = ["| log | bots | duplicates | clock errors | mis-clicks, AUC |", "|---|---|---|---|---|"]
    for name, row in logs.items():
        runs = list(row["seeds"].values())
        cells = [
            f"{min(run[kind]['precision'] for run in runs):.3f} / {min(run[kind]['recall'] for run in runs):.3f}"
            for kind in ("bots", "duplicates", "clock errors")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.mean([run['mis-clicks']['auc'] for run in runs]):.3f} |")
    for kind in ("", "_items"):
        share = min(found[f"share{kind}"] for found in oracles.values())
        detector, best = (np.mean([found[f"{who}{kind}"] for found in oracles.values()]) for who in ("detector", "oracle"))
        lines.append(f"generated, AUC{kind.replace('_', ', ')}: detector {detector:.3f}, oracle {best:.3f}, share {share:.3f}")
    return lines


def keep(found: dict[str, Any], result: Path, *, as_json: bool) -> None:
    """Print what was found as one JSON document, or else write it to the result file."""
    if as_json:
        print(json.dumps(found))
        return
    result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Console().print(f"written to {result}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(REPORTED))
    parser.add_argument("--logs", nargs="+", choices=list(LOGS), default=list(LOGS))
    parser.add_argument("--json", action="store_true", help="print one JSON document, write no file")
    given = parser.parse_args()
    logs, oracles = measure(given.logs, given.seeds), {str(seed): oracle(seed) for seed in given.seeds}
    found = {
        "faults": FAULTS,
        "logs": logs,
        "misclick_oracle": oracles,
        "polars": pl.__version__,
        "hardware": processor(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/audit_detectors.py --seeds {' '.join(map(str, given.seeds))} "
        f"--logs {' '.join(given.logs)}",
    }
    Console().print("\n".join(table(logs, oracles)), markup=False)
    keep(found, RESULT, as_json=given.json)


if __name__ == "__main__":
    main()
