"""Measure what is not a training step: generation, the command line, the import, scalar Values.

    taskset -c 0 python benchmarks/other.py
    taskset -c 0 python benchmarks/other.py --against other-venv/bin/python

With `--against` the same is measured with another Python and the package that it has, both in
turn in each round. All times are the processor's, medians of several rounds. Linux and macOS.

    generate      characters per second at a size, for 200 names of one call, which share what they
                  begin with; and the speed at which the parameters are read for them: all but the
                  embeddings once after each different prefix. A version that shares nothing reads
                  them more often than that
    one by one    the same names, each from a call of its own
    read          how fast the C library reads as many bytes again and again: what the caches give
    train         `microgpt train`, from the start of Python to its end
    import        what `from microgpt import Value` adds to `python -c pass`
    link          one c = a * b + c of a chain of scalar Values: building it, and its backward
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from rounds import Clock, spread, uncertainty

SIZES = [(16, 1), (64, 1), (64, 4)]
TRAINED = 100  # steps, so that what is generated looks like names
NAMES = 200
LINKS = 20_000
STARTS = 5  # of an interpreter, for one figure of the import


def timed(work: Callable[[], object], least: float = 0.2) -> float:
    """Return the seconds of the processor for one call, of as many as take `least` together."""
    calls, start, seconds = 0, time.process_time(), 0.0
    while seconds < least:
        work()
        calls += 1
        seconds = time.process_time() - start
    return seconds / calls


def generate(n_embd: int, n_layer: int) -> dict[str, float]:
    """Generate names from a model that was trained for a moment, together and one by one."""
    import microgpt as mg

    docs = mg.load_documents()
    run = mg.finish(mg.prepare(docs, steps=TRAINED, n_embd=n_embd, n_layer=n_layer))

    def together() -> list[str]:
        return mg.generate(run, NAMES, rng=random.Random(1))

    def one_by_one() -> list[str]:
        rng = random.Random(1)
        return [mg.generate(run, 1, rng=rng)[0] for _ in range(NAMES)]

    names, shape = together(), f"{n_embd},{n_layer}"
    if one_by_one() != names:
        raise SystemExit("names of one call and of several are not the same")
    seconds, seconds_alone = timed(together), timed(one_by_one)
    characters = sum(map(len, names))
    longest = run.model.config.block_size - 1  # that a token is drawn after
    prefixes = {name[:i] for name in names for i in range(min(len(name), longest) + 1)}
    state = run.model.state_dict
    size = 8 * (run.model.num_params - sum(len(state[n].tolist()) * n_embd for n in ("wte", "wpe")))
    memory = b"x" * size
    return {
        f"generate {shape}, characters/s": characters / seconds,
        f"generate {shape}, GB/s": len(prefixes) * size / seconds / 1e9,
        f"one by one {shape}, characters/s": characters / seconds_alone,
        f"read {size:,} bytes, GB/s": size / timed(lambda: memory.find(b"y"), 0.02) / 1e9,
    }


def link() -> dict[str, float]:
    """Build a chain of scalar operations and differentiate it."""
    from microgpt import Value

    def build() -> Value:
        a, b, c = Value(0.5), Value(0.25), Value(0.0)
        for _ in range(LINKS):
            c = a * b + c
        return c

    build().backward()
    building = timed(build) / LINKS * 1e9
    both = timed(lambda: build().backward()) / LINKS * 1e9
    return {"link, building it, ns": building, "link, building it and backward, ns": both}


def children_time(*command: str) -> float:
    """Return the seconds of the processor that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, check=True, cwd=folder, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(python: str, what: str) -> dict[str, float]:
    """Return the figures of one kind, measured once with this Python."""
    if what == "train":
        return {"microgpt train, ms": children_time(python, "-m", "microgpt", "train") * 1e3}
    if what == "import":
        code = {"from microgpt import Value": 0.0, "pass": 0.0}
        for _ in range(STARTS):
            for line in code:
                code[line] += children_time(python, "-c", line)
        extra, plain = code["from microgpt import Value"] - code["pass"], code["pass"]
        return {"import, ms": extra / STARTS * 1e3, "python -c pass, ms": plain / STARTS * 1e3}
    child = [python, __file__, "--child", *what.split()]
    done = subprocess.run(child, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main() -> None:
    """Read the command line, measure, print."""
    kinds = [f"generate {n_embd},{n_layer}" for n_embd, n_layer in SIZES]
    kinds += ["train", "import", "link"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--against", metavar="PYTHON", help="another Python that has the package")
    parser.add_argument("--rounds", type=int, default=5, help="at least this many")
    parser.add_argument("--most", type=int, default=25, help="at most this many rounds")
    parser.add_argument("--settled", type=float, default=1.0, metavar="PERCENT")
    args = parser.parse_args()

    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an import is measured with its cache
    pythons = [sys.executable, *([args.against] if args.against else [])]
    clock = Clock()
    print("medians and spread of the middle half", "of this package", end="")
    print(", of the other, and this / other" if args.against else "")
    for kind in args.only:
        figures: dict[str, list[list[float]]] = {}
        for rounds in range(max(args.most, args.rounds) + 1):  # the first one warms up
            for place, python in enumerate(pythons):
                measured = measure(python, kind)
                for name, figure in measured.items() if rounds else ():
                    figures.setdefault(name, [[] for _ in pythons])[place].append(figure)
            times = [values for both in figures.values() for values in both]
            if rounds >= args.rounds and max(map(uncertainty, times)) <= args.settled / 100:
                break
        for name, values in figures.items():
            line = f"{name:36}"
            for several in values:
                line += f"{statistics.median(several):14,.1f} ±{spread(several):4.0%}"
            if args.against:
                line += f"{statistics.median(values[0]) / statistics.median(values[1]):8.2f}"
            print(line, f"  {rounds} rounds", flush=True)
    print(clock.report())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, *size = sys.argv[2:]
        print(json.dumps(link() if kind == "link" else generate(*map(int, size[0].split(",")))))
    else:
        main()
