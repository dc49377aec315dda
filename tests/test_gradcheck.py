"""Gradients by central differences, and the check itself."""

import math
import random

import pytest
from ops import CASES, SMALL_CASES, VALUE_OPS, weighted_sum

import microgpt as mg
from microgpt.gradcheck import gradcheck

GRAPHS = {
    "a ** 0": lambda a, b, x: a**0,
    "relu of a negative": lambda a, b, x: (-a).relu(),
    "a": lambda a, b, x: a,
    "nothing": lambda a, b, x: a * 0 + b * 0,
    "shared": lambda a, b, x: (a * b + a) * (a * b - b) / (a + b),
    "deep": lambda a, b, x: (((a * b).exp() + a).log() * b) ** x,
}


@pytest.mark.parametrize("name", VALUE_OPS | GRAPHS)
def test_a_value_op_has_the_right_gradient(core, name):
    op = (VALUE_OPS | GRAPHS)[name]
    for a, b, x in [(0.7, 1.9, 2), (2.5, 0.3, -2), (1.0, 1.0, 0.5), (1.3, 0.8, 3)]:
        assert gradcheck(lambda a, b, x=x: op(a, b, x), [core.Value(a), core.Value(b)]) is True


@pytest.mark.parametrize("name", SMALL_CASES)
def test_a_block_op_has_the_right_gradient(core, name):
    case, rng = CASES[name], random.Random(name)
    lists = case.lists(lambda: rng.uniform(0.2, 1.5) * rng.choice((-1, 1)))
    inputs = [core.Matrix.of(rows) for rows in lists]
    assert gradcheck(lambda *inputs: weighted_sum(case.block(core, *inputs)), inputs)


@pytest.mark.parametrize("docs", [["emma"], ["ada", "bob", "c"]])
@pytest.mark.parametrize(
    "sizes", [{"n_embd": 4, "n_head": 2}, {"n_layer": 2, "n_embd": 6, "n_head": 3}]
)
def test_the_loss_of_a_gpt_falls_along_random_directions_as_its_gradient_says(docs, sizes):
    """For the core in use, from which the model takes its ops."""
    names = ["emma", "ada", "bob", "c"]
    run = mg.prepare(names, seed=7, block_size=5, **sizes)
    tokens = [run.tokenizer.encode(doc) for doc in docs]
    params = list(run.model.state_dict.values())
    rng = random.Random(str(docs))
    for p in params:  # larger than a GPT begins with, so that no part is nearly linear
        p.load([[rng.gauss(0, 0.5) for _ in range(p.shape[1])] for _ in range(p.shape[0])])
    run.model.loss(tokens).backward()
    start = [p.tolist() for p in params]
    gradients = [p.grad.tolist() for p in params]
    for _ in range(6):
        direction = [[[rng.gauss(0, 1) for _ in row] for row in rows] for rows in start]
        expected = sum(
            g * d
            for rows, way in zip(gradients, direction, strict=True)
            for row, deltas in zip(rows, way, strict=True)
            for g, d in zip(row, deltas, strict=True)
        )
        losses = []
        for eps in (1e-5, -1e-5):
            for p, rows, way in zip(params, start, direction, strict=True):
                p.load([
                    [x + eps * d for x, d in zip(row, deltas, strict=True)]
                    for row, deltas in zip(rows, way, strict=True)
                ])  # fmt: skip
            losses.append(run.model.loss(tokens).data)
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(expected, rel=1e-5, abs=1e-6)


def wrong(core):
    """Return an op that claims to have the derivative 5 and has 3."""
    return lambda x: core.Value(x.data * 3, (x,), (5,))


def test_a_wrong_gradient_is_reported_with_both_numbers(core):
    x, y = core.Value(1), core.Value(2)
    with pytest.raises(AssertionError) as caught:
        gradcheck(lambda a, b: a * 2 + wrong(core)(b), [x, y])
    report = str(caught.value)
    assert "inputs[1] is wrong" in report
    lines = {line.rsplit(None, 1)[0].strip(): line.split()[-1] for line in report.splitlines()}
    assert float(lines["backward gives"]) == 5.0
    assert float(lines["central differences"]) == pytest.approx(3.0, abs=1e-8)
    assert float(lines["difference"]) == pytest.approx(2.0, abs=1e-8)
    assert float(lines["allowed"]) == pytest.approx(1e-5 + 3e-3, abs=1e-8)
    assert "1 wrong gradients among 2" in report


def test_the_worst_entry_of_a_matrix_is_named(core):
    x = core.Matrix.of([[1, 2, 3], [4, 5, 6]])

    def f(x):
        return core.Value(x[1][2].data * 2, (x[1][2],), (2.1,)) + wrong(core)(x[1][0])

    with pytest.raises(AssertionError, match=r"inputs\[0\]\[1\]\[0\] is wrong") as caught:
        gradcheck(f, [x])
    assert "2 wrong gradients among 6" in str(caught.value)


