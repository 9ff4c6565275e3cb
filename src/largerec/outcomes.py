"""Columns that say the answer, or are only known after it: no features."""

from __future__ import annotations

import re
from collections.abc import Mapping

from largerec.columns import CANONICAL
from largerec.errors import LargeRecError
from largerec.features import SIDES, FeatureOptions

OUTCOMES = {
    "click", "clicks", "clicked", "like", "likes", "liked", "follow", "followed", "comment", "commented", "forward",
    "forwarded", "share", "shared", "hate", "purchase", "purchased", "buy", "bought", "order", "ordered", "cart", "rating",
    "stars", "label", "target", "play", "played", "watch", "watched", "view", "viewed", "dwell", "stay", "listen", "listened",
    "read", "skip", "skipped", "reward", "feedback", "conversion", "converted", "behavior", "behaviour", "action", "value",
    "outcome", "response", "enter",
}  # fmt: skip
"""Words in the name of a column that is only known after an item was shown."""


def refuse_outcomes(options: FeatureOptions, answers: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse columns that say the answer, or are only known after it; ``answers``: columns that each task's expression reads.

    Raises:
        LargeRecError: a feature is what a task predicts, or its name is that of an outcome and it is not in ``known``.
    """
    for side in SIDES:
        for column in options.columns(side):
            for name, columns in answers.items():
                if column in columns and side == "context":
                    raise LargeRecError(
                        f"features.context names {column!r}, which {name} is made of: nobody knows it at the moment of "
                        "asking, and it would give the answer away. Leave it out."
                    )
    for column in options.context:
        words = re.split(r"[^a-z]+", column.lower())
        if column in CANONICAL and column not in ("behavior", "value"):
            hint = " (of users: features.user=['user_id'])" if column == "user_id" else ""
            raise LargeRecError(
                f"features.context names {column!r}, which the model reads anyway or no moment has{hint}; leave it out."
            )
        if column not in options.known and (words[0] in ("is", "has", "did") or OUTCOMES & set(words)):
            raise LargeRecError(
                f"features.context names {column!r}, which sounds like what happened after the item was shown. Features must be "
                f"known before the answer. If it is, say so with features.known=['{column}']; else leave it out."
            )
