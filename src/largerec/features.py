"""Features: what is known of a user, an item and the moment of asking before the answer, as rows of one table for the model.

Every column is categorical, many-valued or a number, and may have gaps. What values there are, where numbers are cut and how they
are scaled is learned from training events alone; a value that training does not know, and a missing one, have rows of their own.

Shapes: N rows of a side (events, users or items), S slots (a place for one value; a many-valued field has several), Z numbers,
F fields.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field as Option
from pydantic import field_validator, model_validator

from largerec.errors import LargeRecError, nearest
from largerec.moments import CLOCK, clock_columns
from largerec.options import Options

Side = Literal["context", "user", "item"]
SIDES: tuple[Side, ...] = ("context", "user", "item")
Where = Literal["heads", "input", "both"]
AskedType = Literal["auto", "categorical", "many", "number"]
FEW = 32
"""A whole number with at most so many values among training events is categorical."""
MOST_SLOTS = 32
SEPARATORS = "|,;"
DATE = r"^\d{4}-\d\d-\d\d([T ].*)?$"


class FeatureOptions(Options):
    """Which columns the model reads beside items and actions, and where they enter; only with tasks.

    ``context``: columns of events, known at the moment of asking, or ``hour`` and ``weekday`` of their time (UTC). ``user``,
    ``item``: columns of the users' and the items' table. Each is a list of names or a table of names and types: ``auto``,
    ``categorical``, ``many`` (several values) or ``number``. ``users``: the file of users; not set: one of a known name beside
    the log. ``known``: context columns whose name sounds like an outcome but which are known before the answer.

    ``where``: features join the hidden state in the task heads, or are added to the tokens (``input``), or ``both``, each with
    vectors of its own. ``width``: of a value's vector. ``numbers``: cut into ``buckets`` at quantiles, or standardised;
    ``min_count``: a value with fewer training events is unknown.
    """

    context: dict[str, AskedType] = Option({})
    user: dict[str, AskedType] = Option({})
    item: dict[str, AskedType] = Option({})
    users: str | None = None
    known: tuple[str, ...] = ()
    where: Where = "heads"
    width: int = Option(16, ge=1)
    numbers: Literal["buckets", "standard"] = "buckets"
    buckets: int = Option(16, ge=2, le=1024)
    min_count: int = Option(2, ge=1)

    @field_validator("context", "user", "item", mode="before")
    @classmethod
    def _names_are_enough(cls, given: Any) -> Any:
        return dict.fromkeys(given, "auto") if isinstance(given, (list, tuple)) else given

    @model_validator(mode="after")
    def _what_is_set_has_an_effect(self) -> Self:
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if changed and not self.any:
            raise LargeRecError(
                f"features.{changed[0]} says nothing without features; name columns, for example "
                "features.item=['category'] or features.context=['hour']."
            )
        for name in self.known:
            if name not in self.context:
                raise LargeRecError(f"features.known names {name!r}, which is not among features.context; leave it out.")
        if self.numbers == "standard" and self.buckets != type(self).model_fields["buckets"].default:
            raise LargeRecError('features.buckets says nothing with features.numbers="standard"; leave it out.')
        if self.users is not None and not self.user:
            raise LargeRecError("features.users says nothing without features.user; name columns of that file, or leave it out.")
        return self

    @property
    def any(self) -> bool:
        """Whether there is a feature at all."""
        return bool(self.context or self.user or self.item)

    def columns(self, side: Side) -> dict[str, AskedType]:
        """The columns of a side and their types."""
        found: dict[str, AskedType] = getattr(self, side)
        return found


# --- one field


@dataclass(frozen=True)
class Field:
    """One feature as training events show it.

    ``values``: those that have a row of their own, as text. ``separator``: of a text with several values. ``slots``: values of
    one row that are kept, the first ones. ``edges``: between a number's buckets; ``mean`` and ``scale`` of it otherwise.
    ``unseen``: which of 0 (missing) and 1 (unknown) no training event has, so that nothing is learned of them.
    """

    side: Side
    column: str
    kind: Literal["categorical", "many", "number"]
    values: tuple[str, ...] = ()
    separator: str | None = None
    slots: int = 1
    edges: tuple[float, ...] = ()
    mean: float = 0.0
    scale: float = 1.0
    standard: bool = False
    unseen: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.side}.{self.column}"

    @property
    def rows(self) -> int:
        """Rows of the field in the table: missing, then a number's buckets (one, if standardised), or unknown and the values."""
        if self.kind == "number":
            return 1 + (1 if self.standard else len(self.edges) + 1)
        return 2 + len(self.values)

    @property
    def first_value(self) -> int:
        """The first of those rows that is a value's."""
        return 1 if self.kind == "number" else 2

    def codes(self, given: pl.Series) -> np.ndarray:
        """Row of each value within the field, -1 in unused slots [N, slots]; 0 is missing, 1 unknown."""
        if self.kind == "number":
            value_N = as_numbers(given)
            known_N = ~np.isnan(value_N)
            code_N = np.zeros(len(value_N), dtype=np.int64)
            code_N[known_N] = 1 + (0 if self.standard else np.searchsorted(self.edges, value_N[known_N], side="right"))
            return code_N[:, None]
        if self.kind == "categorical":
            return self._numbered(as_text(given))[:, None]
        lists = as_lists(given, self.separator)
        code_NS = np.full((len(lists), self.slots), -1, dtype=np.int64)
        kept = lists.list.head(self.slots)
        length_N = kept.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        flat = kept.filter(kept.list.len() > 0).explode() if length_N.any() else pl.Series([], dtype=pl.String)
        place_M = np.arange(len(flat)) - np.repeat(np.cumsum(length_N) - length_N, length_N)
        code_NS[np.repeat(np.arange(len(lists)), length_N), place_M] = self._numbered(flat)
        code_NS[length_N == 0, 0] = 0
        return code_NS

    def _numbered(self, text: pl.Series) -> np.ndarray:
        table = pl.DataFrame({"value": pl.Series(self.values, dtype=pl.String), "code": np.arange(2, len(self.values) + 2)})
        found = text.alias("value").to_frame().join(table, on="value", how="left", maintain_order="left")["code"]
        return np.where(text.is_null().to_numpy(), 0, found.fill_null(1).to_numpy())

    def scaled(self, given: pl.Series) -> np.ndarray:
        """A standardised number, at most 10 from its mean, 0 where it is missing [N]."""
        value_N = (as_numbers(given) - self.mean) / self.scale
        return np.nan_to_num(np.clip(value_N, -10, 10), nan=0.0).astype(np.float32)


