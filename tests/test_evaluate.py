"""Evaluation: known answers on a log written by hand, an independent library, and what is counted beside the metrics."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import polars as pl
import pytest
import torch
from ir_measures import RR, R, ScoredDoc, nDCG
from logs import MINUTE_MS, START_MS, log_of, random_log
from runs import copy_of_run, tiny_recipe, trained_run
from test_ranking import overrides_of

from largerec import metrics
from largerec.bundle import data_hash
from largerec.engine import Engine, PopularityScorer, load
from largerec.engine.engine import build_scorer
from largerec.engine.scoring import Queries, mask_seen
from largerec.errors import LargeRecError
from largerec.evaluate import (
    best_possible,
    calibration,
    compare_runs,
    evaluate,
    evaluate_engine,
    generated_world,
    measure,
    popularity_scorers,
    recent_counts,
    sample_targets,
)
from largerec.events import EventLog
from largerec.metrics import EvaluateOptions
from largerec.oracle import Asking, Histories, negative_log, next_item_probabilities
from largerec.recipe import Recipe
from largerec.report import report
from largerec.sequences import SplitOptions, build_sequences
from largerec.simulate import log_of_world
from largerec.tokenizers import AtomicTokenizer
from largerec.train import train
from largerec.world import World

DAY_MS = 86_400_000
OPTIONS = EvaluateOptions(k=(1, 2), bootstrap_samples=50)

# The last two of each user are validation and test. Training counts: A 4, B 2, C, D and E 1; Z is never trained on.
BY_HAND = {"u1": "AB.C.D", "u2": "ABC.D.E", "u3": "AD.B.A", "u4": "AE.C.Z"}


def log_by_hand() -> EventLog:
    rows = [(user, item, step) for user, text in BY_HAND.items() for step, item in enumerate(text.replace(".", ""))]
    return log_of(rows, "order")


def popularity_engine(log: EventLog, split: SplitOptions | None = None) -> Engine:
    sequences = build_sequences(log, split or SplitOptions())
    tokenizer = AtomicTokenizer.fit(sequences, log.items)
    return Engine(PopularityScorer(tokenizer.counts_V), tokenizer, sequences)


def model_engine(log: EventLog, *overrides: str) -> Engine:
    """A model of large random weights, so that no two scores are alike."""
    engine = popularity_engine(log)
    torch.manual_seed(0)
    scorer = build_scorer(tiny_recipe(Path("unused"), *overrides).resolved(), engine.tokenizer, engine.sequences)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return Engine.beside(engine, scorer.prepared())


# --- known answers --------------------------------------------------------------------------------------------------------


def test_the_ranks_of_a_log_written_by_hand() -> None:
    engine = popularity_engine(log_by_hand())
    found = measure(engine, engine.sequences.targets("test"), list_length=2)
    names = engine.sequences.user_ids.gather(found.user_N).to_list()
    inf = math.inf
    # Unmasked: A, B, then C, D, E share 3-5. Masked: u1 has D and E left, u2 only E; u3 saw A; Z is no candidate.
    assert dict(zip(names, found.unmasked_N, strict=True)) == {"u1": 4.0, "u2": 4.0, "u3": 1.0, "u4": inf}
    assert dict(zip(names, found.rank_N, strict=True)) == {"u1": 1.5, "u2": 1.0, "u3": inf, "u4": inf}
    items = [*engine.tokenizer.vocabulary["item_id"], None]
    lists = {user: [items[token] for token in row] for user, row in zip(names, found.top_NK.tolist(), strict=True)}
    assert {lists["u2"][0], lists["u4"][0]} == {"E", "B"}
    assert set(lists["u1"]) == {"D", "E"} and set(lists["u3"]) == {"C", "E"} and lists["u2"][1] is None


def test_the_metrics_of_a_log_written_by_hand() -> None:
    document, _ = evaluate_engine(popularity_engine(log_by_hand()), "test", OPTIONS, seed=0)
    gain = 1 / math.log2(2.5)
    assert document["metrics"] == pytest.approx(
        {
            **{"recall@1": 1 / 4, "hr@1": 1 / 4, "ndcg@1": 1 / 4, "mrr@1": 1 / 4},
            **{"recall@2": 2 / 4, "hr@2": 2 / 4, "ndcg@2": (gain + 1) / 4, "mrr@2": (1 / 1.5 + 1) / 4},
            **{"coverage@2": 4 / 5, "gini@2": gini_by_hand([0, 1, 1, 2, 3]), "arp": 4.5 / 4, "arp_normalised": 4.5 / 16},
        }
    )
    assert document["unmasked"] == {f"{name}@{k}": 1 / 4 for k in (1, 2) for name in ("recall", "hr", "ndcg", "mrr")}
    assert document["targets"] == {"n": 4, "users": 4, "outside_catalogue": 1, "masked_as_seen": 1}
    assert document["slices"].keys() == {"head", "tail", "cold", "history 0-4"}
    assert {name: found["targets"] for name, found in document["slices"].items()} == {
        **{"head": 1, "tail": 2, "cold": 1, "history 0-4": 4}
    }
    assert document["slices"]["tail"]["recall@2"] == 1.0
    assert document["slices"]["tail"]["intervals"]["recall@2"] == [1.0, 1.0]
    whole = document["slices"]["history 0-4"]  # which every target is in
    assert (
        whole["intervals"] == document["intervals"]
        and whole["intervals"]["recall@2"][0] < 0.5 < whole["intervals"]["recall@2"][1]
    )
    assert document["slices"]["head"]["recall@2"] == document["slices"]["cold"]["recall@2"] == 0.0
    assert list(document["baselines"]) == ["popularity"], "an order without a clock has no recent past"
    assert document["baselines"]["popularity"] == {
        **document["metrics"],
        "unmasked": document["unmasked"],
        "intervals": document["intervals"],
    }


def gini_by_hand(shown: list[int]) -> float:
    """Mean absolute difference of all pairs over twice the mean."""
    return float(np.abs(np.subtract.outer(shown, shown)).mean() / (2 * np.mean(shown)))


def test_the_validation_event_is_part_of_the_test_history() -> None:
    """u2 and the validation target D: masked in the test, not in the validation itself."""
    engine = popularity_engine(log_by_hand())
    found = measure(engine, engine.sequences.targets("validation"))
    names = engine.sequences.user_ids.gather(found.user_N).to_list()
    # u1: C, D, E are left of A, B; u2: D, E; u3: B, C, E of which B is first; u4: B, then C and D.
    assert dict(zip(names, found.rank_N, strict=True)) == {"u1": 2.0, "u2": 1.5, "u3": 1.0, "u4": 2.5}


def test_the_whole_history_is_masked_not_only_the_window() -> None:
    rows = [(user, f"i{item}", step) for user in ("a", "b") for step, item in enumerate([0, *range(1, 20), 0])]
    engine = model_engine(log_of(rows, "order"), "batch.max_length=2")
    found = measure(engine, engine.sequences.targets("test"))
    assert found.rank_N.tolist() == [math.inf, math.inf]
    assert np.isfinite(found.unmasked_N).all()


@pytest.mark.parametrize("model", ["hstu", "sasrec"])
def test_agreement_with_an_independent_library(model: str) -> None:
    log = random_log(seed=3, users=60, items=40, events=900)
    rows = [*log.events.rows(), (7, 12345, START_MS + 10**10)]  # user 7's target is outside the catalogue
    engine = model_engine(log_of(rows), f"model.name={model}")
    targets = engine.sequences.targets("test")
    found = measure(engine, targets)
    assert (engine.token_of_item[engine.sequences.item_N[targets]] < 0).any()
    queries = engine.queries_at(targets)
    asked = {f"{name}@{k}": measure_(cutoff=k) for k in (1, 5, 10, 20) for name, measure_ in MEASURES.items()}
    relevant = {
        str(at): {str(item): 1} for at, item in enumerate(engine.sequences.item_ids.gather(engine.sequences.item_N[targets]))
    }
    for masked, rank_N in ((False, found.unmasked_N), (True, found.rank_N)):
        scores_QV = engine.scorer.scores(queries)
        if masked:
            mask_seen(scores_QV, queries)
        items = [str(item) for item in engine.tokenizer.vocabulary["item_id"]]
        run = [
            ScoredDoc(str(at), item, score)
            for at, scores_V in enumerate(scores_QV.tolist())
            for item, score in zip(items, scores_V, strict=True)
            if score > -math.inf
        ]
        theirs = ir_measures.calc_aggregate(asked.values(), relevant, run)
        ours = metrics.summarise(rank_N, (1, 5, 10, 20))
        assert {name: theirs[asked[name]] for name in asked} == pytest.approx({name: ours[name] for name in asked}, abs=1e-6)
        assert 0 < ours["recall@5"] < ours["recall@20"] < 1


MEASURES: dict[str, Any] = {"recall": R, "ndcg": nDCG, "mrr": RR}


# --- baselines ------------------------------------------------------------------------------------------------------------


def fashion_log(test_item: str) -> EventLog:
    """X was bought by many long ago, Y by some of late, W by few on the last day; validation asks for Y."""
    day = [
        *[(f"old{user}", item, user) for user in range(20) for item in ("X", "filler")],
        *[(f"later{user}", item, 65) for user in range(6) for item in ("X", "filler")],
        *[(f"new{user}", item, 84) for user in range(5) for item in ("Y", "filler")],
        *[(f"last{user}", item, 88) for user in range(3) for item in ("W", "filler")],
        *[(f"ask{user}", item, 40) for user in range(10) for item in ("filler", "rest")],
        *[(f"ask{user}", "Y", 90) for user in range(5)],
        *[(f"ask{user}", test_item, 95) for user in range(5, 10)],
    ]
    return log_of([(user, item, START_MS + time * DAY_MS + at) for at, (user, item, time) in enumerate(day)])


def fashion_engine(test_item: str) -> Engine:
    dates = [str(pl.Series([START_MS + day * DAY_MS]).cast(pl.Datetime("ms"))[0]) for day in (89, 93)]
    return popularity_engine(
        fashion_log(test_item), SplitOptions(protocol="timeline", validation_from=dates[0], test_from=dates[1])
    )


@pytest.mark.parametrize("test_item", ["X", "Y"])
def test_the_window_of_recent_popularity_is_chosen_on_validation_alone(test_item: str) -> None:
    engine = fashion_engine(test_item)
    scorers = popularity_scorers(engine)
    assert list(scorers) == ["popularity", "recent popularity (7 d)"]
    tests, found = engine.sequences.targets("test"), {}
    for name, scorer in scorers.items():
        found[name] = measure(Engine.beside(engine, scorer), tests).rank_N.tolist()
    first, second = {"X": (1.0, 3.0), "Y": (2.0, 1.0)}[test_item]
    assert found == {"popularity": [first] * 5, "recent popularity (7 d)": [second] * 5}


def test_recent_popularity_leaves_out_untimed_events() -> None:
    """Twenty minutes of training have no window of an hour, however far the unknown times seem to lie back."""
    rows = [(user, "early", -1) for user in range(5) for _ in range(2)]
    rows += [(user, "late", START_MS + step * MINUTE_MS * 10) for user in range(5) for step in range(5)]
    engine = popularity_engine(log_of(rows))
    assert list(popularity_scorers(engine)) == ["popularity"]
    counts_V = recent_counts(engine.sequences, engine.token_of_item, engine.scorer.size, hours=1_000_000)
    assert dict(zip(engine.tokenizer.vocabulary["item_id"], counts_V.tolist(), strict=True)) == {"early": 0, "late": 15}
    untimed = replace(engine.sequences, time_N=np.full_like(engine.sequences.time_N, -1))
    assert list(popularity_scorers(Engine(engine.scorer, engine.tokenizer, untimed))) == ["popularity"]


def test_recent_popularity_counts_training_alone() -> None:
    """Y is taken in validation, and X in the test, more often than ever in training: no count may know."""
    scorers = popularity_scorers(fashion_engine("X"))
    engine = fashion_engine("Y")
    for name, scorer in popularity_scorers(engine).items():
        queries = engine.queries_at(engine.sequences.targets("test"))
        assert torch.equal(scorer.scores(queries), scorers[name].scores(queries))


def test_baselines_stand_in_the_result() -> None:
    result = json.loads((trained_run() / "result.json").read_text())
    assert next(iter(result["baselines"])) == "popularity"
    assert [name for name in result["baselines"] if name.startswith("recent popularity (")]
    for baseline in result["baselines"].values():
        assert baseline.keys() == result["test"].keys() | {"unmasked", "intervals"}
        assert baseline["unmasked"].keys() == result["test_unmasked"].keys()


# --- the best possible ----------------------------------------------------------------------------------------------------


def generated(recipe: Recipe) -> tuple[Engine, World]:
    """The popularity engine of a recipe's generated log, and its world."""
    world = World(recipe.data.simulate)
    return popularity_engine(log_of_world(world), recipe.split), world


