"""A grid of runs: what it asks for, what a budget buys, runs that are killed and go on, and predictions that come before the runs
they are about."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from runs import start_child
from torch.nn import functional as F

from largerec.bundle import Bundle
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.evaluate import best_possible, generated_world
from largerec.grid import ScaleOptions, cells, core_minutes
from largerec.recipe import Recipe, recipe_from
from largerec.scaling import scale as module
from largerec.scaling import schedule
from largerec.scaling.data import GridData, GridPart, judge
from largerec.scaling.points import Point, read_points
from largerec.scaling.runs import OutOfBudget, hopeless, made
from largerec.scaling.schedule import Planned, planned, within_budget
from largerec.simulate import SimulateOptions, simulate

GRID: dict[str, Any] = {
    "name": "grid",
    "threads": 1,
    "data": {"simulate": {"users": 160, "items": 60, "events": 2000, "categories": 3}},
    "batch": {"max_length": 10, "tokens": 64, "window": "all"},
    "model": {"name": "hstu", "dropout": 0.1},
    "train": {"max_epochs": 1},
    "scale": {
        "sizes": ["nano"],
        "widths": [8, 16, 48],
        "users": [0.2, 0.5, 1.0],
        "targets": 60,
        "seeds": 1,
        "checks": 2,
        "hold_out": 3,
    },
}


def grid_recipe(folder: Path, **scale: Any) -> Recipe:
    return recipe_from(GRID | {"scale": GRID["scale"] | scale, "run": {"dir": str(folder)}})


@functools.cache
def finished_grid() -> tuple[Path, str]:
    """A finished grid, and the document of it, which all tests of a process share."""
    folder = Path(mkdtemp(prefix="largerec-test-")) / "grid"
    return folder, json.dumps(module.scale(grid_recipe(folder), quiet=True))


def timeless(points: list[Point]) -> list[Point]:
    """Points without what the clock says, in the order of their names."""
    return sorted((dataclasses.replace(point, seconds=0.0) for point in points), key=lambda point: point.name)


# --- what is asked for


def test_a_grid_is_all_combinations_with_seeds_at_the_small_end() -> None:
    options = ScaleOptions(sizes=("nano", "tiny"), users=(0.25, 1.0), histories=(10, 20), seeds=2, families=("hstu", "sasrec"))
    found = cells(options, "llama", seed=5)
    assert len(found) == len({cell.name for cell in found}) == 2 * 2 * 2 * (2 + 1)
    assert {cell.seed for cell in found if cell.size == "nano"} == {5, 6}
    assert {cell.seed for cell in found if cell.size == "tiny"} == {5}
    assert found[0].name == "hstu-nano-u0.25-h10-s5"
    assert [cell.family for cell in cells(ScaleOptions(sizes=("nano",), seeds=1), "llama", 0)] == ["llama"]


@pytest.mark.parametrize(("text", "minutes"), [("20 core-minutes", 20), ("1.5 core-hours", 90), ("30 core-seconds", 0.5)])
def test_budgets_are_read(text: str, minutes: float) -> None:
    assert core_minutes(text) == pytest.approx(minutes)


@pytest.mark.parametrize("text", ["20 minutes", "0 core-minutes", "core-minutes", "-1 core-hours", "20"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(LargeRecError, match="is no budget"):
        recipe_from({"scale": {"budget": text}})


def test_shares_are_the_recipe_s_where_the_grid_names_none() -> None:
    own = recipe_from({"batch": {"users": 0.5, "recent": 0.25}, "scale": {"sizes": ["nano"], "seeds": 1}})
    (cell,) = cells(own.scale, "hstu", 0, own.batch.users, own.batch.recent)
    assert (cell.users, cell.recent) == (0.5, 0.25)


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(LargeRecError, match="twice"):
        recipe_from({"scale": {"users": [1.0, 1.0]}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"name": "bce"}}, "no probabilities"),
        ({"tasks": {"buy": {"where": "behavior = 'buy'"}}, "batch": {"actions": "summed"}}, "has tasks"),
    ],
)
def test_what_has_no_cross_entropy_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = recipe_from(GRID | changes | {"run": {"dir": str(tmp_path / "grid")}})
    with pytest.raises(LargeRecError, match=words):
        module.scale(recipe, quiet=True)


# --- what a budget buys


@functools.cache
def grid_data() -> GridData:
    return GridData.of(grid_recipe(Path("unused")))


def grid_part() -> GridPart:
    return grid_data().part(None)


@functools.cache
def all_runs() -> tuple[Planned, ...]:
    """The grid's runs, whose costs are as their operations: 1 to 30 core-minutes."""
    found = planned(grid_recipe(Path("unused")), grid_data(), Path("unused"))
    most = max(run.flops for run in found)
    return tuple(dataclasses.replace(run, core_minutes=30 * run.flops / most) for run in found)


