"""An order of items that can be resumed in the middle of an epoch, as the sampler stage of the train loader's path."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from framework.loaders.reindexing import Reindexable, kind, rebuild, with_dataset
from framework.loaders.stages import Stage, World
from framework.seeding import derive, nth, seed_all

KNOWN = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)
"""Samplers of torch, which draw from torch's generators alone."""


class Position(NamedTuple):
    """Where training is.

    Attributes:
        seed: Seed of the order.
        epoch: Number of the epoch that is drawn.
        batch: Number of the next batch in it, the same on all ranks.
    """

    seed: int
    epoch: int
    batch: int = 0


class Drawn(NamedTuple):
    """What a worker fetches, and the seed of what it draws meanwhile.

    Attributes:
        seed: A seed in [0, 2^64).
        what: An index or a batch of them.
    """

    seed: int
    what: Any


class OrderedBatches(Sampler[Any]):
    """The batches of another sampler in an order that is a function of (seed, epoch), from any batch on.

    The whole order of an epoch is drawn at its start, with the generators of torch, numpy and Python and those that
    the samplers have of their own seeded from (seed, epoch); then they are as they were. So every way of sampling that
    hangs on them can be resumed: shuffled, weighted, in buckets, distributed. What is drawn while a batch is fetched,
    such as augmentation, is seeded from (seed, rank, epoch, batch), here or, by a :class:`Drawn`, in a worker.

    Args:
        sampler: Gives the batches of an epoch, or single indices where the loader makes no batches. Needs a length.
        rank: Number of this process.
        in_workers: Whether items are fetched in other processes.

    Attributes:
        next: Where the next pass begins.
        running: Where the last pass began.
    """

    def __init__(self, sampler: Any, rank: int = 0, in_workers: bool = False) -> None:
        self.wrapped, self.rank, self.in_workers = sampler, rank, in_workers
        self.next = self.running = Position(0, 0)

    @property
    def sampler(self) -> OrderedBatches:
        """Itself: under this name Lightning looks for a ``set_epoch``."""
        return self

    @property
    def batch_size(self) -> int | None:
        """Items per batch, where the wrapped sampler says so."""
        return getattr(self.wrapped, "batch_size", None)

    def __len__(self) -> int:
        return len(self.wrapped)

    def start(self, position: Position) -> None:
        """Say where the next pass begins."""
        self.next = position

    def start_epoch(self, seed: int, epoch: int) -> None:
        """Say which epoch the next pass draws, from its first batch on; see :func:`framework.seeding.seed_epoch`."""
        self.next = Position(seed, epoch)

    def set_epoch(self, epoch: int) -> None:
        """Lightning's way of saying it, between a pass that has begun and the next."""
        self.next = Position(self.next.seed, epoch)

    def __iter__(self) -> Iterator[Any]:
        self.running = self.next
        order = self.draw(self.running.seed, self.running.epoch)
        return self._pass(order, *self.running)

    def _pass(self, order: list[Any], seed: int, epoch: int, first: int) -> Iterator[Any]:
        base = derive(seed, "fetch", self.rank, epoch)
        for batch in range(first, len(order)):
            drawn = nth(base, batch)
            if self.in_workers:
                yield Drawn(drawn, order[batch])
            else:
                seed_all(drawn)  # the item is fetched in this process, right after this line
                yield order[batch]

    def draw(self, seed: int, epoch: int) -> list[Any]:
        """All batches of an epoch.

        Args:
            seed: Seed of the order, the same on all ranks.
            epoch: Which epoch.
        """
        with _seeded(derive(seed, "order", epoch)):
            for sampler in _chain(self.wrapped):
                set_epoch = getattr(sampler, "set_epoch", None)
                if callable(set_epoch):
                    set_epoch(epoch)
                generator = getattr(sampler, "generator", None)
                if isinstance(generator, torch.Generator):
                    generator.manual_seed(derive(seed, "generator", epoch))
            return list(islice(self.wrapped, len(self)))


class _RankBatches(OrderedBatches, DistributedSampler[Any]):
    """The same under a class that tells Lightning that each rank has its share already."""

    def __init__(self, sampler: Any, rank: int = 0, in_workers: bool = False) -> None:
        OrderedBatches.__init__(self, sampler, rank, in_workers)


