"""The autograd core in plain Python: the specification that the compiled core follows.

A `Value` is one number in a graph. It knows its children and, for each of them, the local
derivative; `backward` applies the chain rule along the graph. A `Matrix` is a block of Values,
rows x columns, and a block op such as `linear` is written out here in scalar Values, as in
Karpathy's microgpt (https://gist.github.com/karpathy/8627fe009c40f57531cb18360106ce95).

`_core.pyx` holds the same names in the same order. There a Matrix is one piece of memory and a
block op one node; the layout is described at the top of that file.
"""

from __future__ import annotations

import math
import operator
import threading
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ContextDecorator
from itertools import accumulate, starmap

from . import _checks as checks
from . import _display as display

TYPE_CHECKING = False  # typing would take most of the time of the import
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Matrix",
    "Prefixes",
    "Replay",
    "Value",
    "adam_minimize",
    "adam_update",
    "attention",
    "attention_weights",
    "cross_entropy",
    "draw_token",
    "draw_tokens",
    "embedding",
    "grad_enabled",
    "linear",
    "mean",
    "no_grad",
    "pack_documents",
    "pack_encoded",
    "positions",
    "relu",
    "rmsnorm",
    "softmax",
]

RMSNORM_EPS = 1e-5


class Value:
    """Hold one number of a graph, its gradient, its children and their local derivatives.

    data: the number; it becomes a float.
    children: Values that it was computed from, any number of them.
    local_grads: for each child, the derivative of this Value with respect to it.

    `data` and `grad` are floats that can be set. An op that is not built in is made with the
    constructor:

    >>> import math
    >>> x = Value(0.5)
    >>> y = Value(math.sin(x.data), (x,), (math.cos(x.data),))
    >>> y.backward()
    >>> round(x.grad, 4)
    0.8776

    Raises TypeError if data or a local gradient is not a number or a child is not a Value,
    ValueError unless there is one local gradient per child.
    """

    __slots__ = ("_data", "_grad", "_children", "_local_grads", "_op")
    __array_ufunc__ = None  # NumPy scalars leave the arithmetic to us

    def __init__(
        self, data: float, children: Iterable[Value] = (), local_grads: Iterable[float] = ()
    ) -> None:
        data = checks.number(data, "data")
        children, local_grads = checks.links(children, local_grads, Value)
        if hasattr(self, "_data"):
            raise TypeError("a Value is made once: make another one, or set its data")
        self._data = data
        self._grad = 0.0
        self._children = children if grad_enabled() else ()
        self._local_grads = local_grads if grad_enabled() else ()
        self._op = ""

    @property
    def data(self) -> float:
        """The number, a float; it can be set."""
        return self._data

    @data.setter
    def data(self, data: float) -> None:
        self._data = checks.number(data, "data")

    @property
    def grad(self) -> float:
        """The gradient, a float; `backward` adds to that of a leaf. It can be set."""
        return self._grad

    @grad.setter
    def grad(self, grad: float) -> None:
        self._grad = checks.number(grad, "grad")

    @property
    def _inputs(self):
        """What this Value was computed from, for pictures: its children, or one block.

        That is the block of which it is an entry, or the Matrix of which it is the mean.
        """
        label = self._op
        if label.__class__ is not _BlockLabel:
            return self._children
        return label._inputs if label == "mean" else (label,)

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"

    def __format__(self, spec: str) -> str:
        """Return the number in the format of a float, as in f"{value:.3f}"."""
        return format(self._data, spec) if spec else str(self)

    def __reduce__(self):
        return Value, (self._data,)  # a copy is a leaf: it does not carry the graph along

    def __add__(self, other: Value | float) -> Value:
        if not isinstance(other, Value):
            if not checks.is_number(other):
                return NotImplemented
            other = _leaf(float(other))
        return _node(self._data + other._data, (self, other), (1.0, 1.0), "+")

    def __radd__(self, other: float) -> Value:
        return self.__add__(other)

    def __mul__(self, other: Value | float) -> Value:
        if not isinstance(other, Value):
            if not checks.is_number(other):
                return NotImplemented
            other = _leaf(float(other))
        return _node(self._data * other._data, (self, other), (other._data, self._data), "*")

    def __rmul__(self, other: float) -> Value:
        return self.__mul__(other)

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: Value | float) -> Value:
        if isinstance(other, Value):
            return self + (-other)
        return self + (-float(other)) if checks.is_number(other) else NotImplemented

    def __rsub__(self, other: float) -> Value:
        return (-self) + other if checks.is_number(other) else NotImplemented

    def __truediv__(self, other: Value | float) -> Value:
        if isinstance(other, Value):
            return self * other**-1.0
        if not checks.is_number(other):
            return NotImplemented
        return self * checks.power(float(other), -1.0)

    def __rtruediv__(self, other: float) -> Value:
        return self**-1.0 * other if checks.is_number(other) else NotImplemented

    def __pow__(self, exponent: float) -> Value:
        if isinstance(exponent, (Value, Matrix)):
            checks.exponent(exponent)  # raises TypeError
        if not checks.is_number(exponent):
            return NotImplemented
        exponent = float(exponent)
        result, slope = checks.power(self._data, exponent), checks.power_slope(self._data, exponent)
        return _node(result, (self,), (slope,), f"**{exponent:g}")

    def exp(self) -> Value:
        """Return e ** self. Raises OverflowError above 709.78, the limit of a float."""
        result = checks.exp(self._data)
        return _node(result, (self,), (result,), "exp")

    def log(self) -> Value:
        """Return the natural logarithm. Raises ValueError unless self is positive."""
        return _node(checks.log(self._data), (self,), (1.0 / self._data,), "log")

    def tanh(self) -> Value:
        """Return the hyperbolic tangent, between -1 and 1."""
        result = math.tanh(self._data)
        return _node(result, (self,), (1.0 - result * result,), "tanh")

    def relu(self) -> Value:
        """Return self where it is positive, else 0."""
        positive = self._data > 0.0
        return _node(self._data if positive else 0.0, (self,), (1.0 if positive else 0.0,), "relu")

    def backward(self) -> None:
        """Add to the grad of each leaf below this Value the derivative with respect to it.

        The root's gradient is 1. Inner nodes start from 0 at every call; leaves accumulate, so
        a second call doubles them. The depth of the graph is not limited.

        >>> a, b = Value(2), Value(3)
        >>> (a * b + a).backward()
        >>> a.grad, b.grad
        (4.0, 2.0)
        """
        topo = _topological_sort(self)
        labels = {id(node._op): node._op for node in topo if node._op.__class__ is _BlockLabel}
        for label in labels.values():
            label.refuse_changed_numbers()
        for node in topo:
            node._grad = 0.0
        self._grad = 1.0
        for node in reversed(topo):
            grad = node._grad
            for child, local_grad in zip(node._children, node._local_grads):  # noqa: B905
                child._grad += local_grad * grad


