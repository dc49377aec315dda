"""Runs in files: save and load.

A checkpoint is a safetensors file. It holds the parameters under the names of `state_dict`, Adam's
moments as `adam.m.NAME` and `adam.v.NAME`, and `losses`. The rest of a run, all but its documents,
is in the metadata, under the names that `_metadata` gives. What a run has recorded is in both,
under names that begin with `record`.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from random import Random
from reprlib import repr as shorten
from typing import Any

from . import __version__
from . import _checks as checks
from .adam import Adam
from .core import Matrix
from .data import checked_documents, checksum, source_of, train_val_split
from .files import named, one_line, printable
from .model import GPT, Config, check_model_class
from .record import is_of_record, read_record
from .safetensors import Reader, encode, json_object, write
from .tokenizer import Tokenizer
from .training import Run, TrainConfig, check_run

FORMAT = 3  # raised when an older package would misread the file
_TYPES = {"float64": "F64", "float32": "F32"}  # of a Matrix, in the file
_MANY = 10**12  # more than any run has steps, or a step has positions


def save(run: Run, path: str | os.PathLike[str]) -> None:
    """Write a run, without its documents, to a safetensors file.

    At any moment path holds the whole run or what it held before. While another thread takes a step
    of the run, save waits for its end.
    Raises an OSError whose message is one line, FloatingPointError if a parameter is not finite,
    TypeError or ValueError if a count of the run was set to what is none.
    """
    check_run(run, "save")
    name = os.fsdecode(path)
    with named(name):
        write(name, *_parts(run))


def to_bytes(run: Run, **notes: str) -> bytes:
    """Return what save would write; notes: more entries of the metadata, which load ignores.

    Raises FloatingPointError, TypeError and ValueError as save does.
    """
    metadata, tensors = _parts(run)
    return b"".join(encode({**metadata, **notes}, tensors))


def _parts(run: Run) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Return the metadata and the tensors of a run, all of one time."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    with run._whole:
        for name, matrix in _matrices(run.model, run.adam):
            data = memoryview(matrix.data).tobytes()
            tensors[name] = _TYPES[matrix.dtype], matrix.shape, data
        losses = run.losses[: run.adam.step]  # without that of a step that was not taken
        tensors["losses"] = "F64", (len(losses),), array("d", losses).tobytes()
        metadata = _metadata(run)
        if run.record is not None:
            tensors |= run.record.tensors(run.model.num_params)
            metadata["record"] = run.record.metadata()
        return metadata, tensors


def _matrices(model: GPT, adam: Adam) -> Iterable[tuple[str, Matrix]]:
    """Yield every Matrix of a run with its name in the file."""
    for name, p, m, v in zip(model.named_parameters(), adam.params, adam.m, adam.v, strict=True):
        yield from ((name, p), (f"adam.m.{name}", m), (f"adam.v.{name}", v))


def _metadata(run: Run) -> dict[str, str]:
    """Return what the header says about a run, as strings.

    What a loop of one's own can have set is converted, or refused before a file is written.
    """
    adam = run.adam
    rates = checks.adam_rates(adam.step, 0.0, adam.beta1, adam.beta2, checks.real(adam.eps, "eps"))
    state = {
        "step": rates[0],
        "adam": rates[2:],
        "rng": run.rng.getstate(),
        "tokens": checks.integer(run.tokens, "tokens", 0),
        "seconds": checks.real(run.seconds, "seconds"),
        "val_losses": [*_val_losses([[*pair] for pair in run.val_losses.items()]).items()],
    }
    model = run.model
    first = {id(matrix): name for name, matrix in model.named_parameters().items()}
    tied = {name: first[id(m)] for name, m in model.state_dict.items() if first[id(m)] != name}
    return {
        "format": "pt",  # what transformers and other loaders ask for
        "microgpt": str(FORMAT),
        "version": __version__,
        "model": type(model).__name__,
        **({"tied": json.dumps(tied)} if tied else {}),
        "config": json.dumps(asdict(model.config)),
        "alphabet": run.tokenizer.chars,
        "training": json.dumps(asdict(run.config)),
        "state": json.dumps(state, allow_nan=False),
        "dataset": run.dataset,
        "dataset_sha256": run.sha256,
    }


def load(
    path: str | os.PathLike[str], docs: Iterable[str] | None = None, *, model: type[GPT] = GPT
) -> Run:
    """Return the run that was saved as path.

    docs: its documents, as they were given to it and in the same order; it can then be continued,
    and its further steps are bit-identical to those of an uninterrupted run. Without them it can
    be sampled, scored and evaluated. A stream of format 1 has no further steps.
    model: the class of its model; the file has only its name.

    Raises an OSError if the file cannot be read, ValueError if it is not a checkpoint, is damaged,
    is of a newer format or of another model, or docs are not what it was trained on. The message
    is one line and names the file.
    """
    check_model_class(model)
    documents = None if docs is None else checked_documents(docs)
    with _opened(path) as reader:
        run = _run(reader, _contents(reader), model)
        return run if documents is None else with_documents(run, documents)


@dataclass(frozen=True)
class Contents:
    """What a file says of its run, of a model of any class.

    model: the name of the class of the model.
    shapes: name -> shape of each parameter; tied: its other names -> name.
    step, tokens, seconds, losses, val_losses, dataset, sha256: as in Run.
    adam: beta1, beta2 and eps.
    """

    model: str
    config: Config
    tokenizer: Tokenizer
    training: TrainConfig
    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    step: int
    adam: tuple[float, float, float]
    rng: Random
    tokens: int
    seconds: float
    losses: list[float]
    val_losses: dict[int, float]
    dataset: str
    sha256: str


def contents(path: str | os.PathLike[str]) -> Contents:
    """Return what a file says of its run, without the numbers of the model.

    Raises what load raises, but for a file of any class of model.
    """
    with _opened(path) as reader:
        return _contents(reader)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Reader]:
    """Open a file to read; errors name it."""
    name = os.fsdecode(path)
    try:
        with named(name):
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
                raise ValueError("is not a file" if not os.path.isdir(path) else "is a folder")
            with open(path, "rb") as file:
                yield Reader(file)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{printable(name)}: {one_line(str(error), 280)}") from None


def from_bytes(content: bytes, docs: list[str]) -> Run:
    """Return the run whose file has this content, with its documents.

    Raises ValueError as load does, without the name of a file.
    """
    try:
        reader = Reader(io.BytesIO(content))
        return with_documents(_run(reader, _contents(reader), GPT), docs)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def with_documents(run: Run, docs: list[str]) -> Run:
    """Return a loaded run with its documents; raise ValueError if docs are others."""
    if checksum(docs) != run.sha256:
        raise ValueError("the data is not what the run was trained on (the checksum differs)")
    run.tokenizer.encode("".join(sorted({char for doc in docs for char in doc})))
    config, block_size = run.config, run.model.config.block_size
    training, validation = train_val_split(
        docs, Random(config.seed), config.unit, config.val_fraction, block_size, config.val_seed
    )
    dataset = source_of(docs, config.unit, run.sha256) or run.dataset
    return replace(run, documents=training, validation=validation, dataset=dataset)


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether path is a file of this package, of any format."""
    try:
        with open(path, "rb") as file:
            return "microgpt" in Reader(file).metadata
    except (OSError, ValueError):
        return False


