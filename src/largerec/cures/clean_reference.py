"""Small loss against a clean reference: events that a model of trusted rows finds unlikely, and more so than it must.

The small-loss rule (Jiang et al. 2018, MentorNet; Han et al. 2018, Co-teaching) takes what a model finds easy for clean. A model
of everything has learned the noise too; a reference that learned from trusted rows alone has not. The score of an event is the
reference's loss, less that of a model of other users' rows at large where ``excess`` is set: what is hard for both is rare, not
wrong (the reducible loss of Mindermann et al. 2022, "Prioritized Training", with its sign turned). Both are out of fold.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from largerec.audit import misclicks
from largerec.curate.rows import Change, Training
from largerec.cures.rows import Action, Bools, Floats, highest, sequences_of, without
from largerec.errors import LargeRecError
from largerec.learner import Halves, Learner, LearnerOptions, out_of_fold_losses
from largerec.options import Options
from largerec.tasks import condition


class CleanReferenceStep(Options):
    """Take out the ``share`` of the events that a model of trusted rows finds least likely.

    ``trusted``: a condition in SQL on the log's columns, such as "rating >= 4"; where it is not given, the half of each user's
    events that fit their neighbours best, by the audit's counts. ``excess``: subtract the loss of a model of all rows.
    """

    draws: ClassVar[bool] = True
    name: Literal["clean-reference"] = "clean-reference"
    trusted: str | None = None
    share: float = Field(0.1, gt=0, lt=1)
    excess: bool = False
    action: Action = "history"
    learner: LearnerOptions = LearnerOptions()

    def change(self, training: Training) -> Change:
        """Takes out the events with the largest losses.

        Raises:
            LargeRecError: the condition cannot be read, or no row is trusted.
        """
        trusted_N = self.trusted_rows(training)
        loss_N = self.losses(training, trusted_N)
        score_N = loss_N
        if self.excess:
            score_N = loss_N - out_of_fold_losses(sequences_of(training), self.learner, training.seed)
        score_N = np.where(training.weight_R[training.ordered.row_N] == 0, np.nan, score_N)  # history has nothing to lose
        facts = {"trusted": int(trusted_N.sum())}
        why = "a model of trusted rows finds it unlikely"
        return without(
            training,
            highest(np.where(trusted_N & (self.trusted is not None), np.nan, score_N), self.share),
            why,
            self.action,
            facts,
        )

    def trusted_rows(self, training: Training) -> Bools:
        """Rows that the reference learns from, in the order of the sequences [N]."""
        log = training.ordered
        if self.trusted is not None:
            held = condition(training.log.events, self.trusted, "clean-reference trusted").fill_null(False).to_numpy()
            if not held.any():
                raise LargeRecError(f"clean-reference: trusted = {self.trusted!r} holds for no training row; loosen it.")
            trusted_N: Bools = held[log.row_N]
            return trusted_N
        score_N = misclicks.misfit(log)
        order = np.lexsort((score_N, log.user_N))
        place_N = np.empty(len(log), dtype=np.int64)
        place_N[order] = np.arange(len(log)) - log.offsets_U1[log.user_N[order]]
        return place_N < -(-log.length_U[log.user_N] // 2)

    def losses(self, training: Training, trusted_N: Bools) -> Floats:
        """Loss of every event by the reference of the other half of the users [N]: untrusted rows are its history, no targets."""
        sequences = sequences_of(training)
        halves, found_N = Halves.drawn(sequences.n_users, training.seed), np.full(len(trusted_N), np.nan)
        weight_N = trusted_N.astype(np.float32)

        for side in (True, False):
            learner = Learner(sequences, self.learner, training.seed, halves.first_U == side)
            learner.learn(lambda loss_T, row_T, epoch: loss_T.new_tensor(weight_N[row_T.numpy()]))
            asked_N = halves.first_U[sequences.user_N] != side
            found_N[asked_N] = learner.losses()[asked_N]
        return found_N
