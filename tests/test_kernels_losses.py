"""The loss kernels, compiled and plain, against the reference: values, both gradients, and rows of exponentials."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from largerec.kernels import cpu, losses, reference

needs_compiler = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler")
each_path = pytest.mark.parametrize("path", [pytest.param("compiled", marks=needs_compiler), "plain"])
KINDS = {
    "softmax": {"softmax": True},
    "corrected": {"softmax": True},
    "binary": {"softmax": False},
    "generalised": {"softmax": False, "power": 0.3},
}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Choose the path: compiled kernels, or plain torch in chunks of a few rows."""

    def choose(path: str) -> None:
        if path == "plain":
            monkeypatch.setattr(cpu, "usable", lambda *_: False)
            monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 1_000)
        else:
            assert cpu.available()[0], cpu.available()[1]

    return choose


def inputs(tokens: int, items: int, width: int, negatives: int, factor: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens * 31 + items + width * 7 + negatives)
    return {
        "queries": (factor * torch.randn(tokens, width, generator=generator)).requires_grad_(),
        "keys": torch.randn(items, width, generator=generator).requires_grad_(),
        "target": torch.randint(items, (tokens,), generator=generator),
        "drawn": torch.randint(items, (tokens, negatives), generator=generator),
        "log_q": torch.rand(items, generator=generator).log_softmax(0),
    }


def value_and_gradients(function: Any, x: dict[str, torch.Tensor], kind: str) -> list[torch.Tensor]:
    log_q = x["log_q"] if kind == "corrected" else None
    loss = function(x["queries"], x["keys"], x["target"], x["drawn"], log_q, **KINDS[kind])
    return [loss.detach(), *torch.autograd.grad(3 * loss, [x["queries"], x["keys"]])]


@each_path
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 7, 16, 17, 32, 50, 64, 100, 128])
@pytest.mark.parametrize(("tokens", "items", "negatives"), [(1, 1, 1), (33, 5, 20), (300, 1000, 16), (70, 200, 37)])
def test_the_sampled_loss_equals_the_reference(
    path: str, kind: str, width: int, tokens: int, items: int, negatives: int, on: Any
) -> None:
    on(path)
    x = inputs(tokens, items, width, negatives)
    x["drawn"][0] = x["target"][0]  # a row whose negatives all are its target
    for truth, found in zip(
        value_and_gradients(reference.sampled_loss, x, kind), value_and_gradients(losses.sampled_loss, x, kind), strict=True
    ):
        torch.testing.assert_close(found, truth, rtol=2e-5, atol=2e-5 * max(1.0, float(truth.abs().max())))


@each_path
@pytest.mark.parametrize("kind", KINDS)
def test_large_scores_stay_finite_and_right(path: str, kind: str, on: Any) -> None:
    on(path)
    x = inputs(20, 50, 32, 16, factor=200.0)
    for truth, found in zip(
        value_and_gradients(reference.sampled_loss, x, kind), value_and_gradients(losses.sampled_loss, x, kind), strict=True
    ):
        assert found.isfinite().all()
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


@each_path
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_that_is_not_a_number_is_not_hidden(path: str, kind: str, on: Any) -> None:
    on(path)
    x = inputs(20, 50, 32, 16)
    with torch.no_grad():
        x["queries"][3, 5] = float("nan")
    assert losses.sampled_loss(x["queries"], x["keys"], x["target"], x["drawn"], **KINDS[kind]).isnan()


@each_path
def test_no_tokens_are_no_loss(path: str, on: Any) -> None:
    on(path)
    loss, d_queries, d_keys = value_and_gradients(losses.sampled_loss, inputs(0, 5, 8, 3), "softmax")
    assert loss == 0 and d_queries.shape == (0, 8) and not d_keys.any()


@needs_compiler
@pytest.mark.parametrize("wrong", [-1, 50])
def test_an_item_outside_the_table_is_refused(wrong: int) -> None:
    x = inputs(20, 50, 8, 4)
    x["drawn"][7, 2] = wrong
    with pytest.raises(IndexError, match="outside the table"):
        losses.sampled_loss(x["queries"], x["keys"], x["target"], x["drawn"], softmax=True)


@needs_compiler
def test_the_sums_do_not_depend_on_the_threads() -> None:
    x = inputs(500, 300, 50, 32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append(value_and_gradients(losses.sampled_loss, x, "corrected"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][1:], other[1:], strict=True))


