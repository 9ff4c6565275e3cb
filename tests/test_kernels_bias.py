"""Attention by distance and by elapsed time: every implementation against loops, and the compiled twin in its precisions."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch

from largerec import kernels
from largerec.kernels import BucketedTime, PowerLawTime, cpu, padded, reference, triton
from largerec.kernels.reference import TIME_BUCKETS, UNKNOWN_TIME_BUCKET

TABLE = 300
KINDS = ("position", "buckets", "power law")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_implementation = pytest.mark.parametrize("kernel", [reference, padded, kernels], ids=["reference", "padded", "chosen"])
needs_compiler = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler")


class Case:
    """Random values, tables and times in float64; some times are unknown, and some rows ask before their columns."""

    def __init__(self, lengths: list[int], heads: int, width: int, kind: str, rising: bool = True) -> None:
        generator = torch.Generator().manual_seed(sum(lengths) * heads + width)
        tokens, self.kind = sum(lengths), kind
        self.offsets = torch.tensor([0, *lengths]).cumsum(0)
        self.v, self.gradient = (torch.randn(tokens, heads, width, generator=generator, dtype=torch.float64) for _ in range(2))
        entries = {"position": TABLE, "buckets": TIME_BUCKETS, "power law": 2}[kind]
        self.table = torch.rand(heads, entries, generator=generator, dtype=torch.float64) - 0.3
        time = (torch.rand(tokens, generator=generator) * 41).exp2().long()
        if rising:
            time = torch.cat([time[a:b].sort()[0] for a, b in itertools.pairwise(self.offsets)])
        self.column = time.masked_fill(torch.rand(tokens, generator=generator) < 0.1, -1)
        self.row = self.column.roll(-1)

    def to(self, kind: torch.dtype) -> Case:
        """Leaves in a precision; the table of bfloat16 is float32."""
        self.v = self.v.detach().to(kind).requires_grad_()
        self.table = self.table.detach().to(torch.float32 if kind == torch.bfloat16 else kind).requires_grad_()
        self.gradient = self.gradient.to(kind)
        return self

    def run(self, kernel: Any) -> torch.Tensor:
        out: torch.Tensor
        if self.kind == "position":
            out = kernel.position_attention(self.v, self.offsets, self.table)
        else:
            time = (BucketedTime if self.kind == "buckets" else PowerLawTime)(self.table, self.row, self.column)
            out = kernel.time_attention(self.v, self.offsets, time)
        return out

    def results(self, kernel: Any) -> list[torch.Tensor]:
        out = self.run(kernel)
        return [out.detach(), *torch.autograd.grad(out, [self.v, self.table], self.gradient)]

    def naive(self) -> torch.Tensor:
        """The sum over pairs of tokens, one at a time."""
        out = torch.zeros_like(self.v)
        for a, b in itertools.pairwise(self.offsets.tolist()):
            for i in range(a, b):
                for j in range(a, i + 1):
                    out[i] += self.weight(i, j)[:, None] * self.v[j]
        return out

    def weight(self, i: int, j: int) -> torch.Tensor:
        if self.kind == "position":
            return self.table[:, i - j]
        row, column = int(self.row[i]), int(self.column[j])
        unknown = row < 0 or column < 0
        if self.kind == "buckets":
            bucket = min(max((row - column) // 1000, 1).bit_length() - 1, UNKNOWN_TIME_BUCKET - 1)
            return self.table[:, UNKNOWN_TIME_BUCKET if unknown else bucket]
        a, b = self.table.T
        return a * (0.0 if unknown else (1 + max(row - column, 0) / 1000) ** -b)


@each_kind
@each_implementation
@pytest.mark.parametrize("rising", [True, False])
def test_attention_is_the_naive_sum(kernel: ModuleType, kind: str, rising: bool) -> None:
    case = Case([3, 0, 1, 20, 9, 0], 2, 3, kind, rising)
    torch.testing.assert_close(case.run(kernel), case.naive())


@each_kind
@each_implementation
@pytest.mark.parametrize("number", [torch.float64, torch.float32])
def test_a_batch_without_tokens(kernel: ModuleType, kind: str, number: torch.dtype) -> None:
    assert Case([0, 0], 2, 3, kind).to(number).run(kernel).shape == (0, 2, 3)


@each_kind
@each_implementation
def test_gradients_are_those_of_finite_differences(kernel: ModuleType, kind: str) -> None:
    case = Case([2, 0, 4, 9], 2, 3, kind).to(torch.float64)

    def attend(v: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        case.v, case.table = v, table
        return case.run(kernel)

    assert torch.autograd.gradcheck(attend, [case.v, case.table], fast_mode=True)


@needs_compiler
@each_kind
@pytest.mark.parametrize("lengths", [[1], [0, 3, 0, 1], [5, 31, 32, 33], [64, 1, 257, 17], [TABLE]], ids=str)
@pytest.mark.parametrize(("heads", "width"), [(1, 1), (2, 25), (1, 50), (1, 130)])
@pytest.mark.parametrize(("number", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)], ids=["fp32", "bf16"])
def test_the_compiled_kernel_equals_the_reference(
    kind: str, lengths: list[int], heads: int, width: int, number: torch.dtype, tolerance: float
) -> None:
    """Values and gradients, relative to their norm, against the reference in float64 from the same numbers."""
    assert cpu.available()[0], cpu.available()[1]
    case = Case(lengths, heads, width, kind, rising=width != 25).to(number)
    found = case.results(cpu)
    for truth, got, given in zip(case.to(torch.float64).results(reference), found, [number, number, torch.float32], strict=True):
        assert got.dtype == given
        assert (got.double() - truth).norm() <= tolerance * truth.norm()


@needs_compiler
@each_kind
@pytest.mark.parametrize("threads", [1, 2])
def test_equal_thread_counts_give_bitwise_equal_results(kind: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        case = Case([40, 7, 90, 1, 33], 2, 16, kind).to(torch.float32)
        first, second = case.results(cpu), case.results(cpu)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_compiler
@each_kind
def test_later_tokens_change_nothing_before(kind: str) -> None:
    case = Case([40], 2, 5, kind).to(torch.float32)
    before = case.run(cpu).detach()
    case.v.data[33:] += 1
    case.column[33:] += 10**9
    case.row[33:] += 10**9
    after = case.run(cpu).detach()
    assert torch.equal(before[:33], after[:33]) and not torch.isclose(before[33:], after[33:]).all(-1).any()


@needs_compiler
@each_kind
def test_views_into_one_projection_are_read_where_they_lie(kind: str) -> None:
    case = Case([4, 0, 40], 2, 5, kind).to(torch.float32)
    wanted = case.run(cpu)
    case.v = torch.cat([torch.ones(44, 3), case.v.detach().flatten(1)], dim=1)[:, 3:].view(44, 2, 5)
    assert torch.equal(case.run(cpu), wanted)


@needs_compiler
@each_kind
def test_torch_accepts_the_operator(kind: str) -> None:
    assert cpu.available()[0]
    case = Case([4, 0, 9], 2, 5, kind).to(torch.float32)
    times = (None, None) if kind == "position" else (case.row, case.column)
    torch.library.opcheck(torch.ops.largerec.bias_attention, (case.v, case.offsets, case.table, KINDS.index(kind), *times))


@needs_compiler
def test_what_does_not_fit_is_refused() -> None:
    assert cpu.available()[0]
    case = Case([4], 1, 4, "position").to(torch.float32)
    with pytest.raises(RuntimeError, match="longer than the position table"):
        cpu.position_attention(case.v, case.offsets, torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="a row for each head"):
        cpu.position_attention(case.v, case.offsets, torch.zeros(2, 9))
    with pytest.raises(RuntimeError, match="offsets must end"):
        cpu.position_attention(case.v, case.offsets[:1], torch.zeros(1, 9))
    with pytest.raises(RuntimeError, match=r"the time table must be \[H, 32\]"):
        cpu.time_attention(case.v, case.offsets, PowerLawTime(torch.zeros(1, 3), case.row, case.column))


@each_kind
def test_without_a_twin_for_the_device_the_padded_path_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "usable", lambda *_: False)
    monkeypatch.setattr(triton, "usable", lambda *_: True)
    case = Case([3, 1], 2, 4, kind).to(torch.float32)
    assert torch.equal(case.run(kernels), case.run(padded))
