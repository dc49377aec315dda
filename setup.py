"""Build the compiled core. Everything else about the package is in pyproject.toml.

MICROGPT_REQUIRE_EXTENSION=1: a failed build is an error; else the pure-Python core is used.
MICROGPT_NO_EXTENSION=1: build a pure wheel. Both are 0 by default.
"""

import os
import sys

from setuptools import Extension, setup

# The files that the sources include.
PARTS = ("_memory.pxi", "_graph.pxi", "_sharing.pxi", "_replay.pxi", "_sampling.pxi")
HEADERS = ("_kernels.h", "_vec.h", "_vec64.h", "_vec32.h")
KERNELS = [f"_kernels{bits}{level}.c" for bits in ("", "32") for level in ("", "_avx2", "_avx512")]


def asked(variable):
    value = os.environ.get(variable) or "0"
    if value not in ("0", "1"):
        raise SystemExit(f"{variable} must be 0 or 1, not {value!r}")
    return value == "1"


def core():
    from Cython.Build import cythonize

    unix = [
        "-O3",
        "-ffp-contract=off",  # no fused multiply-add: it rounds once where Python rounds twice
        "-fno-math-errno",  # lets the compiler vectorise sqrt
        "-fno-builtin-pow",  # else pow(x, 2.0) becomes x * x, which can differ in the last bit
    ]
    extension = Extension(
        "microgpt._core",
        [f"src/microgpt/{name}" for name in ("_core.pyx", "_levels.c", *KERNELS)],
        depends=[f"src/microgpt/{name}" for name in (*PARTS, *HEADERS, *KERNELS)],
        extra_compile_args=["/O2", "/fp:precise"] if sys.platform == "win32" else unix,
    )
    modules = cythonize([extension], language_level=3)
    for module in modules:  # cythonize does not pass `optional` on
        module.optional = not required
    return modules


required, pure = asked("MICROGPT_REQUIRE_EXTENSION"), asked("MICROGPT_NO_EXTENSION")
if required and pure:
    raise SystemExit("MICROGPT_REQUIRE_EXTENSION and MICROGPT_NO_EXTENSION exclude each other")
setup(ext_modules=[] if pure else core())