def test_the_best_possible_is_the_ranking_by_the_exact_law() -> None:
    recipe = tiny_recipe(Path("unused"))
    engine, world = generated(recipe)
    rows = engine.sequences.targets("test")
    histories = Histories.of(world, engine.sequences)
    law_NV = next_item_probabilities(world, histories, rows)
    catalogue = set(engine.tokenizer.vocabulary["item_id"])
    inside_V = np.array([item in catalogue for item in world.item_ids])
    own_N = law_NV[np.arange(len(rows)), histories.item_N[rows]]
    rank_N = np.where(inside_V[histories.item_N[rows]], 1 + (law_NV[:, inside_V] > own_N[:, None]).sum(axis=1), math.inf)
    found = best_possible(engine, world, recipe, "test", recipe.evaluate)
    assert {name: found[name] for name in metrics.summarise(rank_N, (5, 10, 20))} == metrics.summarise(rank_N, (5, 10, 20))
    assert found["cross_entropy"] == pytest.approx(float(-np.log(own_N).mean()))
    popular, _ = evaluate_engine(engine, "test", recipe.evaluate, seed=0)
    assert found["ndcg@10"] > popular["metrics"]["ndcg@10"] + 0.1


def test_the_best_possible_stands_in_the_result_of_a_generated_log() -> None:
    result = json.loads((trained_run() / "result.json").read_text())
    assert result["best_possible"].keys() == result["test"].keys() | {"unmasked", "intervals", "cross_entropy"}
    assert result["best_possible"]["ndcg@10"] > result["test"]["ndcg@10"]


