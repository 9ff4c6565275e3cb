"""Files that cannot be written: one message that says which and why, nothing half-written, and no work before it is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from logs import chain_log
from runs import copy_of_run, trained_run, write_tiny

from largerec import compare
from largerec.bundle import Bundle
from largerec.ensemble import ensemble
from largerec.errors import LargeRecError
from largerec.quantise import quantise
from largerec.writing import check_file, write_json

CHILD = """
import json, resource, sys
from largerec import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["largerec", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        print("ended", ended.code, file=sys.stderr)
"""


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    """In a process of which no file may be larger than 2 kB."""
    run = copy_of_run(tmp_path / "run")
    chain_log(users=400, length=9).write(tmp_path / "log.parquet")
    recipe, into = write_tiny(tmp_path / "tiny.toml"), ["data", "import", tmp_path / "log.parquet", "--to", tmp_path / "import"]
    commands = [
        ["train", recipe, f"run.dir={tmp_path / 'new'}"],
        ["evaluate", run],
        into,
        [*into, "--to-format", "recbole"],
    ]
    given = json.dumps(commands, default=str)
    done = subprocess.run([sys.executable, "-c", CHILD, given], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and done.stderr.count("ended 2") == len(commands), done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert all("File too large" in line for line in said), said
    assert ".parquet cannot be written" in said[0] and f"{run}/" in said[1] and "cannot be written" in said[1]
    assert "the import cannot be written there" in said[2] and "the import cannot be written there" in said[3]
    assert not list(tmp_path.rglob("*.partial")) and not (tmp_path / "import").exists()


def test_tensors_and_tables_of_a_run_say_which_file_it_was(tmp_path: Path) -> None:
    bundle, gone = Bundle(trained_run()), Bundle(tmp_path / "gone")
    tensors, _ = bundle.read_tensors("model.safetensors")
    for write in (
        lambda: gone.write_tensors("x", tensors),
        lambda: gone.write_parquet("x", pl.DataFrame({"a": [1]})),
        lambda: gone.write_json("x", {}),
    ):
        with pytest.raises(LargeRecError, match=r"gone/x cannot be written \(.*No such file"):
            write()


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").touch()
    runs = [copy_of_run(tmp_path / "a"), copy_of_run(tmp_path / "b", "seed=1")]
    with pytest.raises(LargeRecError, match=r"run\.dir='.*odd\.csv' cannot be made"):
        ensemble(runs, tmp_path / "odd.csv")
    with pytest.raises(LargeRecError, match=r"run\.dir='.*odd\.csv' cannot be made"):
        quantise(runs[0], tmp_path / "odd.csv")


def test_the_file_of_a_comparison_is_looked_at_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(write_tiny(tmp_path / "tiny.toml"))
    monkeypatch.setattr(compare, "compare", lambda *_, **__: pytest.fail("it trains"))
    (tmp_path / "file").touch()
    for to, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "cannot be made")):
        with pytest.raises(LargeRecError, match=words):
            compare.from_arguments([recipe, f"run.dir={tmp_path / 'runs'}"], "1", str(to))
    check_file(tmp_path / "new" / "x.json", "--out")
    assert not (tmp_path / "runs").exists()


def test_a_document_replaces_its_file_or_leaves_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "in" / "x.json", {"a": 1})
    assert json.loads((tmp_path / "in" / "x.json").read_text()) == {"a": 1}
    (tmp_path / "folder").mkdir()
    with pytest.raises(LargeRecError, match=r"folder cannot be written \(Is a directory\)"):
        write_json(tmp_path / "folder", {})
    assert sorted(os.listdir(tmp_path)) == ["folder", "in"]


@pytest.mark.parametrize(
    ("arguments", "seeds", "words"),
    [
        (["{recipe}", "run=5"], "3", "run"),
        (["{recipe}"], "", "--seeds '' is no number"),
        (["{recipe}"], "9" * 30, "is no number up to 1000000000000000000"),
        (["{recipe}", "x" * 400], "3", "is no override"),
        (["{recipe}/x.toml"], "3", "is no TOML recipe"),
        (["x" * 400 + ".toml"], "3", "is no TOML recipe"),
    ],
)
def test_odd_arguments_of_a_comparison(tmp_path: Path, arguments: list[str], seeds: str, words: str) -> None:
    recipe = str(write_tiny(tmp_path / "tiny.toml"))
    with pytest.raises(LargeRecError) as refused:
        compare.from_arguments([one.format(recipe=recipe) for one in arguments], seeds)
    assert words in str(refused.value)
