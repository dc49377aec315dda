"""Instruction-set levels: chosen at run time, and bit-identical."""

import math
import random

import processes
import pytest
from ops import CASES, adam_update, numbers, run, weighted_sum

import microgpt as mg


@pytest.mark.parametrize("name", CASES)
def test_all_levels_give_the_same_bits(compiled, levels, name):
    case, rng, sides = CASES[name], random.Random(name), []
    lists = case.lists(lambda: rng.gauss(0, 1))
    for level in levels:
        assert compiled._level(level) == level
        sides.append(repr(run(compiled, case.block, lists)))
    assert all(side == sides[0] for side in sides)


@pytest.mark.parametrize("rows", [1, 96, 97, 250])
def test_the_gradient_of_a_weight_is_a_sum_in_the_order_of_the_rows(compiled, levels, rows):
    rng = random.Random(rows)
    x, w, dy = numbers(rng, rows, 9), numbers(rng, 20, 9), numbers(rng, rows, 20)
    expected = [[0.0] * 9 for _ in w]
    for row, gradients in zip(x, dy, strict=True):
        for sums, gradient in zip(expected, gradients, strict=True):
            for i in range(9):
                sums[i] += gradient * row[i]
    for level in levels:
        compiled._level(level)
        block = compiled.Matrix.of(w)
        weighted_sum(compiled.linear(compiled.Matrix.of(x), block), dy).backward()
        assert block.grad.tolist() == expected


@pytest.mark.parametrize("rows", [2, 7, 14, 15, 225, 500])
def test_a_row_of_a_product_does_not_depend_on_the_rows_beside_it(compiled, levels, rows):
    rng = random.Random(rows)
    x, w = numbers(rng, rows, 9), compiled.Matrix.of(numbers(rng, 20, 9))
    for level in levels:
        compiled._level(level)
        together = compiled.linear(compiled.Matrix.of(x), w).tolist()
        alone = [compiled.linear(compiled.Matrix.of([row]), w).tolist()[0] for row in x]
        assert together == alone


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (9, 2), (27, 16), (8, 35), (3, 64)])
def test_all_levels_take_the_same_adam_steps(compiled, levels, shape):
    sides = []
    for level in levels:
        compiled._level(level)
        rng = random.Random(str(shape))
        p = compiled.Matrix.of(numbers(rng, *shape))
        m, v = compiled.Matrix(*shape), compiled.Matrix(*shape)
        for step in range(4):
            weighted_sum(p, numbers(rng, *shape)).backward()
            adam_update(compiled, [p], [m], [v], step, 0.01)
        sides.append(repr([p.tolist(), m.tolist(), v.tolist()]))
    assert all(side == sides[0] for side in sides)


def nearest_to_midpoints():
    """Yield numbers whose square roots lie as near as can be to the middle of two floats.

    With an odd z of 54 bits, z / 2 is such a middle; x = (z * z - j) / 2**e, a number of 53 bits,
    has the root z / 2**(e / 2) but for about j / 2**(e + 1). j is 1 modulo 8, as odd squares are.
    """
    for e in (54, 55):
        for j in range(-191, 200, 8):
            root = 1
            for k in range(3, e):  # a root modulo 2**k becomes one modulo 2**(k + 1)
                if (root * root - j) % 2 ** (k + 1):
                    root += 2 ** (k - 1)
            for z in {i % 2**e for r in (root, -root) for i in (r, r + 2 ** (e - 1))}:
                x, rest = divmod(z * z - j, 2**e)
                if 2**53 <= z < 2**54 and 2**52 <= x < 2**53 and not rest:
                    yield float(x) if e == 54 else 2.0 * x


def test_the_root_in_adam_is_correctly_rounded_at_every_level(compiled, levels):
    hard = list(nearest_to_midpoints())
    assert len(hard) > 60
    rng = random.Random(0)
    xs = [x * 4.0**k for x in hard for k in (0, -100, 300, -420)]
    xs += [float(i) for i in range(1, 300)] + [(i / 7) ** 2 for i in range(1, 300)]
    xs += [2.0**k * (1 + d) for k in range(-800, 1000, 7) for d in (0, 2.0**-52, -(2.0**-53))]
    xs += [rng.uniform(1, 4) * 2.0 ** rng.randint(-700, 900) for _ in range(20_000)]
    xs += [1.0] * (8 + -len(xs) % 32) + xs  # in two of four vectors, whose first does otherwise
    xs += [math.inf, math.nan, 1.7e308, 1e-250]
    for level in levels:
        compiled._level(level)
        for lr in (1.0, 1.1, 1.3):  # a root that is wrong in the last bit changes one quotient
            p, m, v = (compiled.Matrix(1, len(xs)) for _ in range(3))
            m.load([[2.0] * len(xs)])
            v.load([[2 * x if x < 8e307 else x for x in xs]])
            adam_update(compiled, [p], [m], [v], 0, lr, beta1=0.5, beta2=0.5, eps=1e-290)
            lr_hat = lr * (math.sqrt(0.5) / 0.5)
            roots = [math.sqrt(number) for number in v.tolist()[0]]
            assert v.tolist()[0][:-4] == xs[:-4]
            assert repr(p.tolist()[0]) == repr([0.0 - lr_hat / root for root in roots])


