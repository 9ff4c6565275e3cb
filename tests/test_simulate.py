"""The generated log: the same for the same seed, of the size that was asked for, and with the rules that it promises."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter

import numpy as np
import polars as pl
import pytest

from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.item_words import CATEGORIES
from largerec.simulate import SimulateOptions, log_of_world, simulate
from largerec.world import Habits, World, day_of

SMALL = SimulateOptions(users=300, items=200, events=6000, categories=5, seed=3)


@pytest.fixture(scope="module")
def log() -> EventLog:
    return simulate(SimulateOptions())


@pytest.fixture(scope="module")
def sequences(log: EventLog) -> list[list[str]]:
    """Each user's items in time order."""
    ordered = log.events.sort("timestamp", maintain_order=True).group_by("user_id", maintain_order=True).agg("item_id")
    result: list[list[str]] = ordered["item_id"].to_list()
    return result


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    first, again = simulate(SMALL), simulate(SMALL)
    assert first.events.write_csv() == again.events.write_csv()
    assert first.items is not None
    assert again.items is not None
    assert first.items.write_csv() == again.items.write_csv()
    other = simulate(SMALL.model_copy(update={"seed": 4}))
    assert first.events.write_csv() != other.events.write_csv()


def test_global_random_state_is_left_alone() -> None:
    np.random.seed(7)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    simulate(SMALL)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


def test_the_size_is_as_asked(log: EventLog) -> None:
    assert log.events["user_id"].n_unique() == 2000
    assert log.events["item_id"].n_unique() > 980
    assert abs(log.events.height - 60_000) < 1500
    assert log.events.group_by("user_id").len()["len"].min() == pytest.approx(6, abs=2)
    assert log.items is not None
    assert log.items.height == 1000
    assert log.items["category"].n_unique() == 12


def test_it_is_a_log_in_the_schema(log: EventLog) -> None:
    assert log.events.schema == {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "behavior": pl.String}
    assert log.time_kind == "timestamp"
    assert log.events["timestamp"].is_sorted()
    assert 80 < log.describe()["time"]["days"] < 92
    assert log.items is not None
    assert log.items.columns == ["item_id", "title", "category", "description", "price"]
    again = EventLog.from_frame(log.events, items=log.items)
    assert again.events.equals(log.events) and again.items is not None and again.items.equals(log.items)
    assert any("seed 0" in note for note in log.notes)


def test_titles_are_readable_and_single(log: EventLog) -> None:
    assert log.items is not None
    assert log.items["title"].is_unique().all()
    for title, category in log.items.select("title", "category").iter_rows():
        match = re.fullmatch(r"The \w+ (.+?)( \(edition \d+\))?(, Part [2345])?", title)
        assert match, title
        assert match[1] in CATEGORIES[category]


def test_no_user_meets_an_item_twice(sequences: list[list[str]]) -> None:
    assert all(len(set(items)) == len(items) for items in sequences)


def test_a_tight_log_still_repeats_nothing() -> None:
    log = simulate(SimulateOptions(users=40, items=20, events=200, categories=1))
    assert log.events.select("user_id", "item_id").is_unique().all()
    many = simulate(SimulateOptions(users=20, items=400, events=1500, categories=40))
    assert many.items is not None
    assert many.items["category"].n_unique() == 40
    assert many.items["title"].len() == 400


def test_sequels_follow_as_often_as_promised(log: EventLog, sequences: list[list[str]]) -> None:
    """Where the sequel is new to the user and always there; a little more often, since it is also popular."""
    world = World(SimulateOptions())
    lasting = set(np.array(world.item_ids)[(world.weight_RV > 0).all(axis=0)].tolist())
    assert log.items is not None
    title = dict(log.items.select("item_id", "title").iter_rows())
    known = {title[item] for item in lasting}
    followed = possible = 0
    for items in sequences:
        seen: set[str] = set()
        for item, after in itertools.pairwise(items):
            seen.add(title[item])
            base, _, part = title[item].partition(", Part ")
            sequel = f"{base}, Part {int(part or 1) + 1}"
            if sequel in known and sequel not in seen:
                possible += 1
                followed += title[after] == sequel
    assert possible > 10_000
    assert world.habits.sequel - 0.02 < followed / possible < world.habits.sequel + 0.06


