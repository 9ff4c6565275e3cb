"""From a log, its items and a file of users to the features of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from largerec.badrows import Origin
from largerec.columns import ALIASES, convert_ids, find_columns
from largerec.errors import LargeRecError, nearest
from largerec.events import EventLog
from largerec.features import FeatureOptions, Features, Side, fit_field
from largerec.moments import CLOCK, clock_columns
from largerec.options import expanded
from largerec.outcomes import refuse_outcomes
from largerec.readers import read_table
from largerec.sequences import STAGE_COLUMN, TRAIN, WEIGHT_COLUMN, Sequences
from largerec.tasks import TaskOptions

KNOWN_USERS = (
    "user_features_pure.csv",
    "user_features_1k.csv",
    "user_features_27k.csv",
    "users.parquet",
    "users.csv",
    "users.dat",
    "u.user",
)


def build_features(
    log: EventLog,
    sequences: Sequences,
    item_ids: pl.Series,
    options: FeatureOptions,
    tasks: Mapping[str, TaskOptions],
    positives: str | None = None,
    path: str | None = None,
) -> Features:
    """Read the columns of a recipe's features and learn their values from training events.

    Args:
        log: the log that ``sequences`` were built from.
        item_ids: the catalogue in token order.
        tasks: whose columns may not be features; ``positives`` likewise.
        path: of the log; the file of users is looked for beside it.

    Raises:
        LargeRecError: a column is not there, says the answer, or tells nothing in training; the file of users is missing.
    """
    answers = {f"tasks.{name}": _columns_of(task.where or task.quantiles_of or "") for name, task in tasks.items()}
    refuse_outcomes(options, answers | ({"split.positives": _columns_of(positives)} if positives else {}))
    trained_N = sequences.stage_N == TRAIN
    token_of_item = dict(zip(item_ids.to_list(), range(len(item_ids)), strict=True))
    token_N = np.array([token_of_item.get(item, -1) for item in sequences.item_ids.to_list()])[sequences.item_N]
    weights: dict[Side, np.ndarray] = {
        "context": trained_N.astype(np.int64),
        "user": np.bincount(sequences.user_N[trained_N], minlength=sequences.n_users),
        "item": np.bincount(token_N[trained_N], minlength=len(item_ids)),
    }
    tables: dict[Side, pl.DataFrame] = {
        "context": _context(log, sequences, options),
        "user": _users(sequences.user_ids, options, path),
        "item": _items(log.items, item_ids, options),
    }
    fields = [
        fit_field(side, column, asked, tables[side][column], weights[side], options)
        for side in tables
        for column, asked in options.columns(side).items()
    ]
    return Features(tuple(fields), tables, options.width)


def _columns_of(expression: str) -> tuple[str, ...]:
    return tuple(pl.sql_expr(expression).meta.root_names())


def _context(log: EventLog, sequences: Sequences, options: FeatureOptions) -> pl.DataFrame:
    """Context columns of every event of the sequences."""
    assert sequences.log_row_N is not None, "these sequences were not built from a log"
    clock = [name for name in options.context if name in CLOCK and name not in log.events.columns]
    if clock and sequences.time_kind == "order":
        raise LargeRecError(f"features.context names {clock[0]!r}, but this log has an order and no clock; leave it out.")
    given = [name for name in options.context if name not in clock]
    for name in given:
        if name in (STAGE_COLUMN, WEIGHT_COLUMN):
            raise LargeRecError(f"features.context names {name!r}, which says what an event is used for; leave it out.")
    _refuse_missing(
        "context", given, log.events.columns, "the log's events", f" Of the time there are also {' and '.join(CLOCK)}."
    )
    # What the clock makes is Int8; columns of the log with such a name are not, so that they are told apart where they are kept.
    own = [pl.col(name).cast(pl.Int64) if name in CLOCK and log.events.schema[name] == pl.Int8 else name for name in given]
    table = log.events.select(own)[sequences.log_row_N] if given else pl.DataFrame()
    return pl.DataFrame(
        [*table.get_columns(), *(s.alias(n) for n, s in clock_columns(dict.fromkeys(clock), sequences.time_N).items())]
    )


def _users(user_ids: pl.Series, options: FeatureOptions, path: str | None) -> pl.DataFrame:
    """Columns of every user of the sequences; ``user_id`` needs no file."""
    table = pl.DataFrame({"user_id": user_ids})
    names = [name for name in options.user if name != "user_id"]
    if names:
        file = _users_file(options.users, path)
        users = _user_table(file, user_ids.dtype)
        _refuse_missing("user", names, users.columns, f"{file.name}")
        table = table.join(users.select("user_id", *names), on="user_id", how="left", maintain_order="left")
    return table.select(list(options.user))


def _users_file(asked: str | None, path: str | None) -> Path:
    log = None if path is None else expanded(path, "data.path")
    folder = None if log is None else log if log.is_dir() else log.parent
    if asked is not None:
        given = expanded(asked, "features.users")
        found = next((file for file in (given, *([folder / given] if folder else [])) if file.is_file()), None)
        if found is None:
            raise LargeRecError(f"features.users={asked}: there is no such file, nor beside the log. Give the file of users.")
        return found
    for name in KNOWN_USERS if folder is not None else ():
        for file in (folder / name, folder / f"{name}.gz"):  # type: ignore[operator]
            if file.is_file():
                return file
    raise LargeRecError(
        "features.user names columns of users, and no file of users is known; name it with features.users=FILE. Beside the "
        f"log are recognised: {', '.join(KNOWN_USERS)}, also with .gz."
    )


def _user_table(file: Path, kind: pl.DataType) -> pl.DataFrame:
    """A file of users with their ids in the log's type; of users that it repeats, the first row."""
    frame = read_table(file).frame
    found = find_columns(frame.columns, (*ALIASES["user"], "id"))
    if not found:
        raise LargeRecError(f"{file}: no column is recognised as the user; it has {', '.join(frame.columns)}. Name it 'user_id'.")
    ids, _ = convert_ids(frame[found[0]], "user", Origin(str(file)))
    rest = [series for series in frame.get_columns() if series.name not in (found[0], "user_id")]
    users = pl.DataFrame([ids.cast(kind, strict=False).alias("user_id"), *rest])
    return users.drop_nulls("user_id").unique("user_id", keep="first", maintain_order=True)


def _items(items: pl.DataFrame | None, item_ids: pl.Series, options: FeatureOptions) -> pl.DataFrame:
    """Columns of every item of the catalogue."""
    table = pl.DataFrame({"item_id": item_ids})
    if not options.item:
        return table.select([])
    if items is None:
        raise LargeRecError(
            "features.item needs a table of items, and the log has none; name its file with data.items, or leave it out."
        )
    _refuse_missing("item", list(options.item), [name for name in items.columns if name != "item_id"], "the log's items")
    known = items.unique("item_id", keep="first", maintain_order=True).select("item_id", *options.item)
    return table.join(known, on="item_id", how="left", maintain_order="left").select(list(options.item))


def _refuse_missing(side: str, names: list[str], there: list[str], what: str, more: str = "") -> None:
    for name in names:
        if name not in there:
            raise LargeRecError(
                f"features.{side} names {name!r}, which {what} do not have{nearest(name, there)} They have: "
                f"{', '.join(there)}.{more}"
            )
