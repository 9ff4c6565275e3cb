"""One token an item: the catalogue is the set of items seen in training."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from largerec.sequences import TRAIN, Sequences

MOST_BITS = 128
"""Of an integer that can be an id; Python does not write one of thousands of digits."""


def as_ids(given: Iterable[Any], kind: pl.DataType) -> pl.Series:
    """Ids of Python's or numpy's types as a column of the log's type, null where one cannot be such an id.

    Numbers as text and whole floats name integers. A cast would cut 1.7 to 1 and take True for 1: these are nobody's ids.
    """
    return pl.Series("item_id", [_written(one, kind) for one in given], dtype=pl.String).cast(kind, strict=False)


def _written(one: Any, kind: pl.DataType) -> str | None:
    if isinstance(one, str):
        return one
    if not isinstance(one, numbers.Real) or isinstance(one, bool):
        return None
    if isinstance(one, numbers.Integral):
        return str(int(one)) if int(one).bit_length() <= MOST_BITS else None
    value = float(one)
    if not kind.is_integer():
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 2**MOST_BITS else None


@dataclass(frozen=True)
class AtomicTokenizer:
    """Tokens 0..V-1 are the V items with at least one training event, by first appearance.

    ``vocabulary`` has V rows in token order: ``item_id``, ``train_count`` and, where the log brings them, ``title`` and
    ``category``.
    """

    vocabulary: pl.DataFrame

    @classmethod
    def fit(cls, sequences: Sequences, items: pl.DataFrame | None = None) -> AtomicTokenizer:
        """Build the catalogue from training rows alone; ``items`` may add titles and categories."""
        counts = sequences.train_counts()
        known = np.flatnonzero(counts)
        vocabulary = pl.DataFrame({"item_id": sequences.item_ids.gather(known), "train_count": counts[known]})
        if items is not None:
            wanted = [name for name in ("title", "category") if name in items.columns]
            texts = items.select("item_id", *wanted).unique("item_id", keep="first", maintain_order=True)
            vocabulary = vocabulary.join(texts, on="item_id", how="left", maintain_order="left")
        return cls(vocabulary)

    @property
    def size(self) -> int:
        """V, the number of items that can be recommended."""
        return self.vocabulary.height

    @property
    def counts_V(self) -> np.ndarray:
        """Training events of each item [V]."""
        return self.vocabulary["train_count"].to_numpy()

    def target_counts(self, sequences: Sequences) -> np.ndarray:
        """How often each item was a target in training [V]: training events, only positives where the split says so."""
        if sequences.positive_N is None:
            return self.counts_V
        token_R = self.encode(sequences.item_ids)[sequences.item_N[(sequences.stage_N == TRAIN) & sequences.positive_N]]
        return np.bincount(token_R[token_R >= 0], minlength=self.size)

    def encode(self, item_ids: pl.Series) -> np.ndarray:
        """Tokens of items; -1 for an item outside the catalogue (see :func:`as_ids`)."""
        table = pl.DataFrame({"item_id": self.vocabulary["item_id"], "token": np.arange(self.size)})
        kind, given = self.vocabulary.schema["item_id"], item_ids.alias("item_id")
        safe = given.dtype.is_integer() or given.dtype == pl.String  # a large table of them is cast at once
        given = given.cast(kind, strict=False) if safe else as_ids(given, kind)
        return given.to_frame().join(table, on="item_id", how="left", maintain_order="left")["token"].fill_null(-1).to_numpy()

    def decode(self, tokens: np.ndarray) -> pl.DataFrame:
        """Rows of the vocabulary for tokens (any shape, flattened)."""
        return self.vocabulary[tokens.reshape(-1)]
