"""Which core is loaded: the one asked for, and never silently another."""

import importlib.util
import os

import pytest
from processes import output_of, run

HAS_COMPILED_CORE = importlib.util.find_spec("microgpt._core") is not None

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
