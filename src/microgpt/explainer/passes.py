"""One text through the model, forward and backward, with all that is computed on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from random import Random
from typing import Any

from ..adam import Adam
from ..core import (
    Matrix,
    attention_weights,
    cross_entropy,
    embedding,
    linear,
    mean,
    no_grad,
    positions,
    rmsnorm,
    softmax,
)
from ..model import GPT
from ..training import Run, check_run

Rows = list[list[float]]


def folded(run: Run, text: str) -> str:
    """Return text with each character that the alphabet has in lower case only in lower case."""
    chars = set(run.tokenizer.chars)
    return "".join([c if c in chars or c.lower() not in chars else c.lower() for c in text])


def trace(run: Run, text: str) -> dict[str, Any]:
    """Return all that the model of a run computes from a text, as lists of floats.

    The text is cut where the block size cuts a document, so that T tokens are seen:

    text, ids, targets: the text with the letters that the alphabet has, its token ids, and the
        T ids to predict.
    token, position, embedding, norm: (T, n_embd), the two embeddings, their sum, and the sum
        normalized.
    layers: for each layer a dict of attn_norm, q, k, v, heads, proj, attn_out, mlp_norm, fc2,
        mlp_out (T, n_embd), of fc1 and relu (T, 4 n_embd), and of scores and weights: for each
        head and row t the t + 1 numbers of the keys that it sees.
    logits, probs: (T, vocab_size).
    losses, loss: the loss of each position, and their mean.

    Raises ValueError if the text is empty or has a character that is not in the alphabet,
    TypeError if it is not a string or the model is of a class of its own, FloatingPointError if
    the logits are not finite.

    >>> from microgpt import prepare
    >>> run = prepare(["emma", "ava"])
    >>> traced = trace(run, "Emma")
    >>> traced["text"], traced["ids"], len(traced["layers"][0]["weights"][0][2])
    ('emma', [4, 1, 2, 2, 0, 4], 3)
    """
    check_model(run)
    ids = encoded(run, text)
    tokens, targets, _ = run.model.pack([ids])
    with no_grad():
        blocks: dict[str, Matrix] = {}
        logits = run.model.forward(tokens, trace=blocks)
        losses = [loss for [loss] in cross_entropy(logits, targets).tolist()]
        if not math.isfinite(sum(losses)):
            raise FloatingPointError("the model's logits are not finite")
        w, T = run.model.state_dict, len(tokens)
        return {
            "text": folded(run, text),
            "ids": ids,
            "targets": targets,
            "token": embedding(w["wte"], tokens).tolist(),
            "position": embedding(w["wpe"], positions(tokens)).tolist(),
            "embedding": blocks["embedding"].tolist(),
            "norm": rmsnorm(blocks["embedding"]).tolist(),
            "layers": [_layer(run.model, blocks, i, T) for i in range(run.model.config.n_layer)],
            "logits": logits.tolist(),
            "probs": softmax(logits).tolist(),
            "losses": losses,
            "loss": math.fsum(losses) / T,
        }


def _layer(model: GPT, blocks: dict[str, Matrix], i: int, T: int) -> dict[str, Any]:
    """Return what one layer computes, with the steps that the model does not name."""
    w, n_head, layer = model.state_dict, model.config.n_head, f"layer{i}."
    q, k = blocks[layer + "q"], blocks[layer + "k"]
    named = {
        name: blocks[layer + name].tolist()
        for name in ("attn_norm", "q", "k", "v", "heads", "attn_out", "mlp_norm", "mlp_out")
    }
    return named | {
        "scores": causal(_scores(q, k, n_head), T),
        "weights": causal(attention_weights(q, k, n_head).tolist(), T),
        "proj": linear(blocks[layer + "heads"], w[layer + "attn_wo"]).tolist(),
        "fc1": linear(blocks[layer + "mlp_norm"], w[layer + "mlp_fc1"]).tolist(),
        "relu": blocks[layer + "mlp_hidden"].tolist(),
        "fc2": linear(blocks[layer + "mlp_hidden"], w[layer + "mlp_fc2"]).tolist(),
    }


def _scores(q: Matrix, k: Matrix, n_head: int) -> Rows:
    """Return q k^T / sqrt(head_dim) of each head, one head after another."""
    head_dim = q.shape[1] // n_head
    rows: Rows = []
    for head in range(n_head):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        q_head, k_head = (Matrix.of([row[columns] for row in m.tolist()]) for m in (q, k))
        rows += (linear(q_head, k_head) / head_dim**0.5).tolist()
    return rows


def causal(rows: Rows, T: int) -> list[Rows]:
    """Return n_head * T rows as a list for each head, without what the mask hides.

    >>> causal([[1, 0], [2, 3]], 2)
    [[[1], [2, 3]]]
    """
    return [[rows[i + t][: t + 1] for t in range(T)] for i in range(0, len(rows), T)]


def backward(run: Run, ids: Sequence[int]) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Return the gradients of the loss of ids: of the parameters, and of the blocks of forward.

    They are computed with parameters of their own, so that those of the run are not touched.
    Raises FloatingPointError if one is not finite.
    """
    model = copied(run.model)
    tokens, targets, _ = model.pack([list(ids)])
    blocks: dict[str, Matrix] = {}
    logits = model.forward(tokens, trace=blocks)
    mean(cross_entropy(logits, targets)).backward()
    grads = {name: gradient(p) for name, p in model.named_parameters().items()}
    of_blocks = {name: gradient(block) for name, block in blocks.items()}
    if not all(map(math.isfinite, chain(*chain(*grads.values(), *of_blocks.values())))):
        raise FloatingPointError("the model's gradients are not finite")
    return grads, of_blocks


def gradient(matrix: Matrix) -> Rows:
    """Return the gradient of a Matrix as rows of floats."""
    rows: Any = matrix.grad.tolist()
    return list(rows)


def copied(model: GPT, numbers: Sequence[float] | None = None) -> GPT:
    """Return a float64 model with the parameters of another, or with numbers, one after another."""
    copy = GPT(replace(model.config, dtype="float64"), Random(0))
    if numbers is None:
        copy.load_state_dict(model.state_dict)
    else:
        copy.load_state_dict(unflattened(model, numbers))
    return copy


def in_float64(run: Run) -> Run:
    """Return the run, or one with the same numbers in float64, which a page computes in."""
    if run.model.config.dtype == "float64":
        return run
    model, old = copied(run.model), run.adam
    adam = Adam(model.parameters(), old.beta1, old.beta2, old.eps)
    adam.step = old.step
    for moment, numbers in zip(adam.m + adam.v, old.m + old.v, strict=True):
        moment.load(numbers)
    return replace(run, model=model, adam=adam)


def unflattened(model: GPT, numbers: Sequence[float]) -> dict[str, Rows]:
    """Return numbers, one after another, as the rows of the parameters of a model."""
    start, rows = 0, {}
    for name, (nout, nin) in model.config.shapes().items():
        rows[name] = [list(numbers[start + i * nin : start + (i + 1) * nin]) for i in range(nout)]
        start += nout * nin
    return rows


def encoded(run: Run, text: str) -> list[int]:
    """Return the token ids of a text after folding; raise what trace says of it."""
    if not isinstance(text, str):
        raise TypeError(f"a text must be a string, not {type(text).__name__}")
    if not text:
        raise ValueError("a text must not be empty")
    return run.encode(folded(run, text))


def check_model(run: Run) -> None:
    """Raise TypeError unless the model is the GPT that the page computes."""
    check_run(run, "explain")
    if type(run.model) is not GPT:
        raise TypeError(f"explain knows what GPT computes, not {type(run.model).__name__}")
