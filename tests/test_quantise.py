"""Quantised item tables: how far a number is off, and that a quantised run is kept, served and measured like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import copy_of_run, tiny_recipe, trained_run
from test_lists import listed_log
from test_ranking import overrides_of
from typer.testing import CliRunner

import largerec
from largerec.bundle import Bundle
from largerec.cli import app
from largerec.engine import ModelScorer, scoring
from largerec.ensemble import ensemble
from largerec.errors import LargeRecError
from largerec.evaluate import compare_runs, evaluate
from largerec.item_tables import ItemTable, SideOptions, TableOptions, build_table, quantise_tables, table_bytes
from largerec.models import SASRecOptions, build_model
from largerec.quantise import quantise
from largerec.quantised_rows import Bits, QuantisedRows
from largerec.train import train

both = pytest.mark.parametrize("bits", [8, 4])


@both
@pytest.mark.parametrize("width", [1, 7, 32, 50, 128])
def test_a_number_is_off_by_half_a_scale_at_most(bits: Bits, width: int) -> None:
    torch.manual_seed(width)
    weight_VD = torch.randn(300, width) * torch.logspace(-20, 6, 300)[:, None]
    weight_VD[0], weight_VD[1, 0], weight_VD[2] = 0, 1e9, 0.02
    table = QuantisedRows.of(weight_VD, bits)
    each_VD = table.scale_VG.float().repeat_interleave(table.group, dim=1)[:, :width]
    assert ((table.weight - weight_VD).abs() <= each_VD * 0.5001).all()
    largest_V = weight_VD.abs().amax(1)
    assert (table.scale_VG.float().amax(1) <= largest_V / (2 ** (bits - 1) - 1) * 1.008).all()
    assert (table.weight[0] == 0).all() and table.weight.shape == weight_VD.shape
    some = torch.tensor([5, 0, 299, 5])
    assert torch.equal(table(some), table.weight[some])


def test_whole_numbers_come_back_and_lie_in_bytes_as_described() -> None:
    eight = QuantisedRows.of(torch.arange(-127.0, 128)[None], 8)
    assert torch.equal((eight.weight / eight.scale_VG.float()).round()[0], torch.arange(-127.0, 128))
    four = QuantisedRows.of(torch.tensor([[-7.0, 7, 1, -1, 0, 3]]), 4)
    assert (four.weight[0] / four.scale_VG[0, 0].float()).round().tolist() == [-7, 7, 1, -1, 0, 3]
    assert four.code_VB.tolist() == [[0x79, 0xF1, 0x30]]  # two's complement, the second in the upper half


def test_sizes_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_VD = torch.randn(100, 128)
    sizes = {bits: sum(x.numel() * x.element_size() for x in QuantisedRows.of(weight_VD, bits).buffers()) for bits in (8, 4)}  # type: ignore[arg-type]
    assert sizes == {8: 100 * (128 + 2), 4: 100 * (64 + 4 * 2)}
    whole = QuantisedRows.of(weight_VD, 4)
    monkeypatch.setattr("largerec.quantised_rows.CHUNK_ROWS", 7)
    assert torch.equal(QuantisedRows.of(weight_VD, 4).weight, whole.weight)


def test_every_free_table_of_a_model_is_replaced_and_no_other() -> None:
    side = {"columns": ["title"], "width": 4}
    untied = build_model(SASRecOptions(width=16, tied=False, side=side), 30, 10)
    before = table_bytes(untied)
    hidden = untied.scored_table(torch.arange(3))
    quantise_tables(untied, 8)
    for table in (untied.input.item, untied.output_table):
        assert isinstance(table, ItemTable) and isinstance(table.row, QuantisedRows) and table.project is not None
    torch.testing.assert_close(untied.scored_table(torch.arange(3)), hidden, rtol=0, atol=4e-4)
    assert before - table_bytes(untied) == 2 * 30 * (16 * 4 - 16 - 2)
    small = build_model(SASRecOptions(width=16, table={"kind": "low-rank"}), 30, 10)
    quantise_tables(small, 8)
    assert not any(isinstance(part, QuantisedRows) for part in small.modules())
    assert isinstance(build_table(TableOptions(), SideOptions(), 3, 4), torch.nn.Embedding)


HEADS = {
    "dot": (),
    "cosine": ("head.similarity=cosine", "head.temperature=0.1"),
    "mol": ("head.similarity=mol", "head.temperature=0.1", "head.mol.width=4"),
}


@both
@pytest.mark.parametrize("similarity", HEADS)
def test_a_quantised_run_is_used_like_a_run(bits: Bits, similarity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = trained_run(*HEADS[similarity])
    made = quantise(source, tmp_path / "small", bits)
    kept = json.loads((source / "result.json").read_text())
    assert made["n_test_evaluations"] == 0 and "test" not in made and made["params"] == kept["params"]
    assert made["validation"]["ndcg@10"] == pytest.approx(kept["validation"]["ndcg@10"], abs=0.02 if bits == 8 else 0.1)
    assert made["item_table"]["bytes"] < made["item_table"]["bytes_full"] * {8: 0.3, 4: 0.2}[bits]
    assert quantise(source, tmp_path / "small", bits) == made
    small, full = largerec.load(tmp_path / "small"), largerec.load(source)
    assert isinstance(small.scorer, ModelScorer) and isinstance(full.scorer, ModelScorer)
    with torch.no_grad():  # the same model with the rows that the small one stands for
        full.scorer.model.input.item.weight.copy_(small.scorer.model.item_table_VD)  # type: ignore[union-attr, operator]
    full.scorer.prepared()
    queries = small.queries_at(small.sequences.targets("test"))
    score_QV = small.scorer.scores(queries)
    torch.testing.assert_close(score_QV, full.scorer.scores(queries), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(scoring, "KEY_BLOCK", 7)
    torch.testing.assert_close(small.scorer.scores(queries), score_QV, rtol=1e-5, atol=1e-5)
    assert evaluate(tmp_path / "small")["n_test_evaluations"] == 1
    assert abs(compare_runs(tmp_path / "small", source)["ndcg@10"]["difference"]) < 0.1
    assert len(small.recommend(small.sequences.user_ids.head(2).to_list(), 3)) == 6


def test_the_command_an_ensemble_and_what_is_refused(tmp_path: Path) -> None:
    source, small = copy_of_run(tmp_path / "run"), tmp_path / "small"
    told = CliRunner().invoke(app, ["quantise", str(source), f"run.dir={small}", "--bits", "4", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["item_table"]["bits"] == 4 and Bundle.open(small).table_bits() == 4
    assert json.loads((small / "lineage.json").read_text())["parent"] == "../run"
    assert ensemble([source, small], tmp_path / "both")["members"] == ["../run", "../small"]
    for arguments, said in (
        (["quantise", str(source), f"run.dir={small}", "--bits", "5"], "8 or 4 bits"),
        (["quantise", str(source)], "say once where it goes"),
    ):
        refused = CliRunner().invoke(app, arguments)
        assert isinstance(refused.exception, LargeRecError) and said in str(refused.exception)
    for path, to, said in (
        (source, small, "not this run with 8 bits"),
        (small, tmp_path / "x", "quantised already"),
        (tmp_path / "both", tmp_path / "x", "is an ensemble"),
        (trained_run("model.table.kind=hashed"), tmp_path / "x", "has a hashed table"),
    ):
        with pytest.raises(LargeRecError, match=said):
            quantise(path, to)
    assert not (tmp_path / "x").exists()
    document = json.loads((small / "recipe.json").read_text())
    (small / "recipe.json").write_text(json.dumps(document | {"table_bits": 3}))
    with pytest.raises(LargeRecError, match="table_bits=3"):
        largerec.load(small)


def test_a_choice_model_and_tasks_come_along(tmp_path: Path) -> None:
    listed_log(users=60).events.write_parquet(tmp_path / "log.parquet")
    split = ["split.protocol=timeline", "split.validation_from=50%", "split.test_from=75%", "lists.items=shown_items"]
    rest = [f"data.path={tmp_path / 'log.parquet'}", "lists.prices=cost", "lists.choice=true", "train.max_epochs=1"]
    train(tiny_recipe(tmp_path / "run", *split, *rest), quiet=True)
    quantise(tmp_path / "run", tmp_path / "small")
    shown = {"history": [1, 2], "shown": [3, 4], "prices": [1.0, 2.0]}
    assert largerec.load(tmp_path / "small").choose(**shown).height == 2
    source = trained_run(*overrides_of("summed"))
    made, kept = quantise(source, tmp_path / "tasks"), json.loads((source / "result.json").read_text())
    assert made["validation_tasks"]["buy"]["auc"] == pytest.approx(kept["validation_tasks"]["buy"]["auc"], abs=0.05)


@pytest.mark.parametrize("hidden", ["[16]", "[32, 24]"])
def test_a_run_that_only_ranks_has_no_retrieval_to_measure(hidden: str, tmp_path: Path) -> None:
    tasks = [*overrides_of("interleaved"), "ranking.retrieval=0", "objective={name='softmax'}", "train.metric=buy.auc"]
    train(tiny_recipe(tmp_path / "run", *tasks, f"model={{name='dlrm', hidden={hidden}}}", "train.max_epochs=1"), quiet=True)
    made = quantise(tmp_path / "run", tmp_path / "small")
    assert made["validation"] == {} == made["validation_unmasked"] and 0 <= made["validation_tasks"]["buy"]["auc"] <= 1
    assert "buy" in evaluate(tmp_path / "small")["tasks"]
