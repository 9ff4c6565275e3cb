"""``largerec plan``: the recipe that a grid's laws propose for a budget, a target or a latency, and whether it kept its word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from largerec import metrics
from largerec.bundle import NOT_OF_TRAINING, Bundle, flatten
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.grid import core_minutes
from largerec.recipe import Recipe
from largerec.scaling.candidates import MARGIN, Candidate, asked_target, candidates, milliseconds, shapes
from largerec.scaling.choice import Place, near
from largerec.scaling.data import GridData, judge
from largerec.scaling.laws import Law, Refused, fit_to_every_run, law_for, predicted_by
from largerec.scaling.points import FILE, Point, read_points
from largerec.scaling.serving import Serving, Stopwatch, whole_run
from largerec.scaling.spending import Prices
from largerec.tune import as_toml
from largerec.writing import make_folder

USUAL = "ndcg@10"
AS_GOOD = 0.001  # of two recipes within this share of each other in quality the cheaper one is proposed
PLANS, PLANNED = "plans", "planned"
OTHERWISE = ("scale.", "run.")  # what may differ between a proposed recipe and the run that was made of it


@dataclass(frozen=True)
class Asked:
    """What a plan is to keep to: core-minutes of training, a value of a quantity, milliseconds of a request; None: free."""

    budget: float | None
    quantity: str
    target: float | None
    latency: float | None

    @classmethod
    def of(cls, budget: str | None, target: str | None, latency: str | None) -> Asked:
        """Read the command's words.

        Raises:
            LargeRecError: none is given, or one cannot be read.
        """
        if budget is None and target is None and latency is None:
            raise LargeRecError(
                'a plan needs something to keep to: --budget "30 core-minutes", --target "ndcg@10=0.19" or --latency "10 ms".'
            )
        quantity, value = asked_target(target) if target is not None else (USUAL, None)
        return cls(
            None if budget is None else core_minutes(budget),
            quantity,
            value,
            None if latency is None else milliseconds(latency),
        )

    def reached(self, value: float) -> bool:
        if self.target is None:
            return True
        return value <= self.target if self.quantity == "loss" else value >= self.target

    def better(self, value: float) -> float:
        """A number that grows with quality."""
        return -value if self.quantity == "loss" else value


def plan(
    runs: str | Path,
    *,
    budget: str | None = None,
    target: str | None = None,
    latency: str | None = None,
    to: str | Path | None = None,
) -> dict[str, Any]:
    """Propose a recipe from the grid in ``runs``: write TOML that ``largerec run`` trains, and the plan beside it as JSON.

    The laws are fitted to all finished runs, held-out ones too. With a target it is the cheapest recipe that the law lets reach
    it; else the best within budget and latency. Quality is a prediction with its 90 % interval, cost is measured speed with a
    margin of a tenth, serving time is measured where a run of the grid is still whole. ``to``: the file of the recipe; else
    ``RUNS/plans/NAME.toml``. Returns what the JSON holds.

    Raises:
        LargeRecError: there is no grid, no law can be told from it, or nothing within its reach keeps to what was asked.
    """
    folder, asked = Path(runs), Asked.of(budget, target, latency)
    points = grid_points(folder)
    laws, refused = fit_to_every_run(points, [USUAL, asked.quantity])
    usable = [law for law in laws if law.quantity == asked.quantity]
    if not usable:
        why = next((one["why"] for one in refused if one["quantity"] == asked.quantity), None)
        raise LargeRecError(f"{folder} tells no law of {asked.quantity}. {why or 'Its points have no such metric.'}")
    found: list[Candidate] = []
    for law in usable:
        found += [one for shape in shapes(folder, points, law) for one in candidates(shape, law, asked.budget)]
    watch = Stopwatch(whole_run(folder, points), _speed(points))
    chosen, times = _chosen(found, asked, watch)
    return _written(folder, to, asked, chosen, times, points, laws, refused, found)


def grid_points(folder: Path) -> list[Point]:
    """The points of a grid.

    Raises:
        LargeRecError: there are none.
    """
    points = read_points(folder)
    if not points:
        raise LargeRecError(f"{folder} holds no grid: it has no {FILE}. Give the run.dir of a `largerec scale`.")
    return points


def _speed(points: Sequence[Point]) -> float:
    """Operations a second of one core on the largest size, over all families."""
    families = {point.family for point in points if point.state == "finished"}
    return max(
        Prices.of([p for p in points if p.family == one and p.state == "finished"]).flops_per_core_second for one in families
    )


def _chosen(found: Sequence[Candidate], asked: Asked, watch: Stopwatch) -> tuple[Candidate, dict[int, Serving]]:
    """The candidate to propose, and the serving time of every shape that was looked at, by ``id`` of the shape."""
    if not found:
        cheapest = "no size and no amount of data of this grid's families"
        raise LargeRecError(
            f"{cheapest} costs at most {asked.budget:g} core-minutes within what its laws may be asked; raise --budget."
            if asked.budget is not None
            else f"{cheapest} lies where its laws may be asked; add larger runs to the grid."
        )
    times: dict[int, Serving] = {}
    for shape in {id(one.shape): one.shape for one in found}.values():
        times[id(shape)] = watch.of(shape.recipe, shape.catalogue)
    quick = [one for one in found if asked.latency is None or times[id(one.shape)].ms <= asked.latency]
    if not quick:
        fastest = min(times.values(), key=lambda one: one.ms)
        raise LargeRecError(
            f"no size serves a request within {asked.latency:g} ms: the fastest takes {fastest.ms:.2f} ms ({fastest.how}). Allow "
            "more with --latency, shorten batch.max_length, or serve from a kept state."
        )
    reaching = [one for one in quick if asked.reached(one.value)]
    best = max(quick, key=lambda one: asked.better(one.value))
    if not reaching:
        easier = "Raise" if asked.quantity == "loss" else "Lower"
        raise LargeRecError(
            f"{asked.quantity}={asked.target:g} is out of reach: the best that this grid's laws foretell within what was asked "
            f"and within their reach is {best.value:.4g} ({best.shape.family} {best.shape.size}, {best.tokens:,.0f} tokens, "
            f"{best.cost:.1f} core-minutes). {easier} --target, allow more, or get more data."
        )
    if asked.target is not None:
        return min(reaching, key=lambda one: one.cost), times
    near = [one for one in quick if abs(one.value / best.value - 1) <= AS_GOOD]
    return min(near, key=lambda one: one.cost), times


def _written(
    folder: Path,
    to: str | Path | None,
    asked: Asked,
    chosen: Candidate,
    times: dict[int, Serving],
    points: Sequence[Point],
    laws: Sequence[Law],
    refused: Sequence[dict[str, Any]],
    found: Sequence[Candidate],
) -> dict[str, Any]:
    """Write the recipe and the plan."""
    name = f"{chosen.shape.family}-{chosen.shape.layers}x{chosen.shape.width}-{chosen.tokens:.0f}"
    recipe = chosen.shape.recipe_for(chosen.tokens, chosen.regime, name, folder / PLANNED / name)
    file = _file(folder, to, name)
    predicted, unsaid = _predicted(chosen, laws)
    law = law_for(laws, chosen.place, asked.quantity)
    chance = None
    if asked.target is not None and law is not None:
        drawn = law.samples(chosen.place)
        chance = float((drawn <= asked.target if asked.quantity == "loss" else drawn >= asked.target).mean())
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "from": str(folder),
        "recipe": str(file),
        "run_dir": recipe.run.dir,
        "asked": {"budget_core_minutes": asked.budget, "latency_ms": asked.latency, asked.quantity: asked.target},
        "quantity": asked.quantity,
        **_row(chosen, times),
        "steps": round(chosen.tokens / chosen.shape.tokens_per_step),
        "users": recipe.batch.users,
        "epochs": recipe.train.max_epochs,
        "predicted": predicted,
        "chance": chance,
        "runs": None if law is None else len(law.measured.points),
        "made": _made(points, chosen),
        "margin": MARGIN,
        "others": _others(found, asked, times),
        "laws": [one.to_json() for one in laws],
        "refused": [*refused, *unsaid],
        "resolved": recipe.to_json(),
    }
    kept = folder / PLANS / f"{name}.json"  # with --out too, since --check and the page look there
    known = plan_in(kept)
    if known is not None and known.get("resolved") == document["resolved"] and "checked" in known:
        document["checked"] = known["checked"]  # the same plan again: what came of it stays
    make_folder(file.parent, "the folder of --out")
    comment = f"Proposed by largerec plan --from {folder}: {asked.quantity} {chosen.value:.4g}, {chosen.cost:.2f} core-minutes."
    Bundle(file.parent).write_text(file.name, as_toml(recipe, comment))
    make_folder(kept.parent, "the grid's folder of plans")
    for place in dict.fromkeys((file.with_suffix(".json"), kept)):  # the newest, kept, is what --check writes to
        Bundle(place.parent).write_json(place.name, document)
    return document


def _file(folder: Path, to: str | Path | None, name: str) -> Path:
    """Where the recipe goes, with the plan beside it under the same name as JSON.

    Raises:
        LargeRecError: ``to`` does not end in .toml, or a JSON that is no plan stands beside it and would be lost.
    """
    if to is None:
        return folder / PLANS / f"{name}.toml"
    file = Path(to)
    if file.suffix != ".toml":
        raise LargeRecError(f"--out {to}: a recipe's name ends in .toml; write for example --out {file.with_suffix('.toml')}.")
    beside = file.with_suffix(".json")
    if beside.is_file() and plan_in(beside) is None:
        raise LargeRecError(f"--out {to}: the plan would be written to {beside}, which is another file; choose another name.")
    return file


def plan_in(file: Path) -> dict[str, Any] | None:
    """The plan that a JSON file holds, if it does."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return document if isinstance(document, dict) and "predicted" in document else None


