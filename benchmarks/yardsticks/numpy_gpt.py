"""microgpt in NumPy with hand-written gradients, float64, as fast as plain NumPy goes.

A step takes its documents as one (documents, positions) block, padded to the longest: with one
document nothing is padded. At these sizes the time is NumPy's cost per call, so the code saves
calls: parameters, gradients and moments are flat arrays, matrices are views into them, and query,
key and value are one product (the script's order puts their weights side by side).
"""

from __future__ import annotations

import time

import numpy as np

from .problem import BETA1, BETA2, EPS, FIRST_STEPS, LEARNING_RATE, N_HEAD, Problem, Result

Array = np.ndarray


def rmsnorm(x: Array) -> tuple[Array, Array]:
    """Return x over its root mean square, and the scale (rows, 1) for backward."""
    square = np.einsum("ij,ij->i", x, x)[:, None]
    scale = 1 / np.sqrt(square / x.shape[1] + 1e-5)
    return x * scale, scale


def rmsnorm_backward(dy: Array, y: Array, scale: Array) -> Array:
    """Return dx, given the normalised y = x * scale."""
    dot = np.einsum("ij,ij->i", dy, y)[:, None]
    dx = y * (dot / -y.shape[1])
    dx += dy
    dx *= scale
    return dx


class Model:
    """Parameters, their gradients and one step forward and backward."""

    def __init__(self, problem: Problem) -> None:
        self.n_layer = problem.n_layer
        self.n_embd = problem.n_embd
        rows = [np.asarray(matrix).ravel() for matrix in problem.state.values()]
        self.params = np.concatenate(rows)
        self.grads = np.zeros_like(self.params)
        self.w = self._views(problem, self.params)
        self.dw = self._views(problem, self.grads)
        self.masks = np.triu(np.full((problem.block_size, problem.block_size), -np.inf), k=1)
        self.one_hot = np.eye(problem.vocab_size)
        self.head_scale = (self.n_embd // N_HEAD) ** -0.5

    def _views(self, problem: Problem, flat: Array) -> dict[str, Array]:
        """Return the matrices in `flat`, with query, key and value of a layer as one."""
        views: dict[str, Array] = {}
        begin = 0
        n = self.n_embd
        for name, matrix in problem.state.items():
            rows, cols = len(matrix), len(matrix[0])
            if name.endswith("attn_wq"):
                qkv = flat[begin : begin + 3 * n * n].reshape(3 * n, n)
                views[name.replace("attn_wq", "attn_qkv")] = qkv
            views[name] = flat[begin : begin + rows * cols].reshape(rows, cols)
            begin += rows * cols
        return views

    def step(self, docs: list[list[int]]) -> float:
        """Return the loss; leave the gradients in `grads`."""
        w, dw, n, n_layer = self.w, self.dw, self.n_embd, self.n_layer
        lengths = [len(doc) - 1 for doc in docs]
        longest, total = max(lengths), sum(lengths)
        if len(docs) == 1:
            ids = np.array(docs[0])
            tokens, targets = ids[:-1], ids[1:]
            real = None
        else:
            ids = np.array([doc + [0] * (longest + 1 - len(doc)) for doc in docs])
            tokens, targets = ids[:, :-1].ravel(), ids[:, 1:].ravel()
            real = (np.arange(longest) < np.array(lengths)[:, None]).ravel()
        heads = (len(docs), longest, 3, N_HEAD, n // N_HEAD)
        mask = self.masks[:longest, :longest]

        x = w["wte"][tokens]
        x.reshape(len(docs), longest, n)[...] += w["wpe"][:longest]
        x, scale0 = rmsnorm(x)
        first = x
        saved = []
        for i in range(n_layer):
            layer = f"layer{i}."
            n1, scale1 = rmsnorm(x)
            qkv = (n1 @ w[layer + "attn_qkv"].T).reshape(heads).transpose(2, 0, 3, 1, 4)
            q, k, v = qkv
            att = q @ k.swapaxes(-1, -2)
            att *= self.head_scale
            att += mask
            att -= att.max(axis=-1, keepdims=True)
            np.exp(att, out=att)
            att /= att.sum(axis=-1, keepdims=True)
            mixed = (att @ v).transpose(0, 2, 1, 3).reshape(-1, n)
            x = mixed @ w[layer + "attn_wo"].T + x
            n2, scale2 = rmsnorm(x)
            h = n2 @ w[layer + "mlp_fc1"].T
            np.maximum(h, 0, out=h)
            saved.append((n1, scale1, q, k, v, att, mixed, n2, scale2, h))
            x = h @ w[layer + "mlp_fc2"].T + x
        logits = x @ w["lm_head"].T

        logits -= logits.max(axis=1, keepdims=True)
        rows = np.arange(len(tokens))
        chosen = logits[rows, targets]
        np.exp(logits, out=logits)
        sums = logits.sum(axis=1, keepdims=True)
        losses = np.log(sums[:, 0]) - chosen
        dlogits = logits
        dlogits /= sums * total
        dlogits[rows, targets] -= 1 / total
        if real is None:
            loss = float(losses.sum()) / total
        else:
            loss = float(losses[real].sum()) / total
            dlogits *= real[:, None]

        np.matmul(dlogits.T, x, out=dw["lm_head"])
        dx = dlogits @ w["lm_head"]
        for i in reversed(range(n_layer)):
            layer = f"layer{i}."
            n1, scale1, q, k, v, att, mixed, n2, scale2, h = saved[i]
            np.matmul(dx.T, h, out=dw[layer + "mlp_fc2"])
            dh = dx @ w[layer + "mlp_fc2"]
            dh *= h > 0
            np.matmul(dh.T, n2, out=dw[layer + "mlp_fc1"])
            dx += rmsnorm_backward(dh @ w[layer + "mlp_fc1"], n2, scale2)
            np.matmul(dx.T, mixed, out=dw[layer + "attn_wo"])
            dmixed = (dx @ w[layer + "attn_wo"]).reshape(len(docs), longest, N_HEAD, -1)
            dmixed = dmixed.transpose(0, 2, 1, 3)
            dqkv = np.empty(heads)
            dq, dk, dv = dqkv.transpose(2, 0, 3, 1, 4)
            np.matmul(att.swapaxes(-1, -2), dmixed, out=dv)
            datt = dmixed @ v.swapaxes(-1, -2)
            datt -= (datt * att).sum(axis=-1, keepdims=True)
            datt *= att
            datt *= self.head_scale
            np.matmul(datt, k, out=dq)
            np.matmul(datt.swapaxes(-1, -2), q, out=dk)
            dflat = dqkv.reshape(-1, 3 * n)
            np.matmul(dflat.T, n1, out=dw[layer + "attn_qkv"])
            dx += rmsnorm_backward(dflat @ w[layer + "attn_qkv"], n1, scale1)
        dx = rmsnorm_backward(dx, first, scale0)
        np.matmul(self.one_hot[tokens].T, dx, out=dw["wte"])
        dw["wpe"][longest:] = 0
        np.sum(dx.reshape(len(docs), longest, n), axis=0, out=dw["wpe"][:longest])
        return loss


class Adam:
    """Adam over one flat array.

    The moments are kept without their factors 1 - beta, which saves two passes over the array;
    these and the bias corrections are folded into two scalars per step.
    """

    def __init__(self, params: Array) -> None:
        self.params = params
        self.mean, self.square, self.work = (np.zeros_like(params) for _ in range(3))

    def step(self, grads: Array, rate: float, t: int) -> None:
        """Take step number t = 1, 2, ...; overwrites the gradients."""
        mean, square, work = self.mean, self.square, self.work
        root = ((1 - BETA2) / (1 - BETA2**t)) ** 0.5
        mean *= BETA1
        mean += grads
        square *= BETA2
        grads *= grads
        square += grads
        np.sqrt(square, out=work)
        work += EPS / root
        np.divide(mean, work, out=work)
        work *= rate * (1 - BETA1) / (1 - BETA1**t) / root
        self.params -= work


def train(problem: Problem, steps: int, batch: int = 1) -> Result:
    """Train with NumPy."""
    model = Model(problem)
    adam = Adam(model.params)
    losses = []
    start = 0.0
    for step in range(steps):
        if step == FIRST_STEPS:
            start = time.process_time()
        losses.append(model.step(problem.batch(step, batch)))
        adam.step(model.grads, LEARNING_RATE * (1 - step / steps), step + 1)
    seconds = time.process_time() - start
    return Result(losses, seconds * 1e6 / (steps - FIRST_STEPS) / batch)
