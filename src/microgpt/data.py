"""Documents to train on, a list of strings: bundled names, a download, or a text file.

`load_documents` gets them, `describe` names them and `checksum` tells them apart. Nothing is
downloaded unless asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import resources
from random import Random

from .files import one_line, printable, read, reason, write_whole

BUNDLED = "names_us1990"
UNITS = ("line", "paragraph", "stream")

_MAKEMORE_URL = "https://raw.githubusercontent.com/karpathy/makemore/988aa59/names.txt"
_MAKEMORE_SHA256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
_DOWNLOAD_LIMIT = 1_000_000  # bytes, four times the file: a wrong answer cannot fill the memory
_STORED_LIMIT = 2**28  # bytes of a data file that a checkpoint names
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


class DownloadError(OSError):
    """A file that was asked for could not be downloaded into the cache folder."""


class Documents(list[str]):
    """Documents as load_documents got them: a list that knows its source, unit and checksum.

    So that a run that is trained on them can say in its file where they are. A part of them, or
    what is computed from them, is a plain list.
    """

    def __init__(self, docs: Iterable[str], source: str, unit: str) -> None:
        super().__init__(docs)
        self.source, self.unit, self.sha256 = source, unit, checksum(self)


def load_documents(
    source: str | os.PathLike[str] | None = None, unit: str = "line"
) -> Documents:
    """Return the documents of source in their order, a list.

    source: None or "names_us1990": the bundled first names of the US Census 1990.
        "makemore": the 32,033 names of karpathy/makemore, downloaded once into the user's cache
        folder, or into the folder named by the environment variable MICROGPT_CACHE.
        Else the path of a UTF-8 text file. A file called makemore is "./makemore".
    unit: what counts as one document.
        "line": a line; lines are stripped and blank ones dropped.
        "paragraph": what is between blank lines, stripped too.
        "stream": the whole text, with every line end a newline.

    Raises an OSError if the file cannot be read (FileNotFoundError, IsADirectoryError,
    PermissionError, ...) or downloaded (DownloadError), and ValueError if it is not UTF-8, holds
    no document or unit is something else. The message is one line and names the file.

    >>> docs = load_documents()
    >>> len(docs), docs[:3]
    (5163, ['mary', 'patricia', 'linda'])
    """
    check_unit(unit)
    if source is None or source == BUNDLED:
        source = BUNDLED
        data = (resources.files("microgpt") / "datasets" / f"{BUNDLED}.txt").read_bytes()
    elif source == "makemore":
        data = _makemore()
    else:
        path = os.fsdecode(source)
        # Path("makemore") is a file, and so is what is recorded of it
        source = path if path not in (BUNDLED, "makemore") else os.path.join(os.curdir, path)
        data = read(path)
    return Documents(_documents(data, describe(source), unit), source, unit)


def source_of(docs: Iterable[str], unit: str, sha256: str) -> str:
    """Return what load_documents got docs from, if it did and would get the same; else ""."""
    if isinstance(docs, Documents) and (docs.unit, docs.sha256) == (unit, sha256):
        return docs.source
    return ""


def check_stored(source: str) -> None:
    """Raise ValueError unless source, named by a checkpoint, may be loaded without asking the user.

    That holds for the bundled names, the names of makemore if they were downloaded before, and a
    regular file of 1 byte to 256 MiB: no device, no pipe, no download, no computer of a network.
    """
    if source == BUNDLED:
        return
    try:
        if source.startswith(("//", "\\\\")):  # on Windows this asks another computer
            raise ValueError("may be on another computer")
        status = os.stat(_makemore_path() if source == "makemore" else source)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a file")
        if not 0 < status.st_size <= _STORED_LIMIT:  # a file of /proc has 0, and need not end
            raise ValueError(f"has {status.st_size} bytes")
    except (OSError, ValueError) as error:
        raise ValueError(f"{printable(source)}: {reason(error)}: give --data") from None


def check_unit(unit: object) -> None:
    if unit not in UNITS:
        found = one_line(repr(unit), 80)
        raise ValueError(f"unit must be {', '.join(UNITS[:-1])} or {UNITS[-1]}, not {found}")


def describe(source: str | os.PathLike[str] | None = None) -> str:
    """Return a short name for what load_documents(source) loads.

    >>> describe()
    'names_us1990 (bundled)'
    """
    if source is None or source == BUNDLED:
        return f"{BUNDLED} (bundled)"
    if source == "makemore":
        return "makemore (downloaded)"
    return printable(os.fsdecode(source))


def checked_documents(docs: Iterable[str]) -> list[str]:
    """Return docs as a list; raise what prepare says of them."""
    if isinstance(docs, str):
        raise TypeError("docs must be a list of strings; load_documents reads a file")
    documents = docs if isinstance(docs, Documents) else list(docs)
    for doc in documents:
        if not isinstance(doc, str):
            raise TypeError(f"a document must be a string, not {type(doc).__name__}")
    if not documents:
        raise ValueError("at least one document is needed")
    if not all(documents):
        raise ValueError(f"document {documents.index('') + 1} is empty")
    return documents


def train_val_split(
    docs: Sequence[str],
    rng: Random,
    unit: str,
    val_fraction: float,
    block_size: int,
    val_seed: int | None = None,
) -> tuple[list[str], list[str]]:
    """Return the documents to train on, shuffled by rng, and those to validate on.

    val_seed: chooses those to validate on, whatever rng is; None: they are the end of what rng
        has shuffled. Those of a stream are always its end.
    """
    if unit == "stream":
        if len(docs) > 1:
            raise ValueError(f"a stream is one document, not {len(docs)}")
        [text] = docs
        n = _n_validation(len(text), val_fraction)
        return [text[: len(text) - n]], windows(text[len(text) - n :], block_size)
    # a document in both parts would be memorised, not predicted
    documents = list(dict.fromkeys(docs) if val_fraction else docs)
    n = _n_validation(len(documents), val_fraction)
    if val_seed is None:
        rng.shuffle(documents)
        return documents[: len(documents) - n], documents[len(documents) - n :]
    Random(val_seed).shuffle(documents)
    training, validation = documents[: len(documents) - n], documents[len(documents) - n :]
    rng.shuffle(training)
    return training, validation


def _n_validation(n: int, val_fraction: float) -> int:
    """Return how many of n are held out for validation: at least one, if any are to be."""
    held_out = max(1, round(n * val_fraction)) if val_fraction else 0
    if held_out >= n:
        raise ValueError(f"val_fraction {val_fraction} of {n} leaves nothing to train on")
    return held_out


def windows(text: str, length: int) -> list[str]:
    """Return text cut into pieces of a length; the last may be shorter.

    >>> windows("abcdefgh", 3)
    ['abc', 'def', 'gh']
    """
    return [text[i : i + length] for i in range(0, len(text), length)]


def checksum(docs: Iterable[str]) -> str:
    """Return the sha256 of docs as lines of UTF-8, each with a newline, in hexadecimal.

    >>> checksum(["emma", "ava"])[:16]
    '3b7f8ab100fc7579'
    """
    digest = hashlib.sha256()
    for doc in docs:
        digest.update(f"{doc}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _documents(data: bytes, name: str, unit: str) -> list[str]:
    """Return the documents of a UTF-8 text that are not blank; name is for the errors."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at = error.start
        line = len(_lines(data[:at].decode("utf-8")))
        utf_16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise ValueError(
            f"{name}: not UTF-8 text (byte 0x{data[at]:02x} at offset {at}, line {line})"
            + ("; it looks like UTF-16: save it as UTF-8" if utf_16 else "")
        ) from None
    parts = _lines(text)
    if unit != "line":
        whole = "\n".join(parts)
        parts = [whole] if unit == "stream" else re.split(r"\n\s*\n", whole)
    docs = [part if unit == "stream" else part.strip() for part in parts if part.strip()]
    if not docs:
        raise ValueError(f"{name}: the file {'holds only blank lines' if text else 'is empty'}")
    return docs


