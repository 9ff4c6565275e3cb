"""Item tables of every kind: rows by formula, sizes, that every family trains and serves with them, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from runs import tiny_recipe

from largerec.batches import Batch
from largerec.bundle import Bundle
from largerec.engine import ModelScorer, load
from largerec.errors import LargeRecError
from largerec.evaluate import measure
from largerec.item_tables import HashedRows, ItemTable, LowRankRows, SideOptions, TableOptions, hashed
from largerec.item_vectors import item_vectors, words_hash
from largerec.layers import INITIAL_STD
from largerec.metrics import summarise
from largerec.models import RETRIEVING as FAMILIES
from largerec.models import build_model, non_embedding_parameters
from largerec.objectives import Objective, SoftmaxOptions
from largerec.recipe import recipe_from
from largerec.train import train

N_ITEMS, WIDTH = 40, 16
KINDS: dict[str, dict[str, Any]] = {
    "untied": {"tied": False},
    "hashed": {"table": {"kind": "hashed", "share": 0.5}},
    "low-rank": {"table": {"kind": "low-rank", "share": 0.3}},
    "side": {"side": {"columns": ["title"], "width": 6}},
    "all": {"tied": False, "table": {"kind": "hashed"}, "side": {"columns": ["title"], "width": 6}},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def options_of(family: str, **given: Any) -> Any:
    return FAMILIES[family][0].model_validate({"depth": 1, "width": WIDTH, "dropout": 0.0, **given})


def batch_of(items: list[int]) -> Batch:
    return Batch(
        item_T=torch.tensor(items),
        time_T=torch.arange(len(items)) * 1000,
        offsets_B1=torch.tensor([0, len(items)]),
        query_time_T=torch.arange(len(items)) * 1000 + 1000,
        target_T=torch.tensor([*items[1:], 0]),
    )


# --- rows


def test_a_hashed_row_is_the_sum_of_two_shared_ones() -> None:
    table = HashedRows(1000, 4, 0.1)
    assert table.row_2RD.shape == (2, 50, 4)
    for item in (0, 7, 999):
        first, second = (int(hashed(np.array([item]), salt)[0] % np.uint64(50)) for salt in (1, 2))
        torch.testing.assert_close(table(torch.tensor([item]))[0], table.row_2RD[0, first] + table.row_2RD[1, second])
    for buckets_V in table.bucket_2V:
        counts = torch.bincount(buckets_V, minlength=50)  # 20 each
        assert counts.min() >= 5 and counts.max() <= 40
    pairs = {tuple(pair) for pair in table.bucket_2V.T.tolist()}
    assert len(pairs) > 780, "1000 of 2500 pairs, drawn alike, are some 824 different ones"


def test_hashes_are_the_same_in_another_process() -> None:
    code = "import numpy as np; from largerec.item_tables import hashed; print(hashed(np.arange(5), 2).tolist())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(hashed(np.arange(5), 2).tolist())


def test_the_hash_is_splitmix64() -> None:
    """Seeded with 0 it gives these numbers first, by its authors' program."""
    found = [int(hashed(np.array([0]), salt)[0]) for salt in (1, 2, 3)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_a_low_rank_row_is_a_product() -> None:
    table = LowRankRows(500, 20, 0.25)
    item_T = torch.tensor([3, 499, 3])
    torch.testing.assert_close(table(item_T), table.own.weight[item_T] @ table.shared_KD)
    assert torch.linalg.matrix_rank(table(torch.arange(500))) == len(table.shared_KD) == 5


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
@pytest.mark.parametrize("kind", ["hashed", "low-rank"])
def test_a_smaller_table_has_its_share_of_numbers_and_rows_of_the_usual_size(kind: str, share: float) -> None:
    torch.manual_seed(0)
    table = ItemTable(TableOptions.model_validate({"kind": kind, "share": share}), SideOptions(), 3000, 64)
    assert sum(p.numel() for p in table.parameters()) == pytest.approx(share * 3000 * 64, rel=0.1)
    assert float(table.weight.detach().std()) == pytest.approx(INITIAL_STD, rel=0.5)


def test_side_vectors_add_their_projection() -> None:
    table = ItemTable(TableOptions(), SideOptions(columns=("title",), width=6), N_ITEMS, WIDTH)
    before = table.weight.detach().clone()
    table.side_VF.copy_(torch.randn(N_ITEMS, 6))
    assert table.project is not None
    wanted = before + table.side_VF @ table.project.weight.T
    torch.testing.assert_close(table.weight, wanted)
    torch.testing.assert_close(table(torch.tensor([5, 2])), wanted[[5, 2]])


# --- families


@each_kind
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_with_it(family: str, kind: str) -> None:
    torch.manual_seed(0)
    model = build_model(options_of(family, **KINDS[kind]), N_ITEMS, 16).train()
    if "side" in KINDS[kind]:
        model.set_side(torch.nn.functional.normalize(torch.randn(N_ITEMS, 6), dim=1))
    batch, objective = batch_of(list(range(12))), Objective(SoftmaxOptions(), torch.ones(N_ITEMS))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(60):
        assert model.item_table_VD.shape == (N_ITEMS, WIDTH) and batch.target_T is not None
        loss = objective(model(batch), model.item_table_VD, batch.target_T)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters()) or losses
        optimizer.step()
        losses.append(float(loss.detach()))
        if losses[-1] < 0.3:
            break
    assert losses[-1] < 0.3 < 3 < losses[0]
    plain = build_model(options_of(family), N_ITEMS, 16)
    assert non_embedding_parameters(model) == non_embedding_parameters(plain)


