"""From a path to an EventLog: a file, or a folder of a known set, with the item table that lies beside it."""

from __future__ import annotations

import difflib
from pathlib import Path

import polars as pl

from largerec.columns import ALIASES, AskedKind, ColumnOptions, TimeUnit, find_columns
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.faults import FaultOptions, with_faults
from largerec.options import Options
from largerec.readers import SUFFIXES, RawTable, format_of, peek_columns, read_table
from largerec.simulate import SimulateOptions, simulate

# The events of the sets that people have, the raw file with times before one with the order only.
KNOWN_EVENTS = ("u.data", "ratings.dat", "interactions_ordered.parquet", "ratings.csv", "clicks.parquet")
KNOWN_ITEMS = ("u.item", "movies.dat", "movies.csv", "items.parquet", "items.csv", "items.tsv", "items.jsonl", "articles_ids.csv")
ORDERED_ML1M = "interactions_ordered.parquet"


class DataOptions(Options):
    """Where the log is and how to read it. Without a path, a log is generated. ``faults`` are put into either on request."""

    path: str | None = None
    columns: ColumnOptions = ColumnOptions()
    where: str | None = None
    time_unit: TimeUnit = "auto"
    time_kind: AskedKind = "auto"
    items: str | None = None
    simulate: SimulateOptions = SimulateOptions()
    faults: FaultOptions = FaultOptions()


def load_log(options: DataOptions) -> EventLog:
    """Read the events at ``options.path``, a file or a folder, with titles where they are found; or generate a log.

    Raises:
        LargeRecError: there is no such path; a folder holds no or several event files; whatever reading and checking raise.
    """
    log = simulate(options.simulate) if options.path is None else _read_log(options, options.path)
    return with_faults(log, options.faults) if options.faults.any else log


def _read_log(options: DataOptions, given: str) -> EventLog:
    path = Path(given).expanduser()
    if not path.exists():
        raise LargeRecError(
            f"data.path={given}: there is no such file or folder{_similar(path)} Give a file of events or a folder of one."
        )
    notes: tuple[str, ...] = ()
    if path.is_dir():
        path, notes = find_events(path, options.columns)
    options, said = _with_defaults(options, path)
    events = read_table(path, options.columns)
    items, items_path, said_items = _load_items(options, path, events)
    log = EventLog.from_frame(
        events.frame,
        items=None if items is None else items.frame,
        columns=options.columns,
        time_unit=options.time_unit,
        time_kind=events.time_kind or "auto" if options.time_kind == "auto" else options.time_kind,
        where=options.where,
        source=str(path),
        items_source=str(items_path),
    )
    return EventLog(log.events, log.items, log.time_kind, notes + said + events.notes + said_items + log.notes, log.source)


def find_events(folder: Path, columns: ColumnOptions) -> tuple[Path, tuple[str, ...]]:
    """Return the event file of a folder: one of a known name, or else the only one with a user and an item column.

    Raises:
        LargeRecError: there is none, or there are several.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and format_of(file) is not None)
    names = {file.name.lower(): file for file in reversed(files)}
    known = [names[name + end] for name in KNOWN_EVENTS for end in ("", ".gz") if name + end in names]
    known += [file for file in files if _stem(file) == "events"]
    if known:
        more = f", the other event files ({', '.join(file.name for file in known[1:])}) are not" if known[1:] else ""
        return known[0], (f"of the folder {folder.name}, {known[0].name} is read{more}",)
    others = [file for file in files if not _is_item_file(file)]
    likely = [file for file in others if _has_events(file, columns)]
    if len(likely) != 1 and len(others) == 1:
        likely = others
    if len(likely) == 1:
        return likely[0], (f"of the folder {folder.name}, {likely[0].name} is read",)
    if likely:
        listed = ", ".join(file.name for file in likely)
        raise LargeRecError(
            f"{folder}: several files could hold the events: {listed}. Give one of them as data.path, e.g. data.path={likely[0]}."
        )
    listed = ", ".join(sorted(file.name for file in folder.iterdir())[:20]) or "nothing"
    raise LargeRecError(
        f"{folder}: no file of events is recognised; the folder holds {listed}. "
        f"Known names: {', '.join(KNOWN_EVENTS)}, events.*; or one file ({', '.join(SUFFIXES)}, also .gz) with a user and an "
        "item column. Give the file itself as data.path, with data.columns.user=NAME and data.columns.item=NAME where the names "
        "are not the usual ones."
    )


def _has_events(file: Path, columns: ColumnOptions) -> bool:
    names = peek_columns(file)
    return all(given in names if given else find_columns(names, aliases) for given, aliases in _sought(columns))


def _sought(columns: ColumnOptions) -> tuple[tuple[str | None, tuple[str, ...]], ...]:
    return ((columns.user, ALIASES["user"]), (columns.item, ALIASES["item"]))


def _stem(file: Path) -> str:
    """Return a file's name without its format: ``events`` for ``events.csv.gz``, ``log.items`` for ``log.items.parquet``."""
    name = file.name[:-3] if file.name.lower().endswith(".gz") else file.name
    return name[: len(name) - len(Path(name).suffix)]


