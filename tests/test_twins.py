"""The compiled core against its specification: the same inputs, the same results.

Values are compared by `float.hex`, in data and gradient of every node; blocks within a tolerance.
"""

import doctest
import inspect
import math
import random

import pytest

from microgpt import _core_py

INF, NAN = math.inf, math.nan
SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, -3.0, 1 / 3, 5e-324, -5e-324,
    2.2250738585072014e-308, 1e-200, -1e-200, 1e-160, 1e154, 1.3407807929942596e154, 1e200, -1e200,
    1.7976931348623157e308, 709.782712893384, 709.7827128933841, -745.1332191019411, -745.2,
    -708.4, 1.0000000000000002, 0.9999999999999999, 9007199254740992.0, INF, -INF, NAN,
]  # fmt: skip


def outcome(f, *args):
    """Return what f gives, or the exception that it raises."""
    try:
        return f(*args)
    except Exception as error:
        return error


def described(result, core):
    """Return what can be compared between the cores: text for errors, digits for numbers."""
    if isinstance(result, Exception):
        return type(result).__name__, str(result)
    if isinstance(result, core.Value):
        return (
            result._op, result.data.hex(), [grad.hex() for grad in result._local_grads],
            [child.data.hex() for child in result._children],
        )  # fmt: skip
    return repr(result)


def assert_close(actual, expected, tolerance, at_least=0.0):
    """Compare lists of lists within the tolerance times the largest entry.

    Infinities and nan must stand at the same places.
    at_least: take the largest entry for no smaller than this. For gradients that cancel each
    other, as in a softmax that is nearly 0 and 1: what is left is the rounding of what was summed.
    """
    finite = [abs(x) for row in expected for x in row if math.isfinite(x)]
    allowed = tolerance * max([at_least, *finite])
    assert [len(row) for row in actual] == [len(row) for row in expected]
    for row, expected_row in zip(actual, expected, strict=True):
        for a, b in zip(row, expected_row, strict=True):
            same = abs(a - b) <= allowed if math.isfinite(b) else repr(a) == repr(b)
            assert same, f"{actual} is not close to {expected}"


# Single ops of Values.


UNARY = {
    "-x": lambda x: -x,
    "exp": lambda x: x.exp(),
    "log": lambda x: x.log(),
    "relu": lambda x: x.relu(),
}
BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
}


def numbers_at_random(rng, n):
    """Return numbers of all magnitudes, and some that are exact."""
    kinds = [
        lambda: rng.gauss(0, 1),
        lambda: rng.uniform(-800, 800),
        lambda: rng.gauss(0, 1) * 10.0 ** rng.randint(-320, 308),
        lambda: float(rng.randint(-20, 20)),
        lambda: rng.randint(-20, 20) / 2,
    ]
    return [rng.choice(kinds)() for _ in range(n)]


@pytest.mark.parametrize("name", UNARY)
def test_a_unary_op_gives_the_same_bits_or_the_same_error(cores, name):
    numbers = SPECIAL + numbers_at_random(random.Random(name), 5000)
    for number in numbers:
        results = [described(outcome(UNARY[name], core.Value(number)), core) for core in cores]
        assert results[0] == results[1], number.hex()


@pytest.mark.parametrize("name", BINARY)
def test_a_binary_op_gives_the_same_bits_or_the_same_error(cores, name):
    rng = random.Random(name)
    pairs = [(a, b) for a in SPECIAL for b in SPECIAL]
    pairs += zip(numbers_at_random(rng, 10_000), numbers_at_random(rng, 10_000), strict=True)
    for a, b in pairs:
        for forms in [
            [(core.Value(a), core.Value(b)) for core in cores] if name != "**" else [],
            [(core.Value(a), b) for core in cores],
            [(a, core.Value(b)) for core in cores] if name != "**" else [],
        ]:
            results = [
                described(outcome(BINARY[name], *form), core)
                for form, core in zip(forms, cores, strict=bool(forms))
            ]
            assert results == [] or results[0] == results[1], (a.hex(), b.hex())


# Random graphs of Values.


