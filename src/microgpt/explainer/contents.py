"""All that a page holds about one model, as one JSON object."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import accumulate
from random import Random
from typing import Any

from .. import __version__
from .. import _checks as checks
from ..adam import Adam, linear_decay
from ..core import BACKEND, cross_entropy, mean, no_grad
from ..evaluate import mean_loss
from ..files import read
from ..model import GPT
from ..record import flat
from ..sampling import generate
from ..training import RECENT, Run
from . import graphs
from .dataset import dataset, examples
from .listings import listings
from .measures import head_summary, principal_components, similarity, vowels
from .passes import (
    Rows,
    backward,
    check_model,
    copied,
    encoded,
    folded,
    gradient,
    in_float64,
    trace,
    unflattened,
)
from .tensors import exact, flattened, matrix_tensor, tensor

SCHEMA = 1
TOLERANCE, TOLERANCE_F32 = 1e-12, 1e-4  # between the page's logits and ours
CHECKS = 8  # texts whose logits the page compares, at least
SAMPLES = 20
SNAPSHOT_SAMPLES, SNAPSHOT_SEED, SNAPSHOT_LENGTH = 5, 7, 64
HEAD_TEXTS, HEAD_WEIGHTS = 100, 1_000_000  # at most, over which the heads are measured
# What goes into a page, in numbers; at the default sizes all of it.
MOST_EXACT = 200_000  # parameters that are there as float64
MOST_WEIGHTS = 1_000_000  # parameters at all; without them the page cannot compute
MOST_GRADIENTS = 20_000  # parameters of a model whose gradients and Adam step are there
MOST_SNAPSHOTS = 100_000  # in all snapshots; if not even two fit, none has its parameters
MOST_TRACED = 30_000  # in the vectors of the first text
MOST_CHECKED = 20_000  # logits in checks
MOST_LOSSES = 4_000  # points of a curve


def contents(
    run: Run,
    texts: Sequence[str],
    *,
    seed: int | None,
    temperature: float,
    top_k: int | None,
    max_snapshots: int,
    path: str | None,
    command: str,
    demo: bool,
) -> dict[str, Any]:
    """Return the data of a page; the arguments and errors are those of explain."""
    check_model(run)
    number_type = run.model.config.dtype
    run = in_float64(run)
    if seed is not None:
        seed = checks.integer(seed, "seed", -(2**64), 2**64)
    max_snapshots = checks.integer(max_snapshots, "max_snapshots", 0)
    generate(run, 0, temperature, Random(0), top_k)  # checks these two
    model, dropped = run.model, list[str]()
    rng = Random(seed) if seed is not None else _copied_rng(run.rng)
    state = None if seed is not None else rng.getstate()[1]
    samples = _samples(run, rng, temperature, top_k)
    given = list(texts) or _default_texts(run, samples)
    traces = [trace(run, text) for text in given]
    grads, block_grads = backward(run, traces[0]["ids"])
    small = model.num_params <= MOST_GRADIENTS
    if not small:
        dropped.append(
            f"gradients and the step of Adam: {model.num_params} parameters, "
            f"more than {MOST_GRADIENTS}"
        )
    positions = len(traces[0]["targets"])
    traced = model.config.numbers(positions, positions) <= MOST_TRACED
    if not traced:
        dropped.append(f"the vectors of the first text, which has {positions} positions")
    weights, tolerance = _weights(model, dropped)
    return {
        "schema": SCHEMA,
        "meta": {
            "package": __version__,
            "python": platform.python_version(),
            "backend": BACKEND,
            "date": _date(),
            "file": None if path is None else os.path.basename(path),
            "sha256": None if path is None else hashlib.sha256(read(path)).hexdigest(),
            "command": command,
            "demo": demo,
            "number_type": number_type,
            "tolerance": tolerance,
            "dropped": dropped,
        },
        "config": {name: size for name, size in vars(model.config).items() if name != "dtype"}
        | {"num_params": model.num_params},
        "vocab": {"chars": list(run.tokenizer.chars), "bos": run.tokenizer.bos},
        "training": vars(run.config)
        | {"step": run.adam.step, "tokens": run.tokens, "seconds": run.seconds}
        | {"beta1": run.adam.beta1, "beta2": run.adam.beta2, "eps": run.adam.eps},
        "dataset": dataset(run),
        "weights": weights,
        "texts": [
            _text(traces[i], text, with_vectors=traced and not i) for i, text in enumerate(given)
        ],
        "grads": _grads(grads, small),
        "graphs": _graphs(run, traces[0], block_grads),
        "graph_size": graphs.size(model.config, traces[0]["ids"][:positions]),
        "adam": _adam(run, traces[0]["ids"]) if small else None,
        "history": _history(run),
        "snapshots": _snapshots(run, traces, max_snapshots, temperature, top_k, dropped),
        "sampling": {
            "seed": seed,
            "temperature": temperature,
            "top_k": top_k,
            "rng_state": None if state is None else list(state),
            "samples": samples,
        },
        "embedding": _embedding(run),
        "heads": _heads(run, samples),
        "checks": _checks(run, given, samples),
        "code": listings(),
    }


def _date() -> str:
    """Return the time as ISO 8601 in UTC, that of SOURCE_DATE_EPOCH if it is set.

    https://reproducible-builds.org/specs/source-date-epoch/
    """
    asked = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        date = datetime.fromtimestamp(int(asked or time.time()), timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"SOURCE_DATE_EPOCH must be seconds since 1970, not {asked!r}") from None
    return date.strftime("%Y-%m-%dT%H:%M:%SZ")


def _copied_rng(rng: Random) -> Random:
    copy = Random(0)
    copy.setstate(rng.getstate())
    return copy


def _default_texts(run: Run, samples: list[dict[str, Any]]) -> list[str]:
    """Return the first documents, else samples of the model, else its first letter."""
    texts = examples(run)[:2] if run.documents else [s["text"] for s in samples if s["text"]][:2]
    return texts or [run.tokenizer.chars[0]]


def _samples(
    run: Run, rng: Random, temperature: float, top_k: int | None
) -> list[dict[str, Any]]:
    """Return the samples that generate gives with rng, and the number drawn for each token."""
    again = _copied_rng(rng)
    texts = generate(run, SAMPLES, temperature, rng, top_k)
    known = set(run.documents)
    samples = []
    for text in texts:
        ids = run.tokenizer.encode(text)[1:]
        drawn = ids[: run.model.config.block_size]  # no BOS was drawn where the length ended it
        # A token takes one number from the generator; at temperature 0 none.
        draws = [{"u": again.random() if temperature else None, "token": i} for i in drawn]
        is_known = text in known if known and run.config.unit != "stream" else None
        samples.append({"text": text, "known": is_known, "draws": draws})
    return samples


def _weights(model: GPT, dropped: list[str]) -> tuple[list[dict[str, Any]], float]:
    """Return the parameters, and how close to ours the logits are that they give."""
    n = model.num_params
    if n > MOST_WEIGHTS:
        dropped.append(
            f"the parameters, so that the page cannot compute: {n}, more than {MOST_WEIGHTS}"
        )
        return [], TOLERANCE
    if n > MOST_EXACT:
        dropped.append(f"digits of the parameters: {n}, more than {MOST_EXACT}, are float32")
    dtype, tolerance = ("F32", TOLERANCE_F32) if n > MOST_EXACT else ("F64", TOLERANCE)
    parameters = model.named_parameters().items()
    return [{"name": name} | matrix_tensor(p, dtype) for name, p in parameters], tolerance


def _text(traced: dict[str, Any], given: str, with_vectors: bool) -> dict[str, Any]:
    """Return what the page has of a text; of all but the first it computes the vectors itself."""
    vectors = ("token", "position", "embedding", "norm", "layers", "logits", "probs")
    return {
        "text": traced["text"],
        "given": given,
        "ids": traced["ids"],
        "cut": len(traced["ids"]) > len(traced["targets"]) + 1,
        "targets": traced["targets"],
        "losses": traced["losses"],
        "loss": traced["loss"],
        "perplexity": math.exp(min(traced["loss"], 700.0)),
        "trace": {name: traced[name] for name in vectors} if with_vectors else None,
    }


def _grads(grads: dict[str, Rows], small: bool) -> dict[str, Any]:
    """Return the gradients of the first text's loss."""
    tensors = [
        {"name": name} | tensor(flattened(rows), (len(rows), len(rows[0])))
        for name, rows in grads.items()
    ]
    return {
        "text": 0,
        "nonzero": sum(x != 0.0 for rows in grads.values() for row in rows for x in row),
        "data": tensors if small else None,
    }


