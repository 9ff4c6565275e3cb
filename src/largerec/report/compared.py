"""The page of a comparison: for each section quality with intervals, paired differences and costs, a row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largerec.report import charts, page, write_page
from largerec.report.results import paired_table
from largerec.report.runs import Paired

Document = Mapping[str, Any]


def compared_page(found: Document, to: Path) -> Path:
    """Write the page of a document of :func:`largerec.compare.compare` and return its path."""
    sections = []
    for section in found["sections"]:
        rows = rows_of_section(found, section)
        mark, clock = ("-with", ", with query time") if section["query_time"] else ("", "")
        sections += [
            (f"metrics{mark}", f"Quality{clock}", _metrics(rows, found)),
            (f"paired{mark}", f"Paired differences{clock}", _paired(rows, found)),
            (f"tasks{mark}", f"Tasks{clock}", _tasks(rows, found)),
            (f"costs{mark}", f"Costs{clock}", _costs([row for row in rows if row["model"]])),
            (f"tuning{mark}", f"Tuning{clock}", _tuning([row for row in rows if "trials" in row])),
        ]
    chosen = ", ".join(page.text(section["chosen"]) for section in found["sections"])
    seeds, targets = ", ".join(map(str, found["seeds"])), f"{found['targets']['n']:,}"
    head = (
        f'<p class="lead">Chosen by {page.text(found["metric"])} on validation: <strong>{chosen}</strong>.</p>'
        f'<p class="soft">{page.text(found["protocol"])}, {targets} test targets, full ranking, seen items masked, ties averaged;'
        f" seeds {seeds}, means over them; {page.text(found['hardware'])}, {page.text(found['date'])}. "
        f"<code>{page.text(found['command'])}</code></p>"
    )
    shown = [one for one in sections if one[2]]
    write_page(
        to, page.document("Recipes side by side", head, [("", shown)], f"Made by LargeRec from {page.text(found['dir'])}.")
    )
    return to


def rows_of_section(found: Document, section: Document) -> list[Document]:
    """The rows of a section, those that need no training with them."""
    return [row for row in found["rows"] if row["query_time"] in (None, section["query_time"])]


def _metrics(rows: Sequence[Document], found: Document) -> str:
    metric = found["retrieval_metric"]
    rows = [row for row in rows if row["test"]]
    if not rows:
        return ""
    k = metric.partition("@")[2]
    names = list(dict.fromkeys([metric, f"recall@{k}", f"ndcg@{k}"]))
    scale = charts.strip_scale([value for row in rows for value in (*row["intervals"].get(metric, []), row["test"][metric])])
    cells = []
    for row in rows:
        low, high = row["intervals"].get(metric, (None, None))
        tip = f"{row['name']}: {metric} {page.number(row['test'][metric])}"
        drawn = charts.strip(scale, row["test"][metric], low, high, 0 if row["model"] else None, tip)
        mark = " (chosen)" if row["chosen"] else ""
        spread = row.get("test_spread", {}).get(metric)
        cells.append(
            [
                page.text(row["name"]) + mark,
                page.number(row["validation"].get(metric)),
                *(page.with_interval(row["test"].get(name), row["intervals"].get(name)) for name in names),
                "" if spread is None else f"± {page.number(spread)}",
                drawn,
                page.number(row["test_unmasked"].get(metric)),
            ]
        )
    head = ["", f"{page.text(metric)}, validation", *(page.text(name) for name in names), "over seeds", "drawn", "unmasked"]
    foot = ["", "", *("" for _ in names), "", charts.strip_axis(scale), ""]
    main = tuple(number for number, row in enumerate(rows) if row["chosen"])
    note = (
        f'<p class="soft">Validation decides; the rest is the test part, looked at once a run. In brackets the '
        f"{100 * found['level']:g} % bootstrap interval over users, ± the standard deviation over seeds.</p>"
    )
    return note + page.table(head, cells, words=(len(names) + 3,), main=main, foot=foot, label="Quality with intervals")


def _paired(rows: Sequence[Document], found: Document) -> str:
    tests = [
        Paired(row["name"], row["paired"]["against"], {n: t for n, t in row["paired"].items() if n != "against"})
        for row in rows
        if "paired" in row
    ]
    listed = found["retrieval_metric"]
    metric = listed if tests and listed in tests[0].tests else f"ndcg@{listed.partition('@')[2]}"
    return paired_table(tests, metric, found["level"]) if tests else ""


def _tasks(rows: Sequence[Document], found: Document) -> str:
    """A table for each task, a row each, the baselines first; and the paired tests of all rows."""
    learned = [row for row in rows if row.get("tasks")]
    parts = []
    for name in dict.fromkeys(name for row in learned for name in row["tasks"]):
        baselines = [(label, tasks[name]) for label, tasks in found["task_baselines"].items() if name in tasks]
        named = baselines + [(row["name"], row["tasks"][name]) for row in learned if name in row["tasks"]]
        shown = [metric for metric in ("auc", "gauc", "ne", "accuracy") if any(metric in one for _, one in named)]
        cells = []
        for label, one in named:
            chosen = any(row["chosen"] and row["name"] == label for row in learned)
            spread = one.get("spread", {}).get(shown[0])
            values = [page.with_interval(one.get(metric), one["intervals"].get(metric)) for metric in shown]
            cells.append(
                [
                    page.text(label) + (" (chosen)" if chosen else ""),
                    *values,
                    "" if spread is None else f"± {page.number(spread)}",
                ]
            )
        head = ["", *(page.text(metric) for metric in shown), f"{shown[0]} over seeds"]
        parts.append(f"<h3>{page.text(name)}</h3>" + page.table(head, cells, label=f"The task {name}"))
    tests = [
        Paired(row["name"], row["paired_tasks"]["against"], {n: t for n, t in row["paired_tasks"].items() if n != "against"})
        for row in learned
        if len(row.get("paired_tasks", {})) > 1
    ]
    if tests:
        metric = found["metric"] if found["metric"] in tests[0].tests else next(iter(tests[0].tests))
        by = "from the same draws: twice the share on the other side of 0"
        parts.append(paired_table(tests, metric, found["level"], by=by))
    return "".join(parts)


def _costs(rows: Sequence[Document]) -> str:
    cells = [
        [
            page.text(row["name"]),
            page.text(row["model"]),
            f"{row['params_embedding']:,.0f}",
            f"{row['params_non_embedding']:,.0f}",
            f"{row['train_flops']:.2e}",
            f"{row['train_seconds']:,.0f}",
            "" if row["recommend_ms"] is None else f"{row['recommend_ms']:.3f}",
            ", ".join(str(run["best_step"]) for run in row["runs"]),
        ]
        for row in rows
    ]
    head = ["", "model", "table parameters", "other", "training FLOPs", "seconds", "ms a user", "best step"]
    note = '<p class="soft">Training: a mean over seeds. Recommending: on this machine, many users at once.</p>'
    return note + page.table(head, cells, words=(1,), label="Costs")


def _tuning(rows: Sequence[Document]) -> str:
    cells = [
        [
            page.text(row["name"]),
            str(trial["number"]),
            trial["state"] + (" (chosen)" if trial["number"] == row["trials"]["chosen"] else ""),
            page.number(trial["value"]),
            page.text(", ".join(f"{key}={value}" for key, value in trial["settings"].items())),
            f"{trial['seconds']:,.0f}",
        ]
        for row in rows
        for trial in row["trials"]["all"]
    ]
    if not cells:
        return ""
    most = rows[0]["trials"]["budget"]
    note = f'<p class="soft">At most {most} trials a recipe, on validation only; trial 0 is the recipe as it stands.</p>'
    head = ["", "trial", "", "validation", "settings", "seconds"]
    return note + page.table(head, cells, words=(2, 4), label="Trials")
