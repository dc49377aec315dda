"""What a sweep found: its trials, and its settings ranked by validation loss."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .trials import Result


@dataclass(frozen=True)
class Configuration:
    """The trials that differ in nothing but the seed.

    settings: all but the seed.
    results: one for each seed.
    val_loss: the mean of the trials that did not fail, or None.
    spread: their standard deviation (of a sample: over n - 1); None for fewer than two.
    """

    settings: Mapping[str, Any]
    results: Sequence[Result]
    val_loss: float | None
    spread: float | None

    @property
    def failed(self) -> int:
        """The number of trials that failed."""
        return sum(result.val_loss is None for result in self.results)

    @property
    def best(self) -> Result | None:
        """The trial with the lowest validation loss; None: all failed."""
        done = [(result.val_loss, result) for result in self.results if result.val_loss is not None]
        return min(done, key=lambda pair: pair[0])[1] if done else None


def varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings, but the seed, that are not the same everywhere."""
    first = settings[0] if settings else {}
    return [n for n in first if n != "seed" and any(each[n] != first[n] for each in settings)]


def in_words(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return some of the settings as a line shows them.

    >>> in_words({"lr": 0.01, "n_embd": 16, "seed": 1}, ["lr", "seed"])
    'lr 0.01, seed 1'
    """
    return ", ".join(f"{name} {settings[name]}" for name in names)


class Sweep:
    """The results of a sweep. Printed, it is a table.

    results: one for each trial, in the order of the grid.
    configurations: the best first. One with a trial that failed stands behind those without,
        because its mean is over other seeds.
    varied: the settings, but the seed, that differ between trials.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = list(results)
        self.varied = varied([result.settings for result in self.results])
        groups: dict[tuple[Any, ...], list[Result]] = {}
        for result in self.results:
            key = tuple(result.settings[name] for name in self.varied)
            groups.setdefault(key, []).append(result)
        self.configurations = sorted(map(_configuration, groups.values()), key=_rank)

    @property
    def best(self) -> Result | None:
        """The trial with the lowest validation loss of the best configuration; None: all failed."""
        return next(filter(None, (found.best for found in self.configurations)), None)

    @property
    def failed(self) -> list[Result]:
        """The trials that failed, in the order of the grid."""
        return [result for result in self.results if result.val_loss is None]

    def __str__(self) -> str:
        """Return the table: a line for each configuration, then those for failed trials."""
        rows = [["rank", "val loss", "spread", "seeds", *self.varied, "best file"]]
        for rank, configuration in enumerate(self.configurations, start=1):
            best, n = configuration.best, len(configuration.results)
            if best is None:
                continue  # its trials are below
            done = n - configuration.failed
            rows.append([
                str(rank), _number(configuration.val_loss), _number(configuration.spread),
                str(n) if done == n else f"{done} of {n}",
                *(str(configuration.settings[name]) for name in self.varied), best.path,
            ])  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([*map(str.rjust, row[:-1], widths), row[-1]]) for row in rows]
        if len(rows) == 1:
            lines = []
        return "\n".join([*lines, *chain(*map(self._failures, self.configurations))])

    def _failures(self, configuration: Configuration) -> list[str]:
        """Return a line for each reason why trials of a configuration failed."""
        seeds: dict[str, list[str]] = {}
        for result in configuration.results:
            if result.val_loss is None:
                seeds.setdefault(result.error, []).append(str(result.settings["seed"]))
        which = in_words(configuration.settings, self.varied)
        return [
            f"failed: {', '.join(filter(None, [which, 'seed ' + ', '.join(found)]))}: {error}"
            for error, found in seeds.items()
        ]

    def __repr__(self) -> str:
        best = self.best
        found = "" if best is None else f", best val loss {best.val_loss:.4f}"
        n = len(self.results)
        return f"Sweep({n} trial{'s' * (n != 1)}, {len(self.failed)} failed{found})"

    def to_json(self) -> str:
        """Return all of it as one JSON object, with all digits."""
        best = self.best
        found = {
            "best": None if best is None else best.path,
            "configurations": [
                {
                    "val_loss": configuration.val_loss,
                    "spread": configuration.spread,
                    "settings": dict(configuration.settings),
                    "trials": [
                        {"seed": result.settings["seed"], "val_loss": result.val_loss,
                         "loss": result.loss, "file": result.path, "error": result.error}
                        for result in configuration.results
                    ],
                }
                for configuration in self.configurations
            ],
        }  # fmt: skip
        return json.dumps(found)


def _number(loss: float | None) -> str:
    if loss is None:
        return "-"
    return f"{loss:.4f}" if loss < 1000 else f"{loss:.4g}"


def _configuration(results: Sequence[Result]) -> Configuration:
    settings = {name: value for name, value in results[0].settings.items() if name != "seed"}
    losses = [result.val_loss for result in results if result.val_loss is not None]
    mean = math.fsum(losses) / len(losses) if losses else None
    spread = None
    if mean is not None and len(losses) > 1:
        spread = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1))
    return Configuration(settings, tuple(results), mean, spread)


def _rank(configuration: Configuration) -> tuple[bool, bool, float]:
    loss = configuration.val_loss
    return loss is None, configuration.failed > 0, math.inf if loss is None else loss
