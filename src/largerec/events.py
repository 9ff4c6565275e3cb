"""The one schema for who did what when: read from frames, described, written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl

from largerec.badrows import BadRows, DroppedRow, OnBadRows, Origin, Place, dropped_from
from largerec.columns import (
    ALIASES,
    CANONICAL,
    CATEGORY_ALIASES,
    METADATA_KEY,
    TITLE_ALIASES,
    UNTIMED,
    UNTIMED_MARK,
    AskedKind,
    ColumnOptions,
    TimeKind,
    TimeUnit,
    Untimed,
    convert_behaviors,
    convert_gappy_times,
    convert_ids,
    convert_text,
    convert_times,
    convert_values,
    find_columns,
    iso_time,
    plain_name,
    resolve_columns,
)
from largerec.errors import LargeRecError
from largerec.writing import plain_errors

__all__ = ["AskedKind", "ColumnOptions", "EventLog", "TimeKind", "TimeUnit"]


@dataclass(frozen=True)
class EventLog:
    """Who did what when, rows in the order of the file.

    Attributes:
        events: ``user_id`` and ``item_id`` (integers or strings, as given), ``timestamp`` Int64 (milliseconds UTC, or a rank
            when ``time_kind`` is "order"; -1: only known to be earlier than all others), optional ``behavior`` String and
            ``value`` Float64, and further columns as given.
        items: ``item_id`` (the same type), optional ``title`` and ``category`` String, and further columns; or None.
        time_kind: what ``timestamp`` means.
        notes: what was detected and decided, in plain sentences.
        source: the file that the events came from, or another name for it.
        dropped: the rows that were left out because they cannot be right (none unless asked for).
    """

    events: pl.DataFrame
    items: pl.DataFrame | None
    time_kind: TimeKind
    notes: tuple[str, ...]
    source: str
    dropped: tuple[DroppedRow, ...] = ()

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        items: Any = None,
        columns: ColumnOptions | None = None,
        time_unit: TimeUnit = "auto",
        time_kind: AskedKind = "auto",
        where: str | None = None,
        source: str = "frame",
        items_source: str = "items",
        untimed: Untimed = "error",
        on_bad_rows: OnBadRows = "error",
        place: Place | None = None,
    ) -> EventLog:
        """Check a polars or pandas frame and bring it into the schema. No row is dropped except by ``where`` and ``on_bad_rows``.

        Args:
            frame: a polars (eager or lazy) or pandas frame of events; ``items`` likewise, of item titles and categories.
            columns: names of the columns, where their aliases do not do.
            time_unit: the unit of a numeric time; "auto" tells it by magnitude.
            time_kind: "order" for a rank without a clock; "auto" decides by magnitude, and by whether there is a time at all.
            where: a condition in SQL on the frame's own column names, such as ``rating >= 4``.
            source: the name that messages give to the events; ``items_source`` likewise for the items.
            untimed: "first" puts events without a time before all others, in the order of the rows, with time -1.
            on_bad_rows: "drop" leaves out rows that cannot be right and keeps them in ``dropped``.
            place: file and row of each row of the frame, where it is not the row of ``source``.

        Raises:
            LargeRecError: a column is missing; a value is null, unparsable or impossible; no rows are left.
        """
        chosen = columns or ColumnOptions()
        table, notes = _as_table(frame, source)
        table, kept, said = _filter(table, where, source)
        notes += said
        dropped: list[DroppedRow] = []
        while True:
            origin = Origin(source, kept, place)
            try:
                events, kind, said = _convert(table, chosen, time_unit, time_kind, untimed, origin)
                break
            except BadRows as bad:
                if on_bad_rows == "error" or bad.mask.all():
                    raise
                dropped += dropped_from(table, bad, origin)
                kept = (~bad.mask).arg_true() if kept is None else kept.filter(~bad.mask)
                table = table.filter(~bad.mask)
        notes += said
        catalogue = None
        if items is not None:
            catalogue, said = _item_table(items, events["item_id"], chosen.item, items_source)
            notes += said
        return cls(events, catalogue, kind, notes, source, tuple(dropped))

    def describe(self) -> dict[str, Any]:
        """Return counts, spans and shares of the log as plain JSON values; shares are of events unless the key says otherwise."""
        events = self.events
        lengths = events.group_by("user_id").len()["len"]
        popularity = events.group_by("item_id").len().sort("len", "item_id", descending=[True, False])
        counts, users, items = popularity["len"], lengths.len(), popularity.height
        top = max(1, round(items / 100))
        pairs = events.select("user_id", "item_id").n_unique()
        result: dict[str, Any] = {
            "source": self.source,
            "events": events.height,
            "users": users,
            "items": items,
            "density": events.height / (users * items),
            "time": self._describe_time(),
            "history_length": {
                "min": int(cast(int, lengths.min())),
                **{f"p{q}": int(cast(float, lengths.quantile(q / 100, "nearest"))) for q in (10, 50, 90, 99)},
                "max": int(cast(int, lengths.max())),
                "mean": float(cast(float, lengths.mean())),
                "users_with_one_event": int((lengths == 1).sum()),
                "users_with_fewer_than_3": int((lengths < 3).sum()),
            },
            "popularity": {
                "top_10_items_share": int(counts.head(10).sum()) / events.height,
                "top_1_percent_items_share": int(counts.head(top).sum()) / events.height,
                "items_seen_once": int((counts == 1).sum()),
                "top_items": self._name_items(popularity.head(5)),
            },
            "repeats": {
                "share_of_events_on_an_item_the_user_already_had": 1 - pairs / events.height,
                "rows_equal_in_user_item_and_time": events.height - events.select("user_id", "item_id", "timestamp").n_unique(),
            },
        }
        if "behavior" in events.columns:
            seen = events["behavior"].value_counts(sort=True)
            result["behaviors"] = {str(name): int(count) for name, count in seen.head(50).iter_rows()}
        if "value" in events.columns:
            value = events["value"]
            result["value"] = {"min": value.min(), "mean": value.mean(), "max": value.max(), "missing": value.null_count()}
        result["features"] = {name: str(events.schema[name]) for name in events.columns if name not in CANONICAL}
        result["item_table"] = self._describe_items(popularity["item_id"])
        result["notes"] = list(self.notes)
        return result

    def _describe_time(self) -> dict[str, Any]:
        times = self.events["timestamp"]
        timed = times.filter(times != UNTIMED)
        untimed, times = times.len() - timed.len(), timed if timed.len() else times
        first, last = int(cast(int, times.min())), int(cast(int, times.max()))
        ties = self.events.height - self.events.select("user_id", "timestamp").n_unique()
        spans: dict[str, Any] = {"first_rank": first, "last_rank": last}
        if self.time_kind == "timestamp":
            spans = {"first": iso_time(first), "last": iso_time(last), "days": (last - first) / 86_400_000}
        if untimed:
            spans["events_without_a_time"] = untimed
        return {"kind": self.time_kind, **spans, "events_at_the_time_of_another_of_the_user": ties}

    def _name_items(self, popularity: pl.DataFrame) -> list[dict[str, Any]]:
        named = popularity.rename({"len": "events"})
        if self.items is not None and "title" in self.items.columns:
            named = named.join(self.items.select("item_id", "title"), on="item_id", how="left", maintain_order="left")
        return named.to_dicts()

    def _describe_items(self, seen: pl.Series) -> dict[str, Any] | None:
        if self.items is None:
            return None
        known = self.items.filter(pl.col("item_id").is_in(seen.implode()))
        shares = {
            f"items_of_the_log_with_{name}": int(known[name].is_not_null().sum())
            for name in ("title", "category")
            if name in known.columns
        }
        return {"rows": self.items.height, "items_of_the_log": known.height, **shares, "columns": self.items.columns}

    def write(self, path: str | Path) -> None:
        """Write the events as ``.parquet``, ``.csv`` or ``.csv.gz``, and the items beside them as ``<stem>.items.<suffix>``.

        Parquet keeps every type and the kind of time. In CSV all-digit string ids come back as integers.

        Raises:
            LargeRecError: the suffix is another one, or a column cannot be written as CSV.
            OSError: a file cannot be written.
        """
        target = Path(path)
        suffix = next((known for known in (".parquet", ".csv.gz", ".csv") if target.name.lower().endswith(known)), None)
        if suffix is None:
            raise LargeRecError(f"{target}: cannot tell the format to write. Use a name that ends in .parquet, .csv or .csv.gz.")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._write_table(self.events, target, suffix)
        if self.items is not None:
            self._write_table(self.items, target.with_name(f"{target.name[: -len(suffix)]}.items{suffix}"), suffix)

    def _write_table(self, table: pl.DataFrame, target: Path, suffix: str) -> None:
        if suffix == ".parquet":
            untimed = "timestamp" in table.columns and bool((table["timestamp"] == UNTIMED).any())
            with plain_errors():
                table.write_parquet(target, metadata={METADATA_KEY: self.time_kind + (UNTIMED_MARK if untimed else "")})
            return
        nested = [name for name, dtype in table.schema.items() if dtype.is_nested()]
        if nested:
            raise LargeRecError(
                f"{target}: column {nested[0]!r} holds {table.schema[nested[0]]}, which CSV cannot. Write to a .parquet file."
            )
        with plain_errors():
            table.write_csv(target, compression="gzip" if suffix.endswith(".gz") else "uncompressed")


def _convert(
    table: pl.DataFrame, chosen: ColumnOptions, time_unit: TimeUnit, time_kind: AskedKind, untimed: Untimed, origin: Origin
) -> tuple[pl.DataFrame, TimeKind, tuple[str, ...]]:
    """Find the columns of a table and check and convert their values: the events, the kind of time, and what was decided."""
    roles, notes = resolve_columns(table, chosen, time_kind, origin.source)
    user_id, said_user = convert_ids(table[roles["user"]], "user", origin)
    item_id, said_item = convert_ids(table[roles["item"]], "item", origin)
    kind: TimeKind
    if "time" in roles:
        convert = convert_gappy_times if untimed == "first" else convert_times
        timestamp, kind, said = convert(table[roles["time"]], time_unit, time_kind, origin)
    else:
        timestamp, kind = pl.int_range(table.height, dtype=pl.Int64, eager=True), "order"
        others = ", ".join(repr(name) for name in table.columns[:8])
        said = (
            "there is no time column: the order of the rows in the file is the order of the events "
            f"(if one of {others} is the time, pass data.columns.time=NAME)",
        )
    notes += said_user + said_item + said
    parts = [user_id.alias("user_id"), item_id.alias("item_id"), timestamp.alias("timestamp")]
    behavior, said_behavior = convert_behaviors(table[roles["behavior"]]) if "behavior" in roles else (None, ())
    value, said_value = (
        convert_values(table[roles["value"]], chosen.value is not None, origin) if "value" in roles else (None, ())
    )
    notes += said_behavior + said_value
    for role, series in (("behavior", behavior), ("value", value)):
        if series is None:
            roles.pop(role, None)
        else:
            parts.append(series.alias(role))
    rest = [table[name] for name in table.columns if name not in roles.values()]
    parts += [series.alias(f"{series.name}_given") if series.name in CANONICAL else series for series in rest]
    return pl.DataFrame(parts), kind, notes


def _as_table(frame: Any, source: str) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Take a polars or pandas frame, refuse an empty one, and cut RecBole's type suffixes off the names."""
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    elif type(frame).__module__.partition(".")[0] == "pandas":
        try:
            frame = pl.from_pandas(frame)
        except Exception as error:  # pyarrow and polars have many kinds; each one means a column that mixes types
            raise LargeRecError(
                f"{source}: the pandas frame cannot be read ({error}). Give each column one type, e.g. .astype(str)."
            ) from error
    if not isinstance(frame, pl.DataFrame):
        raise LargeRecError(f"{source}: a polars or pandas frame is needed, not {type(frame).__name__}.")
    if frame.height == 0:
        raise LargeRecError(
            f"{source}: there are no rows (columns: {', '.join(frame.columns) or 'none'}). Give at least one event."
        )
    renamed = {name: plain_name(name) for name in frame.columns if plain_name(name) != name}
    if not renamed or len({plain_name(name) for name in frame.columns}) < frame.width:
        return frame, ()
    return frame.rename(renamed), ("column types after a colon (RecBole) are cut off the names",)


