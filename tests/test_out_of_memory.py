"""Memory that runs out: every request of the compiled core for memory is made to fail in turn.

What is promised: MemoryError, nothing leaked, and everything else unchanged.
"""

import gc
import random
from types import SimpleNamespace

import pytest
from ops import AdamState

NODES = 20_000  # more than an arena holds, so that programs of scalars ask for memory too


def scalars(c):
    x = c.Value(0.5)

    def program():
        y = x
        for _ in range(NODES // 4):
            y = (y * 0.5 + x) / 1.5
        y.backward()
        return y.data

    return program, [x]


def custom_ops(c):
    x, y = c.Value(0.5), c.Value(-2)

    def program():
        z = y
        for n in range(1, 6):
            z = c.Value(1.0 + z.data, [z, x] * n, [0.25] * (2 * n))
        (z * c.Value(2.0, [x, y, z], [1, 2, 3])).backward()
        return z.data

    return program, [x, y]


def block_ops(c):
    table = c.Matrix.of([[0.1 * (i - j) for j in range(4)] for i in range(5)])
    w = c.Matrix.of([[0.3 * (i + j) - 0.5 for j in range(4)] for i in range(4)])

    def program():
        x = c.rmsnorm(c.embedding(table, [0, 4, 2]))
        y = x + c.attention(c.linear(x, w), x, x[:], 2, [0, 1])
        weights = c.attention_weights(c.softmax(y), x, 2)
        loss = c.mean(c.cross_entropy(c.relu(y), [1, 0, 3])) + c.mean(weights)
        loss.backward()
        return loss.data

    return program, [table, w]


def views_elements_packs(c):
    m, x = c.Matrix.of([[0.1 * (i + j) for j in range(6)] for i in range(7)]), c.Value(0.5)

    def program():
        total = c.mean(m[1:5][1:] + m[2:][:3])
        for row in m[::1]:
            for value in row:
                total = total + value * value
        inner = m + m
        pack = c.Matrix.pack([[inner[0][0], x, 3.0], [x * 2, m[2][1], inner[1][1]]])
        total = total + c.mean(c.softmax(pack)) + inner[2:][1][3]
        total.backward()
        return total.data

    return program, [m, x]


def without_grad(c):
    m, x = c.Matrix.of([[0.1 * (i + j) for j in range(4)] for i in range(4)]), c.Value(0.5)

    def program():
        with c.no_grad():
            y = c.attention(c.linear(m, m), m, m, 2)
            z = c.mean(c.softmax(y)) + c.Matrix.pack([[x + 1, x, 2]])[0][1]
            return (z * 2).data

    return program, [m, x]


def elements_without_an_op(c):
    m = c.Matrix.of([[0.1, 0.2], [0.3, 0.4]])

    def program():
        m[1][1].backward()
        m[0][0].grad = m[0][0].grad
        return m[1:].grad[0, 1] * 0

    return program, [m]


def made_and_copied(c):
    m = c.Matrix.of([[0.1, 0.2], [0.3, 0.4]])

    def program():
        return c.Matrix.of(m.tolist()).grad[0, 0] + c.Matrix(300, 700).data[299, 699]

    return program, [m]


def replayed(c):
    table = c.Matrix.of([[0.1, -0.2], [0.3, 0.5], [-0.7, 0.2]])

    def mean_loss(tokens, targets, starts):
        x = c.embedding(table, tokens) + c.embedding(table, c.positions(tokens, starts, 3))
        x = c.attention(x, x, c.rmsnorm(x), 1, starts)
        return c.mean(c.cross_entropy(c.linear(x, table), targets))

    def program():
        replay = c.Replay(mean_loss)
        replay([0, 1, 2], [0, 1, 1], [0])
        replay([2, 2, 0, 1, 1], [1, 0, 2, 2, 1], [0, 3]).backward()
        loss = replay([2, 1, 0] * 20, [1, 0, 2] * 20, list(range(0, 60, 3)))
        loss.backward()
        return loss.data

    return program, [table]


def adam(c):
    p, m, v = (c.Matrix.of([[x, -x, 2.0]]) for x in (0.5, 0.0, 0.0))

    def program():
        state = AdamState([p], [m], [v])
        c.adam_update(state, 0.0)  # with this rate it changes nothing
        c.adam_minimize(c.mean(c.relu(p)), state, 0.0)
        m.load([[0.0, 0.0, 0.0]])
        return p[0][0].data

    return program, [p]


def drawn(c):
    table = c.Matrix.of([[0.1, -0.2, 0.4], [0.3, 0.5, -0.1], [-0.7, 0.2, 0.9]])
    rows = c.Matrix(4, 3)

    def after(ids):
        x = c.embedding(table, ids)
        rows[cache.length : cache.length + 1].load(x)
        return c.softmax(c.linear(x, table))

    cache = SimpleNamespace(length=0)

    def program():
        rng, start = random.Random(1), c.Matrix.of([[0.3, 0.3, 0.4]])
        prefixes, replay, total = c.Prefixes([rows]), c.Replay(after), 0
        for _ in range(9):
            cache.length = 0
            total += sum(c.draw_tokens(replay, cache, start, 4, -1, rng, 3, None, prefixes))
        return total

    return program, [table]


PROGRAMS = [
    scalars, custom_ops, block_ops, views_elements_packs, without_grad, elements_without_an_op,
    made_and_copied, replayed, adam, drawn,
]  # fmt: skip


def gradients(leaf):
    return leaf.grad if isinstance(leaf.grad, float) else leaf.grad.tolist()


def clear(leaves):
    for leaf in leaves:
        for value in [leaf] if isinstance(leaf.grad, float) else [v for row in leaf for v in row]:
            value.grad = 0.0


@pytest.fixture
def failing(compiled):
    gc.collect()  # what other tests left must not give nodes back in the middle
    gc.disable()
    yield compiled._fail_allocation
    compiled._fail_allocation(0)
    gc.enable()


def test_an_update_without_memory_for_its_gradients_is_not_counted(compiled, failing):
    """Each request fails in turn; the step that finds memory is that of backward and update."""
    x = compiled.Matrix.of([[0.1, -0.2, 0.4], [0.3, 0.5, -0.1]])
    numbers = [[0.3, -0.5, 0.7], [0.2, 0.9, -0.4], [0.6, 0.1, 0.8]]

    def prepared():
        w = compiled.Matrix.of(numbers)
        y = compiled.linear(x, w)
        y = y + compiled.linear(compiled.relu(y), w)
        y = y + compiled.linear(compiled.rmsnorm(y), w)
        return AdamState([w], *[[compiled.Matrix(3, 3)] for _ in "mv"]), compiled.mean(y)

    expected, loss = prepared()
    loss.backward()
    compiled.adam_update(expected, 0.01)
    state, loss = prepared()
    for n in range(1, 99):
        failing(n)
        try:
            compiled.adam_minimize(loss, state, 0.01)
        except MemoryError:
            assert failing(0)
            assert (state.step, state.params[0].tolist()) == (0, numbers)
        else:
            break
    failing(0)
    assert n > 4 and state.step == 1
    assert state.params[0].tolist() == expected.params[0].tolist()


@pytest.mark.parametrize("make", PROGRAMS)
def test_every_request_for_memory_may_fail(compiled, failing, make):
    program, leaves = make(compiled)
    expected = program()
    after_one = [gradients(leaf) for leaf in leaves]
    fresh, fresh_leaves = make(compiled)  # whose blocks have no gradients or elements yet
    n = 0
    while True:
        n += 1
        taken = exhaust(compiled, failing) if make in (scalars, custom_ops) else []
        failing(n)
        try:
            result = fresh()
        except MemoryError as error:
            failed, message = failing(0), str(error)
            assert failed and message.startswith("no memory")
        else:
            failed = failing(0)
            if not failed:
                break
        del taken
        clear(fresh_leaves)
        assert program() == expected  # and then all works
        if n % 7 == 0:
            fresh, fresh_leaves = make(compiled)
    assert result == expected
    assert [gradients(leaf) for leaf in fresh_leaves] == after_one
    assert n > 1


def exhaust(c, failing):
    """Return Values that use up all nodes available without requesting memory."""
    values = []
    failing(1)
    try:
        while True:
            values.append(c.Value(1.0))
    except MemoryError:
        pass
    finally:
        failing(0)
    return values


def with_pack(c, a, b, m):
    return c.Matrix.pack([[a, b, 2.0]])


# name -> what makes some nodes from two Values and a Matrix
MAKERS = {
    "a + b": lambda c, a, b, m: a + b,
    "a + 2": lambda c, a, b, m: a + 2,
    "a - b": lambda c, a, b, m: a - b,
    "2 - a": lambda c, a, b, m: 2 - a,
    "a * 2": lambda c, a, b, m: a * 2,
    "-a": lambda c, a, b, m: -a,
    "a / b": lambda c, a, b, m: a / b,
    "a / 2": lambda c, a, b, m: a / 2,
    "2 / a": lambda c, a, b, m: 2 / a,
    "a ** 2": lambda c, a, b, m: a**2,
    "exp": lambda c, a, b, m: a.exp().log().relu(),
    "a new Value": lambda c, a, b, m: c.Value(1, (a, b, a), (1, 2, 3)),
    "element": lambda c, a, b, m: m[0][0] * m[1][0],
    "view": lambda c, a, b, m: m[1:],
    "mean": lambda c, a, b, m: c.mean(m),
    "op": lambda c, a, b, m: c.relu(c.linear(m, m)),
    "pack": with_pack,
    "new Matrix": lambda c, a, b, m: c.Matrix(2, 3),
    "children of mean": lambda c, a, b, m: c.mean(m)._children,
}


@pytest.mark.parametrize("name", MAKERS)
def test_no_node_is_lost_when_there_is_no_room_for_another(compiled, failing, name):
    make = MAKERS[name]
    a, b, m = compiled.Value(2), compiled.Value(3), compiled.Matrix.of([[1.0, 2.0], [3.0, 4.0]])
    m[0]  # the block knows its elements from here on, however few nodes are left
    spare = [compiled.Matrix(2, 2) for _ in range(4)]
    del spare
    for room in range(20):
        values = exhaust(compiled, failing)
        del values[len(values) - room :]
        failing(1)
        try:
            make(compiled, a, b, m)
            succeeded = True
        except MemoryError:
            succeeded = False
        left = 0
        refill = []
        try:
            while True:
                refill.append(compiled.Value(1.0))
                left += 1
        except MemoryError:
            pass
        failing(0)
        assert left == room
        del refill, values
        if succeeded:
            break
    make(compiled, a, b, m)
    (a * b).backward()
    assert (a.grad, b.grad) == (3.0, 2.0)


def test_a_backward_that_found_no_memory_can_be_run_again(compiled, failing):
    x = compiled.Value(1.0)
    y = x
    for _ in range(1000):
        y = y * 1.0 + x * 0.0
    n = 0
    while True:
        n += 1
        failing(n)
        try:
            y.backward()
            break
        except MemoryError as error:
            assert "bytes of graph" in str(error)
            assert x.grad == 0.0
        finally:
            failing(0)
    assert n > 4 and x.grad == 1.0


def test_children_that_find_no_room_are_let_go(compiled, failing):
    x = compiled.Value(1.0)
    failing(1)
    with pytest.raises(MemoryError):
        compiled.Value(7.0, (x, x, x), (1, 2, 3))
    failing(0)
    y = compiled.Value(7.0, (x, x, x), (1, 2, 3))
    y.backward()
    assert x.grad == 6.0


def test_a_negative_count_is_no_failure(compiled, failing):
    assert failing(-1) is False
    assert compiled.Matrix(500, 500).shape == (500, 500)
