"""Tables on the terminal: what the verbs print for people. ``--json`` prints the same numbers as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table

SHOWN = ("recall@10", "ndcg@10", "mrr@10")


def console() -> Console:
    """The terminal, or 132 columns where the output goes to a file or a pipe."""
    return Console(highlight=False, width=None if Console().is_terminal else 132)


def _number(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def with_interval(name: str, found: dict[str, Any], intervals: dict[str, list[float]]) -> str:
    if found.get(name) is None:
        return "-"
    low, high = intervals.get(name, (float("nan"), float("nan")))
    return f"{_number(found[name])} [dim]\\[{_number(low)}, {_number(high)}][/dim]"


def metric_table(rows: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Rows of name, masked metrics with intervals, unmasked NDCG@10; the protocol stands in the title."""
    names = [name for name in SHOWN if name in result["test"]] or [
        name for name in result["test"] if name.startswith(("recall@", "ndcg@"))
    ]
    clock = "with query time" if result["query_time"] else "without query time"
    rules = f"full ranking, seen items masked, ties averaged, {clock}"
    title = f"{result['protocol']} test, {result['targets']['n']:,} targets, {rules}, seed {result['seed']}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right")
    unmasked = next((name for name in names if name.startswith("ndcg@")), names[0])
    table.add_column(f"{unmasked} unmasked", justify="right")
    table.add_column("train s", justify="right")
    for row in rows:
        cells = [with_interval(name, row["test"], row["intervals"]) for name in names]
        seconds = f"{row['train_seconds']:.0f}" if row.get("train_seconds") is not None else "-"
        table.add_row(escape(row["name"]), *cells, _number(row["unmasked"][unmasked]), seconds)
    return table


def reached(result: dict[str, Any]) -> str | None:
    """How much of the best possible a model reaches, in a sentence; None where the best is not known."""
    best = result.get("best_possible")
    name = next((name for name in SHOWN[::-1] + SHOWN if best and name in result["test"] and name.startswith("ndcg@")), None)
    if not best or name is None:
        return None
    share = result["test"][name] / best[name] if best[name] else float("nan")
    return (
        f"{result['model']} reaches {share:.0%} of the best possible {name}: that of a recommender which knows the law of the "
        "generated world, but not its dice."
    )


def run(found: dict[str, Any], to: Console | None = None) -> None:
    """The closing page of ``largerec run``: examples, table, where the files are."""
    to = to or console()
    for example in found["examples"]:
        to.print(_example(example))
    if found["result"]["test"]:
        to.print(metric_table(found["rows"], found["result"]))
    if (share := reached(found["result"])) is not None:
        to.print(share)
    if found["result"]["tasks"]:
        to.print(task_table(found["result"]))
    if "lists" in found["result"]:
        to.print(list_table(found["result"]))
    if "random" in found["result"]:
        to.print(random_table(found["result"]))
    if "exposure" in found["result"]:
        to.print(exposure_table(found["result"]["exposure"]))
    files = f"Files: {found['dir']}/ (result.json, metrics.jsonl, recipe.json, ...)"
    to.print(f"{_levels(found['rows'], found['result'])} {files}", markup=False)
    to.print(f"Report: {found['report']} (open it in a browser)", markup=False, soft_wrap=True)
    asked = f"{_option('--user-id', found['examples'][0]['user_id'])} -k 10" if found["examples"] else ""
    verb = f"recommend {_argument(found['dir'])}" if asked else f"rank {_argument(found['dir'])}"
    to.print(f"Next: largerec {verb} {asked or '--user-id USER --items ITEM ITEM'}", markup=False, soft_wrap=True)


def _argument(value: Any) -> str:
    """An id or a path as an argument of a command that may be copied."""
    return quote(str(value))


def _option(name: str, value: Any) -> str:
    """An option with its value; joined where the value would be taken for another option."""
    return f"{name}={_argument(value)}" if str(value).startswith("-") else f"{name} {_argument(value)}"


