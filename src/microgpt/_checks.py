"""The argument checks and error messages of both cores, and the checks of a run's settings."""

from __future__ import annotations

import math
import operator
import sys
from array import array
from collections.abc import Iterable

TYPE_CHECKING = False  # typing would take most of the time of the import
if TYPE_CHECKING:
    from typing import Any

Shape = tuple[int, int]


def is_number(x: object) -> bool:
    if isinstance(x, (float, int)):
        return True
    return (hasattr(x, "__float__") or hasattr(x, "__index__")) and not _is_array(x)


def _is_array(x: object) -> bool:
    """Return whether x is an array, which converts to a float if it has one entry."""
    return bool(getattr(x, "shape", ()))


def number(x: Any, what: str) -> float:
    if not is_number(x):
        raise TypeError(f"{what} must be a number, not {type(x).__name__}")
    return float(x)


def instance(x: object, name: str, wanted: type) -> None:
    if not isinstance(x, wanted):
        raise TypeError(f"{name} must be a {wanted.__name__}, not {type(x).__name__}")


def dtype(x: Any) -> str:
    if not isinstance(x, str) or x not in ("float64", "float32"):
        raise ValueError(f"dtype must be 'float64' or 'float32', not {x!r}")
    return x


def dtypes(op: str, found: list[str]) -> None:
    if len(set(found)) > 1:
        raise TypeError(
            f"{op} of blocks of different types, {' and '.join(found)}: "
            "Matrix.of(m, dtype) converts one"
        )


def index(x: Any) -> int:
    if not hasattr(x, "__index__"):
        raise TypeError(f"expected an int, not {type(x).__name__}")
    return operator.index(x)


def integer(x: Any, what: str, least: int | None = None, most: int | None = None) -> int:
    """Return x as an int from least to most. A setting is never a bool or a string."""
    if isinstance(x, bool) or not hasattr(x, "__index__"):
        raise TypeError(f"{what} must be an int, not {type(x).__name__}")
    result = operator.index(x)
    if least is not None and result < least:
        raise ValueError(f"{what} must be at least {least}, not {shown(result)}")
    if most is not None and result > most:
        raise ValueError(f"{what} must be at most {most}, not {shown(result)}")
    return result


def real(x: Any, what: str) -> float:
    """Return x as a finite float of 0 or more. A setting is never a bool or a string."""
    if isinstance(x, bool) or not is_number(x):
        raise TypeError(f"{what} must be a number, not {type(x).__name__}")
    try:
        result = float(x)
    except OverflowError:
        result = math.inf
    if not 0 <= result < math.inf:
        raise ValueError(f"{what} must be a finite number of at least 0, not {shown(x)}")
    return result


def shown(x: object) -> str:
    """Return x as text for a message: a huge int has more digits than Python converts."""
    if isinstance(x, int) and abs(x) >= 10**30:
        return f"a number of about {int(x.bit_length() * 0.30103)} digits"
    return str(x)


def power(x: float, exponent: float) -> float:
    if x < 0.0 and math.isfinite(x) and math.isfinite(exponent) and exponent % 1.0:
        raise ValueError(f"{x} ** {exponent} is not a real number")
    text = f"1 / {x}" if exponent == -1.0 else f"{x} ** {exponent}"  # a / b is a * b ** -1
    try:
        return float(x**exponent)
    except ZeroDivisionError:
        raise ZeroDivisionError(f"division by zero: {text}") from None
    except OverflowError:
        raise OverflowError(f"{text} is too large for a float") from None


def power_slope(x: float, exponent: float) -> float:
    """Return the derivative of x ** exponent, which is 0 for the exponent 0, at 0 too."""
    try:
        return exponent * float(x ** (exponent - 1.0))
    except (ZeroDivisionError, OverflowError) as error:
        if exponent == 0.0:
            return 0.0
        text = "1 / x" if exponent == -1.0 else f"x ** {exponent}"
        size = "infinite" if isinstance(error, ZeroDivisionError) else "too large for a float"
        raise type(error)(f"the derivative of {text} at {x} is {size}") from None


def exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        raise OverflowError(f"exp({x}) is too large for a float") from None


def log(x: float) -> float:
    if x <= 0.0:
        raise ValueError(f"log({x}) is not defined: log takes a positive number")
    return math.log(x)


def function(f: object) -> None:
    if not callable(f):
        raise TypeError(f"a Replay is made from a function, not {type(f).__name__}")


