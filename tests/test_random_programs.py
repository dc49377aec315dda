"""Random programs over Values and Matrices: what holds for every graph.

A program is a list of instructions. Each takes what it needs from what was made before, so
sub-expressions are shared, and elements, rows and packs of blocks are used like anything else.
"""

import math
import os

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

settings.register_profile(
    "suite",
    max_examples=int(os.environ.get("MICROGPT_EXAMPLES", "60")),
    derandomize="MICROGPT_EXAMPLES" not in os.environ,  # the suite tries the same every time
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EVERY = settings.get_profile("suite")

NUMBERS = st.floats(-2, 2, allow_subnormal=False).map(lambda x: round(x, 3))
PICK = st.integers(0, 10_000)
SCALAR_OPS = {
    "add": lambda a, b, x: a + b,
    "multiply": lambda a, b, x: a * b,
    "subtract": lambda a, b, x: a - b,
    "divide": lambda a, b, x: a / (b * b + 1.5),
    "add a number": lambda a, b, x: x + a,
    "subtract from a number": lambda a, b, x: x - a,
    "multiply by a number": lambda a, b, x: a * x,
    "divide a number": lambda a, b, x: x / (a * a + 1),
    "square": lambda a, b, x: (a * 0.25) ** 2,
    "root": lambda a, b, x: (a * a + 0.5) ** 0.5,
    "exp": lambda a, b, x: (a / ((a * a + 1) ** 0.5)).exp(),
    "log": lambda a, b, x: (a * a + 0.5).log(),
    "relu": lambda a, b, x: a.relu(),
    "negate": lambda a, b, x: -a,
    "op of its own": lambda a, b, x: type(a)(a.data + x * b.data, (a, b, a), (0.5, x, 0.5)),
}
BLOCK_OPS = (
    "add", "linear", "rmsnorm", "relu", "softmax", "attention", "attention_weights",
    "cross_entropy", "embedding", "rows", "pack", "element", "mean", "packed documents",
)  # fmt: skip
SCALARS = st.tuples(st.sampled_from(list(SCALAR_OPS)), PICK, PICK, NUMBERS)
BLOCKS = st.tuples(st.sampled_from(BLOCK_OPS), PICK, PICK, NUMBERS)
SCALAR_PROGRAMS = st.tuples(
    st.lists(NUMBERS, min_size=1, max_size=4), st.lists(SCALARS, min_size=1, max_size=25)
)
SHAPES = st.tuples(st.integers(1, 13), st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17]))
PROGRAMS = st.tuples(
    st.lists(NUMBERS, min_size=1, max_size=3),
    SHAPES,
    st.integers(1, 5),
    st.lists(st.one_of(SCALARS, BLOCKS), min_size=1, max_size=12),
)


def run_scalars(c, program):
    """Return the leaves and all Values that the program makes."""
    leaves = [c.Value(x) for x in program[0]]
    made = list(leaves)
    for op, i, j, x in program[1]:
        made.append(SCALAR_OPS[op](made[i % len(made)], made[j % len(made)], x))
    return leaves, made


def wave(rows, cols, phase):
    return [[math.sin(phase + 1.7 * i + 0.6 * j) for j in range(cols)] for i in range(rows)]


def block_op(c, op, a, b, values, x, pick):
    """Return what one instruction makes of the blocks a and b of equal width."""
    rows, cols = a.shape
    if op == "add":
        return a + b[: min(rows, len(b))] if len(b) >= rows else a[: len(b)] + b
    if op == "linear":
        return c.linear(a, b)
    if op == "embedding":
        return c.embedding(a, [(pick + 3 * i) % rows for i in range(1 + pick % 5)])
    if op == "cross_entropy":
        return c.cross_entropy(a, [(pick + i) % cols for i in range(rows)])
    if op == "rows":
        start = pick % rows
        return a[start : start + 1 + pick % (rows - start)]
    if op == "pack":
        row = [values[pick % len(values)], x, a[pick % rows][pick % cols]]
        return c.Matrix.pack([row, row[::-1]])
    if op == "packed documents":
        return c.attention(a, a, a, 1, [0] if rows < 3 else [0, 1, rows - 1])
    if op in ("attention", "attention_weights"):
        q, k = (a, b) if len(a) <= len(b) else (b, a)
        heads = [n for n in range(1, cols + 1) if cols % n == 0]
        n_head = heads[pick % len(heads)]
        return c.attention(q, k, k, n_head) if op == "attention" else c.attention_weights(
            q, k, n_head
        )
    return getattr(c, op)(a)


def run_program(c, program):
    """Return the leaves, all blocks, and the Value that depends on everything."""
    numbers, (rows, cols), more, instructions = program
    values = [c.Value(x) for x in numbers]
    blocks = [c.Matrix.of(wave(rows, cols, 0.3)), c.Matrix.of(wave(rows + more, cols, 1.1))]
    leaves = values + blocks
    for op, i, j, x in instructions:
        if op in SCALAR_OPS:
            values.append(SCALAR_OPS[op](values[i % len(values)], values[j % len(values)], x))
            continue
        a = blocks[i % len(blocks)]
        same = [block for block in blocks if block.shape[1] == a.shape[1]]
        b = same[j % len(same)]
        if op == "element":
            values.append(a[i % a.shape[0]][j % a.shape[1]])
        elif op == "mean":
            values.append(c.mean(a))
        elif op in BLOCK_OPS and op not in SCALAR_OPS:
            blocks.append(block_op(c, op, a, b, values, x, i))
    total = values[-1] * 1.0
    for block in blocks:
        total = total + c.mean(block) * 0.5
    for value in values:
        total = total + value * 0.25
    return leaves, blocks, total


