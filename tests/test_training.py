"""Training: what a step does, what a run keeps, what is refused."""

import gc
import math
import random

import pytest

import microgpt as mg

DOCS = ["emma", "olivia", "ava", "isabella", "sophia"]


def test_a_run_learns():
    run = mg.train(DOCS, steps=60)
    assert len(run.losses) == 60
    assert sum(run.losses[-10:]) < 0.5 * sum(run.losses[:10])


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    one, same, other = (mg.train(DOCS, steps=5, seed=seed) for seed in (1, 1, 2))
    assert one.losses == same.losses
    assert one.losses != other.losses


def test_the_global_generator_and_the_given_list_are_left_alone():
    random.seed(5)
    state, docs = random.getstate(), list(DOCS)
    run = mg.train(docs, steps=2)
    mg.generate(run, n=2)
    assert random.getstate() == state
    assert docs == DOCS


def test_one_generator_shuffles_the_documents_then_draws_the_parameters():
    run = mg.prepare(DOCS, seed=3)
    rng, docs = random.Random(3), list(DOCS)
    rng.shuffle(docs)
    assert run.documents == docs
    assert run.model.state_dict["wte"].tolist()[0] == [rng.gauss(0, 0.08) for _ in range(16)]


def test_a_step_takes_the_next_document_and_returns_its_loss():
    run = mg.prepare(DOCS[:2], steps=3)
    for i in (0, 1, 0):
        expected = run.model.loss([run.tokenizer.encode(run.documents[i])]).data
        assert mg.train_step(run) == expected == run.losses[-1]
    with pytest.raises(ValueError, match="taken all its 3 steps"):
        mg.train_step(run)


def test_the_last_steps_are_small():
    run = mg.prepare(DOCS, steps=100)
    changes = []
    for _ in range(100):
        before = run.model.state_dict["wte"].tolist()
        mg.train_step(run)
        after = run.model.state_dict["wte"].tolist()
        changes.append(max(abs(a - b) for x, y in zip(after, before, strict=True)
                           for a, b in zip(x, y, strict=True)))
    assert changes[0] == pytest.approx(0.01, rel=1e-3)
    assert changes[-1] < 0.01 * 0.01 * 10


def test_the_callback_gets_every_step_and_its_loss():
    seen = []
    run = mg.train(DOCS, steps=4, callback=lambda step, loss: seen.append((step, loss)))
    assert seen == list(enumerate(run.losses, start=1))


def test_documents_that_do_not_fit_are_counted_and_cut():
    run = mg.prepare(["abc", "abcd", "abcde"], steps=3, block_size=4)
    assert run.num_cut == 2  # "abc" and the BOS behind it are the four targets that fit
    for _ in range(3):
        assert math.isfinite(mg.train_step(run))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_parameters():
    run = mg.prepare(DOCS, steps=3)
    mg.train_step(run)
    run.model.state_dict["lm_head"][0][0].data = math.inf
    before = run.model.state_dict["wte"].tolist()
    with pytest.raises(FloatingPointError, match="at step 2"):
        mg.train_step(run)
    assert run.model.state_dict["wte"].tolist() == before
    assert len(run.losses) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be 0 or more, not -1"),
        ({"lr": -0.1}, "lr must be a finite number"),
        ({"lr": math.nan}, "lr must be a finite number"),
        ({"lr": math.inf}, "lr must be a finite number"),
        ({"n_embd": 10}, "n_embd must be a multiple of n_head"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mg.train(DOCS, **options)


def test_no_documents_and_empty_documents_are_refused():
    with pytest.raises(ValueError, match="at least one document"):
        mg.train([])
    with pytest.raises(ValueError, match="document 2 is empty"):
        mg.train(["a", ""])


def test_no_steps_are_a_run_too():
    run = mg.train(DOCS, steps=0)
    assert run.losses == []
    assert len(mg.generate(run, n=3)) == 3


@pytest.mark.parametrize("enabled", [True, False])
def test_the_cyclic_collector_is_as_before_after_a_step_and_after_a_failed_one(enabled):
    run = mg.prepare(DOCS, steps=2)
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        mg.train_step(run)
        assert gc.isenabled() == enabled
        run.model.state_dict["lm_head"][0][0].data = math.nan
        with pytest.raises(FloatingPointError):
            mg.train_step(run)
        assert gc.isenabled() == enabled
    finally:
        gc.enable() if before else gc.disable()
