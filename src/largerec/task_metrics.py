"""Metrics of predicted labels, and their uncertainty: pure functions on numpy arrays.

Suffixes name the axes: N predictions, L labels. A ``weight_N`` counts a prediction that often; resampled users are whole weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from largerec import metrics
from largerec.errors import LargeRecError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SMALLEST = 1e-7
"""Probabilities are kept this far from 0 and 1 in logarithms: float32 cannot tell nearer ones from 1."""
BINS = 10


def _same_length(**arrays: np.ndarray) -> None:
    if len({len(array) for array in arrays.values()}) > 1:
        shown = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
        raise LargeRecError(f"lengths disagree: {shown}; give one of each a prediction.")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise LargeRecError(f"{name} holds NaN or infinity; predictions that are no numbers mean a model that diverged.")


def _auc_of_places(place_N: Ints, label_N: Floats, weight_N: Floats | None = None) -> float:
    """AUC from the place of each score among the distinct ones, rising."""
    weight_N = np.ones(len(label_N)) if weight_N is None else weight_N
    positive_G = np.bincount(place_N, weight_N * label_N)
    negative_G = np.bincount(place_N, weight_N * (1 - label_N))
    pairs = positive_G.sum() * negative_G.sum()
    if pairs == 0:
        return float("nan")
    below_G = np.cumsum(negative_G) - negative_G
    return float(positive_G @ (below_G + negative_G / 2) / pairs)


def auc(score_N: ArrayLike, label_N: ArrayLike, weight_N: ArrayLike | None = None) -> float:
    """Probability that a random positive scores above a random negative, equal scores counting half; NaN with one class only.

    Raises:
        LargeRecError: lengths disagree or a score is not finite.
    """
    scores, label = np.asarray(score_N, dtype=np.float64), np.asarray(label_N, dtype=np.float64)
    weight = None if weight_N is None else np.asarray(weight_N, dtype=np.float64)
    _same_length(scores=scores, labels=label, **({} if weight is None else {"weights": weight}))
    return _auc_of_places(np.unique(scores, return_inverse=True)[1], label, weight)


def user_aucs(score_N: ArrayLike, label_N: ArrayLike, group_N: ArrayLike) -> tuple[Floats, Floats]:
    """AUC within each user (NaN where all labels are alike) and the user's number of predictions, by rising user number."""
    score_N, label_N = np.asarray(score_N, dtype=np.float64), np.asarray(label_N, dtype=np.float64)
    group_N = np.unique(np.asarray(group_N), return_inverse=True)[1]
    _same_length(scores=score_N, labels=label_N, users=group_N)
    order_N = np.lexsort((score_N, group_N))
    score_N, label_N, group_N = score_N[order_N], label_N[order_N], group_N[order_N]
    count_G = np.bincount(group_N).astype(np.float64)
    new_N = np.concatenate([[True], (np.diff(group_N) > 0) | (np.diff(score_N) > 0)])[: len(score_N)]
    tie_N = np.cumsum(new_N) - 1
    place_N = np.arange(1, len(score_N) + 1) - (np.cumsum(count_G) - count_G)[group_N]
    rank_N = (np.bincount(tie_N, place_N) / np.bincount(tie_N))[tie_N]
    positive_G = np.bincount(group_N, label_N)
    pairs_G = positive_G * (count_G - positive_G)
    above_G = np.bincount(group_N, rank_N * label_N) - positive_G * (positive_G + 1) / 2
    return np.divide(above_G, pairs_G, out=np.full(len(pairs_G), np.nan), where=pairs_G > 0), count_G


def gauc(score_N: ArrayLike, label_N: ArrayLike, group_N: ArrayLike) -> float:
    """Mean of the AUC within users, weighted by their number of predictions; users whose labels are all alike are skipped
    (Zhu et al. 2017, "Optimized cost per click in Taobao display advertising", eq. 12). NaN when no user has both labels."""
    auc_G, count_G = user_aucs(score_N, label_N, group_N)
    both_G = ~np.isnan(auc_G)
    return float(np.average(auc_G[both_G], weights=count_G[both_G])) if both_G.any() else float("nan")


def mean_label(probability_NL: Floats) -> Floats:
    """The label that is expected on average [N]: for labels 0 and 1 the probability of 1."""
    mean_N: Floats = probability_NL @ np.arange(probability_NL.shape[1])
    return mean_N


