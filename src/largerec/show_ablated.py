"""What is printed of an ablation."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from largerec.show import console, with_interval


def ablated(found: dict[str, Any]) -> None:
    """What each version gains over the raw log, what faults cost, what it took, and where the files are."""
    to, metric = console(), found["metric"]
    title = f"{found['protocol']} test, {found['targets']:,} targets, {found['steps']:,} steps a training, seeds "
    title += ", ".join(map(str, found["seeds"]))
    table = Table(title=title, title_justify="left", title_style="bold")
    for head in ("row", "training rows", metric, "gain over raw", "verdict", *(["won back"] if "faults" in found else []), "s"):
        table.add_column(head, justify="left" if head in ("row", "verdict") else "right", overflow="fold")
    for row in found["rows"]:
        gain = _share(row["gain"]["relative"]) if "gain" in row else ""
        back = [_share(row["won_back"]) if row.get("won_back") else ""] if "faults" in found else []
        took = f"{row['seconds']['cure']:,.0f} + {row['seconds']['train']:,.0f}"
        value = with_interval(metric, row["test"], {metric: [row[metric]["low"], row[metric]["high"]]})
        table.add_row(escape(row["name"]), f"{row['training_rows']:,}", value, gain, escape(row.get("verdict", "")), *back, took)
    to.print(table)
    for row in found["rows"]:
        for other, beside in row.get("against", {}).items():
            said = f"{row['name']} beside {other}: {_share(beside['gain']['relative'])} of {metric}, {beside['verdict']}."
            to.print(said, markup=False, soft_wrap=True)
    if "faults" in found:
        why = f" ({found['faults']['no_shares']})" if "no_shares" in found["faults"] else ""
        to.print(f"The faults cost {_share(found['faults']['cost'])} of {metric}{why}.", markup=False)
    to.print(
        f"Intervals are over users and seeds, paired; each verdict is corrected for all {found['verdicts']}. "
        f"s: the cure, and one training. Files: {found['dir']}/ (ablate.json). Report: {found['report']}",
        markup=False,
        soft_wrap=True,
    )


def _share(found: dict[str, float | None]) -> str:
    if found["value"] is None or found["low"] is None or found["high"] is None:
        return "unknown"
    return f"{100 * found['value']:+.1f} % ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
