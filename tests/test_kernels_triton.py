"""The Triton kernels against the reference: values and gradients over ragged shapes, on a CUDA device or, without one, a CPU.

``TRITON_INTERPRET=1`` makes Triton run its programs on CPU tensors with numpy; it is set here, before Triton is imported, where
there is no device. Only the sums and their bounds are checked so; how programs are laid out on a device is not.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; its kernels can be checked with pip install '.[triton]'", allow_module_level=True)

from largerec.kernels import BucketedTime, reference, triton
from largerec.kernels.reference import TIME_BUCKETS, UNKNOWN_TIME_BUCKET

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
TABLE = 70
pytestmark = pytest.mark.timeout(600)  # the interpreter takes a second for what a device does at once, more on a busy machine
each_kind = pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "silu"])
each_bias = pytest.mark.parametrize(
    ("position", "time"), [(True, True), (False, True), (True, False), (False, False)], ids=["both", "time", "position", "plain"]
)
# numpy says in the interpreter that the exp within a sigmoid overflows; one over infinity is the zero that is meant.
overflow_is_right = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


@pytest.fixture(autouse=True)
def untimed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take their first blocks that fit: on a device, timing all of them for so many shapes would take an hour."""
    if request.function is not test_blocks_may_be_chosen_by_timing:
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)


class Case:
    """Random inputs on the device. Times rise but for a few that are unknown, or are in no order at all."""

    def __init__(self, lengths: list[int], heads: int, width: int, kind: torch.dtype, rising: bool = True, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed + sum(lengths) * heads + width)
        tokens = sum(lengths)
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        exponent = torch.rand(tokens, generator=generator, dtype=torch.float64) * 41
        time = exponent.exp2().long()
        if rising:
            time = torch.cat([time[:0], *(time[a:b].sort()[0] for a, b in itertools.pairwise(offsets.tolist()))])
        time[torch.rand(tokens, generator=generator) < 0.1] = -1
        self.offsets, self.columns, self.rows = offsets.to(DEVICE), time.to(DEVICE), time.roll(-1).to(DEVICE)
        draws = [torch.randn(tokens, heads, width, generator=generator).to(DEVICE, kind) for _ in range(4)]
        self.qkv, self.d_out = [x.requires_grad_() for x in draws[:3]], draws[3]
        self.position_HN = torch.randn(heads, TABLE, generator=generator).to(DEVICE).requires_grad_()
        self.time_HK = torch.randn(heads, TIME_BUCKETS, generator=generator).to(DEVICE).requires_grad_()

    def run(self, by_triton: bool, softmax: bool, position: bool, time: bool) -> list[torch.Tensor]:
        """The result and the gradients of everything that has one."""
        table = self.position_HN if position else None
        asked = BucketedTime(self.time_HK, self.rows, self.columns) if time else None
        scale = self.qkv[0].shape[-1] ** -0.5 if softmax else 1 / 64
        if by_triton:
            out = triton.attention(*self.qkv, self.offsets, softmax, scale, table, asked)
        elif softmax:
            out = reference.softmax_attention(*self.qkv, self.offsets, table, asked)
        else:
            out = reference.silu_attention(*self.qkv, self.offsets, scale, table, asked)
        leaves = [*self.qkv, *([self.position_HN] if position else []), *([self.time_HK] if time else [])]
        return [out.detach(), *torch.autograd.grad(out, leaves, self.d_out)]


def assert_equal_to_the_reference(case: Case, softmax: bool, position: bool, time: bool) -> None:
    tolerance = 1e-5 if case.d_out.dtype == torch.float32 else 4e-2
    for truth, found in zip(case.run(False, softmax, position, time), case.run(True, softmax, position, time), strict=True):
        assert found.dtype == truth.dtype and found.shape == truth.shape
        assert float((found - truth).abs().max()) <= tolerance * max(1.0, float(truth.abs().max()))


@each_kind
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize(
    ("kind", "lengths", "heads", "width"),
    [
        (torch.float32, [1], 1, 1),
        (torch.float32, [0, 3, 0, 1], 2, 50),
        (torch.float32, [5, 0, 31, 33], 2, 25),
        (torch.float32, [48, 1, 65], 1, 16),
        (torch.float32, [40], 1, 130),
        (torch.bfloat16, [5, 0, 31, 33], 2, 25),
        (torch.bfloat16, [40], 1, 130),
        (torch.float16, [33, 2], 1, 16),
    ],
    ids=str,
)
def test_attention_equals_the_reference(
    softmax: bool, biased: bool, kind: torch.dtype, lengths: list[int], heads: int, width: int
) -> None:
    assert_equal_to_the_reference(Case(lengths, heads, width, kind, rising=width != 25), softmax, biased, biased)


