"""Retrieval for one behaviour: what will this user *like*, not only take next, from one model's weights.

By the chain rule ``P(comes next and is liked | history) = P(item | history) * P(liked | history, item)``. The first factor is
retrieval's softmax over the catalogue, the second the task head's; the score is the sum of their logarithms, the second one
times ``weight``. Generative recommenders retrieve and rank with one model (HSTU, Zhai et al. 2024, arXiv 2402.17152, section
2.2; UniGRF, Zhang et al. 2025, arXiv 2504.16454); here the two are joined at each request, and nothing is trained for it.

The head is asked only about the best ``SHORTLIST`` items of retrieval, so the others stay behind those. Q queries, V catalogue,
C items of the shortlist.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from largerec.engine.scoring import Queries, Scorer, mask_seen, top_k

SHORTLIST = 200
SMALLEST = 1e-7

Asked = Callable[[Queries, int, np.ndarray], torch.Tensor]
"""Probability of the wanted label of each item [C], after the one history of a query, for the user of a row (-1: unknown)."""


def log_next(scorer: Scorer, queries: Queries) -> torch.Tensor:
    """Logarithm of the probability that each item of the catalogue comes next [Q, V], none masked.

    Where a history is empty the scores are counts of popularity, not logits: their shares are the probabilities.
    """
    scores_QV = scorer.scores(queries)
    empty_Q1 = torch.from_numpy(queries.end_Q == queries.first_Q)[:, None]
    counted_QV = scores_QV.clamp_min(0.5)
    log_QV = torch.log_softmax(scores_QV.float(), dim=1)
    return torch.where(empty_Q1, (counted_QV / counted_QV.sum(1, keepdim=True)).log(), log_QV)


def wanted_lists(
    scorer: Scorer, queries: Queries, user_Q: np.ndarray, asked: Asked, *, k: int, weight: float, mask: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and items of the best ``max(k, SHORTLIST)`` for each query, best first, [Q, C]; masked items have -inf.

    ``user_Q``: the row of each query's user, -1 for someone unknown. Equal scores stand in retrieval's order.
    """
    log_QV = log_next(scorer, queries)
    if mask:
        mask_seen(log_QV, queries)
    value_QC, item_QC = top_k(log_QV, max(k, SHORTLIST))
    for row in range(len(queries)):
        known_C = ~torch.isneginf(value_QC[row])
        if not known_C.any():  # everything is masked
            continue
        probability_C = asked(queries.block(row, row + 1), int(user_Q[row]), item_QC[row][known_C].numpy())
        value_QC[row, known_C] += weight * probability_C.clamp_min(SMALLEST).log()
    value_QC, order_QC = value_QC.sort(dim=1, descending=True, stable=True)
    return value_QC, item_QC.gather(1, order_QC)
