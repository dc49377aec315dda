"""Check gradients: central differences against backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

TYPE_CHECKING = False  # typing would take most of the time of the import
if TYPE_CHECKING:
    from typing import Any


def gradcheck(
    f: Callable[..., Any],
    inputs: Any,
    eps: float | None = None,
    atol: float | None = None,
    rtol: float | None = None,
) -> bool:
    """Return True if backward gives the derivative of f with respect to every number in inputs.

    f: takes the inputs and returns one Value.
    inputs: the arguments of f: Values, Matrices, and lists of these, nested to any depth; or its
        only argument, a Value or a Matrix.

    The derivative is measured as (f(x + eps) - f(x - eps)) / (2 * eps); backward may differ
    from it by atol + rtol * abs(measured). By default these three are 1e-6, 1e-5 and 1e-3; if a
    Matrix of inputs is float32, which has half the digits, 2**-8, 1e-3 and 1e-2. Choose inputs away
    from kinks, such as relu at 0. f runs twice for each number, so keep the inputs small. Their
    data and gradients are restored afterwards.

    >>> from microgpt import Value
    >>> gradcheck(lambda a, b: a * b + a.exp(), [Value(2), Value(3)])
    True

    Raises AssertionError with the worst entry if one is off by more, TypeError if inputs or
    result have another type, ValueError if there are no inputs.
    """
    inputs = [inputs] if _is_value(inputs) or _is_matrix(inputs) else list(inputs)
    defaults = (2.0**-8, 1e-3, 1e-2) if _has_float32(inputs) else (1e-6, 1e-5, 1e-3)
    given = zip((eps, atol, rtol), defaults, strict=True)
    eps, atol, rtol = (default if x is None else x for x, default in given)
    entries = [entry for i, x in enumerate(inputs) for entry in _entries(x, f"inputs[{i}]")]
    if not entries:
        raise ValueError("gradcheck needs at least one input")
    values = [value for _, value in entries]
    before = [(value.data, value.grad) for value in values]
    try:
        for value in values:
            value.grad = 0.0
        _result(f, inputs).backward()
        analytic = [value.grad for value in values]
        numeric = [_central_difference(f, inputs, value, eps) for value in values]
    finally:
        for value, (data, grad) in zip(values, before, strict=True):
            value.data = data
            value.grad = grad
    wrong = []
    for (name, _), a, n in zip(entries, analytic, numeric, strict=True):
        difference, allowed = abs(a - n), atol + rtol * abs(n)
        if not difference <= allowed < math.inf:  # so that nan and inf are wrong
            badness = difference / allowed
            badness = math.inf if math.isnan(badness) else badness
            wrong.append((badness, name, a, n, difference, allowed))
    if wrong:
        _, name, a, n, difference, allowed = max(wrong, key=lambda entry: entry[0])
        raise AssertionError(
            f"the gradient of {name} is wrong\n"
            f"  backward gives       {a!r}\n"
            f"  central differences  {n!r}\n"
            f"  difference           {difference!r}\n"
            f"  allowed              {allowed!r}\n"
            f"This is the worst of {len(wrong)} wrong gradients among {len(entries)}."
        )
    return True


def _entries(x: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the Values in x, each with the expression that finds it."""
    if _is_value(x):
        yield name, x
    elif isinstance(x, (list, tuple)) or _is_matrix(x):
        for i, item in enumerate(x):
            yield from _entries(item, f"{name}[{i}]")
    else:
        raise TypeError(f"{name} must be a Value, a Matrix or a list, not {type(x).__name__}")


def _is_value(x: Any) -> bool:  # of either core
    return hasattr(x, "backward")


def _is_matrix(x: Any) -> bool:
    return hasattr(x, "load")


def _has_float32(x: Any) -> bool:
    if isinstance(x, (list, tuple)):
        return any(map(_has_float32, x))
    return _is_matrix(x) and bool(x.dtype == "float32")


def _result(f: Callable[..., Any], inputs: list[Any]) -> Any:
    result = f(*inputs)
    if not _is_value(result):
        raise TypeError(f"f must return a Value, not {type(result).__name__}")
    return result


def _central_difference(f: Callable[..., Any], inputs: list[Any], value: Any, eps: float) -> float:
    middle = value.data
    value.data = middle + eps
    above = _result(f, inputs).data
    value.data = middle - eps
    below = _result(f, inputs).data
    value.data = middle
    return float(above - below) / (2.0 * eps)
