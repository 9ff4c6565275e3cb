"""Blocks that two or more models use."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from largerec.batches import Batch

INITIAL_STD = 0.02


class ActionInput(nn.Module):
    """What was done with an item: one vector for each task and label, and for each task whose label is unknown, summed.

    [T, D] -> [T, D]: added to the tokens that carry an action, nothing to the others.
    """

    first_A: torch.Tensor

    def __init__(self, classes_A: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(sum(classes_A) + len(classes_A), width)
        rows_A = torch.tensor([0, *(classes + 1 for classes in classes_A[:-1])])
        self.register_buffer("first_A", rows_A.cumsum(0) + 1, persistent=False)  # the row of label 0; unknown is the one before
        init_weight(self.label.weight)

    def forward(self, x_TD: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.label_TA is not None and batch.action_T is not None, "a model with tasks needs labels as input"
        done_TD: torch.Tensor = self.label(batch.label_TA + self.first_A).sum(1)
        return x_TD + done_TD * batch.action_T[:, None]


class SequenceInput(nn.Module):
    """Item embedding plus learned absolute position, with dropout: [T] -> [T, D].

    Without a ``max_length`` there is no table of positions, for families that know the order otherwise. ``action`` joins in where
    there are tasks, ``features`` where a recipe adds them to the tokens.
    """

    def __init__(self, n_items: int, max_length: int | None, width: int, dropout: float) -> None:
        super().__init__()
        item = nn.Embedding(n_items, width)
        self.item: nn.Module = item  # in which ``models.build_model`` may put another table
        self.position = None if max_length is None else nn.Embedding(max_length, width)
        self.action: ActionInput | None = None
        self.features: nn.Module | None = None
        self.dropout = dropout
        for table in (item, self.position):
            if table is not None:
                init_weight(table.weight)

    def forward(self, batch: Batch) -> torch.Tensor:
        x_TD = self.item(batch.item_T)
        if batch.masked_T is not None:
            x_TD = x_TD.masked_fill(batch.masked_T[:, None], 0)
        if self.action is not None:
            x_TD = self.action(x_TD, batch)
        if self.features is not None:
            x_TD = x_TD + self.features(batch.features)
        if self.position is not None:
            x_TD = x_TD + self.position(batch.position_T)
        return dropout(x_TD, self.dropout, self.training)


class Backbone(nn.Module):
    """What every model family is: built from (options, n_items, max_length); ``forward(batch)`` gives hidden states [T, D].

    ``cached``: ``forward(batch, cache)`` also reads one history into a ``HistoryCache``, and then tokens that follow it.
    """

    input: SequenceInput
    recompute = False
    cached = False
    ranks_only = False  # see models/ranker.py
    further_operations = 0  # of a token's forward pass, beside each matrix once

    def __init__(self, options: Any, n_items: int, max_length: int) -> None:
        super().__init__()
        self.task_heads: nn.Module | None = None  # see ranking.py; no family's own
        self.output_table: nn.Module | None = None
        self.state_width: int | None = None  # where it is not that of the item table
        self.similarity: nn.Module | None = None  # see heads.py; no family's own

    def through(self, block: nn.Module, *given: Any) -> torch.Tensor:
        """Apply a block; with ``recompute``, in training, without keeping what it makes on the way (Chen et al. 2016)."""
        if not (self.recompute and self.training):
            out: torch.Tensor = block(*given)
            return out
        # The state of the random generator is kept, so dropout repeats its mask.
        kept: torch.Tensor = checkpoint(block, *given, use_reentrant=False)
        return kept

    @property
    def item_table_VD(self) -> torch.Tensor:
        """The table that scores are made with: the input's own, unless the tables are not tied."""
        weight_VD = self.scored_table.weight
        assert isinstance(weight_VD, torch.Tensor)
        return weight_VD

    @property
    def scored_table(self) -> nn.Module:
        """The same as a module, which gives rows [K, D] of items [K]."""
        return self.input.item if self.output_table is None else self.output_table

    def set_side(self, side_VF: torch.Tensor) -> None:
        """Give the item tables the vectors of what items are; a bundle's weights have them."""
        for table in (self.input.item, self.output_table):
            if table is not None:
                table.get_buffer("side_VF").copy_(side_VF)


class SwiGLU(nn.Module):
    """The feed-forward network ``W2 (SiLU(W x) * V x)`` without biases (Shazeer 2020, arXiv 2002.05202, eq. 6): [T, D] -> [T, D].

    Dropout is put on the middle, which has ``middle(width, multiple)`` numbers.
    """

    def __init__(self, width: int, multiple: float, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        middle = self.middle(width, multiple)
        self.inner = init_linear(nn.Linear(width, 2 * middle, bias=False))
        self.outer = init_linear(nn.Linear(middle, width, bias=False))

    @staticmethod
    def middle(width: int, multiple: float) -> int:
        """``multiple`` times the width, to the nearest multiple of 4."""
        return max(4, 4 * round(multiple * width / 4))

    @staticmethod
    def parameters_of(width: int, multiple: float) -> int:
        """Numbers in the three matrices."""
        return 3 * width * SwiGLU.middle(width, multiple)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        gate, value = self.inner(x_TD).chunk(2, dim=1)
        out_TD: torch.Tensor = self.outer(dropout(F.silu(gate) * value, self.dropout, self.training))
        return out_TD


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Drop each number with probability p (to the nearest 1/65536) and scale the rest by 1 / (1 - p).

    torch's own dropout draws one Bernoulli number at a time on a CPU and took a sixth of a training step; here one 64-bit draw
    of the same generator decides four numbers. Elsewhere torch's own runs.
    """
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    keep = bits[: x.numel()].view(x.shape) >= round(p * 65536) - 32768
    return x * keep.to(x.dtype).mul_(1 / (1 - p))


def init_weight(weight: torch.Tensor) -> None:
    """Truncated normal. Tables and matrices share one small scale: larger matrices would drown the item in its context, and
    learning the plain "what follows this item" then takes twice the epochs (docs/log.md)."""
    nn.init.trunc_normal_(weight, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)


def init_linear(layer: nn.Linear) -> nn.Linear:
    """Small weights, zero bias."""
    init_weight(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
