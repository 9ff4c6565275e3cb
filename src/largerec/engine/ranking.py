"""Probabilities of labels: of events of the log at their time, and of many items that one user could be shown.

Q events that are asked about, C items after one history, L labels of a task, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from largerec.batches import Batch, pack_histories, pack_interleaved, ranges
from largerec.engine.scoring import TOKEN_BLOCK, ModelScorer, Queries, shared_windows, token_blocks
from largerec.kernels import HistoryCache
from largerec.ranking import TaskHeads
from largerec.sequences import TRAIN, Sequences
from largerec.tasks import UNKNOWN

CANDIDATE_BLOCK = 1024
"""Items of one pass over a cached history."""


def label_shares(sequences: Sequences, heads: TaskHeads) -> list[torch.Tensor]:
    """Share of each label of each task among training events [L]: all that can be said of an item that training never saw."""
    assert sequences.label_NA is not None
    shares = []
    for column, classes in enumerate(heads.classes):
        label_N = sequences.label_NA[sequences.stage_N == TRAIN, column]
        count_L = np.bincount(label_N[label_N >= 0], minlength=classes)
        shares.append(torch.from_numpy(count_L / count_L.sum()).float())
    return shares


class Ranker:
    """A model with task heads, and the shares of labels for where it has nothing to say."""

    def __init__(self, scorer: ModelScorer, sequences: Sequences) -> None:
        heads = scorer.model.task_heads
        assert isinstance(heads, TaskHeads)
        self.scorer, self.heads, self.names = scorer, heads, heads.names
        self.shares = label_shares(sequences, heads)
        self.learned = [column for column, weight in enumerate(heads.weights[1:]) if weight > 0]

    def of_events(self, queries: Queries, token_Q: np.ndarray) -> list[torch.Tensor]:
        """Probability of every label of the events that stand at ``end_Q`` of the queries' rows, each task [Q, L].

        ``token_Q``: their items; one outside the catalogue (-1) gets the training shares of the labels, and with summed
        actions one without any history does too.
        """
        known_Q = token_Q >= 0
        if self.heads.actions == "summed":
            known_Q = known_Q & (queries.end_Q > queries.first_Q)
        found = [share_L.repeat(len(queries), 1) for share_L in self.shares]
        some = np.flatnonzero(known_Q)
        if len(some) == 0:
            return found
        asked = Queries(queries.rows, queries.first_Q[some], queries.end_Q[some], queries.time_Q[some])
        features = None if queries.rows.known is None else queries.rows.known.at(asked.end_Q, token_Q[some])
        with torch.no_grad():
            if self.heads.actions == "summed":
                state_QD = self.scorer.hidden(asked)
                item_QD = self.scorer.model.scored_table(torch.from_numpy(token_Q[some]))
                predicted = self.heads.probabilities(state_QD.float(), item_QD, features)
            else:
                predicted = self.heads.probabilities(self._item_states(asked).float(), None, features)
        for into, probability_SL in zip(found, predicted, strict=True):
            into[torch.from_numpy(some)] = probability_SL
        return found

    def _item_states(self, queries: Queries) -> torch.Tensor:
        """State [Q, D] of the item token of the event at ``end_Q``; events of one window share one causal pass."""
        start_Q = np.maximum(queries.first_Q, queries.end_Q - self.scorer.max_length)
        start_W, end_W, window_Q = shared_windows(start_Q, queries.end_Q)
        order_Q = np.argsort(window_Q, kind="stable")
        sorted_Q, parts = window_Q[order_Q], []
        for a, b in token_blocks(2 * (end_W - start_W) + 1):
            asked = order_Q[np.searchsorted(sorted_Q, a) : np.searchsorted(sorted_Q, b)]
            length_W = end_W[a:b] - start_W[a:b]
            first_W = np.concatenate([[0], np.cumsum(2 * length_W + 1)])
            at = first_W[window_Q[asked] - a] + 2 * (queries.end_Q[asked] - start_Q[asked])
            batch = pack_interleaved(queries.rows, ranges(start_W[a:b], length_W), length_W, end_W[a:b])
            asked_T = torch.zeros(batch.n_tokens, dtype=torch.bool)
            asked_T[torch.from_numpy(at)] = True
            batch = replace(batch, asked_T=asked_T)
            parts.append(self.scorer.model(batch).index_select(0, torch.from_numpy(at)))
        return torch.cat(parts).index_select(0, torch.from_numpy(np.argsort(order_Q)))

    def of_candidates(
        self,
        query: Queries,
        token_C: np.ndarray,
        features: Mapping[str, torch.Tensor] | None = None,
        *,
        cached: bool | None = None,
    ) -> list[torch.Tensor]:
        """Probability of every label for each item after the one history of ``query``, at its time; each task [C, L].

        The items cannot see each other. With interleaved actions the history is read once where the family has a cache, and
        copied before each item where it has none; ``cached`` asks for one of the two. ``features``: those of each item, asked
        about by this user at this moment, where the run has features.
        """
        assert len(query) == 1
        item_C = torch.tensor(token_C)
        start_Q = np.maximum(query.first_Q, query.end_Q - self.scorer.max_length)
        empty = bool(query.end_Q[0] == query.first_Q[0])
        with torch.no_grad():
            if self.heads.actions == "summed":
                if empty:
                    return [share_L.repeat(len(item_C), 1) for share_L in self.shares]
                state_CD = self.scorer.hidden(query).float().expand(len(item_C), -1)
                return self.heads.probabilities(state_CD, self.scorer.model.scored_table(item_C), features)
            single = replace(self._alone(item_C, int(query.time_Q[0])), features=dict(features or {}))
            if empty:
                return self.heads.probabilities(self.scorer.model(single).float(), None, features)
            history = pack_histories(query.rows, start_Q, query.end_Q, query.time_Q)
            cached = self.scorer.model.cached if cached is None else cached
            states = self._after_cache(history, single) if cached else self._after_copies(history, single)
            return self.heads.probabilities(states.float(), None, features)

    def _alone(self, item_C: torch.Tensor, time_ms: int) -> Batch:
        """Each item as a history of its own."""
        time_C = torch.full((len(item_C),), time_ms)
        return Batch(
            item_T=item_C,
            time_T=time_C,
            offsets_B1=torch.arange(len(item_C) + 1),
            query_time_T=time_C,
            action_T=torch.zeros(len(item_C), dtype=torch.bool),
            label_TA=torch.full((len(item_C), len(self.names)), UNKNOWN),
        )

    def _after_cache(self, history: Batch, single: Batch) -> torch.Tensor:
        """The history once, then all items in blocks. [C, D]"""
        cache = HistoryCache()
        self.scorer.model(history, cache)
        single = replace(single, past=history.n_tokens)
        blocks = single.pieces(-(-single.n_tokens // CANDIDATE_BLOCK))
        return torch.cat([self.scorer.model(block, cache) for block in blocks])

    def _after_copies(self, history: Batch, single: Batch) -> torch.Tensor:
        """The plain truth: a copy of the history before each item. [C, D]"""
        length, parts = history.n_tokens + 1, []
        for block in single.pieces(-(-single.n_tokens * length // TOKEN_BLOCK)):
            copies: dict[str, Any] = _copied(history.tensors, block.tensors)
            batch = replace(
                block,
                **copies,
                offsets_B1=torch.arange(block.n_tokens + 1) * length,
                features=_copied(history.features, block.features),
                asked_T=(torch.arange(block.n_tokens * length) + 1) % length == 0,
            )
            parts.append(self.scorer.model(batch)[length - 1 :: length])
        return torch.cat(parts)


def _copied(history: Mapping[str, torch.Tensor], single: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What there is of the tokens of a history, before that of each item, one copy after another."""
    return {
        name: torch.cat([old.expand(len(new), *old.shape), new[:, None]], dim=1).flatten(0, 1)
        for name, new in single.items()
        if (old := history.get(name)) is not None
    }
