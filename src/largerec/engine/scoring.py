"""From histories to scores, ranks and top lists, in blocks that bound memory whatever the catalogue's size.

Shapes: Q queries (one per asked history), V catalogue, K list length, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from largerec.batches import Actions, TokenRows, pack_histories, ranges
from largerec.errors import Diverged
from largerec.heads import ItemHead
from largerec.kernels import count_rows
from largerec.models import Backbone
from largerec.quantised_rows import QuantisedRows

SCORE_BLOCK = 16_000_000
CACHE_BLOCK = 1_000_000
"""Scores are made in large blocks, for the matrix product, and read in small ones that stay in the cache (five times faster)."""
TOKEN_BLOCK = 16_384
KEY_BLOCK = 16_384
"""Rows of a quantised table that are whole at a time."""


@dataclass(frozen=True)
class Queries:
    """Histories that ask what comes next: rows ``first_Q:end_Q`` of ``rows`` (a whole history, not only the model's window).

    ``time_Q``: the moment of asking in ms UTC (-1 unknown); only models with query time read it. ``row_Q``: the rows of the
    sequences that are asked for, where it is such rows; only a scorer that knows the world of a generated log reads it.
    """

    rows: TokenRows
    first_Q: np.ndarray
    end_Q: np.ndarray
    time_Q: np.ndarray
    row_Q: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.end_Q)

    def block(self, start: int, end: int) -> Queries:
        row_Q = None if self.row_Q is None else self.row_Q[start:end]
        return Queries(self.rows, self.first_Q[start:end], self.end_Q[start:end], self.time_Q[start:end], row_Q)

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(query, item) pairs of everything in the whole histories."""
        length_Q = self.end_Q - self.first_Q
        query = np.repeat(np.arange(len(self)), length_Q)
        return torch.from_numpy(query), torch.from_numpy(self.rows.token_M[ranges(self.first_Q, length_Q)])


class Scorer(Protocol):
    """Anything that scores the catalogue for histories."""

    size: int

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [Q, V], higher is better, none masked; a fresh tensor."""
        ...


class PopularityScorer:
    """The same list for everyone: how often each item was taken in training (or in a window of it)."""

    def __init__(self, counts_V: np.ndarray) -> None:
        self.size = len(counts_V)
        self.counts_V = torch.from_numpy(counts_V.astype(np.float32))

    def scores(self, queries: Queries) -> torch.Tensor:
        return self.counts_V.repeat(len(queries), 1)


class ModelScorer:
    """A trained backbone and its item head. Histories without any known item get the popularity scores."""

    def __init__(
        self,
        model: Backbone,
        head: ItemHead,
        counts_V: np.ndarray,
        max_length: int,
        *,
        query_time: bool,
        actions: Actions | None = None,
    ) -> None:
        self.model, self.head, self.max_length, self.query_time, self.actions = model, head, max_length, query_time, actions
        self.size = len(counts_V)
        self.popularity = PopularityScorer(counts_V)
        self._keys_VD: torch.Tensor | None = None
        self._ready = False

    @property
    def device(self) -> torch.device:
        """Where the model is, and with it states and scores."""
        return next(self.model.parameters()).device

    def prepared(self) -> ModelScorer:
        """Put the model in evaluation mode and read its item table anew; call it after the weights changed.

        A quantised table stays as it is, and its rows are made anew in blocks whenever all items are scored.
        """
        self.model.eval()
        self._ready, small = True, any(isinstance(part, QuantisedRows) for part in self.model.scored_table.modules())
        with torch.no_grad():
            self._keys_VD = None if small else self.head.keys(self.model.item_table_VD.detach()).float()
        return self

    def _scored(self, query_QD: torch.Tensor) -> torch.Tensor:
        if self._keys_VD is not None:
            return self.head.scores(query_QD, self._keys_VD)
        score_QV = query_QD.new_empty(len(query_QD), self.size)
        blocks = zip(torch.split(score_QV, KEY_BLOCK, dim=1), torch.split(torch.arange(self.size), KEY_BLOCK), strict=True)
        for block_QC, item_C in blocks:
            block_QC.copy_(self.head.scores(query_QD, self.head.keys(self.model.scored_table(item_C)).float()))
        return score_QV

    def hidden(self, queries: Queries) -> torch.Tensor:
        """Hidden state [Q, D] at the end of each (non-empty) history.

        Queries whose windows begin at the same row share one causal pass: a history and its continuation are the same tokens.
        A model with query time reads the moment of asking inside the window, so there nothing is shared.
        """
        start_Q = np.maximum(queries.first_Q, queries.end_Q - self.max_length)
        if self.query_time:
            start_W, end_W, time_W, window_Q = start_Q, queries.end_Q, queries.time_Q, np.arange(len(queries))
        else:
            start_W, end_W, window_Q = shared_windows(start_Q, queries.end_Q)
            time_W = np.full(len(start_W), -1)
        each = queries.rows.tokens_per_event
        order_Q = np.argsort(window_Q, kind="stable")  # queries by window, so that each pass keeps only the rows it is asked for
        sorted_Q, parts = window_Q[order_Q], []
        with torch.no_grad():
            for a, b in token_blocks(each * (end_W - start_W)):
                asked = order_Q[np.searchsorted(sorted_Q, a) : np.searchsorted(sorted_Q, b)]
                offset_W = np.concatenate([[0], np.cumsum(end_W[a:b] - start_W[a:b])])
                at = each * (offset_W[window_Q[asked] - a] + queries.end_Q[asked] - start_W[window_Q[asked]]) - 1
                batch = pack_histories(queries.rows, start_W[a:b], end_W[a:b], time_W[a:b])
                parts.append(self.model(batch.to(self.device)).index_select(0, torch.from_numpy(at).to(self.device)))
            return torch.cat(parts).index_select(0, torch.from_numpy(np.argsort(order_Q)).to(self.device))

    def scores(self, queries: Queries) -> torch.Tensor:
        known_Q = queries.end_Q > queries.first_Q
        if not known_Q.all():
            scores_QV = self.popularity.scores(queries).to(self.device)
            some = np.flatnonzero(known_Q)
            if len(some):
                kept = Queries(queries.rows, queries.first_Q[some], queries.end_Q[some], queries.time_Q[some])
                scores_QV[torch.from_numpy(some).to(self.device)] = self.scores(kept)
            return scores_QV
        assert self._ready, "prepared() was not called"
        with torch.no_grad():
            return self._scored(self.head.queries(self.hidden(queries)).float())


def shared_windows(start_Q: np.ndarray, end_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windows that hold slices which begin at the same row, and the window of each slice: start_W, end_W, window_Q."""
    start_W, window_Q = np.unique(start_Q, return_inverse=True)
    end_W = np.zeros_like(start_W)
    np.maximum.at(end_W, window_Q, end_Q)
    return start_W, end_W, window_Q


def token_blocks(length_W: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut windows into runs of at most TOKEN_BLOCK tokens (at least one window)."""
    total_W, start = np.cumsum(length_W), 0
    while start < len(length_W):
        before = total_W[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total_W, before + TOKEN_BLOCK, side="right")))
        yield start, end
        start = end


def mask_seen(scores_QV: torch.Tensor, queries: Queries) -> None:
    """Put -inf, in place, at every item of each query's whole history."""
    query, item = (x.to(scores_QV.device) for x in queries.seen())
    scores_QV.index_put_((query, item), scores_QV.new_tensor(float("-inf")))


def refuse_nan(scores: torch.Tensor) -> None:
    """Refuse what diverged weights give.

    Raises:
        Diverged: a score is NaN.
    """
    if torch.isnan(scores).any():
        raise Diverged("the model's scores are NaN: its weights diverged. Train again with a lower optim.learning_rate.")


def ranks(scores_QV: torch.Tensor, target_Q: torch.Tensor) -> torch.Tensor:
    """Average rank of each target (ties share), inf where it is masked or outside the catalogue (-1). Float64 [Q], on the CPU.

    Raises:
        Diverged: a target's score is NaN.
    """
    target_Q = target_Q.to(scores_QV.device)
    own_Q1 = scores_QV.gather(1, target_Q.clamp_min(0)[:, None])
    refuse_nan(own_Q1)
    above_Q, equal_Q = count_rows(scores_QV, own_Q1[:, 0])
    rank_Q = 1 + above_Q.double() + (equal_Q.double() - 1) / 2
    missing_Q = (target_Q < 0) | torch.isneginf(own_Q1[:, 0])
    return rank_Q.masked_fill(missing_Q, float("inf")).cpu()


def query_blocks(queries: Queries, size: int) -> Iterator[tuple[int, Queries]]:
    """Runs of queries whose scores fit SCORE_BLOCK numbers."""
    rows = max(1, SCORE_BLOCK // size)
    for start in range(0, len(queries), rows):
        yield start, queries.block(start, min(len(queries), start + rows))


def top_k(scores_QV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and items of the best k, best first; equal scores in catalogue order, so that lists repeat exactly.

    Raises:
        Diverged: a score is NaN.
    """
    rows = max(1, CACHE_BLOCK // scores_QV.shape[1])
    pieces = [_top_k(scores, min(k, scores_QV.shape[1])) for scores in torch.split(scores_QV, rows)]
    return torch.cat([value for value, _ in pieces]), torch.cat([item for _, item in pieces])


def _top_k(scores_QV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    value_QK, item_QK = torch.topk(scores_QV, k, dim=1)
    refuse_nan(value_QK[:, :1])  # to topk, NaN is the greatest
    # Where several items tie for the last places, topk keeps any of them: put the first ones of the catalogue there instead.
    last_Q1 = value_QK[:, -1:]
    tied_Q, kept_Q = (scores_QV == last_Q1).sum(1), (value_QK == last_Q1).sum(1)
    for row in torch.nonzero((tied_Q > kept_Q) & ~torch.isneginf(last_Q1[:, 0]))[:, 0].tolist():
        at_last_K = value_QK[row] == last_Q1[row]
        item_QK[row, at_last_K] = torch.nonzero(scores_QV[row] == last_Q1[row])[: kept_Q[row], 0]
    order = torch.argsort(item_QK, dim=1, stable=True)
    value_QK, item_QK = value_QK.gather(1, order), item_QK.gather(1, order)
    order = torch.argsort(value_QK, dim=1, descending=True, stable=True)
    return value_QK.gather(1, order), item_QK.gather(1, order)
