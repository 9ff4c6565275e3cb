"""Times that cannot be right: no clock ever said them, or they are out of place among their neighbours.

Three kinds of evidence, each for logs where the others have none: the size of the number, the order of the rows, and the user's
own sessions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import poisson

from largerec.audit.findings import Finding, by_share, counted, curate_command
from largerec.audit.ordered import DAY, HOUR, MINUTE, Bools, Ints, Ordered
from largerec.columns import iso_time

YEAR = 365 * DAY
SORTED_BELOW = 0.2  # share of rows that go back in time, of a file that is sorted all the same
REACH = 16  # rows on either side that a row is compared with
GROUPED = 1.05  # blocks of rows a user, at most, of a file that is grouped by user
MOST_JUMPS = 0.005  # of the rows, at which a file that is sorted by time may jump back
JITTER = MINUTE  # rows may be written so much out of order without a fault
VOTES = (8, 4, 2)
FRAGMENT_GAP = 20 * MINUTE  # a pause that ends a fragment
FRAGMENT_EDGE = 2 * MINUTE
FRAGMENT_MOST = 50  # events
FRAGMENT_RATIO = 5  # a host session is so many times longer
SHIFT_HOURS = tuple(sign * n for sign in (1, -1) for n in (*range(1, 15), 24, 48, 168, 720, 744, 8760, 8784))
# Shifts beside a whole hour, which no clock error makes. Nearer beside one hour: within 20 minutes of a session stands none.
CONTROLS_MS = (-83 * MINUTE, -37 * MINUTE, 37 * MINUTE, 83 * MINUTE)
CONTROLS_OF_AN_HOUR_MS = (-20 * MINUTE, 20 * MINUTE)
SHIFT_EXCESS = 2.0  # a shift is believed where it explains so many times the fragments that the shifts beside it do,
SHIFT_CHANCE = 0.01 / len(SHIFT_HOURS)  # and chance would make that of people no oftener than this (Bonferroni, all shifts)
SHIFT_SAMPLE = 300_000
STRAYS_FEWEST = 1000  # events, below which nothing is said of strays


def impossible(log: Ordered, now: int | None = None) -> Bools:
    """Times near the clock's zero in a log of later years, and times that are still to come [N].

    Args:
        now: the present in ms; the machine's clock where it is not given.
    """
    if not log.has_clock:
        return np.zeros(len(log), dtype=bool)
    low, _ = log.body
    future_N = log.time_N > (time.time() * 1000 if now is None else now) + DAY
    return future_N | (log.timed_N & (log.time_N < YEAR) & (low > 2 * YEAR))


def other_unit(log: Ordered) -> Bools:
    """Times that lie within the body of the log once they are multiplied by 1000: seconds among milliseconds [N]."""
    if not log.has_clock:
        return np.zeros(len(log), dtype=bool)
    low, high = log.body
    return (
        log.timed_N
        & (log.time_N > 0)
        & (log.time_N < YEAR)
        & (log.time_N * 1000 >= low - YEAR)
        & (log.time_N * 1000 <= high + YEAR)
    )


def sorted_by(log: Ordered) -> str | None:
    """What the rows of the log are sorted by: "user and time", "time", or None. Some rows may be out of place."""
    if not log.has_clock or len(log.file_R) < 3:
        return None
    user_R = log.user_N[log.file_R]
    back_R = np.diff(log.time_N[log.file_R]) < -JITTER
    same_R = user_R[1:] == user_R[:-1]
    if same_R.any() and int((~same_R).sum()) + 1 <= GROUPED * len(log.length_U):
        return "user and time" if back_R[same_R].mean() < SORTED_BELOW else None
    return "time" if back_R.mean() < SORTED_BELOW else None


def out_of_order(log: Ordered, known_N: Bools) -> tuple[Bools, Ints]:
    """Rows whose time does not fit the rows around them, in a file that is sorted by time or by user and time [N].

    A row votes against a neighbour that stands on the wrong side of it by more than a minute. A row with many votes against it
    goes, then the others are counted anew with a lower bar. Where most rows of a neighbourhood would go, the file makes a jump
    there (parts set one behind another), and none goes. A file with many jumps is in no order, and nothing is said of its rows.

    Args:
        known_N: events that are known to be wrong already, which have no vote.

    Returns:
        The events, and the places of those before which a file sorted by time jumps back.
    """
    wrong_N, nowhere = np.zeros(len(log), dtype=bool), np.zeros(0, dtype=np.int64)
    by = sorted_by(log)
    if by is None:
        return wrong_N, nowhere
    at = log.file_R[~known_N[log.file_R]]
    for votes in VOTES:
        user_R = log.user_N[at] if by == "user and time" else None
        out_R = _votes(log.time_N[at], user_R) >= votes
        if out_R.any():
            total_R1 = np.concatenate([[0], np.cumsum(out_R)])
            place = np.flatnonzero(out_R)
            low, high = np.maximum(place - REACH // 2, 0), np.minimum(place + REACH // 2 + 1, len(at))
            out_R[place[total_R1[high] - total_R1[low] > REACH // 2]] = False
            wrong_N[at[out_R]] = True
            at = at[~out_R]
    back_R = np.diff(log.time_N[at]) < -JITTER
    if by == "user and time":
        back_R &= log.user_N[at][1:] == log.user_N[at][:-1]
    if not len(back_R) or back_R.mean() > MOST_JUMPS:
        return np.zeros(len(log), dtype=bool), nowhere
    return wrong_N, at[1:][back_R] if by == "time" else nowhere


def _votes(time_R: Ints, user_R: np.ndarray | None) -> np.ndarray:
    """Neighbours on one side that a row contradicts: the larger number of both sides [R]."""
    before_R, after_R = (np.zeros(len(time_R), dtype=np.int8) for _ in range(2))
    for lag in range(1, min(REACH, len(time_R) - 1) + 1):
        wrong = time_R[lag:] < time_R[:-lag] - JITTER
        if user_R is not None:
            wrong &= user_R[lag:] == user_R[:-lag]
        before_R[lag:] += wrong
        after_R[:-lag] += wrong
    return np.maximum(before_R, after_R)


def misplaced(log: Ordered, known_N: Bools) -> tuple[Ints, dict[int, int]]:
    """By how many hours the clock of each event was probably wrong (0: not) [N], and events by shift in hours.

    Such events are fragments of a session that stand a whole number of hours, days or years beside it.

    A fragment is a few events of a user with no other of his within 20 minutes. Where it falls into a session of his that is at
    least five times as long once its times are shifted by what clocks are wrong by (time zones, a day, a week, a month, a year),
    its clock may have been wrong. People come back too, after an hour or at the same hour, so a shift is believed only where it
    explains twice as many fragments as shifts beside it do that no clock error makes, and more than chance would (see
    ``_believed``).
    """
    hours_N, by_shift = np.zeros(len(log), dtype=np.int64), dict[int, int]()
    if not log.tells(FRAGMENT_GAP):
        return hours_N, by_shift
    at = np.flatnonzero(log.timed_N & ~known_N)
    fragments = _Fragments(log.user_N[at].astype(np.int64), log.time_N[at])
    sample, rest = fragments.candidates(SHIFT_SAMPLE)
    for hours in [hours for hours in SHIFT_HOURS if _believed(fragments, sample, hours)]:
        for part in (sample, rest):
            fitting = at[part[fragments.fit(part, hours * HOUR)]]
            fitting = fitting[hours_N[fitting] == 0]
            hours_N[fitting] = hours
            by_shift[hours] = by_shift.get(hours, 0) + len(fitting)
    return hours_N, by_shift


def _believed(fragments: _Fragments, sample: Ints, hours: int) -> bool:
    """Whether a shift explains more fragments than the shifts beside it do, beyond what chance makes of so many tried.

    Fragments of one user come of one habit, and are no independent witnesses: counts are divided by the design effect of users
    as clusters, sum of squares over sum (Kish, 1965), before they are compared with a Poisson law. What is expected is the mean
    of the shifts beside, and one more.
    """
    count_U = fragments.fitting(sample, hours * HOUR)
    count = int(count_U.sum())
    if not count:
        return False
    effect = float((count_U**2).sum()) / count
    if poisson.sf(count / effect - 1, 1) > SHIFT_CHANCE:  # not even beside nothing
        return False
    steps = CONTROLS_OF_AN_HOUR_MS if abs(hours) == 1 else CONTROLS_MS
    beside = float(np.mean([fragments.fitting(sample, hours * HOUR + step).sum() for step in steps]))
    chance = float(poisson.sf(count / effect - 1, beside / effect + 1))
    return count >= SHIFT_EXCESS * beside and chance <= SHIFT_CHANCE


class _Fragments:
    """Events grouped by user in time order, cut at pauses; which small pieces fit into which large ones."""

    def __init__(self, user_M: Ints, time_M: Ints) -> None:
        first_M = np.ones(len(user_M), dtype=bool)
        first_M[1:] = (user_M[1:] != user_M[:-1]) | (np.diff(time_M) > FRAGMENT_GAP)
        self.piece_M = np.cumsum(first_M) - 1
        self.size_M = np.bincount(self.piece_M)[self.piece_M]
        self.user_M = user_M
        # One rising number for user and time, so that one search finds a moment of a user; from the first moment on, since
        # milliseconds since 1970 times some millions of users are too many for 64 bits.
        time_M = time_M - (time_M.min() if len(time_M) else 0)
        self.step = int(time_M.max(initial=0)) + 2 * max(SHIFT_HOURS) * HOUR
        self.key_M = user_M * self.step + time_M

    def candidates(self, most: int) -> tuple[Ints, Ints]:
        """Events of fragments whose user has a session that is long enough: a part of all users with about ``most``, the rest."""
        longest_U = np.zeros(int(self.user_M.max(initial=0)) + 1, dtype=np.int64)
        np.maximum.at(longest_U, self.user_M, self.size_M)
        rows = np.flatnonzero((self.size_M <= FRAGMENT_MOST) & (FRAGMENT_RATIO * self.size_M <= longest_U[self.user_M]))
        every = -(-len(rows) // most) if len(rows) else 1
        drawn = (self.user_M[rows] * 2_654_435_761 >> 12) % every == 0  # users spread by a fixed multiplier, not in order
        return rows[drawn], rows[~drawn]

    def fitting(self, rows: Ints, shift: int) -> Ints:
        """Fragments of each user that fit when ``shift`` is taken off [users with one]."""
        fitting = rows[self.fit(rows, shift)]
        first = np.flatnonzero(np.diff(self.piece_M[fitting], prepend=-1))
        return np.unique(self.user_M[fitting[first]], return_counts=True)[1]

    def fit(self, rows: Ints, shift: int) -> Bools:
        """Which of the events lie within a host session when ``shift`` is taken off, with all of their fragment."""
        key_R = self.key_M[rows] - shift
        after = np.searchsorted(self.key_M, key_R)
        before, after = np.maximum(after - 1, 0), np.minimum(after, len(self.key_M) - 1)
        sides = [
            (self.user_M[n] == self.user_M[rows]) & (self.size_M[n] >= FRAGMENT_RATIO * self.size_M[rows])
            for n in (before, after)
        ]
        fit_R = sides[0] & (self.piece_M[before] == self.piece_M[after])
        fit_R |= sides[0] & (key_R - self.key_M[before] <= FRAGMENT_EDGE)
        fit_R |= sides[1] & (self.key_M[after] - key_R <= FRAGMENT_EDGE)
        if not len(rows):
            return np.zeros(0, dtype=bool)
        starts = np.flatnonzero(np.diff(self.piece_M[rows], prepend=-1))  # all events of a fragment are among the rows
        whole: Bools = np.repeat(np.logical_and.reduceat(fit_R, starts), np.diff(starts, append=len(rows)))
        return whole


@dataclass(frozen=True)
class WrongTimes:
    """Events whose time is probably wrong, by kind of evidence; none is in two kinds [N each].

    ``hours_N`` is by how many hours the clock of a misplaced event was wrong, 0 for the others; ``by_shift`` counts them.
    ``jump_R`` are the events before which a file that is sorted by time jumps back.
    """

    other_unit_N: Bools
    impossible_N: Bools
    out_of_order_N: Bools
    hours_N: Ints
    jump_R: Ints
    by_shift: dict[int, int]

    @property
    def misplaced_N(self) -> Bools:
        misplaced_N: Bools = self.hours_N != 0
        return misplaced_N

    @property
    def any_N(self) -> Bools:
        return self.other_unit_N | self.impossible_N | self.out_of_order_N | self.misplaced_N

    @classmethod
    def of(cls, log: Ordered, now: int | None = None) -> WrongTimes:
        """Look for every kind; ``now`` is the present in ms, the machine's clock where it is not given."""
        other_unit_N = other_unit(log)
        impossible_N = impossible(log, now) & ~other_unit_N
        out_of_order_N, jump_R = out_of_order(log, other_unit_N | impossible_N)
        hours_N, by_shift = misplaced(log, other_unit_N | impossible_N | out_of_order_N)
        return cls(other_unit_N, impossible_N, out_of_order_N, hours_N, jump_R, by_shift)


