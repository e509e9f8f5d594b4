"""The one place that rebuilds a DataLoader: the train loader's single path, and re-indexing of any map-style loader.

The train loader goes through stages in a fixed order, whoever registers them and when::

    where it comes from -> partition -> pool -> sampler -> Trainer
    (DataModule, module,   (a client's  (what active  (Poisson batches for
     loader given to fit)   share)       learning      privacy, an order that
                                         bought)       can be resumed)

Each stage turns a loader into a loader and sees only what the stage before it left: a pool of a partition indexes the
partition. A callback registers its stage in ``setup`` (or derives from :class:`StageCallback`), a federated client
calls ``TrainPath.on(datamodule).add(Partition(indices))``; both work under a stock ``lightning.Trainer`` on code that
has never heard of us, because the path wraps the owner's ``train_dataloader`` on the instance.
"""

from __future__ import annotations

import copy
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

T = TypeVar("T")

SLOTS = ("partition", "pool", "sampler")
"""The stages of the path, first to last."""

LABEL_NAMES = ("targets", "labels", "label", "y")
"""Attributes, columns and keys under which labels are looked for, in this order."""


# ---------------------------------------------------------------------------------------------------------------------
# Re-indexing a loader


@runtime_checkable
class Reindexable(Protocol):
    """A sampler or batch sampler that knows how to follow its data set when items are taken out of it."""

    def reindex(self, dataset: Any, indices: Sequence[int]) -> Any:
        """The same sampler for ``dataset``, whose item ``i`` was item ``indices[i]`` until now."""
        ...


def reindex(
    loader: DataLoader[Any],
    indices: Tensor | Iterable[int],
    *,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
) -> DataLoader[Any]:
    """The same loader over some of its items.

    Kept: the class and every attribute of the loader, batch size, ``drop_last``, workers, ``collate_fn``, pinning,
    timeout, ``worker_init_fn``, multiprocessing context, prefetching, generator, and the way of sampling: in order,
    shuffled, weighted (the kept items keep their weights), distributed, or a sampler with a method ``reindex``.
    A ``SubsetRandomSampler`` counts as part of the data: ``indices`` are positions among the items it lets through.

    Args:
        loader: Any map-style loader.
        indices: Positions in ``[0, items)`` in the order wanted, or a boolean mask of shape ``(items,)``. Never empty.
        shuffle: True or False replaces the way of sampling by a shuffled or an ordered one; None keeps it.
        drop_last: Replaces the loader's own if not None; needs a loader that makes its batches by size.

    Returns:
        A new loader; the one given is not changed.

    Raises:
        TypeError: If the loader cannot be re-indexed: iterable or unsized data, or a sampler that cannot follow.
        ValueError: If ``indices`` are empty or out of range.
    """
    dataset = _map_style(loader)
    sampler = _innermost(loader)
    batch_sampler: Any = loader.batch_sampler
    own_batches = batch_sampler is not None and not _is_plain(batch_sampler, BatchSampler)
    for field, value in (("shuffle", shuffle), ("drop_last", drop_last)):
        if own_batches and value is not None:
            raise TypeError(f"{field} cannot be set: {_name(batch_sampler)} makes the loader's batches by its own rule")
    if _is_plain(sampler, SubsetRandomSampler):
        kept = [int(sampler.indices[i]) for i in _checked(indices, len(sampler))]
    else:
        kept = _checked(indices, len(dataset))

    # A Subset of a Subset is flattened: items are reached in one step however many stages there are.
    if type(dataset) is Subset:
        subset: Subset[Any] = Subset(dataset.dataset, [dataset.indices[i] for i in kept])
    else:
        subset = Subset(dataset, kept)

    if own_batches and isinstance(batch_sampler, Reindexable):
        return rebuild(loader, dataset=subset, batch_sampler=batch_sampler.reindex(subset, kept))
    if shuffle is None:
        new = _follow(sampler, subset, kept)
    else:
        new = RandomSampler(subset, generator=loader.generator) if shuffle else SequentialSampler(subset)
    if batch_sampler is None and isinstance(loader.sampler, BatchSampler):
        # batch_size=None: lists of indices go to the data set in one call; they are made as before.
        new = _replaced(_plain_batches(loader, loader.sampler), sampler=new)
    return rebuild(loader, dataset=subset, sampler=new, drop_last=drop_last)


