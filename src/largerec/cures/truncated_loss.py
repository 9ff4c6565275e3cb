"""Truncated loss (T-CE; Wang et al. 2021, "Denoising Implicit Feedback for Recommendation", arXiv 2006.04153, section 4).

Noisy positives have large losses, and a model learns them last. While it learns, the share of a step's targets with the largest
losses is left out, from none at the start up to ``drop_rate`` (eq. 3-4: min(alpha t, eps_max), here alpha is set
by ``ramp``). The paper trains one model so; here a small model does, and what it kept leaving out is what the cure takes.
``reweigh`` is the paper's R-CE (eq. 5): nothing is cut, a target weighs its probability to the power ``beta`` instead.
Unlike the paper's, the loss is a softmax over items, so each target is compared with the items and not with drawn negatives.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from largerec.curate.rows import Change, Training
from largerec.cures.rows import Action, Bools, Floats, sequences_of, without
from largerec.learner import Learner, LearnerOptions, Weigh
from largerec.options import Options


class TruncatedLossStep(Options):
    """Remove, or learn less from, events that a small model under a truncated loss kept leaving out.

    ``drop_rate``: the greatest share left out of a step. ``ramp``: the part of training over which it grows from nothing. An
    event goes if it was left out in more than half of the passes after the ramp. ``method`` ``reweigh``: nothing goes, but a
    target weighs its probability to the power ``beta``.
    """

    draws: ClassVar[bool] = True
    name: Literal["truncated-loss"] = "truncated-loss"
    method: Literal["truncate", "reweigh"] = "truncate"
    drop_rate: float = Field(0.1, gt=0, lt=1)
    ramp: float = Field(0.5, gt=0, lt=1)
    beta: float = Field(0.2, gt=0)
    action: Action = "history"
    learner: LearnerOptions = LearnerOptions()

    def change(self, training: Training) -> Change:
        """Takes out what was truncated, or weighs every target."""
        sequences = sequences_of(training)
        learned_N = training.weight_R[training.ordered.row_N] > 0
        learner = Learner(sequences, self.learner, training.seed)
        if self.method == "reweigh":
            learner.learn(self._reweigh)
            loss_N = learner.losses()
            asked_N = learned_N & ~np.isnan(loss_N)
            weight_N = np.where(asked_N, np.exp(-loss_N * self.beta), 1.0)
            weight_N[asked_N] /= max(1e-12, weight_N[asked_N].mean())
            facts = {"least_weight": float(weight_N.min()), "greatest_weight": float(weight_N.max())}
            return Change(factor_R=training.of_rows(weight_N), facts=facts)
        left_N = np.zeros(len(sequences.item_N))
        learner.learn(self.truncation(left_N, learned_N))
        passes = self.learner.epochs - self.ramp_epochs
        return without(
            training, left_N * 2 > passes, "a model under a truncated loss kept leaving it out", self.action,
            {"passes": passes, "share_left_out": float(left_N.sum() / max(1, passes * learned_N.sum()))},
        )  # fmt: skip

    @property
    def ramp_epochs(self) -> int:
        return min(self.learner.epochs - 1, round(self.ramp * self.learner.epochs))

    def truncation(self, left_N: Floats, learned_N: Bools) -> Weigh:
        """Weights that cut the largest losses of a step; how often each row was cut after the ramp is counted in ``left_N``.

        Rows of weight 0 are neither cut nor counted: never learned, they have the largest losses and would fill the share.
        """

        def weigh(loss_T: torch.Tensor, row_T: torch.Tensor, epoch: int) -> torch.Tensor:
            rate = self.drop_rate * (min(1.0, epoch / self.ramp_epochs) if self.ramp_epochs else 1.0)
            asked_T = torch.from_numpy(learned_N[row_T.numpy()])
            count = int(rate * int(asked_T.sum()))
            weight_T = torch.ones_like(loss_T)
            if count:
                cut = torch.topk(loss_T.masked_fill(~asked_T, -torch.inf), count).indices
                weight_T[cut] = 0
                if epoch >= self.ramp_epochs:
                    left_N[row_T[cut].numpy()] += 1
            return weight_T

        return weigh

    def _reweigh(self, loss_T: torch.Tensor, row_T: torch.Tensor, epoch: int) -> torch.Tensor:
        return (-self.beta * loss_T).exp()
