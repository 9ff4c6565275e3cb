"""FuXi-Linear: linear attention for long, timed histories (Ye et al. 2026, arXiv 2602.23671).

The three channels of FuXi-alpha, each in a form whose cost grows with the length and whose state has a fixed size
(``kernels/linear.py``):
- retention: weights (q_i . k_j) exp(-rate (i - j)), a rate for each head;
- temporal retention: of periods 1 s, 16 s, ... 16^7 s (8.5 years) the sine and the cosine of the angle between row and column,
  decayed by gamma^(2 pi elapsed / period); which columns of the values follow which of them goes round in turn;
- linear positional: weights p_i . p_j / 8 of a learned table of 16 numbers a position, which starts as sines and cosines.

Each channel is layer normalised by itself, all are gated by U and go through the multi-stage feed-forward network (``fuxi.py``).
The two channels beside retention have values of their own and add a share of the token's own value.

Of the paper only the abstract could be had when this was written; details follow the authors' public code (its setting for
MovieLens-20M). What differs: positions have 16 numbers, not 32, which would be an eighth of the smallest model; retention's rates
start so spread that the slowest head forgets as in the authors' eight heads, also with fewer heads; gamma is learned in every
block (theirs: fixed, or learned once) and starts at their 1/2; the temporal channel adds the token's own value always (theirs: on
KuaiRand); pairs with an unknown time weigh nothing; a last layer norm stands before the item scores. Their code asks at the
target's own time; here that needs ``query_time``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from largerec.batches import Batch
from largerec.kernels import linear_attention
from largerec.layers import Backbone, SequenceInput, init_linear, init_weight
from largerec.models.fuxi import FuXiOptions, MultiStageFeedForward, row_times

PERIODS_S = tuple(16**power for power in range(8))
KERNEL_WIDTH = 16


class FuXiLinearOptions(FuXiOptions):
    """Nothing beside what the FuXi families share."""

    name: Literal["fuxi-linear"] = "fuxi-linear"

    @property
    def channels(self) -> int:
        return 2 + self.time_channel

    def block_parameters(self, width: int) -> int:
        matrices = (self.channels + 3) + (self.channels - 1)  # U V Q K, and the values of the other channels
        return matrices * width**2 + self.feedforward_parameters(self.channels, width)

    def context_operations(self, mean_context: float) -> float:
        """Of the recurrent form: a state of K numbers for each of the width's is written and read, whatever the length."""
        depth, width, heads = self.shape
        return 4 * depth * width * (width // heads + KERNEL_WIDTH + 2 * self.time_channel)


class Clock(NamedTuple):
    """Times as the temporal channel reads them, made once a batch. F periods; angles are within [0, 2 pi)."""

    seconds_T: torch.Tensor  # float64, since the history's first known time; never falls
    gap_T: torch.Tensor  # from the row's event to the row's asking
    row_TG2: torch.Tensor  # what a row asks with: (sin, -cos) and (cos, sin) of each period, G = 2 F
    column_TG2: torch.Tensor  # (cos, sin) of each period, twice


def clock_of(time_T: torch.Tensor, row_time_T: torch.Tensor, offsets_B1: torch.Tensor) -> Clock:
    """Angles and elapsed seconds from times in ms (-1 unknown); rows and columns of unknown time are zeros."""
    lengths_B = offsets_B1.diff()
    user_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=time_T.device), lengths_B, output_size=len(time_T))
    known_T, asked_T = time_T >= 0, row_time_T >= 0
    never = torch.iinfo(torch.int64).max
    seen_T = time_T.masked_fill(~known_T, never)
    first_B = seen_T.new_full((len(lengths_B),), never).scatter_reduce(0, user_T, seen_T, "amin")
    first_T = first_B[user_T].masked_fill((first_B == never)[user_T], 0)
    since_T = (time_T - first_T) * known_T
    # The running maximum within each user: users are lifted above each other by more than any history spans.
    lift_T = user_T * (since_T.max() + 1 if len(since_T) else 1)
    clock_T = (since_T + lift_T).cummax(0).values - lift_T
    asking_T = (row_time_T - first_T) * asked_T
    gap_T = (asking_T - clock_T).clamp_min(0) * asked_T
    cos, sin = _angles(since_T)
    row_cos, row_sin = _angles(asking_T)
    row_TG2 = torch.stack([torch.stack([row_sin, -row_cos], -1), torch.stack([row_cos, row_sin], -1)], 2).flatten(1, 2)
    column_TG2 = torch.stack([cos, sin], -1).repeat_interleave(2, dim=1)
    return Clock(
        clock_T.double() / 1000, gap_T.float() / 1000, row_TG2 * asked_T[:, None, None], column_TG2 * known_T[:, None, None]
    )


def _angles(time_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of times in ms over each period. [T, F] each"""
    period_F = torch.tensor(PERIODS_S, device=time_T.device) * 1000
    angle_TF = 2 * math.pi * (torch.remainder(time_T[:, None], period_F).double() / period_F)
    return angle_TF.cos().float(), angle_TF.sin().float()


class Retention(nn.Module):
    """The semantic channel: linear attention with a decay by position for each head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        each = math.log(math.expm1(8 * math.log(2) / heads))  # softplus of it, summed over heads, is that of the authors' eight
        self.decay_table_H = nn.Parameter(torch.full((heads,), each))

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position_T: torch.Tensor, offsets_B1: torch.Tensor
    ) -> torch.Tensor:
        rate_H = torch.exp(-F.softplus(self.decay_table_H).cumsum(0))
        return linear_attention(q, k, v, offsets_B1, rate_H, position_T.double()).flatten(1)


