"""Training: it learns, stops, plans its learning rate, and writes down what it did."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from logs import chain_log
from runs import log_lines, tiny_recipe, trained_run
from safetensors.torch import load_file

from largerec.batches import COUNTED_PASSES, Batch
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.evaluate import measure
from largerec.metrics import summarise
from largerec.models import RETRIEVING as FAMILIES
from largerec.optim import derived_learning_rate, learning_rate_at
from largerec.progress import Progress
from largerec.split_log import commit_of
from largerec.train import Trainer, train

RESULT_KEYS = {
    "name",
    "model",
    "protocol",
    "query_time",
    "seed",
    "data",
    "params",
    "params_non_embedding",
    "train_tokens",
    "train_flops",
    "train_seconds",
    "threads",
    "device",
    "steps",
    "best_step",
    "validation",
    "validation_unmasked",
    "tasks",
    "n_test_evaluations",
}


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in log_lines(run) if "loss" in line]


def validations(run: Path) -> list[dict[str, float]]:
    return [line["validation"] | {"step": line["step"]} for line in log_lines(run) if "validation" in line]


def chain_file(tmp_path: Path) -> str:
    """A log in which each item is always followed by the next one."""
    chain_log().write(tmp_path / "chain.parquet")
    return f"data.path={tmp_path / 'chain.parquet'}"


# --- learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_known_rule_is_learned(tmp_path: Path, family: str, precision: str) -> None:
    model = f"model={{name = '{family}', depth = 1, width = 16}}"
    overrides = (chain_file(tmp_path), model, f"train.precision={precision}", "train.max_epochs=25")
    result = train(
        tiny_recipe(tmp_path / "run", "objective={name = 'softmax'}", "optim.learning_rate=0.02", *overrides), quiet=True
    )
    found = losses(tmp_path / "run")
    assert found[0] == pytest.approx(np.log(20), abs=0.2)  # it begins by guessing among 20 items
    assert found[-1] < found[0] / 2
    assert result["validation"]["recall@5"] > 0.9
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    "objective",
    [
        '{name = "softmax"}',
        '{name = "sampled-softmax", negatives = 8, shared = false}',
        '{name = "sampled-softmax", negatives = 8, sampling = "popularity", logq = false}',
        '{name = "bce", negatives = 2}',
        '{name = "gbce", negatives = 4}',
    ],
)
def test_every_objective_lowers_its_loss(tmp_path: Path, objective: str) -> None:
    train(tiny_recipe(tmp_path / "run", f"objective={objective}", "train.max_epochs=6", "train.log_every=6"), quiet=True)
    found = losses(tmp_path / "run")
    assert np.mean(found[-3:]) < np.mean(found[:3])


def test_low_precision_is_near_full_precision_and_not_the_same(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        train(tiny_recipe(tmp_path / precision, f"train.precision={precision}", "train.max_epochs=1"), quiet=True)
    full, low = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert full != low
    assert full == pytest.approx(low, rel=0.01)


def test_a_diverging_loss_ends_the_run_with_advice(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "optim={learning_rate = 1e30, warmup_steps = 0}")
    with pytest.raises(LargeRecError, match=r"the loss of step \d+ is (nan|inf).*diverged.*optim\.learning_rate \(now 1e\+30\)"):
        train(recipe, quiet=True)
    assert not (tmp_path / "run" / "result.json").exists()


# --- when it ends, and what is kept ---------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "train.max_epochs=100", "train.patience=3", "optim.learning_rate=0.1")
    result = train(recipe, quiet=True)
    seen = validations(tmp_path / "run")
    best = max(seen, key=lambda entry: entry["ndcg@10"])
    assert len(seen) < 100, "it did not stop early"
    assert seen.index(best) == len(seen) - 1 - 3
    assert result["best_step"] == best["step"] < result["steps"] == seen[-1]["step"]
    for name in ("recall@10", "ndcg@10", "mrr@10"):
        assert result["validation"][name] == best[name]
    engine = load(tmp_path / "run")
    rank_N = measure(engine, engine.sequences.targets("validation")).rank_N
    assert summarise(rank_N, (10,))["ndcg@10"] == best["ndcg@10"]


def test_another_metric_decides_what_is_best(tmp_path: Path) -> None:
    result = train(
        tiny_recipe(tmp_path / "run", "train.metric=mrr@3", "optim.learning_rate=0.1", "train.max_epochs=8"), quiet=True
    )
    best = max(validations(tmp_path / "run"), key=lambda entry: entry["mrr@3"])
    assert result["best_step"] == best["step"]


def test_budget_in_steps_ends_in_mid_epoch_with_a_validation(tmp_path: Path) -> None:
    result = train(tiny_recipe(tmp_path / "run", "train.max_steps=8"), quiet=True)
    assert result["steps"] == 8
    assert validations(tmp_path / "run")[-1]["step"] == 8


def test_validation_within_epochs(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "run", "train.evaluate_every=5", "train.max_epochs=2"), quiet=True)
    steps = [entry["step"] for entry in validations(tmp_path / "run")]
    assert steps[:2] == [5, 10]
    assert steps[-1] == log_lines(tmp_path / "run")[-1]["step"]


def test_validation_during_training_may_look_at_a_sample(tmp_path: Path) -> None:
    result = train(tiny_recipe(tmp_path / "run", "train.validation_targets=7", "train.max_epochs=2"), quiet=True)
    for entry in validations(tmp_path / "run"):
        assert round(entry["recall@10"] * 7) == pytest.approx(entry["recall@10"] * 7)
    assert round(result["validation"]["recall@10"] * 80) == pytest.approx(result["validation"]["recall@10"] * 80)


# --- the learning rate ----------------------------------------------------------------------------------------------------


def test_training_follows_the_schedule(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "optim.schedule=cosine", "train.max_steps=20", "train.log_every=1")
    train(recipe, quiet=True)
    found = {line["step"]: line["lr"] for line in log_lines(tmp_path / "run") if "loss" in line}
    peak = derived_learning_rate(16)
    assert found == {step + 1: learning_rate_at(step, 20, recipe.optim, peak) for step in range(20)}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("more", [(), ("batch.stochastic_length=1.3", "batch.window=all")])
def test_a_plan_is_so_many_whole_passes(tmp_path: Path, seed: int, more: tuple[str, ...]) -> None:
    """Passes pack their windows anew, into a few more or fewer batches, and the schedule ends with the last of them."""
    changes = ("train.max_epochs=9", "train.patience=99", "optim.schedule=linear", "train.log_every=1", f"seed={seed}")
    with Progress(quiet=True) as progress:
        trainer = Trainer(tiny_recipe(tmp_path / "run", "batch.tokens=64", *changes, *more), progress)
    counts = [len(trainer.batches.windows_of(epoch)) for epoch in range(9)]
    assert len(set(counts)) > 1, "else there is nothing to see"
    trainer.run()
    assert (trainer.state.epoch, trainer.state.batch, trainer.state.step) == (9, 0, sum(counts))
    lines = log_lines(tmp_path / "run")
    assert sum("validation" in line for line in lines) == 9
    last = [line["lr"] for line in lines if "loss" in line][-1]
    assert last == learning_rate_at(sum(counts) - 1, sum(counts), trainer.recipe.optim, derived_learning_rate(16))


def test_long_plans_are_counted_in_part(tmp_path: Path) -> None:
    with Progress(quiet=True) as progress:
        batches = Trainer(tiny_recipe(tmp_path / "run"), progress).batches
    counted = batches.steps_of(COUNTED_PASSES)
    assert batches.steps_of(3 * COUNTED_PASSES) == 3 * counted
    assert batches.steps_of(10**9, 17) == 17 and batches.steps_of(1, 10**9) == len(batches.windows_of(0))


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    with Progress(quiet=True) as progress:
        trainer = Trainer(tiny_recipe(tmp_path / "run", "optim.clip=0.001"), progress)
        plain = trainer.optimizer.step

        def look() -> None:
            norms.append(float(torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()))
            plain()

        monkeypatch.setattr(trainer.optimizer, "step", look)
        for batch in trainer.batches.epoch(0):
            trainer.step(batch)
    assert norms == pytest.approx([0.001] * len(norms), rel=0.01)


def test_tokens_outside_the_loss_mask_do_not_count(tmp_path: Path) -> None:
    with Progress(quiet=True) as progress:
        recipe = tiny_recipe(tmp_path / "run", "model.dropout=0", "objective={name = 'softmax'}")
        trainer = Trainer(recipe, progress)
        batch = next(iter(trainer.batches.epoch(0)))
        assert batch.loss_mask_T is not None and batch.target_T is not None
        some_T = torch.arange(batch.n_tokens) % 2 == 0
        spoiled = batch.target_T.masked_fill(~some_T, 0)
        found = [
            trainer_loss(trainer, dataclasses.replace(batch, loss_mask_T=some_T, target_T=t)) for t in (batch.target_T, spoiled)
        ]
    assert found[0] == found[1]


def trainer_loss(trainer: Trainer, batch: Batch) -> float:
    """The loss of a step that is not taken."""
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    loss = trainer.step(batch)
    trainer.model.load_state_dict(before)
    return loss


# --- what is written down -------------------------------------------------------------------------------------------------


def test_the_log_can_be_read_line_by_line() -> None:
    lines = [json.loads(line) for line in (trained_run() / "metrics.jsonl").read_text().splitlines()]
    for key in ("step", "epoch", "tokens", "seconds"):
        assert [line[key] for line in lines] == sorted(line[key] for line in lines)
    assert all(("loss" in line) != ("validation" in line) for line in lines)
    assert {name for line in lines for name in line.get("validation", {})} == {"recall@10", "hr@10", "ndcg@10", "mrr@10"}
    frame = pl.read_ndjson(trained_run() / "metrics.jsonl")
    assert frame.height == len(lines)


def test_the_result_says_what_was_done(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run")
    result = train(recipe, quiet=True)
    assert result.keys() == RESULT_KEYS
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["params"] == sum(t.numel() for t in load_file(tmp_path / "run" / "model.safetensors").values())
    assert result["params"] - result["params_non_embedding"] == (60 + 10) * 16  # the item and position tables
    assert result["train_tokens"] == log_lines(tmp_path / "run")[-1]["tokens"]
    assert 6 * result["params_non_embedding"] < result["train_flops"] / result["train_tokens"] < 30_000
    assert {name for name in result["validation"]} == {f"{m}@{k}" for m in ("recall", "hr", "ndcg", "mrr") for k in (5, 10, 20)}


def test_the_saved_recipe_has_every_derived_value(tmp_path: Path) -> None:
    overrides = ("model={name = 'sasrec', size = 'nano'}", "train.max_steps=1")
    train(tiny_recipe(tmp_path / "run", *overrides), quiet=True)
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert saved["model"]["depth"] == 2 and saved["model"]["heads"] == 1
    assert saved["optim"]["learning_rate"] == pytest.approx(derived_learning_rate(saved["model"]["width"]))


def test_the_lineage_names_data_and_code() -> None:
    lineage = json.loads((trained_run() / "lineage.json").read_text())
    assert len(lineage["data_hash"]) == 64
    assert lineage["code"].keys() == {"largerec", "torch", "commit"} and lineage["code"]["torch"] == torch.__version__
    assert lineage["parent"] is None and lineage["notes"]


def test_tensorboard_gets_what_the_log_gets(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard, which is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_recipe(tmp_path / "run", "train.tensorboard=true", "train.max_epochs=2"), quiet=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = log_lines(tmp_path / "run")
    for name, wanted in (
        ("loss", [(line["step"], line["loss"]) for line in lines if "loss" in line]),
        ("ndcg@10", [(line["step"], line["validation"]["ndcg@10"]) for line in lines if "validation" in line]),
    ):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted])


def test_progress_goes_to_standard_error_or_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_recipe(tmp_path / "quiet", "train.max_epochs=1"), quiet=True)
    said = capsys.readouterr()
    assert said.out == said.err == ""
    train(tiny_recipe(tmp_path / "loud", "train.max_epochs=1"))
    said = capsys.readouterr()
    assert said.out == ""
    for words in ("80 users", "60 items", "hstu with 1 block", "validation", "best step", "note: "):
        assert words in said.err


def test_a_log_without_a_clock_is_said_to_the_time_bias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["user_id,item_id", *(f"{user},{(user + step) % 7}" for user in range(20) for step in range(5))]
    (tmp_path / "order.csv").write_text("\n".join(rows) + "\n")
    result = train(tiny_recipe(tmp_path / "run", f"data.path={tmp_path / 'order.csv'}", "train.max_steps=2"))
    assert "no clock" in " ".join(capsys.readouterr().err.split())
    assert result["steps"] == 2


def test_a_missing_tensorboard_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(LargeRecError, match=r"needs TensorBoard.*largerec\[tracking\]"):
        train(tiny_recipe(tmp_path / "run", "train.tensorboard=true"), quiet=True)


# --- the item table by rows -----------------------------------------------------------------------------------------------

OBJECTIVES = (
    'objective={name = "sampled-softmax", negatives = 16, sampling = "popularity"}',
    'objective={name = "sampled-softmax", negatives = 8, shared = false}',
    'objective={name = "gbce", negatives = 8}',
)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_rows_give_the_loss_and_gradient_of_the_whole_table(tmp_path: Path, objective: str, similarity: str) -> None:
    """Adam's first step follows the sign of the gradient: equal tables after it, and rows without a gradient are untouched."""
    found = {}
    for table in ("adamw", "lazy-adam"):
        given = (objective, f"head.similarity={similarity}", "model.dropout=0.0", "optim.warmup_steps=0", f"optim.table={table}")
        with Progress(quiet=True) as progress:
            trainer = Trainer(tiny_recipe(tmp_path / table, *given), progress)
        batch = next(iter(trainer.batches.epoch(0)))
        losses = [trainer.step(batch)]
        found[table] = (losses, {name: value.detach().clone() for name, value in trainer.model.state_dict().items()})
    assert found["lazy-adam"][0] == pytest.approx(found["adamw"][0], rel=1e-6)
    for name, wanted in found["adamw"][1].items():
        torch.testing.assert_close(found["lazy-adam"][1][name], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("table", ["adamw", "lazy-adam"])
def test_a_step_in_parts_is_the_same_step(tmp_path: Path, table: str) -> None:
    """All items as negatives of everyone, so that the parts draw the same: an objective without chance."""
    found = []
    for accumulate in (1, 3):
        given = ("model.dropout=0.0", "optim.warmup_steps=0", f"optim.table={table}", f"train.accumulate={accumulate}")
        with Progress(quiet=True) as progress:
            trainer = Trainer(tiny_recipe(tmp_path / f"{accumulate}", OBJECTIVES[0], *given), progress)
        every_item = torch.arange(trainer.scorer.size)
        trainer.objective.draw = lambda tokens, drawn=every_item: drawn  # type: ignore[method-assign, misc]
        parts: list[str] = []
        loss = trainer.step(next(iter(trainer.batches.epoch(0))), parts.append)
        assert parts.count("forward") == parts.count("backward") == accumulate
        found.append((loss, {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, wanted in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], wanted, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("table", ["lazy-adam", "rowwise-adagrad"])
def test_a_table_by_rows_learns(tmp_path: Path, table: str) -> None:
    rate = 0.1 if table == "rowwise-adagrad" else 0.01
    given = (OBJECTIVES[0], f"optim.table={table}", f"optim.learning_rate={rate}", "train.max_epochs=8")
    result = train(tiny_recipe(tmp_path / "run", *given), quiet=True)
    found = losses(tmp_path / "run")
    assert found[-1] < 0.97 * found[0] and result["best_step"] > 0


def test_the_full_softmax_has_no_unused_rows(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"optim\.table='lazy-adam' updates only .* Choose objective\.name = sampled-softmax"):
        tiny_recipe(tmp_path / "run", "optim.table=lazy-adam", 'objective={name = "softmax"}')


def test_lineage_names_the_commit_only_of_a_repository_that_holds_the_code(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "followed.py").write_text("")
    (tmp_path / "ignored.py").write_text("")
    subprocess.run([*git, "add", "followed.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    commit = commit_of(tmp_path / "followed.py")
    assert commit is not None and len(commit) == 40
    assert commit_of(tmp_path / "ignored.py") is None
    assert commit_of(tmp_path / "missing" / "file.py") is None
