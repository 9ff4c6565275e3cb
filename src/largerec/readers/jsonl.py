"""One JSON object a line, as in the Amazon reviews."""

from __future__ import annotations

import ast
import json

import polars as pl

from largerec.badrows import DroppedRow
from largerec.errors import LargeRecError

SAMPLE = 1000  # lines that are looked at for groups
PYTHON_ERRORS = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)  # what ast.literal_eval and json.dumps raise


def parse_jsonl(data: bytes, source: str) -> pl.DataFrame:
    """Parse JSON lines; a key that a line lacks is null there, blank lines are no rows, objects within objects stay JSON text.

    Lines in Python's spelling (single quotes, as Amazon's metadata of 2014) are read as well.

    Raises:
        LargeRecError: the text is empty, or a line is not one JSON object.
    """
    if not data.strip():
        raise LargeRecError(f"{source}: the file is empty. Give a file with a JSON object for every event.")
    if data.lstrip().startswith(b"{'"):
        data = _from_python(data, source)
    try:
        # Groups differ from line to line (Amazon's details have thousands of keys), so they are not made columns.
        head = pl.read_ndjson(data, infer_schema_length=SAMPLE, n_rows=SAMPLE)
        groups: pl.Schema | dict[str, type[pl.String]] = {
            name: pl.String for name, dtype in head.schema.items() if _holds_groups(dtype)
        }
        return pl.read_ndjson(data, infer_schema_length=None, schema_overrides=groups or None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _explain(data, source, str(error)) from error


def _holds_groups(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.Struct) or (isinstance(dtype, pl.List) and _holds_groups(dtype.inner))  # type: ignore[arg-type]


def _literal(line: bytes) -> bytes:
    """Turn a line that is a Python literal into JSON; raise one of ``PYTHON_ERRORS`` where it is none."""
    return json.dumps(ast.literal_eval(line.decode("utf-8").strip())).encode()


def _from_python(data: bytes, source: str) -> bytes:
    """Turn lines that are Python dictionaries into JSON lines; only literals are read, nothing is run."""
    lines = []
    for number, line in enumerate((line for line in data.split(b"\n") if line.strip()), start=1):
        try:
            lines.append(_literal(line))
        except PYTHON_ERRORS as error:
            shown = line[:80].decode("utf-8", "replace")
            raise LargeRecError(
                f"{source}, row {number}: {shown!r} is neither JSON nor a Python dictionary ({error}). "
                "Write JSON, in double quotes."
            ) from None
    return b"\n".join(lines)


def _explain(data: bytes, source: str, reason: str) -> LargeRecError:
    rows = (line for line in data.split(b"\n") if line.strip())
    for number, line in enumerate(rows, start=1):
        shown = line[:80].decode("utf-8", "replace")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            fix = (
                "Write one JSON object a line; a JSON array must be unrolled"
                if shown.startswith("[")
                else "Write one whole JSON object a line"
            )
            return LargeRecError(f"{source}, row {number}: {shown!r} is not JSON ({error}). {fix}.")
        if not isinstance(value, dict):
            return LargeRecError(
                f"{source}, row {number}: {shown!r} is a JSON {type(value).__name__}, not an object. Write one object a line."
            )
    return LargeRecError(
        f"{source}: the lines cannot be read together ({reason.splitlines()[0]}). Give each key one type of value."
    )


def parse_leniently(data: bytes, source: str) -> tuple[pl.DataFrame, list[int], list[DroppedRow]]:
    """Parse as :func:`parse_jsonl`, but leave out lines that are not one JSON object.

    Returns:
        The table, the 1-based number of each of its rows (blank lines are no rows), and what was left out.

    Raises:
        LargeRecError: no line is an object, or the objects cannot be read together.
    """
    kept: list[bytes] = []
    numbers: list[int] = []
    dropped: list[DroppedRow] = []
    python = data.lstrip().startswith(b"{'")
    for number, line in enumerate((line for line in data.split(b"\n") if line.strip()), start=1):
        try:
            text = _literal(line) if python else line
            problem = "" if isinstance(json.loads(text), dict) else "the line is no JSON object"
        except PYTHON_ERRORS:
            problem = "the line is no JSON"
        if problem:
            dropped.append(DroppedRow(source, number, problem, line.decode("utf-8", "replace")))
        else:
            kept.append(text)
            numbers.append(number)
    return parse_jsonl(b"\n".join(kept), source), numbers, dropped
