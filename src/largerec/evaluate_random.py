"""Measure the Engine on a log of what was shown at random (`random_log`), beside the test part that a policy chose.

Each row is asked about at its own time, after everything that the ordinary log has of its user before that moment. R rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch

from largerec import metrics, task_metrics
from largerec.batches import KnownOfEvents, TokenRows, ranges
from largerec.engine import Engine
from largerec.engine.scoring import Queries, mask_seen, query_blocks, ranks
from largerec.metrics import EvaluateOptions
from largerec.sequences import TASK_COLUMN, Sequences
from largerec.tasks import UNKNOWN

MOST_ROWS = 20_000
"""Rows that are asked about; of a larger log a seeded sample."""


def users_of(sequences: Sequences, table: pl.DataFrame) -> np.ndarray:
    """The user of each row as a row of the sequences, -1 where the log does not know them. [R]"""
    known = pl.DataFrame({"user_id": sequences.user_ids, "row": np.arange(sequences.n_users)})
    asked = table.select(
        pl.col("user_id").cast(sequences.user_ids.dtype, strict=False)
    )  # ids of digits alone were read as numbers
    found = asked.join(known, on="user_id", how="left", maintain_order="left")["row"].fill_null(-1)
    return found.to_numpy()


def queries_of(engine: Engine, table: pl.DataFrame) -> Queries:
    """A query for each row: its user's events before its moment (none, for a user whom the log does not know)."""
    sequences, kept_N1 = engine.sequences, engine.rows.kept_N1
    user_R = users_of(sequences, table)
    time_R = table["timestamp"].to_numpy().copy()  # torch wants its own
    # Rows are grouped by user and in time order within, so that (user, time) as one number rises.
    start_ms, span = min(-1, int(sequences.time_N.min())), int(max(sequences.time_N.max(), time_R.max())) + 2
    placed_N = sequences.user_N * (span - start_ms) + (sequences.time_N - start_ms)
    end_R = np.searchsorted(placed_N, np.maximum(user_R, 0) * (span - start_ms) + (time_R - start_ms))
    end_R = np.where(user_R >= 0, end_R, 0)
    first_R = np.where(user_R >= 0, sequences.offsets_U1[np.maximum(user_R, 0)], 0)
    return Queries(engine.rows, kept_N1[first_R], kept_N1[end_R], time_R)


def with_item(queries: Queries, token_R: np.ndarray, length: int, user_R: np.ndarray) -> Queries:
    """The same queries over rows of their own: of each history its last ``length`` events and then the item in question, its
    labels unknown and of its context the clock alone (as `Engine.rank` has it); `Ranker.of_events` looks there. ``user_R``:
    rows of the users, -1 unknown."""
    rows = queries.rows
    start_R = np.maximum(queries.first_Q, queries.end_Q - length)
    length_R = queries.end_Q - start_R
    index_T = ranges(start_R, length_R)
    at_R = np.cumsum(length_R)  # where to put the items in
    count = len(index_T) + len(token_R)
    label_MA = None
    if rows.label_MA is not None:
        label_MA = np.insert(rows.label_MA[index_T], at_R, UNKNOWN, axis=0)
    known = rows.known
    if known is not None:
        table, context_R = known.rows.with_moments(queries.time_Q)
        context_M, user_M = np.insert(known.context_M[index_T], at_R, context_R), np.insert(known.user_M[index_T], at_R, user_R)
        known = KnownOfEvents(table, context_M, user_M)
    own = TokenRows(
        token_M=np.insert(rows.token_M[index_T], at_R, np.maximum(token_R, 0)),
        time_M=np.insert(rows.time_M[index_T], at_R, queries.time_Q),
        behaviour_M=None if rows.behaviour_M is None else np.insert(rows.behaviour_M[index_T], at_R, 0),
        kept_N1=np.arange(count + 1),
        label_MA=label_MA,
        actions=rows.actions,
        known=known,
    )
    end_R = at_R + np.arange(len(token_R))
    return Queries(own, end_R - length_R, end_R, queries.time_Q)


def evaluate_random(engine: Engine, table: pl.DataFrame, options: EvaluateOptions, seed: int) -> dict[str, Any]:
    """What ``result.json`` says of a random log: retrieval of its positives, and its tasks, with intervals over users."""
    rows = len(table)
    if rows > MOST_ROWS:
        table = table[np.sort(np.random.default_rng([seed, 3]).choice(rows, MOST_ROWS, replace=False))]
    queries, token_R = queries_of(engine, table), engine.tokenizer.encode(table["item_id"])
    user_R = table["user_id"].rank("dense").cast(pl.Int64).to_numpy()
    document: dict[str, Any] = {
        "rows": rows,
        "n": len(table),
        "users": len(np.unique(user_R)),
        "outside_catalogue": int((token_R < 0).sum()),
        "without_history": int((queries.end_Q == queries.first_Q).sum()),
    }
    asked = np.flatnonzero(table["positive"].to_numpy() & (queries.end_Q > queries.first_Q) & engine.retrieves)
    if len(asked):
        rank_P = _ranks(engine, queries, token_R, asked)
        values = {
            f"{name}@{k}": f(rank_P, k) for k in options.k for name, f in (("recall", metrics.recall), ("ndcg", metrics.ndcg))
        }
        how: dict[str, Any] = {"level": options.level, "samples": options.bootstrap_samples, "seed": seed}
        means = {name: float(value.mean()) for name, value in values.items()}
        document["retrieval"] = means | {"n": len(asked), "intervals": metrics.bootstrap_intervals(values, user_R[asked], **how)}
    if engine.predicts:
        document["tasks"] = _tasks(engine, table, queries, token_R, user_R, options, seed)
    return document


def _ranks(engine: Engine, queries: Queries, token_R: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Masked ranks of the items of the rows ``asked``."""
    some = Queries(queries.rows, queries.first_Q[asked], queries.end_Q[asked], queries.time_Q[asked])
    target_P, found = torch.from_numpy(token_R[asked]), []
    for start, block in query_blocks(some, engine.scorer.size):
        scores_QV = engine.scorer.scores(block)
        mask_seen(scores_QV, block)
        found.append(ranks(scores_QV, target_P[start : start + len(block)]))
    return torch.cat(found).numpy()


def _tasks(
    engine: Engine,
    table: pl.DataFrame,
    queries: Queries,
    token_R: np.ndarray,
    user_R: np.ndarray,
    options: EvaluateOptions,
    seed: int,
) -> dict[str, Any]:
    ranker, document = engine.ranker, dict[str, Any]()
    row_R = users_of(engine.sequences, table)
    predicted = ranker.of_events(with_item(queries, token_R, ranker.scorer.max_length, row_R), token_R)
    for column in ranker.learned:
        name = ranker.names[column]
        label_R = table[f"{TASK_COLUMN}{name}"].to_numpy()
        own_R = label_R >= 0
        if own_R.any():
            document[name] = task_metrics.summarise(
                predicted[column].double().numpy()[own_R],
                label_R[own_R],
                user_R[own_R],
                level=options.level,
                samples=options.bootstrap_samples,
                seed=seed,
            )
    return document
