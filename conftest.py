"""Fixtures of the tests and the benchmarks."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

# Where the compiled core is not built the tests ask for the other one: else each training says so.
if importlib.util.find_spec("microgpt._core") is None:
    os.environ.setdefault("MICROGPT_BACKEND", "python")

# A shell lets what it starts in the background ignore Ctrl-C, and so would every process of a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Mark what does the same under every MICROGPT_BACKEND: the tests that are given their core."""
    for item in items:
        if {"core", "cores", "compiled"} & set(item.fixturenames):
            item.add_marker("given_core")


def _compiled_core():
    try:
        return importlib.import_module("microgpt._core")
    except ModuleNotFoundError:
        if os.environ.get("MICROGPT_BACKEND") == "cython":
            raise
        pytest.skip("the compiled core was not built")


def _pure_core():
    return importlib.import_module("microgpt._core_py")


@pytest.fixture(scope="session", params=["cython", "python"])
def core(request):
    """Give each of the two cores in turn."""
    return _compiled_core() if request.param == "cython" else _pure_core()


@pytest.fixture(scope="session")
def compiled():
    """Give the compiled core, for promises that only it makes."""
    return _compiled_core()


@pytest.fixture
def levels(compiled):
    """Give the instruction-set levels of this machine; restore the one that was in use."""
    before = compiled._level()
    yield compiled._levels()
    compiled._level(before)


@pytest.fixture(scope="session")
def cores():
    """Give both cores, the specification first."""
    return _pure_core(), _compiled_core()


@pytest.fixture(scope="session")
def reference():
    """Give the folder with the data and the records of the original program."""
    folder = os.environ.get("MICROGPT_REFERENCE")
    if not folder:
        pytest.skip("MICROGPT_REFERENCE is not set")
    folder = Path(folder)
    for name in ("data/names.txt", "golden/default.json"):
        if not (folder / name).is_file():
            pytest.skip(f"MICROGPT_REFERENCE has no {name}")
    return folder
