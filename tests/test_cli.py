"""The command: its verbs, its JSON, and that a mistake is one clear message with exit code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch
from runs import copy_of_run, trained_run, write_tiny

from largerec import cli, cli_data
from largerec.engine import load
from largerec.simulate import SimulateOptions, simulate

VERBS = ("run", "train", "evaluate", "recommend", "report", "data", "estimate", "bench", "doctor")


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The last line of standard output as JSON."""
        assert self.code == 0, self.err
        return json.loads(self.out.splitlines()[-1])


Command = Callable[..., Said]


@pytest.fixture
def largerec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call the command in this process."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["largerec", *map(str, arguments)])
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        assert code is None or isinstance(code, int)
        return Said(code or 0, said.out, said.err)

    return call


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.toml")


# --- help -----------------------------------------------------------------------------------------------------------------


def test_help_lists_the_verbs() -> None:
    """As a user starts it, in a process of its own."""
    command = Path(sys.executable).with_name("largerec")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True, timeout=60)
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout, verb
    assert done.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(largerec: Command, verb: str) -> None:
    said = largerec(verb, "--help")
    assert said.code == 0
    assert re.match(rf"Usage: .*largerec {verb}\b", said.out)
    if verb not in ("data", "bench"):
        assert "--json" in said.out


def test_no_verb_and_a_wrong_verb(largerec: Command) -> None:
    assert "Usage: " in largerec().out + largerec().err
    said = largerec("trian")
    assert said.code == 2 and "trian" in said.err
    assert "Traceback" not in said.err


# --- the verbs ------------------------------------------------------------------------------------------------------------


def test_train_evaluate_recommend(largerec: Command, recipe: Path, tmp_path: Path) -> None:
    """The path of a user, stage by stage, for people and for programs."""
    run = tmp_path / "runs" / "mine"
    said = largerec("train", recipe, f"run.dir={run}", "train.max_epochs=2")
    assert said.code == 0
    assert f"Next: largerec evaluate {run}" in said.out.replace("\n", "")
    assert "validation (seen items masked): recall@10 ." in said.out
    assert "epoch   1" in said.err and "epoch" not in said.out, "progress belongs to standard error"
    said = largerec("evaluate", run)
    for words in ("leave-one-out test, 80 targets", "popularity", "hstu", "head", "Test evaluations of this run: 1"):
        assert words in " ".join(said.out.split())
    result = largerec("evaluate", run, "--json").document
    assert result == json.loads((run / "result.json").read_text())
    assert result["n_test_evaluations"] == 2
    said = largerec("recommend", run, "--user-id", "u01", "-k", "3")
    best = load(run).recommend(["u01"], 3)
    assert all(item in said.out for item in best["item_id"])
    assert "title" in said.out and "rank" in said.out


def test_train_as_json(largerec: Command, recipe: Path, tmp_path: Path) -> None:
    said = largerec("train", recipe, f"run.dir={tmp_path / 'run'}", "train.max_steps=2", "--json")
    assert said.document["steps"] == 2
    assert len(said.out.splitlines()) == 1
    assert said.document == json.loads((tmp_path / "run" / "result.json").read_text())


