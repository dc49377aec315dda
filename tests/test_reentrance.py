"""Python that runs in the middle of a call: what was checked before it is checked, or held, after.

Any argument can bring a method that the core calls: to convert a number, to walk through a list,
to set the count of steps. Hooks of the profiler and finalisers run between two lines of a check.
"""

import gc
import sys

import pytest
from adam_state import AdamState


def lists_that_hold(item):
    """Return the lists, made by the call in progress, that `item` stands in."""
    return [holder for holder in gc.get_referrers(item) if type(holder) is list]


class Meanwhile:
    """A number that does something else first when it is asked for."""

    def __init__(self, act, number=1):
        self.act, self.number = act, number

    def __float__(self):
        self.act(self)
        return float(self.number)

    def __index__(self):
        self.act(self)
        return self.number


@pytest.mark.parametrize("change", [
    lambda rows: rows.clear(), lambda rows: rows.extend([1.0] * 10_000),
    lambda rows: rows.insert(0, "a"),
])  # fmt: skip
def test_no_list_of_a_load_or_a_pack_can_change_its_length(compiled, change):
    def act(number):
        for rows in [*lists_that_hold(number), *lists_that_hold(1.0)]:
            if rows is not entries:
                change(rows)

    m = compiled.Matrix.of([[9.0, 9.0], [9.0, 9.0]])
    for use in (m.load, compiled.Matrix.of, compiled.Matrix.pack):
        entries = [1.0, Meanwhile(act)]
        made = use([[1.0, 2.0], entries]) or m
        assert made.tolist() == [[1.0, 2.0], [1.0, 1.0]]


def test_a_profile_hook_cannot_exchange_what_was_checked(core):
    table, m, v = core.Matrix.of([[1.0, 2.0], [3.0, 4.0]]), core.Matrix(2, 2), core.Matrix(2, 2)
    calls = [
        lambda: core.embedding(table, iter([0, 1])),
        lambda: core.cross_entropy(table, iter([0, 1])),
        lambda: core.attention(table, table, table, 1, iter([0, 1])),
        lambda: core.positions([0, 1], iter([0, 1])),
        lambda: core.Matrix.of([[1.0, 2.0], [3.0, 4.0]]),
        lambda: core.Matrix.pack([[1.0, 2.0], [3.0, 4.0]]),
        lambda: table.load([[1.0, 2.0], [3.0, 4.0]]),
        lambda: core.adam_update(AdamState([table], [m], [v]), 0.0),
    ]
    new = []

    def hook(frame, event, result):
        if event == "return" and frame.f_code.co_filename.endswith("_checks.py"):
            for found in [result, *frame.f_locals.values()]:
                if type(found) is list:
                    found[:] = new

    for new in (new, [10**6, 10**6], ["a", "a"], [0] * 10_000, [-1, 0]):
        for call in calls:
            sys.setprofile(hook)
            try:
                call()
            except (TypeError, ValueError, IndexError):
                pass
            finally:
                sys.setprofile(None)
    assert table.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_matrix_that_is_being_made_can_be_found_and_used(compiled):
    """The collector's lists have an object of a subclass before its sizes are known."""

    class Named(compiled.Matrix):
        pass

    def find(number):
        for found in gc.get_objects():
            if type(found) is Named:
                used.append((found.shape, (found + found).tolist(), found[0][0].data))
                found.load([[7.0]])
                found.load([[0.0]])

    used = []
    m = Named(Meanwhile(find, 2), Meanwhile(find, 3))
    assert used == [((1, 1), [[0.0]], 0.0)] * 2
    assert (m.shape, m.tolist()) == ((2, 3), [[0.0] * 3] * 2)
    del m
    with pytest.raises(ValueError, match="at least one row"):
        Named(Meanwhile(find, 0), 3)


def test_local_gradients_are_as_many_as_the_node_has_children(compiled):
    class Liar(compiled.Value):
        _children = property(lambda self: range(100_000))

    assert Liar(1.0, (compiled.Value(2.0),), (3.0,))._local_grads == (3.0,)
    assert Liar(1.0)._local_grads == ()


class Refused(Exception):
    pass


def test_an_update_whose_count_is_refused_changes_nothing(core):
    class Strict(AdamState):
        @property
        def step(self):
            return 0

        @step.setter
        def step(self, number):
            if number:
                raise Refused

    blocks = [core.Matrix.of([[1.0, 2.0]]) for _ in range(3)]
    for value in blocks[0][0]:
        value.grad = 5.0
    with pytest.raises(Refused):
        core.adam_update(Strict(*([block] for block in blocks)), 0.1)
    assert [block.tolist() for block in blocks] == [[[1.0, 2.0]]] * 3
    assert blocks[0].grad.tolist() == [[5.0, 5.0]]


def test_an_update_works_on_the_matrices_that_were_checked(core):
    """Whatever is done to lists of them when the count is set."""
    p, m, v = (core.Matrix.of([[0.5] * 100] * 100) for _ in range(3))
    small = core.Matrix(1, 1)

    class Exchanging(AdamState):
        @property
        def step(self):
            return 0

        @step.setter
        def step(self, number):
            for matrix in (p, m, v):
                for holder in gc.get_referrers(matrix):
                    if type(holder) is list and number:
                        holder[:] = [None, small]

    expected = core.Matrix.of([[0.5] * 100] * 100)
    state = AdamState([expected], [core.Matrix.of(m.tolist())], [core.Matrix.of(v.tolist())])
    core.adam_update(state, 0.1)
    core.adam_update(Exchanging([p], [m], [v]), 0.1)
    assert p.tolist() == expected.tolist() and small.tolist() == [[0.0]]
