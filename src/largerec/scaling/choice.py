"""Which form a law takes: the one that foretells the largest runs of the fit from the smaller ones, and how sure it was in that.

Nothing is judged on the points that it was fitted to. The cells of largest compute are hidden, a half, a third and a quarter of
them in turn, each form is fitted to the rest, and what counts is how far it then lies off the hidden ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largerec.scaling.fitting import Fit, centre_of, fit
from largerec.scaling.forms import Floats, Form
from largerec.scaling.points import Point, Regime

FEWEST_CELLS = 6
HIDDEN = (0.5, 0.34, 0.25)  # shares of the cells, those of largest compute
SHARES = (1.0, 0.67, 0.5)  # of the cells that are fitted to, those of largest compute: the smallest runs may follow no law yet
NEAR = 1.1  # forms whose error is within a tenth of the least are as good; of them the simplest is taken
BLENDED = 1.5  # forms whose error is at most so many times the least have a say beside it
LEAST_ERROR = 1e-6  # below it one error is as good as another
WIDEST = 4.0
SLIGHT = 1e-3  # a step in log loss, to see how steep a form is
USUAL = 5  # parameters of the larger usual forms
SEEDED = re.compile(r"-s\d+$")  # the end of a run's name
SAME = 1.15  # amounts of data that differ by at most so much are much the same
DISTINCT = {"params": 3, "tokens": 3, "passes": 3, "layers": 2, "width": 3, "data_times": 3, "data_over": 3}


@dataclass(frozen=True)
class Place:
    """Where a law is asked: what a run would be. Fields as of :class:`largerec.scaling.points.Point`."""

    family: str
    layers: int
    width: int
    params: float
    tokens: float
    unique_tokens: float
    flops: float
    history: int
    catalogue: int
    entropy: float | None
    regime: Regime

    @classmethod
    def of(cls, point: Point) -> Place:
        return cls(**{name: getattr(point, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Trial:
    """A form on a share of the points. ``error``: root mean square of relative errors on hidden cells, all cuts together."""

    form: Form
    share: float
    error: float
    cells: int


@dataclass(frozen=True)
class Choice:
    """The form taken and all that were tried, by rising error.

    ``blended``: the form taken, and others of the same coordinates whose error is at most 1.5 times the least, each once, on the
    share that it did best on; ``weights``: what each counts for, by 1 / error ** 2 (Bates & Granger 1969), in all 1. Hidden cells
    hardly tell which of them is right, and a mean of forecasts is often nearer than the one that looked best. ``widen``: how many
    times too narrow the intervals of the blend were on hidden cells (1 to 4).
    """

    widen: float
    trials: tuple[Trial, ...]
    blended: tuple[Trial, ...]

    @property
    def form(self) -> Form:
        return self.blended[0].form

    @property
    def share(self) -> float:
        return self.blended[0].share

    @property
    def weights(self) -> Floats:
        return _weights(self.blended)


def _weights(trials: Sequence[Trial]) -> Floats:
    precision = np.array([max(trial.error, LEAST_ERROR) ** -2.0 for trial in trials])
    found: Floats = precision / precision.sum()
    return found


@dataclass(frozen=True)
class Measured:
    """Runs, their cells and the values of a quantity, in an order that does not depend on the order of the runs."""

    points: tuple[Point, ...]
    y_n: Floats
    cell_n: Floats
    flops_C: Floats

    @classmethod
    def of(cls, points: Sequence[Point], quantity: str) -> Measured:
        kept = [p for p in points if p.state == "finished" and np.isfinite(value_of(p, quantity)) and value_of(p, quantity) > 0]
        kept = sorted(kept, key=lambda p: (p.flops, p.params, p.tokens, p.seed, p.name))
        cell_n = cells_of(kept)
        flops_C = np.bincount(cell_n, [p.flops for p in kept]) / np.bincount(cell_n) if kept else np.empty(0)
        return cls(tuple(kept), np.array([value_of(p, quantity) for p in kept]), cell_n, flops_C)

    @property
    def cells(self) -> int:
        return len(self.flops_C)

    def kept(self, cells: Floats) -> Measured:
        """Only the runs of these cells."""
        keep_n = np.isin(self.cell_n, cells)
        points = tuple(point for point, keep in zip(self.points, keep_n, strict=True) if keep)
        number = {int(old): new for new, old in enumerate(np.sort(cells))}
        cell_n = np.array([number[int(old)] for old in self.cell_n[keep_n]], dtype=np.int64)
        return Measured(points, self.y_n[keep_n], cell_n, self.flops_C[np.sort(cells)])

    def largest(self, share: float) -> Measured:
        """The runs of the share of cells with the largest compute."""
        count = max(1, round(share * self.cells))
        return self.kept(np.argsort(self.flops_C, kind="stable")[self.cells - count :])


def cells_of(points: Sequence[Point]) -> Floats:
    """A number for each run, the same for runs that differ in the seed alone, with which their names end [n]."""
    number_n, known = np.zeros(len(points), dtype=np.int64), dict[str, int]()
    for at in sorted(range(len(points)), key=lambda at: (points[at].tokens, points[at].unique_tokens, points[at].seed)):
        number_n[at] = known.setdefault(SEEDED.sub("", points[at].name), len(known))
    return number_n


def near(one: float, other: float) -> bool:
    """Whether two amounts of data are much the same."""
    return max(one, other) <= SAME * min(one, other)


def value_of(point: Point, quantity: str) -> float:
    """``loss``, or a metric; NaN where the run has none."""
    return point.loss if quantity == "loss" else point.metrics.get(quantity, float("nan"))


def coordinates(places: Sequence[Place | Point]) -> dict[str, Floats]:
    """What forms are functions of, but the loss [n]. Data scaled by entropy is there where all entropies are known."""
    named = {"params": "params", "tokens": "tokens", "unique": "unique_tokens", "layers": "layers", "width": "width"}
    x = {key: np.array([getattr(one, name) for one in places], dtype=float) for key, name in named.items()}
    x["flops"] = np.array([one.flops for one in places], dtype=float)
    x["passes"] = np.maximum(x["tokens"] / x["unique"], 1.0)
    entropies = [one.entropy for one in places]
    if all(one is not None and one > 0 for one in entropies):
        entropy = np.array(entropies, dtype=float)
        x |= {"data_times": x["tokens"] * entropy, "data_over": x["tokens"] / entropy}
    return x


def distinct(values: Floats) -> int:
    """How many values differ by more than a twentieth."""
    ordered = np.sort(values)
    return 1 + int((np.diff(np.log(ordered)) > 0.05).sum())


def admitted(form: Form, measured: Measured, regime: Regime, *, has_loss: bool) -> bool:
    """Whether a form can be told from these points: enough cells, and enough different values along what it uses."""
    x = coordinates(measured.points)
    if (form.repeated and regime != "repeated") or ("loss" in form.uses and not has_loss):
        return False
    if measured.cells < max(FEWEST_CELLS, len(form.parameters) + 2):
        return False
    return all(name == "loss" or (name in x and distinct(x[name]) >= DISTINCT.get(name, 1)) for name in form.uses)


def fit_form(
    form: Form, measured: Measured, *, draws: int = 0, seed: int = 0, whole: Measured | None = None, earlier: Fit | None = None
) -> Fit:
    """Fit a form to runs; a form of the loss is fitted to the losses that they had.

    ``earlier``: the fit to some of these runs that this one begins from; ``whole``: the runs whose centre both take.
    """
    centre = None if whole is None else centre_of(_own_coordinates(form, whole))
    starts = None if earlier is None else earlier.ends_SP
    x = _own_coordinates(form, measured)
    return fit(form, x, measured.y_n, measured.cell_n, draws=draws, seed=seed, centre=centre, starts_SP=starts)


def _own_coordinates(form: Form, measured: Measured) -> dict[str, Floats]:
    x = coordinates(measured.points)
    return x | ({"loss": np.array([point.loss for point in measured.points])} if "loss" in form.uses else {})


def values_at(own: Fit, places: Sequence[Place | Point], loss: Fit | None) -> tuple[Floats, Floats]:
    """The law's value at places [n], and those of its repetitions [B, n]. A form of the loss takes what ``loss`` foretells."""
    x = coordinates(places)
    if "loss" not in own.form.uses:
        return own.value(x), own.values(x)
    assert loss is not None
    return own.value(x | {"loss": loss.value(x)}), own.values(x | {"loss": loss.values(x)})


