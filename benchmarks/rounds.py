"""How sure a median of several rounds is, and how busy the machine was meanwhile."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence


def spread(times: Sequence[float]) -> float:
    """Return half the distance of the quartiles, relative to the median; inf for one time."""
    if len(times) < 2:
        return math.inf
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / 2 / median


def uncertainty(times: Sequence[float]) -> float:
    """Return the standard error of the median, relative to it.

    Of n normally distributed numbers it is sqrt(pi / 2 / n) standard deviations, and the quartiles
    are 0.6745 of them from the median; the quartiles, unlike the deviation, bear outliers.
    """
    return math.sqrt(math.pi / 2 / len(times)) * spread(times) / 0.6745


class Clock:
    """Measures which part of the time the processor worked for this process and its children."""

    def __init__(self) -> None:
        self._start = os.times()

    def report(self) -> str:
        """Return a line about the time since the clock was made.

        A share well below 100 % tells that others had the processor, or that programs waited.
        """
        start, now = self._start, os.times()
        worked = sum(now[:4]) - sum(start[:4])
        share = worked / (now.elapsed - start.elapsed)
        line = f"the processor was ours for {share:.0%} of the time"
        if hasattr(os, "getloadavg"):  # not on Windows
            line += f"; load average {os.getloadavg()[0]:.1f} at the end, of {os.cpu_count()} cores"
        return line
