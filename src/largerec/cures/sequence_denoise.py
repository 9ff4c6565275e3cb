"""Denoising of sequences from two directions, in the manner of HSD (Zhang et al. 2022, "Hierarchical Item Inconsistency Signal
Learning for Sequence Denoising in Sequential Recommendation", CIKM).

HSD asks of each event two things: does it fit the sequence, read from the left and from the right, and does it fit what the user
is interested in? Here two small models, one of histories and one of histories turned round, give the probability of an event from
its left and from its right context, out of fold; counts of which items share users (as in ``audit.misclicks``) stand for
interest. HSD learns what inconsistent means by Gumbel draws inside one recommender. Here it is learned from mis-clicks that are
made up: a random item in a random place of the same histories, of which all signals are known. A logistic regression tells them
from the log's own events, so its odds are the density ratio f1 / f of a mis-click and any event; the share pi of mis-clicks is
bounded by how few events look like made-up ones, and pi f1 / f is the probability that an event is one (the two-groups model of
Efron 2008). An event that is left in haste is likelier to be one.

Letters: N training events, V items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.optimize import minimize

from largerec.audit import misclicks
from largerec.audit.ordered import Ordered
from largerec.curate.rows import Change, Training
from largerec.cures.rows import Bools, Floats, sequences_of, without
from largerec.errors import LargeRecError
from largerec.learner import Halves, Learner, LearnerOptions, backwards
from largerec.options import Options
from largerec.sequences import Sequences

HASTE = 0.3  # exponent of the law of a mis-click's pause, as a share u of all pauses: density HASTE * u ** (HASTE - 1)
FEWEST = 30  # events from which a share is read


class SequenceDenoiseStep(Options):
    """Take out, or weigh less, events that fit neither what came before nor what came after.

    ``certainty``: the probability of being a mis-click from which an event goes. ``weigh`` takes none out: its target counts as
    much as it is probably meant. ``haste``: heed the pause after an event, where the log has a clock.
    """

    draws: ClassVar[bool] = True
    name: Literal["sequence-denoise"] = "sequence-denoise"
    certainty: float = Field(0.5, gt=0, lt=1)
    action: Literal["remove", "history", "weigh"] = "remove"
    haste: bool = True
    learner: LearnerOptions = LearnerOptions()

    def change(self, training: Training) -> Change:
        """Takes out what is probably not meant."""
        probability_N, share = self.probabilities(training)
        facts = {"estimated_share": share, "mean_probability": float(probability_N.mean())}
        if self.action == "weigh":
            return Change(factor_R=training.of_rows(1 - probability_N), facts=facts)
        return without(
            training, probability_N >= self.certainty, "fits neither what came before nor what came after", self.action, facts
        )

    def probabilities(self, training: Training) -> tuple[Floats, float]:
        """Probability of each event to be a mis-click [N], 0 where it has no neighbour, and the estimated share of mis-clicks."""
        signals = Signals.of(training, self.learner)
        ratio_N, made_up_M = signals.log_ratios()
        share = estimated_share(ratio_N[signals.judged_N], made_up_M)
        probability_N = np.where(signals.judged_N, np.minimum(1.0, share * np.exp(np.minimum(ratio_N, 50))), 0.0)
        if self.haste and training.ordered.has_clock:
            pause_N = np.exp(-misclicks.haste(training.ordered))  # the share of pauses that are no longer; 1 for a last event
            odds_N = probability_N / np.maximum(1 - probability_N, 1e-9) * HASTE * np.maximum(pause_N, 1e-6) ** (HASTE - 1)
            probability_N = odds_N / (1 + odds_N)
        return probability_N, share


@dataclass(frozen=True)
class Signals:
    """What is known of each event, and of a mis-click that is made up before each event that follows another.

    ``own_NS``, ``made_up_MS``: S signals, in the order: log P from the left, from the right, and by popularity; how much the
    event before and the one after foretell each other; mutual information with the one before, the one after, and between these
    two. ``judged_N``: events with a neighbour.
    """

    own_NS: Floats
    made_up_MS: Floats
    judged_N: Bools

    @classmethod
    def of(cls, training: Training, options: LearnerOptions) -> Signals:
        """Train both models on each half of the users and ask them of the other half."""
        log, sequences = training.ordered, sequences_of(training)
        random_N = np.random.default_rng([training.seed, 23]).integers(len(log.item_ids), size=len(log))
        left, right = directions(sequences, random_N, options, training.seed)
        usual_V = np.log((log.count_V + 0.5) / (log.count_V + 0.5).sum())
        usual_N = usual_V[log.item_N]
        follows_N, next_N = log.follows_N, np.append(log.follows_N[1:], False)
        own_left_N, own_right_N = (np.where(np.isnan(one.own_N), usual_N, one.own_N) for one in (left, right))
        both_N = follows_N & next_N
        after_N, before_N = np.roll(log.item_N, -1), np.roll(log.item_N, 1)
        lift_N = np.where(both_N, (left.skip_N - usual_V[after_N] + right.skip_N - usual_V[before_N]) / 2, 0.0)
        own = [own_left_N, own_right_N, usual_N, lift_N, *interest(log, log.item_N, before_N, after_N, follows_N, next_N, 1)]
        slot = np.flatnonzero(follows_N)  # a made-up event stands between slot - 1 and slot
        item_M, yes = random_N[slot], np.ones(len(slot), dtype=bool)
        lift_M = (left.own_N[slot] - usual_N[slot] + right.own_N[slot - 1] - usual_N[slot - 1]) / 2
        shared = interest(log, item_M, log.item_N[slot - 1], log.item_N[slot], yes, yes, 0)
        made_up = [left.random_N[slot], right.random_N[slot - 1], usual_V[item_M], lift_M, *shared]
        return cls(np.stack(own, axis=1), np.stack(made_up, axis=1), follows_N | next_N)

    def log_ratios(self) -> tuple[Floats, Floats]:
        """log f1 / f of each event [N] and of each made-up one [M], by a logistic regression that tells the two apart."""
        own_XS, made_XS = self.own_NS[self.judged_N], self.made_up_MS
        if not len(made_XS):
            raise LargeRecError(
                "sequence-denoise: no user has two training events, so no event has a context; bring a longer log."
            )
        both = np.concatenate([own_XS, made_XS])
        centre, spread = both.mean(axis=0), np.maximum(both.std(axis=0), 1e-9)
        sign = np.concatenate([-np.ones(len(own_XS)), np.ones(len(made_XS))])
        weight = np.concatenate([np.full(len(own_XS), 0.5 / len(own_XS)), np.full(len(made_XS), 0.5 / len(made_XS))])
        x = np.concatenate([(both - centre) / spread, np.ones((len(both), 1))], axis=1)

        def loss(w: Floats) -> tuple[float, Floats]:
            margin = sign * (x @ w)
            slope = -weight * sign / (1 + np.exp(np.clip(margin, -60, 60)))
            return float((weight * np.logaddexp(0, -margin)).sum() + 1e-4 * (w**2).sum()), x.T @ slope + 2e-4 * w

        found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
        own_N = ((self.own_NS - centre) / spread) @ found[:-1] + found[-1]
        return own_N, x[len(own_XS) :] @ found


@dataclass(frozen=True)
class Direction:
    """What a model of one direction says at each event [N]: log P of the event itself, of the one beyond it (on the other side
    than the model reads), and of the random item. NaN where there is no context."""

    own_N: Floats
    skip_N: Floats
    random_N: Floats


def directions(sequences: Sequences, random_N: np.ndarray, options: LearnerOptions, seed: int) -> tuple[Direction, Direction]:
    """The models from the left and from the right, out of fold. ``random_N``: the item that is made up before each event.

    At an event the left model is asked of the item made up before it, the right model of the one made up before the next.
    """
    turned, row_N = backwards(sequences)
    left = _asked(sequences, random_N, options, seed)
    other = _asked(turned, np.roll(random_N, -1)[row_N], options, seed + 1)
    right = Direction(*(np.empty_like(one) for one in (other.own_N, other.skip_N, other.random_N)))
    for ours, theirs in ((right.own_N, other.own_N), (right.skip_N, other.skip_N), (right.random_N, other.random_N)):
        ours[row_N] = theirs
    return left, right


def _asked(sequences: Sequences, random_N: np.ndarray, options: LearnerOptions, seed: int) -> Direction:
    halves = Halves.drawn(sequences.n_users, seed)
    own_N, skip_N, drawn_N = (np.full(len(random_N), np.nan) for _ in range(3))
    for side in (True, False):
        learner = Learner(sequences, options, seed, halves.first_U == side).learn()
        token_N = learner.token_of_item[sequences.item_N]
        beyond_N, made_up_N = np.roll(token_N, -1), learner.token_of_item[random_N]
        for row_C, log_CV in learner.log_probabilities(halves.first_U[sequences.user_N] != side):
            table, at = log_CV.numpy(), np.arange(len(row_C))
            own_N[row_C], skip_N[row_C] = table[at, token_N[row_C]], table[at, beyond_N[row_C]]
            drawn_N[row_C] = table[at, made_up_N[row_C]]
    return Direction(own_N, skip_N, drawn_N)


def interest(
    log: Ordered, item: np.ndarray, before: np.ndarray, after: np.ndarray, has_before: Bools, has_after: Bools, without_own: int
) -> tuple[Floats, Floats, Floats]:
    """Pointwise mutual information of items with the one before and the one after them, and of these two."""
    together = misclicks.Together(log)
    item, before, after = (
        one.astype(np.int64) for one in (item, np.where(has_before, before, -1), np.where(has_after, after, -1))
    )
    between = together.pmi(before, after, 1)
    return together.pmi(before, item, without_own), together.pmi(item, after, without_own), between


def estimated_share(ratio_N: Floats, made_up_M: Floats) -> float:
    """The share of mis-clicks: no larger than the share of events beyond any score, over that of made-up mis-clicks beyond it.

    The least of these bounds, at scores that 10 to 90 % of the made-up ones pass.
    """
    sorted_N = np.sort(ratio_N)
    bounds = [1.0]
    for quantile in np.linspace(0.1, 0.9, 33):
        beyond = len(sorted_N) - int(np.searchsorted(sorted_N, np.quantile(made_up_M, quantile), side="right"))
        bounds.append(max(beyond, FEWEST) / max(1, len(sorted_N)) / (1 - quantile))
    return float(min(bounds))
