"""Losses and both of their gradients against plain formulas, what sampling estimates, and the memory that they may take."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from largerec import objectives
from largerec.errors import LargeRecError
from largerec.kernels import cpu, losses
from largerec.objectives import (
    BCEOptions,
    GBCEOptions,
    Objective,
    SampledSoftmaxOptions,
    SoftmaxOptions,
    full_softmax,
    gbce_power,
)

TOKENS, ITEMS, WIDTH = 23, 37, 8


def inputs(tokens: int = TOKENS, items: int = ITEMS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and keys that ask for gradients, and targets."""
    generator = torch.Generator().manual_seed(seed)
    queries_TD = torch.randn(tokens, WIDTH, generator=generator, requires_grad=True)
    keys_VD = torch.randn(items, WIDTH, generator=generator, requires_grad=True)
    return queries_TD, keys_VD, torch.randint(items, (tokens,), generator=generator)


def value_and_gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves, retain_graph=True)]


def assert_same(found: torch.Tensor, wanted: torch.Tensor, *leaves: torch.Tensor, **tolerance: float) -> None:
    """Equal values, and equal gradients for each leaf."""
    pairs = zip(value_and_gradients(found, *leaves), value_and_gradients(wanted, *leaves), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, **tolerance)  # type: ignore[call-overload]


def objective_with(
    options: Any, negatives: torch.Tensor, monkeypatch: pytest.MonkeyPatch, counts: torch.Tensor | None = None
) -> Objective:
    """An objective whose sampler draws what is given."""
    objective = Objective(options, torch.ones(ITEMS, dtype=torch.long) if counts is None else counts)

    def draw(*shape: int) -> torch.Tensor:
        assert shape == tuple(negatives.shape)
        return negatives

    monkeypatch.setattr(objective, "_negatives", draw)
    return objective


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor made inside holds."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


# --- the full softmax


@pytest.mark.parametrize("block", [1, 7, ITEMS, 10**6])
@pytest.mark.parametrize("chunk", [1, ITEMS, 5 * ITEMS, TOKENS * ITEMS, 10**6])
def test_full_softmax_is_the_cross_entropy(monkeypatch: pytest.MonkeyPatch, chunk: int, block: int) -> None:
    monkeypatch.setattr(objectives, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(objectives, "BLOCK_KEYS", block)
    queries_TD, keys_VD, target_T = inputs()
    wanted = F.cross_entropy(queries_TD @ keys_VD.T, target_T)
    assert_same(full_softmax(queries_TD, keys_VD, target_T), wanted, queries_TD, keys_VD)
    through_the_recipe = Objective(SoftmaxOptions(), torch.ones(ITEMS))(queries_TD, keys_VD, target_T)
    assert_same(3 * through_the_recipe, 3 * wanted, queries_TD, keys_VD)


def test_full_softmax_when_one_table_is_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "CHUNK_ELEMENTS", 3 * ITEMS)
    _, keys_VD, target_T = inputs()
    queries_TD = keys_VD[(target_T + 1) % ITEMS] * 2
    wanted = F.cross_entropy(queries_TD @ keys_VD.T, target_T)
    assert_same(full_softmax(queries_TD, keys_VD, target_T), wanted, keys_VD)


@pytest.mark.parametrize("low_precision", [False, True])
@pytest.mark.parametrize("block", [7, 10**6])
def test_full_softmax_of_large_scores_is_finite(monkeypatch: pytest.MonkeyPatch, block: int, low_precision: bool) -> None:
    monkeypatch.setattr(objectives, "BLOCK_KEYS", block)
    queries_TD, keys_VD, target_T = inputs()
    loss = full_softmax(queries_TD * 1000, keys_VD, target_T, low_precision=low_precision)
    wanted = F.cross_entropy(queries_TD * 1000 @ keys_VD.T, target_T)
    assert loss.item() == pytest.approx(wanted.item(), rel=0.02 if low_precision else 1e-5)
    assert all(part.isfinite().all() for part in value_and_gradients(loss, queries_TD, keys_VD))


