"""Soft actor-critic: losses and one update, in plain torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modules.rl.networks import Core, Critics, GaussianActor

Apply = Callable[[str, Sequence[nn.Parameter], Sequence[Tensor]], None]
"""Takes the name of a group of parameters, the parameters and their gradients, and steps the group's optimiser."""


class SoftActorCritic(Core):
    """Networks and update of SAC with a learned temperature (Haarnoja et al. 2018, "SAC: Algorithms and Applications").

    Args:
        inputs: Numbers of an observation.
        actions: Numbers of an action.
        hidden: Widths of the hidden layers of actor and critics.
        critics: How many critics; values are the smallest of them.
        gamma: Discount, in [0, 1].
        tau: Share of the critics that their targets take over in each update, in (0, 1].
        alpha: The temperature, positive; where it begins if it is learned.
        learn_alpha: Whether it is.
        target_entropy: What the entropy is led to; None for ``-actions``.
        alpha_loss: ``log_alpha``: ``-log(alpha) (log pi + target)``, whose gradient does not shrink with alpha;
            ``alpha``: ``-alpha (log pi + target)``, as the paper has it (eq. 18).
    """

    def __init__(
        self,
        inputs: int,
        actions: int,
        hidden: Sequence[int] = (256, 256),
        critics: int = 2,
        gamma: float = 0.99,
        tau: float = 0.005,
        alpha: float = 1.0,
        learn_alpha: bool = True,
        target_entropy: float | None = None,
        alpha_loss: Literal["log_alpha", "alpha"] = "log_alpha",
    ) -> None:
        super().__init__()
        self.gamma, self.tau, self.learn_alpha, self.alpha_form = gamma, tau, learn_alpha, alpha_loss
        self.actions = actions
        self.target_entropy = -float(actions) if target_entropy is None else target_entropy
        self.initial_alpha = alpha
        self.actor = GaussianActor(inputs, actions, hidden)
        self.critic = Critics(inputs, actions, hidden, critics)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)), requires_grad=learn_alpha)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that have an optimiser each."""
        found = {"critic": list(self.critic.parameters()), "actor": list(self.actor.parameters())}
        return {**found, "alpha": [self.log_alpha]} if self.learn_alpha else found

    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """The mean action, or with standard normal noise ``(B, actions)`` a draw."""
        mean, log_std = self.actor(observation)
        raw: Tensor = mean if noise is None else torch.addcmul(mean, log_std.exp(), noise)
        return raw.tanh()

    def noise(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise of one update, for the actions now and next, shape ``(2, B, actions)``.

        Args:
            batch: As ``ReplayBuffer.sample`` gives it.
            generator: On the device of the batch.
        """
        return torch.randn(2, *batch["action"].shape, generator=generator, device=batch["action"].device)

    def value_target(self, batch: Mapping[str, Tensor], alpha: Tensor, noise: Tensor) -> Tensor:
        """What the critics are drawn to: reward plus the discounted soft value of the next state, shape ``(B,)``.

        Only where the next state has no future (``terminated``) is its value left out.
        """
        with torch.no_grad():
            following = self.actor.draw(batch["next_observation"], noise)
            value = self.target(batch["next_observation"], following.action).amin(0) - alpha * following.log_prob
            return batch["reward"] + self.gamma * batch["terminated"].logical_not() * value

    def update(
        self,
        batch: Mapping[str, Tensor],
        apply: Apply,
        noise: Tensor,
        actor: bool = True,
        targets: bool = True,
    ) -> dict[str, Tensor]:
        """One step of the critics, the actor, the temperature and the targets.

        The temperature of all losses is that from before the update.

        Args:
            batch: As ``ReplayBuffer.sample`` gives it.
            apply: Steps the optimiser of a group, see :data:`Apply`.
            noise: As :meth:`noise` draws it.
            actor: Whether actor and temperature are stepped, too.
            targets: Whether the targets are moved.

        Returns:
            Losses and what else is of interest, without a graph.
        """
        alpha = self.log_alpha.detach().exp()
        goal = self.value_target(batch, alpha, noise[1])
        values = self.critic(batch["observation"], batch["action"])
        critic_loss = 0.5 * (values - goal).square().mean(1).sum()
        parameters = self.parameters_of("critic")
        apply("critic", parameters, torch.autograd.grad(critic_loss, parameters))
        told = {"critic_loss": critic_loss.detach(), "q_mean": values.detach().mean(), "alpha": alpha}
        if actor:
            told |= self._update_actor(batch["observation"], alpha, noise[0], apply)
        if targets:
            with torch.no_grad():
                torch._foreach_lerp_([*self.parameters_of("target")], [*parameters], self.tau)
        return told

    def _update_actor(self, observation: Tensor, alpha: Tensor, noise: Tensor, apply: Apply) -> dict[str, Tensor]:
        drawn = self.actor.draw(observation, noise)
        log_prob = drawn.log_prob.detach().mean()
        loss = (alpha * drawn.log_prob - self.critic(observation, drawn.action).amin(0)).mean()
        parameters = self.parameters_of("actor")
        # Gradients of the actor alone: none of the critics' weights is computed.
        apply("actor", parameters, torch.autograd.grad(loss, parameters))
        told = {"actor_loss": loss.detach(), "entropy": -log_prob}
        if self.learn_alpha:
            factor = self.log_alpha if self.alpha_form == "log_alpha" else self.log_alpha.exp()
            alpha_loss = -factor * (log_prob + self.target_entropy)
            apply("alpha", [self.log_alpha], torch.autograd.grad(alpha_loss, [self.log_alpha]))
            told["alpha_loss"] = alpha_loss.detach()
        return told