def _levels(rows: list[dict[str, Any]], result: dict[str, Any]) -> str:
    """Of which level the intervals are; of each row, where runs were evaluated with several."""
    found = {row["name"]: f"{100 * row['level']:g} %" for row in rows if "level" in row}
    alike = len(set(found.values())) < 2
    said = f"{100 * result['level']:g} %" if alike else ", ".join(f"{level} ({name})" for name, level in found.items())
    return f"Intervals: {said} bootstrap over users."


def task_table(result: dict[str, Any]) -> Table:
    """Metrics of each task of an evaluated run, the share of items as a baseline beside it."""
    title = "tasks: every event of the test part whose label is known, at its own time"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("task", "predicted by", "events", "auc", "gauc", "accuracy", "log loss", "ne", "ece"):
        table.add_column(name, justify="left" if name in ("task", "predicted by") else "right")
    for task, found in result["tasks"].items():
        for label, row in (*found["baselines"].items(), (result["model"], found)):
            cells = [with_interval(name, row, row["intervals"]) for name in ("auc", "gauc", "accuracy")]
            rest = [f"{row[name]:.4f}" if row.get(name) is not None else "-" for name in ("log_loss", "ne", "ece")]
            table.add_row(escape(task), escape(label), f"{found['n']:,}", *cells, *rest)
    return table


def list_table(result: dict[str, Any]) -> Table:
    """How high the chosen one of some shown items stands, by the run's scores and by plain rules."""
    found = result["lists"]
    title = f"choices among shown items: {found['n']:,} lists of {found['mean_length']:.1f} items, seen items not masked"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("ranked by", "mrr", "ndcg", "hit@1", "mrr less touched, then shown"):
        table.add_column(name, justify="left" if name == "ranked by" else "right")
    for part, before in (("baselines", ""), ("scores", f"{result['model']}: ")):
        for name, row in found[part].items():
            cells = [with_interval(one, row, row["intervals"]) for one in ("mrr", "ndcg", "hit@1")]
            test = row.get("mrr_against")
            said = f"{test['difference']:+.4f}, p = {test['p_value']:.4f}" if test else ""
            table.add_row(escape(before + name), *cells, said)
    return table


def exposure_table(found: dict[str, Any]) -> Table:
    """Plain and weighted estimates side by side, with what the weights are worth."""
    title = f"as if every item had been shown alike: propensities by {found['by']}, clipped at {found['clip']:g} times the mean"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("of", "by", "metric", "plain", "ips", "clipped", "snips", "events", "worth"):
        table.add_column(name, justify="left" if name in ("of", "by", "metric") else "right")
    for part, who, metric, row, about in exposure_rows(found):
        cells = [with_interval(one, row, row["intervals"]) for one in ("plain", "ips", "clipped", "snips")]
        table.add_row(
            escape(part), escape(who), escape(metric), *cells, f"{about['n']:,}", f"{about['weights']['effective_n']:,.0f}"
        )
    return table


def exposure_rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any], dict[str, Any]]]:
    """What was measured, by whom it was ranked or predicted, the metric, its estimates, and the events and weights behind them.

    Of metrics with cutoffs only those at 10 are given, or at the first cutoff where there is no 10."""
    parts = {name: found[name] for name in ("retrieval", "lists") if name in found}
    for part, about in (parts | found.get("tasks", {})).items():
        for who, measured in about.items():
            if who in ("n", "weights"):
                continue
            cutoffs = [name.partition("@")[2] for name in measured if "@" in name and not name.startswith("hit")]
            k = "10" if "10" in cutoffs else next(iter(cutoffs), "")
            for metric, row in measured.items():
                if metric.partition("@")[2] in ("", k, "1"):
                    yield part, who, metric, row, about


