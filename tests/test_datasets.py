"""load_log: files and folders, the item table beside the events, and the real sets."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import ColumnOptions
from largerec.simulate import SimulateOptions, simulate

EVENTS = b"user_id,item_id,timestamp\n1,10,1300000000\n2,20,1300000060\n"
ITEMS = b"item_id,title,category\n10,Ten,A\n20,Twenty,B\n"
RATINGS = b"userId,movieId,rating,timestamp\n1,10,4.0,1300000000\n2,20,3.5,1300000060\n"


def put(folder: Path, **files: bytes) -> Path:
    """Write files; ``__`` in a name stands for a dot."""
    for name, data in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return folder


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


REAL = [
    ("ml-100k", 100_000, 943, 1682, "timestamp", "Star Wars (1977)"),
    ("ml-1m", 999_611, 6040, 3416, "order", "American Beauty (1999)"),
    ("ml-1m/ratings_first200k.dat.gz", 200_000, 1228, 3463, "timestamp", "American Beauty (1999)"),
    ("ml-latest-small", 100_004, 671, 9066, "timestamp", "Forrest Gump (1994)"),
    ("movielens-latest-206k", 206_423, 2148, 13_049, "timestamp", "Shawshank Redemption, The (1994)"),
    ("amazon2014/beauty", 198_502, 22_363, 12_101, "timestamp", "Dotting 5 X 2 Way Marbleizing Dotting Pen Set"),
    ("amazon2014/sports", 296_337, 35_598, 18_357, "timestamp", "butler creek uplula universal pistol magazine"),
    ("amazon2014/toys", 167_597, 19_412, 11_924, "timestamp", "cards against humanity"),
    ("kuairand", 228_329, 25_156, 6361, "timestamp", None),
]


@pytest.mark.parametrize(("path", "events", "users", "items", "kind", "top"), REAL)
def test_real_sets(shared_data: Path, path: str, events: int, users: int, items: int, kind: str, top: str | None) -> None:
    log = load_log(DataOptions(path=str(shared_data / path)))
    told = log.describe()
    assert (told["events"], told["users"], told["items"], told["time"]["kind"]) == (events, users, items, kind)
    assert top is None or told["popularity"]["top_items"][0]["title"].startswith(top)
    assert top is None or told["item_table"]["items_of_the_log_with_title"] == items


def test_the_clicks_of_globo_load_fast(shared_data: Path) -> None:
    start = time.perf_counter()
    log = load_log(DataOptions(path=str(shared_data / "globo-news")))
    seconds = time.perf_counter() - start
    assert (log.events.height, log.events["item_id"].n_unique()) == (2_988_181, 46_033)
    assert log.items is not None
    assert log.items.schema == {"item_id": pl.Int64, "category": pl.String}
    assert log.events["item_id"].is_in(log.items["item_id"].implode()).all()
    assert seconds < 15, "about one second on a quiet machine; much more means that rows are looked at one by one"
