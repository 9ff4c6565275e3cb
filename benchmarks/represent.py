"""What each option of docs/represent.md changes on Amazon Beauty: SASRec with it and without, on validation alone.

    python benchmarks/represent.py data.path=<folder of beauty> threads=1

Every variant is trained with seed 0; those that come out ahead of what they are compared with are trained with two more
seeds, and so is what they are compared with. Passes are few (--passes), so values are below those of the full recipe; all
variants have the same number. The command goes on after a kill (--folder has its runs), and takes key=value overrides for all
variants. The result goes to benchmarks/results/represent.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tables import RESULTS
from variants import Bench, Variant, described, table

from largerec.doctor import processor

RECIPE = "recipes/amazon-beauty.toml"
SAMPLED = 'objective={name="sampled-softmax", negatives=256}'
VARIANTS = {
    "plain": Variant((), "plain"),
    "dot-product": Variant(("head.similarity=dot", "head.temperature=1"), "plain"),
    "temperature-.05": Variant(("head.temperature=0.05",), "plain"),
    "label-smoothing": Variant(("objective.label_smoothing=0.1",), "plain"),
    "duorec": Variant(("contrastive.weight=0.1",), "plain"),
    "cl4srec": Variant(('contrastive={weight=0.1, views=["edits"]}',), "plain"),
    "untied": Variant(("model.tied=false",), "plain"),
    "words": Variant(('model.side.columns=["title", "attr_ids"]',), "plain"),
    "window-25": Variant(("batch.max_length=25",), "plain"),
    "window-25-sampled": Variant(("batch.max_length=25", "batch.window=sample"), "window-25"),
    "average-.99": Variant(("train.average=0.99",), "plain"),
    "average-.999": Variant(("train.average=0.999",), "plain"),
    "sampled": Variant((SAMPLED,), "plain"),
    "sampled-mixed": Variant((SAMPLED, "objective.sampling=mixed"), "sampled"),
    "sampled-mol": Variant((SAMPLED, "head.similarity=mol"), "sampled"),
}
FIRST, MORE = (0,), (0, 1, 2)


def ablated(bench: Bench, variants: Mapping[str, Variant], more: Sequence[int] = MORE) -> tuple[list[dict[str, Any]], str]:
    """Rows of all variants, and the metric: one seed each, then further seeds of what helped and of what it is compared with."""
    recipe = bench.variant("plain", variants["plain"])
    metric = recipe.train.metric
    rows = {name: bench.row(name, variant, FIRST) for name, variant in variants.items()}
    ahead = [name for name, one in variants.items() if rows[name].validation(metric) > rows[one.beside].validation(metric)]
    for name in dict.fromkeys(name for one in ahead for name in (variants[one].beside, one)):
        rows[name] = bench.row(name, variants[name], more)
    return [described(rows[name], variant, rows[variant.beside], recipe) for name, variant in variants.items()], metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="variants to make, beside those they are compared with")
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("runs/represent"))
    given = parser.parse_intermixed_args()
    fixed = [f"train.max_epochs={given.passes}", "train.validation_targets=5000"]
    wanted = set(given.only or VARIANTS) | {"plain"}
    wanted |= {VARIANTS[name].beside for name in wanted}
    bench = Bench(RECIPE, [*fixed, *given.overrides], given.folder)
    rows, metric = ablated(bench, {name: variant for name, variant in VARIANTS.items() if name in wanted})
    shown = ["data.path=<data>" if one.startswith("data.path=") else one for one in given.overrides]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "command": " ".join(["python benchmarks/represent.py", *shown, f"--passes {given.passes}"]),
        "recipe": RECIPE,
        "passes": given.passes,
        "metric": metric,
        "stage": "validation",
        "rows": rows,
    }
    (RESULTS / "represent.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows, metric)))


if __name__ == "__main__":
    main()
