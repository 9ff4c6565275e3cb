"""What is printed for people says what the files say, whatever stands in ids and paths."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from runs import copy_of_run, tiny_recipe, trained_run

from largerec import experiments, show
from largerec.evaluate import compare_runs, evaluate
from largerec.metrics import EvaluateOptions
from largerec.progress import Progress
from largerec.report import report
from largerec.simulate import SimulateOptions, simulate

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


# --- ids and paths --------------------------------------------------------------------------------------------------------


def test_marks_in_ids_and_paths_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = simulate(SimulateOptions(users=40, items=60, events=400, categories=2)).events
    marked = pl.col("user_id").str.replace("^u", "[/u]") + " 'x"
    events.with_columns(marked, pl.format("[/red]{}", "item_id").alias("item_id")).write_csv(tmp_path / "log.csv")
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/[/b] x")
    recipe = tiny_recipe(folder, "data.path=log.csv", "train.max_steps=2", "name=[/b]")
    found = experiments.run(recipe) | {"report": f"{folder}/report.html"}
    shown = printed(show.run, found, monkeypatch=monkeypatch)
    user = found["examples"][0]["user_id"]
    assert shlex.split(shown[shown.index("Next: ") :])[1:] == [
        "largerec",
        "recommend",
        str(folder),
        "--user-id",
        user,
        "-k",
        "10",
    ]
    assert f"Files: {folder}/ (" in shown and f"Report: {folder}/report.html" in shown and f"user {user}" in shown
    shown = printed(show.trained, found["result"], str(folder), monkeypatch=monkeypatch)
    assert shlex.split(shown[shown.index("Next: ") :])[1:] == ["largerec", "evaluate", str(folder)]
    tasks = {"[/b]": {"n": 1, "auc": 0.5, "intervals": {}, "baselines": {"[/i]": {"auc": 0.5, "intervals": {}}}}}
    shown = printed(lambda: show.console().print(show.task_table(found["result"] | {"tasks": tasks})), monkeypatch=monkeypatch)
    assert "[/b]" in shown and "[/i]" in shown
    printed(show.frame, pl.DataFrame({"[/b]": ["[/i]"]}), monkeypatch=monkeypatch)
    Progress().validation(1, 2, {"[/b].auc": 0.5}, best=True)


def test_an_id_that_looks_like_an_option_can_be_copied() -> None:
    assert show._option("--user-id", "-7") == "--user-id=-7" and show._option("--user-id", 7) == "--user-id 7"
