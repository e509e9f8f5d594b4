"""Inner optimisers as pure functions of their state, each with the adjoint of its step.

An optimiser acts on one flat vector ``w`` of parameters. Its state is a tuple of tensors whose first entry is ``w``,
so that a step can be unrolled by autograd (``step``) or differentiated by hand without keeping a graph (``adjoint``).
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

State = tuple[Tensor, ...]


class StepAdjoint(NamedTuple):
    """What flows backwards out of one optimiser step, before the gradient's own dependence on ``w`` is added.

    Attributes:
        state: Adjoint of the state before the step, direct terms only.
        grad: Adjoint of the gradient that the step was given, shape ``(parameters,)``.
        lr: Derivative with respect to the learning rate, a scalar.
    """

    state: State
    grad: Tensor
    lr: Tensor


class InnerOptimizer(Protocol):
    """A differentiable update rule ``state' = step(state, grad, lr, count)``."""

    def init(self, w: Tensor) -> State:
        """State before the first step."""
        ...

    def step(self, state: State, grad: Tensor, lr: Tensor, count: int) -> State:
        """State after step number ``count`` (from 1)."""
        ...

    def adjoint(self, state: State, grad: Tensor, lr: Tensor, count: int, after: State) -> StepAdjoint:
        """Vector-Jacobian product of ``step``: ``after`` is the adjoint of the new state."""
        ...


class SGD:
    """Gradient descent with optional heavy-ball momentum: ``v' = momentum v + g``, ``w' = w - lr v'``.

    Args:
        momentum: Share of the velocity that is kept, in [0, 1).

    Raises:
        ValueError: If ``momentum`` lies outside [0, 1).
    """

    def __init__(self, momentum: float = 0.0) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.momentum = momentum

    def init(self, w: Tensor) -> State:
        """State ``(w, v)`` with zero velocity."""
        return w, torch.zeros_like(w)

    def step(self, state: State, grad: Tensor, lr: Tensor, count: int) -> State:
        """One step; ``count`` is not used."""
        w, v = state
        v = self.momentum * v + grad
        return w - lr * v, v

    def adjoint(self, state: State, grad: Tensor, lr: Tensor, count: int, after: State) -> StepAdjoint:
        """Vector-Jacobian product of ``step``."""
        a_w, a_v = after
        velocity = self.momentum * state[1] + grad
        a_v = a_v - lr * a_w
        return StepAdjoint((a_w, self.momentum * a_v), a_v, -(a_w @ velocity))


class Adam:
    """Adam with its epsilon inside the square root: ``w' = w - lr_t m' / sqrt(v' + eps^2)``.

    Outside the root, as ``torch.optim.Adam`` has it, the derivative of the step grows without bound where a gradient is
    zero; the authors of LDS found hypergradients unstable that way (official code). The bias correction is the usual
    one: ``lr_t = lr sqrt(1 - beta2^t) / (1 - beta1^t)``.

    Args:
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to the root as ``eps^2``, positive.

    Raises:
        ValueError: If an argument lies outside its range.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-5) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        if eps <= 0:
            raise ValueError(f"eps must be positive, got {eps}")
        self.betas = betas
        self.eps = eps

    def init(self, w: Tensor) -> State:
        """State ``(w, m, v)`` with zero moments."""
        return w, torch.zeros_like(w), torch.zeros_like(w)

    def step(self, state: State, grad: Tensor, lr: Tensor, count: int) -> State:
        """One step with the bias correction of step ``count``."""
        w, m, v = state
        b1, b2 = self.betas
        m = b1 * m + (1 - b1) * grad
        v = b2 * v + (1 - b2) * grad * grad
        return w - lr * self._correction(count) * m / (v + self.eps**2).sqrt(), m, v

    def adjoint(self, state: State, grad: Tensor, lr: Tensor, count: int, after: State) -> StepAdjoint:
        """Vector-Jacobian product of ``step``."""
        a_w, a_m, a_v = after
        b1, b2 = self.betas
        m = b1 * state[1] + (1 - b1) * grad
        v = b2 * state[2] + (1 - b2) * grad * grad
        inverse = (v + self.eps**2).rsqrt()
        direction = self._correction(count) * a_w * inverse  # -d/dm' of <a_w, w'> up to lr
        a_m = a_m - lr * direction
        a_v = a_v + (0.5 * lr) * direction * m * inverse * inverse
        a_grad = (1 - b1) * a_m + (2 * (1 - b2)) * grad * a_v
        return StepAdjoint((a_w, b1 * a_m, b2 * a_v), a_grad, -(direction @ m))

    def _correction(self, count: int) -> float:
        b1, b2 = self.betas
        return math.sqrt(1 - b2**count) / (1 - b1**count)
