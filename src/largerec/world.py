"""The generated world: what is fixed for all its users, and the law by which they move in it.

A user has a hidden preference p, one of a finite set, and a hidden interest, a category c. From event to event the interest stays
or goes on to the next category of a chain, or is drawn anew from the preference's favourites. The next item is then the sequel of
the last one, or its substitute (unless the last one was bought), or else an item of the interest (now and then: of the whole
catalogue) by its popularity in that period, among the items that are there and that the user has not had. How far the user goes
with it (view, cart, buy) depends on the price and on the preference. Times follow a law of their own. All of it is drawn from one
seed, and every probability is a number in :class:`World`: ``oracle.py`` computes with them what ``simulate.py`` draws from.

Letters: C categories, V items, P preferences, R periods, L price levels, S stages of the funnel, N events or draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from largerec.errors import LargeRecError
from largerec.item_words import category_names, descriptions, series_titles
from largerec.options import Options

START_MS = 1_704_067_200_000  # 2024-01-01
DAY_MS = 86_400_000
DAYS = 90
PERIOD_DAYS = 3  # popularity, new and retired items change at the edges of periods
PERIODS = DAYS // PERIOD_DAYS
EVENTS_PER_SESSION = 4  # on average; a session never leaves its day
SPAN_DAYS = 20.0  # from the first to the last event of a user of average length, about
LONG_TAIL = 0.9  # exponent of the popularity of ranks within a category
SURGE = 2.0  # log-scale height of an item's days of fame,
SURGE_DAYS = 12.0  # and their width
LASTING_SHARE = 0.6  # of a category's items are there all the time; half of the others come later, half retire early
SUBSTITUTE_SHARE = 0.7  # of the items have a substitute
FAVOUR = 0.35  # Dirichlet's parameter of the favourites: small means that a preference likes few categories
LONGEST_SERIES = 5
LEAST_SHOWN = 0.02  # probability that the biased logging policy shows an item, at least
MIN_EVENTS = 5
STAGES = ("view", "cart", "buy")
CART_THRIFTY = (0.55, 0.25, 0.10)  # probability that a view becomes a cart, by price level, of preferences with a small purse
CART_GENEROUS = (0.45, 0.45, 0.50)  # ... and of the others
BUY = (0.6, 0.5, 0.4)  # probability that a cart becomes a buy, by price level

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class SimulateOptions(Options):
    """Size, seed and difficulty of the generated log.

    ``difficulty`` from 0 (strong rules, steady interests) to 1 (weak rules, interests all over the place) moves what the best
    possible recommender can reach. ``behaviours``: "deepest" writes one event an item, with the furthest stage of view, cart and
    buy that the user went to; "steps" writes every stage as an event of its own, so that items repeat; "view" has no other stage.
    ``steady``: every item is there all the time, as popular as ever, so that the date says nothing of what comes next.

    ``exposure``: how much a logging policy favours popular items (0: there is none). Each event then says with ``exposed``
    whether the policy had shown its item (else the user found it elsewhere), and with ``propensity`` how probable that was. The
    events themselves stay the same.
    """

    users: int = Field(default=2000, ge=1)
    items: int = Field(default=1000, ge=20, le=1_000_000)
    events: int = Field(default=60_000, ge=5)
    categories: int = Field(default=12, ge=1)
    preferences: int = Field(default=8, ge=1, le=1000)
    difficulty: float = Field(default=0.2, ge=0, le=1)
    behaviours: Literal["deepest", "steps", "view"] = "deepest"
    steady: bool = False
    exposure: float = Field(default=0.0, ge=0, le=3)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Habits:
    """Probabilities that ``difficulty`` moves: of the two rules, of leaving the interest, of the interest's moves."""

    sequel: float
    substitute: float
    wander: float  # when no rule is followed: an item of the whole catalogue instead of the interest's
    stay: float
    chain: float  # the rest is drawn from the preference's favourites

    @classmethod
    def at(cls, difficulty: float) -> Habits:
        easy, hard = cls(0.70, 0.20, 0.02, 0.70, 0.20), cls(0.10, 0.05, 0.40, 0.20, 0.10)
        mixed = {name: (1 - difficulty) * getattr(easy, name) + difficulty * getattr(hard, name) for name in easy.__dict__}
        return cls(**mixed)


