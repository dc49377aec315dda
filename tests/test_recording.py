"""Recorded graphs, which only the compiled core has: ids that change, and the graph run again."""

import pytest


@pytest.fixture
def net(compiled):
    """Return a function that builds the same small graph for a core's table and ids."""
    table = compiled.Matrix.of([[0.1, -0.2], [0.3, 0.5], [-0.7, 0.2]])
    w = compiled.Matrix.of([[1.0, -1.0], [0.5, 2.0], [0.25, 0.1]])

    def build(ids, targets):
        x = compiled.embedding(table, ids)
        x = compiled.attention(x, x, x, 1) + x[:]
        return compiled.mean(compiled.cross_entropy(compiled.linear(x, w), targets))

    build.params = table, w
    return build


def clear(net):
    for matrix in net.params:
        for row in matrix:
            for value in row:
                value.grad = 0.0


def gradients(net):
    return [matrix.grad.tolist() for matrix in net.params]


def test_a_replay_gives_the_bits_of_a_new_graph(compiled, net):
    ids, targets = compiled._Ids([0, 1, 2]), compiled._Ids([1, 2, 0])
    recording = compiled._Recording(net(ids, targets))
    for new_ids, new_targets in (([2, 0, 0], [1, 1, 1]), ([1, 1, 2], [0, 2, 2])):
        clear(net)
        expected = net(new_ids, new_targets)
        expected.backward()
        expected_gradients = gradients(net)
        clear(net)
        ids.load(new_ids)
        targets.load(new_targets)
        assert recording.forward() == expected.data
        recording.backward()
        assert gradients(net) == expected_gradients


def test_a_replay_sees_new_parameters_and_its_backward_adds_to_leaves(compiled, net):
    recording = compiled._Recording(net([0, 1], [1, 2]))
    before = recording.forward()
    net.params[1].load([[0.0, 0.0]] * 3)
    assert recording.forward() != before
    assert recording.forward() == net([0, 1], [1, 2]).data
    recording.backward()
    once = gradients(net)
    recording.backward()
    assert gradients(net) == [[[2 * g for g in row] for row in rows] for rows in once]


def test_a_graph_with_scalar_ops_is_refused(compiled, net):
    m = compiled.Matrix.of([[1.0, 2.0]])
    with pytest.raises(ValueError, match="only a graph of block ops"):
        compiled._Recording(net([0], [1]) * 2)
    with pytest.raises(ValueError, match="only a graph of block ops"):
        compiled._Recording(compiled.mean(compiled.Matrix.pack([[m[0][0]]])))
    with pytest.raises(ValueError, match="leaf"):
        compiled._Recording(compiled.Value(1.0))
    with pytest.raises(TypeError):
        compiled._Recording(m)


def test_after_a_refusal_the_graph_still_works(compiled):
    x = compiled.Value(3.0)
    y = x * x
    with pytest.raises(ValueError):
        compiled._Recording(y)
    y.backward()
    assert x.grad == 6.0


@pytest.mark.parametrize("numbers", [[0, 3], [-1, 0], [0], [0, 1, 2], [], [10**30, 0], [0.0, 1]])
def test_ids_that_do_not_fit_are_refused_and_change_nothing(compiled, net, numbers):
    ids = compiled._Ids([2, 1])
    net(ids, [0, 1])
    with pytest.raises((ValueError, TypeError)):
        ids.load(numbers)
    assert list(ids) == [2, 1]


def test_ids_have_the_limit_of_the_smallest_block_that_uses_them(compiled):
    ids = compiled._Ids([0, 1])
    ids.load([500, 2])
    with pytest.raises(ValueError, match="id 500 is outside 0..4"):
        compiled.embedding(compiled.Matrix(5, 1), ids)
    ids.load([4, 2])
    compiled.embedding(compiled.Matrix(5, 1), ids)
    with pytest.raises(ValueError, match="id 5 is outside 0..4"):
        ids.load([5, 0])


def test_a_recording_keeps_its_graph_when_the_handle_of_its_loss_gets_another(compiled, net):
    loss = net([0, 1], [1, 2])
    expected = loss.data
    recording = compiled._Recording(loss)
    loss.__init__(5.0)
    junk = [compiled.Matrix(3, 2) for _ in range(100)]
    assert recording.forward() == expected and len(junk) == 100
    assert loss.data == 5.0


def test_a_recording_keeps_its_graph_alive(compiled, net):
    recording = compiled._Recording(net([0, 1], [1, 2]))
    expected = net([0, 1], [1, 2]).data
    junk = [compiled.Matrix(3, 2) for _ in range(100)]
    assert recording.forward() == expected
    assert len(junk) == 100


def test_a_tape_computes_again_what_was_recorded_loads_included(compiled):
    table = compiled.Matrix.of([[1.0, 2.0], [3.0, 4.0]])
    store, ids = compiled.Matrix(2, 2), compiled._Ids([0])
    with compiled.no_grad(), compiled._Tape() as tape:
        row = compiled.embedding(table, ids)
        store[1:].load(row)
        result = store + store
    assert result.tolist() == [[0.0, 0.0], [2.0, 4.0]]
    ids.load([1])
    tape.forward()
    assert store.tolist() == [[0.0, 0.0], [3.0, 4.0]]
    assert result.tolist() == [[0.0, 0.0], [6.0, 8.0]]


def test_after_a_tape_nothing_is_recorded_and_no_graph_is_kept(compiled):
    m = compiled.Matrix.of([[1.0]])
    outer = compiled._Tape()
    with pytest.raises(KeyError), outer:
        with compiled._Tape():
            m + m
        raise KeyError
    with compiled.no_grad():
        y = m + m
    m.load([[5.0]])
    outer.forward()
    assert y.tolist() == [[2.0]]
    z = m + m
    outer.forward()
    compiled.mean(z).backward()
    assert m.grad.tolist() == [[2.0]]


def test_a_tape_keeps_what_it_needs_alive(compiled):
    ids = compiled._Ids([0])
    with compiled._Tape() as tape:
        result = compiled.relu(compiled.embedding(compiled.Matrix.of([[1.0], [2.0]]), ids))
    junk = [compiled.Matrix(2, 1) for _ in range(100)]
    ids.load([1])
    tape.forward()
    assert result.tolist() == [[2.0]]
    assert len(junk) == 100


def test_softmax_on_a_tape_keeps_its_temperature(compiled):
    m = compiled.Matrix.of([[0.0, 1.0]])
    with compiled.no_grad(), compiled._Tape() as tape:
        result = compiled.softmax(m, 0.5)
    first = result.tolist()
    tape.forward()
    assert result.tolist() == first == compiled.softmax(compiled.Matrix.of([[0.0, 2.0]])).tolist()
