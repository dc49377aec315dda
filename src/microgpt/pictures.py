"""Pictures of a graph and of attention: SVG, written without a library.

A picture is one `<svg>` that brings its colours along, for a light and a dark surrounding, and
that says in a title and a description what it shows. The same graph gives the same bytes in both
cores, as far as its numbers agree.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Any
from unicodedata import combining, east_asian_width

from . import _checks as checks
from .core import Matrix, Value, no_grad
from .files import named, write_whole
from .layout import layered, ranks_of
from .training import Run, check_run

Names = Mapping[Any, Any]

MOST = 64  # nodes of a graph that are drawn; with more one does not see more
_CELLS = 20_000  # of all tables of attention; above that a browser becomes slow


class Picture:
    """An SVG picture: `svg` is its text; notebooks show it; `save` writes it to a file."""

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def __repr__(self) -> str:
        found = re.search('viewBox="0 0 ([0-9.]+) ([0-9.]+)".*?<title[^>]*>(.*?)</title>', self.svg)
        return "Picture({} x {}, {})".format(*found.groups()) if found else "Picture()"

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file, whose name ends with .svg.

        Raises ValueError if it does not, an OSError whose message is one line.
        """
        name = os.fsdecode(path)
        if not name.lower().endswith(".svg"):
            raise ValueError(f"a picture is saved as FILE.svg, not as {name!r}")
        with named(name):
            write_whole(name, [f"{self.svg}\n".encode()])


@dataclass(frozen=True)
class Node:
    """A node as a picture shows it.

    op: what it was computed by, "" for a leaf. name: the reader's name for it, or "".
    shape: of a block, else None. data, grad: the numbers, of a block their root mean squares; None
    if they are not known. inputs: the nodes that it was computed from, without those folded away;
    local_grads: of a Value, its derivative with respect to each of them.
    folded: how many nodes below it are not drawn, if it has inputs among them.
    """

    op: str
    name: str
    shape: tuple[int, int] | None
    data: float | None
    grad: float | None
    inputs: tuple[int, ...]
    local_grads: tuple[float, ...] = ()
    folded: int = 0


@dataclass(frozen=True)
class Graph:
    """The nodes to draw, the result first, and how many there are in all."""

    nodes: list[Node]
    total: int


def draw(value: Value | Matrix, names: Names | None = None, most: int = MOST) -> Picture:
    """Return a picture of the graph of a Value or a Matrix: what it was computed from, and how.

    Each node shows its data and its gradient; a block op is one node, with its shape and the root
    mean squares of both. Constants are nodes too.
    names: the reader's names, as {value: text} or {text: value}, so that
        `names=model.state_dict` will do; those that are not in the graph are ignored.
    most: how many nodes are drawn. Of a larger graph these are the ones nearest the result; where
        others are folded away a node says how many there are below it.

    Raises TypeError if value is no node or a name no text, ValueError unless most is positive.

    >>> a, b = Value(2), Value(3)
    >>> L = a * b + a
    >>> L.backward()
    >>> draw(L, names={a: "a", b: "b", L: "L"})
    Picture(345 x 166, Graph of L: 4 nodes)
    """
    return Picture(graph_svg(graph_of(value, names, most)))


def to_dot(value: Value | Matrix, names: Names | None = None, most: int = MOST) -> str:
    """Return the graph that `draw` draws as text in the language of graphviz.

    Arguments and errors are those of draw.

    >>> a = Value(2)
    >>> print(to_dot(a * a, names={a: "a"}))
    digraph {
      rankdir=LR
      node [shape=record]
      n0 [label="{*|data 4|grad 0}"]
      n1 [label="{a|data 2|grad 0}"]
      n1 -> n0
      n1 -> n0
    }
    """
    graph = graph_of(value, names, most)
    lines = ["digraph {", "  rankdir=LR", "  node [shape=record]"]
    for i, node in enumerate(graph.nodes):
        words = [_heading(node), *(f"{name} {number}" for name, number in _numbers(node))]
        if node.folded:
            words.append(_folded(node))
        words = [re.sub(r'[\\{}|<>"]', r"\\\g<0>", _visible(word)) for word in words if word]
        lines.append(f'  n{i} [label="{{{"|".join(words)}}}"]')
    lines += [f"  n{j} -> n{i}" for i, node in enumerate(graph.nodes) for j in node.inputs]
    return "\n".join([*lines, "}"])


