"""Choices among shown items: metrics against the slow truth, lists through the split and back, the choice model, a whole run."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from logs import MINUTE_MS, START_MS, log_of
from runs import tiny_recipe
from typer.testing import CliRunner

from largerec import metrics
from largerec.bundle import data_hash
from largerec.choice import ListContext, fit_choice, from_json, inputs, out_of_fold, softmax_of_lists
from largerec.cli import app
from largerec.engine import PopularityScorer, load
from largerec.engine.shown import shown_scores, touched, touched_in
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate
from largerec.evaluate_lists import AGAINST, asked_lists, baseline_scores, context_of, rank_lists, task_scores
from largerec.events import EventLog
from largerec.list_metrics import chosen_ranks, list_values
from largerec.lists import SHOWN, ListOptions, read_lists
from largerec.recipe import recipe_from
from largerec.report import report
from largerec.sequences import SplitOptions, build_sequences, from_frame
from largerec.train import train

OPTIONS = ListOptions(items="shown_items", prices="cost")
SPLIT = SplitOptions(protocol="timeline", validation_from="50%", test_from="75%")


def listed_log(seed: int = 0, users: int = 60, length: int = 8) -> EventLog:
    """Sessions over 30 items, every second event a choice from a list of 3 to 8, most often its cheapest item.

    Items 90 and 91 are shown and never chosen; one list in ten does not show the row's own item.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, int, int]] = []
    shown: list[list[int] | None] = []
    prices: list[list[float | None] | None] = []
    for step in range(length):
        for user in range(users):
            if step % 2 == 0:
                item, listed, cost = int(rng.integers(30)), None, None
            else:
                listed = [*rng.permutation(30)[: rng.integers(2, 7)].tolist(), int(rng.integers(90, 92))]
                cost = rng.permutation(len(listed)).astype(float).tolist()
                cheap = [c if i < 90 else np.inf for c, i in zip(cost, listed, strict=True)]
                item = listed[int(np.argmin(cheap))] if rng.random() < 0.8 else listed[0]
                if rng.random() < 0.1:
                    listed, cost = [i for i in listed if i != item], cost[1:]
            rows.append((f"u{user}", item, START_MS + (step * users + user) * MINUTE_MS))
            shown.append(listed)
            prices.append(cost)
    log = log_of(rows)
    columns = {"shown_items": pl.Series(shown, dtype=pl.List(pl.Int64)), "cost": pl.Series(prices, dtype=pl.List(pl.Float64))}
    return EventLog(log.events.with_columns(**columns), None, "timestamp", (), "a test's log")


# --- metrics


def test_ranks_are_those_of_the_plain_definition() -> None:
    rng = np.random.default_rng(0)
    length_L = rng.integers(1, 9, 200)
    offsets_L1 = np.concatenate([[0], np.cumsum(length_L)])
    score_S = rng.integers(0, 4, offsets_L1[-1]).astype(float)
    chosen_L = rng.integers(0, length_L)
    found = chosen_ranks(score_S, offsets_L1, chosen_L)
    for at in range(200):
        own = score_S[offsets_L1[at] : offsets_L1[at + 1]]
        assert found[at] == metrics.average_rank(own[None], chosen_L[at : at + 1])[0]
    assert chosen_ranks([1.0, -np.inf, -np.inf], [0, 3], [2])[0] == 2.5, "what is unknown shares the last places"


def test_the_metrics_of_known_ranks() -> None:
    found = list_values(np.array([1.0, 2.5, 7.0]), (5,))
    assert found["mrr"].tolist() == [1, 0.4, 1 / 7]
    np.testing.assert_allclose(found["ndcg"], [1, 1 / np.log2(3.5), 1 / 3])
    assert found["hit@1"].tolist() == [1, 0, 0] and found["hit@5"].tolist() == [1, 1, 0]
    assert found["ndcg@5"].tolist() == [1, 1 / np.log2(3.5), 0]


@pytest.mark.parametrize(
    ("scores", "chosen", "said"),
    [([1.0], [0], "1 scores"), ([1.0, 2.0], [2], "the choice is at place 2"), ([1.0, np.nan], [0], "NaN")],
)
def test_wrong_lists_are_refused(scores: list[float], chosen: list[int], said: str) -> None:
    with pytest.raises(LargeRecError, match=said):
        chosen_ranks(scores, [0, 2], chosen)


# --- lists of a log


