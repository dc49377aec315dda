"""Other ways to train the same model, to measure ours against.

`YARDSTICKS` maps a name to a Yardstick; `load` makes the Problem that each of them trains on:

    problem = load("names.txt", n_embd=16, n_layer=1)
    result = YARDSTICKS["c"].train(problem, steps=1000, batch=1)
    result.losses, result.microseconds  # one loss per step; processor time per document

`missing()` of a Yardstick says why it cannot run here, or is None. Importing this package imports
the standard library only. Every train is single-threaded; set ONE_THREAD in the environment
before NumPy is first imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from . import frameworks, handwritten
from .problem import FIRST_STEPS, N_HEAD, Problem, Result, load

__all__ = ["FIRST_STEPS", "N_HEAD", "ONE_THREAD", "YARDSTICKS", "Problem", "Result", "load"]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _train_numpy(problem: Problem, steps: int, batch: int = 1) -> Result:
    from . import numpy_gpt

    return numpy_gpt.train(problem, steps, batch)


@dataclass(frozen=True)
class Yardstick:
    """One way to train.

    `train(problem, steps, batch)` gives a Result. `exact` means float64: its losses agree with
    the script's to 1e-9; the others' first fifty agree to 1e-3.
    """

    title: str
    exact: bool
    train: Callable[..., Result]
    missing: Callable[[], str | None]


YARDSTICKS = {
    "c": Yardstick("C, float64", True, handwritten.train, handwritten.missing),
    "c-avx512": Yardstick(
        "C, float64, AVX-512",
        True,
        partial(handwritten.train, level="avx512"),
        partial(handwritten.missing, "avx512"),
    ),
    "c32": Yardstick(
        "C, float32, -ffast-math",
        False,
        partial(handwritten.train, level="float32"),
        handwritten.missing,
    ),
    "numpy": Yardstick("NumPy, float64", True, _train_numpy, partial(frameworks.missing, "numpy")),
    "jax": Yardstick(
        "JAX, one scan, float32", False, frameworks.train_jax, partial(frameworks.missing, "jax")
    ),
    "jax-steps": Yardstick(
        "JAX, step by step, float32",
        False,
        partial(frameworks.train_jax, scan=False),
        partial(frameworks.missing, "jax"),
    ),
    "torch": Yardstick(
        "PyTorch eager, float32",
        False,
        frameworks.train_torch,
        partial(frameworks.missing, "torch"),
    ),
    "torch64": Yardstick(
        "PyTorch eager, float64",
        True,
        partial(frameworks.train_torch, dtype="float64"),
        partial(frameworks.missing, "torch"),
    ),
    "torch-flat": Yardstick(
        "PyTorch eager, float32, flat Adam",
        False,
        partial(frameworks.train_torch, flat=True),
        partial(frameworks.missing, "torch"),
    ),
}
