"""Sweeps: the same table from every executor, nothing lost and nothing done twice.

Dask is in test_dask.py. MICROGPT_TRIALS: how many short trials the soak does.
"""

import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import sweep_workers
from checkpoint_files import numbers
from processes import microgpt, problems, run

import microgpt as mg
from microgpt import executors, sweeps, trials
from microgpt.cli import run_command
from microgpt.grid import plan

DOCS = mg.load_documents()[:60]
DATA = mg.checksum(DOCS)
SMALL = {"n_embd": 4, "n_head": 2, "block_size": 4, "steps": 4}
GRID = {**SMALL, "lr": [0.01, 0.1], "n_embd": [4, 5, 8], "seed": [1, 2]}
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def table(found, folder):
    """Return all that a sweep found, to the last bit, whatever its folder is called."""
    return found.to_json().replace(str(folder), "FOLDER"), str(found).replace(str(folder), "FOLDER")


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


class Recorded(Executor):
    """Do tasks here, and keep them, the replies, and how often the data was sent."""

    def __init__(self):
        self.tasks, self.sent = [], 0

    def submit(self, work, task):
        self.tasks.append([settings for settings, _ in pickle.loads(task)[5]])
        self.sent += pickle.loads(task)[3] is not None
        future = Future()
        future.set_result(work(task))
        return future


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of GRID from one process, and its folder."""
    folder = tmp_path_factory.mktemp("expected")
    return table(mg.sweep(DOCS, GRID, out=folder, jobs=1), folder), folder


def test_a_trial_is_an_ordinary_run_with_an_ordinary_file(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(DOCS))
    docs = mg.load_documents(tmp_path / "names.txt")
    found = mg.sweep(docs, GRID, out=tmp_path / "runs", jobs=1)
    assert len(found.results) == 12 and len(found.failed) == 4
    for result in found.results:
        if result.error:
            assert result.settings["n_embd"] == 5 and result.path == ""
            assert result.error == "n_embd must be a multiple of n_head, not 5 with 2 heads"
            continue
        run = mg.load(result.path, DOCS)
        assert numbers(run) == numbers(mg.train(DOCS, **result.settings))
        assert (run.dataset, run.val_loss()) == (str(tmp_path / "names.txt"), result.val_loss)
        assert run.recent_loss == result.loss
    names = sorted(os.path.basename(r.path) for r in found.results if r.path)
    assert files(tmp_path / "runs") == names


def test_the_same_table_from_one_process_processes_and_threads(expected, tmp_path):
    for name, executor in [("pool", None), ("threads", ThreadPoolExecutor(3)),
                           ("recorded", Recorded())]:  # fmt: skip
        folder = tmp_path / name
        found = mg.sweep(DOCS, GRID, executor, out=folder, jobs=2)
        assert table(found, folder) == expected[0]
        assert files(folder) == files(expected[1])
        if executor:
            executor.shutdown()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_pool_of_ones_own(method, expected, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        found = mg.sweep(DOCS, GRID, pool, out=tmp_path, jobs=2)
    assert table(found, tmp_path) == expected[0]


def test_no_number_depends_on_the_order_or_on_the_other_trials(expected, tmp_path):
    grid = {**GRID, "lr": [0.1, 0.01], "seed": [2, 3, 1]}
    found = mg.sweep(DOCS, grid, out=tmp_path, jobs=1)
    theirs = {c["file"]: c["val_loss"] for row in json.loads(expected[0][0])["configurations"]
              for c in row["trials"]}  # fmt: skip
    ours = {r.path.replace(str(tmp_path), "FOLDER"): r.val_loss for r in found.results}
    assert theirs.items() <= ours.items()


def test_the_validation_documents_are_the_same_for_every_trial(expected):
    paths = [path for path in Path(expected[1]).iterdir()]
    validations = {tuple(mg.load(path, DOCS).validation) for path in paths}
    assert len(paths) == 8 and len(validations) == 1


def test_finished_trials_are_skipped_and_half_done_ones_go_on(tmp_path):
    recorded = Recorded()
    grid = {**SMALL, "steps": 6, "seed": [1, 2, 3]}
    first, second, third = plan(grid, DATA)
    half = mg.prepare(DOCS, **second.settings)
    for _ in range(3):
        mg.train_step(half)
    mg.save(half, tmp_path / second.file)
    full = mg.train(DOCS, **third.settings)  # by hand: its file notes no outcome
    mg.save(full, tmp_path / third.file)
    found = mg.sweep(DOCS, grid, recorded, out=tmp_path, jobs=1)
    assert [result.error for result in found.results] == ["", "", ""]
    for result in found.results:
        run = mg.load(result.path, DOCS)
        assert numbers(run) == numbers(mg.train(DOCS, **result.settings))
        assert run.val_loss() == result.val_loss
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = Recorded()
    assert table(mg.sweep(DOCS, grid, again, out=tmp_path), "") == table(found, "")
    assert again.tasks == [] and {path: path.read_bytes() for path in before} == before
    (tmp_path / first.file).unlink()
    assert table(mg.sweep(DOCS, grid, again, out=tmp_path), "") == table(found, "")
    assert {s["seed"] for task in again.tasks for s in task} == {1}


def test_a_long_trial_is_saved_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "SLICE_SECONDS", 0.0)  # after each step
    steps = []
    write = sweeps.Folder.write

    def spied(folder, trial, content):
        write(folder, trial, content)
        steps.append(mg.load(tmp_path / trial.file).adam.step)

    monkeypatch.setattr(sweeps.Folder, "write", spied)
    [result] = mg.sweep(DOCS, SMALL, out=tmp_path, jobs=1).results
    assert steps == [1, 2, 3, 4]
    assert numbers(mg.load(result.path)) == numbers(mg.train(DOCS, **result.settings))


def test_a_task_has_many_short_trials_and_hands_back_what_takes_too_long(tmp_path, monkeypatch):
    grid = {**SMALL, "steps": 0, "seed": range(16)}
    recorded = Recorded()
    mg.sweep(DOCS, grid, recorded, out=tmp_path / "a", jobs=1)
    assert len(recorded.tasks) < 10 and recorded.sent == 1
    monkeypatch.setattr(trials, "TASK_SECONDS", 0.0)  # one trial, whatever was asked
    recorded = Recorded()
    mg.sweep(DOCS, grid, recorded, out=tmp_path / "b", jobs=1)
    assert len(recorded.tasks) >= 16 and files(tmp_path / "a") == files(tmp_path / "b")


def test_a_trial_of_no_steps_is_one_too(tmp_path):
    found = mg.sweep(DOCS, {**SMALL, "steps": 0}, out=tmp_path, jobs=1)
    assert found.best.val_loss == mg.prepare(DOCS, **found.best.settings).val_loss()
    assert found.best.loss is None and '"loss": null' in found.to_json()
    assert mg.sweep(DOCS, {**SMALL, "steps": 0}, out=tmp_path, jobs=1).results == found.results
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("outcome", [
    "[]", "{}", '{"error": 3}', '{"error": "", "val_loss": 1e999, "loss": 2.0}',
    '{"error": "", "val_loss": "2", "loss": 2.0}', '{"error": "", "val_loss": 2.0, "loss": true}',
])  # fmt: skip
def test_an_outcome_that_is_none_is_not_believed(outcome, tmp_path):
    [trial] = plan(SMALL, DATA)
    done = mg.train(DOCS, **trial.settings)
    (tmp_path / trial.file).write_bytes(trials.to_bytes(done, outcome=outcome))
    found = mg.sweep(DOCS, SMALL, out=tmp_path, jobs=1)
    assert found.best.val_loss == done.val_loss() and len(files(tmp_path)) == 2


def test_a_trial_that_diverges_is_a_row_with_its_reason(tmp_path):
    grid = {**SMALL, "lr": [0.01, 1e300], "seed": [1, 2], "steps": 5}
    recorded = Recorded()
    found = mg.sweep(DOCS, grid, recorded, out=tmp_path)
    assert [bool(result.error) for result in found.results] == [False, False, True, True]
    assert all(result.val_loss is None is result.loss for result in found.failed)
    assert re.search(r"failed: lr 1e\+300, seed 1, 2: .+", str(found)) or "seed 2" in str(found)
    assert str(found).splitlines()[0].split()[:2] == ["rank", "val"]
    assert found.best.settings["lr"] == 0.01
    again = mg.sweep(DOCS, grid, recorded, out=tmp_path)
    assert table(again, "") == table(found, "")


def test_all_trials_may_fail(tmp_path):
    found = mg.sweep(["a", "b"], {**SMALL, "lr": 1e300, "steps": 9, "val_fraction": 0.5},
                     out=tmp_path, jobs=1)  # fmt: skip
    assert found.best is None and len(found.failed) == 1
    assert str(found).startswith("failed: seed 42: ")
    assert json.loads(found.to_json())["best"] is None
    found = mg.sweep(["a", "b"], {**SMALL, "val_fraction": 0.9}, out=tmp_path, jobs=1)
    assert found.failed[0].error == "val_fraction 0.9 of 2 leaves nothing to train on"


def test_other_data_of_the_same_name_is_another_trial(tmp_path):
    one = mg.sweep(DOCS, SMALL, out=tmp_path, jobs=1)
    two = mg.sweep(DOCS[1:], SMALL, out=tmp_path, jobs=1)
    assert one.best.path != two.best.path and one.best.val_loss != two.best.val_loss
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut off", "another run", "no outcome", "text", "a folder"])
def test_a_file_that_is_not_its_trial_is_renamed_and_the_trial_done(damage, tmp_path, capsys):
    [first, second] = mg.sweep(DOCS, {**SMALL, "seed": [1, 2]}, out=tmp_path, jobs=1).results
    path = Path(first.path)
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        path.write_bytes({
            "cut off": whole[:-8], "another run": Path(second.path).read_bytes(), "text": b"lr",
            "no outcome": whole.replace(b'error\\": \\"\\"', b'error\\":\\"x"\\'),
        }[damage])  # fmt: skip
    found = mg.sweep(DOCS, {**SMALL, "seed": [1, 2]}, out=tmp_path, jobs=1)
    assert found.results == [first, second] and len(files(tmp_path)) == 3
    assert numbers(mg.load(path)) == numbers(mg.train(DOCS, **first.settings))
    assert Path(f"{path}.damaged").exists()
    assert re.fullmatch(r"microgpt: .+: renamed to \S+damaged, and done again\n",
                        capsys.readouterr().err)  # fmt: skip


def test_numbers_of_a_half_done_trial_that_are_none_are_found_by_the_worker(tmp_path, capsys):
    [trial] = plan(SMALL, DATA)
    half = mg.prepare(DOCS, **trial.settings)
    mg.train_step(half)
    content = trials.to_bytes(half)
    (tmp_path / trial.file).write_bytes(content[:-8] + b"\xff" * 8)  # nan
    [result] = mg.sweep(DOCS, SMALL, out=tmp_path, jobs=1).results
    assert numbers(mg.load(result.path)) == numbers(mg.train(DOCS, **result.settings))
    assert "not finite: renamed to" in capsys.readouterr().err


def test_files_of_others_in_the_folder_stay_as_they_are(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "trial-0123456789abcdef.safetensors").write_text("mine too")
    found = mg.sweep(DOCS, SMALL, out=tmp_path, jobs=1)
    assert len(files(tmp_path)) == 3 and found.best
    assert (tmp_path / "trial-0123456789abcdef.safetensors").read_text() == "mine too"


@posix
def test_one_sweep_at_a_time_works_in_a_folder(tmp_path):
    with sweeps.Folder(str(tmp_path)), pytest.raises(ValueError, match="another sweep is at work"):
        mg.sweep(DOCS, SMALL, out=tmp_path, jobs=1)
    assert mg.sweep(DOCS, SMALL, out=tmp_path, jobs=1).best


def test_a_full_disk_ends_the_sweep_and_leaves_whole_files(tmp_path, monkeypatch):
    written = []

    def full(path, chunks):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        write_whole(path, chunks)

    write_whole = sweeps.write_whole
    monkeypatch.setattr(sweeps, "write_whole", full)
    grid = {**SMALL, "seed": range(5)}
    with pytest.raises(OSError, match=r"trial-\w+\.safetensors: No space left on device"):
        mg.sweep(DOCS, grid, out=tmp_path, jobs=1)
    assert len(files(tmp_path)) == 2 and all(mg.load(path).losses for path in tmp_path.iterdir())
    monkeypatch.undo()
    assert len(mg.sweep(DOCS, grid, out=tmp_path, jobs=1).results) == 5


@pytest.mark.parametrize(("arguments", "error"), [
    (("emma", SMALL), TypeError), (([], SMALL), ValueError), ((["a", ""], SMALL), ValueError),
    ((DOCS, {**SMALL, "jobs": 2}), ValueError),
])  # fmt: skip
def test_bad_arguments_are_refused_before_a_folder_is_made(arguments, error, tmp_path):
    with pytest.raises(error):
        mg.sweep(*arguments, out=tmp_path / "new")
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        mg.sweep(DOCS, SMALL, out=tmp_path, jobs=0)
    assert not (tmp_path / "new").exists()


@posix
def test_a_trial_whose_worker_dies_is_done_by_another(tmp_path, monkeypatch, expected):
    """One that always kills its worker is a row; those that were beside it are not blamed."""
    monkeypatch.setattr(executors, "_start_worker", sweep_workers.start)
    grid = {**SMALL, "seed": [1, 2, sweep_workers.DEADLY, sweep_workers.CLUMSY, 3, 4, 5, 6, 7, 8]}
    found = mg.sweep(DOCS, grid, out=tmp_path, jobs=2)
    blamed = {result.settings["seed"]: result.error for result in found.failed}
    assert sweep_workers.DEADLY in blamed and blamed.keys() <= {666, 667}
    assert blamed[666] == "its worker was killed 3 times, by a signal or for want of memory"
    fresh = mg.sweep(DOCS, grid, out=tmp_path / "fresh", jobs=1)
    losses = {result.id: result.val_loss for result in fresh.results}
    assert all(losses[result.id] == result.val_loss for result in found.results if not result.error)


@pytest.mark.parametrize(("start", "message"), [
    (sweep_workers.of_another_version, "has microgpt 0.0.1, core cython; the sweep is of microgpt"),
    (sweep_workers.dead_at_once, "the worker processes die at once"),
])
def test_workers_that_cannot_be_used_end_the_sweep(start, message, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_start_worker", start)
    monkeypatch.setattr(sweeps, "ATTEMPTS", 2)
    with pytest.raises(mg.WorkerError, match=message):
        mg.sweep(DOCS, {**SMALL, "seed": [1, 2, 3]}, out=tmp_path, jobs=2)
    assert files(tmp_path) == []


def test_an_executor_that_fails_ends_the_sweep(tmp_path):
    class Failing(Recorded):
        def submit(self, work, task):
            future = Future()
            future.set_exception(ModuleNotFoundError("no module named microgpt"))
            return future

    with pytest.raises(mg.WorkerError, match="ModuleNotFoundError: no module named microgpt"):
        mg.sweep(DOCS, SMALL, Failing(), out=tmp_path)
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(mg.WorkerError, match="takes no trials"):
        mg.sweep(DOCS, SMALL, closed, out=tmp_path)


@pytest.mark.parametrize("executor", [2, "tcp://host:8786"])
def test_what_is_no_executor_is_refused(executor, tmp_path):
    with pytest.raises(TypeError, match=r"executor must be .*, not (int|str)"):
        mg.sweep(DOCS, SMALL, executor, out=tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_is_sent_again_is_another():
    assert trials.task_of([], DATA, "", None) != trials.task_of([], DATA, "", None)


def test_a_worker_checks_what_it_is_sent():
    damaged = pickle.loads(trials.work(trials.task_of([], DATA, "", DOCS[1:])))
    assert damaged.refused.startswith("the data was damaged on its way")
    missing = pickle.loads(trials.work(trials.task_of([], mg.checksum(["x"]), "", None)))
    assert missing.missing and not missing.refused


def test_workers_get_the_data_once(tmp_path):
    """Of our pool when they start; of another executor when they say that they lack it."""
    recorded = Recorded()
    trials._documents.clear()
    mg.sweep(DOCS, {**SMALL, "steps": 0, "seed": range(12)}, recorded, out=tmp_path, jobs=1)
    assert recorded.sent == 1 and len(recorded.tasks) > 3
    recorded = Recorded()
    grid = {**SMALL, "steps": 0, "seed": range(100, 112)}
    planned = plan(grid, DATA)
    with sweeps.Folder(str(tmp_path)) as folder:
        running = sweeps._Running(planned, DOCS, folder, recorded, 1)
        running._owed = 0
        trials._documents.clear()
        running.finish(mg.progress.Progress(0, 12, False))
    assert recorded.sent == 1 and len(running.results) == 12


def test_a_script_needs_no_guard(tmp_path):
    """Spawned workers would run it again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import microgpt as mg\n"
        "print('once')\n"
        f"found = mg.sweep(mg.load_documents()[:60], {{**{SMALL}, 'seed': [1, 2]}}, jobs=2)\n"
        "print(len(found.results))\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert (done.stdout, done.stderr) == ("once\n2\n", "")
    assert len(files(tmp_path / "runs")) == 2


