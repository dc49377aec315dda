"""The command line: what it prints where, its exit codes, and what it says about bad input."""

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from statistics import mean

import pytest
from processes import microgpt, problems

import microgpt as mg
from microgpt.cli import run_command

NOT_SAVED = "microgpt: the model was not saved: --out FILE keeps it"
NAMES = ["emma", "olivia", "ava", "isabella", "sophia", "mia"]


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return path


def test_train_prints_what_the_original_prints(names, capsys):
    assert run_command(["train", "--data", str(names), "--steps", "5", "--samples", "3"]) == 0
    out, err = capsys.readouterr()
    run = mg.train(NAMES, steps=5)
    lines = out.splitlines()
    assert lines[0] == f"core: {mg.BACKEND} ({mg.BACKEND_REASON})"
    assert lines[1:6] == [
        f"data: {names}",
        "num docs: 6",
        "vocab size: 12",
        f"num params: {run.model.num_params}",
        f"step    5 /    5 | loss {mean(run.losses):.4f} (mean of 5), last {run.losses[-1]:.4f}",
    ]
    assert lines[6] == "--- samples ---"
    assert lines[7:] == [f"sample {i:2}: {name}" for i, name in enumerate(mg.generate(run, 3), 1)]
    assert advice(err) == [NOT_SAVED]


def test_samples_that_stand_in_the_training_data_are_marked(tmp_path, capsys):
    path = tmp_path / "one.txt"
    path.write_text("ab\n" * 3)
    assert run_command(["train", "--data", str(path), "--steps", "100", "--samples", "4"]) == 0
    samples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sample")]
    assert "sample  1: ab  (in the training data)" in samples
    for line in samples:
        assert line.endswith("(in the training data)") == (line.split()[2:3] == ["ab"])


def test_the_options_reach_the_run(names, capsys, tmp_path):
    log = tmp_path / "log.jsonl"
    options = {
        "--steps": 4, "--seed": 7, "--n-layer": 2, "--n-embd": 8, "--n-head": 2,
        "--block-size": 5, "--lr": 0.02, "--batch-size": 2,
    }  # fmt: skip
    arguments = [str(item) for pair in options.items() for item in pair]
    command = ["train", "--data", str(names), *arguments, "--log", str(log)]
    assert run_command([*command, "--temperature", "0", "--samples", "2"]) == 0
    run = mg.train(
        NAMES, steps=4, seed=7, lr=0.02, n_layer=2, n_embd=8, n_head=2, block_size=5, batch_size=2
    )
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["loss"] for line in lines] == run.losses
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["lr"] for line in lines] == [0.02, 0.015, 0.01, 0.005]
    out = capsys.readouterr().out
    assert f"num params: {run.model.num_params}\n" in out
    assert "longer than block size 5, and cut: 3\n" in out
    assert f"sample  2: {mg.generate(run, 1, temperature=0)[0]}" in out


def test_the_data_may_start_with_a_byte_order_mark_and_have_blank_lines(tmp_path, capsys):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbf emma \r\n\r\n  \r\nava\r\n")
    assert run_command(["train", "--data", str(path), "--steps", "1", "--samples", "0"]) == 0
    out = capsys.readouterr().out
    assert "num docs: 2\nvocab size: 5\n" in out
    assert "samples" not in out


