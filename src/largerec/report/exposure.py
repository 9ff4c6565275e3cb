"""Weighted estimates of runs as markup: metrics as they would be if every item had been shown alike, beside the plain ones."""

from __future__ import annotations

from collections.abc import Sequence

from largerec.exposure import ESTIMATORS
from largerec.report import page
from largerec.report.runs import Run
from largerec.show import exposure_rows


def exposure(runs: Sequence[Run]) -> str:
    """A table for each run that has such estimates; nothing where none has."""
    found = [run for run in runs if run.result.get("exposure")]
    return "".join(_of(run, run.result["exposure"]["by"], run.result["exposure"]["clip"], len(found) > 1) for run in found)


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
