"""From a path to an EventLog: a file, a folder of a known set or of parts, with the item table that lies beside it."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import polars as pl

from largerec import manifest
from largerec.badrows import OnBadRows, told_dropped, write_dropped
from largerec.columns import ALIASES, CANONICAL, AskedKind, AskedUntimed, ColumnOptions, TimeUnit, find_columns
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.faults import FaultOptions, with_faults
from largerec.options import Options, expanded
from largerec.readers import (
    SUFFIXES,
    RawTable,
    amazon,
    diginetica,
    folders,
    format_of,
    kuairand,
    nested,
    peek_columns,
    read_table,
    trivago,
)
from largerec.simulate import SimulateOptions, simulate

# The events of the sets that people have, the raw file with times before one with the order only.
KNOWN_EVENTS = ("u.data", "ratings.dat", "interactions_ordered.parquet", "ratings.csv", "clicks.parquet")
KNOWN_ITEMS = (
    "u.item", "movies.dat", "movies.csv", "items.parquet", "items.csv", "items.tsv", "items.jsonl", "articles_ids.csv",
    "item_metadata.csv", "video_features_basic_pure.csv", "video_features_basic_1k.csv", "video_features_basic_27k.csv",
)  # fmt: skip
ORDERED_ML1M = "interactions_ordered.parquet"


class DataOptions(Options):
    """Where the log is and how to read it. Without a path, a log is generated. ``faults`` are put into either on request.

    ``on_bad_rows``: "drop" leaves out rows that cannot be right, counts them by reason and writes them to ``dropped``.
    ``random``: a log of what was shown at random, to be tested apart (KuaiRand's ``log_random_*.csv``); a file, or its name in
    the folder of ``path``. ``untimed``: "first" puts events without a time before all others, in the order of the file; "error"
    refuses them, and so does "auto" but for a set or a file of ours that is known to have some.
    """

    path: str | None = None
    columns: ColumnOptions = ColumnOptions()
    where: str | None = None
    time_unit: TimeUnit = "auto"
    time_kind: AskedKind = "auto"
    untimed: AskedUntimed = "auto"
    on_bad_rows: OnBadRows = "error"
    dropped: str = "dropped.jsonl"
    items: str | None = None
    random: str | None = None
    simulate: SimulateOptions = SimulateOptions()
    faults: FaultOptions = FaultOptions()


OF_A_FILE = ("columns", "where", "time_unit", "time_kind", "untimed", "items", "random")
"""Options that say nothing of a generated log."""


def load_log(options: DataOptions) -> EventLog:
    """Read the events at ``options.path``, a file or a folder, with titles where they are found; or generate a log.

    Raises:
        LargeRecError: there is no such path; a folder holds no or several event files; whatever reading and checking raise.
    """
    if options.path is None:
        _refuse_without_path(options)
        log = simulate(options.simulate)
    else:
        log = _read_log(options, options.path)
    return with_faults(log, options.faults) if options.faults.any else log


def _refuse_without_path(options: DataOptions) -> None:
    """What says how to read a log would do nothing to a generated one, which whoever gave it does not mean."""
    plain = DataOptions()
    given = [f"data.{name}" for name in OF_A_FILE if getattr(options, name) != getattr(plain, name)]
    if given:
        raise LargeRecError(
            f"{' and '.join(given)} {'say' if len(given) > 1 else 'says'} how a log is read, and there is no data.path: give "
            "data.path=FILE, or leave out the rest for a generated log."
        )


def load_random(options: DataOptions) -> EventLog | None:
    """Read the log of what was shown at random, ``options.random``; None where none is named.

    Raises:
        LargeRecError: there is no such file; whatever reading and checking raise.
    """
    if options.random is None:
        return None
    asked, beside = expanded(options.random, "data.random"), expanded(options.path or ".", "data.path")
    folder = beside if beside.is_dir() else beside.parent
    found = next((file for file in (asked, folder / asked) if file.is_file()), None)
    if found is None:
        raise LargeRecError(
            f"data.random={options.random}: there is no such file, nor in {folder}{_similar(folder / asked)} Give a log of what "
            "was shown at random, with the columns of data.path."
        )
    return _read_log(options, str(found))


def _read_log(options: DataOptions, given: str) -> EventLog:
    path = expanded(given, "data.path")
    if not path.exists():
        raise LargeRecError(
            f"data.path={given}: there is no such file or folder{_similar(path)} Give a file of events or a folder of one."
        )
    notes, path = _inner_folder(path)
    if path.is_dir():
        source, table = _read_folder(path, options)
    elif kuairand.is_random(path):
        source, table = path, kuairand.read_files([path], options.on_bad_rows)
    else:
        source, table = path, read_table(path, options.columns, options.on_bad_rows)
    table = trivago.adapt(nested.unfold(table, options.columns, str(source)), str(source))
    options, said = _with_defaults(options, source, table)
    items, items_path, said_items = _load_items(options, source, table)
    log = EventLog.from_frame(
        table.frame,
        items=None if items is None else items.frame,
        columns=options.columns,
        time_unit=options.time_unit,
        time_kind=options.time_kind,
        where=options.where,
        source=str(source),
        items_source=str(items_path),
        untimed="first" if options.untimed == "first" else "error",
        on_bad_rows=options.on_bad_rows,
        place=table.place,
    )
    dropped = tuple(sorted(table.dropped + log.dropped, key=lambda row: (row.file, row.row)))
    if dropped:
        write_dropped(dropped, Path(options.dropped))
    notes += said + table.notes + said_items + log.notes + told_dropped(dropped, Path(options.dropped))
    return replace(log, notes=notes, dropped=dropped)


def _inner_folder(path: Path) -> tuple[tuple[str, ...], Path]:
    """Go down where a folder holds no file that could be read and but one folder, as unpacked archives do."""
    start = path
    while path.is_dir():
        entries = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
        if any(entry.is_file() and format_of(entry) is not None for entry in entries):
            break
        entries = [entry for entry in entries if entry.is_dir()]
        if len(entries) != 1 or folders.PARTITION.fullmatch(entries[0].name):
            break
        path = entries[0]
    return (() if path == start else (f"the log is in {path.relative_to(start)}",)), path


def _read_folder(folder: Path, options: DataOptions) -> tuple[Path, RawTable]:
    """Read the events of a folder; return with them what they came from, beside which their items lie."""

    def read(file: Path) -> RawTable:
        return read_table(file, options.columns, options.on_bad_rows)

    manifest.verify(folder)
    if kuairand.logs(folder):
        return folder, kuairand.read(folder, options.on_bad_rows)
    if numbered := diginetica.periods(folder):
        parts = [folders.Part(file, {"period": str(number)}) for number, file in numbered]
        return folder, folders.read_parts(parts, options.columns, folder, read)
    if hive := folders.hive_parts(folder):
        return folder, folders.read_parts(hive, options.columns, folder, read)
    files = sorted(file for file in folder.iterdir() if file.is_file() and format_of(file) is not None)
    candidates = [file for file in files if not file.name.startswith(("_", ".")) and not _is_item_file(file)]
    if (side := folders.parts_side_by_side(candidates)) and _has_events(side[0].file, options.columns):
        return folder, folders.read_parts(side, options.columns, folder, read)
    if described := item_files(folder):
        raise LargeRecError(
            f"{folder}: this folder describes items and holds no events ({', '.join(file.name for file in described)}): "
            "nobody did anything here, so there is nothing to train on. `largerec data import` turns it into item tables; as "
            f"titles for a log with the same item ids, give data.items={described[-1]} beside data.path=LOG."
        )
    file, notes = find_events(folder, options.columns)
    table = read(file)
    return file, replace(table, notes=notes + table.notes)


def item_files(folder: Path) -> list[Path]:
    """Return the files of a folder that only describes items (``*.item.json``, ``*.index.json``); none where there are events."""
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if file.is_file() and format_of(file) is not None)
    return files if all(format_of(file) in ("item.json", "index.json") for file in files) else []


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
    name = file.name.lower().removesuffix(".gz")
    other = name in KNOWN_ITEMS or name.startswith("meta_") or name.endswith((".item", ".user"))
    return other or _stem(file).endswith(".items") or format_of(file) in ("item.json", "index.json")


def _describes(file: Path, events: Path) -> bool:
    """Say whether a file's name makes it the item table of just these events, as ``x.item`` of ``x.inter``."""
    same_stem = _stem(file) == f"{_stem(events)}.items"
    recbole = file.name.removesuffix(".gz").endswith(".item") and _stem(file) == _stem(events) and file.name != "u.item"
    return same_stem or recbole or amazon.is_metadata_of(file.name, events.name)


def _similar(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return f", nor a folder {path.parent}."
    close = difflib.get_close_matches(path.name, names, n=3)
    return f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else "."


def _with_defaults(options: DataOptions, source: Path, table: RawTable) -> tuple[DataOptions, tuple[str, ...]]:
    """Fill in what a file, its format or a known set says, where the recipe says nothing."""
    columns, given = dict(table.columns), options.columns
    where, time_kind = options.where, options.time_kind
    notes: tuple[str, ...] = ()
    if source.name == "events.parquet" and manifest.read(source.parent) is not None:
        # Our own file: the schema's columns have the schema's names, though a further one may be called "rating" or "action".
        columns |= {role: name for role, name in zip(ALIASES, CANONICAL, strict=True) if name in table.frame.columns}
    if source.name == ORDERED_ML1M and given.time is None and options.time_kind != "timestamp" and "pos" in table.frame.columns:
        # The known ordered file of MovieLens-1M: its rank as the time, its unranked rows left out.
        columns["time"], time_kind, where = "pos", "order", options.where or "pos >= 0"
        notes = (f"{ORDERED_ML1M} is known: 'pos' is the order of a user's events, and rows without one (pos < 0) are left out",)
    if time_kind == "auto" and table.time_kind is not None:
        time_kind = table.time_kind
    missing = {role: name for role, name in columns.items() if getattr(given, role) is None}
    filled = options.model_copy(
        update={
            "columns": given.model_copy(update=missing),
            "time_kind": time_kind,
            "where": where,
            "untimed": (table.untimed or "error") if options.untimed == "auto" else options.untimed,
        }
    )
    return filled, notes


def _load_items(
    options: DataOptions, events_path: Path, events: RawTable
) -> tuple[RawTable | None, Path | None, tuple[str, ...]]:
    """Read the item table that is asked for, or one of a known name beside the events that shares an item with them."""
    folder = events_path if events_path.is_dir() else events_path.parent
    if options.items is not None:
        asked = expanded(options.items, "data.items")
        found = next((file for file in (asked, folder / asked) if file.is_file()), None)
        if found is None:
            raise LargeRecError(
                f"data.items={options.items}: there is no such file{_similar(asked)} Give a file with item ids and titles."
            )
        return read_table(found), found, ()
    siblings = sorted(file for file in folder.iterdir() if file.is_file() and format_of(file) is not None)
    own = [file for file in siblings if _describes(file, events_path)]
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
