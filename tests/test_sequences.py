"""The split: a naive oracle over random logs, invariances, moments, and every refusal."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from logs import MINUTE_MS, START_MS, STEPS, log_of, logs
from polars.testing import assert_frame_equal

from largerec.columns import UNTIMED
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.sequences import AFTER, TEST, TRAIN, VALIDATION, Sequences, SplitOptions, Stage, build_sequences, from_frame

LAWS = settings(deadline=None, max_examples=40)
LEAVE_ONE_OUT = SplitOptions()


def minute(step: int) -> str:
    """The moment of a step of a drawn log, as a recipe writes it."""
    return datetime.fromtimestamp((START_MS + step * MINUTE_MS) / 1000, UTC).isoformat()


@st.composite
def timelines(draw: st.DrawFn) -> SplitOptions:
    """Dates that leave the anchor two training events and something to ask in both parts."""
    validation = draw(st.integers(2, STEPS - 2))
    test = draw(st.integers(validation + 1, STEPS - 1))
    until = draw(st.none() | st.integers(test + 1, STEPS + 1))
    return SplitOptions(
        protocol="timeline",
        validation_from=minute(validation),
        test_from=minute(test),
        test_until=None if until is None else minute(until),
        targets=draw(st.sampled_from(["all", "first"])),
    )


def naive_histories(log: EventLog) -> dict[Any, list[tuple[Any, int]]]:
    """(item, time) of each user, by time and then by place in the file: written with Python's own stable sort."""
    histories: dict[Any, list[tuple[Any, int]]] = {}
    for user, item, time in sorted(log.events.select("user_id", "item_id", "timestamp").rows(), key=lambda row: row[2]):
        histories.setdefault(user, []).append((item, time))
    return histories


def naive_stages(history: list[tuple[Any, int]], options: SplitOptions) -> list[int]:
    if options.protocol == "leave-one-out":
        n = len(history)
        return [TRAIN] * n if n < 3 else [TRAIN] * (n - 2) + [VALIDATION, TEST]
    given_moments = (options.validation_from, options.test_from, options.test_until)
    moments = [datetime.fromisoformat(moment) for moment in given_moments if moment is not None]
    return [sum(datetime.fromtimestamp(time / 1000, UTC) >= moment for moment in moments) for _, time in history]


def histories_of(sequences: Sequences) -> dict[Any, list[tuple[Any, int, int]]]:
    """(item, time, stage) of each user as the sequences hold them."""
    found: dict[Any, list[tuple[Any, int, int]]] = {}
    for user, item, time, stage in sequences.frame().select("user_id", "item_id", "timestamp", "stage").rows():
        found.setdefault(user, []).append((item, time, stage))
    return found


def check_against_the_oracle(log: EventLog, options: SplitOptions) -> None:
    sequences = build_sequences(log, options)
    truth = naive_histories(log)
    expected = {
        user: [(*event, stage) for event, stage in zip(history, naive_stages(history, options), strict=True)]
        for user, history in truth.items()
    }
    assert histories_of(sequences) == expected
    stages: tuple[Stage, ...] = ("validation", "test")
    for stage, code in zip(stages, (VALIDATION, TEST), strict=True):
        wanted = []
        for user, history in expected.items():
            places = [place for place, (_, _, its_stage) in enumerate(history) if its_stage == code and place > 0]
            wanted += [(user, place) for place in (places[:1] if options.targets == "first" else places)]
        rows = sequences.targets(stage)
        users = sequences.user_N[rows]
        found = [(sequences.user_ids[int(u)], int(r - sequences.offsets_U1[u])) for r, u in zip(rows, users, strict=True)]
        assert sorted(found, key=repr) == sorted(wanted, key=repr)


def check_no_leakage(sequences: Sequences) -> None:
    """What must hold of any split, said without an oracle."""
    for first, end, trained in zip(sequences.offsets_U1, sequences.offsets_U1[1:], sequences.train_end_U, strict=False):
        assert (np.diff(sequences.time_N[first:end]) >= 0).all()
        assert (np.diff(sequences.stage_N[first:end].astype(int)) >= 0).all()
        assert (sequences.stage_N[first:trained] == TRAIN).all()
        assert (sequences.stage_N[trained:end] != TRAIN).all()
    stages: tuple[Stage, ...] = ("validation", "test")
    for stage in stages:
        rows = sequences.targets(stage)
        first = sequences.offsets_U1[sequences.user_N[rows]]
        assert (first < rows).all()  # there is a history: the rows first..row - 1, which end before the target
        assert (sequences.train_end_U[sequences.user_N[rows]] <= rows).all()  # no target is trained on
        assert (sequences.time_N[rows - 1] <= sequences.time_N[rows]).all()


