"""Search for better settings of a recipe: a stated number of trials on validation, pruned at the median, never on the test.

Trial 0 is the recipe as it stands, so that tuning cannot choose anything worse on validation. The others are proposed by optuna
(tree-structured Parzen estimator, Bergstra et al. 2011). What is known after each trial is one line of ``trials.jsonl``, and the
proposal of trial n depends on those lines and on (seed, n) alone: a search that is killed goes on to the same trials.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from largerec.bundle import FEATURE_TABLES, NOT_OF_TRAINING, Bundle, flatten
from largerec.errors import Diverged, LargeRecError, Unfit, nearest
from largerec.experiments import placed, validation_of
from largerec.options import toml_key, toml_text
from largerec.recipe import Range, Recipe, recipe_from
from largerec.train import train
from largerec.writing import make_folder

AT_RANDOM = 3
"""Trials before the estimator has a say, trial 0 among them."""
PRUNE_AFTER = 1
"""A trial is given up when its best validation so far is below the median of the others' at that point: once this many are
finished, and not before ``tune.prune_from`` validations of its own."""
NOT_TO_TUNE = (
    "seed",
    "name",
    "threads",
    "run.",
    "tune.",
    "scale.",
    "data.",
    "split.",
    "tasks.",
    "lists.",
    "evaluate.",
    "model.query_time",
    "train.device",
    "train.evaluate_every",
    "train.metric",
    "train.validation_targets",
    "train.tensorboard",
)
LARGE = ("model.safetensors", "state.safetensors", "histories.parquet", "vocabulary.parquet", *FEATURE_TABLES)


Space = Mapping[str, Range | tuple[Any, ...]]


class Pruned(Exception):
    """A trial was given up."""


@dataclass(frozen=True)
class Tuned:
    """The best settings of a recipe on validation, and the record of all trials."""

    recipe: Recipe
    best: int
    budget: int
    trials: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The budget, how trials ended, what they cost and the chosen settings, without the curves."""
        states = [trial["state"] for trial in self.trials]
        return {
            "budget": self.budget,
            **{state: states.count(state) for state in ("finished", "pruned", "failed")},
            "seconds": round(sum(trial["seconds"] for trial in self.trials), 2),
            "chosen": self.best,
            "settings": self.trials[self.best]["settings"],
            "all": [{key: value for key, value in trial.items() if key not in ("curve", "drawn")} for trial in self.trials],
        }


