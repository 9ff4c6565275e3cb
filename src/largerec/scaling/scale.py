"""``largerec scale``: small runs, laws fitted to them, predictions written down, and only then the large runs that check them.

Everything lies in ``run.dir`` (docs/scale.md): ``plan.json``, ``rates.json``, ``points.jsonl``, ``runs/NAME``,
``predictions.json``, ``spent.json`` and ``scale.json``. The same command goes on after a kill; with a larger budget it makes more
of the grid.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from largerec.bundle import NOT_OF_TRAINING, Bundle, flatten
from largerec.doctor import processor
from largerec.errors import LargeRecError
from largerec.grid import core_minutes
from largerec.recipe import Recipe
from largerec.scaling.choice import Place
from largerec.scaling.data import GridData
from largerec.scaling.laws import Law, Refused, between_seeds, fit_all, predicted_by, summary
from largerec.scaling.points import FILE, Point, read_points, write_point
from largerec.scaling.runs import Clock, OutOfBudget, check_data, cleared, made
from largerec.scaling.schedule import Plan, Planned, planned, with_costs, within_budget
from largerec.writing import make_folder

PREDICTIONS = "predictions.json"
QUALITIES = ("ndcg@10", "recall@10")
NOT_OF_POINTS = ("seconds",)  # what may differ between two makings of a point


def scale(recipe: Recipe, budget: str | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Make a recipe's grid in ``run.dir`` within a budget of core-minutes, fit laws, predict the largest runs, make them, check.

    Returns what ``scale.json`` holds: the points, the laws, predictions and checks, what was spent and what was left out.

    Raises:
        LargeRecError: the grid fits no budget or recipe, or the folder holds another grid.
        KeyboardInterrupt: after Ctrl-C, with all states saved; the same call goes on.
    """
    if recipe.train.device != "cpu":
        raise LargeRecError(
            f"a grid is paid for in core-minutes, and train.device={recipe.train.device!r} spends none; use train.device=cpu."
        )
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    text = budget or recipe.scale.budget
    limit = None if text is None else core_minutes(text)
    place = Bundle(recipe.run.dir)
    make_folder(place.path, "run.dir")
    clock = Clock(place, limit)
    try:
        return _scaled(recipe, place, clock, quiet=quiet)
    finally:
        if place.file("grid.json").is_file():  # else the folder is not ours
            clock.save()


def _scaled(recipe: Recipe, place: Bundle, clock: Clock, *, quiet: bool) -> dict[str, Any]:
    """The phases: what is fitted to, the laws and what they foretell, what is held out, and the comparison."""
    data, limit = GridData.of(recipe), clock.budget
    _check_same_grid(recipe, place, data)
    runs, points = planned(recipe, data, place.path), read_points(place.path)
    _check_same_data(runs, points, data, place)
    finished = {point.name for point in points}
    runs = with_costs(runs, data, place, finished)
    begun = (_foretold_before(place) & _begun(place)) - finished
    plan = within_budget(runs, limit, recipe.scale.hold_out, points, clock.core_minutes, begun)
    place.write_json("plan.json", {"budget_core_minutes": limit, **plan.to_json()})
    pace = Pace()
    late = _make(plan.fitted, plan, data, clock, pace, quiet=quiet)
    fitted = sorted(read_points(place.path), key=lambda point: (point.flops, point.name))  # in whatever order they were made
    fitted = [point for point in fitted if not point.held_out]
    laws, refused = fit_all(fitted, QUALITIES, seed=recipe.seed)
    predictions = predict(place, fitted, plan.held_out, laws, refused, data)
    late += _make(plan.held_out, plan, data, clock, pace, quiet=quiet)
    return _written(recipe, place, plan, laws, refused, predictions, late, clock)


# --- runs


@dataclass
class Pace:
    """Core-minutes that the runs of this session were expected to cost and did: what the others are expected to is off alike."""

    expected: float = 0.0
    spent: float = 0.0

    @property
    def slower(self) -> float:
        return min(3.0, max(1.0, self.spent / self.expected)) if self.expected else 1.0