def test_untied_tables_are_apart() -> None:
    model = build_model(options_of("sasrec", tied=False), N_ITEMS, 16)
    model(batch_of([1, 2, 3])).sum().backward()
    grown = {name for name, p in model.named_parameters() if p.grad is not None}
    assert "input.item.weight" in grown and "output_table.weight" not in grown
    assert not torch.equal(model.item_table_VD, model.get_parameter("input.item.weight"))


# --- runs


@each_kind
def test_a_run_is_loaded_with_what_was_trained(kind: str, tmp_path: Path) -> None:
    plain = tiny_recipe(tmp_path / "run", "train.accumulate=2", "train.max_epochs=2")
    model = {"name": "hstu", "depth": 1, "width": WIDTH, "heads": 2, **KINDS[kind]}
    result = train(recipe_from(plain.to_json() | {"model": model}), quiet=True)
    engine = load(tmp_path / "run")
    rank_N = measure(engine, engine.sequences.targets("validation")).rank_N
    assert summarise(rank_N, (10,))["ndcg@10"] == result["validation"]["ndcg@10"]
    assert ("words_hash" in Bundle(tmp_path / "run").read_json("lineage.json")) == ("side" in KINDS[kind])
    if "side" in KINDS[kind]:
        titles = engine.tokenizer.vocabulary.select("item_id", "title")
        side_VF = item_vectors(titles, titles["item_id"], SideOptions(columns=("title",), width=6))
        scorer = engine.scorer
        assert isinstance(scorer, ModelScorer)
        kept = [value for name, value in scorer.model.state_dict().items() if name.endswith("side_VF")]
        assert kept and all(torch.equal(value, torch.from_numpy(side_VF)) for value in kept)


# --- what items are

ITEMS = pl.DataFrame(
    {
        "item_id": list("abcdefgh"),
        "title": ["red nail lacquer", "Red nail polish", "blue nail", "hair oil", "pure hair oil", "oil, pure", None, "unique"],
        "tag": ["1 2", "1 2", "2 3", "9", "9", "9", "9", None],
    }
)


def vectors(ids: str = "abcdefgh", **given: Any) -> np.ndarray:
    return item_vectors(ITEMS, pl.Series(list(ids)), SideOptions.model_validate({"columns": ["title"], "width": 3, **given}))