# The graph: which nodes there are, and which of them are drawn.


def graph_of(value: Value | Matrix, names: Names | None = None, most: int = MOST) -> Graph:
    """Return the graph below value as `draw` shows it; arguments and errors are those of draw."""
    if not _is_node(value):
        raise TypeError(f"value must be a Value or a Matrix, not {type(value).__name__}")
    checks.integer(most, "most", 1)
    called = _names_by_node(names or {})
    things, inputs, matrices = _walk(value)
    entries = _entries(things, inputs, matrices)
    levels = ranks_of(inputs)
    drawn = _nearest(inputs, levels, most)
    folded = _folded_below(inputs, levels, drawn)
    place = {node: i for i, node in enumerate(drawn)}
    nodes = []
    for node in drawn:
        thing, below = things[node], inputs[node]
        words = called.get(id(thing), [])
        op, shape, data, grad, local_grads = "", None, None, None, ()
        if isinstance(thing, float):
            data = thing
        elif _is_block(thing):
            op, shape = thing._op, thing.shape
            if node in matrices:
                data, grad = matrices[node]._rms()
        else:
            op, data, grad = thing._op, thing.data, thing.grad
            if node in entries:
                block, at = entries[node]
                op = "[{}][{}]".format(*at)
                words = words or [f"{name}{op}" for name in called.get(id(things[block]), [])[:1]]
            elif op != "mean" and any(_is_block(things[child]) for child in below):
                op = "entry"
            elif len(thing._local_grads) == len(below):
                pairs = zip(below, thing._local_grads, strict=True)
                local_grads = tuple(local for child, local in pairs if child in place)
        inside = tuple(place[child] for child in below if child in place)
        name, hidden = " = ".join(words), folded.get(node, 0)
        nodes.append(Node(op, name, shape, data, grad, inside, local_grads, hidden))
    return Graph(nodes, len(things))


def _is_block(x: Any) -> bool:
    return hasattr(x, "shape")


def _is_node(x: Any) -> bool:
    return hasattr(x, "_inputs")


def _names_by_node(names: Names) -> dict[int, list[str]]:
    """Return id of a node -> its names."""
    if not isinstance(names, Mapping):
        kind = type(names).__name__
        raise TypeError(f"names must be a dict of a Value to its name, not a {kind}")
    found: dict[int, list[str]] = {}
    for node, name in names.items():
        if isinstance(node, str):
            node, name = name, node
        if not (_is_node(node) and isinstance(name, str)):
            kinds = f"{type(node).__name__} and {type(name).__name__}"
            raise TypeError(f"names must be a dict of a Value to its name, not of {kinds}")
        found.setdefault(id(getattr(node, "_block", node)), []).append(name)
    return found


def _walk(root: Any) -> tuple[list[Any], list[list[int]], dict[int, Any]]:
    """Return the nodes below root, the indices of the inputs of each, and the Matrix of a block.

    A block of which only entries are used has none: the pure core knows it from its entries alone.
    """
    things: list[Any] = []
    inputs: list[list[int]] = []
    matrices: dict[int, Any] = {}
    index: dict[int, int] = {}

    def enter(x: Any, is_matrix: bool) -> int:
        thing = getattr(x, "_block", x)
        if isinstance(thing, float) or id(thing) not in index:  # equal constants are many nodes
            index[id(thing)] = len(things)
            things.append(thing)
        i = index[id(thing)]
        if is_matrix:
            matrices[i] = x
        return i

    enter(root, _is_block(root))
    for thing in things:  # which grows meanwhile
        if isinstance(thing, float):
            inputs.append([])
        else:
            whole = _is_block(thing) or thing._op == "mean"
            inputs.append([enter(x, whole and _is_block(x)) for x in thing._inputs])
    return things, inputs, matrices