def links(
    children: Iterable[Any], local_grads: Iterable[Any], value_class: type
) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """Return children and local gradients as tuples of the same length."""
    children = tuple(children)
    grads = tuple([number(grad, "a local gradient") for grad in local_grads])
    for child in children:
        if not isinstance(child, value_class):
            raise TypeError(f"a child must be a Value, not {type(child).__name__}")
    if len(children) != len(grads):
        raise ValueError(
            f"one local gradient per child is needed: {len(children)}, not {len(grads)}"
        )
    return children, grads


def sizes(rows: Any, cols: Any) -> Shape:
    if cols is None:
        raise TypeError("a Matrix is made from rows and cols; Matrix.of makes one from lists")
    rows, cols = index(rows), index(cols)
    if rows < 1 or cols < 1:
        what = f"{shown(rows)} x {shown(cols)}"
        raise ValueError(f"a Matrix has at least one row and one column, not {what}")
    if rows * cols > sys.maxsize // 8:
        raise MemoryError(f"no memory for a Matrix of {shown(rows)} x {shown(cols)}")
    return rows, cols


def rectangle(lists: Iterable[Iterable[Any]]) -> tuple[tuple[Any, ...], ...]:
    """Return lists as a tuple of tuples; raise ValueError unless all have the same length > 0.

    Tuples, for what converts an entry later could get hold of a list and change its length.
    """
    try:
        rows = tuple([tuple(row) for row in lists])
    except TypeError as error:
        raise TypeError(f"a Matrix is made of rows, as in [[1, 2], [3, 4]]: {error}") from error
    lengths = {len(row) for row in rows}
    if not rows or 0 in lengths:
        raise ValueError("a Matrix has at least one row and one column")
    if len(lengths) > 1:
        raise ValueError(f"rows of a Matrix are equally long, not {min(lengths)} to {max(lengths)}")
    return rows


def row_index(i: Any, rows: int) -> int:
    if isinstance(i, tuple):
        raise TypeError("an entry of a Matrix is m[i][j], not m[i, j]")
    row = index(i)
    if not -rows <= row < rows:
        raise IndexError(f"row {shown(row)} of a Matrix with {rows} rows")
    return row % rows


def row_slice(wanted: slice, rows: int) -> tuple[int, int]:
    start, stop, step = wanted.indices(rows)
    if step != 1:
        raise ValueError(f"a slice of a Matrix must have step 1, not {step}")
    if stop <= start:
        raise ValueError(f"rows {start}:{stop} of a Matrix with {rows} rows are empty")
    return start, stop


def cache_row(position: int, rows: int) -> None:
    """Raise ValueError unless position is that of a row of keys and values."""
    if not 0 <= position < rows:
        raise ValueError(f"position {position} is outside the {rows} rows of keys and values")


def load_shapes(own: Shape, other: Shape) -> None:
    if own != other:
        raise ValueError(f"load needs shape {own}, not {other}")


def ids(items: Iterable[Any], n: int, what: str) -> list[int]:
    """Return items as a list of ints; raise ValueError if one is outside 0..n-1."""
    items = list(items)
    if any(isinstance(item, str) for item in items):
        raise TypeError(f"{what}s must be ints, not text: Tokenizer.encode makes ids of a text")
    numbers = [index(item) for item in items]
    if not numbers:
        raise ValueError(f"at least one {what} is needed")
    for i in numbers:
        if not 0 <= i < n:
            raise ValueError(f"{what} {shown(i)} is outside 0..{n - 1}")
    return numbers


def temperature(x: Any) -> float:
    result = number(x, "temperature")
    if not 1e-300 < result < math.inf:  # smaller, and 1 / temperature overflows
        raise ValueError(f"temperature must be above 1e-300 and finite, not {result}")
    return result


def draw_limits(top_k: Any, top_p: Any) -> tuple[int | None, float | None]:
    if top_k is not None:
        top_k = integer(top_k, "top_k", 1)
    if top_p is not None and not 0.0 < (top_p := number(top_p, "top_p")) <= 1.0:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    return top_k, top_p


def row_to_draw_from(n: int, least: float, total: float, is_logits: bool) -> None:
    """Check the number, the least and the sum of the numbers of a row."""
    if not n:
        raise ValueError("at least one probability is needed")
    if not (math.isfinite(total) and (is_logits or total > 0.0)):
        raise FloatingPointError("the model's logits are not finite")
    if least < 0.0 and not is_logits:
        raise ValueError(f"a probability is at least 0, not {least}")


