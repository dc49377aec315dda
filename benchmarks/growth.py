"""Measure how the cost of a step grows with the parameters and with the tokens, and draw it.

    taskset -c 0 python benchmarks/growth.py
    python benchmarks/growth.py --times times.json --plot docs/speed.png

`times.json` comes from `compare.py --json` and gives the plot its comparison with other programs.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from pathlib import Path

from compare import ALL

import microgpt as mg

WIDTHS = [(16, 1), (32, 1), (64, 1), (64, 2), (64, 4), (128, 1), (128, 2), (128, 4)]
LENGTHS = [4, 8, 16, 32, 64, 128, 256]


def step_time(run: mg.Run, seconds: float = 0.4) -> float:
    """Return the median microseconds of the processor per step, of as many as fit into the time.

    To ask for the time is a system call: steps are timed by the dozen.
    """
    for _ in range(3):
        mg.train_step(run)
    times = []
    end = time.process_time() + seconds
    while len(times) < 5 or time.process_time() < end:
        start = time.process_time()
        for _ in range(12):
            mg.train_step(run)
        times.append((time.process_time() - start) / 12)
    return statistics.median(times) * 1e6


def by_parameters() -> list[tuple[str, int, float]]:
    """Return for each width and depth its name, parameters and time per step, on names."""
    rows = []
    for n_embd, n_layer in WIDTHS:
        run = mg.prepare(mg.load_documents(), steps=10**9, n_embd=n_embd, n_layer=n_layer)
        rows.append((f"{n_embd},{n_layer}", run.model.num_params, step_time(run)))
    return rows


def by_tokens() -> list[tuple[str, int, float]]:
    """Return for each length of a document its time per step, at the default width."""
    rng = random.Random(1)
    rows = []
    for length in LENGTHS:
        docs = ["".join(rng.choices("abcdefgh", k=length - 1)) for _ in range(50)]
        run = mg.prepare(docs, steps=10**9, block_size=max(LENGTHS))
        rows.append((str(length), length, step_time(run)))
    return rows


def table(title: str, unit: str, rows: list[tuple[str, int, float]]) -> None:
    """Print the rows and by which power of the size the time grows from one to the next."""
    print(f"{title:>12}{unit:>12}{'us/step':>12}{'ns each':>10}{'growth':>10}")
    for i, (name, size, us) in enumerate(rows):
        growth = ""
        if i:
            _, before, us_before = rows[i - 1]
            growth = f"{math.log(us / us_before) / math.log(size / before):.2f}"
        print(f"{name:>12}{size:>12,}{us:>12.1f}{us / size * 1e3:>10.1f}{growth:>10}")


def plot(
    file: Path,
    parameters: list[tuple[str, int, float]],
    tokens: list[tuple[str, int, float]],
    times: Path | None,
) -> None:
    """Draw the two curves, and the programs of a comparison if there is one."""
    import matplotlib

    matplotlib.use("svg" if file.suffix == ".svg" else "agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3 if times else 2, figsize=(12 if times else 8, 3.6))
    if times:
        medians = {
            ALL[name].title: statistics.median(values)
            for name, values in json.loads(times.read_text(encoding="utf-8"))["16,1"].items()
            if name in ALL
        }
        names = sorted(medians, key=medians.__getitem__, reverse=True)
        colours = ["tab:orange" if name.startswith("microgpt") else "tab:blue" for name in names]
        axes[0].barh(names, [medians[name] for name in names], color=colours)
        axes[0].set(xscale="log", xlabel="µs per step, default model")
    for axis, rows, label in (
        (axes[-2], parameters, "parameters"),
        (axes[-1], tokens, "tokens in the document"),
    ):
        axis.loglog([size for _, size, _ in rows], [us for _, _, us in rows], "o-")
        axis.set(xlabel=label, ylabel="µs per step")
        axis.grid(which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    """Read the command line, measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=Path, help="what compare.py --json wrote")
    parser.add_argument("--plot", type=Path, help="draw a picture into this file")
    args = parser.parse_args()
    parameters, tokens = by_parameters(), by_tokens()
    table("n_embd,layer", "parameters", parameters)
    print()
    table("length", "tokens", tokens)
    if args.plot:
        plot(args.plot, parameters, tokens, args.times)


if __name__ == "__main__":
    main()