def random_table(result: dict[str, Any]) -> Table:
    """What was shown at random beside the test part that a policy chose: tasks, and retrieval of the positives."""
    found = result["random"]
    title = f"shown at random, in the period of the test: {found['n']:,} of {found['rows']:,} rows, beside what the policy showed"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("of", "shown", "events", "metric", "value"):
        table.add_column(name, justify="left" if name in ("of", "shown", "metric") else "right")
    for of, how, events, metric, row in random_rows(result):
        table.add_row(escape(of), how, f"{events:,}", metric, with_interval(metric, row, row["intervals"]))
    return table


def random_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, int, str, dict[str, Any]]]:
    """Task or retrieval, by chance or by the policy, events, metric, and the document that has the metric and its interval."""
    found = result["random"]
    for name, row in found.get("tasks", {}).items():
        for how, one in (("by chance", row), ("by policy", result["tasks"][name])):
            for metric in ("auc", "gauc", "ne", "accuracy"):
                if one.get(metric) is not None:
                    yield name, how, one["n"], metric, one
    if "retrieval" in found:
        row = found["retrieval"]
        policy = result["test"] | {"intervals": result["intervals"]}
        metric = next((name for name in SHOWN[1:2] if name in row), next(name for name in row if name.startswith("ndcg@")))
        yield "retrieval", "by chance", row["n"], metric, row
        yield "retrieval", "by policy", result["targets"]["n"], metric, policy


def _label(row: dict[str, Any]) -> str:
    title = row.get("title")
    return escape(f"{title} ({row['item_id']})" if title else str(row["item_id"]))


def _example(example: dict[str, Any]) -> Table:
    table = Table(title=escape(f"user {example['user_id']}"), title_justify="left", title_style="bold")
    table.add_column("last in the history, oldest first", overflow="fold")
    table.add_column("recommended, best first", overflow="fold")
    table.add_column("score", justify="right")
    history, best = example["history"], example["recommendations"]
    for i in range(max(len(history), len(best))):
        left = _label(history[i]) if i < len(history) else ""
        right, score = (_label(best[i]), f"{best[i]['score']:.2f}") if i < len(best) else ("", "")
        table.add_row(left, right, score)
    return table


def trained(result: dict[str, Any], path: str) -> None:
    to = console()
    found = "  ".join(f"{name} {_number(result['validation'][name])}" for name in SHOWN if name in result["validation"])
    if found:
        to.print(f"validation (seen items masked): {found}")
    for task, measured in result.get("validation_tasks", {}).items():
        kept = [f"{name} {_number(measured[name])}" for name in ("auc", "gauc", "ne") if measured.get(name) is not None]
        to.print(f"validation of {task}: {'  '.join(kept)}", markup=False)
    to.print(f"Files: {Path(path)}/. Next: largerec evaluate {_argument(path)}", markup=False, soft_wrap=True)


def evaluated(result: dict[str, Any]) -> None:
    from largerec.experiments import rows_of  # here, since most of what is printed needs no torch

    to = console()
    if not result["test"]:  # a model that only ranks
        to.print(task_table(result))
        return to.print(f"{_levels([], result)} Test evaluations of this run: {result['n_test_evaluations']}.")
    rows = rows_of([result])
    to.print(metric_table(rows, result))
    if (share := reached(result)) is not None:
        to.print(share)
    if result["tasks"]:
        to.print(task_table(result))
    if "lists" in result:
        to.print(list_table(result))
    if "random" in result:
        to.print(random_table(result))
    if "exposure" in result:
        to.print(exposure_table(result["exposure"]))
    slices = Table(title="slices", title_justify="left", title_style="bold")
    for name in ("slice", "targets", *SHOWN):
        slices.add_column(name, justify="left" if name == "slice" else "right")
    for name, found in result["slices"].items():
        slices.add_row(name, f"{found['targets']:,}", *(_number(found[m]) if m in found else "-" for m in SHOWN))
    to.print(slices)
    targets = result["targets"]
    to.print(
        f"{targets['n']:,} targets of {targets['users']:,} users; {targets['outside_catalogue']:,} outside the training "
        f"catalogue (misses), {targets['masked_as_seen']:,} seen before (misses when masked). "
        f"{_levels(rows, result)} Test evaluations of this run: {result['n_test_evaluations']}."
    )
    for name, test in result.get("paired", {}).items():
        if name != "against":
            interval = f"[{test['low']:+.4f}, {test['high']:+.4f}]"
            line = f"{name} minus {result['paired']['against']}: {test['difference']:+.4f} {interval}, p = {test['p_value']:.4f}"
            to.print(line, markup=False)


