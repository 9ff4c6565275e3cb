"""Actions as input: how events become tokens, what a token may know, and what is asked of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from test_models import each_family, options_of
from test_tasks import TASKS, labelled_log

from largerec.batches import Batch, BatchOptions, TokenRows, TrainingBatches, pack_histories, pack_interleaved, pack_training
from largerec.layers import Backbone
from largerec.models import build_model
from largerec.ranking import RankingOptions, TaskHeads, add_tasks
from largerec.sequences import SplitOptions, build_sequences
from largerec.tokenizers import AtomicTokenizer

Mode = Literal["interleaved", "summed"]
each_mode = pytest.mark.parametrize("mode", ["interleaved", "summed"])
N_ITEMS, LENGTH = 15, 8


def rows_of(mode: Mode | None, events: int = 30, positives: bool = True) -> TokenRows:
    rng = np.random.default_rng(1)
    label_MA = np.stack([rng.integers(-1, 2, events), rng.integers(-1, 4, events)], axis=1)
    return TokenRows(
        token_M=rng.integers(N_ITEMS, size=events),
        time_M=1_600_000_000_000 + np.cumsum(rng.integers(1, 9_000_000, events)),
        behaviour_M=None,
        kept_N1=np.arange(events + 1),
        label_MA=None if mode is None else label_MA,
        positive_M=label_MA[:, 0] == 1 if positives else None,
        actions=mode,
    )


def model_of(family: str, mode: Mode) -> Backbone:
    torch.manual_seed(0)
    model = build_model(options_of(family), N_ITEMS, BatchOptions(max_length=LENGTH, actions=mode).positions).eval()
    add_tasks(model, TASKS, RankingOptions(), mode)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def asked(model: Backbone, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states, and the logits of every task for the item that each token is asked about."""
    assert isinstance(model.task_heads, TaskHeads) and batch.target_T is not None
    with torch.no_grad():
        hidden_TD = model(batch)
        return hidden_TD, torch.cat(model.task_heads(hidden_TD, model.item_table_VD[batch.target_T]), dim=1)


# --- how events become tokens


def test_interleaved_events_are_item_and_action() -> None:
    rows = rows_of("interleaved")
    assert rows.label_MA is not None and rows.positive_M is not None
    batch = pack_training(rows, np.array([2, 10]), np.array([5, 11]))
    assert batch.offsets_B1.tolist() == [0, 7, 10]
    events = [2, 2, 3, 3, 4, 4, 5, 10, 10, 11]
    action = [False, True] * 3 + [False] + [False, True] + [False]
    assert batch.action_T is not None and batch.label_TA is not None and batch.task_label_TA is not None
    assert batch.target_T is not None and batch.loss_mask_T is not None and batch.query_time_T is not None
    assert batch.action_T.tolist() == action
    assert batch.item_T.tolist() == rows.token_M[events].tolist()
    assert batch.time_T.tolist() == rows.time_M[events].tolist()
    for at, (event, is_action) in enumerate(zip(events, action, strict=True)):
        own, nothing = rows.label_MA[event].tolist(), [-1, -1]
        assert batch.label_TA[at].tolist() == (own if is_action else nothing)
        assert batch.task_label_TA[at].tolist() == (nothing if is_action else own)
        assert int(batch.query_time_T[at]) == rows.time_M[event + is_action]
        assert bool(batch.loss_mask_T[at]) == (is_action and bool(rows.positive_M[event + 1]))
        if is_action:
            assert int(batch.target_T[at]) == rows.token_M[event + 1]


def test_summed_events_are_one_token_and_ask_of_the_next() -> None:
    rows = rows_of("summed")
    assert rows.label_MA is not None and rows.positive_M is not None
    batch = pack_training(rows, np.array([2, 10]), np.array([5, 11]))
    plain = pack_training(rows_of(None), np.array([2, 10]), np.array([5, 11]))
    for name in ("item_T", "time_T", "offsets_B1", "target_T", "query_time_T", "loss_mask_T"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))
    assert batch.label_TA is not None and batch.task_label_TA is not None and batch.action_T is not None
    np.testing.assert_array_equal(batch.label_TA, rows.label_MA[[2, 3, 4, 10]])
    np.testing.assert_array_equal(batch.task_label_TA, rows.label_MA[[3, 4, 5, 11]])
    assert batch.action_T.all() and plain.label_TA is None and plain.task_label_TA is None


def test_a_history_ends_with_its_last_action_and_asks_at_its_time() -> None:
    rows = rows_of("interleaved")
    batch = pack_histories(rows, np.array([0, 4]), np.array([3, 5]), np.array([7, -1]))
    assert batch.offsets_B1.tolist() == [0, 6, 8]
    assert batch.query_time_T is not None and batch.action_T is not None
    assert batch.query_time_T[[5, 7]].tolist() == [7, -1]
    assert batch.action_T[[5, 7]].all()


