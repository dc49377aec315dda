"""microgpt in PyTorch (eager) and JAX (the whole training in one compiled scan, or each step).

Neither is needed by anything else here: `missing(name)` says what is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import time
from typing import Any

from .problem import BETA1, BETA2, EPS, FIRST_STEPS, LEARNING_RATE, N_HEAD, Problem, Result

IGNORED = -100  # the target of a position that only pads; PyTorch's default ignore_index


def missing(name: str) -> str | None:
    """Return why the framework (torch or jax) cannot be used, or None."""
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed (pip install {name})"
    return None


def padded(docs: list[list[int]], length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return the tokens and the targets of documents, each row filled up to `length`."""
    tokens = [doc[:-1] + [0] * (length + 1 - len(doc)) for doc in docs]
    targets = [doc[1:] + [IGNORED] * (length + 1 - len(doc)) for doc in docs]
    return tokens, targets


class FlatAdam:
    """Adam for PyTorch over one flat tensor; the parameters and gradients become views into it."""

    def __init__(self, parameters: Any) -> None:
        import torch

        parameters = list(parameters)
        self.params = torch.cat([p.detach().ravel() for p in parameters])
        self.grads, self.mean, self.square, self.work = torch.zeros(4, len(self.params))
        begin = 0
        for p in parameters:
            part = slice(begin, begin + p.numel())
            p.data = self.params[part].view(p.shape)
            p.grad = self.grads[part].view(p.shape)
            begin += p.numel()

    def zero_grad(self) -> None:
        self.grads.zero_()

    def step(self, rate: float, t: int) -> None:
        """Take step number t = 1, 2, ...; the bias corrections are folded into two scalars."""
        import torch

        root = (1 - BETA2**t) ** 0.5
        self.mean.mul_(BETA1).add_(self.grads, alpha=1 - BETA1)
        self.square.mul_(BETA2).addcmul_(self.grads, self.grads, value=1 - BETA2)
        torch.sqrt(self.square, out=self.work)
        self.work += EPS * root
        self.params.addcdiv_(self.mean, self.work, value=-rate * root / (1 - BETA1**t))