class _Single(Value):
    """A Value of a float32 block: its data and its gradient are read and written rounded."""

    __slots__ = ()

    @property
    def data(self) -> float:
        return self._data

    @data.setter
    def data(self, data: float) -> None:
        self._data = _rounded(checks.number(data, "data"))

    @property
    def grad(self) -> float:
        return _rounded(self._grad)

    @grad.setter
    def grad(self, grad: float) -> None:
        self._grad = _rounded(checks.number(grad, "grad"))


class Matrix:
    """Hold rows x cols Values side by side, all 0 at first.

    dtype: the type of the numbers and their gradients, "float64" or "float32"; a float32 block
        holds what it is given rounded. Blocks of both types do not mix in an op.

    `m[i]` is row i as a tuple of Values, `m[i][j]` one Value that lives in the block; `m[a:b]`
    is a Matrix of rows a to b - 1 which shares their numbers and gradients. `m.data` and
    `m.grad` are 2-D buffers of the dtype: read-only snapshots in this core, live and writable in
    the compiled one. A copy or a pickle holds the numbers, not the graph.

    `+ - * /` take another Matrix of equal shape, a row (1, n) that serves all rows, or a number,
    `**` takes a number, entry by entry and with the errors of Values.

    >>> m = Matrix.of([[1, 2], [3, 4]])
    >>> m.shape, m[1][0].data, m[1:].tolist()
    ((2, 2), 3.0, [[3.0, 4.0]])

    Raises TypeError if a size is not an int, ValueError if it is below 1.
    """

    __slots__ = ("_rows", "_dtype", "_initialized", "_changes", "_label")
    __array_ufunc__ = None  # NumPy scalars leave the arithmetic to us

    def __new__(cls, rows: Any = None, cols: Any = None, dtype: str = "float64") -> Matrix:
        rows, cols = checks.sizes(rows, cols)
        self = object.__new__(cls)
        self._dtype = checks.dtype(dtype)
        zeros = [[_leaf(0.0) for _ in range(cols)] for _ in range(rows)]
        self._rows = _rows_of(zeros, dtype)
        self._initialized = False
        self._changes = [0]  # how often load or an update changed the numbers; views share it
        self._label = None  # of a block op: what its Values know of it
        return self

    def __init__(self, rows: int, cols: int, dtype: str = "float64") -> None:
        if self._initialized:
            raise TypeError("a Matrix keeps its shape: make another one, or load other numbers")
        self._initialized = True

    @classmethod
    def of(
        cls, lists: Matrix | Iterable[Iterable[float]], dtype: str | None = None
    ) -> Matrix:
        """Return a Matrix of leaves with the numbers of equally long lists, or of a Matrix.

        dtype: None: that of the Matrix; of lists "float64".
        """
        if isinstance(lists, Matrix):
            lists, dtype = lists.tolist(), lists._dtype if dtype is None else dtype
        lists = checks.rectangle(lists)
        matrix = cls(len(lists), len(lists[0]), "float64" if dtype is None else dtype)
        matrix.load(lists)
        return matrix

    @classmethod
    def pack(
        cls, rows_of_values: Iterable[Iterable[Value | float]], dtype: str = "float64"
    ) -> Matrix:
        """Return a new Matrix with the data of rows of Values; gradients flow back to them.

        Numbers among the Values are constants. Raises ValueError if the rows differ in length.
        """
        rows = [[_value(item) for item in row] for row in checks.rectangle(rows_of_values)]
        values = [value for row in rows for value in row]
        copies = [[_copy(value) for value in row] for row in rows]
        return _matrix(checks.dtype(dtype), copies, "pack", values, ())

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and of columns."""
        return len(self._rows), len(self._rows[0])

    @property
    def dtype(self) -> str:
        """The type of the numbers, "float64" or "float32"."""
        return self._dtype

    @property
    def data(self) -> memoryview:
        """The numbers as a buffer of rows x cols of the dtype; `tolist()` gives lists of them."""
        return _snapshot([[value._data for value in row] for row in self._rows], self._dtype)

    @property
    def grad(self) -> memoryview:
        """The gradients as a buffer of rows x cols of the dtype; `grad.tolist()` gives lists."""
        return _snapshot([[value._grad for value in row] for row in self._rows], self._dtype)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Value, ...]]:
        return iter(self._rows)

    def __getitem__(self, index: int | slice) -> Any:  # a tuple of Values, or a Matrix
        if isinstance(index, slice):
            start, stop = checks.row_slice(index, len(self._rows))
            view = _matrix(self._dtype, self._rows[start:stop])
            view._changes = self._changes
            owner = self._inputs[0] if self._op.startswith("[") else self
            first = owner._rows.index(self._rows[start])
            view._label = _BlockLabel().of(f"[{first}:{first + len(view)}]", (owner,), (), view)
            return view
        return self._rows[checks.row_index(index, len(self._rows))]

    @property
    def _block(self):
        """The block as its entries know it: equal for all that show the same one in a picture."""
        return self if self._label is None else self._label

    @property
    def _op(self):
        return "" if self._label is None else self._label._op

    @property
    def _inputs(self):
        """The Matrices, numbers or Values that this block was computed from, for pictures."""
        return () if self._label is None else self._label._inputs

    def _places(self, values):
        """Return index -> (row, column) of those of these Values that are entries of this block."""
        index = {id(value): i for i, value in enumerate(values)}
        return {
            index[id(value)]: (i, j)
            for i, row in enumerate(self._rows) for j, value in enumerate(row) if id(value) in index
        }  # fmt: skip

    def _rms(self):
        """Return the root mean squares of the numbers and of the gradients."""
        entries = [value for row in self._rows for value in row]
        squares = sum(v._data * v._data for v in entries), sum(v._grad * v._grad for v in entries)
        return tuple(math.sqrt(total / len(entries)) for total in squares)

    def __repr__(self):
        return display.text(self)

    def _repr_html_(self) -> str:
        return display.html(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the numbers as a NumPy array: copied in this core, live in the compiled one."""
        import numpy

        return numpy.array(self.data, dtype=dtype, copy=copy)

    def __reduce__(self):
        return Matrix.of, (self.tolist(), self._dtype)

    def tolist(self) -> list[list[float]]:
        """Return the numbers as a list of lists of floats."""
        return [[value._data for value in row] for row in self._rows]

    def load(self, source: Matrix | Iterable[Iterable[float]]) -> None:
        """Set the numbers from lists or from a Matrix of the same shape. Nothing is recorded.

        They are converted to the type of this block.
        Raises ValueError if the shape differs; nothing is changed then.
        """
        lists = source.tolist() if isinstance(source, Matrix) else checks.rectangle(source)
        checks.load_shapes(self.shape, (len(lists), len(lists[0])))
        numbers = [
            array(_CODES[self._dtype], [checks.number(item, "an entry") for item in row])
            for row in lists
        ]
        for row, new_row in zip(self._rows, numbers, strict=True):
            for value, number in zip(row, new_row, strict=True):
                value._data = number
        self._changes[0] += 1

    def __add__(self, other: Matrix | float) -> Matrix:
        return _elementwise(operator.add, "+", self, other)

    def __radd__(self, other: float) -> Matrix:
        return self.__add__(other)

    def __sub__(self, other: Matrix | float) -> Matrix:
        return _elementwise(operator.sub, "-", self, other)

    def __rsub__(self, other: float) -> Matrix:
        return _elementwise(operator.sub, "-", other, self)

    def __mul__(self, other: Matrix | float) -> Matrix:
        return _elementwise(operator.mul, "*", self, other)

    def __rmul__(self, other: float) -> Matrix:
        return self.__mul__(other)

    def __neg__(self) -> Matrix:
        return self * -1.0

    def __truediv__(self, other: Matrix | float) -> Matrix:
        if not isinstance(other, (Matrix, Value)) and checks.is_number(other):
            return self * checks.power(_number(other, self._dtype), -1.0)
        return _elementwise(operator.truediv, "/", self, other)

    def __rtruediv__(self, other: float) -> Matrix:
        return _elementwise(operator.truediv, "/", other, self)

    def __pow__(self, exponent: float) -> Matrix:
        if isinstance(exponent, (Value, Matrix)):
            checks.exponent(exponent)  # raises TypeError
        if not checks.is_number(exponent):
            checks.matrix_with_array("**", exponent)  # can raise TypeError
            return NotImplemented
        exponent = _number(exponent, self._dtype)
        rows = [[value**exponent for value in row] for row in self]
        return _matrix(self._dtype, rows, "**", (self, exponent))

    def exp(self) -> Matrix:
        """Return e ** entry for each entry. Raises OverflowError above 709.78."""
        rows = [[value.exp() for value in row] for row in self]
        return _matrix(self._dtype, rows, "exp", (self,))

    def log(self) -> Matrix:
        """Return the natural logarithms. Raises ValueError unless all entries are positive."""
        rows = [[value.log() for value in row] for row in self]
        return _matrix(self._dtype, rows, "log", (self,))

    def tanh(self) -> Matrix:
        """Return the hyperbolic tangent of each entry."""
        rows = [[value.tanh() for value in row] for row in self]
        return _matrix(self._dtype, rows, "tanh", (self,))

    def relu(self) -> Matrix:
        """Return the entries where they are positive, else 0; as `relu(self)`."""
        return relu(self)


