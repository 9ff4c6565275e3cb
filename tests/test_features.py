"""Features: types told from the data, vocabularies of training alone, leaks refused, and a model that reads them."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from logs import START_MS
from runs import assert_same_training, tiny_recipe, trained_run
from typer.testing import CliRunner

from largerec.bundle import Bundle
from largerec.cli import app
from largerec.datasets import load_log
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate
from largerec.evaluate_tasks import predict_tasks
from largerec.feature_tables import build_features
from largerec.features import (
    FeatureOptions,
    FeatureRows,
    Features,
    FieldLayout,
    as_given,
    as_lists,
    context_at,
    fit_field,
    told_type,
)
from largerec.fields import FieldVectors
from largerec.outcomes import refuse_outcomes
from largerec.sequences import TEST, TRAIN, Sequences, build_sequences
from largerec.tokenizers import AtomicTokenizer
from largerec.train import Trainer, train

HOUR = 3_600_000


def write_log(folder: Path, users: int = 60, events: int = 14) -> Path:
    """A log whose label follows from two context columns alone, with tables of users and items that have every kind of column."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        for step in range(events):
            slot, level = str(rng.choice(["a", "b", "c"])), float(rng.normal())
            rows.append((user, int(rng.integers(12)), START_MS + HOUR * (step * users + user), slot, level))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "slot", "level"], orient="row")
    seen = pl.when(rng.random(len(frame)) < 0.1).then(None).otherwise(pl.col("slot"))  # a gap, with the answer of b
    answer = (pl.col("slot").fill_null("b") == "a") != (pl.col("level") > 0)
    frame = frame.with_columns(slot=seen).with_columns(answer=answer.cast(int))
    frame.write_csv(folder / "events.csv")
    pl.DataFrame(
        {
            "user_id": range(users),
            "country": [["de", "fr", None][user % 3] for user in range(users)],
            "age": [float(20 + user % 45) if user % 7 else None for user in range(users)],
        }
    ).write_csv(folder / "users.csv")
    pl.DataFrame(
        {
            "item_id": range(12),
            "tags": ["x|y", "y", "z|x|y", None] * 3,
            "since": [f"2020-01-{1 + item:02d}" for item in range(12)],
            "maker_id": [1000 + item // 2 for item in range(12)],
        }
    ).write_csv(folder / "items.csv")
    return folder / "events.csv"


ALL = (
    "features.context=['slot', 'level', 'hour']",
    "features.user=['user_id', 'country', 'age']",
    "features.item=['tags', 'since', 'maker_id']",
)
LEARNS = (
    "tasks.yes.where=answer = 1", "batch.max_length=16", "batch.window=all", "batch.tokens=128", "ranking.retrieval=0",
    'model={name="hstu", depth=1, width=16, heads=1, dropout=0}', "train.metric=yes.auc",
    "optim={learning_rate=0.01, warmup_steps=5}", 'objective={name="softmax"}',
)  # fmt: skip


def recipe_of(run: Path, log: Path, *overrides: str) -> Any:
    return tiny_recipe(run, f"data.path={log}", *LEARNS, *("batch.actions=interleaved",), *overrides)


def features_of(log: Path, *overrides: str) -> tuple[Features, Sequences, AtomicTokenizer]:
    recipe = recipe_of(Path("unused"), log, *ALL, *overrides)
    events = load_log(recipe.data)
    sequences = build_sequences(events, recipe.split, recipe.tasks)
    tokenizer = AtomicTokenizer.fit(sequences, events.items)
    found = build_features(
        events, sequences, tokenizer.vocabulary["item_id"], recipe.features, recipe.tasks, None, recipe.data.path
    )
    return found, sequences, tokenizer


# --- one field


@pytest.mark.parametrize(
    ("column", "values", "kind", "separator"),
    [
        ("tab", [1, 2, 1, 3], "categorical", None),
        ("count", list(range(40)), "number", None),
        ("author_id", list(range(40)), "categorical", None),
        ("price", [0.5, 1.0, 2.0], "number", None),
        ("onehot", [0.0, 1.0, 2.0], "categorical", None),
        ("new", [True, False], "categorical", None),
        ("tag", ["1", "12,3"], "many", ","),
        ("genres", ["Action|Sci-Fi", "Drama"], "many", "|"),
        ("range", ["[10,100)", "0"], "categorical", None),
        ("title", ["Yes, Minister", "No"], "categorical", None),
        ("words", [["a"], ["b", "c"]], "many", None),
        ("upload_dt", ["2022-04-10", "2022-04-09"], "number", None),
    ],
)
def test_types_are_told_from_values(column: str, values: list[Any], kind: str, separator: str | None) -> None:
    assert told_type(column, pl.Series(values)) == (kind, separator)


def fitted(values: list[Any], asked: Any = "auto", weight: list[int] | None = None, **options: Any) -> Any:
    given = pl.Series(values, strict=False)
    settings = FeatureOptions.model_validate({"item": ["x"], "min_count": 1, **options})
    return fit_field("item", "x", asked, given, np.array(weight or [1] * len(values)), settings)


def test_missing_and_unknown_have_rows_of_their_own() -> None:
    field = fitted(["a", "b", "a", None, ""], min_count=2)
    assert (field.kind, field.values, field.rows) == ("categorical", ("a",), 3)
    assert field.codes(pl.Series(["a", "b", "new", None, " "])).tolist() == [[2], [1], [1], [0], [0]]
    numbers = fitted([1.0, 2.0, 3.0, 4.0, None], asked="number", buckets=4)
    assert numbers.codes(pl.Series([0.0, 2.5, 9.0, None, float("nan"), float("inf")]))[:, 0].tolist() == [1, 3, 4, 0, 0, 0]
    assert numbers.rows == 5
    scaled = fitted([1.0, 3.0, None], asked="number", numbers="standard")
    assert scaled.scaled(pl.Series([1.0, 3.0, None, 1e9])).tolist() == [-1.0, 1.0, 0.0, 10.0]
    assert scaled.codes(pl.Series([1.0, None])).tolist() == [[1], [0]]
    alike = fitted([0.7] * 100, asked="number", numbers="standard")  # the deviation of these is 1e-16
    assert alike.scaled(pl.Series([0.7, 0.71])).tolist() == pytest.approx([0.0, 0.01])


def test_several_values_are_slots() -> None:
    field = fitted(["x|y", "y", None, "z|x|y", "x|x"])
    assert (field.kind, field.slots, field.values) == ("many", 3, ("x", "y", "z"))
    assert field.codes(pl.Series(["y|x", None, "new", "x|x", "z|y|x|q", ""])).tolist() == [
        [3, 2, -1], [0, -1, -1], [1, -1, -1], [2, -1, -1], [4, 3, 2], [0, -1, -1],
    ]  # fmt: skip
    lists = fitted([["a"], [], None, ["b", "a"]])
    assert lists.codes(pl.Series([[], ["a", "b"], None], dtype=pl.List(pl.String))).tolist() == [[0, -1], [2, 3], [0, -1]]
    assert as_lists(pl.Series([None, "a|b"]), "|").to_list() == [[], ["a", "b"]]


def test_whole_floats_and_integers_are_one_value() -> None:
    field = fitted([1.0, 2.0, None, 1.0])
    assert field.kind == "categorical" and field.values == ("1", "2")
    assert field.codes(pl.Series([1, 2, 3])).tolist() == field.codes(pl.Series(["1", "2", "3"])).tolist() == [[2], [3], [1]]


def test_only_rows_with_weight_are_learned_from() -> None:
    field = fitted(["a", "b", "c", "c"], weight=[3, 0, 1, 1], min_count=2)
    assert field.values == ("a", "c")
    assert fitted([1.0, 2.5, 100.0], "number", [1, 1, 0], numbers="standard").mean == 1.75


@pytest.mark.parametrize(
    ("values", "asked", "message"),
    [
        ([None, None], "auto", "missing in every training event"),
        (["a", "b"], "number", "no value that is a number .* example 'a'"),
        ([[1], [2]], "categorical", "holds lists"),
        ([{"a": 1}], "auto", "holds Struct"),
        ([time(12)], "auto", "holds Time"),
    ],
)
def test_what_cannot_be_a_feature_is_explained(values: list[Any], asked: str, message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        fitted(values, asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": ["is_like"]}, r"features.known=\['is_like'\]"),
        ({"context": ["play_time_ms"]}, "sounds like what happened after"),
        ({"context": ["answer"], "known": ["answer"]}, "which tasks.yes is made of"),
        ({"context": ["user_id"]}, r"features.user=\['user_id'\]"),
        ({"context": ["behavior"]}, "sounds like what happened after"),
    ],
)
def test_answers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        refuse_outcomes(FeatureOptions.model_validate(options), {"tasks.yes": ("answer",)})
    refuse_outcomes(FeatureOptions(context=["is_rand", "duration_ms", "tab"], known=("is_rand",)), {})  # type: ignore[arg-type]


# --- a run's features


def test_columns_are_read_by_event_user_and_item(tmp_path: Path) -> None:
    features, sequences, tokenizer = features_of(write_log(tmp_path))
    kinds = {field.name: field.kind for field in features.fields}
    assert kinds == {
        "context.slot": "categorical", "context.level": "number", "context.hour": "categorical", "user.user_id": "categorical",
        "user.country": "categorical", "user.age": "number", "item.tags": "many", "item.since": "number",
        "item.maker_id": "categorical",
    }  # fmt: skip
    log = pl.read_csv(tmp_path / "events.csv")
    row = 77
    user, item, time = (
        sequences.user_ids[int(sequences.user_N[row])],
        sequences.item_ids[int(sequences.item_N[row])],
        sequences.time_N[row],
    )
    (own,) = log.filter(user_id=user, item_id=item, timestamp=time).to_dicts()
    context = features.tables["context"].row(row, named=True)
    assert (context["slot"], context["level"], context["hour"]) == (own["slot"], own["level"], time // HOUR % 24)
    rows = FeatureRows(features)
    token = int(tokenizer.encode(pl.Series([item]))[0])
    of_event = rows.of(np.array([row]), sequences.user_N[[row]], np.array([token]))
    as_candidate = rows.of_candidates(context, int(sequences.user_N[row]), np.array([token]))
    assert {name: value.tolist() for name, value in of_event.items()} == {
        name: value.tolist() for name, value in as_candidate.items()
    }
    layout = features.layout()
    assert of_event["code"].shape == (1, len(layout.field_S)) and layout.field_S.count(6) == 3  # three tags at most
    assert int(of_event["code"].max()) < layout.rows
    with pytest.raises(LargeRecError, match="context 'solt' is no context feature of this run; did you mean 'slot'"):
        rows.of_candidates({"solt": "a"}, 0, np.array([0]))
    again = Features.from_json(json.loads(json.dumps(features.to_json())), features.tables)
    assert again == features and again.digest() == features.digest()


def test_a_side_may_have_none_and_the_clock_may_be_all(tmp_path: Path) -> None:
    log = write_log(tmp_path)
    for options in ("features.context=['hour', 'weekday']", "features.user=['age']", "features.item=['tags']"):
        recipe = recipe_of(Path("unused"), log, options)
        events = load_log(recipe.data)
        sequences = build_sequences(events, recipe.split, recipe.tasks)
        ids = AtomicTokenizer.fit(sequences, events.items).vocabulary["item_id"]
        found = build_features(events, sequences, ids, recipe.features, recipe.tasks, None, recipe.data.path)
        rows, at = FeatureRows(found), np.array([0, 1, -1])
        of_event = rows.of(at, at, at)
        assert of_event["code"].shape == (3, len(found.layout().field_S)) and (of_event["code"] > 0).any(1).all()
        assert rows.of_candidates({}, 0, at)["code"].shape == of_event["code"].shape


def test_what_comes_after_training_changes_nothing(tmp_path: Path) -> None:
    features, sequences, _ = features_of(write_log(tmp_path))
    log = pl.read_csv(tmp_path / "events.csv", schema_overrides={"slot": pl.String}).with_row_index("row")
    assert sequences.log_row_N is not None
    later = sequences.log_row_N[sequences.stage_N != TRAIN]
    assert 0 < len(later) < len(log)
    spoilt = pl.col("row").is_in(later.tolist())
    log.with_columns(
        slot=pl.when(spoilt).then(pl.lit("new")).otherwise("slot"), level=pl.when(spoilt).then(1e6).otherwise("level")
    ).drop("row").write_csv(tmp_path / "events.csv")
    other, _, _ = features_of(tmp_path / "events.csv")
    assert other.fields == features.fields
    assert not other.tables["context"].equals(features.tables["context"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("features.context=['slto']", "names 'slto', which the log's events do not have; did you mean 'slot'.*hour and weekday"),
        ("features.item=['tag']", "names 'tag', which the log's items do not have; did you mean 'tags'"),
        ("features.user=['land']", "names 'land', which users.csv do not have"),
        ("features.users=nobody.csv", "there is no such file, nor beside the log"),
    ],
)
def test_columns_that_are_not_there_are_explained(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        features_of(write_log(tmp_path), change)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("features.item=['tags']",), "features help to predict tasks"),
        (("features.width=8",), "features.width says nothing without features"),
        (
            ("features.item=['tags']", "features.where=input", "tasks.yes.where=answer = 1", "batch.actions=summed"),
            "no.* Choose batch.actions='interleaved'|there is none",
        ),
        (("features.item=['tags']", "features.known=['tags']"), "not among features.context"),
        (("features.item=['tags']", "features.numbers=standard", "features.buckets=8"), "features.buckets says nothing"),
    ],
)
def test_what_would_do_nothing_is_refused(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        tiny_recipe(Path("unused"), *changes)


def test_vectors_are_rows_and_means_of_rows() -> None:
    torch.manual_seed(0)
    vectors = FieldVectors(FieldLayout(7, (0, 1, 1, 1, 2), (2,), ("a", "b", "c"), 4))
    rows, direction = vectors.table.weight, vectors.direction_ZE
    assert direction is not None
    found = vectors({"code": torch.tensor([[1, 2, 4, 0, 6], [2, 3, 0, 0, 5]]), "number": torch.tensor([[0.5], [0.0]])})
    torch.testing.assert_close(found[0], torch.stack([rows[1], (rows[2] + rows[4]) / 2, rows[6] + 0.5 * direction[0]]))
    torch.testing.assert_close(found[1], torch.stack([rows[2], rows[3], rows[5]]))


def test_what_training_never_misses_is_the_mean_when_it_is_missing() -> None:
    """Else chance would say what someone new, or without a context, does."""
    assert fitted(["a", "b", "a", "b"]).unseen == (0, 1) and fitted(["a", "b", None, "a"], min_count=2).unseen == ()
    assert fitted([1.0, 2.0, 3.0], asked="number").unseen == (0,) and fitted([["a"], [], None]).unseen == (1,)
    table = pl.DataFrame({"x": ["a", "b", "b"]})
    field, empty = fitted(table["x"].to_list()), pl.DataFrame()
    features = Features((field,), {"context": empty, "user": empty, "item": table}, 4)
    assert Features.from_json(json.loads(json.dumps(features.to_json())), features.tables) == features
    assert features.layout().unseen == ((1, 3, 5), (2, 3, 5)) and features.layout().rows == 5
    vectors = FieldVectors(features.layout())
    given = {"code": torch.tensor([[1], [2], [3], [4]]), "number": torch.empty(4, 0)}
    rows = vectors.table.weight
    torch.testing.assert_close(vectors(given)[:, 0], rows[1:])
    torch.testing.assert_close(vectors.eval()(given)[:, 0], torch.stack([rows[3:].mean(0), rows[3:].mean(0), rows[3], rows[4]]))


# --- a model that reads them

MODES = (("heads", "interleaved"), ("heads", "summed"), ("input", "interleaved"), ("both", "interleaved"))
each_way = pytest.mark.parametrize(("where", "mode"), MODES)
LONG = ("train.max_epochs=25", "train.patience=25", "evaluate.bootstrap_samples=10")


@pytest.mark.parametrize(
    ("where", "mode", "numbers"),
    [(*way, kind) for way, kind in zip(MODES, ("buckets", "standard", "standard", "buckets"), strict=True)],
)
def test_only_a_feature_decides(tmp_path: Path, where: str, mode: str, numbers: str) -> None:
    features = (*ALL[:1], f"features.where={where}", f"features.numbers={numbers}")
    train(recipe_of(tmp_path / "with", write_log(tmp_path), *features, f"batch.actions={mode}", *LONG), quiet=True)
    assert evaluate(tmp_path / "with")["tasks"]["yes"]["auc"] > 0.95


def test_without_that_feature_nothing_is_known(tmp_path: Path) -> None:
    train(recipe_of(tmp_path / "without", write_log(tmp_path), "batch.actions=interleaved", *LONG), quiet=True)
    assert abs(evaluate(tmp_path / "without")["tasks"]["yes"]["auc"] - 0.5) < 0.15


@each_way
def test_rank_is_the_evaluation(tmp_path: Path, where: str, mode: str) -> None:
    """Events of the test as candidates of rank(), at their moment and with their context, against the shared pass."""
    log = write_log(tmp_path)
    run = tmp_path / "run"
    train(recipe_of(run, log, *ALL, f"features.where={where}", f"batch.actions={mode}", "train.max_epochs=2"), quiet=True)
    engine = load(run)
    sequences, rows = engine.sequences, np.flatnonzero(engine.sequences.stage_N == TEST)[:8]
    found = predict_tasks(engine, rows).probability_ANL[0][:, 1]
    assert found.std() > 1e-4
    assert engine.features is not None
    for row, probability in zip(rows, found, strict=True):
        context = engine.features.features.tables["context"].row(int(row), named=True)
        user, item = sequences.user_ids[int(sequences.user_N[row])], sequences.item_ids[int(sequences.item_N[row])]
        before = datetime.fromtimestamp(sequences.time_N[row] / 1000 - 0.001, UTC)
        context.pop("hour")  # the clock knows
        ranked = engine.rank(user, [item], at=before, context=context)
        assert ranked["yes"][0] == pytest.approx(probability, abs=1e-5)
    assert ranked["yes"][0] != engine.rank(user, [item], at=before)["yes"][0]  # a context left out is missing
    done = CliRunner().invoke(
        app,
        ["rank", str(run), "--user-id", str(user), "--items", str(item), "--at", before.isoformat(), "--json"]
        + [part for name, value in context.items() if value is not None for part in ("--context", f"{name}={value}")],
    )
    assert json.loads(done.stdout.splitlines()[-1]) == ranked.to_dicts()
    for wrong, message in (("level=high", "give a number"), ("level", "write NAME=VALUE")):
        done = CliRunner().invoke(app, ["rank", str(run), "--user-id", str(user), "--items", str(item), "--context", wrong])
        assert isinstance(done.exception, LargeRecError) and message in str(done.exception)
    assert engine.rank(history=[1, 2], candidates=[3, 4], context={"slot": "a"}).height == 2
    with pytest.raises(LargeRecError, match="no context feature"):
        engine.rank(user, [item], context={"answer": 1})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "True"),
        (False, "false"),
        (3, "3"),
        (1.5, " 1.50 "),
        (date(2022, 5, 9), "2022-05-09"),
        (datetime(2022, 5, 9, 12), "2022-05-09T14:00+02:00"),
        (datetime(2022, 5, 9, 12, tzinfo=UTC), "2022-05-09T12:00"),
        ("a", " a "),
        (["a", "b"], "b"),
    ],
)
@pytest.mark.parametrize("asked", ["auto", "number", "many"])
def test_context_given_as_text_is_read_as_its_column(value: Any, text: str, asked: str) -> None:
    if asked == "number" and (value == "a" or isinstance(value, list)):
        return
    column, weight_N = pl.Series("x", [value, None]), np.array([9, 1])
    options = FeatureOptions.model_validate({"context": ["x"], "numbers": "standard"})
    field = fit_field("context", "x", asked, column, weight_N, options)  # type: ignore[arg-type]
    given = as_given("x", text, column.dtype, number=field.kind == "number")
    assert field.codes(given)[0, 0] == (3 if isinstance(value, list) else 1 if field.kind == "number" else 2)
    if field.kind == "number":
        assert field.scaled(given) == field.scaled(column)[:1] == 0
    assert field.codes(as_given("x", " ", column.dtype, number=field.kind == "number"))[0, 0] == 0, "missing"


