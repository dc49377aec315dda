"""Replay: repeated calls of a function of ids, whatever is done with earlier results."""

import copy
import gc
import pickle
import threading

import pytest
from ops import AdamState


def in_a_thread(f):
    """Return [f()], computed by a thread of its own."""
    results = []
    thread = threading.Thread(target=lambda: results.append(f()))
    thread.start()
    thread.join()
    return results


def numbers_of(result):
    if hasattr(result, "tolist"):
        return result.tolist()
    return getattr(result, "data", result)


class Net:
    """A small model of a core, which counts how often its Python runs."""

    def __init__(self, c):
        self.c, self.calls = c, 0
        self.table = c.Matrix.of([[0.1, -0.2], [0.3, 0.5], [-0.7, 0.2]])
        self.places = c.Matrix.of([[0.5, 0.1], [-0.2, 0.4], [0.3, 0.3]])
        self.w = c.Matrix.of([[1.0, -1.0], [0.5, 2.0], [0.25, 0.1]])
        self.params = self.table, self.places, self.w

    def loss(self, tokens, targets, starts):
        self.calls += 1
        c = self.c
        x = c.embedding(self.table, tokens)
        x = c.rmsnorm(x + c.embedding(self.places, c.positions(tokens, starts, 3)))
        x = c.attention(x, x, c.relu(x), 1, starts) + x
        return c.mean(c.cross_entropy(c.linear(x, self.w), targets))

    def results(self, f, *ids):
        """Return the loss of ids and the gradients, which are 0 before and afterwards."""
        loss = f(*ids)
        loss.backward()
        gradients = [matrix.grad.tolist() for matrix in self.params]
        for matrix in self.params:
            for row in matrix:
                for value in row:
                    value.grad = 0.0
        return loss.data, gradients


@pytest.fixture
def net(core):
    return Net(core)


IDS = [
    ([0, 1, 2], [1, 2, 0], [0]),
    ([2, 0, 0], [1, 1, 1], [0]),
    ([1], [0], [0]),
    ([0, 1, 2, 2, 1], [1, 0, 2, 1, 1], [0, 3]),
    ([0, 1, 2, 2, 1], [1, 0, 2, 1, 1], [0, 2]),
    ([0, 1, 2] * 40, [1, 0, 2] * 40, list(range(0, 120, 3))),
    ([2, 2], [1, 0], [0, 1]),
    ([0, 1, 2], [1, 2, 0], [0]),
]


def test_a_replay_gives_the_bits_of_a_call_on_any_number_of_rows_and_documents(core, net):
    replay = core.Replay(net.loss)
    for ids in IDS:
        assert net.results(replay, *ids) == net.results(net.loss, *ids)


def test_one_graph_serves_any_number_of_rows_and_documents(compiled):
    net = Net(compiled)
    replay = compiled.Replay(net.loss)
    for ids in IDS:
        replay(*ids)
    assert net.calls == 1


def test_a_replay_sees_new_parameters(core, net):
    replay = core.Replay(net.loss)
    before = replay(*IDS[0]).data
    net.w.load([[0.0, 0.0]] * 3)
    assert replay(*IDS[0]).data == net.loss(*IDS[0]).data != before


def test_a_part_without_gradients_may_grow_in_a_replay(core, net):
    """Its blocks are leaves of the graph, whose memory changes with the rows."""

    def loss(tokens):
        with core.no_grad():
            x = core.linear(core.embedding(net.table, tokens), net.places)
        return core.mean(core.relu(core.linear(x, net.square)))

    moments = [(core.Matrix(3, 3),) for _ in "mv"]
    results = []
    for f in (loss, core.Replay(loss)):
        net.square = core.Matrix.of([[0.5, -0.25, 1.0]] * 3)
        state = AdamState((net.square,), *moments)
        for m in moments:
            m[0].load([[0.0] * 3] * 3)
        for n in (2, 2, 30, 300, 1, 300):
            core.adam_minimize(f([0, 1] * n), state, 0.01)
        results.append(net.square.tolist())
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rows_of_a_block_of_one_number_are_seen_at_every_replay(core, dtype):
    """It stays where it is, though it has room for more."""
    table = core.Matrix.of([[0.5], [0.25], [0.125]], dtype)

    def first(tokens, others):
        core.positions(others)
        return core.mean(core.relu(core.embedding(table, tokens)[0:1]))

    replay = core.Replay(first)
    for n, token in enumerate([0, 1, 2, 0, 1]):
        loss = replay([token], [0] * (1 + n % 3))
        loss.backward()
        assert loss.data == [0.5, 0.25, 0.125][token]
        del loss
    assert table.grad.tolist() == [[2.0], [2.0], [1.0]]


