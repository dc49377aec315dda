"""Hostile files: seeded mutations of good ones, and what the reader of each may do.

A kind of file is one entry of KINDS: how a good file is made, how it is read, the errors that
the reader documents. The answer is a result or one of these errors in one line; nothing hangs and
nothing takes much more memory than the file. What was read is then used: it is trained, saved and
loaded again, with the same bits.

MICROGPT_INPUTS: how many files of a kind. MICROGPT_SEED: other files.
"""

import json
import math
import os
import random
import struct
import tempfile
import time
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from checkpoint_files import format_1, joined, numbers, parts
from processes import problems

import microgpt as mg
from microgpt.cli import run_command
from microgpt.outputs import _opened_log

try:
    import resource
except ImportError:  # not POSIX
    resource = None

INPUTS = int(os.environ.get("MICROGPT_INPUTS", "400" if mg.BACKEND == "cython" else "100"))
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
    assert len(saved.losses) <= saved.adam.step
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
    assert all(type(json.loads(line)["step"]) is int for line in lines)


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


@pytest.fixture
def no_sync(monkeypatch):
    """Do not wait for the disk: that takes most of the time of a small file."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# Checkpoints with hostile contents rather than broken bytes, and what is done with them next

SIZES = {"n_embd": 4, "n_head": 2, "block_size": 4}
NAMES = ["ab", "ba", "abba", "aab"]
BASES = {  # name -> documents, settings; those of older formats are the same
    "plain": (NAMES, {}),
    "batches": (NAMES, {"batch_size": 3, "val_fraction": 0.3, "n_layer": 2}),
    "paragraphs": (["to be\nor not", "to be"], {"unit": "paragraph", "lr": 0.1}),
    "stream": (["abba baab ab ba"], {"unit": "stream", "batch_size": 2, "val_fraction": 0.3}),
    "recorded": (NAMES, {"record": True}),
}

HOSTILE = [
    None, True, False, 0, 1, -1, 2, 3, 4, 5, 7, 2**16, 10**6, 10**6 + 1, 10**12, 2**31, 2**32,
    2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**63), 0.0, -0.0, 0.5, 1.0, 3.0,
    0.9999999999999999, 1e308, -1e308, 1.7976931348623157e308, 5e-324, 1e-300, math.nan, math.inf,
    -math.inf, "", "0", "1e5", "pt", "GPT", "line", "x" * 9000, "\x1b[2J\n", "\u202e", "\ud800",
    "é😀", "\0", '{"a": 1}', "[]", [], [0], [1, 2, 3], [2**63] * 3, [0.9, 0.99, 5e-324],
    [[[[]]]] * 99, {}, {"a": 1}, {"": {"": None}},
]  # fmt: skip

NUMBERS = [
    1e308, -1e308, 1.7976931348623157e308, 1e160, -1e154, 1e10, 1.0, -1.0, 1e-160, 5e-324, -5e-324,
    2.2250738585072014e-308, 1e-310, 0.0, -0.0,
]  # fmt: skip


def near(value, rng):
    """Return a value close to a good one, or of another magnitude."""
    if type(value) is int:
        return value + rng.choice((-2, -1, 1, 2))
    if type(value) is float:
        return value * rng.choice((-1, 0.5, 2, 1e300, 1e-300))
    return value


def change_setting(header, data, rng):
    metadata = header["__metadata__"]
    key = rng.choice(("config", "training", "state", *(["record"] * ("record" in metadata))))
    settings = json.loads(metadata[key]) if key in metadata else None
    if not isinstance(settings, dict) or not settings:
        return
    name = rng.choice(list(settings))
    value = settings[name]
    way = rng.randrange(10)
    if isinstance(value, list) and value and way < 6:  # the generator, the constants of Adam
        has_words = len(value) == 3 and isinstance(value[1], list)
        inner = value[1] if has_words and way < 4 else value
        inner[rng.randrange(len(inner))] = rng.choice(HOSTILE)
        if way == 0:
            del inner[rng.randrange(len(inner))]
    elif way < 4:
        settings[name] = rng.choice(HOSTILE)
    elif way < 8:
        settings[name] = near(value, rng)
    elif way == 8:
        del settings[name]
    else:
        settings[rng.choice(("seed", "step", "x", "x" * 9000, "\x1b"))] = rng.choice(HOSTILE)
    metadata[key] = json.dumps(settings)


def change_metadata(header, data, rng):
    metadata = header["__metadata__"]
    key, other = rng.choice(list(metadata)), rng.choice(list(metadata))
    way = rng.randrange(4)
    if way == 0:
        metadata[key] = rng.choice(HOSTILE)
    elif way == 1:
        metadata[key] = json.dumps(rng.choice(HOSTILE))
    elif way == 2:
        metadata[key], metadata[other] = metadata[other], metadata[key]
    elif len(metadata) > 1:
        del metadata[key]


def change_alphabet(header, data, rng):
    n = len(header["__metadata__"].get("alphabet") or "ab") + rng.choice((0, 0, 0, -1, 1))
    letters = rng.choices("ab\0\n é😀\u202e\ud800\x85\U0010ffff", k=n)
    letters = letters if rng.randrange(4) == 0 else sorted(letters)
    header["__metadata__"]["alphabet"] = "".join(letters)


def change_tensor(header, data, rng):
    tensors = [name for name in header if name != "__metadata__"]
    if not tensors:
        return
    name, other = rng.choice(tensors), rng.choice(tensors)
    way = rng.randrange(6)
    if way == 0:
        header[name][rng.choice(("dtype", "shape", "data_offsets", "x"))] = rng.choice(HOSTILE)
    elif way == 1 and isinstance(header[name], dict):
        numbers = header[name].get(rng.choice(("shape", "data_offsets")))
        if isinstance(numbers, list) and numbers:
            numbers[rng.randrange(len(numbers))] = rng.choice(HOSTILE)
    elif way == 2:
        header[name], header[other] = header[other], header[name]
    elif way == 3:
        header[rng.choice(("wte", "losses", "x", "x" * 9000, "\x1b[2J"))] = header.pop(name)
    elif way == 4:
        del header[name]
    else:
        header[name] = rng.choice(HOSTILE)


def change_numbers(header, data, rng):
    last = len(data) // 8 - 1
    if last < 1:
        return
    at, number = rng.randrange(last), rng.choice(NUMBERS)
    if rng.randrange(3):
        number = abs(number)  # most moments below 0 are refused
    if rng.randrange(20) == 0:
        number = rng.choice((math.nan, math.inf, -math.inf))
    for i in range(at, min(last, at + rng.choice((1, 1, 1, 3, 20, 200)))):
        struct.pack_into("<d", data, 8 * i, number)


def change_losses(header, data, rng):
    """Leave out losses, as in a run that was trained by a loop of one's own."""
    losses = header.get("losses")
    state = header["__metadata__"].get("state")
    if isinstance(losses, dict) and isinstance(state, str) and losses.get("shape") == [3]:
        n = rng.randrange(4)
        losses["shape"] = [n]
        losses["data_offsets"] = [len(data) - 24, len(data) - 24 + 8 * n]
        del data[len(data) - 24 + 8 * n :]