class World:
    """Everything that is fixed, by options and seed. Items are numbered category by category; ``label_V`` names them.

    Attributes:
        category_V, first_C1: category of each item; ``first_C1[c]:first_C1[c + 1]`` are the items of category c.
        weight_RV: popularity of each item in each period, summing to 1 in a period; 0 where the item is not there.
        sequel_V, substitute_V: the item that a rule leads to, or -1.
        next_C: the chain of categories. favourite_PC: where a preference draws a new interest. share_P: how common it is.
        reach_PLS: probability of ending at each stage, by preference and price level (``price_level_V``).
        go_on_PLS: probability that the next event is the next stage of the same item; zeros unless ``behaviours`` is "steps".
        new_session: probability that the next event comes on a later day. gap_ratio: of the geometric law of the days between.

    Raises:
        LargeRecError: the users would need more different items than there are, or have too few events to learn from.
    """

    def __init__(self, options: SimulateOptions) -> None:
        _refuse_impossible_sizes(options)
        rng = np.random.default_rng([options.seed, 0])
        self.options, self.habits = options, Habits.at(options.difficulty)
        count, items = options.categories, options.items
        size_C = np.full(count, items // count)
        size_C[: items % count] += 1
        self.names = category_names(count)
        self.first_C1: Ints = np.concatenate([[0], np.cumsum(size_C)])
        self.category_V: Ints = np.repeat(np.arange(count), size_C)
        self.sequel_V: Ints = np.full(items, -1)
        self.substitute_V: Ints = np.full(items, -1)
        self.price_V: Floats = np.zeros(items)
        self.price_level_V: Ints = np.zeros(items, dtype=np.int64)
        self.titles: list[str] = []
        log_weight_V, start_day_V, end_day_V, surge_V = np.zeros((4, items))
        for c in range(count):
            own = slice(int(self.first_C1[c]), int(self.first_C1[c + 1]))
            log_weight_V[own] = self._fill_category(rng, c, own)
            start_day_V[own], end_day_V[own], surge_V[own] = _lifetimes(rng, int(size_C[c]))
        if options.steady:
            self.weight_RV: Floats = np.repeat(np.exp(log_weight_V)[None] / np.exp(log_weight_V).sum(), PERIODS, axis=0)
        else:
            self.weight_RV = _weights(log_weight_V, start_day_V, end_day_V, surge_V)
        # Edges of all draws in one rising row: items+1 edges of period 0 from 0 to 1, those of period 1 from 2 to 3, ...
        edge_RV1 = np.hstack([np.zeros((PERIODS, 1)), np.cumsum(self.weight_RV, axis=1)])
        self.edge_RV1: Floats = (edge_RV1 / edge_RV1[:, -1:] + 2.0 * np.arange(PERIODS)[:, None]).ravel()
        self.descriptions = descriptions(rng, self.titles, [self.names[c] for c in self.category_V], self.price_level_V)
        self._fill_people(rng, count, options.preferences)
        self.label_V: Ints = rng.permutation(items)  # so that an id tells nothing about category or popularity
        sessions = max(1.0, options.events / options.users / EVENTS_PER_SESSION)
        self.new_session = 1 / EVENTS_PER_SESSION
        self.gap_ratio = max(0.05, 1 - sessions / SPAN_DAYS)

    def _fill_category(self, rng: np.random.Generator, c: int, own: slice) -> Floats:
        """Cut a category into series of one to five parts, set rules, prices and titles; returns the log popularity."""
        size = own.stop - own.start
        length = rng.integers(1, LONGEST_SERIES + 1, size)
        length = length[: int(np.searchsorted(np.cumsum(length), size)) + 1]
        length[-1] -= length.sum() - size
        part = np.concatenate([np.arange(n) for n in length])
        goes_on = np.append(part[1:] > 0, False)
        index = np.arange(own.start, own.stop)
        self.sequel_V[own] = np.where(goes_on, index + 1, -1)
        pair = rng.permutation(index)[: 2 * (size // 2)].reshape(-1, 2)
        pair = pair[(np.abs(pair[:, 0] - pair[:, 1]) > 1) & (rng.random(len(pair)) < SUBSTITUTE_SHARE)]
        self.substitute_V[pair[:, 0]], self.substitute_V[pair[:, 1]] = pair[:, 1], pair[:, 0]
        series = np.repeat(np.arange(len(length)), length)
        price = rng.lognormal(2.5, 0.5) * rng.lognormal(0, 0.5, len(length))[series]
        self.price_V[own] = np.floor(price) + 0.9
        self.price_level_V[own] = np.searchsorted(np.quantile(price, [1 / 3, 2 / 3]), price)
        self.titles += series_titles(rng, c, length.tolist())
        rank = rng.permutation(size) + 1.0
        log_weight: Floats = -LONG_TAIL * np.log(rank) - 0.7 * part  # few begin with a later part
        return log_weight

    def _fill_people(self, rng: np.random.Generator, categories: int, preferences: int) -> None:
        chain = rng.permutation(categories)
        self.next_C: Ints = np.zeros(categories, dtype=np.int64)
        self.next_C[chain] = np.roll(chain, -1)
        self.favourite_PC: Floats = rng.dirichlet(np.full(categories, FAVOUR), preferences)
        self.share_P: Floats = rng.dirichlet(np.full(preferences, 5.0))
        cart_PL = np.where(rng.random(preferences)[:, None] < 0.5, CART_THRIFTY, CART_GENEROUS)
        if self.options.behaviours == "view":
            cart_PL = np.zeros_like(cart_PL)
        buy_PL = np.broadcast_to(BUY, cart_PL.shape)
        self.reach_PLS: Floats = np.stack([1 - cart_PL, cart_PL * (1 - buy_PL), cart_PL * buy_PL], axis=2)
        self.go_on_PLS: Floats = np.stack([cart_PL, buy_PL, np.zeros_like(cart_PL)], axis=2)
        if self.options.behaviours != "steps":
            self.go_on_PLS[:] = 0.0

    @property
    def item_ids(self) -> list[str]:
        """The name of each item in the log [V]."""
        width = len(str(self.options.items - 1))
        return [f"i{label:0{width}d}" for label in self.label_V.tolist()]

    @property
    def exposure_V(self) -> Floats:
        """Probability that the logging policy shows an item [V]: its mean popularity over that of the most popular, to the power
        of ``exposure``, but at least `LEAST_SHOWN`. It depends on the item alone."""
        mean_V = self.weight_RV.mean(axis=0)
        shown_V: Floats = np.maximum(LEAST_SHOWN, (mean_V / mean_V.max()) ** self.options.exposure)
        return shown_V

    def moved(self, belief_NPC: Floats) -> Floats:
        """The law of the interest one event later [N, P, C]."""
        habits = self.habits
        onward = np.empty_like(belief_NPC)
        onward[:, :, self.next_C] = belief_NPC
        anew = (1 - habits.stay - habits.chain) * belief_NPC.sum(axis=2, keepdims=True) * self.favourite_PC
        moved: Floats = habits.stay * belief_NPC + habits.chain * onward + anew
        return moved

    def next_day_law(self) -> Floats:
        """Law of the day of the next event, by the day of the last one [DAYS, DAYS]; it depends on nothing else."""
        found = np.zeros((DAYS, DAYS))
        for day in range(DAYS):
            later = self.gap_ratio ** np.arange(DAYS - 1 - day)
            found[day, day] = 1.0 if day == DAYS - 1 else 1 - self.new_session
            found[day, day + 1 :] = self.new_session * later / max(later.sum(), 1e-300)
        return found


def day_of(time_N: Ints) -> Ints:
    """Days since the beginning of the world of times in ms UTC."""
    day_N: Ints = (time_N - START_MS) // DAY_MS
    return day_N


def _refuse_impossible_sizes(options: SimulateOptions) -> None:
    mean = options.events / options.users
    if options.categories * 2 > options.items:
        raise LargeRecError(
            f"data.simulate.categories={options.categories} is too many for {options.items} items: at most {options.items // 2}."
        )
    if not MIN_EVENTS <= mean <= options.items / 4:
        raise LargeRecError(
            f"data.simulate.events={options.events} gives {mean:.1f} events a user; {MIN_EVENTS} to {options.items // 4} "
            f"(a quarter of the items) are possible. With {options.users} users choose {MIN_EVENTS * options.users} to "
            f"{options.items // 4 * options.users}."
        )


def _lifetimes(rng: np.random.Generator, size: int) -> tuple[Floats, Floats, Floats]:
    """First day, end day and day of fame of the items of a category; an item that comes later is famous when it comes."""
    start, end = np.zeros(size), np.full(size, float(DAYS))
    passing = rng.permutation(size)[: int((1 - LASTING_SHARE) * size)]
    late, early = passing[::2], passing[1::2]
    start[late] = rng.integers(1, PERIODS - 2, len(late)) * PERIOD_DAYS
    end[early] = rng.integers(3, PERIODS, len(early)) * PERIOD_DAYS
    surge = rng.uniform(-10, DAYS + 10, size)
    surge[late] = start[late] + 3.0
    return start, end, surge


def _weights(log_weight_V: Floats, start_V: Floats, end_V: Floats, surge_V: Floats) -> Floats:
    """Popularity by period [R, V], each row summing to 1."""
    day_R1 = (np.arange(PERIODS) * PERIOD_DAYS)[:, None]
    weight_RV = np.exp(log_weight_V + SURGE * np.exp(-(((day_R1 + PERIOD_DAYS / 2 - surge_V) / SURGE_DAYS) ** 2)))
    weight_RV[(day_R1 < start_V) | (day_R1 >= end_V)] = 0.0
    found: Floats = weight_RV / weight_RV.sum(axis=1, keepdims=True)
    return found
