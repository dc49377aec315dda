"""The safetensors file format: named blocks of numbers with text metadata.

https://huggingface.co/docs/safetensors: eight bytes with the length of a JSON header, the header,
and the numbers, here float64 and float32. Nothing in a file is executed, and nothing in it is
trusted before it is checked against the size of the file.
"""

from __future__ import annotations

import json
import math
import os
import sys
from array import array
from collections.abc import Mapping
from reprlib import repr as shorten
from typing import Any, BinaryIO, Literal

from .files import write_whole

CODES: dict[str, Literal["d", "f"]] = {"F64": "d", "F32": "f"}  # of these types, in array
_HEADER_LIMIT = 10_000_000  # bytes; a header of ours has ten thousand and the alphabet


class Reader:
    """Read an open safetensors file, or the bytes of one in an io.BytesIO.

    metadata: the strings of the header; shapes: name -> shape of each tensor; types: name -> F64
        or F32.
    Raises ValueError if the file is damaged or has numbers of another type.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("is not a safetensors file, or it is cut off")
        if length > _HEADER_LIMIT:
            raise ValueError(f"its header has {length} bytes, more than {_HEADER_LIMIT}")
        header = json_object(file.read(length), "the header")
        self._start = 8 + length
        self.metadata = _metadata(header.pop("__metadata__", {}))
        self._places = _places(header, size - self._start)
        self.shapes = {name: shape for name, (shape, _, _) in self._places.items()}
        self.types = {name: entry["dtype"] for name, entry in header.items()}

    def numbers(self, name: str) -> array[float]:
        """Return the numbers of a tensor, row by row; all of them are finite."""
        _, start, end = self._places[name]
        self._file.seek(self._start + start)
        data = self._file.read(end - start)
        if len(data) != end - start:
            raise ValueError("the file became shorter while it was read")
        dtype = self.types[name]
        numbers = array(CODES[dtype], _little_endian(dtype, data))
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name} has a number that is not finite")
        return numbers


def write(
    path: str,
    metadata: Mapping[str, str],
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
) -> None:
    """Write a file atomically; the arguments and errors are those of encode."""
    write_whole(path, encode(metadata, tensors))


def encode(
    metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]
) -> list[bytes]:
    """Return the content of a file, in parts.

    tensors: name -> type (F64 or F32), shape and the bytes of its numbers, row by row.
    Raises FloatingPointError if a number is not finite.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        if not all(map(math.isfinite, memoryview(data).cast(CODES[dtype]))):
            raise FloatingPointError(f"not saved: {name} has a number that is not finite")
        offsets = [end, end + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    numbers = (_little_endian(dtype, data) for dtype, _, data in tensors.values())
    return [len(text).to_bytes(8, "little"), text, *numbers]


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return a JSON object without duplicate keys, NaN or infinities."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("duplicate key")
        return keys

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, too
        raise ValueError(f"{what} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def _metadata(entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
        raise ValueError("its metadata is not made of strings")
    return entry


def _places(
    header: dict[str, Any], size: int
) -> dict[str, tuple[tuple[int, ...], int, int]]:
    """Return name -> shape and the first and last offset, all of them inside size bytes."""
    places: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{shorten(name)} is not described by dtype, shape and data_offsets")
        dtype = entry["dtype"]
        if not isinstance(dtype, str) or dtype not in CODES:
            raise ValueError(f"{shorten(name)} is {shorten(dtype)}, not F64 or F32")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not (_whole(shape) and _whole(offsets) and len(shape) <= 2 and len(offsets) == 2):
            raise ValueError(
                f"{shorten(name)} has shape {shorten(shape)} and offsets {shorten(offsets)}"
            )
        if offsets[1] - offsets[0] != int(dtype[1:]) // 8 * math.prod(shape):
            raise ValueError(
                f"{shorten(name)} of shape {shorten(shape)} does not fit its offsets "
                f"{shorten(offsets)}"
            )
        places[name] = tuple(shape), offsets[0], offsets[1]
    end = 0
    for name, (_, start, stop) in sorted(places.items(), key=lambda item: item[1][1:]):
        if start != end:
            raise ValueError(f"{shorten(name)} overlaps another tensor, or leaves a gap")
        end = stop
    if end != size:
        raise ValueError(f"it has {size} bytes of numbers, its header says {shorten(end)}")
    return places


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _little_endian(dtype: str, data: bytes) -> bytes:
    """Return the bytes of numbers in the order of the file, or back."""
    if sys.byteorder == "little":
        return data
    numbers = array(CODES[dtype], data)
    numbers.byteswap()
    return numbers.tobytes()