@pytest.mark.parametrize("budget", [None, 200.0, 62.0, 40.0, 20.0])
def test_a_budget_buys_the_cheapest_and_one_large_run(budget: float | None) -> None:
    runs = all_runs()
    plan = within_budget(runs, budget, hold_out=3.0)
    made_of = [*plan.fitted, *plan.held_out, *plan.left_out]
    assert sorted(run.name for run in made_of) == sorted(run.name for run in runs)
    assert budget is None or plan.core_minutes <= budget
    top = max(plan.held_out, key=lambda run: run.flops)
    assert all(run.flops * 3 <= top.flops and not run.held_out for run in plan.fitted)
    assert all(run.flops * 3 > top.flops and run.held_out for run in plan.held_out)
    assert [run.flops for run in made_of[: len(plan.fitted)]] == sorted(run.flops for run in plan.fitted)
    if budget is None:
        assert not plan.left_out
    else:
        assert top.core_minutes <= budget / 2
        cheapest_left = min((run.core_minutes for run in plan.left_out if run.flops * 3 <= top.flops), default=np.inf)
        assert all(run.core_minutes <= cheapest_left for run in plan.fitted)


def test_a_budget_or_a_grid_that_is_too_small_is_refused() -> None:
    with pytest.raises(LargeRecError, match="Raise --budget"):
        within_budget(all_runs(), 1e-6, 8.0)
    with pytest.raises(LargeRecError, match=r"lower scale\.hold_out"):
        within_budget(all_runs(), None, 1e9)


def test_plans_know_their_runs_exactly() -> None:
    """Parameters, tokens and steps of the plan are those of the runs that were made."""
    folder, _ = finished_grid()
    points = {point.name: point for point in read_points(folder)}
    assert points.keys() == {run.name for run in all_runs()}
    for run in all_runs():
        point = points[run.name]
        assert (point.params, point.params_embedding, point.width) == (run.params, run.params_embedding, run.width)
        assert (point.tokens, point.steps) == (run.tokens, run.steps), "one pass, whose last weights were the best"
        assert point.flops == pytest.approx(run.flops)
        assert point.regime == "single-epoch" and point.tokens == point.unique_tokens and point.epochs == 1


# --- what runs are measured by


def test_all_runs_are_measured_on_the_same_targets() -> None:
    other = grid_recipe(Path("unused"), users=(0.5,)).model_copy(update={"seed": 7})
    data, again = grid_part(), GridData.of(other).part(None)
    assert np.array_equal(data.row_N, again.row_N) and len(data.row_N) == 60
    assert set(data.row_N) <= set(data.split.sequences.targets("validation"))
    catalogues = {point.catalogue for point in read_points(finished_grid()[0])}
    assert catalogues == {data.split.tokenizer.size}


def test_the_loss_is_the_cross_entropy_over_the_catalogue() -> None:
    folder, _ = finished_grid()
    (kept,) = [point for point in read_points(folder) if point.name == "hstu-nano-w48-s0"]
    assert kept.held_out, "held-out runs stay whole"
    engine, row_N = load(folder / kept.dir), grid_part().row_N
    scores_QV = engine.scorer.scores(engine.queries_at(row_N))
    target_N = torch.from_numpy(engine.token_of_item[engine.sequences.item_N[row_N]])
    assert kept.loss == pytest.approx(float(F.cross_entropy(scores_QV, target_N)), rel=1e-5)
    assert kept.loss_interval is not None and kept.loss_interval[0] < kept.loss < kept.loss_interval[1]
    assert judge(engine, row_N)[0].mean() == pytest.approx(kept.loss, rel=1e-6)


