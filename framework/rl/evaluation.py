"""Episodes of a policy that does not explore, the same ones each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.rl.collector import Collector, Transitions
from framework.rl.components import Components
from framework.rl.policy import Policy


class Evaluation:
    """A number of episodes whose first states depend on their seeds alone.

    Args:
        envs: A vector environment with one environment for each episode.
        components: Of its reward.
        weights: Weight of each component in the return, shape ``(K,)``.
        name: What to call the environment in errors.
        seeds: A seed for each episode, in [0, 2^31).
        longest: Steps after which an episode is cut off; without such a limit, one that the policy does not end and the
            environment does not cut would go on for ever.
    """

    def __init__(
        self,
        envs: Any,
        components: Components,
        weights: Sequence[float],
        name: str,
        seeds: list[int],
        longest: int = 10_000,
    ) -> None:
        self.collector = Collector(envs, components, name)
        self.weights = np.asarray(weights, float)
        self.seeds, self.longest = seeds, longest

    def run(self, policy: Policy) -> dict[str, Tensor]:
        """One number for each episode: what the policy reached in it.

        Returns:
            ``return``, ``length``, ``success`` where the environment has said of any episode whether it succeeded (one
            of which it says nothing, or that was cut, did not), and the sum of each component where there are several,
            as ``component/<name>``; each of shape ``(episodes,)``.
        """
        episodes = [episode for episode, _ in self._episodes(policy)]
        sums = np.stack([episode.components for episode in episodes])
        results = {"return": sums @ self.weights, "length": np.array([episode.length for episode in episodes])}
        if self.collector.tells_success:
            results["success"] = np.array([bool(episode.success) for episode in episodes])
        if len(self.weights) > 1:
            results |= {f"component/{name}": sums[:, i] for i, name in enumerate(self.collector.components.names)}
        return {key: torch.from_numpy(values).float() for key, values in results.items()}

    def trajectories(self, policy: Policy) -> dict[str, Tensor]:
        """Every step of the episodes, one after another, as equally long columns.

        Returns:
            ``episode``, ``step``, ``observation`` (steps, inputs), ``action`` (steps, actions; in [-1, 1]), ``reward``,
            ``terminated`` and the components where there are several.
        """
        columns: dict[str, list[Tensor]] = {}
        for number, (_, steps) in enumerate(self._episodes(policy, keep=True)):
            components = torch.stack([step.components for step in steps]).double()
            part = {
                "episode": torch.full((len(steps),), number),
                "step": torch.arange(len(steps)),
                "observation": torch.stack([step.observation for step in steps]),
                "action": torch.stack([step.action for step in steps]),
                "reward": (components @ torch.from_numpy(self.weights)).float(),
                "terminated": torch.stack([step.terminated for step in steps]).long(),
            }
            if len(self.weights) > 1:
                part |= {n: components[:, i].float() for i, n in enumerate(self.collector.components.names)}
            for name, column in part.items():
                columns.setdefault(name, []).append(column)
        return {name: torch.cat(parts) for name, parts in columns.items()}

    def _episodes(self, policy: Policy, keep: bool = False) -> list[tuple[Any, list[Transitions]]]:
        """The first episode of each environment from its seed on, in the order of the environments."""
        collector, count = self.collector, self.collector.envs.num_envs
        collector.begin(self.seeds)
        found: dict[int, Any] = {}
        steps: list[list[Transitions]] = [[] for _ in range(count)]
        while len(found) < count:
            transitions, ended = collector.step(policy, deterministic=True)
            if keep:
                for number in set(range(count)) - set(found):
                    steps[number].append(Transitions(*(column[number] for column in transitions)))
            for episode in [*ended, *collector.cut(self.longest)]:
                found.setdefault(episode.number, episode)
        return [(found[number], steps[number]) for number in range(count)]