def _make(runs: Sequence[Planned], plan: Plan, data: GridData, clock: Clock, pace: Pace, *, quiet: bool) -> list[str]:
    """Make the runs that have no point yet; returns the names of those for which the budget did not last."""
    late = []
    for run in runs:
        place = clock.place
        points = read_points(place.path)
        if run.name in {point.name for point in points}:
            cleared(run)
            continue
        begun = clock.core_minutes
        left = math.inf if clock.budget is None else clock.budget * 1.02 - begun
        largest = max(plan.held_out, key=lambda other: other.flops, default=run)
        awaited = largest.name not in {run.name, *(point.name for point in points)}
        reserved = pace.slower * largest.core_minutes if awaited else 0.0
        # No run displaces the largest; but where that fits no more, nothing is kept for it.
        if pace.slower * run.core_minutes + (reserved if reserved <= left else 0.0) > left:
            late.append(run.name)
            continue
        try:
            write_point(place.path, made(run, data.part(run.cell.version), points, spent=clock.check, quiet=quiet))
        except OutOfBudget:
            late.append(run.name)
            continue
        pace.expected, pace.spent = pace.expected + run.core_minutes, pace.spent + clock.core_minutes - begun
        cleared(run)
        clock.save()
    return late


def _check_same_grid(recipe: Recipe, place: Bundle, data: GridData) -> None:
    """Keep, or compare, what the points depend on: those of another grid would mislead the laws."""
    own = {key: value for key, value in flatten(recipe.to_json()).items() if not key.startswith(NOT_OF_TRAINING)}
    own |= {
        "data": [part.split.data_hash for part in data.parts.values()],
        "scale.targets": recipe.scale.targets,
        "scale.checks": recipe.scale.checks,
    }
    own |= {"scale.hopeless": recipe.scale.hopeless, "seed": recipe.seed}
    own = json.loads(json.dumps(own))
    if not place.file("grid.json").is_file():
        if any(place.path.iterdir()):
            raise LargeRecError(f"run.dir={str(place.path)!r} is not empty and holds no grid; choose another folder.")
        return place.write_json("grid.json", own)
    old = place.read_json("grid.json")
    changed = sorted(key for key in old.keys() | own.keys() if old.get(key) != own.get(key))
    if changed == ["data"] and len(own["data"]) > len(old["data"]) and own["data"][: len(old["data"])] == old["data"]:
        raise LargeRecError(
            f"run.dir={str(place.path)!r} holds a grid of {len(old['data'])} version(s) of the log, and scale.versions now names "
            f"{len(own['data'])}. Of all lists of [scale] this one cannot grow in place: choose another run.dir."
        )
    if changed == ["data"]:
        was, now = (", ".join(one[:12] for one in hashes) for hashes in (old["data"], own["data"]))
        raise LargeRecError(
            f"run.dir={str(place.path)!r} holds a grid on other data (data_hash {was}) than the recipe reads now ({now}). Points "
            "on different data make no law: give the log that it was made on, or choose another run.dir."
        )
    if changed:
        shown = ", ".join(f"{key}: {old.get(key)!r} -> {own.get(key)!r}" for key in changed[:4])
        raise LargeRecError(
            f"run.dir={str(place.path)!r} holds a grid of another recipe ({shown}). Only the lists of [scale] but versions "
            "may grow. Remove the folder, or choose another run.dir."
        )
    return None


def _check_same_data(runs: Sequence[Planned], points: Sequence[Point], data: GridData, place: Bundle) -> None:
    """Every point must be on the data that its run would read now, others on some of the grid's: laws are fitted to all."""
    hashes = {run.name: data.part(run.cell.version).split.data_hash for run in runs}
    known = [part.split.data_hash for part in data.parts.values()]
    for point in points:
        other = point.data_hash if point.data_hash in known else known[0]
        check_data(point, hashes.get(point.name, other), place.file(FILE))


# --- predictions


def points_hash(points: Sequence[Point]) -> str:
    """SHA-256 of the points that laws are fitted to, without their wall time."""
    lines = [{key: value for key, value in point.to_json().items() if key not in NOT_OF_POINTS} for point in points]
    return hashlib.sha256("\n".join(json.dumps(line, sort_keys=True) for line in lines).encode()).hexdigest()


