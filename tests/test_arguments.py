"""What may be given to an Engine: the wrong kind is one clear error, and no id is taken for another one."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from runs import trained_run
from test_ranking import engine_of, overrides_of
from typer.testing import CliRunner

from largerec.cli import app
from largerec.engine import Engine, load
from largerec.errors import LargeRecError

AT = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Users and items are integers; it retrieves and ranks."""
    return engine_of("hstu", "interleaved")


@pytest.fixture(scope="module")
def named() -> Engine:
    """Users and items are text."""
    return load(trained_run())


# --- ids ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [1.7, True, np.True_, np.float32(1.9), math.nan, math.inf, b"1", "1.0", 2**70, date(2024, 1, 1)])
def test_what_is_no_integer_is_no_item_of_integers(engine: Engine, odd: Any) -> None:
    for given in ([odd], [1, odd], [odd, 1]):
        with pytest.raises(LargeRecError, match=r"candidate .* is not in the catalogue of 15 items") as caught:
            engine.rank(3, given)
        assert repr(odd) in str(caught.value)
        with pytest.raises(LargeRecError, match=r"item .* is not in the catalogue of 15 items"):
            engine.recommend(histories=[[2], given])


@pytest.mark.parametrize("one", [1, 1.0, "1", np.int64(1), np.uint8(1), np.float32(1), np.str_("1")])
def test_an_integer_may_be_written_in_many_ways(engine: Engine, one: Any) -> None:
    assert engine.rank(3, [2, one]).equals(engine.rank(3, [2, 1]))
    assert engine.recommend(histories=[[2, one]]).equals(engine.recommend(histories=[[2, 1]]))
    assert engine.recommend([one]).equals(engine.recommend([1]))


@pytest.mark.parametrize("odd", [True, np.True_, 1.5, None, math.nan, b"1", "9" * 4400, pytest.param(10**4400, id="long")])
def test_what_is_no_user(engine: Engine, odd: Any) -> None:
    for ask in (lambda: engine.recommend([odd]), lambda: engine.history(odd)):
        with pytest.raises(LargeRecError, match=r"user .* is not in this run's log") as caught:
            ask()
        assert len(str(caught.value)) < 400


