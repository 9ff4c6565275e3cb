"""The maximal update parametrisation: which weights it touches, and that scores of wide and narrow models move alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import tiny_recipe
from test_models import fitting

from largerec.accounting import weightless_model
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.models import RETRIEVING
from largerec.optim import derived_learning_rate
from largerec.progress import Progress
from largerec.recipe import Recipe, recipe_from
from largerec.train import Trainer, train
from largerec.transfer import width_factors

MUP = "optim.transfer=mup"
STEPS = 6


def trainer(folder: Path, width: int, *overrides: str) -> Trainer:
    options = [f"model.width={width}", "model.heads=2", "model.dropout=0.0", "optim.warmup_steps=0", *overrides]
    with Progress(quiet=True) as progress:
        return Trainer(tiny_recipe(folder / f"w{width}{len(overrides)}", *options), progress)


@pytest.mark.parametrize("family", RETRIEVING)
def test_matrices_whose_inputs_grow_are_touched_and_nothing_else(family: str, tmp_path: Path) -> None:
    document = tiny_recipe(tmp_path / "run").to_json()
    document["model"] = {"name": family, "depth": 1, **fitting(family, {"width": 32, "heads": 2})}
    document["optim"] |= {"transfer": "mup", "base_width": 16}
    with Progress(quiet=True) as progress:
        trained = Trainer(recipe_from(document), progress)
    model, rates = trained.model, {}
    for group in trained.optimizer.param_groups:
        rates |= {parameter: group["factor"] for parameter in group["params"]}
    slow = {name for name, parameter in model.named_parameters() if rates[parameter] != 1}
    assert all(rates[model.get_parameter(name)] == pytest.approx(0.5, rel=0.05) for name in slow)  # some are rounded
    matrices = {f"{place}.weight" for place, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    matrices |= {name for name, parameter in model.named_parameters() if ".gru.weight" in name}
    assert slow == matrices
    assert not any(name.startswith("input.") or "table" in name for name in slow)


def test_grouped_queries_keep_their_heads_at_the_base_width(tmp_path: Path) -> None:
    """Keys and values then grow as queries do, so that all of their matrix is one that grows."""
    options = ("model.name=llama", "model.width=32", "model.heads=4", "model.kv_heads=2", MUP, "optim.base_width=16")
    recipe = tiny_recipe(tmp_path / "run", *options).resolved()
    found = width_factors(recipe, weightless_model(recipe, 30), 30)
    inside = {name: one.rate for name, one in found.items() if "feedforward" not in name}
    assert inside and set(inside.values()) == {0.5} and any("qkv" in name for name in inside)


def test_at_the_base_width_nothing_changes(tmp_path: Path) -> None:
    """Bitwise the run without it, when the learning rate is that of the base."""
    plain = train(tiny_recipe(tmp_path / "plain", f"optim.learning_rate={derived_learning_rate(16)}"), quiet=True)
    ours = train(tiny_recipe(tmp_path / "mup", MUP, "optim.base_width=16"), quiet=True)
    assert plain["validation"] == ours["validation"]
    states = [(load(tmp_path / name).scorer.model.state_dict()) for name in ("plain", "mup")]  # type: ignore[attr-defined]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def moved(trained: Trainer) -> float:
    """How far the scores of some states have moved after a few steps: the root mean square over items."""
    trained.model.eval()
    rows = trained.engine.queries_at(trained.validation_rows[:20])
    before = trained.scorer.prepared().scores(rows)
    trained.model.train()
    for batch, _ in zip(trained.batches.epoch(0), range(STEPS), strict=False):
        trained.step(batch)
    return float((trained.scorer.prepared().scores(rows) - before).square().mean().sqrt())


def test_scores_of_wide_models_move_like_those_of_narrow_ones(tmp_path: Path) -> None:
    """At one learning rate a standard model's scores move faster the wider it is; a transferred one's do not (their figure 3)."""
    ratio: dict[str, float] = {}
    for name, overrides in {"mup": (MUP, "optim.base_width=16"), "standard": ()}.items():
        narrow, wide = (moved(trainer(tmp_path / name, width, "optim.learning_rate=0.005", *overrides)) for width in (16, 256))
        ratio[name] = wide / narrow
    assert 0.6 < ratio["mup"] < 1.7
    assert ratio["standard"] > 3


def test_what_serves_has_the_scale_of_training(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "run", MUP, "model.width=32", "train.max_steps=3"), quiet=True)
    engine = load(tmp_path / "run")
    assert engine.scorer.head.temperature == 32 / 64  # type: ignore[attr-defined]
    cosine = tiny_recipe(tmp_path / "other", MUP, "head.similarity=cosine")
    assert cosine.score_scale == 1.0 and tiny_recipe(tmp_path / "other").score_scale == 1.0


def test_the_derived_rate_is_that_of_the_base() -> None:
    def rate(**optim: Any) -> float | None:
        recipe: Recipe = recipe_from({"model": {"name": "hstu", "width": 256}, "optim": optim})
        return recipe.resolved().optim.learning_rate

    assert rate(transfer="mup") == derived_learning_rate(64)
    assert rate(transfer="mup", base_width=128) == derived_learning_rate(128)
    assert rate() == derived_learning_rate(256)
    with pytest.raises(LargeRecError, match="transfer = mup"):
        rate(base_width=128)
