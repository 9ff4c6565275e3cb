"""Several runs as one: the mixture by its definition, and a folder that loads, recommends and is evaluated like a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import trained_run
from typer.testing import CliRunner

import largerec
from largerec.cli import app
from largerec.engine import EnsembleScorer, PopularityScorer
from largerec.engine.scoring import query_blocks
from largerec.ensemble import ensemble
from largerec.errors import LargeRecError
from largerec.evaluate import compare_runs, evaluate
from largerec.report import report

OTHER = ("seed=1",)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    for name, overrides in (("one", ()), ("two", OTHER)):
        shutil.copytree(trained_run(*overrides), folder / name)
    ensemble([folder / "one", folder / "two"], folder / "both")
    evaluate(folder / "both")
    return folder / "both"


def test_scores_are_the_log_of_the_mean_probability(both: Path) -> None:
    engine = largerec.load(both)
    members = [largerec.load(both.parent / name) for name in ("one", "two")]
    queries = engine.queries_at(engine.sequences.targets("test"))
    ((_, block),) = query_blocks(queries, engine.scorer.size)
    scores_QV = engine.scorer.scores(block)
    own = [torch.softmax(member.scorer.scores(block).double(), 1) for member in members]
    torch.testing.assert_close(scores_QV.double(), ((own[0] + own[1]) / 2).log(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.logsumexp(scores_QV, 1), torch.zeros(len(block)), rtol=0, atol=1e-5)
    assert not torch.equal(own[0], own[1])


def test_three_members_weigh_alike_and_a_member_s_own_scores_stay() -> None:
    from numpy import array

    members = [PopularityScorer(array(counts)) for counts in ([1, 2, 3], [3, 1, 2], [0, 0, 5])]
    queries = [0, 0]  # popularity only asks how many
    found = EnsembleScorer(members).scores(queries)  # type: ignore[arg-type]
    expected = torch.stack([torch.softmax(member.counts_V, 0) for member in members]).mean(0).log()
    torch.testing.assert_close(found, expected.repeat(2, 1))
    assert members[0].counts_V.tolist() == [1, 2, 3]


def test_the_folder_is_used_like_a_run(both: Path, tmp_path: Path) -> None:
    result = json.loads((both / "result.json").read_text())
    members = [json.loads((both.parent / name / "result.json").read_text()) for name in ("one", "two")]
    assert result["threads"] == max(member["threads"] for member in members)
    for key in ("params", "params_non_embedding", "train_flops", "train_tokens"):
        assert result[key] == sum(member[key] for member in members)
    assert result["n_test_evaluations"] == 1 and result["data"] == members[0]["data"] and result["seeds"] == [0, 1]
    assert compare_runs(both, both.parent / "one")["ndcg@10"]["p_value"] <= 1
    moved = Path(shutil.copytree(both.parent, tmp_path / "moved"))
    users = largerec.load(both).sequences.user_ids.head(3).to_list()
    assert largerec.load(moved / "both").recommend(users, 4).equals(largerec.load(both).recommend(users, 4))
    for paths in ([moved / "both", moved / "one"], [moved / "both"]):
        page = Path(report(paths)["report"]).read_text()
        assert f"{result['test']['ndcg@10']:.4f}".removeprefix("0") in page


def test_the_command_makes_one_and_finds_it_again(both: Path) -> None:
    runs, left = [str(both.parent / name) for name in ("one", "two")], both.parent / "new" / ".recipe.json.12.partial"
    left.parent.mkdir()
    left.touch()  # as a kill at the very beginning leaves it
    told = CliRunner().invoke(app, ["ensemble", *runs, f"run.dir={both.parent / 'new'}", "--json"])
    assert told.exit_code == 0, told.output
    made = json.loads(told.stdout)
    assert made["validation"] == json.loads((both / "result.json").read_text())["validation"]
    assert ensemble(runs, both.parent / "new") == made and not left.exists()
    refused = CliRunner().invoke(app, ["ensemble", *runs])
    assert isinstance(refused.exception, LargeRecError) and "say once where it goes" in str(refused.exception)


def test_members_that_were_trained_again_are_noticed(both: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both.parent, tmp_path / "copy"))
    members = [folder / "one", folder / "two"]
    assert ensemble(members, folder / "both")["n_test_evaluations"] == 1
    shutil.copy(folder / "one" / "model.safetensors", folder / "two" / "model.safetensors")
    measured = (folder / "both" / "result.json").read_text()
    for use in (
        lambda: ensemble(members, folder / "both"),
        lambda: evaluate(folder / "both"),
        lambda: largerec.load(folder / "both"),
    ):
        with pytest.raises(LargeRecError, match=r"trained again\. Remove .*both"):
            use()
    assert (folder / "both" / "result.json").read_text() == measured
    (folder / "two" / "model.safetensors").unlink()
    with pytest.raises(LargeRecError, match="needs its members' weights"):
        ensemble(members, folder / "both")


def test_what_is_no_ensemble_is_refused(both: Path, tmp_path: Path) -> None:
    one, two = (both.parent / name for name in ("one", "two"))
    with pytest.raises(LargeRecError, match="named twice"):
        ensemble([one, one], tmp_path / "x")
    with pytest.raises(LargeRecError, match="two members or more"):
        ensemble([one], tmp_path / "x")
    with pytest.raises(LargeRecError, match="is an ensemble itself"):
        ensemble([one, both], tmp_path / "x")
    with pytest.raises(LargeRecError, match="another log or split"):
        ensemble([one, trained_run("data.simulate.seed=1")], tmp_path / "x")
    with pytest.raises(LargeRecError, match="another setting of query time"):
        ensemble([one, trained_run("model.query_time=true")], tmp_path / "x")
    with pytest.raises(LargeRecError, match="not this ensemble"):
        ensemble([two, one], both)
    with pytest.raises(LargeRecError, match="not this ensemble"):
        ensemble([one, two], one)
    assert not (tmp_path / "x").exists()