class Replay:
    """Call a function of lists of token ids; the compiled core replays graphs that it has seen.

    A replay computes the graph on other ids without running the function's Python. For this the
    function must depend on nothing but the ids, the numbers of its Matrices and `key`, and use
    the ids in block ops and `positions` only.

    f: takes lists of ids, or None in place of one, and returns a Value or a Matrix.
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        if hasattr(self, "f"):
            raise TypeError("a Replay keeps its function: make another one")
        checks.function(f)
        self.f = f

    def __repr__(self):
        return f"Replay({self.f!r})"

    def __call__(self, *ids: list[int] | None, key: Hashable = None) -> Any:
        return self.f(*ids)


class Prefixes:
    """Keep what `draw_tokens` computes after each prefix, for other documents that begin with it.

    The documents must all begin to be drawn at the same position, after the same tokens.

    matrices: have a row for each token that a model has seen, its keys or its values. What the
        model says must follow from these rows, the token and the position.
    limit: the most numbers to keep, with four counted for each prefix itself. What comes after
        that is computed each time.
    """

    def __init__(self, matrices: Iterable[Matrix], limit: int = 2_000_000) -> None:
        self._matrices, self._room = tuple(matrices), checks.index(limit)
        for matrix in self._matrices:
            checks.instance(matrix, "each of matrices", Matrix)
        self._kept: dict[tuple[int, ...], Any] = {}

    def _after(self, tokens, replay, position):
        """Return the probabilities after tokens; the matrices have the row of the last one."""
        prefix = tuple(tokens)
        for matrix in self._matrices:
            checks.cache_row(position, len(matrix))
        rows = [matrix[position : position + 1] for matrix in self._matrices]
        if prefix in self._kept:
            probs, numbers = self._kept[prefix]
            for row, lists in zip(rows, numbers, strict=True):
                row.load(lists)
            return probs
        probs = replay(tokens[-1:], key=position).tolist()[-1]
        size = 4 + len(probs) + sum(row.shape[1] for row in rows)
        if size <= self._room:
            self._room -= size
            self._kept[prefix] = probs, [row.tolist() for row in rows]
        return probs


def positions(
    tokens: Sequence[int], starts: Iterable[int] | None = None, block_size: int | None = None
) -> Sequence[int]:
    """Return the position of each token in its document: T tokens -> T ints.

    starts: first rows of the documents packed into tokens, from 0 upwards; None: one document.
    block_size: the maximum number of tokens per document.

    Raises ValueError if a document is longer, or starts do not fit.

    >>> positions([5, 0, 7, 5, 2], [0, 3])
    [0, 1, 2, 0, 1]
    """
    first = _first_rows(len(tokens), starts)
    result = [t - start for t, start in enumerate(first)]
    if block_size is not None:
        checks.document_length(max(result) + 1, checks.index(block_size))
    return result


def pack_documents(
    docs: Iterable[Sequence[int]], block_size: int
) -> tuple[list[int], list[int], list[int]]:
    """Return tokens, targets and first rows of documents, one after another without padding.

    docs: lists of token ids; position t of each predicts its token t + 1.
    block_size: the maximum number of tokens per document; the rest is not used.

    Raises ValueError if a document has fewer than two tokens.

    >>> pack_documents([[3, 0, 1, 3], [3, 2, 3]], block_size=2)
    ([3, 0, 3, 2], [0, 1, 2, 3], [0, 2])
    """
    tokens: list[int] = []
    targets: list[int] = []
    starts: list[int] = []
    for doc in docs:
        if len(doc) < 2:
            checks.document_too_short(len(doc))
        n = min(len(doc) - 1, block_size)
        starts.append(len(tokens))
        tokens += doc[:n]
        targets += doc[1 : n + 1]
    return tokens, targets, starts


def pack_encoded(
    ids: array[int], begins: Iterable[int], block_size: int, bos: int
) -> tuple[list[int], list[int], list[int]]:
    """Return tokens, targets and first rows of documents in an array, without padding.

    ids: of all documents, as Tokenizer.encode_all gives them: unsigned ints, 'B', 'H' or 'I'.
    begins: where the documents begin; each goes up to its bos, or to the end of ids.
    block_size: the maximum number of tokens per document; the rest is not used.
    bos: what ends a document, and comes before it: the targets are its ids, the tokens are bos
        and these ids but the last.

    Raises TypeError if ids is no such array, ValueError if a document begins outside ids or
    block_size is below 1.

    >>> from array import array
    >>> pack_encoded(array("B", [0, 1, 3, 2, 3]), [0, 3], block_size=4, bos=3)
    ([3, 0, 1, 3, 2], [0, 1, 3, 2, 3], [0, 3])
    """
    block_size, bos = checks.integer(block_size, "block_size", 1), checks.index(bos)
    checks.unsigned_array(ids)
    tokens: list[int] = []
    targets: list[int] = []
    starts: list[int] = []
    for begin in begins:
        begin = checks.index(begin)
        checks.place(begin, len(ids))
        part = ids[begin : begin + block_size]
        if bos in part:
            part = part[: part.index(bos) + 1]
        starts.append(len(tokens))
        tokens += [bos, *part[:-1]]
        targets += part
    return tokens, targets, starts


def draw_token(
    probs: Sequence[float], rng: Any, top_k: int | None = None, top_p: float | None = None
) -> int:
    """Return an index drawn with these probabilities as rng.choices draws it.

    rng: a random.Random; None: return the index of the largest number, the first of several.
    top_k: draw from this many of the largest probabilities only.
    top_p: nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751): draw from the fewest of the
        largest probabilities that sum to at least this part of all; after top_k.
    Of equal probabilities those with the lower indices are kept.

    Raises FloatingPointError if the sum of the numbers is not finite, or that of probabilities 0;
    ValueError if there are none, one is negative, or top_k or top_p is out of range.
    """
    top_k, top_p = checks.draw_limits(top_k, top_p)
    probs = list(probs)
    checks.row_to_draw_from(len(probs), min(probs, default=0.0), sum(probs), rng is None)
    if rng is None:
        return probs.index(max(probs))
    if top_k is not None or top_p is not None:
        likely = sorted(range(len(probs)), key=lambda i: -probs[i])[:top_k]
        if top_p is not None:
            sums = list(accumulate(probs[i] for i in likely))
            likely = likely[: 1 + sum(total < top_p * sums[-1] for total in sums)]
        kept = set(likely)
        probs = [p if i in kept else 0.0 for i, p in enumerate(probs)]
    return rng.choices(range(len(probs)), probs)[0]


def draw_tokens(
    replay: Replay, cache: Any, probs: Matrix, end: int, stop: int, rng: Any,
    top_k: int | None = None, top_p: float | None = None, prefixes: Prefixes | None = None,
) -> list[int]:  # fmt: skip
    """Return the tokens drawn one after another, each fed to a model to draw the next.

    replay: takes the list of one token and returns a Matrix whose last row `draw_token` draws
        from; it is called with the position as key.
    cache: its `length` is the position: how many tokens the model has seen.
    probs: a Matrix whose last row the first token is drawn from.
    end: the position to end at. stop: the token after which to end; it is in the list then.
    prefixes: what other documents that begin with the same tokens have computed.
    """
    tokens = [draw_token(probs.tolist()[-1], rng, top_k, top_p)]
    position = cache.length
    while tokens[-1] != stop and position < end:
        cache.length = position
        if prefixes is None:
            row = replay(tokens[-1:], key=position).tolist()[-1]
        else:
            row = prefixes._after(tokens, replay, position)
        position += 1
        cache.length = position
        tokens.append(draw_token(row, rng, top_k, top_p))
    return tokens


def embedding(table: Matrix, ids: Iterable[int]) -> Matrix:
    """Return the rows of table that ids name: table (n, cols), T ids -> (T, cols).

    Raises ValueError if an id is outside 0..n-1 or there are no ids.
    """
    checks.instance(table, "table", Matrix)
    ids = checks.ids(ids, len(table), "id")
    rows = [[_copy(value) for value in table[i]] for i in ids]
    return _matrix(table._dtype, rows, "embedding", (table,), ())


def linear(x: Matrix, w: Matrix) -> Matrix:
    """Return x times w transposed: x (T, nin), w (nout, nin) -> (T, nout).

    Raises ValueError if the two nin differ.
    """
    checks.instance(x, "x", Matrix)
    checks.instance(w, "w", Matrix)
    checks.linear_shapes(x.shape, w.shape)
    dtype = _same_dtype("linear", x, w)
    return _matrix(dtype, [[_dot(weights, row) for weights in w] for row in x], "linear", (x, w))


def rmsnorm(x: Matrix) -> Matrix:
    """Return each row divided by its root mean square: x (T, n) -> (T, n).

    x * (mean(x ** 2) + 1e-5) ** -0.5; Zhang and Sennrich 2019, arXiv:1910.07467, without a gain.
    """
    checks.instance(x, "x", Matrix)
    result = []
    for row in x:
        mean_square = sum(value * value for value in row) / len(row)
        scale = (mean_square + RMSNORM_EPS) ** -0.5
        result.append([value * scale for value in row])
    return _matrix(x._dtype, result, "rmsnorm", (x,))


def relu(x: Matrix) -> Matrix:
    """Return x where it is positive, else 0, entry by entry: x (T, n) -> (T, n)."""
    checks.instance(x, "x", Matrix)
    return _matrix(x._dtype, [[value.relu() for value in row] for row in x], "relu", (x,))


def softmax(x: Matrix, temperature: float = 1.0) -> Matrix:
    """Return the softmax of each row of x / temperature: x (T, n) -> (T, n); rows add up to 1.

    Raises ValueError if temperature is not positive.
    """
    checks.instance(x, "x", Matrix)
    temperature = checks.temperature(temperature)
    return _matrix(x._dtype, [_softmax(row, temperature) for row in x], "softmax", (x,))


def attention(
    q: Matrix, k: Matrix, v: Matrix, n_head: int, starts: Iterable[int] | None = None
) -> Matrix:
    """Return causal multi-head attention: q (T, n), k and v (S, n) with S >= T -> (T, n).

    Each of the n_head heads works on n / n_head adjacent columns. Row t of q is at
    position S - T + t and sees the keys up to and including its own position.
    starts: first rows of the documents packed into q, from 0 upwards; a row sees only its own
    document. Requires S == T.

    softmax(q k^T / sqrt(head_dim)) v; Vaswani et al. 2017, arXiv:1706.03762.
    Raises ValueError if shapes, n_head or starts do not fit.
    """
    checks.instance(q, "q", Matrix)
    checks.instance(k, "k", Matrix)
    checks.instance(v, "v", Matrix)
    n_head = checks.index(n_head)
    checks.attention_shapes(q.shape, k.shape, v.shape, n_head)
    if starts is not None:
        checks.starts_need_equal_rows(len(q), len(k))
    first_key = _first_rows(len(q), starts)
    dtype = _same_dtype("attention", q, k, v)
    cols = q.shape[1]
    head_dim = cols // n_head
    result = []
    for t, query in enumerate(q):
        seen = range(first_key[t], len(k) - len(q) + t + 1)
        row = []
        for head in range(0, cols, head_dim):
            weights = _attend(query, k, head, head_dim, seen)
            for j in range(head, head + head_dim):
                row.append(sum(weight * v[s][j] for weight, s in zip(weights, seen, strict=True)))
        result.append(row)
    return _matrix(dtype, result, "attention", (q, k, v))


def attention_weights(
    q: Matrix, k: Matrix, n_head: int, starts: Iterable[int] | None = None
) -> Matrix:
    """Return the weights that `attention` gives: q (T, n), k (S, n) -> (n_head * T, S).

    Row h * T + t holds the weights of head h at row t; a key that it does not see has weight 0.
    """
    checks.instance(q, "q", Matrix)
    checks.instance(k, "k", Matrix)
    n_head = checks.index(n_head)
    checks.attention_shapes(q.shape, k.shape, k.shape, n_head)
    if starts is not None:
        checks.starts_need_equal_rows(len(q), len(k))
    first_key = _first_rows(len(q), starts)
    dtype = _same_dtype("attention_weights", q, k)
    cols = q.shape[1]
    head_dim = cols // n_head
    result = []
    for head in range(0, cols, head_dim):
        for t, query in enumerate(q):
            seen = range(first_key[t], len(k) - len(q) + t + 1)
            row = [_leaf(0.0) for _ in range(len(k))]
            row[seen.start : seen.stop] = _attend(query, k, head, head_dim, seen)
            result.append(row)
    return _matrix(dtype, result, "attention_weights", (q, k))


def cross_entropy(logits: Matrix, targets: Iterable[int]) -> Matrix:
    """Return -log(softmax(row)[target]) for each row: logits (T, n), T targets -> (T, 1).

    Computed with log-sum-exp, so that a probability too small for a float still gives its loss.
    Raises ValueError if a target is outside 0..n-1, or unless there is one per row.
    """
    checks.instance(logits, "logits", Matrix)
    rows, cols = logits.shape
    targets_of_rows = checks.ids(targets, cols, "target")
    checks.one_target_per_row(rows, len(targets_of_rows))
    result = []
    for row, target in zip(logits, targets_of_rows, strict=True):
        largest = max([value._data for value in row])
        total = sum((value - largest).exp() for value in row)
        result.append([total.log() - (row[target] - largest)])
    return _matrix(logits._dtype, result, "cross_entropy", (logits,), ())


def mean(x: Matrix) -> Value:
    """Return the mean of all entries as one Value: x (T, n)."""
    checks.instance(x, "x", Matrix)
    rows, cols = x.shape
    result = (1.0 / (rows * cols)) * sum(value for row in x for value in row)
    if result._children:
        result._op = _BlockLabel("mean").of("mean", (x,), ())
    return result


def adam_update(adam: Any, lr: float) -> None:
    """Take one Adam step on every Matrix of adam.params, in place, and set its gradient to 0.

    adam: has params, m and v, lists of Matrices of equal shapes: parameters, first and second
    moments; step, the number of steps taken before, which is incremented; and the constants
    beta1, beta2 and eps.
    The step is atomic: an interrupt finds all of it or none.

    Kingma and Ba 2014, arXiv:1412.6980, algorithm 1.
    Raises ValueError if lengths or shapes differ, step is negative, a beta is not in [0, 1) or
    eps is not positive.
    """
    params, m, v = tuple(adam.params), tuple(adam.m), tuple(adam.v)
    for matrix in params + m + v:
        checks.instance(matrix, "a param or moment", Matrix)
    checks.adam_shapes(*([matrix.shape for matrix in matrices] for matrices in (params, m, v)))
    dtypes = [_same_dtype("adam_update", *three) for three in zip(params, m, v, strict=True)]
    step, lr, beta1, beta2, eps = checks.adam_rates(
        adam.step, lr, adam.beta1, adam.beta2, adam.eps
    )
    correction1, correction2 = 1.0 - beta1 ** (step + 1), 1.0 - beta2 ** (step + 1)
    changes = [(adam, "step", step + 1)]  # first: if it is refused, nothing has changed
    for dtype, *matrices in zip(dtypes, params, m, v, strict=True):
        begin = len(changes)
        for rows in zip(*matrices, strict=True):
            for p, first, second in zip(*rows, strict=True):
                m_new = beta1 * first._data + (1.0 - beta1) * p._grad
                v_new = beta2 * second._data + (1.0 - beta2) * (p._grad * p._grad)
                m_hat, v_hat = m_new / correction1, v_new / correction2
                p_new = p._data - lr * m_hat / (math.sqrt(v_hat) + eps)
                changes += [
                    (first, "_data", m_new),
                    (second, "_data", v_new),
                    (p, "_data", p_new),
                    (p, "_grad", 0.0),
                ]
        if dtype == "float32":
            changes[begin:] = [(value, name, _rounded(x)) for value, name, x in changes[begin:]]
    for matrix in params + m + v:
        matrix._changes[0] += 1
    deque(starmap(setattr, changes), maxlen=0)  # one call into C: no signal handler runs inside


def adam_minimize(loss: Value, adam: Any, lr: float) -> None:
    """Run loss.backward() and take the Adam step; arguments and errors as in adam_update.

    The gradient of an inner Matrix is sure to be kept only while the Matrix, rows or an entry of
    it are referenced.
    """
    checks.instance(loss, "loss", Value)
    loss.backward()
    adam_update(adam, lr)


class no_grad(ContextDecorator):
    """Build no graph inside a `with no_grad():` block of this thread; results are leaves.

    >>> with no_grad():
    ...     (Value(2) * 3)._children
    ()
    """

    def __enter__(self) -> no_grad:
        _thread.no_grad_depth += 1
        return self

    def __exit__(self, *exc_info: object) -> None:
        _thread.no_grad_depth -= 1


def grad_enabled() -> bool:
    """Return whether ops are recorded: False inside `no_grad` of this thread."""
    return not _thread.no_grad_depth


class _ThreadState(threading.local):
    no_grad_depth = 0


_thread = _ThreadState()


def _node(data, children, local_grads, op):
    node = Value.__new__(Value)
    node._data = data
    node._grad = 0.0
    if _thread.no_grad_depth:
        node._children = node._local_grads = ()
        node._op = ""
    else:
        node._children = children
        node._local_grads = local_grads
        node._op = op
    return node


def _leaf(data):
    return _node(data, (), (), "")


def _copy(value):
    return _node(value._data, (value,), (1.0,), "")


def _value(item):
    return item if isinstance(item, Value) else _leaf(checks.number(item, "an entry"))


_CODES = {"float64": "d", "float32": "f"}  # of the types in the module array


def _rounded(x):
    return array("f", (x,))[0]


def _number(x, dtype):
    """Return a number as it enters an op of blocks."""
    return array(_CODES[dtype], (x,))[0]


def _single(value):
    """Return a Value of a float32 block in place of one that nothing else refers to."""
    if value.__class__ is _Single:
        return value
    single = _Single.__new__(_Single)
    single._data, single._grad = _rounded(value._data), 0.0
    single._children, single._local_grads = value._children, value._local_grads
    single._op = value._op
    return single


def _rows_of(rows, dtype):
    if dtype == "float32":
        rows = [map(_single, row) for row in rows]
    return [tuple(row) for row in rows]


def _same_dtype(op, *matrices):
    checks.dtypes(op, [matrix._dtype for matrix in matrices])
    return matrices[0]._dtype


def _matrix(dtype, rows, op="", inputs=(), needed=None):
    """Return a Matrix of rows of Values that a block op has computed from inputs.

    needed: the Matrices among them whose numbers backward needs; None: all.
    """
    matrix = object.__new__(Matrix)
    matrix._dtype = dtype
    matrix._rows = _rows_of(rows, dtype)
    matrix._initialized = True
    matrix._changes = [0]
    matrix._label = None
    if inputs and grad_enabled():
        label = _BlockLabel(matrix._rows[0][0]._op)
        matrix._label = label.of(op, inputs, inputs if needed is None else needed, matrix)
        for row in matrix._rows:
            for value in row:
                value._op = label
    return matrix


class _BlockLabel(str):
    """The label that the Values of a block share, which knows what the block was computed from.

    With it a picture shows the block as one node, and backward can tell if those numbers have
    changed, at no cost for other Values.
    """

    def of(self, op, inputs, needed, result=None):
        counts = [(x._changes, "was computed from") for x in needed if isinstance(x, Matrix)]
        if op in ("softmax", "attention_weights", "exp", "tanh"):  # whose backward reads the result
            counts.append((result._changes, "gave"))
        self._op, self._inputs, self.shape = op, tuple(inputs), result and result.shape
        self.counts = [(changes, changes[0], how) for changes, how in counts]
        return self

    def refuse_changed_numbers(self):
        for changes, count, how in self.counts:
            if changes[0] != count:
                checks.changed_since_forward(self._op, how)


def _topological_sort(root):
    """Return the inner nodes below root, children first: depth-first, children left to right.

    Leaves are left out: they pass no gradient on. On the stack, None above a node means that all
    of its children are done.
    """
    topo, visited, stack = [], set(), [root]
    while stack:
        node = stack.pop()
        if node is None:
            topo.append(stack.pop())
        elif node._children and id(node) not in visited:
            visited.add(id(node))
            stack += (node, None, *reversed(node._children))
    return topo


def _elementwise(op, name, a, b):
    """Return op(a, b) entry by entry, for two Matrices or one Matrix and a number.

    A row (1, n) serves all rows of the other; so does a number, and all columns.
    """
    matrices = [x for x in (a, b) if isinstance(x, Matrix)]
    for x in (a, b):
        if isinstance(x, Value):
            checks.matrix_with_value(name)  # raises TypeError
        if not (isinstance(x, Matrix) or checks.is_number(x)):
            checks.matrix_with_array(name, x)  # can raise TypeError
            return NotImplemented
    checks.elementwise_shapes(name, matrices[0].shape, matrices[-1].shape)
    dtype = _same_dtype(name, *matrices)
    rows, cols = max(matrix.shape for matrix in matrices)
    result = [
        [op(x, y) for x, y in zip(*row, strict=True)]
        for row in zip(_spread(a, rows, cols, dtype), _spread(b, rows, cols, dtype), strict=True)
    ]
    reads_numbers = name in "*/" and isinstance(b, Matrix)  # the others pass gradients on without
    inputs = [x if isinstance(x, Matrix) else _number(x, dtype) for x in (a, b)]
    return _matrix(dtype, result, name, inputs, matrices if reads_numbers else ())


def _spread(x, rows, cols, dtype):
    """Return what stands at each place of rows x cols, if x serves all of them."""
    if not isinstance(x, Matrix):
        return [[_number(x, dtype)] * cols] * rows
    return x._rows * rows if len(x._rows) < rows else x._rows


def _dot(a, b):
    return sum(ai * bi for ai, bi in zip(a, b, strict=True))


def _softmax(values, temperature=1.0):
    largest = max([value._data for value in values])
    shifted = [value - largest for value in values]
    if temperature != 1.0:
        shifted = [value / temperature for value in shifted]
    exps = [value.exp() for value in shifted]
    total = sum(exps)
    return [e / total for e in exps]


def _attend(query, k, head, head_dim, seen):
    columns = range(head, head + head_dim)
    return _softmax([sum(query[j] * k[s][j] for j in columns) / head_dim**0.5 for s in seen])


def _snapshot(lists, dtype):
    flat = array(_CODES[dtype], [number for row in lists for number in row])
    shape = len(lists), len(lists[0])
    return memoryview(flat).cast("B").cast(_CODES[dtype], shape).toreadonly()


def _first_rows(rows, starts):
    """Return for each row the first row of its document."""
    starts = [0] if starts is None else [checks.index(start) for start in starts]
    checks.document_starts(rows, starts)
    ends = starts[1:] + [rows]
    return [a for a, b in zip(starts, ends, strict=True) for _ in range(a, b)]
