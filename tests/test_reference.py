"""The numbers of the original program, and of our script on the bundled names.

The compiled core runs all 1,000 steps; the pure one as many as a test has time for.
"""

import json
import math
from pathlib import Path

import pytest

import microgpt as mg

STEPS = 1000 if mg.BACKEND == "cython" else 25
RECORD = Path(__file__).with_name("script_run.json")


@pytest.fixture(scope="module")
def golden(reference):
    return json.loads((reference / "golden" / "default.json").read_text())


@pytest.fixture(scope="module")
def original(reference):
    """A run on the original's names that took its first STEPS steps, and what was measured then."""
    run = mg.prepare(mg.load_documents(reference / "data" / "names.txt"), steps=1000, seed=42)
    run.init = {name: matrix.tolist() for name, matrix in run.model.state_dict.items()}
    run.untrained = losses_of_emma(run)
    for _ in range(STEPS):
        mg.train_step(run)
    run.trained = losses_of_emma(run)
    run.samples = mg.generate(run, n=20, temperature=0.5)
    return run


def losses_of_emma(run):
    tokens = run.tokenizer.encode("emma")
    with mg.no_grad():
        logits = run.model.forward(tokens[:-1])
        return [row[0] for row in mg.cross_entropy(logits, tokens[1:]).tolist()]


def flat(state_dict):
    return [number for matrix in state_dict.values() for row in matrix for number in row]


def assert_close(numbers, recorded, tolerance):
    """NaN and a missing number fail too."""
    assert len(numbers) == len(recorded)
    for i, (number, other) in enumerate(zip(numbers, recorded, strict=True)):
        assert abs(number - other) <= tolerance, f"entry {i}: {number} instead of {other}"


def test_documents_vocabulary_and_parameters_are_counted_as_recorded(original, golden):
    assert len(original.documents) == golden["num_docs"] == 32033
    assert original.documents[:5] == golden["first_docs"]
    assert list(original.tokenizer.chars) == golden["vocab"]
    assert original.tokenizer.vocab_size == 27
    assert original.model.num_params == 4192


def test_the_untrained_parameters_are_the_recorded_ones_to_the_last_bit(original, golden):
    assert original.init == golden["init"]
    assert list(original.init) == list(golden["init"])


def test_the_losses_are_the_recorded_ones(original, golden):
    assert f"{original.losses[0]:.4f}" == "3.3660"
    assert_close(original.losses, golden["losses"][:STEPS], 1e-9)


def test_the_samples_are_the_recorded_ones(original, golden):
    if STEPS < 1000:
        pytest.skip("1,000 steps of the pure core take too long for a test")
    assert original.samples == golden["samples"]
    assert original.samples[:5] == ["kamon", "ann", "karai", "jaire", "vialan"]
    assert original.samples[-1] == "anton"


def test_the_trained_parameters_are_the_recorded_ones(original, golden):
    if STEPS < 1000:
        pytest.skip("1,000 steps of the pure core take too long for a test")
    state_dict = {name: m.tolist() for name, m in original.model.state_dict.items()}
    assert_close(flat(state_dict), golden["final"], 1e-9)


def test_the_gradients_of_the_first_two_steps_are_the_recorded_ones(reference, golden):
    run = mg.prepare(mg.load_documents(reference / "data" / "names.txt"), steps=1000, seed=42)
    for step in range(2):
        run.model.loss([run.tokenizer.encode(run.documents[step])]).backward()
        gradients = flat({n: m.grad.tolist() for n, m in run.model.state_dict.items()})
        largest = max(map(abs, golden["grads"][step]))
        assert_close(gradients, golden["grads"][step], 1e-12 * largest)
        run.adam.update(mg.linear_decay(run.config.lr, step, run.config.steps))


def test_emma_is_five_pairs_with_the_measured_losses(original):
    assert len(original.untrained) == 5
    assert_close(original.untrained, [3.1097, 4.2117, 3.6083, 3.5067, 3.0409], 5.1e-5)
    if STEPS == 1000:
        assert_close(original.trained, [2.971, 2.767, 4.617, 1.479, 1.798], 5.1e-4)


def test_a_run_on_the_bundled_names_gives_the_record_in_the_repository():
    record = json.loads(RECORD.read_text())
    run = mg.prepare(mg.load_documents(), steps=1000, seed=42)
    for _ in range(STEPS):
        mg.train_step(run)
    assert len(run.documents) == record["num_docs"]
    assert run.tokenizer.vocab_size == record["vocab_size"]
    assert run.model.num_params == record["num_params"]
    assert_close(run.losses, record["losses"][:STEPS], 1e-9)
    if STEPS == 1000:
        assert mg.generate(run, n=20) == record["samples"]


def test_the_comparison_fails_on_nan():
    with pytest.raises(AssertionError):
        assert_close([math.nan], [1.0], 1e-9)
