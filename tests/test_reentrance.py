"""Python that runs in the middle of a call: what was checked before it is checked, or held, after.

Any argument can bring a method that the core calls: to convert a number, to walk through a list,
to set the count of steps. Hooks of the profiler and finalisers run between two lines of a check.
"""

import _thread
import contextlib
import copy
import gc
import os
import pickle
import random
import sys
import threading
import time

import pytest
from ops import AdamState, wave


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

    def that_gives(answer):
        def hook(frame, event, result):
            if event == "return" and frame.f_code.co_filename.endswith("_checks.py"):
                for found in [result, *frame.f_locals.values()]:
                    if type(found) is list:
                        found[:] = answer

        return hook

    for answer in ([], [10**6, 10**6], ["a", "a"], [0] * 10_000, [-1, 0]):
        for call in calls:
            sys.setprofile(that_gives(answer))
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


# Other threads, which run where the core gives up the interpreter's lock.


def in_threads(*works):
    """Run each of the functions in a thread of its own until the first ends; return the errors."""
    errors, stop = [], threading.Event()

    def repeat(work):
        try:
            while not stop.is_set():
                try:
                    if work():
                        break
                except RuntimeError as error:
                    errors.append(str(error))
        finally:
            stop.set()

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("change", ["load", "element", "update"])
def test_numbers_that_another_thread_computes_with_do_not_change(compiled, change):
    """A replay of many numbers is one of the old parameters or one of the new, never of both."""
    table, one = compiled.Matrix.of([[1.0] * 512] * 2), compiled.Matrix.of([[0.0] * 512] * 2)
    moments = compiled.Matrix(2, 512), compiled.Matrix(2, 512)
    state = AdamState([table], [moments[0]], [moments[1]])
    element = table[0][0]
    replay = compiled.Replay(lambda ids: compiled.relu(compiled.embedding(table, ids)))
    ids = [0] * 2000
    replay(ids)
    seen, changes = [], [0]

    def compute():
        numbers = replay(ids).data
        seen.append([numbers[i, j] for i in (0, 500, 1000, 1999) for j in (0, 300, 511)])
        return len(seen) > 100

    def change_it():
        if change == "load":
            one.load([[float(changes[0])] * 512] * 2)
            table.load(one)
        elif change == "element":
            element.data = float(changes[0])
        else:
            for value in table[0]:
                value.grad = 1.0
            compiled.adam_update(state, 0.01)
        changes[0] += 1

    errors = in_threads(compute, change_it)
    assert set(errors) <= {"another thread is computing a part of this graph"}
    for numbers in seen:
        assert len(set(numbers[::3])) == 1, "rows of one time and rows of another"
        assert change == "element" or len(set(numbers)) == 1


def test_an_update_waits_for_no_thread_and_mixes_with_none(compiled):
    """Two threads that train the same parameters: a step is refused whole, or taken whole."""
    w = compiled.Matrix.of([[0.01] * 256] * 256)
    x = compiled.Matrix.of([[1.0] * 256] * 256)
    state = AdamState([w], [compiled.Matrix(256, 256)], [compiled.Matrix(256, 256)])
    taken = [0]

    def step():
        loss = compiled.mean(compiled.linear(x, w))
        compiled.adam_minimize(loss, state, 0.001)
        taken[0] += 1
        return taken[0] > 15

    errors = in_threads(step, step)
    allowed = ("another thread is computing a part", "numbers that linear was computed from")
    assert all(error.startswith(allowed) for error in errors)
    assert state.step == taken[0]
    # All entries have the same gradients, so they stay alike unless an update mixed with a sweep.
    assert all(len(set(matrix.tolist()[0])) == 1 for matrix in (w, state.m[0], state.v[0]))
    assert all(row == matrix.tolist()[0] for matrix in (w, state.m[0]) for row in matrix.tolist())