def test_the_import_of_the_package_and_of_the_commands_needs_no_processes():
    code = "import microgpt.cli, sys; print([m for m in sys.modules if 'multiprocessing' in m])"
    assert run(code).stdout == "[]\n"


LONG = [
    "sweep", "--data", "names.txt", "--n-embd", "4", "--n-head", "2", "--block-size", "4",
    "--steps", "20000" if mg.BACKEND == "cython" else "40", "--seed", "1,2,3,4", "--jobs", "2",
    "--json",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The JSON of a sweep of some seconds that is not disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "names.txt").write_text("\n".join(DOCS))
    done = microgpt(*LONG, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def started(folder):
    """Start the long sweep in a folder, in a group of its own; wait for its first files."""
    (folder / "names.txt").write_text("\n".join(DOCS))
    process = subprocess.Popen([sys.executable, "-m", "microgpt", *LONG], cwd=folder, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)  # fmt: skip
    wait_for(lambda: list(folder.glob("runs/*.safetensors")))
    return process


def wait_for(what):
    end = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [pid for pid in map(int, path.read_text().split())
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip


@posix
def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(undisturbed, tmp_path):
    process = started(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert re.fullmatch(r"microgpt: interrupted: \d of 4 trials are done, in runs; the same sweep, "
                        r"given again, goes on\n", problems(err))  # fmt: skip
    runs = [mg.load(path) for path in (tmp_path / "runs").iterdir()]
    assert runs and all(run.adam.step > 0 for run in runs)  # and no .part
    again = microgpt(*LONG, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, undisturbed)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="children are found in /proc")
def test_a_killed_worker_or_sweep_changes_nothing(undisturbed, tmp_path):
    process = started(tmp_path)
    os.kill(children(process)[0], signal.SIGKILL)
    wait_for(lambda: children(process))
    process.kill()
    workers = children(process)
    process.communicate(timeout=60)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))
    again = microgpt(*LONG, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, undisturbed)