def test_lists_stand_at_their_rows_and_come_back_from_a_run_s_table() -> None:
    log = listed_log()
    sequences = build_sequences(log, SPLIT, None, OPTIONS)
    lists = sequences.lists
    assert lists is not None and lists.price_S is not None and len(lists) == 240
    by_key = {(u, t): (i, s, c) for u, i, t, s, c in log.events.rows()}
    ids = [*sequences.item_ids.to_list(), None]
    for at, row in enumerate(lists.row_L.tolist()):
        user = sequences.user_ids[int(np.searchsorted(sequences.offsets_U1, row, side="right") - 1)]
        item, shown, cost = by_key[user, sequences.time_N[row]]
        own = slice(*lists.offsets_L1[at : at + 2])
        assert [ids[i] for i in lists.item_S[own]] == [i if i < 90 else None for i in shown]
        assert lists.price_S[own].tolist() == cost
        assert lists.chosen_L[at] == (shown.index(item) if item in shown else -1)
    again = from_frame(sequences.frame(), "timestamp", "all")
    assert again.lists is not None and again.lists.price_S is not None
    there = [ids[i] for i in lists.item_S]
    assert [[*again.item_ids.to_list(), None][i] for i in again.lists.item_S] == there
    for name in ("row_L", "offsets_L1", "chosen_L", "price_S"):
        np.testing.assert_array_equal(getattr(again.lists, name), getattr(lists, name))
    plain = build_sequences(log, SPLIT)
    assert (
        data_hash(plain) != data_hash(sequences) != data_hash(build_sequences(log, SPLIT, None, ListOptions(items="shown_items")))
    )


def test_blanks_around_the_items_of_a_list_say_nothing() -> None:
    events = pl.DataFrame({"item_id": [5, 7, 5], "shown": ["5 | 7", " 5|7 ", ""]})
    assert read_lists(events, ListOptions(items="shown"))[SHOWN].to_list() == [[5, 7], [5, 7], None]


def test_text_is_split_and_the_first_of_two_places_is_the_choice() -> None:
    log = log_of([("a", n, START_MS + n) for n in range(5)])
    words = pl.Series(["", None, "7|2|x|2", "3", "4|3"])
    log = EventLog(log.events.with_columns(words.alias("list")), None, "timestamp", (), "t")
    lists = build_sequences(log, SplitOptions(), None, ListOptions(items="list")).lists
    assert lists is not None and lists.row_L.tolist() == [2, 3, 4] and lists.offsets_L1.tolist() == [0, 4, 5, 7]
    assert lists.item_S.tolist() == [-1, 2, -1, 2, 3, 4, 3] and lists.chosen_L.tolist() == [1, 0, 0] and lists.price_S is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"items": "showns_items"}, "did you mean 'shown_items'"),
        ({"items": "timestamp"}, "must hold lists"),
        ({"items": "shown_items", "prices": "short"}, "row 61 of the log shows"),
    ],
)
def test_wrong_columns_are_refused(options: dict[str, str], said: str) -> None:
    log = listed_log()
    short = log.events["cost"].list.head(2)
    log = EventLog(log.events.with_columns(short=short), None, "timestamp", (), "t")
    with pytest.raises(LargeRecError, match=said):
        build_sequences(log, SPLIT, None, ListOptions.model_validate(options))


def test_options_without_lists_say_nothing() -> None:
    with pytest.raises(LargeRecError, match=r"lists\.choice says nothing"):
        recipe_from({"lists": {"choice": True}})


def test_what_was_touched_is_the_history_s() -> None:
    sequences = build_sequences(listed_log(), SPLIT, None, OPTIONS)
    assert sequences.lists is not None
    since_S, touches_S = touched(sequences, sequences.lists)
    assert (since_S >= 0).any() and (touches_S > 1).any()
    for at, row in enumerate(sequences.lists.row_L.tolist()):
        start = sequences.offsets_U1[np.searchsorted(sequences.offsets_U1, row, side="right") - 1]
        own = slice(*sequences.lists.offsets_L1[at : at + 2])
        shown = [item if item >= 0 else None for item in sequences.lists.item_S[own].tolist()]
        slow = touched_in(sequences.item_N[start:row].tolist(), shown)
        np.testing.assert_array_equal((since_S[own], touches_S[own]), slow)


# --- the choice model


def random_context(rng: np.random.Generator, lists: int = 300) -> ListContext:
    offsets_L1 = np.concatenate([[0], np.cumsum(rng.integers(2, 12, lists))])
    size = int(offsets_L1[-1])
    since_S = np.where(rng.random(size) < 0.2, rng.integers(0, 20, size), -1)
    score_S = np.where(rng.random(size) < 0.8, rng.normal(size=size), -np.inf)
    return ListContext(offsets_L1, since_S, (since_S >= 0) * 1, score_S, rng.integers(0, 9, size) * 1.0, rng.uniform(9, 99, size))


