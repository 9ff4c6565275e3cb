"""The shuffle test: known answers on a log that is all order and on one without any, and that it reads training rows alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from logs import START_MS, chain_log, log_of, random_log
from test_report import assert_safe
from typer.testing import CliRunner

from largerec import order
from largerec.audit import audit
from largerec.cli import app
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.learner import LearnerOptions
from largerec.order import held_out, shuffle_test, shuffled
from largerec.report.audit import html
from largerec.sequences import TRAIN, SplitOptions, build_sequences

SMALL = LearnerOptions(width=16, heads=1, dropout=0.0, max_length=10, tokens=300, epochs=20, learning_rate=0.015)


def tasteful_log(users: int = 120) -> EventLog:
    """Users like one of five shelves and take its items in no order: the past says much, its order nothing."""
    rng = np.random.default_rng(0)
    return log_of(
        [
            (f"u{u}", f"i{u % 5}-{item}", START_MS + 1000 * n)
            for u in range(users)
            for n, item in enumerate(rng.permutation(15)[:9])
        ]
    )


def test_a_chain_is_all_order() -> None:
    found = shuffle_test(build_sequences(chain_log(users=80, items=40), SplitOptions()), (0,), SMALL)
    assert found["verdict"] == "order matters" and found["ordered"] > 0.8
    assert found["loss"]["relative"]["low"] > 0.15
    assert found["said"].startswith("Order matters: a small model loses ")


def test_tastes_without_order_lose_nothing() -> None:
    found = shuffle_test(build_sequences(tasteful_log(), SplitOptions()), (0, 1), SMALL)
    assert found["verdict"] == "no sign of order" and found["ordered"] > 0.2
    assert abs(found["loss"]["relative"]["value"]) < 0.1
    assert "only 120 questions" in found["said"]


def test_a_shuffle_moves_items_within_users_and_leaves_times_and_the_question() -> None:
    true = held_out(build_sequences(random_log(users=9, events=200), SplitOptions()))
    mixed = shuffled(true, 0)
    assert (mixed.time_N == true.time_N).all() and (mixed.item_N != true.item_N).any()
    asked = true.stage_N != TRAIN
    assert (mixed.item_N[asked] == true.item_N[asked]).all()
    for a, b in zip(true.offsets_U1[:-1], true.offsets_U1[1:], strict=True):
        assert sorted(mixed.item_N[a:b]) == sorted(true.item_N[a:b])


def test_validation_and_test_are_not_read() -> None:
    sequences = build_sequences(random_log(users=9, events=200), SplitOptions())
    item_N = sequences.item_N.copy()
    item_N[sequences.stage_N != TRAIN] = 0
    few = SMALL.model_copy(update={"epochs": 1})
    ours, theirs = (shuffle_test(one, (0,), few) for one in (sequences, replace(sequences, item_N=item_N)))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}


def test_a_long_log_is_sampled_by_whole_users() -> None:
    only = held_out(build_sequences(random_log(users=40, events=600), SplitOptions()), most=200)
    lengths = np.diff(only.offsets_U1)
    assert 100 < lengths.sum() <= 200 and (lengths[lengths > 0] > 3).all()


def test_a_log_of_short_users_is_refused() -> None:
    rows = [(f"u{u}", f"i{n}", START_MS + n) for u in range(4) for n in range(4)]
    with pytest.raises(LargeRecError, match="three training events"):
        held_out(build_sequences(log_of(rows), SplitOptions()))


def test_the_command_says_it_and_the_page_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = chain_log()
    log.write(tmp_path / "log.parquet")
    monkeypatch.setattr(
        order, "shuffle_test", lambda sequences: shuffle_test(sequences, (0,), SMALL.model_copy(update={"epochs": 2}))
    )
    done = CliRunner().invoke(
        app, ["audit", str(tmp_path / "log.parquet"), "--shuffle-test", "--out", str(tmp_path / "o"), "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.output.splitlines()[-1])["order"]
    shown = assert_safe(html(audit(log).to_json() | {"order": found}))
    assert " ".join(found["said"].split()) in shown.words and "Whether order matters" in shown.words
    assert "Whether order matters" in (tmp_path / "o" / "audit.html").read_text()