def findings(log: Ordered, wrong: WrongTimes, data: Sequence[str]) -> list[Finding]:
    """Impossible times, mixed units, times out of order, clock jumps, jumps of the file and strays."""
    if not log.has_clock:
        return []
    found = _by_size(log, wrong, data)
    if count := int(wrong.out_of_order_N.sum()):
        said = (
            f"The file is sorted by {sorted_by(log)}, but the times of {counted(count, 'events')} do not fit the rows around "
            "them: their clocks were wrong."
        )
        cure = "They take the time of a neighbour, or are left out (action=remove)."
        mend = curate_command(data, "clocks")
        found.append(_finding(log, "times out of order", wrong.out_of_order_N, (0.001, 0.01), said, cure, mend))
    if count := int(wrong.misplaced_N.sum()):
        shifts = sorted(wrong.by_shift.items(), key=lambda pair: -pair[1])
        told = ", ".join(f"{hours:+d} h: {n:,}" for hours, n in shifts[:8] if n)
        said = (
            f"{counted(count, 'events')} stand alone, and fall into a long session of the same user when their time is shifted "
            f"({told})."
        )
        cure = "Their clock was probably wrong by that: they are shifted back, or left out (action=remove)."
        more = {"events_by_hours": wrong.by_shift}
        mend = curate_command(data, "clocks")
        found.append(_finding(log, "clock jumps", wrong.misplaced_N, (0.002, 0.02), said, cure, mend, more))
    return found + _parts(log, wrong) + _strays(log, wrong.any_N)


