"""The log as a series of days: missing days, level shifts, and items that died."""

from __future__ import annotations

import numpy as np

from largerec.audit.findings import Finding, counted
from largerec.audit.ordered import DAY, Bools, Floats, Ints, Ordered
from largerec.columns import iso_time

FEWEST_A_DAY = 20  # median events a day, below which an empty day means nothing
PARTIAL = 0.1  # of the median of the days around
AROUND = 7  # days on either side
SHIFT_RATIO = 2.0  # levels that differ by so much
SHIFT_DAYS = 7  # on either side of a shift, at least
DEAD_EVENTS, DEAD_USERS = 20, 5
DEAD_SHARE = 0.25  # of the log's time in which a dead item is silent
DEAD_PAUSES = 20.0  # its usual pauses that this silence is worth
DEAD_LIFE, DEAD_SILENCE = 3 * DAY, 7 * DAY  # from first event to last, and after that, at least: one visit is no life


def days(log: Ordered, wrong_N: Bools) -> tuple[int, Ints]:
    """The first day (since 1970) and events of each day [D], wrong times and the outermost thousandth left out."""
    time_N = log.time_N[log.timed_N & ~wrong_N]
    if not len(time_N):
        return 0, np.zeros(0, dtype=np.int64)
    low, high = np.quantile(time_N, (0.0005, 0.9995)) // DAY
    day_N = time_N // DAY
    day_N = day_N[(day_N >= low) & (day_N <= high)]
    return int(low), np.bincount(day_N - int(low))


def usual(count_D: Ints) -> Floats:
    """Median of the week before and the week after each day, the day itself left out [D]."""
    padded = np.pad(count_D.astype(np.float64), AROUND, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1).copy()
    windows[:, AROUND] = np.nan
    with np.errstate(all="ignore"):
        lonely = np.isnan(windows).all(axis=1)
        windows[lonely] = 0.0
        found: Floats = np.nanmedian(windows, axis=1)
    return found


def level_shifts(count_D: Ints) -> list[tuple[int, float, float]]:
    """Days at which the level of the log changes: (day, median before, median after), found by binary segmentation.

    The day that lowers the squared error of the logarithms most cuts the days in two (Scott and Knott, 1974), if the medians of
    its two weeks on either side differ by a factor of two; then the same within both parts.
    """
    found: list[tuple[int, float, float]] = []
    logs = np.log(count_D + 1.0)
    parts = [(0, len(count_D))]
    while parts:
        start, end = parts.pop()
        size = end - start
        if size < 2 * SHIFT_DAYS:
            continue
        sums = np.cumsum(logs[start:end])
        cut = np.arange(SHIFT_DAYS, size - SHIFT_DAYS + 1)
        gain = sums[cut - 1] ** 2 / cut + (sums[-1] - sums[cut - 1]) ** 2 / (size - cut)
        at = start + int(cut[gain.argmax()])
        before, after = (float(np.median(side)) for side in (count_D[max(start, at - 14) : at], count_D[at : min(end, at + 14)]))
        if max(before, after) + 1 >= SHIFT_RATIO * (min(before, after) + 1):
            found.append((at, before, after))
            parts += [(start, at), (at, end)]
    return sorted(found)


