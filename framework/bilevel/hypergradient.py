"""Truncated hypergradients by reverse-mode differentiation of an inner optimisation.

The inner problem is trained by ``state_{t+1} = step(state_t, grad L(w_t, s_t), lr)`` on a sequence of samples ``s_t``.
``Unroll`` keeps the states and samples of the last steps, not their derivatives; ``hypergradient`` walks back over them
and recomputes one step at a time, so that memory does not grow with what a step computes (Franceschi et al., 2017,
reverse-HG; truncation as in Shaban et al., 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from framework.bilevel.objectives import Objective, Sample
from framework.bilevel.optimizers import InnerOptimizer, State


@dataclass(frozen=True)
class Step(Generic[Sample]):
    """One inner step as it was taken.

    Attributes:
        state: State before it.
        sample: What its gradient was evaluated on.
        number: Its number, from 1.
    """

    state: State
    sample: Sample
    number: int


class Unroll(Generic[Sample]):
    """Run the inner dynamics, remembering the steps since the last ``forget``.

    Args:
        optimizer: The inner update rule.
        objective: The inner objective.
        state: State to start from, as ``optimizer.init(w)`` makes it.
        count: Steps already taken, for bias correction.
    """

    def __init__(self, optimizer: InnerOptimizer, objective: Objective[Sample], state: State, count: int = 0) -> None:
        self.optimizer = optimizer
        self.objective = objective
        self.state = tuple(entry.detach() for entry in state)
        self.count = count
        self.steps: list[Step[Sample]] = []

    def step(self, sample: Sample, lr: Tensor) -> Tensor:
        """Take one step; returns the loss before it, a detached scalar."""
        loss, grad = self.objective.gradient(self.state[0], sample)
        self.count += 1
        self.steps.append(Step(self.state, sample, self.count))
        with torch.no_grad():
            self.state = self.optimizer.step(self.state, grad, lr, self.count)
        return loss

    def forget(self) -> None:
        """Drop the remembered steps; no gradient flows back beyond this point."""
        self.steps.clear()


def hypergradient(
    unroll: Unroll[Sample],
    outer: Objective[Sample],
    outer_sample: Sample,
    lr: Tensor,
    resample: Callable[[Step[Sample]], Sample] | None = None,
    skip: int = 0,
) -> tuple[Tensor, Tensor]:
    """Differentiate an outer objective at the end of an unroll through its remembered steps.

    With ``alpha = dF/dw`` it goes back over the steps, ``g += alpha E_t`` and ``alpha = alpha D_t``, where ``D_t`` and
    ``E_t`` are the Jacobians of step t with respect to its state and to the outer variables (LDS, section 3.2). The
    objectives collect ``g`` (see ``framework.bilevel.objectives``).

    Args:
        unroll: The inner run; its remembered steps are what the hypergradient covers.
        outer: The outer objective F.
        outer_sample: Sample that F is evaluated on.
        lr: Learning rate that the steps used, a scalar.
        resample: If given, the reverse pass evaluates a step on ``resample(step)`` in place of the sample of its
            forward pass (a bias that the official code of LDS has).
        skip: How many of the oldest remembered steps to leave out.

    Returns:
        The outer loss and the derivative with respect to ``lr``, both detached scalars.
    """
    end = outer.linearize(unroll.state[0], outer_sample)
    adjoint: State = (end.pull(), *(torch.zeros_like(entry) for entry in unroll.state[1:]))
    d_lr = torch.zeros_like(lr)
    for step in reversed(unroll.steps[skip:]):
        sample = step.sample if resample is None else resample(step)
        inner = unroll.objective.linearize(step.state[0], sample)
        back = unroll.optimizer.adjoint(step.state, inner.grad, lr, step.number, adjoint)
        d_lr += back.lr
        adjoint = (back.state[0] + inner.pull_grad(back.grad), *back.state[1:])
    return end.loss, d_lr
