"""Contrastive views: the loss against its formula, what each view holds, what may stand beside what, and that it is trained."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import START_MS, log_of, logs, random_log
from runs import tiny_recipe

from largerec import contrastive
from largerec.batches import Batch, BatchOptions, TrainingBatches
from largerec.contrastive import Contrast, ContrastiveOptions, SameTarget, edited, info_nce
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.models import RETRIEVING as FAMILIES
from largerec.models import build_model
from largerec.objectives import Objective
from largerec.progress import Progress
from largerec.sequences import SplitOptions, build_sequences
from largerec.tokenizers import AtomicTokenizer
from largerec.train import Trainer


def options_of(**given: Any) -> ContrastiveOptions:
    return ContrastiveOptions.model_validate({"weight": 1.0, **given})


def batch_of(lengths: list[int]) -> Batch:
    """Histories whose items all differ; an item's number is its place in the batch."""
    tokens = torch.arange(sum(lengths))
    return Batch(
        item_T=tokens,
        time_T=START_MS + 1000 * tokens,
        offsets_B1=torch.tensor([0, *lengths]).cumsum(0),
        target_T=tokens + 1,
        query_time_T=START_MS + 1000 * tokens + 500,
        loss_mask_T=torch.ones(len(tokens), dtype=torch.bool),
    )


def histories(batch: Batch, of: str = "item_T") -> list[list[int]]:
    return [getattr(batch, of)[a:b].tolist() for a, b in itertools.pairwise(batch.offsets_B1.tolist())]


# --- the loss


@pytest.mark.parametrize("chunk", [1, 30, 10**6])
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_info_nce_is_the_formula(monkeypatch: pytest.MonkeyPatch, chunk: int, temperature: float) -> None:
    monkeypatch.setattr(contrastive, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(7, 5, generator=generator, requires_grad=True) for _ in range(2))
    target_B = torch.tensor([3, 1, 3, 0, 2, 1, 3])
    states = [(view, user, x) for view, rows in enumerate((one, other)) for user, x in enumerate(rows)]
    losses = []
    for view, user, x in states:
        scores = {(v, u): torch.cosine_similarity(x, y, dim=0) / temperature for v, u, y in states}
        own = scores[1 - view, user]
        others = [score for (_, u), score in scores.items() if target_B[u] != target_B[user]]
        losses.append(torch.logsumexp(torch.stack([own, *others]), 0) - own)
    wanted, found = torch.stack(losses).mean(), info_nce(one, other, target_B, temperature)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(torch.autograd.grad(found, (one, other)), torch.autograd.grad(wanted, (one, other)), strict=True):
        torch.testing.assert_close(a, b)


def test_info_nce_of_one_user_or_one_target_is_nothing() -> None:
    for target_B in (torch.tensor([4]), torch.tensor([4, 4, 4])):
        assert float(info_nce(torch.randn(len(target_B), 3), torch.randn(len(target_B), 3), target_B, 0.1)) == pytest.approx(0)


# --- edited copies


def copies(edit: str, lengths: list[int], **given: float) -> list[Batch]:
    options = options_of(views=["edits"], edits=[edit], **given)
    return [edited(batch_of(lengths), options, np.random.default_rng(seed)) for seed in range(200)]


def test_a_crop_is_one_piece_of_its_share() -> None:
    starts = set()
    for copy in copies("crop", [10, 1, 3], crop=0.5):
        for items, first, length in zip(histories(copy), [0, 10, 11], [5, 1, 1], strict=True):
            assert items == list(range(items[0], items[0] + length)) and items[0] >= first
        starts.add(copy.item_T[0].item())
        assert torch.equal(copy.time_T, START_MS + 1000 * copy.item_T)
        assert copy.query_time_T is not None and torch.equal(copy.query_time_T, copy.time_T + 500)
        assert copy.masked_T is not None and not copy.masked_T.any()
    assert starts == set(range(6))


def test_a_mask_hides_its_share_and_nothing_else() -> None:
    hidden: Counter[int] = Counter()
    batch = batch_of([10, 1, 3])
    for copy in copies("mask", [10, 1, 3], mask=0.4):
        assert torch.equal(copy.item_T, batch.item_T) and torch.equal(copy.offsets_B1, batch.offsets_B1)
        assert [sum(masked) for masked in histories(copy, "masked_T")] == [4, 0, 1]
        assert copy.masked_T is not None
        hidden.update(copy.masked_T.nonzero()[:, 0].tolist())
    assert all(40 < hidden[place] < 120 for place in range(10)), "every place alike"