def _entries(
    things: list[Any], inputs: list[list[int]], matrices: dict[int, Any]
) -> dict[int, tuple[int, tuple[int, int]]]:
    """Return Value -> block, row and column, and link those that are entries of leaf blocks."""
    suspects = [
        i for i, thing in enumerate(things)
        if not (_is_block(thing) or isinstance(thing, float))
        and (not inputs[i] or thing._op != "mean" and _is_block(things[inputs[i][0]]))
    ]  # fmt: skip
    found: dict[int, tuple[int, tuple[int, int]]] = {}
    for block, matrix in matrices.items():
        if not matrix._op.startswith("["):  # the entries of a view are those of its owner
            for k, place in matrix._places([things[i] for i in suspects]).items():
                found[suspects[k]] = block, place
    for value, (block, _) in found.items():
        inputs[value] = [block]
    return found


def _nearest(inputs: list[list[int]], levels: list[int], most: int) -> list[int]:
    """Return the nodes to draw: all, or those nearest the result.

    With an inner node all nodes are drawn that were computed from it, with a leaf one of them, so
    that there is a way from each to the result.
    """
    n = len(inputs)
    if n <= most:
        return list(range(n))
    near = [(levels[node], node, node) for node in range(n)]
    for node, below in enumerate(inputs):
        for child in below:
            if not inputs[child]:  # a leaf comes right after the nearest node that uses it
                near[child] = min(near[child], (levels[node], node, child))
    return sorted(node for *_, node in heapq.nsmallest(most, near))


def _folded_below(
    inputs: list[list[int]], levels: list[int], drawn: Sequence[int]
) -> dict[int, int]:
    """Return for each drawn node with inputs that are not how many nodes below it are not."""
    shown = set(drawn)
    cut = [node for node in drawn if any(child not in shown for child in inputs[node])]
    above = {node: 0 for node in range(len(inputs)) if node not in shown}
    for bit, node in enumerate(cut):
        for child in inputs[node]:
            if child in above:
                above[child] |= 1 << bit
    for node in sorted(above, key=levels.__getitem__):
        mask = above[node]
        for child in inputs[node]:
            if child in above:
                above[child] |= mask
    sets = Counter(above.values())
    return {
        node: sum(n for mask, n in sets.items() if mask >> bit & 1) for bit, node in enumerate(cut)
    }


# The picture of a graph.

_LINE, _PAD, _PILL, _GAP = 16.0, 9.0, 20.0, 14.0
_BETWEEN = {True: 42.0, False: 34.0}  # two ranks, from left to right and from top to bottom
_WIDEST = 1000.0  # a picture from left to right; a wider one goes from top to bottom


@dataclass(frozen=True)
class _Box:
    """A node as it is drawn: its lines of text (left, right, class), and its sizes."""

    lines: list[tuple[str, str, str]]
    pill: str
    width: float
    height: float
    pill_width: float
    left: float  # where its text begins
    top: float


def graph_svg(
    graph: Graph,
    data: Sequence[float | None] | None = None,
    grad: Sequence[float | None] | None = None,
) -> str:
    """Return the SVG of a graph.

    data, grad: the numbers to show instead of those of the nodes, None: a blank, for a picture of
    the graph at an earlier time. Nothing else moves.
    """
    now = [
        replace(
            node,
            data=node.data if data is None else data[i],
            grad=node.grad if grad is None else grad[i],
        )
        for i, node in enumerate(graph.nodes)
    ]
    boxes = [_box(node, True) for node in graph.nodes]
    inputs, flat = [node.inputs for node in graph.nodes], True
    width, height, places, ways = _placed(inputs, boxes, flat)
    if width > _WIDEST:
        upright = [_box(node, False) for node in graph.nodes]
        placed = _placed(inputs, upright, False)
        if placed[0] < width:
            boxes, flat, (width, height, places, ways) = upright, False, placed
    body = [f'<path class="edge" d="{way}"/>' for way in ways]
    for i, (node, box) in enumerate(zip(now, boxes, strict=True)):
        body.append(_node_svg(i, node, box, places[i], flat))
    return _svg(width, height, _title_of(graph), _description_of(replace(graph, nodes=now)), body)