@pytest.mark.parametrize("change", ["data.path=log.csv", "data.faults.bots=0.1", "data.simulate.seed=7"])
def test_only_the_very_log_of_the_world_has_a_best_possible(change: str) -> None:
    recipe = tiny_recipe(Path("unused"))
    data = data_hash(generated(recipe)[0].sequences)
    assert generated_world(recipe, data) is not None
    assert generated_world(tiny_recipe(Path("unused"), change), data) is None


def test_the_best_possible_knows_the_moment_only_where_the_model_does() -> None:
    small = "data.simulate={users = 1500, items = 60, events = 12000, categories = 3, difficulty = 0.8}"
    recipes = [tiny_recipe(Path("unused"), small, *more) for more in ((), ("model.query_time=true",))]
    engine, world = generated(recipes[0])
    without, with_time = (best_possible(engine, world, recipe, "test", recipe.evaluate) for recipe in recipes)
    assert with_time["cross_entropy"] < without["cross_entropy"] - 0.002


def test_the_best_possible_of_a_timeline_knows_when_is_asked() -> None:
    """In the test part, days before it are impossible: the law that says so predicts better than the one that does not."""
    timeline = "split={protocol = 'timeline', validation_from = '2024-03-01', test_from = '2024-03-16'}"
    recipe = tiny_recipe(Path("unused"), "data.simulate={users = 1500, items = 60, events = 12000, categories = 3}", timeline)
    engine, world = generated(recipe)
    found = best_possible(engine, world, recipe, "test", recipe.evaluate)
    rows = engine.sequences.targets("test")
    histories = Histories.of(world, engine.sequences)
    unaware, aware = (
        negative_log(next_item_probabilities(world, histories, rows, asking), histories.item_N[rows]).mean()
        for asking in (Asking(), Asking(first_day=75))
    )
    assert found["cross_entropy"] == pytest.approx(aware) and aware < unaware - 0.001


