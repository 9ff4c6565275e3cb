"""The softmax over the catalogue in bfloat16, one operator, against the cross-entropy in float64 of the same rounded numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from largerec.kernels import cpu, losses
from largerec.objectives import full_softmax

pytestmark = [
    pytest.mark.skipif(not cpu.avx512_bf16(), reason="needs a processor with AVX-512 BF16"),
    pytest.mark.skipif(cpu.compiler() is None, reason="needs a C++ compiler"),
]
SHAPES = [
    (1, 1, 1),
    (1, 2, 3),
    (7, 5, 3),
    (6, 64, 16),
    (13, 65, 17),
    (100, 63, 50),
    (301, 1000, 128),
    (50, 130, 192),
    (20, 70, 80),
]


def inputs(tokens: int, items: int, width: int, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and keys that bfloat16 holds exactly, and targets."""
    assert cpu.available()[0], cpu.available()[1]
    generator = torch.Generator().manual_seed(tokens + 31 * items + 7 * width)
    queries_TD = (4 * width**-0.5 * factor * torch.randn(tokens, width, generator=generator)).bfloat16().float().requires_grad_()
    keys_VD = torch.randn(items, width, generator=generator).bfloat16().float().requires_grad_()
    return queries_TD, keys_VD, torch.randint(items, (tokens,), generator=generator)


def truth(queries_TD: torch.Tensor, keys_VD: torch.Tensor, target_T: torch.Tensor) -> list[torch.Tensor]:
    q, k = (x.detach().double().requires_grad_() for x in (queries_TD, keys_VD))
    loss = F.cross_entropy(q @ k.T, target_T)
    return [loss.detach(), *torch.autograd.grad(3 * loss, [q, k])]


def found(queries_TD: torch.Tensor, keys_VD: torch.Tensor, target_T: torch.Tensor) -> list[torch.Tensor]:
    loss = losses.softmax_loss(queries_TD, keys_VD, target_T)
    assert loss is not None
    return [loss.detach(), *torch.autograd.grad(3 * loss, [queries_TD, keys_VD])]


@pytest.mark.parametrize(("tokens", "items", "width"), SHAPES)
def test_value_and_gradients_are_those_of_the_cross_entropy(tokens: int, items: int, width: int) -> None:
    x = inputs(tokens, items, width)
    wanted, got = truth(*x), found(*x)
    torch.testing.assert_close(got[0].double(), wanted[0], rtol=2e-3, atol=2e-3)
    for one, other in zip(got[1:], wanted[1:], strict=True):
        assert one.shape == other.shape
        # What is summed is rounded to bfloat16 (1 part in 256 at most), and a lone item's gradient is exactly zero.
        assert (one.double() - other).norm() <= 4e-3 * other.norm() + 1e-6


def test_several_blocks_of_tokens_give_the_sum_of_their_gradients() -> None:
    """So many items that only the least block of tokens fits."""
    x = inputs(100, 170_000, 8)
    for one, other in zip(found(*x)[1:], truth(*x)[1:], strict=True):
        assert (one.double() - other).norm() <= 4e-3 * other.norm()


def test_the_numbers_do_not_depend_on_the_threads() -> None:
    x = inputs(333, 700, 48)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(found(*x))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_an_item_far_ahead_of_the_target_takes_the_other_path() -> None:
    queries_TD, keys_VD, target_T = inputs(20, 50, 32, factor=30.0)
    assert losses.softmax_loss(queries_TD, keys_VD, target_T) is None
    loss = full_softmax(queries_TD, keys_VD, target_T, low_precision=True)
    torch.testing.assert_close(
        loss.double(), F.cross_entropy(queries_TD.double() @ keys_VD.double().T, target_T), rtol=1e-2, atol=0
    )


def test_scores_up_to_the_limit_stay_right() -> None:
    queries_TD, keys_VD, target_T = inputs(40, 90, 16)
    with torch.no_grad():  # the target at -50 and the best item at 8
        keys_VD.zero_()
        keys_VD[:, 0] = 8.0
        keys_VD[target_T, 0] = -50.0
        queries_TD.zero_()
        queries_TD[:, 0] = 1.0
    for one, other in zip(found(queries_TD, keys_VD, target_T), truth(queries_TD, keys_VD, target_T), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=5e-3, atol=5e-3 * float(other.abs().max()))


def test_the_gradient_vanishes_with_the_loss_also_for_numbers_that_bfloat16_rounds() -> None:
    query, key = torch.tensor([[1.003]]).requires_grad_(), torch.tensor([[1.001]]).requires_grad_()
    loss, d_query, d_key = found(query, key, torch.tensor([0]))
    assert loss == 0 and d_query == 0 and d_key == 0


def test_an_empty_table_has_no_target() -> None:
    with pytest.raises(IndexError, match="outside the table"):
        losses.softmax_loss(torch.ones(3, 8), torch.ones(0, 8), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_a_number_is_not_hidden(which: int) -> None:
    x = inputs(20, 50, 32)
    with torch.no_grad():
        x[which][3, 5] = float("nan")
    loss = losses.softmax_loss(*x)
    assert loss is not None and loss.isnan()


def test_no_tokens_are_no_loss() -> None:
    loss, d_queries, d_keys = found(*inputs(0, 5, 8))
    assert loss == 0 and d_queries.shape == (0, 8) and not d_keys.any()


@pytest.mark.parametrize("wrong", [-1, 50])
def test_a_target_outside_the_table_is_refused(wrong: int) -> None:
    queries_TD, keys_VD, target_T = inputs(20, 50, 8)
    target_T[7] = wrong
    with pytest.raises(IndexError, match="outside the table"):
        losses.softmax_loss(queries_TD, keys_VD, target_T)


def test_torch_accepts_the_operator() -> None:
    torch.library.opcheck(torch.ops.largerec.softmax_loss, (*inputs(9, 20, 10), losses.AHEAD))
