"""What an import may do to a log, each step reported: repeats out, a window of time, a sample of users, a k-core."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from largerec.columns import UNTIMED, iso_time
from largerec.errors import LargeRecError
from largerec.events import EventLog


@dataclass(frozen=True)
class Steps:
    """Which steps to take, in the order of the fields.

    ``dedupe``: keep the first of the events that agree in user, item, time and behaviour. ``since``, ``until``: ISO dates in UTC,
    the first within, the second without; events without a time stay. ``sample_users``: how many users to keep (a share when below
    1), drawn with ``seed``. ``k_core``: drop users and items with fewer events than this, again and again, until all left
    have as many.
    """

    dedupe: bool = False
    since: str | None = None
    until: str | None = None
    sample_users: float | None = None
    seed: int = 0
    k_core: int | None = None


def apply(log: EventLog, steps: Steps) -> tuple[EventLog, list[dict[str, Any]]]:
    """Take the steps; return the log, with their notes, and a report of each: its settings, and counts before and after.

    Raises:
        LargeRecError: a setting does not fit the log, or a step would leave no event.
    """
    reports = []
    for name, settings, events, note in _results(log, steps):
        if events.height == 0:
            raise LargeRecError(f"{log.source}: step {name} {settings} leaves none of {log.events.height:,} events. Loosen it.")
        counts = {
            part: {"events": table.height, "users": table["user_id"].n_unique(), "items": table["item_id"].n_unique()}
            for part, table in (("before", log.events), ("after", events))
        }
        reports.append({"step": name, **settings, **counts})
        log = replace(log, events=events, notes=(*log.notes, note))
    return log, reports


def _results(log: EventLog, steps: Steps) -> Iterator[tuple[str, dict[str, Any], pl.DataFrame, str]]:
    events = log.events
    if steps.dedupe:
        events, before = _deduplicated(events), events
        yield "dedupe", {}, events, f"{before.height - events.height:,} events repeat user, item, time and behaviour: dropped"
    if steps.since is not None or steps.until is not None:
        window = {"since": steps.since, "until": steps.until}
        events, before = _window(events, steps, log), events
        untimed = int((events["timestamp"] == UNTIMED).sum())
        note = f"{before.height - events.height:,} events are outside {_told(window)}: dropped"
        note += f"; {untimed:,} events without a time stay" if untimed else ""
        yield "window", window | ({"untimed_kept": untimed} if untimed else {}), events, note
    if steps.sample_users is not None:
        settings = {"users": steps.sample_users, "seed": steps.seed}
        events, before = _sampled(events, steps.sample_users, steps.seed), events
        users = events["user_id"].n_unique()
        yield (
            "sample-users",
            settings,
            events,
            f"{users:,} of {before['user_id'].n_unique():,} users are drawn (seed {steps.seed})",
        )
    if steps.k_core is not None:
        events, rounds = core(events, steps.k_core)
        note = f"{steps.k_core}-core, stable after {rounds} rounds: {events.height:,} events are left"
        yield "k-core", {"k": steps.k_core, "rounds": rounds}, events, note


def _told(window: dict[str, str | None]) -> str:
    return " and ".join(f"{name} {moment}" for name, moment in window.items() if moment is not None)


def _deduplicated(events: pl.DataFrame) -> pl.DataFrame:
    """Keep first ones. Events without a time may well be several watches of one item, so they are all kept."""
    key = [name for name in ("user_id", "item_id", "timestamp", "behavior") if name in events.columns]
    first = pl.int_range(pl.len()).over(key) == 0
    return events.filter(first | (pl.col("timestamp") == UNTIMED))


def _window(events: pl.DataFrame, steps: Steps, log: EventLog) -> pl.DataFrame:
    if log.time_kind != "timestamp":
        raise LargeRecError(
            f"{log.source}: a window of time ({_told({'since': steps.since, 'until': steps.until})}) needs a clock, but this log "
            "has an order only. Leave --from and --until out, or name a time column with data.columns.time."
        )
    times = events["timestamp"].filter(events["timestamp"] != UNTIMED)
    if not times.len():
        raise LargeRecError(f"{log.source}: no event has a time, so there is no window of time. Leave --from and --until out.")
    inside = pl.col("timestamp") != UNTIMED
    if steps.since is not None:
        inside &= pl.col("timestamp") >= _moment(steps.since, "--from")
    if steps.until is not None:
        inside &= pl.col("timestamp") < _moment(steps.until, "--until")
    # When an untimed event was is not known, so no window leaves it out; but a window that holds nothing else is a mistake.
    if not events.select(inside.any()).item():
        raise LargeRecError(
            f"{log.source}: no event is {_told({'since': steps.since, 'until': steps.until})}; the log runs from "
            f"{iso_time(int(times.min() or 0))} to {iso_time(int(times.max() or 0))}."  # type: ignore[arg-type]
        )
    return events.filter(inside | (pl.col("timestamp") == UNTIMED))


def _moment(text: str, flag: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise LargeRecError(f'{flag} {text!r} is no ISO date; write for example "2017-10-15" or "2017-10-15T12:00".') from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _sampled(events: pl.DataFrame, wanted: float, seed: int) -> pl.DataFrame:
    users = events["user_id"].unique().sort()
    if not 0 < wanted < math.inf or (wanted > 1 and wanted != int(wanted)):
        raise LargeRecError(f"--sample-users {wanted} is neither a number of users nor a share. Give for example 1000 or 0.1.")
    if seed < 0:
        raise LargeRecError(f"--seed {seed}: a seed is a whole number of 0 or more. Give for example 0.")
    count = min(users.len(), int(wanted) if wanted >= 1 else max(1, round(wanted * users.len())))
    drawn = np.sort(np.random.default_rng(seed).permutation(users.len())[:count])
    return events.filter(pl.col("user_id").is_in(users.gather(drawn).implode()))


def core(events: pl.DataFrame, k: int) -> tuple[pl.DataFrame, int]:
    if k < 1:
        raise LargeRecError(f"--k-core {k}: give a number of events of 1 or more; 5 is usual.")
    rounds = 0
    while True:
        enough = (pl.len().over("user_id") >= k) & (pl.len().over("item_id") >= k)
        kept = events.filter(enough)
        rounds += 1
        if kept.height == events.height:
            return kept, rounds
        events = kept