def random_op(core, rng, nodes):
    """Return a function that makes one more node.

    The random numbers are drawn in the same order whatever the core computes.
    """
    # mostly recent nodes, so that the graph grows deep; any, so that nodes are shared
    a, b, c = (
        nodes[-rng.randint(1, min(8, len(nodes)))] if rng.random() < 0.7 else rng.choice(nodes)
        for _ in range(3)
    )
    number = rng.choice([rng.gauss(0, 1), rng.randint(-3, 3), rng.choice(SPECIAL)])
    exponent = rng.choice([2, 3, -1, 0.5, -0.5, 1, 0, rng.gauss(0, 2)])
    return rng.choice([
        lambda: a + b, lambda: a - b, lambda: a * b, lambda: a / b,
        lambda: a + number, lambda: number - a, lambda: a * number, lambda: number / a,
        lambda: -a, lambda: a**exponent, lambda: a.relu(), lambda: (a * 0.1).exp(),
        lambda: (a * a + 0.01).log(), lambda: sum([a, b, c]),
        lambda: core.Value(number, (a, b, c), (number, 2, -0.5)),
        lambda: core.Value(0.3, (a,), (number,)),
        lambda: core.Value(0.3, (a, b), (number, 1)),
    ])  # fmt: skip


def random_graph(core, rng, steps):
    """Build a graph; return its nodes and the errors met on the way."""
    nodes = [core.Value(number) for number in numbers_at_random(rng, 3)]
    nodes += [core.Value(rng.gauss(0, 1)) for _ in range(6)]
    errors = []
    for _ in range(steps):
        result = outcome(random_op(core, rng, nodes))
        if isinstance(result, Exception):
            errors.append((type(result).__name__, str(result)))
        elif math.isfinite(result.data):
            nodes.append(result)
    return nodes, errors


