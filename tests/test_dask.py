"""Sweeps on a Dask cluster: a scheduler and two workers as processes of their own, over TCP.

Skipped without the extra `dask`, unless MICROGPT_REQUIRE_DASK is set.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from processes import microgpt, problems

import microgpt as mg

if importlib.util.find_spec("distributed") is None and not os.environ.get("MICROGPT_REQUIRE_DASK"):
    pytest.skip("the extra dask is not installed", allow_module_level=True)

SWEEP = [
    "sweep", "--data", "names.txt", "--n-head", "2", "--block-size", "4", "--json",
    "--steps", "10000" if mg.BACKEND == "cython" else "40", "--n-embd", "4,5",
    "--seed", "1,2,3,4,5,6",
]  # fmt: skip


def wait_for(what):
    end = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@contextmanager
def cluster(folder):
    """Start a scheduler and two workers; give the address and the three processes."""
    folder.mkdir()
    file = folder / "scheduler.json"

    def dask(*arguments):
        command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
        with open(folder / "log", "a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    processes = []
    try:
        processes.append(dask("scheduler", "--host", "127.0.0.1", "--port", "0",
                              "--scheduler-file", str(file)))  # fmt: skip
        wait_for(lambda: file.exists() and file.read_text().endswith("}"))
        address = json.loads(file.read_text())["address"]
        for _ in range(2):
            processes.append(dask("worker", address, "--nthreads", "1", "--no-nanny",
                                  "--local-directory", str(folder)))  # fmt: skip
        yield address, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def started(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "microgpt", *arguments], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The JSON from one process."""
    folder = with_names(tmp_path_factory.mktemp("expected"))
    done = microgpt(*SWEEP, "--jobs", "1", cwd=folder)
    assert done.returncode == 0 and done.stdout.count('"error": "n_embd must') == 6
    return done.stdout


def with_names(folder):
    (folder / "names.txt").write_text("\n".join(mg.load_documents()[:60]))
    return folder


def test_the_table_of_a_cluster_is_that_of_one_process(expected, tmp_path):
    code = f"""
import microgpt as mg
from distributed import Client
with Client(ADDRESS) as client:
    docs = mg.load_documents("names.txt")
    grid = {{"n_head": 2, "block_size": 4, "steps": {SWEEP[9]}, "n_embd": [4, 5],
             "seed": [1, 2, 3, 4, 5, 6]}}
    executor = client.get_executor()
    print(mg.sweep(docs, grid, executor, jobs=2).to_json())
"""
    with_names(tmp_path)
    with cluster(tmp_path / "dask") as (address, _):
        done = started(*SWEEP, "--scheduler", address, "--out", "command", cwd=tmp_path)
        out, err = done.communicate(timeout=120)
        python = subprocess.run(
            [sys.executable, "-c", code.replace("ADDRESS", repr(address))], cwd=tmp_path,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, err
    assert out.replace("command/", "runs/") == expected
    assert python.stdout == expected, python.stderr


def test_workers_and_the_scheduler_are_killed_and_nothing_is_lost(expected, tmp_path):
    runs = with_names(tmp_path) / "runs"
    with cluster(tmp_path / "first") as (address, processes):
        sweep = started(*SWEEP, "--scheduler", address, cwd=tmp_path)
        wait_for(lambda: [*runs.glob("trial-*")])
        processes[1].kill()  # its trials go to the other worker
        wait_for(lambda: len([*runs.glob("trial-*")]) > 1 or sweep.poll() is not None)
        processes[0].kill()
        out, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 1 and out == ""
    assert re.fullmatch(r"microgpt: a task came to nothing .*; the same sweep, given again, goes "
                        r"on\n", problems(err))  # fmt: skip
    before = {path: path.read_bytes() for path in runs.iterdir()}
    assert before and all(mg.load(path).losses for path in before)
    with cluster(tmp_path / "second") as (address, _):
        again = started(*SWEEP, "--scheduler", address, cwd=tmp_path)
        out, err = again.communicate(timeout=120)
    assert (again.returncode, out) == (0, expected), err
    done = [path for path in before if mg.load(path).config.steps == mg.load(path).adam.step]
    assert len(done) >= 1


@pytest.mark.parametrize(("address", "code", "message"), [
    ("tcp://127.0.0.1:1", 1, "tcp://127.0.0.1:1: no scheduler answers"),
    ("no address", 2, "a scheduler is given as tcp://host:8786, not 'no address'"),
])  # fmt: skip
def test_no_scheduler_is_one_line(address, code, message, tmp_path):
    process = started(*SWEEP, "--scheduler", address, cwd=with_names(tmp_path))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    assert message in err and err.count("\n") == 1