def test_backward_twice_doubles_the_gradients_of_a_replayed_loss_too(core, net):
    replay = core.Replay(net.loss)
    once = net.results(replay, *IDS[3])[1]
    loss = replay(*IDS[3])
    loss.backward()
    loss.backward()
    for matrix, rows in zip(net.params, once, strict=True):
        for row, expected in zip(matrix.grad.tolist(), rows, strict=True):
            assert row == pytest.approx([2 * x for x in expected], rel=1e-12)


def test_results_that_are_kept_stay_as_they_were(core, net):
    replay = core.Replay(net.loss)
    kept = [replay(*ids) for ids in IDS]
    assert [loss.data for loss in kept] == [net.loss(*ids).data for ids in IDS]


@pytest.mark.parametrize("hold", [
    lambda loss: loss._children[:1], lambda loss: loss * 2.0, lambda loss: [loss],
])  # fmt: skip
def test_a_graph_that_can_be_reached_is_not_changed(core, net, hold):
    replay = core.Replay(net.loss)
    replay(*IDS[0])
    loss = replay(*IDS[1])
    held = hold(loss)
    before, (child, *_) = [value.data for value in ([held] if hasattr(held, "data") else held)], (
        loss._children
    )
    seen = child.data
    del loss
    replay(*IDS[3])
    assert [value.data for value in ([held] if hasattr(held, "data") else held)] == before
    assert child.data == seen


def test_a_block_that_the_function_gave_away_is_not_changed(core, net):
    given = []

    def loss(tokens, targets, starts):
        x = core.embedding(net.table, tokens)
        given.append(x)
        return core.mean(core.cross_entropy(core.linear(x, net.w), targets))

    replay = core.Replay(loss)
    for ids in IDS[:4]:
        replay(*ids)
    rows = net.table.tolist()
    assert [x.tolist() for x in given] == [[rows[i] for i in ids[0]] for ids in IDS[:4]]


@pytest.mark.parametrize("ids", [
    ([0, 3], [0, 1], [0]), ([-1], [0], [0]), ([0], [3], [0]), ([0, 1], [0], [0]),
    ([0, 1], [0, 1], [1]), ([0, 1], [0, 1], [0, 2]), ([0, 1, 2], [0, 1, 2], [0, 2, 1]),
    ([0, 1, 2, 0], [0, 1, 2, 0], [0]), ([10**30], [0], [0]), ([0.0], [0], [0]), ([], [], []),
    ([0], [0], []),
])  # fmt: skip
def test_ids_that_do_not_fit_are_the_errors_of_a_call_and_do_no_harm(core, net, ids):
    replay = core.Replay(net.loss)
    replay(*IDS[0])
    with pytest.raises((ValueError, TypeError)) as expected:
        net.loss(*ids)
    for _ in range(2):
        with pytest.raises(type(expected.value)) as caught:
            replay(*ids)
        assert str(caught.value) == str(expected.value)
        assert net.results(replay, *IDS[3]) == net.results(net.loss, *IDS[3])


def with_a_number_read(net, c):
    return lambda tokens: c.mean(c.embedding(net.table, tokens)) * float(tokens[0])


def with_scalars(net, c):
    def loss(tokens):
        x = c.embedding(net.table, tokens)
        return c.mean(c.Matrix.pack([[value * value for value in row] for row in x]))

    return loss


def with_ids_of_its_own(net, c):
    return lambda tokens: c.mean(
        c.embedding(net.table, tokens) + c.embedding(net.places, list(range(len(tokens))))
    )


