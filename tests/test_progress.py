"""What is shown of a training while it lasts, and that an interrupted one is not lost."""

import signal
import sys
import types

import pytest
from processes import run

import microgpt as mg
from microgpt import progress

DOCS = ["emma", "olivia", "ava", "isabella", "sophia", "mia"]
SMALL = {"n_embd": 4, "n_head": 2, "block_size": 4}


def test_no_bar_is_drawn_where_nobody_looks(capsys):
    mg.train(DOCS, steps=3, **SMALL)
    mg.train(DOCS, steps=3, progress=False, **SMALL)
    assert capsys.readouterr() == ("", "")


def test_a_bar_shows_steps_the_mean_loss_and_the_last(capsys):
    trained = mg.train(DOCS, steps=3, progress=True, **SMALL)
    out, err = capsys.readouterr()
    mean, last = sum(trained.losses) / 3, trained.losses[-1]
    assert out == "" and "3/3" in err
    assert f"loss {mean:.4f} (mean of 3), last {last:.4f}" in err


def test_the_mean_is_that_of_the_last_hundred_losses():
    prepared = mg.prepare(DOCS, **SMALL)
    assert prepared.recent_loss != prepared.recent_loss  # nan before the first step
    prepared.losses[:] = [float(i) for i in range(150)]
    assert prepared.recent_loss == sum(range(50, 150)) / 100
    assert "loss 99.5000 (mean of 100), last 149.0000" in mg.training.describe_losses(prepared)


def test_a_bar_is_drawn_where_someone_looks(monkeypatch, capsys):
    """On a real terminal: test_cli has a test with one."""
    monkeypatch.setattr(mg.training, "someone_looks", lambda: True)
    mg.train(DOCS, steps=3, **SMALL)
    assert "3/3" in capsys.readouterr().err
    mg.finish(mg.prepare(DOCS, steps=3, **SMALL), progress=False)
    assert capsys.readouterr().err == ""


def test_a_bar_goes_on_where_the_run_was(capsys):
    half = mg.prepare(DOCS, steps=4, **SMALL)
    mg.train_step(half), mg.train_step(half)
    mg.finish(half, progress=True)
    assert "| 2/4 " in capsys.readouterr().err


def notebook(monkeypatch):
    """Let IPython say that this is a notebook."""
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


def test_a_notebook_without_widgets_gets_a_bar_of_text(monkeypatch, capsys):
    notebook(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm.notebook", None)
    mg.train(DOCS, steps=3, **SMALL)
    assert "3/3" in capsys.readouterr().err


def test_a_notebook_gets_the_bar_of_notebooks(monkeypatch):
    made = []

    class Bar:
        n = 0

        def __init__(self, **options):
            made.append(options)

        def set_postfix_str(self, text, refresh):
            made.append(text)

        def update(self, n):
            self.n += n

        def close(self):
            made.append(self.n)

    notebook(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm.notebook", types.SimpleNamespace(tqdm=Bar))
    trained = mg.train(DOCS, steps=3, **SMALL)
    assert made[0]["total"] == 3 and made[-1] == 3
    assert made[-2] == mg.training.describe_losses(trained)


def test_ipython_at_a_terminal_is_no_notebook(monkeypatch, capsys):
    for shell in (None, types.SimpleNamespace(config={})):
        module = types.SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", module)
        mg.train(DOCS, steps=3, **SMALL)
    assert capsys.readouterr().err == ""


def test_the_variables_of_tqdm_hide_the_bar_at_worst():
    code = """
    import microgpt
    print(microgpt.train(["ab"], steps=2, progress=True, n_embd=4, n_head=2).adam.step)
    """
    done = run(code, TQDM_MININTERVAL="often", TQDM_NCOLS="wide")
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_training_without_a_bar_imports_no_other_package():
    code = """
    import sys, microgpt
    microgpt.train(["ab"], steps=2, n_embd=4, n_head=2)
    print([name for name in ("tqdm", "IPython", "numpy") if name in sys.modules])
    """
    assert run(code).stdout == "[]\n"


def test_the_command_writes_lines_where_there_is_no_terminal(monkeypatch, capsys):
    from microgpt.cli import run_command

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert run_command(["train", "--steps", "3", "--n-embd", "4", "--samples", "0"]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("step")]
    assert [line[:16] for line in lines] == [f"step    {i} /    3" for i in (1, 2, 3)]
    assert lines[-1] == out.splitlines()[-1]


# Interrupted


@pytest.fixture
def pythons_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at_3(step, metrics):
    if step == 3:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("bar", [False, True])
def test_an_interrupted_training_is_not_lost(pythons_handler, bar, capsys):
    with pytest.raises(KeyboardInterrupt) as caught:
        mg.train(DOCS, steps=6, callback=interrupt_at_3, progress=bar, **SMALL)
    kept = caught.value.run
    assert kept.adam.step == len(kept.losses) == 3
    assert "interrupted at step 3 of 6" in str(caught.value) and ".run" in str(caught.value)
    assert mg.finish(kept).losses == mg.train(DOCS, steps=6, **SMALL).losses


def test_what_a_callback_says_when_it_interrupts_is_kept():
    def stop(step, metrics):
        raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="^enough$") as caught:
        mg.train(DOCS, steps=6, callback=stop, **SMALL)
    assert caught.value.run.adam.step == 1
