"""Metrics of labels against slow definitions, their edges, and intervals by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largerec import task_metrics as m
from largerec.errors import LargeRecError

LAWS = settings(deadline=None, max_examples=60)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, labels and users."""
    n = draw(st.integers(1, 40))
    score = draw(st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.9]), min_size=n, max_size=n))
    label = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    user = draw(st.lists(st.integers(3, 7), min_size=n, max_size=n))
    return np.array(score), np.array(label), np.array(user)


def slow_auc(score: np.ndarray, label: np.ndarray) -> float:
    pairs = [
        (a > b) + (a == b) / 2 for a, x in zip(score, label, strict=True) for b, y in zip(score, label, strict=True) if x > y
    ]
    return sum(pairs) / len(pairs) if pairs else math.nan


def same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(one) and math.isnan(other))


@LAWS
@given(predictions())
def test_auc_is_the_share_of_pairs_in_order(given_: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, label, _ = given_
    assert same(m.auc(score, label), slow_auc(score, label))


@LAWS
@given(predictions(), st.integers(0, 100))
def test_a_weight_counts_a_prediction_so_often(given_: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int) -> None:
    score, label, _ = given_
    weight = np.random.default_rng(seed).integers(0, 3, len(score))
    assert same(m.auc(score, label, weight), slow_auc(np.repeat(score, weight), np.repeat(label, weight)))
    if weight.sum():
        probability, rows = np.stack([1 - score, score], axis=1), np.repeat(np.arange(len(score)), weight)
        found = m.normalised_entropy(probability, label, weight)
        assert same(found, m.normalised_entropy(probability[rows], label[rows]))


@LAWS
@given(predictions())
def test_gauc_is_the_mean_over_users_weighted_by_impressions(given_: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, label, user = given_
    total, weights = 0.0, 0
    for one in np.unique(user):
        own = user == one
        if 0 < label[own].sum() < own.sum():
            total, weights = total + own.sum() * slow_auc(score[own], label[own]), weights + own.sum()
    assert same(m.gauc(score, label, user), total / weights if weights else math.nan)


@LAWS
@given(predictions())
def test_log_loss_and_entropy_by_their_formulas(given_: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, label, _ = given_
    probability = np.stack([1 - score, score], axis=1)
    slow = [-(y * math.log(p) + (1 - y) * math.log(1 - p)) for p, y in zip(score, label, strict=True)]
    np.testing.assert_allclose(m.log_losses(probability, label), slow)
    rate = label.mean()
    best = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if 0 < rate < 1 else 0.0
    assert same(m.normalised_entropy(probability, label), float(np.mean(slow)) / best if best else math.nan)


def test_always_saying_the_rate_has_normalised_entropy_one() -> None:
    label = np.array([0, 0, 2, 1, 2, 2])
    share = np.bincount(label) / 6
    assert m.normalised_entropy(np.tile(share, (6, 1)), label) == pytest.approx(1.0)


def test_certain_and_wrong_costs_a_finite_number() -> None:
    assert m.log_losses([[1.0, 0.0]], [1])[0] == pytest.approx(-math.log(m.SMALLEST))


def slow_calibration_error(probability: np.ndarray, label: np.ndarray, bins: int) -> float:
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1]))
    total = 0.0
    for at in range(len(edges) + 1):
        low, high = edges[at - 1] if at else -np.inf, edges[at] if at < len(edges) else np.inf
        own = (probability > low) & (probability <= high)
        if own.any():
            total += own.mean() * abs(probability[own].mean() - label[own].mean())
    return total


@LAWS
@given(predictions(), st.integers(1, 12))
def test_calibration_error_by_its_definition(given_: tuple[np.ndarray, np.ndarray, np.ndarray], bins: int) -> None:
    score, label, _ = given_
    assert m.calibration_error(score, label, bins) == pytest.approx(slow_calibration_error(score, label, bins), abs=1e-12)


def test_calibration_error_of_true_probabilities_is_small_and_of_halved_ones_is_not() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(20_000)
    label = (rng.random(20_000) < probability).astype(int)
    assert m.calibration_error(probability, label) < 0.01
    assert m.calibration_error(probability / 2, label) == pytest.approx(0.25, abs=0.01)


def test_the_mean_label() -> None:
    np.testing.assert_allclose(m.mean_label(np.array([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]])), [0.75, 1.5])


