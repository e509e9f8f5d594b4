"""Record what a run does with its time, for ``fulgurite ettr measure``, and show its supervisor that it lives."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.reliability.ledger import ATTEMPT, FILE, MODULES, Ledger, last_attempt, process_started
from framework.rundir import ASSIGNED, run_directory, write


class ETTRRecorder(Callback):
    """Append starts, steps, validations, checkpoints and ends of training to ``<run dir>/ledger.jsonl``.

    ``fulgurite ettr measure <run dir>`` then says which share of the time was progress that lasts. ``fulgurite
    supervise`` adds it to every run; alone it goes on any ``lightning.Trainer``, and each start in a run directory is
    one attempt. Checkpoints are those that go through ``trainer.save_checkpoint``, as all of Lightning's do; of an
    asynchronous one it sees the stall alone.

    Each line is written at once by one system call, some 150 bytes and 20 microseconds of CPU time a step.

    Args:
        signs_only: Whether to write no events, but only to change the file's time at each batch, which tells a
            supervisor that the run lives; for the clients of a federation, whose steps are no steps of the run.
    """

    def __init__(self, signs_only: bool = False) -> None:
        self.signs_only = signs_only
        self.ledger: Ledger | None = None
        self._step = -1
        self._running = False
        self._untold = 2
        self._timed: Callable[..., None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" and self.ledger is None and not self.signs_only:
            return
        # A supervisor's directory is that of the whole run; a client's trainer may have another.
        directory = Path(os.environ.get(ASSIGNED) or run_directory(trainer))  # communicates: on all ranks
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = directory / FILE
        if self.ledger is None or self.ledger.path != path:
            self.ledger = Ledger(path, None if ATTEMPT in os.environ else last_attempt(path) + 1)
        if stage == "fit" and not self.signs_only:
            self._running = False
            self._write("start", pid=os.getpid(), world=trainer.world_size, process=process_started())
            self._timed = self._time_checkpoints(trainer, self.ledger)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._timed is not None and vars(trainer).get("save_checkpoint") is self._timed:
            del vars(trainer)["save_checkpoint"]
        self._timed = None
        if self.ledger is not None:
            self.ledger.close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._running:
            self._run(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.signs_only or trainer.global_step == self._step:  # gradients are accumulated over several batches
            self._touch()
        else:
            self._step = trainer.global_step
            self._write("step", step=self._step)
            if self._untold == 2:
                self._tell_modules()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if not self._running:  # a run that was killed in a validation begins with it
                self._run(trainer)
            self._write("validation_begin", step=trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write("validation_end", step=trainer.global_step)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._touch()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._touch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write("train_end", step=trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write("exception", kind=type(exception).__name__, step=trainer.global_step)

    def _run(self, trainer: Trainer) -> None:
        """The start-up is over."""
        self._running = True
        self._step = trainer.global_step
        self._write("run", step=self._step)

    def _tell_modules(self) -> None:
        """Tell a supervisor what to import, so that restarts import nothing: after the first step and checkpoint."""
        file = os.environ.get(MODULES)
        if file and self._untold and self.ledger is not None:
            self._untold -= 1
            write(Path(file), "\n".join(sys.modules))

    def _write(self, event: str, **fields: Any) -> None:
        if self.ledger is not None and not self.signs_only:
            self.ledger.write(event, **fields)

    def _touch(self) -> None:
        if self.ledger is not None:
            self.ledger.touch()

    def _time_checkpoints(self, trainer: Trainer, ledger: Ledger) -> Callable[..., None]:
        """Write an event before and after each checkpoint: an attribute hides the trainer's method until teardown."""
        save = trainer.save_checkpoint

        @functools.wraps(save)
        def timed(filepath: Any, *args: Any, **kwargs: Any) -> None:
            ledger.write("checkpoint_begin", step=trainer.global_step)
            save(filepath, *args, **kwargs)
            ledger.write("checkpoint_end", step=trainer.global_step, file=os.fspath(filepath))
            if self._untold == 1:
                self._tell_modules()

        vars(trainer)["save_checkpoint"] = timed
        return timed