def _box(node: Node, flat: bool) -> _Box:
    lines = []
    shape = "" if node.shape is None else "{} × {}".format(*node.shape)
    if node.name or shape:
        lines.append((_shortened(node.name), shape, "name"))
    lines += [(label, number, label[:4]) for label, number in _numbers(node)]
    if node.folded:
        lines.append((_folded(node), "", "more"))
    text = max([
        _text_width(left, sort) + (10 if left and right else 0) + _text_width(right, "number")
        for left, right, sort in lines
    ], default=0)  # fmt: skip
    pill = _GLYPHS.get(node.op, node.op)
    left = _PAD + 4 if pill and flat else _PAD  # more where the op reaches into the box
    top = 6.0 if not pill or flat else 10.0
    return _Box(
        lines, pill, max(34.0, math.ceil(left + text + _PAD)), top + len(lines) * _LINE + 6,
        max(_PILL, math.ceil(7.3 * len(pill) + 12)) if pill else 0.0, left, top,
    )  # fmt: skip


_GLYPHS = {"*": "×", "-": "−"}  # a star stands too high, a hyphen is too short


def _numbers(node: Node) -> list[tuple[str, str]]:
    """Return the labels and the numbers of a node."""
    rms = "" if node.shape is None else " rms"
    both = (("data", node.data), ("grad", node.grad))
    return [(label + rms, _number(x)) for label, x in both if x is not None]


def _number(x: float) -> str:
    return f"{x:.4g}".replace("-", "−")


def _folded(node: Node) -> str:
    return f"⋯ {node.folded:,} node{'s' * (node.folded != 1)} folded"


def _heading(node: Node) -> str:
    shape = "" if node.shape is None else "{} x {}".format(*node.shape)
    return " ".join(filter(None, [node.name, node.op, shape]))


Placed = tuple[float, float, list[tuple[float, float]], list[str]]


def _placed(inputs: Sequence[Sequence[int]], boxes: Sequence[_Box], flat: bool) -> Placed:
    """Return width, height, the left upper corner of each node and the path of each edge.

    flat: from left to right, else from top to bottom.
    """
    pills = [(box.pill_width if flat else _PILL) - 7 if box.pill else 0.0 for box in boxes]
    lengths = [
        pill + (box.width if flat else box.height) for pill, box in zip(pills, boxes, strict=True)
    ]
    breadths = [box.height if flat else max(box.width, box.pill_width) for box in boxes]
    plan = layered(inputs, breadths, _GAP)
    rank_of = {node: rank for rank, nodes in enumerate(plan.ranks) for node in nodes}
    farthest = [0.0] * len(plan.ranks)  # that an edge goes across on its way to a rank
    edges = ((child, node) for node, below in enumerate(inputs) for child in below)
    for (child, node), route in zip(edges, plan.routes, strict=True):
        steps = pairwise([plan.across[child], *route, plan.across[node]])
        for rank, (a, b) in zip(range(rank_of[child] - 1, -1, -1), steps, strict=False):
            farthest[rank] = max(farthest[rank], abs(a - b))
    ends: dict[int, tuple[float, float]] = {}  # rank -> where it begins and ends
    at = 0.0
    for rank in range(len(plan.ranks) - 1, -1, -1):
        length = max(lengths[node] for node in plan.ranks[rank])
        ends[rank] = at, at + length
        at += length
        if rank:  # a long way across needs room to be told from others
            at += min(100.0, max(_BETWEEN[flat], farthest[rank - 1] / 8))
    start = [ends[rank_of[node]][1] - lengths[node] for node in range(len(boxes))]
    routes, ways = iter(plan.routes), []
    for node, below in enumerate(inputs):
        arrivals = [(child, next(routes)) for child in below]
        origins = [route[-1] if route else plan.across[child] for child, route in arrivals]
        ports = _ports(boxes[node], origins, plan.across[node], flat)
        for (child, route), port in zip(arrivals, ports, strict=True):
            points = [(start[child] + lengths[child], plan.across[child])]
            for rank, across in zip(range(rank_of[child] - 1, -1, -1), route, strict=False):
                points += [(end, across) for end in ends[rank]]
            points.append((start[node], port))
            ways.append(_way(points, flat))
    corners = [
        (start[i] + pills[i], plan.across[i] - (box.height if flat else box.width) / 2)
        for i, box in enumerate(boxes)
    ]
    breadth = max(a + b / 2 for a, b in zip(plan.across, breadths, strict=True))
    breadth = max([breadth, *(x for route in plan.routes for x in route)])
    if flat:
        return at, breadth, corners, ways
    return breadth, at, [(x, y) for y, x in corners], ways


