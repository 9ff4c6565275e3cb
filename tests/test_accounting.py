"""Costs by formula against the operations that torch counts while a model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_models import options_of
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from largerec.accounting import (
    embedding_parameters,
    serving_flops,
    training_flops_per_token,
    weightless_model,
)
from largerec.batches import Batch
from largerec.heads import HeadOptions, ItemHead
from largerec.kernels import cpu
from largerec.models import RETRIEVING as FAMILIES
from largerec.models import Backbone, build_model, non_embedding_parameters
from largerec.objectives import Objective, SoftmaxOptions
from largerec.ranking import TaskHeads, add_tasks
from largerec.recipe import Recipe, recipe_from

ITEMS = 40
CASES: dict[str, dict[str, Any]] = {
    **{family: {"model": {"name": family}} for family in FAMILIES},
    "two tables": {"model": {"name": "sasrec", "tied": False}},
    "low rank": {"model": {"name": "sasrec", "table": {"kind": "low-rank", "share": 0.5}}},
    "hashed": {"model": {"name": "sasrec", "table": {"kind": "hashed", "share": 0.5}}},
    "side vectors": {"model": {"name": "hstu", "side": {"columns": ["title"], "width": 24}}},
    "side vectors of two low-rank tables": {
        "model": {
            "name": "hstu",
            "tied": False,
            "table": {"kind": "low-rank", "share": 0.3},
            "side": {"columns": ["title"], "width": 24},
        }
    },
    "more negatives than items": {
        "model": {"name": "sasrec"},
        "objective": {"name": "sampled-softmax", "negatives": 70, "shared": False},
    },
    "sampled": {"model": {"name": "sasrec"}, "objective": {"name": "sampled-softmax", "negatives": 15}},
    "tasks, interleaved": {"model": {"name": "sasrec"}, "batch": {"actions": "interleaved"}},
    "tasks, summed": {"model": {"name": "hstu"}, "batch": {"actions": "summed"}, "ranking": {"head": "linear"}},
}
TASKS = {"click": {"where": "is_click = 1"}, "watched": {"quantiles_of": "seconds", "classes": 5}}


def case(name: str, tokens: int) -> Recipe:
    """A recipe of width 64 whose step is one history."""
    given = CASES[name]
    model = options_of(given["model"]["name"], depth=3, width=64, **given["model"]).model_dump(exclude_unset=True)
    batch = {"tokens": tokens, "max_length": tokens, **given.get("batch", {})}
    tasks = {"tasks": TASKS} if "actions" in batch else {}
    return recipe_from(given | {"model": model, "batch": batch} | tasks)


def built(recipe: Recipe) -> Backbone:
    model = build_model(recipe.model, ITEMS, recipe.batch.positions)
    if recipe.batch.actions is not None:
        add_tasks(model, recipe.tasks, recipe.ranking, recipe.batch.actions)
    return model.train()


def one_history(recipe: Recipe, tokens: int) -> Batch:
    """Every token is asked what its place asks: items of all, or of every second token and tasks of the others."""
    item_T, known_T = torch.arange(tokens) % ITEMS, torch.ones(tokens, dtype=torch.bool)
    batch = Batch(item_T, torch.full((tokens,), -1), torch.tensor([0, tokens]), target_T=item_T, loss_mask_T=known_T)
    if not recipe.tasks:
        return batch
    label_TA, action_T = torch.zeros(tokens, len(recipe.tasks), dtype=torch.int64), known_T
    asked_TA = label_TA
    if recipe.batch.actions == "interleaved":
        action_T = torch.arange(tokens) % 2 == 1
        asked_TA = torch.where(action_T[:, None], -1, label_TA)
    return Batch(**vars(batch) | {"loss_mask_T": action_T, "action_T": action_T, "label_TA": label_TA, "task_label_TA": asked_TA})


def counted_step(recipe: Recipe, tokens: int) -> float:
    """Operations a token that torch counts in a step, forward and backward; attention makes all pairs, not half of them."""
    model, batch = built(recipe), one_history(recipe, tokens)
    objective, head = Objective(recipe.objective, torch.ones(ITEMS)), ItemHead(HeadOptions())
    assert batch.loss_mask_T is not None and batch.target_T is not None
    with FlopCounterMode(display=False) as counter:
        hidden_TD, table_VD = model(batch), model.item_table_VD
        queries_TD = head.queries(hidden_TD[batch.loss_mask_T])
        keys_VD, target_T = head.keys(table_VD), batch.target_T[batch.loss_mask_T]
        # The chunked softmax adds its products in place, which nobody counts.
        whole = isinstance(recipe.objective, SoftmaxOptions)
        loss = F.cross_entropy(queries_TD @ keys_VD.T, target_T) if whole else objective(queries_TD, keys_VD, target_T)
        if isinstance(model.task_heads, TaskHeads):
            loss = loss + model.task_heads.losses(hidden_TD, batch, table_VD, torch.ones(len(recipe.tasks))).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops() / tokens


@pytest.mark.parametrize("name", CASES)
def test_training_is_what_torch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "usable", lambda *tensors: False)  # the compiled kernels are one operator that nobody counts
    # The first state of what goes from step to step, or from chunk to chunk, is zero and learns nothing.
    most = {"fuxi-linear": 0.05, "gru4rec": 0.02}.get(name, 0.01)
    for tokens in (32, 64):  # whole chunks
        recipe = case(name, tokens)
        formula = training_flops_per_token(recipe, built(recipe), ITEMS, mean_context=tokens)
        assert counted_step(recipe, tokens) == pytest.approx(formula, rel=most)


@pytest.mark.parametrize("name", CASES)
def test_serving_is_what_torch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "usable", lambda *tensors: False)
    tokens = 32
    recipe = case(name, tokens)
    model = built(recipe).eval().requires_grad_(False)
    each = 2 if recipe.batch.actions == "interleaved" else 1
    found = serving_flops(recipe, model, ITEMS, tokens // each)
    twice = recipe.model.context_operations(tokens) - recipe.model.context_operations((tokens + 1) / 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        state_TD = model(one_history(recipe, tokens))
    assert counter.get_total_flops() == pytest.approx(found.history + twice * tokens, rel=0.03)
    table_VD = model.item_table_VD
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _ = state_TD[-1:] @ table_VD.T
    assert counter.get_total_flops() == found.catalogue
    assert found.event == pytest.approx(
        each
        * (
            found.history / tokens
            + recipe.model.context_operations(tokens + 1)
            - recipe.model.context_operations((tokens + 1) / 2)
        )
    )
    if not isinstance(model.task_heads, TaskHeads):
        assert found.candidate == 0
        return
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.task_heads(state_TD[-1:], table_VD[:1])
    asked = found.candidate - (found.event / 2 if each == 2 else 0)
    assert counter.get_total_flops() == pytest.approx(asked)


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_exact_without_weights(name: str) -> None:
    recipe = case(name, 16)
    weightless, model = weightless_model(recipe, ITEMS), built(recipe)
    assert all(parameter.is_meta for parameter in weightless.parameters())
    assert non_embedding_parameters(weightless) == non_embedding_parameters(model)
    tables = sum(p.numel() for part in (model.input, model.output_table) if part is not None for p in part.parameters())
    assert embedding_parameters(weightless) == embedding_parameters(model) == tables
    assert tables + non_embedding_parameters(model) == sum(p.numel() for p in model.parameters())


def test_what_is_computed_twice_to_save_memory_counts_once() -> None:
    plain, recomputed = case("sasrec", 16), case("sasrec", 16)
    recomputed = recomputed.model_copy(update={"train": recomputed.train.model_copy(update={"recompute": True})})
    costs = [training_flops_per_token(recipe, built(recipe), ITEMS, 8) for recipe in (plain, recomputed)]
    assert costs[0] == costs[1]
