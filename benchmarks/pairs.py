"""Which families of a comparison are told from which: every pair by a paired test over users, corrected for all pairs at once.

    largerec compare recipes/zoo/*.toml data.path=<beauty> run.dir=runs/zoo-beauty
    python benchmarks/pairs.py runs/zoo-beauty --name zoo-beauty-pairs

``largerec compare`` holds all rows against one. This reads the ranks its runs kept; nothing is trained, and the test part is not
looked at again. The result goes to benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

from tables import RESULTS, holm, pairs_told
from zoo import document

from largerec.bundle import Bundle
from largerec.compare_table import Row, paired, row_ranks


def pairs(folder: Path, name: str) -> dict[str, Any]:
    """The tests of all pairs of trained rows, ensembles apart; rows in the order of validation, best first.

    Raises:
        LargeRecError: there is no comparison in the folder, or its rows have other targets.
    """
    found = document(folder, name)
    metric = found["retrieval_metric"]
    rows = [row for row in found["rows"] if row["model"] is not None and "members" not in row]
    rows.sort(key=lambda row: -row["validation"][metric])
    places = {row["name"]: tuple(folder / run["dir"] for run in row["runs"]) for row in rows}
    ranks = {row: row_ranks(Row(row, paths, ())) for row, paths in places.items()}
    recipe = Bundle(places[rows[0]["name"]][0]).recipe()
    both = [(a, b, paired(ranks[a], ranks[b], metric, recipe)[metric]) for a, b in combinations(places, 2)]
    adjusted = holm([test["p_value"] for _, _, test in both])
    return {
        **{key: found[key] for key in ("name", "date", "hardware", "software", "data", "level")},
        "command": f"{found['command']} && python benchmarks/pairs.py runs/{folder.name} --name {name}",
        "metric": metric,
        "seeds": found["seeds"],
        "rows": [{"name": row["name"], "model": row["model"], "test": row["test"][metric]} for row in rows],
        "pairs": [{"row": a, "minus": b, **test, "holm": p} for (a, b, test), p in zip(both, adjusted, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    given = parser.parse_args()
    found = pairs(given.folder, given.name)
    (RESULTS / f"{given.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for above, below in pairs_told(found).items():
        print(f"{above}: {', '.join(below)}")


if __name__ == "__main__":
    main()
