"""Triton programs of causal attention over packed tokens; `x :func:`forward` and :func:`backward`.

Shapes: T tokens, B users, H heads, K width of a head (padded to ``BLOCK_K``), N distances of the position table, M rows and N
columns of a block of scores, S slots.

**Work.** A program has one head and one tile of one user's rows (or columns). User b owns the slots from ``offsets[b] // BLOCK +
b`` on; the next user's begin behind its last tile, whatever the lengths. So a grid of ``T // BLOCK + B`` slots is known without
reading lengths from the device, at most one slot a user idles, and a program finds its user by halving. A grid over users and
the longest history would wait for the device to say how long that is, and on real logs nearly all of it would stand empty.

**Scores** live in registers only; the backward pass makes them again, from the row's log-sum-exp for softmax. The blocks that
every row sees are done without masks. Rows and columns behind the end of a history repeat its last one, so nothing else is read
and nothing is not a number; gradients of repeated rows are zeros, and nothing of them is written.

**Time.** Clocks are doubles, which hold milliseconds exactly, an unknown one lies ``FAR`` away. 1000 has seven significant bits,
so whether a difference reaches 1000 * 2**b ms shows in the upper half of the double, and subtracting 1000's upper half leaves b
in the exponent: exact, in four integer operations. The time table is laid out by that number (``TIME_SLOTS``).

**Order of sums.** There are no atomics. Each program writes its own sums of the tables' gradients, torch adds them in order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.nn import functional as F
from triton.runtime.errors import OutOfResources

FAR = 2.0**66
"""The clock of an unknown time (of a column: minus it). Differences with it have a slot of FIRST_UNKNOWN or more."""
TIME_SLOTS = 64
FIRST_UNKNOWN = 54  # known times are less than 2**63 ms apart, which is slot 53
KEY = ("SOFTMAX", "POSITION", "TIME", "WIDTH", "PRECISION", "length_class")  # what configurations of attention are chosen by
INTERPRETED: bool = triton.knobs.runtime.interpret

LOG2_E = tl.constexpr(1.4426950408889634)
SLOTS = tl.constexpr(TIME_SLOTS)
INTERPRETED_HERE = tl.constexpr(INTERPRETED)
UPPER_HALF_OF_1000 = tl.constexpr(0x408F4000)


@triton.jit
def tile_of(offsets_ptr, slot, users, BLOCK: tl.constexpr):
    """A slot's user's first token and number of tokens, and which of the user's tiles it is; that may lie behind the end."""
    low = 0
    high = users - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(offsets_ptr + middle) // BLOCK + middle <= slot:
            low = middle
        else:
            high = middle - 1
    start = tl.load(offsets_ptr + low)
    length = (tl.load(offsets_ptr + low + 1) - start).to(tl.int32)
    return start, length, (slot - start // BLOCK - low).to(tl.int32)


@triton.jit
def slot_of(elapsed):
    """The slot of the time table of a difference of clocks: floor(log2(max(1, seconds))), not clamped."""
    upper = (elapsed.to(tl.int64, bitcast=True) >> 32).to(tl.int32)
    return (tl.maximum(upper, UPPER_HALF_OF_1000) - UPPER_HALF_OF_1000) >> 20


@triton.jit
def rows_of(x_ptr, token, at, kept, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr):
    """The rows ``at`` of a tensor as products take them, with zeros behind its width and where not ``kept`` (None: all are)."""
    column_K = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + at[:, None] * token + column_K[None, :]
    if kept is not None:
        x = tl.load(x_ptrs, mask=kept[:, None] & (column_K < WIDTH)[None, :], other=0.0)
    elif WIDTH == BLOCK_K:
        x = tl.load(x_ptrs)
    else:
        x = tl.load(x_ptrs, mask=(column_K < WIDTH)[None, :], other=0.0)
    return x.to(DOT)


@triton.jit
def put(x_ptr, token, at, kept, x, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr):
    """Write the kept rows of a tile."""
    column_K = tl.arange(0, BLOCK_K)
    keep = kept[:, None] & (column_K < WIDTH)[None, :]
    tl.store(x_ptr + at[:, None] * token + column_K[None, :], x.to(x_ptr.dtype.element_ty), mask=keep)


@triton.jit
def entries(table_ptr, index):
    """Numbers of a table. On a device not by ``tl.load``, which within a loop copies them ahead to shared memory, four bytes at a
    time, and so costs several times the products."""
    if INTERPRETED_HERE:
        return tl.load(table_ptr + index)
    place = (table_ptr + index).to(tl.int64, bitcast=True)
    return tl.inline_asm_elementwise("ld.global.nc.f32 $0, [$1];", "=f,l", [place], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def logistic(x):
    """1 / (1 + exp(-x)), off by 1e-7 at most, and at x = -20 by some 1e-6 of itself.

    On a device by its own exp2 and reciprocal: ``tl.sigmoid``, with its care for numbers below 1e-38, is four times as many
    operations."""
    if INTERPRETED_HERE:
        return tl.sigmoid(x)
    return tl.inline_asm_elementwise(
        "{.reg .f32 e; mul.f32 e, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 e, e; add.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 $0, e;}",
        "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def biased(
    score,
    distance,
    slot,
    position_ptr,
    time_ptr,
    distances,
    scale,
    SOFTMAX: tl.constexpr,
    POSITION: tl.constexpr,
    TIME: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Products as scores: scaled where the kind is softmax, whose scores have the base 2, and with both biases."""
    if SOFTMAX:
        score *= scale * LOG2_E
    if POSITION:  # behind the table stands a NaN, which is what a longer history becomes
        distance = tl.minimum(distance, distances)
        score += entries(position_ptr, tl.maximum(distance, 0) if MASKED else distance)
    if TIME:
        score += entries(time_ptr, slot)
    return score


# --- forward


@triton.jit
def _attend_columns(
    acc_MK, top_M, sum_M, q_MK, i_M, row_clock_M, k_ptr, v_ptr, column_clock_ptr, position_ptr, time_ptr, k_token, v_token,
    length, distances, scale, first, last,
    MASKED: tl.constexpr, SOFTMAX: tl.constexpr, POSITION: tl.constexpr, TIME: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, DOT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the columns from ``first`` to ``last`` to the running sums of a tile of rows."""
    for begin in range(first, last, BLOCK_N):
        j_N = begin + tl.arange(0, BLOCK_N)
        at_N = tl.minimum(j_N, length - 1) if MASKED else j_N
        seen = j_N[None, :] <= i_M[:, None]
        score = tl.dot(q_MK, tl.trans(rows_of(k_ptr, k_token, at_N, None, WIDTH, BLOCK_K, DOT)), input_precision=PRECISION)
        slot = slot_of(row_clock_M[:, None] - tl.load(column_clock_ptr + at_N)[None, :]) if TIME else 0
        score = biased(
            score, i_M[:, None] - at_N[None, :], slot, position_ptr, time_ptr, distances, scale, SOFTMAX, POSITION, TIME, MASKED
        )
        if SOFTMAX:
            if MASKED:
                score = tl.where(seen, score, float("-inf"))
            higher_M = tl.maximum(top_M, tl.max(score, 1))
            shrink_M = tl.exp2(top_M - higher_M)
            weight = tl.exp2(score - higher_M[:, None])
            sum_M = sum_M * shrink_M + tl.sum(weight, 1)
            acc_MK *= shrink_M[:, None]
            top_M = higher_M
        else:
            weight = score * logistic(score)
            if MASKED:
                weight = tl.where(seen, weight, 0.0)
        v_NK = rows_of(v_ptr, v_token, at_N, None, WIDTH, BLOCK_K, DOT)
        acc_MK = tl.dot(weight.to(v_ptr.dtype.element_ty).to(DOT), v_NK, acc_MK, input_precision=PRECISION)
    return acc_MK, top_M, sum_M


@triton.jit(do_not_specialize=["users", "length_class"])
def _attend(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, offsets_ptr, position_ptr, time_ptr, row_clock_ptr, column_clock_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, users, tokens, distances, length_class, scale,
    SOFTMAX: tl.constexpr, POSITION: tl.constexpr, TIME: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    DOT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one head: out [T, H, K], and for softmax the base-2 log-sum-exp of each row [H, T]."""
    start, length, tile = tile_of(offsets_ptr, tl.program_id(0), users, BLOCK_M)
    begin = (tl.cdiv(length, BLOCK_M) - 1 - tile) * BLOCK_M  # the rows that see most come first
    if begin < 0:
        return
    head = tl.program_id(1)
    row_M = begin + tl.arange(0, BLOCK_M)
    i_M = tl.minimum(row_M, length - 1)
    q_MK = rows_of(q_ptr + start * q_token + head * q_head, q_token, i_M, None, WIDTH, BLOCK_K, DOT)
    row_clock_M = tl.load(row_clock_ptr + start + i_M) if TIME else 0
    k_ptr += start * k_token + head * k_head
    v_ptr += start * v_token + head * v_head
    column_clock_ptr += start if TIME else 0
    position_ptr += head * (distances + 1)
    time_ptr += head * SLOTS
    acc_MK = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    top_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    whole = begin // BLOCK_N * BLOCK_N
    acc_MK, top_M, sum_M = _attend_columns(
        acc_MK, top_M, sum_M, q_MK, i_M, row_clock_M, k_ptr, v_ptr, column_clock_ptr, position_ptr, time_ptr, k_token, v_token,
        length, distances, scale, 0, whole, False, SOFTMAX, POSITION, TIME, WIDTH, PRECISION, DOT, BLOCK_K, BLOCK_N,
    )  # fmt: skip
    acc_MK, top_M, sum_M = _attend_columns(
        acc_MK, top_M, sum_M, q_MK, i_M, row_clock_M, k_ptr, v_ptr, column_clock_ptr, position_ptr, time_ptr, k_token, v_token,
        length, distances, scale, whole, tl.minimum(begin + BLOCK_M, length),
        True, SOFTMAX, POSITION, TIME, WIDTH, PRECISION, DOT, BLOCK_K, BLOCK_N,
    )  # fmt: skip
    if SOFTMAX:
        tl.store(lse_ptr + head * tokens + start + i_M, top_M + tl.log2(sum_M), mask=row_M < length)
        acc_MK /= sum_M[:, None]
    else:
        acc_MK *= scale
    put(out_ptr + start * out_token + head * WIDTH, out_token, i_M, row_M < length, acc_MK, WIDTH, BLOCK_K)


# --- launching


def configs(*blocks: tuple[int, int, int, int], tested: tuple[int, int]) -> list[triton.Config]:
    """Configurations of (BLOCK_M, BLOCK_N, warps, stages), the one that is taken without tuning first.

    The interpreter has one of small blocks, so that short histories cross them.
    """
    if INTERPRETED:
        blocks = ((*tested, 4, 1),)
    return [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages) for m, n, warps, stages in blocks]


def tuned(kernel: Any, choices: list[triton.Config], key: tuple[str, ...] = KEY) -> Any:
    """A kernel that times its configurations once for each value of the key's arguments, and keeps the answer on disk."""
    return triton.autotune(choices, list(key), cache_results=True)(kernel)


ATTEND = tuned(
    _attend,
    configs(
        (128, 64, 8, 3), (128, 128, 8, 2), (128, 64, 4, 3), (64, 64, 4, 3), (64, 128, 4, 3), (64, 32, 4, 2), (32, 32, 4, 2),
        tested=(16, 32),
    ),
)  # fmt: skip


class Problem(NamedTuple):
    """What both passes share: inputs as the kernels read them, and the values of their constants.

    The tables of softmax are multiplied by log2(e), since its scores have the base 2; behind each head's positions stands a NaN.
    """

    q_THK: torch.Tensor
    k_THK: torch.Tensor
    v_THK: torch.Tensor
    offsets_B1: torch.Tensor
    position_table_HN: torch.Tensor
    time_table_HS: torch.Tensor
    row_clock_T: torch.Tensor
    column_clock_T: torch.Tensor
    softmax: bool
    scale: float
    position: bool
    time: bool

    @property
    def users(self) -> int:
        return len(self.offsets_B1) - 1

    @property
    def distances(self) -> int:
        return self.position_table_HN.shape[1] - 1 if self.position else 0

    @property
    def pointers(self) -> tuple[torch.Tensor, ...]:
        return self.offsets_B1, self.position_table_HN, self.time_table_HS, self.row_clock_T, self.column_clock_T

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(x.stride(axis) for x in (self.q_THK, self.k_THK, self.v_THK) for axis in (0, 1))

    def slots(self, block: int) -> int:
        """Slots of tiles of ``block`` tokens; see the module's docstring."""
        return len(self.q_THK) // block + self.users

    def constants(self) -> dict[str, Any]:
        """Keyword arguments of every kernel.

        Products of float32 follow torch's setting for matrix products. Where that is "highest" they are made of three TF32
        products, which keeps about 21 of 24 bits: exact ones would need many times the registers that there are.
        """
        width, kind = self.q_THK.shape[2], self.q_THK.dtype
        element = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[kind]
        return {
            "length_class": (len(self.q_THK) // max(1, self.users)).bit_length() // 3,
            "scale": self.scale,
            "SOFTMAX": self.softmax,
            "POSITION": self.position,
            "TIME": self.time,
            "WIDTH": width,
            "PRECISION": "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            # The interpreter has no products of bfloat16.
            "DOT": tl.float32 if INTERPRETED else element,
            "BLOCK_K": max(16, triton.next_power_of_2(width)),
        }


def readable(x_THK: torch.Tensor) -> torch.Tensor:
    """The tensor itself where a head's numbers lie side by side, as in views of one projection; else a copy."""
    return x_THK if x_THK.stride(2) == 1 else x_THK.contiguous()


def problem_of(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THK: torch.Tensor,
    offsets_B1: torch.Tensor,
    softmax: bool,
    scale: float,
    position_table_HN: torch.Tensor | None,
    time_table_HK: torch.Tensor | None,
    row_time_T: torch.Tensor | None,
    column_time_T: torch.Tensor | None,
) -> Problem:
    """Check shapes and lay out clocks and tables. Nothing that lies on the device is read here, so nothing waits for it."""
    assert q_THK.shape == k_THK.shape == v_THK.shape and q_THK.dtype == k_THK.dtype == v_THK.dtype
    none = torch.empty(1, device=q_THK.device)
    position, time, row, column = none, none, none, none
    base = math.log2(math.e) if softmax else 1.0
    if position_table_HN is not None:
        assert position_table_HN.shape[0] == q_THK.shape[1], "the position table must be [H, N]"
        position = F.pad(position_table_HN.float() * base, (0, 1), value=math.nan)
    if time_table_HK is not None:
        assert row_time_T is not None and column_time_T is not None, "a time table needs row and column times"
        table_HK = time_table_HK.float() * base
        last, unknown = table_HK[:, -2:-1], table_HK[:, -1:]
        known = table_HK.shape[1] - 1
        time = torch.cat(
            [table_HK[:, :known], last.expand(-1, FIRST_UNKNOWN - known), unknown.expand(-1, TIME_SLOTS - FIRST_UNKNOWN)], 1
        )
        row, column = (torch.where(x < 0, far, x.double()) for x, far in ((row_time_T, FAR), (column_time_T, -FAR)))
    return Problem(
        readable(q_THK), readable(k_THK), readable(v_THK),
        offsets_B1.contiguous(), position, time, row, column,
        softmax, scale, position_table_HN is not None, time_table_HK is not None,
    )  # fmt: skip


def launch(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
    """Run a kernel where its tensors lie; if torch must be deterministic, untimed: the first configuration that fits there."""
    with torch.cuda.device_of(arguments[0]):
        if not torch.are_deterministic_algorithms_enabled():
            kernel[grid](*arguments, **constants)
            return
        for config in kernel.configs:
            try:
                kernel.fn[grid](*arguments, **constants, **config.all_kwargs())
                return
            except OutOfResources:
                if config is kernel.configs[-1]:
                    raise


def forward(p: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """The result [T, H, K], and for softmax the base-2 log-sum-exp of each row [H, T] (else empty)."""
    tokens, heads, width = p.q_THK.shape
    out_THK = p.v_THK.new_empty(p.v_THK.shape)
    lse_HT = p.q_THK.new_empty(heads, tokens if p.softmax else 0, dtype=torch.float32)
    if out_THK.numel():
        launch(
            ATTEND, lambda meta: (p.slots(meta["BLOCK_M"]), heads),
            p.q_THK, p.k_THK, p.v_THK, out_THK, lse_HT, *p.pointers,
            *p.strides, heads * width, p.users, tokens, p.distances, **p.constants(),
        )  # fmt: skip
    return out_THK, lse_HT
