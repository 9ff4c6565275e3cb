"""What every family must do, whatever it is; a new line in the table of families is tested by itself."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from logs import START_MS, chain_log

from largerec.batches import Batch, BatchOptions, TokenRows, TrainingBatches, pack_histories
from largerec.errors import LargeRecError
from largerec.heads import HeadOptions, ItemHead
from largerec.layers import dropout
from largerec.models import RETRIEVING as FAMILIES
from largerec.models import Backbone, ModelOptions, build_model, non_embedding_parameters
from largerec.models.dial import DEPTHS, TARGETS, Size
from largerec.objectives import Objective, SoftmaxOptions
from largerec.optim import OptimOptions, build_optimizer
from largerec.sequences import SplitOptions, build_sequences
from largerec.tokenizers import AtomicTokenizer

MAX_LENGTH = 16
N_ITEMS = 11
LENGTHS = [5, 1, MAX_LENGTH, 9]
each_family = pytest.mark.parametrize("family", FAMILIES)
SIZES: tuple[Size, ...] = tuple(TARGETS)


def having(option: str) -> list[str]:
    """The families that have an option."""
    return [family for family, (options, _) in FAMILIES.items() if option in options.model_fields]


def fitting(family: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, without heads where the family has none."""
    return {key: value for key, value in settings.items() if key != "heads" or FAMILIES[family][0].has_heads}


def options_of(family: str, **settings: Any) -> Any:
    small = {"depth": 2, "width": 16, "heads": 2, "dropout": 0.0}
    return FAMILIES[family][0].model_validate(fitting(family, {**small, **settings}))


