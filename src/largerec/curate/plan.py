"""A plan: which rows are training, and the steps that cure them, as plain data in TOML.

Steps that train a model stand above this package (``largerec.cures``) and join by :func:`register`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from largerec.curate.cleaning import BotsStep, BurstsStep, ClocksStep, DuplicatesStep, MisclicksStep, SessionsStep
from largerec.curate.rows import Change, Training
from largerec.curate.selecting import CoreSetStep, KCoreStep, PopularityStep, RecencyStep
from largerec.errors import LargeRecError, nearest
from largerec.options import Options, read_toml, toml_value
from largerec.sequences import SplitOptions

STEPS: dict[str, type[Options]] = {
    group.model_fields["name"].default: group
    for group in (
        DuplicatesStep, ClocksStep, BotsStep, BurstsStep, MisclicksStep, SessionsStep, KCoreStep, RecencyStep, PopularityStep,
        CoreSetStep,
    )
}  # fmt: skip

TRAINED: dict[str, type[Options]] = {}
"""Steps that train a model, once the module that has them is imported."""


class AnyStep(Protocol):
    """What every step is: an option group with a name that says what becomes of training rows."""

    @property
    def name(self) -> str: ...

    def change(self, training: Training) -> Change: ...

    def model_dump(self, *, mode: str = "python", exclude: set[str] | None = None) -> dict[str, Any]: ...


def register(*groups: type[Options]) -> None:
    """Make steps known that stand above this package."""
    TRAINED.update({group.model_fields["name"].default: group for group in groups})


def _of_its_name(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    return (STEPS | TRAINED)[given["name"]].model_validate(given)


Step = Annotated[Any, BeforeValidator(_of_its_name)]


class Plan(Options):
    """``step``: what is done to the training rows, in this order; ``seed``: of what is drawn.

    ``split``: which rows are training; leave-one-out where neither the plan nor a recipe says so. A plan without steps has the
    default cures: exact duplicates, clocks, bots, bursts.
    """

    seed: int = Field(0, ge=0)
    split: SplitOptions | None = None
    step: tuple[Step, ...] = (DuplicatesStep(), ClocksStep(), BotsStep(), BurstsStep())

    @model_validator(mode="after")
    def _it_has_steps_and_a_plain_split(self) -> Self:
        if not self.step:
            raise LargeRecError("a plan needs at least one [[step]]; leave step out altogether for the default cures.")
        for name in ("positives", "targets"):
            if self.split is not None and getattr(self.split, name) != SplitOptions.model_fields[name].default:
                raise LargeRecError(
                    f"split.{name} is about what a model is asked for, and a plan cures all training rows; leave it out."
                )
        return self


def check_labels(steps: Sequence[AnyStep], split: SplitOptions, tasks: Collection[str], source: str) -> None:
    """Refuse steps that make rows where a recipe asks for labels: such rows have an item and a time, but no outcome.

    Raises:
        LargeRecError: such a step is among them, and the recipe has tasks or ``split.positives``.
    """
    asked = [f"tasks ({', '.join(tasks)})"] if tasks else []
    asked += [f"split.positives = {split.positives!r}"] if split.positives is not None else []
    for step in steps if asked else ():
        if getattr(step, "makes_rows", False):
            raise LargeRecError(
                f"{source}: step {step.name} makes rows that nobody acted on, so they have no labels, and the recipe has "
                f"{' and '.join(asked)}, which read labels. Leave {step.name} out, or take a recipe without tasks and "
                "split.positives."
            )


def plan_from(document: dict[str, Any], source: str = "plan") -> Plan:
    """Check a nested mapping as a plan.

    Raises:
        LargeRecError: an unknown step or key (with the nearest right one), or a value that does not fit.
    """
    given = document.get("step", [])
    for number, step in enumerate(given if isinstance(given, list) else [given], 1):
        name = step.get("name") if isinstance(step, dict) else None
        if not isinstance(name, str) or name not in STEPS | TRAINED:
            known = STEPS | TRAINED
            said = "has no name." if name is None else f"is named {name!r}, which there is not{nearest(str(name), known)}"
            raise LargeRecError(f"{source}: step {number} {said} Write [[step]] with name = one of {', '.join(known)}.")
    try:
        return Plan.model_validate(document)
    except ValidationError as error:
        lines = [f"{source}: the plan does not fit."]
        for problem in error.errors():
            where = [str(part + 1) if isinstance(part, int) else part for part in problem["loc"]]
            if len(problem["loc"]) > 2 and problem["loc"][0] == "step":
                where.insert(2, given[int(problem["loc"][1])]["name"])
            shown = f" (given: {problem['input']!r})" if not isinstance(problem.get("input"), dict) else ""
            lines.append(f"  {' '.join(where)}: {problem['msg']}{shown}")
        raise LargeRecError("\n".join(lines)) from None
    except LargeRecError as error:
        raise LargeRecError(f"{source}: {error}") from None


def load_plan(path: str | Path) -> Plan:
    """Read a TOML plan.

    Raises:
        LargeRecError: the file is missing, is no TOML, or does not fit.
    """
    missing = "; give a TOML file with a [[step]] for each cure (docs/curate.md)."
    document = read_toml(Path(path), "plan", missing=missing, example="docs/curate.md shows one.")
    return plan_from(document, str(path))


OPTION_ENDS = re.compile(r",(?![^\[]*\])")  # commas outside lists


def plan_of(steps: Sequence[str]) -> Plan:
    """The plan of these steps, each a name, or with options: ``duplicates:match=near``, ``core-set:budget=0.3,method=random``,
    ``clocks:kinds=["unit"]``.

    Raises:
        LargeRecError: there is no such step, or an option does not fit.
    """
    documents: list[dict[str, Any]] = []
    for step in steps:
        name, _, options = step.partition(":")
        document: dict[str, Any] = {"name": name}
        for option in OPTION_ENDS.split(options) if options else []:
            key, equals, text = option.partition("=")
            if not equals:
                raise LargeRecError(f"--step {step}: {option!r} is no option; write NAME:key=value,key=value.")
            if key in document:
                raise LargeRecError(f"--step {step}: {key} is given twice; give it once.")
            document[key] = _value(text)
        documents.append(document)
    return plan_from({"step": documents}, "--step")


def _value(text: str) -> Any:
    """A number, truth value or list where TOML reads one, else the text."""
    value = toml_value(text)
    return value if isinstance(value, bool | int | float | list) else text
