"""Keys and values of one history, kept block by block, and attention of tokens that follow it without seeing each other.

A history is read once; each of C tokens after it then looks at the history and at itself (M-FALCON, Zhai et al. 2024, section
3.4, with the candidates' mask written out). The truth is a copy of the history before each of them. N tokens of history.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from largerec.kernels.reference import UNKNOWN_TIME_BUCKET, BucketedTime, time_bucket


class BlockCache:
    """What a block needs of a history: its keys and values [N, H, K], and its times [N] where the block has a time bias.

    ``last``: nothing after this block reads the history's own states.
    """

    def __init__(self, last: bool = False) -> None:
        self.last = last
        self.kept: tuple[torch.Tensor, torch.Tensor] | None = None
        self.time_N: torch.Tensor | None = None

    @property
    def only_keeps(self) -> bool:
        """Whether a block may leave out all but the keys and values of a history, since nobody reads what it would make."""
        return self.last and self.kept is None

    def keep(self, k_NHK: torch.Tensor, v_NHK: torch.Tensor, time: BucketedTime | None) -> None:
        self.kept, self.time_N = (k_NHK, v_NHK), None if time is None else time.column_time_T


class HistoryCache:
    """A :class:`BlockCache` for each block. A model's first pass with it fills it, and what that pass returns is not to be read;
    every later one continues from there."""

    def __init__(self) -> None:
        self._blocks: dict[int, BlockCache] = {}

    def __getitem__(self, level: int) -> BlockCache:
        return self.block(level)

    def block(self, level: int, *, last: bool = False) -> BlockCache:
        """The cache of a block; ``last``: of the last one, which may then only keep."""
        return self._blocks.setdefault(level, BlockCache(last))


def attention_after(
    q_CHK: torch.Tensor,
    k_CHK: torch.Tensor,
    v_CHK: torch.Tensor,
    cache: BlockCache,
    position_table_HN: torch.Tensor | None,
    time: BucketedTime | None,
    *,
    scale: float,
    softmax: bool,
) -> torch.Tensor:
    """Attention of each token to the history in the cache and to itself; otherwise as in :mod:`largerec.kernels.reference`.

    ``softmax``: ``softmax(scale * q k^T + bias) v``, else ``scale * SiLU(q k^T + bias) v``. Returns [C, H, K].
    """
    assert cache.kept is not None, "the cache holds no history yet"
    k_NHK, v_NHK = cache.kept
    n_past = len(k_NHK)
    q_HCK = q_CHK.transpose(0, 1)
    score_HCN = q_HCK @ k_NHK.permute(1, 2, 0)
    own_HC1 = (q_CHK * k_CHK).sum(2).T[:, :, None]
    if softmax:
        score_HCN, own_HC1 = score_HCN * scale, own_HC1 * scale
    if position_table_HN is not None:
        score_HCN = score_HCN + position_table_HN[:, 1 : n_past + 1].flip(1)[:, None]
        own_HC1 = own_HC1 + position_table_HN[:, :1, None]
    if time is not None:
        assert cache.time_N is not None
        score_HCN = score_HCN + _time_bias(time, cache.time_N[None])
        own_HC1 = own_HC1 + _time_bias(time, time.column_time_T[:, None])
    v_HNK, v_HCK = v_NHK.transpose(0, 1), v_CHK.transpose(0, 1)
    if softmax:
        weight_HCN1 = torch.cat([score_HCN, own_HC1], dim=2).softmax(2)
        out_HCK = weight_HCN1[:, :, :-1] @ v_HNK + weight_HCN1[:, :, -1:] * v_HCK
    else:
        out_HCK = (F.silu(score_HCN) @ v_HNK + F.silu(own_HC1) * v_HCK) * scale
    return out_HCK.transpose(0, 1)


def _time_bias(time: BucketedTime, column_time: torch.Tensor) -> torch.Tensor:
    """The bias of each row towards columns [1 or C, columns]; rows that are all alike are looked up once. [H, 1 or C, columns]"""
    row_C1 = time.row_time_T[:, None]
    if len(column_time) == 1 and bool((row_C1 == row_C1[0]).all()):
        row_C1 = row_C1[:1]
    bucket = torch.where((row_C1 < 0) | (column_time < 0), UNKNOWN_TIME_BUCKET, time_bucket(row_C1 - column_time))
    return time.table_HK[:, bucket]
