"""Wukong (Zhang et al. 2024, arXiv 2403.02545): layers of factorisation machines whose orders of interaction double.

A layer gives ``machine`` vectors by a factorisation machine block and ``compressed`` ones by a linear map over the vectors that
it was given (section 3.3); both together, added to its input (mapped to as many vectors), are normalised. The block multiplies
its vectors X with a projection of them, X (X^T Y), which costs no square of the number of vectors (section 3.4), and puts a
network behind it. Y is learned as it is; the paper's attentive one, made by a network of X, is left out.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from largerec.models.ranker import Network, Pairs, Ranker, RankerInputs, RankerOptions, linear


class WukongOptions(RankerOptions):
    """``machine``, ``compressed``: vectors of a layer, from the factorisation machine and from the linear map. ``rank``: columns
    of the projection Y; ``middle``: width of the network behind the products."""

    name: Literal["wukong"] = "wukong"
    machine: int = Field(8, ge=1)
    compressed: int = Field(8, ge=1)
    rank: int = Field(8, ge=1)
    middle: int = Field(128, ge=1)


class WukongLayer(nn.Module):
    """[N, M, E] -> [N, machine + compressed, E]."""

    def __init__(self, options: WukongOptions, n_vectors: int, width: int) -> None:
        super().__init__()
        made = options.machine + options.compressed
        self.machine, self.width = options.machine, width
        self.projection = linear(n_vectors, options.rank, bias=False)
        self.norm = nn.LayerNorm(n_vectors * options.rank)
        self.network = Network(n_vectors * options.rank, (options.middle,), options.dropout)
        self.out = linear(options.middle, options.machine * width)
        self.compress = linear(n_vectors, options.compressed, bias=False)
        self.residual = None if n_vectors == made else linear(n_vectors, made, bias=False)
        self.last_norm = nn.LayerNorm(width)
        over_vectors = sum(p.weight.numel() for p in (self.projection, self.compress, self.residual) if p is not None)
        # The maps over vectors run for each of the width's numbers, and then there are the products.
        self.further_operations = 2 * over_vectors * (width - 1) + 2 * n_vectors * width * options.rank

    def forward(self, x_NME: torch.Tensor) -> torch.Tensor:
        x_NEM = x_NME.transpose(1, 2)
        product_NMR = x_NME @ self.projection(x_NEM)
        machine_NKE = self.out(self.network(self.norm(product_NMR.flatten(1)))).view(len(x_NME), self.machine, self.width)
        compressed_NLE = self.compress(x_NEM).transpose(1, 2)
        kept_NME = x_NME if self.residual is None else self.residual(x_NEM).transpose(1, 2)
        out_NME: torch.Tensor = self.last_norm(torch.cat([machine_NKE, compressed_NLE], dim=1) + kept_NME)
        return out_NME


class Wukong(Ranker):
    """The states of events in question [N, D]."""

    def __init__(self, options: WukongOptions, n_items: int, max_length: int, inputs: RankerInputs) -> None:
        super().__init__(options, n_items, max_length, inputs)
        made = options.machine + options.compressed
        vectors = (self.n_fields, *[made] * (options.shape[0] - 1))
        layers = [WukongLayer(options, n_vectors, self.width) for n_vectors in vectors]
        self.layers = nn.ModuleList(layers)
        self.top = Network(made * self.width, options.hidden, options.dropout)
        self.state_width = options.hidden[-1]
        self.further_operations = sum(layer.further_operations for layer in layers)

    def states(self, field_NME: torch.Tensor, history: tuple[Pairs, torch.Tensor]) -> torch.Tensor:
        for layer in self.layers:
            field_NME = layer(field_NME)
        state_ND: torch.Tensor = self.top(field_NME.flatten(1))
        return state_ND
