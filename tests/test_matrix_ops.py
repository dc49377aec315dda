"""Matrix and the block ops, on both cores.

The lasting check is `test_an_op_equals_its_scalar_definition`: every op is written out once more
in `ops`, in scalar Values, from its formula, and data and gradients are compared.
"""

import copy
import gc
import math
import pickle
import random
import re

import pytest
from ops import (
    BINARY,
    CASES,
    INF,
    NAN,
    adam_update,
    assert_close,
    data,
    grads,
    is_compiled,
    numbers,
    run,
    scalar_linear,
    scalar_softmax,
    weighted_sum,
)

LOG3 = math.log(3)


def values(core, lists):
    return [[core.Value(number) for number in row] for row in lists]


# Hand-computed values.


def test_a_new_matrix_is_zero(core):
    m = core.Matrix(2, 3)
    assert m.shape == (2, 3)
    assert len(m) == 2
    assert m.tolist() == m.grad.tolist() == [[0.0] * 3] * 2


def test_a_matrix_is_shown_by_what_makes_it_or_by_its_shape(core):
    m = core.Matrix.of([[1, -0.5], [3, 4]])
    assert repr(m) == "Matrix.of([[1.0, -0.5], [3.0, 4.0]])"
    assert eval(repr(m), vars(core)).tolist() == m.tolist()
    assert repr(core.Matrix(27, 16)) == repr(core.Matrix(28, 16)[:27]) == "<Matrix 27 x 16>"
    assert repr(core.Matrix.of([[1 / 3] * 9])) == "<Matrix 1 x 9>"


def test_a_notebook_shows_a_matrix_as_a_table(core):
    rows = "<tr><td>1</td><td>-0.3333</td></tr><tr><td>1e+20</td><td>nan</td></tr>"
    assert core.Matrix.of([[1, -1 / 3], [1e20, math.nan]])._repr_html_() == (
        f"<table><caption>Matrix 2 x 2</caption><tbody>{rows}</tbody></table>"
    )
    large = core.Matrix(27, 16)._repr_html_()
    assert "<caption>Matrix 27 x 16</caption>" in large
    assert large.count("<tr>") == 13 and large.count("<td>0</td>") == 144
    assert large.count("<td>…</td>") == 12 + 13


def test_numpy_takes_the_numbers_of_a_matrix(core):
    numpy = pytest.importorskip("numpy")
    m = core.Matrix.of([[1, 2, 3], [4, 5, 6]])
    array = numpy.asarray(m)
    assert array.dtype == numpy.float64 and array.tolist() == m.tolist()
    assert numpy.array(m, dtype="int32").tolist() == [[1, 2, 3], [4, 5, 6]]
    assert numpy.stack([m, m]).shape == (2, 2, 3) and numpy.mean(m[1:]) == 5.0
    copied = numpy.array(m)
    copied[0, 0] = 9.0
    assert m.tolist()[0][0] == 1.0
    if is_compiled(core):  # without a copy
        array[0, 0] = 9.0
        assert m.tolist()[0][0] == 9.0


def test_a_new_matrix_is_zero_where_other_blocks_lay_before(core):
    for _ in range(3):
        x = core.Matrix.of([[9.0] * 5] * 3)
        core.mean(core.softmax(x + x)).backward()
        del x
        m = core.Matrix(3, 5)
        assert m.tolist() == m.grad.tolist() == [[0.0] * 5] * 3


def test_of_takes_lists_tuples_and_any_numbers(core):
    m = core.Matrix.of(([1, True], (0.5, -2)))
    assert m.tolist() == [[1.0, 1.0], [0.5, -2.0]]
    assert core.Matrix.of(iter([range(3)])).tolist() == [[0.0, 1.0, 2.0]]


def test_of_takes_the_numbers_of_a_matrix(core):
    m = core.Matrix.of([[1, 2], [3, 4]])
    copied = core.Matrix.of(m * 2)
    core.mean(copied).backward()
    assert copied.tolist() == [[2, 4], [6, 8]] and m.grad.tolist() == [[0, 0], [0, 0]]
    m[0][0].data = 5
    assert core.Matrix.of(m[:1]).tolist() == [[5, 2]] and copied[0][0].data == 2


def test_a_matrix_is_a_leaf_if_its_numbers_are_its_own(core):
    m, x = core.Matrix(2, 3), core.Value(1)
    computed = [m + 1, m[1:], m[:], m[1:] * 2, core.Matrix.pack([[x]]), core.relu(m)]
    with core.no_grad():
        leaves = [m, core.Matrix.of(m), core.relu(m), core.Matrix.pack([[x]])]
        computed += [m[:1]]
    assert [bool(a._op) for a in leaves] == [False] * 4
    assert [bool(a._op) for a in computed] == [True] * 7


@pytest.mark.parametrize("op", ["+", "-", "*", "/", "**"])
def test_an_array_is_refused_with_what_makes_a_matrix_of_it(core, op):
    """NumPy would convert an array of one entry to a float, with a warning or an error."""
    numpy = pytest.importorskip("numpy")
    m = core.Matrix.of([[2.0, 3.0]])
    for array, made in [(numpy.ones((1, 2)), "array"), (numpy.ones((1, 1)), "array"),
                        (numpy.ones(2), "[array]"), (numpy.ones(1), "[array]")]:  # fmt: skip
        message = re.escape(f"{op} of a Matrix and an array: Matrix.of({made}) makes a Matrix")
        with pytest.raises(TypeError, match=message):
            BINARY[op](m, array)
        if op != "**":
            with pytest.raises(TypeError, match=message):
                BINARY[op](array, m)
    assert BINARY[op](m, numpy.float32(2)).tolist() == BINARY[op](m, 2.0).tolist()
    assert BINARY[op](m, numpy.array(2)).tolist() == BINARY[op](m, 2.0).tolist()


def test_of_takes_a_numpy_array(core):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(6, dtype="float32").reshape(2, 3)
    assert core.Matrix.of(array).tolist() == array.tolist()


def test_a_row_is_a_tuple_of_values_in_the_block(core):
    m = core.Matrix.of([[1, 2], [3, 4]])
    row = m[1]
    assert type(row) is tuple
    assert [type(value) for value in row] == [core.Value] * 2
    row[0].data = 30
    row[1].grad = 7
    assert m.tolist() == [[1.0, 2.0], [30.0, 4.0]]
    assert m.grad.tolist() == [[0.0, 0.0], [0.0, 7.0]]
    assert [[value.data for value in row] for row in m] == m.tolist()


def test_an_element_is_the_same_value_each_time(core):
    m = core.Matrix.of([[1, 2], [3, 4]])
    first = m[0][1]
    assert m[0][1] is first
    assert m[-2][-1] is first
    assert m[0:1][0][1] is first
    assert (first._children, first._local_grads) == ((), ())


@pytest.mark.parametrize(("index", "row"), [(0, 0), (2, 2), (-1, 2), (-3, 0), (True, 1)])
def test_indices_count_from_either_end(core, index, row):
    m = core.Matrix.of([[0], [1], [2]])
    assert m[index][0].data == row


SLICES = [
    slice(None), slice(1, None), slice(None, -1), slice(1, 2), slice(-2, 100), slice(0, 3, 1),
]  # fmt: skip


@pytest.mark.parametrize("rows", SLICES, ids=str)
def test_a_slice_is_a_matrix_of_the_same_numbers(core, rows):
    m = core.Matrix.of([[0, 1], [10, 11], [20, 21]])
    view = m[rows]
    assert type(view) is core.Matrix
    assert view.tolist() == m.tolist()[rows]
    view[0][1].data = -5
    assert m.tolist()[rows][0][1] == -5.0
    view[0][0].grad = 3
    assert m.grad.tolist()[rows][0][0] == 3.0
    m.load([[1, 2], [3, 4], [5, 6]])
    assert view.tolist() == [[1, 2], [3, 4], [5, 6]][rows]
    view.load([[9, 9]] * len(view))
    assert m.tolist()[rows] == [[9, 9]] * len(view)


def test_a_view_of_a_view_lies_in_the_first_matrix(core):
    m = core.Matrix.of([[i] for i in range(6)])
    inner = m[1:5][1:3]
    assert inner.tolist() == [[2.0], [3.0]]
    inner[1][0].data = -1
    assert m[3][0].data == -1.0
    core.mean(inner).backward()
    assert m.grad.tolist() == [[0], [0], [0.5], [0.5], [0], [0]]


def test_a_view_and_an_element_outlive_their_matrix(core):
    m = core.Matrix.of([[1, 2], [3, 4]])
    view, element, buffer = m[1:], m[0][1], m.data
    del m
    gc.collect()
    blocks = [core.Matrix.of([[7, 7], [7, 7]]) for _ in range(10)]
    assert (view.tolist(), element.data, buffer.tolist()) == ([[3, 4]], 2.0, [[1, 2], [3, 4]])
    assert len(blocks) == 10


def test_pack_makes_a_block_of_values_and_numbers(core):
    a, b = core.Value(2), core.Value(3)
    m = core.Matrix.pack([[a, 5, b], (b, 0.5, a)])
    assert m.tolist() == [[2, 5, 3], [3, 0.5, 2]]
    weighted_sum(m, [[1, 2, 3], [4, 5, 6]]).backward()
    assert (a.grad, b.grad) == (7.0, 7.0)
    m[0][0].data = 100
    assert a.data == 2.0


def test_pack_can_hold_elements_of_other_blocks(core):
    m = core.Matrix.of([[1, 2], [3, 4]])
    transposed = core.Matrix.pack(list(zip(*m, strict=True)))
    assert transposed.tolist() == [[1, 3], [2, 4]]
    weighted_sum(transposed, [[1, 2], [3, 4]]).backward()
    assert m.grad.tolist() == [[1, 3], [2, 4]]


