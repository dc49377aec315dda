"""Which trials a sweep has: every combination of a grid, or combinations drawn at random."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice, product
from random import Random
from typing import Any

from . import _checks as checks
from .model import MAX_SIZE, Config
from .ranges import SHARED, SWEEP_DEFAULTS, LogUniform
from .training import TrainConfig
from .trials import DEFAULTS, Trial

MAX_TRIALS = 100_000  # some 10 GB of files with the default model; a typo must not plan more

Values = list[Any] | LogUniform


def plan(
    grid: Mapping[str, Any], data: str, trials: int | None = None, draw_seed: int = 0
) -> list[Trial]:
    """Return the trials of a sweep, without duplicates.

    grid: setting of prepare -> a value, a list of values, or a LogUniform. Settings that are not
        given have the defaults of prepare; val_fraction is 0.1 and val_seed is 0.
    data: checksum of the documents.
    trials: None: every combination is a trial. Else this many different combinations are drawn,
        of the settings without the seed, and each is a trial for every seed.
    draw_seed: seed of these draws. More trials begin with the same ones.

    Raises ValueError if the grid has no value for a setting, a setting is unknown, one that all
    trials share has several values, a range is given where nothing is drawn, there are more than
    100,000 trials or no trial is possible; TypeError if grid is no dict or a value has the wrong
    type.
    """
    values = _values(grid)
    seeds = values.pop("seed", [DEFAULTS["seed"]])
    if isinstance(seeds, LogUniform):
        raise ValueError("seed takes a list of seeds, not a range")
    checks.integer(draw_seed, "draw_seed", -(2**64), 2**64)
    if trials is None:
        for name, found in values.items():
            if isinstance(found, LogUniform):
                raise ValueError(
                    f"{name} is a range, {found.low}..{found.high}: give the number of trials to "
                    "draw from it, or a list of values"
                )
        lists = [found for found in values.values() if isinstance(found, list)]
        n = math.prod(map(len, lists))
        combinations: Iterable[dict[str, Any]] = (
            dict(zip(values, chosen, strict=True)) for chosen in product(*lists)
        )
    else:
        n = checks.integer(trials, "trials", 1)
        combinations = _drawn(values, n, data, draw_seed)
    if n * len(seeds) > MAX_TRIALS:
        raise ValueError(
            f"{n} combinations with {len(seeds)} seeds are more than {MAX_TRIALS} trials: draw "
            "fewer (trials)"
        )
    every = [Trial.of({**c, "seed": seed}, data) for c in combinations for seed in seeds]
    planned = list({trial.id: trial for trial in every}.values())
    if all(trial.refused for trial in planned):
        raise ValueError(planned[0].refused)
    return planned


def _values(grid: Mapping[str, Any]) -> dict[str, Values]:
    """Return setting -> its values; those that all trials share come first."""
    if not isinstance(grid, Mapping):
        raise TypeError(f"grid must be a dict of settings to values, not a {type(grid).__name__}")
    for name in grid:
        if name not in DEFAULTS:
            close = get_close_matches(str(name), DEFAULTS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(DEFAULTS)}"
            raise ValueError(f"there is no setting {name!r}: {hint}")
    values: dict[str, Values] = {}
    for name, given in {**SWEEP_DEFAULTS, **grid}.items():
        if not isinstance(given, LogUniform):
            several = isinstance(given, Iterable) and not isinstance(given, str)
            given = list(islice(given, MAX_TRIALS + 1)) if several else [given]
            if not given:
                raise ValueError(f"{name} has no value: give one or several")
            if len(given) > MAX_TRIALS:
                raise ValueError(f"{name} has more than {MAX_TRIALS} values")
        if name in SHARED and (isinstance(given, LogUniform) or len(given) > 1):
            raise ValueError(f"{name} is the same for every trial, so that they can be compared: "
                             "give one value")
        for value in (given.low, given.high) if isinstance(given, LogUniform) else given:
            _check(name, value)
        values[name] = given
    if values["val_fraction"] == [0]:
        raise ValueError("trials are compared by their validation loss: val_fraction must not be 0")
    if values["val_seed"] == [None]:
        raise ValueError("val_seed must not be None: the validation documents are the same for all")
    return values


def _check(name: str, value: Any) -> None:
    """Raise what Config and TrainConfig raise for a value by itself, in any combination."""
    if name == "n_head":
        Config(1, n_head=checks.integer(value, name, 1, MAX_SIZE), n_embd=value)
    elif hasattr(Config, name):
        Config(1, **{"n_head": 1, name: value})
    else:
        TrainConfig(**{"val_fraction": 0.1, name: value})  # val_seed needs one


def _drawn(
    values: Mapping[str, Values], n: int, data: str, draw_seed: int
) -> Iterator[dict[str, Any]]:
    """Yield n different valid combinations, or as many as there seem to be.

    Each value has a generator of its own, so that another range does not change it.
    """
    seen: set[str] = set()
    refused, in_vain, i = "", 0, 0
    while n and in_vain < 1000:
        combination: dict[str, Any] = {}
        for name, found in values.items():
            rng = Random(f"{draw_seed}/{i}/{name}")
            if isinstance(found, LogUniform):
                combination[name] = found.draw(rng)
            else:
                combination[name] = rng.choice(found)
        trial = Trial.of(combination, data)
        refused = trial.refused or refused
        i, in_vain = i + 1, in_vain + 1
        if not trial.refused and trial.id not in seen:
            seen.add(trial.id)
            n, in_vain = n - 1, 0
            yield combination
    if not seen:
        raise ValueError(refused)
