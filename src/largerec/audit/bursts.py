"""Items that get very many events within an hour: from a few users a push, from many a surge of interest.

Only moves count, as for bots: who clicks through the pictures of one item for an hour has come to it once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from largerec.audit.bots import moves
from largerec.audit.findings import Finding, Severity, counted, curate_command
from largerec.audit.ordered import HOUR, Ordered
from largerec.columns import UNTIMED, iso_time

FEWEST = 50  # events of an item within an hour
TIMES = 10.0  # as many as in its mean active hour,
MOST = 0.5  # or so much of all its events
FEW_USERS = 0.2  # different users an event, at most: a push
# Name, whether it is a push, severity, what it means, what mends it.
SORTS: tuple[tuple[str, bool, Severity, str, str], ...] = (
    (
        "pushed items", True, "warn", f"from few users (at most {FEW_USERS:g} an event): a push by programs or by hand",
        "Leave these events out.",
    ),
    (
        "surges", False, "info", "from many users: news, a campaign, a position on the front page",
        "No fault. A model with time sees it; popularity of the whole log does not.",
    ),
)  # fmt: skip


def bursts(log: Ordered) -> pl.DataFrame:
    """Hours of items with a burst of moves: ``item``, ``hour`` (ms), ``events``, ``users``, ``push``, the largest first."""
    log = moves(log)
    hour_N = log.time_N // HOUR
    kept_N = (log.count_V >= FEWEST)[log.item_N] & (hour_N >= UNTIMED + 1)
    item_N, user_N, hour_N = log.item_N[kept_N], log.user_N[kept_N], hour_N[kept_N]
    # Items and hours as one number: sorting those takes less memory than grouping rows by the pair.
    first, span = (int(hour_N.min()), int(np.ptp(hour_N)) + 1) if len(hour_N) else (0, 1)
    key_N = item_N.astype(np.int64) * span + (hour_N - first)
    key_K, events_K = np.unique(key_N, return_counts=True)
    item_K = key_K // span
    total_V, hours_V = np.bincount(item_K, weights=events_K), np.bincount(item_K)
    many_K = (events_K * hours_V[item_K] >= TIMES * total_V[item_K]) | (events_K >= MOST * total_V[item_K])
    many_K &= events_K >= FEWEST
    key_K, item_K, events_K = key_K[many_K], item_K[many_K], events_K[many_K]
    hours = pl.DataFrame({"key": key_K, "item": item_K, "hour": key_K % span + first, "events": events_K})
    at_N = np.isin(key_N, key_K)
    users = pl.DataFrame({"key": key_N[at_N], "user": user_N[at_N]})
    found = hours.join(users.group_by("key").agg(users=pl.col("user").n_unique()), on="key").drop("key")
    return found.with_columns(
        (pl.col("hour") * HOUR).alias("hour"), (pl.col("users") <= FEW_USERS * pl.col("events")).alias("push")
    ).sort("events", "item", "hour", descending=[True, False, False])


def findings(log: Ordered, data: Sequence[str]) -> list[Finding]:
    """Pushes and surges."""
    if not log.tells(HOUR):
        return []
    found, every = [], bursts(log)
    for name, push, severity, meaning, cure in SORTS:
        some = every.filter(pl.col("push") == push)
        if not some.height:
            continue
        events = int(some["events"].sum())
        examples = [
            {"item_id": log.item_ids[row["item"]], "hour": iso_time(row["hour"]), "events": row["events"], "users": row["users"]}
            for row in some.head(5).iter_rows(named=True)
        ]
        items = some["item"].n_unique()
        said = (
            f"{counted(items, 'items')} had an hour with at least {FEWEST} events, ten times their mean or half of all, "
            f"{meaning}; {events:,} events in all."
        )
        of = len(log.item_ids)
        found.append(
            Finding(
                name,
                "fault",
                severity,
                items,
                "items",
                of,
                said,
                cure,
                curate_command(data, "bursts") if push else None,
                examples,
                {"events": events},
            )
        )
    return found
