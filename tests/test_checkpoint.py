"""Checkpoints: what is loaded is what was saved, and a bad file gives one line."""

import copy
import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
from checkpoint_files import format_1, format_2, joined, numbers, parts

import microgpt as mg
from microgpt import checkpoint
from microgpt import safetensors as our_safetensors

DOCS = ["emma", "olivia", "ava", "isabella", "sophia"]
SIZES = {"n_layer": 2, "n_embd": 8, "n_head": 2, "block_size": 6}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "names.safetensors"


def steps(run, n):
    for _ in range(n):
        mg.train_step(run)
    return run


RUNS = {
    "plain": (DOCS, {"n_embd": 8}),
    "batches": (DOCS, {**SIZES, "batch_size": 3}),
    "validation": (DOCS * 2, {"n_embd": 8, "val_fraction": 0.2}),
    "paragraphs": (["to be\nor not", "to be"], {"unit": "paragraph", **SIZES}),
    "stream": (["to be or not to be, that is the question"], {"unit": "stream", **SIZES}),
}
IN_FLOAT32 = {f"{kind}, float32": (docs, {**options, "dtype": "float32"})
              for kind, (docs, options) in RUNS.items()}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS | IN_FLOAT32)
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(kind, path):
    docs, options = (RUNS | IN_FLOAT32)[kind]
    whole = mg.train(docs, steps=12, seed=7, **options)
    run = mg.prepare(docs, steps=12, seed=7, **options)
    for n in (0, 3, 4):  # before the first step, in the middle, and again
        mg.save(steps(run, n), path)
        run = mg.load(path, docs)
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
    settings = {"steps": 9, "seed": -3, "lr": 0.1, "batch_size": 2, "val_fraction": 0.5}
    settings["val_seed"] = 2**64
    run = mg.prepare(["é😀", "b\n"], unit="paragraph", **settings)
    run.dataset = "odd 'näme'.txt"
    mg.save(run, path)
    saved = mg.load(path)
    assert saved.config == run.config == mg.TrainConfig(**settings, unit="paragraph")
    assert (saved.dataset, saved.sha256) == (run.dataset, mg.checksum(["é😀", "b\n"]))
    assert (saved.tokenizer, saved.model.config) == (run.tokenizer, run.model.config)
    assert saved.sha256 == run.sha256 and saved.documents == saved.validation == []


def test_a_file_from_before_the_validation_seed_loads(path):
    mg.save(mg.prepare(DOCS, val_fraction=0.5), path)
    expected = mg.load(path, DOCS).validation
    path.write_bytes(with_training(without="val_seed")(*parts(path.read_bytes())))
    saved = mg.load(path, DOCS)
    assert saved.config.val_seed is None and saved.validation == expected


def test_other_data_is_refused(path):
    mg.save(mg.prepare(DOCS), path)
    for docs in (DOCS[1:], DOCS[::-1], [*DOCS, "mia"]):
        with pytest.raises(ValueError, match="not what the run was trained on"):
            mg.load(path, docs)


def test_two_runs_from_one_file_are_independent(path):
    mg.save(steps(mg.prepare(DOCS, steps=9), 3), path)
    one, other = mg.load(path, DOCS), mg.load(path, DOCS)
    before = numbers(other)
    assert numbers(one) == before
    mg.finish(one)
    mg.generate(one, 3)
    one.documents.clear()
    one.validation.append("mia")
    assert numbers(other) == before
    assert sorted(other.documents) == sorted(DOCS) and other.validation == []
    assert mg.finish(other).losses == one.losses == mg.train(DOCS, steps=9).losses


def test_a_run_without_its_documents_takes_no_step(path):
    mg.save(mg.prepare(DOCS), path)
    run = mg.load(path)
    for take in (mg.train_step, mg.finish, lambda run: run.batch(0)):
        with pytest.raises(ValueError, match=r"without its documents: use load\(path, docs\)"):
            take(run)
    assert numbers(run) == numbers(mg.load(path))


def own_steps(run, n):
    """Take steps as a hand-written loop does: without train_step and its bookkeeping."""
    for step in range(run.adam.step, run.adam.step + n):
        loss = run.model.loss(run.batch(step))
        loss.backward()
        run.adam.update(mg.linear_decay(run.config.lr, step, run.config.steps))
    return run


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_trained_by_a_loop_of_ones_own_is_saved_and_goes_on(kind, path):
    docs, options = RUNS[kind]
    whole = mg.train(docs, steps=8, **options)
    mg.save(own_steps(mg.prepare(docs, steps=8, **options), 3), path)
    run = mg.load(path, docs)
    assert (run.adam.step, run.losses) == (3, [])
    mg.save(own_steps(run, 2), path)
    run = mg.finish(mg.load(path, docs))
    assert run.losses == whole.losses[5:]
    assert numbers(run)[:3] == numbers(whole)[:3]
    mg.save(run, path)
    assert numbers(mg.load(path)) == numbers(run)


