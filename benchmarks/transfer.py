"""Where the best learning rate is over widths, with one rate for all weights and with the maximal update parametrisation.

    python benchmarks/transfer.py

HSTU of two blocks on a generated log of which every event is read once, at rates that are a factor of two apart; the loss is the
cross-entropy over the catalogue on the grid's validation targets. High rates form a plateau, so that the place of a curve is told
by its flank: the lowest rate within .1 nats of the best. Each run is written at once; a second call makes what is missing.
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

from largerec.doctor import processor
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


def flank(losses: dict[float, float], above: float = 0.1) -> float | None:
    """The lowest rate whose loss is at most so much above the best, between two rates by a straight line over log2; None where
    the lowest rate of all is good enough already."""
    rates, wanted = sorted(losses), min(losses.values()) + above
    at = next(at for at, rate in enumerate(rates) if losses[rate] <= wanted)
    if at == 0:
        return None
    low, high = rates[at - 1], rates[at]
    part = (losses[low] - wanted) / (losses[low] - losses[high])
    return float(2 ** (math.log2(low) + part * (math.log2(high) - math.log2(low))))


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
    print(f"| rule | width | {' | '.join(f'{rate:g}' for rate in RATES)} | within .1 from |\n{'|---' * (len(RATES) + 3)}|")
    for rule in RULES:
        for width in WIDTHS:
            own = {p["rate"]: p["loss"] for p in document["points"] if (p["rule"], p["width"]) == (rule, width)}
            from_rate = flank(own)
            shown = "below .001" if from_rate is None else f"{from_rate:.4f}"
            print(f"| {rule} | {width} | {' | '.join(f'{own[rate]:.3f}' for rate in RATES)} | {shown} |")


if __name__ == "__main__":
    main()