# --- the properties


@LAWS
@given(log=logs())
def test_leave_one_out_is_the_naive_split(log: EventLog) -> None:
    check_against_the_oracle(log, LEAVE_ONE_OUT)


@LAWS
@given(log=logs(time_kinds=["timestamp"]), options=timelines())
def test_timeline_is_the_naive_split(log: EventLog, options: SplitOptions) -> None:
    check_against_the_oracle(log, options)


@LAWS
@given(log=logs(), shares=st.tuples(st.integers(1, 98), st.integers(2, 99)))
def test_no_target_is_part_of_its_history_or_earlier(log: EventLog, shares: tuple[int, int]) -> None:
    check_no_leakage(build_sequences(log, LEAVE_ONE_OUT))
    timeline = SplitOptions(protocol="timeline", validation_from=f"{shares[0]}%", test_from=f"{shares[1]}%")
    try:
        sequences = build_sequences(log, timeline)
    except LargeRecError:
        assume(False)
    check_no_leakage(sequences)
    before, after = sequences.stage_N == TRAIN, sequences.stage_N != TRAIN
    assert sequences.time_N[before].max() < sequences.time_N[after].min()  # ties never straddle a moment


@LAWS
@given(log=logs())
def test_leave_one_out_keeps_validation_out_of_training_and_in_the_test_history(log: EventLog) -> None:
    sequences = build_sequences(log, LEAVE_ONE_OUT)
    validation, test = sequences.targets("validation"), sequences.targets("test")
    assert (validation + 1 == test).all()  # the row right before the test target, and of the same user
    assert (sequences.user_N[validation] == sequences.user_N[test]).all()
    assert (sequences.train_end_U[sequences.user_N[validation]] == validation).all()
    assert (test + 1 == sequences.offsets_U1[sequences.user_N[test] + 1]).all()
    short = np.diff(sequences.offsets_U1) < 3
    assert len(test) == (~short).sum()
    assert (sequences.train_end_U[short] == sequences.offsets_U1[1:][short]).all()
    assert sequences.train_counts().sum() == len(sequences.item_N) - 2 * len(test)


def same_numbers(one: Sequences, other: Sequences) -> bool:
    arrays = ("offsets_U1", "item_N", "time_N", "stage_N")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


@LAWS
@given(log=logs(), as_text=st.booleans(), salt=st.integers(3, 1000))
def test_renaming_ids_changes_nothing_but_the_names(log: EventLog, as_text: bool, salt: int) -> None:
    """Renamed so that no order of the old names survives, and the type may change too."""
    renames: dict[str, dict[Any, Any]] = {}
    for column in ("user_id", "item_id"):
        ids = log.events[column].unique().sort().to_list()
        codes = [(salt * (place + 1)) % 1009 for place in range(len(ids))]
        renames[column] = dict(zip(ids, [f"{c:x}-{column}" for c in codes] if as_text else codes, strict=True))
    events = log.events.with_columns(
        *(pl.Series(column, [names[i] for i in log.events[column]]) for column, names in renames.items())
    )
    one, other = build_sequences(log, LEAVE_ONE_OUT), build_sequences(replace(log, events=events), LEAVE_ONE_OUT)
    assert same_numbers(one, other)
    assert [renames["user_id"][user] for user in one.user_ids] == other.user_ids.to_list()
    assert [renames["item_id"][item] for item in one.item_ids] == other.item_ids.to_list()


@LAWS
@given(log=logs(), seed=st.integers(0, 2**32 - 1), options=timelines())
def test_shuffling_rows_of_different_times_changes_nothing(log: EventLog, seed: int, options: SplitOptions) -> None:
    times = log.events["timestamp"].to_numpy()
    order = np.random.default_rng(seed).permutation(len(times))
    for time in np.unique(times):  # rows of one time share the places that the shuffle gave them, in their old order
        places = np.flatnonzero(times[order] == time)
        order[places] = np.sort(order[places])
    shuffled = replace(log, events=log.events[order])
    for split in [LEAVE_ONE_OUT, *([options] if log.time_kind == "timestamp" else [])]:
        one, other = build_sequences(log, split), build_sequences(shuffled, split)
        assert same_numbers(one, other)
        assert_frame_equal(one.frame(), other.frame())


@LAWS
@given(log=logs())
def test_the_same_log_gives_the_same_split(log: EventLog) -> None:
    copied = replace(log, events=pl.DataFrame(log.events.to_dict(as_series=False), schema=log.events.schema))
    assert_frame_equal(build_sequences(log, LEAVE_ONE_OUT).frame(), build_sequences(copied, LEAVE_ONE_OUT).frame())


# --- worked examples


