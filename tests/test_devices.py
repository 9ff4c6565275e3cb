"""Where a run may be trained, and how it is told what may not be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import tiny_recipe

from largerec.devices import device_of, memory_advised, named
from largerec.errors import LargeRecError
from largerec.recipe import Recipe
from largerec.scaling.scale import scale


def test_the_cpu_is_what_is_not_said(tmp_path: Path) -> None:
    device = device_of(tiny_recipe(tmp_path))
    assert device.type == "cpu" and named(device) == "cpu"


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LargeRecError, match=r"sees no CUDA device here.*train\.device=cpu"):
        device_of(tiny_recipe(tmp_path, "train.device=cuda"))


@pytest.mark.parametrize(
    ("cuda", "capability", "fits"),
    [("13.0", (9, 0), True), ("13.0", (8, 0), True), ("13.0", (7, 5), False), (None, (9, 4), False)],
)
def test_an_older_device_or_another_makers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, capability: tuple[int, int], fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(major=capability[0]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Card")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    recipe = tiny_recipe(tmp_path, "train.device=cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # put back when the test ends
    if fits:
        assert device_of(recipe).type == "cuda"
    else:
        with pytest.raises(LargeRecError, match=r"capability 8.*Some Card.*train\.device=cpu"):
            device_of(recipe)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("tasks.click.where='watch = 1'", "batch.actions=summed"), "tasks"),
        (("lists={items = 'shown', choice = true}",), "lists.choice"),
    ],
)
def test_parts_that_only_a_cpu_trains(tmp_path: Path, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(LargeRecError, match=rf"this recipe has {said}; use train\.device=cpu"):
        tiny_recipe(tmp_path, "train.device=cuda", *overrides)


def test_a_grid_counts_core_minutes(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"core-minutes.*use train\.device=cpu"):
        scale(tiny_recipe(tmp_path, "train.device=cuda"))


def test_a_card_without_room_says_what_to_change() -> None:
    with pytest.raises(LargeRecError, match=r"tried to allocate 2 GiB\)\. Lower batch\.tokens"), memory_advised():
        raise torch.OutOfMemoryError("tried to allocate 2 GiB. GPU 0 has ...")


def test_automatic_precision_of_a_device_is_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("largerec.recipe.native_bf16", lambda: False)

    def precision(device: str) -> str:
        recipe: Recipe = tiny_recipe(tmp_path, "train.precision=auto", f"train.device={device}")
        return recipe.resolved().train.precision

    assert precision("cuda") == "bf16" and precision("cpu") == "fp32"
