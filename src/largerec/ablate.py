"""What a cure is worth: the same recipe on a log as it is and on each of its versions, paired.

Every row has the same recipe, seeds, number of training steps and test targets; only the training rows differ. Labelled faults
may be put into the training rows first: then the log without them is a row too, and it is said what the faults cost and which
share of that each version wins back. Runs are bundles in ``FOLDER/NAME/seed-S``: the same command takes up where it was stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field, ValidationError, model_validator

from largerec import cures, manifest, metrics
from largerec.batches import TrainingBatches
from largerec.compare import NAME, finished_run
from largerec.compare_table import Row, row_ranks
from largerec.curate import curate
from largerec.curate.plan import Plan, Step, check_labels, plan_from
from largerec.curate.taking import stage_column
from largerec.curate.versions import refuse_own
from largerec.datasets import DataOptions, load_log
from largerec.doctor import processor
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.experiments import placed
from largerec.faults import FaultOptions
from largerec.faulty import with_training_faults
from largerec.imports import write_log
from largerec.options import Options, read_toml
from largerec.paired import Paired
from largerec.recipe import MAX_SEED, Recipe, apply_overrides, load_recipe
from largerec.report.ablated import ablated_page
from largerec.sequences import STAGE_COLUMN, SplitOptions, build_sequences
from largerec.split_log import SplitLog
from largerec.tokenizers import AtomicTokenizer
from largerec.writing import check_file, write_json

assert cures.STEPS, "plans know the steps that train"

RAW, CLEAN = "raw", "clean"
TAKEN = (RAW, CLEAN, "logs", "versions", "ablate.json", "ablate.html")
FOLDER = "runs/ablate"
UNBOUNDED = 1_000_000
NO_SHARES = (
    "the interval of that cost holds zero or less, so no share of it is told as won back; put in more faults, or ask more users"
)
KEYS = ["user_id", "item_id", "timestamp"]


class AblateOptions(Options):
    """How versions are compared.

    ``recipe``: of every row, a path from the plan's folder. ``seeds``: of every row. ``steps``: of every training; as many as the
    recipe takes on the raw log when not given. ``validations``: at equal steps of every training; the best weights are kept.
    ``controls``: names of versions that all others are held against as well, not the raw log alone. ``faults``: put into the
    training rows first, by their own seed, as ``data.faults`` puts them into a log.
    """

    recipe: str
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = Field(None, ge=1)
    validations: int = Field(8, ge=1)
    level: float = Field(0.95, gt=0, lt=1)
    bootstrap_samples: int = Field(2000, ge=100)
    controls: tuple[str, ...] = ()
    faults: FaultOptions = FaultOptions()

    @model_validator(mode="after")
    def _seeds_are_seeds(self) -> Self:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0 or max(self.seeds) > MAX_SEED:
            raise LargeRecError(f"ablate.seeds is {list(self.seeds)}; give at least one, each once, from 0 to {MAX_SEED}.")
        return self


class VersionOptions(Options):
    """A row: a name, and the steps that make it of the raw log."""

    name: str
    step: tuple[Step, ...]


class AblationPlan(Options):
    """``seed``: of what the steps draw. ``version``: the rows beside the raw log."""

    seed: int = Field(0, ge=0)
    ablate: AblateOptions
    version: tuple[VersionOptions, ...]

    @model_validator(mode="after")
    def _rows_have_names_of_their_own(self) -> Self:
        names = [one.name for one in self.version]
        if not names:
            raise LargeRecError("an ablation needs at least one [[version]] with a name and its steps.")
        for name in names:
            if not NAME.fullmatch(name) or name in TAKEN or names.count(name) > 1:
                raise LargeRecError(
                    f"version name {name!r}: names are given once, of letters, digits, '.', '_' and '-', and none of "
                    f"{', '.join(TAKEN)}, which are other rows and files of the folder."
                )
        controls = self.ablate.controls
        if len(set(controls)) < len(controls) or not set(controls) < set(names):
            raise LargeRecError(
                f"ablate.controls is {list(controls)}; name versions of this plan ({', '.join(names)}), each once, and leave one "
                "that is held against them."
            )
        return self

    @property
    def verdicts(self) -> int:
        """How many are given: of each version beside the raw log, and of each that is no control beside each control."""
        count = len(self.ablate.controls)
        return len(self.version) + count * (len(self.version) - count)


def load_ablation(path: str | Path, overrides: Sequence[str] = ()) -> tuple[AblationPlan, Recipe]:
    """Read a plan and its recipe; ``key=value`` overrides change the recipe, those that begin with ``ablate.`` the plan.

    Raises:
        LargeRecError: a file is missing, is no TOML, or does not fit.
    """
    path = Path(path)
    missing = "; give a TOML file as docs/ablate.md shows."
    document = read_toml(path, "plan", missing=missing, example="docs/ablate.md shows one.")
    own = [override for override in overrides if override.startswith("ablate.")]
    document = apply_overrides(document, own)
    given = document.get("version", [])
    if not isinstance(given, list) or not all(isinstance(version, dict) for version in given):
        raise LargeRecError(f"{path}: write [[version]], with two brackets, before the name and the steps of each version.")
    for version in given:
        plan_from({"step": version.get("step", [])}, f"{path}, version {version.get('name', '?')!r}")
    try:
        plan = AblationPlan.model_validate(document)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        raise LargeRecError("\n".join([f"{path}: the plan does not fit.", *lines])) from None
    except LargeRecError as error:
        raise LargeRecError(f"{path}: {error}") from None
    recipe = load_recipe(path.parent / plan.ablate.recipe, [one for one in overrides if one not in own])
    if "@" not in recipe.train.metric or int(recipe.train.metric.partition("@")[2]) not in recipe.evaluate.k:
        raise LargeRecError(f"{path}: train.metric={recipe.train.metric!r} must be of retrieval, with its k in evaluate.k.")
    return plan, recipe


@dataclass(frozen=True)
class Arm:
    """A row before it is trained: a log with its split, what made it, and the seconds that took."""

    name: str
    log: str
    seconds: float
    facts: dict[str, Any]


def ablate(plan: AblationPlan, recipe: Recipe, folder: str | Path = FOLDER, *, quiet: bool = False) -> dict[str, Any]:
    """Make the versions, train and evaluate each with every seed, and compare them. Returns the document of docs/ablate.md.

    Raises:
        LargeRecError: the log, a step or the recipe does not fit, another log was ablated in the folder, or a version is not
            asked the same targets.
    """
    folder = Path(folder)
    for version in plan.version:
        check_labels(version.step, recipe.split, recipe.tasks, f"version {version.name!r}")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    arms = [*base_logs(plan, recipe, folder), *(version_arm(one, plan, folder) for one in plan.version)]
    raw = next(arm for arm in arms if arm.name == RAW)
    steps = plan.ablate.steps or recipe_steps(recipe, raw)
    rows: dict[str, Row] = {}
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {arm.name: [] for arm in arms}
    made = {arm.name: _hashes(recipe, arm) for arm in arms}
    for seed in plan.ablate.seeds:
        for arm in arms:
            path = folder / arm.name / f"seed-{seed}"
            first = found[arm.name][0][0] if found[arm.name] else None
            run = recipe_of(recipe, arm, path, seed, steps, plan.ablate.validations)
            found[arm.name].append((path, finished_run(run, made[arm.name], beside=first, quiet=quiet)))
    rows = {name: Row(name, tuple(p for p, _ in runs), tuple(r for _, r in runs)) for name, runs in found.items()}
    return {"dir": str(folder), "steps": steps, **table(rows, arms, plan, recipe)}


def from_arguments(
    path: str, plan_path: str, overrides: Sequence[str], to: str | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """``largerec ablate DATA --plan PLAN``: :func:`ablate` with its page ``ablate.html`` and ``ablate.json``; ``to``: a further
    file.

    ``DATA`` is a path, or ``-`` for what the recipe says. The folder is ``run.dir``, or ``runs/ablate/PLAN``.

    Raises:
        LargeRecError: as :func:`ablate`, or an override is not for an ablation.
    """
    for override in overrides:
        if override.startswith(
            ("seed=", "name=", "run.overwrite=", "run.compare=", "split.", "train.max_", "train.patience", "train.evaluate_every")
        ):
            key = override.partition("=")[0]
            raise LargeRecError(
                f"{override!r} is not for an ablation: seeds and steps are the plan's (ablate.seeds, ablate.steps), the split is "
                f"the recipe's, and no run is replaced. Leave {key} out."
            )
    chosen = [] if path == "-" else [f"data.path={path}"]
    if chosen and (other := [one for one in overrides if one.startswith("data.path=")]):
        raise LargeRecError(
            f"{other[0]!r} and the log {path!r} cannot both be meant; leave one out (a log of - is the recipe's)."
        )
    plan, recipe = load_ablation(plan_path, [*overrides, *chosen])
    given = apply_overrides({}, [one for one in overrides if one.startswith("run.dir=")]).get("run", {}).get("dir")
    folder = Path(given or f"{FOLDER}/{Path(plan_path).stem}")
    if to:
        check_file(Path(to), "--out", inputs=[plan_path])
    command = ["largerec ablate", "-" if path == "-" else "<data>", f"--plan {quote(plan_path)}", *map(quote, overrides)]
    found = {"name": Path(plan_path).stem, "date": datetime.now(UTC).date().isoformat(), "hardware": processor()}
    found |= {"command": " ".join(command)} | ablate(plan, recipe, folder, quiet=quiet)
    found["report"] = str(ablated_page(found, folder / "ablate.html"))
    for target in (folder / "ablate.json", *([Path(to)] if to else [])):
        write_json(target, found)
    return found


# --- logs


def base_logs(plan: AblationPlan, recipe: Recipe, folder: Path) -> list[Arm]:
    """The log with its split written into it, training rows first: ``raw``, and with faults ``clean`` before it.

    Raises:
        LargeRecError: the folder holds the ablation of another log, or the log has a column ``stage`` that is no split.
    """
    log = load_log(recipe.data)
    if recipe.split.protocol != "given":
        refuse_own(log, (STAGE_COLUMN,))
    stage = stage_column(log, recipe.split)
    order = pl.concat([(stage == "train").arg_true(), (stage != "train").arg_true()])
    clean = EventLog(log.events.with_columns(stage.alias(STAGE_COLUMN))[order], log.items, log.time_kind, log.notes, log.source)
    logs = {RAW: clean}
    if plan.ablate.faults.any:
        faulty = with_training_faults(clean, plan.ablate.faults)
        ids = pl.col("user_id").cast(faulty.events.schema["user_id"])  # of one type in all rows, so that targets can be compared
        logs = {CLEAN: replace(clean, events=clean.events.with_columns(ids)), RAW: faulty}
    return [Arm(name, str(_kept(one, folder / "logs" / name, recipe.data.path)), 0.0, _counts(one)) for name, one in logs.items()]


def _kept(log: EventLog, place: Path, source: str | None) -> Path:
    """Write a log as an import, which erasure reaches as any other, or find the same one there."""
    document = manifest.read(place)
    if document is None:
        write_log(log, place, source)
    elif document["content"] != manifest.content_hash(log.events, log.items):
        raise LargeRecError(
            f"{place} is another log than the one that is given now (or has other faults or another split, or a person was "
            "forgotten in one of the two); an ablation goes on with what it began. Choose another run.dir, or remove the folder."
        )
    return place


def _counts(log: EventLog) -> dict[str, Any]:
    train = log.events.filter(pl.col(STAGE_COLUMN) == "train")
    return {"training_rows": train.height, "steps": []}


def version_arm(version: VersionOptions, plan: AblationPlan, folder: Path) -> Arm:
    """Take a version's steps on the raw log; versions whose steps begin alike share what they have in common."""
    seconds, known = folder / "versions" / "seconds.json", dict[str, float]()
    if seconds.is_file():
        known = json.loads(seconds.read_text(encoding="utf-8"))
    source = DataOptions(path=str(folder / "logs" / RAW))
    total, document = 0.0, dict[str, Any]()
    for count in range(1, len(version.step) + 1):  # one more step at a time, so that each is timed once
        started = time.perf_counter()
        steps = Plan(seed=plan.seed, split=SplitOptions(protocol="given"), step=version.step[:count])
        document = curate(source, steps, folder / "versions")
        last = document["versions"][-1]
        if not last["reused"] or last["version"] not in known:
            known[last["version"]] = round(time.perf_counter() - started, 2)
            write_json(seconds, known)
        total += known[last["version"]]
    told = [{"step": one["step"], "rows": one["rows"], "facts": one["facts"]} for one in document["versions"][1:]]
    facts = {"training_rows": document["versions"][-1]["stages"]["train"], "steps": told}
    return Arm(version.name, document["log"], round(total, 2), facts)


