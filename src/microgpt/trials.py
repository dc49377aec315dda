"""One trial of a sweep: what it is known by, its file, and doing it on a worker.

A worker needs nothing but this package: `work` takes the bytes of a task and returns those of a
reply. It reads and writes no file. Whoever sent the task writes what comes back, so that no two
processes write the same file, and a trial that is done twice has the same numbers twice.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from hashlib import sha256
from threading import Event
from time import perf_counter
from typing import Any, BinaryIO

from . import __version__
from .checkpoint import from_bytes, to_bytes
from .core import BACKEND
from .data import checksum
from .files import one_line, reason
from .model import Config
from .safetensors import Reader, json_object
from .training import TrainConfig, prepare, steps

MADE_BY = f"microgpt {__version__}, core {BACKEND}"  # what a trial's numbers depend on
TASK_SECONDS = 1.0  # a task begins no trial after this
SLICE_SECONDS = 10.0  # and hands back a trial that takes longer, so that its state is written

# Every setting of a run and its default: what prepare takes, but `init`, `model` and `record`.
DEFAULTS: dict[str, Any] = {
    setting.name: setting.default
    for config in (TrainConfig, Config)
    for setting in fields(config)
    if setting.name != "vocab_size"
}


class WorkerError(OSError):
    """The workers of a sweep cannot be used. What they did before is in its files."""


@dataclass(frozen=True)
class Trial:
    """A run that is known before it is done.

    settings: all of them, as prepare takes them.
    data: checksum of the documents.
    id: hash of settings, data, version and core; the file is named by it.
    refused: why there is no such run, or nothing.
    """

    settings: Mapping[str, Any]
    data: str
    id: str
    refused: str = ""

    @classmethod
    def of(cls, settings: Mapping[str, Any], data: str) -> Trial:
        """Return the trial with these settings, and the defaults of the others.

        Raises TypeError if a setting has the wrong type.
        """
        given, refused = {**DEFAULTS, **settings}, ""
        try:
            training = {setting.name: given[setting.name] for setting in fields(TrainConfig)}
            sizes = {name: given[name] for name in given.keys() - training.keys()}
            checked = {**vars(TrainConfig(**training)), **vars(Config(1, **sizes))}
            given = {name: checked[name] for name in given}
        except ValueError as error:
            refused = reason(error)
        key = json.dumps([given, data, MADE_BY], sort_keys=True)
        return cls(given, data, sha256(key.encode()).hexdigest()[:16], refused)

    @property
    def file(self) -> str:
        """The name of the trial's file in the folder of a sweep."""
        return f"trial-{self.id}.safetensors"


@dataclass(frozen=True)
class Result:
    """What became of a trial.

    settings: those of the trial; id: what it is known by.
    path: its file, an ordinary one for load; "" if there is none.
    val_loss: the mean loss on the validation documents; None if the trial failed.
    loss: the mean of the last 100 losses of the training; None if it failed or took no step.
    error: why it failed, or nothing.
    """

    settings: Mapping[str, Any]
    id: str
    path: str
    val_loss: float | None
    loss: float | None
    error: str


Outcome = dict[str, Any]  # the val_loss, loss and error of a result, as a file notes them


def noted_outcome(file: BinaryIO, trial: Trial) -> Outcome | None:
    """Return the outcome that the file of a trial notes; None: the trial goes on from the file.

    Raises ValueError unless it is a whole file of this trial.
    """
    metadata = Reader(file).metadata
    found: dict[str, Any] = {"data": metadata.get("dataset_sha256")}
    for part in ("training", "config"):
        found |= json_object(metadata.get(part, "null"), f"the {part}")
    found.pop("vocab_size", None)
    if found != {"data": trial.data, **trial.settings}:
        raise ValueError("is the file of another run")
    if "outcome" not in metadata:
        return None
    outcome = json_object(metadata["outcome"], "the outcome")
    val_loss, loss, error = (outcome.get(name) for name in ("val_loss", "loss", "error"))
    if isinstance(error, str) and error:
        return failed(error)
    whole = all(type(x) is float and math.isfinite(x) for x in (val_loss, loss or 0.0))
    if error == "" and whole:
        return {"val_loss": val_loss, "loss": loss, "error": ""}
    raise ValueError("notes no outcome of a trial")


