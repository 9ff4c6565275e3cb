"""The size dial: a word for non-embedding parameters, from which each family derives depth, width and heads.

Embedding tables are not counted: they grow with the catalogue and the history, not with the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from largerec.errors import LargeRecError
from largerec.item_tables import SideOptions, TableOptions
from largerec.options import Options

Size = Literal["nano", "tiny", "small", "base", "large", "xl"]
TARGETS: dict[Size, int] = {
    "nano": 25_000,
    "tiny": 100_000,
    "small": 400_000,
    "base": 1_600_000,
    "large": 6_400_000,
    "xl": 25_000_000,
}
DEPTHS: dict[Size, int] = {"nano": 2, "tiny": 2, "small": 4, "base": 4, "large": 8, "xl": 12}
HEAD_WIDTH = 64


class ModelOptions(Options):
    """What every family has. ``size`` derives ``depth`` (blocks), ``width`` (D) and ``heads``; each can be set by hand.

    ``tied``: items are scored with the table that is their input, or with one of their own. ``table``, ``side``: of either.
    A family with ``has_heads = False`` has one head by name only, and refuses any other number. One with ``ranks_only`` predicts
    tasks of given items and retrieves nothing.
    """

    has_heads: ClassVar[bool] = True
    ranks_only: ClassVar[bool] = False
    name: str = ""  # each family gives its own
    size: Size = "tiny"
    depth: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=4)
    heads: int | None = Field(None, ge=1, le=512)  # up to here some width of the dial is a multiple
    dropout: float = Field(0.2, ge=0, lt=1)
    tied: bool = True
    table: TableOptions = TableOptions()
    side: SideOptions = SideOptions()

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise LargeRecError(f"model.width={self.width} is no multiple of model.heads={self.heads}; choose a width that is.")
        if not self.has_heads and self.heads not in (None, 1):
            raise LargeRecError(f"model.heads={self.heads} would do nothing: {self.name} has no heads. Leave it out or set 1.")
        return self

    def block_parameters(self, width: int) -> int:
        """Parameters of one block without its bias tables: the family's rule for the dial."""
        raise AssertionError("each family gives its rule")

    def context_operations(self, mean_context: float) -> float:
        """Operations of one forward pass that a token spends on ``mean_context`` earlier tokens, in all blocks, beside those of
        the matrices that it meets: scores and weighted sums of attention. A family that does otherwise gives its own rule."""
        depth, width, _ = self.shape
        return 4 * depth * width * mean_context

    @property
    def reads_time(self) -> bool:
        """Whether times of events are input of the model."""
        return False

    @property
    def by_size(self) -> frozenset[str]:
        """Options that another size sets anew, whatever they are by hand."""
        return frozenset({"depth", "width", "heads"})

    def resolved(self) -> Self:
        """The same options with depth, width and heads written out."""
        depth = self.depth or DEPTHS[self.size]
        width = self.width or _width(self.block_parameters, depth, TARGETS[self.size], self.heads)
        heads = self.heads or (_heads(width) if self.has_heads else 1)
        changes: dict[str, Any] = {"depth": depth, "width": width, "heads": heads}
        return type(self).model_validate(self.model_dump() | changes)

    @property
    def plain_table(self) -> bool:
        """Whether there is one item table, with a free row for each item."""
        return self.tied and self.table.kind == "full" and not self.side.columns

    @property
    def shape(self) -> tuple[int, int, int]:
        """(depth, width, heads) of resolved options."""
        done = self.resolved()
        assert done.depth is not None and done.width is not None and done.heads is not None
        return done.depth, done.width, done.heads


def _heads(width: int) -> int:
    wanted = max(1, round(width / HEAD_WIDTH))
    return min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: (abs(h - wanted), h))


def _width(block_parameters: Callable[[int], int], depth: int, target: int, heads: int | None) -> int:
    """The width (a multiple of ``heads``) whose blocks come nearest to the target: a multiple of 4, or of 2 where all of
    those miss it by more than a tenth."""

    def miss(width: int) -> int:
        return abs(depth * block_parameters(width) - target)

    coarse, fine = (min((w for w in range(step, 2049, step) if heads is None or w % heads == 0), key=miss) for step in (4, 2))
    return coarse if miss(coarse) <= target / 10 else fine
