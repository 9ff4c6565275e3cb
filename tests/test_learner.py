"""The small model: its losses are those of next-item prediction on training rows, whole, in their place and out of fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from logs import START_MS, chain_log, log_of, random_log

from largerec.learner import Learner, LearnerOptions, backwards, out_of_fold_losses, overlapping_windows, training_rows
from largerec.sequences import TRAIN, SplitOptions, build_sequences

SMALL = LearnerOptions(width=16, heads=1, dropout=0.0, max_length=6, tokens=200, epochs=25, learning_rate=0.02)


def test_it_learns_a_rule_and_says_which_events_break_it() -> None:
    log = chain_log(users=60, items=12, length=12)
    broken = np.zeros(log.events.height, dtype=bool)
    broken[np.random.default_rng(0).permutation(len(broken))[:15]] = True
    items = pl.when(pl.Series(broken)).then(pl.lit("i0")).otherwise(pl.col("item_id"))
    sequences = build_sequences(
        replace(log, events=log.events.with_columns(items.alias("item_id"), broken=pl.Series(broken))), SplitOptions()
    )
    only, _ = training_rows(sequences)
    losses = Learner(only, SMALL).learn().losses()
    number = np.array([int(name[1:]) for name in only.item_ids.to_list()])[only.item_N]
    follows = np.append(False, (number[1:] - number[:-1]) % 12 == 1)
    asked = ~np.isnan(losses)
    assert np.median(losses[asked & follows]) < 0.2 < 1.5 < np.median(losses[asked & ~follows])


def test_every_event_with_a_history_has_one_loss_and_it_is_the_models() -> None:
    """Windows that overlap give each row once; short histories give what a pass over the whole history gives."""
    only, _ = training_rows(build_sequences(random_log(users=5, events=120), SplitOptions()))
    learner = Learner(only, LearnerOptions(width=16, heads=1, dropout=0.0, max_length=8, tokens=100, epochs=2)).learn()
    losses = learner.losses()
    first = np.zeros(len(losses), dtype=bool)
    first[only.offsets_U1[:-1][np.diff(only.offsets_U1) > 0]] = True
    assert (np.isnan(losses) == first).all()
    queries = learner.engine.queries_at(np.flatnonzero(~first))
    scores = learner.engine.scorer.prepared().scores(queries)  # type: ignore[attr-defined]
    whole = -torch.log_softmax(scores, 1).numpy()[np.arange(len(scores)), learner.token_of_item[only.item_N[~first]]]
    place = (np.arange(len(losses)) - only.offsets_U1[only.user_N])[~first]
    assert np.allclose(whole[place <= 4], losses[~first][place <= 4], atol=1e-4)


def test_windows_overlap_by_half_and_cover_each_target_once() -> None:
    first_U, last_U = np.array([0, 30, 31, 40]), np.array([29, 30, 38, 57])
    start_W, end_W, fresh_W = overlapping_windows(first_U, last_U, 8)
    targets = np.concatenate([np.arange(max(a, f) + 1, e + 1) for a, e, f in zip(start_W, end_W, fresh_W, strict=True)])
    assert sorted(targets.tolist()) == [*range(1, 30), *range(32, 39), *range(41, 58)]
    assert (end_W - start_W).max() == 8
    assert all(
        a == u or f - a >= 4
        for a, f, u in zip(start_W, fresh_W, first_U[np.searchsorted(first_U, start_W, side="right") - 1], strict=True)
    )


def test_only_training_rows_are_read() -> None:
    """Other rows of validation and test change no loss by a bit."""
    sequences = build_sequences(random_log(users=8, events=100), SplitOptions())
    item_N = sequences.item_N.copy()
    item_N[sequences.stage_N != TRAIN] = item_N[0]
    options = LearnerOptions(width=16, heads=1, tokens=60, epochs=2)
    ours, theirs = (
        Learner(training_rows(one)[0], options).learn().losses() for one in (sequences, replace(sequences, item_N=item_N))
    )
    assert ours.tobytes() == theirs.tobytes()


def test_backwards_twice_is_the_same() -> None:
    only, _ = training_rows(build_sequences(random_log(), SplitOptions()))
    turned, row_M = backwards(only)
    assert (turned.item_N == only.item_N[row_M]).all() and (backwards(turned)[0].item_N == only.item_N).all()
    for a, b in zip(only.offsets_U1[:-1], only.offsets_U1[1:], strict=True):
        assert turned.item_N[a:b].tolist() == only.item_N[a:b][::-1].tolist()


def test_out_of_fold_losses_come_from_the_other_half() -> None:
    """Users with a private habit: in sample it is learned, out of fold it cannot be."""
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{(u * 7 + 3 * step) % 200}", START_MS + 1000 * step) for u in range(30) for step in range(10)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    only, _ = training_rows(build_sequences(log_of(rows), SplitOptions()))
    options = SMALL.model_copy(update={"epochs": 25})
    inside, outside = Learner(only, options).learn().losses(), out_of_fold_losses(only, options, 0)
    assert np.nanmean(outside) > np.nanmean(inside) + 1.0
    assert (np.isnan(inside) == np.isnan(outside)).all()
