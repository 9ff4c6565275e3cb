"""LiGR: a transformer with gated residual connections (Borisyuk et al. 2025, arXiv 2502.03417), as in eSASRec (Tikhonovich et
al. 2025, arXiv 2508.06450), which puts its layers into SASRec.

As in eSASRec: learned positions, causal softmax attention and a SwiGLU network, each read from the normalised stream x and
added to it through a gate, ``x + sigmoid(W x) * f(norm(x))``. Unlike it: a last layer norm stands before the item scores,
nothing is dropped from the attention weights, and positions count from a history's first event, not from its last. Its loss, a
sampled softmax, is the recipe's choice. LiGR's own model ranks the items of a page together; that set-wise attention is left
out.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from largerec.batches import Batch
from largerec.kernels import BlockCache, HistoryCache, softmax_attention
from largerec.layers import Backbone, SequenceInput, SwiGLU, dropout, init_linear
from largerec.models.dial import ModelOptions


class LiGROptions(ModelOptions):
    """``feedforward``: width of SwiGLU's middle, in multiples of ``width`` (eSASRec's code: 4)."""

    name: Literal["ligr"] = "ligr"
    feedforward: float = Field(4.0, gt=0)

    def block_parameters(self, width: int) -> int:
        attention_and_gates = 6 * (width**2 + width)
        return attention_and_gates + SwiGLU.parameters_of(width, self.feedforward) + 4 * width


class Block(nn.Module):
    """Gated attention, then the gated feed-forward network; the gates read the stream itself, not its norm."""

    def __init__(self, options: LiGROptions) -> None:
        super().__init__()
        _, width, self.heads = options.shape
        self.dropout = options.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = init_linear(nn.Linear(width, 3 * width))
        self.out = init_linear(nn.Linear(width, width))
        self.attention_gate = init_linear(nn.Linear(width, width))
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = SwiGLU(width, options.feedforward, options.dropout)
        self.feedforward_gate = init_linear(nn.Linear(width, width))

    def forward(self, x_TD: torch.Tensor, offsets_B1: torch.Tensor, cache: BlockCache | None = None) -> torch.Tensor:
        q, k, v = self.qkv(self.attention_norm(x_TD)).unflatten(1, (3, self.heads, -1)).unbind(1)
        attended_TD = self.out(softmax_attention(q, k, v, offsets_B1, cache=cache).flatten(1))
        x_TD = x_TD + self.attention_gate(x_TD).sigmoid() * dropout(attended_TD, self.dropout, self.training)
        network_TD = self.feedforward(self.feedforward_norm(x_TD))
        out_TD: torch.Tensor = x_TD + self.feedforward_gate(x_TD).sigmoid() * dropout(network_TD, self.dropout, self.training)
        return out_TD


class LiGR(Backbone):
    """The backbone: a Batch to hidden states [T, D]."""

    cached = True

    def __init__(self, options: LiGROptions, n_items: int, max_length: int) -> None:
        super().__init__(options, n_items, max_length)
        depth, width, _ = options.shape
        self.input = SequenceInput(n_items, max_length, width, options.dropout)
        self.blocks = nn.ModuleList(Block(options) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch, cache: HistoryCache | None = None) -> torch.Tensor:
        x_TD = self.input(batch)
        for level, block in enumerate(self.blocks):
            x_TD = self.through(block, x_TD, batch.offsets_B1, None if cache is None else cache[level])
        hidden_TD: torch.Tensor = self.norm(x_TD)
        return hidden_TD
