"""The record of a training: it changes nothing, it is bounded, and it comes back from the file."""

import copy
import json
import math
import pickle
import struct
from array import array
from functools import partial

import pytest
from checkpoint_files import joined, numbers, parts

import microgpt as mg
from microgpt import record as record_module
from microgpt.cli import run_command
from microgpt.record import Record, flat, is_recorded

DOCS = ["ann", "ian", "mia"]
SIZES = {"n_layer": 2, "n_embd": 4, "n_head": 2, "block_size": 5}
RUNS = {
    "plain": (DOCS, {}),
    "batches": (DOCS, {"batch_size": 3, "val_fraction": 0.3}),
    "stream": (["to be or"], {"unit": "stream", "batch_size": 2}),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "names.safetensors"


def steps(run, n):
    for _ in range(n):
        mg.train_step(run)
    return run


@pytest.mark.parametrize("kind", RUNS)
def test_a_recorded_training_has_the_numbers_of_another_to_the_last_bit(kind):
    docs, settings = RUNS[kind]
    plain, recorded = (
        mg.train(docs, steps=7, record=record, **SIZES, **settings) for record in (False, True)
    )
    assert plain.record is None and recorded.record.steps == [0, 1, 2, 5]
    assert numbers(recorded) == numbers(plain)
    assert mg.generate(recorded, 2) == mg.generate(plain, 2)


def test_a_snapshot_holds_the_parameters_rounded_to_float32():
    run = mg.prepare(DOCS, steps=3, record=True, **SIZES)
    matrices = run.model.named_parameters().values()
    before = array("f", [x for m in matrices for row in m.tolist() for x in row])
    steps(run, 3)
    assert run.record.snapshots[0] == before
    assert len(before) == run.model.num_params and before.itemsize == 4


def test_the_recorded_step_of_adam_is_the_one_after_the_last_snapshot():
    run = mg.prepare(DOCS, steps=9, record=True, batch_size=2, **SIZES)
    steps(run, 5)
    m, v = flat(run.adam.m), flat(run.adam.v)
    steps(run, 4)
    assert run.record.steps == [0, 1, 2, 5]
    assert (run.record.m, run.record.v) == (m, v)
    assert run.record.documents == run.batch(5)


def test_a_step_that_failed_is_recorded_once(monkeypatch):
    run = mg.prepare(DOCS, steps=9, lr=0.1, record=True, **SIZES)
    steps(run, 2)
    monkeypatch.setattr(mg.Adam, "minimize", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            mg.train_step(run)
    monkeypatch.undo()
    steps(run, 4)
    assert run.record.steps == [0, 1, 2, 5] and len(run.record.snapshots) == 4


def test_the_second_snapshot_makes_room_for_another(monkeypatch):
    run = mg.prepare(DOCS, steps=60, record=True, n_embd=4, n_head=1, block_size=4)
    monkeypatch.setattr(record_module, "MOST_NUMBERS", 4 * run.model.num_params)
    seen = []
    for _ in mg.steps(run):
        seen.append(list(run.record.steps))
        assert len(run.record.snapshots) == len(run.record.steps) <= 4
    assert seen[5] == [0, 1, 2, 5] and seen[-1] == [0, 10, 20, 50]
    monkeypatch.setattr(record_module, "MOST_NUMBERS", 0)
    run = mg.train(DOCS, steps=6, record=True, n_embd=4, n_head=1, block_size=4)
    assert run.record.steps == [0, 5]  # two of a model of any size


def test_what_float32_cannot_hold_is_not_recorded():
    run = mg.prepare(DOCS, steps=3, record=True, **SIZES)
    run.model.state_dict["wpe"][0][0].data = 1e39
    mg.train_step(run)
    assert run.record.steps == []
    run.model.state_dict["wpe"][0][0].data = 0.1
    run.adam.m[0][0][0].data = 1e39
    mg.train_step(run)
    assert run.record.steps == [1] and run.record.documents == [] == list(run.record.m)


def test_a_step_on_very_many_tokens_is_not_recorded(monkeypatch):
    monkeypatch.setattr(record_module, "MOST_TOKENS", 9)
    run = mg.train(DOCS, steps=1, record=True, batch_size=2, **SIZES)
    assert run.record.steps == [0] and run.record.documents == []


def test_a_record_is_saved_and_goes_on(path):
    whole = mg.train(DOCS, steps=7, record=True, **SIZES)
    mg.save(steps(mg.prepare(DOCS, steps=7, record=True, **SIZES), 4), path)
    saved = mg.load(path, DOCS)
    assert saved.record.steps == [0, 1, 2] and saved.record.snapshots == whole.record.snapshots[:3]
    again = mg.finish(saved)
    assert again.record == whole.record
    mg.save(again, path)
    assert mg.load(path).record == whole.record


@pytest.mark.parametrize("taken", [0, 1])
def test_a_short_record_is_saved(taken, path):
    mg.save(steps(mg.prepare(DOCS, steps=3, record=True, **SIZES), taken), path)
    record = mg.load(path).record
    assert record.steps == [0][:taken] and len(record.documents) == taken
    mg.save(mg.prepare(DOCS, **SIZES), path)
    assert mg.load(path).record is None


def test_a_copy_of_a_run_has_its_record():
    run = mg.train(DOCS, steps=3, record=True, **SIZES)
    for other in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):
        assert other.record == run.record and other.record is not run.record


def test_the_record_takes_as_much_room_in_the_file_as_is_said(path, tmp_path):
    plain = tmp_path / "plain"
    mg.save(mg.train(DOCS, steps=7, **SIZES), plain)
    run = mg.train(DOCS, steps=7, record=True, **SIZES)
    mg.save(run, path)
    more = path.stat().st_size - plain.stat().st_size
    numbers_of_record = (4 + 2) * run.model.num_params
    assert 4 * numbers_of_record < more < 4 * numbers_of_record + 700


def test_a_file_of_format_2_loads(path):
    run = steps(mg.prepare(DOCS, steps=5, **SIZES), 3)
    mg.save(run, path)
    header, data = parts(path.read_bytes())
    header["__metadata__"]["microgpt"] = "2"
    path.write_bytes(joined(header, data))
    assert numbers(mg.finish(mg.load(path, DOCS))) == numbers(mg.finish(run))


def test_the_library_reads_a_record(path):
    pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors")
    run = mg.train(DOCS, steps=3, record=True, **SIZES)
    mg.save(run, path)
    with safetensors.safe_open(path, "numpy") as file:
        found = file.get_tensor("record.snapshots")
        assert (found.dtype, found.shape) == ("float32", (3, run.model.num_params))
        assert found[1].tolist() == list(run.record.snapshots[1])
    library = pytest.importorskip("safetensors.numpy")
    header, _ = parts(path.read_bytes())
    library.save_file(library.load_file(path), path, metadata=header["__metadata__"])
    assert mg.load(path).record == run.record


def test_no_parameter_has_the_name_of_a_record():
    class Own(mg.GPT):
        @classmethod
        def init_parameters(cls, config, rng):
            return super().init_parameters(config, rng) | {"record.m": mg.Matrix(1, 1)}

    with pytest.raises(ValueError, match=r"no parameter can be called record\.m"):
        mg.prepare(DOCS, model=Own)


# Files that are damaged, or made to do damage


def with_record(without=None, /, **changes):
    def change(header, data):
        metadata = header["__metadata__"]
        record = json.loads(metadata["record"]) | changes
        record.pop(without, None)
        metadata["record"] = json.dumps(record)
        return joined(header, data)

    return change


def with_text(text, header, data):
    header["__metadata__"]["record"] = text
    return joined(header, data)


def with_number(name, number, header, data):
    at = header[name]["data_offsets"][0]
    return joined(header, data[:at] + struct.pack("<f", number) + data[at + 4 :])


def with_entry(name, changes, header, data):
    header[name] |= changes
    return joined(header, data)


def without(names, header, data):
    """Without tensors, which are the last ones of the file."""
    end = min(header[name]["data_offsets"][0] for name in names)
    kept = {key: entry for key, entry in header.items() if key not in names}
    return joined(kept, data[:end])


def without_metadata(header, data):
    del header["__metadata__"]["record"]
    return joined(header, data)


LAST = ["record.m", "record.v"]
BAD = {
    "no json": (partial(with_text, "{"), "the record is not valid JSON"),
    "a list": (partial(with_text, "[]"), "the record is not a JSON object"),
    "no steps": (with_record("steps"), "the record is not steps and documents"),
    "an entry too many": (with_record(more=1), "the record is not steps and documents"),
    "steps of words": (with_record(steps=["0", "1", "2"]), "the steps of the record are ['0"),
    "steps that fall": (with_record(steps=[0, 2, 1]), "the steps of the record are [0, 2, 1] of 3"),
    "a negative step": (with_record(steps=[-1, 1, 2]), "the steps of the record are [-1"),
    "a step to come": (with_record(steps=[0, 1, 5]), "the steps of the record are [0, 1, 5]"),
    "a step of true": (with_record(steps=[0, True, 2]), "the steps of the record are"),
    "fewer steps": (with_record(steps=[0, 1]), "not F32 of (2, 444)"),
    "steps that are a number": (with_record(steps=3), "the steps of the record are 3"),
    "documents of words": (with_record(documents=["emma"]), "are not lists of ids"),
    "documents in an object": (with_record(documents={"a": [1]}), "are not lists of ids"),
    "ids of true": (with_record(documents=[[True, True]]), "are not lists of ids"),
    "an unknown id": (with_record(documents=[[0, 99]]), "id 99 is not in"),
    "a huge id": (with_record(documents=[[0, 10**400]]), "not in"),
    "BOS inside": (with_record(documents=[[0, 4, 1]]), "BOS (id 4) occurs inside"),
    "a long document": (with_record(documents=[[0] * 8]), "a recorded document has 8 tokens"),
    "a short document": (with_record(documents=[[0]]), "a recorded document has 1 tokens"),
    "very many documents": (with_record(documents=[[0, 1]] * 40000), "are not lists of ids"),
    "no moments": (partial(without, LAST), "missing or unknown: ['record.m', 'record.v']"),
    "one moment": (partial(without, LAST[1:]), "missing or unknown: ['record.v']"),
    "no snapshots": (
        partial(without, ["record.snapshots", *LAST]), "unknown: ['record.m', 'record.sn"),
    "no metadata": (without_metadata, "missing or unknown: ['record.m', 'record.sn"),
    "snapshots in one row": (
        partial(with_entry, "record.snapshots", {"shape": [3 * 444]}), "not F32 of (3, 444)"),
    "moments in a column": (
        partial(with_entry, "record.m", {"shape": [444, 1]}), "record.m is F32 of shape (444, 1)"),
    "snapshots of float64": (
        partial(with_entry, "record.snapshots", {"dtype": "F64", "shape": [3, 222]}),
        "record.snapshots is F64 of shape (3, 222)"),
    "parameters of float32": (
        partial(with_entry, "wpe", {"dtype": "F32", "shape": [10, 4]}),
        "wpe is F32, its config asks for float64"),
    "losses of float32": (
        partial(with_entry, "losses", {"dtype": "F32", "shape": [6]}), "losses has shape (6,)"),
    "nan": (partial(with_number, "record.snapshots", math.nan), "not finite"),
    "infinite moment": (partial(with_number, "record.m", math.inf), "record.m has a number"),
    "negative moment": (partial(with_number, "record.v", -1.0), "record.v is below 0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "names.safetensors"
    mg.save(steps(mg.prepare(DOCS, steps=5, record=True, **SIZES), 3), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_one_line_that_names_the_file(name, good, path):
    change, message = BAD[name]
    path.write_bytes(change(*parts(good)))
    with pytest.raises(ValueError) as caught:
        mg.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text
    assert "\n" not in text and len(text) < len(str(path)) + 300


# The command


def test_the_command_records(path, capsys):
    command = ["train", "--steps", "2", "--samples", "0", "--n-embd", "4", "--n-head", "1"]
    assert run_command([*command, "--out", str(path), "--record"]) == 0
    assert mg.load(path).record.steps == [0, 1]
    assert run_command([*command, "--record"]) == 2
    assert "--record needs --out" in capsys.readouterr().err


def test_a_resumed_training_records_if_it_did_or_is_asked_to(path, tmp_path):
    data = tmp_path / "names.txt"
    data.write_text("\n".join(DOCS))
    for asked, expected in ((False, None), (True, [5])):
        run = steps(mg.prepare(mg.load_documents(data), steps=7, **SIZES), 4)
        run.dataset = str(data)
        mg.save(run, path)
        more = ["--record"] if asked else []
        assert run_command(["train", "--resume", str(path), "--samples", "0", *more]) == 0
        record = mg.load(path).record
        assert (record and record.steps) == expected
    run.record = Record()
    steps(run, 1)
    mg.save(run, path)
    assert run_command(["train", "--resume", str(path), "--samples", "0"]) == 0
    assert mg.load(path).record.steps == [5]


def test_snapshots_are_taken_at_1_2_5_and_their_tens():
    assert [step for step in range(300) if is_recorded(step)] == [0, 1, 2, 5, 10, 20, 50, 100, 200]
    assert is_recorded(5 * 10**11) and not is_recorded(5 * 10**11 + 5)
