"""Weighted estimates of runs as markup: metrics as they would be if every item had been shown alike, beside the plain ones."""

from __future__ import annotations

from collections.abc import Sequence

from largerec.exposure import ESTIMATORS
from largerec.report import page
from largerec.report.runs import Run
from largerec.show import exposure_rows, random_rows


def exposure(runs: Sequence[Run]) -> str:
    """A table for each run that has such estimates; nothing where none has."""
    found = [run for run in runs if run.result.get("exposure")]
    return "".join(_of(run, run.result["exposure"]["by"], run.result["exposure"]["clip"], len(found) > 1) for run in found)


def random(runs: Sequence[Run]) -> str:
    """A table of what was shown at random beside what a policy showed; nothing where no run has such a log."""
    rows = []
    for colour, run in enumerate(runs):
        for of, how, events, metric, row in random_rows(run.result) if run.evaluated and "random" in run.result else ():
            value = page.with_interval(row[metric], row["intervals"].get(metric))
            rows.append(
                [page.key(colour) + page.text(run.label), page.text(of), page.text(how), page.text(metric), f"{events:,}", value]
            )
    if not rows:
        return ""
    note = (
        "What was shown at random has no exposure bias: nothing was learned from it, and it is nobody's history. Each of its "
        "rows is asked about at its own moment, after what its user had done by then."
    )
    table = page.table(["", "of", "shown", "metric", "events", "value"], rows, words=(1, 2, 3), label="Shown at random")
    return f'<p class="soft">{note}</p>{table}'


def _of(run: Run, by: str, clip: float, several: bool) -> str:
    rows = []
    for part, who, metric, row, about in exposure_rows(run.result["exposure"]):
        cells = [page.with_interval(row.get(one), row["intervals"].get(one)) for one in ESTIMATORS]
        named = [page.text(one) for one in (who, metric)]
        rows.append([page.text(part), *named, *cells, f"{about['n']:,}", f"{about['weights']['effective_n']:,.0f}"])
    note = (
        f"Propensities by {page.text(by)}. Plain: as the log has it. IPS: each event counts one over the probability that its "
        f"item was shown. Clipped: at most {clip:g} times the mean weight. SNIPS: self-normalised. Worth: how many events "
        "of equal weight would tell as much."
    )
    table = page.table(["", "by", "metric", *ESTIMATORS, "events", "worth"], rows, words=(1, 2), label="Weighted estimates")
    head = f"<h3>{page.text(run.label)}</h3>" if several else ""
    return f'{head}<p class="soft">{note}</p>{table}'
