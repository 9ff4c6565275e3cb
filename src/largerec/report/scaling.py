"""The page of a grid: loss and quality over parameters, data and operations, families overlaid, and the check of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largerec.report import charts, page, write_page

Document = Mapping[str, Any]
WORDS = {"params": "parameters outside the tables", "tokens": "training tokens", "flops": "operations of training"}


def scaling_page(found: Document, to: Path) -> Path:
    """Write the page of a document of :func:`largerec.scaling.overview.overview` and return its path."""
    quantities = list(dict.fromkeys(law["quantity"] for law in [*found["laws"], *found["every_run"]])) or ["loss"]
    groups = list(dict.fromkeys((point["family"], point["regime"]) for point in found["points"]))
    sections = [
        ("together", "Families over computing", _together(found, quantities, groups)),
        ("checks", "Foretold and measured", _checks(found)),
        ("laws", "Laws", _laws(found)),
        ("every-run", "Laws of every run", _every_run(found)),
        *(
            (f"group-{number}", f"{page.text(family)}, {regime}: size and data", _group(found, quantities, family, regime))
            for number, (family, regime) in enumerate(groups)
        ),
        ("frontier", "How to spend operations", _frontier(found)),
        ("plans", "Plans", _plans(found)),
        ("runs", "Runs", page.details(f"all {len(found['points'])} runs", _runs(found))),
    ]
    shown = [one for one in sections if one[2]]
    foot = f"Made by LargeRec from {page.text(found['dir'])}. This page is one file and asks for nothing outside it."
    write_page(to, page.document("Scaling", _head(found), [("", shown)], foot))
    return to


def _head(found: Document) -> str:
    points = found["points"]
    held, finished = sum(p["held_out"] for p in points), sum(p["state"] == "finished" for p in points)
    families = ", ".join(page.text(name) for name in dict.fromkeys(p["family"] for p in points))
    said = [f"{finished} finished runs of {families}, {held} of them held out: predicted before laws were fitted to them."]
    for quantity, one in found["summary"].items():
        said.append(
            f"{page.text(quantity)} of {one['runs']:.0f} held-out runs: off by {_percent(one['mean_error'])} on average and "
            f"{_percent(one['largest_error'])} at most; {100 * one['coverage']:.0f} % inside intervals "
            f"{_percent(one['mean_width'])} wide."
        )
        if (far := one["far"]) is not None:
            said[-1] += (
                f" Those of eight times the computing of the fit and more ({far['runs']:.0f}): off by "
                f"{_percent(far['mean_error'])} on average, {100 * far['coverage']:.0f} % inside intervals "
                f"{_percent(far['mean_width'])} wide."
            )
        if (seeds := found["between_seeds"].get(quantity)) is not None:
            said[-1] += (
                f" Runs of one kind that differ in the seed alone lie {_percent(seeds['noise'])} around their mean (one standard "
                f"deviation, {seeds['cells']:.0f} kinds), so that a law that knew every mean would be off by "
                f"{_percent(seeds['least_error'])} on average."
            )
    floors = [law for law in found["every_run"] or found["laws"] if law["floor"]]
    if found["irreducible"] is not None:
        for law in floors:
            off = law["floor"]["value"] / found["irreducible"] - 1
            said.append(
                f"The exact law of this generated log has a loss of {found['irreducible']:.4f}; runs of "
                f"{page.text(law['family'])}, {'held-out ones too' if found['every_run'] else 'held-out ones left aside'}, say "
                f"{law['floor']['value']:.4f} ({law['floor']['low']:.4f} to {law['floor']['high']:.4f}; {100 * off:+.1f} %) "
                "without knowing it."
            )
    lead = "".join(f'<p class="lead">{one}</p>' for one in said)
    if not found["refused"]:
        return lead
    refused = "".join(f"<li>{page.text(one['why'])}</li>" for one in _once(found["refused"]))
    return f'{lead}<div class="warnings"><strong>What the laws do not say</strong><ul>{refused}</ul></div>'


def _once(refused: Sequence[Document]) -> list[Document]:
    return list({one["why"]: one for one in refused}.values())


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"


def _value(point: Document, quantity: str) -> float | None:
    value = point["loss"] if quantity == "loss" else point["metrics"].get(quantity)
    return None if value is None or not value > 0 else float(value)


def _dots(points: Sequence[Document], along: str, quantity: str) -> list[charts.Point]:
    dots = []
    for point in points:
        value = _value(point, quantity)
        if value is None or point["state"] != "finished":
            continue
        mark = " (held out)" if point["held_out"] else ""
        tip = f"{point['name']}{mark}: {quantity} {value:.4f}, {point['params']:,} parameters, {point['tokens']:,} tokens"
        low, high = (point["loss_interval"] or (None, None)) if quantity == "loss" else (None, None)
        dots.append(charts.Point(point[along], value, tip, low, high, hollow=point["held_out"]))
    return dots


def _chart(lines: Sequence[charts.Line], along: str, quantity: str, title: str, note: str, alt: str) -> str:
    x, y = charts.Axis(WORDS[along], "log"), charts.Axis(quantity, "log")
    names = [(line.name, line.colour) for line in lines if line.name]
    return page.figure(title, charts.lines(lines, x, y, alt), note, names)


def _together(found: Document, quantities: Sequence[str], groups: Sequence[tuple[str, str]]) -> str:
    figures = []
    for quantity in quantities:
        lines = []
        for colour, (family, regime) in enumerate(groups):
            own = [p for p in found["points"] if (p["family"], p["regime"]) == (family, regime)]
            law = _law(found, family, regime, quantity)
            curve = law["frontier"] if law else {"xs": [], "values": [], "lows": [], "highs": []}
            name = family if len({one for _, one in groups}) == 1 else f"{family}, {regime}"
            dots = _dots(own, "flops", quantity)
            lines.append(charts.Line(name, curve["xs"], curve["values"], colour, dots, curve["lows"], curve["highs"]))
        note = "The line is the best use of so many operations by the law, with the interval of one run; open dots were held out."
        alt = f"{quantity} of {len(found['points'])} runs over operations of training, {len(groups)} series."
        figures.append(_chart(lines, "flops", quantity, f"{page.text(quantity)} over operations", note, alt))
    for one in found["compute"]:
        own = [p for p in found["points"] if (p["family"], p["regime"]) == (one["family"], one["regime"])]
        line = charts.Line("", one["xs"], one["values"], 0, _dots(own, "flops", "loss"))
        title = f"{page.text(one['family'])}, {one['regime']}: the best runs alone"
        alt = f"Loss of the runs that no cheaper one beats: {one['formula']}."
        figures.append(_chart([line], "flops", "loss", title, f"{one['formula']}; {_parameters(one['parameters'])}", alt))
    return f'<div class="charts">{"".join(figures)}</div>'


def _law(found: Document, family: str, regime: str, quantity: str) -> Document | None:
    key = (family, regime, quantity)
    return next((law for law in found["laws"] if (law["family"], law["regime"], law["quantity"]) == key), None)


def _group(found: Document, quantities: Sequence[str], family: str, regime: str) -> str:
    """Over parameters, a curve for each amount of data, and over data, one for each size."""
    figures = []
    own = [p for p in found["points"] if (p["family"], p["regime"]) == (family, regime)]
    for quantity in quantities:
        law = _law(found, family, regime, quantity)
        for along, across, word in (("params", "tokens", "tokens"), ("tokens", "params", "parameters")):
            lines = []
            for colour, curve in enumerate(law["curves"][along] if law else []):
                near = [p for p in own if abs(p[across] / curve[across] - 1) < 0.05]
                name, dots = f"{charts.compact(curve[across])} {word}", _dots(near, along, quantity)
                lines.append(charts.Line(name, curve["xs"], curve["values"], colour, dots, curve["lows"], curve["highs"]))
            if not lines:
                lines = [charts.Line("", [], [], 0, _dots(own, along, quantity))]
            alt = f"{quantity} of {family} over {WORDS[along]}, {len(lines)} curves."
            figures.append(_chart(lines, along, quantity, f"{page.text(quantity)} over {word_of(along)}", "", alt))
    return f'<div class="charts">{"".join(figures)}</div>'


def word_of(along: str) -> str:
    return {"params": "parameters", "tokens": "data"}[along]


def _parameters(parameters: Mapping[str, float]) -> str:
    return ", ".join(f"{page.text(name)} {value:.4g}" for name, value in parameters.items())


def _laws(found: Document) -> str:
    note = (
        '<p class="soft">A form is chosen by how far it is off on the largest runs of the fit when it has not seen them; '
        "intervals are widened by how much too narrow they were there. Forms that were nearly as near have a say beside it: "
        "curves and intervals are of all of them, formula, hidden error and noise of the form taken. The floor is the loss that "
        "nothing would beat.</p>"
    )
    return note + _law_table(found["laws"], "Laws") if found["laws"] else ""


def _every_run(found: Document) -> str:
    note = (
        '<p class="soft">Fitted again after the check, to the held-out runs as well: <code>largerec plan</code> asks these, '
        "and so does what this page says about spending operations. No run has checked them or their intervals; curves on this "
        "page are those of the laws that were checked.</p>"
    )
    return note + _law_table(found["every_run"], "Laws of every run") if found["every_run"] else ""


def _law_table(laws: Sequence[Document], label: str) -> str:
    rows = []
    for law in laws:
        floor = law["floor"]
        said = page.with_interval(floor["value"], (floor["low"], floor["high"])) if floor else "-"
        tried = "; ".join(f"{one['form']} {_percent(one['error'])}" for one in law["trials"][:4])
        rows.append(
            [
                f"{page.text(law['family'])}, {law['regime']}",
                page.text(law["quantity"]),
                f"{page.text(law['formula'])}<br><small>{_parameters(law['parameters'])}{_beside(law)}</small>",
                f"{law['runs']} runs, {law['cells']} kinds{_share(law)}",
                _percent(law["hidden_error"]),
                page.text(tried),
                _percent(law["noise"]),
                f"{law['widened']:.2f}",
                said,
            ]
        )
    head = ["", "of", "form", "from", "off, hidden", "forms tried", "noise of a run", "widened", "floor"]
    return page.table(head, rows, words=(2, 5), label=label)


def _share(law: Document) -> str:
    """How much of the runs a form was fitted to: it is chosen among shares of the largest, since small ones may follow no law."""
    return "" if law["share_of_cells"] == 1 else f"<br><small>fitted to the largest {100 * law['share_of_cells']:.0f} %</small>"


def _beside(law: Document) -> str:
    """What else has a say in the law's values."""
    own, *others = law["blend"]
    said = "; ".join(f"{page.text(one['form'])} {one['weight']:.2f}" for one in others)
    return f"<br>counts {own['weight']:.2f}; beside it {said}" if others else ""


