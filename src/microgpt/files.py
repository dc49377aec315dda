"""Files: their names in messages, reading, and atomic writing."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


def printable(path: str) -> str:
    """Return path, quoted if it is empty or would not print as itself on one line."""
    return path if path and path.isprintable() else repr(path)


def reason(error: Exception) -> str:
    """Return on one line why error was raised, without its number or the name of its class."""
    from_socket = getattr(error, "reason", None)  # urllib's URLError wraps the error of the socket
    if isinstance(from_socket, OSError):
        error = from_socket
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def one_line(text: str, limit: int = 300) -> str:
    """Return text as one printable line, shortened in the middle if it is longer than limit.

    >>> one_line("a\\nb\\x1b[2J")
    'a b\\\\x1b[2J'
    """
    words = " ".join(text.split())
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)
    half = limit // 2 - 3
    return line if len(line) <= limit else f"{line[:half]} ... {line[-half:]}"


@contextmanager
def named(path: str) -> Iterator[None]:
    """Make of an OSError one line that names the file."""
    try:
        yield
    except OSError as error:
        # A BrokenPipeError is one of stdout, whose reader has had enough.
        kind = OSError if isinstance(error, BrokenPipeError) else type(error)
        raise kind(f"{printable(path)}: {reason(error)}") from None


@contextmanager
def _possible_name() -> Iterator[None]:
    try:
        yield
    except ValueError:  # a NUL or a lone surrogate
        raise FileNotFoundError("no file can have this name") from None


def read(path: str) -> bytes:
    """Return the bytes of the file. Raises the OSError of open, worded as one line."""
    with named(path), _possible_name():
        if os.path.isdir(path):  # asked here because Windows only says that permission is denied
            raise IsADirectoryError("is a folder, not a file")
        with open(path, "rb") as file:
            return file.read()


def try_writing(path: str) -> None:
    """Raise the OSError that writing path would raise, as far as is known before; leave no file.

    Raises IsADirectoryError for a folder, FileNotFoundError for a name that no file can have.
    """
    with named(path), _possible_name():
        if not path:
            raise FileNotFoundError("is not a file name")
        target = os.path.realpath(path)
        if not os.path.isdir(os.path.dirname(target)):
            raise FileNotFoundError("its folder does not exist")
        with suppress(FileNotFoundError):
            mode = os.lstat(target).st_mode  # its error says that a name is too long
            if stat.S_ISDIR(mode):
                raise IsADirectoryError("is a folder, not a file")
            if stat.S_ISFIFO(mode):
                raise OSError("is a pipe, not a file")
            if not os.access(target, os.W_OK):
                raise PermissionError("is not writable")
            if not stat.S_ISREG(mode):
                return
        part = _part(target)
        try:
            with open(part, "xb"):
                pass
        finally:  # also after an interrupt
            with suppress(FileNotFoundError):
                os.unlink(part)


def _part(target: str) -> str:
    """Return an unused name in the folder of target, for a file that is not complete yet."""
    return os.path.join(os.path.dirname(target), f"microgpt-{os.urandom(8).hex()}.part")


def write_whole(path: str, chunks: Iterable[bytes]) -> None:
    """Write a file so that it is complete at every moment, even after a crash.

    It is written under a temporary name in the same folder and then renamed.
    """
    target = os.path.realpath(path)  # a symbolic link stays one
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as file:  # a device is written to, not replaced
            file.writelines(chunks)
        return
    part = _part(target)
    try:
        with open(part, "xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, part)
        os.replace(part, target)
    except BaseException:  # an interrupt must not leave it behind either
        with suppress(OSError):
            os.unlink(part)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name must survive a power failure too
        handle = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
