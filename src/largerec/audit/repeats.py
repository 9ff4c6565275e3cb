"""Events that come again: exact and near duplicates, and ties in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from largerec.audit.findings import Finding, by_share, counted, curate_command
from largerec.audit.ordered import SECOND, Bools, Ordered

SCHEMA = 5  # columns that a log may have before there are further ones that tell rows apart
NEAR_MS = 10 * SECOND
NEAR_LAGS = 3  # events back that a near duplicate is looked for


def tied(log: Ordered) -> Bools:
    """Events at the time of another of the same user [N]."""
    tied_N = np.zeros(len(log), dtype=bool)
    tied_N[1:] = log.follows_N[1:] & (log.time_N[1:] == log.time_N[:-1]) & log.timed_N[1:]
    tied_N[:-1] |= tied_N[1:]
    return tied_N


def exact(log: Ordered, *, behaviours: bool = True) -> Bools:
    """Events that repeat an earlier row of the log in user, item, time and, where asked for, behaviour [N].

    These are the events that ``largerec data import --dedupe`` drops. Events without a time are never repeats.
    """
    rows = np.flatnonzero(tied(log))
    columns = {"user": log.user_N[rows], "item": log.item_N[rows], "time": log.time_N[rows]}
    if behaviours and log.behaviour_N is not None:
        columns["behaviour"] = log.behaviour_N[rows]
    again_N = np.zeros(len(log), dtype=bool)
    again_N[rows] = ~pl.DataFrame(columns).select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return again_N


def identical(log: Ordered) -> int:
    """How many rows repeat an earlier row in every column."""
    rows = np.flatnonzero(tied(log))
    table = log.events[log.row_N[rows]]
    nested = [name for name, dtype in table.schema.items() if dtype.is_nested()]
    flat = table.with_columns(
        pl.Series(name, [repr(value) for value in table[name].to_list()], dtype=pl.String) for name in nested
    )
    return flat.height - flat.n_unique()


def near(log: Ordered) -> Bools:
    """Events on the same item as one of the user's three events before, with the same behaviour, within ten seconds [N]."""
    near_N = np.zeros(len(log), dtype=bool)
    if not log.has_clock:
        return near_N
    for lag in range(1, NEAR_LAGS + 1):
        later, earlier = slice(lag, None), slice(None, -lag)
        if lag >= len(log):
            break
        pause = log.time_N[later] - log.time_N[earlier]
        same = (log.user_N[later] == log.user_N[earlier]) & (log.item_N[later] == log.item_N[earlier])
        same &= (pause > 0) & (pause <= NEAR_MS) & log.timed_N[earlier]
        if log.behaviour_N is not None:
            same &= log.behaviour_N[later] == log.behaviour_N[earlier]
        near_N[later] |= same
    return near_N


def findings(log: Ordered, data: Sequence[str]) -> list[Finding]:
    """Duplicates, near duplicates and ties."""
    found = []
    again_N, again_in_any_behaviour_N = exact(log), exact(log, behaviours=False)
    if count := int(again_in_any_behaviour_N.sum()):
        dropped, same = int(again_N.sum()), identical(log)
        severity = by_share(same if log.events.width > SCHEMA else dropped, len(log), 0.0005, 0.05)
        severity = "warn" if severity == "info" and dropped >= 0.05 * len(log) else severity
        but = f" ({dropped:,} of them in the behaviour too)" if dropped < count else ""
        found.append(
            Finding(
                "exact duplicates",
                "fault",
                severity,
                count,
                "events",
                len(log),
                f"{counted(count, 'rows')} repeat an earlier row in user, item and time{but}; "
                f"identical in every column: {same:,}.",
                "An import keeps the first of each."
                if dropped
                else "Several behaviours at one time are no fault; nothing to do.",
                None,
                log.examples(np.flatnonzero(again_in_any_behaviour_N)),
                {"with_the_same_behaviour": dropped, "identical_in_every_column": same},
                ("--dedupe",) if dropped else (),
            )
        )
    near_N = near(log) & ~again_N
    if count := int(near_N.sum()):
        found.append(
            Finding(
                "near duplicates",
                "fault",
                by_share(count, len(log), 0.005, 0.1),
                count,
                "events",
                len(log),
                f"{counted(count, 'events')} are on an item that the user had at most {NEAR_MS // SECOND} seconds before, with "
                "the same behaviour: double clicks, reloads or retries.",
                "A model learns to repeat the last item.",
                curate_command(data, "duplicates:match=near"),
                log.examples(np.flatnonzero(near_N)),
            )
        )
    return found + _ties(log)


def _ties(log: Ordered) -> list[Finding]:
    tied_N = tied(log)
    count, coarse = int(tied_N.sum()), log.resolution
    if not count:
        return []
    unit = f" Times are whole {coarse}s." if coarse else ""
    return [
        Finding(
            "time ties",
            "fault",
            by_share(count, len(log), 0.1, 1.1),
            count,
            "events",
            len(log),
            f"{count:,} events have the time of another of the same user, so that only the order of the rows says which came "
            f"first.{unit}",
            "Keep the rows in the order in which they happened; nothing else can mend it.",
            None,
            log.examples(np.flatnonzero(tied_N)),
            {"resolution": coarse},
        )
    ]
