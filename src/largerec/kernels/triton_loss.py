"""Triton programs of the loss over sampled items; ``triton.py`` calls :func:`sampled_loss`.

Shapes: T tokens, D width (padded to ``BLOCK_D``), V rows of the item table, K negatives a position, E entries.

A first program a token reads its items' rows where they lie, once, and makes scores, loss and the query's gradient: no [T, K, D]
gather is made. Scores [T, K] are kept, those of negatives that are the target as minus infinity. For the table's gradient all
T * K + T uses of a row, the entries, are sorted by row (stably), and a second program a row adds up weight * query over its
own entries. So no two programs write one row, there are no atomics, and equal inputs give bitwise equal sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from largerec.kernels.triton_forward import INTERPRETED, launch, tuned


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _draws(items_ptr, target, negatives, BLOCK_K: tl.constexpr):
    """How many of a token's negatives are not its target, at least 1."""
    count = 0
    for first in range(0, negatives, BLOCK_K):
        k_K = first + tl.arange(0, BLOCK_K)
        item_K = tl.load(items_ptr + k_K, mask=k_K < negatives, other=target)
        count += tl.sum((item_K != target).to(tl.int32), 0)
    return tl.maximum(count, 1).to(tl.float32)


@triton.jit
def _token(
    queries_ptr, keys_ptr, target_ptr, items_ptr, log_q_ptr, loss_ptr, score_ptr, lse_ptr, own_ptr, d_queries_ptr,
    negatives, power, share,
    SOFTMAX: tl.constexpr, CORRECTED: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of one token: loss, scores of its negatives, log-sum-exp, the target's weight, the query's gradient times ``share``."""
    t = tl.program_id(0).to(tl.int64)
    d_D = tl.arange(0, BLOCK_D)
    wide_D = d_D < WIDTH
    q_D = tl.load(queries_ptr + t * WIDTH + d_D, mask=wide_D, other=0.0)
    target = tl.load(target_ptr + t)
    own_key_D = tl.load(keys_ptr + target * WIDTH + d_D, mask=wide_D, other=0.0)
    own = tl.sum(q_D * own_key_D, 0)
    items_ptr += t * negatives
    score_ptr += t * negatives
    if CORRECTED:  # see reference.loss_of_scores
        rest = 1.0 - tl.minimum(tl.exp(tl.load(log_q_ptr + target)), 1.0 - 1e-6)
        own -= tl.log(rest) - tl.log(_draws(items_ptr, target, negatives, BLOCK_K))
    top = own
    total = own * 0.0 + 1.0
    loss = power * _softplus(-own)
    acc_D = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, negatives, BLOCK_K):
        k_K = first + tl.arange(0, BLOCK_K)
        there_K = k_K < negatives
        item_K = tl.load(items_ptr + k_K, mask=there_K, other=target)
        key_KD = tl.load(keys_ptr + item_K[:, None] * WIDTH + d_D[None, :], mask=wide_D[None, :], other=0.0)
        score_K = tl.sum(key_KD * q_D[None, :], 1)
        if CORRECTED:
            score_K -= tl.load(log_q_ptr + item_K)
        score_K = tl.where(item_K == target, float("-inf"), score_K)  # padding is the target, too
        tl.store(score_ptr + k_K, score_K, mask=there_K)
        if SOFTMAX:
            higher = tl.maximum(top, tl.max(score_K, 0))
            weight_K = tl.exp(score_K - higher)
            shrink = tl.exp(top - higher)
            total = total * shrink + tl.sum(weight_K, 0)
            acc_D *= shrink
            top = higher
        else:
            weight_K = tl.sigmoid(score_K)
            loss += tl.sum(_softplus(score_K), 0)
        acc_D += tl.sum(weight_K[:, None] * key_KD, 0)
    if SOFTMAX:
        lse = top + tl.log(total)
        loss = lse - own
        own_weight = tl.exp(own - lse) - 1.0
        acc_D /= total
        tl.store(lse_ptr + t, lse)
    else:
        own_weight = -power * tl.sigmoid(-own)
    tl.store(loss_ptr + t, loss)
    tl.store(own_ptr + t, own_weight)
    tl.store(d_queries_ptr + t * WIDTH + d_D, (acc_D + own_weight * own_key_D) * share, mask=wide_D)


@triton.jit
def _table_row(
    queries_ptr, score_ptr, lse_ptr, own_ptr, entry_ptr, bound_ptr, d_keys_ptr, n_scores, negatives, share,
    SOFTMAX: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One row of the table's gradient: the sum over its entries in order. Entries from ``n_scores`` on are targets."""
    v = tl.program_id(0).to(tl.int64)
    d_D = tl.arange(0, BLOCK_D)
    wide_D = d_D < WIDTH
    first, last = tl.load(bound_ptr + v), tl.load(bound_ptr + v + 1)
    acc_D = tl.zeros((BLOCK_D,), tl.float32)
    for begin in range(first, last, BLOCK_K):
        at_E = begin + tl.arange(0, BLOCK_K)
        there_E = at_E < last
        entry_E = tl.load(entry_ptr + at_E, mask=there_E, other=0)
        own_E = entry_E >= n_scores
        t_E = tl.where(own_E, entry_E - n_scores, entry_E // negatives)
        score_E = tl.load(score_ptr + entry_E, mask=there_E & (entry_E < n_scores), other=float("-inf"))
        weight_E = tl.exp(score_E - tl.load(lse_ptr + t_E)) if SOFTMAX else tl.sigmoid(score_E)
        weight_E = tl.where(own_E, tl.load(own_ptr + t_E), weight_E)
        q_ED = tl.load(queries_ptr + t_E[:, None] * WIDTH + d_D[None, :], mask=there_E[:, None] & wide_D[None, :], other=0.0)
        acc_D += tl.sum(tl.where(there_E, weight_E, 0.0)[:, None] * q_ED, 0)
    tl.store(d_keys_ptr + v * WIDTH + d_D, acc_D * share, mask=wide_D)


def _configs() -> list[triton.Config]:
    if INTERPRETED:
        return [triton.Config({"BLOCK_K": 16}, num_warps=4)]
    return [triton.Config({"BLOCK_K": rows}, num_warps=warps) for rows, warps in ((16, 4), (32, 4), (64, 4), (16, 2), (8, 1))]


TOKEN = tuned(_token, _configs(), ("SOFTMAX", "CORRECTED", "WIDTH"))
TABLE_ROW = tuned(_table_row, _configs(), ("SOFTMAX", "WIDTH"))


def sampled_loss(
    queries_TD: torch.Tensor,
    keys_VD: torch.Tensor,
    target_T: torch.Tensor,
    items_TK: torch.Tensor,
    log_q_V: torch.Tensor | None,
    softmax: bool,
    power: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`largerec.kernels.reference.sampled_loss`, in float32: the mean loss and its gradients [T, D] and [V, D]."""
    assert queries_TD.dtype == keys_VD.dtype == torch.float32
    queries, keys, target, items = (x.contiguous() for x in (queries_TD, keys_VD, target_T, items_TK))
    d_queries, d_keys = torch.empty_like(queries), torch.zeros_like(keys)
    tokens, width = queries.shape
    negatives = items.shape[1]
    if tokens == 0:
        return queries.new_zeros(()), d_queries, d_keys
    loss_T, lse_T, own_T, score_TK = (queries.new_empty(shape) for shape in (tokens, tokens, tokens, items.shape))
    corrected = softmax and log_q_V is not None
    log_q = log_q_V.float().contiguous() if log_q_V is not None else loss_T
    shared = {"SOFTMAX": softmax, "WIDTH": width, "BLOCK_D": max(16, triton.next_power_of_2(width))}
    launch(
        TOKEN, (tokens,),
        queries, keys, target, items, log_q, loss_T, score_TK, lse_T, own_T, d_queries, negatives, power, 1 / tokens,
        CORRECTED=corrected, **shared,
    )  # fmt: skip
    row_E, entry_E = torch.cat([items.flatten(), target]).sort(stable=True)
    bound_V1 = torch.searchsorted(row_E, torch.arange(len(keys) + 1, device=keys.device))
    launch(
        TABLE_ROW, (len(keys),),
        queries, score_TK, lse_T, own_T, entry_E, bound_V1, d_keys, score_TK.numel(), max(1, negatives), 1 / tokens, **shared,
    )  # fmt: skip
    return loss_T.mean(), d_queries, d_keys
