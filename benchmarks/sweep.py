"""A sweep of 200 trials in one process and in two, in turns.

Run `python benchmarks/sweep.py`. It prints the medians, their ratio, and the load of the machine.
"""

import argparse
import os
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import microgpt as mg


def seconds(docs, trials, steps, jobs):
    """Return how long a sweep takes, its processes included, and its table."""
    grid = {"lr": [0.003, 0.01], "steps": steps, "seed": range(trials // 2)}
    with TemporaryDirectory() as folder:
        start = perf_counter()
        found = mg.sweep(docs, grid, out=folder, jobs=jobs, progress=False)
        return perf_counter() - start, found.to_json().replace(folder, "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    docs = mg.load_documents()
    times, tables, loads = {1: [], 2: []}, set(), []
    for _ in range(options.rounds):
        loads.append(os.getloadavg()[0])
        for jobs, taken in times.items():
            time, table = seconds(docs, options.trials, options.steps, jobs)
            taken.append(time)
            tables.add(table)
    assert len(tables) == 1, "the tables differ"
    one, two = median(times[1]), median(times[2])
    best = min(two / one for one, two in zip(times[1], times[2], strict=True))
    print(f"{options.trials} trials of {options.steps} steps, medians of {options.rounds} rounds: "
          f"one process {one:.1f} s, two {two:.1f} s, ratio {two / one:.2f}, least {best:.2f}; "
          f"load before the rounds {min(loads):.1f} to {max(loads):.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
