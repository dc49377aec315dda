"""Adam and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable

from .core import Matrix, Value, adam_minimize, adam_update


class Adam:
    """Update parameters by their gradients with Adam (Kingma and Ba 2014, arXiv:1412.6980).

    params: Matrices; the moments `m` and `v` are Matrices of the same shapes and types, 0 at first.
    beta1, beta2: decay of the first and the second moment per step.
    eps: keeps the division finite where a gradient was always 0.
    `step` counts the steps taken. A step is atomic, even when it is interrupted.
    """

    def __init__(
        self,
        params: Iterable[Matrix],
        beta1: float = 0.85,
        beta2: float = 0.99,
        eps: float = 1e-8,
    ) -> None:
        self.params = tuple(params)
        self.m = tuple(Matrix(*p.shape, p.dtype) for p in self.params)
        self.v = tuple(Matrix(*p.shape, p.dtype) for p in self.params)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.step = 0

    def __repr__(self) -> str:
        rates = f"beta1 {self.beta1}, beta2 {self.beta2}, eps {self.eps}"
        return f"Adam(step {self.step}, {len(self.params)} Matrices, {rates})"

    def update(self, lr: float) -> None:
        """Take one step with learning rate lr and set the gradients to 0."""
        adam_update(self, lr)

    def minimize(self, loss: Value, lr: float) -> None:
        """Run loss.backward(), then update(lr).

        The gradient of an inner Matrix is sure to be kept only while the Matrix, rows or an entry
        of it are referenced.
        """
        adam_minimize(loss, self, lr)

    def zero_grad(self) -> None:
        """Set the gradients to 0 without taking a step."""
        for matrix in self.params:
            for row in matrix:
                for value in row:
                    value.grad = 0.0


def linear_decay(lr: float, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0: lr at first, 0 after the last.

    >>> [linear_decay(0.01, step, 4) for step in range(4)]
    [0.01, 0.0075, 0.005, 0.0025]
    """
    return lr * (1 - step / steps)
