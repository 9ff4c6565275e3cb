"""Hard negatives of retrieval that ranking points at: what a user was shown and did not take.

After the ranking-driven enhancer of UniGRF (Zhang et al. 2025, arXiv 2504.16454), whose hard negatives are items that retrieval
puts high and ranking low. Here they are events of the same window that ``split.positives`` says are no targets and of which some
label is known, so that the user really saw them, and on items that the user took nowhere in the window. At each target, with
scores s of retrieval and p the head's probability of the first learned condition::

    log(1 + sum over the user's negatives e of (1 - p_e) exp(s_e - s_target))

A negative counts where retrieval scores it high, and the less the more likely the head finds it. No gradient goes to the head.
T tokens, P targets, E negatives, D width.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from largerec.batches import Batch
from largerec.ranking import TaskHeads

BLOCK = 2048
"""Tokens of whole windows whose targets and negatives meet at a time."""


def hard_negative_loss(
    heads: TaskHeads,
    batch: Batch,
    hidden_TD: torch.Tensor,
    queries_PD: torch.Tensor,
    table_KD: torch.Tensor,
    keys_KD: torch.Tensor,
) -> torch.Tensor:
    """Mean over the targets of a batch (weighted where events are), times ``ranking.hard_negatives``; 0 where that is 0.

    ``queries_PD``: of the tokens of ``loss_mask_T``, as the item head prepares them; ``keys_KD``: the item table likewise.
    """
    weight = heads.options.hard_negatives
    assert batch.loss_mask_T is not None and batch.target_T is not None
    if weight == 0 or not len(queries_PD):
        return queries_PD.new_zeros(())
    shown_T = ~batch.loss_mask_T
    if heads.actions == "interleaved":
        assert batch.action_T is not None
        shown_T = shown_T & batch.action_T
    at_P = batch.loss_mask_T.nonzero()[:, 0]
    weight_P = queries_PD.new_ones(len(at_P)) if batch.weight_T is None else batch.weight_T[at_P]
    user_T = torch.repeat_interleave(torch.arange(len(batch.lengths_B)), batch.lengths_B)
    at_E, said_E = _judged(heads, batch, (shown_T & ~_taken(batch, user_T, len(table_KD))).nonzero()[:, 0])
    log_dislike_E = _log_dislike(heads, batch, hidden_TD, table_KD, at_E, said_E)
    total = queries_PD.new_zeros(())
    for first, last in _blocks(batch.offsets_B1):
        own_E, own_P = (at_E >= first) & (at_E < last), (at_P >= first) & (at_P < last)
        e, p, query_PD = at_E[own_E], at_P[own_P], queries_PD[own_P].float()
        target_P, item_E = batch.target_T[p], batch.target_T[e]
        ahead_P1 = (query_PD * F.embedding(target_P, keys_KD)).sum(1, keepdim=True)
        gap_PE = query_PD @ F.embedding(item_E, keys_KD).T - ahead_P1 + log_dislike_E[own_E]
        none_PE = user_T[p][:, None] != user_T[e]
        zero_P1 = gap_PE.new_zeros(len(p), 1)
        loss_P = torch.logsumexp(torch.cat([zero_P1, gap_PE.masked_fill(none_PE, float("-inf"))], dim=1), dim=1)
        total = total + (weight_P[own_P] * loss_P).sum()
    return weight * total / weight_P.sum()


def _taken(batch: Batch, user_T: torch.Tensor, items: int) -> torch.Tensor:
    """Whether a token asks for an item that its user took at any event of the window. [T]

    Targets are not all of these events: a window's first one is only read, and one of weight 0 is no target.
    """
    assert batch.taken_T is not None and batch.target_T is not None and batch.loss_mask_T is not None
    read_T, asked_T = user_T * items + batch.item_T, user_T * items + batch.target_T
    return torch.isin(asked_T, torch.cat([read_T[batch.taken_T], asked_T[batch.loss_mask_T]]))


def _judged(heads: TaskHeads, batch: Batch, at_E: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the tokens that ask for events those whose event can be judged, and the tokens that judge them.

    An event of weight 0 was taken out, not disliked: it has no label left. With interleaved actions the event's own item token
    judges it, and where a window is thinned (stochastic length) the next token may be of a later event.
    """
    assert batch.task_label_TA is not None and batch.target_row_T is not None
    said_E = at_E + 1 if heads.actions == "interleaved" else at_E
    kept_E = (batch.task_label_TA[said_E] >= 0).any(1) & (batch.target_row_T[said_E] == batch.target_row_T[at_E])
    return at_E[kept_E], said_E[kept_E]


def _log_dislike(
    heads: TaskHeads,
    batch: Batch,
    hidden_TD: torch.Tensor,
    table_KD: torch.Tensor,
    at_E: torch.Tensor,
    said_E: torch.Tensor,
) -> torch.Tensor:
    """Logarithm of the probability that the first learned condition does not hold for the events that tokens ask for. [E]"""
    assert batch.target_T is not None
    column = heads.first_condition
    with torch.no_grad():
        item_ED = F.embedding(batch.target_T[at_E], table_KD) if heads.actions == "summed" else None
        features = {name: value[said_E] for name, value in batch.features.items()}
        return F.logsigmoid(-heads(hidden_TD[said_E].float(), item_ED, features)[column][:, 0])


def _blocks(offsets_B1: torch.Tensor) -> list[tuple[int, int]]:
    """Tokens of runs of whole windows, about ``BLOCK`` in each."""
    ends, blocks, first = offsets_B1[1:].tolist(), [], 0
    for at, end in enumerate(ends):
        if at + 1 == len(ends) or ends[at + 1] - first > BLOCK:
            blocks.append((first, end))
            first = end
    return blocks
