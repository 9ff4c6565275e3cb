"""Versions: the evaluation stays as it was, chains are used again, rows are traced and come back, hostile logs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import START_MS, chain_log, log_of, logs, random_log
from runs import tiny_recipe
from typer.testing import CliRunner

from largerec import manifest
from largerec.audit.ordered import DAY
from largerec.bundle import data_hash
from largerec.cli import app
from largerec.columns import UNTIMED, ColumnOptions
from largerec.curate import curate, versions
from largerec.curate.plan import Plan, plan_from, plan_of
from largerec.curate.taking import stage_column, take
from largerec.curate.tracing import Named, restore, trace
from largerec.curate.versions import Version
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.faults import FaultOptions, with_faults
from largerec.sequences import SplitOptions, build_sequences
from largerec.simulate import SimulateOptions, simulate
from largerec.train import train

GIVEN = SplitOptions(protocol="given")
EVERY_STEP: list[dict[str, Any]] = [
    {"name": "duplicates"},
    {"name": "duplicates", "match": "near"},
    {"name": "duplicates", "match": "window", "hours": 0.05},
    {"name": "clocks"},
    {"name": "clocks", "action": "remove"},
    {"name": "bots", "signs": 1},
    {"name": "bursts", "surges": True},
    {"name": "misclicks", "score": 0.0},
    {"name": "misclicks", "score": 0.0, "action": "history"},
    {"name": "sessions", "minutes": 1.5},
    {"name": "k-core", "k": 2},
    {"name": "recency", "days": 0.002},
    {"name": "recency", "days": 0.002, "rest": "remove"},
    {"name": "recency", "half_life_days": 0.01},
    {"name": "popularity", "threshold": 0.2},
    {"name": "popularity", "threshold": 0.2, "action": "sample"},
    {"name": "core-set", "budget": 0.5},
    {"name": "core-set", "budget": 0.5, "method": "informative", "unit": "windows", "window": 3},
    {"name": "core-set", "budget": 0.5, "method": "aligned"},
    {"name": "core-set", "budget": 0.5, "method": "random", "rest": "remove"},
    {"name": "core-set", "budget": 0.5, "method": "recent", "unit": "windows", "window": 2, "rest": "remove"},
]
ONCE = {"recency", "popularity", "core-set", "sessions"}  # of what is left, they take or weigh a part again


def written(log: EventLog, folder: Path) -> DataOptions:
    folder.mkdir(parents=True, exist_ok=True)
    log.write(folder / "log.parquet")
    return DataOptions(path=str(folder / "log.parquet"))


def source(log: EventLog, split: SplitOptions | None = None) -> Version:
    return versions.first_version(log, stage_column(log, split or SplitOptions()))


def steps_of(*documents: dict[str, Any]) -> Plan:
    return plan_from({"step": list(documents)})


def held(version: Version) -> pl.DataFrame:
    return version.log.events.filter(~version.is_training).drop("train_weight", strict=False)


def same_rows(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    columns = sorted(set(one.columns) & set(other.columns))
    return one.select(columns).sort("source_row").equals(other.select(columns).sort("source_row"))


def targets(version: Version) -> list[tuple[str, int]]:
    """Stage and row of each target: what is not training and has an earlier event of its user."""
    seen, found = set(), []
    for row in version.log.events.sort("timestamp", maintain_order=True).iter_rows(named=True):
        if row["stage"] != "train" and row["user_id"] in seen:
            found.append((row["stage"], row["source_row"]))
        seen.add(row["user_id"])
    return sorted(found)


# --- what holds for every step


@pytest.mark.parametrize("document", EVERY_STEP, ids=lambda document: " ".join(map(str, document.values())))
@settings(deadline=None, max_examples=8)
@given(log=logs(time_kinds=["timestamp"]), share=st.sampled_from([None, ("40%", "70%")]), untimed=st.booleans())
def test_a_step_never_touches_what_is_evaluated(document: dict[str, Any], log: EventLog, share: Any, untimed: bool) -> None:
    if untimed:
        first = log.events["timestamp"].clone().scatter(0, UNTIMED)
        log = replace(log, events=log.events.with_columns(first))
    split = SplitOptions() if share is None else SplitOptions(protocol="timeline", validation_from=share[0], test_from=share[1])
    before = source(log, split)
    (step,) = steps_of(document).step
    try:
        after, facts = take(before, step, 3, "01-one")
    except LargeRecError as error:
        assert "leaves none of" in str(error) or "no training row" in str(error)
        return
    assert held(after).equals(held(before))
    assert facts["rows"]["in"] == facts["rows"]["out"] + facts["rows"]["removed"]
    assert after.log.events["source_row"].is_sorted()
    together = pl.concat([after.log.events["source_row"], after.removed["source_row"]])
    assert sorted(together) == before.log.events["source_row"].to_list(), "no row is lost, none comes twice"
    assert targets(after) == targets(before), "every version is asked the same"
    if document["name"] not in ONCE:
        try:
            again, more = take(after, step, 3, "02-two")
        except LargeRecError:
            return
        assert same_rows(again.log.events, after.log.events), "a second time changes nothing"
        assert more["rows"]["removed"] == 0


@settings(deadline=None, max_examples=15)
@given(log=logs(time_kinds=["timestamp"]), chosen=st.lists(st.sampled_from(EVERY_STEP), min_size=1, max_size=3))
def test_restoring_all_of_a_plan_gives_the_log_back(tmp_path_factory: Any, log: EventLog, chosen: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("restore")
    options = written(log, folder)
    try:
        found = curate(options, steps_of(*chosen))
    except LargeRecError as error:
        assert "leaves none of" in str(error)
        return
    first = versions.read(Path(found["dir"]) / found["versions"][0]["version"])
    try:
        back = restore(found["log"], Named(everything=True))
    except LargeRecError as error:
        assert "nothing is to be restored" in str(error)
        after = versions.read(Path(found["log"]))
    else:
        after = versions.read(Path(back["dir"]))
    assert after.log.events.equals(first.log.events)
    assert after.removed.height == 0


# --- chains


def small(**faults: float) -> EventLog:
    log = simulate(SimulateOptions(users=120, items=150, events=4000, seed=5))
    return with_faults(log, FaultOptions(seed=1, **faults)) if faults else log


FAULTY = {"bots": 0.03, "duplicates": 0.03, "clock_errors": 0.03}


def test_versions_chain_and_the_same_plan_again_reads_no_data(tmp_path: Path) -> None:
    options = written(small(**FAULTY), tmp_path)
    found = curate(options, Plan())
    names = [one["version"] for one in found["versions"]]
    assert [name[3:-9] for name in names] == ["source", "duplicates", "clocks", "bots", "bursts"]
    assert not any(one["reused"] for one in found["versions"])
    documents = [json.loads((Path(found["dir"]) / name / "manifest.json").read_text()) for name in names]
    for before, after in itertools.pairwise(documents):
        assert after["version"]["parent"] == {"name": names[documents.index(before)], "content": before["content"]}
        assert after["evaluation"] == before["evaluation"]
        assert after["version"]["rows"]["in"] == before["stages"]["train"]
    times = {path: path.stat().st_mtime_ns for path in Path(found["dir"]).rglob("*")}
    again = curate(options, Plan())
    assert all(one["reused"] for one in again["versions"]) and again["log"] == found["log"]
    assert {path: path.stat().st_mtime_ns for path in Path(found["dir"]).rglob("*")} == times
    # A plan with one more step, taken from the version itself, and from the log: the same folder.
    longer = curate(options, steps_of(*({"name": name} for name in ("duplicates", "clocks", "bots", "bursts", "k-core"))))
    onward = curate(DataOptions(path=found["log"]), plan_of(["k-core"]))
    assert onward["log"] == longer["log"] and onward["versions"][-1]["reused"]


def test_a_chain_in_one_go_is_the_chain_step_by_step(tmp_path: Path) -> None:
    log = small(**FAULTY)
    once = curate(written(log, tmp_path / "a"), steps_of(*EVERY_STEP[:4], EVERY_STEP[9], EVERY_STEP[13]))
    path = written(log, tmp_path / "b").path
    found: dict[str, Any] = {}
    for document in (*EVERY_STEP[:4], EVERY_STEP[9], EVERY_STEP[13]):
        found = curate(DataOptions(path=path), steps_of(document))
        path = found["log"]
    assert found["versions"][-1]["content"] == once["versions"][-1]["content"]


def test_all_versions_are_asked_the_same_and_train(tmp_path: Path) -> None:
    options = written(small(**FAULTY), tmp_path)
    found = curate(options, steps_of({"name": "bots"}, {"name": "core-set", "budget": 0.3}))
    results = []
    for one in found["versions"]:
        path = Path(found["dir"]) / one["version"]
        recipe = tiny_recipe(tmp_path / one["version"], f"data.path={path}", "split.protocol=given", "train.max_epochs=1")
        results.append((train(recipe, quiet=True), build_sequences(load_log(recipe.data), GIVEN)))
    asked = [sequences.frame()[sequences.targets("test")].select("user_id", "item_id", "timestamp") for _, sequences in results]
    assert asked[0].sort("user_id").equals(asked[1].sort("user_id")) and asked[0].sort("user_id").equals(asked[2].sort("user_id"))
    tokens = [result["train_tokens"] for result, _ in results]
    assert tokens[0] > tokens[1] > 2 * tokens[2], "what is not learned from costs no time"
    plain = build_sequences(load_log(options), SplitOptions())
    assert data_hash(plain) == data_hash(results[0][1]), "version 0 is the log and its split"


def test_a_version_reads_back_as_it_was_though_a_further_column_has_a_known_name(tmp_path: Path) -> None:
    log = chain_log(users=20)
    further = log.events.with_columns(stars=pl.lit(4.0), rating=pl.lit(1.5), action=pl.lit("tap"), kind=pl.lit("buy"))
    further.write_parquet(tmp_path / "log.parquet")
    columns = ColumnOptions(value="stars", behavior="kind")
    found = curate(DataOptions(path=str(tmp_path / "log.parquet"), columns=columns), plan_of(["duplicates"]))
    for one in found["versions"]:
        events = load_log(DataOptions(path=str(Path(found["dir"]) / one["version"]))).events
        assert (
            events["value"].to_list() == [4.0] * 240 and set(events["behavior"]) == {"buy"} and set(events["action"]) == {"tap"}
        )
        assert events.columns == [*log.events.columns, "behavior", "value", "rating", "action", "stage", "source_row"]


def test_a_changed_version_is_noticed(tmp_path: Path) -> None:
    found = curate(written(small(), tmp_path), plan_of(["duplicates"]))
    events = Path(found["log"]) / "events.parquet"
    pl.read_parquet(events).head(10).write_parquet(events)
    with pytest.raises(LargeRecError, match="has changed since it was imported"):
        curate(DataOptions(path=str(tmp_path / "log.parquet")), plan_of(["duplicates", "bots"]))


def test_seeds_only_remake_what_is_drawn(tmp_path: Path) -> None:
    options = written(small(), tmp_path)
    plan = steps_of({"name": "duplicates"}, {"name": "core-set", "budget": 0.2, "method": "random"})
    one, two = (curate(options, plan.model_copy(update={"seed": seed})) for seed in (0, 1))
    assert [a["version"] == b["version"] for a, b in zip(one["versions"], two["versions"], strict=True)] == [True, True, False]
    assert one["versions"][-1]["content"] != two["versions"][-1]["content"]


# --- the user's last row stays, as history


def test_a_user_who_is_asked_about_keeps_a_row_that_is_not_learned_from() -> None:
    bot = [("bot", f"i{n % 3}", START_MS + n * 2000) for n in range(200)]
    people = [
        (f"u{u}", f"i{(u + n) % 20}", START_MS + u * 7_000_000 + n * 1_234_567 * (1 + n % 3)) for u in range(10) for n in range(8)
    ]
    before = source(log_of(bot + people))
    after, facts = take(before, plan_of(["bots"]).step[0], 0, "01-bots")
    rows = after.log.events.filter(pl.col("user_id") == "bot")
    assert rows["stage"].to_list() == ["train", "validation", "test"] and rows["train_weight"].to_list() == [0.0, 1.0, 1.0]
    assert rows["source_row"].to_list() == [198, 199, 200], "the last training row"
    assert facts["rows"] == {"in": 258, "out": 61, "removed": 197, "changed": 0, "kept_as_history": 1, "weight_0": 1}
    assert facts["reasons"] == {"its user behaves as a program: fast, regular, narrow": 197}


def test_the_id_of_someone_removed_is_given_to_nobody() -> None:
    """It may be restored, or be asked to be forgotten: then it must mean the one person."""
    bot = [(10, n % 3, START_MS + n * 2000) for n in range(200)]
    people = [(u, (u + n) % 20, START_MS + u * 7_000_000 + n * 1_234_567 * (1 + n % 3)) for u in range(10) for n in range(8)]
    frame = pl.DataFrame(bot + people, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame = frame.with_columns(pl.col("user_id").cast(pl.UInt8))
    split = SplitOptions(protocol="timeline", validation_from="90%", test_from="95%")
    before = source(EventLog(frame, None, "timestamp", (), "a test's log"), split)
    after, _ = take(before, plan_of(["bots"]).step[0], 0, "01-bots")
    last, facts = take(after, plan_of(["sessions:minutes=30"]).step[0], 0, "02-sessions")
    assert 10 not in after.log.events["user_id"] and facts["facts"]["new_users"] > 0
    assert 10 not in last.log.events["user_id"] and last.log.events["user_id"].max() > 10


def test_events_without_a_time_weigh_as_much_as_the_oldest() -> None:
    """They came before all others, and how long before is not known: they are not thrown away."""
    rows = [(user, f"x{n}", START_MS + n * DAY) for user in "ab" for n in range(5)]
    log = log_of(rows)
    first = log.events["timestamp"].clone().scatter([0, 5], UNTIMED)
    log = replace(log, events=log.events.with_columns(first))
    (step,) = steps_of({"name": "recency", "half_life_days": 1}).step
    after, facts = take(source(log), step, 0, "01-recency")
    weights = after.log.events.filter(after.is_training).sort("item_id")["train_weight"].to_list()
    assert weights == pytest.approx([0.5] * 4 + [1.0] * 2), "of three training events of each two have a time"
    assert facts["facts"] == {"untimed": 2}
    (step,) = steps_of({"name": "recency", "days": 10}).step
    after, _ = take(source(log), step, 0, "01-recency")
    assert after.log.events.filter(after.is_training).sort("item_id")["train_weight"].to_list() == [0.0] * 2 + [1.0] * 4


# --- tracing and restoring


def test_a_row_is_traced_through_the_steps_and_comes_back(tmp_path: Path) -> None:
    log = small(**FAULTY)
    found = curate(
        written(log, tmp_path), steps_of({"name": "duplicates"}, {"name": "clocks"}, {"name": "recency", "half_life_days": 9})
    )
    version = versions.read(Path(found["log"]))
    repeated = int(version.removed.filter(pl.col("step") == "duplicates")["source_row"][0])
    mended = int(version.changed["source_row"][0])
    told = {one["row"]: one for one in trace(found["log"], Named(rows=[repeated, mended]))["found"]}
    assert told[repeated]["now"] == "removed"
    assert [one["why"] for one in told[repeated]["history"]] == ["repeats an earlier row"]
    changed, weighed = told[mended]["history"]
    assert (changed["step"], changed["column"], weighed["step"], weighed["before"]) == ("clocks", "timestamp", "recency", 1.0)
    assert int(changed["before"]) == log.events["timestamp"][mended - 1] and told[mended]["timestamp"] == int(changed["after"])
    back = restore(found["log"], Named(rows=[repeated, mended]))
    assert back["version"]["rows"]["restored"] == 1 and back["version"]["rows"]["changed"] == 1
    now = {one["row"]: one for one in trace(back["dir"], Named(rows=[repeated, mended]))["found"]}
    assert now[repeated]["now"] == now[mended]["now"] == "kept" and now[repeated]["weight"] == now[mended]["weight"] == 1.0
    assert now[repeated]["history"][0] | {"version": ""} == {
        "version": "", "step": "restore", "what": "restored", "after": "restored",
        "before": f"removed by {found['versions'][1]['version']}: repeats an earlier row",
    }  # fmt: skip
    assert now[mended]["timestamp"] == log.events["timestamp"][mended - 1]
    assert restore(found["log"], Named(rows=[mended, repeated]))["dir"] == back["dir"], "the same again is there already"


@pytest.mark.parametrize("kind", ["number", "text", "gaps"])
def test_a_column_of_any_name_is_not_taken_for_a_value_before(tmp_path: Path, kind: str) -> None:
    """Times come back from the lines of changes, whatever else the log has."""
    log = small(**FAULTY)
    first = {"number": pl.lit(1), "text": pl.lit("yes"), "gaps": pl.when(pl.int_range(pl.len()) % 3 == 0).then(1)}[kind]
    log = replace(log, events=log.events.with_columns(first.alias("first"), pl.lit(2).alias("at")))
    found = curate(written(log, tmp_path), steps_of({"name": "clocks"}, {"name": "k-core", "k": 2}))
    assert versions.read(Path(found["log"])).changed.height
    back = versions.read(Path(restore(found["log"], Named(everything=True))["dir"]))
    assert back.log.events.sort("source_row").select(log.events.columns).equals(log.events)


def test_a_folder_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    """They are no pattern: what another file holds is not read in the place of one's own."""
    for name, users in (("day1", 3), ("day[12]", 5)):
        chain_log(users=users).write(tmp_path / f"{name}.parquet")
    own = DataOptions(path=str(tmp_path / "day[12].parquet"))
    assert load_log(own).events["user_id"].n_unique() == 5
    found = curate(own, plan_of(["duplicates", "k-core"]))
    version = versions.read(Path(found["log"]))
    assert "[" in found["dir"] and trace(found["log"], Named(rows=[1]))["rows"] == 1
    assert version.log.events["user_id"].n_unique() + version.removed["user_id"].n_unique() >= 5
    with pytest.raises(LargeRecError, match="there is no row"):
        trace(found["log"], Named(rows=[10**20]))