def reported(found: dict[str, Any]) -> None:
    """What a report says first, and where it is."""
    to = console()
    for line in (*found["summary"], *(f"Note: {warning}" for warning in found["warnings"])):
        to.print(line, markup=False)
    to.print(f"Report: {found['report']} ({found['bytes'] / 1e3:,.0f} kB; open it in a browser)", markup=False, soft_wrap=True)


def compared(found: dict[str, Any]) -> None:
    """The table of each section of a comparison, the paired tests, and where the files are."""
    to = console()
    for section in found["sections"]:
        rows = [row for row in found["rows"] if row["query_time"] in (None, section["query_time"])]
        if any(row["test"] for row in rows):
            to.print(_compared_table([row for row in rows if row["test"]], section, found))
        if any(row.get("tasks") for row in rows):
            to.print(_compared_tasks(rows, found))
        to.print(_cost_table([row for row in rows if row["model"]]))
        for row in rows:
            for name, test in {**row.get("paired", {}), **row.get("paired_tasks", {})}.items():
                if name != "against":
                    interval = f"[{test['low']:+.4f}, {test['high']:+.4f}]"
                    said = f"{row['name']} minus {section['against']}, {name}: {test['difference']:+.4f} {interval}"
                    to.print(f"{said}, p = {test['p_value']:.4f}", markup=False)
    for row in found["rows"]:
        if "trials" in row:
            made = row["trials"]
            settings = ", ".join(f"{key}={value}" for key, value in made["settings"].items())
            ended = f"{made['finished']} finished, {made['pruned']} pruned, {made['failed']} failed, {made['seconds']:,.0f} s"
            to.print(f"{row['name']}: {made['budget']} trials ({ended}); chosen {made['chosen']}: {settings}", markup=False)
    to.print(f"Files: {found['dir']}/ (compare.json, NAME/seed-S/). Report: {found['report']}", markup=False, soft_wrap=True)


def _compared_table(rows: list[dict[str, Any]], section: dict[str, Any], found: dict[str, Any]) -> Table:
    metric, k = found["retrieval_metric"], found["retrieval_metric"].partition("@")[2]
    names = list(dict.fromkeys([f"recall@{k}", f"ndcg@{k}", metric]))
    clock = "with query time" if section["query_time"] else "without query time"
    seeds = ", ".join(map(str, found["seeds"]))
    title = f"{found['protocol']} test, {found['targets']['n']:,} targets, seen items masked, {clock}, means over seeds {seeds}"
    title += f", at most {found['trials']} trials each" if found["trials"] else ""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("row", overflow="fold")
    for head in (f"valid {metric}", *names, "± seeds"):
        table.add_column(head, justify="right")
    for row in rows:
        name = f"[bold]{escape(row['name'])}[/bold] (chosen)" if row["chosen"] else escape(row["name"])
        spread = row.get("test_spread", {}).get(metric)
        validation = _number(row["validation"][metric]) if metric in row["validation"] else "-"
        quality = [with_interval(one, row["test"], row["intervals"]) for one in names]
        table.add_row(name, validation, *quality, "-" if spread is None else _number(spread))
    return table


