"""Steps that add rows without a model: the same events again, in another order, as sequences of new users."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from largerec.columns import next_ids
from largerec.curate.rows import Change, Ints, Training
from largerec.curate.versions import MADE
from largerec.errors import LargeRecError
from largerec.options import Options


class ReorderStep(Options):
    """Add each user's sequence again in another order, so that a model also learns what goes together whichever came first.

    ``order``: ``reverse``, or ``shuffle`` (``copies`` of it, each drawn anew). ``weight``: of an added event as a target. The
    k-th event of a copy has the k-th time of its user. In the manner of reordered views (CL4SRec, Xie et al. 2022) and of
    permutation language modelling (XLNet, Yang et al. 2019), but as data, so that any model and loss can use it.
    """

    draws: ClassVar[bool] = True
    makes_rows: ClassVar[bool] = True
    name: Literal["reorder"] = "reorder"
    order: Literal["reverse", "shuffle"] = "reverse"
    copies: int = Field(1, ge=1)
    weight: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _there_is_one_reverse(self) -> Self:
        if self.order == "reverse" and self.copies > 1:
            raise LargeRecError('reorder: copies says nothing with order = "reverse", of which there is one; leave it out.')
        return self

    def change(self, training: Training) -> Change:
        """Adds sequences, each of a new user. Rows of weight 0 are left out: they would come back as something to learn; so are
        sequences of one event."""
        log = training.ordered
        live_N = training.weight_R[log.row_N] > 0
        count_U = np.bincount(log.user_N[live_N], minlength=len(log.user_ids))
        place_M = np.flatnonzero(live_N & (count_U[log.user_N] > 1))
        user_M, random = log.user_N[place_M], training.random(f"reorder {self.order}")
        parts = [self._copy(user_M, place_M, random) for _ in range(self.copies)]
        users, rank_M = np.unique(user_M, return_inverse=True)
        ids = new_ids(training.user_ids, self.copies * len(users), "reordered")
        rows = [
            log.events[log.row_N[place_M]].with_columns(
                ids.gather(rank_M + number * len(users)).alias("user_id"),
                log.events["item_id"].gather(log.row_N[item_M]).alias("item_id"),
                pl.lit(self.weight).alias("train_weight"),
                pl.lit(True).alias(MADE),
            )
            for number, item_M in enumerate(parts)
        ]
        columns = ["user_id", "item_id", "timestamp", "train_weight", MADE]
        added = pl.concat(rows).select(*columns, *(["behavior"] if "behavior" in log.events.columns else []))
        return Change(added=added, facts={"sequences": self.copies * len(users)})

    def _copy(self, user_M: np.ndarray, place_M: Ints, random: np.random.Generator) -> Ints:
        """Whose item each place of the copy has, by places of the log."""
        key_M = -place_M if self.order == "reverse" else random.random(len(place_M))
        copied: Ints = place_M[np.lexsort([key_M, user_M])]
        return copied


def new_ids(known: pl.Series, count: int, word: str) -> pl.Series:
    """Ids that no user has, of the same type: the next integers, or ``word 0`` and so on."""
    if known.dtype.is_integer():
        return next_ids(known, count)
    taken, names, number = set(known.to_list()), list[str](), 0
    while len(names) < count:
        if (name := f"{word} {number}") not in taken:
            names.append(name)
        number += 1
    return pl.Series(names, dtype=pl.String)
