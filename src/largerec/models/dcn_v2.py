"""DCN-v2: deep and cross network (Wang et al. 2021, arXiv 2008.13535).

A cross layer multiplies the fields with a linear map of what it was given, x' = x0 * (W x + b) + x (eq. 1), so that ``depth``
layers hold all products of up to depth + 1 fields. A low ``rank`` makes W a product of two (section 3.2). A deep network stands
behind the cross layers or beside them (figure 1).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from largerec.models.ranker import Network, Pairs, Ranker, RankerInputs, RankerOptions, linear


class DCNv2Options(RankerOptions):
    """``structure``: the deep network reads what the cross layers give, or stands beside them. ``rank``: of the cross layers'
    matrices; not set: full."""

    name: Literal["dcn-v2"] = "dcn-v2"
    structure: Literal["stacked", "parallel"] = "stacked"
    rank: int | None = Field(None, ge=1)


class CrossLayer(nn.Module):
    """Eq. 1 of the paper, of [N, K]."""

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.inner = None if rank is None else linear(width, rank, bias=False)
        self.outer = linear(width if rank is None else rank, width)

    def forward(self, first_NK: torch.Tensor, x_NK: torch.Tensor) -> torch.Tensor:
        mapped_NK: torch.Tensor = self.outer(x_NK if self.inner is None else self.inner(x_NK))
        return first_NK * mapped_NK + x_NK


class DCNv2(Ranker):
    """The states of events in question [N, D]."""

    def __init__(self, options: DCNv2Options, n_items: int, max_length: int, inputs: RankerInputs) -> None:
        super().__init__(options, n_items, max_length, inputs)
        depth, width = options.shape[0], self.n_fields * self.width
        self.cross = nn.ModuleList(CrossLayer(width, options.rank) for _ in range(depth))
        self.deep = Network(width, options.hidden, options.dropout)
        self.parallel = options.structure == "parallel"
        self.state_width = options.hidden[-1] + (width if self.parallel else 0)

    def states(self, field_NME: torch.Tensor, history: tuple[Pairs, torch.Tensor]) -> torch.Tensor:
        first_NK = x_NK = field_NME.flatten(1)
        for layer in self.cross:
            x_NK = layer(first_NK, x_NK)
        if self.parallel:
            return torch.cat([x_NK, self.deep(first_NK)], dim=1)
        state_ND: torch.Tensor = self.deep(x_NK)
        return state_ND
