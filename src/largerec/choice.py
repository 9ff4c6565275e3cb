"""The choice model: which of the shown items is taken, from where it stood, what the user touched, its price and the run's score.

A conditional logit (McFadden 1974, "Conditional logit analysis of qualitative choice behavior"): the probability of item s of a
list is the softmax over the list of ``x_s @ w``. It is stacked on a trained run (Wolpert 1992, "Stacked generalization"): the
run's scores are an input, and the weights are fitted on lists that the run did not learn from, since on its own training clicks a
run's scores look far better than they are. Convex, so that there is one answer and no seed.

L lists, S shown items of all of them, F inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largerec.errors import LargeRecError
from largerec.list_metrics import list_of, places

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RIDGE = 1.0
"""Weight of the squared coefficients of the standardised inputs, in nats: beside thousands of lists it only tames rare inputs."""
FOLDS = 5
PLACES = (1, 2, 4, 8, 16)  # edges of the groups of places, from 0
BELOW = (1, 2, 3, 5, 9)  # edges of the groups of places below, or above, the item that was touched last
ENDLESS = np.iinfo(np.int64).max
EVENTS_AGO = (1, 2, 4, 8, 16)  # edges of the groups of how many events ago an item was touched, 0 for the last event


@dataclass(frozen=True)
class ListContext:
    """What is known of each shown item when the list is shown.

    ``since_S``: events of the history after the item's last one (0: it was the last event; -1: never touched). ``touches_S``: its
    events in the history. ``score_S``: the run's retrieval score, ``-inf`` outside the catalogue. ``count_S``: how often it was a
    training target. ``price_S``: NaN where unknown; None where the log has no prices.
    """

    offsets_L1: Ints
    since_S: Ints
    touches_S: Ints
    score_S: Floats
    count_S: Floats
    price_S: Floats | None = None

    def select(self, kept_L: NDArray[np.bool_]) -> ListContext:
        """The lists of a mask."""
        kept_S = np.repeat(kept_L, np.diff(self.offsets_L1))
        offsets_L1 = np.concatenate([[0], np.cumsum(np.diff(self.offsets_L1)[kept_L])])
        price_S = None if self.price_S is None else self.price_S[kept_S]
        ago_S, touches_S = self.since_S[kept_S], self.touches_S[kept_S]
        return ListContext(offsets_L1, ago_S, touches_S, self.score_S[kept_S], self.count_S[kept_S], price_S)


def _within(value_S: Floats, known_S: NDArray[np.bool_], offsets_L1: Ints) -> Floats:
    """Values less the mean of the known ones of their list, over their deviation there; 0 where unknown or all alike."""
    list_S, lists = list_of(offsets_L1), len(offsets_L1) - 1
    safe_S = np.where(known_S, value_S, 0.0)
    known_L = np.maximum(1, np.bincount(list_S, known_S, lists))
    gap_S = np.where(known_S, safe_S - (np.bincount(list_S, safe_S, lists) / known_L)[list_S], 0.0)
    spread_L = np.sqrt(np.bincount(list_S, gap_S**2, lists) / known_L)
    found: Floats = np.divide(gap_S, spread_L[list_S], out=np.zeros_like(gap_S), where=spread_L[list_S] > 1e-9)
    return found


def _price_rank(price_S: Floats, offsets_L1: Ints) -> Floats:
    """The share of its list's known prices that are lower, from 0 (the cheapest) to below 1; equal prices share; unknown 0.5."""
    list_S = list_of(offsets_L1)
    order_S = np.lexsort((price_S, list_S))  # unknown prices, NaN, come last in their list
    known_S = np.isfinite(price_S)
    start = np.ones(len(price_S), dtype=bool)
    start[1:] = (np.diff(list_S[order_S]) > 0) | (np.diff(price_S[order_S]) != 0)
    lower = np.maximum.accumulate(np.where(start, np.arange(len(price_S)), 0)) - offsets_L1[:-1][list_S[order_S]]
    found = np.empty(len(price_S))
    found[order_S] = lower
    known_L = np.maximum(1, np.bincount(list_S, known_S, len(offsets_L1) - 1))
    return np.where(known_S, found / known_L[list_S], 0.5)


def _last_touched_place(context: ListContext) -> Ints:
    """Place of the shown item that was touched last, -1 where none was. [L]"""
    list_S, place_S = list_of(context.offsets_L1), places(context.offsets_L1)
    order_S = np.lexsort((np.where(context.since_S < 0, ENDLESS, context.since_S), list_S))
    first_L = order_S[context.offsets_L1[:-1]]
    return np.where(context.since_S[first_L] >= 0, place_S[first_L], -1)


