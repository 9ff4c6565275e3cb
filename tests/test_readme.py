"""The README: what it promises first; and that its numbers and those of docs/results.md are of the result files."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tables"] = module
    spec.loader.exec_module(module)
    return module


def test_the_first_lines_show_the_two_commands_and_a_picture() -> None:
    first = "\n".join(README.splitlines()[:20])
    assert "make demo" in first and "make test" in first
    assert (ROOT / first.partition("](")[2].partition(")")[0]).is_file()


@pytest.mark.parametrize("part", ["leave_one_out", "timelines", "lists", "ranked", "speed"])
def test_the_tables_are_those_of_the_result_files(part: str) -> None:
    lines = getattr(tables(), part)()
    assert len(lines) > 2, "there are results"
    for line in lines:
        assert line in PAGE, f"docs/results.md lacks this row of `python benchmarks/tables.py`: {line}"


def test_the_readme_has_a_table_of_real_data_and_one_of_speed_and_both_are_on_the_page_of_results() -> None:
    shown = [*tables().leave_one_out(), *tables().speed()]
    assert set(shown) <= set(README.splitlines()) and set(shown) <= set(PAGE)


def test_the_tables_of_the_guide_to_ranking_are_those_of_the_result_files() -> None:
    guide = (ROOT / "docs" / "rank.md").read_text(encoding="utf-8").splitlines()
    lines = [*tables().conditioned(), *tables().within_table(tables().read("kuairand-within"))]
    assert len(lines) == 5 + 11 and set(lines) <= set(guide), "docs/rank.md has `conditioned` of benchmarks/tables.py"


def test_what_is_said_of_one_moment_is_in_the_result_file() -> None:
    guide = (ROOT / "docs" / "rank.md").read_text(encoding="utf-8")
    said = guide.partition("- **At one moment**")[2].partition("moves all of them the same way")[0]
    rows = {row["name"]: row["tasks"] for row in tables().read("kuairand-one-moment")["rows"]}
    for name in ("joint", "din", "dlrm", "dcn-v2"):
        assert all(f"{rows[name][task]['gauc']:.4f}".lstrip("0") in said for task in ("click", "long_view"))


def test_the_table_of_families_is_that_of_the_result_files_there_are() -> None:
    found = tables()
    for line in [*found.zoo(), *found.zoo_pairs(), *found.zoo(found.ZOOS_ELSEWHERE), *found.zoo(found.QUERY_TIME)]:
        assert line in PAGE, f"docs/results.md lacks this row of `python benchmarks/tables.py`: {line}"


def test_what_the_readme_says_of_the_generated_log_is_in_the_result_file() -> None:
    (result,) = json.loads((ROOT / "benchmarks/results/quickstart.json").read_text())["results"]
    best = result["best_possible"]["ndcg@10"]
    said = " ".join(README.split())
    assert f"HSTU reaches {result['test']['ndcg@10'] / best:.0%} of its NDCG@10".replace("%", " %") in said
    assert f"popularity {result['baselines']['popularity']['ndcg@10'] / best:.0%}".replace("%", " %") in said


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_file_says_how_it_was_made(path: Path) -> None:
    found = json.loads(path.read_text())
    assert "command" in found
    for result in found.get("results", []):
        assert result["n_test_evaluations"] == 1, "the test part was looked at once"
        assert {"validation", "test", "test_unmasked", "intervals", "baselines", "slices", "protocol", "seed"} <= result.keys()
        assert "popularity" in result["baselines"]


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_makefile_has_what_the_readme_names(command: str) -> None:
    target = command.removeprefix("make ")
    assert any(line.startswith(f"{target}:") for line in (ROOT / "Makefile").read_text().splitlines())
