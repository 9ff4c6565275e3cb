"""The FuXi families against what their papers say, written plainly: padded pairs for alpha and beta, a recurrence for linear."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_models import LENGTHS, MAX_LENGTH, hidden, model_of, options_of, random_batch
from torch.nn import functional as F

from largerec.accounting import block_operations, training_flops_per_token
from largerec.batches import Batch
from largerec.kernels.reference import time_bucket
from largerec.models import Backbone, build_model
from largerec.models.fuxi_linear import PERIODS_S
from largerec.objectives import SampledSoftmaxOptions
from largerec.recipe import recipe_from

FAMILIES = ("fuxi-alpha", "fuxi-beta", "fuxi-linear")
SETTINGS: list[dict[str, Any]] = [{}, {"query_time": True}, {"time_channel": False}, {"feedforward": 3}]
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings) or "default")
one_user = pytest.mark.parametrize("unknown", [False, True], ids=["timed", "some unknown"])


def times_of(batch: Batch, query_time: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column times."""
    assert batch.query_time_T is not None
    return batch.query_time_T if query_time else batch.time_T, batch.time_T


def single(unknown: bool) -> Batch:
    """One history, whose first two events have no time when ``unknown``."""
    batch = random_batch([MAX_LENGTH])
    return replace(batch, time_T=batch.time_T.index_fill(0, torch.arange(2 if unknown else 0), -1))


