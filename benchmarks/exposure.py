"""How well do weighted estimates find the truth? A generated log with a biased logging policy, whose truth is known.

    python benchmarks/exposure.py

The quickstart's model learns from, and is asked about, what the policy showed (`exposed = 1`). The truth is the same model asked
about every event of the test part, shown or not, after the same histories. Writes benchmarks/results/exposure.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from largerec import metrics
from largerec.doctor import processor
from largerec.engine import Engine, Scorer, load
from largerec.evaluate import measure, popularity_scorers
from largerec.evaluate_exposure import evaluate_exposure
from largerec.exposure import ESTIMATORS, ExposureOptions
from largerec.metrics import EvaluateOptions
from largerec.recipe import load_recipe
from largerec.train import train

RESULT = Path(__file__).parent / "results" / "exposure.json"
RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.toml"
CHANGES = ("split.protocol=timeline", "split.validation_from=70%", "split.test_from=80%", "split.positives=exposed = 1")
KINDS = {
    "known": ExposureOptions(by="column"),
    "popularity, power 1": ExposureOptions(by="popularity", power=1.0),
    "popularity, power 0.5": ExposureOptions(by="popularity", power=0.5),
}


def estimates(strength: float, runs: Path) -> dict[str, Any]:
    """Truth and estimates of ndcg@10 at one strength of the policy, for the model and for popularity."""
    folder = runs / f"strength-{strength:g}"
    recipe = load_recipe(RECIPE, [*CHANGES, f"data.simulate.exposure={strength}", f"run.dir={folder}", "run.compare=[]"])
    if not (folder / "result.json").is_file():
        train(recipe, quiet=True)
    engine = load(folder)
    who: dict[str, Scorer] = {"hstu": engine.scorer, "popularity": popularity_scorers(engine)["popularity"]}
    rows = engine.sequences.targets("test")
    ranks = {name: measure(Engine.beside(engine, scorer), rows).rank_N for name, scorer in who.items()}
    all_rows = replace(engine.sequences, positive_N=None).targets("test")
    found: dict[str, Any] = {"strength": strength, "targets": len(rows), "all": len(all_rows), "ndcg@10": {}}
    for name, scorer in who.items():
        truth = metrics.ndcg(measure(Engine.beside(engine, scorer), all_rows).rank_N, 10).mean()
        found["ndcg@10"][name] = {"truth": float(truth)}
    for kind, options in KINDS.items():
        asked = EvaluateOptions(k=(10,), exposure=options)
        estimated = evaluate_exposure(engine, "test", rows, ranks, asked, 0)["retrieval"]
        for name in who:
            found["ndcg@10"][name][kind] = estimated[name]["ndcg@10"]
        found.setdefault("weights", {})[kind] = estimated["weights"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.5, 1.0])
    parser.add_argument("--runs", type=Path, default=Path("runs/exposure"))
    arguments = parser.parse_args()
    found = [estimates(strength, arguments.runs) for strength in arguments.strengths]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "command": "python benchmarks/exposure.py",
        "changes": list(CHANGES),
        "found": found,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    table = Table(title="ndcg@10, exposure of popular items", title_justify="left")
    for head in ("strength", "of", "truth", "propensities", *ESTIMATORS, "worth"):
        table.add_column(head)
    for one in found:
        for name, row in one["ndcg@10"].items():
            for kind in KINDS:
                cells = [f"{row[kind][estimator]:.4f}" for estimator in ESTIMATORS]
                worth = f"{one['weights'][kind]['effective_n']:,.0f} of {one['targets']:,}"
                table.add_row(f"{one['strength']:g}", name, f"{row['truth']:.4f}", kind, *cells, worth)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
