"""What tests of the audit share: findings by name, and logs to audit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from logs import START_MS

from largerec.audit import audit
from largerec.audit.findings import Finding
from largerec.audit.ordered import DAY, SECOND
from largerec.events import EventLog

NOW = START_MS + 10_000 * DAY
Row = tuple[Any, Any, int]


def found(log: EventLog, **more: Any) -> dict[str, Finding]:
    one = audit(log, now=NOW, **more)
    json.dumps(one.to_json())
    return {finding.name: finding for finding in one.findings}


def visits(user: Any, start: int, pauses: list[int], item: Callable[[int], Any] = lambda n: f"i{n % 40}") -> list[Row]:
    """Events of a user after these pauses in ms, the first at ``start``."""
    return [(user, item(n), start + sum(pauses[: n + 1])) for n in range(len(pauses))]


def steady(days: int = 60, a_day: int = 40, users: int = 50, seed: int = 0) -> list[Row]:
    """A quiet log sorted by time: the same number of events every day."""
    rng = np.random.default_rng(seed)
    rows = []
    for day in range(days):
        for second in np.sort(rng.integers(DAY // SECOND, size=a_day)).tolist():
            rows.append((f"u{rng.integers(users)}", f"i{rng.integers(60)}", START_MS // DAY * DAY + day * DAY + second * SECOND))
    return rows