def root_mean_square(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def multi_stage(block: Any, found: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    stage = block.feedforward
    fused = found @ stage.fuse.weight.T + stage.fuse.bias + x
    gate, up = (root_mean_square(fused, 1e-6) @ stage.gate_and_up.weight.T).chunk(2, dim=1)
    out: torch.Tensor = (gate * torch.sigmoid(gate) * up) @ stage.down.weight.T + fused
    return out


def by_heads(weight_HNN: torch.Tensor, v_TD: torch.Tensor) -> torch.Tensor:
    heads = len(weight_HNN)
    return torch.einsum("hij,jhk->ihk", weight_HNN.tril(), v_TD.unflatten(1, (heads, -1))).flatten(1)


def distances(table_HN: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(MAX_LENGTH)
    return table_HN[:, (steps[:, None] - steps).clamp_min(0)]


def plain_alpha(model: Any, batch: Batch, query_time: bool) -> torch.Tensor:
    row, column = times_of(batch, query_time)
    unknown = (row < 0)[:, None] | (column < 0)
    bucket = time_bucket(row[:, None] - column).masked_fill(unknown, 31)
    x = model.input(batch)
    for block in model.blocks:
        projected = F.silu(root_mean_square(x, 1e-6) @ block.uvqk.weight.T)
        width = x.shape[1]
        v, q, k = projected[:, -3 * width :].chunk(3, dim=1)
        q, k = (y.unflatten(1, (2, -1)).transpose(0, 1) for y in (q, k))
        channels = [by_heads(distances(block.position_table_HN), v), by_heads(F.silu(q @ k.transpose(1, 2)) / MAX_LENGTH, v)]
        if block.time_table_HK is not None:
            channels.append(by_heads(block.time_table_HK[:, bucket], v))
        x = multi_stage(block, projected[:, : -3 * width] * root_mean_square(torch.cat(channels, dim=1), 1e-12), x)
    return x


def plain_beta(model: Any, batch: Batch, query_time: bool) -> torch.Tensor:
    row, column = times_of(batch, query_time)
    known = (row >= 0)[:, None] & (column >= 0)
    seconds = (row[:, None] - column).clamp_min(0).double() / 1000
    x = model.input(batch)
    for block in model.blocks:
        projected = F.silu(root_mean_square(x, 1e-6) @ block.uv.weight.T)
        width = x.shape[1]
        v = projected[:, -width:]
        channels = [by_heads(distances(block.position_table_HN), v)]
        if block.time_table_HP is not None:
            a, b = block.time_table_HP.double().T[:, :, None, None]
            channels.append(by_heads((a * (1 + seconds) ** -b * known).float(), v))
        x = multi_stage(block, projected[:, :-width] * root_mean_square(torch.cat(channels, dim=1), 1e-12), x)
    return x


class Recurrent:
    """One block of FuXi-Linear as a machine with a state, which takes one event after another."""

    def __init__(self, block: Any) -> None:
        self.block, self.place = block, 0
        self.state: dict[str, torch.Tensor] = {}
        self.last: int | None = None

    def carried(self, name: str, kept: torch.Tensor | float, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The state [G, K, V] after an event: what is kept of it, plus the event's keys times values."""
        before = self.state.get(name, torch.zeros(len(v), k.shape[1], v.shape[1], dtype=torch.float64))
        self.state[name] = before * kept + k.double()[:, :, None] * v.double()[:, None, :]
        return self.state[name]

    def retention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rate = torch.exp(-F.softplus(self.block.retention.decay_table_H).cumsum(0))
        state = self.carried("retention", torch.exp(-rate).double()[:, None, None], k, v)
        return torch.einsum("hk,hkv->hv", q.double(), state).flatten()

    def positional(self, x: torch.Tensor) -> torch.Tensor:
        channel = self.block.positional
        v = channel.value.weight @ x
        kernel = channel.position_table_NK[self.place][None]
        state = self.carried("positional", 1.0, kernel / 8, v[None])
        return channel.share_table_P * (kernel.double() @ state[0])[0] + channel.own_table_P * v

    def temporal(self, x: torch.Tensor, row: int, column: int) -> torch.Tensor:
        """Angles and decays from the calendar itself: nothing is measured from the history's start."""
        channel, periods = self.block.temporal, torch.tensor(PERIODS_S, dtype=torch.float64)
        gamma = torch.sigmoid(channel.decay_table_F.double())
        decay = lambda ms: gamma ** (2 * math.pi * max(ms, 0) / 1000 / periods)  # noqa: E731
        v = channel.value.weight @ x
        grouped = torch.zeros(16, -(-len(v) // 16))
        for place, value in enumerate(v):
            grouped[place % 16, place // 16] = value
        angle, asked = (2 * math.pi * ((time / 1000) % periods) / periods for time in (column, row))
        k = torch.stack([angle.cos(), angle.sin()], 1).repeat_interleave(2, 0) * (column >= 0)
        kept = decay(column - self.last) if self.last is not None and column >= 0 else torch.ones(8)
        state = self.carried("temporal", kept.repeat_interleave(2)[:, None, None], k, grouped)
        self.last = column if column >= 0 else self.last
        pairs = [(asked.sin(), -asked.cos()), (asked.cos(), asked.sin())]
        q = torch.stack([torch.stack(pair, 1) for pair in pairs], 1).flatten(0, 1) * (row >= 0)
        gap = row - self.last if self.last is not None and row >= 0 else 0
        read = torch.einsum("gk,gkv->gv", q * decay(gap).repeat_interleave(2)[:, None], state)
        mixed = channel.share_table_G[:, None] * read + channel.own_table_G[:, None] * grouped
        return mixed.T.flatten()[: len(v)]

    def step(self, x: torch.Tensor, row: int, column: int) -> torch.Tensor:
        norm = lambda y: F.layer_norm(y, y.shape, eps=1e-12)  # noqa: E731
        width = len(x)
        projected = F.silu(self.block.uvqk.weight @ norm(x))
        v, q, k = (y.view(2, -1) for y in projected[-3 * width :].chunk(3))
        channels = [self.retention(q, k, v), self.positional(norm(x))]
        if self.block.temporal is not None:
            channels.append(self.temporal(norm(x), row, column))
        found = projected[: -3 * width] * torch.cat([norm(channel.float()) for channel in channels])
        self.place += 1
        return multi_stage(self.block, found[None], x[None])[0]


def plain_linear(model: Any, batch: Batch, query_time: bool) -> torch.Tensor:
    rows, columns = (times.tolist() for times in times_of(batch, query_time))
    machines, out = [Recurrent(block) for block in model.blocks], []
    for place, x in enumerate(model.input(batch)):
        for machine in machines:
            x = machine.step(x, rows[place], columns[place])
        out.append(x)
    return torch.stack(out)


@one_user
@each_setting
@pytest.mark.parametrize(
    ("family", "plain"), [("fuxi-alpha", plain_alpha), ("fuxi-beta", plain_beta), ("fuxi-linear", plain_linear)]
)
def test_the_model_is_its_formula(family: str, plain: Any, settings: dict[str, Any], unknown: bool) -> None:
    model: Any = model_of(family, **settings)
    batch = single(unknown)
    with torch.no_grad():
        wanted = model.norm(plain(model, batch, settings.get("query_time", False)))
    torch.testing.assert_close(hidden(model, batch), wanted, rtol=1e-4, atol=1e-4)


def test_the_recurrent_state_of_linear_has_a_fixed_size() -> None:
    model: Any = model_of("fuxi-linear")
    batch, sizes = single(False), []
    machine = Recurrent(model.blocks[0])
    with torch.no_grad():
        for place, x in enumerate(model.input(batch)):
            machine.step(x, int(batch.time_T[place]), int(batch.time_T[place]))
            sizes.append(sum(state.numel() for state in machine.state.values()))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clock_that_stands_or_is_unknown_gives_finite_states_and_gradients(family: str) -> None:
    model = build_model(options_of(family, query_time=True), 11, MAX_LENGTH)
    for time in (-1, 0, 1_700_000_000_000):
        same = torch.full((sum(LENGTHS),), time)
        out = model(replace(random_batch(LENGTHS), time_T=same, query_time_T=same))
        out.square().sum().backward()
        assert out.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- what a token costs


def forward_flops(family: str, context: float, **settings: Any) -> float:
    """Forward operations of the blocks' mixing of tokens, out of the whole that is accounted for."""
    model = {"name": family, "depth": 2, "width": 16, "heads": 2, **settings}
    recipe = recipe_from({"model": model, "objective": {"name": "sampled-softmax", "negatives": 3}})
    assert isinstance(recipe.objective, SampledSoftmaxOptions)
    backbone: Backbone = build_model(recipe.model, 100, 50)
    whole = training_flops_per_token(recipe, backbone, 100, context) / 3
    return whole - block_operations(backbone) - 2 * 16 * 4


@pytest.mark.parametrize(
    ("family", "settings", "products"),
    [
        ("sasrec", {}, 2),
        ("hstu", {}, 2),
        ("fuxi-alpha", {}, 4),
        ("fuxi-alpha", {"time_channel": False}, 3),
        ("fuxi-beta", {}, 2),
        ("fuxi-beta", {"time_channel": False}, 1),
    ],
)
def test_pairs_of_tokens_cost_a_product_for_each_weight_and_each_channel(
    family: str, settings: dict[str, Any], products: int
) -> None:
    for context in (10.0, 100.0):
        assert forward_flops(family, context, **settings) == pytest.approx(2 * products * 2 * 16 * context)


def test_linear_costs_the_same_at_any_length() -> None:
    """Two blocks; a state of 8 (its head's width), 16 and 2 numbers for each of 16, and pairs within chunks of 16 tokens."""
    whole, without_time = 4 * 16 * (8 + 16 + 2) + 2 * 16 * (4 * 16 + 16 + 32), 4 * 16 * (8 + 16) + 2 * 16 * (3 * 16 + 16)
    assert forward_flops("fuxi-linear", 16.0) == forward_flops("fuxi-linear", 1000.0) == 2 * whole
    assert forward_flops("fuxi-linear", 1000.0, time_channel=False) == 2 * without_time
