"""The point of one run of a grid: what it counts, and up to where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_scale import grid_data, grid_part, grid_recipe

from largerec.bundle import Bundle
from largerec.scaling.runs import GridTrainer, made
from largerec.scaling.schedule import planned


def test_seconds_are_those_of_the_tokens_up_to_the_kept_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose best weights come early is no dearer a token for having gone on."""
    run = planned(grid_recipe(tmp_path, checks=8, users=[1.0]), grid_data(), tmp_path)[-1]
    judged = GridTrainer.judged

    def worse(self: GridTrainer) -> tuple[dict[str, float], float]:
        shown, _ = judged(self)
        return shown, -float(self.state.step)

    monkeypatch.setattr(GridTrainer, "judged", worse)
    point, result = made(run, grid_part(), [], quiet=True), Bundle(run.recipe.run.dir).read_json("result.json")
    assert point.steps < result["steps"] / 4 and point.tokens < result["train_tokens"] / 4
    assert 0 < point.seconds < result["train_seconds"]
    lines = Bundle(run.recipe.run.dir).file("metrics.jsonl").read_text().splitlines()
    assert point.seconds in {entry["seconds"] for entry in map(json.loads, lines) if entry["step"] == point.steps}