def tune(recipe: Recipe, budget: int, folder: Path, hashes: Mapping[str, str], *, quiet: bool = False) -> Tuned:
    """Make ``budget`` trials of a recipe in ``folder/trials`` with its own seed, or as many as are missing there.

    The best settings are written to ``folder/tuned.toml``; the best trial's run stays in ``folder/trials/trial-N`` until
    :func:`promote` moves it. ``hashes``: of what the recipe reads, by the names of ``HASHES``, the words of :func:`columns_read`.

    Raises:
        LargeRecError: optuna is missing, the space is empty or does not fit the recipe, the trials there are of another search,
            or no trial finished.
    """
    space = own_space(recipe)
    place = Bundle(folder / "trials")
    make_folder(place.path, "run.dir")
    _check_same_search(recipe, place, hashes)
    records = _records(place)
    while len(records) < budget:
        records.append(_trial(recipe, space, records, place, quiet=quiet))
        place.write_text("trials.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    records = records[:budget]
    finished = [record for record in records if record["state"] == "finished"]
    if not finished:
        raise LargeRecError(f"{recipe.name}: none of {budget} trials finished ({records[0].get('why', '')}); see {place.path}.")
    best = max(finished, key=lambda record: (record["value"], -record["number"]))
    chosen = with_settings(recipe, best["settings"]) if best["number"] else recipe
    # The families of run.compare have files of their own.
    alone = chosen.model_copy(update={"run": chosen.run.model_copy(update={"compare": (), "dir": str(folder / "tuned")})})
    Bundle(folder).write_text("tuned.toml", as_toml(alone, f"Trial {best['number']} of {budget}: best {recipe.train.metric}."))
    return Tuned(chosen, best["number"], budget, records)


def promote(tuned: Tuned, folder: Path, seeds: Sequence[int]) -> None:
    """Make the best trial's run that of its seed, if it is one of ``seeds``: the same to the bit.

    Others' weights are removed, and its own where that seed's run has its settings: a run of other settings may make way later.
    """
    own, target = folder / "trials" / f"trial-{tuned.best}", folder / f"seed-{tuned.recipe.seed}"
    if tuned.recipe.seed in seeds and (own / "model.safetensors").is_file() and not target.exists():
        os.rename(own, target)
    kept = () if _has_settings(Bundle(target), tuned.trials[tuned.best]["settings"]) else (own,)
    for trial in (folder / "trials").glob("trial-*"):
        for name in LARGE if trial not in kept else ():
            (trial / name).unlink(missing_ok=True)


def _has_settings(run: Bundle, settings: Mapping[str, Any]) -> bool:
    return run.file("recipe.json").is_file() and settings.items() <= flatten(run.recipe().to_json()).items()


# --- the space


def own_space(recipe: Recipe) -> Space:
    """The recipe's space by rising key, widened where need be so that the recipe's own settings belong to it.

    Raises:
        LargeRecError: there is no space, a key is no option or not one to tune, or a value does not fit.
    """
    if not recipe.tune.space:
        raise LargeRecError(
            f"{recipe.name}: --trials needs to know what may change. Give the recipe a group [tune.space], for example with "
            "optim.learning_rate = {low = 0.0005, high = 0.004, log = true} and model.dropout = [0.3, 0.5], or the same as an "
            'override for all recipes: "tune.space.model.dropout=[0.3, 0.5]".'
        )
    own, space = flatten(recipe.resolved().to_json()), dict[str, Range | tuple[Any, ...]]()
    for key, values in sorted(recipe.tune.space.items()):
        if key.startswith(NOT_TO_TUNE):
            raise LargeRecError(
                f"tune.space.{key}: this would change what is measured, or is no setting; take it out of the space."
            )
        if key not in own:
            raise LargeRecError(f"{recipe.name}: tune.space.{key} is no option of this recipe{nearest(key, own)}")
        if isinstance(values, Range):
            if not isinstance(own[key], int | float) or isinstance(own[key], bool):
                raise LargeRecError(
                    f"tune.space.{key} is a range and the recipe's own value is {own[key]!r}; give it a number, or list choices."
                )
            kind = type(own[key])
            if kind(values.low) != values.low or kind(values.high) != values.high:
                raise LargeRecError(
                    f"tune.space.{key} is from {values.low} to {values.high}, but the option is a whole number; give whole "
                    "bounds."
                )
            low, high = kind(min(values.low, own[key])), kind(max(values.high, own[key]))
            if values.log and low <= 0:
                raise LargeRecError(
                    f"tune.space.{key} is a range with log = true, which the recipe's own value {own[key]!r} cannot belong to; "
                    "give the recipe a value above 0, leave log out, or list choices."
                )
            space[key] = Range(low=low, high=high, log=values.log)
            tried: tuple[Any, ...] = (low, high)
        else:
            plain = tuple(list(value) if isinstance(value, tuple) else value for value in values)
            tried = plain if own[key] in plain else (own[key], *plain)
            space[key] = tried
        for value in tried:
            with_settings(recipe, {key: value})
    return space


def columns_read(recipe: Recipe) -> tuple[str, ...]:
    """The item columns that the recipe's model or one of its space reads."""
    choices = recipe.tune.space.get("model.side.columns", ())
    in_space = [name for choice in choices for name in choice] if isinstance(choices, tuple) else []
    return tuple(sorted({*recipe.model.side.columns, *in_space}))


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with some options changed, by dotted key.

    Raises:
        LargeRecError: the result is no recipe.
    """
    document = recipe.to_json()
    for key, value in settings.items():
        *path, last = key.split(".")
        group = document
        for name in path:
            group = group[name]
        group[last] = value
    shown = ", ".join(f"{key}={value}" for key, value in settings.items())
    return recipe_from(document, f"{recipe.name} with {shown}")


def as_toml(recipe: Recipe, comment: str) -> str:
    """A recipe as TOML that reads as the same recipe: every option that is set, a dotted key each."""
    lines: list[str] = []

    def write(group: Mapping[str, Any], prefix: str) -> None:
        for key, value in group.items():
            if isinstance(value, Mapping):
                write(value, f"{prefix}{toml_key(key)}.")
            elif value is not None:
                lines.append(f"{prefix}{toml_key(key)} = {toml_text(value)}")

    write(recipe.to_json(), "")
    return "\n".join([f"# {comment}", *lines]) + "\n"


# --- trials


def _trial(recipe: Recipe, space: Space, records: list[dict[str, Any]], place: Bundle, *, quiet: bool) -> dict[str, Any]:
    """Make the next trial and return its record."""
    number = len(records)
    give_up: Callable[[list[float]], bool] = _never
    if number:
        drawn, give_up = _proposal(recipe, space, records)
    else:
        own = flatten(recipe.resolved().to_json())
        drawn = {k: own[k] if isinstance(v, Range) else v.index(own[k]) for k, v in space.items()}
    settings = {k: drawn[k] if isinstance(v, Range) else v[drawn[k]] for k, v in space.items()}
    record: dict[str, Any] = {"number": number, "settings": settings, "drawn": drawn, "seconds": 0.0}
    same = next((one for one in records if one["settings"] == settings), None)
    if same is not None:  # the same settings and seed would give the same numbers
        return record | {key: same[key] for key in ("state", "value", "curve")} | {"repeats": same.get("repeats", same["number"])}
    return record | _outcome(recipe, settings if number else {}, place.path / f"trial-{number}", give_up, quiet=quiet)


def _never(curve: list[float]) -> bool:
    return False


def needed_optuna() -> ModuleType:
    """The module that makes proposals.

    Raises:
        LargeRecError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise LargeRecError("--trials above 1 needs optuna; install it with: pip install 'largerec[tune]'") from None
    return optuna


def _proposal(
    recipe: Recipe, space: Space, records: list[dict[str, Any]]
) -> tuple[dict[str, Any], Callable[[list[float]], bool]]:
    """What optuna proposes next, drawn from the records and (seed, number) alone, and whether it gives up at a validation curve.

    Choices are drawn by their place, so that a choice may be any value.
    """
    optuna = needed_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds: dict[str, Any] = {}
    for key, values in space.items():
        if not isinstance(values, Range):
            kinds[key] = optuna.distributions.CategoricalDistribution(range(len(values)))
        elif isinstance(values.low, int) and isinstance(values.high, int):
            kinds[key] = optuna.distributions.IntDistribution(values.low, values.high, log=values.log)
        else:
            kinds[key] = optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
    drawn_by = int(np.random.SeedSequence([recipe.seed, len(records)]).generate_state(1)[0])
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(n_startup_trials=AT_RANDOM, seed=drawn_by),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER, n_warmup_steps=recipe.tune.prune_from),
    )
    states = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    for record in records:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[states[record["state"]]],
                value=record["value"] if record["state"] == "finished" else None,
                params=record["drawn"],
                distributions=kinds,
                intermediate_values=dict(enumerate(record["curve"], 1)),
            )
        )
    trial = study.ask(kinds)
    told = 0

    def give_up(curve: list[float]) -> bool:
        nonlocal told
        for at in range(told, len(curve)):
            trial.report(curve[at], at + 1)
        told = len(curve)
        return bool(trial.should_prune())

    return dict(trial.params), give_up


