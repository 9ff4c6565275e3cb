"""GRU4Rec: gated recurrent units over a history (Hidasi et al. 2016, arXiv 1511.06939; Hidasi & Karatzoglou 2018, arXiv
1706.03847).

As in the second paper: item embeddings into GRU layers, and one table for input and output ("constrained embedding"). The state
of the recurrence knows the order, so the input has no table of positions. Unlike the papers: each layer reads the normalised
stream and is added to it, so that deep ones see the items (which the first paper found to help) and learn, and a last layer norm
stands before the item scores; whole histories are unrolled, each from a state of zero, instead of session-parallel mini-batches
that cut the gradient; the loss is the recipe's choice.

Steps run for all users at once, without padding: tokens are put in the order of their position, users with longer histories
first, which is how torch's PackedSequence wants them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from largerec.batches import Batch
from largerec.layers import Backbone, SequenceInput, dropout, init_weight
from largerec.models.dial import ModelOptions


class GRU4RecOptions(ModelOptions):
    """Nothing beside what every family has; there are no heads."""

    has_heads: ClassVar[bool] = False
    name: Literal["gru4rec"] = "gru4rec"

    def block_parameters(self, width: int) -> int:
        return 6 * width**2 + 6 * width + 2 * width

    def context_operations(self, mean_context: float) -> float:
        """None: what is earlier comes in the state, which only meets matrices."""
        return 0.0


def by_position(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of tokens by (position, length of history, longest first) [T], and how many tokens each position has [N]
    (on the CPU, where torch wants it).

    Users without tokens have none at any position.
    """
    lengths_B, position_T = batch.lengths_B, batch.position_T
    longest_first_B = lengths_B.argsort(descending=True, stable=True)
    rank_B = torch.empty_like(longest_first_B).index_copy_(
        0, longest_first_B, torch.arange(len(lengths_B), device=lengths_B.device)
    )
    rank_T = torch.repeat_interleave(rank_B, lengths_B, output_size=batch.n_tokens)
    return (position_T * len(lengths_B) + rank_T).argsort(), position_T.bincount().cpu()


class Block(nn.Module):
    """x + GRU(norm(x)), for tokens in the order of :func:`by_position`."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.gru = nn.GRU(width, width)
        for parameter in self.gru.parameters():
            if parameter.dim() > 1:
                init_weight(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x_TD: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
        # In bfloat16 the state would be rounded at every step, and small updates of it lost.
        with torch.autocast(x_TD.device.type, enabled=False):
            steps, _ = self.gru(PackedSequence(self.norm(x_TD.float()), tokens_N))
        return x_TD + dropout(steps.data, self.dropout, self.training)


class GRU4Rec(Backbone):
    """The backbone: a Batch to hidden states [T, D]."""

    def __init__(self, options: GRU4RecOptions, n_items: int, max_length: int) -> None:
        super().__init__(options, n_items, max_length)
        depth, width, _ = options.shape
        self.input = SequenceInput(n_items, None, width, options.dropout)
        self.blocks = nn.ModuleList(Block(width, options.dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch) -> torch.Tensor:
        x_TD = self.input(batch)
        if batch.n_tokens:  # a PackedSequence must not be empty
            order_T, tokens_N = by_position(batch)
            x_TD = x_TD[order_T]
            for block in self.blocks:
                x_TD = self.through(block, x_TD, tokens_N)
            x_TD = x_TD[order_T.argsort()]
        hidden_TD: torch.Tensor = self.norm(x_TD)
        return hidden_TD
