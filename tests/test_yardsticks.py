"""The programs that ours is measured against train the same model, and medians are judged right."""

import json
import random
import statistics
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RECORD = Path(__file__).with_name("script_run.json")


@pytest.fixture(scope="module")
def modules():
    """Let the modules of the benchmarks be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_the_c_program_has_the_losses_of_the_script(modules, level):
    from yardsticks import handwritten, load

    if reason := handwritten.missing(level):
        pytest.skip(reason)
    names = BENCHMARKS.parent / "src" / "microgpt" / "datasets" / "names_us1990.txt"
    expected = json.loads(RECORD.read_text("utf-8"))["losses"]
    result = handwritten.train(load(names), len(expected), level=level)
    assert result.losses == pytest.approx(expected, rel=0, abs=1e-9)
    assert result.microseconds > 0.0


def test_the_c_program_in_float32_begins_with_the_losses_of_the_script(modules):
    from yardsticks import handwritten, load

    if reason := handwritten.missing():
        pytest.skip(reason)
    names = BENCHMARKS.parent / "src" / "microgpt" / "datasets" / "names_us1990.txt"
    expected = json.loads(RECORD.read_text("utf-8"))["losses"]
    result = handwritten.train(load(names), len(expected), level="float32")
    assert result.losses[:50] == pytest.approx(expected[:50], rel=0, abs=1e-4)


def test_the_uncertainty_of_a_median(modules):
    from rounds import spread, uncertainty

    times = [9.0, 11.0, 10.0, 8.0, 12.0]  # quartiles 9, 10 and 11
    assert spread(times) == pytest.approx(0.1)
    assert uncertainty(times) == pytest.approx(0.1 / 0.6745 * (3.14159265 / 2 / 5) ** 0.5)
    assert uncertainty([*times[:4], 1e6]) == pytest.approx(uncertainty(times))
    assert uncertainty(times * 4) < uncertainty(times) * 0.6


def test_the_uncertainty_is_that_of_many_medians(modules):

    from rounds import uncertainty

    rng = random.Random(1)
    samples = [[rng.gauss(100, 5) for _ in range(25)] for _ in range(2000)]
    medians = [statistics.median(sample) for sample in samples]
    claimed = statistics.mean(uncertainty(sample) for sample in samples)
    assert claimed == pytest.approx(statistics.stdev(medians) / 100, rel=0.1)
