"""The log as every detector reads it: numbers instead of ids, grouped by user, each user in time order.

Letters: N events, U users, V items. Arrays over events stand in that order; ``row_N`` leads back to the rows of the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from largerec.columns import UNTIMED, iso_time
from largerec.events import EventLog, TimeKind
from largerec.faults import LABEL
from largerec.sequences import numbered, stable_order

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
SESSION_MS = 30 * MINUTE  # a longer pause begins a new session
RESOLUTIONS = (("day", DAY), ("hour", HOUR), ("minute", MINUTE), ("second", SECOND))
EXAMPLES = 5

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Ordered:
    """A log grouped by user, in time order (ties keep the order of the rows); labels of faults are not in it.

    Attributes:
        events: the rows of the log as they stood.
        user_N, item_N: numbers of user and item. time_N: ms UTC or a rank, -1 where there is none. row_N: row in ``events``.
        offsets_U1: rows of user u are ``offsets_U1[u]:offsets_U1[u + 1]``. user_ids, item_ids: the ids of the numbers.
        items: the item table or None. time_kind: what the times mean. source: where the log came from.
    """

    events: pl.DataFrame
    user_N: Codes
    item_N: Codes
    time_N: Ints
    row_N: Ints
    offsets_U1: Ints
    user_ids: pl.Series
    item_ids: pl.Series
    items: pl.DataFrame | None
    time_kind: TimeKind
    source: str

    @classmethod
    def of(cls, log: EventLog) -> Ordered:
        """Number and order a log. Users and items are numbered by first appearance in time, so ids play no part."""
        events = log.events.drop(LABEL, strict=False)
        time = events["timestamp"]
        by_time = None if time.is_sorted() else np.argsort(time.to_numpy(), kind="stable")
        user, item = events["user_id"], events["item_id"]
        if by_time is not None:
            user, item = user.gather(by_time), item.gather(by_time)
        user_code, user_ids = numbered(user)
        order = stable_order(user_code)
        user_N = user_code.astype(np.int32)[order]
        item_code, item_ids = numbered(item)
        item_N = item_code.astype(np.int32)[order]
        row_N = order if by_time is None else by_time[order]
        offsets_U1 = np.concatenate([[0], np.cumsum(np.bincount(user_code, minlength=len(user_ids)))])
        time_N = time.to_numpy()[row_N]
        return cls(events, user_N, item_N, time_N, row_N, offsets_U1, user_ids, item_ids, log.items, log.time_kind, log.source)

    def __len__(self) -> int:
        return len(self.user_N)

    @property
    def has_clock(self) -> bool:
        """Whether some event has a time of a clock."""
        return self.time_kind == "timestamp" and bool(self.timed_N.any())

    @cached_property
    def timed_N(self) -> Bools:
        """Whether an event has a time (a rank is one)."""
        timed_N: Bools = self.time_N != UNTIMED
        return timed_N

    @cached_property
    def resolution(self) -> str | None:
        """The coarsest unit of which (nearly) all times are whole multiples; None for milliseconds or where there is no clock."""
        if not self.has_clock:
            return None
        time_N = self.time_N[self.timed_N]
        return next((name for name, size in RESOLUTIONS if float((time_N % size == 0).mean()) >= 0.999), None)

    def tells(self, span: int) -> bool:
        """Whether a rule of ``span`` ms means anything: there is a clock, and its times are not all whole units above that."""
        return self.has_clock and dict(RESOLUTIONS).get(self.resolution or "", 0) <= span

    @cached_property
    def file_R(self) -> Ints:
        """Places in these arrays of the timed events, in the order of the rows of the log [R]."""
        at = np.full(self.events.height, -1, dtype=np.int64)
        at[self.row_N] = np.arange(len(self))
        at = at[at >= 0]
        return at[self.timed_N[at]]

    @cached_property
    def body(self) -> tuple[int, int]:
        """Times between which the middle 98 % of the timed events lie."""
        low, high = np.quantile(self.time_N[self.timed_N], (0.01, 0.99))
        return int(low), int(high)

    @cached_property
    def follows_N(self) -> Bools:
        """Whether the event before it is of the same user."""
        follows_N = np.ones(len(self), dtype=bool)
        follows_N[self.offsets_U1[:-1][self.length_U > 0]] = False
        return follows_N

    @cached_property
    def pause_N(self) -> Ints:
        """Time since the user's event before [N]; -1 where there is none or one of the two has no time."""
        pause_N = np.full(len(self), -1, dtype=np.int64)
        pause_N[1:] = np.where(self.follows_N[1:] & self.timed_N[:-1] & self.timed_N[1:], np.diff(self.time_N), -1)
        return pause_N

    @cached_property
    def length_U(self) -> Ints:
        """Events of each user [U]."""
        return np.diff(self.offsets_U1)

    @cached_property
    def count_V(self) -> Ints:
        """Events of each item [V]."""
        return np.bincount(self.item_N, minlength=len(self.item_ids))

    @cached_property
    def behaviour_N(self) -> Codes | None:
        """Numbers of the behaviours in the order of events; None where the log names none."""
        if "behavior" not in self.events.columns:
            return None
        code, _ = numbered(self.events["behavior"], self.events["behavior"].unique().sort())
        behaviour_N: Codes = code.astype(np.int32)[self.row_N]
        return behaviour_N

    def sessions(self, gap: int = SESSION_MS) -> Ints:
        """Number of the session of each event [N]: a user's events with no pause longer than ``gap`` ms; all without a clock."""
        new_N = ~self.follows_N | (self.pause_N > gap) if self.time_kind == "timestamp" else ~self.follows_N
        return np.cumsum(new_N) - 1

    def some_users(self, most: int, seed: int = 0) -> Ordered:
        """The log of a random sample of whole users with about ``most`` events at most, or all of it where it is no longer."""
        if len(self) <= most:
            return self
        drawn = np.random.default_rng(seed).permutation(len(self.length_U))
        users = np.sort(drawn[: max(1, int(np.searchsorted(np.cumsum(self.length_U[drawn]), most, side="right")))])
        kept_U = np.zeros(len(self.length_U), dtype=bool)
        kept_U[users] = True
        return self.kept(kept_U[self.user_N])

    def kept(self, kept_N: Bools) -> Ordered:
        """The log of some events; users keep their numbers, and may have none left."""
        counts = np.bincount(self.user_N[kept_N], minlength=len(self.user_ids))
        offsets_U1 = np.concatenate([[0], np.cumsum(counts)])
        return replace(
            self,
            user_N=self.user_N[kept_N],
            item_N=self.item_N[kept_N],
            time_N=self.time_N[kept_N],
            row_N=self.row_N[kept_N],
            offsets_U1=offsets_U1,
        )

    def examples(self, at: Sequence[int] | Ints, most: int = EXAMPLES) -> list[dict[str, Any]]:
        """The first of some events as plain values: row (1 is the first), user, item and time."""
        found = []
        for n in sorted(self.row_N[np.asarray(at, dtype=np.int64)].tolist())[:most]:
            event = self.events.row(n, named=True)
            example = {"row": n + 1, "user_id": event["user_id"], "item_id": event["item_id"]}
            when = event["timestamp"]
            if self.time_kind == "order":
                example["rank"] = when
            elif when != UNTIMED:
                example["time"] = iso_time(when)
            found.append(example)
        return found
