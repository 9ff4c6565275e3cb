"""A law: fitted to small runs, asked about larger ones with an interval, and checked on them. It refuses what it cannot know.

A law holds for one family, one regime (events seen once, or repeated), one length of history and one catalogue. What it
foretells is one run, so that an interval holds the uncertainty of the law and the noise of a run, both widened by how far the law
was off on the largest runs of its own fit when it had not seen them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from largerec.errors import LargeRecError
from largerec.scaling.choice import (
    FEWEST_CELLS,
    Choice,
    Measured,
    Place,
    choose,
    coordinates,
    fit_form,
    noise_of_a_run,
    value_of,
    values_at,
)
from largerec.scaling.fitting import FEWEST_REPEATED, Fit, within_cells
from largerec.scaling.forms import COMPUTE, LOSS_FORMS, QUALITY_FORMS, Floats, Form
from largerec.scaling.points import Point, Regime

LEVEL = 0.9
DRAWS = 200
LEAST_SPAN = 8.0  # of compute between the smallest and the largest run of a fit
FARTHEST = 32.0  # times the largest compute, size or data of a fit
SAME_CATALOGUE = 1.1
LEAST_GAIN = 0.05  # of the loss of popularity: runs that are not below it by so much have not begun to learn what comes next
LEAST_FLOOR = 0.05  # of the lowest loss: a floor below is none that the runs could tell
SLOWEST = 0.1  # exponent of size or data: with a lower one it takes more than a thousand times as much to halve that term
Code = Literal["few", "span", "plateau", "mixed", "form", "regime", "far", "along", "other"]


class Refused(LargeRecError):
    """A law that cannot be fitted, or a place that it says nothing about; ``code`` names the rule."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Prediction:
    """What one run would reach: ``low`` to ``high`` holds it with probability ``level``."""

    quantity: str
    value: float
    low: float
    high: float
    level: float = LEVEL

    @property
    def width(self) -> float:
        """Relative to the value."""
        return (self.high - self.low) / self.value

    def to_json(self) -> dict[str, Any]:
        return {"quantity": self.quantity, "value": self.value, "low": self.low, "high": self.high, "level": self.level}


@dataclass(frozen=True)
class Key:
    """What points must share to stand in one law."""

    family: str
    regime: Regime
    history: int

    def __str__(self) -> str:
        return f"{self.family}, {self.regime}, histories of {self.history}"


