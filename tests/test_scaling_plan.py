"""Plans from a made-up grid: within the budget, loadable, cheapest for a target, fast enough; and checked once trained."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scaling_points import SIZES, chinchilla, fitted_once, made, quality, repeated  # noqa: F401

from largerec import show_scaling
from largerec.accounting import training_flops_per_token, weightless_model
from largerec.bundle import FORMAT, Bundle
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.models import non_embedding_parameters
from largerec.recipe import Recipe, load_recipe, recipe_from
from largerec.scaling import laws, spending
from largerec.scaling.candidates import asked_target, candidates, mean_context, milliseconds, of_size, shapes
from largerec.scaling.choice import Measured, fit_form
from largerec.scaling.data import GridData, judge
from largerec.scaling.forms import CHINCHILLA
from largerec.scaling.plan import check_plan, plan
from largerec.scaling.points import Point, read_points, regime_of, write_point
from largerec.train import train

SHORTER, CATALOGUE, CONTEXT = 400, 60, 5.0
DATA = 80_000
BASE: dict[str, Any] = {
    "name": "grid",
    "threads": 1,
    "data": {"simulate": {"users": 400, "items": 60, "events": 6000, "categories": 3}},
    "batch": {"max_length": 10, "tokens": 1000, "window": "all"},
    "model": {"name": "hstu", "dropout": 0.0},
    "train": {"max_epochs": 1},
    "optim": {"warmup_steps": 5},
    "scale": {"targets": 100, "checks": 2},
}


def grid_recipe(size: str, folder: Path, users: float = 1.0) -> Recipe:
    given = BASE | {"model": BASE["model"] | {"size": size}, "batch": BASE["batch"] | {"users": users}}
    return recipe_from(given | {"run": {"dir": str(folder)}}).resolved()


def made_grid(folder: Path, points: list[Point] | None = None, data: int = DATA) -> list[Point]:
    """Points of real shapes with made-up losses, and the recipe of each run."""
    sizes = {}
    for size in SIZES:
        recipe = grid_recipe(size, folder)
        model = weightless_model(recipe, CATALOGUE)
        depth, width, _ = recipe.model.shape
        each = training_flops_per_token(recipe, model, CATALOGUE, CONTEXT)
        sizes[size] = (non_embedding_parameters(model), depth, width, each)
    points = made(sizes=sizes, shorter=SHORTER, seed=1, rate=1e8) if points is None else points
    for point in points:
        own = replace(point, history=10, catalogue=CATALOGUE, dir=f"runs/{point.name}")
        users = own.unique_tokens / data
        bundle = Bundle(folder / own.dir)
        bundle.path.mkdir(parents=True)
        bundle.write_json("recipe.json", {"format": FORMAT, "recipe": grid_recipe(own.size, bundle.path, users).to_json()})
        write_point(folder, own)
    return points


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("grid")
    made_grid(folder)
    return folder


def test_a_budget_buys_the_best_recipe_within_it(grid: Path) -> None:
    found = plan(grid, budget="1 core-minute")
    recipe = load_recipe(found["recipe"])
    assert found["core_minutes"] <= 1
    assert recipe.resolved().to_json() == json.loads(json.dumps(found["resolved"]))
    assert recipe.model.shape[:2] == (found["layers"], found["width"]) and recipe.batch.users == found["users"]
    assert recipe.train.max_epochs == 1 and recipe.tasks == {}
    low, value, high = (found["predicted"]["ndcg@10"][name] for name in ("low", "value", "high"))
    assert low < value < high and value == pytest.approx(
        quality(chinchilla(found["params"], SHORTER * found["tokens"])), rel=0.05
    )
    other = [row for row in found["others"] if row["size"] != found["size"]]
    assert other and all(row["value"] <= found["value"] * 1.001 and row["core_minutes"] <= 1 for row in other)
    more = plan(grid, budget="4 core-minutes")
    assert more["value"] > found["value"] and more["core_minutes"] > found["core_minutes"]


def test_a_plan_asks_the_laws_of_every_run(grid: Path) -> None:
    points = made_points(grid)
    held = [point for point in points if point.held_out and point.state == "finished"]
    found = next(law for law in plan(grid, budget="1 core-minute")["laws"] if law["quantity"] == "loss")
    assert held and found["runs"] == len(points), "the largest runs, too"


def test_a_plan_names_the_run_that_is_much_the_same(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(grid, budget="1 core-minute")
    alike = [
        point for point in made_points(grid)
        if (point.layers, point.width) == (found["layers"], found["width"]) and 1 / 1.15 <= point.tokens / found["tokens"] <= 1.15
    ]  # fmt: skip
    assert (found["made"] is None) == (not alike) and found["made"] in {None, *(point.dir for point in alike)}
    least = min(made_points(grid), key=lambda point: point.flops)
    worst = plan(grid, target=f"loss={least.loss * 1.2}")
    assert worst["made"] == least.dir, "the least that the laws may be asked about is the grid's own smallest run"
    show_scaling.planned(worst)
    assert f"Much the same run is in the grid: {least.dir}." in capsys.readouterr().out


def test_a_target_takes_the_cheapest_recipe_that_reaches_it(grid: Path) -> None:
    best = plan(grid, budget="2 core-minutes")
    found = plan(grid, target=f"ndcg@10={best['value'] * 0.98}")
    assert found["value"] >= best["value"] * 0.98 and found["core_minutes"] < best["core_minutes"]
    assert 0.3 < found["chance"] < 1
    less = plan(grid, target=f"loss={best['predicted']['loss']['value'] * 1.02}", budget="2 core-minutes")
    assert less["quantity"] == "loss" and less["value"] <= best["predicted"]["loss"]["value"] * 1.02
    with pytest.raises(LargeRecError, match="out of reach: the best"):
        plan(grid, target="ndcg@10=0.9")


def test_a_latency_leaves_out_what_is_slower(grid: Path) -> None:
    free = plan(grid, budget="4 core-minutes")
    times = {row["size"]: row["serving"]["ms"] for row in free["others"]}
    assert free["serving"]["how"] == "by operations" and times["nano"] < times["small"]
    found = plan(grid, latency=f"{times['tiny'] * 1.01} ms", budget="4 core-minutes")
    assert found["size"] in ("nano", "tiny") and found["serving"]["ms"] <= times["tiny"] * 1.01
    with pytest.raises(LargeRecError, match="no size serves a request within"):
        plan(grid, latency="0.0000001 ms")


def test_what_cannot_be_planned_is_refused(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match="a plan needs something to keep to"):
        plan(grid)
    with pytest.raises(LargeRecError, match="holds no grid"):
        plan(tmp_path, budget="1 core-minute")
    with pytest.raises(LargeRecError, match="raise --budget"):
        plan(grid, budget="0.0001 core-seconds")
    with pytest.raises(LargeRecError, match="no run has measured it; there are loss, ndcg@10"):
        plan(grid, target="mrr@10=0.1")
    few = made(seed=1)[:4]
    for point in few:
        write_point(tmp_path, point)
    with pytest.raises(LargeRecError, match="too few for a law"):
        plan(tmp_path, budget="1 core-minute")


def test_a_plan_takes_no_other_file_s_place(grid: Path, tmp_path: Path) -> None:
    """Widths have names of their own; what is no plan is left alone; --check finds a plan that went elsewhere."""
    points = made_points(grid)
    one, other = (plan(grid, target=f"loss={chinchilla(params, 1_600_000)}") for params in (25_000, 1_600_000))
    assert one["width"] != other["width"] and one["run_dir"] != other["run_dir"] and Path(one["recipe"]).is_file()
    with pytest.raises(LargeRecError, match=r"ends in \.toml"):
        plan(grid, budget="1 core-minute", to=tmp_path / "mine.json")
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    with pytest.raises(LargeRecError, match=r"mine\.json, which is another file"):
        plan(grid, budget="1 core-minute", to=tmp_path / "mine.toml")
    assert (tmp_path / "mine.json").read_text() == '{"mine": 1}' and read_points(grid) == points
    found = plan(grid, budget="1 core-second", to=tmp_path / "deep" / "mine.toml")
    train(load_recipe(found["recipe"]), quiet=True)
    checked = check_plan(found["run_dir"], grid)
    again = plan(grid, budget="1 core-second")
    assert again["checked"]["rows"] == checked["rows"], "the same plan again keeps what came of it"


def test_a_target_out_of_reach_says_where_to_move_it(grid: Path) -> None:
    with pytest.raises(LargeRecError, match="Raise --target"):
        plan(grid, target="loss=0.1")
    with pytest.raises(LargeRecError, match="Lower --target"):
        plan(grid, target="ndcg@10=0.99")


def test_repeated_data_is_planned_by_its_own_law(tmp_path: Path) -> None:
    short = [replace(p, held_out=False) for p in made(shorter=SHORTER, seed=2) if p.size != "base"]
    made_grid(tmp_path, repeated(short, 500), data=500)
    found = plan(tmp_path, budget="10 core-minutes")
    recipe = load_recipe(found["recipe"])
    assert found["regime"] == "repeated" and recipe.train.max_epochs == found["epochs"] >= 2 and recipe.batch.users == 1


def test_all_of_the_data_once_is_an_amount_too(grid: Path) -> None:
    """As where all runs of a grid had all data once and differ in size alone: no more and no less can be asked."""
    points = made_points(grid)
    law = laws.fit_law([point for point in points if not point.held_out])
    least = min(point.tokens for point in law.measured.points)
    shape = replace(shapes(grid, points, law)[0], unique_tokens=least)
    (only,) = candidates(shape, law, None)
    assert only.tokens == least and shape.recipe_for(only.tokens, only.regime, "all", grid).batch.users == 1
    assert candidates(shape, law, only.cost / 2) == [], "what it costs is still asked"
    assert candidates(replace(shape, unique_tokens=least - 1), law, None) == []


def test_a_plan_is_checked_once_it_is_trained(grid: Path) -> None:
    found = plan(grid, target=f"loss={chinchilla(25_000, 1_600_000)}", budget="1 core-minute")
    recipe = load_recipe(found["recipe"])
    with pytest.raises(LargeRecError, match="there is no run"):
        check_plan(found["run_dir"])
    train(recipe, quiet=True)
    checked = check_plan(found["run_dir"])
    data = GridData.of(recipe).part(None)
    loss = float(judge(load(found["run_dir"]), data.row_N)[0].mean())
    row = next(row for row in checked["rows"] if row["quantity"] == "loss")
    assert row["measured"] == loss and row["inside"] == (row["low"] <= loss <= row["high"])
    assert (
        checked["plan"].endswith(".json") and json.loads(Path(checked["plan"]).read_text())["checked"]["rows"] == checked["rows"]
    )
    other = recipe.model_copy(update={"seed": 5, "run": recipe.run.model_copy(update={"dir": str(grid / "planned" / "other")})})
    train(other, quiet=True)
    with pytest.raises(LargeRecError, match="no plan in"):
        check_plan(other.run.dir, grid)


def test_sizes_follow_the_dial_and_keep_what_is_set(grid: Path) -> None:
    small = grid_recipe("small", grid)
    assert of_size(grid_recipe("nano", grid), "small") == small
    by_hand = small.model_copy(update={"optim": small.optim.model_copy(update={"learning_rate": 0.0123})})
    assert of_size(by_hand, "tiny").optim.learning_rate == 0.0123
    point = next(point for point in made_points(grid) if point.size == "small")
    assert mean_context(small, point) == pytest.approx(CONTEXT, rel=1e-6)


def made_points(folder: Path) -> list[Point]:
    return [Point.from_json(json.loads(line), "") for line in (folder / "points.jsonl").read_text().splitlines()]


def test_the_frontier_is_chinchillas_own() -> None:
    """Hoffmann et al. 2022, equation 4: at six operations a parameter and token N grows with C ** (beta / (alpha + beta))."""
    points = [replace(p, flops=6.0 * p.params * p.tokens) for p in made(noise=1e-6, quality_noise=1e-6)]
    law = laws.fit_law(points)
    assert law.form is CHINCHILLA
    found = laws.fit_law(points).to_json()["parameters"]
    ratio = (found["alpha"] * found["A"] / (found["beta"] * found["B"])) ** (1 / (found["alpha"] + found["beta"]))
    for flops in (1e11, 1e12, 1e13):
        best = spending.best_split(law, flops, lambda params: 6 * params)
        expected = ratio * (flops / 6) ** (found["beta"] / (found["alpha"] + found["beta"]))
        assert best.params == pytest.approx(expected, rel=0.03) and best.tokens == pytest.approx(flops / 6 / best.params)
    curve = spending.frontier(law, np.geomspace(1e11, 1e13, 5).tolist())
    assert all(a.value > b.value and a.params < b.params for a, b in itertools.pairwise(curve))


def test_places_of_repeated_data_are_repeated() -> None:
    """However few tokens there are: a law of passes over data is asked about two or more."""
    points = repeated([point for point in made(seed=2) if not point.held_out], 300_000)
    law = laws.fit_law([replace(point, tokens=2 * point.tokens) for point in points])
    tokens = np.geomspace(1e4, 1e7, 7)
    places = spending.places_at(law, np.full(7, 1e5), tokens)
    assert {regime_of(place.tokens, place.unique_tokens) for place in places} == {"repeated"}
    assert max(place.unique_tokens for place in places) == 300_000


def test_prices_are_what_was_measured() -> None:
    points = made(rate=2e9, seeds=1)
    prices = spending.Prices.of(points)
    assert prices(SIZES["tiny"][3]) == pytest.approx(SIZES["tiny"][3] / 2e9)
    assert prices(10 * SIZES["base"][3]) == pytest.approx(10 * SIZES["base"][3] / 2e9)
    assert prices.flops_per_core_second == pytest.approx(2e9)
    measured = Measured.of([point for point in points if not point.held_out], "loss")
    assert fit_form(CHINCHILLA, measured).form is CHINCHILLA


@pytest.mark.parametrize(("text", "found"), [("10 ms", 10.0), ("10ms", 10.0), ("0.5 s", 500.0)])
def test_times_are_read(text: str, found: float) -> None:
    assert milliseconds(text) == found


@pytest.mark.parametrize("text", ["10", "ten ms", "-1 ms", "5 m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(LargeRecError, match="is no time"):
        milliseconds(text)


@pytest.mark.parametrize("text", ["0.19", "ndcg@10=", "ndcg@10=x", "=0.1", "loss=-1"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(LargeRecError, match="is no target"):
        asked_target(text)
