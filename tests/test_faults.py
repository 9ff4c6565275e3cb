"""Faults: as many as asked, each labelled, all else as it was, in generated and in real logs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from logs import MINUTE_MS, log_of, random_log

from largerec.badrows import DroppedRow
from largerec.columns import UNTIMED
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.faults import BOT_EVENTS, BOT_ITEMS, BOT_PAUSE_MS, LABEL, MISCLICK_MS, FaultOptions, with_faults

ALL = FaultOptions(bots=0.1, duplicates=0.05, misclicks=0.1, clock_errors=0.02, seed=4)


def log_with_behaviours() -> EventLog:
    rows = random_log(users=30, items=40, events=1000).events.rows()
    return log_of(rows, behaviors=["buy" if n % 3 == 0 else "view" for n in range(len(rows))])


def only(log: EventLog, name: str) -> pl.DataFrame:
    return log.events.filter(pl.col(LABEL) == name)


def test_there_are_as_many_as_asked() -> None:
    log = with_faults(log_with_behaviours(), ALL)
    assert (only(log, "duplicate").height, only(log, "misclick").height, only(log, "clock error").height) == (50, 100, 20)
    assert only(log, "bot")["user_id"].n_unique() == 3
    assert "100 misclick (seed 4)" in log.notes[-1] and "20 clock error, 50 duplicate" in log.notes[-1]
    assert log.events.height == 1000 + 50 + 100 + only(log, "bot").height


def test_without_the_labelled_rows_the_log_is_what_it_was() -> None:
    before = log_with_behaviours()
    log = with_faults(before, ALL.model_copy(update={"clock_errors": 0.0}))
    assert log.events.filter(pl.col(LABEL).is_null()).drop(LABEL).equals(before.events)
    late = with_faults(before, FaultOptions(clock_errors=0.02))
    same = late.events.select("user_id", "item_id", "behavior").equals(before.events.select("user_id", "item_id", "behavior"))
    assert same and late.events.height == before.events.height
    moved = late.events["timestamp"] != before.events["timestamp"]
    assert moved.equals(late.events[LABEL].is_not_null(), check_names=False)


def test_the_same_seed_gives_the_same_faults_and_kinds_do_not_disturb_each_other() -> None:
    log = log_with_behaviours()
    both = with_faults(log, ALL)
    assert both.events.equals(with_faults(log, ALL).events)
    assert not both.events.equals(with_faults(log, ALL.model_copy(update={"seed": 5})).events)
    alone = with_faults(log, FaultOptions(misclicks=ALL.misclicks, seed=ALL.seed))
    assert only(alone, "misclick").equals(only(both, "misclick"))


def test_each_kind_is_what_it_says() -> None:
    log = with_faults(log_with_behaviours(), ALL)
    events = log.events.with_row_index()
    keys = ["user_id", "item_id", "behavior"]
    for row in events.filter(pl.col(LABEL) == "duplicate")["index"].to_list():
        before = events.row(row - 1, named=True)
        assert events[row].select(keys).equals(events[row - 1].select(keys))
        assert before["timestamp"] == events["timestamp"][row] or before[LABEL] == "clock error"
    for row in events.filter(pl.col(LABEL) == "misclick")["index"].to_list():
        meant = events.row(row + 1, named=True)
        assert meant["user_id"] == events["user_id"][row] and events["behavior"][row] == "view"
        assert meant["timestamp"] - events["timestamp"][row] == MISCLICK_MS or meant[LABEL] == "clock error"
    for _, bot in only(log, "bot").group_by("user_id"):
        assert BOT_EVENTS[0] <= bot.height <= BOT_EVENTS[1]
        assert bot["item_id"].n_unique() <= BOT_ITEMS
        assert set(np.diff(bot["timestamp"].to_numpy()).tolist()) == {BOT_PAUSE_MS}
    assert (only(log, "clock error")["timestamp"] == 0).any()


def log_with_untimed_events(untimed: int = 500) -> EventLog:
    """Events of which the first have no time."""
    log = random_log(users=30, items=40, events=1000)
    rows = pl.Series(np.arange(1000) < untimed)
    return replace(log, events=log.events.with_columns(pl.when(rows).then(UNTIMED).otherwise("timestamp").alias("timestamp")))


def test_faults_invent_no_time_for_untimed_events() -> None:
    before = log_with_untimed_events()
    earliest = int(before.events["timestamp"].filter(before.events["timestamp"] != UNTIMED).min())  # type: ignore[arg-type]
    log = with_faults(before, FaultOptions(bots=0.5, misclicks=0.3, duplicates=0.1, clock_errors=0.2, seed=4))
    assert only(log, "clock error").height == 100, "a share of the events that have a time"
    sound = log.events.filter(pl.col(LABEL).is_null() | (pl.col(LABEL) == "clock error"))
    assert ((sound["timestamp"] == UNTIMED) == (before.events["timestamp"] == UNTIMED)).all()
    assert only(log, "bot").height and (only(log, "bot")["timestamp"] >= earliest).all()
    misclicks = log.events.with_columns(pl.col("timestamp").shift(-1).alias("next"), pl.col(LABEL).shift(-1).alias("after"))
    misclicks = misclicks.filter((pl.col(LABEL) == "misclick") & pl.col("after").is_null())
    assert (misclicks["next"] == UNTIMED).any()
    assert ((misclicks["timestamp"] == UNTIMED) == (misclicks["next"] == UNTIMED)).all()


def test_bots_need_an_event_with_a_time() -> None:
    with pytest.raises(LargeRecError, match=r"data\.faults\.bots=0\.5 needs events with a time.*Set it to 0"):
        with_faults(log_with_untimed_events(1000), FaultOptions(bots=0.5))


def test_the_record_of_dropped_rows_is_kept() -> None:
    dropped = (DroppedRow("events.csv", 7, "an impossible time", "x"),)
    log = replace(random_log(), dropped=dropped)
    assert with_faults(log, ALL).dropped == dropped


def test_ids_keep_their_type_and_are_new() -> None:
    numbers = random_log(users=30)
    found = with_faults(numbers, FaultOptions(bots=0.2)).events
    assert found.schema == {**numbers.events.schema, LABEL: pl.String}
    bots = found.filter(pl.col(LABEL) == "bot")["user_id"].unique()
    assert not bots.is_in(numbers.events["user_id"].unique().implode()).any()
    words = log_of([("bot 0", "a", MINUTE_MS), ("ann", "b", 2 * MINUTE_MS)])
    names = with_faults(words, FaultOptions(bots=1.0)).events.filter(pl.col(LABEL) == "bot")["user_id"].unique()
    assert set(names) == {"bot 1", "bot 2"}


@pytest.mark.parametrize(
    ("dtype", "highest", "wide"),
    [(pl.UInt8, 255, pl.Int64), (pl.Int8, 127, pl.Int64), (pl.Int32, 9, pl.Int32), (pl.UInt64, 2**63 + 5, pl.UInt64)],
)
def test_ids_of_bots_have_room(dtype: Any, highest: int, wide: Any) -> None:
    log = random_log(users=30)
    ids = [highest - user for user in log.events["user_id"]] if highest > 30 else log.events["user_id"].to_list()
    log = replace(log, events=log.events.with_columns(pl.Series("user_id", ids, dtype=dtype)))
    found = with_faults(log, FaultOptions(bots=0.2)).events
    bots = found.filter(pl.col(LABEL) == "bot")["user_id"]
    assert found.schema["user_id"] == wide and set(bots) == set(range(max(ids) + 1, max(ids) + 1 + bots.n_unique()))
    assert found.filter(pl.col(LABEL).is_null())["user_id"].to_list() == ids


@pytest.mark.parametrize(("dtype", "highest"), [(pl.Int64, 2**63 - 1), (pl.UInt64, 2**64 - 1)])
def test_ids_without_room_above_are_refused(dtype: Any, highest: int) -> None:
    log = random_log(users=30)
    ids = pl.Series("user_id", [highest - user for user in log.events["user_id"]], dtype=dtype)
    log = replace(log, events=log.events.with_columns(ids))
    with pytest.raises(LargeRecError, match=r"new ones are needed, but U?Int64 has no room above\. Write these ids as text"):
        with_faults(log, FaultOptions(bots=0.2))
    assert with_faults(log, FaultOptions(duplicates=0.2)).events.schema["user_id"] == dtype


def test_an_order_has_no_clock_that_could_be_wrong() -> None:
    ranks = log_of([("a", item, rank) for rank, item in enumerate("abcdef")], "order")
    with pytest.raises(LargeRecError, match=r"clock_errors=0\.1 needs a clock, but this log has an order only"):
        with_faults(ranks, FaultOptions(clock_errors=0.1))
    log = with_faults(ranks, FaultOptions(bots=1.0, duplicates=0.5, misclicks=0.5))
    assert set(only(log, "bot")["timestamp"].diff().drop_nulls()) == {1}


def test_a_log_gets_them_once() -> None:
    log = with_faults(random_log(), FaultOptions(duplicates=0.1))
    with pytest.raises(LargeRecError, match="has a column 'hidden_fault' already"):
        with_faults(log, FaultOptions(duplicates=0.1))


def test_a_recipe_puts_them_into_generated_and_given_logs(tmp_path: Path) -> None:
    random_log().write(tmp_path / "log.csv")
    asked = FaultOptions(duplicates=0.1, seed=1)
    given = load_log(DataOptions(path=str(tmp_path / "log.csv"), faults=asked))
    assert only(given, "duplicate").height == 15
    assert given.describe()["features"] == {LABEL: "String"}
    small = DataOptions.model_validate({"simulate": {"users": 50, "items": 60, "events": 600, "categories": 3}, "faults": asked})
    assert only(load_log(small), "duplicate").height == pytest.approx(60, abs=2)
    assert LABEL not in load_log(small.model_copy(update={"faults": FaultOptions()})).events.columns