@pytest.mark.parametrize(("given", "kind", "read"), [(1, pl.Boolean(), True), (True, pl.Int64(), 1), (0.0, pl.Boolean(), False)])
def test_context_given_in_python_is_read_as_its_column(given: Any, kind: Any, read: Any) -> None:
    assert (found := as_given("x", given, kind, number=False)[0]) == read and type(found) is type(read)


@pytest.mark.parametrize("kind", [pl.Int8, pl.Int64, None])
def test_an_hour_of_the_log_s_own_is_not_read_off_the_clock(kind: Any, tmp_path: Path) -> None:
    """It may be a local hour: at another moment nobody knows it, and then it is missing."""
    rows = [(user, item % 5, START_MS + item * HOUR, 30 + item % 3, item % 2) for user in range(8) for item in range(9)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "hour", "answer"], orient="row")
    frame = frame.drop("hour") if kind is None else frame.with_columns(pl.col("hour").cast(kind))
    frame.write_parquet(tmp_path / "log.parquet")
    recipe = recipe_of(Path("unused"), tmp_path / "log.parquet", "features.context=['hour']", "features.min_count=1")
    log = load_log(recipe.data)
    sequences = build_sequences(log, recipe.split, recipe.tasks)
    ids = AtomicTokenizer.fit(sequences, log.items).vocabulary["item_id"]
    features = build_features(log, sequences, ids, recipe.features, recipe.tasks, None, recipe.data.path)
    moment = datetime(2024, 5, 6, 7, tzinfo=UTC)
    rows_of_events, at = FeatureRows(features).with_moments(np.array([round(moment.timestamp() * 1000)]))
    code = rows_of_events.codes["context"][at[0], 0]
    if kind is None:
        assert features.clock == ["hour"] and context_at(features, moment) == {"hour": 7} and code > 1
    else:
        assert features.clock == [] and context_at(features, moment) == {} and code == 1, "the table's first row: missing"


