"""Heads turn hidden states into scores. The item head scores the catalogue by the model's own (tied) item table."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from largerec.errors import LargeRecError
from largerec.kernels import unit_rows
from largerec.layers import Backbone
from largerec.mixture import MixtureOfLogits, MoLOptions
from largerec.options import Options


class HeadOptions(Options):
    """``similarity``: dot product, cosine, or a mixture of the cosines of components (``mol``), whose sizes ``mol`` gives.

    Scores are divided by ``temperature`` (cosines want about 0.05).
    """

    similarity: Literal["dot", "cosine", "mol"] = "dot"
    temperature: float = Field(1.0, gt=0)
    mol: MoLOptions = MoLOptions()

    @model_validator(mode="after")
    def _components_need_a_mixture(self) -> Self:
        if self.similarity != "mol" and self.mol != MoLOptions():
            raise LargeRecError(
                f"head.mol is about the components of a mixture of logits, but head.similarity={self.similarity!r} has none. Set "
                "head.similarity = mol, or leave head.mol out."
            )
        return self


class ItemHead:
    """Scores are ``scores(queries, keys)``; both sides are prepared here so that training and serving cannot differ.

    A mixture's weights are the model's, so that they are learned, kept and loaded with it. ``scale``: what scores by dot product
    are multiplied with, beside the temperature (``Recipe.score_scale``).
    """

    def __init__(self, options: HeadOptions, mixture: MixtureOfLogits | None = None, scale: float = 1.0) -> None:
        assert (options.similarity == "mol") == (mixture is not None), "a mixture's weights belong to the similarity mol"
        self.cosine, self.temperature, self.mixture = options.similarity == "cosine", options.temperature / scale, mixture

    @classmethod
    def of(cls, options: HeadOptions, model: Backbone, scale: float = 1.0) -> ItemHead:
        """The head of a model; a mixture's fresh weights become the model's, from torch's global random state."""
        if options.similarity == "mol":
            model.similarity = MixtureOfLogits(options.mol, model.item_table_VD.shape[1])
        mixture = model.similarity
        assert mixture is None or isinstance(mixture, MixtureOfLogits)
        return cls(options, mixture, scale)

    def queries(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        if self.mixture is not None:
            return self.mixture.queries(hidden_BD)
        hidden_BD = unit_rows(hidden_BD) if self.cosine else hidden_BD
        return hidden_BD / self.temperature if self.temperature != 1.0 else hidden_BD

    def keys(self, table_KD: torch.Tensor) -> torch.Tensor:
        if self.mixture is not None:
            return self.mixture.keys(table_KD)
        return unit_rows(table_KD) if self.cosine else table_KD

    def scores(self, queries_BD: torch.Tensor, keys_KD: torch.Tensor) -> torch.Tensor:
        """Scores [B, K] of all keys for each query, both prepared."""
        if self.mixture is not None:
            return self.mixture.scores(queries_BD, keys_KD).div_(self.temperature)
        return queries_BD @ keys_KD.T

    def own_scores(self, queries_TD: torch.Tensor, keys_TD: torch.Tensor) -> torch.Tensor:
        """The score of each query with the key of its own row [T]."""
        if self.mixture is not None:
            return self.mixture.pairs(queries_TD, keys_TD) / self.temperature
        return (queries_TD * keys_TD).sum(1)