def test_a_version_that_is_its_own_parent_is_refused(tmp_path: Path) -> None:
    found = curate(written(random_log(), tmp_path), steps_of({"name": "duplicates"}, {"name": "recency", "days": 0.002}))
    names = [one["version"] for one in found["versions"]]
    for parent in (names[2], names[1]):  # itself, and one that was made from it
        file = Path(found["dir"]) / names[1] / "manifest.json"
        document = json.loads(file.read_text())
        document["version"]["parent"]["name"] = parent
        file.write_text(json.dumps(document))
        with pytest.raises(LargeRecError, match=r"manifest\.json: the parent is said to be"):
            trace(found["log"], Named(rows=[1]))


def test_rows_are_named_by_user_item_and_step(tmp_path: Path) -> None:
    log = random_log()
    found = curate(written(log, tmp_path), steps_of({"name": "sessions", "minutes": 30}, {"name": "k-core", "k": 4}))
    whole = trace(found["log"], Named(user_id="3"))
    assert whole["rows"] == log.events.filter(pl.col("user_id") == 3).height, "also what a session now calls otherwise"
    assert trace(found["log"], Named(item_id="7"))["rows"] == log.events.filter(pl.col("item_id") == 7).height
    removed = versions.read(Path(found["log"])).removed
    assert trace(found["log"], Named(step="k-core"))["removed"] == removed.height > 0
    for named, said in (
        (Named(), "say which rows are meant"),
        (Named(rows=[10_000]), "there is no row 10000"),
        (Named(user_id="nobody"), "has user_id 'nobody'"),
        (Named(step="bots"), "removed or changed by: k-core, sessions"),
    ):
        with pytest.raises(LargeRecError, match=said):
            trace(found["log"], named)