def nearest_to_middles(b):
    """Yield numbers whose quotients by b lie as near as can be to the middle of two floats.

    b is an odd number of 53 bits. With an odd z of 54 bits, z / 2 is such a middle, and
    a / b = (z + j / b) / 2**54.
    """
    for j in range(-41, 42, 2):
        z = -j * pow(b, -1, 2**54) % 2**54
        a = (z * b + j) // 2**54
        if z >= 2**53 and 2**52 <= a < 2**53:
            yield float(a)


def test_the_quotient_in_adam_is_correctly_rounded_at_every_level(compiled, levels):
    rng, n_hard = random.Random(0), 0
    for _ in range(60):
        eps = rng.uniform(1, 2)
        b = eps * math.sqrt(0.5)  # what beta2 = 0.5 makes of it in the first step
        mantissa = int(math.frexp(b)[0] * 2**53)
        xs = list(nearest_to_middles(mantissa)) if mantissa % 2 else []
        n_hard += len(xs)
        xs += [rng.uniform(-1, 1) * 2.0 ** rng.randint(-400, 400) for _ in range(96 - len(xs))]
        xs = [x for i in range(0, 96, 8) for x in xs[i : i + 8] * 4]  # in each of four vectors
        for level in levels:
            compiled._level(level)
            p, m, v = (compiled.Matrix(1, len(xs)) for _ in range(3))
            m.load([[2 * x for x in xs]])
            lr = 0.7071067811865475  # times sqrt(0.5) / 0.5 it is 1
            adam_update(compiled, [p], [m], [v], 0, lr, beta1=0.5, beta2=0.5, eps=eps)
            assert p.tolist()[0] == [0.0 - x / b for x in xs]
    assert n_hard > 200


@pytest.mark.parametrize("eps", [1e-300, 1e-8, 1e100, 1e300, 1.7e308])
@pytest.mark.parametrize("lr", [1e-300, 1e-100, 0.01, 1e300, -0.01])
def test_all_levels_take_the_same_adam_step_at_the_ends_of_the_range(compiled, levels, eps, lr):
    rng, sides = random.Random(0), []
    means = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-300, 1.7e308]
    means += [rng.uniform(-1, 1) * 2.0 ** rng.randint(-1000, 1000) for _ in range(249)]
    squares = [rng.choice([0.0, abs(x)]) for x in means]
    for level in levels:
        compiled._level(level)
        p = compiled.Matrix.of([[0.0, -0.0, 1.0, -1e-310] * 64])
        m, v = compiled.Matrix.of([means]), compiled.Matrix.of([squares])
        adam_update(compiled, [p], [m], [v], 0, lr, eps=eps)
        sides.append(repr([p.tolist(), m.tolist(), v.tolist()]))
    assert all(side == sides[0] for side in sides)


def test_all_levels_train_alike(compiled, levels):
    if mg.BACKEND == "python":
        pytest.skip("the pure core is in use")
    runs = []
    for level in levels:
        compiled._level(level)
        runs.append(mg.train(mg.load_documents(), steps=50).losses)
    assert all(losses == runs[0] for losses in runs)


def run_with(simd):
    return processes.run("import microgpt._core as core; print(core._level())", MICROGPT_SIMD=simd)


def test_the_environment_forces_a_level(levels):
    for level in levels:
        assert run_with(level).stdout == f"{level}\n"
    assert run_with("auto").stdout == run_with("").stdout == f"{levels[0]}\n"


def test_a_level_that_is_not_there_is_one_line_and_exit_code_2(levels):
    result = processes.microgpt("train", MICROGPT_SIMD="fast", MICROGPT_BACKEND="cython")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"microgpt: MICROGPT_SIMD must be auto, {' or '.join(levels)}, not 'fast'\n"
    )
