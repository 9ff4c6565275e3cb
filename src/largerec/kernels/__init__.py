"""Kernels over packed tokens, one signature an operator; the implementation is chosen here.

On a CPU with a C++ compiler the compiled twin runs (``cpu``), elsewhere the plain path (``padded``); ``reference`` is the truth
that both are tested against.
"""

from __future__ import annotations

import torch

from largerec.kernels import cpu, padded
from largerec.kernels.cpu import native_bf16
from largerec.kernels.losses import exp_rows_, sampled_loss, softmax_loss, unit_rows
from largerec.kernels.reference import BucketedTime

__all__ = [
    "BucketedTime",
    "describe",
    "exp_rows_",
    "native_bf16",
    "sampled_loss",
    "silu_attention",
    "softmax_attention",
    "softmax_loss",
    "unit_rows",
]


def _compiled(x: torch.Tensor) -> bool:
    return x.dtype in (torch.float32, torch.bfloat16) and cpu.usable(x)


def describe() -> str:
    """Which implementation runs on this machine's CPU, in words; builds the compiled one if it can be had."""
    return cpu.available()[1]


def softmax_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THK: torch.Tensor,
    offsets_B1: torch.Tensor,
    position_table_HN: torch.Tensor | None = None,
    time: BucketedTime | None = None,
) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.softmax_attention`."""
    if _compiled(v_THK):
        return cpu.attention(q_THK, k_THK, v_THK, offsets_B1, True, q_THK.shape[-1] ** -0.5, position_table_HN, time)
    return padded.softmax_attention(q_THK, k_THK, v_THK, offsets_B1, position_table_HN, time)


def silu_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THK: torch.Tensor,
    offsets_B1: torch.Tensor,
    scale: float,
    position_table_HN: torch.Tensor | None = None,
    time: BucketedTime | None = None,
) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.silu_attention`."""
    if _compiled(v_THK):
        return cpu.attention(q_THK, k_THK, v_THK, offsets_B1, False, scale, position_table_HN, time)
    return padded.silu_attention(q_THK, k_THK, v_THK, offsets_B1, scale, position_table_HN, time)
