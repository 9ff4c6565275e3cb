"""GRU4Rec's packed recurrence against cells that step through one history at a time."""

from __future__ import annotations

import itertools

import torch
from test_models import hidden, model_of, random_batch
from torch import nn

from largerec.batches import Batch
from largerec.models import GRU4Rec
from largerec.models.gru4rec import by_position

LENGTHS = [3, 0, 5, 1, 0, 5, 2]


def by_cells(model: GRU4Rec, batch: Batch) -> torch.Tensor:
    """The same weights, one user and one event after the other."""
    x_TD = model.input.item(batch.item_T)
    for block in model.blocks:
        cell = nn.GRUCell(16, 16)
        cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in block.gru.state_dict().items()})
        rows = []
        for begin, end in itertools.pairwise(batch.offsets_B1.tolist()):
            state = torch.zeros(16)
            for row in range(begin, end):
                state = cell(block.norm(x_TD[row]), state)
                rows.append(x_TD[row] + state)
        x_TD = torch.stack(rows)
    out: torch.Tensor = model.norm(x_TD)
    return out


def test_the_packed_recurrence_is_a_loop_over_cells() -> None:
    model, batch = model_of("gru4rec"), random_batch(LENGTHS)
    assert isinstance(model, GRU4Rec)
    torch.testing.assert_close(hidden(model, batch), by_cells(model, batch).detach(), rtol=1e-5, atol=1e-5)


def test_its_gradients_are_those_of_the_loop() -> None:
    found = []
    for forward in (lambda model, batch: model(batch), by_cells):
        model = model_of("gru4rec")
        table = model.item_table_VD
        loss = forward(model, random_batch(LENGTHS)).sin().sum()
        found.append(torch.autograd.grad(loss, table)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_tokens_stand_by_position_with_longer_histories_first() -> None:
    batch = random_batch(LENGTHS)
    order_T, tokens_N = by_position(batch)
    starts = batch.offsets_B1.tolist()
    users = sorted(range(len(LENGTHS)), key=lambda user: -LENGTHS[user])
    wanted = [[starts[user] + step for user in users if LENGTHS[user] > step] for step in range(max(LENGTHS))]
    assert order_T.tolist() == list(itertools.chain(*wanted))
    assert tokens_N.tolist() == [len(step) for step in wanted]


def test_low_precision_leaves_the_recurrence_alone() -> None:
    model, batch = model_of("gru4rec"), random_batch(LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        low = hidden(model, batch)
    assert low.dtype == torch.float32 and torch.equal(low, hidden(model, batch))
