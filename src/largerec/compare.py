"""Several recipes side by side: one split, the same seeds, one table with intervals, paired tests and costs.

Each run is a bundle of its own in ``FOLDER/NAME/seed-S``, so that a comparison of many hours may be killed at any moment: the
same command makes no finished run again, and takes up the one that was interrupted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from largerec.bundle import Bundle, flatten
from largerec.compare_table import Row, table
from largerec.doctor import processor
from largerec.ensemble import ensemble as make_ensemble
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate, measured_otherwise
from largerec.experiments import placed, with_compared
from largerec.item_vectors import words_hash
from largerec.recipe import MAX_SEED, Recipe, apply_overrides, load_recipe
from largerec.report.compared import compared_page
from largerec.split_log import SplitLog
from largerec.train import train
from largerec.tune import Tuned, columns_read, needed_optuna, own_space, promote, tune
from largerec.writing import check_file, write_json

FOLDER = "runs/compare"
SEEDS = (0, 1, 2)
ALIKE = ("data", "split", "tasks", "lists", "evaluate")
"""Groups in which the recipes of one table may not differ."""
ADVICE = "Remove it, or choose another run.dir."
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TAKEN = ("seeds", "popularity", "compare.json", "compare.html")  # a row NAME+seeds, a baseline, files of the folder


def compare(
    recipes: Sequence[Recipe],
    seeds: Sequence[int] = SEEDS,
    folder: str | Path = FOLDER,
    *,
    against: str | None = None,
    trials: int = 0,
    ensemble: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train and evaluate every recipe with every seed and set them side by side.

    The families of a recipe's ``run.compare`` are rows too. The test part is looked at once a run, and the row that is best on
    validation is marked ``chosen``. ``against``: the row that the others are tested against, the chosen one when not given.
    ``trials``: so many trials of every recipe on validation first, by :func:`largerec.tune.tune`; the best settings then take
    the recipe's place. ``ensemble``: add the rows of :func:`ensemble_rows`. Rows with query time are chosen and tested among
    themselves. Returns ``{"rows": [...], "sections": [...], ...}`` as docs/compare.md describes it.

    Raises:
        LargeRecError: recipes that cannot stand in one table, a folder with runs of others, or as :func:`largerec.train.train`.
    """
    folder, started = Path(folder), [one for recipe in recipes for one in with_compared(recipe)]
    check_alike(started, seeds, against)
    check_asked(started, seeds, trials=trials, ensemble=ensemble)
    if (threads := started[0].threads) is not None:
        torch.set_num_threads(threads)  # also where no run is left to set it, and the rows are only timed
    split = SplitLog.of(started[0])
    tuned: dict[str, Tuned] = {}
    for recipe in started if trials else ():
        tried = words_hash(split.log.items, split.tokenizer.vocabulary["item_id"], columns_read(recipe))
        read = {**split.beside(recipe).hashes, **({} if tried is None else {"words_hash": tried})}
        tuned[recipe.name] = tune(recipe, trials, folder / recipe.name, read, quiet=quiet)
    for name, search in tuned.items():
        promote(search, folder / name, seeds)
    started = [tuned[recipe.name].recipe if tuned else recipe for recipe in started]
    hashes = split.hashes(started)
    searched = (
        f"The search of {trials} trials chose other settings than that run was made with. Remove the folders "
        f"{folder}/{{}}/seed-* (the trials stay, and are not made again), or choose another run.dir."
    )
    advice = {recipe.name: searched.format(recipe.name) if tuned else ADVICE for recipe in started}
    for seed in seeds:  # before hours of training
        for recipe in started:
            there = placed(recipe, folder / recipe.name / f"seed-{seed}", seed)
            refuse_another(there, hashes[recipe.name], advice[recipe.name])
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {recipe.name: [] for recipe in started}
    first: Path | None = None
    for seed in seeds:
        for recipe in started:
            path = folder / recipe.name / f"seed-{seed}"
            run = placed(recipe, path, seed)
            result = finished_run(run, hashes[recipe.name], advice=advice[recipe.name], beside=first, quiet=quiet)
            found[recipe.name].append((path, result))
            first = first or path
    rows = [Row(name, tuple(path for path, _ in runs), tuple(result for _, result in runs)) for name, runs in found.items()]
    if ensemble:
        rows += ensemble_rows(rows, folder, started[0])
    document = table(rows, started[0], against)
    for row in document["rows"]:
        row |= {"trials": tuned[row["name"]].to_json()} if row["name"] in tuned else {}
    return document | {"dir": str(folder), "seeds": list(seeds), "trials": trials, "data": split.data_hash}


