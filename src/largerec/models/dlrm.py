"""DLRM: deep learning recommendation model (Naumov et al. 2019, arXiv 1906.00091).

Numbers go through a bottom network to a vector of a field's width; the dot products of all pairs of vectors, and the numbers'
vector again, go through a top network. Numbers are dense here with ``features.numbers = "standard"``; cut into buckets they are
fields like all others, and there is no bottom network.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from largerec.models.ranker import Network, Pairs, Ranker, RankerInputs, RankerOptions


class DLRMOptions(RankerOptions):
    """``bottom``: widths of the hidden layers of the network of numbers; ``depth`` says nothing here and is refused."""

    name: Literal["dlrm"] = "dlrm"
    default_depth: ClassVar[int] = 1
    has_depth: ClassVar[bool] = False
    bottom: tuple[int, ...] = (64,)

    @property
    def inner_widths(self) -> dict[str, tuple[int, ...]]:
        return {"bottom": self.bottom}


class DLRM(Ranker):
    """The states of events in question [N, D]."""

    upper_2P: torch.Tensor
    dense_Z: torch.Tensor
    sparse_M: torch.Tensor

    def __init__(self, options: DLRMOptions, n_items: int, max_length: int, inputs: RankerInputs) -> None:
        super().__init__(options, n_items, max_length, inputs)
        numbers = () if inputs.layout is None else inputs.layout.field_Z
        dense = [1 + field for field in numbers]  # the item stands before them
        sparse = [field for field in range(self.n_fields) if field not in dense]
        self.bottom = Network(len(dense) * self.width, (*options.bottom, self.width), 0.0) if dense else None
        vectors = len(sparse) + (1 if dense else 0)
        self.register_buffer("dense_Z", torch.tensor(dense, dtype=torch.long), persistent=False)
        self.register_buffer("sparse_M", torch.tensor(sparse, dtype=torch.long), persistent=False)
        self.register_buffer("upper_2P", torch.triu_indices(vectors, vectors, 1), persistent=False)
        self.further_operations = 2 * vectors**2 * self.width  # all products, of which half are used
        inner = self.upper_2P.shape[1] + (self.width if dense else 0)
        self.top = Network(inner, options.hidden, options.dropout)
        self.state_width = options.hidden[-1]

    def states(self, field_NME: torch.Tensor, history: tuple[Pairs, torch.Tensor]) -> torch.Tensor:
        vector_NME, kept = field_NME.index_select(1, self.sparse_M), []
        if self.bottom is not None:
            dense_NE = self.bottom(field_NME.index_select(1, self.dense_Z).flatten(1))
            vector_NME, kept = torch.cat([dense_NE[:, None], vector_NME], dim=1), [dense_NE]
        product_NMM = vector_NME @ vector_NME.transpose(1, 2)
        product_NP = product_NMM[:, self.upper_2P[0], self.upper_2P[1]]
        state_ND: torch.Tensor = self.top(torch.cat([*kept, product_NP], dim=1))
        return state_ND
