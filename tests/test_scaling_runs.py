"""The point of one run of a grid: what it counts, and up to where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_scale import grid_data, grid_part, grid_recipe

from largerec.bundle import Bundle
from largerec.scaling.runs import GridTrainer, OutOfBudget, made
from largerec.scaling.schedule import planned


def test_a_run_counts_in_whole_however_early_its_best_weights_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else passes that help no more would look like fewer passes, and no law would see that they do not help."""
    run = planned(grid_recipe(tmp_path, checks=8, users=[1.0]), grid_data(), tmp_path)[-1]
    judged = GridTrainer.judged

    def worse(self: GridTrainer) -> tuple[dict[str, float], float]:
        shown, _ = judged(self)
        return shown, -float(self.state.step)

    monkeypatch.setattr(GridTrainer, "judged", worse)
    point, result = made(run, grid_part(), [], quiet=True), Bundle(run.recipe.run.dir).read_json("result.json")
    assert (point.steps, point.tokens) == (result["steps"], result["train_tokens"])
    assert point.flops == run.flops_per_token * point.tokens and point.seconds == pytest.approx(result["train_seconds"], abs=0.01)
    lines = Bundle(run.recipe.run.dir).file("metrics.jsonl").read_text().splitlines()
    first = next(entry for entry in map(json.loads, lines) if "validation" in entry)
    assert result["best_step"] == first["step"] and point.loss == pytest.approx(first["validation"]["loss"])


def test_an_averaged_run_that_the_budget_ended_is_taken_up_to_the_same_point(tmp_path: Path) -> None:
    """Its checkpoint holds the run's own weights and the average each in its place."""
    points = []
    for name in ("whole", "ended"):
        recipe = grid_recipe(tmp_path / name, users=[1.0])
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"average": 0.9})})
        run = planned(recipe, grid_data(), tmp_path / name)[-1]
        if name == "ended":
            with pytest.raises(OutOfBudget):
                made(run, grid_part(), [], spent=_ended, quiet=True)
        points.append(made(run, grid_part(), [], quiet=True))
    whole, ended = points
    assert ended.loss == whole.loss and ended.metrics == whole.metrics


def _ended() -> None:
    raise OutOfBudget