def with_what_it_read(net, c):
    return lambda tokens: c.mean(c.embedding(net.table, [2 - i for i in tokens]))


def with_an_op_after_the_result(net, c):
    def loss(tokens):
        result = c.mean(c.embedding(net.table, tokens))
        c.relu(net.table)
        return result

    return loss


def with_a_view_of_what_it_computed(net, c):
    return lambda tokens: c.mean(c.relu(c.embedding(net.table, tokens)[:1]))


def with_numbers_that_it_read(net, c):
    return lambda tokens: c.mean(c.Matrix.of(c.embedding(net.table, tokens).tolist()))


def with_an_entry_that_it_read(net, c):
    def loss(tokens):
        x = c.embedding(net.table, tokens)
        return c.mean(c.softmax(x, 1.0 + x[0][0].data ** 2))

    return loss


def with_a_mean_that_it_read(net, c):
    def loss(tokens):
        x = c.embedding(net.table, tokens)
        return c.mean(c.softmax(x, 1.0 + c.mean(x).data ** 2))

    return loss


def with_a_number(net, c):
    return lambda tokens: 3.0 + len(tokens)


def with_a_leaf(net, c):
    return lambda tokens: c.mean(c.Matrix.of([[float(i) for i in tokens]]))


def with_a_mean_that_it_made_another_number_of(net, c):
    def loss(tokens):
        x = c.embedding(net.table, tokens)
        return c.mean(c.softmax(x, 1.0 + (c.mean(x) * c.mean(x)).data))

    return loss


def with_the_number_of_ids(net, c):
    return lambda tokens: c.softmax(c.embedding(net.table, tokens), float(len(tokens)))


def with_the_number_of_positions(net, c):
    return lambda tokens: c.softmax(c.embedding(net.table, tokens), len(c.positions(tokens)))


def with_a_position_that_it_read(net, c):
    return lambda tokens: c.softmax(c.embedding(net.table, tokens), 1 + c.positions(tokens)[-1])


def with_positions_of_its_own_starts(net, c):
    def loss(tokens):
        return c.softmax(c.embedding(net.table, tokens), 1 + c.positions(tokens, [0])[-1])

    return loss


def with_the_shape_of_what_it_computed(net, c):
    def loss(tokens):
        x = c.embedding(net.table, tokens)
        return c.softmax(x, x.shape[0] + len(x) + len(repr(x)))

    return loss


def with_ids_that_another_thread_used(net, c):
    def loss(tokens):
        [x] = in_a_thread(lambda: c.embedding(net.table, tokens)[:1])
        return c.relu(x)

    return loss


def with_ids_that_another_thread_read(net, c):
    return lambda tokens: c.softmax(
        c.embedding(net.table, tokens), 1.0 + in_a_thread(lambda: tokens[0])[0]
    )


FUNCTIONS = [
    with_a_number_read, with_scalars, with_ids_of_its_own, with_what_it_read,
    with_an_op_after_the_result, with_a_view_of_what_it_computed, with_a_number, with_a_leaf,
    with_numbers_that_it_read, with_an_entry_that_it_read, with_a_mean_that_it_read,
    with_a_mean_that_it_made_another_number_of, with_the_number_of_ids,
    with_the_number_of_positions, with_a_position_that_it_read, with_positions_of_its_own_starts,
    with_the_shape_of_what_it_computed, with_ids_that_another_thread_used,
    with_ids_that_another_thread_read,
]  # fmt: skip


@pytest.mark.parametrize("make", FUNCTIONS)
def test_what_cannot_be_replayed_is_run(core, net, make):
    f = make(net, core)
    replay = core.Replay(f)
    for tokens in ([0, 1, 2], [2, 1, 1], [1], [0, 0], [2, 1, 0], [1]):
        assert numbers_of(replay(tokens)) == numbers_of(f(tokens))


def test_an_element_that_the_function_reads_is_read_at_every_call(core, net):
    temperature = core.Matrix.of([[1.0]])[0][0]
    f = lambda tokens: core.softmax(core.embedding(net.table, tokens), temperature.data)  # noqa: E731
    replay = core.Replay(f)
    for temperature.data in (1.0, 2.0, 0.5):
        assert replay([0, 1]).tolist() == f([0, 1]).tolist()


