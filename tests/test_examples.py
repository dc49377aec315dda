"""The examples: the original program gives the same bits with our Value as with a plain one."""

import json
import math
import random
import runpy
import sys
from pathlib import Path

import plain_value
import pytest

import microgpt

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "script.py"
RECORD = Path(__file__).with_name("script_run.json")


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Return a function that runs the script with a Value class; it gives losses and output."""

    def run(value_class, *arguments):
        monkeypatch.setattr(microgpt, "Value", value_class, raising=False)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        losses = runpy.run_path(str(SCRIPT), run_name="__main__")["losses"]
        return losses, capsys.readouterr().out

    return run


@pytest.fixture
def few_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("ab\nbca\ncab\nzoe\n")
    return path


def test_losses_and_samples_are_those_of_a_plain_value_to_the_last_bit(core, run_script, few_names):
    losses, out = run_script(core.Value, few_names, 5)
    plain_losses, plain_out = run_script(plain_value.Value, few_names, 5)
    assert [loss.hex() for loss in losses] == [loss.hex() for loss in plain_losses]
    assert out == plain_out
    assert out.count("\nsample ") == 20


def recorded_losses(numbers):
    return pytest.approx(numbers, rel=0, abs=1e-12)


def test_the_losses_and_names_on_the_bundled_names_are_the_record(compiled, run_script):
    record = json.loads(RECORD.read_text())
    losses, out = run_script(compiled.Value)
    assert losses == recorded_losses(record["losses"])
    assert names_in(out) == record["samples"]
    assert f"num docs: {record['num_docs']}\n" in out
    assert f"vocab size: {record['vocab_size']}\nnum params: {record['num_params']}\n" in out


def test_the_losses_and_names_on_the_original_names_are_those_of_the_original_program(
    compiled, run_script, reference
):
    golden = json.loads((reference / "golden" / "default.json").read_text())
    losses, out = run_script(compiled.Value, reference / "data" / "names.txt")
    assert losses == recorded_losses(golden["losses"])
    assert names_in(out) == golden["samples"]


def names_in(out):
    return [line.split(": ")[1] for line in out.splitlines() if line.startswith("sample")]


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about NumPy and about itself
@pytest.mark.parametrize("sizes", [{}, {"n_layer": 2, "n_embd": 12, "n_head": 3, "block_size": 5}])
def test_a_model_gives_the_same_logits_and_gradients_in_pytorch(sizes, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(sys, "path", list(sys.path))
    example = runpy.run_path(str(EXAMPLES / "to_torch.py"), run_name="to_torch")
    run = microgpt.train(["emma", "olivia", "ava"], steps=5, **sizes)
    microgpt.save(run, tmp_path / "names.safetensors")
    for text in ("emma", "olivia", "a"):
        checkpoint = microgpt.load(tmp_path / "names.safetensors")
        logits, gradients = example["compare"](checkpoint, text)
        assert logits < 1e-12 and gradients < 1e-12


def test_the_megabyte_of_text_is_one(monkeypatch, capsys):
    runpy.run_path(str(EXAMPLES / "python_docs_to_text.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert text.isascii() and 200_000 < len(text) <= 1_000_001


def test_a_run_of_the_original_can_be_brought_in(tmp_path):
    """Its state_dict is lists of Values; we take plain lists of their numbers."""
    theirs = microgpt.prepare(["ab", "ba"], seed=1).model.state_dict
    lists = {name: [[value.data for value in row] for row in m] for name, m in theirs.items()}
    run = microgpt.prepare(["ab", "ba"], seed=2)
    run.model.load_state_dict(lists)
    microgpt.save(run, tmp_path / "original.safetensors")
    loaded = microgpt.load(tmp_path / "original.safetensors").model.state_dict
    assert {name: m.tolist() for name, m in loaded.items()} == lists


def test_the_moons_are_told_apart(core, monkeypatch, capsys):
    """Few points and neurons: the pure core is slow."""
    monkeypatch.setattr(microgpt, "Value", core.Value, raising=False)
    example = runpy.run_path(str(EXAMPLES / "two_moons.py"))
    rng = random.Random(3)
    points, labels = example["two_moons"](20, 0.05, rng)
    assert all(math.hypot(x, y) == pytest.approx(1, abs=0.2) or label == 1
               for (x, y), label in zip(points, labels, strict=True))  # fmt: skip
    model = example["MLP"]([2, 8, 8, 1], rng)
    assert len(model.parameters()) == 3 * 8 + 9 * 8 + 9
    example["train"](model, points, labels, 60)
    loss, accuracy = example["loss_and_accuracy"](model, points, labels)
    assert loss.data < 0.2 and accuracy == 1.0
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.filterwarnings("ignore")  # of Matplotlib's own dependencies
def test_the_moons_are_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "path", list(sys.path))
    example = runpy.run_path(str(EXAMPLES / "two_moons.py"))
    model = example["MLP"]([2, 1], random.Random(1))
    example["draw"](model, [(0, 1), (1, 0)], [1, -1], tmp_path / "moons.png")
    assert (tmp_path / "moons.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--help"], 0, "python examples/two_moons.py moons.png"),
    (["no/such/folder/moons.png"], 2, "the folder of no/such/folder/moons.png does not exist"),
    (["a.png", "b.png"], 2, "unrecognized arguments: b.png"),
])  # fmt: skip
def test_the_moons_say_how_they_are_called_before_they_train(
    arguments, code, words, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["two_moons.py", *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(EXAMPLES / "two_moons.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert exit.value.code == code and words in out + err and "num params" not in out