@pytest.mark.parametrize("reader", ["tolist", "load", "op", "mean", "replay"])
def test_numbers_that_an_update_changes_are_not_read_meanwhile(compiled, reader):
    """Of a step that lets other threads run, they see the numbers before or those after it."""
    w = compiled.Matrix.of([[0.01] * 256] * 256)
    x = compiled.Matrix.of([[1.0] * 256] * 256)
    copy = compiled.Matrix(256, 256)
    state = AdamState([w], [compiled.Matrix(256, 256)], [compiled.Matrix(256, 256)])
    replay = compiled.Replay(lambda ids: compiled.embedding(w, ids))
    means = []

    def step():
        compiled.adam_minimize(compiled.mean(compiled.linear(x, w)), state, 0.001)
        return state.step > 40

    def read():
        if reader == "tolist":
            numbers = w.tolist()
        elif reader == "load":
            copy.load(w)
            numbers = copy.tolist()
        elif reader == "op":
            numbers = compiled.relu(w).tolist()
        elif reader == "mean":
            means.append(compiled.mean(w).data)
            numbers = [[0.0]]
        else:
            numbers = replay(list(range(256)) * 4).tolist()
        assert len({number for row in numbers for number in row}) == 1
        return state.step > 40

    errors = in_threads(step, read)
    assert set(errors) <= {"another thread is computing a part of this graph"}
    assert len(set(means)) <= state.step + 1


# Anything in the middle of anything: a seeded campaign.

CALLBACKS = int(os.environ.get("MICROGPT_CALLBACKS", "400"))  # of each kind, on each core
DOCUMENTED = (TypeError, ValueError, IndexError, ArithmeticError, RuntimeError, Refused)


class World:
    """Some objects of a core that know each other, and what a call in progress does to them.

    act: what runs whenever Python is asked for something; it is given this world.
    """

    def __init__(self, c, act):
        self.c, self.act, self.inside = c, act, 0
        self.values = [c.Value(x) for x in (0.5, -1.5, 2.0)]
        self.values.append(self.values[0] * self.values[1])
        self.blocks = [c.Matrix.of(wave(3, 4, 0.1 * i)) for i in range(4)]
        self.blocks.append(c.softmax(self.blocks[0]))
        self.moments = [[c.Matrix(3, 4) for _ in range(2)] for _ in range(2)]
        self.step, self.beta1, self.beta2, self.eps = 0, 0.85, 0.99, 1e-8
        self.replay = c.Replay(self.f)
        self.prefixes = c.Prefixes(self.blocks[2:4])
        self.held = []

    def f(self, tokens, starts=None):
        x = self.c.embedding(self.blocks[0], tokens)
        self.happens()
        x = x + self.c.embedding(self.blocks[1], self.c.positions(tokens, starts, 3))
        return self.c.mean(self.c.attention(x, x, self.c.relu(x), 2, starts))

    def happens(self):
        """Run what is to run here, but not in the middle of itself for ever."""
        if self.inside < 2:
            self.inside += 1
            try:
                self.act(self)
            finally:
                self.inside -= 1

    def ends(self):
        """The same for a finaliser or a hook, whose errors would be printed, no more."""
        with contextlib.suppress(Refused):
            self.happens()

    # What a call is given in place of numbers, lists, a state.

    def number(self, x):
        return Meanwhile(lambda _: self.happens(), x)

    def some(self, items):
        return Some(self, items)

    def key(self):
        return WorldKey(self)

    def state(self, **others):
        return WorldState(self, **others)

    def numbers(self):
        """Return everything that can change, but the count of steps."""
        return [
            [(value.data, value.grad) for value in self.values],
            [(m.shape, m.tolist(), m.grad.tolist()) for m in self.blocks + sum(self.moments, [])],
        ]


class Some:
    """A sequence, or what can be iterated, whose every method does something else first."""

    def __init__(self, world, items):
        self.world, self.items = world, items

    def __iter__(self):
        for item in self.items:
            self.world.happens()
            yield item
        self.world.happens()

    def __len__(self):
        self.world.happens()
        return len(self.items)

    def __del__(self):
        self.world.ends()


class WorldKey:
    def __init__(self, world):
        self.world = world

    def __hash__(self):
        self.world.happens()
        return 1

    def __eq__(self, other):
        self.world.happens()
        return isinstance(other, WorldKey)


class WorldState:
    """The state of an Adam that is computed whenever it is looked at."""

    def __init__(self, world, **others):
        self._world, self._others = world, others

    def __getattr__(self, name):
        self._world.happens()
        if name in self._others:
            return self._others[name]
        if name == "params":
            return Some(self._world, self._world.blocks[:2])
        if name in ("m", "v"):
            return Some(self._world, self._world.moments[name == "v"])
        return self._world.number(getattr(self._world, name))

    def __setattr__(self, name, value):
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self._world.happens()
            setattr(self._world, name, value)


class WorldDraws(random.Random):
    """A generator and a cache, which do something else whenever they are asked."""

    def __init__(self, world):
        super().__init__(5)
        self.world, self.tokens = world, 0

    def random(self):
        self.world.happens()
        return super().random()

    @property
    def length(self):
        self.world.happens()
        return self.tokens

    @length.setter
    def length(self, tokens):
        self.world.happens()
        self.tokens = tokens


