"""Where a run comes from and how to make it again: data, code, machine, and the recipe as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from largerec.bundle import flatten
from largerec.options import toml_key, toml_text
from largerec.report import page
from largerec.report.runs import Run, trained_on


def as_toml(document: Mapping[str, Any]) -> str:
    """A nested mapping of plain values as TOML; what is None is left out, since TOML has no word for it."""
    lines: list[str] = []

    def write(group: Mapping[str, Any], prefix: str) -> None:
        plain = {key: value for key, value in group.items() if value is not None and not isinstance(value, Mapping)}
        if prefix and plain:
            lines.append(f"\n[{prefix}]")
        lines.extend(f"{toml_key(key)} = {toml_text(value)}" for key, value in plain.items())
        for key, value in group.items():
            if isinstance(value, Mapping):
                write(value, f"{prefix}.{toml_key(key)}" if prefix else toml_key(key))

    write(document, "")
    return "\n".join(lines) + "\n"


def recipe_toml(run: Run) -> str:
    """The resolved recipe, to run beside the old one."""
    document = run.recipe.to_json()
    document["run"] |= {"dir": f"{document['run']['dir']}-again", "overwrite": False}
    return as_toml(document)


def lineage(runs: Sequence[Run]) -> str:
    """Markup: facts of each run in columns, what differs between their recipes, and the first one's recipe."""
    facts = [_facts(run) for run in runs]
    rows = [[name, *(page.text(fact[name]) for fact in facts)] for name in facts[0]]
    columns = tuple(range(1, len(runs) + 1))
    head = ["", *(page.text(run.label) for run in runs)] if len(runs) > 1 else []
    content = page.table(head, rows, words=columns, label="Lineage", kind="words")
    return content + _differences(runs) + _again(runs[0])


def _facts(run: Run) -> dict[str, str]:
    result, code, model = run.result, run.lineage.get("code", {}), run.recipe.model
    depth, width, heads = model.shape
    size = f", {result['params_non_embedding']:,} parameters beside the tables, {result['params']:,} in all" if result else ""
    trained = (
        f"{result['train_tokens']:,} events read in {result['steps']:,} steps and {result['train_seconds']:,.0f} s on "
        f"{trained_on(result)}; about {result['train_flops']:.2g} operations"
        if result
        else "not finished"
    )
    return {
        "run": str(run.bundle.path),
        "recipe": f"{run.recipe.name}, seed {run.recipe.seed}",
        "log": str(run.lineage.get("source", "unknown")),
        "split log, SHA-256": str(run.lineage.get("data_hash", "unknown")),
        "model": f"{model.name}, {depth} blocks, width {width}, heads {heads}{size}",
        "objective": run.recipe.objective.name,
        "training": trained,
        "LargeRec": f"{code.get('largerec', 'unknown')}, commit {code.get('commit') or 'unknown'}",
        "torch": str(code.get("torch", "unknown")),
        "looks at the test part": str(result.get("n_test_evaluations", 0)),
    }


def _differences(runs: Sequence[Run]) -> str:
    if len(runs) < 2:
        return ""
    flat = [flatten(run.recipe.to_json()) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key != "run.dir"]
    differ = [key for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1]
    if not differ:
        return '<p class="soft">The recipes of these runs are the same.</p>'
    rows = [[f"<code>{page.text(key)}</code>", *(page.text(_shown(one.get(key))) for one in flat)] for key in differ]
    head = ["option", *(page.text(run.label) for run in runs)]
    columns = tuple(range(1, len(runs) + 1))
    return "<h3>Where the recipes differ</h3>" + page.table(
        head, rows, words=columns, label="Where the recipes differ", kind="words"
    )


def _shown(value: Any) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _again(run: Run) -> str:
    command = "largerec run again.toml"
    card = run.recipe.train.device != "cpu"
    same = "on a CPU the same bits; on a CUDA device, as otherwise," if card else "the same bits; otherwise"
    return (
        f"<h3>Do it again</h3><p>Save this recipe as <code>again.toml</code> and run <code>{command}</code>. The same recipe, "
        "seed, data, number of threads, build of torch and kind of processor give "
        f"{same} expect the noise of another seed.</p>"
        + page.details(
            f"The recipe of {page.text(run.label)} with every derived value",
            f"<pre><code>{escape(recipe_toml(run))}</code></pre>",
        )
    )
