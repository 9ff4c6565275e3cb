"""Rows that cannot be right: where they stand, why they are refused, and the record of those that were dropped on request."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import polars as pl

from largerec.errors import LargeRecError

OnBadRows = Literal["error", "drop"]

# From the number of a row in a table (0-based) to its file and its number there (1 is the first below the header).
Place = Callable[[int], tuple[str, int]]


def in_file(source: str, numbers: Sequence[int] | None = None) -> Place:
    """Rows of one file; ``numbers`` are their 1-based numbers there, where rows between them were left out."""
    return lambda row: (source, row + 1 if numbers is None else numbers[row])


def in_parts(parts: Sequence[tuple[int, Place]]) -> Place:
    """Rows of several tables one below another; each part is its height and the place of its rows."""

    def place(row: int) -> tuple[str, int]:
        for height, of in parts:
            if row < height:
                return of(row)
            row -= height
        raise IndexError(row)

    return place


def first_true(mask: pl.Series) -> int:
    """Return the number of the first row that is true."""
    return cast(int, mask.fill_null(False).arg_max())


class BadRows(LargeRecError):
    """Rows that are refused for one reason: ``mask`` marks them all, the message tells of the first."""

    def __init__(self, message: str, mask: pl.Series, column: str, reason: str) -> None:
        super().__init__(message)
        self.mask, self.column, self.reason = mask.fill_null(False), column, reason


@dataclass(frozen=True)
class Origin:
    """Where the rows of a table came from, so that a message can name the file and the 1-based data row even after a filter."""

    source: str
    kept: pl.Series | None = None  # row numbers (0-based) that the filter kept
    place: Place | None = None

    def at(self, row: int) -> tuple[str, int]:
        """Return the file and the 1-based row there of ``row`` (0-based, after the filter)."""
        number = int(self.kept[row]) if self.kept is not None else row
        return self.place(number) if self.place is not None else (self.source, number + 1)

    def error(self, mask: pl.Series, given: pl.Series, problem: str, fix: str) -> BadRows:
        """Return the error for the rows that ``mask`` marks; ``given`` is their column as it was read."""
        row = first_true(mask)
        value = given[row]
        shown = "nothing (null)" if value is None else repr(value if isinstance(value, str | int | float) else str(value))
        file, number = self.at(row)
        return BadRows(f"{file}, row {number}, column {given.name!r}: {shown} {problem}. {fix}", mask, given.name, problem)


@dataclass(frozen=True)
class DroppedRow:
    """One row that was left out on request: file and 1-based row there, why, and what stood there (values, or a raw line)."""

    file: str
    row: int
    reason: str
    content: Any


FIELDS = ("file", "row", "reason", "content")


def dropped_from(table: pl.DataFrame, bad: BadRows, origin: Origin) -> list[DroppedRow]:
    """Record the rows of a table that an error marks."""
    reason = f"column {bad.column!r} {bad.reason}"
    rows = bad.mask.arg_true()
    return [
        DroppedRow(*origin.at(row), reason, content) for row, content in zip(rows, table[rows].iter_rows(named=True), strict=True)
    ]


def count_reasons(dropped: Iterable[DroppedRow]) -> dict[str, int]:
    """Return how many rows were dropped for each reason, the most frequent first."""
    return dict(Counter(row.reason for row in dropped).most_common())


def write_dropped(dropped: Sequence[DroppedRow], path: Path) -> None:
    """Write dropped rows as JSON lines: file, row, reason, content. Only an earlier list of such rows is written over.

    Raises:
        LargeRecError: the file holds something else, a log perhaps, or cannot be written; the rows would then be lost.
    """
    if not _may_be_replaced(path):
        raise LargeRecError(
            f"{path}: the dropped rows would be written over this file, which is no list of dropped rows. Name another file with "
            "data.dropped=FILE."
        )
    lines = (json.dumps(vars(row), default=str, ensure_ascii=False) + "\n" for row in dropped)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise LargeRecError(
            f"{path}: the dropped rows cannot be written there ({error.strerror}). Name another file with data.dropped=FILE."
        ) from error


def _may_be_replaced(path: Path) -> bool:
    """Whether there is nothing in a file but what :func:`write_dropped` wrote."""
    if not path.is_file():
        return True  # also what is no file, which cannot be written
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    try:
        row = json.loads(first) if first else dict.fromkeys(FIELDS)
    except ValueError:  # no JSON, or no text
        return False
    return isinstance(row, dict) and row.keys() == set(FIELDS)


def told_dropped(dropped: Sequence[DroppedRow], path: Path) -> tuple[str, ...]:
    """Return the note about dropped rows."""
    if not dropped:
        return ()
    reasons = "; ".join(f"{count:,} ({reason})" for reason, count in count_reasons(dropped).items())
    return (f"{len(dropped):,} bad rows are dropped, as asked, and written to {path}: {reasons}",)