def _filter(table: pl.DataFrame, where: str | None, source: str) -> tuple[pl.DataFrame, pl.Series | None, tuple[str, ...]]:
    """Keep the rows for which the condition holds; return them, their 0-based numbers and a note."""
    if where is None:
        return table, None, ()
    types = ", ".join(f"{name} ({dtype})" for name, dtype in table.schema.items())
    try:
        mask = table.select(pl.sql_expr(where).alias("mask"))["mask"]
    except pl.exceptions.PolarsError as error:
        quoting = "A name that is also a word of SQL, such as user, goes into double quotes."
        reason = str(error).split("\n")[0]
        raise LargeRecError(
            f"{source}: the filter where={where!r} cannot be used: {reason}. {quoting} Columns: {types}."
        ) from error
    if mask.dtype != pl.Boolean or mask.len() != table.height:
        raise LargeRecError(
            f"{source}: the filter where={where!r} gives {mask.dtype}, not true or false for each row. "
            f'Write a condition, e.g. "rating >= 4". Columns: {types}.'
        )
    kept = mask.fill_null(False).arg_true()
    if kept.len() == 0:
        raise LargeRecError(
            f"{source}: the filter where={where!r} keeps none of the {table.height:,} rows. Loosen it. Columns: {types}."
        )
    note = f"where {where!r} kept {kept.len():,} rows of {table.height:,} and dropped {table.height - kept.len():,}"
    return table[kept], kept, (note,)


