"""FuXi-alpha: feature interaction enhanced transformer (Ye et al. 2025, arXiv 2502.03036).

Adaptive multi-channel self-attention: where HSTU adds biases of position and time to its scores, here they are channels of their
own. All three weigh the same values V: the semantic channel by SiLU(q k^T) / N, the positional one by a table over distances,
the temporal one by a table over buckets of elapsed time. Their results stand side by side, are RMS normalised, gated by U, and
go through the multi-stage feed-forward network (``fuxi.py``).

Of the paper only the abstract could be had when this was written; details follow the authors' public code. As there, the input
also has learned absolute positions, and RMS norms have no weights. Here the tables are per head, as HSTU's, and a last layer norm
stands before the item scores; pairs with an unknown time have a learned weight of their own; buckets, and what is left out at the
input, are as for HSTU. The authors' code asks at the target's own time; here that needs ``query_time``, as for HSTU.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from largerec.kernels import BucketedTime, position_attention, silu_attention, time_attention
from largerec.kernels.reference import TIME_BUCKETS
from largerec.layers import init_linear, init_weight
from largerec.models.fuxi import FuXiOptions, MultiStageFeedForward, TimedBackbone, rms


class FuXiAlphaOptions(FuXiOptions):
    """Nothing beside what the FuXi families share."""

    name: Literal["fuxi-alpha"] = "fuxi-alpha"

    @property
    def channels(self) -> int:
        return 2 + self.time_channel

    def block_parameters(self, width: int) -> int:
        return (self.channels + 3) * width**2 + self.feedforward_parameters(self.channels, width)

    def context_operations(self, mean_context: float) -> float:
        depth, width, _ = self.shape
        return 2 * (self.channels + 1) * depth * width * mean_context


class Block(nn.Module):
    """Adaptive multi-channel self-attention, then the multi-stage feed-forward network."""

    def __init__(self, options: FuXiAlphaOptions, max_length: int) -> None:
        super().__init__()
        _, width, self.heads = options.shape
        self.widths, self.scale = [options.channels * width, width, width, width], 1.0 / max_length
        self.uvqk = init_linear(nn.Linear(width, sum(self.widths), bias=False))
        self.position_table_HN = nn.Parameter(torch.empty(self.heads, max_length))
        self.time_table_HK = nn.Parameter(torch.empty(self.heads, TIME_BUCKETS)) if options.time_channel else None
        for table in (self.position_table_HN, self.time_table_HK):
            if table is not None:
                init_weight(table)
        self.feedforward = MultiStageFeedForward(options.channels, width, options.feedforward, options.dropout)

    def forward(
        self, x_TD: torch.Tensor, offsets_B1: torch.Tensor, row_time_T: torch.Tensor, time_T: torch.Tensor
    ) -> torch.Tensor:
        u_TC, *vqk = torch.split(F.silu(self.uvqk(rms(x_TD, 1e-6))), self.widths, dim=1)
        v, q, k = (x.view(len(x), self.heads, x.shape[1] // self.heads) for x in vqk)
        found = [position_attention(v, offsets_B1, self.position_table_HN), silu_attention(q, k, v, offsets_B1, self.scale)]
        if self.time_table_HK is not None:
            found.append(time_attention(v, offsets_B1, BucketedTime(self.time_table_HK, row_time_T, time_T)))
        # The channels start small beside the usual epsilon, which would silence them.
        found_TC = u_TC * rms(torch.cat([channel.flatten(1) for channel in found], dim=1), 1e-12)
        out_TD: torch.Tensor = self.feedforward(found_TC, x_TD)
        return out_TD


class FuXiAlpha(TimedBackbone):
    """The backbone: a Batch to hidden states [T, D]."""

    block = Block