def test_embedding_by_hand(core):
    table = core.Matrix.of([[1, 2], [3, 4], [5, 6]])
    y = core.embedding(table, [2, 0, 2])
    assert y.tolist() == [[5, 6], [1, 2], [5, 6]]
    weighted_sum(y, [[1, 2], [3, 4], [5, 6]]).backward()
    assert table.grad.tolist() == [[3, 4], [0, 0], [6, 8]]


def test_add_by_hand(core):
    a, b = core.Matrix.of([[1, 2]]), core.Matrix.of([[10, 20]])
    y = a + b
    assert y.tolist() == [[11, 22]]
    weighted_sum(y, [[3, 4]]).backward()
    assert a.grad.tolist() == b.grad.tolist() == [[3, 4]]


# With a = [[1, 2], [3, 4]], b = [[5, -2], [0.5, 8]], row = [[2, -4]], and the weights 1 10 100 1000
# of the entries: the result and the gradients of a, of b and of the row.
ELEMENTWISE = {
    "a - b": (lambda a, b, r: a - b, [[-4, 4], [2.5, -4]], [[1, 10], [100, 1000]],
              [[-1, -10], [-100, -1000]], [[0, 0]]),
    "a * b": (lambda a, b, r: a * b, [[5, -4], [1.5, 32]], [[5, -20], [50, 8000]],
              [[1, 20], [300, 4000]], [[0, 0]]),
    "a / b": (lambda a, b, r: a / b, [[0.2, -1], [6, 0.5]], [[0.2, -5], [200, 125]],
              [[-0.04, -5], [-1200, -62.5]], [[0, 0]]),
    "a + row": (lambda a, b, r: a + r, [[3, -2], [5, 0]], [[1, 10], [100, 1000]],
                [[0, 0], [0, 0]], [[101, 1010]]),
    "row - a": (lambda a, b, r: r - a, [[1, -6], [-1, -8]], [[-1, -10], [-100, -1000]],
                [[0, 0], [0, 0]], [[101, 1010]]),
    "a * row": (lambda a, b, r: a * r, [[2, -8], [6, -16]], [[2, -40], [200, -4000]],
                [[0, 0], [0, 0]], [[301, 4020]]),
    "a / row": (lambda a, b, r: a / r, [[0.5, -0.5], [1.5, -1]], [[0.5, -2.5], [50, -250]],
                [[0, 0], [0, 0]], [[-75.25, -251.25]]),
    "row / a": (lambda a, b, r: r / a, [[2, -2], [2 / 3, -1]], [[-2, 10], [-200 / 9, 250]],
                [[0, 0], [0, 0]], [[1 + 100 / 3, 255]]),
    "2 - a": (lambda a, b, r: 2 - a, [[1, 0], [-1, -2]], [[-1, -10], [-100, -1000]],
              [[0, 0], [0, 0]], [[0, 0]]),
    "a / 2": (lambda a, b, r: a / 2, [[0.5, 1], [1.5, 2]], [[0.5, 5], [50, 500]],
              [[0, 0], [0, 0]], [[0, 0]]),
    "2 / a": (lambda a, b, r: 2 / a, [[2, 1], [2 / 3, 0.5]], [[-2, -5], [-200 / 9, -125]],
              [[0, 0], [0, 0]], [[0, 0]]),
    "-a": (lambda a, b, r: -a, [[-1, -2], [-3, -4]], [[-1, -10], [-100, -1000]],
           [[0, 0], [0, 0]], [[0, 0]]),
    "b ** 2": (lambda a, b, r: b**2, [[25, 4], [0.25, 64]], [[0, 0], [0, 0]],
               [[10, -40], [100, 16000]], [[0, 0]]),
    "b ** 3": (lambda a, b, r: b**3, [[125, -8], [0.125, 512]], [[0, 0], [0, 0]],
               [[75, 120], [75, 192000]], [[0, 0]]),
    "a ** -0.5": (lambda a, b, r: a**-0.5, [[1, 2**-0.5], [3**-0.5, 0.5]],
                  [[-0.5, -5 * 2**-1.5], [-50 * 3**-1.5, -62.5]], [[0, 0], [0, 0]], [[0, 0]]),
    "b.relu()": (lambda a, b, r: b.relu(), [[5, 0], [0.5, 8]], [[0, 0], [0, 0]],
                 [[1, 0], [100, 1000]], [[0, 0]]),
    "a.log()": (lambda a, b, r: a.log(), [[0, math.log(2)], [LOG3, math.log(4)]],
                [[1, 5], [100 / 3, 250]], [[0, 0], [0, 0]], [[0, 0]]),
    "row.exp()": (lambda a, b, r: r.exp(), [[math.exp(2), math.exp(-4)]], [[0, 0], [0, 0]],
                  [[0, 0], [0, 0]], [[math.exp(2), 10 * math.exp(-4)]]),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_elementwise_op_by_hand(core, name):
    f, expected, *expected_grads = ELEMENTWISE[name]
    lists = [[[1, 2], [3, 4]], [[5, -2], [0.5, 8]], [[2, -4]]]
    inputs = [core.Matrix.of(rows) for rows in lists]
    y = f(*inputs)
    assert type(y) is core.Matrix
    assert_close(y.tolist(), expected, 1e-15)
    weighted_sum(y, [[1, 10], [100, 1000]][: len(y)]).backward()
    for x, gradient in zip(inputs, expected_grads, strict=True):
        assert_close(x.grad.tolist(), gradient, 1e-15)


def test_one_block_as_both_operands(core):
    for f, number, gradient in [
        (lambda x: x - x, 0, 0), (lambda x: x * x, 9, -6), (lambda x: x / x, 1, 0),
    ]:  # fmt: skip
        x = core.Matrix.of([[-3.0] * 5] * 3)
        y = f(x)
        weighted_sum(y, [[1.0] * 5] * 3).backward()
        assert y.tolist() == [[number] * 5] * 3
        assert x.grad.tolist() == [[gradient] * 5] * 3


def test_elements_views_and_packs_are_operands(core):
    x, v = core.Matrix.of([[1, 2], [3, 4], [5, 6]]), core.Value(10)
    y = x[1:] * core.Matrix.pack([[v, x[0][1]]]) - x[:1]
    assert y.tolist() == [[29, 6], [49, 10]]
    weighted_sum(y, [[1, 1], [1, 1]]).backward()
    assert x.grad.tolist() == [[-2, 10 - 2], [10, 2], [10, 2]]
    assert v.grad == 8.0


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_an_op_of_a_matrix_and_a_numpy_number(core, dtype):
    numpy = pytest.importorskip("numpy")
    m, two = core.Matrix.of([[1, 4]]), numpy.dtype(dtype).type(2)
    results = [m + two, two + m, m - two, two - m, m * two, two * m, m / two, two / m, m**two]
    assert [type(y) for y in results] == [core.Matrix] * 9
    assert [y.tolist()[0] for y in results] == [
        [3, 6], [3, 6], [-1, 2], [1, -2], [2, 8], [2, 8], [0.5, 2], [2, 0.5], [1, 16],
    ]  # fmt: skip


def test_tanh_and_exp_are_accurate_everywhere(core):
    """To 4 units in the last place, near 0 and far out too."""
    rng = random.Random(3)
    places = [rng.choice((-1, 1)) * 10 ** rng.uniform(-20, 3) for _ in range(3000)]
    places += [rng.uniform(-3, 3) for _ in range(3000)]
    places += [0.0, -0.0, 5e-324, -5e-324, 1e-308, 0.17, 0.1733, 0.35, 19.0, 20.0, 22.0, 1e300]
    places += [INF, -INF, NAN, 708.0, -708.0, 708.1, 709.7, -708.1, -744.0, -745.0, -746.0]
    for name in ("tanh", "exp"):
        xs = [x for x in places if name == "tanh" or not 709.7 < x < INF]
        for start in range(4):  # in every lane
            result = getattr(core.Matrix.of([xs[start:]]), name)().tolist()[0]
            for x, y in zip(xs[start:], result, strict=True):
                expected = getattr(math, name)(x)
                if math.isnan(x):
                    assert math.isnan(y)
                else:
                    assert math.copysign(1, y) == math.copysign(1, expected)
                    assert y == expected or abs(y - expected) <= 4 * math.ulp(expected), (x, y)


@pytest.mark.parametrize("number", [0.0, -0.0, 2.0, -2.0, 5e-324, INF])
def test_the_power_0_is_1_and_its_derivative_0(core, number):
    m = core.Matrix.of([[number, 3.0]])
    y = m**0
    core.mean(y).backward()
    assert (y.tolist(), m.grad.tolist()) == ([[1.0, 1.0]], [[0.0, 0.0]])


def test_a_quotient_is_that_of_values(core):
    """a * b ** -1: by a number as by a row of it, and with the bits of Values.

    One in a thousand powers -1 of the C library is not 1 / b, and no entry of these.
    """
    entries = [[i / 7 for i in range(1, 40)], [i * 1e9 for i in range(1, 40)]]
    a = core.Matrix.of(entries)
    for b in (3.0, 7.0, 10.0, 0.1, -1e-3):
        expected = [[(core.Value(x) / b).data for x in row] for row in entries]
        assert (a / b).tolist() == (a / core.Matrix.of([[b] * 39])).tolist() == expected


def test_infinities_are_no_errors_where_they_are_none_for_floats(core):
    m = core.Matrix.of([[INF, -INF, NAN]])
    rows = [m.exp(), m.tanh(), m**2, m**3, 1 / m, m * 0.0, m[:1] / m, core.Matrix.of([[INF]]).log()]
    assert [str(y.tolist()) for y in rows] == [
        "[[inf, 0.0, nan]]", "[[1.0, -1.0, nan]]", "[[inf, inf, nan]]", "[[inf, -inf, nan]]",
        "[[0.0, -0.0, nan]]", "[[nan, nan, nan]]", "[[nan, nan, nan]]", "[[inf]]",
    ]  # fmt: skip


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
def test_a_number_that_is_an_error_is_found_in_any_place(core, n):
    for i in range(n):
        for f, good, bad, error in [
            (lambda m: m.exp(), 1, 1000, OverflowError), (lambda m: m.log(), 1, 0, ValueError),
            (lambda m: 1 / m, 1, 0, ZeroDivisionError), (lambda m: m / m, 1, 0, ZeroDivisionError),
            (lambda m: m**2, 1, 1e155, OverflowError), (lambda m: m**-2, 1, 0, ZeroDivisionError),
            (lambda m: m**1.5, 1, -1, ValueError), (lambda m: m**0.5, 1, 0, ZeroDivisionError),
        ]:  # fmt: skip
            with pytest.raises(error):
                f(core.Matrix.of([[good] * n, [bad if j == i else good for j in range(n)]]))


def test_the_limits_of_floats_are_those_of_values(cores):
    """Whether an entry is an error does not depend on which core, nor on block or Value."""
    edges = [
        7.458340731200207e-155, 7.4583407312002075e-155, 1.3407807929942596e154,
        1.3407807929942599e154, 5.643803094122361e102, 5.643803094122363e102, 709.782712893384,
        709.7827128933841, 5e-324, 1e-300, 1.7976931348623157e308, 1e-103, 2.2e-103,
    ]  # fmt: skip
    ops = [
        lambda m: m.exp(), lambda m: m.log(), lambda m: 1 / m, lambda m: 2 / m, lambda m: m / 3,
        lambda m: 1e-300 / m, *(lambda m, e=e: m**e for e in (2, 3, -1, -2, 0.5, 1, 2.5, -0.5, 4)),
    ]  # fmt: skip

    def outcome(f, x):
        try:
            f(x)
        except (ArithmeticError, ValueError) as error:
            return type(error).__name__, str(error)

    for x in [sign * edge for edge in edges for sign in (1, -1)]:
        for f in ops:
            said = {outcome(f, c.Matrix.of([[x]])) for c in cores}
            assert said == {outcome(f, cores[0].Value(x))}, x


def test_linear_by_hand(core):
    x = core.Matrix.of([[1, 2], [3, 4]])
    w = core.Matrix.of([[5, 6], [7, 8], [9, 10]])
    y = core.linear(x, w)
    assert y.tolist() == [[17, 23, 29], [39, 53, 67]]
    weighted_sum(y, [[1, 0, 2], [0, 1, 0]]).backward()
    assert x.grad.tolist() == [[23, 26], [7, 8]]
    assert w.grad.tolist() == [[1, 2], [3, 4], [2, 4]]


def test_rmsnorm_by_hand(core):
    x = core.Matrix.of([[3, 4], [0, 0]])
    y = core.rmsnorm(x)
    scale = (12.5 + 1e-5) ** -0.5
    assert_close(y.tolist(), [[3 * scale, 4 * scale], [0, 0]], 1e-15)
    y[0][0].backward()
    expected = [scale - 9 * scale**3 / 2, -12 * scale**3 / 2]
    assert_close(x.grad.tolist(), [expected, [0, 0]], 1e-14)
    x[1][0].grad = 0.0
    y[1][0].backward()
    assert x[1][0].grad == pytest.approx(1e-5**-0.5, rel=1e-14)


def test_relu_by_hand(core):
    x = core.Matrix.of([[-1, 0, 2], [-0.0, 1e-300, -INF]])
    y = core.relu(x)
    assert y.tolist() == [[0, 0, 2], [0, 1e-300, 0]]
    weighted_sum(y, [[1, 2, 3], [4, 5, 6]]).backward()
    assert x.grad.tolist() == [[0, 0, 3], [0, 5, 0]]


def test_softmax_by_hand(core):
    x = core.Matrix.of([[0, LOG3], [1000, 1000], [-1000, 0]])
    y = core.softmax(x)
    assert_close(y.tolist(), [[0.25, 0.75], [0.5, 0.5], [0, 1]], 1e-15)
    y[0][1].backward()
    assert_close(x.grad.tolist(), [[-0.1875, 0.1875], [0, 0], [0, 0]], 1e-15)


def test_attention_by_hand(core):
    q = core.Matrix.of([[5], [1]])
    k = core.Matrix.of([[0], [LOG3]])
    v = core.Matrix.of([[4], [8]])
    y = core.attention(q, k, v, 1)
    assert_close(y.tolist(), [[4], [7]], 1e-15)  # weights (1), (1/4, 3/4)
    y[1][0].backward()
    # d y / d score = weight * (value - y): -3/4 and 3/4
    assert_close(q.grad.tolist(), [[0], [0.75 * LOG3]], 1e-14)
    assert_close(k.grad.tolist(), [[-0.75], [0.75]], 1e-14)
    assert_close(v.grad.tolist(), [[0.25], [0.75]], 1e-15)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_attention_of_one_row_has_the_same_bits_without_a_backward(core, dtype):
    """The compiled core has a kernel of its own for it."""
    rng = random.Random(0)
    for n_head, head_dim, keys in [
        (1, 1, 1), (2, 3, 4), (3, 4, 9), (4, 4, 16), (4, 5, 7), (5, 16, 3), (6, 17, 2), (9, 33, 5),
    ]:  # fmt: skip
        n = n_head * head_dim
        q, k, v = (
            core.Matrix.of([[rng.gauss(0, 2) for _ in range(n)] for _ in range(rows)], dtype)
            for rows in (1, keys, keys)
        )
        with core.no_grad():
            alone = core.attention(q, k, v, n_head).tolist()
        assert alone == core.attention(q, k, v, n_head).tolist()


def test_attention_divides_scores_by_the_root_of_the_head_size(core):
    q = core.Matrix.of([[1, 1, 1, 1]])
    k = core.Matrix.of([[0] * 4, [LOG3 / 2] * 4])  # scores 0 and 2 log 3, over sqrt(4)
    weights = core.attention_weights(q, k, 1)
    assert_close(weights.tolist(), [[0.25, 0.75]], 1e-15)


def test_each_head_attends_by_itself(core):
    q = core.Matrix.of([[1, 1]])
    k = core.Matrix.of([[0, LOG3], [LOG3, 0]])
    v = core.Matrix.of([[4, 4], [8, 8]])
    assert_close(core.attention(q, k, v, 2).tolist(), [[7, 5]], 1e-15)
    assert_close(core.attention_weights(q, k, 2).tolist(), [[0.25, 0.75], [0.75, 0.25]], 1e-15)


def test_attention_weights_are_zero_for_the_future_and_other_documents(core):
    x = core.Matrix.of([[0]] * 4)
    third = 1 / 3
    assert_close(
        core.attention_weights(x, x, 1).tolist(),
        [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [third, third, third, 0], [0.25] * 4],
    )
    assert_close(
        core.attention_weights(x, x, 1, [0, 1, 3]).tolist(),
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]],
    )
    assert_close(core.attention_weights(x[2:], x, 1).tolist(), [[third] * 3 + [0], [0.25] * 4])


