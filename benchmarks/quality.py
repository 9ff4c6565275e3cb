"""Train and evaluate one recipe with several seeds and write one result file: what the README's quality table is made from.

    python benchmarks/quality.py recipes/amazon-beauty.toml data.path=<folder> --seeds 0 1 2

Each seed is a run in runs/quality/NAME/seed-SEED, as `largerec compare` makes them, which sets several recipes side by side. A
finished seed is not trained again and an interrupted one is taken up, so the command can be repeated. The result goes to
benchmarks/results/NAME.json: every seed's result document, the mean over seeds, the command.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from largerec import show
from largerec.compare import finished_run
from largerec.doctor import processor
from largerec.experiments import placed, rows_of, with_compared
from largerec.recipe import load_recipe
from largerec.split_log import SplitLog

RESULTS = Path(__file__).parent / "results"


def one_seed(recipe_path: str, seed: int, overrides: list[str], runs: Path) -> dict[str, dict[str, Any]]:
    """Result documents of one seed by name, the recipe's and its compared families': as ``largerec compare`` makes them."""
    recipes = with_compared(load_recipe(recipe_path, overrides))
    hashes = SplitLog.of(recipes[0]).hashes(recipes)
    return {one.name: finished_run(placed(one, runs / one.name / f"seed-{seed}", seed), hashes[one.name]) for one in recipes}


def over_seeds(results: list[dict[str, Any]], part: str) -> dict[str, list[float]]:
    """Mean and standard deviation over seeds of each metric: name -> [mean, deviation]."""
    names = results[0][part]
    return {
        n: [mean(r[part][n] for r in results), stdev(r[part][n] for r in results) if len(results) > 1 else 0.0] for n in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_intermixed_args()
    by_seed = [one_seed(arguments.recipe, seed, arguments.overrides, arguments.runs) for seed in arguments.seeds]
    shown = [o if not o.startswith("data.path=") else "data.path=<data>" for o in arguments.overrides]
    command = (
        f"python benchmarks/quality.py {arguments.recipe} --seeds {' '.join(map(str, arguments.seeds))} {' '.join(shown)}".strip()
    )
    console = Console(width=150)
    RESULTS.mkdir(exist_ok=True)
    for recipe in by_seed[0]:
        results = [found[recipe] for found in by_seed]
        document = {
            "name": recipe,
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": processor(),
            "command": command,
            "seeds": arguments.seeds,
            **{part: over_seeds(results, part) for part in ("validation", "test", "test_unmasked")},
            "train_seconds": [r["train_seconds"] for r in results],
            "results": results,
        }
        path = RESULTS / f"{document['name']}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        named = [r | {"model": f"{r['model']} seed {r['seed']}"} for r in results]
        console.print(show.metric_table(rows_of([named[-1], *named[:-1]]), results[0]))
        for name in ("recall@10", "ndcg@10"):
            average, deviation = document["test"][name]
            console.print(f"{name}: mean {average:.4f}, deviation {deviation:.4f} over {len(results)} seeds; written to {path}")


if __name__ == "__main__":
    main()
