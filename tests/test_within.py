"""The loss within windows: a plain loop, what it leaves alone, what it needs, and that GAUC rises with it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from logs import START_MS, log_of
from runs import tiny_recipe
from test_actions import Mode, each_mode, rows_of
from test_ranking import _cut, overrides_of
from test_tasks import TASKS

from largerec.batches import pack_training
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate
from largerec.ranking import RankingOptions, TaskHeads, within_windows
from largerec.train import train


def plain(logit_N: list[float], label_N: list[int], window_N: list[int], weight_N: list[float] | None = None) -> list[float]:
    found, weights = [], weight_N or [1.0] * len(logit_N)
    rows = list(zip(logit_N, label_N, window_N, weights, strict=True))
    for logit, label, window, weight in rows:
        others = [x * math.exp(o) for o, y, w, x in rows if y == 0 and w == window]
        own = math.exp(logit)
        found.append(-weight * math.log(own / (own + sum(others))) if label == 1 and others else 0.0)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_it_is_that_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logit_N = torch.tensor(rng.normal(size=40, scale=3), requires_grad=True)
    label_N, window_N = torch.tensor(rng.integers(-1, 2, 40)), torch.tensor(np.sort(rng.integers(0, 12, 40)))
    found_N = within_windows(logit_N, label_N, window_N)
    wanted = plain(logit_N.tolist(), label_N.tolist(), window_N.tolist())
    assert found_N.tolist() == pytest.approx(wanted) and 0 < sum(one > 0 for one in wanted) < (label_N == 1).sum() + 1
    found_N.sum().backward()
    assert logit_N.grad is not None and logit_N.grad.isfinite().all() and not logit_N.grad[label_N < 0].any()


def test_large_logits_and_windows_of_one_label_stay_finite() -> None:
    logit_N = torch.tensor([300.0, -300.0, 500.0, -500.0, 7.0], requires_grad=True)
    found_N = within_windows(logit_N, torch.tensor([0, 1, 1, 1, 0]), torch.tensor([0, 0, 1, 1, 2]))
    assert found_N.tolist() == [0, 600, 0, 0, 0]
    found_N.sum().backward()
    assert logit_N.grad is not None and logit_N.grad.tolist() == [1, -1, 0, 0, 0]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert within_windows(torch.zeros(0), nothing, nothing).shape == (0,)


def test_an_event_of_little_weight_is_little_of_a_rival() -> None:
    label_N, window_N = torch.tensor([1, 0]), torch.tensor([0, 0])
    found = [float(within_windows(torch.zeros(2), label_N, window_N, torch.tensor([1.0, w]))[0]) for w in (1.0, 1e-6, 0.0)]
    assert found == pytest.approx([math.log(2), 1e-6, 0], abs=1e-8)


def test_the_level_of_a_user_does_not_matter() -> None:
    logit_N, window_N = torch.randn(20), torch.arange(20) // 5
    label_N = (torch.rand(20) < 0.5).long()
    moved_N = logit_N + torch.tensor([5.0, -3.0, 0.5, 9.0])[window_N]
    torch.testing.assert_close(within_windows(logit_N, label_N, window_N), within_windows(moved_N, label_N, window_N))


@each_mode
@pytest.mark.parametrize("weighted", [False, True])
def test_it_joins_the_tasks_with_two_labels_alone(mode: Mode, weighted: bool) -> None:
    torch.manual_seed(0)
    both, table_VD = [TaskHeads(RankingOptions(within=within), TASKS, 8, mode) for within in (0.0, 0.5)], torch.randn(15, 8)
    both[1].load_state_dict(both[0].state_dict())
    rows = rows_of(mode)
    rows = replace(rows, weight_M=np.linspace(0.1, 3, 15, dtype=np.float32) if weighted else None)
    batch = pack_training(rows, np.array([0, 9]), np.array([8, 14]))
    assert batch.task_label_TA is not None and batch.target_T is not None
    hidden_TD, known_A = torch.randn(batch.n_tokens, 8), (batch.task_label_TA >= 0).sum(0)
    without, with_it = (heads.losses(hidden_TD, batch, table_VD, known_A) for heads in both)
    assert torch.equal(with_it[1:], without[1:])
    user_T = torch.repeat_interleave(torch.arange(2), batch.lengths_B)
    logit_T = both[0](hidden_TD, table_VD[batch.target_T])[0][:, 0]
    weight_T = None if batch.weight_T is None else batch.weight_T.tolist()
    assert (weight_T is not None) == weighted
    loss_T = plain(logit_T.tolist(), batch.task_label_TA[:, 0].tolist(), user_T.tolist(), weight_T)
    wanted = 0.5 * torch.tensor(loss_T).sum() / known_A[0]
    assert wanted > 0
    torch.testing.assert_close(with_it[0] - without[0], wanted)
    pieces = [both[1].losses(hidden_TD[a:b], piece, table_VD, known_A) for a, b, piece in _cut(batch)]
    torch.testing.assert_close(torch.stack(pieces).sum(0), with_it)


@pytest.mark.parametrize("change", [('tasks={watch={quantiles_of="timestamp"}}',), ("ranking.weight=0",)])
def test_what_it_needs_is_said(change: Any, tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"ranking.within needs a task of two labels and a weight.*leave within out"):
        tiny_recipe(tmp_path, *overrides_of("summed"), *change, "ranking.within=0.5")


@pytest.mark.parametrize(("mode", "weighed", "refused"), [
    ("interleaved", (1, 1), False), ("interleaved", (1, 0), True), ("summed", (1, 1), True),
])  # fmt: skip
def test_users_of_one_label_each_have_nothing_to_order(mode: str, weighed: Any, refused: bool, tmp_path: Path) -> None:
    """One user's first event has another label than their second: not if that weighs nothing, or if nothing asks about it."""
    rows = [(user, item, START_MS + 1_000_000 * step + user) for user in range(20) for step, item in enumerate((1, 2, 3, 4, 5))]
    events = log_of(rows).events
    alone = pl.Series([float(user % 2) for user, _, _ in rows])
    changes = [f"data.path={tmp_path / 'log.csv'}", "tasks.taken.where=value = 1", f"batch.actions={mode}", "ranking.within=0.5"]
    events.with_columns(rating=alone).write_csv(tmp_path / "log.csv")
    with pytest.raises(LargeRecError, match=r"of both that are learned from \(taken\)\. Leave ranking\.within out"):
        train(tiny_recipe(tmp_path / "run", *changes), quiet=True)
    assert not (tmp_path / "run").exists()
    first = pl.int_range(pl.len()) == 0
    weight = pl.when(first).then(weighed[1]).otherwise(weighed[0])
    events = events.with_columns(rating=pl.when(first).then(1 - alone).otherwise(alone), train_weight=weight)
    events.write_csv(tmp_path / "log.csv")
    if refused:
        with pytest.raises(LargeRecError, match="of both that are learned from"):
            train(tiny_recipe(tmp_path / "run", *changes), quiet=True)
    else:
        train(tiny_recipe(tmp_path / "run", *changes, "train.max_epochs=1"), quiet=True)


