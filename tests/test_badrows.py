"""Bad rows on request: left out, counted by reason, and written down whole; nothing vanishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from logs import put

from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError

EVENTS = b"user_id,item_id,timestamp\n1,10,1300000000\n2,20,1300000060\n"


def error_of(**options: Any) -> str:
    with pytest.raises(LargeRecError) as caught:
        load_log(DataOptions(**options))
    return str(caught.value)


BAD = b"""user_id,item_id,timestamp,note
1,10,1300000000,ok
,20,1300000001,no user
1,30,yesterday,no time
1,40,1300000002
2,50,-3,too early
2,60,1300000003,"open
2,70,1300000004,a,b

2,80,1300000005,ok
"""


def test_bad_rows_are_dropped_counted_and_written(tmp_path: Path) -> None:
    path, written = str(put(tmp_path, log__csv=BAD) / "log.csv"), tmp_path / "bad.jsonl"
    assert "log.csv, row" in error_of(path=path)
    log = load_log(DataOptions(path=path, on_bad_rows="drop", dropped=str(written)))
    assert log.events.select("user_id", "item_id").rows() == [(1, 10), (2, 80)]
    found = [json.loads(line) for line in written.read_text().splitlines()]
    assert sorted(row["row"] for row in found) == [2, 3, 4, 5, 6, 7, 8]
    reasons = {row["row"]: row["reason"] for row in found}
    assert reasons[2] == "column 'user_id' is no user id"
    assert reasons[3] == "column 'timestamp' is no number, though the other times are"
    assert reasons[4] == "the line has 3 fields, not 4"
    assert reasons[5] == "column 'timestamp' is an impossible time or rank: below zero or infinite"
    assert (reasons[6], reasons[8]) == ("a quote is broken", "the line is blank")
    assert next(row for row in found if row["row"] == 7)["content"] == "2,70,1300000004,a,b"
    assert next(row for row in found if row["row"] == 2)["content"]["note"] == "no user"
    (note,) = [note for note in log.notes if "bad rows are dropped" in note]
    assert note.startswith(f"7 bad rows are dropped, as asked, and written to {written}: 1 (")


def test_only_a_list_of_dropped_rows_is_written_over(tmp_path: Path) -> None:
    log, other = tmp_path / "log.csv", tmp_path / "mine.jsonl"
    log.write_text("user_id,item_id,timestamp\nu,a,1\nu,,2\nu,b,3\n")
    other.write_text('{"user_id": "u", "row": 1}\n')
    for path in (log, other):
        before = path.read_bytes()
        assert "would be written over this file" in error_of(path=str(log), on_bad_rows="drop", dropped=str(path))
        assert path.read_bytes() == before
    for _ in range(2):
        load_log(DataOptions(path=str(log), on_bad_rows="drop", dropped=str(tmp_path / "bad.jsonl")))
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1


def test_nothing_is_written_where_nothing_is_dropped(tmp_path: Path) -> None:
    path = str(put(tmp_path, log__csv=EVENTS) / "log.csv")
    load_log(DataOptions(path=path, on_bad_rows="drop", dropped=str(tmp_path / "bad.jsonl")))
    assert not (tmp_path / "bad.jsonl").exists()


def test_lines_that_are_no_json_are_dropped(tmp_path: Path) -> None:
    lines = b'{"user": 1, "item": 2}\n\n{"user": 1,\n[3]\n{"user": 2, "item": 5}\n{"user": null, "item": 6}\n'
    path, written = str(put(tmp_path, log__jsonl=lines) / "log.jsonl"), tmp_path / "bad.jsonl"
    log = load_log(DataOptions(path=path, on_bad_rows="drop", dropped=str(written)))
    assert log.events["item_id"].to_list() == [2, 5]
    assert [json.loads(line)["row"] for line in written.read_text().splitlines()] == [2, 3, 5]


def test_a_log_of_nothing_but_bad_rows_is_an_error(tmp_path: Path) -> None:
    path = str(put(tmp_path, log__csv=b"user_id,item_id\n,1\n,2\n") / "log.csv")
    assert "row 1, column 'user_id': nothing (null)" in error_of(path=path, on_bad_rows="drop", dropped=str(tmp_path / "b"))


def test_a_broken_line_among_lines_in_the_spelling_of_python(tmp_path: Path) -> None:
    lines = b"{'user_id': 1, 'item_id': 10, 'timestamp': 1300000000}\n{'user_id': 1, 'item\n[1]\n"
    lines += b"{'user_id': 2, 'item_id': 20, 'timestamp': 1300000060}\n"
    path, written = str(put(tmp_path, log__jsonl=lines) / "log.jsonl"), tmp_path / "bad.jsonl"
    log = load_log(DataOptions(path=path, on_bad_rows="drop", dropped=str(written)))
    assert log.events.select("user_id", "item_id").rows() == [(1, 10), (2, 20)]
    assert [(row.row, row.reason) for row in log.dropped] == [(2, "the line is no JSON"), (3, "the line is no JSON object")]
