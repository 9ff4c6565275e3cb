"""The audit: each finding on a log made by hand, nothing on a sound one, and no crash on the worst."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from audits import NOW, Row, found, steady, visits
from hypothesis import given
from hypothesis import strategies as st
from logs import MINUTE_MS, START_MS, log_of, logs, random_log
from typer.testing import CliRunner

from largerec.audit import Audit, audit, bots, misclicks, repeats, timeline
from largerec.audit.coarse import coarse
from largerec.audit.findings import Finding, by_share, counted, with_one_import
from largerec.audit.ordered import DAY, HOUR, MINUTE, SECOND, Ordered
from largerec.audit.periods import activity
from largerec.audit.shape import gini, power_law, shape
from largerec.cli import app
from largerec.curate.plan import plan_of
from largerec.curate.rows import Training
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.faults import LABEL, FaultOptions, with_faults
from largerec.sequences import SplitOptions
from largerec.simulate import SimulateOptions, simulate


def small(seed: int = 3) -> EventLog:
    return simulate(SimulateOptions(users=300, items=200, events=9000, seed=seed))


# --- order and numbers ----------------------------------------------------------------------------------------------------


@given(logs())
def test_the_order_is_by_user_and_time_and_leads_back_to_the_rows(log: EventLog) -> None:
    ordered = Ordered.of(log)
    events = log.events[ordered.row_N]
    assert ordered.user_ids.gather(ordered.user_N).to_list() == events["user_id"].to_list()
    assert ordered.item_ids.gather(ordered.item_N).to_list() == events["item_id"].to_list()
    assert ordered.time_N.tolist() == events["timestamp"].to_list()
    for user in range(len(ordered.length_U)):
        own = slice(*ordered.offsets_U1[user : user + 2])
        assert set(ordered.user_N[own]) == {user}
        keys = list(zip(ordered.time_N[own], ordered.row_N[own], strict=True))
        assert keys == sorted(keys)
    assert ordered.file_R.tolist() == np.argsort(ordered.row_N).tolist()


def test_a_part_of_a_log_keeps_the_numbers_of_users_and_items() -> None:
    ordered = Ordered.of(random_log())
    some = ordered.kept(ordered.item_N % 2 == 0)
    assert (some.item_N % 2 == 0).all() and some.length_U.sum() == len(some)
    assert (np.repeat(np.arange(len(some.length_U)), some.length_U) == some.user_N).all()
    sample = ordered.some_users(60)
    assert 0 < len(sample) <= 60
    kept = np.unique(sample.user_N)
    assert (sample.length_U[kept] == ordered.length_U[kept]).all(), "users are whole"


def test_severity_by_share_and_plural() -> None:
    assert [by_share(n, 1000, 0.01, 0.1) for n in (9, 10, 99, 100)] == ["info", "warn", "warn", "serious"]
    assert counted(1, "days") == "1 day" and counted(2000, "days") == "2,000 days"


# --- a sound log ----------------------------------------------------------------------------------------------------------


def test_a_sound_generated_log_has_no_fault_that_would_change_it() -> None:
    names = found(small())
    assert not {"exact duplicates", "near duplicates", "impossible times", "mixed units", "users like bots"} & set(names)
    assert not {"times out of order", "clock jumps", "strays", "missing days", "pushed items", "jumps of the file"} & set(names)


def test_the_shape_of_a_log_by_hand() -> None:
    rows = [("a", "x", 0), ("a", "y", 10 * MINUTE), ("a", "x", 60 * MINUTE), ("b", "x", 26 * HOUR)]
    got = shape(Ordered.of(log_of([(u, i, START_MS // DAY * DAY + t) for u, i, t in rows])), np.zeros(4, dtype=bool))
    assert (got["events"], got["users"], got["items"], got["density"]) == (4, 2, 2, 1.0)
    assert got["history_length"]["bins"] == [[1, 1, 1], [2, 2, 0], [3, 4, 1]] and got["history_length"]["fewer_than_3"] == 1
    assert got["popularity"]["seen_once"] == 1 and got["popularity"]["gini"] == pytest.approx(0.25)
    assert got["sessions"]["count"] == 3 and got["sessions"]["events"]["max"] == 2
    assert got["sessions"]["seconds"]["max"] == 600 and got["sessions"]["single_event_share"] == pytest.approx(2 / 3)
    hours = got["time"]["by_hour"]
    assert [hours[0], hours[1], hours[2]] == [2, 1, 1] and sum(hours) == 4
    assert got["time"]["by_weekday"] == [1, 0, 0, 0, 0, 0, 3], "2020-09-13 was a Sunday"
    assert sum(got["time"]["events"]) == 4 and sum(got["time"]["new_users"]) == 2 and sum(got["time"]["new_items"]) == 2


def test_a_power_law_is_found_again() -> None:
    rng = np.random.default_rng(0)
    counts = np.floor(0.5 + 5 * (1 - rng.random(20_000)) ** (-1 / 1.5)).astype(np.int64)  # alpha 2.5 from 5 on
    fit = power_law(counts)
    assert fit is not None and fit["alpha"] == pytest.approx(2.5, abs=0.15) and fit["zipf"] == pytest.approx(1 / 1.5, abs=0.08)
    assert power_law(np.full(200, 7)) is None and gini(np.full(9, 4)) == pytest.approx(0)


@given(st.lists(st.integers(0, 4_000_000_000_000), min_size=1, max_size=30))
def test_bins_of_time_hold_every_event(times: list[int]) -> None:
    _, bin_N, edge_B1 = activity(np.array(times))
    assert len(edge_B1) <= 121 and bin_N.min() >= 0 and bin_N.max() < len(edge_B1) - 1
    assert ((edge_B1[bin_N] <= times) & (times < edge_B1[bin_N + 1])).all()


# --- repeats --------------------------------------------------------------------------------------------------------------


@given(logs(), st.data())
def test_exact_duplicates_are_those_that_an_import_drops(log: EventLog, data: st.DataObject) -> None:
    again = data.draw(st.lists(st.integers(0, log.events.height - 1), max_size=10))
    events = pl.concat([log.events, log.events[again]])
    doubled = replace(log, events=events)
    mask_N = repeats.exact(Ordered.of(doubled))
    assert int(mask_N.sum()) == events.height - events.n_unique()


def test_behaviours_at_one_time_are_no_duplicates() -> None:
    rows = [("a", "x", START_MS), ("a", "x", START_MS), ("a", "x", START_MS)]
    one = found(log_of(rows, behaviors=["view", "buy", "buy"]))["exact duplicates"]
    assert one.count == 2 and one.more == {"with_the_same_behaviour": 1, "identical_in_every_column": 1}
    assert one.command == "largerec data import DATA --to data/mended --dedupe"
    other = found(log_of(rows[:2], behaviors=["view", "buy"]))["exact duplicates"]
    assert other.command is None and other.severity == "info"


def test_near_duplicates_and_ties() -> None:
    rows = [("a", "x", 0), ("a", "x", 4 * SECOND), ("a", "y", 5 * SECOND), ("a", "x", 9 * SECOND), ("a", "x", 60 * SECOND)]
    names = found(log_of([(u, i, START_MS + t) for u, i, t in rows]))
    assert names["near duplicates"].count == 2 and "exact duplicates" not in names
    tied = found(log_of([("a", "x", START_MS), ("a", "y", START_MS), ("b", "x", START_MS), ("b", "z", START_MS + DAY)]))[
        "time ties"
    ]
    assert tied.count == 2 and tied.severity == "warn"
    assert Ordered.of(log_of([("a", "x", 5 * DAY), ("b", "y", 9 * DAY)])).resolution == "day"
    assert Ordered.of(log_of([("a", "x", 5), ("b", "y", 9)], "order")).resolution is None


# --- users and items ------------------------------------------------------------------------------------------------------


def test_bots_by_two_signs() -> None:
    rng = np.random.default_rng(0)
    person = [int(pause) for pause in rng.exponential(4000, 120)]
    rows = visits("robot", START_MS, [2000] * 80, lambda n: f"i{n % 5}") + visits("person", START_MS, person)
    rows += visits("listener", START_MS, [int(pause) for pause in rng.exponential(HOUR, 90)], lambda n: f"i{n % 4}")
    rows += visits("gallery", START_MS, [1500] * 90, lambda n: f"i{n // 45}")
    ordered = Ordered.of(log_of(rows))
    shown = bots.signs(ordered)
    told = {str(ordered.user_ids[user]): shown.told(user) for user in range(4)}
    assert told == {"robot": "fast, regular, narrow", "person": "fast", "listener": "narrow", "gallery": ""}
    one = found(log_of(rows))["users like bots"]
    assert one.count == 1 and one.examples[0]["user_id"] == "robot" and one.more["events"] == 80


def test_a_user_who_never_sleeps_and_takes_everything() -> None:
    rows = visits("crawler", START_MS // DAY * DAY, [20 * MINUTE + n * 977 for n in range(260)], lambda n: f"i{n}")
    assert bots.signs(Ordered.of(log_of(rows))).told(0) == "sweeping, sleepless"


def test_pushes_and_surges() -> None:
    rows = steady(30, 100, users=200)
    first = START_MS // DAY * DAY + 5 * DAY
    rows += [("u1", ("pushed", f"i{n % 60}")[n % 2], first + n * 20 * SECOND) for n in range(120)]
    rows += [("u2", "gallery", first + n * 20 * SECOND) for n in range(60)]
    rows += [(f"v{n}", "news", first + n * 20 * SECOND) for n in range(60)]
    names = found(log_of(rows))
    assert names["pushed items"].examples == [{"item_id": "pushed", "hour": "2020-09-18T00:00:00Z", "events": 60, "users": 1}]
    assert names["pushed items"].count == 1, "who looks at one item for an hour has come once"
    (step,) = plan_of(["bursts"]).step
    log = log_of(rows)
    training = Training(log, np.zeros(len(rows)), np.ones(len(rows)), log.events["user_id"].unique(), 0)
    gone_R = step.change(training).why[0][1]
    assert set(log.events["item_id"].filter(pl.Series(gone_R))) == {"pushed"} and int(gone_R.sum()) == 60
    assert names["surges"].examples[0]["item_id"] == "news" and names["surges"].severity == "info"


def test_missing_days_and_level_shifts() -> None:
    rows = [row for row in steady(60) if (row[2] - START_MS // DAY * DAY) // DAY != 20]
    one = found(log_of(rows))["missing days"]
    assert one.count == 1 and one.examples == [{"day": "2020-10-03", "events": 0, "usual": 40.0}]
    louder = steady(30, 40) + [(u, i, t + 30 * DAY) for u, i, t in steady(30, 160)]
    shift = found(log_of(louder))["level shifts"]
    assert shift.count == 1 and shift.examples[0]["day"] == "2020-10-13"
    assert timeline.level_shifts(np.full(40, 50)) == []


def test_dead_items() -> None:
    rows = steady(80) + [(f"u{n % 6}", "gone", START_MS + n * 4 * HOUR) for n in range(30)]
    rows += [("u1", "one user's", START_MS + n * 4 * HOUR) for n in range(30)]
    rows += [(f"u{n % 6}", "one day's", START_MS + n * HOUR) for n in range(30)]
    one = found(log_of(rows))["dead items"]
    assert [example["item_id"] for example in one.examples] == ["gone"]
    two_days = [(f"u{n % 9}", f"i{n * 48 // 2000}", START_MS // DAY * DAY + n * 86 * SECOND) for n in range(2000)]
    assert "dead items" not in found(log_of(two_days)), "two days are too few to miss an item"


def test_misclicks_score_above_what_was_meant() -> None:
    log = with_faults(small(), FaultOptions(misclicks=0.02, seed=9))
    ordered = Ordered.of(log)
    label_N = (log.events[LABEL] == "misclick").fill_null(False).to_numpy()[ordered.row_N]
    for score_N in (misclicks.scores(ordered), misclicks.misfit(ordered)):
        better = np.searchsorted(np.sort(score_N[~label_N]), score_N[label_N]).mean() / (~label_N).sum()
        assert better > 0.85
    assert found(log)["suspected mis-clicks"].count > 0.3 * label_N.sum()


def coarse_log(unit: int) -> EventLog:
    """Times in whole units: daily visitors of few items, large orders, an item's launch day, and quick visits that fit badly."""
    first, rng = START_MS // DAY * DAY, np.random.default_rng(2)
    rows: list[Row] = [(f"d{n % 6}", f"i{n % 5}", first + n // 6 * max(unit, 5 * HOUR)) for n in range(360)]
    rows += [(f"o{n // 60}", f"i{n % 60 * 4 + n // 240}", first + n // 60 * DAY) for n in range(480)]
    rows += [(f"u{n}", "launch", first + 9 * DAY) for n in range(60)]
    rows += [(f"p{n % 40}", f"i{rng.integers(240)}", first + int(rng.integers(60)) * DAY) for n in range(1500)]
    return log_of(sorted(rows, key=lambda row: row[2]))


@pytest.mark.parametrize(("unit", "name"), [(DAY, "day"), (HOUR, "hour")])
def test_rules_of_minutes_are_off_where_times_are_whole_days_or_hours(unit: int, name: str) -> None:
    log = coarse_log(unit)
    ordered = Ordered.of(log)
    assert ordered.resolution == name and ordered.tells(DAY) and not ordered.tells(MINUTE)
    shown = bots.signs(ordered)
    assert not (shown.of["fast"] | shown.of["regular"]).any(), "whole units make neither"
    names = found(log)
    assert not {"users like bots", "suspected mis-clicks", "clock jumps"} & set(names)
    assert ("surges" in names) == (unit == HOUR) and "pushed items" not in names
    (note,) = audit(log, now=NOW).notes
    assert note.startswith(f"times are whole {name}s: nothing tells fast and regular users") and "rules that look closer" in note
    for plan in ("bots", "misclicks", "bursts"):
        (step,) = plan_of([plan]).step
        training = Training(log, np.zeros(log.events.height), np.ones(log.events.height), log.events["user_id"].unique(), 0)
        change = step.change(training)
        assert not any(mask_R.any() for _, mask_R in change.why), f"{plan} takes nothing"
        assert (unit == HOUR and plan == "bursts") or change.facts["note"].startswith(f"times are whole {name}s")


def test_seconds_are_fine_enough_for_every_rule() -> None:
    assert coarse(Ordered.of(log_of(steady()))) is None and audit(log_of(steady()), now=NOW).notes == ()
    minutes = Ordered.of(log_of([(u, i, t // MINUTE * MINUTE) for u, i, t in steady()]))
    assert coarse(minutes) == "times are whole minutes: nothing tells mis-clicks; the rules that look closer are off"


# --- leakage --------------------------------------------------------------------------------------------------------------


def test_leakage_of_a_split() -> None:
    rows = [("a", "x", 0), ("a", "y", 1), ("a", "new", 2), ("b", "x", 10), ("b", "y", 11), ("b", "x", 12), ("b", "y", 13)]
    log = log_of([(u, i, START_MS + t * MINUTE_MS) for u, i, t in rows])
    names = found(log)
    assert names["test before training ends"].count == 1 and names["items only in the test"].more == {"events": 1}
    timed = SplitOptions(protocol="timeline", validation_from="60%", test_from="80%")
    assert "test before training ends" not in found(log, split=timed)


def test_a_test_event_at_the_moment_of_the_last_training_event_is_not_before_it() -> None:
    rows = [("a", "x", 0), ("a", "y", 1), ("a", "z", 5), ("b", "x", 3), ("b", "y", 5), ("b", "z", 6), ("b", "x", 7)]
    log = log_of([(u, i, START_MS + t * MINUTE_MS) for u, i, t in rows])
    assert "test before training ends" not in found(log), "a's test and b's last training event are at one moment"
    early = [*rows[:2], ("a", "z", 4), *rows[3:], ("c", "x", -1), ("c", "y", -1), ("c", "z", -1)]
    untimed = log_of([(u, i, -1 if t < 0 else START_MS + t * MINUTE_MS) for u, i, t in early])
    one = found(untimed)["test before training ends"]
    assert (one.count, one.of) == (1, 2) and "without a time, 1, are left out" in one.said


def test_features_of_the_whole_period() -> None:
    log = random_log(1, users=40, items=40, events=2000)
    events = log.events.with_columns(user_events=pl.len().over("user_id"), hour=pl.col("timestamp") % 24)
    items = events.group_by("item_id").agg(shown=pl.len() * 3).with_columns(price=(pl.col("item_id") * 7) % 13)
    one = found(replace(log, events=events, items=items))["features of the whole period"]
    assert [suspect["column"] for suspect in one.examples] == ["shown", "user_events"]


# --- hostile logs ---------------------------------------------------------------------------------------------------------


def one_user() -> EventLog:
    return log_of(visits("a", START_MS, [1000] * 300))


HOSTILE: dict[str, Callable[[], EventLog]] = {
    "one event": lambda: log_of([("a", "x", START_MS)]),
    "one event, a rank": lambda: log_of([("a", "x", 0)], "order"),
    "one user": one_user,
    "one item": lambda: log_of([(n, "x", START_MS + n * 977) for n in range(200)]),
    "one moment": lambda: log_of([(n % 9, n % 7, START_MS) for n in range(500)]),
    "the clock's zero": lambda: log_of([(n % 9, n % 7, 0) for n in range(500)]),
    "no times": lambda: log_of([(n % 9, n % 7, -1) for n in range(500)]),
    "half without times": lambda: log_of([(n % 9, n % 7, -1 if n % 2 else START_MS + n * MINUTE) for n in range(500)]),
    "ranks": lambda: log_of([(n % 9, n % 7, n) for n in range(500)], "order"),
    "ids like markup": lambda: log_of([(f"<b>{n % 9}", f'"><script>{n % 7}', START_MS + n * MINUTE) for n in range(500)]),
    "all faults": lambda: with_faults(small(), FaultOptions(bots=0.1, duplicates=0.3, misclicks=0.3, clock_errors=0.3)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_logs_are_audited(name: str) -> None:
    log = HOSTILE[name]()
    document = audit(log, now=NOW).to_json()
    assert document["shape"]["events"] == log.events.height
    assert "hidden_fault" not in json.dumps(document["findings"]), "labels are not looked at"
    for finding in document["findings"]:
        assert 0 < finding["count"] <= finding["of"] and finding["said"].endswith(".") and finding["cure"].endswith(".")


@given(logs())
def test_any_log_is_audited(log: EventLog) -> None:
    assert isinstance(audit(log, now=NOW), Audit)


def test_labels_change_nothing() -> None:
    log = with_faults(small(), FaultOptions(bots=0.02, duplicates=0.02, seed=2))
    assert audit(log, now=NOW).findings == audit(replace(log, events=log.events.drop(LABEL)), now=NOW).findings


# --- the command ----------------------------------------------------------------------------------------------------------


def test_the_command_that_mends_duplicates_mends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with_faults(small(), FaultOptions(duplicates=0.05)).write("my log.parquet")
    done = CliRunner().invoke(app, ["audit", "my log.parquet", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.output.splitlines()[-1])
    (one,) = [finding for finding in document["findings"] if finding["name"] == "exact duplicates"]
    assert one["count"] == 450 and document["counts"]["serious"] >= 0
    words = shlex.split(one["command"])
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    assert "exact duplicates" not in found(load_log(DataOptions(path="data/mended")))


def test_every_finding_with_a_cure_names_a_command_that_runs(tmp_path: Path) -> None:
    log = with_faults(
        simulate(SimulateOptions(users=150, items=200, events=6000)), FaultOptions(bots=0.03, misclicks=0.03, clock_errors=0.03)
    )
    near = log.events.head(100).with_columns(pl.col("timestamp") + 3000)
    replace(log, events=pl.concat([log.events, near])).write(tmp_path / "log.parquet")
    found = audit(load_log(DataOptions(path=str(tmp_path / "log.parquet"))), data=[str(tmp_path / "log.parquet")])
    commands = {one.name: one.command for one in found.findings if one.command is not None}
    assert {"near duplicates", "users like bots", "suspected mis-clicks", "times out of order"} <= commands.keys()
    for name, command in commands.items():
        if "curate" in command:
            done = CliRunner().invoke(app, [*shlex.split(command)[1:], "--json"])
            assert done.exit_code == 0, done.output
            step = json.loads(done.stdout.splitlines()[-1])["versions"][-1]
            assert step["rows"]["removed"] + step["rows"]["changed"] > 0, f"{name}: {command} mends nothing"


def test_the_commands_of_an_audit_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Duplicates, times of 1970 and strays are mended by one import; the cures stand beside it."""
    monkeypatch.chdir(tmp_path)
    rows = [*steady(60), ("u1", "i1", START_MS + 300 * DAY)]
    rows = [*rows[:5], ("u2", "i3", 0), *rows[5:40], *rows[30:]]
    rows += visits("robot", START_MS + 50 * DAY, [2000] * 200, lambda n: f"i{n % 5}")
    log_of(rows).write("log.parquet")
    done = CliRunner().invoke(app, ["audit", "log.parquet", "--json"])
    findings = json.loads(done.output.splitlines()[-1])["findings"]
    asked = {one["name"]: one for one in findings if one["imports"]}
    assert {"exact duplicates", "impossible times", "strays"} == set(asked)
    commands = [one["command"] for one in findings if one["command"]]
    assert sum("data import" in command for command in commands) == 1
    told = [one["cure"] for one in asked.values() if one["command"] is None]
    assert len(told) == 2 and all("The one import that is named at" in cure for cure in told)
    for command in commands:
        ran = CliRunner().invoke(app, shlex.split(command)[1:])
        assert ran.exit_code == 0, f"{command}: {ran.output} {ran.exception}"
    again = audit(load_log(DataOptions(path="data/mended")), data=["data/mended"], now=NOW)
    assert not set(asked) & {one.name for one in again.findings}


def test_windows_of_several_findings_are_one_and_a_mended_log_goes_elsewhere() -> None:
    one = Finding("a", "fault", "warn", 1, "events", 2, "Said.", "Mended.", imports=("--from", "2020-01-01", "--dedupe"))
    two = replace(one, name="b", imports=("--from", "2020-02-01", "--until", "2021-01-01"))
    first, second = with_one_import([one, two], ["data/mended", "data.time_kind=order"])
    command = (
        "largerec data import data/mended data.time_kind=order --to data/mended-2 --dedupe --from 2020-02-01 --until 2021-01-01"
    )
    assert first.command == command and second.command is None and second.cure.endswith("named at 'a' does so.")
    assert "--to data/mended-4 " in str(with_one_import([one], ["data/mended-3"])[0].command)


def test_the_command_shows_a_table_and_refuses_other_overrides(tmp_path: Path) -> None:
    with_faults(small(), FaultOptions(bots=0.05)).write(tmp_path / "log.csv")
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "log.csv")])
    assert done.exit_code == 0 and "users like bots" in done.output and "serious" in done.output
    refused = CliRunner().invoke(app, ["audit", str(tmp_path / "log.csv"), "model.size=nano"])
    assert isinstance(refused.exception, LargeRecError) and "only data.* and split.*" in str(refused.exception)
    refused = CliRunner().invoke(app, ["audit", str(tmp_path / "log.csv"), "split.positives=value > 3"])
    assert isinstance(refused.exception, LargeRecError) and "looks at all events" in str(refused.exception)


def test_kuairand_has_its_known_repeats(shared_data: Path) -> None:
    log = load_log(DataOptions(path=str(shared_data / "kuairand" / "log_standard_0425_0508.csv.gz")))
    assert found(log)["exact duplicates"].count == 5885
    rows = np.sort(np.random.default_rng(0).choice(log.events.height, 100, replace=False))
    more = replace(log, events=pl.concat([log.events, log.events[rows]]))
    one = found(more)["exact duplicates"]
    assert one.count == 5985 and one.more["identical_in_every_column"] == 5560
