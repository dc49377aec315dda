"""Training: one step, and the loop of steps."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from .adam import Adam, linear_decay
from .model import GPT, Config
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
    losses: list[float] = field(default_factory=list)

    @property
    def num_cut(self) -> int:
        """How many documents are longer than block_size can hold, with the BOS that ends them."""
        return sum(len(doc) + 1 > self.model.config.block_size for doc in self.documents)


def prepare(
    docs: Iterable[str],
    steps: int = 1000,
    seed: int = 42,
    lr: float = 0.01,
    n_layer: int = 1,
    n_embd: int = 16,
    n_head: int = 4,
    block_size: int = 16,
) -> Run:
    """Return a run that has not taken a step: documents shuffled, parameters drawn.

    docs: the documents; an empty one is an error.
    steps: how many steps the learning rate is to decay over.
    lr: the learning rate of the first step; it falls to 0 in a straight line.
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
    rng = Random(seed)
    rng.shuffle(documents)
    tokenizer = Tokenizer.from_documents(documents)
    config = Config(tokenizer.vocab_size, n_layer, n_embd, n_head, block_size)
    model = GPT(config, rng)
    return Run(documents, tokenizer, model, Adam(model.state_dict.values()), rng, steps, lr)


def train_step(run: Run) -> float:
    """Learn from the next document and return its loss, taken before the parameters changed.

    Raises ValueError if the run has taken all its steps, FloatingPointError if the loss is not
    finite; the parameters are then as before.
    """
    step = run.adam.step
    if step >= run.steps:
        raise ValueError(f"the run has taken all its {run.steps} steps")
    doc = run.documents[step % len(run.documents)]
    collecting = gc.isenabled()
    gc.disable()  # a graph has no cycles, and searching it for some is two thirds of a pure step
    try:
        loss = run.model.loss([run.tokenizer.encode(doc)])
        if not math.isfinite(loss.data):
            raise FloatingPointError(
                f"the loss is {loss.data} at step {step + 1}; a smaller lr than {run.lr} may help"
            )
        loss.backward()
        run.adam.update(linear_decay(run.lr, step, run.steps))
    finally:
        if collecting:
            gc.enable()
    run.losses.append(loss.data)
    return loss.data


def train(
    docs: Iterable[str],
    steps: int = 1000,
    seed: int = 42,
    lr: float = 0.01,
    n_layer: int = 1,
    n_embd: int = 16,
    n_head: int = 4,
    block_size: int = 16,
    callback: Callable[[int, float], object] | None = None,
) -> Run:
    """Train a GPT on docs, one document a step, and return the run.

    callback: called after each step with its number, counted from 1, and its loss.
    The other arguments and the errors are those of prepare and train_step.
    """
    run = prepare(docs, steps, seed, lr, n_layer, n_embd, n_head, block_size)
    for step in range(1, steps + 1):
        loss = train_step(run)
        if callback is not None:
            callback(step, loss)
    return run