def test_what_the_function_does_beside_its_result_is_done_at_every_call(core, net):
    store, state = core.Matrix(1, 2), AdamState([net.w], [core.Matrix(3, 2)], [core.Matrix(3, 2)])
    entry = net.places[0][0]

    def load(tokens):
        store.load([[1.0, 2.0]])

    def differentiate(tokens):
        core.mean(net.table).backward()

    def update(tokens):
        core.adam_update(state, 0.1)

    def set_an_entry(tokens):
        entry.data = entry.data + 1.0

    for act in (load, differentiate, update, set_an_entry):
        replay = core.Replay(lambda tokens, act=act: (act(tokens), core.relu(store))[1])
        for _ in range(3):
            store.load([[9.0, 9.0]])
            replay([0])
        assert store.tolist() == [[1.0, 2.0]] if act is load else [[9.0, 9.0]]
    assert sum(map(sum, net.table.grad.tolist())) == pytest.approx(3.0)
    assert (state.step, entry.data) == (3, 3.5)


def test_as_many_graphs_as_ways_to_leave_arguments_out(core, net):
    def f(*many):
        x = core.embedding(net.table, [0])
        for ids in many:
            if ids is not None:
                x = x + core.embedding(net.table, ids)
        return x

    replay = core.Replay(f)
    calls = [
        ([0], [1]), ([0],), ([0], None), (None, [0]), ([0], [2]), ([1],), (), ([2], None, None),
        (None, *[[1]] * 70), ([1], *[[1]] * 70), ([1], None, *[[1]] * 69), (None, *[[2]] * 70),
    ]  # fmt: skip
    for ids in calls * 2:
        assert replay(*ids).tolist() == f(*ids).tolist()


def test_ids_that_the_function_kept_are_a_list_of_their_own_elsewhere(core, net):
    """Else the next replay would change the ids of what was computed from them."""
    kept = []

    def f(tokens):
        kept.append(tokens)
        return core.mean(core.embedding(net.table, tokens))

    replay = core.Replay(f)
    replay([0, 1])
    y = core.embedding(net.table, kept.pop())
    for _ in range(3):
        replay([2])
    core.mean(y).backward()
    assert net.table.grad.tolist() == [[0.25, 0.25], [0.25, 0.25], [0.0, 0.0]]


def test_ids_of_one_recording_are_those_of_a_list_in_another(core, net):
    kept = []

    def keep(tokens):
        kept.append(tokens)
        return core.mean(core.embedding(net.table, tokens))

    core.Replay(keep)([1, 1])
    replay = core.Replay(lambda tokens: core.embedding(net.table, kept[0])
                         + core.embedding(net.table, tokens))  # fmt: skip
    for tokens in ([0, 1], [2, 2], [0, 1]):
        assert replay(tokens).tolist() == replay.f(tokens).tolist()


class Key:
    """A key that makes calls of its own when it is looked up."""

    def __init__(self):
        self.calls, self.call = 0, lambda: None

    def __hash__(self):
        self.calls += 1
        self.call()
        return 7

    def __eq__(self, other):
        self.call()
        return isinstance(other, Key)


def test_a_key_may_replay_the_graph_that_is_being_dropped(core, net):
    """With ids of which some fit and some do not, the graph is left half loaded."""
    replay = core.Replay(net.loss)
    good, bad = IDS[5], ([0, 1, 2] * 50, [1, 0, 7] * 50, list(range(0, 150, 3)))
    expected = net.results(net.loss, *good)

    def other_key(*ids):
        return replay(*ids, key=Key())

    for nth in range(1, 12):
        replay(*IDS[0], key=Key())
        key, results = Key(), []

        def call(key=key, results=results, nth=nth):
            if key.calls == nth and not results:
                results.append(None)
                results[:] = [net.results(other_key, *(good if nth % 2 else IDS[0]))]

        key.call = call
        with pytest.raises(ValueError, match="target 7"):
            replay(*bad, key=key)
        if results:
            assert results[0] == (expected if nth % 2 else net.results(net.loss, *IDS[0]))
        assert net.results(other_key, *good) == expected


