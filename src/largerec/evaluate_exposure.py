"""Measure the Engine as if every item had been shown alike: weighted estimates beside the plain ones (`exposure`).

By popularity or by the log's own propensities, retrieval's targets and the events that tasks are asked of are weighted; by
position, choices among shown items. N events or targets, L lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from largerec import metrics, task_metrics
from largerec.engine import Engine
from largerec.errors import LargeRecError
from largerec.evaluate_lists import asked_lists, rank_lists
from largerec.evaluate_tasks import TaskPredictions, asked_rows, item_rates, predict_tasks
from largerec.exposure import (
    ExposureOptions,
    inverse_weights,
    popularity_propensities,
    position_propensities,
    weight_summary,
    weighted_means,
    weighted_measure,
)
from largerec.list_metrics import list_values
from largerec.metrics import EvaluateOptions
from largerec.sequences import TRAIN, Sequences, Stage

RESAMPLES = 200
"""Resamples of a metric that is no mean, at most: each wants a sort of all events."""


def row_propensities(sequences: Sequences, options: ExposureOptions) -> np.ndarray:
    """The propensity of each event's item, by popularity or by the log's column. [N]

    Raises:
        LargeRecError: the log has no such column.
    """
    if options.by == "popularity":
        popular_I: np.ndarray = popularity_propensities(sequences.train_counts(), options.power)
        return popular_I.take(sequences.item_N)
    if sequences.propensity_N is None:
        raise LargeRecError(
            "evaluate.exposure.by='column' reads the log's column 'propensity', the probability with which each event's item was "
            "shown, but this run's log had none. Train on a log that has it, or use evaluate.exposure.by=popularity."
        )
    return sequences.propensity_N


def _retrieval(
    sequences: Sequences,
    propensity_N: np.ndarray,
    row_N: np.ndarray,
    rank_N: Mapping[str, np.ndarray],
    options: EvaluateOptions,
    seed: int,
) -> dict[str, Any]:
    trained_N = sequences.stage_N == TRAIN
    if sequences.positive_N is not None:
        trained_N = trained_N & sequences.positive_N
    weight_N = inverse_weights(propensity_N[row_N], propensity_N[trained_N])
    user_N = np.searchsorted(sequences.offsets_U1, row_N, side="right") - 1
    found: dict[str, Any] = {"n": len(row_N), "weights": weight_summary(weight_N, options.exposure.clip)}
    for name, ranks in rank_N.items():
        functions = {"recall": metrics.recall, "ndcg": metrics.ndcg}
        values = {f"{label}@{k}": function(ranks, k) for k in options.k for label, function in functions.items()}
        found[name] = _means(values, weight_N, user_N, options, seed)
    return found


def _means(
    values: Mapping[str, np.ndarray], weight_N: np.ndarray, user_N: np.ndarray, options: EvaluateOptions, seed: int
) -> dict[str, Any]:
    how: dict[str, Any] = {"level": options.level, "samples": options.bootstrap_samples, "seed": seed}
    return weighted_means(values, weight_N, user_N, options.exposure.clip, **how)


def _tasks(
    sequences: Sequences, propensity_N: np.ndarray, found: Mapping[str, TaskPredictions], options: EvaluateOptions, seed: int
) -> dict[str, Any]:
    """Weighted metrics of each task, by who predicted."""
    assert sequences.label_NA is not None
    document: dict[str, Any] = {}
    for who, predictions in found.items():
        user_N = np.searchsorted(sequences.offsets_U1, predictions.row_N, side="right") - 1
        for column, name in enumerate(predictions.names):
            own_N = predictions.label_NA[:, column] >= 0
            trained_N = (sequences.stage_N == TRAIN) & (sequences.label_NA[:, sequences.tasks.index(name)] >= 0)
            weight_N = inverse_weights(propensity_N[predictions.row_N[own_N]], propensity_N[trained_N])
            task = document.setdefault(name, {"n": int(own_N.sum()), "weights": weight_summary(weight_N, options.exposure.clip)})
            task[who] = _task(
                predictions.probability_ANL[column][own_N],
                predictions.label_NA[own_N, column],
                weight_N,
                user_N[own_N],
                options,
                seed,
            )
    return document


def _task(
    probability_NL: np.ndarray, label_N: np.ndarray, weight_N: np.ndarray, user_N: np.ndarray, options: EvaluateOptions, seed: int
) -> dict[str, Any]:
    means = {"log_loss": task_metrics.log_losses(probability_NL, label_N)}
    measures = {"ne": lambda weights: task_metrics.normalised_entropy(probability_NL, label_N, weights)}
    if probability_NL.shape[1] == 2:
        place_N = np.unique(probability_NL[:, 1], return_inverse=True)[1]
        measures["auc"] = lambda weights: task_metrics.auc(place_N, label_N, weights)
    else:
        means["accuracy"] = (probability_NL.argmax(1) == label_N).astype(np.float64)
    samples = min(RESAMPLES, options.bootstrap_samples)
    clip, level = options.exposure.clip, options.level
    found: dict[str, Any] = _means(means, weight_N, user_N, options, seed)
    for name, measure in measures.items():
        found[name] = weighted_measure(measure, weight_N, user_N, clip, level=level, samples=samples, seed=seed)
    return found


def _lists(engine: Engine, stage: Stage, options: EvaluateOptions, seed: int) -> dict[str, Any]:
    """Choices weighted by the place at which the chosen item was shown."""
    if engine.sequences.lists is None:
        raise LargeRecError(
            "evaluate.exposure.by='position' needs a log with lists of shown items (lists.items); use popularity or column."
        )
    found = rank_lists(engine, stage, cross_fit=stage == "validation")
    past = asked_lists(engine, TRAIN)
    past_L = past.chosen_L[past.chosen_L >= 0]
    places = int(max(past_L.max(initial=0), found.lists.chosen_L.max())) + 1
    propensity_P = position_propensities(past_L, places)
    weight_L = inverse_weights(propensity_P[found.lists.chosen_L], propensity_P[past_L])
    document: dict[str, Any] = {"n": len(weight_L), "weights": weight_summary(weight_L, options.exposure.clip)}
    for name, rank_L in (found.scores | found.baselines).items():
        values = {key: value for key, value in list_values(rank_L, ()).items() if key != "ndcg"}
        document[name] = _means(values, weight_L, found.user_L, options, seed)
    return document


def evaluate_exposure(
    engine: Engine, stage: Stage, row_N: np.ndarray, rank_N: Mapping[str, np.ndarray], options: EvaluateOptions, seed: int
) -> dict[str, Any]:
    """What ``result.json`` says of a stage under uniform exposure. ``rank_N``: masked ranks of the targets ``row_N``, by whom.

    Raises:
        LargeRecError: the log has no propensities, or wrong ones, or no lists where positions are asked for.
    """
    asked, sequences = options.exposure, engine.sequences
    document: dict[str, Any] = asked.model_dump(mode="json")
    if asked.by == "position":
        return document | {"lists": _lists(engine, stage, options, seed)}
    propensity_N = row_propensities(sequences, asked)
    document["retrieval"] = _retrieval(sequences, propensity_N, row_N, rank_N, options, seed)
    if engine.predicts:
        rows = asked_rows(sequences, stage)
        found = {"model": predict_tasks(engine, rows), "item rate": item_rates(engine, rows)}
        document["tasks"] = _tasks(sequences, propensity_N, found, options, seed)
    return document