def predict(
    place: Bundle,
    fitted: Sequence[Point],
    runs: Sequence[Planned],
    laws: Sequence[Law],
    refused: Sequence[dict[str, Any]],
    data: GridData,
) -> dict[str, Any]:
    """Write down what the laws foretell of the held-out runs, with the hash of the points of the fit, before those begin.

    Once a run has begun that was foretold, whether or not it is asked for now, nothing that was said is written again. Runs that
    came later are added, each with the date, points and hash of its own prediction. Of one that has begun without a prediction
    nothing is foretold any more.
    """
    begun, foretold = _begun(place), _foretold_before(place)
    told: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "points_sha256": points_hash(fitted),
        "points": [point.name for point in fitted],
        "refused": list(refused),
    }
    ahead = [run for run in runs if run.name not in begun]
    if not foretold & begun:
        found = told | {"runs": [_foretold(run, laws, data) for run in ahead]}
        if place.file(PREDICTIONS).is_file():
            old = place.read_json(PREDICTIONS)
            if old["points_sha256"] == told["points_sha256"] and foretold == {run.name for run in ahead}:
                return old
    else:
        found = place.read_json(PREDICTIONS)
        added = [_foretold(run, laws, data) | told for run in ahead if run.name not in foretold]
        if not added:
            return found
        found["runs"] += added
    place.write_json(PREDICTIONS, found)
    return found


def _begun(place: Bundle) -> set[str]:
    """Names of runs that have begun; of a finished one the folder may have been removed since."""
    folders = {folder.name for folder in (place.path / "runs").glob("*")}
    return folders | {point.name for point in read_points(place.path)}


def _foretold_before(place: Bundle) -> set[str]:
    """Names of runs of which there is a prediction."""
    return {one["name"] for one in place.read_json(PREDICTIONS)["runs"]} if place.file(PREDICTIONS).is_file() else set()


def place_of(run: Planned, data: GridData) -> Place:
    """Where a planned run stands among the points."""
    part = data.part(run.cell.version)
    return Place(
        family=run.cell.family,
        layers=run.layers,
        width=run.width,
        params=float(run.params),
        tokens=float(run.tokens),
        unique_tokens=float(run.unique_tokens),
        flops=run.flops,
        history=run.history,
        catalogue=run.catalogue,
        entropy=part.entropy(part.batches(run.recipe)),
        regime=run.regime,
    )


def _foretold(run: Planned, laws: Sequence[Law], data: GridData) -> dict[str, Any]:
    told = {
        law.quantity: {"refused": str(said), "code": said.code} if isinstance(said, Refused) else said.to_json()
        for law, said in predicted_by(laws, place_of(run, data))
    }
    return {"name": run.name, "flops": run.flops, "params": run.params, "tokens": run.tokens, "predicted": told}


def checks(predictions: dict[str, Any], points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """Each written prediction of a finished run beside what was measured: ``error`` is relative, ``inside`` whether the interval
    holds it, ``times_largest`` its operations over those of the largest run of its kind that the law was fitted to."""
    by_name = {point.name: point for point in points if point.state == "finished"}
    for run in predictions["runs"]:
        point = by_name.get(run["name"])
        known = [by_name[name] for name in run.get("points", predictions["points"]) if name in by_name]
        for quantity, said in run["predicted"].items() if point is not None else ():
            assert point is not None
            measured = point.loss if quantity == "loss" else point.metrics.get(quantity, math.nan)
            if "value" not in said or not math.isfinite(measured):
                continue
            largest = max((p.flops for p in known if (p.family, p.regime) == (point.family, point.regime)), default=None)
            yield {
                "name": point.name,
                "quantity": quantity,
                "measured": measured,
                "times_largest": None if largest is None else point.flops / largest,
                **{key: said[key] for key in ("value", "low", "high", "level")},
                "error": said["value"] / measured - 1,
                "inside": said["low"] <= measured <= said["high"],
            }


# --- the document


def _written(
    recipe: Recipe,
    place: Bundle,
    plan: Plan,
    laws: Sequence[Law],
    refused: Sequence[dict[str, Any]],
    predictions: dict[str, Any],
    late: Sequence[str],
    clock: Clock,
) -> dict[str, Any]:
    points = read_points(place.path)
    checked = list(checks(predictions, points))
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "name": recipe.name,
        "dir": recipe.run.dir,
        "budget_core_minutes": clock.budget,
        "spent_core_minutes": round(clock.core_minutes, 2),
        "left_out": [*late, *(run.name for run in plan.left_out)],
        "points": [point.to_json() for point in points],
        "laws": [law.to_json() for law in laws],
        "refused": list(refused),
        "predictions": predictions,
        "checks": checked,
        "summary": summary(checked),
        "between_seeds": between_seeds(points, dict.fromkeys(law.quantity for law in laws)),
    }
    place.write_json("scale.json", document)
    return document
