"""What must not get in the way of a step: Ctrl-C, and the cyclic collector."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from .core import BACKEND

Step = TypeVar("Step", bound=Callable[..., Any])


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], None]]:
    """Yield a function that raises a Ctrl-C received meanwhile; a second is raised at once."""
    received: list[tuple[Any, ...]] = []
    before: Any = signal.getsignal(signal.SIGINT)

    def receive(*details: Any) -> None:
        received.append(details)
        if len(received) > 1 or not waiting:
            received.clear()
            before(*details)

    def raise_pending() -> None:
        if received:
            before(*received.pop())

    waiting = callable(before) and threading.current_thread() is threading.main_thread()
    if waiting:
        try:
            signal.signal(signal.SIGINT, receive)
        except ValueError:  # only the main interpreter handles signals
            waiting = False
    try:
        yield raise_pending
    finally:
        # A handler that could not be removed, because the generator ended in another thread
        # or another handler was set over it, passes everything on.
        installed, waiting = waiting, False
        if installed and threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is receive:
                signal.signal(signal.SIGINT, before)
            raise_pending()


def without_collector(step: Step) -> Step:
    """Keep the cyclic collector off during a step of the pure core.

    Searching a graph, which has no cycles, takes a third of the step. The compiled core leaves
    nothing to search. Only who has turned it off turns it on again, in any number of threads.
    """
    if BACKEND == "cython":
        return step

    @wraps(step)
    def paused(*args: Any) -> Any:
        enabled = gc.isenabled()
        try:
            if enabled:
                gc.disable()
            return step(*args)
        finally:
            if enabled:
                gc.enable()

    return paused  # type: ignore[return-value]
