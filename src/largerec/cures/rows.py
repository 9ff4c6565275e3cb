"""Training rows as the small model reads them, and what most trained cures share: a share of the rows to do less with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from largerec.curate.rows import Bools, Change, Floats, Training
from largerec.sequences import Sequences

Action = Literal["remove", "history"]


def sequences_of(training: Training) -> Sequences:
    """The training rows grouped by user, in time order, all of training [N]; ``training.of_rows`` leads back to the file's order.

    Weights come along: a row of weight 0 is history and no target.
    """
    log = training.ordered
    weight_N = training.weight_R[log.row_N].astype(np.float32)
    return Sequences(
        user_ids=log.user_ids,
        item_ids=log.item_ids,
        offsets_U1=log.offsets_U1,
        item_N=log.item_N.astype(np.int64),
        time_N=log.time_N,
        stage_N=np.zeros(len(log), dtype=np.int8),
        behaviour_N=None,
        behaviours=(),
        time_kind=log.time_kind,
        targets_per_user="all",
        weight_N=None if (weight_N == 1).all() else weight_N,
    )


def learned(training: Training) -> Training:
    """The rows that a model learns from: those of weight 0 are left out, as are items and users who have no others."""
    some_R = training.weight_R > 0
    if some_R.all():
        return training
    log = replace(training.log, events=training.log.events.filter(some_R))
    return replace(training, log=log, until_R=training.until_R[some_R], weight_R=training.weight_R[some_R])


def without(training: Training, bad_N: Bools, why: str, action: Action, facts: dict[str, Any]) -> Change:
    """The change that takes rows out, or leaves them as history."""
    bad_R = training.of_rows(bad_N)
    facts = facts | {"rows": int(bad_R.sum())}
    if action == "history":
        return Change(factor_R=np.where(bad_R, 0.0, 1.0), facts=facts)
    return Change(why=((why, bad_R),), facts=facts)


def highest(score_N: npt.ArrayLike, share: float) -> Bools:
    """The ``share`` of the known scores that is highest; rows without one (NaN) are never among them. Ties go by row."""
    score_N = np.asarray(score_N, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(score_N))
    chosen_N = np.zeros(len(score_N), dtype=bool)
    order = known[np.argsort(-score_N[known], kind="stable")]
    chosen_N[order[: round(share * len(known))]] = True
    return chosen_N


__all__ = ["Action", "Bools", "Floats", "highest", "learned", "sequences_of", "without"]
