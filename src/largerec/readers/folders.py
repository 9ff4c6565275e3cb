"""Logs in many files: hive-partitioned folders (``day=2024-03-01/part-0.parquet``) and parts that lie side by side."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from largerec.badrows import in_file, in_parts
from largerec.columns import ColumnOptions, holds_words
from largerec.errors import LargeRecError
from largerec.readers import RawTable, format_of
from largerec.readers.delimited import infer_types

PARTITION = re.compile(r"([A-Za-z_]\w*)=(.*)")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Part:
    """One file of a log, with the values that its folders' names give to all its rows."""

    file: Path
    values: dict[str, str | None]


def _natural(name: str) -> tuple[list[tuple[str, int]], str]:
    """Return a key that sorts names by their words and the values of their numbers: ``hour=2`` before ``hour=10``."""
    return [(word, int(digits or -1)) for word, digits in re.findall(r"(\D*)(\d*)", name)], name


def hive_parts(folder: Path) -> list[Part]:
    """Return the files below ``key=value`` folders, by path with numbers in order; none where there are no such folders.

    Raises:
        LargeRecError: files lie at different depths, so that some rows would lack a partition's value.
    """
    if not any(PARTITION.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir()):
        return []
    parts = []
    for file in sorted(folder.rglob("*"), key=lambda file: _natural(file.relative_to(folder).as_posix())):
        steps = file.relative_to(folder).parts
        if not file.is_file() or format_of(file) is None or any(step.startswith(("_", ".")) for step in steps):
            continue
        pairs = [found.groups() for step in steps[:-1] if (found := PARTITION.fullmatch(step))]
        parts.append(Part(file, {key: None if value == NO_VALUE else unquote(value) for key, value in pairs}))
    for part in parts:
        if list(part.values) != list(parts[0].values):
            raise LargeRecError(
                f"{part.file}: it lies under {list(part.values) or 'no partition'}, "
                f"but {parts[0].file} under {list(parts[0].values)}. "
                "Put all files of a log under the same key=value folders."
            )
    if not parts:
        raise LargeRecError(f"{folder}: the key=value folders hold no file of a known format. Give Parquet, CSV or JSON lines.")
    return parts


def parts_side_by_side(files: list[Path]) -> list[Part]:
    """Return two or more files whose names differ in numbers only (``part-00000.parquet`` ...), in the order of the numbers."""
    shapes = {re.sub(r"\d+|[0-9a-f]{8,}", "#", file.name) for file in files}
    if len(files) < 2 or len(shapes) != 1:
        return []
    return [Part(file, {}) for file in sorted(files, key=lambda file: _natural(file.name))]


def read_parts(parts: list[Part], columns: ColumnOptions, folder: Path, read: Callable[[Path], RawTable]) -> RawTable:
    """Read the files of a log one below another; ``read`` reads one.

    Raises:
        LargeRecError: a file is broken, or a partition's key is also a column of the files, or the types of a column do not go
            together.
    """
    tables = [read(part.file) for part in parts]
    frames = []
    for part, table in zip(parts, tables, strict=True):
        both = [key for key in part.values if key in table.frame.columns]
        if both:
            raise LargeRecError(f"{part.file}: {both[0]!r} is a column of the file and a folder's key. Rename one of them.")
        given = [pl.lit(value, dtype=pl.String).alias(key) for key, value in part.values.items()]
        frames.append(table.frame.with_columns(given))
    try:
        whole = pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise LargeRecError(
            f"{folder}: the {len(parts)} files do not go together ({str(error).splitlines()[0]}). "
            "Give each column one type in all files."
        ) from error
    keys = list(parts[0].values)
    whole = (
        whole.with_columns(infer_types(whole.select(keys), [key for key in keys if holds_words(key, columns)])) if keys else whole
    )
    places = [(table.frame.height, table.place or in_file(str(part.file))) for part, table in zip(parts, tables, strict=True)]
    notes = [f"{len(parts)} files of the folder {folder.name} are read, {parts[0].file.name} first"]
    if keys:
        notes.append(f"columns from the names of folders or files: {', '.join(keys)}")
    first, names = tables[0], set(whole.columns)
    gaps = sorted(name for name in names if any(name not in frame.columns for frame in frames))
    if gaps:
        notes.append(f"columns that not every file has are empty in the others: {', '.join(gaps)}")
    notes += dict.fromkeys(note for table in tables for note in table.notes)
    return RawTable(
        whole,
        tuple(notes),
        first.time_kind,
        first.untimed,
        first.columns,
        in_parts(places),
        tuple(row for table in tables for row in table.dropped),
    )
