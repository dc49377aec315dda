"""Training: its settings, one step, and the loop of steps."""

from __future__ import annotations

import math
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from random import Random
from threading import RLock
from time import perf_counter
from typing import Any

from . import _checks as checks
from .adam import Adam, linear_decay
from .core import BACKEND_REASON, Matrix, Replay, grad_enabled, pack_encoded
from .data import check_unit, checked_documents, checksum, source_of, train_val_split
from .evaluate import mean_loss
from .interrupts import interrupts_deferred, without_collector
from .model import GPT, Config, check_model_class, check_numbers
from .progress import Progress, someone_looks
from .record import Record
from .tokenizer import Tokenizer

Callback = Callable[[int, Mapping[str, float]], object]
RECENT = 100  # steps whose mean loss is shown


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training, which cannot change while it lasts.

    steps: training steps; the learning rate decays over them.
    lr: initial learning rate, decayed linearly to 0.
    batch_size: documents per step.
    seed: seed of the random number generator.
    unit: what counts as one document, as in load_documents. From a "stream" each step takes
        batch_size windows of block_size characters.
    val_fraction: fraction of the documents held out for validation, without duplicates; of a
        stream, the end of the text.
    val_seed: chooses the validation documents, so that runs with other seeds are measured on the
        same ones; None: the seed of the run does. Those of a stream depend on neither.

    Raises TypeError if a setting has the wrong type, ValueError if it is out of range.
    """

    steps: int = 1000
    lr: float = 0.01
    batch_size: int = 1
    seed: int = 42
    unit: str = "line"
    val_fraction: float = 0.0
    val_seed: int | None = None

    def __post_init__(self) -> None:
        checked = {
            "steps": checks.integer(self.steps, "steps", 0, 10**12),
            "lr": checks.real(self.lr, "lr"),
            "batch_size": checks.integer(self.batch_size, "batch_size", 1, 10**6),
            "seed": checks.integer(self.seed, "seed", -(2**64), 2**64),
            "val_fraction": checks.real(self.val_fraction, "val_fraction"),
        }
        if self.val_seed is not None:
            checked["val_seed"] = checks.integer(self.val_seed, "val_seed", -(2**64), 2**64)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.val_seed is not None and not self.val_fraction:
            raise ValueError("val_seed chooses validation documents: it needs a val_fraction")
        if self.val_fraction >= 1:
            raise ValueError(f"val_fraction must be below 1, not {self.val_fraction}")
        check_unit(self.unit)


def recent_mean(losses: Sequence[float]) -> float:
    """Return the mean of the last 100 losses, nan if there are none."""
    recent = losses[-RECENT:]
    if not recent:
        return math.nan
    return math.fsum(loss / 128 for loss in recent) / len(recent) * 128  # no sum is infinite


@dataclass(repr=False)
class Run:
    """A training: its data, its model and its progress.

    One generator, `rng`, has shuffled the documents and drawn the parameters and will draw the
    samples, in this order, so that a run gives the numbers of the script.

    documents: those to train on, in order; none in a run that was loaded without them. A stream
        is one document. They are encoded once, when the first step takes some, and not looked at
        again.
    validation: documents held out for validation.
    dataset: the source for load_documents, if it is known, as it is of what load_documents
        returned; a saved run is resumed from it.
    sha256: checksum of the documents as they were given.
    losses: the loss of each step, before its update.
    val_losses: step -> the validation loss after it, where `steps` measured it.
    tokens, seconds: how many positions the run has learned from, and how long that took.
    record: what is kept of the training for a page about it; None: nothing.

    The parts of a run cannot be replaced: setting another model, say, raises AttributeError.
    """

    config: TrainConfig
    tokenizer: Tokenizer
    model: GPT
    adam: Adam
    rng: Random
    documents: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    dataset: str = ""
    sha256: str = ""
    losses: list[float] = field(default_factory=list)
    val_losses: dict[int, float] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    record: Record | None = None

    def __post_init__(self) -> None:
        self._replay = Replay(self.model.packed_loss)
        self._takes_step = False  # so that another step is refused meanwhile
        self._whole = RLock()  # held while the run changes, and by who needs all of one time
        sizes, batch_size = self.model.config, self.config.batch_size
        longest = min(sizes.block_size, max(map(len, self.documents), default=-1) + 1)
        numbers = sizes.numbers(batch_size * longest, longest)
        check_numbers(numbers, self.model.num_params, f"a step of batch_size {batch_size}")

    def __repr__(self) -> str:
        model = f"{type(self.model).__name__} {self.model.num_params:,} params"
        loss = f"loss {self.recent_loss:.2f}, " if self.losses else ""
        return f"Run(step {self.adam.step} of {self.config.steps}, {loss}{model})"

    def __reduce__(self) -> tuple[Any, ...]:
        with self._whole:  # while another thread trains, all of one step; no graphs, no locks
            return type(self), deepcopy(tuple(getattr(self, f.name) for f in fields(self)))

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("config", "tokenizer", "model", "adam", "rng") and hasattr(self, name):
            raise AttributeError(f"the {name} of a run cannot be replaced: prepare another run")
        if name in ("dataset", "sha256"):
            value = os.fsdecode(value)  # type: ignore[arg-type]  # of a path too; TypeError
        object.__setattr__(self, name, value)
        if name == "documents":
            self._encoded: tuple[array[int], Sequence[int], int, int] | None = None  # when needed

    @property
    def recent_loss(self) -> float:
        """The mean loss of the last 100 steps, less noisy than the last one; nan before a step."""
        return recent_mean(self.losses)

    @property
    def num_cut(self) -> int:
        """The number of documents that, with the BOS that ends them, do not fit into block_size."""
        if self.config.unit == "stream":
            return 0
        return sum(len(doc) + 1 > self.model.config.block_size for doc in self.documents)

    def batch(self, step: int) -> list[list[int]]:
        """Return the token ids of the documents of a step, counted from 0, cut to what is used.

        Those of a stream are windows, drawn by a generator seeded with seed and step.
        Raises ValueError if the run has no documents.
        """
        tokens, targets, starts = self._pack(step)
        ends = [*starts[1:], len(tokens)]
        return [[tokens[i], *targets[i:end]] for i, end in zip(starts, ends, strict=True)]

    def _pack(self, step: int) -> tuple[list[int], list[int], list[int]]:
        """Return tokens, targets and first rows of the documents of a step."""
        encoded, config = self._encoded, self.config
        if encoded is None:
            encoded = self._encoded = self._encode_all()
        ids, begins, block_size, bos = encoded
        size, n = config.batch_size, len(begins)
        first = step * size % n
        if config.unit == "stream":
            rng, last = Random(f"{config.seed}/{step}"), max(0, len(ids) - block_size)
            begins = [rng.randint(0, last) for _ in range(size)]
        elif first + size <= n:
            begins = begins[first : first + size]
        else:
            begins = [begins[i % n] for i in range(first, first + size)]
        return pack_encoded(ids, begins, block_size, bos)

    def _encode_all(self) -> tuple[array[int], Sequence[int], int, int]:
        """Return the ids of all documents and where each begins; then what packing them takes."""
        if not self.documents:
            raise ValueError("the run was loaded without its documents: use load(path, docs)")
        ids = self.tokenizer.encode_all(self.documents)
        begins = array("Q", accumulate([len(doc) + 1 for doc in self.documents[:-1]], initial=0))
        if self.config.unit == "stream":
            ids.pop()  # no BOS ends a window
        return ids, begins, self.model.config.block_size, self.tokenizer.bos

    def encode(self, doc: str) -> list[int]:
        """Return the token ids of a document, or of a window of a stream, which no BOS ends."""
        ids = self.tokenizer.encode(doc)
        return ids[:-1] if self.config.unit == "stream" else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, without a BOS at either end."""
        return self.tokenizer.decode(ids)

    def val_loss(self) -> float:
        """Return the mean loss over all positions of the validation documents.

        Raises ValueError if there are none.
        """
        if not self.validation:
            raise ValueError("the run has no validation documents: prepare it with val_fraction")
        return mean_loss(self.model, [self.encode(doc) for doc in self.validation])


