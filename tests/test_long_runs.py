"""A long training keeps its memory flat. `make soak` takes the full number of steps.

The time is printed, and decides nothing.
"""

import os
import time

import pytest
from processes import MEASURE, output_of

import microgpt as mg

STEPS = int(os.environ.get("MICROGPT_STEPS", "3000" if mg.BACKEND == "cython" else "30"))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc to measure memory")
def test_memory_stays_flat_over_a_long_training():
    code = """
    import microgpt as mg
    WARM, STEPS = @WARM@, @STEPS@
    run = mg.prepare(mg.load_documents()[:500], steps=WARM + STEPS, n_embd=@WIDTH@)
    def step():
        mg.train_step(run)
    """
    warm = 1000 if mg.BACKEND == "cython" else 15
    width = 16 if mg.BACKEND == "cython" else 4
    for name, number in {"@WARM@": warm, "@STEPS@": STEPS, "@WIDTH@": width}.items():
        code = code.replace(name, str(number))
    began = time.monotonic()
    code = code.replace("\n    ", "\n") + MEASURE
    grown, more_objects = map(int, output_of(code, backend=mg.BACKEND))
    print(f"{STEPS} steps, {grown} bytes more, {more_objects} objects more, "
          f"{time.monotonic() - began:.1f} s")  # fmt: skip
    # A loss is a float and its slot in the list. In the pure core the memory of the largest graph
    # stays: that of the longest name so far.
    assert grown < (0.5 if mg.BACKEND == "cython" else 8) * 2**20 + 64 * STEPS
    assert more_objects < 20
