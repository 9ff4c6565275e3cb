"""Contrastive views: another look at a user should give the same state, and not that of another user.

``same-target`` and ``dropout`` are the two views of DuoRec (Qiu et al. 2022, arXiv 2110.05730): another history that was followed
by the same item, and the same history under another dropout mask. ``edits`` is CL4SRec (Xie et al. 2020, arXiv 2010.14395): two
edited copies of the history, each cropped, masked or reordered. Each view costs passes through the model: one, one, two.

Unlike the papers: states are compared by cosine, so that ``temperature`` means the same for every family; users with the same
target are never negatives of each other; the state of the training pass itself, which has a dropout mask of its own, is one
side of DuoRec's pairs, which saves a pass; every event with a history before it may be drawn as the same target; a masked item
is no item at all (its embedding is zero) instead of a learned one; times stay sorted when items are reordered.

Shapes: T tokens, B users of the batch, D width, M rows of all users, C rows that are a target in training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from largerec.batches import Batch, TrainingBatches, pack_histories, ranges
from largerec.errors import LargeRecError
from largerec.kernels import unit_rows
from largerec.options import Options

CHUNK_ELEMENTS = 4_000_000
PASSES = {"dropout": 1, "same-target": 1, "edits": 2}


class ContrastiveOptions(Options):
    """``weight`` of the contrastive loss (the mean over ``views``) beside the objective; 0 is none.

    ``temperature`` divides the cosines. ``edits``: what an edited copy may be, one of them drawn for each: a ``crop`` that keeps
    this share of the history in one piece, a ``mask`` over this share of its items, a ``reorder`` of a piece of this share.
    """

    weight: float = Field(0.0, ge=0)
    views: tuple[Literal["dropout", "same-target", "edits"], ...] = ("dropout", "same-target")
    temperature: float = Field(0.1, gt=0)
    edits: tuple[Literal["crop", "mask", "reorder"], ...] = ("crop", "mask", "reorder")
    crop: float = Field(0.6, gt=0, lt=1)
    mask: float = Field(0.3, gt=0, lt=1)
    reorder: float = Field(0.6, gt=0, le=1)

    @model_validator(mode="after")
    def _what_is_set_has_an_effect(self) -> Self:
        for name, given in (("views", self.views), ("edits", self.edits)):
            if not given or len(set(given)) < len(given):
                raise LargeRecError(f"contrastive.{name}={list(given)} must name at least one, and none twice.")
        fields = type(self).model_fields
        changed = [name for name in fields if getattr(self, name) != fields[name].default]
        if not self.weight and changed:
            raise LargeRecError(
                f"contrastive.{changed[0]} is set, but contrastive.weight is 0, so there is no contrastive loss. Set a weight, "
                "for example contrastive.weight=0.1, or leave the group out."
            )
        of_edits = [name for name in changed if name in ("edits", "crop", "mask", "reorder")]
        if "edits" not in self.views and of_edits:
            raise LargeRecError(
                f"contrastive.{of_edits[0]} is set, but contrastive.views={list(self.views)} edits nothing. Add 'edits' to the "
                "views, or leave it out."
            )
        unused = [name for name in of_edits if name != "edits" and name not in self.edits]
        if unused:
            raise LargeRecError(
                f"contrastive.{unused[0]} is set, but contrastive.edits={list(self.edits)} has no {unused[0]!r}. Add it there, "
                "or leave the share out."
            )
        return self

    @property
    def passes(self) -> int:
        """Passes through the model beside the objective's own (a crop's is shorter)."""
        return sum(PASSES[view] for view in self.views) if self.weight else 0


class SameTarget:
    """Draws histories that were followed by given items: training rows of one user, at most ``max_length`` of them."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.rows, self.max_length = batches.rows, batches.options.max_length
        self.first_U = batches.first_U
        target_C = ranges(batches.first_U + 1, np.maximum(batches.end_U - batches.first_U - 1, 0))
        token_C = self.rows.token_M[target_C]
        self.row_C = target_C[np.argsort(token_C, kind="stable")]
        self.token_C = np.sort(token_C)
        self.place_M = np.zeros(len(self.rows.token_M), dtype=np.int64)
        self.place_M[self.row_C] = np.arange(len(self.row_C))

    def draw(self, target_row_B: np.ndarray, random: np.random.Generator) -> Batch:
        """What came before another row with the item of each, all alike likely; before the row itself where there is no other."""
        token_B = self.rows.token_M[target_row_B]
        begin_B = np.searchsorted(self.token_C, token_B)
        others_B = np.searchsorted(self.token_C, token_B, side="right") - begin_B - 1
        drawn_B = begin_B + random.integers(np.maximum(others_B, 1))
        own_B = self.place_M[target_row_B]
        place_B = np.where(others_B > 0, drawn_B + (drawn_B >= own_B), own_B)
        end_B = self.row_C[place_B]
        first_B = self.first_U[np.searchsorted(self.first_U, end_B, side="right") - 1]
        return pack_histories(self.rows, np.maximum(first_B, end_B - self.max_length), end_B, self.rows.time_M[end_B])


