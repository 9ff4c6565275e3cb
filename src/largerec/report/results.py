"""What was measured, as markup: curves of training, metrics with intervals, paired differences, slices, calibration, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from largerec.report import charts, page
from largerec.report.runs import Paired, Run, cutoffs

SHOWN = ("recall", "ndcg", "mrr")
MOST_POINTS = 240  # of a curve
FEW = 100  # targets of a slice below which its numbers are only a hint
SLICE_NAMES = {
    "head": "popular targets (head)",
    "tail": "other targets (tail)",
    "cold": "targets without a training event (cold)",
}


def thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """A long curve as means of at most MOST_POINTS neighbours: losses are means already."""
    if len(xs) <= MOST_POINTS:
        return list(xs), list(ys)
    parts = np.array_split(np.arange(len(xs)), MOST_POINTS)
    at_x, at_y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    return [float(at_x[part].mean()) for part in parts], [float(at_y[part].mean()) for part in parts]


def training(runs: Sequence[Run]) -> str:
    """Loss and validation metric over the events read in training, all runs on the same axes."""
    keys = [(run.label, colour) for colour, run in enumerate(runs)]
    losses, validations = [], []
    names = {run.recipe.train.metric for run in runs}
    for colour, run in enumerate(runs):
        loss = [line for line in run.log if "loss" in line]
        xs, ys = thinned([line["tokens"] for line in loss], [line["loss"] for line in loss])
        losses.append(charts.Line(run.label, xs, ys, colour))
        validations.append(_validation_line(run, colour))
    x = charts.Axis("events read", low=0.0)
    if not any(line.xs for line in (*losses, *validations)):
        return '<p class="soft">There is no log of the training yet.</p>'
    ends = "; ".join(f"{line.name} from {line.ys[0]:.3g} to {line.ys[-1]:.3g}" for line in losses if len(line.ys))
    shown = [
        page.figure(
            "Training loss", charts.lines(losses, x, charts.Axis("loss"), f"Training loss: {ends}."), _objective(runs), keys
        )
    ]
    if any(line.xs for line in validations):
        best = "; ".join(f"{line.name} at best {max(line.ys):.4f}" for line in validations if len(line.ys))
        drawn = charts.lines(validations, x, charts.Axis("", low=0.0), f"Validation: {best}.")
        metric = next(iter(names)) if len(names) == 1 else "the metric of each run"
        note = "On the sample that training looks at. The weights of the best validation are kept."
        shown.append(page.figure(f"Validation, {page.text(metric)}", drawn, note, keys))
    return f'<div class="charts">{"".join(shown)}</div>{_costs(runs)}'


def _validation_line(run: Run, colour: int) -> charts.Line:
    name = run.recipe.train.metric
    looks = [line for line in run.log if name in line.get("validation", {})]
    xs, ys = [line["tokens"] for line in looks], [line["validation"][name] for line in looks]
    points = []
    if len(xs) <= 60:
        points = [
            charts.Point(x, y, f"{run.label}, step {line['step']:,}: {name} {y:.4f}")
            for x, y, line in zip(xs, ys, looks, strict=True)
        ]
    return charts.Line(run.label, xs, ys, colour, points)


def _objective(runs: Sequence[Run]) -> str:
    names = sorted({run.recipe.objective.name for run in runs})
    return (
        f"Mean {page.text(names[0])} loss an event."
        if len(names) == 1
        else f"Losses of different objectives ({page.text(', '.join(names))}) cannot be compared by height."
    )


def _costs(runs: Sequence[Run]) -> str:
    rows = []
    for colour, run in enumerate(runs):
        result, loss = run.result, [line for line in run.log if "loss" in line]
        if result:
            speed = result["train_tokens"] / max(result["train_seconds"], 1e-9)
            best = result["validation"].get(run.recipe.train.metric)
            done = [
                f"{result['steps']:,}",
                f"{result['best_step']:,}",
                f"{result['train_tokens']:,}",
                f"{result['train_seconds']:,.0f}",
            ]
            rows.append([page.key(colour) + page.text(run.label), *done, f"{speed:,.0f}", page.number(best)])
        else:
            done = [f"{loss[-1]['step']:,}" if loss else "0", "-", f"{loss[-1]['tokens']:,}" if loss else "0", "-", "-", "-"]
            rows.append([page.key(colour) + page.text(run.label), *done])
    head = ["run", "steps", "best step", "events read", "seconds", "events a second", "validation, all targets"]
    return page.table(head, rows, label="Training in numbers")


# --- metrics


class Row(NamedTuple):
    """A line of the metric tables: a baseline (no colour) or a run, with its masked and unmasked metrics."""

    label: str
    colour: int | None
    found: Mapping[str, Any]
    unmasked: Mapping[str, Any]
    intervals: Mapping[str, Sequence[float]]


def metric_table(runs: Sequence[Run], metric: str) -> str:
    """Baselines, the best possible where it is known, and runs of one group, with intervals; the main metric is drawn too."""
    first = next((run for run in runs if run.metrics), None)
    if first is None:
        return ""
    ks = cutoffs(first.metrics)
    k = int(metric.partition("@")[2]) if "@" in metric else (ks or [10])[-1]
    names = list(dict.fromkeys([metric, *(f"{kind}@{k}" for kind in SHOWN if f"{kind}@{k}" in first.metrics)]))
    beside = [*first.result.get("baselines", {}).items(), ("best possible", first.result.get("best_possible"))]
    rows = [Row(name, None, b, b["unmasked"], b["intervals"]) for name, b in beside if b]
    for colour, run in ((colour, run) for colour, run in enumerate(runs) if run.metrics):
        unmasked, intervals = run.result.get(f"{run.stage}_unmasked", {}), run.result.get("intervals", {})
        rows.append(Row(run.label, colour, run.metrics, unmasked, intervals))
    ends = [value for row in rows for value in (*row.intervals.get(metric, []), row.found.get(metric, 0.0))]
    scale = charts.strip_scale(ends)
    cells = []
    for row in rows:
        low, high = row.intervals.get(metric, (None, None))
        spread = f", interval {page.number(low)} to {page.number(high)}" if low is not None else ""
        tip = f"{row.label}: {metric} {page.number(row.found.get(metric))}{spread}"
        drawn = charts.strip(scale, row.found[metric], low, high, row.colour, tip) if metric in row.found else ""
        numbers = [page.with_interval(row.found.get(name), row.intervals.get(name)) for name in names]
        label = (page.key(row.colour) if row.colour is not None else "") + page.text(row.label)
        cells.append([label, *numbers, drawn, page.number(row.unmasked.get(metric))])
    own = next(number for number, row in enumerate(rows) if row.colour is not None)
    head = ["", *(page.text(name) for name in names), f"{page.text(metric)}, drawn", f"{page.text(metric)} unmasked"]
    foot = ["", *("" for _ in names), charts.strip_axis(scale), ""]
    shown = page.table(head, cells, words=(len(names) + 1,), main=(own,), foot=foot, label="Metrics with intervals")
    legend = f" In brackets the {_levels(runs)} bootstrap interval over users." if any(row.intervals for row in rows) else ""
    note = f'<p class="soft">{_rules(first)}{legend}</p>'
    return note + shown + page.details("All metrics", _all_metrics(rows))


def _levels(runs: Sequence[Run]) -> str:
    """The level of the runs' intervals; of each, where they were evaluated with several."""
    found = {run.label: f"{100 * run.level:g} %" for run in runs if run.metrics}
    said = set(found.values())
    return said.pop() if len(said) == 1 else ", ".join(f"{level} ({page.text(label)})" for label, level in found.items())


