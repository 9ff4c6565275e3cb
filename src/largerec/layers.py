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
            nn.init.trunc_normal_(table.weight, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)

    def forward(self, batch: Batch) -> torch.Tensor:
        x_TD = self.item(batch.item_T) + self.position(batch.position_T)
        return F.dropout(x_TD, self.dropout, self.training)


def init_linear(layer: nn.Linear) -> nn.Linear:
    """Xavier-normal weights, zero bias."""
    nn.init.xavier_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
