"""Several scorers as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from largerec.engine.scoring import Queries, Scorer
from largerec.errors import LargeRecError


class EnsembleScorer:
    """The equal mixture of its members: the score of an item is the log of the mean of their softmax probabilities.

    A softmax makes members comparable whatever the level of their scores, and a mixture stays a distribution, so that its
    scores can be calibrated like a model's. Costs are the sums of the members'.

    Raises:
        LargeRecError: fewer than two members, or they score catalogues of different sizes.
    """

    def __init__(self, members: Sequence[Scorer]) -> None:
        if len(members) < 2:
            raise LargeRecError(f"an ensemble has two members or more, and {len(members)} was given.")
        sizes = [member.size for member in members]
        if len(set(sizes)) > 1:
            raise LargeRecError(f"the members score catalogues of {sizes} items; an ensemble needs runs on one log and split.")
        self.members, self.size = tuple(members), sizes[0]

    def scores(self, queries: Queries) -> torch.Tensor:
        """Log probabilities [Q, V] of the mixture."""
        mixed_QV = torch.log_softmax(self.members[0].scores(queries), dim=1)
        for member in self.members[1:]:
            torch.logaddexp(mixed_QV, torch.log_softmax(member.scores(queries), dim=1), out=mixed_QV)
        return mixed_QV.sub_(float(torch.tensor(float(len(self.members))).log()))
