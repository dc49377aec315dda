"""The type float32: blocks that hold rounded numbers, and runs that are trained in it.

Op by op both cores agree within 1e-4 of a block's largest entry, at every level; what is tested
here is a tenth of that.
"""

import copy
import pickle
import random
import struct

import pytest
from ops import CASES, SMALL_CASES, adam_update, assert_close, data, numbers, wave, weighted_sum

import microgpt as mg
from microgpt import checkpoint
from microgpt.gradcheck import gradcheck

DOCS = ["emma", "olivia", "ava", "isabella", "sophia"]


def single(x):
    """Return the float32 number nearest to x."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def rounded(lists):
    return [[single(x) for x in row] for row in lists]


def run32(c, block, lists):
    """Return the data of an op on float32 blocks, and the gradients, as ops.run does."""
    inputs = [c.Matrix.of(rows, "float32") for rows in lists]
    result = block(c, *inputs)
    weighted_sum(result).backward()
    return [data(result), *(x.grad.tolist() for x in inputs)]


# Blocks


def test_a_block_holds_what_it_is_given_rounded(core):
    m = core.Matrix(2, 2, "float32")
    assert (m.dtype, m.tolist()) == ("float32", [[0.0, 0.0], [0.0, 0.0]])
    m.load([[0.1, 1 / 3], [1e-50, 1e39]])
    assert m.tolist() == [[single(0.1), single(1 / 3)], [0.0, float("inf")]]
    m[1][0].data = 0.7
    m[0][1].grad = 0.3
    assert (m[1][0].data, m[0][1].grad, m[0:1][0][1].grad) == (single(0.7), *[single(0.3)] * 2)
    assert m.grad.tolist() == [[0.0, single(0.3)], [0.0, 0.0]]
    assert core.Matrix(1, 1).dtype == core.Matrix.of([[1]]).dtype == "float64"
    assert core.Matrix.of([[0.1]], dtype="float32").tolist() == [[single(0.1)]]
    assert core.Matrix.of(m).dtype == "float32" and core.Matrix.of(m).tolist() == m.tolist()
    assert core.Matrix.of(m, "float64").dtype == "float64"


def test_buffers_have_the_type(core):
    m = core.Matrix.of([[0.1, 2.0, 3.0]], "float32")
    for view in (m.data, m.grad):
        assert (view.format, view.itemsize, view.nbytes, view.shape) == ("f", 4, 12, (1, 3))
    assert m.data.tolist() == m.tolist()
    numpy = pytest.importorskip("numpy")
    assert numpy.asarray(m).dtype == "float32" and numpy.asarray(m).tolist() == m.tolist()


def test_the_buffer_is_live_in_the_compiled_core(compiled):
    m = compiled.Matrix(2, 2, "float32")
    m.data[1, 0] = 0.1
    assert m[1][0].data == m[1:].tolist()[0][0] == single(0.1)


def test_copies_and_pickles_keep_the_type(core):
    m = core.Matrix.of([[0.1, -0.0]], "float32")
    for again in (copy.copy(m), copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert (again.dtype, repr(again.tolist())) == ("float32", repr(m.tolist()))
    small = core.Matrix.of([[0.5]], "float32")
    assert repr(small) == "Matrix.of([[0.5]], 'float32')"
    assert eval(repr(small), {"Matrix": core.Matrix}).dtype == "float32"


def test_an_element_is_a_value_like_any_other(core):
    m = core.Matrix.of([[0.1, 0.2]], "float32")
    assert all(isinstance(value, core.Value) for value in m[0])
    product = m[0][0] * m[0][1]  # in float64
    assert product.data == single(0.1) * single(0.2)
    (product + core.mean(m)).backward()
    assert m.grad.tolist() == rounded([[single(0.2) + 0.5, single(0.1) + 0.5]])


def test_mean_gives_a_float64_number_of_the_rounded_entries(core):
    lists = rounded(wave(7, 5, 0.3))
    mean = core.mean(core.Matrix.of(lists, "float32"))
    assert mean.data == pytest.approx(sum(map(sum, lists)) / 35, rel=1e-14, abs=0)


def test_pack_gives_float64_unless_told(core):
    values = [[core.Value(0.1), core.Value(0.2)]]
    assert core.Matrix.pack(values).dtype == "float64"
    m = core.Matrix.pack(values, "float32")
    assert (m.dtype, m.tolist()) == ("float32", rounded([[0.1, 0.2]]))
    core.mean(m * 3).backward()
    assert [v.grad for v in values[0]] == [1.5, 1.5]


def test_load_converts_and_pack_converts_with_gradients(core):
    m, n = core.Matrix.of([[0.1]], "float32"), core.Matrix.of([[0.3]])
    n.load(m)
    assert n.tolist() == [[single(0.1)]]
    n.load([[0.7]])
    m.load(n)
    assert m.tolist() == [[single(0.7)]]
    core.mean(core.Matrix.pack(m) * n).backward()
    assert m.grad.tolist() == rounded([[0.7]]) and n.grad.tolist() == rounded([[0.7]])


@pytest.mark.parametrize("dtype", ["float16", "f", None, 32, ["float32"], float])
def test_other_types_are_refused(core, dtype):
    makers = [lambda: core.Matrix(1, 1, dtype), lambda: core.Matrix.pack([[1]], dtype)]
    if dtype is not None:  # that of a Matrix, or float64
        makers.append(lambda: core.Matrix.of([[1]], dtype))
    for make in makers:
        with pytest.raises(ValueError, match="dtype must be 'float64' or 'float32', not "):
            make()


MIXED = {
    "+": lambda c, a, b: a + b,
    "-": lambda c, a, b: b - a,
    "*": lambda c, a, b: a * b,
    "/": lambda c, a, b: b / a,
    "linear": lambda c, a, b: c.linear(a, b),
    "attention": lambda c, a, b: c.attention(a, a, b, 2),
    "attention_weights": lambda c, a, b: c.attention_weights(b, a, 2),
    "adam_update": lambda c, a, b: adam_update(c, [a], [b], [c.Matrix(3, 4, "float32")], 0, 0.1),
}


@pytest.mark.parametrize("name", MIXED)
def test_types_do_not_mix_in_an_op(core, name):
    a, b = core.Matrix.of(wave(3, 4, 0.1), "float32"), core.Matrix.of(wave(3, 4, 0.2))
    with pytest.raises(TypeError, match=r"different types, .*Matrix\.of\(m, dtype\)"):
        MIXED[name](core, a, b)
    assert MIXED[name](core, a, core.Matrix.of(b, "float32")) is not NotImplemented


def test_a_number_takes_the_type_of_the_block(core):
    m = core.Matrix.of([[0.5, 2.0]], "float32")
    for y, expected in ((m + 0.1, [0.6, 2.1]), (0.1 * m, [0.05, 0.2]), (1 / m, [2.0, 0.5]),
                        (m / 3, [1 / 6, 2 / 3]), (m**0.3, [0.5**0.3, 2**0.3])):  # fmt: skip
        assert y.dtype == "float32"
        assert y.tolist()[0] == pytest.approx(expected, rel=3e-7)


def test_errors_are_those_of_values_and_other_numbers_too_large_are_infinite(core):
    def m(*row):
        return core.Matrix.of([row], "float32")

    for error, f in (
        (ValueError, lambda: m(1.0, 0.0).log()),
        (OverflowError, lambda: m(1.0, 710.0).exp()),
        (ZeroDivisionError, lambda: 1 / m(1.0, 0.0)),
        (ZeroDivisionError, lambda: m(1.0) / 1e-50),
        (ValueError, lambda: m(-8.0) ** 0.5),
        (OverflowError, lambda: m(1e38) ** 9),
    ):
        with pytest.raises(error):
            f()
    inf = float("inf")
    assert m(89.0, 700.0, -110.0).exp().tolist() == [[inf, inf, 0.0]]
    assert (m(1e30) * m(1e30)).tolist() == (m(1e30) ** 2).tolist() == [[inf]]


# Both cores, all levels


@pytest.mark.parametrize("name", CASES)
def test_a_block_op_agrees_with_the_specification_at_every_level(cores, levels, name):
    pure, compiled = cores
    case, rng = CASES[name], random.Random(name)
    lists = case.lists(lambda: rng.gauss(0, 1))
    expected = run32(pure, case.block, lists)
    for level in levels:
        compiled._level(level)
        found = run32(compiled, case.block, lists)
        for mine, theirs in zip(found, expected, strict=True):
            assert_close(mine, theirs, 1e-5, at_least=1.0)
        assert repr(run32(compiled, case.block, lists)) == repr(found)


SHAPES = [(1, 1), (2, 3), (3, 16), (5, 17), (4, 33), (17, 7), (33, 40), (20, 64)]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 16, 18, 35])
def test_products_around_the_tiles_agree(cores, levels, rows):
    """With a product written out, which is quicker than the pure core."""
    rng = random.Random(rows)
    for nout, nin in SHAPES:
        x, w = numbers(rng, rows, nin), numbers(rng, nout, nin)
        dy = wave(rows, nout, 0.7)
        y = [[sum(a * b for a, b in zip(r, o, strict=True)) for o in w] for r in x]
        dx = [[sum(dy[t][o] * w[o][i] for o in range(nout)) for i in range(nin)]
              for t in range(rows)]  # fmt: skip
        dw = [[sum(dy[t][o] * x[t][i] for t in range(rows)) for i in range(nin)]
              for o in range(nout)]  # fmt: skip
        for level in levels:
            cores[1]._level(level)
            found = run32(cores[1], lambda c, x, w: c.linear(x, w), [x, w])
            for mine, expected in zip(found, (y, dx, dw), strict=True):
                assert_close(mine, expected, 3e-6, at_least=1.0)


@pytest.mark.parametrize(("n", "n_head"), [(4, 4), (6, 2), (10, 5), (16, 4), (24, 3), (40, 8)])
def test_attention_around_the_tiles_agrees(cores, levels, n, n_head):
    pure, compiled = cores
    for rows, starts in ((1, None), (13, None), (18, [0, 3, 4, 17])):
        def block(c, q, k, v, starts=starts):
            return c.attention(q, k, v, n_head, starts)

        lists = [wave(rows, n, phase) for phase in (0.1, 0.5, 1.3)]
        expected = run32(pure, block, lists)
        for level in levels:
            compiled._level(level)
            for mine, theirs in zip(run32(compiled, block, lists), expected, strict=True):
                assert_close(mine, theirs, 1e-5, at_least=1.0)


@pytest.mark.parametrize("size", [1, 3, 8, 17, 40])
def test_adam_follows_the_paper(core, levels, size):
    rng = random.Random(size)
    for level in levels:
        if core.__name__ == "microgpt._core":
            core._level(level)
        p, m, v = (core.Matrix(1, size, "float32") for _ in range(3))
        p.load(numbers(rng, 1, size))
        expected, m1, v1 = p.tolist()[0], [0.0] * size, [0.0] * size
        for step in range(5):
            grads = [rng.gauss(0, 1) * 10 ** rng.uniform(-6, 2) for _ in range(size)]
            for value, grad in zip(p[0], grads, strict=True):
                value.grad = grad
            adam_update(core, [p], [m], [v], step, 0.05)
            for i, g in enumerate(grads):
                m1[i] = 0.85 * m1[i] + 0.15 * g
                v1[i] = 0.99 * v1[i] + 0.01 * g * g
                m_hat, v_hat = m1[i] / (1 - 0.85 ** (step + 1)), v1[i] / (1 - 0.99 ** (step + 1))
                expected[i] -= 0.05 * m_hat / (v_hat**0.5 + 1e-8)
        assert p.tolist()[0] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert m.tolist()[0] == pytest.approx(m1, rel=1e-5, abs=1e-30)
        assert v.tolist()[0] == pytest.approx(v1, rel=1e-5, abs=1e-30)


def test_moments_without_gradients_do_not_become_subnormal(compiled, levels):
    for level in levels:
        compiled._level(level)
        p, m, v = (compiled.Matrix(1, 20, "float32") for _ in range(3))
        m.load([[1e-30] * 20])
        v.load([[1e-30] * 20])
        for step in range(2000):
            adam_update(compiled, [p], [m], [v], step, 0.01)
            moments = {*m.tolist()[0], *v.tolist()[0]}
            assert all(x == 0.0 or x > 1.2e-38 for x in moments)
        assert max(moments) < 1e-35


@pytest.mark.parametrize("name", SMALL_CASES)
def test_gradients_are_those_of_central_differences(compiled, name):
    case, rng = CASES[name], random.Random(name)
    lists = case.lists(lambda: rng.uniform(0.3, 1.2) * rng.choice((-1, 1)))
    inputs = [compiled.Matrix.of(rows, "float32") for rows in lists]
    assert gradcheck(lambda *inputs: weighted_sum(case.block(compiled, *inputs)), inputs)


def test_gradcheck_in_float32_sees_a_wrong_gradient(core):
    def wrong(m):
        value = m[0][0]
        return core.Value(value.data**2, (value,), (2.1 * value.data,))

    with pytest.raises(AssertionError, match="is wrong"):
        gradcheck(wrong, [core.Matrix.of([[0.7]], "float32")])


# Runs


def test_the_first_losses_are_those_of_float64():
    """1e-5 at the default size; a pure core takes fewer steps."""
    steps = 20 if mg.BACKEND == "cython" else 3
    docs = mg.load_documents()
    single, double = (
        [mg.train_step(run) for _ in range(steps)]
        for run in (mg.prepare(docs, dtype=dtype) for dtype in ("float32", "float64"))
    )
    assert single == pytest.approx(double, rel=0, abs=1e-5)
    assert single != double


def test_everything_of_a_run_is_float32():
    run = mg.prepare(DOCS, steps=4, n_embd=8, n_head=2, dtype="float32")
    mg.finish(run)
    blocks = [*run.model.state_dict.values(), *run.adam.m, *run.adam.v]
    trace = {}
    run.model.forward(run.encode("emma"), trace=trace)
    assert {m.dtype for m in [*blocks, *trace.values()]} == {"float32"}
    assert "dtype float32" in repr(run.model)
    assert len(mg.generate(run, 3, prompt="em")) == 3 and run.model.loss([run.encode("ava")]).data


def test_a_replay_gives_the_bits_of_a_call():
    docs = ["emma", "ava", "isabella", "jo"] * 3
    runs = [mg.prepare(docs, steps=8, n_embd=8, n_head=2, batch_size=2, dtype="float32")
            for _ in range(2)]  # fmt: skip

    class Plain(mg.GPT):
        pass  # not replayable

    runs.append(mg.prepare(docs, steps=8, n_embd=8, n_head=2, batch_size=2, dtype="float32",
                           model=Plain))  # fmt: skip
    losses = [mg.finish(run).losses for run in runs]
    assert losses[0] == losses[1] == losses[2]


def test_a_run_from_another_one_converts_its_parameters():
    init = mg.train(DOCS, steps=3, n_embd=8)
    run = mg.prepare(DOCS, init=init, dtype="float32")
    assert run.model.config.dtype == "float32" and run.model.config.n_embd == 8
    for name, matrix in run.model.state_dict.items():
        assert matrix.tolist() == rounded(init.model.state_dict[name].tolist())
    assert mg.prepare(DOCS, init=run).model.config.dtype == "float32"
    back = mg.prepare(DOCS, init=run, dtype="float64")
    assert back.model.state_dict["wte"].dtype == "float64"
    assert back.model.state_dict["wte"].tolist() == run.model.state_dict["wte"].tolist()
    assert mg.finish(run).losses


def test_the_file_has_half_the_bytes(tmp_path):
    sizes = []
    for dtype in ("float64", "float32"):
        path = tmp_path / dtype
        mg.save(mg.prepare(DOCS, n_embd=64, dtype=dtype), path)
        sizes.append(path.stat().st_size)
        assert mg.load(path).model.config.dtype == dtype
    assert sizes[1] < 0.53 * sizes[0]
    assert checkpoint.FORMAT == 3


def test_a_model_that_makes_its_own_blocks_in_another_type_is_told_so():
    class Other(mg.GPT):
        @classmethod
        def init_parameters(cls, config, rng):
            return {**super().init_parameters(config, rng), "wpe": mg.Matrix(config.block_size, 16)}

    run = mg.prepare(DOCS, model=Other, dtype="float32")
    with pytest.raises(TypeError, match="of different types, float32 and float64"):
        mg.train_step(run)


@pytest.mark.parametrize("dtype", ["float16", 32, None])
def test_a_config_of_another_type_is_refused(dtype):
    with pytest.raises(ValueError, match="dtype must be 'float64' or 'float32'"):
        mg.Config(27, dtype=dtype)
