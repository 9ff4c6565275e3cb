"""The benchmarks of representation options, on a tiny log: rows, paired tests on validation, further seeds, going on."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from runs import write_tiny

from largerec.bundle import Bundle
from largerec.evaluate import compare_runs
from largerec.recipe import load_recipe

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(name)


def test_variants_that_help_get_more_seeds(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants, represent = scripts("variants"), scripts("represent")
    recipe = write_tiny(tmp_path / "tiny.toml")
    few = {
        "plain": variants.Variant(("train.max_epochs=1",), "plain"),
        "longer": variants.Variant(("train.max_epochs=4",), "plain"),
        "hardly": variants.Variant(("train.max_steps=1", "optim.learning_rate=1e-9"), "longer"),
    }
    bench = variants.Bench(str(recipe), ["threads=1"], tmp_path / "runs")
    rows, metric = represent.ablated(bench, few, (0, 1))
    by_name = {row["name"]: row for row in rows}
    assert {name: row["seeds"] for name, row in by_name.items()} == {"plain": [0, 1], "longer": [0, 1], "hardly": [0]}
    assert "paired" not in by_name["plain"] and by_name["longer"]["paired"]["seeds"] == [0, 1]
    folder = tmp_path / "runs"
    alone = compare_runs(folder / "hardly" / "seed-0", folder / "longer" / "seed-0", "validation")
    assert by_name["hardly"]["paired"][metric] == alone[metric] and by_name["hardly"]["paired"]["seeds"] == [0]
    ours, theirs = (by_name[name]["validation"][metric] for name in ("longer", "plain"))
    assert by_name["longer"]["paired"][metric]["difference"] == pytest.approx(ours - theirs)
    assert all("test" not in Bundle(path).read_json("result.json") for path in folder.glob("*/seed-*"))
    monkeypatch.setattr(variants, "train", None)  # nothing is left to train
    assert represent.ablated(variants.Bench(str(recipe), ["threads=1"], folder), few, (0, 1))[0] == rows
    lines = variants.table(rows, metric)
    assert len(lines) == 5 and lines[3].startswith("| longer |") and "| plain | +" in lines[3]


def test_the_tables_are_weighed_and_measured(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants, tables = scripts("variants"), scripts("item_tables")
    monkeypatch.setattr(tables, "TRAINED", {name: tables.TRAINED[name] for name in ("full", "low-rank-a-quarter")})
    bench = variants.Bench(str(write_tiny(tmp_path / "tiny.toml")), [], tmp_path / "runs")
    rows, metric = tables.measured(bench)
    size = {row["name"]: row["table_bytes"] for row in rows}
    assert list(size) == ["full", "low-rank-a-quarter", "8 bits", "4 bits"]
    assert size["full"] > size["8 bits"] > size["4 bits"] and size["low-rank-a-quarter"] < 0.4 * size["full"]
    assert all(row["paired"]["against"] == "full" for row in rows[1:]) and "paired" not in rows[0]
    assert len(tables.table(rows, metric)) == 6 and json.dumps(rows)


def test_every_variant_is_a_recipe_and_differs_from_what_it_is_compared_with(
    scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BENCHMARKS.parent)
    for module, variants in ((scripts("represent"), "VARIANTS"), (scripts("item_tables"), "TRAINED")):
        all_of_them = getattr(module, variants)
        recipes = {name: load_recipe(module.RECIPE, one.overrides).to_json() for name, one in all_of_them.items()}
        for name, one in all_of_them.items():
            assert (recipes[name] == recipes[one.beside]) == (name == one.beside)
