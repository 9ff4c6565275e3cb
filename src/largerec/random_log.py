"""A log of what was shown at random, to be tested apart: no policy chose its items, so its plain metrics have no exposure bias.

Nothing is learned from it, and it is no history: its rows are asked about with what the ordinary log says of their users before
them. KuaiRand's ``log_random_*.csv`` is one (Gao et al. 2022, "KuaiRand: an unbiased sequential recommendation dataset with
randomly exposed videos").
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.sequences import STAGES, TASK_COLUMN, Sequences, SplitOptions
from largerec.tasks import UNKNOWN, TaskOptions, condition, task_values


def random_table(log: EventLog, split: SplitOptions, tasks: Mapping[str, TaskOptions], sequences: Sequences) -> pl.DataFrame:
    """The rows of a random log from the first to the last moment of the test part, in time order: ids, ``timestamp``,
    ``positive`` and ``task.NAME``, cut at the edges that training values gave.

    Raises:
        LargeRecError: the split is no timeline, a log has no clock, no row is in the test part, or an expression is wrong.
    """
    if split.protocol != "timeline" or "order" in (log.time_kind, sequences.time_kind):
        raise LargeRecError(
            "data.random is asked about in the period of the test, so it needs split.protocol=timeline and logs with a clock."
        )
    time_N = sequences.time_N[sequences.stage_N == STAGES["test"]]
    columns = {"user_id": log.events["user_id"], "item_id": log.events["item_id"], "timestamp": log.events["timestamp"]}
    table = pl.DataFrame(columns)
    if tasks:
        value_NA = task_values(log.events, tasks)
        for column, (name, task) in enumerate(tasks.items()):
            value_R = value_NA[:, column]
            cut = np.asarray(sequences.edges[name]) if task.where is None else np.array([0.5])
            label_R = np.where(np.isnan(value_R), UNKNOWN, np.searchsorted(cut, value_R, side="right"))
            table = table.with_columns(pl.Series(f"{TASK_COLUMN}{name}", label_R))
    positive = pl.Series(np.ones(len(table), dtype=bool))
    if split.positives is not None:
        positive = condition(log.events, split.positives, "split.positives").fill_null(False)
    table = table.with_columns(positive.alias("positive"))
    kept = table.filter(pl.col("timestamp").is_between(int(time_N.min()), int(time_N.max())))
    if not len(kept):
        raise LargeRecError(
            f"{log.source}: none of the {len(table):,} rows of data.random is in the period of the test; move the split."
        )
    return kept.sort("timestamp", maintain_order=True)