def as_numbers(given: pl.Series) -> np.ndarray:
    """Values as float64, NaN where there is none; dates as days since 1970. [N]"""
    if given.dtype == pl.String:
        dates = given.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Float64)
        given = given.str.strip_chars().cast(pl.Float64, strict=False).fill_null(dates)
    elif given.dtype.is_temporal():
        given = given.cast(pl.Datetime("ms")).cast(pl.Int64) / 86_400_000
    value_N = given.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    return np.where(np.isfinite(value_N), value_N, np.nan)


def as_text(given: pl.Series) -> pl.Series:
    """Values as text, null where there is none; whole floats as integers, so that 1.0 and 1 are one value."""
    if given.dtype.is_float():
        whole = given.is_finite() & (given == given.round()) & (given.abs() < 2**53)
        text = given.cast(pl.String)
        text = given.fill_nan(None).cast(pl.Int64, strict=False).cast(pl.String).zip_with(whole.fill_null(False), text)
        return text.zip_with(given.is_not_nan().fill_null(False), pl.Series([None], dtype=pl.String))
    text = given.cast(pl.String).str.strip_chars()
    return text.zip_with((text != "").fill_null(False), pl.Series([None], dtype=pl.String))


def as_lists(given: pl.Series, separator: str | None) -> pl.Series:
    """Values as lists of distinct texts; an empty list where there is none."""
    if isinstance(given.dtype, (pl.List, pl.Array)):
        lists = given.cast(pl.List(pl.String))
    else:
        text = as_text(given)
        lists = text.str.split(separator) if separator else text.to_frame("value").select(pl.concat_list("value")).to_series()
    value = pl.element().str.strip_chars()
    kept = pl.col("value").list.eval(value.filter(value.fill_null("") != "")).list.unique(maintain_order=True)
    return lists.to_frame("value").select(kept.fill_null(pl.lit([], dtype=pl.List(pl.String)))).to_series()


