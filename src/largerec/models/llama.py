"""A Llama-style decoder (Touvron et al. 2023, arXiv 2302.13971, section 2.2) over items.

As there: RMSNorm before each sub-block (Zhang & Sennrich 2019, arXiv 1910.07467), rotary positions (Su et al. 2021, arXiv
2104.09864), SwiGLU and no biases; grouped queries (Ainslie et al. 2023, arXiv 2305.13245) as an option. Rotary positions are the
only ones: unlike the other families, the input has no table of learned positions, so scores depend on distances alone.
Unlike there: one item table for input and output, dropout on the outputs of both sub-blocks, inside SwiGLU and on the input.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from largerec.batches import Batch
from largerec.errors import LargeRecError
from largerec.kernels import BlockCache, HistoryCache, softmax_attention
from largerec.layers import Backbone, SequenceInput, SwiGLU, dropout, init_linear
from largerec.models.dial import ModelOptions

ROTARY_BASE = 10_000.0
NORM_EPSILON = 1e-6


class LlamaOptions(ModelOptions):
    """``kv_heads``: heads of keys and values, each shared by ``heads / kv_heads`` heads of queries; not set: as many as heads.

    ``feedforward``: width of SwiGLU's middle, in multiples of ``width`` (the paper: 8/3).
    """

    name: Literal["llama"] = "llama"
    kv_heads: int | None = Field(None, ge=1)
    feedforward: float = Field(2.67, gt=0)

    @model_validator(mode="after")
    def _heads_are_shared_evenly_and_can_be_turned(self) -> Self:
        if self.kv_heads is not None and (self.heads is None or self.heads % self.kv_heads):
            given = "is not set" if self.heads is None else f"is {self.heads}"
            raise LargeRecError(
                f"model.kv_heads={self.kv_heads} shares keys and values between model.heads, which {given}; set model.heads to a "
                f"multiple of {self.kv_heads}."
            )
        if self.width is not None and self.width == self.heads:
            raise LargeRecError(
                f"model.heads={self.heads} leaves one number a head, but rotary positions turn pairs; set model.heads to at most "
                f"half of model.width={self.width}."
            )
        return self

    @property
    def by_size(self) -> frozenset[str]:
        """Heads stay where keys and values have a number of their own, which divides theirs."""
        return super().by_size - ({"heads"} if self.kv_heads is not None else set())

    def block_parameters(self, width: int) -> int:
        kv_width = width if self.kv_heads is None or self.heads is None else width // self.heads * self.kv_heads
        return 2 * width**2 + 2 * width * kv_width + SwiGLU.parameters_of(width, self.feedforward) + 2 * width


def rotary_angles(position_T: torch.Tensor, head_width: int) -> torch.Tensor:
    """Angles [T, 1, K // 2] by which the pairs of a head are turned: position times ROTARY_BASE ** (-2 i / K) (eq. 15)."""
    pairs = head_width // 2
    frequency_P = ROTARY_BASE ** -(torch.arange(pairs, device=position_T.device) / pairs)
    return (position_T[:, None].float() * frequency_P)[:, None]


def turned(x_THK: torch.Tensor, cos_T1P: torch.Tensor, sin_T1P: torch.Tensor) -> torch.Tensor:
    """Turn pair i, which is numbers i and i + K // 2; in a head of odd width the last number stays as it is."""
    pairs = cos_T1P.shape[-1]
    one, two, rest = x_THK[..., :pairs], x_THK[..., pairs : 2 * pairs], x_THK[..., 2 * pairs :]
    return torch.cat([one * cos_T1P - two * sin_T1P, one * sin_T1P + two * cos_T1P, rest], dim=-1).to(x_THK.dtype)


class Block(nn.Module):
    """Attention with grouped queries and rotary positions, then SwiGLU."""

    def __init__(self, options: LlamaOptions) -> None:
        super().__init__()
        _, width, self.heads = options.shape
        self.kv_heads, self.dropout = options.kv_heads or self.heads, options.dropout
        head_width = width // self.heads
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.qkv = init_linear(nn.Linear(width, (self.heads + 2 * self.kv_heads) * head_width, bias=False))
        self.out = init_linear(nn.Linear(width, width, bias=False))
        self.feedforward_norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.feedforward = SwiGLU(width, options.feedforward, options.dropout)

    def forward(
        self,
        x_TD: torch.Tensor,
        offsets_B1: torch.Tensor,
        cos_T1P: torch.Tensor,
        sin_T1P: torch.Tensor,
        cache: BlockCache | None = None,
    ) -> torch.Tensor:
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = self.qkv(self.attention_norm(x_TD)).unflatten(1, (sum(heads), -1)).split(heads, dim=1)
        q, k = turned(q, cos_T1P, sin_T1P), turned(k, cos_T1P, sin_T1P)
        if self.kv_heads < self.heads:  # the kernels want a key for each query head
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
        attended_TD = softmax_attention(q, k, v, offsets_B1, cache=cache).flatten(1)
        x_TD = x_TD + dropout(self.out(attended_TD), self.dropout, self.training)
        return x_TD + dropout(self.feedforward(self.feedforward_norm(x_TD)), self.dropout, self.training)


class Llama(Backbone):
    """The backbone: a Batch to hidden states [T, D]."""

    cached = True

    def __init__(self, options: LlamaOptions, n_items: int, max_length: int) -> None:
        super().__init__(options, n_items, max_length)
        depth, width, heads = options.shape
        self.head_width = width // heads
        self.input = SequenceInput(n_items, None, width, options.dropout)
        self.blocks = nn.ModuleList(Block(options) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=NORM_EPSILON)

    def forward(self, batch: Batch, cache: HistoryCache | None = None) -> torch.Tensor:
        x_TD = self.input(batch)
        angle_T1P = rotary_angles(batch.position_T, self.head_width).to(x_TD.device)
        cos_T1P, sin_T1P = angle_T1P.cos(), angle_T1P.sin()
        for level, block in enumerate(self.blocks):
            kept = None if cache is None else cache[level]
            x_TD = self.through(block, x_TD, batch.offsets_B1, cos_T1P, sin_T1P, kept)
        hidden_TD: torch.Tensor = self.norm(x_TD)
        return hidden_TD
