"""Costs by formula against the operations that torch counts while a model runs."""

from __future__ import annotations

import pytest
import torch
from test_models import options_of
from torch.utils.flop_counter import FlopCounterMode

from largerec.accounting import scored_items, training_flops_per_token
from largerec.batches import Batch
from largerec.kernels import cpu
from largerec.models import RETRIEVING as FAMILIES
from largerec.models import build_model
from largerec.recipe import Recipe, recipe_from


def counted(recipe: Recipe, tokens: int) -> float:
    """Operations a token of matrix products in one forward pass over one history; attention makes all pairs, not half of them."""
    model = build_model(recipe.model, 10, tokens).eval()
    batch = Batch(torch.arange(tokens) % 10, torch.full((tokens,), -1), torch.tensor([0, tokens]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    return counter.get_total_flops() / tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_is_what_torch_counts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "usable", lambda *tensors: False)  # the compiled kernels are one operator that nobody counts
    options = options_of(family, depth=3, width=64).model_dump(exclude_unset=True)
    recipe = recipe_from({"model": options | {"name": family}})
    for tokens in (16, 64):  # whole chunks, for the family that works in chunks
        model = build_model(recipe.model, 10, tokens)
        of_loss = 6 * 64 * scored_items(recipe, 10)
        formula = (training_flops_per_token(recipe, model, 10, mean_context=tokens) - of_loss) / 3
        assert counted(recipe, tokens) == pytest.approx(formula, rel=0.03)
