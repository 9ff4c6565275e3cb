"""Mixture of logits: a similarity of state and item that is richer than one dot product, and can still score a whole catalogue.

Zhai et al. 2023 (Revisiting Neural Retrieval on Accelerators, arXiv 2306.04039) and Ding & Zhai 2024 (Retrieval with Learned
Similarities, arXiv 2407.15462): the state gives some components, the item gives some, and the score is the mean of the cosines of
all pairs of them, weighted by gates that see the state, the item and these cosines. Unlike the papers: gates have no dropout, and
no loss holds them level.

Shapes: T rows of states, K items, D width of both, U components of a state, X of an item, P = U X pairs, E width of a component,
G width of the gates' networks. A prepared row [F] is its components one after another, and then its P gates.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from largerec.layers import init_linear
from largerec.options import Options

BLOCK_ELEMENTS, BLOCK_ROWS = 500_000, 64
"""Numbers of a block of pairs, and its states: what is read and written again and again stays near the processor."""


class MoLOptions(Options):
    """``query_components`` x ``item_components`` cosines of vectors of ``width``; ``gate_width``: hidden layers of the gates."""

    query_components: int = Field(4, ge=1, le=64)
    item_components: int = Field(2, ge=1, le=64)
    width: int = Field(32, ge=1)
    gate_width: int = Field(16, ge=1)


class _Gate(nn.Module):
    """A network of one hidden layer: [N, inputs] -> [N, outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.outer = init_linear(nn.Linear(inputs, hidden)), init_linear(nn.Linear(hidden, outputs))

    def forward(self, row_ND: torch.Tensor) -> torch.Tensor:
        out_NP: torch.Tensor = self.outer(F.silu(self.inner(row_ND)))
        return out_NP

    def of_columns(self, x_DN: torch.Tensor) -> torch.Tensor:
        """The same with everything turned: [inputs, N] -> [outputs, N]."""
        hidden_GN = F.silu(torch.addmm(self.inner.bias[:, None], self.inner.weight, x_DN))
        return torch.addmm(self.outer.bias[:, None], self.outer.weight, hidden_GN)


class MixtureOfLogits(nn.Module):
    """``score = sum over p of softmax(SiLU(state gate * item gate + cross gate))_p cosine_p``.

    The state's and the item's gates are networks of one hidden layer; the cross gate is one that reads the pair's P cosines.
    """

    def __init__(self, options: MoLOptions, width: int) -> None:
        super().__init__()
        self.states, self.items, self.width = options.query_components, options.item_components, options.width
        pairs, hidden = self.states * self.items, options.gate_width
        self.state = init_linear(nn.Linear(width, self.states * self.width))
        self.item = init_linear(nn.Linear(width, self.items * self.width))
        self.state_gate, self.item_gate, self.cross_gate = (_Gate(size, hidden, pairs) for size in (width, width, pairs))
        nn.init.ones_(self.state_gate.outer.bias)  # two factors near zero would hardly learn

    def queries(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Prepared rows of states [T, F]."""
        return _prepared(hidden_TD, self.state, self.state_gate, self.width)

    def keys(self, row_KD: torch.Tensor) -> torch.Tensor:
        """Prepared rows of items [K, F], from rows of the item table."""
        return _prepared(row_KD, self.item, self.item_gate, self.width)

    def scores(self, query_TF: torch.Tensor, key_KF: torch.Tensor) -> torch.Tensor:
        """Scores of all items for each state [T, K], in blocks: [P, T, K] is never whole, and made again to go backward."""
        columns = max(1, BLOCK_ELEMENTS // (self.states * self.items * BLOCK_ROWS))
        queries, keys = torch.split(query_TF, BLOCK_ROWS), torch.split(key_KF, columns)
        if torch.is_grad_enabled():
            return torch.cat([torch.cat([self._kept(query, key) for key in keys], dim=1) for query in queries])
        score_TK = query_TF.new_empty(len(query_TF), len(key_KF))
        for query, rows in zip(queries, torch.split(score_TK, BLOCK_ROWS), strict=True):
            for key, block in zip(keys, torch.split(rows, columns, dim=1), strict=True):
                block.copy_(self._block(query, key))
        return score_TK

    def _kept(self, query_CF: torch.Tensor, key_KF: torch.Tensor) -> torch.Tensor:
        block_CK: torch.Tensor = checkpoint(self._block, query_CF, key_KF, use_reentrant=False, preserve_rng_state=False)
        return block_CK

    def _block(self, query_CF: torch.Tensor, key_KF: torch.Tensor) -> torch.Tensor:
        """Pairs come first, so that each pass goes over long rows."""
        query_UCE, state_PC = self._split(query_CF, self.states)
        key_XKE, item_PK = self._split(key_KF, self.items)
        cosine_PN = torch.matmul(query_UCE[:, None], key_XKE[None].transpose(2, 3)).flatten(0, 1).flatten(1)
        gate_PCK = torch.addcmul(
            self.cross_gate.of_columns(cosine_PN).view(-1, len(query_CF), len(key_KF)), state_PC[:, :, None], item_PK[:, None]
        )
        return self._mixed(gate_PCK.flatten(1), cosine_PN).view(len(query_CF), -1)

    def pairs(self, query_TF: torch.Tensor, key_TF: torch.Tensor) -> torch.Tensor:
        """The score of each state with the item of its own row [T]."""
        query_UTE, state_PT = self._split(query_TF, self.states)
        key_XTE, item_PT = self._split(key_TF, self.items)
        cosine_PT = (query_UTE[:, None] * key_XTE[None]).sum(3).flatten(0, 1)
        return self._mixed(torch.addcmul(self.cross_gate.of_columns(cosine_PT), state_PT, item_PT), cosine_PT)

    def _split(self, row_NF: torch.Tensor, components: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Components [components, N, E] and gates [P, N] of prepared rows."""
        size = components * self.width
        return row_NF[:, :size].reshape(-1, components, self.width).transpose(0, 1), row_NF[:, size:].T

    def _mixed(self, gate_PN: torch.Tensor, cosine_PN: torch.Tensor) -> torch.Tensor:
        return (F.silu(gate_PN).softmax(0) * cosine_PN).sum(0)

    def operations(self, pairs: float, items: float) -> float:
        """Of one forward pass for a state that is scored with ``pairs`` items, ``items`` of which are prepared for it."""
        size = {name: sum(p.numel() for p in module.parameters()) for name, module in self.named_children()}
        each = 2 * self.states * self.items * self.width + 2 * size["cross_gate"]
        return 2 * (size["state"] + size["state_gate"]) + 2 * items * (size["item"] + size["item_gate"]) + pairs * each


def _prepared(row_ND: torch.Tensor, components: nn.Module, gate: nn.Module, width: int) -> torch.Tensor:
    unit_NE = F.normalize(components(row_ND).view(len(row_ND), -1, width), dim=-1)
    return torch.cat([unit_NE.flatten(1), gate(row_ND)], dim=1)
