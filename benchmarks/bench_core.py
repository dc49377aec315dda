"""Time single ops and one backward, on both cores."""

import random

import pytest


@pytest.fixture
def numbers():
    rng = random.Random(1)
    return lambda rows, cols: [[rng.gauss(0, 1) for _ in range(cols)] for _ in range(rows)]


def dot(values, weights):
    return sum(w * x for w, x in zip(weights, values, strict=True))


def test_a_scalar_dot_product_of_16(core, numbers, benchmark):
    x, w = ([core.Value(number) for number in row] for row in numbers(2, 16))
    expected = sum(a.data * b.data for a, b in zip(x, w, strict=True))
    assert dot(x, w).data == pytest.approx(expected)
    benchmark(dot, x, w)


def test_backward_of_1000_scalar_ops(core, numbers, benchmark):
    x, w = ([core.Value(number) for number in row] for row in numbers(2, 500))
    loss = dot(x, w)
    loss.backward()
    assert [value.grad for value in x] == [value.data for value in w]
    benchmark(loss.backward)


def test_linear_of_7_rows_64_to_256(core, numbers, benchmark):
    x, w = core.Matrix.of(numbers(7, 64)), core.Matrix.of(numbers(256, 64))
    first = sum(a * b for a, b in zip(x.tolist()[0], w.tolist()[0], strict=True))
    assert core.linear(x, w).tolist()[0][0] == pytest.approx(first)
    benchmark(core.linear, x, w)


def test_attention_of_16_rows_of_64(core, numbers, benchmark):
    q, k, v = (core.Matrix.of(numbers(16, 64)) for _ in range(3))
    first = core.attention(q, k, v, 4).tolist()[0]  # row 0 sees only itself
    assert first == pytest.approx(v.tolist()[0])
    benchmark(core.attention, q, k, v, 4)
