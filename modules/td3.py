"""Twin delayed deep deterministic policy gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modules._off_policy import OffPolicy, check_common
from modules.rl.twin_delayed import TwinDelayed


class TD3(OffPolicy):
    """TD3 (Fujimoto, van Hoof, Meger, "Addressing Function Approximation Error in Actor-Critic Methods", ICML 2018).

    Args:
        inputs: Numbers of an observation.
        actions: Numbers of an action.
        hidden: Widths of the hidden layers of actor and critics.
        critics: How many critics; targets are the smallest of them.
        gamma: Discount, in [0, 1].
        tau: Share of the networks that their targets take over whenever the actor is stepped, in (0, 1].
        lr: Learning rate of both Adams.
        actor_lr: The actor's own; None for ``lr``.
        critic_lr: The critics' own; None for ``lr``.
        policy_delay: Updates of the critics for each of the actor, at least 1.
        exploration_noise: Standard deviation of the noise of actions that are taken, in units of the normalised action.
        target_noise: That of the noise that smooths the target.
        noise_clip: Bound of the target's noise.
        cuda_graph: Whether updates are replayed as a CUDA graph where they can be: on one GPU, in 32 or 64 bit, with no
            callback that looks at gradients.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        inputs: int,
        actions: int,
        hidden: Sequence[int] = (256, 256),
        critics: int = 2,
        gamma: float = 0.99,
        tau: float = 0.005,
        lr: float = 3e-4,
        actor_lr: float | None = None,
        critic_lr: float | None = None,
        policy_delay: int = 2,
        exploration_noise: float = 0.1,
        target_noise: float = 0.2,
        noise_clip: float = 0.5,
        cuda_graph: bool = True,
    ) -> None:
        super().__init__()
        check_common(locals())
        if policy_delay < 1:
            raise ValueError(f"policy_delay must be at least 1, got {policy_delay}")
        given = {"exploration_noise": exploration_noise, "target_noise": target_noise, "noise_clip": noise_clip}
        for name, value in given.items():
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.save_hyperparameters()
        self.core = self.make_core()

    def make_core(self) -> TwinDelayed:
        p = self.hparams
        return TwinDelayed(
            p["inputs"], p["actions"], p["hidden"], p["critics"], p["gamma"], p["tau"], p["target_noise"],
            p["noise_clip"],
        )  # fmt: skip

    def actor_is_due(self) -> bool:
        return (self.updates + 1) % int(self.hparams["policy_delay"]) == 0

    @torch.no_grad()
    def act(self, observation: Tensor, deterministic: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """The actor's action, or with noise added; in [-1, 1]."""
        action: Tensor = self.core.actor(self._own(observation))
        if deterministic:
            return action
        noise = self._draw(observation, generator) * self.hparams["exploration_noise"]
        return (action + noise).clamp(-1, 1)
