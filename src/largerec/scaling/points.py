"""The points of a grid: one line of ``points.jsonl`` for each finished run, which fits, plans and pages read.

A line is replaced in one step, so that a kill at any moment loses no point and leaves none half-written.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from largerec.bundle import Bundle
from largerec.errors import LargeRecError

FILE = "points.jsonl"

Regime = Literal["single-epoch", "repeated"]
State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Point:
    """One run of a grid, by what it is, what it cost and what it reached. Unknown numbers are NaN, and null in the file.

    Attributes:
        name: unique in the grid; the run's folder is ``dir``, relative to the grid's.
        data_hash: of the split log that it was trained on, as in the ``lineage.json`` of its folder.
        params: parameters outside the item and position tables; ``params_embedding`` are those tables.
        tokens: training targets processed, repeated ones counted each time; so steps, epochs, seconds. Of a run that was given
            up they are those up to the weights that were kept.
        unique_tokens: training targets there are, before any repetition (the D of the data).
        history: the most events that a state can see; ``catalogue``: items that the loss and the metrics range over.
        flops: floating-point operations of training, by formula; a multiply-add counts as two.
        seconds: wall time of training, without validation; times ``cores`` it is core-seconds.
        loss: cross-entropy on validation in nats a target, over the whole catalogue, on targets that are the grid's own and
            the same for all its runs: the lowest of the run's validations; ``loss_interval``: 95 % of it, by a bootstrap over
            users.
        metrics: ranking quality on the same targets, as ``ndcg@10``.
        entropy: of the training sequences, in nats an event, as :mod:`largerec.audit.information` estimates it.
        regime: whether training saw its events once or repeated them.
        held_out: one of the grid's largest runs, on which laws of the others are checked.
        state: ``stopped``: given up as hopeless; ``failed``: diverged, and ``loss`` is NaN.
        irreducible: cross-entropy of the exact law on the same targets, where the log is a generated one.
        popularity: cross-entropy of how often training has each item, on the same targets: what a model reaches that knows no
            more.
    """

    name: str
    family: str
    size: str
    seed: int
    dir: str
    data_hash: str
    layers: int
    width: int
    params: int
    params_embedding: int
    tokens: int
    unique_tokens: int
    epochs: float
    steps: int
    history: int
    catalogue: int
    flops: float
    seconds: float
    cores: int
    loss: float
    loss_interval: tuple[float, float] | None
    metrics: dict[str, float]
    entropy: float | None
    regime: Regime
    held_out: bool
    state: State
    irreducible: float | None
    popularity: float

    def to_json(self) -> dict[str, Any]:
        """The fields, with null for what is not finite."""
        return {key: _nullable(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: dict[str, Any], place: str) -> Point:
        """A point from a line of the file.

        Raises:
            LargeRecError: a field is missing, unknown or of another kind; the message names ``place``.
        """
        wanted = {field.name for field in fields(cls)}
        wrong = sorted(wanted ^ document.keys())
        if wrong:
            verb = "lacks" if wrong[0] in wanted else "has an unknown"
            raise LargeRecError(
                f"{place} is no point of this version: it {verb} {wrong[0]!r}. Remove the line, or run the grid again."
            )
        filled = {key: _filled(key, value) for key, value in document.items()}
        for key, allowed in (("regime", get_args(Regime)), ("state", get_args(State))):
            if filled[key] not in allowed:
                raise LargeRecError(f"{place} has {key}={filled[key]!r}; allowed are {', '.join(allowed)}.")
        interval = filled["loss_interval"]
        return cls(**filled | {"loss_interval": None if interval is None else (float(interval[0]), float(interval[1]))})


def regime_of(tokens: float, unique_tokens: float) -> Regime:
    """Whether training sees no event twice."""
    return "single-epoch" if tokens <= unique_tokens else "repeated"


FLOATS = ("epochs", "flops", "seconds", "loss")


def _filled(key: str, value: Any) -> Any:
    if key in FLOATS:
        return math.nan if value is None else float(value)
    return value


def _nullable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_points(folder: Path | str) -> list[Point]:
    """The points of a grid's folder, in the order in which they were made; none where there is no file.

    Raises:
        LargeRecError: a line is damaged, or two have one name.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return []
    points: dict[str, Point] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{file}, line {number},"
        try:
            document = json.loads(line)
        except json.JSONDecodeError as error:
            raise LargeRecError(f"{place} is damaged ({error}); remove the line and run the grid again.") from None
        if not isinstance(document, dict):
            raise LargeRecError(f"{place} is damaged: it holds no JSON object; remove the line and run the grid again.")
        point = Point.from_json(document, place)
        if point.name in points:
            raise LargeRecError(f"{place} repeats the point {point.name!r}; remove one of the two lines.")
        points[point.name] = point
    return list(points.values())


def write_point(folder: Path | str, point: Point) -> None:
    """Add a point to a grid's file, or replace the one of its name in its place."""
    points = {one.name: one for one in read_points(folder)} | {point.name: point}
    text = "".join(json.dumps(one.to_json(), allow_nan=False) + "\n" for one in points.values())
    Bundle(folder).write_text(FILE, text)