class Louder(mg.GPT):
    """A user's model: the same parameters, another forward."""

    def forward(self, tokens, cache=None, starts=None, trace=None):
        logits = super().forward(tokens, cache, starts, trace)
        return logits + logits


def test_a_model_of_ones_own_comes_back_as_its_class(path):
    whole = mg.train(DOCS, steps=6, model=Louder)
    mg.save(steps(mg.prepare(DOCS, steps=6, model=Louder), 3), path)
    run = mg.load(path, DOCS, model=Louder)
    assert type(run.model) is Louder
    assert numbers(mg.finish(run)) == numbers(whole)


def test_a_model_of_another_class_is_refused_in_one_line(path):
    for saved, asked in ((Louder, mg.GPT), (mg.GPT, Louder)):
        mg.save(mg.prepare(DOCS, model=saved), path)
        with pytest.raises(ValueError) as caught:
            mg.load(path, DOCS, model=asked)
        text = str(caught.value)
        assert f"{path}: its model is of class {saved.__name__}, not {asked.__name__}: " in text
        assert ("load(path, model=Louder) reads it" in text) == (saved is Louder)
        assert ("load(path) reads it" in text) == (saved is mg.GPT)
        assert text.isprintable() and len(text) < 300 + len(str(path))


def test_a_save_replaces_the_file_and_leaves_no_other(path):
    run = mg.prepare(DOCS, steps=2)
    mg.save(run, path)
    mg.save(steps(run, 2), str(path))
    assert mg.load(os.fsencode(path)).adam.step == 2
    assert os.listdir(path.parent) == [path.name]


def test_a_save_touches_no_file_of_another_name(path):
    part = path.with_name(path.name + ".part")
    part.write_text("mine")
    mg.save(mg.prepare(DOCS), path)
    assert part.read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="no permissions of this kind on Windows")
