"""The first lines of a report: what was trained on what, how good it is, what it is compared with, what to be careful about."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote
from typing import Any

from largerec.report import page
from largerec.report.results import verdict
from largerec.report.runs import Paired, Run, trained_on
from largerec.sequences import Sequences

FEW_USERS = 500
MANY_COLD = 0.1
MANY_REPEATS = 0.05


def best_baseline(run: Run, metric: str) -> tuple[str, float] | None:
    """Name and value of the strongest baseline by ``metric``."""
    found = {name: one[metric] for name, one in run.result.get("baselines", {}).items() if metric in one}
    name = max(found, key=lambda key: found[key], default=None)
    return None if name is None else (name, found[name])


def explained(metric: str) -> str:
    """What a metric says, in a phrase."""
    kind, _, k = metric.partition("@")
    return {
        "recall": f"the share of targets among the first {k}",
        "ndcg": f"1 would mean that the next item always came first, 0 that it never was among the first {k}",
        "mrr": f"the mean of 1 / rank, where places below {k} count 0",
    }.get(kind, "")


def sentences(run: Run, sequences: Sequences, metric: str, paired: Sequence[Paired]) -> list[str]:
    """The summary of one run in plain words (markup)."""
    level = run.level
    found = [_trained(run, sequences)]
    if not run.result:
        return [
            *found,
            "Training has not finished, so there is no measurement yet; the same command goes on from the last checkpoint.",
        ]
    if not run.evaluated:
        value = page.number(run.metrics.get(metric))
        command = f"largerec evaluate {page.text(quote(str(run.bundle.path)))}"
        return [
            *found,
            f"On validation {page.text(metric)} is <strong>{value}</strong>. <strong>The test part has not been looked at "
            "yet</strong>: intervals, baselines, paired differences and slices are missing here. "
            f"Make them with <code>{command}</code>, then make this report again.",
        ]
    targets, interval = run.result["targets"], run.result["intervals"].get(metric)
    spread = f"{100 * level:g} % interval {page.number(interval[0])} to {page.number(interval[1])}; " if interval else ""
    found.append(
        f"On the {targets['n']:,} test targets of {targets['users']:,} users, {page.text(metric)} is "
        f"<strong>{page.number(run.metrics[metric])}</strong> ({spread}{explained(metric)}).{_in_hundred(run, metric)}"
    )
    baseline = best_baseline(run, metric)
    if baseline is not None:
        found.append(_beside(run, metric, baseline, paired))
    return found


def side_by_side(runs: Sequence[Run], metric: str, paired: Sequence[Paired]) -> list[str]:
    """A sentence for each of several runs on the same targets, the first one being what the others are compared with."""
    found = []
    for number, run in enumerate(runs):
        if not run.metrics:
            found.append(f"<strong>{page.text(run.label)}</strong> has not finished its training.")
            continue
        value, interval = page.number(run.metrics.get(metric)), run.result.get("intervals", {}).get(metric)
        spread = f" [{page.number(interval[0])}, {page.number(interval[1])}]" if interval else ""
        said = f"<strong>{page.text(run.label)}</strong> ({page.text(run.recipe.model.name)}): "
        said += f"{run.stage} {page.text(metric)} {value}{spread}"
        test = next((one.tests[metric] for one in paired if one.first == run.label and metric in one.tests), None)
        if number and test is not None:
            said += f"; to {page.text(runs[0].label)} {page.signed(test['difference'])}, {verdict(test, runs[0].level)}"
            said += f" ({page.p_value(test['p_value'])})"
        elif not run.evaluated:
            command = f"largerec evaluate {page.text(quote(str(run.bundle.path)))}"
            said += f"; its test part has not been looked at: <code>{command}</code>"
        found.append(said + ".")
    return found


def _trained(run: Run, sequences: Sequences) -> str:
    result, model = run.result, run.recipe.model
    depth, width, _ = model.shape
    size = f", {result['params_non_embedding']:,} parameters beside the item table" if result else ""
    spent = (
        f" It read {result['train_tokens']:,} events in {result['train_seconds']:,.0f} s on {page.text(trained_on(result))}."
        if result
        else ""
    )
    trained = int((sequences.stage_N == 0).sum())
    return (
        f"<strong>{page.text(model.name)}</strong> ({depth} blocks of width {width}{size}) learned from {trained:,} training "
        f"events of {sequences.n_users:,} users, split by {page.text(run.recipe.split.protocol)}.{spent}"
    )


def _in_hundred(run: Run, metric: str) -> str:
    k = metric.partition("@")[2]
    recall = run.metrics.get(f"recall@{k}")
    return "" if recall is None else f" In {100 * recall:.1f} of 100 cases the next item was among the first {k}."


def _beside(run: Run, metric: str, baseline: tuple[str, float], paired: Sequence[Paired]) -> str:
    name, value = baseline
    said = f"The best baseline, {page.text(name)}, reaches {page.number(value)}."
    test = next((one.tests[metric] for one in paired if one.second == name and metric in one.tests), None)
    if test is None:
        return f"{said} There is no paired test of the two."
    level = run.level
    word, difference = verdict(test, level), page.signed(test["difference"])
    span = (
        f"{100 * level:g} % interval {page.signed(test['low'])} to {page.signed(test['high'])}, {page.p_value(test['p_value'])}"
    )
    if word == "no clear difference":
        return f"{said} The difference of {difference} ({span}) is <strong>not significant</strong> by the paired test."
    return f"{said} The model is <strong>significantly {word}</strong> by the paired test: {difference} ({span})."


def warnings(run: Run, sequences: Sequences, metric: str) -> list[str]:
    """What a careful reader should know before quoting the numbers (markup)."""
    found = []
    if run.recipe.data.path is None:
        found.append("The log is generated: its numbers say whether the code works, not how good a model is on people.")
    if sequences.time_kind == "order":
        found.append(
            "The log has an order and no clock: nothing here knows of time, and there is no baseline of recent popularity."
        )
    looks = [line for line in run.log if "validation" in line]
    if run.result and looks and run.result["best_step"] == looks[-1]["step"] == run.result["steps"]:
        found.append("The last validation was the best one: training ended while it still got better. More epochs may help.")
    return [*found, *(_test_warnings(run, metric) if run.evaluated else [])]


def _test_warnings(run: Run, metric: str) -> list[str]:
    result: dict[str, Any] = run.result
    targets, found = result["targets"], []
    baseline = best_baseline(run, metric)
    if baseline is not None and baseline[1] >= run.metrics[metric]:
        found.append(f"A list that is the same for everyone ({page.text(baseline[0])}) is as good as this model or better.")
    if targets["users"] < FEW_USERS:
        found.append(f"The test has only {targets['users']:,} users: intervals are wide, and small differences are noise.")
    if targets["outside_catalogue"] > MANY_COLD * targets["n"]:
        part = page.share(targets["outside_catalogue"], targets["n"])
        found.append(
            f"{part} of the targets are items without a training event. No model here can recommend them: they are misses."
        )
    if targets["masked_as_seen"] > MANY_REPEATS * targets["n"]:
        part = page.share(targets["masked_as_seen"], targets["n"])
        found.append(
            f"{part} of the targets are items that the user had before. Seen items are left out of the lists, so these are "
            "misses; look at the unmasked numbers too."
        )
    if result["n_test_evaluations"] > 1:
        found.append(
            f"The test part of this run was looked at {result['n_test_evaluations']} times. Settings chosen by it flatter the "
            "numbers."
        )
    if result.get("query_time"):
        found.append("The model knew the moment of the target (query time). Do not compare it with rows that did not.")
    return found
