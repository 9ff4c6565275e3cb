"""A folder that stands for several finished runs on one split and loads like a run.

It holds no weights and no histories: ``recipe.json`` names the members, by their places relative to it, and ``lineage.json`` says
by SHA-256 with which weights they were measured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largerec import metrics
from largerec.bundle import Bundle, is_partial
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.evaluate import measure
from largerec.writing import make_folder

SUMMED = ("params", "params_non_embedding", "train_tokens", "train_flops", "train_seconds", "steps")


def ensemble(members: Sequence[str | Path], to: str | Path) -> dict[str, Any]:
    """Make the ensemble of finished runs in the folder ``to``, equal weights, and measure it on validation.

    Returns its ``result.json``, with the sums of the members' costs. The same members in the same place are found as they are.

    Raises:
        LargeRecError: fewer than two runs; a run is missing, unfinished, named twice, an ensemble itself or has tasks; runs
            differ in data, split or query time; or the folder holds something else, or was measured before a member changed.
    """
    bundles, bundle = [Bundle.open(path) for path in members], Bundle(to)
    results = [one.read_json("result.json") for one in bundles]
    _check_members(bundles, results)
    relative = [os.path.relpath(one.path.resolve(), bundle.path.resolve()) for one in bundles]
    weights = [one.weights_hash() for one in bundles]
    if bundle.path.is_dir() and not all(is_partial(file) for file in bundle.path.iterdir()):
        if not bundle.file("recipe.json").is_file() or list(Bundle.open(to).members()) != relative:
            raise LargeRecError(f"{bundle.path} is not empty and not this ensemble; choose another folder.")
        if bundle.file("result.json").is_file():
            bundle.check_members()
            return bundle.read_json("result.json")
    make_folder(bundle.path, "run.dir")
    bundle.remove_partial_files()
    first = bundles[0].read_json("recipe.json")
    bundle.write_json("recipe.json", {**first, "members": relative})
    lineage = bundles[0].read_json("lineage.json")
    bundle.write_json("lineage.json", lineage | {"parents": relative, "weights": weights})
    engine = load(to)
    found = measure(engine, engine.sequences.targets("validation"))
    cutoffs = bundle.recipe().evaluate.k
    result = {
        "name": " + ".join(dict.fromkeys(one["name"] for one in results)),
        "model": " + ".join(one["model"] for one in results),
        **{key: results[0][key] for key in ("protocol", "query_time", "seed", "data")},
        **{key: sum(one[key] for one in results) for key in SUMMED},
        "threads": max(one["threads"] for one in results),  # of the training whose seconds are summed
        "seeds": sorted({one["seed"] for one in results}),
        "best_step": max(one["best_step"] for one in results),
        "members": relative,
        "weights": "equal, of softmax probabilities",
        "validation": metrics.summarise(found.rank_N, cutoffs),
        "validation_unmasked": metrics.summarise(found.unmasked_N, cutoffs),
        "tasks": {},
        "n_test_evaluations": 0,
    }
    bundle.write_json("result.json", result)
    return result


def _check_members(bundles: Sequence[Bundle], results: Sequence[dict[str, Any]]) -> None:
    if len(bundles) < 2:
        raise LargeRecError(f"an ensemble has two members or more, and {len(bundles)} was given.")
    places = [one.path.resolve() for one in bundles]
    for at, (one, result) in enumerate(zip(bundles, results, strict=True)):
        if one.members():
            raise LargeRecError(f"{one.path} is an ensemble itself; name its members instead.")
        if one.recipe().tasks:
            raise LargeRecError(f"{one.path} has tasks, which an ensemble does not mix; name runs that only retrieve.")
        if places.count(places[at]) > 1:
            raise LargeRecError(f"{one.path} is named twice; equal weights need each run once.")
        for key, said in (("data", "log or split"), ("protocol", "protocol"), ("query_time", "setting of query time")):
            if result[key] != results[0][key]:
                raise LargeRecError(f"{one.path} has another {said} than {bundles[0].path}; an ensemble is of runs on one split.")