def everything_in(nodes):
    """Return all that can be seen of the nodes and of the constants below them."""
    return [
        (
            node._op, node.data.hex(), node.grad.hex(), [g.hex() for g in node._local_grads],
            [(child.data.hex(), child.grad.hex()) for child in node._children],
        )
        for node in nodes
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_a_random_graph_has_the_same_bits_in_every_node(cores, seed):
    seen = []
    for core in cores:
        rng = random.Random(seed)
        nodes, errors = random_graph(core, rng, rng.choice([5, 40, 300]))
        states = [everything_in(nodes)]
        for root in (nodes[-1], nodes[-1], sum(rng.sample(nodes, 5)), rng.choice(nodes)):
            root.backward()
            states.append(everything_in(nodes))
        seen.append((states, errors))
    (pure, pure_errors), (compiled, compiled_errors) = seen
    assert compiled_errors == pure_errors
    for state, expected in zip(compiled, pure, strict=True):
        for i, (node, expected_node) in enumerate(zip(state, expected, strict=True)):
            assert node == expected_node, f"node {i}"


def test_the_random_graphs_meet_errors_shared_nodes_and_depth(cores):
    """Else the test above would prove little."""
    errors, depth, shared = set(), 0, 0
    for seed in range(60):
        rng = random.Random(seed)
        nodes, met = random_graph(cores[0], rng, rng.choice([5, 40, 300]))
        errors |= {name for name, _ in met}
        depths, uses = {}, {}
        for node in nodes:
            depths[id(node)] = 1 + max((depths.get(id(c), 0) for c in node._children), default=0)
            for child in node._children:
                uses[id(child)] = uses.get(id(child), 0) + 1
        depth = max(depth, *depths.values())
        shared += sum(count > 1 for count in uses.values())
    assert {"ZeroDivisionError", "ValueError", "OverflowError"} <= errors
    assert depth > 20 and shared > 1000


# Blocks.


def random_matrix(core, rng, rows, cols, scale=1.0, special=()):
    """Return a Matrix of normal numbers; with special numbers, one entry in seven is one."""

    def number():
        return rng.choice(special) if special and rng.random() < 0.15 else rng.gauss(0, scale)

    return core.Matrix.of([[number() for _ in range(cols)] for _ in range(rows)])


# name -> the op of a core, the shapes of its Matrices
BLOCK_OPS = {
    "embedding": (lambda c, t: c.embedding(t, [2, 0, 2]), [(3, 5)]),
    "add": (lambda c, a, b: a + b, [(3, 5)] * 2),
    "linear": (lambda c, x, w: c.linear(x, w), [(3, 5), (4, 5)]),
    "linear, wide": (lambda c, x, w: c.linear(x, w), [(5, 33), (17, 33)]),
    "rmsnorm": (lambda c, x: c.rmsnorm(x), [(3, 5)]),
    "relu": (lambda c, x: c.relu(x), [(3, 5)]),
    "softmax": (lambda c, x: c.softmax(x), [(3, 5)]),
    "attention": (lambda c, q, k, v: c.attention(q, k, v, 2), [(3, 4)] * 3),
    "attention, more keys": (lambda c, q, k, v: c.attention(q, k, v, 1), [(2, 3), (4, 3), (4, 3)]),
    "attention, packed": (lambda c, q, k, v: c.attention(q, k, v, 2, [0, 1]), [(4, 4)] * 3),
    "attention_weights": (lambda c, q, k: c.attention_weights(q, k, 2, [0, 2]), [(4, 4)] * 2),
    "cross_entropy": (lambda c, x: c.cross_entropy(x, [4, 0, 2]), [(3, 5)]),
    "mean": (lambda c, x: c.Matrix.pack([[c.mean(x)]]), [(3, 5)]),
    "pack": (lambda c, x: c.Matrix.pack([row[::-1] for row in x]), [(3, 5)]),
    "view": (lambda c, x: x[1:], [(3, 5)]),
}


def run_block_op(core, op, inputs, rng):
    """Return the data of the result and the gradients of a sum that weighs every entry."""
    result = op(core, *inputs)
    weights = random_matrix(core, rng, len(result), len(result[0]))
    total = sum(
        value * weight.data
        for row, weight_row in zip(result, weights, strict=True)
        for value, weight in zip(row, weight_row, strict=True)
    )
    total.backward()
    return [result.tolist(), *(x.grad.tolist() for x in inputs)]


@pytest.mark.parametrize("name", BLOCK_OPS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_a_block_op_agrees(cores, name, scale):
    op, shapes = BLOCK_OPS[name]
    results = []
    for core in cores:
        rng = random.Random(name)
        inputs = [random_matrix(core, rng, *shape, scale) for shape in shapes]
        results.append(run_block_op(core, op, inputs, rng))
    (expected, *expected_grads), (actual, *actual_grads) = results
    assert_close(actual, expected, 1e-12)
    for actual, expected in zip(actual_grads, expected_grads, strict=True):
        assert_close(actual, expected, 1e-12, at_least=max(1.0, scale**2))


@pytest.mark.parametrize("name", BLOCK_OPS)
def test_a_block_op_has_infinities_and_nan_at_the_same_places(cores, name):
    op, shapes = BLOCK_OPS[name]
    special = [0.0, -0.0, 1.0, -2.0, 0.5, 3.0, 700.0, -700.0, 1e30, -1e30, INF, -INF, NAN]
    for seed in range(100):
        results = []
        for core in cores:
            rng = random.Random(seed)
            inputs = [random_matrix(core, rng, *shape, special=special) for shape in shapes]
            results.append(run_block_op(core, op, inputs, rng))
        for expected, actual in zip(*results, strict=True):
            assert_close(actual, expected, 1e-9, at_least=1.0)


def random_block_op(core, rng, blocks, values):
    """Return a function that makes one more 4 x 4 block or Value."""
    a, b, c = (rng.choice(blocks[-5:]) for _ in range(3))
    x, y = (rng.choice(values) for _ in range(2))
    i, j, start = rng.randrange(4), rng.randrange(4), rng.randrange(1, 4)
    ids = [rng.randrange(4) for _ in range(4)]
    return rng.choice([
        lambda: core.rmsnorm(a + b), lambda: core.rmsnorm(core.linear(a, b)),
        lambda: core.relu(a), lambda: core.softmax(a), lambda: core.embedding(a, ids),
        lambda: core.attention(a, b, c, 2), lambda: core.attention(a, a, a, 4, [0, start]),
        lambda: core.attention_weights(a, b, 1),
        lambda: core.rmsnorm(core.Matrix.pack([*list(a[:start]), *list(b[start:])])),
        lambda: core.Matrix.pack([[x * 0.5, y, 0.1, a[i][j]], *list(zip(*b, strict=True))[:3]]),
        lambda: a[i][j] * b[j][i] + x, lambda: core.mean(a[:start]) * y,
        lambda: core.mean(core.cross_entropy(a, ids)),
        lambda: (x * 0.1).exp() - y * a[i][j], lambda: core.Matrix.pack([[x, 1.0]])[0][0],
    ])  # fmt: skip


def random_block_graph(core, rng, steps):
    """Build a graph of blocks and Values that feed each other; return its nodes and a loss."""
    leaves = [random_matrix(core, rng, 4, 4) for _ in range(3)]
    scalars = [core.Value(rng.gauss(0, 1)) for _ in range(3)]
    blocks, values = list(leaves), list(scalars)
    for _ in range(steps):
        result = random_block_op(core, rng, blocks, values)()
        (values if isinstance(result, core.Value) else blocks).append(result)
    loss = sum(values) + core.mean(blocks[-1]) + core.mean(core.rmsnorm(blocks[-2] + blocks[-3]))
    return leaves, scalars, blocks, loss


@pytest.mark.parametrize("seed", range(40))
def test_a_random_graph_of_blocks_and_values_agrees(cores, seed):
    """The tolerance is wider here: rounding adds up along the graph."""
    results = []
    for core in cores:
        rng = random.Random(seed)
        leaves, scalars, blocks, loss = random_block_graph(core, rng, rng.choice([3, 10, 25]))
        seen = [[[loss.data]]]
        for _ in range(2):
            loss.backward()
            seen.append([[scalar.grad for scalar in scalars]])
            seen += [block.grad.tolist() for block in leaves]
        seen += [block.tolist() for block in blocks]
        results.append(seen)
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected, 1e-9, at_least=1.0)


@pytest.mark.parametrize("seed", range(5))
def test_backward_twice_doubles_the_leaves_to_the_bit(core, seed):
    rng = random.Random(seed)
    leaves, scalars, _, loss = random_block_graph(core, rng, 20)
    loss.backward()
    once = [leaf.grad.tolist() for leaf in leaves], [scalar.grad for scalar in scalars]
    for leaf in leaves:
        for row in leaf:
            for value in row:
                value.grad = 0.0
    for scalar in scalars:
        scalar.grad = 0.0
    loss.backward()
    assert once == ([leaf.grad.tolist() for leaf in leaves], [scalar.grad for scalar in scalars])


def test_adam_agrees_over_many_steps(cores):
    results = []
    for core in cores:
        rng = random.Random(5)
        params = [random_matrix(core, rng, 3, 4), random_matrix(core, rng, 1, 2)]
        m, v = ([core.Matrix(3, 4), core.Matrix(1, 2)] for _ in range(2))
        for step in range(50):
            loss = core.mean(core.cross_entropy(core.linear(params[0], params[0]), [0, 1, 1]))
            (loss * rng.gauss(0, 5) + core.mean(core.rmsnorm(params[1])) * 3).backward()
            core.adam_update(params, m, v, step, 0.05)
        results.append([block.tolist() for block in params + m + v])
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected, 1e-9)