def change_length(header, data, rng):
    if rng.randrange(2):
        del data[rng.randrange(len(data) + 1) :]
    else:
        data += rng.randbytes(rng.choice((1, 8, 4096)))


CHANGES = [
    *[change_numbers] * 9, *[change_setting] * 5, change_metadata, change_alphabet, change_tensor,
    change_losses, change_length,
]  # fmt: skip


def hostile(good, rng):
    """Return a checkpoint with one to three hostile changes."""
    header, data = parts(good)
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(CHANGES)(header, data, rng)
        if not all(isinstance(text, str) for text in header["__metadata__"].values()):
            break
        try:
            for key in ("config", "state", "training", "record"):
                json.loads(header["__metadata__"].get(key, "{}"))
        except ValueError:
            break
    content = joined(header, bytes(data))
    if rng.randrange(20) == 0:  # the bytes too
        content = mutated(content, rng)
    return content


ANSWERS = (ValueError, OSError, FloatingPointError, MemoryError)


def attempt(f, *arguments):
    """Return what f gives, and None or the error; an error is one line."""
    try:
        return f(*arguments), None
    except ANSWERS as error:
        text = str(error)
        beside = len(str(arguments[0])) if arguments and isinstance(arguments[0], Path) else 0
        assert len(text) <= 300 + beside and text.isprintable(), text
        return None, f"{type(error).__name__}: {text}"


def bits(run):
    """Return all numbers of a run so that 0.0 and -0.0 differ."""
    return repr((numbers(run), run.config, run.model.config, run.tokenizer, run.sha256))


def taken(run, n):
    """Take up to n steps; return their losses."""
    return [metrics["loss"] for metrics in islice(mg.steps(run), n)]


# Settings within their limits can ask for more work than a test has time for.
POSITIONS = 20_000 if mg.BACKEND == "cython" else 100


def go_on(path, docs, other):
    """Load a file and do everything that can be done with a run; return how far it got."""
    run, error = attempt(mg.load, path)
    if error:
        assert str(path) in error
        return "refused"
    attempt(mg.score, run.model, run.tokenizer.encode(run.tokenizer.chars[:2]))
    mg.save(run, other)  # all that is read can be written
    assert bits(mg.load(other)) == bits(run)
    texts = attempt(mg.generate, run, 2, 1.0)
    assert texts == attempt(mg.generate, mg.load(path), 2, 1.0)
    run, error = attempt(mg.load, path, docs)
    if error:
        return "no documents"
    if run.config.batch_size * run.model.config.block_size > POSITIONS:
        return "too much work"
    if attempt(taken, run, 2)[1]:
        return "not a step"
    if attempt(mg.save, run, other)[1]:
        return "not finite"
    again = mg.load(other, docs)
    assert bits(again) == bits(run)
    assert repr(attempt(taken, again, 1)) == repr(attempt(taken, run, 1))
    assert attempt(mg.generate, again, 2, 1.0) == attempt(mg.generate, run, 2, 1.0)
    assert bits(again) == bits(run)
    return "used"


