"""Erasure: no file that is left has the person, hashes and marks are new, and a kill in the middle is mended by the same call."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from logs import chain_log, random_log
from runs import tiny_recipe
from typer.testing import CliRunner

from largerec import cures, forgetting, manifest
from largerec.audit import audit
from largerec.cli import app
from largerec.curate import curate, versions
from largerec.curate.plan import plan_from
from largerec.curate.tracing import Named, restore, trace
from largerec.datasets import DataOptions, load_log
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate
from largerec.events import EventLog
from largerec.forgetting import forget
from largerec.imports import import_log
from largerec.report import report
from largerec.report.audit import write
from largerec.sequences import SplitOptions, build_sequences
from largerec.train import train

PERSON = "ann-4711"
PLAN = {
    "step": [
        {"name": "duplicates"},
        {"name": "sessions", "minutes": 300},
        {"name": "core-set", "budget": 0.6, "method": "random"},
        {"name": "k-core", "k": 2},
    ]
}


def peopled() -> EventLog:
    """The chain log, of whose users one has a name that nothing else has, and events that steps remove."""
    log = chain_log(users=25, length=9)
    named = log.events.with_columns(pl.when(pl.col("user_id") == "u7").then(pl.lit(PERSON)).otherwise("user_id").alias("user_id"))
    again = named.filter(pl.col("user_id") == PERSON).head(3)
    return replace(log, events=pl.concat([again, named]))


def files_that_name(folder: Path, person: str) -> list[str]:
    """Files that hold the id as bytes, or in a value of a table."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        held = person.encode() in path.read_bytes()
        if path.suffix == ".parquet":
            texts = [series.cast(pl.String, strict=False) for series in pl.read_parquet(path).get_columns()]
            held |= any(bool(text.str.contains(person, literal=True).any()) for text in texts)
        if held:
            found.append(str(path.relative_to(folder)))
    return found


def workplace(folder: Path) -> dict[str, Any]:
    """An import with a dropped row, versions of it, and two runs, of which one was trained without the person."""
    folder.mkdir()
    log = peopled()
    bad = pl.DataFrame({"user_id": [PERSON, "u3"], "item_id": ["i1", "i1"], "timestamp": ["soon", "later"]})
    pl.concat([log.events.cast(pl.String), bad]).write_csv(folder / "raw.csv")
    import_log(DataOptions(path=str(folder / "raw.csv"), on_bad_rows="drop"), folder / "data" / "import")
    (folder / "raw.csv").unlink()
    found = curate(DataOptions(path=str(folder / "data" / "import")), plan_from(PLAN))
    restore(found["log"], Named(user_id=PERSON))
    for name, where in (("with", "item_id <> ''"), ("without", f"user_id <> '{PERSON}'")):
        path = f"data.path={Path(found['dir']) / found['versions'][0]['version']}"
        recipe = tiny_recipe(folder / "runs" / name, path, f"data.where={where}", "split.protocol=given", "train.max_epochs=1")
        train(recipe, quiet=True)
        evaluate(folder / "runs" / name)
    report([folder / "runs" / "with"])
    report([folder / "runs" / "without"])
    report([folder / "runs" / "without", folder / "runs" / "with"])
    for name in (
        "recipe.json",
        "lineage.json",
        "report.html",
    ):  # the condition itself named the person, which is for people to mend
        file = folder / "runs" / "without" / name
        file.write_text(file.read_text().replace(PERSON, "someone"))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("erasure") / "place"
    return folder, workplace(folder)


@pytest.fixture
def place(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "place"))