def test_a_replay_keeps_its_function(core, net):
    def change_it(tokens):
        with pytest.raises(TypeError, match="a Replay keeps its function"):
            replay.__init__(len)
        return core.mean(core.embedding(net.table, tokens))

    replay = core.Replay(change_it)
    assert replay([0]).data == replay([0]).data == change_it([0]).data
    with pytest.raises((TypeError, AttributeError)):
        core.Replay.__new__(core.Replay)([0])


def test_positions_of_positions_to_any_depth(compiled):
    """Nor do they end in recursion."""
    kept = []

    def f(tokens):
        for _ in range(300_000):
            tokens = compiled.positions(tokens)
        kept.append(tokens)

    compiled.Replay(f)([0, 1])
    assert list(kept.pop()) == [0, 1]


def test_ids_that_no_replay_made_are_no_ids(compiled):
    ids = compiled.Replay(lambda tokens: type(tokens))([0])()
    assert (len(ids), list(ids)) == (0, [])
    with pytest.raises(ValueError, match="at least one id"):
        compiled.embedding(compiled.Matrix(2, 2), ids)


def test_ids_that_the_function_kept_do_not_change(core, net):
    kept = []

    def loss(tokens):
        kept.append(tokens)
        return core.mean(core.embedding(net.table, tokens))

    replay = core.Replay(loss)
    for tokens in ([0, 1], [2, 0], [1, 1, 2]):
        replay(tokens)
    assert [list(tokens) for tokens in kept] == [[0, 1], [2, 0], [1, 1, 2]]


def every_row_count(core, f, leaves):
    """Compare replays of f on changing numbers of tokens with plain calls, errors included."""
    results = []
    for call in (f, core.Replay(f)):
        seen = []
        for n in (1, 3, 1, 2, 4, 1, 3, 3, 1):
            try:
                y = call([i % 3 for i in range(n)])
            except (ArithmeticError, ValueError) as error:
                seen.append((type(error), str(error)))
                continue
            core.mean(y * y).backward()
            seen.append((y.tolist(), [leaf.grad.tolist() for leaf in leaves]))
            del y  # a result that is held keeps its graph
            for value in [value for leaf in leaves for row in leaf for value in row]:
                value.grad = 0.0
        results.append(seen)
    assert results[1] == results[0]
    return results[0]


@pytest.mark.parametrize("f", [
    lambda x, row, three, y: x * row, lambda x, row, three, y: row - x,
    lambda x, row, three, y: x + three, lambda x, row, three, y: three / x,
    lambda x, row, three, y: x * y + row, lambda x, row, three, y: x + y[:1],
    lambda x, row, three, y: (x - row) * three, lambda x, row, three, y: x * 2 + 1 - x / 3,
    lambda x, row, three, y: row * 2 + x, lambda x, row, three, y: x + (row + three[:1]),
])  # fmt: skip
def test_a_row_that_serves_all_rows_is_told_from_a_block_of_one_row(core, net, f):
    """Whichever number of tokens was recorded: what a row does follows from the shapes."""
    row = core.Matrix.of([[0.5, -2.0]])

    def g(tokens):
        x = core.embedding(net.table, tokens)
        return f(x, row, net.places, core.embedding(net.w, tokens).tanh())

    every_row_count(core, g, [*net.params, row])


def test_one_graph_serves_a_bias_and_a_gain_on_any_number_of_rows(compiled):
    net, calls = Net(compiled), []
    bias, gain = compiled.Matrix.of([[0.5, -2.0]]), compiled.Matrix.of([[1.5, 0.25]])

    def f(tokens):
        calls.append(1)
        x = compiled.rmsnorm(compiled.embedding(net.table, tokens)) * gain + bias
        return 0.5 * x * (1 + (0.8 * (x + 0.04 * x**3)).tanh()) - x.exp() / 2

    every_row_count(compiled, f, [*net.params, bias, gain])
    assert len(calls) == 9 + 1  # the plain calls, and the one recorded


