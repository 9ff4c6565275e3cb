"""Item tables as works on semantic IDs exchange them: one JSON object, from item ids to fields or to a list of codes."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from largerec.errors import LargeRecError


def parse_items(data: bytes, source: str) -> pl.DataFrame:
    """Parse ``<set>.item.json``: ``{"0": {"title": ..., "brand": ...}, ...}``; a field that an item lacks is null.

    Raises:
        LargeRecError: the text is empty, no JSON, or not an object of objects.
    """
    found = _parse(data, source, dict, '{"0": {"title": "..."}}')
    names = list(dict.fromkeys(name for fields in found.values() for name in fields if name != "item_id"))
    columns = {name: [_text(fields.get(name)) for fields in found.values()] for name in names}
    return pl.DataFrame({"item_id": _ids(found), **{name: pl.Series(name, texts, pl.String) for name, texts in columns.items()}})


def parse_codes(data: bytes, source: str) -> pl.DataFrame:
    """Parse ``<set>.index.json``, ready-made semantic IDs: ``{"0": ["<a_60>", "<b_159>", "<c_203>"], ...}``.

    Raises:
        LargeRecError: the text is empty, no JSON, or not an object of lists.
    """
    found = _parse(data, source, list, '{"0": ["<a_1>", "<b_2>"]}')
    codes = [[str(code) for code in item] for item in found.values()]
    return pl.DataFrame({"item_id": _ids(found), "codes": pl.Series("codes", codes, pl.List(pl.String))})


def _parse(data: bytes, source: str, kind: type, example: str) -> dict[str, Any]:
    if not data.strip():
        raise LargeRecError(f"{source}: the file is empty. Give a JSON object with an entry for every item.")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LargeRecError(f"{source}: this is not JSON ({error}). Such a file holds one object: {example}.") from error
    if not isinstance(found, dict) or not found:
        raise LargeRecError(f"{source}: a JSON {type(found).__name__} without entries. Such a file holds one object: {example}.")
    for item, value in found.items():
        if not isinstance(value, kind):
            raise LargeRecError(f"{source}, item {item!r}: {str(value)[:80]!r} is no {kind.__name__}. Write it as {example}.")
    return found


def _ids(found: dict[str, Any]) -> pl.Series:
    ids = pl.Series("item_id", list(found), pl.String)
    whole = ids.cast(pl.Int64, strict=False)
    return whole if not whole.null_count() and bool((whole.cast(pl.String) == ids).all()) else ids


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return json.dumps(value, ensure_ascii=False)
