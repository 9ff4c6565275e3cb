"""The table of model families: a name in a recipe to options and class. A new family is a file and a line here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from largerec.errors import LargeRecError, nearest
from largerec.features import FieldLayout
from largerec.fields import FieldVectors
from largerec.item_tables import build_table
from largerec.layers import Backbone
from largerec.models.bsarec import BSARec, BSARecOptions
from largerec.models.dcn_v2 import DCNv2, DCNv2Options
from largerec.models.dial import ModelOptions
from largerec.models.din import DIN, DINOptions
from largerec.models.dlrm import DLRM, DLRMOptions
from largerec.models.fuxi_alpha import FuXiAlpha, FuXiAlphaOptions
from largerec.models.fuxi_beta import FuXiBeta, FuXiBetaOptions
from largerec.models.fuxi_linear import FuXiLinear, FuXiLinearOptions
from largerec.models.gru4rec import GRU4Rec, GRU4RecOptions
from largerec.models.hstu import HSTU, HSTUOptions
from largerec.models.ligr import LiGR, LiGROptions
from largerec.models.llama import Llama, LlamaOptions
from largerec.models.ranker import Ranker, RankerInputs, RankerOptions
from largerec.models.sasrec import SASRec, SASRecOptions
from largerec.models.wukong import Wukong, WukongOptions

FAMILIES: dict[str, tuple[type[ModelOptions], type[Backbone]]] = {
    "sasrec": (SASRecOptions, SASRec),
    "hstu": (HSTUOptions, HSTU),
    "fuxi-alpha": (FuXiAlphaOptions, FuXiAlpha),
    "fuxi-beta": (FuXiBetaOptions, FuXiBeta),
    "fuxi-linear": (FuXiLinearOptions, FuXiLinear),
    "llama": (LlamaOptions, Llama),
    "ligr": (LiGROptions, LiGR),
    "gru4rec": (GRU4RecOptions, GRU4Rec),
    "bsarec": (BSARecOptions, BSARec),
    "din": (DINOptions, DIN),
    "dcn-v2": (DCNv2Options, DCNv2),
    "dlrm": (DLRMOptions, DLRM),
    "wukong": (WukongOptions, Wukong),
}
RETRIEVING = {name: family for name, family in FAMILIES.items() if not family[0].ranks_only}
"""The families that can retrieve; the others only rank given items."""


def _options_of_family(given: Any) -> Any:
    """A recipe's ``[model]`` table as the options of the family that it names."""
    if not isinstance(given, dict):
        return given
    name = given.get("name")
    if name not in FAMILIES:
        said = "is missing" if name is None else f"is {name!r}, which there is not{nearest(str(name), FAMILIES)}"
        raise LargeRecError(f"model.name {said} Allowed: {', '.join(FAMILIES)}.")
    return FAMILIES[name][0].model_validate(given)


AnyModelOptions = Annotated[SerializeAsAny[ModelOptions], BeforeValidator(_options_of_family)]


def build_model(
    options: ModelOptions,
    n_items: int,
    max_length: int,
    layout: FieldLayout | None = None,
    classes_A: tuple[int, ...] = (),
) -> Backbone:
    """Build a backbone with fresh weights from torch's global random state; side vectors are zero until they are set.

    ``layout`` of the features and labels of each task: what a family that only ranks is built for; others are given both by
    ``ranking.add_tasks``.
    """
    family = FAMILIES[options.name][1]
    if issubclass(family, Ranker):
        assert isinstance(options, RankerOptions)
        model: Backbone = family(options, n_items, max_length, RankerInputs(layout, classes_A))
    else:
        model = family(options, n_items, max_length)
    given = (options.table, options.side, n_items, options.shape[1])
    if options.table.kind != "full" or options.side.columns:
        model.input.item = build_table(*given)
    if not options.tied:
        model.output_table = build_table(*given)
    return model


def non_embedding_parameters(model: Backbone) -> int:
    """Parameters outside the tables of items, positions and features (and what makes rows of side vectors)."""
    tables = {id(p) for module in (model.input, model.output_table) if module is not None for p in module.parameters()}
    tables |= {id(module.table.weight) for module in model.modules() if isinstance(module, FieldVectors)}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


__all__ = [
    "FAMILIES",
    "HSTU",
    "RETRIEVING",
    "AnyModelOptions",
    "BSARec",
    "BSARecOptions",
    "Backbone",
    "GRU4Rec",
    "GRU4RecOptions",
    "HSTUOptions",
    "LiGR",
    "LiGROptions",
    "Llama",
    "LlamaOptions",
    "ModelOptions",
    "RankerInputs",
    "SASRec",
    "SASRecOptions",
    "build_model",
    "non_embedding_parameters",
]