def draw(w):
    """Draw some documents, whose prefixes are computed once and then put back."""

    def after(ids):
        w.happens()
        return w.c.softmax(w.c.embedding(w.blocks[0], ids))

    draws, replay, documents = WorldDraws(w), w.c.Replay(after), []
    for _ in range(6):
        draws.length = 0
        documents.append(w.c.draw_tokens(
            replay, draws, w.blocks[4], 3, 3, draws, w.number(9), None, w.prefixes
        ))  # fmt: skip
    return documents


def subclass(w):
    class Named(w.c.Matrix):
        def __init__(self, rows, cols):
            w.happens()
            super().__init__(rows, cols)
            w.happens()

    return Named


def held_while(w, f):
    """Return f's second result while its first is held by somebody."""
    w.held.append(f())
    return f()


# What is called: every function of the core, Python in every place that can have it.
CALLS = {
    "Value": lambda w: w.c.Value(
        w.number(2), w.some(w.values[:3]), w.some([w.number(1), 0.5, w.number(-1)])
    ),
    "Value of one": lambda w: w.c.Value(w.number(2), w.some(w.values[3:]), w.some([w.number(3)])),
    "data": lambda w: setattr(w.values[0], "data", w.number(3)),
    "grad": lambda w: setattr(w.values[0], "grad", w.number(3)),
    "a + x": lambda w: w.values[3] + w.number(2),
    "x + a": lambda w: w.number(2) + w.values[3],
    "a - x": lambda w: w.values[3] - w.number(2),
    "x - a": lambda w: w.number(2) - w.values[3],
    "a * x": lambda w: w.values[3] * w.number(2),
    "x * a": lambda w: w.number(2) * w.values[3],
    "a / x": lambda w: w.values[3] / w.number(2),
    "x / a": lambda w: w.number(2) / w.values[2],
    "a ** x": lambda w: w.values[2] ** w.number(2),
    "element + x": lambda w: w.blocks[0][1][2] + w.number(2),
    "Matrix": lambda w: w.c.Matrix(w.number(2), w.number(3)),
    "of": lambda w: w.c.Matrix.of(w.some([w.some([w.number(1), 2.0]), [w.number(3), w.number(4)]])),
    "of a subclass": lambda w: subclass(w).of(w.some([w.some([w.number(1), 2.0])])),
    "a subclass": lambda w: subclass(w)(w.number(2), w.number(3)),
    "pack": lambda w: w.c.Matrix.pack(w.some([
        w.some([w.values[3], w.number(2)]), w.some([w.blocks[1][0][0], w.values[0]]),
    ])),
    "load": lambda w: w.blocks[2].load(w.some([w.some([w.number(i)] * 4) for i in range(3)])),
    "load of a view": lambda w: w.blocks[2][1:].load(w.some([[w.number(1)] * 4] * 2)),
    "load of another": lambda w: w.blocks[2].load(w.blocks[4]),
    "rows": lambda w: w.blocks[2][w.number(0):w.number(2)],
    "row": lambda w: sum(w.blocks[2][w.number(1)]),
    "element": lambda w: setattr(w.blocks[2][w.number(1)][2], "data", w.number(4)),
    "element's grad": lambda w: setattr(w.blocks[2][1][2], "grad", w.number(4)),
    "a + b": lambda w: w.blocks[0] + w.blocks[1],
    "embedding": lambda w: w.c.embedding(w.blocks[0], w.some([w.number(2), 0, w.number(2)])),
    "linear": lambda w: w.c.linear(w.blocks[0], w.blocks[1]),
    "rmsnorm": lambda w: w.c.rmsnorm(w.blocks[0]),
    "relu": lambda w: w.c.relu(w.blocks[0]),
    "softmax": lambda w: w.c.softmax(w.blocks[0], w.number(2)),
    "attention": lambda w: w.c.attention(*w.blocks[:3], w.number(2), w.some([0, w.number(2)])),
    "attention_weights": lambda w: w.c.attention_weights(
        *w.blocks[:2], w.number(2), w.some([w.number(0), w.number(1)])
    ),
    "cross_entropy": lambda w: w.c.cross_entropy(
        w.blocks[0], w.some([w.number(3), w.number(0), w.number(1)])
    ),
    "mean": lambda w: w.c.mean(w.blocks[4]),
    "positions": lambda w: list(w.c.positions(
        w.some([0] * 3), w.some([w.number(0), w.number(2)]), w.number(2)
    )),
    "backward": lambda w: w.c.mean(w.c.linear(w.blocks[4], w.blocks[1])).backward(),
    "adam_update": lambda w: w.c.adam_update(w.state(), w.number(1)),
    "adam_minimize": lambda w: w.c.adam_minimize(
        w.c.mean(w.c.linear(w.blocks[0], w.blocks[1])), w.state(), w.number(1)
    ),
    "replay": lambda w: w.replay([0, 2, 1], [0]),
    "replay again": lambda w: (w.replay([1, 2, 0], [0, 1]), w.replay([0, 1], [0]))[1],
    "replay of what is held": lambda w: held_while(w, lambda: w.replay([1, 2], None)),
    "replay with a key": lambda w: (w.replay([1], key=w.key()), w.replay([2, 1], key=w.key()))[1],
    "replay with a key that fits no more": lambda w: (
        w.replay([1], [0], key=w.key()), w.replay([2] * 3, [0, 3], key=w.key())
    )[1],
    "replay of others": lambda w: w.replay(w.some([w.number(1), 2]), w.some([w.number(0)])),
    "under no_grad": lambda w: w.c.no_grad()(lambda: w.c.softmax(w.blocks[0], w.number(2)))(),
    "what does not fit": lambda w: w.c.attention(*w.blocks[:3], w.number(3), w.some([0])),
    "entries that are none": lambda w: w.blocks[2].load(w.some([w.some([w.number(1), "a"])] * 3)),
    "load of what was drawn": draw,
    "ids out of range": lambda w: w.c.embedding(w.blocks[0], w.some([w.number(0), w.number(3)])),
}  # fmt: skip


