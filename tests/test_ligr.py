"""LiGR's block against its paper: gated residual connections around torch's own attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_models import options_of
from torch import nn
from torch.nn import functional as F

from largerec.models.ligr import Block

OFFSETS_B1 = torch.tensor([0, 6])


@pytest.fixture
def block() -> Block:
    """A block whose weights are all far from zero."""
    torch.manual_seed(0)
    made = Block(options_of("ligr")).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def attention_of(block: Any, read_TD: torch.Tensor) -> torch.Tensor:
    """The block's projections in torch's multi-head attention, under a causal mask."""
    attention = nn.MultiheadAttention(16, block.heads, batch_first=True)
    weights = {"in_proj_weight": block.qkv.weight, "in_proj_bias": block.qkv.bias}
    attention.load_state_dict(weights | {f"out_proj.{name}": weight for name, weight in block.out.state_dict().items()})
    later_TT = torch.ones(len(read_TD), len(read_TD), dtype=torch.bool).triu(1)
    attended: torch.Tensor = attention(read_TD, read_TD, read_TD, attn_mask=later_TT, need_weights=False)[0]
    return attended


def network_of(block: Block, x_TD: torch.Tensor) -> torch.Tensor:
    gate, value = (block.feedforward_norm(x_TD) @ block.feedforward.inner.weight.T).chunk(2, dim=1)
    return (F.silu(gate) * value) @ block.feedforward.outer.weight.T


def test_both_sub_blocks_are_added_through_gates_that_read_the_stream(block: Block) -> None:
    x_TD = torch.randn(6, 16)
    between_TD = x_TD + block.attention_gate(x_TD).sigmoid() * attention_of(block, block.attention_norm(x_TD))
    wanted_TD = between_TD + block.feedforward_gate(between_TD).sigmoid() * network_of(block, between_TD)
    torch.testing.assert_close(block(x_TD, OFFSETS_B1), wanted_TD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_open", [True, False])
def test_open_gates_are_plain_residuals_and_closed_ones_let_nothing_in(block: Block, is_open: bool) -> None:
    x_TD = torch.randn(6, 16)
    with torch.no_grad():
        for gate in (block.attention_gate, block.feedforward_gate):
            gate.weight.zero_()
            gate.bias.fill_(100.0 if is_open else -100.0)
    plain_TD = x_TD + attention_of(block, block.attention_norm(x_TD))
    plain_TD = plain_TD + network_of(block, plain_TD)
    torch.testing.assert_close(block(x_TD, OFFSETS_B1), plain_TD if is_open else x_TD, rtol=1e-4, atol=1e-5)
