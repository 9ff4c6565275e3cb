"""Time to rank many items for one user: the history read once, against copies of the history, and against one item at a time.

    python benchmarks/rank_speed.py --threads 2

HSTU with 8 blocks of width 64, one head, both relative biases, three tasks, random weights; events are two tokens
(interleaved), and with "summed" one. Each figure is the median of ``--repeats`` calls after one that is not counted, of copies
of a tenth as many; one at a time is measured on 20 items and scaled up. The result goes to benchmarks/results/rank-speed.json
and as a picture to docs/rank-speed.svg; with --json it goes to the last line of standard output instead. ``--draw`` measures
nothing and draws the result file anew.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console

from largerec import show
from largerec.doctor import processor
from largerec.engine import Engine
from largerec.engine.engine import build_scorer
from largerec.events import EventLog
from largerec.recipe import recipe_from
from largerec.report.charts import Axis, Line, Point, lines
from largerec.sequences import build_sequences
from largerec.tokenizers import AtomicTokenizer

RESULT = Path(__file__).parent / "results" / "rank-speed.json"
PICTURE = Path(__file__).parent.parent / "docs" / "rank-speed.svg"
WAYS = ("once", "summed", "copies", "one by one")
COLOURS = ("#1f5fbf", "#2a7d46", "#b3541e", "#8a3fa0")
STYLE = (
    ":root { --soft: #666; --grid: #ddd } svg { background: #fff; color: #222; font: 10px system-ui, sans-serif } "
    "svg text { fill: #666 } .grid { stroke: var(--grid); fill: none } .axis { stroke: var(--soft); fill: none } "
    ".line { fill: none; stroke-width: 1.8 } .dot { stroke: none } "
) + " ".join(f".c{i}.line {{ stroke: {c} }} .c{i}.dot {{ fill: {c} }}" for i, c in enumerate(COLOURS))
ITEMS, ALONE = 10_000, 20


def build_engine(history: int, actions: str) -> Engine:
    """An engine with random weights and one user with ``history`` events before the last one."""
    recipe = recipe_from(
        {
            "tasks": {name: {"where": f"value >= {at}"} for at, name in enumerate(("click", "like", "long_view"), 1)},
            "batch": {"max_length": history, "actions": actions},
            "model": {"name": "hstu", "depth": 8, "width": 64, "heads": 1},
        }
    ).resolved()
    rng = np.random.default_rng(0)
    item_N = np.concatenate([np.arange(ITEMS), rng.integers(ITEMS, size=history + 1)])
    user_N = np.concatenate([np.repeat(np.arange(1, ITEMS // 100 + 1), 100), np.zeros(history + 1, dtype=np.int64)])
    times = 1_600_000_000_000 + np.sort(rng.integers(30 * 86_400_000, size=len(item_N)))
    columns = {"user_id": user_N, "item_id": item_N, "timestamp": times, "value": rng.integers(0, 5, len(item_N)).astype(float)}
    log = EventLog(pl.DataFrame(columns), None, "timestamp", (), "generated")
    sequences = build_sequences(log, recipe.split, recipe.tasks, recipe.lists)
    tokenizer = AtomicTokenizer.fit(sequences)
    torch.manual_seed(0)
    return Engine(build_scorer(recipe, tokenizer, sequences).prepared(), tokenizer, sequences)


def last_row(engine: Engine) -> int:
    """The row of user 0's last event: asked there, the history is all before it."""
    return int(engine.sequences.offsets_U1[engine.sequences.user_ids.to_list().index(0) + 1]) - 1


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def measure(history: int, candidates: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of each way to rank for one user."""
    engine = build_engine(history, "interleaved")
    query = engine.queries_at(np.array([last_row(engine)]))
    token_C = np.random.default_rng(1).choice(engine.tokenizer.size, candidates, replace=False)
    ranker = engine.ranker
    found: dict[str, Any] = {"history": history, "candidates": candidates}
    found["once"] = median_ms(lambda: ranker.of_candidates(query, token_C, cached=True), repeats)
    found["copies"] = median_ms(lambda: ranker.of_candidates(query, token_C, cached=False), max(1, repeats // 10))
    alone = [token_C[at : at + 1] for at in range(min(ALONE, candidates))]
    one = median_ms(lambda: [ranker.of_candidates(query, token_1, cached=False) for token_1 in alone], 3)
    found["one by one"] = one * candidates / len(alone)
    summed = build_engine(history, "summed")
    query = summed.queries_at(np.array([last_row(summed)]))
    found["summed"] = median_ms(lambda: summed.ranker.of_candidates(query, token_C), repeats)
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}


def draw(rows: list[dict[str, Any]]) -> None:
    """Milliseconds of each way over the candidates and over the length of the history, both axes by factors."""
    panels = []
    for number, (x, fixed, value, label) in enumerate(
        [
            ("candidates", "history", 200, "candidates, after 200 events"),
            ("history", "candidates", 1000, "events before 1,000 candidates"),
        ]
    ):
        points = sorted((row for row in rows if row[fixed] == value), key=lambda row: int(row[x]))
        at = [float(row[x]) for row in points]
        series = [
            Line(
                way,
                at,
                [float(row[way]) for row in points],
                colour,
                [Point(float(row[x]), float(row[way]), f"{way}: {row[way]:,.1f} ms, {row[x]:,} {x}") for row in points],
            )
            for colour, way in enumerate(WAYS)
        ]
        span = [float(row[way]) for row in rows for way in WAYS]
        chart = lines(
            series,
            Axis(label, "log", min(at), max(at)),
            Axis("milliseconds", "log", min(span) / 1.2, max(span) * 1.2),
            f"Milliseconds of each way to rank over {label}",
        )
        panels.append(chart.replace("<svg ", f'<svg x="{360 * number}" width="360" height="218" ', 1))
    keys = "".join(
        f'<text x="{20 + 130 * number}" y="232" style="fill:{colour}">{way}</text>'
        for number, (way, colour) in enumerate(zip(WAYS, COLOURS, strict=True))
    )
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 240"><style>{STYLE}</style>{"".join(panels)}{keys}</svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--history", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--candidates", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--draw", action="store_true")
    given = parser.parse_args()
    if given.draw:
        draw(json.loads(RESULT.read_text(encoding="utf-8"))["rows"])
        return
    torch.set_num_threads(given.threads)
    shapes = [(history, 1000) for history in given.history] + [(200, count) for count in given.candidates if count != 1000]
    rows = [measure(history, candidates, given.repeats) for history, candidates in shapes]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "threads": given.threads,
        "command": " ".join(["python benchmarks/rank_speed.py", *sys.argv[1:]]),
        "unit": "ms a call",
        "rows": rows,
    }
    if given.json:
        print(json.dumps(document))
        return
    show.rows(rows, ("history", "candidates", "once", "summed", "copies", "one by one"))
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(rows)
    Console().print(f"written to {RESULT}")


if __name__ == "__main__":
    main()
