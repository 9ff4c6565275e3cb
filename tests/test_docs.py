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
from largerec.datasets import KNOWN_EVENTS, KNOWN_ITEMS, DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.evaluate import RECENT_HOURS
from largerec.experiments import run
from largerec.metrics import HISTORY_BINS
from largerec.models import FAMILIES, ModelOptions, build_model, non_embedding_parameters
from largerec.models.dial import TARGETS
from largerec.optim import derived_learning_rate
from largerec.options import Options
from largerec.readers import SUFFIXES
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


@pytest.mark.parametrize("heading", OPTION_TABLES)
def test_every_option_stands_in_its_table_with_its_default(heading: str) -> None:
    found = sections(text_of("recipes.md"))
    assert heading in found, f"docs/recipes.md has no heading {heading!r}"
    rows = [(row[0].strip("`"), row[1], row[2]) for row in table_rows(found[heading])]
    assert rows == OPTION_TABLES[heading]


def test_every_option_has_a_meaning_and_every_group_a_heading() -> None:
    found = sections(text_of("recipes.md"))
    assert [heading for heading in found if heading.startswith("[")] == [h for h in documented_order() if h.startswith("[")]
    assert all(len(row) == 4 and row[3] for heading in OPTION_TABLES for row in table_rows(found[heading]))


def documented_order() -> list[str]:
    """Headings in the order of the recipe's groups, families and objectives below their group."""
    groups = ["The top", *(f"[{name}]" for name in Recipe.model_fields)]
    order = {heading: (groups.index(heading.split(" name")[0]), number) for number, heading in enumerate(OPTION_TABLES)}
    return sorted(OPTION_TABLES, key=lambda heading: order[heading])


def test_default_family_and_objective_are_named() -> None:
    found = sections(text_of("recipes.md"))
    assert f'default family is `"{Recipe().model.name}"`' in flat(found["[model]"])
    assert f'without an `[objective]` group it is `"{Recipe().objective.name}"`' in flat(text_of("recipes.md"))


# --- aliases, sizes, protocols


def test_the_table_of_aliases_is_the_code_s() -> None:
    documented = {row[0]: tuple(re.findall(r"`([^`]+)`", row[1])) for row in table_rows(sections(text_of("data.md"))["Columns"])}
    assert documented == {
        **columns.ALIASES,
        "time, when `data.time_kind=order`": columns.ORDER_ALIASES,
        "title (item table)": columns.TITLE_ALIASES,
        "category (item table)": columns.CATEGORY_ALIASES,
    }


def test_the_formats_are_the_code_s() -> None:
    documented = {name for row in table_rows(sections(text_of("data.md"))["Formats"]) for name in re.findall(r"`(\.\w+)`", row[0])}
    assert documented == set(SUFFIXES)


def test_the_known_files_are_named_in_order() -> None:
    for heading, names in (("Folders of known sets", KNOWN_EVENTS), ("Rows and items", KNOWN_ITEMS)):
        places = [sections(text_of("data.md"))[heading].find(f"`{name}`") for name in names]
        assert -1 not in places and places == sorted(places), f"{heading}: {names}"


def size_rows() -> list[list[str]]:
    """What the table of docs/sizes.md must hold, from models without memory."""
    rows = []
    for family, (options, _) in FAMILIES.items():
        for size, target in TARGETS.items():
            resolved = options(size=size).resolved()
            with torch.device("meta"):
                model = build_model(resolved, 10, SIZES_LENGTH)  # type: ignore[arg-type]
            parameters = non_embedding_parameters(model)
            depth, width, heads = resolved.shape
            share, rate = f"{parameters / target - 1:+.1%}".replace("%", " %"), f"{derived_learning_rate(width):.5f}"
            rows.append([family, size, str(depth), str(width), str(heads), f"{parameters:,}", share, rate])
    return rows


def test_the_table_of_sizes_is_the_code_s() -> None:
    assert table_rows(sections(text_of("sizes.md"))["Table"]) == size_rows()


def test_the_protocol_page_names_the_windows_and_slices() -> None:
    text = flat(text_of("evaluate.md"))
    assert ", ".join(RECENT_HOURS) in text
    assert all(f"{first}-{last}" in text if last else f"{first}+" in text for first, last in HISTORY_BINS)
