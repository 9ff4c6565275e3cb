"""The pages say what the code does: options, defaults, aliases, sizes, messages, commands and examples are compared with it."""

from __future__ import annotations

import gzip
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
import typer
from pydantic.fields import FieldInfo

from largerec import columns, cures, objectives
from largerec.ablate import AblateOptions, AblationPlan
from largerec.batches import Batch
from largerec.cli import app
from largerec.curate.plan import STEPS, plan_from
from largerec.datasets import KNOWN_EVENTS, KNOWN_ITEMS, DataOptions, load_log
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.evaluate import RECENT_HOURS
from largerec.experiments import run
from largerec.learner import LearnerOptions
from largerec.metrics import HISTORY_BINS
from largerec.models import FAMILIES, RETRIEVING, ModelOptions, build_model, non_embedding_parameters
from largerec.models.dial import TARGETS
from largerec.optim import derived_learning_rate
from largerec.options import Options
from largerec.readers import SUFFIXES
from largerec.recipe import Recipe, apply_overrides, load_recipe, recipe_from
from largerec.report import report
from largerec.train import train

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
    """Contents of the fenced blocks of a language; fences are paired in order, so that a closing one opens nothing."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [content for found, content in blocks if found == language]


def flat(text: str) -> str:
    """Text with every run of white space as one blank, so that line breaks do not matter."""
    return " ".join(text.split())


# --- options


def shown_default(field: FieldInfo) -> str:
    """A default as TOML writes it."""
    if field.is_required():
        return "needed"
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
    if get_origin(annotation) is dict:
        return "table"
    words = {str: "text", int: "integer", float: "number", bool: "`true`, `false`"}
    return f"{words[annotation]} {bounds(metadata)}".strip()


def names_groups(annotation: Any) -> bool:
    """Whether an option is a table of groups whose names the recipe chooses."""
    kinds = get_args(annotation)
    return get_origin(annotation) is dict and inspect.isclass(kinds[1]) and issubclass(kinds[1], Options)


def leaves(options: type[Options], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, default, what it may be) of every option of a group that is a plain value."""
    for name, field in options.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, Options):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        elif field.discriminator is None and not names_groups(field.annotation):
            yield f"{prefix}{name}", shown_default(field), shown_type(field.annotation, field.metadata)


OBJECTIVES = get_args(get_args(objectives.AnyObjectiveOptions)[0])


def option_tables() -> dict[str, list[tuple[str, str, str]]]:
    """The tables that docs/recipes.md must have: heading -> rows. A family lists what it adds to every family's options."""
    tables = {"The top": [row for row in leaves(Recipe) if "." not in row[0]]}
    for name, field in Recipe.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, Options):
            tables[f"[{name}]"] = list(leaves(field.annotation))
        elif names_groups(field.annotation):
            tables[f"[{name}.NAME]"] = list(leaves(get_args(field.annotation)[1]))
    shared = [row for row in leaves(ModelOptions) if row[0] != "name"]  # every family gives its own
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
    wanted = "\n".join(f"| `{name}` | {default} | {allowed} | ... |" for name, default, allowed in OPTION_TABLES[heading])
    assert heading in found, f"docs/recipes.md has no heading {heading!r}; its table is, but for the meanings:\n{wanted}"
    rows = [(row[0].strip("`"), row[1], row[2]) for row in table_rows(found[heading])]
    assert rows == OPTION_TABLES[heading], f"docs/recipes.md, {heading}: the rows should be, but for the meanings:\n{wanted}"


def test_every_option_has_a_meaning_and_every_group_a_heading() -> None:
    found = sections(text_of("recipes.md"))
    there, wanted = ([one for one in headings if one.startswith("[")] for headings in (found, documented_order()))
    assert there == wanted, (
        f"docs/recipes.md lacks {sorted(set(wanted) - set(there))}, has more {sorted(set(there) - set(wanted))}"
    )
    assert all(len(row) == 4 and row[3] for heading in OPTION_TABLES for row in table_rows(found[heading]))


