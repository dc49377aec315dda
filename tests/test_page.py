"""The page as a file: whole, safe, small, and complete without its script."""

import html
import json
import os
import re
import stat
import sys
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import pytest

import microgpt as mg
from microgpt.cli import run_command
from microgpt.explainer import contents, page

pytest.importorskip("jinja2")

DOCS = ["anna", "ian", "mia", "nina"]
SIZES = {"n_layer": 2, "n_embd": 4, "n_head": 2, "block_size": 6}
HOSTILE = ["</script><script>alert(1)</script>", "<!--", '"><img src=x onerror=a>', "a\u2028&lt;",
           "{{ 7 * 7 }}", "{% raw %}", "'\\"]  # fmt: skip
VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta"}


class Elements(HTMLParser):
    """The elements of a page: each with its attributes and text; every one is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self.open.append(self.found[-1])

    def handle_startendtag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def named(self, tag):
        return [element for element in self.found if element[0] == tag]


@pytest.fixture(scope="module")
def run():
    return mg.train(DOCS, steps=6, record=True, **SIZES)


@pytest.fixture(scope="module")
def report(run):
    return mg.explain(run, ["nina", "anna"], seed=1)


@pytest.fixture
def path(run, tmp_path):
    mg.save(run, tmp_path / "names.safetensors")
    return tmp_path / "names.safetensors"


def test_the_page_is_one_file_that_asks_for_nothing(report):
    text = report.html()
    assert text.encode().startswith(page.START)
    for tag, attributes, _ in Elements(text).found:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            target = attributes.get(name) or ""
            link = tag == "a" and target.startswith("https://")
            assert not target or link or target[0] == "#" or target.startswith("data:"), target
    style = "".join(element[2] for element in Elements(text).named("style"))
    assert not re.search(r"@import|url\((?!data:)", style)


def test_the_data_in_the_page_are_those_of_the_report(report):
    scripts = Elements(report.html()).named("script")
    [data] = [text for _, attributes, text in scripts if attributes.get("id") == "data"]
    assert json.loads(data) == json.loads(json.dumps(report.data))


def test_only_the_script_of_the_package_may_run(report):
    elements = Elements(report.html())
    [policy] = [e[1]["content"] for e in elements.named("meta") if "http-equiv" in e[1]]
    code = [e[2] for e in elements.named("script") if e[1].get("type") != "application/json"]
    assert len(code) == 1
    digest = b64encode(sha256(code[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not any(name.startswith("on") for e in elements.found for name in e[1])


@pytest.mark.parametrize("text", HOSTILE[:3])
def test_documents_that_look_like_html_are_text(text, report):
    run = mg.train(HOSTILE, steps=2, record=True, **SIZES | {"block_size": 9})
    run.dataset = text
    hostile = mg.explain(run, text, command=f"microgpt explain --text={text}")
    written = hostile.html()
    elements = Elements(written)
    kinds = {e[0] for e in elements.found}
    assert kinds <= {e[0] for e in Elements(report.html()).found}
    assert len(elements.named("script")) == 3 and not elements.named("img")
    assert "{{ 7 * 7 }}" in html.unescape(written)  # a template of the reader's is none
    [data] = [e[2] for e in elements.named("script") if e[1].get("id") == "data"]
    assert json.loads(data)["texts"][0]["text"] == text
    for name in page.SECTIONS:
        assert {e[0] for e in Elements(str(hostile.section(name))).found} <= kinds


def test_a_section_stands_by_itself(report):
    whole = report.html()
    for name in page.SECTIONS:
        section = report.section(name)
        elements = Elements(str(section))
        assert section._repr_html_() == str(section) and elements.named("section")
        assert re.search(rf'<section id="{name}"', whole), name
    with pytest.raises(ValueError, match="no section 'softmx': they are header, dataset, tokens"):
        report.section("softmx")


def test_the_numbers_are_on_the_page_without_its_script(report):
    """Each of them is the text of an element that has all of its digits."""
    values = {e[1]["data-v"] for e in Elements(report.html()).found if "data-v" in e[1]}
    text = report.data["texts"][0]
    shown = [*text["losses"], text["loss"]]
    shown += [w for head in text["trace"]["layers"][1]["weights"] for row in head for w in row]
    missing = {repr(number) for number in shown} - values
    assert not missing, f"{len(missing)} of {len(shown)}"


VARIANTS = {
    "one layer and head": (DOCS, {"n_layer": 1, "n_head": 1}, {}),
    "no step": (DOCS, {"steps": 0}, {}),
    "no record": (DOCS, {}, {}),
    "a block of one": (DOCS, {"block_size": 1}, {}),
    "a stream": (["To be, or not to be.\nThat is it."], {"unit": "stream"}, {}),
    "greek": (["αθήνα", "βόλος", "χανιά"], {"record": True}, {}),
    "no letters": (["12", "1 1"], {"record": True}, {}),
    "one character": (["aaaa"], {}, {}),
    "batches": (DOCS, {"batch_size": 3, "record": True}, {}),
    "large": (DOCS, {"record": True}, {"MOST_TRACED": 1, "MOST_GRADIENTS": 1, "MOST_SNAPSHOTS": 1}),
    "huge": (DOCS, {"record": True}, {"MOST_TRACED": 1, "MOST_GRADIENTS": 1, "MOST_WEIGHTS": 1}),
    "float32": (DOCS, {}, {"MOST_EXACT": 1}),
    "thinned": (DOCS, {"steps": 30}, {"MOST_LOSSES": 8}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "documents"),
    [*((name, True) for name in VARIANTS), ("no record", False), ("a stream", False)],
)
def test_every_model_has_all_sections(name, documents, monkeypatch):
    docs, settings, limits = VARIANTS[name]
    for limit, value in limits.items():
        monkeypatch.setattr(contents, limit, value)
    run = mg.train(docs, **{"steps": 3, **SIZES, **settings})
    if not documents:
        run.documents = []
    elements = Elements(mg.explain(run, temperature=1.0).html())
    sections = [e[1]["id"] for e in elements.named("section") if e[1].get("id") in page.SECTIONS]
    assert sections == list(page.SECTIONS)
    assert not any("None" in e[2].split() for e in elements.found if e[0] in ("td", "p"))


def test_a_notebook_shows_the_page_in_a_frame(report):
    [frame] = Elements(report._repr_html_()).found
    assert frame[0] == "iframe" and frame[1]["srcdoc"] == report.html()
    assert repr(report) == "Report(448 params, texts 'nina', 'anna')"


def test_a_page_is_saved_and_replaces_a_page_only(report, run, tmp_path):
    path = tmp_path / "names.html"
    report.save(path)
    assert path.read_text("utf-8") == report.html()
    assert os.listdir(tmp_path) == ["names.html"]
    other = mg.explain(run, "mia")
    other.save(path)
    assert path.read_text("utf-8") == other.html()
    for content in ("<!doctype html>\n<p>mine", "x"):
        path.write_text(content)
        with pytest.raises(ValueError, match="names.html: is not a page of explain, so it is not"):
            report.save(path)
        assert path.read_text() == content
    path.write_text("")
    report.save(path)
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        report.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        report.save(tmp_path / "no" / "names.html")


def test_the_default_page_is_as_small_as_is_promised():
    if mg.BACKEND == "python":
        pytest.skip("the page is as large with the compiled core, and comes much sooner")
    run = mg.train(mg.load_documents(), record=True)
    for texts in ((), ("emma", "olivia", "dorothy")):
        assert len(mg.explain(run, texts).html().encode()) < 1_200_000


# The command


def test_the_command_writes_a_page(path, capsys):
    out = path.with_suffix(".html")
    for _ in range(2):
        assert run_command(["explain", str(path), "--text", "nina", "--out", str(out)]) == 0
        printed = capsys.readouterr().out
        assert printed == f"page: {out} ({out.stat().st_size:,} bytes)\n"
    assert stat.S_ISREG(out.stat().st_mode) and out.read_bytes().startswith(page.START)
    [data] = [e[2] for e in Elements(out.read_text("utf-8")).named("script")
              if e[1].get("id") == "data"]  # fmt: skip
    assert json.loads(data)["meta"]["command"] == f"microgpt explain {path} --text=nina --out {out}"


def test_the_same_command_writes_the_same_bytes(path, capsys, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    out, pages = path.with_suffix(".html"), set()
    for _ in range(2):
        assert run_command(["explain", str(path), "--text", "nina", "--out", str(out)]) == 0
        pages.add(out.read_bytes())
    assert len(pages) == 1 and b"2023-11-14T22:13:20Z" in pages.pop()


@pytest.mark.skipif(os.name == "nt", reason="a name is text on Windows")
def test_a_name_that_is_no_text_can_be_on_a_page(path, capsys):
    odd = os.fsencode(path.parent) + b"/\xff\n<b>.safetensors"
    try:
        os.rename(path, odd)
    except OSError:
        pytest.skip("the file system has no such names")
    out = str(path.with_suffix(".html"))
    assert run_command(["explain", os.fsdecode(odd), "--text", "nina", "--out", out]) == 0
    text = path.with_suffix(".html").read_text("utf-8")
    assert "&lt;b&gt;.safetensors" in text and "<b>.safetensors" not in text


def test_a_date_that_is_none_is_refused(path, capsys, monkeypatch):
    for date in ("today", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
        assert run_command(["explain", str(path), "--json"]) == 2
        error = f"SOURCE_DATE_EPOCH must be seconds since 1970, not '{date}'"
        assert error in capsys.readouterr().err


def test_the_demonstration_trains_first(tmp_path, capsys, monkeypatch):
    run = mg.prepare(mg.load_documents()[:50], steps=3, record=True, **SIZES)
    monkeypatch.setattr("microgpt.cli._demo", lambda: run)
    assert run_command(["explain", "--demo", "--text", "emma", "--out", str(tmp_path / "x")]) == 0
    data = Elements((tmp_path / "x").read_text("utf-8")).named("script")
    [data] = [json.loads(e[2]) for e in data if e[1].get("id") == "data"]
    assert data["meta"]["demo"] and data["training"]["step"] == 3 and data["snapshots"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("MODEL", "names.safetensors: is not a page of explain, so it is not overwritten"),
        ("", "'': is not a file name"),
        ("FOLDER", "is a folder, not a file"),
        ("FOLDER/no/x.html", "its folder does not exist"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_first(out, message, path, capsys, monkeypatch):
    monkeypatch.setattr("microgpt.cli.load", lambda _: pytest.fail("the model was loaded"))
    before = path.read_bytes()
    place = out.replace("MODEL", str(path)).replace("FOLDER", str(path.parent))
    assert run_command(["explain", str(path), "--out", place]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert path.read_bytes() == before


def test_a_page_needs_jinja_and_its_data_do_not(path, capsys, monkeypatch):
    page._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert run_command(["explain", str(path), "--out", str(path.with_suffix(".html"))]) == 1
    captured = capsys.readouterr()
    assert captured.err == "microgpt: a page needs Jinja2: pip install 'microgpt[explain]'\n"
    assert not path.with_suffix(".html").exists()
    assert run_command(["explain", str(path), "--json"]) == 0
    with pytest.raises(ImportError, match=r"microgpt\[explain\]"):
        mg.explain(mg.load(path)).html()
