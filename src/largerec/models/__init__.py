"""The table of model families: a name in a recipe to options and class."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from largerec.models.dial import ModelOptions
from largerec.models.hstu import HSTU, HSTUOptions
from largerec.models.sasrec import SASRec, SASRecOptions

Backbone = SASRec | HSTU
AnyModelOptions = Annotated[SASRecOptions | HSTUOptions, Field(discriminator="name")]
FAMILIES: dict[str, tuple[type[ModelOptions], type[Backbone]]] = {"sasrec": (SASRecOptions, SASRec), "hstu": (HSTUOptions, HSTU)}


def build_model(options: SASRecOptions | HSTUOptions, n_items: int, max_length: int) -> Backbone:
    """Build a backbone with fresh weights from torch's global random state."""
    _, family = FAMILIES[options.name]
    return family(options, n_items, max_length)  # type: ignore[arg-type]


def non_embedding_parameters(model: Backbone) -> int:
    """Parameters outside the item and position tables."""
    tables = {id(p) for p in model.input.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


__all__ = [
    "FAMILIES",
    "HSTU",
    "AnyModelOptions",
    "Backbone",
    "HSTUOptions",
    "ModelOptions",
    "SASRec",
    "SASRecOptions",
    "build_model",
    "non_embedding_parameters",
]
