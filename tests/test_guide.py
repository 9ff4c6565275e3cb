"""docs/your-own-log.md, run from top to bottom: its program, its commands, and what it says that they answer."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from largerec import cli

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "your-own-log.md"
QUICK = ["model.size=nano", "train.max_steps=20", "evaluate.bootstrap_samples=20"]  # the page's run takes a minute


def call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["largerec", *words])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_guide_works_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    code, said, ran = 0, "", 0
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    ):
        if language == "python":
            exec(compile(block, GUIDE.name, "exec"), {})
            continue
        for line in block.splitlines():
            if line.startswith("largerec "):
                assert code == 0, said  # an error that the page shows has been compared by now
                words = shlex.split(line)[1:]
                code, ran = call([*words, *(QUICK if words[0] == "run" else [])], monkeypatch), ran + 1
                captured = capsys.readouterr()
                said = captured.err if code else captured.out
            elif line.startswith("error: "):
                assert (code, said.strip()) == (2, line)
                code = 0
            else:
                assert line in Path("data/shop/dropped.jsonl").read_text(encoding="utf-8").splitlines()
    assert code == 0, said
    assert ran == 6
    assert len(re.findall(r"\bVolume \d+\b", said)) == 5, "five titles are recommended"
