"""Where the best learning rate is over widths, with one rate for all weights and with the maximal update parametrisation.

    python benchmarks/transfer.py

HSTU of two blocks on a generated log of which every event is read once, at rates that are a factor of two apart; the loss is the
cross-entropy over the catalogue on the grid's validation targets. The place of the optimum is that of the parabola through the
best rate and its neighbours, over log2 of the rate. Each run is written at once; a second call makes what is missing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from quality import processor

from largerec.progress import Progress
from largerec.recipe import Recipe, recipe_from
from largerec.scaling.data import GridData, GridPart, judge
from largerec.train import Trainer

RESULT = Path(__file__).parent / "results" / "transfer.json"
WIDTHS = (32, 64, 128, 256)
RATES = tuple(0.001 * 2**power for power in range(6))
RULES = {"one rate": "sqrt", "mup": "mup"}  # a rate that is given is that of all weights under the rule "sqrt"


def recipe_of(rule: str, width: int, rate: float, folder: str) -> Recipe:
    """One run of the sweep."""
    return recipe_from(
        {
            "threads": 1,
            "data": {"simulate": {"users": 6000, "items": 600, "events": 180_000}},
            "batch": {"tokens": 512, "window": "all"},
            "model": {"name": "hstu", "depth": 2, "width": width, "dropout": 0.0},
            "optim": {"learning_rate": rate, "schedule": "linear", "warmup_steps": 20, "transfer": RULES[rule]},
            "train": {"max_epochs": 1, "validation_targets": 100},
            "run": {"dir": folder},
        }
    )


def loss_of(recipe: Recipe, data: GridPart) -> float:
    """Train it and measure its last weights."""
    with Progress(quiet=True) as progress:
        trainer = Trainer(recipe, progress, data.split)
        trainer.run()
    trainer.scorer.prepared()
    return float(judge(trainer.engine, data.row_N)[0].mean())


def optimum(losses: dict[float, float]) -> tuple[float, float]:
    """Rate and loss of the lowest point of the parabola through the best rate and its neighbours; at an edge the best itself."""
    rates = sorted(losses)
    best = min(range(len(rates)), key=lambda at: losses[rates[at]])
    if best in (0, len(rates) - 1):
        return rates[best], losses[rates[best]]
    near = rates[best - 1 : best + 2]
    a, b, c = np.polyfit([math.log2(rate) for rate in near], [losses[rate] for rate in near], 2)
    at = -b / (2 * a)
    return float(2**at), float(a * at**2 + b * at + c)


def main() -> None:
    document: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {"points": []}
    made = {(point["rule"], point["width"], point["rate"]) for point in document["points"]}
    data = GridData.of(recipe_of("mup", 64, 0.001, "unused")).part(None)
    for rule in RULES:
        for width in WIDTHS:
            for rate in RATES:
                if (rule, width, rate) in made:
                    continue
                with TemporaryDirectory() as folder:
                    loss = loss_of(recipe_of(rule, width, rate, f"{folder}/run"), data)
                document["points"].append({"rule": rule, "width": width, "rate": rate, "loss": round(loss, 5)})
                head = {"date": datetime.now(UTC).date().isoformat(), "hardware": processor()}
                document = head | {"command": "python benchmarks/transfer.py", "irreducible": data.irreducible} | document
                RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("| rule | width | best rate | loss there |\n|---|---|---|---|")
    for rule in RULES:
        for width in WIDTHS:
            own = {p["rate"]: p["loss"] for p in document["points"] if (p["rule"], p["width"]) == (rule, width)}
            rate, loss = optimum(own)
            print(f"| {rule} | {width} | {rate:.4f} | {loss:.4f} |")


if __name__ == "__main__":
    main()
