"""Learning rates step by step, groups of weight decay, and the derived learning rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largerec.models import RETRIEVING as FAMILIES
from largerec.models import build_model
from largerec.optim import OptimOptions, RowOptimizer, build_optimizer, derived_learning_rate, learning_rate_at


def rates(options: OptimOptions, total: int, steps: int) -> list[float]:
    return [learning_rate_at(step, total, options, 1.0) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25, 0, 0, 0]),
        ("cosine", [1, 0.8535534, 0.5, 0.1464466, 0, 0, 0]),
    ],
)
def test_warm_up_then_the_schedule(schedule: str, after: list[float]) -> None:
    options = OptimOptions.model_validate({"warmup_steps": 4, "schedule": schedule})
    assert rates(options, total=8, steps=11) == pytest.approx([0.25, 0.5, 0.75, 1.0, *after])


def test_without_a_warm_up() -> None:
    assert rates(OptimOptions(warmup_steps=0, schedule="linear"), 4, 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(OptimOptions(warmup_steps=0), 4, 2) == [1, 1]


def test_a_run_that_ends_in_the_warm_up_only_rises() -> None:
    assert rates(OptimOptions(warmup_steps=10, schedule="cosine"), 3, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_peak_scales_all() -> None:
    options = OptimOptions(warmup_steps=2, schedule="linear")
    assert learning_rate_at(0, 10, options, 0.006) == pytest.approx(0.003)
    assert learning_rate_at(6, 10, options, 0.006) == pytest.approx(0.003)


@pytest.mark.parametrize(("width", "rate"), [(64, 0.002), (16, 0.004), (256, 0.001), (100, 0.0016)])
def test_the_derived_learning_rate_falls_with_the_root_of_the_width(width: int, rate: float) -> None:
    assert derived_learning_rate(width) == pytest.approx(rate)


@pytest.mark.parametrize("family", FAMILIES)
def test_decay_falls_on_matrices_and_tables_alone(family: str) -> None:
    model = build_model(FAMILIES[family][0].model_validate({"size": "nano"}), 10, 8)
    optimizer = build_optimizer(model, OptimOptions(weight_decay=0.5, betas=(0.8, 0.7)))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.5 and plain["weight_decay"] == 0.0
    assert {parameter.dim() for parameter in plain["params"]} == {1}
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert decayed["betas"] == plain["betas"] == (0.8, 0.7)


def test_weights_shrink_and_biases_do_not() -> None:
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    optimizer = build_optimizer(model, OptimOptions(weight_decay=0.1))
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 3), 0.95))
    torch.testing.assert_close(model.bias.detach(), torch.ones(2))


def test_a_model_of_one_kind_of_parameters() -> None:
    assert len(build_optimizer(nn.LayerNorm(4), OptimOptions()).param_groups) == 1
    assert len(build_optimizer(nn.Linear(4, 4, bias=False), OptimOptions()).param_groups) == 1


# --- a table by rows


def table_of(rows: int, width: int, **options: object) -> tuple[nn.Parameter, RowOptimizer]:
    table = nn.Parameter(torch.randn(rows, width, generator=torch.Generator().manual_seed(5)))
    return table, RowOptimizer(table, OptimOptions.model_validate(options))


def test_when_all_rows_are_used_lazy_adam_is_adamw() -> None:
    table, by_rows = table_of(6, 4, table="lazy-adam", weight_decay=0.1, betas=(0.8, 0.95))
    plain = nn.Parameter(table.detach().clone())
    adamw = torch.optim.AdamW([plain], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        plain.grad = torch.randn(6, 4, generator=generator)
        by_rows.step(torch.arange(6), plain.grad, 0.01, step)
        adamw.step()
    torch.testing.assert_close(table, plain)


@pytest.mark.parametrize("kind", ["lazy-adam", "rowwise-adagrad"])
def test_rows_follow_the_rule_and_rows_that_are_never_used_stay(kind: str) -> None:
    table, by_rows = table_of(30, 3, table=kind, weight_decay=0.2 if kind == "lazy-adam" else 0.0)
    before, truth = table.detach().clone(), table.detach().double()
    moment, square, total = torch.zeros(30, 3).double(), torch.zeros(30, 3).double(), torch.zeros(30).double()
    generator = torch.Generator().manual_seed(2)
    used: set[int] = set()
    for step in range(10):
        rows = torch.randperm(20, generator=generator)[:6].sort()[0]
        gradient = torch.randn(6, 3, generator=generator)
        by_rows.step(rows, gradient, 0.05, step)
        used |= set(rows.tolist())
        for row, g in zip(rows.tolist(), gradient.double(), strict=True):
            if kind == "lazy-adam":
                moment[row] = 0.9 * moment[row] + 0.1 * g
                square[row] = 0.98 * square[row] + 0.02 * g * g
                root = (square[row] / (1 - 0.98 ** (step + 1))).sqrt() + 1e-8
                truth[row] = truth[row] * (1 - 0.05 * 0.2) - 0.05 * moment[row] / (1 - 0.9 ** (step + 1)) / root
            else:
                total[row] += (g * g).mean()
                truth[row] -= 0.05 * g / (total[row].sqrt() + 1e-8)
    torch.testing.assert_close(table.double(), truth, rtol=1e-5, atol=1e-6)
    unused = [row for row in range(30) if row not in used]
    assert len(unused) >= 10 and torch.equal(table[unused], before[unused])
    assert all(not state[unused].any() for state in by_rows.state.values())


def test_rows_of_gives_distinct_items_and_places() -> None:
    _, by_rows = table_of(50, 2, table="lazy-adam")
    for seed in range(3):  # what one call marks does not reach the next
        generator = torch.Generator().manual_seed(seed)
        items = [torch.randint(50, (7,), generator=generator), torch.randint(50, (3, 4), generator=generator)]
        rows, places = by_rows.rows_of(*items)
        assert torch.equal(rows, torch.cat([each.flatten() for each in items]).unique())
        assert all(torch.equal(rows[place], each) for place, each in zip(places, items, strict=True))


def test_what_others_update_is_left_out() -> None:
    model = build_model(FAMILIES["sasrec"][0].model_validate({"size": "nano"}), 10, 8)
    table = model.input.item.weight
    optimizer = build_optimizer(model, OptimOptions(), frozenset([table]))
    grouped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters()} - {id(table)}
