"""The shape of a log: how many of what, how long, how popular, when, in which sessions, and who comes new."""

from __future__ import annotations

from typing import Any

import numpy as np

from largerec.audit.ordered import DAY, HOUR, Bools, Floats, Ints, Ordered
from largerec.audit.periods import MONDAY, activity

QUANTILES = (10, 25, 50, 75, 90, 99)
MOST_STARTS = 50  # tail starts that a fit of a power law tries
CURVE = 160  # points of a curve


def spread(values: np.ndarray) -> dict[str, float]:
    """Least, mean, largest and quantiles of some numbers."""
    if not len(values):
        return {}
    quantiles = np.quantile(values, [q / 100 for q in QUANTILES], method="nearest")
    named = {f"p{q}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)}
    return {"min": float(values.min()), **named, "max": float(values.max()), "mean": float(values.mean())}


def gini(count_V: Ints) -> float:
    """Gini coefficient of counts: 0 where all are equal, near 1 where one has everything."""
    ordered, total = np.sort(count_V).astype(np.float64), float(count_V.sum())
    rank = np.arange(1, len(ordered) + 1)
    return float((2 * rank - len(ordered) - 1) @ ordered / (len(ordered) * total)) if total else 0.0


def power_law(count_V: Ints) -> dict[str, float] | None:
    """A power law of counts by maximum likelihood, its tail begun where it fits best (Clauset, Shalizi, Newman 2009, eq. 3.7).

    Returns ``alpha`` of P(count) ~ count^-alpha, ``zipf``, the exponent 1 / (alpha - 1) of count ~ rank^-zipf, ``from`` (least
    count of the tail), ``items`` in it and ``ks``, the largest distance of the distributions; None for fewer than 50 items.
    """
    ordered = np.sort(count_V[count_V > 0])
    starts = np.unique(ordered[: max(0, len(ordered) - 50)])
    if not len(starts) or ordered[0] == ordered[-1]:
        return None
    best: dict[str, float] | None = None
    for start in starts[np.unique(np.linspace(0, len(starts) - 1, MOST_STARTS).astype(int))].tolist():
        tail = ordered[np.searchsorted(ordered, start) :]
        total = float(np.log(tail / (start - 0.5)).sum())
        alpha = 1 + len(tail) / total
        value, first = np.unique(tail, return_index=True)
        empirical = 1 - first / len(tail)  # share of the tail at this count or above
        model = ((value - 0.5) / (start - 0.5)) ** (1 - alpha)
        ks = float(np.abs(empirical - model).max())
        if best is None or ks < best["ks"]:
            best = {"alpha": alpha, "zipf": 1 / (alpha - 1), "from": float(start), "items": float(len(tail)), "ks": ks}
    return best


def shape(log: Ordered, wrong_N: Bools) -> dict[str, Any]:
    """Everything about the shape as plain values; events with wrong times are left out where time counts."""
    events, users, items = len(log), len(log.user_ids), len(log.item_ids)
    ordered = np.sort(log.count_V)[::-1]
    places = np.unique(np.geomspace(1, items, CURVE).astype(int))
    found: dict[str, Any] = {
        "events": events,
        "users": users,
        "items": items,
        "density": events / (users * items),
        "history_length": {
            **spread(log.length_U),
            "fewer_than_3": int((log.length_U < 3).sum()),
            "bins": _length_bins(log.length_U),
        },
        "popularity": {
            **spread(log.count_V),
            "seen_once": int((log.count_V == 1).sum()),
            "gini": gini(log.count_V),
            "top_1_percent_share": float(ordered[: max(1, round(items / 100))].sum() / events),
            "top_20_percent_share": float(ordered[: max(1, round(items / 5))].sum() / events),
            "power_law": power_law(log.count_V),
            "rank_curve": [[int(rank), int(ordered[rank - 1])] for rank in places],
        },
    }
    kept_N = log.timed_N & ~wrong_N
    if log.has_clock and kept_N.any():
        found["time"] = _time(log, kept_N)
        found["sessions"] = _sessions(log if log.timed_N.all() else log.kept(log.timed_N))
    return found


def _length_bins(length_U: Ints) -> list[list[int]]:
    """Users by number of events: [from, to, users] for 1, 2, 3-4, 5-8 and so on."""
    exponent_U = np.ceil(np.log2(length_U)).astype(int)
    count_B = np.bincount(exponent_U).tolist()
    return [[2 ** (b - 1) + 1 if b else 1, 2**b, count] for b, count in enumerate(count_B)]


def _time(log: Ordered, kept_N: Bools) -> dict[str, Any]:
    """Activity in bins, by hour and by weekday (UTC), and users and items that are seen for the first time, a week and a bin."""
    time_N = log.time_N[kept_N]
    name, bin_N, edge_B1 = activity(time_N)
    first_user, first_item = (
        _first(log.user_N[kept_N], time_N, len(log.user_ids)),
        _first(log.item_N[kept_N], time_N, len(log.item_ids)),
    )
    weeks = int(time_N.max() // DAY - MONDAY) // 7 - int(time_N.min() // DAY - MONDAY) // 7 + 1
    return {
        "first_ms": int(time_N.min()),
        "last_ms": int(time_N.max()),
        "days": float((time_N.max() - time_N.min()) / DAY),
        "by_hour": np.bincount(time_N // HOUR % 24, minlength=24).tolist(),
        "by_weekday": np.bincount((time_N // DAY + 3) % 7, minlength=7).tolist(),  # 1970-01-01 was a Thursday
        "bin": name,
        "edges_ms": edge_B1.tolist(),
        "events": np.bincount(bin_N, minlength=len(edge_B1) - 1).tolist(),
        "new_users": np.histogram(first_user, edge_B1)[0].tolist(),
        "new_items": np.histogram(first_item, edge_B1)[0].tolist(),
        "weeks": weeks,
        "new_users_a_week": len(first_user) / weeks,
        "new_items_a_week": len(first_item) / weeks,
    }


def _first(code_N: np.ndarray, time_N: Ints, size: int) -> Ints:
    """Time of the first event of each code that occurs."""
    first = np.full(size, np.iinfo(np.int64).max)
    np.minimum.at(first, code_N, time_N)
    return first[first < np.iinfo(np.int64).max]


def _sessions(log: Ordered) -> dict[str, Any]:
    """Sessions, cut at pauses of more than 30 minutes, and the pauses within them."""
    session_N = log.sessions()
    size_S = np.bincount(session_N)
    start_S = np.concatenate([[0], np.cumsum(size_S)[:-1]])
    length_S: Floats = (log.time_N[start_S + size_S - 1] - log.time_N[start_S]) / 1000
    within_N = log.follows_N & (log.pause_N >= 0)
    within_N[1:] &= session_N[1:] == session_N[:-1]
    return {
        "count": len(size_S),
        "a_user": len(size_S) / len(log.user_ids),
        "events": spread(size_S),
        "seconds": spread(length_S),
        "pause_seconds": spread(log.pause_N[within_N] / 1000),
        "single_event_share": float((size_S == 1).mean()),
    }