class Watch:
    """Check what files cost: at most 5 s of the processor and 50 MB each, and 500 MB in all."""

    def __init__(self, what):
        self.what, self.slowest, self.start = what, 0.0, time.monotonic()
        self.resident, self.answers = self._resident(), Counter()

    def _resident(self):
        """Return the most memory that the process has had, in MB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if resource else 0.0

    def add(self, number, f, *arguments):
        began, measured = time.process_time(), number % 50 == 0
        if measured:
            tracemalloc.start()
        try:
            self.answers[f(*arguments)] += 1
        finally:
            if measured:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        assert not measured or peak < 50 * 2**20
        seconds = time.process_time() - began  # not what other work of the machine takes
        if not measured:  # which makes Python several times slower
            self.slowest = max(self.slowest, seconds)
            assert seconds < 5

    def end(self):
        seconds, more = time.monotonic() - self.start, self._resident() - self.resident
        assert more < 500
        print(f"{self.what}: {self.answers.total()} inputs, {dict(self.answers)}, {seconds:.1f} s "
              f"in all, {self.slowest:.3f} s the slowest, {more:.0f} MB more")  # fmt: skip


@pytest.mark.parametrize("kind", ["float64", "float32", "format 1"])
@pytest.mark.parametrize("base", BASES)
def test_a_hostile_checkpoint_can_be_used_or_is_one_clear_error(base, kind, no_sync, tmp_path):
    docs, settings = BASES[base]
    dtype = "float32" if kind == "float32" else "float64"
    run = mg.prepare(docs, steps=9, dtype=dtype, **SIZES, **settings)
    for _ in range(3):
        mg.train_step(run)
    path, other = tmp_path / "hostile", tmp_path / "other"
    mg.save(run, path)
    good = path.read_bytes()
    good = format_1(*parts(good)) if kind == "format 1" else good
    path.write_bytes(good)
    assert go_on(path, docs, other) == "used"
    rng = random.Random(f"{SEED} {base} {kind}")
    watch = Watch(f"{base}, {kind}")
    for number in range(max(25, INPUTS // 8)):
        data = hostile(good, rng)
        path.write_bytes(data)
        try:
            watch.add(number, go_on, path, docs, other)
        except BaseException:
            print(f"file {number} of MICROGPT_SEED={SEED}: {data[:3000]}")
            raise
    watch.end()
    assert watch.answers["refused"] and watch.answers["used"]


def train_on(path, other):
    docs, error = attempt(mg.load_documents, path)
    if error:
        return "refused"
    run = mg.train(docs, steps=2, **SIZES)
    mg.save(run, other)
    again = mg.load(other, mg.load_documents(path))
    assert bits(again) == bits(run) and again.documents == run.documents
    assert mg.generate(again, 1) == mg.generate(run, 1)
    return "used"


def test_mutated_data_can_be_trained_on_and_saved_or_is_one_clear_error(no_sync, tmp_path):
    good, rng = names()[:400], random.Random(f"{SEED} train")
    path, other = tmp_path / "hostile", tmp_path / "other"
    watch = Watch("data")
    for number in range(max(50, INPUTS // 4)):
        path.write_bytes(mutated(good, rng))
        watch.add(number, train_on, path, other)
    watch.end()
    assert watch.answers["refused"] and watch.answers["used"]


def quiet(lines):
    """Return what lines of a log say, without the seconds."""
    return [{**json.loads(line), "seconds": 0} for line in lines]


def resume_log(command, half, model, path, before, last, capsys):
    code = run_command([*command, "--resume", half, "--out", str(model)])
    err, left = problems(capsys.readouterr().err), path.read_bytes()
    if code:
        assert code == 2 and err.count("\n") == 1 and len(err) < 320 + len(str(path))
        assert left == before
        return "refused"
    lines = left.splitlines(keepends=True)
    assert err == "" and quiet(lines[-4:]) == last
    assert before.startswith(b"".join(lines[:-4]))
    return "used"


def test_a_mutated_log_is_continued_or_left_alone(no_sync, tmp_path, capsys):
    """A run is resumed at step 5 of 9 with the log of its first nine steps, mutated."""
    data, model, path = (tmp_path / name for name in ("data", "model", "log"))
    data.write_text("\n".join(NAMES))
    sizes = ["--n-embd", "4", "--n-head", "2", "--block-size", "4", "--steps", "9"]
    command = ["train", "--data", str(data), "--log", str(path), "--samples", "0"]
    snapshots = ["--out", str(model), "--save-every", "5", "--snapshots"]
    assert run_command([*command, *sizes, *snapshots]) == 0
    half, good = f"{model}-000005", path.read_bytes()
    rng = random.Random(f"{SEED} resume")
    watch, last = Watch("log"), quiet(good.splitlines()[5:])
    for number in range(max(50, INPUTS // 4)):
        mutant = mutated(good, rng)
        path.write_bytes(mutant)
        watch.add(number, resume_log, command, half, model, path, mutant, last, capsys)
    watch.end()
    assert watch.answers["refused"] and watch.answers["used"]
