"""Packing: every pair once, windows, budgets, order and resuming, the thread that builds ahead, and times of asking."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import START_MS, chain_log, log_of, logs, random_log

from largerec.batches import Batch, BatchOptions, TokenRows, TrainingBatches, pack_histories, ranges
from largerec.events import EventLog, TimeKind
from largerec.prefetch import prefetch
from largerec.sequences import Sequences, SplitOptions, build_sequences
from largerec.tokenizers import AtomicTokenizer

LAWS = settings(deadline=None, max_examples=40)


def prepared(log: EventLog) -> tuple[Sequences, np.ndarray]:
    """The sequences of a log, and the token of each of their items."""
    sequences = build_sequences(log, SplitOptions())
    return sequences, AtomicTokenizer.fit(sequences).encode(sequences.item_ids)


def batches_of(
    log: EventLog, *, length: int = 4, tokens: int = 16, window: Literal["last", "all", "sample"] = "all", seed: int = 3
) -> TrainingBatches:
    return TrainingBatches(*prepared(log), BatchOptions(max_length=length, tokens=tokens, window=window), seed)


def equal(one: Batch, other: Batch) -> bool:
    names = ("item_T", "time_T", "offsets_B1", "target_T", "query_time_T", "loss_mask_T")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def slices(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(inputs, targets) of each packed history."""
    assert batch.target_T is not None
    bounds = batch.offsets_B1.tolist()
    return [(tuple(batch.item_T[a:b].tolist()), tuple(batch.target_T[a:b].tolist())) for a, b in itertools.pairwise(bounds)]


def training_tokens(sequences: Sequences, token_of_item: np.ndarray) -> list[list[int]]:
    """Tokens of the training rows of each user."""
    starts, ends = sequences.offsets_U1[:-1], sequences.train_end_U
    return [token_of_item[sequences.item_N[a:b]].tolist() for a, b in zip(starts, ends, strict=True)]


# --- what is in an epoch


@LAWS
@given(log=logs(one_item_each=True), length=st.integers(1, 6), tokens=st.integers(1, 20), epoch=st.integers(0, 3))
def test_every_training_pair_comes_once_an_epoch(log: EventLog, length: int, tokens: int, epoch: int) -> None:
    sequences, token_of_item = prepared(log)
    wanted = Counter(pair for history in training_tokens(sequences, token_of_item) for pair in itertools.pairwise(history))
    batches = batches_of(log, length=length, tokens=tokens, window="all")
    found: Counter[tuple[int, int]] = Counter()
    for batch in batches.epoch(epoch):
        for inputs, targets in slices(batch):
            assert inputs[1:] == targets[:-1] and 1 <= len(inputs) <= length
            found.update(zip(inputs, targets, strict=True))
    assert found == wanted
    assert batches.tokens_per_epoch == sum(wanted.values())


@LAWS
@given(log=logs(), length=st.integers(1, 6))
def test_a_longer_history_keeps_its_last_inputs(log: EventLog, length: int) -> None:
    sequences, token_of_item = prepared(log)
    histories = [history for history in training_tokens(sequences, token_of_item) if len(history) > 1]
    wanted = Counter((tuple(history[:-1][-length:]), tuple(history[1:][-length:])) for history in histories)
    found = Counter(one for batch in batches_of(log, length=length, window="last").epoch(0) for one in slices(batch))
    assert found == wanted


def test_windows_are_consecutive_and_the_first_one_is_the_short_one() -> None:
    batches = batches_of(log_of([("a", item, item) for item in range(10)]), length=3, window="all")
    windows = sorted(one for batch in batches.epoch(0) for one in slices(batch))  # 8 training events, 7 pairs
    assert windows == [((0,), (1,)), ((1, 2, 3), (2, 3, 4)), ((4, 5, 6), (5, 6, 7))]


@LAWS
@given(log=logs(), length=st.integers(1, 6), epoch=st.integers(0, 3))
def test_a_sampled_window_is_a_run_of_the_history(log: EventLog, length: int, epoch: int) -> None:
    sequences, token_of_item = prepared(log)
    histories = [history for history in training_tokens(sequences, token_of_item) if len(history) > 1]
    batches = batches_of(log, length=length, window="sample")
    found = [one for batch in batches.epoch(epoch) for one in slices(batch)]
    assert sorted(len(inputs) for inputs, _ in found) == sorted(min(length, len(history) - 1) for history in histories)
    possible = {
        (tuple(history[:-1][a : a + length]), tuple(history[1:][a : a + length]))
        for history in histories
        for a in range(max(1, len(history) - length))
    }
    assert set(found) <= possible


def test_sampled_windows_are_drawn_anew_each_pass_and_every_place_alike() -> None:
    log = log_of([(user, item, item) for user in "ab" for item in range(11)])  # 9 training events: a window of 3 has 6 places
    batches = batches_of(log, length=3, window="sample")
    places = Counter(inputs[0] for epoch in range(600) for batch in batches.epoch(epoch) for inputs, _ in slices(batch))
    assert sorted(places) == list(range(6))
    assert all(abs(count - 200) < 60 for count in places.values())
    again = batches_of(log, length=3, window="sample")
    assert all(equal(a, b) for a, b in zip(batches.epoch(7), again.epoch(7), strict=True))


