"""Fixed vectors of what items are: words of their columns, weighed by rarity and pressed into a few numbers.

Latent semantic analysis (Deerwester et al. 1990): a matrix items x words of log(V / items with the word), rows of length one, cut
to its F largest singular values. Shapes: V items, W words, F numbers of a vector.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from largerec.errors import LargeRecError, Unfit
from largerec.item_tables import SideOptions

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

OVERSAMPLING, ITERATIONS = 16, 6
WORD = r"[\p{L}\p{M}\p{N}]+"


def item_vectors(items: pl.DataFrame | None, item_ids: pl.Series, options: SideOptions) -> np.ndarray:
    """A vector for each of ``item_ids``, of length one, or zero where nothing is known of an item; float32 [V, F].

    Args:
        items: the log's item table, ``item_id`` and further columns.
        item_ids: the catalogue in token order.
        options: which columns, and F.

    Raises:
        LargeRecError: the log has no such column, it holds no text, or too few words for F numbers.
    """
    word_VW = _weighed_words(_known(items, item_ids, options.columns), len(item_ids))
    if min(word_VW.shape) < options.width:
        raise Unfit(
            f"model.side.width={options.width} is too much for {word_VW.shape[0]} items with {word_VW.shape[1]} words that more "
            "than one of them has; set a smaller one, or name further columns."
        )
    return _unit(_pressed(word_VW, options.width)).astype(np.float32)


def words_hash(items: pl.DataFrame | None, item_ids: pl.Series, columns: Iterable[str]) -> str | None:
    """SHA-256 of what ``columns`` say of the catalogue ``item_ids``, which the split log's hash leaves out; None without any.

    Raises:
        LargeRecError: the log has no such column, or it holds no text.
    """
    columns = tuple(columns)
    if not columns:
        return None
    known, digest = _known(items, item_ids, columns), hashlib.sha256()
    for name in ("token", *columns):
        digest.update(json.dumps([name, known[name].to_list()]).encode())
    return digest.hexdigest()


def _known(items: pl.DataFrame | None, item_ids: pl.Series, columns: tuple[str, ...]) -> pl.DataFrame:
    """``token`` and the text of ``columns`` of each item of the catalogue that the table has, by rising token."""
    if items is None:
        raise LargeRecError(
            f"model.side.columns={list(columns)} needs a table of items, and the log has none; name its file with "
            "data.items, or leave model.side out."
        )
    missing = [name for name in columns if name not in items.columns or name == "item_id"]
    if missing:
        there = ", ".join(name for name in items.columns if name != "item_id") or "none"
        raise LargeRecError(f"model.side.columns names {missing[0]!r}, which the log's items do not have. They have: {there}.")
    catalogue = pl.DataFrame({"item_id": item_ids, "token": np.arange(len(item_ids))})
    known = catalogue.join(items.unique("item_id", keep="first", maintain_order=True), on="item_id").sort("token")
    return known.select("token", *(_text(name, known.schema[name]) for name in columns))


def _text(name: str, kind: pl.DataType) -> pl.Expr:
    """A column as text; the texts of a list one after another."""
    if not kind.is_nested():
        return pl.col(name).cast(pl.String)
    if isinstance(kind, pl.List) and not kind.inner.is_nested():
        return pl.col(name).cast(pl.List(pl.String)).list.join(" ")
    raise LargeRecError(
        f"model.side.columns names {name!r}, whose values are {kind}; words are read from text, numbers and lists of those. Make "
        "a column of text from it, or leave it out."
    )


def _weighed_words(known: pl.DataFrame, n_items: int) -> csr_matrix:
    """Rarity of each word that an item has and another has too, rows of length one [V, W]; columns have words of their own."""
    from scipy.sparse import csr_matrix  # here, since few runs need it and every command would wait for it

    words = pl.concat(
        known.select(
            "token", pl.col(name).str.to_lowercase().str.extract_all(WORD).alias("word"), pl.lit(name).alias("column")
        ).explode("word")
        for name in known.columns
        if name != "token"
    )
    words = words.drop_nulls("word").unique().sort("token", "column", "word")
    words = words.with_columns(pl.len().over("column", "word").alias("having")).filter(pl.col("having") > 1)
    number = words.select(pl.struct("column", "word").rank("dense")).to_series().to_numpy().astype(np.int64) - 1
    rarity = np.log(n_items / words["having"].to_numpy())
    shape = (n_items, int(number.max(initial=-1)) + 1)
    word_VW = csr_matrix((rarity, (words["token"].to_numpy(), number)), shape=shape)
    length_V = np.sqrt(np.asarray(word_VW.multiply(word_VW).sum(1)))[:, 0]
    return csr_matrix(word_VW.multiply(1 / np.maximum(length_V, 1e-12)[:, None]))


def _pressed(word_VW: csr_matrix, width: int) -> np.ndarray:
    """Left singular vectors times singular values of the ``width`` largest, by seeded subspace iteration (Halko et al. 2011).

    scipy's own Lanczos solver starts anew from unseeded numbers where items fall into groups without a common word.
    """
    columns = min(*word_VW.shape, width + OVERSAMPLING)
    range_VC: np.ndarray = np.linalg.qr(word_VW @ np.random.default_rng(0).standard_normal((word_VW.shape[1], columns)))[0]
    for _ in range(ITERATIONS):
        range_VC = np.linalg.qr(word_VW @ np.linalg.qr(word_VW.T @ range_VC)[0])[0]
    left_CC, size_C, _ = np.linalg.svd((word_VW.T @ range_VC).T, full_matrices=False)
    pressed_VF: np.ndarray = range_VC @ left_CC[:, :width] * size_C[:width]
    return pressed_VF


def _unit(row_VF: np.ndarray) -> np.ndarray:
    length_V1 = np.linalg.norm(row_VF, axis=1, keepdims=True)
    unit_VF: np.ndarray = np.where(length_V1 > 1e-9, row_VF / np.maximum(length_V1, 1e-9), 0)
    return unit_VF
