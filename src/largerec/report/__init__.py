"""One self-contained HTML page about a run, or about several side by side: the log, training, metrics, examples, lineage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from largerec.columns import UNTIMED
from largerec.engine import Engine, load
from largerec.errors import LargeRecError
from largerec.evaluate import calibration, measure, sample_targets
from largerec.forgetting import SHOWS_PEOPLE
from largerec.report import glance, page, results, summary, tasks
from largerec.report.exposure import exposure, random
from largerec.report.lineage import lineage
from largerec.report.lists import lists
from largerec.report.runs import (
    Paired,
    Run,
    companions,
    cutoffs,
    groups,
    kept_ranks,
    labelled,
    main_metric,
    paired_baselines,
    paired_runs,
    read_run,
)
from largerec.sequences import Sequences
from largerec.writing import write_text

CALIBRATED = 2_000
CELLS = 40_000_000
TOKENS = 200_000
"""Targets whose scores are calibrated, and the scores and tokens that this may take in all: a report is a matter of seconds."""
EXAMPLE_POOL = 100
LIST_LENGTH = 10
HISTORY_SHOWN = 8


@dataclass(frozen=True)
class Group:
    """Runs on the same split, and everything that is measured for their page; ``runs[0]`` is the one that others stand beside."""

    runs: list[Run]
    sequences: Sequences
    metric: str
    paired: list[Paired]
    calibrated: list[tuple[int, Run, dict[str, Any]]]
    examples: list[dict[str, Any]]

    @property
    def level(self) -> float:
        """The level of the paired tests."""
        return self.runs[0].level


def report(paths: Sequence[str | Path], to: str | Path | None = None) -> dict[str, Any]:
    """Write the page of one run (to ``RUN/report.html``) or of several (to ``report.html`` beside the first).

    One run is shown with the families that ``largerec run`` trained beside it. Several are set side by side, with paired
    differences to the first; runs on other logs or splits stand in tables of their own. Nothing is trained, and the test part is
    looked at only where it was evaluated already. Returns ``report`` (where it is), ``bytes``, ``seconds``, ``runs``, ``metric``,
    ``summary`` and ``warnings`` (as plain text).

    Raises:
        LargeRecError: a run is missing, foreign or damaged, is named twice, or the page cannot be written.
    """
    started = time.perf_counter()
    if not paths:
        raise LargeRecError("name at least one run: the run.dir of a `largerec run` or `largerec train`.")
    runs = [read_run(path) for path in paths]
    places = [run.bundle.path.resolve() for run in runs]
    twice = next((run.bundle.path for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise LargeRecError(f"{twice} is named twice; give each run once.")
    several = len(runs) > 1
    found = [_group(one, several) for one in (groups(labelled(runs)) if several else [[runs[0], *companions(runs[0])]])]
    said = [(group, _sentences(group, several)) for group in found]
    warned = [warning for group in found for warning in _warnings(group, several)]
    markup = _document(runs, said, warned, several)
    target = Path(to) if to is not None else (places[0].parent if several else runs[0].bundle.path) / "report.html"
    write_page(target, markup)
    return {
        "report": str(target),
        "bytes": len(markup.encode()),
        "seconds": round(time.perf_counter() - started, 2),
        "runs": [{"dir": str(run.bundle.path), "name": run.recipe.name, "evaluated": run.evaluated} for run in runs],
        "metric": found[0].metric,
        "summary": [page.plain(sentence) for _, sentences in said for sentence in sentences],
        "warnings": [page.plain(warning) for warning in warned],
    }


def write_page(target: Path, markup: str) -> None:
    """Replace a file by a page in one step.

    Raises:
        LargeRecError: it cannot be written, or is by its name no page, and may be a log or a file of a run.
    """
    if target.suffix.lower() not in (".html", ".htm") and target.is_file():
        raise LargeRecError(f"--to {str(target)!r} is a file that is no page; a page's name ends in .html.")
    if target.is_dir():
        raise LargeRecError(f"--to {str(target)!r} is a folder; name a file in it, for example {str(target / 'report.html')!r}.")
    write_text(target, markup, "Choose another file with --to.")


# --- measuring


def _of_tasks(runs: Sequence[Run]) -> bool:
    """Whether a page speaks of tasks alone: a model among its runs only ranks."""
    return any(run.recipe.model.ranks_only for run in runs)


def _group(runs: list[Run], several: bool) -> Group:
    if _of_tasks(runs):
        return Group(runs, runs[0].bundle.sequences(), runs[0].recipe.train.metric, [], [], [])
    main, metric, sequences = runs[0], main_metric(runs), None
    paired = []
    if main.evaluated:
        pairs = [(other, main) if several else (main, other) for other in runs[1:]]
        others = [paired_runs(first, second, main.level) for first, second in pairs]
        paired = [*others, *paired_baselines(main)]
    calibrated, shown = [], []
    for colour, run in enumerate(runs):
        if not run.result or not run.bundle.file("model.safetensors").is_file() or (run is not main and not several):
            continue
        engine, sharing = load(run.bundle.path), len(runs) if several else 1
        bound = min(CELLS / engine.scorer.size, TOKENS / run.recipe.batch.max_length) / sharing
        most = int(min(CALIBRATED, max(100, bound)))
        rows = sample_targets(engine.sequences, run.stage, most, run.recipe.seed)
        calibrated.append((colour, run, calibration(engine, rows, LIST_LENGTH, run.recipe.evaluate, run.recipe.seed)))
        if run is main:
            sequences, shown = engine.sequences, _examples(engine, run)
    sequences = sequences or main.bundle.sequences()  # reading a long log twice would take longer than all the rest
    return Group(runs, sequences, metric, paired, calibrated, shown)


def _examples(engine: Engine, run: Run) -> list[dict[str, Any]]:
    """Up to three random targets that were hit and three that were not."""
    sequences, rows = engine.sequences, engine.sequences.targets(run.stage)
    rank_N = kept_ranks(run)
    if len(rank_N) != len(rows):  # no ranks of this stage were kept
        rows = sample_targets(sequences, run.stage, EXAMPLE_POOL, run.recipe.seed)
        rank_N = measure(engine, rows).rank_N
    order = np.random.default_rng(run.recipe.seed).permutation(len(rows))
    hit = rank_N[order] <= LIST_LENGTH
    share = run.metrics.get(f"recall@{LIST_LENGTH}", float(hit.mean()))
    rows = rows[[*order[hit][:3], *order[~hit][:3]]]
    found = measure(engine, rows, LIST_LENGTH)
    shown = []
    for at in range(len(rows)):
        row, user = int(rows[at]), int(found.user_N[at])
        begin = int(sequences.offsets_U1[user])
        last = np.arange(max(begin, row - HISTORY_SHOWN), row)
        best = engine.tokenizer.decode(found.top_NK[at][found.top_NK[at] >= 0])
        cold = engine.token_of_item[sequences.item_N[row]] < 0
        shown.append(
            {
                "user_id": sequences.user_ids[user],
                "history": [_event(engine, int(one)) for one in last],
                "length": row - begin,
                "truth": _event(engine, row),
                "rank": float(found.rank_N[at]),
                "why_missing": "not in the catalogue: it has no training event"
                if cold
                else "had it before: seen items are left out",
                "recommendations": best.to_dicts(),
                "catalogue": engine.scorer.size,
                "hit_share": share,
            }
        )
    return shown


def _event(engine: Engine, row: int) -> dict[str, Any]:
    """Item, title and day of an event."""
    sequences = engine.sequences
    item = sequences.item_N[row]
    token = int(engine.token_of_item[item])
    found: dict[str, Any] = {"item_id": sequences.item_ids[int(item)]}
    if token >= 0:
        found |= engine.tokenizer.vocabulary.row(token, named=True)
    if sequences.time_kind == "timestamp" and sequences.time_N[row] != UNTIMED:
        found["date"] = glance.date(sequences.time_N[row])
    return found


# --- composing


def _sentences(group: Group, several: bool) -> list[str]:
    main = group.runs[0]
    if _of_tasks(group.runs):
        return [tasks.sentence(run) for run in group.runs]
    if not several:
        return summary.sentences(main, group.sequences, group.metric, group.paired)
    return summary.side_by_side(group.runs, group.metric, group.paired)


def _warnings(group: Group, several: bool) -> list[str]:
    """Each warning once, with the names of the runs that it is about where there are several."""
    if _of_tasks(group.runs):
        return []
    if not several:
        return summary.warnings(group.runs[0], group.sequences, group.metric)
    about: dict[str, list[str]] = {}
    for run in group.runs:
        for one in summary.warnings(run, group.sequences, group.metric):
            about.setdefault(one, []).append(page.text(run.label))
    return [f"{', '.join(labels)}: {one}" for one, labels in about.items()]


def _document(runs: list[Run], said: Sequence[tuple[Group, list[str]]], warned: Sequence[str], several: bool) -> str:
    main, found = runs[0], [group for group, _ in said]
    title = f"{len(runs)} runs side by side" if several else f"{main.recipe.name}: {main.recipe.model.name}"
    head = []
    if len(found) > 1:
        head.append(
            f"<p><strong>These runs were measured on {len(found)} different logs, splits or parts.</strong> Each has its own "
            "tables below; numbers of different ones cannot be compared.</p>"
        )
    for number, (_, sentences) in enumerate(said, 1):
        head += [f"<h3>{_part(number, found)}</h3>"] if len(found) > 1 else []
        head += [f'<p class="lead">{sentence}</p>' for sentence in sentences]
    if not several:
        head.append(_cards(found[0]))
    if warned:
        said_ = "".join(f"<li>{one}</li>" for one in dict.fromkeys(warned))
        head.append(f'<div class="warnings"><strong>Before you quote these numbers</strong><ul>{said_}</ul></div>')
    parts = []
    for number, group in enumerate(found, 1):
        mark = f"-{number}" if len(found) > 1 else ""
        sections = [(anchor + mark, heading, content) for anchor, heading, content in _sections(group) if content]
        parts.append((_part(number, found), sections))
    foot = (
        f"Made by LargeRec {escape(str(main.lineage.get('code', {}).get('largerec', '')))} from {page.text(main.bundle.path)}. "
        f"This page is one file and asks for nothing outside it. {SHOWS_PEOPLE}"
    )
    return page.document(title, "".join(head), parts, foot)


def _part(number: int, found: Sequence[Group]) -> str:
    """The name of a part of the page, where there are several."""
    labels = ", ".join(page.text(run.label) for run in found[number - 1].runs)
    return f"Part {number}: {labels}" if len(found) > 1 else ""


def _cards(group: Group) -> str:
    run, metric = group.runs[0], group.metric
    if not run.metrics:
        return ""
    k = metric.partition("@")[2]
    names = list(dict.fromkeys([metric, f"recall@{k}", f"coverage@{(cutoffs(run.metrics) or [10])[-1]}"]))
    cards = [(page.number(run.metrics[name]), f"{name}, {run.stage}") for name in names if name in run.metrics]
    baseline = summary.best_baseline(run, metric)
    if baseline is not None:
        cards.append((page.number(baseline[1]), f"{metric} of {baseline[0]}"))
    if run.evaluated:
        cards.append((f"{run.result['targets']['n']:,}", f"test targets of {run.result['targets']['users']:,} users"))
    return f'<div class="cards">{"".join(f"<div class=card><b>{a}</b><span>{page.text(b)}</span></div>" for a, b in cards)}</div>'


def _sections(group: Group) -> list[tuple[str, str, str]]:
    main, of_tasks = group.runs[0], _of_tasks(group.runs)
    metrics = "" if of_tasks else results.metric_table(group.runs, group.metric)
    scores = results.calibration(group.calibrated) if group.calibrated else ""
    return [
        (
            "log",
            "The log at a glance",
            glance.at_a_glance(group.sequences, str(main.lineage.get("source", "")), main.lineage.get("notes", [])),
        ),
        ("training", "Training", results.training(group.runs)),
        ("metrics", f"Metrics on the {main.stage} part", metrics),
        ("paired", "Paired differences", results.paired_table(group.paired, group.metric, group.level)),
        ("tasks", f"Tasks on the {main.stage} part", tasks.tasks(group.runs)),
        ("lists", f"Choices among shown items, {main.stage} part", lists(group.runs)),
        ("random", "Shown at random", random(group.runs)),
        ("exposure", "As if every item had been shown alike", exposure(group.runs)),
        ("slices", "Slices", "" if of_tasks else results.slices(group.runs, group.metric)),
        ("calibration", "Calibration of the scores", scores),
        ("examples", "Example users", results.examples(group.examples, main.stage, LIST_LENGTH)),
        ("lineage", "Lineage, and how to do it again", lineage(group.runs)),
    ]
