"""Entropy, compression, predictability and drift: known answers, and nothing that depends on how items are numbered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import MINUTE_MS, START_MS, chain_log, log_of, logs, random_log

from largerec.audit import audit
from largerec.audit.drift import divergence, drift, half_life, item_half_life
from largerec.audit.information import (
    canonical,
    compression,
    entropies,
    entropy,
    entropy_rate,
    fano,
    information,
    lempel_ziv,
)
from largerec.audit.ordered import DAY, Ordered
from largerec.events import EventLog
from largerec.simulate import SimulateOptions, simulate


def renumbered(log: EventLog, seed: int) -> EventLog:
    """The same log with other ids for items and users."""
    rng = np.random.default_rng(seed)
    events = log.events
    for name in ("user_id", "item_id"):
        ids = events[name].unique(maintain_order=True)
        to = pl.Series([f"new {n}" for n in rng.permutation(len(ids)).tolist()])
        events = events.with_columns(pl.col(name).replace_strict(ids, to))
    return replace(log, events=events)


@given(logs(), st.integers(0, 99))
def test_no_number_depends_on_how_items_and_users_are_numbered(log: EventLog, seed: int) -> None:
    one, other = Ordered.of(log), Ordered.of(renumbered(log, seed))
    assert information(one) == information(other)
    assert canonical(one).tolist() == canonical(other).tolist()


def test_nor_do_those_of_a_real_size() -> None:
    log = simulate(SimulateOptions(users=300, items=200, events=9000, seed=3))
    one, other = (audit(each, now=START_MS * 2) for each in (log, renumbered(log, 1)))
    assert one.information == other.information and one.shape == other.shape
    assert one.drift is not None and other.drift is not None
    for name in ("periods_from_ms", "divergence_to_next", "divergence_by_chance", "new_item_share", "item_half_life_days"):
        assert one.drift[name] == pytest.approx(other.drift[name]), name
    names = [[(found.name, found.count) for found in each.findings] for each in (one, other)]
    assert names[0] == names[1]


def test_a_chain_is_known_after_one_item_and_noise_is_not() -> None:
    chain, noise = Ordered.of(chain_log(users=80, items=16)), Ordered.of(random_log(0, users=80, items=16, events=20_000))
    assert entropies(chain, 1) == pytest.approx((0, 0), abs=1e-9)
    assert entropies(noise, 1) == pytest.approx((4, 4), abs=0.02)
    assert entropies(noise, 2)[1] == pytest.approx(4, abs=0.05)
    assert entropies(chain, 50) == (None, None)


def test_order_is_what_a_shuffle_loses() -> None:
    assert compression(Ordered.of(chain_log(users=80, items=16)))["saved_by_order"] > 0.5
    assert abs(compression(Ordered.of(random_log(0, users=80, items=16, events=20_000)))["saved_by_order"]) < 0.01


def brute_rate(sequence: list[int]) -> float:
    """The definition, without a shortcut: the shortest substring from each place that does not begin and end before it."""
    total, n = 0, len(sequence)
    for at in range(n):
        earlier = [sequence[a:b] for a in range(at) for b in range(a + 1, at + 1)]
        length = 1
        while at + length <= n and sequence[at : at + length] in earlier:
            length += 1
        total += length
    return n * float(np.log2(max(n, 2))) / total


@given(st.lists(st.integers(0, 3), min_size=1, max_size=24))
def test_the_entropy_rate_is_that_of_its_definition(sequence: list[int]) -> None:
    assert entropy_rate(sequence) == pytest.approx(brute_rate(sequence))


def test_entropy_rates_of_known_sequences() -> None:
    rng = np.random.default_rng(0)
    assert entropy_rate(rng.integers(4, size=3000).tolist()) == pytest.approx(2, abs=0.15)
    assert entropy_rate([1, 2] * 500) < 0.1
    assert lempel_ziv(Ordered.of(log_of([("a", "x", START_MS)]))) is None


def test_fano_bounds() -> None:
    assert fano(0, 10) == 1 and fano(np.log2(10), 10) == pytest.approx(0.1) and fano(5, 1) == 1
    p = fano(2.0, 50)
    assert -p * np.log2(p) - (1 - p) * np.log2(1 - p) + (1 - p) * np.log2(49) == pytest.approx(2)
    assert entropy(np.array([2, 2, 0, 4])) == pytest.approx(1.5)


def test_divergence_between_nothing_and_everything() -> None:
    a, b = np.array([1.0, 1, 0, 0]), np.array([0, 0, 3.0, 3])
    assert divergence(a, 5 * a) == pytest.approx(0) and divergence(a, b) == pytest.approx(1)


def test_drift_and_new_items() -> None:
    rng = np.random.default_rng(0)
    rows = [(n % 50, f"{n // 1000}-{rng.integers(20)}", START_MS + n * MINUTE_MS) for n in range(8000)]
    log = Ordered.of(log_of(rows))
    found = drift(log, np.zeros(len(log), dtype=bool))
    assert found is not None and found["divergence_first_to_last"] == pytest.approx(1)
    assert found["new_item_share"] == [1.0] * 8 and found["divergence_by_chance"] < 0.1
    assert found["item_half_life_days"] == pytest.approx(500 * MINUTE_MS / DAY, rel=0.1) and found["interest"] is None
    names = {one.name: one for one in audit(log_of(rows), now=START_MS * 2).findings}
    assert {"drift of popularity", "many new items"} <= names.keys()
    assert (names["many new items"].count, names["many new items"].of) == (4000, 4000), "of the later half"
    short = names["short-lived items"]
    assert found["days_of_98_percent"] == pytest.approx(0.98 * 8000 * MINUTE_MS / DAY, rel=1e-3) and short.severity == "info"
    assert short.command == "largerec curate DATA --step recency:half_life_days=0.33", "the half-life itself, in days"
    still = Ordered.of(random_log(0, users=50, items=20, events=8000))
    calm = drift(still, np.zeros(len(still), dtype=bool))
    assert calm is not None and calm["divergence_first_to_last"] < 0.02
    lasting = audit(random_log(0, users=50, items=20, events=8000)).findings
    assert "short-lived items" not in {one.name for one in lasting}, "items of the whole log's length"
    assert drift(Ordered.of(log_of([("a", "x", 1)], "order")), np.zeros(1, dtype=bool)) is None


def test_half_lives() -> None:
    assert half_life([[1, 0.4], [2, 0.4], [4, 0.0]]) == pytest.approx(2 * 2**0.5)
    assert half_life([[1, 0.4], [2, 0.3]]) is None and half_life([[1, -0.1], [2, -0.2]]) is None
    items = np.repeat([0, 1], [5, 12])
    assert item_half_life(items, np.r_[np.zeros(5), 10 + np.arange(12.0)], 2) == 5


def test_interests_of_a_generated_log_fade() -> None:
    log = Ordered.of(simulate(SimulateOptions(users=300, items=200, events=9000, seed=3)))
    found = drift(log, np.zeros(len(log), dtype=bool))
    assert found is not None
    excess = [point[1] for point in found["interest"]["curve"]]
    assert excess[0] > 0.3 and excess[0] > excess[1] > excess[2] and 1 < found["interest"]["half_life_events"] < 16
