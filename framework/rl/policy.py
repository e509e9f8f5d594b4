"""What collectors, evaluation and curricula ask of a module: a policy, and a critic.

Actions are normalised: policies give, and buffers hold, numbers in [-1, 1]; a collector scales them to the bounds of
the environment.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Policy(Protocol):
    """Something that acts."""

    def act(self, observation: Tensor, deterministic: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Actions for observations.

        Args:
            observation: Shape ``(B, inputs)``.
            deterministic: Whether to give the action that evaluation takes, without exploration.
            generator: Of exploration; on the CPU, whatever the device. None takes torch's global one.

        Returns:
            Shape ``(B, actions)``, in [-1, 1].
        """
        ...


@runtime_checkable
class Critic(Protocol):
    """Something that values actions."""

    def q(self, observation: Tensor, action: Tensor) -> Tensor:
        """Values of actions, by each of M critics.

        Args:
            observation: Shape ``(B, inputs)``.
            action: Shape ``(B, actions)``, in [-1, 1].

        Returns:
            Shape ``(M, B)``.
        """
        ...


@runtime_checkable
class Experience(Protocol):
    """Data that grow while a module is trained on them; a module logs what they tell and draws their pictures."""

    env_steps: int

    def told(self) -> dict[str, float]:
        """Numbers to log beside a module's own: ``env_steps``, and episodes that ended since the last call."""
        ...

    def figures(self) -> dict[str, Any]:
        """Pictures by plain file name, as :class:`framework.figures.Drawable` has them."""
        ...


def policy_of(module: Any, needed_by: str) -> Policy:
    """The module, if it is a policy.

    Raises:
        TypeError: Naming the module and what it lacks.
    """
    if not isinstance(module, Policy):
        raise TypeError(
            f"{type(module).__name__} has no act, which {needed_by} needs: a method that takes observations "
            "(B, inputs) and returns actions (B, actions) in [-1, 1]"
        )
    return module
