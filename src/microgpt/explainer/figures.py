"""What the templates of the page show numbers with: text, colours, charts, source code.

The script of the page (explain-page/src) shows them in the same form: `number` here is `format`
there, and the classes of colours and charts are those of page.css.
"""

from __future__ import annotations

import io
import keyword
import math
import tokenize
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any

from markupsafe import Markup, escape

from .tensors import numbers_of

_EXACT = Context(prec=1200)  # every float has fewer digits than this


def number(value: float, form: int | str = 4) -> str:
    """Return a number as text, rounded half away from zero, with a true minus sign.

    form: decimals; or "g" for 4 significant digits, "%" for per cent with one decimal, "i" for a
        whole number with commas.

    >>> number(0.06250, 3), number(-1234.5, "i"), number(0.0377, "%"), number(1e-7, "g")
    ('0.063', '−1,235', '3.8 %', '1.000e-7')
    """
    if not math.isfinite(value):
        return "?" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if form == "i":
        text = f"{_rounded(value, 0):,}"
    elif form == "%":
        text = f"{_rounded(value * 100, 1)} %"
    elif form == "g":
        text = _significant(value, 4)
    else:
        text = f"{_rounded(value, int(form)):f}"
    if not text.strip("-0. %"):
        text = text.lstrip("-")
    return text.replace("-", "−", 1) if text.startswith("-") else text


def _rounded(value: float, decimals: int) -> Decimal:
    one = Decimal(1).scaleb(-decimals)
    return Decimal(value).quantize(one, ROUND_HALF_UP, _EXACT)


def _significant(value: float, digits: int) -> str:
    """Return what JavaScript's toPrecision gives."""
    if value == 0:
        return f"{0:.{digits - 1}f}"
    rounded = Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal(Decimal(value))
    exponent = rounded.adjusted()
    if -7 < exponent < digits:
        return f"{rounded:.{digits - 1 - exponent}f}"
    return f"{rounded.scaleb(-exponent):.{digits - 1}f}e{exponent:+d}"


def num(value: float, form: int | str = 4) -> Markup:
    """Return a number for the reader, with all its digits for whoever checks it."""
    html = '<span class="v" data-v="{}" data-f="{}">{}</span>'
    return Markup(html).format(repr(value), form, number(value, form))


def say(text: str, /, **values: object) -> Markup:
    """Return a string of strings.en.json with values in the place of {names}, escaped."""
    return Markup(text).format(**values)


def amount(share: float) -> str:
    """Return the colour class of an amount from 0 to 1."""
    return f"a{math.floor(15 * min(1.0, max(0.0, share)) + 0.5)}"


def signed(share: float) -> str:
    """Return the colour class of a signed share from -1 to 1."""
    return f"s{math.floor(7 * min(1.0, max(-1.0, share)) + 0.5) + 7}"


def rows(tensor: dict[str, Any]) -> list[list[float]]:
    """Return the numbers of a tensor of two dimensions as lists."""
    flat, columns = numbers_of(tensor), tensor["shape"][1]
    return [flat[i : i + columns] for i in range(0, len(flat), columns)]


def flat(tensor: dict[str, Any]) -> list[float]:
    """Return the numbers of a tensor of one dimension."""
    return numbers_of(tensor)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors, 0 if one of them is 0."""
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return product / (math.hypot(*a) * math.hypot(*b) or 1.0)


def rank(row: Sequence[float], target: int) -> int:
    """Return the place of a token in the order of probabilities, from 1."""
    return 1 + sum(p > row[target] or (p == row[target] and i < target) for i, p in enumerate(row))


def likeliest(row: Sequence[float], n: int) -> list[int]:
    """Return the tokens with the n largest numbers."""
    return sorted(range(len(row)), key=lambda i: -row[i])[:n]


def softmax(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return the probabilities of a row of logits under a temperature."""
    largest = max(row)
    exps = [math.exp((value - largest) / temperature) for value in row]
    total = math.fsum(exps)
    return [e / total for e in exps]


