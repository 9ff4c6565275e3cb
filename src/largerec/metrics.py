"""Ranking metrics, their uncertainty, and the slices they are reported on: pure functions on numpy arrays.

Every row has one target, so a ranking is summed up by one number, ``rank_N`` (float64): the 1-based rank of the target among all
candidates. Ties get the average rank, so half ranks happen; ``inf`` means that the target cannot be recommended (it is outside
the training catalogue, or masked) and counts as a miss.

The tie rule of every metric with a cutoff: a target counts when ``rank <= k``, with the average rank as it stands. A target that
shares places 10 and 11 has rank 10.5: a miss at 10, a hit at 20. A model that scores everything alike therefore gets nothing for
it, whichever order its items happen to be stored in. The gain of a hit is computed from the half rank itself.

Suffixes name the axes: N targets, V items of the catalogue, K recommendations, G users, M metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, PositiveInt, field_validator

from largerec.errors import LargeRecError
from largerec.exposure import ExposureOptions
from largerec.options import Options

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

HEAD_SHARE = 0.2
"""The head is this share of the training catalogue, taken from the most popular item down."""
HISTORY_BINS = ((0, 4), (5, 9), (10, 19), (20, 49), (50, None))
"""History lengths reported apart: first and last length of each bin, ``None`` for no upper end."""

# Resampling works on (samples, users) blocks of at most this many cells: about 30 MB in flight, whatever the number of users.
_CHUNK_CELLS = 1 << 20


class EvaluateOptions(Options):
    """What an evaluation reports: the cutoffs ``k``, the level and resamples of its bootstrap intervals, and on request
    (``exposure``) weighted estimates that undo what the log was shown.

    ``conditioned``: of at most so many events of each condition among the tasks, measure retrieval conditioned on it.
    """

    k: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    bootstrap_samples: PositiveInt = 1000
    conditioned: int = Field(default=0, ge=0)
    level: float = Field(default=0.95, gt=0.0, lt=1.0)
    exposure: ExposureOptions = ExposureOptions()

    @field_validator("k")
    @classmethod
    def _increasing(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in pairwise(k)):
            raise ValueError(f"k is {list(k)}; give each cutoff once, in increasing order: {sorted(set(k))}")
        return k


def average_rank(scores_NV: ArrayLike, target_N: ArrayLike) -> Floats:
    """Rank each target among all V scores of its row: ``1 + (number greater) + (number of others equal) / 2``.

    This is the plain definition, which faster rankings are tested against. It holds several (N, V) arrays of booleans at once.

    Args:
        scores_NV: higher is better; ``-inf`` marks a masked candidate.
        target_N: column of the target, or -1 for a target outside the catalogue.

    Returns:
        rank_N; ``inf`` where the target is masked or outside the catalogue.

    Raises:
        LargeRecError: shapes disagree, a score is NaN, or a target is not a column.
    """
    scores_NV = np.asarray(scores_NV)
    target_N = _integers("target_N", target_N)
    if scores_NV.ndim != 2 or target_N.shape != scores_NV.shape[:1]:
        raise LargeRecError(
            f"scores have shape {scores_NV.shape} and targets {target_N.shape}; give (N, V) scores and N targets."
        )
    nan_NV = np.isnan(scores_NV)
    if nan_NV.any():
        row, column = np.argwhere(nan_NV)[0]
        raise LargeRecError(
            f"the score of row {row}, item {column} is NaN, which has no rank; scores must be numbers or -inf (masked). "
            "NaN scores mean a model that diverged: look at its training loss and lower the learning rate."
        )
    _check_items("target_N", target_N, scores_NV.shape[1])
    inside_N = target_N >= 0
    rank_N = np.full(len(target_N), np.inf)
    rows_NV = scores_NV[inside_N]
    own_N1 = np.take_along_axis(rows_NV, target_N[inside_N][:, None], axis=1)
    greater_N = (rows_NV > own_N1).sum(axis=1)
    equal_N = (rows_NV == own_N1).sum(axis=1)
    rank_N[inside_N] = np.where(np.isneginf(own_N1[:, 0]), np.inf, 1.0 + greater_N + (equal_N - 1) / 2.0)
    return rank_N


def recall(rank_N: ArrayLike, k: int) -> Floats:
    """1 where the target is in the top k, else 0. With one target per row this is also the hit rate."""
    return (_ranks(rank_N) <= _cutoff(k)).astype(np.float64)


def ndcg(rank_N: ArrayLike, k: int) -> Floats:
    """``1 / log2(1 + rank)`` where the target is in the top k, else 0: with one target the ideal gain is 1."""
    ranks = _ranks(rank_N)
    return np.where(ranks <= _cutoff(k), 1.0 / np.log2(1.0 + ranks), 0.0)


def mrr(rank_N: ArrayLike, k: int) -> Floats:
    """``1 / rank`` where the target is in the top k, else 0."""
    ranks = _ranks(rank_N)
    return np.where(ranks <= _cutoff(k), 1.0 / ranks, 0.0)


def summarise(rank_N: ArrayLike, ks: Sequence[int]) -> dict[str, float]:
    """Mean over targets of every metric at every cutoff: ``recall@k``, ``hr@k`` (the same number), ``ndcg@k``, ``mrr@k``.

    Raises:
        LargeRecError: there are no targets, a rank is below 1 or NaN, or a cutoff is not a positive whole number.
    """
    ranks = _ranks(rank_N)
    if len(ranks) == 0:
        raise LargeRecError("there are no targets to summarise; the split left none: check the split and its dates.")
    found: dict[str, float] = {}
    for k in ks:
        found[f"recall@{k}"] = found[f"hr@{k}"] = float(recall(ranks, k).mean())
        found[f"ndcg@{k}"] = float(ndcg(ranks, k).mean())
        found[f"mrr@{k}"] = float(mrr(ranks, k).mean())
    return found


def bootstrap_intervals(
    values: dict[str, Floats], group_N: ArrayLike, *, level: float = 0.95, samples: int = 1000, seed: int
) -> dict[str, list[float]]:
    """Percentile bootstrap interval of the mean of each metric, resampling users with replacement.

    The targets of a user are not independent, so whole users are drawn, and the mean of a resample is its sum over its number of
    targets. With one target per user this is the plain bootstrap. All metrics share the same resamples, so the intervals of a
    call depend on the whole of ``values`` (within the noise of ``samples``); the same call with the same seed repeats them.

    Args:
        values: per-target values, name -> value_N.
        group_N: user of each target, any whole numbers.
        level: probability that the interval is meant to hold, between 0 and 1.
        samples: number of resamples.

    Returns:
        name -> [low, high].

    Raises:
        LargeRecError: lengths disagree, there are no targets, a value is not finite, or ``level`` or ``samples`` is out of range.
    """
    if not values:
        return {}
    _check_resampling(level, samples)
    group_N = _integers("group_N", group_N)
    columns = [_user_sums(name, value_N, group_N) for name, value_N in values.items()]
    columns.append(_user_sums("count", np.ones(len(group_N)), group_N))
    mean_SM = _resampled_means(np.stack(columns, axis=1), samples, np.random.default_rng(seed))
    low_M, high_M = np.quantile(mean_SM, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
    return {name: [float(low), float(high)] for name, low, high in zip(values, low_M, high_M, strict=True)}


def paired_test(
    a_N: ArrayLike, b_N: ArrayLike, group_N: ArrayLike, *, level: float = 0.95, samples: int = 10_000, seed: int
) -> dict[str, float]:
    """Test whether model a and model b differ on the same targets, with users as the independent units.

    The p-value is that of the two-sided sign-flip permutation test: were the models exchangeable, each user's summed difference
    could as well have the other sign. It is ``(1 + flips at least as extreme) / (1 + samples)`` (Phipson & Smyth 2010): never 0,
    and exactly 1 for identical models. The interval is the paired percentile bootstrap over users, as in `bootstrap_intervals`.

    Args:
        a_N: per-target values of one metric of model a; b_N: the same targets in the same order for model b.
        group_N: user of each target, any whole numbers.

    Returns:
        ``difference`` (mean of a minus mean of b over targets), ``low`` and ``high`` of its interval, ``p_value``.

    Raises:
        LargeRecError: as `bootstrap_intervals`.
    """
    a_N, b_N = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    if a_N.shape != b_N.shape:
        raise LargeRecError(f"a has shape {a_N.shape} and b {b_N.shape}; a paired test needs the same targets in the same order.")
    gap_N = a_N - b_N
    flip_seed, bootstrap_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    interval = bootstrap_intervals({"gap": gap_N}, group_N, level=level, samples=samples, seed=bootstrap_seed)["gap"]
    gap_G = _user_sums("gap", gap_N, _integers("group_N", group_N))
    return {
        "difference": float(gap_N.mean()),
        "low": interval[0],
        "high": interval[1],
        "p_value": _sign_flip_p(gap_G, samples, np.random.default_rng(flip_seed)),
    }


def reliability(
    probability_N: ArrayLike, hit_N: ArrayLike, group_N: ArrayLike, *, bins: int = 10, level: float = 0.95, seed: int
) -> list[dict[str, float]]:
    """Predicted probabilities beside what happened, in bins of (nearly) equal numbers, from low to high.

    Equal probabilities stay in one bin, so that there may be fewer than ``bins``. The interval of the observed share is the
    bootstrap over users (200 resamples).

    Args:
        probability_N: predicted probability of each of N predictions; hit_N: 1 where it came true, else 0.
        group_N: user of each prediction, any whole numbers.

    Returns:
        For each bin ``n``, mean ``predicted``, share ``observed``, and its interval ``low``, ``high``.

    Raises:
        LargeRecError: lengths disagree or a value is not finite.
    """
    probability_N, hit_N = np.asarray(probability_N, dtype=np.float64), np.asarray(hit_N, dtype=np.float64)
    group_N = _integers("group_N", group_N)
    if not probability_N.shape == hit_N.shape == group_N.shape:
        raise LargeRecError(f"shapes disagree: {probability_N.shape} probabilities, {hit_N.shape} hits, {group_N.shape} groups.")
    if not np.isfinite(probability_N).all():
        raise LargeRecError("a predicted probability is not finite: the scores hold NaN or infinity.")
    edges = np.unique(np.quantile(probability_N, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_N = np.searchsorted(edges, probability_N, side="left")
    found = []
    for at in np.unique(bin_N):
        own = bin_N == at
        hits = {"hit": hit_N[own]}
        low, high = bootstrap_intervals(hits, group_N[own], level=level, samples=200, seed=seed)["hit"]
        predicted, observed = float(probability_N[own].mean()), float(hit_N[own].mean())
        found.append({"n": int(own.sum()), "predicted": predicted, "observed": observed, "low": low, "high": high})
    return found


def coverage(top_NK: ArrayLike, catalogue_size: int) -> float:
    """Share of the catalogue that appears in at least one list. ``top_NK`` holds item indices, -1 where a list is shorter.

    Raises:
        LargeRecError: an index is outside the catalogue, or the catalogue is empty.
    """
    return float(np.count_nonzero(_exposure(top_NK, catalogue_size)) / catalogue_size)


def gini(top_NK: ArrayLike, catalogue_size: int) -> float:
    """Gini coefficient of how often each item of the whole catalogue is recommended, items never shown included.

    0 when all items are shown equally often, ``1 - 1 / catalogue_size`` when one item takes every place.

    Raises:
        LargeRecError: as `coverage`, or nothing was recommended.
    """
    shown_V = np.sort(_exposure(top_NK, catalogue_size))
    if shown_V[-1] == 0:
        raise LargeRecError("nothing was recommended, so exposure has no Gini coefficient; give lists with at least one item.")
    weight_V = 2.0 * np.arange(1, catalogue_size + 1) - catalogue_size - 1.0
    return float(weight_V @ shown_V / (catalogue_size * shown_V.sum()))


def popularity_bias(top_NK: ArrayLike, count_V: ArrayLike) -> dict[str, float]:
    """Average recommendation popularity (ARP, Yin et al. 2012, "Challenging the long tail recommendation").

    Args:
        top_NK: item indices, -1 where a list is shorter. Lists without any item are left out.
        count_V: number of training events of each item.

    Returns:
        ``arp``: mean over lists of the mean training count of their items (events). ``arp_normalised``: the same over the count
        of the most popular item, so 1 means that only the most popular item is ever recommended.

    Raises:
        LargeRecError: an index is outside the catalogue, no item has a training event, or nothing was recommended.
    """
    count_V = np.asarray(count_V, dtype=np.float64)
    top_NK = _lists(top_NK, len(count_V))
    if count_V.size == 0 or count_V.max() <= 0:
        raise LargeRecError("count_V has no item with a training event; give the training counts of the catalogue.")
    given_NK = top_NK >= 0
    length_N = given_NK.sum(axis=1)
    if not length_N.any():
        raise LargeRecError("nothing was recommended, so its popularity is undefined; give lists with at least one item.")
    total_N = np.where(given_NK, count_V[top_NK], 0.0).sum(axis=1)
    arp = float((total_N[length_N > 0] / length_N[length_N > 0]).mean())
    return {"arp": arp, "arp_normalised": arp / float(count_V.max())}


def slice_masks(target_count_N: ArrayLike, history_length_N: ArrayLike, count_V: ArrayLike) -> dict[str, Bools]:
    """Name the groups of targets that are reported apart; groups without any target are left out.

    ``head``: the target is among the `HEAD_SHARE` most popular items of the training catalogue (items with at least one training
    event; items tied with the last one of the head belong to it). ``tail``: any other target seen in training. ``cold``: never in
    training. These three are disjoint and hold every target, and so are and do the ``history a-b`` bins of `HISTORY_BINS`.

    Args:
        target_count_N: training events of each target, 0 when it is cold.
        history_length_N: events of the user's history at the query.
        count_V: training events of each item.

    Returns:
        name -> boolean mask over the N targets.

    Raises:
        LargeRecError: lengths disagree or a count or length is negative.
    """
    target_count_N = _integers("target_count_N", target_count_N)
    history_length_N = _integers("history_length_N", history_length_N)
    if target_count_N.shape != history_length_N.shape:
        raise LargeRecError(
            f"there are {target_count_N.size} target counts but {history_length_N.size} history lengths; give one each."
        )
    for name, given_N in (("target_count_N", target_count_N), ("history_length_N", history_length_N)):
        if (given_N < 0).any():
            raise LargeRecError(f"{name} holds {given_N.min()} in row {int(given_N.argmin())}; it must be 0 or more.")
    head_N = target_count_N >= _head_threshold(_integers("count_V", count_V))
    masks = {"head": head_N, "tail": (target_count_N > 0) & ~head_N, "cold": target_count_N == 0}
    for first, last in HISTORY_BINS:
        if last is None:
            masks[f"history {first}+"] = history_length_N >= first
        else:
            masks[f"history {first}-{last}"] = (history_length_N >= first) & (history_length_N <= last)
    return {name: mask_N for name, mask_N in masks.items() if mask_N.any()}


def _head_threshold(count_V: Ints) -> int:
    """Smallest training count of a head item, at least 1 so that a cold item is never in the head."""
    seen_V = np.sort(count_V[count_V > 0])[::-1]
    if len(seen_V) == 0:
        return 1
    return int(seen_V[int(np.ceil(HEAD_SHARE * len(seen_V))) - 1])


def _user_sums(name: str, value_N: ArrayLike, group_N: Ints) -> Floats:
    """Sum values per user, users in the order of their numbers."""
    value_N = np.asarray(value_N, dtype=np.float64)
    if value_N.ndim != 1 or value_N.shape != group_N.shape:
        raise LargeRecError(
            f"{name!r} has shape {value_N.shape} but group_N has {group_N.shape}; give one value and one user per target."
        )
    if len(value_N) == 0:
        raise LargeRecError(f"{name!r} has no targets, so there is nothing to resample; check the split and its dates.")
    if not np.isfinite(value_N).all():
        row = int(np.flatnonzero(~np.isfinite(value_N))[0])
        raise LargeRecError(f"{name!r} is {value_N[row]} in row {row}; per-target values must be finite (a miss is 0).")
    _, user_N = np.unique(group_N, return_inverse=True)
    return np.bincount(user_N, weights=value_N).astype(np.float64)


def _resampled_means(sums_GM: Floats, samples: int, rng: np.random.Generator) -> Floats:
    """Draw G users ``samples`` times and return the means (samples, M - 1); the last column of ``sums_GM`` counts targets."""
    distinct_DM, users_D = np.unique(sums_GM, axis=0, return_counts=True)
    # Users with equal rows are interchangeable, so drawing how often each distinct row occurs is the same experiment. It is far
    # cheaper when rows repeat (misses are all alike); otherwise drawing user by user is cheaper than one binomial per row.
    if len(distinct_DM) * 8 <= len(sums_GM):
        blocks = _multinomial_blocks(users_D, samples, rng)
        rows = distinct_DM
    else:
        blocks = _draw_blocks(len(sums_GM), samples, rng)
        rows = sums_GM
    total_SM = np.concatenate([block.astype(np.float64) @ rows for block in blocks])
    return np.asarray(total_SM[:, :-1] / total_SM[:, -1:])


def _multinomial_blocks(users_D: Ints, samples: int, rng: np.random.Generator) -> Iterator[Ints]:
    """Blocks of (chunk, D): how often each distinct row is drawn in each resample."""
    total = int(users_D.sum())
    for size in _chunks(samples, len(users_D)):
        yield rng.multinomial(total, users_D / total, size=size)


def _draw_blocks(users: int, samples: int, rng: np.random.Generator) -> Iterator[Ints]:
    """Blocks of (chunk, G): how often each user is drawn in each resample."""
    for size in _chunks(samples, users):
        draws = rng.integers(users, size=(size, users)) + users * np.arange(size)[:, None]
        yield np.bincount(draws.ravel(), minlength=size * users).reshape(size, users)


def _sign_flip_p(gap_G: Floats, samples: int, rng: np.random.Generator) -> float:
    """Two-sided p-value of ``sum(gap_G)`` when each user's sign is a fair coin."""
    gap_G = gap_G[gap_G != 0.0]  # a user without a difference has no sign to flip
    total = gap_G.sum()
    # Flips that tie with the observed sum exactly must count, although they are added up in another order.
    extreme = abs(total) - 1e-12 * np.abs(gap_G).sum()
    words = (len(gap_G) + 63) // 64
    hits = 0
    for size in _chunks(samples, len(gap_G)):
        drawn = rng.integers(np.iinfo(np.uint64).max, size=(size, words), dtype=np.uint64, endpoint=True)
        kept = np.unpackbits(drawn.view(np.uint8), axis=1, count=len(gap_G))
        flipped = 2.0 * (kept.astype(np.float64) @ gap_G) - total
        hits += int((np.abs(flipped) >= extreme).sum())
    return (1 + hits) / (1 + samples)