def from_arguments(arguments: Sequence[str], seeds: str, to: str | None = None, **options: Any) -> dict[str, Any]:
    """``largerec compare``: recipes, overrides and seeds as they are typed, and :func:`compare` with its page ``compare.html``.

    A number alone says how many seeds; several are the seeds themselves. ``to``: a file for the document.

    Raises:
        LargeRecError: an argument is no recipe, number or ``key=value``, or an override is not for a comparison.
    """
    files = [given for given in arguments if given.endswith(".toml") or os.path.isfile(given)]  # also of what no name can be
    more = [given for given in arguments if given.isdecimal() and given not in files]
    overrides = [given for given in arguments if given not in files and given not in more]
    numbers = [*seeds.replace(",", " ").split(), *more]
    if not numbers or not all(number.isdecimal() and int(number) <= MAX_SEED for number in numbers):
        raise LargeRecError(
            f"--seeds {seeds!r} is no number up to {MAX_SEED}; write --seeds 3 for three seeds, or --seeds 0 1 2."
        )
    for override in overrides:
        if override.startswith(("seed=", "run.overwrite=", "run.compare=", "name=")):
            key = override.partition("=")[0]
            raise LargeRecError(
                f"{override!r} is not for a comparison: seeds come from --seeds, rows and their names from the recipes, and no "
                f"run is replaced (remove its folder instead). Leave {key} out."
            )
    recipes = [load_recipe(file, overrides) for file in files]
    place = apply_overrides({}, overrides).get("run", {}).get("dir", FOLDER)
    if to:
        check_file(Path(to), "--out", inputs=files)
    chosen = [int(number) for number in numbers]
    found = compare(recipes, chosen if len(chosen) > 1 else range(chosen[0]), place, **options)
    command = ["largerec compare", *map(quote, files), f"--seeds {' '.join(numbers)}"]
    command += [
        f"--{name}" if value is True else f"--{name} {value}" for name, value in options.items() if value and name != "quiet"
    ]
    command += ["data.path=<data>" if override.startswith("data.path=") else quote(override) for override in overrides]
    cards = {run.get("device", "cpu") for row in found["rows"] for run in row.get("runs", [])} - {"cpu"}
    made = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": ", ".join([*sorted(cards), processor()]),
        "software": f"torch {torch.__version__}",
        "command": " ".join(command),
    }
    found = made | found | {"report": str(compared_page(found | made, Path(place) / "compare.html"))}
    for path in (Path(place) / "compare.json", *([Path(to)] if to else [])):
        write_json(path, found)
    return found


# --- what may stand in one table


