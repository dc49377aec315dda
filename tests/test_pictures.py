"""Pictures: what they show, the same from both cores, readable by all, whatever the input."""

import itertools
import math
import random
import re
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

import microgpt as mg
from microgpt import pictures
from microgpt.layout import layered
from microgpt.pictures import draw, draw_attention, graph_of, graph_svg, to_dot

DOCS = Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def parsed(picture):
    return xml.fromstring(picture.svg)


def texts(picture):
    return [element.text for element in parsed(picture).iter(f"{SVG}text")]


def product_and_sum(core):
    a, b = core.Value(2), core.Value(3)
    loss = a * b + a
    loss.backward()
    return loss, {a: "a", b: "b", loss: "L"}


# What a graph is.


def test_the_graph_of_a_product_and_a_sum(core):
    result, product, a, b = graph_of(*product_and_sum(core)).nodes
    assert (result.op, result.name, result.data, result.grad) == ("+", "L", 8.0, 1.0)
    assert (result.inputs, result.local_grads) == ((1, 2), (1.0, 1.0))
    assert (product.op, product.name, product.data, product.grad) == ("*", "", 6.0, 1.0)
    assert (product.inputs, product.local_grads) == ((2, 3), (3.0, 2.0))
    assert (a.op, a.name, a.data, a.grad, a.inputs) == ("", "a", 2.0, 4.0, ())
    assert (b.op, b.name, b.data, b.grad, b.inputs) == ("", "b", 3.0, 2.0, ())


def test_a_picture_shows_names_data_gradients_and_ops(core):
    shown = texts(draw(*product_and_sum(core)))
    assert shown.count("data") == shown.count("grad") == 4
    assert {"L", "a", "b", "8", "6", "2", "3", "4", "+", "×"} <= set(shown)


def test_an_op_of_ones_own_with_many_children_and_one_child_twice(core):
    a, b, c = (core.Value(i) for i in (1, 2, 3))
    y = core.Value(14, (a, b, c), (1, 2, 3))
    graph = graph_of(y * y, {y: "y", a: "a"})
    assert [node.op for node in graph.nodes] == ["*", "", "", "", ""]
    assert graph.nodes[0].inputs == (1, 1)
    assert graph.nodes[1].inputs == (2, 3, 4)
    assert graph.nodes[1].local_grads == (1.0, 2.0, 3.0)
    assert draw(y * y).svg.count('class="edge"') == 5


def test_a_power_shows_its_exponent(core):
    x = core.Value(4.0)
    assert [(x**p)._op for p in (2, -0.5, 1 / 3)] == ["**2", "**-0.5", "**0.333333"]
    assert "**-1" in texts(draw(1 / x))


