"""What the columns of a log are: recognise them by name, and turn their values into the schema's, each one checked.

Bulk work is polars expressions; only once a value is wrong are rows looked at one by one, to name the first bad one.
"""

from __future__ import annotations

import datetime as dt
import difflib
from typing import Literal, cast

import polars as pl

from largerec.badrows import BadRows, Origin
from largerec.errors import LargeRecError, nearest
from largerec.options import Options

TimeKind = Literal["timestamp", "order"]
AskedKind = Literal["auto", "timestamp", "order"]
TimeUnit = Literal["auto", "s", "ms", "us", "ns", "iso"]
Untimed = Literal["error", "first"]
AskedUntimed = Literal["auto", "error", "first"]
Role = Literal["user", "item", "time", "behavior", "value"]

# Names are compared in lower case and without a RecBole type suffix; the first alias that a file has is taken.
ALIASES: dict[Role, tuple[str, ...]] = {
    "user": (
        "user_id", "userid", "user", "uid", "reviewerid", "reviewer_id", "visitorid", "visitor_id", "customer_id",
        "session_id", "sessionid",
    ),
    "item": (
        "item_id", "itemid", "item", "iid", "movieid", "movie_id", "parent_asin", "asin", "item_asin", "article_id", "articleid",
        "click_article_id", "video_id", "videoid", "product_id", "productid", "news_id", "track_id", "song_id",
    ),
    "time": (
        "timestamp", "time", "ts", "unix_ts", "unixreviewtime", "unix_timestamp", "time_ms", "event_time", "click_timestamp",
        "datetime", "date", "created_at",
    ),
    "behavior": ("behavior", "behaviour", "behavior_type", "event", "event_type", "action", "action_type"),
    "value": ("rating", "value", "overall", "score", "weight"),
}  # fmt: skip
ORDER_ALIASES = ("pos", "position", "rank", "order", "step")  # taken as the time only where time_kind="order" is asked for
TITLE_ALIASES = ("title", "name", "item_name", "item_title", "movie_title", "product_title", "product_name")
CATEGORY_ALIASES = ("category", "genres", "genre", "categories", "category_id", "main_category", "tag")
WORD_ALIASES = {*ALIASES["user"], *ALIASES["item"], *ALIASES["behavior"], *TITLE_ALIASES, *CATEGORY_ALIASES, "id"}
CANONICAL = ("user_id", "item_id", "timestamp", "behavior", "value")

MS_PER: dict[str, float] = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
UNIT_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
LAST_MS = 7_258_118_400_000  # 2200-01-01
RANKS_BELOW = 1e8  # a median below this (March 1973 in seconds) is a rank, not a clock
NEARLY_ALL = 0.9  # share of numbers that are dates as yyyymmdd from which the others are mistakes, and no sign of ranks
ISO_FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M%z")
RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
METADATA_KEY = "largerec.time_kind"
FLOATS_ARE_EXACT_BELOW = 2**53
UNTIMED = -1  # the time of an event of which only the order is known, in a log with a clock
UNTIMED_MARK = "+untimed"  # behind the kind in the metadata of a file that has such events


class ColumnOptions(Options):
    """Names of the file's columns; None means: recognise it by its aliases."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    behavior: str | None = None
    value: str | None = None


def plain_name(name: str) -> str:
    """Return a column name without RecBole's type suffix: ``user_id:token`` is ``user_id``."""
    base, colon, kind = name.rpartition(":")
    return base if colon and kind in RECBOLE_TYPES else name


def holds_words(name: str, columns: ColumnOptions) -> bool:
    """Say whether a column may hold ids, titles or behaviours, so that a text reader must not change how they are written."""
    given = (columns.user, columns.item, columns.behavior)
    base = plain_name(name)
    return name in given or base in given or base.strip().lower() in WORD_ALIASES