def _rules(run: Run) -> str:
    clock = "with query time" if run.result.get("query_time") else "without query time"
    return (
        f"Split: {page.text(run.recipe.split.protocol)}, {run.stage} part. Full ranking over the whole catalogue, seen items "
        f"masked unless it says unmasked, ties averaged, {clock}."
    )


def _all_metrics(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name, value in row.found.items() if isinstance(value, int | float)))
    unmasked = list(dict.fromkeys(name for row in rows for name in row.unmasked))
    table = [
        [page.text(name), *(page.with_interval(row.found.get(name), row.intervals.get(name)) for row in rows)] for name in names
    ]
    table += [[f"{page.text(name)} unmasked", *(page.number(row.unmasked.get(name)) for row in rows)] for name in unmasked]
    return page.table(["", *(page.text(row.label) for row in rows)], table, label="All metrics")


def paired_table(found: Sequence[Paired], metric: str, level: float, *, by: str = "of a sign-flip permutation test") -> str:
    """Paired differences with interval and p-value, for the main metric drawn; ``by``: where the p-value is from."""
    tested = [one for one in found if metric in one.tests]
    shown = ""
    if tested:
        ends = [one.tests[metric][end] for one in tested for end in ("low", "high", "difference")]
        scale = charts.strip_scale(ends, signed=True)
        rows = []
        for one in tested:
            test, name = one.tests[metric], f"{one.first} minus {one.second}"
            span = f"{page.signed(test['low'])} to {page.signed(test['high'])}"
            tip = f"{name}: {page.signed(test['difference'])}, interval {span}"
            drawn = charts.strip(scale, test["difference"], test["low"], test["high"], 0, tip)
            cells = [page.signed(test["difference"]), span, page.p_value(test["p_value"]), drawn, verdict(test, level)]
            rows.append([f"{page.text(one.first)} minus {page.text(one.second)}", *cells])
        head = [f"{page.text(metric)}", "difference", f"{100 * level:g} % interval", "", "drawn", ""]
        foot = ["", "", "", "", charts.strip_axis(scale), ""]
        shown = page.table(head, rows, words=(4, 5), foot=foot, label="Paired differences")
        shown += page.details("Paired differences in every tested metric", _all_tests(tested))
    reasons = "".join(
        f'<p class="soft">No paired test of {page.text(one.first)} and {page.text(one.second)}: {page.text(one.why_not)}.</p>'
        for one in found
        if one.why_not
    )
    note = (
        '<p class="soft">The same targets for both, users as the independent units: bootstrap interval, and p-value '
        f"{page.text(by)}. With many comparisons, one in twenty falls below .05 by chance.</p>"
    )
    return (note if tested else "") + shown + reasons