def test_cross_entropy_by_hand(core):
    logits = core.Matrix.of([[0, LOG3], [0, LOG3], [0, 1000], [1000, 0]])
    y = core.cross_entropy(logits, [0, 1, 0, 0])
    assert y.shape == (4, 1)
    expected = [[math.log(4)], [math.log(4 / 3)], [1000], [0]]
    for row, expected_row in zip(y.tolist(), expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-15)
    weighted_sum(y, [[1], [10], [100], [1000]]).backward()
    assert_close(
        logits.grad.tolist(), [[-0.75, 0.75], [2.5, -2.5], [-100, 100], [0, 0]], 1e-14
    )


def test_mean_by_hand(core):
    x = core.Matrix.of([[1, 2], [3, 6]])
    y = core.mean(x)
    assert type(y) is core.Value
    assert y.data == 3.0
    assert len(y._children) == len(y._local_grads) > 0
    (y * 8).backward()
    assert x.grad.tolist() == [[2, 2], [2, 2]]
    assert core.mean(core.Matrix.of([[5]])).data == 5.0


# Every op against its formula in scalar Values.


@pytest.mark.parametrize("name", CASES)
def test_an_op_equals_its_scalar_definition(core, name):
    case, rng = CASES[name], random.Random(name)
    lists = case.lists(lambda: rng.gauss(0, 1))
    blocks = [core.Matrix.of(rows) for rows in lists]
    scalars = [values(core, rows) for rows in lists]
    result, expected = case.block(core, *blocks), case.scalar(*scalars)
    assert_close(data(result), data(expected), at_least=1.0)
    for _ in range(2):  # the second backward doubles the gradients of the leaves
        weighted_sum(result).backward()
        weighted_sum(expected).backward()
        for block, rows in zip(blocks, scalars, strict=True):
            assert_close(block.grad.tolist(), grads(rows), at_least=1.0)
    for block, rows in zip(blocks, lists, strict=True):
        assert block.tolist() == rows


@pytest.mark.parametrize("name", CASES)
def test_an_op_gives_the_same_bits_again(core, name):
    case, rng = CASES[name], random.Random(name)
    lists = case.lists(lambda: rng.gauss(0, 1))
    assert run(core, case.block, lists) == run(core, case.block, lists)


