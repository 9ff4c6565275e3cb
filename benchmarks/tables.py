"""Print the tables of docs/results.md from the result files in benchmarks/results (a test holds the pages to them).

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).parent / "results"
# name of the result file -> (data, model, recall@10 / ndcg@10, each the best of the sources of docs/results.md)
ROWS = {
    "amazon-beauty": ("Amazon Beauty", "SASRec", ".0928 / .0547"),
    "amazon-beauty-words": ("Amazon Beauty", "SASRec, items with words", ""),
    "amazon-sports": ("Amazon Sports", "SASRec", ".0569 / .0323"),
    "amazon-sports-words": ("Amazon Sports", "SASRec, items with words", ""),
    "amazon-toys": ("Amazon Toys", "SASRec", ".0970 / .0580"),
    "amazon-toys-words": ("Amazon Toys", "SASRec, items with words", ""),
    "ml-1m-sasrec": ("MovieLens-1M, order only", "SASRec", ".3159 / .1857"),
    "ml-1m": ("MovieLens-1M, order only", "HSTU", ""),
}
TIMELINES = {
    "ml-latest-timeline": "MovieLens latest, test from 2020",
    "globo-timeline": "Globo.com news, test on 16 October 2017",
}

LISTS = {"trivago-lists": "trivago, 25 hotels"}
# result files of benchmarks/zoo.py -> column; the first was tuned, the last two have its settings, which recipes/zoo has
ZOOS = {
    "zoo-beauty-tuned": "Amazon Beauty, four trials each",
    "zoo-beauty": "Amazon Beauty, SASRec's settings",
    "zoo-sports": "Amazon Sports, Beauty's settings, on an H200",
    "zoo-toys": "Amazon Toys, Beauty's settings",
}
# the families that were chosen on those, and SASRec, beside each other on other logs
ZOOS_ELSEWHERE = {
    "zoo-globo": "Globo.com news, timeline",
    "zoo-ml-latest": "MovieLens latest, timeline",
}
# result files of benchmarks/pairs.py -> column
PAIRS = {"zoo-beauty-tuned-pairs": "above, on Amazon Beauty", "zoo-toys-pairs": "above, on Amazon Toys"}
# the same of families that see the moment of asking, which is a table of its own
QUERY_TIME = {"zoo-beauty-query-time": "Amazon Beauty, with query time"}
# result files of benchmarks/zoo.py with tasks -> data
RANKED = {"kuairand-tasks": "KuaiRand", "ml-latest-tasks": "MovieLens latest"}

# Tokens a second of other projects' HSTU at the shapes of train_speed.py, measured on another machine with two such cores.
PEERS = {"Meta's research HSTU": ("5,900", "1,800"), "RecTools HSTU": ("7,800", "3,700")}


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def four(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def pair(metrics: dict[str, Any]) -> str:
    """recall@10 / ndcg@10 of one run's metrics, or of [mean, deviation] over seeds."""
    values = [metrics[name] for name in ("recall@10", "ndcg@10")]
    return " / ".join(four(v[0] if isinstance(v, list) else v) for v in values)


