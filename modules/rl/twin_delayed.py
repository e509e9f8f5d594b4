"""TD3: losses and one update, in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modules.rl.networks import Core, Critics, DeterministicActor
from modules.rl.soft_actor_critic import Apply


class TwinDelayed(Core):
    """Networks and update of TD3 (Fujimoto, van Hoof, Meger, ICML 2018, algorithm 1).

    Args:
        inputs: Numbers of an observation.
        actions: Numbers of an action.
        hidden: Widths of the hidden layers of actor and critics.
        critics: How many critics; targets are the smallest of them.
        gamma: Discount, in [0, 1].
        tau: Share of the networks that their targets take over in each update of the actor, in (0, 1].
        target_noise: Standard deviation of the noise that smooths the target, in units of the normalised action.
        noise_clip: Bound of that noise.
    """

    def __init__(
        self,
        inputs: int,
        actions: int,
        hidden: Sequence[int] = (256, 256),
        critics: int = 2,
        gamma: float = 0.99,
        tau: float = 0.005,
        target_noise: float = 0.2,
        noise_clip: float = 0.5,
    ) -> None:
        super().__init__()
        self.gamma, self.tau, self.target_noise, self.noise_clip = gamma, tau, target_noise, noise_clip
        self.actor = DeterministicActor(inputs, actions, hidden)
        self.critic = Critics(inputs, actions, hidden, critics)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that have an optimiser each."""
        return {"critic": list(self.critic.parameters()), "actor": list(self.actor.parameters())}

    def noise(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise of one update, for the target's actions, shape ``(B, actions)``.

        Args:
            batch: As ``ReplayBuffer.sample`` gives it.
            generator: On the device of the batch.
        """
        return torch.randn(batch["action"].shape, generator=generator, device=batch["action"].device)

    def value_target(self, batch: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """What the critics are drawn to: reward plus the discounted value of a smoothed next action, shape ``(B,)``.

        Args:
            batch: As ``ReplayBuffer.sample`` gives it.
            noise: Standard normal, shape ``(B, actions)``.
        """
        with torch.no_grad():
            smooth = (noise * self.target_noise).clamp(-self.noise_clip, self.noise_clip)
            action = (self.target_actor(batch["next_observation"]) + smooth).clamp(-1, 1)
            value = self.target(batch["next_observation"], action).amin(0)
            return batch["reward"] + self.gamma * batch["terminated"].logical_not() * value

    def update(
        self,
        batch: Mapping[str, Tensor],
        apply: Apply,
        noise: Tensor,
        actor: bool = True,
        targets: bool | None = None,
    ) -> dict[str, Tensor]:
        """One step of the critics and, in their turn, of the actor and all targets.

        Args:
            batch: As ``ReplayBuffer.sample`` gives it.
            apply: Steps the optimiser of a group, see :data:`modules.rl.soft_actor_critic.Apply`.
            noise: As :meth:`noise` draws it.
            actor: Whether the actor is stepped, too.
            targets: Whether the targets are moved; None: together with the actor.

        Returns:
            Losses and what else is of interest, without a graph.
        """
        action = batch["action"]
        values = self.critic(batch["observation"], action)
        critic_loss = (values - self.value_target(batch, noise)).square().mean(1).sum()
        parameters = self.parameters_of("critic")
        apply("critic", parameters, torch.autograd.grad(critic_loss, parameters))
        told = {"critic_loss": critic_loss.detach(), "q_mean": values.detach().mean()}
        own = self.parameters_of("actor")
        if actor:
            observation = batch["observation"]
            loss = -self.critic(observation, self.actor(observation), only=1).mean()
            apply("actor", own, torch.autograd.grad(loss, own))
            told["actor_loss"] = loss.detach()
        if actor if targets is None else targets:
            with torch.no_grad():
                slow: list[Tensor] = [*self.parameters_of("target"), *self.parameters_of("target_actor")]
                torch._foreach_lerp_(slow, [*parameters, *own], self.tau)
        return told
