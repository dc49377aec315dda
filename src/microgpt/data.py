"""Documents to train on, a list of strings: bundled names, a download, or a text file.

`load_documents` gets them, `describe` names them and `checksum` tells them apart. Nothing is
downloaded unless asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from importlib import resources

BUNDLED = "names_us1990"
SPLITS = ("lines", "paragraphs", "stream")

_MAKEMORE_URL = "https://raw.githubusercontent.com/karpathy/makemore/988aa59/names.txt"
_MAKEMORE_SHA256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
_DOWNLOAD_LIMIT = 1_000_000  # bytes, four times the file: a wrong answer cannot fill the memory
_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


class DownloadError(OSError):
    """A file that was asked for could not be downloaded into the cache folder."""


def load_documents(
    source: str | os.PathLike[str] | None = None, split: str = "lines"
) -> list[str]:
    """Return the documents of source in their order.

    source: None or "names_us1990": the bundled first names of the US Census 1990.
        "makemore": the 32,033 names of karpathy/makemore, downloaded once into the user's cache
        folder, or into the folder named by the environment variable MICROGPT_CACHE.
        Else the path of a UTF-8 text file. A file that is called makemore is "./makemore".
    split: "lines": one document a line; lines are stripped and blank ones dropped.
        "paragraphs": documents end at blank lines; they are stripped too.
        "stream": the whole text is one document, with every line end a newline.

    Raises an OSError if the file cannot be read (FileNotFoundError, IsADirectoryError,
    PermissionError, ...) or downloaded (DownloadError), and ValueError if it is not UTF-8, holds
    no document or split is something else. The message is one line and names the file.

    >>> docs = load_documents()
    >>> len(docs), docs[:3]
    (5163, ['mary', 'patricia', 'linda'])
    """
    if split not in SPLITS:
        raise ValueError(f"split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, not {split!r}")
    if source is None or source == BUNDLED:
        data = (resources.files("microgpt") / "datasets" / f"{BUNDLED}.txt").read_bytes()
    elif source == "makemore":
        data = _makemore()
    else:
        data = _read(os.fsdecode(source))
    return _documents(data, describe(source), split)


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


def printable(path: str) -> str:
    """Return path, quoted if it is empty or would not print as itself on one line."""
    return path if path and path.isprintable() else repr(path)


def _read(path: str) -> bytes:
    """Return the bytes of the file. Raises the OSError of open, worded as one line."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if os.path.isdir(path):  # asked here because Windows only says that permission is denied
            raise IsADirectoryError(f"{printable(path)}: is a folder, not a file") from None
        raise type(error)(f"{printable(path)}: {reason(error)}") from None
    except ValueError:  # a NUL or a lone surrogate, which no file name can hold
        raise FileNotFoundError(f"{printable(path)}: no file can have this name") from None


def _documents(data: bytes, name: str, split: str) -> list[str]:
    """Return the documents of a UTF-8 text that are not blank; name is for the errors."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at = error.start
        line = len(_lines(data[:at].decode("utf-8")))
        raise ValueError(
            f"{name}: not UTF-8 text (byte 0x{data[at]:02x} at offset {at}, line {line})"
        ) from None
    parts = _lines(text)
    if split != "lines":
        whole = "\n".join(parts)
        parts = [whole] if split == "stream" else re.split(r"\n\s*\n", whole)
    docs = [part if split == "stream" else part.strip() for part in parts if part.strip()]
    if not docs:
        raise ValueError(f"{name}: the file {'holds only blank lines' if text else 'is empty'}")
    return docs


def _lines(text: str) -> list[str]:
    """Split text at the line ends of text files: LF, CR LF and CR.

    str.splitlines would also break documents at form feeds, U+0085, U+2028 and others.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _makemore() -> bytes:
    """Return the names of makemore from the cache folder, downloaded if no intact copy is there."""
    path = os.path.join(cache_folder(), "makemore.txt")
    try:
        data = _read(path)
    except FileNotFoundError:
        return _download(path)
    return data if _is_makemore(data) else _download(path)


def _is_makemore(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == _MAKEMORE_SHA256


def cache_folder() -> str:
    """Return the absolute path of our folder for files that can be had again; it may not exist."""
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
        if not os.path.isabs(base):  # to be ignored, says the XDG specification
            base = os.path.join(home, ".cache")
    return os.path.join(base, "microgpt")


def _download(path: str) -> bytes:
    """Save the names of makemore as path and return them.

    Raises DownloadError, which says what to save where by hand; then path is as it was.
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
            raise OSError("what came has another sha256 than the file")
        _write(path, data)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a malformed proxy setting
        if isinstance(error, HTTPError):
            error.close()  # it is also the open response
        aim = "replace the damaged" if os.path.exists(path) else "save it as"
        raise DownloadError(
            f"cannot download the makemore names ({reason(error)}); "
            f"get {_MAKEMORE_URL} elsewhere and {aim} {printable(path)}"
        ) from None
    return data


def _write(path: str, data: bytes) -> None:
    """Write a file and its folder. Whoever reads path finds all of the data, or what was there."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:  # an interrupt too must not leave it
        os.unlink(temporary)
        raise


def reason(error: Exception) -> str:
    """Return on one line why error was raised, without its number or the name of its class."""
    from_socket = getattr(error, "reason", None)  # urllib's URLError wraps the error of the socket
    if isinstance(from_socket, OSError):
        error = from_socket
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
