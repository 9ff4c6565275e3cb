"""What the FuXi families share: their options, the rows' times, the multi-stage feed-forward network, and a backbone."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from largerec.batches import Batch
from largerec.errors import LargeRecError
from largerec.layers import Backbone, SequenceInput, dropout, init_linear
from largerec.models.dial import ModelOptions


class FuXiOptions(ModelOptions):
    """``time_channel``: there is a channel of time; ``query_time``: it sees the moment of asking, the target's own time;
    ``feedforward``: width of the second stage's middle, in multiples of ``width``."""

    time_channel: bool = True
    query_time: bool = False
    feedforward: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _query_time_needs_the_time_channel(self) -> Self:
        if self.query_time and not self.time_channel:
            raise LargeRecError(
                "model.query_time=true works through the channel of time; set model.time_channel=true or leave it out."
            )
        return self

    @property
    def reads_time(self) -> bool:
        return self.time_channel

    def feedforward_parameters(self, channels: int, width: int) -> int:
        """Parameters of :class:`MultiStageFeedForward`."""
        return channels * width**2 + width + 3 * self.feedforward * width**2


def row_times(batch: Batch, query_time: bool) -> torch.Tensor:
    """The time that each row asks at: its event's own, or with ``query_time`` that of its target. [T]"""
    if not query_time:
        return batch.time_T
    assert batch.query_time_T is not None, "a model with query time needs query_time_T"
    return batch.query_time_T


class MultiStageFeedForward(nn.Module):
    """Stage 1 projects what the channels found and adds the block's input; stage 2 is SwiGLU with a residual connection.

    FuXi-alpha (Ye et al. 2025, arXiv 2502.03036). As in the authors' code stage 2 has no biases, RMS norms have no weights, and
    dropout stands before the matrices of both stages.
    """

    def __init__(self, channels: int, width: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.fuse = init_linear(nn.Linear(channels * width, width))
        self.gate_and_up = init_linear(nn.Linear(width, 2 * feedforward * width, bias=False))
        self.down = init_linear(nn.Linear(feedforward * width, width, bias=False))

    def forward(self, found_TC: torch.Tensor, x_TD: torch.Tensor) -> torch.Tensor:
        fused_TD = x_TD + self.fuse(dropout(found_TC, self.dropout, self.training))
        normed_TD = dropout(rms(fused_TD, 1e-6), self.dropout, self.training)
        gate, up = self.gate_and_up(normed_TD).chunk(2, dim=1)
        out_TD: torch.Tensor = fused_TD + self.down(F.silu(gate) * up)
        return out_TD


def rms(x_TD: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm without weights (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    return F.rms_norm(x_TD, x_TD.shape[-1:], eps=eps)


class TimedBackbone(Backbone):
    """The backbone of alpha and beta, which differ in ``block``: built from (options, max_length), called with x, offsets, rows'
    times and events' times."""

    block: type[nn.Module]

    def __init__(self, options: FuXiOptions, n_items: int, max_length: int) -> None:
        super().__init__(options, n_items, max_length)
        depth, width, _ = options.shape
        self.query_time = options.query_time
        self.input = SequenceInput(n_items, max_length, width, options.dropout)
        self.blocks = nn.ModuleList(self.block(options, max_length) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch) -> torch.Tensor:
        x_TD, row_time_T = self.input(batch), row_times(batch, self.query_time)
        for block in self.blocks:
            x_TD = self.through(block, x_TD, batch.offsets_B1, row_time_T, batch.time_T)
        hidden_TD: torch.Tensor = self.norm(x_TD)
        return hidden_TD