def rebuild(
    loader: DataLoader[Any],
    *,
    dataset: Any = None,
    sampler: Any = None,
    batch_sampler: Any = None,
    drop_last: bool | None = None,
) -> DataLoader[Any]:
    """The same loader with another data set, sampler or batch sampler; everything else is kept.

    The loader is copied, not constructed anew, so a subclass stays what it is whatever its ``__init__`` asks for or
    drops (torch_geometric's builds its own ``collate_fn``).

    Args:
        loader: Any map-style loader.
        dataset: New data set. Needs a ``sampler`` or ``batch_sampler`` beside it, because the old one counts the old
            items.
        sampler: New order of items; the batches are made as before, of the same size.
        batch_sampler: New batches of indices, instead of ``sampler``.
        drop_last: Replaces the loader's own if not None.

    Returns:
        A new loader without iterator or worker processes; the one given is not changed.

    Raises:
        TypeError: If the loader is not map-style, or ``sampler`` is given and its batches do not come from a sampler.
        ValueError: If the arguments do not fit together.
    """
    old = _map_style(loader)
    if sampler is not None and batch_sampler is not None:
        raise ValueError("give sampler or batch_sampler, not both")
    if dataset is not None and sampler is None and batch_sampler is None:
        raise ValueError("a new dataset needs a new sampler or batch_sampler: the old one counts the old items")
    state: dict[str, Any] = {"_iterator": None, "_IterableDataset_len_called": None}
    if dataset is not None:
        state["dataset"] = dataset
    if batch_sampler is not None:
        if drop_last is not None:
            raise ValueError("drop_last does not go with batch_sampler, which makes its own batches")
        state |= {"batch_sampler": batch_sampler, "batch_size": None, "drop_last": False}
        # Not iterated, but others read it: Lightning, to see whether the loader is shuffled or distributed.
        state["sampler"] = SequentialSampler(old if dataset is None else dataset)
    elif sampler is not None:
        state["sampler"] = sampler
        if loader.batch_sampler is not None:
            batches = _plain_batches(loader, loader.batch_sampler)
            drop_last = batches.drop_last if drop_last is None else drop_last
            state["batch_sampler"] = _replaced(batches, sampler=sampler, drop_last=drop_last)
            state["batch_size"] = batches.batch_size
    elif drop_last is not None and loader.batch_sampler is not None:
        batches = _plain_batches(loader, loader.batch_sampler)
        state["batch_sampler"] = _replaced(batches, drop_last=drop_last)
    if drop_last is not None:
        if state.get("batch_sampler", loader.batch_sampler) is None:
            raise ValueError("drop_last needs a loader with a batch_size")
        state["drop_last"] = drop_last
    new = copy.copy(loader)
    # Lightning's notes on how the loader was made would let it rebuild the old one; without them it reads attributes.
    for note in ("__pl_saved_args", "__pl_saved_kwargs", "__pl_saved_arg_names", "__pl_saved_default_kwargs"):
        new.__dict__.pop(note, None)
    new.__dict__.pop("__dataset", None)
    new.__dict__.update(state)  # not setattr: torch forbids it after __init__, since iterators would not see it
    return new


def _map_style(loader: object) -> Any:
    """The data set of a loader whose items can be chosen by index; anything else is refused by name."""
    if not isinstance(loader, DataLoader):
        raise TypeError(f"a torch.utils.data.DataLoader is needed to choose its items by index, got {_name(loader)}")
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{_name(dataset)} is an IterableDataset: its items cannot be chosen by index; "
            "use a map-style data set, with __getitem__ and __len__"
        )
    missing = [method for method in ("__getitem__", "__len__") if not hasattr(dataset, method)]
    if missing:
        raise TypeError(f"{_name(dataset)} has no {' and no '.join(missing)}, which choosing its items by index needs")
    return dataset


