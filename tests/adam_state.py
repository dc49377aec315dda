"""What adam_update needs, without the class of the package, which uses one core only."""

from dataclasses import dataclass


@dataclass
class AdamState:
    params: list
    m: list
    v: list
    step: int = 0
    beta1: float = 0.85
    beta2: float = 0.99
    eps: float = 1e-8


def adam_update(core, params, m, v, step, lr, beta1=0.85, beta2=0.99, eps=1e-8):
    """Take one step of a core with the numbers of one call."""
    core.adam_update(AdamState(params, m, v, step, beta1, beta2, eps), lr)
