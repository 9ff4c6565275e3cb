"""The tasks of the rows of a comparison: their metrics with intervals over users, and paired tests between rows.

Each row is one recipe with a run a seed; a metric is the mean over seeds, and one set of resampled users serves all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import polars as pl

from largerec import task_metrics
from largerec.bundle import Bundle
from largerec.errors import LargeRecError
from largerec.recipe import Recipe
from largerec.task_metrics import Floats

KEYS = ["user_id", "item_id", "timestamp"]
TESTED = ("auc", "gauc", "ne")
SHOWN = (*TESTED, "accuracy", "log_loss", "ece")

Draws = dict[str, dict[str, Floats]]
"""task -> metric -> the mean over seeds on all events, and then on each resample of users."""


def predictions_of(folders: Sequence[Path], first: pl.DataFrame | None = None) -> list[pl.DataFrame]:
    """The test predictions of runs.

    Raises:
        LargeRecError: they are not of the same events with the same labels, or not those of ``first``.
    """
    frames = [Bundle(folder).read_parquet("predictions-test.parquet") for folder in folders]
    first = frames[0] if first is None else first
    for folder, frame in zip(folders, frames, strict=True):
        same = [*KEYS, *(name for name in first.columns if name.endswith(".label") and name in frame.columns)]
        if not frame.select(same).equals(first.select(same)):
            raise LargeRecError(f"{folder} was not asked about the same events as the other runs; use one log, split and tasks.")
    return frames


def draws_of(frames: Sequence[pl.DataFrame], recipe: Recipe) -> Draws:
    """Of each condition that the runs learned, the metrics on all events and on resampled users. Classes of a number are left
    out: the predictions that a run keeps hold their mean alone."""
    options, found = recipe.evaluate, Draws()
    for name, task in recipe.tasks.items():
        if task.n_classes != 2 or f"{name}.predicted" not in frames[0].columns:
            continue
        known = frames[0][f"{name}.label"].to_numpy() >= 0
        label_N = frames[0][f"{name}.label"].to_numpy()[known]
        group_N = frames[0]["user_id"].rank("dense").cast(pl.Int64).to_numpy()[known]
        group_N = np.unique(group_N, return_inverse=True)[1]
        runs = []
        for frame in frames:
            predicted_N = frame[f"{name}.predicted"].to_numpy()[known]
            measures = task_metrics.measures_of(np.stack([1 - predicted_N, predicted_N], axis=1), label_N, group_N)
            wanted = {metric: measures[metric] for metric in TESTED}
            runs.append(task_metrics.resampled(wanted, group_N, options.bootstrap_samples, recipe.seed))
        found[name] = {metric: np.mean([run[metric] for run in runs], axis=0) for metric in TESTED}
    return found


def draws_of_rows(rows: Mapping[str, tuple[Sequence[Path], Sequence[Mapping[str, Any]]]], recipe: Recipe) -> dict[str, Draws]:
    """For each row that learned tasks, from its runs' folders and results, :func:`draws_of`: the same users for all rows."""
    first, found = None, {}
    for name, (folders, results) in rows.items():
        if results[0].get("tasks"):
            frames = predictions_of(folders, first)
            first = frames[0] if first is None else first
            found[name] = draws_of(frames, recipe)
    return found


def task_baselines(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """baseline -> task -> its metrics: of what needs no training, as the first run that has tasks measured it."""
    tasks: Mapping[str, Any] = next((result["tasks"] for result in results if result.get("tasks")), {})
    names = dict.fromkeys(name for found in tasks.values() for name in found.get("baselines", {}))
    return {name: {task: found["baselines"][name] for task, found in tasks.items()} for name in names}


def task_documents(results: Sequence[Mapping[str, Any]], draws: Draws, level: float) -> dict[str, Any]:
    """What a row says of its tasks: each metric's mean over seeds, its ``spread`` over them, and ``intervals`` over users."""
    found: dict[str, Any] = {}
    for name, first in results[0].get("tasks", {}).items():
        values = {
            metric: [result["tasks"][name][metric] for result in results if result["tasks"][name].get(metric) is not None]
            for metric in SHOWN
            if first.get(metric) is not None
        }
        document: dict[str, Any] = {"n": first["n"], **{metric: mean(seeds) for metric, seeds in values.items()}}
        document["spread"] = {metric: stdev(seeds) if len(seeds) > 1 else None for metric, seeds in values.items()}
        document["intervals"] = {}
        for metric, drawn_R1 in draws.get(name, {}).items():
            kept_R = drawn_R1[1:][np.isfinite(drawn_R1[1:])]
            if metric in values and len(kept_R):
                low, high = np.quantile(kept_R, [(1 - level) / 2, (1 + level) / 2])
                document["intervals"][metric] = [float(low), float(high)]
        found[name] = document
    return found


def paired_tasks(ours: Draws, theirs: Draws, level: float) -> dict[str, dict[str, float]]:
    """``TASK.METRIC`` -> difference, interval and p-value of one row minus another, each metric a mean over seeds. NE is better
    where it is lower."""
    found = {}
    for name in ours.keys() & theirs.keys():
        for metric in TESTED:
            test = task_metrics.paired_difference(ours[name][metric], theirs[name][metric], level)
            if test is not None:
                found[f"{name}.{metric}"] = test
    return dict(sorted(found.items()))
