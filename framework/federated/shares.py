"""Which items of the training data each client holds, without decoding any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from framework.federated.attributes import Attribute, attributes_of
from framework.federated.partition import hold_out
from framework.federated.partition_figure import class_counts
from framework.federated.partition_file import FromFile
from framework.federated.skew import Skew
from framework.loaders import Partition, TrainPath, World
from framework.loaders.labels import labels_of
from framework.loaders.reindexing import kind, with_dataset

if TYPE_CHECKING:
    from framework.federated.settings import Federation


@dataclass(frozen=True)
class Shares:
    """The division of a training set.

    Attributes:
        train: By client, positions to train on.
        held_out: By client, positions that it keeps to evaluate on; empty tensors where nothing is held out.
        labels: The class of every item, ``None`` where the data have none.
        federation: The settings it was made by.
        seed: Seed of the run.
    """

    train: list[Tensor]
    held_out: list[Tensor]
    labels: Tensor | None
    federation: Federation
    seed: int

    @classmethod
    def of(cls, data: LightningDataModule, federation: Federation, seed: int) -> Shares:
        """Divide what a DataModule trains on.

        Args:
            data: The DataModule; it is prepared and set up for ``fit``.
            federation: How to divide.
            seed: Seed of the run, from which all is drawn.

        Raises:
            ValueError: If the data cannot be divided as asked.
        """
        data.prepare_data()
        data.setup("fit")
        dataset = TrainPath.on(data).build(before="partition").dataset
        if isinstance(dataset, IterableDataset):
            raise TypeError(f"{kind(dataset)} is an IterableDataset: its items cannot be divided among clients")
        items = len(dataset)  # type: ignore[arg-type]
        partition = federation.partition
        reason = getattr(dataset, "indivisible", "it is one item" if items == 1 else "")
        if reason:
            raise ValueError(f"{kind(dataset)} cannot be divided among {federation.clients} clients: {reason}")
        labels = _labels(dataset, partition.needs_labels)
        if isinstance(partition, FromFile):
            parts, held = _from_file(partition, dataset, federation.clients, seed)
        else:
            attributes = attributes_of(dataset, partition.field) if isinstance(partition, Attribute) else None
            parts, held = partition.split(items, labels, federation.clients, seed, attributes), None
        if held is None:
            parts, held = hold_out(parts, federation.held_out, seed)
        empty = [k for k, part in enumerate(parts) if len(part) == 0]
        if empty:
            raise ValueError(f"client {empty[0]} has no item to train on ({kind(partition)}, {items} items)")
        return cls(parts, held, labels, federation, seed)

    def counts(self) -> Tensor:
        """Items to train on by client and class, shape ``(clients, classes)``; without labels ``(clients,)``."""
        if self.labels is None:
            return torch.tensor([len(part) for part in self.train])
        return class_counts(self.train, self.labels, int(self.labels.max()) + 1)

    def stage(self, client: int, training: bool = True) -> ClientShare:
        """The partition stage of a client.

        Args:
            client: Its number.
            training: Whether it is to train, with its label noise if there is any; else it evaluates on what it holds
                out, by the true labels.
        """
        indices = (self.train if training else self.held_out)[client]
        skew = self.federation.skew if training or self.federation.skew is None else self.federation.skew.of_inputs()
        return ClientShare(indices, skew, client, self.federation.clients, self.seed)


class ClientShare(Partition):
    """The partition stage of a client: its items, as it sees them.

    Args:
        indices: Its items.
        skew: What makes them look different; ``None`` for the data as they are.
        client: Its number.
        clients: Number of clients.
        seed: Seed of the run.
    """

    def __init__(self, indices: Tensor, skew: Skew | None, client: int, clients: int, seed: int) -> None:
        super().__init__(indices)
        self._skew, self._client, self._clients, self._seed = skew, client, clients, seed

    def apply(self, loader: DataLoader[Any], world: World) -> DataLoader[Any]:
        loader = super().apply(loader, world)
        if self._skew is None:
            return loader
        return with_dataset(loader, self._skew.of(loader.dataset, self._client, self._clients, self._seed))


def _from_file(partition: FromFile, dataset: Any, clients: int, seed: int) -> tuple[list[Tensor], list[Tensor] | None]:
    """A saved partition counts what is divided, or the whole data set, of which a DataModule may train on a subset."""
    items, positions = _base_positions(dataset)
    if partition.items() == len(dataset):
        items, positions = len(dataset), torch.arange(len(dataset))
    place = torch.full((items,), -1, dtype=torch.int64)
    place[positions] = torch.arange(len(positions))
    parts, held = partition.split(items, None, clients, seed), None
    pair = partition.held_out(parts)
    if pair is not None:
        parts, held = pair

    def inside(part: Tensor) -> Tensor:
        return place[part][place[part] >= 0].sort().values

    return [inside(part) for part in parts], None if held is None else [inside(part) for part in held]


def _base_positions(dataset: Any) -> tuple[int, Tensor]:
    """Items of the data set under any subsets, and the position there of each item."""
    positions = torch.arange(len(dataset))
    while isinstance(dataset, Subset):
        positions, dataset = torch.as_tensor(dataset.indices)[positions], dataset.dataset
    return len(dataset), positions


def _labels(dataset: Any, needed: bool) -> Tensor | None:
    try:
        return labels_of(dataset)
    except (TypeError, ValueError):
        if needed:
            raise
        return None
