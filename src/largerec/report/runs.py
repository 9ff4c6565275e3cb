"""What a report reads of a run: its documents, its training log, and which runs may stand in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from largerec import metrics
from largerec.bundle import Bundle
from largerec.damage import damaged, value_of
from largerec.errors import LargeRecError
from largerec.evaluate import compare_runs, interval_level
from largerec.recipe import Recipe
from largerec.sequences import Stage

COSTS = ("params", "params_non_embedding", "train_tokens", "train_flops", "train_seconds", "threads", "steps")
"""What result.json says of every run, and every page about it."""


def trained_on(result: dict[str, Any]) -> str:
    """The card, or so many threads (runs of before there were cards name none)."""
    if (card := result.get("device", "cpu")) != "cpu":
        return str(card)
    return f"{result['threads']} {'thread' if result['threads'] == 1 else 'threads'}"


@dataclass(frozen=True)
class Run:
    """One run's documents; ``result`` is empty while it is unfinished, ``log`` holds the lines of metrics.jsonl."""

    bundle: Bundle
    label: str
    recipe: Recipe
    result: dict[str, Any]
    lineage: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def evaluated(self) -> bool:
        return "test" in self.result

    @property
    def stage(self) -> Stage:
        """The part that may be looked at: the test only if it was evaluated."""
        return "test" if self.evaluated else "validation"

    @property
    def metrics(self) -> dict[str, float]:
        """Masked metrics of :attr:`stage`, or nothing yet."""
        found: dict[str, float] = self.result.get(self.stage, {})
        return found

    @property
    def level(self) -> float:
        """The level of the intervals in :attr:`result`."""
        return interval_level(self.result, self.recipe)

    @property
    def split(self) -> tuple[str, ...]:
        """Runs with the same are measured on the same targets: hash of the split log (its stages too), and which are asked."""
        return str(self.lineage.get("data_hash")), self.recipe.split.targets, self.stage


def read_run(path: str | Path, label: str = "") -> Run:
    """Read a run's documents.

    Raises:
        LargeRecError: there is no run, or a file of it is damaged.
    """
    bundle = Bundle.open(path)
    recipe = bundle.recipe()
    result = bundle.read_json("result.json") if bundle.file("result.json").is_file() else {}
    for key in ("test", "test_unmasked", "validation", "validation_unmasked"):
        for metric, value in value_of(bundle.file("result.json"), result, key, dict, {}).items():
            cutoff = metric.partition("@")[2]
            if not isinstance(value, int | float | None) or ("@" in metric and not (cutoff.isascii() and cutoff.isdigit())):
                raise damaged(bundle.file("result.json"), f"{key} holds {metric!r:.80}: {value!r:.80}")
    for key in ("targets", "intervals", "baselines", "slices", "tasks"):
        needed = key in ("targets", "intervals") and bool(result.get("test"))
        value_of(bundle.file("result.json"), result, key, dict, None if needed else {})
    for key in COSTS if result else ():
        value_of(bundle.file("result.json"), result, key, (int, float), None)
    lineage = bundle.read_json("lineage.json")
    value_of(bundle.file("lineage.json"), lineage, "code", dict, {})
    value_of(bundle.file("lineage.json"), lineage, "notes", list, [])
    return Run(bundle, label or recipe.model.name, recipe, result, lineage, _training_log(bundle))


def _training_log(bundle: Bundle) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; the last one may be cut off by a kill.

    Raises:
        LargeRecError: the file is no text, or a line of it no object.
    """
    if not bundle.file("metrics.jsonl").is_file():
        return []
    found = list[dict[str, Any]]()
    try:
        lines = bundle.file("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise damaged(bundle.file("metrics.jsonl"), error) from None
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(entry, dict) or not isinstance(entry.get("validation", {}), dict):
            raise damaged(bundle.file("metrics.jsonl"), f"line {number} is {line!r:.80}")
        found.append(entry)
    return found


def companions(run: Run) -> list[Run]:
    """The families that ``largerec run`` trained beside a run (``compare/FAMILY``), if on the same split and as far."""
    folder = run.bundle.file("compare")
    paths = sorted(path.parent for path in folder.glob("*/recipe.json")) if folder.is_dir() else []
    found = [read_run(path, path.name) for path in paths]
    return [other for other in found if other.split == run.split and other.result]


def labelled(runs: Sequence[Run]) -> list[Run]:
    """Runs under short labels that tell them apart: the folder's name, or the whole path where names are equal."""
    names = [run.bundle.path.resolve().name for run in runs]
    return [
        replace(run, label=name if names.count(name) == 1 else str(run.bundle.path))
        for run, name in zip(runs, names, strict=True)
    ]


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs by what they were measured on, in the order of their first: only within a group may numbers be compared."""
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(run.split, []).append(run)
    return list(found.values())


def main_metric(runs: Sequence[Run]) -> str:
    """The metric a report speaks of: the one the first run was chosen by, if all have it, else NDCG at some shared cutoff."""
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs if run.metrics)]
    wanted = runs[0].recipe.train.metric
    ndcg = [name for name in shared if name.startswith("ndcg@")]
    return wanted if wanted in shared or not ndcg else ndcg[0]


@dataclass(frozen=True)
class Paired:
    """A paired test of ``first`` minus ``second`` on the same targets, or why there is none."""

    first: str
    second: str
    tests: dict[str, dict[str, float]]
    why_not: str = ""


def paired_runs(first: Run, second: Run, level: float) -> Paired:
    """The paired test of two evaluated runs, with intervals of ``level``."""
    options = first.recipe.evaluate.model_copy(update={"level": level})
    try:
        tests = compare_runs(first.bundle.path, second.bundle.path, options=options)
    except LargeRecError as error:
        return Paired(first.label, second.label, {}, str(error))
    return Paired(first.label, second.label, tests)


def paired_baselines(run: Run) -> list[Paired]:
    """The paired tests of an evaluated run against its baselines, from the ranks that the evaluation kept."""
    found = []
    kept = {name: run.bundle.file(f"ranks-{name}.parquet").is_file() for name in ("test", "baselines")}
    if not all(kept.values()):
        why = "an evaluation by an older version kept no ranks of the baselines"
        return [Paired(run.label, name, {}, why) for name in run.result.get("baselines", {})]
    own = run.bundle.read_parquet("ranks-test.parquet", ("user_id", "rank"))
    beside = run.bundle.read_parquet("ranks-baselines.parquet")
    user_N = own["user_id"].rank("dense").cast(pl.Int64).to_numpy()
    for name in beside.columns:
        tests = {
            f"{kind}@{k}": metrics.paired_test(
                function(own["rank"].to_numpy(), k),
                function(beside[name].to_numpy(), k),
                user_N,
                level=run.level,
                seed=0,
            )
            for k in cutoffs(run.metrics)
            for kind, function in (("recall", metrics.recall), ("ndcg", metrics.ndcg))
        }
        found.append(Paired(run.label, name, tests))
    return found


def kept_ranks(run: Run) -> np.ndarray:
    """Masked ranks of all targets of :attr:`Run.stage`, as the evaluation kept them; empty if it did not."""
    name = f"ranks-{run.stage}.parquet"
    if not run.bundle.file(name).is_file():
        return np.empty(0)
    return run.bundle.read_parquet(name, ("rank",))["rank"].to_numpy()


def cutoffs(found: dict[str, float]) -> list[int]:
    """The k of a metrics document: an evaluation may have been given others than the recipe's."""
    return sorted({int(name.partition("@")[2]) for name in found if name.startswith("ndcg@")})