def test_consecutive_windows_learn_each_label_once() -> None:
    sequences = build_sequences(labelled_log(), SplitOptions(), TASKS)
    tokenizer = AtomicTokenizer.fit(sequences)
    options = BatchOptions(max_length=3, tokens=100, window="all", actions="interleaved")
    batches = TrainingBatches(sequences, tokenizer.encode(sequences.item_ids), options, seed=0)
    found, wanted = np.zeros((2, 4), dtype=int), np.zeros((2, 4), dtype=int)
    alone = 0
    for batch in batches.epoch(0):
        assert batch.task_label_TA is not None
        alone += int((batch.task_label_TA[batch.offsets_B1[:-1]] >= 0).any(1).sum())
        for column in range(2):
            label_T = batch.task_label_TA[:, column]
            found[column] += np.bincount(label_T[label_T >= 0], minlength=4)
    assert batches.rows.label_MA is not None
    users = list(zip(batches.first_U, batches.end_U, strict=True))
    for first, end in users:
        for column in range(2):
            label_E = batches.rows.label_MA[first:end, column]
            wanted[column] += np.bincount(label_E[label_E >= 0], minlength=4)
    np.testing.assert_array_equal(found, wanted)
    assert alone <= len(users) < len(batches.start_W)  # only the first event of a user is asked of without a history


def test_an_item_in_question_may_stand_alone() -> None:
    rows = rows_of("interleaved")
    batch = pack_interleaved(rows, np.array([3, 4]), np.array([0, 2, 0]), np.array([9, 5, 6]))
    assert batch.offsets_B1.tolist() == [0, 1, 6, 7]
    assert batch.item_T.tolist() == rows.token_M[[9, 3, 3, 4, 4, 5, 6]].tolist()


@each_mode
def test_an_epoch_asks_for_every_label_and_every_positive_once(mode: Mode) -> None:
    sequences = build_sequences(labelled_log(), SplitOptions(positives="value >= 4"), TASKS)
    token_of_item = AtomicTokenizer.fit(sequences).encode(sequences.item_ids)
    options = BatchOptions(max_length=200, tokens=150, window="all", actions=mode)
    batches = TrainingBatches(sequences, token_of_item, options, seed=0)
    rows, tokens, positives, labels = batches.rows, 0, 0, 0
    for batch in batches.epoch(0):
        assert batch.loss_mask_T is not None and batch.task_label_TA is not None
        tokens, positives = tokens + batch.n_tokens, positives + int(batch.loss_mask_T.sum())
        labels = labels + (batch.task_label_TA >= 0).sum(0)
    assert tokens == batches.tokens_per_epoch
    assert rows.label_MA is not None and rows.positive_M is not None
    first_U = rows.kept_N1[sequences.offsets_U1[:-1]]
    end_U = rows.kept_N1[sequences.train_end_U]
    later = np.concatenate([np.arange(a + 1, b) for a, b in zip(first_U, end_U, strict=True)])
    assert positives == rows.positive_M[later].sum()
    # with interleaved actions the first event of a user is asked of too: its item stands there without a history
    wanted = later if mode == "summed" else np.concatenate([later, first_U[end_U - first_U > 1]])
    np.testing.assert_array_equal(labels, (rows.label_MA[wanted] >= 0).sum(0))


def test_pieces_keep_labels_beside_their_tokens() -> None:
    batch = pack_training(rows_of("interleaved"), np.array([0, 6, 12]), np.array([4, 11, 20]))
    pieces = batch.pieces(3)
    assert len(pieces) > 1
    for name in ("action_T", "label_TA", "task_label_TA", "loss_mask_T"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name))


# --- what a token may know


@each_family
@each_mode
@pytest.mark.parametrize("event", [0, 3, 6])
def test_no_action_leaks_into_its_own_prediction(family: str, mode: Mode, event: int) -> None:
    """Another action: bitwise the same states and task logits up to and for its own event, and others after it."""
    rows, model = rows_of(mode), model_of(family, mode)
    assert rows.label_MA is not None
    changed_MA = rows.label_MA.copy()
    changed_MA[event] = [1 - max(0, changed_MA[event, 0]), (changed_MA[event, 1] + 1) % 4]
    ends = (np.array([0]), np.array([LENGTH]))
    one, other = pack_training(rows, *ends), pack_training(replace(rows, label_MA=changed_MA), *ends)
    (hidden_TD, logit_TC), (hidden_other_TD, logit_other_TC) = asked(model, one), asked(model, other)
    first = 2 * event + 1 if mode == "interleaved" else event  # the token that carries the action
    assert torch.equal(hidden_TD[:first], hidden_other_TD[:first])
    assert torch.equal(logit_TC[:first], logit_other_TC[:first])
    assert one.task_label_TA is not None and rows.label_MA is not None
    own = 2 * event if mode == "interleaved" else event - 1  # the token that predicts it, which is among those
    if own >= 0:
        assert own < first and one.task_label_TA[own].tolist() == rows.label_MA[event].tolist()
    moved_T = (hidden_TD - hidden_other_TD).abs().amax(1) > 1e-4
    far = [at for at, moved in enumerate(moved_T.tolist()) if at >= first and not moved]
    assert not far, f"tokens {far} do not see the action of event {event}, though {len(hidden_TD)} tokens are in reach at depth 2"


@each_family
@each_mode
def test_unknown_is_a_label_of_its_own(family: str, mode: Mode) -> None:
    rows, model = rows_of(mode), model_of(family, mode)
    assert rows.label_MA is not None
    states = []
    for label, column in itertools.product((-1, 0, 1), (0, 1)):
        label_MA = rows.label_MA.copy()
        label_MA[0, column] = label
        states.append(asked(model, pack_training(replace(rows, label_MA=label_MA), np.array([0]), np.array([3])))[0][-1])
    for column in (0, 1):
        for one, other in itertools.combinations(states[column::2], 2):
            assert (one - other).abs().max() > 1e-4
