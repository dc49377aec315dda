"""The documentation is run: doctests, the Python and the commands of its pages."""

import doctest
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
from processes import problems

import microgpt
from microgpt import data
from microgpt.cli import run_command
from microgpt.options import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = ["", ".adam", ".checkpoint", ".cli", ".core", ".data", ".evaluate", ".gradcheck"]
MODULES += [".files", ".model", ".options", ".pictures", ".safetensors", ".sampling", ".tokenizer"]
MODULES += [".training"]
TRACKERS = ["mlflow", "wandb", "torch", "torch.utils", "torch.utils.tensorboard"]


def blocks(page, language):
    """Return the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands():
    """Return every microgpt command of the pages."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in dict.fromkeys(parts) if part.startswith("microgpt ")]


@pytest.mark.parametrize("name", MODULES)
def test_doctests_of_the_package(name):
    failed, _ = doctest.testmod(importlib.import_module(f"microgpt{name}"))
    assert failed == 0


def test_doctests_of_the_cores(core):
    failed, tried = doctest.testmod(core)
    assert failed == 0
    assert tried >= 9


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    if "plot_losses" in page.read_text(encoding="utf-8"):
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for tracker in TRACKERS:
        monkeypatch.setitem(sys.modules, tracker, mock.MagicMock())
    if microgpt.BACKEND == "python":  # so that the pure core is done in seconds
        train, docs = microgpt.train, microgpt.load_documents()[:100]
        prepare = microgpt.prepare
        monkeypatch.setattr(microgpt, "load_documents", lambda: docs)
        monkeypatch.setattr(
            microgpt, "train", lambda docs, **options: train(docs, **{**options, "steps": 5})
        )
        monkeypatch.setattr(
            microgpt, "prepare", lambda docs, steps=20, **options: prepare(
                docs, steps=steps if steps <= 20 else 5, **options
            ),
        )
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def test_the_readme_shows_the_five_lines():
    assert "import microgpt as mg\ndocs = mg.load_documents()" in blocks(ROOT / "README.md",
                                                                        "python")[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Give a folder with the files that the commands of the pages name."""
    folder = tmp_path_factory.mktemp("pages")
    names = microgpt.load_documents()[:200]
    text = "\n\n".join("\n".join(names[i : i + 4]) for i in range(0, 200, 4))
    for file, content in (("names", "\n".join(names)), ("pets", "luna\nbella"),
                          ("poems", text), ("python", text)):
        (folder / f"{file}.txt").write_text(content, encoding="utf-8")
    for name, docs, unit in (("names", names, "line"), ("python", [text], "stream")):
        run = microgpt.prepare(docs, steps=3, unit=unit)
        microgpt.train_step(run)
        run.dataset = f"{name}.txt"
        microgpt.save(run, folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_pages_runs(command, models, tmp_path, monkeypatch, capsys):
    if command.startswith("microgpt plot"):
        pytest.importorskip("matplotlib")
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names = Path("names.txt").read_bytes()
    monkeypatch.setattr("microgpt.data._makemore", lambda: names)  # tests use no network
    arguments = shlex.split(command)[1:]
    slow = microgpt.BACKEND == "python" or "--n-layer" in arguments
    if microgpt.BACKEND == "python":
        split = data._documents
        monkeypatch.setattr(data, "_documents", lambda *text: split(*text)[:200])
    if slow and arguments[0] == "train" and not {"--help", "--resume"} & set(arguments):
        arguments += ["--steps", "2", "--samples", "2"]
        if microgpt.BACKEND == "python" and "--n-layer" in arguments:
            arguments += ["--n-layer", "1", "--n-embd", "8", "--block-size", "8"]
            arguments += ["--batch-size", "2"]
    assert run_command(arguments) == 0
    out, err = capsys.readouterr()
    assert out and not problems(err)


def options():
    """Return each command with each of its options."""
    top = parser()
    [commands] = [action for action in top._actions if isinstance(action.choices, dict)]
    every = [("", top), *commands.choices.items()]
    return [
        (name, flag) for name, command in every for action in command._actions
        for flag in action.option_strings if flag not in ("-h", "--help")
    ]  # fmt: skip


@pytest.mark.parametrize(("command", "flag"), options())
def test_an_option_has_a_line_of_documentation(command, flag):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert re.search(rf"(?<![\w-]){flag}(?![\w-])", text), f"{command} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_pages_have_commands():
    assert "microgpt train" in commands()
