"""Users who behave as programs do: fast, regular, narrow, sweeping or sleepless. Two of these signs make a suspect.

One sign alone is common among people: a user of MovieLens rates sixty films in five minutes, a listener plays one song all day.
Only moves count, events on another item than the one before: a hotel whose pictures are looked through is one move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from largerec.audit.findings import Finding, by_share, curate_command
from largerec.audit.ordered import DAY, HOUR, MINUTE, Bools, Ordered

FEWEST = 30  # events of a user of whom anything can be said
FAST_EVENTS, FAST_MS = 50, 5 * MINUTE
REGULAR_SHARE, REGULAR_WIDTH = 0.8, 0.05
NARROW = 0.2  # different items an event, at most
SWEEP_SHARE, SWEEP_ITEMS = 0.25, 200
SLEEPLESS_HOURS = 22
SIGNS = {
    "fast": f"{FAST_EVENTS} events within {FAST_MS // MINUTE} minutes",
    "regular": f"{REGULAR_SHARE:.0%} of the pauses within {REGULAR_WIDTH:.0%} of their median",
    "narrow": f"at most {NARROW:g} different items an event",
    "sweeping": f"{SWEEP_SHARE:.0%} of all items, at least {SWEEP_ITEMS}",
    "sleepless": f"events in {SLEEPLESS_HOURS} different hours of one day",
}


@dataclass(frozen=True)
class Signs:
    """Which users show which sign [U each]."""

    of: dict[str, Bools]

    @property
    def suspect_U(self) -> Bools:
        """Users with at least two signs."""
        suspect_U: Bools = np.sum(list(self.of.values()), axis=0) >= 2
        return suspect_U

    def told(self, user: int) -> str:
        """The signs of a user."""
        return ", ".join(name for name, shown_U in self.of.items() if shown_U[user])


def signs(log: Ordered) -> Signs:
    """Look for every sign; users with fewer than 30 events show none. Fast, regular and sleepless need a fine clock."""
    users, whole = len(log.length_U), log
    log = moves(log)
    long_U = log.length_U >= FEWEST
    of: dict[str, Bools] = {name: np.zeros(users, dtype=bool) for name in SIGNS}
    if not long_U.any():
        return Signs(of)
    different_U = _different_items(log, long_U)
    of["narrow"] = long_U & (different_U <= NARROW * log.length_U)
    of["sweeping"] = long_U & (different_U >= max(SWEEP_ITEMS, SWEEP_SHARE * len(log.item_ids)))
    # Where all times of a day are one, people who buy much that day are fast, and those who come daily regular.
    if whole.tells(FAST_MS):
        of["fast"] = long_U & _fast(log)
        of["regular"] = long_U & _regular(log, long_U)
    if whole.tells(HOUR):
        of["sleepless"] = long_U & _sleepless(log)
    return Signs(of)


def moves(log: Ordered) -> Ordered:
    """The log without events on the same item as the user's event before."""
    kept_N = ~log.follows_N
    kept_N[1:] |= log.item_N[1:] != log.item_N[:-1]
    return log if kept_N.all() else log.kept(kept_N)


def _different_items(log: Ordered, long_U: Bools) -> np.ndarray:
    """Different items of the users with enough events [U]."""
    rows = np.flatnonzero(long_U[log.user_N])
    key_M = log.user_N[rows].astype(np.int64) * len(log.item_ids) + log.item_N[rows]
    key_M.sort()
    first_M = np.r_[True, key_M[1:] != key_M[:-1]]
    found_U: np.ndarray = np.bincount(key_M[first_M] // len(log.item_ids), minlength=len(long_U))
    return found_U


def _fast(log: Ordered) -> Bools:
    """Users with so many events in so few minutes [U]."""
    fast_U = np.zeros(len(log.length_U), dtype=bool)
    lag = FAST_EVENTS - 1
    if len(log) > lag:
        quick = (log.user_N[lag:] == log.user_N[:-lag]) & (log.time_N[lag:] - log.time_N[:-lag] <= FAST_MS) & log.timed_N[:-lag]
        fast_U[log.user_N[lag:][quick]] = True
    return fast_U


def _regular(log: Ordered, long_U: Bools) -> Bools:
    """Users whose pauses are all alike [U]; ties in time are no pauses."""
    rows = np.flatnonzero(long_U[log.user_N] & (log.pause_N > 0))
    table = pl.DataFrame({"user": log.user_N[rows], "pause": log.pause_N[rows]})
    near = (pl.col("pause") / pl.col("pause").median() - 1).abs() <= REGULAR_WIDTH
    found = table.group_by("user").agg(share=near.mean(), count=pl.len())
    found = found.filter((pl.col("share") >= REGULAR_SHARE) & (pl.col("count") >= FEWEST - 1))
    regular_U = np.zeros(len(long_U), dtype=bool)
    regular_U[found["user"].to_numpy()] = True
    return regular_U


def _sleepless(log: Ordered) -> Bools:
    """Users with events in nearly every hour of one day [U]."""
    hour_N = np.where(log.timed_N, log.time_N // HOUR, -1)
    day_N = hour_N // (DAY // HOUR)
    new_hour_N, new_day_N = ~log.follows_N, ~log.follows_N
    new_hour_N[1:] |= hour_N[1:] != hour_N[:-1]
    new_day_N[1:] |= day_N[1:] != day_N[:-1]
    hours_D = np.add.reduceat((new_hour_N & log.timed_N).astype(np.int64), np.flatnonzero(new_day_N))  # D days of users
    sleepless_U = np.zeros(len(log.length_U), dtype=bool)
    sleepless_U[log.user_N[new_day_N][hours_D >= SLEEPLESS_HOURS]] = True
    return sleepless_U


def findings(log: Ordered, data: Sequence[str]) -> list[Finding]:
    """Users like bots, and their events."""
    shown = signs(log)
    users = np.flatnonzero(shown.suspect_U)
    if not len(users):
        return []
    events = int(log.length_U[users].sum())
    busiest = users[np.argsort(-log.length_U[users], kind="stable")][:5]
    examples = [
        {"user_id": log.user_ids[int(user)], "events": int(log.length_U[user]), "signs": shown.told(int(user))}
        for user in busiest.tolist()
    ]
    counted = {name: int((shown_U & shown.suspect_U).sum()) for name, shown_U in shown.of.items()}
    return [
        Finding(
            "users like bots",
            "fault",
            by_share(events, len(log), 0.001, 0.02),
            len(users),
            "users",
            len(log.length_U),
            f"{len(users):,} users, who have {events:,} events ({events / len(log):.1%}), show at least two of these signs: "
            + "; ".join(f"{name} ({SIGNS[name]}): {count:,}" for name, count in counted.items() if count)
            + ".",
            "Look at the examples, then leave these users out. What tells them apart in your columns can also go into "
            "data.where of an import.",
            curate_command(data, "bots"),
            examples,
            {"events": events, "signs": counted},
        )
    ]