# Errors: every argument of every function replaced by everything that does not belong there.


def calls(core):
    """Return name -> (function, good arguments)."""
    square = core.Matrix.of([[1, 2], [3, 4]])
    value = core.Value(2)
    return {
        "Value": (core.Value, [1.0, (value,), (1.0,)]),
        "Matrix": (core.Matrix, [2, 2]),
        "Matrix.of": (core.Matrix.of, [[[1, 2]]]),
        "Matrix.pack": (core.Matrix.pack, [[[value, 2]]]),
        "load": (square.load, [[[1, 2], [3, 4]]]),
        "getitem": (square.__getitem__, [1]),
        "embedding": (core.embedding, [square, [1, 0]]),
        "Matrix +": (lambda a, b: a + b, [square, square]),
        "linear": (core.linear, [square, square]),
        "rmsnorm": (core.rmsnorm, [square]),
        "relu": (core.relu, [square]),
        "softmax": (core.softmax, [square]),
        "attention": (core.attention, [square, square, square, 1, [0, 1]]),
        "attention_weights": (core.attention_weights, [square, square, 1, [0, 1]]),
        "cross_entropy": (core.cross_entropy, [square, [0, 1]]),
        "mean": (core.mean, [square]),
        "adam_update": (
            core.adam_update, [[square], [square[:]], [square[:]], 0, 0.1, 0.85, 0.99, 1e-8],
        ),
        **{f"Value {name}": (op, [value, 2.0]) for name, op in BINARY.items()},
        **{f"number {name}": (op, [2.0, value]) for name, op in BINARY.items()},
    }  # fmt: skip


class IndexOf:
    def __init__(self, result):
        self.result = result

    def __index__(self):
        return self.result


class FloatOf(IndexOf):
    def __float__(self):
        return self.result