def gradient(leaf):
    return leaf.grad if isinstance(leaf.grad, float) else leaf.grad.tolist()


def entries(result):
    return [result] if isinstance(result, float) else [x for row in result for x in row]


def results(c, program, times=1):
    """Return the loss, the gradients and the blocks of a program that ran backward."""
    leaves, blocks, total = run_program(c, program)
    for _ in range(times):
        total.backward()
    return total.data, [gradient(leaf) for leaf in leaves], [block.tolist() for block in blocks]


def bits(numbers):
    return [x.hex() for result in numbers for x in entries(result)]


@EVERY
@given(program=SCALAR_PROGRAMS)
def test_programs_of_values_have_the_same_bits_in_both_cores(cores, program):
    sides = []
    for c in cores:
        leaves, made = run_scalars(c, program)
        made[-1].backward()
        once = [(value.data.hex(), value.grad.hex()) for value in made]
        inner = [value for value in made if value._children]
        made[-1].backward()
        sides.append((once, [value.grad.hex() for value in made], len(inner)))
        largest = max(1.0, *(max(abs(v.data), abs(v.grad)) for v in made))
        assume(largest < 1e9)
        for leaf, (_, grad) in zip(leaves, once, strict=False):
            if leaf is not made[-1]:  # to the rounding of the sum that goes on
                assert abs(leaf.grad - 2 * float.fromhex(grad)) <= 1e-12 * largest
    assert sides[0] == sides[1]


@EVERY
@given(program=PROGRAMS)
def test_programs_of_blocks_and_values_agree(cores, program):
    (loss, gradients, blocks), (other_loss, other_gradients, other_blocks) = (
        results(c, program) for c in cores
    )
    largest = max(1.0, abs(loss), *(abs(x) for g in [*gradients, *blocks] for x in entries(g)))
    assume(largest < 1e6)  # else what follows from a rounding in a block grows with it
    for mine, other in zip(
        [loss, *gradients, *blocks], [other_loss, *other_gradients, *other_blocks], strict=True
    ):
        for x, y in zip(entries(mine), entries(other), strict=True):
            assert abs(x - y) <= 1e-11 * largest  # of a whole program, not of one op


@EVERY
@given(program=PROGRAMS)
def test_a_program_gives_the_same_bits_again_and_backward_twice_doubles(core, program):
    loss, gradients, blocks = results(core, program)
    again = results(core, program)
    assert bits([loss, *gradients, *blocks]) == bits([again[0], *again[1], *again[2]])
    twice = results(core, program, times=2)[1]
    for one, two in zip(gradients, twice, strict=True):
        for x, y in zip(entries(one), entries(two), strict=True):
            assert abs(y - 2 * x) <= 1e-12 * max(1.0, abs(x), *map(abs, entries(one)))


@EVERY
@given(program=PROGRAMS)
def test_no_grad_gives_the_same_numbers_and_no_graph(core, program):
    loss, _, blocks = results(core, program)
    with core.no_grad():
        leaves, made, total = run_program(core, program)
    assert total._children == ()
    assert bits([total.data, *(block.tolist() for block in made)]) == bits([loss, *blocks])
    total.backward()
    assert not any(x for leaf in leaves for x in entries(gradient(leaf)))


@pytest.fixture
def levels(compiled):
    yield compiled._levels()
    compiled._level(os.environ.get("MICROGPT_SIMD"))


@EVERY
@given(program=PROGRAMS)
def test_every_instruction_set_level_gives_the_same_bits(compiled, levels, program):
    sides = []
    for level in levels:
        assert compiled._level(level) == level
        loss, gradients, blocks = results(compiled, program)
        sides.append(bits([loss, *gradients, *blocks]))
    assert all(side == sides[0] for side in sides)


EDGES = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33]


@pytest.mark.parametrize("rows", range(1, 14))
def test_sizes_around_the_tiles_agree_with_the_specification_at_every_level(cores, levels, rows):
    pure, compiled = cores
    for cols in EDGES:
        n_head = max(n for n in (1, 2, 3, 4) if cols % n == 0)
        for out in (1, 4, 5, 8, 9):

            def program(c, cols=cols, n_head=n_head, out=out):
                x, w = c.Matrix.of(wave(rows, cols, 0.2)), c.Matrix.of(wave(out, cols, 0.9))
                k = c.Matrix.of(wave(rows + out % 3, cols, 2.2))
                if out == 1:  # what has no second size, once
                    y = [c.softmax(x), c.rmsnorm(x), c.relu(x), x + x,
                         c.attention(x, k, k, n_head), c.attention_weights(x, k, n_head),
                         c.cross_entropy(x, [i % cols for i in range(rows)])]  # fmt: skip
                else:
                    y = [c.linear(x, w), c.attention(x, k, k, n_head)]
                total = c.Value(0.0)
                for block in y:
                    weights = c.Matrix.of(wave(1, block.shape[1], 0.7))
                    total = total + c.mean(c.relu(c.linear(block, weights)))
                total.backward()
                return [total.data, *(m.tolist() for m in y),
                        *(m.grad.tolist() for m in (x, w, k))]  # fmt: skip

            if out not in (1, 4 + rows % 2, 8 + cols % 2):
                continue
            expected = program(pure)
            sides = []
            for level in levels:
                compiled._level(level)
                sides.append(program(compiled))
            assert all(bits(side) == bits(sides[0]) for side in sides)
            for mine, theirs in zip(sides[0], expected, strict=True):
                allowed = 1e-12 * max(1.0, *map(abs, entries(theirs)))
                for x, y in zip(entries(mine), entries(theirs), strict=True):
                    assert abs(x - y) <= allowed, (rows, cols, out)