def _contents(reader: Reader) -> Contents:
    metadata = reader.metadata
    found = _format(metadata)
    if found < 2:
        metadata = _translated(metadata)
    for key in _KEYS:
        _require(key in metadata, f"the metadata has no {key}")
    later = {"dtype": "float64"} if found < 3 else {}
    config = _fields(Config, metadata["config"], "the config", later)
    _require(config.n_layer <= len(reader.shapes), f"it has fewer than {config.n_layer} layers")
    tokenizer = Tokenizer(metadata["alphabet"])
    _require(tokenizer.chars == metadata["alphabet"], "the alphabet is not in order")
    _require(
        tokenizer.vocab_size == config.vocab_size,
        f"{len(tokenizer.chars)} characters and BOS do not make vocab_size {config.vocab_size}",
    )
    training = _fields(TrainConfig, metadata["training"], "the training")
    state = _state(metadata["state"])
    _require("losses" in reader.shapes, "it has no losses")
    losses = reader.shapes["losses"]
    _require(
        len(losses) == 1 and losses[0] <= state["step"],
        f"losses has shape {shorten(losses)} at step {state['step']}",
    )
    _require(reader.types["losses"] == "F64", "losses is F32, not F64")
    tied = json_object(metadata.get("tied", "{}"), "tied")
    _require(all(isinstance(name, str) for name in tied.values()), "tied is not made of names")
    return Contents(
        metadata["model"],
        config,
        tokenizer,
        training,
        {name: shape for name, shape in reader.shapes.items() if _is_parameter(name)},
        tied,
        losses=reader.numbers("losses").tolist(),
        dataset=metadata["dataset"],
        sha256=metadata["dataset_sha256"],
        **state,
    )


