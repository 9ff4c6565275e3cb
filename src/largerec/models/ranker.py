"""What rankers share: fields of an event in question and its history, packed like everything else.

A ranker predicts labels of given items and retrieves nothing. It runs on batches with interleaved actions: its state at an item's
token is made of the item, of the recipe's features of that event, and of what its user had done before. Tokens of actions have no
state. What was done is part of the history: an event's vector there is its item's plus those of its labels.

Shapes: T tokens, N events in question, P pairs of one of them and an earlier event of its user, M fields (the item's, F features,
and those of the history), E width of a field's vector, D width of the state.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from largerec.batches import Batch
from largerec.errors import LargeRecError
from largerec.features import FieldLayout
from largerec.fields import FieldVectors
from largerec.layers import Backbone, SequenceInput, dropout
from largerec.models.dial import ModelOptions

WIDTH = 16


class RankerOptions(ModelOptions):
    """What every ranker has. ``width`` (E): numbers in the vector of an item and of each feature, 16 if not given, and
    ``features.width`` likewise. ``hidden``: widths of the network over the fields; the last one is the state's."""

    has_heads: ClassVar[bool] = False
    ranks_only: ClassVar[bool] = True
    has_depth: ClassVar[bool] = True
    default_depth: ClassVar[int] = 3
    dropout: float = Field(0.0, ge=0, lt=1)
    hidden: tuple[int, ...] = (128, 64)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.size != "tiny":
            raise LargeRecError(
                f"model.size={self.size!r} says nothing of {self.name!r}, a ranker; set model.width, depth and hidden by hand."
            )
        if not self.has_depth and self.depth not in (None, self.default_depth):
            raise LargeRecError(f"model.depth={self.depth} would do nothing: {self.name!r} has no stack of layers. Leave it out.")
        if not self.tied:
            raise LargeRecError(f"model.tied=false would do nothing: {self.name!r} scores no catalogue. Leave it out.")
        if not self.hidden:
            raise LargeRecError("model.hidden=[] must hold one width or more: the last one is the state's.")
        for name, widths in (("hidden", self.hidden), *self.inner_widths.items()):
            if min(widths, default=1) < 1:
                raise LargeRecError(f"model.{name}={list(widths)} holds a width below 1; each must be 1 or more.")
        return self

    @property
    def inner_widths(self) -> dict[str, tuple[int, ...]]:
        """Further options that are widths of layers, by name."""
        return {}

    def resolved(self) -> Self:
        given = {"depth": self.depth or self.default_depth, "width": self.width or WIDTH, "heads": 1}
        return type(self).model_validate(self.model_dump() | given)

    def context_operations(self, mean_context: float) -> float:
        """None beside sums over the history."""
        return 0.0


class RankerInputs(NamedTuple):
    """What a ranker must know of the recipe: its features, and how many labels each task has."""

    layout: FieldLayout | None
    classes_A: tuple[int, ...]


class Pairs(NamedTuple):
    """Each event in question with each earlier event of its user: ``asked_P`` in 0..N, ``token_P`` the earlier one's action."""

    asked_P: torch.Tensor
    token_P: torch.Tensor
    count_N: torch.Tensor


def pairs_of(batch: Batch, asked_N: torch.Tensor) -> Pairs:
    """The pairs of the item tokens ``asked_N``, in order."""
    assert batch.action_T is not None
    event_J = batch.action_T.nonzero()[:, 0]
    before_T1 = torch.cat([batch.action_T.new_zeros(1, dtype=torch.long), batch.action_T.long().cumsum(0)])
    user_N = torch.searchsorted(batch.offsets_B1, asked_N, right=True) - 1
    first_N, end_N = before_T1[batch.offsets_B1[user_N]], before_T1[asked_N]
    count_N = end_N - first_N
    asked_P = torch.repeat_interleave(torch.arange(len(asked_N)), count_N)
    place_P = torch.arange(len(asked_P)) - (count_N.cumsum(0) - count_N)[asked_P]
    return Pairs(asked_P, event_J[first_N[asked_P] + place_P], count_N)


