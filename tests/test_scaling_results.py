"""The script that turns grids into result files and pictures, and the guide's tables of them."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scaling_points import fitted_once, made  # noqa: F401

from largerec.scaling.laws import check, fit_all, summary
from largerec.scaling.points import write_point

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_results", ROOT / "benchmarks" / "scaling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_guide_shows_the_result_files(script: ModuleType) -> None:
    said, found = (ROOT / "docs" / "scale.md").read_text().splitlines(), script.results()
    assert found
    for line in [*script.table(found), *script.law_table(found), *script.again_table(found), *script.today_table(found)]:
        assert line in said, f"docs/scale.md lacks this row of `python benchmarks/scaling.py`: {line}"


def test_what_todays_laws_say_is_of_todays_laws(script: ModuleType) -> None:
    """On one grid; after a change of laws `python benchmarks/scaling.py --refit` writes them anew."""
    found = script.results()["scale-globo"]
    now = script.fitted_again([script.Point.from_json(point, "a result") for point in found["points"]])["today"]
    for quantity, said in found["today"].items():
        for name in ("runs", "refused", "mean_error", "mean_width"):
            assert now[quantity][name] == pytest.approx(said[name], rel=0.02), (quantity, name)


def test_a_grid_becomes_a_document_a_picture_and_rows(script: ModuleType, tmp_path: Path) -> None:
    points = [replace(point, metrics={"ndcg@10": float(np.exp(0.7 - point.loss / 2))}) for point in made(seed=5)]
    for point in points:
        write_point(tmp_path, point)
    laws, _ = fit_all(points, ("ndcg@10",))
    rows = [{**row.to_json(), "times_largest": 9.0} for row in check(laws, points)[0]]
    known = {"points": [point.to_json() for point in points], "laws": [law.to_json() for law in laws]}
    known |= {"checks": rows, "summary": summary(rows), "budget_core_minutes": 20.0}
    (tmp_path / "scale.json").write_text(json.dumps(known))
    seen = script.overview(tmp_path, ("ndcg@10",))
    found = script.document(tmp_path, "recipes/x.toml", seen)
    assert found["command"] == 'largerec scale recipes/x.toml --budget "20 core-minutes"' and found["plans"] == []
    held = sum(point.held_out for point in points)
    best = [next(one for one in found["forms"] if one["quantity"] == quantity) for quantity in script.QUANTITIES]
    assert best[0]["form"] in ("the law", "chinchilla", "onset") and best[0]["error"] < 0.01 and best[0]["runs"] == held
    assert best[1]["error"] < 0.01
    lines = script.table({"scale-demo": found})
    assert len(lines) == 4 and lines[2].startswith(f"| the demo | loss | {len(points) - held} runs | {held} | ")
    assert lines[2].split(" | ")[8] == str(held), "all are nine times the largest"
    wanted = r"\| the demo \| hstu \| loss \| `chinchilla` 0\.\d\d, .* \| it 0\.\d %, `.*`kaplan` [1-9]\.\d %.* \| 4\.\d{3} \(.*"
    wanted += r" \| `chinchilla`.* \| 4\.\d{3} \(.* \| 4\.200 \|"
    assert re.match(wanted, script.law_table({"scale-demo": found})[2])
    loss, _ = found["again"]
    far = [point for point in points if point.flops >= 8 * max(one.flops for one in points if not one.held_out)]
    assert (loss["quantity"], loss["runs"], loss["fitted"]) == ("loss", len(far), len(points) - len(far)) and 0 < len(far) < held
    assert loss["mean_error"] < 0.01, "noise is .2 %, and the form is known"
    assert script.again_table({"scale-demo": found})[2].startswith(
        f"| the demo | hstu | loss | {loss['fitted']} runs | {len(far)} |"
    )
    script.draw(seen, tmp_path / "picture.svg")
    picture = (tmp_path / "picture.svg").read_text()
    assert picture.count("<circle") == 2 * len(points) + 1 and picture.count(" hollow") == 2 * held
