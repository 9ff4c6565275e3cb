"""Orders in which units of a log (users, or windows of their histories) are taken into a core-set.

Nothing is trained. Letters: N events, W units, U users, V items, D numbers that describe a unit, C centres.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from largerec.audit.ordered import Ordered
from largerec.curate.rows import Bools, Floats, Ints
from largerec.errors import LargeRecError

WIDTH = 64  # random numbers that an item is described by
CENTRES = 256


@dataclass(frozen=True)
class Units:
    """``unit_N``: the unit of each event, numbered in the order of events; ``live_N``: whether it is learned from; ``live_W``:
    how many events of each unit are; ``windows``: whether they are windows of histories, not whole users."""

    unit_N: Ints
    live_N: Bools
    live_W: Ints
    windows: bool

    @classmethod
    def of(cls, log: Ordered, live_N: Bools, window: int | None) -> Units:
        """Whole users, or windows of so many events counted from a user's last."""
        if window is None:
            unit_N = log.user_N.astype(np.int64)
        else:
            turn_N = -from_the_end(log) // window
            new_N = ~log.follows_N
            new_N[1:] |= turn_N[1:] != turn_N[:-1]
            unit_N = np.cumsum(new_N) - 1
        return cls(unit_N, live_N, np.bincount(unit_N, weights=live_N).astype(np.int64), window is not None)

    def __len__(self) -> int:
        return len(self.live_W)


def within_budget(units: Units, order_W: Ints, budget: float) -> Bools:
    """Units in order until ``budget`` of all events is reached, the unit that would pass it left out; at least one."""
    order_W = order_W[units.live_W[order_W] > 0]
    total = np.cumsum(units.live_W[order_W])
    chosen_W = np.zeros(len(units), dtype=bool)
    if len(total):
        most = budget * int(units.live_W.sum()) * (1 + 1e-12)
        chosen_W[order_W[: max(1, int(np.searchsorted(total, most, side="right")))]] = True
    return chosen_W


def random_order(log: Ordered, units: Units, random: np.random.Generator, budget: float) -> Ints:
    """A permutation."""
    return random.permutation(len(units))


def from_the_end(log: Ordered) -> Ints:
    """Minus the events of the same user that come after each event [N]."""
    return np.arange(len(log)) + 1 - log.offsets_U1[1:][log.user_N]


def of_its_own(log: Ordered) -> bool:
    """Whether the order is each user's own, so that ranks say nothing of two users: there is no clock, and half of the users or
    more begin at the lowest rank."""
    first_U = log.time_N[~log.follows_N]
    return not log.has_clock and 2 * int((first_U == first_U.min(initial=np.iinfo(np.int64).max)).sum()) >= len(first_U)


def lateness(log: Ordered) -> Ints:
    """How late each event is: its time or rank, or how near it is to its user's end where ranks are each user's own [N]."""
    return from_the_end(log) if of_its_own(log) else log.time_N


def recent_order(log: Ordered, units: Units, random: np.random.Generator, budget: float) -> Ints:
    """The units whose last event that is learned from is latest, first; ties by chance. Where the order is each user's own, the
    last window of each user comes before anyone's second to last.

    Raises:
        LargeRecError: whole users, each with an order of its own, of whom nothing says who came last.
    """
    if of_its_own(log) and not units.windows:
        raise LargeRecError(
            f'{log.source}: core-set with method = "recent" takes the users who came last, but this log has an order and no '
            'clock, and most users begin at its lowest rank. Set unit = "windows", which takes the last events of each user, or '
            "name a time column with data.columns.time."
        )
    last_W = np.full(len(units), np.iinfo(np.int64).min + 1)  # its negative is a number of the type
    np.maximum.at(last_W, units.unit_N[units.live_N], lateness(log)[units.live_N])
    return np.lexsort((random.permutation(len(units)), -last_W))


