"""load_log: files and folders, the item table beside the events, and the real sets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from logs import put

from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import ColumnOptions
from largerec.simulate import SimulateOptions, simulate

EVENTS = b"user_id,item_id,timestamp\n1,10,1300000000\n2,20,1300000060\n"
ITEMS = b"item_id,title,category\n10,Ten,A\n20,Twenty,B\n"
RATINGS = b"userId,movieId,rating,timestamp\n1,10,4.0,1300000000\n2,20,3.5,1300000060\n"


def error_of(**options: Any) -> str:
    with pytest.raises(LargeRecError) as caught:
        load_log(DataOptions(**options))
    return str(caught.value)


def titles(log: Any) -> list[str] | None:
    return None if log.items is None else log.items["title"].to_list()


def test_without_a_path_the_log_is_generated() -> None:
    small = SimulateOptions(users=50, items=60, events=600, categories=3, seed=5)
    assert load_log(DataOptions(simulate=small)).events.equals(simulate(small).events)


def test_a_file_with_the_items_beside_it(tmp_path: Path) -> None:
    put(tmp_path, log__csv=EVENTS, log__items__csv=ITEMS, items__csv=ITEMS.replace(b"Ten", b"Other"))
    log = load_log(DataOptions(path=str(tmp_path / "log.csv")))
    assert log.events.rows() == [(1, 10, 1_300_000_000_000), (2, 20, 1_300_000_060_000)]
    assert titles(log) == ["Ten", "Twenty"]
    assert log.source == str(tmp_path / "log.csv")
    assert "items are described by log.items.csv" in log.notes


def test_items_that_share_nothing_with_the_events_are_not_used(tmp_path: Path) -> None:
    put(tmp_path, log__csv=EVENTS, movies__csv=b"movieId,title,genres\n1,One,A\n")
    log = load_log(DataOptions(path=str(tmp_path / "log.csv")))
    assert log.items is None
    assert any("shares no item" in note for note in log.notes)


def test_items_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, log__csv=EVENTS, names__csv__gz=ITEMS)
    assert titles(load_log(DataOptions(path=str(tmp_path / "log.csv"), items="names.csv.gz"))) == ["Ten", "Twenty"]
    monkeypatch.chdir(tmp_path)
    assert titles(load_log(DataOptions(path="log.csv", items="names.csv.gz"))) == ["Ten", "Twenty"]
    message = error_of(path="log.csv", items=str(tmp_path / "name.csv.gz"))
    assert "data.items=" in message
    assert "did you mean" in message


def test_options_reach_the_reading(tmp_path: Path) -> None:
    put(tmp_path, log__csv=b"who,what,when,stars,keep\n01,a,5,4,1\n2,b,6,5,0\n3,c,7,1,1\n")
    columns = ColumnOptions(user="who", item="what", time="when", value="stars")
    log = load_log(
        DataOptions(path=str(tmp_path / "log.csv"), columns=columns, where="keep = 1", time_kind="timestamp", time_unit="s")
    )
    assert log.events.rows() == [("01", "a", 5000, 4.0, 1), ("3", "c", 7000, 1.0, 1)]
    assert load_log(DataOptions(path=str(tmp_path / "log.csv"), columns=columns)).time_kind == "order"


@pytest.mark.parametrize(
    ("files", "read"),
    [
        ({"events__csv__gz": EVENTS, "items__tsv": ITEMS.replace(b",", b"\t")}, "events.csv.gz"),
        ({"anything__csv": EVENTS, "README__md": b"words"}, "anything.csv"),
        ({"a__csv": EVENTS, "a__items__csv": ITEMS}, "a.csv"),
        ({"a__csv": EVENTS, "users__csv": b"user_id,age\n1,30\n", "b__jsonl": b'{"item_id": 10}\n'}, "a.csv"),
        ({"ratings__csv": RATINGS, "movies__csv": ITEMS, "tags__csv": RATINGS}, "ratings.csv"),
        ({"ratings__dat": b"1::10::4::1300000000\n2::20::3::1300000060\n", "movies__dat": b"10::Ten::A\n"}, "ratings.dat"),
        ({"u__data": b"1\t10\t4\t1300000000\n2\t20\t3\t1300000060\n", "u__user": b"1|24"}, "u.data"),
    ],
)
def test_the_events_of_a_folder_are_found(tmp_path: Path, files: dict[str, bytes], read: str) -> None:
    log = load_log(DataOptions(path=str(put(tmp_path, **files))))
    assert log.events["item_id"].to_list() == [10, 20]
    assert log.events["timestamp"].to_list() == [1_300_000_000_000, 1_300_000_060_000]
    assert log.source == str(tmp_path / read)
    assert any(f"of the folder {tmp_path.name}, {read} is read" in note for note in log.notes)


def test_other_known_event_files_of_a_folder_are_named(tmp_path: Path) -> None:
    log = load_log(DataOptions(path=str(put(tmp_path, ratings__csv=RATINGS, events__csv=EVENTS))))
    assert any("the other event files (events.csv) are not" in note for note in log.notes)


def test_the_ordered_movielens_file_needs_no_options(tmp_path: Path) -> None:
    table = pl.DataFrame({"user_id": [1, 1, 2], "movie_id": [5, 6, 5], "rating": [3, 4, 5], "pos": [1, 0, -1]})
    table.write_parquet(tmp_path / "interactions_ordered.parquet")
    for path in (tmp_path, tmp_path / "interactions_ordered.parquet"):
        log = load_log(DataOptions(path=str(path)))
        assert (log.time_kind, log.events.rows()) == ("order", [(1, 5, 1, 3.0), (1, 6, 0, 4.0)])
        assert any("'pos' is the order" in note for note in log.notes)
    log = load_log(DataOptions(path=str(tmp_path), where="pos >= 0 AND rating > 3"))
    assert log.events.height == 1
    message = error_of(path=str(tmp_path), columns=ColumnOptions(time="pos"))
    assert "row 3, column 'pos': -1" in message
    assert "data.where='\"pos\" >= 0'" in message


def test_paths_that_lead_nowhere_are_explained(tmp_path: Path) -> None:
    put(tmp_path, ratings__csv=EVENTS)
    message = error_of(path=str(tmp_path / "rating.csv"))
    assert f"there is no such file or folder; did you mean {tmp_path / 'ratings.csv'}?" in message
    assert "there is no such file or folder. Give" in error_of(path=str(tmp_path / "x"))
    assert "nor a folder" in error_of(path=str(tmp_path / "none" / "x.csv"))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ["no file of events is recognised; the folder holds nothing", "ratings.csv", "data.path"]),
        ({"a__txt": b"1 2\n", "b__md": b"x"}, ["the folder holds a.txt, b.md", "data.columns.user=NAME"]),
        ({"a__csv": b"x,y\n", "b__csv": b"x,y\n"}, ["no file of events is recognised"]),
        ({"a__csv": EVENTS, "b__csv": EVENTS}, ["several files could hold the events: a.csv, b.csv", "data.path="]),
        ({"only__csv": b"x,item_id\n1,2\n"}, ["only.csv: no column is recognised as the user"]),
        ({"broken__csv__gz": b""}, ["broken.csv.gz: the file is empty"]),
        ({"log__csv": EVENTS, "log__items__csv": b"name\nx\n"}, ["log.items.csv: no column is recognised as the item"]),
        ({"log__csv": EVENTS, "log__items__csv": b""}, ["log.items.csv: the file is empty"]),
    ],
)
def test_folders_that_cannot_be_read_are_explained(tmp_path: Path, files: dict[str, bytes], expected: list[str]) -> None:
    message = error_of(path=str(put(tmp_path, **files)))
    assert message.startswith(str(tmp_path))
    for part in expected:
        assert part in message


def test_unknown_options_are_refused() -> None:
    with pytest.raises(LargeRecError, match=r"unknown option 'pth' in DataOptions; did you mean 'path'\?"):
        DataOptions.model_validate({"pth": "x"})
    with pytest.raises(LargeRecError, match=r"unknown option 'usr' in ColumnOptions; did you mean 'user'\?"):
        DataOptions.model_validate({"columns": {"usr": "x"}})


# --- folders of many files, nested tables, known sets by their shape


def test_a_hive_partitioned_folder_is_one_log(tmp_path: Path) -> None:
    for day, user in (("2024-03-02", 2), ("2024-03-01", 1)):
        folder = tmp_path / "log" / f"day={day}" / "shop=007"
        folder.mkdir(parents=True)
        pl.DataFrame({"user_id": [user], "item_id": [10 * user], "timestamp": [1_300_000_000 + user]}).write_parquet(
            folder / "part-0.parquet"
        )
        (folder / "_SUCCESS").write_bytes(b"")
    log = load_log(DataOptions(path=str(tmp_path / "log")))
    assert log.events.select("user_id", "item_id", "day", "shop").rows() == [
        (1, 10, "2024-03-01", "007"),
        (2, 20, "2024-03-02", "007"),
    ]
    assert any("2 files of the folder log are read" in note for note in log.notes)
    assert any("columns from the names of folders or files: day, shop" in note for note in log.notes)
    put(tmp_path / "log" / "day=2024-03-02" / "shop=007", **{"part-1__csv": b"user_id,item_id,timestamp\n3,30,\n"})
    assert "part-1.csv, row 1, column 'timestamp': nothing (null) is no time" in error_of(path=str(tmp_path / "log"))
    (tmp_path / "log" / "extra.csv").write_bytes(EVENTS)
    assert "Put all files of a log under the same key=value folders" in error_of(path=str(tmp_path / "log"))


def test_partitions_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for hour in (10, 9, 2):
        (tmp_path / f"hour={hour}").mkdir()
        put(tmp_path / f"hour={hour}", a__csv=f"user_id,item_id,timestamp\n1,{hour},1300000000\n".encode())
    assert load_log(DataOptions(path=str(tmp_path))).events["item_id"].to_list() == [2, 9, 10]


def test_a_partition_that_is_a_column_too_is_refused(tmp_path: Path) -> None:
    (tmp_path / "user_id=1").mkdir()
    put(tmp_path / "user_id=1", a__csv=EVENTS)
    assert "'user_id' is a column of the file and a folder's key" in error_of(path=str(tmp_path))
    (tmp_path / "user_id=1" / "a.csv").write_bytes(b"item_id,timestamp\n10,1300000000\n")
    assert load_log(DataOptions(path=str(tmp_path))).events.rows() == [(1, 10, 1_300_000_000_000)]


def test_parts_side_by_side_are_one_log_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = {f"part-{n}__csv": f"user_id,item_id,timestamp\n1,{n},1300000000\n".encode() for n in (10, 9, 2)}
    log = load_log(DataOptions(path=str(put(tmp_path, items__csv=ITEMS, **files))))
    assert log.events["item_id"].to_list() == [2, 9, 10]
    assert titles(log) == ["Ten", "Twenty"]
    put(tmp_path, **{"part-11__csv": b"user_id,item_id,timestamp\n1,x,1300000000\n"})
    assert load_log(DataOptions(path=str(tmp_path))).events["item_id"].to_list() == ["2", "9", "10", "x"]
    put(tmp_path, **{"part-12__csv": b"user_id,item_id,timestamp\n1,5,1300000000\n1,6,x\n"})
    assert f"{tmp_path / 'part-12.csv'}, row 2, column 'timestamp': 'x' is no number" in error_of(path=str(tmp_path))


def test_one_row_a_user_becomes_one_row_an_event(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {"uid": [7, 8, 9], "item_ids": [[1, 2], [], [3]], "timestamps": [[1_300_000_000, 1_300_000_060], [], [1_300_000_120]],
         "country": ["FR", "DE", "PT"], "tags": [["a"], ["b"], ["c", "d"]]}
    )  # fmt: skip
    table.write_parquet(tmp_path / "users.parquet")
    log = load_log(DataOptions(path=str(tmp_path / "users.parquet")))
    assert log.events.rows() == [
        (7, 1, 1_300_000_000_000, "FR"), (7, 2, 1_300_000_060_000, "FR"), (9, 3, 1_300_000_120_000, "PT")
    ]  # fmt: skip
    notes = " ".join(log.notes)
    assert "3 rows hold 3 events" in notes and "1 rows hold no events" in notes and "'tags' hold lists of other lengths" in notes
    broken = table.with_columns(pl.Series("timestamps", [[1_300_000_000, 1_300_000_060], [], [1, 2]]))
    broken.write_parquet(tmp_path / "users.parquet")
    message = error_of(path=str(tmp_path / "users.parquet"))
    assert "row 3, column 'timestamps': 2 times for 1 items of 'item_ids'" in message
    table.drop("timestamps").write_parquet(tmp_path / "users.parquet")
    log = load_log(DataOptions(path=str(tmp_path / "users.parquet")))
    assert (log.time_kind, log.events["item_id"].to_list()) == ("order", [1, 2, 3])


def test_a_bad_value_in_a_list_is_found_in_its_row(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [7, 8], "item_id": [[1, 2], [3, None]]}).write_parquet(tmp_path / "users.parquet")
    assert "users.parquet, row 2, column 'item_id': nothing (null) is no item id" in error_of(
        path=str(tmp_path / "users.parquet")
    )


def test_yambda_by_its_column_names(tmp_path: Path) -> None:
    table = pl.DataFrame({"uid": [1, 1], "timestamp": [5, 10], "item_id": [3, 4], "event_type": ["listen", "like"]})
    table = table.with_columns(is_organic=pl.Series([1, 0]), played_ratio_pct=pl.Series([90, 3]))
    table.write_parquet(tmp_path / "multi_event.parquet")
    log = load_log(DataOptions(path=str(tmp_path)))
    assert (log.time_kind, log.events["behavior"].to_list()) == ("order", ["listen", "like"])
    clock = load_log(DataOptions(path=str(tmp_path), time_kind="timestamp", time_unit="s"))
    assert clock.events["timestamp"].to_list() == [5000, 10_000]


RECBOLE = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t4\t1300000000\n2\t20\t5\t1300000060\n"


def test_recbole_items_lie_beside_the_interactions(tmp_path: Path) -> None:
    items = b"item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\tTen Men\tA B\n20\tTwenty\tC\n"
    put(tmp_path, **{"ml__inter": RECBOLE, "ml__item": items, "ml__user": b"user_id:token\tage:token\n1\t24\n"})
    for path in (tmp_path, tmp_path / "ml.inter"):
        log = load_log(DataOptions(path=str(path)))
        assert (log.events.height, titles(log)) == (2, ["Ten Men", "Twenty"])


REVIEWS_2018 = b'{"overall": 5.0, "reviewerID": "A1", "asin": "B1", "unixReviewTime": 1300000000, "style": {"Size:": " L"}}\n'
REVIEWS_2023 = (
    b'{"rating": 5.0, "title": "Good", "text": "x", "images": [{"small": "u"}], "asin": "B0", "parent_asin": "B1", '
    b'"user_id": "A1", "timestamp": 1300000000000, "helpful_vote": 0, "verified_purchase": true}\n'
)
META_2014 = (
    b"{'asin': 'B1', 'title': \"It's one\", 'price': 3.5, 'related': {'also_bought': ['B2']}, 'categories': [['A', 'B']]}\n"
)
META_2023 = b'{"parent_asin": "B1", "title": "One", "price": "None", "details": {"Brand": "x"}, "categories": ["A", "B"]}\n'


@pytest.mark.parametrize(
    ("files", "title"),
    [
        ({"reviews_Beauty_5__json__gz": REVIEWS_2018, "meta_Beauty__json__gz": META_2014}, "It's one"),
        ({"Beauty_5__json": REVIEWS_2018, "meta_Beauty__json": META_2014}, "It's one"),
        ({"All_Beauty__jsonl__gz": REVIEWS_2023, "meta_All_Beauty__jsonl__gz": META_2023}, "One"),
    ],
)
def test_amazon_reviews_and_their_metadata(tmp_path: Path, files: dict[str, bytes], title: str) -> None:
    log = load_log(DataOptions(path=str(put(tmp_path, **files))))
    assert log.events.select("user_id", "item_id", "timestamp", "value").rows() == [("A1", "B1", 1_300_000_000_000, 5.0)]
    assert titles(log) == [title]
    assert log.items is not None and log.items["category"].to_list() == ["A|B"]


@pytest.mark.parametrize("line", [b"A1YJEY40YUW4SE,B004756YJA,5.0,1300000000\n", b"B004756YJA,A1YJEY40YUW4SE,5.0,1300000000\n"])
def test_amazon_ratings_without_a_header(tmp_path: Path, line: bytes) -> None:
    log = load_log(DataOptions(path=str(put(tmp_path, ratings_Beauty__csv=line * 2) / "ratings_Beauty.csv")))
    assert log.events.rows() == [("A1YJEY40YUW4SE", "B004756YJA", 1_300_000_000_000, 5.0)] * 2
    assert any("the file has no header" in note for note in log.notes)


TRIVAGO = b"""user_id,session_id,timestamp,step,action_type,reference,platform,city,device,current_filters,impressions,prices
U,s1,1541599523,1,filter selection,Pool,FR,x,tablet,,,
U,s1,1541599524,2,interaction item image,10,FR,x,tablet,,,
U,s1,1541599525,3,clickout item,20,FR,x,tablet,,10|20|30,70|80|90
"""


def test_trivago_by_its_columns(tmp_path: Path) -> None:
    log = load_log(DataOptions(path=str(put(tmp_path, train__csv=TRIVAGO))))
    found = log.events.select("user_id", "item_id", "timestamp", "behavior", "impressions", "prices", "user_id_given").rows()
    assert found == [
        ("s1", 10, 1_541_599_524_000, "interaction item image", None, None, "U"),
        ("s1", 20, 1_541_599_525_000, "clickout item", [10, 20, 30], [70, 80, 90], "U"),
    ]
    assert any("1 actions are not on an item and left out: filter selection 1" in note for note in log.notes)
    path = str(tmp_path / "train.csv")
    asked = DataOptions(path=path, columns=ColumnOptions(user="user_id"), where="action_type = 'clickout item'")
    assert load_log(asked).events["user_id"].to_list() == ["U"]
    (tmp_path / "train.csv").write_bytes(TRIVAGO.replace(b"1541599525", b"-5"))
    assert "train.csv, row 3, column 'timestamp': -5" in error_of(path=path)


def test_diginetica_periods_are_read_in_order(tmp_path: Path) -> None:
    log = load_log(DataOptions(path=str(put(tmp_path, period_10__txt=b"3 30\n", period_2__txt__gz=b"1 10\n1 20\n"))))
    assert (log.time_kind, log.events.rows()) == ("order", [(1, 10, 0, 2), (1, 20, 1, 2), (3, 30, 2, 10)])
    put(tmp_path, period_10__txt=b"3 30\n4\n")
    assert "period_10.txt, row 2: 1 fields ['4'], but there are 2 columns" in error_of(path=str(tmp_path))


SIGNALS = "is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view"
KUAIRAND = f"""user_id,video_id,time_ms,{SIGNALS}
1,10,1650812741436,1,0,0,0,0,0,1
1,10,1650812741436,0,0,0,0,0,0,0
2,20,1650812741400,0,0,0,0,0,0,0
"""
WATCHES = (
    b'{"user_id":1,"watch":[10,30,10],"long_watch":[10,99],"like":[30]}\n{"user_id":3,"watch":[],"long_watch":[],"like":[]}\n'
)


def test_kuairand_with_earlier_watches(tmp_path: Path) -> None:
    put(tmp_path, log_standard_x__csv=KUAIRAND.encode(), watch_history_x__jsonl=WATCHES)
    log = load_log(DataOptions(path=str(tmp_path)))
    assert log.events.select("user_id", "item_id", "timestamp", "behavior").rows() == [
        (1, 10, -1, "view"),
        (1, 30, -1, "like"),
        (1, 10, -1, "long_view"),
        (1, 10, 1650812741436, "long_view"),
        (2, 20, 1650812741400, "view"),
    ]
    assert any("1 rows repeat user, video and time" in note for note in log.notes)
    assert log.describe()["time"]["events_without_a_time"] == 3
    assert log.describe()["time"]["first"].startswith("2022-04-24")
    log.write(tmp_path / "out" / "events.parquet")
    again = load_log(DataOptions(path=str(tmp_path / "out")))
    assert (again.time_kind, again.events.rows()) == ("timestamp", log.events.rows())
    (tmp_path / "log_standard_x.csv").write_text(KUAIRAND.replace("1650812741400", "soon"))
    assert "log_standard_x.csv, row 3, column 'time_ms': 'soon'" in error_of(path=str(tmp_path))
    (tmp_path / "log_standard_x.csv").write_text("user_id,video_id\n1,2\n")
    assert "column 'time_ms' is missing" in error_of(path=str(tmp_path))


def test_what_is_asked_of_untimed_events_counts_before_what_a_set_says(tmp_path: Path) -> None:
    put(tmp_path, log_standard_x__csv=KUAIRAND.encode(), watch_history_x__jsonl=WATCHES)
    assert "row 1, column 'time_ms': nothing (null) is no time" in error_of(path=str(tmp_path), untimed="error")
    first = load_log(DataOptions(path=str(tmp_path), untimed="first"))
    assert first.events.equals(load_log(DataOptions(path=str(tmp_path))).events)
    first.write(tmp_path / "out" / "events.parquet")
    assert "events.parquet, row 1, column 'timestamp': nothing (null) is no time" in error_of(
        path=str(tmp_path / "out"), untimed="error"
    )


def test_bad_rows_of_the_earlier_watches_are_dropped_when_asked(tmp_path: Path) -> None:
    put(tmp_path, log_standard_x__csv=KUAIRAND.encode(), watch_history_x__jsonl=b"{broken\n" + WATCHES)
    assert "watch_history_x.jsonl, row 1: '{broken' is not JSON" in error_of(path=str(tmp_path))
    record = tmp_path / "dropped.jsonl"
    log = load_log(DataOptions(path=str(tmp_path), on_bad_rows="drop", dropped=str(record)))
    assert log.events.height == 5
    assert [(Path(row.file).name, row.row, row.reason) for row in log.dropped] == [
        ("watch_history_x.jsonl", 1, "the line is no JSON")
    ]
    # A bad value behind a dropped line keeps its own number.
    (tmp_path / "watch_history_x.jsonl").write_bytes(b"{broken\n" + WATCHES.replace(b'"user_id":1', b'"user_id":null'))
    log = load_log(DataOptions(path=str(tmp_path), on_bad_rows="drop", dropped=str(record)))
    assert {row.row for row in log.dropped if "user" in row.reason} == {2}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"user_id":1}', "'watch' is missing"),
        (b'{"watch":[10]}', "'user_id' is missing"),
        (b'{"user_id":1,"watch":10}', "'watch' holds Int64"),
        (b'{"user_id":[1],"watch":[10]}', "'user_id' holds List"),
        (b'{"user_id":1,"watch":[10],"like":"10"}', "'like' holds String"),
        (b'{"user_id":1,"watch":["10"],"like":[10]}', "'like' holds List(Int64)"),
        (b'{"user_id":1,"watch":[10],"long_watch":[[10]]}', "'long_watch' holds List(List(Int64))"),
        (b'{"user_id":1,"watch":[[10]]}', "'watch' holds List(List(Int64))"),
    ],
)
def test_earlier_watches_without_their_keys_are_explained(line: bytes, problem: str, tmp_path: Path) -> None:
    put(tmp_path, log_standard_x__csv=KUAIRAND.encode(), watch_history_x__jsonl=line + b"\n")
    said = error_of(path=str(tmp_path))
    assert "watch_history_x.jsonl: the name is that of KuaiRand's earlier watches" in said and problem in said


@pytest.mark.parametrize("likes", [b"[]", b"null"])
def test_earlier_watches_of_which_no_like_is_known(likes: bytes, tmp_path: Path) -> None:
    put(tmp_path, log_standard_x__csv=KUAIRAND.encode(), watch_history_x__jsonl=b'{"user_id":1,"watch":[30],"like":%b}\n' % likes)
    log = load_log(DataOptions(path=str(tmp_path)))
    assert log.events.select("item_id", "behavior").row(0) == (30, "view") and "is_like" in log.events.columns


def test_untimed_events_of_any_log_come_first_when_asked(tmp_path: Path) -> None:
    path = str(put(tmp_path, log__csv=b"user_id,item_id,timestamp\n1,10,1300000000\n1,20,\n2,30,1300000060\n") / "log.csv")
    assert "row 2, column 'timestamp': nothing (null) is no time" in error_of(path=path)
    log = load_log(DataOptions(path=path, untimed="first"))
    assert log.events["timestamp"].to_list() == [1_300_000_000_000, -1, 1_300_000_060_000]
    assert any("1 events have no time: they count as earlier than all others" in note for note in log.notes)
    (tmp_path / "log.csv").write_bytes(b"user_id,item_id,timestamp\n1,10,1300000000\n1,20,\n2,30,13e\n3,30,1300000000\n")
    assert "row 3, column 'timestamp': '13e' is no number" in error_of(path=path, untimed="first")


def test_items_without_events_are_said_to_be_that(tmp_path: Path) -> None:
    put(tmp_path, A__item__json__gz=b'{"0": {"title": "Pen"}}', A__index__json=b'{"0": ["<a_1>"]}')
    message = error_of(path=str(tmp_path))
    assert "this folder describes items and holds no events (A.index.json, A.item.json.gz)" in message


def test_an_unpacked_archive_is_gone_down_into(tmp_path: Path) -> None:
    (tmp_path / "KuaiRand-Pure" / "data").mkdir(parents=True)
    (tmp_path / "x.zip").write_bytes(b"zip")
    put(tmp_path / "KuaiRand-Pure" / "data", log_standard_x__csv=KUAIRAND.encode())
    log = load_log(DataOptions(path=str(tmp_path)))
    assert log.events.height == 2
    assert any("the log is in KuaiRand-Pure" in note for note in log.notes)


# --- the real sets


REAL = [
    ("ml-100k", 100_000, 943, 1682, "timestamp", "Star Wars (1977)"),
    ("ml-1m", 999_611, 6040, 3416, "order", "American Beauty (1999)"),
    ("ml-1m/ratings_first200k.dat.gz", 200_000, 1228, 3463, "timestamp", "American Beauty (1999)"),
    ("ml-latest-small", 100_004, 671, 9066, "timestamp", "Forrest Gump (1994)"),
    ("movielens-latest-206k", 206_423, 2148, 13_049, "timestamp", "Shawshank Redemption, The (1994)"),
    ("amazon2014/beauty", 198_502, 22_363, 12_101, "timestamp", "Dotting 5 X 2 Way Marbleizing Dotting Pen Set"),
    ("amazon2014/sports", 296_337, 35_598, 18_357, "timestamp", "butler creek uplula universal pistol magazine"),
    ("amazon2014/toys", 167_597, 19_412, 11_924, "timestamp", "cards against humanity"),
    ("kuairand", 1_039_631, 27_077, 7502, "timestamp", None),
    ("kuairand/log_standard_0425_0508.csv.gz", 228_329, 25_156, 6361, "timestamp", None),
    ("trivago", 87_608, 7513, 13_949, "timestamp", None),
    ("diginetica", 993_483, 204_789, 43_136, "order", None),
]


@pytest.mark.parametrize(("path", "events", "users", "items", "kind", "top"), REAL)
def test_real_sets(shared_data: Path, path: str, events: int, users: int, items: int, kind: str, top: str | None) -> None:
    log = load_log(DataOptions(path=str(shared_data / path)))
    told = log.describe()
    assert (told["events"], told["users"], told["items"], told["time"]["kind"]) == (events, users, items, kind)
    assert top is None or told["popularity"]["top_items"][0]["title"].startswith(top)
    assert top is None or told["item_table"]["items_of_the_log_with_title"] == items


def test_the_clicks_of_globo_load_fast(shared_data: Path) -> None:
    start = time.process_time()
    log = load_log(DataOptions(path=str(shared_data / "globo-news")))
    seconds = time.process_time() - start
    assert (log.events.height, log.events["item_id"].n_unique()) == (2_988_181, 46_033)
    assert log.items is not None
    assert log.items.schema == {"item_id": pl.Int64, "category": pl.String}
    assert log.events["item_id"].is_in(log.items["item_id"].implode()).all()
    assert seconds < 5, "of processor time, so that other jobs do not count; more means that rows are looked at one by one"


def test_what_kuairand_and_the_amazon_items_are_is_said(shared_data: Path) -> None:
    log = load_log(DataOptions(path=str(shared_data / "kuairand")))
    assert any(note.startswith("5,885 rows repeat user, video and time") for note in log.notes)
    assert any(note.startswith("817,187 earlier watches of 26,469 users") for note in log.notes)
    assert log.items is not None and log.items.height >= 7502
    assert "holds no events" in error_of(path=str(shared_data / "amazon2018-items"))


@pytest.mark.parametrize("asked", [{"where": "rating >= 4"}, {"columns": {"user": "client"}}, {"items": "no.csv"}])
def test_what_says_how_to_read_a_log_is_refused_without_one(asked: dict[str, Any]) -> None:
    with pytest.raises(LargeRecError, match=rf"data\.{next(iter(asked))} says how a log is read, and there is no data\.path"):
        load_log(DataOptions.model_validate(asked))
