"""One model that retrieves and ranks: heads and their losses, predictions of events, rank(), and a run with tasks end to end."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from logs import START_MS, log_of
from runs import assert_same_training, copy_of_run, tiny_recipe, trained_run
from test_actions import LENGTH, Mode, each_mode, rows_of
from test_models import each_family, options_of, query_times_of
from test_tasks import TASKS as FOUR_CLASSES
from torch.nn import functional as F
from typer.testing import CliRunner

from largerec.batches import pack_training
from largerec.cli import app
from largerec.columns import UNTIMED
from largerec.engine import Engine, ModelScorer, load
from largerec.engine.engine import build_scorer
from largerec.engine.ranking import Ranker
from largerec.errors import LargeRecError
from largerec.evaluate import compare_runs, evaluate, popularity_scorers
from largerec.evaluate_tasks import predict_tasks
from largerec.heads import HeadOptions, ItemHead
from largerec.models import RETRIEVING as FAMILIES
from largerec.models import build_model
from largerec.progress import Progress
from largerec.ranking import RankingOptions, TaskHeads, add_tasks
from largerec.report import report
from largerec.sequences import TRAIN, SplitOptions, build_sequences
from largerec.tasks import TaskOptions
from largerec.tokenizers import AtomicTokenizer
from largerec.train import Trainer, train

TASKS = {"good": TaskOptions(where="value >= 4"), "long": TaskOptions(quantiles_of="value", classes=3, weight=0.5)}


def log_with_values(users: int = 12, items: int = 15, events: int = 150) -> Any:
    """A random log with a value; one item comes only after training has ended."""
    rng = np.random.default_rng(3)
    rows = [(int(u), int(i), START_MS + n * 60_000) for n, (u, i) in enumerate(rng.integers([users, items], size=(events, 2)))]
    rows += [(user, 99, START_MS + 10_000_000 + user) for user in range(0, users, 3)]
    log = log_of(rows)
    return replace(log, events=log.events.with_columns(value=pl.Series(rng.integers(1, 6, len(rows)).astype(float))))


def engine_of(family: str, mode: Mode, **settings: Any) -> Engine:
    """An untrained engine whose weights are all far from zero."""
    sequences = build_sequences(log_with_values(), SplitOptions(), TASKS)
    tokenizer = AtomicTokenizer.fit(sequences)
    torch.manual_seed(0)
    positions = 2 * LENGTH + 1 if mode == "interleaved" else LENGTH
    model = build_model(options_of(family, **settings), tokenizer.size, positions)
    add_tasks(model, TASKS, RankingOptions(), mode)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    query_time = bool(settings.get("query_time", False))
    scorer = ModelScorer(model, ItemHead(HeadOptions()), tokenizer.counts_V, LENGTH, query_time=query_time, actions=mode)
    return Engine(scorer.prepared(), tokenizer, sequences)


# --- heads and losses


@each_mode
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_probabilities_are_those_of_the_logits(mode: Mode, head: Any) -> None:
    torch.manual_seed(0)
    heads = TaskHeads(RankingOptions(head=head), TASKS, 8, mode)
    state_ND, item_ND = torch.randn(5, 8), torch.randn(5, 8)
    for logit, probability in zip(heads(state_ND, item_ND), heads.probabilities(state_ND, item_ND), strict=True):
        whole = torch.cat([torch.zeros(5, 1), logit], dim=1) if logit.shape[1] == 1 else logit
        torch.testing.assert_close(probability, whole.softmax(1))
    assert [tuple(p.shape) for p in heads.probabilities(state_ND, item_ND)] == [(5, 2), (5, 3)]
    other = heads.probabilities(state_ND, item_ND + 1)
    assert (mode == "summed") != torch.equal(other[0], heads.probabilities(state_ND, item_ND)[0])


@each_mode
def test_losses_are_cross_entropies_of_the_known_labels(mode: Mode) -> None:
    torch.manual_seed(0)
    heads, table_VD = TaskHeads(RankingOptions(), FOUR_CLASSES, 8, mode), torch.randn(15, 8)
    batch = pack_training(rows_of(mode), np.array([0, 9]), np.array([8, 14]))
    assert batch.task_label_TA is not None and batch.target_T is not None
    hidden_TD = torch.randn(batch.n_tokens, 8)
    known_A = (batch.task_label_TA >= 0).sum(0)
    found = heads.losses(hidden_TD, batch, table_VD, known_A)
    probabilities = heads.probabilities(hidden_TD, table_VD[batch.target_T])
    for column, probability in enumerate(probabilities):
        asked = batch.task_label_TA[:, column] >= 0
        wanted = F.nll_loss(probability[asked].log(), batch.task_label_TA[asked, column])
        torch.testing.assert_close(found[column], wanted)
    pieces = [heads.losses(hidden_TD[a:b], piece, table_VD, known_A) for a, b, piece in _cut(batch)]
    torch.testing.assert_close(torch.stack(pieces).sum(0), found)


def _cut(batch: Any) -> list[Any]:
    pieces, start, found = batch.pieces(2), 0, []
    for piece in pieces:
        found.append((start, start + piece.n_tokens, piece))
        start += piece.n_tokens
    assert len(found) == 2
    return found


def test_fixed_weights_add_up() -> None:
    heads = TaskHeads(RankingOptions(retrieval=2.0, weight=3.0), TASKS, 8, "interleaved")
    losses = torch.tensor([0.5, 0.25])
    assert float(heads.joint(torch.tensor(1.0), losses, 1.0)) == pytest.approx(2 * 1 + 3 * 0.5 + 3 * 0.5 * 0.25)
    alone = TaskHeads(RankingOptions(retrieval=0.0), TASKS, 8, "interleaved")
    assert float(alone.joint(torch.tensor(float("nan")), losses, 1.0)) == pytest.approx(0.5 + 0.125)


def test_learned_variances_settle_where_each_is_twice_its_loss() -> None:
    """The minimum of loss / s + log(s) / 2 is at s = 2 loss."""
    heads = TaskHeads(RankingOptions(balance="uncertainty"), TASKS, 8, "interleaved")
    assert heads.log_variance is not None
    optimizer = torch.optim.Adam([heads.log_variance], lr=0.1)
    losses = [torch.tensor(4.0), torch.tensor([0.5, 0.125])]
    for _ in range(300):
        optimizer.zero_grad()
        (heads.joint(*losses, 0.25) + heads.joint(torch.zeros(()), torch.zeros(2), 0.75)).backward()  # a step in two parts
        optimizer.step()
    torch.testing.assert_close(heads.log_variance.detach().exp(), torch.tensor([8.0, 1.0, 0.25]), rtol=1e-3, atol=1e-3)


# --- predictions of events and of candidates


@each_family
@each_mode
def test_an_event_is_predicted_as_a_candidate_at_its_time(family: str, mode: Mode) -> None:
    """The shared causal pass of an evaluation against the history of each event on its own, written out."""
    engine = engine_of(family, mode)
    sequences, ranker = engine.sequences, engine.ranker
    rows = np.arange(len(sequences.item_N))
    queries, token_N = engine.queries_at(rows), engine.token_of_item[sequences.item_N]
    together = ranker.of_events(queries, token_N)
    assert (token_N < 0).any() and (queries.end_Q == queries.first_Q).any() and (queries.end_Q - queries.first_Q).max() > LENGTH
    for row in rows:
        if token_N[row] < 0:
            alone = [share[None] for share in ranker.shares]
        else:
            alone = ranker.of_candidates(queries.block(row, row + 1), token_N[row : row + 1], cached=False)
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[row], other[0], rtol=0, atol=1e-5)


@each_family
@each_mode
def test_many_candidates_are_as_one_by_one(family: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history once and all items after it, in blocks, against copies of the history, and against one item at a time."""
    monkeypatch.setattr("largerec.engine.ranking.CANDIDATE_BLOCK", 4)
    token_C = np.array([3, 1, 3, 0, 7, 11, 2, 5, 4, 13])
    for settings, row in itertools.product(query_times_of(family), (0, 5, -1)):
        engine = engine_of(family, mode, **settings)
        ranker, row = engine.ranker, row % len(engine.sequences.item_N)
        query = engine.queries_at(np.array([row]))
        found = [ranker.of_candidates(query, token_C)]
        found.append(ranker.of_candidates(query, token_C, cached=False))
        alone = [ranker.of_candidates(query, token_C[at : at + 1]) for at in range(len(token_C))]
        found.append([torch.cat(parts) for parts in zip(*alone, strict=True)])
        for one in found[1:]:
            for a, b in zip(found[0], one, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        backwards = ranker.of_candidates(query, token_C[::-1].copy())
        torch.testing.assert_close(backwards[0].flip(0), found[0][0], rtol=0, atol=1e-5)
        if row or mode == "interleaved":  # with summed actions nothing can be said before the first event
            assert found[0][0][:, 1].std() > 1e-3
        torch.testing.assert_close(found[0][0][0], found[0][0][2], rtol=0, atol=1e-5)  # the same item twice


def test_without_a_history_the_list_is_that_of_the_popularity_baseline() -> None:
    sequences = build_sequences(log_with_values(), SplitOptions(positives="value = 5"))
    tokenizer = AtomicTokenizer.fit(sequences)
    scorer = build_scorer(tiny_recipe(Path("unused")).resolved(), tokenizer, sequences).prepared()
    engine = Engine(scorer, tokenizer, sequences)
    assert sequences.positive_N is not None
    learned = sequences.item_N[sequences.positive_N & (sequences.stage_N == TRAIN)]
    counts = [(learned == sequences.item_ids.index_of(item)).sum() for item in tokenizer.vocabulary["item_id"]]
    query = replace(engine.queries_at(np.array([0])), row_Q=None)
    assert scorer.scores(query)[0].tolist() == counts != tokenizer.counts_V.tolist()
    assert torch.equal(popularity_scorers(engine)["popularity"].scores(query), scorer.scores(query))


def test_families_of_attention_are_cached() -> None:
    assert {family for family, (_, model) in FAMILIES.items() if model.cached} >= {"sasrec", "hstu", "llama", "ligr"}


def test_rank_returns_a_frame_best_first() -> None:
    engine = engine_of("hstu", "interleaved")
    frame = engine.rank(3, [5, 2, 9, 5])
    assert frame.schema == {"item_id": pl.Int64, "good": pl.Float64, "long": pl.Float64, "rank": pl.Int64}
    assert frame["good"].is_sorted(descending=True) and frame["rank"].to_list() == [1, 2, 3, 4]
    assert sorted(frame["item_id"]) == [2, 5, 5, 9]
    assert engine.rank(3, [5, 2, 9], by="long")["long"].is_sorted(descending=True)
    new = engine.rank(history=[4, 5], candidates=[2, 9])
    assert new.height == 2
    assert engine.rank(history=[], candidates=[2, 9])["good"].n_unique() == 2  # an item alone is enough


@each_mode
def test_at_a_moment_what_comes_later_is_unknown(mode: Mode) -> None:
    engine = engine_of("hstu", mode)
    sequences = engine.sequences
    start, end = sequences.offsets_U1[4:6]
    user, row = sequences.user_ids[4], int(start + end) // 2
    at = datetime.fromtimestamp(sequences.time_N[row] / 1000, UTC)
    query, kept_N1 = engine._queries_until(np.array([4]), at), engine.rows.kept_N1
    assert (query.first_Q[0], query.end_Q[0]) == (kept_N1[start], kept_N1[row + 1]) and query.end_Q[0] < kept_N1[end]
    assert engine._queries_until(np.array([4]), at - timedelta(milliseconds=1)).end_Q[0] == kept_N1[row]
    sequences.time_N[start:row] = UNTIMED
    assert (
        engine._queries_until(np.array([4]), datetime(1960, 1, 1, tzinfo=UTC)).end_Q[0] == kept_N1[row]
    )  # what has no time stays
    then = engine.rank(user, [5, 2, 9], at=at)
    assert engine.rows.label_MA is not None
    later = slice(kept_N1[row + 1], kept_N1[end])
    engine.rows.token_M[later] = (engine.rows.token_M[later] + 1) % 15
    engine.rows.label_MA[later] = 0
    assert engine.rank(user, [5, 2, 9], at=at).equals(then)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"user": 3}, "list of candidates is empty"),
        ({"user": 3, "candidates": [99]}, "candidate 99 is not in the catalogue of 15 items"),
        ({"user": 77, "candidates": [1]}, "user 77 is not in this run's log"),
        ({"candidates": [1]}, "give either a user or history"),
        ({"user": 3, "history": [1], "candidates": [1]}, "give either a user or history"),
        ({"history": [1], "candidates": [1], "at": datetime(2020, 1, 1)}, "at=.* a history given by hand has no times"),
        ({"user": 3, "candidates": [1], "by": "god"}, "by='god' is no task of this run; did you mean 'good'"),
    ],
)
def test_what_cannot_be_ranked_is_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        engine_of("sasrec", "interleaved").rank(**arguments)


