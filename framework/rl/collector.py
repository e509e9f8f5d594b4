"""Steps a vector environment and hands over transitions; none of them crosses the end of an episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.rl.components import Components
from framework.rl.environments import restore, state_of
from framework.rl.policy import Policy
from framework.seeding import derive

SUCCESS = ("is_success", "success")
"""Keys of ``info`` by which environments say whether an episode succeeded."""


class Transitions(NamedTuple):
    """What one step of a vector environment gave, in the order of ``ReplayBuffer.add``.

    Attributes:
        observation: Shape ``(B, inputs)``, float32.
        action: Shape ``(B, actions)``, in [-1, 1].
        components: Shape ``(B, K)``.
        next_observation: Shape ``(B, inputs)``; where an episode ended, its last observation.
        terminated: Shape ``(B,)``, bool; False where a time limit cut the episode.
    """

    observation: Tensor
    action: Tensor
    components: Tensor
    next_observation: Tensor
    terminated: Tensor


class Episode(NamedTuple):
    """An episode that has ended.

    Attributes:
        number: Which environment it was in.
        components: Sum of each component over the episode.
        length: Its steps.
        success: Whether it reached its goal; None where the environment has said so of no episode yet. One of which it
            says nothing, or that was cut, has not.
    """

    number: int
    components: np.ndarray
    length: int
    success: bool | None


class Collector:
    """Goes on, step by step, from where it stopped.

    Args:
        envs: A vector environment that resets in the same step, see :func:`framework.rl.environments.make`.
        components: Of its reward.
        name: What to call the environment in errors.
        seed: Seed of the environments' first episodes and of exploration.

    Attributes:
        observation: What the environments show now, shape ``(B, inputs)``, float32.
        episodes: Episodes that have ended, over all time.
        tells_success: Whether the environment has said of any step whether its episode succeeded.
    """

    def __init__(self, envs: Any, components: Components, name: str, seed: int = 0) -> None:
        self.envs, self.components, self.name, self.seed = envs, components, name, seed
        space = envs.single_action_space
        self._low = space.low.astype(np.float64)
        self._range = space.high.astype(np.float64) - self._low
        self._type = space.dtype
        self.generator = torch.Generator().manual_seed(derive(seed, "exploration"))
        self.episodes = 0
        self.tells_success = False
        self.begin()

    def begin(self, seeds: list[int] | None = None) -> None:
        """Begin new episodes in all environments.

        Args:
            seeds: A seed for each, in [0, 2^31). None takes seeds that depend on how many episodes there have been.
        """
        count = self.envs.num_envs
        if seeds is None:
            seeds = [derive(self.seed, "episodes", self.episodes, number) % 2**31 for number in range(count)]
        observation, _ = self.envs.reset(seed=seeds)
        self.observation = torch.from_numpy(np.array(observation, np.float32))
        self._sums = np.zeros((count, len(self.components.names)))
        self._lengths = np.zeros(count, np.int64)
        self._check(self.observation.numpy(), "observation")

    def step(self, policy: Policy | None, deterministic: bool = False) -> tuple[Transitions, list[Episode]]:
        """One step of every environment.

        Args:
            policy: Who acts; None acts at random, uniformly.
            deterministic: Whether the policy acts without exploration.

        Returns:
            The transitions, and the episodes that ended.

        Raises:
            ValueError: If the environment or the policy gives a number that is not finite.
        """
        before = self.observation
        action = self._act(policy, deterministic)
        scaled = (self._low + (action.numpy().astype(np.float64) + 1) / 2 * self._range).astype(self._type)
        observation, reward, terminated, truncated, info = self.envs.step(scaled)
        done = terminated | truncated
        if not self.tells_success:
            self.tells_success = any(name in part for part in (info, info.get("final_info", {})) for name in SUCCESS)
        components = self.components.read(reward, done, info)
        following = np.array(observation, np.float32)
        self.observation = torch.from_numpy(following)
        if done.any():
            following = following.copy()
            for number in done.nonzero()[0]:
                following[number] = info["final_obs"][number]
        self._lengths += 1
        self._sums += components
        self._check(components, "reward")
        self._check(following, "observation")
        ended = [self._end(number, info) for number in done.nonzero()[0]] if done.any() else []
        if ended:
            self._check(self.observation.numpy(), "observation")  # of new episodes
        transitions = Transitions(
            before, action, torch.from_numpy(components), torch.from_numpy(following), torch.from_numpy(terminated)
        )
        return transitions, ended

    def cut(self, longest: int) -> list[Episode]:
        """What the episodes of that many steps have come to; they go on, and what follows counts as another one.

        Args:
            longest: Steps of an episode, at least 1.
        """
        return [self._end(int(number), {}) for number in (self._lengths >= longest).nonzero()[0]]

    def _act(self, policy: Policy | None, deterministic: bool) -> Tensor:
        if policy is None:
            return torch.rand(len(self.observation), len(self._low), generator=self.generator) * 2 - 1
        action = policy.act(self.observation, deterministic, self.generator).float().cpu()
        self._check(action.numpy(), "action")
        return action.clamp(-1, 1)

    def _check(self, values: np.ndarray, what: str) -> None:
        if np.isfinite(values).all():
            return
        number = int((~np.isfinite(values).all(1)).argmax())
        wrong = values[number][~np.isfinite(values[number])][0]
        step = int(self._lengths[number]) + (what == "action")
        raise ValueError(
            f"{self.name}: {what} is {wrong} in environment {number}, episode {self.episodes + 1}, step {step}"
        )

    def _end(self, number: int, info: Mapping[str, Any]) -> Episode:
        final = info.get("final_info", info)
        # Vector environments have a mask beside each entry: of which environments it is.
        told = [
            final[key][number]
            for key in SUCCESS
            if key in final and (f"_{key}" not in final or final[f"_{key}"][number])
        ]
        reached = bool(told[0]) if told else (False if self.tells_success else None)
        episode = Episode(int(number), self._sums[number].copy(), int(self._lengths[number]), reached)
        self._sums[number], self._lengths[number] = 0, 0
        self.episodes += 1
        return episode

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on, as plain tensors, numbers and strings."""
        return {
            "observation": self.observation.clone(),
            "sums": torch.from_numpy(self._sums.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "episodes": self.episodes,
            "tells_success": self.tells_success,
            "generator": self.generator.get_state(),
            "environments": state_of(self.envs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; where the environments' own could not be saved, with new episodes."""
        self.generator.set_state(state["generator"])
        self.episodes, self.tells_success = state["episodes"], state["tells_success"]
        if state["environments"] is None:
            self.episodes += 1  # the one that was cut; its seed is not used twice
            self.begin()
            return
        restore(self.envs, state["environments"])
        self.observation = state["observation"].clone()
        self._sums, self._lengths = state["sums"].numpy().copy(), state["lengths"].numpy().copy()
