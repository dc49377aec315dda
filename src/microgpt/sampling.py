"""New documents from a trained model, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from .core import no_grad
from .model import GPT, Cache

if TYPE_CHECKING:
    from .training import Run


def generate(
    run: Run, n: int = 20, temperature: float = 0.5, rng: Random | None = None
) -> list[str]:
    """Return n new documents of the run's model.

    temperature: above 0; lower keeps to the likely tokens, 1 draws as the model predicts.
        0 takes the most likely token every time.
    rng: the generator to draw from; None: the run's own, so that the samples of a fresh run are
        those that the script prints.

    Raises ValueError if n or temperature is negative.
    """
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    rng = run.rng if rng is None else rng
    bos, decode = run.tokenizer.bos, run.tokenizer.decode
    return [decode(sample(run.model, bos, rng, temperature)) for _ in range(n)]


def sample(model: GPT, bos: int, rng: Random, temperature: float = 0.5) -> list[int]:
    """Return the token ids of one new document, without BOS, at most block_size of them.

    Raises ValueError if temperature is negative, FloatingPointError if the parameters are such
    that a logit is not finite.
    """
    if not temperature >= 0.0:
        raise ValueError(f"temperature must be 0 or more, not {temperature}")
    tokens: list[int] = []
    token = bos
    with no_grad():
        cache = Cache(model.config)
        for _ in range(model.config.block_size):
            [logits] = model.forward([token], cache).tolist()
            token = _draw(logits, temperature, rng)
            if token == bos:
                break
            tokens.append(token)
    return tokens


def _draw(logits: Sequence[float], temperature: float, rng: Random) -> int:
    """Return a token drawn with the weights softmax(logits / temperature)."""
    if not math.isfinite(sum(logits)):
        raise FloatingPointError("the model's logits are not finite")
    largest = max(logits)
    if temperature == 0.0:
        return logits.index(largest)
    # choices divides by the sum of the weights, so the softmax need not
    weights = [math.exp((logit - largest) / temperature) for logit in logits]
    return rng.choices(range(len(weights)), weights)[0]
