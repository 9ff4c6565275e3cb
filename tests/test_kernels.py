"""Every implementation of the sequence kernels against loops over users, heads and pairs of tokens."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largerec import kernels
from largerec.kernels import BucketedTime, cpu, padded, reference, triton
from largerec.kernels.reference import TIME_BUCKETS, UNKNOWN_TIME_BUCKET, time_bucket

LAWS = settings(deadline=None, max_examples=25)
LONGEST = 12
SCALE = 0.125
IMPLEMENTATIONS = [reference, padded, kernels]  # the last is what the models call
each_kind = pytest.mark.parametrize("kind", ["softmax", "silu"])
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

    def naive(self, kind: str, position: bool, time: bool) -> torch.Tensor:
        """The sum over pairs of tokens, one at a time."""
        q, k, v = self.qkv
        out = torch.zeros_like(v)
        for rows in self.slices():
            for i in range(rows.start, rows.stop):
                for h in range(self.heads):
                    seen = range(rows.start, i + 1)
                    scale = self.width**-0.5 if kind == "softmax" else 1.0
                    scores = [scale * float(q[i, h] @ k[j, h]) for j in seen]
                    for place, j in enumerate(seen):
                        scores[place] += float(self.position_HN[h, i - j]) if position else 0.0
                        scores[place] += float(self.time_HK[h, self.naive_bucket(i, j)]) if time else 0.0
                    weights = [SCALE * score / (1 + math.exp(-score)) for score in scores]
                    if kind == "softmax":
                        weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
                    out[i, h] = sum(weight * v[j, h] for weight, j in zip(weights, seen, strict=True))
        return out

    def run(self, kernel: ModuleType, kind: str, position: bool = True, time: bool = True) -> torch.Tensor:
        """The kernel's answer, in the precision of the inputs."""
        tables = self.tables(position, time)
        if kind == "softmax":
            return kernel.softmax_attention(*self.qkv, self.offsets_B1, *tables)
        return kernel.silu_attention(*self.qkv, self.offsets_B1, SCALE, *tables)

    def leaves(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Turn the inputs into leaves of a precision, and return them; the tables of bfloat16 stay in float32."""
        self.qkv = [x.detach().to(dtype).requires_grad_() for x in self.qkv]
        kind = torch.float32 if dtype == torch.bfloat16 else dtype
        self.position_HN, self.time_HK = (x.detach().to(kind).requires_grad_() for x in (self.position_HN, self.time_HK))
        return [*self.qkv, self.position_HN, self.time_HK]


some_lengths = st.lists(st.sampled_from([0, 1, 2, 5, 9, LONGEST]), min_size=1, max_size=5)
cases = st.builds(Case, some_lengths, st.integers(1, 3), st.integers(1, 17), st.integers(0, 10_000))


@LAWS
@given(case=cases, position=st.booleans(), time=st.booleans())
@each_kind
def test_attention_is_the_naive_sum(kind: str, case: Case, position: bool, time: bool) -> None:
    truth = case.naive(kind, position, time)
    for kernel in IMPLEMENTATIONS:
        torch.testing.assert_close(case.run(kernel, kind, position, time), truth)


@each_kind
@each_implementation
@pytest.mark.parametrize("width", range(1, 18))
def test_every_head_width_and_length_at_once(kernel: ModuleType, kind: str, width: int) -> None:
    case = Case([3, 0, 1, LONGEST, 9, 0], 1, width, seed=width)
    torch.testing.assert_close(case.run(kernel, kind), case.naive(kind, True, True))


@each_kind
@each_implementation
@pytest.mark.parametrize("lengths", [[0], [0, 0, 0]])
def test_a_batch_without_tokens(kernel: ModuleType, kind: str, lengths: list[int]) -> None:
    case = Case(lengths, 2, 3, seed=0)
    assert case.run(kernel, kind).shape == (0, 2, 3)
    case.leaves(torch.float32)
    assert case.run(kernel, kind).shape == (0, 2, 3)


@each_kind
@each_implementation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_user_is_as_if_alone(kernel: ModuleType, kind: str, dtype: torch.dtype) -> None:
    case = Case([4, 1, LONGEST, 9, 2], 2, 4, seed=1)
    case.leaves(dtype)
    together = case.run(kernel, kind)
    for rows in case.slices():
        alone = Case([rows.stop - rows.start], 2, 4, seed=0)
        alone.qkv, alone.position_HN, alone.time_HK = [x[rows] for x in case.qkv], case.position_HN, case.time_HK
        alone.row_time_T, alone.column_time_T = case.row_time_T[rows], case.column_time_T[rows]
        torch.testing.assert_close(alone.run(kernel, kind), together[rows])


@each_kind
@each_implementation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("changed", [0, 5, LONGEST - 1])
def test_later_tokens_change_nothing_before(kernel: ModuleType, kind: str, changed: int, dtype: torch.dtype) -> None:
    case, other = (Case([LONGEST], 2, 4, seed=seed, unknown=0) for seed in (2, 3))
    case.leaves(dtype)
    before = case.run(kernel, kind).detach()
    for mine, strange in zip(case.qkv, other.qkv, strict=True):
        mine.data[changed:] = strange[changed:].to(dtype)
    case.row_time_T[changed:], case.column_time_T[changed:] = other.row_time_T[changed:], other.column_time_T[changed:]
    after = case.run(kernel, kind).detach()
    assert torch.equal(before[:changed], after[:changed])
    assert not torch.isclose(before[changed:], after[changed:]).all(-1).any()


@each_kind
@each_implementation
def test_gradients_are_those_of_finite_differences(kernel: ModuleType, kind: str) -> None:
    case = Case([2, 0, 4, 9], 2, 3, seed=4)

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        case.qkv, (case.position_HN, case.time_HK) = list(inputs[:3]), inputs[3:]
        return case.run(kernel, kind)

    assert torch.autograd.gradcheck(attend, case.leaves(torch.float64), fast_mode=True)


@each_kind
@pytest.mark.parametrize("width", [1, 8, 17, 50])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_what_models_call_is_the_reference_in_their_precision(
    kind: str, width: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Forward and backward, on a machine with a compiler the compiled twin. Distances are relative to a tensor's norm."""
    case = Case([LONGEST, 1, 0, 7, 9, 2], 3, width, seed=width)
    given_d = torch.randn(case.qkv[2].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    case.qkv = [x.to(dtype).double() for x in case.qkv]  # so that both start from the same numbers
    found = []
    for kernel, precision in ((reference, torch.float64), (kernels, dtype)):
        leaves = case.leaves(precision)
        out = case.run(kernel, kind)
        assert out.dtype == precision
        found.append([out, *torch.autograd.grad(out, leaves, given_d.to(precision))])
    for wanted, got in zip(*found, strict=True):
        assert (got.double() - wanted).norm() <= tolerance * wanted.norm()


# --- what runs on a CUDA device; test_kernels_triton.py runs it


@pytest.mark.parametrize(
    ("setting", "says"), [("", "Triton cannot be imported"), ("plain", "plain torch, because LARGEREC_KERNELS=plain is set")]
)
def test_a_cuda_device_without_triton_gets_plain_torch_and_a_reason(setting: str, says: str) -> None:
    program = "import sys; sys.modules['triton'] = None; from largerec import kernels; print(kernels.describe('cuda'))"
    environment = {**os.environ, "LARGEREC_KERNELS": setting}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert says in done.stdout, done.stderr


@each_kind
def test_triton_is_chosen_where_it_is_usable(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(cpu, "usable", lambda *_: False)
    monkeypatch.setattr(triton, "usable", lambda *_: True)
    monkeypatch.setattr(triton, "attention", lambda *arguments: called.append(arguments) or arguments[2])
    case = Case([3, 1], 2, 4, seed=0)
    case.leaves(torch.bfloat16)
    assert case.run(kernels, kind) is case.qkv[2]
    assert called[0][4:6] == (kind == "softmax", 0.5 if kind == "softmax" else SCALE)
    case.leaves(torch.float64)  # the kernels are not for it
    assert case.run(kernels, kind) is not case.qkv[2] and len(called) == 1


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