def _checked(indices: Tensor | Iterable[int], count: int) -> list[int]:
    """Indices as ints in ``[0, count)``, from any iterable of ints or from a boolean mask."""
    flat = torch.as_tensor(indices if isinstance(indices, Tensor) or hasattr(indices, "__array__") else list(indices))
    if flat.numel() == 0:
        raise ValueError("indices must not be empty: nothing would be left to train on")
    if flat.ndim != 1 or flat.is_floating_point() or flat.is_complex():
        raise ValueError(f"indices must be one-dimensional integers, got {flat.dtype} of shape {tuple(flat.shape)}")
    if flat.dtype == torch.bool:
        if len(flat) != count:
            raise ValueError(f"indices as a mask must have one entry per item: {len(flat)} entries for {count} items")
        if not flat.any():
            raise ValueError("indices must not be empty: the mask has no True entry")
        flat = flat.nonzero().squeeze(1)
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high >= count:
        raise ValueError(f"indices must be in [0, {count}), got {low if low < 0 else high}")
    return [int(i) for i in flat.tolist()]


def _innermost(loader: DataLoader[Any]) -> Any:
    """The sampler that chooses single items, under any plain batch samplers."""
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    while _is_plain(sampler, BatchSampler):
        sampler = sampler.sampler
    return sampler


def _follow(sampler: Any, dataset: Any, kept: list[int]) -> Any:
    """The sampler for ``dataset``, which holds the old items ``kept``."""
    if isinstance(sampler, Reindexable):
        return sampler.reindex(dataset, kept)
    if _is_plain(sampler, SubsetRandomSampler):
        return RandomSampler(dataset, generator=sampler.generator)
    if _is_plain(sampler, WeightedRandomSampler):
        whole = sampler.num_samples == len(sampler.weights)  # "as many as there are items" follows their number
        size = len(kept) if whole else sampler.num_samples
        return _replaced(sampler, weights=sampler.weights[torch.tensor(kept)], num_samples=size)
    if _is_plain(sampler, RandomSampler):
        whole = sampler._num_samples == len(sampler.data_source)
        return _replaced(sampler, data_source=dataset, _num_samples=None if whole else sampler._num_samples)
    if _is_plain(sampler, SequentialSampler):
        return _replaced(sampler, data_source=dataset)
    if _is_plain(sampler, DistributedSampler):
        new: DistributedSampler[Any] = DistributedSampler(
            dataset, sampler.num_replicas, sampler.rank, sampler.shuffle, sampler.seed, sampler.drop_last
        )
        new.set_epoch(sampler.epoch)
        return new
    raise TypeError(
        f"{_name(sampler)} cannot be re-indexed: it would go on counting the items that were there before; "
        "give it a method reindex(dataset, indices) that returns the sampler for the new data set, "
        "or let the loader shuffle by itself"
    )


def _plain_batches(loader: DataLoader[Any], batch_sampler: Any) -> BatchSampler:
    if isinstance(batch_sampler, BatchSampler) and _is_plain(batch_sampler, BatchSampler):
        return batch_sampler
    raise TypeError(
        f"{_name(batch_sampler)} cannot be re-indexed: it makes the batches of {_name(loader)} by a rule of its own; "
        "give it a method reindex(dataset, indices) that returns the batch sampler for the new data set, "
        "or let the loader make batches by batch_size"
    )


def _is_plain(sampler: Any, known: type) -> bool:
    """Whether a sampler is of a known class, or of a subclass of it that iterates as that class does."""
    return isinstance(sampler, known) and all(
        getattr(type(sampler), name) is getattr(known, name) for name in ("__iter__", "__len__")
    )


def _replaced(original: T, **attributes: Any) -> T:
    new = copy.copy(original)
    new.__dict__.update(attributes)
    return new


def _name(thing: Any) -> str:
    return type(thing).__name__


