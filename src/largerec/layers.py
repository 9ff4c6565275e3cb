"""Blocks that two or more models use."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from largerec.batches import Batch

INITIAL_STD = 0.02


class SequenceInput(nn.Module):
    """Item embedding plus learned absolute position, with dropout: [T] -> [T, D]."""

    def __init__(self, n_items: int, max_length: int, width: int, dropout: float) -> None:
        super().__init__()
        self.item = nn.Embedding(n_items, width)
        self.position = nn.Embedding(max_length, width)
        self.dropout = dropout
        for table in (self.item, self.position):
            init_weight(table.weight)

    def forward(self, batch: Batch) -> torch.Tensor:
        x_TD = self.item(batch.item_T) + self.position(batch.position_T)
        return F.dropout(x_TD, self.dropout, self.training)


def init_weight(weight: torch.Tensor) -> None:
    """Truncated normal. Tables and matrices share one small scale: larger matrices would drown the item in its context, and learning
    the plain "what follows this item" then takes twice the epochs (docs/log.md)."""
    nn.init.trunc_normal_(weight, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)


def init_linear(layer: nn.Linear) -> nn.Linear:
    """Small weights, zero bias."""
    init_weight(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