def test_entries_of_nested_lists_are_named(core):
    lists = [[core.Value(1)], [core.Value(2), (core.Value(3), core.Matrix.of([[4]]))]]

    def f(lists):
        (a,), (b, (c, d)) = lists
        return a * b * c * d[0][0]

    assert gradcheck(f, [lists])
    with pytest.raises(AssertionError, match=r"inputs\[0\]\[1\]\[1\]\[1\]\[0\]\[0\] is wrong"):
        gradcheck(lambda lists: f(lists) + wrong(core)(lists[1][1][1][0][0]), [lists])


def test_a_missing_gradient_is_wrong(core):
    with pytest.raises(AssertionError, match="backward gives       0.0"):
        gradcheck(lambda x: core.Value(x.data * 2), [core.Value(1)])
    with core.no_grad(), pytest.raises(AssertionError):
        gradcheck(lambda x: x * 2, [core.Value(1)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_wrong(core, bad):
    with pytest.raises(AssertionError, match=str(abs(bad))):
        gradcheck(lambda x: core.Value(x.data, (x,), (bad,)), [core.Value(1)])


def test_a_difference_that_is_not_finite_is_wrong(core):
    def jump(x):
        return core.Value(math.inf if x.data > 1 else 0.0, (x,), (1,))

    with pytest.raises(AssertionError, match="central differences  inf"):
        gradcheck(jump, [core.Value(1)])


def test_tolerances_and_step_are_those_asked_for(core):
    x = core.Value(1)
    with pytest.raises(AssertionError):
        gradcheck(wrong(core), [x])
    assert gradcheck(wrong(core), [x], atol=2.1)
    assert gradcheck(wrong(core), [x], rtol=0.7)
    assert gradcheck(lambda x: x * x * x, [x], eps=1e-4, atol=1e-7, rtol=0)
    with pytest.raises(AssertionError):
        gradcheck(lambda x: x * x * x, [x], eps=0.1, atol=1e-7, rtol=0)


def test_inputs_are_the_same_afterwards(core):
    x, m = core.Value(0.1), core.Matrix.of([[0.1, 0.7]])
    x.grad, m[0][1].grad = 4.5, -3.0

    def state():
        return x.data, x.grad, m.tolist(), m.grad.tolist()

    before = state()
    assert gradcheck(lambda x, m: x.exp() * core.mean(m), [x, m])
    assert state() == before
    with pytest.raises(AssertionError):
        gradcheck(lambda x, m: wrong(core)(x) * m[0][0], [x, m])
    assert state() == before
    with pytest.raises(ZeroDivisionError):  # while x is moved
        gradcheck(lambda x, m: x * (1 / int(x.data <= 0.1)), [x, m])
    assert state() == before


def test_old_gradients_do_not_count(core):
    x = core.Value(2)
    x.grad = 1000.0
    assert gradcheck(lambda x: x * 3, [x])


def test_the_same_input_twice_is_one_number(core):
    x = core.Value(2)
    assert gradcheck(lambda a, b: a * b, [x, x])
    assert (x.data, x.grad) == (2.0, 0.0)


def test_the_only_input_needs_no_list(core):
    assert gradcheck(lambda x: x * x, core.Value(3))
    assert gradcheck(lambda m: core.mean(m * m), core.Matrix.of([[1, 2], [3, 4]]))
    with pytest.raises(AssertionError, match=r"inputs\[0\]\[1\]\[0\]"):
        gradcheck(lambda m: core.Value(m[1][0].data ** 2), core.Matrix.of([[1, 2], [3, 4]]))


def test_inputs_may_be_any_iterable(core):
    assert gradcheck(lambda a, b: a * b, (core.Value(2), core.Value(3)))
    assert gradcheck(lambda a, b: a * b, (core.Value(i) for i in (2, 3)))


@pytest.mark.parametrize(
    ("f", "inputs", "error", "message"),
    [
        (lambda c: lambda: c.Value(1), lambda c: [], ValueError, "at least one"),
        (lambda c: lambda x: c.Value(1), lambda c: [[]], ValueError, "at least one"),
        (lambda c: lambda x: x, lambda c: [2.0], TypeError, r"inputs\[0\].* not float"),
        (lambda c: lambda x: x, lambda c: [[c.Value(1), "a"]], TypeError, r"\[0\]\[1\].* not str"),
        (lambda c: lambda x: x.data, lambda c: [c.Value(1)], TypeError, "Value, not float"),
        (lambda c: lambda x: x, lambda c: [c.Matrix(1, 1)], TypeError, "Value, not Matrix"),
        (lambda c: lambda x: None, lambda c: [c.Value(1)], TypeError, "Value, not NoneType"),
        (lambda c: lambda x, y: x, lambda c: [c.Value(1)], TypeError, "argument"),
        (lambda c: lambda x: x.log(), lambda c: [c.Value(0)], ValueError, "log"),
    ],
)
def test_what_cannot_be_checked_is_an_error(core, f, inputs, error, message):
    with pytest.raises(error, match=message):
        gradcheck(f(core), inputs(core))
