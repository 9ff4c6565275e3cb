"""Rows with tasks in a comparison: their metrics, who is chosen, paired tests, and a row that only ranks."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_compare import QUICK, copy, document, recipe_files, rows_of
from test_random_log import recipe_of, write_logs
from test_ranking import overrides_of

from largerec import task_metrics
from largerec.bundle import Bundle
from largerec.compare import compare, from_arguments
from largerec.compare_tasks import predictions_of
from largerec.errors import LargeRecError

TASKS = [*overrides_of("summed"), "train.metric=buy.auc", *QUICK]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two recipes with tasks, two seeds: look, do not touch."""
    folder = tmp_path_factory.mktemp("compare-tasks")
    from_arguments([*recipe_files(folder), *TASKS, f"run.dir={folder / 'runs'}"], "2", quiet=True)
    return folder


def results(place: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((place / "runs" / name / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)]


def test_the_tasks_of_a_row_are_the_means_of_its_runs(place: Path) -> None:
    rows = rows_of(document(place))
    for name in ("a", "b"):
        task = rows[name]["tasks"]["buy"]
        for metric in ("auc", "ne", "log_loss", "ece"):
            assert task[metric] == pytest.approx(mean(result["tasks"]["buy"][metric] for result in results(place, name)))
        assert task["intervals"]["auc"][0] < task["auc"] < task["intervals"]["auc"][1] and task["spread"]["auc"] > 0
        assert "gauc" not in task, "one test event a user has no pairs within the user"
    assert document(place)["task_baselines"]["item rate"]["buy"]["auc"] > 0


def test_the_row_that_validation_says_is_chosen(place: Path) -> None:
    found = document(place)
    best = {name: mean(result["validation_tasks"]["buy"]["auc"] for result in results(place, name)) for name in "ab"}
    (section,) = found["sections"]
    assert section["chosen"] == max(best, key=lambda name: best[name]) and found["metric"] == "buy.auc"
    for name, value in best.items():
        assert rows_of(found)[name]["validation"]["buy.auc"] == pytest.approx(value)


def test_rows_are_paired_on_tasks_and_on_retrieval(place: Path) -> None:
    found = document(place)
    rows, other = rows_of(found), found["sections"][0]["chosen"]
    name = "a" if other == "b" else "b"
    tests = rows[name]["paired_tasks"]
    assert tests["against"] == other and {"buy.auc", "buy.ne"} <= tests.keys() and "paired_tasks" not in rows[other]
    for metric in ("auc", "ne"):
        one = tests[f"buy.{metric}"]
        assert one["difference"] == pytest.approx(rows[name]["tasks"]["buy"][metric] - rows[other]["tasks"]["buy"][metric])
        assert one["low"] <= one["difference"] <= one["high"] and 0 < one["p_value"] <= 1
    assert rows[name]["paired"]["ndcg@10"]["low"] <= rows[name]["paired"]["ndcg@10"]["high"]
    page = (place / "runs" / "compare.html").read_text(encoding="utf-8")
    assert "Tasks" in page and f"{rows[name]['tasks']['buy']['auc']:.4f}".removeprefix("0") in page and "item rate" in page


def test_a_row_that_only_ranks_has_no_retrieval(place: Path, tmp_path: Path) -> None:
    arguments = [*copy(place, tmp_path / "c")[:2], *TASKS, f"run.dir={tmp_path / 'c' / 'runs'}"]
    for seed in (0, 1):
        run = tmp_path / "c" / "runs" / "b" / f"seed-{seed}"
        result = json.loads((run / "result.json").read_text())
        for key in ("baselines", "intervals", "slices", "targets", "validation_unmasked", "test_unmasked"):
            result.pop(key)
        (run / "result.json").write_text(json.dumps(result | {"validation": {}, "test": {}}))
        (run / "ranks-test.parquet").unlink()
    found = from_arguments(arguments, "2", quiet=True)
    row = rows_of(found)["b"]
    assert row["test"] == {} and row["recommend_ms"] is None and row["intervals"] == {} and "paired" not in row
    assert row["tasks"] == rows_of(document(place))["b"]["tasks"]
    assert rows_of(found)["a"]["test"] == rows_of(document(place))["a"]["test"]


def test_other_tables_and_another_random_log_are_other_data(tmp_path: Path) -> None:
    log, chance = write_logs(tmp_path)
    users = pl.read_parquet(log).select("user_id").unique(maintain_order=True).with_row_index("age")
    users.write_csv(tmp_path / "users.csv")
    read = ("data.random=chance.parquet", "features.user=['age']", *QUICK, "evaluate.bootstrap_samples=20")
    recipe = recipe_of(tmp_path, "summed", *read)
    again = lambda: compare([recipe], [0], tmp_path / "runs", quiet=True)  # noqa: E731
    found = again()
    assert again()["rows"][-1]["test"] == found["rows"][-1]["test"]
    users.with_columns(pl.col("age").reverse()).write_csv(tmp_path / "users.csv")
    with pytest.raises(LargeRecError, match=r"seed-0' holds a finished run on other features .*\. Remove it, or choose"):
        again()
    users.write_csv(tmp_path / "users.csv")
    pl.read_parquet(chance).with_columns(pl.lit(5.0).alias("value")).write_parquet(chance)
    with pytest.raises(LargeRecError, match=r"seed-0' holds a finished run beside another log of data\.random"):
        again()


def test_runs_that_were_asked_about_other_events_are_refused(place: Path, tmp_path: Path) -> None:
    copy(place, tmp_path / "c")
    folders = [tmp_path / "c" / "runs" / name / "seed-0" for name in "ab"]
    frame = Bundle(folders[1]).read_parquet("predictions-test.parquet")
    Bundle(folders[1]).write_parquet("predictions-test.parquet", frame.head(len(frame) - 1))
    with pytest.raises(LargeRecError, match="was not asked about the same events"):
        predictions_of(folders)


def predicted(score_N: np.ndarray) -> np.ndarray:
    return np.stack([1 - score_N, score_N], axis=1)


def test_a_paired_difference_has_a_known_answer() -> None:
    """One model knows every label, the other says the same of all: AUC 1 and 1/2 in every resample."""
    rng = np.random.default_rng(0)
    user_N = np.repeat(np.arange(40), 5)
    label_N = rng.integers(2, size=200)
    label_N[::5], label_N[1::5] = 0, 1
    measures = [task_metrics.measures_of(predicted(s), label_N, user_N) for s in (0.1 + 0.8 * label_N, np.full(200, 0.5))]
    knows, blind = (task_metrics.resampled({"auc": one["auc"], "gauc": one["gauc"]}, user_N, 200, seed=3) for one in measures)
    for metric in ("auc", "gauc"):
        test = task_metrics.paired_difference(knows[metric], blind[metric], 0.95)
        assert test == {"difference": 0.5, "low": 0.5, "high": 0.5, "p_value": pytest.approx(2 / 201)}
        same = task_metrics.paired_difference(knows[metric], knows[metric], 0.95)
        assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    assert task_metrics.paired_difference(np.array([np.nan, 0.1]), np.array([0.5, 0.1]), 0.95) is None


def test_a_resample_is_the_metric_of_the_drawn_users_events() -> None:
    rng = np.random.default_rng(1)
    user_N, label_N, score_N = np.repeat(np.arange(12), 8), rng.integers(2, size=96), rng.random(96).round(1)
    measures = task_metrics.measures_of(predicted(score_N), label_N, user_N)
    drawn = task_metrics.resampled(measures, user_N, 3, seed=5)
    for number, weight_N in enumerate(task_metrics.resampled_weights(user_N, 3, 5), start=1):
        at = np.repeat(np.arange(96), weight_N.astype(int))
        assert drawn["auc"][number] == pytest.approx(task_metrics.auc(score_N[at], label_N[at]))
        assert drawn["ne"][number] == pytest.approx(task_metrics.normalised_entropy(predicted(score_N)[at], label_N[at]))