def test_ctrl_c_in_one_process_saves_the_step_that_was_taken(tmp_path, monkeypatch):
    step, taken = mg.training.train_step, []

    def interrupted(run):
        taken.append(run)
        if len(taken) == 7:
            signal.raise_signal(signal.SIGINT)
        return step(run)

    monkeypatch.setattr(mg.training, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="1 of 3 trials are done"):
        mg.sweep(DOCS, {**SMALL, "seed": [1, 2, 3]}, out=tmp_path, jobs=1)
    assert sorted(mg.load(path).adam.step for path in tmp_path.iterdir()) == [3, 4]


def test_the_command_prints_the_table_and_how_to_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("\n".join(DOCS))
    command = ["sweep", "--data", "names.txt", "--n-embd", "4,5", "--n-head", "2", "--steps", "3",
               "--lr", "0.01,0.1", "--seed", "1,2", "--jobs", "1", "--out", "a b"]  # fmt: skip
    assert run_command(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1:3] == ["data: names.txt", "trials: 8"]
    assert out[3].split() == ["rank", "val", "loss", "spread", "seeds", "lr", "n_embd", "best",
                              "file"]  # fmt: skip
    assert [line.split()[0] for line in out[4:]] == ["1", "2", "failed:", "failed:", "sample"]
    last = re.fullmatch(r"sample from the best: microgpt sample '(.*)'", out[-1])[1]
    assert run_command(["sample", last, "-n", "1", "--new"]) == 0  # the file names its data
    capsys.readouterr()
    assert run_command([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == last and len(found["configurations"]) == 4
    best = found["configurations"][0]
    assert len(best["trials"]) == 2 and best["settings"]["val_fraction"] == 0.1
    losses = [trial["val_loss"] for trial in best["trials"]]
    assert best["val_loss"] == sum(losses) / 2
    assert best["spread"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    assert run_command([*command, "--json", "--plot", "p.png", "--trials", "2"]) == 0
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--lr", "0.1,x"], "takes values of float, separated by commas: '0.1,x'"),
    (["--lr", ""], "takes values of float"),
    (["--lr", "3..1"], "a range needs 0 < low <= high"),
    (["--lr", "1..3"], "lr is a range, 1.0..3.0"),
    (["--trials", "0"], "must be an int of at least 1"),
    (["--jobs", "x"], "must be an int of at least 1"),
    (["--n-embd", "5"], "n_embd must be a multiple of n_head, not 5 with 4 heads"),
    (["--val-fraction", "0"], "val_fraction must not be 0"),
    (["--val-seed", "1,2"], "invalid int value: '1,2'"),
    (["--data", "missing.txt"], "missing.txt: No such file or directory"),
    (["--data", "bytes.txt"], "not UTF-8 text"),
    (["--out", "bytes.txt"], "bytes.txt: File exists"),
    (["--out", "no/\0"], "no folder can have this name"),
    (["--out", ""], "no folder can have this name"),
    (["--plot", "p.xyz"], "not p.xyz"),
    (["--plot", "no/p.png"], "its folder does not exist"),
    (["--learning-rate", "1"], "did you mean --lr?"),
])  # fmt: skip
def test_wrong_use_of_the_command_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bytes.txt").write_bytes(b"\xff\xfe\xfa")
    assert run_command(["sweep", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_command_of_which_all_trials_fail_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("two.txt").write_text("a\nb")
    command = ["sweep", "--data", "two.txt", "--val-fraction", "0.9", "--jobs", "1"]
    assert run_command(command) == 1
    out, err = capsys.readouterr()
    assert "failed: seed 42: val_fraction 0.9" in out and err == "microgpt: all trials failed\n"


def test_progress_shows_the_best_so_far(tmp_path, capsys):
    grid = {**SMALL, "lr": [0.01, 0.1], "val_fraction": 0.2, "n_embd": [4, 5]}
    found = mg.sweep(DOCS, grid, out=tmp_path, jobs=1, progress=True)
    err = capsys.readouterr().err
    best, lr = found.best, found.best.settings["lr"]
    assert "4/4" in err and "trials" in err
    assert f"best {best.val_loss:.4f}: lr {lr}, n_embd 4, seed 42 | 2 failed" in err


def test_a_sweep_in_threads_while_another_thread_trains(tmp_path):
    """Nothing of a sweep is global but the documents, which are known by their checksum."""
    found = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(
            mg.sweep(DOCS[i:], SMALL, ThreadPoolExecutor(2), out=tmp_path / str(i), jobs=2)))
        for i in range(3)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({sweep.best.val_loss for sweep in found}) == 3


@pytest.mark.skipif("MICROGPT_TRIALS" not in os.environ, reason="a soak: .ci/soak sweeps")
def test_many_short_trials(tmp_path):
    """Print what planning, running, summarising and giving the command again cost for each."""
    n = int(os.environ["MICROGPT_TRIALS"])
    docs, grid = mg.load_documents(), {**SMALL, "steps": 20, "seed": range(n)}
    start = time.perf_counter()
    planned = plan(grid, mg.checksum(docs))
    times = [time.perf_counter() - start]
    for jobs in (2, 2):
        start = time.perf_counter()
        with sweeps.Folder(str(tmp_path)) as folder:
            found = sweeps.run_trials(planned, docs, folder, None, jobs, False)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    text = str(found)
    times.append(time.perf_counter() - start)
    names = "planned", "run", "skipped", "in a table"
    size = sum(path.stat().st_size for path in tmp_path.iterdir()) / n
    assert len(found.results) == n and not found.failed and len(text.splitlines()) == 2
    parts = [f"{name} {1e3 * t / n:.3f} ms" for name, t in zip(names, times, strict=True)]
    print(f"{n} trials of {grid['steps']} steps, each {', '.join(parts)}, {size:.0f} bytes")