@dataclass(frozen=True)
class Law:
    """A fitted law. ``fits``: of the form taken and those blended with it (:class:`largerec.scaling.choice.Choice`). ``loss``:
    the law of the loss that forms of the loss build on. ``floor``: the loss that no size and no data would beat, by the form
    taken, with an interval; None: it is not told."""

    key: Key
    quantity: str
    choice: Choice
    fits: tuple[Fit, ...]
    measured: Measured
    loss: Law | None
    floor: Prediction | None = None

    @property
    def fit(self) -> Fit:
        """Of the form taken."""
        return self.fits[0]

    @property
    def form(self) -> Form:
        return self.fit.form

    @property
    def uses(self) -> frozenset[str]:
        """Coordinates that the law is a function of, those of the loss law below it instead of the loss."""
        own = set(self.form.uses) - {"loss"}
        return frozenset(own | (set(self.loss.form.uses) if "loss" in self.form.uses and self.loss is not None else set()))

    def refusal(self, place: Place) -> Refused | None:
        """Why the law says nothing about a place, or None."""
        key = Key(place.family, place.regime, place.history)
        own = self.measured.points
        if place.regime != self.key.regime and place.family == self.key.family:
            return Refused(
                "regime",
                f"{place.tokens:,.0f} tokens of {place.unique_tokens:,.0f} different ones are {place.regime} training, but this "
                f"law is of {self.key.regime} runs: repeated events are worth less than new ones. Add runs of that regime to "
                "the grid, or ask for other data.",
            )
        if key != self.key:
            return Refused("other", f"this law is of {self.key}, but was asked about {key}. Add such runs to the grid.")
        catalogue = own[-1].catalogue
        if max(place.catalogue, catalogue) > SAME_CATALOGUE * min(place.catalogue, catalogue):
            return Refused(
                "other",
                f"this law is of a catalogue of {catalogue:,} items, but was asked about {place.catalogue:,}: the loss depends "
                "on it. Run the grid on the new catalogue.",
            )
        return self._too_far(place)

    def _too_far(self, place: Place) -> Refused | None:
        at, fitted = coordinates([place]), coordinates(self.measured.points)
        if not self.uses <= at.keys():
            return Refused("along", "this law scales data by entropy, and the entropy of the place is not known.")
        words = {"flops": "compute", "params": "parameters", "tokens": "tokens", "unique": "different events"}
        for name, word in words.items():
            asked, low, high = float(at[name][0]), float(fitted[name].min()), float(fitted[name].max())
            if asked > FARTHEST * high or asked < low / FARTHEST:
                return Refused(
                    "far",
                    f"{asked:.3g} {word} is more than {FARTHEST:g} times away from the runs of the fit ({low:.3g} to "
                    f"{high:.3g}). Train a run between the two, or ask for at most {FARTHEST * high:.3g}.",
                )
        for name in ("params", "tokens"):
            asked, low, high = float(at[name][0]), float(fitted[name].min()), float(fitted[name].max())
            if name not in self.uses and not self._covers(name) and not low / 1.1 <= asked <= high * 1.1:
                return Refused(
                    "along",
                    f"the law that foretold the fit's own largest runs best, {self.form.name}, knows nothing of {words[name]}: "
                    f"the fit has {low:.3g} to {high:.3g} of them, and {asked:.3g} lies outside. Add runs with three different "
                    "numbers of them and more, long enough to show what they do.",
                )
        return None

    def _covers(self, name: str) -> bool:
        """Whether the law speaks of size or data by another name."""
        others = {"params": {"layers", "width"}, "tokens": {"unique", "data_times", "data_over"}}
        return bool(others[name] & self.uses)

    def values(self, places: Sequence[Place]) -> Floats:
        """The law's values at places [n], without an interval and without a refusal."""
        members = self._members
        logs_Fn = np.log([values_at(own, places, loss)[0] for own, loss, _ in members])
        found: Floats = np.exp(np.average(logs_Fn, axis=0, weights=[weight for _, _, weight in members]))
        return found

    @property
    def _members(self) -> list[tuple[Fit, Fit | None, float]]:
        """What is blended: a fit, that of the loss below it, and a weight. Each form of the loss stands on each of the loss's."""
        below: list[tuple[Fit | None, float]] = [(None, 1.0)]
        if self.loss is not None and "loss" in self.form.uses:
            below = list(zip(self.loss.fits, self.loss.choice.weights.tolist(), strict=True))
        own = list(zip(self.fits, self.choice.weights.tolist(), strict=True))
        return [(fitted, loss, weight * share) for fitted, weight in own for loss, share in below]

    def samples(self, place: Place) -> Floats:
        """Draws of what one run at a place would reach [K]: of each form as many as its weight says, around its own value.

        Raises:
            Refused: the law says nothing about it.
        """
        if (refused := self.refusal(place)) is not None:
            raise refused
        members, drawn = self._members, list[Floats]()
        ends = np.round(DRAWS * np.cumsum([0.0, *(weight for _, _, weight in members)])).astype(int)
        for (own, loss, _), count in zip(members, np.diff(ends).tolist(), strict=True):
            value_n, draws_Bn = values_at(own, [place], loss)
            log_B = np.log(draws_Bn[:, 0])
            noise = float(noise_of_a_run(own, [place], loss)[0])
            noise_BK = noise * np.random.default_rng(0).standard_t(own.dof, (len(log_B), 20))
            off_BK = (log_B - np.median(log_B))[:, None] + noise_BK
            drawn.append((value_n[0] * np.exp(self.choice.widen * off_BK[:count])).ravel())
        return np.concatenate(drawn)

    def predict(self, place: Place, level: float = LEVEL) -> Prediction:
        """What one run at a place would reach.

        Raises:
            Refused: the law says nothing about it.
        """
        drawn = self.samples(place)
        value = self.values([place])[0]
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return Prediction(self.quantity, float(value), float(low), float(high), level)

    def to_json(self) -> dict[str, Any]:
        """The law in words and numbers; it is made again from the points, never read back."""
        x = coordinates(self.measured.points)
        return {
            "family": self.key.family,
            "regime": self.key.regime,
            "history": self.key.history,
            "quantity": self.quantity,
            "form": self.form.name,
            "formula": self.form.formula,
            "parameters": self.form.natural(self.fit.theta_P, self.fit.centre),
            "share_of_cells": self.choice.share,
            "runs": len(self.measured.points),
            "cells": self.measured.cells,
            "noise": self.fit.noise,
            "widened": self.choice.widen,
            "hidden_error": self.choice.blended[0].error,
            "span": {name: [float(x[name].min()), float(x[name].max())] for name in ("params", "tokens", "flops")},
            "floor": None if self.floor is None else self.floor.to_json(),
            "blend": [
                {"form": trial.form.name, "share": trial.share, "weight": weight}
                for trial, weight in zip(self.choice.blended, self.choice.weights.tolist(), strict=True)
            ],
            "trials": [
                {"form": t.form.name, "share": t.share, "error": t.error, "parameters": len(t.form.parameters)}
                for t in self.choice.trials
            ],
        }