def test_substitutes_follow_unless_the_last_item_was_bought() -> None:
    world = World(SimulateOptions(users=6000, items=400, events=60_000, seed=1, difficulty=0.0))
    log = log_of_world(world)
    names, lasting = world.item_ids, (world.weight_RV > 0).all(axis=0)
    goal = {names[v]: names[s] for v, s in enumerate(world.substitute_V.tolist()) if s >= 0 and lasting[s]}
    behind = log.events.sort("user_id", maintain_order=True).with_columns(
        pl.col("item_id", "user_id").shift(-1).name.prefix("next_"), goal=pl.col("item_id").replace_strict(goal, default=None)
    )
    behind = behind.filter((pl.col("next_user_id") == pl.col("user_id")) & pl.col("goal").is_not_null())
    share = dict(behind.group_by("behavior").agg((pl.col("next_item_id") == pl.col("goal")).mean()).iter_rows())
    assert share["view"] == pytest.approx(share["cart"], abs=0.03)
    assert 0.15 < share["view"] < 0.25  # some have had it already
    assert share["buy"] < 0.05


def ndcg(ranked: list[list[str]], targets: list[str]) -> float:
    gains = [
        1 / np.log2(items[:10].index(target) + 2) if target in items[:10] else 0.0
        for items, target in zip(ranked, targets, strict=True)
    ]
    return float(np.mean(gains))


def test_order_beats_popularity_by_far(sequences: list[list[str]]) -> None:
    popularity = Counter(item for items in sequences for item in items[:-2])
    after: dict[str, Counter[str]] = {item: Counter() for item in {item for items in sequences for item in items}}
    for items in sequences:
        for item, following in itertools.pairwise(items[:-1]):
            after[item][following] += 1
    popular = [item for item, _ in popularity.most_common(400)]
    targets = [items[-1] for items in sequences]
    histories = [set(items[:-1]) for items in sequences]
    by_popularity = [[item for item in popular if item not in seen] for seen in histories]
    by_order = [
        [item for item, _ in after[items[-2]].most_common() if item not in seen]
        for items, seen in zip(sequences, histories, strict=True)
    ]
    assert 0.01 < ndcg(by_popularity, targets) < 0.08
    assert ndcg(by_order, targets) > 5 * ndcg(by_popularity, targets)


def test_popularity_is_long_tailed_and_drifts(log: EventLog) -> None:
    counts = log.events["item_id"].value_counts(sort=True)["count"]
    assert counts.head(100).sum() > 0.25 * log.events.height
    middle = log.events["timestamp"].quantile(0.5)
    early = log.events.filter(pl.col("timestamp") < middle)["item_id"].value_counts(sort=True)["item_id"].head(100)
    late = log.events.filter(pl.col("timestamp") >= middle)["item_id"].value_counts(sort=True)["item_id"].head(100)
    assert 20 < early.is_in(late.implode()).sum() < 90