def _lines(text: str) -> list[str]:
    """Split text at the line ends of text files: LF, CR LF and CR.

    str.splitlines would also break documents at form feeds, U+0085, U+2028 and others.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _makemore() -> bytes:
    """Return the names of makemore from the cache folder, downloaded if it has no intact copy."""
    path = _makemore_path()
    with suppress(FileNotFoundError):
        data = read(path)
        if _is_makemore(data):
            return data
    return _download(path)


def _makemore_path() -> str:
    return os.path.join(cache_folder(), "makemore.txt")


def _is_makemore(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == _MAKEMORE_SHA256


def cache_folder() -> str:
    """Return the absolute path of our folder for downloaded files; it may not exist."""
    if folder := os.environ.get("MICROGPT_CACHE"):
        return os.path.abspath(folder)
    home = os.path.expanduser("~")
    if not os.path.isabs(home):  # no HOME, and the system does not know the user
        home = tempfile.gettempdir()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
    elif sys.platform == "darwin":
        base = os.path.join(home, "Library", "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # ignored, as the XDG specification asks
            base = os.path.join(home, ".cache")
    return os.path.join(base, "microgpt")


def _download(path: str) -> bytes:
    """Save the names of makemore as path and return them.

    Raises DownloadError, which says what to save where by hand; path is unchanged then.
    """
    # Loading these takes about 50 ms, and most runs never download.
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    try:
        with urlopen(_MAKEMORE_URL, timeout=_DOWNLOAD_TIMEOUT) as response:
            if response.url != _MAKEMORE_URL:
                raise OSError(f"redirected to {response.url}")
            data: bytes = response.read(_DOWNLOAD_LIMIT)
        if not _is_makemore(data):
            raise OSError("the download does not have the expected sha256")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, [data])
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a malformed proxy setting
        if isinstance(error, HTTPError):
            error.close()  # it is also the open response
        aim = "replace the damaged" if os.path.exists(path) else "save it as"
        raise DownloadError(
            f"cannot download the makemore names ({reason(error)}); "
            f"get {_MAKEMORE_URL} elsewhere and {aim} {printable(path)}"
        ) from None
    return data
