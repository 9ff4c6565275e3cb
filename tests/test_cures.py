"""Cures that train: each finds what was put in far better than chance, reads training rows alone, and repeats bit for bit."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from logs import START_MS, chain_log, log_of, random_log
from typer.testing import CliRunner

from largerec import cures
from largerec.cli import app
from largerec.curate import curate, versions
from largerec.curate.plan import plan_from, plan_of
from largerec.curate.rows import Training
from largerec.curate.taking import stage_column, take
from largerec.curate.tracing import Named, restore
from largerec.curate.versions import MADE, ROW, Version, first_version
from largerec.cures.forgetting import forgetting_events
from largerec.cures.patterns import frequent
from largerec.cures.personalise import shrunk_means
from largerec.cures.rows import highest, sequences_of
from largerec.cures.sequence_denoise import estimated_share
from largerec.datasets import DataOptions
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.faults import LABEL, FaultOptions, with_faults
from largerec.learner import Learner, LearnerOptions
from largerec.options import Options
from largerec.sequences import STAGE_COLUMN, WEIGHT_COLUMN, SplitOptions
from largerec.simulate import SimulateOptions, simulate

SMALL = LearnerOptions(width=16, heads=1, dropout=0.1, tokens=400, epochs=8, learning_rate=0.01)
TINY = LearnerOptions(width=8, heads=1, tokens=100, epochs=2)
SHARE = 0.06


def training_of(log: EventLog, seed: int = 0) -> Training:
    """A whole log as training rows, without labels."""
    n = log.events.height
    seen = replace(log, events=log.events.drop(LABEL, strict=False))
    return Training(seen, np.full(n, np.iinfo(np.int64).max), np.ones(n), log.events["user_id"].unique(), seed)


@functools.cache
def faulty() -> EventLog:
    log = simulate(SimulateOptions(users=250, items=80, events=5000, categories=4, difficulty=0.1, seed=1))
    return with_faults(log, FaultOptions(misclicks=SHARE, seed=1))


def rows_taken(step: Any, log: EventLog) -> np.ndarray:
    """Rows that a step removes, or leaves as history."""
    change = step.change(training_of(log))
    if change.factor_R is not None:
        return np.asarray(change.factor_R == 0)
    return np.any([mask for _, mask in change.why], axis=0)


@pytest.mark.parametrize(
    ("step", "times"),
    [
        (cures.SequenceDenoiseStep(learner=SMALL, haste=False, certainty=0.4), 6.0),
        (cures.TruncatedLossStep(learner=SMALL), 3.0),
        (cures.ForgettingStep(learner=SMALL, share=SHARE), 3.0),
        (cures.CleanReferenceStep(learner=SMALL, share=SHARE), 3.0),
        (cures.CleanReferenceStep(learner=SMALL, share=SHARE, trusted="timestamp % 3 > 0"), 3.0),
    ],
    ids=["sequence-denoise", "truncated-loss", "forgetting", "clean-reference", "trusted"],
)
def test_mis_clicks_are_found_many_times_better_than_chance(step: Any, times: float) -> None:
    label = (faulty().events[LABEL].fill_null("") == "misclick").to_numpy()
    taken = rows_taken(step, faulty())
    assert taken.sum() > 60
    assert label[taken].mean() > times * label.mean()


def test_the_denoiser_knows_how_many_there_are_and_needs_no_clock() -> None:
    step = cures.SequenceDenoiseStep(learner=SMALL)
    label = (faulty().events[LABEL].fill_null("") == "misclick").to_numpy()
    probability, share = step.probabilities(training_of(faulty()))
    assert abs(share - label.mean()) < 0.04
    ordered = training_of(faulty()).ordered
    assert probability[label[ordered.row_N]].mean() > 0.6 > 0.1 > probability[~label[ordered.row_N]].mean()
    weighed = step.model_copy(update={"action": "weigh"}).change(training_of(faulty())).factor_R
    assert weighed is not None and weighed[label].mean() < 0.4 and weighed[~label].mean() > 0.9


def test_the_share_of_mis_clicks_is_bounded_by_the_law_of_made_up_ones() -> None:
    rng = np.random.default_rng(0)
    sound, wrong, made_up = rng.normal(-2, 1, 19_000), rng.normal(2, 1, 1_000), rng.normal(2, 1, 20_000)
    assert estimated_share(np.concatenate([sound, wrong]), made_up) == pytest.approx(0.05, abs=0.01)
    assert estimated_share(sound, made_up) < 0.004
    assert estimated_share(made_up, made_up) > 0.9


# --- what every step keeps to


STEPS: list[Options] = [
    cures.SequenceDenoiseStep(learner=TINY),
    cures.SequenceDenoiseStep(learner=TINY, action="weigh"),
    cures.TruncatedLossStep(learner=TINY, drop_rate=0.7, ramp=0.1, action="remove"),
    cures.TruncatedLossStep(learner=TINY, method="reweigh"),
    cures.ForgettingStep(learner=TINY, k=3),
    cures.ForgettingStep(learner=TINY, take="unforgettable"),
    cures.CleanReferenceStep(learner=TINY, excess=True),
    cures.RegenerateStep(learner=TINY, styles=2),
    cures.PersonaliseStep(learner=TINY),
]


def version_of(log: EventLog) -> Version:
    return first_version(log, stage_column(log, SplitOptions()))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.name}-{type(step).__name__}")
def test_evaluation_rows_are_neither_read_nor_changed(step: Any) -> None:
    """With other items in the rows of validation and test, a step does the same to the bit; and it does something."""
    log = random_log(users=10, items=12, events=200)
    version = version_of(log)
    held = ~version.is_training
    other_items = version.log.events["item_id"].set(held, version.log.events["item_id"][0])
    other = replace(version, log=replace(log, events=version.log.events.with_columns(other_items)))
    ours, facts = take(version, step, 3, "01")
    theirs, _ = take(other, step, 3, "01")
    again, _ = take(version, step, 3, "01")
    mine, yours = (one.log.events.filter(pl.col(STAGE_COLUMN) == "train") for one in (ours, theirs))
    assert mine.equals(yours) and ours.removed.equals(theirs.removed)
    assert ours.log.events.equals(again.log.events)
    assert ours.evaluation_hash() == version.evaluation_hash()
    assert not ours.log.events.equals(version.log.events), facts


def test_a_log_without_a_context_has_nothing_to_denoise() -> None:
    with pytest.raises(LargeRecError, match="no user has two training events"):
        cures.SequenceDenoiseStep(learner=TINY).change(
            training_of(log_of([(f"u{u}", f"i{u % 3}", START_MS + u) for u in range(9)]))
        )


def test_plans_know_them_by_name() -> None:
    assert [step.name for step in plan_of([group.model_fields["name"].default for group in cures.STEPS]).step] == [
        "truncated-loss", "forgetting", "clean-reference", "sequence-denoise", "regenerate", "personalise",
    ]  # fmt: skip
    with pytest.raises(LargeRecError, match="did you mean 'regenerate'"):
        plan_of(["regenerat"])


@pytest.mark.parametrize("asked", ["split.positives = 'a > 1'", "tasks.buy.where = 'a > 1'\nbatch.actions = 'summed'"])
def test_made_rows_have_no_labels_to_learn(tmp_path: Path, asked: str) -> None:
    (tmp_path / "recipe.toml").write_text(asked, encoding="utf-8")
    command = ["curate", str(tmp_path / "log.parquet"), "--split", str(tmp_path / "recipe.toml")]
    done = CliRunner().invoke(app, [*command, "--step", "duplicates", "--step", "regenerate"])
    assert isinstance(done.exception, LargeRecError) and "step regenerate makes rows" in str(done.exception)


def test_rows_that_are_only_history_stay_out_of_the_loss() -> None:
    """A version weighs its rows: half of a chain is turned into noise of weight 0, and the model still learns the rule."""
    log = chain_log(users=50, items=10, length=12)
    noise = np.arange(log.events.height) % 12 == 7
    items = pl.when(pl.Series(noise)).then(pl.lit("i0")).otherwise(pl.col("item_id"))
    training = training_of(replace(log, events=log.events.with_columns(items.alias("item_id"))))
    weighed = replace(training, weight_R=np.where(noise, 0.0, 1.0))
    assert sequences_of(training).weight_N is None
    weight_N = sequences_of(weighed).weight_N
    assert weight_N is not None and weight_N.sum() == (~noise).sum()
    masked = Learner(sequences_of(training), TINY).learn(lambda loss, row, epoch: loss.new_tensor(weight_N[row.numpy()]))
    assert np.array_equal(Learner(sequences_of(weighed), TINY).learn().losses(), masked.losses(), equal_nan=True)


def half_ignored(log: EventLog) -> tuple[Training, np.ndarray]:
    """A log that at places 4 and 8 of each history has a random item, those at 8 of weight 0; and which these are."""
    place = np.arange(log.events.height) % 12
    drawn = np.random.default_rng(0).integers(9, size=len(place))
    other = [f"{'y' if at == 8 else 'x'}{item}" for at, item in zip(place, drawn, strict=True)]
    items = pl.when(pl.Series(np.isin(place, (4, 8)))).then(pl.Series(other)).otherwise("item_id").alias("item_id")
    training = training_of(replace(log, events=log.events.with_columns(items)))
    return replace(training, weight_R=np.where(place == 8, 0.0, 1.0)), place == 8


@pytest.mark.parametrize("method", ["truncate", "reweigh"])
def test_rows_of_weight_0_take_no_part_in_truncation(method: Any) -> None:
    """Never learned, they have the largest losses: they would fill the share that is cut, or shift the mean of the weights."""
    training, ignored = half_ignored(chain_log(users=60, items=10, length=12))
    step = cures.TruncatedLossStep(learner=TINY, method=method, drop_rate=0.3, ramp=0.5)
    factor = step.change(training).factor_R
    assert factor is not None and set(factor[ignored]) == {1.0}
    learned = ~ignored & (np.arange(len(factor)) % 12 > 0)  # with a history
    assert (factor[learned] == 0).any() if method == "truncate" else factor[learned].mean() == pytest.approx(1.0)


@pytest.mark.parametrize("step", [cures.ForgettingStep(learner=TINY, share=0.1, k=1), cures.CleanReferenceStep(learner=TINY)])
def test_rows_of_weight_0_do_not_fill_the_share_that_goes(step: Any) -> None:
    """Never learned, they are the hardest of all: the share would be spent on rows that are no targets anyway."""
    training, ignored = half_ignored(chain_log(users=60, items=10, length=12))
    factor = step.change(training).factor_R
    assert factor is not None and set(factor[ignored]) == {1.0}
    asked = ~ignored & (np.arange(len(factor)) % 12 > 0)
    assert 0 < (factor == 0).sum() <= round(step.share * asked.sum())


def test_truncation_cuts_its_share_of_what_is_learned() -> None:
    left, learned = np.zeros(8), np.array([0, 0, 1, 1, 1, 1, 0, 0], dtype=bool)
    weigh = cures.TruncatedLossStep(learner=TINY, drop_rate=0.5, ramp=0.1).truncation(left, learned)
    weight = weigh(torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]), torch.arange(8), 1)
    assert weight.tolist() == (1 - left).tolist() == [1, 1, 0, 0, 1, 1, 1, 1]


def test_rows_of_weight_0_are_not_regenerated() -> None:
    """Neither mined as patterns nor among a user's own items: what is not learned from must not come back as made rows."""
    log = chain_log(users=40, items=12, length=12)
    training, ignored = half_ignored(log)
    added = cures.RegenerateStep(learner=TINY, styles=1, own_items=1.0, share=9.0).change(training).added
    assert added is not None and added.height > 0
    named = training.log.events["item_id"].filter(pl.Series(~ignored))
    assert set(added["item_id"]) <= set(named)
    nothing = cures.RegenerateStep(learner=TINY).change(replace(training, weight_R=np.zeros(len(training))))
    assert nothing.added is not None and nothing.added.is_empty() and "weight 0" in nothing.facts["note"]


