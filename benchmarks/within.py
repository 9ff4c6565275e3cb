"""What the order within users (`ranking.within`) gives and takes: two comparisons of the same recipes, with it and without.

    largerec compare recipes/kuairand-{din,dcn-v2,dlrm,wukong,unified-features}.toml data.path=<kuairand> train.metric=click.auc \
        evaluate.conditioned=0 ranking.within=0.3 --against kuairand-unified-features run.dir=runs/kuairand-within threads=1 \
        --seeds 3
    python benchmarks/within.py runs/kuairand-tasks runs/kuairand-within --name kuairand-within

The first folder is that of the comparison without (`benchmarks/zoo.py` says how it is made). Differences are paired over users,
each metric a mean over seeds: each row with it minus itself without, and the `--against` row with it minus every other row, both
without and with. The result goes to benchmarks/results/NAME.json, a table to standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tables import RESULTS, within_table
from zoo import document

from largerec.bundle import Bundle, flatten
from largerec.compare_tasks import Draws, draws_of_rows, paired_tasks
from largerec.errors import LargeRecError


def rows_of(folder: Path, sort: str) -> dict[tuple[str, str], list[Path]]:
    """(row, sort) -> the folders of its runs, of each row that learned tasks."""
    found = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    rows = [row for row in found["rows"] if row.get("tasks")]
    return {(row["name"], sort): [folder / Path(*Path(run["dir"]).parts[-2:]) for run in row["runs"]] for row in rows}


def compared(plain: Path, within: Path, joint: str) -> list[dict[str, Any]]:
    """The differences, as `row` minus `other`, each with what it was trained with."""
    folders = {**rows_of(plain, "without"), **rows_of(within, "with")}
    if (joint, "with") not in folders:
        raise LargeRecError(
            f"{within} has no row {joint}; its rows are {', '.join(name for name, _ in rows_of(within, 'with'))}."
        )
    bundles = {key: [Bundle.open(one) for one in some] for key, some in folders.items()}
    recipe = bundles[joint, "with"][0].recipe()
    results = {key: [one.read_json("result.json") for one in some] for key, some in bundles.items()}
    found = draws_of_rows({str(key): (folders[key], results[key]) for key in folders}, recipe)
    draws: dict[tuple[str, str], Draws] = {key: found[str(key)] for key in folders}
    _check_settings(bundles)
    pairs = [((name, "with"), (name, "without")) for name, sort in folders if sort == "with" and (name, "without") in folders]
    pairs += [((joint, "with"), other) for other in folders if other[0] != joint]
    level = recipe.evaluate.level
    return [
        {"row": list(one), "minus": list(other), "tasks": paired_tasks(draws[one], draws[other], level)} for one, other in pairs
    ]


def _check_settings(bundles: dict[tuple[str, str], list[Bundle]]) -> None:
    """Rows with it and without must be alike in all else that both say, but for where runs and their data lie."""
    for (name, sort), runs in bundles.items():
        if sort == "with" and (name, "without") in bundles:
            ours, theirs = (flatten(one[0].read_json("recipe.json")["recipe"]) for one in (runs, bundles[name, "without"]))
            skipped = ("ranking.within", "run.", "data.", "tune.")
            other = [key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key] and not key.startswith(skipped)]
            if other:
                key = min(other)
                raise LargeRecError(f"{name} has {key}={ours[key]!r} with it and {theirs[key]!r} without; give both the same.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plain", type=Path)
    parser.add_argument("within", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--against", default="kuairand-unified-features")
    given = parser.parse_args()
    try:
        found = document(given.within, given.name)
        found["without"] = [row for row in document(given.plain, given.name)["rows"] if row.get("tasks")]
        found["against"] = given.against
        found["compared"] = compared(given.plain, given.within, given.against)
    except LargeRecError as error:
        sys.exit(f"error: {error}")
    (RESULTS / f"{given.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(within_table(found)))


if __name__ == "__main__":
    main()
