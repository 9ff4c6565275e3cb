"""Versions of a log: folders that chain, each with its data, what was removed and changed so far, and a manifest with hashes.

A version's folder is also a log that every verb reads: ``events.parquet`` with the columns ``stage`` (train, validation, test,
after), ``source_row`` (the row of the log that was read first, from 1) and, once something is weighed, ``train_weight``; and
``removed.parquet`` and ``changed.parquet``, which hold everything since the first version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import polars as pl

from largerec import manifest
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.sequences import STAGE_COLUMN, STAGE_NAMES, WEIGHT_COLUMN, checked_weights

FORMAT = 1
ROW = "source_row"
SOURCE_WEIGHT = "source_weight"  # train_weight as the log came with it
MADE = "regenerated"  # true in rows that a step made, null in others
BOOKKEEPING = (ROW, STAGE_COLUMN, WEIGHT_COLUMN, SOURCE_WEIGHT)
WHEN = ("version", "step", "why")  # columns that removed.parquet has beside those of the events
CHANGED = {ROW: pl.Int64, "version": pl.String, "step": pl.String, "column": pl.String, "before": pl.String, "after": pl.String}


@dataclass(frozen=True)
class Version:
    """The tables of a version.

    Attributes:
        log: the events, with the columns of versions, and the items.
        removed: rows that are gone, as they were when they went (without ``train_weight``), with version, step and why.
        changed: one line for each value that a step changed, before and after as text.
    """

    log: EventLog
    removed: pl.DataFrame
    changed: pl.DataFrame

    @property
    def is_training(self) -> pl.Series:
        """Which events are training rows."""
        return self.log.events[STAGE_COLUMN] == "train"

    def evaluation_hash(self) -> str:
        """A SHA-256 of all rows that are not training: the same in every version of a chain."""
        rows = self.log.events.filter(~self.is_training)
        return manifest.content_hash(rows.drop(WEIGHT_COLUMN, MADE, strict=False))


def refuse_own(log: EventLog, added: Sequence[str]) -> None:
    """Refuse a log with a column of its own where one of that name is added, which would write over it.

    Raises:
        LargeRecError: the log has such a column.
    """
    taken = [name for name in added if name in log.events.columns]
    if taken:
        given = (
            ' (or, if it is the split, say so: protocol = "given" under [split] of the plan)' if taken[0] == STAGE_COLUMN else ""
        )
        raise LargeRecError(
            f"{log.source}: the log has a column {taken[0]!r} of its own, and one of that name is added, so its values would be "
            f"lost. Rename it in the file, or leave it out{given}: "
            f"pl.read_csv(FILE).rename({{{taken[0]!r}: '{taken[0]}_of_event'}}).write_csv(FILE)."
        )


def first_version(log: EventLog, stage: pl.Series, *, given: bool = False) -> Version:
    """A log as version 0: numbered rows and stages; ``given``: the stages are those of the log's own column.

    Raises:
        LargeRecError: the log has one of the columns that versions add, or a weight that is none.
    """
    refuse_own(log, (ROW, SOURCE_WEIGHT, MADE, *WHEN, *(() if given else (STAGE_COLUMN,))))
    events = log.events.drop(STAGE_COLUMN, strict=False).with_columns(
        stage.alias(STAGE_COLUMN), pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW)
    )
    if WEIGHT_COLUMN in events.columns:
        checked_weights(events[WEIGHT_COLUMN], log.source)
        events = events.with_columns(pl.col(WEIGHT_COLUMN).cast(pl.Float64)).with_columns(
            pl.col(WEIGHT_COLUMN).alias(SOURCE_WEIGHT)
        )
    if events["user_id"].dtype.is_integer() and events["user_id"].dtype != pl.UInt64:
        events = events.with_columns(pl.col("user_id").cast(pl.Int64))  # so that there is room for the ids of new users
    log = replace(log, events=events)
    removed = events.clear().drop(WEIGHT_COLUMN, strict=False).with_columns(pl.lit(None, pl.String).alias(name) for name in WHEN)
    return Version(log, removed, pl.DataFrame(schema=CHANGED))


def key_of(content: str, step: dict[str, Any], seed: int) -> str:
    """What a version is: the content that a step was given, the step's options and revision, and its seed.

    A step whose outcome changed from one LargeRec to the next has a ``revision``, a class variable: what the older one made is
    then another version and is not found again in its place.
    """
    said = json.dumps({"format": FORMAT, "content": content, "step": step, "seed": seed}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def is_version(folder: Path) -> bool:
    """Whether a folder is a version."""
    document = manifest.read(folder) if folder.is_dir() else None
    return document is not None and document.get("kind") == "version"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a version.

    Raises:
        LargeRecError: the folder is none, or of another format.
    """
    document = manifest.read(folder) if folder.is_dir() else None
    if document is None or document.get("kind") != "version":
        raise LargeRecError(f"{folder} is no version of a log; give a folder that `largerec curate` made.")
    if document["version"].get("format") != FORMAT:
        raise LargeRecError(
            f"{folder}: a version of format {document['version'].get('format')!r}; this LargeRec reads {FORMAT}. Curate again."
        )
    return document