def _checks(found: Document) -> str:
    rows = found["checks"]
    if not rows:
        return ""
    parts = []
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        own = [row for row in rows if row["quantity"] == quantity]
        scale = charts.strip_scale([value for row in own for value in (100 * (row["low"] / row["value"] - 1),
            100 * (row["high"] / row["value"] - 1), 100 * (row["measured"] / row["value"] - 1))], signed=True)  # fmt: skip
        cells = []
        for row in own:
            low, high, at = (100 * (row[name] / row["value"] - 1) for name in ("low", "high", "measured"))
            tip = f"{row['name']}: measured {at:+.2f} % from what was foretold, interval {low:+.2f} % to {high:+.2f} %"
            times = row.get("times_largest")
            cells.append(
                [
                    page.text(row["name"]),
                    "-" if times is None else f"{times:.1f}",
                    page.with_interval(row["value"], (row["low"], row["high"])),
                    page.number(row["measured"]),
                    f"{100 * row['error']:+.2f} %",
                    "yes" if row["inside"] else "no",
                    charts.strip(scale, at, low, high, 0 if row["inside"] else 1, tip),
                ]
            )
        head = ["held-out run", "times the largest fitted", "foretold", "measured", "off by", "inside", "percent of foretold"]
        foot = ["", "", "", "", "", "", charts.strip_axis(scale)]
        parts.append(
            f"<h3>{page.text(quantity)}</h3>" + page.table(head, cells, words=(6,), foot=foot, label=f"{quantity} foretold")
        )
    before = all(row["before"] for row in rows)
    said = "Written down before these runs began." if before else "Foretold now, from the runs that are fitted to alone."
    level = f"{100 * found['level']:.0f}"
    return f'<p class="soft">{said} Intervals are for one run and should hold {level} of a hundred.</p>{"".join(parts)}'