def log_losses(probability_NL: ArrayLike, label_N: ArrayLike) -> Floats:
    """``-log`` of the probability of the label that came, in nats. [N]"""
    probability_NL, label_N = np.asarray(probability_NL, dtype=np.float64), np.asarray(label_N, dtype=np.int64)
    _same_length(probabilities=probability_NL, labels=label_N)
    own_N = np.take_along_axis(probability_NL, label_N[:, None], axis=1)[:, 0]
    losses_N: Floats = -np.log(np.clip(own_N, SMALLEST, 1 - SMALLEST))
    return losses_N


def entropy(share_L: ArrayLike) -> float:
    """Entropy of a distribution in nats."""
    share_L = np.asarray(share_L, dtype=np.float64)
    return float(-(share_L[share_L > 0] * np.log(share_L[share_L > 0])).sum())


def normalised_entropy(probability_NL: ArrayLike, label_N: ArrayLike, weight_N: ArrayLike | None = None) -> float:
    """Mean log loss over that of always saying the measured share of each label (He et al. 2014, "Practical lessons from
    predicting clicks on ads at Facebook", eq. 3); below 1 says that something was learned. NaN with one label only."""
    loss_N, label_N = log_losses(probability_NL, label_N), np.asarray(label_N, dtype=np.int64)
    weight_N = np.ones(len(loss_N)) if weight_N is None else np.asarray(weight_N, dtype=np.float64)
    return _normalised(loss_N, label_N, weight_N)


def _normalised(loss_N: Floats, label_N: Ints, weight_N: Floats) -> float:
    total = weight_N.sum()
    best = entropy(np.bincount(label_N, weight_N) / total)
    return float(weight_N @ loss_N / total / best) if best > 0 else float("nan")


