"""Print the README's quality table from the result files in benchmarks/results (a test holds the README to it).

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# name of the result file -> (data, model, recall@10 / ndcg@10 of the best published models on the same split that know ids alone)
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
    """Choices among shown items: what rules reach, and the run's scores."""
    lines = ["| shown items | ranked by | mrr, with 95 % | hit@1 |", "|---|---|---|---|"]
    for name, title in LISTS.items():
        if (found := read(name)) is None:
            continue
        (run,) = found["results"]
        scores = {f"{run['model']}, {score}": metrics for score, metrics in run["lists"]["scores"].items()}
        for label, metrics in (run["lists"]["baselines"] | scores).items():
            low, high = metrics["intervals"]["mrr"]
            lines.append(
                f"| {title} | {label} | {four(metrics['mrr'])} ({four(low)} - {four(high)}) | {four(metrics['hit@1'])} |"
            )
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


if __name__ == "__main__":
    print("\n".join([*leave_one_out(), "", *timelines(), "", *lists(), "", *speed()]))
