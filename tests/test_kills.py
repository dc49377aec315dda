"""Training runs that are killed, interrupted or interrupted twice at random moments.

Whatever they leave can be resumed, and then gives the numbers of an undisturbed run, bit for bit.
MICROGPT_KILLS: how many of each kind. MICROGPT_SEED: other moments.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import pytest
from checkpoint_files import numbers
from processes import problems

import microgpt as mg

KILLS = int(os.environ.get("MICROGPT_KILLS", "6"))
SEED = int(os.environ.get("MICROGPT_SEED", "1"))
STEPS = 300 if mg.BACKEND == "cython" else 60  # some tenths of a second

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def command(*arguments, options=()):
    return [
        sys.executable, "-W", "error", *options, "-m", "microgpt", "train", "--out", "m",
        "--save-every", "3", "--log", "log.jsonl", "--eval-every", "10", "--samples", "3",
        *arguments,
    ]  # fmt: skip


NEW = [
    "--data", "names.txt", "--n-embd", "4", "--n-head", "2", "--block-size", "4",
    "--val-fraction", "0.2", "--steps", str(STEPS),
]  # fmt: skip


def lines_of(log):
    """Return the whole lines of a log, without the seconds."""
    *lines, _ = log.read_bytes().split(b"\n")
    return [{**json.loads(line), "seconds": 0} for line in lines]


def samples_of(output):
    return [line for line in output.splitlines() if line.startswith("sample ")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Numbers, log and samples of a run that is not disturbed, and how long it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(folder)
    start = time.monotonic()
    done = subprocess.run(command(*NEW), cwd=folder, capture_output=True, text=True, timeout=300)
    seconds = time.monotonic() - start
    assert (done.returncode, problems(done.stderr)) == (0, "")
    assert len(samples_of(done.stdout)) == 3
    run = mg.load(folder / "m")
    assert run.adam.step == STEPS
    return numbers(run), lines_of(folder / "log.jsonl"), samples_of(done.stdout), seconds


def prepare(folder):
    (folder / "names.txt").write_text("emma\nolivia\nava\nisabella\nsophia\nmia\nluna\n")


def is_of_the_start(err):
    """Return whether err is the traceback of an interrupt before our main() ran.

    While Python starts, no code of ours can catch it, and Python may report and then ignore it.
    """
    return "KeyboardInterrupt" in err and not re.search(r'__main__\.py", line \d+, in main', err)


def end(process, kind, wait, rng):
    """Kill or interrupt a run after wait seconds, unless it ends before; return its output."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(wait)
    if kind == "killed":
        process.kill()
    else:
        process.send_signal(signal.SIGINT)
        if kind == "interrupted twice":
            time.sleep(rng.choice((0, rng.uniform(0, 0.002), rng.uniform(0, 0.03))))
            process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(folder, kind, code, err, expected, before):
    """Check what a run left behind; return how it ended. before: what was there before it."""
    out, log = folder / "m", folder / "log.jsonl"
    saved = mg.load(out).adam.step if out.exists() else 0
    lines = lines_of(log) if log.exists() else []
    assert lines == expected[: len(lines)] and len(lines) >= saved
    err = problems(err)
    if kind == "killed":
        assert err == "" and code in (0, -signal.SIGKILL)
        return "done" if code == 0 else "killed"
    assert not [name for name in os.listdir(folder) if name.endswith(".part")]
    if code == 0:
        assert saved == STEPS and (err == "" or is_of_the_start(err)), err
        return "done"
    if is_of_the_start(err):
        assert contents(folder) == before
        return "at the start of Python"
    # While modules are imported and after the command, the signal itself ends the process.
    assert code in (130, -signal.SIGINT) and "Traceback" not in err, err
    if kind == "interrupted twice" and err and not err.endswith("\n"):
        err += "\n"  # the second one came before the end of the line
    told = re.fullmatch(r"microgpt: interrupted at step (\d+), saved as m: .*\n", err)
    if told:
        assert int(told[1]) == saved == len(lines)
        return "saved"
    assert err in ("", "microgpt: interrupted\n")
    assert kind == "interrupted twice" or len(lines) == saved  # one Ctrl-C loses no step
    return "not saved"


@pytest.mark.parametrize("kind", ["killed", "interrupted", "interrupted twice"])
def test_a_run_that_is_ended_at_any_moment_resumes_bit_for_bit(kind, undisturbed, tmp_path):
    """Each run is ended up to three times and resumed until it is done; then another one starts."""
    expected, log, samples, seconds = undisturbed
    rng = random.Random(f"{SEED} {kind}")
    ends, folder, start, went_on = Counter(), None, time.monotonic(), 0
    # Ctrl-C between the opening of a file and the `with` that closes it leaves that to the
    # interpreter, which tells only those who ask.
    options = () if kind == "killed" else ("-W", "ignore::ResourceWarning")
    while sum(ends.values()) < KILLS or folder:
        if folder is None:
            folder = tmp_path / str(sum(ends.values()))
            folder.mkdir()
            prepare(folder)
            ends_left = rng.randint(1, 3)
        saved = (folder / "m").exists()
        arguments = ["--resume", "m"] if saved else NEW
        went_on += saved
        before = contents(folder)
        process = subprocess.Popen(
            command(*arguments, options=options), cwd=folder, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            if ends_left:
                out, err = end(process, kind, rng.uniform(0, 1.1 * seconds), rng)
            else:
                out, err = process.communicate(timeout=300)
                assert process.returncode == 0
        how = check(folder, kind, process.returncode, err, log, before)
        if ends_left:
            ends[how] += 1
            ends_left -= 1
        if how == "done":
            assert samples_of(out) == samples
            assert numbers(mg.load(folder / "m")) == expected
            assert lines_of(folder / "log.jsonl") == log
            folder = None
    print(f"{kind}: {dict(ends)}, {went_on} resumed, {time.monotonic() - start:.1f} s")
    # A few signals may all come too late, where the machine was slower when the time was taken.
    assert KILLS < 20 or set(ends) != {"done"}
