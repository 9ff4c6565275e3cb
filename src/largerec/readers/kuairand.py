"""KuaiRand's short videos: the standard log, repeated rows taken out, with each user's earlier watches before it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import polars as pl

from largerec.badrows import OnBadRows, Place, in_file, in_parts
from largerec.errors import LargeRecError
from largerec.readers import RawTable, format_of, read_table

# The behaviour of an event is the strongest thing that the user did.
SIGNALS = {
    "is_hate": "hate",
    "is_follow": "follow",
    "is_forward": "forward",
    "is_comment": "comment",
    "is_like": "like",
    "long_view": "long_view",
    "is_click": "click",
}
KEY = ["user_id", "video_id", "time_ms"]


def logs(folder: Path) -> list[Path]:
    """Return the standard logs of a folder, in the order of their dates (which stand in their names)."""
    found = [file for file in folder.iterdir() if file.name.startswith("log_standard_") and format_of(file) is not None]
    return sorted(found, key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])


def is_random(file: Path) -> bool:
    """Whether a file is, by its name, KuaiRand's log of videos that were shown at random."""
    return file.name.startswith("log_random_") and format_of(file) is not None


def read_files(files: list[Path], on_bad_rows: OnBadRows) -> RawTable:
    """Read logs of KuaiRand one below another; of rows that repeat user, video and time the first stays.

    Raises:
        LargeRecError: a file is broken, or lacks a column that makes it one of KuaiRand.
    """
    tables, notes = [], []
    for file in files:
        table = read_table(file, on_bad_rows=on_bad_rows)
        lacking = [name for name in (*KEY, *SIGNALS) if name not in table.frame.columns]
        if lacking:
            raise LargeRecError(
                f"{file}: the name is that of a log of KuaiRand, but column {lacking[0]!r} is missing. "
                "Give the file itself as data.path if it is another log."
            )
        tables.append(table)
        notes.append(f"of the folder {file.parent.name}, {file.name} is read")
    log = pl.concat([table.frame for table in tables], how="diagonal_relaxed")
    place = in_parts([(table.frame.height, table.place or in_file(str(file))) for table, file in zip(tables, files, strict=True)])
    kept = log.with_row_index(ROW).unique(KEY, keep="first", maintain_order=True)[ROW]
    notes.append(f"{log.height - kept.len():,} rows repeat user, video and time: the first of each is kept")
    behavior = pl.coalesce(
        *(pl.when(pl.col(name) == 1).then(pl.lit(word)) for name, word in SIGNALS.items()), pl.lit("view")
    ).alias("behavior")
    events = log[kept].with_columns(behavior)
    notes.append(
        f"the behaviour is the strongest signal of a row: {', '.join(SIGNALS.values())}, else view; the signals are features"
    )
    columns = {"user": "user_id", "item": "video_id", "time": "time_ms", "behavior": "behavior"}
    dropped = tuple(row for table in tables for row in table.dropped)
    return RawTable(events, tuple(notes), "timestamp", "first", columns, lambda row: place(int(kept[row])), dropped)


def read(folder: Path, on_bad_rows: OnBadRows) -> RawTable:
    """Read the standard logs and, where it is there, ``watch_history*.jsonl``: earlier watches of which only the order is known.

    Raises:
        LargeRecError: a file is broken, or a log lacks a column that makes it one of KuaiRand.
    """
    table = read_files(logs(folder), on_bad_rows)
    history = sorted(file for file in folder.iterdir() if re.fullmatch(r"watch_history.*\.jsonl(\.gz)?", file.name))
    if not history:
        return table
    read_history = read_table(history[0], on_bad_rows=on_bad_rows)
    earlier, rows, said = _earlier(read_history.frame, history[0])
    place = read_history.place or in_file(str(history[0]))
    assert table.place is not None
    parts: list[tuple[int, Place]] = [(earlier.height, lambda row: place(int(rows[row])))]
    parts.append((table.frame.height, table.place))
    events = pl.concat([earlier, table.frame], how="diagonal_relaxed")
    dropped = (*read_history.dropped, *table.dropped)
    return replace(table, frame=events, notes=(*table.notes, said), place=in_parts(parts), dropped=dropped)


ROW = "__row__"


def _is_id(kind: object) -> bool:
    return isinstance(kind, pl.DataType) and (kind.is_integer() or kind == pl.String)


def _earlier(history: pl.DataFrame, file: Path) -> tuple[pl.DataFrame, pl.Series, str]:
    """Unfold the watches before the log: user, video, behaviour and known signals, without a time; the row of each; a note.

    Raises:
        LargeRecError: there is no user or no list of watches, or another list is none.
    """
    empty = [name for name in ("like", "long_watch") if history.schema.get(name) in (pl.Null, pl.List(pl.Null))]
    history = history.drop(empty)  # nobody liked anything, or it is not known
    for name in ("user_id", "watch", "like", "long_watch"):
        kind = history.schema.get(name)
        fits = _is_id(kind) if name == "user_id" else isinstance(kind, pl.List) and _is_id(kind.inner)
        fits = fits and (name not in ("like", "long_watch") or kind == history.schema["watch"])
        if not fits and not (kind is None and name in ("like", "long_watch")):
            given = "is missing" if kind is None else f"holds {kind}"
            raise LargeRecError(
                f"{file}: the name is that of KuaiRand's earlier watches, whose lines have a 'user_id' and the lists of videos "
                f"'watch' and, if known, 'like' and 'long_watch'; {name!r} {given}. Mend it, or take the file out of the folder."
            )
    table = history.with_row_index(ROW)
    watches = table.select(ROW, "user_id", pl.col("watch").alias("video_id")).explode("video_id").drop_nulls("video_id")
    # The lists of likes and long watches say which videos, not which of several watches of one: the last ones are meant.
    nth = pl.int_range(pl.len()).reverse().over("user_id", "video_id")
    marked = watches.with_columns(nth.alias("nth"))
    words, signals = [], []
    for name, word, signal in (("like", "like", "is_like"), ("long_watch", "long_view", "long_view")):
        if name in table.columns:
            counts = table.select("user_id", pl.col(name).alias("video_id")).explode("video_id").drop_nulls("video_id")
            counts = counts.group_by("user_id", "video_id").len(name)
            marked = marked.join(counts, on=["user_id", "video_id"], how="left", maintain_order="left")
            meant = pl.col("nth") < pl.col(name)
            words.append(pl.when(meant).then(pl.lit(word)))
            signals.append(meant.fill_null(False).cast(pl.Int64).alias(signal))
    marked = marked.with_columns(pl.coalesce(*words, pl.lit("view")).alias("behavior"), *signals)
    note = (
        f"{marked.height:,} earlier watches of {table.height:,} users from {file.name} come before the log, without "
        "a time; likes and long watches of videos that are not among them are left out"
    )
    known = [signal for signal in ("is_like", "long_view") if signal in marked.columns]
    return marked.select("user_id", "video_id", "behavior", *known), marked[ROW], note
