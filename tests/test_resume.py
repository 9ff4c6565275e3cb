"""A run that is killed, at whatever moment, ends with the numbers of one that is not."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import assert_same_training, log_lines, start_child, tiny_recipe, write_tiny
from safetensors.torch import load_file

from largerec import bundle
from largerec.bundle import Bundle
from largerec.errors import LargeRecError
from largerec.experiments import run as run_recipe
from largerec.train import Trainer, train


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that every broken one is compared with."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny_recipe(folder), quiet=True)
    return folder


class Killed(BaseException):
    """Stands for a kill where no process is needed to see what one leaves."""


def kill_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    plain = Trainer.step

    def step_or_die(self: Trainer, batch: Any) -> float:
        if self.state.step == step:
            raise Killed
        return plain(self, batch)

    monkeypatch.setattr(Trainer, "step", step_or_die)


def killed_run(folder: Path, step: int, *overrides: str) -> Path:
    """A tiny run that ended without a word before its step number ``step``."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at_step(patch, step)
        with pytest.raises(Killed):
            train(tiny_recipe(folder, *overrides), quiet=True)
    return folder


# --- processes that are killed ------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], object], child: subprocess.Popen[str], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert child.poll() is None and time.monotonic() < end, f"{what} did not happen before the child ended"
        time.sleep(0.001)


def test_killed_processes_resume_to_the_same_numbers(unbroken: Path, tmp_path: Path) -> None:
    """Killed twice at any moment after a new checkpoint, and twice while one is being written."""
    folder, moments = tmp_path / "run", np.random.default_rng()
    state = folder / "state.safetensors"
    command = ["train", str(write_tiny(tmp_path / "tiny.toml")), f"run.dir={folder}"]
    for while_writing in (False, True, False, True):
        before = state.read_bytes() if state.exists() else b""
        with start_child(command, write_seconds=0.15 if while_writing else 0) as child:
            if while_writing:
                wait_for(lambda: list(folder.glob(".state.safetensors.*.partial")), child, "a checkpoint")
            else:
                wait_for(lambda old=before: state.exists() and state.read_bytes() != old, child, "a new checkpoint")
                time.sleep(moments.uniform(0, 0.08))
            child.kill()
        assert child.returncode == -signal.SIGKILL
        assert bool(list(folder.glob(".state.safetensors.*.partial"))) or not while_writing
    assert not (folder / "result.json").exists()
    train(tiny_recipe(folder), quiet=True)
    assert_same_training(folder, unbroken)


def test_interrupt_saves_and_exits_with_130(unbroken: Path, tmp_path: Path) -> None:
    command = ["train", str(write_tiny(tmp_path / "tiny.toml")), f"run.dir={tmp_path / 'run'}"]
    with start_child(command, step_seconds=0.05) as child:
        wait_for((tmp_path / "run" / "metrics.jsonl").exists, child, "the first line of the log")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "interrupted" in said and "the same command" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "state.safetensors").exists()
    train(tiny_recipe(tmp_path / "run"), quiet=True)
    assert_same_training(tmp_path / "run", unbroken)


# --- every moment between two writes -------------------------------------------------------------------------------------