def model_of(family: str, **settings: Any) -> Backbone:
    """A small model whose weights are all far from zero, so that nothing hides behind a table that starts at zero."""
    torch.manual_seed(0)
    model = build_model(options_of(family, **settings), N_ITEMS, MAX_LENGTH).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_batch(lengths: list[int], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    steps = (torch.rand(tokens, generator=generator) * 25).exp2().long() * 1000
    times = START_MS + steps.cumsum(0)
    return Batch(
        item_T=torch.randint(N_ITEMS, (tokens,), generator=generator),
        time_T=times,
        offsets_B1=torch.tensor([0, *lengths]).cumsum(0),
        target_T=torch.randint(N_ITEMS, (tokens,), generator=generator),
        query_time_T=times + (torch.rand(tokens, generator=generator) * 25).exp2().long() * 1000,
        loss_mask_T=torch.ones(tokens, dtype=torch.bool),
    )


def hidden(model: Backbone, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(batch)
    return out


def query_times_of(family: str) -> list[dict[str, bool]]:
    return [{"query_time": True}, {}] if family in having("query_time") else [{}]


# --- the laws of a sequence model


@each_family
def test_hidden_states_have_the_width_of_the_item_table(family: str) -> None:
    model = model_of(family)
    assert hidden(model, random_batch(LENGTHS)).shape == (sum(LENGTHS), 16)
    assert model.item_table_VD.shape == (N_ITEMS, 16)


@each_family
@pytest.mark.parametrize("changed", [0, 1, 8, MAX_LENGTH - 1])
def test_later_events_change_nothing_before(family: str, changed: int) -> None:
    batch, strange = random_batch([MAX_LENGTH]), random_batch([MAX_LENGTH], seed=1)
    later = torch.arange(MAX_LENGTH) >= changed
    columns = {name: torch.where(later, getattr(strange, name), getattr(batch, name)) for name in ("time_T", "query_time_T")}
    other = replace(batch, item_T=torch.where(later, (batch.item_T + 1) % N_ITEMS, batch.item_T), **columns)
    for settings in query_times_of(family):
        model = model_of(family, **settings)
        one, two = hidden(model, batch), hidden(model, other)
        torch.testing.assert_close(one[:changed], two[:changed], rtol=1e-5, atol=1e-6)
        assert ((one[changed:] - two[changed:]).abs().amax(1) > 1e-3).all()


@each_family
def test_a_user_in_a_batch_is_as_alone(family: str) -> None:
    batch = random_batch(LENGTHS)
    bounds = batch.offsets_B1.tolist()
    names = ("item_T", "time_T", "query_time_T")
    for settings in query_times_of(family):
        model = model_of(family, **settings)
        together = hidden(model, batch)
        for a, b in itertools.pairwise(bounds):
            columns = {name: getattr(batch, name)[a:b] for name in names}
            alone = Batch(offsets_B1=torch.tensor([0, b - a]), **columns)
            torch.testing.assert_close(hidden(model, alone), together[a:b], rtol=1e-5, atol=1e-5)


@each_family
def test_order_matters(family: str) -> None:
    """Every event before the last one is read, and where it stands."""
    model, batch = model_of(family), replace(random_batch([6]), item_T=torch.tensor([0, 1, 2, 3, 4, 5]))
    last = hidden(model, batch)[-1]
    for place in range(5):
        changed = batch.item_T.clone()
        changed[place] = 7
        assert (hidden(model, replace(batch, item_T=changed))[-1] - last).abs().max() > 1e-4
    swapped = replace(batch, item_T=torch.tensor([1, 0, 2, 3, 4, 5]))
    assert (hidden(model, swapped)[-1] - last).abs().max() > 1e-4


@each_family
def test_users_without_tokens_change_nothing(family: str) -> None:
    model, batch = model_of(family), random_batch(LENGTHS)
    with_empty = replace(batch, offsets_B1=torch.tensor([0, 0, *batch.offsets_B1[1:3], 6, *batch.offsets_B1[3:], sum(LENGTHS)]))
    torch.testing.assert_close(hidden(model, with_empty), hidden(model, batch), rtol=1e-5, atol=1e-5)
    none = random_batch([])
    assert hidden(model, replace(none, offsets_B1=torch.tensor([0, 0, 0]))).shape == (0, 16)


@each_family
def test_low_precision_is_near_full_precision(family: str) -> None:
    model, batch = model_of(family), random_batch(LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        low = hidden(model, batch)
    assert torch.isfinite(low).all()
    assert float((low.float() - hidden(model, batch)).norm() / hidden(model, batch).norm()) < 0.1


@each_family
def test_the_same_seed_gives_the_same_model_and_the_same_step(family: str) -> None:
    batch = random_batch(LENGTHS)
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        model = build_model(options_of(family, dropout=0.5), N_ITEMS, MAX_LENGTH).train()
        out = model(batch)
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(one, two) for one, two in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


@each_family
def test_recompute_keeps_less_and_gives_the_same_numbers(family: str) -> None:
    """What is kept for the backward pass is counted by its hooks; dropout must repeat its mask."""
    batch, found, kept = random_batch(LENGTHS), [], []
    for recompute in (False, True):
        torch.manual_seed(5)
        model = build_model(options_of(family, depth=3, dropout=0.5), N_ITEMS, MAX_LENGTH).train()
        model.recompute = recompute
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, into=saved: into.append(x.numel()) or x, lambda x: x):  # type: ignore[misc]
            out = model(batch)
        kept.append(sum(saved))
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert kept[1] < 0.5 * kept[0]


@each_family
def test_dropout_only_when_training(family: str) -> None:
    model, batch = model_of(family, dropout=0.5), random_batch(LENGTHS)
    assert torch.equal(hidden(model, batch), hidden(model, batch))
    model.train()
    assert not torch.equal(hidden(model, batch), hidden(model, batch))


@each_family
def test_every_parameter_learns(family: str) -> None:
    model, batch = model_of(family), random_batch(LENGTHS)
    assert batch.target_T is not None
    Objective(SoftmaxOptions(), torch.ones(N_ITEMS))(model(batch), model.item_table_VD, batch.target_T).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unused


# --- learning


@each_family
def test_overfits_one_batch(family: str) -> None:
    torch.manual_seed(0)
    batch = random_batch([8, 8, 8, 8], seed=2)
    assert batch.target_T is not None
    model = build_model(options_of(family, width=32), N_ITEMS, MAX_LENGTH).train()
    objective, optimizer = Objective(SoftmaxOptions(), torch.ones(N_ITEMS)), build_optimizer(model, OptimOptions())
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    losses = []
    for _ in range(80):
        loss = objective(model(batch), model.item_table_VD, batch.target_T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if losses[-1] < 0.05:
            break
    assert losses[0] == pytest.approx(np.log(N_ITEMS), abs=0.2)
    assert losses[-1] < 0.05


@pytest.mark.parametrize(("family", "similarity"), [*((family, "dot") for family in FAMILIES), ("sasrec", "cosine")])
def test_finds_the_rule_of_a_log(family: str, similarity: str) -> None:
    """Item i is always followed by i + 1; asked for the test event of each user, the model knows."""
    sequences = build_sequences(chain_log(), SplitOptions())
    tokenizer = AtomicTokenizer.fit(sequences)
    token_of_item = tokenizer.encode(sequences.item_ids)
    torch.manual_seed(1)
    model = build_model(options_of(family, dropout=0.1), tokenizer.size, MAX_LENGTH).train()
    head = ItemHead(HeadOptions.model_validate({"similarity": similarity, "temperature": 0.1 if similarity == "cosine" else 1}))
    objective = Objective(SoftmaxOptions(), torch.tensor(tokenizer.counts_V))
    optimizer = build_optimizer(model, OptimOptions())
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    batches = TrainingBatches(sequences, token_of_item, BatchOptions(max_length=MAX_LENGTH, tokens=256), seed=0)
    for epoch in range(40):
        for batch in batches.epoch(epoch):
            assert batch.target_T is not None
            loss = objective(head.queries(model(batch)), head.keys(model.item_table_VD), batch.target_T)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    rows = sequences.targets("test")
    first = sequences.offsets_U1[sequences.user_N[rows]]
    asked = pack_histories(TokenRows.of(sequences, token_of_item), first, rows, sequences.time_N[rows])
    model.eval()
    last = hidden(model, asked)[asked.offsets_B1[1:] - 1]
    best = (head.queries(last) @ head.keys(model.item_table_VD.detach()).T).argmax(1).numpy()
    assert (best == token_of_item[sequences.item_N[rows]]).mean() > 0.9


# --- the size dial


@each_family
@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_within_a_tenth_of_its_parameters(family: str, size: Size) -> None:
    options = FAMILIES[family][0].model_validate({"size": size})
    depth, width, heads = options.shape
    assert width % heads == 0 and depth == DEPTHS[size]
    with torch.device("meta"):
        model = build_model(options, 1, 50)  # type: ignore[arg-type]
    assert non_embedding_parameters(model) == pytest.approx(TARGETS[size], rel=0.1)
    whole = sum(parameter.numel() for parameter in model.parameters())
    positions = 50 if model.input.position is not None else 0
    assert whole - non_embedding_parameters(model) == (1 + positions) * width
    tables = sum(parameter.numel() for name, parameter in model.named_parameters() if re.search(r"_table_[A-Z]+$", name))
    blocks = sum(parameter.numel() for parameter in model.blocks.parameters()) - tables
    assert blocks == depth * options.block_parameters(width)  # the family's rule counts what is there


@each_family
def test_sizes_rise(family: str) -> None:
    shapes = [FAMILIES[family][0].model_validate({"size": size}).shape for size in SIZES]
    assert shapes == sorted(shapes)
    assert len({width for _, width, _ in shapes}) == len(SIZES)


@each_family
@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"depth": 3, "width": 20, "heads": 5}, (3, 20, 5)),
        ({"width": 128}, (2, 128, 2)),
        ({"width": 7}, (2, 7, 1)),
    ],
)
def test_what_is_set_by_hand_is_kept(family: str, settings: dict[str, int], shape: tuple[int, int, int]) -> None:
    options = FAMILIES[family][0].model_validate({"size": "tiny", **fitting(family, settings)})
    assert options.shape == (shape if options.has_heads else (*shape[:2], 1))
    with torch.device("meta"):
        model = build_model(options, 5, 10)  # type: ignore[arg-type]
    assert (len(model.blocks), model.item_table_VD.shape) == (shape[0], (5, shape[1]))