def test_a_known_law_of_choice_is_found() -> None:
    rng = np.random.default_rng(1)
    context = random_context(rng, 6000)
    given = inputs(context)
    law_S = softmax_of_lists(
        1.5 * given["touched 0+ events ago"] - 2.0 * given["price rank"] + 0.7 * given["score in the list"], context.offsets_L1
    )
    chosen_L = np.array(
        [rng.choice(b - a, p=law_S[a:b]) for a, b in zip(context.offsets_L1, context.offsets_L1[1:], strict=False)]
    )
    model = fit_choice(context, chosen_L)
    found_S = model.probabilities(context)
    own = context.offsets_L1[:-1] + chosen_L
    assert np.log(found_S[own]).mean() > np.log(law_S[own]).mean() - 1e-9, "the fit is at least as likely as the truth"
    assert np.abs(found_S - law_S).mean() < 0.01
    np.testing.assert_allclose(np.add.reduceat(found_S, context.offsets_L1[:-1]), 1)
    again = from_json(json.loads(json.dumps(model.to_json())), "x")
    np.testing.assert_array_equal(again.utilities(context), model.utilities(context))


def test_an_input_that_never_differs_has_no_say() -> None:
    """Its deviation may be a rounding error instead of 0."""
    rng = np.random.default_rng(3)
    context = random_context(rng)
    chosen_L = rng.integers(0, np.diff(context.offsets_L1))
    counts = [np.full(len(context.count_S), float(count)) for count in (0, 1, 5)]
    models = [fit_choice(replace(context, count_S=count_S), chosen_L) for count_S in counts]
    assert [model.weights["log training targets"] for model in models] == [0, 0, 0]
    for model in models[1:]:
        assert model.weights == pytest.approx(models[0].weights)


def test_the_fit_is_where_the_slope_is_nothing_and_lists_are_judged_out_of_fold() -> None:
    rng = np.random.default_rng(2)
    context = random_context(rng)
    noise_L = rng.integers(0, np.diff(context.offsets_L1))
    own = context.offsets_L1[:-1] + noise_L
    model = fit_choice(context, noise_L)
    gap_S = model.probabilities(context)
    gap_S[own] -= 1
    for name, value_S in inputs(context).items():
        spread = value_S.std() or 1.0
        assert abs((gap_S @ value_S + model.weights[name] * spread**2) / spread) < 0.05, name
    uniform = -np.log(np.diff(context.offsets_L1)).mean()
    held_S = softmax_of_lists(out_of_fold(context, noise_L, np.arange(300)), context.offsets_L1)
    assert np.log(model.probabilities(context)[own]).mean() > uniform > np.log(held_S[own]).mean(), "noise fits in sample only"


def test_inputs_of_a_list_by_hand() -> None:
    context = ListContext(
        offsets_L1=np.array([0, 4]),
        since_S=np.array([-1, 3, -1, -1]),
        touches_S=np.array([0, 2, 0, 0]),
        score_S=np.array([1.0, 3.0, -np.inf, 2.0]),
        count_S=np.array([0.0, 1.0, 0.0, 3.0]),
        price_S=np.array([20.0, np.nan, 10.0, 20.0]),
    )
    found = inputs(context)
    assert found["price rank"].tolist() == [1 / 3, 0.5, 0, 1 / 3]
    assert found["1+ below the last touched"].tolist() == [0, 0, 1, 0] and found["2+ below the last touched"].tolist() == [
        0,
        0,
        0,
        1,
    ]
    assert found["1+ above the last touched"].tolist() == [1, 0, 0, 0] and found["touched 2+ events ago"].tolist() == [0, 1, 0, 0]
    assert found["place 2-3, one touched"].tolist() == [0, 0, 1, 1] and not found["place 2-3"].any()
    np.testing.assert_allclose(found["score in the list"], [-np.sqrt(1.5), np.sqrt(1.5), 0, 0], atol=1e-12)
    assert found["in the catalogue"].tolist() == [1, 1, 0, 1]


# --- a run with lists


@pytest.fixture(scope="module")
def listed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listed")
    listed_log(users=90).events.write_parquet(folder / "log.parquet")
    split = ["split.protocol=timeline", "split.validation_from=50%", "split.test_from=75%", "lists.items=shown_items"]
    rest = [f"data.path={folder / 'log.parquet'}", "lists.prices=cost", "lists.choice=true", "train.max_epochs=2"]
    train(tiny_recipe(folder / "run", *split, *rest), quiet=True)
    evaluate(folder / "run")
    return folder / "run"