def prepare(
    docs: Iterable[str],
    *,
    init: Run | None = None,
    model: type[GPT] = GPT,
    steps: int = TrainConfig.steps,
    lr: float = TrainConfig.lr,
    batch_size: int = TrainConfig.batch_size,
    seed: int = TrainConfig.seed,
    unit: str = TrainConfig.unit,
    val_fraction: float = TrainConfig.val_fraction,
    val_seed: int | None = TrainConfig.val_seed,
    n_layer: int = Config.n_layer,
    n_embd: int = Config.n_embd,
    n_head: int = Config.n_head,
    block_size: int = Config.block_size,
    dtype: str | None = None,
    record: bool = False,
) -> Run:
    """Return a run that has not taken a step: documents shuffled, parameters drawn.

    docs: the documents; an empty one is an error.
    init: a run to take the initial parameters, the alphabet and the sizes from; parameters of
        another type are converted.
    model: the class of the model: GPT, or a subclass of it.
    steps to val_seed: as in TrainConfig; the sizes: as in Config.
    dtype: the type of the numbers, as in Config; None: that of init, or "float64".
    record: whether to keep a Record, from which `explain` shows how the model learned.

    Raises TypeError if docs is a string, a document is not, or model is no such class; ValueError
    if there are no documents, one is empty, nothing is left to train on, a character is not in the
    alphabet of init, or a step would take very much memory; and what Config and TrainConfig raise.
    """
    config = TrainConfig(steps, lr, batch_size, seed, unit, val_fraction, val_seed)
    check_model_class(model)
    if init is not None:
        check_run(init, "init")
    documents = checked_documents(docs)
    rng = Random(config.seed)
    if init is None:
        tokenizer = Tokenizer.from_documents(documents)
        dtype = Config.dtype if dtype is None else dtype
        sizes = Config(tokenizer.vocab_size, n_layer, n_embd, n_head, block_size, dtype)
    else:
        tokenizer, sizes = init.tokenizer, init.model.config
        sizes = sizes if dtype is None else replace(sizes, dtype=dtype)
        tokenizer.encode("".join(sorted({char for doc in documents for char in doc})))
    training, validation = train_val_split(
        documents, rng, config.unit, config.val_fraction, sizes.block_size, config.val_seed
    )
    gpt = model(sizes, rng)
    if init is not None:
        gpt.load_state_dict(init.model.state_dict)
    sha256 = checksum(documents)
    return Run(
        config,
        tokenizer,
        gpt,
        Adam(gpt.parameters()),
        rng,
        training,
        validation,
        source_of(documents, config.unit, sha256),
        sha256,
        record=Record() if record else None,
    )


