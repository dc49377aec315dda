"""Plots of losses, by Matplotlib, which is imported when one is drawn."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import accumulate

from . import _checks as checks
from .evaluate import bigram_loss, uniform_loss
from .files import named, printable, try_writing, write_whole
from .ranking import Sweep
from .training import RECENT, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, without those too pale for a line.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLES = ("-", "--", "-.", ":")  # so that colours need not be seen
_KINDS = ("png", "svg", "pdf")


def plot_losses(
    runs: Run | Iterable[Run] | Mapping[str, Run], smooth: int | None = None
) -> Figure:
    """Return a Matplotlib Figure of the losses of one or several runs.

    Of each run the loss of each step is a faint line, of which outliers can be cut off, and the
    mean of the last `smooth` steps a strong one; validation losses are circles. Horizontal lines
    are the baselines: a uniform guess and, of runs that have their documents, the bigram table,
    measured on the validation documents, if there are any, else on those of the training.
    runs: a Run, several, or name -> Run; without names they are numbered.
    smooth: steps; None: 100, as in progress lines, or a tenth of the longest run, if that is less.

    Raises ImportError if Matplotlib is not installed, TypeError if something is not a Run,
    ValueError if there is none, no run has a loss, or smooth is below 1.
    """
    by_name = _by_name(runs)
    longest = max(len(run.losses) for run in by_name.values())
    if not longest:
        raise ValueError("no run has taken a step, so there are no losses to draw")
    if smooth is None:
        smooth = max(1, min(RECENT, longest // 10))
    checks.integer(smooth, "smooth", 1)
    figure = _figure(8, 4.5)
    axes = figure.add_subplot(ylabel="loss")
    alone = len(by_name) == 1
    levels: list[float] = []  # what the picture is to show whole
    for i, (name, run) in enumerate(by_name.items()):
        colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i % len(_STYLES)]
        steps, smoothed = range(1, len(run.losses) + 1), _smoothed(run.losses, smooth)
        axes.plot(steps, run.losses, color=colour, alpha=max(0.03, 0.25 / len(by_name)),
                  linewidth=0.6, zorder=1, rasterized=True)  # fmt: skip
        axes.plot(steps, smoothed, color=colour, linestyle=style, marker="." * (len(steps) == 1),
                  label=f"training, mean of {smooth} steps" if alone else _label(name))  # fmt: skip
        if run.val_losses:
            measured = sorted(run.val_losses.items())
            axes.plot(*zip(*measured, strict=True), color=colour, linestyle=style, linewidth=0.6,
                      marker="o", markersize=4.5, markerfacecolor="white",
                      label="validation" if alone else None)  # fmt: skip
        raw = sorted(run.losses)
        levels += [raw[len(raw) // 50], raw[-1 - len(raw) // 50]] if alone else []
        levels += [*smoothed, *run.val_losses.values()]
    measured_any = any(run.val_losses for run in by_name.values())
    marks = f" (lines: mean of {smooth} steps{'; circles: validation' * measured_any})"
    axes.set_xlabel("step" if alone else f"step{marks}")
    for text, level in _baselines(by_name):
        axes.axhline(level, color="0.3", linestyle=(0, (1, 2)), linewidth=1)
        axes.annotate(text, (1, level), (-4, 2), ("axes fraction", "data"), "offset points",
                      ha="right", fontsize="small", color="0.3")  # fmt: skip
        levels.append(level)
    levels = [level for level in levels if math.isfinite(level)]
    margin = 0.06 * (max(levels) - min(levels)) or 1.0
    axes.set_ylim(min(levels) - margin, max(levels) + margin)
    longest_name = max(map(len, by_name))
    figure.legend(loc="outside upper left", ncols=max(1, min(5, 90 // (longest_name + 8))),
                  frameon=False)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_sweep(sweep: Sweep) -> Figure:
    """Return a Matplotlib Figure of the validation losses of a sweep against what it varied.

    There is a panel for each setting with several values. A point is a trial, a line goes through
    the means, and the best trial is marked. Trials that failed are counted in the title.
    Raises ImportError if Matplotlib is not installed, TypeError if sweep is not a Sweep.
    """
    if not isinstance(sweep, Sweep):
        raise TypeError(f"plot_sweep takes what sweep returns, not {type(sweep).__name__}")
    names = sweep.varied or ["seed"]
    figure = _figure(1.5 + 3.2 * len(names), 4)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    done = [(r.settings, r.val_loss) for r in sweep.results if r.val_loss is not None]
    losses = [loss for _, loss in done]
    n, failed = len(sweep.results), len(sweep.failed)
    figure.suptitle(f"{n} trial{'s' * (n != 1)}" + (f", {failed} failed" if failed else ""))
    for panel, name in zip(panels, names, strict=True):
        values = [settings[name] for settings, _ in done]
        numbers = all(isinstance(value, (int, float)) and value > 0 for value in values)
        xs = values if numbers else [str(value) for value in values]
        panel.plot(xs, losses, "o", color=_COLOURS[0], alpha=0.4, label="trial")
        if len(set(values)) <= len(values) // 2:  # drawn values have no mean to speak of
            groups = {
                x: [loss for other, loss in zip(xs, losses, strict=True) if other == x]
                for x in (sorted(set(xs)) if numbers else dict.fromkeys(xs))
            }
            means = [sum(group) / len(group) for group in groups.values()]
            panel.plot([*groups], means, "_-", color=_COLOURS[0], markersize=14, label="mean")
        if sweep.best is not None:
            x = sweep.best.settings[name]
            panel.plot([x if numbers else str(x)], [sweep.best.val_loss], "D", color=_COLOURS[1],
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


def check_plot(path: str, option: str) -> None:
    """Raise what would be raised when a plot is drawn and saved, as far as is known before.

    option: what gave the path, for the message.
    Raises ImportError if Matplotlib is not installed, ValueError if no plot is saved under such a
    name, an OSError if the file cannot be written.
    """
    if _kind(path) not in _KINDS:
        raise ValueError(f"{option} must end with .png, .svg or .pdf, not {printable(path)}")
    _figure(1, 1)
    try_writing(path)


def save_plot(figure: Figure, path: str) -> None:
    """Write a Figure to a file, whole or not at all. Raises an OSError if it cannot be written."""
    with named(path):
        write_whole(path, [_content(figure, _kind(path))])


def _kind(path: str) -> str:
    return os.path.splitext(path)[1].lower()[1:]


def _figure(width: float, height: float) -> Figure:
    """Return an empty Figure that notebooks show; width, height: in inches."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError(
            "plots need Matplotlib: pip install matplotlib, or microgpt with its extra [plot]"
        ) from None
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure._repr_png_ = partial(_content, figure, "png")  # type: ignore[attr-defined]
    return figure


