"""Losses of each position against its own sampled items, rows of a softmax, and ranks in rows; what runs is chosen here.

Shapes: T tokens, D width, V rows of the item table, K negatives a position, C rows of a block of logits. On a CPU with a compiler
the compiled twin of ``reference.sampled_loss`` runs (loss.cpp), on a CUDA device with Triton its twin (triton_loss.py), elsewhere
plain torch in chunks.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from largerec.kernels import cpu, reference, triton

CHUNK_ELEMENTS = 4_000_000
CACHE_ELEMENTS, DEVICE_ELEMENTS = 1_000_000, 64_000_000
"""Scores that are compared at a time: what a processor's cache holds (five times faster), and what a CUDA device has room for."""


def sampled_loss(
    queries_TD: torch.Tensor,
    keys_VD: torch.Tensor,
    target_T: torch.Tensor,
    items_TK: torch.Tensor,
    log_q_V: torch.Tensor | None = None,
    *,
    softmax: bool,
    power: float = 1.0,
    weight_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.sampled_loss`, without its [T, K, D] tensor.

    With weights of the targets it is the weighted mean, in chunks of plain torch: the compiled twins know no weights.
    """
    if weight_T is None and cpu.usable(queries_TD, keys_VD) and queries_TD.dtype == keys_VD.dtype == torch.float32:
        loss: torch.Tensor = torch.ops.largerec.sampled_loss(queries_TD, keys_VD, target_T, items_TK, log_q_V, softmax, power)[0]
        return loss
    if weight_T is None and triton.usable(queries_TD, keys_VD) and queries_TD.dtype == keys_VD.dtype == torch.float32:
        return triton.sampled_loss(queries_TD, keys_VD, target_T, items_TK, log_q_V, softmax=softmax, power=power)
    if len(queries_TD) == 0:
        return queries_TD.sum() + 0 * keys_VD.sum()
    score_TK = position_scores(queries_TD, keys_VD, items_TK)
    own_T = (queries_TD * F.embedding(target_T, keys_VD)).sum(1)
    loss_T = reference.loss_of_scores(own_T, score_TK, target_T, items_TK, log_q_V, softmax=softmax, power=power)
    return loss_T.mean() if weight_T is None else (loss_T * weight_T).sum() / weight_T.sum()


def _scores_of(queries_CD: torch.Tensor, keys_VD: torch.Tensor, items_CK: torch.Tensor) -> torch.Tensor:
    return torch.einsum("cd,ckd->ck", queries_CD, F.embedding(items_CK, keys_VD))


def position_scores(queries_TD: torch.Tensor, keys_VD: torch.Tensor, items_TK: torch.Tensor) -> torch.Tensor:
    """Scores [T, K] of K items a position; a chunk's gather is made, used, and made again for the backward pass."""
    rows = max(1, CHUNK_ELEMENTS // max(1, items_TK.shape[1] * keys_VD.shape[1]))
    chunks = zip(torch.split(queries_TD, rows), torch.split(items_TK, rows), strict=True)
    return torch.cat(
        [checkpoint(_scores_of, q, keys_VD, items, use_reentrant=False, preserve_rng_state=False) for q, items in chunks]
    )


AHEAD = 60.0
"""With an item this far ahead of the target ``softmax_loss`` stops: exp of it is near the end of float32's range."""


def softmax_loss(queries_TD: torch.Tensor, keys_VD: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor | None:
    """Mean cross-entropy over all keys, its products in bfloat16, in one operator; None where it is not to be had.

    That is: on a CPU without AVX-512 BF16 or without compiled kernels, and where some item's score is more than ``AHEAD`` above
    the target's (softmax.cpp takes the target's score for the largest).
    """
    if not (cpu.usable(queries_TD, keys_VD) and cpu.avx512_bf16() and queries_TD.dtype == keys_VD.dtype == torch.float32):
        return None
    loss, _, _, ahead = torch.ops.largerec.softmax_loss(queries_TD, keys_VD, target_T, AHEAD)
    found: torch.Tensor | None = None if float(ahead.detach()) > AHEAD else loss
    return found


def unit_rows(rows_VD: torch.Tensor) -> torch.Tensor:
    """Each row divided by its length (or by 1e-12, if that is more)."""
    if cpu.usable(rows_VD) and rows_VD.dtype == torch.float32:
        unit_VD: torch.Tensor = torch.ops.largerec.unit_rows(rows_VD)[0]
        return unit_VD
    return F.normalize(rows_VD, dim=-1)


def exp_rows_(
    logits_CK: torch.Tensor, factor_K: torch.Tensor | None = None, own_C: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn each row into ``exp(logit - largest) * factor``, in place; returns the rows' largest logit and sum, float32.

    ``own_C``: one more logit a row, which counts for the largest but is not in the sum. Not differentiable.
    """
    if cpu.usable(logits_CK) and logits_CK.dtype in (torch.float32, torch.bfloat16) and logits_CK.is_contiguous():
        found: tuple[torch.Tensor, torch.Tensor] = torch.ops.largerec.exp_rows_(logits_CK, factor_K, own_C)
        return found
    largest_C = logits_CK.amax(1)
    if own_C is not None:
        largest_C = torch.maximum(largest_C, own_C.to(largest_C.dtype))
    wide = torch.promote_types(logits_CK.dtype, torch.float32)
    if logits_CK.dtype == wide:
        logits_CK.sub_(largest_C[:, None]).exp_()
    else:  # the difference of two bfloat16 numbers need not be one
        logits_CK.copy_((logits_CK.to(wide) - largest_C[:, None]).exp_())
    if factor_K is not None:
        logits_CK.mul_(factor_K)
    return largest_C.to(wide), logits_CK.sum(1, dtype=wide)


def count_rows(scores_QV: torch.Tensor, own_Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many scores of each row are above the given one and how many are equal to it, int64 [Q] each."""
    if cpu.usable(scores_QV, own_Q) and scores_QV.dtype == own_Q.dtype == torch.float32:
        found: tuple[torch.Tensor, torch.Tensor] = torch.ops.largerec.count_rows(scores_QV, own_Q)
        return found
    rows = max(1, (CACHE_ELEMENTS if scores_QV.device.type == "cpu" else DEVICE_ELEMENTS) // max(1, scores_QV.shape[1]))
    pieces = list(zip(torch.split(scores_QV, rows), torch.split(own_Q[:, None], rows), strict=True))
    above_Q, equal_Q = (torch.cat([compare(row, own).sum(1) for row, own in pieces]) for compare in (torch.gt, torch.eq))
    return above_Q, equal_Q
