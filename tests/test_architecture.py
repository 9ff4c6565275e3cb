"""The house's rules, read from the source with ``ast``: imports go downwards only, files stay small, loading runs no code."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "largerec"

# From low to high. A module may import from lower levels and from its own, and no modules may import each other in a circle.
# A new module takes its place here in the same change.
LEVELS = (
    "errors options prefetch writing",
    "kernels metrics paired task_metrics list_metrics exposure distributed events columns badrows damage",
    "readers manifest steps datasets imports publicsets item_words world simulate oracle faults faulty audit curate"
    " tasks lists sequences random_log moments features outcomes feature_tables batches layers fields quantised_rows item_tables",
    "tokenizers models mixture heads item_vectors",
    "objectives contrastive optim ranking hard_negatives choice averaging grid",
    "recipe",
    "bundle forgetting accounting progress split_log transfer",
    "engine devices interrupts",
    "evaluate evaluate_tasks evaluate_lists evaluate_exposure evaluate_random",
    "train",
    "learner",
    "experiments ensemble quantise tune order cures",
    "scaling update report serve doctor estimate show show_scaling show_ablated",
    "compare_tasks",
    "compare_table",
    "bench compare ablate",
    "cli cli_data",
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names.split()}

MAX_LINES = 500
MAX_LINES_MODEL = 300
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc"}
CODE_RUNNING_LOADERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def module_name(path: Path) -> str:
    """``src/largerec/models/__init__.py`` -> ``largerec.models``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(encoding="utf-8"), filename=str(path)) for module, path in SOURCES.items()}
each_module = pytest.mark.parametrize("module", list(SOURCES))


