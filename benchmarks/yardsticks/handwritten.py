"""Compile and run `handwritten.c`, the C program with explicit gradients."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import tempfile
from array import array
from itertools import accumulate, chain
from pathlib import Path

from .problem import BLOCK_SIZE, N_HEAD, Problem, Result

SOURCE = Path(__file__).with_name("handwritten.c")
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-std=gnu11", "-Wall", "-Wno-psabi"]
if platform.machine().lower() in ("x86_64", "amd64"):
    FLAGS.append("-march=x86-64-v3")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """Return the directory of this process's programs; it is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="yardsticks-")


def compiler() -> list[str] | None:
    """Return the compiler's command: CC from the environment, or cc, gcc, clang; None if none."""
    named = os.environ.get("CC", "").split()
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    return None


def missing() -> str | None:
    """Return why the program cannot be built, or None."""
    if compiler() is None:
        return "no C compiler: set CC, or install cc, gcc or clang"
    return None


@functools.cache
def build(n_embd: int, n_layer: int, vocab_size: int, batch: int) -> Path:
    """Compile the program for these sizes and return its path."""
    command = compiler()
    if command is None:
        raise RuntimeError(missing())
    program = Path(_folder().name) / f"c-{n_embd}-{n_layer}-{vocab_size}-{batch}"
    sizes = {
        "N_EMBD": n_embd,
        "N_LAYER": n_layer,
        "N_HEAD": N_HEAD,
        "BLOCK": BLOCK_SIZE,
        "VOCAB": vocab_size,
        "BATCH": batch,
    }
    defines = [f"-D{name}={size}" for name, size in sizes.items()]
    build_it = [*command, *FLAGS, *defines, str(SOURCE), "-o", str(program), "-lm"]
    subprocess.run(build_it, check=True)
    return program


def write_input(problem: Problem, path: Path, count: int) -> None:
    """Write the sizes, the parameters and the first `count` documents (all, if fewer)."""
    documents = problem.documents[:count]
    starts = [0, *accumulate(map(len, documents))]
    sizes = [problem.n_embd, problem.n_layer, N_HEAD, BLOCK_SIZE, problem.vocab_size]
    rows = chain.from_iterable(problem.state.values())
    with open(path, "wb") as file:
        array("i", [*sizes, len(documents), starts[-1]]).tofile(file)
        array("d", chain.from_iterable(rows)).tofile(file)
        array("i", starts).tofile(file)
        array("i", chain.from_iterable(documents)).tofile(file)


def train(problem: Problem, steps: int, batch: int = 1) -> Result:
    """Train in C. Raises RuntimeError without a compiler, CalledProcessError if building fails."""
    program = build(problem.n_embd, problem.n_layer, problem.vocab_size, batch)
    with tempfile.TemporaryDirectory(prefix="yardsticks-") as folder:
        given, losses = Path(folder) / "input", Path(folder) / "losses"
        write_input(problem, given, steps * batch)
        run = subprocess.run(
            [str(program), str(given), str(steps), str(losses)],
            check=True,
            capture_output=True,
            text=True,
        )
        return Result([float(line) for line in losses.read_text().split()], float(run.stdout))
