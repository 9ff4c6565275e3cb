"""Measure choices among shown items: how high the run, and plain rules, put the item that was taken.

Every row of the part whose list shows its own item is asked about, with everything of its user before it as the history (nothing,
for a first event) and the model frozen. Seen items are *not* masked: people take what they looked at. Items outside the training
catalogue have no retrieval score and share the last places. L lists, S shown items of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from largerec import metrics
from largerec.bundle import CHOICE, Bundle
from largerec.choice import ChoiceModel, ListContext, fit_choice, out_of_fold
from largerec.engine import Engine
from largerec.engine.shown import list_context
from largerec.list_metrics import chosen_ranks, list_values, places
from largerec.lists import ShownLists
from largerec.metrics import EvaluateOptions
from largerec.recipe import Recipe
from largerec.sequences import STAGES, TRAIN, Stage
from largerec.task_metrics import mean_label

AGAINST = "last touched, then as shown"
"""The rule that every score is tested against: fixed beforehand, so that no test part chooses it."""
SMOOTHING = 10.0
"""Times shown at the overall rate that the click-rate baseline adds to each item's own."""


@dataclass(frozen=True)
class ListRanks:
    """Ranks of the chosen items of L lists by each score of the run and by each baseline; ``not_shown``: rows that were left out,
    since their list does not show their own item."""

    lists: ShownLists
    user_L: np.ndarray
    context: ListContext
    scores: dict[str, np.ndarray]
    baselines: dict[str, np.ndarray]
    not_shown: int


def asked_lists(engine: Engine, stage: int) -> ShownLists:
    """The lists of a stage, also those that do not show their row's own item."""
    lists = engine.sequences.lists
    assert lists is not None, "a run without lists.items has no lists"
    return lists.select(engine.sequences.stage_N[lists.row_L] == stage)


def context_of(engine: Engine, lists: ShownLists) -> ListContext:
    """What is known of the shown items when each list is shown, the run's retrieval scores among it."""
    sequences = engine.sequences
    token_S = np.where(lists.item_S >= 0, engine.token_of_item[np.maximum(lists.item_S, 0)], -1)
    counts_V = engine.tokenizer.target_counts(sequences)
    return list_context(engine.scorer, engine.queries_at(lists.row_L), lists, token_S, sequences, counts_V)


def task_scores(engine: Engine, lists: ShownLists) -> dict[str, np.ndarray]:
    """What `Engine.rank` says of each shown item, for each task that was learned: its probability, or the mean class. [S]

    Items outside the catalogue, which it refuses, get -inf.
    """
    if not engine.predicts:
        return {}
    ranker = engine.ranker
    names = {column: f"task {ranker.names[column]}" for column in ranker.learned}
    token_S = np.where(lists.item_S >= 0, engine.token_of_item[np.maximum(lists.item_S, 0)], -1)
    found = {name: np.full(len(token_S), -np.inf) for name in names.values()}
    queries = engine.queries_at(lists.row_L)
    for at, (start, end) in enumerate(zip(lists.offsets_L1[:-1], lists.offsets_L1[1:], strict=True)):
        known = start + np.flatnonzero(token_S[start:end] >= 0)
        if not len(known):
            continue
        row, token_C = lists.row_L[at], token_S[known]
        user = np.searchsorted(engine.sequences.offsets_U1, row, side="right") - 1
        count = len(token_C)
        features = None if engine.features is None else engine.features.of(np.full(count, row), np.full(count, user), token_C)
        predicted = ranker.of_candidates(queries.block(at, at + 1), token_C, features)
        for column, name in names.items():
            found[name][known] = mean_label(predicted[column].double().numpy())
    return found


def baseline_scores(engine: Engine, lists: ShownLists, context: ListContext) -> dict[str, np.ndarray]:
    """The rules that stand beside the run, as scores. [S]

    ``as shown``: the order of the list. ``last touched``: by how lately the user touched the item; untouched ones tie. ``last
    touched, then as shown``: untouched ones in the order of the list. ``most popular``: how often it was a training target.
    ``click rate``: the share of the training lists with it in which it was taken, `SMOOTHING` lists at the overall rate added.
    ``cheapest``, where there are prices.
    """
    place_S = places(lists.offsets_L1)
    longest = int(np.diff(lists.offsets_L1).max(initial=1))
    recent_S = np.where(context.since_S >= 0, -context.since_S.astype(np.float64), -np.inf)
    touched_S = context.since_S >= 0
    latest = float(context.since_S.max(initial=0)) + 1
    both_S = np.where(touched_S, latest - context.since_S, -(place_S + 1.0) / (longest + 1))
    found = {"as shown": -place_S.astype(np.float64), "last touched": recent_S, AGAINST: both_S, "most popular": context.count_S}
    past = asked_lists(engine, TRAIN)
    past = past.select(past.chosen_L >= 0)
    items = len(engine.sequences.item_ids)
    shown_I = np.bincount(past.item_S[past.item_S >= 0], minlength=items)
    taken_I = np.bincount(past.item_S[past.offsets_L1[:-1] + past.chosen_L], minlength=items)
    overall = len(past) / max(1, len(past.item_S))
    known_S, item_S = lists.item_S >= 0, np.maximum(lists.item_S, 0)
    shown_S, taken_S = np.where(known_S, shown_I[item_S], 0), np.where(known_S, taken_I[item_S], 0)
    found["click rate"] = (taken_S + SMOOTHING * overall) / (shown_S + SMOOTHING)
    if lists.price_S is not None:
        found["cheapest"] = np.where(np.isfinite(lists.price_S), -lists.price_S, -np.inf)
    return found


