"""FuXi-beta: lightweight and fast generative recommendation (Ye et al. 2025, arXiv 2508.10615).

FuXi-alpha without queries and keys. The attention-free token mixer weighs values in two channels: by a table over distances, and
by a function of elapsed time in place of a table of buckets, the power law a (1 + seconds)^-b, which is what the authors' code
takes of the functions they tried. The results stand side by side, are RMS normalised, gated by U, and go through the multi-stage
feed-forward network (``fuxi.py``).

Of the paper only the abstract could be had when this was written; details follow the authors' public code. Here tables and the
function's a and b are per head, where theirs are shared by all heads; pairs with an unknown time weigh nothing; a last layer norm
stands before the item scores. The authors' code asks at the target's own time; here that needs ``query_time``, and without it
each event is its own nearest: the power law gives it nearly all the weight wherever others are hours away.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from largerec.kernels import PowerLawTime, position_attention, time_attention
from largerec.layers import init_linear, init_weight
from largerec.models.fuxi import FuXiOptions, MultiStageFeedForward, TimedBackbone, rms


class FuXiBetaOptions(FuXiOptions):
    """Nothing beside what the FuXi families share."""

    name: Literal["fuxi-beta"] = "fuxi-beta"

    @property
    def channels(self) -> int:
        return 1 + self.time_channel

    def block_parameters(self, width: int) -> int:
        return (self.channels + 1) * width**2 + self.feedforward_parameters(self.channels, width)

    def context_operations(self, mean_context: float) -> float:
        depth, width, _ = self.shape
        return 2 * self.channels * depth * width * mean_context


class Block(nn.Module):
    """The attention-free token mixer, then the multi-stage feed-forward network."""

    def __init__(self, options: FuXiBetaOptions, max_length: int) -> None:
        super().__init__()
        _, width, self.heads = options.shape
        self.widths = [options.channels * width, width]
        self.uv = init_linear(nn.Linear(width, sum(self.widths), bias=False))
        self.position_table_HN = nn.Parameter(torch.empty(self.heads, max_length))
        init_weight(self.position_table_HN)
        self.time_table_HP = None
        if options.time_channel:  # a and b, drawn as the authors do
            self.time_table_HP = nn.Parameter(torch.empty(self.heads, 2))
            nn.init.uniform_(self.time_table_HP[:, 0], -0.2, 0.2)
            nn.init.uniform_(self.time_table_HP[:, 1], 0.4, 0.8)
        self.feedforward = MultiStageFeedForward(options.channels, width, options.feedforward, options.dropout)

    def forward(
        self, x_TD: torch.Tensor, offsets_B1: torch.Tensor, row_time_T: torch.Tensor, time_T: torch.Tensor
    ) -> torch.Tensor:
        u_TC, v_TD = torch.split(F.silu(self.uv(rms(x_TD, 1e-6))), self.widths, dim=1)
        v = v_TD.view(len(v_TD), self.heads, v_TD.shape[1] // self.heads)
        found = [position_attention(v, offsets_B1, self.position_table_HN)]
        if self.time_table_HP is not None:
            found.append(time_attention(v, offsets_B1, PowerLawTime(self.time_table_HP, row_time_T, time_T)))
        # The channels start small beside the usual epsilon, which would silence them.
        found_TC = u_TC * rms(torch.cat([channel.flatten(1) for channel in found], dim=1), 1e-12)
        out_TD: torch.Tensor = self.feedforward(found_TC, x_TD)
        return out_TD


class FuXiBeta(TimedBackbone):
    """The backbone: a Batch to hidden states [T, D]."""

    block = Block
