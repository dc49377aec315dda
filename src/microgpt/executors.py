"""Where trials are done if the caller has no executor: here, in processes, or on a Dask cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from . import trials
from .files import one_line, reason
from .trials import WorkerError


def processors() -> int:
    """Return how many processors this process may use, at most what a pool takes on Windows."""
    if sys.platform == "win32":
        return min(os.cpu_count() or 1, 61)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Here(Executor):
    """Run each task when it is submitted, in this thread."""

    def submit(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(f(*args, **kwargs))
        return future


class Processes(ProcessPoolExecutor):
    """A process pool whose workers have the documents and end when this process does.

    They are spawned, not forked: a fork copies one thread of this process and the locks of all.
    They are not told of Ctrl-C; `stop` lets them hand back what they have.
    """

    def __init__(self, n: int, documents: list[str], data: str) -> None:
        context = multiprocessing.get_context("spawn")
        ends, self._ours = context.Pipe(duplex=False)
        super().__init__(n, context, _start_worker, (ends, documents, data))

    def submit(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with _spawning():
            return super().submit(f, *args, **kwargs)

    def stop(self) -> None:
        """Let the workers end their tasks after the step that they take."""
        self._ours.close()


def _start_worker(ends: Connection, documents: list[str], data: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where _spawning cannot block it
    trials.keep(documents, data)

    def watch() -> None:
        with suppress(OSError):  # on Windows
            ends.poll(None)  # nothing is ever sent: it returns when the other end is closed
        trials.stop()
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)  # a pool whose parent was killed would wait for tasks for ever

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _spawning() -> Iterator[None]:
    """Let the processes that are started here not see Ctrl-C, nor run the user's script again.

    A worker needs nothing of __main__. It would import it, as it does for any function that may be
    defined there, so a script without `if __name__ == "__main__"` would start a sweep in a sweep.
    """
    main, masks = sys.modules["__main__"], hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def cluster(address: str) -> Iterator[tuple[Executor, int]]:
    """Give an executor on the Dask cluster of a scheduler, and the number of its threads.

    Raises ImportError if Dask is not installed, ValueError if the address is none, WorkerError if
    no scheduler answers there or it has no workers.
    """
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise ImportError(
            "--scheduler needs Dask: pip install distributed, or microgpt with its extra [dask]"
        ) from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # we say what is lost
    where = one_line(address, 80)
    if not re.fullmatch(r"[a-z]+://\S+:\d+", address):
        raise ValueError(f"a scheduler is given as tcp://host:8786, not {where!r}")
    try:
        client = distributed.Client(address, timeout=5, set_as_default=False)
    except OSError as error:
        raise WorkerError(f"{where}: no scheduler answers ({reason(error)})") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=10)
        except OSError:
            raise WorkerError(f"{where}: the scheduler has no workers") from None
        yield client.get_executor(pure=False), sum(client.nthreads().values())
