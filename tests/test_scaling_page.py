"""The page of a made-up grid: whole, without script, with every run, law and check on it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from scaling_points import FLOOR, fitted_once, kaplan, made  # noqa: F401
from test_cli import Command, largerec  # noqa: F401

from largerec.errors import LargeRecError
from largerec.report.scaling import scaling_page
from largerec.scaling.overview import overview
from largerec.scaling.points import Point, write_point


def points() -> list[Point]:
    """Two families, one of which has too few runs for a law."""
    few = [replace(p, family="sasrec", name=f"sasrec{p.name}") for p in made(kaplan, seed=6, seeds=1) if p.size == "nano"][:3]
    return [*made(seed=5), *few]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("grid")
    for point in points():
        write_point(folder, point)
    return folder


def test_the_page_shows_points_laws_checks_and_refusals(grid: Path, largerec: Command) -> None:  # noqa: F811
    document = largerec("report", grid, "--json").document
    markup = (grid / "report.html").read_text(encoding="utf-8")
    assert document["report"] == str(grid / "report.html")
    seeds = document["between_seeds"]["loss"]
    assert 0 < seeds["noise"] < 0.01 and "differ in the seed alone" in markup
    names = set(re.findall(r"</?([a-zA-Z][a-zA-Z0-9]*)", markup)) | set(re.findall(r"\son\w+=", markup))
    assert not names & {"script", "img", "iframe", "object", "form", " onload="}
    assert all(point.name in markup for point in points())
    assert markup.count('class="band') >= 10 and markup.count(" hollow") >= 6
    assert f"{FLOOR:.4f}" in markup and "chinchilla" in markup
    assert "too few for a law" in markup and len(document["checks"]) == 12
    assert document["summary"]["loss"]["largest_error"] < 0.01 and not any(row["before"] for row in document["checks"])
    found = next(law for law in document["laws"] if law["quantity"] == "loss")
    frontier = found["frontier"]
    assert frontier["values"] == sorted(frontier["values"], reverse=True) and frontier["params"] == sorted(frontier["params"])
    assert all(
        low < value < high for low, value, high in zip(*(frontier[key] for key in ("lows", "values", "highs")), strict=True)
    )
    assert {round(curve["params"]) for curve in found["curves"]["tokens"]} == {25_000, 100_000, 400_000, 1_600_000}
    later = {law["quantity"]: law for law in document["every_run"]}
    assert later["loss"]["runs"] == found["runs"] + 6 and "largerec plan</code> asks these" in markup
    assert later["loss"]["floor"]["value"] == pytest.approx(FLOOR, rel=0.02)
    head = f"held-out ones too, say {later['loss']['floor']['value']:.4f} ({later['loss']['floor']['low']:.4f} to "
    assert head in markup, "the head compares the floor by every run with the exact one"
    assert later["loss"]["frontier"]["values"] != found["frontier"]["values"]
    assert document["compute"][0]["values"][0] > document["compute"][0]["values"][-1] > FLOOR


def test_what_was_written_before_stands_on_the_page(grid: Path, tmp_path: Path) -> None:
    held = [point for point in points() if point.held_out and point.seed == 0]
    for point in points():
        write_point(tmp_path, point)
    rows = [
        {"name": p.name, "quantity": "loss", "measured": p.loss, "value": 5.0, "low": 4.9, "high": 5.1, "level": 0.9}
        | {"error": 5.0 / p.loss - 1, "inside": 4.9 <= p.loss <= 5.1}
        for p in held
    ]
    (tmp_path / "scale.json").write_text(json.dumps({"checks": rows}), encoding="utf-8")
    found = overview(tmp_path, ())
    assert found["summary"]["loss"]["runs"] == 3 and "eight times" in scaling_page(found, tmp_path / "page.html").read_text(
        encoding="utf-8"
    )
    assert [row["value"] for row in found["checks"]] == [5.0] * 3 and all(row["before"] for row in found["checks"])
    assert "Written down before" in scaling_page(found, tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_grid_stands_alone_on_its_page(grid: Path, tmp_path: Path, largerec: Command) -> None:  # noqa: F811
    said = largerec("report", grid, tmp_path)
    assert said.code == 2 and "of that grid alone" in said.err
    with pytest.raises(LargeRecError, match="holds no grid"):
        overview(tmp_path)
