"""How long a request takes with a model of some size: measured on the code that serves, or by operations and a measured speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from largerec.accounting import serving_flops, weightless_model
from largerec.bundle import Bundle
from largerec.engine import Engine
from largerec.engine.engine import build_scorer
from largerec.recipe import Recipe
from largerec.scaling.points import Point

REQUESTS = 30
LIST_LENGTH = 10


@dataclass(frozen=True)
class Serving:
    """Milliseconds of one request: a top list for one user with a full window, without a kept state. ``slow_ms``: nine of ten
    take less; by operations it is not known."""

    ms: float
    slow_ms: float | None
    how: Literal["measured", "by operations"]

    def to_json(self) -> dict[str, Any]:
        return {"ms": self.ms, "slow_ms": self.slow_ms, "how": self.how}


def whole_run(folder: Path, points: Sequence[Point]) -> Bundle | None:
    """A run of the grid whose catalogue and histories are still there."""
    for point in points:
        bundle = Bundle(folder / point.dir)
        if all(bundle.file(name).is_file() for name in ("recipe.json", "vocabulary.parquet", "histories.parquet")):
            return bundle
    return None


class Stopwatch:
    """Measures sizes on one run's catalogue and histories; without a run it goes by operations."""

    def __init__(self, run: Bundle | None, flops_per_second: float) -> None:
        self.flops_per_second = flops_per_second
        self._log = None if run is None else (run.tokenizer(), run.sequences())
        self._found: dict[str, Serving] = {}

    def of(self, recipe: Recipe, catalogue: int) -> Serving:
        """Time a request of a recipe's model. Fresh weights do: time depends on shapes alone."""
        key = f"{recipe.model.name} {recipe.model.shape} {recipe.batch.max_length}"
        if key not in self._found:
            self._found[key] = self._measured(recipe) if self._log is not None else self._by_operations(recipe, catalogue)
        return self._found[key]

    def _measured(self, recipe: Recipe) -> Serving:
        assert self._log is not None
        tokenizer, sequences = self._log
        engine = Engine(build_scorer(recipe, tokenizer, sequences).prepared(), tokenizer, sequences)
        random = np.random.default_rng(0)
        items = tokenizer.vocabulary["item_id"]
        seconds = []
        for _ in range(REQUESTS + 3):
            history = items.gather(random.integers(0, len(items), recipe.batch.max_length)).to_list()
            started = time.perf_counter()
            engine.recommend(histories=[history], k=LIST_LENGTH)
            seconds.append(time.perf_counter() - started)
        own = np.array(seconds[3:]) * 1000
        return Serving(float(np.median(own)), float(np.quantile(own, 0.9)), "measured")

    def _by_operations(self, recipe: Recipe, catalogue: int) -> Serving:
        found = serving_flops(recipe, weightless_model(recipe, catalogue), catalogue, recipe.batch.max_length)
        return Serving(1000 * (found.history + found.catalogue) / self.flops_per_second, None, "by operations")