def test_the_irreducible_loss_is_the_exact_law_s() -> None:
    folder, _ = finished_grid()
    path = folder / "runs" / "hstu-nano-w48-s0"
    recipe, engine = Bundle.open(path).recipe(), load(path)
    world = generated_world(recipe, Bundle(path).read_json("lineage.json")["data_hash"])
    assert world is not None
    exact = best_possible(engine, world, recipe, "validation", recipe.evaluate)["cross_entropy"]
    everyone = GridData.of(grid_recipe(folder, targets=10_000)).part(None)
    assert everyone.irreducible == pytest.approx(exact)
    counts = everyone.split.tokenizer.counts_V + 1
    tokens = everyone.token_of_item[everyone.split.sequences.item_N[everyone.row_N]]
    assert everyone.popularity == pytest.approx(-np.log([counts[token] / counts.sum() for token in tokens]).mean())
    assert everyone.popularity > exact
    assert all(point.loss > (point.irreducible or np.inf) for point in read_points(folder))


def test_entropy_knows_no_numbering() -> None:
    data = grid_part()
    batches = data.batches(all_runs()[0].recipe)
    shuffled = data.batches(all_runs()[0].recipe)
    order_V = np.random.default_rng(0).permutation(data.split.tokenizer.size)
    shuffled.rows = dataclasses.replace(batches.rows, token_M=order_V[batches.rows.token_M])
    found = data.entropy(batches)
    assert found is not None and found > 0
    assert data.entropy(shuffled) == pytest.approx(found)


# --- runs that end early


def entry(step: int, tokens: int, loss: float) -> dict[str, Any]:
    return {"step": step, "tokens": tokens, "validation": {"loss": loss}}