def noise_of_a_run(own: Fit, places: Sequence[Place | Point], loss: Fit | None) -> Floats:
    """Standard deviation of a run around the law, in logs, at places [n].

    A form of the loss was fitted to the losses that runs had, so that its own noise is around those; of a run that is foretold
    the loss is foretold too, and what that run is off there counts by how steep the form is.
    """
    if "loss" not in own.form.uses:
        return np.full(len(places), own.noise)
    assert loss is not None
    x = coordinates(places)
    at_n = loss.value(x)
    steep_n = (np.log(own.value(x | {"loss": at_n * np.exp(SLIGHT)})) - np.log(own.value(x | {"loss": at_n}))) / SLIGHT
    found: Floats = np.hypot(own.noise, steep_n * loss.noise)
    return found


def choose(
    forms: Sequence[Form],
    measured: Measured,
    regime: Regime,
    *,
    loss: tuple[Choice, Measured] | None = None,
    draws: int = 100,
    seed: int = 0,
) -> Choice | None:
    """The form of least error on hidden cells, the simplest of near ones, and what is blended with it; None: none can be told.

    Of near forms of the loss those come first that have a term of both size and data, where the runs differ in both: one without
    could not be asked along the other.
    ``loss``: the choice and the points of the loss law, for forms that are functions of the loss: they are judged with losses
    foretold from the same smaller runs by the form taken there, not with measured ones.
    """
    fitting = [form for form in forms if admitted(form, measured, regime, has_loss=loss is not None)]
    cuts = _cuts(measured, [len(form.parameters) for form in fitting])
    fitting = [form for form in fitting if cuts and len(form.parameters) < len(cuts[0])]
    if not fitting:
        return None
    judges = [_Judge(form, share, measured, tuple(cuts), loss) for form in fitting for share in SHARES]
    judged = [(judge, judge.errors()) for judge in judges]
    trials = [
        Trial(judge.form, judge.share, float(np.sqrt((found[0] ** 2).mean())), len(found[0]))
        for judge, found in judged
        if found is not None
    ]
    if not trials:
        return None
    trials.sort(key=lambda trial: trial.error)
    near = [trial for trial in trials if trial.error <= NEAR * trials[0].error]
    if all("loss" not in form.uses for form in forms):  # of the loss; quality knows both through it
        most = max(_terms(trial.form) for trial in near)
        near = [trial for trial in near if _terms(trial.form) == most]
    best = min(near, key=lambda trial: (len(trial.form.parameters), -trial.share, trial.error))
    blended = {best.form.name: best}
    for trial in trials:  # by rising error, so that the first of a form is on its best share of the cells
        if trial.error <= BLENDED * trials[0].error and set(trial.form.uses) == set(best.form.uses):
            blended.setdefault(trial.form.name, trial)
    weights_F = _weights(tuple(blended.values()))
    known = [_Judge(trial.form, trial.share, measured, tuple(cuts), loss).errors(draws, seed) for trial in blended.values()]
    error_FC, spread_FC = (np.array([found[at] for found in known if found is not None]) for at in (0, 1))
    error_C = weights_F @ error_FC
    # Of a mixture: how sure each form is, and how far they lie apart.
    spread_C = np.sqrt(weights_F @ (spread_FC**2 + (error_FC - error_C) ** 2))
    widen = float(np.clip(np.sqrt(((error_C / spread_C) ** 2).mean()), 1.0, WIDEST))
    return Choice(widen, tuple(trials), tuple(blended.values()))


