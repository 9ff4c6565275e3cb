"""Patterns of a log: short runs of items, in order, that several users have within a few events.

Letters: N events grouped by user, P patterns, L items of a pattern.
"""

from __future__ import annotations

import itertools

import numpy as np

from largerec.cures.rows import Floats
from largerec.sequences import Sequences

Ints = np.ndarray


def occurrences(sequences: Sequences, length: int, window: int) -> tuple[Ints, Ints]:
    """Every run of ``length`` items in order within ``window`` events of a user: items [O, L] and row of the last one [O].

    Each is counted once at each last event; its items need not be neighbours, but no two are the same.
    """
    item_N, user_N = sequences.item_N, sequences.user_N
    items, rows = [], []
    for before in itertools.combinations(range(1, window), length - 1):
        lags = sorted(before, reverse=True)
        at = np.arange(lags[0], len(item_N))
        at = at[user_N[at - lags[0]] == user_N[at]]
        run_OL = np.stack([item_N[at - lag] for lag in lags] + [item_N[at]], axis=1)
        ordered = np.sort(run_OL, axis=1)
        distinct = (np.diff(ordered, axis=1) > 0).all(axis=1)
        items.append(run_OL[distinct])
        rows.append(at[distinct])
    return np.concatenate(items).astype(np.int64), np.concatenate(rows)


def frequent(sequences: Sequences, length: int, window: int, users: int) -> tuple[Ints, Floats, Ints, Ints]:
    """Patterns that at least so many users have: items [P, L], how many users [P]; and pairs (user, pattern) of who has them."""
    run_OL, row_O = occurrences(sequences, length, window)
    if not len(run_OL):
        empty = np.zeros(0, dtype=np.int64)
        return np.zeros((0, length), dtype=np.int64), np.zeros(0), empty, empty
    pattern_PL, code_O = np.unique(run_OL, axis=0, return_inverse=True)
    code_O = code_O.reshape(-1)
    pair = np.unique(sequences.user_N[row_O] * len(pattern_PL) + code_O)
    user_J, pattern_J = np.divmod(pair, len(pattern_PL))
    count_P = np.bincount(pattern_J, minlength=len(pattern_PL))
    kept_P = count_P >= users
    number_P = np.cumsum(kept_P) - 1
    mine = kept_P[pattern_J]
    return pattern_PL[kept_P], count_P[kept_P].astype(np.float64), user_J[mine], number_P[pattern_J[mine]]
