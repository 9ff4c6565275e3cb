"""How computing is best spent, between size and data at a number of operations, and what operations cost in core-seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from largerec.scaling.choice import Place
from largerec.scaling.forms import Floats
from largerec.scaling.laws import FARTHEST, Law
from largerec.scaling.points import Point

CANDIDATES = 400  # sizes that are compared along the frontier


@dataclass(frozen=True)
class Split:
    """The best use of ``flops`` operations by a law: so many parameters on so many tokens, which give ``value``."""

    flops: float
    params: float
    tokens: float
    value: float


def flops_per_token(points: Sequence[Point]) -> Callable[[Floats], Floats]:
    """Operations of a training token as a function of parameters: read between the points' sizes in logs, and beyond them with
    what each parameter costs more."""
    known: dict[int, list[float]] = {}
    for point in points:
        known.setdefault(point.params, []).append(point.flops / point.tokens)
    params = np.array(sorted(known), dtype=float)
    each = np.array([np.median(known[int(one)]) for one in params])

    def at(asked: Floats) -> Floats:
        found = np.exp(np.interp(np.log(asked), np.log(params), np.log(each)))
        slope = (each[-1] - each[0]) / (params[-1] - params[0]) if len(params) > 1 else 6.0
        found = np.where(asked > params[-1], each[-1] + slope * (asked - params[-1]), found)
        low: Floats = np.where(asked < params[0], np.maximum(each[0] + slope * (asked - params[0]), slope * asked), found)
        return low

    return at


def places_at(law: Law, params: Floats, tokens: Floats, price: Callable[[Floats], Floats] | None = None) -> list[Place]:
    """Places of a law's group at sizes and amounts of data [n]. Depth and width of a size between two of the fit are read between
    theirs; data are new events where the law is of events seen once, else passes, two or more, over at most what a run had."""
    own, first = law.measured.points, law.measured.points[0]
    known = np.array(sorted({(p.params, p.layers, p.width) for p in own}), dtype=float)
    layers, width = (np.exp(np.interp(np.log(params), np.log(known[:, 0]), np.log(known[:, at]))) for at in (1, 2))
    flops = (price or flops_per_token(own))(params) * tokens
    most = max(point.unique_tokens for point in own)
    unique = tokens if law.key.regime == "single-epoch" else np.minimum(tokens / 2, float(most))
    rows = zip(params, tokens, unique, layers, width, flops, strict=True)
    return [
        Place(
            first.family, round(float(a)), round(float(b)), float(n), float(d), max(float(u), 1.0), float(c), first.history,
            first.catalogue, first.entropy, first.regime,
        )
        for n, d, u, a, b, c in rows
    ]  # fmt: skip


def best_split(law: Law, flops: float, price: Callable[[Floats], Floats], most_tokens: float = np.inf) -> Split:
    """The size whose law value is best at a number of operations, over sizes as far as the law may be asked.

    ``price``: operations a token by parameters. ``most_tokens``: data there is; sizes that would need more are left out, unless
    all would.
    """
    sizes = [point.params for point in law.measured.points]
    params = np.geomspace(min(sizes) / FARTHEST, max(sizes) * FARTHEST, CANDIDATES)
    tokens = flops / price(params)
    fits = tokens <= most_tokens if (tokens <= most_tokens).any() else np.ones(len(params), dtype=bool)
    params, tokens = params[fits], tokens[fits]
    values = law.values(places_at(law, params, tokens, price))
    best = int(np.argmin(values) if law.quantity == "loss" else np.argmax(values))
    return Split(flops, float(params[best]), float(tokens[best]), float(values[best]))


def frontier(law: Law, budgets: Sequence[float]) -> list[Split]:
    """The best split of each number of operations."""
    price = flops_per_token(law.measured.points)
    return [best_split(law, flops, price) for flops in budgets]


@dataclass(frozen=True)
class Prices:
    """What training costs in core-seconds a token, as measured on a family's runs, by operations a token."""

    flops_S: Floats
    seconds_S: Floats

    @classmethod
    def of(cls, points: Sequence[Point]) -> Prices:
        """Of each size the median over its longer runs, where short ones are half beginning."""
        sizes: dict[int, list[Point]] = {}
        for point in points:
            if point.seconds > 0 and point.tokens > 0:
                sizes.setdefault(point.params, []).append(point)
        rows = []
        for own in sizes.values():
            longer = sorted(own, key=lambda point: point.tokens)[len(own) // 2 :]
            each = float(np.median([point.seconds * point.cores / point.tokens for point in longer]))
            rows.append((float(np.median([point.flops / point.tokens for point in longer])), each))
        flops_S, seconds_S = np.array(sorted(rows)).T
        return cls(flops_S, seconds_S)

    def __call__(self, flops: float) -> float:
        """Core-seconds of a token of ``flops`` operations: read between measured sizes, above at the largest one's speed."""
        low, high = self.flops_S[0], self.flops_S[-1]
        known = float(np.exp(np.interp(np.log(flops), np.log(self.flops_S), np.log(self.seconds_S))))
        return known * (flops / high if flops > high else 1.0) if flops >= low else known

    @property
    def flops_per_core_second(self) -> float:
        """Of the largest size measured."""
        return float(self.flops_S[-1] / self.seconds_S[-1])