def test_full_softmax_in_bfloat16_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "CHUNK_ELEMENTS", 5 * ITEMS)
    queries_TD, keys_VD, target_T = inputs(tokens=200)
    wanted = F.cross_entropy(queries_TD @ keys_VD.T, target_T)
    objective = Objective(SoftmaxOptions(), torch.ones(ITEMS))
    found = objective(queries_TD.bfloat16(), keys_VD, target_T, low_precision=True)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(wanted.item(), rel=0.01)
    assert found.item() != wanted.item()
    for one, other in zip(
        value_and_gradients(found, queries_TD, keys_VD)[1:],
        value_and_gradients(wanted, queries_TD, keys_VD)[1:],
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("low_precision", [False, True])
def test_full_softmax_never_holds_all_scores(monkeypatch: pytest.MonkeyPatch, low_precision: bool) -> None:
    tokens, items, chunk = 300, 500, 5_000
    monkeypatch.setattr(objectives, "CHUNK_ELEMENTS", chunk)
    queries_TD, keys_VD, target_T = inputs(tokens, items)
    with Largest() as largest:
        full_softmax(queries_TD, keys_VD, target_T, low_precision=low_precision).backward()
    assert 4_000 <= largest.numel <= chunk  # the table of keys, a chunk of scores; all scores would be 150,000


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
@pytest.mark.parametrize("chunk", [ITEMS, 10**6])
def test_smoothed_softmax_is_torch_s(monkeypatch: pytest.MonkeyPatch, smoothing: float, chunk: int) -> None:
    monkeypatch.setattr(objectives, "CHUNK_ELEMENTS", chunk)
    queries_TD, keys_VD, target_T = inputs()
    wanted = F.cross_entropy(queries_TD @ keys_VD.T, target_T, label_smoothing=smoothing)
    found = Objective(SoftmaxOptions(label_smoothing=smoothing), torch.ones(ITEMS))(queries_TD, keys_VD, target_T)
    assert_same(found, wanted, queries_TD, keys_VD)


def test_smoothed_softmax_in_bfloat16_is_near() -> None:
    queries_TD, keys_VD, target_T = inputs(tokens=200)
    wanted = F.cross_entropy(queries_TD @ keys_VD.T, target_T, label_smoothing=0.3)
    found = Objective(SoftmaxOptions(label_smoothing=0.3), torch.ones(ITEMS))(
        queries_TD.bfloat16(), keys_VD, target_T, low_precision=True
    )
    assert found.item() == pytest.approx(wanted.item(), rel=0.01)
    parts = (value_and_gradients(loss, queries_TD, keys_VD)[1:] for loss in (found, wanted))
    for one, other in zip(*parts, strict=True):
        assert (one - other).norm() < 0.01 * other.norm()


def test_smoothing_of_no_rows_is_nothing() -> None:
    queries_TD, keys_VD, target_T = inputs()
    loss = full_softmax(queries_TD[:0], keys_VD, target_T[:0], smoothing=0.1)
    assert [float(part.abs().sum()) for part in value_and_gradients(loss, queries_TD, keys_VD)] == [0, 0, 0]


# --- the sampled softmax

COUNTS = (torch.arange(ITEMS) % 7) ** 3 + 1
each_sampling = pytest.mark.parametrize("sampling", ["uniform", "popularity", "mixed"])
each_sharing = pytest.mark.parametrize("shared", [True, False])


def sampled(**settings: Any) -> SampledSoftmaxOptions:
    return SampledSoftmaxOptions.model_validate(settings)


@each_sampling
@each_sharing
def test_with_logq_and_many_negatives_it_is_the_full_softmax(sampling: str, shared: bool) -> None:
    torch.manual_seed(0)
    queries_TD, keys_VD, target_T = inputs(tokens=10)
    wanted = F.cross_entropy(queries_TD @ keys_VD.T, target_T)
    found = Objective(sampled(sampling=sampling, shared=shared, negatives=60_000), COUNTS)(queries_TD, keys_VD, target_T)
    assert_same(found, wanted, queries_TD, keys_VD, rtol=0.01, atol=0.01)
    plain = Objective(sampled(sampling=sampling, shared=shared, negatives=60_000, logq=False), COUNTS)
    assert plain(queries_TD, keys_VD, target_T).item() > wanted.item() + 2  # so the correction is what makes them equal


@each_sharing
@pytest.mark.parametrize("logq", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_it_is_the_formula(monkeypatch: pytest.MonkeyPatch, shared: bool, logq: bool, share: float) -> None:
    negatives = 9
    queries_TD, keys_VD, target_T = inputs()
    negative_TK = torch.randint(ITEMS, (1 if shared else TOKENS, negatives), generator=torch.Generator().manual_seed(3))
    negative_TK[0, 4] = target_T[0]  # a hit, at least this one
    drawn = negative_TK[0] if shared else negative_TK
    mixture = {"sampling": "mixed", "uniform_share": share} if share else {"sampling": "popularity"}
    options = sampled(shared=shared, negatives=negatives, logq=logq, **mixture)
    objective = objective_with(options, drawn, monkeypatch, COUNTS)
    q = share / ITEMS + (1 - share) * COUNTS / COUNTS.sum()
    losses = []
    for t in range(TOKENS):
        own = int(target_T[t])
        others = [int(item) for item in negative_TK[0 if shared else t] if int(item) != own]
        logits = [queries_TD[t] @ keys_VD[own]]
        for item in others:
            correction = math.log(len(others) * q[item] / (1 - q[own])) if logq else 0.0
            logits.append(queries_TD[t] @ keys_VD[item] - correction)
        losses.append(torch.logsumexp(torch.stack(logits), 0) - logits[0])
    assert_same(objective(queries_TD, keys_VD, target_T), torch.stack(losses).mean(), queries_TD, keys_VD)


@each_sharing
@pytest.mark.parametrize("logq", [True, False])
def test_negatives_that_are_all_the_target_say_nothing(monkeypatch: pytest.MonkeyPatch, shared: bool, logq: bool) -> None:
    queries_TD, keys_VD, _ = inputs()
    target_T = torch.full((TOKENS,), 5)
    drawn = torch.full((4,), 5) if shared else torch.full((TOKENS, 4), 5)
    loss = objective_with(sampled(shared=shared, negatives=4, logq=logq), drawn, monkeypatch)(queries_TD, keys_VD, target_T)
    value, *gradients = value_and_gradients(loss, queries_TD, keys_VD)
    assert abs(value) < 1e-6
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in gradients)


def test_a_catalogue_of_one_item() -> None:
    queries_TD, keys_VD, target_T = inputs(items=1)
    for options in (SoftmaxOptions(), sampled(negatives=3), sampled(negatives=3, shared=False, sampling="popularity")):
        loss = Objective(options, torch.ones(1))(queries_TD, keys_VD, target_T)
        assert loss.item() == pytest.approx(0, abs=1e-6)


ALIKE, BY_COUNT = [0.2] * 5, [0.1, 0.0, 0.5, 0.3, 0.1]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (sampled(sampling="popularity"), BY_COUNT),
        (sampled(sampling="mixed", uniform_share=0.25), [0.125, 0.05, 0.425, 0.275, 0.125]),
        (sampled(), ALIKE),
        (BCEOptions(), ALIKE),
        (GBCEOptions(), ALIKE),
    ],
)
def test_the_sampler_draws_what_it_says(options: Any, wanted: list[float]) -> None:
    torch.manual_seed(0)
    counts = torch.tensor([1, 0, 5, 3, 1])
    drawn = torch.bincount(Objective(options, counts)._negatives(100, 500).flatten(), minlength=5) / 50_000
    torch.testing.assert_close(drawn, torch.tensor(wanted), rtol=0, atol=0.01)
    assert wanted[1] > 0 or drawn[1] == 0


