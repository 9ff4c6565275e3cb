"""A generated log from a world whose best answer is known: titles, prices, sessions, and rules that a sequence model can find.

``world.py`` says by which law users move, ``oracle.py`` computes from it what the best possible recommender reaches. All users of
a block take a step at a time. Nobody takes an item twice (with ``behaviours = "steps"`` only as the next stage of the same item).

Letters: U users (the longest history first), T events of a user, N users who still go on, V items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from largerec.events import EventLog
from largerec.world import (
    DAY_MS,
    DAYS,
    MIN_EVENTS,
    PERIOD_DAYS,
    SPAN_DAYS,
    STAGES,
    START_MS,
    Floats,
    Ints,
    SimulateOptions,
    World,
)

__all__ = ["SimulateOptions", "World", "log_of_world", "simulate"]

HOUR_WEIGHTS = (2, 1, 1, 1, 1, 2, 4, 6, 7, 6, 5, 5, 7, 7, 5, 5, 6, 7, 9, 11, 12, 11, 8, 4)
BLOCK_CELLS = 4_000_000  # users x longest history that are walked at a time, which bounds the memory
DRAWS = 12  # draws until a new item is found, before all that is left is looked through


def simulate(options: SimulateOptions) -> EventLog:
    """Generate a log; the same options give the same rows.

    Events have a ``behavior`` (view, cart or buy), items a title, category, description and price.

    Raises:
        LargeRecError: the users would need more different items than there are, or have too few events to learn from.
    """
    return log_of_world(World(options))


def log_of_world(world: World) -> EventLog:
    """Let all users of a world walk; see :func:`simulate`."""
    options = world.options
    rng = np.random.default_rng([options.seed, 1])
    length_U = _lengths(rng, options)
    order_U = np.argsort(-length_U, kind="stable")
    sorted_U, walks, start = length_U[order_U], [], 0
    while start < options.users:
        walks.append(_Walk(rng, world, sorted_U[start : start + max(1, BLOCK_CELLS // int(sorted_U[start]))]).columns())
        start += len(walks[-1][0])
    length_U, item_N, stage_N, time_N = (np.concatenate(parts) for parts in zip(*walks, strict=True))
    user_N = np.repeat(order_U, length_U)
    by_time = np.lexsort((user_N, time_N))  # a user's events are in order already, and stay so
    user_ids = pl.Series([f"u{user:0{len(str(options.users - 1))}d}" for user in range(options.users)])
    item_ids = pl.Series(world.item_ids)
    events = pl.DataFrame(
        {
            "user_id": user_ids.gather(user_N[by_time]),
            "item_id": item_ids.gather(item_N[by_time]),
            "timestamp": pl.Series(time_N[by_time], dtype=pl.Int64),
            "behavior": pl.Series(STAGES).gather(stage_N[by_time]),
        }
    )
    if options.exposure:
        shown_N = world.exposure_V[item_N[by_time]]
        exposed_N = np.random.default_rng([options.seed, 2]).random(len(shown_N)) < shown_N
        events = events.with_columns(exposed=pl.Series(exposed_N.astype(np.int64)), propensity=pl.Series(shown_N))
    return EventLog(events, _item_table(world, item_ids), "timestamp", _notes(options, world), "simulated log")


def _item_table(world: World, item_ids: pl.Series) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_id": item_ids,
            "title": world.titles,
            "category": pl.Series(world.names).gather(world.category_V),
            "description": world.descriptions,
            "price": world.price_V,
        }
    ).sort("item_id")


def _notes(options: SimulateOptions, world: World) -> tuple[str, ...]:
    habits = world.habits
    return (
        f"generated: {options.users:,} users and {options.items:,} items in {options.categories} categories, seed {options.seed}",
        f"rules at difficulty {options.difficulty:g}: an item's sequel follows with probability {habits.sequel:.2f}, its "
        f"substitute with {habits.substitute:.2f} unless it was bought",
        *(
            [f"a policy that favours popular items (exposure {options.exposure:g}) says what was shown"]
            if options.exposure
            else []
        ),
    )


def _lengths(rng: np.random.Generator, options: SimulateOptions) -> Ints:
    """Draw long-tailed numbers of events a user, adding up to about ``options.events``."""
    raw = rng.lognormal(0.0, 0.7, options.users)
    low, high = MIN_EVENTS, max(MIN_EVENTS, options.items // 2)
    spare = options.events - low * options.users
    lengths: Ints = np.clip(low + np.round(raw / raw.sum() * spare), low, high).astype(np.int64)
    return lengths


class _Walk:
    """A block of users who walk step by step. Users are sorted, the longest history first: those who go on are the first n."""

    def __init__(self, rng: np.random.Generator, world: World, length_U: Ints) -> None:
        self.rng, self.world, self.length_U = rng, world, length_U
        users, longest = len(length_U), int(length_U[0])
        self.item_TU = np.full((longest, users), -1, dtype=np.int32)
        self.stage_TU = np.zeros((longest, users), dtype=np.int8)
        self.time_TU = np.zeros((longest, users), dtype=np.int64)
        self.preference_U: Ints = rng.choice(len(world.share_P), users, p=world.share_P)
        self.category_U = self._favourites(self.preference_U)
        self.day_U: Ints = rng.integers(0, int(DAYS - SPAN_DAYS), users)
        self.second_U = self._hours(users)

    def columns(self) -> tuple[Ints, npt.NDArray[Any], npt.NDArray[Any], Ints]:
        """Walk to the end. Lengths [U], then item, stage and time of all events, user after user."""
        going_T = np.searchsorted(-self.length_U, -np.arange(len(self.item_TU)), side="left")
        for step, n in enumerate(going_T.tolist()):
            self._step(step, n)
        real_UT = np.arange(len(self.item_TU)) < self.length_U[:, None]
        return self.length_U, self.item_TU.T[real_UT], self.stage_TU.T[real_UT], self.time_TU.T[real_UT]

    def _step(self, step: int, n: int) -> None:
        rng, world = self.rng, self.world
        if step:
            self._pass_time(n)
        period_N = self.day_U[:n] // PERIOD_DAYS
        again_N = np.zeros(n, dtype=bool)
        if step:
            last_N, stage_N = self.item_TU[step - 1, :n], self.stage_TU[step - 1, :n]
            again_N = rng.random(n) < world.go_on_PLS[self.preference_U[:n], world.price_level_V[last_N], stage_N]
            moved_N = self._move(n)
            self.category_U[:n] = np.where(again_N, self.category_U[:n], moved_N)
            chosen_N = self._follow_rules(step, n, period_N)
        else:
            chosen_N = np.full(n, -1)
        free = np.flatnonzero((chosen_N < 0) & ~again_N)
        # The first item is of the interest, later ones now and then of the whole catalogue, which is shelf C.
        wander_F = (rng.random(len(free)) < world.habits.wander) if step else np.zeros(len(free), dtype=bool)
        shelf_F = np.where(wander_F, len(world.names), self.category_U[free])
        chosen_N[free] = self._take(step, free, shelf_F, period_N[free])
        reach_NS = world.reach_PLS[self.preference_U[:n], world.price_level_V[chosen_N]]
        stage_N = (rng.random(n)[:, None] >= np.cumsum(reach_NS, axis=1)[:, :-1]).sum(axis=1)
        if world.options.behaviours == "steps":
            stage_N = np.where(again_N, self.stage_TU[step - 1, :n] + 1, 0)
            chosen_N = np.where(again_N, self.item_TU[step - 1, :n], chosen_N)
        self.item_TU[step, :n], self.stage_TU[step, :n] = chosen_N, stage_N
        self.time_TU[step, :n] = START_MS + self.day_U[:n] * DAY_MS + (self.second_U[:n] * 1000).astype(np.int64)

    def _favourites(self, preference_N: Ints) -> Ints:
        """Draw a category from each preference's favourites."""
        edge_PC = np.cumsum(self.world.favourite_PC, axis=1)[:, :-1]
        found: Ints = (self.rng.random(len(preference_N))[:, None] >= edge_PC[preference_N]).sum(axis=1)
        return found

    def _move(self, n: int) -> Ints:
        habits, draw_N = self.world.habits, self.rng.random(n)
        anew_N = self._favourites(self.preference_U[:n])
        moved_N = np.where(draw_N < habits.stay + habits.chain, self.world.next_C[self.category_U[:n]], anew_N)
        found: Ints = np.where(draw_N < habits.stay, self.category_U[:n], moved_N)
        return found

    def _hours(self, n: int) -> Floats:
        """Draw the second of the day at which a session begins."""
        hours = np.asarray(HOUR_WEIGHTS) / sum(HOUR_WEIGHTS)
        seconds: Floats = self.rng.choice(24, n, p=hours) * 3600 + self.rng.uniform(0, 3600, n)
        return seconds

    def _pass_time(self, n: int) -> None:
        """Some minutes pass within the day, or a new session begins on a later day, which is never after the last."""
        rng, world = self.rng, self.world
        left_N, ratio = DAYS - 1 - self.day_U[:n], world.gap_ratio
        new_N = (rng.random(n) < world.new_session) & (left_N > 0)
        within_N = rng.random(n) * (1 - ratio**left_N)
        gap_N = np.minimum(1 + np.floor(np.log1p(-within_N) / np.log(ratio)).astype(np.int64), left_N)
        pause_N = np.minimum(rng.uniform(10, 900, n), np.maximum(86_399 - self.second_U[:n], 0) * rng.random(n))
        self.second_U[:n] = np.where(new_N, self._hours(n), self.second_U[:n] + pause_N)
        self.day_U[:n] += np.where(new_N, gap_N, 0)

    def _follow_rules(self, step: int, n: int, period_N: Ints) -> Ints:
        """The sequel or the substitute of the last item where the draw says so and it can be taken; else -1."""
        world, draw_N = self.world, self.rng.random(n)
        last_N, habits = self.item_TU[step - 1, :n], world.habits
        sequel_N, substitute_N = world.sequel_V[last_N], world.substitute_V[last_N]
        compares_N = (draw_N >= habits.sequel) & (draw_N < habits.sequel + habits.substitute)
        compares_N &= self.stage_TU[step - 1, :n] < len(STAGES) - 1
        rule_N: Ints = np.where(draw_N < habits.sequel, sequel_N, np.where(compares_N, substitute_N, -1))
        some = np.flatnonzero(rule_N >= 0)
        possible = (world.weight_RV[period_N[some], rule_N[some]] > 0) & ~self._had(step, some, rule_N[some])
        rule_N[some[~possible]] = -1
        return rule_N

    def _had(self, step: int, user_F: Ints, item_F: Ints) -> npt.NDArray[np.bool_]:
        """Whether each user has had the item before this step."""
        had: npt.NDArray[np.bool_] = (self.item_TU[:step, user_F] == item_F.astype(np.int32)).any(axis=0)
        return had

    def _take(self, step: int, user_F: Ints, shelf_F: Ints, period_F: Ints) -> Ints:
        """Draw an item by popularity from a shelf (a category, or C for all) among those that are there and new to the user.

        Drawing again and again until it is one of those is the same as drawing among those only.
        """
        world, size = self.world, len(self.world.category_V)
        found_F: Ints = np.full(len(user_F), -1)
        first_C = np.append(world.first_C1[:-1], 0)  # shelf C is everything
        end_C = np.append(world.first_C1[1:], size)
        open_F = np.arange(len(user_F))
        for _ in range(DRAWS):
            if not len(open_F):
                return found_F
            row, first, end = period_F[open_F] * (size + 1), first_C[shelf_F[open_F]], end_C[shelf_F[open_F]]
            low, high = world.edge_RV1[row + first], world.edge_RV1[row + end]
            at = np.searchsorted(world.edge_RV1, low + self.rng.random(len(open_F)) * (high - low), side="right") - 1
            item = np.clip(at - row, first, end - 1)
            good = (world.weight_RV[period_F[open_F], item] > 0) & ~self._had(step, user_F[open_F], item)
            found_F[open_F[good]] = item[good]
            open_F = open_F[~good]
        for f in open_F.tolist():
            shelf = slice(int(first_C[shelf_F[f]]), int(end_C[shelf_F[f]]))
            found_F[f] = self._take_one_of_the_last(step, int(user_F[f]), shelf, int(period_F[f]))
        return found_F

    def _take_one_of_the_last(self, step: int, user: int, shelf: slice, period: int) -> int:
        weight_V = self.world.weight_RV[period].copy()
        weight_V[self.item_TU[:step, user]] = 0.0
        if not weight_V[shelf].any():
            shelf = slice(0, len(weight_V))  # nothing new is left in the category: anything
        edge = np.cumsum(weight_V[shelf])
        at = int(np.searchsorted(edge, self.rng.random() * edge[-1], side="right"))
        return int(shelf.start) + min(at, int(np.flatnonzero(weight_V[shelf])[-1]))