@pytest.mark.parametrize(
    ("kind", "number", "text", "message"),
    [
        (pl.Boolean(), False, "yes", r"context x='yes' does not fit its column \(Boolean\): give true or false, or leave it out"),
        (pl.Int64(), False, "1.5", "give a whole number"),
        (pl.Float64(), True, "much", "give a number"),
        (pl.Float64(), False, "nan", "give a number"),
        (pl.Datetime(), True, "9 May", "give an ISO date such as 2022-05-09 or"),
        (pl.String(), True, "9 May", "give a number or an ISO date"),
    ],
)
def test_context_that_does_not_fit_its_column_is_refused(kind: Any, number: bool, text: str, message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        as_given("x", text, kind, number=number)


@each_way
def test_a_killed_run_resumes_to_the_same_numbers(tmp_path: Path, where: str, mode: str) -> None:
    log = write_log(tmp_path)
    more = (*ALL, f"features.where={where}", f"batch.actions={mode}", "train.max_epochs=2", "model.dropout=0.1")
    train(recipe_of(tmp_path / "whole", log, *more), quiet=True)
    killed_at(6, recipe_of(tmp_path / "cut", log, *more))
    train(recipe_of(tmp_path / "cut", log, *more), quiet=True)
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


def killed_at(step: int, recipe: Any) -> None:
    class Killed(Exception):
        pass

    plain = Trainer.step

    def until(self: Trainer, *given: Any) -> float:
        if self.state.step == step:
            raise Killed
        return plain(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", until)
        with pytest.raises(Killed):
            train(recipe, quiet=True)


def test_a_run_is_not_taken_up_on_other_features(tmp_path: Path) -> None:
    log = write_log(tmp_path)
    killed_at(5, recipe_of(tmp_path / "run", log, *ALL, "train.max_epochs=2"))
    users = pl.read_csv(tmp_path / "users.csv").with_columns(country=pl.lit("nl"))
    users.write_csv(tmp_path / "users.csv")
    with pytest.raises(LargeRecError, match="an unfinished run on other features"):
        train(recipe_of(tmp_path / "run", log, *ALL, "train.max_epochs=2"), quiet=True)
    (tmp_path / "run" / "features.json").write_text("{}")
    with pytest.raises(LargeRecError, match=r"features\.json is damaged"):
        Bundle.open(tmp_path / "run").features()


def test_a_run_without_features_takes_no_context() -> None:
    engine = load(trained_run("tasks.buy.where=\"behavior = 'buy'\"", "batch.actions=summed"))
    with pytest.raises(LargeRecError, match="this run has no features"):
        engine.rank(engine.sequences.user_ids[0], [engine.tokenizer.vocabulary["item_id"][0]], context={"tab": 1})
