"""Build the compiled core. Everything else about the package stands in pyproject.toml.

MICROGPT_REQUIRE_EXTENSION=1: a failed build is an error; else the pure-Python core serves.
MICROGPT_NO_EXTENSION=1: build a pure wheel.
"""

import os
import sys

from setuptools import Extension, setup


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
        ["src/microgpt/_core.pyx", "src/microgpt/_kernels.c", "src/microgpt/_kernels_avx2.c"],
        depends=["src/microgpt/_kernels.h", "src/microgpt/_vec.h"],
        extra_compile_args=["/O2", "/fp:precise"] if sys.platform == "win32" else unix,
    )
    modules = cythonize([extension], language_level=3)
    for module in modules:  # cythonize does not pass `optional` on
        module.optional = os.environ.get("MICROGPT_REQUIRE_EXTENSION") != "1"
    return modules


setup(ext_modules=[] if os.environ.get("MICROGPT_NO_EXTENSION") == "1" else core())
