"""Which rules a log's clock is too coarse for."""

from __future__ import annotations

from largerec.audit.bots import FAST_MS
from largerec.audit.clocks import FRAGMENT_GAP
from largerec.audit.misclicks import MOMENT_MS
from largerec.audit.ordered import HOUR, Ordered

CLOSE_RULES = {  # what is told by pauses, and the shortest time that its rule looks at
    "fast and regular users": FAST_MS,
    "sleepless users": HOUR,
    "bursts within an hour": HOUR,
    "mis-clicks": MOMENT_MS,
    "clock jumps": FRAGMENT_GAP,
}


def coarse(log: Ordered) -> str | None:
    """The note of what cannot be told from times in whole days, say; None where they are fine enough, or no clock's."""
    off = [name for name, span in CLOSE_RULES.items() if not log.tells(span)]
    if not off or not log.has_clock:
        return None
    return f"times are whole {log.resolution}s: nothing tells {', '.join(off)}; the rules that look closer are off"
