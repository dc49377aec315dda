"""Hostile files: seeded mutations of good ones, and what the reader of each may do.

A kind of file is one entry of KINDS: how a good file is made, how it is read, the errors that
the reader documents. The answer is a result or one of these errors in one line; nothing hangs and
nothing takes much more memory than the file.
"""

import json
import math
import os
import random
import tempfile
import time
import tracemalloc
from pathlib import Path

import pytest

import microgpt as mg
from microgpt.outputs import _opened_log

INPUTS = int(os.environ.get("MICROGPT_INPUTS", "400"))
SEED = int(os.environ.get("MICROGPT_SEED", "1"))

PIECES = [
    b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80",
    b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1b[2J", b" ", b"\t",
    b"\x0c", b"{", b"}", b'"', b"[" * 50, b"-1", b"1e999", b"NaN", b"null", b"9" * 400,
    "\U0001f600".encode(), "\u202e".encode(), "é".encode(), b"a" * 3000,
]  # fmt: skip


def names():
    return "\n".join(mg.load_documents()[:200]).encode() + b"\n"


def check_names(documents):
    assert documents and all(isinstance(doc, str) and doc.strip() == doc for doc in documents)
    assert all(documents) and not any("\n" in doc or "\r" in doc for doc in documents)


def checkpoint():
    run = mg.train(["ab", "ba", "abba"], steps=3, n_embd=4, n_head=2, block_size=4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good"
        mg.save(run, path)
        return path.read_bytes()


def check_checkpoint(saved):
    assert len(saved.losses) <= saved.adam.step <= saved.config.steps
    assert all(map(math.isfinite, saved.losses))
    try:
        documents = mg.generate(saved, n=2)
    except FloatingPointError:  # parameters of 1e300 are finite, what they compute is not
        return
    assert set("".join(documents)) <= set(saved.tokenizer.chars)


def log():
    lines = [{"step": n, "loss": 1 / n, "lr": 0.01, "tokens": 7 * n} for n in range(1, 30)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def cut_log(path):
    """Cut a log back to step 20, as resuming a run does, and return what is left."""
    _opened_log(str(path), 20).close()
    return path.read_bytes()


def check_log(left):
    *lines, rest = left.split(b"\n")
    assert rest == b""
    assert all(line.startswith(b'{"step": ') for line in lines)


# kind -> a good file, its reader, the check of what it gives, the errors that it documents
KINDS = {
    "data": (names, mg.load_documents, check_names, (ValueError, OSError)),
    "checkpoint": (checkpoint, mg.load, check_checkpoint, (ValueError, OSError)),
    "log": (log, cut_log, check_log, (ValueError, OSError)),
}


def mutated(good, rng):
    """Return a file with a few of the ways in which a file can be wrong."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((0, 1, 2, 5, 50, 1000)))
        way = rng.randrange(8)
        if way == 0:
            del data[at:to]
        elif way == 1:
            del data[at:]
        elif way == 2:
            data[at:at] = rng.choice(PIECES) * rng.choice((1, 1, 2, 40))
        elif way == 3:
            data[at:to] = rng.randbytes(to - at)
        elif way == 4:
            data[at:at] = data[at:to]
        elif way == 5 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif way == 6:
            data[at:to] = rng.choice((b"\0", b" ", b"\n", b"\xff")) * (to - at)
        elif way == 7:
            data[:at] = b""
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_file_gives_a_result_or_one_clear_error(kind, tmp_path):
    make, read, check, errors = KINDS[kind]
    good, path = make(), tmp_path / f"hostile.{kind}"
    rng = random.Random(f"{SEED} {kind}")
    answers = {"result": 0, "error": 0}
    slowest, start = 0.0, time.monotonic()
    for number in range(INPUTS):
        data = mutated(good, rng)
        path.write_bytes(data)
        measured = number % 20 == 0  # it makes Python several times slower
        began = time.monotonic()
        if measured:
            tracemalloc.start()
        try:
            result = read(path)
        except errors as error:
            answers["error"] += 1
            message = str(error)
            assert path.name in message and len(message.splitlines()) == 1, data
            assert len(message) < 300 + len(str(path)), data
            assert message.isprintable(), data
        else:
            answers["result"] += 1
            check(result)
        finally:
            if measured:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        if measured:
            assert peak < 2**20 + 100 * len(data), data
        slowest = max(slowest, time.monotonic() - began)
    print(f"{kind}: {INPUTS} inputs, {answers}, {time.monotonic() - start:.1f} s in all, "
          f"{slowest:.3f} s the slowest")  # fmt: skip
    assert answers["result"] > 0 and answers["error"] > 0


def test_the_mutations_are_the_same_for_the_same_seed():
    good = names()
    first, second = ([mutated(good, random.Random(s)) for s in range(50)] for _ in range(2))
    assert first == second and len(set(first)) > 40
