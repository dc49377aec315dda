"""What a sweep may vary: ranges to draw from, what all trials share, and defaults of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from . import _checks as checks

SHARED = ("unit", "val_fraction", "val_seed")  # what all trials must have in common, to be compared
SWEEP_DEFAULTS = {"val_fraction": 0.1, "val_seed": 0}  # where they are not those of a single run


@dataclass(frozen=True)
class LogUniform:
    """A range of which a sweep draws values whose logarithms are uniform.

    low, high: the ends, above 0. Between ints, ints are drawn; else floats of 4 digits.

    Raises TypeError if an end is no number, ValueError if they are not in order or not above 0.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < checks.real(self.low, "low") <= checks.real(self.high, "high"):
            raise ValueError(f"a range needs 0 < low <= high, not {self.low}..{self.high}")

    def draw(self, rng: Random) -> float:
        """Return a value drawn by rng."""
        ints = isinstance(self.low, int) and isinstance(self.high, int)
        top = self.high + 1 if ints else self.high
        value = math.exp(rng.uniform(math.log(self.low), math.log(top)))
        # Few digits: exp and log of another machine may differ in the last one.
        value = int(value) if ints else float(f"{value:.4g}")
        return min(max(value, self.low), self.high)