def _by_size(log: Ordered, wrong: WrongTimes, data: Sequence[str]) -> list[Finding]:
    """Findings from the size of the times alone."""
    found = []
    if count := int(wrong.impossible_N.sum()):
        times = log.time_N[wrong.impossible_N]
        zero = int((times == 0).sum())
        sound = log.time_N[log.timed_N & ~wrong.impossible_N & ~wrong.other_unit_N]
        steps: list[str] = []
        if len(sound):
            steps += ["--from", iso_time(int(sound.min()))[:10]] if times.min() < YEAR else []
            steps += ["--until", iso_time(int(sound.max()) + DAY)[:10]] if times.max() >= YEAR else []
        said = (
            f"{counted(count, 'events')} have a time near the clock's zero (1970) or in the future; {zero:,} are exactly "
            "1970-01-01."
        )
        cure = (
            "An import leaves them out by a window of time."
            if steps
            else "No time is left without them: mend the clock that wrote them."
        )
        more = {"at_zero": zero}
        found.append(_finding(log, "impossible times", wrong.impossible_N, (0.0, 0.01), said, cure, None, more, tuple(steps)))
    if count := int(wrong.other_unit_N.sum()):
        said = f"{counted(count, 'times')} fit the rest of the log when multiplied by 1000: seconds among milliseconds."
        cure = "They are multiplied; better still, mend them where the log is written."
        mend = curate_command(data, "clocks")
        found.append(_finding(log, "mixed units", wrong.other_unit_N, (0.0, 0.01), said, cure, mend))
    return found