def test_nothing_that_is_left_has_the_person(place: Path) -> None:
    before = files_that_name(place, PERSON)
    assert {path.split("/")[-1] for path in before} >= {
        "events.parquet", "removed.parquet", "changed.parquet", "dropped.jsonl", "histories.parquet", "ranks-test.parquet",
    }  # fmt: skip
    assert (place / "runs" / "with" / "report.html").is_file() and (place / "runs" / "report.html").is_file()
    (place / "runs" / "mine.html").write_text("<p>nobody</p>")
    others = {path: pl.read_parquet(path) for path in place.rglob("events.parquet")}
    found = forget(place / "data", PERSON, place / "runs")
    assert files_that_name(place, PERSON) == []
    assert not list(place.rglob(".*")), "nothing stands beside"
    assert len(found["folders"]) == 7 and found["still_named_in"] == []
    assert found["pages"] == [str(place.resolve() / "runs" / "report.html")] and not Path(found["pages"][0]).exists()
    assert (place / "runs" / "without" / "report.html").is_file() and (place / "runs" / "mine.html").is_file()
    for path, events in others.items():
        rest = events.filter(~pl.col("user_id").str.starts_with(PERSON))
        assert pl.read_parquet(path).equals(rest) and rest.height < events.height, "all others are as they were"
    for one in found["folders"]:
        folder = Path(one["folder"])
        manifest.verify(folder)
        document = manifest.read(folder)
        assert document is not None and document["content"] == one["content"] != one["content_before"]
        assert [(line["rows"], line["content_before"]) for line in document["forgotten"]] == [
            (one["rows"], one["content_before"])
        ]
        if document["kind"] == "version" and (parent := document["version"]["parent"]):
            assert parent["content"] == (manifest.read(folder.parent / parent["name"]) or {})["content"], "the chain holds"
    with pytest.raises(LargeRecError, match="no row of user"):
        forget(place / "data", PERSON, place / "runs")


def test_versions_are_read_traced_and_restored_after_it(place: Path, made: tuple[Path, dict[str, Any]]) -> None:
    forget(place / "data", PERSON)
    last = place / Path(made[1]["log"]).relative_to(made[0])
    build_sequences(load_log(DataOptions(path=str(last))), SplitOptions(protocol="given"))
    assert trace(last, Named(user_id="u3"))["rows"] > 0
    with pytest.raises(LargeRecError, match="has user_id"):
        trace(last, Named(user_id=PERSON))
    back = versions.read(Path(restore(last, Named(everything=True))["dir"]))
    assert back.log.events.equals(versions.read(last.parent / made[1]["versions"][0]["version"]).log.events)
    again = curate(DataOptions(path=str(place / "data" / "import")), plan_from(PLAN))
    assert not any(one["reused"] for one in again["versions"]), "another log, other versions"
    assert again["versions"][0]["events"] == back.log.events.height


def test_runs_that_learned_from_the_person_are_marked_and_warn(place: Path) -> None:
    run = place / "runs" / "with"
    ranks, baselines = (pl.read_parquet(run / f"ranks-{name}.parquet") for name in ("test", "baselines"))
    found = {Path(one["run"]).name: one for one in forget(place / "data", PERSON, place / "runs")["runs"]}
    assert found.keys() == {"with"} and found["with"]["trained_on"]
    marks = json.loads((run / "forgotten.json").read_text())
    assert marks == [{"when": marks[0]["when"], "rows": 12, "data_hash": found["with"]["data_hash_before"]}]
    assert not (run / "report.html").exists() and not (place / "runs" / "without" / "forgotten.json").exists()
    assert pl.read_parquet(run / "ranks-baselines.parquet").equals(baselines.filter(ranks["user_id"] != PERSON))
    with pytest.warns(UserWarning, match="was trained on a person who was to be forgotten since"):
        engine = load(run)
    with pytest.raises(LargeRecError, match=PERSON):
        engine.recommend(users=[PERSON])
    with pytest.warns(UserWarning, match="to be forgotten"):
        result = evaluate(run)
    assert result["targets"]["users"] == 24
    load(place / "runs" / "without").recommend(users=["u3"])