def test_run(largerec: Command, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = largerec("run", recipe, f"run.dir={run}", "train.max_epochs=1", "run.compare=['sasrec']")
    assert said.code == 0
    shown = " ".join(said.out.split())
    for words in (
        "last in the history",
        "recommended, best first",
        "popularity",
        "sasrec",
        "hstu",
        "best possible",
        "hstu reaches",
        "Files: ",
        "Report: ",
    ):
        assert words in shown
    again = largerec("run", recipe, f"run.dir={run}", "train.max_epochs=1", "run.compare=['sasrec']")
    assert again.code == 2 and "holds a finished run" in again.err
    found = largerec("run", recipe, f"run.dir={run}", "train.max_epochs=1", "run.overwrite=true", "--json").document
    assert found.keys() == {"rows", "examples", "dir", "result", "report"}
    assert Path(found["report"]).is_file()
    assert [row["name"] for row in found["rows"]][-2:] == ["hstu", "best possible"]
    assert len(found["examples"]) == 3 and len(found["examples"][0]["recommendations"]) == 10
    assert found["examples"][0]["history"][0].keys() == {"item_id", "title"}
    assert not (run / "compare").exists()


def test_evaluate_options_and_a_paired_test(largerec: Command, recipe: Path, tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    other = tmp_path / "other"
    assert largerec("run", recipe, f"run.dir={other}", "seed=1", "train.max_epochs=1").code == 0
    said = largerec("evaluate", run, "evaluate.k=[10]", "--against", other)
    assert "recall@10 minus" in said.out and ", p = " in said.out.replace("\n", " ")
    result = largerec("evaluate", run, "evaluate.k=[3]", "--against", other, "--json").document
    assert "recall@3" in result["test"] and "recall@10" not in result["test"]
    assert result["paired"]["against"] == str(other)
    assert result["paired"]["recall@3"].keys() == {"difference", "low", "high", "p_value"}
    itself = largerec("evaluate", run, "--against", run, "--json").document["paired"]
    assert {test["p_value"] for name, test in itself.items() if name != "against"} == {1.0}
    assert "paired" not in json.loads((run / "result.json").read_text())


def test_a_mistaken_paired_test_costs_no_look_at_the_test(largerec: Command, tmp_path: Path) -> None:
    run, other, ranker = (copy_of_run(tmp_path / name) for name in ("run", "other", "ranker"))
    table = pl.read_parquet(other / "ranks-test.parquet")
    table.head(table.height - 1).write_parquet(other / "ranks-test.parquet")
    document = json.loads((ranker / "recipe.json").read_text())
    document["recipe"] |= {"model": {"name": "din"}, "tasks": {"yes": {"where": "1 = 1"}}, "ranking": {"retrieval": 0}}
    document["recipe"]["batch"]["actions"], document["recipe"]["train"]["metric"] = "interleaved", "yes.auc"
    del document["recipe"]["objective"]
    (ranker / "recipe.json").write_text(json.dumps(document))
    (ranker / "ranks-test.parquet").unlink()
    looks = [json.loads((one / "result.json").read_text())["n_test_evaluations"] for one in (run, ranker)]
    for first, second, words in (
        (run, other, "were not evaluated on the same targets"),
        (run, ranker, "is a din, which only ranks given items"),
        (ranker, run, "is a din, which only ranks given items"),
        (ranker, ranker, "is a din, which only ranks given items"),
    ):
        said = largerec("evaluate", first, "--against", second)
        assert said.code == 2 and words in said.err, said.err
    said = largerec("evaluate", run, "evaluate.conditioned=5")
    assert said.code == 2 and "evaluate.conditioned=5 measures retrieval conditioned on a task" in said.err
    assert [json.loads((one / "result.json").read_text())["n_test_evaluations"] for one in (run, ranker)] == looks


def test_recommend_as_json(largerec: Command) -> None:
    run, engine = trained_run(), load(trained_run())
    found = largerec("recommend", run, "--user-id", "u01", "--user-id", "u02", "-k", "3", "--json").document
    assert [row["user_id"] for row in found] == ["u01"] * 3 + ["u02"] * 3
    assert found == engine.recommend(["u01", "u02"], 3).to_dicts()
    found = largerec("recommend", run, "--history", "i01, i02", "-k", "4", "--json").document
    both = largerec("recommend", run, "--history", "i05", "--history", "i01, i02", "-k", "4", "--json").document
    assert len(both) == 8 and [row["item_id"] for row in both[4:]] == [row["item_id"] for row in found]
    assert found == engine.recommend(histories=[["i01", "i02"]], k=4).to_dicts()
    assert [row["rank"] for row in found] == [1, 2, 3, 4]


def test_report(largerec: Command, tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    said = largerec("report", run)
    assert f"Report: {run}/report.html" in said.out and "80 test targets of 80 users" in " ".join(said.out.split())
    found = largerec("report", run, copy_of_run(tmp_path / "other", "seed=1"), "--to", tmp_path / "both.html", "--json").document
    assert found["report"] == str(tmp_path / "both.html") and [one["dir"] for one in found["runs"]] == [
        str(run),
        str(tmp_path / "other"),
    ]
    assert (tmp_path / "both.html").stat().st_size == found["bytes"]


def test_ids_that_are_numbers(largerec: Command, recipe: Path, tmp_path: Path) -> None:
    events = simulate(SimulateOptions(users=40, items=60, events=400, categories=2)).events
    numbers = events.with_columns(pl.col("user_id", "item_id").str.slice(1).cast(pl.Int64)).rename({"timestamp": "ts"})
    numbers.write_csv(tmp_path / "log.csv")
    run = tmp_path / "run"
    assert largerec("train", recipe, f"data.path={tmp_path / 'log.csv'}", f"run.dir={run}", "train.max_steps=2").code == 0
    (first,) = largerec("recommend", run, "--user-id", "7", "-k", "1", "--json").document
    assert first["user_id"] == 7 and isinstance(first["item_id"], int) and "title" not in first
    assert largerec("recommend", run, "--history", "5,6", "-k", "2", "--json").document[0]["item_id"] not in (5, 6)
    said = largerec("recommend", run, "--history", "five")
    assert said.code == 2 and said.err.startswith("error: item 'five' is no Int64")


def test_data_describe(largerec: Command, tmp_path: Path) -> None:
    log = simulate(SimulateOptions(users=40, items=60, events=400, categories=2))
    log.write(tmp_path / "log.parquet")
    found = largerec("data", "describe", tmp_path / "log.parquet", "--json").document
    assert (found["users"], found["events"]) == (40, log.events.height)
    assert {"items", "density", "time", "history_length", "popularity", "notes"} <= found.keys()
    said = largerec("data", "describe", tmp_path / "log.parquet")
    assert "Event log" in said.out and "history length.p50" in said.out and "note: " in said.out
    log.events.rename({"user_id": "client"}).write_parquet(tmp_path / "odd.parquet")
    assert "error: " in largerec("data", "describe", tmp_path / "odd.parquet", "data.columns.user=clint").err
    assert largerec("data", "describe", tmp_path / "odd.parquet", "data.columns.user=client", "--json").document["users"] == 40


def test_estimate(largerec: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = largerec("estimate", recipe, "--json").document
    assert found.keys() == {
        *(
            "name",
            "model",
            "users",
            "items",
            "params",
            "params_non_embedding",
            "params_embedding",
            "memory_weights_mb",
            "device",
            "memory_peak_mb",
            "flops_per_token",
            "flops_per_request",
            "flops_per_request_with_state",
        ),
        *("tokens_per_second", "tokens_per_epoch", "seconds_per_epoch", "planned_steps", "seconds_at_most"),
        "core_hours_at_most",
    }
    trained = json.loads((trained_run() / "result.json").read_text())
    assert (found["params"], found["users"], found["items"]) == (trained["params"], 80, 60)
    assert found["planned_steps"] == trained["steps"]
    assert found["flops_per_token"] * trained["train_tokens"] == pytest.approx(trained["train_flops"])
    assert found["tokens_per_second"] > 0 and found["params_embedding"] == found["params"] - found["params_non_embedding"]
    assert found["flops_per_request_with_state"] < found["flops_per_request"]
    assert found["memory_weights_mb"] == round(16 * found["params"] / 1e6, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.toml"], "it leaves nothing behind"
    said = largerec("estimate", recipe, "batch.tokens=100000")  # one batch an epoch
    assert said.code == 0 and "tokens per second" in said.out


def test_bench_train(largerec: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = largerec("bench", "train", recipe, "train.precision=bf16", "--steps", 3, "--warmup", 1, "--json").document
    low, high = found["tokens_per_s_quartiles"]
    assert 0 < low <= found["tokens_per_s"] <= high
    assert list(found["seconds_by_part"]) == ["data", "forward", "loss", "backward", "optimizer"]
    assert all(seconds >= 0 for seconds in found["seconds_by_part"].values())
    assert (found["precision"], found["threads"]) == ("bf16", torch.get_num_threads())
    assert found["gflops_done"] > 0 and found["gflops_of_matrix_products"] > 0
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.toml"], "it leaves nothing behind"
    said = largerec("bench", "train", recipe, "--steps", 2)
    assert said.code == 0 and "seconds by part.backward" in said.out and "kernels" in said.out


def test_doctor(largerec: Command) -> None:
    found = largerec("doctor", "--json").document
    assert found["status"] in ("ok", "warn", "fail")
    assert {"python", "torch", "memory"} <= {finding["name"] for finding in found["findings"]}
    said = largerec("doctor")
    assert said.code == 0 and "largerec doctor" in said.out


def test_each_verb_is_a_function_of_its_name() -> None:
    for verb in ("run", "train", "evaluate", "recommend", "report", "estimate", "bench_train", "doctor"):
        assert callable(getattr(cli, verb)), verb
    for verb in ("data_describe", "data_import", "data_list", "data_fetch"):
        assert callable(getattr(cli_data, verb)), verb


# --- mistakes -------------------------------------------------------------------------------------------------------------

MISTAKES = [
    (["train", "nowhere.toml"], "there is no recipe 'nowhere.toml'"),
    (["train", "{recipe}", "model.droput=0.3"], "unknown option 'droput' in HSTUOptions; did you mean 'dropout'?"),
    (["train", "{recipe}", "train.max_epochs=none"], "train.max_epochs"),
    (["train", "{recipe}", "data.path"], "'data.path' is no override; write key=value"),
    (["train", "{recipe}", "data.path=nowhere.csv"], "data.path=nowhere.csv: there is no such file or folder"),
    (["train", "{recipe}", "run.dir={run}"], "holds a finished run. Pass run.overwrite=true"),
    (["train", "{recipe}", "run.dir={recipe}"], "cannot be made"),
    (["train", "{recipe}", "run.dir={folder}/new", "optim.warmup_steps=0", "optim.learning_rate=1e30"], "training diverged"),
    (["train", "{recipe}", "run.dir={folder}/new", "split.protocol=timeline"], "needs split.validation_from"),
    (["train", "{recipe}", "data.simulate.items=10000000"], "data.simulate.items"),
    (["run", "{recipe}", "run.compare=['sarsec']"], "unknown model family 'sarsec'; did you mean 'sasrec'?"),
    (["estimate", "{recipe}", "model.size=huge"], "model.size: Input should be 'nano'"),
    (["evaluate", "nowhere"], "there is no run 'nowhere'"),
    (["evaluate", "{folder}"], "is not a LargeRec run: it has no recipe.json"),
    (["evaluate", "{run}", "evaluate.k=[5, 5]"], "evaluate.k"),
    (["evaluate", "{run}", "evaluate.cutoffs=[5]"], "unknown option 'cutoffs'"),
    (["evaluate", "{run}", "model.size=base"], "'model.size=base' cannot change a trained run; only evaluate.* may be set"),
    (["evaluate", "{run}", "k"], "'k' is no override"),
    (["evaluate", "{run}", "--against", "nowhere"], "there is no run 'nowhere'"),
    (["evaluate", "{run}", "--against", "{folder}"], "is not a LargeRec run"),
    (["recommend", "{run}"], "give either users=[...] or histories="),
    (["recommend", "{run}", "--user-id", "u01", "--history", "i01"], "give either users=[...] or histories="),
    (["recommend", "{run}", "--user-id", "nobody"], "user 'nobody' is not in this run's log"),
    (["recommend", "{run}", "--history", "i01,nothing"], "item 'nothing' is not in the catalogue of 60 items"),
    (["recommend", "{run}", "--user-id", "u01", "-k", "0"], "k=0 is too small"),
    (["recommend", "{folder}", "--user-id", "u01"], "is not a LargeRec run"),
    (["report", "nowhere"], "there is no run 'nowhere'"),
    (["report", "{run}", "{run}"], "is named twice"),
    (["report", "{run}", "--to", "{folder}"], "is a folder; name a file in it"),
    (["report", "{run}", "--to", "{run}/recipe.json"], "is a file that is no page"),
    (["train", "{recipe}", "seed=99999999999999999999999"], "less than or equal to 1000000000000000000"),
    (["train", "{recipe}/x"], "is no TOML recipe: [Errno 20] Not a directory"),
    (["train", "{long}"], "is no TOML recipe: [Errno 36] File name too long"),
    (["evaluate", "{long}"], "there is no run"),
    (["data", "describe", "~nosuchuser/x"], "data.path '~nosuchuser/x': there is no such user's home here"),
    (
        ["data", "import", "{run}/histories.parquet", "--to", "~nosuchuser/x"],
        "--to '~nosuchuser/x': there is no such user's home",
    ),
    (["data", "fetch", "ml-1m", "--from", "~nosuchuser/x"], "--from '~nosuchuser/x': there is no such user's home"),
    (["curate", "~nosuchuser/x"], "there is no such user's home here"),
    (["data", "trace", "~nosuchuser/x", "--row", "1"], "there is no such user's home here"),
    (["data", "describe", "nowhere.csv"], "nowhere.csv: there is no such file or folder"),
    (["data", "describe", "{recipe}"], "tiny.toml"),
    (["data", "describe", "{folder}"], "no file of events is recognised"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[f"{a[0]}-{i}" for i, (a, _) in enumerate(MISTAKES)])
def test_a_mistake_is_one_clear_message(
    largerec: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"recipe": recipe, "run": trained_run(), "folder": tmp_path, "long": "x" * 400}
    before = json.loads((trained_run() / "result.json").read_text())["n_test_evaluations"]
    said = largerec(*(argument.format(**places) for argument in arguments))
    assert said.code == 2
    assert said.out == ""
    error = next(line for line in said.err.splitlines() if line.startswith("error: "))
    assert message in said.err[said.err.index(error) :]
    assert "Traceback" not in said.err
    assert json.loads((trained_run() / "result.json").read_text())["n_test_evaluations"] == before


def test_what_is_missing_from_a_verb_is_said(largerec: Command) -> None:
    said = largerec("train")
    assert said.code == 2 and "RECIPE" in said.err and "Traceback" not in said.err


def test_an_interruption_ends_with_130(largerec: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("largerec.train.train", interrupt)
    said = largerec("train", recipe, f"run.dir={tmp_path / 'run'}")
    assert said.code == 130
    assert "interrupted; a run keeps its state, and the same command goes on from there" in said.err


def test_the_command_is_also_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "largerec.cli", "train", "nowhere.toml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no recipe 'nowhere.toml'")
