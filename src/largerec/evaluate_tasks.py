"""Measure what the Engine predicts of events: the tasks of a run on its validation or test part.

Every event of the part whose label is known is asked about, with everything of its user before it as the history and the model
frozen; events on items that training never saw get the training shares of the labels and are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from largerec import metrics, task_metrics
from largerec.engine import Engine
from largerec.engine.conditioned import SHORTLIST
from largerec.engine.scoring import mask_seen, query_blocks, ranks
from largerec.metrics import EvaluateOptions
from largerec.sequences import STAGES, TRAIN, Sequences, Stage

SMOOTHING = 10.0
"""Events at the overall share that the item-rate baseline adds to each item's own."""


@dataclass(frozen=True)
class TaskPredictions:
    """Predictions of N events, ``row_N`` of the sequences, for the tasks ``names``: labels (-1 unknown) and probabilities."""

    row_N: np.ndarray
    names: tuple[str, ...]
    label_NA: np.ndarray
    probability_ANL: tuple[np.ndarray, ...]

    def frame(self, sequences: Sequences) -> pl.DataFrame:
        """A table with ids and, for each task, ``NAME.label`` (-1 unknown) and ``NAME.predicted``: the probability of label 1,
        or where there are more labels than two the mean class."""
        user_N = np.searchsorted(sequences.offsets_U1, self.row_N, side="right") - 1
        columns: dict[str, Any] = {
            "user_id": sequences.user_ids.gather(user_N),
            "item_id": sequences.item_ids.gather(sequences.item_N[self.row_N]),
            "timestamp": sequences.time_N[self.row_N],
        }
        for column, name in enumerate(self.names):
            columns[f"{name}.label"] = self.label_NA[:, column]
            columns[f"{name}.predicted"] = task_metrics.mean_label(self.probability_ANL[column])
        return pl.DataFrame(columns)


def asked_rows(sequences: Sequences, stage: Stage, most: int | None = None, seed: int = 0) -> np.ndarray:
    """The events of a stage that tasks are asked of, or a seeded sample of ``most`` of them in their order."""
    rows = sequences.impressions(stage)
    if most is None or len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng([seed, 1]).choice(rows, most, replace=False))


def predict_tasks(engine: Engine, row_N: np.ndarray) -> TaskPredictions:
    """What the run says of events of its log, each at its own time; only tasks whose loss was learned."""
    sequences, ranker = engine.sequences, engine.ranker
    assert sequences.label_NA is not None
    found = ranker.of_events(engine.queries_at(row_N), engine.token_of_item[sequences.item_N[row_N]])
    return _predictions(row_N, ranker.learned, sequences, found)


def item_rates(engine: Engine, row_N: np.ndarray) -> TaskPredictions:
    """The baseline: the share of each label among the item's own training events, ``SMOOTHING`` events at the overall share
    added. It knows nothing of the user."""
    sequences, ranker = engine.sequences, engine.ranker
    assert sequences.label_NA is not None
    trained_N, found = sequences.stage_N == TRAIN, []
    for column, share_L in enumerate(ranker.shares):
        known_N = trained_N & (sequences.label_NA[:, column] >= 0)
        count_IL = np.zeros((len(sequences.item_ids), len(share_L)))
        np.add.at(count_IL, (sequences.item_N[known_N], sequences.label_NA[known_N, column]), 1.0)
        rate_IL = (count_IL + SMOOTHING * share_L.double().numpy()) / (count_IL.sum(1, keepdims=True) + SMOOTHING)
        found.append(torch.from_numpy(rate_IL[sequences.item_N[row_N]]))
    return _predictions(row_N, ranker.learned, sequences, found)


def _predictions(row_N: np.ndarray, learned: list[int], sequences: Sequences, found: list[torch.Tensor]) -> TaskPredictions:
    assert sequences.label_NA is not None
    return TaskPredictions(
        row_N=row_N,
        names=tuple(sequences.tasks[column] for column in learned),
        label_NA=sequences.label_NA[row_N][:, learned],
        probability_ANL=tuple(found[column].double().numpy() for column in learned),
    )


def summarise_tasks(engine: Engine, found: TaskPredictions, options: EvaluateOptions, seed: int) -> dict[str, dict[str, Any]]:
    """The metrics of each task over the events whose label is known, with intervals."""
    sequences, document = engine.sequences, dict[str, dict[str, Any]]()
    user_N = np.searchsorted(sequences.offsets_U1, found.row_N, side="right") - 1
    outside_N = engine.token_of_item[sequences.item_N[found.row_N]] < 0
    for column, name in enumerate(found.names):
        known_N = found.label_NA[:, column] >= 0
        document[name] = task_metrics.summarise(
            found.probability_ANL[column][known_N],
            found.label_NA[known_N, column],
            user_N[known_N],
            level=options.level,
            samples=options.bootstrap_samples,
            seed=seed,
        ) | {"outside_catalogue": int((outside_N & known_N).sum())}
    return document


