"""Parquet, with the kind of time that ``EventLog.write`` keeps beside the columns."""

from __future__ import annotations

import io

import polars as pl

from largerec.columns import METADATA_KEY
from largerec.errors import LargeRecError


def parse_parquet(data: bytes, source: str) -> tuple[pl.DataFrame, str | None]:
    """Return the table, and "timestamp" or "order" where the file says which its times are.

    Raises:
        LargeRecError: the file is empty, cut off or not Parquet.
    """
    if not data:
        raise LargeRecError(f"{source}: the file is empty. Give a Parquet file with a row for every event.")
    try:
        table = pl.read_parquet(io.BytesIO(data))
        return table, pl.read_parquet_metadata(io.BytesIO(data)).get(METADATA_KEY)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise LargeRecError(f"{source}: no whole Parquet file ({reason}). It may be cut off: copy or write it again.") from error
