"""Features in a model: a vector for each field of an event, and one vector for all of them.

Shapes: T events that are asked about or carried by tokens, S slots, Z standardised numbers, F fields, E width of a field's
vector, D width of the model, R rows of the table that were never learned.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from largerec.features import FieldLayout
from largerec.layers import init_weight


class FieldVectors(nn.Module):
    """[T, S] rows and [T, Z] numbers to [T, F, E]: the row of a value; of several values the mean; of a standardised number its
    row plus the number times a direction of its own.

    A row that no training event has (a missing value where none was missing) was never learned; outside training the mean of its
    field's values stands for it.
    """

    field_S: torch.Tensor
    field_Z: torch.Tensor
    unseen_R: torch.Tensor

    def __init__(self, layout: FieldLayout) -> None:
        super().__init__()
        self.n_fields, self.width = layout.n_fields, layout.width
        self.single = len(layout.field_S) == layout.n_fields
        self.table = nn.Embedding(layout.rows, layout.width)
        init_weight(self.table.weight)
        self.register_buffer("field_S", torch.tensor(layout.field_S, dtype=torch.long), persistent=False)
        self.register_buffer("field_Z", torch.tensor(layout.field_Z, dtype=torch.long), persistent=False)
        unseen = [(row, first, end) for row, first, end in layout.unseen if end > first]
        self.register_buffer("unseen_R", torch.tensor([row for row, _, _ in unseen], dtype=torch.long), persistent=False)
        self.values_of = [slice(first, end) for _, first, end in unseen]
        self.direction_ZE = nn.Parameter(torch.empty(len(layout.field_Z), layout.width)) if layout.field_Z else None
        if self.direction_ZE is not None:
            init_weight(self.direction_ZE)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        code_TS = features["code"]
        x_TSE: torch.Tensor = self.table(code_TS)
        if self.values_of and not self.training:
            place_TS = torch.searchsorted(self.unseen_R, code_TS).clamp_max(len(self.values_of) - 1)
            unseen_TS = self.unseen_R[place_TS] == code_TS
            if unseen_TS.any():  # seldom: only then is a whole field read
                mean_RE = torch.stack([self.table.weight[values].mean(0) for values in self.values_of])
                x_TSE = torch.where(unseen_TS[:, :, None], mean_RE[place_TS], x_TSE)
        if not self.single:
            used_TS = (code_TS > 0).to(x_TSE.dtype)
            count_TF = used_TS.new_zeros(len(code_TS), self.n_fields).index_add(1, self.field_S, used_TS)
            weight_TS = used_TS / count_TF.clamp_min(1).index_select(1, self.field_S)
            x_TFE = x_TSE.new_zeros(len(code_TS), self.n_fields, self.width)
            x_TSE = x_TFE.index_add(1, self.field_S, x_TSE * weight_TS[:, :, None])
        if self.direction_ZE is not None:
            x_TSE = x_TSE.index_add(1, self.field_Z, features["number"][:, :, None] * self.direction_ZE)
        return x_TSE


class FeatureVector(nn.Module):
    """All features as one vector [T, D]: the fields' vectors side by side through one linear map.

    ``normalised``: to be set beside a hidden state, which is normalised too; else to be added to embeddings.
    """

    def __init__(self, layout: FieldLayout, width: int, *, normalised: bool) -> None:
        super().__init__()
        self.fields = FieldVectors(layout)
        self.map = nn.Linear(layout.n_fields * layout.width, width)
        nn.init.xavier_uniform_(self.map.weight)
        nn.init.zeros_(self.map.bias)
        self.norm = nn.LayerNorm(width) if normalised else None

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x_TD: torch.Tensor = self.map(self.fields(features).flatten(1))
        return x_TD if self.norm is None else self.norm(x_TD)
