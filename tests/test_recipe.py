"""Recipes: what is refused and with which words, overrides, derived values, and the way through JSON and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from largerec import recipe as recipe_module
from largerec.errors import LargeRecError
from largerec.models import RETRIEVING as FAMILIES
from largerec.optim import derived_learning_rate
from largerec.recipe import Recipe, TrainOptions, apply_overrides, load_recipe, recipe_from

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
RECIPES = sorted(path for path in FOLDER.rglob("*.toml") if path.parent.name != "ablate")
SMALL = 'name = "small one"\nseed = 3\n[model]\nname = "sasrec"\nsize = "nano"\n[train]\nmax_epochs = 2\n'


def refused(document: dict[str, Any]) -> str:
    with pytest.raises(LargeRecError) as caught:
        recipe_from(document, "here.toml")
    message = str(caught.value)
    assert message.startswith("here.toml: ")
    return message


def recipe_file(folder: Path, text: str = SMALL) -> Path:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- refusals


@pytest.mark.parametrize(
    ("document", "unknown", "right"),
    [
        ({"modle": {}}, "modle", "model"),
        ({"sed": 1}, "sed", "seed"),
        ({"batch": {"token": 5}}, "token", "tokens"),
        ({"model": {"name": "hstu", "siz": "tiny"}}, "siz", "size"),
        ({"objective": {"name": "bce", "negative": 5}}, "negative", "negatives"),
        ({"data": {"columns": {"usr": "who"}}}, "usr", "user"),
        ({"train": {"max_epoch": 3}}, "max_epoch", "max_epochs"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(document: dict[str, Any], unknown: str, right: str) -> None:
    message = refused(document)
    assert f"unknown option {unknown!r}" in message
    assert f"did you mean {right!r}?" in message
    assert f" {right}" in message.split("Allowed: ")[1]


def test_a_key_like_no_other_is_refused_without_a_guess() -> None:
    message = refused({"batch": {"xyzzy": 5}})
    assert "did you mean" not in message
    assert message.endswith("Allowed: actions, max_length, recent, stochastic_length, tokens, users, window.")


@pytest.mark.parametrize(
    ("document", "key", "given", "allowed"),
    [
        ({"batch": {"tokens": -3}}, "batch.tokens", "-3", "greater than or equal to 1"),
        ({"batch": {"tokens": "many"}}, "batch.tokens", "'many'", "valid integer"),
        ({"batch": {"window": "first"}}, "batch.window", "'first'", "'last', 'all' or 'sample'"),
        ({"batch": 5}, "batch", "5", "dictionary"),
        ({"seed": -1}, "seed", "-1", "greater than or equal to 0"),
        ({"run": {"dir": [2024]}}, "run.dir", "[2024]", "valid string"),
        ({"model": {"name": "hstu", "depth": 0}}, "model.depth", "0", "greater than or equal to 1"),
        ({"model": {"name": "sasrec", "dropout": 1}}, "model.dropout", "1", "less than 1"),
        ({"model": {"name": "hstu", "heads": 5000}}, "model.heads", "5000", "less than or equal to 512"),
        ({"objective": {"name": "gbce", "calibration": 2}}, "objective.calibration", "2", "less than or equal to 1"),
        ({"optim": {"betas": [0.9, "b"]}}, "optim.betas.1", "'b'", "valid number"),
        ({"head": {"temperature": 0}}, "head.temperature", "0", "greater than 0"),
        ({"train": {"metric": "accuracy"}}, "train.metric", "'accuracy'", "match pattern"),
        ({"split": {"protocol": "random"}}, "split.protocol", "'random'", "'leave-one-out', 'timeline' or 'given'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_dotted_key(
    document: dict[str, Any], key: str, given: str, allowed: str
) -> None:
    message = refused(document)
    line = next(line for line in message.splitlines() if line.startswith(f"  {key}: "))
    assert allowed in line
    assert line.endswith(f"(given: {given})")


def test_all_mistakes_are_told_at_once() -> None:
    message = refused({"seed": "x", "batch": {"tokens": 0}, "optim": {"clip": -1}})
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == ["seed", "batch.tokens", "optim.clip"]


def test_unknown_families_and_missing_names() -> None:
    message = refused({"model": {"name": "hst"}})
    assert "model.name is 'hst', which there is not; did you mean 'hstu'?" in message
    assert all(family in message.partition("Allowed:")[2] for family in FAMILIES)
    assert "objective.name is 'softmx', which there is not; did you mean 'softmax'?" in refused({"objective": {"name": "softmx"}})
    assert "model.name is missing" in refused({"model": {"size": "tiny"}})
    assert "objective.name is missing" in refused({"objective": {"negatives": 3}})


def test_width_and_heads_that_do_not_fit_each_other() -> None:
    assert "model.width=10 is no multiple of model.heads=3" in refused({"model": {"name": "hstu", "width": 10, "heads": 3}})


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().seed = 5  # type: ignore[misc]


# --- overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("optim.learning_rate=1e-3", "optim.learning_rate", 1e-3),
        ("optim.clip=2", "optim.clip", 2),
        ("train.tensorboard=true", "train.tensorboard", True),
        ("run.compare=['hstu', \"sasrec\"]", "run.compare", ["hstu", "sasrec"]),
        ("data.path=events.csv", "data.path", "events.csv"),
        ("data.path='events.csv'", "data.path", "events.csv"),
        ("data.path=../a b/c=d.csv", "data.path", "../a b/c=d.csv"),
        ("data.where=rating >= 4 AND kind = 'buy'", "data.where", "rating >= 4 AND kind = 'buy'"),
        ("data.columns.user=user_id:token", "data.columns.user", "user_id:token"),
        ("split.test_from=90%", "split.test_from", "90%"),
        ("split.test_from=2017-10-15", "split.test_from", "2017-10-15"),
        ("split.test_from=2017-10-15T12:00:00", "split.test_from", "2017-10-15T12:00:00"),
        ('name="7"', "name", "7"),
        ("name=", "name", ""),
        ("run.dir=1.10", "run.dir", "1.10"),
        ("run.dir='1.10'", "run.dir", "1.10"),
        ("name=true", "name", "true"),
        ("data.columns.user=1e3", "data.columns.user", "1e3"),
        ("optim.clip=1.10", "optim.clip", 1.1),
    ],
)
def test_overrides(override: str, path: str, value: Any) -> None:
    document = apply_overrides({}, [override])
    found: Any = document
    for key in path.split("."):
        found = found[key]
    assert found == value and type(found) is type(value)
    recipe_from(apply_overrides(document, ["split.protocol=timeline"] if path.startswith("split.") else []))


@pytest.mark.parametrize("override", ["split.test_from=90%", "split.targets=first"])
def test_options_of_a_timeline_are_refused_under_leave_one_out(override: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(LargeRecError, match=rf"{name} says nothing under leave-one-out; add split\.protocol=timeline"):
        recipe_from(apply_overrides({}, [override]))
    recipe_from(recipe_from({}).to_json())  # the defaults written out are no choice


def test_query_time_without_the_time_bias_is_refused() -> None:
    with pytest.raises(LargeRecError, match=r"model\.query_time=true works through the time bias"):
        recipe_from({"model": {"name": "hstu", "query_time": True, "time_bias": False}})


def test_overrides_keep_what_they_do_not_name_and_the_last_one_wins() -> None:
    document = {"batch": {"tokens": 5, "window": "all"}, "seed": 1}
    changed = apply_overrides(document, ["batch.tokens=6", "batch.tokens=8", "optim.clip=1.5"])
    assert changed == {"batch": {"tokens": 8, "window": "all"}, "seed": 1, "optim": {"clip": 1.5}}
    assert document == {"batch": {"tokens": 5, "window": "all"}, "seed": 1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch.tokens", "'batch.tokens' is no override; write key=value, for example"),
        ("=5", "'=5' is no override"),
        ("seed.tokens=5", "'seed' is a value, not a group"),
    ],
)
def test_refused_overrides(override: str, message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        apply_overrides({"seed": 1}, [override])


# --- files


def test_load_with_overrides(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path), ["model.size=tiny", "seed=9", "data.columns.item=movie"])
    assert (recipe.name, recipe.seed, recipe.train.max_epochs) == ("small one", 9, 2)
    assert (recipe.model.name, recipe.model.size, recipe.data.columns.item) == ("sasrec", "tiny", "movie")


def test_dates_of_a_file_need_no_quotes(tmp_path: Path) -> None:
    text = '[split]\nprotocol = "timeline"\nvalidation_from = 2017-10-14\ntest_from = 2017-10-15T12:00:00\n'
    split = load_recipe(recipe_file(tmp_path, text)).split
    assert (split.validation_from, split.test_from) == ("2017-10-14", "2017-10-15 12:00:00")


def test_a_missing_file_lists_what_there_is(tmp_path: Path) -> None:
    recipe_file(tmp_path)
    with pytest.raises(LargeRecError, match=r"no recipe .*smal\.toml'; did you mean .*small\.toml'\? There are: .*small"):
        load_recipe(tmp_path / "smal.toml")
    with pytest.raises(LargeRecError, match=r"there is no recipe '.*nowhere/small\.toml'\.$"):
        load_recipe(tmp_path / "nowhere" / "small.toml")


@pytest.mark.parametrize("content", [b"seed: 5\n", b"[batch\n", b"\xff\xfe\x00", b"user,item\n1,2\n"])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(LargeRecError, match=r"broken\.toml is no TOML recipe: .*See recipes/quickstart\.toml"):
        load_recipe(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match="is no TOML recipe"):
        load_recipe(tmp_path)


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "seeds = 5")
    with pytest.raises(LargeRecError, match=rf"^{path}: unknown option 'seeds' in Recipe; did you mean 'seed'"):
        load_recipe(path)


# --- derived values, and JSON


@pytest.mark.parametrize("family", FAMILIES)
def test_resolved_writes_out_what_is_derived(family: str) -> None:
    recipe = recipe_from({"model": {"name": family, "size": "small"}})
    assert (recipe.model.depth, recipe.model.width, recipe.model.heads, recipe.optim.learning_rate) == (None,) * 4
    resolved = recipe.resolved()
    assert (resolved.model.depth, resolved.model.width, resolved.model.heads) == recipe.model.shape
    assert resolved.optim.learning_rate == derived_learning_rate(recipe.model.shape[1])
    assert resolved.resolved() == resolved
    unresolved = {"model": {"depth": None, "width": None, "heads": None}, "optim": {"learning_rate": None}}
    document = resolved.to_json()
    for group, keys in unresolved.items():
        document[group] |= keys
    assert recipe_from(document) == recipe  # nothing else changed


def test_resolved_keeps_what_was_set_by_hand() -> None:
    recipe = recipe_from({"model": {"name": "hstu", "depth": 3, "width": 24, "heads": 4}, "optim": {"learning_rate": 0.5}})
    resolved = recipe.resolved()
    assert (resolved.model.shape, resolved.optim.learning_rate) == ((3, 24, 4), 0.5)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"model": {"name": "hstu", "query_time": True}, "objective": {"name": "gbce", "negatives": 7}},
        {"model": {"name": "sasrec", "feedforward": 4}, "run": {"compare": ["hstu"]}, "optim": {"betas": [0.5, 0.75]}},
        {"split": {"protocol": "timeline", "validation_from": "80%", "test_from": "90%"}, "data": {"columns": {"user": "u"}}},
    ],
)
def test_json_round_trip(document: dict[str, Any]) -> None:
    for recipe in (recipe_from(document), recipe_from(document).resolved()):
        assert recipe_from(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_house_loads_and_comes_back(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe_from(json.loads(json.dumps(recipe.resolved().to_json()))) == recipe.resolved()


@pytest.mark.parametrize("family", FAMILIES)
def test_another_family_keeps_the_shared_settings(family: str) -> None:
    recipe = recipe_from({"model": {"name": "hstu", "size": "nano", "dropout": 0.4, "time_bias": False}, "seed": 5})
    other = recipe.with_family(family)
    assert (other.model.name, other.model.size, other.model.dropout, other.seed) == (family, "nano", 0.4, 5)
    assert other.model_copy(update={"model": recipe.model}) == recipe
    assert recipe_from(other.to_json()) == other


def test_another_family_has_its_own_defaults() -> None:
    recipe = recipe_from({"model": {"name": "sasrec", "feedforward": 2}}).with_family("hstu")
    assert recipe.model == recipe_from({"model": {"name": "hstu"}}).model


def test_another_family_gets_no_heads_from_or_for_one_without() -> None:
    attending = recipe_from({"model": {"name": "sasrec", "depth": 3, "heads": 4}})
    recurrent = attending.with_family("gru4rec")
    assert (recurrent.model.depth, recurrent.model.heads) == (3, None)
    assert recurrent.resolved().with_family("hstu").model.heads is None


@pytest.mark.parametrize(("own", "other", "kept"), [("sasrec", "fuxi-beta", 3), ("sasrec", "ligr", 4.0), ("llama", "ligr", 4.0)])
def test_a_feedforward_is_kept_where_it_means_the_same(own: str, other: str, kept: float) -> None:
    model: Any = recipe_from({"model": {"name": own, "feedforward": 3}}).with_family(other).model
    assert model.feedforward == kept


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(LargeRecError, match=r"unknown model family 'hsut'; did you mean 'hstu'.*Allowed: .*sasrec"):
        Recipe().with_family("hsut")


@pytest.mark.parametrize(("native", "wanted"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_what_the_processor_is_good_at(monkeypatch: pytest.MonkeyPatch, native: bool, wanted: str) -> None:
    monkeypatch.setattr(recipe_module, "native_bf16", lambda: native)
    asked = Recipe(train=TrainOptions(precision="auto"))
    assert asked.resolved().train.precision == wanted
    for given in ("bf16", "fp32"):
        assert Recipe(train=TrainOptions(precision=given)).resolved().train.precision == given