def edited(batch: Batch, options: ContrastiveOptions, random: np.random.Generator) -> Batch:
    """A copy of each history with one of ``options.edits``; what is too short for its edit stays as it is."""
    offsets_B1 = batch.offsets_B1.numpy()
    whole_B = np.diff(offsets_B1)
    edit_B = np.array(options.edits)[random.integers(len(options.edits), size=len(whole_B))]
    length_B = np.where(edit_B == "crop", np.maximum(1, (options.crop * whole_B).astype(np.int64)), whole_B)
    start_B = offsets_B1[:-1] + random.integers(whole_B - length_B, endpoint=True)
    index_T = ranges(start_B, length_B)
    user_T = np.repeat(np.arange(len(length_B)), length_B)
    place_T = index_T - start_B[user_T]
    # A mask falls on the items of least luck; a piece is reordered by luck within the room that it takes.
    luck_T = random.random(len(index_T))
    rank_T = np.empty_like(place_T)
    rank_T[np.lexsort((luck_T, user_T))] = place_T
    masked_T = (edit_B[user_T] == "mask") & (rank_T < (options.mask * whole_B).astype(np.int64)[user_T])
    piece_B = np.where(edit_B == "reorder", (options.reorder * whole_B).astype(np.int64), 0)
    piece_start_B = random.integers(whole_B - piece_B, endpoint=True)
    in_piece_T = (place_T >= piece_start_B[user_T]) & (place_T < (piece_start_B + piece_B)[user_T])
    order_T = np.lexsort((np.where(in_piece_T, piece_start_B[user_T] - 0.5 + luck_T * piece_B[user_T], place_T), user_T))
    at_T, item_at_T = torch.from_numpy(index_T), torch.from_numpy(index_T[order_T])

    def taken(x: torch.Tensor | None, rows_T: torch.Tensor) -> torch.Tensor | None:
        return None if x is None else x[rows_T]

    return replace(
        batch,
        item_T=batch.item_T[item_at_T],
        time_T=batch.time_T[at_T],
        offsets_B1=torch.from_numpy(np.concatenate([[0], np.cumsum(length_B)])),
        behaviour_T=taken(batch.behaviour_T, item_at_T),
        query_time_T=taken(batch.query_time_T, at_T),
        target_T=None,
        target_row_T=None,
        loss_mask_T=None,
        weight_T=None,
        masked_T=torch.from_numpy(masked_T),
        features={name: value[item_at_T] for name, value in batch.features.items()},
    )


def _row_losses(rows_CD: torch.Tensor, all_ND: torch.Tensor, never_CN: torch.Tensor, partner_C: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy((rows_CD @ all_ND.T).masked_fill(never_CN, float("-inf")), partner_C, reduction="sum")


def info_nce(one_BD: torch.Tensor, other_BD: torch.Tensor, target_B: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean of -log(exp(own) / (exp(own) + sum of exp(others))) over the 2B states, as in SimCLR (Chen et al. 2020, eq. 1).

    ``own`` is the cosine with the same user's other state, divided by the temperature; others are both states of the users with
    another target. It works in blocks of rows, so that the 2B x 2B cosines are never held at once.
    """
    n = 2 * len(one_BD)
    unit_ND = unit_rows(torch.cat([one_BD, other_BD]).float())
    scaled_ND, target_N = unit_ND / temperature, torch.cat([target_B, target_B])
    place_N = torch.arange(n, device=unit_ND.device)
    partner_N = place_N.roll(n // 2)
    total = unit_ND.new_zeros(())
    for rows in torch.split(place_N, max(1, CHUNK_ELEMENTS // n)):
        never_CN = target_N[rows][:, None] == target_N
        never_CN[place_N[: len(rows)], partner_N[rows]] = False
        given: tuple[Any, ...] = (unit_ND[rows], scaled_ND, never_CN, partner_N[rows])
        total = total + checkpoint(_row_losses, *given, use_reentrant=False, preserve_rng_state=False)
    return total / n


class Contrast:
    """The contrastive loss of a recipe, on the last state of each history of a batch (torch's global random state)."""

    def __init__(self, options: ContrastiveOptions, batches: TrainingBatches) -> None:
        self.options = options
        self.same_target = SameTarget(batches) if "same-target" in options.views else None

    def views(self, batch: Batch) -> list[Batch]:
        """What is to go through the model beside the batch, the same users in the same order."""
        random = np.random.default_rng(int(torch.randint(2**62, ())))
        made = []
        for view in self.options.views:
            if view == "dropout":
                made.append(batch)
            elif view == "edits":
                made += [edited(batch, self.options, random) for _ in range(2)]
            else:
                assert self.same_target is not None and batch.target_row_T is not None
                made.append(self.same_target.draw(batch.target_row_T[_last(batch)].numpy(), random))
        return made

    def loss(self, batch: Batch, hidden_TD: torch.Tensor, views: list[tuple[Batch, torch.Tensor]]) -> torch.Tensor:
        """The weighted loss; ``views`` are those of the batch, each with its hidden states [T of the view, D]."""
        assert batch.target_T is not None
        own_BD, target_B = hidden_TD[_last(batch)], batch.target_T[_last(batch)]
        states = iter([seen_TD[_last(view)] for view, seen_TD in views])
        losses = [
            info_nce(next(states) if view == "edits" else own_BD, next(states), target_B, self.options.temperature)
            for view in self.options.views
        ]
        return self.options.weight * torch.stack(losses).mean()


def _last(batch: Batch) -> torch.Tensor:
    return batch.offsets_B1[1:] - 1
