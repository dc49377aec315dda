"""The core in use: the compiled one if it was built, else the one in plain Python.

The environment variable MICROGPT_BACKEND decides: `auto` (the default), `cython` or `python`.
BACKEND is "cython" or "python", and BACKEND_REASON says why.
Raises at import: ValueError if MICROGPT_BACKEND is something else, ImportError if it asks for
`cython` and the compiled core was not built.
"""

import os

from ._core_py import *  # noqa: F403  seen by type checkers; used without the other
from ._core_py import __all__ as _names

_asked = os.environ.get("MICROGPT_BACKEND") or "auto"
if _asked not in ("auto", "cython", "python"):
    raise ValueError(f"MICROGPT_BACKEND must be auto, cython or python, not {_asked!r}")

BACKEND = "python"
BACKEND_REASON = f"MICROGPT_BACKEND={_asked}"
if _asked != "python":
    try:
        from ._core import *  # type: ignore[import-not-found]  # noqa: F403

        BACKEND = "cython"
        if _asked == "auto":
            BACKEND_REASON = "compiled core found"
    except ModuleNotFoundError as _error:  # not built; a build that is broken raises ImportError
        if _asked == "cython":
            raise ImportError(
                f"MICROGPT_BACKEND=cython, but the compiled core was not built ({_error})"
            ) from None
        BACKEND_REASON = "the compiled core was not built"
    except ImportError as _error:
        if not any(words in str(_error) for words in ("one interpreter", "in subinterpreters")):
            raise  # these are the words of Cython, and of CPython from 3.12 on
        raise ImportError(
            "the compiled core works in one interpreter per process: "
            "set MICROGPT_BACKEND=python in the others"
        ) from None

__all__ = ["BACKEND", "BACKEND_REASON", *_names]