@each_family
@pytest.mark.parametrize("settings", [{"depth": 6}, {"heads": 3}, {"heads": 7, "depth": 1}])
def test_what_is_not_set_by_hand_still_meets_the_size(family: str, settings: dict[str, int]) -> None:
    settings = fitting(family, settings)
    options = FAMILIES[family][0].model_validate({"size": "base", **settings})
    depth, width, heads = options.shape
    assert width % heads == 0
    assert {"depth": depth, "heads": heads} == {"depth": 4, "heads": heads} | settings
    assert depth * options.block_parameters(width) == pytest.approx(TARGETS["base"], rel=0.1)


@pytest.mark.parametrize("family", [family for family, (options, _) in FAMILIES.items() if not options.has_heads])
def test_heads_are_refused_where_there_are_none(family: str) -> None:
    options = FAMILIES[family][0]
    with pytest.raises(LargeRecError, match=rf"model\.heads=2 would do nothing: {family} has no heads"):
        options.model_validate({"heads": 2})
    assert options.model_validate(options().resolved().model_dump()).shape == options().shape  # one head, written out


def test_a_family_without_a_rule_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="each family gives its rule"):
        ModelOptions().resolved()


# --- time


@pytest.mark.parametrize("family", having("query_time"))
def test_query_time_is_read_only_when_asked_for(family: str) -> None:
    batch = random_batch(LENGTHS)
    assert batch.query_time_T is not None
    later = replace(batch, query_time_T=batch.query_time_T + 2**33)
    without, reading = model_of(family), model_of(family, query_time=True)
    assert torch.equal(hidden(without, batch), hidden(without, later))
    assert torch.equal(hidden(without, batch), hidden(without, replace(batch, query_time_T=None)))
    assert ((hidden(reading, batch) - hidden(reading, later)).abs().amax(1) > 1e-4).all()
    at_last = batch.query_time_T.clone()
    at_last[-1] += 2**33
    difference = (hidden(reading, batch) - hidden(reading, replace(batch, query_time_T=at_last))).abs().amax(1)
    assert (difference[:-1] < 1e-5).all() and difference[-1] > 1e-4


