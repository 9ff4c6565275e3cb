"""What could be trained after a grid: its families in every size of the dial, on more or less data, with what each would cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from largerec.accounting import training_flops_per_token, weightless_model
from largerec.bundle import Bundle
from largerec.errors import LargeRecError
from largerec.models import non_embedding_parameters
from largerec.models.dial import TARGETS
from largerec.optim import derived_learning_rate
from largerec.recipe import Recipe
from largerec.scaling.choice import Place
from largerec.scaling.laws import FARTHEST, Law
from largerec.scaling.points import Point, Regime
from largerec.scaling.spending import Prices

MARGIN = 1.1  # training may be so much slower than it was in the grid, and still stay inside a budget
LENGTHS = 40  # amounts of data that are compared for each size
MOST_EPOCHS = 64
WARMUP_SHARE = 10  # of a run's steps at most one in so many is warm-up, as in a grid


@dataclass(frozen=True)
class Shape:
    """A family in one size on the grid's data, with all of what a run of it costs. ``recipe``: of a run on all data, once.

    Attributes:
        unique_tokens: training events there are in all; ``tokens_per_step``: of a training step.
        core_seconds: of a token; ``overhead``: core-seconds of beginning and validating, whatever the data.
    """

    family: str
    size: str
    recipe: Recipe
    layers: int
    width: int
    params: int
    flops_per_token: float
    core_seconds: float
    overhead: float
    unique_tokens: int
    tokens_per_step: float
    catalogue: int
    entropy: float | None

    def cost(self, tokens: float) -> float:
        """Core-minutes of a run on so many tokens: its training with the margin, its beginning and its validations."""
        return self.training(tokens) + self.overhead / 60

    def training(self, tokens: float) -> float:
        """Core-minutes of training alone, with the margin."""
        return MARGIN * tokens * self.core_seconds / 60

    def affordable(self, core_minutes: float) -> float:
        """Tokens that a budget pays for."""
        return max(0.0, (60 * core_minutes - self.overhead) / (MARGIN * self.core_seconds))

    def place(self, tokens: float, regime: Regime) -> Place:
        """Where a run on so many tokens would stand: on a share of the data once, or on all of it several times."""
        unique = min(tokens, self.unique_tokens) if regime == "single-epoch" else self.unique_tokens
        return Place(
            self.family, self.layers, self.width, float(self.params), float(tokens), float(unique), self.flops_per_token * tokens,
            self.recipe.batch.max_length, self.catalogue, self.entropy, regime,
        )  # fmt: skip

    def recipe_for(self, tokens: float, regime: Regime, name: str, folder: Path) -> Recipe:
        """The recipe of a run on about so many tokens, with warm-up and validations as the grid's runs have them."""
        epochs = 1 if regime == "single-epoch" else max(2, round(tokens / self.unique_tokens))
        share = min(1.0, float(f"{tokens / self.unique_tokens:.4g}")) if regime == "single-epoch" else 1.0
        steps = max(1, round(epochs * share * self.unique_tokens / self.tokens_per_step))
        base = self.recipe
        optim = base.optim.model_copy(update={"warmup_steps": min(base.optim.warmup_steps, steps // WARMUP_SHARE)})
        checks = -(-steps // base.scale.checks)
        train = base.train.model_copy(update={"max_epochs": epochs, "max_steps": None, "evaluate_every": checks})
        run = base.run.model_copy(update={"dir": str(folder), "compare": (), "overwrite": False})
        changed = {"name": name, "optim": optim, "train": train, "run": run}
        return base.model_copy(update=changed | {"batch": base.batch.model_copy(update={"users": share})}).resolved()


def run_recipe(folder: Path, point: Point) -> Recipe:
    """The recipe of a point's run.

    Raises:
        LargeRecError: it is gone.
    """
    return Bundle(folder / point.dir).recipe()


def shapes(folder: Path, points: Sequence[Point], law: Law) -> list[Shape]:
    """Every size of the dial for a law's family, and every other shape that the grid has run, as far as the law may be asked."""
    own = [p for p in points if (p.family, p.history) == (law.key.family, law.key.history) and p.state == "finished"]
    recipes = {point.name: run_recipe(folder, point) for point in own}
    warmup = max(recipe.optim.warmup_steps for recipe in recipes.values())
    largest = max(own, key=lambda point: (point.tokens, point.params))
    base = recipes[largest.name]
    base = base.model_copy(update={"optim": base.optim.model_copy(update={"warmup_steps": warmup})})
    found: dict[tuple[int, int], Shape] = {}
    prices, rates, context = Prices.of(own), _rates(folder), mean_context(base, largest)
    given = [(size, None) for size in TARGETS] + [(p.size, p) for p in own]
    for size, point in given:
        recipe = base if point is None else recipes[point.name]
        recipe = (
            of_size(base, str(size))
            if point is None
            else base.model_copy(update={"model": recipe.model, "optim": _rate(base, recipe)})
        )
        shape = _shape(str(size), recipe, largest, context, prices, rates)
        if shape.params <= FARTHEST * max(p.params for p in law.measured.points):
            found.setdefault((shape.layers, shape.width), shape)
    return sorted(found.values(), key=lambda shape: shape.params)


def _rate(base: Recipe, own: Recipe) -> Any:
    return base.optim.model_copy(update={"learning_rate": own.optim.learning_rate})


def of_size(recipe: Recipe, size: str) -> Recipe:
    """A resolved recipe with another size of the dial, and what follows from it; a learning rate set by hand stays."""
    kept = recipe.model.model_dump(exclude=set(recipe.model.by_size)) | {"size": size}
    model = type(recipe.model).model_validate(kept)
    width, rate = recipe.optim.derived_rate_width or recipe.model.shape[1], recipe.optim.learning_rate
    derived = rate is not None and abs(rate / derived_learning_rate(width) - 1) < 1e-6
    optim = recipe.optim.model_copy(update={"learning_rate": None}) if derived else recipe.optim
    return recipe.model_copy(update={"model": model, "optim": optim}).resolved()


def mean_context(recipe: Recipe, point: Point) -> float:
    """Earlier tokens that a token looks at, on average, read from a run's operations, which grow evenly with it."""
    model = weightless_model(recipe, point.catalogue)
    low, high = (training_flops_per_token(recipe, model, point.catalogue, context) for context in (0.0, 100.0))
    return 100 * (point.flops / point.tokens - low) / (high - low) if high > low else 1.0


def _shape(
    size: str, recipe: Recipe, largest: Point, context: float, prices: Prices, rates: dict[str, dict[str, float]]
) -> Shape:
    model = weightless_model(recipe, largest.catalogue)
    each = training_flops_per_token(recipe, model, largest.catalogue, context)
    depth, width, _ = recipe.model.shape
    batch = recipe.batch
    return Shape(
        family=recipe.model.name,
        size=size,
        recipe=recipe.model_copy(update={"batch": batch.model_copy(update={"users": 1.0, "recent": 1.0})}),
        layers=depth,
        width=width,
        params=non_embedding_parameters(model),
        flops_per_token=each,
        core_seconds=prices(each),
        overhead=_overhead(rates, recipe.scale.checks),
        unique_tokens=round(largest.unique_tokens / (batch.users * batch.recent)),
        tokens_per_step=largest.tokens / largest.steps,
        catalogue=largest.catalogue,
        entropy=largest.entropy,
    )


def _rates(folder: Path) -> dict[str, dict[str, float]]:
    file = Bundle(folder).file("rates.json")
    found: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _overhead(rates: dict[str, dict[str, float]], checks: int) -> float:
    """Core-seconds of beginning a run and of its validations: the most that any shape of the grid needed."""
    own = [
        rate["cores"] * (rate["beginning_seconds"] + (checks + 1) * rate["validation_seconds"])
        for rate in rates.values()
        if {"cores", "beginning_seconds", "validation_seconds"} <= rate.keys()
    ]
    return max(own, default=0.0)


@dataclass(frozen=True)
class Candidate:
    """A shape on an amount of data; ``value``: what the law says of it."""

    shape: Shape
    tokens: float
    regime: Regime
    value: float

    @property
    def cost(self) -> float:
        """Core-minutes."""
        return self.shape.cost(self.tokens)

    @property
    def place(self) -> Place:
        return self.shape.place(self.tokens, self.regime)


def candidates(shape: Shape, law: Law, budget: float | None) -> list[Candidate]:
    """A shape on amounts of data that a law may be asked about and a budget of core-minutes pays for, by rising cost."""
    own = law.measured.points
    least, most = min(p.tokens for p in own), FARTHEST * max(p.tokens for p in own)
    most = min(most, FARTHEST * max(p.flops for p in own) / shape.flops_per_token)
    if budget is not None:
        most = min(most, shape.affordable(budget))
    if law.key.regime == "single-epoch":
        most = min(most, shape.unique_tokens)
        # Where all runs had all data once there is one amount.
        amounts = np.geomspace(least, most, LENGTHS).tolist() if most > least else [float(least)] if most == least else []
    else:
        epochs = sorted({round(float(one)) for one in np.geomspace(2, MOST_EPOCHS, LENGTHS)})
        amounts = [float(one * shape.unique_tokens) for one in epochs if least <= one * shape.unique_tokens <= most]
    places = [shape.place(tokens, law.key.regime) for tokens in amounts]
    kept = [(tokens, place) for tokens, place in zip(amounts, places, strict=True) if law.refusal(place) is None]
    if not kept:
        return []
    values = law.values([place for _, place in kept])
    return [Candidate(shape, tokens, law.key.regime, float(v)) for (tokens, _), v in zip(kept, values, strict=True)]


def asked_target(text: str) -> tuple[str, float]:
    """``"ndcg@10=0.19"`` as a quantity and its value.

    Raises:
        LargeRecError: the text is no target.
    """
    quantity, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not equals or not quantity.strip() or not number > 0:
        raise LargeRecError(f'{text!r} is no target; write for example "ndcg@10=0.19" or "loss=5.1".')
    return quantity.strip(), number


def milliseconds(text: str) -> float:
    """``"10 ms"`` or ``"0.5 s"`` as milliseconds.

    Raises:
        LargeRecError: the text is no time above 0.
    """
    number, _, unit = text.strip().partition(" ")
    factor = {"ms": 1.0, "s": 1000.0}.get(unit.strip() or text.strip().lstrip("0123456789."), 0.0)
    try:
        value = float(number.removesuffix("ms").removesuffix("s")) * factor
    except ValueError:
        value = 0.0
    if not value > 0:
        raise LargeRecError(f'{text!r} is no time; write for example "10 ms" or "0.5 s".')
    return value
