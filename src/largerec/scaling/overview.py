"""All that a page about a grid shows: points, laws, curves with bands, the frontier of families, and what came of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from largerec.bundle import Bundle
from largerec.scaling.choice import Measured, Place, coordinates
from largerec.scaling.forms import Floats
from largerec.scaling.laws import (
    LEVEL,
    Law,
    Refused,
    between_seeds,
    check,
    compute_law,
    fit_all,
    fit_to_every_run,
    groups,
    summary,
)
from largerec.scaling.plan import PLANS, USUAL, grid_points, plan_in
from largerec.scaling.points import Point
from largerec.scaling.spending import frontier, places_at

STEPS = 17  # places of a curve
LINES = 5  # curves of one chart, from the smallest to the largest size or amount of data
BEYOND = 1.5  # curves go so far past the runs


def overview(folder: str | Path, quantities: Sequence[str] = (USUAL,)) -> dict[str, Any]:
    """Fit the laws of a grid again, which gives what ``scale`` had, and draw them: a document of plain values.

    Keys: ``dir``, ``points``, ``laws`` (each with ``curves`` over parameters and tokens and its ``frontier`` over operations),
    ``every_run`` (laws of the held-out runs, too, which plans ask, with their ``frontier``; none where no such run has finished),
    ``compute`` (the loss as a function of operations alone, by family), ``refused``, ``checks`` and their ``summary``,
    ``between_seeds`` (what a seed changes, of all finished runs), ``plans``.

    Raises:
        LargeRecError: there is no grid.
    """
    place = Path(folder)
    points = grid_points(place)
    seed = int(Bundle(place).read_json("grid.json")["seed"]) if Bundle(place).file("grid.json").is_file() else 0
    laws, refused = fit_all(points, quantities, seed=seed)
    checks, unsaid = _checks(place, laws, points)
    again = any(point.held_out and point.state == "finished" for point in points)
    later, not_even = fit_to_every_run(points, quantities) if again else ([], [])
    return {
        "dir": str(folder),
        "points": [point.to_json() for point in points],
        "laws": [law.to_json() | {"curves": _curves(law, points), "frontier": _frontier(law, points)} for law in laws],
        "every_run": [law.to_json() | {"frontier": _frontier(law, points)} for law in later],
        "compute": _compute(points),
        "refused": [*refused, *unsaid, *not_even],
        "checks": checks,
        "summary": summary(checks),
        "between_seeds": between_seeds(points, ("loss", *quantities)),
        "plans": _plans(place),
        "irreducible": next((point.irreducible for point in points if point.irreducible is not None), None),
        "level": LEVEL,
    }


def _checks(folder: Path, laws: Sequence[Law], points: Sequence[Point]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Held-out runs beside what was written down of them before they began; where nothing was, beside the laws of now."""
    largest = {(p.family, p.regime): 0.0 for p in points}
    for p in points:
        if not p.held_out and p.state == "finished":
            largest[p.family, p.regime] = max(largest[p.family, p.regime], p.flops)
    written = Bundle(folder)
    if written.file("scale.json").is_file() and (known := written.read_json("scale.json").get("checks")):
        by_name = {p.name: p for p in points}
        rows = [row for row in known if row["name"] in by_name]
        for row in rows:
            own = by_name[row["name"]]
            if "times_largest" not in row:
                row["times_largest"] = own.flops / largest[own.family, own.regime] if largest[own.family, own.regime] else None
        return [row | {"before": True} for row in rows], []
    found, refused = check(laws, points)
    return [row.to_json() | {"before": False} for row in found], refused


def _band(law: Law, places: Sequence[Place], xs: Floats) -> dict[str, list[float]]:
    """A curve with its band, at those places that the law may be asked about."""
    found: dict[str, list[float]] = {"xs": [], "values": [], "lows": [], "highs": []}
    for place, x in zip(places, xs.tolist(), strict=True):
        try:
            said = law.predict(place)
        except Refused:
            continue
        for key, value in (("xs", x), ("values", said.value), ("lows", said.low), ("highs", said.high)):
            found[key].append(float(value))
    return found


def _own(law: Law, points: Sequence[Point]) -> list[Point]:
    keys = groups(points)
    return [point for point in keys.get(law.key, []) if point.state == "finished"]


def _some(values: Floats) -> list[float]:
    """At most a handful of different values, the smallest and the largest among them."""
    ordered = np.unique(values)
    apart = ordered[np.concatenate([[True], np.diff(np.log(ordered)) > 0.05])]
    at = np.unique(np.round(np.linspace(0, len(apart) - 1, min(LINES, len(apart)))).astype(int))
    return [float(one) for one in apart[at]]


def _curves(law: Law, points: Sequence[Point]) -> dict[str, list[dict[str, Any]]]:
    """Curves over parameters, one for some amounts of data, and over tokens, one for some sizes."""
    x = coordinates(_own(law, points))
    found: dict[str, list[dict[str, Any]]] = {}
    for along, across in (("params", "tokens"), ("tokens", "params")):
        xs = np.geomspace(x[along].min() / BEYOND, x[along].max() * BEYOND, STEPS)
        found[along] = []
        for fixed in _some(x[across]):
            both = {along: xs, across: np.full(STEPS, fixed)}
            curve = _band(law, places_at(law, both["params"], both["tokens"]), xs)
            found[along].append({across: fixed, **curve})
    return found


def _frontier(law: Law, points: Sequence[Point]) -> dict[str, list[float]]:
    """What is best at each number of operations, with parameters and tokens of it."""
    flops = coordinates(_own(law, points))["flops"]
    splits = frontier(law, np.geomspace(flops.min(), flops.max() * BEYOND, STEPS).tolist())
    params, tokens = (np.array([getattr(one, name) for one in splits]) for name in ("params", "tokens"))
    curve = _band(law, places_at(law, params, tokens), np.array([one.flops for one in splits]))
    kept = [one for one in splits if one.flops in curve["xs"]]
    return curve | {"params": [one.params for one in kept], "tokens": [one.tokens for one in kept]}


def _compute(points: Sequence[Point]) -> list[dict[str, Any]]:
    """For each group the form of operations alone, through the runs that no cheaper one beats."""
    found = []
    for key, own in groups(points).items():
        if (fitted := compute_law(own)) is None:
            continue
        runs = Measured.of(own, "loss")
        xs = np.geomspace(runs.flops_C.min(), runs.flops_C.max() * BEYOND, STEPS)
        parameters = fitted.form.natural(fitted.theta_P, fitted.centre)
        found.append(
            {"family": key.family, "regime": key.regime, "formula": fitted.form.formula, "parameters": parameters}
            | {"xs": xs.tolist(), "values": fitted.value({"flops": xs}).tolist()}
        )
    return found


def _plans(folder: Path) -> list[dict[str, Any]]:
    """Plans that were made from the grid, checked or not."""
    found = []
    for file in sorted((folder / PLANS).glob("*.json")):
        if (document := plan_in(file)) is not None:
            names = ("recipe", "asked", "family", "size", "params", "tokens", "core_minutes", "predicted", "serving", "runs")
            found.append({name: document.get(name) for name in names} | {"checked": document.get("checked")})
    return found
