"""The pages say what the code does: options, defaults, aliases, sizes, messages, commands and examples are compared with it."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import polars as pl
import pytest
import torch
import typer
from pydantic.fields import FieldInfo

from largerec import columns, objectives
from largerec.cli import app
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.evaluate import RECENT_HOURS
from largerec.experiments import run
from largerec.metrics import HISTORY_BINS
from largerec.models import FAMILIES, ModelOptions, build_model, non_embedding_parameters
from largerec.models.dial import TARGETS
from largerec.optim import derived_learning_rate
from largerec.options import Options
from largerec.recipe import Recipe, apply_overrides, load_recipe, recipe_from
from largerec.sequences import build_sequences

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]
SIZES_LENGTH = 50  # max_length of docs/sizes.md: HSTU's position table grows with it
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    """What stands under each heading, whatever its level."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table_rows(text: str) -> list[list[str]]:
    """Cells of the rows of all tables in a text, without heads and rules; ``\\|`` is a bar within a cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = [number for number, line in enumerate(lines) if re.fullmatch(r"[|\s:-]+", line)]
    heads = {number for rule in rules for number in (rule - 1, rule)}
    rows = [line for number, line in enumerate(lines) if number not in heads]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def flat(text: str) -> str:
    """Text with every run of white space as one blank, so that line breaks do not matter."""
    return " ".join(text.split())


# --- options


def shown_default(field: FieldInfo) -> str:
    """A default as TOML writes it."""
    value = field.default
    if value is None:
        return "not set"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def bounds(metadata: list[Any]) -> str:
    """The range that a field's constraints leave: ``≥ 1``, ``> 0``, ``≥ 0, < 1``."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{sign} {getattr(rule, name):g}" for rule in metadata for name, sign in signs.items() if hasattr(rule, name)]
    return ", ".join(found)


def shown_type(annotation: Any, metadata: list[Any]) -> str:
    """What a value may be, in words."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(f'`"{choice}"`' for choice in get_args(annotation))
    if hasattr(annotation, "__metadata__"):  # Annotated
        return shown_type(annotation.__origin__, [*metadata, *annotation.__metadata__])
    if get_origin(annotation) is tuple:
        kinds = get_args(annotation)
        many = "list" if kinds[-1] is Ellipsis else f"list of {len(kinds)}"
        return f"{many}: {shown_type(kinds[0], [])}"
    words = {str: "text", int: "integer", float: "number", bool: "`true`, `false`"}
    return f"{words[annotation]} {bounds(metadata)}".strip()


def leaves(options: type[Options], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, default, what it may be) of every option of a group that is a plain value."""
    for name, field in options.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, Options):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        elif field.discriminator is None:
            yield f"{prefix}{name}", shown_default(field), shown_type(field.annotation, field.metadata)


OBJECTIVES = get_args(get_args(objectives.AnyObjectiveOptions)[0])


def option_tables() -> dict[str, list[tuple[str, str, str]]]:
    """The tables that docs/recipes.md must have: heading -> rows. A family lists what it adds to every family's options."""
    tables = {"The top": [row for row in leaves(Recipe) if "." not in row[0]]}
    for name, field in Recipe.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, Options):
            tables[f"[{name}]"] = list(leaves(field.annotation))
    shared = list(leaves(ModelOptions))
    tables["[model]"] = shared
    for family, (options, _) in FAMILIES.items():
        tables[f'[model] name = "{family}"'] = [row for row in leaves(options) if row not in shared and row[0] != "name"]
    for options in OBJECTIVES:
        name = options.model_fields["name"].default
        tables[f'[objective] name = "{name}"'] = [row for row in leaves(options) if row[0] != "name"]
    return tables


OPTION_TABLES = option_tables()
