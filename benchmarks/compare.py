"""Compare the package with the original script and with the yardsticks, in one run.

    taskset -c 0 python benchmarks/compare.py
    python benchmarks/compare.py --sizes 16,1 --only microgpt pure script
    python benchmarks/compare.py --against other-venv/bin/python
    python examples/python_docs_to_text.py > python.txt
    taskset -c 0 python benchmarks/compare.py --text python.txt
    MICROGPT_REFERENCE=folder python benchmarks/compare.py --check

The table gives the processor time per document, median and in brackets minimum of several rounds,
how far from the median the middle half of the rounds lies, and how many times slower each program
is than the compiled package. Each round runs all programs in turn, so that a slow spell of the
machine affects all alike; there are more rounds until the medians are settled. `taskset` pins
everything to one core.

With `--text` all train on windows of a text, as `microgpt train --unit stream --block-size 64`
does, and the table gives milliseconds per step.

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

from ours import PROGRAMS, Program, load_text  # noqa: E402
from rounds import Clock, spread, uncertainty  # noqa: E402
from yardsticks import FIRST_STEPS, ONE_THREAD, YARDSTICKS, Problem, load  # noqa: E402

ALL = {**PROGRAMS, **YARDSTICKS}
BUNDLED = HERE.parent / "src" / "microgpt" / "datasets" / "names_us1990.txt"
SIZES = [(16, 1), (64, 1), (64, 4), (128, 1)]
STEPS = {(16, 1): 1000, (64, 1): 300}  # otherwise 100; documents, in a larger batch
SLOW_STEPS = {"pure": 20, "script": 10, "drop-in": 100}  # these run at the default size only
TEXT_STEPS = 20


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


def fits(name: str, size: tuple[int, int], args: argparse.Namespace) -> bool:
    """Whether a program takes part at this size: the slow ones only in the default step."""
    return name not in SLOW_STEPS or (size == (16, 1) and args.batch == 1 and not args.text)


def steps_of(name: str, size: tuple[int, int], args: argparse.Namespace) -> int:
    """Return how many steps to take."""
    if name in SLOW_STEPS:
        return SLOW_STEPS[name]
    default = TEXT_STEPS if args.text else max(20, STEPS.get(size, 100) // args.batch)
    return args.steps or default


def problem_of(size: tuple[int, int], args: argparse.Namespace) -> Problem:
    """Return what is trained at this size."""
    if args.text:
        return load_text(args.text, *size, args.batch, args.steps or TEXT_STEPS)
    return load(args.data, *size)


Times = dict[str, list[float]]


def measure(size: tuple[int, int], names: list[str], args: argparse.Namespace) -> Times:
    """Return the microseconds per document of each round; a first, uncounted round warms up."""
    problem = problem_of(size, args)
    times: Times = {}

    def settled() -> bool:
        return all(uncertainty(values) <= args.settled / 100 for values in times.values())

    for count in range(max(args.most, args.rounds) + 1):
        if count > args.rounds and settled():
            break
        for name in names:
            result = ALL[name].train(problem, steps_of(name, size, args), args.batch)
            if count == 0:
                continue
            times.setdefault(name, []).append(result.microseconds)
            if result.until_adam is not None:
                times.setdefault(f"{name}, without Adam", []).append(result.until_adam)
    return times


def table(args: argparse.Namespace) -> None:
    """Print a line per program; for each size the time, its spread, the ratio to the package."""
    usable = available(args.only)
    clock = Clock()
    columns: dict[str, Times] = {}
    for size in args.sizes:
        names = [name for name in usable if fits(name, size, args)]
        columns[f"{size[0]},{size[1]}"] = measure(size, names, args)
    if args.text:
        print(f"milliseconds of the processor per step, {args.batch} windows of 64 of a text")
    else:
        print(f"microseconds of the processor per document, batch {args.batch}")
    scale = args.batch / 1000 if args.text else 1.0
    print("median (minimum) and spread of the middle half; ratio to the package")
    print(f"{'n_embd,n_layer':36}" + "".join(f"{head:>20}{'':>7}{'ratio':>9}" for head in columns))
    rows = dict.fromkeys(name for times in columns.values() for name in times)
    for row in rows:
        line = row.replace(row.split(",")[0], ALL[row.split(",")[0]].title, 1).ljust(36)
        for times in columns.values():
            if row not in times:
                line += " " * 36
                continue
            median, least = statistics.median(times[row]) * scale, min(times[row]) * scale
            line += f"{median:.1f} ({least:.1f})".rjust(20) + f"±{spread(times[row]):.0%}".rjust(7)
            ours = times.get("microgpt")
            line += f"{median / statistics.median(ours) / scale:.2f}".rjust(9) if ours else " " * 9
        print(line)
    for head, times in columns.items():
        taken = len(next(iter(times.values())))
        least_sure = max(times, key=lambda row: uncertainty(times[row]))
        error = f"at most {uncertainty(times[least_sure]):.1%} ({least_sure})"
        print(f"{head}: {taken} rounds; standard error of the medians {error}")
    print(clock.report())
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
    count, tolerance = (len(expected), 1e-9) if exact else (min(first, len(expected)), 1e-3)
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
            what = f"C, size {n_embd},{n_layer}, batch {batch}"
            everyone = names if (n_embd, n_layer) == (16, 1) else quick
            good &= check_with_c(everyone, problem, steps, batch, what)
    return good


def check_with_c(names: list[str], problem: Problem, steps: int, batch: int, what: str) -> bool:
    """Compare the losses of the programs with those of the C program."""
    expected = YARDSTICKS["c"].train(problem, steps, batch).losses
    good = True
    for name in names:
        if name != "c":
            losses = ALL[name].train(problem, steps, batch).losses
            good &= agree(name, losses, expected, what, first=10 if problem.text else 20)
    return good


def check_text(args: argparse.Namespace) -> bool:
    """Compare the losses of a text training with those of the C program."""
    names = [name for name in available(args.only) if name not in SLOW_STEPS]
    good = True
    for size in args.sizes:
        problem = problem_of(size, args)
        what = f"C, size {size[0]},{size[1]}, text"
        good &= check_with_c(names, problem, args.steps or TEXT_STEPS, args.batch, what)
    return good


def size(text: str) -> tuple[int, int]:
    """Read "64,4" as (n_embd, n_layer)."""
    n_embd, n_layer = map(int, text.split(","))
    return n_embd, n_layer


def main() -> int:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=BUNDLED, help="one document per line")
    parser.add_argument("--text", type=Path, metavar="FILE", help="train on windows of this text")
    parser.add_argument(
        "--sizes", type=size, nargs="+", metavar="EMBD,LAYERS", help="with --text 64,4"
    )
    parser.add_argument("--steps", type=int, help="by default fewer for larger models")
    parser.add_argument("--batch", type=int, help="documents per step: 1, with --text 12")
    parser.add_argument("--rounds", type=int, default=5, help="at least this many")
    parser.add_argument("--most", type=int, default=25, help="at most this many rounds")
    parser.add_argument(
        "--settled",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="rounds are enough when no median's standard error is above this",
    )
    parser.add_argument("--only", nargs="+", choices=list(ALL), default=list(ALL))
    parser.add_argument(
        "--against", metavar="PYTHON", help="compare with the package that this Python has, too"
    )
    parser.add_argument("--json", type=Path, help="write all times to this file")
    parser.add_argument("--check", action="store_true", help="compare losses instead of timing")
    args = parser.parse_args()
    if args.steps is not None and args.steps <= FIRST_STEPS:
        parser.error(f"--steps must be above {FIRST_STEPS}: the first are not timed")
    args.sizes = args.sizes or ([(64, 4)] if args.text else SIZES)
    args.batch = args.batch or (12 if args.text else 1)
    if args.against:
        other = "microgpt, the other installation"
        ALL["against"] = Program(other, "package", "cython", "auto", args.against)
        args.only = ["against", *args.only]
    os.environ.update(ONE_THREAD)
    if args.check:
        return 0 if (check_text(args) if args.text else check(args)) else 1
    table(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
