"""A loaded run, or a live model, that recommends."""

from __future__ import annotations

import copy
import numbers
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from largerec.batches import KnownOfEvents, TokenRows
from largerec.bundle import CHOICE, Bundle
from largerec.choice import ChoiceModel
from largerec.choice import from_json as choice_from_json
from largerec.columns import UNTIMED
from largerec.engine.arguments import (
    context_of,
    length_of_list,
    list_of_ids,
    lists_of_ids,
    milliseconds,
    moment_of,
    one_id,
    prices_of,
    told,
    weight_of_wanted,
)
from largerec.engine.conditioned import wanted_lists
from largerec.engine.ensemble import EnsembleScorer
from largerec.engine.ranking import Ranker
from largerec.engine.scoring import ModelScorer, Queries, Scorer, mask_seen, query_blocks, refuse_nan, top_k
from largerec.engine.shown import choose
from largerec.errors import LargeRecError, nearest
from largerec.features import FeatureRows, Features, FieldLayout, context_at
from largerec.heads import ItemHead
from largerec.item_tables import quantise_tables
from largerec.models import build_model
from largerec.ranking import TaskHeads, add_tasks
from largerec.recipe import Recipe
from largerec.sequences import Sequences
from largerec.task_metrics import mean_label
from largerec.tasks import UNKNOWN
from largerec.tokenizers import AtomicTokenizer, as_ids
from largerec.tokenizers.atomic import MOST_BITS