def test_a_summary_has_the_metrics_and_intervals_that_hold_them() -> None:
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(100), 6)
    score = rng.random(600)
    label = (rng.random(600) < score).astype(int)
    probability = np.stack([1 - score, score], axis=1)
    found = m.summarise(probability, label, user, samples=300, seed=0)
    assert found == m.summarise(probability, label, user, samples=300, seed=0)
    assert (found["n"], found["users"], found["rate"]) == (600, 100, label.mean())
    assert found["auc"] == m.auc(score, label) and found["gauc"] == m.gauc(score, label, user)
    assert found["log_loss"] == pytest.approx(m.log_losses(probability, label).mean())
    assert found["ne"] == pytest.approx(m.normalised_entropy(probability, label))
    assert found["ece"] == m.calibration_error(score, label)
    assert sum(b["n"] for b in found["reliability"]) == 600
    assert found["intervals"].keys() == {"auc", "gauc", "log_loss", "ne"}
    for name, (low, high) in found["intervals"].items():
        assert low < found[name] < high and high - low < 0.25
    auc_G, count_G = m.user_aucs(score, label, user)
    assert found["gauc_users"] == (~np.isnan(auc_G)).sum() and count_G.tolist() == [6.0] * 100


def test_intervals_are_those_of_written_out_resamples() -> None:
    rng = np.random.default_rng(2)
    user, score, label = rng.integers(0, 9, 60), rng.random(60), rng.integers(0, 2, 60)
    found = m.summarise(np.stack([1 - score, score], axis=1), label, user, samples=50, level=0.9, seed=4)
    generator, users = np.random.default_rng(4), np.unique(user)
    aucs, gaucs = [], []
    for _ in range(50):
        drawn = users[generator.integers(len(users), size=len(users))]
        rows = np.concatenate([np.flatnonzero(user == one) for one in drawn])
        copy = np.repeat(np.arange(len(drawn)), [(user == one).sum() for one in drawn])  # a user drawn twice is two users
        aucs.append(slow_auc(score[rows], label[rows]))
        gaucs.append(m.gauc(score[rows], label[rows], copy))
    for name, values in (("auc", aucs), ("gauc", gaucs)):
        np.testing.assert_allclose(found["intervals"][name], np.nanquantile(values, [0.05, 0.95]))


def test_more_labels_than_two() -> None:
    probability = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.5, 0.25, 0.25]])
    found = m.summarise(probability, [0, 2, 0, 1], [0, 0, 1, 1], samples=20, seed=0)
    assert found["accuracy"] == 0.5 and found["rates"] == [0.5, 0.25, 0.25]
    assert found["log_loss"] == pytest.approx(-np.log([0.7, 0.8, 0.3, 0.25]).mean())
    assert "auc" not in found and found["intervals"].keys() == {"accuracy", "log_loss", "ne"}


def test_labels_that_are_all_alike_have_no_auc_and_no_intervals_of_it() -> None:
    found = m.summarise([[0.4, 0.6], [0.3, 0.7]], [1, 1], [0, 1], samples=20, seed=0)
    assert (found["auc"], found["gauc"], found["ne"], found["gauc_users"]) == (None, None, None, 0)
    assert found["intervals"].keys() == {"log_loss"}


def test_what_no_resample_can_say_has_no_interval() -> None:
    found = m.summarise([[0.4, 0.6], [0.7, 0.3]], [1, 0], [0, 1], samples=1, seed=0)  # the one resample is of one user, twice
    assert (found["auc"], found["gauc"]) == (1.0, None)
    assert found["intervals"].keys() == {"log_loss"}


def test_what_is_no_prediction_is_refused() -> None:
    with pytest.raises(LargeRecError, match="lengths disagree: 2 scores, 1 labels"):
        m.auc([0.1, 0.2], [1])
    with pytest.raises(LargeRecError, match="scores holds NaN"):
        m.auc([0.1, math.nan], [1, 0])
    with pytest.raises(LargeRecError, match="no event"):
        m.summarise(np.empty((0, 2)), [], [], seed=0)


def test_a_user_s_own_earlier_share_ranks_within_the_user_against_itself() -> None:
    """Coins of each user's own: the share so far says who likes much (AUC above 1/2), but within a user a like stands before the
    events that know of it, so its GAUC is below 1/2, while the true rate, the same for all of a user's events, has 1/2."""
    rng = np.random.default_rng(0)
    users, events = 500, 40
    rate_U = rng.beta(0.5, 20, users)
    label_UE = (rng.random((users, events)) < rate_U[:, None]).astype(float)
    share_UE = (np.cumsum(label_UE, 1) - label_UE + 0.5) / (np.arange(events) + 20)
    user_N = np.repeat(np.arange(users), events)
    assert m.auc(share_UE.ravel(), label_UE.ravel()) > 0.65
    assert m.gauc(share_UE.ravel(), label_UE.ravel(), user_N) < 0.3
    assert m.gauc(np.repeat(rate_U, events), label_UE.ravel(), user_N) == 0.5
