"""How good a model is: its loss on documents, two baselines for scale, the score of one text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from . import _checks as checks
from .core import cross_entropy, no_grad, softmax
from .model import GPT, check_model

_ROWS = 512  # positions that go through the model together; bounds the memory


def mean_loss(model: GPT, docs: Sequence[Sequence[int]]) -> float:
    """Return the mean loss over all positions of docs, lists of token ids as in GPT.loss.

    Raises ValueError if there is no document or one has fewer than two tokens, FloatingPointError
    if the loss is not finite.
    """
    check_model(model, "mean_loss(run.model, [run.encode(text)])")
    losses: list[float] = []
    longest = min(model.config.block_size, max([1, *map(len, docs)]))
    n = max(1, _ROWS // longest)  # as many documents at a time as are sure to fit
    with no_grad():
        for i in range(0, len(docs), n):
            tokens, targets, starts = model.pack(docs[i : i + n])
            logits = model.forward(tokens, starts=starts)
            losses += [loss for [loss] in cross_entropy(logits, targets).tolist()]
    if not losses:
        raise ValueError("at least one document is needed")
    loss = math.fsum(losses) / len(losses)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the validation loss is {loss}")
    return loss


def uniform_loss(model: GPT) -> float:
    """Return the loss of a uniform guess: every token of the vocabulary equally likely."""
    return math.log(model.config.vocab_size)


def bigram_loss(
    model: GPT, training: Sequence[Sequence[int]], docs: Sequence[Sequence[int]]
) -> float:
    """Return the mean loss of a bigram table on the positions that mean_loss(model, docs) uses.

    The table counts the pairs of adjacent tokens in the training documents, each once more than it
    occurs, so that none is impossible. A model without context learns as much.
    """
    vocab_size = model.config.vocab_size
    counts: dict[tuple[int, int], int] = {}
    totals = [vocab_size] * vocab_size
    for doc in training:
        for pair in pairwise(doc):
            counts[pair] = counts.get(pair, 1) + 1
            totals[pair[0]] += 1
    losses = [
        math.log(totals[a] / counts.get((a, b), 1))
        for doc in docs
        for a, b in zip(*model.pack([doc])[:2], strict=True)
    ]
    return math.fsum(losses) / len(losses)


@dataclass(frozen=True)
class Score:
    """The prediction of one position: the target, its loss, and the most likely tokens.

    likely: pairs of token id and probability, the most likely first.
    """

    target: int
    loss: float
    likely: list[tuple[int, float]]


def score(model: GPT, doc: Sequence[int], top: int = 3) -> list[Score]:
    """Return the Score of each position of doc, token ids as in GPT.loss.

    top: how many of the most likely tokens to return.
    Raises ValueError if doc has fewer than two tokens or does not fit into block_size,
    FloatingPointError if the model's logits are not finite.
    """
    check_model(model, "score(run.model, run.encode(text))")
    checks.integer(top, "top", 0)
    if len(doc) < 2:
        raise ValueError(f"a document needs at least two tokens, not {len(doc)}")
    with no_grad():
        logits = model.forward(doc[:-1])
        losses = [loss for [loss] in cross_entropy(logits, doc[1:]).tolist()]
        rows = softmax(logits).tolist()
    if not math.isfinite(sum(losses)):
        raise FloatingPointError("the model's logits are not finite")
    scores = []
    for target, loss, row in zip(doc[1:], losses, rows, strict=True):
        likely = sorted(enumerate(row), key=lambda pair: -pair[1])[:top]
        scores.append(Score(target, loss, likely))
    return scores
