"""The atomic tokenizer: ids in and the same ids out, training items alone, titles, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from logs import log_of, logs
from polars.testing import assert_frame_equal

from largerec.events import EventLog
from largerec.sequences import SplitOptions, build_sequences
from largerec.tokenizers import AtomicTokenizer

LAWS = settings(deadline=None, max_examples=40)
HISTORY = [("a", item, place) for place, item in enumerate([30, 10, 30, 20, 40, 50])]  # 40 and 50 are never trained on
ITEMS = pl.DataFrame(
    {
        "item_id": [10, 20, 30, 30, 99],
        "title": ["Ten", None, "Thirty", "Another Thirty", "Nobody's"],
        "category": ["even", "even", "three", "three", "none"],
        "price": [1.0, 2.0, 3.0, 3.0, 9.0],
    }
)


def fitted(log: EventLog, items: pl.DataFrame | None = None) -> AtomicTokenizer:
    return AtomicTokenizer.fit(build_sequences(log, SplitOptions()), items)


@LAWS
@given(log=logs())
def test_items_come_back_as_they_went_in(log: EventLog) -> None:
    sequences = build_sequences(log, SplitOptions())
    tokenizer = AtomicTokenizer.fit(sequences)
    trained = {
        sequences.item_ids[int(item)] for item, stage in zip(sequences.item_N, sequences.stage_N, strict=True) if stage == 0
    }
    assert set(tokenizer.vocabulary["item_id"]) == trained and tokenizer.size == len(trained)
    assert tokenizer.vocabulary.schema["item_id"] == log.events.schema["item_id"]
    given_items = log.events["item_id"]
    tokens = tokenizer.encode(given_items)
    known = np.array([item in trained for item in given_items])
    assert (tokens[~known] == -1).all()
    assert tokens[known].min() >= 0 and tokens.max() < tokenizer.size
    assert tokenizer.decode(tokens[known])["item_id"].to_list() == given_items.filter(pl.Series(known)).to_list()
    assert tokenizer.decode(np.arange(tokenizer.size))["train_count"].to_list() == tokenizer.counts_V.tolist()
    assert tokenizer.counts_V.min() >= 1 and tokenizer.counts_V.sum() == (sequences.stage_N == 0).sum()


def test_tokens_go_by_first_appearance_in_time() -> None:
    assert fitted(log_of(HISTORY)).vocabulary.rows() == [(30, 2), (10, 1), (20, 1)]
    with_other = [*HISTORY, ("b", 20, -1), ("b", 10, 8)]
    assert fitted(log_of(with_other)).vocabulary["item_id"].to_list() == [20, 30, 10]


def test_titles_and_categories_are_joined() -> None:
    vocabulary = fitted(log_of(HISTORY), ITEMS).vocabulary
    assert vocabulary.to_dict(as_series=False) == {
        "item_id": [30, 10, 20],
        "train_count": [2, 1, 1],
        "title": ["Thirty", "Ten", None],  # the first row of an item counts
        "category": ["three", "even", "even"],
    }
    assert fitted(log_of(HISTORY), ITEMS.drop("title", "category")).vocabulary.columns == ["item_id", "train_count"]


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        (pl.Series([30, 20, 7, -1, 40]), [0, 2, -1, -1, -1]),
        (pl.Series(["30", "x", None]), [0, -1, -1]),  # text that is a number finds it, any other text nothing
        (pl.Series([None, 10], dtype=pl.Int32), [-1, 1]),
        (pl.Series([], dtype=pl.Null), []),
    ],
)
def test_an_unknown_item_has_no_token(asked: pl.Series, tokens: list[int]) -> None:
    assert fitted(log_of(HISTORY)).encode(asked).tolist() == tokens


def test_numbers_find_items_that_are_text() -> None:
    log = log_of([(user, str(item), time) for user, item, time in HISTORY])
    assert fitted(log).encode(pl.Series([30, 20, 7])).tolist() == [0, 2, -1]


def test_tokens_of_any_shape_are_decoded_flat() -> None:
    assert fitted(log_of(HISTORY)).decode(np.array([[2, 0], [1, 2]]))["item_id"].to_list() == [20, 30, 10, 20]


@pytest.mark.parametrize("as_text", [False, True])
def test_save_and_load(tmp_path: Path, as_text: bool) -> None:
    kind = str if as_text else int
    log = log_of([(user, kind(item), time) for user, item, time in HISTORY])
    tokenizer = fitted(log, ITEMS.with_columns(pl.col("item_id").cast(pl.String)) if as_text else ITEMS)
    tokenizer.vocabulary.write_parquet(tmp_path / "vocabulary.parquet")
    loaded = AtomicTokenizer(pl.read_parquet(tmp_path / "vocabulary.parquet"))
    assert_frame_equal(loaded.vocabulary, tokenizer.vocabulary)
    assert loaded.encode(pl.Series([30, 7])).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("column", "tokens"), [([30.0, 30.7], [0, -1]), ([True, False], [-1, -1]), ([b"30", b"1"], [-1, -1]), (["30", "1"], [0, 1])]
)
def test_an_id_of_another_type_is_not_cut_to_an_integer(column: list[object], tokens: list[int]) -> None:
    fitted_to = fitted(log_of([("a", item, n) for n, item in enumerate([30, 1, 30, 1, 30])]))
    assert fitted_to.encode(pl.Series(column)).tolist() == tokens
