"""Tuning: trials on validation only, the same ones after a kill, and never a worse recipe than the one that was given."""

from __future__ import annotations

import builtins
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, tiny_recipe
from test_ranking import overrides_of

from largerec import tune as module
from largerec.bundle import Bundle, flatten
from largerec.compare import from_arguments
from largerec.errors import Diverged, LargeRecError
from largerec.recipe import Range, Recipe, load_recipe, recipe_from
from largerec.tune import own_space, promote, tune, with_settings

SPACE = [
    "tune.space.optim.learning_rate={low = 0.0005, high = 0.02, log = true}",
    "tune.space.model.dropout=[0.0, 0.5]",
    "tune.space.model.width={low = 8, high = 24}",
    "model.heads=1",
    "train.max_epochs=2",
]


HASHES = {"data_hash": "hash"}


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    return tiny_recipe(folder, *SPACE, *overrides)


def trained(curves: dict[str, list[float]], calls: list[Path]) -> Any:
    """A stand-in for training: writes the validations of a trial one after another, and its result."""

    def train(recipe: Recipe, *, quiet: bool, on_validation: Any) -> dict[str, Any]:
        path = Path(recipe.run.dir)
        calls.append(path)
        path.mkdir(parents=True, exist_ok=True)
        curve = curves.get(path.name, [0.5] * 5)
        for at, value in enumerate(curve, 1):
            line = {"step": at, "validation": {"ndcg@10": value}, "seconds": at}
            with (path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            on_validation()
        return {"validation": {"ndcg@10": max(curve)}}

    return train


def test_real_trials_are_recorded_and_the_best_is_taken(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "unused")
    found = tune(recipe, 4, tmp_path, HASHES, quiet=True)
    assert [trial["number"] for trial in found.trials] == [0, 1, 2, 3]
    own = flatten(recipe.resolved().to_json())
    assert found.trials[0]["settings"] == {key: own[key] for key in ("model.dropout", "model.width", "optim.learning_rate")}
    for trial in found.trials:
        settings = trial["settings"]
        assert 0.0005 <= settings["optim.learning_rate"] <= 0.02 and 8 <= settings["model.width"] <= 24
        assert settings["model.dropout"] in (0.0, 0.2, 0.5) and isinstance(settings["model.width"], int)
        run = Bundle(tmp_path / "trials" / f"trial-{trial['number']}")
        assert "test" not in run.read_json("result.json") and run.read_json("result.json")["n_test_evaluations"] == 0
        assert {key: flatten(run.recipe().to_json())[key] for key in settings} == settings
        assert trial["value"] == run.read_json("result.json")["validation"]["ndcg@10"] and len(trial["curve"]) == 2
    assert len({json.dumps(trial["settings"]) for trial in found.trials}) == 4
    assert found.trials[found.best]["value"] == max(trial["value"] for trial in found.trials)
    kept = load_recipe(tmp_path / "tuned.toml")
    assert kept.run.dir == str(tmp_path / "tuned"), "not the folder of the comparison, which is no run"
    kept = kept.model_copy(update={"run": recipe.run})
    assert kept == found.recipe == (with_settings(recipe, found.trials[found.best]["settings"]) if found.best else recipe)


def test_trials_are_scored_by_a_task_where_a_task_chooses(tmp_path: Path) -> None:
    tasks = [*overrides_of("summed"), "train.metric=buy.auc"]
    found = tune(recipe_of(tmp_path / "unused", *tasks), 2, tmp_path, HASHES, quiet=True)
    for trial in found.trials:
        result = Bundle(tmp_path / "trials" / f"trial-{trial['number']}").read_json("result.json")
        assert trial["value"] == result["validation_tasks"]["buy"]["auc"]


def test_the_same_trials_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tune(recipe_of(tmp_path), 4, tmp_path / "whole", HASHES, quiet=True)

    class Killed(BaseException):
        pass

    plain, left = module.train, [2]

    def killing(recipe: Recipe, *, quiet: bool, on_validation: Any) -> dict[str, Any]:
        def watch() -> None:
            on_validation()
            left[0] -= recipe.run.dir.endswith("trial-2")
            if not left[0]:
                raise Killed

        return plain(recipe, quiet=quiet, on_validation=watch)

    monkeypatch.setattr(module, "train", killing)
    with pytest.raises(Killed):
        tune(recipe_of(tmp_path), 4, tmp_path / "cut", HASHES, quiet=True)
    monkeypatch.setattr(module, "train", plain)
    assert len((tmp_path / "cut" / "trials" / "trials.jsonl").read_text().splitlines()) == 2
    again = tune(recipe_of(tmp_path), 4, tmp_path / "cut", HASHES, quiet=True)
    assert [one | {"seconds": 0} for one in again.trials] == [one | {"seconds": 0} for one in whole.trials]
    assert (again.best, again.recipe) == (whole.best, whole.recipe)
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("a finished trial was made again"))
    assert tune(recipe_of(tmp_path), 4, tmp_path / "cut", HASHES, quiet=True).trials == again.trials
    assert len(tune(recipe_of(tmp_path), 2, tmp_path / "cut", HASHES, quiet=True).trials) == 2, "at most as many as are asked for"


