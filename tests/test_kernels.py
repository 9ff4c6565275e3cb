"""Every implementation of the sequence kernels against loops over users, heads and pairs of tokens."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largerec import kernels
from largerec.kernels import BucketedTime, padded, reference
from largerec.kernels.reference import TIME_BUCKETS, UNKNOWN_TIME_BUCKET, time_bucket

LAWS = settings(deadline=None, max_examples=25)
LONGEST = 12
SCALE = 0.125
IMPLEMENTATIONS = [reference, padded, kernels]  # the last is what the models call
each_implementation = pytest.mark.parametrize("kernel", IMPLEMENTATIONS, ids=["reference", "padded", "chosen"])


class Case:
    """Random inputs for users of given lengths, in float64; some times unknown, and some rows asked before their columns."""

    def __init__(self, lengths: list[int], heads: int, width: int, seed: int, unknown: float = 0.2) -> None:
        self.lengths, self.heads, self.width = lengths, heads, width
        generator = torch.Generator().manual_seed(seed)
        tokens = sum(lengths)
        self.offsets_B1 = torch.tensor([0, *lengths]).cumsum(0)
        shape = (tokens, heads, width)
        self.qkv = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
        self.position_HN = torch.randn(heads, LONGEST, generator=generator, dtype=torch.float64)
        self.time_HK = torch.randn(heads, TIME_BUCKETS, generator=generator, dtype=torch.float64)
        exponent = torch.rand(2, tokens, generator=generator, dtype=torch.float64) * 41
        times = exponent.exp2().long()
        self.row_time_T, self.column_time_T = times.masked_fill(torch.rand(2, tokens, generator=generator) < unknown, -1)

    def tables(self, position: bool, time: bool) -> tuple[torch.Tensor | None, BucketedTime | None]:
        asked = BucketedTime(self.time_HK, self.row_time_T, self.column_time_T)
        return self.position_HN if position else None, asked if time else None

    def slices(self) -> list[slice]:
        bounds = self.offsets_B1.tolist()
        return [slice(a, b) for a, b in itertools.pairwise(bounds)]

    def naive_bucket(self, row: int, column: int) -> int:
        asked, asking = int(self.column_time_T[column]), int(self.row_time_T[row])
        if asked < 0 or asking < 0:
            return UNKNOWN_TIME_BUCKET
        seconds = (asking - asked) // 1000
        return min(max(seconds, 1).bit_length() - 1, UNKNOWN_TIME_BUCKET - 1)

    def naive_softmax(self) -> torch.Tensor:
        q, k, v = self.qkv
        out = torch.zeros_like(v)
        for rows in self.slices():
            for i in range(rows.start, rows.stop):
                for h in range(self.heads):
                    powers = [math.exp(float(q[i, h] @ k[j, h]) / math.sqrt(self.width)) for j in range(rows.start, i + 1)]
                    for j, power in enumerate(powers, rows.start):
                        out[i, h] += power / sum(powers) * v[j, h]
        return out

    def naive_silu(self, position: bool, time: bool) -> torch.Tensor:
        q, k, v = self.qkv
        out = torch.zeros_like(v)
        for rows in self.slices():
            for i in range(rows.start, rows.stop):
                for h in range(self.heads):
                    for j in range(rows.start, i + 1):
                        score = float(q[i, h] @ k[j, h])
                        score += float(self.position_HN[h, i - j]) if position else 0.0
                        score += float(self.time_HK[h, self.naive_bucket(i, j)]) if time else 0.0
                        out[i, h] += SCALE * score / (1 + math.exp(-score)) * v[j, h]
        return out


some_lengths = st.lists(st.sampled_from([0, 1, 2, 5, 9, LONGEST]), min_size=1, max_size=5)
cases = st.builds(Case, some_lengths, st.integers(1, 3), st.integers(1, 17), st.integers(0, 10_000))


@LAWS
@given(case=cases)
def test_softmax_attention_is_the_naive_sum(case: Case) -> None:
    truth = case.naive_softmax()
    for kernel in IMPLEMENTATIONS:
        torch.testing.assert_close(kernel.softmax_attention(*case.qkv, case.offsets_B1), truth)


@LAWS
@given(case=cases, position=st.booleans(), time=st.booleans())
def test_silu_attention_is_the_naive_sum(case: Case, position: bool, time: bool) -> None:
    truth = case.naive_silu(position, time)
    for kernel in IMPLEMENTATIONS:
        found = kernel.silu_attention(*case.qkv, case.offsets_B1, SCALE, *case.tables(position, time))
        torch.testing.assert_close(found, truth)


@each_implementation
@pytest.mark.parametrize("width", range(1, 18))
def test_every_head_width_and_length_at_once(kernel: ModuleType, width: int) -> None:
    case = Case([3, 0, 1, LONGEST, 9, 0], 1, width, seed=width)
    torch.testing.assert_close(kernel.softmax_attention(*case.qkv, case.offsets_B1), case.naive_softmax())
    found = kernel.silu_attention(*case.qkv, case.offsets_B1, SCALE, *case.tables(True, True))
    torch.testing.assert_close(found, case.naive_silu(True, True))


@each_implementation
@pytest.mark.parametrize("lengths", [[0], [0, 0, 0]])
def test_a_batch_without_tokens(kernel: ModuleType, lengths: list[int]) -> None:
    case = Case(lengths, 2, 3, seed=0)
    assert kernel.softmax_attention(*case.qkv, case.offsets_B1).shape == (0, 2, 3)
    assert kernel.silu_attention(*case.qkv, case.offsets_B1, SCALE, *case.tables(True, True)).shape == (0, 2, 3)


@each_implementation
def test_each_user_is_as_if_alone(kernel: ModuleType) -> None:
    case = Case([4, 1, LONGEST, 9, 2], 2, 4, seed=1)
    position, time = case.tables(True, True)
    assert time is not None
    soft = kernel.softmax_attention(*case.qkv, case.offsets_B1)
    silu = kernel.silu_attention(*case.qkv, case.offsets_B1, SCALE, position, time)
    for rows in case.slices():
        alone, offsets = [x[rows] for x in case.qkv], torch.tensor([0, rows.stop - rows.start])
        own_time = BucketedTime(case.time_HK, case.row_time_T[rows], case.column_time_T[rows])
        torch.testing.assert_close(kernel.softmax_attention(*alone, offsets), soft[rows])
        torch.testing.assert_close(kernel.silu_attention(*alone, offsets, SCALE, position, own_time), silu[rows])


@each_implementation
@pytest.mark.parametrize("changed", [0, 5, LONGEST - 1])
def test_later_tokens_change_nothing_before(kernel: ModuleType, changed: int) -> None:
    case, other = Case([LONGEST], 2, 4, seed=2, unknown=0), Case([LONGEST], 2, 4, seed=3, unknown=0)
    before = [kernel.softmax_attention(*case.qkv, case.offsets_B1)]
    before += [kernel.silu_attention(*case.qkv, case.offsets_B1, SCALE, *case.tables(True, True))]
    for mine, strange in zip(case.qkv, other.qkv, strict=True):
        mine[changed:] = strange[changed:]
    case.row_time_T[changed:], case.column_time_T[changed:] = other.row_time_T[changed:], other.column_time_T[changed:]
    after = [kernel.softmax_attention(*case.qkv, case.offsets_B1)]
    after += [kernel.silu_attention(*case.qkv, case.offsets_B1, SCALE, *case.tables(True, True))]
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one[:changed], two[:changed])
        assert not torch.isclose(one[changed:], two[changed:]).all(-1).any()


@each_implementation
def test_gradients_are_those_of_finite_differences(kernel: ModuleType) -> None:
    case = Case([2, 0, 4, 9], 2, 3, seed=4)
    inputs = [x.requires_grad_() for x in case.qkv]
    assert torch.autograd.gradcheck(lambda *x: kernel.softmax_attention(*x, case.offsets_B1), inputs)
    tables = [case.position_HN.requires_grad_(), case.time_HK.requires_grad_()]

    def silu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        time = BucketedTime(table, case.row_time_T, case.column_time_T)
        return kernel.silu_attention(q, k, v, case.offsets_B1, SCALE, position, time)

    assert torch.autograd.gradcheck(silu, [*inputs, *tables])


# --- buckets of time


@pytest.mark.parametrize("power", range(UNKNOWN_TIME_BUCKET))
def test_buckets_change_exactly_at_powers_of_two(power: int) -> None:
    seconds = torch.tensor([2**power - 1, 2**power, 2**power + 1])
    below = max(0, power - 1)
    assert time_bucket(seconds * 1000).tolist() == [below, power, 1 if power == 0 else power]
    assert time_bucket(seconds * 1000 + 999).tolist() == [below, power, 1 if power == 0 else power]  # whole seconds count


def test_buckets_of_odd_differences() -> None:
    differences = torch.tensor([0, 1, 999, 1000, 1999, 2000, -1, -1000, -(2**40), 2**52, 2**62])
    last = UNKNOWN_TIME_BUCKET - 1
    assert time_bucket(differences).tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, last, last]
