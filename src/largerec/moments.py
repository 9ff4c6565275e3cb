"""Hours and weekdays that are made of the times of events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from largerec.columns import UNTIMED

CLOCK = ("hour", "weekday")
"""Context features that are made of an event's time (UTC), where the log has no columns of these names."""


def clock_columns(names: Mapping[str, Any], time_N: np.ndarray) -> dict[str, pl.Series]:
    """``hour`` and ``weekday`` (1 is Monday), as far as they are asked for, of times in ms UTC; null where unknown."""
    times = pl.Series(time_N, dtype=pl.Int64).cast(pl.Datetime("ms"))
    unknown = pl.Series([None], dtype=pl.Int8)
    found = {"hour": times.dt.hour(), "weekday": times.dt.weekday()}
    return {name: found[name].cast(pl.Int8).zip_with(pl.Series(time_N != UNTIMED), unknown) for name in CLOCK if name in names}
