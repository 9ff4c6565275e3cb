"""What will be needed next, made ahead by one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(makers: Iterator[Callable[[], T]], ahead: int = 4) -> Iterator[T]:
    """Run the makers in a background thread, in order, at most ``ahead`` before their use; errors reach the caller."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def offer(thing: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(thing, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for make in makers:
                if stop.is_set():
                    return
                offer(make())
            offer(None)
        except BaseException as error:
            offer(error)

    thread = threading.Thread(target=work, name="largerec-batches", daemon=True)
    thread.start()
    try:
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    finally:
        stop.set()
        thread.join()
