"""A generated log with readable titles, categories and rules that a sequence model can find, for demos and tests.

Users move between categories by a Markov chain that leans to their own favourites. Within a category items are long-tailed, rise
and fall in popularity, and suit users by a hidden taste. Each item has a sequel, and some a companion besides, that tends to
follow it. No user meets an item twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.options import Options

START_MS = 1_704_067_200_000  # 2024-01-01
DAYS = 90
SEQUEL_PROBABILITY = 0.4  # the next event is the sequel of this one
COMPANION_PROBABILITY = 0.1  # ... or its companion, where it has one
STAY_PROBABILITY = 0.55  # otherwise: the same category again,
CHAIN_PROBABILITY = 0.25  # or the next one of the chain, or one of the user's favourites
TASTE_WIDTH = 4  # length of the hidden taste vectors
LONG_TAIL = 0.9  # exponent of the popularity of ranks within a category
SURGE = 2.0  # log-scale height of an item's days of fame,
SURGE_DAYS = 12.0  # and their width
EVENTS_PER_SESSION = 4
HOUR_WEIGHTS = (2, 1, 1, 1, 1, 2, 4, 6, 7, 6, 5, 5, 7, 7, 5, 5, 6, 7, 9, 11, 12, 11, 8, 4)
MIN_EVENTS = 5
BLOCK_CELLS = 50_000_000  # users x items that are walked at a time, which bounds the memory

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CATEGORIES: dict[str, tuple[str, ...]] = {
    "Mystery novels": ("Inspector", "Alibi", "Lighthouse", "Witness", "Cipher", "Manor", "Locksmith", "Verdict"),
    "Space operas": ("Nebula", "Starship", "Orbit", "Colony", "Comet", "Admiral", "Moonbase", "Signal"),
    "Fantasy sagas": ("Dragon", "Sorcerer", "Throne", "Forest", "Amulet", "Kingdom", "Prophecy", "Griffin"),
    "Cook books": ("Kitchen", "Harvest", "Bakery", "Spice Rack", "Picnic", "Noodle", "Orchard", "Feast"),
    "Travel guides": ("Coast", "Island", "Railway", "Valley", "Harbour", "Desert", "Summit", "Old Town"),
    "Strategy games": ("Empire", "Settlers", "Tower", "Caravan", "Citadel", "Armada", "Frontier", "Dynasty"),
    "Puzzle games": ("Maze", "Tiles", "Lantern", "Clockwork", "Mirror", "Labyrinth", "Riddle", "Domino"),
    "Jazz records": ("Quartet", "Nocturne", "Saxophone", "Avenue", "Midnight", "Trumpet", "Ballroom", "Rhythm"),
    "Documentaries": ("Ocean", "Glacier", "Savanna", "Archive", "Volcano", "Rainforest", "Migration", "Reef"),
    "Romance films": ("Letter", "Summer", "Promise", "Wedding", "Serenade", "Garden", "Reunion", "Waltz"),
    "Thriller series": ("Agent", "Hostage", "Conspiracy", "Border", "Ransom", "Shadow", "Pursuit", "Informant"),
    "Animation": ("Robot", "Penguin", "Balloon", "Toymaker", "Rocket", "Hedgehog", "Circus", "Snowman"),
    "Gardening": ("Rose Bed", "Greenhouse", "Meadow", "Herb Patch", "Pond", "Hedge", "Terrace", "Wildflower"),
    "Woodworking": ("Workbench", "Cabinet", "Chisel", "Rocking Chair", "Treehouse", "Dovetail", "Birdhouse", "Canoe"),
    "Fitness": ("Marathon", "Yoga Mat", "Trail", "Kettlebell", "Sprint", "Balance", "Swim", "Stretch"),
    "History": ("Republic", "Pharaoh", "Voyage", "Printing Press", "Revolution", "Silk Road", "Fortress", "Expedition"),
}
ADJECTIVES = (
    "Silent", "Golden", "Hidden", "Crimson", "Northern", "Endless", "Little", "Forgotten", "Bright", "Wandering", "Secret",
    "Ancient", "Lucky", "Velvet", "Broken", "Distant", "Merry", "Hollow", "Electric", "Gentle",
    "Restless", "Painted", "Last", "Curious",
)  # fmt: skip


class SimulateOptions(Options):
    """Size and seed of the generated log."""

    users: int = Field(default=2000, ge=1)
    items: int = Field(default=1000, ge=20, le=100_000)
    events: int = Field(default=60_000, ge=5)
    categories: int = Field(default=12, ge=1)
    seed: int = Field(default=0, ge=0)


def simulate(options: SimulateOptions) -> EventLog:
    """Generate a log; the same options give the same rows.

    Raises:
        LargeRecError: the users would need more different items than there are, or have too few events to learn from.
    """
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
    rng = np.random.default_rng(options.seed)
    world = _World(rng, options)
    lengths = _lengths(rng, options)
    time_UT = _times(rng, lengths)
    block = max(1, BLOCK_CELLS // options.items)
    item_UT = np.vstack(
        [_walk(rng, world, lengths[u : u + block], time_UT[u : u + block]) for u in range(0, options.users, block)]
    )
    real = item_UT >= 0
    user_width, item_width = len(str(options.users - 1)), len(str(options.items - 1))
    label = rng.permutation(options.items)  # so that an id tells nothing about category or popularity
    users = np.broadcast_to(np.arange(options.users)[:, None], item_UT.shape)[real]
    events = pl.DataFrame(
        {
            "user_id": _named("u", users, user_width),
            "item_id": _named("i", label[item_UT[real]], item_width),
            "timestamp": pl.Series(time_UT[real], dtype=pl.Int64),
        }
    ).sort("timestamp", maintain_order=True)
    items = pl.DataFrame(
        {"item_id": _named("i", label, item_width), "title": world.titles, "category": [world.names[c] for c in world.category_V]}
    ).sort("item_id")
    notes = (
        f"generated: {options.users:,} users and {options.items:,} items in {options.categories} categories, seed {options.seed}",
        f"rules: an item's sequel follows with probability {SEQUEL_PROBABILITY}, its companion with {COMPANION_PROBABILITY}",
    )
    return EventLog(events, items, "timestamp", notes, "simulated log")


def _named(letter: str, numbers: npt.NDArray[Any], width: int) -> pl.Series:
    return pl.Series(numbers).cast(pl.String).str.zfill(width).str.replace("^", letter)


class _World:
    """What is fixed for all users: categories, series of items, popularity, the chain of categories."""

    def __init__(self, rng: np.random.Generator, options: SimulateOptions) -> None:
        count = options.categories
        known = list(CATEGORIES)
        self.names = [known[c] if c < len(known) else f"{known[c % len(known)]} {c // len(known) + 1}" for c in range(count)]
        size_C = np.full(count, options.items // count)
        size_C[: options.items % count] += 1
        self.category_V: Ints = np.repeat(np.arange(count), size_C)
        self.titles: list[str] = []
        self.weight_V: Floats = np.zeros(options.items)  # log popularity, before surges
        self.sequel_V: Ints = np.full(options.items, -1)
        self.members_CM: Ints = np.full((count, int(size_C.max())), -1)
        first = 0
        for c, size in enumerate(size_C.tolist()):
            self.members_CM[c, :size] = np.arange(first, first + size)
            self._fill_category(rng, c, first, size)
            first += size
        self.companion_V: Ints = np.where(rng.random(options.items) < 0.5, rng.permutation(options.items), -1)
        self.surge_day_V: Floats = rng.uniform(-10, DAYS + 10, options.items)
        self.taste_VW: Floats = rng.normal(0, 1, (options.items, TASTE_WIDTH))
        chain = rng.permutation(count)
        self.next_C: Ints = np.zeros(count, dtype=np.int64)
        self.next_C[chain] = np.roll(chain, -1)
        self.size_prior_C: Floats = rng.dirichlet(np.full(count, 2.0))

    def _fill_category(self, rng: np.random.Generator, c: int, first: int, size: int) -> None:
        """Cut a category into series of one to four parts; the last part of a series leads to the first of the next."""
        nouns = CATEGORIES[list(CATEGORIES)[c % len(CATEGORIES)]]
        pairs = rng.permutation(len(ADJECTIVES) * len(nouns))
        log_rank = LONG_TAIL * np.log(rng.permutation(size) + 1.0)
        start, series = first, 0
        while start < first + size:
            length = min(int(rng.integers(1, 5)), first + size - start)
            pair, edition = int(pairs[series % len(pairs)]), series // len(pairs)
            title = f"The {ADJECTIVES[pair % len(ADJECTIVES)]} {nouns[pair // len(ADJECTIVES)]}" + (
                f" (edition {edition + 1})" if edition else ""
            )
            for part in range(length):
                self.titles.append(title if part == 0 else f"{title}, Part {part + 1}")
                self.sequel_V[start + part] = start + part + 1
                self.weight_V[start + part] = -log_rank[start - first] - part  # few begin with a later part
            start, series = start + length, series + 1
        self.sequel_V[first + size - 1] = first


def _lengths(rng: np.random.Generator, options: SimulateOptions) -> Ints:
    """Draw long-tailed numbers of events a user, adding up to about ``options.events``."""
    raw = rng.lognormal(0.0, 0.7, options.users)
    low, high = MIN_EVENTS, max(MIN_EVENTS, options.items // 2)
    spare = options.events - low * options.users
    lengths: Ints = np.clip(low + np.round(raw / raw.sum() * spare), low, high).astype(np.int64)
    return lengths


def _times(rng: np.random.Generator, lengths: Ints) -> Ints:
    """Draw sorted times (users, longest history) in ms UTC: sessions at likely hours within each user's own span of days."""
    users, longest = len(lengths), int(lengths.max())
    sessions = -(-lengths // EVENTS_PER_SESSION)
    widest = int(sessions.max())
    hours = np.asarray(HOUR_WEIGHTS) / sum(HOUR_WEIGHTS)
    begin = rng.uniform(0, DAYS * 0.6, users)[:, None]
    end = begin + (DAYS - begin) * rng.uniform(0.4, 1.0, users)[:, None]
    day_US = np.floor(begin + (end - begin) * rng.random((users, widest)))
    hour_US = (rng.choice(24, size=(users, widest), p=hours) + rng.integers(-2, 3, users)[:, None]) % 24
    start_US = (day_US * 24 + hour_US) * 3600 + rng.uniform(0, 3600, (users, widest))
    session_UT = np.floor(rng.random((users, longest)) * sessions[:, None]).astype(np.int64)
    seconds_UT = np.take_along_axis(start_US, session_UT, axis=1) + rng.uniform(0, 2400, (users, longest))
    seconds_UT[np.arange(longest) >= lengths[:, None]] = np.inf
    seconds_UT.sort(axis=1)
    seconds_UT[np.isinf(seconds_UT)] = 0
    return START_MS + np.floor(seconds_UT).astype(np.int64) * 1000


def _walk(rng: np.random.Generator, world: _World, lengths: Ints, time_UT: Ints) -> Ints:
    """Draw every user's items (users, longest history), -1 behind the end; all users take a step at a time."""
    users, longest = time_UT.shape
    items, categories = len(world.weight_V), len(world.names)
    taste_UW = rng.normal(0, 0.5, (users, TASTE_WIDTH))
    favourite_U3 = rng.choice(categories, size=(users, 3), p=world.size_prior_C)
    seen_UV = np.zeros((users, items), dtype=bool)
    item_UT: Ints = np.full((users, longest), -1)
    category_U: Ints = favourite_U3[:, 0].copy()
    last_U: Ints = np.full(users, -1)
    for step in range(longest):
        active = np.flatnonzero(lengths > step)
        category = _move(rng, world, category_U[active], favourite_U3[active], step)
        day = (time_UT[active, step] - START_MS) / 86_400_000
        chosen = _choose(rng, world, category, day, taste_UW[active], seen_UV[active])
        if step:
            chosen = _follow_rules(rng, world, chosen, last_U[active], seen_UV, active)
        item_UT[active, step] = last_U[active] = chosen
        category_U[active] = world.category_V[chosen]
        seen_UV[active, chosen] = True
    return item_UT


def _move(rng: np.random.Generator, world: _World, category: Ints, favourites: Ints, step: int) -> Ints:
    if step == 0:
        return category
    draw = rng.random(len(category))
    favourite = favourites[np.arange(len(category)), rng.integers(0, 3, len(category))]
    moved = np.where(draw < STAY_PROBABILITY + CHAIN_PROBABILITY, world.next_C[category], favourite)
    return np.where(draw < STAY_PROBABILITY, category, moved)


def _choose(
    rng: np.random.Generator, world: _World, category: Ints, day: Floats, taste: Floats, seen: npt.NDArray[np.bool_]
) -> Ints:
    """Draw an unseen item of the category by popularity on the day and the user's taste (Gumbel's trick)."""
    member = world.members_CM[category]
    surge = SURGE * np.exp(-(((day[:, None] - world.surge_day_V[member]) / SURGE_DAYS) ** 2))
    score = (
        world.weight_V[member] + surge + np.einsum("umw,uw->um", world.taste_VW[member], taste) + rng.gumbel(size=member.shape)
    )
    score[(member < 0) | np.take_along_axis(seen, member, axis=1)] = -np.inf
    best = score.argmax(axis=1)
    row = np.arange(len(member))
    spent = np.isneginf(score[row, best])
    chosen: Ints = member[row, best]
    if spent.any():
        chosen[spent] = np.where(seen[spent], -1.0, rng.random(seen[spent].shape)).argmax(axis=1)
    return chosen


def _follow_rules(
    rng: np.random.Generator, world: _World, chosen: Ints, last: Ints, seen_UV: npt.NDArray[np.bool_], active: Ints
) -> Ints:
    draw = rng.random(len(chosen))
    rule = np.where(draw < SEQUEL_PROBABILITY, world.sequel_V[last], -1)
    companion = (draw >= SEQUEL_PROBABILITY) & (draw < SEQUEL_PROBABILITY + COMPANION_PROBABILITY)
    rule = np.where(companion, world.companion_V[last], rule)
    follows = (rule >= 0) & ~seen_UV[active, rule]
    return np.where(follows, rule, chosen)
