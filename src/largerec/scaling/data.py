"""What all runs of a grid share: the split log, the validation targets, and what is known of them and of the training rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import torch

from largerec.audit.information import SAMPLE, entropies
from largerec.audit.ordered import Ordered
from largerec.batches import TrainingBatches, ranges
from largerec.engine import Engine
from largerec.engine.scoring import mask_seen, query_blocks, ranks
from largerec.errors import LargeRecError
from largerec.evaluate import asking_of
from largerec.objectives import BCEOptions, GBCEOptions, SampledSoftmaxOptions
from largerec.oracle import Histories, negative_log, next_item_probabilities
from largerec.recipe import Recipe
from largerec.split_log import SplitLog
from largerec.world import World

SEED = 0
"""Of the targets: the same for all grids and runs on a log, whatever their own seeds."""


@dataclass(frozen=True)
class GridPart:
    """One version of the log, split; the rows there of the validation targets [N], in one order for all versions; and of a
    generated log the exact law's cross-entropy on them."""

    split: SplitLog
    token_of_item: np.ndarray
    row_N: np.ndarray
    irreducible: float | None

    @cached_property
    def popularity(self) -> float:
        """Cross-entropy of the training counts (and one more of each item) on the targets, in nats."""
        count_V = self.split.tokenizer.counts_V + 1.0
        token_N = self.token_of_item[self.split.sequences.item_N[self.row_N]]
        return float(np.log(count_V.sum()) - np.log(count_V[token_N]).mean())

    def batches(self, recipe: Recipe) -> TrainingBatches:
        """What a run of the grid trains on."""
        return TrainingBatches(self.split.sequences, self.token_of_item, recipe.batch, recipe.seed)

    def entropy(self, batches: TrainingBatches) -> float | None:
        """Approximate entropy of the training sequences that a run reads, in nats an event, after one item. Of the first million
        events where there are more; it depends on which events are on the same item, not on how items are numbered."""
        first_U, length_U = batches.first_U, np.maximum(batches.end_U - batches.first_U, 0)
        length_U = np.where(np.cumsum(length_U) <= SAMPLE, length_U, 0)
        item_N = batches.rows.token_M[ranges(first_U, length_U)].astype(np.int32)
        some = Ordered(
            events=pl.DataFrame(),
            user_N=np.repeat(np.arange(len(length_U), dtype=np.int32), length_U),
            item_N=item_N,
            time_N=np.zeros(len(item_N), dtype=np.int64),
            row_N=np.arange(len(item_N)),
            offsets_U1=np.concatenate([[0], np.cumsum(length_U)]),
            user_ids=pl.Series(np.arange(len(length_U))),
            item_ids=pl.Series(np.arange(self.split.tokenizer.size)),
            items=None,
            time_kind="order",
            source="training rows",
        )
        bits = entropies(some, 1)[0] if len(item_N) else None
        return None if bits is None else bits * math.log(2)


@dataclass(frozen=True)
class GridData:
    """The versions of a log that a grid trains on, by path; None is the recipe's own log."""

    parts: dict[str | None, GridPart]

    def part(self, version: str | None) -> GridPart:
        return self.parts[version]

    @classmethod
    def of(cls, recipe: Recipe) -> GridData:
        """Read a recipe's log and its versions once, and draw as many targets as its grid asks for: such that every version has
        them and has seen, in training, their items and something of their histories.

        Raises:
            LargeRecError: the recipe's loss or tasks fit no grid, the data is wrong, or no target is left.
        """
        _check(recipe)
        splits: dict[str | None, SplitLog] = {}
        for version in recipe.scale.versions or (None,):
            own = recipe.data if version is None else recipe.data.model_copy(update={"path": version})
            splits[version] = SplitLog.of(recipe.model_copy(update={"data": own}))
        tokens = {version: split.tokenizer.encode(split.sequences.item_ids) for version, split in splits.items()}
        rows = _targets([(splits[version], tokens[version]) for version in splits], recipe.scale.targets)
        return cls(
            {
                version: GridPart(splits[version], tokens[version], row_N, _irreducible(recipe, splits[version], row_N))
                for version, row_N in zip(splits, rows, strict=True)
            }
        )