def test_packed_documents_equal_separate_documents(core):
    rng = random.Random(1)
    lengths = [3, 1, 4, 2]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    q, k, v, c = (numbers(rng, sum(lengths), 6) for _ in range(4))
    packed = [core.Matrix.of(rows) for rows in (q, k, v)]
    result = core.attention(*packed, 2, starts)
    weighted_sum(result, c).backward()
    for start, length in zip(starts, lengths, strict=True):
        part = slice(start, start + length)
        alone = [core.Matrix.of(rows[part]) for rows in (q, k, v)]
        expected = core.attention(*alone, 2)
        weighted_sum(expected, c[part]).backward()
        assert_close(result.tolist()[part], expected.tolist())
        for together, by_itself in zip(packed, alone, strict=True):
            assert_close(together.grad.tolist()[part], by_itself.grad.tolist())


def test_one_query_at_a_time_equals_all_at_once(core):
    rng = random.Random(2)
    q, k, v = (core.Matrix.of(numbers(rng, 6, 4)) for _ in range(3))
    together = core.attention(q, k, v, 2).tolist()
    for t in range(6):
        alone = core.attention(q[t : t + 1], k[: t + 1], v[: t + 1], 2)
        assert_close(alone.tolist(), [together[t]])


def test_starts_and_ids_may_be_any_integers(core):
    numpy = pytest.importorskip("numpy")
    x = core.Matrix.of([[1, 2], [3, 4], [5, 6]])
    ids = numpy.array([2, 0], dtype="uint8")
    assert core.embedding(x, ids).tolist() == [[5, 6], [1, 2]]
    assert core.embedding(x, iter((True, 0))).tolist() == [[3, 4], [1, 2]]
    expected = core.attention(x, x, x, 1, [0, 2]).tolist()
    assert core.attention(x, x, x, numpy.int64(1), numpy.array([0, 2])).tolist() == expected
    losses = core.cross_entropy(x, numpy.array([0, 1, 1])).tolist()
    assert losses == core.cross_entropy(x, (0, 1, 1)).tolist()


def test_ids_are_read_when_the_op_is_made(core):
    table, ids = core.Matrix.of([[1], [2]]), [0, 1]
    y = core.embedding(table, ids)
    loss = core.mean(y)
    ids[:] = [1, 1, 1, 5]
    loss.backward()
    assert table.grad.tolist() == [[0.5], [0.5]]


# Gradients across the border between Values and blocks.


def test_gradients_flow_from_blocks_to_values_and_back(core):
    """scalars -> pack -> linear -> elements -> scalars -> pack -> softmax -> a view -> a scalar"""
    rng = random.Random(3)
    xs, ws, c = numbers(rng, 2, 3), numbers(rng, 4, 3), numbers(rng, 1, 4)

    def by_blocks(x, w):
        hidden = core.linear(core.Matrix.pack([[a * a for a in row] for row in x]), w)
        mixed = [[a * x[0][0] + b.exp() for a, b in zip(*hidden, strict=True)], list(hidden[0])]
        return weighted_sum(core.softmax(core.Matrix.pack(mixed))[1:], c) * hidden[1][2]

    def by_scalars(x, w):
        hidden = scalar_linear([[a * a for a in row] for row in x], w)
        mixed = [[a * x[0][0] + b.exp() for a, b in zip(*hidden, strict=True)], list(hidden[0])]
        return weighted_sum(scalar_softmax(mixed)[1:], c) * hidden[1][2]

    x, w = values(core, xs), core.Matrix.of(ws)
    x2, w2 = values(core, xs), values(core, ws)
    for _ in range(2):
        loss, expected = by_blocks(x, w), by_scalars(x2, w2)
        assert loss.data == pytest.approx(expected.data, rel=1e-12)
        loss.backward()
        expected.backward()
        assert_close(grads(x), grads(x2))
        assert_close(w.grad.tolist(), grads(w2))


def test_a_block_used_whole_by_element_and_by_view_gets_the_sum(core):
    x = core.Matrix.of([[1, 2], [3, 4]])
    y = x + x
    (core.mean(y) + y[0][1] * 10 + core.mean(y[1:]) * 100).backward()
    assert y.grad.tolist() == [[0.25, 10.25], [50.25, 50.25]]
    assert x.grad.tolist() == [[0.5, 20.5], [100.5, 100.5]]


def test_inner_blocks_start_fresh_and_leaf_blocks_accumulate(core):
    x = core.Matrix.of([[1, 2]])
    x[0][0].grad = 100
    y = x + x
    y[0][0].grad = 55
    loss = core.mean(y)
    loss.backward()
    loss.backward()
    assert y.grad.tolist() == [[0.5, 0.5]]
    assert x.grad.tolist() == [[102.0, 2.0]]


def test_backward_can_start_at_an_element(core):
    x = core.Matrix.of([[1, 2]])
    y = x + x
    y[0][1].backward()
    assert x.grad.tolist() == [[0.0, 2.0]]
    assert y.grad.tolist() == [[0.0, 1.0]]
    x[0][0].backward()
    assert x.grad.tolist() == [[1.0, 2.0]]


def test_a_view_of_an_inner_block_passes_gradients_on(core):
    x = core.Matrix.of([[1, 2], [3, 4], [5, 6]])
    y = x + x
    core.mean(core.relu(y[1:])).backward()
    assert x.grad.tolist() == [[0, 0], [0.5, 0.5], [0.5, 0.5]]


def test_a_long_chain_of_blocks_has_its_gradient(core):
    x = core.Matrix.of([[1, 2]])
    y = x
    for _ in range(3000):
        y = y + x
    core.mean(y).backward()
    assert x.grad.tolist() == [[1500.5, 1500.5]]


def test_no_grad_makes_leaf_blocks(core):
    x = core.Matrix.of([[1, 2], [3, 4]])
    with core.no_grad():
        results = [
            x + x,
            core.linear(x, x),
            core.rmsnorm(x),
            core.relu(x),
            core.softmax(x),
            core.attention(x, x, x, 1),
            core.attention_weights(x, x, 1),
            core.cross_entropy(x, [0, 1]),
            core.embedding(x, [0, 1]),
            core.Matrix.pack(list(x)),
        ]
        mean = core.mean(x)
    assert mean._children == ()
    mean.backward()
    for result in results:
        core.mean(result).backward()
        assert result.grad.tolist() == [[1 / len(result) / len(result[0])] * len(result[0])] * len(
            result
        )
        assert result[0][0]._children == ()
    assert x.grad.tolist() == [[0, 0], [0, 0]]
    assert core.linear(x, x).tolist() == results[1].tolist()


def test_no_grad_results_are_the_same_numbers(core):
    for name, case in CASES.items():
        rng = random.Random(name)
        blocks = [core.Matrix.of(rows) for rows in case.lists(lambda rng=rng: rng.gauss(0, 1))]
        recorded = data(case.block(core, *blocks))
        with core.no_grad():
            assert data(case.block(core, *blocks)) == recorded, name


# Storage: buffers, load, copies.


def test_data_and_grad_are_2d_buffers_of_float64(core):
    m = core.Matrix.of([[1, 2, 3], [4, 5, 6]])
    for view in (m.data, m.grad, m[1:].data, m[1:].grad):
        assert (view.format, view.itemsize, view.ndim, view.shape[1]) == ("d", 8, 2, 3)
        assert view.c_contiguous
    assert m.data.tolist() == m.tolist()
    assert m.data[1, 2] == 6.0
    assert m[1:].data.tolist() == [[4, 5, 6]]


def test_buffers_are_live_in_the_compiled_core_and_snapshots_in_the_pure_one(core):
    m = core.Matrix.of([[1, 2], [3, 4]])
    seen, seen_grad = m.data, m.grad
    m[0][1].data, m[0][1].grad = 20, 0.5
    if is_compiled(core):
        assert (seen[0, 1], seen_grad[0, 1]) == (20.0, 0.5)
        seen[1, 0], seen_grad[1, 0] = -3, 0.25
        assert m.tolist() == [[1, 20], [-3, 4]]
        assert m[1][0].grad == 0.25
    else:
        assert (seen[0, 1], seen_grad[0, 1]) == (2.0, 0.0)
        for view in (seen, seen_grad):
            with pytest.raises(TypeError, match="read-only"):
                view[0, 0] = 5.0
    assert m.data.tolist() == m.tolist()


def test_numpy_reads_a_matrix_without_a_copy_in_the_compiled_core(core):
    numpy = pytest.importorskip("numpy")
    m = core.Matrix.of([[1, 2], [3, 4]])
    array, grad = numpy.asarray(m.data), numpy.asarray(m.grad)
    assert (array.dtype, array.tolist()) == (numpy.float64, m.tolist())
    core.mean(m).backward()
    assert (grad.tolist() == [[0.25] * 2] * 2) is is_compiled(core)
    assert array.flags.writeable is is_compiled(core)
    if is_compiled(core):
        array *= 2
        assert m.tolist() == [[2, 4], [6, 8]]
        assert core.linear(m, m)[0][0].data == 20.0
        assert numpy.shares_memory(array, numpy.asarray(m[1:].data))
    del m
    gc.collect()
    assert array.shape == (2, 2) and array[1, 1] in (4.0, 8.0)


def test_a_buffer_keeps_the_numbers_of_a_graph_that_is_gone(core):
    x = core.Matrix.of([[1, 2]])
    y = x + x
    view = y.data
    del x, y
    gc.collect()
    others = [core.Matrix.of([[9, 9]]) for _ in range(20)]
    assert view.tolist() == [[2, 4]]
    assert len(others) == 20


def test_load_takes_lists_or_a_matrix(core):
    m = core.Matrix(2, 2)
    m.load([[1, 2], (3, True)])
    assert m.tolist() == [[1, 2], [3, 1]]
    other = core.Matrix.of([[5, 6], [7, 8]])
    m.load(other)
    other[0][0].data = 0
    assert m.tolist() == [[5, 6], [7, 8]]
    m.load(m)
    assert m.tolist() == [[5, 6], [7, 8]]


