"""Weights of targets and the split that a log carries: what a curated version says, and what training makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from logs import chain_log, logs, random_log
from runs import tiny_recipe

from largerec.batches import BatchOptions, TrainingBatches
from largerec.bundle import data_hash
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.objectives import BCEOptions, GBCEOptions, Objective, SampledSoftmaxOptions, SoftmaxOptions
from largerec.progress import Progress
from largerec.scaling.points import regime_of
from largerec.sequences import STAGE_NAMES, SplitOptions, build_sequences, from_frame
from largerec.tokenizers import AtomicTokenizer
from largerec.train import Trainer, train

GIVEN = SplitOptions(protocol="given")
ITEMS, WIDTH = 30, 8


def with_column(log: EventLog, name: str, values: Any) -> EventLog:
    return replace(log, events=log.events.with_columns(pl.Series(name, values)))


def staged(log: EventLog) -> EventLog:
    """The log with the stages of leave-one-out written into it, in the order of its rows."""
    numbered = replace(log, events=log.events.with_row_index("row"))
    sequences = build_sequences(log, SplitOptions())
    ordered = numbered.events.sort("timestamp", maintain_order=True)
    first = ordered["user_id"].unique(maintain_order=True)
    place = {user: number for number, user in enumerate(first)}
    ordered = ordered.with_columns(pl.Series("place", [place[user] for user in ordered["user_id"]])).sort(
        "place", maintain_order=True
    )
    stages = pl.Series("stage", [STAGE_NAMES[stage] for stage in sequences.stage_N])
    return replace(log, events=ordered.with_columns(stages).sort("row").drop("row", "place"))


# --- the given split


@settings(deadline=None, max_examples=30)
@given(log=logs())
def test_a_given_split_is_the_one_that_was_written_down(log: EventLog) -> None:
    wanted, found = build_sequences(log, SplitOptions()), build_sequences(staged(log), GIVEN)
    assert data_hash(wanted) == data_hash(found)


def test_a_given_split_takes_part_in_the_hash_and_may_ask_for_first_targets() -> None:
    log = staged(chain_log())
    stages = log.events["stage"].to_list()
    other = with_column(
        log, "stage", ["after" if stage == "test" else "test" if stage == "validation" else stage for stage in stages]
    )
    with pytest.raises(LargeRecError, match="validation part has no target"):
        build_sequences(other, GIVEN)
    assert build_sequences(log, SplitOptions(protocol="given", targets="first")).targets_per_user == "first"
    with pytest.raises(LargeRecError, match="test_from says nothing under given"):
        SplitOptions(protocol="given", test_from="90%")


def test_refusals_of_given_splits_teach() -> None:
    with pytest.raises(LargeRecError, match="needs a column 'stage', which this log has not"):
        build_sequences(chain_log(), GIVEN)
    with pytest.raises(LargeRecError, match="holds 'trian'; each event is one of train, validation, test, after"):
        build_sequences(with_column(chain_log(), "stage", ["trian"] * 720), GIVEN)
    log = staged(chain_log())
    swapped = {"validation": "test", "test": "validation", "train": "train"}
    with pytest.raises(LargeRecError, match="an event of test before one of validation of the same user"):
        build_sequences(with_column(log, "stage", [swapped[stage] for stage in log.events["stage"]]), GIVEN)


# --- weights in the objective

OBJECTIVES = [
    SoftmaxOptions(),
    SoftmaxOptions(label_smoothing=0.2),
    SampledSoftmaxOptions(negatives=9),
    SampledSoftmaxOptions(negatives=9, shared=False),
    BCEOptions(negatives=3),
    GBCEOptions(negatives=5),
]


@pytest.mark.parametrize("options", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("low_precision", [False, True])
def test_a_weight_of_two_is_the_same_target_twice(options: Any, low_precision: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    queries_TD = torch.randn(5, WIDTH, generator=generator, requires_grad=True)
    keys_VD = torch.randn(ITEMS, WIDTH, generator=generator, requires_grad=True)
    target_T, times_T = torch.tensor([3, 1, 4, 1, 5]), torch.tensor([1, 2, 3, 1, 2])
    objective = Objective(options, torch.arange(1, ITEMS + 1))
    negatives = objective.draw(5)
    twice = negatives.repeat_interleave(times_T, 0) if negatives is not None and negatives.ndim == 2 else negatives
    again = torch.repeat_interleave(torch.arange(5), times_T)
    weighted = objective(
        queries_TD, keys_VD, target_T, negatives=negatives, low_precision=low_precision, weight_T=0.5 * times_T.float()
    )
    repeated = objective(queries_TD[again], keys_VD, target_T[again], negatives=twice, low_precision=low_precision)
    close = {"rtol": 0.03, "atol": 0.01} if low_precision else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(weighted, repeated, **close)
    for one, other in zip(
        torch.autograd.grad(weighted, (queries_TD, keys_VD)), torch.autograd.grad(repeated, (queries_TD, keys_VD)), strict=True
    ):
        torch.testing.assert_close(one, other, **close)


# --- weights in a run


def test_what_weighs_nothing_is_history_and_no_target() -> None:
    log = random_log()
    weights = np.random.default_rng(1).integers(3, size=log.events.height).astype(float)
    sequences = build_sequences(with_column(log, "train_weight", weights), SplitOptions())
    assert sequences.weight_N is not None
    assert np.array_equal(from_frame(sequences.frame(), "timestamp", "all").weight_N, sequences.weight_N)  # type: ignore[arg-type]
    tokens = AtomicTokenizer.fit(sequences).encode(sequences.item_ids)
    batches = TrainingBatches(sequences, tokens, BatchOptions(max_length=3, tokens=50, window="all"), 0)
    seen = []
    for batch in batches.epoch(0):
        assert batch.weight_T is not None and batch.loss_mask_T is not None and batch.target_row_T is not None
        rows = batch.target_row_T.numpy()
        assert np.array_equal(batch.weight_T.numpy(), batches.rows.weight_M[rows])  # type: ignore[index]
        assert torch.equal(batch.loss_mask_T, batch.weight_T > 0)
        for window in torch.tensor_split(batch.loss_mask_T, batch.offsets_B1[1:-1]):
            assert window.any(), "a window without a target teaches nothing"
        seen += rows[batch.loss_mask_T.numpy()].tolist()
    first = set(batches.first_U.tolist())
    end_U = zip(batches.first_U, batches.end_U, strict=True)
    wanted = [row for start, end in end_U for row in range(start, end) if row not in first and batches.rows.weight_M[row] > 0]  # type: ignore[index]
    assert sorted(seen) == wanted


@pytest.mark.parametrize("window", ["last", "all", "sample"])
def test_users_without_weight_are_no_unique_targets(window: Any) -> None:
    """Three passes over the tenth of the users that are learned from repeat them, whatever lies in the others' windows."""
    log = random_log()
    learned = set(log.events["user_id"].unique(maintain_order=True)[::10])
    weights = [float(user in learned) for user in log.events["user_id"]]
    found = []
    for events in (with_column(log, "train_weight", weights), replace(log, events=log.events.filter(pl.Series(weights) > 0))):
        sequences = build_sequences(events, SplitOptions())
        tokens = AtomicTokenizer.fit(sequences).encode(sequences.item_ids)
        batches = TrainingBatches(sequences, tokens, BatchOptions(max_length=3, tokens=50, window=window), 0)
        found.append((batches.unique_targets, batches.tokens_per_epoch))
        assert regime_of(3 * batches.tokens_per_epoch, batches.unique_targets) == "repeated" or window == "sample"
    weighed, alone = found
    assert weighed == alone and 0 < alone[1] <= alone[0]