def _is_item_file(file: Path) -> bool:
    return _stem(file).endswith(".items") or file.name.lower().removesuffix(".gz") in KNOWN_ITEMS


def _similar(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return f", nor a folder {path.parent}."
    close = difflib.get_close_matches(path.name, names, n=3)
    return f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else "."


def _with_defaults(options: DataOptions, path: Path) -> tuple[DataOptions, tuple[str, ...]]:
    """Fill in what the known ordered file of MovieLens-1M needs: its rank as the time, its unranked rows left out."""
    if (
        path.name != ORDERED_ML1M
        or options.columns.time is not None
        or options.time_kind == "timestamp"
        or "pos" not in peek_columns(path)
    ):
        return options, ()
    columns = options.columns.model_copy(update={"time": "pos"})
    filled = options.model_copy(update={"columns": columns, "time_kind": "order", "where": options.where or "pos >= 0"})
    return filled, (
        f"{ORDERED_ML1M} is known: 'pos' is the order of a user's events, and rows without one (pos < 0) are left out",
    )


def _load_items(
    options: DataOptions, events_path: Path, events: RawTable
) -> tuple[RawTable | None, Path | None, tuple[str, ...]]:
    """Read the item table that is asked for, or one of a known name beside the events that shares an item with them."""
    if options.items is not None:
        asked = Path(options.items).expanduser()
        found = next((file for file in (asked, events_path.parent / asked) if file.is_file()), None)
        if found is None:
            raise LargeRecError(
                f"data.items={options.items}: there is no such file{_similar(asked)} Give a file with item ids and titles."
            )
        return read_table(found), found, ()
    siblings = sorted(file for file in events_path.parent.iterdir() if file.is_file() and format_of(file) is not None)
    own = [file for file in siblings if _stem(file) == f"{_stem(events_path)}.items"]
    plain = {file.name.lower().removesuffix(".gz"): file for file in siblings}
    found = next((file for file in [*own, *(plain[name] for name in KNOWN_ITEMS if name in plain)] if file != events_path), None)
    if found is None:
        return None, None, ()
    items = read_table(found)
    if found not in own and not _share_an_item(items.frame, events.frame, options.columns.item):
        return (
            None,
            None,
            (f"{found.name} lies beside the events, but shares no item with them: not used (data.items=FILE names another)",),
        )
    return items, found, (f"items are described by {found.name}",)


def _share_an_item(items: pl.DataFrame, events: pl.DataFrame, given: str | None) -> bool:
    sides = []
    for table in (items, events):
        names = [given] if given in table.columns else find_columns(table.columns, (*ALIASES["item"], "id"))
        if not names:
            return table is events  # the events' own error, which says more, comes later
        sides.append(table[names[0]].unique().cast(pl.String))
    return bool(sides[0].is_in(sides[1].implode()).any())
