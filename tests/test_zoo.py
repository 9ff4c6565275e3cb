"""The tables of a comparison of families: settings taken from one log to another, and what is said of the differences."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from runs import write_tiny
from typer.testing import CliRunner

from largerec.cli import app
from largerec.errors import LargeRecError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    zoo, tables = importlib.import_module("zoo"), importlib.import_module("tables")
    for module in (zoo, tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return zoo, tables


def compare(*arguments: str) -> None:
    done = CliRunner().invoke(app, ["compare", *arguments, "--json"])
    assert done.exit_code == 0, done.output + repr(done.exception)


def test_settings_of_one_log_on_another(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    zoo, tables = scripts
    recipes = []
    for name, family in (("first", "sasrec"), ("second", "gru4rec")):
        path = write_tiny(tmp_path / f"{name}.toml")
        text = (
            path.read_text()
            .replace('"tiny"', f'"{name}"')
            .replace('{name = "hstu", depth = 1, width = 16, heads = 2', f'{{name = "{family}", width = 16')
        )
        path.write_text(text + "tune.space.model.dropout = [0.2]\n")
        recipes.append(str(path))
    here, there = tmp_path / "runs" / "here", tmp_path / "runs" / "there"
    compare(*recipes, f"run.dir={here}", "--seeds", "1", "--trials", "1")
    found = zoo.document(here, "here")
    (tmp_path / "here.json").write_text(json.dumps(found))
    assert str(tmp_path) not in json.dumps(found | {"command": ""})
    assert "run.dir=runs/here" in found["command"]
    tuned = [str(here / name / "tuned.toml") for name in ("first", "second")]
    compare(*tuned, f"run.dir={there}", "data.simulate.seed=1", "--seeds", "1")
    moved = zoo.document(there, "there", "here")
    assert moved["data"] != found["data"] and "as chosen in here.json" in moved["settings"]
    assert "runs/here/first/tuned.toml runs/here/second/tuned.toml" in moved["command"] and str(tmp_path) not in json.dumps(moved)
    every = importlib.import_module("pairs").pairs(there, "every")
    (held,), (test,) = [one for one in moved["rows"] if "paired" in one], every["pairs"]
    sign = 1 if test["row"] == held["name"] else -1
    assert test["difference"] == pytest.approx(sign * held["paired"]["ndcg@10"]["difference"])
    assert test["holm"] == test["p_value"] == held["paired"]["ndcg@10"]["p_value"]
    lines = tables.zoo_table(moved)
    assert len(lines) == 4 and "chosen" in lines[2] and moved["sections"][0]["chosen"] in lines[2]
    other = json.loads((tmp_path / "here.json").read_text())
    next(one for one in other["rows"] if one["name"] == "second")["trials"]["settings"]["model.dropout"] = 0.5
    (tmp_path / "here.json").write_text(json.dumps(other))
    with pytest.raises(LargeRecError, match=r"has model\.dropout=0\.2 here and 0\.5 was chosen in here\.json"):
        zoo.document(there, "there", "here")
    with pytest.raises(LargeRecError, match=r"no compare\.json yet"):
        zoo.document(tmp_path, "x")


def row(name: str, validation: float, difference: float | None, p: float = 1.0, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "model": name,
        "chosen": difference is None,
        "validation": {"ndcg@10": validation},
        **more,
    }
    return found if difference is None else found | {
        "paired": {"against": "a", "ndcg@10": {"difference": difference, "p_value": p}}
    }  # fmt: skip


def test_what_is_said_of_differences_is_corrected_for_their_number(scripts: tuple[ModuleType, ModuleType]) -> None:
    _, tables = scripts
    assert tables.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert tables.holm([0.9, 0.6]) == [1.0, 1.0] and tables.holm([]) == []
    rows = [row("c", 0.1, -0.02, 0.001), row("b", 0.2, -0.001, 0.03), row("a", 0.3, None), row("d", 0.15, 0.004, 0.0101)]
    rows += [{"name": "popularity", "model": None}, row("a+b", 0.4, 0.1, 0.001, members=["a", "b"])]
    said = tables.verdict({"metric": "ndcg@10", "rows": rows})
    assert said == (
        "Against a, by ndcg@10 on the test, at .05 with Holm's correction for 3 tests: better: d (+.0040, p = 0.02); "
        "worse: b (-.0010, p = 0.03), c (-.0200, p = 0.003)."
    )
    assert tables.verdict({"metric": "ndcg@10", "rows": rows[2:3]}) == ""
    rows[1]["paired"]["ndcg@10"]["p_value"] = 0.06
    assert "not told apart: b" in tables.verdict({"metric": "ndcg@10", "rows": rows})


def test_stars_mark_families_that_are_told_from_the_chosen_one(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    _, tables = scripts
    test = {"test": {"recall@10": 0.2, "ndcg@10": 0.1}}
    rows = [row("a", 0.3, None, **test), row("b", 0.2, -0.01, 0.01, **test), row("c", 0.1, 0.01, 0.02, **test)]
    rows.append(row("d", 0.05, -0.02, 0.06, **test))
    (tmp_path / "here.json").write_text(json.dumps({"metric": "ndcg@10", "rows": rows}))
    (tmp_path / "there.json").write_text(json.dumps({"metric": "ndcg@10", "rows": [row("e", 0.3, None, **test)]}))
    assert tables.zoo({"here": "a log", "nowhere": "not run", "there": "another"}) == [
        "| family | a log | another |",
        "|---|---|---|",
        "| a | **.2000 / .1000** |  |",
        "| b | .2000 / .1000\\* |  |",
        "| c | .2000 / .1000\\*\\* |  |",
        "| d | .2000 / .1000 |  |",
        "| e |  | **.2000 / .1000** |",
    ]


def test_of_all_pairs_those_are_said_that_are_told_apart(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    _, tables = scripts
    rows = [{"name": f"zoo-{model}", "model": model} for model in ("a", "b", "c")]
    tests = [("zoo-a", "zoo-b", 0.1, 0.06), ("zoo-a", "zoo-c", -0.1, 0.04), ("zoo-b", "zoo-c", 0.2, 0.001)]
    pairs = [{"row": one, "minus": other, "difference": gap, "holm": p} for one, other, gap, p in tests]
    assert tables.pairs_told({"rows": rows, "pairs": pairs}) == {"a": [], "b": ["c"], "c": ["a"]}


def test_rankers_beside_the_model_that_does_both(scripts: tuple[ModuleType, ModuleType]) -> None:
    _, tables = scripts

    def ranked(name: str, auc: float, p: float | None, **more: Any) -> dict[str, Any]:
        found = {"name": name, "model": name, "validation": {"a.auc": auc}, "test": {}, "train_seconds": 120.0, **more}
        found["tasks"] = {"a": {"auc": auc, "gauc": 0.5}}
        if p is not None:
            tests = {"a.auc": {"difference": auc - 0.75, "p_value": p}, "a.gauc": {"difference": 0.0, "p_value": 1.0}}
            found["paired_tasks"] = {"against": "both", **tests}
        return found

    rows = [ranked("both", 0.75, None, test={"ndcg@10": 0.05}), ranked("worse", 0.7, 0.01), ranked("better", 0.8, 0.04)]
    rows += [ranked("alike", 0.76, 0.06), {"name": "popularity", "model": None}]
    baselines = {"item rate": {"a": {"auc": 0.6, "gauc": 0.55}}}
    document = {"metric": "a.auc", "retrieval_metric": "ndcg@10", "rows": rows, "task_baselines": baselines}
    assert tables.tasks_table(document, "a log")[2:] == [
        "| item rate | .6000 | .5500 | | |",
        "| better | .8000\\*\\* | .5000 | ranks only | 2 |",
        "| alike | .7600 | .5000 | ranks only | 2 |",
        "| **both** | .7500 | .5000 | .0500 | 2 |",
        "| worse | .7000\\* | .5000 | ranks only | 2 |",
    ]
