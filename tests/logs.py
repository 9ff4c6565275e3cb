"""Small logs that several tests share: written out, random, drawn by hypothesis, and one whose rule is known."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from largerec.events import EventLog, TimeKind

START_MS = 1_600_000_000_000  # 2020-09-13T12:26:40Z
STEPS = 10  # moments that drawn logs have, one minute apart
MINUTE_MS = 60_000
ANCHOR = 0  # a user of drawn logs with an event at every moment, so that every split has something to learn and to ask


def log_of(
    rows: Sequence[tuple[Any, Any, int]], time_kind: TimeKind = "timestamp", behaviors: Sequence[str | None] | None = None
) -> EventLog:
    """A log of (user, item, time) rows in file order; times are milliseconds or ranks as ``time_kind`` says."""
    users, items, times = zip(*rows, strict=True)
    events = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": pl.Series(times, dtype=pl.Int64)})
    if behaviors is not None:
        events = events.with_columns(pl.Series("behavior", behaviors, dtype=pl.String))
    return EventLog(events, None, time_kind, (), "a test's log")


def random_log(seed: int = 0, users: int = 12, items: int = 15, events: int = 150) -> EventLog:
    """Users and items at random, a third of the events at the time of another."""
    rng = np.random.default_rng(seed)
    times = START_MS + rng.integers(events, size=events) * MINUTE_MS
    return log_of(list(zip(rng.integers(users, size=events), rng.integers(items, size=events), times.tolist(), strict=True)))


def chain_log(users: int = 60, items: int = 20, length: int = 12, seed: int = 0) -> EventLog:
    """A known answer: item i is always followed by item i + 1, and the last one by item 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        time = START_MS + int(rng.integers(10_000_000))
        first = int(rng.integers(items))
        for step in range(length):
            rows.append((f"u{user}", f"i{(first + step) % items}", time))
            time += int(rng.integers(1_000, 100_000_000))
    return log_of(rows)


@st.composite
def logs(draw: st.DrawFn, *, time_kinds: Sequence[TimeKind] = ("timestamp", "order"), one_item_each: bool = False) -> EventLog:
    """Random logs with ties in time and users of one or two events, ids of both types, and the anchor's regular history.

    ``one_item_each``: no item comes twice, so that an item names its event.
    """
    kind = draw(st.sampled_from(time_kinds))
    few = st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, STEPS - 1))
    rows = draw(st.lists(few, max_size=25)) + [(ANCHOR, draw(st.integers(0, 6)), step) for step in range(STEPS)]
    rows = draw(st.permutations(rows))
    as_text = draw(st.booleans())
    named = []
    for number, (user, item, step) in enumerate(rows):
        item = number if one_item_each else item
        time = START_MS + step * MINUTE_MS if kind == "timestamp" else step
        named.append((f"user {user}", f"item {item}", time) if as_text else (user, item, time))
    return log_of(named, kind)


def put(folder: Path, **files: bytes) -> Path:
    """Write files; ``__`` in a name stands for a dot."""
    for name, data in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return folder
