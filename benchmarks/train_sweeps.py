"""Training speed over history length, catalogue, depth, width and threads: a table, a JSON file and a picture.

    python benchmarks/train_sweeps.py           (or some of: length items depth width threads)

Each point is a run of benchmarks/train_speed.py in its own process (25 steps, the first 12 not counted); points that the result
file already holds are not measured again, so the command can be repeated. Beside the speed stands the arithmetic of a token: its
floating-point operations by formula, and what share of this machine's rate of plain matrix products that is. Catalogues are
measured with shared negatives, all else with 128 negatives of each position.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from largerec.doctor import matrix_gflops
from largerec.report.charts import Axis, Line, Point, lines, percent

PICTURE = Path(__file__).parent.parent / "docs" / "train-speed.svg"
STYLE = """:root { --c0: #1f5fbf; --soft: #666; --grid: #ddd }
svg { background: #fff; color: #222; font: 10px system-ui, sans-serif } svg text { fill: #666 }
.grid { stroke: var(--grid); fill: none } .axis { stroke: var(--soft); fill: none }
.line { fill: none; stroke: var(--c0); stroke-width: 1.8 } .dot { stroke: none; fill: var(--c0) }"""
RESULT = Path(__file__).parent / "results" / "train-sweeps.json"
SPEED = Path(__file__).with_name("train_speed.py")
SWEEPS: dict[str, tuple[int, ...]] = {
    "length": (200, 500, 1000, 2048, 4096, 8192),
    "items": (10_000, 100_000, 1_000_000),
    "depth": (1, 2, 4, 8),
    "width": (32, 64, 128, 256),
    "threads": (1, 2),
}


def flops_per_token(point: dict[str, Any], mean_context: float) -> float:
    """Forward and backward of the blocks' matrices, attention over the context, and 129 scores; as ``accounting`` counts."""
    width, depth = point["width"], point["depth"]
    return float(3 * (2 * depth * 5 * width**2 + 4 * depth * width * mean_context + 2 * width * 129))


def measure(sweep: str, value: int) -> dict[str, Any]:
    """One point in a process of its own."""
    command = [sys.executable, str(SPEED), "--preset", "ml-1m-hstu", "--steps", "25", "--no-reference", "--json"]
    command += ["--width", "64", *(["--shared"] if sweep == "items" else []), f"--{sweep}", str(value)]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"sweep": sweep, "value": value, **json.loads(child.stdout.splitlines()[-1])}


def share(point: dict[str, Any], limit: float) -> float:
    """Of the machine's rate of plain matrix products; ``limit`` is that of two threads."""
    return float(point["tokens_per_s"] * point["mflops_per_token"] / 1e3 / (limit * point["threads"] / 2))


def draw(points: list[dict[str, Any]], limit: float) -> None:
    """Tokens a second, and the share of the machine's rate, over the length of histories."""
    found = sorted((point for point in points if point["sweep"] == "length"), key=lambda point: int(point["value"]))
    length = [float(point["value"]) for point in found]
    panels = []
    for label, values, form in (
        ("tokens a second", [float(point["tokens_per_s"]) for point in found], None),
        ("share of the rate of plain matrix products", [share(point, limit) for point in found], percent),
    ):
        dots = [Point(x, y, f"{x:,.0f}: {y:.3g}") for x, y in zip(length, values, strict=True)]
        y_axis = Axis(label, low=0.0) if form is None else Axis(label, low=0.0, high=1.0, form=form)
        panels.append(lines([Line(label, length, values, 0, dots)], Axis("length of histories", "log"), y_axis, label))
    moved = [panel.replace("<svg ", f'<svg x="{360 * n}" width="360" height="218" ', 1) for n, panel in enumerate(panels)]
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 218"><style>{STYLE}</style>{"".join(moved)}</svg>'
    PICTURE.write_text(svg + "\n", encoding="utf-8")


def main() -> None:
    points = json.loads(RESULT.read_text())["points"] if RESULT.is_file() else []
    there = {(point["sweep"], point["value"]) for point in points}
    for sweep in sys.argv[1:] or SWEEPS:
        for value in SWEEPS[sweep]:
            if (sweep, value) in there:
                continue
            point = measure(sweep, value)
            context = point["length"] / 2 if point["length"] else 77.0  # 77: the mean over MovieLens-1M's lengths
            point["mflops_per_token"] = round(flops_per_token(point, context) / 1e6, 3)
            points.append(point)
            document = {
                "command": "python benchmarks/train_sweeps.py",
                **{name: point[name] for name in ("date", "hardware")},
                "gflops_of_matrix_products": round(matrix_gflops(torch, torch.float32, 2), 1),
                "points": points,
            }
            RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    limit = json.loads(RESULT.read_text())["gflops_of_matrix_products"]
    draw(points, limit)
    print("| sweep | value | tokens a second | microseconds a token | MFLOP a token | share of the matrix rate | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for point in points:
        rate = point["tokens_per_s"]
        cells = (point["sweep"], f"{point['value']:,}", f"{rate:,.0f}", f"{1e6 / rate:.1f}", point["mflops_per_token"])
        print(f"| {' | '.join(map(str, cells))} | {share(point, limit):.0%} | {point['peak_memory_mb']:,} |")


if __name__ == "__main__":
    main()