def find_columns(names: list[str], aliases: tuple[str, ...]) -> list[str]:
    """Return the names that match an alias, in the order of the aliases."""
    return [name for alias in aliases for name in names if plain_name(name).strip().lower() == alias]


def resolve_columns(
    table: pl.DataFrame, columns: ColumnOptions, time_kind: AskedKind, source: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Find the column of each role by the given name or by alias; say what was read as what, and what else it could have been.

    Raises:
        LargeRecError: a named column is not there, two roles name one column, or no user, item or asked-for time is found.
    """
    roles: dict[str, str] = {}
    doubts: list[str] = []
    for role, aliases in ALIASES.items():
        given = getattr(columns, role)
        order_first = ORDER_ALIASES if role == "time" and time_kind == "order" else ()
        found = find_columns([name for name in table.columns if name not in roles.values()], order_first + aliases)
        if given is not None:
            name = given if given in table.columns else plain_name(given)
            if name not in table.columns:
                hint = nearest(given, table.columns)
                raise LargeRecError(
                    f"{source}: there is no column {given!r}, which data.columns.{role} names{hint} "
                    f"Columns: {', '.join(table.columns)}."
                )
            roles[role] = name
        elif found:
            roles[role] = found[0]
            if len(found) > 1:
                others = " or ".join(repr(name) for name in found[1:])
                doubts.append(
                    f"column {found[0]!r} is taken as the {role}, though {others} could be it too (data.columns.{role}=NAME)"
                )
    for role in ("user", "item", *(("time",) if time_kind == "timestamp" else ())):
        if role not in roles:
            close = [
                name for name in table.columns if difflib.get_close_matches(name.lower(), ALIASES[cast(Role, role)], cutoff=0.75)
            ]
            hint = f" Perhaps {' or '.join(repr(name) for name in close)}?" if close else ""
            raise LargeRecError(
                f"{source}: no column is recognised as the {role}; it has {', '.join(repr(name) for name in table.columns)}. "
                f"Pass data.columns.{role}=NAME.{hint} Recognised names: {', '.join(ALIASES[cast(Role, role)])}."
            )
    if len(set(roles.values())) < len(roles):
        raise LargeRecError(f"{source}: one column is named for two roles ({roles}). Name another one with data.columns.")
    read_as = ", ".join(f"{name!r} as {role}" for role, name in roles.items())
    return roles, (f"columns: {read_as}", *doubts)


def convert_ids(series: pl.Series, role: str, origin: Origin) -> tuple[pl.Series, tuple[str, ...]]:
    """Check ids and keep them as they are, integers or strings; whole floats (pandas makes them) become integers.

    Raises:
        LargeRecError: an id is null, blank, a fraction or beyond 64 bits; or the column holds something else.
    """
    fix = f"Give every event its {role}, or filter such rows out, e.g. data.where='\"{series.name}\" IS NOT NULL'"
    if series.null_count():
        raise origin.error(series.is_null(), series, f"is no {role} id", f"{fix}.")
    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype == pl.String:
        blank = series.str.strip_chars() == ""
        if blank.any():
            raise origin.error(blank, series, f"is no {role} id", f"{fix}.")
        return series, ()
    note: tuple[str, ...] = ()
    if series.dtype.is_float():
        broken = ~series.is_finite() | (series != series.round())
        if broken.any():
            raise origin.error(broken, series, f"is no {role} id: ids are integers or strings", "Write such ids as strings.")
        note = (f"{role} ids are whole numbers stored as floats: read as integers",)
    elif not series.dtype.is_integer():
        raise LargeRecError(
            f"{origin.source}, column {series.name!r}: {series.dtype} cannot be a {role} id. Use integers or strings."
        )
    if series.dtype.is_float() or series.dtype in (pl.Int128, pl.UInt128):
        small = series.cast(pl.Int64, strict=False)
        if small.null_count():
            problem = f"is too large for a {role} id in 64 bits"
            raise origin.error(small.is_null(), series, problem, "Write such ids as strings.")
        vague = small.abs() >= FLOATS_ARE_EXACT_BELOW
        if series.dtype.is_float() and vague.any():
            problem = f"is no {role} id: a float of this size has lost digits"
            raise origin.error(vague, series, problem, "Write such ids as integers or strings.")
        series = small
    return series, note


def next_ids(known: pl.Series, count: int) -> pl.Series:
    """The next integers after ids that are known, of their type, or Int64 where they fill a narrower one.

    Raises:
        LargeRecError: 64 bits have no room for so many.
    """
    highest = -1 if known.max() is None else int(cast(int, known.max()))  # Python's integers do not overflow
    fresh, dtype = range(highest + 1, highest + 1 + count), known.dtype
    if count and fresh[-1] > known.upper_bound()[0] and dtype != pl.UInt64:
        dtype = pl.Int64()
    if count and fresh[-1] > pl.Series([], dtype=dtype).upper_bound()[0]:
        raise LargeRecError(
            f"column {known.name!r}: ids are integers up to {highest}, and {count:,} new ones are needed, but {dtype} has no "
            "room above. Write these ids as text, or number them from 0."
        )
    return pl.Series(list(fresh), dtype=dtype)


def iso_time(ms: int) -> str:
    """Return milliseconds UTC as ``2024-03-31T18:30:00Z``."""
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ms)).isoformat().replace("+00:00", "Z")


def convert_times(
    series: pl.Series, unit: TimeUnit, asked: AskedKind, origin: Origin
) -> tuple[pl.Series, TimeKind, tuple[str, ...]]:
    """Return milliseconds UTC, or ranks, as Int64, with the kind and what was decided; every value is checked.

    Raises:
        LargeRecError: a time is null, unparsable, below zero, infinite or after 2200; or the column holds something else.
    """
    name = series.name
    fix = "Mend it, or filter such rows out with data.where"
    known = f'"{name}" IS NOT NULL'
    if series.dtype.is_float():
        known = f'"{name}" < 1e300' if series.is_nan().any() else known  # true of no NaN and of no null
        series = series.fill_nan(None)
    if series.null_count():
        raise origin.error(series.is_null(), series, "is no time", f"{fix}, e.g. data.where='{known}'.")
    if series.dtype in (pl.Date, pl.Datetime):
        note = (
            "times are dates"
            if series.dtype == pl.Date
            else "times are date-times" + ("" if getattr(series.dtype, "time_zone", None) else ", taken as UTC")
        )
        return _checked(series.cast(pl.Datetime("ms")).cast(pl.Int64), series, asked, note, origin)
    if series.dtype == pl.String:
        numbers = series.str.strip_chars().cast(pl.Float64, strict=False)
        is_number = numbers.is_not_null() & numbers.is_not_nan()
        if unit == "iso" or (unit == "auto" and is_number.mean() < 0.5):  # type: ignore[operator]
            return _checked(
                _parse_iso(series, origin), series, asked, "times are ISO dates (UTC where no zone is written)", origin
            )
        if not is_number.all():
            raise origin.error(~is_number, series, "is no number, though the other times are", f"{fix}.")
        exact = series.str.strip_chars().cast(pl.Int64, strict=False)
        given, series = series, (numbers if exact.null_count() else exact)
    else:
        given = series
    if not series.dtype.is_numeric() or series.dtype == pl.Boolean:
        raise LargeRecError(
            f"{origin.source}, column {name!r}: {series.dtype} cannot be a time. Use numbers, ISO strings, dates or date-times."
        )
    if unit == "iso":
        raise LargeRecError(
            f"{origin.source}, column {name!r}: data.time_unit=iso needs strings, not {series.dtype}. Use auto, s, ms, us or ns."
        )
    if not series.dtype.is_integer():
        series = series.cast(pl.Float64)
    bad = (series < 0) if series.dtype.is_integer() else ~series.is_finite() | (series < 0)
    if bad.any():
        problem = "is an impossible time or rank: below zero or infinite"
        raise origin.error(bad, given, problem, f"{fix}, e.g. data.where='\"{name}\" >= 0'.")
    return _numeric_times(series, given, unit, asked, origin)


def convert_gappy_times(
    series: pl.Series, unit: TimeUnit, asked: AskedKind, origin: Origin
) -> tuple[pl.Series, TimeKind, tuple[str, ...]]:
    """Like :func:`convert_times`, but an event without a time gets -1: it comes before all others, in the order of the rows."""
    known = series.is_not_null()
    if known.all() or not known.any():
        return convert_times(series, unit, asked, origin)
    rows = known.arg_true()
    inner = Origin(origin.source, rows if origin.kept is None else origin.kept.gather(rows), origin.place)
    try:
        timestamp, kind, said = convert_times(series.filter(known), unit, asked, inner)
    except BadRows as bad:
        mask = pl.repeat(False, series.len(), eager=True).scatter(rows.filter(bad.mask), True)
        raise BadRows(str(bad), mask, bad.column, bad.reason) from None
    whole = pl.repeat(UNTIMED, series.len(), dtype=pl.Int64, eager=True).scatter(rows, timestamp)
    note = f"{series.len() - rows.len():,} events have no time: they count as earlier than all others, in the order of the rows"
    return whole.alias(series.name), kind, (*said, note)


def _numeric_times(
    series: pl.Series, given: pl.Series, unit: TimeUnit, asked: AskedKind, origin: Origin
) -> tuple[pl.Series, TimeKind, tuple[str, ...]]:
    """Tell ranks, yyyymmdd dates and clocks of any unit apart by their median, which one wrong value cannot move."""
    middle = cast(float, series.median())
    if asked == "order" or (asked == "auto" and unit == "auto" and middle < RANKS_BELOW):
        dates = (
            series.cast(pl.Int64, strict=False).cast(pl.String).str.to_date("%Y%m%d", strict=False)
            if asked == "auto" and middle > 1.9e7
            else None
        )
        if dates is not None and dates.is_not_null().mean() >= NEARLY_ALL:  # type: ignore[operator]
            if dates.null_count():
                fix = "Mend it, or filter it out with data.where; data.time_kind=order if the numbers are ranks."
                raise origin.error(dates.is_null(), given, "is no date, though nearly all others are, written as yyyymmdd", fix)
            ms = dates.cast(pl.Datetime("ms")).cast(pl.Int64)
            return _checked(ms, given, asked, "times are dates written as yyyymmdd", origin)
        whole = series if series.dtype.is_integer() else series.rank("dense")
        note = f"column {series.name!r} is read as an order (ranks), not as a clock"
        advice = "" if asked == "order" else ": its values are too small for one (data.time_kind=timestamp if it is)"
        return whole.cast(pl.Int64), "order", (note + advice,)
    chosen = unit if unit != "auto" else ("s" if middle < 1e11 else "ms" if middle < 1e14 else "us" if middle < 1e17 else "ns")
    factor = MS_PER[chosen]
    limit = LAST_MS / factor
    late = series >= limit
    if late.any():
        problem = f"is an impossible time: after the year 2200 when times are {UNIT_WORDS[chosen]}"
        raise origin.error(
            late,
            given,
            problem,
            "Mend it, filter it out with data.where, or set the right data.time_unit (s, ms, us, ns).",
        )
    if series.dtype.is_integer():
        whole = series.cast(pl.Int64)
        ms = whole * round(factor) if factor >= 1 else whole // round(1 / factor)
    else:
        ms = (series * factor).round().cast(pl.Int64)
    how = "as asked" if unit != "auto" else "told by their size"
    return _checked(ms, given, asked, f"times are {UNIT_WORDS[chosen]} ({how})", origin)


def _parse_iso(series: pl.Series, origin: Origin) -> pl.Series:
    text = (
        series.str.strip_chars()
        .str.replace(r"\s?(?:Z|z|UTC)$", "+00:00")
        .str.replace(r"^(\S{10})\s", "${1}T")
        .str.replace(r"\s([+-]\d)", "$1")
    )
    ms = pl.Series(series.name, [None], dtype=pl.Int64).extend_constant(None, series.len() - 1)
    for pattern in ISO_FORMATS:
        if not ms.null_count():
            break
        parsed = text.str.to_datetime(pattern, time_unit="ms", strict=False).cast(pl.Int64)
        ms = ms.zip_with(ms.is_not_null(), parsed)
    if ms.null_count():
        fix = "Write times as 2024-03-31, 2024-03-31T18:30:00Z or as Unix seconds."
        raise origin.error(ms.is_null(), series, "is no ISO date", fix)
    return ms


def _checked(
    ms: pl.Series, given: pl.Series, asked: AskedKind, note: str, origin: Origin
) -> tuple[pl.Series, TimeKind, tuple[str, ...]]:
    bad = (ms < 0) | (ms >= LAST_MS)
    if bad.any():
        problem = "is an impossible time: before 1970 or after 2200"
        raise origin.error(bad, given, problem, "Mend it, or filter it out with data.where.")
    if asked == "order":
        return ms, "order", (note, "only the order of the times is used, as asked")
    return ms, "timestamp", (note, f"times run from {iso_time(cast(int, ms.min()))} to {iso_time(cast(int, ms.max()))}")


def convert_behaviors(series: pl.Series) -> tuple[pl.Series | None, tuple[str, ...]]:
    """Return behaviours as String, missing ones null; lists and structures stay a feature (None)."""
    if series.dtype.is_nested():
        return None, (f"column {series.name!r} holds {series.dtype}: kept as a feature, not read as the behaviour",)
    return series.cast(pl.String), ((f"{series.null_count():,} events have no behaviour",) if series.null_count() else ())


def convert_values(series: pl.Series, asked: bool, origin: Origin) -> tuple[pl.Series | None, tuple[str, ...]]:
    """Return values as Float64, missing ones null; words under a usual name stay a feature (None) unless they were asked for.

    Raises:
        LargeRecError: some values are numbers and one is not, or is infinite; or none is though the column was asked for.
    """
    numbers = None if series.dtype.is_nested() else series.cast(pl.Float64, strict=False)
    if numbers is None or (not asked and numbers.null_count() == numbers.len() > series.null_count()):
        if asked:
            raise LargeRecError(
                f"{origin.source}, column {series.name!r}: {series.dtype} cannot be a value. Name a column of numbers."
            )
        return None, (f"column {series.name!r} holds {series.dtype}, no numbers: kept as a feature, not read as the value",)
    broken = numbers.is_null() & series.is_not_null()
    if broken.any():
        fix = "Mend it, or name another column with data.columns.value=NAME."
        raise origin.error(broken, series, "is no number", fix)
    infinite = numbers.is_infinite()
    if infinite.any():
        fix = "Mend it, or name another column with data.columns.value=NAME."
        raise origin.error(infinite, series, "is an impossible value: infinite", fix)
    numbers = numbers.fill_nan(None)
    return numbers, ((f"{numbers.null_count():,} events have no value",) if numbers.null_count() else ())


def convert_text(series: pl.Series) -> pl.Series:
    """Return words as String, lists of words joined by ``|``, and the empty string as null."""
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    while isinstance(series.dtype, pl.List) and isinstance(series.dtype.inner, pl.List):
        series = series.list.eval(pl.element().explode())
    text = (
        series.cast(pl.List(pl.String)).list.join("|")
        if isinstance(series.dtype, pl.List)
        else series.cast(pl.String, strict=False)
    )
    return text.replace("", None)
