"""Instruction-set levels: chosen at run time, and bit-identical."""

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