# --- hostile logs and refusals


@pytest.mark.parametrize("document", EVERY_STEP, ids=lambda document: " ".join(map(str, document.values())))
@pytest.mark.parametrize("kind", ["one user", "one item", "one row", "one moment", "order"])
def test_hostile_logs_are_cured_or_refused(document: dict[str, Any], kind: str) -> None:
    rows = {
        "one user": [("u", f"i{n % 4}", START_MS + n * 500) for n in range(60)],
        "one item": [(f"u{n % 7}", "i", START_MS + n * 500) for n in range(60)],
        "one row": [("u", "i", START_MS)],
        "one moment": [(f"u{n % 3}", f"i{n % 5}", START_MS) for n in range(60)],
        "order": [(n % 3, n % 5, n) for n in range(60)],
    }[kind]
    before = source(log_of(rows, "order" if kind == "order" else "timestamp"))
    try:
        after, _ = take(before, steps_of(document).step[0], 0, "01-one")
    except LargeRecError as error:
        assert "leaves none of" in str(error) or "has an order and no clock" in str(error)
        return
    assert held(after).equals(held(before)) and after.is_training.any()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"step": [{"name": "bot"}]}, "step 1 is named 'bot', which there is not; did you mean 'bots'?"),
        ({"step": [{"name": "bots"}, {"k": 3}]}, "step 2 has no name. Write"),
        ({"step": [{"name": "bots", "sign": 3}]}, "unknown option 'sign' in BotsStep; did you mean 'signs'?"),
        ({"step": [{"name": "bots", "signs": 9}]}, "step 1 bots signs: Input should be less than or equal to 5"),
        ({"steps": []}, "unknown option 'steps' in Plan; did you mean 'step'?"),
        ({"step": [{"name": ["bots"]}]}, "step 1 is named ['bots'], which there is not"),
        ({"step": []}, "a plan needs at least one"),
        ({"step": [{"name": "duplicates", "match": "window"}]}, "hours is the width of a window"),
        ({"step": [{"name": "duplicates", "hours": 2}]}, "hours is the width of a window"),
        ({"step": [{"name": "recency"}]}, "give either days"),
        ({"step": [{"name": "recency", "half_life_days": 3, "rest": "remove"}]}, "says nothing with half_life_days"),
        ({"step": [{"name": "popularity", "rest": "remove"}]}, "says nothing with action"),
        ({"step": [{"name": "core-set", "budget": 0.5, "window": 9}]}, 'window says nothing with unit = "users"'),
        ({"step": [{"name": "core-set"}]}, "core-set budget: Field required"),
        ({"split": {"targets": "first", "protocol": "given"}}, "split.targets is about what a model is asked for"),
    ],
)
def test_plans_that_do_not_fit_are_refused(document: dict[str, Any], said: str) -> None:
    with pytest.raises(LargeRecError) as caught:
        plan_from(document)
    assert said in str(caught.value)