# ---------------------------------------------------------------------------------------------------------------------
# The path of the train loader


class World(NamedTuple):
    """Which process this is.

    Attributes:
        rank: Number of this process, in ``[0, size)``.
        size: Number of processes that train together.
    """

    rank: int = 0
    size: int = 1


class Stage(ABC):
    """One step of the train loader's path.

    Attributes:
        slot: Its place on the path, one of ``partition``, ``pool``, ``sampler``; at most one stage per slot.
        changes: Whether its result changes during training; it then needs ``reload_dataloaders_every_n_epochs=1``.
        splits_ranks: Whether it gives each process its own items. Lightning then adds no ``DistributedSampler``.
        version: Counts the changes; whoever changes what the stage yields adds one. A trainer that would train an epoch
            on an older version is stopped (see :meth:`TrainPath.verify`).
    """

    slot: ClassVar[str]
    changes: ClassVar[bool] = False
    splits_ranks: ClassVar[bool] = False
    version: int = 0

    @abstractmethod
    def apply(self, loader: DataLoader[Any], world: World) -> DataLoader[Any]:
        """The loader that the next stage sees; the one given must stay as it is."""


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


class TrainPath:
    """The stages between where train batches come from and the Trainer.

    Get it by :meth:`on` or :meth:`of`, which give the same path for the same owner however often they are called.
    It takes itself off the owner when its last stage is removed.
    """

    def __init__(self, owner: Any, hook: str) -> None:
        self._owner, self._hook = owner, hook
        self._stages: dict[str, Stage] = {}
        self._wrapper: _Wrapper | None = None
        self._built: DataLoader[Any] | None = None
        self._versions: dict[str, int] = {}
        self._source_trainer: Trainer | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled DataModule keeps its stages, not a loader or a trainer of the process it comes from.
        return vars(self) | {"_built": None, "_versions": {}, "_source_trainer": None}

    @classmethod
    def on(cls, owner: LightningDataModule | LightningModule) -> TrainPath:
        """The path of whatever has a ``train_dataloader``: a DataModule, or a module that brings its own data.

        Args:
            owner: The DataModule or LightningModule.

        Returns:
            Its path, new and empty if it has none.
        """
        return cls._find(owner, "train_dataloader")

    @classmethod
    def of(cls, trainer: Trainer) -> TrainPath:
        """The path of what a trainer is about to fit on; callable from a callback's ``setup`` on.

        Args:
            trainer: A stock Lightning trainer inside ``fit``. Data may come from a DataModule, from the module itself,
                or as a loader given to ``fit``.

        Returns:
            The path, new and empty if there is none.

        Raises:
            RuntimeError: If this version of Lightning keeps the loader elsewhere, or no data are attached.
        """
        source = getattr(trainer.fit_loop, "_data_source", None)
        owner = getattr(source, "instance", None)
        if owner is None:
            raise RuntimeError(
                "the trainer has no train data yet: register stages in a callback's setup, "
                "and hand the data over as a LightningDataModule"
            )
        if isinstance(owner, (LightningDataModule, LightningModule)):
            path = cls.on(owner)
        else:  # a loader given to fit: asked for by the source itself at each reload
            path = cls._find(source, "dataloader")
            path._source_trainer = trainer
        return path

    @classmethod
    def _find(cls, owner: Any, hook: str) -> TrainPath:
        layer = vars(owner).get(hook)
        while layer is not None:  # others may have wrapped the hook after us
            if isinstance(layer, _Wrapper):
                return layer.path
            layer = getattr(layer, "__wrapped__", None)
        return cls(owner, hook)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The registered stages, in the order in which they are applied."""
        return tuple(self._stages[slot] for slot in SLOTS if slot in self._stages)

    def add(self, stage: Stage) -> TrainPath:
        """Register a stage; its slot decides its place. Adding the same stage again changes nothing.

        Args:
            stage: The stage.

        Returns:
            The path itself.

        Raises:
            ValueError: If the slot is unknown, taken by another stage, or the trainer's reload setting would keep the
                old data after a change.
        """
        if stage.slot not in SLOTS:
            raise ValueError(f"slot of {_name(stage)} must be one of {', '.join(SLOTS)}, got {stage.slot!r}")
        taken = self._stages.get(stage.slot, stage)
        if taken is not stage:
            raise ValueError(
                f"the {stage.slot} stage of the train loader is taken by {_name(taken)}; {_name(stage)} cannot join it"
            )
        self._check_reload(stage)
        self._stages[stage.slot] = stage
        if self._wrapper is None:
            self._wrapper = _Wrapper(self, self._owner, self._hook)
        return self

    def remove(self, stage: Stage) -> None:
        """Take a stage off; the owner is as it was once none is left. Removing an absent stage changes nothing."""
        if self._stages.get(stage.slot) is not stage:
            return
        del self._stages[stage.slot]
        if not self._stages and self._wrapper is not None and self._wrapper.unwrap():
            self._wrapper = None

    def build(self, before: str | None = None) -> DataLoader[Any]:
        """Ask for the loader and take it through the stages.

        Args:
            before: Stop in front of this slot: ``build(before="pool").dataset`` is what a pool may choose from. None
                goes the whole way.

        Returns:
            The loader.

        Raises:
            TypeError: If the owner gives something other than one map-style ``DataLoader``.
        """
        if before is not None and before not in SLOTS:
            raise ValueError(f"before must be one of {', '.join(SLOTS)}, got {before!r}")
        source: Callable[[], Any] = (
            getattr(self._owner, self._hook) if self._wrapper is None else self._wrapper.previous
        )
        return self._through(source(), before)

    def verify(self, trainer: Trainer) -> None:
        """Check that a trainer in ``fit`` really trains on what the path built, in its present version.

        Args:
            trainer: The trainer, at the start of an epoch or later.

        Raises:
            RuntimeError: If the trainer trains on another loader, so that stages are missing, or on an older version.
        """
        names = ", ".join(f"{stage.slot} ({_name(stage)})" for stage in self.stages)
        loader: Any = trainer.train_dataloader
        if self._built is None or getattr(loader, "dataset", None) is not self._built.dataset:
            raise RuntimeError(
                f"the trainer trains on a loader that has not gone through the stages {names}: "
                "something replaced it after the path, or the stages were registered after the loader was made"
            )
        if "sampler" in self._stages and loader.batch_sampler is not self._built.batch_sampler:
            raise RuntimeError(
                f"the trainer has replaced the sampler that {_name(self._stages['sampler'])} gave its train loader; "
                "check overfit_batches, use_distributed_sampler and the strategy"
            )
        for stage in self.stages:
            if self._versions.get(stage.slot) != stage.version:
                raise RuntimeError(
                    f"the {stage.slot} stage ({_name(stage)}) has changed since the train loader was made: "
                    "this epoch would train on the old data; set trainer.reload_dataloaders_every_n_epochs=1 and "
                    "change it before the epoch starts"
                )

    @property
    def _trainer(self) -> Trainer | None:
        """The trainer that is fitting on the owner's data just now."""
        owner = self._owner
        trainer = owner._trainer if isinstance(owner, LightningModule) else getattr(owner, "trainer", None)
        trainer = trainer or self._source_trainer
        if not isinstance(trainer, Trainer) or trainer.state.fn != TrainerFn.FITTING:
            return None
        return trainer if trainer.state.status == TrainerStatus.RUNNING else None

    def _check_reload(self, stage: Stage) -> None:
        trainer = self._trainer
        reload = getattr(trainer, "reload_dataloaders_every_n_epochs", 1)  # Lightning sets it without declaring it
        if stage.changes and reload != 1:
            raise ValueError(
                f"trainer.reload_dataloaders_every_n_epochs must be 1 because {_name(stage)} changes the train data "
                f"between epochs, got {reload}: training would go on with the old data"
            )

    def _through(self, loader: Any, before: str | None = None) -> DataLoader[Any]:
        if not isinstance(loader, DataLoader):
            raise TypeError(
                f"{_name(self._owner)}.{self._hook} gave a {_name(loader)}; the stages "
                f"{', '.join(self._stages)} need one torch.utils.data.DataLoader"
            )
        trainer = self._trainer
        world = World() if trainer is None else World(trainer.global_rank, trainer.world_size)
        end = len(SLOTS) if before is None else SLOTS.index(before)
        stages = [stage for stage in self.stages if SLOTS.index(stage.slot) < end]
        for stage in stages:
            self._check_reload(stage)  # once more: a stage added without a trainer meets it only now
            loader = stage.apply(loader, world)
        if before is None:
            if stages and trainer is not None:
                self._check_rebuildable(loader, trainer, world)
            if world.size > 1 and any(stage.splits_ranks for stage in stages):
                # Lightning leaves a loader with a DistributedSampler alone; batches still come from batch_sampler.
                marker: DistributedSampler[Any] = DistributedSampler(loader.dataset, world.size, world.rank)
                loader.__dict__["sampler"] = marker
            self._built = loader
            self._versions = {stage.slot: stage.version for stage in stages}
        return loader

    @staticmethod
    def _check_rebuildable(loader: DataLoader[Any], trainer: Trainer, world: World) -> None:
        """Refuse a class that Lightning would construct anew, for its DistributedSampler, over the whole data."""
        parameters = inspect.signature(type(loader).__init__).parameters.values()
        passes = any(p.name == "dataset" for p in parameters)
        if (world.size > 1 or getattr(trainer, "overfit_batches", 0) > 0) and not passes:
            raise TypeError(
                f"{_name(loader)}.__init__ has no argument dataset: with several processes or overfit_batches "
                "Lightning would rebuild it over all the data, without the stages of the train loader"
            )


