"""AdamW, its learning-rate schedule and the rule that derives a learning rate from a model's width."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from largerec.options import Options

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimOptions(Options):
    """``learning_rate``: derived from the width when not given. ``schedule``: what follows the warm-up over the planned steps."""

    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.98)
    warmup_steps: int = Field(100, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    clip: float = Field(5.0, gt=0)


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


def build_optimizer(model: nn.Module, options: OptimOptions) -> torch.optim.AdamW:
    """AdamW (fused); weight decay falls on matrices and tables, not on biases and norms."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=options.betas, fused=True)
