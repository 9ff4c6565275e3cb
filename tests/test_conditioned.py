"""Retrieval conditioned on a task: the chain rule, what it finds in a log of two behaviours, and what cannot be wanted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from logs import START_MS, log_of
from runs import copy_of_run, tiny_recipe, trained_run
from test_actions import Mode, each_mode
from test_ranking import engine_of, overrides_of
from typer.testing import CliRunner

from largerec.bundle import Bundle
from largerec.cli import app
from largerec.engine import ModelScorer, load
from largerec.engine import conditioned as module
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate
from largerec.metrics import EvaluateOptions
from largerec.train import train


@each_mode
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_the_score_is_the_sum_of_both_logarithms(mode: Mode, weight: float) -> None:
    engine = engine_of("hstu", mode)
    at, size = datetime(2024, 5, 1, tzinfo=UTC), engine.tokenizer.size
    users = [2, 5]
    plain = engine.recommend(users, size, mask=False, at=at)
    found = engine.recommend(users, size, mask=False, want="good", want_weight=weight, at=at)
    for user in users:
        mine = plain.filter(pl.col("user_id") == user)
        log_next = np.log(np.exp(mine["score"].to_numpy()) / np.exp(mine["score"].to_numpy()).sum())
        probability = engine.rank(user, mine["item_id"].to_list(), at=at)
        both = mine.with_columns(next=pl.Series(log_next)).join(probability, on="item_id")
        truth = {row["item_id"]: row["next"] + weight * np.log(row["good"]) for row in both.to_dicts()}
        given = found.filter(pl.col("user_id") == user)
        np.testing.assert_allclose(given["score"], [truth[item] for item in given["item_id"]], atol=1e-4)
        assert given["item_id"].to_list()[0] == max(truth, key=lambda item: truth[item]) and given["score"].is_sorted(
            descending=True
        )
        if weight == 0:
            assert given["item_id"].to_list() == mine["item_id"].to_list()


@each_mode
def test_seen_items_stay_out_and_an_empty_history_is_answered(mode: Mode) -> None:
    engine = engine_of("hstu", mode)
    seen = engine.history(3, last=10_000)["item_id"].to_list()
    assert not set(engine.recommend([3], 100, want="good")["item_id"]) & set(seen)
    nobody = engine.recommend(histories=[[], [seen[0]]], k=5, want="good")
    assert nobody["user_id"].to_list() == [0] * 5 + [1] * 5 and nobody["score"].is_finite().all()


def test_a_list_is_the_shortlist_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTLIST", 4)
    engine = engine_of("hstu", "interleaved")
    plain, found = (engine.recommend([2], 4, mask=False, want=want)["item_id"].to_list() for want in (None, "good"))
    assert sorted(plain) == sorted(found)
    assert len(engine.recommend([2], 7, mask=False, want="good")) == 7, "a longer list has a longer shortlist"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"want": "goo"}, "want='goo' is no task to be wanted.*good.*There are: good"),
        ({"want": "long"}, "want='long' is no task to be wanted.*There are: good"),  # classes of a number
        ({"want": "good", "users": None, "histories": [[1]], "at": datetime(2024, 5, 1)}, "a history given by hand has no times"),
    ],
)
def test_what_cannot_be_wanted_is_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        engine_of("hstu", "interleaved").recommend(**{"users": [2], **arguments})


def test_a_run_without_tasks_wants_nothing() -> None:
    with pytest.raises(LargeRecError, match="this run has no tasks"):
        load(trained_run()).recommend(["u0001"], want="like")


def test_heads_that_are_nan_are_not_served() -> None:
    engine = engine_of("hstu", "interleaved")
    assert engine.retrieves and isinstance(engine.scorer, ModelScorer) and engine.scorer.model.task_heads is not None
    with torch.no_grad():
        for parameter in engine.scorer.model.task_heads.parameters():
            parameter.fill_(float("nan"))
    for ask in (lambda: engine.rank(2, [1, 2]), lambda: engine.recommend([2], want="good")):
        with pytest.raises(LargeRecError, match="the model's scores are NaN: its weights diverged"):
            ask()
    assert engine.recommend([2], 3)["score"].is_finite().all(), "retrieval's own weights are sound"


def test_what_is_liked_is_found_among_what_is_watched(tmp_path: Path) -> None:
    """Of forty items those below twenty are watched three times as often, and only the others are ever liked."""
    rng = np.random.default_rng(0)
    rows, values = [], []
    for user in range(200):
        liked = rng.random(12) < 0.25
        items = np.where(liked, 20, 0) + rng.permutation(20)[:12]
        rows += [(user, int(item), START_MS + 1_000_000 * step + user) for step, item in enumerate(items)]
        values += liked.astype(float).tolist()
    log_of(rows).events.with_columns(rating=pl.Series(values)).write_csv(tmp_path / "log.csv")
    changes = [
        f"data.path={tmp_path / 'log.csv'}", "tasks.like.where=value = 1", "batch.actions=interleaved", "batch.tokens=512",
        "batch.max_length=12", "model={name=\"hstu\", depth=1, width=16, heads=1, dropout=0}", "train.max_epochs=12",
        "optim={learning_rate=0.01, warmup_steps=5}", "evaluate.conditioned=40",
    ]  # fmt: skip
    train(tiny_recipe(tmp_path / "run", *changes), quiet=True)
    measured = evaluate(tmp_path / "run")["conditioned"]["like"]
    assert 20 < measured["n"] <= 40 and measured["wanted"]["ndcg@10"] > 1.3 * measured["plain"]["ndcg@10"]
    assert measured["paired"]["ndcg@10"]["difference"] == pytest.approx(
        measured["wanted"]["ndcg@10"] - measured["plain"]["ndcg@10"], abs=1e-9
    )
    at = datetime.fromtimestamp((START_MS + 13_000_000) / 1000, UTC)
    engine = load(tmp_path / "run")
    share = {want: (engine.recommend(range(50), 3, want=want, at=at)["item_id"] >= 20).mean() for want in (None, "like")}
    assert share["like"] > 0.9 > share[None]  # type: ignore[operator]
    asked = CliRunner().invoke(
        app, ["recommend", str(tmp_path / "run"), "--user-id", "3", "--want", "like", "-k", "2", "--at", "2024-05-01", "--json"]
    )
    assert asked.exit_code == 0 and len(json.loads(asked.output.splitlines()[-1])) == 2


def test_what_is_not_measured_again_is_not_said_again(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run", *overrides_of("summed"), "evaluate.conditioned=20")
    options, without = Bundle(run).recipe().evaluate, EvaluateOptions(bootstrap_samples=20)
    evaluate(run, options, "validation")
    assert {"conditioned", "validation_conditioned"} <= Bundle(run).read_json("result.json").keys()
    assert evaluate(run, without).keys() & {"conditioned", "validation_conditioned"} == {"validation_conditioned"}
    assert "validation_conditioned" not in evaluate(run, without, "validation")


def test_log_next_is_a_distribution() -> None:
    engine = engine_of("hstu", "summed")
    queries = engine._queries_of_histories([[], [1], [2, 3]])
    torch.testing.assert_close(module.log_next(engine.scorer, queries).exp().sum(1), torch.ones(3))
