"""Training: one step, and the loop of steps."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself costs ten times as much
import gc
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from threading import get_ident, main_thread
from typing import Any

from .adam import Adam, linear_decay
from .core import Ids, Recording, grad_enabled
from .model import GPT, Config, can_be_recorded
from .tokenizer import Tokenizer


@dataclass
class Run:
    """A training: what it learns from, what it learns, and how far it is.

    One generator, `rng`, has shuffled the documents and drawn the parameters and will draw the
    samples, in this order, so that a run gives the numbers of the script.
    """

    documents: list[str]
    tokenizer: Tokenizer
    model: GPT
    adam: Adam
    rng: Random
    steps: int
    lr: float
    batch_size: int = 1
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._recorded = _RecordedLoss()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_recorded": _RecordedLoss()}  # a recording is not copied

    @property
    def num_cut(self) -> int:
        """How many documents are longer than block_size can hold, with the BOS that ends them."""
        return sum(len(doc) + 1 > self.model.config.block_size for doc in self.documents)

    def batch(self, step: int) -> list[list[int]]:
        """Return the token ids of the documents of a step, counted from 0."""
        first, docs = step * self.batch_size, self.documents
        numbers = range(first, first + self.batch_size)
        return [self.tokenizer.encode(docs[i % len(docs)]) for i in numbers]


class _RecordedLoss:
    """The loss of one document, from graphs that were recorded: one for each number of rows.

    What is kept is bounded by the rows of all graphs together.
    """

    MAX_ROWS = 512

    def __init__(self) -> None:
        self._params: list[Any] = []
        self._graphs: dict[int, tuple[Any, Any, Any]] = {}

    def of(self, model: GPT, doc: list[int]) -> tuple[float, Callable[[], None]]:
        """Return the loss of a document and the function that runs backward from it."""
        params = list(model.state_dict.values())
        if self._params != params:  # another Matrix in its place: what was recorded is of no use
            self._params, self._graphs = params, {}
        inputs, following = model.pairs(doc)
        rows = len(inputs)
        if rows not in self._graphs:
            tokens, targets = Ids(inputs), Ids(following)
            recording = Recording(model.loss_of(tokens, targets))
            self._graphs[rows] = tokens, targets, recording
            while sum(self._graphs) > self.MAX_ROWS and len(self._graphs) > 1:
                del self._graphs[next(iter(self._graphs))]
        tokens, targets, recording = self._graphs[rows]
        tokens.load(inputs)
        targets.load(following)
        return recording.forward(), recording.backward


def prepare(
    docs: Iterable[str],
    steps: int = 1000,
    seed: int = 42,
    lr: float = 0.01,
    n_layer: int = 1,
    n_embd: int = 16,
    n_head: int = 4,
    block_size: int = 16,
    batch_size: int = 1,
) -> Run:
    """Return a run that has not taken a step: documents shuffled, parameters drawn.

    docs: the documents; an empty one is an error.
    steps: how many steps the learning rate is to decay over.
    lr: the learning rate of the first step; it falls to 0 in a straight line.
    batch_size: documents a step.
    The sizes are those of Config.

    Raises ValueError if there are no documents, one is empty, steps or lr is negative or not
    finite, or a size does not fit.
    """
    documents = list(docs)
    if not documents:
        raise ValueError("at least one document is needed")
    if not all(documents):
        raise ValueError(f"document {documents.index('') + 1} is empty")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, not {steps}")
    if not 0 <= lr < math.inf:
        raise ValueError(f"lr must be a finite number of 0 or more, not {lr}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    rng = Random(seed)
    rng.shuffle(documents)
    tokenizer = Tokenizer.from_documents(documents)
    config = Config(tokenizer.vocab_size, n_layer, n_embd, n_head, block_size)
    model = GPT(config, rng)
    adam = Adam(model.state_dict.values())
    return Run(documents, tokenizer, model, adam, rng, steps, lr, batch_size)


def train_step(run: Run) -> float:
    """Learn from the next documents and return their loss, taken before the parameters changed.

    A step is taken whole or not at all, also when Ctrl-C interrupts it.
    Raises ValueError if the run has taken all its steps, FloatingPointError if the loss is not
    finite; the parameters are then as before.
    """
    step = run.adam.step
    if step >= run.steps:
        raise ValueError(f"the run has taken all its {run.steps} steps")
    collecting = gc.isenabled()
    try:
        gc.disable()  # a graph has no cycles; searching it for some is two thirds of a pure step
        loss, backward = _loss(run, run.batch(step))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step + 1}; a smaller lr than {run.lr} may help"
            )
        try:
            backward()
            with _Uninterrupted():
                run.adam.update(linear_decay(run.lr, step, run.steps))
                run.losses.append(loss)
        except BaseException:
            if run.adam.step == step:  # else the step was taken, and the interrupt came after it
                _clear_gradients(run)
            raise
    finally:
        if collecting:
            gc.enable()
    return loss


class _Uninterrupted:
    """Let Ctrl-C wait until the body of a `with` has run."""

    def __enter__(self) -> None:
        self._handler: Any = None
        self._waiting: Any = None
        if get_ident() == main_thread().ident:  # the only one that Python interrupts
            handler = _signal.getsignal(_signal.SIGINT)
            if callable(handler):
                self._handler = handler
                _signal.signal(_signal.SIGINT, self._wait)

    def _wait(self, *signal: Any) -> None:
        self._waiting = signal

    def __exit__(self, *exc_info: object) -> None:
        if self._handler is not None:
            _signal.signal(_signal.SIGINT, self._handler)
            if self._waiting is not None:
                self._handler(*self._waiting)


def _clear_gradients(run: Run) -> None:
    """Set what a backward that was interrupted has left to 0, for the step that comes next."""
    with _Uninterrupted():
        for matrix in run.adam.params:
            for row in matrix:
                for value in row:
                    value.grad = 0.0


def _loss(run: Run, batch: list[list[int]]) -> tuple[float, Callable[[], None]]:
    """Return the loss of a batch and the function that runs backward from it."""
    if len(batch) == 1 and grad_enabled() and can_be_recorded(run.model):
        return run._recorded.of(run.model, batch[0])
    loss = run.model.loss(batch)
    return loss.data, loss.backward


def train(
    docs: Iterable[str],
    steps: int = 1000,
    seed: int = 42,
    lr: float = 0.01,
    n_layer: int = 1,
    n_embd: int = 16,
    n_head: int = 4,
    block_size: int = 16,
    batch_size: int = 1,
    callback: Callable[[int, float], object] | None = None,
) -> Run:
    """Train a GPT on docs and return the run.

    callback: called after each step with its number, counted from 1, and its loss.
    The other arguments and the errors are those of prepare and train_step.
    """
    run = prepare(docs, steps, seed, lr, n_layer, n_embd, n_head, block_size, batch_size)
    for step in range(1, steps + 1):
        loss = train_step(run)
        if callback is not None:
            callback(step, loss)
    return run
