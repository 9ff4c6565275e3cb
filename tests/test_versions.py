"""Versions of logs that have columns of their own under the names that versions use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from logs import chain_log
from runs import tiny_recipe

from largerec import ablate
from largerec.curate import curate, versions
from largerec.curate.plan import Plan, plan_of
from largerec.curate.taking import stage_column
from largerec.curate.tracing import Named, restore, trace
from largerec.datasets import DataOptions
from largerec.errors import LargeRecError
from largerec.sequences import SplitOptions

GIVEN = SplitOptions(protocol="given")


def written(folder: Path, **columns: Any) -> DataOptions:
    log = chain_log(users=10)
    log = replace(log, events=log.events.with_columns(**columns))
    log.write(folder / "log.parquet")
    return DataOptions(path=str(folder / "log.parquet"))


@pytest.mark.parametrize("name", ["stage", "source_row", "source_weight"])
def test_a_column_that_versions_would_write_over_is_refused(tmp_path: Path, name: str) -> None:
    said = f"has a column '{name}' of its own.*would be lost. Rename it in the file, or leave it out"
    with pytest.raises(LargeRecError, match=said):
        curate(written(tmp_path, **{name: pl.lit("cart")}), Plan())
    assert not (tmp_path / "log.versions").exists()


def test_an_ablation_does_not_write_over_a_column_either(tmp_path: Path) -> None:
    path = written(tmp_path, stage=pl.lit("cart")).path
    recipe = tiny_recipe(tmp_path / "run", f"data.path={path}")
    version = {"name": "one", "step": [{"name": "duplicates"}]}
    plan = ablate.AblationPlan.model_validate({"ablate": {"recipe": "tiny.toml"}, "version": [version]})
    with pytest.raises(LargeRecError, match="has a column 'stage' of its own"):
        ablate.base_logs(plan, recipe, tmp_path / "runs")


def test_the_stages_of_a_log_are_its_split_when_that_is_said(tmp_path: Path) -> None:
    stages = stage_column(chain_log(users=10), SplitOptions())
    found = curate(written(tmp_path, stage=stages), Plan(split=GIVEN))
    assert pl.read_parquet(Path(found["log"]) / "events.parquet")["stage"].equals(stages)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0, "much", None])
def test_a_weight_that_is_none_is_refused(tmp_path: Path, weight: Any) -> None:
    weights = pl.when(pl.int_range(pl.len()) == 5).then(pl.lit(weight)).otherwise(pl.lit("1" if weight == "much" else 1.0))
    with pytest.raises(LargeRecError, match=r"column 'train_weight' holds .*; a weight is a number of 0 or more"):
        curate(written(tmp_path, train_weight=weights), Plan())
    assert not (tmp_path / "log.versions").exists()


# --- rows that a step only weighed


def events_of(folder: Any) -> pl.DataFrame:
    return versions.read(Path(folder)).log.events


def weights_of(folder: Any) -> list[float]:
    events = events_of(folder)
    return events.get_column("train_weight", default=pl.Series([1.0] * events.height)).to_list()


def test_a_step_that_weighs_is_undone_alone(tmp_path: Path) -> None:
    """Rows come back to their weight before the step; what other steps did to them, before and after it, stays."""
    steps = ["popularity:threshold=0.01", "recency:days=0.2", "duplicates"]
    found = curate(written(tmp_path), plan_of(steps))
    before, after = (weights_of(Path(found["dir"]) / found["versions"][at]["version"]) for at in (1, 2))
    weighed = sum(one != other for one, other in zip(before, after, strict=True))
    assert weighed > 10
    document = restore(found["log"], Named(step="recency"))
    assert document["version"]["rows"]["weighed"] == weighed and document["version"]["rows"]["restored"] == 0
    assert weights_of(document["dir"]) == before
    with pytest.raises(LargeRecError, match="nothing is to be restored"):
        restore(document["dir"], Named(step="recency"))
    kept = restore(found["log"], Named(step="popularity"))
    assert {weight for weight, other in zip(weights_of(kept["dir"]), after, strict=True) if other == 0} == {0.0}
    assert {weight for weight, other in zip(weights_of(kept["dir"]), after, strict=True) if other != 0} == {1.0}
    traced = trace(found["log"], Named(step="recency"))["found"]
    assert len(traced) == weighed and all(any(one["step"] == "recency" for one in row["history"]) for row in traced)
    with pytest.raises(LargeRecError, match="no row was removed, changed or weighed by a step 'core-set'"):
        restore(found["log"], Named(step="core-set"))


def test_undoing_weights_brings_back_nothing_that_a_later_step_removed(tmp_path: Path) -> None:
    found = curate(written(tmp_path), plan_of(["recency:half_life_days=1", "core-set:budget=0.5,method=random,rest=remove"]))
    document = restore(found["log"], Named(step="recency"))
    assert events_of(document["dir"])["source_row"].equals(events_of(found["log"])["source_row"])
    idle = sum(weight == 0 for weight in weights_of(found["log"]))
    assert weights_of(document["dir"]).count(0.0) == idle
    assert set(weights_of(document["dir"])) == ({0.0, 1.0} if idle else {1.0})


# --- ids


def test_sessions_of_users_with_large_ids(tmp_path: Path) -> None:
    """New ids are the next integers, also beyond 2^63, and are refused with one message where there is no room."""
    users = pl.col("user_id").str.slice(1).cast(pl.UInt64)
    plan = plan_of(["sessions:minutes=1"])
    (tmp_path / "room").mkdir()
    found = curate(written(tmp_path / "room", user_id=users + 2**63), plan)
    ids = events_of(found["log"])["user_id"]
    assert ids.dtype == pl.UInt64 and ids.n_unique() > 10 and ids.min() == 2**63
    for name, column in (("signed", users.cast(pl.Int64) + (2**63 - 10)), ("unsigned", users + (2**64 - 10))):
        (tmp_path / name).mkdir()
        with pytest.raises(LargeRecError, match="no room above"):
            curate(written(tmp_path / name, user_id=column), plan)
