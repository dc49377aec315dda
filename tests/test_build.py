"""What the build promises: the backend asked for, depth, memory, threads.

What may crash, or needs its own process to be measured, runs in one.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap
import threading

import pytest

HAS_COMPILED_CORE = importlib.util.find_spec("microgpt._core") is not None


def run(code, core=None, backend=None, timeout=300):
    """Run code in a new Python; `core` is the module of the given core there."""
    environment = {key: value for key, value in os.environ.items() if key != "MICROGPT_BACKEND"}
    if backend is not None:
        environment["MICROGPT_BACKEND"] = backend
    start = f"import {core.__name__}; core = {core.__name__}\n" if core else ""
    start += "Value, Matrix = core.Value, core.Matrix\n" if core else ""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", start + textwrap.dedent(code)],
        capture_output=True, text=True, env=environment, timeout=timeout,
    )  # fmt: skip


def output_of(code, core=None, backend=None):
    done = run(code, core, backend)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.split()


# The backend.

SHOW = "import microgpt; print(microgpt.BACKEND, microgpt.Value.__module__)"


def test_python_is_loaded_when_asked_for():
    assert output_of(SHOW, backend="python") == ["python", "microgpt._core_py"]


def test_cython_is_loaded_when_asked_for(compiled):
    assert output_of(SHOW, backend="cython") == ["cython", compiled.__name__]


@pytest.mark.parametrize("backend", [None, "", "auto"])
def test_the_compiled_core_is_the_default_where_it_was_built(backend):
    name = "cython" if HAS_COMPILED_CORE else "python"
    assert output_of(SHOW, backend=backend)[0] == name


def test_this_process_has_the_backend_that_was_asked_for():
    import microgpt

    asked = os.environ.get("MICROGPT_BACKEND") or "auto"
    assert microgpt.BACKEND == {"auto": "cython" if HAS_COMPILED_CORE else "python"}.get(
        asked, asked
    )


@pytest.mark.parametrize("backend", ["nonsense", "Cython", "python "])
def test_an_unknown_backend_is_an_error_that_names_the_choices(backend):
    done = run("import microgpt; microgpt.Value", backend=backend)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError") and repr(backend) in last
    assert all(choice in last for choice in ("auto", "cython", "python"))


# In place of an installation without the compiled core: sys.modules says that it is missing.
WITHOUT = """
import importlib.abc, sys
class NotBuilt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "microgpt._core":
            raise {error}
sys.meta_path.insert(0, NotBuilt())
"""
NOT_BUILT = WITHOUT.format(error="ModuleNotFoundError(f'No module named {name!r}', name=name)")
BROKEN = WITHOUT.format(error="ImportError('undefined symbol: broken')")


def test_without_the_compiled_core_auto_falls_back():
    assert output_of(NOT_BUILT + SHOW) == ["python", "microgpt._core_py"]


def test_without_the_compiled_core_asking_for_it_is_an_error():
    done = run(NOT_BUILT + SHOW, backend="cython")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ImportError") and "not built" in last and "microgpt._core" in last


@pytest.mark.parametrize("backend", ["auto", "cython"])
def test_a_broken_compiled_core_is_an_error_and_no_fallback(backend):
    done = run(BROKEN + SHOW, backend=backend)
    assert done.returncode == 1
    assert "undefined symbol: broken" in done.stderr.splitlines()[-1]


def test_importing_the_core_imports_only_the_standard_library(core):
    code = """
    import sys
    print(*[name for name in ("numpy", "tqdm", "Cython", "random") if name in sys.modules])
    """
    assert output_of(code, core) == []


# Numbers.


def test_subnormals_survive(core):
    """A library built with fast-math would flush them to 0 for the whole process."""
    smallest = 5e-324
    assert (core.Value(smallest) * 1).data == smallest
    assert (core.Value(2.2250738585072014e-308) * 0.5).data == 1.1125369292536007e-308
    assert core.Value(-744).exp().data > 0.0
    m = core.Matrix.of([[smallest, 1e-310]])
    assert (m + m).tolist() == [[2 * smallest, 2e-310]]
    assert core.linear(m, core.Matrix.of([[1, 0]])).tolist() == [[smallest]]
    core.mean(m).backward()
    assert smallest * 1.0 > 0.0


# Depth and width.

CHAIN = """
x = Value(1)
y = x
for _ in range({n}):
    y = y + 1
