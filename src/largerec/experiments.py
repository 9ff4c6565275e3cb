"""What trains more than one run: the main job of a recipe, with other families beside it on the same split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from largerec.bundle import Bundle
from largerec.engine import Engine, load
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate, interval_level
from largerec.recipe import Recipe, TuneOptions
from largerec.train import train


def run(recipe: Recipe, *, quiet: bool = False) -> dict[str, Any]:
    """Train, evaluate on the test part and recommend: the recipe's model, and each family of ``run.compare`` beside it.

    Bundles are ``run.dir`` and ``run.dir/compare/FAMILY``. Returns ``{"rows": [{name, test, intervals, ...}], "examples": [...],
    "dir": ..., "result": the main run's result.json}``; rows begin with the popularity baselines, and end with
    the best possible where the log is a generated one.

    Raises:
        LargeRecError: as :func:`largerec.train.train`.
    """
    results = []
    recipes = with_compared(recipe)
    whole = all("test" in _earlier(one) for one in recipes)  # nothing is left to do: the first training refuses it
    for one in recipes:
        result = {} if whole else _earlier(one)
        if not result:
            train(one, quiet=quiet)
        results.append(result if "test" in result else evaluate(one.run.dir))
    if len({result["data"] for result in results}) > 1:
        raise LargeRecError(
            f"the log changed between the runs below {recipe.run.dir}, so that their rows cannot stand in one table; "
            "pass run.overwrite=true or choose another run.dir."
        )
    shown = [] if recipe.model.ranks_only else examples(load(recipe.run.dir))
    return {"rows": rows_of(results), "examples": shown, "dir": recipe.run.dir, "result": results[0]}


def rows_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Table rows of result documents on one split: the baselines, the compared families, the main model, the best possible."""
    main = results[0]
    rows = [_untrained(name, baseline) for name, baseline in main["baselines"].items()]
    for result in [*results[1:], main]:
        kept = {key: result[key] for key in ("model", "params_non_embedding", "train_seconds", "test", "intervals")}
        rows.append({"name": result["model"], "unmasked": result["test_unmasked"], "level": result["level"], **kept})
    if "best_possible" in main:
        rows.append(_untrained("best possible", main["best_possible"]))
    return rows


def _untrained(name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "model": None, "test": found, "unmasked": found["unmasked"], "intervals": found["intervals"]}


def with_compared(recipe: Recipe) -> list[Recipe]:
    """The recipe, and one for each other family of ``run.compare`` with its own name and folder below the recipe's."""
    recipes = [recipe]
    for family in recipe.run.compare:
        if family == recipe.model.name:
            continue
        options = recipe.run.model_copy(update={"dir": str(Path(recipe.run.dir) / "compare" / family), "compare": ()})
        other = recipe.with_family(family)
        recipes.append(other.model_copy(update={"run": options, "name": f"{recipe.name}-{family}"}))
    return recipes


def placed(recipe: Recipe, path: Path, seed: int) -> Recipe:
    """The recipe with another folder and seed, to be trained alone and as it stands."""
    run = recipe.run.model_copy(update={"dir": str(path), "compare": (), "overwrite": False})
    return recipe.model_copy(update={"run": run, "seed": seed, "tune": TuneOptions()})


def _earlier(recipe: Recipe) -> dict[str, Any]:
    """The result of a finished run of the very same recipe, not made again when a later part was interrupted."""
    bundle = Bundle(recipe.run.dir)
    if recipe.run.overwrite or not bundle.file("result.json").is_file():
        return {}
    same = (
        bundle.recipe().model_copy(update={"run": recipe.run, "threads": recipe.threads, "tune": recipe.tune})
        == recipe.resolved()
    )
    if not same:
        return {}
    result = bundle.read_json("result.json")
    return result | {"level": interval_level(result, recipe)} if "test" in result else result


def examples(engine: Engine, users: int = 3, k: int = 10) -> list[dict[str, Any]]:
    """History and top k of the first users with the middle-most history lengths: what a person would look at first."""
    length_U = np.diff(engine.sequences.offsets_U1)
    middle = np.argsort(np.abs(length_U - np.median(length_U)), kind="stable")[:users]
    found = []
    for user in engine.sequences.user_ids.gather(middle).to_list():
        history, best = engine.history(user, last=5), engine.recommend([user], k)
        found.append({"user_id": user, "history": history.to_dicts(), "recommendations": best.drop("user_id").to_dicts()})
    return found


def validation_of(result: Mapping[str, Any], metric: str) -> float:
    """The value of ``train.metric`` on validation, of retrieval or of a task; lower than any where a run does not have it."""
    task, dot, name = metric.partition(".")
    found = result.get("validation_tasks", {}).get(task, {}).get(name) if dot else result["validation"].get(metric)
    return float("-inf") if found is None else float(found)