class Network(nn.Module):
    """Linear maps with ReLU and dropout after each: [N, inputs] -> [N, widths[-1]]."""

    def __init__(self, inputs: int, widths: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.maps = nn.ModuleList(linear(one, other) for one, other in zip((inputs, *widths), widths, strict=False))

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        for layer in self.maps:
            x_ND = dropout(layer(x_ND).relu(), self.dropout, self.training)
        return x_ND


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear map that keeps the scale of what comes in (Glorot & Bengio 2010)."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Ranker(Backbone):
    """The base of rankers. A family makes its network of ``n_fields`` vectors and gives ``states``.

    ``pooled``: the history as fields of their own: the mean of all its events, and for each task the mean of the items whose
    label was 1 (of a number cut into classes: in the upper half). A family that reads histories in its own way has none of them.
    """

    ranks_only = True
    pooled: ClassVar[bool] = True

    def __init__(self, options: RankerOptions, n_items: int, max_length: int, inputs: RankerInputs) -> None:
        super().__init__(options, n_items, max_length)
        _, self.width, _ = options.shape
        self.classes_A = inputs.classes_A
        self.input = SequenceInput(n_items, None, self.width, 0.0)
        self.fields = None if inputs.layout is None else FieldVectors(inputs.layout)
        self.n_features = 0 if inputs.layout is None else inputs.layout.n_fields
        self.n_fields = 1 + self.n_features + (1 + len(self.classes_A) if self.pooled else 0)

    def states(self, field_NME: torch.Tensor, history: tuple[Pairs, torch.Tensor]) -> torch.Tensor:
        """The states [N, D] of events by their fields; ``history``: the pairs and the vectors of tokens [T, E]."""
        raise AssertionError("each family gives its own")

    def forward(self, batch: Batch) -> torch.Tensor:
        assert batch.action_T is not None, "rankers read interleaved actions"
        asked_N = self._asked(batch)
        x_TE = self.input(batch)
        pairs = pairs_of(batch, asked_N)
        fields = [x_TE[asked_N][:, None]]
        if self.fields is not None:
            fields.append(self.fields({name: value[asked_N] for name, value in batch.features.items()}))
        if self.pooled:
            fields.append(self._history(batch, pairs, x_TE))
        state_ND = self.states(torch.cat(fields, dim=1), (pairs, x_TE))
        return state_ND.new_zeros(batch.n_tokens, state_ND.shape[1]).index_copy(0, asked_N, state_ND)

    def _asked(self, batch: Batch) -> torch.Tensor:
        """The item tokens whose states are wanted: in training those with a label."""
        assert batch.action_T is not None
        wanted_T = ~batch.action_T
        if batch.asked_T is not None:
            wanted_T = batch.asked_T
        elif self.training and batch.task_label_TA is not None:
            wanted_T = (batch.task_label_TA >= 0).any(1)
        return wanted_T.nonzero()[:, 0]

    def _history(self, batch: Batch, pairs: Pairs, x_TE: torch.Tensor) -> torch.Tensor:
        """Means of the history, zero where it has nothing of the kind. [N, 1 + A, E]"""
        assert batch.label_TA is not None
        n, item_TE = len(pairs.count_N), self.input.item(batch.item_T)
        means = [_mean(x_TE[pairs.token_P], pairs.asked_P, n)]
        for column, classes in enumerate(self.classes_A):
            done_P = 2 * batch.label_TA[pairs.token_P, column] >= classes
            means.append(_mean(item_TE[pairs.token_P[done_P]], pairs.asked_P[done_P], n))
        return torch.stack(means, dim=1)


def _mean(x_PE: torch.Tensor, row_P: torch.Tensor, n: int) -> torch.Tensor:
    sum_NE = x_PE.new_zeros(n, x_PE.shape[1]).index_add(0, row_P, x_PE)
    return sum_NE / torch.bincount(row_P, minlength=n).clamp_min(1)[:, None]
