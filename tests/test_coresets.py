"""Core-sets: they keep to their budget and choose what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from logs import START_MS, log_of
from test_curate import small, source, steps_of, written

from largerec.audit.ordered import Ordered
from largerec.columns import UNTIMED
from largerec.curate import coresets, curate
from largerec.curate.coresets import Units
from largerec.curate.selecting import CoreSetStep
from largerec.curate.taking import take
from largerec.errors import LargeRecError
from largerec.events import EventLog, TimeKind


def test_core_sets_keep_to_their_budget_and_choose_what_they_say() -> None:
    """Two kinds of users: many who all do the same, and a few who each do something else, early."""
    crowd = [(f"c{u}", f"i{n}", START_MS + 10**9 + u * 100 + n) for u in range(40) for n in range(10)]
    odd = [(f"o{u}", f"x{u}-{n}", START_MS + u * 100 + n) for u in range(8) for n in range(10)]
    before = source(log_of(crowd + odd))
    chosen = {}
    for method in ("diverse", "informative", "random", "recent"):
        (step,) = steps_of({"name": "core-set", "budget": 0.25, "method": method}).step
        after, _ = take(before, step, 0, "01-one")
        live = after.log.events.filter((pl.col("stage") == "train") & (pl.col("train_weight") > 0))
        assert live.height == 96 and live["user_id"].n_unique() == 12, "a quarter of 384 training rows, by whole users"
        chosen[method] = live["user_id"].unique().str.starts_with("o").sum()
    assert chosen["diverse"] == chosen["informative"] == 8 and chosen["random"] < 8 and chosen["recent"] == 0


def test_what_an_older_revision_of_a_step_made_is_not_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, plan = written(small(), tmp_path), steps_of({"name": "core-set", "budget": 0.5})
    found = curate(options, plan)
    assert all(one["reused"] for one in curate(options, plan)["versions"])
    monkeypatch.setattr(CoreSetStep, "revision", CoreSetStep.revision + 1)
    newer = curate(options, plan)
    assert [one["reused"] for one in newer["versions"]] == [True, False]
    assert newer["log"] != found["log"] and Path(found["log"]).is_dir(), "both stand side by side"


def aligned(log: EventLog, budget: float) -> pl.DataFrame:
    """The training rows that an aligned core-set learns from."""
    (step,) = steps_of({"name": "core-set", "budget": budget, "method": "aligned"}).step
    after, _ = take(source(log), step, 0, "01-one")
    return after.log.events.filter((pl.col("stage") == "train") & (pl.col("train_weight") > 0))


@pytest.mark.parametrize("kind", ["timestamp", "order"])
def test_an_aligned_core_set_has_what_comes_late(kind: TimeKind) -> None:
    """Users who do what all do lately, whenever they did it, before those who do what nobody does any more; ranks of the whole
    log are as good as times."""
    early = [(f"a{u}", f"new{n}", START_MS + u * 100 + n) for u in range(10) for n in range(10)]
    middle = [(f"b{u}", f"old{n}", START_MS + 10**8 + u * 100 + n) for u in range(60) for n in range(10)]
    late = [(f"c{u}", f"new{n}", START_MS + 10**9 + u * 100 + n) for u in range(10) for n in range(10)]
    live = aligned(log_of(early + middle + late, kind), 0.25)
    assert live.height == 160 and live["user_id"].n_unique() == 20, "a quarter of 640 training rows, by whole users"
    assert not live["user_id"].str.starts_with("b").any()


def test_late_in_an_order_of_each_users_own_is_the_end_of_a_history() -> None:
    """The highest ranks are those of the longest histories, and say nothing of what people do in the end."""
    ends = [(f"a{u}", f"end{n % 3}", n) for u in range(20) for n in range(10)]
    begins = [(f"b{u}", f"old{n}" if n < 5 else f"end{n % 3}", n) for u in range(60) for n in range(10)]
    long = [(f"c{u}", f"old{n % 5}", n) for u in range(20) for n in range(30)]
    live = aligned(log_of(long + begins + ends, "order"), 160 / 1200)
    assert live.height == 160 and live["user_id"].str.starts_with("a").all()


def test_an_aligned_core_set_leaves_aside_what_has_no_time() -> None:
    """Few events have a time: what is latest is among those, not among the first users of the rest."""
    untimed = [(f"a{u}", f"old{n}", UNTIMED) for u in range(20) for n in range(10)]
    mixed = [(f"b{u}", f"new{n}", START_MS + n if n >= 24 and u < 10 else UNTIMED) for u in range(20) for n in range(27)]
    live = aligned(log_of(untimed + mixed), 0.2)
    assert live["user_id"].str.starts_with("b").all() and live.height == 125, "five users of 25, of 660 events"


def test_what_is_not_learned_from_is_neither_late_nor_recent() -> None:
    """Of two users with the same items the one whose late events are history only is the earlier one, and so is its item."""
    rows = [("early", "x", START_MS), ("late", "y", START_MS + 1), ("early", "z", START_MS + 2)]
    log = Ordered.of(log_of(rows))
    early, late = log.user_ids.to_list().index("early"), log.user_ids.to_list().index("late")
    learned_N = log.time_N < START_MS + 2
    for live_N, last in ((np.ones(3, dtype=bool), early), (learned_N, late)):
        for order in (coresets.recent_order, coresets.aligned_order):
            assert order(log, Units.of(log, live_N, None), np.random.default_rng(0), 0.5)[0] == last


def test_what_is_recent_without_a_clock_is_what_ends_each_history() -> None:
    """Ranks of one user say nothing of another's: the last window of everyone comes before anyone's second to last."""
    rows = [(user, f"{user}{n}", n) for user, length in (("long", 42), ("mid", 12), ("new", 7)) for n in range(length)]
    before = source(log_of(rows, "order"))
    (step,) = steps_of({"name": "core-set", "budget": 0.5, "method": "recent", "unit": "windows", "window": 5}).step
    after, _ = take(before, step, 0, "01-one")
    live = after.log.events.filter((pl.col("stage") == "train") & (pl.col("train_weight") > 0))
    kept = {user: sorted(own["timestamp"].to_list()) for (user,), own in live.group_by("user_id")}
    assert live.height <= 55 / 2 and kept["new"] == list(range(5)) and kept["mid"] == list(range(10))
    assert kept["long"] == list(range(40 - len(kept["long"]), 40)), "the last training events, not the first"

    (step,) = steps_of({"name": "core-set", "budget": 0.5, "method": "recent"}).step
    with pytest.raises(LargeRecError, match=r"begin at its lowest rank\. Set unit = \"windows\""):
        take(before, step, 0, "01-one")
