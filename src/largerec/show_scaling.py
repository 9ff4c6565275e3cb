"""What ``largerec scale`` and ``largerec plan`` print: runs and what was foretold of them; a recipe and what it kept of that."""

from __future__ import annotations

from shlex import quote
from typing import Any

from rich.markup import escape
from rich.table import Table

from largerec.show import console


def _table(title: str, *heads: str) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for at, head in enumerate(heads):
        table.add_column(escape(head), justify="right" if at else "left", overflow="fold")
    return table


def scaled(found: dict[str, Any]) -> None:
    """The points of a grid, what its laws foretold of the held-out runs, and what was measured."""
    to = console()
    points = Table(title=escape(f"{found['name']}: {len(found['points'])} runs"), title_justify="left", title_style="bold")
    points.add_column("run", overflow="fold")
    for head in ("parameters", "tokens", "FLOPs", "loss", "ndcg@10", "core-minutes"):
        points.add_column(head, justify="right")
    for point in sorted(found["points"], key=lambda point: float(point["flops"] or 0)):
        loss = (
            point["state"] if point["loss"] is None else f"{point['loss']:.4f}" + ("" if point["state"] == "finished" else " *")
        )
        counts = [f"{point['params']:,}", f"{point['tokens']:,}", f"{point['flops']:.1e}", loss]
        quality = f"{point['metrics']['ndcg@10']:.4f}" if point["metrics"] else "-"
        name = point["name"] + (" (held out)" if point["held_out"] else "")
        points.add_row(escape(name), *counts, quality, f"{point['seconds'] * point['cores'] / 60:.2f}")
    to.print(points)
    if found["checks"]:
        table = Table(title="held-out runs: foretold and measured", title_justify="left", title_style="bold")
        for head in ("run", "quantity", "foretold", "interval", "measured", "off by", "inside"):
            table.add_column(head, justify="left" if head in ("run", "quantity") else "right", overflow="fold")
        for one in found["checks"]:
            between = f"{one['low']:.4f} - {one['high']:.4f}"
            numbers = [f"{one['value']:.4f}", between, f"{one['measured']:.4f}", f"{100 * one['error']:+.1f} %"]
            table.add_row(escape(one["name"]), one["quantity"], *numbers, "yes" if one["inside"] else "no")
        to.print(table)
        for quantity, one in found["between_seeds"].items():
            to.print(
                f"{quantity}: a seed changes a run by {100 * one['noise']:.2g} %, so that the best law is off by "
                f"{100 * one['least_error']:.2g} % in the mean.",
                markup=False,
                soft_wrap=True,
            )
    for one in found["refused"]:
        to.print(f"no law: {one['why']}", markup=False, soft_wrap=True)
    budget = "" if found["budget_core_minutes"] is None else f" of {found['budget_core_minutes']:g}"
    to.print(
        f"Spent {found['spent_core_minutes']:.1f}{budget} core-minutes. Files: {found['dir']}, page: {found['report']}",
        markup=False,
        soft_wrap=True,
    )
    if found["left_out"]:
        left = (
            f"Left out for the budget ({len(found['left_out'])}): {', '.join(found['left_out'])}. A larger one goes on from here."
        )
        to.print(left, markup=False, soft_wrap=True)


def planned(found: dict[str, Any]) -> None:
    """A plan: the recipe, its predictions, what else there was."""
    to = console()
    shape = f"{found['family']} {found['size']}, {found['layers']} layers of {found['width']}, {found['params']:,} parameters"
    data = f"{found['tokens']:,} tokens in about {found['steps']:,} steps"
    share = f"{100 * found['users']:.3g} % of the users once" if found["epochs"] == 1 else f"all users, {found['epochs']} passes"
    to.print(f"Proposed: {shape}; {data} ({share}).", markup=False, soft_wrap=True)
    table = _table("what it should reach", "quantity", "foretold", "from", "to", "sure to")
    for quantity, said in found["predicted"].items():
        table.add_row(quantity, *(f"{said[name]:.4f}" for name in ("value", "low", "high")), f"{100 * said['level']:.0f} %")
    to.print(table)
    serving = found["serving"]
    to.print(
        f"Cost: {found['core_minutes']:.2f} core-minutes, a tenth of it in reserve. A request: {serving['ms']:.2f} ms "
        f"({serving['how']}).",
        markup=False,
        soft_wrap=True,
    )
    if found["made"] is not None:
        to.print(f"Much the same run is in the grid: {found['made']}.", markup=False, soft_wrap=True)
    if found["chance"] is not None:
        to.print(f"Chance that one run reaches the target: {100 * found['chance']:.0f} %.", markup=False, soft_wrap=True)
    others = _table(
        f"each size at its best, by {found['quantity']}", "size", "parameters", "tokens", found["quantity"], "core-minutes", "ms"
    )
    for row in found["others"]:
        own = f"{row['value']:.4f}", f"{row['core_minutes']:.2f}", f"{row['serving']['ms']:.2f}"
        others.add_row(escape(f"{row['family']} {row['size']}"), f"{row['params']:,}", f"{row['tokens']:,}", *own)
    to.print(others)
    for one in found["refused"]:
        to.print(f"not said: {one['why']}", markup=False, soft_wrap=True)
    to.print(
        f"Recipe: {found['recipe']}\nTrain it: largerec run {quote(str(found['recipe']))}\n"
        f"Then: largerec plan --check {quote(str(found['run_dir']))}",
        markup=False,
        soft_wrap=True,
    )


def plan_checked(found: dict[str, Any]) -> None:
    """Whether a run kept its plan."""
    to = console()
    table = _table(f"{found['run']} against {found['plan']}", "quantity", "foretold", "interval", "measured", "off by", "inside")
    for row in found["rows"]:
        between = f"{row['low']:.4f} - {row['high']:.4f}"
        off, inside = f"{100 * row['error']:+.1f} %", "yes" if row["inside"] else "no"
        table.add_row(row["quantity"], f"{row['value']:.4f}", between, f"{row['measured']:.4f}", off, inside)
    to.print(table)
    cost, tokens = found["core_minutes"], found["tokens"]
    to.print(
        f"Training alone took {cost['trained']:.2f} core-minutes, at most {cost['planned']:.2f} were planned for it; "
        f"{tokens['trained']:,} tokens, {tokens['planned']:,} planned.",
        markup=False,
        soft_wrap=True,
    )
