"""The tasks of runs as markup: a table of metrics for each, with its baseline, and for conditions a reliability chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from largerec.report import charts, page
from largerec.report.runs import Run

COLUMNS = ("auc", "gauc", "accuracy", "ne", "log_loss", "ece")


def found_tasks(run: Run) -> dict[str, Any]:
    """The metrics of a run's tasks on the part that may be looked at."""
    key = "tasks" if run.evaluated else "validation_tasks"
    found: dict[str, Any] = run.result.get(key) or {}
    return found


def sentence(run: Run) -> str:
    """What a run that only ranks found, in a sentence."""
    found, part = found_tasks(run), "test" if run.evaluated else "validation"
    told = [
        f"{page.text(name)} with an AUC of {page.number(one['auc'])}" if one.get("auc") is not None else page.text(name)
        for name, one in found.items()
    ]
    said = f"predicts on the {part} part {', '.join(told)}" if told else "has not finished its training"
    return f"{page.text(run.label)}, which ranks given items and retrieves nothing, {said}."


def tasks(runs: Sequence[Run]) -> str:
    """One table and one chart a task, of all runs that have it; nothing where none has."""
    names = list(dict.fromkeys(name for run in runs for name in found_tasks(run)))
    note = (
        "Every event of the part whose label is known is asked about, at its own time, after everything of its user before it. "
        "NE is the log loss over that of always saying the measured share: below 1 something was learned. ECE is the mean gap "
        "between what is predicted and what happens."
    )
    return f'<p class="soft">{note}</p>' + "".join(_task(name, runs) for name in names) if names else ""


def _task(name: str, runs: Sequence[Run]) -> str:
    rows: list[list[str]] = []
    lines: list[tuple[int, Run, Sequence[Mapping[str, float]]]] = []
    for colour, run in enumerate(runs):
        found = found_tasks(run).get(name)
        if found is None:
            continue
        rows += [_row(page.text(label), found, one) for label, one in found.get("baselines", {}).items() if not rows]
        rows.append(_row(page.key(colour) + page.text(run.label), found, found))
        if "reliability" in found:
            lines.append((colour, run, found["reliability"]))
    head = ["", "events", *(name.replace("_", " ") for name in COLUMNS)]
    table = page.table(head, rows, label=f"Metrics of the task {name}")
    return f"<h3>{page.text(name)}</h3>{table}{_reliability(name, lines) if lines else ''}"


def _row(label: str, found: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    return [label, f"{found['n']:,}", *(page.with_interval(one.get(key), one["intervals"].get(key)) for key in COLUMNS)]


def _reliability(name: str, lines: Sequence[tuple[int, Run, Sequence[Mapping[str, float]]]]) -> str:
    """Predicted probability across, observed share up, bins of equal numbers."""
    highest = max(max(b["predicted"], b["high"]) for _, _, bins in lines for b in bins)
    high = min(1.0, highest * 1.05) or 1.0
    x = charts.Axis("predicted probability", "linear", 0.0, high, charts.percent)
    y = charts.Axis("observed share", "linear", 0.0, high, charts.percent)
    series = [charts.Line("as predicted", [0.0, high], [0.0, high], None)]
    for colour, run, bins in lines:
        dots = [charts.Point(b["predicted"], b["observed"], _tip(run, b), b["low"], b["high"]) for b in bins]
        series.append(charts.Line(run.label, [], [], colour, dots))
    drawn = charts.lines(series, x, y, f"Reliability of the task {name}: predicted probability beside the observed share.")
    note = "Events in ten bins of equal size; a dot on the dashed line happens as often as predicted."
    return page.figure(f"Reliability of {name}", drawn, note, [(run.label, colour) for colour, run, _ in lines])


def _tip(run: Run, b: Mapping[str, float]) -> str:
    return f"{run.label}: {b['n']:,} events, predicted {100 * b['predicted']:.3g} %, observed {100 * b['observed']:.3g} %"