TIMELESS = [(family, {option: False}) for option in ("time_bias", "time_channel") for family in having(option)]
TIMELESS += [(family, {"time_bias": False, "position_bias": False}) for family in having("position_bias")]


@pytest.mark.parametrize(("family", "settings"), TIMELESS)
def test_times_change_nothing_when_reading_them_is_off(family: str, settings: dict[str, bool]) -> None:
    batch = random_batch(LENGTHS)
    other = replace(batch, time_T=random_batch(LENGTHS, seed=9).time_T)
    model = model_of(family, **settings)
    assert torch.equal(hidden(model, batch), hidden(model, other))
    assert not [name for name, _ in model.named_parameters() if "time" in name or "temporal" in name]
    assert not options_of(family, **settings).reads_time
    with pytest.raises(LargeRecError, match=r"model\.query_time=true works through"):
        options_of(family, **settings, query_time=True)
    model = model_of(family)
    assert not torch.allclose(hidden(model, batch), hidden(model, other), atol=1e-3)


@pytest.mark.parametrize("family", [family for family in FAMILIES if options_of(family).reads_time])
def test_only_differences_of_time_count(family: str) -> None:
    model, batch = model_of(family), random_batch(LENGTHS)
    assert torch.equal(hidden(model, batch), hidden(model, replace(batch, time_T=batch.time_T + 86_400_000)))


@pytest.mark.parametrize("family", [family for family in FAMILIES if options_of(family).reads_time])
def test_a_log_without_a_clock_is_read_by_its_order(family: str) -> None:
    batch = random_batch([6])
    unknown = torch.full_like(batch.time_T, -1)
    batch = replace(batch, time_T=unknown, query_time_T=unknown, item_T=torch.tensor([0, 1, 2, 3, 4, 5]))
    for settings in query_times_of(family):
        model = model_of(family, **settings)
        last = hidden(model, batch)
        assert last.isfinite().all()
        other = hidden(model, replace(batch, item_T=torch.tensor([1, 0, 2, 3, 4, 5])))
        assert (other[-1] - last[-1]).abs().max() > 1e-4


@pytest.mark.parametrize("family", [family for family in FAMILIES if not options_of(family).reads_time])
def test_a_family_without_time_reads_none(family: str) -> None:
    model, batch = model_of(family), random_batch(LENGTHS)
    unknown = replace(batch, time_T=torch.full_like(batch.time_T, -1), query_time_T=None)
    assert torch.equal(hidden(model, batch), hidden(model, unknown))


# --- the head and the layers


def test_scores_of_the_head() -> None:
    torch.manual_seed(0)
    hidden_BD, table_KD = torch.randn(3, 4), torch.randn(5, 4)
    dot = ItemHead(HeadOptions(temperature=0.5))
    torch.testing.assert_close(dot.queries(hidden_BD) @ dot.keys(table_KD).T, hidden_BD @ table_KD.T / 0.5)
    cosine = ItemHead(HeadOptions(similarity="cosine", temperature=0.05))
    wanted = torch.cosine_similarity(hidden_BD[:, None], table_KD[None], dim=-1) / 0.05
    torch.testing.assert_close(cosine.queries(hidden_BD) @ cosine.keys(table_KD).T, wanted)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(333, 301, dtype=kind, requires_grad=True)
    out = dropout(x, p, training=True)
    assert out.dtype == kind
    kept = out.detach() != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.01)
    assert kept[:, ::4].float().mean().item() == pytest.approx(kept[:, 3::4].float().mean().item(), abs=0.02)
    torch.testing.assert_close(out.detach()[kept], torch.full_like(out.detach()[kept], 1 / (1 - p)))
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p, training=True), out)
    assert not torch.equal(dropout(x, p, training=True), out)


def test_dropout_that_is_off_changes_nothing() -> None:
    x = torch.randn(3, 5)
    assert dropout(x, 0.9, training=False) is x
    assert dropout(x, 0.0, training=True) is x
