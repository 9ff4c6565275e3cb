"""A log of what was shown at random: read, kept apart from training and histories, asked about at its own moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from logs import put
from runs import tiny_recipe
from test_datasets import SIGNALS

from largerec import task_metrics
from largerec.datasets import DataOptions, load_log, load_random
from largerec.engine import load
from largerec.engine.scoring import mask_seen, ranks
from largerec.errors import LargeRecError
from largerec.evaluate import evaluate
from largerec.evaluate_random import evaluate_random, queries_of, users_of, with_item
from largerec.events import EventLog
from largerec.metrics import EvaluateOptions
from largerec.random_log import random_table
from largerec.recipe import Recipe
from largerec.report import report
from largerec.sequences import SplitOptions, build_sequences
from largerec.simulate import SimulateOptions, simulate
from largerec.tasks import TaskOptions
from largerec.train import train

SPLIT = SplitOptions(protocol="timeline", validation_from="60%", test_from="75%", positives="value >= 3")
TASKS = {"good": TaskOptions(where="value >= 4"), "level": TaskOptions(quantiles_of="value", classes=3)}
WORLD = SimulateOptions(users=130, items=60, events=1600, categories=3)


def write_logs(folder: Path) -> tuple[Path, Path]:
    """A generated log with ratings, and a random one over the same weeks, with an unknown user, an unknown item and a null."""
    rng = np.random.default_rng(0)
    log = simulate(WORLD).events
    values, tabs = pl.Series(rng.integers(1, 6, len(log)).astype(float)), pl.Series(np.arange(len(log)) % 4)
    log.with_columns(value=values, tab=tabs).write_parquet(folder / "log.parquet")
    users = ["nobody", *rng.choice(log["user_id"].unique().sort(), 299)]
    items = [*rng.choice(log["item_id"].unique().sort(), 299), "new"]
    times = rng.integers(int(log["timestamp"].min()), int(log["timestamp"].max()), 300)  # type: ignore[arg-type]
    times[[0, -1]] = int(log["timestamp"].quantile(0.9))  # type: ignore[arg-type]
    values = pl.Series([None, *rng.integers(1, 6, 299).astype(float)], dtype=pl.Float64)
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times, "value": values})
    frame.write_parquet(folder / "chance.parquet")
    return folder / "log.parquet", folder / "chance.parquet"


def recipe_of(folder: Path, mode: str, *more: str) -> Recipe:
    split = [f"split.{name}={value}" for name, value in SPLIT.model_dump(exclude_defaults=True).items()]
    tasks = ["tasks.good.where=value >= 4", "tasks.level.quantiles_of=value", "tasks.level.classes=3"]
    rest = [f"data.path={folder / 'log.parquet'}", f"batch.actions={mode}", "train.max_epochs=1"]
    rest += ["features.context=['hour', 'tab']", "features.user=['user_id']"]
    return tiny_recipe(folder / f"run-{mode}{len(more)}", *split, *tasks, *rest, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    write_logs(folder)
    for mode in ("interleaved", "summed"):
        train(recipe_of(folder, mode, "data.random=chance.parquet"), quiet=True)
    return folder


KUAIRAND = f"""user_id,video_id,time_ms,{SIGNALS}
1,10,1650812741436,1,0,0,0,0,0,1
1,11,1650812741500,0,0,0,0,0,0,0
"""
CHANCE = f"""user_id,video_id,time_ms,{SIGNALS}
1,12,1650812741450,0,1,0,0,0,0,0
1,12,1650812741450,0,1,0,0,0,0,0
2,10,1650812741460,0,0,0,0,0,0,0
"""


def test_kuairand_s_random_log_is_read_where_it_is_named_and_nowhere_else(tmp_path: Path) -> None:
    name = "log_random_4_22_to_5_08_pure.csv"
    put(tmp_path, log_standard_4_08_to_4_21_pure__csv=KUAIRAND.encode(), log_random_4_22_to_5_08_pure__csv=CHANCE.encode())
    plain, both = DataOptions(path=str(tmp_path)), DataOptions(path=str(tmp_path), random=name)
    assert load_log(plain).events.equals(load_log(both).events) and load_log(both).events.height == 2
    assert load_random(plain) is None
    found = load_random(both)
    assert found is not None
    rows = found.events.select("user_id", "item_id", "timestamp", "behavior").rows()
    assert rows == [(1, 12, 1650812741450, "like"), (2, 10, 1650812741460, "view")], "repeats leave, as of the standard log"
    assert load_random(DataOptions(random=str(tmp_path / name))) is not None
    with pytest.raises(LargeRecError, match=r"data\.random=log_randm"):
        load_random(DataOptions(path=str(tmp_path), random="log_randm.csv"))


def test_the_rows_of_the_period_are_kept_with_labels_cut_as_in_training(folder: Path) -> None:
    data = DataOptions(path=str(folder / "log.parquet"), random="chance.parquet")
    sequences, chance = build_sequences(load_log(data), SPLIT, TASKS), load_random(data)
    assert chance is not None
    table = random_table(chance, SPLIT, TASKS, sequences)
    tested = sequences.time_N[sequences.stage_N == 2]
    kept = chance.events.filter(pl.col("timestamp").is_between(tested.min(), tested.max())).sort("timestamp", maintain_order=True)
    assert 20 < len(kept) < 150 and table["item_id"].equals(kept["item_id"])
    edges = sequences.edges["level"]
    for row, value in zip(table.iter_rows(named=True), kept["value"].to_list(), strict=True):
        assert row["task.good"] == (-1 if value is None else int(value >= 4))
        assert row["task.level"] == (-1 if value is None else sum(value >= edge for edge in edges))
        assert row["positive"] == (value is not None and value >= 3)
    early = load_random(data.model_copy(update={"where": f"timestamp < {int(tested.min()) - 1}"}))
    assert early is not None
    with pytest.raises(LargeRecError, match=r"none of the .* rows of data\.random is in the period"):
        random_table(early, SPLIT, TASKS, sequences)
    with pytest.raises(LargeRecError, match=r"needs split\.protocol=timeline"):
        random_table(chance, SplitOptions(), TASKS, sequences)


@pytest.mark.parametrize("mode", ["interleaved", "summed"])
def test_rows_are_asked_at_their_moment_as_rank_would_serve_them(folder: Path, mode: str) -> None:
    run = recipe_of(folder, mode, "data.random=chance.parquet").run.dir
    engine = load(run)
    table = pl.read_parquet(Path(run) / "random.parquet")
    queries, token_R = queries_of(engine, table), engine.tokenizer.encode(table["item_id"])
    found = engine.ranker.of_events(with_item(queries, token_R, 10, users_of(engine.sequences, table)), token_R)
    sequences, user_ids = engine.sequences, engine.sequences.user_ids.to_list()
    for at, row in enumerate(table.iter_rows(named=True)):
        start = end = 0
        if row["user_id"] in user_ids:
            start, last = sequences.offsets_U1[user_ids.index(row["user_id"]) :][:2]
            end = start + (sequences.time_N[start:last] < row["timestamp"]).sum()
        assert (engine.rows.kept_N1[start], engine.rows.kept_N1[end]) == (queries.first_Q[at], queries.end_Q[at])
        if token_R[at] >= 0:
            user = user_ids.index(row["user_id"]) if row["user_id"] in user_ids else -1
            slow = engine._probabilities(queries.block(at, at + 1), user, token_R[at : at + 1])
            for fast_NL, one_CL in zip(found, slow, strict=True):
                np.testing.assert_allclose(fast_NL[at], one_CL[0], atol=1e-5)


def test_a_run_reports_what_was_shown_at_random_and_learns_nothing_from_it(folder: Path) -> None:
    train(recipe_of(folder, "summed"), quiet=True)
    with_it, without = folder / "run-summed1", folder / "run-summed0"
    for name in ("model.safetensors", "histories.parquet", "vocabulary.parquet"):
        assert (with_it / name).read_bytes() == (without / name).read_bytes()
    result, options = evaluate(with_it), EvaluateOptions(k=(10,), bootstrap_samples=20)
    found, engine, table = result["random"], load(with_it), pl.read_parquet(with_it / "random.parquet")
    assert "random" not in evaluate(without) and found["rows"] == found["n"] == len(table)
    assert found["outside_catalogue"] >= 1 and found["without_history"] >= 1
    queries, token_R = queries_of(engine, table), engine.tokenizer.encode(table["item_id"])
    scores = engine.scorer.scores(queries)
    mask_seen(scores, queries)
    asked = table["positive"].to_numpy() & (queries.end_Q > queries.first_Q)
    rank_R = ranks(scores, torch.tensor(token_R)).numpy()[asked]
    assert found["retrieval"]["n"] == asked.sum()
    assert found["retrieval"]["recall@10"] == pytest.approx((rank_R <= 10).mean())
    good = table["task.good"].to_numpy()
    said = engine.ranker.of_events(with_item(queries, token_R, 10, users_of(engine.sequences, table)), token_R)[0][:, 1].numpy()[
        good >= 0
    ]
    assert found["tasks"]["good"]["auc"] == pytest.approx(task_metrics.auc(said, good[good >= 0]))
    assert found["tasks"]["level"]["n"] == (table["task.level"] >= 0).sum()
    again = evaluate_random(engine, table, options, 0)
    assert again["retrieval"]["recall@10"] == found["retrieval"]["recall@10"]
    page = Path(report([with_it])["report"]).read_text()
    assert "Shown at random" in page and "by chance" in page


@pytest.mark.parametrize("numbers_in", ["log", "random log"])
def test_users_whose_ids_are_digits_in_one_of_the_logs_are_known(numbers_in: str) -> None:
    log = simulate(WORLD).events.with_columns(user_id=pl.int_range(pl.len()) % 9)
    given = pl.DataFrame({"user_id": ["7", "guest", "3"]})
    if numbers_in == "random log":
        log, given = log.with_columns(pl.col("user_id").cast(pl.String)), pl.DataFrame({"user_id": [7, 99, 3]})
    sequences = build_sequences(EventLog(log, None, "timestamp", (), "a test's log"), SplitOptions())
    found = users_of(sequences, given)
    assert [None if row < 0 else str(sequences.user_ids[int(row)]) for row in found] == ["7", None, "3"]
