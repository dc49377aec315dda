"""Text to token ids and back, one token per character."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise


class Tokenizer:
    """Number the characters of an alphabet, and mark where documents begin and end.

    chars: distinct characters in any order; kept sorted, so that character i has the id i.
    One more id, `bos`, is put on both sides of every document; `vocab_size` counts it too.
    Raises ValueError if chars is empty, holds a character twice, or half of a surrogate pair, which
    no file can hold.

    A model learns to predict each token from those before it:

    >>> tokenizer = Tokenizer.from_documents(["emma"])
    >>> tokenizer
    Tokenizer('aem')
    >>> ids = tokenizer.encode("emma")
    >>> ids
    [3, 1, 2, 2, 0, 3]
    >>> list(zip(ids, ids[1:]))  # five pairs of input and target
    [(3, 1), (1, 2), (2, 2), (2, 0), (0, 3)]
    """

    def __init__(self, chars: str) -> None:
        self.chars = "".join(sorted(chars))
        if not self.chars:
            raise ValueError("an alphabet needs at least one character")
        for char in self.chars:
            if "\ud800" <= char <= "\udfff":
                raise ValueError(f"{char!r} is half of a surrogate pair, not a character")
        for char, next_char in pairwise(self.chars):
            if char == next_char:
                raise ValueError(f"character {char!r} is in the alphabet more than once")
        self.bos = len(self.chars)
        self.vocab_size = self.bos + 1
        self._ids = {char: i for i, char in enumerate(self.chars)}

    @classmethod
    def from_documents(cls, docs: Iterable[str]) -> Tokenizer:
        """Return the tokenizer of all characters in docs. Raises ValueError if there are none."""
        return cls("".join(set("".join(docs))))

    def encode(self, doc: str) -> list[int]:
        """Return the ids of the characters of doc, between two BOS.

        Raises ValueError at a character that is not in the alphabet.

        >>> Tokenizer("abc").encode("cab")
        [3, 2, 0, 1, 3]
        """
        try:
            return [self.bos, *map(self._ids.__getitem__, doc), self.bos]
        except KeyError as error:
            raise self._unknown(error.args[0]) from None

    def _unknown(self, char: str) -> ValueError:
        return ValueError(f"character {char!r} is not in the alphabet {_shorten(self.chars)}")

    def encode_all(self, docs: Sequence[str]) -> array[int]:
        """Return the ids of docs, one after another with a BOS after each, in an array.

        An id takes one byte there, if there are no more than 256.
        Raises ValueError at a character that is not in the alphabet.

        >>> Tokenizer("abc").encode_all(["cab", "b"]).tolist()
        [2, 0, 1, 3, 1, 3]
        """
        end = "\ud800"  # in no alphabet
        text = end.join([*docs, ""])
        ids = self._ids if text.count(end) > len(docs) else {**self._ids, end: self.bos}
        code = "B" if self.vocab_size <= 2**8 else "H" if self.vocab_size <= 2**16 else "I"
        try:
            return array(code, map(ids.__getitem__, text))
        except KeyError as error:
            raise self._unknown(error.args[0]) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without a BOS at either end.

        Raises ValueError at a BOS inside the text and at an id out of range.

        >>> Tokenizer("abc").decode([3, 2, 0, 1, 3])
        'cab'
        """
        ids = list(ids)
        if ids and ids[0] == self.bos:
            del ids[0]
        if ids and ids[-1] == self.bos:
            del ids[-1]
        if ids and not (min(ids) >= 0 and max(ids) < self.bos):
            wrong = next(i for i in ids if not 0 <= i < self.bos)
            if wrong == self.bos:
                raise ValueError(f"BOS (id {wrong}) occurs inside the text")
            raise ValueError(f"id {wrong} is not in 0..{self.bos}")
        return "".join([self.chars[i] for i in ids])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self.chars == other.chars

    def __hash__(self) -> int:
        return hash(self.chars)

    def __repr__(self) -> str:
        return f"Tokenizer({self.chars!r})"


def _shorten(chars: str, limit: int = 80) -> str:
    """Return chars quoted, without its middle if it is longer than limit."""
    if len(chars) <= limit:
        return repr(chars)
    half = limit // 2
    return f"{chars[:half]!r} ... {chars[-half:]!r} ({len(chars)} characters)"
