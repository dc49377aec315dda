"""What is shown of a training while it lasts: a bar where someone looks, lines in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

BAR_SECONDS, LINE_SECONDS = 0.1, 5.0  # between two updates


class Progress:
    """Show the steps of a training on stderr, until the `with` block ends.

    step, total: the steps taken so far, and all of them.
    bar: whether to draw one; None: on a terminal and in a notebook.
    lines: where there is no bar, write a line every few seconds.

    `shown` tells whether there is a bar.
    """

    def __init__(self, step: int, total: int, bar: bool | None, lines: bool = False) -> None:
        self._bar = _bar(step, total) if bar or (bar is None and _someone_looks()) else None
        self.shown = self._bar is not None
        self._total, self._pause = total, BAR_SECONDS if self.shown else LINE_SECONDS
        self._due = perf_counter() + self._pause if self.shown or lines else float("inf")

    def update(self, step: int, describe: Callable[[], str]) -> None:
        """Show, if it is time to, that a step is done, and the text that describe returns."""
        now = perf_counter()
        if now < self._due and not (self.shown and step == self._total):
            return
        self._due = now + self._pause
        if self._bar is None:
            print(f"step {step:4} / {self._total:4} | {describe()}", file=sys.stderr, flush=True)
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


def _someone_looks() -> bool:
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


def _bar(step: int, total: int) -> Any:
    """Return a bar of tqdm; None if one of its environment variables makes it unusable."""
    options: dict[str, Any] = {"initial": step, "total": total, "unit": " steps", "miniters": 1}
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