# --- the result document --------------------------------------------------------------------------------------------------


def test_the_result_has_the_keys_of_the_design() -> None:
    result = json.loads((trained_run() / "result.json").read_text())
    described = (
        "name protocol seed data params train_tokens train_flops train_seconds validation test test_unmasked tasks baselines "
        "intervals slices n_test_evaluations"
    )
    assert set(described.split()) <= result.keys()
    for k in (5, 10, 20):
        assert result["test"][f"hr@{k}"] == result["test"][f"recall@{k}"]
        assert result["test"][f"ndcg@{k}"] <= result["test"][f"recall@{k}"] >= result["test"][f"mrr@{k}"]
    assert {"coverage@20", "gini@20", "arp", "arp_normalised"} <= result["test"].keys()
    assert result["test_unmasked"] != {name: result["test"][name] for name in result["test_unmasked"]}


def test_slices_add_up() -> None:
    result = json.loads((trained_run() / "result.json").read_text())
    slices, n = result["slices"], result["targets"]["n"]
    parts = [[name for name in slices if not name.startswith("history")], [name for name in slices if name.startswith("history")]]
    for names in parts:
        assert sum(slices[name]["targets"] for name in names) == n == 80
        for metric in ("recall@10", "ndcg@5", "mrr@20"):
            mean = sum(slices[name][metric] * slices[name]["targets"] for name in names) / n
            assert mean == pytest.approx(result["test"][metric])


