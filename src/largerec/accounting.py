"""What a run costs by formula: parameters, floating-point operations of training and serving, memory of weights.

Products of matrices are counted, a multiply-add as two, and what looks at earlier tokens; sums, norms and other work that grows
with the width alone are not. Operations are the model's: what ``train.recompute`` makes twice counts once. A backward pass costs
twice its forward pass (a gradient for the input and one for the matrix), or once where the input learns nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from largerec.features import FieldLayout
from largerec.heads import ItemHead
from largerec.item_tables import ItemTable, LowRankRows
from largerec.mixture import MixtureOfLogits
from largerec.models import Backbone, build_model, non_embedding_parameters
from largerec.objectives import SoftmaxOptions
from largerec.ranking import TaskHeads, add_tasks
from largerec.recipe import Recipe

BOTH_WAYS, NO_INPUT_GRADIENT = 3, 2  # operations of forward and backward, in those of the forward pass


def weightless_model(recipe: Recipe, n_items: int, layout: FieldLayout | None = None) -> Backbone:
    """The recipe's model with every shape and no numbers (torch's device ``meta``): free to build at any size. ``layout``: of the
    recipe's features, where it has some."""
    with torch.device("meta"):
        classes_A = tuple(task.n_classes for task in recipe.tasks.values())
        model = build_model(recipe.model, n_items, recipe.batch.positions, layout, classes_A)
        if recipe.batch.actions is not None:
            add_tasks(model, recipe.tasks, recipe.ranking, recipe.batch.actions, layout, recipe.features.where)
        ItemHead.of(recipe.head, model)  # a mixture of logits has weights, which become the model's
    return model


def embedding_parameters(model: Backbone) -> int:
    """Parameters of the item and position tables, of what makes rows of side vectors and of labels as input: all that
    :func:`largerec.models.non_embedding_parameters` leaves out."""
    return sum(p.numel() for p in model.parameters()) - non_embedding_parameters(model)


def matrix_operations(module: nn.Module | None) -> int:
    """Operations of one row through all matrices of a module, once each."""
    entries = 0
    for part in module.modules() if module is not None else ():
        if isinstance(part, nn.Linear):
            entries += part.weight.numel()
        elif isinstance(part, nn.GRU):
            entries += sum(p.numel() for p in part.parameters() if p.dim() == 2)
    return 2 * entries


def block_operations(model: Backbone) -> int:
    """Operations of a token's forward pass through the blocks: without tables, heads and earlier tokens. Of a ranker: of an event
    that is asked about."""
    aside = (model.input, model.output_table, model.task_heads, model.similarity)
    return matrix_operations(model) - sum(matrix_operations(part) for part in aside) + model.further_operations


@dataclass(frozen=True)
class RowCost:
    """Operations that make one row of an item table: of what learns on both sides, and of fixed side vectors."""

    shared: int = 0
    side: int = 0

    @classmethod
    def of(cls, table: nn.Module | None) -> RowCost:
        """None where rows are looked up, or are sums of such rows."""
        if not isinstance(table, ItemTable):
            return cls()
        shared = 2 * table.row.shared_KD.numel() if isinstance(table.row, LowRankRows) else 0
        return cls(shared, matrix_operations(table.project))

    @property
    def forward(self) -> int:
        return self.shared + self.side

    @property
    def training(self) -> int:
        return BOTH_WAYS * self.shared + NO_INPUT_GRADIENT * self.side


def scored_items(recipe: Recipe, n_items: int) -> int:
    """Items that the loss scores for one token; negatives are drawn with repetition, so there may be more than items."""
    objective = recipe.objective
    return n_items if isinstance(objective, SoftmaxOptions) else objective.negatives + 1


def scoring_operations(recipe: Recipe, model: Backbone, scored: float, prepared: float) -> float:
    """Operations of scoring ``scored`` items for a state; a mixture of logits also prepares the state and ``prepared`` items."""
    if isinstance(model.similarity, MixtureOfLogits):
        return float(model.similarity.operations(scored, prepared))
    return 2.0 * recipe.model.shape[1] * scored


def _head_operations(model: Backbone) -> int:
    """Operations of the task heads for one event that is asked about."""
    return matrix_operations(model.task_heads) if isinstance(model.task_heads, TaskHeads) else 0


def training_flops_per_token(recipe: Recipe, model: Backbone, n_items: int, mean_context: float) -> float:
    """Forward and backward passes of one training token: blocks, earlier tokens, tables, the loss and the task heads.

    A contrastive view counts as one more pass through the blocks; its comparison of users is left out. With interleaved actions
    every second token predicts an item and the others are asked about tasks; those alone go through a ranker. A table whose
    rows are made (low-rank, side vectors) is made whole once for every part of a step; so are the negatives of a mixture of
    logits. ``mean_context``: the earlier tokens that a token looks at, on average.
    """
    passes = 1 + recipe.contrastive.passes
    item_share = task_share = 0.5 if recipe.batch.actions == "interleaved" else 1.0
    reached = task_share if model.ranks_only else 1.0
    through = BOTH_WAYS * (block_operations(model) * reached + recipe.model.context_operations(mean_context))
    row = RowCost.of(model.input.item).training
    scored = scored_items(recipe, n_items)
    each = scoring_operations(recipe, model, scored, 1 + (scored - 1) / recipe.batch.tokens)
    scores = BOTH_WAYS * each * item_share * (recipe.ranking.retrieval > 0)
    output = model.input.item if model.output_table is None else model.output_table
    whole_table = RowCost.of(output).training * n_items * recipe.train.accumulate / recipe.batch.tokens
    heads = BOTH_WAYS * _head_operations(model) * task_share
    return passes * (through + row) + scores + whole_table + heads


@dataclass(frozen=True)
class ServingFlops:
    """Operations of using a model: of one event read after ``context`` others whose state is kept; of a whole history of so many
    read at once; of scoring the catalogue for one request; of one candidate's tasks. Item tables are made once, at loading. A
    ranker reads a history only beside a candidate, and scores no catalogue."""

    event: float
    history: float
    catalogue: float
    candidate: float


def serving_flops(recipe: Recipe, model: Backbone, n_items: int, context: int) -> ServingFlops:
    """Forward passes of use after ``context`` events. A request without a kept state costs ``history + catalogue``, with one
    ``event + catalogue``; a candidate of ``rank`` costs ``candidate`` (with interleaved actions one token and its heads)."""
    each = 2 if recipe.batch.actions == "interleaved" else 1
    tokens = each * context
    fixed = block_operations(model) + RowCost.of(model.input.item).forward
    at_end, on_average = (recipe.model.context_operations(at) for at in (tokens + 1, (tokens + 1) / 2))
    heads = _head_operations(model)
    if model.ranks_only:  # its operations beside a history are given for a token, of which half are asked about
        return ServingFlops(0, 0, 0, block_operations(model) + 2 * recipe.model.context_operations(tokens) + heads)
    candidate = heads + (fixed + at_end if each == 2 else 0)
    catalogue = scoring_operations(recipe, model, n_items, 0)
    return ServingFlops(each * (fixed + at_end), tokens * (fixed + on_average), catalogue, candidate if heads else 0)


def training_memory_bytes(model: Backbone) -> int:
    """Weights, gradients and two moments of AdamW in float32; activations come on top."""
    return 16 * sum(p.numel() for p in model.parameters())