def _item_table(items: Any, seen: pl.Series, item_column: str | None, source: str) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Bring an item table into the schema, its ids in the events' type; say how many ids no event could have, or repeat."""
    table, _ = _as_table(items, source)
    found = [item_column] if item_column in table.columns else find_columns(table.columns, (*ALIASES["item"], "id"))
    if not found:
        raise LargeRecError(
            f"{source}: no column is recognised as the item; it has {', '.join(table.columns)}. Name it 'item_id'."
        )
    ids, _ = convert_ids(table[found[0]], "item", Origin(source))
    said: list[str] = []
    rest = [table[name] for name in table.columns if name != found[0]]
    parts = {series.name: series for series in rest if series.name != "item_id"}
    for role, aliases in (("title", TITLE_ALIASES), ("category", CATEGORY_ALIASES)):
        names = find_columns(list(parts), aliases)
        if names:
            parts = {role: convert_text(parts.pop(names[0])), **parts}
    if "keywords" in parts and ("title" not in parts or parts["title"].null_count()):
        title = parts.get("title", pl.Series("title", [None], dtype=pl.String).extend_constant(None, ids.len() - 1))
        parts = {**parts, "title": title.zip_with(title.is_not_null(), parts["keywords"].cast(pl.String))}
        said.append("items without a title show their keywords instead")
    same_type = ids.cast(seen.dtype, strict=False)
    if ids.dtype == pl.String and seen.dtype.is_integer():
        same_type = same_type.zip_with((same_type.cast(pl.String) == ids).fill_null(False), pl.Series([None], dtype=seen.dtype))
    order = [name for name in ("title", "category") if name in parts] + [
        name for name in parts if name not in ("title", "category")
    ]
    result = pl.DataFrame([same_type.alias("item_id"), *(parts[name].alias(name) for name in order)])
    known = result.filter(pl.col("item_id").is_not_null())
    unique = known.unique("item_id", keep="first", maintain_order=True)
    covered = seen.unique().is_in(unique["item_id"].implode())
    said.insert(0, f"{source} describes {covered.sum():,} of the {covered.len():,} items of the log")
    if known.height < result.height:
        said.append(
            f"{result.height - known.height:,} rows of {source} have ids that are not {seen.dtype}, as the log's are: left out"
        )
    if unique.height < known.height:
        said.append(f"{known.height - unique.height:,} rows of {source} repeat an item: the first is kept")
    return unique, tuple(said)