def documented_order() -> list[str]:
    """Headings in the order of the recipe's groups, families and objectives below their group."""
    groups = ["The top", *(f"[{name}]" for name in Recipe.model_fields)]
    order = {
        heading: (groups.index(heading.split(" name")[0].replace(".NAME", "")), number)
        for number, heading in enumerate(OPTION_TABLES)
    }
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
    documented = {
        name for row in table_rows(sections(text_of("data.md"))["Formats"]) for name in re.findall(r"`(\.\w+)`", row[0])
    }
    assert documented == set(SUFFIXES)


def test_the_known_files_are_named_in_order() -> None:
    for heading, names in (("Folders of known sets", KNOWN_EVENTS), ("Rows and items", KNOWN_ITEMS)):
        places = [sections(text_of("data.md"))[heading].find(f"`{name}`") for name in names]
        assert -1 not in places and places == sorted(places), f"{heading}: {names}"


def size_rows() -> list[list[str]]:
    """What the table of docs/sizes.md must hold, from models without memory."""
    rows = []
    for family, (options, _) in RETRIEVING.items():
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
    wanted = "\n".join(f"| {' | '.join(row)} |" for row in size_rows())
    assert table_rows(sections(text_of("sizes.md"))["Table"]) == size_rows(), f"docs/sizes.md wants the rows\n{wanted}"


def test_the_protocol_page_names_the_windows_and_slices() -> None:
    text = flat(text_of("evaluate.md"))
    assert ", ".join(RECENT_HOURS) in text
    assert all(f"{first}-{last}" in text if last else f"{first}+" in text for first, last in HISTORY_BINS)


# --- messages

ROWS = "user,item,time\nann,p1,2024-03-01\n"
WRONG_LOGS: dict[str, tuple[str, bytes, list[str]]] = {
    "no user column": ("events.csv", b"client,product\nann,p1\n", []),
    "a wrong name": ("events.csv", b"client,product\nann,p1\n", ["columns.user=cleint", "columns.item=product"]),
    "no user": ("events.csv", f"{ROWS},p2,2024-03-02\n".encode(), []),
    "no date": ("events.csv", f"{ROWS}ann,p2,yesterday\n".encode(), []),
    "below zero": ("events.csv", b"user,item,time\nann,p1,1709251200\nann,p2,-5\n", []),
    "too late": ("events.csv", b"user,item,time\na,p,1709251200\na,q,99999999999\na,q,1709251201\n", []),
    "surplus": ("events.csv", b"user,item\nann,p1\nann,p2,9\n", []),
    "cut off in a line": ("events.csv", f"{ROWS}ann,p".encode(), []),
    "filter": ("events.csv", b"user,item\nann,p1\n", ["where=stars >= 4"]),
    "filters all": ("events.csv", b"user,item\nann,1\nbob,2\n", ["where=item > 9"]),
    "cut off": ("events.csv.gz", gzip.compress(b"user,item\n" + b"ann,p1\n" * 9)[:-8], []),
    "empty": ("events.csv", b"", []),
    "suffix": ("events.xlsx", b"user,item\n", []),
}


def assert_documented(message: str, page: str) -> None:
    """The page has the message in a fenced block, whole or up to an ellipsis."""
    shown = [line for block in fences(text_of(page), "") for line in re.split(r"^error: ", block, flags=re.MULTILINE)]
    beginnings = [flat(line).removesuffix("...").strip() for line in shown if line.strip()]
    assert any(flat(message).startswith(beginning) for beginning in beginnings), f"docs/{page} does not show: {message}"


