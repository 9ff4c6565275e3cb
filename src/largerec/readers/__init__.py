"""Files to tables, one format a module; the names and values of the columns are the file's own.

A format is told by the file's suffix: ``.parquet``, ``.csv``, ``.tsv``, ``.inter`` (RecBole), ``.jsonl``, ``.data`` and ``.dat``
(MovieLens), each also with ``.gz`` behind it; a few whole names say more (``u.item``, ``period_3.txt``).
"""

from __future__ import annotations

import difflib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from largerec.badrows import DroppedRow, OnBadRows, Place, in_file
from largerec.columns import UNTIMED_MARK, ColumnOptions, TimeKind, Untimed, holds_words
from largerec.errors import LargeRecError
from largerec.readers import amazon, delimited, diginetica, itemjson, jsonl, movielens
from largerec.readers.delimited import SEPARATORS, Layout, choose_separator, infer_types
from largerec.readers.parquet import parse_parquet

Format = Literal[
    "parquet", "csv", "tsv", "jsonl", "u.data", "u.item", "ratings.dat", "movies.dat", "period", "item.json", "index.json"
]

SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".inter": "tsv",
    ".item": "tsv",
    ".user": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".data": "u.data",
    ".dat": "ratings.dat",
}
# Names that say more than their suffix.
NAMES: tuple[tuple[re.Pattern[str], Format | None], ...] = (
    (re.compile(r"u\.item"), "u.item"),
    (re.compile(r"u\.user"), None),
    (re.compile(r"movies\.dat"), "movies.dat"),
    (re.compile(r"period_\d+\.txt"), "period"),
    (re.compile(r".*\.item\.json"), "item.json"),
    (re.compile(r".*\.index\.json"), "index.json"),
)
CHUNK = 1 << 20


@dataclass(frozen=True)
class RawTable:
    """Rows as they are, and what is known about them beside the values.

    ``time_kind``, ``untimed``, ``columns`` (role to column): where the file or its format says so; a recipe may say otherwise.
    ``place``: the file and row of each row. ``dropped``: what could not be parsed and was left out on request.
    """

    frame: pl.DataFrame
    notes: tuple[str, ...] = ()
    time_kind: TimeKind | None = None
    untimed: Untimed | None = None
    columns: dict[str, str] = field(default_factory=dict)
    place: Place | None = None
    dropped: tuple[DroppedRow, ...] = ()


def format_of(path: Path) -> Format | None:
    """Return the format that a file's name promises, or None."""
    name = path.name.lower().removesuffix(".gz")
    return next((kind for pattern, kind in NAMES if pattern.fullmatch(name)), SUFFIXES.get(Path(name).suffix))


def read_table(path: Path, columns: ColumnOptions | None = None, on_bad_rows: OnBadRows = "error") -> RawTable:
    """Read a whole file of events or items; ``columns`` tells which columns hold ids besides those of a usual name.

    Raises:
        LargeRecError: the suffix is unknown; the file is missing, empty, cut off or broken (with the row where there is one).
    """
    kind = format_of(path)
    if kind is None:
        known, suffix = ", ".join(SUFFIXES), Path(path.name.removesuffix(".gz")).suffix
        close = difflib.get_close_matches(suffix, SUFFIXES, n=1, cutoff=0.75)
        hint = f"; did you mean {close[0]!r}?" if close and close[0] != suffix else "."
        raise LargeRecError(
            f"{path}: cannot tell the format by the suffix {suffix!r}{hint} Known: {known}; each also with .gz. "
            "Rename or convert the file."
        )
    source = str(path)
    if kind == "parquet":
        packed = path.suffix.lower() == ".gz"
        frame, said = parse_parquet(read_bytes(path) if packed else path, source)
        word = (said or "").removesuffix(UNTIMED_MARK)
        time_kind: TimeKind | None = "order" if word == "order" else "timestamp" if word == "timestamp" else None
        return RawTable(frame, (), time_kind, "first" if said and said.endswith(UNTIMED_MARK) else None, place=in_file(source))
    text, notes = _as_utf8(read_bytes(path), source)
    table = _parse_text(text, source, kind, on_bad_rows)
    frame = table.frame
    if kind not in ("jsonl", "item.json", "index.json"):
        words = [name for name in frame.columns if holds_words(name, columns or ColumnOptions())]
        frame = infer_types(frame, words)
    return RawTable(frame, notes + table.notes, table.time_kind, None, table.columns, table.place, table.dropped)


def _parse_text(text: bytes, source: str, kind: Format, on_bad_rows: OnBadRows) -> RawTable:
    """Parse text of any format; with "drop" a text that is broken somewhere is read again, row by row."""
    if kind == "item.json" or kind == "index.json":
        parse = itemjson.parse_items if kind == "item.json" else itemjson.parse_codes
        return RawTable(parse(text, source))
    layout = _layout(text, kind) if kind != "jsonl" else None
    numbers: list[int] | None = None
    dropped: list[DroppedRow] = []
    try:
        frame = jsonl.parse_jsonl(text, source) if layout is None else delimited.parse_delimited(text, source, layout)
    except LargeRecError:
        if on_bad_rows == "error" or not text.strip():
            raise
        lenient = jsonl.parse_leniently(text, source) if layout is None else delimited.parse_leniently(text, source, layout)
        frame, numbers, dropped = lenient
        if frame.height == 0:
            raise
    if kind == "u.item":
        frame = movielens.join_genres(frame)
    place = in_file(source, numbers)
    if layout is None:
        return RawTable(frame, place=place, dropped=tuple(dropped))
    return RawTable(frame, layout.notes, layout.time_kind, None, layout.columns, place, tuple(dropped))