def check_run(run: object, taker: str) -> None:
    """Raise TypeError unless run is a Run; taker: the function that takes it."""
    if not isinstance(run, Run):
        raise TypeError(f"{taker} takes a run, of prepare, train or load, not {type(run).__name__}")


@without_collector
def train_step(run: Run) -> float:
    """Learn from the next documents and return their loss, taken before the parameters changed.

    As in the script: loss = model.loss(batch), loss.backward(), the update of Adam.
    A step is atomic, even when Ctrl-C interrupts it.
    Raises ValueError if the run has taken all its steps or has no documents, RuntimeError under
    no_grad or while another thread takes a step of the run, FloatingPointError if the loss is not
    finite; the parameters are then unchanged.
    """
    if run._takes_step:
        raise RuntimeError("another thread is taking a step of this run")
    parts = run.__dict__  # what Run.__setattr__ guards takes longer
    with run._whole:  # not acquire and try: Ctrl-C could come between them
        try:
            parts["_takes_step"] = True
            return _take_step(run)
        finally:
            parts["_takes_step"] = False


def _take_step(run: Run) -> float:
    config, model, adam, losses = run.config, run.model, run.adam, run.losses
    start, step, n = perf_counter(), adam.step, len(losses)
    if step >= config.steps:
        raise ValueError(f"the run has taken all its {config.steps} steps")
    if not grad_enabled():
        raise RuntimeError("a training step needs gradients: it cannot be taken under no_grad()")
    if run.record is not None:
        run.record.take(adam, run.batch)
        start = perf_counter()
    tokens, targets, starts = run._pack(step)
    try:
        packed_loss = run._replay if model.replayable else model.packed_loss
        loss = packed_loss(tokens, targets, starts)
        number = loss.data
        if not math.isfinite(number):
            raise FloatingPointError(
                f"the loss is {number} at step {step + 1}; a smaller lr than {config.lr} may help"
            )
        losses.append(number)
        adam.minimize(loss, linear_decay(config.lr, step, config.steps))  # backward and the update
    except BaseException:
        if adam.step == step:
            del losses[n:]
            adam.zero_grad()
        raise
    counts = run.__dict__
    counts["tokens"] += len(tokens)
    counts["seconds"] += perf_counter() - start
    return number


def steps(run: Run, eval_every: int = 0) -> Iterator[dict[str, float]]:
    """Take the steps that a run has left; after each, yield its metrics.

    These are its `step`, counted from 1, its `loss` and `lr`, `tokens` and `seconds` as in Run,
    and `val_loss` where it was measured: after every eval_every steps, and after the last.

    Ctrl-C is raised between two steps, after the body of the loop; a second one at once.
    """
    config = run.config
    with interrupts_deferred() as raise_pending:
        while run.adam.step < config.steps:
            loss = train_step(run)
            step = run.adam.step
            metrics = {
                "step": step,
                "loss": loss,
                "lr": linear_decay(config.lr, step - 1, config.steps),
                "tokens": run.tokens,
                "seconds": run.seconds,
            }
            if run.validation and (step == config.steps or eval_every and step % eval_every == 0):
                metrics["val_loss"] = run.val_losses[step] = run.val_loss()
            yield metrics
            raise_pending()


