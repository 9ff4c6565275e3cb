"""Bins of time: as fine as a chart of some width can show."""

from __future__ import annotations

import numpy as np

# What one bin may hold, as (name, unit of numpy, how many), from fine to coarse.
BINS = (
    *(("minute", "m", 1), ("hour", "h", 1), ("day", "D", 1), ("week", "D", 7)),
    *(("month", "M", 1), ("quarter", "M", 3), ("year", "Y", 1), ("decade", "Y", 10)),
)
MOST_BINS = 120
MONDAY = 4  # 1970-01-05, in days since the epoch


def activity(time_N: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """The finest bins of time (at most 120) that hold all events: name of a bin, bin of each event [N], B + 1 edges in ms."""
    first_ms, last_ms = time_N.min(), time_N.max()
    for name, unit, count in BINS:
        first, last = (int(_number(np.array([moment]), name, unit, count)[0]) for moment in (first_ms, last_ms))
        if last - first < MOST_BINS:
            break
    shift = MONDAY if name == "week" else 0
    edge_B1 = np.arange(first, last + 2) * count + shift
    edge_B1 = edge_B1.astype(f"datetime64[{unit}]").astype("datetime64[ms]").astype(np.int64)
    return name, np.searchsorted(edge_B1, time_N, side="right") - 1, edge_B1


def _number(time_N: np.ndarray, name: str, unit: str, count: int) -> np.ndarray:
    shift = MONDAY if name == "week" else 0
    number_N: np.ndarray = (time_N.astype("datetime64[ms]").astype(f"datetime64[{unit}]").astype(np.int64) - shift) // count
    return number_N