def test_a_hopeless_run_is_given_up_beside_a_cheaper_one() -> None:
    run = all_runs()[-1]
    (beside,) = [point for point in read_points(finished_grid()[0]) if point.name == "hstu-nano-w8-u0.2-s0"]
    half, tokens = -(-run.steps // 2), run.tokens // 2
    bad, good = beside.loss + 0.6, beside.loss + 0.4
    assert hopeless(run, [entry(half, tokens, bad)], [beside])
    assert not hopeless(run, [entry(half, tokens, good)], [beside])
    assert not hopeless(run, [entry(half, tokens, bad)], []), "nothing to compare with"
    assert not hopeless(run, [entry(half - 1, tokens, bad)], [beside]), "large models are behind at first"
    assert not hopeless(run, [entry(run.steps, run.tokens, bad)], [beside]), "it has ended by itself"
    for other in ({"tokens": tokens + 1}, {"flops": 1e30}, {"state": "stopped"}, {"family": "sasrec"}, {"history": 9}):
        assert not hopeless(run, [entry(half, tokens, bad)], [dataclasses.replace(beside, **other)])  # type: ignore[arg-type]


def test_stopped_and_diverged_runs_are_points_too(tmp_path: Path) -> None:
    recipe = grid_recipe(tmp_path / "grid")
    run = planned(recipe, grid_data(), tmp_path / "grid")[-1]
    (cheap,) = [point for point in read_points(finished_grid()[0]) if point.name == "hstu-nano-w8-u0.2-s0"]
    stopped = made(run, grid_part(), [dataclasses.replace(cheap, loss=0.1)], quiet=True)
    assert stopped.state == "stopped" and stopped.loss > 0.6 and stopped.tokens < run.tokens
    wild = run.recipe.model_copy(update={"optim": run.recipe.optim.model_copy(update={"learning_rate": 1e30})})
    wild = wild.model_copy(update={"run": wild.run.model_copy(update={"dir": str(tmp_path / "wild")})})
    failed = made(dataclasses.replace(run, recipe=wild), grid_part(), [], quiet=True)
    assert failed.state == "failed" and np.isnan(failed.loss)


def test_a_run_that_the_budget_ended_is_taken_up(tmp_path: Path) -> None:
    run = planned(grid_recipe(tmp_path / "grid"), grid_data(), tmp_path / "grid")[-1]

    def spent() -> None:
        raise OutOfBudget

    with pytest.raises(OutOfBudget):
        made(run, grid_part(), [], spent=spent, quiet=True)
    assert (tmp_path / "grid" / "runs" / run.name / "state.safetensors").is_file()
    again = made(run, grid_part(), [], quiet=True)
    (whole,) = [point for point in read_points(finished_grid()[0]) if point.name == run.name]
    assert timeless([again]) == timeless([dataclasses.replace(whole, held_out=False)])
    assert made(run, grid_part(), [], quiet=True) == again, "killed before its point was written"
    Bundle(run.recipe.run.dir).write_json("result.json", {"name": "another"})
    with pytest.raises(LargeRecError, match="no grid's"):
        made(run, grid_part(), [], quiet=True)


# --- the whole


def test_predictions_stand_before_the_runs_they_are_about() -> None:
    folder, text = finished_grid()
    document, predictions = json.loads(text), json.loads((folder / "predictions.json").read_text())
    points = read_points(folder)
    fitted, held_out = ([point for point in points if point.held_out == which] for which in (False, True))
    assert predictions["points_sha256"] == module.points_hash(fitted)
    assert {one["name"] for one in predictions["runs"]} == {point.name for point in held_out} != set()
    written = (folder / "predictions.json").stat().st_mtime_ns
    begun = {point.name: (folder / point.dir / "recipe.json").stat().st_mtime_ns for point in points}
    assert all(begun[point.name] < written for point in fitted) and all(begun[point.name] > written for point in held_out)
    quantities = {(one["name"], one["quantity"]) for one in document["checks"]}
    said = {(run["name"], q) for run in predictions["runs"] for q, found in run["predicted"].items() if "value" in found}
    assert quantities == said
    for one in document["checks"]:
        assert one["inside"] == (one["low"] <= one["measured"] <= one["high"])
    assert not list(folder.glob("runs/*-u0.2-*/model.safetensors")), "what is large goes once a point is written"


def test_the_same_command_makes_nothing_again_and_a_larger_grid_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUALITIES", ())  # laws of the loss alone, which are quicker
    folder = tmp_path / "grid"
    some = grid_recipe(folder, widths=[8, 48], users=[0.2, 1.0])
    module.scale(some, quiet=True)
    files = {path: path.read_bytes() for path in (folder / "points.jsonl", folder / "predictions.json")}
    module.scale(some, quiet=True)
    assert all(path.read_bytes() == content for path, content in files.items())
    module.scale(grid_recipe(folder, widths=[8, 48], users=[0.2, 0.5, 1.0]), quiet=True)
    assert (folder / "points.jsonl").read_bytes().startswith(files[folder / "points.jsonl"])
    was, now = (json.loads(text) for text in (files[folder / "predictions.json"], (folder / "predictions.json").read_bytes()))
    assert now["runs"][: len(was["runs"])] == was["runs"] and now | {"runs": was["runs"]} == was, "their runs have begun"
    assert {one["name"] for one in now["runs"]} == {point.name for point in read_points(folder) if point.held_out}
    for changed in ({"targets": 50}, {"checks": 3}):
        with pytest.raises(LargeRecError, match="another recipe"):
            module.scale(grid_recipe(folder, **changed), quiet=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(LargeRecError, match="holds no grid"):
        module.scale(grid_recipe(tmp_path / "notes"), quiet=True)
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_a_grid_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    """Neither where the file of the log has changed, nor with points, or a finished run, that came from another grid."""
    source, _ = finished_grid()
    points = read_points(source)
    assert {point.data_hash for point in points} == {grid_part().split.data_hash}
    folder = Path(shutil.copytree(source, tmp_path / "grid"))
    file = folder / "points.jsonl"
    *first, last = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*first, last.replace(points[-1].data_hash, "0" * 64)]))
    with pytest.raises(LargeRecError, match=rf"points\.jsonl has the point '{points[-1].name}' on other data \(data_hash 000"):
        module.scale(grid_recipe(folder), quiet=True)
    file.write_text("".join(first))
    result = folder / points[-1].dir / "result.json"
    result.write_text(result.read_text().replace(points[-1].data_hash, "0" * 64))
    with pytest.raises(LargeRecError, match=rf"{points[-1].name} has the point"):
        module.scale(grid_recipe(folder), quiet=True)
    log = tmp_path / "log.parquet"
    events = simulate(SimulateOptions(users=160, items=60, events=2000, categories=3)).events
    recipe = recipe_from(GRID | {"data": {"path": str(log)}, "run": {"dir": str(tmp_path / "own")}})
    events.write_parquet(log)
    (tmp_path / "own").mkdir()
    module._check_same_grid(recipe, Bundle(tmp_path / "own"), GridData.of(recipe))
    events.tail(1900).write_parquet(log)
    with pytest.raises(LargeRecError, match=r"a grid on other data .* than the recipe reads now"):
        module.scale(recipe, quiet=True)
    events.write_parquet(log)
    events.tail(1900).write_parquet(tmp_path / "later.parquet")
    two = recipe.scale.model_copy(update={"versions": (str(log), str(tmp_path / "later.parquet"))})
    more = recipe.model_copy(update={"scale": two})
    with pytest.raises(LargeRecError, match="this one cannot grow in place"):
        module._check_same_grid(more, Bundle(tmp_path / "own"), GridData.of(more))


