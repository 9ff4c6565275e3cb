"""The forms that a law may take: what a quantity is as a function of size, data and computing, with free parameters.

Letters: B sets of parameters that are tried at once, P parameters, n places. Every form is a function of coordinates, most of
them divided by their geometric mean over the points of the fit, so that amplitudes are contributions at a middle place and the
fit is well conditioned. Amplitudes are fitted as logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

Floats = np.ndarray
Coordinates = Mapping[str, Floats]
"""``params, tokens, unique, passes, layers, width, loss, flops`` and, scaled by entropy, ``data_times, data_over`` [n]."""

CENTRED = ("params", "tokens", "unique", "flops")
SMALLEST = 1e-9
EXPONENT = (0.02, 2.5)
AMPLITUDE = (-14.0, 14.0)


@dataclass(frozen=True)
class Form:
    """A function of coordinates with free parameters.

    Attributes:
        formula: as the page shows it.
        parameters: names of what is fitted; ``low`` and ``high`` bound it.
        uses: coordinates that it is a function of. Along any other it says nothing, so that it may not be asked far along it.
        value: ``(theta_BP, coordinates) -> value_Bn``, positive.
        starts: ``(coordinates, y_n) -> theta_SP``, where the search begins.
        prior: mean and standard deviation of a parameter, in units of the noise: weak, and only for exponents and the like,
            which a few points leave open. None: free.
        repeated: only for runs that repeat their events (True) or also for those that do not.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    uses: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    value: Callable[[Floats, Coordinates], Floats]
    starts: Callable[[Coordinates, Floats], Floats]
    prior: tuple[tuple[float, float] | None, ...]
    repeated: bool = False

    def natural(self, theta_P: Floats, centre: Mapping[str, float]) -> dict[str, float]:
        """Parameters in the units of the formula: amplitudes without logarithm and without the centre."""
        found = {}
        for name, value in zip(self.parameters, theta_P.tolist(), strict=True):
            plain = float(np.exp(value)) if name.startswith("log ") else value
            found[name.removeprefix("log ")] = plain
        data = "unique" if "unique" in self.uses else "tokens"  # passes over unique tokens are worth a multiple of those
        for amplitude, exponent, along in (("A", "alpha", "params"), ("B", "beta", data), ("K", "gamma", "flops")):
            if amplitude in found and exponent in found and along in self.uses:
                found[amplitude] *= centre.get(along, 1.0) ** found[exponent]
        if "D0" in found:
            found["D0"] *= centre["tokens"]
        return found


def _exp(x: Floats) -> Floats:
    found: Floats = np.exp(x)
    return found


def _column(theta_BP: Floats, at: int) -> Floats:
    found: Floats = theta_BP[:, at : at + 1]
    return found


def _power(theta_BP: Floats, amplitude: int, exponent: int, x_n: Floats) -> Floats:
    """exp(log amplitude) * x ** -exponent [B, n]."""
    return _exp(_column(theta_BP, amplitude) - _column(theta_BP, exponent) * np.log(x_n))


# --- loss


def _chinchilla(theta_BP: Floats, x: Coordinates) -> Floats:
    floor = _exp(_column(theta_BP, 0))
    found: Floats = floor + _power(theta_BP, 1, 2, x["params"]) + _power(theta_BP, 3, 4, x["tokens"])
    return found


def _onset(theta_BP: Floats, x: Coordinates) -> Floats:
    """The data's part is ``gap`` before anything is learned, and a power law far beyond D0 tokens."""
    data = _exp(_column(theta_BP, 3) - _column(theta_BP, 5) * np.log1p(x["tokens"] * _exp(-_column(theta_BP, 4))))
    found: Floats = _exp(_column(theta_BP, 0)) + _power(theta_BP, 1, 2, x["params"]) + data
    return found


def _kaplan(theta_BP: Floats, x: Coordinates, first: int = 0) -> Floats:
    """((Nc / N) ** (alpha / beta) + Dc / D) ** beta; amplitudes are the two terms' own loss at the centre."""
    beta = _column(theta_BP, first + 3)
    size = (_column(theta_BP, first) - _column(theta_BP, first + 1) * np.log(x["params"])) / beta
    data = _column(theta_BP, first + 2) / beta - np.log(x["tokens"])
    return _exp(beta * np.logaddexp(size, data))