def _finding(
    log: Ordered,
    name: str,
    mask_N: Bools,
    shares: tuple[float, float],
    said: str,
    cure: str,
    command: str | None = None,
    more: dict[str, Any] | None = None,
    imports: tuple[str, ...] = (),
) -> Finding:
    count = int(mask_N.sum())
    severity = by_share(count, len(log), *shares)
    examples = log.examples(np.flatnonzero(mask_N))
    return Finding(name, "fault", severity, count, "events", len(log), said, cure, command, examples, more or {}, imports)


def _parts(log: Ordered, wrong: WrongTimes) -> list[Finding]:
    """Places where a file that is sorted by time goes back: parts that were set one behind another."""
    count = len(wrong.jump_R)
    if not count:
        return []
    said = (
        f"The file is sorted by time, but goes back by more than a minute in {counted(count, 'places')}: parts were set one "
        "behind another."
    )
    cure = "LargeRec sorts by time itself; nothing to do, unless the jumps were not meant."
    examples = log.examples(wrong.jump_R)
    return [Finding("jumps of the file", "fault", "info", count, "places", len(log), said, cure, None, examples)]


def _strays(log: Ordered, known_N: Bools) -> list[Finding]:
    """Events far before or after all the others, with nothing between."""
    sound_N = log.timed_N & ~known_N
    if int(sound_N.sum()) < STRAYS_FEWEST:
        return []
    first, last = _without_strays(np.sort(log.time_N[sound_N]))
    early_N, late_N = sound_N & (log.time_N < first), sound_N & (log.time_N > last)
    stray_N = early_N | late_N
    count = int(stray_N.sum())
    if not count:
        return []
    # The gap is longer than a day: days that begin in it part the strays from the rest.
    steps: tuple[str, ...] = ("--from", iso_time(first)[:10]) if early_N.any() else ()
    steps += ("--until", iso_time(last + DAY)[:10]) if late_N.any() else ()
    verb = "event lies" if count == 1 else "events lie"
    said = (
        f"{count:,} {verb} far outside the time of all the others ({iso_time(first)[:10]} to {iso_time(last)[:10]}). "
        "A split by time, and everything that counts days, is stretched by them."
    )
    cure = "An import leaves them out by a window of time."
    return [_finding(log, "strays", stray_N, (0.0, 1.1), said, cure, imports=steps)]


def _without_strays(time_N: Ints) -> tuple[int, int]:
    """The first and the last of sorted times once strays are gone: at most a few in ten thousand on a side, beyond a gap of a day
    and of a twentieth of what the others span. Looked for again without them, so that no stray is left in what is left."""
    while len(time_N) >= STRAYS_FEWEST:
        low, high = np.quantile(time_N, (0.0005, 0.9995))
        gap = np.flatnonzero(np.diff(time_N) > max(DAY, 0.05 * (high - low)))
        early, late = gap[time_N[gap] < low], gap[time_N[gap + 1] > high]
        if not len(early) and not len(late):
            break
        start, end = early.max(initial=-1) + 1, late.min(initial=len(time_N) - 1) + 1
        time_N = time_N[start:end]
    return int(time_N[0]), int(time_N[-1])
