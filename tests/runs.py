"""A run that trains in a third of a second, for all tests that need one. As a script: ``largerec``, slowed down to be killed."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors.torch import load_file

from largerec.recipe import Recipe, apply_overrides, recipe_from

# Dropout and sampled negatives draw random numbers at every step; checkpoints come within epochs of six or seven steps.
TINY = """
name = "tiny"
threads = 1
data.simulate = {users = 80, items = 60, events = 1200, categories = 3}
batch = {max_length = 10, tokens = 128}
model = {name = "hstu", depth = 1, width = 16, heads = 2, dropout = 0.2}
objective = {name = "sampled-softmax", negatives = 16}
optim.warmup_steps = 5
train = {max_epochs = 4, log_every = 3, checkpoint_every = 4}
evaluate.bootstrap_samples = 100
"""


def tiny_recipe(folder: Path, *overrides: str) -> Recipe:
    """The tiny recipe, to run in ``folder``, with ``key=value`` changes."""
    return recipe_from(apply_overrides(tomllib.loads(TINY), [f"run.dir={folder}", *overrides]))


def write_tiny(path: Path) -> Path:
    path.write_text(TINY, encoding="utf-8")
    return path


@functools.cache
def trained_run(*overrides: str) -> Path:
    """A finished and evaluated tiny run that all tests of a process share: look, do not touch."""
    from largerec.evaluate import evaluate
    from largerec.train import train

    folder = Path(mkdtemp(prefix="largerec-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    train(tiny_recipe(folder / "run", *overrides), quiet=True)
    evaluate(folder / "run")
    return folder / "run"


def copy_of_run(to: Path, *overrides: str) -> Path:
    """A copy of :func:`trained_run` that a test may change."""
    return Path(shutil.copytree(trained_run(*overrides), to))


def log_lines(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without the wall clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "waited")} for line in lines]


def assert_same_training(run: Path, other: Path) -> None:
    """Bitwise the same weights, optimizer, log and result, the wall clock aside; nothing half-written lies about."""
    for name in ("model.safetensors", "state.safetensors"):
        ours, theirs = load_file(run / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        different = [key for key in ours if ours[key].numpy().tobytes() != theirs[key].numpy().tobytes()]
        assert not different, (name, different)
    assert log_lines(run) == log_lines(other)
    results = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in (run, other)]
    assert [result | {"train_seconds": None} for result in results] == [results[0] | {"train_seconds": None}] * 2
    assert sorted(file.name for file in run.iterdir()) == sorted(file.name for file in other.iterdir())


def start_child(arguments: list[str], *, step_seconds: float = 0.02, write_seconds: float = 0.0) -> subprocess.Popen[str]:
    """Start ``largerec ARGUMENTS`` with slow steps and slow writes of tensors; returns when its imports are done."""
    command = [sys.executable, __file__, str(step_seconds), str(write_seconds), *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    if child.stdout.readline() != "ready\n":
        raise AssertionError(child.communicate()[1])
    return child


def _be_child(step_seconds: float, write_seconds: float, arguments: list[str]) -> None:
    """Be ``largerec``, but sleep after each step, and in the middle of each write of tensors."""
    from largerec import bundle, cli, train

    plain_step, plain_save = train.Trainer.step, bundle.save_file

    def slow_step(self: train.Trainer, batch: Any) -> float:
        loss = plain_step(self, batch)
        time.sleep(step_seconds)
        return loss

    def slow_save(tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
        plain_save(tensors, path, metadata)
        whole = path.read_bytes()
        with path.open("wb", buffering=0) as file:
            file.write(whole[: len(whole) // 2])
            time.sleep(write_seconds)
            file.write(whole[len(whole) // 2 :])

    train.Trainer.step = slow_step  # type: ignore[method-assign]
    if write_seconds:
        bundle.save_file = slow_save
    print("ready", flush=True)
    sys.argv = ["largerec", *arguments]
    cli.main()


if __name__ == "__main__":
    _be_child(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
