"""Triton programs of the backward pass of causal attention; ``triton.py`` calls :func:`backward`. See ``triton_forward.py``.

Scores are made twice: by tiles of rows for the queries' gradient and those of both tables, then by tiles of columns for keys
and values. So each program adds up what it alone writes, and there are no atomics. Slopes are gradients of scores.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from largerec.kernels.reference import UNKNOWN_TIME_BUCKET
from largerec.kernels.triton_forward import (
    FIRST_UNKNOWN,
    INTERPRETED,
    SLOTS,
    TIME_SLOTS,
    Problem,
    biased,
    configs,
    launch,
    logistic,
    put,
    readable,
    rows_of,
    slot_of,
    tile_of,
    tuned,
)

PARTIAL_BYTES = 64 * 2**20  # of the buffer for partial sums of the tables' gradients
PARTIAL_TILE = 16 if INTERPRETED else 64  # rows of a tile whose part of the tables' gradients stands in the buffer


@triton.jit
def _weights_and_slopes(
    score,
    d_weight,
    seen,
    lse,
    delta,
    SOFTMAX: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Weights and gradients of scores; those of the SiLU kind lack the factor ``scale``."""
    if SOFTMAX:
        if MASKED:
            score = tl.where(seen, score, float("-inf"))
        weight = tl.exp2(score - lse)
        slope = weight * (d_weight - delta)
    else:
        gate = logistic(score)
        weight = score * gate
        slope = d_weight * (gate + weight * (1.0 - gate))
        if MASKED:
            weight = tl.where(seen, weight, 0.0)
            slope = tl.where(seen, slope, 0.0)
    return weight, slope


# --- backward: queries and both tables, by rows


