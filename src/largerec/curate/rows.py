"""What a step of a plan is given and what it gives back: training rows alone, and what is to become of each.

A step never sees an evaluation row, so it can neither touch one nor learn from one. Letters: R training rows in the order of the
file, N the same rows grouped by user and in time order, as the detectors of an audit see them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from largerec.audit.ordered import Ordered
from largerec.events import EventLog

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
BESIDE = "largerec:beside"  # a passing column beside a log's own, which may have any name but this


@dataclass(frozen=True)
class Training:
    """The training rows of a version.

    Attributes:
        log: the rows as an event log, without the columns that versions add.
        until_R: the last moment at which a row would still be a training row (the log's time unit).
        weight_R: how much each row counts as a target; 0 is history only.
        user_ids: every id of a user that the whole log has, so that a new one can be new.
        seed: of everything random.
    """

    log: EventLog
    until_R: Ints
    weight_R: Floats
    user_ids: pl.Series
    seed: int

    def __len__(self) -> int:
        return self.log.events.height

    @cached_property
    def ordered(self) -> Ordered:
        """The rows as an audit reads them."""
        return Ordered.of(self.log)

    def of_rows(self, value_N: np.ndarray) -> np.ndarray:
        """Values of the ordered rows in the order of the file [R]."""
        value_R = np.empty_like(value_N)
        value_R[self.ordered.row_N] = value_N
        return value_R

    def random(self, name: str) -> np.random.Generator:
        """A source of chance that depends on the plan's seed and the step's name alone."""
        return np.random.default_rng([self.seed, *name.encode()])


@dataclass(frozen=True)
class Change:
    """What a step does to training rows.

    Attributes:
        why: reasons for which rows go, each with the rows it is said of; the first that holds of a row counts.
        factor_R: what the weight of each row is multiplied by, or None; 0 leaves a row as history only.
        columns: new values of whole columns.
        added: rows that come in, of new users, with the columns of events (and ``train_weight``); their ``source_row`` is null.
        facts: numbers for the manifest.
    """

    why: tuple[tuple[str, Bools], ...] = ()
    factor_R: Floats | None = None
    columns: dict[str, pl.Series] = field(default_factory=dict)
    added: pl.DataFrame | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def reasons(self, count: int) -> pl.Series:
        """Why each row goes, null where it stays [R]."""
        code_R = np.full(count, -1, dtype=np.int64)
        for number, (_, mask_R) in reversed(list(enumerate(self.why))):
            code_R[mask_R] = number
        names = dict(enumerate(said for said, _ in self.why))
        return pl.Series("why", code_R).replace_strict(names, default=None, return_dtype=pl.String)
