"""A small model that learns the training rows of a log and says how hard each event is: the material of trained cures.

It sees nothing but training rows: what is measured on them decides what to do with them, and the rows of validation and test
are not even loaded. Letters: M training events grouped by user, in order, of all users; T tokens of a step; V items; D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch.nn import functional as F

from largerec.batches import Batch, BatchOptions, TrainingBatches, pack_training, ranges
from largerec.engine import Engine, ModelScorer
from largerec.engine.scoring import token_blocks
from largerec.errors import Diverged
from largerec.heads import HeadOptions, ItemHead
from largerec.models import SASRecOptions, build_model
from largerec.optim import OptimOptions, build_optimizer, learning_rate_at
from largerec.options import Options
from largerec.sequences import TRAIN, Sequences
from largerec.tokenizers import AtomicTokenizer

Floats = npt.NDArray[np.float64]
Weigh = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(loss [T], row in M of each target [T], epoch) -> weight of each loss [T]; called without gradient."""
SCORE_CELLS = 8_000_000


class LearnerOptions(Options):
    """A SASRec of ``depth`` blocks, cosine scores, and a softmax over the catalogue where it has at most ``negatives`` items,
    else over as many drawn ones. ``max_length`` inputs a window, ``tokens`` a step, ``epochs`` passes.
    """

    width: int = Field(64, ge=4)
    depth: int = Field(1, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    max_length: int = Field(50, ge=1)
    tokens: int = Field(1024, ge=1)
    epochs: int = Field(12, ge=1)
    learning_rate: float = Field(0.003, gt=0)
    temperature: float = Field(0.08, gt=0)
    negatives: int = Field(512, ge=1)


def training_rows(sequences: Sequences) -> tuple[Sequences, np.ndarray]:
    """The training rows alone, as sequences of M events that are all of training, and their rows in the whole ones [M].

    Users without one keep an empty place; items keep their numbers.
    """
    rows_M = np.flatnonzero(sequences.stage_N == TRAIN)
    kept_N1 = np.concatenate([[0], np.cumsum(sequences.stage_N == TRAIN)])
    behaviour_N = sequences.behaviour_N
    only = replace(
        sequences,
        offsets_U1=kept_N1[sequences.offsets_U1],
        item_N=sequences.item_N[rows_M],
        time_N=sequences.time_N[rows_M],
        stage_N=sequences.stage_N[rows_M],
        behaviour_N=None if behaviour_N is None else behaviour_N[rows_M],
        weight_N=None if sequences.weight_N is None else sequences.weight_N[rows_M],
        tasks=(),
        label_NA=None,
        edges={},
        positive_N=None,
        lists=None,
        log_row_N=None,
        propensity_N=None,
    )
    return only, rows_M


def backwards(sequences: Sequences) -> tuple[Sequences, np.ndarray]:
    """Every user's training rows in reverse order, for a model that predicts an event from those after it; and where each row
    stood before [M]. All rows must be of training."""
    assert (sequences.stage_N == TRAIN).all(), "only training rows may be turned round"
    start_U, end_U = sequences.offsets_U1[:-1], sequences.offsets_U1[1:]
    user_M = sequences.user_N
    turned_M = start_U[user_M] + end_U[user_M] - 1 - np.arange(len(user_M))
    behaviour_N = sequences.behaviour_N
    turned = replace(
        sequences,
        item_N=sequences.item_N[turned_M],
        time_N=sequences.time_N[turned_M],
        behaviour_N=None if behaviour_N is None else behaviour_N[turned_M],
        weight_N=None if sequences.weight_N is None else sequences.weight_N[turned_M],
    )
    return turned, turned_M


@dataclass(frozen=True)
class Halves:
    """Two halves of the users, drawn with a seed: what one half's model says of the other half's events is out of fold."""

    first_U: npt.NDArray[np.bool_]

    @classmethod
    def drawn(cls, users: int, seed: int) -> Halves:
        first_U = np.zeros(users, dtype=bool)
        first_U[np.random.default_rng([seed, 17]).permutation(users)[: users // 2]] = True
        return cls(first_U)


class Learner:
    """The small model on the training rows of ``sequences``; the others are held out, and only ``engine`` reads them.

    ``learn_U``: users to learn from, all when not given. Losses are asked of training rows, of all users.
    """

    def __init__(
        self, sequences: Sequences, options: LearnerOptions | None = None, seed: int = 0, learn_U: np.ndarray | None = None
    ) -> None:
        self.options, self.seed = options or LearnerOptions(), seed
        self.options = options = self.options
        self.sequences = sequences
        # The catalogue is of all rows, so that rows and tokens are numbered alike; items that are only held out are never
        # learned.
        tokenizer = AtomicTokenizer.fit(replace(sequences, stage_N=np.zeros_like(sequences.stage_N)))
        self.token_of_item = tokenizer.encode(sequences.item_ids)
        batch = BatchOptions(max_length=options.max_length, tokens=options.tokens, window="all")
        self.batches = TrainingBatches(sequences, self.token_of_item, batch, seed)
        if learn_U is not None:
            self._keep_windows(learn_U)
        torch.manual_seed(seed)
        shape = {"depth": options.depth, "width": options.width, "heads": options.heads}
        model = SASRecOptions(dropout=options.dropout, **shape)
        self.model = build_model(model, tokenizer.size, options.max_length)
        self.head = ItemHead(HeadOptions(similarity="cosine", temperature=options.temperature))
        self.optim = OptimOptions(learning_rate=options.learning_rate, schedule="linear", warmup_steps=20)
        self.optimizer = build_optimizer(self.model, self.optim)
        # Of the schedule alone: passes differ by a batch or two, and the figures of trained cures were measured with this end.
        self.total_steps = options.epochs * len(self.batches.windows_of(0))
        self.step, self.size = 0, tokenizer.size
        counts_V = torch.from_numpy(tokenizer.counts_V.astype(np.float64))
        law_V = 0.5 * counts_V / counts_V.sum() + 0.5 / tokenizer.size
        self.cumulative_V, self.log_q_V = law_V.cumsum(0), law_V.log().float()
        scorer = ModelScorer(self.model, self.head, tokenizer.counts_V, options.max_length, query_time=False)
        self.engine = Engine(scorer, tokenizer, sequences)

    def _keep_windows(self, learn_U: np.ndarray) -> None:
        batches = self.batches
        user_W = np.searchsorted(batches.end_U, batches.start_W, side="right")
        kept_W = np.flatnonzero(learn_U[user_W])
        batches.start_W, batches.end_W = batches.start_W[kept_W], batches.end_W[kept_W]
        batches.room_W, batches.asked_W = batches.room_W[kept_W], batches.asked_W[kept_W]

    # --- learning

    def learn(self, weigh: Weigh | None = None, after_epoch: Callable[[int], None] | None = None) -> Learner:
        """All epochs. ``weigh``: weights of the losses of a step, for instance 0 for those to leave out.

        Raises:
            Diverged: a loss is no number any more.
        """
        for epoch in range(self.options.epochs):
            self.epoch(epoch, weigh)
            if after_epoch is not None:
                after_epoch(epoch)
        return self

    def epoch(self, epoch: int, weigh: Weigh | None = None) -> None:
        """One pass over the windows."""
        self.model.train()
        for batch in self.batches.epoch(epoch):
            assert batch.target_T is not None and batch.target_row_T is not None
            torch.manual_seed(int(np.random.SeedSequence([self.seed, self.step]).generate_state(1, np.uint64)[0] >> 1))
            rate = learning_rate_at(self.step, self.total_steps, self.optim, self.options.learning_rate)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            loss_T = self.loss(batch)
            assert batch.loss_mask_T is not None  # weights that are all 0 or alike come as the mask alone
            weight_T = batch.loss_mask_T.to(loss_T.dtype)
            if batch.weight_T is not None:
                weight_T = weight_T * batch.weight_T.to(loss_T.dtype)
            if weigh is not None:
                weight_T = weight_T * weigh(loss_T.detach(), batch.target_row_T, epoch)
            total = (loss_T * weight_T).sum() / weight_T.sum().clamp_min(1e-9)
            if not math.isfinite(float(total.detach())):
                raise Diverged(f"the small model's loss is {float(total.detach())} at step {self.step}; lower its learning_rate.")
            total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
            self.optimizer.step()
            self.step += 1

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of each target, over all items or over drawn ones corrected by their law [T]."""
        assert batch.target_T is not None
        queries_TD = self.head.queries(self.model(batch).float())
        table_VD = self.model.item_table_VD
        if self.size <= self.options.negatives:
            return F.cross_entropy(queries_TD @ self.head.keys(table_VD).T, batch.target_T, reduction="none")
        draw = torch.rand(self.options.negatives, dtype=torch.float64)
        drawn_K = torch.searchsorted(self.cumulative_V, draw).clamp_max(self.size - 1)
        logits_TK = queries_TD @ self.head.keys(F.embedding(drawn_K, table_VD)).T
        logits_TK = logits_TK - self.log_q_V[drawn_K] - math.log(len(drawn_K))
        logits_TK = logits_TK.masked_fill(drawn_K[None] == batch.target_T[:, None], -math.inf)
        own_T = (queries_TD * self.head.keys(F.embedding(batch.target_T, table_VD))).sum(1)
        return torch.logsumexp(torch.cat([own_T[:, None], logits_TK], dim=1), 1) - own_T

    # --- what it says of events

    def states(self, wanted_M: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """(rows [C], state before each as a query of the item table [C, D]) in blocks, each wanted row with a history once.

        A long user is read in windows that overlap by half, so that each event has at least half a window of history or
        all of it.
        """
        self.model.eval()
        offsets_U1 = self.sequences.offsets_U1
        start_W, end_W, fresh_W = overlapping_windows(offsets_U1[:-1], offsets_U1[1:] - 1, self.options.max_length)
        with torch.no_grad():
            for a, b in token_blocks(end_W - start_W):
                batch = pack_training(self.batches.rows, start_W[a:b], end_W[a:b])
                row_C = ranges(start_W[a:b] + 1, end_W[a:b] - start_W[a:b])
                new_C = row_C > np.repeat(fresh_W[a:b], end_W[a:b] - start_W[a:b])
                new_C &= wanted_M[row_C] if wanted_M is not None else True
                if new_C.any():
                    yield row_C[new_C], self.head.queries(self.model(batch).float())[torch.from_numpy(new_C)]

    def keys(self) -> torch.Tensor:
        """The item table as scores use it [V, D]."""
        with torch.no_grad():
            return self.head.keys(self.model.item_table_VD.detach()).float()

    def log_probabilities(self, wanted_M: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """(rows [C], log P of every item of the catalogue before each [C, V]) in bounded blocks; of all or of wanted rows."""
        keys_VD = self.keys()
        rows = max(1, SCORE_CELLS // self.size)
        for row_C, query_CD in self.states(wanted_M):
            for start in range(0, len(row_C), rows):
                yield row_C[start : start + rows], torch.log_softmax(query_CD[start : start + rows] @ keys_VD.T, 1)

    def losses(self) -> Floats:
        """-log P of every training event given its history, in nats [M]; NaN where it has none (a user's first)."""
        return self.ranks_and_losses()[1]

    def ranks_and_losses(self) -> tuple[Floats, Floats]:
        """Rank in the whole catalogue (inf without a history) and -log P (NaN without one) of every training event [M each]."""
        token_M = torch.from_numpy(self.batches.rows.token_M)
        rank_M, loss_M = np.full(len(token_M), np.inf), np.full(len(token_M), np.nan)
        for row_C, log_CV in self.log_probabilities():
            own_C1 = log_CV.gather(1, token_M[row_C][:, None])
            loss_M[row_C] = -own_C1[:, 0].double().numpy()
            rank_M[row_C] = 1 + (log_CV > own_C1).sum(1).numpy()
        return rank_M, loss_M

    def misses_of_rows(self, row_A: np.ndarray) -> Iterator[torch.Tensor]:
        """The summed 1 - P of some rows (held-out ones too), in blocks, each with its gradient; rows need a history."""
        rows = self.batches.rows
        user_A = np.searchsorted(self.sequences.offsets_U1, row_A, side="right") - 1
        start_A = np.maximum(self.sequences.offsets_U1[user_A], row_A - self.options.max_length)
        assert (row_A > start_A).all(), "a row has no history"
        for a, b in token_blocks(row_A - start_A):
            batch = pack_training(rows, start_A[a:b], row_A[a:b])
            assert batch.target_T is not None
            last = batch.offsets_B1[1:] - 1
            queries = self.head.queries(self.model(batch).float()[last])
            chosen = torch.softmax(queries @ self.head.keys(self.model.item_table_VD).T, 1).gather(
                1, batch.target_T[last][:, None]
            )
            yield (1 - chosen).sum()


def overlapping_windows(first_U: np.ndarray, last_U: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of at most ``length`` inputs that go on by half their length: first row, end, and the row up to which another
    window predicts. Inputs are the rows first..last of each user, of which each predicts the one after it."""
    some = last_U > first_U
    first_U, last_U = first_U[some], last_U[some]
    half = max(1, length // 2)
    count_U = 1 + np.maximum(0, -(-(last_U - first_U - length) // half))
    step_W = ranges(np.zeros_like(count_U), count_U)
    end_W = np.repeat(last_U, count_U) - step_W * half
    first_W = np.repeat(first_U, count_U)
    start_W = np.maximum(first_W, end_W - length)
    fresh_W = np.where(step_W == np.repeat(count_U, count_U) - 1, first_W, end_W - half)
    return start_W, end_W, fresh_W


def out_of_fold_losses(sequences: Sequences, options: LearnerOptions, seed: int) -> Floats:
    """:meth:`Learner.losses` of each half of the users by a model that learned from the other half [M]."""
    halves = Halves.drawn(sequences.n_users, seed)
    found_M = np.full(int((sequences.stage_N == TRAIN).sum()), np.nan)
    user_M = sequences.user_N[sequences.stage_N == TRAIN]
    for side in (True, False):
        learner = Learner(sequences, options, seed, halves.first_U == side).learn()
        asked_M = halves.first_U[user_M] != side
        found_M[asked_M] = learner.losses()[asked_M]
    return found_M