def calibration_error(probability_N: ArrayLike, label_N: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: the mean over predictions of | mean probability - share of positives | of their bin, in bins
    of (nearly) equal numbers; equal probabilities share a bin, as in :func:`largerec.metrics.reliability`."""
    probability_N, label_N = np.asarray(probability_N, dtype=np.float64), np.asarray(label_N, dtype=np.float64)
    _same_length(probabilities=probability_N, labels=label_N)
    edges = np.unique(np.quantile(probability_N, np.linspace(0, 1, bins + 1)[1:-1]))
    gap_B = np.bincount(np.searchsorted(edges, probability_N, side="left"), probability_N - label_N)
    return float(np.abs(gap_B).sum() / len(probability_N))


def resampled_weights(group_N: Ints, samples: int, seed: int) -> Iterator[Floats]:
    """How often each prediction counts when users are drawn with replacement, as many as there are; ``samples`` times. [N]"""
    users, group_N = np.unique(group_N, return_inverse=True)
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        drawn_G = np.bincount(generator.integers(len(users), size=len(users)), minlength=len(users))
        yield drawn_G[group_N].astype(np.float64)


Measures = dict[str, Callable[[Floats], float]]
"""Metrics of one task's predictions, each as a function of how often a prediction counts."""


def measures_of(probability_NL: Floats, label_N: Ints, group_N: Ints) -> Measures:
    """``log_loss`` and ``ne``; of two labels also ``auc`` and ``gauc``, of more ``accuracy``."""
    loss_N = log_losses(probability_NL, label_N)
    measures: Measures = {
        "log_loss": lambda weight_N: float(weight_N @ loss_N / weight_N.sum()),
        "ne": lambda weight_N: _normalised(loss_N, label_N, weight_N),
    }
    if probability_NL.shape[1] == 2:
        score_N, place_N = probability_NL[:, 1], np.unique(probability_NL[:, 1], return_inverse=True)[1]
        auc_G, count_G = user_aucs(score_N, label_N, group_N)
        both_G, first_G = ~np.isnan(auc_G), np.unique(group_N, return_index=True)[1]
        measures["auc"] = lambda weight_N: _auc_of_places(place_N, label_N.astype(np.float64), weight_N)
        measures["gauc"] = lambda weight_N: _mean(auc_G[both_G], (count_G * weight_N[first_G])[both_G])
    else:
        right_N = (probability_NL.argmax(1) == label_N).astype(np.float64)
        measures["accuracy"] = lambda weight_N: float(weight_N @ right_N / weight_N.sum())
    return measures


def resampled(measures: Measures, group_N: Ints, samples: int, seed: int) -> dict[str, Floats]:
    """Each metric of the predictions as they are, and then of every resample of users: [1 + samples].

    The same users are drawn for the same seed, so that what two models say of the same events may be subtracted.
    """
    found: dict[str, list[float]] = {name: [measure(np.ones(len(group_N)))] for name, measure in measures.items()}
    for weight_N in resampled_weights(group_N, samples, seed):
        for name, measure in measures.items():
            found[name].append(measure(weight_N))
    return {name: np.array(values) for name, values in found.items()}


def paired_difference(a_R1: Floats, b_R1: Floats, level: float) -> dict[str, float] | None:
    """``difference``, its percentile interval ``low`` and ``high``, and a two-sided ``p_value``, from what :func:`resampled`
    says of two models on the same events; None where it cannot be said.

    The p-value is twice the smaller share of resamples on either side of zero, one added to both counts (never 0; Davison &
    Hinkley 1997, section 4.2), and 1 for equal models. An AUC is no mean over events, so signs of users cannot be flipped.
    """
    gap_R1 = a_R1 - b_R1
    drawn_R = gap_R1[1:][np.isfinite(gap_R1[1:])]
    if not np.isfinite(gap_R1[0]) or not len(drawn_R):
        return None
    low, high = _interval(drawn_R, level)
    less = min(int((drawn_R <= 0).sum()), int((drawn_R >= 0).sum()))
    p_value = min(1.0, 2 * (1 + less) / (1 + len(drawn_R)))
    return {"difference": float(gap_R1[0]), "low": low, "high": high, "p_value": p_value}


def summarise(
    probability_NL: ArrayLike, label_N: ArrayLike, group_N: ArrayLike, *, level: float = 0.95, samples: int = 1000, seed: int
) -> dict[str, Any]:
    """Every metric of one task with percentile bootstrap intervals over users (of all but the calibration error, which
    resampling biases upwards).

    Two labels: ``auc, gauc, gauc_users, log_loss, ne, ece`` and ``reliability``; more: ``accuracy, log_loss, ne``. Always ``n``,
    ``users``, the share of each label as ``rate`` (of label 1) or ``rates``, and ``intervals``. What cannot be said is None, and
    has no interval; nor has what cannot be said of any resample.

    Raises:
        LargeRecError: there are no predictions, lengths disagree, or a probability is not finite.
    """
    probability_NL, label_N = np.asarray(probability_NL, dtype=np.float64), np.asarray(label_N, dtype=np.int64)
    if len(label_N) == 0:
        raise LargeRecError("there is no event of which the task's label is known; the split left none.")
    group_N = np.unique(np.asarray(group_N), return_inverse=True)[1]
    _same_length(probabilities=probability_NL, labels=label_N, users=group_N)
    binary = probability_NL.shape[1] == 2
    share_L = np.bincount(label_N, minlength=probability_NL.shape[1]) / len(label_N)
    found: dict[str, Any] = {"n": len(label_N), "users": int(group_N.max()) + 1}
    found |= {"rate": float(share_L[1])} if binary else {"rates": share_L.tolist()}
    if binary:
        score_N = probability_NL[:, 1]
        both_G = ~np.isnan(user_aucs(score_N, label_N, group_N)[0])
        found |= {"gauc_users": int(both_G.sum()), "ece": calibration_error(score_N, label_N)}
        found["reliability"] = metrics.reliability(score_N, label_N, group_N, bins=BINS, level=level, seed=seed)
    drawn = resampled(measures_of(probability_NL, label_N, group_N), group_N, samples, seed)
    found |= {name: _or_none(values[0]) for name, values in drawn.items()}
    said = {name: values[1:] for name, values in drawn.items() if found[name] is not None and np.isfinite(values[1:]).any()}
    found["intervals"] = {name: _interval(values, level) for name, values in said.items()}
    return found


def _mean(value_G: Floats, weight_G: Floats) -> float:
    return float(value_G @ weight_G / weight_G.sum()) if weight_G.sum() > 0 else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(values: Floats, level: float) -> list[float]:
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]