def read(folder: Path) -> Version:
    """Read a version; its files are checked against the manifest.

    Raises:
        LargeRecError: the folder is no version, or a file is missing or has changed.
    """
    read_manifest(folder)
    log = load_log(DataOptions(path=str(folder)))
    return Version(log, *(pl.read_parquet(folder / f"{name}.parquet", glob=False) for name in ("removed", "changed")))


def write(root: Path, name: str, version: Version, facts: dict[str, Any]) -> dict[str, Any]:
    """Write a version into ``root / name``, which appears whole or not at all; return its manifest."""
    folder = root / name
    try:
        with manifest.appearing(folder) as fresh:
            return write_tables(fresh, version, facts)
    except OSError as error:
        if is_version(folder):  # another command was there first; by its name it is the same version
            return read_manifest(folder)
        raise LargeRecError(f"{folder}: the version cannot be written ({error}). Give another folder with --to.") from error


def write_tables(folder: Path, version: Version, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the tables of a version and its manifest into a folder; return the manifest."""
    log = version.log
    log.write(folder / "events.parquet")
    version.removed.write_parquet(folder / "removed.parquet")
    version.changed.write_parquet(folder / "changed.parquet")
    events = log.events
    stages = dict(events[STAGE_COLUMN].value_counts().iter_rows())
    removed = version.removed.group_by("version", "step").len().sort("version").iter_rows()
    document = {
        "largerec": version_of("largerec"),
        "kind": "version",
        **facts,
        "time_kind": log.time_kind,
        "events": events.height,
        "users": events["user_id"].n_unique(),
        "items": events["item_id"].n_unique(),
        "stages": {stage: stages[stage] for stage in STAGE_NAMES if stage in stages},
        "removed": {name: count for name, _, count in removed},
        "evaluation": version.evaluation_hash(),
        "content": manifest.content_hash(events, log.items),
    }
    names = ["events.parquet", "events.items.parquet", "removed.parquet", "changed.parquet"]
    return manifest.write(folder, document, [folder / name for name in names if (folder / name).is_file()])


def chain(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Names and manifests of a version and those that it was made from, the first one first, as far as they are still there.

    Raises:
        LargeRecError: a folder is no version, or is said to be made from itself.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    while True:
        document = read_manifest(folder)
        found.insert(0, (folder.name, document))
        parent = document["version"].get("parent")
        if parent is None or not is_version(folder.parent / parent["name"]):
            return found
        if parent["name"] in {name for name, _ in found}:
            raise LargeRecError(
                f"{folder / manifest.MANIFEST}: the parent is said to be {parent['name']!r}, which was itself made from this "
                "version, so the manifest was changed by hand. Put the version back as it was, or curate again."
            )
        folder = folder.parent / parent["name"]
