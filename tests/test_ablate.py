"""Ablations: rows are paired and trained alike, faults stay out of the test, nothing is made twice."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import polars as pl
import pytest
from logs import random_log
from runs import TINY
from test_report import assert_safe
from typer.testing import CliRunner

from largerec import ablate as module
from largerec import compare
from largerec.ablate import ablate, from_arguments, load_ablation, verdict, won_back
from largerec.cli import app
from largerec.curate.taking import stage_column
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.faults import LABEL, FaultOptions
from largerec.faulty import with_training_faults
from largerec.forgetting import forget
from largerec.paired import Paired
from largerec.sequences import STAGE_COLUMN, SplitOptions
from largerec.simulate import SimulateOptions, simulate

PLAN = """
seed = 1
[ablate]
recipe = "tiny.toml"
seeds = [0, 1]
steps = 24
validations = 2
controls = ["rules"]
[ablate.faults]
misclicks = 0.1
duplicates = 0.1
bots = 0.05
[[version]]
name = "nothing"
step = [{name = "misclicks", score = 1000.0}]
[[version]]
name = "rules"
step = [{name = "duplicates"}, {name = "bots"}]
[[version]]
name = "rules-truncated"
step = [{name = "duplicates"}, {name = "bots"}, {name = "truncated-loss", learner = {width = 8, heads = 1, epochs = 2}}]
"""


def written(folder: Path, plan: str = PLAN) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    (folder / "plan.toml").write_text(plan, encoding="utf-8")
    return folder / "plan.toml"


@functools.cache
def finished() -> tuple[Path, dict[str, Any]]:
    """One ablation that the tests of a process share."""
    folder = Path(mkdtemp(prefix="largerec-ablate-"))
    found = from_arguments("-", str(written(folder)), [f"run.dir={folder / 'runs'}"], quiet=True)
    return folder, found


def row(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["rows"] if one["name"] == name)


def test_rows_are_trained_alike_and_asked_alike() -> None:
    """The same seeds, steps and targets in every row; only training rows differ."""
    _, found = finished()
    assert [one["name"] for one in found["rows"]] == ["clean", "raw", "nothing", "rules", "rules-truncated"]
    for one in found["rows"]:
        assert [run["seed"] for run in one["runs"]] == [0, 1] and {run["steps"] for run in one["runs"]} == {24}
        logs = [load_log(DataOptions(path=log)).events for log in (one["log"], row(found, "clean")["log"])]
        held = [log.filter(pl.col(STAGE_COLUMN) != "train").select("user_id", "item_id", "timestamp", "stage") for log in logs]
        assert held[0].equals(held[1])
    assert row(found, "rules")["training_rows"] < row(found, "raw")["training_rows"]
    assert [one["step"]["name"] for one in row(found, "rules-truncated")["steps"]] == ["duplicates", "bots", "truncated-loss"]


def test_a_cure_that_changes_nothing_gains_exactly_nothing_and_is_said_not_to_help() -> None:
    _, found = finished()
    nothing = row(found, "nothing")
    assert nothing["training_rows"] == row(found, "raw")["training_rows"]
    assert nothing["gain"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert nothing["verdict"] == "no sign that it helps"


def test_versions_are_held_against_the_controls_too() -> None:
    folder, found = finished()
    assert found["verdicts"] == 3 + 2
    assert row(found, "rules")["against"] == {} and "against" not in row(found, "raw")
    for name in ("nothing", "rules-truncated"):
        (beside,) = row(found, name)["against"].values()
        own, other = (row(found, one)["test"]["ndcg@10"] for one in (name, "rules"))
        assert beside["gain"]["difference"]["value"] == pytest.approx(own - other) and own != other
        assert beside["gain"]["relative"]["value"] == pytest.approx(own / other - 1)
    assert "Beside the controls" in (folder / "runs" / "ablate.html").read_text(encoding="utf-8")


def test_a_version_above_a_control_is_said_to_be() -> None:
    """One that is certainly better, one certainly worse, and one of which nobody knows."""
    rng, users = np.random.default_rng(0), np.arange(400)
    base = rng.random((2, 400))
    values = {"control": base, "better": base + 0.1, "worse": base - 0.1, "same": base + rng.normal(0, 0.3, (2, 400))}
    strict = Paired(values, users, level=0.99, samples=500, seed=0)
    said = {name: module.standing(strict, name, "control") for name in ("better", "worse", "same")}
    assert said == {"better": "above", "worse": "below", "same": "not told apart"}


def test_costs_and_shares_are_of_the_means_that_are_shown() -> None:
    _, found = finished()
    clean, raw, rules = (row(found, name)["test"]["ndcg@10"] for name in ("clean", "raw", "rules"))
    assert found["faults"]["cost"]["value"] == pytest.approx(1 - raw / clean)
    assert row(found, "rules")["gain"]["relative"]["value"] == pytest.approx(rules / raw - 1)
    gain = row(found, "rules")["gain"]["difference"]
    assert gain["low"] < gain["value"] < gain["high"]


def test_no_share_is_told_of_a_cost_that_may_be_nothing() -> None:
    """As the denominator comes near zero the ratio and its interval mean nothing."""
    _, found = finished()
    cost = found["faults"]["cost"]
    assert cost["low"] <= 0 and "holds zero" in found["faults"]["no_shares"]
    assert row(found, "rules")["won_back"] is None and "won_back" not in row(found, "raw")
    users, better = np.arange(50), np.linspace(0.4, 0.6, 50)[None]
    values = {"clean": better, "raw": better - 0.2 - 0.1 * better**2, "cured": better - 0.1}
    found_back = won_back(Paired(values, users), "cured")
    assert found_back is not None
    assert found_back["value"] == pytest.approx(1 - 0.1 / (0.2 + 0.1 * (better**2).mean())) and found_back["low"] is not None
    assert won_back(Paired(values | {"raw": better + 0.1}, users), "cured") is None, "faults that help cost nothing"


def test_a_forgotten_person_is_in_no_log_of_it(tmp_path: Path) -> None:
    """What it keeps as logs is found by erasure as imports are; it does not go on with another log unnoticed."""
    folder, found = finished()
    place = Path(shutil.copytree(folder / "runs", tmp_path / "runs"))
    person = str(load_log(DataOptions(path=row(found, "raw")["log"])).events["user_id"][0])
    gone = {Path(one["folder"]).relative_to(place).as_posix() for one in forget(place, person)["folders"]}
    assert {"logs/raw", "logs/clean"} < gone
    for path in place.rglob("events.parquet"):
        assert person not in pl.read_parquet(path)["user_id"].cast(pl.String)
    assert not list((place / "logs").glob("*.parquet"))
    plan, recipe = load_ablation(folder / "plan.toml")
    with pytest.raises(LargeRecError, match="forgotten in one of the two"):
        ablate(plan, recipe, place, quiet=True)


def test_the_same_command_makes_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = finished()
    monkeypatch.setattr(compare, "train", lambda *_a, **_k: pytest.fail("a finished run was made again"))
    monkeypatch.setattr(compare, "evaluate", lambda *_a, **_k: pytest.fail("the test was looked at again"))
    again = from_arguments("-", str(folder / "plan.toml"), [f"run.dir={folder / 'runs'}"], quiet=True)
    assert again == found
    assert all(json.loads((Path(run["dir"]) / "result.json").read_text())["n_test_evaluations"] == 1
               for one in again["rows"] for run in one["runs"])  # fmt: skip


def test_another_log_in_the_same_folder_is_refused() -> None:
    folder, _ = finished()
    plan, recipe = load_ablation(folder / "plan.toml", ["data.simulate.seed=5"])
    with pytest.raises(LargeRecError, match="another log than the one that is given now"):
        ablate(plan, recipe, folder / "runs", quiet=True)


def test_the_page_and_the_table_say_it() -> None:
    folder, found = finished()
    shown = assert_safe((folder / "runs" / "ablate.html").read_text(encoding="utf-8"))
    assert (
        "no sign that it helps" in shown.words
        and "The faults cost" in shown.words
        and "holds zero" in shown.words
        and "rules-truncated" in shown.words
    )
    done = CliRunner().invoke(app, ["ablate", "-", "--plan", str(folder / "plan.toml"), f"run.dir={folder / 'runs'}"])
    assert done.exit_code == 0, done.output
    assert (
        "nothing beside rules:" in done.output
        and "no sign that it" in done.output
        and "The faults cost" in done.output
        and "holds zero" in done.output
    )
    assert json.loads((folder / "runs" / "ablate.json").read_text())["rows"] == json.loads(json.dumps(found["rows"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "rules"', 'name = "raw"'), "version name 'raw'"),
        (('name = "rules"', 'name = "ablate.json"'), "version name 'ablate.json'"),
        (("seeds = [0, 1]", "seeds = [99999999999999999999]"), "from 0 to"),
        (('name = "duplicates"}, {name = "bots"}]', 'name = "dupes"}]'), "version 'rules'"),
        (("seeds = [0, 1]", "seeds = [0, 0]"), "ablate.seeds"),
        (('controls = ["rules"]', 'controls = ["rule"]'), "ablate.controls"),
        (("validations = 2", "validation = 2"), "did you mean 'validations'"),
        (('recipe = "tiny.toml"', 'recipe = "tinny.toml"'), "tinny.toml"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    with pytest.raises(LargeRecError, match=said):
        load_ablation(written(tmp_path, PLAN.replace(*change, 1)))


def test_one_bracket_is_told(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match="with two brackets"):
        load_ablation(written(tmp_path, PLAN.split("[[version]]")[0] + '[version]\nname = "rules"\n'))


@pytest.mark.parametrize("override", ["data.path=other.csv", "train.evaluate_every=5", "name=mine"])
def test_an_override_that_would_do_nothing_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(LargeRecError, match=override.partition("=")[0]):
        from_arguments("log.csv", str(written(tmp_path, PLAN)), [override])


def test_steps_that_make_rows_are_refused_where_labels_are_learned(tmp_path: Path) -> None:
    path = written(tmp_path, PLAN.replace('{name = "bots"}]', '{name = "bots"}, {name = "regenerate"}]', 1))
    (tmp_path / "tiny.toml").write_text(TINY + "split.positives = \"item_id <> ''\"", encoding="utf-8")
    with pytest.raises(LargeRecError, match=r"version 'rules': step regenerate makes rows .* split\.positives"):
        from_arguments("-", str(path), [f"run.dir={tmp_path / 'runs'}"], quiet=True)
    assert not (tmp_path / "runs").exists()


def test_what_an_ablation_decides_cannot_be_overridden(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"ablate\.steps"):
        from_arguments("-", str(written(tmp_path)), ["train.max_steps=5"])


def test_verdicts_follow_the_interval() -> None:
    assert verdict({"low": 0.001, "high": 0.01}) == "helps"
    assert verdict({"low": -0.01, "high": -0.001}) == "hurts"
    assert verdict({"low": -0.001, "high": 0.01}) == verdict({"low": None, "high": None}) == "no sign that it helps"
    assert verdict({"low": 0.001, "high": 0.01}, ("above", "below", "not told apart")) == "above"


def test_the_recipes_own_steps_are_counted_on_the_raw_log(tmp_path: Path) -> None:
    plan, recipe = load_ablation(written(tmp_path), ["train.max_epochs=3"])
    arms = module.base_logs(plan, recipe, tmp_path / "runs")
    steps = module.recipe_steps(recipe, arms[-1])
    assert steps % 3 == 0 and steps > 20
    assert (
        module.recipe_steps(recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 7})}), arms[-1]) == 7
    )


# --- faults in training rows


def test_bots_among_training_rows_have_ids_though_a_narrow_type_is_full() -> None:
    log = random_log(users=20, events=400)
    narrow = staged(replace(log, events=log.events.with_columns((pl.col("user_id") + 236).cast(pl.UInt8))))
    after = with_training_faults(narrow, FaultOptions(bots=0.2)).events
    assert after.schema["user_id"] == pl.Int64 and after["user_id"].max() == 259
    held = after.filter(pl.col(STAGE_COLUMN) != "train").drop(LABEL)
    was = narrow.events.filter(pl.col(STAGE_COLUMN) != "train")
    assert held.equals(was.with_columns(pl.col("user_id").cast(pl.Int64)).select(held.columns))


def staged(log: EventLog) -> EventLog:
    stage = stage_column(log, SplitOptions())
    events = log.events.with_columns(stage.alias(STAGE_COLUMN))
    return EventLog(events, log.items, log.time_kind, log.notes, log.source)


@pytest.mark.parametrize("log", [random_log(users=20, events=400), simulate(SimulateOptions(users=60, items=80, events=900))])
def test_faults_go_into_training_rows_and_leave_the_split_whole(log: EventLog) -> None:
    """Evaluation rows stay in place and value; no training row comes to lie behind what its user is asked; bots are new users."""
    options = FaultOptions(misclicks=0.1, duplicates=0.1, clock_errors=0.3, bots=0.2)
    before = staged(log)
    after = with_training_faults(before, options)
    kept, held = (one.events.filter(pl.col(STAGE_COLUMN) != "train") for one in (after, before))
    assert kept.drop(LABEL).equals(held.select(kept.drop(LABEL).columns)) and kept[LABEL].null_count() == kept.height
    assert set(after.events[LABEL].drop_nulls()) == {"misclick", "duplicate", "clock error", "bot"}
    stage_column(after, SplitOptions(protocol="given"))  # raises where a stage falls within a user
    bots = after.events.filter(pl.col(LABEL) == "bot")["user_id"]
    assert not set(bots) & set(log.events["user_id"])