@overflow_is_right
@each_kind
def test_large_scores_stay_finite_and_right(softmax: bool) -> None:
    case = Case([33, 5], 1, 16, torch.float32)
    case.qkv[:2] = [(20 * x.detach()).requires_grad_() for x in case.qkv[:2]]  # scores of thousands
    for truth, found in zip(case.run(False, softmax, True, True), case.run(True, softmax, True, True), strict=True):
        assert found.isfinite().all()
        assert float((found - truth).abs().max()) <= 1e-3 * max(1.0, float(truth.abs().max()))


@each_kind
def test_blocks_may_be_chosen_by_timing(softmax: bool) -> None:
    for biased in (True, False):
        assert_equal_to_the_reference(Case([70, 3, 64], 2, 32, torch.bfloat16), softmax, biased, biased)


ragged = st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 31, 32, 33, 48]), min_size=1, max_size=4).filter(any)


@settings(deadline=None, max_examples=6)
@given(
    lengths=ragged, heads=st.integers(1, 2), width=st.sampled_from([1, 8, 16, 33, 64]), rising=st.booleans(), bias=st.booleans()
)
@each_kind
def test_attention_over_random_shapes(
    softmax: bool, lengths: list[int], heads: int, width: int, rising: bool, bias: bool
) -> None:
    assert_equal_to_the_reference(Case(lengths, heads, width, torch.float32, rising), softmax, bias, bias)


@each_kind
@pytest.mark.parametrize("lengths", [[0], [0, 0, 0]], ids=str)
def test_a_batch_without_tokens(softmax: bool, lengths: list[int]) -> None:
    out, d_q, _, _, d_position, d_time = Case(lengths, 2, 3, torch.float32).run(True, softmax, True, True)
    assert out.shape == d_q.shape == (0, 2, 3)
    assert not d_position.any() and not d_time.any()


def test_the_longest_history_is_as_long_as_the_table_and_no_longer() -> None:
    assert_equal_to_the_reference(Case([TABLE, 2], 1, 16, torch.float32), False, True, False)
    out = Case([TABLE + 1, 2], 1, 16, torch.float32)
    table, scale = out.position_HN, 1 / 64
    found = triton.attention(*out.qkv, out.offsets, False, scale, table, None).isfinite().all(-1).all(-1)
    assert found[:TABLE].all() and not found[TABLE] and found[TABLE + 1 :].all()  # rather than what lies behind the table


@pytest.mark.parametrize("start", [0, 1_764_000_000_123])
def test_times_at_the_edge_of_a_bucket(start: int) -> None:
    """Elapsed times of 2**b seconds, one millisecond less and one more; then backwards, unknown and far apart."""
    rows = [start + 1000 * 2**b + off for b in range(33) for off in (-1, 0, 1)]
    odd = [start, -1, 2**52, 1, start + 1]
    columns = torch.tensor([start] * len(rows) + odd[::-1], device=DEVICE)
    rows_T = torch.tensor([*rows, *odd], device=DEVICE)
    offsets = torch.tensor([0, len(rows), len(rows_T)], device=DEVICE)
    q, v = torch.zeros(len(rows_T), 1, 4, device=DEVICE), torch.ones(len(rows_T), 1, 4, device=DEVICE)
    table = torch.arange(1.0, 1.0 + TIME_BUCKETS, device=DEVICE)[None].requires_grad_()
    time = BucketedTime(table, rows_T, columns)
    found = triton.attention(q, q, v, offsets, False, 1.0, None, time)
    wanted = reference.silu_attention(q, q, v, offsets, 1.0, None, time)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(x.sum(), table)[0] for x in (found, wanted)]
    assert gradients[1][0, UNKNOWN_TIME_BUCKET] > 0
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@each_kind
def test_views_into_one_projection_are_read_where_they_lie(softmax: bool) -> None:
    case = Case([4, 0, 40], 2, 5, torch.float32)
    wanted = case.run(True, softmax, True, True)
    wide = torch.cat([x.detach().flatten(1) for x in case.qkv], dim=1).requires_grad_()
    case.qkv = [part.unflatten(1, (2, 5)) for part in wide.chunk(3, dim=1)]
    for found, same in zip(case.run(True, softmax, True, True), wanted, strict=True):
        assert torch.equal(found, same)
    case.qkv = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in case.qkv]  # heads inside
    for found, same in zip(case.run(True, softmax, True, True), wanted, strict=True):
        assert torch.equal(found, same)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Torch's own switch. With it, new memory holds NaN until it is written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@each_kind
@each_bias
def test_equal_inputs_give_bitwise_equal_results(softmax: bool, position: bool, time: bool, deterministic: None) -> None:
    case = Case([35, 7, 1], 1, 16, torch.float32)
    assert_equal_to_the_reference(case, softmax, position, time)
    first, second = (case.run(True, softmax, position, time) for _ in range(2))
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(first, second, strict=True))