middle = y._children[0]
{more}
y.backward()
print(y.data, x.grad, middle.grad)
del y
print(middle.data)
del middle
"""
PEAK = """
import resource, sys
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak * (1 if sys.platform == "darwin" else 1024))
"""


def test_a_chain_of_one_hundred_thousand_values(core):
    code = CHAIN.format(n=100_000, more="")
    assert output_of(code, core) == ["100001.0", "1.0", "1.0", "100000.0"]


def test_a_chain_of_ten_million_values(compiled):
    """Ten million additions and as many constants, at 64 bytes, and the sort beside them."""
    pytest.importorskip("resource")
    code = CHAIN.format(n=10_000_000, more="") + textwrap.dedent(PEAK)
    *numbers, peak = output_of(code, compiled)
    assert numbers == ["10000001.0", "1.0", "1.0", "10000000.0"]
    assert int(peak) < 3 * 2**30


@pytest.mark.parametrize("way", ["thread", "exit", "exception", "handles"])
def test_a_deep_graph_ends_without_recursion(core, way):
    n = 1_000_000 if core.__name__.endswith("._core") else 50_000
    code = {
        "thread": """
            import threading
            threading.stack_size(64 * 1024)
            seen = []
            def work():
                y = x = Value(1)
                for _ in range(N):
                    y = y * 1
                y.backward()
                seen.append(x.grad)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            print(*seen)
        """,
        "exit": """
            y = x = Value(1)
            for _ in range(N):
                y = y * 1
            y.backward()
            print(x.grad)
        """,
        "exception": """
            def fail():
                y = x = Value(1)
                for _ in range(N):
                    y = y * 1
                y.backward()
                raise KeyError(x.grad)
            try:
                fail()
            except KeyError as error:
                print(error)
        """,
        "handles": """
            y = x = Value(1)
            kept = []
            for i in range(N):
                y = y * 1
                if i % 1000 == 0:
                    kept.append(y)
            y.backward()
            del y
            kept = kept[::3]
            kept.reverse()
            del kept[5:]
            print(x.grad)
        """,
    }[way]
    assert output_of(f"N = {n}\n" + textwrap.dedent(code), core) == ["1.0"]


def test_a_deep_chain_of_blocks(core):
    n = 200_000 if core.__name__.endswith("._core") else 10_000
    code = f"""
    x = Matrix.of([[1, 2]])
    y = x
    for _ in range({n}):
        y = core.relu(y)
    core.mean(y).backward()
    print(x.grad.tolist()[0][0])
    """
    assert output_of(code, core) == ["0.5"]


def test_views_of_views_to_any_depth(core):
    code = """
    m = Matrix.of([[1], [2]])
    view = m
    for _ in range(50_000):
        view = view[0:]
    core.mean(view).backward()
    print(m.grad.tolist())
    """
    assert "".join(output_of(code, core)) == "[[0.5],[0.5]]"


@pytest.mark.parametrize("shape", ["children", "parents"])
def test_a_node_with_a_million_children_or_parents(core, shape):
    n = 1_000_000 if core.__name__.endswith("._core") else 100_000
    code = {
        "children": """
            leaves = [Value(1) for _ in range(N)]
            y = Value(0, leaves, [2] * N)
            del leaves[1:]
            y.backward()
            print(leaves[0].grad, len(y._children))
            del y
        """,
        "parents": """
            x = Value(1)
            parents = [x * 2 for _ in range(N)]
            y = Value(0, parents, [1] * N)
            del parents
            y.backward()
            print(x.grad / N, len(y._children))
            del x
        """,
    }[shape]
    assert output_of(f"N = {n}\n" + textwrap.dedent(code), core) == ["2.0", str(n)]


# Memory.

STEPS = {
    "scalars": """
        x = Value(0.5)
        def step():
            y = x
            for _ in range(300):
                y = (y * 0.5 + x) / 1.5 - (x ** 2).relu()
            (y + (x * x).exp().log()).backward()
    """,
    "custom ops": """
        x = Value(0.5)
        def step():
            y = x
            for n in range(60):
                y = Value(1.0, [y, x] * n + [y], [0.01] * (2 * n + 1))
            y.backward()
    """,
    "blocks": """
        table, w = Matrix.of([[0.1] * 8] * 9), Matrix.of([[0.1] * 8] * 8)
        class state:
            params, m, v = [table], [Matrix(9, 8)], [Matrix(9, 8)]
            step, beta1, beta2, eps = 0, 0.85, 0.99, 1e-8
        def step():
            for n in range(1, 9):
                x = core.rmsnorm(core.embedding(table, list(range(n))))
                x = x + core.attention(core.linear(x, w), x, x, 2, [0])
                x = core.relu(x) + core.softmax(x)
                weights = core.attention_weights(x, x, 4)
                loss = core.mean(core.cross_entropy(x, [0] * n)) + core.mean(weights)
                loss.backward()
                core.adam_update(state, 0.01)
                core.adam_minimize(core.mean(core.linear(x, w)), state, 0.01)
    """,
    "replays": """
        table, w = Matrix.of([[0.1] * 8] * 9), Matrix.of([[0.1] * 8] * 8)
        def mean_loss(tokens, starts):
            x = core.embedding(table, tokens) + core.embedding(w, core.positions(tokens, starts, 8))
            x = core.attention(core.linear(x, w), x, x, 2, starts)
            return core.mean(core.cross_entropy(x, tokens))
        replay, kept = core.Replay(mean_loss), []
        def step():
            for n in range(1, 8):
                replay([0, 1] * n, [0]).backward() if n < 5 else None
                replay([0, 1] * n, [0, n]).backward()
                kept[:] = [replay([0] * n, [0])]
            core.Replay(mean_loss)([0], [0])
    """,
    "no_grad": """
        m, x = Matrix.of([[0.1] * 8] * 8), Value(2)
        def step():
            with core.no_grad():
                y = core.attention(core.linear(m, m), m, m, 2)
                core.mean(core.softmax(y))
                Matrix.pack([[x + i for i in range(9)]])
                Value(1, [x, x, x], [1, 1, 1])
    """,
    "elementwise": """
        m, row = Matrix.of([[0.1] * 8] * 8), Matrix.of([[0.5] * 8])
        replay = core.Replay(lambda ids: core.mean((core.embedding(m, ids) - 0.3).log()))
        def step():
            y = ((m * row + 1) / (row - m * 2) ** 3).tanh().exp().log() - m[2:3] * -m
            core.mean(1 / (y.relu() + 2)).backward()
            with core.no_grad():
                2 - y * row
            for _ in range(3):
                m.load([[0.5] * 8] * 8)
                replay([0, 1]); replay([0, 1, 2])
                m[0][0].data = 0.1
                try:
                    replay([0, 1])
                except ValueError:
                    pass
    """,
    "views and elements": """
        m = Matrix.of([[0.1] * 8] * 64)
        def step():
            parts = [m[i:] for i in range(32)] + [m[i:][1:] for i in range(32)]
            total = core.mean(parts[3] + parts[34])
            for row in m[::1]:
                for value in row:
                    total = total + value * value
            total.backward()
            elements = [value for row in m + m for value in row]
            elements[7].backward()
    """,
    "packs": """
        x, m = Value(0.5), Matrix.of([[0.1] * 8] * 8)
        def step():
            pack = Matrix.pack([[x, x * 2, 3.0, m[1][2]] * 4] * 8)
            core.mean(core.softmax(pack)).backward()
            Matrix.pack([[value] for row in m for value in row])
    """,
    "buffers": """
        def step():
            m = Matrix.of([[0.1] * 8] * 8)
            views = [m.data, m.grad, m[2:].data, m[2:].grad, (m + m).data]
            [memoryview(view).tolist() for view in views]
            del m
    """,
    "copies": """
        import copy, pickle
        m, x = Matrix.of([[0.1] * 8] * 8), Value(2)
        def step():
            copy.deepcopy([m, x]); pickle.loads(pickle.dumps([m, x]))
            m.load(m.tolist()); m.load(m + m); m.load(Matrix(8, 8))
            Value(3, [x, x, x], [1, 2, 3])
            Value.__new__(Value); Matrix.__new__(Matrix, 2, 3)
    """,
    "errors": """
        m, x = Matrix.of([[0.1] * 8] * 8), Value(0)
        calls = [
            lambda: x.log(), lambda: x ** -1, lambda: x / 0, lambda: x + "a", lambda: x ** x,
            lambda: Value("a"), lambda: Value(1, [x], []), lambda: Value(1, [x, 2], [1, 2]),
            lambda: Value(1, [x, x], [1, "a"]), lambda: Matrix(0, 1), lambda: Matrix(1, "a"),
            lambda: Matrix.of([[1], [2, 3]]), lambda: Matrix.of([[1, "a"]]),
            lambda: Matrix.pack([[x, None]]), lambda: m.load([[1]]), lambda: m[99],
            lambda: m[::2], lambda: m["a"], lambda: core.embedding(m, [99]),
            lambda: core.embedding(m, [0, "a"]), lambda: core.embedding(m, []),
            lambda: core.embedding(m, [10 ** 30]), lambda: m + Matrix(1, 1), lambda: m + x,
            lambda: m - m[:2], lambda: m * "a", lambda: m ** m, lambda: m / 0, lambda: m / (m - m),
            lambda: (m - m).log(), lambda: (m * 1e4).exp(), lambda: (m - 1) ** 0.5,
            lambda: core.linear(m, Matrix(1, 1)), lambda: core.linear(m, None),
            lambda: core.attention(m, m, m, 3), lambda: core.attention(m, m, m, 2, [1]),
            lambda: core.attention(m, m, m, 2, ["a"]), lambda: core.attention(m, m[1:], m, 2),
            lambda: core.attention_weights(m, m, 0), lambda: core.cross_entropy(m, [0]),
            lambda: core.cross_entropy(m, [0] * 7 + [99]), lambda: core.mean(None),
            lambda: core.adam_update([m], [m], [m[1:]], 0, 0.1), lambda: setattr(x, "data", "a"),
        ]
        def step():
            for call in calls:
                try:
                    call()
                except (TypeError, ValueError, ArithmeticError, LookupError):
                    pass
                else:
                    raise AssertionError("no error")
    """,
}

MEASURE = """
import gc, os
def memory():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def objects():
    gc.collect()
    return len(gc.get_objects())
