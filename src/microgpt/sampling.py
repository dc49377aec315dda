"""New documents from a trained model, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from random import Random

from . import _checks as checks
from .core import Matrix, Prefixes, Replay, draw_token, draw_tokens, no_grad, softmax
from .model import GPT, Cache, check_model
from .tokenizer import Tokenizer
from .training import Run, check_run

LEAST_TEMPERATURE = 1e-290  # below it sampling is greedy, as at 0
KEPT_NUMBERS = 1 << 20  # of keys and values that a run keeps from call to call, with their graphs


def generate(
    run: Run,
    n: int = 20,
    temperature: float = 0.5,
    rng: Random | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    prompt: str = "",
    length: int | None = None,
) -> list[str]:
    """Return n new documents of the model of a run, or of a saved one.

    temperature: 1 samples from the model's distribution; lower favours the likely tokens.
        0 is greedy: always the most likely token.
    rng: the generator to draw from; None: the run's own, so that the samples of a fresh run are
        those that the script prints.
    top_k: draw from this many of the most likely tokens only.
    top_p: nucleus sampling: draw from the smallest set of most likely tokens whose probabilities
        sum to at least this; after top_k.
    prompt: what the documents begin with.
    length: the maximum number of characters; None: block_size. Beyond block_size the model sees
        only the last characters.

    Raises ValueError if n or temperature is negative, top_k, top_p or length is out of range, the
    prompt does not fit or has a character that is not in the alphabet; FloatingPointError if a
    logit is not finite; RuntimeError if another thread is computing with the parameters.
    """
    if isinstance(run, GPT):
        raise TypeError("generate takes a run, which knows the alphabet; sample takes a model")
    check_run(run, "generate")
    n, length = checks.integer(n, "n", 0), _length(run.model, length, prompt)
    rng = run.rng if rng is None else rng
    tokenizer = run.tokenizer
    start = tokenizer.encode(prompt)[1:-1]
    sampler = _Sampler.of(run, temperature)
    sampler.begin(n, length, top_k, top_p)
    documents = [_text(tokenizer, sampler.sample(tokenizer.bos, rng, start)) for _ in range(n)]
    sampler.keep(run)
    return documents


def sample(
    model: GPT,
    bos: int | None = None,
    rng: Random | None = None,
    temperature: float = 0.5,
    top_k: int | None = None,
    top_p: float | None = None,
    prompt: Sequence[int] = (),
    length: int | None = None,
) -> list[int]:
    """Return the token ids of one new document, without BOS, at most length of them.

    bos: the id of BOS, `run.tokenizer.bos`; it is needed, and so is
    rng: the generator to draw from, such as `run.rng`.
    The other arguments and errors are those of generate; prompt holds token ids.
    """
    usage = "sample(run.model, run.tokenizer.bos, run.rng)"
    if isinstance(model, Run) or bos is None or rng is None:
        raise TypeError(f"sample takes a model, BOS and a generator, {usage}; generate takes a run")
    check_model(model, usage)
    length = _length(model, length, prompt)
    sampler = _Sampler(model, temperature, replay=length > model.config.block_size)
    sampler.begin(1, length, top_k, top_p)
    return sampler.sample(bos, rng, prompt)


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return what decode does, sooner: of ids that were drawn only a too large one can be wrong."""
    chars = tokenizer.chars
    try:
        return "".join([chars[i] for i in ids])
    except IndexError:
        return tokenizer.decode(ids)


def _length(model: GPT, length: int | None, prompt: Sequence[object]) -> int:
    """Return the maximum length of a document, which the prompt leaves something of."""
    length = model.config.block_size if length is None else checks.integer(length, "length")
    if length <= len(prompt):
        raise ValueError(f"a prompt of {len(prompt)} characters leaves no room in {length}")
    return length


