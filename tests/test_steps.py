"""The steps of an import: each does what it says, reports it, and leaves what it must not touch."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import log_of

from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.steps import Steps, apply

DAY = 86_400_000


def rows(log: EventLog) -> list[tuple[object, ...]]:
    return log.events.select("user_id", "item_id", "timestamp").rows()


def test_no_steps_change_nothing() -> None:
    log = log_of([(1, 10, DAY), (1, 10, DAY)])
    assert apply(log, Steps()) == (log, [])


def test_repeats_are_dropped_but_not_of_another_behaviour_or_without_a_time() -> None:
    given = [(1, 10, 5), (1, 10, 5), (1, 10, 5), (1, 10, 6), (1, 30, -1), (1, 30, -1)]
    log = log_of(given, behaviors=["view", "buy", "view", "view", "view", "view"])
    found, (report,) = apply(log, Steps(dedupe=True))
    assert rows(found) == [(1, 10, 5), (1, 10, 5), (1, 10, 6), (1, 30, -1), (1, 30, -1)]
    assert found.events["behavior"].to_list()[:2] == ["view", "buy"]
    assert report["step"] == "dedupe"
    assert (report["before"]["events"], report["after"]) == (6, {"events": 5, "users": 1, "items": 2})
    assert found.notes[-1] == "1 events repeat user, item, time and behaviour: dropped"


def test_a_window_takes_its_first_moment_and_leaves_its_last() -> None:
    log = log_of([(1, 1, DAY - 1), (1, 2, DAY), (1, 3, 2 * DAY - 1), (1, 4, 2 * DAY), (1, 5, -1)])
    found, (report,) = apply(log, Steps(since="1970-01-02", until="1970-01-03T00:00"))
    assert found.events["item_id"].to_list() == [2, 3, 5]
    assert report["untimed_kept"] == 1
    assert (
        found.notes[-1]
        == "2 events are outside since 1970-01-02 and until 1970-01-03T00:00: dropped; 1 events without a time stay"
    )
    assert apply(log, Steps(until="1970-01-02"))[0].events["item_id"].to_list() == [1, 5]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60), st.integers(1, 4))
def test_a_core_is_the_largest_part_in_which_all_have_enough(pairs: list[tuple[int, int]], k: int) -> None:
    log = log_of([(user, item, time) for time, (user, item) in enumerate(pairs)])
    kept = pairs
    while True:  # slowly: one user or item at a time
        few = next(
            ((side, one) for side in (0, 1) for one in {pair[side] for pair in kept} if sum(p[side] == one for p in kept) < k),
            None,
        )
        if few is None:
            break
        kept = [pair for pair in kept if pair[few[0]] != few[1]]
    if not kept:
        with pytest.raises(LargeRecError, match="leaves none of"):
            apply(log, Steps(k_core=k))
        return
    found, (report,) = apply(log, Steps(k_core=k))
    assert found.events.select("user_id", "item_id").rows() == kept
    assert report["k"] == k and report["rounds"] >= 1


def test_a_sample_of_users_keeps_whole_users_and_is_repeatable() -> None:
    log = log_of([(user, item, item) for item in range(3) for user in range(100)])
    some, (report,) = apply(log, Steps(sample_users=10, seed=1))
    assert some.events["user_id"].n_unique() == 10
    assert some.events.height == 30
    assert report["seed"] == 1
    assert some.events.equals(apply(log, Steps(sample_users=0.1, seed=1))[0].events)
    assert not some.events.equals(apply(log, Steps(sample_users=10, seed=2))[0].events)
    shuffled = EventLog(log.events.sample(fraction=1, shuffle=True, seed=3), None, "timestamp", (), "x")
    drawn = apply(shuffled, Steps(sample_users=10, seed=1))[0]
    assert set(drawn.events["user_id"]) == set(some.events["user_id"])
    assert apply(log, Steps(sample_users=5000))[0].events.height == 300


def test_steps_follow_each_other_in_the_documented_order() -> None:
    log = log_of([(1, 10, DAY), (1, 10, DAY), (1, 11, 3 * DAY), (2, 10, DAY)])
    _, reports = apply(log, Steps(dedupe=True, until="1970-01-03", sample_users=2, k_core=1))
    assert [report["step"] for report in reports] == ["dedupe", "window", "sample-users", "k-core"]
    assert [report["after"]["events"] for report in reports] == [3, 2, 2, 2]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (Steps(since="soon"), "--from 'soon' is no ISO date"),
        (Steps(since="2030-01-01"), "no event is since 2030-01-01; the log runs from 1970-01-02T00:00:00Z"),
        (Steps(sample_users=1.5), "neither a number of users nor a share"),
        (Steps(sample_users=0), "neither a number of users nor a share"),
        (Steps(sample_users=float("inf")), "neither a number of users nor a share"),
        (Steps(sample_users=float("nan")), "neither a number of users nor a share"),
        (Steps(sample_users=1, seed=-1), "--seed -1: a seed is a whole number of 0 or more"),
        (Steps(k_core=0), "--k-core 0"),
        (Steps(k_core=9), "step k-core .* leaves none of 2 events. Loosen it."),
    ],
)
def test_settings_that_do_not_fit_are_explained(steps: Steps, expected: str) -> None:
    with pytest.raises(LargeRecError, match=expected):
        apply(log_of([(1, 10, DAY), (2, 20, DAY)]), steps)


def test_a_window_keeps_untimed_events_but_needs_one_with_a_time() -> None:
    log = log_of([(1, 1, -1), (1, 2, -1), (1, 3, 0), (1, 4, 2 * DAY)])
    found, _ = apply(log, Steps(since="1970-01-02"))
    assert found.events["item_id"].to_list() == [1, 2, 4]
    with pytest.raises(LargeRecError, match="no event is since 2030-01-01; the log runs from 1970-01-01"):
        apply(log, Steps(since="2030-01-01"))
    with pytest.raises(LargeRecError, match="no event has a time, so there is no window"):
        apply(log_of([(1, 1, -1)]), Steps(since="2030-01-01"))


def test_a_window_needs_a_clock() -> None:
    log = EventLog(pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [0]}), None, "order", (), "log.csv")
    with pytest.raises(LargeRecError, match="needs a clock, but this log has an order only"):
        apply(log, Steps(since="2020-01-01"))
