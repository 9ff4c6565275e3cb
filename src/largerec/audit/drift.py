"""How a log changes: popularity from period to period, new items, how long items and interests last."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from largerec.audit.findings import Finding, curate_command
from largerec.audit.ordered import DAY, Bools, Floats, Ordered

PERIODS = 8  # with as many events each
LAGS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FEWEST = 10  # events of an item whose half-life is counted
PAIRS = 500  # pairs of events behind a point of the curve of interests
STRONG = 0.3  # bits of divergence beyond chance, at which popularity has drifted much
NEW = 0.2  # share of new items' events in the later half, at which they are many
SHORT = 0.1  # share of the days of 98 % of the events, below which an item's half-life is short


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Jensen-Shannon divergence of two counts over the same items in bits: 0 alike, 1 nothing in common."""
    p, q = a / a.sum(), b / b.sum()
    middle = (p + q) / 2
    return sum(float((x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum()) for x in (p, q)) / 2


def drift(log: Ordered, wrong_N: Bools, seed: int = 0) -> dict[str, Any] | None:
    """Drift of a log with a clock as plain values; None where there is none, or too few events to tell."""
    rows = np.flatnonzero(log.timed_N & ~wrong_N)
    if not log.has_clock or len(rows) < 20 * PERIODS:
        return None
    rows = rows[np.argsort(log.time_N[rows], kind="stable")]
    item_R, time_R, size = log.item_N[rows], log.time_N[rows], len(log.item_ids)
    edges = np.linspace(0, len(rows), PERIODS + 1).astype(int)
    counts = [np.bincount(item_R[a:b], minlength=size) for a, b in itertools.pairwise(edges)]
    # Of sorted counts, so that the draw does not depend on the numbers of the items.
    rng, total_V = np.random.default_rng(seed), np.sort(np.bincount(item_R))
    chance = divergence(*(rng.binomial(total_V, 1 / PERIODS) for _ in range(2)))
    first = np.full(size, len(rows))
    np.minimum.at(first, item_R, np.arange(len(rows)))
    new = [int((first[item_R[a:b]] >= a).sum()) for a, b in itertools.pairwise(edges)]
    return {
        "periods_from_ms": time_R[edges[:-1]].tolist(),
        "divergence_to_next": [divergence(a, b) for a, b in itertools.pairwise(counts)],
        "divergence_first_to_last": divergence(counts[0], counts[-1]),
        "divergence_by_chance": chance,
        "new_item_share": [count / (b - a) for count, (a, b) in zip(new, itertools.pairwise(edges.tolist()), strict=True)],
        "late_events": len(rows) - int(edges[PERIODS // 2]),
        "late_events_on_new_items": sum(new[PERIODS // 2 :]),
        "days_of_98_percent": float(np.subtract(*np.quantile(time_R, [0.99, 0.01]))) / DAY,  # a few stray times count for nothing
        "item_half_life_days": item_half_life(item_R, time_R / DAY, size),
        "interest": interest(log),
    }


def item_half_life(item_R: np.ndarray, day_R: Floats, size: int) -> float | None:
    """Days from an item's first event to the one by which half of its events are done: the median over events.

    Only items with at least ten events that began after the first tenth of the log count, since the others were there before.
    """
    order = np.argsort(item_R, kind="stable")
    count_V = np.bincount(item_R, minlength=size)
    start_V = np.cumsum(count_V) - count_V
    known = np.flatnonzero(count_V >= FEWEST)
    begun = day_R[order[start_V[known]]]
    half = day_R[order[start_V[known] + (count_V[known] - 1) // 2]] - begun
    late = begun >= np.quantile(day_R, 0.1)
    if not late.any():
        return None
    return float(np.median(np.repeat(half[late], count_V[known][late])))


def interest(log: Ordered) -> dict[str, Any] | None:
    """How alike in category a user's events are by how many events lie between, beyond chance; where that has halved.

    Of several categories of an item, joined by ``|``, the first counts. None where the items have no categories.
    """
    if log.items is None or "category" not in log.items.columns:
        return None
    known = log.items.unique("item_id", keep="first")
    named = log.item_ids.alias("item_id").to_frame().join(known, on="item_id", how="left", maintain_order="left")["category"]
    first = named.str.split("|").list.first()
    code_V = np.where(first.is_null(), -1, first.rank("dense").fill_null(0).to_numpy().astype(np.int64))
    code_N = code_V[log.item_N]
    share = np.bincount(code_N[code_N >= 0]) / max(1, int((code_N >= 0).sum()))
    chance = float((share**2).sum())
    curve = []
    for lag in LAGS:
        if lag >= len(log):
            break
        pairs = (log.user_N[lag:] == log.user_N[:-lag]) & (code_N[lag:] >= 0) & (code_N[:-lag] >= 0)
        if int(pairs.sum()) < PAIRS:
            break
        same = float((code_N[lag:] == code_N[:-lag])[pairs].mean())
        curve.append([lag, same - chance])
    if not curve:
        return None
    return {"chance": chance, "curve": curve, "half_life_events": half_life(curve)}


def half_life(curve: list[list[float]]) -> float | None:
    """Where a curve of [lag, excess] has fallen to half of its first excess, between points on a line of log lag."""
    half = curve[0][1] / 2
    if half <= 0:
        return None
    for (a, high), (b, low) in itertools.pairwise(curve):
        if low <= half:
            return float(a * (b / a) ** ((high - half) / (high - low)))
    return None


def findings(found: dict[str, Any] | None, information: dict[str, Any], log: Ordered, data: Sequence[str]) -> list[Finding]:
    """What drift and information mean for a model. ``data``: what a command is given."""
    said: list[Finding] = []
    if found is not None:
        beyond = found["divergence_first_to_last"] - found["divergence_by_chance"]
        if beyond >= STRONG:
            text = (
                f"Popularity at the end has little to do with that at the beginning: their divergence is "
                f"{found['divergence_first_to_last']:.2f} bits of 1 ({found['divergence_by_chance']:.2f} by chance)."
            )
            cure = "Test by time, and try an import with --from that keeps the recent part only: old events may not help."
            said.append(Finding("drift of popularity", "information", "info", PERIODS, "periods", PERIODS, text, cure))
        count, of = found["late_events_on_new_items"], found["late_events"]
        if (late := count / of) >= NEW:
            text = f"In the later half of the log {late:.0%} of the events are on items that came new in their period."
            cure = "Train often, or give models the items' content: a model of ids cannot know an item before its first event."
            said.append(Finding("many new items", "information", "warn", count, "events", of, text, cure))
        life, days = found["item_half_life_days"], found["days_of_98_percent"]
        if life is not None and 0 < life < SHORT * days:
            about = f"{float(f'{life:.2g}'):g}"
            text = (
                f"Half of a usual item's events are done {about} days after its first; 98 % of all lie within {days:,.0f} days."
            )
            cure = "Let older events weigh less: half at that age, or at a shorter one. largerec ablate tells whether it pays."
            command = curate_command(data, f"recency:half_life_days={about}")
            said.append(Finding("short-lived items", "information", "info", len(log), "events", len(log), text, cure, command))
    if information["compression"]["saved_by_order"] < 0.005 and len(log) >= 1000:
        saved = information["compression"]["saved_by_order"]
        text = f"Shuffling each user's events costs a compressor {max(saved, 0):.1%}: on this scale their order says little."
        cure = "Compare a model with one that ignores the order before you pay for a long context."
        said.append(Finding("little order", "information", "info", len(log), "events", len(log), text, cure))
    return said
