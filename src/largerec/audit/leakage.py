"""What a split of this log would let a model know too early, and what it asks for that nothing could know."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.stats import rankdata

from largerec.audit.findings import Finding, by_share
from largerec.audit.ordered import Ordered
from largerec.sequences import STAGE_COLUMN, TEST, TRAIN, SplitOptions, stages_of

ALIKE = 0.9  # rank correlation with counts of the whole period, from which a column is suspected
EQUAL = 0.95  # share of rows in which a column equals a count
SAMPLE = 200_000


def findings(log: Ordered, split: SplitOptions) -> list[Finding]:
    """Test events before training ends, items only in the test, features of the whole period.

    Raises:
        LargeRecError: the moments of a timeline cannot be read.
    """
    given = log.events[STAGE_COLUMN].gather(log.row_N) if STAGE_COLUMN in log.events.columns else None
    stage_N = stages_of(split, log.offsets_U1, log.time_N, log.time_kind, given, log.source)
    return [*_early(log, stage_N, split), *_cold(log, stage_N), *_features(log, stage_N)]


def _early(log: Ordered, stage_N: np.ndarray, split: SplitOptions) -> list[Finding]:
    """Test events at a time at which training still goes on for others."""
    asked_N = stage_N == TEST
    test_N = asked_N & log.timed_N
    train_N = (stage_N == TRAIN) & log.timed_N
    if not log.has_clock or not test_N.any() or not train_N.any():
        return []
    last = int(log.time_N[train_N].max())
    early_N = test_N & (log.time_N < last)
    count = int(early_N.sum())
    if not count:
        return []
    median = float(np.median(log.time_N[test_N]))
    share = float((log.time_N[train_N] > median).mean())
    said = (
        f"Under {split.protocol}, {count:,} of {int(test_N.sum()):,} test events happened before the last training event; "
        f"{share:.0%} of the training events are later than the median test event. A model learns from what was still to come."
    )
    if untimed := int(asked_N.sum()) - int(test_N.sum()):
        said += f" Test events without a time, {untimed:,}, are left out here."
    cure = (
        "Recipes with split.protocol=timeline train before a date and test after it: that is how a model is used. Leave-one-out "
        "is fine to compare with published numbers."
    )
    severity = by_share(count, int(test_N.sum()), 0.5, 1.1)
    examples = log.examples(np.flatnonzero(early_N))
    return [
        Finding("test before training ends", "leakage", severity, count, "events", int(test_N.sum()), said, cure, None, examples)
    ]


def _cold(log: Ordered, stage_N: np.ndarray) -> list[Finding]:
    """Items that only the test has."""
    size = len(log.item_ids)
    trained_V = np.bincount(log.item_N[stage_N == TRAIN], minlength=size) > 0
    cold_N = (stage_N == TEST) & ~trained_V[log.item_N]
    events, of = int(cold_N.sum()), int((stage_N == TEST).sum())
    if not events:
        return []
    items = int(np.unique(log.item_N[cold_N]).size)
    said = (
        f"{items:,} items of the test have no training event; {events:,} of {of:,} test events ({events / of:.1%}) are on them. "
        "A model of item ids cannot find them: they count as misses."
    )
    cure = (
        "Report them apart (evaluation does). Models with item content could find them; training again more often lowers their "
        "number."
    )
    severity = by_share(events, of, 0.1, 1.1)
    examples = log.examples(np.flatnonzero(cold_N))
    return [
        Finding(
            "items only in the test", "leakage", severity, items, "items", size, said, cure, None, examples, {"events": events}
        )
    ]


def _features(log: Ordered, stage_N: np.ndarray) -> list[Finding]:
    """Columns that know how often an item, a user or a session comes in the whole period."""
    suspects = _item_columns(log, stage_N) + _event_columns(log)
    if not suspects:
        return []
    names = ", ".join(f"{suspect['column']} ({suspect['why']})" for suspect in suspects)
    count = "1 column seems" if len(suspects) == 1 else f"{len(suspects)} columns seem"
    said = f"{count} to be computed over the whole period, the test part with it: {names}."
    cure = "Do not use them as features, or build them anew from what was known at the time of each event."
    wide = log.events.width + (log.items.width if log.items is not None else 0)
    return [
        Finding("features of the whole period", "leakage", "warn", len(suspects), "columns", wide, said, cure, None, suspects)
    ]


def _item_columns(log: Ordered, stage_N: np.ndarray) -> list[dict[str, str]]:
    """Numbers of the item table that go with the item's count of the whole log more than with its count in training."""
    if log.items is None:
        return []
    counts = pl.DataFrame(
        {
            "item_id": log.item_ids,
            "all": log.count_V,
            "trained": np.bincount(log.item_N[stage_N == TRAIN], minlength=len(log.item_ids)),
        }
    )
    table = log.items.join(counts, on="item_id", how="inner")
    found = []
    for name in log.items.columns:
        if not log.items.schema[name].is_numeric() or name == "item_id" or table.height < 20:
            continue
        known = table.filter(pl.col(name).is_not_null())
        if known.height < 20 or known[name].n_unique() < 5:
            continue
        whole, trained = (_rank_correlation(known[name].to_numpy(), known[other].to_numpy()) for other in ("all", "trained"))
        if whole >= ALIKE and whole >= trained:
            found.append({"column": name, "why": f"rank correlation {whole:.2f} with the item's count in the whole log"})
    return found


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    ranks = rankdata(a), rankdata(b)
    if min(float(rank.std()) for rank in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _event_columns(log: Ordered) -> list[dict[str, str]]:
    """Whole numbers of the events that equal how many events the user, or the session in a column, has in the whole log."""
    events = log.events
    sessions = [name for name in events.columns if "session" in name.lower() and events[name].dtype.is_integer()]
    known = {"user_id", "item_id", "timestamp"}
    numbers = [name for name in events.columns if events.schema[name].is_integer() and name not in known]
    rows = np.arange(0, events.height, max(1, events.height // SAMPLE))
    found = []
    for by in ["user_id", *sessions]:
        candidates = [name for name in numbers if name != by and events[name][rows].n_unique() > 2]
        if not candidates:
            continue
        part = events.select(*candidates, count=pl.len().over(by))[rows]
        for name in candidates:
            several = part.filter(pl.col("count") > 1)
            if several.height >= 20 and float((several[name] == several["count"]).mean() or 0.0) >= EQUAL:  # type: ignore[arg-type]
                found.append({"column": name, "why": f"equals the number of events of its {by}"})
    return found
