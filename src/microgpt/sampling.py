"""New documents from a trained model, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from .core import Ids, Matrix, Tape, no_grad, softmax
from .model import GPT, Cache, can_be_recorded

if TYPE_CHECKING:
    from .training import Run

LEAST_TEMPERATURE = 1e-290  # below it the likeliest token is taken, as at 0


def generate(
    run: Run, n: int = 20, temperature: float = 0.5, rng: Random | None = None
) -> list[str]:
    """Return n new documents of the run's model.

    temperature: above 0; lower keeps to the likely tokens, 1 draws as the model predicts.
        0 takes the most likely token every time.
    rng: the generator to draw from; None: the run's own, so that the samples of a fresh run are
        those that the script prints.

    Raises ValueError if n or temperature is negative, FloatingPointError if the parameters are
    such that a logit is not finite.
    """
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    rng = run.rng if rng is None else rng
    model = _Stepper(run.model, temperature)
    bos, decode = run.tokenizer.bos, run.tokenizer.decode
    return [decode(_sample(model, bos, rng)) for _ in range(n)]


def sample(model: GPT, bos: int, rng: Random, temperature: float = 0.5) -> list[int]:
    """Return the token ids of one new document, without BOS, at most block_size of them.

    Raises what generate raises.
    """
    return _sample(_Stepper(model, temperature), bos, rng)


def _sample(model: _Stepper, bos: int, rng: Random) -> list[int]:
    tokens: list[int] = []
    token = bos
    model.begin()
    for _ in range(model.block_size):
        row = model.after(token)
        token = _likeliest(row) if model.greedy else _draw(row, rng)
        if token == bos:
            break
        tokens.append(token)
    return tokens


def _likeliest(logits: list[float]) -> int:
    """Return the token with the largest logit, the first of them if there are several."""
    if not math.isfinite(sum(logits)):
        raise FloatingPointError("the model's logits are not finite")
    return logits.index(max(logits))


def _draw(probs: Sequence[float], rng: Random) -> int:
    """Return a token drawn with these probabilities."""
    try:
        return rng.choices(range(len(probs)), probs)[0]
    except ValueError:  # choices refuses a sum that is not finite
        raise FloatingPointError("the model's logits are not finite") from None


class _Stepper:
    """A model that is given one token after another and says what can follow.

    What it computes at a position is recorded the first time, and from then on computed again
    without the model's Python, where the core can do that.
    """

    def __init__(self, model: GPT, temperature: float) -> None:
        if not temperature >= 0.0:
            raise ValueError(f"temperature must be 0 or more, not {temperature}")
        self.greedy = temperature < LEAST_TEMPERATURE
        self.block_size = model.config.block_size
        self._model, self._temperature = model, min(temperature, 1e290)
        self._cache = Cache(model.config)
        self._records = can_be_recorded(model)
        self._recorded: list[tuple[Any, Any, Matrix]] = []  # ids, tape and result by position

    def begin(self) -> None:
        """Forget the tokens so far."""
        self._cache.length = 0

    def after(self, token: int) -> list[float]:
        """Return the probability of each token to follow this one; if greedy, its logit."""
        position = self._cache.length
        if position < len(self._recorded):
            ids, tape, result = self._recorded[position]
            ids.load([token])
            tape.forward()
            self._cache.length += 1
        elif self._records:
            ids = Ids([token])
            with Tape() as tape:
                result = self._compute(ids)
            self._recorded.append((ids, tape, result))
        else:
            result = self._compute([token])
        [row] = result.tolist()
        return row

    def _compute(self, tokens: Sequence[int]) -> Matrix:
        with no_grad():
            logits = self._model.forward(tokens, self._cache)
            return logits if self.greedy else softmax(logits, self._temperature)
