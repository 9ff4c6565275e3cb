"""The table of a comparison: what a row is, its metrics and costs, and how it differs from another row on the same targets.

A row is one recipe with an evaluated run a seed; each target's value is the mean over them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import polars as pl
import torch

from largerec import metrics
from largerec.bundle import Bundle
from largerec.compare_tasks import draws_of_rows, paired_tasks, task_baselines, task_documents
from largerec.engine import Engine, load
from largerec.errors import LargeRecError
from largerec.experiments import validation_of
from largerec.recipe import Recipe
from largerec.sequences import Stage

TIMED_USERS, TIMED_PASSES, TIMED_LENGTH = 256, 5, 10
COSTS = ("params", "params_non_embedding", "train_tokens", "train_flops", "train_seconds", "steps")


@dataclass(frozen=True)
class Row:
    """What one row of the table is made from: evaluated runs of one recipe, a seed each."""

    name: str
    folders: tuple[Path, ...]
    results: tuple[dict[str, Any], ...]
    members: tuple[str, ...] = ()
    """Rows that this one is an ensemble of; such a row is never chosen."""

    @property
    def query_time(self) -> bool:
        return bool(self.results[0]["query_time"])

    @property
    def retrieves(self) -> bool:
        """Whether there are top lists to measure; a family that only ranks has none."""
        return all(result.get("test") for result in self.results)

    def validation(self, metric: str) -> float:
        """Mean over seeds."""
        return mean(validation_of(result, metric) for result in self.results)


def table(rows: Sequence[Row], recipe: Recipe, against: str | None) -> dict[str, Any]:
    """The document of evaluated rows, split in sections by query time; ``recipe`` says the metric and the evaluation."""
    metric, documents, sections = recipe.train.metric, [], []
    main = next((row for row in rows if row.retrieves), rows[0]).results[0]
    listed = metric if "@" in metric else f"ndcg@{10 if 10 in recipe.evaluate.k else recipe.evaluate.k[0]}"
    documents += [_untrained(name, baseline, None) for name, baseline in main.get("baselines", {}).items()]
    draws = draws_of_rows({row.name: (row.folders, row.results) for row in rows}, recipe)
    for query_time in (False, True):
        own = [row for row in rows if row.query_time == query_time]
        if not own:
            continue
        ranks = {row.name: row_ranks(row) for row in own if row.retrieves}
        chosen = max((row for row in own if not row.members), key=lambda row: row.validation(metric)).name
        beside = against if against in [row.name for row in own] else chosen
        for row in own:
            document = _document(row, ranks.get(row.name), recipe) | {"chosen": row.name == chosen}
            document["tasks"] = task_documents(row.results, draws.get(row.name, {}), recipe.evaluate.level)
            if row.name != beside and {row.name, beside} <= ranks.keys():
                document["paired"] = {"against": beside} | paired(ranks[row.name], ranks[beside], listed, recipe)
            if row.name != beside and {row.name, beside} <= draws.keys():
                tests = paired_tasks(draws[row.name], draws[beside], recipe.evaluate.level)
                document["paired_tasks"] = {"against": beside} | tests
            documents.append(document)
        best = next((row.results[0]["best_possible"] for row in own if "best_possible" in row.results[0]), None)
        documents += [_untrained("best possible", best, query_time)] if best else []
        sections.append({"query_time": query_time, "chosen": chosen, "against": beside, "rows": [row.name for row in own]})
    return {
        "metric": metric,
        "retrieval_metric": listed,
        "protocol": main["protocol"],
        "targets": main.get("targets", {"n": 0, "users": 0}),
        "task_baselines": task_baselines([row.results[0] for row in rows]),
        "level": recipe.evaluate.level,
        "threads": torch.get_num_threads(),
        "recommend": {"users": TIMED_USERS, "k": TIMED_LENGTH, "passes": TIMED_PASSES},
        "sections": sections,
        "rows": documents,
    }


def _untrained(name: str, found: dict[str, Any], query_time: bool | None) -> dict[str, Any]:
    """A row of what needs no training, measured once; ``query_time`` None: it stands in every section."""
    test = {key: value for key, value in found.items() if key not in ("unmasked", "intervals")}
    return {
        "name": name,
        "model": None,
        "query_time": query_time,
        "chosen": False,
        "seeds": [],
        "validation": {},
        "test": test,
        "test_unmasked": found["unmasked"],
        "intervals": found["intervals"],
    }


def _document(row: Row, ranks: pl.DataFrame | None, recipe: Recipe) -> dict[str, Any]:
    """What the table says of a row; without ``ranks``, of a family that only ranks, there is nothing about retrieval."""
    results = row.results
    found: dict[str, Any] = {
        "name": row.name,
        "model": results[0]["model"],
        "query_time": row.query_time,
        "seeds": sorted({seed for result in results for seed in result.get("seeds", [result["seed"]])}),
        **({"members": list(row.members), "weights": results[0]["weights"]} if row.members else {}),
    }
    several = len(results) > 1
    for part in ("validation", "test", "test_unmasked"):
        names = [name for name in results[0].get(part, {}) if ranks is not None and all(name in one[part] for one in results)]
        found[part] = {name: mean(result[part][name] for result in results) for name in names}
        if part != "test_unmasked":
            found[f"{part}_spread"] = {
                name: stdev(result[part][name] for result in results) if several else None for name in names
            }
    if np.isfinite(value := row.validation(recipe.train.metric)):
        found["validation"][recipe.train.metric] = value
    found["intervals"] = {} if ranks is None else _intervals(ranks, recipe)
    found |= {name: mean(result[name] for result in results) for name in COSTS}
    found["params_embedding"] = found["params"] - found["params_non_embedding"]
    found["recommend_ms"] = None if ranks is None else recommend_ms(load(row.folders[0]))
    found["n_test_evaluations"] = [result["n_test_evaluations"] for result in results]
    kept = (
        "seed",
        "best_step",
        "steps",
        "train_seconds",
        "threads",
        "device",
        "validation",
        "test",
        "test_unmasked",
        "intervals",
        "slices",
    )
    found["runs"] = [
        {"dir": str(folder), **{name: result[name] for name in kept if name in result}}
        for folder, result in zip(row.folders, results, strict=True)
    ]
    return found


def _intervals(ranks: pl.DataFrame, recipe: Recipe) -> dict[str, list[float]]:
    options = recipe.evaluate
    functions = {"recall": metrics.recall, "ndcg": metrics.ndcg, "mrr": metrics.mrr}
    values = {f"{kind}@{k}": values_of(ranks, function, k) for k in options.k for kind, function in functions.items()}
    return metrics.bootstrap_intervals(
        values, users_of(ranks), level=options.level, samples=options.bootstrap_samples, seed=recipe.seed
    )


def row_ranks(row: Row, stage: Stage = "test") -> pl.DataFrame:
    """The ranks of a row's runs on one part: the targets' keys, and a column ``rank I`` for its run I.

    Raises:
        LargeRecError: the runs were not evaluated on the same targets.
    """
    keys = ["user_id", "item_id", "timestamp"]
    frames = [Bundle(folder).read_parquet(f"ranks-{stage}.parquet", [*keys, "rank"]) for folder in row.folders]
    for folder, frame in zip(row.folders, frames, strict=True):
        if not frame.select(keys).equals(frames[0].select(keys)):
            raise LargeRecError(
                f"{folder} and {row.folders[0]} were not evaluated on the same targets; use one log and one split."
            )
    return frames[0].select(keys).with_columns(frame["rank"].alias(f"rank {i}") for i, frame in enumerate(frames))


def values_of(ranks: pl.DataFrame, function: Any, k: int) -> np.ndarray:
    """Value of a metric for each target, mean over the runs of :func:`row_ranks` [N]."""
    columns = [name for name in ranks.columns if name.startswith("rank ")]
    total_N: np.ndarray = np.sum([function(ranks[name].to_numpy(), k) for name in columns], axis=0)
    return total_N / len(columns)


def users_of(ranks: pl.DataFrame) -> np.ndarray:
    return ranks["user_id"].rank("dense").cast(pl.Int64).to_numpy()


def paired(ours: pl.DataFrame, theirs: pl.DataFrame, metric: str, recipe: Recipe) -> dict[str, dict[str, float]]:
    """Paired tests of two rows on the same targets, each target's value a mean over seeds: metric -> difference, interval, p.

    Users are the independent units and the trained models are given: the seeds' own spread stands beside, not in the p-value.

    Raises:
        LargeRecError: the targets differ.
    """
    keys = ["user_id", "item_id", "timestamp"]
    if not ours.select(keys).equals(theirs.select(keys)):
        raise LargeRecError("two rows were not evaluated on the same targets; use one log and one split.")
    k, user_N, found = int(metric.partition("@")[2]), users_of(ours), {}
    for kind, function in (("recall", metrics.recall), ("ndcg", metrics.ndcg)):
        a_N, b_N = values_of(ours, function, k), values_of(theirs, function, k)
        found[f"{kind}@{k}"] = metrics.paired_test(a_N, b_N, user_N, level=recipe.evaluate.level, seed=recipe.seed)
    return found


def recommend_ms(engine: Engine) -> float:
    """Milliseconds a user for a top list, seen items left out: the median of some passes over many users, after one more."""
    all_users = engine.sequences.user_ids
    some = np.unique(np.linspace(0, len(all_users) - 1, min(TIMED_USERS, len(all_users)), dtype=np.int64))
    users, seconds = all_users.gather(some).to_list(), []
    for _ in range(TIMED_PASSES + 1):
        started = time.perf_counter()
        engine.recommend(users, TIMED_LENGTH)
        seconds.append(time.perf_counter() - started)
    return round(1000 * median(seconds[1:]) / len(users), 4)
