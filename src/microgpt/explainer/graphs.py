"""Small graphs of Values to step through, and the size of the whole one.

The Values are those of the pure core, whose nodes are the single operations. Where many of them
do the same, one Value stands for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core_py import Value, _softmax, _topological_sort
from ..layout import layered
from ..model import Config
from .passes import Rows

SHOWN = 5  # branches of a sum; what they leave is one more


@dataclass
class Graph:
    """A graph after backward.

    labels: what Values are called.
    folded: how many operations a Value stands for, if it is not one.
    totals: the whole gradient of a leaf, where what is not drawn gives some of it too.
    """

    name: str
    root: Value
    labels: dict[Value, str] = field(default_factory=dict)
    folded: dict[Value, int] = field(default_factory=dict)
    totals: dict[Value, float] = field(default_factory=dict)

    def leaf(self, data: float, label: str, folded: int = 0, total: float | None = None) -> Value:
        return self.node(data, "", label, [], [], folded, total)

    def node(
        self,
        data: float,
        op: str,
        label: str,
        children: Sequence[Value],
        local_grads: Sequence[float],
        folded: int = 0,
        total: float | None = None,
    ) -> Value:
        """Return a Value of this graph, its new root; the arguments are in its three tables."""
        value = self.root = Value(data, children, local_grads)
        value._op = op
        self.labels[value] = label
        if folded:
            self.folded[value] = folded
        if total is not None:
            self.totals[value] = total
        return value

    def json(self) -> dict[str, Any]:
        """Return the nodes, children first, with their places, and the order of backward."""
        inner = _topological_sort(self.root)  # type: ignore[no-untyped-call]
        nodes: dict[Value, int] = {}
        for value in inner:
            for each in (*value._children, value):
                nodes.setdefault(each, len(nodes))
        places = _places(list(nodes))
        entries = [
            {
                "id": i,
                "op": str(value._op),
                "label": self.labels.get(value, ""),
                "data": value.data,
                "grad": value.grad,
                "total": self.totals.get(value),
                "children": [nodes[child] for child in value._children],
                "locals": list(value._local_grads),
                "folded": self.folded.get(value, 0),
                "x": places[value][0],
                "y": places[value][1],
            }
            for value, i in nodes.items()
        ]
        order = [nodes[value] for value in reversed(inner)]
        return {"id": self.name, "nodes": entries, "root": order[0], "order": order}


def _places(nodes: Sequence[Value]) -> dict[Value, tuple[float, float]]:
    """Return x and y of nodes, children first: 0 and upwards from the leaves to the root."""
    order = list(reversed(nodes))  # the root first
    numbers = {node: i for i, node in enumerate(order)}
    inputs = [[numbers[child] for child in node._children] for node in order]
    layout = layered(inputs, [1.0] * len(order), 0.0)
    last = len(layout.ranks) - 1
    x = {i: float(last - rank) for rank, row in enumerate(layout.ranks) for i in row}
    return {node: (x[i], layout.across[i]) for node, i in numbers.items()}


def expression() -> Graph:
    """Return the graph of L = a * b + a at a = 2, b = 3."""
    a, b = Value(2), Value(3)
    c = a * b
    loss = c + a
    loss.backward()
    return Graph("expression", loss, {a: "a", b: "b", c: "c", loss: "L"})


def score_gradients(layer: dict[str, Any], grad: Rows, head: int, t: int) -> list[float]:
    """Return the gradients of the attention scores that row t of a head gives to its keys.

    layer: as trace gives it; grad: (T, n), the gradient of the loss with respect to its heads,
    which stands for the rest of the graph.
    """
    scores = [Value(score) for score in layer["scores"][head][t]]
    head_dim = len(grad[t]) // len(layer["scores"])
    columns = slice(head * head_dim, (head + 1) * head_dim)
    root = Value(0)
    weights = _softmax(scores)  # type: ignore[no-untyped-call]
    for weight, v in zip(weights, layer["v"], strict=False):
        for value, upstream in zip(v[columns], grad[t][columns], strict=True):
            root = root + weight * value * upstream
    root.backward()
    return [score.grad for score in scores]


def score(layer: dict[str, Any], grads: dict[str, Rows], loss: float, t: int, s: int) -> Graph:
    """Return the graph of the score that row t gives to key s in the first head of a layer.

    layer: as trace gives it; grads: the gradients of its q, k and heads.
    """
    head_dim = len(layer["q"][0]) // len(layer["scores"])
    graph = Graph("score", Value(0))
    products: list[Value] = []
    for j in range(min(head_dim, SHOWN)):
        a, b = layer["q"][t][j], layer["k"][s][j]
        pair = [
            graph.leaf(a, f"q{j}", total=grads["q"][t][j]),
            graph.leaf(b, f"k{j}", total=grads["k"][s][j]),
        ]
        products.append(graph.node(a * b, "*", "", pair, [b, a]))
    if rest := range(SHOWN, head_dim):
        amount = sum(layer["q"][t][j] * layer["k"][s][j] for j in rest)
        products.append(graph.leaf(amount, f"{len(rest)} more products", folded=2 * len(rest)))
    total = graph.node(
        sum(product.data for product in products), "+", "sum", products, [1.0] * len(products),
        folded=head_dim,
    )  # fmt: skip
    scale = graph.leaf(head_dim**-0.5, f"1/sqrt({head_dim})")
    data = layer["scores"][0][t][s]
    scaled = graph.node(data, "*", "score", [total, scale], [scale.data, total.data])
    graph.node(loss, "...", "loss", [scaled], [score_gradients(layer, grads["heads"], 0, t)[s]])
    graph.root.backward()
    return graph


def position_loss(logits: Sequence[float], target: int, names: Sequence[str], n: int) -> Graph:
    """Return the graph of one position's part of the loss, from its logits to 1/n of the mean.

    The target and the most likely tokens have branches, the others are one node.
    """
    graph, largest = Graph("loss", Value(0)), max(logits)
    likely = sorted(range(len(logits)), key=lambda i: -logits[i])
    shown = [target, *(i for i in likely if i != target)][:SHOWN]
    rest = [i for i in likely if i not in shown]
    shifted, exps = {}, []
    for i in shown:
        leaf = graph.leaf(logits[i], f"logit {names[i]}")
        less = graph.node(logits[i] - largest, "-", "- max", [leaf], [1.0])
        e = less.exp().data
        exps.append(graph.node(e, "exp", "", [less], [e]))
        shifted[i] = less
    if rest:
        amount = sum(Value(logits[i] - largest).exp().data for i in rest)
        exps.append(graph.leaf(amount, f"{len(rest)} more", folded=2 * len(rest)))
    amount = sum(e.data for e in exps)
    total = graph.node(amount, "+", "total", exps, [1.0] * len(exps), folded=len(logits))
    log = graph.node(Value(amount).log().data, "log", "", [total], [1.0 / amount])
    data = log.data - shifted[target].data
    loss = graph.node(data, "-", f"loss of {names[target]}", [log, shifted[target]], [1.0, -1.0])
    part = graph.leaf(1.0 / n, f"1/{n}")
    graph.node(data / n, "*", "part of the mean", [loss, part], [1.0 / n, data])
    graph.root.backward()
    return graph


def mean_loss(losses: Sequence[float], names: Sequence[str]) -> Graph:
    """Return the graph of the mean over the positions; names: of their targets.

    Of very many positions the first have leaves, the others are one node.
    """
    graph, n, most = Graph("mean", Value(0)), len(losses), 4 * SHOWN
    leaves = [graph.leaf(losses[i], f"POS{i} {names[i]}") for i in range(min(n, most))]
    if n > most:
        leaves.append(graph.leaf(sum(losses[most:]), f"{n - most} more", folded=n - most))
    amount = sum(leaf.data for leaf in leaves)
    total = graph.node(amount, "+", "sum", leaves, [1.0] * len(leaves), folded=n)
    part = graph.leaf(1.0 / n, f"1/{n}")
    graph.node(amount * part.data, "*", "mean", [total, part], [part.data, amount])
    graph.root.backward()
    return graph


def size(config: Config, tokens: Sequence[int]) -> dict[str, Any]:
    """Return how many nodes of each op, edges and leaves the graph of a loss of tokens has.

    These are the nodes of the pure core, counted from the sizes: to build the graph of a larger
    model would take minutes. Every sum begins with a leaf 0, every number is a leaf.
    """
    n, T, V = config.n_embd, len(tokens), config.vocab_size
    head_dim = n // config.n_head
    pairs = T * (T + 1) // 2  # of a row and a key that it sees
    ops: Counter[str] = Counter()
    leaves = (len(set(tokens)) + T) * n

    def add(leaf: int = 0, **counts: int) -> None:
        nonlocal leaves
        leaves += leaf
        ops.update(counts)

    def norm() -> None:
        add(leaf=3 * T, times=(2 * n + 1) * T, plus=(n + 1) * T, root=T)

    def product(nout: int, nin: int) -> None:
        add(leaf=nout * nin + T * nout, times=T * nout * nin, plus=T * nout * nin)

    add(copy=2 * T * n, plus=T * n)
    norm()
    for _ in range(config.n_layer):
        norm()
        for _ in range(4):  # q, k, v and the output
            product(n, n)
        heads = config.n_head
        each = heads * pairs
        add(leaf=2 * each, times=(head_dim + 1) * each, plus=head_dim * each)  # the scores
        add(leaf=each + heads * T, plus=2 * each, exp=each, inverse=each, times=each)  # softmax
        add(leaf=n * T, times=head_dim * each, plus=head_dim * each)  # the weighted values
        add(plus=T * n)
        norm()
        product(4 * n, n)
        add(relu=4 * n * T)
        product(n, 4 * n)
        add(plus=T * n)
    product(V, n)
    add(leaf=T * (V + 3), plus=T * (2 * V + 2), exp=T * V, log=T, times=T)  # cross_entropy
    add(leaf=2, plus=T, mean=1)
    symbols = {"plus": "+", "times": "*", "root": "**-0.5", "inverse": "**-1"}
    by_op = {symbols.get(name, name): count for name, count in ops.items()}
    binary = by_op["+"] + by_op["*"] + by_op["mean"]
    inner = sum(by_op.values())
    return {
        "nodes": inner + leaves,
        "edges": inner + binary,
        "leaves": leaves,
        "by_op": dict(sorted(by_op.items(), key=lambda item: -item[1])),
    }
