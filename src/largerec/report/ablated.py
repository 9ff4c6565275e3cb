"""The page of an ablation: what each version gains over the raw log, what faults cost, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from largerec.report import charts, page, write_page

Document = Mapping[str, Any]


def ablated_page(found: Document, to: Path) -> Path:
    """Write the page of a document of :func:`largerec.ablate.ablate` and return its path."""
    helping = [page.text(row["name"]) for row in found["rows"] if row.get("verdict") == "helps"]
    lead = f"Helps: <strong>{', '.join(helping)}</strong>." if helping else "No version helps for certain."
    if "faults" in found:
        lead += f" The faults cost {share(found['faults']['cost'])} of {page.text(found['metric'])}"
        lead += f" ({page.text(found['faults']['no_shares'])})." if "no_shares" in found["faults"] else "."
    head = (
        f'<p class="lead">{lead}</p><p class="soft">{page.text(found["protocol"])}, {found["targets"]:,} test targets, the same '
        f"in every row; {found['steps']:,} steps a training; seeds {', '.join(map(str, found['seeds']))}; "
        f"{page.text(found['hardware'])}, {page.text(found['date'])}. <code>{page.text(found['command'])}</code></p>"
    )
    sections = [("gains", "Gains over the raw log", _gains(found)), ("steps", "What the steps did", _steps(found))]
    if beside := _beside(found):
        sections.insert(1, ("controls", "Beside the controls", beside))
    write_page(
        to, page.document("What cures are worth", head, [("", sections)], f"Made by LargeRec from {page.text(found['dir'])}.")
    )
    return to


def share(found: Document) -> str:
    """A share with its interval, in percent."""
    if found["value"] is None or found["low"] is None or found["high"] is None:
        return "unknown"
    return f"{100 * found['value']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _gains(found: Document) -> str:
    metric = found["metric"]
    known = [row["gain"]["difference"] for row in found["rows"] if "gain" in row]
    scale = charts.strip_scale([0.0, *(one[name] for one in known for name in ("low", "value", "high") if one[name] is not None)])
    cells = []
    for row in found["rows"]:
        gain = row.get("gain")
        drawn = ""
        if gain is not None:
            one = gain["difference"]
            drawn = charts.strip(scale, one["value"], one["low"], one["high"], 0, f"{row['name']}: {share(gain['relative'])}")
        cells.append(
            [
                page.text(row["name"]),
                f"{row['training_rows']:,}",
                page.with_interval(row[metric]["value"], [row[metric]["low"], row[metric]["high"]]),
                "" if gain is None else share(gain["relative"]),
                drawn,
                page.text(row.get("verdict", "")),
                share(row["won_back"]) if row.get("won_back") else "",
                f"{row['seconds']['cure']:,.0f}",
                f"{row['seconds']['train']:,.0f}",
            ]
        )
    head = ["", "training rows", page.text(metric), "gain", "drawn", "verdict", "won back", "cure s", "train s"]
    foot = ["", "", "", "", charts.strip_axis(scale), "", "", "", ""]
    note = (
        f'<p class="soft">In brackets the {100 * found["level"]:g} % interval over users and seeds, paired. A verdict is '
        f"corrected for the {found['verdicts']} that are given.</p>"
    )
    return note + page.table(head, cells, words=(4, 5), foot=foot, label="Gains with intervals")


def _beside(found: Document) -> str:
    cells = [
        [page.text(row["name"]), page.text(other), share(beside["gain"]["relative"]), page.text(beside["verdict"])]
        for row in found["rows"]
        for other, beside in row.get("against", {}).items()
    ]
    head = ["", "beside", f"gain in {page.text(found['metric'])}", "verdict"]
    return page.table(head, cells, words=(1, 3), label="Gains beside the controls") if cells else ""


def _steps(found: Document) -> str:
    cells = []
    for row in found["rows"]:
        for step in row["steps"]:
            options = ", ".join(f"{key}={value}" for key, value in step["step"].items() if key not in ("name", "learner"))
            counts = ", ".join(f"{name} {count:,}" for name, count in step["rows"].items() if count)
            cells.append([page.text(row["name"]), page.text(step["step"]["name"]), page.text(options), page.text(counts)])
    return page.table(["", "step", "options", "training rows"], cells, words=(1, 2, 3), label="Steps") if cells else ""