def test_like_items_have_like_vectors() -> None:
    found = vectors()
    alike = found @ found.T
    assert alike[0, 1] > 0.9 and alike[3, 4] > 0.7 and abs(alike[0, 3]) < 0.1
    np.testing.assert_allclose(np.linalg.norm(found[:6], axis=1), 1, rtol=1e-5)
    assert not found[6:].any(), "nothing is known of the last two, whose words no other item has"
    assert vectors(columns=["title", "tag"])[6].any()


def test_vectors_are_the_singular_value_decomposition() -> None:
    words = ["red", "nail", "hair", "oil", "pure"]
    having = {"red": 2, "nail": 3, "hair": 2, "oil": 3, "pure": 2}
    texts = [(title or "").lower().replace(",", "").split() for title in ITEMS["title"]]
    matrix = np.array([[np.log(8 / having[word]) * (word in text) for word in words] for text in texts])
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    left, size, _ = np.linalg.svd(matrix)
    wanted = left[:, :3] * size[:3]
    wanted /= np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-9) + 1e-12
    known = slice(0, 6)
    np.testing.assert_allclose((vectors() @ vectors().T)[known, known], (wanted @ wanted.T)[known, known], atol=1e-5)


def test_vectors_follow_the_catalogue_and_not_the_table() -> None:
    assert np.array_equal(vectors(), vectors())
    turned = vectors("hgfedcba")[::-1]
    np.testing.assert_allclose(turned @ turned.T, vectors() @ vectors().T, atol=1e-5)
    assert vectors("abcdez").shape == (6, 3) and not vectors("abcdez")[5].any()


def test_a_list_is_read_as_the_text_of_its_parts() -> None:
    lists = ITEMS.with_columns(pl.col("title").str.split(" "))
    options = SideOptions(columns=("title",), width=3)
    assert np.array_equal(item_vectors(lists, ITEMS["item_id"], options), vectors())


def test_the_hash_of_words_knows_what_is_read_of_the_catalogue() -> None:
    ids = ITEMS["item_id"]
    own = words_hash(ITEMS, ids, ("title",))
    assert own == words_hash(ITEMS.reverse().with_columns(tag=pl.lit("x")), ids, ("title",)), "neither order nor other columns"
    assert own == words_hash(pl.concat([ITEMS, ITEMS.with_columns(item_id=pl.lit("z"))]), ids, ("title",)), "nor other items"
    titles = pl.Series("title", ["green nail lacquer", *ITEMS["title"][1:]])
    others = [words_hash(ITEMS.with_columns(titles), ids, ("title",)), words_hash(ITEMS, ids, ("tag",)), own]
    assert len(set(others)) == 3 and words_hash(ITEMS, ids, ()) is None


@pytest.mark.parametrize(
    ("items", "given", "message"),
    [
        (None, {}, r"needs a table of items, and the log has none.*data\.items"),
        (ITEMS, {"columns": ["brand"]}, r"names 'brand', which the log's items do not have\. They have: title, tag\."),
        (ITEMS.select("item_id", title=pl.struct("tag")), {}, r"names 'title', whose values are Struct.*Make a column of text"),
        (ITEMS, {"width": 6}, r"model\.side\.width=6 is too much for 8 items with 5 words"),
    ],
)
def test_what_cannot_be_made_is_said(items: pl.DataFrame | None, given: dict[str, Any], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        item_vectors(items, ITEMS["item_id"], SideOptions.model_validate({"columns": ["title"], "width": 3, **given}))


# --- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.table.share=0.5"], r"model\.table\.share=0\.5.*model\.table\.kind is 'full'"),
        (["model.side.width=8"], r"model\.side\.width=8.*names no columns"),
        (["optim.table=lazy-adam", "model.tied=false"], r"optim\.table='lazy-adam'.*model\.tied, model\.table or model\.side"),
        (["optim.table=lazy-adam", "model.table.kind=hashed"], r"optim\.table='lazy-adam'"),
        (["optim.table=lazy-adam", "model.side.columns=['title']"], r"optim\.table='lazy-adam'"),
    ],
)
def test_combinations_without_meaning_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        tiny_recipe(tmp_path, *overrides)