def _ports(box: _Box, origins: list[float], middle: float, flat: bool) -> list[float]:
    """Return where edges from these coordinates meet a node; one from its middle meets that."""
    room = (_PILL if flat else box.pill_width) - 8
    apart = min(7.0, room / max(1, len(origins) - 1))
    order = sorted(range(len(origins)), key=origins.__getitem__)
    straight = [k for k, i in enumerate(order) if abs(origins[i] - middle) < 0.5]
    first = straight[0] if straight and len(origins) <= 3 else (len(origins) - 1) / 2
    return [middle + (order.index(i) - first) * apart for i in range(len(origins))]


def _way(points: list[tuple[float, float]], flat: bool) -> str:
    """Return a path through points, straight within a rank and curved between two."""
    def at(along: float, across: float) -> str:
        return f"{_n(along)} {_n(across)}" if flat else f"{_n(across)} {_n(along)}"

    path = [f"M{at(*points[0])}"]
    for i, ((x, y), (to_x, to_y)) in enumerate(pairwise(points)):
        if i % 2 or abs(y - to_y) < 0.5:
            path.append(f"L{at(to_x, to_y)}")
        else:
            middle = (x + to_x) / 2
            path.append(f"C{at(middle, y)} {at(middle, to_y)} {at(to_x, to_y)}")
    return "".join(path)


def _n(x: float) -> str:
    """Return a coordinate with one decimal at most."""
    return f"{x:.1f}".removesuffix(".0")


def _node_svg(i: int, node: Node, box: _Box, place: tuple[float, float], flat: bool) -> str:
    (x, y), w, h = place, box.width, box.height
    kind = " block" * (node.shape is not None) + " result" * (i == 0)
    parts = [f'<g class="node{kind}" data-node="{i}">']
    digits = "{:.8g}" if node.shape is None else "{:.4g}"  # in which both cores agree
    both = (("data", node.data), ("grad", node.grad))
    words = [_heading(node), *(f"{name} {digits.format(x)}" for name, x in both if x is not None)]
    parts.append(f"<title>{_text(', '.join(filter(None, words)))}</title>")
    if node.shape:
        parts.append(_rect(x + 3, y + 3, w, h, "sheet"))
    parts.append(_rect(x, y, w, h, "box"))
    if node.folded:
        if flat:
            way = f"M{_n(x - box.pill_width - 7)} {_n(y + h / 2)}h14"
        else:
            way = f"M{_n(x + w / 2)} {_n(y - _PILL - 7)}v14"
        parts.append(f'<path class="cut" d="{way}"/>')
    numbers = dict(_numbers(node))  # now; those of the box gave it its size
    for k, (left, right, sort) in enumerate(box.lines):
        base = _n(y + box.top + k * _LINE + 12)
        if left:
            parts.append(f'<text class="{"label" if sort in ("data", "grad") else sort}" '
                         f'x="{_n(x + box.left)}" y="{base}">{_text(left)}</text>')  # fmt: skip
        right = numbers.get(left, "") if sort in ("data", "grad") else right
        if right:
            parts.append(f'<text class="{"shape" if sort == "name" else sort} end" '
                         f'x="{_n(x + w - _PAD)}" y="{base}">{_text(right)}</text>')  # fmt: skip
    if box.pill:
        px = x - box.pill_width + 7 if flat else x + (w - box.pill_width) / 2
        py = y + (h - _PILL) / 2 if flat else y - _PILL + 7
        parts.append(_rect(px, py, box.pill_width, _PILL, "pill", _PILL / 2))
        parts.append(f'<text class="op" x="{_n(px + box.pill_width / 2)}" '
                     f'y="{_n(py + 14.2)}">{_text(box.pill)}</text>')  # fmt: skip
    return "".join([*parts, "</g>"])


def _rect(x: float, y: float, w: float, h: float, sort: str, radius: float = 4) -> str:
    return (f'<rect class="{sort}" x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}" '
            f'rx="{_n(radius)}"/>')  # fmt: skip