def _kaplan_with_floor(theta_BP: Floats, x: Coordinates) -> Floats:
    found: Floats = _exp(_column(theta_BP, 0)) + _kaplan(theta_BP, x, 1)
    return found


def _floor_and(along: str) -> Callable[[Floats, Coordinates], Floats]:
    def value(theta_BP: Floats, x: Coordinates) -> Floats:
        found: Floats = _exp(_column(theta_BP, 0)) + _power(theta_BP, 1, 2, x[along])
        return found

    return value


def _repeated(theta_BP: Floats, x: Coordinates) -> Floats:
    """Chinchilla over the data that repetition is worth: U * (1 + R * (1 - exp(-(passes - 1) / R)))."""
    reach = _exp(_column(theta_BP, 5))
    worth = x["unique"] * (1 + reach * -np.expm1(-np.maximum(x["passes"] - 1, 0) / reach))
    data = _exp(_column(theta_BP, 3) - _column(theta_BP, 4) * np.log(np.maximum(worth, SMALLEST)))
    found: Floats = _exp(_column(theta_BP, 0)) + _power(theta_BP, 1, 2, x["params"]) + data
    return found


def _loss_starts(kinds: str) -> Callable[[Coordinates, Floats], Floats]:
    """Starts for parameters of kinds E (log floor), A (log amplitude), x (exponent), R (log passes), o (log onset)."""

    def starts(_: Coordinates, y_n: Floats) -> Floats:
        lowest, middle = float(y_n.min()), float(np.median(y_n))
        rows = []
        for share, *exponents in product((0.3, 0.8, 0.95), *([(0.15, 0.5, 1.2)] * kinds.count("x"))):
            floor = share * lowest if "E" in kinds else 0.0
            amplitude = max(middle - floor, 1e-3 * middle) / (max(1, kinds.count("A")) if "E" in kinds else 1)
            given = {"E": np.log(max(floor, SMALLEST)), "A": np.log(amplitude), "R": np.log(10.0), "o": -1.0}
            own = iter(exponents)
            rows.append([next(own) if kind == "x" else given[kind] for kind in kinds])
        return np.unique(np.array(rows), axis=0)

    return starts


def _bounds(kinds: str) -> tuple[tuple[float, ...], tuple[float, ...], tuple[tuple[float, float] | None, ...]]:
    low = {"E": AMPLITUDE[0], "A": AMPLITUDE[0], "x": EXPONENT[0], "R": np.log(0.3), "b": -50.0, "o": -8.0}
    high = {"E": AMPLITUDE[1], "A": AMPLITUDE[1], "x": EXPONENT[1], "R": np.log(1000.0), "b": 50.0, "o": 8.0}
    prior = {"x": (0.4, 0.3), "R": (float(np.log(10.0)), 1.0)}
    return tuple(low[kind] for kind in kinds), tuple(high[kind] for kind in kinds), tuple(prior.get(kind) for kind in kinds)


def _form(
    name: str,
    formula: str,
    parameters: Sequence[str],
    uses: Sequence[str],
    kinds: str,
    value: Callable[[Floats, Coordinates], Floats],
    *,
    starts: Callable[[Coordinates, Floats], Floats] | None = None,
    repeated: bool = False,
) -> Form:
    low, high, prior = _bounds(kinds)
    return Form(name, formula, tuple(parameters), tuple(uses), low, high, value, starts or _loss_starts(kinds), prior, repeated)