def inputs(context: ListContext) -> dict[str, Floats]:
    """The inputs of the choice model by name, each [S].

    Places count apart in lists with a touched item, where they matter less. Nothing here looks at what was chosen.
    """
    offsets_L1, list_S, place_S = context.offsets_L1, list_of(context.offsets_L1), places(context.offsets_L1)
    touched_S = context.since_S >= 0
    some_S = (np.bincount(list_S, touched_S, len(offsets_L1) - 1) > 0)[list_S]
    found: dict[str, Floats] = {}
    for label, own_S in (("", ~some_S), (", one touched", some_S)):
        found[f"log place{label}"] = np.where(own_S, -np.log2(1.0 + place_S), 0.0)
        for low, high in zip((0, *PLACES), PLACES, strict=False):
            found[f"place {low}-{high - 1}{label}"] = (own_S & (place_S >= low) & (place_S < high)).astype(np.float64)
    below_S = place_S - _last_touched_place(context)[list_S]
    for label, far_S in (("below", below_S), ("above", -below_S)):
        for low, high in zip(BELOW, (*BELOW[1:], ENDLESS), strict=True):
            own_S = some_S & ~touched_S & (far_S >= low) & (far_S < high)
            found[f"{low}+ {label} the last touched"] = own_S.astype(np.float64)
    for low, high in zip((0, *EVENTS_AGO), (*EVENTS_AGO, ENDLESS), strict=True):
        own_S = touched_S & (context.since_S >= low) & (context.since_S < high)
        found[f"touched {low}+ events ago"] = own_S.astype(np.float64)
    found["log touches"] = np.log2(1.0 + context.touches_S)
    known_S = np.isfinite(context.score_S)
    found["score in the list"] = _within(context.score_S, known_S, offsets_L1)
    found["score in the list, untouched"] = np.where(touched_S, 0.0, found["score in the list"])
    found["in the catalogue"] = known_S.astype(np.float64)
    found["log training targets"] = np.log1p(context.count_S)
    if context.price_S is not None:
        found["price rank"] = _price_rank(context.price_S, offsets_L1)
        priced_S = np.isfinite(context.price_S) & (context.price_S > 0)
        found["price in the list"] = _within(np.log(np.where(priced_S, context.price_S, 1.0)), priced_S, offsets_L1)
    return found


@dataclass(frozen=True)
class ChoiceModel:
    """Coefficients of the inputs as they are, by name (those of standardised inputs over their deviation)."""

    weights: Mapping[str, float]

    @property
    def knows_prices(self) -> bool:
        return "price rank" in self.weights

    def utilities(self, context: ListContext) -> Floats:
        """``x_s @ w`` of each shown item [S].

        Raises:
            LargeRecError: the model knows prices and none are given, or the other way round.
        """
        if self.knows_prices != (context.price_S is not None):
            said = "was fitted with prices: give one an item" if self.knows_prices else "knows no prices: leave them out"
            raise LargeRecError(f"the run's choice model {said}.")
        given = inputs(context)
        found: Floats = sum((weight * given[name] for name, weight in self.weights.items()), np.zeros(len(context.since_S)))
        return found

    def probabilities(self, context: ListContext) -> Floats:
        """Probability of each shown item, 1 in all for each list [S]."""
        return softmax_of_lists(self.utilities(context), context.offsets_L1)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "conditional logit", "weights": dict(self.weights)}


def from_json(document: Mapping[str, Any], source: str) -> ChoiceModel:
    """Read back what :meth:`ChoiceModel.to_json` wrote.

    Raises:
        LargeRecError: it is something else.
    """
    weights = document.get("weights")
    if document.get("kind") != "conditional logit" or not isinstance(weights, dict):
        raise LargeRecError(f"{source} holds no choice model; restore the file or train again.")
    return ChoiceModel({str(name): float(weight) for name, weight in weights.items()})


def softmax_of_lists(utility_S: Floats, offsets_L1: Ints) -> Floats:
    """Softmax within each list [S]."""
    if not len(utility_S):
        return utility_S
    list_S = list_of(offsets_L1)
    raised_S = np.exp(utility_S - np.maximum.reduceat(utility_S, offsets_L1[:-1])[list_S])
    found: Floats = raised_S / np.add.reduceat(raised_S, offsets_L1[:-1])[list_S]
    return found


def fit_choice(context: ListContext, chosen_L: Ints, ridge: float = RIDGE) -> ChoiceModel:
    """The conditional logit of the greatest likelihood less ``ridge / 2`` times the squared coefficients of standardised inputs.

    Raises:
        LargeRecError: there is no list, or a choice is not in its list.
    """
    length_L = np.diff(context.offsets_L1)
    if not len(chosen_L) or ((chosen_L < 0) | (chosen_L >= length_L)).any():
        raise LargeRecError("a choice model needs lists whose chosen item is among those shown, and there are none or others.")
    given = inputs(context)
    input_SF = np.stack(list(given.values()), axis=1)
    scale_F = input_SF.std(axis=0)
    # An input that never differs has no say; its deviation may be a rounding error instead of 0.
    scale_F[np.ptp(input_SF, axis=0) == 0] = np.inf
    input_SF = input_SF / scale_F
    own_L = context.offsets_L1[:-1] + chosen_L

    def loss(weight_F: Floats) -> tuple[float, Floats]:
        probability_S = softmax_of_lists(input_SF @ weight_F, context.offsets_L1)
        value = -np.log(np.maximum(probability_S[own_L], 1e-300)).sum() + ridge / 2 * weight_F @ weight_F
        slope_F: Floats = probability_S @ input_SF - input_SF[own_L].sum(axis=0) + ridge * weight_F
        return float(value), slope_F

    from scipy.optimize import minimize  # here, since few runs need it and every command would wait half a second for it

    found = minimize(loss, np.zeros(len(given)), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return ChoiceModel(dict(zip(given, (found.x / scale_F).tolist(), strict=True)))


def out_of_fold(context: ListContext, chosen_L: Ints, group_L: Ints, folds: int = FOLDS) -> Floats:
    """Utilities [S] of lists by models that were fitted without the lists of their users: what validation may report.

    Users are dealt to the folds by their number of order, so that a fold is no stretch of the log.
    """
    fold_L = np.unique(group_L, return_inverse=True)[1] % folds
    utility_S = np.zeros(len(context.since_S))
    for fold in np.unique(fold_L):
        own_L = fold_L == fold
        if own_L.all():
            continue  # one user: nothing to learn from
        model = fit_choice(context.select(~own_L), chosen_L[~own_L])
        utility_S[np.repeat(own_L, np.diff(context.offsets_L1))] = model.utilities(context.select(own_L))
    return utility_S
