"""The GPT: its sizes, its parameters, and the one function from tokens to logits.

It follows GPT-2 (Radford et al. 2019) as Karpathy's microgpt does: RMSNorm instead of LayerNorm,
no biases, ReLU instead of GELU. The names are those of the script, and with the same generator
so are the parameters. Two things differ, neither by more than rounding:

- A document goes through the model as one block with a row for each position, not token by
  token. The causal attention of a row sees the same keys either way.
- The loss is computed from the logits by log-sum-exp, not as -log(softmax), so that a very
  unlikely target costs much instead of failing at log(0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import signature
from random import Random
from types import MappingProxyType

from . import _checks as checks
from .core import (
    Matrix,
    Value,
    attention,
    attention_weights,
    cross_entropy,
    embedding,
    grad_enabled,
    linear,
    mean,
    pack_documents,
    positions,
    relu,
    rmsnorm,
)

INIT_STD = 0.08  # standard deviation of the untrained parameters
MAX_SIZE = 10**6  # of each size in Config: a typo must not exhaust memory
MAX_NUMBERS = 2**26  # see check_numbers


@dataclass(frozen=True)
class Config:
    """The sizes of a model, and the type of its numbers.

    vocab_size: number of tokens, BOS included.
    n_layer: number of transformer layers.
    n_embd: width of the network; a multiple of n_head.
    n_head: attention heads per layer.
    block_size: longest context, in tokens.
    dtype: the type of the parameters and of everything computed from them: "float64", which is
        exact to the last bits, or "float32", which is faster and takes half the memory.

    Raises TypeError if a size is not an int, ValueError if it is below 1 or above a million, if
    n_embd is not a multiple of n_head, or if dtype is another.
    """

    vocab_size: int
    n_layer: int = 1
    n_embd: int = 16
    n_head: int = 4
    block_size: int = 16
    dtype: str = "float64"

    def __post_init__(self) -> None:
        checks.dtype(self.dtype)
        for field in fields(self):
            if field.name == "dtype":
                continue
            size = checks.integer(getattr(self, field.name), field.name, 1, MAX_SIZE)
            object.__setattr__(self, field.name, size)
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd must be a multiple of n_head, not {self.n_embd} with {self.n_head} heads"
            )

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return name -> (nout, nin) of every parameter, in the order in which they are drawn."""
        n = self.n_embd
        shapes = {
            "wte": (self.vocab_size, n),
            "wpe": (self.block_size, n),
            "lm_head": (self.vocab_size, n),
        }
        for i in range(self.n_layer):
            for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
                shapes[f"layer{i}.{name}"] = (n, n)
            shapes[f"layer{i}.mlp_fc1"] = (4 * n, n)
            shapes[f"layer{i}.mlp_fc2"] = (n, 4 * n)
        return shapes

    def numbers(self, rows: int, keys: int) -> int:
        """Return about how many numbers a forward pass computes; each of rows sees up to keys."""
        per_layer = 18 * self.n_embd + self.n_head * keys
        return rows * (3 * self.n_embd + self.n_layer * per_layer + 2 * self.vocab_size)


def check_numbers(numbers: int, params: int, what: str) -> None:
    """Raise ValueError if a model with so many parameters is to hold too many numbers at once.

    A size is a few characters, in a typo as in a file from somebody else; the memory that it asks
    for is at most that of MAX_NUMBERS, or in proportion to the parameters.
    """
    most = max(MAX_NUMBERS, 200 * params)
    if numbers > most:
        raise ValueError(f"{what} needs {numbers:.2g} numbers, more than {most:.2g}")


class Cache:
    """The keys and values of the tokens that a model has seen, with room for block_size.

    It holds numbers without a graph, so it is used under no_grad. `length` counts the tokens.
    Raises ValueError if it would be very large for the model.
    """

    def __init__(self, config: Config) -> None:
        params = sum(nout * nin for nout, nin in config.shapes().values())
        numbers = 2 * config.n_layer * config.block_size * config.n_embd
        check_numbers(numbers, params, f"a cache for block_size {config.block_size}")
        self.length = 0
        self.block_size = config.block_size
        layers = range(config.n_layer)
        shape = config.block_size, config.n_embd
        self._keys = [Matrix(*shape, config.dtype) for _ in layers]
        self._values = [Matrix(*shape, config.dtype) for _ in layers]

    def __repr__(self) -> str:
        return f"Cache({self.length} of {self.block_size} tokens)"

    @property
    def matrices(self) -> list[Matrix]:
        """The keys and the values of all layers, with a row for each token."""
        return self._keys + self._values

    def extend(self, layer: int, k: Matrix, v: Matrix) -> tuple[Matrix, Matrix]:
        """Store new rows k and v (T, n_embd) of a layer; return all its keys and values so far."""
        end = self.length + len(k)
        keys, values = self._keys[layer], self._values[layer]
        keys[self.length : end].load(k)  # a slice of a Matrix is a view, not a copy
        values[self.length : end].load(v)
        return keys[:end], values[:end]


