"""Every recipe of recipes/ runs, and reads the data that it is made for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from runs import tiny_recipe

from largerec.ablate import load_ablation
from largerec.bundle import flatten
from largerec.datasets import DataOptions, load_log
from largerec.experiments import with_compared
from largerec.item_tables import SideOptions
from largerec.lists import ListOptions
from largerec.models import build_model, non_embedding_parameters
from largerec.recipe import Recipe, load_recipe
from largerec.sequences import build_sequences
from largerec.simulate import SimulateOptions
from largerec.tasks import TaskOptions
from largerec.train import train

FOLDER = Path(__file__).parents[1] / "recipes"
PLANS = sorted((FOLDER / "ablate").glob("*.toml"))
RECIPES = sorted(set(FOLDER.rglob("*.toml")) - set(PLANS))
ZOO = sorted((FOLDER / "zoo").glob("*.toml"))
TUNED = {"optim.learning_rate", "model.dropout", "head.temperature"}


def place_of(path: Path) -> str:
    """Where a recipe stands below ``recipes/``, without its ending: ``zoo/hstu``."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


RUN_DIRS = {"scale-demo": "runs/scale"}
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=place_of)
each_of_the_zoo = pytest.mark.parametrize("path", ZOO, ids=place_of)


def small(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe for two steps on a small generated log; moments of a split become shares of that log."""
    moments = {"validation_from": "70%", "test_from": "85%", "test_until": None}
    changes: dict[str, Any] = {
        "data": DataOptions(simulate=SimulateOptions(users=60, items=120, events=1500, categories=4)),
        "batch": recipe.batch.model_copy(update={"tokens": min(recipe.batch.tokens, 256)}),
        "train": recipe.train.model_copy(update={"max_steps": 2, "validation_targets": 20}),
        "run": recipe.run.model_copy(update={"dir": str(folder)}),
        "threads": 1,
    }
    if recipe.split.protocol == "timeline":
        changes["split"] = recipe.split.model_copy(update=moments)
    if recipe.tasks:  # of the generated log's own columns
        changes["tasks"] = {name: TaskOptions(where="behavior = 'buy'") for name in recipe.tasks}
    if recipe.split.positives is not None:  # likewise
        changes["split"] = changes.get("split", recipe.split).model_copy(update={"positives": "behavior != 'view'"})
    if recipe.lists.items:  # text of one id is a list of one item
        changes["lists"] = ListOptions(items="item_id", choice=recipe.lists.choice)
        changes["split"] = changes["split"].model_copy(update={"positives": "behavior != 'view'"})
    if recipe.batch.recent < 1 or set(recipe.scale.recent) - {1.0}:  # needs a clock, which the generated log has
        assert recipe.data.time_kind != "order"
    if recipe.model.side.columns:  # likewise
        changes["model"] = recipe.model.model_copy(update={"side": SideOptions(columns=("title",), width=16)})
    if recipe.features.any:  # likewise
        own: dict[str, Any] = {"context": {"hour": "auto"}, "user": {"user_id": "auto"}, "item": {"category": "auto"}}
        changes["features"] = recipe.features.model_copy(update=own)
    return recipe.model_copy(update=changes)


@pytest.mark.parametrize("path", PLANS, ids=place_of)
def test_every_plan_of_an_ablation_fits(path: Path) -> None:
    """Its recipe is there, its steps are known, and rows that train a model say so by name."""
    plan, recipe = load_ablation(path)
    assert recipe.evaluate.k and len(plan.version) >= 3 and len(plan.ablate.seeds) >= 2


def test_there_are_recipes() -> None:
    assert {"quickstart", "amazon-beauty", "ml-1m", "zoo/sasrec"} <= {place_of(path) for path in RECIPES}


@each_recipe
def test_a_recipe_trains(path: Path, tmp_path: Path) -> None:
    for recipe in with_compared(small(load_recipe(path), tmp_path / "run")):
        result = train(recipe, quiet=True)
        assert result["steps"] == 2
        assert result["name"] == recipe.name
        if recipe.model.ranks_only:
            assert all(math.isfinite(result["validation_tasks"][name]["log_loss"]) for name in recipe.tasks)
        else:
            assert math.isfinite(result["validation"]["ndcg@10"])


@each_recipe
def test_a_recipe_says_what_it_is_and_where_it_goes(path: Path) -> None:
    recipe = load_recipe(path)
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert recipe.name == place_of(path).replace("/", "-")
    assert recipe.run.dir == RUN_DIRS.get(place_of(path), f"runs/{place_of(path)}")
    assert not recipe.run.overwrite
    assert recipe.data.path is None, "data lies elsewhere on every machine"


RANKERS = ("din", "dcn-v2", "dlrm", "wukong")
REAL = {
    "quickstart": ("ml-100k", 943, 100_000),
    "amazon-beauty": ("amazon2014/beauty", 22_363, 198_502),
    "amazon-sports": ("amazon2014/sports", 35_598, 296_337),
    "amazon-toys": ("amazon2014/toys", 19_412, 167_597),
    "amazon-beauty-words": ("amazon2014/beauty", 22_363, 198_502),
    "amazon-sports-words": ("amazon2014/sports", 35_598, 296_337),
    "amazon-toys-words": ("amazon2014/toys", 19_412, 167_597),
    "ml-1m": ("ml-1m/interactions_ordered.parquet", 6_040, 999_611),
    "ml-latest-timeline": ("movielens-latest-206k", 2_148, 206_423),
    "globo-timeline": ("globo-news", 322_897, 2_988_181),
    "ml-latest-ratings": ("movielens-latest-206k", 2_148, 206_423),
    "trivago-lists": ("trivago", 7_513, 87_608),
    "kuairand": ("kuairand", 27_077, 1_039_631),
    "kuairand-unified": ("kuairand", 27_077, 1_039_631),
    "kuairand-unified-features": ("kuairand", 27_077, 1_039_631),
    **{f"kuairand-{name}": ("kuairand", 27_077, 1_039_631) for name in RANKERS},
    **{f"ml-latest-{name}": ("movielens-latest-206k", 2_148, 206_423) for name in RANKERS},
    "scale/globo": ("globo-news", 226_817, 1_511_312),
    "scale/ml-1m": ("ml-1m/interactions_ordered.parquet", 6_040, 999_611),
}


# Those left out read and split the log as kuairand-unified or ml-latest-ratings does; tests say so.
LIKE_ANOTHER = [f"{log}-{name}" for log in ("kuairand", "ml-latest") for name in RANKERS] + ["kuairand-unified-features"]


@pytest.mark.parametrize("name", [name for name in REAL if name not in LIKE_ANOTHER])
def test_a_recipe_reads_and_splits_the_data_it_is_made_for(name: str, shared_data: Path) -> None:
    folder, users, events = REAL[name]
    recipe = load_recipe(FOLDER / f"{name}.toml", [f"data.path={shared_data / folder}"])
    sequences = build_sequences(load_log(recipe.data), recipe.split, recipe.tasks, recipe.lists)
    assert (sequences.n_users, len(sequences.item_N)) == (users, events)
    if recipe.split.protocol == "leave-one-out":
        assert len(sequences.targets("test")) == len(sequences.targets("validation")) == users


def test_every_recipe_has_its_data() -> None:
    others = [path for path in RECIPES if path not in ZOO]
    assert {place_of(path) for path in others if "simulate" not in load_recipe(path).data.model_fields_set} == REAL.keys()


@each_of_the_zoo
def test_the_zoo_differs_in_the_model_and_what_is_tuned_alone(path: Path) -> None:
    """One log, one split, one loss and one way to train for all, and about as many parameters, which the comment counts."""
    recipe, beauty, sasrec = (load_recipe(one) for one in (path, FOLDER / "amazon-beauty.toml", FOLDER / "zoo/sasrec.toml"))
    assert recipe.tune == sasrec.tune and set(recipe.tune.space) == TUNED  # equal care: the same settings may be tried
    untuned = load_recipe(path, [f"{key}={flatten(beauty.to_json())[key]}" for key in TUNED])
    assert untuned.model_copy(update={key: getattr(beauty, key) for key in ("model", "name", "run", "tune")}) == beauty
    assert (path.stem, recipe.model.shape[1], untuned.model.dropout) == (recipe.model.name, 128, beauty.model.dropout)
    parameters = non_embedding_parameters(build_model(recipe.model, 10, recipe.batch.max_length))
    assert parameters == pytest.approx(non_embedding_parameters(build_model(sasrec.model, 10, 50)), rel=0.2)
    assert f"# {parameters:,} parameters" in path.read_text(encoding="utf-8")


def test_the_rankers_of_kuairand_differ_in_the_model_alone() -> None:
    """One split, the same tasks and features, one way to train and tune; with features, unified is still unified."""
    din, plain = load_recipe(FOLDER / "kuairand-din.toml"), load_recipe(FOLDER / "kuairand-unified.toml")
    for name in RANKERS[1:]:
        other = load_recipe(FOLDER / f"kuairand-{name}.toml")
        numbers = other.features.model_copy(update={"numbers": din.features.numbers})
        changes = {key: getattr(din, key) for key in ("model", "name", "run")}
        assert other.model_copy(update=changes | {"features": numbers}) == din
        assert (other.model.shape[1], other.model.dropout) == (din.model.shape[1], din.model.dropout)
    assert (din.split, din.tasks, din.batch) == (plain.split, plain.tasks, plain.batch)
    unified = load_recipe(FOLDER / "kuairand-unified-features.toml")
    assert unified.features == din.features.model_copy(update={"where": unified.features.where})
    own = ("features", "name", "run", "batch", "train", "tune")
    assert unified.model_copy(update={key: getattr(plain, key) for key in own}) == plain
    assert unified.batch.model_copy(update={"tokens": plain.batch.tokens}) == plain.batch


def test_the_rankers_of_movielens_split_like_its_ratings() -> None:
    ratings = load_recipe(FOLDER / "ml-latest-ratings.toml")
    for name in RANKERS:
        other = load_recipe(FOLDER / f"ml-latest-{name}.toml")
        assert (other.data, other.split, other.tasks) == (ratings.data, ratings.split, ratings.tasks)


def test_compared_runs_have_names_and_folders_of_their_own() -> None:
    recipe, other = with_compared(tiny_recipe(Path("runs/x"), "run.compare=['sasrec']"))
    assert (recipe.name, recipe.run.dir) == ("tiny", "runs/x")
    assert (other.name, other.run.dir, other.run.compare) == ("tiny-sasrec", "runs/x/compare/sasrec", ())
