"""The verbs of ``largerec data``: what they print, their JSON, and their mistakes as one message."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from logs import put

from largerec import cli
from largerec.publicsets import SETS, PublicFile, PublicSet

EVENTS = b"who,item_id,timestamp\nann,10,1300000000\nbob,20,1300000060\nann,10,1300000000\nann,30,soon\n"


class Called:
    """What a call of the command gave."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out.splitlines()[-1])


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> Called:
    monkeypatch.setattr(sys, "argv", ["largerec", "data", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return Called(code, said.out, said.err)


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return put(tmp_path, log__csv=EVENTS)


def test_import_takes_its_flags_and_overrides(
    at: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("import", "log.csv", "--to", "out", "--on-bad-rows=drop", "--dedupe", "--from=2011-01-01", "--until=2012-01-01")
    more = ("--sample-users=2", "--seed=4", "--k-core=1", "data.columns.user=who", "--json")
    found = call(capsys, monkeypatch, *words, *more).document
    assert (found["events"], found["users"]) == (2, 2)
    assert [step["step"] for step in found["steps"]] == ["dedupe", "window", "sample-users", "k-core"]
    assert found["steps"][2]["seed"] == 4
    assert found["dropped_rows"] == {"column 'timestamp' is no number, though the other times are": 1}
    assert sorted(path.name for path in (at / "out").iterdir()) == ["dropped.jsonl", "events.parquet", "manifest.json"]
    again = call(capsys, monkeypatch, "import", "out", "--to", "rb", "--to-format=recbole")
    assert again.code == 0 and "rb.inter" in again.out and "note: " in again.out
    assert call(capsys, monkeypatch, "import", "out", "--to", "rb", "--overwrite", "--json").document["events"] == 2


def test_describe_shows_columns_by_their_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, log__csv=b"user_id,item_id,timestamp,is_click\nann,10,1300000000,1\nbob,20,1300000060,0\n")
    said = call(capsys, monkeypatch, "describe", "log.csv").out
    assert "is_click" in said and "is click" not in said


def test_describe_drops_bad_rows_when_asked(
    at: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call(capsys, monkeypatch, "describe", "log.csv", "data.columns.user=who")
    assert said.code == 2 and "log.csv, row 4, column 'timestamp': 'soon'" in said.err
    found = call(capsys, monkeypatch, "describe", "log.csv", "data.columns.user=who", "--on-bad-rows=drop", "--json").document
    assert found["events"] == 3
    assert (at / "dropped.jsonl").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("import", "log.csv"), "needs --to FOLDER"),
        (("import", "log.csv", "--to", "x", "--to-format=csv"), "there are parquet and recbole"),
        (("import", "log.csv", "--to", "x", "model.size=nano"), "only data.* may be set here"),
        (("describe", "log.csv", "--on-bad-rows=keep"), "data.on_bad_rows: Input should be 'error' or 'drop'"),
        (("fetch", "ml-1n"), "did you mean 'ml-1m'?"),
    ],
)
def test_mistakes_are_one_message(
    words: tuple[str, ...], expected: str, at: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call(capsys, monkeypatch, *words)
    assert said.code == 2 and expected in said.err
    assert "Traceback" not in said.err


def test_list_and_fetch(at: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETS, "mine", PublicSet("Mine", "3", "free", "page", (PublicFile("http://127.0.0.1/log.csv"),)))
    rows = call(capsys, monkeypatch, "list", "--json").document
    assert next(row for row in rows if row["name"] == "mine")["get"] == "largerec data fetch mine"
    assert "mine" in call(capsys, monkeypatch, "list").out
    found = call(capsys, monkeypatch, "fetch", "mine", "--from", "log.csv", "--json").document
    assert found["use"] == "data.path=data/mine"
    assert (at / "data" / "mine" / "log.csv").read_bytes() == EVENTS