def check_alike(recipes: Sequence[Recipe], seeds: Sequence[int], against: str | None) -> None:
    """Refuse what one table cannot hold, before anything is trained.

    Raises:
        LargeRecError: names or seeds are given twice; data, split, evaluation, threads, device or the metric that chooses differ.
    """
    if not recipes or not seeds:
        raise LargeRecError("a comparison needs at least one recipe and one seed: largerec compare a.toml b.toml --seeds 3.")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise LargeRecError(f"the seeds are {list(seeds)}; give each once, 0 or more.")
    names = [recipe.name for recipe in recipes]
    for name in names:
        if not NAME.fullmatch(name):
            raise LargeRecError(f"name={name!r} cannot be a folder; letters, digits, '.', '_' and '-' are allowed.")
        if name in TAKEN:
            raise LargeRecError(f"name={name!r} is that of another row or file of a comparison; choose another for the recipe.")
        if names.count(name) > 1:
            raise LargeRecError(
                f"two recipes have the name {name!r}, but rows and folders go by it; change `name` in one of them."
            )
    if against is not None and against not in names:
        raise LargeRecError(f"there is no row {against!r} to test against; the rows are {', '.join(names)}.")
    first = recipes[0]
    for other in recipes[1:]:
        for group in ALIKE:
            _refuse_other(first, other, group, flatten(first.model_dump()[group]), flatten(other.model_dump()[group]))
        _refuse_other(
            first, other, "train", *({name: getattr(one.train, name) for name in ("metric", "device")} for one in (first, other))
        )
        if first.threads != other.threads:
            raise LargeRecError(
                f"{first.name} and {other.name} cannot stand in one table: threads is {first.threads} in the one and "
                f"{other.threads} in the other. Times are compared, and numbers depend on it to the bit: give both the same with "
                f"the override threads={first.threads or other.threads}."
            )
    if "@" not in first.train.metric:
        return
    k = int(first.train.metric.partition("@")[2])
    if k not in first.evaluate.k:
        raise LargeRecError(
            f"train.metric={first.train.metric!r} chooses the best row, but evaluate.k={list(first.evaluate.k)} does not report "
            f"it; add {k} to evaluate.k or choose another train.metric."
        )


def check_asked(recipes: Sequence[Recipe], seeds: Sequence[int], *, trials: int, ensemble: bool) -> None:
    """Refuse a search or ensembles that could not be made when all runs are, before anything is trained.

    Raises:
        LargeRecError: a recipe has no space or a bad one, optuna is missing, or there is nothing to make ensembles of.
    """
    for recipe in recipes if trials else ():
        own_space(recipe)
    if trials > 1:
        needed_optuna()
    if not ensemble:
        return
    if recipes[0].tasks:
        raise LargeRecError("--ensemble mixes runs that only retrieve, and these recipes have tasks; leave one of the two out.")
    families = {(getattr(recipe.model, "query_time", False), recipe.model.name) for recipe in recipes}
    if len(seeds) == 1 and len({query_time for query_time, _ in families}) == len(families):
        raise LargeRecError(
            "--ensemble needs recipes of two model families or more than one seed; here are neither. Rows with query time "
            "are a table of their own."
        )


