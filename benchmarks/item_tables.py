"""What smaller item tables cost in quality and gain in memory: full, hashed, low-rank, and the full one in 8 and 4 bits a number.

    python benchmarks/item_tables.py data.path=<folder of beauty> threads=1

SASRec on Amazon Beauty with few passes and one seed, measured on validation alone: differences are what matters, not values.
The command goes on after a kill (--folder has its runs). The result goes to benchmarks/results/item-tables.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from represent import RECIPE
from tables import RESULTS, four
from variants import Bench, Variant, described

from largerec.compare_table import Row, recommend_ms
from largerec.doctor import processor
from largerec.engine import ModelScorer, load
from largerec.evaluate import evaluate
from largerec.item_tables import table_bytes
from largerec.quantise import quantise

TRAINED = {
    "full": Variant((), "full"),
    "hashed-a-quarter": Variant(("model.table.kind=hashed", "model.table.share=0.25"), "full"),
    "low-rank-a-quarter": Variant(("model.table.kind=low-rank", "model.table.share=0.25"), "full"),
}
QUANTISED = {"8 bits": 8, "4 bits": 4}


def measured(bench: Bench) -> tuple[list[dict[str, Any]], str]:
    """A row for each table: quality on validation, its bytes, and milliseconds a user to recommend; and the metric."""
    recipe = bench.variant("full", TRAINED["full"])
    rows = {name: bench.row(name, variant, (0,)) for name, variant in TRAINED.items()}
    full = rows["full"]
    for name, bits in QUANTISED.items():
        folder = bench.folder / name / "seed-0"
        quantise(full.folders[0], folder, bits)  # type: ignore[arg-type]
        rows[name] = Row(name, (folder,), (evaluate(folder, stage="validation"),))
    documents = []
    for name, row in rows.items():
        engine = load(row.folders[0])
        assert isinstance(engine.scorer, ModelScorer)
        size = {"table_bytes": table_bytes(engine.scorer.model), "recommend_ms": recommend_ms(engine)}
        documents.append(described(row, TRAINED.get(name, TRAINED["full"]), full, recipe) | size)
    return documents, recipe.train.metric


def table(rows: list[dict[str, Any]], metric: str) -> list[str]:
    lines = [f"| table | bytes | {metric} | minus full | p | ms a user |", "|---|---|---|---|---|---|"]
    for row in rows:
        test = row.get("paired", {}).get(metric)
        apart = (
            f"{'-' if test['difference'] < 0 else '+'}{four(abs(test['difference']))} | {test['p_value']:.2g}" if test else " | "
        )
        cells = [row["name"], f"{row['table_bytes']:,}", four(row["validation"][metric]), apart, f"{row['recommend_ms']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/item-tables"))
    given = parser.parse_intermixed_args()
    fixed = [f"train.max_epochs={given.passes}", "train.validation_targets=2000"]
    rows, metric = measured(Bench(RECIPE, [*fixed, *given.overrides], given.folder))
    shown = ["data.path=<data>" if one.startswith("data.path=") else one for one in given.overrides]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "command": " ".join(["python benchmarks/item_tables.py", *shown, f"--passes {given.passes}"]),
        "recipe": RECIPE,
        "passes": given.passes,
        "metric": metric,
        "stage": "validation",
        "rows": rows,
    }
    (RESULTS / "item-tables.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows, metric)))


if __name__ == "__main__":
    main()
