"""Labelled faults in the training rows of a log alone: what is evaluated stays as it was."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.faults import LABEL, FaultOptions, fresh_ids, with_faults
from largerec.sequences import STAGE_COLUMN

SOUND_TIME = "time_before_faults"


def with_training_faults(log: EventLog, options: FaultOptions) -> EventLog:
    """A copy of a log with a column ``stage`` and faults among its training rows, which come first; the other rows are untouched.

    Shares are of the training rows. A clock error that would put a training event behind what its user is asked goes the other
    way, into the past. Bots are new users of training alone.

    Raises:
        LargeRecError: the log has no stages, or as :func:`largerec.faults.with_faults`.
    """
    if STAGE_COLUMN not in log.events.columns:
        raise LargeRecError(
            f"{log.source}: faults go into training rows, but the log has no column {STAGE_COLUMN!r} that names them."
        )
    is_training = log.events[STAGE_COLUMN] == "train"
    rows, held = log.events.filter(is_training), log.events.filter(~is_training)
    sound = replace(log, events=rows.with_columns(pl.col("timestamp").alias(SOUND_TIME)))
    faulty = with_faults(sound, options)
    held = held.with_columns(pl.col("user_id").cast(faulty.events.schema["user_id"]))  # bots may have widened it
    events = _before_what_is_asked(faulty.events, held).drop(SOUND_TIME)
    events = _without_known_ids(events, rows["user_id"], held["user_id"])
    held = held.with_columns(pl.lit(None, dtype=pl.String).alias(LABEL), pl.col("user_id").cast(events.schema["user_id"]))
    held = held.select(events.columns)
    return replace(faulty, events=pl.concat([events, held]))


def _before_what_is_asked(events: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    first = held.group_by("user_id").agg(pl.col("timestamp").min().alias("asked_from"))
    late = pl.col("timestamp") > pl.col("asked_from")
    earlier = (2 * pl.col(SOUND_TIME) - pl.col("timestamp")).clip(0)
    joined = events.join(first, on="user_id", how="left", maintain_order="left")
    moved = pl.when(late.fill_null(False) & (pl.col(LABEL) == "clock error")).then(earlier).otherwise(pl.col("timestamp"))
    return joined.with_columns(moved.alias("timestamp")).drop("asked_from")


def _without_known_ids(events: pl.DataFrame, training: pl.Series, held: pl.Series) -> pl.DataFrame:
    """Bots have ids that no training user has; give those another that only evaluated users have."""
    bots = events.filter(pl.col(LABEL) == "bot")["user_id"].unique(maintain_order=True)
    taken = bots.filter(bots.is_in(held.implode()))
    if not taken.len():
        return events
    names = fresh_ids(pl.concat([training, held, bots]).unique(maintain_order=True), taken.len())
    wide = pl.col("user_id").cast(names.dtype)
    return events.with_columns(wide.replace(taken.cast(names.dtype), names).alias("user_id"))