def test_a_trial_below_the_median_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    curves = {f"trial-{n}": [0.1 * at for at in range(1, 8)] for n in range(2)}
    curves |= {"trial-1": [0.09, 0.18, 0.27, 0.3], "trial-2": [0.05, 0.06, 0.07, 0.08, 0.08, 0.09, 0.9]}
    curves["trial-3"] = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    monkeypatch.setattr(module, "train", trained(curves, calls))
    found = tune(recipe_of(tmp_path), 4, tmp_path, HASHES, quiet=True)
    assert [trial["state"] for trial in found.trials] == ["finished", "finished", "pruned", "finished"]
    assert found.trials[2]["curve"] == [0.05, 0.06, 0.07, 0.08, 0.08, 0.09] and found.trials[2]["value"] is None
    assert found.best == 3
    told = found.to_json()
    assert (told["budget"], told["finished"], told["pruned"], told["failed"], told["seconds"]) == (4, 3, 1, 0, 24.0)
    assert told["settings"] == found.trials[3]["settings"] and "curve" not in told["all"][0]


def test_a_trial_that_ends_well_is_kept_where_giving_up_begins_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [0.05, 0.06, 0.07, 0.08, 0.08, 0.09, 0.9]
    monkeypatch.setattr(module, "train", trained({"trial-0": [0.1 * at for at in range(1, 8)], "trial-1": slow}, []))
    for validations, ends in ((6, "pruned"), (2, "pruned"), (7, "finished")):
        found = tune(recipe_of(tmp_path, f"tune.prune_from={validations}"), 2, tmp_path / str(validations), HASHES, quiet=True)
        assert found.trials[1]["state"] == ends and found.best == (ends == "finished")
        assert len(found.trials[1]["curve"]) == (7 if ends == "finished" else validations)


def test_trials_that_diverge_are_failures_and_the_first_best_wins_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained({}, [])

    def train(recipe: Recipe, **options: Any) -> dict[str, Any]:
        if recipe.run.dir.endswith("trial-1"):
            raise Diverged("the loss of step 3 is nan")
        result: dict[str, Any] = plain(recipe, **options)
        return result

    monkeypatch.setattr(module, "train", train)
    recipe = recipe_of(tmp_path)
    found = tune(recipe, 3, tmp_path, HASHES, quiet=True)
    assert [trial["state"] for trial in found.trials] == ["finished", "failed", "finished"]
    assert "step 3 is nan" in found.trials[1]["why"]
    assert found.best == 0 and found.recipe is recipe, "not better is no reason to change the recipe"
    monkeypatch.setattr(module, "train", lambda *_, **__: (_ for _ in ()).throw(Diverged("nan")))
    with pytest.raises(LargeRecError, match="none of 2 trials finished"):
        tune(recipe, 2, tmp_path / "other", HASHES, quiet=True)


def test_a_trial_whose_last_step_diverges_is_a_failure(tmp_path: Path) -> None:
    """Its loss was finite; the scores of its validation are not."""
    quick = ["train.max_steps=4", "train.evaluate_every=1", "optim.warmup_steps=0"]
    recipe = tiny_recipe(tmp_path, *quick, "tune.space.optim.learning_rate=[1e30, 2e30, 3e30]")
    found = tune(recipe, 3, tmp_path, HASHES, quiet=True)
    assert found.trials[0]["state"] == "finished" and [trial["state"] for trial in found.trials[1:]] == ["failed", "failed"]
    assert any("scores are NaN" in trial["why"] for trial in found.trials[1:])


