"""What budgets buy where runs were interrupted or have been foretold: taken up, told once, and made in time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_scale import all_runs, finished_grid, grid_data, grid_part, grid_recipe

from largerec.bundle import Bundle
from largerec.errors import LargeRecError
from largerec.scaling import runs as making
from largerec.scaling import scale as module
from largerec.scaling import schedule
from largerec.scaling.points import Point, read_points, write_point
from largerec.scaling.runs import OutOfBudget, made
from largerec.scaling.schedule import Plan, Planned, planned, with_costs, within_budget

RATE = {"tokens_per_second": 4.0, "validation_seconds": 2.0, "beginning_seconds": 3.0, "cores": 1.0}


@pytest.fixture(autouse=True)
def no_machine_s_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "measured_rate", lambda run, data: RATE)


def interrupted(*_: Any, **__: Any) -> None:
    raise OutOfBudget


def fitted_points() -> list[Point]:
    return [point for point in read_points(finished_grid()[0]) if not point.held_out]


# --- runs that were interrupted


def test_an_interrupted_run_costs_what_is_left_of_it_and_never_nothing(tmp_path: Path) -> None:
    run = planned(grid_recipe(tmp_path / "grid"), grid_data(), tmp_path / "grid")[0]
    place = Bundle(tmp_path)

    def cost(**given: Any) -> float:
        return 60 * with_costs([run], grid_data(), place, **given)[0].core_minutes

    whole = run.tokens / 4 + 3 * 2 + 3
    assert cost() == pytest.approx(whole)
    with pytest.raises(OutOfBudget):
        made(run, grid_part(), [], spent=interrupted, quiet=True)
    bundle = Bundle(run.recipe.run.dir)
    done = json.loads(bundle.read_metadata("state.safetensors")["state"])
    assert 0 < done["tokens"] < run.tokens
    assert cost() == pytest.approx((run.tokens - done["tokens"]) / 4 + 2 * 2 + 3)
    assert cost(made=[run.name]) == pytest.approx(whole), "finished runs are shown with all of it"
    tensors, _ = bundle.read_tensors("state.safetensors")
    ended = done | {"tokens": run.tokens, "step": run.steps}
    bundle.write_tensors("state.safetensors", tensors, {"state": json.dumps(ended)})
    assert cost() == pytest.approx(2 + 3), "beginning, and measuring the kept weights"
    bundle.write_tensors("state.safetensors", tensors, {"state": "no JSON"})
    assert cost() == pytest.approx(whole)
    bundle.file("state.safetensors").write_bytes(b"damaged")
    with pytest.raises(LargeRecError, match="is damaged"):
        cost()


def test_the_interrupted_largest_run_is_taken_up_and_what_was_foretold_of_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUALITIES", ())
    recipe = grid_recipe(tmp_path / "grid", widths=[8, 48], users=[0.2, 1.0])
    place, budget = Bundle(recipe.run.dir), "16 core-minutes"
    largest = "hstu-nano-w48-s0"

    def killed(run: Planned, *given: Any, **named: Any) -> Point:
        if run.name == largest:
            named["spent"] = interrupted
        return made(run, *given, **named)

    monkeypatch.setattr(module, "made", killed)
    first = module.scale(recipe, budget, quiet=True)
    assert first["left_out"] == [largest] and (place.path / "runs" / largest).is_dir()
    told, plan = place.file("predictions.json").read_bytes(), place.read_json("plan.json")
    assert [one["name"] for one in json.loads(told)["runs"]] == [largest]
    (whole,) = [run["core_minutes"] for run in plan["held_out"]]
    monkeypatch.setattr(module, "made", made)
    place.write_json("spent.json", {"core_seconds": 60 * 16})
    assert module.scale(recipe, budget, quiet=True)["left_out"] == [largest], "nothing is left of the budget"
    assert place.file("predictions.json").read_bytes() == told
    place.write_json("spent.json", {"core_seconds": 60 * (16 - 0.75 * whole)})  # too little for all of it, enough for the rest
    larger = grid_recipe(place.path, widths=[8, 48, 160], users=[0.2, 1.0])  # in which it would be one to fit to
    found = module.scale(larger, budget, quiet=True)
    assert "hstu-nano-w160-s0" in found["left_out"]
    assert [point["held_out"] for point in found["points"] if point["name"] == largest] == [True]
    assert place.file("predictions.json").read_bytes() == told


def test_what_was_foretold_and_begun_stays_held_out_and_comes_first() -> None:
    runs = all_runs()
    (largest, begun) = runs[-1], next(run for run in runs if run.flops * 3 <= runs[-1].flops and run.core_minutes > 3)
    assert begun.name in {run.name for run in within_budget(runs, None, 3.0).fitted}
    plan = within_budget(runs, 62.0, 3.0, begun=[begun.name])
    assert {begun.name, largest.name} <= {run.name for run in plan.held_out}
    rest = [replace(run, core_minutes=0.5) if run.name == begun.name else run for run in runs]
    little = within_budget(rest, 62.0, 3.0, spent=61.4, begun=[begun.name])
    assert [run.name for run in (*little.fitted, *little.held_out)] == [begun.name]
    alone = within_budget(runs, 1.5, 3.0, begun=[largest.name])
    assert largest.name in {run.name for run in alone.left_out}, "it is the largest still, and no other is held out"
    assert not alone.held_out


# --- what is foretold, and when


def foretold(place: Bundle, runs: Sequence[Planned], points: Sequence[Point]) -> dict[str, Any]:
    return module.predict(place, points, runs, [], [], grid_data())


def test_a_run_that_a_larger_budget_brings_is_foretold_beside_those_that_have_begun(tmp_path: Path) -> None:
    """With its own date and the hash of the points that its laws were fitted to; what was said before stays word for word."""
    place, points, (old, late, new) = Bundle(tmp_path), fitted_points(), all_runs()[-3:]
    first = foretold(place, [old, late], points[:-1])
    (tmp_path / "runs" / old.name).mkdir(parents=True)
    assert foretold(place, [], points) == first, "a budget that buys no held-out run forgets nothing"
    both = foretold(place, [old, late, new], points)
    assert {key: both[key] for key in first if key != "runs"} == {key: first[key] for key in first if key != "runs"}
    assert both["runs"][:2] == first["runs"]
    added = both["runs"][2]
    assert added["name"] == new.name and added["made"] >= first["made"]
    assert added["points_sha256"] == module.points_hash(points) != first["points_sha256"]
    assert added["points"] == [point.name for point in points]
    assert foretold(place, [old, late, new], points[:-2]) == both == place.read_json("predictions.json"), "once is enough"


def test_nothing_is_foretold_of_a_run_that_has_begun(tmp_path: Path) -> None:
    """Whether its folder is there or, where that was removed, its point."""
    place, points, (measured, begun, new) = Bundle(tmp_path), fitted_points(), all_runs()[-3:]
    foretold(place, [measured], points)
    (point,) = [point for point in read_points(finished_grid()[0]) if point.name == measured.name]
    write_point(tmp_path, point)
    (tmp_path / "runs" / begun.name).mkdir(parents=True)
    found = foretold(place, [measured, begun, new], points[:-1])
    assert [one["name"] for one in found["runs"]] == [measured.name, new.name]
    place.file("predictions.json").unlink()
    assert [one["name"] for one in foretold(place, [measured, begun, new], points)["runs"]] == [new.name]


# --- runs that cost more than was expected


@pytest.mark.parametrize(
    ("budget", "late"),
    [(20.0, ["s3", "s4", "between"]), (16.0, ["largest"])],
    ids=["no run displaces the largest", "which keeps nothing for itself where it fits no more"],
)
def test_what_runs_have_cost_is_remembered_for_the_held_out_ones(
    budget: float, late: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run takes half as long again as was expected."""

    def run(name: str, cost: float, at: int, *, held_out: bool) -> Planned:
        own = replace(all_runs()[0].cell, family=name, width=None, users=1.0)
        return replace(all_runs()[0], cell=own, core_minutes=cost, flops_per_token=float(at), held_out=held_out)

    small = [run(f"s{at}", 1.0, at + 1, held_out=False) for at in range(5)]
    large = [run("between", 4.0, 50, held_out=True), run("largest", 10.0, 100, held_out=True)]
    clock, points = making.Clock(Bundle(tmp_path), budget), list[Point]()
    spent = [0.0]
    monkeypatch.setattr(making.Clock, "core_minutes", property(lambda _: spent[0]))

    def make(run: Planned, *_: Any, **__: Any) -> Point:
        spent[0] += 1.5 * run.core_minutes
        return replace(fitted_points()[0], name=run.name)

    monkeypatch.setattr(module, "made", make)
    monkeypatch.setattr(module, "read_points", lambda _: points)
    monkeypatch.setattr(module, "write_point", lambda _, point: points.append(point))
    plan, pace = Plan(tuple(small), tuple(large), ()), module.Pace()
    found = [module._make(some, plan, grid_data(), clock, pace, quiet=True) for some in (small, large)]
    assert [name.split("-")[0] for names in found for name in names] == late
    assert spent[0] <= budget * 1.02
