"""Tables with one row a user, whose columns hold lists: unfolded to one row an event (as Yambda's sequential edition)."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from largerec.badrows import Place
from largerec.columns import ALIASES, ORDER_ALIASES, ColumnOptions, Role, find_columns, plain_name
from largerec.errors import LargeRecError
from largerec.readers import RawTable

# What stands behind the name of a role's column when it holds many: item_ids, item_id_list, item_seq.
ENDINGS = ("", "s", "_list", "_seq", "_sequence", "_history")


def unfold(table: RawTable, columns: ColumnOptions, source: str) -> RawTable:
    """Return a table with a row for every event, or the table as it is where its items are no lists.

    Lists as long as the items' are unfolded beside them; other lists belong to the user and are left out, which a note says.

    Raises:
        LargeRecError: the times of a row are not as many as its items.
    """
    frame = table.frame
    lists = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List | pl.Array)]
    item = _column_of("item", columns, lists)
    if item is None or frame.height == 0:
        return table
    frame = frame.with_columns(pl.col(name).arr.to_list() for name in lists if isinstance(frame.schema[name], pl.Array))
    length = frame[item].list.len().fill_null(0)
    time = _column_of("time", columns, [name for name in lists if name != item])
    beside = [name for name in lists if bool((frame[name].list.len().fill_null(0) == length).all())]
    if time is not None and time not in beside:
        row = int((frame[time].list.len().fill_null(0) != length).arg_max() or 0)
        file, number = (table.place or (lambda row: (source, row + 1)))(row)
        times, items = frame[time].list.len().fill_null(0)[row], length[row]
        raise LargeRecError(
            f"{file}, row {number}, column {time!r}: {times} times for {items} items of {item!r}. Give each item its time, "
            "or name another column with data.columns.time."
        )
    left_out = [name for name in lists if name not in beside]
    rows = pl.int_range(frame.height, dtype=pl.Int64, eager=True).alias(ROW)
    events = frame.drop(left_out).with_columns(rows).filter(length > 0).explode(beside)
    row_of = events[ROW]
    events = events.drop(ROW)
    named: tuple[tuple[Role, str | None], ...] = (("item", item), ("time", time))
    singular = {name: _singular(name, role) for role, name in named if name is not None}
    renamed = {name: better for name, better in singular.items() if better not in events.columns}
    notes = [f"{source} has one row a user: {frame.height:,} rows hold {events.height:,} events, in the order of the lists"]
    if empty := int((length == 0).sum()):
        notes.append(f"{empty:,} rows hold no events")
    if left_out:
        notes.append(f"columns {', '.join(map(repr, left_out))} hold lists of other lengths: left out")
    kind = table.time_kind or ("order" if time is None and _column_of("time", columns, frame.columns) is None else None)
    return replace(
        table,
        frame=events.rename(renamed),
        notes=(*table.notes, *notes),
        time_kind=kind,
        place=_place_of(row_of, table.place, source),
        columns={role: renamed.get(name, name) for role, name in table.columns.items()},
    )


ROW = "__row__"


def _column_of(role: Role, columns: ColumnOptions, names: list[str]) -> str | None:
    given = getattr(columns, role)
    if given is not None:
        return next((name for name in (given, plain_name(given)) if name in names), None)
    aliases = ALIASES[role] + (ORDER_ALIASES if role == "time" else ())
    found = find_columns(names, tuple(alias + ending for alias in aliases for ending in ENDINGS))
    return found[0] if found else None


def _singular(name: str, role: Role) -> str:
    """Return the usual name that a list's name is made from, or the name itself."""
    aliases = ALIASES[role] + (ORDER_ALIASES if role == "time" else ())
    base = plain_name(name).strip().lower()
    if base in aliases:
        return name
    return next((alias for alias in aliases for ending in ENDINGS if base == alias + ending), name)


def _place_of(row_of: pl.Series, place: Place | None, source: str) -> Place:
    return lambda event: place(int(row_of[event])) if place is not None else (source, int(row_of[event]) + 1)