def steepest(data: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Return the parameters with the n largest gradients of the first text's loss."""
    found = [
        {"name": weights["name"], "row": i, "column": j, "value": value, "grad": grad}
        for weights, grads in zip(data["weights"], data["grads"]["data"], strict=True)
        for i, (values, row) in enumerate(zip(rows(weights), rows(grads), strict=True))
        for j, (value, grad) in enumerate(zip(values, row, strict=True))
    ]
    return sorted(found, key=lambda it: -abs(it["grad"]))[:n]


def nonzero(tensors: Iterable[dict[str, Any]]) -> int:
    """Return how many numbers of tensors are not 0."""
    return sum(number != 0.0 for tensor in tensors for number in numbers_of(tensor))


def adam_example(data: dict[str, Any]) -> dict[str, Any]:
    """Return Adam's numbers for the parameter of the first matrix with the largest gradient.

    The keys are those of the strings "adam.": g, m, v, mhat, vhat, change, old, new.
    """
    adam, first = data["adam"], data["weights"][0]
    grads = numbers_of(adam["grad"][0])
    at = max(range(len(grads)), key=lambda i: abs(grads[i]))
    g = grads[at]
    old, new, m, v = (numbers_of(adam[name][0])[at] for name in ("p", "p_after", "m", "v"))
    beta1, beta2, taken = adam["beta1"], adam["beta2"], adam["step"] + 1
    m, v = beta1 * m + (1.0 - beta1) * g, beta2 * v + (1.0 - beta2) * (g * g)
    row, column = divmod(at, first["shape"][1])
    return {
        "name": first["name"], "row": row, "column": column,
        "g": g, "m": m, "v": v, "old": old, "new": new, "change": new - old,
        "mhat": m / (1.0 - beta1**taken), "vhat": v / (1.0 - beta2**taken),
    }  # fmt: skip


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 660, 300, 46, 648, 22, 260


class Plot:
    """A chart of lines and points in two axes, as an SVG."""

    def __init__(
        self,
        label: str,
        x: tuple[float, float],
        y: tuple[float, float],
        x_name: str,
        y_name: str,
    ) -> None:
        self._x, self._y = x, y
        self._head = Markup(
            '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">'
        ).format(_WIDTH, _HEIGHT, label)
        self._parts: list[Markup] = []
        self._label = -math.inf  # where the last label of a point stands
        for tick, text in _ticks(*y):
            self._add(
                '<g class="tick"><line stroke="currentColor" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
                '<text x="{}" y="{}" text-anchor="end">{}</text></g>',
                _LEFT, _RIGHT, _LEFT - 6, self._at(0, tick)[1] + 4, text, y=self._at(0, tick)[1],
            )  # fmt: skip
        for tick, text in _ticks(*x):
            self._add(
                '<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>',
                self._at(tick, 0)[0], _BOTTOM + 18, text,
            )  # fmt: skip
        self._add(
            '<text class="name" x="{}" y="{}" text-anchor="end">{}</text>',
            _RIGHT, _HEIGHT - 6, x_name,
        )  # fmt: skip
        self._add('<text class="name" x="0" y="12">{}</text>', y_name)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self._x, self._y
        return (
            round(_LEFT + (x - x0) / (x1 - x0) * (_RIGHT - _LEFT), 1),
            round(_BOTTOM - (y - y0) / (y1 - y0) * (_BOTTOM - _TOP), 1),
        )

    def _add(self, svg: str, *values: object, **named: object) -> None:
        self._parts.append(Markup(svg).format(*values, **named))

    def line(self, points: Iterable[Sequence[float]], kind: str = "line") -> Plot:
        """Add a line through points; kind: its class."""
        path = "L".join("{},{}".format(*self._at(x, y)) for x, y in points)
        self._add('<path class="{}" fill="none" stroke="currentColor" d="M{}"/>', kind, path)
        return self

    def level(self, y: float | None, name: str) -> Plot:
        """Add a dashed level with its name, unless there is none."""
        if y is not None and self._y[0] <= y <= self._y[1]:
            at = self._at(0, y)[1]
            self._add(
                '<g class="level"><line stroke="currentColor" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
                '<text x="{}" y="{}" text-anchor="end">{}</text></g>',
                _LEFT, _RIGHT, _RIGHT, at - 4, name, y=at,
            )  # fmt: skip
        return self

    def point(self, x: float, y: float, name: str) -> Plot:
        """Add a point with its name, from the top down: a name is moved below the last one."""
        left, top = self._at(x, y)
        self._label = max(top - 5, self._label + 13)
        self._add(
            '<g class="point" transform="translate({} {})">'
            '<circle r="5" fill="none" stroke="currentColor"/>'
            '<text x="9" y="{}">{}</text></g>',
            left, top, round(self._label - top, 1), name,
        )  # fmt: skip
        return self

    def bar(self, x: float, width: float, y: float) -> Plot:
        """Add a bar from 0 to y, centred on x."""
        left, top = self._at(x - width / 2, y)
        right, bottom = self._at(x + width / 2, 0)
        self._add(
            '<rect class="column" x="{}" y="{}" width="{}" height="{}"/>',
            left, top, round(right - left, 1), round(bottom - top, 1),
        )  # fmt: skip
        return self

    def __html__(self) -> str:
        return self._head + Markup("").join(self._parts) + Markup("</svg>")


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return about six round numbers between low and high, with their text."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, number(i * step, decimals or "i")) for i in range(first, last + 1)]


def surprise(limit: float) -> list[tuple[float, float]]:
    """Return points of the curve -log p up to a loss."""
    losses = [limit * i / 120 for i in range(121)]
    return [(math.exp(-loss), loss) for loss in losses]


def highlight(lines: Sequence[str]) -> Markup:
    """Return source lines as HTML, one element a line, keywords and strings and comments marked."""
    kinds = [[""] * len(line) for line in lines]
    source = io.StringIO("".join(f"{line}\n" for line in lines))
    try:
        for token in tokenize.generate_tokens(source.readline):
            kind = _kind(token)
            (first, begin), (last, end) = token.start, token.end
            for row in range(first, last + 1) if kind else ():
                line = kinds[row - 1]
                start, stop = begin if row == first else 0, end if row == last else len(line)
                line[start:stop] = [kind] * (stop - start)
    except (tokenize.TokenError, IndentationError):
        pass  # a piece of a file may end inside a block
    html = Markup("")
    for text, marks in zip(lines, kinds, strict=True):
        html += Markup('<span class="line">{}\n</span>').format(_marked(text, marks))
    return html


def _kind(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.COMMENT:
        return "comment"
    if token.type == tokenize.STRING:
        return "comment" if token.string.startswith('"""') else "string"
    if token.type == tokenize.NAME and keyword.iskeyword(token.string):
        return "keyword"
    return ""


def _marked(line: str, marks: Sequence[str]) -> Markup:
    html, start = Markup(""), 0
    for i in range(1, len(line) + 1):
        if i == len(line) or marks[i] != marks[start]:
            piece = escape(line[start:i])
            kind = marks[start]
            html += Markup('<span class="{}">{}</span>').format(kind, piece) if kind else piece
            start = i
    return html


FILTERS = {"number": number, "num": num, "say": say, "rows": rows, "flat": flat}
GLOBALS = {
    "num": num,
    "say": say,
    "amount": amount,
    "signed": signed,
    "cosine": cosine,
    "rank": rank,
    "likeliest": likeliest,
    "softmax": softmax,
    "plot": Plot,
    "surprise": surprise,
    "highlight": highlight,
    "steepest": steepest,
    "nonzero": nonzero,
    "adam_example": adam_example,
    "zip": zip,
    "sqrt": math.sqrt,
    "fsum": math.fsum,
    "exp": math.exp,
    "log": math.log,
}
