"""The truth, in plain torch: causal attention over packed tokens by padding, and losses over sampled items by gathering.

Shapes: T tokens, B users, H heads, K width of a head (of a loss: negatives), N longest history, V items, D width. Histories are
padded on the right, so that under a causal mask no real token ever sees padding; padding exists only here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

TIME_BUCKETS = 32
UNKNOWN_TIME_BUCKET = TIME_BUCKETS - 1


class BucketedTime(NamedTuple):
    """The bucketed time bias: a table [H, TIME_BUCKETS], and times in ms UTC (-1 unknown) of asking and asked tokens."""

    table_HK: torch.Tensor
    row_time_T: torch.Tensor
    column_time_T: torch.Tensor


class PowerLawTime(NamedTuple):
    """Weights a * (1 + seconds)^-b by elapsed time: a table [H, 2] of a and b, and times as in :class:`BucketedTime`."""

    table_HP: torch.Tensor
    row_time_T: torch.Tensor
    column_time_T: torch.Tensor


def _slots(offsets_B1: torch.Tensor, n_tokens: int) -> tuple[torch.Tensor, int, int]:
    """Where each token stands in the padded [B * N] layout, with B and N."""
    lengths_B = offsets_B1.diff()
    n_users, longest = len(lengths_B), int(lengths_B.max()) if len(lengths_B) else 0
    shift_B = torch.arange(n_users, device=offsets_B1.device) * longest - offsets_B1[:-1]
    slot_T = torch.arange(n_tokens, device=offsets_B1.device) + torch.repeat_interleave(shift_B, lengths_B, output_size=n_tokens)
    return slot_T, n_users, longest


def _padded(x_T: torch.Tensor, slot_T: torch.Tensor, n_users: int, longest: int) -> torch.Tensor:
    return x_T.new_zeros(n_users * longest, *x_T.shape[1:]).index_copy(0, slot_T, x_T).view(n_users, longest, *x_T.shape[1:])


def time_bucket(elapsed_ms: torch.Tensor) -> torch.Tensor:
    """floor(log2(max(1, seconds))) for whole seconds, exactly; at most UNKNOWN_TIME_BUCKET - 1."""
    seconds = torch.div(elapsed_ms, 1000, rounding_mode="floor").clamp_min(1)
    exponent = torch.frexp(seconds.double())[1].long() - 1
    return exponent.clamp_max(UNKNOWN_TIME_BUCKET - 1)


def _bias(
    slot_T: torch.Tensor, n_users: int, longest: int, position_table_HN: torch.Tensor | None, time: BucketedTime | None
) -> torch.Tensor | float:
    """The sum of both biases, [B or 1, H, N, N]."""
    bias: torch.Tensor | float = 0.0
    if position_table_HN is not None:
        steps_N = torch.arange(longest, device=slot_T.device)
        bias = position_table_HN[:, (steps_N[:, None] - steps_N).clamp_min(0)][None]
    if time is not None:
        row_BN, column_BN = (_padded(t, slot_T, n_users, longest) for t in (time.row_time_T, time.column_time_T))
        bucket_BNN = time_bucket(row_BN[:, :, None] - column_BN[:, None, :])
        unknown_BNN = (row_BN < 0)[:, :, None] | (column_BN < 0)[:, None, :]
        bias = bias + time.table_HK[:, torch.where(unknown_BNN, UNKNOWN_TIME_BUCKET, bucket_BNN)].transpose(0, 1)
    return bias


def softmax_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THK: torch.Tensor,
    offsets_B1: torch.Tensor,
    position_table_HN: torch.Tensor | None = None,
    time: BucketedTime | None = None,
) -> torch.Tensor:
    """Causal attention ``softmax(q k^T / sqrt(K) + bias) v`` within each user's slice (Vaswani et al. 2017, eq. 1).

    The biases are those of :func:`silu_attention`. Returns [T, H, K].
    """
    if len(q_THK) == 0:
        return torch.zeros_like(v_THK)
    slot_T, n_users, longest = _slots(offsets_B1, len(q_THK))
    q, k, v = (_padded(x, slot_T, n_users, longest).transpose(1, 2) for x in (q_THK, k_THK, v_THK))
    later_NN = torch.ones(longest, longest, dtype=torch.bool, device=q.device).triu(1)
    score_BHNN = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5 + _bias(slot_T, n_users, longest, position_table_HN, time)
    out_BHNK: torch.Tensor = score_BHNN.masked_fill(later_NN, float("-inf")).softmax(-1).to(v.dtype) @ v
    return out_BHNK.transpose(1, 2).flatten(0, 1).index_select(0, slot_T)


def silu_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THK: torch.Tensor,
    offsets_B1: torch.Tensor,
    scale: float,
    position_table_HN: torch.Tensor | None = None,
    time: BucketedTime | None = None,
) -> torch.Tensor:
    """Causal pointwise attention ``scale * SiLU(q k^T + bias) v`` within each user's slice (Zhai et al. 2024, eq. 2; the
    scale, one over the longest history, is from the authors' code).

    ``position_table_HN[h, i - j]`` is added for token i that looks at token j, and ``time.table_HK[h, bucket]`` by the whole
    seconds between i's row time and j's column time. Returns [T, H, K].
    """
    if len(q_THK) == 0:
        return torch.zeros_like(v_THK)
    slot_T, n_users, longest = _slots(offsets_B1, len(q_THK))
    q, k, v = (_padded(x, slot_T, n_users, longest).transpose(1, 2) for x in (q_THK, k_THK, v_THK))
    score_BHNN = q @ k.transpose(2, 3) + _bias(slot_T, n_users, longest, position_table_HN, time)
    causal_NN = torch.ones(longest, longest, dtype=q.dtype, device=q.device).tril()
    out_BHNK = (F.silu(score_BHNN) * (causal_NN * scale)).to(v.dtype) @ v
    return out_BHNK.transpose(1, 2).flatten(0, 1).index_select(0, slot_T)


def _power_law(slot_T: torch.Tensor, n_users: int, longest: int, time: PowerLawTime) -> torch.Tensor:
    """The weights of a power law, [B, H, N, N]; 0 where a time is unknown. A clock that runs backwards counts as standing."""
    row_BN, column_BN = (_padded(t, slot_T, n_users, longest) for t in (time.row_time_T, time.column_time_T))
    known_BNN = (row_BN >= 0)[:, :, None] & (column_BN >= 0)[:, None, :]
    elapsed_BNN = (row_BN[:, :, None] - column_BN[:, None, :]).clamp_min(0) * known_BNN
    log_BNN = torch.log1p(elapsed_BNN.double() / 1000).to(time.table_HP.dtype)
    a_H11, b_H11 = time.table_HP.T[:, :, None, None]
    weight_BHNN: torch.Tensor = a_H11 * torch.exp(-b_H11 * log_BNN[:, None])
    return weight_BHNN * known_BNN[:, None]


def _weighted(
    v_THK: torch.Tensor, offsets_B1: torch.Tensor, weights: Callable[[torch.Tensor, int, int], torch.Tensor]
) -> torch.Tensor:
    """The causal weighted sum of values, with weights [B or 1, H, N, N]."""
    if len(v_THK) == 0:
        return torch.zeros_like(v_THK)
    slot_T, n_users, longest = _slots(offsets_B1, len(v_THK))
    v_BHNK = _padded(v_THK, slot_T, n_users, longest).transpose(1, 2)
    out_BHNK = weights(slot_T, n_users, longest).tril().to(v_THK.dtype) @ v_BHNK
    return out_BHNK.transpose(1, 2).flatten(0, 1).index_select(0, slot_T)


def position_attention(v_THK: torch.Tensor, offsets_B1: torch.Tensor, position_table_HN: torch.Tensor) -> torch.Tensor:
    """Causal attention whose weight of token j for token i is ``position_table_HN[h, i - j]`` (Ye et al. 2025, arXiv 2502.03036).

    Without queries and keys, in each user's slice. Returns [T, H, K].
    """

    def weights(slot_T: torch.Tensor, n_users: int, longest: int) -> torch.Tensor:
        bias = _bias(slot_T, n_users, longest, position_table_HN, None)
        assert isinstance(bias, torch.Tensor)
        return bias

    return _weighted(v_THK, offsets_B1, weights)


def time_attention(v_THK: torch.Tensor, offsets_B1: torch.Tensor, time: BucketedTime | PowerLawTime) -> torch.Tensor:
    """Causal attention whose weight of token j for token i comes from the time between i's row time and j's column time alone.

    From a table of buckets (Ye et al. 2025, arXiv 2502.03036) or a power law (arXiv 2508.10615). Returns [T, H, K].
    """

    def weights(slot_T: torch.Tensor, n_users: int, longest: int) -> torch.Tensor:
        if isinstance(time, PowerLawTime):
            return _power_law(slot_T, n_users, longest, time)
        bias = _bias(slot_T, n_users, longest, None, time)
        assert isinstance(bias, torch.Tensor)
        return bias

    return _weighted(v_THK, offsets_B1, weights)


def loss_of_scores(
    own_T: torch.Tensor,
    score_TK: torch.Tensor,
    target_T: torch.Tensor,
    items_TK: torch.Tensor,
    log_q_V: torch.Tensor | None,
    *,
    softmax: bool,
    power: float,
) -> torch.Tensor:
    """Loss of each position from the scores of its target and its negatives; see :func:`sampled_loss`. [T]"""
    hit_TK = items_TK == target_T[:, None]  # a negative that is the target says nothing
    if not softmax:
        return power * F.softplus(-own_T) + (F.softplus(score_TK) * ~hit_TK).sum(1)
    if log_q_V is not None:
        # Hits are dropped, so q is renormalised over the other items, and the draws that are left are counted.
        draws_T = (~hit_TK).sum(1).clamp_min(1)
        own_T = own_T - (torch.log1p(-log_q_V[target_T].exp().clamp_max(1 - 1e-6)) - draws_T.log())
        score_TK = score_TK - log_q_V[items_TK]
    logits_TK1 = torch.cat([own_T[:, None], score_TK.masked_fill(hit_TK, float("-inf"))], dim=1)
    return torch.logsumexp(logits_TK1, dim=1) - own_T


def sampled_loss(
    queries_TD: torch.Tensor,
    keys_VD: torch.Tensor,
    target_T: torch.Tensor,
    items_TK: torch.Tensor,
    log_q_V: torch.Tensor | None = None,
    *,
    softmax: bool,
    power: float = 1.0,
) -> torch.Tensor:
    """Mean loss of each position's target against its own K negatives; negatives that are the target do not count.

    With ``softmax``: cross-entropy of the target among itself and the negatives. ``log_q_V`` corrects for how negatives were
    drawn (log-probability of each item): the sum over negatives then estimates the sum over the catalogue without the target,
    which is log(1 - q(target)) - log(draws) beside the plain correction -log q. Else binary cross-entropy, with the positive's
    probability to ``power`` (gSASRec, Petrov & Macdonald 2023, eq. 12).
    """
    own_T = (queries_TD * keys_VD[target_T]).sum(1)
    score_TK = (queries_TD[:, None] * keys_VD[items_TK]).sum(2)
    return loss_of_scores(own_T, score_TK, target_T, items_TK, log_q_V, softmax=softmax, power=power).mean()
