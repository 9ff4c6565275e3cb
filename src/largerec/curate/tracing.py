"""What happened to a row, and putting rows back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from largerec import manifest
from largerec.curate import versions
from largerec.curate.rows import BESIDE
from largerec.curate.taking import changed_lines, stage_column, weighed
from largerec.curate.versions import MADE, ROW, SOURCE_WEIGHT, WHEN, Version
from largerec.errors import LargeRecError
from largerec.options import expanded
from largerec.sequences import STAGE_COLUMN, WEIGHT_COLUMN, SplitOptions

MADE_UP = "a step made it: it is no row of the log"


@dataclass(frozen=True)
class Named:
    """Which rows are meant: by number in the log that was read first (from 1), by user, by item, by step; or all of them.

    Where several are given, a row that any of them names is meant. Ids are compared as text.
    """

    rows: Sequence[int] = ()
    user_id: str | None = None
    item_id: str | None = None
    step: str | None = None
    everything: bool = False

    def rows_of(self, version: Version, weighed: pl.Series | None = None) -> pl.Series:
        """The numbers of the rows, in order, those that are gone too; without those that the step only weighed (``weighed``).

        Raises:
            LargeRecError: nothing is named, or what is named is not there.
        """
        events = version.log.events
        known = pl.concat([table.select(ROW, "user_id", "item_id") for table in (events, version.removed)])
        made, known = known.filter(pl.col(ROW).is_null()), known.drop_nulls(ROW)
        removed, changed = version.removed.drop_nulls(ROW), version.changed.drop_nulls(ROW)
        whose = changed.filter(pl.col("column") == "user_id")
        parts = []
        if self.everything:
            parts.append(known[ROW])
        if self.rows:
            wanted = pl.Series([min(row, 2**63 - 1) for row in self.rows], dtype=pl.Int64)  # no log has as many
            missing = wanted.filter(~wanted.is_in(known[ROW].implode()))
            if missing.len():
                raise LargeRecError(f"there is no row {missing[0]}; rows are numbered from 1 as in the log that was read first.")
            parts.append(wanted)
        for column, given in (("user_id", self.user_id), ("item_id", self.item_id)):
            if given is None:
                continue
            own = known.filter(pl.col(column).cast(pl.String) == given)[ROW]
            if column == "user_id":
                own = pl.concat([own, whose.filter(pl.col("before") == given)[ROW]])
            if not own.len() and made[column].cast(pl.String).eq(given).any():
                raise LargeRecError(
                    f"the rows with {column} {given!r} were made by a step and are no rows of the log, so there is nothing that "
                    "they were before; `largerec data restore --all` takes them out."
                )
            if not own.len():
                raise LargeRecError(f"no row, kept or removed, has {column} {given!r}.")
            parts.append(own)
        if self.step is not None:
            own = pl.concat([table.filter(pl.col("step") == self.step)[ROW] for table in (removed, changed)])
            if not own.len() and (weighed is None or not weighed.len()):
                steps = sorted({*removed["step"], *changed["step"]})
                raise LargeRecError(
                    f"no row was removed, changed or weighed by a step {self.step!r}; rows were removed or changed by: "
                    f"{', '.join(steps) or 'none'}."
                )
            parts.append(own)
        if not parts:
            raise LargeRecError("say which rows are meant: --row N, --user-id U, --item-id I or --step NAME.")
        return pl.concat(parts).unique().sort()


def trace(folder: str | Path, named: Named) -> dict[str, Any]:
    """What each step of a version's chain did to the named rows.

    Raises:
        LargeRecError: the folder is no version, or nothing of that name is there.
    """
    folder = expanded(folder, "VERSION").resolve()
    version = versions.read(folder)
    weighed_rows = _weighed_by(folder, named.step)[ROW]
    rows = pl.concat([named.rows_of(version, weighed_rows), weighed_rows]).unique().sort()
    chosen = pl.col(ROW).is_in(rows.implode())
    kept = version.log.events.filter(chosen)
    removed = version.removed.filter(chosen)
    history: dict[int, list[dict[str, Any]]] = {row: [] for row in rows}
    for line in version.changed.filter(chosen).iter_rows(named=True):
        what = {"what": "restored"} if line["column"] == ROW else {"what": "changed", "column": line["column"]}
        history[line[ROW]].append({**_where(line), **what, "before": line["before"], "after": line["after"]})
    for line in removed.iter_rows(named=True):
        history[line[ROW]].append({**_where(line), "what": "removed", "why": line["why"]})
    for line in _weights_along(folder, rows):
        history[line.pop(ROW)].append(line)
    table = pl.concat([kept, removed.drop(*WHEN)], how="diagonal").sort(ROW)
    gone = set(removed[ROW])
    found = [
        {
            "row": event[ROW],
            **{name: event[name] for name in ("user_id", "item_id", "timestamp", STAGE_COLUMN)},
            "now": "removed" if event[ROW] in gone else "kept",
            "weight": None if event[ROW] in gone else event.get(WEIGHT_COLUMN, 1.0),
            "history": sorted(history[event[ROW]], key=lambda one: one["version"]),
        }
        for event in table.iter_rows(named=True)
    ]
    return {"version": str(folder), "rows": len(found), "removed": len(gone), "found": found}


def _where(line: dict[str, Any]) -> dict[str, Any]:
    return {"version": line["version"], "step": line["step"]}


def _weights_along(folder: Path, rows: pl.Series) -> list[dict[str, Any]]:
    """Where in the chain the weight of these rows changed."""
    found: list[dict[str, Any]] = []
    before: dict[int, float] = {}
    for name, document in versions.chain(folder):
        table = pl.read_parquet(folder.parent / name / "events.parquet", glob=False).filter(pl.col(ROW).is_in(rows.implode()))
        weight = table[WEIGHT_COLUMN] if WEIGHT_COLUMN in table.columns else pl.Series(np.ones(table.height))
        now = dict(zip(table[ROW].to_list(), weight.to_list(), strict=True))
        step = (document["version"]["step"] or {}).get("name", "source")
        found += [
            {ROW: row, "version": name, "step": step, "what": "weighed", "before": before[row], "after": value}
            for row, value in now.items()
            if row in before and before[row] != value
        ]
        before = now
    return found


def _weighed_by(folder: Path, step: str | None) -> pl.DataFrame:
    """Weights of rows before and after each version that a step of this name made, where they differ; the first version first.

    Versions keep no list of weights, as they do of removed and changed rows, so each is compared with the one before it.
    """
    found = [pl.DataFrame(schema={ROW: pl.Int64, "version": pl.String, "before": pl.Float64, "after": pl.Float64})]
    chain = [] if step is None else versions.chain(folder)
    for (parent, _), (name, document) in itertools.pairwise(chain):
        if (document["version"]["step"] or {}).get("name") == step:
            before, after = (_weights(folder.parent / one) for one in (parent, name))
            both = before.rename({"weight": "before"}).join(after.rename({"weight": "after"}), on=ROW, maintain_order="left")
            differ = both.filter(pl.col("before") != pl.col("after"))
            found.append(differ.select(ROW, pl.lit(name).alias("version"), "before", "after"))
    return pl.concat(found)


def _weights(folder: Path) -> pl.DataFrame:
    """The weight of each row of a version, but for those that a step made."""
    table = pl.read_parquet(folder / "events.parquet", glob=False).drop_nulls(ROW)
    weight = table.get_column(WEIGHT_COLUMN, default=pl.Series(np.ones(table.height))).cast(pl.Float64)
    return pl.DataFrame({ROW: table[ROW], "weight": weight})


def _unweighed(rows: pl.Series, weights: pl.Series, lines: pl.DataFrame) -> pl.Series:
    """Weights of rows without what the lines say was done to them.

    A row is again what it was before; where a later step weighed it too, that step's factor stays, unless the row had gone to 0,
    of which nothing is known any more.
    """
    for (_,), part in reversed(list(lines.group_by("version", maintain_order=True))):
        table = pl.DataFrame({ROW: rows, "now": weights}).join(part, on=ROW, how="left", maintain_order="left")
        now, before, after = pl.col("now"), pl.col("before"), pl.col("after")
        weights = table.select(
            pl.when(after.is_null()).then(now).when((now == after) | (after == 0)).then(before).otherwise(now / after * before)
        ).to_series()
    return weights


def restore(folder: str | Path, named: Named) -> dict[str, Any]:
    """Make a version in which the named rows are as they were in the log that was read first; return its manifest and folder.

    Removed rows come back, changed values are undone, and weights are those that the log came with (1 where it came with none).
    Of a step's rows, those that it only weighed get the weight from before it and are else as they are.
    Rows that a step made are no rows of the log: none comes back, and where everything is named, those that are there go.

    Raises:
        LargeRecError: the folder is no version, or nothing of that name is there, or nothing would change.
    """
    folder = expanded(folder, "VERSION").resolve()
    document, version = versions.read_manifest(folder), versions.read(folder)
    lines_of_weight = _weighed_by(folder, named.step)
    rows = named.rows_of(version, lines_of_weight[ROW])
    lines_of_weight = lines_of_weight.filter(~pl.col(ROW).is_in(rows.implode()))
    chosen = pl.col(ROW).is_in(rows.implode()).fill_null(False)
    back = version.removed.filter(chosen)
    events, made_up = _parted(version) if named.everything else (version.log.events, version.log.events.clear())
    options = {"name": "restore", "rows": rows.len(), "which": manifest.content_hash(rows.to_frame())}
    options |= {"made_up": made_up.height} if made_up.height else {}
    options |= {"weighed_by": named.step} if lines_of_weight.height else {}
    key = versions.key_of(document["content"], options, 0)
    number = document["version"]["number"] + 1
    name = f"{number:02d}-restore-{key[:8]}"
    if versions.is_version(folder.parent / name):
        return {**versions.read_manifest(folder.parent / name), "dir": str(folder.parent / name)}
    events = pl.concat([events, back.drop(*WHEN)], how="diagonal")
    events = events.sort(ROW, nulls_last=True, maintain_order=True)  # rows that a step made have no number and stay behind
    if WEIGHT_COLUMN in events.columns:
        events = events.with_columns(pl.col(WEIGHT_COLUMN).fill_null(1.0))
    said = [f"removed by {line['version']}: {line['why']}" for line in back.select(WHEN).iter_rows(named=True)]
    texts = pl.Series(said, dtype=pl.String), pl.Series(["restored"] * len(said), dtype=pl.String)
    lines = [changed_lines(back[ROW], name, "restore", ROW, *texts)]
    events, undone = _undone(events, version.changed.filter(chosen & (pl.col("column") != ROW)), name)
    whole = pl.concat([rows, lines_of_weight[ROW]])
    at_R = (events[ROW].is_in(whole.implode()) & (events[STAGE_COLUMN] == "train")).fill_null(False).arg_true().to_numpy()
    before = events.get_column(WEIGHT_COLUMN, default=pl.Series(np.ones(events.height))).cast(pl.Float64)
    source = events.get_column(SOURCE_WEIGHT, default=pl.Series(np.ones(events.height))).cast(pl.Float64)
    only_weighed = events[ROW].is_in(lines_of_weight[ROW].implode()).fill_null(False)
    weights = _unweighed(events[ROW], before, lines_of_weight).zip_with(only_weighed, source)
    reweighed = int((before[at_R] != weights[at_R]).sum())
    if not back.height and not made_up.height and not any(line.height for line in undone) and not reweighed:
        raise LargeRecError(
            f"{folder}: the rows that are named are as they were in the first version; nothing is to be restored."
        )
    events = weighed(events, at_R, weights[at_R].to_numpy())
    gone = made_up.with_columns(pl.lit(name).alias("version"), pl.lit("restore").alias("step"), pl.lit(MADE_UP).alias("why"))
    made = Version(
        replace(version.log, events=events.select(_columns(version, events))),
        pl.concat([version.removed.filter(~chosen), gone.select(version.removed.columns)]),
        pl.concat([version.changed, *lines, *undone]),
    )
    assert made.evaluation_hash() == version.evaluation_hash(), "restoring touched evaluation rows"
    stage_column(made.log, SplitOptions(protocol="given"))
    counts = {
        "in": int(version.is_training.sum()), "out": int(made.is_training.sum()), "restored": back.height,
        "changed": sum(line.height for line in undone), "weighed": reweighed, "removed": made_up.height,
    }  # fmt: skip
    known = {
        "format": versions.FORMAT, "number": number, "key": key,
        "parent": {"name": folder.name, "content": document["content"]},
        "step": options, "seed": 0, "split": document["version"]["split"], "rows": counts,
    }  # fmt: skip
    written = versions.write(folder.parent, name, made, {"source": document["source"], "version": known})
    return {**written, "dir": str(folder.parent / name)}


def _parted(version: Version) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The events that are rows of the log, with the log's own columns, and those that a step made."""
    events, own = version.log.events, pl.col(ROW).is_not_null()
    foreign = [] if MADE in version.removed.columns else [MADE]  # removed rows have the columns that the log came with
    return events.filter(own).drop(foreign, strict=False), events.filter(~own)


def _columns(version: Version, events: pl.DataFrame) -> list[str]:
    """The columns in the order of the version, a weight that came or went aside."""
    known = [name for name in version.log.events.columns if name in events.columns]
    return [*known, *(name for name in events.columns if name not in known)]


def _undone(events: pl.DataFrame, changed: pl.DataFrame, name: str) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """Events with the first value of each changed one, and the lines that say so."""
    lines = []
    for (column,), part in changed.group_by("column", maintain_order=True):
        first = part.group_by(ROW, maintain_order=True).first().select(ROW, pl.col("before").alias(BESIDE))
        joined = events.join(first, on=ROW, how="left", maintain_order="left")
        value = pl.coalesce(pl.col(BESIDE).cast(events.schema[str(column)]), pl.col(str(column))).alias(str(column))
        new = joined.select(value).to_series()
        differs = new != events[str(column)]
        old = events[str(column)].filter(differs)
        lines.append(changed_lines(events[ROW].filter(differs), name, "restore", str(column), old, new.filter(differs)))
        events = events.with_columns(new)
    return events, lines
