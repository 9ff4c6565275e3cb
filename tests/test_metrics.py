"""Metrics against an independent library, worked examples and their own laws; resampling against known distributions."""

from __future__ import annotations

import math
import time
from typing import Any

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, Success, nDCG
from pydantic import ValidationError

from largerec import metrics
from largerec.errors import LargeRecError
from largerec.metrics import (
    EvaluateOptions,
    average_rank,
    bootstrap_intervals,
    coverage,
    gini,
    mrr,
    ndcg,
    paired_test,
    popularity_bias,
    recall,
    slice_masks,
    summarise,
)

LAWS = settings(deadline=None, max_examples=40)
ranks_with_ties = st.lists(
    st.one_of(st.integers(2, 400).map(lambda twice: twice / 2), st.just(math.inf)), min_size=1, max_size=40
)
cutoffs = st.integers(1, 50)


# --- agreement with an independent library


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_ir_measures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, items = 30, 60
    scores = np.stack([rng.permutation(items) for _ in range(rows)]).astype(np.float64)
    target = rng.integers(items, size=rows)
    relevant = {str(row): {str(target[row]): 1} for row in range(rows)}
    run = {str(row): {str(item): float(scores[row, item]) for item in range(items)} for row in range(rows)}
    asked = [measure @ k for k in (1, 5, 10, 20) for measure in (nDCG, RR, Success, R)]
    theirs = {(str(m.measure), m.query_id): m.value for m in ir_measures.iter_calc(asked, relevant, run)}
    rank = average_rank(scores, target)
    for k in (1, 5, 10, 20):
        for name, ours in (("nDCG", ndcg), ("RR", mrr), ("Success", recall), ("R", recall)):
            expected = [theirs[f"{name}@{k}", str(row)] for row in range(rows)]
            np.testing.assert_allclose(ours(rank, k), expected, atol=1e-6)
    means = ir_measures.calc_aggregate(asked, relevant, run)
    summary = summarise(rank, [1, 5, 10, 20])
    for measure, name in ((nDCG @ 10, "ndcg@10"), (RR @ 10, "mrr@10"), (R @ 10, "recall@10"), (Success @ 10, "hr@10")):
        assert summary[name] == pytest.approx(means[measure], abs=1e-6)


# --- ranks


def test_ties_share_the_average_rank() -> None:
    scores = np.array([[3.0, 2.0, 2.0, 1.0]] * 4)
    np.testing.assert_array_equal(average_rank(scores, [0, 1, 2, 3]), [1.0, 2.5, 2.5, 4.0])