def test_load_between_rows_that_overlap_moves_them(core):
    m = core.Matrix.of([[1], [2], [3], [4]])
    m[1:].load(m[:3])
    assert m.tolist() == [[1], [1], [2], [3]]
    m[:3].load(m[1:])
    assert m.tolist() == [[1], [2], [3], [3]]


def test_load_keeps_gradients_and_records_nothing(core):
    m = core.Matrix.of([[1, 2]])
    m[0][0].grad = 3
    m.load([[5, 6]])
    core.mean(m).backward()
    assert m.grad.tolist() == [[3.5, 0.5]]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([[1, 2]], ValueError, r"\(2, 2\), not \(1, 2\)"),
        ([[1], [2]], ValueError, r"\(2, 2\), not \(2, 1\)"),
        ([[1, 2], [3, 4], [5, 6]], ValueError, r"\(2, 2\), not \(3, 2\)"),
        ([[9, 9], [9, "4"]], TypeError, "a number, not str"),
        ([[9, 9], [9, None]], TypeError, "a number, not NoneType"),
        ([[9, 9], [9, 10**400]], OverflowError, "too large"),
        ([[9, 9], [9]], ValueError, "equally long"),
        ([], ValueError, "at least one"),
        ([[], []], ValueError, "at least one"),
        ([9, 9], TypeError, "not iterable"),
        (None, TypeError, "not iterable"),
        ("ab", ValueError, r"not \(2, 1\)"),
        (["ab", "cd"], TypeError, "a number, not str"),
    ],
)
def test_a_load_that_fails_changes_nothing(core, source, error, message):
    m = core.Matrix.of([[1, 2], [3, 4]])
    with pytest.raises(error, match=message):
        m.load(source)
    assert m.tolist() == [[1, 2], [3, 4]]


def test_load_refuses_a_matrix_of_another_shape(core):
    m = core.Matrix.of([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"\(2, 2\), not \(1, 4\)"):
        m.load(core.Matrix(1, 4))
    assert m.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy]
    + [lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)],
)
def test_a_copy_holds_the_numbers_and_not_the_graph(core, clone):
    x = core.Matrix.of([[0.1, -0.0], [INF, 5e-324]])
    y = x + x
    y[0][0].backward()
    twin = clone(y)
    assert type(twin) is core.Matrix
    assert str(twin.tolist()) == str(y.tolist())
    assert twin.grad.tolist() == [[0, 0], [0, 0]]
    twin[0][0].data = 7
    assert y[0][0].data == 0.2
    core.mean(twin).backward()
    assert x.grad.tolist() == [[2.0, 0], [0, 0]]


# Errors.


def matrix(core, rows, cols):
    return core.Matrix.of([[float(i + j) for j in range(cols)] for i in range(rows)])


ERRORS = {
    "Matrix(0, 1)": (lambda c: c.Matrix(0, 1), ValueError, "not 0 x 1"),
    "Matrix(1, 0)": (lambda c: c.Matrix(1, 0), ValueError, "not 1 x 0"),
    "Matrix(-1, 2)": (lambda c: c.Matrix(-1, 2), ValueError, "not -1 x 2"),
    "Matrix(1.0, 2)": (lambda c: c.Matrix(1.0, 2), TypeError, "int, not float"),
    "Matrix('1', 2)": (lambda c: c.Matrix("1", 2), TypeError, "int, not str"),
    "Matrix(None, 2)": (lambda c: c.Matrix(None, 2), TypeError, "int, not NoneType"),
    "Matrix()": (lambda c: c.Matrix(), TypeError, "rows and cols"),
    "Matrix(lists)": (lambda c: c.Matrix([[1, 2]]), TypeError, "Matrix.of makes one from lists"),
    "of([])": (lambda c: c.Matrix.of([]), ValueError, "at least one"),
    "of([[]])": (lambda c: c.Matrix.of([[]]), ValueError, "at least one"),
    "of ragged": (lambda c: c.Matrix.of([[1, 2], [3]]), ValueError, "not 1 to 2"),
    "of flat": (lambda c: c.Matrix.of([1, 2]), TypeError, "not iterable"),
    "of None": (lambda c: c.Matrix.of(None), TypeError, "not iterable"),
    "of strings": (lambda c: c.Matrix.of([["1"]]), TypeError, "a number, not str"),
    "of Values": (lambda c: c.Matrix.of([[c.Value(1)]]), TypeError, "a number, not Value"),
    "of complex": (lambda c: c.Matrix.of([[1j]]), TypeError, "a number, not complex"),
    "pack []": (lambda c: c.Matrix.pack([]), ValueError, "at least one"),
    "pack ragged": (
        lambda c: c.Matrix.pack([[c.Value(1)], [1, 2]]), ValueError, "not 1 to 2",
    ),
    "pack None": (lambda c: c.Matrix.pack([[c.Value(1), None]]), TypeError, "number, not NoneType"),
    "pack Matrix": (lambda c: c.Matrix.pack([[matrix(c, 1, 1)]]), TypeError, "number, not Matrix"),
    "m[3]": (lambda c: matrix(c, 3, 2)[3], IndexError, "row 3 .* 3 rows"),
    "m[-4]": (lambda c: matrix(c, 3, 2)[-4], IndexError, "row -4 .* 3 rows"),
    "m[huge]": (lambda c: matrix(c, 3, 2)[10**30], IndexError, "30 digits .* 3 rows"),
    "m[1.0]": (lambda c: matrix(c, 3, 2)[1.0], TypeError, "int, not float"),
    "m['1']": (lambda c: matrix(c, 3, 2)["1"], TypeError, "int, not str"),
    "m[0, 1]": (lambda c: matrix(c, 3, 2)[0, 1], TypeError, r"is m\[i\]\[j\], not"),
    "m[::2]": (lambda c: matrix(c, 3, 2)[::2], ValueError, "step 1, not 2"),
    "m[::-1]": (lambda c: matrix(c, 3, 2)[::-1], ValueError, "step 1, not -1"),
    "m[2:2]": (lambda c: matrix(c, 3, 2)[2:2], ValueError, "2:2 .* 3 rows"),
    "m[9:]": (lambda c: matrix(c, 3, 2)[9:], ValueError, "3 rows"),
    "m['a':]": (lambda c: matrix(c, 3, 2)["a":], TypeError, "indices"),
    "m[0] = 1": (lambda c: matrix(c, 3, 2).__setitem__(0, 1), (AttributeError, TypeError), None),
    "m.data =": (lambda c: setattr(matrix(c, 1, 1), "data", [[1]]), AttributeError, None),
    "m.shape =": (lambda c: setattr(matrix(c, 1, 1), "shape", (1, 1)), AttributeError, None),
    "embedding -1": (lambda c: c.embedding(matrix(c, 3, 2), [-1]), ValueError, "id -1 .* 0..2"),
    "embedding 3": (lambda c: c.embedding(matrix(c, 3, 2), [0, 3]), ValueError, "id 3 .* 0..2"),
    "embedding huge": (
        lambda c: c.embedding(matrix(c, 3, 2), [10**30]), ValueError,
        "id a number of about 30 digits .* 0..2",
    ),
    "embedding []": (lambda c: c.embedding(matrix(c, 3, 2), []), ValueError, "at least one id"),
    "embedding 1.0": (lambda c: c.embedding(matrix(c, 3, 2), [1.0]), TypeError, "int, not float"),
    "embedding '1'": (lambda c: c.embedding(matrix(c, 3, 2), "1"), TypeError, "ints, not text"),
    "embedding None": (lambda c: c.embedding(matrix(c, 3, 2), None), TypeError, "not iterable"),
    "embedding 1": (lambda c: c.embedding(matrix(c, 3, 2), 1), TypeError, "not iterable"),
    "embedding of a list": (lambda c: c.embedding([[1]], [0]), TypeError, "list"),
    "a + b": (
        lambda c: matrix(c, 3, 2) + matrix(c, 2, 3), ValueError, r"\(3, 2\) and \(2, 3\)",
    ),
    "a - rows": (
        lambda c: matrix(c, 3, 2) - matrix(c, 2, 2), ValueError, r"^- .*\(3, 2\) and \(2, 2\)$",
    ),
    "row * a": (
        lambda c: matrix(c, 1, 3) * matrix(c, 3, 2), ValueError, r"^\* .*\(1, 3\) and \(3, 2\)$",
    ),
    "a / column": (
        lambda c: matrix(c, 3, 2) / matrix(c, 3, 1), ValueError,
        r"/ .*\(3, 2\) and \(3, 1\); linear\(column, Matrix.of\(\[\[1.0\]\] \* 2\)\) repeats",
    ),
    "one entry * a": (
        lambda c: matrix(c, 1, 1) * matrix(c, 3, 2), ValueError, "1.0.* 2.* repeats a column",
    ),
    "a + None": (lambda c: matrix(c, 3, 2) + None, TypeError, "unsupported"),
    "'1' - a": (lambda c: "1" - matrix(c, 3, 2), TypeError, "unsupported"),
    "a * list": (lambda c: matrix(c, 3, 2) * [[1, 1]], TypeError, "unsupported|multiply sequence"),
    "a / 1j": (lambda c: matrix(c, 3, 2) / 1j, TypeError, "unsupported"),
    "a ** None": (lambda c: matrix(c, 3, 2) ** None, TypeError, "unsupported"),
    "2 ** a": (lambda c: 2 ** matrix(c, 3, 2), TypeError, "unsupported"),
    "a + Value": (lambda c: matrix(c, 1, 1) + c.Value(1), TypeError, r"\+ of .*pack\(\[\[value\]"),
    "Value - a": (lambda c: c.Value(1) - matrix(c, 1, 1), TypeError, r"- of .*pack\(\[\[value\]"),
    "a * Value": (lambda c: matrix(c, 1, 1) * c.Value(1), TypeError, r"\* of .*pack\(\[\[value\]"),
    "Value / a": (lambda c: c.Value(1) / matrix(c, 1, 1), TypeError, r"/ of .*pack\(\[\[value\]"),
    "a ** a": (
        lambda c: matrix(c, 1, 1) ** matrix(c, 1, 1), TypeError, "a number, not a Matrix; see log",
    ),
    "a ** Value": (
        lambda c: matrix(c, 1, 1) ** c.Value(1), TypeError, "a number, not a Value; see log",
    ),
    "Value ** a": (
        lambda c: c.Value(1) ** matrix(c, 1, 1), TypeError, "a number, not a Matrix; see log",
    ),
    "a / 0": (lambda c: matrix(c, 3, 2) / 0, ZeroDivisionError, "zero: 1 / 0.0"),
    "1 / a": (lambda c: 1 / matrix(c, 3, 2), ZeroDivisionError, "zero: 1 / 0.0"),
    "a / a": (lambda c: matrix(c, 3, 2) / matrix(c, 3, 2), ZeroDivisionError, "zero: 1 / 0.0"),
    "a / row": (lambda c: matrix(c, 3, 2) / matrix(c, 1, 2), ZeroDivisionError, "zero: 1 / 0.0"),
    "1 / 1e-160": (
        lambda c: 1 / c.Matrix.of([[1, 1e-160]]), OverflowError, "derivative of 1 / x at 1e-160",
    ),
    "a ** -1": (lambda c: matrix(c, 3, 2) ** -1, ZeroDivisionError, "zero: 1 / 0.0"),
    "a ** -2": (lambda c: matrix(c, 3, 2) ** -2, ZeroDivisionError, r"zero: 0.0 \*\* -2.0"),
    "a ** 0.5": (
        lambda c: matrix(c, 3, 2) ** 0.5, ZeroDivisionError, r"derivative of x \*\* 0.5 at 0.0",
    ),
    "a ** 2": (lambda c: c.Matrix.of([[1.0, -1e200]]) ** 2, OverflowError, r"-1e\+200 \*\* 2.0"),
    "a ** 3": (lambda c: c.Matrix.of([[1.0, -1e103]]) ** 3, OverflowError, r"-1e\+103 \*\* 3.0"),
    "(-a) ** 0.5": (
        lambda c: c.Matrix.of([[2.0], [-8.0]]) ** 0.5, ValueError, r"-8.0 \*\* 0.5 is not a real",
    ),
    "exp": (lambda c: c.Matrix.of([[700, 710, 800]]).exp(), OverflowError, r"exp\(710.0\) is too"),
    "log 0": (lambda c: c.Matrix.of([[2, 0, -1]]).log(), ValueError, r"log\(0.0\) is not defined"),
    "log -1": (lambda c: c.Matrix.of([[2], [-1]]).log(), ValueError, r"log\(-1.0\) is not defined"),
    "linear": (
        lambda c: c.linear(matrix(c, 3, 2), matrix(c, 2, 3)), ValueError, r"\(3, 2\) and \(2, 3\)",
    ),
    "linear None": (lambda c: c.linear(matrix(c, 3, 2), None), TypeError, "w.*NoneType"),
    "linear of lists": (lambda c: c.linear([[1]], [[1]]), TypeError, "x.*list"),
    "linear of a Value": (lambda c: c.linear(c.Value(1), matrix(c, 1, 1)), TypeError, "x.*Value"),
    "linear of one": (lambda c: c.linear(matrix(c, 1, 1)), TypeError, "argument"),
    "rmsnorm(None)": (lambda c: c.rmsnorm(None), TypeError, "x.*NoneType"),
    "relu(Value)": (lambda c: c.relu(c.Value(1)), TypeError, "x.*Value"),
    "softmax(list)": (lambda c: c.softmax([[1.0]]), TypeError, "x.*list"),
    "mean(row)": (lambda c: c.mean(matrix(c, 1, 2)[0]), TypeError, "x.*tuple"),
    "cross_entropy -1": (
        lambda c: c.cross_entropy(matrix(c, 1, 3), [-1]), ValueError, "target -1 .* 0..2",
    ),
    "cross_entropy 3": (
        lambda c: c.cross_entropy(matrix(c, 1, 3), [3]), ValueError, "target 3 .* 0..2",
    ),
    "cross_entropy huge": (
        lambda c: c.cross_entropy(matrix(c, 1, 3), [2**63]), ValueError, "target 922.* 0..2",
    ),
    "cross_entropy short": (
        lambda c: c.cross_entropy(matrix(c, 2, 3), [0]), ValueError, "2 rows .* not 1",
    ),
    "cross_entropy long": (
        lambda c: c.cross_entropy(matrix(c, 1, 3), [0, 0]), ValueError, "1 rows .* not 2",
    ),
    "cross_entropy []": (
        lambda c: c.cross_entropy(matrix(c, 1, 3), []), ValueError, "at least one target",
    ),
    "cross_entropy 0.0": (
        lambda c: c.cross_entropy(matrix(c, 1, 3), [0.0]), TypeError, "int, not float",
    ),
}  # fmt: skip


