"""One token an item: the catalogue is the set of items seen in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from largerec.sequences import TRAIN, Sequences


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
        """Tokens of items; -1 for an item outside the catalogue."""
        table = pl.DataFrame({"item_id": self.vocabulary["item_id"], "token": np.arange(self.size)})
        given = item_ids.alias("item_id").cast(self.vocabulary.schema["item_id"], strict=False).to_frame()
        return given.join(table, on="item_id", how="left", maintain_order="left")["token"].fill_null(-1).to_numpy()

    def decode(self, tokens: np.ndarray) -> pl.DataFrame:
        """Rows of the vocabulary for tokens (any shape, flattened)."""
        return self.vocabulary[tokens.reshape(-1)]