def test_a_reorder_turns_one_piece_about_and_leaves_times() -> None:
    found, moved = set(), Counter()
    batch = batch_of([10, 1, 3])
    for copy in copies("reorder", [10, 1, 3], reorder=0.4):
        items, one, _ = histories(copy)
        assert sorted(items) == list(range(10)) and one == [10] and copy.item_T[11:].tolist() == [11, 12, 13]
        away = [place for place, item in enumerate(items) if place != item]
        assert not away or away[-1] - away[0] < 4
        moved.update(away)
        found.add(tuple(items))
        assert torch.equal(copy.time_T, batch.time_T)
    assert len(found) > 50 and all(moved[place] for place in range(10))


def test_each_copy_draws_one_of_the_edits() -> None:
    options = options_of(views=["edits"])
    kinds: Counter[str] = Counter()
    for seed in range(300):
        copy = edited(batch_of([10]), options, np.random.default_rng(seed))
        assert copy.masked_T is not None
        masked, short = bool(copy.masked_T.any()), copy.n_tokens < 10
        turned = not short and copy.item_T.tolist() != list(range(10))
        assert masked + short + turned == 1
        kinds.update(["mask"] * masked + ["crop"] * short + ["reorder"] * turned)
    assert all(60 < count < 140 for count in kinds.values()) and len(kinds) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masked_item_says_nothing_to_any_family(family: str) -> None:
    torch.manual_seed(0)
    options = FAMILIES[family][0].model_validate({"depth": 1, "width": 16, "dropout": 0.0})
    model = build_model(options, 30, 16).eval()
    batch = replace(batch_of([6, 4]), masked_T=torch.arange(10) == 2)
    other = replace(batch, item_T=torch.where(batch.masked_T, 17, batch.item_T))  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(model(batch), model(other))
        assert not torch.equal(model(batch), model(replace(batch, masked_T=None)))


# --- the same target


def prepared(log: EventLog, length: int = 4, tokens: int = 30) -> TrainingBatches:
    sequences = build_sequences(log, SplitOptions())
    token_of_item = AtomicTokenizer.fit(sequences).encode(sequences.item_ids)
    return TrainingBatches(sequences, token_of_item, BatchOptions(max_length=length, tokens=tokens), seed=1)


@settings(deadline=None, max_examples=40)
@given(log=logs(), length=st.integers(1, 5), seed=st.integers(0, 10))
def test_another_history_with_the_same_target(log: EventLog, length: int, seed: int) -> None:
    batches = prepared(log, length)
    token_M, users = batches.rows.token_M.tolist(), list(zip(batches.first_U.tolist(), batches.end_U.tolist(), strict=True))
    before = {row: token_M[max(first, row - length) : row] for first, end in users for row in range(first + 1, end)}
    for batch in batches.epoch(0):
        assert batch.target_row_T is not None and batch.target_T is not None
        rows = batch.target_row_T[batch.offsets_B1[1:] - 1]
        assert torch.equal(batch.target_T[batch.offsets_B1[1:] - 1], torch.from_numpy(batches.rows.token_M)[rows])
        drawn = SameTarget(batches).draw(rows.numpy(), np.random.default_rng(seed))
        for row, items in zip(rows.tolist(), histories(drawn), strict=True):
            others = [history for other, history in before.items() if token_M[other] == token_M[row] and other != row]
            assert items in (others or [before[row]])


def test_each_other_history_is_as_likely() -> None:
    log = log_of([(user, item, START_MS + 1000 * n) for user in range(5) for n, item in enumerate([user, 9, 9 + user, 7, 8])])
    batches = prepared(log)  # item 9 follows each user's own item; 3 events of each user are of training
    assert batches.first_U.tolist() == sorted(batches.first_U.tolist())
    row = int(np.flatnonzero(batches.rows.token_M == batches.rows.token_M[1])[0])
    drawn = SameTarget(batches).draw(np.full(3000, row), np.random.default_rng(0))
    counts = Counter(tuple(items) for items in histories(drawn))
    assert (batches.rows.token_M[0],) not in counts, "its own one is not drawn while there are others"
    assert all(abs(count - 3000 / len(counts)) < 150 for count in counts.values()) and len(counts) >= 4


# --- in training


def trainer_of(folder: Path, *overrides: str) -> Trainer:
    return Trainer(tiny_recipe(folder, *overrides), Progress(quiet=True))


def first_loss(folder: Path, *overrides: str) -> float:
    trainer = trainer_of(folder, *overrides)
    trainer.model.train()
    return trainer.step(next(trainer.batches.epoch(0)))