def bad_arguments(core):
    value, block = core.Value(2), core.Matrix.of([[1, 2, 3]])
    return {
        "nothing": None, "true": True, "0": 0, "1": 1, "-1": -1, "5": 5, "10**30": 10**30,
        "10**400": 10**400, "0.0": 0.0, "1.5": 1.5, "nan": NAN, "inf": INF, "1j": 1j, "text": "ab",
        "digits": "1", "bytes": b"\0\1", "empty": [], "[[]]": [[]], "[0]": [0], "[0, 1]": [0, 1],
        "(0, 1)": (0, 1), "range": range(2), "[1, 0]": [1, 0], "[0, 10**30]": [0, 10**30],
        "[-1]": [-1], "[0.0]": [0.0], "[None]": [None], "['a']": ["a"], "[[1, 2]]": [[1, 2]],
        "ragged": [[1, 2], [3]], "[[1, 'a'], [2, 3]]": [[1, "a"], [2, 3]], "value": value,
        "[value]": [value], "[[value, value]]": [[value, value]], "block": block,
        "[block]": [block], "slice": slice(0, 1), "slice 2": slice(0, 2, 2), "dict": {},
        "object": object(), "type": int, "float type": float, "function": len,
        "index of 1": IndexOf(1), "index of 1.0": IndexOf(1.0), "index of text": IndexOf("a"),
        "float of text": FloatOf("a"), "float of int": FloatOf(1), "bool in a list": [True, False],
        "generator": (i for i in (0, 1)),
        "index in a list": [IndexOf(1), IndexOf(0)], "wrong index in a list": [0, IndexOf(1.0)],
    }  # fmt: skip


def told(result, core):
    """Return the type of an error, or the numbers of a result."""
    if isinstance(result, Exception):
        return type(result).__name__
    if isinstance(result, core.Matrix):
        return [[round(x, 9) for x in row] for row in result.tolist()]
    return str(result)


@pytest.mark.parametrize("name", calls(_core_py))
def test_a_bad_argument_gives_the_same_type_of_error(cores, name):
    n_arguments = len(calls(cores[0])[name][1])
    differences = []
    for position in range(n_arguments):
        for bad in bad_arguments(cores[0]):
            if name == "Matrix" and bad.startswith("10**"):
                continue  # the pure core would fill the memory before it gives up
            results = []
            for core in cores:
                function, arguments = calls(core)[name]
                arguments[position] = bad_arguments(core)[bad]
                results.append(told(outcome(function, *arguments), core))
            if results[0] != results[1]:
                differences.append(f"argument {position}, {bad}: {results[0]}, {results[1]}")
    assert not differences, "\n".join(differences)


def test_a_child_of_float_is_the_same_number_in_both(cores):
    class Odd(float):
        def __float__(self):
            return 7.0

    pure, compiled = (
        [(core.Value(Odd(2)) + Odd(2)).data, core.Matrix.of([[Odd(2)]]).tolist()]
        for core in cores
    )
    assert compiled == pure


# Names, signatures and documentation.


def public_names(module):
    """Return the names that a module defines itself, in its order."""
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    ]


def test_both_cores_have_the_same_names_in_the_same_order(cores):
    pure, compiled = map(public_names, cores)
    assert compiled == pure


def test_core_exports_the_names_of_both(cores):
    core = pytest.importorskip("microgpt.core")
    for module in cores:
        assert {name for name in core.__all__ if not name.startswith("BACKEND")} == set(
            public_names(module)
        )


@pytest.mark.parametrize("name", ["Value", "Matrix", "no_grad"])
def test_classes_have_the_same_members(cores, name):
    pure, compiled = (
        {member for member in dir(getattr(core, name)) if not member.startswith("_")}
        for core in cores
    )
    assert compiled == pure
    for member in ("_children", "_local_grads", "_op"):
        assert hasattr(cores[1].Value, member)


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_functions_and_methods_have_the_same_signatures(cores):
    pure, compiled = cores
    checked = []
    for name in public_names(pure):
        thing, twin = getattr(pure, name), getattr(compiled, name)
        if inspect.isfunction(thing):
            assert parameters(twin) == parameters(thing), name
            checked.append(name)
    for owner in ("Value", "Matrix"):
        for name, thing in vars(getattr(pure, owner)).items():
            if not name.startswith("_") and callable(getattr(getattr(pure, owner), name)):
                thing = getattr(getattr(pure, owner), name)
                assert parameters(getattr(getattr(compiled, owner), name)) == parameters(thing)
                checked.append(name)
    assert {"attention", "adam_update", "grad_enabled", "backward", "exp", "load"} <= set(checked)


def test_the_examples_in_the_docstrings_of_the_compiled_core_hold(compiled):
    runner = doctest.DocTestRunner()
    found = 0
    for owner in (compiled, compiled.Value, compiled.Matrix):
        for name, thing in vars(owner).items():
            if not name.startswith("_") and isinstance(getattr(thing, "__doc__", None), str):
                test = doctest.DocTestParser().get_doctest(
                    thing.__doc__, dict(vars(compiled)), name, None, 0
                )
                found += len(test.examples)
                if "RMSNORM_EPS" != name and getattr(thing, "__module__", None) != "contextlib":
                    assert runner.run(test).failed == 0, name
    assert found > 5
