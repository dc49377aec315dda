"""Compile and run the C programs with explicit gradients.

`handwritten.c` is float64 and tuned by hand for AVX2 and for AVX-512; `handwritten32.c`, the level
"float32", is plain loops for AVX2 and -ffast-math.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from array import array
from itertools import accumulate, chain
from pathlib import Path

from .problem import FIRST_STEPS, N_HEAD, Problem, Result

SOURCE = Path(__file__).with_name("handwritten.c")
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-std=gnu11", "-Wall", "-Wno-psabi"]
SOURCE32 = Path(__file__).with_name("handwritten32.c")
FLAGS32 = ["-O3", "-ffast-math", "-std=gnu11", "-Wall"]
LEVELS = {"avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}


@functools.cache
def _folder() -> Path:
    """Return the directory of this process's programs; it is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="yardsticks-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def compiler() -> list[str] | None:
    """Return the compiler's command: CC from the environment, or cc, gcc, clang; None if none."""
    named = os.environ.get("CC", "").split()
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    return None


@functools.cache
def levels() -> list[str]:
    """Return the levels of LEVELS that this machine and its compiler have; needs a compiler."""
    probe = _folder() / "probe"
    has = '__builtin_cpu_supports("{}")'
    wanted = {"avx2": ["avx2"], "avx512": [f"avx512{part}" for part in ("f", "vl", "dq", "bw")]}
    found = []
    for level, features in wanted.items():
        code = f"int main(void) {{ return !({' && '.join(map(has.format, features))}); }}"
        command = [*(compiler() or []), LEVELS[level], "-x", "c", "-", "-o", str(probe)]
        built = subprocess.run(command, input=code, text=True, capture_output=True)
        if built.returncode == 0 and subprocess.run([str(probe)]).returncode == 0:
            found.append(level)
    return found


def missing(level: str = "avx2") -> str | None:
    """Return why the program cannot be built or run, or None. Without AVX2 the level "avx2" is
    what the compiler makes for any machine of this kind."""
    if compiler() is None:
        return "no C compiler: set CC, or install cc, gcc or clang"
    if level == "avx512" and level not in levels():
        return "no AVX-512 on this machine, or in its compiler"
    return None


@functools.cache
def build(
    n_embd: int, n_layer: int, vocab_size: int, block_size: int, batch: int, level: str
) -> Path:
    """Compile the program for these sizes and return its path."""
    command = compiler()
    if command is None:
        raise RuntimeError(missing())
    sizes = {
        "N_EMBD": n_embd,
        "N_LAYER": n_layer,
        "N_HEAD": N_HEAD,
        "BLOCK": block_size,
        "VOCAB": vocab_size,
        "BATCH": batch,
        "FIRST_STEPS": FIRST_STEPS,
    }
    program = _folder() / "-".join(map(str, ["c", level, *sizes.values()]))
    source, flags = (SOURCE32, FLAGS32) if level == "float32" else (SOURCE, FLAGS)
    target = LEVELS["avx2" if level == "float32" else level]
    flags = [*flags, *([target] if target in map(LEVELS.get, levels()) else [])]
    defines = [f"-D{name}={size}" for name, size in sizes.items()]
    build_it = [*command, *flags, *defines, str(source), "-o", str(program), "-lm"]
    subprocess.run(build_it, check=True)
    return program


def write_input(problem: Problem, path: Path, count: int) -> None:
    """Write the sizes, the parameters and the first `count` documents (all, if fewer)."""
    documents = problem.documents[:count]
    starts = [0, *accumulate(map(len, documents))]
    sizes = [problem.n_embd, problem.n_layer, N_HEAD, problem.block_size, problem.vocab_size]
    rows = chain.from_iterable(problem.state.values())
    with open(path, "wb") as file:
        array("i", [*sizes, len(documents), starts[-1]]).tofile(file)
        array("d", chain.from_iterable(rows)).tofile(file)
        array("i", starts).tofile(file)
        array("i", chain.from_iterable(documents)).tofile(file)


def train(problem: Problem, steps: int, batch: int = 1, level: str = "avx2") -> Result:
    """Train in C. Raises RuntimeError without a compiler, CalledProcessError if building fails."""
    sizes = problem.n_embd, problem.n_layer, problem.vocab_size, problem.block_size
    program = build(*sizes, batch, level)
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
