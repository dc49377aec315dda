"""The files that a training writes (model, snapshots, log), and what they must not overwrite."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from .checkpoint import is_checkpoint, save
from .files import named, printable, reason, try_writing
from .training import Run

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

_LOG_START = b'{"step": '


class RunKept(OSError):
    """A file could not be written; the run was saved as `place`."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message)
        self.place = place


class Outputs:
    """The files of one training: checked at the start, written as it proceeds.

    out: the path of the model, or None; log: that of the log, or None.
    snapshots: keep a copy of each save, with the step in its name.
    inputs: option -> path of what the training reads.
    step: how many steps the run has taken; a log keeps its lines up to there.

    Raises an OSError if one cannot be written, ValueError if it would overwrite an input, the
    other output, or a file that is neither a model nor a log.
    """

    def __init__(
        self,
        out: str | None,
        log: str | None,
        snapshots: bool,
        inputs: Mapping[str, str | None],
        step: int,
    ) -> None:
        self.out, self._snapshots = out, snapshots
        models = []
        if out is not None:
            try_writing(out)
            models = [out, _snapshot(out, 0), *_old_snapshots(out)] if snapshots else [out]
        for option, path in {"--log": log, **inputs}.items():
            if path is None:
                continue
            if out is not None and option != "--resume" and _same_file(out, path):
                raise ValueError(f"--out {printable(out)} would overwrite {option}")
            if out is not None and snapshots and _is_snapshot(path, out, models[1:]):
                raise ValueError(f"a snapshot of --out would overwrite {option}")
            if option != "--log" and log is not None and _same_file(log, path):
                raise ValueError(f"--log {printable(log)} would overwrite {option}")
        for path in models:
            try_writing(path)
            if os.path.isfile(path) and os.path.getsize(path) and not is_checkpoint(path):
                raise ValueError(f"{printable(path)}: is not a model, so it is not overwritten")
        self._log = None if log is None else _opened_log(log, step)

    def record(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Write the line of a step to the log. If that fails, the run is saved first."""
        if self._log is not None:
            line = {**metrics, "seconds": round(metrics["seconds"], 6)}
            self._write(run, json.dumps(line, allow_nan=False) + "\n")

    def _write(self, run: Run, text: str) -> None:
        """Write text to the log; if it is empty, flush what was written before."""
        if self._log is None:
            return
        try:
            with named(self._log.name):
                if text:
                    self._log.write(text)
                else:
                    self._log.flush()
        except OSError as error:
            self._abandon_log()
            if self.out is None:
                raise
            self.save(run)
            raise RunKept(str(error), self.out) from None

    def save(self, run: Run) -> None:
        """Save the run. Raises RunKept if it had to be saved elsewhere, OSError if it was not."""
        self._write(run, "")  # so that the log is never behind the file
        if self.out is None:
            return
        try:
            save(run, self.out)
            if self._snapshots:
                save(run, _snapshot(self.out, run.adam.step))
        except OSError as error:
            try:
                place = _rescued(run, self.out)
            except OSError as other:
                reasons = f"{error}; nor could it be saved elsewhere: {reason(other)}"
                raise OSError(reasons) from None
            raise RunKept(str(error), place) from None

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the log. After an error, which says where the run is, that one stays the error."""
        if kind is not None:
            self._abandon_log()
        elif self._log is not None:
            with named(self._log.name):
                self._log.close()

    def _abandon_log(self) -> None:
        """Close a log that cannot be written, and drop what it did not take."""
        log, self._log = self._log, None
        with suppress(OSError):
            if log is not None:
                log.close()


def _same_file(a: str, b: str) -> bool:
    if os.path.realpath(a) == os.path.realpath(b):
        return True
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)


def _snapshot(out: str, step: int) -> str:
    stem, end = os.path.splitext(out)
    return f"{stem}-{step:06}{end}"


def _snapshot_pattern(out: str) -> re.Pattern[str]:
    stem, end = map(re.escape, os.path.splitext(out))
    return re.compile(f"{stem}-[0-9]{{6,}}{end}")


def _old_snapshots(out: str) -> list[str]:
    """Return what has the name of a snapshot: files, and links that lead anywhere."""
    folder = os.path.dirname(out)
    with named(folder or os.curdir):
        names = os.listdir(folder or os.curdir)
    return [*filter(_snapshot_pattern(out).fullmatch, [os.path.join(folder, n) for n in names])]


def _is_snapshot(path: str, out: str, old: Iterable[str]) -> bool:
    """Return whether a snapshot, of any step, would be written to path."""
    folder, name = os.path.split(out)
    pattern = _snapshot_pattern(os.path.join(os.path.realpath(folder), name))
    if pattern.fullmatch(os.path.realpath(path)):
        return True
    return any(_same_file(path, other) for other in old)


def _rescued(run: Run, out: str) -> str:
    """Save the run in the folder for temporary files; return where."""
    handle, path = tempfile.mkstemp(suffix=f"-{Path(out).name[-40:]}", prefix="microgpt-")
    os.close(handle)
    try:
        save(run, path)
    except BaseException:
        os.unlink(path)  # it is empty
        raise
    return path


def _opened_log(path: str, step: int) -> TextIO:
    """Open a log; keep the lines of a resumed run up to its step."""
    with named(path):
        log = open(path, "a", encoding="utf-8", newline="\n", opener=_opened_at_once)
        try:
            if stat.S_ISREG(os.fstat(log.fileno()).st_mode):  # no terminal, pipe or /dev/null
                _lock(log)
                log.seek(_length_up_to(path, step))
                log.truncate()
        except BaseException:
            log.close()
            raise
    return log


def _opened_at_once(path: str, flags: int) -> int:
    """Open a file; do not wait until somebody reads it, if it is a pipe."""
    if not hasattr(os, "O_NONBLOCK"):
        return os.open(path, flags, 0o666)
    try:
        handle = os.open(path, flags | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError("is a pipe that nothing reads") from None
        raise
    os.set_blocking(handle, True)
    return handle


def _lock(log: TextIO) -> None:
    """Lock a log against other trainings until it is closed."""
    if fcntl is not None:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{printable(log.name)}: another training writes to this log"
            ) from None
        except OSError:  # a file system without locks
            pass


def _length_up_to(path: str, step: int) -> int:
    """Return how many bytes of a log are complete lines up to a step."""
    kept = 0
    with open(path, "rb") as file:
        first = file.readline(100)
        if first and not first.startswith(_LOG_START):
            raise ValueError(f"{printable(path)}: is not a log, so it is not overwritten")
        file.seek(0)
        for line in file:
            if not line.endswith(b"\n"):
                break  # left by a run that was killed
            try:
                number = json.loads(line)["step"]
            except (ValueError, TypeError, KeyError, RecursionError):
                number = None
            if type(number) is not int:
                raise ValueError(f"{printable(path)}: has a line that is not a log line")
            if number > step:
                break  # to be taken again
            kept += len(line)
    return kept