def test_tables_that_name_nobody_lose_the_same_rows(place: Path) -> None:
    run = place / "runs" / "with"
    histories = pl.read_parquet(run / "histories.parquet")
    users = histories["user_id"].unique(maintain_order=True)
    pl.DataFrame({"device": histories["user_id"] + histories["item_id"]}).write_parquet(run / "features-context.parquet")
    pl.DataFrame({"country": users}).write_parquet(run / "features-user.parquet")
    forget(place / "data", PERSON, place / "runs")
    left = pl.read_parquet(run / "histories.parquet")
    assert pl.read_parquet(run / "features-context.parquet")["device"].to_list() == (left["user_id"] + left["item_id"]).to_list()
    assert pl.read_parquet(run / "features-user.parquet")["country"].to_list() == [user for user in users if user != PERSON]


def test_a_run_without_histories_is_known_by_its_data_hash(place: Path) -> None:
    shutil.copytree(place / "runs" / "with", place / "runs" / "bare")
    (place / "runs" / "bare" / "histories.parquet").unlink()
    found = {Path(one["run"]).name: one for one in forget(place / "data", PERSON, place / "runs")["runs"]}
    assert found["bare"]["trained_on"] and (place / "runs" / "bare" / "forgotten.json").is_file()


def test_a_run_that_is_known_by_its_hash_alone_is_marked_though_the_first_call_was_killed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "runs" / "with", place / "runs" / "z-bare")
    (place / "runs" / "z-bare" / "histories.parquet").unlink()
    plain, done = forgetting._forget_in_tables, list[str]()

    def dying(bundle: Any, ids: Any) -> None:
        plain(bundle, ids)
        done.append(bundle.path.name)
        if bundle.path.name == "with":  # after this nothing tells the hash of the other one
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_forget_in_tables", dying)
        with pytest.raises(KeyboardInterrupt):
            forget(place / "data", PERSON, place / "runs")
    forget(place / "data", PERSON, place / "runs")
    assert (place / "runs" / "z-bare" / "forgotten.json").is_file()


def test_a_run_on_sessions_loses_the_person_under_every_id(place: Path) -> None:
    sessions = next((place / "data").rglob("02-sessions-*"))
    recipe = tiny_recipe(place / "runs" / "cut", f"data.path={sessions}", "split.protocol=given", "train.max_epochs=1")
    train(recipe, quiet=True)
    assert pl.read_parquet(place / "runs" / "cut" / "histories.parquet")["user_id"].str.starts_with(f"{PERSON}~").any()
    forget(place / "data", PERSON, place / "runs")
    assert files_that_name(place, PERSON) == []


def test_what_else_stands_in_a_folder_stays(place: Path) -> None:
    own = place / "data" / "import"
    (own / "notes.txt").write_text("mine")
    shutil.move(next((place / "data").glob("*.versions")), own / "versions")
    inside = sorted(path.relative_to(own) for path in own.rglob("*"))
    found = forget(own, PERSON)
    assert sorted(path.relative_to(own) for path in own.rglob("*")) == inside and len(found["folders"]) == 7
    assert (own / "notes.txt").read_text() == "mine" and files_that_name(own, PERSON) == []


def test_a_folder_that_a_kill_left_under_its_other_name_is_found(place: Path) -> None:
    own = place / "data" / "import"
    left = own.with_name(".import.1.largerec-old")
    own.rename(left)
    assert len(forget(own, PERSON)["folders"]) == 1
    assert files_that_name(own, PERSON) == [] and not left.exists()


def test_a_hidden_folder_of_someone_else_stays(place: Path) -> None:
    for name in (".photos.2024.old", ".import.2024.new"):
        (place / "data" / name).mkdir()
        (place / "data" / name / "mine.txt").write_text("mine")
    forget(place / "data", PERSON)
    assert all((place / "data" / name / "mine.txt").exists() for name in (".photos.2024.old", ".import.2024.new"))


def test_dropped_rows_may_hold_any_character(place: Path) -> None:
    file = place / "data" / "import" / "dropped.jsonl"
    line = json.dumps({"content": {"user_id": "u3", "item_id": "a\u2028b\x85c"}}, ensure_ascii=False) + "\n"
    file.write_text(file.read_text(encoding="utf-8") + line, encoding="utf-8")
    forget(place / "data", PERSON)
    assert file.read_text(encoding="utf-8").endswith(line) and PERSON not in file.read_text(encoding="utf-8")


