"""The path: stages registered on whatever gives the train loader, applied in their order, verified each epoch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch.utils.data import DataLoader, DistributedSampler

from framework.loaders.reindexing import kind
from framework.loaders.stages import SLOTS, Stage, World


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
        self._resampled = False  # the sampler stage has changed the loader, which an optional one need not
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

    def has(self, stage: Stage) -> bool:
        """Whether a stage is registered."""
        return self._stages.get(stage.slot) is stage

    def add(self, stage: Stage) -> TrainPath:
        """Register a stage; its slot decides its place. Adding the same stage again changes nothing.

        A stage that yields does not join, or leaves, where another wants the slot.

        Args:
            stage: The stage.

        Returns:
            The path itself.

        Raises:
            ValueError: If the slot is unknown, taken by another stage, or the trainer's reload setting would keep the
                old data after a change.
        """
        if stage.slot not in SLOTS:
            raise ValueError(f"slot of {kind(stage)} must be one of {', '.join(SLOTS)}, got {stage.slot!r}")
        taken = self._stages.get(stage.slot, stage)
        if taken is not stage and stage.yields:
            return self
        if taken is not stage and not taken.yields:
            raise ValueError(
                f"the {stage.slot} stage of the train loader is taken by {kind(taken)}; {kind(stage)} cannot join it"
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
        names = ", ".join(f"{stage.slot} ({kind(stage)})" for stage in self.stages)
        loader: Any = trainer.train_dataloader
        if self._built is None or getattr(loader, "dataset", None) is not self._built.dataset:
            raise RuntimeError(
                f"the trainer trains on a loader that has not gone through the stages {names}: "
                "something replaced it after the path, or the stages were registered after the loader was made"
            )
        if "sampler" in self._stages and self._resampled and loader.batch_sampler is not self._built.batch_sampler:
            raise RuntimeError(
                f"the trainer has replaced the sampler that {kind(self._stages['sampler'])} gave its train loader; "
                "check overfit_batches, use_distributed_sampler and the strategy"
            )
        for stage in self.stages:
            if self._versions.get(stage.slot) != stage.version:
                raise RuntimeError(
                    f"the {stage.slot} stage ({kind(stage)}) has changed since the train loader was made: "
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
                f"trainer.reload_dataloaders_every_n_epochs must be 1 because {kind(stage)} changes the train data "
                f"between epochs, got {reload}: training would go on with the old data"
            )

    def _through(self, loader: Any, before: str | None = None) -> Any:
        optional = all(stage.optional for stage in self.stages)
        if not isinstance(loader, DataLoader):
            reason = (
                f"{kind(self._owner)}.{self._hook} gave a {kind(loader)}; the stages "
                f"{', '.join(self._stages)} need one torch.utils.data.DataLoader"
            )
            if not optional or before is not None:
                raise TypeError(reason)
            if not getattr(loader, "resumes_itself", False):  # from the DataModule's state
                for stage in self.stages:
                    stage.refuse(reason)
            self._built = None
            return loader
        trainer = self._trainer
        world = World()
        if trainer is not None:
            world = World(trainer.global_rank, trainer.world_size, trainer._accelerator_connector.is_distributed)
        end = len(SLOTS) if before is None else SLOTS.index(before)
        stages = [stage for stage in self.stages if SLOTS.index(stage.slot) < end]
        for stage in stages:
            self._check_reload(stage)  # once more: a stage added without a trainer meets it only now
            given, loader = loader, stage.apply(loader, world)
            if before is None and stage.slot == "sampler":
                self._resampled = loader is not given
        if before is None:
            if not optional and trainer is not None:
                self._check_rebuildable(loader, trainer, world)
            splitting = [stage for stage in stages if stage.splits_ranks]
            if world.splits and splitting:
                if loader.batch_sampler is None:
                    raise TypeError(
                        f"{kind(splitting[0])} gives each process its own items and needs a loader that makes batches; "
                        f"{kind(self._owner)}.{self._hook} gave one with batch_size=None"
                    )
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
        if (world.splits or getattr(trainer, "overfit_batches", 0) > 0) and not passes:
            raise TypeError(
                f"{kind(loader)}.__init__ has no argument dataset: with several processes or overfit_batches "
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

    def __call__(self) -> Any:
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
