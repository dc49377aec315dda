"""Train with the package, or with the original program as a script, in its own process.

A process has one core of microgpt, so each training runs in a fresh one:

    MICROGPT_BACKEND=python python ours.py package 20 1 < problem.pickle
    python ours.py script 20 1 < problem.pickle
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from yardsticks import FIRST_STEPS, N_HEAD, Problem, Result  # noqa: E402

SCRIPT = HERE.parent / "examples" / "script.py"


def unshuffled(problem: Problem) -> list[str]:
    """Return the documents in letters, in the order that is the problem's after a shuffle."""
    documents = ["".join(chr(ord("a") + i) for i in doc[1:-1]) for doc in problem.documents]
    order = list(range(len(documents)))
    random.Random(42).shuffle(order)
    original = [""] * len(documents)
    for place, text in zip(order, documents, strict=True):
        original[place] = text
    return original


def load_text(file: Path, n_embd: int, n_layer: int, batch: int, steps: int) -> Problem:
    """Return the training on a text that `microgpt train --unit stream --block-size 64` does: the
    documents of a step are its windows."""
    import microgpt as mg

    run = mg.prepare(
        mg.load_documents(file, unit="stream"),
        unit="stream",
        steps=steps,
        batch_size=batch,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=N_HEAD,
        block_size=64,
    )
    windows = [window for step in range(steps) for window in run.batch(step)]
    state = {name: matrix.tolist() for name, matrix in run.model.state_dict.items()}
    sizes = run.model.config
    return Problem(
        n_embd, n_layer, sizes.vocab_size, state, windows, sizes.block_size, run.documents[0]
    )


def train_package(problem: Problem, steps: int, batch: int, dtype: str) -> dict[str, object]:
    """Take steps through the public API: forward, backward, Adam, schedule, loss stored.

    What it draws from seed 42 are the documents and the parameters of the problem.
    """
    import microgpt as mg

    sizes = {"n_embd": problem.n_embd, "n_layer": problem.n_layer, "block_size": problem.block_size}
    if dtype != "float64":  # which an older package has not heard of
        sizes["dtype"] = dtype
    if problem.text:
        documents, sizes["unit"] = [problem.text], "stream"
    else:
        documents = unshuffled(problem)
    run = mg.prepare(documents, steps=steps, batch_size=batch, **sizes)
    for _ in range(FIRST_STEPS):
        mg.train_step(run)
    start = time.process_time()
    for _ in range(steps - FIRST_STEPS):
        mg.train_step(run)
    elapsed = time.process_time() - start
    timed = (steps - FIRST_STEPS) * batch
    return {"losses": run.losses, "microseconds": elapsed / timed * 1e6}


def train_script(problem: Problem, steps: int, plain: bool) -> dict[str, object]:
    """Run the script's training, with our Value or with a plain one, and time its loop.

    `until_adam` is the part of a step until backward has returned.
    """
    import plain_value

    import microgpt

    documents = unshuffled(problem)
    module = types.ModuleType("microgpt")
    module.Value = plain_value.Value if plain else microgpt.Value
    module.load_documents = lambda source: documents
    sys.modules["microgpt"] = module

    clocks: dict[str, list[float]] = {"begin": [], "differentiated": [], "done": []}
    source = SCRIPT.read_text(encoding="utf-8").split("# Sampling")[0]
    for line, clock in (
        ("    doc = docs[step % len(docs)]\n", "begin"),
        ("    loss.backward()\n", "differentiated"),
        ("    losses.append(loss.data)\n", "done"),
    ):
        before, after = source.split(line)
        source = f"{before}{line}    {clock}.append(now())\n{after}"
    names = {"__file__": str(SCRIPT), "now": time.process_time, **clocks}
    sys.argv = [str(SCRIPT), "", str(steps)]
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, str(SCRIPT), "exec"), names)
    begin, differentiated, done = map(sum, clocks.values())
    return {
        "losses": names["losses"],
        "microseconds": (done - begin) / steps * 1e6,
        "until_adam": (differentiated - begin) / steps * 1e6,
    }


@dataclass(frozen=True)
class Program:
    """The package or the script, with the interface of a Yardstick."""

    title: str
    kind: str  # "package", "script" or "plain-script"; "package-float32"
    backend: str
    level: str = "auto"  # of the compiled core's instruction set
    python: str = sys.executable
    exact: bool = True

    def train(self, problem: Problem, steps: int, batch: int = 1) -> Result:
        """Train in a new process. Raises CalledProcessError if it fails."""
        done = subprocess.run(
            [self.python, __file__, self.kind, str(steps), str(batch)],
            input=pickle.dumps(problem),
            stdout=subprocess.PIPE,
            check=True,
            env=self._environment(),
        )
        answer = json.loads(done.stdout)
        return Result(answer["losses"], answer["microseconds"], answer.get("until_adam"))

    def missing(self) -> str | None:
        """Return why it cannot run here, or None."""
        command = [self.python, "-c", "from microgpt import Value"]
        failed = subprocess.run(command, env=self._environment(), capture_output=True, text=True)
        return failed.stderr.strip().splitlines()[-1] if failed.returncode else None

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "MICROGPT_BACKEND": self.backend, "MICROGPT_SIMD": self.level}


PROGRAMS = {
    "microgpt": Program("microgpt, compiled", "package", "cython"),
    "avx2": Program("microgpt, AVX2", "package", "cython", "avx2"),
    "float32": Program("microgpt, float32", "package-float32", "cython", exact=False),
    "float32-avx2": Program(
        "microgpt, float32, AVX2", "package-float32", "cython", "avx2", exact=False
    ),
    "baseline": Program("microgpt, baseline", "package", "cython", "baseline"),
    "pure": Program("microgpt, pure Python", "package", "python"),
    "script": Program("the original script", "plain-script", "auto"),
    "drop-in": Program("the script with our Value", "script", "cython"),
}


def main() -> None:
    """Train as the arguments say, with the problem from stdin; print the result as JSON."""
    kind, steps, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    problem = pickle.load(sys.stdin.buffer)
    if kind.startswith("package"):
        answer = train_package(problem, steps, batch, kind.partition("-")[2] or "float64")
    else:
        answer = train_script(problem, steps, plain=kind == "plain-script")
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
