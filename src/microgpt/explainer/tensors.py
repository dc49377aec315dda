"""Blocks of numbers in the data of a page: base64 of little-endian floats."""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import Any

from ..core import Matrix
from ..safetensors import CODES


def tensor(numbers: Iterable[float], shape: Sequence[int], dtype: str = "F64") -> dict[str, Any]:
    """Return the JSON form of numbers, row by row; F32 rounds them."""
    stored = array(CODES[dtype], numbers)
    if sys.byteorder == "big":
        stored.byteswap()
    return {"shape": list(shape), "dtype": dtype, "data": b64encode(stored.tobytes()).decode()}


def numbers_of(tensor: dict[str, Any]) -> list[float]:
    """Return the numbers of the JSON form, row by row.

    >>> numbers_of(tensor([1.5, -2.0], [2]))
    [1.5, -2.0]
    """
    stored = array(CODES[tensor["dtype"]], b64decode(tensor["data"]))
    if sys.byteorder == "big":
        stored.byteswap()
    return list(stored)


def exact(numbers: Sequence[float], shape: Sequence[int]) -> dict[str, Any]:
    """Return the JSON form of numbers without rounding: F32 if they all are float32, else F64."""
    dtype = "F32" if list(array("f", numbers)) == list(numbers) else "F64"
    return tensor(numbers, shape, dtype)


def flattened(lists: Iterable[Iterable[float]]) -> list[float]:
    return [number for row in lists for number in row]


def matrix_tensor(matrix: Matrix, dtype: str = "F64") -> dict[str, Any]:
    """Return the JSON form of a Matrix."""
    return tensor(flattened(matrix.tolist()), matrix.shape, dtype)