def _outcome(
    recipe: Recipe, settings: Mapping[str, Any], path: Path, give_up: Callable[[list[float]], bool], *, quiet: bool
) -> dict[str, Any]:
    """Train a trial, or take it up, until it ends, is given up or fails: ``state``, ``value``, ``curve`` and ``seconds``."""
    metric, bundle = recipe.train.metric, Bundle(path)

    def watch() -> None:
        if give_up(_curve(bundle, metric)):
            raise Pruned

    found: dict[str, Any] = {"state": "finished", "value": None}
    try:
        trial = placed(with_settings(recipe, settings), path, recipe.seed)
        trial.resolved()
    except LargeRecError as error:  # each setting fits the recipe, but not these together
        return found | {"state": "failed", "why": str(error), "curve": [], "seconds": 0.0}
    try:
        # Killed between the result and the record. A run of other settings (another optuna proposes others) training refuses.
        done = bundle.file("result.json").is_file() and _has_settings(bundle, settings)
        result = bundle.read_json("result.json") if done else train(trial, quiet=quiet, on_validation=watch)
        found["value"] = validation_of(result, metric)
    except Pruned:
        found["state"] = "pruned"
    except (Diverged, Unfit) as error:
        found |= {"state": "failed", "why": str(error)}
    lines = _log(bundle)
    return found | {"curve": _curve(bundle, metric), "seconds": float(lines[-1]["seconds"]) if lines else 0.0}


def _log(bundle: Bundle) -> list[dict[str, Any]]:
    file = bundle.file("metrics.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _curve(bundle: Bundle, metric: str) -> list[float]:
    """The metric at each validation so far: read from the run, so that a trial that is taken up is judged by all of them."""
    return [float(line["validation"][metric]) for line in _log(bundle) if "validation" in line]


def _check_same_search(recipe: Recipe, place: Bundle, hashes: Mapping[str, str]) -> None:
    """Keep, or compare, what the trials depend on: records of another search would mislead this one."""
    settings = {key: value for key, value in flatten(recipe.resolved().to_json()).items() if not key.startswith(NOT_OF_TRAINING)}
    search: dict[str, Any] = {name.removesuffix("_hash"): value for name, value in hashes.items() if name != "random_hash"}
    search |= {**recipe.tune.model_dump(mode="json"), "recipe": settings}
    search = json.loads(json.dumps(search))
    if not place.file("search.json").is_file():
        return place.write_json("search.json", search)
    old = place.read_json("search.json")
    for part in search:
        if old.get(part, search[part]) != search[part]:
            before, now = (flatten({part: one.get(part)}) for one in (old, search))
            keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
            shown = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys[:4])
            raise LargeRecError(
                f"{place.path} holds trials of another search ({shown}). Remove the folder {place.path.parent}, or choose "
                "another run.dir."
            )
    return None


def _records(place: Bundle) -> list[dict[str, Any]]:
    file = place.file("trials.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
