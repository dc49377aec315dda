"""Graphs of any depth and width are built, run backward and freed."""

import textwrap

import pytest
from ops import is_compiled
from processes import output_of

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
    n = 1_000_000 if is_compiled(core) else 50_000
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
    n = 200_000 if is_compiled(core) else 10_000
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
    n = 1_000_000 if is_compiled(core) else 100_000
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
