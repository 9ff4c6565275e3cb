"""trivago's session log (RecSys Challenge 2019): actions in sessions, with the 25 hotels and prices shown at each clickout."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from largerec.badrows import Place, in_file
from largerec.readers import RawTable

COLUMNS = {"session_id", "timestamp", "action_type", "reference", "impressions", "prices"}


def adapt(table: RawTable, source: str) -> RawTable:
    """Return the actions on items of a trivago file, or another table as it is.

    A session counts as a user, ``reference`` is the item, ``action_type`` the behaviour; ``impressions`` and ``prices`` become
    lists. Actions whose reference is no item (filters, sort orders, places) and clickouts without one (the challenge's hidden
    targets) are left out, and a note counts them by action.
    """
    frame = table.frame
    if not set(frame.columns) >= COLUMNS:
        return table
    item = frame["reference"].cast(pl.String).cast(pl.Int64, strict=False)
    kept = item.is_not_null().arg_true()
    others = frame.filter(item.is_null())["action_type"].value_counts(sort=True).iter_rows()
    left_out = ", ".join(f"{name} {count:,}" for name, count in others)
    shown = [
        pl.col(name).cast(pl.String).str.split("|").list.eval(pl.element().cast(pl.Int64, strict=False))
        for name in ("impressions", "prices")
    ]
    events = frame.with_columns(item.alias("reference"), *shown)[kept]
    notes = [
        "a file of trivago: sessions count as users, references as items, action types as behaviours; what was shown at a "
        "clickout is in the features 'impressions' and 'prices'",
    ]
    if left_out:
        notes.append(f"{frame.height - kept.len():,} actions are not on an item and left out: {left_out}")
    columns = {"user": "session_id", "item": "reference", "time": "timestamp", "behavior": "action_type"}
    return replace(
        table, frame=events, notes=(*table.notes, *notes), columns=columns, place=_place_of(kept, table.place or in_file(source))
    )


def _place_of(kept: pl.Series, place: Place) -> Place:
    return lambda row: place(int(kept[row]))
