"""Evaluation: the loss on documents, the baselines, the score of a text."""

import math

import pytest

import microgpt as mg
from microgpt import evaluate

DOCS = ["emma", "olivia", "ava", "isabella", "sophia"]


@pytest.fixture(scope="module")
def run():
    return mg.train(DOCS, steps=10, n_embd=8, n_head=2, block_size=6)


@pytest.fixture(scope="module")
def ids(run):
    return [run.tokenizer.encode(doc) for doc in DOCS]


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_the_loss_is_that_of_the_training_on_all_positions(run, ids, rows, monkeypatch):
    monkeypatch.setattr(evaluate, "_ROWS", rows)
    assert mg.mean_loss(run.model, ids) == pytest.approx(run.model.loss(ids).data, rel=1e-12)
    assert mg.grad_enabled()


def test_no_documents_have_no_loss(run):
    with pytest.raises(ValueError, match="at least one document"):
        mg.mean_loss(run.model, [])
    with pytest.raises(ValueError, match="at least two tokens, not 0"):
        mg.mean_loss(run.model, [[]])


def test_a_loss_that_is_not_finite_is_an_error(ids):
    run = mg.prepare(DOCS)
    run.model.state_dict["lm_head"][0][0].data = math.nan
    with pytest.raises(FloatingPointError, match="the validation loss is nan"):
        mg.mean_loss(run.model, ids)
    with pytest.raises(FloatingPointError, match="not finite"):
        mg.score(run.model, ids[0])


def test_the_uniform_loss_is_the_logarithm_of_the_vocabulary(run):
    assert mg.uniform_loss(run.model) == math.log(run.model.config.vocab_size)


def test_the_bigram_loss_by_hand():
    model = mg.prepare(["ab"], block_size=3).model  # a 0, b 1, BOS 2
    # counted in BOS a b BOS, each plus one: from a: a 1, b 2, BOS 1
    expected = (math.log(4 / 2) + math.log(4 / 1) + math.log(4 / 1)) / 3
    assert mg.bigram_loss(model, [[2, 0, 1, 2]], [[2, 0, 0, 2, 1]]) == pytest.approx(expected)


def test_the_bigram_loss_is_between_guessing_and_a_trained_model():
    docs = mg.load_documents()
    run = mg.prepare(docs, val_fraction=0.1)
    training = [run.encode(doc) for doc in run.documents]
    validation = [run.encode(doc) for doc in run.validation]
    loss = mg.bigram_loss(run.model, training, validation)
    assert 2.3 < loss < 2.6 < mg.uniform_loss(run.model)


def test_the_scores_of_a_text_are_its_losses_and_the_likeliest_tokens(run):
    doc = run.tokenizer.encode("emma")
    scores = mg.score(run.model, doc, top=4)
    assert [score.target for score in scores] == doc[1:]
    mean = sum(score.loss for score in scores) / 5
    assert mean == pytest.approx(run.model.loss([doc]).data, rel=1e-12)
    for row, score in zip(mg.softmax(run.model.forward(doc[:-1])).tolist(), scores, strict=True):
        assert [p for _, p in score.likely] == sorted(row, reverse=True)[:4]
        assert all(row[token] == p for token, p in score.likely)
        assert score.loss == pytest.approx(-math.log(row[score.target]))


def test_a_text_that_does_not_fit_has_no_score(run):
    with pytest.raises(ValueError, match="7 tokens is longer than block_size 6"):
        mg.score(run.model, run.tokenizer.encode("emmaav"))
    with pytest.raises(ValueError, match="at least two tokens, not 1"):
        mg.score(run.model, [0])