class TemporalRetention(nn.Module):
    """Weights by elapsed time alone: sines and cosines of periods, with a decay for each. Head g has columns g, g + G, ..."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = init_linear(nn.Linear(width, width, bias=False))
        self.decay_table_F = nn.Parameter(torch.zeros(len(PERIODS_S)))
        self.share_table_G = nn.Parameter(torch.empty(2 * len(PERIODS_S)))  # of what is read, and of the token's own value
        self.own_table_G = nn.Parameter(torch.ones(2 * len(PERIODS_S)))
        init_weight(self.share_table_G)

    def forward(self, x_TD: torch.Tensor, clock: Clock, offsets_B1: torch.Tensor) -> torch.Tensor:
        width, heads = x_TD.shape[1], len(self.own_table_G)
        v_TWG = F.pad(self.value(x_TD), (0, -width % heads)).view(len(x_TD), -(-width // heads), heads)
        turns_F = 2 * math.pi / torch.tensor(PERIODS_S, device=x_TD.device)
        rate_G = (turns_F * F.softplus(-self.decay_table_F)).repeat_interleave(2)  # -log gamma is softplus(-g)
        row_TG2 = clock.row_TG2 * torch.exp(-rate_G * clock.gap_T[:, None])[:, :, None]
        read_TGW = linear_attention(row_TG2, clock.column_TG2, v_TWG.transpose(1, 2), offsets_B1, rate_G, clock.seconds_T)
        mixed_TWG: torch.Tensor = self.share_table_G * read_TGW.transpose(1, 2) + self.own_table_G * v_TWG
        return mixed_TWG.flatten(1)[:, :width]


class LinearPositional(nn.Module):
    """Weights by the dot product of learned vectors of positions."""

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__()
        self.value = init_linear(nn.Linear(width, width, bias=False))
        half = KERNEL_WIDTH // 2
        angle_NK = torch.arange(max_length)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.position_table_NK = nn.Parameter(torch.cat([angle_NK.sin(), angle_NK.cos()], dim=1))
        self.share_table_P = nn.Parameter(torch.empty(1))
        self.own_table_P = nn.Parameter(torch.ones(1))
        init_weight(self.share_table_P)

    def forward(self, x_TD: torch.Tensor, position_T: torch.Tensor, offsets_B1: torch.Tensor) -> torch.Tensor:
        v_TD = self.value(x_TD)
        kernel_T1K = F.embedding(position_T, self.position_table_NK)[:, None]
        read_T1D = linear_attention(kernel_T1K, kernel_T1K / (KERNEL_WIDTH // 2), v_TD[:, None], offsets_B1)
        mixed_TD: torch.Tensor = self.share_table_P * read_T1D[:, 0] + self.own_table_P * v_TD
        return mixed_TD


class Block(nn.Module):
    """Three linear channels, each normalised, gated together; then the multi-stage feed-forward network."""

    def __init__(self, options: FuXiLinearOptions, max_length: int) -> None:
        super().__init__()
        _, width, self.heads = options.shape
        self.widths = [options.channels * width, width, width, width]
        self.uvqk = init_linear(nn.Linear(width, sum(self.widths), bias=False))
        self.retention = Retention(self.heads)
        self.positional = LinearPositional(width, max_length)
        self.temporal = TemporalRetention(width) if options.time_channel else None
        self.feedforward = MultiStageFeedForward(options.channels, width, options.feedforward, options.dropout)

    def forward(
        self, x_TD: torch.Tensor, offsets_B1: torch.Tensor, position_T: torch.Tensor, *clock: torch.Tensor
    ) -> torch.Tensor:
        normed_TD = _norm(x_TD)
        u_TC, *vqk = torch.split(F.silu(self.uvqk(normed_TD)), self.widths, dim=1)
        v, q, k = (x.view(len(x), self.heads, x.shape[1] // self.heads) for x in vqk)
        found = [
            self.retention(q, k, v, position_T, offsets_B1),
            self.positional(normed_TD, position_T, offsets_B1),
        ]
        if self.temporal is not None:
            found.append(self.temporal(normed_TD, Clock(*clock), offsets_B1))
        out_TD: torch.Tensor = self.feedforward(u_TC * torch.cat([_norm(channel) for channel in found], dim=1), x_TD)
        return out_TD


def _norm(x_TD: torch.Tensor) -> torch.Tensor:
    """Layer norm without weights, as in the authors' code; what is small beside their epsilon is still heard here."""
    return F.layer_norm(x_TD, x_TD.shape[-1:], eps=1e-12)


class FuXiLinear(Backbone):
    """The backbone: a Batch to hidden states [T, D]."""

    def __init__(self, options: FuXiLinearOptions, n_items: int, max_length: int) -> None:
        super().__init__(options, n_items, max_length)
        depth, width, _ = options.shape
        self.time_channel, self.query_time = options.time_channel, options.query_time
        self.input = SequenceInput(n_items, max_length, width, options.dropout)
        self.blocks = nn.ModuleList(Block(options, max_length) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch) -> torch.Tensor:
        x_TD, offsets_B1, position_T = self.input(batch), batch.offsets_B1, batch.position_T
        clock = clock_of(batch.time_T, row_times(batch, self.query_time), offsets_B1) if self.time_channel else ()
        for block in self.blocks:
            x_TD = self.through(block, x_TD, offsets_B1, position_T, *clock)
        hidden_TD: torch.Tensor = self.norm(x_TD)
        return hidden_TD
