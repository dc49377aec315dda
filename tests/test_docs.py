"""The documentation is run: doctests, the Python and the commands of its pages."""

import doctest
import importlib
import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path
from textwrap import dedent
from unittest import mock

import pytest
from processes import microgpt as microgpt_command
from processes import problems

import microgpt
from microgpt import data
from microgpt.cli import run_command
from microgpt.options import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHAPTERS = sorted((ROOT / "docs" / "guide").glob("[0-9]*.md"))
MODULES = ["", ".adam", ".checkpoint", ".cli", ".core", ".data", ".evaluate", ".gradcheck"]
MODULES += [".files", ".model", ".options", ".pictures", ".ranking", ".safetensors", ".sampling"]
MODULES += [".tokenizer", ".training"]
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Give the model that the guide reads, from the compiled core: the pure one takes minutes."""
    if importlib.util.find_spec("microgpt._core") is None:
        pytest.skip("the compiled core was not built")
    folder = tmp_path_factory.mktemp("trained")
    options = ("--out", "names.safetensors", "--samples", "0")
    done = microgpt_command("train", *options, cwd=folder, MICROGPT_BACKEND="cython")
    assert done.returncode == 0, done.stderr
    return folder / "names.safetensors"


def shorten(monkeypatch):
    """Train little, on few documents, so that the pure core is done in seconds."""
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
    sweep = microgpt.sweep
    monkeypatch.setattr(
        microgpt, "sweep", lambda docs, grid, *args, **options: sweep(
            docs, {**grid, "steps": 2, "n_embd": 8}, *args, **options
        ),
    )


def stop_at_what_takes_long(monkeypatch):
    """End the test where the pure core would need minutes, as its outputs are to be the same."""
    def ends_here(*arguments, **options):
        pytest.skip("the rest of the page takes the pure core minutes")

    generate, prepare = microgpt.generate, microgpt.prepare
    for name in ("train", "mean_loss"):
        monkeypatch.setattr(microgpt, name, ends_here)
    monkeypatch.setattr(microgpt, "generate", lambda run, n, **options: (
        generate if n <= 20 else ends_here)(run, n, **options))  # fmt: skip
    monkeypatch.setattr(microgpt, "prepare", lambda docs, **options: (
        ends_here if "steps" in options else prepare)(docs, **options))  # fmt: skip


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.filterwarnings("ignore")  # of Matplotlib's own dependencies
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_python_of_a_page_runs(page, request, tmp_path, monkeypatch, capsys):
    """What a block prints is in the block after it; a picture beside the page is what it saves."""
    monkeypatch.chdir(tmp_path)
    for tracker in TRACKERS:
        monkeypatch.setitem(sys.modules, tracker, mock.MagicMock())
    is_guide = page.parent.name == "guide"
    if is_guide:
        shutil.copy(request.getfixturevalue("trained"), tmp_path)
    if microgpt.BACKEND == "python":
        (stop_at_what_takes_long if is_guide else shorten)(monkeypatch)
    monkeypatch.setattr(  # tests use no network; without the original's names the page ends here
        "microgpt.data._makemore",
        lambda: (request.getfixturevalue("reference") / "data" / "names.txt").read_bytes(),
    )
    text, names = page.read_text(encoding="utf-8"), {}
    if "plot_losses" in text:
        pytest.importorskip("matplotlib")
    for code, shown in re.findall(
        r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```)?", text, flags=re.MULTILINE | re.DOTALL
    ):
        exec(compile(code, str(page), "exec"), names)
        out = capsys.readouterr().out
        assert not shown or out == shown
        for picture in tmp_path.glob("*.svg") if is_guide else ():
            beside = page.with_name(picture.name)
            assert picture.read_bytes() == beside.read_bytes(), f"{beside} is another picture"


def excerpts():
    """Return page, file and text of each block that shows lines of a file."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for file, lines in re.findall(
            r"^```python (\S+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL
        ):
            found.append((page, file, lines))
    return found


@pytest.mark.parametrize(("page", "file", "lines"), excerpts())
def test_the_lines_of_a_file_on_a_page_are_its_lines(page, file, lines):
    """A line of three dots stands for lines left out; the indentation of a part is its own."""
    source = (ROOT / file).read_text(encoding="utf-8").splitlines()
    at = 0
    for part in re.split(r"^\.\.\.\n", lines, flags=re.MULTILINE):
        wanted = dedent(part).splitlines()
        n = len(wanted)
        at = next((i + n for i in range(at, len(source))
                   if dedent("\n".join(source[i : i + n])).splitlines() == wanted), 0)  # fmt: skip
        assert at, f"{file} has no such lines, in this order:\n{part}"


@pytest.mark.parametrize("page", CHAPTERS, ids=name_of)
def test_a_chapter_has_lines_of_package_and_script_and_an_exercise_with_its_answer(page):
    files = {file for chapter, file, _ in excerpts() if chapter == page}
    assert "examples/script.py" in files and len(files) > 1
    text = page.read_text(encoding="utf-8")
    _, answer = text.split("\n## Exercise\n")
    assert re.search(r"^<summary>Answer</summary>.*^```python\n.*^```\n\n```\n.*^</details>",
                     answer, flags=re.MULTILINE | re.DOTALL)  # fmt: skip


def test_the_guide_has_seven_chapters():
    assert [page.name[0] for page in CHAPTERS] == list("1234567")


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
        few = microgpt.load_documents()[:200]
        monkeypatch.setattr("microgpt.cli._demo", lambda: microgpt.prepare(few, steps=2))
    if slow and arguments[0] == "train" and not {"--help", "--resume"} & set(arguments):
        arguments += ["--steps", "2", "--samples", "2"]
        if microgpt.BACKEND == "python" and "--n-layer" in arguments:
            arguments += ["--n-layer", "1", "--n-embd", "8", "--block-size", "8"]
            arguments += ["--batch-size", "2"]
    if arguments[0] == "sweep" and "--help" not in arguments:
        arguments += ["--steps", "2", "--jobs", "1"]
        if microgpt.BACKEND == "python":
            arguments += ["--n-embd", "4", "--seed", "1", "--block-size", "4"]
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


def anchors(page):
    """Return the anchors of the headings of a page, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_to_files_and_headings(page):
    links = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
    for file, anchor in links:
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_the_pages_have_commands():
    assert "microgpt train" in commands()