def _frontier(found: Document) -> str:
    rows = []
    for law in found["every_run"] or found["laws"]:
        curve = law["frontier"]
        for at in range(0, len(curve["xs"]), 4):
            rows.append(
                [
                    f"{page.text(law['family'])}, {page.text(law['quantity'])}",
                    f"{curve['xs'][at]:.2e}",
                    f"{curve['params'][at]:,.0f}",
                    f"{curve['tokens'][at]:,.0f}",
                    page.with_interval(curve["values"][at], (curve["lows"][at], curve["highs"][at])),
                ]
            )
    note = '<p class="soft">The size and the data that a law gives for so many operations of one training run.</p>'
    head = ["law", "operations", "parameters", "tokens", "foretold"]
    return note + page.table(head, rows, label="How to spend operations") if rows else ""


def _plans(found: Document) -> str:
    rows = []
    for plan in found["plans"]:
        asked = ", ".join(f"{name} {value}" for name, value in plan["asked"].items() if value is not None)
        checked = plan["checked"]
        for quantity, said in plan["predicted"].items():
            row = next((one for one in checked["rows"] if one["quantity"] == quantity), None) if checked else None
            rows.append(
                [
                    page.text(asked),
                    f"{page.text(plan['family'])} {page.text(plan['size'])}, {plan['tokens']:,} tokens",
                    page.text(quantity),
                    page.with_interval(said["value"], (said["low"], said["high"])),
                    "-" if row is None else f"{page.number(row['measured'])}, {'inside' if row['inside'] else 'outside'}",
                    f"{plan['core_minutes']:.2f}",
                    "-" if checked is None else f"{checked['core_minutes']['trained']:.2f}",
                ]
            )
    head = ["asked", "proposed", "", "foretold", "measured", "core-minutes in all, at most", "training alone took"]
    return page.table(head, rows, words=(0, 1), label="Plans") if rows else ""


def _runs(found: Document) -> str:
    rows = [
        [
            page.text(point["name"]) + (" (held out)" if point["held_out"] else ""),
            point["state"],
            point["regime"],
            f"{point['params']:,}",
            f"{point['tokens']:,}",
            f"{point['flops'] or 0:.2e}",
            f"{(point['seconds'] or 0) * point['cores'] / 60:.2f}",
            page.with_interval(point["loss"], point["loss_interval"]),
            *(page.number(point["metrics"].get(name)) for name in ("ndcg@10", "recall@10")),
        ]
        for point in sorted(found["points"], key=lambda point: point["flops"] or 0)
    ]
    head = ["run", "", "", "parameters", "tokens", "operations", "core-minutes", "loss", "ndcg@10", "recall@10"]
    return page.table(head, rows, words=(), label="Runs")