def aligned_order(log: Ordered, units: Units, random: np.random.Generator, budget: float) -> Ints:
    """The units whose items are most like what comes late, for an event; ties by number.

    In the manner of DSIR (Xie et al. 2023, arXiv 2302.03169): log p / q of each item, where p is how often the latest tenth of
    the timed events that are learned from has it (all those as late as the last of them, too) and q how often all of them have
    it, and a unit's mean of that. Few events say little: p holds as many as five of an average item that are distributed as q,
    and a unit ten events of ratio 1. Where the order is each user's own, what is late is what stands near the end of its user's
    history: then short histories are late for the most part.
    """
    timed_N = units.live_N & log.timed_N
    if not timed_N.any():
        return np.arange(len(units))
    late_N, tenth = lateness(log), max(1, int(timed_N.sum()) // 10)
    least = np.partition(late_N[timed_N], -tenth)[-tenth]
    count_V, in_late_V = (
        np.bincount(log.item_N[chosen_N], minlength=len(log.item_ids)).astype(float)
        for chosen_N in (units.live_N, timed_N & (late_N >= least))
    )
    known_V = count_V > 0
    in_late_V = in_late_V + 5 * count_V / count_V[known_V].mean()
    ratio_V = np.zeros(len(count_V))
    ratio_V[known_V] = np.log(in_late_V[known_V] / in_late_V.sum()) - np.log(count_V[known_V] / count_V.sum())
    sum_W = np.bincount(units.unit_N, weights=ratio_V[log.item_N] * units.live_N, minlength=len(units))
    return np.argsort(-sum_W / (units.live_W + 10), kind="stable")


def described(log: Ordered, units: Units, random: np.random.Generator) -> Floats:
    """What is in a unit: the sum of random vectors of its items, weighed by the logarithm of their rarity, of length one [W, D].

    Random projection keeps the angles between bags of items approximately (Achlioptas 2003).
    """
    vector_VD = random.choice(np.array([-1.0, 1.0], dtype=np.float32), (len(log.item_ids), WIDTH))
    rarity_V = np.log(len(log) / np.maximum(log.count_V, 1)).astype(np.float32)
    vector_VD *= rarity_V[:, None]
    sum_WD = np.zeros((len(units), WIDTH), dtype=np.float32)
    starts = np.flatnonzero(np.diff(units.unit_N, prepend=-1))
    for first in range(0, len(starts), 4096):  # so that no [N, D] is held
        ends = np.append(starts[first + 1 : first + 4097], len(log))[: len(starts[first : first + 4096])]
        low, high = int(starts[first]), int(ends[-1])
        sum_WD[first : first + len(ends)] = np.add.reduceat(
            vector_VD[log.item_N[low:high]], starts[first : first + len(ends)] - low
        )
    unit_WD: Floats = sum_WD / np.maximum(np.linalg.norm(sum_WD, axis=1, keepdims=True), 1e-9)
    return unit_WD


def diverse_order(log: Ordered, units: Units, random: np.random.Generator, budget: float) -> Ints:
    """Like k-centre: centres are found farthest-first (Gonzalez 1985), then units are taken in turn from their neighbourhoods.

    Plain farthest-first up to a large budget would take the outliers first and cost W times as many centres. Here at most 256
    centres are found; in the order in which they were found each gives its nearest unit, then each its next, and so on, so
    that small neighbourhoods are taken whole and large ones thinned.
    """
    x_WD = described(log, units, random)
    nearest_W = np.full(len(units), np.inf)
    centre_W = np.zeros(len(units), dtype=np.int64)
    centre = int(random.integers(len(units)))
    for number in range(min(CENTRES, len(units))):
        distance_W = 1 - x_WD @ x_WD[centre]
        closer = distance_W < nearest_W
        nearest_W[closer], centre_W[closer] = distance_W[closer], number
        centre = int(nearest_W.argmax())
        if nearest_W[centre] <= 1e-6:
            break
    by_centre = np.lexsort((nearest_W, centre_W))
    first_C = np.searchsorted(centre_W[by_centre], np.arange(CENTRES))
    turn = np.arange(len(units)) - first_C[centre_W[by_centre]]
    return by_centre[np.lexsort((centre_W[by_centre], turn))]


def informative_order(log: Ordered, units: Units, random: np.random.Generator, budget: float) -> Ints:
    """The unit that adds most to what is known of transitions an event, then the next, given those already taken.

    What is known is the sum over pairs of an item and the one after it of the square root of how often the pair was taken: the
    feature-based submodular function of Wei, Iyer & Bilmes (2014), which a greedy choice serves to within 1 - 1/e. Gains only
    shrink, so a unit is looked at again only when it comes up (Minoux 1978). It ends where the budget is passed.
    """
    inside = np.flatnonzero(log.follows_N & (np.diff(units.unit_N, prepend=-1) == 0))
    pair = log.item_N[inside - 1].astype(np.int64) * len(log.item_ids) + log.item_N[inside]
    keys, code = np.unique(pair, return_inverse=True)
    bounds_W1 = np.searchsorted(units.unit_N[inside], np.arange(len(units) + 1))
    size_W = np.maximum(1, np.bincount(units.unit_N))
    taken_P = np.zeros(len(keys))
    own: list[tuple[np.ndarray, np.ndarray]] = [
        np.unique(code[low:high], return_counts=True) for low, high in itertools.pairwise(bounds_W1.tolist())
    ]

    def gain(unit: int) -> float:
        pairs, counts = own[unit]
        return float((np.sqrt(taken_P[pairs] + counts) - np.sqrt(taken_P[pairs])).sum() / size_W[unit])

    heap = [(-gain(unit), unit) for unit in np.flatnonzero(units.live_W > 0).tolist()]
    heapq.heapify(heap)
    order: list[int] = []
    left = budget * int(units.live_W.sum())
    while heap and left >= 0:
        _, unit = heapq.heappop(heap)
        now = gain(unit)
        if heap and -now > heap[0][0]:
            heapq.heappush(heap, (-now, unit))
            continue
        order.append(unit)
        taken_P[own[unit][0]] += own[unit][1]
        left -= int(units.live_W[unit])
    return np.array(order, dtype=np.int64)


Order = Callable[[Ordered, Units, np.random.Generator, float], Ints]  # with the budget, beyond which no order is asked for
ORDERS: dict[str, Order] = {
    "aligned": aligned_order,
    "diverse": diverse_order,
    "informative": informative_order,
    "random": random_order,
    "recent": recent_order,
}
