"""Ranking: heads that predict a task's label of one event from the state before it, and their loss beside retrieval's.

With interleaved actions the state is that of the item's own token, which has read the history and the item but not what was done
with it. With summed actions it is the state of the event before, joined with the item in question and their product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from largerec.batches import Actions, Batch
from largerec.errors import LargeRecError
from largerec.features import FieldLayout, Where
from largerec.fields import FeatureVector
from largerec.layers import ActionInput, Backbone, init_linear
from largerec.options import Options
from largerec.sequences import TRAIN, Sequences
from largerec.tasks import TaskOptions


class RankingOptions(Options):
    """The task heads and how their losses and retrieval's are balanced; says nothing without ``tasks``.

    ``head``: one linear map a task, or a network with one hidden layer. ``balance``: ``fixed`` adds up ``retrieval`` times the
    next-item loss and ``weight`` times each task's ``weight`` times its loss; ``uncertainty`` also learns a variance s of each of
    these losses and uses loss / s + log(s) / 2 (Kendall, Gal & Cipolla 2018, arXiv 1705.07115, section 3.2). A weight of 0
    leaves a loss out. ``hard_negatives``: weight of :mod:`largerec.hard_negatives` beside the next-item loss, which it is a part
    of when losses are balanced. ``within``: weight of :func:`within_windows` beside the cross-entropy of each task with two
    labels, which it is a part of in turn.
    """

    head: Literal["linear", "mlp"] = "mlp"
    retrieval: float = Field(1.0, ge=0)
    weight: float = Field(1.0, ge=0)
    balance: Literal["fixed", "uncertainty"] = "fixed"
    hard_negatives: float = Field(0.0, ge=0)
    within: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _something_is_learned(self) -> Self:
        if self.retrieval == self.weight == 0:
            raise LargeRecError("ranking.retrieval and ranking.weight are both 0, so nothing would be learned; raise one.")
        return self


class TaskHeads(nn.Module):
    """One head a task, and the balance of the losses. N events that are asked about, A tasks, C classes of a task."""

    def __init__(
        self,
        options: RankingOptions,
        tasks: Mapping[str, TaskOptions],
        width: int,
        actions: Actions,
        layout: FieldLayout | None = None,
    ) -> None:
        super().__init__()
        self.options, self.names, self.actions = options, tuple(tasks), actions
        self.classes = tuple(task.n_classes for task in tasks.values())
        self.weights = (options.retrieval, *(options.weight * task.weight for task in tasks.values()))
        self.features = None if layout is None else FeatureVector(layout, width, normalised=True)
        inputs = (1 if actions == "interleaved" else 3) * width + (0 if layout is None else 2 * width)
        self.heads = nn.ModuleList(self._head(inputs, width, task.n_classes) for task in tasks.values())
        learned = options.balance == "uncertainty"
        self.log_variance = nn.Parameter(torch.zeros(len(self.weights))) if learned else None

    @property
    def first_condition(self) -> int:
        """The column of the first task with two labels whose loss has a weight."""
        return next(column for column, classes in enumerate(self.classes) if classes == 2 and self.weights[1 + column] > 0)

    def _head(self, inputs: int, width: int, classes: int) -> nn.Module:
        outputs = 1 if classes == 2 else classes
        if self.options.head == "linear":
            return init_linear(nn.Linear(inputs, outputs))
        return nn.Sequential(init_linear(nn.Linear(inputs, width)), nn.GELU(), init_linear(nn.Linear(width, outputs)))

    def forward(
        self,
        state_ND: torch.Tensor,
        item_ND: torch.Tensor | None = None,
        features: Mapping[str, torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Logits of each task: [N, 1] of the label 1 where there are two, else [N, C]. ``item_ND``: rows of the item table,
        which summed actions need. ``features``: of the events in question, where the heads read them."""
        known = []
        if self.features is not None:
            assert features is not None, "these heads need features"
            known_ND = self.features(features)
            known = [known_ND, state_ND * known_ND]
        if self.actions == "summed":
            assert item_ND is not None, "summed actions need the items in question"
            state_ND = torch.cat([state_ND, item_ND, state_ND * item_ND], dim=1)
        state_ND = torch.cat([state_ND, *known], dim=1) if known else state_ND
        return [head(state_ND) for head in self.heads]

    def probabilities(
        self,
        state_ND: torch.Tensor,
        item_ND: torch.Tensor | None = None,
        features: Mapping[str, torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Probability of every label of each task, [N, C]."""
        return [
            torch.cat([torch.sigmoid(-logit), torch.sigmoid(logit)], dim=1) if logit.shape[1] == 1 else logit.softmax(1)
            for logit in self(state_ND, item_ND, features)
        ]

    def losses(self, hidden_TD: torch.Tensor, batch: Batch, table_VD: torch.Tensor, known_A: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each task's labels in a batch, summed and over ``known_A``, the known labels of the whole step. [A]

        Where events have weights, both the sum and ``known_A`` are weighted. Of a task with two labels, ``within`` times the
        loss within windows is added.
        """
        assert batch.task_label_TA is not None and batch.target_T is not None
        asked_N = (batch.task_label_TA >= 0).any(1).nonzero()[:, 0]
        label_NA, state_ND = batch.task_label_TA[asked_N], hidden_TD[asked_N].float()
        item_ND = F.embedding(batch.target_T[asked_N], table_VD) if self.actions == "summed" else None
        features = {name: value[asked_N] for name, value in batch.features.items()}
        weight_N = None if batch.weight_T is None else batch.weight_T[asked_N]
        logits = self(state_ND, item_ND, features)
        sums = [_cross_entropy(logit, label_NA[:, column], weight_N) for column, logit in enumerate(logits)]
        if self.options.within:
            window_N = torch.bucketize(asked_N, batch.offsets_B1[1:], right=True)
            for column, logit in enumerate(logits):
                if self.classes[column] == 2:
                    loss_N = within_windows(logit[:, 0], label_NA[:, column], window_N, weight_N)
                    sums[column] = sums[column] + self.options.within * loss_N.sum()
        return torch.stack(sums) / torch.where(known_A > 0, known_A, 1)

    def joint(self, retrieval: torch.Tensor, task_losses_A: torch.Tensor, share: float) -> torch.Tensor:
        """The balanced sum; ``share`` is the part of a step that this is (of the logarithms of the variances)."""
        losses = [retrieval, *task_losses_A.unbind()]
        total = retrieval.new_zeros(())
        for number, (weight, loss) in enumerate(zip(self.weights, losses, strict=True)):
            if weight == 0:
                continue
            if self.log_variance is not None:
                own = self.log_variance[number]
                loss = loss * (-own).exp() + share * own / 2
            total = total + weight * loss
        return total


def _cross_entropy(logit_NC: torch.Tensor, label_N: torch.Tensor, weight_N: torch.Tensor | None) -> torch.Tensor:
    """Sum over the known labels, each times its weight where there are weights."""
    known_N = label_N >= 0
    if logit_NC.shape[1] == 1:
        losses_N = F.binary_cross_entropy_with_logits(logit_NC[:, 0], label_N.clamp_min(0).float(), reduction="none")
    else:
        losses_N = F.cross_entropy(logit_NC, label_N.clamp_min(0), reduction="none")
    return (losses_N * known_N).sum() if weight_N is None else (losses_N * known_N * weight_N).sum()


def within_windows(
    logit_N: torch.Tensor, label_N: torch.Tensor, window_N: torch.Tensor, weight_N: torch.Tensor | None = None
) -> torch.Tensor:
    """How far each event of label 1 is from standing above those of label 0 in its own window of one user's history. [N]

    -log(exp(own logit) / (exp(own logit) + sum over the window's events of label 0 of exp(their logit))), times the event's
    weight where there are weights, which also stand before each exp of that sum; 0 for all others, and where a window has no
    event of label 0. Cross-entropy asks for the right level over all users; a user's level is nothing to this. The sum of the two
    on one logit is Li et al. 2015 (KDD, clicks in Twitter's timeline), with a softmax in place of pairs; Sheng et al. 2023 (arXiv
    2208.06164) give each label a logit instead, and contrast both.
    """
    negative_N, positive_N = label_N == 0, label_N == 1
    own_N = logit_N
    if weight_N is not None:
        negative_N, logit_N = negative_N & (weight_N > 0), logit_N + weight_N.clamp_min(1e-30).log()
    windows = int(window_N.max()) + 1 if len(window_N) else 0
    highest_W = logit_N.new_full((windows,), -torch.inf)
    highest_W = highest_W.scatter_reduce(0, window_N[negative_N], logit_N.detach()[negative_N], "amax")
    judged_N = positive_N & highest_W.isfinite()[window_N]
    above_N = torch.where(negative_N, logit_N - highest_W[window_N], -torch.inf)
    sum_W = logit_N.new_zeros(windows).index_add(0, window_N, above_N.exp())
    lse_N = (sum_W.clamp_min(1e-30).log() + highest_W)[window_N]
    loss_N = torch.where(judged_N, F.softplus(torch.where(judged_N, lse_N - own_N, 0.0)), 0.0)
    return loss_N if weight_N is None else loss_N * weight_N


def check_within(sequences: Sequences, tasks: Mapping[str, TaskOptions], actions: Actions | None) -> None:
    """Whether :func:`within_windows` has anything to compare in a training part, for any of ``tasks`` with two labels.

    Raises:
        LargeRecError: no user has training events of both labels that are learned from.
    """
    assert sequences.label_NA is not None
    learned_N = sequences.stage_N == TRAIN
    if sequences.weight_N is not None:
        learned_N &= sequences.weight_N > 0
    if actions == "summed":  # where nothing asks about a user's first event
        learned_N[sequences.offsets_U1[:-1]] = False
    names = [name for name, task in tasks.items() if task.n_classes == 2]
    for name in names:
        label_N = np.where(learned_N, sequences.label_NA[:, sequences.tasks.index(name)], -1)
        if len(np.intersect1d(sequences.user_N[label_N == 0], sequences.user_N[label_N == 1])):
            return
    raise LargeRecError(
        f"ranking.within orders a user's events of label 1 above those of label 0, and no user has training events of both that "
        f"are learned from ({', '.join(names)}). Leave ranking.within out."
    )


def add_tasks(
    model: Backbone,
    tasks: Mapping[str, TaskOptions],
    options: RankingOptions,
    actions: Actions,
    layout: FieldLayout | None = None,
    where: Where = "heads",
) -> None:
    """Give a model the actions as input and its task heads, from torch's global random state; its file knows of neither.

    ``layout``: of the recipe's features, which join the state in the heads, are added to the tokens, or both.
    """
    layout = None if model.ranks_only else layout  # a ranker has its features as fields
    width = model.item_table_VD.shape[1]
    model.input.action = ActionInput(tuple(task.n_classes for task in tasks.values()), width)
    if layout is not None and where != "heads":
        model.input.features = FeatureVector(layout, width, normalised=False)
    in_heads = layout if where != "input" else None
    model.task_heads = TaskHeads(options, tasks, model.state_width or width, actions, in_heads)