@LAWS
@given(log=logs(), length=st.integers(1, 6), tokens=st.integers(1, 20))
def test_batches_fill_the_budget_and_do_not_pass_it(log: EventLog, length: int, tokens: int) -> None:
    batches = batches_of(log, length=length, tokens=tokens)
    lengths = batches.end_W - batches.start_W
    groups = batches.windows_of(0)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    made = batches.epoch(0)
    for group, after in zip(groups, [*groups[1:], None], strict=True):
        assert lengths[group].sum() <= tokens or len(group) == 1
        assert after is None or lengths[group].sum() + lengths[after[0]] > tokens
        assert next(made).n_tokens == lengths[group].sum()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_pieces_are_the_batch_in_whole_histories(count: int) -> None:
    for batch in batches_of(random_log(), length=5, tokens=40).epoch(0):
        pieces = batch.pieces(count)
        assert 1 <= len(pieces) <= count and all(piece.n_tokens for piece in pieces)
        assert [history for piece in pieces for history in slices(piece)] == slices(batch)
        for name in ("time_T", "query_time_T", "loss_mask_T"):
            assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name))
        assert max(piece.n_tokens for piece in pieces) <= batch.n_tokens / count + 5


# --- stochastic length


def thinned(alpha: float | None, tokens: int = 64, seed: int = 3) -> TrainingBatches:
    """Histories of about 40 events, at most 25 inputs."""
    log = chain_log(users=60, length=45)
    return TrainingBatches(*prepared(log), BatchOptions(max_length=25, tokens=tokens, stochastic_length=alpha), seed)


def test_stochastic_length_thins_as_often_as_the_paper_says() -> None:
    batches = thinned(1.4)
    short, whole = round(25**0.7), 25
    lengths = np.concatenate([batches.lengths_of(epoch) for epoch in range(100)])
    assert set(lengths.tolist()) == {short, whole}
    assert (lengths == whole).mean() == pytest.approx(25**1.4 / 25**2, abs=0.02)


def test_what_stays_is_in_order_and_predicts_what_truly_followed() -> None:
    whole = {inputs[0]: (inputs, targets) for b in thinned(None).epoch(0) for inputs, targets in slices(b)}
    pairs = {pair for inputs, targets in whole.values() for pair in zip(inputs, targets, strict=True)}
    chosen = set()
    for epoch in range(5):
        for batch in thinned(1.2).epoch(epoch):
            for inputs, targets in slices(batch):
                assert set(zip(inputs, targets, strict=True)) <= pairs
                chosen.add(inputs)
            assert batch.offsets_B1[-1] == batch.n_tokens <= 64
            for first, last in itertools.pairwise(batch.offsets_B1.tolist()):
                assert (batch.time_T[first:last].diff() > 0).all()
    assert len(chosen) > 100, "other inputs for each user and pass"


def test_alpha_two_thins_nothing() -> None:
    assert all(equal(a, b) for a, b in zip(thinned(2.0).epoch(1), thinned(None).epoch(1), strict=True))


def test_thinned_epochs_resume_exactly() -> None:
    whole = list(thinned(1.3).epoch(2))
    for first in range(len(whole) + 1):
        assert all(equal(a, b) for a, b in zip(thinned(1.3).epoch(2, first), whole[first:], strict=True))


# --- order and resuming


def test_order_is_a_function_of_seed_and_epoch() -> None:
    log = random_log()
    one, other = batches_of(log), batches_of(log)
    assert all(equal(a, b) for a, b in zip(one.epoch(2), other.epoch(2), strict=True))
    orders = {
        tuple(np.concatenate(batches.windows_of(epoch)).tolist())
        for batches in (one, batches_of(log, seed=4))
        for epoch in range(3)
    }
    assert len(orders) == 6


@pytest.mark.parametrize("window", ["last", "all"])
def test_resuming_gives_exactly_the_rest(window: Literal["last", "all"]) -> None:
    batches = batches_of(random_log(), window=window, tokens=8)
    whole = list(batches.epoch(1))
    assert len(whole) > 4
    for first in range(len(whole) + 1):
        rest = list(batches_of(random_log(), window=window, tokens=8).epoch(1, first))
        assert len(rest) == len(whole) - first
        assert all(equal(a, b) for a, b in zip(rest, whole[first:], strict=True))


# --- building ahead


def helper_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "largerec-batches"]


def some_batch() -> Batch:
    return Batch(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.tensor([0, 1]))


def test_an_error_in_the_thread_reaches_the_caller() -> None:
    def broken() -> Batch:
        raise ValueError("a broken batch")

    stream = prefetch(iter([some_batch, some_batch, broken, some_batch]))
    assert isinstance(next(stream), Batch) and isinstance(next(stream), Batch)
    with pytest.raises(ValueError, match="a broken batch"):
        next(stream)
    assert not helper_threads()


