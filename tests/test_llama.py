"""The Llama-style decoder against its papers: rotary positions, grouped queries, the block's formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_models import LENGTHS, MAX_LENGTH, N_ITEMS, hidden, model_of, random_batch
from torch.nn import functional as F

from largerec.batches import Batch
from largerec.errors import LargeRecError
from largerec.models import Llama, LlamaOptions
from largerec.models.llama import ROTARY_BASE, rotary_angles, turned


def turned_at(x_THK: torch.Tensor, position_T: torch.Tensor) -> torch.Tensor:
    angle_T1P = rotary_angles(position_T, x_THK.shape[-1])
    return turned(x_THK, angle_T1P.cos(), angle_T1P.sin())


@pytest.mark.parametrize("width", [2, 5, 16])
def test_scores_depend_on_distances_alone(width: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(6, 2, width), torch.randn(6, 2, width)
    here, there = torch.tensor([0, 3, 9, 20, 1, 7]), torch.tensor([0, 1, 4, 20, 0, 0])
    score = (turned_at(q, here) * turned_at(k, there)).sum(-1)
    shifted = (turned_at(q, here + 30) * turned_at(k, there + 30)).sum(-1)
    torch.testing.assert_close(score, shifted, rtol=1e-4, atol=1e-5)
    farther = (turned_at(q, here + 1) * turned_at(k, there)).sum(-1)
    assert ((score - farther).abs() > 1e-3).all()


@pytest.mark.parametrize("width", [6, 7])
def test_pairs_turn_as_complex_numbers_do(width: int) -> None:
    torch.manual_seed(0)
    x_THK, position_T, pairs = torch.randn(5, 2, width), torch.tensor([0, 1, 2, 0, 40]), width // 2
    frequency_P = torch.tensor([ROTARY_BASE ** (-2 * pair / (2 * pairs)) for pair in range(pairs)])
    turn_T1P = torch.polar(torch.ones(5, 1, pairs), (position_T[:, None] * frequency_P)[:, None])
    wanted = torch.complex(x_THK[..., :pairs], x_THK[..., pairs : 2 * pairs]) * turn_T1P
    found = turned_at(x_THK, position_T)
    torch.testing.assert_close(found[..., : 2 * pairs], torch.cat([wanted.real, wanted.imag], dim=-1))
    assert torch.equal(found[..., 2 * pairs :], x_THK[..., 2 * pairs :])


def test_where_a_history_begins_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The input has no table of positions, so that only distances count in the whole model."""
    model, batch = model_of("llama"), random_batch(LENGTHS)
    usual, position_T = hidden(model, batch), batch.position_T
    assert [name for name, _ in model.input.named_parameters()] == ["item.weight"]
    monkeypatch.setattr(Batch, "position_T", position_T + 100)
    torch.testing.assert_close(hidden(model, batch), usual, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(Batch, "position_T", 2 * position_T)
    assert (hidden(model, batch) - usual).abs().max() > 0.1


# --- grouped queries


def grouped(kv_heads: int | None) -> Llama:
    torch.manual_seed(0)
    model = Llama(LlamaOptions(depth=2, width=16, heads=4, kv_heads=kv_heads, dropout=0), N_ITEMS, MAX_LENGTH).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_as_many_kv_heads_as_heads_is_plain_attention() -> None:
    batch = random_batch(LENGTHS)
    assert torch.equal(hidden(grouped(4), batch), hidden(grouped(None), batch))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_are_plain_attention_with_repeated_keys_and_values(kv_heads: int) -> None:
    few, many = grouped(kv_heads), grouped(4)
    weights = few.state_dict()
    for name, weight in weights.items():
        if name.endswith("qkv.weight"):
            q, k, v = weight.unflatten(0, (-1, 4)).split((4, kv_heads, kv_heads))  # heads are 4 numbers wide
            whose = [head // (4 // kv_heads) for head in range(4)]
            weights[name] = torch.cat([q, k[whose], v[whose]]).flatten(0, 1)
    many.load_state_dict(weights)
    torch.testing.assert_close(hidden(few, random_batch(LENGTHS)), hidden(many, random_batch(LENGTHS)))


def test_grouped_queries_save_parameters_and_the_dial_knows() -> None:
    plain, shared = LlamaOptions(size="base", heads=4), LlamaOptions(size="base", heads=4, kv_heads=1)
    assert shared.block_parameters(64) == plain.block_parameters(64) - 2 * 64 * 48
    assert shared.shape[1] > plain.shape[1]
    blocks = grouped(2).blocks
    options = LlamaOptions(depth=2, width=16, heads=4, kv_heads=2)
    assert sum(p.numel() for p in blocks.parameters()) == 2 * options.block_parameters(16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_heads": 2}, r"model\.kv_heads=2 .* model\.heads, which is not set; set model\.heads to a multiple of 2"),
        ({"kv_heads": 2, "heads": 3, "width": 12}, r"model\.kv_heads=2 .* which is 3; set"),
        ({"kv_heads": 4, "heads": 2}, r"model\.kv_heads=4 .* which is 2; set"),
        ({"heads": 8, "width": 8}, r"model\.heads=8 leaves one number a head.*half of model\.width=8"),
    ],
)
def test_heads_that_do_not_fit_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        LlamaOptions.model_validate(settings)


# --- the block


def test_a_block_is_the_papers_formulas() -> None:
    """Token by token and head by head, without kernels."""
    block = grouped(2).blocks[0]
    weights = dict(block.named_parameters())
    x_TD, offsets = torch.randn(9, 16), [0, 4, 9]

    def normalised(x_D: torch.Tensor, name: str) -> torch.Tensor:
        return x_D / (x_D.square().mean() + 1e-6).sqrt() * weights[f"{name}.weight"]

    wanted = []
    for begin, end in itertools.pairwise(offsets):
        projected = [weights["qkv.weight"] @ normalised(x_TD[row], "attention_norm") for row in range(begin, end)]
        q, k, v = torch.stack(projected).view(end - begin, 8, 4).split((4, 2, 2), dim=1)
        q, k = turned_at(q, torch.arange(end - begin)), turned_at(k, torch.arange(end - begin))
        for row in range(end - begin):
            heads = []
            for head in range(4):
                score = torch.stack([q[row, head] @ k[past, head // 2] / 4**0.5 for past in range(row + 1)]).softmax(0)
                heads.append(sum(score[past] * v[past, head // 2] for past in range(row + 1)))
            x_D = x_TD[begin + row] + weights["out.weight"] @ torch.cat(heads)  # type: ignore[arg-type]
            gate, value = (weights["feedforward.inner.weight"] @ normalised(x_D, "feedforward_norm")).chunk(2)
            wanted.append(x_D + weights["feedforward.outer.weight"] @ (F.silu(gate) * value))
    angle_T1P = rotary_angles(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4]), 4)
    found = block(x_TD, torch.tensor(offsets), angle_T1P.cos(), angle_T1P.sin())
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-4)
