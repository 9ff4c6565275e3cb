"""The best possible recommender: equal to a sum over all hidden paths, and to the frequencies of the world."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from scipy import stats

from largerec.errors import LargeRecError
from largerec.oracle import Asking, Histories, beliefs, negative_log, next_item_probabilities
from largerec.sequences import Sequences, SplitOptions, build_sequences
from largerec.simulate import log_of_world, simulate
from largerec.world import DAYS, PERIOD_DAYS, PERIODS, SimulateOptions, World

# --- the slow truth: every hidden path of a tiny world, by the words of world.py --------------------------------------------

Event = tuple[int, int, int]  # item, stage, day


def new_item_probability(world: World, item: int, interest: int, period: int, history: list[Event]) -> float:
    """Of an item that is taken as a new one, given the interest; by going through the items one by one."""
    had, habits = {event[0] for event in history}, world.habits
    there = {v: float(world.weight_RV[period, v]) for v in range(len(world.category_V)) if v not in had}
    there = {v: weight for v, weight in there.items() if weight > 0}
    if item not in there:
        return 0.0
    of_all = there[item] / sum(there.values())
    own = {v: weight for v, weight in there.items() if world.category_V[v] == interest}
    of_interest = own.get(item, 0.0) / sum(own.values()) if own else of_all
    if not history:
        return of_interest
    last, stage, _ = history[-1]
    followed = {int(world.sequel_V[last]): habits.sequel}
    if stage < 2:
        followed[int(world.substitute_V[last])] = habits.substitute
    followed = {goal: probability for goal, probability in followed.items() if goal in there}
    free = (1 - habits.wander) * of_interest + habits.wander * of_all
    return followed.get(item, 0.0) + (1 - sum(followed.values())) * free


def joint(world: World, events: list[Event]) -> float:
    """Probability of the items and stages at the given days: the sum over preferences and over every path of the interest."""
    steps = world.options.behaviours == "steps"

    def after(n: int, preference: int, interest: int) -> float:
        """Probability of the events from n on, if the interest was ``interest`` at event n - 1 (or at the start)."""
        if n == len(events):
            return 1.0
        item, stage, day = events[n]
        level = int(world.price_level_V[item])
        reached = float(stage == 0) if steps else float(world.reach_PLS[preference, level, stage])
        go_on = 0.0
        if n and steps:
            last, last_stage, _ = events[n - 1]
            go_on = float(world.go_on_PLS[preference, world.price_level_V[last], last_stage])
            if item == last:
                return go_on * after(n + 1, preference, interest) if stage == last_stage + 1 else 0.0
        total = 0.0
        for category in range(len(world.names)):
            habits = world.habits
            moved = (1 - habits.stay - habits.chain) * world.favourite_PC[preference, category]
            moved += habits.stay * (category == interest) + habits.chain * (category == world.next_C[interest])
            moved = float(category == interest) if n == 0 else moved
            taken = new_item_probability(world, item, category, day // PERIOD_DAYS, events[:n])
            if moved * taken:
                total += moved * (1 - go_on) * taken * reached * after(n + 1, preference, category)
        return total

    return sum(
        float(world.share_P[p] * world.favourite_PC[p, c]) * after(0, p, c)
        for p in range(len(world.share_P))
        for c in range(len(world.names))
    )


def law_by_paths(world: World, history: list[Event], period_R: np.ndarray) -> np.ndarray:
    found_V = np.zeros(len(world.category_V))
    for period in np.flatnonzero(period_R):
        for item in range(len(found_V)):
            for stage in range(3):
                found_V[item] += period_R[period] * joint(world, [*history, (item, stage, int(period) * PERIOD_DAYS)])
    return found_V / joint(world, history)


def one_history(history: list[Event], next_day: int) -> Histories:
    item_N, stage_N, day_N = (np.array(column) for column in zip(*history, (0, 0, next_day), strict=True))
    return Histories(np.array([0, len(item_N)]), item_N, stage_N, day_N)


def some_history(world: World, length: int, seed: int) -> list[Event]:
    """Items that are there and new; the second follows a rule, the last has a substitute and the stage ``seed`` modulo 3."""
    rng = np.random.default_rng(seed)
    history: list[Event] = []
    for n in range(length):
        day = int(rng.integers(30 * n // length, 30 * (n + 1) // length))
        had = [event[0] for event in history]
        there = np.setdiff1d(np.flatnonzero(world.weight_RV[day // PERIOD_DAYS] > 0), had)
        item = int(rng.choice(there))
        if n == 1 and world.sequel_V[had[0]] in there:
            item = int(world.sequel_V[had[0]])
        stage = int(rng.integers(3))
        if n == length - 1:
            lasting = (world.weight_RV[day // PERIOD_DAYS :] > 0).all(axis=0)
            item = int(
                rng.choice([v for v in there if lasting[goal := world.substitute_V[v]] and goal in there] or there.tolist())
            )
            stage = seed % 3
        stage = stage if world.options.behaviours == "deepest" else 0
        history.append((item, stage, day))
    if world.options.behaviours == "steps":
        history[-1:] = [history[-1], (history[-1][0], 1, history[-1][2] + 1)]  # and the last one goes to the cart
    return history


TINY = SimulateOptions(users=4, items=20, events=20, categories=3, preferences=2, difficulty=0.4, seed=3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("behaviours", ["deepest", "steps", "view"])
def test_the_filter_is_the_sum_over_all_hidden_paths(behaviours: str, seed: int) -> None:
    world = World(TINY.model_copy(update={"behaviours": behaviours, "steady": behaviours == "view", "seed": seed}))
    history = some_history(world, 3, seed)
    day = history[-1][2] + 5
    found_QV = next_item_probabilities(world, one_history(history, day), np.array([len(history)]), Asking(query_time=True))
    np.testing.assert_allclose(
        found_QV[0], law_by_paths(world, history, np.eye(PERIODS)[day // PERIOD_DAYS]), rtol=1e-9, atol=1e-15
    )
    assert found_QV.sum() == pytest.approx(1.0)


def test_a_category_that_is_used_up_leaves_the_whole_catalogue() -> None:
    """Categories of two items each: after two of one and one of another, interests in the first find nothing there."""
    world = World(TINY.model_copy(update={"categories": 10, "preferences": 1}))
    always = np.flatnonzero((world.weight_RV > 0).all(axis=0))
    pair = next(always[world.category_V[always] == c] for c in range(10) if (world.category_V[always] == c).sum() == 2)
    other = next(v for v in always if v not in pair)
    history = [(int(pair[0]), 0, 3), (int(pair[1]), 1, 4), (int(other), 2, 9)]
    found_QV = next_item_probabilities(world, one_history(history, 12), np.array([3]), Asking(query_time=True))
    np.testing.assert_allclose(found_QV[0], law_by_paths(world, history, np.eye(PERIODS)[4]), rtol=1e-9, atol=1e-15)
    two = one_history(history[:2], 12)
    after_two_QV = next_item_probabilities(world, two, np.array([2]), Asking(query_time=True))
    np.testing.assert_allclose(after_two_QV[0], law_by_paths(world, history[:2], np.eye(PERIODS)[4]), rtol=1e-9, atol=1e-15)


def test_without_query_time_the_law_is_mixed_over_the_periods_to_come() -> None:
    world = World(TINY)
    history = some_history(world, 3, 1)
    day = history[-1][2]
    period_R = world.next_day_law()[day].reshape(PERIODS, PERIOD_DAYS).sum(axis=1)
    assert np.count_nonzero(period_R) > 15
    found_QV = next_item_probabilities(world, one_history(history, 0), np.array([3]))
    np.testing.assert_allclose(found_QV[0], law_by_paths(world, history, period_R), rtol=1e-9, atol=1e-15)


def test_a_span_of_days_cuts_the_law_of_the_periods() -> None:
    world, at = World(TINY), np.array([3])
    histories = one_history(some_history(world, 3, 1), 0)
    law_R = Asking(first_day=45, last_day=50).periods(world, histories, at)[0]
    assert np.flatnonzero(law_R).tolist() == [15, 16] and law_R.sum() == pytest.approx(1.0)
    whole_R = Asking().periods(world, histories, at)[0]
    assert law_R[15] / law_R[16] == pytest.approx(whole_R[15] / whole_R[16])


# --- Monte Carlo ----------------------------------------------------------------------------------------------------------

MANY = SimulateOptions(users=20_000, items=24, events=100_000, categories=3, preferences=3, difficulty=0.3, seed=8)


@functools.cache
def sampled(behaviours: str) -> tuple[World, Sequences]:
    """Twenty thousand users of a small world with five events each."""
    world = World(MANY.model_copy(update={"behaviours": behaviours}))
    return world, build_sequences(log_of_world(world), SplitOptions())


def chi_square(histories: Histories, row_Q: np.ndarray, probability_QV: np.ndarray, group_Q: np.ndarray, most: int) -> float:
    """Pearson's statistic of the next items of the largest groups of histories, as a number of standard deviations."""
    keys, counts = np.unique(group_Q, return_counts=True)
    statistic, freedom = 0.0, 0
    for key in keys[np.argsort(-counts, kind="stable")[:most]]:
        some = group_Q == key
        expected_V = probability_QV[some].sum(axis=0)
        seen_V = np.bincount(histories.item_N[row_Q[some]], minlength=len(expected_V))
        large = expected_V >= 5
        rest = np.array([expected_V[~large].sum(), seen_V[~large].sum()])
        statistic += (((seen_V - expected_V) ** 2)[large] / expected_V[large]).sum()
        statistic += (rest[1] - rest[0]) ** 2 / rest[0] if rest[0] > 1 else 0.0
        freedom += int(large.sum()) - int(rest[0] <= 1)
    assert freedom > 200
    return float((statistic - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("behaviours", ["deepest", "steps", "view"])
@pytest.mark.parametrize("query_time", [False, True])
def test_probabilities_are_the_frequencies_of_many_continuations(behaviours: str, query_time: bool) -> None:
    """Squared deviations after each last item, and after the most common pairs, are chi-square; of another world not."""
    world, sequences = sampled(behaviours)
    histories, row_Q = Histories.of(world, sequences), sequences.targets("test")
    found_QV = next_item_probabilities(world, histories, row_Q, Asking(query_time))
    last_Q, before_Q = histories.item_N[row_Q - 1], histories.item_N[row_Q - 2]
    assert abs(chi_square(histories, row_Q, found_QV, last_Q, 24)) < 4
    assert abs(chi_square(histories, row_Q, found_QV, before_Q * 24 + last_Q, 40)) < 4
    off = World(world.options.model_copy(update={"difficulty": world.options.difficulty + 0.3}))
    wrong_QV = next_item_probabilities(off, histories, row_Q, Asking(query_time))
    assert chi_square(histories, row_Q, wrong_QV, last_Q, 24) > 12


@pytest.mark.parametrize("behaviours", ["deepest", "steps", "view"])
def test_the_sampled_cross_entropy_and_ndcg_are_the_expected_ones(behaviours: str) -> None:
    world, sequences = sampled(behaviours)
    histories, row_Q = Histories.of(world, sequences), sequences.targets("test")
    found_QV, target_Q = next_item_probabilities(world, histories, row_Q), histories.item_N[row_Q]
    own_Q = found_QV[np.arange(len(row_Q)), target_Q]
    entropy_Q = stats.entropy(found_QV, axis=1)
    gap_Q = -np.log(own_Q) - entropy_Q
    assert abs(gap_Q.mean()) < 4 * gap_Q.std() / math.sqrt(len(row_Q))
    np.testing.assert_allclose(negative_log(found_QV, target_Q), -np.log(own_Q))
    gain_K = 1 / np.log2(np.arange(2, 12))
    expected_Q = -np.sort(-found_QV, axis=1)[:, :10] @ gain_K
    place_Q = (found_QV > own_Q[:, None]).sum(axis=1)
    gap_Q = np.where(place_Q < 10, gain_K[np.minimum(place_Q, 9)], 0.0) - expected_Q
    assert abs(gap_Q.mean()) < 4 * gap_Q.std() / math.sqrt(len(row_Q))
    assert 0.2 < expected_Q.mean() < 0.9


def test_less_known_is_worse() -> None:
    """The whole history beats its last event alone, and knowing the moment beats not knowing it, in cross-entropy."""
    world, sequences = sampled("deepest")
    histories, row_Q = Histories.of(world, sequences), sequences.targets("test")
    target_Q = histories.item_N[row_Q]
    whole = negative_log(next_item_probabilities(world, histories, row_Q), target_Q).mean()
    rows = np.stack([row_Q - 1, row_Q], axis=1).ravel()
    cut = Histories(np.arange(0, len(rows) + 1, 2), histories.item_N[rows], histories.stage_N[rows], histories.day_N[rows])
    shown = next_item_probabilities(world, cut, np.arange(1, len(rows), 2))
    for had_Q in (row_Q - 2, row_Q - 3, row_Q - 4):  # even if what was had is left out of the list
        shown[np.arange(len(row_Q)), histories.item_N[had_Q]] = 0.0
    short = negative_log(shown / shown.sum(axis=1, keepdims=True), target_Q).mean()
    timed = negative_log(next_item_probabilities(world, histories, row_Q, Asking(query_time=True)), target_Q).mean()
    assert timed < whole - 0.005
    assert whole < short - 0.02


def test_the_law_of_days_is_that_of_the_log() -> None:
    world, sequences = sampled("deepest")
    day_N = Histories.of(world, sequences).day_N
    first = np.setdiff1d(np.arange(len(day_N) - 1), sequences.offsets_U1[1:] - 1)
    law = world.next_day_law()
    np.testing.assert_allclose(law.sum(axis=1), 1.0)
    for day in (0, 40, DAYS - 2, DAYS - 1):
        seen_D = np.bincount(day_N[first + 1][day_N[first] == day], minlength=DAYS)
        expected_D = seen_D.sum() * law[day]
        assert seen_D.sum() > 100
        assert (np.abs(seen_D - expected_D) <= 5 * np.sqrt(expected_D) + 1e-9).all()


# --- blocks, queries, refusals ----------------------------------------------------------------------------------------------


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(SimulateOptions(users=60, items=80, events=900, categories=4, seed=2))
    sequences = build_sequences(log_of_world(world), SplitOptions())
    histories, rows = Histories.of(world, sequences), np.setdiff1d(np.arange(len(sequences.item_N)), sequences.offsets_U1)
    whole = next_item_probabilities(world, histories, rows)
    monkeypatch.setattr("largerec.oracle.BLOCK_CELLS", 3000)
    np.testing.assert_allclose(next_item_probabilities(world, histories, rows), whole, rtol=1e-9)
    shuffled = np.random.default_rng(0).permutation(rows)
    np.testing.assert_allclose(
        next_item_probabilities(world, histories, shuffled), whole[np.searchsorted(rows, shuffled)], rtol=1e-9
    )
    np.testing.assert_allclose(whole.sum(axis=1), 1.0)
    served = np.concatenate([some for some, _ in beliefs(world, histories, shuffled)])
    assert sorted(served.tolist()) == list(range(len(rows)))


def test_a_foreign_log_is_refused() -> None:
    log = simulate(SimulateOptions(users=60, items=80, events=900, categories=4))
    sequences = build_sequences(log, SplitOptions())
    with pytest.raises(LargeRecError, match=r"item '.*' is none of this world's, for example 'i\d+'; the log was generated"):
        Histories.of(World(SimulateOptions(users=60, items=300, events=900, categories=4)), sequences)
    world = World(SimulateOptions(users=60, items=80, events=900, categories=4))
    histories = Histories.of(world, sequences)
    histories.item_N[1] = histories.item_N[0]  # nobody takes an item twice
    with pytest.raises(LargeRecError, match=r"event 2 of a history is impossible in the world of data\.simulate"):
        next_item_probabilities(world, histories, np.array([3]))
