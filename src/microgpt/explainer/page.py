"""The page: one HTML file that needs nothing else, made of the data by templates."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from html import escape
from importlib import import_module, resources
from typing import Any

from ..files import named, printable, try_writing, write_whole
from ..training import Run
from .contents import contents

SECTIONS = (
    "header", "dataset", "tokens", "prediction", "softmax", "loss", "autograd", "embedding",
    "attention", "pipeline", "training", "sampling", "efficiency", "check",
)  # fmt: skip
START = b"<!doctype html>\n<!-- microgpt explain -->\n"


class Fragment:
    """One section of a page, as HTML that notebooks show."""

    def __init__(self, html: str) -> None:
        self._html = html

    def __str__(self) -> str:
        return self._html

    def _repr_html_(self) -> str:
        return self._html


class Report:
    """A page about a model; a notebook shows it.

    data: all that it holds, as JSON has it; `schema.json` beside this module describes it.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def __repr__(self) -> str:
        texts = ", ".join(repr(text["text"]) for text in self.data["texts"])
        return f"Report({self.data['config']['num_params']:,} params, texts {texts})"

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 48em; border: 1px solid"
        return f'<iframe srcdoc="{escape(self.html())}" style="{style}"></iframe>'

    def html(self) -> str:
        """Return the page. Raises ImportError if Jinja2 is not installed."""
        return _rendered("page.html.j2", self.data)

    def section(self, name: str) -> Fragment:
        """Return one section by its name, with pictures and tables instead of controls.

        Raises ValueError if no section has the name; and what html raises.
        """
        if name not in SECTIONS:
            raise ValueError(f"no section {name!r}: they are {', '.join(SECTIONS)}")
        html, style = _rendered(f"sections/{name}.html.j2", self.data), _file("page.css")
        style = style.replace(".explain", ":scope")  # the notebook keeps its own style
        scoped = f"<style>@scope (.explain) {{\n{style}}}</style>"
        return Fragment(f'<div class="explain">{scoped}\n{html}</div>')

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, whole or not at all.

        Raises an OSError if it cannot be written, ValueError if it would overwrite what is no
        such page; the message is one line. And what html raises.
        """
        name = os.fsdecode(path)
        check_output(name)
        content = self.html().encode(errors="replace")  # a file name can be no text
        with named(name):
            write_whole(name, [content])


def explain(
    run: Run,
    texts: str | Iterable[str] = (),
    *,
    seed: int | None = None,
    temperature: float = 0.5,
    top_k: int | None = None,
    max_snapshots: int = 16,
    path: str | os.PathLike[str] | None = None,
    command: str = "",
    demo: bool = False,
) -> Report:
    """Return a page about the model of a run, with texts of the reader's.

    texts: what is shown and can be chosen; the first is explained without JavaScript too. If there
        are none, two documents are, or samples of a run that was loaded without its documents.
    seed, temperature, top_k: of the samples, as in generate; None as seed: those that the run
        would generate next. The run is not changed.
    max_snapshots: how many of a recorded training are shown.
    path: the file of the run; its name and checksum are shown.
    command: what makes the page again; demo: whether that is the demonstration.

    Raises what trace and generate raise of texts and settings, FloatingPointError if the numbers of
    the model are too large.

    >>> from microgpt import prepare
    >>> report = explain(prepare(["emma", "ava"]), "emma")
    >>> report.data["texts"][0]["ids"]
    [3, 1, 2, 2, 0, 3]
    """
    data = contents(
        run,
        [texts] if isinstance(texts, str) else list(texts),
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        max_snapshots=max_snapshots,
        path=None if path is None else os.fsdecode(path),
        command=command,
        demo=demo,
    )
    try:
        json.dumps(data, allow_nan=False)
    except ValueError:
        raise FloatingPointError("a number of the model is too large for a page") from None
    return Report(data)


def check_output(path: str) -> None:
    """Raise what Report.save raises, before there is a page."""
    _environment()
    try_writing(path)
    if os.path.isfile(path) and os.path.getsize(path):
        with named(path), open(path, "rb") as file:
            start = file.read(len(START))
        if start != START:
            name = printable(path)
            raise ValueError(f"{name}: is not a page of explain, so it is not overwritten")


def script_json(value: Any) -> str:
    """Return JSON that can stand in a script element of HTML, whatever its strings hold.

    >>> script_json({"a": "</script>"})
    '{"a":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    unsafe = "<>&\u2028\u2029"
    return text.translate({ord(char): f"\\u{ord(char):04x}" for char in unsafe})


def _rendered(template: str, data: dict[str, Any]) -> str:
    """Return a template filled with the data."""
    environment = _environment()
    strings = json.loads(_file("strings.en.json"))
    script, markup = _file("page.js"), environment.filters["safe"]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    html: str = environment.get_template(template).render(
        data=data,
        json=markup(script_json(data)),
        words=markup(script_json(strings["script"])),
        t=strings,
        script=markup(script),
        script_hash=f"sha256-{digest}",
        style=markup(_file("page.css")),
    )
    return html


@cache  # compiling the templates takes longer than filling them
def _environment() -> Any:
    """Return the Jinja environment of the templates. Raises ImportError without Jinja2."""
    try:
        import jinja2
    except ImportError:
        raise ImportError("a page needs Jinja2: pip install 'microgpt[explain]'") from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("microgpt.explainer", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = import_module(".figures", __package__)
    environment.filters.update(figures.FILTERS)
    environment.globals.update(figures.GLOBALS)
    return environment


def _file(name: str) -> str:
    return resources.files("microgpt.explainer").joinpath(name).read_text("utf-8")
