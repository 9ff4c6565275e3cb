"""What the engine knows of shown items: their scores, what the user touched, and the choice model on top.

L lists, S shown items of all of them, Q queries. The same functions serve (`Engine.choose`) and are measured (`evaluate_lists`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from largerec.choice import ChoiceModel, ListContext
from largerec.engine.scoring import Queries, Scorer, query_blocks, refuse_nan
from largerec.errors import LargeRecError
from largerec.list_metrics import list_of
from largerec.lists import ShownLists
from largerec.sequences import Sequences


def shown_scores(scorer: Scorer, queries: Queries, token_S: np.ndarray, offsets_L1: np.ndarray) -> np.ndarray:
    """The scorer's score of each shown item (token -1: outside the catalogue, ``-inf``); query l is that of list l. [S]

    Seen items keep their scores: what a user looked at is what gets chosen.

    Raises:
        LargeRecError: a score is NaN.
    """
    found = np.full(len(token_S), -np.inf)
    for start, block in query_blocks(queries, scorer.size):
        begin, end = offsets_L1[start], offsets_L1[start + len(block)]
        query_S = list_of(offsets_L1[start : start + len(block) + 1])
        known_S = np.flatnonzero(token_S[begin:end] >= 0)
        scores_QV = scorer.scores(block)
        picked = scores_QV[torch.from_numpy(query_S[known_S]), torch.from_numpy(token_S[begin:end][known_S])]
        refuse_nan(picked)
        found[begin + known_S] = picked.double().numpy()
    return found


def touched(sequences: Sequences, lists: ShownLists) -> tuple[np.ndarray, np.ndarray]:
    """For each shown item the events of its user's history after the item's last one (-1: never) and its number there. [S], [S]

    The history is everything of the user before the list's own row. Each (user, item, row) becomes one number; in their order the
    last touch before a row is the entry before it.
    """
    user_L = np.searchsorted(sequences.offsets_U1, lists.row_L, side="right") - 1
    list_S = list_of(lists.offsets_L1)
    rows, row_S = len(sequences.item_N), lists.row_L[list_S]
    pair_N = sequences.user_N * len(sequences.item_ids) + sequences.item_N
    codes, pair_N = np.unique(pair_N, return_inverse=True)  # below N, so that (pair, row) fits 64 bits
    placed_N = np.sort(pair_N * rows + np.arange(rows))
    pair_S = user_L[list_S] * len(sequences.item_ids) + lists.item_S
    at_S = np.minimum(np.searchsorted(codes, pair_S), len(codes) - 1)
    there_S = (lists.item_S >= 0) & (codes[at_S] == pair_S)
    end_S = np.searchsorted(placed_N, at_S * rows + row_S)
    count_S = np.where(there_S, end_S - np.searchsorted(placed_N, at_S * rows), 0)
    last_S = placed_N[np.maximum(end_S - 1, 0)] % rows
    return np.where(count_S > 0, row_S - 1 - last_S, -1), count_S


def touched_in(history: Sequence[Any], shown: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The same of one history and one list, item ids both: the plain definition, and what serving uses."""
    since = [next((ago for ago, item in enumerate(reversed(history)) if item == one), -1) for one in shown]
    return np.array(since, dtype=np.int64), np.array([list(history).count(one) for one in shown], dtype=np.int64)


def list_context(
    scorer: Scorer, queries: Queries, lists: ShownLists, token_S: np.ndarray, sequences: Sequences, counts_V: np.ndarray
) -> ListContext:
    """What is known of the shown items of the log's own lists."""
    since_S, touches_S = touched(sequences, lists)
    score_S = shown_scores(scorer, queries, token_S, lists.offsets_L1)
    return ListContext(lists.offsets_L1, since_S, touches_S, score_S, target_counts(counts_V, token_S), lists.price_S)


def target_counts(counts_V: np.ndarray, token_S: np.ndarray) -> np.ndarray:
    """How often each shown item was a training target, 0 outside the catalogue. [S]"""
    found: np.ndarray = np.where(token_S >= 0, counts_V[np.maximum(token_S, 0)], 0).astype(np.float64)
    return found


def choose(
    model: ChoiceModel,
    scorer: Scorer,
    query: Queries,
    history: Sequence[Any],
    shown: pl.Series,
    token_S: np.ndarray,
    counts_V: np.ndarray,
    prices: Sequence[float] | None,
) -> tuple[pl.DataFrame, np.ndarray]:
    """One list, for the one history of ``query``: ``item_id, place, probability, rank`` in the order shown, and the tokens.

    Raises:
        LargeRecError: nothing is shown, or prices do not fit.
    """
    if len(shown) == 0:
        raise LargeRecError("the list of shown items is empty; name at least one.")
    if prices is not None and len(prices) != len(shown):
        raise LargeRecError(f"{len(prices)} prices were given for {len(shown)} items; give one an item.")
    offsets_L1 = np.array([0, len(shown)])
    since_S, touches_S = touched_in(history, shown.to_list())
    context = ListContext(
        offsets_L1=offsets_L1,
        since_S=since_S,
        touches_S=touches_S,
        score_S=shown_scores(scorer, query, token_S, offsets_L1),
        count_S=target_counts(counts_V, token_S),
        price_S=None if prices is None else np.asarray(prices, dtype=np.float64),
    )
    probability_S = model.probabilities(context)
    rank_S = np.argsort(np.argsort(-probability_S, kind="stable"), kind="stable") + 1
    columns = {"place": np.arange(1, len(shown) + 1), "probability": probability_S, "rank": rank_S}
    return pl.DataFrame({"item_id": shown, **columns}), token_S
