"""BSARec: self-attention beside a filter of frequencies (Shin et al. 2024, arXiv 2312.10325).

As in the paper: the input is normalised; each block mixes a filter, which keeps the low frequencies of the history and scales
the rest by a learned square, and causal softmax attention, ``alpha`` to ``1 - alpha``, each with a residual connection and a
layer norm behind it; a feed-forward network of four times the width follows. Learned positions, GELU. That norms
stand behind and not before is unlike the other families here (docs/decisions.md).

Unlike the paper: nothing is dropped from attention weights. Its filter is a Fourier transform of a window padded in front, so
that a token also knows those after it, and each prefix of a history is trained on by itself. Here each token sees the window
that ends with it, which for the last one is the same: all of a history is learned from at once, and nothing looks ahead.
Positions count from a history's first event, and what lies before it is zero, where theirs has its positions' vectors.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from largerec.batches import Batch
from largerec.kernels import softmax_attention
from largerec.layers import Backbone, SequenceInput, dropout, init_linear
from largerec.models.dial import ModelOptions


class BSARecOptions(ModelOptions):
    """``alpha``: the filter's share, the rest is attention's. ``frequencies``: how many of the lowest the filter keeps, the mean
    among them (the paper's ``c`` // 2 + 1). ``feedforward``: width of the network's middle, in multiples of ``width``."""

    name: Literal["bsarec"] = "bsarec"
    alpha: float = Field(0.7, gt=0, lt=1)
    frequencies: int = Field(3, ge=1)
    feedforward: int = Field(4, ge=1)

    def block_parameters(self, width: int) -> int:
        matrices = 4 * width**2 + 2 * self.feedforward * width**2
        biases = 4 * width + (self.feedforward + 1) * width
        return matrices + biases + 6 * width + width


def low_pass(
    x_TD: torch.Tensor, offsets_B1: torch.Tensor, position_T: torch.Tensor, window: int, frequencies: int
) -> torch.Tensor:
    """The lowest frequencies of the ``window`` tokens that end at each token, zero before its history, at that token: [T, D].

    A real Fourier series cut after F terms weighs what is k tokens back by ``(1 + 2 sum_f cos(2 pi f k / window)) / window``, f
    from 1 to F - 1 (the middle frequency of an even window once). The cosine of a difference is a sum of two products, so each
    frequency is two running sums, and the cost is linear in the tokens. The sums run in float64, since one runs over all users.
    """
    lengths_B = offsets_B1.diff()
    before_B = offsets_B1[:-1]
    low_TD = torch.zeros_like(x_TD, dtype=torch.float64)
    for frequency in range(min(frequencies, window // 2 + 1)):
        angle_T1 = (2 * math.pi * frequency / window) * position_T.double()[:, None]
        weight = 1 if frequency == 0 or 2 * frequency == window else 2
        for wave_T1 in (angle_T1.cos(), angle_T1.sin()) if frequency else (angle_T1.cos(),):
            sum_TD = F.pad((wave_T1 * x_TD).cumsum(0), (0, 0, 1, 0))
            past_TD = torch.repeat_interleave(sum_TD[before_B], lengths_B, dim=0, output_size=len(x_TD))
            low_TD = low_TD + weight / window * wave_T1 * (sum_TD[1:] - past_TD)
    return low_TD.to(x_TD.dtype)


class Block(nn.Module):
    """Filter and attention side by side, then the point-wise feed-forward network."""

    def __init__(self, options: BSARecOptions, window: int) -> None:
        super().__init__()
        _, width, self.heads = options.shape
        self.dropout, self.alpha, self.frequencies, self.window = options.dropout, options.alpha, options.frequencies, window
        self.root_beta = nn.Parameter(torch.randn(width))  # as in the authors' code; its square scales the high frequencies
        self.filter_norm = nn.LayerNorm(width)
        self.qkv = init_linear(nn.Linear(width, 3 * width))
        self.out = init_linear(nn.Linear(width, width))
        self.attention_norm = nn.LayerNorm(width)
        self.inner = init_linear(nn.Linear(width, options.feedforward * width))
        self.outer = init_linear(nn.Linear(options.feedforward * width, width))
        self.feedforward_norm = nn.LayerNorm(width)

    def forward(self, x_TD: torch.Tensor, offsets_B1: torch.Tensor, position_T: torch.Tensor) -> torch.Tensor:
        low_TD = low_pass(x_TD, offsets_B1, position_T, self.window, self.frequencies)
        filtered_TD = self._added(self.filter_norm, x_TD, low_TD + self.root_beta**2 * (x_TD - low_TD))
        q, k, v = self.qkv(x_TD).unflatten(1, (3, self.heads, -1)).unbind(1)
        attended_TD = self._added(self.attention_norm, x_TD, self.out(softmax_attention(q, k, v, offsets_B1).flatten(1)))
        x_TD = self.alpha * filtered_TD + (1 - self.alpha) * attended_TD
        return self._added(self.feedforward_norm, x_TD, self.outer(F.gelu(self.inner(x_TD))))

    def _added(self, norm: nn.LayerNorm, x_TD: torch.Tensor, found_TD: torch.Tensor) -> torch.Tensor:
        out_TD: torch.Tensor = norm(x_TD + dropout(found_TD, self.dropout, self.training))
        return out_TD


class BSARec(Backbone):
    """The backbone: a Batch to hidden states [T, D]."""

    def __init__(self, options: BSARecOptions, n_items: int, max_length: int) -> None:
        super().__init__(options, n_items, max_length)
        depth, width, _ = options.shape
        self.input = SequenceInput(n_items, max_length, width, 0.0)
        self.norm, self.dropout = nn.LayerNorm(width), options.dropout
        self.blocks = nn.ModuleList(Block(options, max_length) for _ in range(depth))

    def forward(self, batch: Batch) -> torch.Tensor:
        x_TD, position_T = dropout(self.norm(self.input(batch)), self.dropout, self.training), batch.position_T
        for block in self.blocks:
            x_TD = self.through(block, x_TD, batch.offsets_B1, position_T)
        return x_TD
