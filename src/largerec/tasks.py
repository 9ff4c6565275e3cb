"""Tasks: what is to be predicted of an event beside which item it is, read from the log's own columns.

A label is a small whole number: 0 or 1 for a condition, the class for a number cut at quantiles, ``UNKNOWN`` where the log does
not say. Labels are predicted by the task heads, and they are input: what a user did with an item is part of the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from largerec.errors import LargeRecError
from largerec.options import Options

UNKNOWN = -1
MOST_CLASSES = 64
SAMPLE = 4096
"""Rows on which an expression is tried apart from the rest of the log."""
ALONE = 16
"""Rows with the smallest results, and as many with the largest, on which it is tried one by one."""


class TaskOptions(Options):
    """One task; give ``where`` or ``quantiles_of``, in SQL on the columns of the log as ``largerec data describe`` names them.
    Both are about one row: an average or a window over rows would look at the test's too, and is refused.

    ``where``: a condition; the label is 1 where it holds, 0 where not, unknown where it is null. ``quantiles_of``: a number,
    cut into ``classes`` (8 if not given) at its quantiles among training events, unknown where it is null, NaN or infinite.
    ``weight``: of its loss.
    """

    where: str | None = None
    quantiles_of: str | None = None
    classes: int | None = Field(None, ge=2, le=MOST_CLASSES)
    weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.where is None) == (self.quantiles_of is None):
            raise LargeRecError(
                'a task needs either where, such as where="is_click = 1", or quantiles_of, such as quantiles_of="play_time_ms".'
            )
        if self.where is not None and self.classes is not None:
            raise LargeRecError("classes says nothing for a task with where, whose label is 0 or 1; leave it out.")
        return self

    @property
    def n_classes(self) -> int:
        """How many labels there are."""
        return 2 if self.where is not None else self.classes or 8


def _evaluated(events: pl.DataFrame, text: str, option: str) -> pl.Series:
    """One SQL expression over the columns of a log.

    Raises:
        LargeRecError: it is no SQL, names no column, does not give one value a row, or looks at other rows.
    """
    columns = ", ".join(events.columns)
    try:
        expression = pl.sql_expr(text).alias("found")
        found = events.select(expression)["found"]
    except pl.exceptions.PolarsError as error:
        reason = str(error).split("\n")[0]
        raise LargeRecError(f"{option}={text!r} cannot be used: {reason}. Columns of the log: {columns}.") from None
    if found.len() != events.height:
        raise LargeRecError(
            f"{option}={text!r} gives {found.len()} values for {events.height:,} rows; it must be about one row. "
            f"Columns: {columns}."
        )
    if _looks_at_other_rows(events, expression, found):
        raise LargeRecError(
            f"{option}={text!r} must be about one row; AVG, RANK, OVER and the like look at other rows, the test's too. "
            'Compare with a number that you know, such as "value >= 4", or let quantiles_of cut at quantiles of training events.'
        )
    return found


def _looks_at_other_rows(events: pl.DataFrame, expression: pl.Expr, found: pl.Series) -> bool:
    """Whether an expression's values change when rows stand apart from the rest of the log.

    Tried are the halves with the smaller and the larger values, which differ as much as two halves can, and a few rows of both
    ends on their own. (What polars says of an expression, ``meta.is_row_separable``, is wrong about ``value > AVG(value)``.)
    """
    known = found.arg_sort(nulls_last=True)[: found.len() - found.null_count()].to_numpy()
    sample = known[np.unique(np.linspace(0, len(known) - 1, SAMPLE).astype(np.int64))] if len(known) else known
    apart = [*np.array_split(sample, 2), *(rows for end in (known[:ALONE], known[-ALONE:]) for rows in end[:, None])]
    return any(not events[rows].select(expression)["found"].eq_missing(found[rows]).all() for rows in apart if len(rows))


def condition(events: pl.DataFrame, text: str, option: str) -> pl.Series:
    """A condition over the columns of a log as booleans; null where it is unknown.

    Raises:
        LargeRecError: as SQL it cannot be used, or it is not true or false.
    """
    found = _evaluated(events, text, option)
    if found.dtype != pl.Boolean:
        raise LargeRecError(
            f'{option}={text!r} gives {found.dtype}, not true or false. Write a condition, e.g. "is_click = 1" or "value >= 4".'
        )
    return found


def task_values(events: pl.DataFrame, tasks: Mapping[str, TaskOptions]) -> np.ndarray:
    """The numbers behind the labels, before any is cut into classes; NaN where the log does not say, by
    null, NaN or an infinity. [N, tasks]

    Raises:
        LargeRecError: an expression cannot be used, is of the wrong type, or is known for no row.
    """
    found = []
    for name, task in tasks.items():
        if task.where is not None:
            values = condition(events, task.where, f"tasks.{name}.where")
        else:
            values = _evaluated(events, task.quantiles_of or "", f"tasks.{name}.quantiles_of")
            if not values.dtype.is_numeric():
                raise LargeRecError(f"tasks.{name}.quantiles_of={task.quantiles_of!r} gives {values.dtype}; name a number.")
        numbers = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
        if np.isnan(numbers).all():
            raise LargeRecError(f"task {name!r} is unknown for every row of the log; there is nothing to learn or to measure.")
        found.append(numbers)
    return np.stack(found, axis=1)


def labels(
    value_NA: np.ndarray, trained_N: np.ndarray, tasks: Mapping[str, TaskOptions]
) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
    """Labels [N, tasks] (int64, ``UNKNOWN`` where the value is NaN), and the edges between the classes of each cut task.

    The edges are quantiles of training values alone. Equal edges stay: the classes between them are empty.
    """
    label_NA = np.full(value_NA.shape, UNKNOWN, dtype=np.int64)
    edges: dict[str, tuple[float, ...]] = {}
    for column, (name, task) in enumerate(tasks.items()):
        value_N = value_NA[:, column]
        known_N = ~np.isnan(value_N)
        if not (known_N & trained_N).any():
            raise LargeRecError(f"task {name!r} is unknown for every training event, so there is nothing to learn.")
        if task.where is not None:
            label_NA[known_N, column] = value_N[known_N].astype(np.int64)
            continue
        cut = np.quantile(value_N[known_N & trained_N], np.linspace(0, 1, task.n_classes + 1)[1:-1])
        edges[name] = tuple(float(edge) for edge in cut)
        label_NA[known_N, column] = np.searchsorted(cut, value_N[known_N], side="right")
    return label_NA, edges