def rank_lists(engine: Engine, stage: Stage, *, cross_fit: bool = False) -> ListRanks:
    """Rank the chosen items of a stage. ``cross_fit``: the choice model's scores are those of models that were fitted without the
    list's user, as validation needs, where the model that serves was fitted."""
    asked = asked_lists(engine, STAGES[stage])
    lists = asked.select(asked.chosen_L >= 0)
    user_L = np.searchsorted(engine.sequences.offsets_U1, lists.row_L, side="right") - 1
    context = context_of(engine, lists)
    scores = {"retrieval": context.score_S, **task_scores(engine, lists)}
    if engine.choice is not None:
        known = out_of_fold(context, lists.chosen_L, user_L) if cross_fit else engine.choice.utilities(context)
        scores["choice"] = known
    baselines = baseline_scores(engine, lists, context)

    def ranked(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: chosen_ranks(score_S, lists.offsets_L1, lists.chosen_L) for name, score_S in given.items()}

    return ListRanks(lists, user_L, context, ranked(scores), ranked(baselines), len(asked) - len(lists))


def summarise_lists(engine: Engine, found: ListRanks, options: EvaluateOptions, seed: int) -> dict[str, Any]:
    """What ``result.json`` says of lists: counts, and for each score and baseline its metrics with intervals over users."""
    lists, offsets_U1 = found.lists, engine.sequences.offsets_U1
    chosen = lists.offsets_L1[:-1] + lists.chosen_L
    document: dict[str, Any] = {
        "n": len(lists),
        "users": len(np.unique(found.user_L)),
        "without_history": int((lists.row_L == offsets_U1[found.user_L]).sum()),
        "touched_before": int((found.context.since_S[chosen] >= 0).sum()),
        "not_shown": found.not_shown,
        "mean_length": float(np.diff(lists.offsets_L1).mean()),
        "outside_catalogue": int(np.isneginf(found.context.score_S[chosen]).sum()),
        "shown_outside_catalogue": float(np.isneginf(found.context.score_S).mean()),
        "scores": {},
        "baselines": {},
    }
    fixed_L = 1.0 / found.baselines[AGAINST]
    for part, ranks in (("scores", found.scores), ("baselines", found.baselines)):
        for name, rank_L in ranks.items():
            values = dict(list_values(rank_L, options.k))
            intervals = metrics.bootstrap_intervals(
                values, found.user_L, level=options.level, samples=options.bootstrap_samples, seed=seed
            )
            document[part][name] = {key: float(value.mean()) for key, value in values.items()} | {"intervals": intervals}
            if part == "scores":
                test = metrics.paired_test(values["mrr"], fixed_L, found.user_L, level=options.level, seed=seed)
                document[part][name]["mrr_against"] = {"baseline": AGAINST, **test}
    return document


def lists_frame(engine: Engine, found: ListRanks) -> pl.DataFrame:
    """Ids and time of each list's row, and the rank of its own item by each score and baseline."""
    sequences, row_L = engine.sequences, found.lists.row_L
    columns: dict[str, Any] = {
        "user_id": sequences.user_ids.gather(found.user_L),
        "item_id": sequences.item_ids.gather(sequences.item_N[row_L]),
        "timestamp": sequences.time_N[row_L],
        "length": np.diff(found.lists.offsets_L1),
    }
    return pl.DataFrame(columns | found.scores | found.baselines)


def evaluate_lists(engine: Engine, stage: Stage, options: EvaluateOptions, seed: int) -> tuple[dict[str, Any], pl.DataFrame]:
    """What ``result.json`` says of the lists of a stage, and the ranks behind it."""
    found = rank_lists(engine, stage, cross_fit=stage == "validation")
    return summarise_lists(engine, found, options, seed), lists_frame(engine, found)


def validate_lists(engine: Engine, bundle: Bundle, recipe: Recipe) -> dict[str, Any]:
    """At the end of training: fit the choice model if the recipe wants one and write it, and measure the validation lists."""
    if engine.sequences.lists is None:
        return {}
    if recipe.lists.choice:
        engine.choice = fit_choice_model(engine)
        bundle.write_json(CHOICE, engine.choice.to_json())
    return {"validation_lists": evaluate_lists(engine, "validation", recipe.evaluate, recipe.seed)[0]}


def fit_choice_model(engine: Engine) -> ChoiceModel:
    """The choice model of a trained run, fitted on the validation lists, which the run did not learn from."""
    asked = asked_lists(engine, STAGES["validation"])
    lists = asked.select(asked.chosen_L >= 0)
    return fit_choice(context_of(engine, lists), lists.chosen_L)
