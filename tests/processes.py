"""Code of the tests that runs in a Python of its own: it may crash there, and is measured alone."""

import os
import re
import subprocess
import sys
import textwrap

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


def run(code, core=None, backend=None, **environment):
    """Run code in a new Python; `core` is the module of the given core there."""
    variables = {key: value for key, value in os.environ.items() if key != "MICROGPT_BACKEND"}
    variables |= environment if backend is None else {**environment, "MICROGPT_BACKEND": backend}
    start = f"import {core.__name__}; core = {core.__name__}\n" if core else ""
    start += "Value, Matrix = core.Value, core.Matrix\n" if core else ""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", start + textwrap.dedent(code)],
        capture_output=True, text=True, env=variables, timeout=300,
    )  # fmt: skip


def output_of(code, core=None, backend=None):
    done = run(code, core, backend)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.split()


def microgpt(*arguments, cwd=None, drop=(), encoding="utf-8", **environment):
    """Run the command line; drop: the variables of the environment that it is not given."""
    variables = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "microgpt", *map(str, arguments)],
        capture_output=True, cwd=cwd, encoding=encoding, timeout=300,
        env={key: value for key, value in variables.items() if key not in drop},
    )  # fmt: skip


NEWS = re.compile(
    r"""^( (step|trial)[ ]+[0-9]+[ ]/[ ].*
       | microgpt:[ ]the[ ]model[ ]was[ ]not[ ]saved:[ ].*
       | microgpt:[ ][0-9]+[ ]of[ ][0-9]+[ ]documents[ ]are[ ]longer[ ]than[ ]the[ ]block[ ]size.*
       | microgpt:[ ]the[ ]compiled[ ]core[ ]was[ ]not[ ]built,.*
       | microgpt:[ ]the[ ](validation[ ])?loss[ ]is[ ]above[ ]that[ ]of[ ].*
       )(\n|\Z)""",
    re.MULTILINE | re.VERBOSE,
)


def problems(err):
    """Return what stderr holds but progress and advice."""
    return NEWS.sub("", err)
