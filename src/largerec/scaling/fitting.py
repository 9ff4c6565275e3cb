"""Robust fits of a form, many at once: Huber's loss on log residuals, many starts, and the bootstrap behind intervals.

:func:`solve` is a Levenberg-Marquardt search over B sets of parameters in one pass of array operations, which makes starts and
bootstrap repetitions cheap. :func:`solve_slowly` is the same problem by scipy, one start at a time; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from largerec.scaling.forms import CENTRED, Coordinates, Floats, Form

HUBER = 1.345  # of the noise's standard deviation: 95 % as good as least squares where the noise is normal
FIRST_HUBER = 0.02  # before the noise is known
LEAST_NOISE = 1e-5
FEWEST_REPEATED = 3  # runs beside the first of their cell, to tell what a seed changes
STEP = 1e-6
ROUGH = 20  # rounds of a search before all but the best starts are dropped, and of a search that begins near its end
KEPT = 4
ENOUGH = 1e-7  # relative gain of a round below which a search ends


@dataclass(frozen=True)
class Fit:
    """A form's parameters for some points.

    Attributes:
        theta_P: parameters, as the form takes them; ``centre``: what coordinates were divided by.
        residual_n: log measured minus log fitted.
        noise: standard deviation of a run around the law, in logs; ``dof``: degrees of freedom behind it.
        draws_BP: parameters of bootstrap repetitions.
        ends_SP: where the best starts ended, the best first: starts for a fit to more points with the same centre.
    """

    form: Form
    theta_P: Floats
    centre: dict[str, float]
    residual_n: Floats
    noise: float
    dof: int
    draws_BP: Floats
    ends_SP: Floats

    def value(self, x: Coordinates) -> Floats:
        """The fitted value at places [n]."""
        found: Floats = self.form.value(self.theta_P[None], centred(x, self.centre))[0]
        return found

    def values(self, x: Coordinates) -> Floats:
        """The value of each repetition at places [B, n]."""
        return self.form.value(self.draws_BP, centred(x, self.centre))


def centre_of(x: Coordinates) -> dict[str, float]:
    """Geometric means of what is centred, and the mean loss."""
    found = {name: float(np.exp(np.log(x[name]).mean())) for name in CENTRED if name in x}
    return found | ({"loss": float(x["loss"].mean())} if "loss" in x else {})


def centred(x: Coordinates, centre: Mapping[str, float]) -> Coordinates:
    found = {name: value / centre[name] if name in CENTRED else value for name, value in x.items()}
    return found | ({"loss_centre": np.array(centre["loss"])} if "loss" in centre else {})


def fit(
    form: Form,
    x: Coordinates,
    y_n: Floats,
    cell_n: Floats,
    *,
    draws: int = 0,
    seed: int = 0,
    centre: dict[str, float] | None = None,
    starts_SP: Floats | None = None,
) -> Fit:
    """Fit a form to measured values.

    ``cell_n``: a number for each run, equal for runs that differ in the seed alone. The search has two rounds: one without
    the noise's scale, which measures it, and one with Huber's bound at 1.345 of it and the form's weak priors.

    ``draws``: repetitions of a wild bootstrap (Wu, 1986) by cells: what the runs of a cell lie off the law is kept, with one
    random sign for the cell, and the form is fitted again. The design stays whole, which with resampled points it would not.
    """
    centre = centre_of(x) if centre is None else centre
    inside, log_n = centred(x, centre), np.log(y_n)
    starts_SP = form.starts(inside, y_n) if starts_SP is None else starts_SP
    theta_SP, cost_S = solve(form, inside, _rows(log_n, len(starts_SP)), starts_SP, FIRST_HUBER, rounds=ROUGH)
    best = theta_SP[np.argsort(cost_S, kind="stable")[:KEPT]]
    best, cost_S = solve(form, inside, _rows(log_n, len(best)), best, FIRST_HUBER)
    best = best[np.argsort(cost_S, kind="stable")]
    residual_n = log_n - np.log(form.value(best[:1], inside)[0])
    noise = _noise(residual_n, cell_n, len(form.parameters))[0]
    ends_SP, cost_S = solve(form, inside, _rows(log_n, len(best)), best, HUBER * noise, noise)
    ends_SP = ends_SP[np.argsort(cost_S, kind="stable")]
    theta_P = ends_SP[0]
    fitted_n = np.log(form.value(theta_P[None], inside)[0])
    residual_n = log_n - fitted_n
    noise, dof = _noise(residual_n, cell_n, len(form.parameters))
    draws_BP = np.broadcast_to(theta_P, (0, len(theta_P)))
    if draws:
        log_Bn = fitted_n + _wild(residual_n, cell_n, len(form.parameters), draws, seed)
        draws_BP = solve(form, inside, log_Bn, _rows(theta_P, draws), HUBER * noise, noise, ROUGH)[0]
    return Fit(form, theta_P, centre, residual_n, noise, dof, draws_BP, ends_SP)


def _rows(values: Floats, count: int) -> Floats:
    return np.broadcast_to(values, (count, len(values)))


def within_cells(value_n: Floats, cell_n: Floats) -> tuple[float, int]:
    """Sum of squares of values around the mean of their cell, and its degrees of freedom: what a seed changes."""
    cells = np.unique(cell_n, return_inverse=True)[1]
    count_C = np.bincount(cells)
    off_n = value_n - (np.bincount(cells, value_n) / count_C)[cells]
    return float((off_n**2).sum()), int((count_C - 1).sum())


def _noise(residual_n: Floats, cell_n: Floats, parameters: int) -> tuple[float, int]:
    """Standard deviation of a run around the law, and its degrees of freedom: the larger of the seeds' own and the residuals'."""
    squares, free = within_cells(residual_n, cell_n)
    seeds = float(np.sqrt(squares / free)) if free >= FEWEST_REPEATED else 0.0
    dof = max(1, len(residual_n) - parameters)
    clipped_n = np.clip(residual_n, *(np.array([-4, 4]) * max(1.4826 * np.median(np.abs(residual_n)), LEAST_NOISE)))
    around = float(np.sqrt((clipped_n**2).sum() / dof))
    return max(seeds, around, LEAST_NOISE), dof


def _wild(residual_n: Floats, cell_n: Floats, parameters: int, draws: int, seed: int) -> Floats:
    """Residuals of bootstrap repetitions [B, n]: those of a cell keep their size and take one random sign together."""
    cells = np.unique(cell_n, return_inverse=True)[1]
    n_cells = int(cells.max()) + 1
    sign_BC = np.random.default_rng(seed).integers(0, 2, (draws, n_cells)) * 2.0 - 1
    free = np.sqrt(n_cells / max(1, n_cells - parameters))  # a fit draws its own points nearer than a new one
    found: Floats = free * sign_BC[:, cells] * residual_n
    return found


def _prior(form: Form) -> tuple[Floats, Floats]:
    """Means, and 1 / variance (0: free) [P]."""
    mean_P = np.array([0.0 if one is None else one[0] for one in form.prior])
    return mean_P, np.array([0.0 if one is None else one[1] ** -2 for one in form.prior])


def _cost(residual_Bn: Floats, theta_BP: Floats, form: Form, delta: float, noise: float) -> Floats:
    size_Bn = np.abs(residual_Bn)
    huber_Bn = np.where(size_Bn <= delta, 0.5 * residual_Bn**2, delta * (size_Bn - 0.5 * delta))
    mean_P, precision_P = _prior(form)
    found: Floats = huber_Bn.sum(1) + 0.5 * noise**2 * (precision_P * (theta_BP - mean_P) ** 2).sum(1)
    return found


def solve(
    form: Form, x: Coordinates, log_Bn: Floats, start_BP: Floats, delta: float, noise: float = 0.0, rounds: int = 60
) -> tuple[Floats, Floats]:
    """Parameters that make Huber's loss of log residuals least, and that loss [B]: each row its own start and its own values.

    ``x`` is centred. ``noise`` above 0 puts the form's priors in, weighed by the noise. Bounds hold by an active set: a parameter
    at its bound that would leave stays there.
    """
    low_P, high_P = np.array(form.low), np.array(form.high)
    mean_P, precision_P = _prior(form)
    theta_BP = np.clip(np.array(start_BP, dtype=float), low_P, high_P)
    residual_Bn = log_Bn - np.log(form.value(theta_BP, x))
    cost_B = _cost(residual_Bn, theta_BP, form, delta, noise)
    damping_B = np.full(len(theta_BP), 1e-2)
    for _ in range(rounds):
        slope_BnP = _slopes(form, x, theta_BP, log_Bn - residual_Bn)
        weight_Bn = np.minimum(1, delta / np.maximum(np.abs(residual_Bn), 1e-300))
        down_BP = np.einsum("bn,bn,bnp->bp", weight_Bn, residual_Bn, slope_BnP) - noise**2 * precision_P * (theta_BP - mean_P)
        square_BPP = np.einsum("bn,bnp,bnq->bpq", weight_Bn, slope_BnP, slope_BnP) + noise**2 * np.diag(precision_P)
        held_BP = ((theta_BP <= low_P) & (down_BP < 0)) | ((theta_BP >= high_P) & (down_BP > 0))
        down_BP = np.where(held_BP, 0.0, down_BP)
        square_BPP = np.where(held_BP[:, :, None] | held_BP[:, None, :], 0.0, square_BPP)
        diagonal_BP = np.einsum("bpp->bp", square_BPP)
        least_B1 = 1e-9 * diagonal_BP.max(1, keepdims=True) + 1e-30
        added_BP = np.where(held_BP, 1.0, damping_B[:, None] * diagonal_BP + least_B1)
        step_BP = np.linalg.solve(square_BPP + added_BP[:, :, None] * np.eye(len(low_P)), down_BP[:, :, None])[:, :, 0]
        tried_BP = np.clip(theta_BP + np.clip(step_BP, -3, 3), low_P, high_P)
        tried_Bn = log_Bn - np.log(form.value(tried_BP, x))
        tried_B = _cost(tried_Bn, tried_BP, form, delta, noise)
        better_B = tried_B < cost_B
        moved = float(np.where(better_B, (cost_B - tried_B) / np.maximum(cost_B, 1e-300), 0.0).max())
        theta_BP = np.where(better_B[:, None], tried_BP, theta_BP)
        residual_Bn = np.where(better_B[:, None], tried_Bn, residual_Bn)
        cost_B = np.where(better_B, tried_B, cost_B)
        damping_B = np.clip(np.where(better_B, damping_B / 5, damping_B * 4), 1e-10, 1e10)
        if moved < ENOUGH and (better_B | (damping_B > 1e3)).all():
            break
    return theta_BP, cost_B


def _slopes(form: Form, x: Coordinates, theta_BP: Floats, log_Bn: Floats) -> Floats:
    """Derivatives of the log value by the parameters, by differences [B, n, P]."""
    slope = np.empty((*log_Bn.shape, theta_BP.shape[1]))
    for at in range(theta_BP.shape[1]):
        moved_BP = theta_BP.copy()
        moved_BP[:, at] += STEP
        slope[:, :, at] = (np.log(form.value(moved_BP, x)) - log_Bn) / STEP
    return slope


def solve_slowly(
    form: Form, x: Coordinates, log_n: Floats, starts_SP: Floats, delta: float, noise: float
) -> tuple[Floats, float]:
    """What :func:`solve` finds from several starts, by scipy's trust region, for the test that they agree."""
    mean_P, precision_P = _prior(form)

    def residuals(theta_P: Floats) -> Floats:
        residual_n = log_n - np.log(form.value(theta_P[None], x)[0])
        size_n = np.abs(residual_n)  # whose square is twice Huber's loss
        robust_n = np.where(size_n <= delta, size_n, np.sqrt(np.maximum(2 * delta * size_n - delta**2, 0)))
        found: Floats = np.concatenate([robust_n, noise * np.sqrt(precision_P) * (theta_P - mean_P)])
        return found

    best, least = starts_SP[0], np.inf
    for start_P in starts_SP:
        inside_P = np.clip(start_P, np.array(form.low) + 1e-9, np.array(form.high) - 1e-9)
        found = least_squares(
            residuals, inside_P, bounds=(form.low, form.high), xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=2000
        )
        if found.cost < least:
            best, least = found.x, float(found.cost)
    return best, least