def advice(run: Run) -> list[str]:
    """Return what is worth knowing before a run is trained, in lines."""
    lines = []
    if BACKEND_REASON == "the compiled core was not built":
        lines.append(
            "the compiled core was not built, so this takes thousands of times as long: "
            "get a C compiler and install microgpt again (pip install --force-reinstall)"
        )
    parameters = set(map(id, run.model.parameters()))
    for name, thing in getattr(run.model, "__dict__", {}).items():
        if isinstance(thing, Matrix) and id(thing) not in parameters:
            lines.append(
                f"the Matrix {name} of {type(run.model).__name__} is not a parameter, so it is not "
                "trained and not saved: what init_parameters returns is"
            )
    if run.num_cut:
        lines.append(
            f"{run.num_cut} of {len(run.documents)} documents are longer than the block size "
            "and cut: a larger one (--block-size) uses more of them, --unit stream all of the text"
        )
    return lines


_given: set[str] = set()  # what finish has said: it says nothing twice


def describe_losses(run: Run) -> str:
    """Return the mean of the last losses and the last one, as progress lines show them."""
    n = min(RECENT, len(run.losses))
    return f"loss {run.recent_loss:.4f} (mean of {n}), last {run.losses[-1]:.4f}"


def finish(
    run: Run,
    eval_every: int = 0,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Run:
    """Take the steps that a run has left and return it.

    callback: called after each step with its number, counted from 1, and its metrics.
    progress: whether to draw a bar on stderr; None: on a terminal and in a notebook.
    eval_every, the metrics and Ctrl-C: as in steps. The KeyboardInterrupt has the run as `.run`,
    which finish continues.
    """
    check_run(run, "finish")
    checks.integer(eval_every, "eval_every", 0)
    if not (callback is None or callable(callback)):
        raise TypeError(f"callback must be a function, not {type(callback).__name__}")
    if progress not in (None, True, False):
        raise TypeError(f"progress must be True, False or None, not {progress!r}")
    total, bar = run.config.steps, someone_looks() if progress is None else progress
    for line in advice(run) if bar else ():
        if line not in _given:
            _given.add(line)
            print(f"microgpt: {line}", file=sys.stderr)
    try:
        with Progress(run.adam.step, total, bar) as shown:
            for metrics in steps(run, eval_every):
                if callback is not None:
                    callback(int(metrics["step"]), metrics)
                shown.update(int(metrics["step"]), lambda: describe_losses(run))
    except KeyboardInterrupt as interrupt:
        interrupt.run = run  # type: ignore[attr-defined]
        interrupt.args = interrupt.args or (
            f"interrupted at step {run.adam.step} of {total}; the run is not lost: it is this "
            "exception's .run (at a prompt: sys.last_value.run), and finish(run) goes on",
        )
        raise
    return run


def train(
    docs: Iterable[str],
    *,
    eval_every: int = 0,
    callback: Callback | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Run:
    """Train a GPT on docs and return the run: prepare(docs, **settings), then finish.

    docs: a list of strings, such as load_documents returns.
    eval_every: measure the validation loss after every so many steps, not only after the last.
    callback: called after each step with its number, counted from 1, and its metrics, those of
        steps.
    progress: whether to draw a bar on stderr; None: on a terminal and in a notebook.
    settings: steps, lr, batch_size, seed, unit, val_fraction and val_seed, as in TrainConfig;
        n_layer, n_embd, n_head, block_size and dtype, as in Config; init, model and record, as in
        prepare.

    Ctrl-C raises KeyboardInterrupt between two steps. The run is not lost: it is the `.run` of the
    exception (at a prompt and in a notebook: sys.last_value.run), and finish(run) goes on.
    Raises TypeError if a setting is unknown; FloatingPointError if the loss is not finite; and
    what prepare raises.

    >>> train(["emma", "olivia", "ava"], steps=3).adam.step
    3
    """
    known = list(prepare.__kwdefaults__ or ())
    for name in settings:
        if name not in known:
            from difflib import get_close_matches  # for an error alone

            meant = get_close_matches(name, known, 1)
            hint = f"did you mean {meant[0]}?" if meant else f"the settings are {', '.join(known)}"
            raise TypeError(f"train has no setting {name!r}; {hint}")
    return finish(prepare(docs, **settings), eval_every, callback, progress)