def test_what_lies_there_before_any_write_resumes_to_the_same_numbers(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is copied just before each file is replaced, with its half-written successor beside it."""
    plain, copies = os.replace, []

    def copy_and_replace(source: Path, target: Path) -> None:
        copy = Path(shutil.copytree(source.parent, tmp_path / f"{len(copies):02d}-{target.name}"))
        half = copy / source.name
        half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
        with (copy / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write('{"step": 1, "epo')  # a line cut off
        copies.append(copy)
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(bundle.os, "replace", copy_and_replace)
        train(tiny_recipe(tmp_path / "run"), quiet=True)
    assert {copy.name[3:] for copy in copies} == {
        "vocabulary.parquet",
        "histories.parquet",
        "lineage.json",
        "recipe.json",
        "model.safetensors",
        "state.safetensors",
        "result.json",
    }
    assert len(copies) > 15
    for copy in copies:
        if not (copy / "recipe.json").exists():
            (copy / "metrics.jsonl").unlink()  # no log is written before the recipe
        train(tiny_recipe(copy), quiet=True)
        assert_same_training(copy, unbroken)


def test_a_kill_while_the_log_is_cut_back_loses_no_line(unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed_run(tmp_path / "run", 11)
    before = (folder / "metrics.jsonl").read_text(encoding="utf-8")

    def die(source: Path, target: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(bundle.os, "replace", die)
        with pytest.raises(Killed):
            train(tiny_recipe(folder), quiet=True)
    assert (folder / "metrics.jsonl").read_text(encoding="utf-8") == before
    train(tiny_recipe(folder), quiet=True)
    assert_same_training(folder, unbroken)


@pytest.mark.parametrize("step", [0, 1, 9])
def test_killed_before_and_after_the_first_checkpoint(unbroken: Path, tmp_path: Path, step: int) -> None:
    folder = killed_run(tmp_path / "run", step)
    assert (folder / "state.safetensors").exists() == (step > 4)
    train(tiny_recipe(folder), quiet=True)
    assert_same_training(folder, unbroken)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.name=sasrec", 'objective={name = "gbce", negatives = 4}'),
        ('objective={name = "sampled-softmax", negatives = 8, shared = false, sampling = "popularity"}', "batch.window=all"),
        ("train.precision=bf16", "train.evaluate_every=5", "optim.schedule=cosine"),
        ("train.patience=1", "optim.learning_rate=0.1", "train.max_epochs=30"),
        (
            "optim.table=lazy-adam",
            "train.accumulate=2",
            "batch.stochastic_length=1.5",
            'objective={name = "sampled-softmax", negatives = 8}',
        ),
        ("optim.table=rowwise-adagrad", 'objective={name = "bce", negatives = 4}'),
        ("train.average=0.9", "train.evaluate_every=5"),
        ('objective={name = "softmax", label_smoothing = 0.1}', "batch.window=sample", "batch.max_length=5"),
        ('objective={name = "sampled-softmax", negatives = 8, sampling = "mixed"}', "optim.table=lazy-adam"),
        ("model.tied=false", "model.table.kind=hashed", "train.accumulate=2"),
        ("model.table.kind=low-rank", "model.side={columns = ['title', 'category'], width = 8}"),
        ('contrastive={weight = 0.2, views = ["dropout", "same-target", "edits"]}', "batch.window=sample", "train.accumulate=2"),
    ],
)
def test_other_recipes_resume_too(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    train(tiny_recipe(tmp_path / "whole", *overrides), quiet=True)
    folder = killed_run(tmp_path / "run", 10, *overrides)
    train(tiny_recipe(folder, *overrides), quiet=True)
    assert_same_training(folder, tmp_path / "whole")


# --- the same, and not the same, numbers ---------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(unbroken: Path, tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "again"), quiet=True)
    assert_same_training(tmp_path / "again", unbroken)
    train(tiny_recipe(tmp_path / "other", "seed=1"), quiet=True)
    weights, others = load_file(unbroken / "model.safetensors"), load_file(tmp_path / "other" / "model.safetensors")
    assert not (weights["input.item.weight"] == others["input.item.weight"]).any()
    assert log_lines(tmp_path / "other") != log_lines(unbroken)


# --- what is not taken up -------------------------------------------------------------------------------------------------


def test_a_finished_run_is_refused_unless_it_may_be_replaced(unbroken: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    shutil.copytree(unbroken, folder / "compare" / "sasrec")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out.tfevents.1.host.2.0").touch()
    with pytest.raises(LargeRecError, match=r"holds a finished run.*run\.overwrite=true"):
        train(tiny_recipe(folder), quiet=True)
    assert_same_files(folder, unbroken)
    train(tiny_recipe(folder, "run.overwrite=true", "train.max_epochs=1"), quiet=True)
    assert not (folder / "compare").exists() and not (folder / "tensorboard").exists()
    assert len([line for line in log_lines(folder) if "validation" in line]) == 1


def assert_same_files(folder: Path, other: Path) -> None:
    for file in other.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_a_kill_while_a_run_is_replaced_is_made_good_by_the_same_command(unbroken: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "run.overwrite=true")
    for left in (["recipe.json", "lineage.json"], ["lineage.json", "histories.parquet"], []):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copytree(unbroken, tmp_path / "run", dirs_exist_ok=True)
        for file in (tmp_path / "run").iterdir():
            if file.name not in left:
                file.unlink()
        train(recipe, quiet=True)
        assert_same_training(tmp_path / "run", unbroken)


def test_overwrite_does_not_remove_what_is_no_run(tmp_path: Path) -> None:
    """A recipe.json alone may be anybody's."""
    (tmp_path / "recipe.json").write_text('{"cake": "sugar"}')
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LargeRecError):
        train(tiny_recipe(tmp_path, "run.overwrite=true"), quiet=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "recipe.json").exists()


def test_an_unfinished_run_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = killed_run(tmp_path / "run", 5)
    with pytest.raises(LargeRecError, match=r"another recipe.*optim\.weight_decay: 0\.0 -> 0\.1.*run\.overwrite=true"):
        train(tiny_recipe(folder, "optim.weight_decay=0.1"), quiet=True)
    with pytest.raises(LargeRecError, match=r"seed: 0 -> 3"):
        train(tiny_recipe(folder, "seed=3"), quiet=True)
    with pytest.raises(LargeRecError, match=r"model\.name: 'hstu' -> 'sasrec'"):
        train(tiny_recipe(folder, "model.name=sasrec"), quiet=True)


def test_an_unfinished_run_on_other_data_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [f"u{user},i{(user + step) % 9},{1_600_000_000 + 100 * user + 7 * step}" for user in range(30) for step in range(6)]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    folder = killed_run(tmp_path / "run", 1, f"data.path={log}")
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows, "u1,i1,1700000000"]) + "\n")
    with pytest.raises(LargeRecError, match=r"unfinished run on other data.*run\.overwrite=true"):
        train(tiny_recipe(folder, f"data.path={log}"), quiet=True)