@pytest.mark.parametrize("case", WRONG_LOGS)
def test_messages_about_logs_are_the_code_s(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, content, overrides = WRONG_LOGS[case]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    data = apply_overrides({"path": name}, overrides)
    with pytest.raises(LargeRecError) as caught:
        load_log(DataOptions.model_validate(data))
    assert_documented(str(caught.value), "data.md")


def test_messages_about_paths_are_the_code_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shop").mkdir()
    for name in ("events.csv", "shop/a.csv", "shop/b.csv"):
        Path(name).write_text(ROWS)
    for path in ("event.csv", "shop"):
        with pytest.raises(LargeRecError) as caught:
            load_log(DataOptions(path=path))
        assert_documented(str(caught.value), "data.md")


@pytest.mark.parametrize("override", ["model.sise=small", "model.size=smal"])
def test_messages_about_recipes_are_the_code_s(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(LargeRecError) as caught:
        load_recipe("recipes/quickstart.toml", [override])
    assert_documented(str(caught.value), "recipes.md")


def test_every_option_of_a_plan_is_listed_with_its_default() -> None:
    listed = {(row[0].strip("`"), row[1].strip("`")): row[2:4] for row in table_rows(sections(text_of("curate.md"))["Options"])}
    wanted = {
        (name, key): ["needed" if field.is_required() else shown_default(field), shown_type(field.annotation, field.metadata)]
        for name, group in STEPS.items()
        for key, field in group.model_fields.items()
        if key != "name"
    }
    assert listed == wanted
    assert {row[0].strip("`") for row in table_rows(sections(text_of("curate.md"))["A plan"])} == set(STEPS)
    (shown,) = fences(text_of("curate.md"), "toml")
    assert [step.name for step in plan_from(tomllib.loads(shown)).step] == ["duplicates", "core-set"]


def test_every_option_of_an_ablation_and_of_a_trained_step_is_listed() -> None:
    text = sections(text_of("ablate.md"))
    given = {tuple(row[:3]) for row in table_rows(text["A plan"])}
    assert given == {(f"`ablate.{name}`", default, kind) for name, default, kind in leaves(AblateOptions)}
    listed = table_rows(text["Steps that train a model"])
    steps = {f"`{group.model_fields['name'].default}`": list(leaves(group)) for group in cures.STEPS}
    assert [row[0] for row in listed if len(row) == 3] == list(steps)
    own = {step: [row for row in rows if row[0] != "name" and "." not in row[0]] for step, rows in steps.items()}
    wanted = {(step, f"`{name}`", *rest) for step, rows in own.items() for name, *rest in rows}
    assert {tuple(row[:4]) for row in listed if len(row) == 5} == wanted
    small = {(f"`learner.{name}`", *rest) for name, *rest in leaves(LearnerOptions)}
    assert {tuple(row[:3]) for row in listed if len(row) == 4} == small
    (shown,) = fences(text_of("ablate.md"), "toml")
    assert [one.name for one in AblationPlan.model_validate(tomllib.loads(shown)).version] == ["rules", "rules-denoise"]


# --- links, commands, examples


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = page.parent / path if path else page
        assert goal.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in map(slug, sections(goal.read_text(encoding="utf-8"))), f"{page.name}: no heading for {target}"


def commands(text: str) -> list[list[str]]:
    """Words of every ``largerec VERB ...`` in fenced blocks and code spans, comments and environments left out."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [
        line for language in ("", "sh", "bash", "console") for block in fences(text, language) for line in block.splitlines()
    ]
    found = [re.match(r"(?:\$ |\.venv/bin/)?largerec\s+(.+)", line.strip()) for line in [*spans, *lines]]
    return [shlex.split(match[1], comments=True) for match in found if match]


def assert_command(words: list[str]) -> None:
    """The verb and its flags exist, and the recipe keys fit where the recipe is one of ours."""
    command: Any = typer.main.get_command(app)
    words = list(words)
    while words and hasattr(command, "commands"):
        verb = words.pop(0)
        if verb.startswith("--"):
            return
        assert verb in command.commands, f"`largerec` has no verb {verb!r}"
        command = command.commands[verb]
    flags = {flag for parameter in command.params for flag in parameter.opts} | {"--help"}
    unknown = {word for word in words if word.startswith("-") and word != "-" and word.partition("=")[0] not in flags}
    assert not unknown, f"`largerec {command.name}` has no {unknown}"
    overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
    if words and words[0].endswith(".toml") and (ROOT / words[0]).is_file():
        load_recipe(ROOT / words[0], overrides)
    elif command.name in ("describe", "import", "evaluate"):
        recipe_from(apply_overrides({}, overrides))


@each_page
def test_commands_exist_and_fit(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        assert_command(words)


def test_commands_are_found_and_judged() -> None:
    text = "Use `largerec trian RECIPE`.\n```\n$ largerec run recipes/quickstart.toml model.siz=nano # why\n```\n"
    found = commands(text)
    assert found == [["trian", "RECIPE"], ["run", "recipes/quickstart.toml", "model.siz=nano"]]
    with pytest.raises(AssertionError, match="no verb 'trian'"):
        assert_command(found[0])
    with pytest.raises(LargeRecError, match="did you mean 'size'"):
        assert_command(found[1])
    with pytest.raises(AssertionError, match="--jsn"):
        assert_command(["evaluate", "RUN", "--jsn"])


def test_every_verb_is_documented() -> None:
    top: Any = typer.main.get_command(app)
    named = {words[0] for page in PAGES for words in commands(page.read_text(encoding="utf-8"))}
    assert set(top.commands) <= named


def test_the_recipes_shown_are_right() -> None:
    for page, overrides in (("recipes.md", []), ("add-a-model.md", ["model.name=sasrec"])):
        (shown,) = fences(text_of(page), "toml")
        recipe = recipe_from(apply_overrides(tomllib.loads(shown), overrides), page)
        assert recipe.name != Recipe().name


QUICK = ["model.size=nano", "train.max_steps=2", "evaluate.bootstrap_samples=20"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the examples expect it: the recipes, and a (hardly trained) run of the quickstart with its compared family."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    run(load_recipe(ROOT / "recipes" / "quickstart.toml", [*QUICK, f"run.dir={folder / 'runs' / 'quickstart'}"]), quiet=True)
    report([folder / "runs" / "quickstart"])
    return folder


@pytest.mark.parametrize("name", ["data.md", "train.md", "evaluate.md", "recommend.md", "report.md", "audit.md", "curate.md"])
def test_python_examples_run(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    namespace: dict[str, Any] = {}
    examples = fences(text_of(name), "python")
    assert examples
    for example in examples:
        exec(compile(example, name, "exec"), namespace)


def test_unknown_users_and_items_get_the_documented_message(workplace: Path) -> None:
    engine = load(workplace / "runs" / "quickstart")
    for arguments in ({"users": ["u003"]}, {"histories": [["i999999"]]}):
        with pytest.raises(LargeRecError) as caught:
            engine.recommend(**arguments)
        assert_documented(str(caught.value), "recommend.md")


def test_refusals_to_train_get_the_documented_message(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    shutil.copytree("runs/quickstart", "runs/mine")
    recipe = load_recipe("recipes/quickstart.toml", [*QUICK, "run.dir=runs/mine", "seed=4"])
    for _ in range(2):  # a finished run, then an unfinished one of another seed
        with pytest.raises(LargeRecError) as caught:
            train(recipe, quiet=True)
        assert_documented(str(caught.value), "train.md")
        Path("runs/mine/result.json").unlink(missing_ok=True)
    assert "(seed: 0 -> 4)" in str(caught.value)


def test_the_files_of_a_run_are_listed(workplace: Path) -> None:
    rows = table_rows(sections(text_of("train.md"))["Files of a run"])
    found = {path.name for path in (workplace / "runs" / "quickstart").iterdir()}
    assert {row[0].strip("`").split("/")[0] for row in rows} == found


def test_the_example_model_keeps_the_contract(tmp_path: Path) -> None:
    (code,) = fences(text_of("add-a-model.md"), "python")
    path = tmp_path / "nextitnet.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("nextitnet_of_the_docs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks the annotations up there
    try:
        spec.loader.exec_module(module)
        options = module.NextItNetOptions(size="nano").resolved()
        model = module.NextItNet(options, 20, SIZES_LENGTH)
    finally:
        del sys.modules[spec.name]
    item_T, offsets_B1 = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 2, 5])
    whole = model.eval()(Batch(item_T, torch.full((5,), -1), offsets_B1))
    alone = model(Batch(item_T[2:], torch.full((3,), -1), torch.tensor([0, 3])))
    torch.testing.assert_close(whole[2:], alone)
    long_T, ends_2 = torch.arange(1, 17), torch.tensor([0, 16])
    far = model(Batch(long_T, torch.full((16,), -1), ends_2))
    other = model(Batch(torch.cat([torch.tensor([19]), long_T[1:]]), torch.full((16,), -1), ends_2))
    assert ((far - other).abs().amax(1) > 1e-4).all(), "all of eight events with their actions reach the last state at depth 2"
    assert abs(non_embedding_parameters(model) / TARGETS["nano"] - 1) < 0.1