def test_a_run_says_how_high_the_chosen_items_stand(listed_run: Path) -> None:
    result = json.loads((listed_run / "result.json").read_text())
    found = result["lists"]
    assert found["n"] + found["not_shown"] == 90 and found["not_shown"] > 0
    assert set(found["scores"]) == {"retrieval", "choice"} == set(result["validation_lists"]["scores"])
    assert set(found["baselines"]) == {"as shown", "last touched", AGAINST, "most popular", "click rate", "cheapest"}
    for row in (*found["scores"].values(), *found["baselines"].values()):
        low, high = row["intervals"]["mrr"]
        assert low <= row["mrr"] <= high
    assert found["baselines"]["cheapest"]["mrr"] > 0.7, "the cheapest is most often taken (and the two never taken are shown too)"
    assert found["scores"]["choice"]["mrr"] > found["baselines"]["as shown"]["mrr"] + 0.1
    assert found["scores"]["choice"]["mrr_against"]["p_value"] < 0.01
    ranks = pl.read_parquet(listed_run / "lists-test.parquet")
    assert (1 / ranks["choice"]).mean() == pytest.approx(found["scores"]["choice"]["mrr"])
    page = Path(report([listed_run])["report"]).read_text()
    assert "Choices among shown items" in page and "last touched, then as shown" in page


def test_what_is_measured_is_what_serves(listed_run: Path) -> None:
    """Each list is asked for anew as one would serve it: a history by hand, what is shown, its prices."""
    engine = load(listed_run)
    found = rank_lists(engine, "test")
    sequences, lists = engine.sequences, found.lists
    assert lists.price_S is not None
    for at in range(0, len(lists), 7):
        row, own = int(lists.row_L[at]), slice(*lists.offsets_L1[at : at + 2])
        start = sequences.offsets_U1[found.user_L[at]]
        history = sequences.item_ids.gather(sequences.item_N[start:row]).to_list()
        shown = [sequences.item_ids[i] if i >= 0 else 1000 + i for i in lists.item_S[own].tolist()]
        said = engine.choose(history=history, shown=shown, prices=lists.price_S[own].tolist())
        assert said["probability"].sum() == pytest.approx(1)
        item = sequences.item_ids[int(sequences.item_N[row])]
        assert said.filter(pl.col("item_id") == item)["rank"].item() == pytest.approx(found.scores["choice"][at], abs=0.5)


def test_scores_are_those_of_the_catalogue_unmasked(listed_run: Path) -> None:
    engine = load(listed_run)
    found = rank_lists(engine, "test")
    scores_LV = engine.scorer.scores(engine.queries_at(found.lists.row_L)).numpy()
    for at in range(len(found.lists)):
        for s in range(*found.lists.offsets_L1[at : at + 2]):
            item = found.lists.item_S[s]
            token = engine.token_of_item[item] if item >= 0 else -1
            score = found.context.score_S[s]
            assert score == -np.inf if token < 0 else score == pytest.approx(scores_LV[at, token], abs=1e-5)
    empty = shown_scores(
        PopularityScorer(np.arange(5)), engine.queries_at(found.lists.row_L[:1]), np.array([4, -1, 2]), np.array([0, 3])
    )
    assert empty.tolist() == [4, -np.inf, 2]


@pytest.mark.parametrize("mode", ["interleaved", "summed"])
def test_tasks_score_shown_items_as_rank_serves_them(mode: str, tmp_path: Path) -> None:
    listed_log().events.write_parquet(tmp_path / "log.parquet")
    split = ["split.protocol=timeline", "split.validation_from=50%", "split.test_from=75%", "lists.items=shown_items"]
    task = ["tasks.low.where=item_id < 15", f"batch.actions={mode}", "train.max_steps=4", "features.context=['hour']"]
    train(tiny_recipe(tmp_path / "run", *split, *task, f"data.path={tmp_path / 'log.parquet'}"), quiet=True)
    engine = load(tmp_path / "run")
    asked = asked_lists(engine, 2)
    score_S = task_scores(engine, asked)["task low"]
    assert np.isneginf(score_S).any() and np.isfinite(score_S).any()
    for at in range(0, len(asked), 9):
        own = slice(*asked.offsets_L1[at : at + 2])
        item_S, row = asked.item_S[own], int(asked.row_L[at])
        known = (item_S >= 0) & (engine.token_of_item[item_S] >= 0)
        user = engine.sequences.user_ids[int(np.searchsorted(engine.sequences.offsets_U1, row, side="right") - 1)]
        moment = datetime.fromtimestamp((int(engine.sequences.time_N[row]) - 1) / 1000, UTC)  # just before it happens
        candidates = engine.sequences.item_ids.gather(item_S[known])
        said = pl.DataFrame({"item_id": candidates}).join(
            engine.rank(user, candidates.to_list(), at=moment), on="item_id", how="left"
        )
        np.testing.assert_allclose(score_S[own][known], said["low"], atol=1e-4)
        assert np.isneginf(score_S[own][~known]).all()