def _terms(form: Form) -> int:
    """Of size and data, how many a form is a function of."""
    return len({"params", "tokens"} & set(form.uses))


def _cuts(measured: Measured, parameters: Sequence[int]) -> list[Floats]:
    """Cells that stay, for each share that is hidden, the fewest first.

    Every form is judged on the same cuts, so a cut must leave more cells than the forms have parameters: those of up to five
    decide which cuts there are, and a larger form that is too large for them is not tried. Where no share can be hidden the
    largest cell alone is.
    """
    order, usual = np.argsort(measured.flops_C, kind="stable"), max((one for one in parameters if one <= USUAL), default=0)
    lefts = [measured.cells - max(1, round(share * measured.cells)) for share in HIDDEN]
    found = [order[:left] for left in lefts if left > usual and left >= FEWEST_CELLS - 2]
    return found or [order[:-1]]


@dataclass(frozen=True)
class _Judge:
    """How far a form lies off hidden cells. Each cut begins where the smaller one ended, and knows nothing of what it hides."""

    form: Form
    share: float
    measured: Measured
    cuts: tuple[Floats, ...]
    loss: tuple[Choice, Measured] | None

    def errors(self, draws: int = 0, seed: int = 0) -> tuple[Floats, Floats] | None:
        """Relative errors on the hidden cells of all cuts, and their standard deviation by the law; None: too few are left."""
        own: Fit | None = None
        losses: Fit | None = None
        errors, spreads = [], []
        for cut in self.cuts:
            rest = self.measured.kept(cut).largest(self.share)
            if rest.cells <= len(self.form.parameters):
                return None
            own = fit_form(self.form, rest, draws=draws, seed=seed, whole=self.measured, earlier=own)
            if "loss" in self.form.uses:
                losses = self._losses(cut, draws, seed, losses)
            hidden = self.measured.kept(np.setdiff1d(np.arange(self.measured.cells), cut))
            value_n, draws_Bn = values_at(own, hidden.points, losses)
            count_C = np.bincount(hidden.cell_n)
            spread_n = np.log(draws_Bn).std(0) if draws else np.zeros(len(value_n))
            spread_C = np.bincount(hidden.cell_n, spread_n) / count_C
            errors.append(np.bincount(hidden.cell_n, np.log(hidden.y_n) - np.log(value_n)) / count_C)
            noise_C = np.bincount(hidden.cell_n, noise_of_a_run(own, hidden.points, losses)) / count_C
            spreads.append(np.sqrt(spread_C**2 + noise_C**2 / count_C))
        return np.concatenate(errors), np.concatenate(spreads)

    def _losses(self, cut: Floats, draws: int, seed: int, earlier: Fit | None) -> Fit:
        """The law of the loss from the same runs."""
        assert self.loss is not None
        choice, losses = self.loss
        left = {point.name for point in self.measured.kept(cut).points}
        numbers = [number for point, number in zip(losses.points, losses.cell_n, strict=True) if point.name in left]
        known = losses.kept(np.unique(numbers)).largest(choice.share)
        return fit_form(choice.form, known, draws=draws, seed=seed, whole=losses, earlier=earlier)
