"""The Recipe: everything one run needs, as plain data. TOML in, ``key=value`` overrides, the resolved recipe saved as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from largerec.batches import BatchOptions
from largerec.contrastive import ContrastiveOptions
from largerec.datasets import DataOptions
from largerec.errors import LargeRecError, nearest
from largerec.features import FeatureOptions
from largerec.grid import ScaleOptions
from largerec.heads import HeadOptions
from largerec.kernels import native_bf16
from largerec.lists import ListOptions
from largerec.metrics import EvaluateOptions
from largerec.models import FAMILIES, AnyModelOptions, HSTUOptions
from largerec.objectives import OBJECTIVES, AnyObjectiveOptions, SampledSoftmaxOptions, SoftmaxOptions
from largerec.optim import OptimOptions, derived_learning_rate
from largerec.options import Options, read_toml, toml_value
from largerec.ranking import RankingOptions
from largerec.sequences import SplitOptions
from largerec.tasks import TaskOptions

MAX_SEED = 10**18  # a generator of torch takes 64 bits
RESERVED = ("user_id", "item_id", "score", "rank", "title", "choice")  # columns of what the Engine gives


class TrainOptions(Options):
    """How long to train and what to keep.

    Training stops after ``max_epochs`` passes or ``max_steps`` steps, or when ``metric`` on validation (seen items masked) has
    not risen for ``patience`` validations; a task's AUC or GAUC (``click.auc``) may decide instead. A validation comes every
    ``evaluate_every`` steps, or each epoch when not given, on at most ``validation_targets`` targets, and as many events that
    tasks are asked of (seeded samples); a checkpoint at each validation and every ``checkpoint_every`` steps.
    ``device``: what the steps and their validations run on; ``cuda`` is one NVIDIA device, for recipes without tasks.
    ``precision`` is that of matrix products; ``auto`` is bf16 where the device multiplies it in hardware, else fp32.
    ``accumulate``: work through the batch of a step in this many parts of whole histories and add up their gradients.
    ``recompute``: keep only what enters each block and make the rest again in the backward pass; the numbers stay the same.
    ``average``: the decay of an exponential moving average of the weights over steps, which is then what is validated and kept.
    """

    max_epochs: int = Field(100, ge=1)
    max_steps: int | None = Field(None, ge=1)
    patience: int = Field(5, ge=1)
    metric: str = Field("ndcg@10", pattern=r"^((ndcg|recall|mrr)@[1-9]\d*|[a-z]\w*\.(auc|gauc))$")
    evaluate_every: int | None = Field(None, ge=1)
    validation_targets: int = Field(25_000, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    log_every: int = Field(50, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    accumulate: int = Field(1, ge=1)
    recompute: bool = False
    average: float | None = Field(None, gt=0, lt=1)
    tensorboard: bool = False


class RunOptions(Options):
    """``dir``: where the bundle goes. ``compare``: families trained beside the model with the same settings, as further rows."""

    dir: str = "runs/latest"
    overwrite: bool = False
    compare: tuple[str, ...] = ()


class Range(Options):
    """Values from ``low`` to ``high``, whole numbers where the option is one; ``log``: small ones as often as large ones."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low={self.low}, high={self.high} is no range; low is below high, and above 0 with log")
        return self


class TuneOptions(Options):
    """``space``: what ``largerec compare --trials`` may change: options to a list of choices or a range.

    Both ``optim.learning_rate = {low = 0.0005, high = 0.004, log = true}`` and ``model.dropout = [0.3, 0.5]`` under
    ``[tune.space]`` name an option by its dotted key. ``prune_from``: validations of its own before a trial may be given up; a
    trial that learns slowly and ends well, as with a lower rate, wants more of them. Nothing else reads this group.
    """

    prune_from: int = Field(6, ge=1)
    space: dict[str, Range | tuple[Any, ...]] = Field({})

    @field_validator("space", mode="before")
    @classmethod
    def _by_dotted_keys(cls, given: Any) -> Any:
        return dict(_dotted(given)) if isinstance(given, dict) else given


