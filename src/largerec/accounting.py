"""What a run costs by formula: floating-point operations of training and memory of weights. One multiply-add counts as two."""

from __future__ import annotations

from largerec.mixture import MixtureOfLogits
from largerec.models import Backbone, non_embedding_parameters
from largerec.objectives import SoftmaxOptions
from largerec.recipe import Recipe


def scored_items(recipe: Recipe, n_items: int) -> int:
    """Items that the loss scores for one token."""
    objective = recipe.objective
    return n_items if isinstance(objective, SoftmaxOptions) else min(n_items, objective.negatives + 1)


def training_flops_per_token(recipe: Recipe, model: Backbone, n_items: int, mean_context: float) -> float:
    """Forward and backward (three times the forward) of the blocks' matrices, of what looks at earlier tokens and of the loss.

    A contrastive view counts as one more pass through the blocks; of a mixture of logits, the negatives are prepared once a step.

    ``mean_context`` is the number of earlier tokens that a token looks at, on average.
    """
    _, width, _ = recipe.model.shape
    blocks, scored = non_embedding_parameters(model), scored_items(recipe, n_items)
    context, loss = recipe.model.context_operations(mean_context), 2.0 * width * scored
    if isinstance(model.similarity, MixtureOfLogits):
        blocks -= sum(p.numel() for p in model.similarity.parameters())
        loss = model.similarity.operations(scored, 1 + (scored - 1) / recipe.batch.tokens)
    if not recipe.ranking.retrieval:
        loss = 0.0
    matrices = 2 * blocks
    return 3 * ((1 + recipe.contrastive.passes) * (matrices + context) + loss)


def training_memory_bytes(model: Backbone) -> int:
    """Weights, gradients and two moments of AdamW in float32; activations come on top."""
    return 16 * sum(p.numel() for p in model.parameters())