def _is_parameter(name: str) -> bool:
    return name != "losses" and not name.startswith(("adam.", "record."))


def _run(reader: Reader, found: Contents, model_class: type[GPT]) -> Run:
    """Return the run of a file, whose model is of this class."""
    own, asked = found.model, model_class.__name__
    if own != asked:
        own = own if own.isidentifier() and len(own) < 80 else shorten(own)
        way = "load(path)" if own == "GPT" else f"in Python, load(path, model={own})"
        raise ValueError(f"its model is of class {own}, not {asked}: {way} reads it")
    if model_class is GPT:  # before one of these sizes is made
        kinds = {name: (found.config.dtype, shape) for name, shape in found.config.shapes().items()}
        _check_tensors(reader, kinds)
    model = model_class(found.config, Random(0))
    parameters = model.named_parameters()
    kinds = {name: (matrix.dtype, matrix.shape) for name, matrix in parameters.items()}
    _check_tensors(reader, kinds)
    adam = Adam(parameters.values(), *found.adam)
    adam.step = found.step
    for name, matrix in _matrices(model, adam):
        numbers = reader.numbers(name)
        _require(not name.startswith("adam.v.") or min(numbers) >= 0, f"{name} is below 0")
        cols = matrix.shape[1]
        matrix.load([numbers[i : i + cols] for i in range(0, len(numbers), cols)])
    return Run(
        found.training,
        found.tokenizer,
        model,
        adam,
        found.rng,
        dataset=found.dataset,
        sha256=found.sha256,
        losses=found.losses,
        val_losses=found.val_losses,
        tokens=found.tokens,
        seconds=found.seconds,
        record=read_record(reader, found.tokenizer, model, found.step),
    )


_KEYS = ("model", "config", "alphabet", "training", "state", "dataset", "dataset_sha256")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _format(metadata: dict[str, str]) -> int:
    _require("microgpt" in metadata, "is a safetensors file, but not from microgpt")
    text = metadata["microgpt"]
    _require(
        re.fullmatch("[1-9][0-9]{0,8}", text) is not None,
        f"its format is {shorten(text)}, which no version of microgpt writes",
    )
    _require(
        int(text) <= FORMAT,
        f"is of format {text}, from microgpt {shorten(metadata.get('version'))}; "
        f"microgpt {__version__} reads formats up to {FORMAT}",
    )
    return int(text)


def _translated(metadata: dict[str, str]) -> dict[str, str]:
    """Return the metadata of a file of format 1 as format 2 has it."""
    _require("training" in metadata, "the metadata has no training")
    _require("seed" in metadata, "the metadata has no seed")
    old = json_object(metadata["training"], "the training")
    seed, split = metadata["seed"], str(old.get("split"))
    _require(re.fullmatch("-?[0-9]{1,30}", seed) is not None, f"the seed is {shorten(seed)}")
    units = {"lines": "line", "paragraphs": "paragraph", "stream": "stream"}
    _require(split in units, f"split is {shorten(split)}")
    training = {name: old.get(name) for name in ("steps", "lr", "batch_size", "val_fraction")}
    training |= {"seed": int(seed), "unit": units[split]}
    if split == "stream":  # the windows of its further steps were drawn otherwise: it is done
        training["steps"] = old.get("step")
    state = {name: old.get(name) for name in ("step", "adam", "rng", "tokens", "seconds")}
    texts = {"model": "GPT", "training": json.dumps(training), "state": json.dumps(state)}
    return {**metadata, **texts}


