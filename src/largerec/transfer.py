"""Hyper-parameters that stay right across widths: the maximal update parametrisation (Yang et al. 2022, arXiv 2203.03466).

With it the learning rate that is best for a narrow model is about best for a wide one. For AdamW (tables 3 and 8), with r the
width over the base width: a matrix whose inputs grow with the width starts smaller by sqrt(r), or by r where its outputs do not
grow, and learns at 1 / r of the rate; tables, norms and biases learn at the full rate; scores by dot product are divided by r,
which is what a tied item table needs. Attention keeps its scale, since the dial keeps the width of a head.

Which matrices grow is read off the shapes of the same model at the base width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from largerec.accounting import weightless_model
from largerec.features import FieldLayout
from largerec.layers import Backbone
from largerec.recipe import Recipe


@dataclass(frozen=True)
class Factors:
    """What one parameter's rate and first weights are multiplied with."""

    rate: float = 1.0
    start: float = 1.0


def factors(model: Backbone, base: Backbone) -> dict[str, Factors]:
    """The factors of every matrix of ``model`` whose inputs grow with the width, by name; ``base``: the model at the base width.

    Item tables, positions and tables of biases are no such matrices: what they are multiplied with is one of many rows.
    """
    shapes = {name: parameter.shape for name, parameter in base.named_parameters()}
    found: dict[str, Factors] = {}
    for name in _matrices(model):
        given, at_base = model.get_parameter(name).shape, shapes[name]
        grown = given[-1] / at_base[-1]
        if grown == 1:
            continue
        found[name] = Factors(1 / grown, grown**-0.5 if given[0] != at_base[0] else 1 / grown)
    return found


def _matrices(model: Backbone) -> list[str]:
    """Names of the matrices that tokens are multiplied with, outside the input and the item tables."""
    names = []
    for place, module in model.named_modules():
        if place.split(".")[0] in ("input", "output_table"):
            continue
        if isinstance(module, nn.Linear | nn.GRU):
            names += [f"{place}.{name}" for name, p in module.named_parameters(recurse=False) if p.dim() == 2]
    return names


@torch.no_grad()
def start_as(model: Backbone, found: dict[str, Factors]) -> None:
    """Scale fresh weights by their factors, in place."""
    for name, own in found.items():
        model.get_parameter(name).mul_(own.start)


def width_factors(recipe: Recipe, model: Backbone, n_items: int, layout: FieldLayout | None = None) -> dict[str, Factors]:
    """What ``optim.transfer = "mup"`` multiplies rates and first weights of the (resolved) recipe's model with; else nothing."""
    if recipe.optim.transfer == "sqrt":
        return {}
    heads = {"heads": None} if "heads" in recipe.model.by_size else {}
    narrow = recipe.model.model_dump() | {"width": recipe.optim.base_width} | heads
    base = recipe.model_copy(update={"model": type(recipe.model).model_validate(narrow).resolved()})
    return factors(model, weightless_model(base, n_items, layout))