class SeededData(Dataset[Any]):
    """A data set in a worker: what an item or a batch draws while it is fetched hangs on its :class:`Drawn` alone.

    Attributes and methods of the data set are its own, too.

    Args:
        data: A map-style data set.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        return self.data[_unwrapped(index)]

    def __getitems__(self, indices: Any) -> Any:
        indices = _unwrapped(indices)
        many = getattr(self.data, "__getitems__", None)
        return [self.data[index] for index in indices] if many is None else many(indices)

    def __getattr__(self, name: str) -> Any:
        if name == "data" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # while it is unpickled, and what Python asks of every object
        return getattr(self.data, name)


class ResumableOrder(Stage):
    """The sampler stage that makes the order of items resumable; it gives way to any other sampler stage.

    Args:
        prepare: What the trainer would do to the loader afterwards, such as a ``DistributedSampler``; from loader to
            loader. None for nothing.
        report: Called with a sentence where the data cannot be honoured. None raises it.
        limits: Called with the facts of each loader that was built: raises if a resumed run does not fit them.

    Attributes:
        order: The batches of the last loader; None before there is one, or if it cannot be honoured.
        facts: What has to be the same for a position in it to mean the same.
        position: Where training is; what the next loader begins with.
    """

    slot = "sampler"
    yields = True
    optional = True

    def __init__(
        self,
        prepare: Callable[[DataLoader[Any]], DataLoader[Any]] | None = None,
        report: Callable[[str], None] | None = None,
        limits: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.prepare, self.report, self.limits = prepare, report, limits
        self.order: OrderedBatches | None = None
        self.facts: dict[str, Any] = {}
        self.position = Position(0, 0)

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled DataModule does not take the trainer along, which these three know.
        return vars(self) | {"prepare": None, "report": None, "limits": None, "order": None}

    def start(self, position: Position) -> None:
        """Say where the next pass begins, whichever loader that is over."""
        self.position = position
        if self.order is not None:
            self.order.start(position)

    def apply(self, loader: DataLoader[Any], world: World) -> DataLoader[Any]:
        self.order = None
        reason = unfit(loader, world)
        if reason:
            self.refuse(reason)
            return loader
        ready = loader if self.prepare is None else self.prepare(loader)
        batched = ready.batch_sampler is not None
        cls = OrderedBatches if batched or not world.splits else _RankBatches
        order = cls(ready.batch_sampler if batched else ready.sampler, world.rank, ready.num_workers > 0)
        if not _follows_seeds(order):
            self.refuse(f"{kind(order.wrapped)} draws by generators of its own, which no seed of ours reaches")
            return loader
        self.facts = facts(ready, order, world)
        if self.limits is not None:
            self.limits(self.facts)
        if order.in_workers:
            ready = with_dataset(ready, SeededData(ready.dataset))
        new = rebuild(ready, batch_sampler=order) if batched else rebuild(ready, sampler=order)
        if world.splits and batched:
            # Lightning leaves a loader with a DistributedSampler alone; batches still come from batch_sampler.
            new.__dict__["sampler"] = DistributedSampler(new.dataset, world.size, world.rank)
        order.start(self.position)
        self.order = order
        return new

    def refuse(self, reason: str) -> None:
        if self.report is None:
            raise ValueError(f"the order of the train data cannot be resumed: {reason}")
        self.report(reason)


def facts(loader: DataLoader[Any], order: OrderedBatches, world: World) -> dict[str, Any]:
    """What has to be the same for a position in an epoch of a loader to mean the same."""
    return {
        "world_size": world.size,
        "items": len(loader.dataset),  # type: ignore[arg-type]
        "batch_size": order.batch_size,
        "batches": len(order),
    }


def unfit(loader: Any, world: World = World()) -> str:  # noqa: B008
    """Why the order of a loader cannot be resumed; empty if it can."""
    try:
        rebuild(loader)
    except TypeError as error:
        return str(error)
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    try:
        len(sampler)
    except (TypeError, ValueError, NotImplementedError):
        return f"{kind(sampler)} has no length, so where an epoch ends is not known"
    if world.splits and "dataset" not in inspect.signature(type(loader).__init__).parameters:
        return f"{kind(loader)}.__init__ has no argument dataset, by which each process would get its share"
    return ""


def _follows_seeds(order: OrderedBatches) -> bool:
    """Whether equal seeds give equal batches; tried out where a sampler is not one that is known to."""
    chain = list(_chain(order.wrapped))
    known = all(type(each) in (BatchSampler, *KNOWN) or isinstance(each, Reindexable) for each in chain)
    return known or _plain(order.draw(0, 0)) == _plain(order.draw(0, 0))


def _plain(batches: list[Any]) -> list[Any]:
    return [batch.tolist() if hasattr(batch, "tolist") else batch for batch in batches]


def _chain(sampler: Any) -> Iterator[Any]:
    """A sampler and what it takes its items from."""
    seen: list[Any] = []
    while sampler is not None and not any(sampler is each for each in seen):
        seen.append(sampler)
        yield sampler
        # Lightning's wrapper of a sampler for several ranks keeps it in a data set.
        wrapped = getattr(sampler, "dataset", None) if isinstance(sampler, DistributedSampler) else None
        sampler = getattr(wrapped, "_sampler", None) or getattr(sampler, "sampler", None)


def _unwrapped(index: Any) -> Any:
    if isinstance(index, Drawn):
        seed_all(index.seed)
        return index.what
    return index


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generators of torch (CPU), numpy and Python, seeded for a while."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
