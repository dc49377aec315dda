"""Count the memory that a steady training step asks of the system.

    python benchmarks/faults.py

A page that the system gives to a process is cleared and costs a fault when it is first touched;
`faults` are those per step after a warm-up (resource.getrusage, ru_minflt; Linux and macOS), each
of 4 KiB as a rule. `system` is the share of the processor's time that was spent in the system,
`largest` the memory of the process at its largest. Every line is a process of its own. A step is
`train_step`, which replays, or `by hand`: loss, backward and update, a new graph each time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys

# n_embd, n_layer, block_size, batch_size, unit
NAMES = [(16, 1, 1), (16, 1, 16), (64, 1, 1), (64, 4, 1), (64, 4, 16), (128, 4, 1), (128, 4, 16)]
STREAMS = [(16, 1, 64, 12), (64, 1, 64, 12), (64, 4, 64, 12), (64, 4, 256, 4), (128, 4, 64, 12)]
SIZES = [(n_embd, n_layer, 16, batch, "line") for n_embd, n_layer, batch in NAMES]
SIZES += [(*size, "stream") for size in STREAMS]
WAYS = ["train_step", "by hand"]


def train(
    way: str,
    n_embd: int,
    n_layer: int,
    block_size: int,
    batch_size: int,
    unit: str,
    warm: int,
    steps: int,
) -> dict[str, float]:
    """Take steps, warm ones first; return what the others took from the system, for one step."""
    import microgpt as mg

    docs = mg.load_documents()
    run = mg.prepare(
        docs if unit == "line" else ["\n".join(docs)],
        steps=warm + steps,
        n_embd=n_embd,
        n_layer=n_layer,
        block_size=block_size,
        batch_size=batch_size,
        unit=unit,
    )

    def step() -> None:
        if way == "train_step":
            mg.train_step(run)
        else:
            loss = run.model.loss(run.batch(run.adam.step))
            loss.backward()
            run.adam.update(mg.linear_decay(run.config.lr, run.adam.step, run.config.steps))

    for _ in range(warm):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(steps):
        step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    return {
        "faults": (after.ru_minflt - before.ru_minflt) / steps,
        "system": system / (system + user),
        "ms": (system + user) / steps * 1e3,
        "largest": after.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
    }


def main() -> None:
    """Read the command line, measure each size in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--warm", type=int, default=30, help="steps that are not counted")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(train(*args.child, args.warm, args.steps)))
        return
    print(f"{'':12}{'n_embd,n_layer':16}{'block':>6}{'batch':>6}{'unit':>8}", end="")
    print(f"{'faults/step':>14}{'system':>8}{'ms/step':>9}{'largest':>10}")
    for way, size in itertools.product(WAYS, SIZES):
        n_embd, n_layer, block_size, batch_size, unit = size
        command = [sys.executable, __file__, "--child", json.dumps([way, *size])]
        command += ["--warm", str(args.warm), "--steps", str(args.steps)]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"{way:12}{f'{n_embd},{n_layer}':16}{block_size:6}{batch_size:6}{unit:>8}", end="")
        print(f"{figures['faults']:14,.1f}{figures['system']:8.0%}{figures['ms']:9.2f}", end="")
        print(f"{figures['largest']:7.0f} MB", flush=True)


if __name__ == "__main__":
    main()
