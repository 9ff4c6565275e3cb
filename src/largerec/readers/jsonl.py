"""One JSON object a line, as in the Amazon reviews."""

from __future__ import annotations

import json

import polars as pl

from largerec.errors import LargeRecError


def parse_jsonl(data: bytes, source: str) -> pl.DataFrame:
    """Parse JSON lines; a key that a line lacks is null there, blank lines are no rows.

    Raises:
        LargeRecError: the text is empty, or a line is not one JSON object.
    """
    if not data.strip():
        raise LargeRecError(f"{source}: the file is empty. Give a file with a JSON object for every event.")
    try:
        return pl.read_ndjson(data, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise _explain(data, source, str(error)) from error


def _explain(data: bytes, source: str, reason: str) -> LargeRecError:
    rows = (line for line in data.split(b"\n") if line.strip())
    for number, line in enumerate(rows, start=1):
        shown = line[:80].decode("utf-8", "replace")
        try:
            value = json.loads(line)
        except ValueError as error:
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
