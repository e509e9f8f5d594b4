"""Objectives that can be differentiated twice: what the hypergradient asks of an inner or outer problem.

Outer variables never appear here. Whoever owns them collects their part of a derivative as a side effect of the
``pull`` methods, in whatever form is cheapest: a dense tensor by autograd, or the factors of a low-rank matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

Sample = TypeVar("Sample")
Sample_contra = TypeVar("Sample_contra", contravariant=True)


class Linearized(Protocol):
    """An objective at one point.

    Attributes:
        loss: Its value, a detached scalar.
        grad: Its gradient with respect to the parameters, detached, shape ``(parameters,)``.
    """

    loss: Tensor
    grad: Tensor

    def pull(self) -> Tensor:
        """Return the gradient, and collect the derivative of the loss with respect to the outer variables."""
        ...

    def pull_grad(self, direction: Tensor) -> Tensor:
        """Return d <direction, grad> / d parameters, and collect the same with respect to the outer variables."""
        ...


class Objective(Protocol[Sample_contra]):
    """A scalar function of a flat vector of parameters and of a sample: a minibatch, a drawn graph, a dropout mask."""

    def gradient(self, w: Tensor, sample: Sample_contra) -> tuple[Tensor, Tensor]:
        """Loss and gradient, detached."""
        ...

    def linearize(self, w: Tensor, sample: Sample_contra) -> Linearized:
        """Loss and gradient, ready to be differentiated once more."""
        ...


class AutogradObjective(Generic[Sample]):
    """Any differentiable loss, with outer variables that it reaches through autograd.

    Args:
        loss: ``loss(w, sample)``, a scalar.
        outer: A leaf that the loss reads.
        accumulator: Tensor of ``outer``'s shape; derivatives are added to it in place.
    """

    def __init__(self, loss: Callable[[Tensor, Sample], Tensor], outer: Tensor, accumulator: Tensor) -> None:
        self.loss, self.outer, self.accumulator = loss, outer, accumulator

    def gradient(self, w: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
        """Loss and gradient, detached."""
        w = w.detach().requires_grad_()
        loss = self.loss(w, sample)
        (grad,) = torch.autograd.grad(loss, w)
        return loss.detach(), grad

    def linearize(self, w: Tensor, sample: Sample) -> Linearized:
        """Loss and gradient with their autograd graph."""
        return _AutogradLinearized(self, w.detach().requires_grad_(), sample)


class _AutogradLinearized:
    def __init__(self, objective: AutogradObjective[Any], w: Tensor, sample: Any) -> None:
        self.objective, self.w = objective, w
        self._loss = objective.loss(w, sample)
        (self._grad,) = torch.autograd.grad(self._loss, w, create_graph=True)
        self.loss, self.grad = self._loss.detach(), self._grad.detach()

    def pull(self) -> Tensor:
        return self._derivative(self._loss)

    def pull_grad(self, direction: Tensor) -> Tensor:
        return self._derivative(direction @ self._grad)

    def _derivative(self, scalar: Tensor) -> Tensor:
        if not scalar.requires_grad:  # a gradient that is the same everywhere
            return torch.zeros_like(self.w)
        variables = (self.w, self.objective.outer)
        d_w, d_outer = torch.autograd.grad(scalar, variables, allow_unused=True, retain_graph=True)
        if d_outer is not None:
            self.objective.accumulator.add_(d_outer)
        return torch.zeros_like(self.w) if d_w is None else d_w
