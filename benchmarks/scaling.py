"""Turn finished grids of ``largerec scale`` into result files, pictures and the tables of docs/scale.md.

    largerec scale recipes/scale/simulator.toml --budget "2 core-hours"
    python benchmarks/scaling.py runs/scale/simulator --recipe recipes/scale/simulator.toml

writes benchmarks/results/scale-simulator.json and docs/scale-simulator.svg. Without a folder it prints the tables of the result
files that are there; a test holds the guide to them. With --refit it fits today's laws to the runs in each of those files and
writes those, and what they would have foretold, in place of earlier ones; what was foretold stays.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from largerec.bundle import Bundle
from largerec.errors import LargeRecError
from largerec.report.charts import Axis, Line, lines
from largerec.report.charts import Point as Dot
from largerec.scaling.choice import Place, coordinates, fit_form, value_of
from largerec.scaling.laws import FAR, Law, between_seeds, check, fit_all, groups, summary
from largerec.scaling.overview import overview
from largerec.scaling.plan import grid_points
from largerec.scaling.points import Point

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GRIDS = {  # result files -> what the guide calls them
    "scale-simulator": "generated, HSTU",
    "scale-simulator-again": "generated again, HSTU",
    "scale-families": "generated, families",
    "scale-globo": "Globo, HSTU",
    "scale-ml-1m": "MovieLens-1M, HSTU",
    "scale-demo": "the demo",
}
QUANTITIES = ("loss", "ndcg@10")
STYLE = """:root { --c0: #1f5fbf; --c1: #c4570b; --c2: #2a7f3e; --soft: #666; --grid: #ddd }
svg { background: #fff; color: #222; font: 10px system-ui, sans-serif } svg text { fill: #666 }
.grid { stroke: var(--grid); fill: none } .axis { stroke: var(--soft); fill: none }
.line { fill: none; stroke-width: 1.4 } .dot { stroke-width: 1.4 } .band { stroke: none; opacity: .15 }
.c0.line, .c0.dot { stroke: var(--c0) } .c1.line, .c1.dot { stroke: var(--c1) } .c2.line, .c2.dot { stroke: var(--c2) }
.c0.dot, .c0.band { fill: var(--c0) } .c1.dot, .c1.band { fill: var(--c1) } .c2.dot, .c2.band { fill: var(--c2) }
.dot.hollow { fill: #fff }"""


def document(folder: Path, recipe: str, seen: Mapping[str, Any]) -> dict[str, Any]:
    """The result document of the grid in ``folder``: its scale.json, the command that made it, and plans that were made from it.

    ``seen``: the grid's :func:`largerec.scaling.overview.overview`.

    Raises:
        LargeRecError: the grid has not come to its end.
    """
    if not (folder / "scale.json").is_file():
        raise LargeRecError(f"{folder} has no scale.json yet; let `largerec scale` with run.dir={folder} come to its end.")
    found = Bundle(folder).read_json("scale.json")
    budget = f"{found['budget_core_minutes']:g} core-minutes"
    return {
        "command": f'largerec scale {recipe} --budget "{budget}"',
        **found,
        "every_run": seen["every_run"],
        **fitted_again(grid_points(folder)),
        "plans": seen["plans"],
    }


def fitted_again(points: Sequence[Point]) -> dict[str, Any]:
    """What laws of this version say with the runs known (``laws``, ``forms``, ``again``, ``today``), and what a seed changes."""
    laws, _ = fit_all(points, (*QUANTITIES, "recall@10"))
    shown = [law for law in laws if law.quantity in QUANTITIES]
    return {
        "laws": [law.to_json() for law in laws],
        "forms": by_form(points, shown),
        "again": again(points),
        "today": today(points, shown),
        "between_seeds": between_seeds(points, QUANTITIES),
    }


def by_form(points: Sequence[Point], laws: Sequence[Law]) -> list[dict[str, Any]]:
    """How far laws are off on held-out runs, and each form alone, on the share of the fitted runs that it did best on where the
    largest of them were hidden: the mean of relative errors."""
    found = []
    for law in laws:
        held = [one for one in groups(points)[law.key] if one.held_out and np.isfinite(value_of(one, law.quantity))]
        if not held:
            continue
        measured_n = np.array([value_of(point, law.quantity) for point in held])
        places = [Place.of(point) for point in held]
        told = {"the law": law.values(places)}
        for trial in law.choice.trials:  # by rising error, so that the first of a form is its best
            if trial.form.name in told:
                continue
            x = coordinates(held)
            if "loss" in trial.form.uses and law.loss is not None:
                x["loss"] = law.loss.values(places)  # foretold, not measured
            told[trial.form.name] = fit_form(trial.form, law.measured.largest(trial.share)).value(x)
        own = {"family": law.key.family, "regime": law.key.regime, "quantity": law.quantity, "runs": len(held)}
        found += [own | {"form": form, "error": float(np.abs(v / measured_n - 1).mean())} for form, v in told.items()]
    return sorted(found, key=lambda one: (one["family"], one["regime"], one["quantity"], one["error"]))


def again(points: Sequence[Point]) -> list[dict[str, Any]]:
    """What laws say of the very largest runs once they are fitted to all others, as plans fit them to all: for each family, those
    of :data:`FAR` times the fit's largest and more are hidden, and the held-out ones below are not. Made with the runs known."""
    found = []
    for key, own in groups(points).items():
        most = FAR * max((one.flops for one in own if not one.held_out and one.state == "finished"), default=np.inf)
        if not any(one.flops >= most and one.held_out for one in own):
            continue
        hidden = [replace(one, held_out=one.held_out and one.flops >= most) for one in own]
        laws, _ = fit_all(hidden, QUANTITIES)
        for quantity, said in summary([row.to_json() for row in check(laws, hidden)[0]]).items():
            fitted = next(len(law.measured.points) for law in laws if law.quantity == quantity)
            found.append({"family": key.family, "regime": key.regime, "quantity": quantity, "fitted": fitted} | said)
    return found


def today(points: Sequence[Point], laws: Sequence[Law]) -> dict[str, dict[str, Any]]:
    """For each quantity what the laws of this version, fitted to the runs that were not held out, say of those that were, and how
    many they refuse. Made with the runs known; it differs from what was foretold where laws have changed since."""
    rows = [row.to_json() for row in check(laws, points)[0]]
    said, found = summary(rows), {}
    for quantity in QUANTITIES:
        held = [one for one in points if one.held_out and one.state == "finished" and np.isfinite(value_of(one, quantity))]
        own = said.get(quantity, {"runs": 0.0})
        found[quantity] = own | {"refused": len(held) - int(own["runs"])}
    return found


def draw(found: Mapping[str, Any], to: Path) -> None:
    """Loss and NDCG over operations: runs of the fit, the law's best use of operations, held-out runs in what was foretold."""
    panels = []
    foretold = {(row["name"], row["quantity"]): row for row in found["checks"]}
    families = list(dict.fromkeys(point["family"] for point in found["points"]))
    for quantity in QUANTITIES:
        series = []
        for colour, family in enumerate(families):
            dots = []
            for point in found["points"]:
                if point["family"] != family or point["state"] != "finished":
                    continue
                value = point["loss"] if quantity == "loss" else point["metrics"].get(quantity)
                if value is None:
                    continue
                said = foretold.get((point["name"], quantity), {}) if point["held_out"] else {}
                tip = f"{point['name']}: {value:.4f}"
                dots.append(Dot(point["flops"], value, tip, said.get("low"), said.get("high"), hollow=point["held_out"]))
            own = [law["frontier"] for law in found["laws"] if (law["family"], law["quantity"]) == (family, quantity)]
            curves = own or [{"xs": [], "values": [], "lows": [], "highs": []}]
            series += [  # one for each regime; the dots once
                Line(family, one["xs"], one["values"], colour, [] if n else dots, one["lows"], one["highs"])
                for n, one in enumerate(curves)
            ]
        panels.append(lines(series, Axis("operations of training", "log"), Axis(quantity), f"{quantity} over operations"))
    moved = [panel.replace("<svg ", f'<svg x="{360 * n}" width="360" height="218" ', 1) for n, panel in enumerate(panels)]
    keys = "".join(
        f'<g><circle class="dot c{n}" cx="{48 + 110 * n}" cy="232" r="3"/><text x="{56 + 110 * n}" y="235.5">{family}</text></g>'
        for n, family in enumerate(families)
    )
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 244"><style>{STYLE}</style>{"".join(moved)}{keys}</svg>\n'
    to.write_text(svg, encoding="utf-8")


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was foretold of held-out runs and what came: a row for each grid and quantity, those far beyond the fit apart."""
    rows = [
        "| grid | of | fitted to | held out | off by, mean | at most | inside | width | 8 times and more | off by | inside |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        for quantity in QUANTITIES:
            if (said := one["summary"].get(quantity)) is None:
                continue
            far = said.get("far")
            fitted = sum(point["state"] == "finished" and not point["held_out"] for point in one["points"])
            cells = [GRIDS[name], quantity, f"{fitted} runs", f"{said['runs']:.0f}", percent(said["mean_error"])]
            cells += [percent(said["largest_error"]), percent(said["coverage"], 0), percent(said["mean_width"])]
            cells += ["-", "-", "-"] if far is None else [
                f"{far['runs']:.0f}", percent(far["mean_error"]), percent(far["coverage"], 0)
            ]  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def law_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The law that a grid's small runs made, how far it and each form alone are off on held-out runs, the law of every run, and
    the floor by both."""
    rows = [
        "| grid | family | of | law | off on held-out runs: it, each form alone | floor | law of every run | floor | exact |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        exact = next((point["irreducible"] for point in one["points"] if point.get("irreducible") is not None), None)
        for law in one["laws"]:
            if law["quantity"] not in QUANTITIES:
                continue
            key = (law["family"], law["regime"], law["quantity"])
            forms = [form for form in one["forms"] if (form["family"], form["regime"], form["quantity"]) == key]
            forms.sort(key=lambda form: form["form"] != "the law")
            names = ["it" if form["form"] == "the law" else f"`{form['form']}`" for form in forms]
            said = ", ".join(f"{name} {percent(form['error'])}" for name, form in zip(names, forms, strict=True))
            same = [other for other in one["every_run"] if (other["family"], other["regime"], other["quantity"]) == key]
            later = [shares_of(same[0]), floor_of(same[0])] if same else ["-", "-"]
            cells = [GRIDS[name], law["family"], law["quantity"], shares_of(law), said or "-", floor_of(law), *later]
            cells.append(f"{exact:.3f}" if exact is not None and law["quantity"] == "loss" else "-")
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def again_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Laws of all but the very largest runs, on those, beside what the first laws had said of them."""
    rows = [
        "| grid | family | of | fitted to | foretold | off by, mean | at most | inside | width | the first laws | width |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        for said in one["again"]:
            of_family = {point["name"] for point in one["points"] if point["family"] == said["family"]}
            before = summary([row for row in one["checks"] if row["name"] in of_family]).get(said["quantity"], {}).get("far")
            cells = [GRIDS[name], said["family"], said["quantity"], f"{said['fitted']} runs", f"{said['runs']:.0f}"]
            cells += [percent(said["mean_error"], 2), percent(said["largest_error"], 2), percent(said["coverage"], 0)]
            cells.append(percent(said["mean_width"]))
            cells += ["-", "-"] if before is None else [percent(before["mean_error"], 2), percent(before["mean_width"])]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def today_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What laws of this version say of held-out runs, beside what was foretold before those began, and how far off
    a law would be that knew the mean over seeds."""
    rows = [
        "| grid | of | today's laws foretell | refuse | off by, mean | seeds alone | at most | inside | width "
        "| foretold before | off by | inside |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        for quantity, said in one["today"].items():
            cells = [GRIDS[name], quantity, f"{said['runs']:.0f} runs", str(said["refused"])]
            seeds = one["between_seeds"].get(quantity)
            least = "-" if seeds is None else percent(seeds["least_error"])
            cells += ["-", least, "-", "-", "-"] if not said["runs"] else [
                percent(said["mean_error"]), least, percent(said["largest_error"]), percent(said["coverage"], 0),
                percent(said["mean_width"]),
            ]  # fmt: skip
            before = one["summary"].get(quantity)
            cells += ["-"] * 3 if before is None else [
                f"{before['runs']:.0f} runs", percent(before["mean_error"]), percent(before["coverage"], 0)
            ]  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def shares_of(law: Mapping[str, Any]) -> str:
    """The forms of a law, with what each counts."""
    blend = law["blend"]
    return ", ".join(f"`{part['form']}`" + (f" {part['weight']:.2f}" if len(blend) > 1 else "") for part in blend)


def floor_of(law: Mapping[str, Any]) -> str:
    floor = law["floor"]
    return f"{floor['value']:.3f} ({floor['low']:.3f} - {floor['high']:.3f})" if floor else "-"


def results() -> dict[str, dict[str, Any]]:
    """The result files that are there, by name."""
    paths = {name: RESULTS / f"{name}.json" for name in GRIDS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="the folder of a finished grid")
    parser.add_argument("--refit", action="store_true", help="fit today's laws to the runs in the result files")
    parser.add_argument("--recipe", help="the recipe of the grid, and what was changed in it, as the command had them")
    given = parser.parse_args(arguments)
    if given.folder is None and given.recipe is not None:
        parser.error("--recipe says how a grid was made; give its folder, too")
    if given.folder is not None:
        if given.recipe is None:
            parser.error("give --recipe, which the command in the result file names")
        name = f"scale-{given.folder.name}"
        if name not in GRIDS:
            parser.error(f"{given.folder} is called none of {', '.join(one.removeprefix('scale-') for one in GRIDS)}")
        seen = overview(given.folder, ("ndcg@10",))
        text = json.dumps(document(given.folder, given.recipe, seen), indent=1) + "\n"
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
        draw(seen, ROOT / "docs" / f"{name}.svg")
    found = results()
    if given.refit:
        for name, one in found.items():
            one |= fitted_again([Point.from_json(point, name) for point in one["points"]])
            (RESULTS / f"{name}.json").write_text(json.dumps(one, indent=1) + "\n", encoding="utf-8")
    tables = (table(found), law_table(found), again_table(found), today_table(found))
    print("\n\n".join("\n".join(lines) for lines in tables))


if __name__ == "__main__":
    main()