def one_target_per_row(rows: int, targets: int) -> None:
    if rows != targets:
        raise ValueError(f"{rows} rows of logits need as many targets, not {targets}")


def elementwise_shapes(op: str, a: Shape, b: Shape) -> None:
    if a[1] == b[1] and (a[0] == b[0] or 1 in (a[0], b[0])):
        return
    message = f"{op} needs as many rows and columns, or one row that serves all, not {a} and {b}"
    if 1 in (a[1], b[1]):
        message += f"; linear(column, Matrix.of([[1.0]] * {max(a[1], b[1])})) repeats a column"
    raise ValueError(message)


def matrix_with_value(op: str) -> None:
    raise TypeError(
        f"{op} of a Matrix and a Value: Matrix.pack([[value] * n]) makes a row that serves all rows"
    )


def matrix_with_array(op: str, x: object) -> None:
    """Raise TypeError if x is an array, of NumPy say."""
    if _is_array(x):
        argument = "[array]" if len(getattr(x, "shape", ())) == 1 else "array"
        raise TypeError(f"{op} of a Matrix and an array: Matrix.of({argument}) makes a Matrix")


def exponent(x: object) -> None:
    raise TypeError(f"the exponent must be a number, not a {type(x).__name__}; see log and exp")


def linear_shapes(x: Shape, w: Shape) -> None:
    if x[1] != w[1]:
        raise ValueError(f"linear needs x and w with equal columns, not {x} and {w}")


def attention_shapes(q: Shape, k: Shape, v: Shape, n_head: int) -> None:
    if k != v or q[1] != k[1] or q[0] > k[0]:
        raise ValueError(
            "attention needs equal columns in q, k and v, equal rows in k and v, and as many in q "
            f"or fewer, not {q}, {k} and {v}"
        )
    if n_head < 1 or q[1] % n_head:
        raise ValueError(f"{q[1]} columns cannot be split into {n_head} heads")


def document_starts(rows: int, starts: list[int]) -> None:
    if starts[:1] != [0] or not all(map(operator.lt, starts, starts[1:] + [rows])):
        raise ValueError(f"starts must rise from 0 and stay below {rows}, not {starts}")


def document_length(length: int, block_size: int) -> None:
    if length > block_size:
        raise ValueError(f"a document of {length} tokens is longer than block_size {block_size}")


def document_too_short(length: int) -> None:
    raise ValueError(f"a document needs at least two tokens, not {length}")


def place(begin: int, length: int) -> None:
    if not 0 <= begin < length:
        raise ValueError(f"a document cannot begin at {begin} of {length} ids")


def unsigned_array(ids: object) -> None:
    if not (isinstance(ids, array) and ids.typecode in ("B", "H", "I")):
        what = f"one of {ids.typecode!r}" if isinstance(ids, array) else type(ids).__name__
        raise TypeError(f"ids must be an array of 'B', 'H' or 'I', not {what}")


def starts_need_equal_rows(rows: int, keys: int) -> None:
    if rows != keys:
        raise ValueError(f"starts need as many keys as queries, not {keys} and {rows}")


def changed_since_forward(op: str, how: str) -> None:
    raise RuntimeError(f"numbers that {op} {how} have changed between its forward and backward")


def adam_shapes(params: list[Shape], m: list[Shape], v: list[Shape]) -> None:
    if not len(params) == len(m) == len(v):
        raise ValueError(f"{len(params)} params need as many moments, not {len(m)} and {len(v)}")
    for p, first, second in zip(params, m, v, strict=True):
        if not p == first == second:
            raise ValueError(
                f"a param of shape {p} needs moments of the same shape, not {first} and {second}"
            )


def adam_rates(
    step: Any, lr: Any, beta1: Any, beta2: Any, eps: Any
) -> tuple[int, float, float, float, float]:
    """Return the step as an int and the rates as floats."""
    step, lr, eps = index(step), number(lr, "lr"), number(eps, "eps")
    beta1, beta2 = number(beta1, "beta1"), number(beta2, "beta2")
    if not 0 <= step < sys.maxsize:
        raise ValueError(f"step must be from 0 to {sys.maxsize - 1}, not {shown(step)}")
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
        raise ValueError(f"beta1 and beta2 must be in [0, 1), not {beta1} and {beta2}")
    if not eps > 0.0:
        raise ValueError(f"eps must be positive, not {eps}")
    return step, lr, beta1, beta2, eps