@triton.jit
def _sum_of_distances(slope, begin, first, carry_N, out_ptr, distances, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Write a block's sums over its diagonals for distances from ``begin - first`` on; returns the sums of those before.

    Row r is turned by r, so that a diagonal becomes a column, once for r >= c and once for r < c.
    """
    r_M1, c_1N = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    turned = tl.gather(slope, (r_M1 + BLOCK_N - c_1N) & (BLOCK_N - 1), 1)
    lower_N = tl.sum(tl.where(c_1N <= r_M1, turned, 0.0), 0)
    distance_N = begin - first + tl.arange(0, BLOCK_N)
    tl.store(out_ptr + distance_N, (lower_N + carry_N) * scale, mask=(distance_N >= 0) & (distance_N < distances))
    return tl.sum(tl.where(c_1N > r_M1, turned, 0.0), 0)


@triton.jit
def _sum_of_slots(slope, slot, first, last, sums_MS):
    """Add the sums of each row's slopes by slot of time, for the slots from ``first`` to ``last``: all that a block has.

    They lie close together, since times rise. A row is summed within a warp; over rows it is done once, at the end.
    """
    for s in range(first, last + 1):
        row_M = tl.sum(tl.where(slot == s, slope, 0.0), 1)
        sums_MS += tl.where(tl.arange(0, SLOTS)[None, :] == s, row_M[:, None], 0.0)
    return sums_MS


@triton.jit
def _gradient_columns(
    d_q_MK, carry_N, sums_MS, q_MK, d_out_MK, lse_M, delta_M, i_M, row_clock_M, k_ptr, v_ptr, column_clock_ptr, position_ptr,
    time_ptr, d_position_ptr, k_token, v_token, length, distances, scale, begin, first, last,
    MASKED: tl.constexpr, SOFTMAX: tl.constexpr, POSITION: tl.constexpr, TIME: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, DOT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the columns from ``first`` to ``last`` to a tile's gradients."""
    if TIME:
        early_row, late_row = tl.min(row_clock_M), tl.max(row_clock_M)
    for here in range(first, last, BLOCK_N):
        j_N = here + tl.arange(0, BLOCK_N)
        at_N = tl.minimum(j_N, length - 1) if MASKED else j_N
        seen = j_N[None, :] <= i_M[:, None]
        k_NK = rows_of(k_ptr, k_token, at_N, None, WIDTH, BLOCK_K, DOT)
        v_NK = rows_of(v_ptr, v_token, at_N, None, WIDTH, BLOCK_K, DOT)
        score = tl.dot(q_MK, tl.trans(k_NK), input_precision=PRECISION)
        d_weight = tl.dot(d_out_MK, tl.trans(v_NK), input_precision=PRECISION)
        slot = 0
        if TIME:
            column_clock_N = tl.load(column_clock_ptr + at_N)
            slot = slot_of(row_clock_M[:, None] - column_clock_N[None, :])
        score = biased(
            score, i_M[:, None] - at_N[None, :], slot, position_ptr, time_ptr, distances, scale, SOFTMAX, POSITION, TIME, MASKED
        )
        _, slope = _weights_and_slopes(score, d_weight, seen, lse_M[:, None], delta_M[:, None], SOFTMAX, MASKED)
        if POSITION:
            factor = 1.0 if SOFTMAX else scale
            carry_N = _sum_of_distances(slope, begin, here, carry_N, d_position_ptr, distances, factor, BLOCK_M, BLOCK_N)
        if TIME:
            nearest, farthest = tl.min(slot_of(early_row - column_clock_N)), tl.max(slot_of(late_row - column_clock_N))
            sums_MS = _sum_of_slots(slope, slot, nearest, farthest, sums_MS)
        d_q_MK = tl.dot(slope.to(k_ptr.dtype.element_ty).to(DOT), k_NK, d_q_MK, input_precision=PRECISION)
    return d_q_MK, carry_N, sums_MS


@triton.jit(do_not_specialize=["users", "length_class", "first_slot"])
def _row_gradients(
    q_ptr, k_ptr, v_ptr, out_ptr, d_out_ptr, lse_ptr, delta_ptr, offsets_ptr, position_ptr, time_ptr, row_clock_ptr,
    column_clock_ptr, d_q_ptr, d_position_ptr, d_time_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, d_out_token, d_out_head, out_token,
    users, tokens, heads, distances, length_class, first_slot, scale,
    SOFTMAX: tl.constexpr, POSITION: tl.constexpr, TIME: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    DOT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one head: d_q [T, H, K]; its part of the tables' gradients [S, H, N or SLOTS]; delta [H, T]."""
    tl.static_assert(BLOCK_M <= BLOCK_N, "turning rows needs blocks that are not taller than wide")
    start, length, tile = tile_of(offsets_ptr, first_slot + tl.program_id(0), users, BLOCK_M)
    begin = (tl.cdiv(length, BLOCK_M) - 1 - tile) * BLOCK_M
    if begin < 0:
        return
    head = tl.program_id(1)
    row_M = begin + tl.arange(0, BLOCK_M)
    i_M = tl.minimum(row_M, length - 1)
    real_M = row_M < length
    q_MK = rows_of(q_ptr + start * q_token + head * q_head, q_token, i_M, None, WIDTH, BLOCK_K, DOT)
    d_out_MK = rows_of(d_out_ptr + start * d_out_token + head * d_out_head, d_out_token, i_M, real_M, WIDTH, BLOCK_K, DOT)
    lse_M = tl.zeros((BLOCK_M,), tl.float32)
    delta_M = tl.zeros((BLOCK_M,), tl.float32)
    if SOFTMAX:
        out_MK = rows_of(out_ptr + start * out_token + head * WIDTH, out_token, i_M, None, WIDTH, BLOCK_K, DOT)
        delta_M = tl.sum(out_MK.to(tl.float32) * d_out_MK.to(tl.float32), 1)
        lse_M = tl.load(lse_ptr + head * tokens + start + i_M)
        tl.store(delta_ptr + head * tokens + start + i_M, delta_M, mask=real_M)
    row_clock_M = tl.load(row_clock_ptr + start + i_M) if TIME else 0
    k_ptr += start * k_token + head * k_head
    v_ptr += start * v_token + head * v_head
    column_clock_ptr += start if TIME else 0
    position_ptr += head * (distances + 1)
    time_ptr += head * SLOTS
    part = tl.program_id(0).to(tl.int64) * heads + head
    d_position_ptr += part * distances
    carry_N = tl.zeros((BLOCK_N,), tl.float32)
    sums_MS = tl.zeros((BLOCK_M, SLOTS if TIME else 1), tl.float32)
    d_q_MK = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    whole = begin // BLOCK_N * BLOCK_N
    last = tl.minimum(begin + BLOCK_M, length)
    d_q_MK, carry_N, sums_MS = _gradient_columns(
        d_q_MK, carry_N, sums_MS, q_MK, d_out_MK, lse_M, delta_M, i_M, row_clock_M, k_ptr, v_ptr, column_clock_ptr, position_ptr,
        time_ptr, d_position_ptr, k_token, v_token, length, distances, scale, begin, 0, whole,
        False, SOFTMAX, POSITION, TIME, WIDTH, PRECISION, DOT, BLOCK_K, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    d_q_MK, carry_N, sums_MS = _gradient_columns(
        d_q_MK, carry_N, sums_MS, q_MK, d_out_MK, lse_M, delta_M, i_M, row_clock_M, k_ptr, v_ptr, column_clock_ptr, position_ptr,
        time_ptr, d_position_ptr, k_token, v_token, length, distances, scale, begin, whole, last,
        True, SOFTMAX, POSITION, TIME, WIDTH, PRECISION, DOT, BLOCK_K, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if POSITION:  # distances before those of the last block
        distance_N = begin - (last - 1) // BLOCK_N * BLOCK_N - BLOCK_N + tl.arange(0, BLOCK_N)
        rest_N = carry_N if SOFTMAX else carry_N * scale
        tl.store(d_position_ptr + distance_N, rest_N, mask=(distance_N >= 0) & (distance_N < distances))
    if TIME:
        sums_S = tl.sum(sums_MS, 0)
        tl.store(d_time_ptr + part * SLOTS + tl.arange(0, SLOTS), sums_S if SOFTMAX else sums_S * scale)
    put(d_q_ptr + start * out_token + head * WIDTH, out_token, i_M, real_M, d_q_MK * scale, WIDTH, BLOCK_K)


# --- backward: keys and values, by columns


@triton.jit
def _gradient_rows(
    d_k_NK, d_v_NK, k_NK, v_NK, j_N, column_clock_N, q_ptr, d_out_ptr, lse_ptr, delta_ptr, row_clock_ptr, position_ptr, time_ptr,
    q_token, d_out_token, length, distances, scale, first, last,
    MASKED: tl.constexpr, SOFTMAX: tl.constexpr, POSITION: tl.constexpr, TIME: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, DOT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add the rows from ``first`` to ``last`` to the gradients of a tile of columns; blocks stand on their side, [N, M]."""
    for here in range(first, last, BLOCK_M):
        row_M = here + tl.arange(0, BLOCK_M)
        real_M = row_M < length
        i_M = tl.minimum(row_M, length - 1)
        q_MK = rows_of(q_ptr, q_token, i_M, None, WIDTH, BLOCK_K, DOT)
        d_out_MK = rows_of(d_out_ptr, d_out_token, i_M, real_M, WIDTH, BLOCK_K, DOT)
        score = tl.dot(k_NK, tl.trans(q_MK), input_precision=PRECISION)
        d_weight = tl.dot(v_NK, tl.trans(d_out_MK), input_precision=PRECISION)
        slot = slot_of(tl.load(row_clock_ptr + i_M)[None, :] - column_clock_N[:, None]) if TIME else 0
        score = biased(
            score, i_M[None, :] - j_N[:, None], slot, position_ptr, time_ptr, distances, scale, SOFTMAX, POSITION, TIME, MASKED
        )
        lse_1M = tl.load(lse_ptr + i_M)[None, :] if SOFTMAX else 0
        delta_1M = tl.load(delta_ptr + i_M, mask=real_M, other=0.0)[None, :] if SOFTMAX else 0
        seen = j_N[:, None] <= i_M[None, :]
        weight, slope = _weights_and_slopes(score, d_weight, seen, lse_1M, delta_1M, SOFTMAX, MASKED)
        d_v_NK = tl.dot(weight.to(q_ptr.dtype.element_ty).to(DOT), d_out_MK, d_v_NK, input_precision=PRECISION)
        d_k_NK = tl.dot(slope.to(q_ptr.dtype.element_ty).to(DOT), q_MK, d_k_NK, input_precision=PRECISION)
    return d_k_NK, d_v_NK


@triton.jit(do_not_specialize=["users", "length_class"])
def _column_gradients(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_ptr, delta_ptr, offsets_ptr, position_ptr, time_ptr, row_clock_ptr, column_clock_ptr,
    d_k_ptr, d_v_ptr, q_token, q_head, k_token, k_head, v_token, v_head, d_out_token, d_out_head, out_token,
    users, tokens, distances, length_class, scale,
    SOFTMAX: tl.constexpr, POSITION: tl.constexpr, TIME: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    DOT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of columns of one head: d_k and d_v [T, H, K]."""
    start, length, tile = tile_of(offsets_ptr, tl.program_id(0), users, BLOCK_N)
    begin = tile * BLOCK_N  # the columns that most rows see come first
    if begin >= length:
        return
    head = tl.program_id(1)
    column_N = begin + tl.arange(0, BLOCK_N)
    j_N = tl.minimum(column_N, length - 1)
    k_NK = rows_of(k_ptr + start * k_token + head * k_head, k_token, j_N, None, WIDTH, BLOCK_K, DOT)
    v_NK = rows_of(v_ptr + start * v_token + head * v_head, v_token, j_N, None, WIDTH, BLOCK_K, DOT)
    column_clock_N = tl.load(column_clock_ptr + start + j_N) if TIME else 0
    q_ptr += start * q_token + head * q_head
    d_out_ptr += start * d_out_token + head * d_out_head
    row_clock_ptr += start if TIME else 0
    lse_ptr += head * tokens + start if SOFTMAX else 0
    delta_ptr += head * tokens + start if SOFTMAX else 0
    position_ptr += head * (distances + 1)
    time_ptr += head * SLOTS
    d_k_NK = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    d_v_NK = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    whole = tl.minimum(tl.cdiv(begin + BLOCK_N, BLOCK_M) * BLOCK_M, length)  # from here on rows see all columns
    d_k_NK, d_v_NK = _gradient_rows(
        d_k_NK, d_v_NK, k_NK, v_NK, j_N, column_clock_N, q_ptr, d_out_ptr, lse_ptr, delta_ptr, row_clock_ptr, position_ptr,
        time_ptr, q_token, d_out_token, length, distances, scale, begin // BLOCK_M * BLOCK_M, whole,
        True, SOFTMAX, POSITION, TIME, WIDTH, PRECISION, DOT, BLOCK_K, BLOCK_M,
    )  # fmt: skip
    d_k_NK, d_v_NK = _gradient_rows(
        d_k_NK, d_v_NK, k_NK, v_NK, j_N, column_clock_N, q_ptr, d_out_ptr, lse_ptr, delta_ptr, row_clock_ptr, position_ptr,
        time_ptr, q_token, d_out_token, length, distances, scale, whole, length,
        False, SOFTMAX, POSITION, TIME, WIDTH, PRECISION, DOT, BLOCK_K, BLOCK_M,
    )  # fmt: skip
    at = start * out_token + head * WIDTH
    put(d_k_ptr + at, out_token, j_N, column_N < length, d_k_NK * scale, WIDTH, BLOCK_K)
    put(d_v_ptr + at, out_token, j_N, column_N < length, d_v_NK if SOFTMAX else d_v_NK * scale, WIDTH, BLOCK_K)


# --- launching

ROW_GRADIENTS = tuned(
    _row_gradients,
    configs((64, 64, 4, 2), (128, 128, 8, 2), (64, 128, 8, 2), (64, 64, 4, 3), (32, 64, 4, 2), tested=(16, 32)),
)
# With tables the height is fixed, so that every configuration writes the same rows of the buffer.
ROW_GRADIENTS_OF_TABLES = tuned(
    _row_gradients, configs((64, 64, 8, 2), (64, 64, 4, 2), (64, 64, 8, 1), (64, 64, 4, 1), tested=(PARTIAL_TILE, 32))
)
COLUMN_GRADIENTS = tuned(
    _column_gradients,
    configs((64, 64, 4, 2), (64, 128, 8, 2), (64, 64, 8, 2), (32, 64, 4, 2), (64, 128, 8, 3), (32, 32, 4, 2), tested=(32, 16)),
)


def by_bucket(d_time_HS: torch.Tensor) -> torch.Tensor:
    """Gradients of the time table's slots as those of its buckets [H, TIME_BUCKETS]; the last known bucket has several slots."""
    if d_time_HS.shape[1] == 0:
        return d_time_HS
    last = UNKNOWN_TIME_BUCKET - 1
    many = (d_time_HS[:, last:FIRST_UNKNOWN], d_time_HS[:, FIRST_UNKNOWN:])
    return torch.cat([d_time_HS[:, :last], *(part.sum(1, keepdim=True) for part in many)], 1)


def backward(
    p: Problem, d_out_THK: torch.Tensor, out_THK: torch.Tensor, lse_HT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v [T, H, K], of the position table [H, N] and of the time table."""
    tokens, heads, width = p.q_THK.shape
    d_q_THK, d_k_THK, d_v_THK = (x.new_empty(x.shape) for x in (p.q_THK, p.k_THK, p.v_THK))
    d_position_HN = lse_HT.new_zeros(heads, p.distances)
    d_time_HS = lse_HT.new_zeros(heads, TIME_SLOTS if p.time else 0)
    if not out_THK.numel():
        return d_q_THK, d_k_THK, d_v_THK, d_position_HN, by_bucket(d_time_HS)
    d_out_THK = readable(d_out_THK.to(p.v_THK.dtype))
    strides = (*p.strides, d_out_THK.stride(0), d_out_THK.stride(1), heads * width)
    delta_HT = torch.empty_like(lse_HT)

    def rows(kernel: Any, grid: Any, first: int, d_position: torch.Tensor, d_time: torch.Tensor) -> None:
        launch(
            kernel, grid,
            p.q_THK, p.k_THK, p.v_THK, out_THK, d_out_THK, lse_HT, delta_HT, *p.pointers, d_q_THK, d_position, d_time,
            *strides, p.users, tokens, heads, p.distances, first_slot=first, **p.constants(),
        )  # fmt: skip

    if p.position or p.time:
        # A part of the slots at a time, so that the buffer stays small; its order is the same each time.
        slots = p.slots(PARTIAL_TILE)
        part = max(1, min(slots, PARTIAL_BYTES // (4 * heads * (p.distances + TIME_SLOTS))))
        for first in range(0, slots, part):
            n = min(part, slots - first)
            d_position_SHN, d_time_SHS = lse_HT.new_zeros(n, *d_position_HN.shape), lse_HT.new_zeros(n, *d_time_HS.shape)
            rows(ROW_GRADIENTS_OF_TABLES, (n, heads), first, d_position_SHN, d_time_SHS)
            d_position_HN += d_position_SHN.sum(0)
            d_time_HS += d_time_SHS.sum(0)
    else:
        rows(ROW_GRADIENTS, lambda meta: (p.slots(meta["BLOCK_M"]), heads), 0, d_position_HN, d_time_HS)
    launch(
        COLUMN_GRADIENTS, lambda meta: (p.slots(meta["BLOCK_N"]), heads),
        p.q_THK, p.k_THK, p.v_THK, d_out_THK, lse_HT, delta_HT, *p.pointers, d_k_THK, d_v_THK,
        *strides, p.users, tokens, p.distances, **p.constants(),
    )  # fmt: skip
    return d_q_THK, d_k_THK, d_v_THK, d_position_HN, by_bucket(d_time_HS)
