"""The ops that the tests try, each in one place, and how a block op is run.

One entry in OPS is all that a new block op needs. With it the op is compared with its definition
in scalar Values (test_matrix_ops), with its twin in the other core (test_twins) and with central
differences (test_gradcheck), and it takes part in the random programs, which are also compared
between the instruction-set levels (test_random_programs).
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

INF, NAN = math.inf, math.nan
SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, -3.0, 1 / 3, 5e-324, -5e-324,
    2.2250738585072014e-308, 1e-200, -1e-200, 1e-160, 1e154, 1.3407807929942596e154, 1e200, -1e200,
    1.7976931348623157e308, 709.782712893384, 709.7827128933841, -745.1332191019411, -745.2,
    -708.4, 1.0000000000000002, 0.9999999999999999, 9007199254740992.0, INF, -INF, NAN,
]  # fmt: skip


def is_compiled(core):
    return core.__name__ == "microgpt._core"


def tame(x):
    """Return a number between 0.5 and 2.5, a Value of a Value: every op takes it."""
    return 1.5 + x / (x * x + 1) ** 0.5


# Ops of Values.

UNARY = {
    "-a": operator.neg,
    "exp": lambda a: a.exp(),
    "log": lambda a: a.log(),
    "tanh": lambda a: a.tanh(),
    "relu": lambda a: a.relu(),
}
BINARY = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}

# name -> a function of Values a and b and a number x
VALUE_OPS = {name: lambda a, b, x, op=op: op(a) for name, op in UNARY.items()}
for name, op in BINARY.items():
    VALUE_OPS[f"a {name} x"] = lambda a, b, x, op=op: op(a, x)
    if name != "**":  # no exponent is a Value
        VALUE_OPS[f"a {name} b"] = lambda a, b, x, op=op: op(a, b)
        VALUE_OPS[f"x {name} a"] = lambda a, b, x, op=op: op(x, a)

# The same for a graph that is to grow on: neither an error nor a number that soon grows too large.
TAME_VALUE_OPS = {
    name: (lambda a, b, x, op=op: op(tame(a), tame(b), tame(x)))
    if {"exp", "log", "/", "**"} & set(name.split())
    else op
    for name, op in VALUE_OPS.items()
}


# Ops of blocks, written out in scalar Values.


def scalar_embedding(table, ids):
    return [[entry * 1 for entry in table[i]] for i in ids]


def scalar_of_two(op, a, b):
    """Return op of the entries of a and b; a single row serves all rows."""
    n = max(len(a), len(b))
    pairs = zip(list(a) * (n // len(a)), list(b) * (n // len(b)), strict=True)
    return [[op(x, y) for x, y in zip(*rows, strict=True)] for rows in pairs]


def scalar_add(a, b):
    return scalar_of_two(operator.add, a, b)


def scalar_linear(x, w):
    return [[sum(a * b for a, b in zip(row, out, strict=True)) for out in w] for row in x]


def scalar_rmsnorm(x):
    rows = []
    for row in x:
        root = (sum(a * a for a in row) / len(row) + 1e-5) ** 0.5
        rows.append([a / root for a in row])
    return rows


def scalar_relu(x):
    return [[a.relu() for a in row] for row in x]


def scalar_softmax(x, temperature=1.0):
    rows = []
    for row in x:
        exps = [(a / temperature).exp() for a in row]
        rows.append([e / sum(exps) for e in exps])
    return rows


def seen_keys(T, S, starts):
    """Return for each query the keys that it sees, from the words of the docstring."""
    starts = starts or [0]
    return [
        [s for s in range(S) if max(a for a in starts if a <= t) <= s <= S - T + t]
        for t in range(T)
    ]


def scalar_attention_weights(q, k, n_head, starts=None):
    size = len(q[0]) // n_head
    rows = []
    for h in range(n_head):
        columns = range(h * size, (h + 1) * size)
        for query, seen in zip(q, seen_keys(len(q), len(k), starts), strict=True):
            scores = [sum(query[j] * k[s][j] for j in columns) * size**-0.5 for s in seen]
            row = [0.0 * query[0] for _ in k]
            for s, weight in zip(seen, scalar_softmax([scores])[0], strict=True):
                row[s] = weight
            rows.append(row)
    return rows


def scalar_attention(q, k, v, n_head, starts=None):
    size = len(q[0]) // n_head
    weights = scalar_attention_weights(q, k, n_head, starts)
    return [
        [
            sum(weights[j // size * len(q) + t][s] * v[s][j] for s in range(len(v)))
            for j in range(len(q[0]))
        ]
        for t in range(len(q))
    ]


def scalar_cross_entropy(logits, targets):
    return [
        [-row[target].log()] for row, target in zip(scalar_softmax(logits), targets, strict=True)
    ]


def scalar_mean(x):
    return sum(a for row in x for a in row) / (len(x) * len(x[0]))


# What a random program gives an op: three blocks of equal width and an int become its arguments.


def first_block(blocks, pick):
    return blocks[:1]


def two_blocks(blocks, pick):
    return blocks[:2]


def two_that_fit(blocks, pick):
    a, b = blocks[:2]
    rows = min(len(a), len(b))
    return [(a[:rows], b[:rows]), (a, b[:1]), (a[-1:], b)][pick % 3]


def a_block_and_a_number(blocks, pick):
    return [blocks[0], (2, 0.5, 3.0, -1, 1.5, -2)[pick % 6]]


def some_ids(blocks, pick):
    return [blocks[0], [(pick + 3 * i) % len(blocks[0]) for i in range(1 + pick % 5)]]


def a_target_for_each_row(blocks, pick):
    rows, cols = blocks[0].shape
    return [blocks[0], [(pick + i) % cols for i in range(rows)]]


def some_rows(blocks, pick):
    start = pick % len(blocks[0])
    return [blocks[0], start, start + 1 + pick % (len(blocks[0]) - start)]


def a_row_and_a_column(blocks, pick):
    rows, cols = blocks[0].shape
    return [blocks[0], pick % rows, pick // 7 % cols]


def q_k_v_and_heads(blocks, pick):
    q, k, v = sorted(blocks, key=len)
    cols = q.shape[1]
    divisors = [n for n in range(1, cols + 1) if cols % n == 0]
    return [q, k, v[: len(k)], divisors[pick % len(divisors)]]


def q_k_and_heads(blocks, pick):
    q, k, _, n_head = q_k_v_and_heads(blocks, pick)
    return [q, k, n_head]


def q_k_v_of_documents(blocks, pick):
    rows = min(map(len, blocks))
    return [*(block[:rows] for block in blocks), 1, sorted({0, pick % rows, pick // 7 % rows})]


class Op(NamedTuple):
    """A block op, its scalar definition and what to try them with.

    block: makes a Matrix or a Value of a core, of Matrices and of other arguments.
    scalar: makes the same of lists of lists of Values.
    cases: tuples of the shapes of the Matrices and the other arguments.
    arguments: makes the arguments for a random program, as the functions above.
    domain: maps any number, or Value, to where the op and its derivatives exist: None, or tame.
    """

    block: Callable
    scalar: Callable
    cases: list[tuple]
    arguments: Callable = first_block
    domain: Callable | None = None


SIZES = [(1, 1), (1, 5), (5, 1), (3, 5), (7, 17), (16, 64)]
ONE = [([size],) for size in SIZES]
TWO_ALIKE = [([size] * 2,) for size in SIZES]
WITH_A_ROW = [([(t, n), (1, n)],) for t, n in SIZES] + [([(1, n), (t, n)],) for t, n in SIZES]

OPS = {
    "embedding": Op(
        lambda c, table, ids: c.embedding(table, ids), scalar_embedding,
        [([(5, 3)], [4, 0, 4, 2]), ([(1, 1)], [0])],
        some_ids,
    ),
    "linear": Op(
        lambda c, x, w: c.linear(x, w), scalar_linear,
        [
            ([(3, 5), (1, 5)],), ([(3, 1), (7, 1)],), ([(1, 5), (3, 5)],), ([(3, 5), (4, 5)],),
            ([(5, 9), (6, 9)],), ([(2, 33), (3, 33)],), ([(7, 17), (9, 17)],),
            ([(5, 33), (17, 33)],), ([(16, 64), (16, 64)],),
        ],
        two_blocks,
    ),
    "rmsnorm": Op(lambda c, x: c.rmsnorm(x), scalar_rmsnorm, ONE),
    "relu": Op(lambda c, x: c.relu(x), scalar_relu, ONE),
    "softmax": Op(lambda c, x: c.softmax(x), scalar_softmax, ONE),
    "softmax with a temperature": Op(
        lambda c, x, temperature: c.softmax(x, temperature), scalar_softmax,
        [([(3, 5)], 0.7), ([(7, 17)], 2)],
        lambda blocks, pick: [blocks[0], 0.7 + pick % 3],
    ),
    "attention": Op(
        lambda c, q, k, v, *rest: c.attention(q, k, v, *rest), scalar_attention,
        [
            ([(1, 4)] * 3, 2), ([(5, 1)] * 3, 1), ([(3, 5)] * 3, 1), ([(7, 17)] * 3, 17),
            ([(16, 64)] * 3, 4), ([(5, 9)] * 3, 3), ([(3, 6), (8, 6), (8, 6)], 2),
            ([(1, 4), (9, 4), (9, 4)], 4),
        ],
        q_k_v_and_heads,
    ),
    "attention of documents": Op(
        lambda c, q, k, v, *rest: c.attention(q, k, v, *rest), scalar_attention,
        [([(9, 6)] * 3, 3, [0, 1, 5]), ([(4, 6)] * 3, 3, [0]), ([(3, 4)] * 3, 2, [0, 1, 2])],
        q_k_v_of_documents,
    ),
    "attention_weights": Op(
        lambda c, q, k, *rest: c.attention_weights(q, k, *rest), scalar_attention_weights,
        [
            ([(1, 3)] * 2, 1), ([(7, 17)] * 2, 1), ([(3, 6), (8, 6)], 2),
            ([(9, 6)] * 2, 3, [0, 4, 8]),
        ],
        q_k_and_heads,
    ),
    "cross_entropy": Op(
        lambda c, x, targets: c.cross_entropy(x, targets), scalar_cross_entropy,
        [
            ([(3, 5)], [4, 0, 4]), ([(7, 17)], [*range(7)]), ([(1, 4)], [2]),
            ([(3, 1)], [0, 0, 0]),
        ],
        a_target_for_each_row,
    ),
    "mean": Op(lambda c, x: c.mean(x), scalar_mean, ONE),
    "rows": Op(
        lambda c, x, start, stop: x[start:stop], lambda x, start, stop: x[start:stop],
        [([(4, 2)], 1, 3)],
        some_rows,
    ),
    "element": Op(
        lambda c, x, i, j: x[i][j], lambda x, i, j: x[i][j], [([(3, 2)], 2, 1)], a_row_and_a_column,
    ),
    "pack": Op(
        lambda c, a, b: c.Matrix.pack([a[0], b[-1][::-1]], a.dtype),
        lambda a, b: [a[0], b[-1][::-1]],
        [([(2, 3), (4, 3)],)],
        two_blocks,
    ),
}  # fmt: skip

# The operators and the methods that a Matrix has as a Value has them.
for name, op in VALUE_OPS.items():
    domain = tame if {"exp", "log", "/", "**"} & set(name.split()) else None
    if "b" in name.split():
        OPS[name.replace("a", "A").replace("b", "B")] = Op(
            lambda c, a, b, op=op: op(a, b, None),
            lambda a, b, op=op: scalar_of_two(lambda x, y: op(x, y, None), a, b),
            TWO_ALIKE + WITH_A_ROW, two_that_fit, domain,
        )
    elif "x" in name.split():
        OPS[name.replace("a", "A")] = Op(
            lambda c, a, number, op=op: op(a, None, number),
            lambda a, number, op=op: [[op(x, None, number) for x in row] for row in a],
            [([(7, 17)], 3), ([(1, 5)], 2), ([(3, 5)], -0.75)], a_block_and_a_number, domain,
        )
    else:
        OPS[f"{name} of A" if name != "-a" else "-A"] = Op(
            lambda c, a, op=op: op(a, None, None),
            lambda a, op=op: [[op(x, None, None) for x in row] for row in a],
            ONE, domain=domain,
        )

# The same block in several places: name -> the op of a Matrix of 5 x 6, its scalar definition
# and its domain.
ALIASES = {
    "a + a": (lambda c, a: a + a, lambda a: scalar_add(a, a)),
    "a - a": (lambda c, a: a - a, lambda a: scalar_of_two(operator.sub, a, a)),
    "a * a": (lambda c, a: a * a, lambda a: scalar_of_two(operator.mul, a, a)),
    "a / a": (lambda c, a: a / a, lambda a: scalar_of_two(operator.truediv, a, a), tame),
    "a row of a serves all of a": (
        lambda c, a: a[1:2] * a / a[2:3], lambda a: scalar_of_two(
            operator.truediv, scalar_of_two(operator.mul, a[1:2], a), a[2:3]
        ),
        tame,
    ),
    "parts that overlap, multiplied": (
        lambda c, a: a[:-1] * a[1:], lambda a: scalar_of_two(operator.mul, a[:-1], a[1:]),
    ),
    "linear(a, a)": (lambda c, a: c.linear(a, a), lambda a: scalar_linear(a, a)),
    "attention(a, a, a)": (
        lambda c, a: c.attention(a, a, a, 3), lambda a: scalar_attention(a, a, a, 3),
    ),
    "attention of parts of a": (
        lambda c, a: c.attention(a[2:], a, a, 2), lambda a: scalar_attention(a[2:], a, a, 2),
    ),
    "attention_weights(a, a)": (
        lambda c, a: c.attention_weights(a, a, 2), lambda a: scalar_attention_weights(a, a, 2),
    ),
    "parts that overlap": (lambda c, a: a[:-1] + a[1:], lambda a: scalar_add(a[:-1], a[1:])),
    "linear of parts": (lambda c, a: c.linear(a[1:], a[:3]), lambda a: scalar_linear(a[1:], a[:3])),
    "pack of one element": (
        lambda c, a: c.Matrix.pack([[a[0][0], a[0][0], a[0][0] * a[1][0]]]),
        lambda a: [[a[0][0], a[0][0], a[0][0] * a[1][0]]],
    ),
    "several ops": (
        lambda c, a: c.softmax(c.linear(c.rmsnorm(c.embedding(a, [0, 2, 0]) + a[1:4]), a)),
        lambda a: scalar_softmax(
            scalar_linear(scalar_rmsnorm(scalar_add([a[0], a[2], a[0]], a[1:4])), a)
        ),
    ),
}  # fmt: skip


class Case(NamedTuple):
    """An op and its scalar definition with all arguments but the Matrices, whose shapes it has."""

    block: Callable
    scalar: Callable
    shapes: list[tuple[int, int]]
    domain: Callable | None = None

    def lists(self, number):
        """Return lists for the Matrices, of what the function gives for each of their entries."""
        return [in_domain(self, [[number() for _ in range(cols)] for _ in range(rows)])
                for rows, cols in self.shapes]  # fmt: skip


def _case(op, shapes, *rest):
    return Case(
        lambda c, *blocks: op.block(c, *blocks, *rest),
        lambda *rows: op.scalar(*rows, *rest),
        shapes,
        op.domain,
    )


CASES = {
    ", ".join([f"{name} {' '.join(f'{m}x{n}' for m, n in shapes)}", *map(str, rest)]): _case(
        op, shapes, *rest
    )
    for name, op in OPS.items()
    for shapes, *rest in op.cases
} | {name: Case(block, scalar, [(5, 6)], *domain)
     for name, (block, scalar, *domain) in ALIASES.items()}
# Those for which a test can afford to run the pure core many times.
SMALL_CASES = [
    name for name, case in CASES.items() if sum(rows * cols for rows, cols in case.shapes) <= 170
]


def in_domain(op, rows):
    return [[op.domain(x) for x in row] for row in rows] if op.domain else rows


# What they are run with, and what comes out.


def numbers(rng, rows, cols, scale=1.0):
    return [[rng.gauss(0, scale) for _ in range(cols)] for _ in range(rows)]


def wave(rows, cols, phase):
    return [[math.sin(phase + 1.7 * i + 0.6 * j) for j in range(cols)] for i in range(rows)]


def rows_of(result):
    """Return the rows of a Matrix or of lists; a Value, as `mean` gives it, is a row by itself."""
    return result if hasattr(result, "__iter__") else [[result]]


def data(result):
    return [[value.data for value in row] for row in rows_of(result)]


def grads(result):
    return [[value.grad for value in row] for row in rows_of(result)]


def weighted_sum(result, weights=None):
    """Return the sum of all entries times the given numbers: a loss that depends on every entry."""
    rows = rows_of(result)
    weights = weights or wave(len(rows), len(rows[0]), 0.7)
    return sum(v * c for row, cs in zip(rows, weights, strict=True)
               for v, c in zip(row, cs, strict=True))


def run(c, block, lists):
    """Return the data of an op of a core and the gradients of a sum that weighs every entry."""
    inputs = [c.Matrix.of(rows) for rows in lists]
    result = block(c, *inputs)
    weighted_sum(result).backward()
    return [data(result), *(x.grad.tolist() for x in inputs)]


def assert_close(actual, expected, tolerance=1e-12, at_least=0.0):
    """Compare lists of lists within the tolerance times the largest entry.

    Infinities and nan must be at the same places.
    at_least: take the largest entry for no smaller than this. For gradients that cancel each
    other to 0, as in a softmax over one number: what is left is the rounding of what was summed.
    """
    assert [len(row) for row in actual] == [len(row) for row in expected]
    largest = max([at_least, *(abs(x) for row in expected for x in row if math.isfinite(x))])
    for i, (row, expected_row) in enumerate(zip(actual, expected, strict=True)):
        for j, (a, b) in enumerate(zip(row, expected_row, strict=True)):
            same = abs(a - b) <= tolerance * largest if math.isfinite(b) else repr(a) == repr(b)
            assert same, f"[{i}][{j}] is {a}, expected {b}"


@dataclass
class AdamState:
    """What adam_update needs. The package's Adam uses one core only."""

    params: list
    m: list
    v: list
    step: int = 0
    beta1: float = 0.85
    beta2: float = 0.99
    eps: float = 1e-8


def adam_update(core, params, m, v, step, lr, beta1=0.85, beta2=0.99, eps=1e-8):
    """Take one step of a core with the numbers of one call."""
    core.adam_update(AdamState(params, m, v, step, beta1, beta2, eps), lr)