def failed(error: str) -> Outcome:
    """Return the outcome of a trial that failed."""
    return {"val_loss": None, "loss": None, "error": one_line(error)}


_documents: dict[str, list[str]] = {}  # by checksum: what this worker was sent, the last few
_stop = Event()  # set when this worker is to hand back what it has


def keep(documents: list[str], data: str) -> None:
    """Keep documents for the tasks that follow. Raises ValueError if data is not their checksum."""
    if checksum(documents) != data:
        raise ValueError("the data was damaged on its way to the worker (the checksum differs)")
    _documents.pop(data, None)
    while len(_documents) >= 3:
        _documents.pop(next(iter(_documents)), None)
    _documents[data] = documents


def stop() -> None:
    """Let the tasks of this process end after the step that they take."""
    _stop.set()


def task_of(
    trials: Sequence[tuple[Trial, bytes | None]],
    data: str,
    dataset: str,
    documents: list[str] | None,
) -> bytes:
    """Return a task: trials, each with the content of its file if it was begun.

    data, dataset: as in Run. documents: None if the worker is thought to have them.
    No two tasks are equal: Dask takes equal calls for one, with one result, and one cancellation.
    """
    asked = [(trial.settings, start) for trial, start in trials]
    seconds = TASK_SECONDS, SLICE_SECONDS
    return pickle.dumps((MADE_BY, data, dataset, documents, seconds, asked, os.urandom(8)))


@dataclass
class Reply:
    """What a worker sends back.

    worker: its host and process.
    refused: why it can do no trial of this sweep, or nothing.
    missing: whether it needs the documents first.
    interrupted: whether Ctrl-C reached it.
    done: of the first trials of the task, the content of the file (None: no file) and the outcome
        (None: the trial goes on from the content).
    """

    worker: str
    refused: str = ""
    missing: bool = False
    interrupted: bool = False
    done: list[tuple[bytes | None, Outcome | None]] = field(default_factory=list)


def work(task: bytes) -> bytes:
    """Do the trials of a task, as many as there is time for; return a pickled Reply."""
    start = perf_counter()
    made_by, data, dataset, documents, seconds, asked, _ = pickle.loads(task)
    task_seconds, slice_seconds = seconds
    reply = Reply(f"{platform.node()}:{os.getpid()}")
    try:
        if made_by != MADE_BY:
            raise ValueError(f"has {MADE_BY}; the sweep is of {made_by}")
        if documents is not None:
            keep(documents, data)
    except ValueError as error:
        reply.refused = reason(error)
    documents = _documents.get(data)
    reply.missing = documents is None
    for settings, begun in asked:
        late = reply.done and perf_counter() > start + task_seconds
        if documents is None or reply.refused or reply.interrupted or late or _stop.is_set():
            break
        try:
            _do(reply, settings, begun, documents, dataset, start + slice_seconds)
        except KeyboardInterrupt:
            reply.interrupted = True
    return pickle.dumps(reply)


def _do(
    reply: Reply,
    settings: Mapping[str, Any],
    begun: bytes | None,
    documents: list[str],
    dataset: str,
    end: float,
) -> None:
    """Do a trial to its end, or until the clock shows `end`; add it to the reply."""
    if begun is not None:
        try:
            run = from_bytes(begun, documents)
        except ValueError as error:
            reply.done.append((None, {**failed(reason(error)), "damaged": True}))
            return
    content, val_loss = None, None
    try:
        if begun is None:
            run = prepare(documents, **settings)
            run.dataset = dataset
        try:
            for metrics in steps(run):
                val_loss = metrics.get("val_loss")
                if _stop.is_set() or perf_counter() > end:
                    break
        except KeyboardInterrupt:
            reply.interrupted = True
        if run.adam.step < run.config.steps:
            reply.done.append((to_bytes(run), None))
            return
        if val_loss is None:
            val_loss = run.val_loss()
        loss = run.recent_loss if run.losses else None
        outcome = {"val_loss": val_loss, "loss": loss, "error": ""}
        content = to_bytes(run, outcome=json.dumps(outcome))
    except FloatingPointError as error:  # for ever: with the same numbers it would fail again
        outcome = failed(reason(error))
        with suppress(FloatingPointError):  # of parameters, which no file holds
            content = to_bytes(run, outcome=json.dumps(outcome))
    except Exception as error:
        outcome = failed(reason(error))
    reply.done.append((content, outcome))