def as_given(name: str, value: Any, kind: pl.DataType, *, number: bool) -> pl.Series:
    """One value of a column of type ``kind`` as training reads that column; text, as a command line has it, becomes that type,
    and empty text a missing value. ``number``: whether the column is read as one, which one of texts may be too.

    Raises:
        LargeRecError: the text says no value of that type.
    """
    value = (value.strip() or None) if isinstance(value, str) else value
    if isinstance(value, bool) and kind.is_numeric():
        value = int(value)
    elif isinstance(value, int | float) and value in (0, 1) and kind == pl.Boolean:
        value = bool(value)
    if not isinstance(value, str) or kind.is_nested():
        return pl.Series([value], strict=False)
    found = text = pl.Series([value])
    allowed = "a number or an ISO date such as 2022-05-09"
    if kind == pl.Boolean:
        found = pl.Series([{"true": True, "1": True, "false": False, "0": False}.get(value.lower())], dtype=kind)
        allowed = "true or false"
    elif kind in (pl.Date, pl.Datetime):
        found, allowed = _as_moment(value, kind), "an ISO date such as 2022-05-09 or 2022-05-09T12:00"
    elif kind.is_integer():
        found, allowed = text.cast(pl.Int128, strict=False), "a whole number"
    elif kind.is_numeric():
        found, allowed = text.cast(kind, strict=False), "a number"
    if found[0] is None or ((number or kind.is_numeric()) and np.isnan(as_numbers(found)[0])):
        raise LargeRecError(f"context {name}={value!r} does not fit its column ({kind}): give {allowed}, or leave it out.")
    return found


def _as_moment(text: str, kind: pl.DataType) -> pl.Series:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return pl.Series([None], dtype=kind)
    found = pl.Series([moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)])
    zone = kind.time_zone if isinstance(kind, pl.Datetime) else None
    return (found.dt.convert_time_zone(zone) if zone else found.dt.replace_time_zone(None)).cast(kind)


def told_type(column: str, known: pl.Series) -> tuple[Literal["categorical", "many", "number"], str | None]:
    """The type of a column by its values among training events (gaps left out), and the separator of a text with several.

    A list is many-valued. A text is a number where all of it are ISO dates; many-valued where one of ``|``, ``,`` and ``;``
    stands in some value, never beside a blank, and no such value has brackets; else categorical. A number is categorical where
    the column's name ends with ``id``, or where it is whole and has at most ``FEW`` values; else it is a number. Booleans are
    categorical.
    """
    if isinstance(known.dtype, (pl.List, pl.Array)):
        return "many", None
    if known.dtype.is_temporal():
        return "number", None
    if known.dtype == pl.String:
        if known.str.contains(DATE).all():
            return "number", None
        for separator in SEPARATORS:
            having = known.filter(known.str.contains(separator, literal=True))
            blank = rf"\s{re.escape(separator)}|{re.escape(separator)}\s|[\[\](){{}}]"
            if len(having) and not having.str.contains(blank).any():
                return "many", separator
        return "categorical", None
    if not known.dtype.is_numeric() or column.lower().endswith("id"):
        return "categorical", None
    whole = bool((known == known.round()).all()) if known.dtype.is_float() else True
    return ("categorical" if whole and known.n_unique() <= FEW else "number"), None


def fit_field(
    side: Side, column: str, asked: AskedType, given: pl.Series, weight_N: np.ndarray, options: FeatureOptions
) -> Field:
    """What training events show of a column; ``weight_N``: how many of them have each row of ``given``.

    Raises:
        LargeRecError: no training event knows it, its values are of no use, or the asked type does not fit.
    """
    name, used = f"{side}.{column}", weight_N > 0
    nested = isinstance(given.dtype, pl.List) and given.dtype.inner.is_nested()
    if nested or isinstance(given.dtype, (pl.Struct, pl.Time, pl.Duration)):
        raise LargeRecError(
            f"feature {name} holds {given.dtype}; texts, numbers, booleans, dates and lists of those can be read."
        )
    given, weight_N = given.filter(pl.Series(used)), weight_N[used]
    known = given.drop_nulls()
    known = known.drop_nans() if known.dtype.is_float() else known
    known = known.filter(known.str.strip_chars() != "") if known.dtype == pl.String else known
    if not len(known):
        raise LargeRecError(
            f"feature {name} is missing in every training event, so nothing could be learned of it; leave it out."
        )
    told, separator = told_type(column, known)
    kind = told if asked == "auto" else asked
    if kind == "many" and separator is None and known.dtype == pl.String:
        separator = next((one for one in SEPARATORS if known.str.contains(one, literal=True).any()), None)
    if kind == "number":
        return _with_unseen(_fit_number(side, column, given, weight_N, options), given)
    if kind == "categorical" and isinstance(given.dtype, (pl.List, pl.Array)):
        raise LargeRecError(f"feature {name} holds lists, which are no single value; its type is many (or auto).")
    lists = (
        as_lists(given, separator)
        if kind == "many"
        else as_text(given).to_frame("value").select(pl.concat_list("value")).to_series()
    )
    counts = pl.DataFrame({"value": lists, "events": weight_N}).explode("value").drop_nulls("value")
    counts = counts.group_by("value").agg(pl.col("events").sum()).filter(pl.col("events") >= options.min_count)
    values = counts.sort("events", "value", descending=[True, False])["value"].to_list()
    slots = min(MOST_SLOTS, max(1, int(lists.list.len().max() or 1))) if kind == "many" else 1  # type: ignore[arg-type]
    return _with_unseen(Field(side, column, kind, tuple(values), separator if kind == "many" else None, slots), given)


