"""Packed batches: tokens of many users one after another, with offsets and without padding.

Shapes: T tokens, B users (or windows of users). Batches are filled to a token budget in a seeded random order; their content is a
pure function of (seed, epoch, number), so a position in training is two integers and resuming is exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from largerec.errors import LargeRecError
from largerec.features import FeatureRows
from largerec.options import Options
from largerec.prefetch import prefetch
from largerec.sequences import TRAIN, Sequences
from largerec.tasks import UNKNOWN

Actions = Literal["interleaved", "summed"]


COUNTED_PASSES = 64
"""Passes whose steps are counted before a plan, so that its schedule ends with its last pass."""


class BatchOptions(Options):
    """How histories become batches.

    ``max_length`` (L): inputs kept of a history, the last ones. ``tokens``: tokens a training step. ``window``: a longer
    training history gives its ``last`` L inputs, ``all`` of it in consecutive windows of at most L, or a ``sample``: one window
    of L inputs, anew each pass, every place as likely as any other.

    ``stochastic_length`` (alpha; Zhai et al. 2024, arXiv 2402.17152, section 3.2): a window of n > L**(alpha / 2) inputs is
    thinned to L**(alpha / 2) of them with probability 1 - L**alpha / n**2, anew each pass, in training only. Which ones stay is
    uniform, they stay in order, and each still predicts the event that truly followed it.

    ``actions``: how the labels of the recipe's tasks become input. ``interleaved``: an event is two tokens, its item, which
    predicts its own labels, and the whole event, which predicts the next item (Zhai et al. 2024, section 2.2); ``max_length``
    counts events, ``tokens`` tokens. ``summed``: one token, item and labels added; half the length, and labels are predicted
    from the state before an event and the item in question.

    ``users``, ``recent``: train on this share of the users (seeded; the users of a smaller share are among those of a larger one)
    and on this share of the training events, the most recent ones by the clock. The catalogue, its counts and all that is
    evaluated stay those of the whole log.
    """

    max_length: int = Field(50, ge=1)
    tokens: int = Field(4096, ge=1)
    window: Literal["last", "all", "sample"] = "last"
    stochastic_length: float | None = Field(None, gt=1, le=2)
    actions: Actions | None = None
    users: float = Field(1.0, gt=0, le=1)
    recent: float = Field(1.0, gt=0, le=1)

    @property
    def positions(self) -> int:
        """Tokens of the longest input: with interleaved actions each event is two, and an item in question may follow."""
        return 2 * self.max_length + 1 if self.actions == "interleaved" else self.max_length


@dataclass(frozen=True)
class Batch:
    """Packed inputs, and targets when training. ``time_T``: ms UTC, -1 unknown; ``query_time_T``: the time of the target.

    ``target_row_T``: where what a token predicts stands among all kept rows. ``masked_T``: inputs whose item is hidden from the
    model.

    With tasks (A of them): ``action_T`` says which tokens carry what was done, ``label_TA``; ``task_label_TA`` are the labels
    that the task heads predict at a token. Both hold -1 where nothing is known or nothing is to be said. ``past``: how many
    tokens of a history stand before each of these in a cache. ``weight_T``: how much the event that a token predicts counts in
    the loss, where a log weighs its events and not all alike; one of weight 0 is no target. ``taken_T``: tokens of events that
    could be targets, where not all can.

    ``asked_T``: tokens whose state will be read, where it is not all; a ranker leaves out the others. ``features``: of the event
    that a token carries; with summed actions, of the one that it is asked about.
    """

    item_T: torch.Tensor
    time_T: torch.Tensor
    offsets_B1: torch.Tensor
    behaviour_T: torch.Tensor | None = None
    target_T: torch.Tensor | None = None
    query_time_T: torch.Tensor | None = None
    loss_mask_T: torch.Tensor | None = None
    target_row_T: torch.Tensor | None = None
    masked_T: torch.Tensor | None = None
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    action_T: torch.Tensor | None = None
    label_TA: torch.Tensor | None = None
    task_label_TA: torch.Tensor | None = None
    weight_T: torch.Tensor | None = None
    taken_T: torch.Tensor | None = None
    asked_T: torch.Tensor | None = None
    past: int = 0

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What there is of each token, by name."""
        names = [field.name for field in fields(self) if field.name.endswith(("_T", "_TA"))]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        if self.item_T.device == device:
            return self
        moved: dict[str, Any] = {name: value.to(device) for name, value in self.tensors.items()}
        features = {name: value.to(device) for name, value in self.features.items()}
        return replace(self, **moved, offsets_B1=self.offsets_B1.to(device), features=features)

    @property
    def n_tokens(self) -> int:
        return int(self.item_T.shape[0])

    @property
    def lengths_B(self) -> torch.Tensor:
        return self.offsets_B1.diff()

    @property
    def position_T(self) -> torch.Tensor:
        """Position of each token within its own history, from 0 (after what is in a cache, from ``past``)."""
        starts_T = torch.repeat_interleave(self.offsets_B1[:-1], self.lengths_B, output_size=self.n_tokens)
        return torch.arange(self.past, self.past + self.n_tokens, device=starts_T.device) - starts_T

    def pieces(self, count: int) -> list[Batch]:
        """The batch as at most ``count`` batches of whole histories with about equal numbers of tokens; none is empty."""
        if count == 1:
            return [self]
        cuts = sorted(set(torch.searchsorted(self.offsets_B1, torch.arange(count + 1) * self.n_tokens // count).tolist()))
        pieces = []
        for first, last in itertools.pairwise(cuts):
            begin, end = int(self.offsets_B1[first]), int(self.offsets_B1[last])
            cut: dict[str, Any] = {name: value[begin:end] for name, value in self.tensors.items()}
            features = {name: value[begin:end] for name, value in self.features.items()}
            pieces.append(replace(self, **cut, offsets_B1=self.offsets_B1[first : last + 1] - begin, features=features))
        return pieces


@dataclass(frozen=True)
class KnownOfEvents:
    """The features of M kept rows: the row of its context and of its user in the tables of ``rows``, -1: unknown."""

    rows: FeatureRows
    context_M: np.ndarray
    user_M: np.ndarray

    def at(self, index_T: np.ndarray, token_T: np.ndarray) -> dict[str, torch.Tensor]:
        """Of the events at these rows; ``token_T`` are their items."""
        return self.rows.of(self.context_M[index_T], self.user_M[index_T], token_T)


@dataclass(frozen=True)
class TokenRows:
    """All events of all users as tokens; events on items outside the catalogue are left out.

    ``token_M``, ``time_M``, ``behaviour_M``: the M kept rows. ``kept_N1[row]``: how many rows were kept before a row of the
    sequences, which turns a row into a position here. ``label_MA``: their labels; ``positive_M``: which may be targets (all, when
    not given); ``weight_M``: how much each counts as a target; ``actions``: how events become tokens; ``known``: their features.
    """

    token_M: np.ndarray
    time_M: np.ndarray
    behaviour_M: np.ndarray | None
    kept_N1: np.ndarray
    label_MA: np.ndarray | None = None
    positive_M: np.ndarray | None = None
    actions: Actions | None = None
    weight_M: np.ndarray | None = None
    known: KnownOfEvents | None = None

    @cached_property
    def alike(self) -> bool:
        """Whether all weights that are not 0 are equal, so that the mean needs none."""
        return self.weight_M is not None and len(np.unique(self.weight_M[self.weight_M > 0])) <= 1

    @property
    def tokens_per_event(self) -> int:
        return 2 if self.actions == "interleaved" else 1

    @classmethod
    def of(
        cls,
        sequences: Sequences,
        token_of_item: np.ndarray,
        actions: Actions | None = None,
        features: FeatureRows | None = None,
    ) -> TokenRows:
        token_N = token_of_item[sequences.item_N]
        kept_N = token_N >= 0
        time_N = sequences.time_N if sequences.time_kind == "timestamp" else np.full_like(sequences.time_N, -1)
        behaviour_N, label_NA, positive_N = sequences.behaviour_N, sequences.label_NA, sequences.positive_N
        return cls(
            token_M=token_N[kept_N],
            time_M=time_N[kept_N],
            behaviour_M=None if behaviour_N is None else behaviour_N[kept_N],
            kept_N1=np.concatenate([[0], np.cumsum(kept_N)]),
            label_MA=None if label_NA is None or actions is None else label_NA[kept_N],
            positive_M=None if positive_N is None else positive_N[kept_N],
            actions=actions,
            known=None if features is None else KnownOfEvents(features, np.flatnonzero(kept_N), sequences.user_N[kept_N]),
            weight_M=None if sequences.weight_N is None else sequences.weight_N[kept_N],
        )

    def weighed(self, batch: Batch) -> Batch:
        """A training batch with the weight of the row that each token predicts; rows of weight 0 are no targets, nor of tasks."""
        if self.weight_M is None:
            return batch
        assert batch.loss_mask_T is not None and batch.target_row_T is not None
        weight_T = torch.from_numpy(self.weight_M[batch.target_row_T.numpy()])
        label_TA = batch.task_label_TA
        return replace(
            batch,
            weight_T=None if self.alike else weight_T,
            loss_mask_T=batch.loss_mask_T & (weight_T > 0),
            task_label_TA=None if label_TA is None else label_TA.masked_fill((weight_T == 0)[:, None], UNKNOWN),
        )


def ranges(start_S: np.ndarray, length_S: np.ndarray) -> np.ndarray:
    """Concatenate the ranges start..start+length: packed row numbers of many slices."""
    offsets = np.concatenate([[0], np.cumsum(length_S)])
    rows: np.ndarray = np.arange(offsets[-1]) + np.repeat(start_S - offsets[:-1], length_S)
    return rows


def pack_training(
    rows: TokenRows,
    start_B: np.ndarray,
    end_B: np.ndarray,
    kept_B: np.ndarray | None = None,
    seed: int = 0,
    asked_B: np.ndarray | None = None,
) -> Batch:
    """Pack the slices start..end of the rows as inputs; row t predicts row t + 1, which must be of the same user.

    ``kept_B``: how many inputs of each slice stay (all, when not given); ``seed`` then chooses which. With interleaved actions
    the item of the last target is a token too: its labels are predicted like those of the others. ``asked_B``: slices whose first
    event is the last target of another slice, which asked for its labels with a history before it: they are not asked for again.
    """
    length_B = end_B - start_B
    index_T = ranges(start_B, length_B)
    if kept_B is not None:
        order_T = np.lexsort((np.random.default_rng(seed).random(len(index_T)), np.repeat(np.arange(len(length_B)), length_B)))
        first_B = np.cumsum(length_B) - length_B
        index_T, length_B = index_T[np.sort(order_T[ranges(first_B, kept_B)])], kept_B
    if rows.actions == "interleaved":
        batch = pack_interleaved(rows, index_T, length_B, index_T[np.cumsum(length_B) - 1] + 1)
        if asked_B is not None and batch.task_label_TA is not None:
            again_B = asked_B & (index_T[np.cumsum(length_B) - length_B] == start_B)  # the first event may be thinned out
            batch.task_label_TA[batch.offsets_B1[:-1][torch.from_numpy(again_B)]] = UNKNOWN
        return rows.weighed(batch)
    mask_T = np.ones(len(index_T), dtype=bool) if rows.positive_M is None else rows.positive_M[index_T + 1]
    batch = replace(
        _pack(rows, index_T, length_B),
        target_T=torch.from_numpy(rows.token_M[index_T + 1]),
        query_time_T=torch.from_numpy(rows.time_M[index_T + 1]),
        loss_mask_T=torch.from_numpy(mask_T),
        task_label_TA=None if rows.label_MA is None else torch.from_numpy(rows.label_MA[index_T + 1]),
        target_row_T=torch.from_numpy(index_T + 1),
        features=_features(rows, index_T + 1),
    )
    return rows.weighed(batch)


def pack_histories(rows: TokenRows, start_B: np.ndarray, end_B: np.ndarray, query_time_B: np.ndarray) -> Batch:
    """Pack histories that ask for what comes next; ``query_time_B`` is the moment of asking (ms UTC, -1 unknown)."""
    index_T = ranges(start_B, end_B - start_B)
    if rows.actions == "interleaved":
        batch = pack_interleaved(rows, index_T, end_B - start_B)
        assert batch.query_time_T is not None
        batch.query_time_T[batch.offsets_B1[1:] - 1] = torch.from_numpy(query_time_B)
        return batch
    batch = _pack(rows, index_T, end_B - start_B)
    query_time_T = rows.time_M[np.minimum(index_T + 1, len(rows.time_M) - 1)]
    query_time_T[np.cumsum(end_B - start_B) - 1] = query_time_B
    return replace(batch, query_time_T=torch.from_numpy(query_time_T))


def _pack(rows: TokenRows, index_T: np.ndarray, length_B: np.ndarray) -> Batch:
    return Batch(
        item_T=torch.from_numpy(rows.token_M[index_T]),
        time_T=torch.from_numpy(rows.time_M[index_T]),
        offsets_B1=torch.from_numpy(np.concatenate([[0], np.cumsum(length_B)])),
        behaviour_T=None if rows.behaviour_M is None else torch.from_numpy(rows.behaviour_M[index_T]),
        action_T=None if rows.label_MA is None else torch.ones(len(index_T), dtype=torch.bool),
        label_TA=None if rows.label_MA is None else torch.from_numpy(rows.label_MA[index_T]),
        taken_T=None if rows.positive_M is None else torch.from_numpy(rows.positive_M[index_T]),
        features=_features(rows, index_T),
    )


def _features(rows: TokenRows, index_T: np.ndarray) -> dict[str, torch.Tensor]:
    return {} if rows.known is None else rows.known.at(index_T, rows.token_M[index_T])


def pack_interleaved(rows: TokenRows, index_E: np.ndarray, length_B: np.ndarray, asked_B: np.ndarray | None = None) -> Batch:
    """Pack events as two tokens each, item and action; ``asked_B`` adds the item of one more event to each history.

    An item token predicts the labels of its own event and knows nothing of them; an action token carries item and labels and
    predicts the item of the next row. ``query_time_T`` is the time of what a token predicts: its own event, or the next one.
    """
    assert rows.label_MA is not None, "interleaved actions need labels"
    copies_B = 2 * length_B
    copies_E = np.full(len(index_E), 2)
    if asked_B is not None:
        index_E = np.insert(index_E, np.cumsum(length_B), asked_B)
        copies_E = np.full(len(index_E), 2)
        copies_E[np.cumsum(length_B + 1) - 1] = 1
        copies_B = copies_B + 1
    index_T = np.repeat(index_E, copies_E)
    action_T = np.ones(len(index_T), dtype=bool)
    action_T[np.cumsum(copies_E) - copies_E] = False
    said_T = np.where(action_T, np.minimum(index_T + 1, len(rows.token_M) - 1), index_T)
    mask_T = action_T if rows.positive_M is None else action_T & rows.positive_M[said_T]
    label_TA = rows.label_MA[index_T]
    return replace(
        _pack(rows, index_T, copies_B),
        target_T=torch.from_numpy(rows.token_M[said_T]),
        query_time_T=torch.from_numpy(rows.time_M[said_T]),
        loss_mask_T=torch.from_numpy(mask_T),
        action_T=torch.from_numpy(action_T),
        label_TA=torch.from_numpy(np.where(action_T[:, None], label_TA, UNKNOWN)),
        task_label_TA=torch.from_numpy(np.where(action_T[:, None], UNKNOWN, label_TA)),
        target_row_T=torch.from_numpy(said_T),
    )


def _windows(
    first_U: np.ndarray, end_U: np.ndarray, length: int, window: Literal["last", "all", "sample"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row, end and room of the input slices of the training histories first..end, whose last event is only a target.

    A slice may lie up to ``room`` rows earlier.
    """
    last_U = end_U - 1
    long_enough = last_U > first_U
    first_U, last_U = first_U[long_enough], last_U[long_enough]
    if window != "all":
        start_U = np.maximum(first_U, last_U - length)
        return start_U, last_U, start_U - first_U if window == "sample" else np.zeros_like(start_U)
    count_U = -(-(last_U - first_U) // length)
    step_W = ranges(np.zeros_like(count_U), count_U)
    end_W = np.repeat(last_U, count_U) - step_W * length
    return np.maximum(np.repeat(first_U, count_U), end_W - length), end_W, np.zeros_like(end_W)


def _first_recent(sequences: Sequences, share: float) -> np.ndarray:
    """The first training row of each user that is among the most recent ``share`` of all by time [U].

    Raises:
        LargeRecError: the log has no clock.
    """
    first_U = sequences.offsets_U1[:-1]
    if share == 1:
        return first_U
    if sequences.time_kind != "timestamp":
        raise LargeRecError(
            f"batch.recent={share} goes by the time of events, but this log has an order and no clock; leave it out."
        )
    trained_N = sequences.stage_N == TRAIN
    time_E = np.sort(sequences.time_N[trained_N])
    old_N = trained_N & (sequences.time_N < time_E[min(len(time_E) - 1, round((1 - share) * len(time_E)))])
    before_N1 = np.concatenate([[0], np.cumsum(old_N)])  # old rows come first: a user's rows are in time order
    found_U: np.ndarray = first_U + np.diff(before_N1[sequences.offsets_U1])
    return found_U


class TrainingBatches:
    """Training windows in a seeded random order a pass ("epoch"), packed to a token budget."""

    def __init__(
        self,
        sequences: Sequences,
        token_of_item: np.ndarray,
        options: BatchOptions,
        seed: int,
        features: FeatureRows | None = None,
    ) -> None:
        self.rows = TokenRows.of(sequences, token_of_item, options.actions, features)
        kept_N1 = self.rows.kept_N1
        self.first_U, self.end_U = kept_N1[_first_recent(sequences, options.recent)], kept_N1[sequences.train_end_U]
        if options.users < 1:
            order_U = np.random.default_rng([seed, 4]).permutation(sequences.n_users)
            left_out_U = order_U[max(1, round(options.users * sequences.n_users)) :]
            self.end_U[left_out_U] = self.first_U[left_out_U]
        self.start_W, self.end_W, self.room_W = _windows(self.first_U, self.end_U, options.max_length, options.window)
        if self.rows.weight_M is not None:  # a window without a target teaches nothing
            targets_M1 = np.concatenate([[0], np.cumsum(self.rows.weight_M > 0)])
            first_W = self.start_W - self.room_W + (0 if options.actions == "interleaved" else 1)
            asks_W = targets_M1[self.end_W + 1] > targets_M1[first_W]
            self.start_W, self.end_W, self.room_W = self.start_W[asks_W], self.end_W[asks_W], self.room_W[asks_W]
        if not len(self.start_W) and min(options.users, options.recent) < 1:
            raise LargeRecError(
                f"with batch.users={options.users} and batch.recent={options.recent} no user is left who has two events to train "
                "on; raise them."
            )
        if self.rows.positive_M is not None and options.actions is None and not self._positive_W().any():
            raise LargeRecError(
                f"with batch.users={options.users} and batch.recent={options.recent} split.positives holds for no event that is "
                "left to train on; raise them."
            )
        self.asked_W = (
            ~np.isin(self.start_W, self.first_U) if options.window == "all" else np.zeros(len(self.start_W), dtype=bool)
        )
        self.options, self.seed = options, seed

    def _positive_W(self) -> np.ndarray:
        """Whether a window may ask for a positive event, wherever in its room a pass takes it."""
        assert self.rows.positive_M is not None
        positives_M1 = np.concatenate([[0], np.cumsum(self.rows.positive_M)])
        found_W: np.ndarray = positives_M1[self.end_W + 1] > positives_M1[self.start_W - self.room_W + 1]
        return found_W

    @property
    def unique_targets(self) -> int:
        """Training targets there are before any is repeated, wherever in its room a pass takes a window."""
        return int((self.end_W - self.start_W + self.room_W).sum())

    @property
    def tokens_per_epoch(self) -> int:
        return int(self.tokens_of(0).sum())

    @property
    def mean_context(self) -> float:
        """Tokens that a token attends to, itself among them, averaged over tokens."""
        length_W = self.tokens_of(0).astype(float)
        return float((length_W * (length_W + 1)).sum() / (2 * length_W.sum()))

    def lengths_of(self, epoch: int) -> np.ndarray:
        """Inputs of each window in an epoch: all, or what stochastic length leaves. [W]"""
        length_W: np.ndarray = self.end_W - self.start_W
        if (alpha := self.options.stochastic_length) is None:
            return length_W
        longest = self.options.max_length
        short = max(1, round(longest ** (alpha / 2)))
        whole_W = np.random.default_rng([self.seed, epoch, 1]).random(len(length_W)) < longest**alpha / length_W**2
        return np.where((length_W > short) & ~whole_W, short, length_W)

    def tokens_of(self, epoch: int) -> np.ndarray:
        """Tokens of each window in an epoch [W]: its inputs, or with interleaved actions two each and the last target's item."""
        length_W = self.lengths_of(epoch)
        return 2 * length_W + 1 if self.options.actions == "interleaved" else length_W

    def slices_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """First row and end of each window's inputs in an epoch. [W]"""
        earlier_W = np.random.default_rng([self.seed, epoch, 3]).integers(self.room_W, endpoint=True)
        return self.start_W - earlier_W, self.end_W - earlier_W

    def windows_of(self, epoch: int) -> list[np.ndarray]:
        """The windows of each batch of an epoch: as many as fit the budget, at least one."""
        order_W = np.random.default_rng([self.seed, epoch]).permutation(len(self.start_W))
        total_W = np.cumsum(self.tokens_of(epoch)[order_W])
        batches, first = [], 0
        while first < len(order_W):
            before = total_W[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(total_W, before + self.options.tokens, side="right")))
            batches.append(order_W[first:last])
            first = last
        return batches

    def steps_of(self, passes: int, most: int | None = None) -> int:
        """Batches of so many passes, ``most`` at the most. Each pass packs its windows anew, into a few more or fewer batches;
        they are counted in up to ``COUNTED_PASSES`` passes, and taken to go on alike in the others."""
        steps = 0
        for epoch in range(passes):
            if epoch == COUNTED_PASSES:
                steps = round(steps * passes / COUNTED_PASSES)
                break
            steps += len(self.windows_of(epoch))
            if most is not None and steps >= most:
                break
        return steps if most is None else min(most, steps)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Batches ``first``, ``first + 1``, ... of an epoch, built ahead of their use by one thread."""
        kept_W = None if self.options.stochastic_length is None else self.lengths_of(epoch)
        start_W, end_W = self.slices_of(epoch)

        def batch(number: int, windows: np.ndarray) -> Batch:
            kept_B = None if kept_W is None else kept_W[windows]
            seed = int(np.random.SeedSequence([self.seed, epoch, 2, number]).generate_state(1)[0])
            return pack_training(self.rows, start_W[windows], end_W[windows], kept_B, seed, self.asked_W[windows])

        numbered = list(enumerate(self.windows_of(epoch)))[first:]
        return prefetch((lambda n=number, w=windows: batch(n, w)) for number, windows in numbered)  # type: ignore[misc]
