"""Files as the world damages them, of every format: the readers give the right rows or a clear error, never a wrong row.

Each example writes a small log, damages it in one or two ways, and compares what is read with what stands there as a plain, slow
reading of the same bytes sees it. ``make soak`` runs many thousands of examples (LARGEREC_EXAMPLES), ``make test`` some hundreds.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largerec.columns import ALIASES
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import EventLog

EXAMPLES = int(os.environ.get("LARGEREC_EXAMPLES", "400"))
FORMATS = ("csv", "semicolon", "tsv", "inter", "jsonl", "data", "dat", "parquet", "nested")
NAMES = ["user_id", "item_id", "rating", "timestamp"]
SUFFIX = {"semicolon": "csv", "nested": "parquet"}
MARK = {"csv": ",", "semicolon": ";", "tsv": "\t", "inter": "\t", "data": "\t", "dat": "::"}
START = 1_300_000_000

Row = tuple[str, str, float, int]
rows = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "007", "8", "ann", "é", "9007199254740993"]),
        st.sampled_from(["10", "20", "30", "1.10", "x y"]),
        st.sampled_from([1.0, 2.5, 5.0]),
        st.integers(START, START + 10**8),
    ),
    min_size=1,
    max_size=8,
)
# What is put in place of a field, or between bytes.
values = st.sampled_from(
    ["", " ", "-1", "0", "nan", "inf", "null", "1e400", "99999999999999999999", "2024-03-01", "yesterday", '"', '"a', 'a"b',
     "a,b", "a\tb", "\x00", "::", "1300000000", "9" * 400, "{}", "[1]", "true", "é", "\n", "\r", "١٢", "0x10", "+5", "007"]
)  # fmt: skip
raw = st.sampled_from([b"\n", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b'"', b",", b"\t", b"::", b"}", b"\n\n", b" ", b"\x1f"])
place = st.floats(0, 1, exclude_max=True)
damages = st.lists(
    st.one_of(
        st.tuples(st.just("field"), place, st.integers(0, 3), values),
        st.tuples(st.just("insert"), place, raw),
        st.tuples(st.just("remove"), place, st.integers(1, 4)),
        st.tuples(st.just("cut"), place),
        st.tuples(st.just("line"), place, st.sampled_from(["twice", "gone", "blank", "half"])),
        st.tuples(
            st.just("header"), st.integers(0, 3), st.sampled_from(["", "client", "user_id", "item", "rating ", "TIMESTAMP"])
        ),
    ),
    max_size=2,
)


def encode(table: list[list[Any]], names: list[str], kind: str) -> bytes:
    """Write fields as they are, without any care for quotes."""
    if kind == "jsonl":
        return b"".join(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False).encode() + b"\n" for row in table)
    if kind == "inter":
        names = [f"{name}:{kind}" for name, kind in zip(names, ("token", "token", "float", "float"), strict=True)]
    lines = [] if kind in ("data", "dat") else [names]
    return "".join(MARK[kind].join(map(str, row)) + "\n" for row in [*lines, *table]).encode()


def encode_parquet(table: list[list[Any]], names: list[str], nested: bool) -> bytes:
    columns = {}
    for number, name in enumerate(NAMES):
        column = [row[number] for row in table]
        if any(isinstance(value, str) for value in column):
            column = [None if value in ("", "null") else str(value) for value in column]
        columns[name] = pl.Series(names[number] or "empty", column, strict=False)
    frame = pl.DataFrame({series.name: series for series in columns.values()})
    if nested and frame.width == 4:
        frame = frame.group_by(frame.columns[0], maintain_order=True).all()
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def damaged(log: list[Row], kind: str, hits: list[Any]) -> bytes:
    """The file's bytes after all damages: first those of fields and names, then those of lines, then those of bytes."""
    table, names = [list(row) for row in log], list(NAMES)
    for hit in hits:
        if hit[0] == "field":
            table[int(hit[1] * len(table))][hit[2]] = hit[3]
        elif hit[0] == "header":
            names[hit[1]] = hit[2]
    parquet = kind in ("parquet", "nested")
    data = encode_parquet(table, names, kind == "nested") if parquet else encode(table, names, kind)
    for hit in hits:
        if hit[0] == "line" and not parquet:
            lines = data.splitlines(keepends=True) or [b"\n"]
            at = int(hit[1] * len(lines))
            line = lines[at]
            lines[at] = {"twice": line + line, "gone": b"", "blank": b"\n", "half": line[: len(line) // 2] + b"\n"}[hit[2]]
            data = b"".join(lines)
    for hit in hits:
        at = int(hit[1] * len(data)) if hit[0] in ("insert", "remove", "cut") else 0
        if hit[0] == "cut":
            data = data[:at]
        elif hit[0] == "remove" and not parquet:  # a byte changed within a page of Parquet carries no sign of it
            data = data[:at] + data[at + hit[2] :]
        elif hit[0] == "insert" and not parquet:
            data = data[:at] + hit[2] + data[at:]
    return data


def plain_fields(data: bytes, kind: str) -> list[dict[str, Any]]:
    """A slow reading of a text, by Python's own parsers: a dictionary for each row."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    text = text.lstrip("\ufeff")
    if kind == "jsonl":
        return [json_fields(line) for line in text.split("\n") if line.strip()]
    text = (text if kind in ("data", "dat") else text.lstrip("\r\n")).rstrip("\r\n") + "\n"
    if kind in ("csv", "semicolon") and '"' in text:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator_of(text, ",")))
    else:
        mark = MARK[kind] if kind in ("data", "dat") else separator_of(text, "," if kind in ("csv", "semicolon") else "\t")
        lines = [line.removesuffix("\r").split(mark) for line in text.removesuffix("\n").split("\n")]
    names = NAMES if kind in ("data", "dat") else [name.partition(":")[0] for name in lines.pop(0)]
    return [dict(reversed(list(zip(names, line, strict=False)))) for line in lines]  # of two equal names the first counts


def json_fields(line: str) -> dict[str, Any]:
    """The first of equal keys counts, as in the readers; a line that is no object has no fields."""
    try:
        found = json.loads(line, object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def separator_of(text: str, expected: str) -> str:
    header = text.partition("\n")[0]
    marks = [mark for mark in (",", ";", "\t", "|") if mark in header]
    return expected if expected in header or not marks else max(marks, key=header.count)


def assert_right(log: EventLog, data: bytes, kind: str) -> None:
    """Every event that was read stands in the file with this user, item and time, in this order, and none is missing."""
    if any(row.reason == "a quote is broken" for row in log.dropped):
        assert_lines(log, data)
        return
    fields = plain_fields(data, kind)
    users = [field(row, ALIASES["user"]) for row in fields]
    assert len(log.dropped) + log.events.height == len(fields)
    if log.dropped:
        kept = sorted(set(range(1, len(fields) + 1)) - {row.row for row in log.dropped})
        assert len(kept) == log.events.height
        fields, users = [fields[row - 1] for row in kept], [users[row - 1] for row in kept]
    assert [same(value) for value in log.events["user_id"]] == [same(user) for user in users]
    items = [field(row, ALIASES["item"]) for row in fields]
    assert [same(value) for value in log.events["item_id"]] == [same(item) for item in items]
    times = [field(row, ALIASES["time"]) for row in fields]
    if log.time_kind == "timestamp" and all(str(time).isdigit() and str(time).isascii() for time in times):
        whole = [int(time) for time in times]
        assert any(
            log.events["timestamp"].to_list() == [time * 1000 // divisor for time in whole] for divisor in (1, 10**3, 10**6)
        )


def assert_lines(log: EventLog, data: bytes) -> None:
    """Where quotes are broken Python's parser reads on over lines: then each event must stand on a line of its own, in order."""
    lines = iter(data.decode("utf-8", "replace").split("\n"))
    for user, item in log.events.select("user_id", "item_id").iter_rows():
        assert any(str(user) in line and str(item) in line for line in lines), (user, item)


def field(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The value under the first of the names, as the readers compare names; None for a row without one."""
    return next((value for name in names for key, value in row.items() if key.strip().lower() == name), None)


def same(value: Any) -> str:
    """Ids as text; a whole float of a table of numbers is its integer."""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)


@settings(max_examples=EXAMPLES)
@given(kind=st.sampled_from(FORMATS), log=rows, hits=damages, packed=st.booleans(), cut=st.none() | place, drop=st.booleans())
@pytest.mark.timeout(0 if EXAMPLES > 1000 else 120)
def test_a_malformed_file_gives_the_right_rows_or_a_clear_error(
    kind: str, log: list[Row], hits: list[Any], packed: bool, cut: float | None, drop: bool
) -> None:
    data = damaged(log, kind, hits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"log.{SUFFIX.get(kind, kind)}{'.gz' if packed else ''}"
        content = gzip.compress(data) if packed else data
        is_cut = packed and cut is not None
        path.write_bytes(content[: int((cut or 0) * len(content))] if is_cut else content)
        try:
            options = DataOptions(
                path=str(path), on_bad_rows="drop" if drop else "error", dropped=str(Path(folder) / "bad.jsonl")
            )
            read = load_log(options)
        except LargeRecError as error:
            message = str(error)
            assert message.startswith(str(path)), message
            assert message.count(". ") >= 1 or message.endswith("."), message
            undamaged = not hits and not is_cut
            assert not undamaged, f"a whole file was refused: {message}"
            return
        assert not is_cut or not path.read_bytes(), "nothing of a cut gzip file is used"
        if kind not in ("parquet", "nested"):
            assert_right(read, data, kind)
        elif not hits:
            assert read.events.height == len(log)
            expected = sorted((user, item, time * 1000) for user, item, _, time in log)
            assert sorted(read.events.select("user_id", "item_id", "timestamp").rows()) == expected
        if read.dropped:
            written = (Path(folder) / "bad.jsonl").read_text(encoding="utf-8").splitlines()
            assert len(written) == len(read.dropped)