def test_what_a_step_made_is_no_question_of_the_personaliser() -> None:
    rows = [(f"u{n}", item, START_MS + at) for n in range(20) for at, item in enumerate(("a", "b", "c"))]
    log = log_of(rows)
    made = replace(log, events=log.events.with_columns(pl.lit(True).alias(MADE)))
    cures.PersonaliseStep(learner=TINY).change(training_of(log))
    with pytest.raises(LargeRecError, match="is of the log itself"):
        cures.PersonaliseStep(by=MADE, learner=TINY).change(training_of(made))


# --- parts with known answers


def test_forgetting_events_are_counted_between_passes() -> None:
    known = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]], dtype=bool)
    assert forgetting_events(known).tolist() == [2, 1, 0, 0]


def test_highest_takes_the_share_of_what_is_known() -> None:
    assert highest([1.0, np.nan, 3.0, 2.0, np.nan, 0.0], 0.5).tolist() == [False, False, True, True, False, False]


def test_patterns_are_runs_that_several_users_share() -> None:
    histories = {"a": "pqrst", "b": "pxqr", "c": "qpr", "d": "pqr"}
    rows = [(user, item, START_MS + n) for user, items in histories.items() for n, item in enumerate(items)]
    sequences = sequences_of(training_of(log_of(rows)))
    names = sequences.item_ids.to_list()
    patterns, users, user_J, pattern_J = frequent(sequences, 3, 4, 2)
    assert {"".join(names[i] for i in one): int(n) for one, n in zip(patterns, users, strict=True)} == {"pqr": 3}
    assert [sequences.user_ids[int(u)] for u in user_J] == ["a", "b", "d"] and set(pattern_J) == {0}


