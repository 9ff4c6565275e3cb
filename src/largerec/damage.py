"""Whether a file of a run holds what a run writes: the types that its readers rely on, and the one error where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from largerec.errors import LargeRecError


def damaged(file: Path, why: object) -> LargeRecError:
    """The error that says that a file is not what a run wrote."""
    return LargeRecError(f"{file} is damaged ({why}); restore the file or train again.")


def value_of(file: Path, document: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any) -> Any:
    """A value of the document that a file holds.

    Raises:
        LargeRecError: it is not of the type that a run writes.
    """
    if not isinstance(found := document.get(key, default), kind):
        raise damaged(file, f"{key} is {found!r:.80}")
    return found


def check_columns(file: Path, table: pl.DataFrame, ids: Sequence[str], whole: Sequence[str]) -> None:
    """Look at the columns of a table: ids are integers or text, others integers, and none has gaps.

    Raises:
        LargeRecError: a column is something else.
    """
    for column in (*ids, *whole):
        kind = table.schema[column]
        if not kind.is_integer() and (column not in ids or kind != pl.String):
            raise damaged(file, f"column {column!r} holds {kind}")
        if table[column].null_count():
            raise damaged(file, f"column {column!r} has gaps")
