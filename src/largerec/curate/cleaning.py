"""Steps that take faults out of the training rows: repeats, wrong clocks, bots, bursts, mis-clicks; and cutting into sessions.

Each is told by the detector of that name in ``audit``, on the training rows alone.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from largerec.audit import bots, bursts, clocks, misclicks, repeats
from largerec.audit.coarse import coarse
from largerec.audit.ordered import HOUR, MINUTE, SECOND, SESSION_MS, Ordered
from largerec.columns import UNTIMED, next_ids
from largerec.curate.rows import Bools, Change, Ints, Training
from largerec.errors import LargeRecError
from largerec.options import Options


class DuplicatesStep(Options):
    """Remove events that come again; the first stays.

    ``match``: ``exact`` is the same user, item, time and behaviour; ``near`` the same user, item and behaviour within ten seconds
    of the one before; ``window`` the same within ``hours``. In a run of repeats each is compared with the one before it.
    """

    name: Literal["duplicates"] = "duplicates"
    match: Literal["exact", "near", "window"] = "exact"
    hours: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _a_window_has_a_width(self) -> DuplicatesStep:
        if (self.match == "window") != (self.hours is not None):
            raise LargeRecError(
                f"duplicates: match={self.match!r} with hours={self.hours}; hours is the width of a window, so give both "
                'match = "window" and hours, or neither.'
            )
        return self

    def change(self, training: Training) -> Change:
        """Removes the repeats.

        Raises:
            LargeRecError: a width of time was asked for, and the log has no clock.
        """
        log = training.ordered
        again_N = repeats.exact(log)
        if self.match != "exact":
            if not log.has_clock:
                raise LargeRecError(
                    f"{log.source}: duplicates with match={self.match!r} compares times, but this log has an order and no clock. "
                    'Use match = "exact", or name a time column with data.columns.time.'
                )
            width = repeats.NEAR_MS if self.hours is None else int(self.hours * HOUR)
            again_N |= _again_within(log, width)
        said = {"exact": "repeats an earlier row", "near": "repeats an event of moments before"}
        why = said.get(self.match, f"repeats an event of the {self.hours:g} hours before" if self.hours else "")
        return Change(why=((why, training.of_rows(again_N)),))


def _again_within(log: Ordered, width: int) -> Bools:
    """Timed events whose user had the same item with the same behaviour at most ``width`` before [N]."""
    columns = {"user": log.user_N, "item": log.item_N, "time": log.time_N}
    if log.behaviour_N is not None:
        columns["behaviour"] = log.behaviour_N
    key = [name for name in columns if name != "time"]
    timed = pl.DataFrame(columns).with_row_index("at").filter(pl.Series(log.timed_N))
    gap = timed.with_columns(gap=pl.col("time").diff().over(key))
    again_N = np.zeros(len(log), dtype=bool)
    again_N[gap.filter(pl.col("gap") <= width)["at"].to_numpy()] = True
    return again_N


class ClocksStep(Options):
    """Mend or remove times that cannot be right.

    ``kinds``: ``unit`` (seconds among milliseconds), ``impossible`` (the clock's zero, the future), ``order`` (out of place in a
    sorted file), ``shift`` (a fragment that fits a session of the user hours or days away). ``action``: ``repair`` multiplies or
    shifts the first and the last kind, and gives the others the time of the sound row before them in a sorted file; what cannot
    be repaired, or would then lie in the period that is evaluated, is removed. ``remove`` removes them all.
    """

    name: Literal["clocks"] = "clocks"
    action: Literal["repair", "remove"] = "repair"
    kinds: tuple[Literal["unit", "impossible", "order", "shift"], ...] = ("unit", "impossible", "order", "shift")

    def change(self, training: Training) -> Change:
        """Mends or removes the times."""
        log = training.ordered
        if not log.has_clock:
            return Change(facts={"note": "the log has an order and no clock: there is no time to mend"})
        wrong = clocks.WrongTimes.of(log)
        masks = {
            "unit": wrong.other_unit_N,
            "impossible": wrong.impossible_N,
            "order": wrong.out_of_order_N,
            "shift": wrong.misplaced_N,
        }
        masks = {kind: mask_N if kind in self.kinds else np.zeros(len(log), dtype=bool) for kind, mask_N in masks.items()}
        any_N = np.logical_or.reduce(list(masks.values()))
        facts = {"found": {kind: int(mask_N.sum()) for kind, mask_N in masks.items()}, **_coarse(log)}
        if self.action == "remove":
            return Change(why=(("its time cannot be right", training.of_rows(any_N)),), facts=facts)
        time_N = log.time_N.copy()
        time_N[masks["unit"]] *= 1000
        time_N -= np.where(masks["shift"], wrong.hours_N, 0) * HOUR
        lost_N = masks["impossible"] | masks["order"]
        time_N[lost_N] = _neighbours_time(log, wrong.any_N)[lost_N]
        unknown_R = training.of_rows(any_N & (time_N == UNTIMED))
        late_R = training.of_rows(any_N & (time_N > log.time_N)) & (training.of_rows(time_N) > training.until_R)
        gone_R = unknown_R | late_R
        time_R = np.where(gone_R, training.log.events["timestamp"].to_numpy(), training.of_rows(time_N))
        return Change(
            why=(
                ("its time cannot be right, and nothing says the right one", unknown_R),
                ("its right time lies in the period that is evaluated", late_R),
            ),
            columns={"timestamp": pl.Series("timestamp", time_R, dtype=pl.Int64)},
            facts=facts,
        )


def _coarse(log: Ordered) -> dict[str, str]:
    """The note of a log whose times are too coarse for some rules."""
    return {} if (note := coarse(log)) is None else {"note": note}


def _neighbours_time(log: Ordered, wrong_N: Bools) -> Ints:
    """The time of the sound row before each in a sorted file (of the same user where it is sorted by users), or else of the row
    after it; -1 where there is none, or the file is in no order [N]."""
    found_N = np.full(len(log), UNTIMED, dtype=np.int64)
    by = clocks.sorted_by(log)
    if by is None:
        return found_N
    at = np.argsort(log.row_N, kind="stable")  # the rows in the order of the file
    sound = log.timed_N[at] & ~wrong_N[at]
    table = pl.DataFrame({"user": log.user_N[at], "time": pl.Series(log.time_N[at]).set(pl.Series(~sound), None)})
    before, after = pl.col("time").forward_fill(), pl.col("time").backward_fill()
    if by == "user and time":
        before, after = before.over("user"), after.over("user")
    found_N[at] = table.select(pl.coalesce(before, after).fill_null(UNTIMED)).to_series().to_numpy()
    return found_N


class BotsStep(Options):
    """Remove users who behave as programs do: at least ``signs`` of fast, regular, narrow, sweeping, sleepless."""

    name: Literal["bots"] = "bots"
    signs: int = Field(2, ge=1, le=len(bots.SIGNS))

    def change(self, training: Training) -> Change:
        """Removes all rows of such users."""
        shown = bots.signs(training.ordered)
        bot_U = np.sum(list(shown.of.values()), axis=0) >= self.signs
        users = np.flatnonzero(bot_U)
        told = {int(user): shown.told(int(user)) for user in users}
        why = tuple(
            (f"its user behaves as a program: {said}", training.of_rows(np.isin(training.ordered.user_N, own)))
            for said in sorted(set(told.values()))
            if (own := [user for user in users if told[int(user)] == said])
        )
        return Change(why=why, facts={"users": len(users), **_coarse(training.ordered)})


class BurstsStep(Options):
    """Remove the events of an item in an hour in which few users pushed it; with ``surges`` also those from many users."""

    name: Literal["bursts"] = "bursts"
    surges: bool = False

    def change(self, training: Training) -> Change:
        """Removes the events of such hours."""
        log = training.ordered
        if not log.has_clock:
            return Change(facts={"note": "the log has an order and no clock: there are no hours with a burst"})
        if not log.tells(HOUR):
            return Change(facts=_coarse(log))
        found = bursts.bursts(log)
        table = pl.DataFrame({"item": log.item_N, "hour": np.where(log.timed_N, log.time_N // HOUR * HOUR, -1)})
        why, facts = [], {}
        for said, push in (("its item was pushed by few users in that hour", True), ("its item surged in that hour", False)):
            some = found.filter(pl.col("push") == push)
            facts["pushes" if push else "surges"] = some.height
            if push or self.surges:
                hit = table.join(some.select("item", "hour", hit=True), on=["item", "hour"], how="left", maintain_order="left")[
                    "hit"
                ]
                why.append((said, training.of_rows(hit.fill_null(False).to_numpy())))
        return Change(why=tuple(why), facts=facts)


class MisclicksStep(Options):
    """Take out events that look like mis-clicks: a score of at least ``score``, left within ten seconds.

    ``action``: ``remove`` them, or leave them as ``history`` that is not learned from.
    """

    name: Literal["misclicks"] = "misclicks"
    score: float = misclicks.SUSPECT
    action: Literal["remove", "history"] = "remove"

    def change(self, training: Training) -> Change:
        """Removes the suspects, or weighs them 0."""
        log = training.ordered
        if not log.has_clock:
            return Change(facts={"note": "the log has an order and no clock: haste cannot be told"})
        if not log.tells(misclicks.MOMENT_MS):
            return Change(facts=_coarse(log))
        left_N = np.full(len(log), -1, dtype=np.int64)
        left_N[:-1] = log.pause_N[1:]
        suspect_N = (misclicks.scores(log) >= self.score) & (left_N >= 0) & (left_N <= misclicks.MOMENT_MS)
        suspect_R = training.of_rows(suspect_N)
        if self.action == "history":
            return Change(factor_R=np.where(suspect_R, 0.0, 1.0))
        return Change(why=((f"left within {misclicks.MOMENT_MS // SECOND} seconds, and fits neither neighbour", suspect_R),))


class SessionsStep(Options):
    """Cut each user's training events at pauses longer than ``minutes``: every session but the last becomes a user of its own.

    The last session keeps the user's id, so that a target of the evaluation still has a history. New ids are ``<id>~<n>``, or
    the next integers.
    """

    name: Literal["sessions"] = "sessions"
    minutes: float = Field(SESSION_MS / MINUTE, gt=0)

    def change(self, training: Training) -> Change:
        """Gives new user ids to the events of earlier sessions."""
        log = training.ordered
        if not log.has_clock:
            return Change(facts={"note": "the log has an order and no clock: there are no pauses to cut at"})
        session_N = log.sessions(int(self.minutes * MINUTE))
        last_N = session_N[log.offsets_U1[1:] - 1][log.user_N]
        earlier_N = session_N != last_N
        numbers, own = np.unique(session_N[earlier_N], return_inverse=True)
        facts = {"sessions": int(session_N[-1]) + 1, "new_users": len(numbers)}
        if not len(numbers):
            return Change(facts=facts)
        ids = _new_ids(log, training.user_ids, numbers, session_N)
        user_id = training.log.events["user_id"].clone().scatter(log.row_N[earlier_N], ids.gather(own))
        return Change(columns={"user_id": user_id}, facts=facts)


def _new_ids(log: Ordered, known: pl.Series, numbers: Ints, session_N: Ints) -> pl.Series:
    """An id that no user has for each of these sessions, of the type of the ids; ``known`` are all ids that there are."""
    if known.dtype.is_integer():
        return next_ids(known, len(numbers))
    taken, made = set(known.to_list()), []
    first = np.searchsorted(session_N, numbers)  # sessions are numbered in order
    for start in first.tolist():
        user = log.user_N[start]
        turn = int(session_N[start] - session_N[log.offsets_U1[user]]) + 1
        name = f"{log.user_ids[int(user)]}~{turn}"
        while name in taken:
            name += "~"
        taken.add(name)
        made.append(name)
    return pl.Series(made, dtype=pl.String)
