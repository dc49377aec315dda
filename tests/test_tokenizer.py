import copy
import pickle
from itertools import pairwise

import pytest

from microgpt.tokenizer import Tokenizer


def test_ids_are_sorted_characters_then_bos():
    tokenizer = Tokenizer.from_documents(["emma", "ava", ""])
    assert tokenizer.chars == "aemv"
    assert tokenizer.bos == 4
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode("aemv") == [4, 0, 1, 2, 3, 4]


def test_chars_are_kept_sorted():
    assert Tokenizer("cab").chars == "abc"


def test_emma_gives_five_pairs():
    ids = Tokenizer.from_documents(["emma"]).encode("emma")
    assert list(pairwise(ids)) == [(3, 1), (1, 2), (2, 2), (2, 0), (0, 3)]


@pytest.mark.parametrize(
    "docs",
    [
        ["emma", "olivia"],
        ["a"],
        ["", "x"],
        ["日本", "é e\u0301", "😀"],
        ["a\0b", "\x7f", "\n\r\u2028"],
    ],
    ids=["names", "one", "empty", "unicode", "control"],
)
def test_decode_undoes_encode(docs):
    tokenizer = Tokenizer.from_documents(docs)
    assert [tokenizer.decode(tokenizer.encode(doc)) for doc in docs] == docs


@pytest.mark.parametrize("half", ["\ud800", "\udbff", "\udc00", "\udfff"])
def test_half_of_a_surrogate_pair_is_refused(half):
    """Two halves would become one character in a file, and the alphabet another."""
    with pytest.raises(ValueError, match="is half of a surrogate pair"):
        Tokenizer.from_documents(["ab", f"a{half}b"])


def test_from_documents_takes_a_generator_and_ignores_the_order():
    docs = ["zoe", "ann", "bo"]
    assert Tokenizer.from_documents(doc for doc in docs) == Tokenizer.from_documents(docs[::-1])


@pytest.mark.parametrize("docs", [[], ["", ""]])
def test_no_characters(docs):
    with pytest.raises(ValueError, match="at least one character"):
        Tokenizer.from_documents(docs)
    with pytest.raises(ValueError, match="at least one character"):
        Tokenizer("")


def test_character_twice():
    with pytest.raises(ValueError, match="'b' is in the alphabet more than once"):
        Tokenizer("bab")


def test_unknown_character():
    with pytest.raises(ValueError) as caught:
        Tokenizer("abc").encode("abé")
    assert str(caught.value) == "character 'é' is not in the alphabet 'abc'"


@pytest.mark.parametrize("char", ["\n", "\u2028", "\x85", "\0", "\ud800", "'"])
def test_unknown_character_is_named_on_one_printable_line(char):
    with pytest.raises(ValueError) as caught:
        Tokenizer("a\r\u2029").encode(char)
    assert str(caught.value).isprintable()
    assert repr(char) in str(caught.value)


def test_long_alphabet_is_shortened():
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    with pytest.raises(ValueError) as caught:
        Tokenizer(alphabet).encode("a")
    message = str(caught.value)
    assert message.startswith(f"character 'a' is not in the alphabet '{alphabet[:10]}")
    assert message.endswith(f"{alphabet[-10:]}' (5000 characters)")
    assert len(message) < 200


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([], ""),
        ([3], ""),
        ([3, 3], ""),
        ([0, 1], "ab"),
        ([3, 0, 1], "ab"),
        ([0, 1, 3], "ab"),
        ((3, 0, 1, 3), "ab"),
        (iter([3, 2, 3]), "c"),
    ],
)
def test_decode_takes_bos_off(ids, text):
    assert Tokenizer("abc").decode(ids) == text


def test_decode_leaves_its_argument_alone():
    ids = [3, 0, 3]
    Tokenizer("abc").decode(ids)
    assert ids == [3, 0, 3]


@pytest.mark.parametrize("ids", [[0, 3, 1], [3, 3, 3], [3, 3, 0]])
def test_decode_bos_inside(ids):
    with pytest.raises(ValueError, match=r"BOS \(id 3\) occurs inside the text"):
        Tokenizer("abc").decode(ids)


@pytest.mark.parametrize("bad", [-1, 4, 10**30])
def test_decode_id_out_of_range(bad):
    with pytest.raises(ValueError, match=rf"id {bad} is not in 0\.\.3"):
        Tokenizer("abc").decode([3, 0, bad, 3])


def test_decode_id_that_is_no_integer():
    with pytest.raises(TypeError):
        Tokenizer("abc").decode([0, 1.0])


def test_equality_and_hash():
    assert Tokenizer("abc") == Tokenizer("cba")
    assert hash(Tokenizer("abc")) == hash(Tokenizer("cba"))
    assert Tokenizer("abc") != Tokenizer("abd")
    assert Tokenizer("abc") != "abc"


def test_repr_builds_an_equal_tokenizer():
    tokenizer = Tokenizer("a'\n\"é")
    assert eval(repr(tokenizer)) == tokenizer


def test_copies_work():
    tokenizer = Tokenizer("abc")
    for twin in copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer)):
        assert twin == tokenizer
        assert twin.encode("cab") == [3, 2, 0, 1, 3]


@pytest.mark.parametrize(("size", "bytes_each"), [(255, 1), (256, 2), (70_000, 4)])
def test_documents_are_encoded_at_once_in_as_few_bytes_as_they_need(size, bytes_each):
    chars = [chr(i) for i in range(size + 2048) if not 0xD800 <= i < 0xE000][:size]
    tokenizer, docs = Tokenizer("".join(chars)), [chars[0] + chars[-1], chars[5]]
    ids = tokenizer.encode_all(docs)
    assert ids.tolist() == [id for doc in docs for id in tokenizer.encode(doc)[1:]]
    assert ids.itemsize == bytes_each


@pytest.mark.parametrize("docs", [["ab", "ad"], ["a\ud800b"], ["a", "\ud800"]])
def test_a_character_that_is_not_in_the_alphabet_ends_the_encoding_of_all(docs):
    with pytest.raises(ValueError, match="is not in the alphabet 'abc'"):
        Tokenizer("abc").encode_all(docs)