def test_a_step_s_options_may_be_lists() -> None:
    (step,) = plan_of(['clocks:kinds=["unit", "order"]']).step
    assert step.kinds == ("unit", "order")  # type: ignore[union-attr]


def test_a_version_that_another_command_made_meanwhile_is_taken(tmp_path: Path) -> None:
    found = curate(written(chain_log(), tmp_path), plan_of(["duplicates"]))
    folder = Path(found["log"])
    again = versions.write(folder.parent, folder.name, versions.read(folder), {})
    assert again == versions.read_manifest(folder)


def test_what_a_version_cannot_be_is_refused(tmp_path: Path) -> None:
    found = curate(written(chain_log(), tmp_path), plan_of(["duplicates"]))
    at = DataOptions(path=found["log"])
    with pytest.raises(LargeRecError, match="whose split stands already"):
        curate(at, Plan(split=SplitOptions()))
    with pytest.raises(LargeRecError, match="what follows it stands beside it"):
        curate(at, Plan(), tmp_path / "elsewhere")
    with pytest.raises(LargeRecError, match="is read as it is"):
        curate(at.model_copy(update={"where": "user_id = 'u1'"}), Plan())
    with pytest.raises(LargeRecError, match="is no version of a log"):
        trace(tmp_path, Named(everything=True))
    with pytest.raises(LargeRecError, match="a generated log has no place of its own"):
        curate(DataOptions(), Plan())
    log = chain_log()
    for name in ("source_row", versions.MADE, "version", "why"):
        taken = replace(log, events=log.events.with_columns(pl.lit(1).alias(name)))
        with pytest.raises(LargeRecError, match=f"has a column '{name}' of its own"):
            curate(written(taken, tmp_path / "taken"), Plan())
    assert not manifest.read(tmp_path / "taken") and np.all([not path.name.endswith("-new") for path in tmp_path.rglob("*")])