def _title_of(graph: Graph) -> str:
    name = _shortened(graph.nodes[0].name)
    nodes = f"{graph.total:,} node{'s' * (graph.total != 1)}"
    drawn = f", {len(graph.nodes)} of them drawn" if graph.total > len(graph.nodes) else ""
    return f"Graph{f' of {name}' if name else ''}: {nodes}{drawn}"


def _description_of(graph: Graph) -> str:
    """Return the graph in words, from the result on."""
    def known_as(i: int) -> str:
        return graph.nodes[i].name or f"node {i + 1}"

    sentences = []
    for i, node in enumerate(graph.nodes):
        words = [known_as(i)]
        if node.shape:
            words.append("({} x {})".format(*node.shape))
        words.append(f"is {node.op}" if node.op else "is a leaf")
        if node.inputs:
            words.append(f"of {' and '.join(map(known_as, node.inputs))}")
        if node.folded:
            words.append(f"{'and' if node.inputs else 'of'} what {node.folded:,} hidden nodes give")
        numbers = ", ".join(f"{name} {number}" for name, number in _numbers(node))
        sentences.append(f"{' '.join(words)}{': ' if numbers else ''}{numbers}.")
    return " ".join(sentences)


# Attention.

_CELL, _HEAD = 34.0, 46.0  # a cell; the room for the tokens beside and above a table
_FAINT, _STRONG = 0.58, 0.81  # shades between which a number is dark in both surroundings


def draw_attention(
    run: Run, text: str, layer: int | None = None, head: int | None = None
) -> Picture:
    """Return the attention of a run's model to a text: a table for each layer and head.

    Row by row a token attends to itself and to those before it: the numbers are the weights, which
    add up to 1 in each row, and later tokens are hatched. BOS begins the text.
    layer, head: the only layer or head to draw, counted from 0; None: all.

    Raises TypeError if run is no Run, ValueError if the text has a character that the model does
    not know or is too long for it, if there is no such layer or head, if the tables would be very
    large, or if the model, of a class of one's own, puts no attention weights into its trace.
    """
    check_run(run, "draw_attention")
    config = run.model.config
    layers = _chosen(layer, config.n_layer, "layer")
    heads = _chosen(head, config.n_head, "head")
    ids = run.tokenizer.encode(text)[:-1]
    n = len(ids)
    if n > config.block_size:
        raise ValueError(f"the text has {n - 1} characters, block_size is {config.block_size}")
    cells = n * n * len(layers) * len(heads)
    if cells > _CELLS:
        raise ValueError(
            f"the tables would have {cells:,} cells, more than {_CELLS:,}: choose a layer or a head"
        )
    trace: dict[str, Matrix] = {}
    with no_grad():
        run.model.forward(ids, trace=trace)
    tokens = ["BOS", *map(_token, text)]
    tables = []
    for i in layers:
        weights = trace.get(f"layer{i}.attn_weights")
        if weights is None or weights.shape != (config.n_head * n, n):
            raise ValueError(f"the trace of a {type(run.model).__name__} has no attention weights")
        rows = weights.tolist()
        tables += [(f"layer {i}, head {h}", rows[h * n : (h + 1) * n]) for h in heads]
    return Picture(_attention_svg(text, tokens, tables, len(heads)))


def _chosen(number: int | None, n: int, what: str) -> list[int]:
    if number is None:
        return list(range(n))
    if checks.integer(number, what, 0) >= n:
        raise ValueError(f"{what} must be below {n}, not {number}")
    return [number]


def _token(char: str) -> str:
    """Return a character as a label shows it."""
    return {" ": "␣", "\n": "⏎", "\t": "⇥"}.get(char, _visible(char))


Table = tuple[str, list[list[float]]]  # its heading; the weights, a row for each token