def _dotted(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in space.items():
        if isinstance(value, dict) and not {"low", "high"} & value.keys():
            yield from _dotted(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and not value:
            raise ValueError(f"{prefix}{key} has no choices")
        else:
            yield f"{prefix}{key}", value


class Recipe(Options):
    """One TOML file. Every group is documented where it is declared."""

    name: str = "run"
    seed: int = Field(0, ge=0, le=MAX_SEED)
    threads: int | None = Field(None, ge=1)
    data: DataOptions = DataOptions()
    split: SplitOptions = SplitOptions()
    tasks: dict[str, TaskOptions] = Field(default_factory=dict)
    lists: ListOptions = ListOptions()
    features: FeatureOptions = FeatureOptions()
    batch: BatchOptions = BatchOptions()
    model: AnyModelOptions = HSTUOptions()
    head: HeadOptions = HeadOptions()
    objective: AnyObjectiveOptions = SoftmaxOptions()
    ranking: RankingOptions = RankingOptions()
    contrastive: ContrastiveOptions = ContrastiveOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    run: RunOptions = RunOptions()
    tune: TuneOptions = TuneOptions()
    scale: ScaleOptions = ScaleOptions()

    @model_validator(mode="after")
    def _compared_families_exist(self) -> Self:
        for family in self.run.compare:
            self.with_family(family)
        return self

    @model_validator(mode="after")
    def _tasks_and_actions_belong_together(self) -> Self:
        if self.tasks and self.batch.actions is None:
            raise LargeRecError(
                f"tasks ({', '.join(self.tasks)}) need batch.actions = interleaved or summed: how what was done becomes input."
            )
        for name, given in (("batch.actions", self.batch.actions), ("ranking", self.ranking != RankingOptions() or None)):
            if given is not None and not self.tasks:
                raise LargeRecError(f'{name} says nothing without tasks; name one, such as tasks.click.where="is_click = 1".')
        if self.tasks and self.contrastive.weight:
            raise LargeRecError(
                "contrastive.weight makes views of histories without what was done in them, so it cannot stand beside tasks; "
                "leave one of the two out."
            )
        for name in self.tasks:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED:
                raise LargeRecError(
                    f"{name!r} cannot be the name of a task: small letters, digits and _, and none of {', '.join(RESERVED)}."
                )
        task, dot, _ = self.train.metric.partition(".")
        if dot and task not in self.tasks:
            raise LargeRecError(
                f"train.metric={self.train.metric!r} names no task of the recipe{nearest(task, self.tasks)} Tasks: "
                f"{', '.join(self.tasks) or 'none'}."
            )
        if dot and task not in self.learned_tasks:
            raise LargeRecError(
                f"train.metric={self.train.metric!r} is of a task whose loss has weight 0; nothing would raise it."
            )
        fits = [name for name in self.learned_tasks if self.tasks[name].n_classes == 2]
        instead = (
            f"choose a task's, such as train.metric={fits[0]}.auc." if fits else "name one with where, and choose by its AUC."
        )
        if dot and task not in fits:
            raise LargeRecError(
                f"train.metric={self.train.metric!r} is of a task with {self.tasks[task].n_classes} labels, which has no AUC; "
                f"choose train.metric=ndcg@10, or of tasks with two labels: {instead}"
            )
        if not dot and self.ranking.retrieval == 0:
            raise LargeRecError(
                f"train.metric={self.train.metric!r} is of retrieval, but ranking.retrieval=0 leaves its loss out; "
                f"of tasks with two labels, {instead}"
            )
        return self

    @model_validator(mode="after")
    def _rankers_rank(self) -> Self:
        if not self.model.ranks_only:
            return self
        name = self.model.name
        if not self.tasks or self.batch.actions != "interleaved":
            raise LargeRecError(
                f'model.name={name!r} only ranks: it needs tasks, such as tasks.click.where="is_click = 1", and '
                "batch.actions=interleaved."
            )
        if self.ranking.retrieval:
            raise LargeRecError(f"model.name={name!r} only ranks, so there is no loss of the next item; set ranking.retrieval=0.")
        if self.head != HeadOptions():
            raise LargeRecError(f"head.* is about scores of the catalogue, and model.name={name!r} only ranks; leave it out.")
        if self.lists.items is not None or self.evaluate.exposure.by is not None:
            raise LargeRecError(
                f"lists of shown items and evaluate.exposure are measured beside retrieval, and model.name={name!r} only ranks; "
                "leave lists and evaluate.exposure out."
            )
        if self.optim.transfer == "mup":
            raise LargeRecError(f"optim.transfer='mup' has no rules for the layers of {name!r}; leave it out.")
        if self.train.recompute:
            raise LargeRecError(f"train.recompute works block by block, and {name!r} has no blocks; leave it out.")
        if self.features.where != "heads":
            raise LargeRecError(f"model.name={name!r} has features as fields beside the item; leave features.where out.")
        width = self.model.shape[1]
        if self.features.any and self.features.width != width:
            raise LargeRecError(
                f"the fields of {name!r} have one width, but features.width={self.features.width} and model.width={width}; give "
                "both the same."
            )
        return self

    @model_validator(mode="after")
    def _a_device_trains_what_retrieves(self) -> Self:
        asked = "tasks" if self.tasks else "lists.choice" if self.lists.choice else None
        if self.train.device == "cuda" and asked is not None:
            raise LargeRecError(f"train.device='cuda' trains what retrieves, and this recipe has {asked}; use train.device=cpu.")
        return self

    @model_validator(mode="after")
    def _features_are_read_by_tasks(self) -> Self:
        if self.features.any and not self.tasks:
            raise LargeRecError(
                'features help to predict tasks, and this recipe has none; name one, such as tasks.click.where="is_click = 1". '
                "(What items are helps retrieval with model.side.columns.)"
            )
        if self.features.any and self.features.where != "heads" and self.batch.actions == "summed":
            raise LargeRecError(
                f"features.where={self.features.where!r} adds features to the token of the event in question, and with "
                "batch.actions='summed' there is none. Choose batch.actions='interleaved' or features.where='heads'."
            )
        return self

    @model_validator(mode="after")
    def _hard_negatives_are_shown_and_judged(self) -> Self:
        if not self.ranking.hard_negatives:
            return self
        judges = any(self.tasks[name].n_classes == 2 for name in self.learned_tasks)
        needed = {
            "split.positives, which says which events are shown and not taken": self.split.positives is not None,
            "ranking.retrieval above 0, whose loss they join": self.ranking.retrieval > 0,
            "a task with where and a weight, which judges them": judges,
            "head.similarity dot or cosine, whose scores are products": self.head.similarity != "mol",
        }
        missing = [what for what, there in needed.items() if not there]
        if missing:
            raise LargeRecError(f"ranking.hard_negatives needs {'; '.join(missing)}. Give that, or leave hard_negatives out.")
        return self

    @model_validator(mode="after")
    def _an_order_within_windows_is_of_a_condition(self) -> Self:
        if self.ranking.within and not any(self.tasks[name].n_classes == 2 for name in self.learned_tasks):
            raise LargeRecError("ranking.within needs a task of two labels and a weight. Give that, or leave within out.")
        return self

    @model_validator(mode="after")
    def _an_objective_is_of_retrieval(self) -> Self:
        if self.ranking.retrieval > 0:
            return self
        if self.objective != SoftmaxOptions():
            raise LargeRecError(
                f"objective.* (name={self.objective.name!r}) is the loss of the next item, and ranking.retrieval=0 leaves that "
                "out; leave the group out, or raise ranking.retrieval."
            )
        if self.head.similarity == "mol":
            raise LargeRecError(
                "head.similarity='mol' is learned by the loss of the next item, and ranking.retrieval=0 leaves that out; choose "
                "dot or cosine, or raise ranking.retrieval."
            )
        return self

    @model_validator(mode="after")
    def _rows_need_an_objective_that_uses_few(self) -> Self:
        if self.ranking.retrieval > 0 and self.optim.table != "adamw" and isinstance(self.objective, SoftmaxOptions):
            raise LargeRecError(
                f"optim.table={self.optim.table!r} updates only the rows of items that a step uses, but objective.name='softmax' "
                "uses every item. Choose objective.name = sampled-softmax, bce or gbce, or optim.table = adamw."
            )
        return self

    @model_validator(mode="after")
    def _a_mixture_needs_few_items(self) -> Self:
        sampled = isinstance(self.objective, SampledSoftmaxOptions) and self.objective.shared
        if self.head.similarity == "mol" and not sampled:
            raise LargeRecError(
                "head.similarity='mol' makes several numbers for each pair of state and item, which is too much for every item "
                "of the catalogue or for each position's own. Choose objective.name=sampled-softmax with objective.shared=true."
            )
        return self

    @model_validator(mode="after")
    def _averages_need_whole_tables(self) -> Self:
        if self.optim.table != "adamw" and self.train.average is not None:
            raise LargeRecError(
                f"train.average={self.train.average} averages every row of the item table at every step, but optim.table="
                f"{self.optim.table!r} touches only the rows in use. Leave train.average out, or set optim.table = adamw."
            )
        return self

    @model_validator(mode="after")
    def _rows_need_a_plain_table(self) -> Self:
        if self.optim.table != "adamw" and not self.model.plain_table:
            raise LargeRecError(
                f"optim.table={self.optim.table!r} updates the rows of one table with a free row for each item, but model.tied, "
                "model.table or model.side say otherwise. Leave those out, or choose optim.table = adamw."
            )
        return self

    @model_validator(mode="after")
    def _a_second_pass_differs_by_dropout(self) -> Self:
        if self.contrastive.weight and "dropout" in self.contrastive.views and not self.model.dropout:
            raise LargeRecError(
                "contrastive.views has 'dropout', but with model.dropout=0 a second pass gives the same states. Set a dropout, "
                "or name other views: contrastive.views=['same-target']."
            )
        return self

    @model_validator(mode="after")
    def _views_are_of_all_events(self) -> Self:
        if self.contrastive.weight and self.split.positives is not None:
            raise LargeRecError(
                "contrastive.weight takes every event for a target that two views may share, but split.positives says that some "
                "are none. Leave one of the two out."
            )
        return self

    @model_validator(mode="after")
    def _rates_transfer_to_scores_by_product(self) -> Self:
        if self.optim.transfer == "mup" and self.head.similarity == "mol":
            raise LargeRecError(
                "optim.transfer='mup' has rules for scores by dot product or cosine, not for head.similarity='mol'; choose one "
                "of those, or leave the transfer out."
            )
        return self

    def resolved(self) -> Self:
        """The same recipe with every derived value written out: depth, width, heads, learning rate, precision."""
        model = self.model.resolved()
        optim = self.optim
        if optim.learning_rate is None:
            width = optim.derived_rate_width or model.shape[1]
            optim = optim.model_copy(update={"learning_rate": derived_learning_rate(width)})
        train = self.train
        if train.precision == "auto":
            train = train.model_copy(update={"precision": "bf16" if train.device == "cuda" or native_bf16() else "fp32"})
        return self.model_copy(update={"model": model, "optim": optim, "train": train})

    @property
    def score_scale(self) -> float:
        """What scores by dot product are multiplied with: base width over width under ``optim.transfer = "mup"``, else 1."""
        if self.optim.transfer == "sqrt" or self.head.similarity == "cosine":
            return 1.0
        return self.optim.base_width / self.model.shape[1]

    @property
    def learned_tasks(self) -> tuple[str, ...]:
        """The tasks whose loss has a weight."""
        return tuple(name for name, task in self.tasks.items() if task.weight * self.ranking.weight > 0)

    def with_family(self, family: str) -> Recipe:
        """The same recipe for another model family: what the two families share is kept."""
        if family not in FAMILIES:
            raise LargeRecError(f"unknown model family {family!r}{nearest(family, FAMILIES)} Allowed: {', '.join(FAMILIES)}.")
        options, _ = FAMILIES[family]
        if options.ranks_only != self.model.ranks_only:
            only = family if options.ranks_only else self.model.name
            raise LargeRecError(
                f"{family!r} cannot stand beside {self.model.name!r} by run.compare: {only!r} only ranks, and needs other "
                "settings: a recipe of its own."
            )
        ours, theirs = type(self.model).model_fields, options.model_fields
        kept = theirs.keys() - (set() if options.has_heads and self.model.has_heads else {"heads"})
        if "feedforward" in ours.keys() & theirs.keys():  # which counts other matrices where its default or kind is another
            one, other = ((field.annotation, field.default) for field in (ours["feedforward"], theirs["feedforward"]))
            kept -= {"feedforward"} if one != other else set()
        shared = {key: value for key, value in self.model.model_dump(exclude_unset=True).items() if key in kept}
        return self.model_copy(update={"model": options.model_validate(shared | {"name": family})})

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def _value(text: str, *, of_text: bool) -> Any:
    """A command-line value: TOML where it parses (numbers, true, lists, quoted text), else the text itself, dates too.

    ``of_text``: the option's value is text, so that 1.10 stays as it was typed; quotes are taken off.
    """
    value = toml_value(text)
    return text if isinstance(value, date | time) or (of_text and not isinstance(value, str)) else value


def _is_text(path: Sequence[str], kind: Any = None) -> bool:
    """Whether the option at a dotted key takes text and nothing else; not of a family's or an objective's own options."""
    kind = Recipe if kind is None else kind
    if not path:
        kinds = set(get_args(kind)) or {kind}
        return str in kinds and kinds <= {str, NoneType}
    if get_origin(kind) is dict:
        return _is_text(path[1:], get_args(kind)[1])
    field = kind.model_fields.get(path[0]) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return field is not None and _is_text(path[1:], field.annotation)


def apply_overrides(document: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys of a nested mapping; returns a new one.

    Raises:
        LargeRecError: an override is not ``key=value``, or goes through a key that is no group.
    """
    changed: dict[str, Any] = json.loads(json.dumps(document, default=str))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise LargeRecError(
                f"{override!r} is no override; write key=value, for example data.path=events.csv or model.size=small."
            )
        group = changed
        *path, last = key.split(".")
        for name in path:
            group = group.setdefault(name, {})
            if not isinstance(group, dict):
                raise LargeRecError(f"{override!r}: {name!r} is a value, not a group, so nothing can be set inside it.")
        group[last] = _value(text, of_text=_is_text(key.split(".")))
    return changed


def _explained(error: ValidationError, source: str) -> LargeRecError:
    lines = [f"{source}: the recipe does not fit."]
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        if location[:1] == ["objective"]:
            del location[1:2]  # pydantic puts the name of the objective there
        if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
            given = problem.get("ctx", {}).get("tag")
            said = "is missing" if given is None else f"is {given!r}, which there is not{nearest(given, OBJECTIVES)}"
            lines.append(f"  {location[0]}.name {said} Allowed: {', '.join(OBJECTIVES)}.")
            continue
        given = problem.get("input")
        shown = f" (given: {given!r})" if not isinstance(given, dict) else ""
        lines.append(f"  {'.'.join(location)}: {problem['msg']}{shown}")
    return LargeRecError("\n".join(lines))


def recipe_from(document: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Check a nested mapping as a recipe.

    Raises:
        LargeRecError: an unknown key (with the nearest right one) or a value that does not fit.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise _explained(error, source) from None
    except LargeRecError as error:
        raise LargeRecError(f"{source}: {error}") from None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply ``key=value`` overrides.

    Raises:
        LargeRecError: the file is missing, is no TOML, or does not fit.
    """
    path = Path(path)
    known = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    listed = f" There are: {', '.join(known)}." if known else ""
    missing = f"{nearest(str(path), known)}{listed}"
    document = read_toml(path, "recipe", missing=missing, example="See recipes/quickstart.toml for one.")
    return recipe_from(apply_overrides(document, overrides), str(path))
