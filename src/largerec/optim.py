"""AdamW, its learning-rate schedule, the rule that derives a learning rate from a width, and updates of an item table by rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from largerec.errors import LargeRecError
from largerec.options import Options

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimOptions(Options):
    """``learning_rate``: derived from the width when not given. ``schedule``: what follows the warm-up over the planned steps.

    ``table``: how the item table learns. ``adamw`` updates all of it each step; ``lazy-adam`` and ``rowwise-adagrad`` only the
    rows that the step used, so that a step costs the same with ten thousand items and with a million.

    ``transfer``: how one learning rate serves all widths. ``sqrt`` derives it from the width, if it is not given. ``mup`` is the
    maximal update parametrisation (``transfer.py``): ``learning_rate`` is that of the model at ``base_width``, and wider or
    narrower ones change first weights, rates of matrices and the scale of scores instead.
    """

    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.98)
    warmup_steps: int = Field(100, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    clip: float = Field(5.0, gt=0)
    table: Literal["adamw", "lazy-adam", "rowwise-adagrad"] = "adamw"
    transfer: Literal["sqrt", "mup"] = "sqrt"
    base_width: int = Field(64, ge=8)

    @model_validator(mode="after")
    def _a_base_needs_a_transfer(self) -> Self:
        if self.transfer == "sqrt" and self.base_width != type(self).model_fields["base_width"].default:
            raise LargeRecError(
                f"optim.base_width={self.base_width} is the width that optim.transfer='mup' starts from, but optim.transfer is "
                "'sqrt'. Set optim.transfer = mup, or leave the width out."
            )
        return self

    @property
    def derived_rate_width(self) -> int | None:
        """The width from which a learning rate that is not given follows; None: the model's own."""
        return self.base_width if self.transfer == "mup" else None


def derived_learning_rate(width: int) -> float:
    """0.002 at width 64, falling with the square root of the width."""
    return 0.002 * math.sqrt(64 / width)


def learning_rate_at(step: int, total_steps: int, options: OptimOptions, peak: float) -> float:
    """The learning rate of step 0, 1, ...: linear warm-up, then the schedule down to zero at ``total_steps``."""
    if step < options.warmup_steps:
        return peak * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return peak
    done = min(1.0, (step - options.warmup_steps) / max(1, total_steps - options.warmup_steps))
    return peak * (1 - done if options.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def build_optimizer(
    model: nn.Module,
    options: OptimOptions,
    without: frozenset[torch.Tensor] = frozenset(),
    rates: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (fused); weight decay falls on matrices and tables, not on biases and norms. ``without``: what others update.

    ``rates``: parameters by name that learn at this multiple of the rate, in groups with that ``factor``; their weight decay for
    each step is that of all.
    """
    rates = rates or {}
    parameters = [(rates.get(name, 1.0), p) for name, p in model.named_parameters() if p not in without]
    decay, groups = options.weight_decay, list[dict[str, Any]]()
    for factor in sorted({factor for factor, _ in parameters}, key=lambda factor: (factor != 1, factor)):  # the whole rate first
        own = [p for theirs, p in parameters if theirs == factor]
        groups.append({"params": [p for p in own if p.dim() > 1], "weight_decay": decay / factor, "factor": factor})
        groups.append({"params": [p for p in own if p.dim() <= 1], "weight_decay": 0.0, "factor": factor})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=options.betas, fused=True)


class RowOptimizer:
    """Updates the rows of a table that a step used; all other rows, and their moments, stay as they are.

    ``lazy-adam``: AdamW's rule, with moments that decay only when a row is used and the bias correction of the step at hand;
    weight decay falls on used rows alone. ``rowwise-adagrad``: one sum of mean squared gradients a row (as in DLRM's tables)
    instead of Adam's two numbers for each weight; without weight decay.

    Attributes:
        state: the tensors that a checkpoint must hold.
    """

    EPSILON = 1e-8

    def __init__(self, table_VD: torch.Tensor, options: OptimOptions) -> None:
        self.table_VD, self.options = table_VD, options
        self.state: dict[str, torch.Tensor]
        if options.table == "lazy-adam":
            self.state = {name: torch.zeros_like(table_VD, requires_grad=False) for name in ("moment", "square")}
        else:
            self.state = {"sum": torch.zeros(len(table_VD), device=table_VD.device)}
        self._used_V = torch.zeros(len(table_VD), dtype=torch.bool)
        self._place_V = torch.zeros(len(table_VD), dtype=torch.long)

    def rows_of(self, *items: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The distinct items, rising [R], and each given tensor with an item's place among them instead of it; on the CPU."""
        for each in items:
            self._used_V[each.flatten()] = True
        rows_R = self._used_V.nonzero()[:, 0]
        self._used_V[rows_R] = False
        self._place_V[rows_R] = torch.arange(len(rows_R))
        return rows_R, [self._place_V[each] for each in items]

    @torch.no_grad()
    def step(self, rows_R: torch.Tensor, gradient_RD: torch.Tensor, rate: float, step: int) -> None:
        """Apply the gradient of the distinct rows; ``step`` counts from 0."""
        value_RD = self.table_VD[rows_R]
        if self.options.table == "lazy-adam":
            first, second = self.options.betas
            moment_RD = self.state["moment"][rows_R].lerp_(gradient_RD, 1 - first)
            square_RD = self.state["square"][rows_R].mul_(second).addcmul_(gradient_RD, gradient_RD, value=1 - second)
            self.state["moment"][rows_R], self.state["square"][rows_R] = moment_RD, square_RD
            value_RD.mul_(1 - rate * self.options.weight_decay)
            scale_RD = square_RD.div(1 - second ** (step + 1)).sqrt_().add_(self.EPSILON)
            value_RD.addcdiv_(moment_RD, scale_RD, value=-rate / (1 - first ** (step + 1)))
        else:
            sum_R = self.state["sum"][rows_R] + gradient_RD.square().mean(1)
            self.state["sum"][rows_R] = sum_R
            value_RD.addcdiv_(gradient_RD, sum_R.sqrt()[:, None] + self.EPSILON, value=-rate)
        self.table_VD[rows_R] = value_RD
