"""Truncated hypergradients by reverse-mode differentiation of an inner optimisation.

The inner problem is trained by ``state_{t+1} = step(state_t, grad L(w_t, s_t), lr)`` on a sequence of samples ``s_t``
(a minibatch, a sampled graph, a dropout mask: whatever the losses read). ``Unroll`` keeps the states and samples of
the last steps, not their autograd graphs; ``hypergradient`` walks back over them, recomputing one step at a time, so
that memory does not grow with a graph per step (Franceschi et al., 2017, reverse-HG; truncation as in Shaban et al.,
2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from framework.bilevel.optimizers import InnerOptimizer, State

Sample = TypeVar("Sample")
Loss = Callable[[Tensor, Sample], Tensor]
Pull = Callable[[Tensor, Tensor, Sample], Tensor]
"""``pull(scalar, w, sample)`` returns d scalar / d w, and adds d scalar / d outer to an accumulator of the caller's."""


class Step(NamedTuple, Generic[Sample]):
    """One inner step as it was taken: the state and sample before it, and its number (from 1)."""

    state: State
    sample: Sample
    count: int


class Unroll(Generic[Sample]):
    """Run the inner dynamics, remembering the steps since the last ``forget``.

    Args:
        optimizer: The inner update rule.
        loss: ``loss(w, sample)``, the inner objective, a scalar.
        state: State to start from, as ``optimizer.init(w)`` makes it.
        count: Steps already taken, for bias correction.
    """

    def __init__(self, optimizer: InnerOptimizer, loss: Loss[Sample], state: State, count: int = 0) -> None:
        self.optimizer = optimizer
        self.loss = loss
        self.state = tuple(entry.detach() for entry in state)
        self.count = count
        self.steps: list[Step[Sample]] = []

    def step(self, sample: Sample, lr: Tensor) -> Tensor:
        """Take one step; returns the loss before it, a detached scalar."""
        w = self.state[0].detach().requires_grad_()
        loss = self.loss(w, sample)
        (grad,) = torch.autograd.grad(loss, w)
        self.count += 1
        self.steps.append(Step(self.state, sample, self.count))
        with torch.no_grad():
            self.state = self.optimizer.step(self.state, grad, lr, self.count)
        return loss.detach()

    def forget(self) -> None:
        """Drop the remembered steps; no gradient flows back beyond this point."""
        self.steps.clear()


def autograd_pull(outer: Tensor, accumulator: Tensor) -> Pull[Sample]:
    """The ``pull`` for outer variables that the losses reach through autograd.

    Args:
        outer: A leaf that the losses read.
        accumulator: Tensor of ``outer``'s shape, added to in place.
    """

    def pull(scalar: Tensor, w: Tensor, sample: Sample) -> Tensor:
        d_w, d_outer = torch.autograd.grad(scalar, (w, outer), allow_unused=True)
        if d_outer is not None:
            accumulator.add_(d_outer)
        return torch.zeros_like(w) if d_w is None else d_w

    return pull


def hypergradient(
    unroll: Unroll[Sample],
    outer_loss: Loss[Sample],
    outer_sample: Sample,
    lr: Tensor,
    pull: Pull[Sample],
    resample: Callable[[Step[Sample]], Sample] | None = None,
    skip: int = 0,
) -> tuple[Tensor, Tensor]:
    """Differentiate ``outer_loss`` at the end of an unroll through its remembered steps.

    With ``alpha = dF/dw`` it goes back over the steps, ``g += alpha E_t`` and ``alpha = alpha D_t``, where ``D_t`` and
    ``E_t`` are the Jacobians of step t with respect to its state and to the outer variables (LDS, section 3.2).

    Args:
        unroll: The inner run; its remembered steps are what the hypergradient covers.
        outer_loss: ``outer_loss(w, sample)``, a scalar.
        outer_sample: Sample that the outer loss is evaluated on.
        lr: Learning rate that the steps used, a scalar.
        pull: How a scalar is differentiated; it collects the outer part (see ``autograd_pull``).
        resample: If given, the reverse pass evaluates a step on ``resample(step)`` in place of the sample of its
            forward pass (a bias that the official code of LDS has).
        skip: How many of the oldest remembered steps to leave out.

    Returns:
        The outer loss and the derivative with respect to ``lr``, both detached scalars.
    """
    w = unroll.state[0].detach().requires_grad_()
    loss = outer_loss(w, outer_sample)
    adjoint: State = (pull(loss, w, outer_sample), *(torch.zeros_like(entry) for entry in unroll.state[1:]))
    d_lr = torch.zeros_like(lr)
    for step in reversed(unroll.steps[skip:]):
        sample = step.sample if resample is None else resample(step)
        w = step.state[0].detach().requires_grad_()
        (grad,) = torch.autograd.grad(unroll.loss(w, sample), w, create_graph=True)
        back = unroll.optimizer.adjoint(step.state, grad.detach(), lr, step.count, adjoint)
        d_lr += back.lr
        through_grad = pull(back.grad @ grad, w, sample)
        adjoint = (back.state[0] + through_grad, *back.state[1:])
    return loss.detach(), d_lr
