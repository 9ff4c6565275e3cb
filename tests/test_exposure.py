"""Exposure bias: estimators against known answers, and a generated log whose logging policy, and so the truth, is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from logs import log_of
from runs import tiny_recipe
from test_lists import listed_log

from largerec import metrics, task_metrics
from largerec.bundle import data_hash
from largerec.engine import Engine, PopularityScorer, load
from largerec.errors import LargeRecError
from largerec.evaluate import OracleScorer, evaluate, measure
from largerec.evaluate_exposure import evaluate_exposure, row_propensities
from largerec.exposure import (
    ESTIMATORS,
    ExposureOptions,
    effective_size,
    inverse_weights,
    popularity_propensities,
    position_propensities,
    weighted_means,
    weighted_measure,
)
from largerec.metrics import EvaluateOptions
from largerec.oracle import Asking
from largerec.report import report
from largerec.sequences import SplitOptions, build_sequences, from_frame
from largerec.simulate import SimulateOptions, World, log_of_world, simulate
from largerec.tokenizers import AtomicTokenizer
from largerec.train import train

BIASED = SimulateOptions(users=600, items=150, events=12_000, categories=5, exposure=1.0, seed=3)
SPLIT = {"protocol": "timeline", "validation_from": "50%", "test_from": "65%"}
HOW = {"level": 0.9, "samples": 60, "seed": 0}


# --- estimators


def test_ips_and_snips_find_the_mean_of_everything_from_what_was_shown() -> None:
    rng = np.random.default_rng(0)
    propensity_N = rng.uniform(0.05, 1, 3000)
    value_N = propensity_N + rng.normal(0, 0.1, 3000)  # what is shown often is what the model is good at
    found = []
    for _ in range(100):
        shown, past = (np.flatnonzero(rng.random(3000) < propensity_N) for _ in range(2))
        weight_S = inverse_weights(propensity_N[shown], propensity_N[past])
        row = weighted_means({"v": value_N[shown]}, weight_S, shown, 2.0, level=0.9, samples=1, seed=0)["v"]
        found.append([row[name] for name in ESTIMATORS])
    plain, ips, clipped, snips = np.mean(found, axis=0)
    truth = value_N.mean()
    assert plain > truth + 0.1
    assert abs(ips - truth) < 0.01 and abs(snips - truth) < 0.01
    assert clipped < ips, "what is cut is missing"
    shown = np.flatnonzero(rng.random(3000) < propensity_N)
    weight_S = inverse_weights(propensity_N[shown], propensity_N)
    values = {"v": value_N[shown], "higher": value_N[shown] + 9}
    two = weighted_means(values, weight_S, shown, 2.0, level=0.9, samples=1, seed=0)
    assert two["higher"]["snips"] - two["v"]["snips"] == pytest.approx(9), "the level of the values does not matter to it"
    assert abs(two["higher"]["ips"] - two["v"]["ips"] - 9) > 0.1


def test_estimates_by_hand() -> None:
    value_N, weight_N = np.array([1.0, 0.0, 0.5]), np.array([0.5, 4.0, 1.5])
    found = weighted_means({"v": value_N}, weight_N, np.array([7, 7, 9]), 1.0, **HOW)["v"]
    assert [found[name] for name in ESTIMATORS] == pytest.approx([0.5, 1.25 / 3, 1.0 / 3, 1.25 / 6])
    assert effective_size(weight_N) == pytest.approx(36 / 18.5)
    assert found["intervals"]["plain"] == pytest.approx([0.5, 0.5]), "both users have a mean of one half"
    np.testing.assert_allclose(inverse_weights(np.array([0.5, 0.1]), np.array([0.5, 0.25])), [2 / 3, 10 / 3])
    known_V = popularity_propensities(np.array([0, 4, 16]), 0.5)
    np.testing.assert_allclose(known_V, [20 / (4 / 0.5 + 16 / 1), 0.5, 1])
    weight_V = inverse_weights(known_V, np.repeat(known_V, [0, 4, 16]))
    assert weight_V[0] == pytest.approx(1), "an item that training never saw counts as an average event"


def test_a_weight_counts_an_event_that_often() -> None:
    rng = np.random.default_rng(1)
    probability_N, label_N, times_N = rng.random(80), rng.integers(0, 2, 80), rng.integers(1, 5, 80)
    both_NL = np.stack([1 - probability_N, probability_N], axis=1)
    often = np.repeat(np.arange(80), times_N)
    weight_N, users = times_N / times_N.mean(), np.arange(80)
    for measure_of, again in (
        (lambda w: task_metrics.auc(probability_N, label_N, w), task_metrics.auc(probability_N[often], label_N[often])),
        (
            lambda w: task_metrics.normalised_entropy(both_NL, label_N, w),
            task_metrics.normalised_entropy(both_NL[often], label_N[often]),
        ),
    ):
        found = weighted_measure(measure_of, weight_N, users, 100.0, **HOW)
        assert found["ips"] == found["snips"] == found["clipped"] == pytest.approx(again)
        assert found["plain"] == pytest.approx(measure_of(np.ones(80))) and found["plain"] != found["ips"]
        low, high = found["intervals"]["snips"]
        assert low < found["snips"] < high


@pytest.mark.parametrize("wrong", [0.0, 1.5, float("nan"), -1.0])
def test_wrong_propensities_are_refused(wrong: float) -> None:
    with pytest.raises(LargeRecError, match=r"1 of 2 propensities"):
        inverse_weights(np.array([0.5, wrong]), np.array([0.5]))


def test_places_that_decide_alone_are_undone() -> None:
    """People take by place and by nothing else: the list's order is no better than chance, and the weights say so."""
    rng = np.random.default_rng(2)
    share_P = 1 / np.arange(1, 11) / (1 / np.arange(1, 11)).sum()
    past_L, place_L = rng.choice(10, 20_000, p=share_P), rng.choice(10, 5_000, p=share_P)
    propensity_P = position_propensities(past_L, 10)
    weight_L = inverse_weights(propensity_P[place_L], propensity_P[past_L])
    found = weighted_means({"mrr": 1 / (1.0 + place_L)}, weight_L, np.arange(5000), 50.0, **HOW)["mrr"]
    chance = (1 / np.arange(1, 11)).mean()
    assert found["plain"] > chance + 0.2
    assert abs(found["snips"] - chance) < 0.02 and abs(found["ips"] - chance) < 0.02