def test_a_run_that_learned_no_task_is_measured_all_the_same(tmp_path: Path) -> None:
    """``ranking.weight=0`` only reads what was done: its lists and its weighted estimates have no tasks, and no error."""
    listed_log().events.write_parquet(tmp_path / "log.parquet")
    split = ["split.protocol=timeline", "split.validation_from=50%", "split.test_from=75%", "lists.items=shown_items"]
    task = ["tasks.low.where=item_id < 15", "batch.actions=summed", "ranking.weight=0", "train.max_steps=2"]
    rest = [f"data.path={tmp_path / 'log.parquet'}", f"data.random={tmp_path / 'log.parquet'}", "evaluate.exposure.by=popularity"]
    train(tiny_recipe(tmp_path / "run", *split, *task, *rest), quiet=True)
    found = evaluate(tmp_path / "run")
    assert set(found["lists"]["scores"]) == {"retrieval"} and found["tasks"] == {}
    assert "tasks" not in found["exposure"] and "tasks" not in found["random"] and "retrieval" in found["random"]


def test_baselines_are_the_rules_they_are_named_for(listed_run: Path) -> None:
    engine = load(listed_run)
    found = rank_lists(engine, "test")
    context = context_of(engine, found.lists)
    rules = baseline_scores(engine, found.lists, context)
    for at in range(len(found.lists)):
        own = slice(*found.lists.offsets_L1[at : at + 2])
        since, n = context.since_S[own], own.stop - own.start
        order = sorted(range(n), key=lambda s: (since[s] < 0, since[s] if since[s] >= 0 else s))
        assert np.argsort(-rules[AGAINST][own], kind="stable").tolist() == order
        assert np.argsort(-rules["as shown"][own], kind="stable").tolist() == list(range(n))
        assert len(set(rules["last touched"][own][since < 0])) <= 1


def test_choosing_from_the_command_line(listed_run: Path) -> None:
    base = ["rank", str(listed_run), "--user-id", "u3", "--items", "5,90,7", "--by", "choice", "--json"]
    done = CliRunner().invoke(app, [*base, "--prices", "3,2.5,9"])
    rows = json.loads(done.output)
    assert done.exit_code == 0 and {row["item_id"] for row in rows} == {5, 90, 7} and [row["rank"] for row in rows] == [1, 2, 3]
    for more, said in (([], "give one an item"), (["--prices", "1,2"], "2 prices"), (["--prices", "a,b,c"], "no numbers")):
        failed: Any = CliRunner().invoke(app, [*base, *more])
        assert isinstance(failed.exception, LargeRecError) and said in str(failed.exception)


def test_ids_as_text_are_the_same_items(listed_run: Path) -> None:
    engine = load(listed_run)
    prices = [3.0, 2.5, 9.0, 4.0]
    said = engine.choose(history=[5, 7], shown=[1, 5, 7, 9], prices=prices)["probability"]
    for history, shown in (([5, 7], ["1", "5", "7", "9"]), (["5", "7"], [1, 5, 7, 9])):
        assert engine.choose(history=history, shown=shown, prices=prices)["probability"].to_list() == said.to_list()
    assert not np.allclose(said, engine.choose(history=[2], shown=[1, 5, 7, 9], prices=prices)["probability"])


def test_items_outside_the_catalogue_count_as_touched(listed_run: Path) -> None:
    """A new hotel that someone looked at is known to have been looked at, whatever the model knows of it."""
    engine = load(listed_run)
    shown, prices = [1000, 1001, 5, 7], [1.0, 1.0, 1.0, 1.0]
    touched, other = (engine.choose(history=history, shown=shown, prices=prices) for history in ([1000], [1001]))
    first, second = (
        dict(zip(found["item_id"].to_list(), found["probability"].to_list(), strict=True)) for found in (touched, other)
    )
    assert first[1000] != first[1001] and first[1000] != pytest.approx(second[1000])


def test_a_run_without_a_choice_model_says_how_to_get_one(listed_run: Path) -> None:
    engine = load(listed_run)
    engine.choice = None
    with pytest.raises(LargeRecError, match=r"lists\.choice=true"):
        engine.choose("u1", [1, 2])