def test_regenerated_sequences_are_of_new_users_and_follow_the_patterns() -> None:
    log = chain_log(users=60, items=12, length=8)
    step = cures.RegenerateStep(learner=SMALL, styles=2, own_items=0.5, share=1.0, weight=0.5)
    version = version_of(log)
    made, facts = take(version, step, 0, "01")
    added = made.log.events.filter(pl.col(ROW).is_null())
    assert facts["rows"]["added"] == added.height > 100
    assert not set(added["user_id"]) & set(log.events["user_id"]) and set(added[STAGE_COLUMN]) == {"train"}
    assert set(added[WEIGHT_COLUMN]) == {0.5} and set(added[MADE]) == {True}
    number = added["item_id"].str.slice(1).cast(pl.Int64).to_numpy().reshape(-1, 3)
    forward = (np.diff(number, axis=1) % 12 <= 4).all(axis=1)
    assert forward.mean() > 0.8  # at random .13
    assert facts["facts"]["of_mined_patterns"] > 0.6


def test_restoring_everything_takes_made_rows_out(tmp_path: Path) -> None:
    """They are no rows of the log: what is named by number, user or step never means them."""
    chain_log(users=20, length=9).write(tmp_path / "log.parquet")
    learner = {"width": 8, "heads": 1, "tokens": 100, "epochs": 1}
    chosen = {"budget": 0.7, "method": "random", "unit": "windows", "window": 2, "rest": "remove"}
    steps = [{"name": "regenerate", "styles": 2, "learner": learner}, {"name": "core-set", **chosen}]
    found = curate(DataOptions(path=str(tmp_path / "log.parquet")), plan_from({"step": steps}))
    first, last = (versions.read(Path(found["dir"]) / found["versions"][at]["version"]) for at in (0, -1))
    here, gone = last.log.events.filter(pl.col(ROW).is_null()), last.removed[ROW].null_count()
    assert here.height and gone
    with pytest.raises(LargeRecError, match="made by a step"):
        restore(found["log"], Named(user_id=here["user_id"][0]))
    some = versions.read(Path(restore(found["log"], Named(step="core-set"))["dir"]))
    assert some.log.events[ROW].null_count() == here.height and some.removed[ROW].null_count() == some.removed.height == gone
    document = restore(found["log"], Named(everything=True))
    back = versions.read(Path(document["dir"]))
    assert back.log.events.equals(first.log.events) and document["version"]["rows"]["removed"] == here.height
    assert back.removed[ROW].null_count() == back.removed.height == here.height + gone
    with pytest.raises(LargeRecError, match="nothing is to be restored"):
        restore(document["dir"], Named(everything=True))


