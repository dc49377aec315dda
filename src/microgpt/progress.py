"""What is shown of work while it lasts: a bar where someone looks, lines in a file."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

BAR_SECONDS, LINE_SECONDS = 0.1, 5.0  # between two updates


class Progress:
    """Show the steps of a training on stderr, until the `with` block ends.

    step, total: the steps taken so far, and all of them.
    bar: whether to draw a bar.
    lines: where there is none, write a line every few seconds.
    unit: what is counted, if it is not steps.
    """

    def __init__(
        self, step: int, total: int, bar: bool, lines: bool = False, unit: str = "step"
    ) -> None:
        self._bar, self._unit = _bar(step, total, unit) if bar else None, unit
        self._total, self._pause = total, LINE_SECONDS if self._bar is None else BAR_SECONDS
        self._due = math.inf if self._bar is None and not lines else perf_counter() + self._pause

    def update(self, step: int, describe: Callable[[], str]) -> None:
        """Show, if it is time to, that a step is done, and the text that describe returns."""
        now = perf_counter()
        if now < self._due and (self._bar is None or step < self._total):
            return
        self._due = now + self._pause
        if self._bar is None:
            line = f"{self._unit} {step:4} / {self._total:4} | {describe()}"
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(describe(), refresh=False)
            self._bar.update(step - self._bar.n)

    def write(self, line: str) -> None:
        """Print a line to stdout, above the bar."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def someone_looks() -> bool:
    """Return whether stderr is a terminal, or this is a notebook."""
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


def _bar(step: int, total: int, unit: str) -> Any:
    """Return a bar of tqdm; None if one of its environment variables makes it unusable."""
    options: dict[str, Any] = {"initial": step, "total": total, "unit": f" {unit}s", "miniters": 1}
    try:
        if _in_notebook():
            try:
                from tqdm.notebook import tqdm as notebook_tqdm

                return notebook_tqdm(**options)
            except ImportError:  # without ipywidgets
                pass
        from tqdm import tqdm

        return tqdm(dynamic_ncols=True, **options)
    except Exception:  # of any kind, as tqdm evaluates a variable
        return None
