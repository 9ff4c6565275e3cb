"""DIN: deep interest network (Zhou et al. 2018, arXiv 1706.06978).

An activation unit weighs each event of the history by the item in question; the weighted sum, which is not normalised, keeps how
much interest there is (section 4.3). It stands beside the item and the features in a network over all of them. The unit reads
both vectors, their difference and their product, as the authors' public code does. Unlike there: PReLU instead of Dice, whose
batch statistics would make one user's answer depend on others; an event's vector carries what was done.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

import torch
from torch import nn

from largerec.models.ranker import Network, Pairs, Ranker, RankerInputs, RankerOptions, linear


class DINOptions(RankerOptions):
    """``attention``: widths of the hidden layers of the activation unit; ``depth`` says nothing here and is refused."""

    name: Literal["din"] = "din"
    default_depth: ClassVar[int] = 1
    has_depth: ClassVar[bool] = False
    attention: tuple[int, ...] = (32, 16)

    @property
    def inner_widths(self) -> dict[str, tuple[int, ...]]:
        return {"attention": self.attention}

    def context_operations(self, mean_context: float) -> float:
        """The activation unit on each pair: half of the tokens are asked about, and half of what is earlier are events."""
        _, width, _ = self.shape
        widths = (4 * width, *self.attention, 1)
        return mean_context / 4 * sum(2 * one * other for one, other in itertools.pairwise(widths))


class ActivationUnit(nn.Module):
    """The weight of each pair [P], from the vectors of its event and of the item in question."""

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = (4 * width, *hidden)
        self.maps = nn.ModuleList(linear(one, other) for one, other in itertools.pairwise(widths))
        self.slopes = nn.ModuleList(nn.PReLU(other) for other in hidden)
        self.out = linear(widths[-1], 1)

    def forward(self, event_PE: torch.Tensor, item_PE: torch.Tensor) -> torch.Tensor:
        x_PK = torch.cat([event_PE, item_PE, event_PE - item_PE, event_PE * item_PE], dim=1)
        for layer, slope in zip(self.maps, self.slopes, strict=True):
            x_PK = slope(layer(x_PK))
        weight_P: torch.Tensor = self.out(x_PK)[:, 0]
        return weight_P


class DIN(Ranker):
    """The states of events in question [N, D]."""

    pooled = False

    def __init__(self, options: DINOptions, n_items: int, max_length: int, inputs: RankerInputs) -> None:
        super().__init__(options, n_items, max_length, inputs)
        self.unit = ActivationUnit(self.width, options.attention)
        self.top = Network((self.n_fields + 1) * self.width, options.hidden, options.dropout)
        self.state_width = options.hidden[-1]
        maps = (*self.unit.maps, self.unit.out)
        self.further_operations = -2 * sum(one.weight.numel() for one in maps)  # it runs on pairs: context_operations has it

    def states(self, field_NME: torch.Tensor, history: tuple[Pairs, torch.Tensor]) -> torch.Tensor:
        pairs, x_TE = history
        item_NE, event_PE = field_NME[:, 0], x_TE[pairs.token_P]
        weight_P = self.unit(event_PE, item_NE[pairs.asked_P])
        interest_NE = torch.zeros_like(item_NE).index_add(0, pairs.asked_P, event_PE * weight_P[:, None])
        state_ND: torch.Tensor = self.top(torch.cat([field_NME.flatten(1), interest_NE], dim=1))
        return state_ND
