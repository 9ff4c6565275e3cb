"""What cures take out, against labels: the script that measures it, its result file, and what the guide says of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from largerec.simulate import SimulateOptions, simulate

ROOT = Path(__file__).resolve().parents[1]
RESULT = json.loads((ROOT / "benchmarks" / "results" / "curate-faults.json").read_text())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))  # it takes the faults of its neighbour
    try:
        spec = importlib.util.spec_from_file_location("curate_faults", ROOT / "benchmarks" / "curate_faults.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["curate_faults"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def test_the_guide_shows_the_result_file(script: ModuleType) -> None:
    said = (ROOT / "docs" / "curate.md").read_text().splitlines()
    for line in script.table(RESULT["logs"]):
        assert line in said, f"docs/curate.md lacks this row of `python benchmarks/curate_faults.py`: {line}"


def test_cures_on_a_small_log(script: ModuleType) -> None:
    found = script.cured(simulate(SimulateOptions(users=400, items=200, events=12_000, seed=6)), 5)
    for step in ("duplicates", "clocks", "bots"):
        assert min(found[step]["precision"], found[step]["recall"]) >= 0.9, step
        assert found[step]["sound_rows_removed"] <= 0.001 * found[step]["rows"]
    left, began = found["training_rows_left"], found["duplicates"]
    assert left["sound"] + left.get("misclick", 0) > 0.95 * (began["rows"] - began["removed"] - found["bots"]["removed"])
    assert left.get("bot", 0) <= 8, "one row of each bot stays, as history"
    assert script.table({"x": {"5": found}})[2].startswith("| x | ")
