"""Time one training step and generation through the public API, on the core in use."""

import itertools
import random

import pytest

import microgpt as mg

SIZES = [(16, 1), (64, 1), (64, 4), (128, 1)] if mg.BACKEND == "cython" else [(16, 1)]


@pytest.mark.parametrize(("n_embd", "n_layer"), SIZES)
def test_a_training_step(n_embd, n_layer, benchmark):
    run = mg.prepare(mg.load_documents(), steps=10**9, n_embd=n_embd, n_layer=n_layer)
    losses = [mg.train_step(run) for _ in range(3)]
    assert 2.0 < losses[0] < 6.0  # around ln 27 before it has learnt
    benchmark(mg.train_step, run)


def test_generating_20_names(benchmark):
    run = mg.train(mg.load_documents(), steps=20)
    seeds = itertools.count()
    assert len(mg.generate(run, 20)) == 20
    benchmark(lambda: mg.generate(run, 20, rng=random.Random(next(seeds))))
