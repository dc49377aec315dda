"""Unusual environments: locales, folders, streams; each in its own process."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import processes
import pytest

import microgpt as mg

PACKAGE = Path(mg.__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="written for POSIX")


# Their output is compared as bytes.
microgpt = partial(processes.microgpt, encoding=None, PYTHONPATH=str(PACKAGE))
TRAIN = ("train", "--steps", 2, "--samples", 1, "--out", os.devnull)


@pytest.fixture
def odd_folder(tmp_path):
    folder = tmp_path / "mit Leer zeichen und Ümläuten 名前"
    folder.mkdir()
    (folder / "Namen é.txt").write_text("émma\nolivia\nava\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "no_SUCH.locale"])
@pytest.mark.parametrize("utf8", ["0", "1"])
def test_any_locale_and_an_odd_path(odd_folder, locale, utf8):
    done = microgpt(
        *TRAIN, "--data", odd_folder / "Namen é.txt", "--log", odd_folder / "Verlauf ß.jsonl",
        cwd=odd_folder, LC_ALL=locale, LANG=locale, PYTHONUTF8=utf8, PYTHONCOERCECLOCALE="0",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"num docs: 3" in done.stdout
    assert len((odd_folder / "Verlauf ß.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16", "cp1252"])
def test_any_encoding_of_the_output(odd_folder, encoding):
    done = microgpt(*TRAIN, "--data", odd_folder / "Namen é.txt", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "num docs: 3" in done.stdout.decode(encoding)


def test_a_file_name_that_is_no_text(odd_folder):
    path = os.path.join(os.fsencode(odd_folder), b"\xff\xfe.txt")
    try:
        with open(path, "wb") as file:
            file.write(b"emma\nava\n")
    except OSError:
        pytest.skip("this file system refuses such a name")
    done = microgpt(*TRAIN, "--data", os.fsdecode(path))
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_package_runs_from_a_folder_with_an_odd_name(odd_folder):
    os.symlink(PACKAGE / "microgpt", odd_folder / "microgpt")
    done = microgpt(*TRAIN, cwd="/", PYTHONPATH=str(odd_folder))
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_home_and_without_any_other_variable():
    environment = {"PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "microgpt", *map(str, TRAIN)],
        capture_output=True, env=environment, timeout=300,
    )  # fmt: skip
    assert (done.returncode, processes.problems(done.stderr.decode())) == (0, "")


def test_a_cache_folder_that_cannot_be_made_is_one_line_and_exit_code_2(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    done = microgpt(
        *TRAIN, "--data", "makemore", MICROGPT_CACHE=str(blocked / "cache"), HOME="/nonexistent",
        https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9", no_proxy="",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"makemore" in done.stderr


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_stream_that_is_closed_from_the_start(stream):
    command = [sys.executable, "-m", "microgpt", *map(str, TRAIN)]
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {stream}{"<" if stream == 0 else ">"}&-', "sh", *command],
        capture_output=True, env={**os.environ, "PYTHONPATH": str(PACKAGE)}, timeout=300,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert done.returncode in ((0, 1) if stream == 1 else (0,))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_no_traceback():
    command = [sys.executable, "-m", "microgpt", *map(str, TRAIN)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(PACKAGE)}, timeout=300,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
