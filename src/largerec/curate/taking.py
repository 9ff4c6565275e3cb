"""One step on one version: the step sees training rows alone, and what comes out is checked.

Two rules hold for every step. Evaluation rows stay bit for bit as they were. A user who is asked about in the evaluation keeps at
least one training row, the last, as history of weight 0, so that every version is asked about the same targets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from largerec.audit.ordered import Ordered
from largerec.columns import UNTIMED
from largerec.curate.plan import AnyStep
from largerec.curate.rows import Bools, Change, Floats, Ints, Training
from largerec.curate.versions import BOOKKEEPING, ROW, SOURCE_WEIGHT, Version
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.sequences import STAGE_COLUMN, STAGE_NAMES, WEIGHT_COLUMN, SplitOptions, stages_of

NO_LIMIT = np.iinfo(np.int64).max


def stage_column(log: EventLog, split: SplitOptions) -> pl.Series:
    """The stage of each row of a log, by name, in the order of the file.

    Raises:
        LargeRecError: the split does not fit the log.
    """
    ordered = Ordered.of(log)
    given = log.events[STAGE_COLUMN].gather(ordered.row_N) if STAGE_COLUMN in log.events.columns else None
    stage_N = stages_of(split, ordered.offsets_U1, ordered.time_N, ordered.time_kind, given, log.source)
    stage_R = np.empty_like(stage_N)
    stage_R[ordered.row_N] = stage_N
    return pl.Series(STAGE_COLUMN, np.array(STAGE_NAMES)[stage_R].tolist(), dtype=pl.String)


def take(version: Version, step: AnyStep, seed: int, name: str) -> tuple[Version, dict[str, Any]]:
    """The version that a step makes, which will be called ``name``, and facts for its manifest.

    Raises:
        LargeRecError: no training row is left, or the step does not fit the log.
    """
    events = version.log.events
    at_R = version.is_training.arg_true().to_numpy()
    rows = events[at_R]
    if not rows.height:
        raise LargeRecError(f"{version.log.source}: there is no training row, so step {step.name} has nothing to work on.")
    training = Training(
        log=replace(version.log, events=rows.drop(BOOKKEEPING, strict=False)),
        until_R=_until(events, at_R),
        weight_R=_weights(rows),
        # Those of removed rows too: they may come back, and an id that meant one person must not mean another.
        user_ids=pl.concat([events["user_id"], version.removed["user_id"]]).unique(maintain_order=True),
        seed=seed,
    )
    change = step.change(training)
    why, idle_R = _spared(events, at_R, change.reasons(rows.height))
    if why.null_count() == 0:
        raise LargeRecError(
            f"{version.log.source}: step {step.name} leaves none of {rows.height:,} training rows. Loosen it: "
            f"{step.model_dump(exclude={'name'})}."
        )
    made, counts = _made(version, rows, at_R, change, why, idle_R, name, step.name)
    assert made.evaluation_hash() == version.evaluation_hash(), "a step touched evaluation rows"
    stage_column(made.log, SplitOptions(protocol="given"))  # raises where a stage would fall within a user
    reasons = dict(why.drop_nulls().value_counts(sort=True).iter_rows())
    return made, {"rows": counts, "reasons": reasons, "facts": change.facts}


def _weights(rows: pl.DataFrame) -> Floats:
    given = rows[WEIGHT_COLUMN] if WEIGHT_COLUMN in rows.columns else pl.Series(np.ones(rows.height))
    weight_R: Floats = given.cast(pl.Float64).to_numpy()
    return weight_R


def _at(events: pl.DataFrame, at_R: Ints) -> pl.Series:
    """Which events are at these places."""
    return pl.Series(np.zeros(events.height, dtype=bool)).scatter(at_R, True)


def _until(events: pl.DataFrame, at_R: Ints) -> Ints:
    """The latest time that each training row may have and still come before what its user is asked [R].

    Where the whole training part lies before the whole evaluation, as under a timeline, no row may pass that moment either.
    """
    table = events.select("user_id", "timestamp").with_row_index("at")
    training = table[at_R]
    held = table.filter(~_at(events, at_R))
    first = held.sort("timestamp", maintain_order=True).group_by("user_id", maintain_order=True).first()
    joined = training.join(first, on="user_id", how="left", maintain_order="left", suffix="_held")
    later = (pl.col("at") > pl.col("at_held")).cast(pl.Int64)  # a tie would put it behind
    until = joined.select((pl.col("timestamp_held") - later).fill_null(NO_LIMIT)).to_series().to_numpy()
    timed = training.filter(pl.col("timestamp") != UNTIMED)["timestamp"]
    if held.height and timed.len() and int(timed.max()) < int(held["timestamp"].min()):  # type: ignore[arg-type]
        until = np.minimum(until, int(held["timestamp"].min()) - 1)  # type: ignore[arg-type]
    return np.asarray(until, dtype=np.int64)


def _spared(events: pl.DataFrame, at_R: Ints, why: pl.Series) -> tuple[pl.Series, Bools]:
    """The reasons, without those for the last row of a user who is asked about and would have none left; and these rows."""
    asked = events.filter(~_at(events, at_R))["user_id"].unique()
    table = events.select("user_id", "timestamp")[at_R].with_columns(why).with_row_index("row")
    stranded = table.filter(pl.col("why").is_not_null().all().over("user_id") & pl.col("user_id").is_in(asked.implode()))
    last = stranded.sort("timestamp", maintain_order=True).group_by("user_id").agg(pl.col("row").last())["row"].to_numpy()
    idle_R = np.zeros(len(at_R), dtype=bool)
    idle_R[last] = True
    return table["why"].set(pl.Series(idle_R), None), idle_R


def _made(
    version: Version, rows: pl.DataFrame, at_R: Ints, change: Change, why: pl.Series, idle_R: Bools, name: str, step: str
) -> tuple[Version, dict[str, int]]:
    """The new version, and counts of what was done."""
    events, stays = version.log.events, why.is_null()
    lines = []
    for column, new in change.columns.items():
        differs = (new != rows[column]) & stays
        lines.append(
            changed_lines(rows[ROW].filter(differs), name, step, column, rows[column].filter(differs), new.filter(differs))
        )
        events = events.with_columns(events[column].clone().scatter(at_R, new))
    weight_R = _weights(rows) * (1.0 if change.factor_R is None else change.factor_R) * ~idle_R
    events = weighed(events, at_R, weight_R)
    kept = pl.Series(np.ones(events.height, dtype=bool)).scatter(at_R[~stays.to_numpy()], False)
    gone = rows.filter(~stays).drop(WEIGHT_COLUMN, strict=False)
    gone = gone.with_columns(pl.lit(name).alias("version"), pl.lit(step).alias("step"), why.drop_nulls().alias("why"))
    counts = {
        "in": rows.height,
        "out": int(stays.sum()),
        "removed": gone.height,
        "changed": sum(line[ROW].n_unique() for line in lines),
        "kept_as_history": int(idle_R.sum()),
        "weight_0": int((weight_R[stays.to_numpy()] == 0).sum()),
    }
    events = events.filter(kept)
    if change.added is not None:
        events = with_added(events, change.added)
        counts["added"] = change.added.height
    made = Version(
        replace(version.log, events=events),
        pl.concat([version.removed, gone.select(version.removed.columns)]),
        pl.concat([version.changed, *lines]),
    )
    return made, counts


def with_added(events: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame:
    """Events and new training rows behind them; columns that these have not are null."""
    assert not added["user_id"].is_in(events["user_id"].implode()).any(), "rows are added for new users alone"
    if WEIGHT_COLUMN in added.columns and WEIGHT_COLUMN not in events.columns:
        events = events.with_columns(pl.lit(1.0).alias(WEIGHT_COLUMN))
    if WEIGHT_COLUMN in events.columns and WEIGHT_COLUMN not in added.columns:
        added = added.with_columns(pl.lit(1.0).alias(WEIGHT_COLUMN))
    added = added.with_columns(pl.lit("train").alias(STAGE_COLUMN), pl.lit(None, pl.Int64).alias(ROW))
    return pl.concat([events, added.cast({n: t for n, t in events.schema.items() if n in added.columns})], how="diagonal")


def weighed(events: pl.DataFrame, at_R: Ints, weight_R: Floats) -> pl.DataFrame:
    """Events with these weights of training rows; no column where all weigh 1 and the log came with none."""
    given = events[WEIGHT_COLUMN] if WEIGHT_COLUMN in events.columns else pl.Series(WEIGHT_COLUMN, np.ones(events.height))
    weights = given.cast(pl.Float64).clone().scatter(at_R, weight_R).alias(WEIGHT_COLUMN)
    if SOURCE_WEIGHT not in events.columns and bool((weights == 1).all()):
        return events.drop(WEIGHT_COLUMN, strict=False)
    return events.with_columns(weights)


def changed_lines(rows: pl.Series, version: str, step: str, column: str, before: pl.Series, after: pl.Series) -> pl.DataFrame:
    """Lines of ``changed.parquet``: the values of one column, as text."""
    texts = (rows.alias(ROW), before.cast(pl.String).alias("before"), after.cast(pl.String).alias("after"))
    table = pl.DataFrame(texts)
    said = (pl.lit(version).alias("version"), pl.lit(step).alias("step"), pl.lit(column).alias("column"))
    return table.with_columns(said).select(ROW, "version", "step", "column", "before", "after")