def test_a_foreign_folder_or_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / ".holiday.jpg.12.partial").touch()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(LargeRecError, match="not empty and not a LargeRec run"):
        train(tiny_recipe(tmp_path / "photos"), quiet=True)
    assert len(list((tmp_path / "photos").iterdir())) == 2
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(LargeRecError, match=r"cannot be made.*choose another folder"):
            train(tiny_recipe(place), quiet=True)


def test_another_number_of_threads_or_folder_is_no_other_recipe(tmp_path: Path) -> None:
    folder = killed_run(tmp_path / "run", 5)
    folder = folder.rename(tmp_path / "moved")
    assert train(tiny_recipe(folder, "run.compare=['sasrec']"), quiet=True)["steps"] > 5
    assert Bundle.open(folder).recipe().run.dir == str(tmp_path / "run")


# --- a whole of several runs -----------------------------------------------------------------------------------------------


def test_run_goes_on_with_the_families_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the second family, `run` neither trains nor evaluates the first one again."""
    recipe = tiny_recipe(tmp_path / "run", "run.compare=['sasrec']", "train.max_epochs=1")
    plain = Trainer.run

    def train_hstu_only(self: Trainer) -> None:
        if self.recipe.model.name == "sasrec":
            raise Killed
        plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", train_hstu_only)
        with pytest.raises(Killed):
            run_recipe(recipe, quiet=True)
    before = (tmp_path / "run" / "result.json").read_bytes()
    found = run_recipe(recipe, quiet=True)
    assert [row["name"] for row in found["rows"]][-3:] == ["sasrec", "hstu", "best possible"]
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    assert json.loads(before)["n_test_evaluations"] == found["result"]["n_test_evaluations"] == 1
    with pytest.raises(LargeRecError, match="holds a finished run"):
        run_recipe(recipe, quiet=True)


def test_overwrite_takes_up_the_unfinished_run_of_the_same_command(unbroken: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    (folder / "result.json").unlink()
    before = (folder / "state.safetensors").stat().st_mtime_ns
    train(tiny_recipe(folder, "run.overwrite=true"), quiet=True)
    assert (folder / "state.safetensors").stat().st_mtime_ns == before, "all steps were done already"
    assert_same_training(folder, unbroken)


def test_overwrite_removes_nothing_where_a_run_is_not_alone(unbroken: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(LargeRecError, match=r"also holds what no run writes \(notes\.txt\)"):
        train(tiny_recipe(folder, "run.overwrite=true", "train.max_epochs=1"), quiet=True)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "result.json").is_file()


def test_a_folder_in_use_is_refused(unbroken: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    (folder / "result.json").unlink()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(LargeRecError, match="is in use by another training"):
            train(tiny_recipe(folder), quiet=True)
    finally:
        os.close(descriptor)
    train(tiny_recipe(folder), quiet=True)


@pytest.mark.parametrize("in_use", [".", "compare/sasrec"])
def test_overwrite_removes_nothing_of_a_run_that_is_still_training(unbroken: Path, tmp_path: Path, in_use: str) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    shutil.copytree(unbroken, folder / "compare" / "sasrec")
    before = sorted(folder.rglob("*"))
    other = tiny_recipe(folder, "run.overwrite=true", "train.max_epochs=1")
    descriptor = os.open(folder / in_use, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(LargeRecError, match="is in use by another training") as caught:
            train(other, quiet=True)
    finally:
        os.close(descriptor)
    assert sorted(folder.rglob("*")) == before
    assert_same_files(folder / "compare" / "sasrec", unbroken)
    train(other, quiet=True)  # although the exception still holds the frames of the refused start
    assert "in use" in str(caught.value) and not (folder / "compare").exists()


@pytest.mark.parametrize(
    "foreign",
    ["compare/notes.txt", "compare/sasrec/notes.txt", "compare/sasrec/tensorboard/a.png", "tensorboard/a.png", "report.html/a"],
)
def test_overwrite_looks_for_foreign_files_in_folders_too(unbroken: Path, tmp_path: Path, foreign: str) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    shutil.copytree(unbroken, folder / "compare" / "sasrec")
    (folder / foreign).parent.mkdir(exist_ok=True)
    (folder / foreign).write_text("mine")
    named = foreign.removesuffix("/a").replace(".", r"\.")
    with pytest.raises(LargeRecError, match=rf"also holds what no run writes \({named}\).*removes nothing there\. Move it away"):
        train(tiny_recipe(folder, "run.overwrite=true", "train.max_epochs=1"), quiet=True)
    assert (folder / foreign).read_text() == "mine" and (folder / "result.json").is_file()
    assert (folder / "compare" / "sasrec" / "result.json").is_file()


def test_a_foreign_state_is_named(unbroken: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    (folder / "result.json").unlink()
    shutil.copy(folder / "model.safetensors", folder / "state.safetensors")
    with pytest.raises(LargeRecError, match=r"state\.safetensors is no state of this run"):
        train(tiny_recipe(folder), quiet=True)
