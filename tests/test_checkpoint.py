"""Checkpoints: what comes back is what was saved, and a bad file is one line."""

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
import tracemalloc

import pytest

import microgpt as mg
from microgpt import checkpoint

DOCS = ["emma", "olivia", "ava", "isabella", "sophia"]
SIZES = {"n_layer": 2, "n_embd": 8, "n_head": 2, "block_size": 6}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "names.safetensors"


def steps(run, n):
    for _ in range(n):
        mg.train_step(run)
    return run


def numbers(run):
    """Return every number of a run that its further steps depend on."""
    blocks = [m.tolist() for m in (*run.model.state_dict.values(), *run.adam.m, *run.adam.v)]
    return blocks, run.adam.step, run.rng.getstate(), run.losses, run.tokens


RUNS = {
    "plain": (DOCS, {}),
    "batches": (DOCS, {**SIZES, "batch_size": 3}),
    "validation": (DOCS * 2, {"val_fraction": 0.2}),
    "paragraphs": (["to be\nor not", "to be"], {"split": "paragraphs"}),
    "stream": (["to be or not to be, that is the question"], {"split": "stream", **SIZES}),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(kind, path):
    docs, options = RUNS[kind]
    whole = mg.train(docs, steps=12, seed=7, **options)
    run = mg.prepare(docs, steps=12, seed=7, **options)
    for n in (0, 3, 4):  # before the first step, in the middle, and again
        mg.save(steps(run, n), path)
        run = mg.resume(docs, mg.load(path))
    mg.finish(run)
    assert numbers(run) == numbers(whole)
    assert (run.documents, run.validation) == (whole.documents, whole.validation)
    assert mg.generate(run, 5) == mg.generate(whole, 5)


def test_a_saved_run_samples_as_the_run_itself_would(path):
    run = mg.train(DOCS, steps=3)
    mg.save(run, path)
    saved = mg.load(path)
    assert mg.generate(saved, 4) == mg.generate(run, 4)
    assert numbers(mg.load(path)) != numbers(run)  # the run went on, the file did not


def test_what_is_known_of_a_run_comes_back(path):
    run = mg.prepare(["é😀", "b\n"], steps=9, seed=-3, lr=0.1, val_fraction=0.5)
    run.dataset = "odd 'näme'.txt"
    mg.save(run, path)
    saved = mg.load(path)
    for name in ("steps", "lr", "batch_size", "seed", "split", "val_fraction", "dataset", "sha256"):
        assert getattr(saved, name) == getattr(run, name), name
    assert (saved.tokenizer, saved.model.config) == (run.tokenizer, run.model.config)
    assert saved.sha256 == mg.checksum(["é😀", "b\n"])


def test_other_data_is_refused(path):
    mg.save(mg.prepare(DOCS), path)
    for docs in (DOCS[1:], DOCS[::-1], [*DOCS, "mia"]):
        with pytest.raises(ValueError, match="not what the run was trained on"):
            mg.resume(docs, mg.load(path))


def test_a_save_replaces_the_file_and_leaves_no_other(path):
    run = mg.prepare(DOCS, steps=2)
    mg.save(run, path)
    mg.save(steps(run, 2), str(path))
    assert mg.load(os.fsencode(path)).adam.step == 2
    assert os.listdir(path.parent) == [path.name]


def test_a_save_through_a_symbolic_link_writes_its_target(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    mg.save(mg.prepare(DOCS), link)
    assert link.is_symlink() and path.is_file()


def test_a_save_that_fails_leaves_what_was_there(path, monkeypatch):
    run = mg.prepare(DOCS, steps=2)
    mg.save(run, path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        mg.save(steps(run, 1), path)
    assert str(caught.value) == f"{path}: No space left on device"
    assert mg.load(path).adam.step == 0
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_device_is_written_to_and_not_replaced():
    with pytest.raises(OSError, match="/dev/full: No space left on device"):
        mg.save(mg.prepare(DOCS), "/dev/full")
    assert not os.path.isfile("/dev/full")


def test_parameters_that_are_not_finite_are_not_saved(path):
    run = mg.prepare(DOCS)
    run.model.state_dict["wpe"][1][2].data = math.nan
    with pytest.raises(FloatingPointError, match="wpe has a number that is not finite"):
        mg.save(run, path)
    assert not path.exists()


# Against the safetensors library


def test_the_library_reads_what_we_write(path):
    pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors")
    run = steps(mg.prepare(DOCS, steps=5, **SIZES), 3)
    mg.save(run, path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
        for name, matrix in run.model.state_dict.items():
            array = file.get_tensor(name)
            assert (array.dtype, array.tolist()) == ("float64", matrix.tolist())
        assert file.get_tensor("adam.v.wte").tolist() == run.adam.v[0].tolist()
        assert file.get_tensor("losses").tolist() == run.losses
    assert metadata["format"] == "pt"
    assert json.loads(metadata["config"]) == {"vocab_size": run.tokenizer.vocab_size, **SIZES}
    assert (metadata["alphabet"], metadata["seed"]) == (run.tokenizer.chars, "42")
    assert metadata["version"] == mg.__version__


def test_we_read_what_the_library_writes(path):
    library = pytest.importorskip("safetensors.numpy")
    run = steps(mg.prepare(DOCS, steps=5), 3)
    mg.save(run, path)
    header, _ = parts(path.read_bytes())
    library.save_file(library.load_file(path), path, metadata=header["__metadata__"])
    assert numbers(mg.load(path)) == numbers(run)


# Files that are damaged, or made to do damage


def parts(content):
    """Return the header and the numbers of a safetensors file."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def joined(header, data):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_metadata(**changes):
    """Return a change of a file: other metadata; None removes an entry."""

    def change(header, data):
        new = {**header["__metadata__"], **changes}
        kept = {key: value for key, value in new.items() if value is not None}
        return joined({**header, "__metadata__": kept}, data)

    return change


def with_state(**changes):
    """Return a change of a file: another training state."""

    def change(header, data):
        state = json.loads(header["__metadata__"]["training"]) | changes
        return with_metadata(training=json.dumps(state))(header, data)

    return change


def with_config(**changes):
    def change(header, data):
        config = json.loads(header["__metadata__"]["config"]) | changes
        return with_metadata(config=json.dumps(config))(header, data)

    return change


def with_entry(name, **changes):
    """Return a change of a file: another description of a tensor."""
    return lambda header, data: joined({**header, name: {**header[name], **changes}}, data)


def with_number(name, number):
    def change(header, data):
        at = header[name]["data_offsets"][0]
        return joined(header, data[:at] + struct.pack("<d", number) + data[at + 8 :])

    return change


def renamed(header, data):
    header["wpi"] = header.pop("wpe")
    return joined(header, data)


def doubled_key(header, data):
    text = json.dumps(header)
    return joined(text[:-1] + ', "wte": ' + json.dumps(header["wte"]) + "}", data)


RNG = random.Random(0).getstate()
BAD = {
    "empty": (lambda h, d: b"", "not a safetensors file, or it is cut off"),
    "seven bytes": (lambda h, d: b"1234567", "cut off"),
    "a text": (lambda h, d: b"emma\nolivia\nava\n", "cut off"),
    "cut in the header": (lambda h, d: joined(h, d)[:400], "cut off"),
    "cut in the numbers": (lambda h, d: joined(h, d[:-8]), "bytes of numbers, its header tells"),
    "one byte too few": (lambda h, d: joined(h, d[:-1]), "bytes of numbers"),
    "bytes behind": (lambda h, d: joined(h, d + b"12345678"), "bytes of numbers"),
    "header of 2**64": (lambda h, d: b"\xff" * 8 + joined(h, d)[8:], "cut off"),
    "huge header": (lambda h, d: joined(" " * 10_000_001 + "{}", b""), "10000003 bytes"),
    "no json": (lambda h, d: joined("{nonsense", d), "not the JSON of a checkpoint"),
    "json that is a list": (lambda h, d: joined("[1]", d), "not the JSON of a checkpoint"),
    "deep json": (lambda h, d: joined("[" * 100_000, d), "not the JSON of a checkpoint"),
    "long number": (lambda h, d: joined('{"a": ' + "9" * 9000 + "}", d), "not the JSON"),
    "latin-1": (lambda h, d: struct.pack("<Q", 4) + b'"\xe9" ', "not the JSON of a checkpoint"),
    "doubled key": (doubled_key, "a key stands twice"),
    "no metadata": (lambda h, d: joined({"wte": h["wte"]}, d), "but not one of microgpt"),
    "metadata of another": (with_metadata(microgpt=None), "but not one of microgpt"),
    "metadata with a number": (with_metadata(seed=1), "but not one of microgpt"),
    "newer": (with_metadata(microgpt="2", version="7.0"), "format 2, from microgpt '7.0'"),
    "odd version": (with_metadata(microgpt="one"), "its format is 'one'"),
    "no alphabet": (with_metadata(alphabet=None), "the metadata has no alphabet"),
    "no state": (with_metadata(training=None), "the metadata has no training"),
    "unsorted alphabet": (with_metadata(alphabet="velimsophab"), "not in order"),
    "doubled character": (with_metadata(alphabet="aabehilmopsv"), "more than once"),
    "short alphabet": (with_metadata(alphabet="ab"), "an alphabet of 2 does not go with"),
    "seed": (with_metadata(seed="x"), "the seed is 'x'"),
    "config that is a list": (with_metadata(config="[]"), "the config is not the JSON"),
    "config with another size": (with_config(depth=3), "the config is not one of microgpt"),
    "config with a fraction": (with_config(n_embd=16.0), "n_embd must be an int"),
    "config of no layers": (with_config(n_layer=0), "n_layer must be at least 1"),
    "config of many layers": (with_config(n_layer=10**15), "n_layer is 1000000000000000, of"),
    "config of more layers": (with_config(n_layer=2), "missing or unknown"),
    "config of another width": (with_config(n_embd=32), "config asks for (12, 32)"),
    "config of many positions": (with_config(block_size=10**12), "wpe has shape (16, 16)"),
    "wrong dtype": (with_entry("wpe", dtype="F32"), "'wpe' is 'F32', not F64"),
    "dtype that is a list": (with_entry("wpe", dtype=[]), "'wpe' is [], not F64"),
    "an entry too many": (with_entry("wpe", more=1), "is not described by"),
    "turned shape": (with_entry("layer0.mlp_fc1", shape=[16, 64]), "layer0.mlp_fc1 has shape"),
    "three dimensions": (with_entry("wpe", shape=[16, 4, 4]), "does not fit its offsets"),
    "shape that lies": (with_entry("wpe", shape=[2**40, 2**40]), "does not fit its offsets"),
    "negative shape": (with_entry("wpe", shape=[-16, -16]), "whole numbers should stand"),
    "shape of words": (with_entry("wpe", shape=["16", "16"]), "whole numbers should stand"),
    "three offsets": (with_entry("wpe", data_offsets=[0, 1, 2048]), "does not fit its offsets"),
    "offsets beyond": (with_entry("wpe", data_offsets=[2**50, 2**50 + 2048]), "or leaves a gap"),
    "offsets that overlap": (with_entry("wpe", data_offsets=[0, 2048]), "overlaps another"),
    "offsets backwards": (with_entry("wpe", data_offsets=[2048, 0]), "does not fit its offsets"),
    "renamed tensor": (renamed, "missing or unknown: ['wpe', 'wpi']"),
    "nan": (with_number("wpe", math.nan), "wpe has a number that is not finite"),
    "infinite moment": (with_number("adam.m.wte", -math.inf), "adam.m.wte has a number"),
    "negative moment": (with_number("adam.v.wte", -1.0), "adam.v.wte is below 0"),
    "nan loss": (with_number("losses", math.nan), "losses has a number"),
    "step beyond": (with_state(step=9), "step 9 is beyond steps 5"),
    "fewer losses": (with_state(step=2), "losses has shape (3,)"),
    "step of true": (with_state(step=True), "step is True"),
    "negative steps": (with_state(steps=-1), "steps is -1"),
    "empty batches": (with_state(batch_size=0), "batch_size is 0"),
    "lr": (with_state(lr="fast"), "lr is 'fast'"),
    "lr of infinity": (with_metadata(training='{"lr": Infinity}'), "Infinity is not JSON"),
    "huge lr": (with_metadata(training='{"steps":1,"step":0,"batch_size":1,"tokens":0,"lr":1e999}'),
                "lr is inf"),
    "val_fraction": (with_state(val_fraction=1), "val_fraction is 1"),
    "split": (with_state(split="words"), "split is 'words'"),
    "adam": (with_state(adam=[0.9, 0.9]), "adam is not beta1, beta2 and eps"),
    "adam's beta": (with_state(adam=[0.9, 1.0, 1e-8]), "its betas must be below 1"),
    "no generator": (with_state(rng=None), "not the state of a random.Random"),
    "short generator": (with_state(rng=[3, [1, 2], None]), "not the state of a random.Random"),
    "generator of words": (with_state(rng=[3, ["1"] * 625, None]), "not the state of"),
    "generator with a word": (with_state(rng=[3, RNG[1], "x"]), "not the state of"),
    "no step": (with_metadata(training='{"steps": 1}'), "step is None"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "names.safetensors"
    mg.save(steps(mg.prepare(DOCS, steps=5), 3), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_that_names_it(name, good, path):
    change, message = BAD[name]
    path.write_bytes(change(*parts(good)))
    with pytest.raises(ValueError) as caught:
        mg.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text
    assert text.isprintable() and len(text) < 400 + len(str(path))


def test_a_file_cut_off_anywhere_is_refused(good, path):
    for length in random.Random(0).sample(range(len(good)), 100):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError):
            mg.load(path)


def test_a_file_with_any_byte_of_its_header_changed_loads_or_is_refused(good, path):
    rng = random.Random(1)
    for _ in range(300):
        content = bytearray(good)
        content[rng.randrange(9000)] = rng.randrange(256)
        path.write_bytes(content)
        try:
            mg.load(path)
        except ValueError as error:
            assert str(error).count("\n") == 0


def test_a_header_that_lies_takes_no_memory(path):
    entry = {"dtype": "F64", "shape": [2**20, 2**20], "data_offsets": [0, 2**43]}
    path.write_bytes(joined({"wte": entry, "__metadata__": {"microgpt": "1"}}, b""))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            mg.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "error"), [("missing", FileNotFoundError), ("a\0b", ValueError), (".", ValueError)]
)
def test_what_is_no_file_is_an_error_that_names_it(name, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        mg.load(name)
    assert str(caught.value).isprintable() and "[Errno" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a file"):
        mg.load(tmp_path / "pipe")


def test_the_bytes_are_little_endian_on_every_machine(monkeypatch):
    one = struct.pack("<d", 1.5)
    assert checkpoint._little_endian(one) == one
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
    swapped = checkpoint._little_endian(one)
    assert swapped == one[::-1] and checkpoint._little_endian(swapped) == one


SAVER = """
import sys, microgpt as mg
run = mg.prepare(["emma", "ava"], steps=10**6, n_embd=64)
print("ready", flush=True)
while True:
    mg.train_step(run)
    mg.save(run, sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_run_that_is_killed_while_it_saves_leaves_a_file_that_loads(path):
    rng, last = random.Random(3), 0
    for _ in range(8 if mg.BACKEND == "cython" else 2):
        command = [sys.executable, "-c", SAVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while not path.exists():
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
        last = max(last, mg.load(path).adam.step)
    assert last > 0