def _content(figure: Figure, kind: str) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def _label(name: str) -> str:
    """Return a name as a legend shows it: whole if it is short, and never as a formula."""
    name = name if len(name) <= 60 else f"…{name[-59:]}"
    return name.replace("$", r"\$").lstrip("_") or "-"  # Matplotlib hides what begins with _


def _by_name(runs: Run | Iterable[Run] | Mapping[str, Run]) -> dict[str, Run]:
    """Return name -> Run, in order."""
    if isinstance(runs, Run) or not isinstance(runs, Iterable):
        runs = [runs]
    if not isinstance(runs, Mapping):
        runs = {f"run {i}": run for i, run in enumerate(runs, start=1)}
    for run in runs.values():
        if not isinstance(run, Run):
            raise TypeError(f"runs must be a Run or several, not {type(run).__name__}")
    if not runs:
        raise ValueError("there is no run to draw")
    return {str(name): run for name, run in runs.items()}


def _baselines(by_name: Mapping[str, Run]) -> list[tuple[str, float]]:
    """Return the label and the level of each line: one line for all runs that share it."""
    lines: dict[tuple[str, float], list[str]] = {}
    for name, run in by_name.items():
        lines.setdefault(("uniform", uniform_loss(run.model)), []).append(name)
        if run.documents:
            training = [run.encode(doc) for doc in run.documents]
            measured = [run.encode(doc) for doc in run.validation] or training
            level = bigram_loss(run.model, training, measured)
            lines.setdefault(("bigram", level), []).append(name)
    several = Counter(kind for kind, _ in lines)
    return [
        (f"{kind} {level:.2f}" + (f" ({', '.join(names)})" if several[kind] > 1 else ""), level)
        for (kind, level), names in lines.items()
    ]


def _smoothed(losses: Sequence[float], width: int) -> list[float]:
    """Return for each step the mean of the last losses, of so many at most."""
    sums = list(accumulate(losses, initial=0.0))
    return [(sums[i] - sums[max(0, i - width)]) / min(i, width) for i in range(1, len(sums))]
