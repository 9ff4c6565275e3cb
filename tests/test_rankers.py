"""Rankers: fields and histories packed like everything else, against slow truths; they learn, rank, resume and refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logs import START_MS
from runs import assert_same_training
from test_features import ALL, killed_at, recipe_of, write_log
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from largerec.accounting import serving_flops, training_flops_per_token
from largerec.batches import Batch
from largerec.cli import app
from largerec.engine import load
from largerec.errors import LargeRecError
from largerec.estimate import estimate
from largerec.evaluate import evaluate
from largerec.evaluate_tasks import predict_tasks
from largerec.features import FieldLayout
from largerec.models import FAMILIES, build_model
from largerec.models.ranker import Ranker, pairs_of
from largerec.ranking import RankingOptions, TaskHeads, add_tasks
from largerec.recipe import recipe_from
from largerec.sequences import TEST
from largerec.tasks import TaskOptions
from largerec.train import train

RANKERS = [name for name, (options, _) in FAMILIES.items() if options.ranks_only]
each_ranker = pytest.mark.parametrize("family", RANKERS)
TASKS = {"yes": TaskOptions(where="a = 1"), "much": TaskOptions(quantiles_of="a", classes=4)}
LAYOUT = FieldLayout(30, (0, 1, 1, 2), (2,), ("context.a", "item.b", "user.c"), 16)
N_ITEMS = 9


def model_of(family: str, layout: FieldLayout | None = LAYOUT, **settings: Any) -> Ranker:
    torch.manual_seed(0)
    options = FAMILIES[family][0].model_validate(settings)
    model = build_model(options, N_ITEMS, 20, layout, (2, 4))
    add_tasks(model, TASKS, RankingOptions(retrieval=0), "interleaved")
    assert isinstance(model, Ranker)
    return model


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    """Interleaved histories of so many events, each with the item of one more."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, *shape: torch.randint(high, shape, generator=generator)  # noqa: E731
    events, copies = sum(lengths) + len(lengths), []
    for length in lengths:
        copies += [2] * length + [1]
    event_T = torch.repeat_interleave(torch.arange(events), torch.tensor(copies))
    action_T = torch.cat([torch.tensor([0, 1] * length + [0]) for length in lengths]).bool()
    label_EA = torch.stack([draw(2, events), draw(4, events)], dim=1)
    return Batch(
        item_T=draw(N_ITEMS, events)[event_T],
        time_T=torch.full((len(event_T),), START_MS),
        offsets_B1=torch.tensor([0, *(2 * length + 1 for length in lengths)]).cumsum(0),
        action_T=action_T,
        label_TA=label_EA[event_T].masked_fill(~action_T[:, None], -1),
        task_label_TA=label_EA[event_T].masked_fill(action_T[:, None], -1),
        target_T=draw(N_ITEMS, events)[event_T],
        features={"code": (1 + draw(29, events, 4))[event_T], "number": torch.randn(events, 1, generator=generator)[event_T]},
    )


def test_pairs_are_the_earlier_events_of_the_same_user() -> None:
    batch = batch_of([3, 0, 2])
    assert batch.action_T is not None
    asked_N = (~batch.action_T).nonzero()[:, 0]
    pairs = pairs_of(batch, asked_N)
    found = list(zip(asked_N[pairs.asked_P].tolist(), pairs.token_P.tolist(), strict=True))
    user_T = torch.repeat_interleave(torch.arange(3), batch.lengths_B).tolist()
    wanted = [(n, t) for n in asked_N.tolist() for t in range(n) if batch.action_T[t] and user_T[t] == user_T[n]]
    assert found == wanted and pairs.count_N.tolist() == [0, 1, 2, 3, 0, 0, 1, 2]


@each_ranker
def test_users_and_the_future_are_not_seen(family: str) -> None:
    """A state is that of its own history and item alone, cut out; later tokens, other users and its own labels change nothing."""
    model, batch = model_of(family).eval(), batch_of([4, 2, 0])
    assert batch.action_T is not None and batch.label_TA is not None
    with torch.no_grad():
        whole = model(batch)
        for at in (~batch.action_T).nonzero()[:, 0].tolist():
            user = int(torch.searchsorted(batch.offsets_B1, torch.tensor(at), right=True)) - 1
            first = int(batch.offsets_B1[user])
            cut: dict[str, Any] = {name: value[first : at + 1] for name, value in batch.tensors.items()}
            features = {name: value[first : at + 1] for name, value in batch.features.items()}
            alone = model(replace(batch, **cut, offsets_B1=torch.tensor([0, at + 1 - first]), features=features))
            torch.testing.assert_close(whole[at], alone[-1], rtol=0, atol=1e-5)
            assert whole[at].abs().max() > 0
        asked_T = torch.zeros(batch.n_tokens, dtype=torch.bool)
        asked_T[[4, 8]] = True
        torch.testing.assert_close(model(replace(batch, asked_T=asked_T))[[4, 8]], whole[[4, 8]], rtol=0, atol=1e-5)
        for name in ("item_T", "label_TA"):  # what was before counts
            before = getattr(batch, name).clone()
            before[1] = (before[1] + 1) % 2
            assert not torch.allclose(model(replace(batch, **{name: before}))[4], whole[4], atol=1e-7)


