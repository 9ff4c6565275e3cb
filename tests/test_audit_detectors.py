"""How good the detectors are: the script that measures them, its result file, and what the guide says of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from largerec.faults import FaultOptions, with_faults
from largerec.simulate import SimulateOptions, World, log_of_world, simulate

ROOT = Path(__file__).resolve().parents[1]
RESULT = json.loads((ROOT / "benchmarks" / "results" / "audit-detectors.json").read_text())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_detectors", ROOT / "benchmarks" / "audit_detectors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit_detectors"] = module
    spec.loader.exec_module(module)
    return module


def test_the_guide_shows_the_result_file(script: ModuleType) -> None:
    said = (ROOT / "docs" / "audit.md").read_text().splitlines()
    for line in script.table(RESULT["logs"], RESULT["misclick_oracle"]):
        assert line in said, f"docs/audit.md lacks this row of `python benchmarks/audit_detectors.py`: {line}"


def test_the_reported_seeds_reach_the_bars(script: ModuleType) -> None:
    assert RESULT["faults"] == script.FAULTS
    for name, row in RESULT["logs"].items():
        assert set(row["seeds"]) == {str(seed) for seed in script.REPORTED}, name
        for found in row["seeds"].values():
            for kind in ("bots", "duplicates", "clock errors"):
                assert min(found[kind]["precision"], found[kind]["recall"]) >= 0.9, (name, kind)
    assert all(min(found["share"], found["share_items"]) >= 0.8 for found in RESULT["misclick_oracle"].values())


def test_detectors_on_a_small_log(script: ModuleType) -> None:
    log = simulate(SimulateOptions(users=400, items=200, events=12_000, seed=6))
    found = script.detect(with_faults(log, FaultOptions(seed=5, **script.FAULTS)))
    for kind in ("bots", "duplicates", "clock errors"):
        assert min(found[kind]["precision"], found[kind]["recall"]) >= 0.9, kind
    assert found["mis-clicks"]["auc"] > 0.9
    assert script.own(log) == {"bots": 0, "duplicates": 0, "clock errors": 0}


def test_precision_recall_and_auc(script: ModuleType) -> None:
    found, meant = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert script.scored(found, meant) == {"precision": 0.5, "recall": 0.5, "found": 2, "faults": 2}
    assert script.auc(np.array([3.0, 2, 1, 0]), meant) == 0.75 and script.auc(np.zeros(4), meant) == 0.5


def test_the_oracle_knows_the_law_of_what_was_meant(script: ModuleType) -> None:
    """Of sound events the law of the sound history is that of the generated log itself, and mis-clicks are seldom likely."""
    world = World(SimulateOptions(users=100, items=200, events=3000, seed=2))
    seen = script.Observed.of(world, with_faults(log_of_world(world), FaultOptions(misclicks=0.05, seed=4)))
    before = np.cumsum(~seen.misclick_N) - ~seen.misclick_N
    offsets, users = seen.sound.offsets_U1, seen.ordered.user_N
    inside = (before > offsets[users]) & (before + ~seen.misclick_N < offsets[users + 1])
    at = np.flatnonzero(inside)[:600]
    ratio, label = seen.ratios(at), seen.misclick_N[at]
    assert np.isfinite(ratio[~label]).all() and script.auc(ratio, label) > 0.95
    assert len(seen.sound.item_N) == (~seen.misclick_N).sum() and label.sum() > 10
