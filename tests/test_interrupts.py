"""Ctrl-C: where it may end the work, and that what belongs together is done together."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import microgpt as mg
from microgpt import adam, training

DOCS = ["emma", "olivia", "ava", "isabella", "sophia", "mia"]


def state(run):
    """Return all that a step changes."""
    matrices = [*run.adam.params, *run.adam.m, *run.adam.v]
    return [matrix.tolist() for matrix in matrices], run.adam.step, list(run.losses)


def gradients(run):
    return [entry for matrix in run.adam.params for row in matrix.grad.tolist() for entry in row]


def small_run(**options):
    sizes = {"n_embd": 4, "n_head": 2, "block_size": 4, "steps": 50, **options}
    return mg.prepare(DOCS, **sizes)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def pythons_handler():
    """Have Ctrl-C raise KeyboardInterrupt, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_at_the_update_waits_until_the_step_is_whole(monkeypatch, when):
    interrupted, whole = small_run(), small_run()
    for run in (interrupted, whole):
        mg.train_step(run)
    update = adam.adam_update

    def with_ctrl_c(*args):
        if when == "before":
            ctrl_c()
        update(*args)
        if when == "after":
            ctrl_c()

    monkeypatch.setattr(adam, "adam_update", with_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        mg.train_step(interrupted)
    monkeypatch.undo()
    mg.train_step(whole)
    assert state(interrupted) == state(whole)
    assert not any(gradients(interrupted))
    assert mg.train_step(interrupted) == mg.train_step(whole)
    assert state(interrupted) == state(whole)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_at_backward_leaves_the_run_as_it_was(monkeypatch, when):
    interrupted, whole = small_run(), small_run()
    loss_of = training._loss

    def with_ctrl_c(*args):
        loss, backward = loss_of(*args)

        def interrupted_backward():
            if when == "after":
                backward()
            ctrl_c()

        return loss, interrupted_backward

    before = state(interrupted)
    monkeypatch.setattr(training, "_loss", with_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        mg.train_step(interrupted)
    monkeypatch.undo()
    assert state(interrupted) == before
    assert not any(gradients(interrupted))
    for _ in range(3):
        assert mg.train_step(interrupted) == mg.train_step(whole)
    assert state(interrupted) == state(whole)


def test_an_error_in_the_update_still_counts_no_step(monkeypatch):
    run = small_run()
    before = state(run)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(adam, "adam_update", fail)
    with pytest.raises(MemoryError):
        mg.train_step(run)
    assert state(run) == before and not any(gradients(run))


def test_a_handler_of_the_users_own_is_called_once_and_kept():
    run, calls = small_run(), []
    handler = lambda *args: calls.append(args)  # noqa: E731
    before = signal.signal(signal.SIGINT, handler)
    try:
        with training._Uninterrupted():
            ctrl_c()
            ctrl_c()
            assert calls == []
        assert len(calls) == 1 and calls[0][0] == signal.SIGINT
        mg.train_step(run)
        assert signal.getsignal(signal.SIGINT) is handler
        for other in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGINT, other)
            mg.train_step(run)
            assert signal.getsignal(signal.SIGINT) is other
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(calls) == 1


def test_a_thread_trains_without_touching_the_handler():
    run, seen = small_run(), []

    def work():
        mg.train_step(run)
        with training._Uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler] and run.adam.step == 1


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_at_any_moment_leaves_a_run_that_goes_on_as_if_nothing_had_been():
    """From outside, at moments spread over many steps; the numbers must be those of a quiet run."""
    steps = 3000 if mg.BACKEND == "cython" else 40
    run, quiet = small_run(steps=steps), small_run(steps=steps)
    while quiet.adam.step < steps:
        mg.train_step(quiet)
    waiting = 0.001 if mg.BACKEND == "cython" else 0.01
    while run.adam.step < steps:
        helper = threading.Timer(waiting, os.kill, (os.getpid(), signal.SIGINT))
        try:
            helper.start()
            while run.adam.step < steps:
                mg.train_step(run)
            helper.join()
            time.sleep(0.001)  # an interrupt that is on its way comes here
        except KeyboardInterrupt:
            helper.join()
        assert len(run.losses) == run.adam.step
        assert not any(gradients(run))
    assert state(run) == state(quiet)


CHAIN = """
import signal, time
signal.signal(signal.SIGALRM, signal.default_int_handler)
x = core.Value(1.0)
y = x
for _ in range({n}):
    y = y * 1.0
for attempt in range(30):
    x.grad = 0.0
    signal.setitimer(signal.ITIMER_REAL, 0.002 * (1 + attempt % 10))  # from the system: no thread
    try:
        y.backward()
        time.sleep(1)
    except KeyboardInterrupt:
        if x.grad == 0.0:
            break
else:
    raise SystemExit("no interrupt ended the sort")
x.grad = 0.0
y.backward()
print(x.grad)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_long_sort_is_interrupted_and_the_graph_is_as_before(core):
    n = 3_000_000 if core.__name__.endswith("._core") else 150_000
    code = f"import {core.__name__} as core\n" + textwrap.dedent(CHAIN.format(n=n))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_handler_that_runs_in_the_middle_of_a_sort_may_use_the_graph(compiled):
    x = compiled.Value(1.0)
    y = x
    for _ in range(500_000):
        y = y * 1.0
    met = []

    def handler(*_):
        (x * 2.0).backward()
        y.__init__(5.0)
        try:
            top.backward()
        except RuntimeError as error:
            met.append(str(error))

    top = y * 1.0
    signal.signal(signal.SIGALRM, handler)
    for _ in range(100):  # until one comes during a sort
        x.grad = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0.003)
        top.backward()
        time.sleep(0.02)
        assert x.grad in (3.0, 4.0)  # 4: it came after backward and ran its own as well
        if met:
            break
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert met and "differentiating" in met[0]


def test_a_copy_of_an_interrupted_run_goes_on_alike(monkeypatch):
    run = small_run()
    mg.train_step(run)
    monkeypatch.setattr(training, "_loss", lambda *_: (1.0, ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        mg.train_step(run)
    monkeypatch.undo()
    other = copy.deepcopy(run)
    assert mg.train_step(run) == mg.train_step(other)


def test_an_interrupted_step_on_a_stream_draws_the_same_windows_again(monkeypatch):
    text = ["abcabcaabbcc" * 9]
    expected = mg.train(text, steps=4, split="stream", block_size=4).losses
    run = mg.prepare(text, steps=4, split="stream", block_size=4)
    mg.train_step(run)
    with monkeypatch.context() as patch:
        patch.setattr("microgpt.training._loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mg.train_step(run)
    for _ in range(3):
        mg.train_step(run)
    assert run.losses == expected


def interrupted(*_):
    raise KeyboardInterrupt
