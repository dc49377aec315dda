"""Adam against the formulas of the paper, written out in floats."""

import pytest
from ops import AdamState, is_compiled, wave

from microgpt import Adam, Matrix, linear_decay


def set_grads(matrix, numbers):
    for value, number in zip(matrix[0], numbers, strict=True):
        value.grad = number


def test_updates_follow_the_paper_with_bias_correction():
    p = Matrix.of([[1.0, -2.0]])
    adam = Adam([p], beta1=0.85, beta2=0.99, eps=1e-8)
    expected, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for t, (grads, lr) in enumerate([((0.5, -1.0), 0.1), ((0.25, 0.0), 0.05), ((-3.0, 2.0), 0.01)]):
        set_grads(p, grads)
        adam.update(lr)
        for i, g in enumerate(grads):
            m[i] = 0.85 * m[i] + 0.15 * g
            v[i] = 0.99 * v[i] + 0.01 * g * g
            m_hat, v_hat = m[i] / (1 - 0.85 ** (t + 1)), v[i] / (1 - 0.99 ** (t + 1))
            expected[i] -= lr * m_hat / (v_hat**0.5 + 1e-8)
        assert p.tolist()[0] == pytest.approx(expected, rel=1e-13)
        assert [value.grad for value in p[0]] == [0.0, 0.0]
    assert adam.step == 3


def test_the_first_step_moves_each_parameter_by_lr_against_its_gradient():
    p = Matrix.of([[1.0, 1.0, 1.0]])
    set_grads(p, [1e-3, -50.0, 0.0])
    Adam([p]).update(0.01)
    assert p.tolist()[0] == pytest.approx([0.99, 1.01, 1.0], abs=1e-6)


def test_the_learning_rate_falls_in_a_straight_line():
    assert linear_decay(0.01, 0, 1000) == 0.01
    assert linear_decay(0.01, 500, 1000) == 0.005
    assert linear_decay(0.01, 999, 1000) == pytest.approx(1e-5)


# What a weight's gradient may have to go through before Adam: each is a loss of x, w and its state.
LOSSES = {
    "one use": lambda c, x, w, s: c.linear(x, w),
    "one use for many rows": lambda c, x, w, s: c.linear(
        c.Matrix.of(wave(100, len(w), 0.3), w.dtype), w
    ),
    "two uses": lambda c, x, w, s: c.linear(c.linear(x, w), w),
    "both inputs of one op": lambda c, x, w, s: c.linear(w, w),
    "the first input": lambda c, x, w, s: c.linear(w, x),
    "tied with an embedding": lambda c, x, w, s: c.linear(c.embedding(w, [0, 2]), w),
    "a view beside it": lambda c, x, w, s: c.linear(x, w) + w[3:4],
    "a view alone": lambda c, x, w, s: c.linear(x, w[0:2]),
    "an entry beside it": lambda c, x, w, s: c.Matrix.pack([[w[1][1] * w[0][2]] * 20], w.dtype)
    + c.linear(x, w),
    "its own moments": lambda c, x, w, s: c.linear(x, w) * c.linear(x, s.m[0]),
    "not at all": lambda c, x, w, s: c.relu(x),
    # Where the gradient of a block can be that of an input, and where it cannot.
    "residuals": lambda c, x, w, s: branch(c, branch(c, c.linear(x, w), w), w),
    "residuals as second terms": lambda c, x, w, s: branch(
        c, branch(c, c.linear(x, w), w, True), w, True
    ),
    "a sum with itself": lambda c, x, w, s: (h := c.linear(x, w)) + h,
    "a sum with its relu": lambda c, x, w, s: (h := c.linear(x, w)) + c.relu(h),
    "the relu first": lambda c, x, w, s: c.relu(h := c.linear(x, w)) + h,
    "a sum used twice": lambda c, x, w, s: c.relu(h := c.linear(x, w) + x) * h + h,
    "terms used twice": lambda c, x, w, s: ((h := c.linear(x, w)) + (r := c.relu(x))) * r + h,
    "a row that serves all rows": lambda c, x, w, s: c.linear(c.embedding(x, [1]), w)
    + c.linear(x, w),
    "an entry that serves all rows": lambda c, x, w, s: c.linear(
        c.embedding(x, [1]), c.embedding(w, [0])
    )
    + c.linear(x, c.embedding(w, [2])),
    "rows of a sum": lambda c, x, w, s: c.linear((h := c.linear(x, w) + x)[1:4] + h[0:3], w),
    "a leaf and a sum": lambda c, x, w, s: x + (c.linear(x, w) + w[2:7]),
    "a leaf as loss": lambda c, x, w, s: None,
}


def branch(c, x, w, swapped=False):
    """Return x and what a branch computes from it, added, as in a GPT."""
    y = c.linear(c.relu(c.linear(c.rmsnorm(x), w)), w)
    return y + x if swapped else x + y


