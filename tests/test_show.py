"""What is printed for people says what the files say, whatever stands in ids and paths."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from runs import copy_of_run, tiny_recipe, trained_run

from largerec import experiments, show
from largerec.evaluate import compare_runs, evaluate
from largerec.metrics import EvaluateOptions
from largerec.report import report

HALF = EvaluateOptions(level=0.5, bootstrap_samples=50)


def printed(function: Any, *given: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a function of ``show`` prints, its lines joined."""
    to = io.StringIO()
    monkeypatch.setattr(show, "console", lambda: Console(file=to, width=400, highlight=False))
    function(*given)
    return " ".join(to.getvalue().split())


# --- the level of intervals -----------------------------------------------------------------------------------------------


def test_intervals_have_the_level_they_were_evaluated_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy_of_run(tmp_path / "run")
    result = evaluate(run, HALF)
    assert result["level"] == 0.5 == json.loads((run / "result.json").read_text())["level"]
    assert "Intervals: 50 % bootstrap over users." in printed(show.evaluated, result, monkeypatch=monkeypatch)
    page = (run / "report.html", report([run]))[0].read_text(encoding="utf-8")
    assert "50 % interval" in page and "the 50 % bootstrap interval" in page and "95 %" not in page
    narrow, wide = compare_runs(run, trained_run("seed=1")), compare_runs(trained_run(), trained_run("seed=1"))
    for name in ("recall@10", "ndcg@10"):
        assert narrow[name]["high"] - narrow[name]["low"] < wide[name]["high"] - wide[name]["low"]


def test_a_result_of_before_has_the_level_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path / "run", "train.max_steps=2", "evaluate.level=0.9", "run.compare=['sasrec']")
    experiments.run(recipe, quiet=True)
    path = tmp_path / "run" / "result.json"
    document = json.loads(path.read_text())
    assert document.pop("level") == 0.9
    path.write_text(json.dumps(document))
    assert "the 90 % bootstrap interval" in Path(report([tmp_path / "run"])["report"]).read_text(encoding="utf-8")
    evaluate(tmp_path / "run" / "compare" / "sasrec", HALF)
    (tmp_path / "run" / "compare" / "sasrec" / "result.json").rename(tmp_path / "kept.json")
    found = experiments.rows_of([experiments._earlier(recipe), json.loads((tmp_path / "kept.json").read_text())])
    shown = {"examples": [], "rows": found, "result": experiments._earlier(recipe), "dir": "run", "report": "page"}
    assert "Intervals: 50 % (sasrec), 90 % (hstu) bootstrap over users." in printed(show.run, shown, monkeypatch=monkeypatch)


def test_runs_of_two_levels_in_one_table_are_told_apart(tmp_path: Path) -> None:
    first, second = copy_of_run(tmp_path / "a"), copy_of_run(tmp_path / "b", "seed=1")
    evaluate(second, HALF)
    page = Path(report([first, second])["report"]).read_text(encoding="utf-8")
    assert "95 % (<bdi>a</bdi>), 50 % (<bdi>b</bdi>) bootstrap interval" in page
    assert "95 % interval" in page and "50 % interval" not in page, "paired tests are of the first run's level"
