"""Steps that choose what is learned from: cores, recency, popularity, core-sets at a budget, and their controls.

What is not chosen stays as history with weight 0, so that evaluation and use know it, unless ``rest = "remove"``.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from largerec import steps
from largerec.audit.ordered import DAY
from largerec.curate import coresets
from largerec.curate.rows import BESIDE, Bools, Change, Floats, Training
from largerec.errors import LargeRecError
from largerec.options import Options

Rest = Literal["history", "remove"]


def _chosen(kept_R: Bools, rest: Rest, why: str, **facts: object) -> Change:
    """The change that learns from the kept rows alone."""
    if rest == "remove":
        return Change(why=((why, ~kept_R),), facts=dict(facts))
    return Change(factor_R=np.where(kept_R, 1.0, 0.0), facts=dict(facts))


class KCoreStep(Options):
    """Remove users and items with fewer than ``k`` training events, again and again, until all that are left have as many."""

    name: Literal["k-core"] = "k-core"
    k: int = Field(5, ge=2)

    def change(self, training: Training) -> Change:
        """Removes what is outside the core."""
        kept, rounds = steps.core(training.log.events.with_row_index(BESIDE), self.k)
        inside_R = np.zeros(len(training), dtype=bool)
        inside_R[kept[BESIDE].to_numpy()] = True
        return Change(why=((f"its user or item has fewer than {self.k} events", ~inside_R),), facts={"rounds": rounds})


class RecencyStep(Options):
    """Learn from what is recent: only the last ``days`` of the training part, or older events less.

    ``half_life_days``: an event weighs 2 ** (-age / half life), its age counted from the last training event. Events without a
    time come before all others: ``days`` leaves them out, and for ``half_life_days`` they are as old as the oldest that has one.
    """

    name: Literal["recency"] = "recency"
    days: float | None = Field(None, gt=0)
    half_life_days: float | None = Field(None, gt=0)
    rest: Rest = "history"

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.days is None) == (self.half_life_days is None):
            raise LargeRecError(
                "recency: give either days (older events are not learned from) or half_life_days (they count less)."
            )
        if self.half_life_days is not None and self.rest != "history":
            raise LargeRecError(
                'recency: rest = "remove" says nothing with half_life_days, which leaves every event in; leave it out.'
            )
        return self

    def change(self, training: Training) -> Change:
        """Weighs events by age, or leaves old ones out.

        Raises:
            LargeRecError: the log has no clock.
        """
        log = training.ordered
        if not log.has_clock:
            raise LargeRecError(
                f"{log.source}: recency counts days, but this log has an order and no clock. Use core-set with method = "
                '"recent" and unit = "windows", or name a time column with data.columns.time.'
            )
        last = int(log.time_N.max())
        age_R = training.of_rows(np.where(log.timed_N, (last - log.time_N) / DAY, np.inf))
        if self.half_life_days is not None:
            untimed_R = np.isinf(age_R)
            age_R[untimed_R] = age_R[~untimed_R].max(initial=0.0)  # how much older is not known
            return Change(factor_R=np.exp2(-age_R / self.half_life_days), facts={"untimed": int(untimed_R.sum())})
        return _chosen(age_R <= self.days, self.rest, f"older than {self.days:g} days at the end of training")


class PopularityStep(Options):
    """Learn less from the most popular items: each event of an item with share f of the events is kept with probability
    min(1, sqrt(threshold / f)) (the subsampling of frequent words of Mikolov et al. 2013, arXiv 1310.4546, eq. 5).

    ``action``: ``weigh`` multiplies the weight by that probability, without chance; ``sample`` draws, and ``rest`` says what
    becomes of events that are not drawn.
    """

    draws: ClassVar[bool] = True
    name: Literal["popularity"] = "popularity"
    threshold: float = Field(0.001, gt=0, lt=1)
    action: Literal["weigh", "sample"] = "weigh"
    rest: Rest = "history"

    @model_validator(mode="after")
    def _rest_needs_a_sample(self) -> Self:
        if self.action == "weigh" and self.rest != "history":
            raise LargeRecError('popularity: rest = "remove" says nothing with action = "weigh"; leave it out, or use "sample".')
        return self

    def change(self, training: Training) -> Change:
        """Weighs or thins events of popular items."""
        log = training.ordered
        share_V = log.count_V / max(1, len(log))
        kept_V: Floats = np.minimum(1.0, np.sqrt(self.threshold / np.maximum(share_V, 1e-300)))
        kept_R = training.of_rows(kept_V[log.item_N])
        if self.action == "weigh":
            return Change(factor_R=kept_R, facts={"items_weighed_less": int((kept_V < 1).sum())})
        drawn_R = training.random(self.name).random(len(training)) < kept_R
        return _chosen(drawn_R, self.rest, "its item is popular, and it was not drawn")


class CoreSetStep(Options):
    """Learn from a part of the training events, ``budget`` of them, chosen by whole users or by windows of their histories.

    ``method``: ``aligned`` takes units whose items are most like those of the latest tenth of the events; ``diverse`` units from
    all over the space of what users have, in turn from the neighbourhoods of farthest-first centres; ``informative`` those that
    add most to the transitions between items that are covered; ``random`` and ``recent`` are the controls. Where the order is
    each user's own (no clock, and half of the users or more begin at the lowest rank), what is late is what stands near the end
    of its user's history. ``window``: events of a window, counted from a user's last.
    """

    draws: ClassVar[bool] = True
    revision: ClassVar[int] = 2  # 2: weights are heeded, and `recent` where the order is each user's own
    name: Literal["core-set"] = "core-set"
    method: Literal["aligned", "diverse", "informative", "random", "recent"] = "diverse"
    budget: float = Field(gt=0, lt=1)
    unit: Literal["users", "windows"] = "users"
    window: int = Field(50, ge=2)
    rest: Rest = "history"

    @model_validator(mode="after")
    def _a_window_needs_windows(self) -> Self:
        if self.unit == "users" and self.window != type(self).model_fields["window"].default:
            raise LargeRecError('core-set: window says nothing with unit = "users"; set unit = "windows" or leave it out.')
        return self

    def change(self, training: Training) -> Change:
        """Chooses units up to the budget, of the events that are still learned from.

        Raises:
            LargeRecError: the most recent users of a log without a clock are asked for.
        """
        log = training.ordered
        live_N = training.weight_R[log.row_N] > 0
        units = coresets.Units.of(log, live_N, self.window if self.unit == "windows" else None)
        order_W = coresets.ORDERS[self.method](log, units, training.random(f"{self.name} {self.method}"), self.budget)
        chosen_W = coresets.within_budget(units, order_W, self.budget)
        kept_R = training.of_rows(chosen_W[units.unit_N] & live_N)
        why = f"not in the {self.method} core-set of {self.budget:.0%} by {self.unit}"
        return _chosen(
            kept_R | (training.weight_R == 0), self.rest, why,
            units=int((units.live_W > 0).sum()), units_chosen=int(chosen_W.sum()), events_chosen=int((kept_R).sum()),
        )  # fmt: skip