def test_the_thread_ends_when_the_consumer_stops_early() -> None:
    made: list[int] = []

    def makers() -> Iterator[Callable[[], Batch]]:
        for number in range(1000):
            made.append(number)
            yield some_batch

    stream = prefetch(makers(), ahead=2)
    next(stream)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert helper_threads()
    stream.close()  # type: ignore[attr-defined]
    assert not helper_threads()
    assert 4 <= len(made) <= 5  # one used, two ready, one that waited for room, and perhaps one looked up but not built


def test_an_epoch_that_is_used_up_leaves_no_thread() -> None:
    assert len(list(batches_of(random_log()).epoch(0))) > 4
    assert not helper_threads()


# --- histories that ask


def rows_of(times: list[int]) -> TokenRows:
    n = len(times)
    return TokenRows(np.arange(n), np.array(times), None, np.arange(n + 1))


def test_a_history_asks_inside_at_the_next_time_and_last_at_the_moment_of_asking() -> None:
    rows = rows_of([10, 20, 30, 40, 50, 60])
    batch = pack_histories(rows, np.array([0, 3, 4]), np.array([3, 4, 6]), np.array([99, 98, -1]))
    assert batch.item_T.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.time_T.tolist() == [10, 20, 30, 40, 50, 60]
    assert batch.offsets_B1.tolist() == [0, 3, 4, 6]
    assert batch.lengths_B.tolist() == [3, 1, 2]
    assert batch.position_T.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.query_time_T is not None and batch.query_time_T.tolist() == [20, 30, 99, 98, 60, -1]
    assert batch.target_T is None
    assert rows.time_M.tolist() == [10, 20, 30, 40, 50, 60]  # asking writes nothing into the rows


@LAWS
@given(log=logs(time_kinds=["timestamp"]))
def test_training_asks_at_the_time_of_the_target(log: EventLog) -> None:
    sequences, token_of_item = prepared(log)
    wanted = Counter()
    for first, end in zip(sequences.offsets_U1[:-1], sequences.train_end_U, strict=True):
        item, moment = token_of_item[sequences.item_N], sequences.time_N
        wanted.update((item[r], moment[r], item[r + 1], moment[r + 1]) for r in range(first, end - 1))
    found = Counter()
    for batch in batches_of(log).epoch(0):
        assert batch.target_T is not None and batch.query_time_T is not None and batch.loss_mask_T is not None
        assert batch.loss_mask_T.all()
        columns = (batch.item_T, batch.time_T, batch.target_T, batch.query_time_T)
        found.update(zip(*(column.tolist() for column in columns), strict=True))
    assert found == wanted


@pytest.mark.parametrize("kind", ["timestamp", "order"])
def test_a_log_without_a_clock_has_no_times(kind: TimeKind) -> None:
    rows = [("a", item, START_MS + item) for item in range(6)]
    for batch in batches_of(log_of(rows, kind)).epoch(0):
        assert batch.query_time_T is not None
        assert bool((batch.time_T == -1).all()) == bool((batch.query_time_T == -1).all()) == (kind == "order")


def test_events_on_unknown_items_are_left_out() -> None:
    rows = [("a", item, START_MS + place) for place, item in enumerate("xyzxy")] + [("b", "z", START_MS)]
    sequences = build_sequences(log_of(rows, behaviors=["p", "q", "r", "s", "t", "u"]), SplitOptions())
    token_of_item = np.where(np.array([item == "y" for item in sequences.item_ids]), -1, np.arange(3))
    kept = TokenRows.of(sequences, token_of_item)
    names = [sequences.item_ids[int(token)] for token in kept.token_M]
    starts = kept.kept_N1[sequences.offsets_U1].tolist()
    assert {sequences.user_ids[u]: names[starts[u] : starts[u + 1]] for u in range(2)} == {"a": ["x", "z", "x"], "b": ["z"]}
    assert kept.behaviour_M is not None and sequences.behaviour_N is not None
    behaviours = [sequences.behaviours[code] for code in kept.behaviour_M]
    assert [behaviours[starts[u] : starts[u + 1]] for u in range(2)] == [["p", "r", "s"], ["u"]]
    assert [(t - START_MS) for t in kept.time_M[starts[0] : starts[1]]] == [0, 2, 3]
    batch = pack_histories(kept, np.array([starts[0]]), np.array([starts[1]]), np.array([START_MS + 9]))
    assert batch.query_time_T is not None and (batch.query_time_T - START_MS).tolist() == [2, 3, 9]
    assert batch.behaviour_T is not None and batch.behaviour_T.tolist() == kept.behaviour_M[starts[0] : starts[1]].tolist()


@LAWS
@given(parts=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=8))
def test_ranges(parts: list[tuple[int, int]]) -> None:
    start, length = np.array(parts, dtype=np.int64).reshape(-1, 2).T
    assert ranges(start, length).tolist() == [row for first, count in parts for row in range(first, first + count)]
