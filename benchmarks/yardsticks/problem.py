"""What every yardstick is given: the documents as token ids and the first parameters.

Both are the original script's, drawn from one generator in its order, so that every yardstick
can be compared with the script's own losses.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

N_HEAD = 4
LEARNING_RATE, BETA1, BETA2, EPS = 0.01, 0.85, 0.99, 1e-8
FIRST_STEPS = 2  # of a training, not timed: what they record and allocate serves all others


@dataclass(frozen=True)
class Problem:
    """A model's sizes, its first parameters and the documents it is trained on.

    `text` is the stream from which the documents were cut, in the order of the steps, if any.
    """

    n_embd: int
    n_layer: int
    vocab_size: int
    state: dict[str, list[list[float]]]  # name -> rows, in the script's order
    documents: list[list[int]]  # token ids with BOS at both ends, shuffled
    block_size: int = 16
    text: str = ""

    def batch(self, step: int, size: int) -> list[list[int]]:
        """Return the documents of a step, each cut to what fits the block."""
        docs = self.documents
        chosen = (docs[(step * size + b) % len(docs)] for b in range(size))
        return [doc[: self.block_size + 1] for doc in chosen]


@dataclass(frozen=True)
class Result:
    """The loss of every step, and the processor time of the training loop for one document."""

    losses: list[float]
    microseconds: float
    until_adam: float | None = None  # the part of it until backward has returned, if known


def load(names: str | Path, n_embd: int = 16, n_layer: int = 1, seed: int = 42) -> Problem:
    """Read `names` (one document per line) and draw the parameters as the script does."""
    rng = random.Random(seed)
    lines = Path(names).read_text(encoding="utf-8").splitlines()
    docs = [line.strip() for line in lines if line.strip()]
    rng.shuffle(docs)
    ids = {char: i for i, char in enumerate(sorted(set("".join(docs))))}
    bos = len(ids)

    def matrix(rows: int, cols: int) -> list[list[float]]:
        return [[rng.gauss(0, 0.08) for _ in range(cols)] for _ in range(rows)]

    vocab_size = bos + 1
    state = {
        "wte": matrix(vocab_size, n_embd),
        "wpe": matrix(Problem.block_size, n_embd),
        "lm_head": matrix(vocab_size, n_embd),
    }
    for i in range(n_layer):
        for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
            state[f"layer{i}.{name}"] = matrix(n_embd, n_embd)
        state[f"layer{i}.mlp_fc1"] = matrix(4 * n_embd, n_embd)
        state[f"layer{i}.mlp_fc2"] = matrix(n_embd, 4 * n_embd)
    documents = [[bos, *(ids[char] for char in doc), bos] for doc in docs]
    return Problem(n_embd, n_layer, vocab_size, state, documents)