def groups(points: Iterable[Point]) -> dict[Key, list[Point]]:
    """Points that may stand in one law, by what they share; sorted by it."""
    found: dict[Key, list[Point]] = {}
    for point in points:
        found.setdefault(Key(point.family, point.regime, point.history), []).append(point)
    return {key: found[key] for key in sorted(found, key=lambda key: (key.family, key.regime, key.history))}


def fit_law(points: Sequence[Point], quantity: str = "loss", *, loss: Law | None = None, seed: int = 0) -> Law:
    """Fit a law to the runs of one group; held-out and unfinished runs are left aside.

    ``loss``: the law of their loss, which a law of another quantity may build on.

    Raises:
        Refused: the points are of several groups or catalogues, too few, or too near each other.
    """
    own = [point for point in points if not point.held_out]
    keys = list(groups(own))
    if len(keys) > 1:
        raise Refused(
            "mixed", f"a law is of one family, regime and history, and these points are of {len(keys)}: {_listed(keys)}."
        )
    measured = Measured.of(own, quantity)
    named = f"{quantity} of {keys[0]}" if keys else quantity
    if not measured.points and any(point.state == "finished" for point in own):
        known = ", ".join(sorted({"loss", *(name for point in own for name in point.metrics)}))
        raise Refused("few", f"{named}: no run has measured it; there are {known}.")
    if measured.cells < FEWEST_CELLS:
        raise Refused(
            "few",
            f"{named}: {measured.cells} different finished runs (seeds are not counted) are too few for a law, which "
            f"needs at least {FEWEST_CELLS}. Add sizes or lengths to the grid.",
        )
    x = coordinates(measured.points)
    span = float(x["flops"].max() / x["flops"].min())
    if span < LEAST_SPAN:
        raise Refused(
            "span",
            f"{named}: the largest run has {span:.1f} times the compute of the smallest; a law needs at least {LEAST_SPAN:g} "
            "times. Add smaller or larger runs to the grid.",
        )
    best = min(measured.points, key=lambda point: point.loss)
    if best.loss > (1 - LEAST_GAIN) * best.popularity:
        raise Refused(
            "plateau",
            f"{named}: the best run has a loss of {best.loss:.3f}, and how often items come gives {best.popularity:.3f}. "
            "So near to it no run has learned what follows what, and a law of such runs says nothing of those that do. Train "
            "longer (scale.users, train.max_epochs) or with more steps (a smaller batch.tokens).",
        )
    catalogues = [point.catalogue for point in measured.points]
    if max(catalogues) > SAME_CATALOGUE * min(catalogues):
        raise Refused(
            "mixed",
            f"{named}: catalogues of {min(catalogues):,} to {max(catalogues):,} items stand in one law, and the loss depends on "
            "them. Keep the catalogue the same over the grid.",
        )
    below = None if loss is None else (loss.choice, loss.measured)
    forms = LOSS_FORMS if quantity == "loss" else QUALITY_FORMS
    choice = choose(forms, measured, keys[0].regime, loss=below, seed=seed)
    if choice is None:
        raise Refused(
            "form",
            f"{named}: no form can be told from {measured.cells} different runs; they need at least three sizes or three lengths "
            "of training, and two more runs than a form has parameters (3 to 7).",
        )
    fits = tuple(fit_form(trial.form, measured.largest(trial.share), draws=DRAWS, seed=seed) for trial in choice.blended)
    floor = _floor(fits, choice.widen, float(measured.y_n.min())) if quantity == "loss" else None
    return Law(keys[0], quantity, choice, fits, measured, loss, floor)