def test_rows_that_a_step_made_go_and_are_counted(tmp_path: Path) -> None:
    chain_log(users=12, length=9).write(tmp_path / "log.parquet")
    assert cures.STEPS, "plans know the steps that train"
    learner = {"width": 8, "heads": 1, "tokens": 100, "epochs": 1}
    plan = plan_from(
        {"step": [{"name": "recency", "half_life_days": 1}, {"name": "regenerate", "styles": 2, "learner": learner}]}
    )
    last = Path(curate(DataOptions(path=str(tmp_path / "log.parquet")), plan)["log"])
    events = pl.read_parquet(last / "events.parquet")
    made = events["source_row"].null_count()
    back = versions.read(Path(restore(last, Named(user_id="u3"))["dir"])).log.events
    assert back.drop("train_weight").equals(events.drop("train_weight")), "made rows keep their place behind the others"
    shutil.rmtree(next(last.parent.glob("*-restore-*")))
    found = {Path(one["folder"]).name: one["rows"] for one in forget(last.parent, "u3")["folders"]}
    assert found[last.name] == 9 + made > 9
    left = pl.read_parquet(last / "events.parquet")
    assert left.height == 11 * 9 and left["source_row"].null_count() == 0


@pytest.mark.parametrize("after", range(0, 15, 2))
def test_a_kill_in_the_middle_is_mended_by_the_same_call(place: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renames and removals are where the state changes; the process dies at one of them."""
    calls = [0]

    def dying(original: Any) -> Any:
        def step(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] > after:
                raise KeyboardInterrupt
            return original(*arguments, **named)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(forgetting.shutil, "rmtree", dying(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            forget(place / "data", PERSON, place / "runs")
    forget(place / "data", PERSON, place / "runs")
    assert files_that_name(place, PERSON) == [] and not list((place / "data").rglob(".*"))
    for path in (place / "data").rglob("manifest.json"):
        manifest.verify(path.parent)


def test_runs_are_told_from_wherever_the_call_comes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run says what it was trained on as it was written where training ran."""
    sessions = next((place / "data").rglob("02-sessions-*"))
    recipe = tiny_recipe(place / "runs" / "cut", f"data.path={sessions}", "split.protocol=given", "train.max_epochs=1")
    train(recipe, quiet=True)
    file = place / "runs" / "cut" / "lineage.json"
    lineage = json.loads(file.read_text())
    file.write_text(json.dumps(lineage | {"source": str(sessions.relative_to(place))}))
    other = {sessions.resolve(): {"204", "205"}}
    monkeypatch.chdir(place.parent)
    assert {"204", "205"} <= forgetting._ids_in(place / "runs" / "cut", PERSON, other)


def test_what_a_kill_left_of_a_run_goes_too_and_links_are_named(place: Path) -> None:
    """Histories without a lineage, and tables half-written; what a link leads to is not looked into, and that is said."""
    runs = place / "runs"
    (runs / "begun").mkdir()
    shutil.copy(runs / "with" / "histories.parquet", runs / "begun" / "histories.parquet")
    shutil.copy(runs / "with" / "ranks-test.parquet", runs / "with" / ".ranks-test.parquet.30516.partial")
    (runs / "linked").symlink_to(place.parent, target_is_directory=True)
    found = forget(place / "data", PERSON, runs)
    assert files_that_name(place / "runs" / "begun", PERSON) == [] and files_that_name(place / "runs" / "with", PERSON) == []
    assert not (runs / "with" / ".ranks-test.parquet.30516.partial").exists()
    assert [Path(one).name for one in found["links_not_followed"]] == ["linked"]
    assert {Path(one["run"]).name: one["trained_on"] for one in found["runs"]}["begun"] is False


def test_dropped_rows_go_by_their_user_alone(tmp_path: Path) -> None:
    """An item of the same number is someone else's event; a raw line has quotes twice."""
    rows = "".join(f"{user},7,{'soon' if user % 2 else user}\n" for user in range(100, 112))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows)
    import_log(DataOptions(path=str(tmp_path / "log.csv"), on_bad_rows="drop", time_kind="order"), tmp_path / "data")
    with pytest.raises(LargeRecError, match="no row of user '7'"):
        forget(tmp_path / "data", "7")
    dropped = (tmp_path / "data" / "dropped.jsonl").read_text().splitlines()
    forget(tmp_path / "data", "101")
    assert len((tmp_path / "data" / "dropped.jsonl").read_text().splitlines()) == len(dropped) - 1 == 5
    line = json.dumps({"content": '"O""Brien, ""Pat""",i3'})
    assert forgetting._names(line, 'O"Brien, "Pat"', {}) and not forgetting._names(line, "Brien-Pat", {})