CHINCHILLA = _form(
    "chinchilla",
    "L = E + A / N^alpha + B / D^beta",
    ("log E", "log A", "alpha", "log B", "beta"),
    ("params", "tokens"),
    "EAxAx",
    _chinchilla,
)  # Hoffmann et al. 2022, arXiv 2203.15556, equation 2
KAPLAN = _form(
    "kaplan",
    "L = [(Nc / N)^(alpha / beta) + Dc / D]^beta",
    ("log size term", "alpha", "log data term", "beta"),
    ("params", "tokens"),
    "AxAx",
    _kaplan,
)  # Kaplan et al. 2020, arXiv 2001.08361, equation 1.5
KAPLAN_WITH_FLOOR = _form(
    "kaplan-with-floor",
    "L = E + [(Nc / N)^(alpha / beta) + Dc / D]^beta",
    ("log E", "log size term", "alpha", "log data term", "beta"),
    ("params", "tokens"),
    "EAxAx",
    _kaplan_with_floor,
)
ONSET = _form(
    "onset",
    "L = E + A / N^alpha + gap / (1 + D / D0)^beta",
    ("log E", "log A", "alpha", "log gap", "log D0", "beta"),
    ("params", "tokens"),
    "EAxAox",
    _onset,
)  # Chinchilla's, shifted: small runs lie on the plateau that Alabdulmohsin et al. 2022 (arXiv 2209.06640) describe
SIZE_ALONE = _form(
    "size-alone", "L = E + A / N^alpha", ("log E", "log A", "alpha"), ("params",), "EAx", _floor_and("params")
)  # the form of LSRM: E + (N0 / N)^alpha
DATA_ALONE = _form("data-alone", "L = E + B / D^beta", ("log E", "log B", "beta"), ("tokens",), "EAx", _floor_and("tokens"))
COMPUTE = _form("compute", "L = E + K / C^gamma", ("log E", "log K", "gamma"), ("flops",), "EAx", _floor_and("flops"))
REPEATED = _form(
    "repeated",
    "L = E + A / N^alpha + B / (U (1 + R (1 - exp(-(passes - 1) / R))))^beta",
    ("log E", "log A", "alpha", "log B", "beta", "log R"),
    ("params", "tokens", "unique", "passes"),
    "EAxAxR",
    _repeated,
    repeated=True,
)  # Muennighoff et al. 2023, arXiv 2305.16264, equation 5


# --- ranking quality


def _saturating(theta_BP: Floats, x: Coordinates) -> Floats:
    lost = _power(theta_BP, 1, 2, x["params"]) + _power(theta_BP, 3, 4, x["tokens"])
    found: Floats = _exp(_column(theta_BP, 0)) * np.maximum(1 - lost, SMALLEST)
    return found


def _saturating_log(theta_BP: Floats, x: Coordinates) -> Floats:
    lost = _power(theta_BP, 1, 2, x["params"]) + _power(theta_BP, 3, 4, x["tokens"])
    return _exp(_column(theta_BP, 0) - lost)


def _saturating_data(theta_BP: Floats, x: Coordinates) -> Floats:
    return _exp(_column(theta_BP, 0) - _power(theta_BP, 1, 2, x["tokens"]))


def _of_loss(theta_BP: Floats, x: Coordinates) -> Floats:
    return _exp(_column(theta_BP, 0) - _column(theta_BP, 1) * (x["loss"] - x["loss_centre"]))


def _of_loss_curved(theta_BP: Floats, x: Coordinates) -> Floats:
    off = x["loss"] - x["loss_centre"]
    return _exp(np.clip(_column(theta_BP, 0) - _column(theta_BP, 1) * off - _column(theta_BP, 2) * off**2, -30, 30))


def _performance(data: str) -> Callable[[Floats, Coordinates], Floats]:
    """b + the sum over layers, width and data x of w (e ln x + x^-e / 2)."""

    def value(theta_BP: Floats, x: Coordinates) -> Floats:
        total = _column(theta_BP, 6)
        for at, along in enumerate(("layers", "width", data)):
            exponent, log_n = _column(theta_BP, at + 3), np.log(x[along])
            total = total + _exp(_column(theta_BP, at)) * (exponent * log_n + _exp(-exponent * log_n) / 2)
        found: Floats = np.maximum(total, SMALLEST)
        return found

    return value


