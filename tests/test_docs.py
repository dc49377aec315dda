"""What the documentation shows is run: doctests, the README's Python and its commands."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

import microgpt
from microgpt.cli import run_command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = ["", ".adam", ".cli", ".core", ".data", ".gradcheck", ".model", ".sampling"]
MODULES += [".tokenizer", ".training"]


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
    monkeypatch.chdir(tmp_path)
    if microgpt.BACKEND == "python":  # so that the pure core is done in seconds
        train = microgpt.train
        monkeypatch.setattr(
            microgpt, "train", lambda docs, **options: train(docs, **{**options, "steps": 5})
        )
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def test_the_readme_shows_the_five_lines():
    assert "import microgpt as mg\ndocs = mg.load_documents()" in blocks(ROOT / "README.md",
                                                                        "python")[0]


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_pages_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = "\n".join(microgpt.load_documents()[:200])
    Path("names.txt").write_text(names, encoding="utf-8")
    monkeypatch.setattr("microgpt.data._makemore", lambda: names.encode())  # tests use no network
    arguments = shlex.split(command)[1:]
    if microgpt.BACKEND == "python" and "--help" not in arguments:
        arguments += ["--steps", "2", "--samples", "2"]
    assert run_command(arguments) == 0
    out, err = capsys.readouterr()
    assert out and not err


def test_the_pages_have_commands():
    assert "microgpt train" in commands()
