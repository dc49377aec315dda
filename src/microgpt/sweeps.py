"""Many runs, as the trials of a sweep, through any Executor of concurrent.futures."""

from __future__ import annotations

import os
import pickle
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import _checks as checks
from .data import checked_documents, checksum, source_of
from .executors import Here, Processes, processors
from .files import named, one_line, printable, read, reason, try_writing, write_whole
from .grid import plan
from .progress import Progress, someone_looks
from .ranking import Sweep, in_words, varied
from .trials import (
    Outcome,
    Reply,
    Result,
    Trial,
    WorkerError,
    failed,
    noted_outcome,
    task_of,
    work,
)

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

ATTEMPTS = 3  # so often a worker may die of a trial


def sweep(
    docs: Iterable[str],
    grid: Mapping[str, Any],
    executor: Executor | None = None,
    *,
    out: str | os.PathLike[str] = "runs",
    trials: int | None = None,
    draw_seed: int = 0,
    jobs: int | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Train a run for every combination of a grid, and rank the settings by validation loss.

    Given again, it does not repeat the trials that are finished, and goes on with half-done ones.

    docs: the documents, the same for every trial.
    grid: setting of prepare -> a value, a list of values, or a LogUniform with `trials`. A tenth of
        the documents are held out, the same for every trial, unless val_fraction and val_seed say
        otherwise.
    executor: where the trials are done; None: in processes of this machine.
    out: the folder of the files, one for each trial, as save writes them; made if there is none.
    trials, draw_seed: draw so many combinations at random, as in plan.
    jobs: how many trials are done at a time: the number of processes, or what the executor can do;
        None: the number of processors of this machine. 1 without an executor: in this process.
    progress: whether to draw a bar on stderr; None: on a terminal and in a notebook.

    A trial that fails is among the results, with its reason. Ctrl-C leaves whole files.
    Raises what plan and prepare say of the grid and the documents; TypeError if executor is no
    Executor; ValueError if another sweep is at work in the folder; OSError if a file cannot be
    written; WorkerError, an OSError too, if the executor cannot be used.
    """
    if not (executor is None or isinstance(executor, Executor)):
        raise TypeError(
            "executor must be a concurrent.futures.Executor (of a Dask Client: "
            f"client.get_executor()), not {type(executor).__name__}"
        )
    documents = checked_documents(docs)
    planned = plan(grid, checksum(documents), trials, draw_seed)
    bar = someone_looks() if progress is None else progress
    with Folder(os.fsdecode(out)) as folder:
        return run_trials(planned, documents, folder, executor, jobs, bar)


def run_trials(
    planned: Sequence[Trial],
    documents: list[str],
    folder: Folder,
    executor: Executor | None,
    jobs: int | None,
    bar: bool,
    lines: bool = False,
) -> Sweep:
    """Do what is left of planned trials; the arguments are those of sweep and Progress."""
    n = processors() if jobs is None else checks.integer(jobs, "jobs", 1)
    running = _Running(planned, documents, folder, executor, n)
    with Progress(len(running.results), len(planned), bar, lines, "trial") as shown:
        running.finish(shown)
    return Sweep([running.results[trial.id] for trial in planned])


class Folder:
    """The folder of a sweep: made, locked against other sweeps, and the only place that writes.

    Raises an OSError if nothing can be written there, ValueError if another sweep is at work in it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with named(path):
            if not path or "\0" in path:
                raise FileNotFoundError("no folder can have this name")
            os.makedirs(path, exist_ok=True)
            self._names = set(os.listdir(path))
        try_writing(os.path.join(path, "trial"))
        self._lock = None
        if fcntl is not None:
            self._lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise ValueError(f"{printable(path)}: another sweep is at work there") from None
            except OSError:  # a file system without locks: they would write the same files
                pass

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def path_of(self, trial: Trial) -> str:
        return os.path.join(self.path, trial.file)

    def content(self, trial: Trial) -> bytes | None:
        """Return the file of a trial that was begun, or None."""
        return read(self.path_of(trial)) if self.begun(trial) else None

    def outcome(self, trial: Trial) -> Outcome | None:
        """Return the outcome of a trial that was done before, or None."""
        path = self.path_of(trial)
        if not self.begun(trial):
            return None
        try:
            if not os.path.isfile(path):  # opening a pipe would wait for its writer
                raise ValueError("is not a file")
            with named(path), open(path, "rb") as file:
                return noted_outcome(file, trial)
        except ValueError as error:
            self.set_aside(trial, reason(error))
            return None

    def begun(self, trial: Trial) -> bool:
        return trial.file in self._names

    def write(self, trial: Trial, content: bytes) -> None:
        path = self.path_of(trial)
        with named(path):
            write_whole(path, [content])
        self._names.add(trial.file)

    def set_aside(self, trial: Trial, why: str) -> None:
        """Rename a file that is not what its name says, so that the trial begins anew."""
        path = self.path_of(trial)
        with named(path):
            os.replace(path, f"{path}.damaged")
        self._names.discard(trial.file)
        print(
            f"microgpt: {one_line(f'{printable(path)}: {why}')}: renamed to {trial.file}.damaged, "
            "and done again",
            file=sys.stderr,
        )

    def result(self, trial: Trial, outcome: Outcome) -> Result:
        path = self.path_of(trial) if self.begun(trial) else ""
        return Result(trial.settings, trial.id, path, **outcome)


@dataclass
class _Job:
    """A trial that is not done, and how many workers died while they had it."""

    trial: Trial
    deaths: int = 0


class _Running:
    """The trials of a sweep that wait, those that workers have, and the results.

    Twice as many tasks are given out as there are workers, so that none waits for the next. A task
    has a share of the trials that wait, less and less of them (Polychronopoulos and Kuck 1987,
    guided self-scheduling), and hands back those that it has no time for.
    """

    def __init__(
        self,
        planned: Sequence[Trial],
        documents: list[str],
        folder: Folder,
        executor: Executor | None,
        jobs: int,
    ) -> None:
        self._planned, self._folder, self._documents = planned, folder, list(documents)
        self._dataset = source_of(documents, planned[0].settings["unit"], planned[0].data)
        self.results: dict[str, Result] = {}
        self._best: Result | None = None
        self._varied = [*varied([trial.settings for trial in planned]), "seed"]
        self._failures = 0
        self._waiting: deque[_Job] = deque()
        self._sent: dict[Future[bytes], list[_Job]] = {}
        for trial in planned:
            outcome = failed(trial.refused) if trial.refused else folder.outcome(trial)
            if outcome is None:
                self._waiting.append(_Job(trial))
            else:
                self._record(trial, outcome)
        self._n = max(1, min(jobs, len(self._waiting)))
        self._given = executor
        self._executor = executor or self._own()
        self._owed = 0 if isinstance(self._executor, Processes) else self._n
        self._lacking: set[str] = set()  # workers that said that they lack the documents
        self._any_reply, self._breaks = False, 0

    def _own(self) -> Executor:
        if self._n == 1:
            return Here()
        return Processes(self._n, self._documents, self._planned[0].data)

    def finish(self, shown: Progress) -> None:
        """Have all trials done. Ctrl-C and errors lose no reply that has come."""
        try:
            while self._waiting or self._sent:
                while chunk := self._chunk():
                    self._send(chunk)
                done, _ = wait(self._sent, 1.0, FIRST_COMPLETED)
                for future in done:
                    if future in self._sent:  # not taken with others of a pool that broke
                        self._take(future)
                shown.update(len(self.results), self._describe)
        except KeyboardInterrupt:
            self._collect()
            raise KeyboardInterrupt(
                f"interrupted: {len(self.results)} of {len(self._planned)} trials are done, in "
                f"{printable(self._folder.path)}; the same sweep, given again, goes on"
            ) from None
        finally:
            for future in self._sent:
                future.cancel()
            if isinstance(self._executor, Processes):
                self._executor.stop()
                self._executor.shutdown(cancel_futures=True)

    def _chunk(self) -> list[_Job]:
        """Return the trials of the next task, or none if it is not time for one."""
        limit = 1 if isinstance(self._executor, Here) else 2 * self._n
        if not self._waiting or len(self._sent) >= limit:
            return []
        # A worker died of one of these, or of its neighbour: alone, it shows of which.
        suspects = [self._waiting[0], *(chunk[0] for chunk in self._sent.values())]
        if self._sent and any(job.deaths == ATTEMPTS - 1 for job in suspects):
            return []
        chunk = [self._waiting.popleft()]
        size = min(1 + len(self._waiting) // limit, 1000)
        while (
            len(chunk) < size
            and not chunk[-1].deaths
            and not self._waiting[0].deaths
            and not self._folder.begun(chunk[-1].trial)  # its content is large
        ):
            chunk.append(self._waiting.popleft())
        return chunk

    def _send(self, chunk: list[_Job]) -> None:
        trials = [(job.trial, self._folder.content(job.trial)) for job in chunk]
        documents = self._documents if self._owed else None
        self._owed = max(0, self._owed - 1)
        task = task_of(trials, self._planned[0].data, self._dataset, documents)
        try:
            self._sent[self._executor.submit(work, task)] = chunk
        except BrokenExecutor as error:
            self._broken([chunk], error)
        except RuntimeError as error:  # it was shut down
            raise WorkerError(f"the executor takes no trials: {reason(error)}") from None

    def _take(self, future: Future[bytes]) -> None:
        """Record what came back of a task, and let the rest of its trials wait again."""
        chunk = self._sent.pop(future)
        try:
            reply: Reply = pickle.loads(future.result())
        except BrokenExecutor as error:
            self._broken([chunk], error)
            return
        except Exception as error:
            if type(error).__name__ == "KilledWorker":  # of Dask, which tried it several times
                self._died(chunk)
                return
            what = one_line(f"{type(error).__name__}: {reason(error)}", 150)
            if isinstance(error, CancelledError):
                what = "the executor cancelled it: its scheduler may be gone"
            raise WorkerError(
                f"a task came to nothing ({what}); the same sweep, given again, goes on"
            ) from None
        if reply.refused:
            raise WorkerError(f"worker {reply.worker} {reply.refused}")
        if reply.missing:
            if reply.worker not in self._lacking:
                self._lacking.add(reply.worker)
                self._owed += 1
        else:
            self._lacking.discard(reply.worker)
            self._any_reply = True
        rest = chunk[len(reply.done) :]
        for job, (content, outcome) in zip(chunk, reply.done, strict=False):
            job.deaths = 0
            if content is not None:
                self._folder.write(job.trial, content)
            if outcome is None:
                rest.insert(0, job)
            elif outcome.pop("damaged", False):
                self._folder.set_aside(job.trial, outcome["error"])
                rest.insert(0, job)
            else:
                self._record(job.trial, outcome)
        self._waiting.extendleft(reversed(rest))
        if reply.interrupted:
            raise KeyboardInterrupt

    def _record(self, trial: Trial, outcome: Outcome) -> None:
        self.results[trial.id] = result = self._folder.result(trial, outcome)
        if result.val_loss is None:
            self._failures += 1
        elif self._best is None or result.val_loss < (self._best.val_loss or 0.0):
            self._best = result

    def _broken(self, chunks: list[list[_Job]], error: BrokenExecutor) -> None:
        """Go on with another pool, of our own, where a worker was killed."""
        if self._given is not None:
            raise WorkerError(
                f"the executor is broken ({reason(error)}); the same sweep, given again, goes on"
            ) from None
        self._breaks += 1
        if not self._any_reply and self._breaks >= ATTEMPTS:
            raise WorkerError(f"the worker processes die at once ({reason(error)})") from None
        wait(self._sent)  # those of a broken pool are all done
        for future in list(self._sent):
            if future.exception() is None:
                self._take(future)
            else:
                chunks.append(self._sent.pop(future))
        for chunk in chunks:
            self._died(chunk)
        if isinstance(self._executor, Processes):
            self._executor.stop()
        self._executor.shutdown()
        self._executor = self._own()

    def _died(self, chunk: list[_Job]) -> None:
        """Let trials wait again whose worker died, after the others; give up one that did it."""
        for job in chunk:
            job.deaths += 1
            if job.deaths < ATTEMPTS:
                self._waiting.append(job)
            else:
                error = f"its worker was killed {ATTEMPTS} times, by a signal or for want of memory"
                self._record(job.trial, failed(error))

    def _collect(self) -> None:
        """After Ctrl-C: record what our own workers have, and what others have sent."""
        for future in list(self._sent):
            if future.cancel():
                del self._sent[future]
        if isinstance(self._executor, Processes):
            self._executor.stop()
            wait(self._sent)
        for future in [future for future in self._sent if future.done()]:
            with suppress(KeyboardInterrupt, BrokenExecutor, WorkerError):
                self._take(future)

    def _describe(self) -> str:
        """Return the best result so far, and how many failed."""
        found = "none done" if self._best is None else (
            f"best {self._best.val_loss:.4f}: {in_words(self._best.settings, self._varied)}"
        )
        return f"{found} | {self._failures} failed" if self._failures else found