def _targets(logs: list[tuple[SplitLog, np.ndarray]], most: int) -> list[np.ndarray]:
    """Rows of the same validation targets in each log: at most so many, drawn with a seed of their own; [N] each."""
    (first, first_tokens), *others = logs
    shared = _askable(first, first_tokens)
    for split, tokens in others:
        shared = shared.join(_askable(split, tokens).drop("row"), on=KEYS, how="semi", maintain_order="left")
    if not shared.height:
        said = "no validation target, after a history, is an item that training has seen"
        said += ", in all versions alike" if others else ""
        raise LargeRecError(f"{said}, so that no loss can be measured.")
    if shared.height > most:
        shared = shared[np.sort(np.random.default_rng(SEED).choice(shared.height, most, replace=False))]
    found = [shared["row"].to_numpy()]
    for split, tokens in others:
        own = shared.select(KEYS).join(_askable(split, tokens), on=KEYS, how="left", maintain_order="left")
        found.append(own["row"].to_numpy())
    return found


KEYS = ["user_id", "item_id", "timestamp"]


def _askable(split: SplitLog, token_of_item: np.ndarray) -> pl.DataFrame:
    """Validation targets that a model answers with probabilities: of items that training has seen, after a history that holds one
    (others get the popularity list). ``KEYS`` and ``row``; of equal ones the first."""
    sequences = split.sequences
    known_N = token_of_item[sequences.item_N] >= 0
    known_N1 = np.concatenate([[0], np.cumsum(known_N)])
    row_N = sequences.targets("validation")
    user_N = np.searchsorted(sequences.offsets_U1, row_N, side="right") - 1
    asked_N = known_N[row_N] & (known_N1[row_N] > known_N1[sequences.offsets_U1[user_N]])
    row_N, user_N = row_N[asked_N], user_N[asked_N]
    values = (sequences.user_ids.gather(user_N), sequences.item_ids.gather(sequences.item_N[row_N]), sequences.time_N[row_N])
    frame = pl.DataFrame(dict(zip(KEYS, values, strict=True)) | {"row": row_N})
    return frame.unique(KEYS, keep="first", maintain_order=True)


def _check(recipe: Recipe) -> None:
    objective = recipe.objective
    if isinstance(objective, BCEOptions | GBCEOptions) or (isinstance(objective, SampledSoftmaxOptions) and not objective.logq):
        raise LargeRecError(
            f"objective.name={objective.name!r} as it is set learns no probabilities over the catalogue, whose cross-entropy a "
            "grid measures; choose softmax, or sampled-softmax with objective.logq=true."
        )
    if recipe.tasks:
        raise LargeRecError("a grid measures the cross-entropy of next items, and this recipe has tasks; take those out.")


def _irreducible(recipe: Recipe, split: SplitLog, row_N: np.ndarray) -> float | None:
    """Mean -log P of the targets by the exact law of a generated log, in nats; None where there is no such law."""
    if recipe.data.path is not None or recipe.scale.versions or recipe.data.faults.any or recipe.split.positives is not None:
        return None
    world = World(recipe.data.simulate)
    histories = Histories.of(world, split.sequences)
    law_QV = next_item_probabilities(world, histories, row_N, asking_of(recipe, split.sequences, "validation"))
    return float(negative_log(law_QV, histories.item_N[row_N]).mean())


def judge(engine: Engine, row_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of each target in nats, by the softmax of the scores over the whole catalogue (items that were seen too, as
    in training), and its masked rank. [N] each"""
    queries = engine.queries_at(row_N)
    target_N = torch.from_numpy(engine.token_of_item[engine.sequences.item_N[row_N]])
    losses, found = [], []
    for start, block in query_blocks(queries, engine.scorer.size):
        target_Q = target_N[start : start + len(block)]
        scores_QV = engine.scorer.scores(block)
        losses.append(scores_QV.double().logsumexp(1) - scores_QV.gather(1, target_Q[:, None])[:, 0].double())
        mask_seen(scores_QV, block)
        found.append(ranks(scores_QV, target_Q))
    return torch.cat(losses).numpy(), torch.cat(found).numpy()