def written(folder: Path, weights: Any | None, *overrides: str) -> dict[str, Any]:
    """A tiny run on a log of a file, whose targets have these weights."""
    log = chain_log()
    folder.mkdir()
    log = log if weights is None else with_column(log, "train_weight", weights)
    log.write(folder / "log.parquet")
    return train(tiny_recipe(folder / "run", f"data.path={folder / 'log.parquet'}", "train.max_epochs=1", *overrides), quiet=True)


TASKS = ["tasks.early.where=item_id < 'i15'", "batch.actions=interleaved"]


@pytest.mark.parametrize(
    "overrides", [[], TASKS, ["train.accumulate=3"], ["optim.table=lazy-adam"]], ids=["", "tasks", "parts", "rows"]
)
def test_equal_weights_change_nothing_but_the_last_bits(tmp_path: Path, overrides: list[str]) -> None:
    plain = written(tmp_path / "plain", None, *overrides)
    three = written(tmp_path / "three", [3.0, 3.0001] * 360, *overrides)
    alike = written(tmp_path / "alike", [3.0] * 720, *overrides)
    losses = []
    for name in ("plain", "three", "alike"):
        lines = (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()
        losses.append([entry["loss"] for line in lines if "loss" in (entry := json.loads(line))])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] != losses[1]
    assert losses[0] == losses[2] and plain["validation"] == alike["validation"], "weights that are all alike are none"
    assert plain["train_tokens"] == three["train_tokens"]
    assert plain["data"] != three["data"], "another log, for whoever resumes"


