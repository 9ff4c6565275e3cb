"""The average of the weights: by its definition, and in a run, where it is what is validated and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import copy_of_run, log_lines, tiny_recipe
from safetensors.torch import load_file
from torch import nn

from largerec.averaging import WeightAverage
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate
from largerec.train import Trainer, train


def test_it_is_the_weighted_mean_of_all_steps_by_definition() -> None:
    torch.manual_seed(0)
    model, decay = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double(), 0.8
    average, seen = WeightAverage(model, decay), []
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        average.update(step)
        weights = decay ** np.arange(step - 1, -1, -1)
        for at, tensor in enumerate(average.tensors.values()):
            expected = sum(w * past[at] for w, past in zip(weights / weights.sum(), seen, strict=True))
            torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)


def test_in_place_shows_the_average_and_gives_the_weights_back() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    own = model.weight.detach().clone()
    average.tensors["weight"].fill_(7.0)
    with pytest.raises(KeyError), average.in_place():
        assert (model.weight == 7).all()
        raise KeyError
    assert torch.equal(model.weight, own) and (average.tensors["weight"] == 7).all()


def test_a_run_validates_and_keeps_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights recorded step by step beside the run, averaged by the definition, are what model.safetensors holds."""
    seen: list[dict[str, torch.Tensor]] = []
    plain = Trainer.step

    def recorded(self: Trainer, batch: object) -> float:
        loss = plain(self, batch)  # type: ignore[arg-type]
        seen.append({name: parameter.detach().clone() for name, parameter in self.model.named_parameters()})
        return loss

    monkeypatch.setattr(Trainer, "step", recorded)
    result = train(tiny_recipe(tmp_path / "run", "train.average=0.7"), quiet=True)
    weights = 0.7 ** np.arange(result["best_step"] - 1, -1, -1)
    kept = load_file(tmp_path / "run" / "model.safetensors")
    for name in seen[0]:
        expected = sum(float(w) * past[name] for w, past in zip(weights / weights.sum(), seen, strict=False))
        torch.testing.assert_close(kept[name], expected, rtol=1e-4, atol=1e-6)
    plainly = copy_of_run(tmp_path / "plain")
    state, theirs = (load_file(folder / "state.safetensors") for folder in (tmp_path / "run", plainly))
    steps = [[line["loss"] for line in log_lines(folder) if "loss" in line] for folder in (tmp_path / "run", plainly)]
    shared = min(map(len, steps))
    assert steps[0][:shared] == steps[1][:shared], "averaging does not touch training itself"
    assert len(steps[0]) != len(steps[1]) or all(torch.equal(state[name], theirs[name]) for name in theirs)
    validated = [line["validation"]["ndcg@10"] for line in log_lines(tmp_path / "run") if "validation" in line]
    assert result["validation"]["ndcg@10"] == pytest.approx(max(validated)), "the best validation is that of the kept weights"
    assert evaluate(tmp_path / "run")["n_test_evaluations"] == 1


@pytest.mark.parametrize("table", ["lazy-adam", "rowwise-adagrad"])
def test_tables_that_learn_by_rows_are_refused(table: str, tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=rf"train.average=0.9 .* optim.table='{table}'"):
        tiny_recipe(tmp_path, "train.average=0.9", f"optim.table={table}")


@pytest.mark.parametrize("decay", ["0", "1", "-0.5"])
def test_a_decay_is_between_0_and_1(decay: str, tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"train.average"):
        tiny_recipe(tmp_path, f"train.average={decay}")