def _chunks(samples: int, width: int) -> Iterator[int]:
    """Sizes of the blocks of ``samples`` rows that keep a block of this width within `_CHUNK_CELLS`."""
    step = max(1, _CHUNK_CELLS // max(1, width))
    for start in range(0, samples, step):
        yield min(step, samples - start)


def _check_resampling(level: float, samples: int) -> None:
    if not 0.0 < level < 1.0:
        raise LargeRecError(f"level is {level}; it must be between 0 and 1, such as 0.95.")
    if samples < 1:
        raise LargeRecError(f"samples is {samples}; it must be at least 1, such as 1000.")


def _ranks(rank_N: ArrayLike) -> Floats:
    ranks = np.asarray(rank_N, dtype=np.float64)
    wrong_N = ~(ranks >= 1.0)  # also true for NaN
    if wrong_N.any():
        row = int(np.flatnonzero(wrong_N)[0])
        raise LargeRecError(
            f"the rank of row {row} is {ranks[row]}; ranks start at 1, and a target that cannot be recommended has inf."
        )
    return ranks


def _cutoff(k: int) -> int:
    if k < 1 or k != int(k):
        raise LargeRecError(f"the cutoff k is {k}; it must be a positive whole number, such as 10.")
    return int(k)


def _integers(name: str, given: ArrayLike) -> Ints:
    array = np.asarray(given)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise LargeRecError(f"{name} has type {array.dtype}; it must hold whole numbers.")
    return array.astype(np.int64, copy=False)


def _check_items(name: str, item: Ints, catalogue_size: int) -> None:
    outside = (item < -1) | (item >= catalogue_size)
    if outside.any():
        where = np.argwhere(outside)[0]
        raise LargeRecError(
            f"{name} holds item {item[tuple(where)]} in row {where[0]}; "
            f"the catalogue has items 0 to {catalogue_size - 1} (-1 for none)."
        )


def _lists(top_NK: ArrayLike, catalogue_size: int) -> Ints:
    lists_NK = _integers("top_NK", top_NK)
    if lists_NK.ndim != 2:
        raise LargeRecError(
            f"top_NK has shape {lists_NK.shape}; give one row of K item indices per list, -1 where a list is shorter."
        )
    _check_items("top_NK", lists_NK, catalogue_size)
    return lists_NK


def _exposure(top_NK: ArrayLike, catalogue_size: int) -> Ints:
    """How often each item of the catalogue is recommended."""
    if catalogue_size < 1:
        raise LargeRecError(f"catalogue_size is {catalogue_size}; a catalogue has at least one item.")
    lists_NK = _lists(top_NK, catalogue_size)
    return np.bincount(lists_NK[lists_NK >= 0], minlength=catalogue_size)
