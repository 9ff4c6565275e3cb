"""Kernels over packed tokens, one signature an operator; the implementation is chosen here.

On a CPU with a C++ compiler the compiled twin runs (``cpu``), on a CUDA device with Triton its twin (``triton``), elsewhere the
plain path (``padded``); ``reference`` is the truth that all are tested against.
"""

from __future__ import annotations

from types import ModuleType

import torch

from largerec.kernels import cpu, padded, triton
from largerec.kernels.cpu import native_bf16
from largerec.kernels.linear import linear_attention
from largerec.kernels.losses import exp_rows_, sampled_loss, softmax_loss, unit_rows
from largerec.kernels.reference import BucketedTime, PowerLawTime

__all__ = [
    "BucketedTime",
    "PowerLawTime",
    "describe",
    "exp_rows_",
    "linear_attention",
    "native_bf16",
    "position_attention",
    "sampled_loss",
    "silu_attention",
    "softmax_attention",
    "softmax_loss",
    "time_attention",
    "unit_rows",
]


def _twin(x: torch.Tensor) -> ModuleType | None:
    """The fast implementation for such tensors on their device: a module with ``attention``, or None."""
    if x.dtype in (torch.float32, torch.bfloat16) and cpu.usable(x):
        return cpu
    if x.dtype in (torch.float32, torch.bfloat16, torch.float16) and triton.usable(x):
        return triton
    return None


def describe(device: str = "cpu") -> str:
    """Which implementation runs on a device of this machine, in words; builds the one for CPUs if it can be had."""
    return triton.available()[1] if torch.device(device).type == "cuda" else cpu.available()[1]


def softmax_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THK: torch.Tensor,
    offsets_B1: torch.Tensor,
    position_table_HN: torch.Tensor | None = None,
    time: BucketedTime | None = None,
) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.softmax_attention`."""
    twin = _twin(v_THK)
    if twin is not None:
        out: torch.Tensor = twin.attention(
            q_THK, k_THK, v_THK, offsets_B1, True, q_THK.shape[-1] ** -0.5, position_table_HN, time
        )
        return out
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
    twin = _twin(v_THK)
    if twin is not None:
        out: torch.Tensor = twin.attention(q_THK, k_THK, v_THK, offsets_B1, False, scale, position_table_HN, time)
        return out
    return padded.silu_attention(q_THK, k_THK, v_THK, offsets_B1, scale, position_table_HN, time)


def position_attention(v_THK: torch.Tensor, offsets_B1: torch.Tensor, position_table_HN: torch.Tensor) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.position_attention`; without a twin for CUDA devices."""
    if _twin(v_THK) is cpu:
        return cpu.position_attention(v_THK, offsets_B1, position_table_HN)
    return padded.position_attention(v_THK, offsets_B1, position_table_HN)


def time_attention(v_THK: torch.Tensor, offsets_B1: torch.Tensor, time: BucketedTime | PowerLawTime) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.time_attention`; without a twin for CUDA devices."""
    if _twin(v_THK) is cpu:
        return cpu.time_attention(v_THK, offsets_B1, time)
    return padded.time_attention(v_THK, offsets_B1, time)
