"""Instruction-set levels: chosen at run time, and equal to the last bit."""

import os
import random
import subprocess
import sys

import pytest

import microgpt as mg


@pytest.fixture
def levels(compiled):
    """Give the levels of this machine; afterwards the one that was in use is in use again."""
    before = compiled._level()
    yield compiled._levels()
    compiled._level(before)


def results(core, shape, seed):
    """Return the bits of all block ops and of their gradients on random numbers."""
    rng = random.Random(seed)
    rows, cols, out, n_head = shape

    def matrix(m, n):
        return core.Matrix.of([[rng.gauss(0, 1) for _ in range(n)] for _ in range(m)])

    x, w, table = matrix(rows, cols), matrix(out, cols), matrix(5, cols)
    more = core.embedding(table, [rng.randrange(5) for _ in range(rows)])
    y = core.rmsnorm(x + more)
    y = core.attention(y, y, x, n_head, [0, rows // 2] if rows > 1 else None) + core.relu(more)
    z = core.linear(y, w)
    losses = core.cross_entropy(z, [rng.randrange(out) for _ in range(rows)])
    loss = core.mean(losses) + core.mean(core.softmax(z, 0.7)) * 0.5
    loss = loss + core.mean(core.attention_weights(y, x, n_head))
    loss.backward()
    blocks = [m.tolist() for m in (y, z, losses)] + [m.grad.tolist() for m in (x, w, table)]
    m, v = (core.Matrix(out, cols) for _ in range(2))
    core.adam_update([w], [m], [v], 3, 0.01)
    return repr((loss.data, blocks, w.tolist(), m.tolist(), v.tolist()))


SHAPES = [(1, 1, 1, 1), (2, 3, 5, 3), (7, 16, 27, 4), (13, 12, 9, 2), (17, 35, 8, 5), (6, 64, 3, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_levels_give_the_same_bits(compiled, levels, shape):
    by_level = {}
    for level in levels:
        assert compiled._level(level) == level
        by_level[level] = [results(compiled, shape, seed) for seed in range(5)]
    assert len({repr(bits) for bits in by_level.values()}) == 1


def test_all_levels_train_alike(compiled, levels):
    if mg.BACKEND == "python":
        pytest.skip("the pure core is in use")
    runs = []
    for level in levels:
        compiled._level(level)
        runs.append(mg.train(mg.load_documents(), steps=50).losses)
    assert all(losses == runs[0] for losses in runs)


def run_with(simd):
    code = "import microgpt._core as core; print(core._level())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MICROGPT_SIMD": simd},
        capture_output=True,
        text=True,
    )


def test_the_environment_forces_a_level(levels):
    for level in levels:
        assert run_with(level).stdout == f"{level}\n"
    assert run_with("auto").stdout == run_with("").stdout == f"{levels[0]}\n"


def test_a_level_that_is_not_there_is_one_line_and_exit_code_2(levels):
    result = subprocess.run(
        [sys.executable, "-m", "microgpt", "train"],
        env={**os.environ, "MICROGPT_SIMD": "fast", "MICROGPT_BACKEND": "cython"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"microgpt: MICROGPT_SIMD must be auto, {' or '.join(levels)}, not 'fast'\n"
    )
