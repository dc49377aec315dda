"""Runs in files: save and load.

A checkpoint is a safetensors file (https://huggingface.co/docs/safetensors): eight bytes with the
length of a JSON header, the header, and the numbers, here float64. It holds the parameters under
the names of `state_dict`, Adam's moments as `adam.m.NAME` and `adam.v.NAME`, and `losses`. The
rest stands as strings in the header's `__metadata__`, under the names that `_metadata` gives.

A file from anyone may be loaded: nothing in it is run, and nothing is believed that was not
checked against the size of the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
from array import array
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from random import Random
from reprlib import repr as shorten
from typing import TYPE_CHECKING, Any, BinaryIO

from . import __version__
from .adam import Adam
from .core import Matrix
from .data import SPLITS, printable, reason
from .model import GPT, Config
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .training import Run

FORMAT = 1  # raised when an older package would misread the file
_HEADER_LIMIT = 10_000_000  # bytes; a header of ours has ten thousand and the alphabet


@dataclass
class Checkpoint:
    """What a file holds of a run: all but its documents, and the fields are those of Run."""

    tokenizer: Tokenizer
    model: GPT
    adam: Adam
    rng: Random
    steps: int
    lr: float
    batch_size: int
    losses: list[float]
    seed: int
    split: str
    val_fraction: float
    dataset: str
    sha256: str
    tokens: int
    seconds: float

    def encode(self, doc: str) -> list[int]:
        """Return the token ids of a document, as Run.encode does."""
        ids = self.tokenizer.encode(doc)
        return ids[:-1] if self.split == "stream" else ids


def save(run: Run, path: str | os.PathLike[str]) -> None:
    """Write a run, without its documents, to a safetensors file.

    Whoever reads path finds the whole run or what was there before, at any time.
    Raises an OSError whose message is one line, FloatingPointError if a parameter is not finite.
    """
    tensors: dict[str, tuple[list[int], bytes]] = {}
    moments = zip(run.model.state_dict.items(), run.adam.m, run.adam.v, strict=True)
    for (name, matrix), m, v in moments:
        for prefix, block in (("", matrix), ("adam.m.", m), ("adam.v.", v)):
            tensors[prefix + name] = list(block.shape), memoryview(block.data).tobytes()
    tensors["losses"] = [len(run.losses)], array("d", run.losses).tobytes()
    for name, (_, data) in tensors.items():
        if not all(map(math.isfinite, memoryview(data).cast("d"))):
            raise FloatingPointError(f"not saved: {name} has a number that is not finite")
    header: dict[str, Any] = {"__metadata__": _metadata(run)}
    end = 0
    for name, (shape, data) in tensors.items():
        offsets = [end, end + len(data)]
        header[name] = {"dtype": "F64", "shape": shape, "data_offsets": offsets}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    numbers = (_little_endian(data) for _, data in tensors.values())
    try:
        _write(os.fsdecode(path), [len(text).to_bytes(8, "little"), text, *numbers])
    except OSError as error:
        raise type(error)(f"{printable(os.fsdecode(path))}: {reason(error)}") from None


def _metadata(run: Run) -> dict[str, str]:
    """Return what the header says of a run, as strings."""
    training = {
        "steps": run.steps,
        "step": run.adam.step,
        "lr": run.lr,
        "batch_size": run.batch_size,
        "split": run.split,
        "val_fraction": run.val_fraction,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "adam": [run.adam.beta1, run.adam.beta2, run.adam.eps],
        "rng": run.rng.getstate(),
    }
    return {
        "format": "pt",  # what transformers and other loaders ask for
        "microgpt": str(FORMAT),
        "version": __version__,
        "config": json.dumps(asdict(run.model.config)),
        "alphabet": run.tokenizer.chars,
        "dataset": run.dataset,
        "dataset_sha256": run.sha256,
        "seed": str(run.seed),
        "training": json.dumps(training, allow_nan=False),
    }


def _little_endian(data: bytes) -> bytes:
    """Return the bytes of float64 numbers in the order of the file, or back."""
    if sys.byteorder == "little":
        return data
    numbers = array("d", data)
    numbers.byteswap()
    return numbers.tobytes()


def _write(path: str, chunks: Iterable[bytes]) -> None:
    """Write a file under a temporary name beside it, and give it its name when it is whole."""
    target = os.path.realpath(path)  # a symbolic link stays one
    replaces = not os.path.exists(target) or os.path.isfile(target)
    part = f"{target}.part" if replaces else target  # a device is written to, not replaced
    try:
        with open(part, "wb") as file:
            file.writelines(chunks)
            file.flush()
            if replaces:
                os.fsync(file.fileno())
        if replaces:
            os.replace(part, target)
    except BaseException:  # an interrupt too must not leave it
        if replaces:
            with suppress(OSError):
                os.unlink(part)
        raise
    if replaces and hasattr(os, "O_DIRECTORY"):  # the new name too is to survive a power failure
        folder = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Return the run that was saved as path, without its documents.

    `generate` takes it as it is; `resume` gives it its documents back.
    Raises an OSError if the file cannot be read, ValueError if it is not a checkpoint, is damaged,
    or a newer version of the package wrote it. The message is one line and names the file.
    """
    name = printable(os.fsdecode(path))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for its writer
            raise ValueError("is not a file" if not os.path.isdir(path) else "is a folder")
        with open(path, "rb") as file:
            return _read(file)
    except OSError as error:
        raise type(error)(f"{name}: {reason(error)}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None


def _read(file: BinaryIO) -> Checkpoint:
    header, start = _header(file)
    metadata = header.pop("__metadata__", None)
    _check_version(metadata)
    size = os.fstat(file.fileno()).st_size - start
    places = _places(header, size)
    config = _config(metadata["config"], len(places))
    tokenizer = Tokenizer(metadata["alphabet"])
    _need(tokenizer.chars == metadata["alphabet"], "the alphabet is not in order")
    _need(
        tokenizer.vocab_size == config.vocab_size,
        f"an alphabet of {len(tokenizer.chars)} does not go with vocab_size {config.vocab_size}",
    )
    training, seed = _training(metadata["training"]), metadata["seed"]
    _need(re.fullmatch("-?[0-9]{1,4000}", seed) is not None, f"the seed is {shorten(seed)}")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in config.shapes().items():
        shapes |= {name: shape, f"adam.m.{name}": shape, f"adam.v.{name}": shape}
    shapes["losses"] = (training["step"],)
    _need(
        places.keys() == shapes.keys(),
        f"tensors that are missing or unknown: {shorten(sorted(places.keys() ^ shapes.keys()))}",
    )
    for name, wanted in shapes.items():
        found = places[name][0]
        _need(found == wanted, f"{name} has shape {shorten(found)}, its config asks for {wanted}")
    model = GPT(config, Random(0))
    adam = Adam(model.state_dict.values(), *training["adam"])
    adam.step = training["step"]
    for name, matrix, m, v in zip(
        model.state_dict, adam.params, adam.m, adam.v, strict=True
    ):
        for prefix, block in (("", matrix), ("adam.m.", m), ("adam.v.", v)):
            _fill(block, _numbers(file, start, prefix + name, places[prefix + name][1]))
    for name, v in zip(model.state_dict, adam.v, strict=True):
        _need(min(memoryview(v.data).cast("B").cast("d")) >= 0, f"adam.v.{name} is below 0")
    return Checkpoint(
        tokenizer=tokenizer,
        model=model,
        adam=adam,
        rng=training["rng"],
        steps=training["steps"],
        lr=training["lr"],
        batch_size=training["batch_size"],
        losses=_numbers(file, start, "losses", places["losses"][1]).tolist(),
        seed=int(seed),
        split=training["split"],
        val_fraction=training["val_fraction"],
        dataset=metadata["dataset"],
        sha256=metadata["dataset_sha256"],
        tokens=training["tokens"],
        seconds=training["seconds"],
    )


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where the numbers start."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    _need(size >= 8 and length <= size - 8, "is not a safetensors file, or it is cut off")
    _need(length <= _HEADER_LIMIT, f"its header has {length} bytes, {_HEADER_LIMIT} are allowed")
    return _json(file.read(length), "the header"), 8 + length


def _json(text: str | bytes, what: str) -> dict[str, Any]:
    """Return a JSON object without duplicate keys, NaN and infinities."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        _need(len(keys) == len(pairs), "a key stands twice")
        return keys

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise ValueError(f"{what} is not the JSON of a checkpoint ({error})") from None
    _need(isinstance(value, dict), f"{what} is not the JSON of a checkpoint")
    return value  # type: ignore[no-any-return]


def _check_version(metadata: Any) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    _need(texts and "microgpt" in metadata, "is a safetensors file, but not one of microgpt")
    version = metadata["microgpt"]
    _need(
        version.isascii() and version.isdigit() and len(version) < 10,
        f"its format is {shorten(version)}, which no version of microgpt writes",
    )
    _need(
        int(version) <= FORMAT,
        f"is of format {version}, from microgpt {shorten(metadata.get('version'))}; "
        f"microgpt {__version__} reads formats up to {FORMAT}",
    )
    for key in ("config", "alphabet", "dataset", "dataset_sha256", "seed", "training"):
        _need(key in metadata, f"the metadata has no {key}")


def _places(header: dict[str, Any], size: int) -> dict[str, tuple[tuple[int, ...], list[int]]]:
    """Return name -> shape and the first and last offset, all of them inside size bytes."""
    places: dict[str, tuple[tuple[int, ...], list[int]]] = {}
    for name, entry in header.items():
        title = shorten(name)
        _need(
            isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"},
            f"tensor {title} is not described by dtype, shape and data_offsets",
        )
        _need(entry["dtype"] == "F64", f"{title} is {shorten(entry['dtype'])}, not F64")
        shape, offsets = entry["shape"], entry["data_offsets"]
        for numbers in (shape, offsets):
            whole = isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
            _need(whole, f"{title} has {shorten(numbers)} where whole numbers should stand")
        fits = len(shape) <= 2 and len(offsets) == 2
        _need(
            fits and offsets[1] - offsets[0] == 8 * math.prod(shape),
            f"{title} of shape {shorten(shape)} does not fit its offsets {shorten(offsets)}",
        )
        places[name] = tuple(shape), offsets
    end = 0
    for name, (_, offsets) in sorted(places.items(), key=lambda item: item[1][1]):
        _need(offsets[0] == end, f"{shorten(name)} overlaps another tensor, or leaves a gap")
        end = offsets[1]
    _need(end == size, f"it has {size} bytes of numbers, its header tells of {shorten(end)}")
    return places


def _config(text: str, tensors: int) -> Config:
    sizes = _json(text, "the config")
    try:
        config = Config(**sizes)
    except TypeError as error:
        raise ValueError(f"the config is not one of microgpt ({error})") from None
    _need(config.n_layer <= tensors, f"n_layer is {shorten(config.n_layer)}, of {tensors} tensors")
    return config


def _training(text: str) -> dict[str, Any]:
    """Return the checked state of the training, with a generator as `rng`."""
    state = _json(text, "the training state")

    def whole(key: str, least: int) -> None:
        value: Any = state.get(key)
        good = type(value) is int and value >= least
        _need(good, f"{key} is {shorten(value)}, not a whole number from {least}")

    def number(value: Any, what: str) -> None:
        good = type(value) in (int, float) and 0 <= value < math.inf
        _need(good, f"{what} is {shorten(value)}, not a finite number from 0")

    for key, least in (("steps", 0), ("step", 0), ("batch_size", 1), ("tokens", 0)):
        whole(key, least)
    _need(state["step"] <= state["steps"], f"step {state['step']} is beyond steps {state['steps']}")
    for key in ("lr", "val_fraction", "seconds"):
        number(state.get(key), key)
    _need(state["val_fraction"] < 1, f"val_fraction is {state['val_fraction']}")
    _need(state.get("split") in SPLITS, f"split is {shorten(state.get('split'))}")
    adam: Any = state.get("adam")
    _need(isinstance(adam, list) and len(adam) == 3, "adam is not beta1, beta2 and eps")
    for value in adam:
        number(value, "a constant of Adam")
    _need(adam[0] < 1 and adam[1] < 1, f"adam is {shorten(adam)}, its betas must be below 1")
    state["rng"] = _generator(state.get("rng"))
    return state


def _generator(state: Any) -> Random:
    rng = Random(0)
    try:
        version, words, gauss_next = state
        rng.setstate((version, tuple(words), gauss_next))
        _need(gauss_next is None or math.isfinite(gauss_next), "gauss")
    except (ValueError, TypeError, OverflowError):
        raise ValueError("rng is not the state of a random.Random") from None
    return rng


def _numbers(file: BinaryIO, start: int, name: str, offsets: list[int]) -> array[float]:
    """Return the numbers of a tensor; all of them are finite."""
    file.seek(start + offsets[0])
    data = file.read(offsets[1] - offsets[0])
    _need(len(data) == offsets[1] - offsets[0], "the file became shorter while it was read")
    numbers = array("d", _little_endian(data))
    _need(all(map(math.isfinite, numbers)), f"{name} has a number that is not finite")
    return numbers


def _fill(matrix: Matrix, numbers: array[float]) -> None:
    rows, cols = matrix.shape
    matrix.load([numbers[i * cols : (i + 1) * cols] for i in range(rows)])
