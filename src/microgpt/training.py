"""Training: one step, and the loop of steps."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself costs ten times as much
import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from random import Random
from threading import get_ident, main_thread
from time import perf_counter
from typing import Any

from .adam import Adam, linear_decay
from .checkpoint import Checkpoint
from .core import Ids, Recording, grad_enabled
from .data import SPLITS, checksum, windows
from .evaluate import mean_loss
from .model import GPT, Config, can_be_recorded
from .tokenizer import Tokenizer

Callback = Callable[[int, Mapping[str, float]], object]


@dataclass
class Run:
    """A training: what it learns from, what it learns, and how far it is.

    One generator, `rng`, has shuffled the documents and drawn the parameters and will draw the
    windows of a stream and the samples, in this order, so that a run gives the numbers of the
    script.

    validation: documents that are kept from the training.
    split: as in load_documents. A "stream" is one document, and a step takes windows of it.
    dataset: the source for load_documents, if it is known; a saved run is resumed from it.
    sha256: checksum of the documents as they were given.
    tokens, seconds: how many positions the run has learned from, and how long that took.
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
    validation: list[str] = field(default_factory=list)
    seed: int = 42
    split: str = "lines"
    val_fraction: float = 0.0
    dataset: str = ""
    sha256: str = ""
    tokens: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._recorded = _RecordedLoss()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_recorded": _RecordedLoss()}  # a recording is not copied

    @property
    def num_cut(self) -> int:
        """How many documents are longer than block_size can hold, with the BOS that ends them."""
        if self.split == "stream":
            return 0
        return sum(len(doc) + 1 > self.model.config.block_size for doc in self.documents)

    def batch(self, step: int) -> list[list[int]]:
        """Return the token ids of the documents of a step, counted from 0, as far as they are used.

        Of a stream the windows are drawn, so that each call gives others.
        """
        first, docs, length = step * self.batch_size, self.documents, self.model.config.block_size
        numbers = range(first, first + self.batch_size)
        if self.split == "stream":
            [text] = docs
            places = [self.rng.randrange(max(1, len(text) - length + 1)) for _ in numbers]
            return [self.encode(text[place : place + length]) for place in places]
        encode, n = self.tokenizer.encode, len(docs)
        return [encode(docs[i % n])[: length + 1] for i in numbers]

    def encode(self, doc: str) -> list[int]:
        """Return the token ids of a document, or of a window of a stream, which no BOS ends."""
        ids = self.tokenizer.encode(doc)
        return ids[:-1] if self.split == "stream" else ids

    def val_loss(self) -> float:
        """Return the mean loss over all positions of the validation documents."""
        return mean_loss(self.model, [self.encode(doc) for doc in self.validation])


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
    val_fraction: float = 0.0,
    split: str = "lines",
    init: Checkpoint | None = None,
) -> Run:
    """Return a run that has not taken a step: documents shuffled, parameters drawn.

    docs: the documents; an empty one is an error.
    steps: how many steps the learning rate is to decay over.
    lr: the learning rate of the first step; it falls to 0 in a straight line.
    batch_size: documents a step.
    val_fraction: the part of the documents that is kept for validation, without duplicates;
        of a stream, the end of the text.
    split: how docs were split, as in load_documents; of a "stream", each step takes batch_size
        windows of block_size characters.
    init: a model to start from; it brings its alphabet and its sizes.
    The sizes are those of Config.

    Raises TypeError if docs is a string, or a document is none, or steps or batch_size is not an
    int; ValueError if there are no documents, one is empty, steps or lr is negative or not
    finite, a size does not fit, nothing is left to train on, or a character is not in the alphabet
    of init.
    """
    if isinstance(docs, str):
        raise TypeError("docs must be a list of strings; load_documents reads a file")
    documents = list(docs)
    for doc in documents:
        if not isinstance(doc, str):
            raise TypeError(f"a document must be a string, not {type(doc).__name__}")
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        if not isinstance(number, int):
            raise TypeError(f"{name} must be an int, not {type(number).__name__}")
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
    if init is None:
        tokenizer = Tokenizer.from_documents(documents)
        config = Config(tokenizer.vocab_size, n_layer, n_embd, n_head, block_size)
    else:
        tokenizer, config = init.tokenizer, init.model.config
        tokenizer.encode("".join(sorted({char for doc in documents for char in doc})))
    training, validation = _parts(documents, rng, val_fraction, split, config.block_size)
    model = GPT(config, rng)
    if init is not None:
        model.load_state_dict(init.model.state_dict)
    return Run(
        documents=training,
        tokenizer=tokenizer,
        model=model,
        adam=Adam(model.state_dict.values()),
        rng=rng,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        validation=validation,
        seed=seed,
        split=split,
        val_fraction=val_fraction,
        sha256=checksum(documents),
    )


