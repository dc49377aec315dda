"""Long trainings: flat memory, and two of them at once. `make soak` takes the full number of steps.

Times are printed, and decide nothing.
"""

import os
import sys
import threading
import time

import pytest
from test_build import MEASURE, output_of

import microgpt as mg

STEPS = int(os.environ.get("MICROGPT_STEPS", "3000" if mg.BACKEND == "cython" else "30"))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc to measure memory")
def test_memory_stays_flat_over_a_long_training():
    code = """
    import microgpt as mg
    WARM, STEPS = @WARM@, @STEPS@
    run = mg.prepare(mg.load_documents()[:500], steps=WARM + STEPS)
    def step():
        mg.train_step(run)
    """
    warm = 1000 if mg.BACKEND == "cython" else 15
    code = code.replace("@WARM@", str(warm)).replace("@STEPS@", str(STEPS))
    began = time.monotonic()
    code = code.replace("\n    ", "\n") + MEASURE
    grown, more_objects = map(int, output_of(code, backend=mg.BACKEND))
    print(f"{STEPS} steps, {grown} bytes more, {more_objects} objects more, "
          f"{time.monotonic() - began:.1f} s")  # fmt: skip
    # A loss is a float and its slot in the list. In the pure core a graph is some 10 MiB, larger
    # for a longer name: the memory of the largest stays.
    assert grown < (0.5 if mg.BACKEND == "cython" else 32) * 2**20 + 64 * STEPS
    assert more_objects < 20


def train(seed, results, sizes):
    results[seed] = mg.train(mg.load_documents()[:200], seed=seed, **sizes).losses


def test_trainings_in_two_threads_do_not_disturb_each_other():
    """The blocks are large enough in the compiled core for the GIL to be released."""
    large = {"n_embd": 96, "steps": 12} if mg.BACKEND == "cython" else {"n_embd": 4, "steps": 4}
    sizes = {"n_head": 2, "block_size": 8, **large}
    alone, together, times = {}, {}, []
    began = time.monotonic()
    for seed in (1, 2):
        train(seed, alone, sizes)
    times.append(time.monotonic() - began)
    threads = [threading.Thread(target=train, args=(seed, together, sizes)) for seed in (1, 2)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.append(time.monotonic() - began)
    print(f"two trainings: {times[0]:.2f} s one after the other, {times[1]:.2f} s in two threads")
    assert together == alone


def test_backward_lets_other_threads_work_meanwhile(compiled):
    """With so long a switch interval a thread gets its turn only where another releases the GIL."""
    x = compiled.Matrix.of([[0.01 * ((i + j) % 7) for j in range(400)] for i in range(400)])
    y = x
    for _ in range(6):
        y = compiled.linear(y, x)
    loss, small = compiled.mean(y), compiled.mean(compiled.relu(compiled.Matrix(2, 2)))

    def worked_during(work):
        start, worked = threading.Lock(), []
        start.acquire()

        def wait():
            with start:
                worked.append(True)

        thread = threading.Thread(target=wait)
        thread.start()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            start.release()
            work()
            return bool(worked)
        finally:
            sys.setswitchinterval(interval)
            thread.join()

    assert any(worked_during(loss.backward) for _ in range(20))
    assert not worked_during(small.backward)  # not worth it; it shows that the test can fail