def _listed(keys: Sequence[Key]) -> str:
    return "; ".join(map(str, keys))


def _floor(fits: Sequence[Fit], widen: float, lowest: float) -> Prediction | None:
    """E of the form taken, the first; the interval spans what all that are blended say of theirs.

    None where one of them has no E beside a term of size and one of data: there may be none. None, too, where a term of the form
    taken needs a thousand times the size or data to halve: it is not told from a constant, and what is left for E is chance.
    """
    own = fits[0]
    if not all("log E" in one.form.parameters and {"params", "tokens"} <= set(one.form.uses) for one in fits):
        return None
    slowest = min(own.theta_P[own.form.parameters.index(name)] for name in ("alpha", "beta"))
    if slowest < SLOWEST:
        return None
    around = []
    for one in fits:
        at = one.form.parameters.index("log E")
        off_B = widen * (one.draws_BP[:, at] - np.median(one.draws_BP[:, at]))
        around.append(one.theta_P[at] + np.array([0.0, *np.quantile(off_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]))
    told_F3 = np.exp(np.minimum(around, np.log(lowest)))
    if told_F3[0, 0] < LEAST_FLOOR * lowest:
        return None  # the runs are too far from it to tell it
    return Prediction("irreducible", float(told_F3[0, 0]), float(told_F3[:, 1].min()), float(told_F3[:, 2].max()))


def fit_all(points: Sequence[Point], quantities: Sequence[str], *, seed: int = 0) -> tuple[list[Law], list[dict[str, Any]]]:
    """Laws of the loss and of further quantities for every group of points, and what was refused, as plain values."""
    laws: list[Law] = []
    refused: list[dict[str, Any]] = []
    for key, own in groups(points).items():
        loss: Law | None = None
        for quantity in dict.fromkeys(["loss", *quantities]):
            try:
                law = fit_law(own, quantity, loss=loss, seed=seed)
            except Refused as error:
                refused.append(
                    {"family": key.family, "regime": key.regime, "history": key.history, "quantity": quantity}
                    | {"code": error.code, "why": str(error)}
                )
                continue
            laws.append(law)
            loss = law if quantity == "loss" else loss
    return laws, refused


def fit_to_every_run(
    points: Sequence[Point], quantities: Sequence[str], *, seed: int = 0
) -> tuple[list[Law], list[dict[str, Any]]]:
    """Laws of all finished runs, those that were held out too: after the check they are the largest that are known."""
    return fit_all([replace(point, held_out=False) for point in points], quantities, seed=seed)


def compute_law(points: Sequence[Point], seed: int = 0) -> Fit | None:
    """The loss of the best runs as a function of compute alone, from runs that no cheaper one beats; None: fewer than five."""
    measured = Measured.of([point for point in points if not point.held_out], "loss")
    best, kept = np.inf, []
    for number in np.argsort(measured.flops_C, kind="stable").tolist():
        mean = float(measured.y_n[measured.cell_n == number].mean())
        if mean < best:
            best = mean
            kept.append(number)
    return fit_form(COMPUTE, measured.kept(np.array(kept)), draws=DRAWS, seed=seed) if len(kept) >= 5 else None


def predicted_by(laws: Iterable[Law], place: Place) -> Iterator[tuple[Law, Prediction | Refused]]:
    """What each law of a place's group says of it, be it a refusal."""
    for law in laws:
        if law.key != Key(place.family, place.regime, place.history):
            continue
        try:
            yield law, law.predict(place)
        except Refused as error:
            yield law, error


def law_for(laws: Sequence[Law], place: Place, quantity: str) -> Law | None:
    """The law of a quantity for the group of a place."""
    key = Key(place.family, place.regime, place.history)
    return next((law for law in laws if law.key == key and law.quantity == quantity), None)


@dataclass(frozen=True)
class Checked:
    """A foretold run that was then measured."""

    name: str
    quantity: str
    predicted: Prediction
    measured: float
    factor: float

    @property
    def error(self) -> float:
        """Relative: foretold over measured, less one."""
        return self.predicted.value / self.measured - 1

    @property
    def inside(self) -> bool:
        return self.predicted.low <= self.measured <= self.predicted.high

    def to_json(self) -> dict[str, Any]:
        own = {"name": self.name, "measured": self.measured, "error": self.error, "inside": self.inside}
        return own | {"width": self.predicted.width, "times_largest": self.factor, **self.predicted.to_json()}


def check(laws: Sequence[Law], points: Sequence[Point]) -> tuple[list[Checked], list[dict[str, Any]]]:
    """Compare finished held-out runs with what laws of the others foretell; second: those that a law refused."""
    rows, refused = [], []
    for point in points:
        place = Place.of(point)
        if not point.held_out or point.state != "finished":
            continue
        for law, said in predicted_by(laws, place):
            if not np.isfinite(value_of(point, law.quantity)):
                continue
            if isinstance(said, Refused):
                refused.append({"name": point.name, "quantity": law.quantity, "code": said.code, "why": str(said)})
                continue
            factor = point.flops / float(law.measured.flops_C.max())
            rows.append(Checked(point.name, law.quantity, said, value_of(point, law.quantity), factor))
    return rows, refused


FAR = 8.0
"""A run of so many times the largest fitted one's operations is what laws are wanted for."""


def between_seeds(points: Sequence[Point], quantities: Iterable[str]) -> dict[str, dict[str, float]]:
    """How far apart finished runs are that differ in the seed alone, for each quantity with three repeated runs or more.

    ``noise``: a run's standard deviation around the mean of its cell, relative, pooled over ``cells``; ``least_error``: how far
    off single runs would be, in the mean, from a law that knew the mean of each cell, which no law can be better than.
    """
    found = {}
    for quantity in quantities:
        squares, free, cells = 0.0, 0, 0
        for own in groups(points).values():
            measured = Measured.of(own, quantity)
            own_squares, own_free = within_cells(np.log(measured.y_n), measured.cell_n)
            squares, free = squares + own_squares, free + own_free
            cells += int((np.bincount(measured.cell_n) > 1).sum())
        if free >= FEWEST_REPEATED:
            noise = float(np.sqrt(squares / free))
            found[quantity] = {"cells": float(cells), "noise": noise, "least_error": noise * float(np.sqrt(2 / np.pi))}
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each quantity of checks as they are written down: how far off, how many inside their interval, how wide intervals are
    (relative to the value); ``far``: the same of the runs with ``times_largest`` of :data:`FAR` or more, None where none is."""
    found = {}
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        own = [row for row in rows if row["quantity"] == quantity]
        far = [row for row in own if (row.get("times_largest") or 0.0) >= FAR]
        found[quantity] = {**_summed(own), "far": _summed(far) if far else None}
    return found


def _summed(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    errors = np.array([row["error"] for row in rows])
    widths = np.array([(row["high"] - row["low"]) / row["value"] for row in rows])
    return {
        "runs": float(len(rows)),
        "mean_error": float(np.abs(errors).mean()),
        "largest_error": float(np.abs(errors).max()),
        "bias": float(errors.mean()),
        "coverage": float(np.mean([row["inside"] for row in rows])),
        "mean_width": float(widths.mean()),
        "widest": float(widths.max()),
    }
