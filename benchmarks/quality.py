"""Train and evaluate one recipe with several seeds and write one result file: what the README's quality table is made from.

    python benchmarks/quality.py recipes/amazon-beauty.toml --seeds 0 1 2 data.path=<folder>

Each seed is a run in runs/quality/NAME-SEED. A finished seed is not trained again and an interrupted one is taken up, so the command
can be repeated. The result goes to benchmarks/results/NAME.json: every seed's result document, the mean over seeds, the command.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from largerec import show
from largerec.bundle import Bundle
from largerec.evaluate import evaluate
from largerec.recipe import load_recipe
from largerec.train import train

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The processor's name and the cores in use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def one_seed(recipe_path: str, seed: int, overrides: list[str], runs: Path) -> dict[str, Any]:
    """The result document of one seed: trained, resumed, or read from a finished run. The test part is evaluated once."""
    name = load_recipe(recipe_path, overrides).name
    path = runs / f"{name}-{seed}"
    if not (path / "result.json").is_file():
        train(load_recipe(recipe_path, [*overrides, f"seed={seed}", f'run.dir="{path}"']))
    result = Bundle.open(path).read_json("result.json")
    return result if "test" in result else evaluate(path)


def over_seeds(results: list[dict[str, Any]], part: str) -> dict[str, list[float]]:
    """Mean and standard deviation over seeds of each metric: name -> [mean, deviation]."""
    names = results[0][part]
    return {n: [mean(r[part][n] for r in results), stdev(r[part][n] for r in results) if len(results) > 1 else 0.0] for n in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_intermixed_args()
    results = [one_seed(arguments.recipe, seed, arguments.overrides, arguments.runs) for seed in arguments.seeds]
    shown = [o if not o.startswith("data.path=") else "data.path=<data>" for o in arguments.overrides]
    document = {
        "name": results[0]["name"],
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "command": f"python benchmarks/quality.py {arguments.recipe} --seeds {' '.join(map(str, arguments.seeds))} {' '.join(shown)}".strip(),
        "seeds": arguments.seeds,
        "validation": over_seeds(results, "validation"),
        "test": over_seeds(results, "test"),
        "test_unmasked": over_seeds(results, "test_unmasked"),
        "train_seconds": [r["train_seconds"] for r in results],
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{document['name']}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    rows = show.result_rows(results[0])[:-1] + [show.result_rows(r)[-1] | {"name": f"{r['model']} seed {r['seed']}"} for r in results]
    console = Console(width=150)
    console.print(show.metric_table(rows, results[0]))
    for name in ("recall@10", "ndcg@10"):
        console.print(f"{name}: mean {document['test'][name][0]:.4f}, deviation {document['test'][name][1]:.4f} over {len(results)} seeds")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