class Engine:
    """Scores, tokenizer and histories together. ``token_of_item`` maps the sequences' item numbers to tokens; ``choice`` says
    which of some shown items is taken, where the run has learned that."""

    def __init__(
        self,
        scorer: Scorer,
        tokenizer: AtomicTokenizer,
        sequences: Sequences,
        features: Features | None = None,
        choice: ChoiceModel | None = None,
    ) -> None:
        self.scorer, self.tokenizer, self.sequences, self.choice = scorer, tokenizer, sequences, choice
        self.features = None if features is None else FeatureRows(features)
        self.token_of_item = tokenizer.encode(sequences.item_ids)
        self.rows = TokenRows.of(sequences, self.token_of_item, getattr(scorer, "actions", None), self.features)
        self._row_of_user: dict[Any, int] | None = None
        self._ranker: Ranker | None = None

    @property
    def retrieves(self) -> bool:
        """Whether the run scores the catalogue; a model that only ranks does not."""
        return not isinstance(self.scorer, ModelScorer) or not self.scorer.model.ranks_only

    @property
    def predicts(self) -> bool:
        """Whether the run learned a task; one whose ``ranking.weight`` is 0 only reads what was done."""
        heads = self.scorer.model.task_heads if isinstance(self.scorer, ModelScorer) else None
        return isinstance(heads, TaskHeads) and max(heads.weights[1:]) > 0

    @property
    def ranker(self) -> Ranker:
        """What predicts the run's tasks.

        Raises:
            LargeRecError: the run has none, or learned none.
        """
        if self._ranker is None:
            if not isinstance(self.scorer, ModelScorer) or self.scorer.model.task_heads is None:
                raise LargeRecError(
                    'this run has no tasks to rank by; train one with, for example, tasks.click.where="is_click = 1".'
                )
            self._ranker = Ranker(self.scorer, self.sequences)
        if not self._ranker.learned:
            raise LargeRecError("this run learned none of its tasks (ranking.weight or their weights are 0), so it cannot rank.")
        return self._ranker

    @classmethod
    def beside(cls, engine: Engine, scorer: Scorer) -> Engine:
        """The same tokenizer and histories with another scorer: how baselines are measured by the same code."""
        other = copy.copy(engine)
        other.scorer, other._ranker = scorer, None
        return other

    def queries_at(self, row_Q: np.ndarray) -> Queries:
        """Ask at rows of the sequences: the history is everything of the row's user before it."""
        sequences = self.sequences
        user_Q = np.searchsorted(sequences.offsets_U1, row_Q, side="right") - 1
        kept_N1 = self.rows.kept_N1
        time_Q = sequences.time_N[row_Q] if sequences.time_kind == "timestamp" else np.full(len(row_Q), -1)
        return Queries(self.rows, kept_N1[sequences.offsets_U1[user_Q]], kept_N1[row_Q], time_Q, row_Q)

    def _user_row(self, user_id: Any) -> int:
        if self._row_of_user is None:
            self._row_of_user = {user: row for row, user in enumerate(self.sequences.user_ids.to_list())}
        for form in _forms_of_user(user_id):
            if form in self._row_of_user:
                return self._row_of_user[form]
        some = [str(user) for user in self.sequences.user_ids.head(5_000).to_list()]
        close = nearest(user_id if isinstance(user_id, str) else told(user_id), some)
        raise LargeRecError(
            f"user {told(user_id)} is not in this run's log{close} It knows {self.sequences.n_users} users, "
            f"for example {', '.join(some[:3])}. For someone new pass histories=[[item, ...]]."
        )

    def _queries_of_users(self, row_U: np.ndarray) -> Queries:
        first_Q = self.rows.kept_N1[self.sequences.offsets_U1[row_U]]
        end_Q = self.rows.kept_N1[self.sequences.offsets_U1[row_U + 1]]
        now = time.time_ns() // 1_000_000 if self.sequences.time_kind == "timestamp" else -1
        return Queries(self.rows, first_Q, end_Q, np.full(len(row_U), now))

    def _queries_until(self, row_U: np.ndarray, at: datetime) -> Queries:
        """Ask for users at a moment: the history is what had happened by then, and what has no time."""
        start_U, end_U = np.array([self._rows_until(int(row), at) for row in row_U], dtype=np.int64).reshape(-1, 2).T
        kept_N1 = self.rows.kept_N1
        return Queries(self.rows, kept_N1[start_U], kept_N1[end_U], np.full(len(row_U), milliseconds(at)))

    def _check_moment(self, at: datetime | None, *, known: bool) -> None:
        if at is not None and (not known or self.sequences.time_kind != "timestamp"):
            without = "this run's log has an order and no clock" if known else "a history given by hand has no times"
            raise LargeRecError(f"at={at} says nothing: {without}; leave it out.")

    def _rows_until(self, row: int, at: datetime | None) -> tuple[int, int]:
        """First row and end of a user's events, of those until a moment if one is given."""
        start, end = self.sequences.offsets_U1[row : row + 2]
        if at is not None:
            time_E = self.sequences.time_N[start:end]
            end = start + ((time_E <= milliseconds(at)) | (time_E == UNTIMED)).sum()  # in time order, those without a time first
        return int(start), int(end)

    def _queries_of_histories(self, histories: Sequence[Sequence[Any]]) -> Queries:
        token_M = self._tokens([item for history in histories for item in history])
        offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])])
        if (token_M < 0).any():
            at = int(np.flatnonzero(token_M < 0)[0])
            given = [item for history in histories for item in history][at]
            raise LargeRecError(
                f"item {told(given)} is not in the catalogue of {self.tokenizer.size} items; leave it out of the history."
            )
        rows = TokenRows(token_M, np.full(len(token_M), -1), None, np.arange(len(token_M) + 1), actions=self.rows.actions)
        if rows.actions is not None:
            rows = replace(rows, label_MA=np.full((len(token_M), len(self.sequences.tasks)), UNKNOWN))
        if self.features is not None:
            nothing = np.full(len(token_M), -1)
            rows = replace(rows, known=KnownOfEvents(self.features, nothing, nothing))
        return Queries(rows, offsets[:-1], offsets[1:], np.full(len(histories), -1))

    def recommend(
        self,
        users: Sequence[Any] | None = None,
        k: int = 10,
        *,
        histories: Sequence[Sequence[Any]] | None = None,
        mask: bool = True,
        want: str | None = None,
        want_weight: float | None = None,
        at: datetime | str | None = None,
    ) -> pl.DataFrame:
        """The best k items for known users (their whole history in the log) or for given histories of item ids, oldest first.

        Returns a frame ``user_id, item_id, score, rank`` (ids as the log has them; rank from 1; with histories, user_id is
        their number from 0), with ``title`` where the log has titles. ``mask`` leaves out everything that is in the history.
        ``want``: a task of the run, a condition; the score is then the logarithm of the probability that the item comes next,
        plus ``want_weight`` (1 if not given) times that of the probability that the condition holds for it
        (:mod:`largerec.engine.conditioned`).
        ``at``: known users are asked at that moment, as in :meth:`rank`.

        Raises:
            LargeRecError: an unknown user, item or task, k below 1, neither or both of users and histories, a ``want_weight``
                that is no number of 0 or more or without ``want``, ``at`` with histories or of a log without a clock, or an
                argument of the wrong kind.
        """
        if not self.retrieves:
            raise LargeRecError(
                "this run's model only ranks items that it is given: engine.rank(user, candidates), or `largerec rank RUN "
                "--user-id U --items A B`. For recommendations train a family that retrieves, such as model.name=hstu."
            )
        moment, weight = moment_of(at), weight_of_wanted(want_weight, want)
        self._check_moment(moment, known=histories is None)
        column = None if want is None else self.wanted(want)
        if (users is None) == (histories is None):
            raise LargeRecError("give either users=[...] or histories=[[item, ...], ...].")
        k = min(length_of_list(k), self.scorer.size)
        if users is not None:
            asked = list_of_ids(users, "users", 'users=["u1", "u2"]')
            row_U = np.array([self._user_row(user) for user in asked], dtype=np.int64)
            queries = self._queries_of_users(row_U) if moment is None else self._queries_until(row_U, moment)
            names = self.sequences.user_ids.gather(row_U)
        else:
            queries = self._queries_of_histories(lists_of_ids(histories, "histories", 'histories=[["i1", "i2"], ["i3"]]'))
            row_U, names = np.full(len(queries), -1), pl.Series(np.arange(len(queries)))
        frames = []
        for start, block in query_blocks(queries, self.scorer.size):
            if column is None:
                scores_QV = self.scorer.scores(block)
                if mask:
                    mask_seen(scores_QV, block)
                best = top_k(scores_QV, k)
            else:
                best = self.wanted_lists(block, row_U[start : start + len(block)], column, k, weight=weight, mask=mask)
            frames.append(self._frame(names, start, *(part[:, :k] for part in best)))
        if not frames:
            raise LargeRecError("the list of users is empty; name at least one.")
        return pl.concat(frames)

    def wanted(self, want: str) -> int:
        """The column of a task that retrieval can be conditioned on.

        Raises:
            LargeRecError: the run has no such task, or it has more labels than two.
        """
        ranker = self.ranker
        fits = [ranker.names[column] for column in ranker.learned if ranker.heads.classes[column] == 2]
        if want not in fits:
            listed = ", ".join(fits) or "none, since a task must be a condition (where=...)"
            raise LargeRecError(f"want={want!r} is no task to be wanted{nearest(str(want), fits)} There are: {listed}.")
        return ranker.names.index(want)

    def wanted_lists(
        self, queries: Queries, user_Q: np.ndarray, column: int, k: int, *, weight: float = 1.0, mask: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and items conditioned on a task, as :func:`largerec.engine.conditioned.wanted_lists` gives them."""

        def asked(query: Queries, row: int, token_C: np.ndarray) -> torch.Tensor:
            return self._probabilities(query, row, token_C)[column][:, 1]

        return wanted_lists(self.scorer, queries, user_Q, asked, k=k, weight=weight, mask=mask)

    def _frame(self, names: pl.Series, start: int, value_QK: torch.Tensor, item_QK: torch.Tensor) -> pl.DataFrame:
        n_queries, n_listed = item_QK.shape
        frame = pl.DataFrame(
            {
                "user_id": names.gather(np.repeat(np.arange(start, start + n_queries), n_listed)),
                "item_id": self.tokenizer.vocabulary["item_id"].gather(item_QK.flatten().numpy()),
                "score": value_QK.flatten().numpy(),
                "rank": np.tile(np.arange(1, n_listed + 1), n_queries),
            }
        )
        if "title" in self.tokenizer.vocabulary.columns:
            frame = frame.with_columns(self.tokenizer.vocabulary["title"].gather(item_QK.flatten().numpy()))
        return frame.filter(pl.col("score") > float("-inf"))  # a user who has seen nearly everything gets a shorter list

    def rank(
        self,
        user: Any = None,
        candidates: Sequence[Any] = (),
        *,
        history: Sequence[Any] | None = None,
        by: str | None = None,
        at: datetime | str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> pl.DataFrame:
        """Candidates for a known user, or after a history of item ids, by what the user would do with them, best first.

        Returns a frame ``item_id``, a column for each task (the probability of a condition; of a number cut into classes the
        mean class, from 0), ``rank`` (from 1, by the task ``by``, the first one if not given), and ``title`` where the log has
        titles. A known user's history is the whole log, asked now; with a moment ``at`` (or its ISO text; UTC where it has no
        zone), it is the log up to and at that moment, asked then. Equal predictions stand in the order of the candidates.
        ``context``: values of the run's context features by column; those left out are missing, but for what the clock says.

        Raises:
            LargeRecError: the run has no tasks; an unknown user, item, task or context; no candidates; not one of user and
                history; ``at`` with a history, or of a log without a clock; an argument of the wrong kind.
        """
        ranker = self.ranker
        names = [ranker.names[column] for column in ranker.learned]
        if by is not None and by not in names:
            raise LargeRecError(f"by={by!r} is no task of this run{nearest(str(by), names)} Tasks: {', '.join(names)}.")
        given = list_of_ids(candidates, "candidates", 'candidates=["i1", "i2"]')
        if not given:
            raise LargeRecError("the list of candidates is empty; name at least one item.")
        token_C = self._tokens(given)
        if (token_C < 0).any():
            raise LargeRecError(
                f"candidate {told(given[int(np.flatnonzero(token_C < 0)[0])])} is not in the catalogue of "
                f"{self.tokenizer.size} items; leave it out: nothing was learned of it."
            )
        query, _, row = self._asked(user, history, at)
        found = self._probabilities(query, row, token_C, context_of(context))
        columns = {name: mean_label(found[at].double().numpy()) for name, at in zip(names, ranker.learned, strict=True)}
        frame = pl.DataFrame({"item_id": self.tokenizer.vocabulary["item_id"].gather(token_C), **columns})
        if "title" in self.tokenizer.vocabulary.columns:
            frame = frame.with_columns(self.tokenizer.vocabulary["title"].gather(token_C))
        frame = frame.sort(by or names[0], descending=True, maintain_order=True)
        return frame.insert_column(1 + len(names), pl.Series("rank", np.arange(1, len(frame) + 1)))

    def _probabilities(
        self, query: Queries, row: int, token_C: np.ndarray, context: Mapping[str, Any] | None = None
    ) -> list[torch.Tensor]:
        """Every task's label probabilities for items after one history, at its time, for the user of a row; each [C, L]."""
        moment = datetime.fromtimestamp(int(query.time_Q[0]) / 1000, UTC) if query.time_Q[0] >= 0 else None
        found = self.ranker.of_candidates(query, token_C, self._features_of(row, token_C, moment, context or {}))
        for probability_CL in found:
            refuse_nan(probability_CL)
        return found

    def _asked(self, user: Any, history: Sequence[Any] | None, at: datetime | str | None) -> tuple[Queries, Sequence[Any], int]:
        """The one query of a known user or of a history by hand, its item ids, oldest first, and the user's row or -1."""
        if (user is None) == (history is None):
            raise LargeRecError("give either a user or history=[item, ...].")
        moment = moment_of(at)
        self._check_moment(moment, known=history is None)
        if history is not None:
            read = list_of_ids(history, "history", 'history=["i1", "i2"]')
            return self._queries_of_histories([read]), read, -1
        row = self._user_row(one_id(user, "user", 'user="u1"'))
        start, end = self._rows_until(row, moment)
        ids = self.sequences.item_ids.gather(self.sequences.item_N[start:end]).to_list()
        row_U = np.array([row])
        return self._queries_of_users(row_U) if moment is None else self._queries_until(row_U, moment), ids, row

    def choose(
        self,
        user: Any = None,
        shown: Sequence[Any] = (),
        *,
        history: Sequence[Any] | None = None,
        prices: Sequence[float] | None = None,
        at: datetime | str | None = None,
    ) -> pl.DataFrame:
        """Which of some items, in the order in which they are shown, a user takes: ``item_id, place`` (from 1), ``probability``
        (1 in all), ``rank`` and ``title`` where the log has titles, best first.

        User, history and ``at`` are as in :meth:`rank`. Items outside the catalogue may be among those shown: where they stand,
        what they cost and whether the user touched them is known all the same.

        Raises:
            LargeRecError: the run has no choice model (``lists.choice``); nothing is shown; prices are missing, not asked for or
                not one an item; an unknown user, or not one of user and history; an argument of the wrong kind.
        """
        if self.choice is None:
            raise LargeRecError(
                "this run has no choice model; train one on a log with lists: lists.items=COLUMN lists.choice=true."
            )
        ids = None if history is None else self._ids(list_of_ids(history, "history", 'history=["i1", "i2"]'))
        read = None if ids is None else ids.filter(pl.Series(self.tokenizer.encode(ids) >= 0)).to_list()
        query, past, _ = self._asked(user, read, at)  # the model reads what it knows, the touches are all of the history
        past = past if ids is None else ids.to_list()
        counts_V = self.tokenizer.target_counts(self.sequences)
        given, paid = self._ids(list_of_ids(shown, "shown", 'shown=["i1", "i2"]')), prices_of(prices)
        frame, token_S = choose(self.choice, self.scorer, query, past, given, self.tokenizer.encode(given), counts_V, paid)
        if "title" in self.tokenizer.vocabulary.columns:
            known_S = pl.Series(token_S).replace(-1, None)
            frame = frame.with_columns(self.tokenizer.vocabulary["title"].gather(known_S))
        return frame.sort("rank", maintain_order=True)

    def _features_of(
        self, row: int, token_C: np.ndarray, moment: datetime | None, context: Mapping[str, Any]
    ) -> dict[str, torch.Tensor] | None:
        """Features of candidates for the user of a row (-1: nothing is known), asked at a moment."""
        if self.features is None:
            if context:
                raise LargeRecError(f"context={dict(context)} says nothing: this run has no features; leave it out.")
            return None
        return self.features.of_candidates({**context_at(self.features.features, moment), **context}, row, token_C)

    def _tokens(self, given: Sequence[Any]) -> np.ndarray:
        """Tokens of ids given by hand, -1 outside the catalogue."""
        return self.tokenizer.encode(as_ids(given, self.tokenizer.vocabulary.schema["item_id"]))

    def _ids(self, given: Sequence[Any]) -> pl.Series:
        """Item ids in the log's own type, where all of them have it, else as text."""
        own = as_ids(given, self.tokenizer.vocabulary.schema["item_id"])
        if own.null_count() == sum(one is None for one in given):
            return own
        return as_ids(given, pl.String())

    def item_id(self, text: str) -> Any:
        """An item id as the log has it, from the text of it: numbers stay numbers."""
        kind = self.tokenizer.vocabulary.schema["item_id"]
        try:
            return pl.Series([text]).cast(kind).item()
        except pl.exceptions.PolarsError:
            raise LargeRecError(
                f"item {text!r} is no {kind} like the log's items, for example {self.tokenizer.vocabulary['item_id'][0]!r}."
            ) from None

    def history(self, user: Any, last: int = 10) -> pl.DataFrame:
        """The last items of a known user, oldest first: ``item_id`` and, where the log has it, ``title``."""
        row = self._user_row(one_id(user, "user", 'user="u1"'))
        start, end = self.sequences.offsets_U1[row], self.sequences.offsets_U1[row + 1]
        ids = self.sequences.item_ids.gather(self.sequences.item_N[max(start, end - last) : end]).alias("item_id").to_frame()
        if "title" not in self.tokenizer.vocabulary.columns:
            return ids
        return ids.join(self.tokenizer.vocabulary.select("item_id", "title"), on="item_id", how="left", maintain_order="left")