def test_a_killed_grid_goes_on_to_the_same_points(tmp_path: Path) -> None:
    recipe = tmp_path / "grid.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in GRID.items() if not isinstance(value, dict)]
    for key, group in GRID.items():
        flat = group if isinstance(group, dict) and key != "data" else {}
        lines += [f"{key}.{name} = {json.dumps(value)}" for name, value in flat.items()]
    lines += [f"data.simulate.{name} = {value}" for name, value in GRID["data"]["simulate"].items()]
    recipe.write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = tmp_path / "grid"
    child = start_child(["scale", str(recipe), f"run.dir={folder}"], step_seconds=0.02)
    for _ in range(1200):
        if child.poll() is not None or len(read_points(folder)) >= 2:
            break
        time.sleep(0.05)
    time.sleep(0.2)
    child.kill()
    child.communicate()
    assert 2 <= len(read_points(folder)) < len(all_runs()), "it was killed in the middle"
    document = module.scale(grid_recipe(folder), quiet=True)
    whole, _ = finished_grid()
    assert timeless(read_points(folder)) == timeless(read_points(whole))
    ours, theirs = (json.loads((place / "predictions.json").read_text()) for place in (folder, whole))
    assert ours["points_sha256"] == theirs["points_sha256"] and ours["runs"] == theirs["runs"]
    assert document["spent_core_minutes"] > 0


def test_what_the_budget_leaves_out_is_said_and_a_larger_one_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With speeds that are no machine's, so that the plan is the same on all."""
    rate = {"tokens_per_second": 40.0, "validation_seconds": 0.0, "beginning_seconds": 0.0, "cores": 1.0}
    monkeypatch.setattr(schedule, "measured_rate", lambda run, data: rate)
    monkeypatch.setattr(module, "QUALITIES", ())
    folder = tmp_path / "grid"
    document = module.scale(grid_recipe(folder), "1.6 core-minutes", quiet=True)
    names = {point["name"] for point in document["points"]}
    assert document["left_out"] and not names & set(document["left_out"])
    assert names | set(document["left_out"]) == {run.name for run in all_runs()}
    assert document["spent_core_minutes"] <= 1.6
    predictions = json.loads((folder / "predictions.json").read_text())
    whole = module.scale(grid_recipe(folder), "100 core-minutes", quiet=True)
    assert whole["left_out"] == [] and {point["name"] for point in whole["points"]} == {run.name for run in all_runs()}
    again = json.loads((folder / "predictions.json").read_text())
    assert again["runs"][: len(predictions["runs"])] == predictions["runs"] and again["made"] == predictions["made"]
    assert {one["name"] for one in again["runs"]} == {point["name"] for point in whole["points"] if point["held_out"]}
    was, now = ({point["name"]: point["held_out"] for point in one["points"]} for one in (document, whole))
    assert was.items() <= now.items(), "what was held out stays so"


# --- less data


def test_users_of_a_smaller_share_are_among_those_of_a_larger_one() -> None:
    data = grid_part()
    read = []
    for share in (0.2, 0.5, 1.0):
        recipe = grid_recipe(Path("unused"))
        batches = data.batches(recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"users": share})}))
        read.append(set(np.flatnonzero(batches.end_U > batches.first_U)))
        assert len(read[-1]) == round(share * 160)
    assert all(small < large for small, large in itertools.pairwise(read))


