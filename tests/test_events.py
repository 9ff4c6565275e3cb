"""EventLog: columns, ids, times and filters, and for each mistake the message that names its place and its mending."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import ColumnOptions, EventLog

DAY = 86_400_000
APRIL = 1_711_929_600_000  # 2024-04-01 in ms


def frame(**changes: Any) -> pl.DataFrame:
    """Three good events, with columns changed, added, or (None) taken away."""
    columns = {"user_id": ["a", "a", "b"], "item_id": [1, 2, 1], "timestamp": [APRIL, APRIL + DAY, APRIL + 2 * DAY], **changes}
    return pl.DataFrame({name: values for name, values in columns.items() if values is not None}, strict=False)


def error_of(data: Any, **arguments: Any) -> str:
    with pytest.raises(LargeRecError) as caught:
        EventLog.from_frame(data, source="log.csv", **arguments)
    return str(caught.value)


def test_the_plain_case() -> None:
    log = EventLog.from_frame(frame(rating=[5, 3, None], event=["view", "buy", "view"], country=["x", "y", "z"]))
    assert log.events.schema == {
        "user_id": pl.String,
        "item_id": pl.Int64,
        "timestamp": pl.Int64,
        "behavior": pl.String,
        "value": pl.Float64,
        "country": pl.String,
    }
    assert log.events["timestamp"].to_list() == [APRIL, APRIL + DAY, APRIL + 2 * DAY]
    assert log.events["value"].to_list() == [5.0, 3.0, None]
    assert (log.time_kind, log.items) == ("timestamp", None)
    assert "1 events have no value" in log.notes
    assert "times are milliseconds (told by their size)" in log.notes


@pytest.mark.parametrize(
    ("user", "item", "time"),
    [
        ("userId", "movieId", "timestamp"),
        ("userID", "iid", "ts"),
        ("uid", "video_id", "time_ms"),
        ("reviewerID", "asin", "unixReviewTime"),
        ("user", "parent_asin", "created_at"),
        ("visitorid", "item_asin", "unix_ts"),
        ("sessionId", "click_article_id", "click_timestamp"),
        ("user_id:token", "item_id:token", "timestamp:float"),
        (" User_ID ", "product_id", "datetime"),
    ],
)
def test_aliases(user: str, item: str, time: str) -> None:
    log = EventLog.from_frame(pl.DataFrame({user: [1, 2], "x": [0, 1], item: ["p", "q"], time: [1_300_000_000, 1_300_000_060]}))
    assert log.events.rows() == [(1, "p", 1_300_000_000_000, 0), (2, "q", 1_300_000_060_000, 1)]


def test_two_candidates_are_resolved_by_the_alias_order_and_said() -> None:
    log = EventLog.from_frame(frame(session_id=[7, 8, 9], date=["2020-01-01"] * 3))
    assert log.events["user_id"].to_list() == ["a", "a", "b"]
    assert log.events.columns[3:] == ["session_id", "date"]
    assert sum("'session_id' could be it too (data.columns.user=NAME)" in note for note in log.notes) == 1
    assert sum("'date' could be it too (data.columns.time=NAME)" in note for note in log.notes) == 1


def test_named_columns_win_and_a_clash_of_names_is_kept_apart() -> None:
    log = EventLog.from_frame(frame(member=[7, 8, 9]), columns=ColumnOptions(user="member"))
    assert log.events["user_id"].to_list() == [7, 8, 9]
    assert log.events["user_id_given"].to_list() == ["a", "a", "b"]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.Int32, pl.UInt16, pl.UInt64, pl.Int64, pl.String])
def test_ids_keep_their_type(dtype: Any) -> None:
    log = EventLog.from_frame(frame(item_id=pl.Series([3, 4, 3]).cast(dtype)))
    assert log.events["item_id"].to_list() == pl.Series([3, 4, 3]).cast(dtype).to_list()
    assert log.events["item_id"].dtype == dtype


def test_ids_of_other_types_become_what_they_stand_for() -> None:
    log = EventLog.from_frame(frame(user_id=pl.Series(["x", "y", "x"], dtype=pl.Categorical), item_id=[1.0, 2.0, 1.0]))
    assert log.events["user_id"].to_list() == ["x", "y", "x"]
    assert log.events["item_id"].to_list() == [1, 2, 1]
    assert log.events["item_id"].dtype == pl.Int64
    assert any("read as integers" in note for note in log.notes)


def test_pandas_frames() -> None:
    given = pd.DataFrame(
        {"user": [1, 2], "item": ["007", "7"], "time": pd.to_datetime(["2024-04-01", "2024-04-02"]), "rating": [1.5, None]}
    )
    log = EventLog.from_frame(given, items=pd.DataFrame({"item": ["7"], "title": ["Seven"]}))
    assert log.events.rows() == [(1, "007", APRIL, 1.5), (2, "7", APRIL + DAY, None)]
    assert log.items is not None
    assert log.items.rows() == [("7", "Seven")]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([APRIL // 1000 + k for k in range(3)], "seconds"),
        ([APRIL / 1000 + k for k in range(3)], "seconds"),
        ([str(APRIL // 1000 + k) for k in range(3)], "seconds"),
        ([APRIL + 1000 * k for k in range(3)], "milliseconds"),
        ([(APRIL + 1000 * k) * 1000 for k in range(3)], "microseconds"),
        ([(APRIL + 1000 * k) * 1_000_000 for k in range(3)], "nanoseconds"),
        (["2024-04-01T00:00:00Z", "2024-04-01 02:00:01+02:00", "2024-04-01T00:00:02.000"], "ISO"),
        (["2024-04-01", "2024-04-01 00:00:01 UTC", "2024-04-01 00:00:02"], "ISO"),
        ([dt.datetime(2024, 4, 1, 0, 0, k) for k in range(3)], "date-times, taken as UTC"),
        (pl.Series([APRIL + 1000 * k for k in range(3)]).cast(pl.Datetime("ms", "Europe/Berlin")), "date-times"),
        (pl.Series([APRIL + 1000 * k for k in range(3)]).cast(pl.Datetime("ms")).cast(pl.Datetime("ns")), "date-times"),
    ],
)
def test_time_units_are_told_and_said(times: Any, said: str) -> None:
    log = EventLog.from_frame(frame(timestamp=times))
    assert log.events["timestamp"].to_list() == [APRIL, APRIL + 1000, APRIL + 2000]
    assert log.time_kind == "timestamp"
    assert any(f"times are {said}" in note for note in log.notes)
    assert "times run from 2024-04-01T00:00:00Z to 2024-04-01T00:00:02Z" in log.notes


@pytest.mark.parametrize("times", [[20240401, 20240402, 20240403], [dt.date(2024, 4, 1 + k) for k in range(3)]])
def test_days(times: Any) -> None:
    assert EventLog.from_frame(frame(timestamp=times)).events["timestamp"].to_list() == [APRIL, APRIL + DAY, APRIL + 2 * DAY]


def test_a_unit_that_is_given_is_used() -> None:
    log = EventLog.from_frame(frame(timestamp=[86_400, 86_401, 86_402]), time_unit="s")
    assert log.events["timestamp"][0] == DAY
    log = EventLog.from_frame(frame(timestamp=[86_400, 86_401, 86_402]), time_kind="timestamp")
    assert log.time_kind == "timestamp"


def test_ranks_are_an_order() -> None:
    log = EventLog.from_frame(frame(timestamp=[2, 0, 1]))
    assert (log.time_kind, log.events["timestamp"].to_list()) == ("order", [2, 0, 1])
    assert any("read as an order" in note and "data.time_kind=timestamp" in note for note in log.notes)


def test_order_when_asked_for() -> None:
    log = EventLog.from_frame(frame(pos=[4, 5, 6]), time_kind="order")
    assert log.events["timestamp"].to_list() == [4, 5, 6]
    log = EventLog.from_frame(frame(), time_kind="order")
    assert (log.time_kind, log.events["timestamp"][0]) == ("order", APRIL)
    log = EventLog.from_frame(frame(timestamp=[0.5, 2.5, 0.7]), time_kind="order")
    assert log.events["timestamp"].to_list() == [1, 3, 2]
    log = EventLog.from_frame(frame(timestamp=["2024-04-02", "2024-04-01", "2024-04-03"]), time_kind="order")
    assert log.events["timestamp"].arg_sort().to_list() == [1, 0, 2]


def test_without_a_time_column_the_rows_are_the_order() -> None:
    log = EventLog.from_frame(frame(timestamp=None, pos=[9, 8, 7]))
    assert (log.time_kind, log.events["timestamp"].to_list()) == ("order", [0, 1, 2])
    assert any("no time column" in note for note in log.notes)


def test_the_filter_keeps_rows_and_says_so() -> None:
    log = EventLog.from_frame(frame(rating=[5, 3, None]), where="rating >= 4")
    assert log.events["user_id"].to_list() == ["a"]
    assert "where 'rating >= 4' kept 1 rows of 3 and dropped 2" in log.notes
    log = EventLog.from_frame(frame(rating=[5, 3, 4]).rename({"rating": "rating:float"}), where="rating > 3 AND user_id IN ('b')")
    assert log.events["user_id"].to_list() == ["b"]


def test_rows_are_counted_as_in_the_file_even_after_a_filter() -> None:
    data = frame(rating=[1, 5, 5], item_id=[None, 2, None])
    assert "log.csv, row 3, column 'item_id': nothing (null) is no item id" in error_of(data, where="rating > 3")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"item_id": [1, None, 2]},
            ["row 2, column 'item_id': nothing (null) is no item id", "data.where='\"item_id\" IS NOT NULL'"],
        ),
        ({"user_id": ["a", "b", " "]}, ["row 3, column 'user_id': ' ' is no user id"]),
        ({"item_id": [1.0, 2.5, 3.0]}, ["row 2, column 'item_id': 2.5 is no item id", "Write such ids as strings"]),
        ({"item_id": [1.0, 2.0, float("nan")]}, ["row 3, column 'item_id': nan"]),
        ({"item_id": [1.0, 2.0, 1e30]}, ["row 3", "too large"]),
        ({"item_id": [[1], [2], [3]]}, ["column 'item_id': List(Int64) cannot be a item id", "integers or strings"]),
        ({"timestamp": [APRIL, None, APRIL]}, ["row 2, column 'timestamp': nothing (null) is no time"]),
        ({"timestamp": [1.7e9, float("nan"), 1.7e9]}, ["row 2, column 'timestamp'"]),
        ({"timestamp": [1.7e9, 1.7e9, float("inf")]}, ["row 3, column 'timestamp': inf is an impossible time"]),
        (
            {"timestamp": [APRIL, APRIL, -5]},
            ["row 3, column 'timestamp': -5 is an impossible time", "data.where='\"timestamp\" >= 0'"],
        ),
        ({"timestamp": [1_700_000_000, APRIL, 1_700_000_000]}, [f"row 2, column 'timestamp': {APRIL}", "2200", "data.time_unit"]),
        (
            {"timestamp": ["2024-04-01", "yesterday", "x"]},
            ["row 2, column 'timestamp': 'yesterday' is no ISO date", "2024-03-31"],
        ),
        ({"timestamp": ["1700000000", "17e", "1700000000"]}, ["row 2, column 'timestamp': '17e' is no number"]),
        ({"timestamp": ["1969-12-31", "2024-04-01", "2024-04-01"]}, ["row 1", "'1969-12-31' is an impossible time: before 1970"]),
        ({"timestamp": ["2024-04-01", "2200-01-01", "2024-04-01"]}, ["row 2", "after 2200"]),
        (
            {"timestamp": [dt.date(2024, 4, 1), dt.date(1950, 1, 1), dt.date(2024, 4, 1)]},
            ["row 2", "'1950-01-01'", "before 1970"],
        ),
        ({"timestamp": [True, False, True]}, ["Boolean cannot be a time"]),
        ({"rating": ["5", "good", "3"]}, ["row 2, column 'rating': 'good' is no number", "data.columns.value=NAME"]),
    ],
)
def test_a_bad_value_is_named_with_its_place_and_its_mending(changes: dict[str, Any], expected: list[str]) -> None:
    message = error_of(frame(**changes))
    assert message.startswith("log.csv")
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("changes", "arguments", "expected"),
    [
        (
            {"user_id": None, "usr_id": [1, 2, 3]},
            {},
            ["no column is recognised as the user", "'usr_id'", "data.columns.user=NAME", "Perhaps"],
        ),
        ({"item_id": None}, {}, ["no column is recognised as the item", "data.columns.item=NAME", "movie_id"]),
        ({"timestamp": None}, {"time_kind": "timestamp"}, ["no column is recognised as the time", "data.columns.time=NAME"]),
        (
            {"member": [1, 2, 3]},
            {"columns": ColumnOptions(user="membre")},
            ["no column 'membre'", "did you mean 'member'?", "data.columns.user"],
        ),
        ({}, {"columns": ColumnOptions(user="item_id", item="item_id")}, ["two roles"]),
        ({}, {"time_unit": "iso"}, ["time_unit=iso needs strings"]),
        ({"tags": [["x"], [], []]}, {"columns": ColumnOptions(value="tags")}, ["cannot be a value"]),
        ({}, {"where": "ratng > 3"}, ["where='ratng > 3'", "ratng", "Columns: user_id (String)"]),
        ({}, {"where": "item_id >"}, ["where='item_id >' cannot be used"]),
        ({}, {"where": "item_id + 1"}, ["gives Int64, not true or false"]),
        ({}, {"where": "count(*) > 1"}, ["not true or false for each row"]),
        ({}, {"where": "item_id > 5"}, ["keeps none of the 3 rows", "Loosen"]),
        ({}, {"where": "user_id > 5"}, ["cannot compare", "user_id (String)"]),
    ],
)
def test_a_wrong_column_or_filter_is_explained(changes: dict[str, Any], arguments: dict[str, Any], expected: list[str]) -> None:
    message = error_of(frame(**changes), **arguments)
    assert message.startswith("log.csv")
    for part in expected:
        assert part in message


@pytest.mark.parametrize("name", ["user", "time", "timestamp", "date", "item:token", "item_id"])
def test_the_filter_that_a_message_advises_works(name: str) -> None:
    role = "time" if name in ("time", "timestamp", "date") else "user" if name == "user" else "item"
    good = {"user": ["u"] * 3, "item": ["i"] * 3, "time": [APRIL] * 3}
    data = pl.DataFrame({name if key == role else key: values for key, values in good.items()})
    data = data.with_columns(pl.when(pl.int_range(pl.len()) != 1).then(pl.col(name)).alias(name))
    advice = re.search(r"data\.where='(.+)'", error_of(data))
    assert advice
    assert EventLog.from_frame(data, where=advice[1]).events.height == 2


def test_what_is_no_frame_or_empty_is_refused() -> None:
    assert "a polars or pandas frame is needed, not dict" in error_of({"user_id": [1]})
    assert "there are no rows" in error_of(frame().clear())
    assert "there are no rows" in error_of(pl.DataFrame())
    mixed = pd.DataFrame({"user_id": [1, "x"], "item_id": [1, 2], "timestamp": [1, 2]}, dtype=object)
    assert "the pandas frame cannot be read" in error_of(mixed)


def test_words_under_a_usual_name_of_values_stay_a_feature() -> None:
    log = EventLog.from_frame(frame(score=["high", "low", "high"], action=[["x"], ["y"], ["z"]]))
    assert {"score", "action"} <= set(log.events.columns)
    assert sum("kept as a feature" in note for note in log.notes) == 2


def test_items_get_the_type_of_the_events() -> None:
    items = pl.DataFrame(
        {"asin": ["1", "2", "02", "x", "2"], "name": ["One", "", "b", "c", "d"], "genres": [["A", "B"], [], ["C"], None, ["D"]]}
    )
    log = EventLog.from_frame(frame(), items=items)
    assert log.items is not None
    assert log.items.rows() == [(1, "One", "A|B"), (2, None, None)]
    assert any("2 rows of items have ids that are not Int64" in note for note in log.notes)
    assert any("1 rows of items repeat an item" in note for note in log.notes)
    assert any("describes 2 of the 2 items" in note for note in log.notes)
    log = EventLog.from_frame(frame(item_id=["1", "01", "2"]), items=pl.DataFrame({"item_id": [1, 2], "category_id": [7, 8]}))
    assert log.items is not None
    assert log.items.rows() == [("1", "7"), ("2", "8")]


def test_items_without_a_title_show_their_keywords() -> None:
    items = pl.DataFrame({"item_id": [1, 2], "title": ["One", None], "keywords": ["first", "second"], "size": [1.5, 2.5]})
    log = EventLog.from_frame(frame(), items=items)
    assert log.items is not None
    assert log.items.columns == ["item_id", "title", "keywords", "size"]
    assert log.items["title"].to_list() == ["One", "second"]


def test_nested_categories_are_joined() -> None:
    items = pl.DataFrame({"item_id": [1, 2], "categories": [[["Beauty", "Nails"], ["Gifts"]], [["Beauty"]]]})
    log = EventLog.from_frame(frame(), items=items)
    assert log.items is not None
    assert log.items["category"].to_list() == ["Beauty|Nails|Gifts", "Beauty"]


def test_items_without_ids_are_refused() -> None:
    assert "items: no column is recognised as the item" in error_of(frame(), items=pl.DataFrame({"title": ["x"]}))
    assert "items, row 2, column 'item_id': nothing (null)" in error_of(frame(), items=pl.DataFrame({"item_id": [1, None]}))


def test_describe_counts_what_is_there() -> None:
    data = frame(rating=[5, 3, 4], event=["view", "buy", "view"], timestamp=[APRIL, APRIL, APRIL + DAY])
    log = EventLog.from_frame(data, items=pl.DataFrame({"item_id": [1, 9], "title": ["One", "Nine"]}))
    told = json.loads(json.dumps(log.describe()))
    assert (told["events"], told["users"], told["items"], told["density"]) == (3, 2, 2, 0.75)
    assert told["time"] == {
        "kind": "timestamp",
        "first": "2024-04-01T00:00:00Z",
        "last": "2024-04-02T00:00:00Z",
        "days": 1.0,
        "events_at_the_time_of_another_of_the_user": 1,
    }
    lengths = told["history_length"]
    assert (lengths["min"], lengths["max"], lengths["mean"], lengths["users_with_one_event"]) == (1, 2, 1.5, 1)
    assert told["popularity"]["top_items"][0] == {"item_id": 1, "events": 2, "title": "One"}
    assert told["popularity"]["top_1_percent_items_share"] == pytest.approx(2 / 3)
    assert told["behaviors"] == {"view": 2, "buy": 1}
    assert told["value"] == {"min": 3.0, "mean": 4.0, "max": 5.0, "missing": 0}
    assert told["item_table"]["items_of_the_log_with_title"] == 1
    assert told["repeats"] == {"share_of_events_on_an_item_the_user_already_had": 0.0, "rows_equal_in_user_item_and_time": 0}
    assert told["notes"] == list(log.notes)


def test_describe_finds_repeats_and_ranks() -> None:
    log = EventLog.from_frame(frame(item_id=[1, 1, 1], timestamp=[3, 3, 1], feature=[0, 1, 2]))
    told = log.describe()
    assert told["repeats"] == {
        "share_of_events_on_an_item_the_user_already_had": pytest.approx(1 / 3),
        "rows_equal_in_user_item_and_time": 1,
    }
    assert (told["time"]["first_rank"], told["time"]["last_rank"]) == (1, 3)
    assert told["features"] == {"feature": "Int64"}
    assert told["item_table"] is None


def test_write_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    log = EventLog.from_frame(frame(tags=[["x"], [], []]))
    with pytest.raises(LargeRecError, match=r"log\.xlsx: cannot tell the format to write.*\.parquet"):
        log.write(tmp_path / "log.xlsx")
    with pytest.raises(LargeRecError, match=r"column 'tags' holds List\(String\), which CSV cannot"):
        log.write(tmp_path / "log.csv")
    log.write(tmp_path / "new" / "log.parquet")
    assert load_log(DataOptions(path=str(tmp_path / "new" / "log.parquet"))).events.equals(log.events)


WORDS = st.text("a0 ,;'\"\t#é", min_size=1, max_size=4).filter(str.strip)
IDS = st.one_of(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.lists(WORDS, min_size=1, max_size=4))
UNITS = st.sampled_from([("s", 1000, 1), ("us", 1, 1000), ("ns", 1, 10**6)])


@st.composite
def logs(draw: st.DrawFn) -> EventLog:
    """Random logs with any ids, ranks or times, with and without titles."""
    users, items = draw(IDS), draw(IDS)
    kind = draw(st.sampled_from(["timestamp", "order"]))
    times = st.integers(10**11, 7 * 10**12) if kind == "timestamp" else st.integers(0, 10**15)
    rows = draw(st.lists(st.tuples(st.sampled_from(users), st.sampled_from(items), times), min_size=1, max_size=8))
    data = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    titles = (
        pl.DataFrame({"item_id": items, "title": [draw(st.text("ab'\", \n", min_size=1)) for _ in items]})
        if draw(st.booleans())
        else None
    )
    return EventLog.from_frame(data, items=titles, time_unit="ms" if kind == "timestamp" else "auto", time_kind=kind)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(log=logs(), suffix=st.sampled_from([".parquet", ".csv", ".csv.gz"]))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, log: EventLog, suffix: str) -> None:
    path = tmp_path_factory.mktemp("written") / f"log{suffix}"
    log.write(path)
    unit: Any = {"time_unit": "ms"} if suffix != ".parquet" and log.time_kind == "timestamp" else {}
    again = load_log(DataOptions(path=str(path), time_kind="auto" if suffix == ".parquet" else log.time_kind, **unit))
    if suffix != ".parquet":  # text cannot tell the string "0" from the number
        log = EventLog(log.events.cast({"user_id": pl.String, "item_id": pl.String}), log.items, log.time_kind, (), "")
        again = EventLog(again.events.cast({"user_id": pl.String, "item_id": pl.String}), again.items, again.time_kind, (), "")
    assert again.events.equals(log.events)
    assert again.events.schema == log.events.schema
    assert again.time_kind == log.time_kind
    assert (again.items is None) == (log.items is None)
    if again.items is not None and log.items is not None:
        assert again.items["title"].to_list() == log.items["title"].to_list()


@settings(deadline=None, max_examples=40)
@given(times=st.lists(st.integers(2 * 10**11, 7 * 10**12), min_size=1, max_size=9), unit=UNITS)
def test_a_log_means_the_same_in_every_unit(times: list[int], unit: tuple[str, int, int]) -> None:
    name, divisor, factor = unit
    data = pl.DataFrame(
        {"user_id": [1] * len(times), "item_id": [1] * len(times), "timestamp": [t // divisor * factor for t in times]}
    )
    log = EventLog.from_frame(data)
    assert log.events["timestamp"].to_list() == [t // divisor * divisor for t in times]
    assert EventLog.from_frame(data, time_unit=name).events.equals(log.events)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [20240231, 0, 99999999])
def test_one_wrong_date_as_yyyymmdd_is_named_and_does_not_turn_the_clock_off(wrong: int) -> None:
    times = [*(20240101 + n % 28 for n in range(60)), wrong]
    data = pl.DataFrame({"user": ["u"] * 61, "item": range(61), "date": times})
    said = f"row 61, column 'date': {wrong} is no date, though nearly all others are, written as yyyymmdd"
    assert said in error_of(data)
    log = EventLog.from_frame(data, on_bad_rows="drop")
    assert log.time_kind == "timestamp" and log.events.height == 60
    assert EventLog.from_frame(data, time_kind="order").time_kind == "order"
    ranks = pl.DataFrame({"user": ["u"] * 100, "item": range(100), "time": range(20240101, 20240201)})
    assert EventLog.from_frame(ranks).time_kind == "order"


@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), "inf"])
def test_an_infinite_value_is_named(wrong: Any) -> None:
    values = ["4.5", wrong, "3"] if isinstance(wrong, str) else [4.5, wrong, 3.0]
    data = pl.DataFrame({"user": ["u"] * 3, "item": [1, 2, 3], "time": [10**9] * 3, "rating": values})
    assert "row 2, column 'rating'" in error_of(data) and "is an impossible value: infinite" in error_of(data)
    assert EventLog.from_frame(data, on_bad_rows="drop").events["value"].to_list() == [4.5, 3.0]