for _ in range(WARM):
    step()
before, objects_before = memory(), objects()
for _ in range(STEPS):
    step()
print(memory() - before, objects() - objects_before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc to measure memory")
@pytest.mark.parametrize("name", STEPS)
def test_memory_stays_flat_over_many_steps(core, name):
    """A leaked node of 64 bytes per step would not show in the compiled core, ten would."""
    warm, steps = (300, 2000) if core.__name__.endswith("._core") else (5, 25)
    code = f"WARM, STEPS = {warm}, {steps}\n" + textwrap.dedent(STEPS[name]) + MEASURE
    grown, more_objects = map(int, output_of(code, core))
    # Python's allocator keeps or returns pieces of 1 MiB, which only the pure core's objects fill.
    assert grown < (512 if warm == 300 else 1536) * 1024
    assert more_objects < 20


def test_the_pure_core_makes_no_reference_cycles(core):
    """So that the cyclic collector can rest during training."""
    code = """
    import gc
    gc.disable()
    m, x = Matrix.of([[0.1] * 4] * 4), Value(2)
    def step():
        y = core.mean(core.softmax(core.linear(core.rmsnorm(m), m))) * x.exp() + x ** 2
        y.backward()
        with core.no_grad():
            core.attention(m, m, m, 2)
    step()
    gc.collect()
    for _ in range(20):
        step()
    print(gc.collect())
    """
    assert output_of(code, core) == ["0"]


def test_a_large_graph_gives_its_memory_back(compiled):
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc to measure memory")
    code = """
    x = Value(1)
    def step():
        y = x
        for _ in range(1_000_000):
            y = y * 1
    WARM, STEPS = 0, 1
    """
    grown, _ = map(int, output_of(textwrap.dedent(code) + MEASURE, compiled))
    assert grown < 64 * 2**20  # the graph took 128 MiB; 16 MiB of it are kept for the next


def test_nodes_left_alive_here_and_there_do_not_stop_the_reuse_of_the_rest(compiled):
    """Every thousandth node survives its graph, for ever; the places of the others are reused."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc to measure memory")
    code = """
    kept = []
    def step():
        values = [Value(i) for i in range(10_000)]
        kept.extend(values[::1000])
    WARM, STEPS = 100, 2000
    """
    grown, _ = map(int, output_of(textwrap.dedent(code) + MEASURE, compiled))
    assert grown < 16 * 2**20  # 20,000 values and their list; all would be 1.2 GiB


def test_what_a_buffer_comes_from_cannot_be_misused(compiled):
    """The object behind `m.data` can be reached, so its type can be called."""
    code = """
    m = Matrix(300, 300)
    try:
        print(memoryview(type(m.data.obj)(m, True))[299, 299])
    except TypeError:
        print(0.0)
    """
    assert output_of(code, compiled) == ["0.0"]


def test_finalisers_that_make_nodes_in_the_middle_of_everything_do_no_harm(core):
    code = """
    import gc
    class Finalised:
        def __del__(self):
            Value(9) * 2
            Matrix(2, 2)[0]
    gc.set_threshold(1)
    m = Matrix.of([[1, 2, 3]] * 7)
    for i in range(300):
        cycle = Finalised()
        cycle.itself = cycle
        del cycle
        y = Value(i) * 2
        total = m[i % 7][1] * 1.0 + y + core.mean(m + m)
        total.backward()
        assert (y._children[0].data, y.grad, total.data) == (i, 1.0, 2.0 + 2 * i + 4.0)
    """
    assert output_of(code, core) == []


# Threads.


def test_backward_in_two_threads_on_separate_graphs(core):
    n = 200 if core.__name__.endswith("._core") else 10
    results = {}

    def work(seed):
        x = core.Matrix.of([[0.1 * seed * (j + 1) for j in range(16)] for _ in range(8)])
        w = core.Matrix.of([[0.01 * (i + j) for j in range(16)] for i in range(16)])
        s = core.Value(seed)
        for _ in range(n):
            with core.no_grad():
                core.relu(x)
            y = core.attention(core.linear(core.rmsnorm(x), w), x, x, 4)
            (core.mean(core.softmax(y) + y) * s).backward()
        results[seed, threading.current_thread() is threading.main_thread()] = (
            x.grad.tolist(), w.grad.tolist(), s.grad,
        )  # fmt: skip

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2, 3):
        work(seed)
        assert results[seed, False] == results[seed, True]


def test_a_graph_in_use_by_another_thread_is_refused_or_waited_for(compiled):
    """Large blocks, so that the other thread can run meanwhile."""
    x = compiled.Matrix.of([[0.5] * 256] * 256)
    loss = compiled.mean(compiled.linear(compiled.linear(x, x), x))
    loss.backward()
    once = x.grad.tolist()
    done, errors = [0], []

    def work():
        for _ in range(10):
            try:
                loss.backward()
                done[0] += 1
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(errors) <= {"another thread is computing a part of this graph"}
    assert done[0] + len(errors) == 30 and done[0] > 0
    loss.backward()
    expected = once[0][0] * (done[0] + 2)
    assert x.grad[0, 0] == pytest.approx(expected, rel=1e-9)

SECOND = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import sys
code = f'''
import os, sys
sys.path[:] = {sys.path!r}
os.environ["MICROGPT_BACKEND"] = ""
try:
    import microgpt.core
except ImportError as error:
    print("refused:", error)
os.environ["MICROGPT_BACKEND"] = "python"
import microgpt.core as core
x = core.Value(2)
(x * 3).backward()
print(core.BACKEND, x.grad, flush=True)
'''
failed = interpreters.run_string(interpreters.create(), code)
print(failed or "", core.BACKEND, (core.Value(2) * 3).data)
"""


def has_subinterpreters():
    return any(map(importlib.util.find_spec, ["_interpreters", "_xxsubinterpreters"]))


@pytest.mark.skipif(not has_subinterpreters(), reason="needs the module of sub-interpreters")
def test_a_second_interpreter_is_told_to_use_the_pure_core(compiled):
    done = run("import microgpt.core as core\n" + SECOND, backend="cython")
    assert done.returncode == 0, done.stderr
    refused, second, first = done.stdout.splitlines()
    assert refused == (
        "refused: the compiled core works in one interpreter per process: "
        "set MICROGPT_BACKEND=python in the others"
    )
    assert (second.split(), first.split()) == (["python", "3.0"], ["cython", "6.0"])


# More parents than a node can count.


MANY = """
import ctypes, gc

def node_of(handle):
    return ctypes.c_void_p.from_address(id(handle) + 16).value

def refs_of(node):
    return ctypes.c_uint32.from_address(node + 8)

LIMIT = 2**32 - 1
"""


def test_parents_beyond_the_count_neither_free_nor_corrupt_a_value(compiled):
    code = MANY + """
x = Value(1.5)
node = node_of(x)
assert refs_of(node).value == 1, "a Value is not laid out as this test believes"
parents = [x * 2.0 for _ in range(3)]
assert refs_of(node).value == 4
refs_of(node).value = LIMIT - 2
parents += [x * 2.0 for _ in range(5)] + [Value(0.0, (x, x, x), (1.0, 1.0, 1.0))]
assert refs_of(node).value == LIMIT
sum(parents).backward()
print(x.grad)
kept = parents.pop()
del parents
assert refs_of(node).value == LIMIT
del x
gc.collect()
junk = [Value(9.0) * 8.0 for _ in range(100_000)]
assert all(node_of(value) != node for value in junk)
again = kept._children[2]
assert node_of(again) == node
print(again.data, again.grad)
kept.backward()
print(again.grad)
del kept, junk, again
gc.collect()
junk = [Value(9.0) for _ in range(100_000)]
print(ctypes.c_double.from_address(node + 16).value, refs_of(node).value == LIMIT)
"""
    assert output_of(code, compiled) == ["19.0", "1.5", "19.0", "22.0", "1.5", "True"]


def test_parents_beyond_the_count_neither_free_nor_corrupt_a_matrix(compiled):
    code = MANY + """
m = Matrix.of([[1.0, 2.0], [3.0, -4.0]])
node = node_of(m)
assert refs_of(node).value == 1
replay = core.Replay(lambda ids: core.mean(core.embedding(m, ids)))
refs_of(node).value = LIMIT - 3
for _ in range(3):
    print(replay([0, 1]).data)
kept = [m[1:], m[0][1], core.relu(m), m.data, m + m]
assert refs_of(node).value == LIMIT
core.mean(kept[4] + kept[2]).backward()
del m, replay, kept[2:]
gc.collect()
junk = [Matrix.of([[7.0, 7.0], [7.0, 7.0]]) for _ in range(10_000)]
print(kept[0].tolist(), kept[1].data, kept[1].grad)
del kept
print(ctypes.c_uint8.from_address(node + 14).value == 13, refs_of(node).value == LIMIT)
"""
    assert output_of(code, compiled) == [
        "0.5", "0.5", "0.5", "[[3.0,", "-4.0]]", "2.0", "0.75", "True", "True",
    ]  # fmt: skip
