"""Events that were not meant: left within moments, on an item that fits neither what came before nor what came after.

A score is an approximate log likelihood ratio. If the event was a mis-click, its item is any item, and the user is gone in a
moment; if it was meant, its item comes as often as it is popular, and as the items beside it make likely:

    log (1 / V) - log P(i) - pmi(before, i) - pmi(i, after) + pmi(before, after) - log P(pause after <= this one)

where pmi is the pointwise mutual information (Church and Hanks, 1990) of two items within three events of a user, from counts
of the log itself without the pair that is judged, shrunk to zero by half an event.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from largerec.audit.findings import Finding, by_share, curate_command
from largerec.audit.ordered import SECOND, Floats, Ints, Ordered

REACH = 3  # events between two items that count as together
SHRINK = 0.5
SAMPLE = 1_000_000  # events that an audit scores
SUSPECT = 6.0  # score of a suspect, about 400 to 1
MOMENT_MS = 10 * SECOND  # in which a suspect is left


class Together:
    """How often two items come within three events of one user, in either order."""

    def __init__(self, log: Ordered) -> None:
        self.items = len(log.item_ids)
        parts = []
        for lag in range(1, min(REACH, len(log) - 1) + 1):
            same = log.user_N[lag:] == log.user_N[:-lag]
            parts.append(self._key(log.item_N[:-lag][same], log.item_N[lag:][same]))
        keys = np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        self.key_K, self.count_K = keys[starts], np.diff(starts, append=len(keys))
        self.share_V = log.count_V / max(1, len(log))
        self.pairs = len(keys)

    def _key(self, a: np.ndarray, b: np.ndarray) -> Ints:
        low, high = np.minimum(a, b).astype(np.int64), np.maximum(a, b).astype(np.int64)
        key: Ints = low * self.items + high
        return key

    def pmi(self, a: np.ndarray, b: np.ndarray, without: int) -> Floats:
        """Pointwise mutual information of pairs of items, with so many meetings of each left out; 0 where one is -1."""
        known = (a >= 0) & (b >= 0)
        a, b = np.where(known, a, 0), np.where(known, b, 0)
        key = self._key(a, b)
        at = np.minimum(np.searchsorted(self.key_K, key), max(0, len(self.key_K) - 1))
        count = np.where(self.key_K[at] == key, self.count_K[at], 0) if len(self.key_K) else np.zeros(len(a))
        expected = self.pairs * self.share_V[a] * self.share_V[b] * np.where(a == b, 1.0, 2.0)
        found: Floats = np.where(known, np.log((np.maximum(count - without, 0) + SHRINK) / (expected + SHRINK)), 0.0)
        return found


def neighbours(log: Ordered) -> tuple[Ints, Ints]:
    """Items of the user's event before and after each event, -1 where there is none [N each]."""
    before_N, after_N = (np.full(len(log), -1, dtype=np.int64) for _ in range(2))
    before_N[1:] = np.where(log.follows_N[1:], log.item_N[:-1], -1)
    after_N[:-1] = np.where(log.follows_N[1:], log.item_N[1:], -1)
    return before_N, after_N


def haste(log: Ordered) -> Floats:
    """Minus the logarithm of the share of pauses that are no longer than the one after each event [N]; 0 for a last event."""
    pause_N = np.full(len(log), -1, dtype=np.int64)
    pause_N[:-1] = log.pause_N[1:]
    known = pause_N >= 0
    sorted_ = np.sort(pause_N[known])
    haste_N = np.zeros(len(log))
    if log.has_clock and len(sorted_):
        haste_N[known] = -np.log(np.searchsorted(sorted_, pause_N[known], side="right") / len(sorted_))
    return haste_N


def misfit(log: Ordered) -> Floats:
    """How badly the item of each event fits its neighbours and its own popularity: the score without time [N]."""
    together, item_N = Together(log), log.item_N.astype(np.int64)
    before_N, after_N = neighbours(log)
    fit_N = together.pmi(before_N, item_N, 1) + together.pmi(item_N, after_N, 1) - together.pmi(before_N, after_N, 1)
    found: Floats = -np.log(max(1, len(log.item_ids)) * together.share_V[item_N]) - fit_N
    return found


def scores(log: Ordered) -> Floats:
    """Log likelihood ratio, about, of each event being a mis-click [N]; high means likely."""
    found: Floats = misfit(log) + haste(log)
    return found


def findings(log: Ordered, data: Sequence[str]) -> list[Finding]:
    """Suspected mis-clicks, in a sample of the users where the log is long."""
    if not log.tells(MOMENT_MS) or len(log) < 100:
        return []
    some = log.some_users(SAMPLE)
    left_N = np.full(len(some), -1, dtype=np.int64)
    left_N[:-1] = some.pause_N[1:]
    suspect_N = (scores(some) >= SUSPECT) & (left_N >= 0) & (left_N <= MOMENT_MS)
    count = int(suspect_N.sum())
    if not count:
        return []
    sampled = "" if some is log else f" (of a random sample of {len(some):,} events of whole users)"
    said = (
        f"{count:,} events{sampled} were left within {MOMENT_MS // SECOND} seconds and fit neither the item before nor the one "
        f"after: they look like mis-clicks."
    )
    cure = "Leave them out, or leave them in as history that is not learned from (action=history)."
    severity = by_share(count, len(some), 0.01, 1.1)
    return [
        Finding(
            "suspected mis-clicks", "fault", severity, count, "events", len(some), said, cure,
            curate_command(data, "misclicks"),
            some.examples(np.flatnonzero(suspect_N)), {"threshold": SUSPECT},
        )
    ]  # fmt: skip