def test_targets_that_cannot_be_recommended_have_rank_inf_and_masked_items_do_not_compete() -> None:
    scores = np.array([[-np.inf, 2.0, -np.inf, 1.0]] * 3)
    rank = average_rank(scores, [0, 3, -1])
    np.testing.assert_array_equal(rank, [np.inf, 2.0, np.inf])
    np.testing.assert_array_equal(recall(rank, 10**6), [0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        ([[0.0, math.nan]], [0], "row 0, item 1 is NaN"),
        ([[0.0, 1.0]], [2], "item 2 in row 0"),
        ([[0.0, 1.0]], [-2], "item -2 in row 0"),
        ([[0.0, 1.0]], [0, 1], "give \\(N, V\\) scores and N targets"),
        ([[0.0, 1.0]], [0.5], "whole numbers"),
    ],
)
def test_average_rank_refuses(scores: Any, target: Any, message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        average_rank(scores, target)


@LAWS
@given(items=st.integers(1, 30), score=st.floats(-1e6, 1e6), data=st.data())
def test_constant_scores_put_every_target_in_the_middle(items: int, score: float, data: st.DataObject) -> None:
    target = data.draw(st.integers(0, items - 1))
    assert average_rank(np.full((1, items), score), [target])[0] == (items + 1) / 2


@LAWS
@given(scores=st.lists(st.integers(-4, 4), min_size=1, max_size=20), order=st.randoms())
def test_ranks_of_a_row_are_a_permutation_invariant_sharing_of_the_places(scores: list[int], order: Any) -> None:
    items = len(scores)
    rank = average_rank(np.array([scores] * items), np.arange(items))
    assert rank.sum() == items * (items + 1) / 2
    shuffled = list(range(items))
    order.shuffle(shuffled)
    moved = average_rank(np.array([[scores[item] for item in shuffled]] * items), np.arange(items))
    np.testing.assert_array_equal(moved, rank[shuffled])


# --- metrics


def test_half_ranks_by_hand() -> None:
    rank = np.array([1.0, 1.5, 10.0, 10.5, np.inf])
    np.testing.assert_array_equal(recall(rank, 10), [1, 1, 1, 0, 0])
    np.testing.assert_allclose(ndcg(rank, 10), [1.0, 1 / math.log2(2.5), 1 / math.log2(11), 0, 0])
    np.testing.assert_allclose(mrr(rank, 10), [1.0, 1 / 1.5, 0.1, 0, 0])
    np.testing.assert_array_equal(recall(rank, 1), [1, 0, 0, 0, 0])
    assert summarise(rank, [10])["recall@10"] == pytest.approx(0.6)


@LAWS
@given(rank=ranks_with_ties, k=cutoffs, more=st.integers(0, 50))
def test_metrics_stay_in_range_grow_with_k_and_keep_their_order(rank: list[float], k: int, more: int) -> None:
    for metric in (recall, ndcg, mrr):
        value = metric(rank, k)
        assert ((value >= 0) & (value <= 1)).all()
        assert (metric(rank, k + more) >= value).all()
    assert (ndcg(rank, k) <= recall(rank, k)).all()
    assert (mrr(rank, k) <= ndcg(rank, k) + 1e-12).all()


@LAWS
@given(rank=ranks_with_ties, k=cutoffs, order=st.randoms())
def test_summary_names_its_metrics_and_ignores_row_order(rank: list[float], k: int, order: Any) -> None:
    summary = summarise(rank, [k, k + 1])
    assert set(summary) == {f"{name}@{cut}" for name in ("recall", "hr", "ndcg", "mrr") for cut in (k, k + 1)}
    assert summary[f"hr@{k}"] == summary[f"recall@{k}"]
    shuffled = list(rank)
    order.shuffle(shuffled)
    assert summarise(shuffled, [k, k + 1]) == pytest.approx(summary)


@pytest.mark.parametrize("wrong", [0.5, 0.0, -1.0, math.nan])
def test_impossible_ranks_are_refused(wrong: float) -> None:
    with pytest.raises(LargeRecError, match=r"rank of row 1 is .*ranks start at 1"):
        summarise([1.0, wrong], [10])


def test_empty_ranks_and_impossible_cutoffs_are_refused() -> None:
    with pytest.raises(LargeRecError, match="no targets"):
        summarise([], [10])
    with pytest.raises(LargeRecError, match="cutoff k is 0"):
        recall([1.0], 0)


# --- intervals


def _bernoulli(users: int, each: int, p: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of users whose targets are all alike, and the user of each target."""
    return (np.random.default_rng(seed).random(users) < p).astype(np.float64).repeat(each), np.arange(users).repeat(each)


def test_interval_of_a_bernoulli_sample_has_the_width_theory_gives() -> None:
    value, group = _bernoulli(4000, 1, 0.3, seed=1)
    p = value.mean()
    margin = 1.96 * math.sqrt(p * (1 - p) / len(value))
    low, high = bootstrap_intervals({"hit": value}, group, samples=4000, seed=0)["hit"]
    assert (low, high) == pytest.approx((p - margin, p + margin), abs=0.1 * margin)
    narrow = bootstrap_intervals({"hit": value}, group, samples=4000, level=0.5, seed=0)["hit"]
    assert narrow[1] - narrow[0] == pytest.approx(2 * margin * 0.6745 / 1.96, rel=0.1)


def test_drawing_user_by_user_gives_the_width_theory_gives() -> None:
    value = np.random.default_rng(2).normal(size=2000)  # no two users alike
    margin = 1.96 * value.std() / math.sqrt(len(value))
    low, high = bootstrap_intervals({"x": value}, np.arange(2000), samples=4000, seed=0)["x"]
    assert (low, high) == pytest.approx((value.mean() - margin, value.mean() + margin), abs=0.1 * margin)


def test_alike_targets_of_a_user_count_as_one_observation() -> None:
    value, group = _bernoulli(500, 9, 0.3, seed=3)
    grouped = bootstrap_intervals({"hit": value}, group, seed=0)["hit"]
    single = bootstrap_intervals({"hit": value}, np.arange(len(value)), seed=0)["hit"]
    assert (grouped[1] - grouped[0]) / (single[1] - single[0]) == pytest.approx(3.0, rel=0.15)


def test_users_weigh_by_their_targets() -> None:
    """A resample of two users is one of three cases, so the interval ends at the extremes: means over targets, not over users."""
    value, group = np.array([1.0, 0.0, 0.0, 1.0]), np.array([7, 7, 7, 2])
    low, high = bootstrap_intervals({"x": value}, group, seed=0)["x"]
    assert (low, high) == pytest.approx((1 / 3, 1.0))
    assert bootstrap_intervals({"x": value}, group, samples=99, level=0.01, seed=0)["x"] == pytest.approx([0.5, 0.5])


def test_intervals_repeat_by_seed_and_move_with_it() -> None:
    value = np.random.default_rng(0).random(300)
    first, again, other = (bootstrap_intervals({"x": value}, np.arange(300), seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_identical_users_have_an_interval_without_width_and_no_metrics_have_no_intervals() -> None:
    assert bootstrap_intervals({"x": np.full(50, 0.25)}, np.arange(50), seed=0)["x"] == pytest.approx([0.25, 0.25])
    assert bootstrap_intervals({}, [], seed=0) == {}


@pytest.mark.parametrize("alike", [True, False])
def test_small_chunks_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch, alike: bool) -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random((2, 400))
    if alike:
        a, b = a.round(), b.round()
    group = np.arange(400) // 2
    whole = bootstrap_intervals({"a": a, "b": b}, group, samples=50, seed=1)
    tested = paired_test(a, b, group, samples=200, seed=1)
    monkeypatch.setattr(metrics, "_CHUNK_CELLS", 700)
    assert list(metrics._chunks(50, 200)) == [3] * 16 + [2]
    parts = bootstrap_intervals({"a": a, "b": b}, group, samples=50, seed=1)
    assert {name: pytest.approx(ends) for name, ends in whole.items()} == parts
    assert paired_test(a, b, group, samples=200, seed=1) == pytest.approx(tested)


@pytest.mark.parametrize(
    ("values", "group", "extra", "message"),
    [
        ([1.0, 0.0], [1], {}, "one value and one user per target"),
        ([], [], {}, "no targets"),
        ([1.0, math.inf], [1, 2], {}, "'x' is inf in row 1"),
        ([1.0], [1], {"level": 1.0}, "level is 1.0"),
        ([1.0], [1], {"samples": 0}, "samples is 0"),
        ([1.0], [0.5], {}, "group_N has type float64"),
    ],
)
def test_bootstrap_refuses(values: Any, group: Any, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        bootstrap_intervals({"x": np.array(values)}, group, seed=0, **extra)


def test_resampling_stays_fast_at_the_size_of_a_large_evaluation() -> None:
    """200k targets of 30k users, no two users alike; the bound is several times what one slow core needs."""
    rng = np.random.default_rng(0)
    group = rng.integers(30_000, size=200_000)
    values = {str(number): rng.random(200_000) for number in range(6)}
    start = time.process_time()
    bootstrap_intervals(values, group, samples=1000, seed=0)
    assert time.process_time() - start < 5.0


# --- paired test


def test_identical_models_do_not_differ() -> None:
    value = np.random.default_rng(0).random(100)
    result = paired_test(value, value, np.arange(100), samples=500, seed=0)
    assert result == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}


def test_a_clear_difference_is_found_and_has_the_sign_of_the_better_model() -> None:
    rng = np.random.default_rng(1)
    b = rng.random(400)
    a = b + rng.normal(0.1, 0.2, size=400)
    better = paired_test(a, b, np.arange(400), samples=999, seed=0)
    assert better["difference"] == pytest.approx((a - b).mean())
    assert 0 < better["low"] < better["difference"] < better["high"]
    assert better["p_value"] == 1 / 1000
    worse = paired_test(b, a, np.arange(400), samples=999, seed=0)
    assert worse["difference"] == -better["difference"]
    assert worse["high"] < 0


def test_p_value_is_that_of_all_sign_patterns() -> None:
    """Gaps 1, 2, 3 have 8 sign patterns; |sum| = 6 for 2 of them: p is 1/4."""
    assert paired_test([1.0, 2.0, 3.0], np.zeros(3), [0, 1, 2], samples=8000, seed=0)["p_value"] == pytest.approx(0.25, abs=0.02)


def test_gaps_of_one_user_flip_together() -> None:
    """Ten targets of one user are one coin: both signs are as extreme, whatever the gap."""
    assert paired_test(np.ones(10), np.zeros(10), np.zeros(10, dtype=int), samples=100, seed=0)["p_value"] == 1.0


@pytest.mark.parametrize("each", [1, 4])
def test_equal_models_are_called_different_about_as_often_as_the_level_says(each: int) -> None:
    rng = np.random.default_rng(4)
    group = np.arange(40).repeat(each)
    found = 0
    for trial in range(300):
        gap = rng.normal(size=40).repeat(each)
        found += paired_test(gap, np.zeros(40 * each), group, samples=199, seed=trial)["p_value"] <= 0.05
    assert 5 <= found <= 28  # 15 expected; these ends are about 3 standard deviations away


def test_paired_test_refuses_different_targets() -> None:
    with pytest.raises(LargeRecError, match="same targets"):
        paired_test([1.0, 0.0], [1.0], [0, 1], seed=0)


# --- the lists themselves


def test_coverage_and_gini_by_hand() -> None:
    top = [[0, 1], [0, -1]]
    assert coverage(top, 4) == 0.5
    assert gini([[0, 1], [2, 3]], 4) == 0.0
    assert gini([[2], [2]], 4) == pytest.approx(0.75)
    assert gini(top, 4) == pytest.approx((-3 * 0 - 1 * 0 + 1 * 1 + 3 * 2) / (4 * 3))


def test_popularity_bias_is_the_mean_of_the_means_of_the_lists() -> None:
    found = popularity_bias([[0, 1], [2, -1], [-1, -1]], [10, 4, 1])
    assert found == pytest.approx({"arp": (7 + 1) / 2, "arp_normalised": 0.4})
    assert popularity_bias([[0], [0]], [10, 4, 1])["arp_normalised"] == 1.0


@LAWS
@given(lists=st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=20))
def test_list_statistics_stay_in_range(lists: list[list[int]]) -> None:
    assert coverage(lists, 8) == len({item for row in lists for item in row}) / 8
    assert -1e-12 <= gini(lists, 8) <= 1 - 1 / 8
    assert 0 <= popularity_bias(lists, np.arange(8))["arp_normalised"] <= 1


def test_list_statistics_refuse_foreign_items_and_empty_lists() -> None:
    with pytest.raises(LargeRecError, match="item 4 in row 1"):
        coverage([[0], [4]], 4)
    with pytest.raises(LargeRecError, match="at least one item"):
        coverage([[0]], 0)
    with pytest.raises(LargeRecError, match="one row of K item indices"):
        coverage([0, 1], 4)
    for call in (lambda: gini([[-1]], 4), lambda: popularity_bias([[-1]], [1, 2])):
        with pytest.raises(LargeRecError, match="nothing was recommended"):
            call()
    with pytest.raises(LargeRecError, match="no item with a training event"):
        popularity_bias([[0]], [0, 0])


# --- slices


def test_slices_by_hand() -> None:
    count = [100, 50, 9, 8, 7, 6, 5, 4, 3, 2, 0]  # 10 items in training: the head is the first 2
    masks = slice_masks([100, 50, 9, 2, 0], [0, 4, 5, 49, 50], count)
    names = {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}
    assert names == {
        "head": [0, 1],
        "tail": [2, 3],
        "cold": [4],
        "history 0-4": [0, 1],
        "history 5-9": [2],
        "history 20-49": [3],
        "history 50+": [4],
    }


def test_the_head_is_rounded_up_to_whole_items() -> None:
    assert slice_masks([9, 8, 7], [1, 1, 1], [9, 8, 7, 6, 5, 4])["head"].tolist() == [True, True, False]


def test_items_tied_with_the_end_of_the_head_belong_to_it_and_cold_targets_never_do() -> None:
    assert slice_masks([5, 5], [1, 1], [5] * 10)["head"].all()
    assert set(slice_masks([0], [1], [0, 0])) == {"cold", "history 0-4"}


@LAWS
@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99)), min_size=1, max_size=30), count=st.lists(st.integers(0, 30))
)
def test_slices_part_the_targets(rows: list[tuple[int, int]], count: list[int]) -> None:
    masks = slice_masks([row[0] for row in rows], [row[1] for row in rows], count)
    by_item = [mask for name, mask in masks.items() if not name.startswith("history")]
    by_history = [mask for name, mask in masks.items() if name.startswith("history")]
    for part in (by_item, by_history):
        np.testing.assert_array_equal(np.sum(part, axis=0), np.ones(len(rows)))
    assert all(mask.any() for mask in masks.values())


def test_slices_refuse_uneven_and_negative_rows() -> None:
    with pytest.raises(LargeRecError, match="2 target counts but 1 history lengths"):
        slice_masks([1, 2], [1], [1])
    with pytest.raises(LargeRecError, match="history_length_N holds -3 in row 1"):
        slice_masks([1, 2], [1, -3], [1])


# --- options


def test_options_default_and_accept_a_list() -> None:
    options = EvaluateOptions()
    assert (options.k, options.bootstrap_samples, options.level) == ((5, 10, 20), 1000, 0.95)
    assert options.conditioned == 0 and options.exposure.by is None
    assert EvaluateOptions.model_validate({"k": [1, 10]}).k == (1, 10)


@pytest.mark.parametrize(
    "wrong", [{"k": []}, {"k": [0]}, {"k": [10, 5]}, {"k": [5, 5]}, {"bootstrap_samples": 0}, {"level": 1.0}]
)
def test_options_refuse(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        EvaluateOptions.model_validate(wrong)


def test_options_refuse_an_unknown_key_with_the_nearest_right_one() -> None:
    with pytest.raises(LargeRecError, match="bootstrap_samples"):
        EvaluateOptions.model_validate({"bootstrap_sample": 5})


# --- calibration ----------------------------------------------------------------------------------------------------------


def test_reliability_by_hand() -> None:
    """Two bins: of the unlikely ones a quarter came true, of the likely ones all."""
    found = metrics.reliability([0.1, 0.2, 0.1, 0.2, 0.8, 0.6, 0.8, 0.6], [0, 1, 0, 0, 1, 1, 1, 1], range(8), bins=2, seed=0)
    assert [(b["n"], b["predicted"], b["observed"]) for b in found] == [
        (4, pytest.approx(0.15), 0.25),
        (4, pytest.approx(0.7), 1.0),
    ]
    assert found[0]["low"] <= 0.25 <= found[0]["high"] and found[1]["low"] == found[1]["high"] == 1.0


def test_reliability_of_true_probabilities_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    p_N = rng.random(20_000) ** 3
    found = metrics.reliability(p_N, rng.random(20_000) < p_N, np.arange(20_000) // 10, seed=1)
    assert len(found) == 10 and sum(b["n"] for b in found) == 20_000
    assert all(abs(b["predicted"] - b["observed"]) < 0.05 for b in found)
    assert sum(b["low"] <= b["predicted"] <= b["high"] for b in found) >= 7


def test_equal_probabilities_share_a_bin_and_nonsense_is_refused() -> None:
    assert len(metrics.reliability([0.5] * 9, [1.0] * 9, range(9), seed=0)) == 1
    with pytest.raises(LargeRecError, match="shapes disagree"):
        metrics.reliability([0.5], [1.0, 0.0], [1, 2], seed=0)
    with pytest.raises(LargeRecError, match="not finite"):
        metrics.reliability([math.nan], [1.0], [1], seed=0)