def test_ties_keep_the_order_of_the_log() -> None:
    rows = [("a", item, START_MS) for item in (5, 3, 9, 1, 7)]
    sequences = build_sequences(log_of(rows), LEAVE_ONE_OUT)
    assert sequences.item_ids.gather(sequences.item_N).to_list() == [5, 3, 9, 1, 7]
    assert sequences.stage_N.tolist() == [TRAIN, TRAIN, TRAIN, VALIDATION, TEST]
    backwards = build_sequences(log_of(rows[::-1]), LEAVE_ONE_OUT)
    assert backwards.item_ids.gather(backwards.item_N).to_list() == [7, 1, 9, 3, 5]


def days(count: int, users: int = 1) -> EventLog:
    """One event a day and user at 12:00, from 2024-01-01 on."""
    noon = int(datetime(2024, 1, 1, 12, tzinfo=UTC).timestamp() * 1000)
    return log_of([(user, day, noon + day * 86_400_000) for day in range(count) for user in range(users)])


@pytest.mark.parametrize(
    ("validation_from", "test_from", "test_until", "expected"),
    [
        ("2024-01-07", "2024-01-09", None, [6, 2, 2, 0]),
        ("2024-01-07", "2024-01-09", "2024-01-10", [6, 2, 1, 1]),
        ("2024-01-07T12:00", "2024-01-09T12:00:01", None, [6, 3, 1, 0]),  # the moment itself is after the cut
        ("2024-01-07T13:00+02:00", "2024-01-09 12:00:00", None, [6, 2, 2, 0]),  # 11:00 UTC
        ("60%", "80%", None, [6, 2, 2, 0]),
        ("60%", "80%", "90%", [6, 2, 1, 1]),
        ("2024-01-07", "80%", None, [6, 2, 2, 0]),
    ],
)
def test_moments_of_a_timeline(validation_from: str, test_from: str, test_until: str | None, expected: list[int]) -> None:
    options = SplitOptions(protocol="timeline", validation_from=validation_from, test_from=test_from, test_until=test_until)
    stages = build_sequences(days(10), options).stage_N
    assert [int((stages == stage).sum()) for stage in (TRAIN, VALIDATION, TEST, AFTER)] == expected


def test_shares_work_on_a_log_without_a_clock() -> None:
    log = log_of([("a", item, item) for item in range(10)], "order")
    options = SplitOptions(protocol="timeline", validation_from="60%", test_from="80%")
    assert build_sequences(log, options).stage_N.tolist() == [TRAIN] * 6 + [VALIDATION] * 2 + [TEST] * 2


@pytest.mark.parametrize("validation_from", ["60%", "1969-12-01"])
def test_untimed_events_train_and_count_in_no_share(validation_from: str) -> None:
    log = days(10)
    untimed = log_of([(0, 100 + n, UNTIMED) for n in range(90)])
    log = replace(log, events=pl.concat([untimed.events, log.events]))
    options = SplitOptions(protocol="timeline", validation_from=validation_from, test_from="80%")
    stages = build_sequences(log, options).stage_N.tolist()
    train = 6 if validation_from == "60%" else 0
    assert stages == [TRAIN] * (90 + train) + [VALIDATION] * (8 - train) + [TEST] * 2


def test_a_timeline_needs_an_event_with_a_time() -> None:
    log = log_of([(0, n, UNTIMED) for n in range(9)])
    options = SplitOptions(protocol="timeline", validation_from="60%", test_from="80%")
    with pytest.raises(LargeRecError, match=r"no event of this log has a time; use split\.protocol=leave-one-out"):
        build_sequences(log, options)


def test_all_targets_or_the_first_of_each_user() -> None:
    log = days(10, users=2)
    newcomer = log_of([(9, 100 + day, day * 86_400_000 + int(log.events["timestamp"][0])) for day in (8, 9)])
    log = replace(log, events=pl.concat([log.events, newcomer.events]))
    times = {"protocol": "timeline", "validation_from": "2024-01-07", "test_from": "2024-01-09"}
    every = build_sequences(log, SplitOptions.model_validate(times))
    assert every.user_N[every.targets("test")].tolist() == [0, 0, 1, 1, 2]  # the newcomer's first event has no history
    assert every.user_N[every.targets("validation")].tolist() == [0, 0, 1, 1]
    first = build_sequences(log, SplitOptions.model_validate({**times, "targets": "first"}))
    assert first.user_N[first.targets("test")].tolist() == [0, 1, 2]
    assert (first.targets("test") == every.targets("test")[[0, 2, 4]]).all()


