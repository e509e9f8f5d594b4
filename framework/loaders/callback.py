"""The base of callbacks that put a stage on the train loader's path."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.loaders.path import TrainPath
from framework.loaders.reindexing import kind
from framework.loaders.stages import Stage


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
        raise TypeError(f"{kind(self)} has no stage: pass one, or override make_stage")

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
