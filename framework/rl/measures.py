"""What a curriculum looks at: means over time and ranks, and how well an actor does by its critics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Means:
    """Means of numbers by name, over time and then over ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float | Tensor, float]] = {}

    def add(self, name: str, value: float | Tensor, count: float = 1.0) -> None:
        """Add a sum of some numbers.

        Args:
            name: What they are.
            value: Their sum; a tensor is not read before :meth:`take`, so that a GPU is not waited for.
            count: How many.
        """
        total, number = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (total + value, number + count)

    def take(self, names: Sequence[str], reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The means, and begin anew.

        Args:
            names: Of what, in an order that is the same on all ranks.
            reduce: Sums a tensor over the ranks; None for one process.

        Returns:
            Means of what has been added on any rank.
        """
        pairs = [[float(part) for part in self._sums.get(name, (0.0, 0.0))] for name in names]
        self._sums.clear()
        table = torch.tensor(pairs, dtype=torch.float64).reshape(len(names), 2)
        if reduce is not None and len(names):
            table = reduce(table)
        return {name: total / count for name, (total, count) in zip(names, table.tolist()) if count}

    def state_dict(self) -> dict[str, list[float]]:
        """What has been added since it was last taken."""
        return {name: [float(total), count] for name, (total, count) in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from a state."""
        self._sums = {name: (total, count) for name, (total, count) in state.items()}


@torch.no_grad()
def actor_fit(
    module: Any,
    observation: Tensor,
    actions: int = 8,
    spread: float | None = 0.2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How the actor's actions compare with others, by the critics: the formula is ours, after an idea of the paper's.

    ``fit(s) = Q(s, pi(s)) - max_m Q(s, a_m)``, averaged over states and divided by the standard deviation of
    ``Q(s, pi(s))`` over them; Q is the smallest of the critics. Near 0 or above where nothing better is known near by.

    Args:
        module: A :class:`framework.rl.policy.Policy` and :class:`framework.rl.policy.Critic`.
        observation: Shape ``(B, inputs)``, B at least 2.
        actions: How many others, m.
        spread: Standard deviation of these about ``pi(s)``, in units of the normalised action; None for uniform ones.
        generator: Of the others, on the CPU.

    Returns:
        A scalar.
    """
    greedy = module.act(observation, deterministic=True)
    own = module.q(observation, greedy).amin(0)
    shape = (actions, *greedy.shape)
    if spread is None:
        others = torch.rand(shape, generator=generator).to(greedy) * 2 - 1
    else:
        others = (greedy + spread * torch.randn(shape, generator=generator).to(greedy)).clamp(-1, 1)
    repeated = observation.expand(actions, *observation.shape).reshape(-1, observation.shape[-1])
    best = module.q(repeated, others.reshape(-1, greedy.shape[-1])).amin(0).reshape(actions, -1).amax(0)
    fit: Tensor = (own - best).mean() / own.std().clamp_min(1e-8)
    return fit
