"""Times that cannot be right: each finding on a log made by hand, and none for what people do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from audits import NOW, Row, found, steady
from logs import START_MS, log_of

from largerec.audit import audit, clocks
from largerec.audit.ordered import DAY, HOUR, MINUTE, SECOND, Ordered
from largerec.events import EventLog


def test_impossible_times_and_the_window_that_leaves_them_out(tmp_path: Path) -> None:
    rows = [*steady(20), ("u1", "i1", 0), ("u2", "i2", 5000), ("u3", "i3", NOW + 9 * DAY)]
    one = found(log_of(rows))["impossible times"]
    assert one.count == 3 and one.more == {"at_zero": 1} and one.severity == "warn"
    assert one.command is not None and "--from 2020-09-13" in one.command and "--until" in one.command


@pytest.mark.parametrize("events", [5, 200])
def test_a_log_that_lies_wholly_in_the_future_says_so_and_names_no_window(events: int) -> None:
    one = found(log_of([(f"u{n % 5}", f"i{n % 7}", NOW + 9 * DAY + n * MINUTE) for n in range(events)]))["impossible times"]
    assert (one.count, one.command, one.severity) == (events, None, "serious") and "clock that wrote them" in one.cure


def test_mixed_units() -> None:
    rows = steady(20)
    rows += [(user, item, time // 1000) for user, item, time in rows[:7]]
    names = found(log_of(rows))
    assert names["mixed units"].count == 7 and "impossible times" not in names


@pytest.mark.parametrize("grouped", [False, True])
def test_times_out_of_order_in_a_sorted_file(grouped: bool) -> None:
    rows = steady(40, 60, users=12)
    if grouped:
        rows.sort(key=lambda row: row[0])
    wrong = np.random.default_rng(1).choice(len(rows), 30, replace=False)
    for n in wrong.tolist():
        rows[n] = (*rows[n][:2], rows[n][2] + (9 * DAY if n % 2 else -11 * DAY))
    ordered = Ordered.of(log_of(rows))
    mask_N, jumps = clocks.out_of_order(ordered, np.zeros(len(rows), dtype=bool))
    assert clocks.sorted_by(ordered) == ("user and time" if grouped else "time")
    got, meant = set(ordered.row_N[mask_N].tolist()), set(wrong.tolist())
    assert len(got & meant) >= 28 and len(got - meant) <= 2 and len(jumps) <= 1
    assert found(log_of(rows))["times out of order"].severity == "serious"


def test_parts_set_one_behind_another_are_no_wrong_clocks() -> None:
    rows = steady(40)
    names = found(log_of([*rows[800:], *rows[:800]]))
    assert "times out of order" not in names and names["jumps of the file"].count == 1


def test_rows_a_few_seconds_out_of_order_are_let_be() -> None:
    rows = steady(20)
    rng = np.random.default_rng(0)
    ordered = Ordered.of(log_of([(u, i, t + int(rng.integers(-15, 15)) * SECOND) for u, i, t in rows]))
    assert not clocks.out_of_order(ordered, np.zeros(len(rows), dtype=bool))[0].any()


def shifted_sessions(share_wrong: float, hours: tuple[int, ...]) -> tuple[EventLog, np.ndarray]:
    """Long sessions without an order of the rows; some events stand a few hours beside them."""
    rng = np.random.default_rng(5)
    rows: list[tuple[str, str, int, bool]] = []
    for user in range(60):
        for visit in range(4):
            time = START_MS + visit * 40 * DAY + int(rng.integers(30 * DAY))
            for _ in range(40):
                time += int(rng.integers(5, 200)) * SECOND + int(rng.integers(1000))
                wrong = bool(rng.random() < share_wrong)
                rows.append((f"u{user}", f"i{rng.integers(500)}", time + wrong * int(rng.choice(hours)) * HOUR, wrong))
    rng.shuffle(rows)  # type: ignore[arg-type]
    return log_of([(str(u), str(i), int(t)) for u, i, t, _ in rows]), np.array([str(wrong) == "True" for *_, wrong in rows])


def test_clock_jumps_beside_long_sessions() -> None:
    log, wrong_R = shifted_sessions(0.03, (-8, 24))
    ordered = Ordered.of(log)
    hours_N, by_shift = clocks.misplaced(ordered, np.zeros(len(ordered), dtype=bool))
    mask_N = hours_N != 0
    assert set(by_shift) == {-8, 24} == set(hours_N[mask_N].tolist())
    right = int((mask_N & wrong_R[ordered.row_N]).sum())
    assert right >= 0.9 * wrong_R.sum() and right >= 0.9 * mask_N.sum()
    assert "clock jumps" in found(log)


def test_jumps_are_found_among_millions_of_users() -> None:
    """Users and moments share one 64-bit number."""
    session = START_MS + np.arange(30) * 30 * SECOND
    times = np.concatenate([session, session[10:12] + 24 * HOUR])
    fragments = clocks._Fragments(np.repeat([7, 6_000_000], len(times)), np.tile(times, 2))
    assert fragments.fit(np.flatnonzero(fragments.size_M == 2), 24 * HOUR).all()


def test_events_without_a_time_are_in_no_session() -> None:
    rows = [(user, 1, None if at < 3 else START_MS + user * DAY + at * MINUTE) for user in range(20) for at in range(10)]
    frame = pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64, "timestamp": pl.Int64}, orient="row")
    seconds = [
        audit(EventLog.from_frame(one, untimed="first")).shape["sessions"]["seconds"] for one in (frame, frame.drop_nulls())
    ]
    assert seconds[0] == seconds[1]


def test_events_beside_a_session_by_no_whole_hours_are_people() -> None:
    sound, _ = shifted_sessions(0.0, (1,))
    assert "clock jumps" not in found(sound)
    rng, size = np.random.default_rng(0), sound.events.height
    apart = rng.integers(2, 30, size) * HOUR + rng.integers(HOUR, size=size)
    later = sound.events["timestamp"] + pl.Series(np.where(rng.random(size) < 0.03, apart, 0))
    assert "clock jumps" not in found(replace(sound, events=sound.events.with_columns(later)))


def test_people_who_look_in_before_a_session_have_no_wrong_clock() -> None:
    """They come the seldomer the longer before: many about an hour, fewer at 97 minutes, hardly any at 23."""
    rng = np.random.default_rng(7)
    rows: list[Row] = []
    for visit in range(600):
        start = START_MS + visit * 3 * DAY + int(rng.integers(DAY // SECOND)) * SECOND
        rows += [(f"u{visit % 200}", f"i{n}", start + n * 40 * SECOND) for n in range(60)]
        rows.append((f"u{visit % 200}", "i1", start - 20 * MINUTE - int(rng.exponential(1800)) * SECOND))
    rng.shuffle(rows)
    ordered = Ordered.of(log_of([(str(u), str(i), int(t)) for u, i, t in rows]))
    assert clocks.misplaced(ordered, np.zeros(len(rows), dtype=bool))[1] == {}


def test_one_users_habit_is_no_wrong_clock() -> None:
    """Three visits of ten events a day after a long one are three cases of one user, not thirty."""
    rows: list[Row] = []
    for visit in range(3):
        start = START_MS + visit * 30 * DAY
        rows += [("u", f"i{n}", start + n * 30 * SECOND) for n in range(60)]
        rows += [("u", f"i{n}", start + 24 * HOUR + (20 + n) * 30 * SECOND) for n in range(10)]
    assert clocks.misplaced(Ordered.of(log_of(rows)), np.zeros(len(rows), dtype=bool))[1] == {}


def test_strays_have_a_window() -> None:
    one = found(log_of([*steady(60), ("u1", "i1", START_MS + 300 * DAY)]))["strays"]
    assert one.count == 1 and one.command is not None and "--until" in one.command and "--from" not in one.command


def test_strays_lie_beyond_a_gap_and_one_window_leaves_all_of_them_out() -> None:
    first = START_MS // DAY * DAY
    thin = [("u1", "i1", first - n * 4 * DAY) for n in range(30, 0, -1)]
    assert "strays" not in found(log_of([*thin, *steady(60, 100)])), "few events, but no gap"
    lonely = [("u1", "i1", first - n * 20 * DAY) for n in range(12, 0, -1)] + [("u1", "i1", first + 200 * DAY)]
    log = log_of([*lonely[:-1], *steady(60), lonely[-1]])
    one = found(log)["strays"]
    assert one.count == 13 and one.imports == ("--from", "2020-09-13", "--until", "2020-11-12")
    since, until = (datetime.fromisoformat(one.imports[n]).replace(tzinfo=UTC).timestamp() * 1000 for n in (1, 3))
    left = log.events.filter(pl.col("timestamp").is_between(since, until, closed="left"))
    assert left.height == 60 * 40 and "strays" not in found(replace(log, events=left))
