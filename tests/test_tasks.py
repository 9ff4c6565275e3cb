"""Labels of events: conditions and quantile classes, unknown ones, the table of a run, refusals, and KuaiRand's signals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from logs import START_MS, log_of, put, random_log

from largerec.bundle import data_hash
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.recipe import recipe_from
from largerec.sequences import TRAIN, SplitOptions, build_sequences, from_frame
from largerec.tasks import TaskOptions

TASKS = {
    "good": TaskOptions(where="value >= 4"),
    "long": TaskOptions(quantiles_of="seconds", classes=4),
}


def labelled_log(seed: int = 0) -> EventLog:
    """A random log with ratings, one in seven missing, and seconds."""
    log = random_log(seed, events=300)
    rng = np.random.default_rng(seed)
    value = pl.Series("value", rng.integers(1, 6, 300).astype(float)).zip_with(
        pl.Series(rng.random(300) > 1 / 7), pl.Series([None] * 300, dtype=pl.Float64)
    )
    return replace(log, events=log.events.with_columns(value, pl.Series("seconds", rng.exponential(10, 300))))


def test_labels_stand_beside_their_events() -> None:
    log = labelled_log()
    sequences = build_sequences(log, SplitOptions(), TASKS)
    assert sequences.tasks == ("good", "long") and sequences.label_NA is not None
    trained = sequences.stage_N == TRAIN
    wanted = log.events.sort("timestamp", maintain_order=True).with_row_index("row")
    found = pl.DataFrame(
        {"user_id": sequences.user_ids.gather(sequences.user_N), "trained": trained, "good": sequences.label_NA[:, 0],
         "class": sequences.label_NA[:, 1]}
    )  # fmt: skip
    for (user,), rows in wanted.group_by("user_id"):
        own = found.filter(pl.col("user_id") == user)
        value = rows["value"].to_list()
        assert own["good"].to_list() == [-1 if v is None else int(v >= 4) for v in value]
        edges = np.array(sequences.edges["long"])
        assert own["class"].to_list() == [int((s >= edges).sum()) for s in rows["seconds"]]
    assert np.bincount(sequences.label_NA[trained, 1], minlength=4).min() > 0.2 * trained.sum()


def test_edges_come_from_training_events_alone() -> None:
    log = labelled_log()
    one = build_sequences(log, SplitOptions(), TASKS)
    frame = log.events.sort("timestamp", maintain_order=True)
    last = frame.with_row_index().group_by("user_id").agg(pl.col("index").last())["index"]
    changed = frame.with_columns(seconds=pl.when(pl.int_range(pl.len()).is_in(last.implode())).then(1e6).otherwise("seconds"))
    other = build_sequences(replace(log, events=changed), SplitOptions(), TASKS)
    assert one.edges == other.edges
    assert not np.array_equal(one.label_NA, other.label_NA)  # type: ignore[arg-type]


def test_infinite_numbers_are_unknown() -> None:
    log = labelled_log()
    kept = [None if row % 3 == 0 else float(row) for row in range(300)]
    ends = [(None, float("inf"), float("-inf"), float("nan"))[row // 3 % 4] if row % 3 == 0 else float(row) for row in range(300)]
    one, other = (
        build_sequences(replace(log, events=log.events.with_columns(seconds=pl.Series(v))), SplitOptions(), TASKS)
        for v in (kept, ends)
    )
    assert one.edges == other.edges and np.isfinite(other.edges["long"]).all()
    np.testing.assert_array_equal(one.label_NA, other.label_NA)  # type: ignore[arg-type]


def test_positives_are_the_targets_and_all_events_the_history() -> None:
    log = labelled_log()
    every = build_sequences(log, SplitOptions(), TASKS)
    some = build_sequences(log, SplitOptions(positives="value >= 4"), TASKS)
    assert every.label_NA is not None and some.positive_N is not None
    np.testing.assert_array_equal(some.item_N, every.item_N)
    np.testing.assert_array_equal(some.positive_N, every.label_NA[:, 0] == 1)  # an unknown value is no positive
    for stage in ("validation", "test"):
        rows = every.targets(stage)
        np.testing.assert_array_equal(some.targets(stage), rows[every.label_NA[rows, 0] == 1])
        assert set(some.impressions(stage)) >= set(rows)


def test_an_unknown_positive_is_one_only_where_the_condition_says_so() -> None:
    log = labelled_log()
    known = build_sequences(log, SplitOptions(positives="value >= 4"), TASKS)
    both = build_sequences(log, SplitOptions(positives="value >= 4 OR value IS NULL"), TASKS)
    assert known.label_NA is not None and known.positive_N is not None and both.positive_N is not None
    unknown_N = known.label_NA[:, 0] == -1
    assert unknown_N.any() and not known.positive_N[unknown_N].any()
    np.testing.assert_array_equal(both.positive_N, known.positive_N | unknown_N)


def test_a_run_s_table_brings_labels_back() -> None:
    options = SplitOptions(positives="value >= 4")
    sequences = build_sequences(labelled_log(), options, TASKS)
    back = from_frame(sequences.frame(), sequences.time_kind, "all", sequences.edges)
    assert back.tasks == sequences.tasks and back.edges == sequences.edges
    np.testing.assert_array_equal(back.label_NA, sequences.label_NA)  # type: ignore[arg-type]
    np.testing.assert_array_equal(back.positive_N, sequences.positive_N)  # type: ignore[arg-type]


def test_the_hash_knows_labels_and_positives_but_is_the_old_one_without() -> None:
    log = labelled_log()
    split = SplitOptions()
    plain = build_sequences(log, split)
    hashes = [
        data_hash(plain),
        data_hash(build_sequences(log, split, TASKS)),
        data_hash(build_sequences(log, split, {"good": TaskOptions(where="value >= 5"), "long": TASKS["long"]})),
        data_hash(build_sequences(log, SplitOptions(positives="value >= 4"))),
    ]
    assert len(set(hashes)) == 4
    assert data_hash(replace(build_sequences(log, split, TASKS), tasks=(), label_NA=None)) == hashes[0]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"where": "clicked = 1"},
            r"tasks.t.where='clicked = 1' cannot be used: .*clicked.* Columns of the log: user_id, item_id",
        ),
        ({"where": "value"}, r"gives Float64, not true or false"),
        ({"where": "value >="}, "cannot be used"),
        ({"quantiles_of": "text"}, "gives String; name a number"),
        ({"where": "value > 3 and value is null"}, ""),
        ({"where": "empty > 1"}, "task 't' is unknown for every row"),
        ({"where": "value > AVG(value)"}, "must be about one row; AVG"),
        ({"where": "value = 1 AND seconds >= MAX(seconds) / 2"}, "must be about one row"),
        ({"where": "COUNT(*) OVER (PARTITION BY item_id) > 20"}, "must be about one row"),
        ({"quantiles_of": "SUM(value) OVER (PARTITION BY item_id)"}, "must be about one row"),
        ({"quantiles_of": "LAG(seconds) OVER (ORDER BY timestamp)"}, "must be about one row"),
        ({"quantiles_of": "RANK() OVER (ORDER BY seconds)"}, "must be about one row"),
        ({"quantiles_of": "AVG(value)"}, "gives 1 values for 300 rows; it must be about one row"),
        ({"where": "text IN ('a', 'b') AND value BETWEEN 1 AND 3 OR COALESCE(value, seconds) > 4"}, ""),
        ({"quantiles_of": "CASE WHEN value > 2 THEN LN(seconds) ELSE CAST(value AS INT) END"}, ""),
    ],
)
def test_what_cannot_be_a_task_is_explained(task: dict[str, Any], message: str) -> None:
    log = labelled_log()
    extra = log.events.with_columns(text=pl.lit("a"), empty=pl.lit(None, dtype=pl.Float64))
    call = lambda: build_sequences(replace(log, events=extra), SplitOptions(), {"t": TaskOptions.model_validate(task)})  # noqa: E731
    if not message:
        call()
        return
    with pytest.raises(LargeRecError, match=message):
        call()


def test_positives_are_about_one_row_too() -> None:
    with pytest.raises(LargeRecError, match=r"split.positives='value >= AVG.value.' must be about one row"):
        build_sequences(labelled_log(), SplitOptions(positives="value >= AVG(value)"))


def test_positives_that_leave_nothing_to_learn_are_refused() -> None:
    log = log_of([("a", f"i{n}", START_MS + n) for n in range(6)])  # the first four train, and the first has no history
    for value, fine in (([1, 0, 0, 0, 1, 1], False), ([0, 0, 1, 0, 1, 1], True)):
        marked = replace(log, events=log.events.with_columns(value=pl.Series(value)))
        if fine:
            assert build_sequences(marked, SplitOptions(positives="value = 1")).positive_N is not None
        else:
            with pytest.raises(LargeRecError, match=r"split.positives holds for no training event that has a history"):
                build_sequences(marked, SplitOptions(positives="value = 1"))


def test_a_task_unknown_in_training_is_refused() -> None:
    log = log_of([("a", f"i{n}", START_MS + n) for n in range(6)])
    late = log.events.with_columns(value=pl.Series([None] * 5 + [1.0]))
    with pytest.raises(LargeRecError, match="'t' is unknown for every training event"):
        build_sequences(replace(log, events=late), SplitOptions(), {"t": TaskOptions(where="value > 0")})


ALONE = {
    "tasks": {"a": {"where": "b"}},
    "batch": {"actions": "summed"},
    "ranking": {"retrieval": 0},
    "train": {"metric": "a.auc"},
}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"tasks": {"click": {"where": "a = 1"}}}, "need batch.actions"),
        (
            {"tasks": {"a": {"where": "b"}}, "batch": {"actions": "summed"}, "contrastive": {"weight": 0.1}},
            "cannot stand beside tasks",
        ),
        ({"batch": {"actions": "summed"}}, "batch.actions says nothing without tasks"),
        ({"ranking": {"weight": 2}}, "ranking says nothing without tasks"),
        ({"tasks": {"Click": {"where": "a = 1"}}, "batch": {"actions": "summed"}}, "'Click' cannot be the name of a task"),
        ({"tasks": {"rank": {"where": "a = 1"}}, "batch": {"actions": "summed"}}, "'rank' cannot be the name"),
        ({"tasks": {"click": {}}, "batch": {"actions": "summed"}}, "needs either where"),
        ({"tasks": {"a": {"where": "a", "quantiles_of": "b"}}, "batch": {"actions": "summed"}}, "needs either where"),
        ({"tasks": {"a": {"where": "a", "classes": 3}}, "batch": {"actions": "summed"}}, "classes says nothing"),
        ({"train": {"metric": "click.auc"}}, "names no task"),
        (
            {"tasks": {"a": {"where": "b"}}, "batch": {"actions": "summed"}, "ranking": {"retrieval": 0}},
            r"choose a task's, such as train.metric=a.auc",
        ),
        (
            {
                "tasks": {"w": {"quantiles_of": "x"}, "a": {"where": "b"}},
                "batch": {"actions": "summed"},
                "train": {"metric": "w.gauc"},
            },
            r"a task with 8 labels, which has no AUC; .* such as train.metric=a.auc",
        ),
        (
            {
                "tasks": {"w": {"quantiles_of": "x"}, "c": {"where": "b", "weight": 0}, "a": {"where": "b"}},
                "batch": {"actions": "summed"},
                "ranking": {"retrieval": 0},
            },
            r"such as train.metric=a.auc",
        ),
        (
            {"tasks": {"w": {"quantiles_of": "x"}}, "batch": {"actions": "summed"}, "ranking": {"retrieval": 0}},
            r"ranking.retrieval=0 leaves its loss out; of tasks with two labels, name one with where",
        ),
        *(
            (ALONE | {"objective": objective}, "ranking.retrieval=0 leaves that out; leave the group out")
            for objective in ({"name": "bce"}, {"name": "sampled-softmax"}, {"name": "softmax", "label_smoothing": 0.1})
        ),
        (ALONE | {"head": {"similarity": "mol"}}, "head.similarity='mol' is learned by the loss of the next item"),
        (
            {
                "tasks": {"a": {"where": "b"}},
                "batch": {"actions": "summed"},
                "ranking": {"weight": 0},
                "train": {"metric": "a.auc"},
            },
            "weight 0",
        ),
        ({"tasks": {"a": {"where": "b"}}, "batch": {"actions": "summed"}, "ranking": {"weight": 0, "retrieval": 0}}, "both 0"),
    ],
)
def test_options_that_would_do_nothing_are_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        recipe_from(document)


def test_a_number_cut_in_two_has_an_auc() -> None:
    document = {"tasks": {"w": {"quantiles_of": "x", "classes": 2}}, "batch": {"actions": "summed"}}
    assert recipe_from(document | {"train": {"metric": "w.auc"}}).train.metric == "w.auc"


def test_the_earlier_watches_of_kuairand_know_likes_and_long_views(tmp_path: Path) -> None:
    header = "user_id,video_id,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms"
    rows = ["1,10,1650812741436,1,0,0,0,0,0,1,500", "1,11,1650812742436,0,0,0,0,0,0,0,0", "2,10,1650812743436,1,1,0,0,0,0,0,9"]
    history = b'{"user_id":1,"watch":[7,8,7],"long_watch":[7],"like":[7]}\n'
    put(tmp_path, log_standard_1__csv="\n".join([header, *rows, ""]).encode(), watch_history_1__jsonl=history)
    log = load_log(DataOptions(path=str(tmp_path)))
    events = log.events.select("item_id", "is_click", "is_like", "long_view").rows()
    assert events[:3] == [(7, None, 0, 0), (8, None, 0, 0), (7, None, 1, 1)]
    assert events[3:] == [(10, 1, 0, 1), (11, 0, 0, 0), (10, 1, 1, 0)]
