"""A run's directory: read without running code, refused with a clear message when it is not whole, written in one step a file."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from logs import log_of
from runs import copy_of_run, tiny_recipe, trained_run
from safetensors.torch import load_file, save_file

from largerec import bundle as module
from largerec.bundle import Bundle, data_hash, flatten
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate
from largerec.sequences import SplitOptions, build_sequences
from largerec.tokenizers import AtomicTokenizer
from largerec.train import train

# --- what cannot be loaded ------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it creates a file: the proof that code ran."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.at,))


def put_pickle(run: Path) -> None:
    (run / "model.safetensors").write_bytes(pickle.dumps(Bomb(run / "exploded")))


def put_torch_file(run: Path) -> None:
    torch.save({"weights": Bomb(run / "exploded")}, run / "model.safetensors")


def truncate(name: str) -> Callable[[Path], None]:
    def cut(run: Path) -> None:
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 2])

    return cut


def empty(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(b"")


def remove(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(text) and None


def edit_recipe(old: str, new: str) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        text = (run / "recipe.json").read_text()
        assert text.count(old) == 1
        (run / "recipe.json").write_text(text.replace(old, new))

    return edit


def put_folder(name: str) -> Callable[[Path], None]:
    def replace(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return replace


def set_key(name: str, key: str, value: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        document = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**document, key: value}))

    return change


def set_column(name: str, column: str, to: pl.Expr) -> Callable[[Path], None]:
    return lambda run: pl.read_parquet(run / name).with_columns(to.alias(column)).write_parquet(run / name)


def repeat_an_item(run: Path) -> None:
    table = pl.read_parquet(run / "vocabulary.parquet")
    pl.concat([table[:-1], table[:1]]).write_parquet(run / "vocabulary.parquet")


def put_other_table(name: str) -> Callable[[Path], None]:
    return lambda run: pl.DataFrame({"colour": ["red"]}).write_parquet(run / name)


def widen(run: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    tensors["input.item.weight"] = torch.zeros(60, 17)
    save_file(tensors, run / "model.safetensors")


def drop_tensor(run: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, run / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(shutil.rmtree, r"there is no run '.*run'; give the run\.dir of", id="missing folder"),
        pytest.param(remove("recipe.json"), r"is not a LargeRec run: it has no recipe\.json.*train", id="foreign folder"),
        pytest.param(truncate("recipe.json"), r"recipe\.json is damaged \(.*restore the file or train again", id="cut recipe"),
        pytest.param(write("recipe.json", "[1]"), r"recipe\.json is damaged: it holds no JSON object", id="recipe is a list"),
        pytest.param(edit_recipe('"format": 1', '"format": 99'), r"has format 99; .* reads format 1", id="other format"),
        pytest.param(write("recipe.json", '{"cake": 1}'), r"has format None", id="a foreign recipe.json"),
        pytest.param(edit_recipe('"warmup_steps"', '"warmup"'), r"recipe\.json: unknown option 'warmup'", id="unknown key"),
        pytest.param(edit_recipe('"max_length": 10', '"max_length": -1'), r"batch\.max_length.*given: -1", id="bad value"),
        pytest.param(write("recipe.json", '{"format": 1, "recipe": 5}'), r"the recipe does not fit", id="recipe is a number"),
        *(
            pytest.param(
                set_key("recipe.json", key, value), rf"recipe\.json is damaged \({key} is .*restore", id=f"{key}={value}"
            )
            for key, value in [
                ("members", 5),
                ("members", None),
                ("members", "ab"),
                ("members", [1]),
                ("task_edges", 3),
                ("task_edges", {"a": 3}),
                ("time_kind", "x"),
                ("time_kind", [1]),
            ]
        ),
        pytest.param(remove("model.safetensors"), r"model\.safetensors is missing; .*first validation", id="no weights"),
        pytest.param(truncate("model.safetensors"), r"model\.safetensors is damaged", id="cut weights"),
        pytest.param(empty("model.safetensors"), r"model\.safetensors is damaged", id="empty weights"),
        pytest.param(put_folder("model.safetensors"), r"model\.safetensors is damaged", id="weights are a folder"),
        pytest.param(put_pickle, r"model\.safetensors is damaged", id="pickle as weights"),
        pytest.param(put_torch_file, r"model\.safetensors is damaged", id="torch file as weights"),
        pytest.param(widen, r"input\.item\.weight has shape \(60, 17\), the recipe's model needs \(60, 16\)", id="other shape"),
        pytest.param(drop_tensor, r"norm\.weight has shape None", id="a tensor is missing"),
        pytest.param(
            edit_recipe('"width": 16,\n   "heads"', '"width": 32,\n   "heads"'),
            r"does not fit the run's recipe",
            id="recipe of another width",
        ),
        pytest.param(remove("vocabulary.parquet"), r"vocabulary\.parquet is missing", id="no vocabulary"),
        pytest.param(truncate("vocabulary.parquet"), r"vocabulary\.parquet is damaged", id="cut vocabulary"),
        pytest.param(put_other_table("vocabulary.parquet"), r"no column 'item_id'", id="foreign vocabulary"),
        pytest.param(repeat_an_item, r"vocabulary\.parquet is damaged \(item 'i\d+' stands in it twice\)", id="an item twice"),
        *(
            pytest.param(
                set_column(f"{name}.parquet", column, to),
                rf"{name}\.parquet is damaged \(column '{column}' {how}",
                id=f"{column} {how}",
            )
            for name, column, to, how in [
                ("vocabulary", "train_count", pl.lit("a"), "holds String"),
                ("vocabulary", "item_id", pl.lit(0.5), "holds Float64"),
                ("vocabulary", "item_id", pl.lit(None, pl.String), "has gaps"),
                ("histories", "timestamp", pl.lit("a"), "holds String"),
                ("histories", "stage", pl.lit(True), "holds Boolean"),
                ("histories", "user_id", pl.lit(None, pl.String), "has gaps"),
            ]
        ),
        pytest.param(remove("histories.parquet"), r"histories\.parquet is missing", id="no histories"),
        pytest.param(truncate("histories.parquet"), r"histories\.parquet is damaged", id="cut histories"),
        pytest.param(empty("histories.parquet"), r"histories\.parquet is damaged", id="empty histories"),
        pytest.param(put_folder("histories.parquet"), r"histories\.parquet is damaged", id="histories are a folder"),
        pytest.param(put_other_table("histories.parquet"), r"no column 'user_id'", id="foreign histories"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    run = copy_of_run(tmp_path / "run")
    damage(run)
    with pytest.raises(LargeRecError, match=message) as caught:
        load(run)
    assert str(run) in str(caught.value)
    assert not (run / "exploded").exists()


def test_a_bomb_would_explode_if_code_ran(tmp_path: Path) -> None:
    """The proof above proves something."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", [remove("result.json"), truncate("result.json")])