@pytest.mark.parametrize("f", [
    lambda x: x.log(), lambda x: (x * 3000).exp(), lambda x: x**0.5, lambda x: x / x,
    lambda x: 1 / x, lambda x: (x * 1e160) ** 2, lambda x: x.relu() ** -2, lambda x: x / x[:1],
])  # fmt: skip
@pytest.mark.parametrize("rows", [1, 60_000])
def test_an_error_in_a_replay_is_that_of_the_call(core, f, rows):
    """Also of a long one, which runs without the interpreter's lock."""
    if rows > 1 and not hasattr(core, "_level"):
        rows = 20
    table = core.Matrix.of([[0.1, 0.2], [-0.5, 0.3], [0.0, 0.4]])
    g = lambda tokens: core.mean(f(core.embedding(table, tokens)))  # noqa: E731
    replay = core.Replay(g)
    for token in (0, 0, 1, 2, 0, 2, 1, 0):
        outcomes = []
        for call in (g, replay):
            try:
                outcomes.append(call([0] * (rows - 1) + [token]).data)
            except (ArithmeticError, ValueError) as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]


def test_a_function_may_expect_the_error(core, net):
    def f(tokens):
        x = core.embedding(net.table, tokens)
        try:
            return core.mean(x.log())
        except ValueError:
            return core.mean(x)

    net.table.load([[0.1, 0.2], [-0.3, 0.5], [0.7, 0.2]])
    replay = core.Replay(f)
    for token in (1, 0, 1, 0, 0, 1, 1, 2):
        assert replay([token]).data == f([token]).data


def test_a_function_may_expect_shapes_that_do_not_fit(core, net):
    def f(tokens):
        x = core.embedding(net.table, tokens)
        try:
            return x * net.places
        except ValueError:
            return core.relu(x)

    every_row_count(core, f, net.params)
    every_row_count(core, lambda tokens: f([*tokens, 0]), net.params)
    replay = core.Replay(f)
    for tokens in ([0, 1], [1, 2], [0, 1, 2], [2], [1, 0]):  # recorded after the error
        assert replay(tokens).tolist() == f(tokens).tolist()


def test_an_error_after_a_load_leaves_what_the_call_leaves(core, net):
    """What was loaded before the error is not loaded twice."""
    stores = [core.Matrix(1, 2), core.Matrix(1, 2)]

    def f(tokens, store):
        store.load(store + core.embedding(net.table, tokens))
        return core.embedding(net.places, tokens).log()

    net.places.load([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]])
    for store in stores:
        call = lambda tokens, store=store: f(tokens, store)  # noqa: E731
        call = core.Replay(call) if store is stores[1] else call
        for token in (0, 1, 2, 1, 0, 2):
            try:
                call([token])
            except ValueError:
                pass
    assert stores[1].tolist() == stores[0].tolist()


def test_a_store_that_is_written_before_it_is_read_is_replayed_with_ops_that_can_fail(compiled):
    net, store, calls = Net(compiled), compiled.Matrix(3, 2), []

    def f(tokens):
        calls.append(1)
        store[1:2].load(compiled.embedding(net.table, tokens))
        return (store + 1).log()

    replay = compiled.Replay(f)
    for token in (0, 1, 2):
        replay([token])
    assert len(calls) == 1
    net.table.load([[-2.0, 0.0]] * 3)
    with pytest.raises(ValueError, match="-1.0"):
        replay([0])


def test_a_replay_may_be_used_in_another(core, net):
    inner = core.Replay(lambda tokens: core.embedding(net.table, tokens))
    outer = core.Replay(lambda tokens: core.mean(core.relu(inner(tokens))))
    for tokens in ([0, 1], [2], [1, 1, 0], [2]):
        inner(tokens)
        expected = core.mean(core.relu(core.embedding(net.table, tokens)))
        assert outer(tokens).data == expected.data


def test_an_error_in_the_function_ends_the_recording(core, net):
    def fail(tokens):
        core.embedding(net.table, tokens)
        raise KeyError("mine")

    replay = core.Replay(fail)
    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            replay([0])
    assert net.results(core.Replay(net.loss), *IDS[0]) == net.results(net.loss, *IDS[0])