def _quality_starts(kinds: str) -> Callable[[Coordinates, Floats], Floats]:
    def starts(_: Coordinates, y_n: Floats) -> Floats:
        rows = []
        exponents = [(0.15, 0.5, 1.2)] * kinds.count("x")
        for gain, *own in product((1.05, 1.3, 3.0), *exponents):
            lost = np.log(gain) / max(1, kinds.count("A"))
            powers = iter(own)
            top = float(np.log(gain * y_n.max()))
            rows.append([next(powers) if kind == "x" else top if kind == "E" else np.log(lost) for kind in kinds])
        return np.array(rows)

    return starts


def _of_loss_starts(count: int) -> Callable[[Coordinates, Floats], Floats]:
    def starts(_: Coordinates, y_n: Floats) -> Floats:
        return np.array([[float(np.log(np.median(y_n))), slope, 0.0][:count] for slope in (0.2, 1.0)])

    return starts


def _performance_starts(_: Coordinates, y_n: Floats) -> Floats:
    spread = max(float(y_n.max() - y_n.min()), 1e-4 * float(y_n.max()))
    rows = []
    for exponent, share in product((0.05, 0.2, 0.6), (0.1, 0.5)):
        weight = np.log(share * spread / exponent)
        rows.append([weight, weight, weight, exponent, exponent, exponent, float(y_n.min()) - 3 * share * spread])
    return np.array(rows)


def _performance_form(name: str, data: str, sign: str) -> Form:
    low = (AMPLITUDE[0],) * 3 + (EXPONENT[0],) * 3 + (-50.0,)
    high = (AMPLITUDE[1],) * 3 + (EXPONENT[1],) * 3 + (50.0,)
    formula = f"M = b + sum over x of w_x (e_x ln x + x^-e_x / 2); x: layers, width, D {sign} entropy"
    names = (*(f"{kind} {along}" for kind in ("log w", "e") for along in ("layers", "width", "data")), "b")
    prior = (None,) * 3 + ((0.3, 0.3),) * 3 + (None,)
    return Form(name, formula, names, ("layers", "width", data), low, high, _performance(data), _performance_starts, prior)


# Performance Law, Shen et al. 2024, arXiv 2412.00430: weights and exponents of layers, width and data, and an offset. In the
# authors' own fit the data did not vary, so that D' was one of their seven parameters; here it is measured, and has its weight.
PERFORMANCE_TIMES = _performance_form("performance-times", "data_times", "x")
PERFORMANCE_OVER = _performance_form("performance-over", "data_over", "/")
SATURATING = _form(
    "saturating",
    "M = T (1 - A / N^alpha - B / D^beta)",
    ("log T", "log A", "alpha", "log B", "beta"),
    ("params", "tokens"),
    "EAxAx",
    _saturating,
    starts=_quality_starts("EAxAx"),
)
SATURATING_LOG = _form(
    "saturating-log",
    "M = T exp(-A / N^alpha - B / D^beta)",
    ("log T", "log A", "alpha", "log B", "beta"),
    ("params", "tokens"),
    "EAxAx",
    _saturating_log,
    starts=_quality_starts("EAxAx"),
)
SATURATING_DATA = _form(
    "saturating-data",
    "M = T exp(-B / D^beta)",
    ("log T", "log B", "beta"),
    ("tokens",),
    "EAx",
    _saturating_data,
    starts=_quality_starts("EAx"),
)
OF_LOSS = _form("of-loss", "M = T exp(-k L)", ("log at middle", "k"), ("loss",), "bb", _of_loss, starts=_of_loss_starts(2))
OF_LOSS_CURVED = _form(
    "of-loss-curved",
    "M = T exp(-k L - q L^2)",
    ("log at middle", "k", "q"),
    ("loss",),
    "bbb",
    _of_loss_curved,
    starts=_of_loss_starts(3),
)

LOSS_FORMS = (CHINCHILLA, KAPLAN, KAPLAN_WITH_FLOOR, ONSET, SIZE_ALONE, DATA_ALONE, REPEATED)
QUALITY_FORMS = (OF_LOSS, OF_LOSS_CURVED, SATURATING, SATURATING_LOG, SATURATING_DATA, PERFORMANCE_TIMES, PERFORMANCE_OVER)
FORMS = {form.name: form for form in (*LOSS_FORMS, COMPUTE, *QUALITY_FORMS)}