def attend(c, q, k, v, *rest):
    return c.attention(matrix(c, *q), matrix(c, *k), matrix(c, *v), *rest)


ERRORS |= {
    "attention k and v": (
        lambda c: attend(c, (2, 4), (3, 4), (2, 4), 1), ValueError,
        r"\(2, 4\), \(3, 4\) and \(2, 4\)",
    ),
    "attention columns": (
        lambda c: attend(c, (2, 4), (2, 6), (2, 6), 1), ValueError,
        r"\(2, 4\), \(2, 6\) and \(2, 6\)",
    ),
    "attention few keys": (
        lambda c: attend(c, (3, 4), (2, 4), (2, 4), 1), ValueError,
        r"\(3, 4\), \(2, 4\) and \(2, 4\)",
    ),
    "attention 3 heads": (lambda c: attend(c, *[(2, 4)] * 3, 3), ValueError, "4 col.* 3 heads"),
    "attention 0 heads": (lambda c: attend(c, *[(2, 4)] * 3, 0), ValueError, "4 col.* 0 heads"),
    "attention -1 heads": (lambda c: attend(c, *[(2, 4)] * 3, -1), ValueError, "-1 heads"),
    "attention 5 heads": (lambda c: attend(c, *[(2, 4)] * 3, 5), ValueError, "5 heads"),
    "attention huge heads": (lambda c: attend(c, *[(2, 4)] * 3, 10**30), ValueError, "000 heads"),
    "attention 1.0 heads": (lambda c: attend(c, *[(2, 4)] * 3, 1.0), TypeError, "int, not float"),
    "attention None": (
        lambda c: c.attention(matrix(c, 2, 4), None, None, 1), TypeError, "k.*NoneType",
    ),
    "starts []": (lambda c: attend(c, *[(3, 4)] * 3, 1, []), ValueError, r"\[\]"),
    "starts [1]": (lambda c: attend(c, *[(3, 4)] * 3, 1, [1]), ValueError, r"\[1\]"),
    "starts [0, 0]": (lambda c: attend(c, *[(3, 4)] * 3, 1, [0, 0]), ValueError, r"\[0, 0\]"),
    "starts [0, 2, 1]": (lambda c: attend(c, *[(3, 4)] * 3, 1, [0, 2, 1]), ValueError, "0, 2, 1"),
    "starts [0, 3]": (lambda c: attend(c, *[(3, 4)] * 3, 1, [0, 3]), ValueError, "below 3"),
    "starts huge": (lambda c: attend(c, *[(3, 4)] * 3, 1, [0, 10**30]), ValueError, "below 3"),
    "starts 0.0": (lambda c: attend(c, *[(3, 4)] * 3, 1, [0.0]), TypeError, "int, not float"),
    "starts 0": (lambda c: attend(c, *[(3, 4)] * 3, 1, 0), TypeError, "not iterable"),
    "starts and more keys": (
        lambda c: attend(c, (2, 4), (3, 4), (3, 4), 1, [0]), ValueError, "not 3 and 2",
    ),
    "attention_weights": (
        lambda c: c.attention_weights(matrix(c, 2, 4), matrix(c, 2, 3), 1), ValueError,
        r"\(2, 4\), \(2, 3\)",
    ),
    "attention_weights heads": (
        lambda c: c.attention_weights(matrix(c, 2, 4), matrix(c, 2, 4), 3), ValueError, "3 heads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_an_error_that_says_so(core, name):
    f, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        f(core)


def test_an_op_of_the_other_core_is_refused(cores):
    pure, compiled = cores
    with pytest.raises(TypeError):
        compiled.relu(pure.Matrix(1, 1))
    with pytest.raises(TypeError):
        pure.relu(compiled.Matrix(1, 1))
    with pytest.raises(TypeError):
        pure.Value(1) + compiled.Value(1)
    with pytest.raises(TypeError):
        compiled.Value(1, (pure.Value(1),), (1,))


@pytest.mark.parametrize("size", [(2**40, 2**40), (2**62, 2**62), (2**61, 1), (2**63, 1)])
def test_a_matrix_too_large_for_memory_is_an_error(compiled, size):
    with pytest.raises((MemoryError, OverflowError)):
        compiled.Matrix(*size)
    assert compiled.Matrix(2, 2).tolist() == [[0, 0], [0, 0]]


# Subclasses and arguments that change what they are given to.


def test_a_subclass_works_like_a_matrix(core):
    class Named(core.Matrix):
        name = "mine"

    m = Named.of([[1, 2], [3, 4]])
    assert (type(m), m.name, type(m[1:]), type(m + m)) == (Named, "mine", core.Matrix, core.Matrix)
    core.mean(core.linear(m, m)).backward()
    assert m.grad.tolist() == [[2.0, 3.0], [2.0, 3.0]]


def test_a_subclass_that_lies_about_its_length_breaks_nothing(core):
    class Liar(core.Matrix):
        def __len__(self):
            return 1000

    m = Liar(2, 2)
    with pytest.raises(IndexError):
        m[900]
    with pytest.raises(ValueError):
        m[900:901]
    with pytest.raises((ValueError, IndexError)):
        core.cross_entropy(m, [0] * 1000)


def test_a_subclass_that_lies_about_its_shape_breaks_nothing(core):
    class Liar(core.Matrix):
        shape = (300, 300)

    with pytest.raises(ValueError):
        core.Matrix(300, 300) + Liar(1, 1)
    big, liar = core.Matrix(300, 300), Liar(1, 1)
    with pytest.raises(ValueError):
        adam_update(core, [big], [liar], [liar], 0, 0.1)


class Shrink:
    """An int that makes a Matrix anew, with one row and one column, when it is read."""

    def __init__(self, number, *matrices):
        self.number = number
        self.matrices = matrices

    def __index__(self):
        for m in self.matrices:
            m.__init__(1, 1)
        return self.number


@pytest.mark.parametrize(
    "use",
    [
        lambda c, m: m[Shrink(900, m)][0].data,
        lambda c, m: m[Shrink(900, m) :].tolist(),
        lambda c, m: c.embedding(m, [Shrink(900, m)]).tolist(),
        lambda c, m: c.cross_entropy(m[:1], [Shrink(2, m)]).tolist(),
        lambda c, m: c.cross_entropy(m, [0] * 999 + [Shrink(2, m)]).tolist(),
        lambda c, m: c.attention(m, m, m, Shrink(1, m)).tolist(),
        lambda c, m: c.attention(m, m, m, 1, [0, Shrink(900, m)]).tolist(),
        lambda c, m: c.attention_weights(m, m, 1, [0, Shrink(900, m)]).tolist(),
    ],
)
def test_an_argument_that_would_shrink_the_matrix_meanwhile_is_refused(core, use):
    m = core.Matrix.of([[0.5, 0.5, 0.5]] * 1000)
    with pytest.raises(TypeError, match="a Matrix keeps its shape"):
        use(core, m)
    assert m.tolist() == [[0.5, 0.5, 0.5]] * 1000


def test_init_called_again_is_refused(core):
    m = core.Matrix.of([[1, 2], [3, 4]])
    for matrix in (m, m[1:], m + m):
        with pytest.raises(TypeError, match="a Matrix keeps its shape"):
            matrix.__init__(3, 1)
    assert m.tolist() == [[1, 2], [3, 4]]


def test_there_is_no_matrix_without_a_shape(core):
    with pytest.raises(TypeError):
        core.Matrix.__new__(core.Matrix)

    class Careless(core.Matrix):
        def __init__(self, rows, cols):
            pass

    m = Careless(2, 3)
    assert (m.shape, core.linear(m, m).shape) == ((2, 3), (2, 2))
    m.__init__(5, 5)
    core.Matrix.__init__(m, 5, 5)
    assert m.shape == (2, 3)


def test_a_matrix_made_again_while_it_is_made_keeps_its_first_shape(core):
    made = []

    class Sizes:
        def __index__(self):
            made.append(core.Matrix(1, 1))
            return 2

    assert core.Matrix(Sizes(), Sizes()).shape == (2, 2)
    assert [m.shape for m in made] == [(1, 1)] * len(made)


def test_a_load_that_would_grow_the_matrix_meanwhile_is_refused(core):
    m = core.Matrix(1, 1)

    class Grow:
        def __float__(self):
            m.__init__(2000, 2000)
            return 1.0

    with pytest.raises(TypeError, match="a Matrix keeps its shape"):
        m.load([[Grow()]])
    assert m.tolist() == [[0.0]]


# Infinities, nan and numbers at the ends of the range.


def test_infinities_and_nan_follow_float_arithmetic(core):
    M = core.Matrix.of
    assert core.softmax(M([[-INF, 0]])).tolist() == [[0, 1]]
    assert str(core.softmax(M([[INF, 0]])).tolist()) == "[[nan, nan]]"
    assert str(core.softmax(M([[-INF, -INF]])).tolist()) == "[[nan, nan]]"
    assert str(core.softmax(M([[0, NAN]])).tolist()) == "[[nan, nan]]"
    assert core.cross_entropy(M([[0, -INF]]), [0]).tolist() == [[0]]
    assert core.cross_entropy(M([[0, -INF]]), [1]).tolist() == [[INF]]
    assert core.cross_entropy(M([[0, 1e308]]), [0]).tolist() == [[1e308]]
    assert core.linear(M([[1e200, 1]]), M([[1e200, 1]])).tolist() == [[INF]]
    assert math.isnan(core.linear(M([[INF, 1]]), M([[0, 1]]))[0][0].data)
    assert core.relu(M([[NAN, INF, -INF]])).tolist() == [[0, INF, 0]]
    assert core.rmsnorm(M([[1e200, 1]])).tolist() == [[0, 0]]
    assert_close(core.rmsnorm(M([[1e-200, 0]])).tolist(), [[1e-200 * 1e-5**-0.5, 0]])
    assert math.isnan(core.mean(M([[INF, -INF]])).data)
    assert core.attention(M([[0]]), M([[INF]]), M([[5]]), 1).shape == (1, 1)
    assert (M([[5e-324]]) + M([[5e-324]])).tolist() == [[1e-323]]


def test_attention_does_not_touch_what_it_does_not_see(core):
    """nan in the future or in another document changes nothing."""
    q = core.Matrix.of([[1], [1], [1]])
    k = core.Matrix.of([[0], [0], [NAN]])
    v = core.Matrix.of([[1], [2], [NAN]])
    for starts in (None, [0, 2]):
        y = core.attention(q, k, v, 1, starts)
        assert data(y)[:2] == [[1.0], [1.5]]
        assert math.isnan(y[2][0].data)
    weighted_sum(y, [[1], [1], [1]]).backward()
    assert v.grad.tolist()[:2] == [[1.5], [0.5]]
    assert all(math.isfinite(block[i][0].grad) for block in (q, k) for i in range(2))


# Adam.


def textbook_adam(p, m, v, grads, lr, beta1, beta2, eps):
    """Algorithm 1 of arXiv:1412.6980 for one parameter and its gradients, step by step."""
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p -= lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
    return p, m, v


@pytest.mark.parametrize("rates", [(0.01, 0.85, 0.99, 1e-8), (0.3, 0.9, 0.999, 1e-3), (1, 0, 0, 1)])
def test_adam_is_the_textbooks(core, rates):
    rng = random.Random(4)
    shapes = [(3, 5), (1, 1), (16, 64)]
    start = [numbers(rng, *shape) for shape in shapes]
    params = [core.Matrix.of(rows) for rows in start]
    m, v = ([core.Matrix(*shape) for shape in shapes] for _ in range(2))
    steps = [[numbers(rng, *shape, 10.0**t) for shape in shapes] for t in (0, -3, 2, -9, 0)]
    for t, step in enumerate(steps):
        for param, rows in zip(params, step, strict=True):
            for i, row in enumerate(rows):
                for value, number in zip(param[i], row, strict=True):
                    value.grad = number
        adam_update(core, params, m, v, t, *rates)
    for i, (rows, cols) in enumerate(shapes):
        assert params[i].grad.tolist() == [[0.0] * cols] * rows
        for r in range(rows):
            for c in range(cols):
                history = [step[i][r][c] for step in steps]
                expected = textbook_adam(start[i][r][c], 0.0, 0.0, history, *rates)
                actual = [block[r][c].data for block in (params[i], m[i], v[i])]
                assert actual == pytest.approx(expected, rel=1e-12, abs=1e-12 * rates[0])


def test_adam_has_the_scripts_defaults(core):
    blocks = []
    for rates in [(0.01,), (0.01, 0.85, 0.99, 1e-8)]:
        p, m, v = core.Matrix.of([[1.0]]), core.Matrix(1, 1), core.Matrix(1, 1)
        p[0][0].grad = 0.5
        adam_update(core, [p], [m], [v], 7, *rates)
        blocks.append([p.tolist(), m.tolist(), v.tolist()])
    assert blocks[0] == blocks[1]


def test_adam_takes_iterators_no_parameters_and_parts_of_a_block(core):
    adam_update(core, [], [], [], 0, 0.1)
    p, m, v = core.Matrix(3, 1), core.Matrix(3, 1), core.Matrix(3, 1)
    p[1][0].grad = p[0][0].grad = 1
    adam_update(core, iter([p[1:2]]), (m[1:2],), (x for x in [v[1:2]]), 0, 0.1)
    assert_close(p.tolist(), [[0], [-0.1], [0]], 1e-6)
    assert p.grad.tolist() == [[1], [0], [0]]


def test_adam_without_a_gradient_leaves_the_parameter(core):
    p = core.Matrix.of([[1.5, -2]])
    adam_update(core, [p], [core.Matrix(1, 2)], [core.Matrix(1, 2)], 0, 0.1)
    assert p.tolist() == [[1.5, -2]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"m": []}, ValueError, "2 params .* not 0 and 2"),
        ({"v": [(1, 2)]}, ValueError, "2 params .* not 2 and 1"),
        ({"m": [(1, 2), (2, 3)]}, ValueError, r"\(2, 2\) .* \(2, 3\) and \(2, 2\)"),
        ({"v": [(1, 2), (1, 4)]}, ValueError, r"\(2, 2\) .* \(2, 2\) and \(1, 4\)"),
        ({"step": -1}, ValueError, "not -1"),
        ({"step": 1.0}, TypeError, "int, not float"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, not str"),
        ({"lr": None}, TypeError, "lr must be a number"),
        ({"beta1": 1.0}, ValueError, "not 1.0 and 0.99"),
        ({"beta1": -0.1}, ValueError, "not -0.1 and"),
        ({"beta2": 1.0}, ValueError, "0.85 and 1.0"),
        ({"beta2": NAN}, ValueError, "0.85 and nan"),
        ({"eps": 0.0}, ValueError, "not 0.0"),
        ({"eps": NAN}, ValueError, "not nan"),
        ({"eps": "x"}, TypeError, "eps must be a number, not str"),
    ],
)
def test_adam_refuses_what_does_not_fit_and_changes_nothing(core, change, error, message):
    arguments = {"params": [(1, 2), (2, 2)], "m": [(1, 2), (2, 2)], "v": [(1, 2), (2, 2)]}
    arguments |= {"step": 0, "lr": 0.1} | change
    for name in ("params", "m", "v"):
        arguments[name] = [matrix(core, *shape) for shape in arguments[name]]
    params = arguments["params"]
    for param in params:
        core.mean(param).backward()
    blocks = [block for name in ("params", "m", "v") for block in arguments[name]]
    before = [(block.tolist(), block.grad.tolist()) for block in blocks]
    with pytest.raises(error, match=message):
        adam_update(core, **arguments)
    assert [(block.tolist(), block.grad.tolist()) for block in blocks] == before


