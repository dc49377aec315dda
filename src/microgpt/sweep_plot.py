"""The picture of a sweep, by matplotlib, which is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .files import try_writing
from .ranking import Sweep


def check_plot(path: str) -> None:
    """Raise ValueError unless a picture can be drawn, an OSError unless path can be written."""
    try:
        backends = import_module("matplotlib.backend_bases")
    except ImportError:
        raise ValueError("a plot needs the extra plot: pip install matplotlib") from None
    kinds = sorted(backends.FigureCanvasBase.get_supported_filetypes())
    if path.rpartition(".")[2] not in kinds:
        raise ValueError(f"a plot is a file of one of these kinds: {', '.join(kinds)}; not {path}")
    try_writing(path)


def plot_sweep(sweep: Sweep) -> Any:
    """Return a matplotlib Figure: validation loss against each setting that varied.

    A point is a trial, a line goes through the means, and the best trial is marked. Trials that
    failed are counted in the title. Raises ModuleNotFoundError without matplotlib.
    """
    figure_class = import_module("matplotlib.figure").Figure
    names = sweep.varied or ["seed"]
    figure = figure_class(figsize=(1.5 + 3.2 * len(names), 4), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    done = [(r.settings, r.val_loss) for r in sweep.results if r.val_loss is not None]
    losses = [loss for _, loss in done]
    failed = f", {len(sweep.failed)} failed" if sweep.failed else ""
    figure.suptitle(f"{len(sweep.results)} trials{failed}")
    for panel, name in zip(panels, names, strict=True):
        values = [settings[name] for settings, _ in done]
        numbers = all(isinstance(value, (int, float)) and value > 0 for value in values)
        xs = values if numbers else [str(value) for value in values]
        panel.plot(xs, losses, "o", color="tab:blue", alpha=0.4, label="trial")
        if len(set(values)) < len(values) // 2:  # drawn values have no mean to speak of
            groups = {
                x: [loss for other, loss in zip(xs, losses, strict=True) if other == x]
                for x in (sorted(set(xs)) if numbers else dict.fromkeys(xs))
            }
            means = [sum(group) / len(group) for group in groups.values()]
            panel.plot([*groups], means, "_-", color="tab:blue", markersize=14, label="mean")
        if sweep.best is not None:
            x = sweep.best.settings[name]
            panel.plot([x if numbers else str(x)], [sweep.best.val_loss], "D", color="tab:orange",
                       label="best")  # fmt: skip
        if numbers and values and max(values) >= 4 * min(values):
            panel.set_xscale("log")
        if numbers and len(set(values)) <= 6:
            panel.set_xticks(sorted(set(values)), [f"{x:g}" for x in sorted(set(values))])
            panel.set_xticks([], minor=True)
        panel.set_xlabel(name)
        panel.grid(alpha=0.3)
    if losses and max(losses) > 10 * min(losses):
        panels[0].set_yscale("log")
    panels[0].set_ylabel("validation loss")
    panels[-1].legend()
    return figure