# What happens meanwhile and changes nothing.


def again(w, rng):
    with pytest.raises(TypeError):
        rng.choice(w.values).__init__(w.number(1))
    for make_again in (w.blocks[0].__init__, w.blocks[4].__init__):
        with pytest.raises(TypeError):
            make_again(7, 7)
    with pytest.raises(TypeError):
        w.replay.__init__(len)


def differentiate(w, rng):
    """Run backward, and give back the gradients that were there."""
    leaves = w.values + [value for m in w.blocks for row in m for value in row]
    before = [value.grad for value in leaves]
    x = w.c.linear(w.blocks[0], w.blocks[rng.randrange(4)])
    (w.c.mean(x) * w.values[3] + w.c.mean(w.c.softmax(x))).backward()
    for value, grad in zip(leaves, before, strict=True):
        value.grad = grad


def make_junk(w, rng):
    with pytest.raises(ValueError):
        w.c.Matrix(rng.randrange(2, 40), 3) + w.c.Matrix(1, 1)
    [w.c.Value(i) * 2 for i in range(rng.randrange(100))]
    cycle = [w.values[0] * 2, w.blocks[0][1:], w.c.Replay(w.f)]
    cycle.append(cycle)


def collect(w, rng):
    gc.collect(rng.randrange(3))


def copy_all(w, rng):
    assert copy.deepcopy(w.blocks[0]).tolist() == w.blocks[0].tolist()
    assert pickle.loads(pickle.dumps(w.values[0])).data == w.values[0].data
    copy.copy(w.blocks[rng.randrange(5)])


def look(w, rng):
    m = rng.choice(w.blocks)
    repr(m), m.tolist(), m.data, m[1:].grad, len(m), [row[0]._children for row in m]
    w.held.append(rng.choice([m[1:], m[1][2], m.data, m.grad, iter(m)]))
    [(v._op, v._children, v._local_grads, repr(v)) for v in w.values]
    del w.held[:-3]


def call_it(w, rng):
    """Make another call in the middle of the first; it changes nothing either."""
    name = rng.choice([name for name in CALLS if not name.startswith(CHANGING)])
    with contextlib.suppress(*DOCUMENTED):
        w.held.append(CALLS[name](w))


def forget(w, rng):
    w.held.clear()


def in_another_thread(w, rng):
    """By the bare call, for the locks of `threading` know no finalisers in their middle."""
    act, done = rng.choice([look, copy_all, make_junk]), _thread.allocate_lock()

    def work():
        try:
            act(w, rng)
        finally:
            done.release()

    done.acquire()
    _thread.start_new_thread(work, ())
    done.acquire()


CHANGING = ("data", "grad", "load", "element", "backward", "adam", "entries")
NEUTRAL = [again, differentiate, make_junk, collect, copy_all, look, call_it, forget,
           in_another_thread]  # fmt: skip


