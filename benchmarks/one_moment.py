"""How well runs order items for one user at one moment: each user's events of the test part as candidates after one history.

    python benchmarks/one_moment.py joint=runs/kuairand-tasks/kuairand-unified-features/seed-0 \
        din=runs/kuairand-tasks/kuairand-din/seed-0 dlrm=runs/kuairand-tasks/kuairand-dlrm/seed-0 \
        --name kuairand-one-moment

`largerec evaluate` asks about each event with everything before it as history, so that who predicts against a user's labels
so far gains in GAUC (docs/rank.md). Here all candidates share the history before the user's first test event, its time and its
context, so nothing of that kind is there to gain. Users with both labels of a task, `--users` of them (the same for all runs);
of an item that comes twice the first event counts. Differences of each run minus the first one, paired over users. The result
goes to benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from tables import RESULTS

import largerec
from largerec.bundle import Bundle
from largerec.compare_tasks import TESTED, Draws, draws_of, paired_tasks
from largerec.doctor import processor
from largerec.engine import Engine
from largerec.errors import LargeRecError


def candidates_of(engine: Engine, users: int) -> pl.DataFrame:
    """Rows of the test part with their tokens and labels, of users that have two items with different labels of a task."""
    sequences = engine.sequences
    rows = sequences.impressions("test")
    assert sequences.label_NA is not None
    tokens = pl.DataFrame({"item_id": engine.tokenizer.vocabulary["item_id"], "token": np.arange(engine.tokenizer.size)})
    found = pl.DataFrame(
        {
            "row": rows,
            "user": sequences.user_N[rows],
            "item_id": sequences.item_ids.gather(sequences.item_N[rows]),
            **{f"{name}.label": sequences.label_NA[rows, column] for column, name in enumerate(engine.ranker.names)},
        }
    )
    found = found.join(tokens, on="item_id", how="inner", maintain_order="left")
    found = found.unique(["user", "item_id"], keep="first", maintain_order=True)
    differ = [pl.col(f"{name}.label").n_unique().over("user") > 1 for name in engine.ranker.names]
    found = found.filter(pl.any_horizontal(*differ))
    chosen = np.random.default_rng(0).permutation(found["user"].unique(maintain_order=True).to_numpy())[:users]
    return found.filter(pl.col("user").is_in(chosen.tolist()))


def predictions_of(engine: Engine, users: int) -> pl.DataFrame:
    """What the run says of each candidate, all of a user after one history."""
    parts = []
    for part in candidates_of(engine, users).partition_by("user", maintain_order=True):
        query, token_C = engine.queries_at(part["row"].to_numpy()[:1]), part["token"].to_numpy()
        known = query.rows.known
        features = None if known is None else known.at(np.repeat(query.end_Q, len(token_C)), token_C)
        found = engine.ranker.of_candidates(query, token_C, features)
        columns = {f"{name}.predicted": one[:, 1].numpy() for name, one in zip(engine.ranker.names, found, strict=True)}
        parts.append(part.with_columns(**{name: pl.Series(values) for name, values in columns.items()}))
    return pl.concat(parts).rename({"user": "user_id"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--name", required=True)
    given = parser.parse_args()
    draws: dict[str, Draws] = {}
    rows: list[dict[str, Any]] = []
    first, level = pl.DataFrame(), 0.95
    try:
        for name, _, folder in (one.partition("=") for one in given.runs):
            recipe, frame = Bundle.open(folder).recipe(), predictions_of(largerec.load(folder), given.users)
            labels = ["row", *(column for column in frame.columns if column.endswith(".label"))]
            if rows and not frame.select(labels).equals(first.select(labels)):
                raise LargeRecError(f"{folder} has other events in its test part than the first run.")
            first, level = (first, level) if rows else (frame, recipe.evaluate.level)
            draws[name] = draws_of([frame], recipe)
            tasks = {task: {metric: float(found[metric][0]) for metric in TESTED} for task, found in draws[name].items()}
            against = paired_tasks(draws[name], draws[given.runs[0].partition("=")[0]], level) if rows else {}
            rows.append({"name": name, "tasks": tasks, "minus_first": against})
            print(json.dumps(rows[-1]), flush=True)
    except LargeRecError as error:
        sys.exit(f"error: {error}")
    names = " ".join(f"{one.partition('=')[0]}=<run>" for one in given.runs)
    found = {
        "name": given.name,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "command": f"python benchmarks/one_moment.py {names} --users {given.users} --name {given.name}",
        "users": first["user_id"].n_unique(),
        "events": first.height,
        "rows": rows,
    }
    (RESULTS / f"{given.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