# --- a generated log with a biased logging policy


def test_the_policy_marks_events_and_changes_none() -> None:
    biased, plain = simulate(BIASED), simulate(BIASED.model_copy(update={"exposure": 0.0}))
    assert biased.events.drop("exposed", "propensity").equals(plain.events)
    assert set(plain.events.columns) == {"user_id", "item_id", "timestamp", "behavior"}
    by_item = biased.events.group_by("item_id").agg(pl.col("propensity").n_unique().alias("n"), pl.col("propensity").first())
    assert (by_item["n"] == 1).all() and by_item["propensity"].min() == pytest.approx(0.02)
    both_NE = biased.events.sort("propensity").select("exposed", "propensity").to_numpy()
    for quarter_NE in np.array_split(both_NE, 4):
        exposed, propensity = quarter_NE.mean(axis=0)
        assert exposed == pytest.approx(propensity, abs=0.03)


def popularity_engine(positives: str | None) -> Engine:
    sequences = build_sequences(simulate(BIASED), SplitOptions.model_validate(SPLIT | {"positives": positives}))
    tokenizer = AtomicTokenizer.fit(sequences)
    return Engine(PopularityScorer(tokenizer.counts_V), tokenizer, sequences)


@pytest.mark.parametrize("by", ["column", "popularity"])
def test_weighted_estimates_are_nearer_the_truth_than_the_plain_one(by: str) -> None:
    """The truth: the same recommender, asked for every event that came, shown or not."""
    everything, shown = popularity_engine(None), popularity_engine("exposed = 1")
    truth = metrics.ndcg(measure(everything, everything.sequences.targets("test")).rank_N, 10).mean()
    rows = shown.sequences.targets("test")
    options = EvaluateOptions(k=(10,), bootstrap_samples=200, exposure=ExposureOptions.model_validate({"by": by, "power": 1.0}))
    found = evaluate_exposure(shown, "test", rows, {"popularity": measure(shown, rows).rank_N}, options, 0)["retrieval"]
    row = found["popularity"]["ndcg@10"]
    assert row["plain"] > 1.5 * truth, "popular items are shown often, so that a popularity list looks good"
    for name in ("ips", "clipped", "snips"):
        assert abs(row[name] - truth) < (0.35 if by == "column" else 0.6) * abs(row["plain"] - truth), name
    low, high = row["intervals"]["snips"]
    assert high < row["intervals"]["plain"][0]
    assert by == "popularity" or low < truth < high
    assert found["n"] == len(rows) and found["weights"]["effective_n"] < 0.7 * len(rows)


def test_the_best_possible_knows_what_the_policy_shows() -> None:
    world = World(BIASED)
    shown = popularity_engine("exposed = 1")
    rows = shown.sequences.targets("test")[:400]
    losses = []
    for exposed in (True, False):
        scorer = OracleScorer(shown, world, Asking(), exposed=exposed)
        beside = Engine.beside(shown, scorer)
        losses.append(
            (
                np.concatenate([np.zeros(0), metrics.ndcg(measure(beside, rows).rank_N, 10)]).mean(),
                np.concatenate(scorer.losses).mean(),
            )
        )
    (tilted, tilted_loss), (plain, plain_loss) = losses
    assert tilted > plain and tilted_loss < plain_loss - 0.05


