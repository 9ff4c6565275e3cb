"""Regeneration of a log in the manner of DR4SR and DR4SR+ (Yin et al. 2024, "Dataset Regeneration for Sequential Recommendation",
KDD, arXiv 2405.17795).

As in the paper: patterns are mined (short runs of items that several users have within a window), a regenerator learns to give a
user's patterns after the user's sequence, with a diversity control of K latent styles, since one sequence has many patterns; and
inference is hybrid, each next item drawn from the whole catalogue or from the user's own items. What is regenerated comes in as
new sequences beside the old ones. The personalised weights of DR4SR+ are the step ``personalise`` with ``by = "regenerated"``.

Unlike the paper's encoder and decoder, the regenerator here is one causal SASRec over (sequence, style, pattern), and the style
of a pair is the one under which it is likeliest (multiple choice learning; Guzman-Rivera et al. 2012), where the paper mixes
latent vectors. Letters: V items, K styles, J pairs of a user and a pattern, L items of a pattern.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch.nn import functional as F

from largerec.batches import Batch
from largerec.columns import next_ids
from largerec.curate.rows import Change, Training
from largerec.curate.versions import MADE
from largerec.cures.patterns import frequent
from largerec.cures.rows import learned, sequences_of
from largerec.heads import HeadOptions, ItemHead
from largerec.learner import LearnerOptions
from largerec.models import SASRecOptions, build_model
from largerec.optim import OptimOptions, build_optimizer, learning_rate_at
from largerec.options import Options
from largerec.sequences import Sequences

MOST_PAIRS = 200_000


class RegenerateStep(Options):
    """Add sequences that a model of the log's patterns makes, one for each user and style.

    ``length``: items of a pattern, in order within ``window`` events, that at least ``users`` users have. ``styles`` (K): kinds
    of pattern of one sequence. ``own_items``: probability that a next item is drawn from the user's own items instead of all
    (the paper's hybrid inference). ``share``: regenerated events, at most, as a share of the log's. ``weight``: theirs.
    """

    draws: ClassVar[bool] = True
    makes_rows: ClassVar[bool] = True
    name: Literal["regenerate"] = "regenerate"
    length: int = Field(3, ge=2, le=5)
    window: int = Field(5, ge=2, le=8)
    users: int = Field(2, ge=2)
    styles: int = Field(5, ge=1)
    own_items: float = Field(0.5, ge=0, le=1)
    share: float = Field(0.5, gt=0)
    weight: float = Field(1.0, gt=0)
    learner: LearnerOptions = LearnerOptions()

    def change(self, training: Training) -> Change:
        """Adds sequences, each of a new user. Rows of weight 0 are not read: they would come back as something to learn."""
        training = learned(training)
        if not len(training):
            return Change(added=_none(training), facts={"note": "every row has weight 0, so there is nothing to regenerate"})
        sequences = sequences_of(training)
        pattern_PL, _, user_J, pattern_J = frequent(sequences, self.length, self.window, self.users)
        facts: dict[str, Any] = {"patterns": len(pattern_PL), "pairs": len(user_J)}
        if not len(pattern_PL):
            facts["note"] = "no run of items is shared by so many users, so nothing is regenerated"
            return Change(added=_none(training), facts=facts)
        random = np.random.default_rng([training.seed, 41])
        if len(user_J) > MOST_PAIRS:
            some = np.sort(random.permutation(len(user_J))[:MOST_PAIRS])
            user_J, pattern_J = user_J[some], pattern_J[some]
        made = Regenerator(sequences, self, training.seed)
        made.learn(user_J, pattern_PL[pattern_J])
        users = np.unique(user_J)
        asked_A = np.repeat(users, self.styles)
        style_A = np.tile(np.arange(self.styles), len(users))
        most = max(1, int(self.share * len(sequences.item_N) / self.length))
        if len(asked_A) > most:
            some = np.sort(random.permutation(len(asked_A))[:most])
            asked_A, style_A = asked_A[some], style_A[some]
        item_AL = made.generate(asked_A, style_A, random)
        pair_AL1 = np.concatenate([asked_A[:, None], item_AL], axis=1)
        first = np.sort(np.unique(pair_AL1, axis=0, return_index=True)[1])  # styles that agree say it once
        added = self._rows(training, sequences, asked_A[first], item_AL[first])
        known = {tuple(pattern) for pattern in pattern_PL.tolist()}
        facts |= {
            "sequences": len(first),
            "of_mined_patterns": float(np.mean([tuple(one) in known for one in item_AL[first].tolist()])),
            "style_shares": (np.bincount(made.style_J, minlength=self.styles) / max(1, len(made.style_J))).round(3).tolist(),
        }
        return Change(added=added, facts=facts)

    def _rows(self, training: Training, sequences: Sequences, user_A: np.ndarray, item_AL: np.ndarray) -> pl.DataFrame:
        """Rows of new users: the items at the times of the last events of the user that they come from."""
        log, length = training.ordered, item_AL.shape[1]
        end_A, start_A = sequences.offsets_U1[user_A + 1], sequences.offsets_U1[user_A]
        row_AL = np.maximum(start_A[:, None], end_A[:, None] - length + np.arange(length))
        copied: pl.DataFrame = log.events[log.row_N[row_AL.reshape(-1)]]
        ids = new_ids(training.user_ids, len(user_A)).gather(np.repeat(np.arange(len(user_A)), length))
        columns = ["user_id", "item_id", "timestamp", "train_weight", MADE]
        return copied.with_columns(
            ids.alias("user_id"),
            log.item_ids.gather(item_AL.reshape(-1)).cast(copied.schema["item_id"]).alias("item_id"),
            pl.lit(self.weight).alias("train_weight"),
            pl.lit(True).alias(MADE),
        ).select(*columns, *(["behavior"] if "behavior" in copied.columns else []))


def _none(training: Training) -> pl.DataFrame:
    """No rows, but with the column of made ones, so that a later step may ask for it whatever came of this one."""
    return pl.DataFrame(schema={"user_id": training.user_ids.dtype, MADE: pl.Boolean})


def new_ids(known: pl.Series, count: int) -> pl.Series:
    """Ids that no user has, of the same type: the next integers, or ``regenerated 0`` and so on."""
    if known.dtype.is_integer():
        return next_ids(known, count)
    taken, names, number = set(known.to_list()), list[str](), 0
    while len(names) < count:
        if (name := f"regenerated {number}") not in taken:
            names.append(name)
        number += 1
    return pl.Series(names, dtype=pl.String)


class Regenerator:
    """A causal model of (sequence, style, pattern): items are tokens 0..V-1, styles V..V+K-1.

    Attributes:
        style_J: the style that each pair took in the last pass.
    """

    def __init__(self, sequences: Sequences, options: RegenerateStep, seed: int) -> None:
        self.sequences, self.options, self.seed = sequences, options, seed
        learner = options.learner
        self.items = len(sequences.item_ids)
        self.context = learner.max_length
        torch.manual_seed(seed)
        shape = SASRecOptions(dropout=learner.dropout, depth=learner.depth, width=learner.width, heads=learner.heads)
        self.model = build_model(shape, self.items + options.styles, self.context + 1 + options.length)
        self.head = ItemHead(HeadOptions(similarity="cosine", temperature=learner.temperature))
        self.optim = OptimOptions(learning_rate=learner.learning_rate, schedule="linear", warmup_steps=20)
        self.optimizer = build_optimizer(self.model, self.optim)
        self.style_J = np.zeros(0, dtype=np.int64)

    def _batch(self, user_B: np.ndarray, style_B: np.ndarray, begun_BL: np.ndarray) -> Batch:
        """The last items of each user, the style, and what of the pattern stands already."""
        offsets_U1, item_N = self.sequences.offsets_U1, self.sequences.item_N
        parts, lengths = [], []
        for user, style, begun in zip(user_B, style_B, begun_BL, strict=True):
            end = offsets_U1[user + 1]
            own = item_N[max(offsets_U1[user], end - self.context) : end]
            parts += [own, [self.items + style], begun]
            lengths.append(len(own) + 1 + len(begun))
        token_T = torch.from_numpy(np.concatenate(parts).astype(np.int64))
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
        return Batch(item_T=token_T, time_T=torch.full_like(token_T, -1), offsets_B1=offsets)

    def _losses(self, user_B: np.ndarray, style_B: np.ndarray, pattern_BL: np.ndarray) -> torch.Tensor:
        """-log P of each pattern after its sequence and style, summed over its items [B]."""
        length = pattern_BL.shape[1]
        batch = self._batch(user_B, style_B, pattern_BL[:, :-1])
        last_B = batch.offsets_B1[1:] - 1
        at_BL = last_B[:, None] - torch.arange(length - 1, -1, -1)
        queries = self.head.queries(self.model(batch).float()[at_BL.reshape(-1)])
        logits = queries @ self.head.keys(self.model.item_table_VD[: self.items]).T
        target = torch.from_numpy(pattern_BL.reshape(-1))
        return F.cross_entropy(logits, target, reduction="none").reshape(-1, length).sum(1)

    def learn(self, user_J: np.ndarray, pattern_JL: np.ndarray) -> None:
        """Learn the pairs; each pass begins by giving each pair the style under which it is likeliest."""
        learner, styles = self.options.learner, self.options.styles
        per_step = max(1, learner.tokens // 8)
        steps, step = -(-len(user_J) // per_step) * learner.epochs, 0
        random = np.random.default_rng([self.seed, 43])
        self.style_J = random.integers(styles, size=len(user_J))
        for epoch in range(learner.epochs):
            if epoch and styles > 1:
                self.style_J = self._likeliest_styles(user_J, pattern_JL, per_step)
            self.model.train()
            order = random.permutation(len(user_J))
            for start in range(0, len(order), per_step):
                some = order[start : start + per_step]
                torch.manual_seed(int(np.random.SeedSequence([self.seed, step, 7]).generate_state(1, np.uint64)[0] >> 1))
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, steps, self.optim, learner.learning_rate)
                self.optimizer.zero_grad(set_to_none=True)
                self._losses(user_J[some], self.style_J[some], pattern_JL[some]).mean().backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
                self.optimizer.step()
                step += 1

    def _likeliest_styles(self, user_J: np.ndarray, pattern_JL: np.ndarray, block: int) -> np.ndarray:
        self.model.eval()
        found = np.empty((len(user_J), self.options.styles), dtype=np.float32)
        with torch.no_grad():
            for start in range(0, len(user_J), block):
                part = slice(start, start + block)
                for style in range(self.options.styles):
                    same = np.full(len(user_J[part]), style)
                    found[part, style] = self._losses(user_J[part], same, pattern_JL[part]).numpy()
        style_J: np.ndarray = found.argmin(axis=1)
        return style_J

    def generate(self, user_A: np.ndarray, style_A: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """One sequence of ``length`` different items for each user and style, drawn item by item [A, L]."""
        self.model.eval()
        begun_AL = np.zeros((len(user_A), 0), dtype=np.int64)
        offsets_U1, item_N = self.sequences.offsets_U1, self.sequences.item_N
        for _ in range(self.options.length):
            chosen = []
            for start in range(0, len(user_A), 512):
                part = slice(start, start + 512)
                batch = self._batch(user_A[part], style_A[part], begun_AL[part])
                with torch.no_grad():
                    queries = self.head.queries(self.model(batch).float()[batch.offsets_B1[1:] - 1])
                    logits = (queries @ self.head.keys(self.model.item_table_VD[: self.items]).T).numpy()
                if begun_AL.shape[1]:
                    np.put_along_axis(logits, begun_AL[part], -np.inf, axis=1)
                own_B = random.random(len(logits)) < self.options.own_items
                for row in np.flatnonzero(own_B):
                    user = user_A[part][row]
                    mine = np.setdiff1d(item_N[offsets_U1[user] : offsets_U1[user + 1]], begun_AL[part][row])
                    if len(mine):
                        kept = logits[row, mine].copy()
                        logits[row] = -np.inf
                        logits[row, mine] = kept
                chosen.append((logits + random.gumbel(size=logits.shape)).argmax(axis=1))
            begun_AL = np.concatenate([begun_AL, np.concatenate(chosen)[:, None]], axis=1)
        return begun_AL
