"""Heads turn hidden states into scores. The item head scores the catalogue by the model's own (tied) item table."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from largerec.kernels import unit_rows
from largerec.options import Options


class HeadOptions(Options):
    """``similarity``: dot product or cosine; scores are divided by ``temperature`` (cosine wants about 0.05)."""

    similarity: Literal["dot", "cosine"] = "dot"
    temperature: float = Field(1.0, gt=0)


class ItemHead:
    """Scores are ``queries_BD @ keys_VD.T``; both sides are prepared here so that training and serving cannot differ.

    ``scale``: what scores are multiplied with, beside the temperature (``Recipe.score_scale``).
    """

    def __init__(self, options: HeadOptions, scale: float = 1.0) -> None:
        self.cosine, self.temperature = options.similarity == "cosine", options.temperature / scale

    def queries(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        hidden_BD = unit_rows(hidden_BD) if self.cosine else hidden_BD
        return hidden_BD / self.temperature if self.temperature != 1.0 else hidden_BD

    def keys(self, table_KD: torch.Tensor) -> torch.Tensor:
        return unit_rows(table_KD) if self.cosine else table_KD