def blocks(core):
    """Return a Value made of every kind of block, and names."""
    x = core.Matrix.of([[1.0, 2.0], [3.0, 4.0]])
    w = core.Matrix.of([[0.5, 0.25], [1.0, -1.0]])
    table = core.Matrix.of([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    h = 3 * core.relu(core.linear(x, w)) * 0.5 + core.embedding(table, [2, 0])
    h = core.rmsnorm(h - table[1:3]) / 2.0
    h = core.attention(h, h * x, h, 1) + core.softmax(h) ** 2
    p = core.Matrix.pack([[h[0][1] * 3, h[1][0], 1.0], [x[0][0], h[0][0], x[1][1]]])
    q = core.attention_weights(p, p, 1)
    y = core.mean(core.cross_entropy(p, [0, 2])) + x[0][1] * q[1][0] + table[0][0].exp()
    y = y + core.mean(1.0 / (p.tanh() + 2.0).exp()) * q[0][1]
    y.backward()
    return y, {"x": x, "w": w, "table": table, "loss": y, "p": p}


def test_blocks_are_one_node_each_with_their_shapes(core):
    x, w = core.Matrix.of([[1.0, 2.0], [3.0, 4.0]]), core.Matrix.of([[3.0, 4.0]])
    y = core.mean(core.linear(x, w) * 0.5)
    y.backward()
    mean, half, linear, constant, leaf, weights = graph_of(y, {"x": x, "w": w}).nodes
    assert (mean.op, mean.shape, mean.data, mean.inputs) == ("mean", None, 9.0, (1,))
    assert (half.op, half.shape, half.inputs) == ("*", (2, 1), (2, 3))
    assert (linear.op, linear.shape, linear.inputs) == ("linear", (2, 1), (4, 5))
    assert (constant.op, constant.data, constant.grad) == ("", 0.5, None)
    assert (leaf.name, leaf.shape, leaf.op) == ("x", (2, 2), "")
    assert leaf.data == pytest.approx(math.sqrt(30 / 4))
    assert leaf.grad == pytest.approx(math.sqrt(2 * (0.75**2 + 1) / 4))
    assert (weights.name, weights.shape) == ("w", (1, 2))
    assert linear.grad == pytest.approx(0.25)


def test_every_block_op_says_what_it_was_computed_from(core):
    graph = graph_of(*blocks(core))
    ops = {node.op for node in graph.nodes}
    assert {"linear", "relu", "embedding", "rmsnorm", "attention", "softmax", "pack", "mean", "exp",
            "attention_weights", "cross_entropy", "tanh", "[1:3]"} <= ops  # fmt: skip
    assert {"+", "-", "*", "/", "**"} <= {node.op for node in graph.nodes if node.shape}
    arity = {node.op: len(node.inputs) for node in graph.nodes if node.shape}
    assert arity["attention"] == 3 and arity["linear"] == 2 and arity["pack"] == 6
    names = {node.name for node in graph.nodes}
    assert {"x", "w", "table", "loss", "p", "x[0][1]", "table[0][0]"} <= names


def test_an_entry_of_a_block_that_only_its_entries_show(core):
    h = core.linear(core.Matrix.of([[1.0]]), core.Matrix.of([[2.0]]))
    y = h[0][0] * 2
    entry = graph_of(y).nodes[1]
    assert (entry.op, entry.data, entry.name) == ("entry", 2.0, "")
    block = graph_of(y).nodes[entry.inputs[0]]
    assert (block.op, block.shape, block.data) == ("linear", (1, 1), None)


def test_a_matrix_can_be_drawn_and_a_view_of_a_view_is_one_of_the_owner(core):
    m = core.Matrix.of([[1.0], [2.0], [3.0], [4.0]])
    assert [node.shape for node in graph_of(m).nodes] == [(4, 1)]
    view, owner = graph_of(m[1:4][1:3], {m: "m"}).nodes
    assert (view.op, view.shape, owner.name) == ("[2:4]", (2, 1), "m")


def test_a_view_that_is_made_later_shows_the_gradients_of_its_rows(core):
    m = core.Matrix.of([[1.0], [2.0], [3.0]])
    core.mean(m * m).backward()
    view = graph_of(m[1:]).nodes[0]
    assert view.grad == pytest.approx(math.sqrt((16 + 36) / 2) / 3)


def test_under_no_grad_there_is_one_node(core):
    with core.no_grad():
        m = core.relu(core.Matrix.of([[1.0]]) * 2)
        nodes = [graph_of(x).nodes for x in (m, core.mean(m), m[0][0])]
    assert [(len(n), n[0].op) for n in nodes] == [(1, "")] * 3


# The same from both cores.


def random_values(core, seed):
    rng = random.Random(seed)
    made = [core.Value(rng.uniform(-2, 2)) for _ in range(4)]
    for _ in range(rng.randint(1, 40)):
        a, b = rng.choice(made), rng.choice(made[-6:])
        op = rng.randrange(7)
        made.append([
            lambda a=a, b=b: a + b, lambda a=a, b=b: a * b, lambda a=a: a - 1.5,
            lambda a=a: a**2, lambda a=a: a.tanh(), lambda a=a: a.relu(),
            lambda a=a, b=b: b * 0.5 + a,
        ][op]())  # fmt: skip
    made[-1].backward()
    return made[-1], {f"v{i}": value for i, value in enumerate(made) if i % 3}


@pytest.mark.parametrize("seed", range(30))
def test_graphs_of_values_are_the_same_bytes(cores, seed):
    mine, other = (draw(*random_values(core, seed), most=20).svg for core in cores)
    assert mine == other
    assert mine == draw(*random_values(cores[0], seed), most=20).svg  # and in every process


def test_graphs_of_blocks_are_the_same(cores):
    mine, other = (graph_of(*blocks(core)) for core in cores)
    assert mine.total == other.total
    for a, b in zip(mine.nodes, other.nodes, strict=True):
        assert (a.op, a.name, a.shape, a.inputs) == (b.op, b.name, b.shape, b.inputs)
        assert (a.data is None, a.grad is None) == (b.data is None, b.grad is None)
        assert [a.data or 0, a.grad or 0] == pytest.approx([b.data or 0, b.grad or 0], rel=1e-9)
    assert draw(*blocks(cores[0])).svg == draw(*blocks(cores[1])).svg


def test_the_loss_of_a_gpt_is_drawn_as_blocks():
    run = mg.prepare(["emma", "ava"], n_layer=2)
    loss = run.model.loss([run.encode("emma")])
    loss.backward()
    graph = graph_of(loss, run.model.state_dict)
    assert len(graph.nodes) == graph.total == 46
    assert {node.name for node in graph.nodes} == {"", *run.model.state_dict}
    assert sum(node.op == "linear" for node in graph.nodes) == 13
    assert all(node.shape for node in graph.nodes[1:])
    norms = {node.name: node.grad for node in graph.nodes if node.name}
    for name, matrix in run.model.state_dict.items():
        squares = [value.grad**2 for row in matrix for value in row]
        assert norms[name] == pytest.approx(math.sqrt(sum(squares) / len(squares)))


def test_drawing_changes_no_number_of_a_training():
    def losses(look):
        run = mg.prepare(["emma", "ava", "olivia"], steps=4, n_embd=4, n_head=1)
        kept = []
        for _ in range(4):
            if look:
                kept.append(run.model.loss([run.encode("ava")]))
                kept += [draw(kept[-1], run.model.state_dict), draw_attention(run, "ava")]
            mg.train_step(run)
        return run.losses, [m.tolist() for m in run.model.parameters()]

    assert losses(True) == losses(False)


# Folding.


def test_a_large_graph_shows_what_is_nearest_and_counts_the_rest(core):
    y = x = core.Value(1.0)
    for _ in range(10):
        y = (y + x) * 0.5  # two nodes and a constant
    graph = graph_of(y, most=5)
    assert graph.total == 31
    assert [(node.op, node.data) for node in graph.nodes] == [
        ("*", 1.0), ("+", 2.0), ("", 0.5), ("*", 1.0), ("", 1.0),
    ]  # fmt: skip
    assert [node.folded for node in graph.nodes] == [0, 0, 0, 26, 0]
    assert "⋯ 26 nodes folded" in texts(draw(y, most=5))
    assert [node.folded for node in graph_of(y, most=31).nodes] == [0] * 31


def test_what_two_nodes_hide_together_counts_for_both(core):
    a = core.Value(1.0)
    hidden = a.exp()
    for _ in range(3):
        hidden = hidden.tanh()
    y = hidden.exp() + hidden.log()
    assert [node.folded for node in graph_of(y, most=3).nodes] == [0, 5, 5]


def test_one_node_may_be_drawn_and_all_its_children_folded(core):
    y = core.Value(0, [core.Value(i) for i in range(1000)], [1.0] * 1000)
    assert [node.folded for node in graph_of(y, most=1).nodes] == [1000]
    assert len(graph_of(y).nodes) == pictures.MOST


def test_every_node_drawn_has_a_way_to_the_result(core):
    for seed in range(20):
        nodes = graph_of(*random_values(core, seed), most=9).nodes
        used = {child for node in nodes for child in node.inputs}
        assert used | {0} == set(range(len(nodes)))


def test_a_graph_of_a_hundred_thousand_values_is_folded(core):
    y = x = core.Value(1.0)
    for _ in range(33_333):
        y = (y + x) * 0.5
    y.backward()
    graph = graph_of(y)
    assert graph.total == 100_000 and len(graph.nodes) == pictures.MOST
    assert sum(node.folded for node in graph.nodes) == 100_000 - pictures.MOST


# Where the nodes stand.


def overlaps(plan, sizes, gap):
    return [
        (a, b) for nodes in plan.ranks for a, b in itertools.pairwise(nodes)
        if plan.across[b] - plan.across[a] < (sizes[a] + sizes[b]) / 2 + gap - 1e-6
    ]  # fmt: skip


def random_graph(rng, n):
    """Return the inputs of a graph in which every node is below node 0."""
    inputs = [[] for _ in range(n)]
    for node in range(1, n):
        for _ in range(rng.choice([1, 1, 2, 3])):
            inputs[rng.randrange(node)].append(node)
    return inputs


@pytest.mark.parametrize("seed", range(40))
def test_nodes_do_not_overlap_and_long_edges_are_straight(seed):
    rng = random.Random(seed)
    inputs = random_graph(rng, rng.randint(1, 40))
    sizes = [rng.choice([20.0, 40.0, 90.0]) for _ in inputs]
    plan = layered(inputs, sizes, 14.0)
    rank = {node: i for i, nodes in enumerate(plan.ranks) for node in nodes}
    assert sorted(rank) == list(range(len(inputs)))
    assert overlaps(plan, sizes, 14.0) == []
    edges = [(child, node) for node, below in enumerate(inputs) for child in below]
    assert [len(route) for route in plan.routes] == [rank[c] - rank[n] - 1 for c, n in edges]
    longest = [0] * len(inputs)
    for child in range(len(inputs)):
        for node in range(child):
            if child in inputs[node]:
                longest[child] = max(longest[child], longest[node] + 1)
    assert rank == dict(enumerate(longest))
    bent = sum(max(route) - min(route) > 1e-6 for route in plan.routes if route)
    assert bent <= len(plan.routes) / 5
    assert min(x - size / 2 for x, size in zip(plan.across, sizes, strict=True)) == pytest.approx(0)


def crossings(plan, inputs):
    rank = {node: i for i, nodes in enumerate(plan.ranks) for node in nodes}
    edges = [(child, node) for node, below in enumerate(inputs) for child in below]
    steps = {}
    for (child, node), route in zip(edges, plan.routes, strict=True):
        way = [plan.across[child], *route, plan.across[node]]
        for k, step in enumerate(itertools.pairwise(way)):
            steps.setdefault(rank[child] - k, []).append(step)
    return sum(
        (a[0] - b[0]) * (a[1] - b[1]) < -1e-6
        for level in steps.values() for a, b in itertools.combinations(level, 2)
    )  # fmt: skip


def test_a_tree_has_no_crossings_and_a_chain_is_straight():
    tree = [[2 * i + 1, 2 * i + 2] if i < 15 else [] for i in range(31)]
    plan = layered(tree, [30.0] * 31, 10.0)
    assert crossings(plan, tree) == 0
    for node, (left, right) in enumerate(tree[:15]):
        assert plan.across[node] == pytest.approx((plan.across[left] + plan.across[right]) / 2)
    leaves_beside = [[i + 1, 11 + i] for i in range(10)] + [[]] * 11
    plan = layered(leaves_beside, [30.0] * 21, 10.0)
    assert len({round(plan.across[node], 6) for node in range(10)}) == 1
    assert {abs(plan.across[11 + i] - plan.across[i + 1]) for i in range(10)} == {40.0}


def test_crossings_that_an_order_avoids_are_avoided():
    inputs = [[1, 2, 3], [6, 7], [5, 6], [4, 5], [8], [9], [10], [11], [], [], [], []]
    assert crossings(layered(inputs, [20.0] * 12, 10.0), inputs) == 0


# For everybody's eyes, and ears.


def luminance(colour):
    return sum(
        weight * (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4)
        for weight, x in zip((0.2126, 0.7152, 0.0722), colour, strict=True)
    )


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def colour(text):
    digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
    return [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]


@pytest.mark.parametrize("scheme", [pictures._LIGHT, pictures._DARK], ids=["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(scheme):
    c = {name: colour(text) for name, text in scheme.items()}
    for behind in ("paper", "box", "block"):
        for text in ("ink", "soft", "grad"):
            assert contrast(c[text], c[behind]) >= 4.5, (text, behind)
    assert contrast(c["line"], c["paper"]) >= 3
    assert contrast(c["on"], c["accent"]) >= 4.5
    for hundredths in range(101):
        shade = hundredths / 100
        cell = [shade * a + (1 - shade) * p for a, p in zip(c["accent"], c["paper"], strict=True)]
        medium = colour("#000")
        faint, strong = shade < pictures._FAINT, shade > pictures._STRONG
        text = c["faint"] if faint else c["strong"] if strong else medium
        assert contrast(text, cell) >= 4.5, shade


def test_a_picture_has_a_title_a_description_and_both_sets_of_colours(core):
    picture = draw(*product_and_sum(core))
    root = parsed(picture)
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text == "Graph of L: 4 nodes"
    assert description.text == (
        "L is + of node 2 and a: data 8, grad 1. node 2 is * of a and b: data 6, grad 1. "
        "a is a leaf: data 2, grad 4. b is a leaf: data 3, grad 2."
    )
    width, height = root.get("width"), root.get("height")
    assert root.get("viewBox") == f"0 0 {width} {height}"
    assert "@media (prefers-color-scheme:dark)" in picture.svg


def test_pictures_of_one_page_do_not_get_in_each_others_way():
    x = mg.Value(1)
    pages = [draw(x, {x: name}).svg for name in "ab"]
    ids = [re.findall(' id="([^"]*)"', svg) for svg in pages]
    assert len({*ids[0], *ids[1]}) == 6
    for svg, (own, *_) in zip(pages, ids, strict=True):
        css = re.search("<style>(.*)</style>", svg)[1]
        for selectors in re.findall(r"([^{}]+)\{[^{}]*\}", css.replace("}}", "}")):
            selectors = re.sub(r"@media \([^)]*\)\{", "", selectors)
            assert all(part.startswith(f"#{own} ") for part in selectors.split(",")), selectors


def test_only_a_picture_is_shown_by_a_notebook(core):
    loss, names = product_and_sum(core)
    picture = draw(loss, names)
    assert picture._repr_svg_() == picture.svg
    assert repr(picture) == "Picture(345 x 166, Graph of L: 4 nodes)"
    assert not hasattr(loss, "_repr_svg_") and not hasattr(core.Matrix(1, 1), "_repr_svg_")


# Whatever the reader gives.

ODD_NAMES = [
    "<script>alert(1)</script>", "]]><!--", "&amp;", '"\'', "a\nb\tc", "\x00\x1b[2J", "\ud800", "￿",
    "名前", "Ελλάδα", "שלום", "हिन्दी", "می‌خواهم", "é", "🙂", "x" * 10_000, "", " ", "{|}<>\\",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_any_name_is_text_and_nothing_else(name, tmp_path):
    x = mg.Value(1)
    picture = draw(x * 2, {x: name})
    shown = [text for text in texts(picture) if text not in ("data", "grad", "1", "2", "0", "×")]
    assert len(shown) == (name != "")
    assert not {"script", "alert"} & {element.tag for element in parsed(picture).iter()}
    if name.isprintable() and len(name) < 20:
        assert shown == [name][: len(shown)]
    picture.save(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text(encoding="utf-8") == picture.svg + "\n"
    assert to_dot(x, {x: name}).count("\n") == 4


def test_names_may_stand_on_either_side_and_one_node_may_have_two(core):
    m = core.Matrix(1, 1)
    assert graph_of(m, {"wte": m, "lm_head": m}).nodes[0].name == "wte = lm_head"
    assert graph_of(m, {m: "wte"}).nodes[0].name == "wte"


def test_names_of_what_is_not_in_the_graph_are_ignored(core):
    a, b = core.Value(1), core.Value(2)
    assert draw(a, {a: "a", b: "b", core.Matrix(2, 2): "m"}).svg == draw(a, {a: "a"}).svg


@pytest.mark.parametrize("names", [
    [("a", 1)], "a", 3, {"a": 1}, {"a": "b"}, {1: "a"}, {None: "a"}, {"a": None},
], ids=repr)  # fmt: skip
def test_names_that_are_none_are_refused(core, names):
    with pytest.raises(TypeError, match="names must be a dict of a Value to its name"):
        draw(core.Value(1), names)


@pytest.mark.parametrize("value", [1.0, "x", None, [], object()], ids=repr)
def test_what_is_no_node_is_refused(value):
    with pytest.raises(TypeError, match="value must be a Value or a Matrix, not "):
        draw(value)
    with pytest.raises(TypeError, match="value must be a Value or a Matrix, not "):
        to_dot(value)


@pytest.mark.parametrize(("most", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_most_is_a_positive_int(core, most, error):
    with pytest.raises(error, match="most must be"):
        draw(core.Value(1), most=most)


def test_numbers_that_are_none_are_shown(core):
    x = core.Value(math.inf)
    y = (x * 0.0 - x) * 1e-300
    y.backward()
    shown = texts(draw(y))
    assert {"nan", "inf", "1e−300", "−1"} <= set(shown)
    m = core.Matrix.of([[math.nan, 1e200], [1.0, 2.0]])
    assert {"nan"} <= set(texts(draw(core.mean(m))))
    assert "inf" in texts(draw(core.Matrix.of([[1e200]])))


def test_an_instance_of_a_subclass_and_a_value_equal_to_all(core):
    class Odd(core.Value):
        def __eq__(self, other):
            return True

        __hash__ = None

    a, b = Odd(1), Odd(2)
    assert graph_of(a * b + a).total == 4


@pytest.mark.parametrize("name", ["x.png", "x", "run.safetensors", ""])
def test_a_picture_is_saved_as_svg_only(name, tmp_path):
    path = tmp_path / name if name else name
    with pytest.raises(ValueError, match="a picture is saved as FILE.svg, not as"):
        draw(mg.Value(1)).save(path)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_names_the_file(tmp_path):
    picture = draw(mg.Value(1))
    with pytest.raises(FileNotFoundError, match=r"no/x\.svg: No such file"):
        picture.save(tmp_path / "no" / "x.svg")
    (tmp_path / "dir.svg").mkdir()
    with pytest.raises(OSError, match=r"dir\.svg: "):
        picture.save(tmp_path / "dir.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["dir.svg"]


def test_dot_has_every_node_and_every_edge(core):
    loss, names = product_and_sum(core)
    assert to_dot(loss, names).splitlines() == [
        "digraph {", "  rankdir=LR", "  node [shape=record]",
        '  n0 [label="{L +|data 8|grad 1}"]', '  n1 [label="{*|data 6|grad 1}"]',
        '  n2 [label="{a|data 2|grad 4}"]', '  n3 [label="{b|data 3|grad 2}"]',
        "  n1 -> n0", "  n2 -> n0", "  n2 -> n1", "  n3 -> n1", "}",
    ]  # fmt: skip
    assert r'label="{\<b\>\{\|\\|data' in to_dot(loss._children[0]._children[0], {
        loss._children[0]._children[0]: "<b>{|\\"})  # fmt: skip


def test_a_graph_at_an_earlier_time_stands_where_it_will(core):
    graph = graph_of(*product_and_sum(core))
    now = graph_svg(graph)
    before = graph_svg(graph, data=[None, 6.0, 2.0, 3.0], grad=[None] * 4)
    shown = [element.text for element in xml.fromstring(before).iter(f"{SVG}text")]
    assert "8" not in shown and "4" not in shown and {"6", "2", "3", "grad"} <= set(shown)
    places = [re.findall('<rect class="[a-z]+" x="[^"]*" y="[^"]*"', svg) for svg in (now, before)]
    assert places[0] == places[1]


# Attention.


@pytest.fixture(scope="module")
def run():
    return mg.train(["emma", "ava"], steps=2, n_layer=2, n_embd=8, n_head=2, block_size=6)


def test_attention_shows_the_weights_and_the_mask(run):
    picture = draw_attention(run, "emma")
    trace = {}
    with mg.no_grad():
        run.model.forward(run.encode("emma")[:-1], trace=trace)
    expected = []
    for layer in range(2):
        rows = trace[f"layer{layer}.attn_weights"].tolist()
        for i, row in enumerate(rows):
            expected += [f"{weight:.2f}".removeprefix("0") for weight in row[: i % 5 + 1]]
    cells = [e.text for e in parsed(picture).iter(f"{SVG}text") if "cell" in e.get("class")]
    assert cells == expected and len(cells) == 4 * 15
    assert picture.svg.count('class="mask"') == 4
    for heading in ("layer 0, head 0", "layer 0, head 1", "layer 1, head 0", "layer 1, head 1"):
        assert heading in texts(picture)
    assert texts(picture).count("BOS") == 8
    root = parsed(picture)
    assert root.find(f"{SVG}title").text == "Attention to emma"
    words = root.find(f"{SVG}desc").text
    assert "Layer 0, head 0. BOS: BOS 1.00; e: BOS " in words and "hatched" in texts(picture)[-1]


def test_attention_of_one_layer_one_head_and_no_text(run):
    assert draw_attention(run, "ava", layer=1, head=0).svg.count('class="mask"') == 1
    assert draw_attention(run, "ava", head=1).svg.count('class="mask"') == 2
    only = draw_attention(run, "", layer=0, head=0)
    assert texts(only).count("1.00") == 1 and "an empty text" in only.svg


@pytest.mark.parametrize(("arguments", "error", "words"), [
    (("emmaemma",), ValueError, "the text has 8 characters, block_size is 6"),
    (("olivia",), ValueError, "'o'"),
    (("ava", 2), ValueError, "layer must be below 2, not 2"),
    (("ava", -1), ValueError, "layer must be at least 0, not -1"),
    (("ava", 0, 2), ValueError, "head must be below 2, not 2"),
    (("ava", "0"), TypeError, "layer must be an int"),
])  # fmt: skip
def test_attention_of_what_there_is_not_is_refused(run, arguments, error, words):
    with pytest.raises(error, match=words):
        draw_attention(run, *arguments)


def test_attention_of_what_is_no_run_is_refused(run):
    with pytest.raises(TypeError, match="draw_attention takes a run, .*, not GPT"):
        draw_attention(run.model, "ava")


def test_attention_of_any_alphabet(tmp_path):
    run = mg.prepare(["<&> \n", "名é"], n_embd=4, n_head=1, n_layer=1)
    labels = texts(draw_attention(run, "<&> \n名"))
    for label in ("<", "&", ">", "␣", "⏎", "名"):
        assert labels.count(label) == 2


def test_very_many_tables_are_refused():
    run = mg.prepare(["a" * 70], n_embd=4, n_head=4, n_layer=2, block_size=80)
    with pytest.raises(ValueError, match="have 40,328 cells, more than 20,000: choose a layer or"):
        draw_attention(run, "a" * 70)
    assert draw_attention(run, "a" * 70, layer=0, head=3).svg.count('class="mask"') == 1


def test_a_model_that_shows_no_weights_is_refused():
    class Silent(mg.GPT):
        def forward(self, tokens, cache=None, starts=None, trace=None):
            return super().forward(tokens, cache, starts)

    run = mg.prepare(["ava"], model=Silent)
    with pytest.raises(ValueError, match="the trace of a Silent has no attention weights"):
        draw_attention(run, "ava")


# The pictures in the documentation.


def test_the_pictures_of_the_pages_are_those_that_their_python_makes(core, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mg, "Value", core.Value, raising=False)
    page = (DOCS / "pictures.md").read_text(encoding="utf-8")
    blocks = re.findall("^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    exec("".join(blocks[:3]), {})
    for name in ("graph", "neuron", "network"):
        assert Path(f"{name}.svg").read_bytes() == (DOCS / f"{name}.svg").read_bytes()