# --- kinds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda e: e.recommend("u01"), r"users is 'u01', and it must be a list of ids; write users=\[\"u1\", \"u2\"\]"),
        (lambda e: e.recommend(b"u01"), "users is b'u01', and it must be a list of ids"),
        (lambda e: e.recommend(42), "users is 42, and it must be a list of ids"),
        (lambda e: e.recommend({"u01": 1}), "users is {'u01': 1}, and it must be a list of ids"),
        (lambda e: e.recommend([["u01"]]), r"users holds \['u01'\], and each element is one id"),
        (lambda e: e.recommend(histories="12"), r"histories is '12', and it must be a list of lists of ids"),
        (lambda e: e.recommend(histories=["12"]), r"an element of histories is '12', .*; write histories=\[\[\"i1\", \"i2\"\], "),
        (lambda e: e.recommend(histories=["i01", "i02"]), "an element of histories is 'i01'"),
        (lambda e: e.recommend(histories=[12, 13]), "an element of histories is 12, and it must be a list of ids"),
        (lambda e: e.recommend(histories=[[["i01"]]]), r"an element of histories holds \['i01'\]"),
        (lambda e: e.recommend(["u01"], k=2.5), "k=2.5 is no whole number; write for example k=10"),
        (lambda e: e.recommend(["u01"], k="3"), "k='3' is no whole number"),
        (lambda e: e.recommend(["u01"], k=True), "k=True is no whole number"),
        (lambda e: e.recommend(["u01"], k=None), "k=None is no whole number"),
    ],
)
def test_what_cannot_be_asked_of_recommend(named: Engine, ask: Callable[[Engine], Any], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        ask(named)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": None}, r"candidates is None, and it must be a list of ids; write candidates=\[\"i1\", \"i2\"\]"),
        ({"candidates": "12"}, "candidates is '12', and it must be a list of ids"),
        ({"candidates": [[1]]}, r"candidates holds \[1\], and each element is one id"),
        ({"user": [3]}, r"user is \[3\], and it must be one id"),
        ({"user": None, "history": "12"}, r"history is '12', and it must be a list of ids"),
        ({"by": 5}, "by=5 is no task of this run"),
        ({"context": 5}, r"context=5 names no columns; write for example context=\{\"tab\": 1\}"),
    ],
)
def test_what_cannot_be_asked_of_rank(engine: Engine, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        engine.rank(**{"user": 3, "candidates": [1, 2], **arguments})


def test_lists_come_in_many_kinds(engine: Engine) -> None:
    expected = engine.rank(3, [1, 2], at=AT)
    for given in ((1, 2), range(1, 3), np.array([1, 2]), pl.Series([1, 2]), (one for one in [1, 2])):
        assert engine.rank(3, given, at=AT).equals(expected)  # type: ignore[arg-type]
    assert engine.recommend(histories=np.array([[1, 2]])).equals(engine.recommend(histories=[[1, 2]]))  # type: ignore[arg-type]
    assert engine.recommend([3], k=10**30, mask=False, at=AT).height == 15
    assert engine.recommend([3], k=np.int64(4), mask=False, at=AT).height == 4


@pytest.mark.parametrize("path", [None, 5, b"runs/x"])
def test_a_run_has_a_path(path: Any) -> None:
    with pytest.raises(LargeRecError, match=r"the path of a run is text or a Path, and .* was given"):
        load(path)
    with pytest.raises(LargeRecError, match="there is no run 'xxx"):
        load("x" * 5000)


# --- moments --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [date(2022, 1, 1), 1.6e9, np.datetime64("2021-01-01"), "yesterday", "", ["2022-01-01"]])
def test_what_is_no_moment(engine: Engine, odd: Any) -> None:
    for ask in (lambda: engine.recommend([3], at=odd), lambda: engine.rank(3, [1], at=odd)):
        with pytest.raises(LargeRecError, match=r"at=.* is no moment; give a datetime such as .*, or ISO text such as"):
            ask()


def test_a_moment_may_be_iso_text(engine: Engine) -> None:
    for text in ("2024-05-01T12:00", "2024-05-01T12:00Z", "2024-05-01T14:00+02:00"):
        assert engine.rank(3, [1, 2], at=text).equals(engine.rank(3, [1, 2], at=AT))
        assert engine.recommend([3], at=text).equals(engine.recommend([3], at=AT))


def test_the_ends_of_time(engine: Engine) -> None:
    for at in (datetime(1, 1, 1), datetime.max):
        assert engine.rank(3, [1, 2], at=at).height == 2
    for sign, at in ((1, datetime(1, 1, 1)), (-1, datetime.max)):
        with pytest.raises(LargeRecError, match="is beyond the years 1 to 9999 in UTC"):
            engine.rank(3, [1], at=at.replace(tzinfo=timezone(sign * timedelta(hours=5))))


# --- the weight of what is wanted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [math.nan, math.inf, -1, 1e308, "2"])
def test_a_weight_is_a_number_from_0(engine: Engine, odd: Any) -> None:
    with pytest.raises(LargeRecError, match=r"want_weight=.* must be a number from 0 to 1e\+09: 0 is plain retrieval"):
        engine.recommend([3], want="good", want_weight=odd)
    with pytest.raises(LargeRecError, match=r"want_weight=.* says nothing without want; name a task or leave it out"):
        engine.recommend([3], want_weight=odd)


def test_the_largest_weight_still_lists(engine: Engine) -> None:
    found = engine.recommend([3], want="good", want_weight=1e9, mask=False)
    assert found.height == 10 and found["score"].is_finite().all()


def test_the_command_line_says_the_same(tmp_path: Path) -> None:
    run, ask = str(trained_run(*overrides_of("interleaved"))), CliRunner().invoke
    user = load(run).sequences.user_ids[0]
    for command, message in (
        (["recommend", run, "--user-id", user, "--want-weight", "7"], "want_weight=7.0 says nothing without want"),
        (["recommend", run, "--user-id", user, "--want", "buy", "--want-weight", "inf"], "must be a number from 0"),
        (["recommend", run, "--user-id", "9" * 4400], "is not in this run's log"),
    ):
        done = ask(app, command)
        assert isinstance(done.exception, LargeRecError) and message in str(done.exception), (command[2:], done.output)
    item = load(run).tokenizer.vocabulary["item_id"][0]
    late = ["rank", run, "--user-id", user, "--items", item, "--at", "9999-12-31T23:59:59.9999"]
    assert ask(app, late).exit_code == 0