def test_intervals_hold_the_point() -> None:
    result = json.loads((trained_run() / "result.json").read_text())
    for found, intervals in ((result["test"], result["intervals"]), *((b, b["intervals"]) for b in result["baselines"].values())):
        assert intervals.keys() == {f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (5, 10, 20)}
        for name, (low, high) in intervals.items():
            assert low < found[name] < high
            assert high - low < 0.35


def test_evaluations_of_the_test_part_are_counted(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    before = json.loads((run / "result.json").read_text())
    assert before["n_test_evaluations"] == 1
    validation = evaluate(run, stage="validation")
    assert validation["n_test_evaluations"] == 1
    assert {name: validation["validation"][name] for name in before["validation"]} == before["validation"]
    assert validation["test"] == before["test"]
    again = evaluate(run)
    assert again["n_test_evaluations"] == 2
    assert again | {"n_test_evaluations": 1} == validation
    assert json.loads((run / "result.json").read_text()) == again


def test_options_may_differ_from_those_of_the_recipe(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    result = evaluate(run, EvaluateOptions(k=(3,), level=0.5, bootstrap_samples=20))
    assert {name for name in result["test"] if "@" in name} == {
        f"{n}@3" for n in ("recall", "hr", "ndcg", "mrr", "coverage", "gini")
    }
    wide = evaluate(run, EvaluateOptions(k=(3,), level=0.99))["intervals"]["recall@3"]
    narrow = result["intervals"]["recall@3"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_ranks_are_kept_with_the_ids_of_the_log() -> None:
    ranks = pl.read_parquet(trained_run() / "ranks-test.parquet")
    assert ranks.columns == ["user_id", "item_id", "timestamp", "rank", "rank_unmasked"]
    engine = load(trained_run())
    for row in ranks.head(5).iter_rows(named=True):
        assert engine.history(row["user_id"], last=1)["item_id"].to_list() == [row["item_id"]]
    result = json.loads((trained_run() / "result.json").read_text())
    assert metrics.summarise(ranks["rank"].to_numpy(), (10,))["ndcg@10"] == result["test"]["ndcg@10"]


def test_a_sample_of_targets_is_seeded_and_in_order() -> None:
    sequences = build_sequences(random_log(users=40, events=400), SplitOptions())
    all_rows = sequences.targets("validation")
    assert sample_targets(sequences, "validation", 1000, 0) is not None
    np.testing.assert_array_equal(sample_targets(sequences, "validation", len(all_rows), 0), all_rows)
    some = sample_targets(sequences, "validation", 10, 0)
    np.testing.assert_array_equal(some, np.unique(some))
    assert len(some) == 10 and set(some) <= set(all_rows)
    np.testing.assert_array_equal(some, sample_targets(sequences, "validation", 10, 0))
    assert some.tolist() != sample_targets(sequences, "validation", 10, 1).tolist()


# --- two runs -------------------------------------------------------------------------------------------------------------


def test_a_run_does_not_differ_from_itself() -> None:
    found = compare_runs(trained_run(), trained_run())
    assert found.keys() == {f"{name}@{k}" for name in ("recall", "ndcg") for k in (5, 10, 20)}
    for test in found.values():
        assert test == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}


def test_the_paired_test_has_a_sign_and_finds_a_large_difference(tmp_path: Path) -> None:
    """The other run's ranks are those of the first, but every hit is a miss."""
    other = copy_of_run(tmp_path / "other")
    worse = pl.read_parquet(other / "ranks-test.parquet").with_columns(rank=pl.lit(math.inf))
    worse.write_parquet(other / "ranks-test.parquet")
    recall = json.loads((trained_run() / "result.json").read_text())["test"]["recall@10"]
    better, back = compare_runs(trained_run(), other)["recall@10"], compare_runs(other, trained_run())["recall@10"]
    assert better["difference"] == pytest.approx(recall) == pytest.approx(-back["difference"])
    assert 0 < better["low"] < recall < better["high"]
    assert better["p_value"] == back["p_value"] < 0.001


def test_runs_of_different_targets_are_refused(tmp_path: Path) -> None:
    timeline = ("split={protocol = 'timeline', validation_from = '80%', test_from = '90%'}",)
    for name, overrides in (("split", timeline), ("data", ("data.simulate.seed=1",))):
        train(tiny_recipe(tmp_path / name, "train.max_steps=1", *overrides), quiet=True)
        evaluate(tmp_path / name)
        with pytest.raises(LargeRecError, match="were not evaluated on the same targets; use runs of one log and one split"):
            compare_runs(trained_run(), tmp_path / name)


def test_a_run_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "run", "train.max_steps=1"), quiet=True)
    with pytest.raises(LargeRecError, match=r"run has no test ranks to compare yet; make them with: largerec evaluate .*run"):
        compare_runs(trained_run(), tmp_path / "run")


