"""What a run costs by formula: floating-point operations of training and memory of weights. One multiply-add counts as two."""

from __future__ import annotations

from largerec.models import Backbone, non_embedding_parameters
from largerec.objectives import SoftmaxOptions
from largerec.recipe import Recipe


def scored_items(recipe: Recipe, n_items: int) -> int:
    """Items that the loss scores for one token."""
    objective = recipe.objective
    return n_items if isinstance(objective, SoftmaxOptions) else min(n_items, objective.negatives + 1)


def training_flops_per_token(recipe: Recipe, model: Backbone, n_items: int, mean_context: float) -> float:
    """Forward and backward (three times the forward) of the blocks' matrices, of attention and of the loss.

    ``mean_context`` is the number of earlier tokens that a token attends to, on average.
    """
    depth, width, _ = recipe.model.shape
    matrices = 2 * non_embedding_parameters(model)
    attention = depth * recipe.model.mixing_flops(width, mean_context)
    loss = 2 * width * scored_items(recipe, n_items)
    return 3 * (matrices + attention + loss)


def training_memory_bytes(model: Backbone) -> int:
    """Weights, gradients and two moments of AdamW in float32; activations come on top."""
    return 16 * sum(p.numel() for p in model.parameters())