def _refuse_other(first: Recipe, other: Recipe, group: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise LargeRecError(
                f"{first.name} and {other.name} cannot stand in one table: {group}.{key} is {ours.get(key)!r} in the one and "
                f"{theirs.get(key)!r} in the other. Rows are compared on the same targets: give both the same value, for example "
                f"with the override {group}.{key}=..., or compare them apart."
            )


# --- runs


def refuse_another(recipe: Recipe, hashes: Mapping[str, str], advice: str = ADVICE) -> None:
    """Refuse a run in ``run.dir`` that is not the recipe's, or was measured otherwise; where there is none, nothing is refused.

    ``hashes``: of what the recipe reads (:meth:`largerec.split_log.SplitLog.beside`). ``advice``: what to do about another run.

    Raises:
        LargeRecError: another recipe, other data or another evaluation is there.
    """
    bundle = Bundle(recipe.run.dir)
    if not bundle.file("recipe.json").is_file():
        return  # also where the folder holds something else, which training refuses
    finished = bundle.file("result.json").is_file()
    bundle.check_same(recipe.resolved(), hashes, "a finished run" if finished else "an unfinished run", advice)
    result = bundle.read_json("result.json") if finished else {}
    if "test" in result and (other := _measured_otherwise(bundle, recipe)):
        raise LargeRecError(
            f"run.dir={recipe.run.dir!r} was evaluated with {other} and the test part is looked at once: give the recipe the "
            f"same [evaluate] group. {ADVICE}"
        )
    if "test" in result and (other := measured_otherwise(result, recipe)):
        raise LargeRecError(
            f"run.dir={recipe.run.dir!r} was evaluated once more, with {other}: `largerec evaluate` it as the recipe says, "
            f"or else: {ADVICE}"
        )


def finished_run(
    recipe: Recipe,
    hashes: Mapping[str, str],
    *,
    advice: str = ADVICE,
    beside: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """The result of the evaluated run in ``run.dir``: as it is there, taken up, or made. ``beside``: whose baselines it shares.

    ``hashes`` and ``advice``: as for :func:`refuse_another`.

    Raises:
        LargeRecError: another recipe, other data or another evaluation is there, or as :func:`largerec.train.train`.
    """
    refuse_another(recipe, hashes, advice)
    bundle = Bundle(recipe.run.dir)
    if not bundle.file("result.json").is_file():
        train(recipe, quiet=quiet)
    result = bundle.read_json("result.json")
    if "test" in result:
        return result
    if bundle.recipe().evaluate != recipe.evaluate:  # allowed for a run that is taken up; what was measured says it from now on
        evaluate(bundle.path, recipe.evaluate, stage="validation")  # before the recipe says so: a kill between is seen
        document = bundle.read_json("recipe.json")
        document["recipe"]["evaluate"] = recipe.evaluate.model_dump(mode="json")
        bundle.write_json("recipe.json", document)
    return evaluate(bundle.path, beside=beside)


def _measured_otherwise(bundle: Bundle, recipe: Recipe) -> str | None:
    """What a run or an ensemble has in ``[evaluate]`` where the recipe has other, as ``evaluate.k=[5, 10]``; else None."""
    old, new = (flatten(one.evaluate.model_dump(mode="json")) for one in (bundle.recipe(), recipe))
    return ", ".join(f"evaluate.{key}={old.get(key)}" for key in new if old.get(key) != new[key]) or None


def ensemble_rows(rows: Sequence[Row], folder: Path, recipe: Recipe) -> list[Row]:
    """Ensembles as further rows, from the rows of each section that are best on validation: for every seed the best two families'
    runs of that seed, and all seeds of the best row. Folders are ``FOLDER/A+B/seed-S`` and ``FOLDER/A+seeds/seed-S-S...``.
    ``recipe`` says the metric and the evaluation.

    Raises:
        LargeRecError: there are neither two families nor two seeds, or an ensemble there was measured otherwise.
    """
    found, metric = list[Row](), recipe.train.metric
    for query_time in (False, True):
        own = sorted((row for row in rows if row.query_time == query_time), key=lambda row: -row.validation(metric))
        others = [row for row in own if row.results[0]["model"] != own[0].results[0]["model"]]
        if others:
            pair, name = (own[0].name, others[0].name), f"{own[0].name}+{others[0].name}"
            both = list(zip(own[0].folders, others[0].folders, strict=True))
            found.append(_ensemble_row(name, [folder / name / one.name for one, _ in both], both, pair, recipe))
        if own and len(own[0].folders) > 1:
            name, seeds = f"{own[0].name}+seeds", "-".join(str(result["seed"]) for result in own[0].results)
            found.append(_ensemble_row(name, [folder / name / f"seed-{seeds}"], [own[0].folders], (own[0].name,), recipe))
    if not found:
        raise LargeRecError("--ensemble needs recipes of two model families or more than one seed; here are neither.")
    return found


def _ensemble_row(
    name: str, folders: Sequence[Path], members: Sequence[Sequence[Path]], rows: tuple[str, ...], recipe: Recipe
) -> Row:
    results = []
    for folder, runs in zip(folders, members, strict=True):
        result = make_ensemble(runs, folder)
        other = _measured_otherwise(Bundle(folder), recipe) or ("test" in result and measured_otherwise(result, recipe))
        if other:
            raise LargeRecError(
                f"{folder} is an ensemble that was measured with {other}. Remove that folder (nothing is trained for it), or "
                "choose another run.dir."
            )
        results.append(result if "test" in result else evaluate(folder, beside=runs[0]))
    return Row(name, tuple(folders), tuple(results), rows)
