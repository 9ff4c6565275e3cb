"""How much order there is in the sequences: entropy, compression, and bounds on how often the next item can be foretold.

Every number here depends on which events are on the same item, never on how items or users are numbered: sequences are compared
for equality, and what is compressed is numbered by first appearance. All are in bits.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from scipy.optimize import brentq

from largerec.audit.ordered import Codes, Ints, Ordered

SAMPLE = 1_000_000  # events that are looked at
LZ_USERS = 1_000  # users whose sequences are parsed
LZ_LONGEST = 500  # first events of each
LZ_SHORTEST = 10
LEVEL = 6  # of zlib


def information(log: Ordered, seed: int = 0) -> dict[str, Any]:
    """All numbers of a log, or of a random sample of its users where it is long, as plain values; None where too little is there.

    Returns: ``popularity_bits`` (entropy of an event's item alone), ``approximate_entropy_bits`` and ``sample_entropy_bits``
    after one item and after two, ``compression``, ``lempel_ziv`` and ``predictability``.
    """
    some = log.some_users(SAMPLE, seed)
    popularity = entropy(np.bincount(some.item_N))
    approximate, sample = zip(*(entropies(some, m) for m in (1, 2)), strict=True)
    return {
        "events": len(some),
        "sampled": some is not log,
        "popularity_bits": popularity,
        "approximate_entropy_bits": list(approximate),
        "sample_entropy_bits": list(sample),
        "compression": compression(some, seed),
        "lempel_ziv": lempel_ziv(some, seed),
        "predictability": {"popularity": fano(popularity, int((np.bincount(some.item_N) > 0).sum()))},
    }


def entropy(counts: np.ndarray) -> float:
    """Shannon entropy of counts in bits; summed in sorted order, so that numbering does not move the last digit."""
    share = np.sort(counts[counts > 0]) / counts.sum()
    return float(-(share * np.log2(share)).sum())


def grams(log: Ordered, m: int) -> tuple[Ints, Ints]:
    """Runs of m items of one user that another item follows: numbers of each run, and of the run with what follows [G]."""
    code_G = np.zeros(max(0, len(log) - m), dtype=np.int64)
    inside_G = np.ones(len(code_G), dtype=bool)
    for step in range(m):
        code_G = np.unique(code_G * len(log.item_ids) + log.item_N[step : step + len(code_G)], return_inverse=True)[1]
        inside_G &= log.follows_N[step + 1 : step + 1 + len(code_G)]
    longer_G = code_G * len(log.item_ids) + log.item_N[m : m + len(code_G)]
    return code_G[inside_G], longer_G[inside_G]


def _counts(code_G: Ints) -> Ints:
    return np.unique(code_G, return_counts=True)[1]


def entropies(log: Ordered, m: int) -> tuple[float | None, float | None]:
    """Approximate and sample entropy, with tolerance zero, of the item that follows m items; runs are pooled over users.

    With equality as the only closeness approximate entropy (Pincus, 1991) is H(m + 1) - H(m) of the counts of runs. Where most
    runs come once it falls to zero for want of data. Sample entropy (Richman and Moorman, 2000) leaves out matches of a run with
    itself: -log2 of how often two equal runs of m go on alike. None where there is no such run, or no two that go on alike.
    """
    shorter, longer = (_counts(code_G) for code_G in grams(log, m))
    if not len(shorter):
        return None, None
    before, after = (float((count * (count - 1.0)).sum()) for count in (shorter, longer))
    return entropy(longer) - entropy(shorter), -float(np.log2(after / before)) if after else None


def canonical(log: Ordered, order_N: Ints | None = None) -> Codes:
    """Items numbered by first appearance in the order of events, or in ``order_N`` [N]."""
    item_N = log.item_N if order_N is None else log.item_N[order_N]
    first, inverse = np.unique(item_N, return_index=True, return_inverse=True)[1:]
    rank = np.empty(len(first), dtype=np.int32)
    rank[np.argsort(first)] = np.arange(len(first))
    found: Codes = rank[inverse]
    return found


def compression(log: Ordered, seed: int = 0) -> dict[str, float]:
    """Compression ratio R = raw / compressed bytes of all sequences (the quantity of the "Entropy Law", Yin et al., 2024).

    Users follow one another by their first event, items are 32-bit numbers by first appearance, zlib compresses. ``shuffled`` is
    the ratio with each user's events in random order: what the order itself saves is ``saved_by_order``.
    """
    raw = 4 * len(log)
    draw = np.random.default_rng(seed).random(len(log))
    sizes = [len(zlib.compress(canonical(log, order).tobytes(), LEVEL)) for order in (None, np.lexsort((draw, log.user_N)))]
    return {"ratio": raw / sizes[0], "shuffled": raw / sizes[1], "saved_by_order": 1 - sizes[0] / sizes[1]}


def lempel_ziv(log: Ordered, seed: int = 0) -> dict[str, Any] | None:
    """Entropy rate of single users' sequences by the lengths of new substrings (Kontoyiannis et al., 1998; Song et al., 2010).

    Bits an event of users with at least ten events, of whom a random thousand is parsed, each by the first 500 events; and the
    bound on predictability that Fano's inequality gives over the items that the user had, so that it tells of repeats, not of
    new items. A user who takes nothing twice is as good as random by it.
    """
    users = np.flatnonzero(log.length_U >= LZ_SHORTEST)
    if not len(users):
        return None
    users = np.sort(np.random.default_rng(seed).permutation(users)[:LZ_USERS])
    rates, bounds = [], []
    for user in users.tolist():
        start = int(log.offsets_U1[user])
        own = log.item_N[start : min(start + LZ_LONGEST, int(log.offsets_U1[user + 1]))].tolist()
        rate = entropy_rate(own)
        rates.append(rate)
        bounds.append(fano(rate, len(set(own))))
    return {"users": len(users), "median_bits": float(np.median(rates)), "median_predictability": float(np.median(bounds))}


def entropy_rate(sequence: list[int]) -> float:
    """Bits a symbol: n log2 n over the sum of the lengths of the shortest substrings from each place that are new."""
    number: dict[int, int] = {}
    text = "".join(chr(number.setdefault(symbol, len(number) + 1)) for symbol in sequence)
    total = length = 0
    for at in range(len(text)):
        length = max(length - 1, 0)  # what began one place earlier goes on here
        while at + length < len(text) and text.find(text[at : at + length + 1], 0, at) >= 0:
            length += 1
        total += length + 1
    return len(text) * float(np.log2(max(len(text), 2))) / total


def fano(bits: float, choices: int) -> float:
    """The highest share of right guesses that an entropy over so many choices allows: bits = H(p) + (1 - p) log2(choices - 1)."""
    if choices < 2 or bits <= 0:
        return 1.0
    if bits >= np.log2(choices):
        return 1 / choices

    def excess(p: float) -> float:
        binary = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
        return float(binary + (1 - p) * np.log2(choices - 1) - bits)

    return float(brentq(excess, 1 / choices, 1 - 1e-12)) if excess(1 - 1e-12) < 0 else 1.0
