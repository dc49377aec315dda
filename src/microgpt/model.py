"""The GPT: its sizes, its parameters, and the one function from tokens to logits.

It follows GPT-2 (Radford et al. 2019) as Karpathy's microgpt does: RMSNorm instead of LayerNorm,
no biases, ReLU instead of GELU. The names are those of the script, and with the same generator
the parameters are its parameters. Two things differ, neither by more than rounding:

- A document goes through the model as one block with a row for each position, not token by
  token. The causal attention of a row sees the same keys either way.
- The loss is taken by log-sum-exp from the logits, not as -log(softmax), so that a very unlikely
  target costs much instead of failing at log(0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from random import Random

from .core import (
    Matrix,
    Recording,
    Value,
    attention,
    attention_weights,
    cross_entropy,
    embedding,
    grad_enabled,
    linear,
    mean,
    relu,
    rmsnorm,
)

INIT_STD = 0.08  # standard deviation of the untrained parameters


@dataclass(frozen=True)
class Config:
    """The sizes of a model.

    vocab_size: number of tokens, BOS included.
    n_layer: number of transformer layers.
    n_embd: width of the network; a multiple of n_head.
    n_head: attention heads a layer.
    block_size: longest context, in tokens.

    Raises TypeError if a size is not an int, ValueError if it is below 1 or if n_embd is not a
    multiple of n_head.
    """

    vocab_size: int
    n_layer: int = 1
    n_embd: int = 16
    n_head: int = 4
    block_size: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if not isinstance(size, int):
                raise TypeError(f"{field.name} must be an int, not {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{field.name} must be at least 1, not {size}")
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


class Cache:
    """The keys and values of the tokens that a model has seen, with room for block_size.

    It holds numbers without a graph, so it is used under no_grad. `length` counts the tokens.
    """

    def __init__(self, config: Config) -> None:
        self.length = 0
        self.block_size = config.block_size
        layers = range(config.n_layer)
        self._keys = [Matrix(config.block_size, config.n_embd) for _ in layers]
        self._values = [Matrix(config.block_size, config.n_embd) for _ in layers]

    def extend(self, layer: int, k: Matrix, v: Matrix) -> tuple[Matrix, Matrix]:
        """Store new rows k and v (T, n_embd) of a layer; return all its keys and values so far."""
        end = self.length + len(k)
        keys, values = self._keys[layer], self._values[layer]
        keys[self.length : end].load(k)
        values[self.length : end].load(v)
        return keys[:end], values[:end]


class GPT:
    """A GPT with parameters drawn from rng.gauss(0, 0.08).

    config: the sizes.
    rng: a random.Random; the same state gives the same parameters.

    `state_dict` maps the names of the script to Matrices of shape (nout, nin).
    `replayable`: a class that overrides a method sets it to True to say that its loss of a
    document depends on nothing but the tokens and the parameters, through block ops alone.
    Training then runs its Python once for each number of rows, as it does for this class.
    """

    replayable = False

    def __init__(self, config: Config, rng: Random) -> None:
        self.config = config
        self.state_dict = {name: Matrix(*shape) for name, shape in config.shapes().items()}
        for matrix in self.state_dict.values():
            nout, nin = matrix.shape
            matrix.load([[rng.gauss(0, INIT_STD) for _ in range(nin)] for _ in range(nout)])

    @property
    def num_params(self) -> int:
        """The number of parameters."""
        return sum(nout * nin for nout, nin in self.config.shapes().values())

    def load_state_dict(self, state_dict: Mapping[str, Matrix | Iterable[Iterable[float]]]) -> None:
        """Set all parameters from name -> Matrix or lists of lists.

        Raises ValueError if a name is missing or unknown or a shape is another; then nothing has
        changed.
        """
        if set(state_dict) != set(self.state_dict):
            different = sorted(set(state_dict) ^ set(self.state_dict))
            raise ValueError(f"these names stand only in one state_dict: {', '.join(different)}")
        new = {}
        for name, source in state_dict.items():
            new[name] = Matrix(*self.state_dict[name].shape)
            try:
                new[name].load(source)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        for name, matrix in new.items():
            self.state_dict[name].load(matrix)

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
        cache is used while a graph is built.
        """
        weights = self.state_dict
        x = embedding(weights["wte"], tokens)
        positions = self._positions(len(x), cache, starts)
        x = x + embedding(weights["wpe"], positions)
        if trace is not None:
            trace["embedding"] = x
        x = rmsnorm(x)  # not redundant: the residual connection leads around the next one
        for i in range(self.config.n_layer):
            x = self._attention_block(i, x, cache, starts, trace)
            x = self._mlp_block(i, x, trace)
        logits = linear(x, weights["lm_head"])
        if trace is not None:
            trace["logits"] = logits
        if cache is not None:
            cache.length += len(x)
        return logits

    def _attention_block(
        self,
        layer: int,
        x: Matrix,
        cache: Cache | None,
        starts: Sequence[int] | None,
        trace: dict[str, Matrix] | None,
    ) -> Matrix:
        weights, name, n_head = self.state_dict, f"layer{layer}.", self.config.n_head
        normed = rmsnorm(x)
        q = linear(normed, weights[name + "attn_wq"])
        k = linear(normed, weights[name + "attn_wk"])
        v = linear(normed, weights[name + "attn_wv"])
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        heads = attention(q, k, v, n_head, starts)
        out = linear(heads, weights[name + "attn_wo"]) + x
        if trace is not None:
            attn_weights = attention_weights(q, k, n_head, starts)
            blocks = {"attn_norm": normed, "q": q, "k": k, "v": v, "attn_weights": attn_weights}
            blocks |= {"heads": heads, "attn_out": out}
            trace.update((name + block, matrix) for block, matrix in blocks.items())
        return out

    def _mlp_block(self, layer: int, x: Matrix, trace: dict[str, Matrix] | None) -> Matrix:
        weights, name = self.state_dict, f"layer{layer}."
        normed = rmsnorm(x)
        hidden = relu(linear(normed, weights[name + "mlp_fc1"]))
        out = linear(hidden, weights[name + "mlp_fc2"]) + x
        if trace is not None:
            blocks = {"mlp_norm": normed, "mlp_hidden": hidden, "mlp_out": out}
            trace.update((name + block, matrix) for block, matrix in blocks.items())
        return out

    def _positions(
        self, rows: int, cache: Cache | None, starts: Sequence[int] | None
    ) -> list[int]:
        """Return for each row the place of its token in its document."""
        if cache is not None and grad_enabled():
            raise ValueError("a cache holds no gradients: use it under no_grad()")
        if cache is not None and starts is not None:
            raise ValueError("a cache holds one document: it does not go with starts")
        if cache is not None and cache.length + rows > cache.block_size:
            raise ValueError(
                f"the cache is full: {cache.length} tokens and {rows} more, "
                f"block_size is {cache.block_size}"
            )
        if cache is not None:
            return list(range(cache.length, cache.length + rows))
        starts = list(starts) if starts is not None else [0]
        if starts[:1] != [0]:
            raise ValueError(f"starts must rise from 0, not {starts}")
        lengths = [end - start for start, end in zip(starts, [*starts[1:], rows], strict=True)]
        if max(lengths) > self.config.block_size:
            raise ValueError(
                f"a document of {max(lengths)} tokens is longer than block_size "
                f"{self.config.block_size}"
            )
        return [position for length in lengths for position in range(length)]

    def loss(self, docs: Sequence[Sequence[int]]) -> Value:
        """Return the mean cross-entropy over all positions of docs, lists of token ids.

        Each document stands between two BOS, as Tokenizer.encode gives it; position t predicts
        token t + 1. Of a document with more than block_size + 1 tokens the rest is not used.
        Raises ValueError if there is no document or one has fewer than two tokens.
        """
        tokens: list[int] = []
        targets: list[int] = []
        starts = []
        for doc in docs:
            inputs, following = self.pairs(doc)
            starts.append(len(tokens))
            tokens += inputs
            targets += following
        return self.loss_of(tokens, targets, starts if len(starts) > 1 else None)

    def pairs(self, doc: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """Return what goes in and what is to come out: tokens t and t + 1, block_size at most.

        Raises ValueError if doc has fewer than two tokens.
        """
        n = min(self.config.block_size, len(doc) - 1)
        if n < 1:
            raise ValueError(f"a document needs at least two tokens, not {len(doc)}")
        return doc[:n], doc[1 : n + 1]

    def loss_of(
        self, tokens: Sequence[int], targets: Sequence[int], starts: Sequence[int] | None = None
    ) -> Value:
        """Return the mean cross-entropy of targets after tokens; starts as in forward."""
        return mean(cross_entropy(self.forward(tokens, starts=starts), targets))


_METHODS = ("loss", "loss_of", "pairs", "forward", "_attention_block", "_mlp_block", "_positions")
_methods_of = attrgetter(*_METHODS)
_OUR_OWN = _methods_of(GPT)


def can_be_recorded(model: GPT) -> bool:
    """Return whether the core may run what the model computes again without its Python.

    It may if the core records at all, and the model's methods are ours or it is `replayable`.
    """
    own = _methods_of(type(model)) == _OUR_OWN and vars(model).keys().isdisjoint(_METHODS)
    return Recording is not None and (own or model.replayable)
