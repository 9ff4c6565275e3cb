"""Several recipes side by side: what may stand in one table, what is made again, and that the table says what the runs say."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from runs import TINY, log_lines, start_child, tiny_recipe
from typer.testing import CliRunner

from largerec import compare as module
from largerec import metrics
from largerec.bundle import Bundle
from largerec.cli import app
from largerec.compare import compare, from_arguments
from largerec.errors import LargeRecError
from largerec.evaluate import compare_runs, evaluate
from largerec.experiments import placed
from largerec.recipe import Recipe, apply_overrides, load_recipe, recipe_from
from largerec.train import train
from largerec.tune import Tuned, with_settings

QUICK = ["train.max_steps=6", "train.evaluate_every=3"]


def recipe_files(folder: Path) -> list[str]:
    """Two recipes that differ in their model, under their own names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.toml").write_text(TINY.replace('"tiny"', '"a"'), encoding="utf-8")
    plain = TINY.replace('"tiny"', '"b"').replace('name = "hstu"', 'name = "sasrec"')
    (folder / "b.toml").write_text(plain, encoding="utf-8")
    return [str(folder / "a.toml"), str(folder / "b.toml")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two recipes with two seeds: look, do not touch."""
    folder = tmp_path_factory.mktemp("compare")
    from_arguments([*recipe_files(folder), *QUICK, f"run.dir={folder / 'runs'}"], "2", quiet=True)
    return folder


def copy(place: Path, to: Path) -> list[str]:
    """A copy that a test may change; returns the arguments that made it, for there."""
    shutil.copytree(place, to)
    return [str(to / "a.toml"), str(to / "b.toml"), *QUICK, f"run.dir={to / 'runs'}"]


def document(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "runs" / "compare.json").read_text())
    return found


def rows_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found["rows"]}


def test_the_rows_are_the_means_of_the_runs(place: Path) -> None:
    rows = rows_of(document(place))
    assert {"popularity", "a", "b", "best possible"} <= rows.keys()
    for name in ("a", "b"):
        results = [json.loads((place / "runs" / name / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)]
        row = rows[name]
        assert row["seeds"] == [result["seed"] for result in results] == [0, 1]
        for part in ("validation", "test", "test_unmasked"):
            for metric, value in row[part].items():
                assert value == pytest.approx(mean(result[part][metric] for result in results), abs=1e-15)
        spread = stdev(result["test"]["ndcg@10"] for result in results)
        assert row["test_spread"]["ndcg@10"] == pytest.approx(spread) and spread > 0
        assert row["n_test_evaluations"] == [1, 1]
        assert row["params"] == results[0]["params"] == row["params_embedding"] + row["params_non_embedding"]
        assert row["train_flops"] == mean(result["train_flops"] for result in results) > 0
        assert row["recommend_ms"] > 0
        low, high = row["intervals"]["ndcg@10"]
        assert low <= row["test"]["ndcg@10"] <= high and low < high


def test_one_row_is_chosen_and_it_is_the_best_on_validation(place: Path) -> None:
    found = document(place)
    trained = [row for row in found["rows"] if row["model"]]
    (chosen,) = [row for row in found["rows"] if row["chosen"]]
    assert chosen["validation"]["ndcg@10"] == max(row["validation"]["ndcg@10"] for row in trained)
    (section,) = found["sections"]
    assert (section["chosen"], section["against"], section["query_time"]) == (chosen["name"], chosen["name"], False)
    assert [row["name"] for row in trained if "paired" in row] == [row["name"] for row in trained if not row["chosen"]]


def test_the_paired_test_of_single_seeds_is_that_of_two_runs(place: Path, tmp_path: Path) -> None:
    arguments = copy(place, tmp_path / "c")
    found = from_arguments(arguments, "1", against="b", quiet=True)
    a, b = (tmp_path / "c" / "runs" / name / "seed-0" for name in "ab")
    expected = compare_runs(a, b)
    test = rows_of(found)["a"]["paired"]
    assert test["against"] == "b" and "paired" not in rows_of(found)["b"]
    assert test["ndcg@10"] == expected["ndcg@10"] and test["recall@10"] == expected["recall@10"]
    assert rows_of(found)["a"]["test_spread"]["ndcg@10"] is None, "one seed has no spread"


def test_a_paired_test_over_seeds_takes_each_target_s_mean(place: Path) -> None:
    rows = rows_of(document(place))
    values = {}
    for name in ("a", "b"):
        ranks = [Bundle(place / "runs" / name / f"seed-{s}").read_parquet("ranks-test.parquet")["rank"] for s in (0, 1)]
        values[name] = np.mean([metrics.ndcg(rank.to_numpy(), 10) for rank in ranks], axis=0)
    (tested,) = [row for row in rows.values() if "paired" in row]
    other = tested["paired"]["against"]
    assert tested["paired"]["ndcg@10"]["difference"] == pytest.approx(float((values[tested["name"]] - values[other]).mean()))


def test_the_baselines_are_measured_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("largerec.evaluate.popularity_scorers", lambda engine: asked.append(1) or {})
    arguments = copy(place, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "runs" / "b")
    found = from_arguments(arguments, "2", quiet=True)
    assert not asked, "b's runs take over what a's first run measured"
    for name in ("b/seed-0", "b/seed-1"):
        bundle = Bundle(tmp_path / "c" / "runs" / name)
        first = Bundle(place / "runs/a/seed-0")
        assert bundle.read_json("result.json")["baselines"] == first.read_json("result.json")["baselines"]
        assert bundle.read_parquet("ranks-baselines.parquet").equals(first.read_parquet("ranks-baselines.parquet"))
    assert without_clock(found) == without_clock(document(place))


def without_clock(found: dict[str, Any]) -> dict[str, Any]:
    """A document without times and places."""
    if isinstance(found, dict):
        left = {"train_seconds", "recommend_ms", "dir", "command", "report", "date"}
        return {key: without_clock(value) for key, value in found.items() if key not in left}
    return [without_clock(one) for one in found] if isinstance(found, list) else found  # type: ignore[return-value]


def test_nothing_is_made_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = copy(place, tmp_path / "c")
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("a finished run was trained again"))
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("the test part was looked at again"))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert without_clock(from_arguments(arguments, "2", quiet=True)) == without_clock(document(place))
        assert torch.get_num_threads() == document(place)["threads"] == 1, "the rows are timed with the recipes' threads"
    finally:
        torch.set_num_threads(before)


def test_a_run_that_was_trained_and_not_evaluated_is_evaluated(place: Path, tmp_path: Path) -> None:
    arguments = copy(place, tmp_path / "c")
    path = tmp_path / "c" / "runs" / "a" / "seed-1" / "result.json"
    result = json.loads(path.read_text())
    left = ("test", "test_unmasked", "targets", "baselines", "intervals", "slices", "best_possible")
    path.write_text(json.dumps({key: value for key, value in result.items() if key not in left} | {"n_test_evaluations": 0}))
    assert without_clock(from_arguments(arguments, "2", quiet=True)) == without_clock(document(place))


def test_a_run_that_was_not_evaluated_may_be_asked_otherwise(tmp_path: Path) -> None:
    """Its validation was measured with the options of then."""
    old, new = (tiny_recipe(tmp_path / "x", *QUICK, f"evaluate.k={k}") for k in ("[5, 10]", "[10, 20]"))
    train(placed(old, tmp_path / "runs" / "tiny" / "seed-0", 0), quiet=True)
    rows = compare([new], [0, 1], tmp_path / "runs", quiet=True)["rows"]
    row = next(row for row in rows if row["name"] == "tiny")
    assert {"recall@20", "ndcg@20"} <= set(row["validation"]) and "recall@5" not in row["validation"]


def test_a_kill_between_the_two_measurements_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (tiny_recipe(tmp_path / "x", *QUICK, f"evaluate.k={k}") for k in ("[5, 10]", "[10, 20]"))
    train(placed(old, tmp_path / "runs" / "tiny" / "seed-0", 0), quiet=True)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "evaluate", killed)
        compare([new], [0], tmp_path / "runs", quiet=True)
    row = next(row for row in compare([new], [0], tmp_path / "runs", quiet=True)["rows"] if row["name"] == "tiny")
    assert {"recall@20", "ndcg@20"} <= set(row["validation"]) and "recall@5" not in row["validation"]


def test_another_run_is_refused_before_any_is_trained(tmp_path: Path) -> None:
    other = tiny_recipe(tmp_path / "x", *QUICK, "optim.clip=1.0")
    train(placed(other, tmp_path / "runs" / "tiny" / "seed-1", 1), quiet=True)
    with pytest.raises(LargeRecError, match=r"tiny/seed-1' holds a finished run of another recipe"):
        compare([tiny_recipe(tmp_path / "x", *QUICK)], [0, 1], tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs" / "tiny" / "seed-0").exists()


@pytest.mark.parametrize("option", ["evaluate.level=0.9", "evaluate.k=[3, 10]"])
def test_a_run_that_was_measured_otherwise_is_not_compared(place: Path, tmp_path: Path, option: str) -> None:
    arguments, run = copy(place, tmp_path / "c"), tmp_path / "c" / "runs" / "a" / "seed-1"
    evaluate(run, recipe_from(apply_overrides(Bundle(run).recipe().to_json(), [option])).evaluate)
    with pytest.raises(LargeRecError, match=rf"a/seed-1' was evaluated once more, with {re.escape(option)}: `largerec evaluate`"):
        from_arguments(arguments, "2", quiet=True)


def test_the_best_possible_stands_beside_a_row_that_only_ranks(tmp_path: Path) -> None:
    tasks = ["tasks.buy.where=behavior = 'buy'", "batch.actions=interleaved", "train.metric=buy.auc", *QUICK]
    ranker = ["model={name='din', hidden=[16]}", "ranking.retrieval=0", "objective={name='softmax'}"]
    recipes = [tiny_recipe(tmp_path / "x", *tasks, *ranker, "name=r"), tiny_recipe(tmp_path / "x", *tasks, "name=b")]
    rows = compare(recipes, [0], tmp_path / "runs", quiet=True)["rows"]
    assert "best possible" in [row["name"] for row in rows]


def test_killed_it_goes_on_to_the_same_table(place: Path, tmp_path: Path) -> None:
    files = recipe_files(tmp_path / "c")
    arguments = [*files, *QUICK, f"run.dir={tmp_path / 'c' / 'runs'}"]
    runs = tmp_path / "c" / "runs"
    child = start_child(["compare", *arguments, "--seeds", "2", "--json"], step_seconds=0.1)
    while child.poll() is None and not (runs / "a" / "seed-1" / "state.safetensors").is_file():
        time.sleep(0.01)
    child.kill()
    child.communicate()
    assert (runs / "b" / "seed-0" / "result.json").is_file() and not (runs / "a" / "seed-1" / "result.json").is_file()
    found = from_arguments(arguments, "2", quiet=True)
    assert without_clock(found) == without_clock(document(place))
    for name in ("a/seed-0", "a/seed-1", "b/seed-1"):
        assert log_lines(runs / name) == log_lines(place / "runs" / name)


def test_another_recipe_or_log_is_refused(place: Path, tmp_path: Path) -> None:
    arguments = copy(place, tmp_path / "c")
    with pytest.raises(LargeRecError, match=r"a/seed-0' holds a finished run of another recipe \(optim.clip: 5.0 -> 1.0\)"):
        from_arguments([*arguments, "optim.clip=1.0"], "2", quiet=True)
    with pytest.raises(LargeRecError, match="holds a finished run of another recipe"):
        from_arguments([*arguments, "data.simulate.users=81"], "2", quiet=True)
    with pytest.raises(LargeRecError, match="looked at once"):
        from_arguments([*arguments, "evaluate.k=[10]"], "2", quiet=True)
    result = tmp_path / "c" / "runs" / "a" / "seed-0" / "result.json"
    kept = result.read_text()
    result.unlink()
    with pytest.raises(LargeRecError, match=r"an unfinished run of another recipe .*\)\. Remove it, or choose another run.dir"):
        from_arguments([*arguments, "optim.clip=1.0"], "2", quiet=True)
    result.write_text(kept)
    lineage = tmp_path / "c" / "runs" / "b" / "seed-0" / "lineage.json"
    lineage.write_text(lineage.read_text().replace('"data_hash": "', '"data_hash": "0'))
    with pytest.raises(LargeRecError, match="b/seed-0' holds a finished run on other data"):
        from_arguments(arguments, "2", quiet=True)


def test_a_run_that_read_other_words_of_items_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = copy(place, tmp_path / "c")
    lineage = tmp_path / "c" / "runs" / "b" / "seed-0" / "lineage.json"
    lineage.write_text(json.dumps(json.loads(lineage.read_text()) | {"words_hash": "one"}))
    monkeypatch.setattr("largerec.split_log.words_hash", lambda *_: "two")
    with pytest.raises(LargeRecError, match="b/seed-0' holds a finished run on items with other words"):
        from_arguments(arguments, "2", quiet=True)


def test_a_search_that_chose_other_settings_says_what_to_remove(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(recipe: Recipe, *_: Any, **__: Any) -> Tuned:
        settings = {"model.dropout": 0.5}
        return Tuned(with_settings(recipe, settings), 0, 1, [{"settings": settings}])

    monkeypatch.setattr(module, "tune", tune)
    arguments = [*copy(place, tmp_path / "c"), "tune.space.model.dropout=[0.5]"]
    with pytest.raises(LargeRecError, match=r"model.dropout: 0.2 -> 0.5.* search of 1 trials .*runs/a/seed-\* \(the trials stay"):
        from_arguments(arguments, "2", trials=1, quiet=True)


REFUSED = [
    (["data.simulate.users=81"], "a and b cannot stand in one table: data.simulate.users is 80 in the one and 81"),
    (["split.protocol=timeline", "split.validation_from=70%", "split.test_from=85%"], "split.protocol"),
    (["evaluate.k=[10]"], "evaluate.k"),
    (["train.metric=recall@10"], "train.metric"),
    (["threads=2"], "threads is 1 in the one and 2 in the other"),
    (["name=a"], "two recipes have the name 'a'"),
    (["name=x/y"], "cannot be a folder"),
    (["name=seeds"], "that of another row or file"),
    (["name=popularity"], "that of another row or file"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[overrides[0] for overrides, _ in REFUSED])
def test_recipes_that_cannot_stand_in_one_table_are_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    a, b = recipe_files(tmp_path)
    with pytest.raises(LargeRecError, match=message.replace("(", r"\(")):
        compare([load_recipe(a), load_recipe(b, overrides)], folder=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists(), "nothing was trained"


def test_a_recipe_is_not_written_over(tmp_path: Path) -> None:
    files = recipe_files(tmp_path)
    before = Path(files[0]).read_bytes()
    with pytest.raises(LargeRecError, match="would be written over what is read"):
        from_arguments([str(file) for file in files], "1", str(files[0]), quiet=True)
    assert Path(files[0]).read_bytes() == before


def test_a_metric_that_is_not_reported_cannot_choose(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"add 7 to evaluate.k"):
        compare([load_recipe(recipe_files(tmp_path)[0], ["train.metric=ndcg@7"])], folder=tmp_path / "runs")


@pytest.mark.parametrize("override", ["seed=3", "run.overwrite=true", "name=x", "run.compare=['sasrec']"])
def test_overrides_that_are_not_for_a_comparison_are_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match="is not for a comparison"):
        from_arguments([*recipe_files(tmp_path), override], "1")


@pytest.mark.parametrize("seeds", ["x", "-1", "1.5"])
def test_seeds_are_numbers(seeds: str, tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"is no number up to .*; write --seeds 3"):
        from_arguments(recipe_files(tmp_path), seeds)


def test_an_unknown_row_to_test_against_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match="no row 'c' to test against; the rows are a, b"):
        from_arguments(recipe_files(tmp_path), "1", against="c")


def test_rows_with_query_time_have_their_own_table(place: Path, tmp_path: Path) -> None:
    arguments = copy(place, tmp_path / "c")
    asks = TINY.replace('"tiny"', '"asks"').replace("heads = 2,", "heads = 2, query_time = true,")
    (tmp_path / "c" / "asks.toml").write_text(asks, encoding="utf-8")
    found = from_arguments([*arguments, str(tmp_path / "c" / "asks.toml")], "2", quiet=True)
    assert [(one["query_time"], one["rows"]) for one in found["sections"]] == [(False, ["a", "b"]), (True, ["asks"])]
    assert sum(row["chosen"] for row in found["rows"]) == 2 and rows_of(found)["asks"]["chosen"]
    assert [row["query_time"] for row in found["rows"] if row["name"] == "best possible"] == [False, True]
    page = (tmp_path / "c" / "runs" / "compare.html").read_text()
    assert "Quality, with query time" in page and "Paired differences, with" not in page


def test_the_command_prints_the_table_and_writes_its_files(place: Path, tmp_path: Path) -> None:
    arguments, out = copy(place, tmp_path / "c"), tmp_path / "out.json"
    told = CliRunner().invoke(app, ["compare", *arguments, "--seeds", "0", "1", "--out", str(out), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found == json.loads(out.read_text()) == json.loads((tmp_path / "c" / "runs" / "compare.json").read_text())
    assert found["seeds"] == [0, 1] and found["command"].endswith("--seeds 0 1 " + " ".join(arguments[2:]))
    shown = CliRunner().invoke(app, ["compare", *arguments, "--seeds", "2"])
    assert shown.exit_code == 0 and "(chosen)" in shown.stdout and "minus" in shown.stdout
    page = (tmp_path / "c" / "runs" / "compare.html").read_text()
    assert "(chosen)" in page and "ms a user" in page and "<script" not in page


def test_families_of_run_compare_are_rows(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_files(tmp_path)[0], [*QUICK, "run.compare=['sasrec']"])
    found = compare([recipe], [3], tmp_path / "runs", quiet=True)
    assert [row["name"] for row in found["rows"] if row["model"]] == ["a", "a-sasrec"]
    assert evaluate(tmp_path / "runs" / "a-sasrec" / "seed-3")["n_test_evaluations"] == 2


def test_ensembles_are_further_rows_and_are_never_chosen(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = copy(place, tmp_path / "c")
    found = from_arguments(arguments, "2", ensemble=True, quiet=True)
    rows = rows_of(found)
    chosen = found["sections"][0]["chosen"]
    other = {"a": "b", "b": "a"}[chosen]
    both, seeds = rows[f"{chosen}+{other}"], rows[f"{chosen}+seeds"]
    assert (both["members"], both["seeds"], len(both["runs"])) == ([chosen, other], [0, 1], 2)
    assert (seeds["members"], seeds["seeds"], len(seeds["runs"])) == ([chosen], [0, 1], 1)
    assert not both["chosen"] and not seeds["chosen"] and both["weights"] == "equal, of softmax probabilities"
    assert both["params"] == rows["a"]["params"] + rows["b"]["params"] and seeds["params"] == 2 * rows[chosen]["params"]
    assert both["train_flops"] == pytest.approx(rows["a"]["train_flops"] + rows["b"]["train_flops"])
    assert both["n_test_evaluations"] == [1, 1] and both["paired"]["against"] == chosen
    assert without_clock(rows["a"]) == without_clock(rows_of(document(place))["a"]), "other rows stay as they are"
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("the test part was looked at again"))
    again = from_arguments(arguments, "2", ensemble=True, quiet=True)
    both = next(path for path in (tmp_path / "c" / "runs").glob("*+*/seed-0"))
    options = Bundle(both).recipe().evaluate
    evaluate(both, options.model_copy(update={"k": (3,)}))
    with pytest.raises(LargeRecError, match=r"is an ensemble that was measured with evaluate\.k=\[3\]\. Remove that folder"):
        from_arguments(arguments, "2", ensemble=True, quiet=True)
    assert without_clock(again) == without_clock(found)


CLICK = ["tasks.click.where='behavior = view'", "batch.actions=summed"]
ASKED: list[tuple[list[str], dict[str, Any], str]] = [
    (["name=b"], {"ensemble": True}, "two model families or more than one seed"),
    (["model.name=sasrec", "name=b"], {"ensemble": True, "both": ["model.query_time=true"]}, "a table of their own"),
    (["name=b", *CLICK], {"ensemble": True, "both": CLICK}, "--ensemble mixes runs that only retrieve"),
    (["name=b"], {"trials": 1, "both": ["tune.space.model.dropout=[0.1]"]}, r"b: --trials needs to know what may change"),
    (["name=b", "tune.space.model.dropot=[0.1]"], {"trials": 1, "both": ["tune.space.model.dropout=[0.1]"]}, "did you mean"),
    (
        ["name=b", *CLICK, "tune.space.tasks.click.weight=[2.0]"],
        {"trials": 1, "both": [*CLICK, "tune.space.model.dropout=[0.1]"]},
        "tune.space.tasks.click.weight: this would change what is measured",
    ),
]


@pytest.mark.parametrize(("overrides", "options", "message"), ASKED, ids=range(len(ASKED)))
def test_what_could_not_be_made_at_the_end_is_refused_first(
    overrides: list[str], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options = dict(options)
    a, _ = recipe_files(tmp_path)
    first, second = load_recipe(a, options.pop("both", [])), load_recipe(a, overrides)
    with pytest.raises(LargeRecError, match=message):
        compare([first, second], [0], tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists(), "nothing was trained"


def test_a_search_without_optuna_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    recipe = load_recipe(recipe_files(tmp_path)[0], ["tune.space.model.dropout=[0.1]"])
    with pytest.raises(LargeRecError, match=r"pip install 'largerec\[tune\]'"):
        compare([recipe], [0], tmp_path / "runs", trials=2)
    assert not (tmp_path / "runs").exists()