@pytest.mark.parametrize("views", ["same-target", "edits"])
def test_the_loss_is_the_objective_s_and_the_weighted_one(tmp_path: Path, views: str) -> None:
    plain = ("objective={name = 'softmax'}", "model.dropout=0")
    without = first_loss(tmp_path / "0", *plain)
    once, thrice = (
        first_loss(tmp_path / str(weight), *plain, f"contrastive={{weight = {weight}, views = ['{views}']}}")
        for weight in (0.1, 0.3)
    )
    assert once > without + 0.01
    assert thrice - without == pytest.approx(3 * (once - without), rel=1e-4)


def test_the_loss_of_rows_in_use_is_that_of_the_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "_negatives", lambda self, *shape: torch.arange(math.prod(shape)).reshape(shape))
    contrast = "contrastive={weight = 0.5, views = ['dropout', 'same-target', 'edits']}"
    objective = 'objective={name = "sampled-softmax", negatives = 8}'
    for parts in (1, 2):
        whole, rows = (
            first_loss(tmp_path / f"{table}{parts}", contrast, objective, f"optim.table={table}", f"train.accumulate={parts}")
            for table in ("adamw", "lazy-adam")
        )
        assert rows == pytest.approx(whole, rel=1e-5)


def test_views_are_as_many_as_the_passes_that_are_counted(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", "contrastive={weight = 0.5, views = ['dropout', 'same-target', 'edits']}")
    batch = next(trainer.batches.epoch(0))
    assert trainer.contrast is not None
    views = trainer.contrast.views(batch)
    assert len(views) == trainer.recipe.contrastive.passes == 4
    assert all(len(view.offsets_B1) == len(batch.offsets_B1) for view in views)
    assert views[0] is batch
    assert ContrastiveOptions().passes == 0


@pytest.mark.parametrize("views", [["dropout"], ["same-target"], ["edits"], ["dropout", "same-target", "edits"]])
def test_training_brings_views_of_a_user_together(views: list[str]) -> None:
    batches = prepared(random_log(users=30, items=40, events=400), length=8, tokens=400)
    torch.manual_seed(0)
    options = FAMILIES["hstu"][0].model_validate({"depth": 1, "width": 16, "heads": 2, "dropout": 0.2})
    model = build_model(options, int(batches.rows.token_M.max()) + 1, 8).train()
    contrast = Contrast(options_of(views=views, temperature=0.2), batches)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for epoch in range(50):
        for batch in batches.epoch(epoch):
            loss = contrast.loss(batch, model(batch), [(view, model(view)) for view in contrast.views(batch)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert math.isfinite(losses[-1])


# --- what is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "contrastive.temperature=0.2",
            r"contrastive\.temperature is set, but contrastive\.weight is 0.*contrastive\.weight=0\.1",
        ),
        ("contrastive={weight = 0.1, crop = 0.5}", r"contrastive\.crop is set.*views=\['dropout', 'same-target'\] edits nothing"),
        (
            "contrastive={weight = 0.1, views = ['edits'], edits = ['crop'], mask = 0.5}",
            r"contrastive\.mask is set, but contrastive\.edits=\['crop'\] has no 'mask'",
        ),
        ("contrastive={weight = 0.1, views = []}", r"contrastive\.views=\[\] must name at least one"),
        ("contrastive={weight = 0.1, views = ['edits'], edits = ['crop', 'crop']}", r"contrastive\.edits=.*none twice"),
    ],
)
def test_what_would_have_no_effect_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(LargeRecError, match=message):
        tiny_recipe(tmp_path, override)


def test_a_second_pass_without_dropout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"model\.dropout=0.*same states.*contrastive\.views=\['same-target'\]"):
        tiny_recipe(tmp_path, "contrastive.weight=0.1", "model.dropout=0")
    tiny_recipe(tmp_path, "contrastive={weight = 0.1, views = ['same-target']}", "model.dropout=0")


def test_views_beside_positives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"contrastive\.weight takes every event.*split\.positives"):
        tiny_recipe(tmp_path, "contrastive.weight=0.1", "split.positives='value >= 4'")
    tiny_recipe(tmp_path, "split.positives='value >= 4'")


def test_a_resolved_recipe_is_read_back(tmp_path: Path) -> None:
    from largerec.recipe import recipe_from

    recipe = tiny_recipe(tmp_path, "contrastive={weight = 0.1, views = ['edits'], crop = 0.5}").resolved()
    assert recipe_from(recipe.to_json()) == recipe