@each_ranker
@pytest.mark.parametrize("layout", [None, LAYOUT])
def test_every_weight_is_used_and_one_batch_is_learned_by_heart(family: str, layout: FieldLayout | None) -> None:
    model, batch = model_of(family, layout, hidden=(32, 16)).train(), batch_of([6, 6, 6])
    assert batch.task_label_TA is not None and model.task_heads is not None
    known_A = (batch.task_label_TA >= 0).sum(0)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.015), []
    enough = 0.4 if layout is None else 0.1  # ids alone do not tell all first events apart
    for _ in range(200):
        loss = model.task_heads.losses(model(batch), batch, model.item_table_VD, known_A).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if losses[-1] < enough:
            break
    assert losses[0] == pytest.approx(np.log(2) + np.log(4), abs=0.3)
    assert losses[-1] < enough
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@each_ranker
@pytest.mark.parametrize("layout", [None, LAYOUT])
def test_operations_are_what_torch_counts(family: str, layout: FieldLayout | None) -> None:
    """Of a training token, and of one candidate after a history."""
    model, batch = model_of(family, layout).train(), batch_of([12])
    assert isinstance(model.task_heads, TaskHeads) and batch.task_label_TA is not None
    tasks = {name: task.model_dump(exclude_unset=True) for name, task in TASKS.items()}
    ranking = {"ranking": {"retrieval": 0}, "train": {"metric": "yes.auc"}}
    recipe = recipe_from({"model": {"name": family}, "batch": {"actions": "interleaved"}, "tasks": tasks} | ranking)
    with FlopCounterMode(display=False) as counter:
        model.task_heads.losses(model(batch), batch, model.item_table_VD, torch.ones(2)).sum().backward()  # type: ignore[no-untyped-call]
    pairs = pairs_of(batch, (batch.task_label_TA >= 0).any(1).nonzero()[:, 0])
    context = 4 * len(pairs.asked_P) / batch.n_tokens  # half of the tokens ask, and half of those before them are events
    asked = 2 * len(pairs.count_N) / batch.n_tokens  # a little more than half: the history has one item more than actions
    at_rest = training_flops_per_token(recipe, model, N_ITEMS, 0.0)
    found = at_rest * asked + training_flops_per_token(recipe, model, N_ITEMS, context) - at_rest
    assert counter.get_total_flops() / batch.n_tokens == pytest.approx(found, rel=1e-6)
    model.eval().requires_grad_(False)
    only = replace(batch, asked_T=torch.arange(batch.n_tokens) == batch.n_tokens - 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.task_heads(model(only)[-1:], model.item_table_VD[:1])
    serving = serving_flops(recipe, model, N_ITEMS, 12)
    assert counter.get_total_flops() == serving.candidate and serving.event == serving.history == serving.catalogue == 0


def test_the_papers_formulas() -> None:
    """Each family's core written out for one event."""
    torch.manual_seed(1)
    batch = batch_of([3])
    with torch.no_grad():
        din = model_of("din").eval()
        x_TE = din.input(batch)
        item, events = x_TE[6], x_TE[[1, 3, 5]]
        weights = [din.unit(e[None], item[None]) for e in events]
        interest = sum(w * e for w, e in zip(weights, events, strict=True))
        fields = din.fields({name: value[6:7] for name, value in batch.features.items()}).flatten()
        torch.testing.assert_close(din(batch)[6], din.top(torch.cat([item, fields, interest])[None])[0])

        field_NME = torch.randn(2, 1 + 3 + 3, 16)
        cross = model_of("dcn-v2", depth=2).eval()
        x = first = field_NME.flatten(1)
        for layer in cross.cross:
            x = first * (x @ layer.outer.weight.T + layer.outer.bias) + x
        torch.testing.assert_close(cross.states(field_NME, None), cross.deep(x))
        parallel = model_of("dcn-v2", depth=1, structure="parallel", rank=4).eval()
        assert parallel.states(field_NME, None).shape == (2, 7 * 16 + 64)

        dlrm = model_of("dlrm").eval()
        sparse = [0, 1, 2, 4, 5, 6]  # the number is field 3: after the item, a context and tags
        dense = dlrm.bottom(field_NME[:, 3])
        vectors = torch.stack([dense, *(field_NME[:, m] for m in sparse)], dim=1)
        products = [(vectors[:, i] * vectors[:, j]).sum(1) for i in range(7) for j in range(i + 1, 7)]
        wanted = dlrm.top(torch.cat([dense, torch.stack(products, dim=1)], dim=1))
        torch.testing.assert_close(dlrm.states(field_NME, None), wanted)

        wukong = model_of("wukong", depth=1).eval()
        (layer,) = wukong.layers
        x = field_NME
        product = (x @ x.transpose(1, 2)) @ layer.projection.weight.T  # X X^T Y
        machine = layer.out(layer.network(layer.norm(product.flatten(1)))).view(2, 8, 16)
        compressed = torch.einsum("lm,nme->nle", layer.compress.weight, x)
        kept = torch.einsum("lm,nme->nle", layer.residual.weight, x)
        out = layer.last_norm(torch.cat([machine, compressed], dim=1) + kept)
        torch.testing.assert_close(layer(x), out, rtol=1e-4, atol=1e-4)


# --- runs


def ranker_recipe(run: Path, log: Path, family: str, *overrides: str) -> Any:
    model = f'model={{name="{family}", hidden=[32, 16]}}'
    return recipe_of(run, log, *ALL, model, "ranking.head=linear", *overrides)


@each_ranker
def test_only_a_feature_decides(tmp_path: Path, family: str) -> None:
    log, run = write_log(tmp_path), tmp_path / "run"
    train(
        ranker_recipe(run, log, family, "train.max_epochs=15", "train.patience=15", "evaluate.bootstrap_samples=10"), quiet=True
    )
    result = evaluate(run)
    assert result["tasks"]["yes"]["auc"] > 0.9
    assert (result["test"], result["validation"], result["n_test_evaluations"]) == ({}, {}, 1)
    assert not (run / "ranks-test.parquet").exists() and (run / "predictions-test.parquet").exists()
    engine = load(run)
    assert not engine.retrieves
    with pytest.raises(LargeRecError, match=r"only ranks items that it is given"):
        engine.recommend([0])
    sequences, rows = engine.sequences, np.flatnonzero(engine.sequences.stage_N == TEST)[:5]
    found = predict_tasks(engine, rows).probability_ANL[0][:, 1]
    for row, probability in zip(rows, found, strict=True):
        assert engine.features is not None
        context = engine.features.features.tables["context"].row(int(row), named=True)
        user, token_C = int(sequences.user_N[row]), engine.token_of_item[sequences.item_N[[row, row - 1]]]
        features = engine.features.of_candidates(context, user, token_C)
        ranked = engine.ranker.of_candidates(engine.queries_at(np.array([row])), token_C, features)
        assert float(ranked[0][0, 1]) == pytest.approx(probability, abs=1e-5)


@each_ranker
def test_a_killed_run_resumes_to_the_same_numbers(tmp_path: Path, family: str) -> None:
    log, more = write_log(tmp_path, users=30), ("train.max_epochs=2", "model.dropout=0.1")
    train(ranker_recipe(tmp_path / "whole", log, family, *more), quiet=True)
    killed_at(6, ranker_recipe(tmp_path / "cut", log, family, *more))
    train(ranker_recipe(tmp_path / "cut", log, family, *more), quiet=True)
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


def test_the_commands_speak_of_tasks_alone(tmp_path: Path) -> None:
    log, run = write_log(tmp_path, users=30), tmp_path / "run"
    recipe = ranker_recipe(run, log, "din", "train.max_epochs=1", "evaluate.bootstrap_samples=10")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    train(recipe, quiet=True)
    for command in (["evaluate", str(run)], ["report", str(run)], ["rank", str(run), "--user-id", "1", "--items", "1,2"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, (command, done.output, done.exception)
    assert "Tasks on the test part" in (run / "report.html").read_text(encoding="utf-8")
    found = estimate(recipe)
    assert found["flops_per_candidate"] > 0 and "flops_per_request" not in found
    done = CliRunner().invoke(app, ["recommend", str(run), "--user-id", "1"])
    assert isinstance(done.exception, LargeRecError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("ranking.retrieval=1",), "set ranking.retrieval=0"),
        (("batch.actions=summed",), "batch.actions=interleaved"),
        (("features.where=input",), "leave features.where out"),
        (("head.similarity=cosine",), "scores of the catalogue"),
        (("objective.label_smoothing=0.1",), "loss of the next item"),
        (("train.recompute=true",), "has no blocks"),
        (("optim.transfer=mup",), "no rules for the layers"),
        (("run.compare=['hstu']",), "'din' only ranks, and needs other"),
        (("features.width=8",), "features.width=8 and model.width=16"),
        (("model.size=small",), "says nothing of 'din'"),
        (("model.depth=2",), "model.depth=2 would do nothing"),
        (("model.heads=2",), "has no heads"),
        (("model.tied=false",), "scores no catalogue"),
        (("model.hidden=[]",), "one width or more"),
        (("model.attention=[8,0]",), r"model.attention=\[8, 0\] holds a width below 1"),
        (("model={name='dlrm', bottom=[-1]}",), r"model.bottom=\[-1\] holds a width below 1"),
    ],
)
def test_what_says_nothing_of_a_ranker_is_refused(tmp_path: Path, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        ranker_recipe(tmp_path, tmp_path / "log.csv", "din", *changes)