# What happens meanwhile and changes numbers, or takes references away.


def load(w, rng):
    rng.choice(w.blocks).load(wave(3, 4, rng.random()))


def set_entry(w, rng):
    rng.choice(w.blocks)[rng.randrange(3)][rng.randrange(4)].data = rng.random()
    rng.choice(w.values[:3]).data = rng.random() + 0.1


def set_gradient(w, rng):
    rng.choice(w.blocks)[rng.randrange(3)][rng.randrange(4)].grad = rng.random()


def learn(w, rng):
    w.c.mean(w.c.relu(rng.choice(w.blocks))).backward()
    w.c.adam_update(AdamState(w.blocks[:2], *w.moments), 0.01)


def exchange(w, rng):
    """Take the last references of the world to some of its objects away."""
    w.blocks[rng.randrange(5)] = w.c.Matrix.of(wave(3, 4, rng.random()))
    w.values[rng.randrange(4)] = w.c.Value(rng.random() + 0.1)
    w.moments[rng.randrange(2)][rng.randrange(2)] = w.c.Matrix(3, 4)
    w.replay = w.c.Replay(w.f)


def call_anything(w, rng):
    with contextlib.suppress(*DOCUMENTED):
        w.held.append(rng.choice(list(CALLS.values()))(w))


def fail(w, rng):
    raise Refused


MUTATING = [load, set_entry, set_gradient, learn, exchange, call_anything, forget, collect, fail]


def outcome(call):
    """Return what a call gave, and the gradients that flow from it, or the error."""
    try:
        result = call()
    except DOCUMENTED as error:
        return type(error), str(error)
    if hasattr(result, "tolist"):
        return type(result).__name__, result.shape, result.tolist()
    return result.data if hasattr(result, "backward") else result


def run_call(c, name, act, way):
    """Run one call in a new world; return the outcome, then what it left behind, and the world."""
    world = World(c, act)
    results = []

    def call():
        if way == "profile":
            sys.setprofile(lambda *_: world.ends())
        try:
            results.append(CALLS[name](world))
        finally:
            sys.setprofile(None)
        return results[-1]

    if way == "collector":
        threshold = gc.get_threshold()
        for _ in range(5):
            cycle = Some(world, [])
            cycle.itself = cycle
            del cycle
        gc.set_threshold(1)
    try:
        result = outcome(call)
    finally:
        if way == "collector":
            gc.set_threshold(*threshold)
    world.act = lambda w: None
    if results and hasattr(results[0], "shape"):
        results[0] = c.mean(results[0])
    if results and hasattr(results[0], "backward"):
        with contextlib.suppress(RuntimeError):  # of numbers that have changed
            results[0].backward()
    return result, world.numbers(), world


def check(c, w):
    """Whatever was done to a world, it is one in which everything works as always."""
    for m in w.blocks + sum(w.moments, []):
        assert m.shape == (3, 4)
        copied = c.Matrix.of(m.tolist())
        assert c.linear(m, m).tolist() == c.linear(copied, copied).tolist()
    for ids in ([0, 2, 1], [0]), ([1, 2], [0, 1]), ([0, 2, 1], None):
        assert w.replay(*ids).data == w.f(*ids).data
    assert c.grad_enabled()


WAYS = ["arguments", "arguments", "profile", "collector"]


@pytest.mark.parametrize("acts", [NEUTRAL, MUTATING], ids=["neutral", "mutating"])
def test_anything_may_run_in_the_middle_of_anything(core, acts):
    """What changes nothing leaves the outcome of every call to the bit; what does, the rest."""
    count, seed, names, start = 0, 0, list(CALLS), time.monotonic()
    expected = {name: run_call(core, name, lambda w: None, "arguments")[:2] for name in names}
    while count < CALLBACKS:
        rng = random.Random(f"{acts is NEUTRAL}/{seed}")
        name, way = names[seed % len(names)], rng.choice(WAYS)
        often, most = rng.choice([0.05, 0.3, 1.0]), count + 8
        seed += 1

        def act(w, rng=rng, often=often, most=most):
            nonlocal count
            if rng.random() < often and count < most:
                count += 1
                try:
                    rng.choice(acts)(w, rng)
                except RuntimeError:
                    if acts is NEUTRAL:
                        raise

        result, numbers, world = run_call(core, name, act, way)
        if acts is NEUTRAL:
            assert repr((result, numbers)) == repr(expected[name]), (name, way, seed, result)
        check(core, world)
    print(f"{count} callbacks in {seed} calls, {time.monotonic() - start:.1f} s")