def test_a_run_without_a_result_is_not_evaluated(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    run = copy_of_run(tmp_path / "run")
    damage(run)
    with pytest.raises(LargeRecError, match=r"result\.json is (missing|damaged)"):
        evaluate(run)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    (run / "result.json").unlink()
    truncate("state.safetensors")(run)
    with pytest.raises(LargeRecError, match=r"state\.safetensors is damaged"):
        train(tiny_recipe(run), quiet=True)


# --- what is read back ----------------------------------------------------------------------------------------------------


def test_a_run_can_be_moved(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "elsewhere" / "run")
    users = ["u00", "u01"]
    assert load(run).recommend(users).equals(load(trained_run()).recommend(users))


@pytest.mark.parametrize("kind", ["timestamp", "order"])
def test_sequences_and_recipe_come_back_as_they_were(tmp_path: Path, kind: str) -> None:
    rows = [(user, 10 * user + step % 4, 1_600_000_000_000 + step) for step in range(6) for user in (3, 1, 2)]
    log = log_of(rows, kind, behaviors=[("view", "buy")[step % 2] for step in range(len(rows))])  # type: ignore[arg-type]
    recipe = tiny_recipe(tmp_path / "run", "name=Grüße", "evaluate.k=[3, 7]").resolved()
    sequences = build_sequences(log, SplitOptions())
    tokenizer = AtomicTokenizer.fit(sequences)
    Bundle.start(recipe, sequences, tokenizer, {"data_hash": data_hash(sequences)})
    opened = Bundle.open(tmp_path / "run")
    assert opened.recipe() == recipe
    assert opened.tokenizer().vocabulary.equals(tokenizer.vocabulary)
    again = opened.sequences()
    assert again.time_kind == kind
    assert again.frame().equals(sequences.frame())
    assert again.user_ids.equals(sequences.user_ids) and again.offsets_U1.tolist() == sequences.offsets_U1.tolist()
    for stage in ("validation", "test"):
        np.testing.assert_array_equal(again.targets(stage), sequences.targets(stage))  # type: ignore[arg-type]


def test_other_words_of_items_are_other_data(tmp_path: Path) -> None:
    sequences = build_sequences(log_of([(u, u + s, s) for u in range(4) for s in range(5)]), SplitOptions())
    recipe, tokenizer = tiny_recipe(tmp_path / "run").resolved(), AtomicTokenizer.fit(sequences)
    lineage = {"data_hash": data_hash(sequences), "words_hash": "one"}
    Bundle.start(recipe, sequences, tokenizer, lineage)
    Bundle.start(recipe, sequences, tokenizer, lineage)
    with pytest.raises(LargeRecError, match="an unfinished run on items with other words"):
        Bundle.start(recipe, sequences, tokenizer, lineage | {"words_hash": "two"})


def test_the_data_hash_knows_ids_order_times_and_split() -> None:
    rows = [(user, step, 1_600_000_000_000 + step) for user in range(3) for step in range(5)]
    options = SplitOptions()
    hashes = [
        data_hash(build_sequences(log_of(rows), options)),
        data_hash(build_sequences(log_of([(f"{u}", i, t) for u, i, t in rows]), options)),
        data_hash(build_sequences(log_of([(u + 1, i, t) for u, i, t in rows]), options)),
        data_hash(build_sequences(log_of([(u, i + 1, t) for u, i, t in rows]), options)),
        data_hash(build_sequences(log_of([(u, i, t + 1) for u, i, t in rows]), options)),
        data_hash(build_sequences(log_of([*rows, (1, 1, 1_600_000_000_009)]), options)),
        data_hash(build_sequences(log_of(rows), SplitOptions(protocol="timeline", validation_from="40%", test_from="70%"))),
    ]
    assert hashes[0] == hashes[1], "an id is its text"
    assert len(set(hashes)) == len(hashes) - 1


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


# --- writing in one step --------------------------------------------------------------------------------------------------


def writers(bundle: Bundle) -> dict[str, Callable[[int], None]]:
    return {
        "result.json": lambda n: bundle.write_json("result.json", {"n": n}),
        "table.parquet": lambda n: bundle.write_parquet("table.parquet", pl.DataFrame({"n": [n]})),
        "model.safetensors": lambda n: bundle.write_tensors("model.safetensors", {"n": torch.tensor([n])}, {"kind": "test"}),
        "metrics.jsonl": lambda n: bundle.write_text("metrics.jsonl", f"{n}\n"),
    }


@pytest.mark.parametrize("name", ["result.json", "table.parquet", "model.safetensors", "metrics.jsonl"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    bundle = Bundle(tmp_path)
    writers(bundle)[name](1)
    before = (tmp_path / name).read_bytes()

    def no_space(*_: object) -> None:
        raise OSError("No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(module.os, function, no_space)
            with pytest.raises(LargeRecError, match=rf"{re.escape(name)} cannot be written \(No space left"):
                writers(bundle)[name](2)
        assert [file.name for file in tmp_path.iterdir()] == [name], "something half-written is left"
        assert (tmp_path / name).read_bytes() == before
    writers(bundle)[name](2)
    assert (tmp_path / name).read_bytes() != before


def test_tensors_and_documents_come_back(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path)
    for write_one in writers(bundle).values():
        write_one(5)
    tensors, metadata = bundle.read_tensors("model.safetensors")
    assert tensors["n"].tolist() == [5] and metadata == {"kind": "test"}
    assert bundle.read_json("result.json") == {"n": 5}
    assert bundle.read_parquet("table.parquet")["n"].to_list() == [5]
    transposed = torch.arange(6.0).reshape(2, 3).T  # not contiguous, which safetensors alone would refuse
    bundle.write_tensors("model.safetensors", {"t": transposed})
    assert torch.equal(bundle.read_tensors("model.safetensors")[0]["t"], transposed)


def test_every_file_of_a_run_is_data() -> None:
    suffixes = {file.suffix for file in trained_run().rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".jsonl", ".parquet", ".safetensors"}
    for file in trained_run().glob("*.json"):
        json.loads(file.read_text(encoding="utf-8"))
