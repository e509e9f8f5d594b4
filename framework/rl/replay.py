"""Experience that is priced when it is sampled: transitions keep the components of their reward, not their sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.seeding import derive

COLUMNS = ("observation", "action", "components", "next_observation", "terminated")
"""What is stored of a transition; ``frozen`` besides, once :meth:`ReplayBuffer.keep_frozen` has been called."""


class ReplayBuffer:
    """A ring of transitions in tensors allocated once; the oldest are overwritten.

    A transition keeps the vector of its reward's components. The scalar reward of a batch is ``components @ weights``
    with the weights of the moment in which it is sampled, so a change of ``weights`` re-prices all experience at once,
    old and new, and costs nothing.

    Args:
        capacity: The most transitions, at least 1.
        inputs: Numbers of an observation.
        actions: Numbers of an action.
        components: Names of the reward's components, at least one.
        weights: Weight of each, finite; None for ones.
        device: Where the tensors lie.
        seed: Seed of what is sampled; the generator is in ``state_dict``.

    Attributes:
        components: Names of the reward's components, in the order of the columns.
        border: How many transitions had been added, over all time, at the last :meth:`mark`.
        new_share: Share of each batch that comes from after the border, in [0, 1]; None samples all alike.
        use_frozen: Whether a batch's rewards are those of the time when they were stored; an ablation.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        capacity: int,
        inputs: int,
        actions: int,
        components: Sequence[str] = ("reward",),
        weights: Sequence[float] | Tensor | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        for name, value in (("capacity", capacity), ("inputs", inputs), ("actions", actions)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not components or len(set(components)) < len(components):
            raise ValueError(f"components must be names that differ, at least one, got {list(components)}")
        self.capacity, self.components = capacity, tuple(components)
        self.device = torch.device(device)
        self._columns = {
            "observation": self._empty(inputs),
            "action": self._empty(actions),
            "components": self._empty(len(components)),
            "next_observation": self._empty(inputs),
            "terminated": torch.empty(capacity, dtype=torch.bool, device=self.device),
        }
        self.weights = torch.ones(len(components)) if weights is None else weights
        self.generator = torch.Generator(self.device).manual_seed(derive(seed, "replay"))
        self.added = 0
        self.border = 0
        self.new_share: float | None = None
        self.use_frozen = False

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(self.capacity, *shape, device=self.device)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def weights(self) -> Tensor:
        """Weight of each component, shape ``(K,)``; what is set is copied."""
        return self._weights

    @weights.setter
    def weights(self, values: Sequence[float] | Tensor) -> None:
        weights = torch.as_tensor(values, dtype=torch.float32).detach().clone().to(self.device)
        if weights.shape != (len(self.components),) or not bool(weights.isfinite().all()):
            raise ValueError(
                f"weights must be {len(self.components)} finite numbers, for {', '.join(self.components)}, "
                f"got {weights.tolist()}"
            )
        self._weights = weights

    def add(
        self, observation: Tensor, action: Tensor, components: Tensor, next_observation: Tensor, terminated: Tensor
    ) -> None:
        """Store some transitions, in order.

        Args:
            observation: Shape ``(N, inputs)``, N at most the capacity.
            action: Shape ``(N, actions)``.
            components: Shape ``(N, K)``.
            next_observation: Shape ``(N, inputs)``; where an episode ended, its last observation.
            terminated: Shape ``(N,)``: whether the next state has no future. False where a time limit cut the episode.
        """
        given = dict(zip(COLUMNS, (observation, action, components, next_observation, terminated)))
        count = len(terminated)
        for name, values in given.items():
            shape = (count, *self._columns[name].shape[1:])
            if values.shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, got {tuple(values.shape)}")
        if count > self.capacity:
            raise ValueError(f"{count} transitions at once do not fit into a buffer of {self.capacity}")
        if "frozen" in self._columns:
            given["frozen"] = components.to(self.device, torch.float32) @ self._weights
        start = self.added % self.capacity
        first = min(count, self.capacity - start)
        for name, values in given.items():
            self._columns[name][start : start + first] = values[:first]
            if first < count:
                self._columns[name][: count - first] = values[first:]
        self.added += count

    def sample(self, size: int) -> dict[str, Tensor]:
        """A batch, drawn uniformly with replacement.

        Args:
            size: Transitions in the batch, at least 1.

        Returns:
            ``observation`` (size, inputs), ``action`` (size, actions), ``reward`` (size,), ``next_observation`` and
            ``terminated`` (size,), a bool.
        """
        rows = self._draw(size)
        batch = {name: self._columns[name].index_select(0, rows) for name in COLUMNS if name != "components"}
        batch["reward"] = self.price(rows)
        return batch

    def price(self, rows: Tensor) -> Tensor:
        """Rewards of some rows as of now, shape ``(rows,)``."""
        if self.use_frozen:
            if "frozen" not in self._columns:
                raise ValueError("use_frozen needs keep_frozen() before the first transition is stored")
            return self._columns["frozen"].index_select(0, rows)
        return self._columns["components"].index_select(0, rows) @ self._weights

    def _draw(self, size: int) -> Tensor:
        if not self.added:
            raise ValueError("the replay buffer is empty: nothing can be sampled")
        filled = len(self)
        oldest = self.added - filled
        old = min(max(self.border - oldest, 0), filled)  # how many of the transitions held are from before the border
        if self.new_share is None or old in {0, filled}:
            return self._integers(filled, size)  # all positions below `filled` hold something
        new = round(self.new_share * size)
        ages = torch.cat([old + self._integers(filled - old, new), self._integers(old, size - new)])
        return (oldest + ages) % self.capacity

    def _integers(self, below: int, count: int) -> Tensor:
        return torch.randint(below, (count,), generator=self.generator, device=self.device)

    @property
    def new_share(self) -> float | None:
        """Share of each batch that comes from after the border."""
        return self._new_share

    @new_share.setter
    def new_share(self, share: float | None) -> None:
        if share is not None and not (math.isfinite(share) and 0 <= share <= 1):
            raise ValueError(f"new_share must be in [0, 1] or null, got {share}")
        self._new_share = share

    def mark(self) -> None:
        """Put the border between old and new experience here."""
        self.border = self.added

    def clear(self) -> None:
        """Forget all experience. Weights, generator and what was asked for stay."""
        self.added = self.border = 0

    def keep_frozen(self) -> None:
        """Store besides what each transition is worth when it is stored, for ``use_frozen``; before the first one.

        Raises:
            ValueError: If there are transitions already.
        """
        if "frozen" in self._columns:
            return
        if self.added:
            raise ValueError("keep_frozen must be called before the first transition is stored")
        self._columns["frozen"] = self._empty()

    def columns(self) -> dict[str, Tensor]:
        """What is stored, oldest first, as copies."""
        filled = len(self)
        rows = (torch.arange(filled, device=self.device) + (self.added - filled)) % self.capacity
        return {name: column.index_select(0, rows) for name, column in self._columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that changes; of the columns only what is filled."""
        filled = len(self)
        return {
            # copies, for a view would take the whole column into the checkpoint
            "columns": {name: column[:filled].to("cpu", copy=True) for name, column in self._columns.items()},
            "components": list(self.components),
            "capacity": self.capacity,
            "added": self.added,
            "border": self.border,
            "weights": self._weights.to("cpu", copy=True),
            "new_share": self._new_share,
            "use_frozen": self.use_frozen,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; what is sampled next is what would have been.

        The capacity may be another one as long as nothing has been overwritten.

        Raises:
            ValueError: If the state is of a buffer of another kind.
        """
        own_names = list(self.components)
        overwritten = state["added"] > min(self.capacity, state["capacity"])  # then positions depend on the capacity
        for name, own, matters in (("components", own_names, True), ("capacity", self.capacity, overwritten)):
            if state[name] != own and matters:
                raise ValueError(f"{name} of the replay buffer is {own}, but the checkpoint's is {state[name]}")
        if state["added"] and "frozen" in self._columns and "frozen" not in state["columns"]:
            raise ValueError("the replay buffer keeps stored rewards, but the checkpoint's has none")
        if "frozen" in state["columns"]:
            self._columns.setdefault("frozen", self._empty())
        for name, values in state["columns"].items():
            column = self._columns[name]
            if values.shape[1:] != column.shape[1:]:
                raise ValueError(
                    f"{name} of the replay buffer has {tuple(column.shape[1:])} numbers, "
                    f"but the checkpoint's has {tuple(values.shape[1:])}"
                )
            column[: len(values)] = values
        self.added, self.border = state["added"], state["border"]
        self.weights, self.new_share, self.use_frozen = state["weights"], state["new_share"], state["use_frozen"]
        self.generator.set_state(state["generator"])
