"""What training writes: it overwrites only models and logs it was told to, and loses no run.

MICROGPT_SECONDS: for how long several processes write the same file.
MICROGPT_STRIDE: after the first 20, at every how many-th write of a training the disk is full.
"""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from checkpoint_files import numbers
from processes import problems

import microgpt as mg
from microgpt import cli, files, outputs, safetensors
from microgpt.cli import run_command

SECONDS = float(os.environ.get("MICROGPT_SECONDS", "1"))
STRIDE = int(os.environ.get("MICROGPT_STRIDE", "7" if mg.BACKEND == "cython" else "29"))
NAMES = ["emma", "olivia", "ava", "isabella", "sophia", "mia"]
SIZES = {"n_embd": 4, "n_head": 2, "block_size": 4}
OPTIONS = ["--n-embd", "4", "--n-head", "2", "--block-size", "4", "--samples", "0"]
TRAIN = ["train", *OPTIONS, "--data", "names.txt", "--steps", "6"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="written for POSIX")


def whole_run(steps=6):
    return mg.train(NAMES, steps=steps, **SIZES)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return name -> content of a run that has not begun and of one that is half done."""
    path, contents = tmp_path_factory.mktemp("models") / "m", {}
    run = mg.prepare(NAMES, steps=6, **SIZES)
    run.dataset = "names.txt"
    for name in ("start", "half"):
        mg.save(run, path)
        contents[name] = path.read_bytes()
        mg.train_step(run), mg.train_step(run)
    return contents


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    """The current folder, with all inputs of training; rescued runs go to another one."""
    (tmp_path / "tmp").mkdir()
    folder = tmp_path / "work"
    (folder / "models").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (folder / "names.txt").write_text("\n".join(NAMES))
    for name, content in models.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder):
    """Return path -> content of each file, target of each link."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def microgpt(capsys, *arguments):
    """Run a command; return its exit code, stdout and stderr, which is one line if it failed."""
    code = run_command([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    err = problems(err)
    assert err.count("\n") == (code != 0) and (not err or err.startswith("microgpt: "))
    return code, out, err


@pytest.fixture
def refused(folder, capsys, monkeypatch):
    """Return a function that checks that a command is refused before training, without a trace."""

    def refused(*arguments):
        before = contents(folder)
        with monkeypatch.context() as patch:
            patch.setattr("microgpt.cli.steps", None)  # no step is taken
            code, out, err = microgpt(capsys, *arguments)
        assert (code, out) == (2, ""), err
        assert contents(folder) == before
        return err

    return refused


# Paths that have another use


def itself(path):
    return f"./{path}"


def around(path):
    return os.path.join("models", os.pardir, path)


def symbolic_link(path):
    os.symlink(os.path.abspath(path), "another")
    return "another"


def hard_link(path):
    os.link(path, "another")
    return "another"


def link_to_the_folder(path):
    os.symlink(os.curdir, "here")
    return os.path.join("here", path)


def absolute(path):
    return os.path.abspath(path)


WAYS = [itself, around, absolute, symbolic_link, hard_link, link_to_the_folder]
INPUTS = {"--data": "names.txt", "--init": "start", "--resume": "half"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("output", "option"), [
    ("--out", "--data"), ("--out", "--init"), *(("--log", option) for option in INPUTS)
])  # fmt: skip
def test_no_output_is_an_input(output, option, way, refused):
    read = ["--data", "names.txt"] if option == "--init" else []
    message = refused(
        "train", *(OPTIONS[6:] if option != "--data" else OPTIONS), *read,
        option, INPUTS[option], output, way(INPUTS[option]),
    )  # fmt: skip
    # a run is saved where it was read, unless --out is given
    assert f"would overwrite {'--log' if option == '--resume' else option}" in message


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("present", [False, True])
def test_the_log_is_not_the_model(way, present, refused):
    if present or way is hard_link:
        mg.save(mg.prepare(NAMES), "m")
    assert "--out m would overwrite --log" in refused(*TRAIN, "--out", "m", "--log", way("m"))


SNAPSHOTS = ["--save-every", "3", "--snapshots"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["m-000004.st", "m-1234567.st"])
@pytest.mark.parametrize("option", [*INPUTS, "--log"])
def test_a_snapshot_of_any_step_is_neither_an_input_nor_the_log(option, name, way, folder, refused):
    if option in INPUTS:
        os.rename(INPUTS[option], name)
    elif way is hard_link:
        (folder / name).write_text('{"step": 1}\n')
    read = [] if option in ("--data", "--resume") else ["--data", "names.txt"]
    arguments = ["train", "--samples", "0", *read, option, way(name)]
    assert f"a snapshot of --out would overwrite {option}" in refused(
        *arguments, "--out", "m.st", *SNAPSHOTS
    )


@pytest.mark.parametrize("option", [*INPUTS, "--log"])
def test_a_link_that_has_the_name_of_a_snapshot_leads_to_no_other_file(option, refused):
    path = INPUTS.get(option, "log")
    os.symlink(path, "m-000003")
    read = [] if option in ("--data", "--resume") else ["--data", "names.txt"]
    arguments = ["train", "--samples", "0", *read, option, path, "--out", "m", *SNAPSHOTS]
    assert f"a snapshot of --out would overwrite {option}" in refused(*arguments)


def test_a_link_that_has_the_name_of_a_snapshot_leads_to_no_file_of_the_users(folder, refused):
    (folder / "mine").write_text("mine")
    os.symlink("mine", "m-000003")
    assert "is not a model, so it is not overwritten" in refused(*TRAIN, "--out", "m", *SNAPSHOTS)


@pytest.mark.parametrize("option", [*INPUTS, "--log"])
def test_snapshots_stand_beside_a_link_to_the_model_and_are_no_input_there(option, refused):
    os.symlink(os.path.join("models", "m"), "link")
    if option in INPUTS:
        os.rename(INPUTS[option], "link-000003")
    read = [] if option in ("--data", "--resume") else ["--data", "names.txt"]
    arguments = ["train", "--samples", "0", *read, option, "link-000003", "--out", "link"]
    assert f"a snapshot of --out would overwrite {option}" in refused(*arguments, *SNAPSHOTS)


@pytest.mark.parametrize("name", ["m-3", "m-00003", "m-000003x", "m-000003.st", "n-000003", "-m"])
def test_what_no_snapshot_is_called_may_be_the_log(name, folder, capsys):
    code, _, err = microgpt(capsys, *TRAIN, "--out", "m", *SNAPSHOTS, f"--log={name}")
    assert (code, err) == (0, "")
    assert len((folder / name).read_bytes().splitlines()) == 6
    assert {"m", "m-000003", "m-000006"} <= set(os.listdir())


# Existing files


TEXT = b"dear diary\n"
MODEL_OF_OTHERS = b"\x31\0\0\0\0\0\0\0" + b'{"__metadata__":{"format":"pt","other":"2"},"a":1}'
NO_MODELS = {
    "text": TEXT, "one byte": b"a", "blank": b"\n", "zeros": b"\0" * 100, "json": b'{"step": 1}\n',
    "picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "model of others": MODEL_OF_OTHERS,
    "cut off": b"\xff\0\0\0\0\0\0\0{",
}  # fmt: skip


@pytest.mark.parametrize("content", NO_MODELS)
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_model_is_not_overwritten_by_one(content, resume, folder, refused):
    (folder / "mine").write_bytes(NO_MODELS[content])
    command = ["train", "--resume", "half"] if resume else TRAIN
    assert "mine: is not a model, so it is not overwritten" in refused(*command, "--out", "mine")
    os.rename("mine", "m-000001.st")
    assert "m-000001.st: is not a model" in refused(*command, "--out", "m.st", *SNAPSHOTS)
    os.rename("m-000001.st", "m-000001")  # of another name
    assert run_command([*command, "--out", "m.st", *SNAPSHOTS]) == 0
    assert (folder / "m-000001").read_bytes() == NO_MODELS[content]


NO_LOGS = {
    "text": TEXT, "one byte": b"a", "blank": b"\n", "zeros": b"\0" * 100, "json": b'{"loss": 1}\n',
    "brace": b"{", "half a key": b'{"st',
    "list": b'[{"step": 1}]', "a byte before": b' {"step": 1}\n', "no space": b'{"step":1}\n',
    "utf-16": '{"step": 1}'.encode("utf-16"), "long line": b"x" * 10**6,
}  # fmt: skip


@pytest.mark.parametrize("content", NO_LOGS)
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_log_is_not_overwritten_by_one(content, resume, folder, refused):
    (folder / "mine").write_bytes(NO_LOGS[content])
    command = ["train", "--resume", "half"] if resume else TRAIN
    assert "mine: is not a log, so it is not overwritten" in refused(*command, "--log", "mine")
    os.symlink("mine", "link")
    assert "link: is not a log" in refused(*command, "--log", "link", "--out", "m")


@pytest.mark.parametrize("model", ["start", "half"])
def test_a_model_is_not_overwritten_by_a_log(model, refused):
    assert "is not a log" in refused(*TRAIN, "--log", model)


@pytest.mark.parametrize("line", ["text", '{"step": null}', '{"step": "1"}', '{"step": 1.0}', "[]"])
def test_a_log_with_a_line_that_is_none_is_not_cut(line, folder, refused):
    (folder / "log").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    command = ["train", "--resume", "half", "--log", "log"]
    assert "log: has a line that is not a log line" in refused(*command)


@pytest.mark.parametrize("content", [b"", b'{"step": 1, "loss": 3.5}\nnot a line', b'{"step": '])
def test_an_older_log_and_an_empty_file_are_replaced(content, folder, capsys):
    (folder / "log").write_bytes(content)
    (folder / "m").touch()
    (folder / "m-000003").touch()
    command = [*TRAIN, "--log", "log", "--out", "m", *SNAPSHOTS]
    assert microgpt(capsys, *command)[0] == 0
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert [line["loss"] for line in lines] == mg.load("m").losses == whole_run().losses
    assert mg.load("m-000003").adam.step == 3


def test_a_model_of_an_older_training_is_replaced(folder, capsys):
    mg.save(mg.prepare(["other"]), "m")
    assert microgpt(capsys, *TRAIN, "--out", "m")[0] == 0
    assert numbers(mg.load("m")) == numbers(whole_run())


def test_a_device_takes_what_is_written(capsys, folder):
    before = sorted(os.listdir())
    for output in ("--out", "--log"):
        assert microgpt(capsys, *TRAIN, output, os.devnull)[0] == 0
        assert microgpt(capsys, "train", "--resume", "half", output, os.devnull)[0] == 0
    assert sorted(os.listdir()) == before and not os.path.isfile(os.devnull)
    assert numbers(mg.load("half")) == numbers(whole_run())  # saved by the run without --out


NO_OUTPUT = {
    "folder": ("models", "folder|Is a directory"),
    "folder of the parent": ("..", "folder|Is a directory"),
    "missing folder": ("no/such/file", "its folder does not exist|No such file"),
    "file as a folder": ("names.txt/m", "its folder does not exist|Not a directory"),
    "256 bytes": ("x" * 256, "File name too long"),
    "256 bytes in 128 letters": ("é" * 128, "File name too long"),
    "no name": ("", "'': "),
    "link to itself": ("loop", "loop: "),
    "link to a missing folder": ("astray", "astray: "),
}


@pytest.mark.parametrize("name", NO_OUTPUT)
@pytest.mark.parametrize("output", ["--out", "--log"])
def test_what_cannot_be_written_is_found_before_the_training(name, output, refused):
    path, message = NO_OUTPUT[name]
    os.symlink("loop", "loop")
    os.symlink("no/such/file", "astray")
    for command in (TRAIN, ["train", "--resume", "half"]):
        assert re.search(message, refused(*command, output, path))
        other = "--log" if output == "--out" else "--out"
        refused(*command, output, path, other, "new")  # which is not created either


def test_a_pipe_is_no_model(folder, refused):
    os.mkfifo("pipe")
    assert "pipe: is a pipe, not a file" in refused(*TRAIN, "--out", "pipe")
    os.rename("pipe", "m-000003")
    assert "m-000003: is a pipe" in refused(*TRAIN, "--out", "m", *SNAPSHOTS)


def test_a_pipe_that_nothing_reads_is_no_log(folder, refused):
    os.mkfifo("pipe")
    for command in (TRAIN, ["train", "--resume", "half"]):
        assert "pipe: is a pipe that nothing reads" in refused(*command, "--log", "pipe")


def test_a_pipe_that_is_read_takes_the_log(folder, capsys):
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        while True:
            code, _, err = microgpt(capsys, *TRAIN, "--log", "pipe")
            if code == 0:
                break
            assert "nothing reads" in err  # not yet
        lines = reader.communicate(timeout=60)[0].splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    reading, writing = os.pipe()  # as a shell's >(...) names it
    assert microgpt(capsys, *TRAIN, "--log", f"/dev/fd/{writing}")[0] == 0
    os.close(writing)
    with open(reading, "rb") as file:
        assert len(file.readlines()) == 6


@pytest.mark.parametrize("out", [[], ["--out", "m"]])
def test_a_log_whose_reader_goes_away_is_said_and_loses_no_run(out, folder, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = microgpt(capsys, *TRAIN, "--log", f"/dev/fd/{writing}", *out)
    os.close(writing)
    kept = "; the run was saved as m" if out else ""
    assert (code, err) == (1, f"microgpt: /dev/fd/{writing}: Broken pipe{kept}\n")
    if out:
        goes_on("m")


def test_what_keeps_a_snapshot_from_being_written_is_found_before_the_training(refused):
    name = "x" * 250  # a step makes it too long
    assert "File name too long" in refused(*TRAIN, "--out", name, *SNAPSHOTS)
    os.mkdir("m-000003")
    assert "m-000003: is a folder" in refused(*TRAIN, "--out", "m", *SNAPSHOTS)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anything")
def test_what_is_not_to_be_written_is_found_before_the_training(folder, refused):
    for name in ("m", "m-000003"):
        mg.save(mg.load("half"), name)
        os.chmod(name, 0o444)
        assert f"{name}: is not writable" in refused(*TRAIN, "--out", "m", *SNAPSHOTS)
        os.unlink(name)
    (folder / "log").write_text('{"step": 1}\n')
    os.chmod("log", 0o444)
    assert "log: Permission denied" in refused(*TRAIN, "--log", "log")
    os.chmod("models", 0o555)
    for output in ("--out", "--log"):
        assert "models/new: Permission denied" in refused(*TRAIN, output, "models/new")


def test_a_file_of_the_name_that_unfinished_ones_have_is_not_touched(folder, capsys):
    mine = {"m.part", "microgpt-0123456789abcdef.part", "m-000003.part", ".part", "tmp.part"}
    for name in mine:
        (folder / name).write_bytes(TEXT)
    before = set(os.listdir())
    assert microgpt(capsys, *TRAIN, "--out", "m", "--log", "log", *SNAPSHOTS)[0] == 0
    assert set(os.listdir()) == before | {"m", "m-000003", "m-000006", "log"}
    assert all((folder / name).read_bytes() == TEXT for name in mine)


# Runs that cannot be saved to --out


def rescued(err):
    """Return the path at the end of the message."""
    [place] = re.findall(r"the run was saved as (\S+)\n$", err)
    return place


def goes_on(place, steps=6):
    """Check that a saved run continues as the uninterrupted one, bit for bit."""
    assert numbers(mg.finish(mg.load(place, NAMES))) == numbers(whole_run(steps))


def failing(f, when):
    """Return f, with a full disk where when(arguments) is true."""

    def fails(*arguments, **options):
        if when(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return f(*arguments, **options)

    return fails


@pytest.mark.parametrize("arguments", [[], ["--save-every", "3"], SNAPSHOTS])
@pytest.mark.parametrize("present", [False, True])
def test_a_run_that_cannot_be_saved_is_saved_elsewhere(
    arguments, present, folder, capsys, monkeypatch
):
    if present:
        mg.save(mg.prepare(["before"]), "m")
    before = contents(folder)
    here = str(folder / "m")
    full = failing(files.write_whole, lambda path, _: os.path.abspath(path) == here)
    monkeypatch.setattr(safetensors, "write_whole", full)
    code, out, err = microgpt(capsys, *TRAIN, "--out", "m", *arguments)
    assert code == 1 and "microgpt: m: No space left on device; " in err
    place = rescued(err)
    assert os.path.dirname(place) == str(folder.parent / "tmp")
    assert mg.load(place).adam.step == (3 if arguments else 6)
    assert contents(folder) == before
    monkeypatch.undo()
    os.chdir(folder)
    goes_on(place)
    command = ["train", "--resume", place, "--out", "again", "--samples", "0"]
    assert microgpt(capsys, *command)[0] == 0
    assert numbers(mg.load("again")) == numbers(whole_run())


def test_the_path_of_a_run_that_was_saved_elsewhere_is_told_whole(folder, capsys, monkeypatch):
    long = folder
    for part in range(4):
        long = long / (str(part) * 200)
    long.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setattr(
        safetensors, "write_whole",
        failing(files.write_whole, lambda path, _: os.path.basename(path) == "m"),
    )  # fmt: skip
    code, _, err = microgpt(capsys, *TRAIN, "--out", "m")
    assert code == 1 and os.path.dirname(rescued(err)) == str(long)
    goes_on(rescued(err))


def test_a_snapshot_that_cannot_be_saved_is_said_and_the_run_is_kept(folder, capsys, monkeypatch):
    full = failing(files.write_whole, lambda path, _: path == "m-000003")
    monkeypatch.setattr(safetensors, "write_whole", full)
    code, _, err = microgpt(capsys, *TRAIN, "--out", "m", *SNAPSHOTS)
    assert code == 1 and "No space left on device" in err
    goes_on("m")
    goes_on(rescued(err))


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_run_whose_last_write_fails_is_saved_elsewhere(name, folder, capsys, monkeypatch):
    failures = iter([True])  # only the first one
    monkeypatch.setattr(os, name, failing(getattr(os, name), lambda *_: next(failures, False)))
    code, _, err = microgpt(capsys, *TRAIN, "--out", "m")
    assert code == 1 and "m: No space left on device; the run was saved as " in err
    goes_on(rescued(err))
    assert not os.path.exists("m") and not any(".part" in name for name in os.listdir())


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


@needs_full
@pytest.mark.parametrize("arguments", [[], ["--save-every", "3"]])
def test_a_run_for_a_full_device_is_saved_elsewhere(arguments, folder, capsys):
    code, _, err = microgpt(capsys, *TRAIN, "--out", "/dev/full", *arguments)
    assert code == 1 and "/dev/full: No space left on device; " in err
    assert mg.load(rescued(err)).adam.step == (3 if arguments else 6)
    goes_on(rescued(err))


@needs_full
@pytest.mark.parametrize(("steps", "every", "found_at"), [(6, 9, 6), (6, 3, 3), (100, 999, None)])
def test_a_log_that_cannot_be_written_loses_no_step(steps, every, found_at, folder, capsys):
    command = [*TRAIN[:-1], str(steps), "--log", "/dev/full"]
    assert "/dev/full: No space left on device\n" in microgpt(capsys, *command)[2]
    code, _, err = microgpt(capsys, *command, "--out", "m", "--save-every", every)
    assert code == 1 and "/dev/full: No space left on device; the run was saved as m\n" in err
    step = mg.load("m").adam.step
    assert step == found_at or found_at is None and 0 < step < steps  # when a buffer is full
    goes_on("m", steps)


@needs_full
def test_a_run_whose_log_and_model_cannot_be_written_is_saved_elsewhere(folder, capsys):
    code, _, err = microgpt(capsys, *TRAIN, "--log", "/dev/full", "--out", "/dev/full")
    assert code == 2  # it is the same device
    link = folder / "log"
    link.symlink_to("/dev/full")
    code, _, err = microgpt(capsys, *TRAIN, "--log", "/dev/full", "--out", "/dev/null/m")
    assert code == 2 and "/dev/null/m: its folder does not exist" in err


def test_a_run_that_can_be_saved_nowhere_says_so_and_leaves_nothing(folder, capsys, monkeypatch):
    mg.save(mg.prepare(["before"]), "m")
    before = contents(folder.parent)
    monkeypatch.setattr(os, "fsync", failing(os.fsync, lambda *_: True))
    code, _, err = microgpt(capsys, *TRAIN, "--out", "m")
    assert code == 1
    assert err == (
        "microgpt: m: No space left on device; nor could it be saved elsewhere: "
        f"{folder.parent / 'tmp'}{os.sep}{err.split(os.sep)[-1]}"
    )
    assert err.endswith(": No space left on device\n")
    assert contents(folder.parent) == before


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
from microgpt.cli import run_command
sys.exit(run_command(sys.argv[1:]))
"""


def test_a_write_that_ends_in_the_middle_leaves_what_was_there(folder):
    """The system refuses to write more than 9,000 bytes; the file has 16,000."""
    pytest.importorskip("resource")
    before = contents(folder.parent)
    command = [sys.executable, "-c", LIMITED, "train", "--resume", "half", "--samples", "0"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TMPDIR": "../tmp"}
    )
    err = problems(done.stderr)
    assert done.returncode == 1 and err.count("\n") == 1
    assert err.startswith("microgpt: half: File too large; nor could it be saved elsewhere")
    assert contents(folder.parent) == before


# A disk that is full at the n-th operation


class Disk:
    """Make the n-th operation on the files of a folder fail, or all from the n-th on.

    Operations: open a file for writing, write, flush, truncate, sync, close, replace.
    """

    def __init__(self, folder, n, forever, patch):
        self.folder, self.n, self.forever, self.count = str(folder), n, forever, 0
        real = {name: getattr(os, name) for name in ("fsync", "replace", "open")}

        def file_of(path, *mode, **options):
            if self.has(path) and mode and mode[0] != "rb":
                self.operation()
                return File(self, open(path, *mode, **options))
            return open(path, *mode, **options)

        def is_here(handle):
            paths = [self.folder, *(entry.path for entry in os.scandir(self.folder))]
            return any(os.path.samestat(os.fstat(handle), os.stat(path)) for path in paths)

        patch.setattr(files, "open", file_of, raising=False)
        patch.setattr(outputs, "open", file_of, raising=False)
        patch.setattr(os, "fsync", lambda handle: (
            is_here(handle) and self.operation(), real["fsync"](handle))[1])  # fmt: skip
        patch.setattr(os, "replace", lambda a, b: (
            self.has(b) and self.operation(), real["replace"](a, b))[1])  # fmt: skip
        patch.setattr(os, "open", lambda path, *rest: (
            path == self.folder and self.operation(), real["open"](path, *rest))[1])  # fmt: skip

    def has(self, path):
        return os.path.dirname(os.path.abspath(path)) == self.folder

    def operation(self):
        self.count += 1
        if self.count == self.n or self.forever and self.count > self.n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class File:
    """An open file of a Disk."""

    def __init__(self, disk, file):
        self.disk, self.file = disk, file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def write(self, text):
        try:
            self.disk.operation()
        except OSError:
            self.file.write(text[: len(text) // 2])  # as much as fits
            raise
        return self.file.write(text)

    def writelines(self, parts):
        for part in parts:
            self.write(part)

    def flush(self):
        self.disk.operation()
        self.file.flush()

    def truncate(self):
        self.disk.operation()
        return self.file.truncate()

    def close(self):
        if not self.file.closed:
            self.file.close()
            self.disk.operation()


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("present", [False, True])
def test_a_save_that_fails_anywhere_leaves_a_whole_file_and_no_other(
    present, forever, folder, monkeypatch
):
    run, path = whole_run(), folder / "models" / "m"
    allowed = [[], numbers(run)]
    n, failed = 0, True
    while failed:
        n, failed = n + 1, False
        if present:
            mg.save(mg.load("start"), path)
            allowed[0] = numbers(mg.load(path))
        with monkeypatch.context() as patch:
            Disk(path.parent, n, forever, patch)
            try:
                mg.save(run, path)
            except OSError as error:
                failed = True
                assert str(error) == f"{path}: No space left on device"
        if present or path.exists():
            assert numbers(mg.load(path)) in allowed[not present :]
            path.unlink()
        assert os.listdir(path.parent) == []
    assert n > 20  # there are so many writes


@pytest.mark.parametrize("forever", [False, True])
def test_a_training_that_finds_the_disk_full_anywhere_loses_nothing(
    forever, folder, capsys, monkeypatch
):
    """At one operation or from then on; the folder for temporary files is on another disk.

    n is each of the first operations, then every few: nearly all of those are writes.
    """
    here = folder / "models"
    command = [*TRAIN, "--log", "models/log", "--out", "models/m", *SNAPSHOTS]
    prepared, runs = cli._prepared, []
    monkeypatch.setattr(cli, "_prepared", lambda given: runs.append(prepared(given)) or runs[-1])
    whole = numbers(whole_run())
    n, code, codes = 0, None, []
    while code != 0:
        n += 1 if n < 20 else STRIDE
        for path in here.iterdir():
            path.unlink()
        mg.save(mg.load("start"), here / "m")
        before = numbers(mg.load(here / "m"))
        with monkeypatch.context() as patch:
            disk = Disk(here, n, forever, patch)
            code, out, err = microgpt(capsys, *command)
        codes.append(code)
        assert disk.count >= n or code == 0
        assert not any(".part" in path.name for path in here.iterdir())
        kept = [path for path in here.iterdir() if path.name != "log"]
        if code == 2:  # before training
            assert out == "" and numbers(mg.load(here / "m")) == before
            continue
        if code == 1 and "saved as" in err:
            kept.append(rescued(err))
        assert numbers(runs[-1]) in [numbers(mg.load(path)) for path in kept], (n, err)
        for path in kept:
            if numbers(mg.load(path)) != before:
                assert numbers(mg.finish(mg.load(path, NAMES))) == whole
        for i, line in enumerate((here / "log").read_bytes().splitlines(keepends=True)):
            assert not line.endswith(b"\n") or json.loads(line)["loss"] == whole[3][i]
    print(f"a disk that was full {len(codes) - 1} times, at operations up to {n}")
    assert codes.count(1) > 12 and codes.count(2) >= 3


# Several processes


def training(*arguments):
    command = [sys.executable, "-m", "microgpt", *TRAIN[:-1], str(10**9), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until_it_trains(process):
    for line in process.stdout:
        if line.startswith(b"num params"):
            return
    raise AssertionError(process.stderr.read())


def test_a_log_has_one_writer(folder, capsys):
    with training("--log", "log", "--out", "m", "--save-every", 1) as process:
        try:
            until_it_trains(process)
            for command in (TRAIN, ["train", "--resume", "half", "--samples", "0"]):
                code, out, err = microgpt(capsys, *command, "--log", "log", "--out", "other")
                assert (code, out) == (2, "")
                assert err == "microgpt: log: another training writes to this log\n"
            os.symlink("log", "link")
            assert microgpt(capsys, *TRAIN, "--log", "link")[0] == 2
            while not os.path.exists("m"):
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=60)[1]
    steps = [json.loads(line)["step"] for line in (folder / "log").read_text().splitlines()]
    assert steps == [*range(1, mg.load("m").adam.step + 1)] and process.returncode == 130, err
    assert not os.path.exists("other")
    assert microgpt(capsys, *TRAIN, "--log", "log")[0] == 0  # its writer has gone
    assert len((folder / "log").read_bytes().splitlines()) == 6


@pytest.mark.parametrize("writers", [2, 3])
def test_whoever_reads_what_several_trainings_write_finds_a_whole_run(writers, folder):
    rng = random.Random(writers)
    processes = [
        training("--out", "m", "--save-every", rng.choice((1, 2)), "--seed", seed)
        for seed in range(writers)
    ]
    seen, reads = set(), 0
    try:
        for process in processes:
            until_it_trains(process)
        while not os.path.exists("m"):
            time.sleep(0.001)
        end = time.monotonic() + SECONDS
        # go on until a file of each writer was read, for a minute at most
        while time.monotonic() < end or len(seen) < writers and time.monotonic() < end + 60:
            run = mg.load("m")
            assert len(run.losses) == run.adam.step > 0
            seen.add(run.config.seed)
            reads += 1
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        ends = [process.communicate(timeout=60)[1] for process in processes]
    print(f"{writers} writers: {reads} reads")
    assert seen == set(range(writers)) and reads > 20
    assert [process.returncode for process in processes] == [130] * writers, ends
    assert not any(name.endswith(".part") for name in os.listdir())
    last = mg.load("m", NAMES)
    quiet = mg.prepare(NAMES, steps=10**9, seed=last.config.seed, **SIZES)
    with suppress(StopIteration):
        for _ in range(min(last.adam.step, 200)):
            mg.train_step(quiet)
    assert last.losses[:200] == quiet.losses[:200]
