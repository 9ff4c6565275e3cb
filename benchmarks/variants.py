"""What represent.py and item_tables.py share: variants of a recipe, each a run a seed, measured and tested on validation alone.

Every run is a bundle in FOLDER/NAME/seed-SEED: a finished one is not trained again, an interrupted one is taken up. The test
part is never looked at, so that what is chosen here can still be reported by one look at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from tables import four, holm

from largerec.bundle import Bundle
from largerec.compare import ADVICE
from largerec.compare_table import Row, paired, row_ranks
from largerec.evaluate import evaluate
from largerec.experiments import placed
from largerec.recipe import Recipe, load_recipe
from largerec.split_log import SplitLog
from largerec.train import train


class Variant(NamedTuple):
    """Overrides of a recipe, and the variant whose difference from it is of interest."""

    overrides: tuple[str, ...]
    beside: str


class Bench:
    """Runs of one recipe's variants on one log."""

    def __init__(self, recipe: str, overrides: Sequence[str], folder: Path) -> None:
        self.recipe, self.overrides, self.folder = recipe, list(overrides), folder
        first = load_recipe(recipe, self.overrides)
        self.split = SplitLog.of(first)

    def variant(self, name: str, variant: Variant) -> Recipe:
        """The recipe of a variant; overrides of the command line have the last word."""
        return load_recipe(self.recipe, [*variant.overrides, *self.overrides, f"name={name}"])

    def run(self, name: str, variant: Variant, seed: int) -> dict[str, Any]:
        """The result of one run, trained and measured on validation if it is not yet."""
        path = self.folder / name / f"seed-{seed}"
        recipe = placed(self.variant(name, variant), path, seed)
        bundle = Bundle(path)
        if not bundle.file("result.json").is_file():
            train(recipe)
        bundle.check_same(recipe.resolved(), self.split.beside(recipe).hashes, "a finished run", ADVICE)
        if not bundle.file("ranks-validation.parquet").is_file():
            evaluate(path, stage="validation")
        return bundle.read_json("result.json")

    def row(self, name: str, variant: Variant, seeds: Sequence[int]) -> Row:
        results = [self.run(name, variant, seed) for seed in seeds]
        return Row(name, tuple(self.folder / name / f"seed-{seed}" for seed in seeds), tuple(results))


def described(row: Row, variant: Variant, beside: Row, recipe: Recipe) -> dict[str, Any]:
    """A row of the result file: means over seeds on validation, costs, and the paired test against the variant beside it."""
    results, metric = row.results, recipe.train.metric
    found: dict[str, Any] = {
        "name": row.name,
        "overrides": list(variant.overrides),
        "seeds": [result["seed"] for result in results],
        "validation": {name: mean(result["validation"][name] for result in results) for name in results[0]["validation"]},
        "spread": stdev(result["validation"][metric] for result in results) if len(results) > 1 else None,
        **{name: results[0][name] for name in ("params", "params_non_embedding", "train_flops")},
        "train_seconds": [result["train_seconds"] for result in results],
        "best_steps": [result["best_step"] for result in results],
    }
    if row.name != beside.name:
        shared = [seed for seed in found["seeds"] if seed in [result["seed"] for result in beside.results]]
        ours, theirs = (
            row_ranks(Row(one.name, one.folders[: len(shared)], one.results[: len(shared)]), "validation")
            for one in (row, beside)
        )
        found["paired"] = {"against": beside.name, "seeds": shared, **paired(ours, theirs, metric, recipe)}
    return found


def table(rows: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Lines of markdown; p-values are Holm's, for all rows together."""
    lines = [
        f"| variant | {metric}, validation | recall@10 | minus | difference | p | seeds | parameters | minutes |",
        "|---" * 9 + "|",
    ]
    tested = [row for row in rows if "paired" in row]
    corrected = dict(
        zip([row["name"] for row in tested], holm([row["paired"][metric]["p_value"] for row in tested]), strict=True)
    )
    for row in rows:
        against = difference = p = ""
        if "paired" in row:
            value = row["paired"][metric]["difference"]
            against, p = row["paired"]["against"], f"{corrected[row['name']]:.2g}"
            difference = ("-" if value < 0 else "+") + four(abs(value))
        values = [four(row["validation"][name]) for name in (metric, "recall@10")]
        minutes = f"{mean(row['train_seconds']) / 60:.1f}"
        cells = [row["name"], *values, against, difference, p, str(len(row["seeds"])), f"{row['params']:,}", minutes]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