def test_a_share_without_a_mixture_is_refused() -> None:
    with pytest.raises(LargeRecError, match=r"uniform_share=0\.2.*sampling='popularity' mixes nothing.*sampling = mixed"):
        sampled(sampling="popularity", uniform_share=0.2)


def test_draws_follow_the_global_seed() -> None:
    queries_TD, keys_VD, target_T = inputs()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(Objective(sampled(negatives=5), COUNTS)(queries_TD, keys_VD, target_T).item())
    assert found[0] == found[1] != found[2]


# --- negatives of each position


@pytest.mark.parametrize("options", [sampled(negatives=10, shared=False), BCEOptions(negatives=10), GBCEOptions(negatives=10)])
@pytest.mark.parametrize("plain", [True, False])
def test_negatives_of_each_position_are_never_gathered_at_once(
    monkeypatch: pytest.MonkeyPatch, options: Any, plain: bool
) -> None:
    tokens, items, chunk = 500, 100, 8_000
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk)
    if plain:
        monkeypatch.setattr(cpu, "usable", lambda *_: False)
    queries_TD, keys_VD, target_T = inputs(tokens, items)
    with Largest() as largest:
        Objective(options, torch.ones(items))(queries_TD, keys_VD, target_T).backward()
    assert 5_000 <= largest.numel <= chunk  # the items drawn, a chunk of the gather; the whole gather would be 40,000


