"""The grid of a scaling study: which runs a recipe's ``[scale]`` group asks for, before anything is trained."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from largerec.errors import LargeRecError
from largerec.models.dial import TARGETS, Size
from largerec.options import Options

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
UNITS = {"second": 1 / 60, "minute": 1.0, "hour": 60.0}


class ScaleOptions(Options):
    """What ``largerec scale`` varies: all combinations of these lists, where an empty one keeps the recipe's own setting.

    ``families``; ``sizes`` of the dial, which sets depth, width and heads together; ``widths``: of the item table and so of the
    model, with the depth of the size; ``users``, ``recent``: shares of the training users and of the most recent training events;
    ``histories``: the model's window; ``epochs``: passes over the data; ``versions``: paths in the place of ``data.path``, of
    logs that share their validation targets. The smallest size is run with ``seeds`` seeds, the others with one.

    ``hold_out``: runs that need more than a ``hold_out``-th of the largest run's operations are predicted first and run after
    that, so that they check the laws of the others. ``budget``: core-minutes, as "20 core-minutes"; not given, all runs are made.

    ``targets``: how many validation targets every run is measured on, always the same ones. ``checks``: validations of a run.
    ``hopeless``: a run is given up in its second half when its loss is so many nats above that of a run that needed no more
    operations and no more data. Both that and the end of the budget are looked at when a run is validated, so that with one
    check, at the end, no run is given up or put aside.
    """

    families: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = ("nano", "tiny", "small", "base")
    widths: tuple[Count, ...] = ()
    users: tuple[Share, ...] = ()
    recent: tuple[Share, ...] = ()
    histories: tuple[Count, ...] = ()
    epochs: tuple[Count, ...] = ()
    versions: tuple[str, ...] = ()
    seeds: int = Field(3, ge=1)
    hold_out: float = Field(8.0, gt=1)
    budget: str | None = None
    targets: int = Field(2000, ge=10)
    checks: int = Field(4, ge=1)
    hopeless: float = Field(0.5, gt=0)

    @field_validator("budget")
    @classmethod
    def _is_a_budget(cls, given: str | None) -> str | None:
        if given is not None:
            core_minutes(given)
        return given

    @field_validator("versions")
    @classmethod
    def _have_names_of_their_own(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if len({version_name(path) for path in given}) < len(given):
            raise LargeRecError(f"scale.versions={list(given)}: the last parts of the paths name the runs, and must differ.")
        return given

    @field_validator("families", "sizes", "widths", "users", "recent", "histories", "epochs", "versions")
    @classmethod
    def _no_value_twice(cls, given: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(given)) < len(given):
            raise LargeRecError(f"[scale] names a value twice: {list(given)}; each run of a grid is made once.")
        return given


def version_name(path: str) -> str:
    """The last part of a version's path without its ending, as it may stand in a folder's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", Path(path).name.partition(".")[0])


def core_minutes(text: str) -> float:
    """``"20 core-minutes"`` or ``"0.5 core-hours"`` as core-minutes: wall time times the cores used.

    Raises:
        LargeRecError: the text is no budget above 0.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*core-(second|minute|hour)s?\s*", text)
    if found is None or float(found[1]) <= 0:
        raise LargeRecError(
            f'{text!r} is no budget; write for example "20 core-minutes" or "6 core-hours": wall time times the cores used.'
        )
    return float(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class Cell:
    """One run of a grid, by what it has of its own; None keeps the recipe's setting (of ``size``: its shape by hand, too)."""

    family: str
    size: Size | None
    width: int | None
    users: float
    recent: float
    history: int | None
    epochs: int | None
    version: str | None
    seed: int

    @property
    def name(self) -> str:
        """Unique in its grid, and a folder's name: ``hstu-small-u0.25-s0``."""
        parts = [self.family] + ([self.size] if self.size is not None else [])
        parts += [f"w{self.width}"] if self.width is not None else []
        parts += [f"u{self.users:g}"] if self.users != 1 else []
        parts += [f"r{self.recent:g}"] if self.recent != 1 else []
        parts += [f"h{self.history}"] if self.history is not None else []
        parts += [f"e{self.epochs}"] if self.epochs is not None else []
        parts += [version_name(self.version)] if self.version is not None else []
        return "-".join([*parts, f"s{self.seed}"])

    @property
    def shape(self) -> str:
        """What its speed depends on."""
        return "-".join(str(part) for part in (self.family, self.size, self.width, self.history) if part is not None)


def cells(options: ScaleOptions, family: str, seed: int, users: float = 1.0, recent: float = 1.0) -> list[Cell]:
    """All runs that the options ask for; ``family``, ``users`` and ``recent`` are the recipe's own, which stand where the options
    name none. Seeds count from the recipe's."""
    smallest, found = min(options.sizes, key=lambda size: TARGETS[size], default=None), []
    axes = (options.families or (family,), options.sizes or (None,), options.widths or (None,))
    shares = (options.users or (users,), options.recent or (recent,))
    for one, size, width, some, late, history, epochs, version in itertools.product(
        *axes, *shares, options.histories or (None,), options.epochs or (None,), options.versions or (None,)
    ):
        for more in range(options.seeds if size == smallest else 1):
            found.append(Cell(one, size, width, some, late, history, epochs, version, seed + more))
    return found