def _graphs(
    run: Run, traced: dict[str, Any], block_grads: dict[str, Rows]
) -> list[dict[str, Any]]:
    """Return the graphs of two letters, and of three parts of the first text's loss."""
    losses, targets, layer = traced["losses"], traced["targets"], traced["layers"][0]
    tokens = [*run.tokenizer.chars, "BOS"]
    names = [tokens[i] for i in targets]
    t = min(2, len(losses) - 1)
    weights = layer["weights"][0][t]
    s = weights.index(max(weights))
    grads = {name: block_grads[f"layer0.{name}"] for name in ("q", "k", "heads")}
    score = graphs.score(layer, grads, traced["loss"], t, s)
    worst = losses.index(max(losses))
    loss = graphs.position_loss(traced["logits"][worst], targets[worst], tokens, len(losses))
    return [
        graphs.expression().json(),
        score.json() | {"layer": 0, "head": 0, "position": t, "key": s},
        loss.json() | {"position": worst, "target": targets[worst]},
        graphs.mean_loss(losses, names).json(),
    ]


def _adam(run: Run, ids: list[int]) -> dict[str, Any]:
    """Return one step of Adam: the recorded one, else one more step on the first text."""
    record, config = run.record, run.config
    recorded = record is not None and bool(record.documents)
    if recorded:
        assert record is not None
        step, docs = record.steps[-1], record.documents
        model = copied(run.model, record.snapshots[-1].tolist())
        moments = [list(unflattened(model, x.tolist()).values()) for x in (record.m, record.v)]
    else:
        step, docs, model = run.adam.step, [ids], copied(run.model)
        moments = [[m.tolist() for m in matrices] for matrices in (run.adam.m, run.adam.v)]
    lr = linear_decay(config.lr, max(0, min(step, config.steps - 1)), max(1, config.steps))
    adam = Adam(model.parameters(), run.adam.beta1, run.adam.beta2, run.adam.eps)
    for matrices, numbers in zip((adam.m, adam.v), moments, strict=True):
        for matrix, rows in zip(matrices, numbers, strict=True):
            matrix.load(rows)
    adam.step = step
    tokens, targets, starts = model.pack(docs)
    before = _state(adam)
    losses = cross_entropy(model.forward(tokens, starts=starts), targets)
    of_each = [loss for [loss] in losses.tolist()]
    mean(losses).backward()
    grad = [exact(flattened(gradient(p)), p.shape) for p in adam.params]
    adam.update(lr)
    ends = [*starts[1:], len(tokens)]
    decode = run.tokenizer.decode
    return {
        "source": "record" if recorded else "text",
        "step": step,
        "lr": lr,
        "beta1": adam.beta1,
        "beta2": adam.beta2,
        "eps": adam.eps,
        "documents": [{"ids": list(doc), "text": decode(doc)} for doc in docs],
        "losses": [of_each[a:b] for a, b in zip(starts, ends, strict=True)],
        "loss": math.fsum(of_each) / len(of_each),
        "grad": grad,
        **before,
        "p_after": _state(adam)["p"],
    }


