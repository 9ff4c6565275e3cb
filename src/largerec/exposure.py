"""Exposure bias: a log only holds what was shown, and what is shown often is asked about often. Weights that undo it.

With p the probability that the policy which made the log showed an event's item (its propensity), an event counts 1 / p: the mean
is then that of a log in which every item is shown alike (inverse propensity scoring: Schnabel et al. 2016, "Recommendations as
treatments", section 3; Yang et al. 2018, "Unbiased offline recommender evaluation for missing-not-at-random implicit feedback").
Weights are scaled to the mean 1 over *training* events, so that their scale is no fit to the events that are measured.

Estimators, of values v and weights w over N events: ``plain`` mean(v); ``ips`` mean(w v), unbiased if the propensities are right,
of high variance; ``clipped`` mean(min(w, c) v), of less variance, too low where weights are cut; ``snips`` sum(w v) / sum(w),
self-normalised (Swaminathan & Joachims 2015), nearly unbiased and of less variance. N events, M metrics, G users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from largerec.errors import LargeRecError
from largerec.options import Options

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ESTIMATORS = ("plain", "ips", "clipped", "snips")


class ExposureOptions(Options):
    """Estimates of the metrics as they would be if every item were shown alike, beside the plain ones.

    ``by``: where propensities come from. "column": the log's own column ``propensity``. "popularity": ``(training events of the
    item / those of the most popular) ** power`` (Saito et al. 2020, "Unbiased recommender learning from missing-not-at-random
    implicit feedback", section 5); an item without any, of which it says nothing, counts as an average event. "position": of
    choices among shown items, each place's share of the training choices. ``clip``: the largest weight of the clipped estimate,
    where 1 is the mean.
    """

    by: Literal["popularity", "column", "position"] | None = None
    power: float = Field(default=0.5, gt=0, le=2)
    clip: float = Field(default=10.0, ge=1)


def popularity_propensities(count_V: Ints, power: float) -> Floats:
    """Propensities of items from their training events, in (0, 1]; 1 for the most popular. [V]

    An item without training events gets the one whose weight is that of an average training event: popularity says nothing of
    it, and the smallest propensity would let new items decide the estimate.
    """
    seen_V = count_V > 0
    if not seen_V.any():
        return np.ones(len(count_V))
    found_V: Floats = np.where(seen_V, count_V / count_V.max(), 1.0) ** power
    found_V[~seen_V] = count_V.sum() / (count_V[seen_V] / found_V[seen_V]).sum()
    return found_V


def position_propensities(place_L: Ints, places: int) -> Floats:
    """Propensity of each place from the places of training choices: their share, one choice at each place added, 1 for the most
    frequent. [places] Right if places have nothing to do with how good an item is; else it overstates what a place does."""
    count_P = np.bincount(place_L, minlength=places) + 1.0
    found: Floats = count_P / count_P.max()
    return found


def inverse_weights(propensity_N: Floats, reference_R: Floats) -> Floats:
    """``1 / propensity`` over its mean among reference events, those of training. [N]

    Raises:
        LargeRecError: a propensity is not in (0, 1], or there is no reference event.
    """
    for given in (propensity_N, reference_R):
        wrong_N = ~((given > 0) & (given <= 1))  # also true for NaN
        if wrong_N.any():
            raise LargeRecError(
                f"{wrong_N.sum():,} of {len(given):,} propensities are missing or not above 0 and at most 1, such as "
                f"{given[wrong_N][0]}: a propensity is the probability that the event's item was shown. Mend the column "
                "'propensity', or estimate with evaluate.exposure.by=popularity."
            )
    if not len(reference_R):
        raise LargeRecError("no training event says how large a weight is on average, so there is no scale; move the split.")
    found: Floats = 1.0 / propensity_N / (1.0 / reference_R).mean()
    return found


def effective_size(weight_N: Floats) -> float:
    """How many events of equal weight would tell as much: ``sum(w)^2 / sum(w^2)`` (Kish 1965)."""
    return float(weight_N.sum() ** 2 / (weight_N**2).sum()) if len(weight_N) else 0.0


def weight_summary(weight_N: Floats, clip: float) -> dict[str, float]:
    """What to know of weights before trusting them: ``effective_n``, mean, largest, and the share of events that are clipped."""
    cut = float((weight_N > clip).mean())
    return {"effective_n": effective_size(weight_N), "mean": float(weight_N.mean()), "max": float(weight_N.max()), "clipped": cut}


def weighted_means(
    values: Mapping[str, Floats], weight_N: Floats, group_N: Ints, clip: float, *, level: float, samples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """The four estimates of the mean of each metric, with percentile bootstrap intervals over users.

    Returns:
        metric -> each of `ESTIMATORS`, and ``intervals`` of each.

    Raises:
        LargeRecError: there are no events, or lengths disagree.
    """
    if len({len(weight_N), len(group_N), *(len(value_N) for value_N in values.values())}) > 1 or not len(weight_N):
        raise LargeRecError(
            f"{len(weight_N)} weights, {len(group_N)} users and the values must be of the same events, one or more."
        )
    group_N, one_N, cut_N = np.unique(group_N, return_inverse=True)[1], np.ones(len(weight_N)), np.minimum(weight_N, clip)
    value_MN = np.stack(list(values.values()))
    columns = [one_N, weight_N, *value_MN, *(value_MN * weight_N), *(value_MN * cut_N)]
    sums_GC = np.stack([np.bincount(group_N, column) for column in columns], axis=1)

    def estimates(sum_C: Floats) -> Floats:
        plain_M, ips_M, cut_M = np.split(sum_C[2:], 3)
        return np.stack([plain_M / sum_C[0], ips_M / sum_C[0], cut_M / sum_C[0], ips_M / sum_C[1]])

    generator, users = np.random.default_rng(seed), len(sums_GC)
    drawn_SG = (np.bincount(generator.integers(users, size=users), minlength=users).astype(np.float64) for _ in range(samples))
    low_EM, high_EM = np.quantile(
        [estimates(drawn_G @ sums_GC) for drawn_G in drawn_SG], [(1 - level) / 2, (1 + level) / 2], axis=0
    )
    whole_EM = estimates(np.ones(users) @ sums_GC)
    return {
        name: {
            **dict(zip(ESTIMATORS, whole_EM[:, m].tolist(), strict=True)),
            "intervals": {one: [float(low_EM[e, m]), float(high_EM[e, m])] for e, one in enumerate(ESTIMATORS)},
        }
        for m, name in enumerate(values)
    }


def weighted_measure(
    measure: Callable[[Floats], float], weight_N: Floats, group_N: Ints, clip: float, *, level: float, samples: int, seed: int
) -> dict[str, Any]:
    """The same of a metric that is no mean, given as a function of the events' weights: AUC, normalised entropy.

    Such metrics do not change with the scale of the weights, so that ``ips`` and ``snips`` are one. What cannot be said is None.
    """
    one_N, cut_N = np.ones(len(weight_N)), np.minimum(weight_N, clip)
    given = {"plain": one_N, "ips": weight_N, "clipped": cut_N}
    group_N = np.unique(group_N, return_inverse=True)[1]
    generator, users = np.random.default_rng(seed), int(group_N.max()) + 1
    resampled: dict[str, list[float]] = {name: [] for name in given}
    for _ in range(samples):
        drawn_N = np.bincount(generator.integers(users, size=users), minlength=users)[group_N]
        for name, own_N in given.items():
            resampled[name].append(measure(own_N * drawn_N))
    found: dict[str, Any] = {name: None if np.isnan(value := measure(own_N)) else value for name, own_N in given.items()}
    intervals = {
        name: np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
        for name, values in resampled.items()
        if found[name] is not None and np.isfinite(values).any()
    }
    found["snips"] = found["ips"]
    found["intervals"] = intervals | ({"snips": intervals["ips"]} if "ips" in intervals else {})
    return found