def test_the_key_says_what_else_the_graph_depends_on(core, net):
    temperature = 1.0

    def f(tokens):
        return core.softmax(core.embedding(net.table, tokens), temperature)

    replay = core.Replay(f)
    for temperature in (1.0, 0.5, 2.0, 0.5, 1.0):  # noqa: B007  f reads it
        assert replay([0, 2], key=temperature).tolist() == f([0, 2]).tolist()


def test_loads_into_a_store_are_done_again(core, net):
    store = core.Matrix(3, 2)

    def extend(tokens):
        with core.no_grad():
            x = core.embedding(net.table, tokens)
            store[1:2].load(x)
            return store[:2] + store[:2]

    replay = core.Replay(extend)
    for token in (0, 2, 1, 2):
        row = net.table.tolist()[token]
        assert replay([token]).tolist() == [[0.0, 0.0], [2 * x for x in row]]
        assert store.tolist() == [[0.0, 0.0], row, [0.0, 0.0]]


def test_what_was_computed_under_no_grad_passes_no_gradient_on(core, net):
    def f(tokens):
        return core.relu(core.embedding(net.table, tokens))

    replay = core.Replay(f)
    for tokens in ([0, 1], [1, 2, 0], [2, 2]):
        with core.no_grad():
            rows = replay(tokens)
        core.mean(rows + rows).backward()
        del rows
        assert not any(map(any, net.table.grad.tolist()))
        core.mean(replay(tokens)).backward()
        assert any(map(any, net.table.grad.tolist()))
        for row in net.table:
            for value in row:
                value.grad = 0.0


def test_what_a_graph_needs_is_kept_alive(core):
    table = core.Matrix.of([[1.0, 2.0], [3.0, -4.0]])
    replay = core.Replay(lambda tokens, table=table: core.relu(core.embedding(table, tokens)))
    replay([0])
    del table
    junk = [core.Matrix(2, 2) for _ in range(100)]
    gc.collect()
    assert replay([1, 0]).tolist() == [[3.0, 0.0], [1.0, 2.0]]
    assert len(junk) == 100


def test_graphs_are_bounded_by_their_numbers(compiled):
    net = Net(compiled)
    replay = compiled.Replay(net.loss)
    ids = [0, 1, 2] * 5000, [1, 2, 0] * 5000, list(range(0, 15_000, 3))
    for key in range(30):  # each graph holds half a million numbers
        replay(*ids, key=key)
    net.calls = 0
    replay(*ids, key=29)
    assert net.calls == 0
    replay(*ids, key=0)
    assert net.calls == 1


def test_a_replay_is_copied_and_pickled_without_its_graphs(core):
    replay = core.Replay(sum)
    assert copy.deepcopy(replay)([1, 2]) == pickle.loads(pickle.dumps(replay))([1, 2]) == 3


def test_two_threads_may_use_a_replay_one_after_the_other(core, net):
    replay = core.Replay(net.loss)
    replay(*IDS[0])
    results = []
    thread = threading.Thread(target=lambda: results.append(net.results(replay, *IDS[3])))
    thread.start()
    thread.join()
    assert results == [net.results(net.loss, *IDS[3])]


def test_a_thread_that_meets_a_graph_at_work_is_refused(compiled):
    """A graph of many entries is computed without the interpreter's lock."""
    net = Net(compiled)
    replay = compiled.Replay(net.loss)
    ids = [0, 1, 2] * 500, [1, 2, 0] * 500, list(range(0, 1500, 3))
    expected = replay(*ids).data
    refused, results, stop = [], [], threading.Event()

    def work():
        while not stop.is_set():
            try:
                results.append(replay(*ids).data)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not refused and len(results) < 500:
        threading.Event().wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert refused and set(refused) == {"another thread is computing a part of this graph"}
    assert set(results) == {expected}


@pytest.mark.parametrize("name", ["Replay", "_Graph", "_Ids"])
def test_what_the_core_trusts_cannot_be_subclassed(compiled, name):
    with pytest.raises((TypeError, AttributeError)):
        type("Liar", (getattr(compiled, name),), {})