def _state(adam: Adam) -> dict[str, list[dict[str, Any]]]:
    matrices = {"p": adam.params, "m": adam.m, "v": adam.v}
    return {
        name: [exact(flattened(m.tolist()), m.shape) for m in of_name]
        for name, of_name in matrices.items()
    }


def _history(run: Run) -> dict[str, Any] | None:
    """Return the losses and their running means; of many, the least and largest of each part."""
    losses = run.losses
    if not losses:
        return None
    kept: Sequence[int] = range(len(losses))
    if len(losses) > MOST_LOSSES:
        parts = MOST_LOSSES // 2 - 1
        edges = [i * len(losses) // parts for i in range(parts + 1)]
        chosen = {0, len(losses) - 1}
        for a, b in zip(edges, edges[1:], strict=False):
            chosen |= {min(range(a, b), key=losses.__getitem__)}
            chosen |= {max(range(a, b), key=losses.__getitem__)}
        kept = sorted(chosen)
    thinned = len(kept) < len(losses)
    recent = [losses[max(0, i + 1 - RECENT) : i + 1] for i in kept]
    means = [math.fsum(loss / len(part) for loss in part) for part in recent]
    first = run.adam.step - len(losses) + 1
    return {
        "count": len(losses),
        "first_step": first,
        "steps": [first + i for i in kept] if thinned else None,
        "losses": tensor([losses[i] for i in kept], [len(kept)]),
        "means": tensor(means, [len(kept)]),
        "window": RECENT,
        "thinned": thinned,
    }


def _snapshots(
    run: Run,
    traces: list[dict[str, Any]],
    most: int,
    temperature: float,
    top_k: int | None,
    dropped: list[str],
) -> list[dict[str, Any]] | None:
    """Return the recorded snapshots and the model itself, thinned to fit."""
    if run.record is None:
        return None
    found = list(zip(run.record.steps, run.record.snapshots, strict=True))
    found = [*found, (run.adam.step, flat(run.model.parameters()))]
    if len(found) > 1 and found[-2][0] == run.adam.step:
        del found[-2]
    fit = MOST_SNAPSHOTS // run.model.num_params
    if (shown := min(most, fit) if fit > 1 else most) < len(found):
        dropped.append(f"{len(found) - shown} of {len(found)} snapshots")
        found = [found[i] for i in _spread(len(found), shown)]
    if fit < 2:
        dropped.append("the parameters of the snapshots")
    length = min(run.model.config.block_size, SNAPSHOT_LENGTH)
    entries = []
    for step, numbers in found:
        model = copied(run.model, numbers.tolist())
        then = Run(run.config, run.tokenizer, model, Adam(model.parameters()), Random(0))
        rng = Random(SNAPSHOT_SEED)  # the same dice at each
        samples = generate(then, SNAPSHOT_SAMPLES, temperature, rng, top_k, length=length)
        entries.append(
            {
                "step": step,
                "weights": tensor(numbers, [len(numbers)], "F32") if fit > 1 else None,
                "samples": samples,
                "losses": [mean_loss(model, [traced["ids"]]) for traced in traces],
            }
        )
    return entries


def _spread(n: int, most: int) -> list[int]:
    """Return at most so many of the numbers below n, the first and the last among them.

    >>> _spread(5, 3), _spread(5, 1), _spread(5, 0)
    ([0, 2, 4], [4], [])
    """
    if most < 2:
        return [n - 1][:most]
    return [i * (n - 1) // (most - 1) for i in range(most)]


def _embedding(run: Run) -> dict[str, Any]:
    """Return the map of the token embeddings, and how alike vowels are at first and now."""
    chars, model = run.tokenizer.chars, run.model
    now = model.state_dict["wte"].tolist()
    points, explained = principal_components(now)
    statistics = []
    if run.record is not None and run.record.steps:
        first = unflattened(model, run.record.snapshots[0].tolist())["wte"]
        statistics.append({"step": run.record.steps[0]} | similarity(first, chars))
    statistics.append({"step": run.adam.step} | similarity(now, chars))
    return {
        "points": points,
        "explained": explained,
        "vowels": vowels(chars),
        "statistics": statistics,
    }


def _heads(run: Run, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return where the heads look, in documents or else samples, as many as do not take long."""
    texts = examples(run) if run.documents else [s["text"] for s in samples if s["text"]]
    docs = [run.encode(text) for text in list(dict.fromkeys(texts))[:HEAD_TEXTS]]
    heads = run.model.config.n_layer * run.model.config.n_head
    weights = accumulate(heads * len(doc) ** 2 for doc in docs)
    docs = docs[: max(1, sum(n <= HEAD_WEIGHTS for n in weights))]
    source = "data" if run.documents else "samples"
    return {"texts": len(docs), "source": source, "rows": head_summary(run, docs)}


def _checks(
    run: Run, given: Sequence[str], samples: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return texts and the logits that the page must find.

    These are texts that fill the block and together read each character of a small alphabet, so
    that no parameter can change unseen; then those given, and samples.
    """
    model, vocab_size = run.model, run.model.config.vocab_size
    length = model.config.block_size
    chars = run.tokenizer.chars
    whole = chars * (2 + length // len(chars))
    most = max(1, MOST_CHECKED // (length * vocab_size))
    starts = range(0, len(chars), max(1, length - 1))[:most]  # the last character is not read
    full = [whole[i : i + length] for i in starts]
    own = [folded(run, text) for text in given]
    samples_of_model = [sample["text"] for sample in samples if sample["text"]]
    texts = list(dict.fromkeys([*full, *own, *samples_of_model, *chars]))
    chosen = texts[: max(CHECKS, len({*full, *own}))]
    most = max(1, MOST_CHECKED // len(chosen) // vocab_size)
    entries = []
    for text in chosen:
        ids = encoded(run, text)
        tokens, _, _ = model.pack([ids])
        with no_grad():
            rows = model.forward(tokens).tolist()
        positions = _spread(len(rows), min(most, len(rows)))
        logits = flattened(rows[t] for t in positions)
        shape = [len(positions), vocab_size]
        entry = {"text": text, "ids": ids, "positions": positions, "logits": tensor(logits, shape)}
        entries.append(entry)
    return entries
