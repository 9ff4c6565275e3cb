"""One run of a grid: train it, measure it on the grid's own targets, and write its point. Killed at any moment, it goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from largerec import metrics
from largerec.bundle import Bundle
from largerec.errors import Diverged, LargeRecError
from largerec.progress import Progress
from largerec.scaling.data import SEED, GridPart, judge
from largerec.scaling.points import Point, State, regime_of
from largerec.scaling.schedule import Planned
from largerec.train import Trainer

POINT = "point"
"""Where a run's result.json holds its point."""
LARGE = ("model.safetensors", "state.safetensors", "histories.parquet", "vocabulary.parquet")
BOOTSTRAP = 1000


class Hopeless(Exception):
    """A run was given up."""


class OutOfBudget(Exception):
    """The budget ended within a run, which may be taken up with a larger one."""


class GridTrainer(Trainer):
    """A trainer that validates on the grid's targets and keeps the weights with the lowest cross-entropy."""

    def __init__(self, run: Planned, data: GridPart, progress: Progress) -> None:
        self.grid_rows = data.row_N
        super().__init__(run.recipe, progress, data.split)

    def judged(self) -> tuple[dict[str, float], float]:
        loss_N, rank_N = judge(self.engine, self.grid_rows)
        loss = float(loss_N.mean())
        if not math.isfinite(loss):
            raise Diverged(f"the validation loss of step {self.state.step} is {loss}: training diverged.")
        return {"loss": loss, **metrics.summarise(rank_N, (10,))}, -loss

    def keep(self) -> None:
        """Write a checkpoint, from which the run may be taken up."""
        self._save()


def made(
    run: Planned,
    data: GridPart,
    points: Sequence[Point],
    *,
    spent: Callable[[], None] = lambda: None,
    quiet: bool = False,
) -> Point:
    """Train a run, or take it up, and return its point; ``points``: those that were made before, which say what is hopeless.

    ``spent`` is called at each validation and may raise :class:`OutOfBudget`, which leaves the run to be taken up.

    Raises:
        LargeRecError: as :func:`largerec.train.train`, but a run that diverges is a point that failed.
    """
    bundle = Bundle(run.recipe.run.dir)
    if bundle.file("result.json").is_file():  # killed between the result and the point
        found = bundle.read_json("result.json").get(POINT)
        if not isinstance(found, dict):
            raise LargeRecError(f"{bundle.path} holds a finished run that is no grid's; move it away and run the grid again.")
        point = Point.from_json(found, str(bundle.file("result.json")))
        check_data(point, data.split.data_hash, bundle.path)
        return point
    with Progress(quiet=quiet) as progress:
        trainer = GridTrainer(run, data, progress)

        def watch() -> None:
            validations = _validations(bundle)
            if hopeless(run, validations, points):
                raise Hopeless
            if validations[-1]["step"] < run.steps:
                trainer.keep()
                spent()

        trainer.on_validation = watch
        state: State = "finished"
        try:
            trainer.run()
        except Hopeless:
            state = "stopped"
        except Diverged:
            state = "failed"
        finally:
            trainer.on_validation = lambda: None  # a circle would keep the run's folder locked
            trainer.close()
        point = _point(run, trainer, data, state)
        result = trainer.result(data.row_N) if trainer.state.best_step else {}
        bundle.write_json("result.json", result | {POINT: point.to_json()})
    return point


def check_data(point: Point, data_hash: str, place: Path) -> None:
    """Refuse a point on other data: its loss is not to be compared.

    Raises:
        LargeRecError: the data is not that which the grid reads now.
    """
    if point.data_hash != data_hash:
        raise LargeRecError(
            f"{place} has the point {point.name!r} on other data (data_hash {point.data_hash[:12]}) than the grid reads now "
            f"({data_hash[:12]}). Give the log that it was made on, or choose another run.dir."
        )


def cleared(run: Planned) -> None:
    """Remove what is large of a run whose point is written; held-out runs stay whole, to be used."""
    for name in () if run.held_out else LARGE:
        (Bundle(run.recipe.run.dir).file(name)).unlink(missing_ok=True)