def _forms_of_user(user_id: Any) -> list[Any]:
    """What a user may be called in the log: as given, as a number, as text. To Python True is 1, but nobody is called that."""
    if isinstance(user_id, str):
        return [user_id, *([int(user_id)] if re.fullmatch(r"-?[0-9]{1,40}", user_id) else [])]
    if not isinstance(user_id, numbers.Real) or isinstance(user_id, bool):
        return []
    if not isinstance(user_id, numbers.Integral):
        return [user_id]
    return [int(user_id), *([str(int(user_id))] if int(user_id).bit_length() <= MOST_BITS else [])]


def build_scorer(
    recipe: Recipe, tokenizer: AtomicTokenizer, sequences: Sequences, layout: FieldLayout | None = None
) -> ModelScorer:
    """A model of the recipe with fresh weights, and its scorer; without a history it counts training targets."""
    batch = recipe.batch
    classes_A = tuple(task.n_classes for task in recipe.tasks.values())
    model = build_model(recipe.model, tokenizer.size, batch.positions, layout, classes_A)
    if batch.actions is not None:
        add_tasks(model, recipe.tasks, recipe.ranking, batch.actions, layout, recipe.features.where)
    query_time = bool(getattr(recipe.model, "query_time", False))
    head = ItemHead.of(recipe.head, model, recipe.score_scale)
    counts_V = tokenizer.target_counts(sequences)
    return ModelScorer(model, head, counts_V, batch.max_length, query_time=query_time, actions=batch.actions)


