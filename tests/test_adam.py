"""Adam against the formulas of the paper, written out in floats."""

import pytest

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
