"""The shuffle test: does the order of a user's events say anything that a model can use?

A small model learns to predict each user's last training event from those before it. Its twin learns the same from a log in which
each user's events are put in a random order (the last one stays, it is the question), and is asked with the same shuffled
histories. What the twin loses is what order is worth. Beside it stands what a model loses that learned from the true order and is
asked with shuffled histories (Klenitskiy et al. 2024, "Does It Look Sequential?", which tests only that); it is larger, since
that model never learned to do without.

Validation and test are not read: the question is the last *training* event.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from largerec import metrics
from largerec.engine import Engine
from largerec.errors import LargeRecError
from largerec.evaluate import measure
from largerec.events import EventLog
from largerec.learner import Learner, LearnerOptions, training_rows
from largerec.paired import Paired
from largerec.sequences import TRAIN, VALIDATION, Sequences, SplitOptions, build_sequences

SEEDS = (0, 1, 2)
K = 10
SHORTEST = 3  # training events of a user who is asked
MOST_EVENTS = 200_000  # of a sample of users, where the log is longer
MUCH = 0.1  # relative loss from which order matters much
FEW = 200  # questions below which the verdict says so


def held_out(sequences: Sequences, most: int = MOST_EVENTS, seed: int = 0) -> Sequences:
    """Training rows alone, of a sample of users where there are more than ``most``; each user's last is the question.

    Raises:
        LargeRecError: no user has three training events.
    """
    only, _ = training_rows(sequences)
    length_U = np.diff(only.offsets_U1)
    drawn = np.random.default_rng(seed).permutation(len(length_U))
    few = drawn[: max(1, int(np.searchsorted(np.cumsum(length_U[drawn]), most, side="right")))]
    kept_U = np.zeros(len(length_U), dtype=bool)
    kept_U[few] = True
    kept_M = kept_U[only.user_N]
    behaviour_N = only.behaviour_N
    offsets_U1 = np.concatenate([[0], np.cumsum(np.where(kept_U, length_U, 0))])
    stage_M = np.full(int(offsets_U1[-1]), TRAIN, dtype=np.int8)
    stage_M[offsets_U1[1:][np.diff(offsets_U1) >= SHORTEST] - 1] = VALIDATION
    if not (stage_M == VALIDATION).any():
        raise LargeRecError("the shuffle test needs users with three training events, but here is none; bring a longer log.")
    return replace(
        only,
        offsets_U1=offsets_U1,
        item_N=only.item_N[kept_M],
        time_N=only.time_N[kept_M],
        stage_N=stage_M,
        behaviour_N=None if behaviour_N is None else behaviour_N[kept_M],
        weight_N=None,
        targets_per_user="all",
    )


def shuffled(sequences: Sequences, seed: int) -> Sequences:
    """The same log with each user's training events in a random order; the times stay where they are."""
    rows = np.flatnonzero(sequences.stage_N == TRAIN)
    user_R = sequences.user_N[rows]
    moved = rows[np.lexsort((np.random.default_rng([seed, 31]).random(len(rows)), user_R))]
    item_N = sequences.item_N.copy()
    item_N[rows] = sequences.item_N[moved]
    behaviour_N = None if sequences.behaviour_N is None else sequences.behaviour_N.copy()
    if behaviour_N is not None and sequences.behaviour_N is not None:
        behaviour_N[rows] = sequences.behaviour_N[moved]
    return replace(sequences, item_N=item_N, behaviour_N=behaviour_N)


def shuffle_test(
    sequences: Sequences, seeds: tuple[int, ...] = SEEDS, options: LearnerOptions | None = None, level: float = 0.95
) -> dict[str, Any]:
    """Train both twins with each seed and say what shuffling loses.

    Returns ``ordered``, ``shuffled`` and ``asked_shuffled`` (NDCG@10, the last: learned in order, asked out of order), ``loss``
    and ``loss_asked`` (``difference`` and ``relative``, each with its interval over users and seeds), ``verdict``, ``said``,
    ``targets``, ``seeds``, ``seconds``.

    Raises:
        LargeRecError: no user has three training events.
    """
    started, options = time.perf_counter(), options or LearnerOptions()
    true = held_out(sequences)
    rows = true.targets("validation")
    values: dict[str, list[np.ndarray]] = {"ordered": [], "shuffled": [], "asked_shuffled": []}
    for seed in seeds:
        mixed = shuffled(true, seed)
        learned = Learner(true, options, seed).learn().engine
        twin = Learner(mixed, options, seed).learn().engine
        for engine in (learned, twin):
            engine.scorer.prepared()  # type: ignore[attr-defined]
        beside = Engine(learned.scorer, learned.tokenizer, mixed)
        for name, engine in zip(values, (learned, twin, beside), strict=True):
            values[name].append(metrics.ndcg(measure(engine, rows).rank_N, K))
    paired = Paired({name: np.stack(one) for name, one in values.items()}, rows, level=level)
    loss = paired.gain("ordered", "shuffled")
    relative = paired.of(lambda mean: 1 - mean["shuffled"] / mean["ordered"])
    asked = paired.of(lambda mean: 1 - mean["asked_shuffled"] / mean["ordered"])
    verdict, said = _verdict(relative, len(rows), level)
    return {
        "metric": f"ndcg@{K}",
        **paired.mean,
        "loss": {"difference": loss["difference"], "relative": relative},
        "loss_asked": {"difference": paired.gain("ordered", "asked_shuffled")["difference"], "relative": asked},
        "verdict": verdict,
        "said": said,
        "targets": len(rows),
        "seeds": list(seeds),
        "level": level,
        "seconds": round(time.perf_counter() - started, 1),
    }


def shuffle_test_of(log: EventLog, split: SplitOptions) -> dict[str, Any]:
    """:func:`shuffle_test` on the training part of a log.

    Raises:
        LargeRecError: the log cannot be split, or as :func:`shuffle_test`.
    """
    return shuffle_test(build_sequences(log, split))


def _verdict(relative: dict[str, float | None], targets: int, level: float) -> tuple[str, str]:
    value, low, high = (relative[name] for name in ("value", "low", "high"))
    few = f" There are only {targets} questions; more users would say more." if targets < FEW else ""
    if value is None or low is None or high is None:
        return "unknown", f"The small model finds nothing in this log, so the test says nothing.{few}"
    numbers = f"{value:.1%} of its NDCG@{K} ({level:.0%} interval {low:.1%} to {high:.1%})"
    if low > 0 and value >= MUCH:
        return "order matters", f"Order matters: a small model loses {numbers} when each user's order is shuffled.{few}"
    if low > 0:
        return "order matters little", f"Order matters little: a small model loses only {numbers} when it is shuffled.{few}"
    if high < 0:
        return (
            "order misleads",
            f"Order misleads: shuffled, a small model gains {-value:.1%} (interval {-high:.1%} to {-low:.1%}). Look for wrong "
            f"times (largerec audit).{few}",
        )
    return "no sign of order", f"No sign that order matters: a small model loses {numbers}, which may be nothing.{few}"
