"""HSTU: hierarchical sequential transduction units (Zhai et al. 2024, arXiv 2402.17152, section 3).

One block replaces attention and feed-forward: SiLU projections U, V, Q, K of the normalised input; pointwise (not softmax)
attention with relative position and bucketed time biases; the gate U on the normalised result; one projection out. Like the
authors' public code, the input also has learned absolute positions, blocks are residual and scores are divided by the longest
history. Here the bias tables are per head and start at zero, norms have weights, and a last layer norm stands before the item
scores. Item vectors are not multiplied by sqrt(D) at the input, and a time bucket is a factor of 2 where theirs is one of 1.35
(the natural logarithm divided by .301).

**Query time.** The authors' code lets the time bias look at the target's own time. That is knowledge a served model has (it
is the moment of asking) but most published rows do not: it is off unless ``query_time`` is set, and then row i uses the time
of event i+1.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import nn
from torch.nn import functional as F

from largerec.batches import Batch
from largerec.errors import LargeRecError
from largerec.kernels import BlockCache, BucketedTime, HistoryCache, silu_attention
from largerec.kernels.reference import TIME_BUCKETS
from largerec.layers import Backbone, SequenceInput, dropout, init_linear
from largerec.models.dial import ModelOptions


class HSTUOptions(ModelOptions):
    """``position_bias``, ``time_bias``: the two relative biases; ``query_time``: the time bias sees the moment of asking."""

    name: Literal["hstu"] = "hstu"
    position_bias: bool = True
    time_bias: bool = True
    query_time: bool = False

    @model_validator(mode="after")
    def _query_time_needs_the_time_bias(self) -> Self:
        if self.query_time and not self.time_bias:
            raise LargeRecError("model.query_time=true works through the time bias; set model.time_bias=true or leave it out.")
        return self

    @property
    def reads_time(self) -> bool:
        return self.time_bias

    def block_parameters(self, width: int) -> int:
        return 5 * width**2 + width + 4 * width


class Block(nn.Module):
    """Eq. 1-3 of the paper, in a residual block."""

    def __init__(self, options: HSTUOptions, max_length: int) -> None:
        super().__init__()
        _, width, self.heads = options.shape
        self.dropout, self.scale = options.dropout, 1.0 / max_length
        self.norm = nn.LayerNorm(width)
        self.uvqk = init_linear(nn.Linear(width, 4 * width, bias=False))
        # With 1/N in front, attention over a short history is small beside the usual epsilon, which would silence it.
        self.gate_norm = nn.LayerNorm(width, eps=1e-12)
        self.out = init_linear(nn.Linear(width, width))
        self.position_table_HN = nn.Parameter(torch.zeros(self.heads, max_length)) if options.position_bias else None
        self.time_table_HK = nn.Parameter(torch.zeros(self.heads, TIME_BUCKETS)) if options.time_bias else None

    def forward(
        self,
        x_TD: torch.Tensor,
        offsets_B1: torch.Tensor,
        row_time_T: torch.Tensor,
        time_T: torch.Tensor,
        cache: BlockCache | None = None,
    ) -> torch.Tensor:
        time = None if self.time_table_HK is None else BucketedTime(self.time_table_HK, row_time_T, time_T)
        if cache is not None and cache.only_keeps:
            _, v_weight, _, k_weight = self.uvqk.weight.chunk(4)
            normed_TD = self.norm(x_TD)
            k, v = (F.silu(F.linear(normed_TD, part)).view(len(x_TD), self.heads, -1) for part in (k_weight, v_weight))
            cache.keep(k, v, time)
            return x_TD
        u_TD, v_TD, q_TD, k_TD = F.silu(self.uvqk(self.norm(x_TD))).chunk(4, dim=1)
        q, k, v = (x.view(len(x), self.heads, x.shape[1] // self.heads) for x in (q_TD, k_TD, v_TD))
        attended_TD = silu_attention(q, k, v, offsets_B1, self.scale, self.position_table_HN, time, cache).flatten(1)
        gated_TD = dropout(u_TD * self.gate_norm(attended_TD), self.dropout, self.training)
        out_TD: torch.Tensor = x_TD + self.out(gated_TD)
        return out_TD


class HSTU(Backbone):
    """The backbone: a Batch to hidden states [T, D]."""

    cached = True

    def __init__(self, options: HSTUOptions, n_items: int, max_length: int) -> None:
        super().__init__(options, n_items, max_length)
        depth, width, _ = options.shape
        self.query_time = options.query_time
        self.input = SequenceInput(n_items, max_length, width, options.dropout)
        self.blocks = nn.ModuleList(Block(options, max_length) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch, cache: HistoryCache | None = None) -> torch.Tensor:
        row_time_T = batch.time_T
        if self.query_time:
            assert batch.query_time_T is not None, "a model with query time needs query_time_T"
            row_time_T = batch.query_time_T
        x_TD = self.input(batch)
        for level, block in enumerate(self.blocks):
            kept = None if cache is None else cache.block(level, last=level + 1 == len(self.blocks))
            x_TD = self.through(block, x_TD, batch.offsets_B1, row_time_T, batch.time_T, kept)
        hidden_TD: torch.Tensor = self.norm(x_TD)
        return hidden_TD
