"""Compare the package with the original script and with the yardsticks, in one run.

    taskset -c 0 python benchmarks/compare.py
    python benchmarks/compare.py --sizes 16,1 --only microgpt pure script
    MICROGPT_REFERENCE=folder python benchmarks/compare.py --check

The table gives microseconds per document, median (minimum) of several rounds, and how many times
slower each program is than the compiled package. Each round runs all programs in turn, so
that a slow spell of the machine affects all alike; `taskset` pins everything to one core.

`--check` compares losses instead: with the original script's record (MICROGPT_REFERENCE holds
`golden/default.json` and `data/names.txt`) if it is set, and with the C program.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from ours import PROGRAMS  # noqa: E402
from yardsticks import ONE_THREAD, YARDSTICKS, load  # noqa: E402

ALL = {**PROGRAMS, **YARDSTICKS}
BUNDLED = HERE.parent / "src" / "microgpt" / "datasets" / "names_us1990.txt"
SIZES = [(16, 1), (64, 1), (64, 4), (128, 1)]
STEPS = {(16, 1): 1000, (64, 1): 300}  # otherwise 100; documents, in a larger batch
SLOW_STEPS = {"pure": 20, "script": 10, "drop-in": 100}  # these run at the default size only


def available(names: list[str]) -> list[str]:
    """Return the programs that can run here; say why the others cannot."""
    usable = []
    for name in names:
        reason = ALL[name].missing()
        if reason is None:
            usable.append(name)
        else:
            print(f"{name}: skipped, {reason}", file=sys.stderr)
    return usable


def fits(name: str, size: tuple[int, int], batch: int) -> bool:
    """Whether a program takes part at this size: the slow ones only in the default step."""
    return name not in SLOW_STEPS or (size == (16, 1) and batch == 1)


def steps_of(name: str, size: tuple[int, int], batch: int, asked: int | None) -> int:
    """Return how many steps to time."""
    if name in SLOW_STEPS:
        return SLOW_STEPS[name]
    return asked or max(20, STEPS.get(size, 100) // batch)


Times = dict[str, list[float]]


def measure(size: tuple[int, int], names: list[str], args: argparse.Namespace) -> Times:
    """Return the microseconds per document of each round; a first, uncounted round warms up."""
    problem = load(args.data, *size)
    times: Times = {}
    for count in range(args.rounds + 1):
        for name in names:
            result = ALL[name].train(problem, steps_of(name, size, args.batch, args.steps),
                                     args.batch)
            if count == 0:
                continue
            times.setdefault(name, []).append(result.microseconds)
            if result.until_adam is not None:
                times.setdefault(f"{name}, without Adam", []).append(result.until_adam)
    return times


def table(args: argparse.Namespace) -> None:
    """Print one line per program, two columns per size: the time, and the ratio to the package."""
    usable = available(args.only)
    columns: dict[str, Times] = {}
    for size in args.sizes:
        names = [name for name in usable if fits(name, size, args.batch)]
        columns[f"{size[0]},{size[1]}"] = measure(size, names, args)
    print(f"microseconds per document, median (minimum) of {args.rounds} rounds, "
          f"batch {args.batch}")
    print(f"{'n_embd,n_layer':36}" + "".join(f"{head:>22}{'ratio':>9}" for head in columns))
    rows = dict.fromkeys(name for times in columns.values() for name in times)
    for row in rows:
        line = row.replace(row.split(",")[0], ALL[row.split(",")[0]].title, 1).ljust(36)
        for times in columns.values():
            if row not in times:
                line += " " * 31
                continue
            median = statistics.median(times[row])
            line += f"{median:.1f} ({min(times[row]):.1f})".rjust(22)
            ours = times.get("microgpt")
            line += f"{median / statistics.median(ours):.2f}".rjust(9) if ours else " " * 9
        print(line)
    if args.json:
        args.json.write_text(json.dumps(columns), encoding="utf-8")


def agree(
    name: str, losses: list[float], expected: list[float], what: str, first: int = 50
) -> bool:
    """Print how far the losses are from those expected; return whether that is near enough.

    Of a float32 program only the `first` losses are compared: training is chaotic, and at
    (64, 4) a rounding error grows to 0.002 in 25 steps (in float64 the same JAX code agrees).
    """
    exact = ALL[name].exact
    count, tolerance = (len(expected), 1e-9) if exact else (first, 1e-3)
    pairs = zip(losses[:count], expected[:count], strict=True)
    differences = [abs(a - b) for a, b in pairs]
    good = all(d <= tolerance for d in differences)  # false for NaN
    verdict = "ok" if good else "WRONG"
    print(f"{name:12}{what:34}{max(differences):10.2g} over {count} losses: {verdict}")
    return good


def check(args: argparse.Namespace) -> bool:
    """Compare the losses of every program; return whether all agree."""
    names = available(args.only)
    quick = [name for name in names if name not in SLOW_STEPS]
    reference = os.environ.get("MICROGPT_REFERENCE")
    good = True
    if reference:
        record = json.loads((Path(reference) / "golden" / "default.json").read_text("utf-8"))
        problem = load(Path(reference) / "data" / "names.txt")
        expected = record["losses"]
        for name in quick:
            losses = ALL[name].train(problem, len(expected)).losses
            good &= agree(name, losses, expected, "the script's record")
    if "c" in names:
        for n_embd, n_layer, batch, steps in ((16, 1, 1, 10), (16, 2, 16, 60), (64, 4, 1, 60)):
            problem = load(args.data, n_embd, n_layer)
            expected = YARDSTICKS["c"].train(problem, steps, batch).losses
            what = f"C, size {n_embd},{n_layer}, batch {batch}"
            for name in names if (n_embd, n_layer) == (16, 1) else quick:
                if name != "c":
                    losses = ALL[name].train(problem, steps, batch).losses
                    good &= agree(name, losses, expected, what, first=min(20, steps))
    return good


def size(text: str) -> tuple[int, int]:
    """Read "64,4" as (n_embd, n_layer)."""
    n_embd, n_layer = map(int, text.split(","))
    return n_embd, n_layer


def main() -> int:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=BUNDLED, help="one document per line")
    parser.add_argument("--sizes", type=size, nargs="+", default=SIZES, metavar="EMBD,LAYERS")
    parser.add_argument("--steps", type=int, help="by default fewer for larger models")
    parser.add_argument("--batch", type=int, default=1, help="documents per step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(ALL), default=list(ALL))
    parser.add_argument("--json", type=Path, help="write all times to this file")
    parser.add_argument("--check", action="store_true", help="compare losses instead of timing")
    args = parser.parse_args()
    os.environ.update(ONE_THREAD)
    if args.check:
        return 0 if check(args) else 1
    table(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
