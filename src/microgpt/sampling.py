"""New documents from a trained model, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Any

from .core import Ids, Matrix, Tape, no_grad, softmax
from .model import GPT, Cache, can_be_recorded

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .training import Run

LEAST_TEMPERATURE = 1e-290  # below it the likeliest token is taken, as at 0


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
    prompt does not fit or has a character that is not in the alphabet; FloatingPointError if the
    parameters are such that a logit is not finite.
    """
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    length = run.model.config.block_size if length is None else length
    if length <= len(prompt):
        raise ValueError(f"a prompt of {len(prompt)} characters leaves no room in {length}")
    rng = run.rng if rng is None else rng
    bos, decode = run.tokenizer.bos, run.tokenizer.decode
    start = run.tokenizer.encode(prompt)[1:-1]
    model = _Stepper(run.model, temperature, top_k, top_p)
    return [decode(_sample(model, bos, rng, start, length)) for _ in range(n)]


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

    The arguments and errors are those of generate; prompt holds token ids.
    """
    length = model.config.block_size if length is None else length
    return _sample(_Stepper(model, temperature, top_k, top_p), bos, rng, prompt, length)


def _sample(
    model: _Stepper, bos: int, rng: Random, prompt: Sequence[int], length: int
) -> list[int]:
    tokens = list(prompt)
    following = [bos, *tokens]  # what the model has not seen yet
    model.begin()
    while len(tokens) < length:
        if model.room < len(following):  # go on with what was said last
            model.begin()
            following = [bos, *tokens[len(tokens) - model.room // 2 :]]
        token = model.draw_after(following, rng)
        if token == bos:
            break
        tokens.append(token)
        following = [token]
    return tokens


class _Stepper:
    """A model that is given tokens and draws what follows.

    What it computes for one token at a position is recorded the first time, and from then on
    computed again without the model's Python, where the core can do that.
    """

    def __init__(
        self, model: GPT, temperature: float, top_k: int | None = None, top_p: float | None = None
    ) -> None:
        if not temperature >= 0.0:
            raise ValueError(f"temperature must be 0 or more, not {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        if top_p is not None and not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        self._greedy = temperature < LEAST_TEMPERATURE
        self._temperature, self._limits = min(temperature, 1e290), (top_k, top_p)
        self._model, self._cache = model, Cache(model.config)
        self._records = can_be_recorded(model)
        self._recorded: dict[int, tuple[Any, Any, Matrix]] = {}  # position -> ids, tape, result

    @property
    def room(self) -> int:
        """How many more tokens the model can see."""
        return self._cache.block_size - self._cache.length

    def begin(self) -> None:
        """Forget the tokens so far."""
        self._cache.length = 0

    def draw_after(self, tokens: list[int], rng: Random) -> int:
        """Give the model tokens and return the one that follows them."""
        row = self.after(tokens)
        return _likeliest(row) if self._greedy else _draw(row, rng, *self._limits)

    def after(self, tokens: list[int]) -> list[float]:
        """Return the probability of each token to come next; if greedy, its logit."""
        position = self._cache.length
        if len(tokens) > 1 or not self._records:
            return self._compute(tokens).tolist()[-1]
        if position in self._recorded:
            ids, tape, result = self._recorded[position]
            ids.load(tokens)
            tape.forward()
            self._cache.length += 1
        else:
            ids = Ids(tokens)
            with Tape() as tape:
                result = self._compute(ids)
            self._recorded[position] = ids, tape, result
        return result.tolist()[-1]

    def _compute(self, tokens: Sequence[int]) -> Matrix:
        with no_grad():
            logits = self._model.forward(tokens, self._cache)
            return logits if self._greedy else softmax(logits, self._temperature)


def _likeliest(logits: list[float]) -> int:
    """Return the token with the largest logit, the first of them if there are several."""
    if not math.isfinite(sum(logits)):
        raise FloatingPointError("the model's logits are not finite")
    return logits.index(max(logits))


def _draw(
    probs: Sequence[float], rng: Random, top_k: int | None = None, top_p: float | None = None
) -> int:
    """Return a token drawn with these probabilities.

    Of equally likely tokens top_k and top_p keep those with the lower ids.
    """
    if top_k is not None or top_p is not None:
        likely = sorted(range(len(probs)), key=lambda token: -probs[token])[:top_k]
        if top_p is not None:
            needed = top_p * math.fsum(probs[token] for token in likely)
            sums = accumulate(probs[token] for token in likely)
            likely = likely[: 1 + sum(total < needed for total in sums)]
        kept = set(likely)
        probs = [p if token in kept else 0.0 for token, p in enumerate(probs)]
    try:
        return rng.choices(range(len(probs)), probs)[0]
    except ValueError:  # choices refuses a sum that is not finite
        raise FloatingPointError("the model's logits are not finite") from None