def leave_one_out() -> list[str]:
    lines = [
        "| data, leave-one-out | model | masked | 95 %, ndcg@10, seed 0 | unmasked | popularity | published | seeds | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (title, model, published) in ROWS.items():
        if (found := read(name)) is None:
            continue
        first = found["results"][0]
        low, high = first["intervals"]["ndcg@10"]
        minutes = max(found["train_seconds"]) / 60
        lines.append(
            f"| {title} | {model} | **{pair(found['test'])}** | {four(low)} - {four(high)} | {pair(found['test_unmasked'])} | "
            f"{pair(first['baselines']['popularity'])} | {published} | {len(found['seeds'])} | {minutes:.0f} |"
        )
    return lines


def timelines() -> list[str]:
    lines = ["| data, timeline | model | masked | 95 % of ndcg@10 | unmasked |", "|---|---|---|---|---|"]
    for name, title in TIMELINES.items():
        if (found := read(name)) is None:
            continue
        first = found["results"][0]
        for baseline, metrics in first["baselines"].items():
            low, high = metrics["intervals"]["ndcg@10"]
            lines.append(f"| {title} | {baseline} | {pair(metrics)} | {four(low)} - {four(high)} | {pair(metrics['unmasked'])} |")
        for document in (read(f"{name}-sasrec"), found):
            if document is not None:
                run = document["results"][0]
                low, high = run["intervals"]["ndcg@10"]
                own = f"{pair(document['test'])} | {four(low)} - {four(high)} | {pair(document['test_unmasked'])}"
                lines.append(f"| {title} | {run['model']} | {own} |")
    return lines


def lists() -> list[str]:
    """Choices among shown items: what rules reach, and the scores of the runs, means over seeds."""
    lines = ["| shown items | ranked by | mrr (95 %, seed 0) | hit@1 |", "|---|---|---|---|"]
    for name, title in LISTS.items():
        if (found := read(name)) is None:
            continue
        runs = []
        for run in found["results"]:
            scores = {f"{run['model']}, {score}": metrics for score, metrics in run["lists"]["scores"].items()}
            runs.append(run["lists"]["baselines"] | scores)
        for label, first in runs[0].items():
            low, high = first["intervals"]["mrr"]
            mrr, hit = (mean(run[label][metric] for run in runs) for metric in ("mrr", "hit@1"))
            lines.append(f"| {title} | {label} | {four(mrr)} ({four(low)} - {four(high)}) | {four(hit)} |")
    return lines


def speed() -> list[str]:
    lines = ["| training, tokens a second on 2 cores | 2 blocks | 8 blocks, 2 heads |", "|---|---|---|"]
    lines += [f"| {name} | {base} | {large} |" for name, (base, large) in PEERS.items()]
    base, large = read("train-speed-base"), read("train-speed-large")
    if base is None or large is None:
        return lines
    if "tokens_per_s_reference" in base:
        lines.append(f"| LargeRec on plain torch, no compiler | {base['tokens_per_s_reference']:,.0f} | |")
    lines.append(f"| **LargeRec** | **{base['tokens_per_s']:,.0f}** | **{large['tokens_per_s']:,.0f}** |")
    if (shared := read("train-speed-base--shared")) is not None:
        lines.append(f"| LargeRec, negatives shared by a step | {shared['tokens_per_s']:,.0f} | |")
    return lines


def trained_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of recipes, best on validation first: no baselines and no ensembles."""
    rows = [row for row in document["rows"] if row["model"] is not None and "members" not in row]
    return sorted(rows, key=lambda row: -row["validation"][document["metric"]])


def holm(p_values: list[float]) -> list[float]:
    """p-values for several tests at once, by Holm's method (1979): one of them falls below .05 by chance once in twenty."""
    order, adjusted, largest = sorted(range(len(p_values)), key=p_values.__getitem__), [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def star(difference: float, p: float) -> str:
    """One for a row below the one it is held against by a test at .05, two above it, none where they are not told apart."""
    return "" if p > 0.05 else "\\*" if difference < 0 else "\\*\\*"


def told_apart(document: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Of each row that was held against another: its difference from that row in the metric, and Holm's p-value."""
    metric, others = document["metric"], [row for row in trained_rows(document) if "paired" in row]
    adjusted = holm([row["paired"][metric]["p_value"] for row in others])
    return {row["name"]: (row["paired"][metric]["difference"], p) for row, p in zip(others, adjusted, strict=True)}


def pairs_told(document: dict[str, Any]) -> dict[str, list[str]]:
    """Of a result file of benchmarks/pairs.py: model -> the models it is above by a test at .05, corrected for all pairs."""
    model = {row["name"]: row["model"] for row in document["rows"]}
    found: dict[str, list[str]] = {name: [] for name in model.values()}
    for test in document["pairs"]:
        above, below = (test["row"], test["minus"]) if test["difference"] > 0 else (test["minus"], test["row"])
        if test["holm"] <= 0.05:
            found[model[above]].append(model[below])
    return found


def verdict(document: dict[str, Any]) -> str:
    """Which differences from the row chosen on validation are more than chance, in one sentence."""
    found = told_apart(document)
    if not found:
        return ""
    against = next(row["paired"]["against"] for row in trained_rows(document) if "paired" in row)
    said = {"better": list[str](), "worse": list[str](), "not told apart": list[str]()}
    for name, (difference, p) in found.items():
        kind = "not told apart" if p > 0.05 else "better" if difference > 0 else "worse"
        said[kind].append(f"{name} ({'-' if difference < 0 else '+'}{four(abs(difference))}, p = {p:.2g})")
    parts = [f"{kind}: {', '.join(names)}" for kind, names in said.items() if names]
    return (
        f"Against {against}, by {document['metric']} on the test, at .05 with Holm's correction for {len(found)} "
        f"test{'s' if len(found) > 1 else ''}: {'; '.join(parts)}."
    )


def zoo_table(document: dict[str, Any]) -> list[str]:
    """One row a recipe, best on validation first."""
    metric = document["metric"]
    lines = [
        f"| recipe | {metric}, validation | recall@10 / ndcg@10, test | between seeds | 95 % of {metric} | minus {{against}} | p "
        "| outside tables | trials | minutes | ms a user |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = trained_rows(document)
    against = next((row["paired"]["against"] for row in rows if "paired" in row), "")
    lines[0] = lines[0].replace("{against}", against)
    for row in rows:
        low, high = row["intervals"][metric]
        spread, test = row["test_spread"][metric], row.get("paired", {}).get(metric)
        apart = (
            f"{'-' if test['difference'] < 0 else ''}{four(abs(test['difference']))} | {test['p_value']:.2g}" if test else " | "
        )
        ended = row.get("trials")
        tried = f"{ended['finished']} + {ended['pruned']} given up + {ended['failed']} failed" if ended else ""
        cells = [
            f"**{row['name']}**, chosen" if row["chosen"] else row["name"],
            four(row["validation"][metric]),
            pair(row["test"]),
            four(spread) if spread is not None else "",
            f"{four(low)} - {four(high)}",
            apart,
            f"{row['params_non_embedding']:,.0f}",
            tried,
            f"{row['train_seconds'] / 60:.0f}",
            f"{row['recommend_ms']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tasks_table(document: dict[str, Any], title: str) -> list[str]:
    """AUC and GAUC of each condition, one row a recipe, the item-rate baseline first; a star where the row the others are held
    against is better by a paired test at .05, two where it is worse."""
    rows = trained_rows(document)
    names = list(rows[0]["tasks"])
    heads = " | ".join(f"{name.replace('_', ' ')}: AUC | GAUC" for name in names)
    retrieval = document["retrieval_metric"]
    lines = [f"| {title}, timeline | {heads} | {retrieval} | minutes |", "|---" * (2 * len(names) + 3) + "|"]
    for name, tasks in document["task_baselines"].items():
        cells = [cell for task in names for cell in (four(tasks[task]["auc"]), four(tasks[task]["gauc"]))]
        lines.append(f"| {name} | {' | '.join(cells)} | | |")
    for row in rows:
        tests, cells = row.get("paired_tasks", {}), []
        for task in names:
            for metric in ("auc", "gauc"):
                test = tests.get(f"{task}.{metric}")
                mark = "" if test is None else star(test["difference"], test["p_value"])
                cells.append(four(row["tasks"][task][metric]) + mark)
        own = f"**{row['name']}**" if not tests else row["name"]
        found = four(row["test"][retrieval]) if row["test"] else "ranks only"
        lines.append(f"| {own} | {' | '.join(cells)} | {found} | {row['train_seconds'] / 60:.0f} |")
    return lines


def within_table(document: dict[str, Any]) -> list[str]:
    """AUC and GAUC of each condition, each recipe without the loss within users and with it. A star where the joint recipe with
    it is better by a paired test at .05, each test for itself, two where it is worse."""
    rows = [(row, sort) for sort, rows in (("without", document["without"]), ("with", trained_rows(document))) for row in rows]
    names, joint = list(rows[0][0]["tasks"]), document["against"]
    tests = {tuple(one["minus"]): one["tasks"] for one in document["compared"] if one["row"][0] == joint}
    heads = " | ".join(f"{name.replace('_', ' ')}: AUC | GAUC" for name in names)
    lines = [f"| recipe | within | {heads} | {document['retrieval_metric']} |"]
    lines.append("|---" * (2 * len(names) + 3) + "|")
    for row, sort in sorted(rows, key=lambda one: -one[0]["tasks"][names[0]]["auc"]):
        cells = []
        for task in names:
            for metric in ("auc", "gauc"):
                test = tests.get((row["name"], sort), {}).get(f"{task}.{metric}")
                mark = "" if test is None else star(-test["difference"], test["p_value"])  # the joint recipe's minus this row's
                cells.append(four(row["tasks"][task][metric]) + mark)
        name = f"**{row['name']}**" if (row["name"], sort) == (joint, "with") else row["name"]
        found = four(row["test"][document["retrieval_metric"]]) if row["test"] else "ranks only"
        lines.append(f"| {name} | {sort} | {' | '.join(cells)} | {found} |")
    return lines


def ranked() -> list[str]:
    return [line for name, title in RANKED.items() if (found := read(name)) is not None for line in tasks_table(found, title)]


def conditioned() -> list[str]:
    """Retrieval of what will be liked, of docs/rank.md: plain lists beside lists that ask for the task, on the same targets."""
    found = read("kuairand-unified")
    assert found is not None
    lines = ["| asked for | targets | users | plain: recall@10 / ndcg@10 | wanted | ndcg@10, wanted minus plain (95 %) | p |"]
    lines.append("|---|---|---|---|---|---|---|")
    for task, one in found["results"][0]["conditioned"].items():
        test = one["paired"]["ndcg@10"]
        signed = [f"{'-' if value < 0 else '+'}{four(abs(value))}" for value in (test["difference"], test["low"], test["high"])]
        lines.append(
            f"| {task.replace('_', ' ')} | {one['n']:,} | {one['users']} | {pair(one['plain'])} | {pair(one['wanted'])} | "
            f"{signed[0]} ({signed[1]} to {signed[2]}) | {test['p_value']:.2g} |"
        )
    return lines


def zoo(columns: Mapping[str, str] = ZOOS) -> list[str]:
    """The families on all sets that were run, recall@10 / ndcg@10 on the test, in the order of validation on the first, those
    that it lacks last. A star where the set's chosen row is better in the metric by a paired test at .05 with Holm's correction,
    two where it is worse."""
    found = {name: document for name in columns if (document := read(name)) is not None}
    if not found:
        return []
    by_set = [({row["name"]: row for row in trained_rows(document)}, told_apart(document)) for document in found.values()]
    lines = [f"| family | {' | '.join(columns[name] for name in found)} |", "|---" * (1 + len(found)) + "|"]
    models = {name: row["model"] for rows, _ in reversed(by_set) for name, row in rows.items()}
    for name in dict.fromkeys(name for rows, _ in by_set for name in rows):
        cells = []
        for rows, tests in by_set:
            value = pair(rows[name]["test"]) if name in rows else ""
            cells.append(f"**{value}**" if name in rows and rows[name]["chosen"] else value + star(*tests.get(name, (0.0, 1.0))))
        lines.append(f"| {models[name]} | {' | '.join(cells)} |")
    return lines


def zoo_pairs() -> list[str]:
    """Of each family the families it is above in the metric, by the tests of all pairs of a set, in the order of the first."""
    found = {title: pairs_told(document) for name, title in PAIRS.items() if (document := read(name)) is not None}
    lines = [f"| family | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for family in next(iter(found.values()), {}):
        lines.append(f"| {family} | {' | '.join(', '.join(told.get(family, ())) for told in found.values())} |")
    return lines


if __name__ == "__main__":
    parts = (leave_one_out(), timelines(), lists(), ranked(), speed(), zoo(), zoo_pairs(), zoo(ZOOS_ELSEWHERE), zoo(QUERY_TIME))
    print("\n\n".join("\n".join(part) for part in parts))