def _made(points: Sequence[Point], chosen: Candidate) -> str | None:
    """The folder of a finished run of the grid that is, but for a seventh of the data, what is proposed."""
    own = chosen.place
    for point in points:
        there = Place.of(point)
        same = (there.family, there.layers, there.width, there.regime) == (own.family, own.layers, own.width, own.regime)
        if point.state == "finished" and same and near(there.tokens, own.tokens) and near(there.unique_tokens, own.unique_tokens):
            return point.dir
    return None


def _row(one: Candidate, times: dict[int, Serving]) -> dict[str, Any]:
    shape = one.shape
    return {
        "family": shape.family,
        "size": shape.size,
        "layers": shape.layers,
        "width": shape.width,
        "params": shape.params,
        "tokens": round(one.tokens),
        "flops": shape.flops_per_token * one.tokens,
        "regime": one.regime,
        "value": one.value,
        "core_minutes": one.cost,
        "training_core_minutes": one.shape.training(one.tokens),
        "serving": times[id(shape)].to_json(),
    }


def _predicted(chosen: Candidate, laws: Sequence[Law]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Predictions of every quantity that has a law, and what laws refused."""
    predicted, unsaid = dict[str, Any](), []
    for law, said in predicted_by(laws, chosen.place):
        if isinstance(said, Refused):
            unsaid.append({"quantity": law.quantity, "code": said.code, "why": str(said)})
        else:
            predicted[law.quantity] = said.to_json()
    return predicted, unsaid


def _others(found: Sequence[Candidate], asked: Asked, times: dict[int, Serving]) -> list[dict[str, Any]]:
    """What each other shape would reach: its best candidate, or the cheapest one that reaches the target."""
    rows = []
    by_shape: dict[int, list[Candidate]] = {}
    for one in found:
        by_shape.setdefault(id(one.shape), []).append(one)
    for own in by_shape.values():
        reaching = [one for one in own if asked.reached(one.value)]
        best = max(own, key=lambda one: asked.better(one.value))
        rows.append(_row(min(reaching, key=lambda one: one.cost) if asked.target is not None and reaching else best, times))
    return sorted(rows, key=lambda row: -asked.better(row["value"]))


# --- afterwards


def check_plan(run: str | Path, runs: str | Path | None = None) -> dict[str, Any]:
    """Compare a trained run with the plan that proposed it: each quantity inside its interval or not, and what it cost.

    Quality is measured as the grid's runs are, on the grid's own validation targets. ``runs``: the grid; else it is looked for
    around the run. The plan keeps the result under ``checked``.

    Raises:
        LargeRecError: the run is none or unfinished, or no plan proposed its recipe.
    """
    bundle = Bundle.open(run)
    result = bundle.read_json("result.json")
    recipe = bundle.recipe()
    file = _plan_of(bundle.path, recipe, Path(runs) if runs is not None else None)
    document = Bundle(file.parent).read_json(file.name)
    version = recipe.data.path if recipe.data.path in recipe.scale.versions else None
    data = GridData.of(recipe).part(version)
    loss_N, rank_N = judge(load(bundle.path), data.row_N)
    measured = {"loss": float(loss_N.mean()), **metrics.summarise(rank_N, (10,))}
    rows = [
        {
            "quantity": quantity,
            "measured": measured[quantity],
            **{key: said[key] for key in ("value", "low", "high", "level")},
            "error": said["value"] / measured[quantity] - 1,
            "inside": bool(said["low"] <= measured[quantity] <= said["high"]),
        }
        for quantity, said in document["predicted"].items()
        if quantity in measured and np.isfinite(measured[quantity])
    ]
    spent = result["train_seconds"] * result.get("threads", 1) / 60
    checked = {
        "run": str(bundle.path),
        "date": datetime.now(UTC).date().isoformat(),
        "rows": rows,
        "inside": all(row["inside"] for row in rows),
        "tokens": {"planned": document["tokens"], "trained": result["train_tokens"]},
        "core_minutes": {"planned": document.get("training_core_minutes", document["core_minutes"]), "trained": spent},
        "irreducible": data.irreducible,
    }
    Bundle(file.parent).write_json(file.name, document | {"checked": checked})
    return {"plan": str(file), "asked": document["asked"], **checked}


def _plan_of(run: Path, recipe: Recipe, runs: Path | None) -> Path:
    """The plan's file that proposed a run's recipe, the newest where several did."""
    around = [runs] if runs is not None else [*run.resolve().parents][:3]
    files = [file for folder in around for place in (folder, folder / PLANS) for file in sorted(place.glob("*.json"))]
    own, found = _of_training(recipe.to_json()), []
    for file in files:
        document = plan_in(file)
        if document is not None and _of_training(document.get("resolved", {})) == own:
            found.append(file)
    if not found:
        where = f"{runs}" if runs is not None else "the folders around it"
        raise LargeRecError(
            f"no plan in {where} proposed the recipe of {run}: a plan's JSON stands beside its TOML. Name the grid with --from, "
            "and train the proposed recipe as it is."
        )
    return max(found, key=lambda file: file.stat().st_mtime)


def _of_training(resolved: dict[str, Any]) -> dict[str, Any]:
    skipped = (*NOT_OF_TRAINING, *OTHERWISE)
    own = {key: value for key, value in flatten(resolved).items() if not key.startswith(skipped) and value is not None}
    found: dict[str, Any] = json.loads(json.dumps(own))
    return found
