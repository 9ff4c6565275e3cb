"""Lists of shown items: what stood before a user at the moment of a choice, read from a column of the log.

A row with a list is a choice: its own item was chosen among those that its list shows. Lists are packed like tokens: L lists,
S shown items of all of them, N events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from pydantic import model_validator

from largerec.errors import LargeRecError, nearest
from largerec.options import Options

SHOWN, PRICES = "shown", "shown.price"  # columns of the table of a run's histories


class ListOptions(Options):
    """Where the log says what was shown, and whether to learn choices from it.

    ``items``: a column of lists of item ids, in the order shown (or of text, ids separated by ``|``); null or empty where nothing
    is known to have been shown. ``prices``: a column of as many numbers. ``choice``: fit a choice model on the validation lists.
    """

    items: str | None = None
    prices: str | None = None
    choice: bool = False

    @model_validator(mode="after")
    def _there_are_lists(self) -> Self:
        for name in ("prices", "choice"):
            if getattr(self, name) and self.items is None:
                raise LargeRecError(f"lists.{name} says nothing without lists.items; name the column of what was shown.")
        return self


@dataclass(frozen=True)
class ShownLists:
    """L lists: ``row_L`` the row of the sequences at which each was shown (rising), ``item_S`` the shown items as numbers of the
    sequences (-1: an item without any event), ``price_S`` NaN where unknown (None without prices), ``chosen_L`` the place of the
    row's own item in its list (the first, where it is shown twice), -1 where it is not in it."""

    row_L: np.ndarray
    offsets_L1: np.ndarray
    item_S: np.ndarray
    chosen_L: np.ndarray
    price_S: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row_L)

    def select(self, kept_L: np.ndarray) -> ShownLists:
        """The lists of a boolean mask."""
        kept_S = np.repeat(kept_L, np.diff(self.offsets_L1))
        return ShownLists(
            row_L=self.row_L[kept_L],
            offsets_L1=np.concatenate([[0], np.cumsum(np.diff(self.offsets_L1)[kept_L])]),
            item_S=self.item_S[kept_S],
            chosen_L=self.chosen_L[kept_L],
            price_S=None if self.price_S is None else self.price_S[kept_S],
        )

    def columns(self, rows: int, item_ids: pl.Series) -> dict[str, pl.Series]:
        """The lists as columns of a table with ``rows`` rows, null where there is none; items without an event are null."""
        known_S = pl.Series(np.where(self.item_S >= 0, self.item_S, 0), dtype=pl.Int64)
        ids_S = pl.select(pl.when(pl.Series(self.item_S >= 0)).then(item_ids.gather(known_S)).alias("id")).to_series()
        places = pl.Series(np.full(rows, -1)).scatter(pl.Series(self.row_L), pl.Series(np.arange(len(self)))).replace(-1, None)
        list_S = np.repeat(np.arange(len(self)), np.diff(self.offsets_L1))
        values = {SHOWN: ids_S} | ({} if self.price_S is None else {PRICES: pl.Series(self.price_S, dtype=pl.Float64)})
        found = {}
        for name, value_S in values.items():
            grouped = pl.DataFrame({"list": list_S, "value": value_S}).group_by("list", maintain_order=True).agg("value")["value"]
            found[name] = grouped.gather(places)
        return found


def read_lists(events: pl.DataFrame, options: ListOptions) -> pl.DataFrame:
    """The columns ``shown`` and, with prices, ``shown.price`` of a log, row by row; empty lists are null.

    Raises:
        LargeRecError: there is no such column, it holds no lists, or a row has more or fewer prices than items.
    """
    assert options.items is not None
    kind = events.schema["item_id"]
    shown = _as_lists(events, options.items, "items").cast(pl.List(kind), strict=False).alias(SHOWN)
    found = shown.to_frame().with_columns(pl.when(pl.col(SHOWN).list.len() > 0).then(pl.col(SHOWN)))
    if options.prices is None:
        return found
    prices = _as_lists(events, options.prices, "prices").cast(pl.List(pl.Float64), strict=False).alias(PRICES)
    found = found.with_columns(prices).with_columns(pl.when(pl.col(SHOWN).is_not_null()).then(pl.col(PRICES)))
    wrong = found.select(found[SHOWN].is_not_null() & (pl.col(SHOWN).list.len() != pl.col(PRICES).list.len().fill_null(0)))
    if wrong.to_series().any():
        row = int(wrong.to_series().arg_true()[0])
        n, m = found[SHOWN].list.len()[row], found[PRICES].list.len()[row] or 0
        raise LargeRecError(
            f"row {row + 1} of the log shows {n} items in {options.items!r} but has {m} prices in {options.prices!r}; give one "
            "price an item, filter such rows out with data.where, or leave lists.prices out."
        )
    return found


def _as_lists(events: pl.DataFrame, name: str, option: str) -> pl.Series:
    if name not in events.columns:
        raise LargeRecError(
            f"lists.{option}={name!r} is no column{nearest(name, events.columns)} Columns: {', '.join(events.columns)}."
        )
    column = events[name]
    if column.dtype == pl.String:
        stripped = column.str.strip_chars()
        return stripped.replace("", None).str.split("|").list.eval(pl.element().str.strip_chars())
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if not isinstance(column.dtype, pl.List) or column.dtype.inner.is_nested():
        raise LargeRecError(f"lists.{option}={name!r} holds {column.dtype}; it must hold lists, or text such as '5|7|9'.")
    return column


def pack_lists(table: pl.DataFrame, item_N: np.ndarray, item_ids: pl.Series) -> ShownLists:
    """Pack the columns ``shown`` and ``shown.price`` of a table whose rows are those of the sequences."""
    row_L = table[SHOWN].is_not_null().arg_true().to_numpy().astype(np.int64)
    lists = table[SHOWN].gather(row_L)
    offsets_L1 = np.concatenate([[0], np.cumsum(lists.list.len().to_numpy().astype(np.int64))])
    codes = pl.DataFrame({"id": item_ids, "code": np.arange(len(item_ids))})
    ids = lists.explode().alias("id").to_frame()
    item_S = ids.join(codes, on="id", how="left", maintain_order="left")["code"].fill_null(-1).to_numpy()
    price_S = None
    if PRICES in table.columns:
        price_S = table[PRICES].gather(row_L).explode().cast(pl.Float64).fill_null(float("nan")).to_numpy()
    own_S = np.flatnonzero(item_S == np.repeat(item_N[row_L], np.diff(offsets_L1)))
    list_S = np.searchsorted(offsets_L1, own_S, side="right") - 1
    chosen_L = np.full(len(row_L), -1)
    chosen_L[list_S[::-1]] = (own_S - offsets_L1[list_S])[::-1]  # of several places the first is written last
    return ShownLists(row_L, offsets_L1, item_S, chosen_L, price_S)
