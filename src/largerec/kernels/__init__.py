"""Kernels over packed tokens, one signature an operator; the implementation is chosen here.

On a CPU with a C++ compiler the compiled twin runs (``cpu``), on a CUDA device with Triton its twin (``triton``), elsewhere the
plain path (``padded``); ``reference`` is the truth that all are tested against.
"""

from __future__ import annotations

from types import ModuleType

import torch

from largerec.kernels import cpu, linear, padded, triton
from largerec.kernels.cache import BlockCache, HistoryCache, attention_after
from largerec.kernels.cpu import native_bf16
from largerec.kernels.losses import count_rows, exp_rows_, sampled_loss, softmax_loss, unit_rows
from largerec.kernels.reference import BucketedTime, PowerLawTime

__all__ = [
    "BlockCache",
    "BucketedTime",
    "HistoryCache",
    "PowerLawTime",
    "attention_after",
    "count_rows",
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


def _after(
    q_CHK: torch.Tensor,
    k_CHK: torch.Tensor,
    v_CHK: torch.Tensor,
    cache: BlockCache,
    position_table_HN: torch.Tensor | None,
    time: BucketedTime | None,
    scale: float,
    *,
    softmax: bool,
) -> torch.Tensor:
    """:func:`attention_after`, by its compiled twin where that is usable: float32 on a CPU, no gradient asked for."""
    assert cache.kept is not None
    past_k_NHK, past_v_NHK = cache.kept
    plain = torch.is_grad_enabled() or q_CHK.dtype != torch.float32 or past_k_NHK.dtype != torch.float32
    if plain or not cpu.usable(q_CHK):
        return attention_after(q_CHK, k_CHK, v_CHK, cache, position_table_HN, time, scale=scale, softmax=softmax)
    return cpu.attention_after(q_CHK, k_CHK, v_CHK, past_k_NHK, past_v_NHK, softmax, scale, position_table_HN, time, cache.time_N)


def softmax_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THK: torch.Tensor,
    offsets_B1: torch.Tensor,
    position_table_HN: torch.Tensor | None = None,
    time: BucketedTime | None = None,
    cache: BlockCache | None = None,
) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.softmax_attention`; with a cache that holds a history, as :func:`attention_after`."""
    if cache is not None and cache.kept is not None:
        return _after(q_THK, k_THK, v_THK, cache, position_table_HN, time, q_THK.shape[-1] ** -0.5, softmax=True)
    if cache is not None:
        cache.keep(k_THK, v_THK, time)
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
    cache: BlockCache | None = None,
) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.silu_attention`; with a cache that holds a history, as :func:`attention_after`."""
    if cache is not None and cache.kept is not None:
        return _after(q_THK, k_THK, v_THK, cache, position_table_HN, time, scale, softmax=False)
    if cache is not None:
        cache.keep(k_THK, v_THK, time)
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


def linear_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THV: torch.Tensor,
    offsets_B1: torch.Tensor,
    rate_H: torch.Tensor | None = None,
    clock_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`largerec.kernels.linear.linear_attention`; without a twin for CUDA devices."""
    if all(x.dtype in (torch.float32, torch.bfloat16) for x in (q_THK, k_THK, v_THV)) and cpu.usable(v_THV):
        return cpu.linear_attention(q_THK, k_THK, v_THV, offsets_B1, rate_H, clock_T)
    return linear.linear_attention(q_THK, k_THK, v_THV, offsets_B1, rate_H, clock_T)
