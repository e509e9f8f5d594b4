"""The callbacks that every run gets: its directory, its resolved configuration, its last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from framework import rundir
from framework.metrics_log import MetricsLog, NoRepeats

if TYPE_CHECKING:
    from framework.commands.train import FulguriteCLI


class LastCheckpoint(ModelCheckpoint):
    """Keep ``last.ckpt`` of the latest finished epoch.

    ``ModelCheckpoint(save_last=True)`` writes it only when the monitored metric improved, so a killed run would lose
    every epoch since its best one.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(
            dirpath, filename="last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
        )


class RunCallback(Callback):
    """Tie one run to its directory, and know when training has begun.

    Args:
        cli: The command line that owns the run.
    """

    def __init__(self, cli: FulguriteCLI) -> None:
        self.cli = cli
        self.started = False
        self.trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        directory = Path(trainer.strategy.broadcast(str(self.cli.directory)))
        if directory != self.cli.directory:  # only the first rank knows the number of the run
            self.cli.directory = directory
            vars(trainer)["_default_root_dir"] = str(directory)
            for logger in trainer.loggers:
                if isinstance(logger, MetricsLog):
                    logger.directory = directory

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.cli.place.continued:
            self.repeat_nothing(trainer)
        # A resumed EarlyStopping that had run out of patience would first let one more epoch train.
        if any(stopping.wait_count >= stopping.patience for stopping in trainer.early_stopping_callbacks):
            trainer.should_stop = True

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = False  # the training data are still to be loaded

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = True
        self.begin()
        self.save(trainer)

    def repeat_nothing(self, trainer: Trainer) -> None:
        """Of what a resumed run logs again, spare the loggers that cannot take back what it logged at first."""
        told = {row for logger in trainer.loggers if isinstance(logger, MetricsLog) for row in logger.rows()}
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsLog) and told:
                vars(logger)["log_metrics"] = NoRepeats(logger.log_metrics, told)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog):
                logger.forget(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.begin()
            self.save(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin()
        self.save(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin()
        self.save(trainer)

    def begin(self) -> None:
        """From here on an error is no mistake in the configuration."""
        self.started = True
        self.cli.messages.release()

    def save(self, trainer: Trainer) -> None:
        """Write the resolved configuration, once."""
        if self.cli.saved or is_fast(trainer):
            return
        self.cli.saved = True
        if trainer.is_global_zero:
            text = self.cli.resolved()
            rundir.write(self.cli.directory / self.cli.named("config.yaml"), text)
            for logger in trainer.loggers:
                if not isinstance(logger, MetricsLog | TensorBoardLogger | CSVLogger):
                    logger.log_hyperparams(yaml.safe_load(text))


def is_fast(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which leaves nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))