def load(path: str | Path) -> Engine:
    """Load a run's directory, or that of an ensemble of runs.

    Raises:
        LargeRecError: the folder is missing, foreign, unfinished or damaged, or a member of an ensemble was trained again.

    Warns (UserWarning) where the run was trained on someone who was to be forgotten since.
    """
    bundle = Bundle.open(path)
    bundle.check_members()
    if (said := bundle.forgotten()) is not None:
        warnings.warn(said, stacklevel=2)
    tokenizer, sequences, scorers = bundle.tokenizer(), bundle.sequences(), list[Scorer]()
    for member in bundle.member_bundles():
        if member is not bundle and not member.tokenizer().vocabulary.equals(tokenizer.vocabulary):
            raise LargeRecError(f"{member.path} has another catalogue than its ensemble {bundle.path}; make the ensemble again.")
        features = member.features()
        scorer = build_scorer(member.recipe(), tokenizer, sequences, None if features is None else features.layout())
        if (bits := member.table_bits()) is not None:
            quantise_tables(scorer.model, bits)
        member.load_weights(scorer.model)
        scorers.append(scorer.prepared())
    choice = choice_from_json(bundle.read_json(CHOICE), str(bundle.file(CHOICE))) if bundle.file(CHOICE).is_file() else None
    if len(scorers) > 1:
        return Engine(EnsembleScorer(scorers), tokenizer, sequences, None, choice)
    return Engine(scorers[0], tokenizer, sequences, features, choice)
