"""What a grid's lists ask for where they are empty, in any order, or beside settings by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_scale import GRID, grid_data

from largerec.grid import ScaleOptions, cells
from largerec.recipe import recipe_from
from largerec.scaling.candidates import of_size
from largerec.scaling.schedule import Planned, planned


def runs_of(model: dict[str, Any], scale: dict[str, Any], **groups: Any) -> list[Planned]:
    groups = {name: GRID.get(name, {}) | group for name, group in groups.items()}
    given = GRID | groups | {"model": model, "scale": {"targets": 60, "seeds": 1} | scale}
    return planned(recipe_from(given), grid_data(), Path("unused"))


@pytest.mark.parametrize(("empty", "own"), [("users", 0.5), ("recent", 0.6)])
def test_empty_shares_keep_the_recipe_s_own(empty: str, own: float) -> None:
    """Under a name that says them, so that a list that grows later makes no other run of that name."""
    (run,) = runs_of({"name": "hstu"}, {"sizes": ["nano"], empty: []}, batch={empty: own})
    assert getattr(run.recipe.batch, empty) == own and run.name == f"hstu-nano-{empty[0]}{own:g}-s0"
    (same,) = runs_of({"name": "hstu"}, {"sizes": ["nano"], empty: [own]})
    assert same.name == run.name and same.tokens == run.tokens < runs_of({"name": "hstu"}, {"sizes": ["nano"]})[0].tokens


def test_no_sizes_keep_the_recipe_s_own_shape() -> None:
    (run,) = runs_of({"name": "hstu", "depth": 1, "width": 24, "heads": 3}, {"sizes": []})
    assert run.name == "hstu-s0" and run.recipe.model.shape == (1, 24, 3)
    (run,) = runs_of({"name": "hstu", "size": "nano"}, {"sizes": []})
    assert run.recipe.model == runs_of({"name": "hstu"}, {"sizes": ["nano"]})[0].recipe.model
    by_width = runs_of({"name": "hstu", "depth": 1, "width": 24, "heads": 3}, {"sizes": [], "widths": [12, 48], "seeds": 2})
    assert {(one.name, one.recipe.model.shape) for one in by_width} == {
        (f"hstu-w{width}-s{seed}", (1, width, 3)) for width in (12, 48) for seed in (0, 1)
    }


def test_the_smallest_size_has_the_seeds_wherever_it_stands() -> None:
    found = cells(ScaleOptions(sizes=("base", "nano"), seeds=3), "hstu", 0)
    assert [cell.name for cell in found] == ["hstu-base-s0", "hstu-nano-s0", "hstu-nano-s1", "hstu-nano-s2"]


def test_grouped_queries_keep_their_heads_in_every_size() -> None:
    """The dial gives each size heads of its own, which groups that are set by hand would not fit."""
    small, large = runs_of({"name": "llama", "heads": 4, "kv_heads": 2}, {"sizes": ["nano", "tiny"]})
    for run in (small, large):
        assert run.recipe.model.model_dump()["kv_heads"] == 2 and run.recipe.model.shape[2] == 4
    assert small.width < large.width
    assert of_size(small.recipe, "tiny").model == large.recipe.model
