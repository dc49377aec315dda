"""A record of a training: the parameters at some steps, and what one step of Adam began with.

It is made from copies, before a step is taken: the training's numbers and its generator are never
touched. The copies are float32, and bounded in number.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from reprlib import repr as shorten
from typing import Any

from .adam import Adam
from .core import Matrix
from .model import GPT
from .safetensors import Reader, json_object
from .tokenizer import Tokenizer

SNAPSHOTS = "record.snapshots"
MOST_NUMBERS = 2**20  # of all snapshots, but two are kept of a model of any size
MOST_TOKENS = 2**16  # of the documents of a step


@dataclass
class Record:
    """What is kept of a training while it lasts.

    steps: how many steps had been taken at each snapshot: 0, 1, 2, 5, 10, 20, 50 and so on.
    snapshots: for each of them all parameters one after another, as float32.
    m, v: the moments at the last of them; documents: the token ids that the next step learned from.
    The last three are empty if a step learns from very many tokens.
    """

    steps: list[int] = field(default_factory=list)
    snapshots: list[array[float]] = field(default_factory=list)
    m: array[float] = field(default_factory=lambda: array("f"))
    v: array[float] = field(default_factory=lambda: array("f"))
    documents: list[list[int]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Record(steps {', '.join(map(str, self.steps)) or 'none'})"

    def take(self, adam: Adam, batch: Callable[[int], list[list[int]]]) -> None:
        """Take a snapshot if the next step, which learns from batch(step), is one to record.

        Where there is no room for another one, the second goes. Parameters that are too large for
        float32 are not recorded.
        """
        if not is_recorded(adam.step) or adam.step in self.steps[-1:]:  # an interrupted step again
            return
        snapshot = flat(adam.params)
        if not all(map(math.isfinite, snapshot)):
            return
        most = max(2, MOST_NUMBERS // len(snapshot))
        if len(self.steps) >= most:
            del self.steps[1], self.snapshots[1]
        self.steps.append(adam.step)
        self.snapshots.append(snapshot)
        self.m, self.v, self.documents = array("f"), array("f"), []
        documents = batch(adam.step)
        if sum(map(len, documents)) <= MOST_TOKENS:
            m, v = flat(adam.m), flat(adam.v)
            if all(map(math.isfinite, m)) and all(map(math.isfinite, v)):
                self.m, self.v, self.documents = m, v, documents


    def metadata(self) -> str:
        """Return what a file says of the record, as JSON."""
        return json.dumps({"steps": self.steps, "documents": self.documents})

    def tensors(self, num_params: int) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        """Return name -> type, shape and numbers of what a file holds of the record."""
        snapshots = b"".join(snapshot.tobytes() for snapshot in self.snapshots)
        tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {
            SNAPSHOTS: ("F32", (len(self.snapshots), num_params), snapshots)
        }
        if self.documents:
            tensors |= {
                "record.m": ("F32", (num_params,), self.m.tobytes()),
                "record.v": ("F32", (num_params,), self.v.tobytes()),
            }
        return tensors


def is_recorded(step: int) -> bool:
    """Return whether a snapshot is taken after so many steps.

    >>> [step for step in range(1001) if is_recorded(step)]
    [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    """
    return step == 0 or str(step).rstrip("0") in ("1", "2", "5")


def is_of_record(name: str) -> bool:
    """Return whether a tensor of a file belongs to a record."""
    return name.startswith("record.")


def read_record(reader: Reader, tokenizer: Tokenizer, model: GPT, step: int) -> Record | None:
    """Return the record of a file, of a run that has taken so many steps, if it holds one.

    Raises ValueError if it is not one of this model.
    """
    n, found = model.num_params, {name for name in reader.shapes if is_of_record(name)}
    wanted: dict[str, tuple[int, ...]] = {}
    steps: list[int] = []
    documents: list[list[int]] = []
    if "record" in reader.metadata:
        entries = json_object(reader.metadata["record"], "the record")
        _require(entries.keys() == {"steps", "documents"}, "the record is not steps and documents")
        steps, documents = entries["steps"], entries["documents"]
        _check_steps(steps, step)
        _check_documents(documents, tokenizer, model.config.block_size)
        wanted[SNAPSHOTS] = len(steps), n
        if documents:
            wanted |= {"record.m": (n,), "record.v": (n,)}
    different = found ^ wanted.keys()
    _require(not different, f"tensors that are missing or unknown: {shorten(sorted(different))}")
    for name, shape in wanted.items():
        has, dtype = reader.shapes[name], reader.types[name]
        _require(
            has == shape and dtype == "F32",
            f"{name} is {dtype} of shape {shorten(has)}, not F32 of {shape}",
        )
    if not wanted:
        return None
    numbers = reader.numbers(SNAPSHOTS)
    record = Record(steps, [numbers[i : i + n] for i in range(0, len(numbers), n)])
    if documents:
        record.m, record.v, record.documents = (
            reader.numbers("record.m"), reader.numbers("record.v"), documents
        )  # fmt: skip
        _require(min(record.v) >= 0, "record.v is below 0")
    return record


def _check_steps(steps: Any, last: int) -> None:
    """Raise ValueError unless steps are ints that rise and end at the last or before."""
    _require(
        isinstance(steps, list)
        and all(type(step) is int for step in steps)
        and all(a < b for a, b in pairwise([-1, *steps, last + 1])),
        f"the steps of the record are {shorten(steps)} of {last}",
    )


def _check_documents(documents: Any, tokenizer: Tokenizer, block_size: int) -> None:
    """Raise ValueError unless documents are token ids that a step can learn from."""
    _require(
        isinstance(documents, list)
        and all(isinstance(doc, list) and all(type(i) is int for i in doc) for doc in documents)
        and sum(map(len, documents)) <= MOST_TOKENS,
        "the documents of the record are not lists of ids",
    )
    for doc in documents:
        length = len(doc)
        _require(2 <= length <= block_size + 2, f"a recorded document has {length} tokens")
        tokenizer.decode(doc)  # raises ValueError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def flat(matrices: Iterable[Matrix]) -> array[float]:
    """Return the numbers of Matrices one after another, row by row, as float32."""
    numbers = array("f")
    for matrix in matrices:
        for row in matrix.tolist():
            numbers.extend(row)
    return numbers