def test_numbers_are_ids_too_and_recbole_files(tmp_path: Path) -> None:
    random_log().write(tmp_path / "log.parquet")
    for target in ("parquet", "recbole"):
        import_log(DataOptions(path=str(tmp_path / "log.parquet")), tmp_path / "data" / target, target=target)  # type: ignore[arg-type]
    forget(tmp_path / "data", "7")
    for target in ("parquet", "recbole"):
        events = load_log(DataOptions(path=str(tmp_path / "data" / target))).events
        assert 7 not in events["user_id"] and events["user_id"].n_unique() == 11


@pytest.mark.parametrize("target", ["parquet", "recbole"])
def test_audits_go_since_their_examples_are_events(tmp_path: Path, target: Any) -> None:
    """Also where the id is a number, which means anything in a page, and only if the person is in the log."""
    random_log().write(tmp_path / "log.parquet")
    import_log(DataOptions(path=str(tmp_path / "log.parquet")), tmp_path / "data" / "import", target=target)
    found = audit(load_log(DataOptions(path=str(tmp_path / "log.parquet")))).to_json()
    written = [write(found, tmp_path / place) for place in ("data", "data/import/looked", "runs/audit")]
    audits = {str(Path(path).resolve()) for one in written for path in one.values()}
    (tmp_path / "runs" / "mine.json").write_text('{"findings": []}')
    (tmp_path / "runs" / "broken.json").write_text('{"findings": [')
    with pytest.raises(LargeRecError, match="no row of user"):
        forget(tmp_path / "data", "4711", tmp_path / "runs")
    assert all(Path(path).is_file() for path in audits)
    assert set(forget(tmp_path / "data", "7", tmp_path / "runs")["pages"]) == audits
    assert not any(Path(path).exists() for path in audits)
    assert (tmp_path / "runs" / "mine.json").is_file() and (tmp_path / "runs" / "broken.json").is_file()


def test_the_only_user_may_go(tmp_path: Path) -> None:
    chain_log(users=1).write(tmp_path / "log.parquet")
    found = curate(DataOptions(path=str(tmp_path / "log.parquet")), plan_from({"step": [{"name": "duplicates"}]}))
    forget(found["dir"], "u0")
    assert pl.read_parquet(Path(found["log"]) / "events.parquet").height == 0


def test_ids_are_found_as_pages_and_json_write_them(tmp_path: Path) -> None:
    person = "a<b>&ö"
    (tmp_path / "page.html").write_text("<td>a&lt;b&gt;&amp;ö</td>")
    (tmp_path / "document.json").write_text(json.dumps({"user": person}))
    (tmp_path / "other.html").write_text("<td>a&lt;b&gt;&amp;</td>")
    assert [path.name for path in forgetting._naming(tmp_path, person)] == ["document.json", "page.html"]


def test_refusals_and_the_command(place: Path, tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match="there is no such folder"):
        forget(tmp_path / "none", PERSON)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LargeRecError, match="there is no import and no version"):
        forget(tmp_path / "empty", PERSON)
    done = CliRunner().invoke(app, ["data", "forget", str(place / "data"), "--user-id", PERSON, "--runs", str(place / "runs")])
    assert done.exit_code == 0, done.output
    assert "rows erased" in done.output and "marked: trained on them" in done.output
    assert "runs/report.html: removed" in done.output
