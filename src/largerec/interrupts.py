"""Ctrl-C that waits for a step to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[list[bool]]:
    """The first Ctrl-C only sets a flag, so that a step is never half done; the second one interrupts at once."""
    interrupted = [False]

    def handle(_number: int, _frame: FrameType | None) -> None:
        if interrupted[0]:
            raise KeyboardInterrupt
        interrupted[0] = True

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread: the caller's own handling stands
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
