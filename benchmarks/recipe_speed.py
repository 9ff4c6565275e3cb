"""How long the measured recipes train on this machine alone: `largerec estimate` of each, on two threads.

    python benchmarks/recipe_speed.py amazon-beauty=FOLDER amazon-sports=FOLDER amazon-toys=FOLDER ml-1m=FILE

Steps are those of the whole plan, without stopping early; validation is not in the minutes. The result goes to
benchmarks/results/recipe-speed.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from largerec.doctor import processor
from largerec.estimate import estimate
from largerec.recipe import load_recipe

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "recipe-speed.json"


def measure(name: str, data: str) -> dict[str, Any]:
    """One recipe."""
    found = estimate(load_recipe(str(ROOT / "recipes" / f"{name}.toml"), [f"data.path={data}", "threads=2"]))
    kept = {key: found[key] for key in ("name", "tokens_per_second", "planned_steps")}
    seconds = found["seconds_at_most"]
    return {**kept, "ms_a_step": round(1e3 * seconds / found["planned_steps"], 1), "minutes": round(seconds / 60, 1)}


def main() -> None:
    points = [measure(*given.split("=", 1)) for given in sys.argv[1:]]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "command": " ".join(["python benchmarks/recipe_speed.py", *(f"{point['name']}=<data>" for point in points)]),
        "points": points,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("| recipe | tokens a second | ms a step | steps | minutes |\n|---|---|---|---|---|")
    for point in points:
        cells = (point["name"], point["tokens_per_second"], point["ms_a_step"], point["planned_steps"], point["minutes"])
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
