"""Readers: every format, plain and packed, gives the same events; each broken file is named with the place and the mending."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from largerec.columns import ColumnOptions
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.readers import SUFFIXES, format_of, peek_columns, read_bytes, read_table

ROWS = [("u1", 10, 4.5, 1_300_000_000), ("u2", 20, 3.0, 1_300_000_060), ("u1", 20, 5.0, 1_300_000_120)]
NAMES = ["user_id", "item_id", "rating", "timestamp"]


def text_of(suffix: str) -> bytes:
    """The three rows as a file of the format."""
    if suffix == ".jsonl":
        return b"".join(json.dumps(dict(zip(NAMES, row, strict=True))).encode() + b"\n" for row in ROWS)
    mark = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".data": "\t", ".dat": "::"}[suffix]
    header = [] if suffix in (".data", ".dat") else [NAMES]
    if suffix == ".inter":
        header = [["user_id:token", "item_id:token", "rating:float", "timestamp:float"]]
    return "".join(mark.join(map(str, row)) + "\n" for row in [*header, *ROWS]).encode()


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(LargeRecError) as caught:
        read_table(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".inter", ".jsonl", ".data", ".dat"])
def test_every_text_format_gives_the_same_events(tmp_path: Path, suffix: str, packed: str) -> None:
    path = save(tmp_path / f"log{suffix}{packed}", text_of(suffix))
    log = EventLog.from_frame(read_table(path).frame)
    assert log.events.rows() == [(user, item, time * 1000, rating) for user, item, rating, time in ROWS]
    assert [name.partition(":")[0] for name in peek_columns(path)] == NAMES


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_parquet(tmp_path: Path, packed: str) -> None:
    frame = pl.DataFrame(ROWS, schema=NAMES, orient="row")
    frame.write_parquet(tmp_path / "plain.parquet")
    path = save(tmp_path / f"log.parquet{packed}", (tmp_path / "plain.parquet").read_bytes())
    table = read_table(path)
    assert table.frame.equals(frame)
    assert table.time_kind is None
    assert peek_columns(path) == NAMES


@pytest.mark.parametrize("kind", ["timestamp", "order"])
def test_parquet_of_ours_says_what_its_times_are(tmp_path: Path, kind: str) -> None:
    data = pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [1_300_000_000_000]})
    EventLog.from_frame(data, time_kind=kind).write(tmp_path / "log.parquet")  # type: ignore[arg-type]
    assert read_table(tmp_path / "log.parquet").time_kind == kind


def test_ids_in_text_keep_how_they_are_written(tmp_path: Path) -> None:
    path = save(tmp_path / "log.csv", b"user,item,shop,zip,price,title\n007,1.10,1,00123,1.50,1.0\n8,1.2,-2,99999,2,2.0\n")
    frame = read_table(path, ColumnOptions(item="item")).frame
    assert frame.rows() == [("007", "1.10", 1, "00123", 1.5, "1.0"), ("8", "1.2", -2, "99999", 2.0, "2.0")]
    assert read_table(path, ColumnOptions(user="price")).frame["price"].to_list() == ["1.50", "2"]


@pytest.mark.parametrize("value", ["01", "+1", " 1", "1.0", "-0", "9223372036854775808", "1e3", "0x1"])
def test_one_id_that_is_no_canonical_integer_makes_all_strings(tmp_path: Path, value: str) -> None:
    path = save(tmp_path / "log.csv", b"user,item\n" + b"1,5\n" * 1500 + f"{value},6\n".encode())
    frame = read_table(path).frame
    assert frame["user"][-1] == value
    assert frame["user"][0] == "1"
    assert frame["item"].dtype == pl.Int64


def test_a_column_with_gaps_is_still_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "log.csv", b"user,rating,n,empty\n1,,1,\n2,4.5,,\n3,,2,\n")
    assert read_table(path).frame.rows() == [(1, None, 1, None), (2, 4.5, None, None), (3, None, 2, None)]


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (b"user;item;title\n1;2;Caf\xc3\xa9\n", "fields are separated by semicolons"),
        (b"user\titem\ttitle\n1\t2\tCaf\xc3\xa9\n", "fields are separated by tabs"),
        (b"user,item,title\n1,2,Caf\xe9\n", "the text is not UTF-8: read as latin-1"),
        ("user,item,title\n1,2,Café\n".encode("utf-16"), "the text is UTF-16"),
        (b"\xef\xbb\xbfuser,item,title\r\n1,2,Caf\xc3\xa9\r\n\r\n\r\n", None),
        (b'user,item,title\n1,2,"Caf\xc3\xa9"', None),
        (b"user,item,title\n1,2,Caf\xc3\xa9\n\n", None),
        (b"user,item,title\n1,2,Caf\xc3\xa9\n\r\n", None),
    ],
)
def test_text_as_people_have_it(tmp_path: Path, data: bytes, note: str | None) -> None:
    table = read_table(save(tmp_path / "log.csv", data))
    assert table.frame.to_dicts() == [{"user": 1, "item": 2, "title": "Café"}]
    assert table.notes == (() if note is None else (note,))


def test_text_that_is_damaged_is_not_guessed_at(tmp_path: Path) -> None:
    rows = "user,item\né,1\nü,2\n".encode()
    message = error_of(save(tmp_path / "log.csv", rows + b"\xe9,3\n"))
    assert "line 4: b'\\xe9' is no UTF-8, though others of the file are" in message
    assert "begins as UTF-16 and is damaged" in error_of(save(tmp_path / "log.csv", "user,item\n1,2\n".encode("utf-16")[:-1]))


def test_a_carriage_return_inside_a_line_is_an_error_and_none_of_its_values_is_changed(tmp_path: Path) -> None:
    data = b"user,item\r\n1,2\r\nx\r,3\r\n"
    message = error_of(save(tmp_path / "log.csv", data))
    assert "row 2: a carriage return stands inside the line" in message and "convert them to line feeds" in message
    assert read_table(tmp_path / "log.csv", on_bad_rows="drop").frame.rows() == [("1", 2), ("x\r", 3)]
    assert "header line: a carriage return" in error_of(save(tmp_path / "old.csv", b"user,item\r1,2\r3,4\r"))


def test_quotes_in_tab_separated_text_are_plain_characters(tmp_path: Path) -> None:
    path = save(tmp_path / "items.tsv", b'item_id\ttitle\n1\t5" brush\n2\t"Best" comb\n')
    assert read_table(path).frame["title"].to_list() == ['5" brush', '"Best" comb']


def test_films_of_movielens(tmp_path: Path) -> None:
    movies = read_table(save(tmp_path / "movies.dat", b"1::Caf\xe9: A Story (1999)::Comedy|Drama\n2::B::Drama\n"))
    assert movies.frame.rows() == [(1, "Café: A Story (1999)", "Comedy|Drama"), (2, "B", "Drama")]
    flags = ["0"] * 19
    flags[1] = flags[5] = "1"
    items = read_table(save(tmp_path / "u.item", f"7|B\xe9 (1995)|01-Jan-1995||http://x|{'|'.join(flags)}\n".encode("latin-1")))
    assert items.frame.rows() == [(7, "Bé (1995)", "01-Jan-1995", None, "http://x", "Action|Comedy")]


def test_packed_files_of_several_members_and_padding_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(b"user,item\n1,2\n") + gzip.compress(b"3,4\n") + b"\0" * 7)
    assert read_table(path).frame.rows() == [(1, 2), (3, 4)]
    assert read_bytes(path) == b"user,item\n1,2\n3,4\n"


def test_a_gzip_that_is_cut_off_or_damaged_is_not_used(tmp_path: Path) -> None:
    lines = b"user,item\n" + b"".join(f"{n * 7919 % 1009},{n}\n".encode() for n in range(5000))
    packed = gzip.compress(lines)
    path = tmp_path / "log.csv.gz"
    for cut in (3, 12, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:cut])
        message = error_of(path)
        assert "the gzip file is cut off or damaged" in message
        assert "Copy or write it again" in message
    path.write_bytes(packed[:-5] + bytes([packed[-5] ^ 1]) + packed[-4:])
    assert "cut off or damaged" in error_of(path)
    path.write_bytes(packed + b"rest")
    assert "cut off or damaged" in error_of(path)
    path.write_bytes(lines)
    assert "named .gz, but no gzip file. Take .gz off the name, or pack it." in error_of(path)


def test_the_place_where_a_gzip_breaks_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(b"user,item\n1,2\n") + gzip.compress(b"3,4\n")[:-3])
    assert "after 3 whole lines" in error_of(path)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".csv.gz", ".parquet.gz", ".jsonl.gz"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"log{suffix}"
    path.write_bytes(b"")
    assert "the file is empty" in error_of(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".data", ".dat"])
def test_a_file_of_blank_lines_is_empty(tmp_path: Path, suffix: str) -> None:
    assert "the file is empty" in error_of(save(tmp_path / f"log{suffix}", b"\n\r\n\n"))


def test_a_header_alone_holds_no_events(tmp_path: Path) -> None:
    table = read_table(save(tmp_path / "log.csv", b"user_id,item_id,timestamp\n"))
    with pytest.raises(LargeRecError, match=r"log: there are no rows \(columns: user_id, item_id, timestamp\)"):
        EventLog.from_frame(table.frame, source="log")


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("log.csv", b"user,item\n1,2\n1,2,3\n", ["row 2: 3 fields ['1', '2', '3'], but there are 2 columns", "Quote a field"]),
        ("log.csv", b'user,item\n1,2\n1,"2\n3,4\n', ["row 2: a quote is broken", "Close every quote"]),
        ("log.csv", b'user,item\n1,2\n1,2"x\n3,4\n', ["row 2 (the first with a quote in a field)", "in quotes"]),
        ("log.csv", b"user,item,item\n1,2,3\n", ["the header names column 'item' twice", "its own name"]),
        ("log.tsv", b"user\titem\titem\n1\t2\t3\n", ["the header names column 'item' twice"]),
        ("log.tsv", b"user\titem\n1\t2\t3\n", ["row 1: 3 fields"]),
        ("log.data", b"1\t2\t3\t4\n1\t2\t3\t4\t5\n", ["row 2: 5 fields", "4 columns"]),
        ("log.data", b"1 2 3 4\n", ["row 1: 1 fields between '\\t'", "user, item, rating, timestamp", "CSV with a header line"]),
        ("users.dat", b"1::F::1::10::48067\n", ["row 1: 5 fields between '::'", "4 (ratings"]),
        ("movies.dat", b"1::Title\n", ["row 1: 2 fields", "item, title, genres"]),
        ("log.jsonl", b'{"user": 1}\n\n{"user": \n', ["row 2: '{\"user\": ' is not JSON", "one whole JSON object a line"]),
        ("log.jsonl", b'{"user": 1}\n7\n', ["row 2: '7' is a JSON int, not an object"]),
        ("log.json", b'[{"user": 1},\n{"user": 2}]\n', ["row 1", "a JSON array must be unrolled"]),
        ("log.parquet", b"PAR1" + b"\0" * 50, ["no whole Parquet file", "copy or write it again"]),
    ],
)
def test_a_broken_file_is_named_with_the_row(tmp_path: Path, name: str, data: bytes, expected: list[str]) -> None:
    message = error_of(save(tmp_path / name, data))
    for part in expected:
        assert part in message


def test_a_cut_off_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": range(1000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "no whole Parquet file" in error_of(path)


def test_a_blank_line_is_found_by_its_missing_value(tmp_path: Path) -> None:
    table = read_table(save(tmp_path / "log.csv", b"user,item,time\n1,2,1300000000\n\n1,2,1300000000\n"))
    with pytest.raises(LargeRecError, match=r"log, row 2, column 'user': nothing \(null\) is no user id"):
        EventLog.from_frame(table.frame, source="log")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("log.csv", b"user,item,time,note\n1,2,1300000000,\n\n1,2,13000\n3,4,1300000000,\n"),
        ("log.csv", b'user,item,time,note\n1,2,1300000000,"a,b"\n\n1,2,13000\n3,4,1300000000,\n'),
        ("log.tsv", b"user\titem\ttime\tnote\n1\t2\t1300000000\t\n\n1\t2\t13000\n3\t4\t1300000000\t\n"),
    ],
)
def test_a_line_that_was_cut_off_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    assert "row 3: 3 fields ['1', '2', '13000'], but there are 4 columns. The line may be cut off" in error_of(
        save(tmp_path / name, data)
    )


def test_unknown_and_missing_files(tmp_path: Path) -> None:
    message = error_of(save(tmp_path / "log.parqet.gz", b"x"))
    assert "cannot tell the format by the suffix '.parqet'; did you mean '.parquet'?" in message
    assert "Known: .parquet, .pq, .csv" in message
    assert "suffix '.user'. Known" in error_of(save(tmp_path / "u.user", b"x"))
    assert "suffix ''. Known" in error_of(save(tmp_path / "README", b"x"))
    assert "cannot be read (No such file or directory)" in error_of(tmp_path / "log.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "cannot be read (Is a directory)" in error_of(tmp_path / "folder.csv")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A.CSV.GZ", "csv"),
        ("u.data", "u.data"),
        ("u.item", "u.item"),
        ("x.item", "tsv"),
        ("movies.dat.gz", "movies.dat"),
        ("a.txt", None),
    ],
)
def test_formats_are_told_by_the_name(name: str, expected: str | None) -> None:
    assert format_of(Path(name)) == expected


def test_a_look_at_a_file_that_cannot_be_read_finds_no_columns(tmp_path: Path) -> None:
    assert peek_columns(save(tmp_path / "a.parquet", b"x")) == []
    assert peek_columns(save(tmp_path / "a.jsonl", b"[1]")) == []
    assert peek_columns(tmp_path / "missing.csv") == []
    (tmp_path / "b.csv.gz").write_bytes(b"no gzip")
    assert peek_columns(tmp_path / "b.csv.gz") == []
    assert peek_columns(save(tmp_path / "movies.dat", b"x")) == ["item_id", "title", "genres"]


@pytest.mark.parametrize(("last", "kind"), [("0", pl.Int64), ("0.5", pl.Float64), ("no", pl.String), ("", pl.String)])
@pytest.mark.parametrize("blank", [900, 1100])
def test_blanks_at_the_head_say_nothing_about_a_column(blank: int, last: str, kind: pl.DataType, tmp_path: Path) -> None:
    values = [""] * blank + ["" if last == "" else "1", last]
    lines = ["user_id,item_id,timestamp,x", *(f"u{n},i1,{1_300_000_000 + n},{value}" for n, value in enumerate(values))]
    frame = read_table(save(tmp_path / "log.csv", "\n".join(lines).encode())).frame
    assert frame.schema["x"] == kind and frame["x"].null_count() == values.count("")
