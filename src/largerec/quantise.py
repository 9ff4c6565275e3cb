"""Make a finished run smaller to keep and to serve: whole numbers of 8 or 4 bits in place of its item tables' float32.

Nothing is trained again. The new folder loads, recommends and is evaluated like any run, so that what it costs is measured:
:func:`largerec.evaluate.compare_runs` tests it against the run that it was made of.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from largerec import metrics
from largerec.bundle import BEGINNING, CHOICE, FORGOTTEN, RANDOM, Bundle, is_partial
from largerec.engine import ModelScorer, load
from largerec.errors import LargeRecError
from largerec.evaluate import measure
from largerec.evaluate_tasks import asked_rows, predict_tasks, summarise_tasks
from largerec.item_tables import quantise_tables, table_bytes
from largerec.quantised_rows import Bits
from largerec.writing import make_folder

KEPT = (*(name for name in BEGINNING if name != "lineage.json"), RANDOM, CHOICE, FORGOTTEN)
OF_TRAINING = (
    *("name", "model", "protocol", "query_time", "seed", "data", "params", "params_non_embedding"),
    *("train_tokens", "train_flops", "train_seconds", "threads", "steps", "best_step"),
)


def quantise(path: str | Path, to: str | Path, bits: Bits = 8) -> dict[str, Any]:
    """Copy the finished run ``path`` into the folder ``to``, its tables with ``bits`` a number, and measure it on validation.

    Returns its ``result.json``: the run's, with validation measured anew and ``item_table`` saying ``bits``, ``bytes`` and the
    ``bytes_full`` of before. The same call finds what it made.

    Raises:
        LargeRecError: the run is missing or unfinished, is an ensemble, has smaller tables or is quantised already; or ``to``
            holds something else, or was made of other weights.
    """
    source, target = Bundle.open(path), Bundle(to)
    result = source.read_json("result.json")
    if source.members():
        raise LargeRecError(f"{source.path} is an ensemble, which has no table of its own; quantise its members.")
    if source.table_bits() is not None:
        raise LargeRecError(f"{source.path} is quantised already; name the run that it was made of.")
    if (kind := source.recipe().model.table.kind) != "full":
        raise LargeRecError(f"{source.path} has a {kind} table, and only full ones are quantised: model.table.kind=full.")
    made_of = {"parent": os.path.relpath(source.path.resolve(), target.path.resolve()), "weights": source.weights_hash()}
    if target.path.is_dir() and not all(is_partial(file) for file in target.path.iterdir()):
        return _found(target, made_of, bits)
    make_folder(target.path, "run.dir")  # before it is measured
    engine = load(path)
    assert isinstance(engine.scorer, ModelScorer)
    model, full = engine.scorer.model, table_bytes(engine.scorer.model)
    quantise_tables(model, bits)
    engine.scorer.prepared()
    found = measure(engine, engine.sequences.targets("validation")) if engine.retrieves else None
    recipe, tasks = source.recipe(), dict[str, Any]()
    if engine.predicts:
        predicted = predict_tasks(engine, asked_rows(engine.sequences, "validation"))
        tasks = {"validation_tasks": summarise_tasks(engine, predicted, recipe.evaluate, recipe.seed)}
    result = {key: result[key] for key in OF_TRAINING} | {
        "validation": {} if found is None else metrics.summarise(found.rank_N, recipe.evaluate.k),
        "validation_unmasked": {} if found is None else metrics.summarise(found.unmasked_N, recipe.evaluate.k),
        **tasks,
        "item_table": {"bits": bits, "bytes": table_bytes(model), "bytes_full": full},
        "tasks": {},
        "n_test_evaluations": 0,
    }
    target.remove_partial_files()
    for name in (name for name in KEPT if source.file(name).is_file()):
        target.write_copy(name, source.file(name))
    target.write_tensors("model.safetensors", model.state_dict())
    target.write_json("lineage.json", source.read_json("lineage.json") | made_of)
    target.write_json("recipe.json", source.read_json("recipe.json") | {"table_bits": bits})
    target.write_json("result.json", result)
    return result


def _found(target: Bundle, made_of: dict[str, str], bits: Bits) -> dict[str, Any]:
    """The result of what stands in the folder already, if it is just this."""
    whole = all(target.file(name).is_file() for name in ("recipe.json", "lineage.json", "result.json"))
    lineage = target.read_json("lineage.json") if whole else {}
    if not whole or target.table_bits() != bits or any(lineage.get(key) != value for key, value in made_of.items()):
        raise LargeRecError(
            f"{target.path} is not empty and not this run with {bits} bits a number; remove it or choose another folder."
        )
    return target.read_json("result.json")