def test_items_appear_and_retire(log: EventLog) -> None:
    world = World(SimulateOptions())
    there_RV = world.weight_RV > 0
    late, gone = ~there_RV[0], ~there_RV[-1]
    assert 0.15 < late.mean() < 0.25 and 0.15 < gone.mean() < 0.25 and not (late & gone).any()
    number = {item: n for n, item in enumerate(world.item_ids)}
    item_N = np.array([number[item] for item in log.events["item_id"]])
    assert there_RV[day_of(log.events["timestamp"].to_numpy()) // 3, item_N].all()


def test_the_funnel_narrows_and_depends_on_the_price(log: EventLog) -> None:
    assert log.items is not None
    shares = {name: n / log.events.height for name, n in log.events["behavior"].value_counts().iter_rows()}
    assert shares["view"] > 0.5 > shares["cart"] + shares["buy"] > 0.25
    assert log.items["price"].min() > 0 and log.items["price"].n_unique() > 20  # type: ignore[operator]
    world = World(SimulateOptions())
    level = dict(zip(world.item_ids, world.price_level_V.tolist(), strict=True))
    bought = log.events.with_columns(level=pl.col("item_id").replace_strict(level), bought=pl.col("behavior") == "buy")
    cheap, _, dear = bought.group_by("level").agg(pl.col("bought").mean()).sort("level")["bought"]
    assert cheap > 1.3 * dear


def test_stages_as_events_of_their_own() -> None:
    """Each item begins with a view; a cart or a buy is the next event of the same item."""
    log = simulate(SMALL.model_copy(update={"behaviours": "steps"}))
    order = ["view", "cart", "buy"]
    steps: Counter[tuple[str, bool]] = Counter()
    for items, behaviours in histories(log):
        assert behaviours[0] == "view"
        for (item, stage), (after, next_stage) in itertools.pairwise(zip(items, behaviours, strict=True)):
            if after == item:
                assert order.index(next_stage) == order.index(stage) + 1
            else:
                assert next_stage == "view"
            steps[next_stage, after == item] += 1
        views = [item for item, stage in zip(items, behaviours, strict=True) if stage == "view"]
        assert len(set(views)) == len(views)
    assert steps["cart", True] > steps["buy", True] > 300


def test_views_alone_in_a_steady_world() -> None:
    """Nothing but items says what comes next: one stage, and a popularity that no date moves."""
    options = SMALL.model_copy(update={"behaviours": "view", "steady": True})
    world = World(options)
    assert (world.weight_RV > 0).all() and (world.weight_RV == world.weight_RV[0]).all()
    assert world.weight_RV[0].sum() == pytest.approx(1.0)
    log = simulate(options)
    assert set(log.events["behavior"]) == {"view"}
    plain = simulate(SMALL)
    assert plain.items is not None and log.items is not None and log.items.equals(plain.items), "the same items"
    days = (log.events["timestamp"] - log.events["timestamp"].min()) // 86_400_000
    early, late = (set(log.events.filter(part)["item_id"]) for part in (days < 30, days >= 60))
    assert len(early & late) > 0.85 * 200


def histories(log: EventLog) -> list[tuple[list[str], list[str]]]:
    grouped = log.events.group_by("user_id", maintain_order=True).agg("item_id", "behavior")
    return list(zip(grouped["item_id"].to_list(), grouped["behavior"].to_list(), strict=True))


def test_descriptions_say_the_category_and_the_series(log: EventLog) -> None:
    assert log.items is not None
    for title, category, description in log.items.select("title", "category", "description").iter_rows():
        assert category.lower() in description
        series, _, part = title.partition(", Part ")
        assert (f"continues {series} (part {part})" if part else series.removeprefix("The ").lower()) in description


def test_a_million_events_in_seconds() -> None:
    """About 1.1 s on a free core; ten allowed, so that a busy machine does not fail it."""
    start = time.process_time()
    log = simulate(SimulateOptions(users=20_000, items=10_000, events=1_000_000, categories=40))
    assert time.process_time() - start < 10
    assert abs(log.events.height - 1_000_000) < 2000


def test_difficulty_moves_every_habit() -> None:
    easy, middle, hard = (Habits.at(difficulty) for difficulty in (0.0, 0.5, 1.0))
    for name in ("sequel", "substitute", "stay", "chain"):
        assert getattr(easy, name) > getattr(middle, name) > getattr(hard, name) > 0
    assert easy.wander < middle.wander < hard.wander
    assert max(habits.stay + habits.chain for habits in (easy, middle, hard)) < 1


def test_hours_are_those_of_people(log: EventLog) -> None:
    hours = log.events["timestamp"].cast(pl.Datetime("ms")).dt.hour().value_counts().sort("timestamp")["count"]
    assert hours.len() == 24
    assert hours[20] > 3 * hours[4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": 2000, "events": 4000}, r"data\.simulate\.events=4000 gives 2\.0 events a user.*choose 10000 to 500000"),
        ({"users": 10, "events": 60_000}, r"gives 6000\.0 events a user"),
        ({"categories": 600}, r"data\.simulate\.categories=600 is too many for 1000 items: at most 500"),
        ({"user": 5}, r"unknown option 'user' in SimulateOptions; did you mean 'users'\?"),
    ],
)
def test_impossible_sizes_are_explained(change: dict[str, int], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        simulate(SimulateOptions(**change))
