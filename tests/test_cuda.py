"""Training on a CUDA device: the same losses and gradients as on the CPU, for every family, objective and part of a recipe.

Without a device nothing here can run but the refusals, which are in test_devices.py.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from logs import chain_log
from runs import tiny_recipe

from largerec.engine import load
from largerec.models import RETRIEVING
from largerec.progress import Progress
from largerec.recipe import Recipe
from largerec.train import Trainer, train

if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device; what it does is checked on a machine with one", allow_module_level=True)

SOFTMAX = "objective={name = 'softmax'}"
PARTS = {
    "smoothing": ("objective={name = 'softmax', label_smoothing = 0.1}",),
    "own negatives": ("objective={name = 'sampled-softmax', negatives = 8, shared = false}",),
    "popular negatives": ("objective={name = 'sampled-softmax', negatives = 8, sampling = 'popularity'}",),
    "bce": ("objective={name = 'bce', negatives = 2}",),
    "gbce": ("objective={name = 'gbce', negatives = 4}",),
    "cosine": (SOFTMAX, "head={similarity = 'cosine', temperature = 0.1}"),
    "mixture of logits": ("head={similarity = 'mol', temperature = 0.1}",),
    "untied": ("model.tied=false",),
    "hashed": ("model.table={kind = 'hashed', share = 0.5}",),
    "low rank": ("model.table={kind = 'low-rank', share = 0.5}",),
    "rows by adam": ("optim.table=lazy-adam",),
    "rows by adagrad": ("optim.table=rowwise-adagrad",),
    "views": ("contrastive={weight = 0.1, views = ['same-target', 'edits']}",),
    "in parts, recomputed": ("train.accumulate=2", "train.recompute=true"),
    "average": ("train.average=0.9",),
    "query time": ("model.query_time=true",),
}


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take their first blocks that fit: timing all of them for shapes this small would take minutes."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)


def step_of(recipe: Recipe) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The loss of a first step, its gradients, and what the step made of the weights (or their average), on the CPU."""
    with Progress(quiet=True) as progress:
        trainer = Trainer(recipe, progress)
        trainer.model.train()
        loss = trainer.step(next(iter(trainer.batches.epoch(0))))
        assert all(parameter.device.type == recipe.train.device for parameter in trainer.model.parameters())
        named = dict(trainer.model.named_parameters())
        gradients = {name: parameter.grad.cpu() for name, parameter in named.items() if parameter.grad is not None}
        made = named if trainer.average is None else trainer.average.tensors
        return loss, gradients, {name: tensor.detach().cpu() for name, tensor in made.items()}


def assert_the_devices_agree(folder: Path, *overrides: str) -> None:
    given = (*overrides, "model.dropout=0", "train.precision=fp32")  # masks are drawn by each device's own generator
    truth, found = (step_of(tiny_recipe(folder / name, f"train.device={name}", *given)) for name in ("cpu", "cuda"))
    assert found[0] == pytest.approx(truth[0], rel=1e-4)
    assert found[1].keys() == truth[1].keys()
    for name, gradient in truth[1].items():
        bound = 1e-3 * float(gradient.abs().max()) + 1e-7
        assert float((found[1][name] - gradient).abs().max()) <= bound, name
    # A first step of Adam is as long for a gradient of 1e-9 as for one of 1, and so may go the other way where that is rounding.
    for name, weight in truth[2].items():
        near = (found[2][name] - weight).abs() <= 1e-3 * float(weight.abs().max())
        assert float(near.double().mean()) > 0.98, name


@pytest.mark.parametrize("family", RETRIEVING)
def test_a_step_of_every_family_is_that_of_the_cpu(tmp_path: Path, family: str) -> None:
    assert_the_devices_agree(tmp_path, f"model={{name = '{family}', depth = 2, width = 16}}", SOFTMAX)


@pytest.mark.parametrize("part", PARTS)
def test_a_step_with_every_part_is_that_of_the_cpu(tmp_path: Path, part: str) -> None:
    assert_the_devices_agree(tmp_path, *PARTS[part])


@pytest.mark.parametrize("family", RETRIEVING)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_known_rule_is_learned_and_served_on_the_cpu(tmp_path: Path, family: str, precision: str) -> None:
    chain_log().write(tmp_path / "chain.parquet")
    model = f"model={{name = '{family}', depth = 1, width = 16, dropout = 0.1}}"
    further = ("optim.learning_rate=0.02", f"train.precision={precision}", "train.max_epochs=25", "train.device=cuda")
    result = train(tiny_recipe(tmp_path / "run", f"data.path={tmp_path / 'chain.parquet'}", model, SOFTMAX, *further), quiet=True)
    assert result["device"] == torch.cuda.get_device_name()
    assert result["validation"]["recall@5"] > 0.9
    engine = load(tmp_path / "run")
    assert {tensor.device.type for tensor in engine.scorer.model.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("further", ["optim.table=lazy-adam", "train.average=0.9"])
def test_a_run_that_was_stopped_goes_on(tmp_path: Path, further: str) -> None:
    given = ("train.device=cuda", further)

    def stop() -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(tiny_recipe(tmp_path / "run", *given), quiet=True, on_validation=stop)
    assert (tmp_path / "run" / "state.safetensors").is_file() and not (tmp_path / "run" / "result.json").exists()
    stopped, whole = (train(tiny_recipe(tmp_path / name, *given), quiet=True) for name in ("run", "whole"))
    assert stopped["steps"] == whole["steps"]
    assert stopped["validation"]["ndcg@10"] == pytest.approx(whole["validation"]["ndcg@10"], abs=0.05)  # sums in another order
