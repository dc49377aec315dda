"""Curves of losses, by Matplotlib, which is imported when one is drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import accumulate

from . import _checks as checks
from .evaluate import bigram_loss, uniform_loss
from .training import RECENT, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, without those too pale for a line.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLES = ("-", "--", "-.", ":")  # so that colours need not be seen


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
    named = _named(runs)
    longest = max(len(run.losses) for run in named.values())
    if not longest:
        raise ValueError("no run has taken a step, so there are no losses to draw")
    if smooth is None:
        smooth = max(1, min(RECENT, longest // 10))
    checks.integer(smooth, "smooth", 1)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError(
            "plots need Matplotlib: pip install matplotlib, or microgpt with its extra [plot]"
        ) from None

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(ylabel="loss")
    alone = len(named) == 1
    levels: list[float] = []  # what the picture is to show whole
    for i, (name, run) in enumerate(named.items()):
        colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i % len(_STYLES)]
        steps, smoothed = range(1, len(run.losses) + 1), _smoothed(run.losses, smooth)
        axes.plot(steps, run.losses, color=colour, alpha=max(0.03, 0.25 / len(named)),
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
    measured_any = any(run.val_losses for run in named.values())
    marks = f" (lines: mean of {smooth} steps{'; circles: validation' * measured_any})"
    axes.set_xlabel("step" if alone else f"step{marks}")
    for text, level in _baselines(named):
        axes.axhline(level, color="0.3", linestyle=(0, (1, 2)), linewidth=1)
        axes.annotate(text, (1, level), (-4, 2), ("axes fraction", "data"), "offset points",
                      ha="right", fontsize="small", color="0.3")  # fmt: skip
        levels.append(level)
    levels = [level for level in levels if math.isfinite(level)]
    margin = 0.06 * (max(levels) - min(levels)) or 1.0
    axes.set_ylim(min(levels) - margin, max(levels) + margin)
    longest_name = max(map(len, named))
    figure.legend(loc="outside upper left", ncols=max(1, min(5, 90 // (longest_name + 8))),
                  frameon=False)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]  # notebooks show it
    return figure


def _label(name: str) -> str:
    """Return a name as a legend shows it: whole if it is short, and never as a formula."""
    name = name if len(name) <= 40 else f"…{name[-39:]}"
    return name.replace("$", r"\$").lstrip("_") or "-"  # Matplotlib hides what begins with _


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _named(runs: Run | Iterable[Run] | Mapping[str, Run]) -> dict[str, Run]:
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


def _baselines(named: Mapping[str, Run]) -> list[tuple[str, float]]:
    """Return the label and the level of each line: one line for all runs that share it."""
    lines: dict[tuple[str, float], list[str]] = {}
    for name, run in named.items():
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
