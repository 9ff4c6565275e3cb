"""Parquet, with the kind of time that ``EventLog.write`` keeps beside the columns."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from largerec.columns import METADATA_KEY, UNTIMED, UNTIMED_MARK
from largerec.errors import LargeRecError


def parse_parquet(data: bytes | Path, source: str) -> tuple[pl.DataFrame, str | None]:
    """Return the table, and what the file says of its times ("timestamp" or "order", perhaps with a mark behind it).

    Raises:
        LargeRecError: the file is empty, cut off or not Parquet.
    """
    if isinstance(data, Path):
        try:
            if data.is_dir() or data.stat().st_size:
                data.open("rb").close()
            else:
                data = b""
        except OSError as error:
            raise LargeRecError(f"{source}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    if data == b"":
        raise LargeRecError(f"{source}: the file is empty. Give a Parquet file with a row for every event.")
    try:
        file: Path | io.BytesIO = io.BytesIO(data) if isinstance(data, bytes) else data
        table = pl.read_parquet(file, hive_partitioning=False, glob=False)
        said = pl.read_parquet_metadata(file).get(METADATA_KEY)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise LargeRecError(f"{source}: no whole Parquet file ({reason}). It may be cut off: copy or write it again.") from error
    if said is not None and said.endswith(UNTIMED_MARK) and "timestamp" in table.columns:
        table = table.with_columns(pl.col("timestamp").replace(UNTIMED, None))
    return table, said