def test_the_best_trial_s_weights_stay_until_they_are_its_seed_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", trained({"trial-0": [0.1], "trial-1": [0.9]}, []))
    recipe, target = recipe_of(tmp_path), Bundle(tmp_path / "seed-0")
    found = tune(recipe, 2, tmp_path, HASHES, quiet=True)
    weights = [tmp_path / "trials" / f"trial-{number}" / "model.safetensors" for number in (0, 1)]
    for path in weights:
        path.touch()
    target.path.mkdir()
    target.write_json("recipe.json", {"format": 1, "recipe": recipe.to_json()})
    promote(found, tmp_path, [0])
    assert found.best == 1 and [path.exists() for path in weights] == [False, True], "the run there is of other settings"
    target.write_json("recipe.json", {"format": 1, "recipe": found.recipe.resolved().to_json()})
    promote(found, tmp_path, [0])
    assert not weights[1].exists(), "the run there is the same one"
    weights[1].touch()
    shutil.rmtree(target.path)
    promote(found, tmp_path, [0])
    assert target.file("model.safetensors").exists() and not weights[1].parent.exists()


def test_settings_that_come_again_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(module, "train", trained({}, calls))
    found = tune(tiny_recipe(tmp_path, "tune.space.model.dropout=[0.2, 0.5]"), 6, tmp_path, HASHES, quiet=True)
    assert len(calls) == 2 and len(found.trials) == 6
    assert sum("repeats" in trial for trial in found.trials) == 4


def test_another_search_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", trained({}, []))
    tune(recipe_of(tmp_path), 1, tmp_path, HASHES, quiet=True)
    for recipe, data, said in (
        (recipe_of(tmp_path, "optim.clip=1"), HASHES, "recipe.optim.clip: 5.0 -> 1.0"),
        (recipe_of(tmp_path, "tune.space.model.dropout=[0.1]"), HASHES, "space.model.dropout"),
        (recipe_of(tmp_path, "tune.prune_from=9"), HASHES, "prune_from: 6 -> 9"),
        (recipe_of(tmp_path), {"data_hash": "other"}, "data: 'hash' -> 'other'"),
    ):
        with pytest.raises(LargeRecError, match="trials of another search") as caught:
            tune(recipe, 1, tmp_path, data, quiet=True)
        assert said in str(caught.value)
    for what in ("words", "features"):
        tune(recipe_of(tmp_path), 1, tmp_path / what, HASHES | {f"{what}_hash": "one"}, quiet=True)
        with pytest.raises(LargeRecError, match=f"{what}: 'one' -> 'two'"):
            tune(recipe_of(tmp_path), 1, tmp_path / what, HASHES | {f"{what}_hash": "two"}, quiet=True)


def test_the_space_holds_the_recipe_s_own_settings(tmp_path: Path) -> None:
    space = own_space(tiny_recipe(tmp_path, "tune.space.model.width={low = 24, high = 32}", "tune.space.train.max_steps=[5]"))
    assert (space["model.width"].low, space["model.width"].high) == (16, 32)  # type: ignore[union-attr]
    assert space["train.max_steps"] == (None, 5)


def test_a_range_is_of_the_option_s_kind(tmp_path: Path) -> None:
    space = own_space(
        tiny_recipe(tmp_path, "tune.space.optim.clip={low = 1, high = 9}", "tune.space.model.depth={low = 1.0, high = 2.0}")
    )
    bounds = {key: (values.low, values.high) for key, values in space.items() if isinstance(values, Range)}
    assert bounds == {"optim.clip": (1, 9), "model.depth": (1, 2)}
    assert {type(bound) for bound in bounds["optim.clip"]} == {float} and {type(bound) for bound in bounds["model.depth"]} == {
        int
    }


def test_settings_that_do_not_fit_together_are_a_failed_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(module, "train", trained({}, calls))
    monkeypatch.setattr(module, "_proposal", lambda *_: ({"model.width": 15}, lambda curve: False))
    found = tune(tiny_recipe(tmp_path, "tune.space.model.width={low = 8, high = 16}"), 2, tmp_path, HASHES, quiet=True)
    assert [trial["state"] for trial in found.trials] == ["finished", "failed"] and len(calls) == 1
    assert "model.width=15 is no multiple of model.heads=2" in found.trials[1]["why"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune.space.model.width={low = 8, high = 16.5}", "give whole bounds"),
        ("tune.space.train.recompute={low = 0, high = 1}", "own value is False"),
        ("tune.space.model.dropot=[0.1]", "did you mean 'model.dropout'"),
        ("tune.space.evaluate.k=[[5]]", "would change what is measured"),
        ("tune.space.data.path=['x']", "would change what is measured"),
        ("tune.space.train.device=['cpu']", "would change what is measured"),
        ("tune.space.train.evaluate_every=[1]", "would change what is measured"),
        ("tune.space.train.validation_targets=[10]", "would change what is measured"),
        ("tune.space.model.query_time=[true]", "would change what is measured"),
        ("tune.space.lists.items=['shown']", "would change what is measured"),
        ("tune.space.train.max_steps={low = 1, high = 5}", "own value is None"),
        ("tune.space.model.dropout={low = 0.1, high = 1.5}", "model.dropout"),
        ("tune.space.model.dropout=[]", "has no choices"),
        ("tune.space.optim.clip={low = 2, high = 1}", "is no range"),
        ("tune.space.optim.clip={low = 0, high = 1, log = true}", "is no range"),
        ("tune.space.optim.weight_decay={low = 0.001, high = 1, log = true}", "own value 0.0 cannot belong to"),
    ],
)
def test_a_space_that_does_not_fit_is_refused(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=message):
        tune(tiny_recipe(tmp_path, override), 2, tmp_path, HASHES, quiet=True)
    assert not (tmp_path / "trials").exists()