class GPT:
    """A GPT with parameters drawn from rng.gauss(0, 0.08).

    config: the sizes.
    rng: a random.Random; the same state gives the same parameters.

    `state_dict` maps the names of the script to Matrices of shape (nout, nin). They are loaded,
    never replaced.
    `replayable`: a subclass sets it to True to say that its `packed_loss` and `forward` depend
    on nothing but tokens, parameters and cache, as `Replay` requires. Its Python then runs once,
    as for GPT itself, not at every step.
    """

    __slots__ = ("_config", "_state_dict")  # a method is overridden in a subclass, not replaced
    replayable = True

    def __init_subclass__(cls) -> None:
        cls.replayable = vars(cls).get("replayable", False)  # not inherited

    def __init__(self, config: Config, rng: Random) -> None:
        self._config = config
        parameters: object = self.init_parameters(config, rng)  # of any type in a subclass
        hook = f"{type(self).__name__}.init_parameters"
        if not isinstance(parameters, Mapping):
            kind = type(parameters).__name__
            raise TypeError(f"{hook} must return a dict from name to Matrix, not {kind}")
        for name, matrix in parameters.items():
            if not (isinstance(name, str) and isinstance(matrix, Matrix)):
                kind = type(matrix).__name__
                raise TypeError(f"{hook}: a parameter is a Matrix with a name, not {kind} {name!r}")
            if name in ("losses", "__metadata__") or name.startswith(("adam.", "record.")):
                raise ValueError(f"no parameter can be called {name}: that is used in saved files")
            if matrix._op:
                raise ValueError(
                    f"{hook}: parameter {name!r} is computed, or a slice of another Matrix; "
                    "Matrix.of(it) makes a parameter with its numbers"
                )
        self._state_dict = dict(parameters)

    @classmethod
    def init_parameters(cls, config: Config, rng: Random) -> dict[str, Matrix]:
        """Return name -> Matrix of all parameters, drawn from rng in this order.

        A subclass extends it to add, remove or tie parameters; one Matrix under two names is tied.
        """
        shapes = config.shapes()
        state_dict = {name: Matrix(*shape, config.dtype) for name, shape in shapes.items()}
        for matrix in state_dict.values():
            nout, nin = matrix.shape
            matrix.load([[rng.gauss(0, INIT_STD) for _ in range(nin)] for _ in range(nout)])
        return state_dict

    def __repr__(self) -> str:
        shown = [(name, x) for name, x in vars(self.config).items() if x != Config.dtype]
        sizes = ", ".join(f"{name} {x}" for name, x in shown)
        return f"{type(self).__name__}({self.num_params:,} params, {sizes})"

    @property
    def config(self) -> Config:
        return self._config

    @property
    def state_dict(self) -> Mapping[str, Matrix]:
        return MappingProxyType(self._state_dict)

    def named_parameters(self) -> dict[str, Matrix]:
        """Return name -> Matrix, a tied one under its first name only."""
        first = {id(matrix): name for name, matrix in reversed(self._state_dict.items())}
        return {name: m for name, m in self._state_dict.items() if first[id(m)] == name}

    def parameters(self) -> list[Matrix]:
        """Return the Matrices that Adam moves, a tied one once."""
        return list(self.named_parameters().values())

    @property
    def num_params(self) -> int:
        """The number of parameters; tied ones count once."""
        return sum(nout * nin for nout, nin in (m.shape for m in self.parameters()))

    def load_state_dict(self, state_dict: Mapping[str, Matrix | Iterable[Iterable[float]]]) -> None:
        """Set all parameters from name -> Matrix or lists of lists, converted to their type.

        Raises ValueError if a name is missing or unknown, a shape differs or tied parameters do;
        nothing is changed then.
        """
        own = self.state_dict
        if set(state_dict) != set(own):
            different = sorted(set(state_dict) ^ set(own))
            raise ValueError(f"found in only one of the state_dicts: {', '.join(different)}")
        new: dict[str, Matrix] = {}
        first: dict[int, str] = {}
        for name, source in state_dict.items():
            new[name] = Matrix(*own[name].shape, own[name].dtype)
            try:
                new[name].load(source)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            other = first.setdefault(id(own[name]), name)
            if bytes(new[other].data) != bytes(new[name].data):  # so that nan is equal to itself
                raise ValueError(f"{name} and {other} are one parameter, but their numbers differ")
        for name, matrix in new.items():
            own[name].load(matrix)

    def forward(
        self,
        tokens: Sequence[int],
        cache: Cache | None = None,
        starts: Sequence[int] | None = None,
        trace: dict[str, Matrix] | None = None,
    ) -> Matrix:
        """Return the logits of the next token at each position: T token ids -> (T, vocab_size).

        cache: what came before tokens; it is extended by them. Only under no_grad.
        starts: the first rows of the documents, if tokens holds several one after another.
        trace: a dict that receives every intermediate block by name.

        Raises ValueError if a token is unknown, a document or the cache exceeds block_size, or a
        cache is used while a graph is built or together with starts.
        """
        w, n_head = self.state_dict, self.config.n_head
        note = ({} if trace is None else trace).__setitem__
        x = embedding(w["wte"], tokens)  # token embedding
        x = x + self.position_embedding(tokens, cache, starts)
        note("embedding", x)
        x = rmsnorm(x)  # not redundant: the residual connection bypasses the next one
        for i in range(self.config.n_layer):
            layer = f"layer{i}."
            # 1) Multi-head attention
            x_residual = x
            x = rmsnorm(x)
            note(layer + "attn_norm", x)
            q = linear(x, w[layer + "attn_wq"])
            k = linear(x, w[layer + "attn_wk"])
            v = linear(x, w[layer + "attn_wv"])
            if cache is not None:
                k, v = cache.extend(i, k, v)
            if trace is not None:
                trace |= {layer + "q": q, layer + "k": k, layer + "v": v}
                note(layer + "attn_weights", attention_weights(q, k, n_head, starts))
            x = attention(q, k, v, n_head, starts)
            note(layer + "heads", x)
            x = linear(x, w[layer + "attn_wo"]) + x_residual
            note(layer + "attn_out", x)
            # 2) MLP
            x_residual = x
            x = rmsnorm(x)
            note(layer + "mlp_norm", x)
            x = relu(linear(x, w[layer + "mlp_fc1"]))
            note(layer + "mlp_hidden", x)
            x = linear(x, w[layer + "mlp_fc2"]) + x_residual
            note(layer + "mlp_out", x)
        logits = linear(x, w["lm_head"])
        note("logits", logits)
        if cache is not None:
            cache.length += len(tokens)
        return logits

    def __call__(
        self,
        tokens: Sequence[int],
        cache: Cache | None = None,
        starts: Sequence[int] | None = None,
        trace: dict[str, Matrix] | None = None,
    ) -> Matrix:
        """Return forward(tokens, ...)."""
        return self.forward(tokens, cache, starts, trace)

    def position_embedding(
        self, tokens: Sequence[int], cache: Cache | None, starts: Sequence[int] | None
    ) -> Matrix:
        """Return the rows of wpe for tokens; the arguments and errors are those of forward."""
        wpe = self.state_dict["wpe"]
        if cache is None:
            return embedding(wpe, positions(tokens, starts, self.config.block_size))
        if starts is not None:
            raise ValueError("cache and starts exclude each other: a cache holds one document")
        if grad_enabled():
            raise ValueError("a cache holds no gradients: use it under no_grad()")
        end = cache.length + len(tokens)
        if end > cache.block_size:
            raise ValueError(
                f"the cache is full: {cache.length} tokens and {len(tokens)} more, "
                f"block_size is {cache.block_size}"
            )
        rows: Matrix = wpe[cache.length : end]
        return rows

    def loss(self, docs: Sequence[Sequence[int]]) -> Value:
        """Return the mean cross-entropy over all positions of docs, lists of token ids.

        Each document has a BOS on both sides, as Tokenizer.encode gives it; position t predicts
        token t + 1. What is beyond block_size + 1 tokens of a document is not used.
        Raises ValueError if there is no document or one has fewer than two tokens.
        """
        if len(docs) and isinstance(docs[0], int):
            raise TypeError("loss takes a list of documents, as in loss([ids]), not the ids of one")
        return self.packed_loss(*self.pack(docs))

    def pack(self, docs: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
        """Return tokens, targets and first rows of docs, as pack_documents does."""
        return pack_documents(docs, self.config.block_size)

    def packed_loss(
        self, tokens: Sequence[int], targets: Sequence[int], starts: Sequence[int] | None = None
    ) -> Value:
        """Return the mean cross-entropy of predicting targets from tokens; starts as in forward."""
        return mean(cross_entropy(self.forward(tokens, starts=starts), targets))


def check_model_class(model: object) -> None:
    """Raise TypeError unless model is GPT or a subclass of it that can be trained."""
    if not (isinstance(model, type) and issubclass(model, GPT)):
        what = f"an instance of {type(model).__name__}"
        if model is None or isinstance(model, type):
            what = str(getattr(model, "__name__", model))
        raise TypeError(f"model must be a class, GPT or a subclass of it, not {what}")
    try:
        signature(model.forward).bind(None, [], cache=None, starts=None, trace=None)
    except TypeError as error:
        raise TypeError(
            f"{model.__name__}.forward must take (self, tokens, cache=None, starts=None, "
            f"trace=None), as GPT.forward does: {error}"
        ) from None


def check_model(model: object, usage: str) -> None:
    """Raise TypeError unless model is a GPT; usage: a call that is right."""
    if not isinstance(model, GPT):
        raise TypeError(f"a model is needed, as in {usage}, not {type(model).__name__}")