class _Wrapper:
    """What stands in for the owner's hook: an object, not a closure, so that the owner still copies and pickles."""

    def __init__(self, path: TrainPath, owner: Any, hook: str) -> None:
        self.path, self.owner, self.hook = path, owner, hook
        self.replaced = vars(owner).get(hook)  # another wrapper on the instance, or None for the class's own method
        functools.update_wrapper(self, getattr(owner, hook), updated=())
        # Lightning asks through __wrapped__ whether the hook is overridden. An nn.Module would register nothing here.
        setattr(owner, hook, self)

    @property
    def previous(self) -> Callable[[], Any]:
        if self.replaced is not None:
            return self.replaced
        return getattr(type(self.owner), self.hook).__get__(self.owner)

    def __call__(self) -> DataLoader[Any]:
        return self.path._through(self.previous())

    def unwrap(self) -> bool:
        """Give the owner its hook back; False if somebody has wrapped it after us, and we stay as a pass-through."""
        if vars(self.owner).get(self.hook) is not self:
            return False
        if self.replaced is None:
            delattr(self.owner, self.hook)
        else:
            setattr(self.owner, self.hook, self.replaced)
        return True


class StageCallback(Callback):
    """Base of callbacks that put a stage on the train loader's path: registers, verifies each epoch, cleans up.

    Args:
        stage: The stage. A subclass may make it later, in :meth:`make_stage`.
    """

    def __init__(self, stage: Stage | None = None) -> None:
        self.stage = stage
        self._path: TrainPath | None = None

    def make_stage(self, path: TrainPath, trainer: Trainer, pl_module: LightningModule) -> Stage:
        """The stage to register; called once, after the DataModule's ``setup``.

        Args:
            path: The path that the stage will join; ``path.build(before=slot)`` is the loader that it will see.
            trainer: The trainer.
            pl_module: The module.

        Returns:
            The stage.

        Raises:
            TypeError: If no stage was given and the method is not overridden.
        """
        raise TypeError(f"{_name(self)} has no stage: pass one, or override make_stage")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._path = TrainPath.of(trainer)
            if self.stage is None:
                self.stage = self.make_stage(self._path, trainer, pl_module)
            self._path.add(self.stage)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._path is not None:
            self._path.verify(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()  # Lightning calls no teardown then, and the DataModule may be fitted again

    def _leave(self) -> None:
        if self._path is not None and self.stage is not None:
            self._path.remove(self.stage)
        self._path = None


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def labels_of(dataset: Any, field: str | int | None = None) -> Tensor:
    """The class of every item, without decoding the items.

    Looked for in this order: what a ``Subset`` or ``ConcatDataset`` is made of; the second tensor of a two-tensor
    ``TensorDataset``; an attribute ``targets``, ``labels``, ``label`` or ``y`` (data sets of torchvision
    and torch_geometric have one); a column of one of these names, for what has ``column_names`` (Hugging Face); the
    items of a plain list, which are in memory anyway.

    Args:
        dataset: A map-style data set.
        field: Position of the tensor, or name of the attribute, column or key, where the rules above do not decide.

    Returns:
        int64 classes, shape ``(items,)``; -1 stands for "no label" where a data set says so.

    Raises:
        TypeError: If the labels cannot be found without decoding the items.
        ValueError: If what was found is not one integer per item.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{_name(dataset)} is an IterableDataset: its labels cannot be known without running through it"
        )
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset, field)[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part, field) for part in dataset.datasets])
    found, where = _raw_labels(dataset, field)
    if isinstance(found, (list, tuple)) and found and isinstance(found[0], str):
        raise ValueError(f"labels of {_name(dataset)} must be integers, but {where} holds strings such as {found[0]!r}")
    labels = torch.stack(list(found)) if _tensors(found) else torch.as_tensor(found)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.shape != (len(dataset),) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels of {_name(dataset)} must be one integer per item, "
            f"but {where} holds {labels.dtype} of shape {tuple(labels.shape)} for {len(dataset)} items"
        )
    return labels.to(torch.int64)


def _raw_labels(dataset: Any, field: str | int | None) -> tuple[Any, str]:
    """Labels as the data set keeps them, and where they were."""
    if isinstance(dataset, TensorDataset):
        position = 1 if field is None and len(dataset.tensors) == 2 else field
        if not isinstance(position, int) or not -len(dataset.tensors) <= position < len(dataset.tensors):
            raise TypeError(
                f"labels of a TensorDataset of {len(dataset.tensors)} tensors are not known: "
                f"say which tensor by field, got {field!r}"
            )
        return dataset.tensors[position], f"tensor {position}"
    names = LABEL_NAMES if field is None else (field,)
    columns = getattr(dataset, "column_names", None)
    for name in names:
        attribute = getattr(dataset, name, None) if isinstance(name, str) else None
        if attribute is not None and not callable(attribute):
            return attribute, f"attribute {name}"
        if columns is not None and name in columns:
            column = dataset[name]  # decodes this column alone; newer versions give a lazy view of it
            return (column if isinstance(column, Tensor) else column[:]), f"column {name}"
    if isinstance(dataset, (list, tuple)) and dataset:
        return _listed(dataset, names, field), "the items"
    raise TypeError(
        f"{_name(dataset)} has no labels that can be read without decoding its items: "
        f"give it an attribute targets, or say by field where they are (looked for {', '.join(map(str, names))})"
    )


def _listed(items: Sequence[Any], names: Sequence[str | int], field: str | int | None) -> list[Any]:
    first = items[0]
    for name in names:
        if isinstance(first, dict) and name in first:
            return [item[name] for item in items]
        if isinstance(name, str) and hasattr(first, name):
            return [getattr(item, name) for item in items]
    if isinstance(first, (tuple, list)) and (isinstance(field, int) or (field is None and len(first) == 2)):
        return [item[1 if field is None else int(field)] for item in items]
    raise TypeError(
        f"items of type {_name(first)} have no labels under {', '.join(map(str, names))}; say by field where they are"
    )


def _tensors(found: Any) -> bool:
    return isinstance(found, (list, tuple)) and bool(found) and isinstance(found[0], Tensor)
