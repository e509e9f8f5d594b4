"""Poisson batches, as the sampler stage of the train loader's path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from framework.loaders.reindexing import kind, rebuild, reindex
from framework.loaders.stages import Stage, World
from framework.privacy.pieces import PieceCollate
from framework.privacy.randomness import generator


def steps_per_epoch(items: int, batch_size: int) -> int:
    """Steps of one epoch: ``ceil(items / batch_size)``, as many as a loader without privacy makes.

    Args:
        items: Number of examples, at least 1.
        batch_size: Expected size of a batch, at least 1.
    """
    return math.ceil(items / batch_size)


class PoissonSampler(Sampler[list[int]]):
    """Batches that hold each item with the same probability, independently of each other.

    What the batch of a step holds depends on (seed, step) alone, so a resumed run goes on where it was. With several
    processes the batch is drawn once, the same everywhere, and dealt out: together they train on what one would.

    Where nothing is drawn for this process, its batch is the item 0, so that no module has to cope with an empty
    batch; :meth:`size` says that it counts for nothing.

    Args:
        items: Number of items, at least 1.
        batch_size: Expected size of a batch, over all processes.
        world: Which process this is.

    Attributes:
        seed: Seed of all draws.
        position: Number of the step that the next pass begins with.
    """

    def __init__(self, items: int, batch_size: int, world: World = World()) -> None:  # noqa: B008
        self.items, self.batch_size, self.world = items, batch_size, world
        self.rate = batch_size / items
        self.seed = self.position = 0
        self._sizes: dict[int, int] = {}  # of what has been handed out and not been trained on yet

    def __len__(self) -> int:
        return steps_per_epoch(self.items, self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.position, self.position + len(self)):
            drawn = self.draw(step)
            self._sizes[step] = len(drawn)
            yield drawn or [0]

    def start(self, seed: int, position: int) -> None:
        """Say what the next pass draws, and that all steps before it are done.

        Args:
            seed: Seed of all draws, the same in all processes.
            position: Number of the pass's first step.
        """
        if seed != self.seed:
            self._sizes.clear()
        self._sizes.pop(position - 1, None)
        self.seed, self.position = seed, position

    def size(self, step: int) -> int:
        """Number of items of a step on this process.

        Args:
            step: Number of the step, counted from the first of all.
        """
        known = self._sizes.get(step)
        return len(self.draw(step)) if known is None else known

    def draw(self, step: int) -> list[int]:
        """The items of a step on this process.

        Args:
            step: Number of the step, counted from the first of all.

        Returns:
            Their indices, ascending; none if nothing was drawn.
        """
        chance = torch.rand(self.items, generator=generator(self.seed, "poisson", step), dtype=torch.float64)
        drawn = (chance < self.rate).nonzero().flatten()
        return drawn[self.world.rank :: self.world.size].tolist()


class PoissonBatches(Stage):
    """The sampler stage that makes Poisson batches.

    Every item is in a batch with probability ``batch_size / items``, exactly, whether or not the one divides the other.

    Args:
        batch_size: Expected size of a batch, over all processes; None for the loader's own times the number of
            processes.
        max_physical_batch: The most items that are in memory at a time; larger batches come as :class:`Pieces`.

    Attributes:
        sampler: The sampler that the last loader got; None before there is one.
    """

    slot = "sampler"
    splits_ranks = True

    def __init__(self, batch_size: int | None = None, max_physical_batch: int | None = None) -> None:
        self.batch_size, self.max_physical_batch = batch_size, max_physical_batch
        self.sampler: PoissonSampler | None = None
        self.seed = self.position = 0

    def apply(self, loader: DataLoader[Any], world: World) -> DataLoader[Any]:
        loader = _uniform(loader)
        items = len(loader.dataset)  # type: ignore[arg-type]
        size = self.expected_size(loader, world)
        self.sampler = PoissonSampler(items, size, world)
        self.start(self.seed, self.position)
        new = rebuild(loader, batch_sampler=self.sampler)
        if self.max_physical_batch is not None:
            new.__dict__["collate_fn"] = PieceCollate(loader.collate_fn, self.max_physical_batch)
        return new

    def expected_size(self, loader: DataLoader[Any], world: World) -> int:
        """Expected size of a batch that a loader will get.

        Args:
            loader: The loader before this stage.
            world: The processes.

        Raises:
            ValueError: If it is unknown, below 1, or more than there are items.
        """
        items = len(_uniform(loader).dataset)  # type: ignore[arg-type]
        size = self.batch_size
        if size is None:
            own = getattr(loader.batch_sampler, "batch_size", loader.batch_size)
            if not isinstance(own, int):
                raise ValueError(f"batch_size must be given: {kind(loader.batch_sampler)} of the train loader has none")
            size = own * world.size
        if not 1 <= size <= items:
            raise ValueError(f"batch_size must be in [1, {items}], the number of train examples, got {size}")
        return size

    def start(self, seed: int, position: int) -> None:
        """Say what the next pass over the loader draws, whichever loader that is.

        Args:
            seed: Seed of all draws, the same in all processes.
            position: Number of the pass's first step.
        """
        self.seed, self.position = seed, position
        if self.sampler is not None:
            self.sampler.start(seed, position)


def _uniform(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The loader, if its own sampling shows every item equally often; what a random subset leaves out is left out."""
    loader = rebuild(loader)  # refuses what cannot be drawn from by index
    if loader.batch_sampler is None:
        raise ValueError(
            f"{kind(loader)} makes no batches (batch_size=None, as for one graph that is data set and batch): "
            "private training needs a batch of examples that can be drawn one by one"
        )
    if _of_graphs(loader):
        raise ValueError(
            f"{kind(loader)} makes batches of graphs: the examples of such a batch are not along its first dimension, "
            "so no gradient per example can be taken"
        )
    sampler: Any = loader.batch_sampler
    while isinstance(sampler, BatchSampler):
        sampler = sampler.sampler
    if type(sampler) is SubsetRandomSampler:
        return reindex(loader, range(len(sampler)))
    whole = type(sampler) in (SequentialSampler, DistributedSampler, UniformWithReplacementSampler) or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    )
    if not whole and not hasattr(sampler, "reindex"):  # one that can follow its data shows every item once
        raise ValueError(
            f"{kind(sampler)} of the train loader draws examples by a rule of its own; private training draws each "
            "with the same probability, so let the loader only shuffle"
        )
    return loader


def _of_graphs(loader: DataLoader[Any]) -> bool:
    owners = (type(loader), type(loader.collate_fn))
    return any(owner.__module__.startswith("torch_geometric") for owner in owners)


def batch_items(loader: DataLoader[Any], indices: Sequence[int] | Tensor) -> Any:
    """A batch of chosen items, made as the loader makes its own.

    Args:
        loader: A map-style loader.
        indices: Positions in its data.
    """
    chosen, data = [int(i) for i in indices], loader.dataset
    many = getattr(data, "__getitems__", None)
    return loader.collate_fn([data[i] for i in chosen] if many is None else many(chosen))