def minimized(core, name, dtype, together, steps=3, n=20, prepare=lambda state: None):
    """Return all numbers and gradients after some steps, taken by minimize or in two calls."""
    x = core.Matrix.of(wave(5, n, 0.3), dtype)
    w = core.Matrix.of(wave(n, n, 0.1), dtype)
    state = AdamState([w], [core.Matrix(n, n, dtype)], [core.Matrix(n, n, dtype)])
    prepare(state)
    for _ in range(steps):
        result = LOSSES[name](core, x, w, state)
        loss = core.Value(1.0) if result is None else core.mean(core.relu(result))
        del result  # nobody sees the gradient of an inner block
        if together:
            core.adam_minimize(loss, state, 0.01)
        else:
            loss.backward()
            core.adam_update(state, 0.01)
    assert state.step == steps
    blocks = (x, *state.params, *state.m, *state.v)
    return [repr(numbers.tolist()) for m in blocks for numbers in (m.data, m.grad)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", LOSSES)
def test_minimize_is_backward_and_update_to_the_bit(core, name, dtype):
    assert minimized(core, name, dtype, True) == minimized(core, name, dtype, False)


@pytest.mark.parametrize("kept", ["a Matrix", "rows", "an entry", "a buffer"])
def test_minimize_keeps_the_gradients_that_can_be_seen(core, kept):
    """Of all blocks in turn, the others of which share the memory of theirs."""
    if kept == "a buffer" and not is_compiled(core):
        pytest.skip("a buffer is a copy in the pure core")
    keep = {
        "a Matrix": lambda h: h,
        "rows": lambda h: h[1:3],
        "an entry": lambda h: h[4][2],
        "a buffer": lambda h: memoryview(h.grad),
    }[kept]

    def seen(i, together):
        x, w = core.Matrix.of(wave(5, 8, 0.3)), core.Matrix.of(wave(8, 8, 0.1))
        state = AdamState([w], [core.Matrix(8, 8)], [core.Matrix(8, 8)])
        made = [core.linear(x, w)]
        made.append(core.linear(made[-1], w))
        made.append(made[0] + made[1])
        made.append(core.relu(made[-1]))
        made.append(made[-1] + made[0])
        one, loss = keep(made[i]), core.mean(made[-1])
        del made
        if together:
            core.adam_minimize(loss, state, 0.01)
        else:
            loss.backward()
        if kept == "a buffer":
            return one.tolist()
        return one.grad if kept == "an entry" else one.grad.tolist()

    for i in range(5):
        assert seen(i, True) == seen(i, False)


def test_gradients_that_minimize_does_not_keep_are_0(compiled):
    """Not what is left in the memory that they shared."""
    x, w = compiled.Matrix.of(wave(5, 8, 0.3)), compiled.Matrix.of(wave(8, 8, 0.1))
    state = AdamState([w], [compiled.Matrix(8, 8)], [compiled.Matrix(8, 8)])
    loss = compiled.mean(branch(compiled, branch(compiled, compiled.linear(x, w), w), w))
    compiled.adam_minimize(loss, state, 0.01)
    todo, met = [*loss._inputs], 0
    while todo:
        block = todo.pop()
        if block._inputs:
            assert block.grad.tolist() == [[0.0] * 8] * 5
            todo.extend(block._inputs)
            met += 1
    assert met > 9


def test_a_refused_update_leaves_a_gradient_that_is_seen_alone(compiled):
    class Loading(AdamState):
        def __setattr__(self, name, value):
            if name == "step" and value == 2:
                x.load(wave(5, 8, 0.2))
            super().__setattr__(name, value)

    x, w = compiled.Matrix.of(wave(5, 8, 0.3)), compiled.Matrix(8, 8)
    state = Loading([w], [compiled.Matrix(8, 8)], [compiled.Matrix(8, 8)])
    loss = compiled.mean(compiled.relu(compiled.relu(x) + x))
    compiled.adam_minimize(loss, state, 0.01)
    block = loss._inputs[0]._inputs[0]
    numbers = memoryview(block.grad)
    with pytest.raises(RuntimeError, match="relu was computed from have changed"):
        compiled.adam_minimize(loss, state, 0.01)
    numbers[1, 2] = 7.0
    assert block[1][2].grad == block.grad[1, 2] == numbers[1, 2] == 7.0


@pytest.mark.parametrize("what", ["element", "buffer", "backward"])
def test_minimize_adds_to_the_gradients_that_a_weight_has(core, what):
    def prepare(state):
        (w,) = state.params
        if what == "element":
            w[1][2].grad = 2.5
        elif what == "buffer":
            state.seen = w.grad
        else:
            core.mean(core.linear(core.Matrix.of(wave(2, 20, 0.7)), w)).backward()

    together = minimized(core, "one use", "float64", True, prepare=prepare)
    assert together == minimized(core, "one use", "float64", False, prepare=prepare)
    assert what == "buffer" or together != minimized(core, "one use", "float64", True)


@pytest.mark.parametrize("twice", ["param", "moment", "state"])
def test_minimize_takes_matrices_that_are_given_twice_in_their_order(core, twice):
    def prepare(state):
        w, m, v = state.params[0], state.m[0], state.v[0]
        other = core.Matrix.of(wave(20, 20, 0.5))
        state.params.append(w if twice == "param" else other)
        state.m.append(core.Matrix(20, 20) if twice == "param" else m)
        state.v.append(v if twice == "state" else core.Matrix(20, 20))

    together = minimized(core, "one use", "float64", True, prepare=prepare)
    assert together == minimized(core, "one use", "float64", False, prepare=prepare)


def test_a_step_that_cannot_be_counted_changes_nothing(core):
    class Refusing(AdamState):
        def __setattr__(self, name, value):
            if name == "step" and value:
                raise KeyError("no step")
            super().__setattr__(name, value)

    w, x = core.Matrix.of(wave(4, 4, 0.1)), core.Matrix.of(wave(2, 4, 0.2))
    state = Refusing([w], [core.Matrix(4, 4)], [core.Matrix(4, 4)])
    with pytest.raises(KeyError):
        core.adam_minimize(core.mean(core.linear(x, w)), state, 0.1)
    assert w.tolist() == wave(4, 4, 0.1)
    assert state.m[0].tolist() == state.v[0].tolist() == core.Matrix(4, 4).tolist()
    state = AdamState([w], *[[core.Matrix(4, 4)] for _ in "mv"])
    core.adam_minimize(core.mean(core.linear(x, w)), state, 0.1)
    assert w.tolist() != wave(4, 4, 0.1)