def train_torch(
    problem: Problem, steps: int, batch: int = 1, flat: bool = False, dtype: str = "float32"
) -> Result:
    """Train with PyTorch in eager mode, one thread, the batch padded to its longest document.

    As is usual: F.scaled_dot_product_attention (13 % faster than two products and a
    softmax) and torch.optim.Adam(fused=True) (20 % faster than the default). `flat` keeps the
    parameters in one tensor by hand instead, which saves another fifth at the smallest size.
    RMSNorm is spelled out: F.rms_norm is 5 % slower here.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(1)

    def rmsnorm(x: Any) -> Any:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, rows in problem.state.items():
                matrix = nn.Parameter(torch.tensor(rows, dtype=getattr(torch, dtype)))
                self.register_parameter(name.replace(".", "_"), matrix)
            names = ("attn_wq", "attn_wk", "attn_wv", "attn_wo", "mlp_fc1", "mlp_fc2")
            self.layers = [
                [getattr(self, f"layer{i}_{name}") for name in names]
                for i in range(problem.n_layer)
            ]

        def forward(self, tokens: Any, targets: Any) -> Any:
            b, t = tokens.shape
            x = F.embedding(tokens, self.wte) + self.wpe[:t]
            x = rmsnorm(x)
            for wq, wk, wv, wo, fc1, fc2 in self.layers:
                n = rmsnorm(x)
                q, k, v = (
                    F.linear(n, w).view(b, t, N_HEAD, -1).transpose(1, 2) for w in (wq, wk, wv)
                )
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = x + F.linear(y.transpose(1, 2).reshape(b, t, -1), wo)
                n = rmsnorm(x)
                x = x + F.linear(F.relu(F.linear(n, fc1)), fc2)
            logits = F.linear(x, self.lm_head)
            return F.cross_entropy(logits.view(b * t, -1), targets.view(-1), ignore_index=IGNORED)

    model = GPT()
    if flat:
        flat_adam = FlatAdam(model.parameters())
    else:
        adam = torch.optim.Adam(model.parameters(), betas=(BETA1, BETA2), eps=EPS, fused=True)
    losses = []
    start = 0.0
    for step in range(steps):
        if step == FIRST_STEPS:
            start = time.process_time()
        docs = problem.batch(step, batch)
        tokens, targets = padded(docs, max(map(len, docs)) - 1)
        loss = model(torch.tensor(tokens), torch.tensor(targets))
        rate = LEARNING_RATE * (1 - step / steps)
        if flat:
            flat_adam.zero_grad()
            loss.backward()
            flat_adam.step(rate, step + 1)
        else:
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.param_groups[0]["lr"] = rate
            adam.step()
        losses.append(loss.item())
    seconds = time.process_time() - start
    return Result(losses, seconds * 1e6 / (steps - FIRST_STEPS) / batch)


def train_jax(problem: Problem, steps: int, batch: int = 1, scan: bool = True) -> Result:
    """Train with JAX, float32: one compiled lax.scan over all steps, documents padded to the block.

    The time is that of a second run of the compiled program; compiling is not counted. Without
    `scan` one step is compiled, and a loop in Python takes the steps and fetches each loss.
    """
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("XLA_FLAGS", flags)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp
    import numpy as np

    causal = jnp.tril(jnp.ones((problem.block_size, problem.block_size), bool))

    def rmsnorm(x: Any) -> Any:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)

    def loss_of(params: dict[str, Any], tokens: Any, targets: Any) -> Any:
        x = rmsnorm(params["wte"][tokens] + params["wpe"])
        shape = (*tokens.shape, N_HEAD, -1)
        for i in range(problem.n_layer):
            w = {
                name: params[f"layer{i}.{name}"]
                for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo", "mlp_fc1", "mlp_fc2")
            }
            n = rmsnorm(x)
            q, k, v = ((n @ w[f"attn_w{c}"].T).reshape(shape) for c in "qkv")
            scores = jnp.einsum("bthd,buhd->bhtu", q, k) * q.shape[-1] ** -0.5
            weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
            y = jnp.einsum("bhtu,buhd->bthd", weights, v).reshape(x.shape)
            x = x + y @ w["attn_wo"].T
            x = x + jax.nn.relu(rmsnorm(x) @ w["mlp_fc1"].T) @ w["mlp_fc2"].T
        log_probs = jax.nn.log_softmax(x @ params["lm_head"].T)
        real = targets != IGNORED
        chosen = jnp.take_along_axis(log_probs, jnp.where(real, targets, 0)[..., None], axis=-1)
        return -jnp.sum(chosen[..., 0] * real) / jnp.sum(real)

    def step(carry: Any, given: Any) -> Any:
        params, mean, square = carry
        index, tokens, targets = given
        loss, grads = jax.value_and_grad(loss_of)(params, tokens, targets)
        t = index + 1.0
        rate = LEARNING_RATE * (1 - index / steps)
        scale1, scale2 = 1 / (1 - BETA1**t), 1 / (1 - BETA2**t)
        tree = jax.tree.map
        mean = tree(lambda m, g: BETA1 * m + (1 - BETA1) * g, mean, grads)
        square = tree(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, square, grads)
        params = tree(
            lambda p, m, v: p - rate * (m * scale1) / (jnp.sqrt(v * scale2) + EPS),
            params,
            mean,
            square,
        )
        return (params, mean, square), loss

    params = {name: jnp.array(rows, jnp.float32) for name, rows in problem.state.items()}
    mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    if not scan:
        one_step = jax.jit(step, donate_argnums=0)
        carry, by_steps, start = (params, mean, square), [], 0.0
        for index in range(steps):
            if index == FIRST_STEPS:
                start = time.process_time()
            block = padded(problem.batch(index, batch), problem.block_size)
            carry, loss = one_step(carry, (float(index), *map(np.array, block)))
            by_steps.append(float(loss))
        seconds = time.process_time() - start
        return Result(by_steps, seconds * 1e6 / (steps - FIRST_STEPS) / batch)
    blocks = [padded(problem.batch(s, batch), problem.block_size) for s in range(steps)]
    given = (
        jnp.arange(steps, dtype=jnp.float32),
        jnp.array([tokens for tokens, _ in blocks]),
        jnp.array([targets for _, targets in blocks]),
    )
    run = jax.jit(lambda params, given: jax.lax.scan(step, (params, mean, square), given))
    jax.block_until_ready(run(params, given))
    start = time.process_time()
    _, losses = jax.block_until_ready(run(params, given))
    seconds = time.process_time() - start
    return Result([float(x) for x in losses], seconds * 1e6 / steps / batch)
