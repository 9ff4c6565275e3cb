"""A recipe's log, read, split and with its catalogue: what runs on the same data may share."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import torch

from largerec.bundle import data_hash
from largerec.datasets import load_log, load_random
from largerec.events import EventLog
from largerec.feature_tables import build_features
from largerec.features import Features
from largerec.item_vectors import words_hash
from largerec.random_log import random_table
from largerec.recipe import Recipe
from largerec.sequences import Sequences, build_sequences
from largerec.tokenizers import AtomicTokenizer


@dataclass(frozen=True)
class Beside:
    """What a run reads beside the split log, and the hashes of all that it reads, the log among them."""

    features: Features | None
    random: pl.DataFrame | None
    hashes: dict[str, str]


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

    def beside(self, recipe: Recipe) -> Beside:
        """The words, features and random log of a recipe that was split like this.

        Raises:
            LargeRecError: a column or a file is missing, or does not fit.
        """
        item_ids, features, random = self.tokenizer.vocabulary["item_id"], None, None
        hashes = {"data_hash": self.data_hash}
        if (words := words_hash(self.log.items, item_ids, recipe.model.side.columns)) is not None:
            hashes["words_hash"] = words
        if recipe.features.any:
            given = (recipe.features, recipe.tasks, recipe.split.positives, recipe.data.path)
            features = build_features(self.log, self.sequences, item_ids, *given)
            hashes["features_hash"] = features.digest()
        if (log := load_random(recipe.data)) is not None:
            random = random_table(log, recipe.split, recipe.tasks, self.sequences)
            hashes["random_hash"] = _table_hash(random)
        return Beside(features, random, hashes)

    def hashes(self, recipes: Iterable[Recipe]) -> dict[str, dict[str, str]]:
        """The hashes of what each recipe reads, by its name; for recipes that read the same columns, they are made once."""
        made: dict[str, dict[str, str]] = {}
        found: dict[str, dict[str, str]] = {}
        for recipe in recipes:
            columns = json.dumps([recipe.features.model_dump(), recipe.model.side.columns])
            if columns not in made:
                made[columns] = self.beside(recipe).hashes
            found[recipe.name] = made[columns]
        return found

    def lineage(self) -> dict[str, Any]:
        """Where a run on this log comes from: the data, and the code at hand."""
        code = {"largerec": version("largerec"), "torch": torch.__version__, "commit": commit_of(Path(__file__))}
        source, notes = self.log.source, list(self.log.notes)
        return {"data_hash": self.data_hash, "source": source, "notes": notes, "code": code, "parent": None}


def _table_hash(table: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for column in table:
        digest.update("\n".join([column.name, *column.cast(pl.String).fill_null("").to_list()]).encode())
    return digest.hexdigest()


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
