"""Weights of users, or of sources, by whether learning from them helps with what comes later.

In the manner of DR4SR+'s personaliser (Yin et al. 2024, section 3.3), which learns a weight for each data point by bi-level
optimisation on validation. Here nothing but training is read: each user's last training event is held out; an event agrees with
it if a small step that lowers the held-out miss rate lowers the event's loss too. That is the dot product of the two gradients,
to first order, the signal of a bi-level step (and of TracIn; Pruthi et al. 2020), and two passes give it for all events at once.
The mean agreement of a group, drawn to that of all the smaller the group is, becomes its weight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from largerec.curate.rows import Change, Training
from largerec.curate.versions import MADE
from largerec.cures.rows import Floats, sequences_of
from largerec.errors import LargeRecError, nearest
from largerec.learner import Learner, LearnerOptions
from largerec.options import Options
from largerec.order import held_out
from largerec.sequences import TRAIN, Sequences, numbered

STEP = 1e-2  # length of the step along the held-out gradient, as a share of the length of the weights


class PersonaliseStep(Options):
    """Multiply weights by group: more where learning agrees with what is held out of training.

    ``by``: ``user_id``, or a column of the log that says where an event came from. ``strength``: a group one standard deviation
    of agreement above the mean weighs e to this power. ``shrink``: events at which a group's own mean counts half. ``looks``:
    moments of training at which agreement is measured.
    """

    draws: ClassVar[bool] = True
    name: Literal["personalise"] = "personalise"
    by: str = "user_id"
    strength: float = Field(0.5, gt=0)
    shrink: float = Field(20.0, ge=0)
    looks: int = Field(3, ge=1)
    learner: LearnerOptions = LearnerOptions()

    def change(self, training: Training) -> Change:
        """Weighs groups.

        Raises:
            LargeRecError: the log has no such column, or no user has three training events.
        """
        events = training.log.events
        if self.by not in events.columns:
            raise LargeRecError(
                f"personalise: by = {self.by!r} is no column of the log{nearest(self.by, events.columns)} Columns: "
                f"{', '.join(events.columns)}."
            )
        code, names = numbered(events[self.by])
        group_N = code[training.ordered.row_N]
        agreement_N = self.agreement(training)
        score_G = shrunk_means(agreement_N, group_N, len(names), self.shrink)
        count_G = np.bincount(group_N, minlength=len(names))
        spread = np.sqrt(np.average(score_G**2, weights=count_G))
        weight_G = np.exp(self.strength * np.clip(score_G / max(spread, 1e-12), -3, 3))
        weight_N = weight_G[group_N] / weight_G[group_N].mean()
        shown = pl.DataFrame({"group": names.cast(pl.String), "weight": weight_G / weight_G[group_N].mean(), "events": count_G})
        facts: dict[str, Any] = {"groups": len(names), "least": float(weight_N.min()), "greatest": float(weight_N.max())}
        if len(names) <= 50 and self.by != "user_id":  # a manifest names no person
            facts["weights"] = dict(zip(shown["group"].to_list(), shown["weight"].round(4).to_list(), strict=True))
        return Change(factor_R=training.of_rows(weight_N), facts=facts)

    def agreement(self, training: Training) -> Floats:
        """How much a step down the held-out miss rate lowers the loss of each event, mean over looks [N]; NaN where it is not
        learned."""
        sequences = sequences_of(training)
        asked = _asked_of_the_log(training, held_out(sequences, most=len(sequences.item_N), seed=training.seed))
        learner = Learner(asked, self.learner, training.seed)
        inside = np.flatnonzero(asked.stage_N == TRAIN)
        found_N, looks = np.zeros(len(sequences.item_N)), 0
        # Early looks: what is known already has no gradient, and says nothing of who taught it.
        moments = set(np.linspace(0, self.learner.epochs - 1, self.looks + 1)[:-1].round().astype(int).tolist())
        for epoch in range(max(moments) + 1):
            learner.epoch(epoch)
            if epoch in moments:
                before, after = self._around(learner, np.flatnonzero(asked.stage_N != TRAIN))
                found_N += before - after
                looks += 1
        only_N = np.full(len(found_N), np.nan)
        only_N[inside] = found_N[inside] / looks
        return only_N

    def _around(self, learner: Learner, held: np.ndarray) -> tuple[Floats, Floats]:
        """Losses of all events before and after a short step along the held-out gradient, which is then undone."""
        parameters = list(learner.model.parameters())
        learner.model.eval()
        learner.model.zero_grad(set_to_none=True)
        for missed in learner.misses_of_rows(held):
            (missed / len(held)).backward()  # type: ignore[no-untyped-call]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        learner.model.zero_grad(set_to_none=True)
        norm = torch.sqrt(torch.stack([(g**2).sum() for g in gradients]).sum()).clamp_min(1e-12)
        size = torch.sqrt(torch.stack([(p.detach() ** 2).sum() for p in parameters]).sum())
        kept = [p.detach().clone() for p in parameters]
        before = learner.losses()
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(STEP * size / norm * g)
        after = learner.losses()
        with torch.no_grad():
            for p, own in zip(parameters, kept, strict=True):
                p.copy_(own)
        return before, after


def _asked_of_the_log(training: Training, asked: Sequences) -> Sequences:
    """Held-out events of the log itself: rows that a step made, which would agree with each other, are no questions, nor are rows
    of weight 0, which are history."""
    log = training.ordered
    made_N = np.zeros(len(log), dtype=bool)
    if MADE in log.events.columns:
        made_N = log.events[MADE].fill_null(False).to_numpy()[log.row_N]
    stage_N = asked.stage_N.copy()
    stage_N[made_N | (training.weight_R[log.row_N] == 0)] = TRAIN
    if (stage_N == TRAIN).all():
        raise LargeRecError(
            "personalise: no user's last training event, of three or more, is of the log itself and has a weight."
        )
    return replace(asked, stage_N=stage_N, weight_N=sequences_of(training).weight_N)


def shrunk_means(value_N: Floats, group_N: np.ndarray, groups: int, shrink: float) -> Floats:
    """The mean of each group less that of all, times n / (n + shrink); unknown values (NaN) do not count [G]."""
    known = ~np.isnan(value_N)
    value, group = value_N[known], group_N[known]
    count_G = np.bincount(group, minlength=groups)
    sum_G = np.bincount(group, weights=value - value.mean() if len(value) else value, minlength=groups)
    found: Floats = sum_G / np.maximum(count_G + shrink, 1e-12)
    return found
