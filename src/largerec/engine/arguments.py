"""What may be given to an Engine: each argument is read here, and one of the wrong kind is told as such."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from largerec.errors import LargeRecError

MOST_SHOWN = 80
"""Characters of a value in a message."""
MOST_WEIGHT = 1e9
"""Of a wanted task: orders by the task alone, and is far from where single precision ends."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def told(given: Any) -> str:
    """A value as a message shows it: an id of thousands of digits is cut, and Python would not even write such a number."""
    try:
        text = repr(given)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def list_of_ids(given: Any, name: str, example: str) -> list[Any]:
    """Ids from a list, tuple, set, column or generator of them.

    Raises:
        LargeRecError: it is one id or text, which would be read by letter, no list at all, or a list of lists.
    """
    found = _listed(given, name, "ids", example)
    nested = next((one for one in found if _is_nested(one)), None)
    if nested is not None:
        raise LargeRecError(f"{name} holds {told(nested)}, and each element is one id; write {example}.")
    return found


def lists_of_ids(given: Any, name: str, example: str) -> list[list[Any]]:
    """Several such lists.

    Raises:
        LargeRecError: it is no list, or an element of it is none.
    """
    return [list_of_ids(one, f"an element of {name}", example) for one in _listed(given, name, "lists of ids", example)]


def _listed(given: Any, name: str, what: str, example: str) -> list[Any]:
    if not isinstance(given, str | bytes | bytearray | Mapping | pl.DataFrame) and isinstance(given, Iterable):
        try:
            return list(given)
        except TypeError:  # an array of no dimension
            pass
    raise LargeRecError(f"{name} is {told(given)}, and it must be a list of {what}; write {example}.")


def _is_nested(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str | bytes | bytearray)


def one_id(given: Any, name: str, example: str) -> Any:
    """A single id.

    Raises:
        LargeRecError: it is a list or the like.
    """
    if _is_nested(given):
        raise LargeRecError(f"{name} is {told(given)}, and it must be one id; write {example}.")
    return given


def length_of_list(k: Any) -> int:
    """How many items are asked for.

    Raises:
        LargeRecError: it is no whole number, or below 1.
    """
    try:
        found = operator.index(k)
    except TypeError:
        found = None
    if found is None or isinstance(k, bool):
        raise LargeRecError(f"k={told(k)} is no whole number; write for example k=10.")
    if found < 1:
        raise LargeRecError(f"k={found} is too small; ask for at least one item.")
    return found


def weight_of_wanted(want_weight: Any, want: str | None) -> float:
    """How much the wanted task counts, 1 if nothing is said.

    Raises:
        LargeRecError: it is no number from 0 to ``MOST_WEIGHT``, or nothing is wanted.
    """
    if want_weight is None:
        return 1.0
    if want is None:
        raise LargeRecError(f"want_weight={told(want_weight)} says nothing without want; name a task or leave it out.")
    weight: Any = want_weight if isinstance(want_weight, numbers.Real) else math.nan
    if 0 <= weight <= MOST_WEIGHT:
        return float(weight)
    raise LargeRecError(
        f"want_weight={told(want_weight)} must be a number from 0 to {MOST_WEIGHT:g}: 0 is plain retrieval, 1 weighs both alike."
    )


def moment_of(at: Any) -> datetime | None:
    """A moment, in UTC; one without a zone is taken to be in UTC.

    Raises:
        LargeRecError: it is neither a datetime nor the ISO text of one, or beyond the years 1 to 9999 in UTC.
    """
    if at is None:
        return None
    given = at
    if isinstance(at, str):
        try:
            given = datetime.fromisoformat(at)
        except ValueError:
            given = None
    if not isinstance(given, datetime) or given != given:  # pandas' missing moment is a datetime that equals nothing
        raise LargeRecError(
            f"at={told(at)} is no moment; give a datetime such as datetime(2022, 5, 9, 12), or ISO text such as "
            '"2022-05-09T12:00", in UTC where it names no zone.'
        )
    try:
        return given.astimezone(UTC) if given.tzinfo else given.replace(tzinfo=UTC)
    except OverflowError:
        raise LargeRecError(f"at={told(at)} is beyond the years 1 to 9999 in UTC; give a moment within them.") from None


def milliseconds(at: datetime) -> int:
    """Whole milliseconds from 1970 to a moment in UTC; rounded down, for what comes a moment later has not happened yet."""
    return (at - EPOCH) // timedelta(milliseconds=1)


def context_of(context: Any) -> Mapping[str, Any]:
    """Values of context features by column.

    Raises:
        LargeRecError: it is no mapping.
    """
    if context is None:
        return {}
    if not isinstance(context, Mapping):
        raise LargeRecError(f'context={told(context)} names no columns; write for example context={{"tab": 1}}.')
    return context


def prices_of(prices: Any) -> list[float] | None:
    """Prices as numbers, NaN where one is unknown.

    Raises:
        LargeRecError: it is no list of numbers.
    """
    if prices is None:
        return None
    example = "prices=[71, 107.5]"
    found = [math.nan if one is None else one for one in _listed(prices, "prices", "numbers", example)]
    wrong = next((one for one in found if not isinstance(one, numbers.Number) or isinstance(one, complex)), None)
    if wrong is not None:
        raise LargeRecError(f"prices holds {told(wrong)}, which is no number; write for example {example}.")
    return [float(one) for one in found]
