"""What has been bought, in which round and at what cost, and the stage that lets the trainer see only that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from framework.loaders import Pool, World, reindex

UNBOUGHT = -1
"""Round of an item that is still in the pool."""


class LabelPool:
    """Which items of a data set are labelled, since when, and what they cost. All indices are global.

    Args:
        costs: Positive cost of each item, shape ``(items,)``, int64 or float64.

    Attributes:
        costs: The costs.
        acquired_round: Round in which each item was bought, 0 for the initial ones and -1 in the pool; int32 of shape
            ``(items,)``.
    """

    def __init__(self, costs: Tensor) -> None:
        self.costs = costs
        self.acquired_round = torch.full((len(costs),), UNBOUGHT, dtype=torch.int32)

    def __len__(self) -> int:
        return len(self.costs)

    @property
    def labelled(self) -> Tensor:
        """True where an item is labelled, bool of shape ``(items,)``."""
        return self.acquired_round != UNBOUGHT

    @property
    def bought(self) -> Tensor:
        """Indices of the labelled items, ascending."""
        return self.labelled.nonzero().squeeze(1)

    @property
    def left(self) -> Tensor:
        """Indices of the items that can still be bought, ascending."""
        return (~self.labelled).nonzero().squeeze(1)

    @property
    def cost_bought(self) -> float:
        """Cost of the labelled items together; whole where costs are whole."""
        return self.costs[self.labelled].sum().item()

    @property
    def total_cost(self) -> float:
        """Cost of all items."""
        return self.costs.sum().item()

    @property
    def share(self) -> float:
        """Share of the total cost that has been bought, in [0, 1]."""
        return self.cost_bought / self.total_cost

    def units(self, amount: float) -> float:
        """An amount in the unit of the costs.

        Args:
            amount: At least 1: units of cost. In (0, 1): a share of the total cost.
        """
        return amount if amount >= 1 else amount * self.total_cost

    def label(self, indices: Tensor | Iterable[int], round: int) -> None:
        """Move items from the pool to the labelled ones.

        Args:
            indices: Global indices of items in the pool.
            round: The round that buys them, at least 0.

        Raises:
            ValueError: If an index is out of range, given twice or labelled already; nothing is changed then.
        """
        chosen = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices), dtype=torch.int64)
        if round < 0:
            raise ValueError(f"round must be at least 0, got {round}")
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(outside):
            raise ValueError(f"indices must be in [0, {len(self)}), got {int(outside[0])}")
        values, counts = chosen.unique(return_counts=True)
        if bool((counts > 1).any()):
            raise ValueError(f"indices must be different, got {int(values[counts > 1][0])} twice")
        again = chosen[self.labelled[chosen]]
        if len(again):
            item = int(again[0])
            raise ValueError(f"item {item} is labelled already, since round {int(self.acquired_round[item])}")
        self.acquired_round[chosen] = round

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, so that a checkpoint loads with ``weights_only=True``."""
        return {"acquired_round": self.acquired_round.clone(), "total_cost": self.total_cost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint.

        Raises:
            ValueError: If it belongs to other data: another number of items or another total cost.
        """
        acquired = state["acquired_round"]
        for what, theirs, ours in (
            ("items", len(acquired), len(self)),
            ("units of cost", state["total_cost"], self.total_cost),
        ):
            if theirs != ours:
                raise ValueError(
                    f"the checkpoint's pool has {theirs:g} {what}, these data have {ours:g}: "
                    "go on with the data, the split and the cost that the run began with"
                )
        self.acquired_round = acquired.to(torch.int32).clone()


class LabelledItems(Pool):
    """The stage of the train loader that leaves the labelled items, in batches even if they are few."""

    def apply(self, loader: DataLoader[Any], world: World) -> DataLoader[Any]:
        # Not even one whole batch a rank: with drop_last the trainer would find no batch, and end without a word.
        few = loader.drop_last and len(self.indices) < (loader.batch_size or 1) * world.size
        return reindex(loader, self.indices, drop_last=False if few else None)
