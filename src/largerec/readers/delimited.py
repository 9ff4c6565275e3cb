"""Text with separators: CSV, TSV and RecBole's ``.inter``. Ids stay as written; other columns become numbers where all fit."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection

import polars as pl

from largerec.errors import LargeRecError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def choose_separator(header: str, expected: str) -> str:
    """Return the expected separator, or the one that the header line really uses where the expected one is absent."""
    if expected in header:
        return expected
    used = [mark for mark in SEPARATORS if mark in header]
    return max(used, key=header.count) if used else expected


def parse_delimited(
    data: bytes, source: str, separator: str, *, names: list[str] | None = None, quoted: bool = True
) -> pl.DataFrame:
    """Parse UTF-8 text into columns of strings, empty fields null.

    Args:
        data: the text, with a header line unless ``names`` gives the columns.
        separator: one byte.
        quoted: whether fields may stand in double quotes, with separators and line ends inside.

    Raises:
        LargeRecError: the text is empty, or a row has too many fields or a broken quote.
    """
    body = data.rstrip(b"\r\n")
    if not body:
        raise LargeRecError(f"{source}: the file is empty. Give a file with a row for every event.")
    try:
        return pl.read_csv(
            body + b"\n",
            separator=separator,
            has_header=names is None,
            new_columns=names,
            infer_schema=False,
            quote_char='"' if quoted else None,
        )
    except pl.exceptions.PolarsError as error:
        raise _explain(body, source, separator, names, quoted, str(error)) from error


def infer_types(frame: pl.DataFrame, keep: Collection[str]) -> pl.DataFrame:
    """Turn columns of strings into numbers where nothing is lost.

    A column becomes Int64 when every value is a canonical integer (no leading zero, no plus sign), else Float64 when every
    value is a number without a leading zero and the column is not in ``keep`` (an id or title "1.10" must not become 1.1).
    """
    return frame.with_columns([_inferred(frame[name], name in keep) for name in frame.columns])


def _inferred(series: pl.Series, keep: bool) -> pl.Series:
    for part in (series.head(1000), series):  # a look at the head spares the work on most columns of words
        whole = part.cast(pl.Int64, strict=False)
        if whole.null_count() == part.len():
            is_whole = False
        else:
            is_whole = whole.null_count() == part.null_count() and bool((whole.cast(pl.String) == part).all())
        if not is_whole:
            break
    if is_whole:
        return whole
    if keep:
        return series
    for part in (series.head(1000), series):
        number = part.cast(pl.Float64, strict=False)
        if number.null_count() > part.null_count() or number.null_count() == part.len() or part.str.contains(r"^[+-]?0\d").any():
            return series
    return number


def _explain(body: bytes, source: str, separator: str, names: list[str] | None, quoted: bool, reason: str) -> LargeRecError:
    """Read row by row, slowly, to name the row that the fast reader could not take."""
    text = io.StringIO(body.decode("utf-8"), newline="")
    rows = csv.reader(text, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=quoted)
    number, suspect = 0, None
    try:
        width = len(names or next(rows))
        for number, row in enumerate(rows, start=1):
            if len(row) > width:
                fix = "Quote a field that holds the separator, or take the surplus out"
                return LargeRecError(
                    f"{source}, row {number}: {len(row)} fields {row[:8]}, but there are {width} columns. {fix}."
                )
            if suspect is None and any('"' in field for field in row):
                suspect = number
    except csv.Error as error:
        return LargeRecError(
            f"{source}, row {number + 1}: a quote is broken ({error}). Close every quote; write a quote in a field as two."
        )
    near = f", row {suspect} (the first with a quote in a field)" if suspect is not None else ""
    return LargeRecError(
        f"{source}{near}: the text cannot be parsed ({reason.splitlines()[0]}). Write a quote in a field as two, in quotes."
    )
