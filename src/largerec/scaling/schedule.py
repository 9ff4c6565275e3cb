"""Which runs of a grid are made, in which order, and what they are expected to cost: formulas times a measured speed."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from largerec.accounting import embedding_parameters, training_flops_per_token, weightless_model
from largerec.bundle import Bundle
from largerec.errors import LargeRecError
from largerec.estimate import training_rate
from largerec.grid import Cell, cells
from largerec.models import non_embedding_parameters
from largerec.progress import Progress
from largerec.recipe import Recipe, TuneOptions
from largerec.scaling.data import GridData, GridPart, judge
from largerec.scaling.points import Point, Regime, regime_of
from largerec.train import Trainer

RATES = "rates.json"
MEASURED_SECONDS = 1.0
LARGEST_SHARE = 0.5  # of a budget, for the largest run: the rest is for those that are fitted to
WARMUP_SHARE = 10  # of a run's steps at most one in so many is warm-up


@dataclass(frozen=True)
class Planned:
    """A run of a grid before it is made. ``core_minutes``: expected, with its validations and beginning."""

    cell: Cell
    recipe: Recipe
    layers: int
    width: int
    params: int
    params_embedding: int
    flops_per_token: float
    tokens: int
    unique_tokens: int
    steps: int
    history: int
    catalogue: int
    core_minutes: float = 0.0
    held_out: bool = False

    @property
    def name(self) -> str:
        return self.cell.name

    @property
    def flops(self) -> float:
        return self.flops_per_token * self.tokens

    @property
    def regime(self) -> Regime:
        return regime_of(self.tokens, self.unique_tokens)

    def to_json(self) -> dict[str, Any]:
        """What a reader of the plan wants to know."""
        names = ("name", "layers", "width", "params", "params_embedding", "tokens", "unique_tokens", "steps", "flops", "held_out")
        return {name: getattr(self, name) for name in names} | {"core_minutes": round(self.core_minutes, 3)}


def planned(recipe: Recipe, data: GridData, folder: Path) -> list[Planned]:
    """All runs that a recipe's grid asks for, by rising operations; without expected costs.

    Raises:
        LargeRecError: a combination is no recipe, or leaves nothing to train on.
    """
    asked = cells(recipe.scale, recipe.model.name, recipe.seed, recipe.batch.users, recipe.batch.recent)
    found = [_planned(recipe, cell, data, folder) for cell in asked]
    return sorted(found, key=lambda one: (one.flops, one.name))


def _planned(recipe: Recipe, cell: Cell, data: GridData, folder: Path) -> Planned:
    own = _of_cell(recipe, cell, folder)
    part, train = data.part(cell.version), own.train
    batches = part.batches(own)
    whole = batches.steps_of(train.max_epochs)
    steps = min(train.max_steps or whole, whole)
    # A short run has a short warm-up, and as many validations as a long one.
    optim = own.optim.model_copy(update={"warmup_steps": min(own.optim.warmup_steps, steps // WARMUP_SHARE)})
    train = train.model_copy(update={"evaluate_every": -(-steps // recipe.scale.checks)})
    own = own.model_copy(update={"optim": optim, "train": train}).resolved()
    tokens = round(train.max_epochs * batches.tokens_per_epoch * steps / whole)
    catalogue = part.split.tokenizer.size
    model = weightless_model(own, catalogue)
    depth, width, _ = own.model.shape
    return Planned(
        cell=cell,
        recipe=own,
        layers=depth,
        width=width,
        params=non_embedding_parameters(model),
        params_embedding=embedding_parameters(model),
        flops_per_token=training_flops_per_token(own, model, catalogue, batches.mean_context),
        tokens=tokens,
        unique_tokens=batches.unique_targets,
        steps=steps,
        history=own.batch.max_length,
        catalogue=catalogue,
    )


def _of_cell(recipe: Recipe, cell: Cell, folder: Path) -> Recipe:
    """The recipe of one run, in its own folder."""
    one = recipe.with_family(cell.family)
    kept = one.model.model_dump(exclude_unset=True)
    if cell.size is not None:
        kept = {key: value for key, value in kept.items() if key not in one.model.by_size} | {"size": cell.size}
    kept |= {"name": cell.family} | ({} if cell.width is None else {"width": cell.width})
    batch: dict[str, Any] = {"users": cell.users, "recent": cell.recent}
    batch |= {} if cell.history is None else {"max_length": cell.history}
    train = {} if cell.epochs is None else {"max_epochs": cell.epochs}
    run = one.run.model_copy(update={"dir": str(folder / "runs" / cell.name), "compare": (), "overwrite": False})
    return one.model_copy(
        update={
            "name": cell.name,
            "seed": cell.seed,
            "model": type(one.model).model_validate(kept),
            "batch": one.batch.model_copy(update=batch),
            "train": one.train.model_copy(update=train),
            "data": one.data if cell.version is None else one.data.model_copy(update={"path": cell.version}),
            "run": run,
            "tune": TuneOptions(),
        }
    )


# --- costs


def measured_rate(run: Planned, data: GridPart) -> dict[str, float]:
    """About a second of real training steps and one validation, in a temporary folder: tokens a second, and seconds of a
    validation and of beginning a run; ``cores``: threads used."""
    begun = time.perf_counter()
    with TemporaryDirectory(prefix="largerec-scale-") as folder, Progress(quiet=True) as progress:
        moved = run.recipe.model_copy(update={"run": run.recipe.run.model_copy(update={"dir": f"{folder}/run"})})
        trainer = Trainer(moved, progress, data.split)
        beginning = time.perf_counter() - begun
        rate = training_rate(trainer, MEASURED_SECONDS)
        started = time.perf_counter()
        trainer.scorer.prepared()
        judge(trainer.engine, data.row_N)
        validation = time.perf_counter() - started
    return {
        "tokens_per_second": rate,
        "validation_seconds": validation,
        "beginning_seconds": beginning,
        "cores": float(torch.get_num_threads()),
    }


def with_costs(runs: Sequence[Planned], data: GridData, place: Bundle, made: Collection[str] = ()) -> list[Planned]:
    """The runs with expected core-minutes, those that are not ``made`` and were interrupted with what is left of them. What was
    measured is kept in ``rates.json``, a speed for each shape of model."""
    rates: dict[str, dict[str, float]] = place.read_json(RATES) if place.file(RATES).is_file() else {}
    cores, found = float(torch.get_num_threads()), []
    for run in runs:
        shape = run.cell.shape
        if rates.get(shape, {}).get("cores") != cores:
            rates[shape] = measured_rate(run, data.part(run.cell.version))
            place.write_json(RATES, rates)
        rate = rates[shape]
        steps, tokens = (run.steps, run.tokens) if run.name in made else _left(run)
        checks = -(-steps // (run.recipe.train.evaluate_every or run.steps)) + 1  # and one of the kept weights
        seconds = tokens / rate["tokens_per_second"] + checks * rate["validation_seconds"] + rate["beginning_seconds"]
        found.append(replace(run, core_minutes=seconds * cores / 60))
    return found


def _left(run: Planned) -> tuple[int, int]:
    """Steps and tokens that a run has still to make: all, or those after its checkpoint."""
    bundle = Bundle(run.recipe.run.dir)
    if not bundle.file("state.safetensors").is_file():
        return run.steps, run.tokens
    try:
        state = json.loads(bundle.read_metadata("state.safetensors")["state"])
        return max(0, run.steps - int(state["step"])), max(0, run.tokens - int(state["tokens"]))
    except (KeyError, TypeError, ValueError):
        return run.steps, run.tokens  # the trainer says what is wrong with it


# --- what is made


@dataclass(frozen=True)
class Plan:
    """The runs that are fitted to; the held-out ones, which come after the predictions; and what is left out. By operations."""

    fitted: tuple[Planned, ...]
    held_out: tuple[Planned, ...]
    left_out: tuple[Planned, ...]

    @property
    def core_minutes(self) -> float:
        return sum(run.core_minutes for run in (*self.fitted, *self.held_out))

    def to_json(self) -> dict[str, Any]:
        return {
            "core_minutes": round(self.core_minutes, 2),
            **{name: [run.to_json() for run in getattr(self, name)] for name in ("fitted", "held_out", "left_out")},
        }


def within_budget(
    runs: Sequence[Planned],
    budget: float | None,
    hold_out: float,
    points: Sequence[Point] = (),
    spent: float = 0.0,
    begun: Collection[str] = (),
) -> Plan:
    """Spend a budget of core-minutes on runs that are sorted by operations.

    The largest run that takes at most half of the budget is held out. Runs of at most a ``hold_out``-th of its operations are
    fitted to, and taken cheapest first; what is left buys runs between the two, which are held out too. Without a budget all are
    made. Runs that have a point already cost nothing more than what is ``spent``, and stay what they were. Held-out runs that
    were interrupted (``begun``) stay held out too, and go before all others.

    Raises:
        LargeRecError: no run fits half of the budget, or none is small enough to be fitted to.
    """
    by_cost = sorted(runs, key=lambda run: (run.core_minutes, run.name))
    was_held_out = dict.fromkeys(begun, True) | {point.name: point.held_out for point in points}
    affordable = [
        run for run in runs if budget is None or run.core_minutes <= LARGEST_SHARE * budget or was_held_out.get(run.name)
    ]
    if not affordable:
        raise LargeRecError(
            f"a budget of {budget:g} core-minutes buys no run of this grid twice over: the cheapest, {by_cost[0].name}, takes "
            f"about {by_cost[0].core_minutes:.2f}. Raise --budget, or make the grid smaller (scale.sizes, scale.users)."
        )
    top = affordable[-1]
    small = [run for run in by_cost if run.flops * hold_out <= top.flops]
    if not small:
        raise LargeRecError(
            f"no run of this grid needs at most a {hold_out:g}th of the operations of {top.name}, so that none could be fitted "
            "to. Spread scale.sizes or scale.users wider, or lower scale.hold_out."
        )
    between = [run for run in by_cost if run.flops * hold_out > top.flops and run.flops <= top.flops]
    interrupted = [run for run in by_cost if run.name in begun]
    taken = {run.name for run in runs if run.name in {point.name for point in points}}
    for run in (*interrupted, top, *small, *between):
        if run.name not in taken and (budget is None or spent + run.core_minutes <= budget):
            spent, taken = spent + run.core_minutes, taken | {run.name}
    # Made by rising operations: what is hopeless beside others then depends on no clock.
    kept = [
        replace(run, held_out=was_held_out.get(run.name, run.flops * hold_out > top.flops)) for run in runs if run.name in taken
    ]
    fitted, held_out = (tuple(run for run in kept if run.held_out == which) for which in (False, True))
    return Plan(fitted, held_out, tuple(run for run in runs if run.name not in taken))
