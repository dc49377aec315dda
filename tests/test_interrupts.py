"""Ctrl-C: where it may end the work, and that steps are atomic."""

import copy
import os
import signal
import threading
import time

import pytest
from ops import is_compiled
from processes import output_of

import microgpt as mg
from microgpt import adam, cli, training

DOCS = ["emma", "olivia", "ava", "isabella", "sophia", "mia"]


def state(run):
    """Return all that a step changes."""
    matrices = [*run.adam.params, *run.adam.m, *run.adam.v]
    return [matrix.tolist() for matrix in matrices], run.adam.step, list(run.losses)


def gradients(run):
    return [entry for matrix in run.adam.params for row in matrix.grad.tolist() for entry in row]


def small_run(**options):
    return mg.prepare(DOCS, **{"n_embd": 4, "n_head": 2, "block_size": 4, "steps": 50, **options})


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def pythons_handler():
    """Have Ctrl-C raise KeyboardInterrupt, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def with_ctrl_c(f, when, count=1):
    """Return f with interrupts right before or after what it does."""

    def interrupted(*args):
        for _ in range(count if when == "before" else 0):
            ctrl_c()
        result = f(*args)
        for _ in range(count if when == "after" else 0):
            ctrl_c()
        return result

    return interrupted


# One step, in a hand-written loop


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["adam_minimize", "linear_decay", "packed_loss"])
def test_a_step_that_is_interrupted_is_taken_whole_or_not_at_all(monkeypatch, when, name):
    run, quiet = small_run(), small_run()
    for _ in range(2):
        assert mg.train_step(run) == mg.train_step(quiet)
    place = {"adam_minimize": adam, "linear_decay": training, "packed_loss": mg.GPT}[name]
    monkeypatch.setattr(place, name, with_ctrl_c(getattr(place, name), when))
    monkeypatch.setattr(mg.GPT, "replayable", False)
    with pytest.raises(KeyboardInterrupt):
        mg.train_step(run)
    monkeypatch.undo()
    assert run.adam.step == (3 if (name, when) == ("adam_minimize", "after") else 2)
    assert not any(gradients(run))
    while quiet.adam.step < run.adam.step:
        mg.train_step(quiet)
    for _ in range(3):
        assert mg.train_step(run) == mg.train_step(quiet)
    assert state(run) == state(quiet)


def test_an_error_in_the_update_takes_no_step(monkeypatch):
    run = small_run()
    before = state(run)[:2]

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(adam, "adam_minimize", fail)
    with pytest.raises(MemoryError):
        mg.train_step(run)
    monkeypatch.undo()
    assert state(run)[:2] == before and not any(gradients(run))
    mg.finish(run)
    assert state(run) == state(mg.finish(small_run()))


def test_the_update_of_the_pure_core_is_one_call_that_no_handler_interrupts():
    """Every change is made by setattr, called from C: a handler runs before or after them."""
    from microgpt import _core_py as core

    seen = []

    class Watched:
        params, m, v = ([core.Matrix.of([[1.0, 2.0]])] for _ in range(3))
        beta1, beta2, eps = 0.85, 0.99, 1e-8

        def __setattr__(self, name, value):
            seen.append((name, value, self.params[0].tolist(), self.m[0].tolist()))

    Watched.step = 3
    core.adam_update(Watched(), 0.1)
    [(name, value, params, m)] = seen  # the count comes first, so that it can be refused
    assert (name, value) == ("step", 4)
    assert params == m == [[1.0, 2.0]] != Watched.params[0].tolist()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("loop", ["train_step", "finish", "steps"])
def test_ctrl_c_at_any_moment_leaves_a_run_that_goes_on_as_if_nothing_had_been(loop):
    """From outside, at moments spread over many steps; the numbers are those of a quiet run."""
    n = 20_000 if mg.BACKEND == "cython" else 40
    run, quiet = small_run(steps=n), mg.finish(small_run(steps=n))
    waiting = 0.001 if mg.BACKEND == "cython" else 0.01

    def train():
        if loop == "finish":
            mg.finish(run)
        elif loop == "steps":
            for metrics in mg.steps(run):
                assert metrics["step"] == run.adam.step
        while run.adam.step < n:
            mg.train_step(run)

    interrupts = 0
    while run.adam.step < n:
        helper = threading.Timer(waiting, os.kill, (os.getpid(), signal.SIGINT))
        try:
            helper.start()
            train()
            helper.join()
            time.sleep(0.001)  # a pending interrupt comes here
        except KeyboardInterrupt:
            helper.join()
            interrupts += 1
        assert len(run.losses) in (run.adam.step, run.adam.step + 1)  # that of the next one
        assert not any(gradients(run))
    assert interrupts > 3
    assert state(run) == state(quiet)


# The loop of steps, which handles Ctrl-C


def test_an_interrupt_in_the_loop_waits_until_its_body_is_done():
    run, done = small_run(), []
    with pytest.raises(KeyboardInterrupt):
        for metrics in mg.steps(run):
            ctrl_c() if metrics["step"] == 3 else None
            done.append(metrics["step"])
    assert done == [1, 2, 3] and run.adam.step == 3
    assert [metrics["step"] for metrics in mg.steps(run)] == list(range(4, 51))


@pytest.mark.parametrize("name", ["adam_minimize", "packed_loss"])
def test_an_interrupt_in_a_step_of_the_loop_waits_until_its_body_is_done(monkeypatch, name):
    place = {"adam_minimize": adam, "packed_loss": mg.GPT}[name]
    monkeypatch.setattr(place, name, with_ctrl_c(getattr(place, name), "before"))
    monkeypatch.setattr(mg.GPT, "replayable", False)
    run, done = small_run(), []
    with pytest.raises(KeyboardInterrupt):
        for metrics in mg.steps(run):
            done.append(metrics["step"])
    assert done == [1]


def test_a_second_interrupt_does_not_wait():
    run, done = small_run(), []
    with pytest.raises(KeyboardInterrupt):
        for metrics in mg.steps(run):
            ctrl_c()
            done.append(metrics["step"])
            ctrl_c()
            done.append("not reached")
    assert done == [1]
    ctrl_c_is_pythons_again()


def ctrl_c_is_pythons_again():
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


@pytest.mark.parametrize("name", ["adam_minimize", "linear_decay", "packed_loss"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_second_interrupt_takes_the_step_whole_or_not_at_all(monkeypatch, when, name):
    run = small_run()
    place = {"adam_minimize": adam, "linear_decay": training, "packed_loss": mg.GPT}[name]
    monkeypatch.setattr(place, name, with_ctrl_c(getattr(place, name), when, count=2))
    monkeypatch.setattr(mg.GPT, "replayable", False)
    with pytest.raises(KeyboardInterrupt):
        mg.finish(run)
    monkeypatch.undo()
    assert state(mg.finish(run)) == state(mg.finish(small_run()))


def test_a_handler_of_the_users_own_is_called_once_per_interrupt_and_kept():
    run, calls = small_run(steps=5), []
    handler = lambda *args: calls.append((args[0], run.adam.step))  # noqa: E731
    signal.signal(signal.SIGINT, handler)
    for metrics in mg.steps(run):
        ctrl_c()
        assert len(calls) == metrics["step"] - 1
    assert calls == [(signal.SIGINT, step) for step in range(1, 6)]
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_an_interrupt_that_python_does_not_handle_is_left_alone(handler):
    signal.signal(signal.SIGINT, handler)
    for _ in mg.steps(small_run(steps=2)):
        assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_loop_that_is_left_gives_ctrl_c_back():
    for _ in mg.steps(small_run()):
        break
    ctrl_c_is_pythons_again()
    with pytest.raises(ZeroDivisionError):
        for _ in mg.steps(small_run()):
            1 / 0  # noqa: B018
    ctrl_c_is_pythons_again()


def test_an_error_in_a_step_gives_ctrl_c_back():
    run = small_run()
    run.model.state_dict["lm_head"][0][0].data = float("nan")
    with pytest.raises(FloatingPointError):
        mg.finish(run)
    ctrl_c_is_pythons_again()


def test_loops_within_each_other_and_side_by_side_give_ctrl_c_back():
    for _ in mg.steps(small_run(steps=2)):
        mg.finish(small_run(steps=2))
    ctrl_c_is_pythons_again()
    one, other = mg.steps(small_run()), mg.steps(small_run())
    next(one), next(other)
    one.close()
    ctrl_c()  # waits for the other one
    with pytest.raises(KeyboardInterrupt):
        next(other)
    ctrl_c_is_pythons_again()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not the transparent rest of `one`


def test_a_thread_trains_without_touching_the_handler():
    run, seen = small_run(), []

    def work():
        for _ in mg.steps(run):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert set(seen) == {signal.default_int_handler} and run.adam.step == 50


def test_a_loop_that_ends_in_another_thread_lets_ctrl_c_through():
    loops = [mg.steps(small_run())]
    next(loops[0])
    thread = threading.Thread(target=loops.pop)
    thread.start()
    thread.join()
    ctrl_c_is_pythons_again()
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Long calls of the core


CHAIN = """
import signal, time
signal.signal(signal.SIGALRM, signal.default_int_handler)
x = Value(1.0)
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
    n = 3_000_000 if is_compiled(core) else 150_000
    assert output_of(CHAIN.format(n=n), core) == ["1.0"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_handler_that_runs_in_the_middle_of_a_sort_may_use_the_graph(compiled):
    x = compiled.Value(1.0)
    y = x
    for _ in range(500_000):
        y = y * 1.0
    met = []

    def handler(*_):
        (x * 2.0).backward()
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
    assert met and "another thread" in met[0]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_handler_that_changes_numbers_in_the_middle_of_a_sort_ends_it(compiled):
    """Its block was visited, and found unchanged, before the long chain below it."""
    x, w = compiled.Matrix.of([[1.0, 2.0]]), compiled.Matrix.of([[3.0, 4.0]])
    y = x[0][0]
    for _ in range(300_000):
        y = y * 1.0
    changed = []

    def handler(*_):
        try:
            y.backward()
        except RuntimeError:  # a sort is at work
            w.load([[5.0, 6.0]])
            changed.append(True)

    signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(100):
            loss = compiled.mean(compiled.linear(compiled.Matrix.pack([[y, y]]), w))
            gradients = w.grad.tolist()
            signal.setitimer(signal.ITIMER_REAL, 0.003)
            try:
                loss.backward()
                time.sleep(0.02)
                refused = False
            except RuntimeError as error:
                refused = "linear was computed from have changed" in str(error)
            if changed:
                break
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert changed and refused and w.grad.tolist() == gradients


def test_a_copy_of_an_interrupted_run_goes_on_alike(monkeypatch):
    run = small_run()
    mg.train_step(run)
    with monkeypatch.context() as patch:
        patch.setattr(adam, "adam_minimize", with_ctrl_c(adam.adam_minimize, "before"))
        with pytest.raises(KeyboardInterrupt):
            mg.train_step(run)
    other = copy.deepcopy(run)
    assert mg.train_step(run) == mg.train_step(other)


def test_an_interrupted_step_on_a_stream_takes_the_same_windows_again(monkeypatch):
    text = ["abcabcaabbcc" * 9]
    expected = mg.train(text, steps=4, unit="stream", block_size=4).losses
    run = mg.prepare(text, steps=4, unit="stream", block_size=4)
    mg.train_step(run)
    with monkeypatch.context() as patch:
        patch.setattr(adam, "adam_minimize", with_ctrl_c(adam.adam_minimize, "before"))
        with pytest.raises(KeyboardInterrupt):
            mg.train_step(run)
    assert mg.finish(run).losses == expected


def test_what_other_code_raises_when_it_is_interrupted_is_an_interrupt(capsys, monkeypatch):
    """tqdm releases a lock that it was kept from acquiring."""

    def interrupted(options):
        try:
            ctrl_c()
        finally:
            threading.Lock().release()

    def broken(options):
        threading.Lock().release()

    monkeypatch.setitem(cli.COMMANDS, "info", interrupted)
    assert cli.run_command(["info"]) == 130
    assert capsys.readouterr().err == "microgpt: interrupted\n"
    monkeypatch.setitem(cli.COMMANDS, "info", broken)
    with pytest.raises(RuntimeError):
        cli.run_command(["info"])