def test_adam_takes_only_matrices(core):
    m = core.Matrix(1, 1)
    for bad in (None, [[1]], core.Value(1)):
        with pytest.raises(TypeError, match="must be a Matrix, not"):
            adam_update(core, [m], [m], [bad], 0, 0.1)
    with pytest.raises(TypeError, match="not iterable"):
        adam_update(core, None, [m], [m], 0, 0.1)


@pytest.mark.parametrize("sizes", [(10**20, 1), (2**32, 2**32), (1, 2**62)])
def test_sizes_beyond_all_memory_are_a_memory_error(core, sizes):
    with pytest.raises(MemoryError, match="no memory for a Matrix of"):
        core.Matrix(*sizes)


def test_an_index_that_is_no_int_is_refused(core):
    class Half:
        def __index__(self):
            return 1.5

    m = core.Matrix(2, 4)
    for call in (
        lambda: core.attention(m, m, m, Half()),
        lambda: core.embedding(m, [Half()]),
        lambda: core.attention(m, m, m, 1, [Half()]),
        lambda: adam_update(core, [m], [m], [m], Half(), 0.1),
    ):
        with pytest.raises(TypeError):
            call()


# Numbers that change between forward and backward.


READ_AGAIN = {
    "linear": lambda c, x, w: c.linear(x, w),
    "the weights of linear": lambda c, x, w: c.linear(w, x),
    "rmsnorm": lambda c, x, w: c.rmsnorm(x),
    "relu": lambda c, x, w: c.relu(x),
    "softmax": lambda c, x, w: c.softmax(x),
    "attention": lambda c, x, w: c.attention(w, x, w, 1),
    "attention_weights": lambda c, x, w: c.attention_weights(w, x, 1),
    "a view": lambda c, x, w: c.linear(x[1:], w),
    "*": lambda c, x, w: w * x,
    "a row of *": lambda c, x, w: x[:1] * w,
    "/": lambda c, x, w: w / (x * x),
    "what is divided": lambda c, x, w: x / w,
    "1 / x": lambda c, x, w: 1 / x,
    "**": lambda c, x, w: x**2,
    "exp": lambda c, x, w: x.exp(),
    "tanh": lambda c, x, w: x.tanh(),
    "log": lambda c, x, w: (x * x).log(),
}


