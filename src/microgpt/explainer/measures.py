"""What the numbers of a model show: a map of its letters, and where its heads look."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import combinations

from ..core import Matrix, linear, no_grad
from ..training import Run
from .passes import Rows, causal

VOWELS = frozenset("aeiouαεηιουωаеиоуыэюя")  # a letter with an accent counts as the letter
LAST = "\u0530"  # behind these three alphabets
ROUNDS = 300  # of the power iteration


def vowels(chars: str) -> list[int]:
    """Return the ids of the vowels of Latin, Greek and Cyrillic in an alphabet; y is none.

    >>> vowels("abéι")
    [0, 2, 3]
    """
    plain = [unicodedata.normalize("NFD", char)[0].lower() for char in chars]
    return [i for i, char in enumerate(plain) if char in VOWELS]


def similarity(rows: Rows, chars: str) -> dict[str, float | None]:
    """Return the mean cosine of two vowels, two consonants, and one of each, in three alphabets.

    rows: wte. None: there is no such pair.
    """
    of_vowels = set(vowels(chars))
    letters = [i for i, char in enumerate(chars) if char.isalpha() and char < LAST]
    cosines: dict[str, list[float]] = {"vowel": [], "consonant": [], "mixed": []}
    for a, b in combinations(letters, 2):
        kinds = ("consonant", "mixed", "vowel")
        kind = kinds[(a in of_vowels) + (b in of_vowels)]
        cosines[kind].append(cosine(rows[a], rows[b]))
    return {kind: math.fsum(c) / len(c) if c else None for kind, c in cosines.items()}


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors; 0 if one is 0."""
    lengths = math.hypot(*a), math.hypot(*b)
    if not all(lengths):
        return 0.0
    unit_a, unit_b = ([x / n for x in vector] for vector, n in zip((a, b), lengths, strict=True))
    return _dot(unit_a, unit_b)


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def principal_components(rows: Rows) -> tuple[list[list[float]], list[float]]:
    """Return the first two principal components of rows, and their parts of the variance.

    By power iteration from a fixed start; the largest coordinate of a component is positive.
    """
    unit = max(abs(x) for row in rows for x in row) or 1.0  # so that no square overflows
    columns = [[x / unit for x in column] for column in zip(*rows, strict=True)]
    middle = [math.fsum(column) / len(rows) for column in columns]
    centred = Matrix.of([[x - m for x in c] for c, m in zip(columns, middle, strict=True)])
    points: list[list[float]] = [[] for _ in rows]
    parts = []
    with no_grad():
        left = linear(centred, centred)  # the covariances, but for a factor
        variance = math.fsum(left[j][j].data for j in range(len(left)))
        for _ in range(2):
            direction = [1.0 / (1 + j) for j in range(len(left))]
            size = 0.0
            for _ in range(ROUNDS):
                [new] = linear(Matrix.of([direction]), left).tolist()
                size = math.hypot(*new)
                direction = [x / size for x in new] if size else [0.0] * len(new)
            along = [_dot(row, direction) for row in zip(*centred.tolist(), strict=True)]
            sign = math.copysign(1.0, max(along, key=abs))
            for point, x in zip(points, along, strict=True):
                point.append(sign * x * unit)
            parts.append(size / variance if variance else 0.0)
            left = left - Matrix.of([[size * a * b for b in direction] for a in direction])
    return points, parts


def head_summary(run: Run, docs: Sequence[Sequence[int]]) -> list[dict[str, float]]:
    """Return where each head looks on average over documents, lists of token ids.

    bos, self, previous: the mean weight of the first token, the own and the one before it;
    entropy: of the weights, as a share of the most that it can be. All over the rows that see two
    tokens or more.
    """
    n_head, n_layer = run.model.config.n_head, run.model.config.n_layer
    sums = [[[0.0] * 4 for _ in range(n_head)] for _ in range(n_layer)]
    count = 0
    for doc in docs:
        tokens, _, _ = run.model.pack([list(doc)])
        blocks: dict[str, Matrix] = {}
        with no_grad():
            run.model.forward(tokens, trace=blocks)
        for i in range(n_layer):
            weights = causal(blocks[f"layer{i}.attn_weights"].tolist(), len(tokens))
            for sums_of_head, rows in zip(sums[i], weights, strict=True):
                for row in rows[1:]:
                    entropy = -math.fsum(w * math.log(w) for w in row if w) / math.log(len(row))
                    for j, x in enumerate((row[0], row[-1], row[-2], entropy)):
                        sums_of_head[j] += x
        count += len(tokens) - 1
    names = ("bos", "self", "previous", "entropy")
    summary: list[dict[str, float]] = []
    for i, layer in enumerate(sums):
        for head, of_head in enumerate(layer):
            shares = {name: x / max(1, count) for name, x in zip(names, of_head, strict=True)}
            summary.append({"layer": i, "head": head} | shares)
    return summary
