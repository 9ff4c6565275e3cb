"""A recipe's log, read, split and with its catalogue: what runs on the same data may share."""

from __future__ import annotations

from dataclasses import dataclass

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
        sequences = build_sequences(log, recipe.split, recipe.tasks)
        return cls(log, sequences, AtomicTokenizer.fit(sequences, log.items), data_hash(sequences))
