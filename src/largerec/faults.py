"""Faults put into a log on purpose, each labelled: bots, duplicates, mis-clicks, clock errors.

For trying how well an audit finds them, and how much a model suffers. The label stands in the column ``hidden_fault``, which no
model reads: null for a sound event, else the name of its fault.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from largerec.columns import UNTIMED, next_ids
from largerec.errors import LargeRecError
from largerec.events import EventLog, TimeKind
from largerec.options import Options

LABEL = "hidden_fault"
BOT_EVENTS = (100, 300)  # events of a bot, from and to
BOT_ITEMS = 5  # that a bot pushes
BOT_PAUSE_MS = 2000  # between two events of a bot, always the same
MISCLICK_MS = 3000  # before the event that was meant
CLOCK_SHIFTS_HOURS = (-8760, -168, -24, -8, 8, 24, 168)  # a clock is off by one of these, or says 1970

Ints = npt.NDArray[np.int64]


class FaultOptions(Options):
    """Shares of faults to put into the log; nothing by default.

    ``bots``: new users, as a share of the users; each has hundreds of events on a few items, at equal pauses. ``duplicates``:
    share of the events that are written twice. ``misclicks``: share of the events that come after one on a random item.
    ``clock_errors``: share of the events with a time whose time is wrong, by hours to a year, or is the clock's zero. All shares
    are of the log as it was. Untimed events stay so, and a mis-click before one is untimed too.
    """

    bots: float = Field(default=0.0, ge=0, le=1)
    duplicates: float = Field(default=0.0, ge=0, le=1)
    misclicks: float = Field(default=0.0, ge=0, le=1)
    clock_errors: float = Field(default=0.0, ge=0, le=1)
    seed: int = Field(default=0, ge=0)

    @property
    def any(self) -> bool:
        return self.bots + self.duplicates + self.misclicks + self.clock_errors > 0


def with_faults(log: EventLog, options: FaultOptions) -> EventLog:
    """A copy of a generated or real log with faults; the same log and options give the same rows.

    Duplicates stand right behind their event, mis-clicks right before theirs, bots at the end. Each kind draws from a seed of its
    own, so that the faults of one kind stay where they are when another is added. Bots and mis-clicks have the log's most
    common behaviour; further columns of a new event are those of the event that it copies.

    Raises:
        LargeRecError: the log has labels already, no clock that could be wrong, or no room for the ids of bots.
    """
    if LABEL in log.events.columns:
        raise LargeRecError(f"{log.source}: the log has a column {LABEL!r} already; put faults into the log without it, once.")
    if options.clock_errors and log.time_kind == "order":
        raise LargeRecError(
            f"{log.source}: data.faults.clock_errors={options.clock_errors:g} needs a clock, but this log has an order only. "
            "Set it to 0, or name a time column with data.columns.time."
        )
    sound = log.events.with_columns(pl.lit(None, dtype=pl.String).alias(LABEL))
    mistimed = _with_clock_errors(sound, options)
    # Places tell where a row goes: event n has 3 n + 1, its mis-click comes before it, its duplicate behind.
    parts = [
        mistimed.with_columns(pl.Series("place", np.arange(sound.height) * 3 + 1)),
        _misclicks(sound, options, log.time_kind),
        _duplicates(sound, options),
        _bots(sound, options, log.time_kind, log.source),
    ]
    events = pl.concat(parts, how="vertical_relaxed").sort("place", maintain_order=True).drop("place")
    counts = {str(name): n for name, n in events[LABEL].drop_nulls().value_counts().sort(LABEL).iter_rows()}
    said = ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "none"
    note = f"faults were put into the log, labelled in {LABEL!r}: {said} (seed {options.seed})"
    return replace(log, events=events, notes=(*log.notes, note))


def _rng(options: FaultOptions, kind: int) -> np.random.Generator:
    return np.random.default_rng([options.seed, kind])


def _chosen(rng: np.random.Generator, count: int, share: float) -> Ints:
    """Row numbers of a share of the rows, in order."""
    return np.sort(rng.choice(count, round(share * count), replace=False))


def _timed(sound: pl.DataFrame) -> Ints:
    """Row numbers of the events that have a time (a rank is one)."""
    rows: Ints = np.flatnonzero(sound["timestamp"].to_numpy() != UNTIMED)
    return rows


def _with_clock_errors(sound: pl.DataFrame, options: FaultOptions) -> pl.DataFrame:
    rng = _rng(options, 0)
    timed = _timed(sound)
    rows = timed[_chosen(rng, len(timed), options.clock_errors)]
    time_N = sound["timestamp"].to_numpy().copy()
    shift = rng.choice(np.array(CLOCK_SHIFTS_HOURS), len(rows)) * 3_600_000
    time_N[rows] = np.where(rng.random(len(rows)) < 0.2, 0, np.maximum(time_N[rows] + shift, 0))
    wrong = np.zeros(sound.height, dtype=bool)
    wrong[rows] = True
    label = pl.when(pl.Series(wrong)).then(pl.lit("clock error")).alias(LABEL)
    return sound.with_columns(pl.Series("timestamp", time_N), label)


def _duplicates(sound: pl.DataFrame, options: FaultOptions) -> pl.DataFrame:
    rows = _chosen(_rng(options, 1), sound.height, options.duplicates)
    return sound[rows].with_columns(pl.lit("duplicate").alias(LABEL), pl.Series("place", rows * 3 + 2))


def _misclicks(sound: pl.DataFrame, options: FaultOptions, time_kind: TimeKind) -> pl.DataFrame:
    rng = _rng(options, 2)
    rows = _chosen(rng, sound.height, options.misclicks)
    items = sound["item_id"].unique(maintain_order=True)
    meant = sound[rows]
    time = pl.col("timestamp")
    early = time if time_kind == "order" else pl.when(time == UNTIMED).then(time).otherwise((time - MISCLICK_MS).clip(0))
    return meant.with_columns(
        items.gather(rng.integers(0, items.len(), len(rows))).alias("item_id"),
        early.alias("timestamp"),
        *_common_behaviour(sound),
        pl.lit("misclick").alias(LABEL),
        pl.Series("place", rows * 3),
    )


def _bots(sound: pl.DataFrame, options: FaultOptions, time_kind: TimeKind, source: str) -> pl.DataFrame:
    """Events of new users: each begins at the time of a timed event of the log and goes round its few items."""
    rng = _rng(options, 3)
    users, items = sound["user_id"].unique(maintain_order=True), sound["item_id"].unique(maintain_order=True)
    bots = round(options.bots * users.len())
    length_B = rng.integers(*BOT_EVENTS, bots, endpoint=True)
    bot_M = np.repeat(np.arange(bots), length_B)  # M events of all bots
    turn_M = np.arange(len(bot_M)) - np.repeat(np.cumsum(length_B) - length_B, length_B)
    timed = _timed(sound)
    if bots and not len(timed):
        raise LargeRecError(
            f"{source}: data.faults.bots={options.bots:g} needs events with a time, at which a bot begins, but no event here has "
            "one. Set it to 0, or give a log with times."
        )
    copied_M = timed[rng.integers(0, len(timed), bots)][bot_M] if bots else bot_M
    item_BK = rng.integers(0, items.len(), (bots, BOT_ITEMS))
    pause = BOT_PAUSE_MS if time_kind == "timestamp" else 1
    return sound[copied_M].with_columns(
        fresh_ids(users, bots).gather(bot_M).alias("user_id"),
        items.gather(item_BK[bot_M, turn_M % BOT_ITEMS]).alias("item_id"),
        pl.col("timestamp") + pl.Series(turn_M * pause),
        *_common_behaviour(sound),
        pl.lit("bot").alias(LABEL),
        pl.Series("place", np.full(len(bot_M), sound.height * 3)),
    )


def _common_behaviour(sound: pl.DataFrame) -> list[pl.Expr]:
    if "behavior" not in sound.columns:
        return []
    names = sound["behavior"].value_counts().sort("count", "behavior", descending=[True, False])["behavior"]
    return [pl.lit(names[0], dtype=pl.String).alias("behavior")]


def fresh_ids(users: pl.Series, count: int) -> pl.Series:
    """Ids that no user has, of the same type: the next integers (Int64 where a narrower type is full), or "bot 0" and so on."""
    if users.dtype.is_integer():
        return next_ids(users, count)
    known, number = set(users.to_list()), itertools.count()
    fresh = (name for name in (f"bot {n}" for n in number) if name not in known)
    return pl.Series(list(itertools.islice(fresh, count)), dtype=pl.String)
