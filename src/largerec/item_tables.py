"""Item tables other than one free row an item: smaller ones, and rows that also know what an item is.

Shapes: V items, D width, F numbers of a side vector, R rows of a hashed table, K rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from largerec.errors import LargeRecError
from largerec.layers import Backbone, init_linear, init_weight
from largerec.options import Options
from largerec.quantised_rows import Bits, QuantisedRows


class TableOptions(Options):
    """``kind``: a free row an item (``full``), a sum of two shared rows (``hashed``) or a product [V, K] [K, D] (``low-rank``).

    ``share``: about how many numbers a smaller table has, as a share of those of the full one.
    """

    kind: Literal["full", "hashed", "low-rank"] = "full"
    share: float = Field(0.25, gt=0, lt=1)

    @model_validator(mode="after")
    def _only_a_smaller_table_has_a_share(self) -> Self:
        if self.kind == "full" and self.share != type(self).model_fields["share"].default:
            raise LargeRecError(
                f"model.table.share={self.share} is the size of a smaller table, but model.table.kind is 'full'. Set "
                "model.table.kind to hashed or low-rank, or leave the share out."
            )
        return self


class SideOptions(Options):
    """``columns``: of the log's items, whose words make each item's side vector of ``width`` numbers; none: no side vectors."""

    columns: tuple[str, ...] = ()
    width: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _a_width_needs_columns(self) -> Self:
        if not self.columns and self.width != type(self).model_fields["width"].default:
            raise LargeRecError(
                f"model.side.width={self.width} is that of side vectors, but model.side.columns names no columns. "
                "Name some of the items', for example model.side.columns=['title'], or leave the width out."
            )
        return self


def hashed(number_V: np.ndarray, salt: int) -> np.ndarray:
    """64 well mixed bits of each number, the same in every process (the finaliser of splitmix64; Steele et al. 2014)."""
    bits_V: np.ndarray = number_V.astype(np.uint64) + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
    bits_V = (bits_V ^ (bits_V >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits_V = (bits_V ^ (bits_V >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits_V ^= bits_V >> np.uint64(31)
    return bits_V


class HashedRows(nn.Module):
    """Double hashing (Zhang et al. 2020, arXiv 2007.14523): a row is the sum of one of R / 2 rows by each of two hashes.

    Two items share their whole row only where both hashes agree.
    """

    bucket_2V: torch.Tensor

    def __init__(self, n_items: int, width: int, share: float) -> None:
        super().__init__()
        half = max(1, round(share * n_items / 2))
        buckets = [hashed(np.arange(n_items), salt) % np.uint64(half) for salt in (1, 2)]
        self.register_buffer("bucket_2V", torch.from_numpy(np.stack(buckets).astype(np.int64)), persistent=False)
        self.row_2RD = nn.Parameter(torch.empty(2, half, width))
        init_weight(self.row_2RD)

    def forward(self, item_T: torch.Tensor) -> torch.Tensor:
        first_T, second_T = self.bucket_2V[:, item_T]
        return nn.functional.embedding(first_T, self.row_2RD[0]) + nn.functional.embedding(second_T, self.row_2RD[1])


class LowRankRows(nn.Module):
    """A row is K numbers of the item's own times a matrix [K, D] that all items share."""

    def __init__(self, n_items: int, width: int, share: float) -> None:
        super().__init__()
        rank = max(1, round(share * n_items * width / (n_items + width)))
        self.own = nn.Embedding(n_items, rank)
        self.shared_KD = nn.Parameter(torch.randn(rank, width) / rank**0.5)  # so that rows are as large as free ones
        init_weight(self.own.weight)

    def forward(self, item_T: torch.Tensor) -> torch.Tensor:
        row_TD: torch.Tensor = self.own(item_T) @ self.shared_KD
        return row_TD


class FreeRows(nn.Embedding):
    """A row of an item's own."""

    def __init__(self, n_items: int, width: int, share: float = 1.0) -> None:
        super().__init__(n_items, width)
        init_weight(self.weight)


ROWS: dict[str, Callable[[int, int, float], nn.Module]] = {"full": FreeRows, "hashed": HashedRows, "low-rank": LowRankRows}


class ItemTable(nn.Module):
    """Rows that are made when asked for: of a smaller table, or of any table plus a projection of fixed side vectors.

    ``forward(item_T)`` gives rows [T, D] and ``weight`` all of them [V, D], as an embedding's. The side vectors are a buffer, so
    that they are saved and loaded with the weights.
    """

    side_VF: torch.Tensor

    def __init__(self, table: TableOptions, side: SideOptions, n_items: int, width: int) -> None:
        super().__init__()
        self.n_items = n_items
        self.row = ROWS[table.kind](n_items, width, table.share)
        self.project = init_linear(nn.Linear(side.width, width, bias=False)) if side.columns else None
        if side.columns:
            self.register_buffer("side_VF", torch.zeros(n_items, side.width))

    def forward(self, item_T: torch.Tensor) -> torch.Tensor:
        row_TD: torch.Tensor = self.row(item_T)
        return row_TD if self.project is None else row_TD + self.project(self.side_VF[item_T])

    @property
    def weight(self) -> torch.Tensor:
        weight_VD: torch.Tensor = self(torch.arange(self.n_items, device=next(self.parameters()).device))
        return weight_VD


def quantise_tables(model: Backbone, bits: Bits) -> None:
    """Put quantised rows in place of the free rows of a model's item tables; it can then be used and not trained."""
    holders: list[tuple[nn.Module, str]] = [(model.input, "item"), (model, "output_table")]
    for holder, name in holders:
        table = getattr(holder, name)
        if isinstance(table, ItemTable):
            holder, name, table = table, "row", table.row
        if isinstance(table, nn.Embedding):
            setattr(holder, name, QuantisedRows.of(table.weight.detach(), bits))


def table_bytes(model: Backbone) -> int:
    """What the item tables take, with side vectors and what makes rows of them."""
    tables = [table for table in (model.input.item, model.output_table) if table is not None]
    return sum(x.numel() * x.element_size() for table in tables for x in table.state_dict().values())


def build_table(table: TableOptions, side: SideOptions, n_items: int, width: int) -> nn.Module:
    """A table with fresh weights: a plain embedding where rows are free and know nothing else."""
    return FreeRows(n_items, width) if table.kind == "full" and not side.columns else ItemTable(table, side, n_items, width)