@each_kind
def test_each_user_is_as_if_alone(softmax: bool) -> None:
    case = Case([17, 1, 48, 2], 2, 8, torch.float32)
    together = case.run(True, softmax, True, True)[:4]
    for a, b in itertools.pairwise(case.offsets.tolist()):
        alone = Case([b - a], 2, 8, torch.float32)
        alone.qkv, alone.d_out = [x.detach()[a:b].requires_grad_() for x in case.qkv], case.d_out[a:b]
        alone.rows, alone.columns, alone.position_HN, alone.time_HK = (
            case.rows[a:b],
            case.columns[a:b],
            case.position_HN,
            case.time_HK,
        )
        for found, whole in zip(alone.run(True, softmax, True, True)[:4], together, strict=True):
            assert torch.equal(found, whole[a:b])


def test_the_tables_gradients_may_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from largerec.kernels import triton_backward

    case = Case([40, 7, 1, 33], 2, 8, torch.float32)
    wanted = case.run(True, False, True, True)
    monkeypatch.setattr(triton_backward, "PARTIAL_BYTES", 3 * 4 * 2 * (TABLE + 64))  # three slots
    for found, same in zip(case.run(True, False, True, True), wanted, strict=True):
        torch.testing.assert_close(found, same)


# --- the loss over sampled items

LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {"softmax": True},
    "corrected": {"softmax": True},
    "binary": {"softmax": False},
    "generalised": {"softmax": False, "power": 0.3},
}


def loss_and_gradients(function: Any, x: dict[str, torch.Tensor], kind: str) -> list[torch.Tensor]:
    log_q = x["log_q"] if kind == "corrected" else None
    loss = function(x["queries"], x["keys"], x["target"], x["drawn"], log_q, **LOSSES[kind])
    return [loss.detach(), *torch.autograd.grad(3 * loss, [x["queries"], x["keys"]])]


def loss_inputs(tokens: int, items: int, width: int, negatives: int, factor: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens * 31 + items + width * 7 + negatives)
    found = {
        "queries": factor * torch.randn(tokens, width, generator=generator),
        "keys": torch.randn(items, width, generator=generator),
        "target": torch.randint(items, (tokens,), generator=generator),
        "drawn": torch.randint(items, (tokens, negatives), generator=generator),
        "log_q": torch.rand(items, generator=generator).log_softmax(0),
    }
    found["drawn"][:1] = found["target"][:1, None]  # a row whose negatives all are its target
    return {name: x.to(DEVICE).requires_grad_(name in ("queries", "keys")) for name, x in found.items()}


@overflow_is_right
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (9, 5, 25, 20), (7, 20, 130, 37)], ids=str)
@pytest.mark.parametrize("factor", [1.0, 200.0])
def test_the_loss_equals_the_reference(kind: str, shape: tuple[int, int, int, int], factor: float) -> None:
    x = loss_inputs(*shape, factor)
    for truth, found in zip(
        loss_and_gradients(reference.sampled_loss, x, kind), loss_and_gradients(triton.sampled_loss, x, kind), strict=True
    ):
        assert found.isfinite().all()
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4 * max(1e-3, float(truth.abs().max())))


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_is_bitwise_the_same_twice(kind: str, deterministic: None) -> None:
    x = loss_inputs(12, 9, 16, 20)
    first, second = (loss_and_gradients(triton.sampled_loss, x, kind) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy in the interpreter
@pytest.mark.parametrize("kind", LOSSES)
def test_a_score_that_is_not_a_number_is_not_hidden(kind: str) -> None:
    x = loss_inputs(5, 9, 32, 16)
    with torch.no_grad():
        x["queries"][3, 5] = float("nan")
    assert triton.sampled_loss(x["queries"], x["keys"], x["target"], x["drawn"], **LOSSES[kind]).isnan()


def test_no_tokens_are_no_loss() -> None:
    loss, d_queries, d_keys = loss_and_gradients(triton.sampled_loss, loss_inputs(0, 5, 8, 3), "softmax")
    assert loss == 0 and d_queries.shape == (0, 8) and not d_keys.any()


@each_kind
def test_torch_accepts_the_operators(softmax: bool) -> None:
    assert triton.available()[0], triton.available()[1]
    case = Case([4, 0, 9], 2, 5, torch.float32)
    arguments = (*case.qkv, case.offsets, softmax, 0.1, case.position_HN, case.time_HK, case.rows, case.columns)
    torch.library.opcheck(torch.ops.largerec.triton_attention, arguments)
    torch.library.opcheck(torch.ops.largerec.triton_attention, (*case.qkv, case.offsets, softmax, 0.1, None, None, None, None))
    x = loss_inputs(9, 20, 10, 5)
    loss = (x["queries"], x["keys"], x["target"], x["drawn"], x["log_q"], softmax, 1.0)
    torch.library.opcheck(torch.ops.largerec.triton_sampled_loss, loss)