def test_weights_are_learned_from(tmp_path: Path) -> None:
    """Two rules contradict each other; the one whose targets weigh more is learned."""
    log = chain_log(users=40, items=12, length=9)
    back = chain_log(users=40, items=12, length=9, seed=1).events.with_columns(
        pl.concat_str(pl.lit("back"), "user_id").alias("user_id"),
        ("i" + (11 - pl.col("item_id").str.slice(1).cast(pl.Int64)).cast(pl.String)).alias("item_id"),
    )
    for name, forth, other in (("forth", 1.0, 0.02), ("back", 0.0, 5.0)):
        events = pl.concat([log.events.with_columns(train_weight=pl.lit(forth)), back.with_columns(train_weight=pl.lit(other))])
        replace(log, events=events).write(tmp_path / f"{name}.parquet")
        recipe = tiny_recipe(
            tmp_path / name,
            f"data.path={tmp_path / f'{name}.parquet'}",
            "train.max_epochs=12",
            "train.patience=20",
            "batch.max_length=1",
            "batch.window=all",
            "optim.learning_rate=0.01",
        )
        train(recipe, quiet=True)
        (top,) = load(tmp_path / name).recommend(histories=[["i2"]], k=1)["item_id"].to_list()
        assert top == {"forth": "i3", "back": "i1"}[name]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([0.0] * 720, "is 0 for every training event that has a history"),
        ([-1.0] * 720, "holds -1.0; a weight is a number of 0 or more"),
        ([None] * 719 + [1.0], "holds None; a weight is a number"),
        (["much"] * 720, "holds 'much'; a weight is a number"),
        ([float("nan")] * 720, "holds nan; a weight is a number"),
    ],
)
def test_refused_weights_teach(weights: Any, said: str) -> None:
    with pytest.raises(LargeRecError, match=said):
        build_sequences(with_column(chain_log(), "train_weight", weights), SplitOptions())


def test_weights_and_positives_that_leave_nothing_together_are_refused() -> None:
    log = with_column(chain_log(), "train_weight", [0.0, 1.0] * 360)
    for first, fine in (([0.0, 1.0], True), ([1.0, 0.0], False)):
        marked = with_column(log, "liked", [*first * 5, 1.0, 1.0] * 60)  # the last two validate and test
        if fine:
            assert build_sequences(marked, SplitOptions(positives="liked = 1")).weight_N is not None
            continue
        with pytest.raises(LargeRecError, match=r"is 0 for every training event for which split\.positives holds"):
            build_sequences(marked, SplitOptions(positives="liked = 1"))


def test_a_run_says_that_its_targets_are_weighed(tmp_path: Path) -> None:
    with_column(chain_log(), "train_weight", [0.0, 2.0] * 360).write(tmp_path / "log.parquet")

    class Heard(Progress):
        def start(self, *arguments: Any) -> None:
            notes.extend(arguments[-1])

    notes: list[str] = []
    Trainer(tiny_recipe(tmp_path / "run", f"data.path={tmp_path / 'log.parquet'}"), Heard(quiet=True))
    assert notes[-1] == "column 'train_weight' weighs the training targets: mean 1, 300 of 600 are 0 and only history"
