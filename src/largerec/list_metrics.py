"""Metrics of one choice among a list of shown items: pure functions on numpy arrays.

Lists are packed: the scores of list l are ``score_S[offsets_L1[l]:offsets_L1[l + 1]]``. L lists, S shown items of all of them.
A list is summed up by the rank of the item that was chosen, from 1, equal scores sharing the average rank; items that a model
knows nothing of have the score ``-inf`` and share the last places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from largerec.errors import LargeRecError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def list_of(offsets_L1: Ints) -> Ints:
    """The list of each shown item [S]."""
    found: Ints = np.repeat(np.arange(len(offsets_L1) - 1), np.diff(offsets_L1))
    return found


def places(offsets_L1: Ints) -> Ints:
    """The place at which each item was shown, from 0 [S]."""
    found: Ints = np.arange(offsets_L1[-1]) - np.repeat(offsets_L1[:-1], np.diff(offsets_L1))
    return found


def chosen_ranks(score_S: ArrayLike, offsets_L1: ArrayLike, chosen_L: ArrayLike) -> Floats:
    """Rank of the chosen item of each list: ``1 + (number greater) + (number of others equal) / 2``. [L]

    Args:
        score_S: higher is better; ``-inf`` where there is nothing to say.
        chosen_L: the chosen item's place in its list, from 0.

    Raises:
        LargeRecError: lengths disagree, a list is empty, a chosen place is not in its list, or a score is NaN.
    """
    scores, offsets = np.asarray(score_S, dtype=np.float64), np.asarray(offsets_L1, dtype=np.int64)
    chosen = np.asarray(chosen_L, dtype=np.int64)
    length_L = np.diff(offsets)
    if len(scores) != offsets[-1] or len(chosen) != len(length_L):
        raise LargeRecError(
            f"{len(scores)} scores and {len(chosen)} choices do not fit lists of {offsets[-1]} items in {len(length_L)} lists; "
            "give one score a shown item and one choice a list."
        )
    if ((chosen < 0) | (chosen >= length_L)).any():
        at = int(np.flatnonzero((chosen < 0) | (chosen >= length_L))[0])
        raise LargeRecError(f"list {at} has {length_L[at]} items, but the choice is at place {chosen[at]}; leave such lists out.")
    if np.isnan(scores).any():
        raise LargeRecError("a score is NaN, which has no rank: the model diverged. Train again with a lower learning rate.")
    own_S = np.repeat(scores[offsets[:-1] + chosen], length_L)
    if not len(chosen):
        return np.empty(0)
    greater_L = np.add.reduceat((scores > own_S).astype(np.float64), offsets[:-1])
    equal_L = np.add.reduceat((scores == own_S).astype(np.float64), offsets[:-1])
    ranks: Floats = 1.0 + greater_L + (equal_L - 1.0) / 2.0
    return ranks


def list_values(rank_L: Floats, ks: Sequence[int]) -> Mapping[str, Floats]:
    """The value of each metric for each list: ``mrr`` (1 / rank) and ``ndcg`` (1 / log2(1 + rank)) of the whole list, ``hit@1``,
    and ``ndcg@k`` and ``hit@k`` at each cutoff, 0 where rank > k."""
    gain_L = 1.0 / np.log2(1.0 + rank_L)
    found = {"mrr": 1.0 / rank_L, "ndcg": gain_L, "hit@1": (rank_L <= 1).astype(np.float64)}
    for k in ks:
        found[f"ndcg@{k}"] = np.where(rank_L <= k, gain_L, 0.0)
        found[f"hit@{k}"] = (rank_L <= k).astype(np.float64)
    return found
