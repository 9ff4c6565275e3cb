"""The mixture of logits: its formula pair by pair, its blocks, its loss, and a run that is scored by it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_same_training, tiny_recipe, trained_run
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import largerec
from largerec import mixture
from largerec.accounting import training_flops_per_token
from largerec.engine import EnsembleScorer
from largerec.engine.scoring import ModelScorer
from largerec.errors import LargeRecError
from largerec.evaluate import measure
from largerec.heads import HeadOptions, ItemHead
from largerec.mixture import MixtureOfLogits, MoLOptions
from largerec.models import SASRecOptions, build_model, non_embedding_parameters
from largerec.objectives import Hits, Objective, SampledSoftmaxOptions, softmax_of_scores
from largerec.recipe import recipe_from
from largerec.train import train

OPTIONS = MoLOptions(query_components=3, item_components=2, width=4, gate_width=5)
MOL = ("head.similarity=mol", "head.temperature=0.05", "head.mol={query_components=3, item_components=2, width=4, gate_width=5}")


def fresh(width: int = 8) -> MixtureOfLogits:
    """Large weights, so that no gate is near level."""
    torch.manual_seed(0)
    made = MixtureOfLogits(OPTIONS, width)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return made


def by_hand(made: MixtureOfLogits, state_D: torch.Tensor, row_D: torch.Tensor) -> torch.Tensor:
    """One pair, component by component."""

    def network(gate: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        inner, outer = gate.inner, gate.outer  # type: ignore[union-attr]
        return outer.weight @ F.silu(inner.weight @ x + inner.bias) + outer.bias  # type: ignore[operator, union-attr, no-any-return]

    states = (made.state.weight @ state_D + made.state.bias).view(3, 4)
    items = (made.item.weight @ row_D + made.item.bias).view(2, 4)
    cosines = torch.stack([a @ b / (a.norm() * b.norm()) for a in states for b in items])
    logits = network(made.state_gate, state_D) * network(made.item_gate, row_D) + network(made.cross_gate, cosines)
    share_P = torch.softmax(logits * torch.sigmoid(logits), 0)
    return (share_P * cosines).sum()


def test_a_score_is_the_formula_s() -> None:
    made, state_TD, row_KD = fresh(), torch.randn(5, 8), torch.randn(7, 8)
    score_TK = made.scores(made.queries(state_TD), made.keys(row_KD))
    expected = torch.stack([torch.stack([by_hand(made, state, row) for row in row_KD]) for state in state_TD])
    torch.testing.assert_close(score_TK, expected, rtol=1e-5, atol=1e-5)
    own_T = made.pairs(made.queries(state_TD), made.keys(row_KD[:5]))
    torch.testing.assert_close(own_T, expected.diagonal(), rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1 and expected.abs().max() < 1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, state_TD, row_KD = fresh(), torch.randn(11, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    weigh_TK, found = torch.randn(11, 13), []
    for elements, rows in ((500_000, 64), (60, 3)):  # one block; then three items for three states
        monkeypatch.setattr(mixture, "BLOCK_ELEMENTS", elements)
        monkeypatch.setattr(mixture, "BLOCK_ROWS", rows)
        score_TK = made.scores(made.queries(state_TD), made.keys(row_KD))
        gradients = torch.autograd.grad((score_TK * weigh_TK).sum(), [state_TD, row_KD, *made.parameters()])
        with torch.no_grad():
            torch.testing.assert_close(made.scores(made.queries(state_TD), made.keys(row_KD)), score_TK, rtol=1e-5, atol=1e-6)
        found.append((score_TK.detach(), *gradients))
    for whole, cut in zip(*found, strict=True):
        torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in found[0])


def test_with_all_items_as_negatives_the_loss_is_that_of_the_whole_catalogue() -> None:
    made, state_TD, table_VD = fresh(), torch.randn(9, 8), torch.randn(12, 8)
    head = ItemHead(HeadOptions(similarity="mol", temperature=0.1, mol=OPTIONS), made)
    target_T = torch.randint(12, (9,))
    objective = Objective(SampledSoftmaxOptions(negatives=12, logq=False), torch.ones(12))
    loss = objective(head.queries(state_TD), table_VD, target_T, negatives=torch.arange(12), mixing=head)
    score_TV = head.scores(head.queries(state_TD), head.keys(table_VD))
    torch.testing.assert_close(loss, F.cross_entropy(score_TV, target_T), rtol=1e-5, atol=1e-5)
    weight_T = torch.arange(1.0, 10)
    weighted = objective(head.queries(state_TD), table_VD, target_T, negatives=torch.arange(12), mixing=head, weight_T=weight_T)
    each_T = F.cross_entropy(score_TV, target_T, reduction="none")
    torch.testing.assert_close(weighted, (each_T * weight_T).sum() / weight_T.sum(), rtol=1e-5, atol=1e-5)
    rows_V = torch.tensor([3, 5, 7])  # a part of the table, by place
    corrected = Objective(SampledSoftmaxOptions(negatives=2, sampling="popularity"), torch.arange(1.0, 13))
    part = corrected(
        head.queries(state_TD[:1]),
        table_VD[rows_V],
        torch.tensor([1]),
        negatives=torch.tensor([0, 2]),
        rows_V=rows_V,
        mixing=head,
    )
    log_q_V = (torch.arange(1.0, 13) / 78).log()
    own = score_TV[0, 5] - (torch.log1p(-log_q_V[5].exp()) - math.log(2))
    expected = torch.logsumexp(torch.stack([own, score_TV[0, 3] - log_q_V[3], score_TV[0, 7] - log_q_V[7]]), 0) - own
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)
    nothing = torch.empty(0, 3, requires_grad=True)
    empty = softmax_of_scores(nothing, Hits.of(torch.empty(0, dtype=torch.long), torch.arange(3)), torch.empty(0))
    assert empty == 0 and empty.requires_grad


def test_a_run_is_served_as_it_was_measured(tmp_path: Path) -> None:
    run = trained_run(*MOL)
    engine = largerec.load(run)
    scorer = engine.scorer
    assert isinstance(scorer, ModelScorer) and isinstance(scorer.model.similarity, MixtureOfLogits)
    rows = engine.sequences.targets("test")
    queries = engine.queries_at(rows)
    table_VD = scorer.model.item_table_VD
    made = scorer.model.similarity
    with torch.no_grad():
        query_QF = made.queries(scorer.hidden(queries))
        expected = torch.stack([made.pairs(query_QF, made.keys(row_D.expand(len(rows), -1))) for row_D in table_VD], 1)
    torch.testing.assert_close(scorer.scores(queries), expected / 0.05, rtol=1e-4, atol=1e-4)
    listed = engine.recommend(engine.sequences.user_ids.head(2).to_list(), 5, mask=False)
    last = engine._queries_of_users(np.arange(2))
    best = scorer.scores(last).topk(5).indices.flatten().numpy()
    assert listed["item_id"].to_list() == engine.tokenizer.vocabulary["item_id"].gather(best).to_list()
    assert measure(engine, rows).rank_N.mean() < 0.45 * scorer.size  # chance is the middle
    both = EnsembleScorer([scorer, largerec.load(trained_run()).scorer])
    assert torch.isfinite(both.scores(queries)).all()
    train(tiny_recipe(tmp_path / "again", *MOL), quiet=True)
    assert np.array_equal(measure(largerec.load(tmp_path / "again"), rows).rank_N, measure(engine, rows).rank_N)


def test_updates_of_rows_in_use_and_resuming(tmp_path: Path) -> None:
    overrides = (*MOL, "optim.table=lazy-adam")
    train(tiny_recipe(tmp_path / "whole", *overrides), quiet=True)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(tmp_path / "parts", *overrides), quiet=True, on_validation=stop)
    train(tiny_recipe(tmp_path / "parts", *overrides), quiet=True)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")


def test_costs_are_what_torch_counts() -> None:
    made, states, items = fresh(64), 200, 300
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made.scores(made.queries(torch.randn(states, 64)), made.keys(torch.randn(items, 64)))
    assert counter.get_total_flops() / states == pytest.approx(made.operations(items, items / states), rel=0.15)  # biases beside
    plain = recipe_from({"model": {"name": "sasrec", "width": 64}, "objective": {"name": "sampled-softmax"}})
    mol = recipe_from(plain.to_json() | {"head": {"similarity": "mol"}})
    model = build_model(SASRecOptions(width=64), 1000, 50)
    without, blocks = training_flops_per_token(plain, model, 1000, 10.0), non_embedding_parameters(model)
    head = ItemHead.of(mol.head, model)
    assert head.mixture is not None and non_embedding_parameters(model) == blocks + sum(
        p.numel() for p in head.mixture.parameters()
    )
    more = training_flops_per_token(mol, model, 1000, 10.0) - without
    assert more == pytest.approx(3 * (head.mixture.operations(513, 1 + 512 / 4096) - 2 * 64 * 513))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"objective": {"name": "softmax"}}, "Choose objective.name=sampled-softmax"),
        ({"objective": {"name": "sampled-softmax", "shared": False}}, "objective.shared=true"),
        ({"head": {"similarity": "dot", "mol": {"width": 8}}}, "Set head.similarity = mol"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        recipe_from({"head": {"similarity": "mol"}, "objective": {"name": "sampled-softmax"}} | overrides)
