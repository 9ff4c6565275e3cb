"""Text with separators: CSV, TSV and RecBole's ``.inter``. Ids stay as written; other columns become numbers where all fit."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import polars as pl

from largerec.badrows import DroppedRow
from largerec.columns import TimeKind
from largerec.errors import LargeRecError

FIELD_MARK = "\x1f"  # ASCII's unit separator stands for '::', since the fast reader takes one byte
TAIL = 1024
MAX_LINES_IN_QUOTES = 100  # a quoted field with more line ends is taken for a quote that was not closed
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Layout:
    """How the fields of a text stand.

    Attributes:
        separator: what stands between fields; more than one character, such as ``::``, only where nothing is quoted.
        names: the columns of a text without a header line; None where there is one.
        quoted: whether fields may stand in double quotes, with separators and line ends inside.
        meaning: what the fields of a text without a header are, for messages.
        notes: what was decided about the layout.
        columns: role to column, and ``time_kind``, where the format says so.
    """

    separator: str
    names: tuple[str, ...] | None = None
    quoted: bool = True
    meaning: str = ""
    notes: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    time_kind: TimeKind | None = None


def choose_separator(header: str, expected: str) -> str:
    """Return the expected separator, or the one that the header line really uses where the expected one is absent."""
    if expected in header:
        return expected
    used = [mark for mark in SEPARATORS if mark in header]
    return max(used, key=header.count) if used else expected


def parse_delimited(data: bytes, source: str, layout: Layout) -> pl.DataFrame:
    """Parse UTF-8 text into columns of strings, empty fields null.

    Raises:
        LargeRecError: the text is empty, the header names a column twice, or a row has too many or too few fields or a broken
            quote.
    """
    body, layout = _body(data, source, layout)
    if layout.names is None:
        _refuse_repeated_names(body, source, layout)
    quoted = layout.quoted and b'"' in body
    if not quoted and body.count(b"\r") != body.count(b"\r\n"):
        _refuse_carriage_return(body, source, layout)
    try:
        table = pl.read_csv(
            body,
            separator=layout.separator,
            has_header=layout.names is None,
            new_columns=layout.names,
            infer_schema=False,
            quote_char='"' if quoted else None,
        )
    except pl.exceptions.PolarsError as error:
        raise _explain(body, source, layout, quoted, str(error)) from error
    # The fast reader fills up short rows, which are mostly lines that were cut off, with their last value damaged. Without quotes
    # the number of separators tells; with quotes only a row that ends in a gap can be one.
    expected = (table.height + (layout.names is None)) * (table.width - 1)
    short = body.count(layout.separator.encode()) != expected
    if short and (not quoted or table[:, -1].null_count()):
        _refuse_short(body, source, layout, quoted)
    return table


def _body(data: bytes, source: str, layout: Layout) -> tuple[bytes, Layout]:
    """Return the text without blank lines at its end, each separator one byte, and the layout of that.

    Raises:
        LargeRecError: nothing is left, or the first row of a text without a header does not have its fields.
    """
    tail = data[-TAIL:].rstrip(b"\r\n")  # a look at the end spares a copy of a large text
    whole = tail and data[-TAIL:][len(tail) :] in (b"\n", b"\r\n")
    body = data if whole else data.rstrip(b"\r\n") + b"\n"
    if body == b"\n":
        raise LargeRecError(f"{source}: the file is empty. Give a file with a row for every event.")
    if layout.names is not None:
        width, count = len(layout.names), body[: body.find(b"\n")].count(layout.separator.encode()) + 1
        if count != width:
            raise LargeRecError(
                f"{source}, row 1: {count} fields between {layout.separator!r}, but a file of this name has {width} "
                f"({layout.meaning}). Give another kind of table as CSV with a header line."
            )
    if len(layout.separator) > 1:
        return body.replace(layout.separator.encode(), FIELD_MARK.encode()), replace(layout, separator=FIELD_MARK)
    return body, layout


def _refuse_carriage_return(body: bytes, source: str, layout: Layout) -> None:
    """The fast reader drops a carriage return at the end of a field, so that the value would be another one."""
    at = re.search(rb"\r(?!\n)", body)
    assert at is not None
    row = body.count(b"\n", 0, at.start()) + (layout.names is not None)
    raise LargeRecError(
        f"{source}, {f'row {row}' if row else 'header line'}: a carriage return stands inside the line. If the lines of the file "
        "end with carriage returns alone, convert them to line feeds; else take it out."
    )


def _refuse_repeated_names(body: bytes, source: str, layout: Layout) -> None:
    """The fast reader gives a second column of a name another name, so that nobody would know which of the two is meant."""
    header, _, problem = _one_row([body[: body.find(b"\n")].decode("utf-8")], 0, layout)
    twice = [name for number, name in enumerate(header) if name.strip() and name in header[:number]]
    if twice and not problem:
        raise LargeRecError(
            f"{source}: the header names column {twice[0]!r} twice: {header[:20]}. Give each its own name, or take one out."
        )


def _refuse_short(body: bytes, source: str, layout: Layout, quoted: bool) -> None:
    rows = _slow_rows(body, layout.separator, quoted)
    width = len(layout.names or next(rows))
    for number, row in enumerate(rows, start=1):
        if 0 < len(row) < width:  # a blank line is found by its missing user
            raise LargeRecError(
                f"{source}, row {number}: {len(row)} fields {row[:8]}, but there are {width} columns. "
                "The line may be cut off: complete it, or take it out."
            )


def _slow_rows(body: bytes, separator: str, quoted: bool) -> Iterator[list[str]]:
    if quoted:
        return csv.reader(
            io.StringIO(body.decode("utf-8"), newline=""), delimiter=separator, quoting=csv.QUOTE_MINIMAL, strict=True
        )
    # As the fast reader does: only line feeds end a line, and nothing else is special.
    lines = body.decode("utf-8").removesuffix("\n").split("\n")
    return (line.removesuffix("\r").split(separator) if line.strip("\r") else [] for line in lines)


def parse_leniently(data: bytes, source: str, layout: Layout) -> tuple[pl.DataFrame, list[int], list[DroppedRow]]:
    """Parse as :func:`parse_delimited`, row by row, but leave out rows with too many or too few fields or a broken quote.

    Returns:
        The table, the 1-based number of each of its rows, and what was left out. A quote that is never closed ends with its line.

    Raises:
        LargeRecError: the text is empty, or already its first line does not fit.
    """
    body, layout = _body(data, source, layout)
    lines = body.decode("utf-8").split("\n")[:-1]
    kept: list[list[str | None]] = []
    numbers: list[int] = []
    dropped: list[DroppedRow] = []
    header = list(layout.names) if layout.names is not None else None
    at = number = 0
    while at < len(lines):
        row, used, problem = _one_row(lines, at, layout)
        raw, at = "\n".join(lines[at : at + used]), at + used
        if header is None:
            if problem:
                raise LargeRecError(f"{source}: the header line has a broken quote: {raw[:80]!r}. Mend it.")
            header = row
            continue
        number += 1
        if not problem and len(row) != len(header):
            problem = f"the line has {len(row)} fields, not {len(header)}" if raw.strip() else "the line is blank"
        if problem:
            shown = raw.replace(FIELD_MARK, "::") if layout.separator == FIELD_MARK else raw
            dropped.append(DroppedRow(source, number, problem, shown))
        else:
            kept.append([value or None for value in row])
            numbers.append(number)
    assert header is not None
    if len(set(header)) < len(header):
        raise LargeRecError(f"{source}: the header names a column twice: {header[:20]}. Give each column its own name.")
    return pl.DataFrame(kept, schema=dict.fromkeys(header, pl.String), orient="row"), numbers, dropped


def _one_row(lines: list[str], at: int, layout: Layout) -> tuple[list[str], int, str]:
    """Return the fields of the row that starts on a line, how many lines it takes, and what is wrong with it."""
    line = lines[at].removesuffix("\r")
    if not layout.quoted or '"' not in line:
        return line.split(layout.separator), 1, ""
    for used in range(1, min(MAX_LINES_IN_QUOTES, len(lines) - at) + 1):
        text = "\n".join(lines[at : at + used]).removesuffix("\r")
        try:
            (row,) = csv.reader(io.StringIO(text, newline=""), delimiter=layout.separator, strict=True)
            return row, used, ""
        except csv.Error as error:
            if "unexpected end" not in str(error):
                break
        except ValueError:  # several rows: the quote was closed by that of another row
            break
    return [], 1, "a quote is broken"


def infer_types(frame: pl.DataFrame, keep: Collection[str]) -> pl.DataFrame:
    """Turn columns of strings into numbers where nothing is lost.

    A column becomes Int64 when every value is a canonical integer (no leading zero, no plus sign), else Float64 when every
    value is a number without a leading zero and the column is not in ``keep`` (an id or title "1.10" must not become 1.1).
    """
    return frame.with_columns([_inferred(frame[name], name in keep) for name in frame.columns])


def _inferred(series: pl.Series, keep: bool) -> pl.Series:
    head = series.drop_nulls().head(1000)  # a look at it spares the work on most columns of words; blanks say nothing
    for part in (head, series):
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
    for part in (head, series):
        number = part.cast(pl.Float64, strict=False)
        if number.null_count() > part.null_count() or number.null_count() == part.len() or part.str.contains(r"^[+-]?0\d").any():
            return series
    return number


def _explain(body: bytes, source: str, layout: Layout, quoted: bool, reason: str) -> LargeRecError:
    """Read row by row, slowly, to name the row that the fast reader could not take."""
    rows = _slow_rows(body, layout.separator, quoted)
    number, suspect = 0, None
    try:
        width = len(layout.names or next(rows))
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
