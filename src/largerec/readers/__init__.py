"""Files to tables, one format a module; the names and values of the columns are the file's own.

A format is told by the file's suffix: ``.parquet``, ``.csv``, ``.tsv``, ``.inter`` (RecBole), ``.jsonl``, ``.data`` and ``.dat``
(MovieLens), each also with ``.gz`` behind it.
"""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from largerec.columns import ColumnOptions, TimeKind, holds_words
from largerec.errors import LargeRecError
from largerec.readers.delimited import SEPARATORS, choose_separator, infer_types, parse_delimited
from largerec.readers.jsonl import parse_jsonl
from largerec.readers.movielens import MOVIE_COLUMNS, RATING_COLUMNS, parse_items, parse_movies, parse_ratings
from largerec.readers.parquet import parse_parquet

Format = Literal["parquet", "csv", "tsv", "jsonl", "u.data", "u.item", "ratings.dat", "movies.dat"]

SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".inter": "tsv",
    ".item": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".data": "u.data",
    ".dat": "ratings.dat",
}
NAMES: dict[str, Format] = {"u.item": "u.item", "movies.dat": "movies.dat"}  # whole names that say more than their suffix
CHUNK = 1 << 20


@dataclass(frozen=True)
class RawTable:
    """A file's rows as they are, what was noticed while reading, and the kind of time where the file itself says it."""

    frame: pl.DataFrame
    notes: tuple[str, ...] = ()
    time_kind: TimeKind | None = None


def format_of(path: Path) -> Format | None:
    """Return the format that a file's name promises, or None."""
    name = path.name.lower().removesuffix(".gz")
    return NAMES.get(name) or SUFFIXES.get(Path(name).suffix)


def read_table(path: Path, columns: ColumnOptions | None = None) -> RawTable:
    """Read a whole file of events or items; ``columns`` tells which columns hold ids besides those of a usual name.

    Raises:
        LargeRecError: the suffix is unknown; the file is missing, empty, cut off or broken (with the row where there is one).
    """
    kind = format_of(path)
    if kind is None:
        known, suffix = ", ".join(SUFFIXES), Path(path.name.removesuffix(".gz")).suffix
        close = difflib.get_close_matches(suffix, SUFFIXES, n=1, cutoff=0.75)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise LargeRecError(
            f"{path}: cannot tell the format by the suffix {suffix!r}{hint} Known: {known}; each also with .gz. "
            "Rename or convert the file."
        )
    data, source = read_bytes(path), str(path)
    if kind == "parquet":
        frame, said = parse_parquet(data, source)
        return RawTable(frame, (), "order" if said == "order" else "timestamp" if said == "timestamp" else None)
    text, notes = _as_utf8(data)
    if kind == "jsonl":
        return RawTable(parse_jsonl(text, source), notes)
    frame, said_more = _parse_text(text, source, kind)
    words = [name for name in frame.columns if holds_words(name, columns or ColumnOptions())]
    return RawTable(infer_types(frame, words), notes + said_more)


def _parse_text(text: bytes, source: str, kind: Format) -> tuple[pl.DataFrame, tuple[str, ...]]:
    if kind == "u.item":
        return parse_items(text, source), ()
    if kind == "movies.dat":
        return parse_movies(text, source), ()
    if kind in ("u.data", "ratings.dat"):
        mark = "\t" if kind == "u.data" else "::"
        return parse_ratings(text, source, mark), (
            "the file has no header: user, item, rating, timestamp are read in this order",
        )
    header = text.partition(b"\n")[0].decode("utf-8")
    expected = "," if kind == "csv" else "\t"
    separator = choose_separator(header, expected)
    frame = parse_delimited(text, source, separator, quoted=separator != "\t")  # tab-separated exports do not quote
    return frame, () if separator == expected else (f"fields are separated by {SEPARATORS[separator]}",)


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
    return b"".join(parts)


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


def _as_utf8(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return text as UTF-8; what is not UTF-8 or UTF-16 is taken as latin-1, the older MovieLens files' encoding."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace").encode(), ("the text is UTF-16",)
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1").encode(), ("the text is not UTF-8: read as latin-1",)
    return data, ()


def peek_columns(path: Path) -> list[str]:
    """Return a file's column names after a short look at it; none where it cannot be told."""
    kind = format_of(path)
    try:
        if kind == "parquet":
            return list(pl.read_parquet_schema(path)) if path.suffix != ".gz" else read_table(path).frame.columns
        if kind == "u.data" or kind == "ratings.dat":
            return list(RATING_COLUMNS)
        if kind == "movies.dat" or kind == "u.item":
            return list(MOVIE_COLUMNS)
        with path.open("rb") as file:
            data = file.read(CHUNK)
        if path.suffix.lower() == ".gz":
            data = zlib.decompressobj(wbits=31).decompress(data, CHUNK)
        line = _as_utf8(data)[0].decode("utf-8").partition("\n")[0].rstrip("\r")
        if kind == "jsonl":
            first = json.loads(line)
            return list(first) if isinstance(first, dict) else []
        separator = choose_separator(line, "," if kind == "csv" else "\t")
        return [name.strip('"') for name in line.split(separator)]
    except (LargeRecError, pl.exceptions.PolarsError, OSError, ValueError, zlib.error, TypeError):
        return []