def hopeless(run: Planned, validations: Sequence[dict[str, Any]], points: Sequence[Point]) -> bool:
    """Whether a run in its second half is far above a finished one that needed no more operations and no more data.

    Only runs with as little data are compared, since a large model is always behind at first, and only of the same family and
    history; the schedule of a run that is under way has not yet ended, which the margin of ``scale.hopeless`` allows for.
    """
    if not validations or validations[-1]["step"] >= run.steps or 2 * validations[-1]["step"] < run.steps:
        return False
    now = validations[-1]
    flops = run.flops_per_token * now["tokens"]
    beside = [
        point.loss
        for point in points
        if point.state == "finished"
        and (point.family, point.history) == (run.cell.family, run.history)
        and point.flops <= flops
        and point.tokens <= now["tokens"]
        and point.unique_tokens <= run.unique_tokens
    ]
    return bool(beside) and now["validation"]["loss"] > min(beside) + run.recipe.scale.hopeless


def _validations(bundle: Bundle) -> list[dict[str, Any]]:
    lines = bundle.file("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "validation" in entry]


def _point(run: Planned, trainer: GridTrainer, data: GridPart, state: State) -> Point:
    """The point of a run that ended. Its values are those of the weights that were kept, of the lowest loss; tokens, steps,
    operations and seconds are what was trained: later passes that no longer help are what a law of repeated data must see. Of
    one that was given up they are those up to the weights that were kept.
    """
    kept, loss, interval, found = trainer.state, math.nan, None, dict[str, float]()
    tokens, steps, seconds = kept.tokens, kept.step, kept.seconds
    if kept.best_step and state != "failed":
        trainer.bundle.load_weights(trainer.model)
        trainer.scorer.prepared()
        loss_N, rank_N = judge(trainer.engine, data.row_N)
        loss, found = float(loss_N.mean()), metrics.summarise(rank_N, (10,))
        user_N = np.searchsorted(data.split.sequences.offsets_U1, data.row_N, side="right")
        low, high = metrics.bootstrap_intervals({"loss": loss_N}, user_N, samples=BOOTSTRAP, seed=SEED)["loss"]
        interval = (low, high)
        if state == "stopped":
            at = next(entry for entry in _validations(trainer.bundle) if entry["step"] == kept.best_step)
            tokens, steps, seconds = at["tokens"], at["step"], at["seconds"]
    return Point(
        name=run.name,
        family=run.cell.family,
        size=run.recipe.model.size,
        seed=run.cell.seed,
        dir=f"runs/{run.name}",
        data_hash=data.split.data_hash,
        layers=run.layers,
        width=run.width,
        params=run.params,
        params_embedding=run.params_embedding,
        tokens=tokens,
        unique_tokens=run.unique_tokens,
        epochs=tokens / run.unique_tokens,
        steps=steps,
        history=run.history,
        catalogue=run.catalogue,
        flops=run.flops_per_token * tokens,
        seconds=round(seconds, 3),
        cores=torch.get_num_threads(),
        loss=loss,
        loss_interval=interval,
        metrics={name: value for name, value in found.items() if not name.startswith("hr@")},
        entropy=data.entropy(trainer.batches),
        regime=regime_of(run.tokens, run.unique_tokens),
        held_out=run.held_out,
        state=state,
        irreducible=data.irreducible,
        popularity=data.popularity,
    )


class Clock:
    """Core-seconds that a grid has spent, over all its sessions: kept in a file, so that a kill loses at most the part of a run
    since its last validation."""

    def __init__(self, place: Bundle, budget: float | None) -> None:
        self.place, self.budget, self.cores = place, budget, torch.get_num_threads()
        before = place.read_json("spent.json") if place.file("spent.json").is_file() else {}
        self._before, self._begun = float(before.get("core_seconds", 0.0)), time.perf_counter()

    @property
    def core_minutes(self) -> float:
        return (self._before + (time.perf_counter() - self._begun) * self.cores) / 60

    def save(self) -> None:
        self.place.write_json("spent.json", {"core_seconds": round(60 * self.core_minutes, 2)})

    def check(self) -> None:
        """Save, and end a run that goes beyond the budget.

        Raises:
            OutOfBudget: the budget is spent.
        """
        self.save()
        if self.budget is not None and self.core_minutes > self.budget:
            raise OutOfBudget
