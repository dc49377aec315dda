"""New documents from a trained model, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

from .core import no_grad
from .model import GPT, Cache

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .training import Run


def generate(
    run: Run | Checkpoint,
    n: int = 20,
    temperature: float = 0.5,
    rng: Random | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    prompt: str = "",
    length: int | None = None,
) -> list[str]:
    """Return n new documents of the model of a run, or of a saved one.

    temperature: above 0; lower keeps to the likely tokens, 1 draws as the model predicts.
        0 takes the most likely token every time.
    rng: the generator to draw from; None: the run's own, so that the samples of a fresh run are
        those that the script prints.
    top_k: draw from so many of the likeliest tokens only.
    top_p: draw from the likeliest tokens only, as many as together have this probability.
    prompt: what the documents begin with.
    length: the most characters of a document; None: block_size. Beyond block_size the model sees
        the last characters only.

    Raises ValueError if n or temperature is negative, top_k, top_p or length is out of range, the
    prompt does not fit or has a character that is not in the alphabet.
    """
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    length = run.model.config.block_size if length is None else length
    if length <= len(prompt):
        raise ValueError(f"a prompt of {len(prompt)} characters leaves no room in {length}")
    rng = run.rng if rng is None else rng
    bos, decode = run.tokenizer.bos, run.tokenizer.decode
    start = run.tokenizer.encode(prompt)[1:-1]
    options = temperature, top_k, top_p, start, length
    return [decode(sample(run.model, bos, rng, *options)) for _ in range(n)]


def sample(
    model: GPT,
    bos: int,
    rng: Random,
    temperature: float = 0.5,
    top_k: int | None = None,
    top_p: float | None = None,
    prompt: Sequence[int] = (),
    length: int | None = None,
) -> list[int]:
    """Return the token ids of one new document, without BOS, at most length of them.

    The arguments are those of generate; prompt holds token ids.
    Raises ValueError if temperature is negative or top_k or top_p out of range, FloatingPointError
    if the parameters are such that a logit is not finite.
    """
    if not temperature >= 0.0:
        raise ValueError(f"temperature must be 0 or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    block_size = model.config.block_size
    length = block_size if length is None else length
    tokens = list(prompt)
    following = [bos, *tokens]  # what the model has not seen yet
    with no_grad():
        cache = Cache(model.config)
        while len(tokens) < length:
            if cache.length + len(following) > block_size:  # go on with what was said last
                cache = Cache(model.config)
                following = [bos, *tokens[len(tokens) - block_size // 2 :]]
            logits = model.forward(following, cache).tolist()[-1]
            token = _draw(logits, temperature, rng, top_k, top_p)
            if token == bos:
                break
            tokens.append(token)
            following = [token]
    return tokens


def _draw(
    logits: Sequence[float],
    temperature: float,
    rng: Random,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """Return a token drawn with the weights softmax(logits / temperature).

    Of equally likely tokens top_k and top_p keep those with the lower ids.
    """
    if not math.isfinite(sum(logits)):
        raise FloatingPointError("the model's logits are not finite")
    largest = max(logits)
    if temperature == 0.0:
        return logits.index(largest)
    # choices divides by the sum of the weights, so the softmax need not
    weights = [math.exp((logit - largest) / temperature) for logit in logits]
    if top_k is not None or top_p is not None:
        likely = sorted(range(len(weights)), key=lambda token: -weights[token])[:top_k]
        if top_p is not None:
            needed = top_p * math.fsum(weights[token] for token in likely)
            sums = accumulate(weights[token] for token in likely)
            likely = likely[: 1 + sum(total < needed for total in sums)]
        kept = set(likely)
        weights = [weight if i in kept else 0.0 for i, weight in enumerate(weights)]
    return rng.choices(range(len(weights)), weights)[0]