def is_type_checking(test: ast.expr) -> bool:
    """Whether an ``if`` is the one that only type checkers enter."""
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those inside functions too, but not what stands under ``if TYPE_CHECKING``."""
    yield tree
    children: list[ast.AST] = list(ast.iter_child_nodes(tree))
    if isinstance(tree, ast.If) and is_type_checking(tree.test):
        children = list(tree.orelse)
    for child in children:
        yield from run_time_nodes(child)


def absolute_base(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The module that ``from ... import`` names, relative dots resolved."""
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def imported_names(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Dotted names that a module imports when it runs, with what ``from x import y`` names as ``x.y``."""
    for node in run_time_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(node, module, is_package=is_package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value


def longest_known(name: str, known: set[str]) -> str | None:
    """The longest leading part of a dotted name that is a module: ``largerec.events.EventLog`` -> ``largerec.events``."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def internal_imports(trees: dict[str, ast.Module], packages: set[str]) -> dict[str, set[str]]:
    """For each module the modules of the package that it imports. The package's own lazy front is left out."""
    known = set(trees)
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        names = imported_names(tree, module, is_package=module in packages)
        found = {longest_known(name, known) for name in names if name.split(".")[0] == "largerec"}
        graph[module] = {name for name in found if name and name != module} if module != "largerec" else set()
    return graph


def upward_imports(graph: dict[str, set[str]]) -> list[str]:
    """One sentence for each import that goes up. Modules without a level are another test's business."""
    level = {module: LEVEL_OF.get(f"{module}.".split(".")[1]) for module in graph}
    return [
        f"{module} imports {target}, which stands above it"
        for module, targets in graph.items()
        for target in sorted(targets)
        if (above := level[target]) is not None and (own := level[module]) is not None and above > own
    ]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, or an empty list."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


GRAPH = internal_imports(TREES, {module for module, path in SOURCES.items() if path.name == "__init__.py"})


def test_every_module_has_a_level() -> None:
    lost = sorted({module.split(".")[1] for module in SOURCES if module != "largerec"} - set(LEVEL_OF))
    assert not lost, f"no level for {', '.join(lost)}: add them to LEVELS where they belong"


def test_imports_go_downwards() -> None:
    assert upward_imports(GRAPH) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle(GRAPH) == []


def test_the_import_rules_see_what_they_must() -> None:
    """The rules are tested on a made-up package: every form of import, inside functions too, and what is exempt."""
    source = {
        "largerec": "def __getattr__(name):\n    from largerec.cli import main",
        "largerec.errors": "",
        "largerec.events": "if TYPE_CHECKING:\n    from largerec.train import fit\nfrom largerec.errors import LargeRecError",
        "largerec.models": "from . import hstu\nfrom .sasrec import SASRec",
        "largerec.models.hstu": "import largerec.layers",
        "largerec.models.sasrec": "from ..train import fit",
        "largerec.layers": "import importlib\nimportlib.import_module('largerec.cli')",
        "largerec.train": "def fit():\n    from largerec import events, evaluate",
        "largerec.evaluate": "def evaluate():\n    import largerec.train as train",
        "largerec.cli": "import largerec",
    }
    graph = internal_imports({name: ast.parse(text) for name, text in source.items()}, {"largerec", "largerec.models"})
    assert graph == {
        "largerec": set(),
        "largerec.errors": set(),
        "largerec.events": {"largerec.errors"},
        "largerec.models": {"largerec.models.hstu", "largerec.models.sasrec"},
        "largerec.models.hstu": {"largerec.layers"},
        "largerec.models.sasrec": {"largerec.train"},
        "largerec.layers": {"largerec.cli"},
        "largerec.train": {"largerec.events", "largerec.evaluate"},
        "largerec.evaluate": {"largerec.train"},
        "largerec.cli": {"largerec"},
    }
    assert upward_imports(graph) == [
        "largerec.models.sasrec imports largerec.train, which stands above it",
        "largerec.layers imports largerec.cli, which stands above it",
        "largerec.evaluate imports largerec.train, which stands above it",
    ]
    assert set(cycle(graph)) == {"largerec.train", "largerec.evaluate"}


@each_module
def test_module_is_named_for_what_it_holds_and_says_so(module: str) -> None:
    assert not DRAWERS & set(module.split(".")), f"{module}: name the module after its noun"
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"


def python_files() -> list[Path]:
    return [path for folder in ("src", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_files_stay_readable() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    limit = {path: MAX_LINES_MODEL if path.parent == PACKAGE / "models" else MAX_LINES for path in lines}
    long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > limit[path]}
    assert not long, f"more than {MAX_LINES} lines (models: {MAX_LINES_MODEL}): {long}"


@each_module
def test_loading_runs_no_code_and_hashes_are_stable(module: str) -> None:
    """No pickle in any form, and no builtin ``hash``, which differs from process to process for strings."""
    names = list(imported_names(TREES[module], module, is_package=SOURCES[module].name == "__init__.py"))
    assert not {name.split(".")[0] for name in names} & CODE_RUNNING_LOADERS
    assert "torch.load" not in names
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "hash", "eval", "exec"}, f"{module}:{node.lineno} calls {called}()"
            unsafe = [word for word in node.keywords if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"]
            assert not unsafe, f"{module}:{node.lineno} allows pickle"


def machine_path_pattern() -> re.Pattern[str]:
    """Homes of people, and the folder that this checkout lies in unless that is a place for temporary files."""
    folders = [r"/(?:home|root|Users)"]
    parent, temporary = ROOT.parent, Path(tempfile.gettempdir()).resolve()
    if parent != Path(parent.anchor) and not parent.is_relative_to(temporary):
        folders.append(re.escape(str(parent)))
    return re.compile(rf"(?<![\w.~>)}}\]/-])(?:{'|'.join(folders)})/[\w.-]*")


def text_files() -> Iterator[Path]:
    """What a clone holds as text, seen without git: files at the top and everything in the folders of the plan."""
    suffixes = {".py", ".cpp", ".md", ".toml", ".json", ".jsonl", ".txt", ".csv", ".tsv", ".html", ".svg", ""}
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in suffixes)
    for folder in (".ci", "src", "tests", "recipes", "benchmarks", "docs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if (
                path.is_file()
                and path.suffix in suffixes
                and not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(ROOT / folder).parts)
            ):
                yield path


def test_no_path_of_a_machine_is_written_down() -> None:
    pattern = machine_path_pattern()
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in text_files()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert not found, f"paths that exist on one machine only: {found}"


@pytest.mark.parametrize("line", ["data = '/home/ann/log.csv'", "open(/Users/ann/x)", "in /root/x"])
def test_the_path_rule_sees_homes(line: str) -> None:
    assert machine_path_pattern().search(line)


@pytest.mark.parametrize("line", ["docs/home/page.md", "https://example.org/home/x", "../home/log", "the root/leaf"])
def test_the_path_rule_leaves_other_words_alone(line: str) -> None:
    assert not machine_path_pattern().search(line)


@pytest.mark.parametrize("module", [name for name in ("largerec", "largerec.cli") if name in SOURCES] or ["largerec.errors"])
def test_importing_is_light(module: str) -> None:
    """``largerec --help`` and ``import largerec`` answer at once: torch and the other heavy libraries come with the verbs."""
    program = f"import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "polars", "scipy", "pandas"} & set(json.loads(done.stdout))


def test_scipy_is_loaded_only_where_a_verb_always_needs_it() -> None:
    """It takes a second to load, which training, recommending and ranking would wait for at every start."""
    needing = ("largerec.audit", "largerec.cures", "largerec.scaling")
    found = {
        module
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(node, module, is_package=False)
        if name.split(".")[0] == "scipy" and not module.startswith(needing)
    }
    assert not found