def verdict(test: Mapping[str, float], level: float) -> str:
    """One word or two on a paired test of a metric that is better where it is higher, as all that are tested but NE are."""
    if test["p_value"] >= 1 - level:
        return "no clear difference"
    return "better" if test["difference"] > 0 else "worse"


def _all_tests(found: Sequence[Paired]) -> str:
    rows = [
        [
            f"{page.text(one.first)} minus {page.text(one.second)}",
            page.text(name),
            page.signed(test["difference"]),
            f"{page.signed(test['low'])} to {page.signed(test['high'])}",
            page.p_value(test["p_value"]),
        ]
        for one in found
        for name, test in one.tests.items()
    ]
    return page.table(["", "metric", "difference", "interval", ""], rows, words=(1,), label="All paired differences")


def slices(runs: Sequence[Run], metric: str) -> str:
    """The main metric by kind of target and length of history; a bar where there is one run, else a column a run."""
    shown = [(colour, run) for colour, run in enumerate(runs) if run.result.get("slices")]
    if not shown:
        return ""
    names = list(dict.fromkeys(name for _, run in shown for name in run.result["slices"]))
    most = max((found.get(metric, 0.0) for _, run in shown for found in run.result["slices"].values()), default=0.0) or 1.0
    total = shown[0][1].result["targets"]["n"]
    rows = []
    for name in names:
        found = [run.result["slices"].get(name, {}) for _, run in shown]
        targets = next((one["targets"] for one in found if one), 0)
        label = SLICE_NAMES.get(name) or name.replace("history", "history of") + " events"
        cells = [page.text(label), f"{targets:,}{' <small>few</small>' if targets < FEW else ''}", page.share(targets, total)]
        for (colour, _), one in zip(shown, found, strict=True):
            part = 100 * one.get(metric, 0.0) / most
            bar = f'<span class="share"><i style="width:{part:.1f}%;background:var(--c{colour % charts.COLOURS})"></i></span>'
            low, high = one.get("intervals", {}).get(metric, (None, None))  # runs of before had none
            span = "" if low is None else f" <small>{page.number(low)} - {page.number(high)}</small>"
            cells += [page.number(one.get(metric)) + span, bar]
        rows.append(cells)
    heads = [cell for colour, run in shown for cell in (page.text(metric), page.key(colour) + page.text(run.label))]
    words = tuple(4 + 2 * number for number in range(len(shown)))
    return page.table(["targets", "number", "share", *heads], rows, words=words, label="Slices")


# --- calibration


def calibration(found: Sequence[tuple[int, Run, dict[str, Any]]]) -> str:
    """A reliability chart: predicted probability of recommended items beside the share of hits, on logarithmic axes."""
    found = [one for one in found if one[2]["bins"]]
    if not found:
        return '<p class="soft">No target has a history with items of the catalogue, so there is nothing to calibrate.</p>'
    points = [b for _, _, one in found for b in one["bins"]]
    positive = [value for b in points for value in (b["predicted"], b["observed"], b["low"]) if value > 0]
    low = max(min(positive, default=1e-4) / 1.3, 1e-6)
    high = min(1.0, max(max(b["predicted"], b["observed"], b["high"]) for b in points) * 1.3)
    x = charts.Axis("predicted probability", "log", low, high, charts.percent)
    y = charts.Axis("observed share of hits", "log", low, high, charts.percent)
    series = [charts.Line("as probable as predicted", [low, high], [low, high], None)]
    for colour, run, one in found:
        dots = [
            charts.Point(b["predicted"], max(b["observed"], low), _tip(run, b), max(b["low"], low), b["high"])
            for b in one["bins"]
        ]
        series.append(charts.Line(run.label, [], [], colour, dots))  # no curve: neighbouring bins owe each other nothing
    said = "; ".join(f"{run.label}: {_expected(one)}" for _, run, one in found)
    drawn = charts.lines(series, x, y, f"Reliability of the scores. {said}.")
    keys = [(run.label, colour) for colour, run, _ in found]
    sentences = "".join(f"<p>{page.text(run.label)}: {_expected(one)} {_trust(run)}</p>" for _, run, one in found)
    note = "Recommended items in ten bins of equal size; a dot on the dashed line is as probable as predicted."
    zero = " A bin without a hit lies on the lower edge." if any(b["observed"] == 0 for b in points) else ""
    figure = page.figure("Reliability", drawn, note + zero, keys)
    return f'<div class="beside">{figure}<div>{sentences}{page.details("The bins in numbers", _bins(found))}</div></div>'


