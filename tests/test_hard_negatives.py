"""Hard negatives against a plain loop, what they leave alone, and what they need."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from runs import tiny_recipe
from test_actions import Mode, each_mode, rows_of
from test_ranking import TASKS, overrides_of
from torch.nn import functional as F

from largerec import hard_negatives as module
from largerec.batches import Batch, pack_training
from largerec.errors import LargeRecError
from largerec.hard_negatives import hard_negative_loss
from largerec.ranking import RankingOptions, TaskHeads
from largerec.train import train

WIDTH = 8


def asked(
    mode: Mode, weight: float = 0.5, weight_M: np.ndarray | None = None, kept_B: np.ndarray | None = None
) -> tuple[TaskHeads, Batch, list[torch.Tensor]]:
    """Heads, a batch of two users of which some events are no positives, and random states, queries and tables."""
    torch.manual_seed(0)
    heads = TaskHeads(RankingOptions(hard_negatives=weight), TASKS, WIDTH, mode)
    for parameter in heads.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    rows = rows_of(mode)
    rows = replace(rows, positive_M=np.arange(len(rows.token_M)) % 3 > 0, weight_M=weight_M)
    if kept_B is not None:
        assert rows.label_MA is not None
        rows = replace(rows, label_MA=np.maximum(rows.label_MA, 0), positive_M=np.arange(len(rows.token_M)) % 3 == 0)
    batch = pack_training(rows, np.array([0, 9]), np.array([8, 14]), kept_B)
    assert batch.loss_mask_T is not None and 0 < batch.loss_mask_T.sum() < batch.n_tokens
    states = [torch.randn(batch.n_tokens, WIDTH), torch.randn(int(batch.loss_mask_T.sum()), WIDTH), torch.randn(15, WIDTH)]
    return heads, batch, states


@each_mode
@pytest.mark.parametrize(("block", "weighted"), [(1, False), (2048, False), (2, True)])
def test_the_loss_is_that_of_a_plain_loop(mode: Mode, block: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    weight_M = np.linspace(0.1, 3, 15, dtype=np.float32) if weighted else None
    heads, batch, (hidden_TD, queries_PD, table_VD) = asked(mode, weight_M=weight_M)
    keys_VD = F.normalize(table_VD, dim=1)
    assert batch.loss_mask_T is not None and batch.target_T is not None and batch.action_T is not None
    assert batch.task_label_TA is not None
    each, total, rows = 2 if mode == "interleaved" else 1, 0.0, rows_of(mode)
    taken = [{int(rows.token_M[row]) for row in range(*window) if row % 3 > 0} for window in ((0, 9), (9, 15))]
    left_out, weights = 0, 0.0
    targets = batch.loss_mask_T.nonzero()[:, 0].tolist()
    for query_D, at in zip(queries_PD, targets, strict=True):
        user = int(torch.searchsorted(batch.offsets_B1, at, right=True)) - 1
        summed = 1.0
        for token in range(int(batch.offsets_B1[user]), int(batch.offsets_B1[user + 1])):
            asks = not batch.loss_mask_T[token] and (each == 1 or batch.action_T[token])
            unknown = asks and (batch.task_label_TA[token + each - 1] < 0).all()
            if not asks or unknown:
                continue
            if int(batch.target_T[token]) in taken[user]:
                left_out += 1
                continue
            state = hidden_TD[[token + each - 1]]
            p = heads.probabilities(state, table_VD[batch.target_T[[token]]])[0][0, 1].item()
            summed += (1 - p) * math.exp(float(query_D @ (keys_VD[batch.target_T[token]] - keys_VD[batch.target_T[at]])))
        weight = 1.0 if batch.weight_T is None else float(batch.weight_T[at])
        total, weights = total + weight * math.log(summed), weights + weight
    found = hard_negative_loss(heads, batch, hidden_TD, queries_PD, table_VD, keys_VD)
    assert left_out > 0 and total > 1 and float(found) == pytest.approx(0.5 * total / weights, rel=1e-5)


@each_mode
@pytest.mark.parametrize("taken", [False, True])
def test_what_was_taken_at_the_first_event_of_a_window_is_no_negative(mode: Mode, taken: bool) -> None:
    heads, _, (hidden_TD, _, table_VD) = asked(mode)
    rows = rows_of(mode, events=4)
    shown_M, label_MA = np.array([3, 1, 3, 2]), np.zeros_like(rows.label_MA)
    rows = replace(rows, token_M=shown_M, label_MA=label_MA, positive_M=np.array([taken, True, False, True]))
    batch = pack_training(rows, np.array([0]), np.array([3]))
    found = hard_negative_loss(heads, batch, hidden_TD[: batch.n_tokens], torch.ones(2, WIDTH), table_VD, table_VD)
    assert (float(found) == 0) == taken


@each_mode
def test_gradients_go_to_retrieval_alone(mode: Mode) -> None:
    heads, batch, (hidden_TD, queries_PD, table_VD) = asked(mode)
    keys_VD = table_VD.clone().requires_grad_()
    hidden_TD.requires_grad_(), queries_PD.requires_grad_()
    hard_negative_loss(heads, batch, hidden_TD, queries_PD, table_VD, keys_VD).backward()  # type: ignore[no-untyped-call]
    assert keys_VD.grad is not None and queries_PD.grad is not None and hidden_TD.grad is None
    assert keys_VD.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in heads.parameters())


@each_mode
def test_without_a_weight_or_without_negatives_there_is_nothing(mode: Mode) -> None:
    heads, batch, (hidden_TD, queries_PD, table_VD) = asked(mode, weight=0.0)
    assert float(hard_negative_loss(heads, batch, hidden_TD, queries_PD, table_VD, table_VD)) == 0
    away_M = (np.arange(30) % 3 > 0).astype(np.float32)  # all others were curated away, so that the weights left are alike
    heads, batch, (hidden_TD, queries_PD, table_VD) = asked(mode, weight_M=away_M)
    assert batch.weight_T is None
    assert float(hard_negative_loss(heads, batch, hidden_TD, queries_PD, table_VD, table_VD)) == 0


def test_in_a_thinned_window_no_event_is_judged_by_the_token_of_another() -> None:
    heads, batch, (hidden_TD, queries_PD, table_VD) = asked("interleaved", kept_B=np.array([6, 4]))
    assert batch.target_row_T is not None and batch.action_T is not None and batch.loss_mask_T is not None
    asks_T = batch.action_T & ~batch.loss_mask_T
    own_T = asks_T & (batch.target_row_T.roll(-1) == batch.target_row_T)
    assert own_T.any() and (asks_T & ~own_T).any()
    strange_TD = hidden_TD.clone()
    strange_TD[1 + (asks_T & ~own_T).nonzero()[:, 0]] += 5.0
    found = [hard_negative_loss(heads, batch, states, queries_PD, table_VD, table_VD) for states in (hidden_TD, strange_TD)]
    assert found[0] == found[1] > 0


@each_mode
def test_a_run_learns_with_them(mode: Mode, tmp_path: Any) -> None:
    quick = [*overrides_of(mode), "train.max_steps=4", "train.evaluate_every=4"]
    plain = train(tiny_recipe(tmp_path / "plain", *quick), quiet=True)
    hard = train(tiny_recipe(tmp_path / "hard", *quick, "ranking.hard_negatives=0.5"), quiet=True)
    assert plain["validation"] != hard["validation"] or plain["validation_tasks"] != hard["validation_tasks"]


def test_what_they_need_is_said(tmp_path: Any) -> None:
    with pytest.raises(LargeRecError, match=r"ranking.hard_negatives needs split.positives.*a task with where and a weight"):
        tiny_recipe(tmp_path, "tasks.cheap.quantiles_of=timestamp", "batch.actions=summed", "ranking.hard_negatives=0.5")
