"""The Engine: what it recommends, in which ids, and that neither batches nor shared windows change a score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from logs import log_of, random_log
from runs import copy_of_run, tiny_recipe, trained_run
from safetensors.torch import load_file, save_file

from largerec import metrics
from largerec.engine import Engine, PopularityScorer, Queries, load, scoring
from largerec.engine.engine import build_scorer
from largerec.engine.scoring import query_blocks, ranks, top_k
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.progress import Progress
from largerec.sequences import SplitOptions, build_sequences
from largerec.tokenizers import AtomicTokenizer
from largerec.train import Trainer

START_MS = 1_600_000_000_000


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load(trained_run())


def engine_of(log: EventLog, *overrides: str, seed: int = 0) -> Engine:
    """A live engine with a model of random weights, its biases too: nothing about it is special."""
    sequences = build_sequences(log, SplitOptions())
    tokenizer = AtomicTokenizer.fit(sequences, log.items)
    torch.manual_seed(seed)
    scorer = build_scorer(tiny_recipe(Path("unused"), *overrides).resolved(), tokenizer, sequences)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return Engine(scorer.prepared(), tokenizer, sequences)


def popularity_engine(log: EventLog) -> Engine:
    sequences = build_sequences(log, SplitOptions())
    tokenizer = AtomicTokenizer.fit(sequences, log.items)
    return Engine(PopularityScorer(tokenizer.counts_V), tokenizer, sequences)


def history_of(engine: Engine, user: Any) -> list[Any]:
    return engine.history(user, last=1000)["item_id"].to_list()


# --- the frame ------------------------------------------------------------------------------------------------------------


def test_the_frame_of_a_run(engine: Engine) -> None:
    users = engine.sequences.user_ids.to_list()
    frame = engine.recommend(users, k=4)
    assert frame.schema == {"user_id": pl.String, "item_id": pl.String, "score": pl.Float32, "rank": pl.Int64, "title": pl.String}
    assert frame["user_id"].to_list() == [user for user in users for _ in range(4)]
    assert frame["rank"].to_list() == [1, 2, 3, 4] * len(users)
    titles = dict(zip(engine.tokenizer.vocabulary["item_id"], engine.tokenizer.vocabulary["title"], strict=True))
    assert frame["title"].to_list() == [titles[item] for item in frame["item_id"]]
    for (_,), of_user in frame.group_by("user_id", maintain_order=True):
        assert of_user["score"].to_list() == sorted(of_user["score"], reverse=True)
        assert of_user["item_id"].n_unique() == 4


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Int32, pl.String])
def test_ids_come_back_in_the_type_of_the_log(dtype: pl.DataType) -> None:
    events = random_log().events.with_columns(pl.col("user_id").cast(dtype), (pl.col("item_id") + 100).cast(dtype))
    engine = engine_of(EventLog(events, None, "timestamp", (), "test"))
    user = events["user_id"][0]
    for given_id in (user, str(user), int(user)):  # 7 and "7" name the same user
        frame = engine.recommend([given_id], k=3)
        assert frame.columns == ["user_id", "item_id", "score", "rank"]
        assert (frame.schema["user_id"], frame.schema["item_id"]) == (dtype, dtype)
        assert frame["user_id"].to_list() == [user] * 3
        assert set(frame["item_id"]) <= set(events["item_id"])


def test_users_may_repeat_and_come_in_any_order(engine: Engine) -> None:
    frame = engine.recommend(["u05", "u01", "u05"], k=2)
    assert frame["user_id"].to_list() == ["u05", "u05", "u01", "u01", "u05", "u05"]
    assert frame[:2].equals(frame[4:])


def test_users_may_be_a_polars_or_numpy_column(engine: Engine) -> None:
    expected = engine.recommend(["u05", "u01"])
    assert engine.recommend(pl.Series(["u05", "u01"])).equals(expected)  # type: ignore[arg-type]
    assert engine.recommend(np.array(["u05", "u01"])).equals(expected)  # type: ignore[arg-type]
    numbered = engine_of(random_log())
    assert numbered.recommend(np.array([3, 1])).equals(numbered.recommend([3, 1]))  # type: ignore[arg-type]


# --- seen items, long lists, ties -----------------------------------------------------------------------------------------


def test_nothing_seen_is_recommended_unless_asked_for(engine: Engine) -> None:
    users = engine.sequences.user_ids.to_list()
    seen_again = 0
    for masked in (True, False):
        frame = engine.recommend(users, k=10, mask=masked)
        for (user,), of_user in frame.group_by("user_id"):
            both = set(of_user["item_id"]) & set(history_of(engine, user))
            assert not (masked and both)
            seen_again += len(both)
    assert seen_again > 0


def test_the_whole_history_is_masked_not_only_the_window(engine: Engine) -> None:
    """Every item of the catalogue is either in the list or in the history, however long ago that was."""
    lengths = np.diff(engine.sequences.offsets_U1)
    longest = engine.sequences.user_ids[int(lengths.argmax())]
    history = history_of(engine, longest)
    assert len(history) > 10, "the window holds it all, so this would show nothing"
    listed = engine.recommend([longest], k=1000)["item_id"].to_list()
    assert sorted(listed + sorted(set(history))) == sorted(engine.tokenizer.vocabulary["item_id"])


def test_a_list_is_at_most_the_catalogue(engine: Engine) -> None:
    frame = engine.recommend(["u01"], k=10_000, mask=False)
    assert frame.height == engine.tokenizer.size
    assert sorted(frame["item_id"]) == sorted(engine.tokenizer.vocabulary["item_id"])
    assert frame["rank"].to_list() == list(range(1, engine.tokenizer.size + 1))


def test_a_user_who_saw_everything_gets_an_empty_list() -> None:
    log = log_of([("all", f"i{i}", START_MS + i) for i in range(6)] + [("few", f"i{i}", START_MS + i) for i in range(4)])
    engine = popularity_engine(log)
    frame = engine.recommend(["all", "few"])
    assert frame["user_id"].to_list() == ["few"] * frame.height
    assert engine.recommend(["all"]).height == 0


def test_equal_scores_stand_in_catalogue_order() -> None:
    rows = [(user, f"i{(user + step) % 30}", START_MS + 31 * user + step) for user in range(30) for step in range(5)]
    engine = popularity_engine(log_of(rows))
    assert len(set(engine.tokenizer.counts_V)) == 1
    catalogue = engine.tokenizer.vocabulary["item_id"].to_list()
    for k in (1, 3, 7, 30):
        assert engine.recommend(histories=[[]], k=k)["item_id"].to_list() == catalogue[:k]
        unseen = [item for item in catalogue if item not in history_of(engine, 4)]
        assert engine.recommend([4], k=k)["item_id"].to_list() == unseen[:k]


@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.sampled_from([0, 1, 2, -np.inf])),
    st.integers(1, 45),
)
@settings(max_examples=60)
def test_top_k_is_a_stable_sort(scores_QV: np.ndarray, k: int) -> None:
    value_QK, item_QK = top_k(torch.from_numpy(scores_QV), k)
    expected_QK = np.argsort(-scores_QV, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(value_QK, np.take_along_axis(scores_QV, expected_QK, axis=1))
    real_QK = value_QK.numpy() > -np.inf  # where there is nothing left to list, any masked item may stand
    np.testing.assert_array_equal(item_QK.numpy()[real_QK], expected_QK[real_QK])


@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 3, -np.inf])),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60)
def test_ranks_are_those_of_the_plain_definition(scores_QV: np.ndarray, random: Any) -> None:
    target_Q = np.array([random.randint(-1, scores_QV.shape[1] - 1) for _ in scores_QV])
    found = ranks(torch.from_numpy(scores_QV), torch.from_numpy(target_Q))
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found, metrics.average_rank(scores_QV, target_Q))


# --- who and what is asked ------------------------------------------------------------------------------------------------


def test_an_unknown_user_is_an_error_with_the_nearest(engine: Engine) -> None:
    with pytest.raises(LargeRecError, match=r"user 'u0l' is not in this run's log; did you mean 'u\d\d'\?.*80 users.*histories="):
        engine.recommend(["u01", "u0l"])
    for odd in ("--5", "²", "", "-", None, 5.5):
        with pytest.raises(LargeRecError, match="is not in this run's log"):
            engine.recommend([odd])


def test_negative_numbers_name_users_too() -> None:
    engine = popularity_engine(log_of([(user, step, START_MS + step) for user in (-5, 5) for step in range(user, user + 4)]))
    assert engine.recommend(["-5"], k=1)["user_id"].to_list() == [-5]


def test_histories_are_for_someone_new(engine: Engine) -> None:
    histories = [["i01", "i02", "i03"], ["i05"]]
    frame = engine.recommend(histories=histories, k=3)
    assert frame["user_id"].to_list() == [0, 0, 0, 1, 1, 1]
    assert frame["rank"].to_list() == [1, 2, 3, 1, 2, 3]
    assert not set(frame.filter(pl.col("user_id") == 0)["item_id"]) & set(histories[0])
    unmasked = engine.recommend(histories=histories, k=60, mask=False)
    assert set(histories[0]) <= set(unmasked.filter(pl.col("user_id") == 0)["item_id"])


def test_a_history_gives_what_its_user_gets() -> None:
    """Without a clock, a known user and the same items given by hand are the same question."""
    log = random_log()
    engine = engine_of(EventLog(log.events, None, "order", (), "test"))
    trained = set(engine.tokenizer.vocabulary["item_id"])
    for user in engine.sequences.user_ids:
        items = [item for item in history_of(engine, user) if item in trained]
        by_user, by_hand = engine.recommend([user]), engine.recommend(histories=[items])
        assert by_user.drop("user_id").equals(by_hand.drop("user_id"))


def test_item_ids_of_a_history_may_be_text() -> None:
    engine = engine_of(random_log())
    items = engine.tokenizer.vocabulary["item_id"].to_list()[:3]
    assert engine.recommend(histories=[[str(item) for item in items]]).equals(engine.recommend(histories=[items]))
    assert engine.item_id(str(items[0])) == items[0]
    with pytest.raises(LargeRecError, match=r"item 'x' is no Int64 like the log's items, for example \d+"):
        engine.item_id("x")


@pytest.mark.parametrize("odd", ["i99", None, 5])
def test_an_unknown_item_is_an_error(engine: Engine, odd: Any) -> None:
    with pytest.raises(LargeRecError, match=rf"item {odd!r} is not in the catalogue of 60 items; leave it out"):
        engine.recommend(histories=[["i01"], ["i02", odd, "i03"]])


def test_an_empty_history_gives_popularity(engine: Engine) -> None:
    counts = engine.tokenizer.vocabulary.with_row_index().sort("train_count", "index", descending=[True, False])
    for histories, at in (([[]], 0), ([["i01"], [], ["i02", "i03"]], 1)):
        frame = engine.recommend(histories=histories, k=5).filter(pl.col("user_id") == at)
        assert frame["item_id"].to_list() == counts["item_id"].to_list()[:5]
        assert frame["score"].to_list() == counts["train_count"].to_list()[:5]
    mixed = engine.recommend(histories=[["i01"], [], ["i02", "i03"]], k=5)
    alone = engine.recommend(histories=[["i01"], ["i02", "i03"]], k=5)
    assert mixed.filter(pl.col("user_id") != 1)["item_id"].to_list() == alone["item_id"].to_list()


def test_a_user_with_no_item_in_the_catalogue_gets_popularity() -> None:
    rows = [(user, f"i{step}", START_MS + step) for user in ("a", "b") for step in range(5)] + [("new", "other", START_MS + 9)]
    log = log_of(rows)
    sequences = build_sequences(log, SplitOptions(protocol="timeline", validation_from="70%", test_from="80%"))
    tokenizer = AtomicTokenizer.fit(sequences)
    scorer = build_scorer(tiny_recipe(Path("unused")).resolved(), tokenizer, sequences).prepared()
    found = Engine(scorer, tokenizer, sequences).recommend(["new"], k=3)
    assert found["score"].to_list() == sorted(tokenizer.counts_V, reverse=True)[:3]


def test_arguments_that_make_no_sense(engine: Engine) -> None:
    for arguments in ({}, {"users": ["u01"], "histories": [["i01"]]}):
        with pytest.raises(LargeRecError, match=r"give either users=\[\.\.\.\] or histories="):
            engine.recommend(**arguments)
    for empty in ({"users": []}, {"histories": []}):
        with pytest.raises(LargeRecError, match="is empty; name at least one"):
            engine.recommend(**empty)
    with pytest.raises(LargeRecError, match=r"k=0 is too small"):
        engine.recommend(["u01"], k=0)


def test_the_last_items_of_a_user(engine: Engine) -> None:
    row = engine.sequences.user_ids.to_list().index("u07")
    start, end = engine.sequences.offsets_U1[row : row + 2]
    items = engine.sequences.item_ids.gather(engine.sequences.item_N[start:end]).to_list()
    history = engine.history("u07", last=4)
    assert history.columns == ["item_id", "title"]
    assert history["item_id"].to_list() == items[-4:]
    assert history["title"].null_count() == 0
    assert history_of(engine, "u07") == items


# --- one number, however it is computed -----------------------------------------------------------------------------------


def test_a_loaded_bundle_is_the_live_model(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "train.max_epochs=2")
    with Progress(quiet=True) as progress:
        trainer = Trainer(recipe, progress)
        trainer.run()
        trainer.result()  # the best weights
        users = trainer.engine.sequences.user_ids.to_list()
        live, loaded = trainer.engine.recommend(users, k=60), load(tmp_path / "run").recommend(users, k=60)
    assert live.equals(loaded)


@pytest.mark.parametrize("family", ["hstu", "sasrec"])
def test_batches_do_not_change_results(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(random_log(users=25, events=400), f"model.name={family}")
    users = engine.sequences.user_ids.to_list()
    whole = engine.recommend(users, k=15)
    monkeypatch.setattr(scoring, "SCORE_BLOCK", 7 * engine.tokenizer.size)
    monkeypatch.setattr(scoring, "TOKEN_BLOCK", 13)
    assert_close(engine.recommend(users, k=15), whole)
    assert_close(pl.concat(engine.recommend([user], k=15) for user in users), whole)


def assert_close(frame: pl.DataFrame, other: pl.DataFrame) -> None:
    assert frame.drop("score").equals(other.drop("score"))
    np.testing.assert_allclose(frame["score"], other["score"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [("model.name=hstu",), ("model.name=sasrec",), ("model.name=hstu", "model.query_time=true"), ("model.time_bias=false",)],
)
@pytest.mark.parametrize("length", [1, 4, 50])
def test_shared_windows_give_what_each_query_gives_alone(overrides: tuple[str, ...], length: int) -> None:
    """Every row of the log asks; histories are up to 40 long, so windows of 4 slide and windows of 50 are all shared."""
    engine = engine_of(random_log(users=6), *overrides, f"batch.max_length={length}")
    queries = engine.queries_at(np.arange(len(engine.sequences.item_N)))
    assert (queries.end_Q - queries.first_Q).max() > 20
    together = engine.scorer.scores(queries)
    alone = torch.cat([engine.scorer.scores(queries.block(at, at + 1)) for at in range(len(queries))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert together.std() > 0.1, "all scores alike would show nothing"


def test_a_window_is_all_that_a_model_sees() -> None:
    """Events before the last L change nothing; the L-th from the end does."""
    engine = engine_of(random_log(), "batch.max_length=3")
    items = engine.tokenizer.vocabulary["item_id"].to_list()
    histories = [[items[0], *items[3:6]], [items[1], items[2], *items[3:6]], [items[0], items[2], *items[4:6]]]
    frame = engine.recommend(histories=histories, k=99, mask=False)
    lists = [frame.filter(pl.col("user_id") == at).drop("user_id") for at in range(3)]
    assert_close(lists[0], lists[1])
    assert np.abs(lists[0]["score"].to_numpy() - lists[2]["score"].to_numpy()).max() > 0.01


def test_only_a_model_with_query_time_sees_the_moment_of_asking() -> None:
    log = random_log()
    for asked, changes in (("model.query_time=true", True), ("model.query_time=false", False)):
        engine = engine_of(log, asked)
        queries = engine.queries_at(engine.sequences.targets("test"))
        later = Queries(queries.rows, queries.first_Q, queries.end_Q, queries.time_Q + 86_400_000_000)
        same = torch.equal(engine.scorer.scores(queries), engine.scorer.scores(later))
        assert same is not changes


def test_the_history_of_a_query_ends_before_its_row(engine: Engine) -> None:
    sequences = engine.sequences
    rows = sequences.targets("test")
    query, token = engine.queries_at(rows).seen()
    seen = [set(token[query == at].tolist()) for at in range(len(rows))]
    for at, row in enumerate(rows):
        start = sequences.offsets_U1[np.searchsorted(sequences.offsets_U1, row, side="right") - 1]
        assert seen[at] == set(engine.token_of_item[sequences.item_N[start:row]]) - {-1}


def test_blocks_cover_all_queries_in_order(engine: Engine) -> None:
    queries = engine.queries_at(engine.sequences.targets("test"))
    blocks = list(query_blocks(queries, 5_000_000))
    assert [start for start, _ in blocks] == list(range(0, len(queries), 3))
    np.testing.assert_array_equal(np.concatenate([block.end_Q for _, block in blocks]), queries.end_Q)
    assert all(len(block) == 1 for _, block in query_blocks(queries, 10**9)), "one query a block, however big the catalogue"


# --- what diverged --------------------------------------------------------------------------------------------------------


def test_weights_that_are_nan_are_not_served(tmp_path: Path) -> None:
    """One weight, so that only one item's score is NaN: it would stand first in every list."""
    run = copy_of_run(tmp_path / "run")
    tensors = load_file(run / "model.safetensors")
    table = next(tensor for tensor in tensors.values() if tensor.shape[:1] == (60,))
    table[17, 0] = float("nan")
    save_file(tensors, run / "model.safetensors")
    engine = load(run)
    without = next(
        user
        for user in engine.sequences.user_ids
        if not set(history_of(engine, user)) & {engine.tokenizer.vocabulary["item_id"][17]}
    )
    with pytest.raises(LargeRecError, match="the model's scores are NaN: its weights diverged"):
        engine.recommend([without])