def _with_unseen(field: Field, given: pl.Series) -> Field:
    code_NS = field.codes(given)
    return replace(field, unseen=tuple(code for code in range(field.first_value) if not (code_NS == code).any()))


def _fit_number(side: Side, column: str, given: pl.Series, weight_N: np.ndarray, options: FeatureOptions) -> Field:
    value_N = as_numbers(given) if not given.dtype.is_nested() else np.full(len(given), np.nan)
    known_N = ~np.isnan(value_N)
    if not known_N.any():
        raise LargeRecError(
            f"feature {side}.{column} has no value that is a number or an ISO date, for example {given.drop_nulls()[0]!r}; "
            "its type is categorical (or auto)."
        )
    each = np.repeat(value_N[known_N], weight_N[known_N])
    if options.numbers == "standard":
        return Field(
            side, column, "number", mean=float(each.mean()), scale=float(each.std()) if np.ptp(each) else 1.0, standard=True
        )
    cut = np.unique(np.quantile(each, np.linspace(0, 1, options.buckets + 1)[1:-1]))
    return Field(side, column, "number", edges=tuple(float(edge) for edge in cut))


# --- all fields


@dataclass(frozen=True)
class FieldLayout:
    """What a model must know of the fields: rows of the table (row 0 is no value), the field of each slot [S] and of each
    standardised number [Z], their names [F], and the width of a value's vector. ``unseen``: rows that no training event has, each
    with the first of its field's values and the row behind the last."""

    rows: int
    field_S: tuple[int, ...]
    field_Z: tuple[int, ...]
    names: tuple[str, ...]
    width: int
    unseen: tuple[tuple[int, int, int], ...] = ()

    @property
    def n_fields(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Features:
    """The fields of a run and the columns behind them: one row an event of the sequences, a user, an item of the catalogue."""

    fields: tuple[Field, ...]
    tables: Mapping[Side, pl.DataFrame]
    width: int

    def layout(self) -> FieldLayout:
        slots = [number for number, field in enumerate(self.fields) for _ in range(field.slots)]
        numbers = [number for number, field in enumerate(self.fields) if field.standard]
        names = tuple(field.name for field in self.fields)
        unseen, first = [], 1
        for field in self.fields:
            unseen += [(first + code, first + field.first_value, first + field.rows) for code in field.unseen]
            first += field.rows
        return FieldLayout(first, tuple(slots), tuple(numbers), names, self.width, tuple(unseen))

    @property
    def clock(self) -> list[str]:
        """The context columns that are made of the time, which are Int8; one of such a name that the log itself has is not."""
        kinds = self.tables["context"].schema
        return [name for name in CLOCK if kinds.get(name) == pl.Int8]

    def of_side(self, side: Side) -> Iterator[tuple[int, Field]]:
        """The fields of a side, each with its first row in the table."""
        first = 1
        for field in self.fields:
            if field.side == side:
                yield first, field
            first += field.rows

    def coded(self, side: Side, table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the table [N + 1, S of the side] and standardised numbers [N + 1, Z of the side]; the last is all missing."""
        codes, numbers = [np.empty((table.height + 1, 0), dtype=np.int64)], [np.empty((table.height + 1, 0), dtype=np.float32)]
        for first, field in self.of_side(side):
            code_NS = np.concatenate([field.codes(table[field.column]), np.full((1, field.slots), -1)])
            code_NS[-1, 0] = 0
            codes.append(np.where(code_NS < 0, 0, code_NS + first))
            if field.standard:
                numbers.append(np.append(field.scaled(table[field.column]), np.float32(0))[:, None])
        return np.concatenate(codes, axis=1), np.concatenate(numbers, axis=1)

    def digest(self) -> str:
        """SHA-256 of the fields and of every value behind them."""
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode())
        for side in SIDES:
            for part in (*self.coded(side, self.tables[side]),):
                digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"width": self.width, "fields": [asdict(field) for field in self.fields]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], tables: Mapping[Side, pl.DataFrame]) -> Self:
        """Read back what :meth:`to_json` wrote; the tables have the columns of the fields."""
        fields = []
        for one in document["fields"]:
            lists = {name: tuple(one.get(name, ())) for name in ("values", "edges", "unseen")}
            given: dict[str, Any] = {**one, **lists}
            fields.append(Field(**given))
        return cls(tuple(fields), tables, int(document["width"]))


class FeatureRows:
    """The features of every event, user and item, coded once. Row -1 of each side is "nothing is known"."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.codes, self.numbers = {}, {}
        for side in SIDES:
            self.codes[side], self.numbers[side] = features.coded(side, features.tables[side])

    def of(self, context_T: np.ndarray, user_T: np.ndarray, item_T: np.ndarray) -> dict[str, torch.Tensor]:
        """``code`` [T, S] and ``number`` [T, Z] of events by their row, their user and their item (-1: unknown)."""
        rows: dict[Side, np.ndarray] = {"context": context_T, "user": user_T, "item": item_T}
        return self._joined({side: self._at(side, row_T) for side, row_T in rows.items()})

    def _at(self, side: Side, row_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.codes[side].shape[1]:  # a side without features has no rows either
            return np.empty((len(row_T), 0), dtype=np.int64), np.empty((len(row_T), 0), dtype=np.float32)
        return self.codes[side][row_T], self.numbers[side][row_T]

    def with_moments(self, time_R: np.ndarray) -> tuple[FeatureRows, np.ndarray]:
        """The same rows and a context row for each of R moments (ms UTC), which knows the clock alone; and where those stand."""
        clock = clock_columns(dict.fromkeys(self.features.clock), time_R)
        columns = [field.column for _, field in self.features.of_side("context")]
        table = pl.DataFrame({name: clock.get(name, pl.Series([None] * len(time_R))) for name in columns})
        other, code, number = copy.copy(self), self.codes["context"], self.numbers["context"]
        more = self.features.coded("context", table)
        other.codes = self.codes | {"context": np.concatenate([code[:-1], more[0]])}
        other.numbers = self.numbers | {"context": np.concatenate([number[:-1], more[1]])}
        return other, len(code) - 1 + np.arange(len(time_R))

    def of_candidates(self, context: Mapping[str, Any], user: int, item_C: np.ndarray) -> dict[str, torch.Tensor]:
        """The same of items that are asked about at one moment: ``context`` has values by column, those left out are missing.

        Raises:
            LargeRecError: the run has no such context feature, or it is given as text that does not fit.
        """
        fields = {field.column: field for _, field in self.features.of_side("context")}
        names, kinds = list(fields), self.features.tables["context"].schema
        for name in context:
            if name not in names:
                some = f"It has: {', '.join(names)}." if names else "It has none."
                raise LargeRecError(f"context {name!r} is no context feature of this run{nearest(name, names)} {some}")
        told = {name: as_given(name, context.get(name), kinds[name], number=fields[name].kind == "number") for name in names}
        table = pl.DataFrame(told)
        code, number = self.features.coded("context", table)
        at = np.full(len(item_C), user)
        return self._joined(
            {
                "context": (np.repeat(code[:1], len(at), axis=0), np.repeat(number[:1], len(at), axis=0)),
                "user": self._at("user", at),
                "item": self._at("item", item_C),
            }
        )

    @staticmethod
    def _joined(parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
        code, number = (np.concatenate([parts[side][which] for side in SIDES], axis=1) for which in (0, 1))
        return {"code": torch.from_numpy(code), "number": torch.from_numpy(number)}


def context_at(features: Features, moment: datetime | None) -> dict[str, Any]:
    """What the clock says of a moment of asking, as context."""
    if moment is None:
        return {}
    at = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    found = clock_columns(dict.fromkeys(features.clock), np.array([round(at.timestamp() * 1000)]))
    return {name: values[0] for name, values in found.items()}