@each_path
@pytest.mark.parametrize("width", [1, 7, 16, 17, 50, 128])
@pytest.mark.parametrize("rows", [0, 1, 200])
def test_rows_of_unit_length(path: str, width: int, rows: int, on: Any) -> None:
    on(path)
    generator = torch.Generator().manual_seed(width)
    x = (10 ** torch.linspace(-4, 4, max(1, rows))[:rows, None] * torch.randn(rows, width, generator=generator)).requires_grad_()
    with torch.no_grad():
        x[1:2] = 0  # no direction: it stays zero, and its gradient is that of the division by 1e-12
    gradient = torch.randn(rows, width, generator=generator)
    found, wanted = losses.unit_rows(x), torch.nn.functional.normalize(x.double(), dim=1)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=2e-6)
    got, truth = (torch.autograd.grad(y, x, g)[0] for y, g in ((found, gradient), (wanted, gradient.double())))
    torch.testing.assert_close(
        got, truth, rtol=2e-5, atol=float(2e-5 * (x.detach().norm(dim=1).clamp_min(1e-12)[2:].min() ** -1 if rows > 2 else 1))
    )
    assert torch.equal(found[1:2], torch.zeros_like(found[1:2]))


@needs_compiler
def test_torch_accepts_the_operators() -> None:
    assert cpu.available()[0]
    x = inputs(9, 20, 10, 5)
    arguments = (x["queries"], x["keys"], x["target"], x["drawn"], x["log_q"], True, 1.0)
    torch.library.opcheck(torch.ops.largerec.sampled_loss, arguments)
    torch.library.opcheck(torch.ops.largerec.unit_rows, (torch.randn(9, 20).requires_grad_(),))
    torch.library.opcheck(torch.ops.largerec.exp_rows_, (torch.randn(4, 21), torch.rand(21), torch.randn(4)))
    torch.library.opcheck(torch.ops.largerec.count_rows, (torch.randn(4, 21), torch.randn(4)))


@each_path
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 15), (5, 16), (4, 33), (7, 1000)], ids=str)
def test_scores_above_and_equal_are_counted(path: str, kind: torch.dtype, shape: tuple[int, int], on: Any) -> None:
    on(path)
    generator = torch.Generator().manual_seed(shape[1])
    scores = torch.randint(-3, 4, shape, generator=generator).to(kind)  # ties, and among them infinities of both signs
    scores[scores == -3], scores[scores == 3] = float("-inf"), float("inf")
    own = scores[:, 0].clone()
    above, equal = losses.count_rows(scores.T.contiguous().T, own)
    for row, mine, found_above, found_equal in zip(scores.tolist(), own.tolist(), above.tolist(), equal.tolist(), strict=True):
        assert (found_above, found_equal) == (sum(x > mine for x in row), sum(x == mine for x in row))
    assert above.dtype == equal.dtype == torch.int64


@each_path
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("columns", [1, 15, 16, 50, 1000])
@pytest.mark.parametrize("with_factor", [True, False])
@pytest.mark.parametrize("with_own", [True, False])
def test_rows_of_exponentials(path: str, kind: torch.dtype, columns: int, with_factor: bool, with_own: bool, on: Any) -> None:
    on(path)
    generator = torch.Generator().manual_seed(columns)
    logits = (10 * torch.randn(6, columns, generator=generator)).to(kind)
    logits[2, 0] = float("-inf") if columns > 1 or with_own else 0.0
    factor = torch.rand(columns, generator=generator).to(kind) if with_factor else None
    own = 10 * torch.randn(6, generator=generator) if with_own else None
    wanted = logits.double().amax(1) if own is None else torch.maximum(logits.double().amax(1), own.double())
    weight = (logits.double() - wanted[:, None]).exp() * (1.0 if factor is None else factor.double())
    largest, total = losses.exp_rows_(logits, factor, own)
    tolerance = 1e-5 if kind == torch.float32 else 2e-2
    # The plain path finds the largest in the type of the logits.
    torch.testing.assert_close(largest.double(), wanted, rtol=tolerance, atol=tolerance)
    scale = (wanted - largest.double()).exp()
    torch.testing.assert_close(total.double(), weight.sum(1) * scale, rtol=4 * tolerance, atol=1e-6)
    torch.testing.assert_close(logits.double(), weight * scale[:, None], rtol=4 * tolerance, atol=4 * tolerance)