def test_the_most_recent_share_is_the_last_by_the_clock() -> None:
    data, recipe = grid_part(), grid_recipe(Path("unused"))
    whole, part = (
        data.batches(recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"recent": share})}))
        for share in (1.0, 0.3)
    )
    time_M = whole.rows.time_M

    def rows(batches: Any) -> set[int]:
        return {row for first, end in zip(batches.first_U, batches.end_U, strict=True) for row in range(first, end)}

    kept, left = rows(part), rows(whole) - rows(part)
    assert len(kept) == pytest.approx(0.3 * (len(kept) + len(left)), rel=0.02)
    assert min(time_M[list(kept)]) >= max(time_M[list(left)])


def test_versions_of_a_log_are_measured_on_the_same_targets(tmp_path: Path) -> None:
    """The second has lost a fifth of its training rows, so that rows, users and items have other numbers there."""
    events = simulate(SimulateOptions(users=160, items=60, events=2000, categories=3)).events
    train = pl.col("timestamp") < datetime(2024, 3, 1, tzinfo=UTC).timestamp() * 1000
    keep = np.random.default_rng(0).random(events.height) < 0.8
    events.write_parquet(tmp_path / "raw.parquet")
    events.filter(~train | pl.Series(keep)).write_parquet(tmp_path / "thin.parquet")
    split = {"protocol": "timeline", "validation_from": "2024-03-01", "test_from": "2024-03-20"}
    versions = [str(tmp_path / f"{name}.parquet") for name in ("raw", "thin")]
    changes = {"data": {"where": "behavior != 'none'"}, "split": split}
    recipe = recipe_from(
        GRID
        | changes
        | {"scale": GRID["scale"] | {"versions": versions, "users": [1.0], "widths": [8]}, "run": {"dir": str(tmp_path / "grid")}}
    )
    data = GridData.of(recipe)
    raw, thin = (data.part(version) for version in versions)
    assert raw.irreducible is None and len(raw.row_N) == len(thin.row_N) == 60

    def asked(part: GridPart) -> list[tuple[Any, ...]]:
        sequences = part.split.sequences
        user_N = np.searchsorted(sequences.offsets_U1, part.row_N, side="right") - 1
        items = sequences.item_ids.gather(sequences.item_N[part.row_N]).to_list()
        return list(zip(sequences.user_ids.gather(user_N).to_list(), items, sequences.time_N[part.row_N].tolist(), strict=True))

    assert asked(raw) == asked(thin)
    runs = {run.name: run for run in planned(recipe, data, tmp_path / "grid")}
    assert runs.keys() == {"hstu-nano-w8-raw-s0", "hstu-nano-w8-thin-s0"}
    whole, less = runs["hstu-nano-w8-raw-s0"], runs["hstu-nano-w8-thin-s0"]
    assert whole.unique_tokens > less.unique_tokens
    point = made(less, thin, [], quiet=True)
    assert np.isfinite(point.loss) and point.unique_tokens == less.unique_tokens
    with pytest.raises(LargeRecError, match="must differ"):
        recipe_from({"scale": {"versions": ["a/log.csv", "b/log.csv"]}})


def test_a_target_without_a_known_history_is_not_asked(tmp_path: Path) -> None:
    """Such a user gets the popularity list, whose scores are counts and no logits: a "cross-entropy" in the hundreds."""
    events = simulate(SimulateOptions(users=160, items=60, events=2000, categories=3)).events.select(
        "user_id", "item_id", "timestamp"
    )
    known, later = events["item_id"][0], [datetime(2024, 3, day, tzinfo=UTC).timestamp() * 1000 for day in (5, 6)]
    new = pl.DataFrame({"user_id": ["new", "new"], "item_id": ["unheard", known], "timestamp": later})
    pl.concat([events, new.cast(events.schema)]).write_parquet(tmp_path / "log.parquet")  # type: ignore[arg-type]
    split = {"protocol": "timeline", "validation_from": "2024-03-01", "test_from": "2024-03-20"}
    scale = GRID["scale"] | {"targets": 10_000}
    recipe = recipe_from(GRID | {"data": {"path": str(tmp_path / "log.parquet")}, "split": split, "scale": scale})
    part = GridData.of(recipe).part(None)
    sequences = part.split.sequences
    asked = set(sequences.user_ids.gather(np.searchsorted(sequences.offsets_U1, part.row_N, side="right") - 1))
    all_rows = sequences.targets("validation")
    everyone = set(sequences.user_ids.gather(np.searchsorted(sequences.offsets_U1, all_rows, side="right") - 1))
    assert "new" in everyone and "new" not in asked and len(asked) > 50