def _compared_tasks(rows: list[dict[str, Any]], found: dict[str, Any]) -> Table:
    """AUC, GAUC and NE of each task, a line a row; the baselines first."""
    table = Table(title="tasks, all events of the test part whose label is known", title_justify="left", title_style="bold")
    table.add_column("row", overflow="fold")
    learned = [row for row in rows if row.get("tasks")]
    names = list(dict.fromkeys(name for row in learned for name in row["tasks"]))
    shown = [
        (name, metric)
        for name in names
        for metric in ("auc", "gauc", "ne", "accuracy")
        if any(metric in row["tasks"].get(name, {}) for row in learned)
    ]
    for name, metric in shown:
        table.add_column(escape(f"{name} {metric}"), justify="right")
    for label, tasks in found["task_baselines"].items():
        table.add_row(escape(label), *(_said(tasks.get(name, {}).get(metric)) for name, metric in shown))
    for row in learned:
        name = f"[bold]{escape(row['name'])}[/bold] (chosen)" if row["chosen"] else escape(row["name"])
        table.add_row(name, *(_said(row["tasks"].get(task, {}).get(metric)) for task, metric in shown))
    return table


def _said(value: float | None) -> str:
    return "-" if value is None else _number(value)


def _cost_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="costs", title_justify="left", title_style="bold")
    table.add_column("row", overflow="fold")
    for head in ("table parameters", "other", "training FLOPs", "train s", "ms a user"):
        table.add_column(head, justify="right")
    for row in rows:
        sizes = [f"{row['params_embedding']:,.0f}", f"{row['params_non_embedding']:,.0f}", f"{row['train_flops']:.1e}"]
        speed = "-" if row["recommend_ms"] is None else f"{row['recommend_ms']:.3f}"
        table.add_row(escape(row["name"]), *sizes, f"{row['train_seconds']:,.0f}", speed)
    return table


