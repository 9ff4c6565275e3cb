"""Features in a model: a vector for each field of an event, and one vector for all of them.

Shapes: T events that are asked about or carried by tokens, S slots, Z standardised numbers, F fields, E width of a field's
vector, D width of the model, V rows of the table, R rows that were never learned, P values that stand for those.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

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
    of_P: torch.Tensor
    value_P: torch.Tensor
    share_P: torch.Tensor

    def __init__(self, layout: FieldLayout) -> None:
        super().__init__()
        self.n_fields, self.width = layout.n_fields, layout.width
        self.single = len(layout.field_S) == layout.n_fields
        self.table = nn.Embedding(layout.rows, layout.width)
        init_weight(self.table.weight)
        self.register_buffer("field_S", torch.tensor(layout.field_S, dtype=torch.long), persistent=False)
        self.register_buffer("field_Z", torch.tensor(layout.field_Z, dtype=torch.long), persistent=False)
        # Each unseen row, and the rows of its field's values with their shares of the mean.
        means = [(row, range(first, end)) for row, first, end in layout.unseen if end > first]
        parts = [(number, value, 1 / len(values)) for number, (_, values) in enumerate(means) for value in values]
        self.register_buffer("unseen_R", torch.tensor([row for row, _ in means], dtype=torch.long), persistent=False)
        self.register_buffer("of_P", torch.tensor([part[0] for part in parts], dtype=torch.long), persistent=False)
        self.register_buffer("value_P", torch.tensor([part[1] for part in parts], dtype=torch.long), persistent=False)
        self.register_buffer("share_P", torch.tensor([part[2] for part in parts]), persistent=False)
        self.direction_ZE = nn.Parameter(torch.empty(len(layout.field_Z), layout.width)) if layout.field_Z else None
        if self.direction_ZE is not None:
            init_weight(self.direction_ZE)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        code_TS = features["code"]
        table_VE = self.table.weight
        if len(self.unseen_R) and not self.training:
            shares_PE = table_VE[self.value_P] * self.share_P.to(table_VE.dtype)[:, None]
            means_RE = table_VE.new_zeros(len(self.unseen_R), self.width).index_add(0, self.of_P, shares_PE)
            table_VE = table_VE.index_copy(0, self.unseen_R, means_RE)
        x_TSE = F.embedding(code_TS, table_VE)
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