@pytest.mark.parametrize("name", READ_AGAIN)
@pytest.mark.parametrize("change", ["load", "load a view", "update"])
def test_numbers_that_changed_between_forward_and_backward_are_refused(core, name, change):
    x, w = core.Matrix.of([[0.5, -1.0], [2.0, 0.25]]), core.Matrix.of([[1.0, 2.0], [0.5, 0.1]])
    loss = core.mean(READ_AGAIN[name](core, x, w))
    loss.backward()
    before = x.grad.tolist(), w.grad.tolist()
    if change == "update":
        adam_update(core, [x], [core.Matrix(2, 2)], [core.Matrix(2, 2)], 0, 0.0)
        before = [[0.0, 0.0], [0.0, 0.0]], before[1]
    else:
        (x if change == "load" else x[1:]).load([[0.5, -1.0], [2.0, 0.25]][change != "load" :])
    with pytest.raises(RuntimeError, match="have changed between"):
        loss.backward()
    assert (x.grad.tolist(), w.grad.tolist()) == before


@pytest.mark.parametrize("name", READ_AGAIN)
def test_any_part_of_a_block_knows_that_numbers_changed(core, name):
    x, w = core.Matrix.of([[0.5, -1.0], [2.0, 0.25]]), core.Matrix.of([[1.0, 2.0], [0.5, 0.1]])
    y = READ_AGAIN[name](core, x, w)
    losses = [core.mean(y[len(y) - 1 :]), y[len(y) - 1][1] * 2.0]
    x.load(x)
    for loss in losses:
        with pytest.raises(RuntimeError, match="have changed between"):
            loss.backward()


RESULTS = {
    "softmax": lambda c, x: c.softmax(x),
    "softmax of a view": lambda c, x: c.softmax(x[:1]),
    "attention_weights": lambda c, x: c.attention_weights(x, x, 1),
    "exp": lambda c, x: x.exp(),
    "tanh": lambda c, x: x.tanh(),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_changed_before_backward_are_refused_where_it_needs_them(core, name):
    x = core.Matrix.of([[0.5, -1.0], [2.0, 0.25]])
    y = RESULTS[name](core, x)
    core.mean(y).backward()
    before = x.grad.tolist()
    y.load(y.tolist())
    loss = core.mean(y + y)
    with pytest.raises(RuntimeError, match="numbers that .* gave have changed between"):
        loss.backward()
    assert x.grad.tolist() == before


@pytest.mark.parametrize("op", ["relu", "rmsnorm", "linear", "attention", "cross_entropy"])
def test_results_that_changed_before_backward_may_where_it_does_not_need_them(core, op):
    x = core.Matrix.of([[0.5, -1.0], [2.0, 0.25]])
    rest = {"linear": [x], "attention": [x, x, 1], "cross_entropy": [[0, 1]]}.get(op, [])
    y = getattr(core, op)(x, *rest)
    core.mean(y).backward()
    once = x.grad.tolist()
    y.load([[7.0] * y.shape[1]] * 2)
    core.mean(y).backward()
    assert_close(x.grad.tolist(), [[2 * number for number in row] for row in once])


def test_numbers_that_plus_minus_and_factors_do_not_need_may_change(core):
    x, row = core.Matrix.of([[0.5, -1.0], [2.0, 0.25]]), core.Matrix.of([[3.0, 4.0]])
    loss = core.mean((-x + row) * 2 - x / 4 + (1 - x))
    for m in (x, row):
        m.load(m)
    loss.backward()
    assert x.grad.tolist() == [[-0.8125] * 2] * 2
    assert row.grad.tolist() == [[1.0, 1.0]]


def test_numbers_that_backward_does_not_need_may_change(core):
    x = core.Matrix.of([[0.5, -1.0], [2.0, 0.25]])
    loss = core.mean(core.cross_entropy(core.embedding(x, [0, 1]) + x, [1, 0]))
    expected = core.mean(core.cross_entropy(core.embedding(x, [0, 1]) + x, [1, 0]))
    expected.backward()
    once = x.grad.tolist()
    for row in x:
        for value in row:
            value.grad = 0.0
    x.load([[9.0, 9.0], [9.0, 9.0]])
    loss.backward()
    assert x.grad.tolist() == once


def test_an_element_that_changed_meanwhile_is_refused_by_the_compiled_core(core):
    """In the pure core the scalar Values keep the numbers of the forward, as in the script."""
    x, w = core.Matrix.of([[0.5, -1.0]]), core.Matrix.of([[1.0, 2.0]])
    loss = core.mean(core.linear(x, w))
    w[0][1].data = 7.0
    if is_compiled(core):
        with pytest.raises(RuntimeError, match="linear was computed from have changed"):
            loss.backward()
    else:
        loss.backward()
        assert x.grad.tolist() == [[1.0, 2.0]]


def test_a_new_forward_has_the_new_numbers(core):
    x, w = core.Matrix.of([[0.5, -1.0]]), core.Matrix.of([[1.0, 2.0]])
    replay = core.Replay(lambda ids: core.mean(core.linear(core.embedding(x, ids), w)))
    for weights in ([[1.0, 2.0]], [[3.0, -4.0]], [[5.0, 6.0]]):
        w.load(weights)
        for row in x:
            for value in row:
                value.grad = 0.0
        replay([0]).backward()
        assert x.grad.tolist() == weights


@pytest.mark.parametrize("inner", [False, True])
def test_a_row_of_a_block_can_serve_all_its_rows(core, inner):
    """The gradients of both are parts of one block, whichever of them is passed on first."""
    lists = [[1.0, -2.0], [0.5, 3.0], [4.0, 0.25], [-1.0, 2.0]]
    for both in (lambda x: x * x[2:3], lambda x: x[2:3] * x):
        leaf = core.Matrix.of(lists)
        x = leaf * 1 if inner else leaf
        core.mean(both(x)).backward()
        expected = [[v / 8 for v in lists[2]] for _ in lists]
        for j in range(2):
            expected[2][j] += sum(row[j] for row in lists) / 8
        assert leaf.grad.tolist() == expected
