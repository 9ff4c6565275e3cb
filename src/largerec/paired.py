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
    """Resampled means of several rows, drawn alike for all: users with replacement, and the spread of seeds.

    A target's value depends on its user and on the chance of a training, so both are drawn. Users are many and are drawn anew
    (bootstrap). Seeds are few: drawn with replacement, three numbers have no tails, and an interval of 95 % holds the truth in 82
    of a hundred. So their mean is drawn from a normal distribution with the rows' covariance over seeds, divided by S, and an
    interval is stretched to Student's t, with the degrees of freedom of a variance of which the seeds' part is estimated from S
    numbers (Satterthwaite 1946). With one seed only users are drawn.

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
        centre_RA = mean_RAS.mean(axis=2)
        mean_AS = np.stack([row.mean(axis=1) for row in rows.values()])
        spread_AS = (mean_AS - mean_AS.mean(axis=1, keepdims=True)) / np.sqrt(max(1, seeds * (seeds - 1)))
        spread_RA = rng.standard_normal((samples, seeds)) @ spread_AS.T
        self._seeds = seeds
        self._of_users: dict[str, Floats] = dict(zip(rows, centre_RA.T, strict=True))
        self._of_seeds: dict[str, Floats] = dict(zip(rows, (mean_AS.mean(axis=1) + spread_RA).T, strict=True))
        self.draws: dict[str, Floats] = dict(zip(rows, (centre_RA + spread_RA).T, strict=True))

    def of(self, function: Callable[[Mapping[str, Any]], Any]) -> dict[str, float | None]:
        """``value`` of a function of the rows' means, with ``low`` and ``high`` of its interval; None where it is no number."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.asarray(function({name: np.float64(mean) for name, mean in self.mean.items()}))
            drawn = np.asarray(function(self.draws))
            sides = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2]) if np.isfinite(drawn).all() else [np.nan] * 2
            low, high = value + (sides - value) * self._stretch(function)
        numbers = {"value": float(value), "low": float(low), "high": float(high)}
        return {name: number if np.isfinite(number) else None for name, number in numbers.items()}

    def _stretch(self, function: Callable[[Mapping[str, Any]], Any]) -> float:
        """How much wider than a normal interval one is whose variance is known of users and estimated from a few seeds."""
        users, seeds = (float(np.var(np.asarray(function(draws)))) for draws in (self._of_users, self._of_seeds))
        if not seeds > 1e-12 * users:  # one seed, or seeds that are alike
            return 1.0
        from scipy import stats  # here, since most verbs need none of it

        freedom, side = (self._seeds - 1) * (1 + users / seeds) ** 2, (1 + self.level) / 2
        return float(stats.t.ppf(side, freedom) / stats.norm.ppf(side))

    def gain(self, row: str, over: str) -> dict[str, dict[str, float | None]]:
        """The ``difference`` of a row and another, and the ``relative`` one, as a share of the other."""
        return {
            "difference": self.of(lambda mean: mean[row] - mean[over]),
            "relative": self.of(lambda mean: mean[row] / mean[over] - 1),
        }