def _layout(text: bytes, kind: Format) -> Layout:
    if kind in movielens.LAYOUTS:
        return movielens.LAYOUTS[kind]
    if kind == "period":
        return diginetica.LAYOUT
    end = text.find(b"\n")
    header = text[: end if end >= 0 else len(text)].decode("utf-8").rstrip("\r")
    if kind == "csv" and (headless := amazon.headless_layout(header)) is not None:
        return headless
    expected = "," if kind == "csv" else "\t"
    separator = choose_separator(header, expected)
    notes = () if separator == expected else (f"fields are separated by {SEPARATORS[separator]}",)
    return Layout(separator, quoted=separator != "\t", notes=notes)  # tab-separated exports do not quote


def read_bytes(path: Path) -> bytes:
    """Read a file, unpacked where its name ends in ``.gz``.

    Raises:
        LargeRecError: the file cannot be read, is no gzip, or is a gzip that is cut off or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LargeRecError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    if path.suffix.lower() != ".gz" or not data:
        return data
    parts: list[bytes] = []
    try:
        parts.extend(_unpack(data))
    except (zlib.error, EOFError) as error:
        if not data.startswith(b"\x1f\x8b"):
            raise LargeRecError(f"{path}: named .gz, but no gzip file. Take .gz off the name, or pack it.") from error
        lines = sum(part.count(b"\n") for part in parts)
        raise LargeRecError(
            f"{path}: the gzip file is cut off or damaged ({error}) after {lines:,} whole lines; nothing of it is used. "
            "Copy or write it again."
        ) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _unpack(data: bytes) -> Iterator[bytes]:
    """Yield the parts of a gzip file of one or more members, so that those before a damage can be counted."""
    start = 0
    while start < len(data):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            if start >= len(data):
                raise EOFError("its end is missing")
            block = data[start : start + CHUNK]
            part = member.decompress(block)
            start += len(block) - len(member.unused_data)
            yield part
        while start < len(data) and data[start] == 0:  # padding behind the last member is allowed
            start += 1


def _as_utf8(data: bytes, source: str) -> tuple[bytes, tuple[str, ...]]:
    """Return text as UTF-8; what is not UTF-8 or UTF-16 is taken as latin-1, the older MovieLens files' encoding.

    Raises:
        LargeRecError: most characters beyond ASCII are UTF-8 and some are not, or UTF-16 is broken: the file is damaged.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16").encode(), ("the text is UTF-16",)
        except UnicodeError as error:
            raise LargeRecError(
                f"{source}: the text begins as UTF-16 and is damaged ({error}). Write it again, as UTF-8."
            ) from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.isascii():  # many times faster than to decode
        return data, ()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", "surrogateescape")
        broken = len(re.findall("[\udc80-\udcff]", text))
        if len(re.findall("[^\x00-\x7f]", text)) >= 2 * broken:
            line = data.count(b"\n", 0, error.start) + 1
            raise LargeRecError(
                f"{source}, line {line}: {data[error.start : error.start + 1]!r} is no UTF-8, though others of the file are. "
                "The file is damaged or mixes encodings: write it again, as UTF-8."
            ) from error
        return data.decode("latin-1").encode(), ("the text is not UTF-8: read as latin-1",)
    return data, ()


def peek_columns(path: Path) -> list[str]:
    """Return a file's column names after a short look at it; none where it cannot be told."""
    kind = format_of(path)
    try:
        if kind == "parquet":
            return list(pl.read_parquet_schema(path)) if path.suffix != ".gz" else read_table(path).frame.columns
        if kind in movielens.LAYOUTS:
            return list(movielens.MOVIE_COLUMNS if kind == "u.item" else movielens.LAYOUTS[kind].names or ())
        if kind in ("item.json", "index.json"):
            return ["item_id"]
        if kind == "period":
            return list(diginetica.LAYOUT.names or ())
        with path.open("rb") as file:
            data = file.read(CHUNK)
        if path.suffix.lower() == ".gz":
            data = zlib.decompressobj(wbits=31).decompress(data, CHUNK)
        head = data if data.startswith((b"\xff\xfe", b"\xfe\xff")) else data.partition(b"\n")[0]
        line = _as_utf8(head, str(path))[0].decode("utf-8").partition("\n")[0].rstrip("\r")
        if kind == "jsonl":
            first = json.loads(line)
            return list(first) if isinstance(first, dict) else []
        if kind == "csv" and (headless := amazon.headless_layout(line)) is not None:
            return list(headless.names or ())
        separator = choose_separator(line, "," if kind == "csv" else "\t")
        return [name.strip('"') for name in line.split(separator)]
    except (LargeRecError, pl.exceptions.PolarsError, OSError, ValueError, zlib.error, TypeError):
        return []
