"""The command line: what it prints where, its exit codes, and what it says of bad input."""

import json
import os
import struct
import subprocess
import sys

import pytest

import microgpt as mg
from microgpt.cli import run_command

NAMES = ["emma", "olivia", "ava", "isabella", "sophia", "mia"]


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return path


def microgpt(*arguments, **environment):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "microgpt", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=300,
    )


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
        f"step    5 /    5 | loss {run.losses[-1]:.4f}",
    ]
    assert lines[6] == "--- inference (new, hallucinated names) ---"
    assert lines[7:] == [f"sample {i:2}: {name}" for i, name in enumerate(mg.generate(run, 3), 1)]
    assert err == ""


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
    assert "cut: 3 documents do not fit into block size 5\n" in out
    assert f"sample  2: {mg.generate(run, 1, temperature=0)[0]}" in out


def test_the_data_may_start_with_a_byte_order_mark_and_have_blank_lines(tmp_path, capsys):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbf emma \r\n\r\n  \r\nava\r\n")
    assert run_command(["train", "--data", str(path), "--steps", "1", "--samples", "0"]) == 0
    out = capsys.readouterr().out
    assert "num docs: 2\nvocab size: 5\n" in out
    assert "inference" not in out


def test_without_data_the_bundled_names_are_used(capsys):
    assert run_command(["train", "--steps", "1", "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "data: names_us1990 (bundled)\nnum docs: 5163\nvocab size: 27\nnum params: 4192\n" in out


BAD_USE = {
    "unknown option": (["--nonsense"], "unrecognized arguments: --nonsense"),
    "abbreviated option": (["--step", "3"], "unrecognized arguments: --step"),
    "zero layers": (["--n-layer", "0"], "--n-layer: 0 is below 1"),
    "negative width": (["--n-embd", "-4"], "--n-embd: -4 is below 1"),
    "zero heads": (["--n-head", "0"], "--n-head: 0 is below 1"),
    "zero block size": (["--block-size", "0"], "--block-size: 0 is below 1"),
    "fraction of a layer": (["--n-layer", "1.5"], "--n-layer: '1.5' is not a whole number"),
    "indivisible width": (["--n-embd", "10"], "n_embd must be a multiple of n_head"),
    "empty batches": (["--batch-size", "0"], "--batch-size: 0 is below 1"),
    "negative steps": (["--steps", "-1"], "--steps: -1 is below 0"),
    "negative samples": (["--samples", "-1"], "--samples: -1 is below 0"),
    "negative temperature": (["--temperature", "-0.5"], "--temperature: -0.5 is not"),
    "temperature that is no number": (["--temperature", "nan"], "--temperature: nan is not"),
    "lr that is a word": (["--lr", "fast"], "--lr: 'fast' is not a number"),
    "lr that is nan": (["--lr", "nan"], "--lr: nan is not a finite number"),
    "lr that is infinite": (["--lr", "inf"], "--lr: inf is not a finite number"),
    "negative lr": (["--lr", "-0.1"], "--lr: -0.1 is not"),
    "seed that is a word": (["--seed", "x"], "--seed: 'x' is not a whole number"),
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
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n\t\r\n", "only blank lines"),
        (b"emma\nzo\xeb\n", "not UTF-8"),
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
    assert "would overwrite the data" in capsys.readouterr().err
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
    assert capsys.readouterr().err == "microgpt: interrupted\n"


def test_a_size_that_no_memory_holds_is_exit_code_1(names, capsys):
    if mg.BACKEND == "python":
        pytest.skip("the pure core would fill the memory before it fails")
    assert run_command(["train", "--data", str(names), "--n-embd", "400000000000000000"]) == 1
    err = capsys.readouterr().err
    assert "memory" in err and err.count("\n") == 1


def test_python_m_microgpt_is_the_same_command(names):
    result = microgpt("train", "--data", names, "--steps", 3, "--samples", 2)
    assert result.returncode == 0
    assert result.stderr == ""  # the progress line is quiet in a pipe
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
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave) as process:
        process.communicate(timeout=120)
    os.close(slave)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert process.returncode == 0
    assert "30/30" in shown and "loss" in shown and "steps/s" in shown
    assert "\r" in shown and shown.replace("\r\n", "\n").count("\n") == 1