def test_a_setting_that_does_not_fit_the_log_is_a_failed_trial(tmp_path: Path) -> None:
    side = ["model.side.columns=['title']", "model.side.width=4", "train.max_steps=2"]
    recipe = tiny_recipe(tmp_path / "unused", *side, "tune.space.model.side.width=[4, 500]")
    found = tune(recipe, 4, tmp_path, HASHES, quiet=True)
    assert {trial["state"] for trial in found.trials if trial["settings"]["model.side.width"] == 500} == {"failed"}
    assert found.trials[found.best]["settings"]["model.side.width"] == 4
    assert "model.side.width=500" in next(trial["why"] for trial in found.trials if trial["state"] == "failed")


def test_the_settings_of_one_family_are_for_that_family_alone(tmp_path: Path) -> None:
    """A recipe's compared families are tuned by themselves and have files of their own, for another log side by side."""
    recipe = recipe_of(tmp_path / "unused", "run.compare=['sasrec']", "train.max_steps=2")
    tune(recipe, 1, tmp_path, HASHES, quiet=True)
    assert load_recipe(tmp_path / "tuned.toml").run.compare == ()


def test_no_space_and_no_optuna_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LargeRecError, match=r"\[tune.space\]"):
        tune(tiny_recipe(tmp_path), 2, tmp_path, HASHES, quiet=True)
    plain = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(module, "train", trained({}, []))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LargeRecError, match=r"pip install 'largerec\[tune\]'"):
        tune(recipe_of(tmp_path), 2, tmp_path, HASHES, quiet=True)


def test_both_ways_to_write_a_key_are_one(tmp_path: Path) -> None:
    quoted = '[tune.space]\n"optim.clip" = [1.0]\nmodel.dropout = {low = 0.1, high = 0.3}\n'
    path = tmp_path / "r.toml"
    path.write_text(TINY + quoted, encoding="utf-8")
    assert list(load_recipe(path).tune.space) == ["optim.clip", "model.dropout"]
    assert recipe_from(tomllib.loads(module.as_toml(load_recipe(path), "x"))).tune == load_recipe(path).tune


def test_any_character_is_written_as_toml(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "name=Grüße 🎬")
    assert tomllib.loads(module.as_toml(recipe, "x"))["name"] == recipe.name


def test_compare_tunes_first_and_uses_the_best_trial_s_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.toml").write_text(TINY.replace('"tiny"', '"a"'), encoding="utf-8")
    arguments = [str(tmp_path / "a.toml"), *SPACE, f"run.dir={tmp_path / 'runs'}"]
    found = from_arguments(arguments, "2", trials=3, quiet=True)
    (row,) = [row for row in found["rows"] if row["model"]]
    assert found["trials"] == row["trials"]["budget"] == 3 and "--trials 3" in found["command"]
    page = (tmp_path / "runs" / "compare.html").read_text()
    assert "At most 3 trials a recipe" in page and "(chosen)" in page
    results = [Bundle(tmp_path / "runs" / "a" / f"seed-{seed}") for seed in (0, 1)]
    best = row["trials"]["all"][row["trials"]["chosen"]]
    assert results[0].read_json("result.json")["validation"]["ndcg@10"] == best["value"], "the trial's run is that of its seed"
    for one in results:
        assert {key: flatten(one.recipe().to_json())[key] for key in best["settings"]} == best["settings"]
        assert one.read_json("result.json")["n_test_evaluations"] == 1
    assert not list((tmp_path / "runs" / "a" / "trials").glob("*/model.safetensors")), "weights of the other trials are removed"
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("a trial was made again"))
    assert rows_of(from_arguments(arguments, "2", trials=3, quiet=True)) == rows_of(found)
    with pytest.raises(LargeRecError, match="holds a finished run of another recipe"):
        from_arguments([*arguments, "optim.warmup_steps=6"], "2", quiet=True)


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "recommend_ms"} for row in found["rows"]]