# --- memory ---------------------------------------------------------------------------------------------------------------


def test_a_million_items_stay_under_four_gigabytes() -> None:
    """The peak does not grow with the number of users; benchmarks/evaluate_memory.py measures 2,000 of them."""
    script = Path(__file__).parents[1] / "benchmarks" / "evaluate_memory.py"
    command = [sys.executable, str(script), "--users", "60", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["items"] == 1_000_000 and found["users"] == 60
    assert 100 < found["peak_mb"] < 4_000


# --- calibration ----------------------------------------------------------------------------------------------------------


class SureScorer:
    """Gives token 0 the probability 1/2 and shares the rest among the others, whatever the history."""

    def __init__(self, size: int) -> None:
        self.size = size

    def scores(self, queries: Queries) -> torch.Tensor:
        rest = 0.5 / (self.size - 1)
        return torch.tensor([0.5] + [rest] * (self.size - 1)).log().repeat(len(queries), 1)


def test_calibration_by_hand() -> None:
    """Everyone saw A, so it is masked; the four others keep an eighth each: probabilities are those of the whole catalogue."""
    engine = popularity_engine(log_by_hand())
    rows = engine.sequences.targets("test")
    sure = Engine.beside(engine, SureScorer(engine.tokenizer.size))
    found = calibration(sure, rows, 1, OPTIONS, seed=0)
    measured = measure(sure, rows, list_length=1)
    target_N = engine.token_of_item[engine.sequences.item_N[rows]]
    hits = (measured.top_NK[:, 0] == target_N).sum()
    assert found["targets"] == len(rows) == 4 and found["observed"] == hits / 4
    assert 0 < hits < 4 and found["expected"] == pytest.approx(0.125)
    assert [(b["n"], b["observed"]) for b in found["bins"]] == [(4, hits / 4)]
    assert found["interval"][0] <= found["observed"] <= found["interval"][1]


@pytest.mark.parametrize("items", [1, 2])
def test_a_catalogue_that_everybody_has_seen_whole_can_be_asked(items: int, tmp_path: Path) -> None:
    rows = [(user, (user + at) % items, START_MS + (at * 12 + user) * MINUTE_MS) for user in range(12) for at in range(6)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "log.csv")
    train(tiny_recipe(tmp_path / "run", f"data.path={tmp_path / 'log.csv'}", "train.max_epochs=1"), quiet=True)
    found = evaluate(tmp_path / "run")
    assert found["test"][f"coverage@{items}"] == 0 and not [name for name in found["test"] if name.startswith("gini")]
    assert found["test_unmasked"]["recall@10"] == 1
    assert Path(report([tmp_path / "run"])["report"]).is_file()


def test_a_metric_that_validation_cannot_have_chooses_nothing(tmp_path: Path) -> None:
    """One event a user has no pair of labels within a user."""
    tasks = [*overrides_of("interleaved"), "train.metric=buy.gauc", "train.max_epochs=1"]
    with pytest.raises(LargeRecError, match=r"'buy\.gauc' cannot be said of the validation events"):
        train(tiny_recipe(tmp_path / "run", *tasks), quiet=True)