class _Sampler:
    """Draw documents from a model at a temperature, token by token.

    replay: whether to record the graph of a token at each position, which pays if it is used again.
    """

    def __init__(self, model: GPT, temperature: float, replay: bool) -> None:
        if not (temperature := checks.number(temperature, "temperature")) >= 0.0:
            raise ValueError(f"temperature must be at least 0, not {temperature}")
        self._temperature, self._greedy = temperature, temperature < LEAST_TEMPERATURE
        self._model, self._cache = model, Cache(model.config)
        # no method, which would refer to the sampler: it is freed without the cyclic collector
        self._probabilities = partial(
            _probabilities, model, self._cache, None if self._greedy else min(temperature, 1e290)
        )
        self._replay = Replay(self._probabilities) if replay and model.replayable else None
        self._length, self._limits = 0, checks.draw_limits(None, None)
        self._prefixes: Prefixes | None = None
        self._start: Sequence[int] = ()  # the tokens that the cache holds from its first row on
        self._after_start: Matrix | None = None

    @classmethod
    def of(cls, run: Run, temperature: float) -> _Sampler:
        """Return the sampler that a run kept, or a new one if it does not serve."""
        temperature = checks.number(temperature, "temperature")
        kept: _Sampler | None = run.__dict__.pop("_sampler", None)  # no other thread has it now
        if kept is not None and kept._temperature == temperature and run.model.replayable:
            return kept
        return cls(run.model, temperature, replay=True)

    def keep(self, run: Run) -> None:
        """Let a run keep this for the next call, if it is small."""
        self._prefixes = self._after_start = None
        numbers = sum(math.prod(matrix.shape) for matrix in self._cache.matrices)
        if self._replay is not None and numbers <= KEPT_NUMBERS:
            run.__dict__["_sampler"] = self

    def begin(self, n: int, length: int, top_k: int | None, top_p: float | None) -> None:
        """Prepare for n documents of at most length tokens, all with the same prompt."""
        self._length, self._limits = length, checks.draw_limits(top_k, top_p)
        kind = type(self._model)  # a subclass may keep more than keys and values in the cache
        is_plain = kind.forward is GPT.forward and kind.position_embedding is GPT.position_embedding
        self._prefixes = Prefixes(self._cache.matrices) if n > 1 and is_plain else None

    def sample(self, bos: int, rng: Random, prompt: Sequence[int]) -> list[int]:
        cache, tokens = self._cache, list(prompt)
        draw_from = None if self._greedy else rng
        pending = [bos, *tokens]  # what the model has not seen yet
        prefixes, length = self._prefixes, self._length
        cache.length = 0
        while len(tokens) < length:
            if cache.block_size - cache.length < len(pending):  # continue with the latest half
                cache.length = 0
                pending = [bos, *tokens[len(tokens) - cache.block_size // 2 :]]
            if self._replay is not None:  # the same loop, in the core
                probs = self._from_start(self._replay, pending)
                end = min(cache.block_size, cache.length + length - len(tokens) - 1)
                tokens += draw_tokens(
                    self._replay, cache, probs, end, bos, draw_from, *self._limits, prefixes
                )
                prefixes = None  # they begin where the document does, not a later window
            else:
                row = self._probabilities(pending).tolist()[-1]
                tokens.append(draw_token(row, draw_from, *self._limits))
            if tokens[-1] == bos:
                return tokens[:-1]
            pending = tokens[-1:]
        return tokens

    def _from_start(self, replay: Replay, tokens: Sequence[int]) -> Matrix:
        """Return the probabilities after tokens, the first of a document or of a window.

        Documents that share prefixes begin alike: BOS and the prompt are computed for the first
        one, and for the next ones they are in the cache.
        """
        if self._prefixes is None or self._after_start is None or tokens != self._start:
            self._after_start, self._start = None, tokens  # in case of an error
            self._cache.length = 0
            self._after_start = replay(list(tokens), key=("start", len(tokens)))
        self._cache.length = len(tokens)
        return self._after_start


def _probabilities(
    model: GPT, cache: Cache, temperature: float | None, tokens: Sequence[int]
) -> Matrix:
    """Return what to draw the next token from; temperature None: the logits, which are as good."""
    with no_grad():
        logits = model.forward(tokens, cache)
        return logits if temperature is None else softmax(logits, temperature)
