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
    """Forward and backward (three times the forward) of the blocks' matrices, of what looks at earlier tokens and of the loss.

    A contrastive view counts as one more pass through the blocks.

    ``mean_context`` is the number of earlier tokens that a token looks at, on average.
    """
    _, width, _ = recipe.model.shape
    matrices = 2 * non_embedding_parameters(model)
    context = recipe.model.context_operations(mean_context)
    loss = 2 * width * scored_items(recipe, n_items)
    return 3 * ((1 + recipe.contrastive.passes) * (matrices + context) + loss)


def training_memory_bytes(model: Backbone) -> int:
    """Weights, gradients and two moments of AdamW in float32; activations come on top."""
    return 16 * sum(p.numel() for p in model.parameters())
