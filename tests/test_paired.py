"""Intervals over users and seeds: known answers, and that pairing removes what both rows share."""

from __future__ import annotations

import numpy as np
import pytest

from largerec.errors import LargeRecError
from largerec.paired import Paired


def test_a_known_spread_over_users_and_over_seeds() -> None:
    """With users alone the width is that of a mean of n numbers; with seeds alone that of a mean of S."""
    rng = np.random.default_rng(0)
    value_N = rng.normal(1.0, 1.0, 2000)
    users = Paired({"a": value_N[None]}, np.arange(2000), samples=4000).of(lambda mean: mean["a"])
    assert users["value"] == pytest.approx(value_N.mean())
    assert (users["high"] or 0) - (users["low"] or 0) == pytest.approx(2 * 1.96 * value_N.std() / np.sqrt(2000), rel=0.06)
    effect_S = np.array([0.0, 1.0, 2.0, 3.0])
    seeds = Paired({"a": np.repeat(effect_S[:, None], 50, axis=1)}, np.arange(50), samples=4000)
    assert seeds.draws["a"].std() == pytest.approx(effect_S.std(ddof=1) / 2, rel=0.06)


@pytest.mark.parametrize(("ratio", "least"), [(0.25, 0.93), (1.0, 0.91), (5.0, 0.9)])
def test_an_interval_over_three_seeds_holds_the_truth(ratio: float, least: float) -> None:
    """Rows that are alike but for chance: 95 of a hundred intervals are to hold 0, whether users or seeds differ more."""
    rng, users, inside = np.random.default_rng(3), 100, 0
    for _ in range(400):
        of_users, of_seeds = rng.normal(size=(1, users)), rng.normal(size=(3, 1)) * ratio * np.sqrt(3 / users)
        found = Paired({"a": of_users + of_seeds, "b": np.zeros((3, users))}, np.arange(users), samples=300)
        difference = found.gain("a", "b")["difference"]
        inside += (difference["low"] or 0) <= 0 <= (difference["high"] or 0)
    assert least < inside / 400 < 0.985


def test_a_strict_level_reaches_beyond_what_the_seeds_were() -> None:
    """All of three seeds are above 0: drawn with replacement, no level whatever would hold 0."""
    seeds = np.repeat(np.array([[0.0033], [0.0019], [0.0093]]), 50, axis=1)
    found = Paired({"a": seeds, "b": np.zeros((3, 50))}, np.arange(50), level=0.99).gain("a", "b")["difference"]
    assert found["low"] is not None and found["low"] < 0 < (found["high"] or 0)


def test_users_are_drawn_whole() -> None:
    """Ten targets of one user are one draw, not ten."""
    value_U = np.random.default_rng(1).normal(size=300)
    one = Paired({"a": value_U[None]}, np.arange(300), samples=3000).draws["a"].std()
    ten = Paired({"a": np.repeat(value_U, 10)[None]}, np.repeat(np.arange(300), 10), samples=3000).draws["a"].std()
    assert ten == pytest.approx(one, rel=0.08)


def test_what_both_rows_share_cancels() -> None:
    rng = np.random.default_rng(2)
    shared_SN = rng.normal(1.0, 1.0, (3, 1)) + rng.normal(0, 1.0, (3, 500))
    found = Paired({"a": shared_SN + 0.1, "b": shared_SN}, np.arange(500)).gain("a", "b")["difference"]
    assert found["low"] == pytest.approx(0.1) and found["high"] == pytest.approx(0.1)


def test_a_share_of_nothing_is_no_number() -> None:
    zero = np.zeros((2, 5))
    found = Paired({"a": zero, "b": zero}, np.arange(5)).gain("a", "b")["relative"]
    assert found == {"value": None, "low": None, "high": None}


def test_rows_that_are_not_paired_are_refused() -> None:
    with pytest.raises(LargeRecError, match="same seeds and targets"):
        Paired({"a": np.zeros((2, 5)), "b": np.zeros((3, 5))}, np.arange(5))
    with pytest.raises(LargeRecError, match="one value a seed and target"):
        Paired({"a": np.zeros((2, 4))}, np.arange(5))
