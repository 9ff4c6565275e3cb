"""Rows of runs on the same targets and with the same seeds: differences and shares, with intervals over users and seeds.

Letters: S seeds, N targets, U users, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from largerec.errors import LargeRecError

Floats = npt.NDArray[np.float64]
CELLS = 4_000_000  # numbers of a block of draws


class Paired:
    """Resampled means of several rows, drawn alike for all: users with replacement, and seeds with replacement.

    A target's value depends on its user and on the chance of a training, so both are drawn (a two-way bootstrap; Owen 2007, "The
    pigeonhole bootstrap"). The deviations of S drawn seeds from their mean are stretched by sqrt(S / (S - 1)), since a plain
    bootstrap of few numbers makes too little of their spread (Rao & Wu 1988). With one seed only users are drawn.

    Attributes:
        mean: the mean of each row. draws: its resampled means [R].
    """

    def __init__(
        self,
        values: Mapping[str, npt.ArrayLike],
        user_N: npt.ArrayLike,
        *,
        level: float = 0.95,
        samples: int = 1000,
        seed: int = 0,
    ) -> None:
        """``values``: row -> value of each seed and target [S, N], the same seeds and targets in each row.

        Raises:
            LargeRecError: shapes differ, or there is nothing to draw.
        """
        rows = {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
        _, user = np.unique(np.asarray(user_N), return_inverse=True)
        shapes = {name: row.shape for name, row in rows.items()}
        if (
            not rows
            or any(len(shape) != 2 or shape[1] != len(user) or not shape[0] for shape in shapes.values())
            or not len(user)
        ):
            raise LargeRecError(f"rows have shapes {shapes} for {len(user)} targets; give one value a seed and target.")
        if len(set(shapes.values())) > 1:
            raise LargeRecError(f"rows have shapes {shapes}; paired rows have the same seeds and targets.")
        self.level, self.mean = level, {name: float(row.mean()) for name, row in rows.items()}
        seeds, users = next(iter(rows.values())).shape[0], int(user.max()) + 1
        columns = [np.bincount(user, weights=one, minlength=users) for row in rows.values() for one in row]
        sums_UC = np.stack([*columns, np.bincount(user, minlength=users).astype(np.float64)], axis=1)
        rng, found, block = np.random.default_rng(seed), [], max(1, CELLS // users)
        for start in range(0, samples, block):
            size = min(block, samples - start)
            drawn = rng.integers(users, size=(size, users)) + users * np.arange(size)[:, None]
            total = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users) @ sums_UC
            found.append(total[:, :-1] / total[:, -1:])
        mean_RAS = np.concatenate(found).reshape(samples, len(rows), seeds)
        chosen_RS = rng.integers(seeds, size=(samples, seeds))
        centre_RA = mean_RAS.mean(axis=2)
        spread_RA = np.take_along_axis(mean_RAS, chosen_RS[:, None, :], axis=2).mean(axis=2) - centre_RA
        stretch = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
        self.draws: dict[str, Floats] = dict(zip(rows, (centre_RA + stretch * spread_RA).T, strict=True))

    def of(self, function: Callable[[Mapping[str, Any]], Any]) -> dict[str, float | None]:
        """``value`` of a function of the rows' means, with ``low`` and ``high`` of its interval; None where it is no number."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.asarray(function({name: np.float64(mean) for name, mean in self.mean.items()}))
            drawn = np.asarray(function(self.draws))
        sides = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2]) if np.isfinite(drawn).all() else [np.nan] * 2
        numbers = {"value": float(value), "low": float(sides[0]), "high": float(sides[1])}
        return {name: number if np.isfinite(number) else None for name, number in numbers.items()}

    def gain(self, row: str, over: str) -> dict[str, dict[str, float | None]]:
        """The ``difference`` of a row and another, and the ``relative`` one, as a share of the other."""
        return {
            "difference": self.of(lambda mean: mean[row] - mean[over]),
            "relative": self.of(lambda mean: mean[row] / mean[over] - 1),
        }
