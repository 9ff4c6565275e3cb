"""Choices among shown items as markup: a table of the runs' scores and of the rules beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from largerec.report import page
from largerec.report.runs import Run

COLUMNS = ("mrr", "ndcg", "hit@1", "ndcg@5")


def found_lists(run: Run) -> dict[str, Any]:
    """What a run says of lists on the part that may be looked at."""
    found: dict[str, Any] = run.result.get("lists" if run.evaluated else "validation_lists") or {}
    return found


def lists(runs: Sequence[Run]) -> str:
    """One table of all runs that have lists; nothing where none has."""
    rows: list[list[str]] = []
    first: dict[str, Any] = {}
    for colour, run in enumerate(runs):
        found = found_lists(run)
        if not found:
            continue
        if not first:
            first = found
            rows += [_row(page.text(name), one) for name, one in found["baselines"].items()]
        label = f"{page.key(colour)}{page.text(run.label)}"
        rows += [_row(f"{label}: {page.text(name)}", one) for name, one in found["scores"].items()]
    if not first:
        return ""
    against = next(iter(first["scores"].values()))["mrr_against"]["baseline"]
    note = (
        f"{first['n']:,} lists of {first['users']:,} users, {first['mean_length']:.1f} items each on average; seen items are not "
        f"masked. In {first['touched_before']:,} the user had touched the chosen item before, in "
        f"{first['outside_catalogue']:,} training never saw it: the retrieval score puts such items last. Equal scores share the "
        "average rank. The last column is a paired test over users."
    )
    head = ["", *COLUMNS, f"mrr less that of “{page.text(against)}”"]
    table = page.table(head, rows, label="Metrics of choices among shown items")
    return f'<p class="soft">{note}</p>{table}'


def _row(label: str, one: Mapping[str, Any]) -> list[str]:
    test = one.get("mrr_against")
    said = "" if test is None else f"{page.signed(test['difference'])}, {page.p_value(test['p_value'])}"
    return [label, *(page.with_interval(one.get(key), one["intervals"].get(key)) for key in COLUMNS), said]