def test_a_log_without_a_clock_is_asked_at_no_moment() -> None:
    engine = engine_of("hstu", "interleaved")
    engine = Engine(engine.scorer, engine.tokenizer, replace(engine.sequences, time_kind="order"))
    assert engine._queries_of_users(np.array([3])).time_Q.tolist() == [-1]
    assert engine.rank(3, [5, 2, 9]).height == 3
    with pytest.raises(LargeRecError, match="an order and no clock; leave it out"):
        engine.rank(3, [5, 2, 9], at=datetime(2020, 1, 1))


def test_a_run_without_tasks_cannot_rank() -> None:
    with pytest.raises(LargeRecError, match="no tasks to rank by"):
        load(trained_run()).rank("u0001", ["i01"])


# --- a run end to end: in the generated world, what people buy depends on who they are and what it is

WITH_TASKS = (
    """tasks.buy.where="behavior = 'buy'" """.strip(),
    "tasks.cheap.quantiles_of=timestamp",
    "tasks.cheap.classes=3",
    """split.positives="behavior != 'view'" """.strip(),
)


def overrides_of(mode: Mode) -> tuple[str, ...]:
    return (*WITH_TASKS, f"batch.actions={mode}")


@each_mode
def test_a_run_measures_its_tasks(mode: Mode) -> None:
    run = trained_run(*overrides_of(mode))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    found, rows = result["tasks"]["buy"], load(run).sequences.impressions("test")
    assert found["n"] == len(rows) and 0 < found["rate"] < 1
    assert found["intervals"]["auc"][0] < found["auc"] < found["intervals"]["auc"][1]
    assert found["baselines"]["item rate"]["auc"] is not None
    assert {"auc", "gauc", "log_loss", "ne", "ece"} <= result["validation_tasks"]["buy"].keys()
    assert {"accuracy", "log_loss", "ne"} <= result["tasks"]["cheap"].keys()
    assert result["targets"]["n"] == len(load(run).sequences.targets("test")) < len(rows)
    predicted = pl.read_parquet(run / "predictions-test.parquet")
    again = predict_tasks(load(run), rows).frame(load(run).sequences)
    assert predicted.equals(again) and predicted.columns[3:] == ["buy.label", "buy.predicted", "cheap.label", "cheap.predicted"]
    looks = [json.loads(line).get("validation", {}) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("buy.auc" in look and "ndcg@10" in look for look in looks)
    assert load(run).sequences.edges.keys() == {"cheap"}


@each_mode
def test_the_command_ranks(mode: Mode) -> None:
    run = trained_run(*overrides_of(mode))
    engine = load(run)
    user, items = engine.sequences.user_ids[0], engine.tokenizer.vocabulary["item_id"].head(3).to_list()
    done = CliRunner().invoke(app, ["rank", str(run), "--user-id", user, "--json", "--items", *items])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row["item_id"] for row in found] == engine.rank(user, items)["item_id"].to_list()
    assert found[0].keys() == {"item_id", "buy", "cheap", "rank", "title"}
    for moment in ("2000-01-01", "2000-01-01T01:00+01:00"):
        done = CliRunner().invoke(app, ["rank", str(run), "--user-id", user, "--json", "--items", *items, "--at", moment])
        earlier = json.loads(done.stdout.splitlines()[-1])
        assert earlier == engine.rank(user, items, at=datetime(2000, 1, 1)).to_dicts()
        assert earlier != found  # nothing had happened then
    done = CliRunner().invoke(app, ["rank", str(run), "--user-id", user, "--items", *items, "--at", "soon"])
    assert isinstance(done.exception, LargeRecError) and "'soon' is no ISO date" in str(done.exception)
    done = CliRunner().invoke(
        app, ["rank", str(run), "--history", items[0], "--items", f"{items[1]},{items[2]}", "--by", "cheap"]
    )
    assert done.exit_code == 0 and items[1] in done.stdout


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("interleaved", "optim.table=lazy-adam"),
        ("summed", "optim.table=lazy-adam"),
        ("summed", "train.accumulate=3"),
        ("interleaved", "ranking.balance=uncertainty"),
    ],
)
def test_a_killed_run_resumes_to_the_same_numbers(mode: Mode, more: str, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    recipes = [tiny_recipe(tmp_path / name, *overrides_of(mode), more, "train.max_epochs=2") for name in ("whole", "cut")]
    train(recipes[0], quiet=True)
    plain = Trainer.step

    def step(self: Trainer, *given: Any) -> float:
        if self.state.step == 6:
            raise Killed
        return plain(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(Killed):
            train(recipes[1], quiet=True)
    train(recipes[1], quiet=True)
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


def test_ranking_alone_is_chosen_by_its_own_metric(tmp_path: Path) -> None:
    alone = ("ranking.retrieval=0", "train.metric=buy.auc", 'objective={name="softmax"}')
    recipe = tiny_recipe(tmp_path / "run", *overrides_of("interleaved"), *alone)
    result = train(recipe, quiet=True)
    looks = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line["validation"]["buy.auc"] for line in looks if "validation" in line}
    assert result["best_step"] == max(values, key=lambda step: (values[step], -step))


@each_mode
def test_ranking_alone_updates_the_rows_that_it_uses(mode: Mode, tmp_path: Path) -> None:
    alone = ("ranking.retrieval=0", "train.metric=buy.auc", 'objective={name="softmax"}', "optim.table=lazy-adam")
    trainer = Trainer(tiny_recipe(tmp_path / "run", *overrides_of(mode), *alone), Progress(quiet=True))
    batch, before_VD = next(iter(trainer.batches.epoch(0, 0))), trainer.model.item_table_VD.detach().clone()
    trainer.step(batch)
    changed_V = (trainer.model.item_table_VD != before_VD).any(1)
    assert batch.target_T is not None
    used = {*batch.item_T.tolist(), *batch.target_T.tolist()}
    assert set(changed_V.nonzero()[:, 0].tolist()) <= used and 0 < changed_V.sum() < len(changed_V)


def test_retrieval_alone_reads_actions_and_predicts_none(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", *overrides_of("summed"), "ranking.weight=0")
    result = train(recipe, quiet=True)
    assert "validation_tasks" not in result and evaluate(tmp_path / "run")["tasks"] == {}
    with pytest.raises(LargeRecError, match="learned none of its tasks"):
        load(tmp_path / "run").rank("u0001", ["i01"])


@each_mode
def test_the_model_finds_who_buys_what(mode: Mode, tmp_path: Path) -> None:
    """Labels that follow from the last label and the item: only a model that reads both can know them."""
    rng = np.random.default_rng(0)
    rows, values = [], []
    for user in range(150):
        last = int(rng.integers(2))
        for step in range(14):
            item = int(rng.integers(10))
            last = last ^ (item % 2)
            rows.append((user, item, START_MS + 1_000_000 * step + user))
            values.append(float(last))
    log = log_of(rows)
    log.events.with_columns(rating=pl.Series(values)).write_csv(tmp_path / "log.csv")
    changes = [
        f"data.path={tmp_path / 'log.csv'}", "tasks.odd.where=value = 1", f"batch.actions={mode}", "batch.tokens=512",
        "batch.max_length=16", "batch.window=all", "model={name=\"hstu\", depth=2, width=32, heads=2, dropout=0}",
        "train.max_epochs=30", "train.metric=odd.auc", "ranking.retrieval=0", "optim={learning_rate=0.01, warmup_steps=5}",
        'objective={name="softmax"}',
    ]  # fmt: skip
    train(tiny_recipe(tmp_path / "run", *changes), quiet=True)
    assert evaluate(tmp_path / "run")["tasks"]["odd"]["auc"] > 0.95


def test_runs_with_tasks_are_compared_like_others(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run", *overrides_of("interleaved"))
    other = trained_run(*overrides_of("summed"))
    assert compare_runs(run, other)["ndcg@10"].keys() == {"difference", "low", "high", "p_value"}


def test_the_report_shows_each_task_and_its_reliability(tmp_path: Path) -> None:
    runs = [trained_run(*overrides_of("interleaved")), trained_run()]
    whole = Path(report([runs[0]], tmp_path / "one.html")["report"]).read_text(encoding="utf-8")
    found = json.loads((runs[0] / "result.json").read_text(encoding="utf-8"))["tasks"]["buy"]
    assert "Tasks on the test part" in whole and "Reliability of buy" in whole and "Reliability of cheap" not in whole
    for value in (found["auc"], found["ne"], found["baselines"]["item rate"]["auc"]):
        assert f"{value:.4f}".removeprefix("0") in whole
    assert "Tasks on the" not in Path(report([runs[1]], tmp_path / "two.html")["report"]).read_text(encoding="utf-8")


def test_shares_are_those_of_training() -> None:
    engine = engine_of("sasrec", "summed")
    ranker, sequences = engine.ranker, engine.sequences
    assert isinstance(ranker, Ranker) and sequences.label_NA is not None
    label_N = sequences.label_NA[sequences.stage_N == 0, 0]
    assert float(ranker.shares[0][1]) == pytest.approx(label_N[label_N >= 0].mean())