def test_only_training_rows_are_counted() -> None:
    sequences = build_sequences(log_of([("a", item, place) for place, item in enumerate("xxyxz")]), LEAVE_ONE_OUT)
    assert dict(zip(sequences.item_ids, sequences.train_counts().tolist(), strict=True)) == {"x": 2, "y": 1, "z": 0}


def test_behaviours_are_numbered_and_may_be_missing() -> None:
    rows = [("a", item, item) for item in range(5)]
    names = ["view", "buy", None, "view", None]
    sequences = build_sequences(log_of(rows, behaviors=names), LEAVE_ONE_OUT)
    assert sequences.behaviour_N is not None and sequences.behaviour_N.dtype.kind == "i"
    assert [sequences.behaviours[code] for code in sequences.behaviour_N] == names
    assert sequences.frame()["behavior"].to_list() == names


@LAWS
@given(log=logs(), data=st.data())
def test_frame_reads_back(tmp_path_factory: pytest.TempPathFactory, log: EventLog, data: st.DataObject) -> None:
    names = data.draw(
        st.lists(st.sampled_from(["view", "buy", "like", None]), min_size=len(log.events), max_size=len(log.events))
    )
    log = replace(log, events=log.events.with_columns(pl.Series("behavior", names, dtype=pl.String)))
    split = SplitOptions(protocol="timeline", validation_from="60%", test_from="80%", targets="first")
    try:
        sequences = build_sequences(log, split)
    except LargeRecError:
        assume(False)  # a cut that leaves a part empty
    path = Path(tmp_path_factory.getbasetemp()) / "histories.parquet"
    sequences.frame().write_parquet(path)
    back = from_frame(pl.read_parquet(path), log.time_kind, "first")
    assert_frame_equal(back.frame(), sequences.frame())
    assert back.user_ids.to_list() == sequences.user_ids.to_list()
    assert back.user_ids.dtype == sequences.user_ids.dtype and back.item_ids.dtype == sequences.item_ids.dtype
    assert np.array_equal(back.offsets_U1, sequences.offsets_U1)
    assert np.array_equal(back.stage_N, sequences.stage_N)
    assert back.behaviours == sequences.behaviours and np.array_equal(back.behaviour_N, sequences.behaviour_N)
    assert (back.time_kind, back.targets_per_user) == (sequences.time_kind, "first")
    assert np.array_equal(back.targets("test"), sequences.targets("test"))


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs split\.validation_from and split\.test_from.*for example"),
        ({"validation_from": "2024-01-03"}, r"needs split\.validation_from and split\.test_from"),
        ({"validation_from": "last week", "test_from": "90%"}, r"split\.validation_from='last week' is no ISO date"),
        ({"validation_from": "80%", "test_from": "120%"}, r"split\.test_from='120%' is no share between 0% and 100%"),
        ({"validation_from": "0%", "test_from": "50%"}, r"split\.validation_from='0%' is no share"),
        ({"validation_from": "many%", "test_from": "50%"}, r"split\.validation_from='many%' is no share"),
        ({"validation_from": "2024-01-09", "test_from": "2024-01-05"}, r"must rise: validation_from='2024-01-09'"),
        ({"validation_from": "60%", "test_from": "80%", "test_until": "70%"}, r"must rise.*test_until='70%'"),
        ({"validation_from": "2024-01-05", "test_from": "2025-01-01"}, r"the test part has no target.*timeline needs events"),
        ({"validation_from": "2024-01-05", "test_from": "2024-01-05"}, r"the validation part has no target"),
        ({"validation_from": "2024-01-02", "test_from": "2024-01-05"}, r"a test's log: no user has two training events"),
    ],
)
def test_refused_timelines(options: dict[str, str], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        build_sequences(days(10), SplitOptions.model_validate({"protocol": "timeline", **options}))


def test_a_date_needs_a_clock() -> None:
    log = log_of([("a", item, item) for item in range(10)], "order")
    options = SplitOptions(protocol="timeline", validation_from="2024-01-05", test_from="90%")
    with pytest.raises(LargeRecError, match=r"validation_from='2024-01-05' is a date, but this log has an order and no clock"):
        build_sequences(log, options)


@pytest.mark.parametrize(("length", "message"), [(1, "no user has two training events"), (3, "no user has two training events")])
def test_nothing_to_learn(length: int, message: str) -> None:
    log = log_of([(user, item, item) for user in "abc" for item in range(length)])
    with pytest.raises(LargeRecError, match=message):
        build_sequences(log, LEAVE_ONE_OUT)


def test_nobody_to_ask() -> None:
    with pytest.raises(LargeRecError, match=r"the validation part has no target.*at least three events"):
        build_sequences(log_of([(user, item, item) for user in "abc" for item in range(2)]), LEAVE_ONE_OUT)
