"""A recipe's log, read, split and with its catalogue: what runs on the same data may share."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from largerec.bundle import data_hash
from largerec.datasets import load_log
from largerec.events import EventLog
from largerec.recipe import Recipe
from largerec.sequences import Sequences, build_sequences
from largerec.tokenizers import AtomicTokenizer


@dataclass(frozen=True)
class SplitLog:
    """A recipe's log, split and with its catalogue: what runs on the same data, split and tasks may share."""

    log: EventLog
    sequences: Sequences
    tokenizer: AtomicTokenizer
    data_hash: str

    @classmethod
    def of(cls, recipe: Recipe) -> SplitLog:
        """Read or generate the recipe's log and split it.

        Raises:
            LargeRecError: the data or the split is wrong.
        """
        log = load_log(recipe.data)
        sequences = build_sequences(log, recipe.split, recipe.tasks, recipe.lists)
        return cls(log, sequences, AtomicTokenizer.fit(sequences, log.items), data_hash(sequences))

    def lineage(self) -> dict[str, Any]:
        """Where a run on this log comes from: the data, and the code at hand."""
        code = {"largerec": version("largerec"), "torch": torch.__version__, "commit": commit_of(Path(__file__))}
        source, notes = self.log.source, list(self.log.notes)
        return {"data_hash": self.data_hash, "source": source, "notes": notes, "code": code, "parent": None}


def commit_of(path: Path) -> str | None:
    """The commit that is checked out where ``path`` lies, if git follows this very file: an installed copy may lie in the
    environment of somebody else's repository, whose commit would say nothing."""
    try:
        for command in (["ls-files", "--error-unmatch", path.name], ["rev-parse", "HEAD"]):
            done = subprocess.run(
                ["git", "-C", str(path.parent), *command], capture_output=True, text=True, check=True, timeout=10
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