def _attention_svg(text: str, tokens: Sequence[str], tables: Sequence[Table], columns: int) -> str:
    side = _HEAD + len(tokens) * _CELL
    fit = max(1, int((_WIDEST + 24) // (side + 24)))
    columns = max(c for c in range(1, columns + 1) if columns % c == 0 and c <= fit)
    body, words = [], []
    for k, (heading, rows) in enumerate(tables):
        x, y = (k % columns) * (side + 24), (k // columns) * (side + 44)
        body.append(f'<g transform="translate({_n(x)} {_n(y)})">'
                    f"{_table(heading, tokens, rows)}</g>")  # fmt: skip
        spoken = [
            f"{token}: " + ", ".join(f"{seen} {weight:.2f}" for seen, weight in
                                     zip(tokens, row[: t + 1], strict=False))
            for t, (token, row) in enumerate(zip(tokens, rows, strict=True))
        ]  # fmt: skip
        words.append(f"{heading[0].upper()}{heading[1:]}. {'; '.join(spoken)}.")
    width = min(len(tables), columns) * (side + 24) - 24
    height = -(-len(tables) // columns) * (side + 44) - 20
    body.append(f'<text class="note" x="0" y="{_n(height + 8)}">{_LEGEND}</text>')
    title = f"Attention to {_shortened(text)}" if text else "Attention to an empty text"
    intro = "Each row gives the weights of a token and of those before it; later ones are masked."
    return _svg(max(width, 480), height + 10, title, f"{intro} {' '.join(words)}", body)


_LEGEND = (
    "row: the token that looks · column: the token it looks at · each row adds up to 1 · "
    "hatched: later tokens, masked"
)


def _table(heading: str, tokens: Sequence[str], rows: Sequence[Sequence[float]]) -> str:
    n = len(tokens)
    parts = [f'<text class="name" x="{_n(_HEAD)}" y="12">{_text(heading)}</text>']
    for t, token in enumerate(tokens):
        middle = _n(_HEAD + (t + 0.5) * _CELL)
        parts.append(f'<text class="middle" x="{middle}" y="36">{_text(token)}</text>')
        base = _n(_HEAD + (t + 0.5) * _CELL + 4)
        parts.append(f'<text class="end" x="{_n(_HEAD - 8)}" y="{base}">{_text(token)}</text>')
    hatch = []
    for t, row in enumerate(rows):
        top = _HEAD + t * _CELL
        for s, weight in enumerate(row):
            left = _HEAD + s * _CELL
            if s > t:
                for k in (0.25, 0.5, 0.75, 1.0):
                    a, b = k * _CELL, _CELL - k * _CELL
                    hatch.append(f"M{_n(left)} {_n(top + a)}l{_n(a)} {_n(-a)}")
                    hatch.append(f"M{_n(left + a)} {_n(top + _CELL)}l{_n(b)} {_n(-b)}")
                continue
            shade = min(1.0, max(0.0, weight)) if weight == weight else 0.0
            parts.append(f'<rect class="shade" x="{_n(left)}" y="{_n(top)}" width="{_n(_CELL)}" '
                         f'height="{_n(_CELL)}" fill-opacity="{shade:.2f}"/>')  # fmt: skip
            sort = "faint" if shade < _FAINT else "strong" if shade > _STRONG else "medium"
            parts.append(f'<text class="cell {sort}" x="{_n(left + _CELL / 2)}" '
                         f'y="{_n(top + _CELL / 2 + 4)}">{_weight(weight)}</text>')  # fmt: skip
    lines = "".join(
        f"M{_n(_HEAD)} {_n(_HEAD + i * _CELL)}h{_n(n * _CELL)}"
        f"M{_n(_HEAD + i * _CELL)} {_n(_HEAD)}v{_n(n * _CELL)}" for i in range(n + 1)
    )  # fmt: skip
    parts.append(f'<path class="mask" d="{"".join(hatch)}"/><path class="grid" d="{lines}"/>')
    return "".join(parts)


def _weight(weight: float) -> str:
    """Return a weight as a cell shows it: two digits, without the 0 before them."""
    return f"{weight:.2f}".removeprefix("0")


# Text and colours.


def _text(text: str) -> str:
    """Return text as XML shows it: escaped, and without the characters that no XML can hold."""
    return escape(_visible(text))


def _visible(text: str) -> str:
    """Return text with what shows nothing as an escape, but for the joiners that letters need."""
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else ascii(c)[1:-1] for c in text)


def _text_width(text: str, sort: str) -> float:
    """Return about how wide a text is, in pixels; the fonts are the reader's."""
    letter = 7.3 if sort in ("data", "grad", "number") else 7.0
    wide = {"W": 13.0, "F": 13.0}
    return sum(
        0.0 if combining(c) else wide.get(east_asian_width(c), letter) for c in _visible(text)
    )


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


_SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif"
_MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
_STYLE = f"""
text{{font:12px {_SANS}}}
.data,.grad,.shape,.op,.cell{{font-family:{_MONO}}}
.name{{font-weight:600}}
.end{{text-anchor:end}}
.op,.cell,.middle{{text-anchor:middle}}
.op{{font-weight:600}}
.label,.more,.note{{font-size:11px}}
.cell{{font-size:11.5px}}
.mask{{stroke-width:.6}}
.edge,.cut{{fill:none;stroke-width:1.4}}
.cut{{stroke-dasharray:2 3}}
.result .box{{stroke-width:2}}
"""
# Contrast with what is behind it is at least 4.5 for every text in both, 3 for lines (WCAG 2.1).
_LIGHT = {
    "paper": "#fdfdfb", "ink": "#1b1b1b", "soft": "#62625e", "line": "#8b8b85", "box": "#ffffff",
    "block": "#eef2f8", "accent": "#2b5797", "on": "#ffffff", "grad": "#9a3d00",
    "faint": "#000", "strong": "#fff",
}  # fmt: skip
_DARK = {
    "paper": "#14161a", "ink": "#e6e6e3", "soft": "#a2a29d", "line": "#6b6e75", "box": "#1d2026",
    "block": "#232b38", "accent": "#93bdf2", "on": "#14161a", "grad": "#ffb37a",
    "faint": "#fff", "strong": "#000",
}  # fmt: skip


def _colours(c: Mapping[str, str]) -> str:
    return f"""
.paper{{fill:{c["paper"]}}}
text{{fill:{c["ink"]}}}
.label,.more,.shape,.note{{fill:{c["soft"]}}}
.grad{{fill:{c["grad"]}}}
.edge,.cut{{stroke:{c["line"]}}}
.box,.sheet{{fill:{c["box"]};stroke:{c["line"]}}}
.block .box,.block .sheet{{fill:{c["block"]}}}
.result .box{{stroke:{c["ink"]}}}
.pill,.shade{{fill:{c["accent"]}}}
.op{{fill:{c["on"]}}}
.faint{{fill:{c["faint"]}}}
.medium{{fill:#000}}
.strong{{fill:{c["strong"]}}}
.grid,.mask{{fill:none;stroke:{c["line"]}}}
"""


def _scoped(css: str, name: str) -> str:
    """Return rules that hold in one picture of a page only."""
    rules = [line for line in css.splitlines() if line]
    return "".join(
        ",".join(f"#{name} {part}" for part in rule[: rule.index("{")].split(","))
        + rule[rule.index("{") :]
        for rule in rules
    )


def _svg(width: float, height: float, title: str, description: str, body: Iterable[str]) -> str:
    """Return a picture of this size with a margin; its id follows from what it shows."""
    margin = 16.0
    w, h = _n(math.ceil(width + 2 * margin)), _n(math.ceil(height + 2 * margin))
    inside = "".join(body)
    content = f"{w} {h} {title} {description} {inside}"
    name = f"mg{hashlib.sha256(content.encode(errors='replace')).hexdigest()[:10]}"
    dark = f"@media (prefers-color-scheme:dark){{{_scoped(_colours(_DARK), name)}}}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" id="{name}" width="{w}" height="{h}" '
        f'viewBox="0 0 {w} {h}" role="img" aria-labelledby="{name}-t {name}-d" '
        f'style="max-width:100%;height:auto">'
        f'<title id="{name}-t">{_text(title)}</title>'
        f'<desc id="{name}-d">{_text(description)}</desc>'
        f"<style>{_scoped(_STYLE, name)}{_scoped(_colours(_LIGHT), name)}{dark}</style>"
        f'<rect class="paper" width="{w}" height="{h}" rx="6"/>'
        f'<g transform="translate({_n(margin)} {_n(margin)})">{inside}</g></svg>'
    )
