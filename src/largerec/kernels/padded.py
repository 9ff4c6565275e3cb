"""The plain path without a compiler: the reference on users of like length together, so that padding at most doubles the work.

Real logs hold a few long and many short histories; padding all to the longest costs eight times the work on Amazon Beauty.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from largerec.kernels import reference
from largerec.kernels.reference import BucketedTime, PowerLawTime

SHORTEST_CLASS = 3
"""Histories of at most 2**3 tokens share one class."""

Attend = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _by_length(v_THK: torch.Tensor, offsets_B1: torch.Tensor, attend: Attend) -> torch.Tensor:
    """Call ``attend(token rows, offsets)`` for the users of each length class and put the results in place."""
    lengths_B = offsets_B1.diff()
    class_B = torch.frexp((lengths_B - 1).clamp_min(1).double())[1].clamp_min(SHORTEST_CLASS)
    classes = torch.unique(class_B).tolist()
    if len(classes) <= 1:
        return attend(torch.arange(len(v_THK), device=v_THK.device), offsets_B1)
    class_T = torch.repeat_interleave(class_B, lengths_B, output_size=len(v_THK))
    rows, parts = [], []
    for one in classes:
        row_S = torch.nonzero(class_T == one)[:, 0]
        offsets = torch.cat([offsets_B1.new_zeros(1), lengths_B[class_B == one].cumsum(0)])
        rows.append(row_S)
        parts.append(attend(row_S, offsets))
    return torch.cat(parts).index_select(0, torch.argsort(torch.cat(rows)))


def _part(time: BucketedTime | None, row_S: torch.Tensor) -> BucketedTime | None:
    return None if time is None else BucketedTime(time.table_HK, time.row_time_T[row_S], time.column_time_T[row_S])


def softmax_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THK: torch.Tensor,
    offsets_B1: torch.Tensor,
    position_table_HN: torch.Tensor | None = None,
    time: BucketedTime | None = None,
) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.softmax_attention`."""

    def attend(row_S: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.index_select(0, row_S) for x in (q_THK, k_THK, v_THK))
        return reference.softmax_attention(q, k, v, offsets, position_table_HN, _part(time, row_S))

    return _by_length(v_THK, offsets_B1, attend)


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

    def attend(row_S: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.index_select(0, row_S) for x in (q_THK, k_THK, v_THK))
        return reference.silu_attention(q, k, v, offsets, scale, position_table_HN, _part(time, row_S))

    return _by_length(v_THK, offsets_B1, attend)


def position_attention(v_THK: torch.Tensor, offsets_B1: torch.Tensor, position_table_HN: torch.Tensor) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.position_attention`."""

    def attend(row_S: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return reference.position_attention(v_THK.index_select(0, row_S), offsets, position_table_HN)

    return _by_length(v_THK, offsets_B1, attend)


def time_attention(v_THK: torch.Tensor, offsets_B1: torch.Tensor, time: BucketedTime | PowerLawTime) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.time_attention`."""

    def attend(row_S: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        part = type(time)(time[0], time.row_time_T[row_S], time.column_time_T[row_S])
        return reference.time_attention(v_THK.index_select(0, row_S), offsets, part)

    return _by_length(v_THK, offsets_B1, attend)