def _tip(run: Run, b: Mapping[str, float]) -> str:
    return (
        f"{run.label}: {b['n']:,} recommendations, predicted {100 * b['predicted']:.3g} %, observed {100 * b['observed']:.3g} % "
        f"({100 * b['low']:.3g} to {100 * b['high']:.3g})"
    )


def _expected(one: Mapping[str, Any]) -> str:
    expected, (low, high) = one["expected"], one["interval"]
    word = (
        "too sure of itself" if expected > high else "too modest" if expected < low else "right within the noise of these users"
    )
    return (
        f"in 100 lists of {one['k']} the scores promise {100 * expected:.1f} hits, and {100 * one['observed']:.1f} came true "
        f"[{100 * low:.1f}, {100 * high:.1f}]: {word} ({one['targets']:,} targets)."
    )


def _trust(run: Run) -> str:
    """Whether the scores of an objective mean probabilities at all."""
    objective = run.recipe.objective
    if objective.name == "softmax":
        return "It was trained with the full softmax, so its scores are meant as probabilities."
    if objective.name == "sampled-softmax" and objective.logq:
        return (
            "It was trained with sampled negatives and the logQ correction, so its scores are probabilities only approximately."
        )
    return (
        f"It was trained with {objective.name} on sampled negatives: its scores order items and are not meant as probabilities, "
        "so read this chart as a description."
    )


def _bins(found: Sequence[tuple[int, Run, dict[str, Any]]]) -> str:
    rows = []
    for colour, run, one in found:
        mark = page.key(colour) + page.text(run.label)
        for b in one["bins"]:
            span = f'<span class="interval">[{100 * b["low"]:.3g}, {100 * b["high"]:.3g}]</span>'
            rows.append([mark, f"{b['n']:,}", f"{100 * b['predicted']:.3g} %", f"{100 * b['observed']:.3g} % {span}"])
    return page.table(["", "items", "predicted", "observed"], rows, label="Bins of the reliability chart")


# --- examples


def examples(found: Sequence[Mapping[str, Any]], stage: str, k: int) -> str:
    """Users with what they had, what was recommended at that moment, and what they took."""
    if not found:
        return ""
    hits = found[0]["hit_share"]
    shown = [
        f'<p class="soft">Drawn at random (seeded) from the {stage} targets: up to three whose next item was among the first '
        f"{k}, and up to three whose was not. Of all targets {100 * hits:.1f} % were. Seen items are not recommended.</p>"
    ]
    for one in found:
        rank = one["rank"]
        place = one["why_missing"] if np.isinf(rank) else f"rank {rank:,.0f} of {one['catalogue']:,}"
        mark = ' class="hit"' if rank <= k else ""
        truth = f"<p>Took next: <strong>{_item(one['truth'])}</strong> <span{mark}>({place})</span></p>"
        history = "".join(f"<li>{_item(item)}</li>" for item in one["history"])
        best = "".join(_recommended(item, one["truth"]) for item in one["recommendations"])
        more = f" (the last {len(one['history'])} of {one['length']:,})" if one["length"] > len(one["history"]) else ""
        shown.append(
            f'<article><h3>User {page.text(one["user_id"])}</h3>{truth}<div class="example">'
            f'<div><h4>History, oldest first{more}</h4><ul class="plain">{history}</ul></div>'
            f"<div><h4>Recommended, best first</h4><ol>{best}</ol></div></div></article>"
        )
    return "".join(shown)


def _item(item: Mapping[str, Any]) -> str:
    """An item with its title, its id where that says more, and when it was."""
    title, when = item.get("title"), f" {item['date']}" if item.get("date") else ""
    if not title:
        return page.text(item["item_id"]) + (f" <small>{when.strip()}</small>" if when else "")
    return f"{page.text(title)} <small>{page.text(item['item_id'])}{when}</small>"


def _recommended(item: Mapping[str, Any], truth: Mapping[str, Any]) -> str:
    if item["item_id"] == truth["item_id"]:
        return f'<li><span class="hit">{_item(item)} ✓</span></li>'
    return f"<li>{_item(item)}</li>"
