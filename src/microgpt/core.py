"""The core in use: the compiled one if it was built, else the one in plain Python.

The environment variable MICROGPT_BACKEND decides: `auto` (the default), `cython` or `python`.
BACKEND is "cython" or "python", and BACKEND_REASON says why it is that one.
Raises at import: ValueError if MICROGPT_BACKEND is something else, ImportError if it asks for
`cython` and the compiled core is not there.
"""

import os
from typing import TYPE_CHECKING, Any

_asked = os.environ.get("MICROGPT_BACKEND") or "auto"
if _asked not in ("auto", "cython", "python"):
    raise ValueError(f"MICROGPT_BACKEND must be auto, cython or python, not {_asked!r}")

BACKEND = "python"
BACKEND_REASON = f"MICROGPT_BACKEND={_asked}"
Ids: Any = None  # what graphs are recorded and replayed with; the pure core has none of them
Recording: Any = None
Tape: Any = None

if not TYPE_CHECKING and _asked != "python":
    try:
        from ._core import (
            Matrix,
            Value,
            adam_update,
            attention,
            attention_weights,
            cross_entropy,
            embedding,
            grad_enabled,
            linear,
            mean,
            no_grad,
            relu,
            rmsnorm,
            softmax,
        )
        from ._core import _Ids as Ids  # noqa: F401
        from ._core import _Recording as Recording  # noqa: F401
        from ._core import _Tape as Tape  # noqa: F401

        BACKEND = "cython"
        if _asked == "auto":
            BACKEND_REASON = "the compiled core is there"
    except ModuleNotFoundError as _error:  # not built; a build that is broken raises ImportError
        if _asked == "cython":
            raise ImportError(
                f"MICROGPT_BACKEND=cython, but the compiled core was not built ({_error})"
            ) from None
        BACKEND_REASON = "the compiled core was not built"

if BACKEND == "python":
    from ._core_py import (
        Matrix,
        Value,
        adam_update,
        attention,
        attention_weights,
        cross_entropy,
        embedding,
        grad_enabled,
        linear,
        mean,
        no_grad,
        relu,
        rmsnorm,
        softmax,
    )

__all__ = [
    "BACKEND",
    "BACKEND_REASON",
    "Matrix",
    "Value",
    "adam_update",
    "attention",
    "attention_weights",
    "cross_entropy",
    "embedding",
    "grad_enabled",
    "linear",
    "mean",
    "no_grad",
    "relu",
    "rmsnorm",
    "softmax",
]
