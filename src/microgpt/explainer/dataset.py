"""What the documents of a run are: counts, lengths, letters, pairs, baselines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from random import Random
from typing import Any

from ..data import describe, windows
from ..evaluate import uniform_loss
from ..files import one_line
from ..training import Run

FIRST, CHOSEN = 25, 25  # documents that are shown
MOST_CHARACTERS = 100  # of one of them
MOST_PAIRS = 5000


def dataset(run: Run) -> dict[str, Any]:
    """Return the statistics of the training documents; without them what the run says of them."""
    known = {
        "name": one_line(describe(run.dataset), 200) if run.dataset else "",
        "sha256": run.sha256,
        "present": bool(run.documents),
        "uniform_loss": uniform_loss(run.model),
    }
    if not run.documents:
        return known
    documents = examples(run)
    stream = run.config.unit == "stream"
    lengths = Counter(map(len, run.documents))
    longest = max(lengths)
    chosen = Random(0).sample(documents, min(CHOSEN, len(documents)))
    return known | {
        "count": longest if stream else len(run.documents),
        "distinct": None if stream else len(set(run.documents)),
        "first": [doc[:MOST_CHARACTERS] for doc in documents[:FIRST]],
        "random": [doc[:MOST_CHARACTERS] for doc in chosen],
        "lengths": None if stream else sorted(lengths.items()),
        "longest": None if stream else _longest(run, longest),
        **_pairs(run),
    }


def examples(run: Run) -> list[str]:
    """Return the training documents; of a stream, its windows."""
    if run.config.unit == "stream":
        return windows(run.documents[0], run.model.config.block_size)
    return run.documents


def _longest(run: Run, length: int) -> list[str]:
    found = sorted({doc for doc in run.documents if len(doc) == length})
    return [doc[:MOST_CHARACTERS] for doc in found[:5]]


def _pairs(run: Run) -> dict[str, Any]:
    """Return how often each token and each pair of tokens occurs, and what guessing by them costs.

    The losses are those of tables that were made from the same documents, without smoothing.
    """
    bos, encode = run.tokenizer.bos, run.encode
    pairs: Counter[tuple[int, int]] = Counter()
    for doc in run.documents:
        pairs.update(pairwise(encode(doc)))
    inputs, targets = [0] * (bos + 1), [0] * (bos + 1)
    for (a, b), count in pairs.items():
        inputs[a] += count
        targets[b] += count
    total = sum(targets)
    letters = {b: count for b, count in enumerate(targets) if count}
    listed = sorted(pairs, key=lambda pair: (-pairs[pair], pair))[:MOST_PAIRS]
    return {
        "letters": targets,
        "bigrams": [[a, b, pairs[a, b]] for a, b in sorted(listed)],
        "bigram_totals": inputs,
        "bigrams_cut": len(pairs) > MOST_PAIRS,
        "letter_loss": _cost(letters, dict.fromkeys(letters, total)),
        "bigram_loss": _cost(pairs, {pair: inputs[pair[0]] for pair in pairs}),
    }


def _cost(counts: Mapping[Any, int], totals: Mapping[Any, int]) -> float:
    """Return the mean of -log(count / total), each as often as it was counted."""
    loss = math.fsum(n * math.log(totals[key] / n) for key, n in counts.items())
    return loss / sum(counts.values())
