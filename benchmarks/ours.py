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

from yardsticks import BLOCK_SIZE, N_HEAD, Problem, Result  # noqa: E402

SCRIPT = HERE.parent / "examples" / "script.py"


def texts(problem: Problem) -> tuple[str, list[str]]:
    """Return an alphabet whose ids are those of the problem, and its documents in letters."""
    alphabet = "".join(chr(ord("a") + i) for i in range(problem.vocab_size - 1))
    return alphabet, ["".join(alphabet[i] for i in doc[1:-1]) for doc in problem.documents]


def train_package(problem: Problem, steps: int, batch: int) -> dict[str, object]:
    """Take steps through the public API: forward, backward, Adam, schedule, loss stored."""
    import microgpt as mg

    alphabet, documents = texts(problem)
    config = mg.Config(problem.vocab_size, problem.n_layer, problem.n_embd, N_HEAD, BLOCK_SIZE)
    model = mg.GPT(config, random.Random(0))
    model.load_state_dict(problem.state)
    adam = mg.Adam(model.state_dict.values())
    settings = mg.TrainConfig(steps=steps, batch_size=batch)
    run = mg.Run(settings, mg.Tokenizer(alphabet), model, adam, random.Random(0), documents)
    start = time.perf_counter()
    for _ in range(steps):
        mg.train_step(run)
    elapsed = time.perf_counter() - start
    return {"losses": run.losses, "microseconds": elapsed / steps / batch * 1e6}


def train_script(problem: Problem, steps: int, plain: bool) -> dict[str, object]:
    """Run the script's training, with our Value or with a plain one, and time its loop.

    `until_adam` is the part of a step until backward has returned.
    """
    import plain_value

    import microgpt

    _, documents = texts(problem)
    order = list(range(len(documents)))
    random.Random(42).shuffle(order)
    unshuffled = _undo(order, documents)
    module = types.ModuleType("microgpt")
    module.Value = plain_value.Value if plain else microgpt.Value
    module.load_documents = lambda source: unshuffled
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
    names = {"__file__": str(SCRIPT), "now": time.perf_counter, **clocks}
    sys.argv = [str(SCRIPT), "", str(steps)]
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, str(SCRIPT), "exec"), names)
    begin, differentiated, done = map(sum, clocks.values())
    return {
        "losses": names["losses"],
        "microseconds": (done - begin) / steps * 1e6,
        "until_adam": (differentiated - begin) / steps * 1e6,
    }


def _undo(order: list[int], shuffled: list[str]) -> list[str]:
    """Return the list that a shuffle with this order turned into `shuffled`."""
    original = [""] * len(shuffled)
    for place, text in zip(order, shuffled, strict=True):
        original[place] = text
    return original


@dataclass(frozen=True)
class Program:
    """The package or the script, with the interface of a Yardstick."""

    title: str
    kind: str  # "package", "script" or "plain-script"
    backend: str
    exact: bool = True

    def train(self, problem: Problem, steps: int, batch: int = 1) -> Result:
        """Train in a new process. Raises CalledProcessError if it fails."""
        done = subprocess.run(
            [sys.executable, __file__, self.kind, str(steps), str(batch)],
            input=pickle.dumps(problem),
            stdout=subprocess.PIPE,
            check=True,
            env={**os.environ, "MICROGPT_BACKEND": self.backend},
        )
        answer = json.loads(done.stdout)
        return Result(answer["losses"], answer["microseconds"], answer.get("until_adam"))

    def missing(self) -> str | None:
        """Return why it cannot run here, or None."""
        command = [sys.executable, "-c", "from microgpt import Value"]
        env = {**os.environ, "MICROGPT_BACKEND": self.backend}
        failed = subprocess.run(command, env=env, capture_output=True, text=True)
        return failed.stderr.strip().splitlines()[-1] if failed.returncode else None


PROGRAMS = {
    "microgpt": Program("microgpt, compiled", "package", "cython"),
    "pure": Program("microgpt, pure Python", "package", "python"),
    "script": Program("the original script", "plain-script", "auto"),
    "drop-in": Program("the script with our Value", "script", "cython"),
}


def main() -> None:
    """Train as the arguments say, with the problem from stdin; print the result as JSON."""
    kind, steps, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    problem = pickle.load(sys.stdin.buffer)
    if kind == "package":
        answer = train_package(problem, steps, batch)
    else:
        answer = train_script(problem, steps, plain=kind == "plain-script")
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