def frame(found: pl.DataFrame) -> None:
    table = Table()
    for name in found.columns:
        table.add_column(escape(name), justify="right" if name in ("score", "rank") else "left")
    for row in found.iter_rows(named=True):
        table.add_row(*(escape(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in row.values()))
    console().print(table)


def fields(found: dict[str, Any], title: str) -> None:
    """A document as two columns; what is in a group is shown as group.name."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column("field")
    table.add_column("value", overflow="fold")
    flat: dict[str, Any] = {}
    for name, value in found.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    for name, value in flat.items():
        counted = isinstance(value, int | float) and not isinstance(value, bool)
        said = name if name.startswith("features.") else name.replace("_", " ")  # columns keep the names they have
        table.add_row(escape(said), f"{value:,}" if counted else escape(str(value)))
    console().print(table)


def described(description: dict[str, Any]) -> None:
    """A log's description, and what was noticed while it was read."""
    fields({name: value for name, value in description.items() if name != "notes"}, "Event log")
    for note in description.get("notes", []):
        console().print(f"note: {note}", highlight=False, markup=False)


def audited(found: dict[str, Any]) -> None:
    """The findings of an audit, the worst first, and what mends them."""
    to, shape = console(), found["shape"]
    to.print(f"{found['source']}: {shape['events']:,} events, {shape['users']:,} users, {shape['items']:,} items", markup=False)
    table = Table()
    for name in ("severity", "finding", "count", "what it is, and what mends it"):
        table.add_column(name, justify="right" if name == "count" else "left", overflow="fold")
    for one in found["findings"]:
        mended = f"\n{one['cure']}" + (f"\n$ {one['command']}" if one["command"] else "")
        count = f"{one['count']:,} {one['unit']}\n{100 * one['share']:.3g} %"
        table.add_row(one["severity"], one["name"], count, escape(one["said"] + mended))
    order = [escape(found["order"]["said"])] if "order" in found else []
    to.print(table if found["findings"] else "Nothing was found.", *order, sep="\n")
    for note in found["notes"]:
        to.print(f"note: {note}", markup=False, soft_wrap=True)
    if "report" in found:
        to.print(f"Report: {found['report']} (open it in a browser), {found['json']}", markup=False, soft_wrap=True)
    else:
        to.print("With --out DIR a page to look at and the findings as JSON are written there.")


def curated(found: dict[str, Any]) -> None:
    """The versions of a chain: what each step did to the training rows, and where the last one is."""
    table = Table()
    for name in ("version", "training rows", "removed", "changed", "weight 0", "why"):
        table.add_column(name, justify="left" if name in ("version", "why") else "right", overflow="fold")
    for one in found["versions"]:
        counts, notes = one["rows"], [f"{count:,}: {why}" for why, count in one["reasons"].items()]
        notes += [one["facts"]["note"]] if "note" in one["facts"] else []
        done = [f"{counts[name]:,}" if counts.get(name) else "" for name in ("removed", "changed", "weight_0")]
        name = one["version"] + ("\n(was there already)" if one["reused"] else "")
        table.add_row(escape(name), f"{one['stages'].get('train', 0):,}", *done, escape("\n".join(notes)))
    console().print(table)
    held = {stage: count for stage, count in found["versions"][-1]["stages"].items() if stage != "train"}
    said = ", ".join(f"{count:,} {stage}" for stage, count in held.items()) or "nothing is evaluated"
    console().print(f"Untouched in every version: {said} rows.", markup=False)
    log = _argument(f"data.path={found['log']}")
    console().print(f"Train on it: {log} split.protocol=given", markup=False, soft_wrap=True)


def traced(found: dict[str, Any], most: int = 20) -> None:
    """What happened to rows, the first of them."""
    to = console()
    to.print(f"{found['rows']:,} rows, of which {found['removed']:,} are removed in {found['version']}", markup=False)
    table = Table()
    for name in ("row", "user", "item", "time", "stage", "now", "what happened"):
        table.add_column(name, overflow="fold")
    for one in found["found"][:most]:
        lines = []
        for event in one["history"]:
            what = event["why"] if event["what"] == "removed" else f"{event['before']} -> {event['after']}"
            lines.append(f"{event['version']}: {event['what']} {event.get('column', '')} ({what})".replace("  ", " "))
        weight = "" if one["weight"] in (None, 1.0) else f", weight {one['weight']:.4g}"
        cells = (one["row"], one["user_id"], one["item_id"], one["timestamp"], one["stage"], one["now"] + weight)
        table.add_row(*(escape(str(cell)) for cell in cells), escape("\n".join(lines) or "nothing"))
    to.print(table)
    if found["rows"] > most:
        to.print(f"... and {found['rows'] - most:,} more; --json has them all.")


def forgotten(found: dict[str, Any]) -> None:
    """Where a person was, and what is left to do."""
    to = console()
    for one in found["folders"]:
        to.print(f"{one['folder']}: {one['rows']:,} rows erased, content {one['content'][:12]}", markup=False, soft_wrap=True)
    for one in found["runs"]:
        said = "marked: trained on them, train it again" if one["trained_on"] else "was not trained on them"
        to.print(f"{one['run']}: {one['rows']:,} rows erased; {said}", markup=False, soft_wrap=True)
    for path in found["pages"]:
        to.print(f"{path}: removed, since it showed users; make it again", markup=False, soft_wrap=True)
    for path in found["links_not_followed"]:
        to.print(f"not looked into: {path}, a link to another place; forget there too", markup=False, soft_wrap=True)
    for path in found["still_named_in"]:
        to.print(f"still named in {path}: look, and mend it by hand", markup=False, soft_wrap=True)
    for path in found["sources_to_mend_yourself"]:
        to.print(f"first read from {path}, which is yours to mend", markup=False, soft_wrap=True)


def rows(found: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    """Documents as the rows of a table, some of their fields as its columns."""
    table = Table()
    for name in names:
        table.add_column(name, overflow="fold")
    for row in found:
        table.add_row(*(escape(str(row[name])) for name in names))
    console().print(table)


@contextmanager
def download_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Give a function that is told of a file, its bytes so far and in all; on a terminal it moves a bar on standard error."""
    to = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=to, transient=True, disable=not to.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name)
            bar.update(tasks[name], completed=done, total=total)

        yield report