def _fields(
    config_class: type[Any], text: str, what: str, later: Mapping[str, Any] | None = None
) -> Any:
    """Return an instance of a config class from the JSON of its fields.

    later: name -> value of fields that a file of its format does not have. One whose default is
    None may be missing too, in a file that is older than it: None is what was.
    """
    may_miss = {field.name: None for field in fields(config_class) if field.default is None}
    settings = may_miss | dict(later or {}) | json_object(text, what)
    different = settings.keys() ^ {field.name for field in fields(config_class)}
    names = shorten(sorted(different))
    _require(not different, f"{what} has unknown or missing entries: {names}")
    return config_class(**settings)


def _state(text: str) -> dict[str, Any]:
    """Return the checked progress of the training, with a generator as `rng`."""
    state = json_object(text, "the state")
    step, adam = state.get("step"), state.get("adam")
    state["step"] = checks.integer(step, "step", 0, _MANY)  # more than the run's: a loop of its own
    most = _MANY**2 + state["step"] * _MANY  # so that it holds after further steps too
    state["tokens"] = checks.integer(state.get("tokens"), "tokens", 0, most)
    state["seconds"] = checks.real(state.get("seconds"), "seconds")
    if not isinstance(adam, list) or len(adam) != 3:
        raise ValueError("adam is not beta1, beta2 and eps")
    constants = [checks.real(value, "a constant of Adam") for value in adam]
    state["adam"] = checks.adam_rates(step, 0.0, *constants)[2:]
    state["rng"] = _generator(state.get("rng"))
    state["val_losses"] = _val_losses(state.get("val_losses", []))  # older files have none
    kept = ("step", "adam", "rng", "tokens", "seconds", "val_losses")
    return {name: state[name] for name in kept}


def _val_losses(pairs: Any) -> dict[int, float]:
    if not (isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs)):
        raise ValueError("val_losses is not a list of steps with their losses")
    return {
        checks.integer(step, "the step of a validation loss", 1, _MANY):
        checks.real(loss, "a validation loss") for step, loss in pairs
    }  # fmt: skip


def _generator(state: Any) -> Random:
    rng = Random(0)
    try:
        version, words, gauss_next = state
        rng.setstate((version, tuple(words), gauss_next))
        _require(gauss_next is None or math.isfinite(gauss_next), "gauss")
    except (ValueError, TypeError, OverflowError):
        raise ValueError("rng is not the state of a random.Random") from None
    return rng


def _check_tensors(reader: Reader, kinds: Mapping[str, tuple[str, tuple[int, int]]]) -> None:
    """Raise ValueError unless the tensors of a file are those of parameters.

    kinds: name -> dtype and shape of each parameter.
    """
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, kind in kinds.items():
        wanted |= {name: kind, f"adam.m.{name}": kind, f"adam.v.{name}": kind}
    names = {name for name in reader.shapes if not is_of_record(name)}
    missing, unknown = wanted.keys() - names, names - {*wanted, "losses"}
    if any(map(_is_parameter, missing | unknown)):  # whose moments are then no news
        missing, unknown = (set(filter(_is_parameter, names)) for names in (missing, unknown))
    parts = [f"{what} {shorten(sorted(names))}" for what, names in
             (("lacks", missing), ("has unknown", unknown)) if names]  # fmt: skip
    _require(not parts, f"it {' and '.join(parts)}")
    for name, (dtype, shape) in wanted.items():
        _require(
            reader.types[name] == _TYPES[dtype],
            f"{name} is {reader.types[name]}, its config asks for {dtype}",
        )
        found = reader.shapes[name]
        _require(
            found == shape,
            f"{name} has shape {shorten(found)}, its config asks for {shape}",
        )
