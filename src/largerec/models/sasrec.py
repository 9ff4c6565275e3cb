"""SASRec: self-attentive sequential recommendation (Kang & McAuley 2018, arXiv 1808.09781).

As in the paper: learned positions, causal softmax attention and a point-wise feed-forward network, each with a layer norm
before it, dropout behind it and a residual connection around it, and one item table for input and output. Unlike the paper: the
network's activation is GELU, attention ends with a matrix of its own, dropout stands inside the network too, and a last layer
norm stands before the item scores (as in the authors' code). Unlike their code: keys and values are read from the normalised
input as queries are, nothing is dropped from attention weights, item vectors are not multiplied by sqrt(D) at the input, and
positions count from a history's first event, where theirs, padded in front, count from its last.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from largerec.batches import Batch
from largerec.kernels import BlockCache, HistoryCache, softmax_attention
from largerec.layers import Backbone, SequenceInput, dropout, init_linear
from largerec.models.dial import ModelOptions


class SASRecOptions(ModelOptions):
    """``feedforward``: width of the feed-forward network's middle, in multiples of ``width`` (the paper: 1)."""

    name: Literal["sasrec"] = "sasrec"
    feedforward: int = Field(1, ge=1)

    def block_parameters(self, width: int) -> int:
        matrices = 4 * width**2 + 2 * self.feedforward * width**2
        biases = 4 * width + (self.feedforward + 1) * width
        return matrices + biases + 4 * width


class Block(nn.Module):
    """Section 3.2 of the paper: self-attention, then the point-wise feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = init_linear(nn.Linear(width, 3 * width))
        self.out = init_linear(nn.Linear(width, width))
        self.feedforward_norm = nn.LayerNorm(width)
        self.inner = init_linear(nn.Linear(width, feedforward * width))
        self.outer = init_linear(nn.Linear(feedforward * width, width))

    def forward(self, x_TD: torch.Tensor, offsets_B1: torch.Tensor, cache: BlockCache | None = None) -> torch.Tensor:
        q, k, v = self.qkv(self.attention_norm(x_TD)).unflatten(1, (3, self.heads, -1)).unbind(1)
        attended_TD = softmax_attention(q, k, v, offsets_B1, cache=cache).flatten(1)
        x_TD = x_TD + dropout(self.out(attended_TD), self.dropout, self.training)
        inner = dropout(F.gelu(self.inner(self.feedforward_norm(x_TD))), self.dropout, self.training)
        return x_TD + dropout(self.outer(inner), self.dropout, self.training)


class SASRec(Backbone):
    """The backbone: a Batch to hidden states [T, D]."""

    cached = True

    def __init__(self, options: SASRecOptions, n_items: int, max_length: int) -> None:
        super().__init__(options, n_items, max_length)
        depth, width, heads = options.shape
        self.input = SequenceInput(n_items, max_length, width, options.dropout)
        self.blocks = nn.ModuleList(Block(width, heads, options.feedforward, options.dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch, cache: HistoryCache | None = None) -> torch.Tensor:
        x_TD = self.input(batch)
        for level, block in enumerate(self.blocks):
            x_TD = self.through(block, x_TD, batch.offsets_B1, None if cache is None else cache[level])
        hidden_TD: torch.Tensor = self.norm(x_TD)
        return hidden_TD