def test_without_data_the_bundled_names_are_used(capsys):
    assert run_command(["train", "--steps", "1", "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "data: names_us1990 (bundled)\nnum docs: 5163\nvocab size: 27\nnum params: 4192\n" in out


BAD_USE = {
    "unknown option": (["--nonsense"], "unrecognized arguments: --nonsense"),
    "abbreviated option": (["--step", "3"], "unrecognized arguments: --step"),
    "val-seed alone": (["--val-seed", "3"], "--val-seed needs --val-fraction"),
    "val-seed of nothing": (
        ["--val-seed", "3", "--val-fraction", "0"], "--val-seed needs --val-fraction",
    ),
    "zero layers": (["--n-layer", "0"], "n_layer must be at least 1, not 0"),
    "negative width": (["--n-embd", "-4"], "n_embd must be at least 1, not -4"),
    "a size out of this world": (["--n-layer", "9" * 20], "n_layer must be at most 1000000"),
    "steps without end": (["--steps", "9" * 400], "steps must be at most 1000000000000"),
    "zero heads": (["--n-head", "0"], "n_head must be at least 1, not 0"),
    "zero block size": (["--block-size", "0"], "block_size must be at least 1, not 0"),
    "fraction of a layer": (["--n-layer", "1.5"], "--n-layer: invalid int value: '1.5'"),
    "indivisible width": (["--n-embd", "10"], "n_embd must be a multiple of n_head"),
    "empty batches": (["--batch-size", "0"], "batch_size must be at least 1, not 0"),
    "negative steps": (["--steps", "-1"], "steps must be at least 0, not -1"),
    "negative samples": (["--samples", "-1"], "not -1"),
    "negative temperature": (["--temperature", "-0.5"], "temperature must be at least 0, not -0.5"),
    "temperature that is no number": (["--temperature", "nan"], "temperature must be at least 0"),
    "lr that is a word": (["--lr", "fast"], "--lr: invalid float value: 'fast'"),
    "lr that is nan": (["--lr", "nan"], "lr must be a finite number of at least 0, not"),
    "lr that is infinite": (["--lr", "inf"], "lr must be a finite number of at least 0, not"),
    "negative lr": (["--lr", "-0.1"], "lr must be a finite number of at least 0, not"),
    "seed that is a word": (["--seed", "x"], "--seed: invalid int value: 'x'"),
    "seed of many digits": (["--seed", "9" * 400], "seed must be at most 18446744073709551616"),
    "seed of too many digits": (["--seed", "9" * 9000], "--seed: invalid int value: '999"),
    "option of another program": (["--epochs", "3"], "--epochs 3; did you mean --steps?"),
    "option with an underscore": (["--n_embd=4"], "--n_embd=4; did you mean --n-embd?"),
    "misspelt option": (["--bach-size", "2"], "did you mean --batch-size? (see microgpt train --h"),
    "data without its option": (["names.txt"], "names.txt; a file of documents is given as --data"),
    "option of two lines": (["--a\nb"], "unrecognized arguments"),
    "option without an end": (["--" + "x" * 9000], "unrecognized arguments: --xxx"),
    "missing argument": (["--steps"], "--steps: expected one argument"),
    "missing file": (["--data", "no/such/file.txt"], "no/such/file.txt: No such file"),
    "log in a missing folder": (["--log", "no/such/log.jsonl"], "no/such/log.jsonl"),
}


@pytest.mark.parametrize("name", BAD_USE)
def test_wrong_use_is_one_line_and_exit_code_2(name, names, capsys):
    arguments, message = BAD_USE[name]
    if "--data" not in arguments:
        arguments = ["--data", str(names), *arguments]
    assert run_command(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("microgpt") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err and len(err) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n\t\r\n", "only blank lines"),
        (b"emma\nzo\xeb\n", "not UTF-8"),
        ("emma".encode("utf-16"), "it looks like UTF-16: save it as UTF-8"),
        (None, "is a folder"),
    ],
)
def test_data_that_cannot_be_used_is_one_line_and_exit_code_2(content, message, tmp_path, capsys):
    path = tmp_path / "data"
    path.mkdir() if content is None else path.write_bytes(content)
    assert run_command(["train", "--data", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert str(path) in err and message in err


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["--nonsense"]])
def test_no_command_and_unknown_commands_are_one_line_and_exit_code_2(arguments, capsys):
    assert run_command(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_shows_the_options_their_defaults_and_an_example(arguments, capsys):
    assert run_command(arguments) == 0
    out, err = capsys.readouterr()
    assert "example: microgpt train --data names.txt" in out and err == ""
    if "train" in arguments:
        for option in ("data", "steps", "seed", "n-layer", "n-embd", "n-head", "block-size", "lr",
                       "batch-size", "temperature", "samples", "log"):
            assert f"--{option}" in out
        assert "(default: 1000)" in out


def test_version(capsys):
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"microgpt {mg.__version__}\n"


def test_the_log_never_overwrites_the_data(names, capsys):
    before = names.read_bytes()
    assert run_command(["train", "--data", str(names), "--log", str(names)]) == 2
    assert "would overwrite --data" in capsys.readouterr().err
    assert names.read_bytes() == before


def test_bad_data_leaves_an_older_log_alone(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    log.write_text("old\n")
    assert run_command(["train", "--data", str(tmp_path / "missing"), "--log", str(log)]) == 2
    assert log.read_text() == "old\n"


def test_a_loss_that_is_not_finite_is_exit_code_1_with_its_step(names, capsys):
    arguments = ["train", "--data", str(names), "--lr", "1e300", "--steps", "9"]
    assert run_command(arguments) == 1
    out, err = capsys.readouterr()
    assert "the loss is nan at step" in err and err.count("\n") == 1
    assert "sample" not in out


def test_a_model_that_ends_with_infinite_parameters_is_exit_code_1(names, capsys):
    assert run_command(["train", "--data", str(names), "--lr", "1e308", "--steps", "1"]) == 1
    assert "not finite" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(names, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("microgpt.training.train_step", interrupted)
    assert run_command(["train", "--data", str(names)]) == 130
    assert capsys.readouterr().err == (
        "microgpt: interrupted at step 0, not saved: --out FILE keeps a run\n"
    )


def test_a_size_that_no_memory_holds_is_exit_code_1(names, capsys):
    if mg.BACKEND == "python":
        pytest.skip("the pure core would fill the memory before it fails")
    assert run_command(["train", "--data", str(names), "--n-embd", "1000000"]) == 1
    err = capsys.readouterr().err
    assert "memory" in err and err.count("\n") == 1


def test_python_m_microgpt_is_the_same_command(names):
    result = microgpt("train", "--data", names, "--steps", 3, "--samples", 2)
    assert result.returncode == 0
    assert advice(result.stderr) == [NOT_SAVED] and "\r" not in result.stderr  # no bar in a pipe
    assert result.stdout.startswith(f"core: {mg.BACKEND} (")
    assert len(result.stdout.splitlines()) == 9


@pytest.mark.parametrize("backend", ["fortran", "Cython", "cython,python"])
def test_an_unknown_backend_is_one_line_and_exit_code_2(backend):
    result = microgpt("train", MICROGPT_BACKEND=backend)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"microgpt: MICROGPT_BACKEND must be auto, cython or python, not {backend!r}\n"
    )


def test_the_first_line_says_that_python_was_asked_for(names):
    result = microgpt("train", "--data", names, "--steps", 1, MICROGPT_BACKEND="python")
    assert result.stdout.startswith("core: python (MICROGPT_BACKEND=python)\n")


def test_a_closed_pipe_is_no_traceback(names):
    command = [sys.executable, "-m", "microgpt", "train", "--data", str(names), "--steps", "1"]
    command += ["--samples", "20000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 1


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("é\n" * 3, encoding="utf-8")
    arguments = ("train", "--data", path, "--steps", 30, "--samples", 2)
    result = microgpt(*arguments, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.returncode == 0
    assert "\\xe9" in result.stdout


def test_a_terminal_shows_one_line_of_progress_that_is_overwritten(names):
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    import fcntl
    import termios

    master, slave = pty.openpty()
    pty_size = struct.pack("4H", 24, 100, 0, 0)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, pty_size)
    command = [sys.executable, "-m", "microgpt", "train", "--data", str(names), "--steps", "30"]
    shown = b""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave) as process:
        os.close(slave)
        with suppress(OSError):  # how the end may show
            while part := os.read(master, 100_000):
                shown += part
        process.communicate(timeout=120)
    os.close(master)
    shown = shown.decode()
    assert process.returncode == 0
    assert "30/30" in shown and "(mean of 30), last" in shown and "steps/s" in shown
    assert "\r" in shown and shown.replace("\r\n", "\n").count("\n") == 2


# Advice: one line each, on stderr


def advice(err):
    """Return the lines of stderr that are not progress, which a slow machine shows."""
    return [line for line in err.splitlines() if line.startswith("microgpt: ")]


def advice_of(capsys, *arguments):
    assert run_command(["train", *arguments]) == 0
    return advice(capsys.readouterr().err)


def test_a_model_that_is_not_saved_is_said_to_be_gone(names, tmp_path, capsys):
    short = ["--data", str(names), "--steps", "2"]
    assert advice_of(capsys, *short) == [NOT_SAVED]
    assert advice_of(capsys, *short, "--out", str(tmp_path / "m")) == []


def test_documents_that_are_cut_are_said_with_what_to_do(names, tmp_path, capsys):
    out = ["--out", str(tmp_path / "m")]
    [line] = advice_of(capsys, "--data", str(names), "--steps", "2", "--block-size", "5", *out)
    assert "3 of 6 documents are longer than the block size and cut" in line
    assert "--block-size" in line and "--unit stream" in line


def test_a_training_that_went_wrong_is_said_to(names, tmp_path, capsys):
    common = ["--data", str(names), "--out", str(tmp_path / "m"), "--samples", "0"]
    [line] = advice_of(capsys, *common, "--steps", "20", "--lr", "1e6")
    assert "the loss is above that of a uniform guess" in line
    [line] = advice_of(capsys, *common, "--steps", "100", "--lr", "100")
    assert "the loss is above that of a uniform guess, 2.4849" in line and "--lr" in line
    common += ["--val-fraction", "0.4", "--lr", "0"]
    [line] = advice_of(capsys, *common, "--steps", "200", "--lr", "0.05")
    assert "the validation loss is above that of the bigram table" in line
    assert advice_of(capsys, *common, "--steps", "99", "--lr", "0") == []  # too short to tell


def test_without_a_compiler_one_line_says_what_it_costs(names, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("microgpt.training.BACKEND_REASON", "the compiled core was not built")
    out = ["--out", str(tmp_path / "m")]
    [line] = advice_of(capsys, "--data", str(names), "--steps", "2", *out)
    assert "thousands of times" in line and "C compiler" in line
    for _ in range(2):  # from Python to whoever looks, and not twice
        mg.train(NAMES, steps=1, progress=True)
        mg.train(NAMES, steps=1)
    assert capsys.readouterr().err.count(line) == 1


# Saved models


@pytest.fixture
def model(names, tmp_path):
    """A saved run on the names, half done."""
    run = mg.prepare(NAMES, steps=10, block_size=8)
    for _ in range(5):
        mg.train_step(run)
    run.dataset = str(names)
    path = tmp_path / "names.safetensors"
    mg.save(run, path)
    return path


def lines_of(capsys):
    out, err = capsys.readouterr()
    assert problems(err) == ""
    return out.splitlines()


def fails(capsys, code, *arguments):
    """Run a command that fails and return its one line."""
    assert run_command([str(argument) for argument in arguments]) == code
    err = problems(capsys.readouterr().err)
    assert err.startswith("microgpt") and err.count("\n") == 1
    return err


def test_a_model_that_is_kept_samples_what_the_training_printed(names, tmp_path, capsys):
    out = str(tmp_path / "m.safetensors")
    assert run_command(["train", "--data", str(names), "--steps", "20", "--out", out]) == 0
    printed = [line for line in lines_of(capsys) if line.startswith("sample ")]
    assert run_command(["sample", out]) == 0
    assert [line.split(": ")[1].split("  ")[0] for line in printed] == lines_of(capsys)


def test_a_resumed_training_is_the_uninterrupted_one(names, tmp_path, capsys):
    whole, part = str(tmp_path / "whole"), str(tmp_path / "part")
    common = ["--data", str(names), "--steps", "8", "--val-fraction", "0.3", "--eval-every", "3"]
    log, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert run_command(["train", *common, "--out", whole, "--log", str(log)]) == 0
    expected = lines_of(capsys)
    snapshots = ["--save-every", "4", "--snapshots"]
    assert run_command(["train", *common, *snapshots, "--out", part, "--log", str(other)]) == 0
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["a.jsonl", "b.jsonl", "names.txt", "part", "part-000004", "part-000008", "whole"]
    )
    capsys.readouterr()
    resume = ["train", "--resume", part + "-000004", "--log", str(other), "--out", part]
    assert run_command([*resume, "--steps", "8", "--eval-every", "3"]) == 0
    resumed = lines_of(capsys)
    assert f"resume: {part}-000004 (step 4 / 8)" in resumed
    assert resumed[-22:] == expected[-22:]
    one, same = ([json.loads(line) for line in file.read_text().splitlines()]
                 for file in (log, other))
    for line in (*one, *same):
        assert line.pop("seconds") > 0
    assert one == same
    assert [line["step"] for line in one if "val_loss" in line] == [3, 6, 8]
    assert all(math.isfinite(number) for line in one for number in line.values())
    assert mg.load(whole).model.state_dict["wte"].tolist() == (
        mg.load(part).model.state_dict["wte"].tolist()
    )


def test_a_run_is_resumed_into_its_own_file(model, capsys):
    assert run_command(["train", "--resume", str(model), "--samples", "0"]) == 0
    assert mg.load(model).adam.step == 10
    assert lines_of(capsys)[-1].startswith("step   10 /   10 | loss ")
    assert run_command(["train", "--resume", str(model), "--samples", "1"]) == 0  # and again
    assert lines_of(capsys)[-1].startswith("sample  1")


def test_the_log_is_cut_back_to_the_checkpoint(model, tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 8)]
    log.write_text("\n".join(lines) + '\n{"st')
    resume = ["train", "--resume", str(model), "--log", str(log), "--samples", "0"]
    assert run_command(resume) == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [*range(1, 11)]
    assert log.read_text().splitlines()[:5] == lines[:5]


@pytest.mark.parametrize("content", ["emma", "emma\nava\n", '{"loss": 1}\n'])
def test_what_is_no_log_is_not_cut(content, model, tmp_path, capsys):
    other = tmp_path / "other"
    other.write_text(content)
    message = fails(capsys, 2, "train", "--resume", model, "--log", other)
    assert "is not a log, so it is not overwritten" in message
    assert other.read_text() == content


CANNOT_CHANGE = {
    "--steps": "11", "--seed": "1", "--lr": "0.02", "--batch-size": "2", "--n-embd": "32",
    "--n-layer": "2", "--n-head": "2", "--block-size": "9", "--val-fraction": "0.5",
    "--unit": "stream", "--val-seed": "1",
}  # fmt: skip


@pytest.mark.parametrize("flag", CANNOT_CHANGE)
def test_what_belongs_to_a_run_cannot_change_when_it_is_resumed(flag, model, capsys):
    message = fails(capsys, 2, "train", "--resume", model, flag, CANNOT_CHANGE[flag])
    assert f"{flag} {CANNOT_CHANGE[flag]} differs from {model}, which has " in message


def test_other_data_cannot_be_resumed_with(model, names, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("emma\n")
    assert f"{other}: the data is not what" in fails(
        capsys, 2, "train", "--resume", model, "--data", other
    )
    names.rename(tmp_path / "moved.txt")
    assert f"{names}: No such file" in fails(capsys, 2, "train", "--resume", model)
    moved = ["--data", str(tmp_path / "moved.txt")]
    resume = ["train", "--resume", str(model), *moved]
    assert "would overwrite --data" in fails(capsys, 2, *resume, "--out", moved[1])
    assert run_command([*resume, "--samples", "0"]) == 0
    assert mg.load(model).dataset == moved[1]


def test_a_run_without_the_name_of_its_data_asks_for_it(tmp_path, capsys):
    mg.save(mg.prepare(NAMES), tmp_path / "m")
    assert "give --data" in fails(capsys, 2, "train", "--resume", tmp_path / "m")


def test_a_run_may_start_from_a_model(model, tmp_path, capsys):
    data = tmp_path / "few.txt"
    data.write_text("mia\nsam\n")
    init = ["train", "--init", str(model), "--data", str(data), "--samples", "0"]
    assert run_command([*init, "--steps", "1"]) == 0
    lines = lines_of(capsys)
    assert f"init: {model} (step 0 / 1)" in lines and "vocab size: 12" in lines
    saved = mg.load(model)
    run = mg.train(["mia", "sam"], steps=1, init=saved)
    loss = f"{run.losses[0]:.4f}"
    assert lines[-1] == f"step    1 /    1 | loss {loss} (mean of 1), last {loss}"
    message = fails(capsys, 2, *init, "--n-embd", "8")
    assert f"--n-embd 8 differs from {model}, which has 16" in message
    data.write_text("zoe\n")
    assert "'z' is not in the alphabet" in fails(capsys, 2, *init)


BAD_KEEPING = {
    "resume and init": (["--resume", "m", "--init", "m"], "give one of them"),
    "save-every without out": (["--save-every", "5"], "--save-every needs --out"),
    "snapshots without save-every": (["--snapshots", "--out", "m"], "needs --save-every"),
    "eval-every without validation": (["--eval-every", "5"], "needs --val-fraction"),
    "all for validation": (["--val-fraction", "1"], "val_fraction must be"),
    "out in a missing folder": (["--out", "no/such/m"], "no/such/m: its folder does not exist"),
    "out that is a folder": (["--out", "."], ".: is a folder"),
    "out that is the data": (["--out", "./names.txt"], "would overwrite --data"),
    "log that is the model": (["--out", "m", "--log", "m"], "would overwrite --log"),
    "missing run": (["--resume", "missing"], "missing: No such file"),
    "run that is the data": (["--resume", "names.txt"], "not a safetensors file"),
    "unknown unit": (["--unit", "words"], "argument --unit: invalid choice: 'words'"),
}


@pytest.mark.parametrize("name", BAD_KEEPING)
def test_wrong_use_of_what_keeps_a_run_is_one_line(name, names, capsys, monkeypatch):
    monkeypatch.chdir(names.parent)
    arguments, message = BAD_KEEPING[name]
    before = names.read_bytes()
    assert message in fails(capsys, 2, "train", "--data", "names.txt", *arguments)
    assert names.read_bytes() == before
    assert os.listdir(names.parent) == ["names.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("flag", ["--out", "--log"])
def test_a_full_disk_is_exit_code_1(flag, names, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = ["train", "--data", names, "--steps", "2", flag, "/dev/full"]
    assert "No space left on device" in fails(capsys, 1, *command)


def test_an_interrupt_saves_first_and_is_exit_code_130(names, tmp_path):
    out = tmp_path / "m.safetensors"
    command = [sys.executable, "-m", "microgpt", "train", "--data", str(names), "--out", str(out)]
    command += ["--steps", "1000000", "--save-every", "2", "--log", str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not out.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    step = mg.load(out).adam.step
    assert process.returncode == 130
    assert problems(err.decode()) == (
        f"microgpt: interrupted at step {step}, saved as {out}: "
        f"microgpt train --resume {out} goes on\n"
    )
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["step"] == step


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_training_that_is_killed_can_be_resumed(names, tmp_path, capsys):
    out, log = tmp_path / "m.safetensors", tmp_path / "log"
    command = [sys.executable, "-m", "microgpt", "train", "--data", str(names), "--out", str(out)]
    command += ["--steps", "100000", "--save-every", "1", "--log", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while not out.exists():
            time.sleep(0.01)
        time.sleep(0.2)
        process.kill()
    step = mg.load(out).adam.step
    steps = [line.split(",")[0] for line in log.read_text().splitlines()]
    assert steps[:step] == [f'{{"step": {i}' for i in range(1, step + 1)]


def test_samples_on_the_way_leave_the_run_as_it_is(names, capsys):
    command = ["train", "--data", str(names), "--steps", "6"]
    assert run_command(command) == 0
    plain = lines_of(capsys)
    assert run_command([*command, "--sample-every", "3"]) == 0
    lines = lines_of(capsys)
    shown = [line for line in lines if line not in plain]
    assert [line[:19] for line in shown] == ["step    3 /    6 | ", "step    6 /    6 | "]
    assert [line for line in lines if line not in shown] == plain


def test_validation_is_shown_beside_two_baselines(names, capsys):
    command = ["train", "--data", str(names), "--steps", "4", "--val-fraction", "0.3"]
    assert run_command([*command, "--eval-every", "2", "--samples", "0"]) == 0
    lines = lines_of(capsys)
    seen = {}
    run = mg.train(NAMES, steps=4, val_fraction=0.3, eval_every=2, callback=seen.__setitem__)
    ids = [[run.encode(doc) for doc in docs] for docs in (run.documents, run.validation)]
    bigram = mg.bigram_loss(run.model, *ids)
    assert lines[5:7] == [
        "validation: 2 docs", f"baselines: uniform {math.log(12):.4f} | bigram {bigram:.4f}"
    ]
    for line, step in zip(lines[7:], (2, 4), strict=True):
        loss, last = mean(run.losses[:step]), run.losses[step - 1]
        assert line == (
            f"step    {step} /    4 | loss {loss:.4f} (mean of {step}), last {last:.4f} | "
            f"val loss {seen[step]['val_loss']:.4f}"
        )


@pytest.mark.parametrize("unit", ["paragraph", "stream"])
def test_texts_that_are_no_names_are_trained_on(unit, tmp_path, capsys):
    path, out = tmp_path / "text.txt", str(tmp_path / "m")
    path.write_text("to be\nor not to be\n\nthat is the question\n" * 5)
    command = ["train", "--data", str(path), "--unit", unit, "--steps", "3", "--out", out]
    assert run_command([*command, "--val-fraction", "0.2", "--samples", "1"]) == 0
    lines = lines_of(capsys)
    assert lines[2] == ("num characters: 164" if unit == "stream" else "num docs: 2")
    assert run_command(["eval", out]) == 0
    [again] = [line.split()[-1] for line in lines_of(capsys) if line.startswith("loss")]
    [measured] = [line.split()[-1] for line in lines if "val loss" in line]
    assert again == measured
    assert run_command(["sample", out, "-n", "1", "--prompt", "to be", "--length", "40"]) == 0
    assert capsys.readouterr().out.startswith("to be")


# Commands on a model


def test_sample_takes_its_options(model, capsys):
    saved, rng = mg.load(model), mg.load(model).rng
    options = ["-n", "4", "--prompt", "a", "--temperature", "0.9", "--top-k", "5", "--top-p", "0.9"]
    command = ["sample", str(model), *options, "--length", "6"]
    assert run_command(command) == 0
    expected = mg.generate(saved, 4, 0.9, rng, 5, 0.9, "a", 6)
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)
    assert run_command([*command, "--seed", "3", "--json"]) == 0
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert texts == mg.generate(saved, 4, 0.9, random.Random(3), 5, 0.9, "a", 6)


def test_new_leaves_out_what_stands_in_the_training_data(tmp_path, capsys):
    path, out = tmp_path / "names.txt", str(tmp_path / "m")
    path.write_text("ab\nba\n")
    train = ["train", "--data", str(path), "--steps", "30", "--samples", "0", "--out", out]
    assert run_command(train) == 0
    capsys.readouterr()
    assert run_command(["sample", out, "--new", "-n", "5", "--temperature", "1"]) == 0
    names = lines_of(capsys)
    assert len(names) == 5 and not {"ab", "ba"} & set(names)
    assert run_command(["sample", out, "--new", "-n", "1", "--temperature", "0"]) == 1
    assert "only 0 of 100 samples are new" in capsys.readouterr().err
    path.unlink()
    assert "No such file" in fails(capsys, 2, "sample", out, "--new")


def test_eval_tells_the_loss_and_two_baselines(model, names, tmp_path, capsys):
    data = tmp_path / "data.txt"
    data.write_text("emma\nemil\n")
    both = ["eval", str(model), "--data", str(data), "--training-data", str(names)]
    assert run_command(both) == 0
    saved = mg.load(model)
    ids = [saved.encode(doc) for doc in ("emma", "emil")]
    bigram = mg.bigram_loss(saved.model, [saved.encode(name) for name in NAMES], ids)
    assert lines_of(capsys) == [
        f"data: {data}", "num docs: 2", "in the training data: 1",
        f"loss: {mg.mean_loss(saved.model, ids):.4f}", f"uniform: {math.log(12):.4f}",
        f"bigram: {bigram:.4f}",
    ]  # fmt: skip
    assert "has no validation documents: give --data" in fails(capsys, 2, "eval", model)
    data.write_text("zoe\n")
    assert "'z' is not in the alphabet" in fails(capsys, 2, "eval", model, "--data", data)
    assert "is not what the run was trained on" in fails(
        capsys, 2, "eval", model, "--data", data, "--training-data", data
    )
    data.write_text("avaavaava\n")
    assert run_command(["eval", str(model), "--data", str(data)]) == 0
    lines = lines_of(capsys)
    assert lines[2] == "longer than block size 8, and cut: 1"
    assert lines[-1] == "bigram: - (needs --training-data)"


@pytest.mark.parametrize("command", [
    ["eval"], ["train", "--resume"], ["sample", "--new"], ["train", "--samples", "0", "--resume"],
])  # fmt: skip
@pytest.mark.parametrize("source", [
    "/dev/zero", "pipe", "folder", "", "makemore", "missing", "\0", "/proc/kmsg", "/proc/self/maps",
    "//host/share/names.txt", "\\\\host\\share\\names.txt",
])  # fmt: skip
def test_a_source_that_a_file_names_is_a_regular_file_that_was_there(
    command, source, model, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MICROGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("microgpt.data._download", None)  # is not called
    os.mkfifo("pipe")
    os.mkdir("folder")
    run = mg.load(model)
    run.dataset = source
    mg.save(run, model)
    assert "give --data" in fails(capsys, 2, *command, model)


def test_samples_of_a_strange_model_do_not_control_the_terminal(tmp_path, monkeypatch):
    pty = pytest.importorskip("pty")
    monkeypatch.chdir(tmp_path)
    mg.save(mg.train(["\x1b]0;x\x07\x9b2J", "\n\té\u3000"], steps=2), "m")
    command = [sys.executable, "-m", "microgpt", "sample", "m", "--temperature", "99"]
    plain = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert {"\x1b", "\x07", "\x9b", "\t", "\u3000"} <= set(plain)  # a pipe gets the text itself
    ours, theirs = pty.openpty()
    subprocess.run(command, stdout=theirs, check=True)
    shown = os.read(ours, 10**5).decode().replace("\r\n", "\n")
    os.close(ours), os.close(theirs)
    for char in "\x1b\x07\x9b":
        plain = plain.replace(char, repr(char)[1:-1])
    assert shown == plain


def test_a_named_file_is_read_only_when_it_is_asked_for(model, names, tmp_path, capsys):
    run = mg.load(model)
    run.dataset = "/dev/zero"
    mg.save(run, model)
    assert run_command(["eval", str(model), "--data", str(names)]) == 0
    assert run_command(["sample", str(model), "-n", "1"]) == 0
    assert run_command(["score", str(model), "emma"]) == 0


def test_a_large_file_that_a_file_names_is_not_read(model, tmp_path, capsys):
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        file.truncate(2**28 + 1)
    run = mg.load(model)
    run.dataset = str(path)
    mg.save(run, model)
    assert "has 268435457 bytes: give --data" in fails(capsys, 2, "eval", model)


def test_eval_gives_the_same_as_json(model, names, tmp_path, capsys):
    data = tmp_path / "data.txt"
    data.write_text("emma\nemil\navaavaava\n")
    command = ["eval", str(model), "--data", str(data), "--json"]
    saved = mg.load(model)
    ids = [saved.encode(doc) for doc in ("emma", "emil", "avaavaava")]
    found = {
        "data": str(data), "num_docs": 3, "cut": 1, "loss": mg.mean_loss(saved.model, ids),
        "uniform": math.log(12), "bigram": None,
    }  # fmt: skip
    assert run_command(command) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert run_command([*command, "--training-data", str(names)]) == 0
    found["bigram"] = mg.bigram_loss(saved.model, [saved.encode(name) for name in NAMES], ids)
    assert json.loads(capsys.readouterr().out) == {**found, "in_training_data": 1}


def test_runs_with_other_seeds_are_measured_on_the_same_documents(names, tmp_path, capsys):
    out = tmp_path / "m"
    found = []
    for seed in (1, 2):
        command = ["train", "--data", str(names), "--steps", "2", "--val-fraction", "0.4"]
        command += ["--val-seed", "5", "--seed", str(seed), "--samples", "0", "--out", str(out)]
        assert run_command(command) == 0
        saved = mg.load(out, NAMES)
        assert saved.config.val_seed == 5
        found.append(set(saved.validation))
        [measured] = [line.split()[-1] for line in lines_of(capsys) if "val loss" in line]
        assert run_command(["eval", str(out), "--json"]) == 0
        assert f"{json.loads(capsys.readouterr().out)['loss']:.4f}" == measured
    assert found[0] == found[1] and len(found[0]) == 2


def test_score_tells_the_loss_at_each_position(model, capsys):
    assert run_command(["score", str(model), "emma", "ava", "--top", "2"]) == 0
    lines = lines_of(capsys)
    saved = mg.load(model)
    total = 5 * mg.mean_loss(saved.model, [saved.encode("emma")])
    assert lines[0] == f"emma: loss {total / 5:.4f} per position, {total:.4f} in total"
    assert [line.split()[:2] for line in lines[1:6]] == [
        ["1", "e"], ["2", "m"], ["3", "m"], ["4", "a"], ["5", "(end)"]
    ]  # fmt: skip
    assert lines[6].startswith("ava: ") and len(lines) == 11
    assert run_command(["score", str(model), "emma", "--json"]) == 0
    [line] = map(json.loads, lines_of(capsys))
    assert (line["text"], line["total"]) == ("emma", pytest.approx(total))
    assert sum(position["loss"] for position in line["positions"]) == pytest.approx(total)
    assert [position["token"] for position in line["positions"]] == ["e", "m", "m", "a", None]
    first = line["positions"][0]["likely"]
    assert len(first) == 3 and first[0]["probability"] >= first[1]["probability"] > 0


BAD_COMMANDS = {
    "missing model": (["sample", "missing"], "missing: No such file"),
    "model that is a text": (["score", "names.txt", "emma"], "names.txt: is not a safetensors"),
    "model that is a folder": (["eval", "."], ".: is a folder"),
    "no text": (["score", "names.safetensors"], "required: TEXT"),
    "text of others": (["score", "names.safetensors", "zoe"], "'z' is not in the alphabet"),
    "long text": (["score", "names.safetensors", "ava" * 9], "longer than block_size"),
    "prompt of others": (["sample", "names.safetensors", "--prompt", "zoe"], "not in the alphabet"),
    "long prompt": (["sample", "names.safetensors", "--prompt", "ava" * 9], "leaves no room in 8"),
    "top-k of 0": (["sample", "names.safetensors", "--top-k", "0"], "top_k must be at least 1"),
    "negative top": (["score", "names.safetensors", "emma", "--top", "-1"], "not -1"),
    "negative n": (["sample", "names.safetensors", "-n", "-1"], "n must be at least 0, not -1"),
    "top-p of 2": (["sample", "names.safetensors", "--top-p", "2"], "top_p must be above 0"),
    "top-p of 0": (["sample", "names.safetensors", "--top-p", "0"], "top_p must be above 0"),
    "top-p below 0": (["sample", "names.safetensors", "--top-p", "-1"], "top_p must be above 0"),
    "top-p of nan": (["sample", "names.safetensors", "--top-p", "nan"], "top_p must be above 0"),
    "negative temperature": (["sample", "names.safetensors", "--temperature", "-1"],
                             "temperature must be at least 0, not -1.0"),
    "model of another class": (["sample", "other.safetensors"], "is of class Other, not GPT: "
                               "in Python, load(path, model=Other) reads it"),
    "other data": (["sample", "names.safetensors", "--new", "--data", "names.safetensors"],
                   "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_wrong_use_of_a_model_is_one_line_and_exit_code_2(name, model, capsys, monkeypatch):
    monkeypatch.chdir(model.parent)
    mg.save(mg.prepare(NAMES, model=type("Other", (mg.GPT,), {})), "other.safetensors")
    arguments, message = BAD_COMMANDS[name]
    assert message in fails(capsys, 2, *arguments)


def test_a_failed_download_is_exit_code_1(capsys, monkeypatch):
    def fail():
        raise mg.DownloadError("cannot download the makemore names")

    monkeypatch.setattr("microgpt.data._makemore", fail)
    assert "cannot download" in fails(capsys, 1, "train", "--data", "makemore")


def test_a_model_with_huge_parameters_is_exit_code_1(tmp_path, capsys):
    run = mg.prepare(NAMES)
    for row in run.model.state_dict["lm_head"]:
        row[0].data = 1.7e308
    mg.save(run, tmp_path / "m")
    assert "not finite" in fails(capsys, 1, "sample", tmp_path / "m", "--temperature", "1")


def test_info_tells_what_a_report_needs(capsys):
    assert run_command(["info"]) == 0
    lines = lines_of(capsys)
    assert lines[0] == f"microgpt {mg.__version__}"
    assert f"core: {mg.BACKEND} ({mg.BACKEND_REASON})" in lines
    assert [line.split(":")[0] for line in lines[1:]] == [
        "installed in", "core", "instruction set", "python", "platform", "cache folder"
    ]  # fmt: skip
    assert ("none (plain Python)" in lines[3]) == (mg.BACKEND == "python")


def test_info_tells_what_a_file_holds(model, names, capsys):
    assert run_command(["info", str(model)]) == 0
    saved = mg.load(model)
    lines = lines_of(capsys)
    assert lines[:5] == [
        f"model: {model}", "class: GPT", f"num params: {saved.model.num_params}",
        "sizes: vocab_size 12, n_layer 1, n_embd 16, n_head 4, block_size 8, dtype float64",
        f"alphabet: {saved.tokenizer.chars!r}",
    ]  # fmt: skip
    settings = "steps 10, lr 0.01, batch_size 1, seed 42, unit line, val_fraction 0.0"
    assert lines[5:7] == [f"training: {settings}", "step: 5 / 10"]
    assert lines[7] == f"loss: {saved.recent_loss:.4f} (mean of 5), last {saved.losses[-1]:.4f}"
    assert lines[8] == f"tokens: {saved.tokens}"
    assert lines[10:14] == [
        f"data: {names}", f"data sha256: {saved.sha256}", "parameters:", "  wte: 12 x 16"
    ]  # fmt: skip
    assert lines[-1] == "  layer0.mlp_fc2: 16 x 64" and len(lines) == 13 + 9
    assert "not a safetensors file" in fails(capsys, 2, "info", names)


def test_info_tells_what_a_file_of_any_class_holds(tmp_path, capsys):
    """Of a model that only its author has, trained by a loop that counts nothing but steps."""

    class Mine(mg.GPT):
        @classmethod
        def init_parameters(cls, config, rng):
            state_dict = super().init_parameters(config, rng)
            return {**state_dict, "lm_head": state_dict["wte"], "gain": mg.Matrix(1, 16)}

    run = mg.prepare(NAMES, model=Mine)
    run.model.loss(run.batch(0)).backward()
    run.adam.update(0.01)
    mg.save(run, tmp_path / "m")
    assert run_command(["info", str(tmp_path / "m")]) == 0
    lines = lines_of(capsys)
    assert lines[1:3] == ["class: Mine", f"num params: {run.model.num_params}"]
    assert lines[6:10] == ["step: 1 / 1000", "tokens: - (not counted)", "seconds: - (not counted)",
                           "data: - (not known)"]  # fmt: skip
    assert lines[-2:] == ["  gain: 1 x 16", "  lm_head: tied to wte"]


def test_info_of_losses_that_add_up_to_more_than_a_float(model, capsys):
    run = mg.load(model, NAMES)
    run.losses[:] = [sys.float_info.max] * 3
    mg.save(run, model)
    assert run.recent_loss == sys.float_info.max
    assert run_command(["info", str(model)]) == 0
    assert "(mean of 3), last 17976931348623157081" in lines_of(capsys)[7]


def test_info_prints_json(model, tmp_path, capsys):
    assert run_command(["info", str(model), "--json"]) == 0
    [line] = lines_of(capsys)
    found, saved = json.loads(line), mg.load(model)
    assert found["class"] == "GPT" and found["num_params"] == saved.model.num_params
    assert found["sizes"] == vars(saved.model.config)
    assert found["training"] == vars(saved.config)
    assert (found["loss"], found["last_loss"]) == (saved.recent_loss, saved.losses[-1])
    assert found["parameters"]["wpe"] == [8, 16] and found["tied"] == {}
    mg.save(mg.prepare(NAMES), tmp_path / "new")
    assert run_command(["info", str(tmp_path / "new"), "--json"]) == 0
    found = json.loads(lines_of(capsys)[0])
    assert [found[name] for name in ("step", "loss", "tokens", "data")] == [0, None, 0, None]
    assert run_command(["info", "--json"]) == 0
    assert json.loads(lines_of(capsys)[0])["microgpt"] == mg.__version__


@pytest.mark.parametrize("command", ["train", "sample", "eval", "score", "info"])
def test_each_command_has_a_help_with_an_example(command, capsys):
    assert run_command([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"example: microgpt {command}" in out
    assert "SUPPRESS" not in out


def test_a_log_that_is_a_folder_is_named_without_an_error_number(names, tmp_path, capsys):
    assert run_command(["train", "--data", str(names), "--log", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"microgpt: {tmp_path}: Is a directory\n"


def test_the_command_line_loads_nothing_that_only_sweeps_info_or_errors_need():
    code = """
import sys, microgpt.cli
unwanted = {"difflib", "microgpt.plots", "microgpt.trials", "pickle", "platform", "secrets"}
print(*unwanted & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")