# --- binary losses


@pytest.mark.parametrize("options", [BCEOptions(negatives=6), GBCEOptions(negatives=6, calibration=0.75)])
def test_binary_losses_are_the_formula(monkeypatch: pytest.MonkeyPatch, options: BCEOptions | GBCEOptions) -> None:
    queries_TD, keys_VD, target_T = inputs()
    negative_TK = torch.randint(ITEMS, (TOKENS, 6), generator=torch.Generator().manual_seed(2))
    negative_TK[3] = target_T[3]  # hits, which never count
    rate = 6 / (ITEMS - 1)
    beta = rate * (0.75 * (1 - 1 / rate) + 1 / rate) if isinstance(options, GBCEOptions) else 1.0
    losses = []
    for t in range(TOKENS):
        loss = -beta * torch.log(torch.sigmoid(queries_TD[t] @ keys_VD[target_T[t]]))
        for item in negative_TK[t].tolist():
            if item != int(target_T[t]):
                loss = loss - torch.log(1 - torch.sigmoid(queries_TD[t] @ keys_VD[item]))
        losses.append(loss)
    found = objective_with(options, negative_TK, monkeypatch)(queries_TD, keys_VD, target_T)
    assert_same(found, torch.stack(losses).mean(), queries_TD, keys_VD, rtol=1e-4, atol=1e-5)


def test_binary_losses_of_large_scores_are_finite() -> None:
    queries_TD, keys_VD, target_T = inputs()
    loss = Objective(BCEOptions(negatives=3), torch.ones(ITEMS))(queries_TD * 1e4, keys_VD, target_T)
    assert all(part.isfinite().all() for part in value_and_gradients(loss, queries_TD, keys_VD))


@pytest.mark.parametrize(("negatives", "size"), [(1, 1000), (256, 12_000), (999, 1000)])
def test_the_power_of_gbce_runs_from_one_to_the_sampling_rate(negatives: int, size: int) -> None:
    rate = negatives / (size - 1)
    assert gbce_power(negatives, size, 0.0) == pytest.approx(1)
    assert gbce_power(negatives, size, 1.0) == pytest.approx(rate)
    assert gbce_power(negatives, size, 0.75) == pytest.approx(0.25 + 0.75 * rate)


def test_uncalibrated_gbce_is_bce(monkeypatch: pytest.MonkeyPatch) -> None:
    queries_TD, keys_VD, target_T = inputs()
    negative_TK = torch.randint(ITEMS, (TOKENS, 6), generator=torch.Generator().manual_seed(2))
    bce, gbce = (
        objective_with(options, negative_TK, monkeypatch)(queries_TD, keys_VD, target_T)
        for options in (BCEOptions(negatives=6), GBCEOptions(negatives=6, calibration=0))
    )
    assert_same(gbce, bce, queries_TD, keys_VD)
