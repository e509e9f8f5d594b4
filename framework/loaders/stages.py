"""Stages of the train loader's path: what one is, and the two that are plain choices of items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from framework.loaders.reindexing import reindex

SLOTS = ("partition", "pool", "sampler")
"""The stages of the path, first to last."""


class World(NamedTuple):
    """Which process this is.

    Attributes:
        rank: Number of this process, in ``[0, size)``.
        size: Number of processes that train together.
        ddp: Whether the strategy is made for several processes, even if there is one.
    """

    rank: int = 0
    size: int = 1
    ddp: bool = False

    @property
    def splits(self) -> bool:
        """Whether Lightning gives each process its share of a loader without a ``DistributedSampler``."""
        return self.size > 1 or self.ddp


class Stage(ABC):
    """One step of the train loader's path.

    Attributes:
        slot: Its place on the path, one of ``partition``, ``pool``, ``sampler``; at most one stage per slot.
        changes: Whether its result changes during training; it then needs ``reload_dataloaders_every_n_epochs=1``.
        splits_ranks: Whether it gives each process its own items. Lightning then adds no ``DistributedSampler``.
        yields: Whether it leaves its slot to any other stage that wants it, whichever comes first.
        optional: Whether the loader may pass it as it is. A path of such stages alone lets through what it cannot
            honour, and tells the stage by ``refuse``.
        version: Counts the changes; whoever changes what the stage yields adds one. A trainer that would train an epoch
            on an older version is stopped (see :meth:`framework.loaders.path.TrainPath.verify`).
    """

    slot: ClassVar[str]
    changes: ClassVar[bool] = False
    splits_ranks: ClassVar[bool] = False
    yields: ClassVar[bool] = False
    optional: ClassVar[bool] = False
    version: int = 0

    @abstractmethod
    def apply(self, loader: DataLoader[Any], world: World) -> DataLoader[Any]:
        """The loader that the next stage sees; the one given must stay as it is."""

    def refuse(self, reason: str) -> None:
        """Called on an optional stage where the path cannot offer it a loader: raises, or goes without.

        Args:
            reason: Why, as a sentence without a full stop.
        """
        raise TypeError(reason)


class Partition(Stage):
    """A fixed share of the data, such as a federated client's.

    Args:
        indices: Positions in the loader's data, or a boolean mask over it. Never empty.
    """

    slot = "partition"

    def __init__(self, indices: Tensor | Iterable[int]) -> None:
        self.indices = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices))

    def apply(self, loader: DataLoader[Any], world: World) -> DataLoader[Any]:
        return reindex(loader, self.indices)


class Pool(Stage):
    """A share of the data that grows or shrinks during training, such as what active learning has bought.

    Args:
        indices: Positions in what the partition left (or in the loader's data), or a boolean mask over it.
    """

    slot = "pool"
    changes = True

    def __init__(self, indices: Tensor | Iterable[int]) -> None:
        self.set(indices)

    def set(self, indices: Tensor | Iterable[int]) -> None:
        """Replace the indices; training sees them from the next epoch on. Under DDP all ranks must set the same."""
        self.indices = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices)).clone()
        self.version += 1

    def apply(self, loader: DataLoader[Any], world: World) -> DataLoader[Any]:
        return reindex(loader, self.indices)

    def state_dict(self) -> dict[str, Tensor]:
        """The indices; goes into a checkpoint that loads with ``weights_only=True``."""
        return {"indices": self.indices.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the indices of a checkpoint."""
        self.set(state["indices"])
