"""BSARec's filter against a Fourier transform of each padded prefix, and its block against the paper's formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_ligr import attention_of
from test_models import options_of
from torch.nn import functional as F

from largerec.batches import Batch
from largerec.models.bsarec import Block, low_pass


def by_transform(x_TD: torch.Tensor, lengths: list[int], window: int, frequencies: int) -> torch.Tensor:
    """As the paper has it: of each prefix, padded in front to the window, the last row of what the low frequencies make."""
    rows = []
    for history_ND in x_TD.split(lengths):
        for end in range(1, len(history_ND) + 1):
            padded_WD = F.pad(history_ND[:end], (0, 0, window - end, 0))
            wave_FD = torch.fft.rfft(padded_WD.double(), dim=0)
            wave_FD[frequencies:] = 0
            rows.append(torch.fft.irfft(wave_FD, n=window, dim=0)[-1])
    return torch.stack(rows).float() if rows else x_TD


@given(
    lengths=st.lists(st.integers(0, 8), max_size=6),
    window=st.integers(8, 13),
    frequencies=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_running_sums_are_the_transform_of_each_prefix(lengths: list[int], window: int, frequencies: int, seed: int) -> None:
    x_TD = torch.randn(sum(lengths), 4, generator=torch.Generator().manual_seed(seed))
    offsets_B1 = torch.tensor([0, *lengths]).cumsum(0)
    position_T = Batch(item_T=x_TD[:, 0], time_T=x_TD[:, 0], offsets_B1=offsets_B1).position_T
    found_TD = low_pass(x_TD, offsets_B1, position_T, window, frequencies)
    torch.testing.assert_close(found_TD, by_transform(x_TD, lengths, window, frequencies), rtol=1e-5, atol=1e-5)


@pytest.fixture
def block() -> Block:
    """A block whose weights are all far from zero, for windows of eight."""
    torch.manual_seed(0)
    made = Block(options_of("bsarec", alpha=0.6), 8).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def test_a_block_is_the_papers_mix_of_filter_and_attention(block: Block) -> None:
    x_TD, offsets_B1 = torch.randn(6, 16), torch.tensor([0, 6])
    low_TD = by_transform(x_TD, [6], 8, block.frequencies)
    filtered_TD = block.filter_norm(x_TD + low_TD + block.root_beta**2 * (x_TD - low_TD))
    mixed_TD = 0.6 * filtered_TD + 0.4 * block.attention_norm(x_TD + attention_of(block, x_TD))
    wanted_TD = block.feedforward_norm(mixed_TD + block.outer(F.gelu(block.inner(mixed_TD))))
    torch.testing.assert_close(block(x_TD, offsets_B1, torch.arange(6)), wanted_TD, rtol=1e-4, atol=1e-5)