def test_it_raises_gauc(tmp_path: Path) -> None:
    """Coins of each user's own, and a small share of the item. The share so far, which says most about a label, is lower at the
    events of label 1 than at a user's others, so cross-entropy alone orders a user's events badly. Some of the rise is prediction
    against that share, which is no better order of one list (docs/rank.md)."""
    rng = np.random.default_rng(0)
    rows, values = [], []
    for user in range(200):
        own = rng.beta(0.5, 0.5)
        for step in range(16):
            item = int(rng.integers(10))
            rows.append((user, item, START_MS + 1_000_000 * step + user))
            values.append(float(rng.random() < np.clip(own + (0.1 if item % 2 else -0.1), 0, 1)))
    log_of(rows).events.with_columns(rating=pl.Series(values)).write_csv(tmp_path / "log.csv")
    day = datetime.fromtimestamp(START_MS / 1000, UTC)
    cuts = [(day + timedelta(seconds=1000 * step)).isoformat() for step in (8, 10)]
    changes = [
        f"data.path={tmp_path / 'log.csv'}", "tasks.taken.where=value = 1", "batch.actions=interleaved", "batch.tokens=512",
        "batch.max_length=16", "batch.window=all", "model={name=\"hstu\", depth=1, width=16, heads=1, dropout=0}",
        "train.max_epochs=10", "train.metric=taken.auc", "ranking.retrieval=0", "optim={learning_rate=0.01, warmup_steps=5}",
        'objective={name="softmax"}', f'split={{protocol="timeline", validation_from="{cuts[0]}", test_from="{cuts[1]}"}}',
    ]  # fmt: skip
    found = {}
    for within in (0, 3):
        train(tiny_recipe(tmp_path / f"run-{within}", *changes, f"ranking.within={within}"), quiet=True)
        found[within] = evaluate(tmp_path / f"run-{within}")["tasks"]["taken"]
    assert found[0]["auc"] > 0.7 and found[3]["auc"] > 0.55 and found[3]["gauc"] > found[0]["gauc"] + 0.05