def test_a_save_keeps_the_permissions_of_the_file(path):
    run = mg.prepare(DOCS)
    mg.save(run, path)
    path.chmod(0o640)
    mg.save(run, path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_two_threads_save_to_one_file(path):
    runs = [steps(mg.prepare(DOCS, steps=2), n) for n in range(3)]
    threads = [
        threading.Thread(target=lambda run=run: [mg.save(run, path) for _ in range(10)])
        for run in runs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(mg.load(path)) in map(numbers, runs)
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


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_library_reads_what_we_write(path, dtype):
    pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors")
    run = steps(mg.prepare(DOCS, steps=5, dtype=dtype, **SIZES), 3)
    mg.save(run, path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
        for name, matrix in run.model.state_dict.items():
            array = file.get_tensor(name)
            assert (array.dtype, array.tolist()) == (dtype, matrix.tolist())
        assert file.get_tensor("adam.v.wte").tolist() == run.adam.v[0].tolist()
        assert file.get_tensor("losses").tolist() == run.losses
    assert metadata["format"] == "pt"
    assert json.loads(metadata["config"]) == {
        "vocab_size": run.tokenizer.vocab_size, **SIZES, "dtype": dtype
    }  # fmt: skip
    training, state = json.loads(metadata["training"]), json.loads(metadata["state"])
    assert training == {
        "steps": 5, "lr": 0.01, "batch_size": 1, "seed": 42, "unit": "line", "val_fraction": 0.0,
        "val_seed": None,
    }  # fmt: skip
    assert (state["step"], state["tokens"], state["seconds"]) == (3, run.tokens, run.seconds)
    assert (metadata["model"], metadata["alphabet"]) == ("GPT", run.tokenizer.chars)
    assert (metadata["microgpt"], metadata["version"]) == ("3", mg.__version__)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_we_read_what_the_library_writes(path, dtype):
    library = pytest.importorskip("safetensors.numpy")
    run = steps(mg.prepare(DOCS, steps=5, dtype=dtype), 3)
    mg.save(run, path)
    header, _ = parts(path.read_bytes())
    library.save_file(library.load_file(path), path, metadata=header["__metadata__"])
    assert numbers(mg.load(path)) == numbers(run)


# Files that are damaged, or made to do damage


def with_metadata(**changes):
    """Return a change of a file: other metadata; None removes an entry."""

    def change(header, data):
        new = {**header["__metadata__"], **changes}
        kept = {key: value for key, value in new.items() if value is not None}
        return joined({**header, "__metadata__": kept}, data)

    return change


def with_json(key, /, without=None, **changes):
    """Return a change of a file: other JSON in an entry of its metadata."""

    def change(header, data):
        new = json.loads(header["__metadata__"][key]) | changes
        new.pop(without, None)
        return with_metadata(**{key: json.dumps(new)})(header, data)

    return change


with_config = partial(with_json, "config")
with_training = partial(with_json, "training")
with_state = partial(with_json, "state")


def format_1_with(change):
    """Return a change of a file: format 1, and then another change."""
    return lambda header, data: change(*parts(format_1(header, data)))


def without_metadata(header, data):
    return joined({name: entry for name, entry in header.items() if name != "__metadata__"}, data)


def with_entry(name, **changes):
    """Return a change of a file: another description of a tensor."""
    return lambda header, data: joined({**header, name: {**header[name], **changes}}, data)


def with_number(name, number):
    def change(header, data):
        at = header[name]["data_offsets"][0]
        return joined(header, data[:at] + struct.pack("<d", number) + data[at + 8 :])

    return change


def halved(name):
    """Return a change of a file: a tensor in float32."""

    def change(header, data):
        begin, end = header[name]["data_offsets"]
        doubles = struct.unpack(f"<{(end - begin) // 8}d", data[begin:end])
        floats = struct.pack(f"<{len(doubles)}f", *doubles)
        for entry in header.values():
            if entry.get("data_offsets", [0])[0] >= end:
                entry["data_offsets"] = [x - len(floats) for x in entry["data_offsets"]]
        offsets = [begin, begin + len(floats)]
        header[name] = {**header[name], "dtype": "F32", "data_offsets": offsets}
        return joined(header, data[:begin] + floats + data[end:])

    return change


def renamed(header, data):
    header["wpi"] = header.pop("wpe")
    return joined(header, data)


def renamed_moment(header, data):
    header["adam.m.wpi"] = header.pop("adam.m.wpe")
    return joined(header, data)


def without_losses(header, data):
    start, end = header.pop("losses")["data_offsets"]
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [at - (end - start) for at in entry["data_offsets"]]
    return joined(header, data[:start] + data[end:])


def doubled_key(header, data):
    text = json.dumps(header)
    return joined(text[:-1] + ', "wte": ' + json.dumps(header["wte"]) + "}", data)


RNG = random.Random(0).getstate()
BAD = {
    "empty": (lambda h, d: b"", "not a safetensors file, or it is cut off"),
    "seven bytes": (lambda h, d: b"1234567", "cut off"),
    "a text": (lambda h, d: b"emma\nolivia\nava\n", "cut off"),
    "cut in the header": (lambda h, d: joined(h, d)[:400], "cut off"),
    "cut in the numbers": (lambda h, d: joined(h, d[:-8]), "bytes of numbers, its header says"),
    "one byte too few": (lambda h, d: joined(h, d[:-1]), "bytes of numbers"),
    "bytes behind": (lambda h, d: joined(h, d + b"12345678"), "bytes of numbers"),
    "header of 2**64": (lambda h, d: b"\xff" * 8 + joined(h, d)[8:], "cut off"),
    "huge header": (lambda h, d: joined(" " * 10_000_001 + "{}", b""), "10000003 bytes"),
    "no json": (lambda h, d: joined("{nonsense", d), "the header is not valid JSON"),
    "json that is a list": (lambda h, d: joined("[1]", d), "the header is not a JSON object"),
    "deep json": (lambda h, d: joined("[" * 100_000, d), "the header is not valid JSON"),
    "long number": (lambda h, d: joined('{"a": ' + "9" * 9000 + "}", d), "not valid JSON"),
    "latin-1": (lambda h, d: struct.pack("<Q", 4) + b'"\xe9" ', "the header is not valid JSON"),
    "doubled key": (doubled_key, "duplicate key"),
    "no metadata": (without_metadata, "but not from microgpt"),
    "metadata of another": (with_metadata(microgpt=None), "but not from microgpt"),
    "metadata with a number": (with_metadata(seed=1), "its metadata is not made of strings"),
    "newer": (with_metadata(microgpt="4", version="7.0"), "format 4, from microgpt '7.0'"),
    "odd version": (with_metadata(microgpt="one"), "its format is 'one'"),
    "no alphabet": (with_metadata(alphabet=None), "the metadata has no alphabet"),
    "no model": (with_metadata(model=None), "the metadata has no model"),
    "no training": (with_metadata(training=None), "the metadata has no training"),
    "no state": (with_metadata(state=None), "the metadata has no state"),
    "unsorted alphabet": (with_metadata(alphabet="velimsophab"), "not in order"),
    "doubled character": (with_metadata(alphabet="aabehilmopsv"), "more than once"),
    "short alphabet": (with_metadata(alphabet="ab"), "BOS do not make vocab_size 12"),
    "seed": (with_training(seed="x"), "seed must be an int, not str"),
    "huge seed": (with_training(seed=10**400), "seed must be at most 18446744073709551616"),
    "config that is a list": (with_metadata(config="[]"), "the config is not a JSON object"),
    "config without a size": (with_config(without="n_head"), "n_head"),
    "config with a long name": (with_config(**{"x" * 9000: 1}), "the config has unknown"),
    "config with another size": (with_config(depth=3), "the config has unknown or missing"),
    "config with a fraction": (with_config(n_embd=16.0), "n_embd must be an int"),
    "config of no layers": (with_config(n_layer=0), "n_layer must be at least 1"),
    "config of many layers": (with_config(n_layer=10**15), "n_layer must be at most 1000000"),
    "config of all layers": (with_config(n_layer=10**6), "has fewer than 1000000 layers"),
    "config of more layers": (with_config(n_layer=2), "it lacks ['layer1.attn_wk'"),
    "config of another width": (with_config(n_embd=32), "config asks for (12, 32)"),
    "config of many positions": (with_config(block_size=10**6), "wpe has shape (16, 16)"),
    "config beyond all": (with_config(block_size=10**12), "block_size must be at most 1000000"),
    "wrong dtype": (with_entry("wpe", dtype="F16"), "'wpe' is 'F16', not F64 or F32"),
    "dtype of half the bytes": (with_entry("wpe", dtype="F32"), "does not fit its offsets"),
    "dtype that is a list": (with_entry("wpe", dtype=[]), "'wpe' is [], not F64 or F32"),
    "config of another dtype": (with_config(dtype="float32"), "wte is F64, its config asks for fl"),
    "config of an odd dtype": (with_config(dtype="half"), "dtype must be 'float64' or 'float32'"),
    "config with a long dtype": (with_config(dtype="x" * 9000), "dtype must be 'float64' or"),
    "config without a dtype": (with_config(without="dtype"), "missing entries: ['dtype']"),
    "a tensor of another dtype": (halved("wpe"), "wpe is F32, its config asks for float64"),
    "losses of another dtype": (halved("losses"), "losses is F32, not F64"),
    "an entry too many": (with_entry("wpe", more=1), "is not described by"),
    "turned shape": (with_entry("layer0.mlp_fc1", shape=[16, 64]), "layer0.mlp_fc1 has shape"),
    "three dimensions": (with_entry("wpe", shape=[16, 4, 4]), "'wpe' has shape [16, 4, 4]"),
    "shape that lies": (with_entry("wpe", shape=[2**40, 2**40]), "does not fit its offsets"),
    "negative shape": (with_entry("wpe", shape=[-16, -16]), "'wpe' has shape [-16, -16]"),
    "shape of words": (with_entry("wpe", shape=["16", "16"]), "'wpe' has shape ['16', '16']"),
    "three offsets": (with_entry("wpe", data_offsets=[0, 1, 2048]), "offsets [0, 1, 2048]"),
    "offsets beyond": (with_entry("wpe", data_offsets=[2**50, 2**50 + 2048]), "or leaves a gap"),
    "offsets that overlap": (with_entry("wpe", data_offsets=[0, 2048]), "overlaps another"),
    "offsets backwards": (with_entry("wpe", data_offsets=[2048, 0]), "does not fit its offsets"),
    "renamed tensor": (renamed, "it lacks ['wpe'] and has unknown ['wpi']"),
    "renamed moment": (renamed_moment, "it lacks ['adam.m.wpe'] and has unknown ['adam.m.wpi']"),
    "no losses": (without_losses, "it has no losses"),
    "tied to a number": (with_metadata(tied='{"lm_head": 1}'), "tied is not made of names"),
    "nan": (with_number("wpe", math.nan), "wpe has a number that is not finite"),
    "infinite moment": (with_number("adam.m.wte", -math.inf), "adam.m.wte has a number"),
    "negative moment": (with_number("adam.v.wte", -1.0), "adam.v.wte is below 0"),
    "nan loss": (with_number("losses", math.nan), "losses has a number"),
    "step beyond": (with_state(step=10**12 + 1), "step must be at most 1000000000000"),
    "fewer losses": (with_state(step=2), "losses has shape (3,)"),
    "step of true": (with_state(step=True), "step must be an int, not bool"),
    "huge step": (with_state(step=10**400), "step must be at most 1000000000000"),
    "huge tokens": (with_state(tokens=10**40), "tokens must be at most"),
    "negative tokens": (with_state(tokens=-1), "tokens must be at least 0, not -1"),
    "endless seconds": (with_state(seconds=10**400), "seconds must be a finite number"),
    "negative steps": (with_training(steps=-1), "steps must be at least 0, not -1"),
    "empty batches": (with_training(batch_size=0), "batch_size must be at least 1, not 0"),
    "no lr": (with_training(without="lr"), "lr"),
    "val_seed": (with_training(val_seed=True), "val_seed must be an int, not bool"),
    "a setting too many": (with_training(split="lines"), "the training has unknown or missing"),
    "a setting with a long name": (with_training(**{"x" * 9000: 1}), "the training has unknown"),
    "a setting that does not print": (with_training(**{"\x1b[2J": 1}), "the training has unknown"),
    "lr": (with_training(lr="fast"), "lr must be a number, not str"),
    "lr of infinity": (with_metadata(training='{"lr": Infinity}'), "Infinity is not JSON"),
    "huge lr": (with_training(lr=10**400), "lr must be a finite number"),
    "val_fraction": (with_training(val_fraction=1), "val_fraction must be below 1"),
    "unit": (with_training(unit="words"), "unit must be line, paragraph or stream, not 'words'"),
    "long unit": (with_training(unit="x" * 9000), "unit must be line, paragraph or stream, not"),
    "unit that is a list": (with_training(unit=[0] * 9000), "unit must be line, paragraph or"),
    "adam": (with_state(adam=[0.9, 0.9]), "adam is not beta1, beta2 and eps"),
    "adam's beta": (with_state(adam=[0.9, 1.0, 1e-8]), "must be in [0, 1), not 0.9 and 1.0"),
    "adam's eps": (with_state(adam=[0.9, 0.99, 0.0]), "eps must be positive"),
    "no validation losses": (with_state(val_losses=None), "not a list of steps with their losses"),
    "a validation loss alone": (with_state(val_losses=[1.5]), "not a list of steps with their"),
    "three of a pair": (with_state(val_losses=[[1, 2, 3]]), "not a list of steps with their"),
    "step of a text": (with_state(val_losses=[["1", 2.0]]), "loss must be an int, not str"),
    "validated at step 0": (with_state(val_losses=[[0, 2.0]]), "loss must be at least 1, not 0"),
    "validation loss of a text": (with_state(val_losses=[[1, "2"]]), "must be a number, not str"),
    "validation loss below 0": (with_state(val_losses=[[1, -2.0]]), "a finite number of at least"),
    "no generator": (with_state(rng=None), "not the state of a random.Random"),
    "short generator": (with_state(rng=[3, [1, 2], None]), "not the state of a random.Random"),
    "generator of words": (with_state(rng=[3, ["1"] * 625, None]), "not the state of"),
    "generator with a word": (with_state(rng=[3, RNG[1], "x"]), "not the state of"),
    "no step": (with_metadata(state='{"tokens": 1}'), "step must be an int, not NoneType"),
    "1: newer entries": (with_metadata(microgpt="1"), "the metadata has no seed"),
    "1: no training": (format_1_with(with_metadata(training=None)), "metadata has no training"),
    "1: no alphabet": (format_1_with(with_metadata(alphabet=None)), "metadata has no alphabet"),
    "1: seed": (format_1_with(with_metadata(seed="x")), "the seed is 'x'"),
    "1: split": (format_1_with(with_training(split="words")), "split is 'words'"),
    "1: no steps": (format_1_with(with_training(without="steps")), "steps"),
    "1: no step": (format_1_with(with_training(without="step")), "step must be an int, not None"),
    "1: no generator": (format_1_with(with_training(without="rng")), "state of a random.Random"),
    "1: negative moment": (format_1_with(with_number("adam.v.wte", -1.0)), "adam.v.wte is below"),
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
    assert text.isprintable() and len(text) < 300 + len(str(path))


@pytest.mark.parametrize("kind", ["plain", "batches", "validation", "paragraphs"])
def test_a_file_of_format_1_goes_on(kind, path):
    docs, options = RUNS[kind]
    whole = mg.train(docs, steps=6, seed=-7, lr=0.02, **options)
    run = steps(mg.prepare(docs, steps=6, seed=-7, lr=0.02, **options), 3)
    run.dataset = "names.txt"
    mg.save(run, path)
    path.write_bytes(format_1(*parts(path.read_bytes())))
    old = mg.load(path)
    assert (old.config, old.model.config) == (run.config, run.model.config)
    assert (old.tokenizer, old.dataset, old.sha256) == (run.tokenizer, "names.txt", run.sha256)
    assert (numbers(old), old.seconds) == (numbers(run), run.seconds)
    old = mg.finish(mg.load(path, docs))
    assert numbers(old) == numbers(whole)
    assert (old.documents, old.validation) == (whole.documents, whole.validation)
    mg.save(old, path)
    assert parts(path.read_bytes())[0]["__metadata__"]["microgpt"] == "3"
    assert numbers(mg.load(path)) == numbers(whole)


@pytest.mark.parametrize("kind", RUNS)
def test_a_file_of_format_2_goes_on_to_the_same_bits(kind, path):
    docs, options = RUNS[kind]
    mg.save(steps(mg.prepare(docs, steps=6, **options), 3), path)
    path.write_bytes(format_2(*parts(path.read_bytes())))
    run = mg.load(path, docs)
    assert run.model.config.dtype == "float64"
    assert numbers(mg.finish(run)) == numbers(mg.train(docs, steps=6, **options))


def test_a_stream_of_format_1_samples_but_does_not_go_on(path):
    docs, options = RUNS["stream"]
    run = steps(mg.prepare(docs, steps=6, **options), 3)
    mg.save(run, path)
    path.write_bytes(format_1(*parts(path.read_bytes())))
    old = mg.load(path, docs)
    assert (old.config.steps, old.adam.step, old.losses) == (3, 3, run.losses)
    assert old.encode("to be") == run.encode("to be")
    assert mg.generate(old, 4) == mg.generate(run, 4)
    mg.save(old, path)  # nor does it from a file of today
    with pytest.raises(ValueError, match="has taken all its 3 steps"):
        mg.train_step(mg.load(path, docs))


def test_an_interrupted_step_after_a_loop_of_ones_own_leaves_no_loss(path, monkeypatch):
    run = mg.prepare(DOCS, steps=6)
    for step in range(2):
        run.model.loss(run.batch(step)).backward()
        run.adam.update(0.01)
    with monkeypatch.context() as patch:
        patch.setattr(type(run.adam), "minimize", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mg.train_step(run)
    assert run.losses == []
    assert len(mg.finish(run).losses) == 4


def test_a_model_that_is_no_class_and_documents_that_are_none_are_refused(path):
    run = mg.prepare(["1", "2"], steps=2)
    mg.save(run, path)
    for model in ("GPT", mg.Tokenizer, None):
        with pytest.raises(TypeError, match="model must be a class, GPT or a subclass of it, not"):
            mg.load(path, model=model)
    for docs, error in ((5, TypeError), ([1, 2], TypeError), ("12", TypeError), ([], ValueError)):
        with pytest.raises(error):
            mg.load(path, docs)


def test_what_is_saved_must_be_a_run(path):
    for run, kind in ((3, "int"), (mg.prepare(["12"]).model, "GPT")):
        with pytest.raises(TypeError, match=f"^save takes a run, of prepare, .*, not {kind}$"):
            mg.save(run, path)
    assert not path.exists()


def test_a_class_that_has_changed_is_told_which_tensors_the_file_lacks(path):
    def version(extra):
        @classmethod
        def init_parameters(cls, config, rng):
            added = {name: mg.Matrix(1, 2) for name in extra}
            return {**mg.GPT.init_parameters.__func__(cls, config, rng), **added}

        return type("Mine", (mg.GPT,), {"init_parameters": init_parameters})

    mg.save(mg.prepare(["12"], model=version(["gain"])), path)
    for now, message in {("gain", "bias"): r"it lacks \['bias'\]", ("bias",):
                         r"it lacks \['bias'\] and has unknown \['gain'\]",
                         (): r"it has unknown \['gain'\]"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{message}$"):
            mg.load(path, model=version(now))


def test_a_tied_parameter_is_named_in_the_file(path):
    class Tied(mg.GPT):
        @classmethod
        def init_parameters(cls, config, rng):
            state_dict = super().init_parameters(config, rng)
            return {**state_dict, "lm_head": state_dict["wte"]}

    mg.save(mg.prepare(["12"], model=Tied), path)
    found = checkpoint.contents(path)
    assert (found.model, found.tied) == ("Tied", {"lm_head": "wte"})
    assert found.shapes["wte"] == (3, 16) and "lm_head" not in found.shapes
    assert parts(path.read_bytes())[0]["__metadata__"]["tied"] == '{"lm_head": "wte"}'
    mg.save(mg.prepare(["12"]), path)
    assert "tied" not in parts(path.read_bytes())[0]["__metadata__"]


def test_a_run_says_where_its_documents_came_from(path, tmp_path, monkeypatch):
    """If load_documents got them, and would get the same again: not a part, nor a changed copy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("emma\n\nava\n")
    (tmp_path / "makemore").write_text("mia\n")
    docs = mg.load_documents("names.txt")
    assert mg.prepare(docs).dataset == "names.txt"
    assert mg.prepare(mg.load_documents()).dataset == "names_us1990"
    assert mg.prepare(mg.load_documents(tmp_path / "names.txt")).dataset == str(
        tmp_path / "names.txt"
    )
    text = mg.load_documents("names.txt", "stream")
    assert mg.prepare(text, unit="stream").dataset == "names.txt"
    file = mg.prepare(mg.load_documents(Path("makemore"))).dataset
    assert mg.load_documents(file) == ["mia"]
    for unknown in (docs[:1], sorted(docs), list(docs), text, iter(docs)):
        assert mg.prepare(unknown).dataset == ""
    run = mg.prepare(copy.deepcopy(docs))
    assert run.dataset == "names.txt"
    docs.append("mia")
    assert mg.prepare(docs).dataset == ""
    mg.save(run, path)
    os.rename("names.txt", "moved.txt")
    assert mg.load(path).dataset == "names.txt"
    assert mg.load(path, mg.load_documents("moved.txt")).dataset == "moved.txt"
    assert mg.load(path, ["emma", "ava"]).dataset == "names.txt"


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
    load = mg.load  # its modules are imported here
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


class Index:
    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


def own_loop(run, n):
    """Train as somebody who has only read about Adam and the loss."""
    for _ in range(n):
        docs = run.batch(run.adam.step)
        run.adam.minimize(run.model.loss(docs), 0.01)
        run.tokens += 10**7
    return run


@pytest.mark.parametrize("n", [3, 9])
def test_a_run_of_a_loop_of_ones_own_is_saved_and_goes_on(n, path):
    """Of more steps than were planned, too."""
    run = own_loop(mg.prepare(DOCS, steps=5), n)
    mg.save(run, path)
    again = mg.load(path, DOCS)
    assert numbers(again) == numbers(run)
    assert numbers(own_loop(again, 4)) == numbers(own_loop(run, 4))
    mg.save(again, path)
    assert numbers(mg.load(path)) == numbers(run)
    with pytest.raises(ValueError, match="has taken all its 5 steps"):
        mg.train_step(again)


@pytest.mark.parametrize(("part", "name", "value", "kept"), [
    ("run", "dataset", Path("a") / "b", os.path.join("a", "b")), ("run", "dataset", b"a", "a"),
    ("run", "tokens", Index(7), 7), ("run", "seconds", Fraction(1, 2), 0.5),
    ("adam", "beta1", Fraction(1, 2), 0.5), ("adam", "eps", 1, 1.0), ("adam", "step", Index(2), 2),
])  # fmt: skip
def test_what_is_set_in_a_run_is_saved_as_what_it_means(part, name, value, kept, path):
    run = steps(mg.prepare(DOCS, steps=5), 2)
    setattr(run if part == "run" else run.adam, name, value)
    mg.save(run, path)
    again = mg.load(path, DOCS)
    found = getattr(again if part == "run" else again.adam, name)
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(("part", "name", "value"), [
    ("run", "dataset", None), ("run", "dataset", 3), ("run", "sha256", None), ("run", "tokens", -1),
    ("run", "tokens", 1.5), ("run", "tokens", True), ("run", "seconds", math.nan),
    ("run", "seconds", "1"), ("adam", "step", -1), ("adam", "step", 1.0), ("adam", "eps", math.inf),
    ("adam", "beta1", 1.0), ("adam", "beta2", "a"), ("run", "losses", ["a", "b"]),
])  # fmt: skip
def test_what_no_file_could_hold_is_refused_and_leaves_the_file_as_it_was(part, name, value, path):
    run = steps(mg.prepare(DOCS, steps=5), 2)
    mg.save(run, path)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        setattr(run if part == "run" else run.adam, name, value)
        mg.save(run, path)
    assert path.read_bytes() == before


def blank(**sizes):
    """Return a checkpoint of the letters a and b whose parameters are 0, whatever their number."""
    config, state = mg.Config(3, **sizes), {"step": 0, "adam": [0.9, 0.99, 1e-8], "rng": RNG}
    metadata = {
        "microgpt": "2", "model": "GPT", "config": json.dumps(vars(config)), "alphabet": "ab",
        "training": json.dumps(vars(mg.TrainConfig(batch_size=10**6))), "dataset": "",
        "state": json.dumps({**state, "tokens": 0, "seconds": 0}), "dataset_sha256": AB,
    }  # fmt: skip
    header, end = {"__metadata__": metadata}, 0
    for prefix in ("", "adam.m.", "adam.v."):
        for name, (rows, cols) in config.shapes().items():
            places = [end, end := end + 8 * rows * cols]
            entry = {"dtype": "F64", "shape": [rows, cols], "data_offsets": places}
            header[prefix + name] = entry
    header["losses"] = {"dtype": "F64", "shape": [0], "data_offsets": [end, end]}
    return joined(header, bytes(end))


AB = mg.checksum(["ab"])
SMALL = {"n_embd": 1, "n_head": 1}


@pytest.mark.parametrize("sizes", [
    {**SMALL, "n_layer": 300, "block_size": 10**5}, {**SMALL, "n_layer": 1000, "block_size": 10**5},
])  # fmt: skip
def test_no_cache_is_many_times_larger_than_the_file(sizes, path):
    """Layers times positions: the file has only their sum."""
    path.write_bytes(blank(**sizes))
    assert path.stat().st_size < 10**7
    run = mg.load(path)
    if 2 * sizes["n_layer"] * 10**5 >= 2**26:
        with pytest.raises(ValueError, match="a cache for block_size 100000 needs 2e\\+08 numbers"):
            mg.generate(run, 1, length=1)
    elif mg.BACKEND == "cython":  # as Values, what is allowed takes 8 GB and some minutes
        mg.generate(run, 1, length=1)


def test_a_file_may_not_ask_for_a_step_that_fills_the_memory(path):
    path.write_bytes(blank(block_size=64))
    assert mg.load(path).config.batch_size == 10**6  # it can be sampled and scored
    with pytest.raises(ValueError, match=f"{path}: a step of batch_size 1000000 needs"):
        mg.load(path, ["ab"])


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
    numbers = {"F64": struct.pack("<d", 1.5), "F32": struct.pack("<f", 1.5)}
    for dtype, one in numbers.items():
        assert our_safetensors._little_endian(dtype, one) == one
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
    for dtype, one in numbers.items():
        swapped = our_safetensors._little_endian(dtype, one)
        assert swapped == one[::-1] and our_safetensors._little_endian(dtype, swapped) == one


def test_a_run_that_is_saved_while_another_thread_trains_it_is_of_one_step(path, monkeypatch):
    matrices = checkpoint._matrices

    def slowly(*arguments):
        for named in matrices(*arguments):
            time.sleep(0.001)  # the other thread would take a step
            yield named

    run, states, seen = mg.prepare(DOCS, steps=30, **SIZES), [], set()
    states.append(repr(numbers(run)))
    states += [repr(numbers(run)) for _ in mg.steps(run)]
    run = mg.prepare(DOCS, steps=30, **SIZES)
    callback = {"callback": lambda *_: time.sleep(0.01)}  # so that it does not end at once
    thread = threading.Thread(target=mg.finish, args=(run,), kwargs=callback)
    monkeypatch.setattr(checkpoint, "_matrices", slowly)
    thread.start()
    while thread.is_alive():
        mg.save(run, path)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_matrices", matrices)
            saved = mg.load(path)
        assert repr(numbers(saved)) == states[saved.adam.step]
        seen.add(saved.adam.step)
    thread.join()
    assert len(seen) > 1


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


def test_a_run_goes_through_bytes_as_through_a_file(tmp_path):
    run = mg.prepare(DOCS, steps=4, n_embd=4, n_head=2)
    mg.train_step(run)
    mg.save(run, tmp_path / "m")
    content = checkpoint.to_bytes(run, note="more")
    (tmp_path / "noted").write_bytes(content)
    assert checkpoint.to_bytes(run) == (tmp_path / "m").read_bytes()
    assert numbers(mg.load(tmp_path / "noted")) == numbers(run)
    again = checkpoint.from_bytes(content, DOCS)
    assert mg.finish(again).losses == mg.finish(run).losses
    with pytest.raises(ValueError, match="cut off"):
        checkpoint.from_bytes(content[:7], DOCS)
    with pytest.raises(ValueError, match="checksum"):
        checkpoint.from_bytes(content, DOCS[1:])
