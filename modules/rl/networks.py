"""Actors, and ensembles of critics that are computed as one batched product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

LOG_STD = (-20.0, 2.0)
"""Bounds of the logarithm of the standard deviation."""


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them.

    Args:
        inputs: Numbers that go in.
        hidden: Widths of the hidden layers.
        outputs: Numbers that come out, without an activation.
    """
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in zip(widths, hidden):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


class Core(nn.Module):
    """Networks of a method whose parameters are asked for in every update."""

    def __init__(self) -> None:
        super().__init__()
        self._lists: dict[str, list[nn.Parameter]] = {}

    def parameters_of(self, network: str) -> list[nn.Parameter]:
        """The parameters of a network; remembered, as to collect them takes a share of a small update.

        Args:
            network: Name of the attribute.
        """
        if network not in self._lists:
            self._lists[network] = list(getattr(self, network).parameters())
        return self._lists[network]

    def _apply(self, *arguments: Any, **options: Any) -> Self:
        self._lists.clear()  # another device or type may bring other objects
        return super()._apply(*arguments, **options)


class Draw(NamedTuple):
    """Actions drawn from a policy.

    Attributes:
        action: In (-1, 1), shape ``(B, actions)``.
        log_prob: Logarithm of their density, shape ``(B,)``.
    """

    action: Tensor
    log_prob: Tensor


class GaussianActor(nn.Module):
    """A normal distribution for each number of the action, squashed by tanh.

    Args:
        inputs: Numbers of an observation.
        actions: Numbers of an action.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, inputs: int, actions: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.actions = actions
        self.layers = mlp(inputs, hidden, 2 * actions)  # mean and logarithm of the deviation come from one product

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation before squashing, each ``(B, actions)``."""
        mean, log_std = self.layers(observation).float().chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)

    def draw(self, observation: Tensor, noise: Tensor) -> Draw:
        """Actions by the reparametrisation trick, with their log-density (Haarnoja et al. 2018, appendix C).

        ``log(1 - tanh(u)^2)`` is computed as ``2 (log 2 - u - softplus(-2 u))``, which loses no digits at the bounds.

        Args:
            observation: Shape ``(B, inputs)``.
            noise: Standard normal, shape ``(B, actions)``.
        """
        mean, log_std = self(observation)
        raw = torch.addcmul(mean, log_std.exp(), noise)
        # Of the normal density: (raw - mean) / std is the noise itself.
        terms = 0.5 * noise.square() + log_std - 2 * (raw + softplus(-2 * raw))
        constant = self.actions * (0.5 * math.log(2 * math.pi) + 2 * math.log(2))
        return Draw(raw.tanh(), -terms.sum(-1) - constant)


class DeterministicActor(nn.Module):
    """One action for each observation.

    Args:
        inputs: Numbers of an observation.
        actions: Numbers of an action.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, inputs: int, actions: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = mlp(inputs, hidden, actions)

    def forward(self, observation: Tensor) -> Tensor:
        """Actions in (-1, 1), shape ``(B, actions)``."""
        action: Tensor = self.layers(observation).float().tanh()
        return action


class Critics(nn.Module):
    """M networks that value an action, in one batched product for each layer.

    Their weights begin as those of ``torch.nn.Linear`` do, and differ from critic to critic.

    Args:
        inputs: Numbers of an observation.
        actions: Numbers of an action.
        hidden: Widths of the hidden layers.
        critics: How many, M, at least 1.
    """

    def __init__(self, inputs: int, actions: int, hidden: Sequence[int], critics: int) -> None:
        super().__init__()
        self.critics = critics
        widths = [inputs + actions, *hidden]
        self.weights = nn.ParameterList(_uniform(n, critics, n, m) for n, m in pairwise(widths))
        self.biases = nn.ParameterList(_uniform(n, critics, 1, m) for n, m in pairwise(widths))
        self.last_weight = _uniform(widths[-1], critics, 1, widths[-1])
        self.last_bias = _uniform(widths[-1], critics, 1)

    def forward(self, observation: Tensor, action: Tensor, only: int | None = None) -> Tensor:
        """Values, shape ``(M, B)``.

        Args:
            observation: Shape ``(B, inputs)``.
            action: Shape ``(B, actions)``.
            only: Ask the first so many critics; None for all.
        """
        weights: list[Tensor] = [*self.weights, *self.biases, self.last_weight, self.last_bias]
        if only is not None:  # of all critics there is nothing to cut out, which takes time backwards, too
            weights = [each[:only] for each in weights]
        *layers, last_weight, last_bias = weights
        joint = torch.cat([observation, action], -1)
        x = joint.expand(len(last_bias), *joint.shape)
        for weight, bias in zip(layers, layers[len(self.weights) :]):
            x = torch.baddbmm(bias, x, weight).relu_()
        # A product with one column is slow as a matrix product.
        return ((x * last_weight).sum(-1) + last_bias).float()


def _uniform(fan_in: int, *shape: int) -> nn.Parameter:
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