@pytest.fixture(scope="module")
def biased_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned from what a biased policy showed, retrieval and whether it was bought."""
    folder = tmp_path_factory.mktemp("biased")
    task = "tasks.bought.where=CASE WHEN exposed = 1 THEN behavior = 'buy' ELSE NULL END"
    changes = ["data.simulate.exposure=1.0", "split.positives=exposed = 1", task, "batch.actions=summed", "train.max_epochs=1"]
    train(tiny_recipe(folder / "run", *changes, "data.simulate.users=150", "data.simulate.events=2200"), quiet=True)
    return folder / "run"


def test_a_run_says_what_it_would_be_worth_if_all_were_shown(biased_run: Path) -> None:
    by_column = EvaluateOptions(bootstrap_samples=50, exposure=ExposureOptions(by="column", clip=5.0))
    result = evaluate(biased_run, by_column)
    found = result["exposure"]
    assert (found["by"], found["clip"], found["stage"]) == ("column", 5.0, "test")
    retrieval, task = found["retrieval"], found["tasks"]["bought"]
    assert {"model", "popularity"} <= retrieval.keys() and {"model", "item rate"} <= task.keys()
    assert retrieval["model"]["ndcg@10"]["plain"] == pytest.approx(result["test"]["ndcg@10"])
    assert task["model"]["auc"]["plain"] == pytest.approx(result["tasks"]["bought"]["auc"])
    assert task["model"]["log_loss"]["plain"] == pytest.approx(result["tasks"]["bought"]["log_loss"])
    sequences = load(biased_run).sequences
    assert sequences.label_NA is not None and sequences.propensity_N is not None
    asked_N = (sequences.stage_N == 2) & (sequences.label_NA[:, 0] >= 0)
    trained_N = (sequences.stage_N == 0) & (sequences.label_NA[:, 0] >= 0)
    weight_N = (1 / sequences.propensity_N[asked_N]) / (1 / sequences.propensity_N[trained_N]).mean()
    predicted = pl.read_parquet(biased_run / "predictions-test.parquet")
    slow = task_metrics.auc(predicted["bought.predicted"], predicted["bought.label"], weight_N)
    assert task["model"]["auc"]["snips"] == pytest.approx(slow)
    assert task["weights"]["effective_n"] == pytest.approx(weight_N.sum() ** 2 / (weight_N**2).sum())
    assert "best_possible" in result, "the law of what is shown is known"
    page = Path(report([biased_run])["report"]).read_text()
    assert "As if every item had been shown alike" in page and "SNIPS" in page
    assert "exposure" not in evaluate(biased_run, EvaluateOptions(bootstrap_samples=20)), "estimates of other options do not stay"


def test_propensities_come_back_from_a_run_s_table_and_count_in_its_hash(biased_run: Path) -> None:
    sequences = build_sequences(log_of_world(World(BIASED)), SplitOptions.model_validate(SPLIT))
    again = from_frame(sequences.frame(), "timestamp", "all")
    np.testing.assert_array_equal(again.propensity_N, sequences.propensity_N)
    assert data_hash(sequences) != data_hash(replace(sequences, propensity_N=None))


def test_logs_without_propensities_or_lists_say_what_is_missing() -> None:
    sequences = build_sequences(log_of([(u, i, 5 * u + i) for u in range(9) for i in range(5)]), SplitOptions())
    with pytest.raises(LargeRecError, match="reads the log's column 'propensity'"):
        row_propensities(sequences, ExposureOptions(by="column"))
    tokenizer = AtomicTokenizer.fit(sequences)
    engine = Engine(PopularityScorer(tokenizer.counts_V), tokenizer, sequences)
    options = EvaluateOptions(exposure=ExposureOptions(by="position"))
    with pytest.raises(LargeRecError, match="needs a log with lists"):
        evaluate_exposure(engine, "test", np.empty(0), {}, options, 0)


def test_choices_are_weighted_by_place(tmp_path: Path) -> None:
    listed_log().events.write_parquet(tmp_path / "log.parquet")
    changes = ["split.protocol=timeline", "split.validation_from=50%", "split.test_from=75%", "lists.items=shown_items"]
    train(tiny_recipe(tmp_path / "run", *changes, f"data.path={tmp_path / 'log.parquet'}", "train.max_steps=2"), quiet=True)
    result = evaluate(tmp_path / "run", EvaluateOptions(bootstrap_samples=20, exposure=ExposureOptions(by="position")))
    found = result["exposure"]["lists"]
    for name, row in (result["lists"]["scores"] | result["lists"]["baselines"]).items():
        assert found[name]["mrr"]["plain"] == pytest.approx(row["mrr"])
        assert set(found[name]["mrr"]["intervals"]) == set(ESTIMATORS)
    assert found["as shown"]["mrr"]["snips"] < found["as shown"]["mrr"]["plain"]
    json.dumps(found)