def _parts(
    docs: Sequence[str], rng: Random, val_fraction: float, split: str, block_size: int
) -> tuple[list[str], list[str]]:
    """Return the documents to train on, shuffled by rng, and those to validate on."""
    if split not in SPLITS:
        raise ValueError(f"split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, not {split!r}")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be from 0 to below 1, not {val_fraction}")
    if split == "stream":
        text = "\n".join(docs)
        kept = _kept(len(text), val_fraction)
        return [text[: len(text) - kept]], windows(text[len(text) - kept :], block_size)
    # a document on both sides would be known by heart, not predicted
    documents = list(dict.fromkeys(docs) if val_fraction else docs)
    rng.shuffle(documents)
    kept = _kept(len(documents), val_fraction)
    return documents[: len(documents) - kept], documents[len(documents) - kept :]


def _kept(n: int, val_fraction: float) -> int:
    """Return how many of n are kept for validation: at least one, if any are to be."""
    kept = max(1, round(n * val_fraction)) if val_fraction else 0
    if kept >= n:
        raise ValueError(f"val_fraction {val_fraction} of {n} leaves nothing to train on")
    return kept


def resume(docs: Iterable[str], checkpoint: Checkpoint) -> Run:
    """Return the run of a checkpoint with its documents, where it was when it was saved.

    Its further steps give the bits that the uninterrupted run gives.
    docs: the documents as they were given to the run, in the same order. ValueError if they are
    others.
    """
    documents = list(docs)
    if checksum(documents) != checkpoint.sha256:
        raise ValueError("the data is not what the run was trained on (another checksum)")
    state = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    rng, block_size = Random(checkpoint.seed), checkpoint.model.config.block_size
    training, validation = _parts(
        documents, rng, checkpoint.val_fraction, checkpoint.split, block_size
    )
    return Run(training, validation=validation, **state)


def train_step(run: Run) -> float:
    """Learn from the next documents and return their loss, taken before the parameters changed.

    A step is taken whole or not at all, also when Ctrl-C interrupts it.
    Raises ValueError if the run has taken all its steps, RuntimeError under no_grad,
    FloatingPointError if the loss is not finite; the parameters are then as before.
    """
    step, start = run.adam.step, perf_counter()
    if not grad_enabled():
        raise RuntimeError("a training step needs gradients: it cannot be taken under no_grad()")
    if step >= run.steps:
        raise ValueError(f"the run has taken all its {run.steps} steps")
    collecting = gc.isenabled()
    drawing = run.rng.getstate() if run.split == "stream" else None  # batch draws its windows
    try:
        gc.disable()  # a graph has no cycles; searching it for some takes a third of a pure step
        batch = run.batch(step)
        loss, backward = _loss(run, batch)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step + 1}; a smaller lr than {run.lr} may help"
            )
        try:
            backward()
            with _Uninterrupted():
                run.adam.update(linear_decay(run.lr, step, run.steps))
                run.losses.append(loss)
                run.tokens += sum(map(len, batch)) - len(batch)
                run.seconds += perf_counter() - start
        except BaseException:
            if run.adam.step == step:  # else the step was taken, and the interrupt came after it
                _clear_gradients(run)
            raise
    except BaseException:
        if drawing is not None and run.adam.step == step:
            run.rng.setstate(drawing)
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
    if len(batch) == 1 and can_be_recorded(run.model):
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
    val_fraction: float = 0.0,
    split: str = "lines",
    init: Checkpoint | None = None,
    eval_every: int = 0,
    callback: Callback | None = None,
) -> Run:
    """Train a GPT on docs and return the run.

    eval_every, callback: as in finish. The other arguments and the errors are those of prepare
    and train_step.
    """
    run = prepare(
        docs, steps, seed, lr, n_layer, n_embd, n_head, block_size, batch_size, val_fraction,
        split, init,
    )  # fmt: skip
    return finish(run, eval_every, callback)


def finish(run: Run, eval_every: int = 0, callback: Callback | None = None) -> Run:
    """Take the steps that a run has left and return it.

    callback: called after each step with its number, counted from 1, and a dict: its `loss` and
        `lr`, `tokens` and `seconds` as in Run, and `val_loss` where it was measured.
    eval_every: measure the validation loss after every so many steps; in any case after the last.
    """
    while run.adam.step < run.steps:
        lr = linear_decay(run.lr, run.adam.step, run.steps)
        metrics = {"loss": train_step(run), "lr": lr}
        if callback is None:
            continue
        step = run.adam.step
        metrics |= {"tokens": run.tokens, "seconds": run.seconds}
        if run.validation and (step == run.steps or eval_every and step % eval_every == 0):
            metrics["val_loss"] = run.val_loss()
        callback(step, metrics)
    return run
