"""The one exception a user is meant to read: it says what was given, what is allowed and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LargeRecError(Exception):
    """A mistake in data, recipe or use that the message teaches how to mend. The command line prints it without a traceback."""


class Diverged(LargeRecError):
    """Training ended because its loss or gradient, or a score on validation, was no number any more."""


class Unfit(LargeRecError):
    """A setting does not fit this log or this machine, which only trying it could say."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest allowed word, or a full stop when none is close: it ends a sentence."""
    matches = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else "."
