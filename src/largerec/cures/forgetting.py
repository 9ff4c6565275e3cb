"""Forgetting events (Toneva et al. 2019, "An Empirical Study of Example Forgetting during Deep Neural Network Learning").

An event is known after a pass if its item is in the small model's top ``k`` then; it is forgotten when it was known after one
pass and is not after the next. Events that are known early and never forgotten teach little (the paper trains on the others
alone); events that are never known are what noise looks like. Losses are those of learning, in sample, as in the paper.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from largerec.curate.rows import Change, Training
from largerec.cures.rows import Action, Bools, Floats, highest, sequences_of, without
from largerec.learner import Learner, LearnerOptions
from largerec.options import Options


class ForgettingStep(Options):
    """Take out what a small model never comes to know, or what it never forgets.

    ``take``: ``never-known`` (the ``share`` of the events with the largest mean losses among those never in the top ``k``), or
    ``unforgettable`` (the ``share`` with the smallest among those known and never forgotten).
    """

    draws: ClassVar[bool] = True
    name: Literal["forgetting"] = "forgetting"
    take: Literal["never-known", "unforgettable"] = "never-known"
    share: float = Field(0.1, gt=0, lt=1)
    k: int = Field(10, ge=1)
    action: Action = "history"
    learner: LearnerOptions = LearnerOptions()

    def change(self, training: Training) -> Change:
        """Takes out the least, or the best, known events."""
        known_EN, loss_N = self.history(training)
        loss_N[training.weight_R[training.ordered.row_N] == 0] = np.nan  # history is not asked about
        forgotten_N = forgetting_events(known_EN)
        never_N, asked_N = ~known_EN.any(axis=0), ~np.isnan(loss_N)
        unforgettable_N = known_EN.any(axis=0) & (forgotten_N == 0)
        some_N = (never_N if self.take == "never-known" else unforgettable_N) & asked_N
        score_N = np.where(some_N, loss_N if self.take == "never-known" else -loss_N, np.nan)
        share = min(1.0, self.share * asked_N.sum() / max(1, some_N.sum()))
        why = "a small model never came to know it" if self.take == "never-known" else "a small model knew it and never forgot it"
        facts = {
            "asked": int(asked_N.sum()),
            "never_known": int((never_N & asked_N).sum()),
            "unforgettable": int((unforgettable_N & asked_N).sum()),
            "forgetting_events": int(forgotten_N[asked_N].sum()),
        }
        return without(training, highest(score_N, share), why, self.action, facts)

    def history(self, training: Training) -> tuple[Bools, Floats]:
        """Whether each event was known after each pass [E, N], and its mean loss over passes, NaN without a history [N]."""
        learner = Learner(sequences_of(training), self.learner, training.seed)
        known, total_N = [], np.zeros(len(training))

        def look(epoch: int) -> None:
            rank_N, loss_N = learner.ranks_and_losses()
            known.append(rank_N <= self.k)
            total_N.__iadd__(loss_N)

        learner.learn(after_epoch=look)
        return np.stack(known), total_N / len(known)


def forgetting_events(known_EN: Bools) -> np.ndarray:
    """How often each event was known after a pass and not after the next one [N]."""
    counts_N: np.ndarray = (known_EN[:-1] & ~known_EN[1:]).sum(axis=0)
    return counts_N