def dead_items(log: Ordered, wrong_N: Bools) -> tuple[Ints, Ints]:
    """Items that fell silent long before the end of the log, and the time of each item's last event [V].

    A dead item had at least twenty events of five users over three days, and has been silent for a week, a quarter of the log
    and twenty of its usual pauses.
    """
    kept_N = log.timed_N & ~wrong_N
    item_N, time_N = log.item_N[kept_N], log.time_N[kept_N]
    first_V = np.full(len(log.count_V), np.iinfo(np.int64).max)
    last_V = np.full(len(log.count_V), -1, dtype=np.int64)
    np.minimum.at(first_V, item_N, time_N)
    np.maximum.at(last_V, item_N, time_N)
    count_V = np.bincount(item_N, minlength=len(log.count_V))
    low, high = np.quantile(time_N, (0.0005, 0.9995))
    silence_V = high - last_V
    pause_V = (last_V - first_V) / np.maximum(count_V - 1, 1)
    dead_V = (last_V - first_V >= DEAD_LIFE) & (silence_V >= DEAD_SILENCE)
    dead_V &= (count_V >= DEAD_EVENTS) & (silence_V >= DEAD_SHARE * (high - low)) & (silence_V >= DEAD_PAUSES * pause_V)
    some_N = dead_V[item_N]
    pair_M = np.unique(item_N[some_N].astype(np.int64) * len(log.user_ids) + log.user_N[kept_N][some_N])
    dead_V &= np.bincount(pair_M // len(log.user_ids), minlength=len(dead_V)) >= DEAD_USERS
    dead = np.flatnonzero(dead_V)
    return dead[np.argsort(-count_V[dead], kind="stable")], last_V


def findings(log: Ordered, wrong_N: Bools) -> list[Finding]:
    """Missing and partial days, level shifts and dead items."""
    if not log.has_clock:
        return []
    first, count_D = days(log, wrong_N)
    found = []
    if len(count_D) and float(np.median(count_D)) >= FEWEST_A_DAY:
        found = _missing(first, count_D) + _shifts(first, count_D)
    return found + _dead(log, wrong_N)


def _date(day: int) -> str:
    return iso_time(day * DAY)[:10]


def _missing(first: int, count_D: Ints) -> list[Finding]:
    usual_D = usual(count_D)
    missing = np.flatnonzero((count_D <= PARTIAL * usual_D) & (usual_D >= FEWEST_A_DAY))
    missing = missing[(missing > 0) & (missing < len(count_D) - 1)]
    if not len(missing):
        return []
    empty = int((count_D[missing] == 0).sum())
    examples = [{"day": _date(first + d), "events": int(count_D[d]), "usual": float(usual_D[d])} for d in missing[:5].tolist()]
    said = (
        f"{len(missing):,} days have less than a tenth of the events of the days around them; {empty:,} have none: part of the "
        "log is missing."
    )
    cure = "Write these days again from the source; nothing here can bring them back. Do not let a split begin in such a hole."
    return [Finding("missing days", "fault", "warn", len(missing), "days", len(count_D), said, cure, None, examples)]


def _shifts(first: int, count_D: Ints) -> list[Finding]:
    shifts = level_shifts(count_D)
    if not shifts:
        return []
    shifts.sort(key=lambda one: -abs(np.log((one[2] + 1) / (one[1] + 1))))
    examples = [{"day": _date(first + day), "events_a_day_before": a, "events_a_day_after": b} for day, a, b in shifts[:5]]
    said = f"The number of events a day changes by a factor of two or more for good on {counted(len(shifts), 'days')}."
    cure = "Ask what changed then (tracking, users, catalogue). Where only what follows counts, an import with --from keeps that."
    return [Finding("level shifts", "fault", "info", len(shifts), "days", len(count_D), said, cure, None, examples)]


def _dead(log: Ordered, wrong_N: Bools) -> list[Finding]:
    if not (log.timed_N & ~wrong_N).any():
        return []
    dead, last_V = dead_items(log, wrong_N)
    if not len(dead):
        return []
    examples = [
        {"item_id": log.item_ids[v], "events": int(log.count_V[v]), "last": iso_time(int(last_V[v]))} for v in dead[:5].tolist()
    ]
    said = (
        f"{len(dead):,} items with at least {DEAD_EVENTS} events of {DEAD_USERS} users have none in the last quarter of the log "
        "or longer, though they used to come often: gone from the catalogue, or renamed."
    )
    cure = "A model may still recommend them. Leave out what cannot be had any more when you recommend."
    return [Finding("dead items", "fault", "info", len(dead), "items", len(log.item_ids), said, cure, None, examples)]