# --- runs


def recipe_of(recipe: Recipe, arm: Arm, path: Path, seed: int, steps: int, validations: int) -> Recipe:
    """The recipe on a version: the split that it carries, so many steps whatever its size, validated at equal steps."""
    split = SplitOptions(protocol="given", positives=recipe.split.positives, targets=recipe.split.targets)
    train = recipe.train.model_copy(
        update={
            "max_epochs": UNBOUNDED,
            "max_steps": steps,
            "evaluate_every": max(1, -(-steps // validations)),
            "patience": UNBOUNDED,
        }
    )
    data = DataOptions(path=arm.log)
    return placed(recipe, path, seed).model_copy(update={"data": data, "split": split, "train": train, "name": arm.name})


def recipe_steps(recipe: Recipe, raw: Arm) -> int:
    """The steps that the recipe plans on the raw log."""
    one = recipe_of(recipe, raw, Path("unused"), 0, 1, 1)
    sequences = build_sequences(load_log(one.data), one.split, one.tasks)
    token_of_item = AtomicTokenizer.fit(sequences).encode(sequences.item_ids)
    batches = TrainingBatches(sequences, token_of_item, recipe.batch, recipe.seed)
    return batches.steps_of(recipe.train.max_epochs, recipe.train.max_steps)


def _hashes(recipe: Recipe, arm: Arm) -> dict[str, str]:
    one = recipe_of(recipe, arm, Path("unused"), 0, 1, 1)
    return SplitLog.of(one).beside(one).hashes


# --- the table


def table(rows: Mapping[str, Row], arms: Sequence[Arm], plan: AblationPlan, recipe: Recipe) -> dict[str, Any]:
    """Means, paired gains over ``raw`` with intervals over users and seeds, and verdicts; ``against``: the same beside each
    control; with faults, costs and shares won back.

    A version helps (or hurts) if its gain's interval at a level corrected for the number of verdicts (Bonferroni) leaves out 0.
    """
    metric, options = recipe.train.metric, plan.ablate
    values, user_N = _values(rows, metric)
    made = {"samples": options.bootstrap_samples, "seed": recipe.seed}
    paired = Paired(values, user_N, level=options.level, **made)
    strict = Paired(values, user_N, level=1 - (1 - options.level) / plan.verdicts, **made)
    documents = []
    for arm in arms:
        row = rows[arm.name]
        document: dict[str, Any] = {
            "name": arm.name,
            "log": arm.log,
            **arm.facts,
            "validation": _mean(row.results, "validation"),
            "test": _mean(row.results, "test"),
            metric: paired.of(lambda mean, name=arm.name: mean[name]),  # type: ignore[misc]
            "seconds": {"cure": arm.seconds, "train": round(float(np.mean([one["train_seconds"] for one in row.results])), 1)},
            "train_tokens": float(np.mean([one["train_tokens"] for one in row.results])),
            "runs": [
                {"dir": str(path), **{name: one[name] for name in ("seed", "steps", "best_step", "train_seconds", "test")}}
                for path, one in zip(row.folders, row.results, strict=True)
            ],
        }
        if arm.name != RAW:
            document["gain"] = paired.gain(arm.name, RAW)
        if arm.name not in (RAW, CLEAN):
            document["verdict"] = verdict(strict.gain(arm.name, RAW)["difference"])
            others = [] if arm.name in options.controls else options.controls
            document["against"] = {
                other: {"gain": paired.gain(arm.name, other), "verdict": standing(strict, arm.name, other)} for other in others
            }
            if options.faults.any:
                document["won_back"] = won_back(paired, arm.name)
        documents.append(document)
    found: dict[str, Any] = {
        "metric": metric,
        "protocol": recipe.split.protocol,
        "targets": rows[RAW].results[0]["targets"]["n"],
        "seeds": list(options.seeds),
        "level": options.level,
        "verdicts": plan.verdicts,
        "threads": torch.get_num_threads(),
        "rows": documents,
    }
    if options.faults.any:
        found["faults"] = {"put_in": options.faults.model_dump(exclude_defaults=True), "cost": cost_of_faults(paired)}
        if all(one.get("won_back") is None for one in documents):
            found["faults"]["no_shares"] = NO_SHARES
    return found


def cost_of_faults(paired: Paired) -> dict[str, float | None]:
    """The share of the clean log's quality that the faults take, with its interval."""
    return paired.of(lambda mean: 1 - mean[RAW] / mean[CLEAN])


def won_back(paired: Paired, name: str) -> dict[str, float | None] | None:
    """The share of the cost that a version wins back; None where the faults may cost nothing, and a share of it means nothing."""
    low = cost_of_faults(paired)["low"]
    if low is None or low <= 0:
        return None
    return paired.of(lambda mean: (mean[name] - mean[RAW]) / (mean[CLEAN] - mean[RAW]))


def verdict(
    difference: Mapping[str, float | None], words: tuple[str, str, str] = ("helps", "hurts", "no sign that it helps")
) -> str:
    """In words, by an interval: above 0, below it, or neither."""
    low, high = difference["low"], difference["high"]
    if low is not None and low > 0:
        return words[0]
    return words[1] if high is not None and high < 0 else words[2]


def standing(strict: Paired, name: str, control: str) -> str:
    """In words, where a version stands beside a control: above, below, or not told apart."""
    return verdict(strict.gain(name, control)["difference"], ("above", "below", "not told apart"))


def _mean(results: Sequence[Mapping[str, Any]], part: str) -> dict[str, float]:
    return {name: float(np.mean([one[part][name] for one in results])) for name in results[0][part]}


def _values(rows: Mapping[str, Row], metric: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The metric of each row, seed and test target [S, N], targets in one order; and the user of each.

    Raises:
        LargeRecError: two rows were not asked the same targets.
    """
    kind, _, k = metric.partition("@")
    function = {"ndcg": metrics.ndcg, "recall": metrics.recall, "mrr": metrics.mrr}[kind]
    first, values = None, dict[str, np.ndarray]()
    for name, row in rows.items():
        ranks = row_ranks(row)
        # Users are numbered by their first event, which a cure may take out: the order of targets is by their keys instead.
        ranks = ranks.with_columns(pl.int_range(pl.len()).over(KEYS).alias("again")).sort([*KEYS, "again"])
        keys = ranks.select(*KEYS, "again")
        first = keys if first is None else first
        if not keys.equals(first):
            raise LargeRecError(f"{name} was not asked the same test targets as {next(iter(rows))}; a version must keep them.")
        columns = [one for one in ranks.columns if one.startswith("rank ")]
        values[name] = np.stack([function(ranks[one].to_numpy(), int(k)) for one in columns])
    assert first is not None
    return values, first["user_id"].rank("dense").cast(pl.Int64).to_numpy()