# --- the commands


def invoked(*words: object) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return json.loads(done.output.splitlines()[-1]) if "--json" in words else " ".join(done.output.split())


def test_the_commands_cure_trace_and_restore(tmp_path: Path) -> None:
    path = written(small(**FAULTY), tmp_path).path
    (tmp_path / "plan.toml").write_text('[[step]]\nname = "duplicates"\n[[step]]\nname = "core-set"\nbudget = 0.5\n')
    (tmp_path / "recipe.toml").write_text(
        'split = {protocol = "timeline", validation_from = "70%", test_from = "85%", targets = "first"}'
    )
    words = ("curate", path, "--plan", tmp_path / "plan.toml", "--split", tmp_path / "recipe.toml", "--to", tmp_path / "v")
    found = invoked(*words, "--json")
    assert found["dir"] == str(tmp_path / "v") and len(found["versions"]) == 3
    told = invoked(*words)
    assert "(was there already)" in told and "repeats an earlier row" in told and "split.protocol=given" in told
    removed = versions.read(Path(found["log"])).removed
    row, user = removed["source_row"][0], removed["user_id"][0]
    assert "removed (repeats an earlier row)" in invoked("data", "trace", found["log"], "--row", row)
    assert invoked("data", "trace", found["log"], "--user-id", user, "--json")["removed"] == (removed["user_id"] == user).sum()
    assert "restored" in invoked("data", "restore", found["log"], "--row", row)
    near = invoked("curate", path, "--step", "duplicates:match=near", "--step", "core-set:budget=0.2,method=random", "--json")
    assert near["versions"][1]["step"]["match"] == "near" and near["versions"][2]["step"]["budget"] == 0.2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plan", "p.toml", "--step", "bots"], "exclude each other"),
        (["--step", "bots:signs"], "'signs' is no option; write NAME:key=value"),
        (["--step", "duplicates:match=near,match=exact"], "match is given twice"),
        (["--step", "bot"], "did you mean 'bots'?"),
        (["--plan", "none.toml"], "there is no plan 'none.toml'"),
        (["model.size=nano"], "only data.* may be set here"),
    ],
)
def test_refused_commands_teach(words: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["curate", str(tmp_path / "log.csv"), *words])
    assert isinstance(done.exception, LargeRecError) and said in str(done.exception)