def evaluate_tasks(
    engine: Engine, stage: Stage, options: EvaluateOptions, seed: int
) -> tuple[dict[str, dict[str, Any]], pl.DataFrame]:
    """What ``result.json`` says of the tasks on a stage, the baseline beside each, and the predictions behind it."""
    row_N = asked_rows(engine.sequences, stage)
    found = predict_tasks(engine, row_N)
    document = summarise_tasks(engine, found, options, seed)
    for name, rates in summarise_tasks(engine, item_rates(engine, row_N), options, seed).items():
        kept = ("auc", "gauc", "log_loss", "ne", "ece", "accuracy", "intervals")
        document[name]["baselines"] = {"item rate": {key: rates[key] for key in kept if key in rates}}
    return document, found.frame(engine.sequences)


def task_values(engine: Engine, row_N: np.ndarray) -> dict[str, float]:
    """Normalised entropy of each task, and of conditions AUC and GAUC: plain numbers for a validation during training.

    What cannot be said, such as an AUC of labels that are all alike, is left out.
    """
    values: dict[str, float] = {}
    found = predict_tasks(engine, row_N)
    user_N = np.searchsorted(engine.sequences.offsets_U1, row_N, side="right") - 1
    for column, name in enumerate(found.names):
        known_N = found.label_NA[:, column] >= 0
        if not known_N.any():
            continue  # a sample may hold none
        label_N, probability_NL = found.label_NA[known_N, column], found.probability_ANL[column][known_N]
        if probability_NL.shape[1] == 2:
            values[f"{name}.auc"] = task_metrics.auc(probability_NL[:, 1], label_N)
            values[f"{name}.gauc"] = task_metrics.gauc(probability_NL[:, 1], label_N, user_N[known_N])
        values[f"{name}.ne"] = task_metrics.normalised_entropy(probability_NL, label_N)
    return {name: value for name, value in values.items() if not np.isnan(value)}


def evaluate_conditioned(engine: Engine, stage: Stage, options: EvaluateOptions, seed: int) -> dict[str, dict[str, Any]]:
    """Does retrieval conditioned on a task find more of the items for which it holds? For each condition that was learned.

    Asked are events of the stage for which the condition holds, of users with a history and at most ``options.conditioned`` of
    them (seeded); seen items are masked, and the lists are those of :meth:`Engine.recommend`. A target behind the shortlist
    keeps its rank of retrieval. Returns for each task ``n``, ``users``, metrics ``plain`` and ``wanted``, and ``paired`` tests of
    wanted minus plain. A task without such events is left out.
    """
    sequences, ranker, found = engine.sequences, engine.ranker, dict[str, dict[str, Any]]()
    assert sequences.label_NA is not None
    for column in ranker.learned:
        if ranker.heads.classes[column] != 2:
            continue
        row_N = np.flatnonzero((sequences.stage_N == STAGES[stage]) & (sequences.label_NA[:, column] == 1))
        user_N = np.searchsorted(sequences.offsets_U1, row_N, side="right") - 1
        row_N = row_N[row_N > sequences.offsets_U1[user_N]]
        if len(row_N) > options.conditioned:
            row_N = np.sort(np.random.default_rng([seed, 2]).choice(row_N, options.conditioned, replace=False))
        if len(row_N) == 0:
            continue
        user_N = np.searchsorted(sequences.offsets_U1, row_N, side="right") - 1
        plain_N, wanted_N = _conditioned_ranks(engine, row_N, user_N, column)
        document: dict[str, Any] = {"n": len(row_N), "users": len(np.unique(user_N)), "shortlist": SHORTLIST}
        document |= {name: metrics.summarise(rank_N, options.k) for name, rank_N in (("plain", plain_N), ("wanted", wanted_N))}
        document["paired"] = {
            f"ndcg@{k}": metrics.paired_test(
                metrics.ndcg(wanted_N, k), metrics.ndcg(plain_N, k), user_N, level=options.level, seed=seed
            )
            for k in options.k
        }
        found[ranker.names[column]] = document
    return found


def _conditioned_ranks(engine: Engine, row_N: np.ndarray, user_N: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Masked ranks of the events' items in plain lists and in those conditioned on a task. Float64 [N] each."""
    target_N = torch.from_numpy(engine.token_of_item[engine.sequences.item_N[row_N]])
    plain, wanted = [], []
    for start, block in query_blocks(engine.queries_at(row_N), engine.scorer.size):
        target_Q = target_N[start : start + len(block)]
        scores_QV = engine.scorer.scores(block)
        mask_seen(scores_QV, block)
        plain_Q = ranks(scores_QV, target_Q)
        value_QC, item_QC = engine.wanted_lists(block, user_N[start : start + len(block)], column, SHORTLIST)
        listed_QC = (item_QC == target_Q[:, None]) & ~torch.isneginf(value_QC)
        at_Q = 1 + listed_QC.double().argmax(1).double()
        plain.append(plain_Q)
        wanted.append(torch.where(listed_QC.any(1), at_Q, plain_Q))
    return torch.cat(plain).numpy(), torch.cat(wanted).numpy()