def test_restrictive_inference_keeps_to_the_users_own_items() -> None:
    log = chain_log(users=40, items=30, length=9)
    step = cures.RegenerateStep(learner=TINY, styles=1, own_items=1.0, share=9.0)
    change = step.change(training_of(log))
    assert change.added is not None
    own = {user: set(items) for user, items in log.events.group_by("user_id").agg("item_id").iter_rows()}
    made = change.added.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    assert all(any(set(items) <= mine for mine in own.values()) for items in made)


def test_a_log_without_shared_runs_is_left_as_it_is() -> None:
    rows = [(f"u{u}", f"i{u}-{n}", START_MS + n) for u in range(5) for n in range(6)]
    change = cures.RegenerateStep(learner=TINY).change(training_of(log_of(rows)))
    assert change.added is not None and change.added.is_empty() and "nothing is regenerated" in change.facts["note"]


def test_the_origin_of_rows_can_be_asked_for_though_nothing_was_made(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{u}-{n}", START_MS + n) for u in range(5) for n in range(6)]
    log_of(rows).write(tmp_path / "log.parquet")
    learner = {"width": 8, "heads": 1, "tokens": 100, "epochs": 1}
    steps = [{"name": "regenerate", "learner": learner}, {"name": "personalise", "by": MADE, "learner": learner}]
    found = curate(DataOptions(path=str(tmp_path / "log.parquet")), plan_from({"step": steps}))
    last = versions.read(Path(found["log"])).log.events
    assert last[MADE].null_count() == last.height == len(rows)
    weights = last.get_column(WEIGHT_COLUMN, default=pl.Series(np.ones(len(rows))))
    assert weights.to_numpy() == pytest.approx(1.0)


def test_a_source_of_noise_weighs_less() -> None:
    """Half the users follow a rule, half are random: what is held out agrees with the first."""
    good, rng = chain_log(users=80, items=15, length=10), np.random.default_rng(0)
    items = [f"i{i}" for i in rng.integers(15, size=400)]
    noise = log_of([(f"n{n // 10}", items[n], START_MS + n * 1000) for n in range(400)])
    events = pl.concat(
        [good.events.with_columns(pl.lit("shop").alias("source")), noise.events.with_columns(pl.lit("crawl").alias("source"))]
    )
    change = cures.PersonaliseStep(by="source", learner=SMALL, looks=2).change(training_of(replace(good, events=events)))
    assert change.factor_R is not None
    of_shop = (events["source"] == "shop").to_numpy()
    assert change.factor_R[of_shop].mean() > 1.2 * change.factor_R[~of_shop].mean()
    assert change.factor_R.mean() == pytest.approx(1.0)
    with pytest.raises(LargeRecError, match="did you mean 'source'"):
        cures.PersonaliseStep(by="sorce", learner=SMALL).change(training_of(replace(good, events=events)))


def test_means_of_small_groups_are_drawn_to_that_of_all() -> None:
    value = np.array([1.0, 1.0, 1.0, 1.0, -4.0, np.nan])
    found = shrunk_means(value, np.array([0, 0, 0, 0, 1, 1]), 3, 4.0)
    assert found.tolist() == pytest.approx([0.5, -0.8, 0.0])
