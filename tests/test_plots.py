"""Plots of losses: what is drawn, from Python and by the command, and what is refused."""

import math
import os
import subprocess
import sys

import pytest

import microgpt as mg
from microgpt.cli import run_command
from microgpt.ranking import Sweep
from microgpt.trials import DEFAULTS, Result

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Matplotlib's own dependencies

NAMES = ["emma", "olivia", "ava", "isabella", "sophia", "mia"]


def a_run(steps=4, take=None, eval_every=0, **settings):
    run = mg.prepare(NAMES, steps=steps, n_embd=4, n_head=1, **settings)
    for metrics in mg.steps(run, eval_every):
        if metrics["step"] == take:
            break
    return run


def curves(figure):
    """Return what is drawn: raw and smoothed losses in turn, circles, level lines."""
    lines = figure.axes[0].get_lines()
    levels = [line for line in lines if len(set(line.get_ydata())) == 1 and list(
        line.get_xdata()) == [0, 1]]  # fmt: skip
    circles = [line for line in lines if line.get_marker() == "o"]
    rest = [line for line in lines if line not in levels and line not in circles]
    return rest[0::2], rest[1::2], circles, levels


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def notes(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_one_run_is_drawn_raw_and_smoothed_with_validation_and_baselines():
    run = a_run(val_fraction=0.4, eval_every=2)
    assert [*run.val_losses] == [2, 4]
    figure = mg.plot_losses(run, smooth=2)
    raw, smoothed, circles, levels = curves(figure)
    assert [list(line.get_ydata()) for line in raw] == [run.losses]
    assert [list(line.get_xdata()) for line in smoothed] == [[1, 2, 3, 4]]
    a, b, c, d = run.losses
    expected = [a, (a + b) / 2, (b + c) / 2, (c + d) / 2]
    assert smoothed[0].get_ydata() == pytest.approx(expected)
    assert [list(line.get_xdata()) for line in circles] == [[2, 4]]
    assert [list(line.get_ydata()) for line in circles] == [[*run.val_losses.values()]]
    training = [run.encode(doc) for doc in run.documents]
    bigram = mg.bigram_loss(run.model, training, [run.encode(doc) for doc in run.validation])
    assert [line.get_ydata()[0] for line in levels] == [mg.uniform_loss(run.model), bigram]
    assert notes(figure) == [f"uniform {mg.uniform_loss(run.model):.2f}", f"bigram {bigram:.2f}"]
    assert labels(figure) == ["training, mean of 2 steps", "validation"]


def test_runs_of_different_lengths_share_the_lines_that_are_the_same():
    runs = {"short": a_run(2), "long": a_run(5), "other": mg.train(["ab", "ba"], steps=1)}
    figure = mg.plot_losses(runs)
    raw, smoothed, circles, levels = curves(figure)
    assert [len(line.get_xdata()) for line in raw] == [2, 5, 1]
    assert smoothed[2].get_marker() == "."  # a line of one point shows nothing
    assert not circles and labels(figure) == ["short", "long", "other"]
    assert len({line.get_linestyle() for line in smoothed}) == 3  # not by colour alone
    assert len(levels) == 4
    assert [note.split(" (")[1] for note in notes(figure)] == ["short, long)"] * 2 + ["other)"] * 2


def test_without_documents_there_is_no_bigram_line(tmp_path):
    mg.save(a_run(), tmp_path / "run.safetensors")
    figure = mg.plot_losses([mg.load(tmp_path / "run.safetensors")])
    assert [note.split()[0] for note in notes(figure)] == ["uniform"]


def test_one_step_and_none():
    mg.plot_losses(a_run(3, take=1))
    figure = mg.plot_losses([a_run(3), mg.prepare(NAMES, steps=3)])
    assert labels(figure) == ["run 1", "run 2"]
    assert [len(line.get_xdata()) for line in curves(figure)[0]] == [3, 0]


def test_losses_that_are_no_numbers_are_left_out():
    run = a_run()
    run.losses[2] = math.nan
    low, high = mg.plot_losses(run).axes[0].get_ylim()
    assert math.isfinite(low) and math.isfinite(high)
    run.losses[:] = [math.nan] * 4
    mg.plot_losses(run)


@pytest.mark.parametrize(("runs", "error", "words"), [
    ([], ValueError, "there is no run to draw"),
    ({}, ValueError, "there is no run to draw"),
    ("a.safetensors", TypeError, "runs must be a Run or several, not str"),
    (3, TypeError, "runs must be a Run or several, not int"),
    (None, TypeError, "runs must be a Run or several, not NoneType"),
    ([None], TypeError, "runs must be a Run or several, not NoneType"),
])  # fmt: skip
def test_what_is_no_run_is_refused(runs, error, words):
    with pytest.raises(error, match=words):
        mg.plot_losses(runs)


def test_runs_without_losses_and_a_width_of_none_are_refused():
    with pytest.raises(ValueError, match="no run has taken a step"):
        mg.plot_losses([mg.prepare(NAMES), mg.prepare(NAMES)])
    with pytest.raises(ValueError, match="smooth must be at least 1, not 0"):
        mg.plot_losses(a_run(), smooth=0)


@pytest.mark.parametrize("name", ["<b>", "$x^2$", "_hidden", "名前", "x" * 500, "a\nb", ""])
def test_any_name_is_drawn(name, tmp_path):
    figure = mg.plot_losses({name: a_run(), "other": a_run()})
    figure.savefig(tmp_path / "x.svg")
    assert len(labels(figure)) == 2


def test_a_notebook_shows_the_figures():
    for figure in (mg.plot_losses(a_run()), mg.plot_sweep(Sweep([result(1, 2.0)]))):
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None\n"
        "import microgpt as mg\n"
        "from microgpt import *\n"
        "try: mg.plot_losses(mg.train(['ab'], steps=1))\n"
        "except ImportError as error: print(error)\n"
        "from microgpt.ranking import Sweep\n"
        "try: mg.plot_sweep(Sweep([]))\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.count("or microgpt with its extra [plot]\n") == 2, done.stderr


def test_matplotlib_is_imported_when_something_is_drawn():
    code = "import sys, microgpt.cli, microgpt.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"


# The losses of a sweep.


def result(seed, val_loss, **settings):
    error = "boom" if val_loss is None else ""
    return Result({**DEFAULTS, "seed": seed, **settings}, f"{seed}", "", val_loss, val_loss, error)


def test_a_sweep_has_a_panel_for_each_setting_that_varies():
    both = [result(s, 2.0 + x + n / 100, lr=x, n_embd=n) for x in (0.01, 0.1) for n in (8, 16)
            for s in (1, 2, 3)]  # fmt: skip
    figure = mg.plot_sweep(Sweep([*both, result(1, None, lr=0.5)]))
    assert [axes.get_xlabel() for axes in figure.axes] == ["lr", "n_embd"]
    assert figure.get_suptitle() == "13 trials, 1 failed"
    points, means, best = figure.axes[0].lines
    assert len(points.get_xdata()) == 12
    assert list(means.get_ydata()) == pytest.approx([2.13, 2.22])
    assert list(best.get_ydata()) == pytest.approx([2.09])


def test_two_trials_of_each_value_have_a_mean_and_single_ones_have_none():
    twice = [result(s, x + s, lr=x) for x in (0.1, 0.2) for s in (1, 2)]
    _, means, _ = mg.plot_sweep(Sweep(twice)).axes[0].lines
    assert list(means.get_ydata()) == pytest.approx([1.6, 1.7])
    assert len(mg.plot_sweep(Sweep(twice[::2])).axes[0].lines) == 2


@pytest.mark.parametrize("results", [
    [], [result(1, 2.0)], [result(1, None), result(2, None)],
    [result(i, 2.0, unit=str(i)) for i in range(3)], [result(i, 10.0**i, lr=i) for i in range(3)],
], ids=["none", "one", "failed", "words", "zero"])  # fmt: skip
def test_any_sweep_is_drawn(results):
    figure = mg.plot_sweep(Sweep(results))
    assert figure._repr_png_() and len(figure.axes) == 1
    assert figure.get_suptitle().startswith("1 trial" if len(results) == 1 else f"{len(results)} ")


@pytest.mark.parametrize("value", [None, [], "runs"])
def test_what_is_no_sweep_is_refused(value):
    with pytest.raises(TypeError, match="plot_sweep takes what sweep returns, not"):
        mg.plot_sweep(value)


# The validation losses of a run.


def test_a_run_keeps_its_validation_losses_in_its_file(tmp_path):
    run = a_run(val_fraction=0.4, eval_every=3)
    assert [*run.val_losses] == [3, 4] and run.val_losses[4] == run.val_loss()
    mg.save(run, tmp_path / "run.safetensors")
    assert mg.load(tmp_path / "run.safetensors").val_losses == run.val_losses


def test_a_resumed_run_goes_on_with_them(tmp_path):
    whole = a_run(val_fraction=0.4, eval_every=1)
    mg.save(a_run(take=2, val_fraction=0.4, eval_every=1), tmp_path / "half.safetensors")
    half = mg.load(tmp_path / "half.safetensors", NAMES)
    assert mg.finish(half, eval_every=1).val_losses == whole.val_losses


@pytest.mark.parametrize("wrong", [
    {0: 1.0}, {1: math.nan}, {1: math.inf}, {1: -1.0}, {"a": 1.0}, {1: "b"}, {1.5: 1.0},
], ids=repr)  # fmt: skip
def test_validation_losses_that_are_none_are_not_saved(wrong, tmp_path):
    run = a_run()
    run.val_losses = wrong
    with pytest.raises((TypeError, ValueError)):
        mg.save(run, tmp_path / "run.safetensors")
    assert list(tmp_path.iterdir()) == []


# The command.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    for name, settings in (("one", {"val_fraction": 0.4}), ("two", {"seed": 7})):
        run = a_run(**settings)
        run.dataset = "names.txt"
        mg.save(run, f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(("kind", "start"), [
    ("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG"),
])  # fmt: skip
def test_plot_draws_saved_models(kind, start, folder, capsys):
    out = f"losses.{kind}"
    assert run_command(["plot", "one.safetensors", "two.safetensors", "--out", out]) == 0
    assert capsys.readouterr() == (f"{out}: the losses of 2 runs\n", "")
    assert (folder / out).read_bytes().startswith(start)


def test_trials_of_a_sweep_are_called_by_what_differs(folder, capsys, monkeypatch):
    grid = {"n_embd": 4, "n_head": 1, "steps": 2, "lr": [0.01, 0.1], "seed": [1, 2]}
    found = mg.sweep(mg.load_documents("names.txt"), grid, jobs=1)
    figures = []
    monkeypatch.setattr("microgpt.plots.save_plot", lambda figure, _: figures.append(figure))
    paths = [result.path for result in found.results]
    assert run_command(["plot", *paths, "one.safetensors", "--out", "x.png"]) == 0
    expected = [f"lr {lr}, seed {seed}" for lr in (0.01, 0.1) for seed in (1, 2)]
    assert labels(figures[0]) == [*expected, "one"]
    (folder / "again").mkdir()
    copy = folder / "again" / os.path.basename(paths[0])
    copy.write_bytes((folder / paths[0]).read_bytes())
    assert run_command(["plot", *paths[:2], "again/" + copy.name, "--out", "x.png"]) == 0
    assert labels(figures[1]) == [paths[0], "seed 2", "again/" + copy.name]


def test_plot_without_the_data_says_what_is_missing(folder, capsys):
    (folder / "names.txt").unlink()
    assert run_command(["plot", "one.safetensors", "--smooth", "2", "--out", "x.png"]) == 0
    out, err = capsys.readouterr()
    assert out == "x.png: the losses of 1 run\n"
    assert err.startswith("microgpt: no line of the bigram table: names.txt: No such file")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "words"), [
    (["one.safetensors"], "plot needs --out FILE"),
    (["one.safetensors", "--out", "x.jpg"], "--out must end with .png, .svg or .pdf, not x.jpg"),
    (["one.safetensors", "--out", "one.safetensors"], "--out must end with .png"),
    (["none.safetensors", "--out", "x.png"], "none.safetensors: No such file"),
    (["names.txt", "--out", "x.png"], "names.txt: "),
    (["one.safetensors", "--out", "no/x.png"], "no/x.png: its folder does not exist"),
    (["one.safetensors", "--out", "x.png", "--data", "no.txt"], "no.txt: No such file"),
    (["one.safetensors", "--out", "x.png", "--data", "other.txt"], "the checksum differs"),
    (["one.safetensors", "--out", "x.png", "--smooth", "0"], "must be an int of at least 1"),
    (["new.safetensors", "--out", "x.png"], "no run has taken a step"),
    (["link.png", "--out", "link.png"], "--out link.png would overwrite a model"),
    ([], "the following arguments are required: MODEL"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else "")  # fmt: skip
def test_plot_refuses_what_it_cannot_use_in_one_line(arguments, words, folder, capsys):
    (folder / "other.txt").write_text("other", encoding="utf-8")
    run = mg.prepare(NAMES)
    run.dataset = "names.txt"
    mg.save(run, "new.safetensors")
    (folder / "link.png").symlink_to("one.safetensors")
    before = sorted(path.name for path in folder.iterdir())
    assert run_command(["plot", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1 and "Traceback" not in err
    assert sorted(path.name for path in folder.iterdir()) == before


def test_plot_needs_matplotlib(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run_command(["plot", "one.safetensors", "--out", "x.png"]) == 1
    assert "pip install matplotlib, or microgpt with its extra [plot]" in capsys.readouterr().err
    assert not (folder / "x.png").exists()


def test_a_sweep_with_a_plot_needs_matplotlib_before_it_trains(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run_command(["sweep", "--data", "names.txt", "--plot", "x.png"]) == 1
    assert "pip install matplotlib, or microgpt with its extra [plot]" in capsys.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("name", ["x.PNG", "x.svg", "x.pdf"])
def test_a_sweep_is_drawn_under_the_name_that_was_given(name, folder, capsys):
    sizes = ["--n-embd", "4", "--n-head", "1", "--steps", "2", "--jobs", "1"]
    assert run_command(["sweep", "--data", "names.txt", *sizes, "--plot", name]) == 0
    assert (folder / name).stat().st_size > 1000


@pytest.mark.parametrize("name", ["png", "x.tif", ".png", "x"])
def test_a_name_of_no_plot_is_refused_before_the_sweep(name, folder, capsys):
    assert run_command(["sweep", "--data", "names.txt", "--plot", name]) == 2
    assert f"--plot must end with .png, .svg or .pdf, not {name}" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_plot_that_cannot_be_written_costs_neither_the_table_nor_the_old_one(
    folder, capsys, monkeypatch
):
    (folder / "x.png").write_bytes(b"old")

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("microgpt.sweeps.Folder.write", lambda *_: None)
    sizes = ["--n-embd", "4", "--n-head", "1", "--steps", "2", "--jobs", "1"]
    assert run_command(["sweep", "--data", "names.txt", *sizes, "--plot", "x.png"]) == 1
    out, err = capsys.readouterr()
    assert "rank  val loss" in out and "x.png: No space left on device" in err
    assert (folder / "x.png").read_bytes() == b"old"
