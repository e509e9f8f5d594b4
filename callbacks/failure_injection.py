"""Let a run fail on purpose, to see that it survives."""

from __future__ import annotations

import functools
import os
import threading
import time
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from framework.reliability.failures import Due, Injector, Place, Plan
from framework.reliability.ledger import ATTEMPT
from framework.reliability.strikes import half_written, newest_checkpoint, poison, strike
from framework.rundir import ASSIGNED, run_directory


class FailureInjection(Callback):
    """Fail at given steps or at random times: killed, stopped, hung, slow, by an exception, with a broken checkpoint.

    ``fulgurite supervise`` restarts the run; without a supervisor nobody does, which a warning says. Each failure is
    written to ``<run dir>/failures.jsonl`` and to the ledger before it happens. Steps fail once in a run, whatever
    restarts it, and random times are others in every attempt. Several of these callbacks add up. The module needs
    nothing; in a federation steps are counted over all clients of the process. A ``fast_dev_run`` is left alone.

    Args:
        kind: ``sigkill``, ``sigterm`` or ``sigstop``; ``exception``; ``cuda_error``, an exception such as torch's;
            ``hang``: alive, without progress; ``slow``: longer steps for a while; ``corrupt_checkpoint``: the newest
            file is cut in half and the process dies; ``disk_full``: no space left in the middle of a checkpoint;
            ``nan``: all gradients of a step are NaN.
        at_steps: Optimiser steps, from 0. Those that pass between two validations (with ``during: validation``) or two
            checkpoints are one failure.
        mttf: Mean time to failure while the process is up, such as ``10min``, instead of ``at_steps``.
        family: Distribution of the times between failures.
        shape: Shape of a Weibull or gamma distribution, at least 0.01; below 1 they come in bursts.
        trace: CSV file of failures, whose gaps are replayed in their order; ``mttf`` scales them.
        system: Which system of the trace, where that has several.
        during: ``step`` (before a batch), ``optimizer`` (before its step), ``validation``, ``checkpoint`` (half of it
            is written) or ``anywhere`` (signals, at times: at once, whatever the process does). By the clock, it is the
            next such place. None for the kind's own: ``step`` for most, ``checkpoint`` for ``disk_full``, ``optimizer``
            for ``nan``.
        rank: Which process; None for all of them, by clocks of their own.
        seed: Seed of the times, at least 0.
        max_failures: The most in a run.
        symptom: What the ledger calls it; by default what the taxonomy has for the kind.
        slow_by: How much longer each step of a slow process takes.
        slow_steps: How many steps it is slow for.
        hang_for: How long a hang lasts; None for ever.

    Raises:
        ValueError: If an argument is out of range or does not go with another.
    """

    def __init__(
        self,
        kind: Literal[
            "sigkill", "sigterm", "sigstop", "exception", "cuda_error", "hang", "slow", "corrupt_checkpoint",
            "disk_full", "nan",
        ] = "sigkill",
        at_steps: list[int] | None = None,
        mttf: str | None = None,
        family: Literal["exponential", "weibull", "gamma"] = "exponential",
        shape: float = 1.0,
        trace: str | None = None,
        system: str | None = None,
        during: Literal["step", "optimizer", "validation", "checkpoint", "anywhere"] | None = None,
        rank: int | None = 0,
        seed: int = 0,
        max_failures: int | None = None,
        symptom: str | None = None,
        slow_by: str = "1s",
        slow_steps: int = 10,
        hang_for: str | None = None,
    ) -> None:  # fmt: skip
        self.plan = Plan(
            kind, at_steps, mttf, family, shape, trace, system, during, rank, seed, max_failures, symptom, slow_by,
            slow_steps, hang_for,
        )  # fmt: skip
        self._injector = Injector(self.plan)
        self._directory = Path()
        self._active = False
        self._offset = self._last = 0  # a process may fit many times, as the clients of a federation do
        self._slow = 0
        self._timer: threading.Timer | None = None
        self._io: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FailureInjection:
        """Itself: failures are the process's, whichever of its trainers is at work."""
        return self

    # -- a fit begins and ends ----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # A supervisor's directory is that of the whole run; a client's trainer may have another.
        self._directory = Path(os.environ.get(ASSIGNED) or run_directory(trainer))  # communicates: on all ranks
        if self.plan.rank is not None and self.plan.rank >= trainer.world_size:
            raise ValueError(f"rank must be below the number of processes ({trainer.world_size}), got {self.plan.rank}")
        self._active = True
        if not self._injector.begun:
            self._injector.begin(self._directory, trainer.global_rank)
            if ATTEMPT not in os.environ:
                self._warn("without a supervisor: nobody will restart the run; fulgurite supervise fit ... does")
            lacks = {"checkpoint": not trainer.checkpoint_callbacks, "validation": trainer.limit_val_batches == 0}
            if lacks.get(self.plan.place, False):
                self._warn(f"waits for a {self.plan.place}, of which this trainer has none: it may never strike")
        if self.plan.place == "anywhere":
            self._arm()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._active and self.plan.place == "checkpoint":
            self._wrap(trainer)  # by now whoever replaces the writer of checkpoints has done so
        self._offset = self._last - trainer.global_step if self._last else 0
        self._last = self._step(trainer)
        self._injector.first(self._last)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave()

    def _leave(self) -> None:
        self._active = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._io is not None:
            vars(self._io).pop("save_checkpoint", None)
            self._io = None

    def _warn(self, words: str) -> None:
        rank_zero_warn(f"FailureInjection ({self.plan.kind}) {words}", category=UserWarning)

    def _step(self, trainer: Trainer) -> int:
        return self._offset + trainer.global_step

    # -- places -------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._at("step", trainer)
        if self._slow:
            self._slow -= 1
            time.sleep(self.plan.seconds_slow)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._at("optimizer", trainer) and self.plan.kind == "nan":
            poison(pl_module.parameters())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._last = self._step(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._at("validation", trainer)

    def _at(self, place: Place, trainer: Trainer) -> bool:
        """Fail if that is due; returns whether it was, if the process lives on."""
        step = self._step(trainer)
        due = self._injector.due(place, step) if self._active else None
        if due is None:
            return False
        self._strike(due, step)
        return True

    def _strike(self, due: Due, step: int, file: Path | None = None) -> None:
        if self.plan.kind == "corrupt_checkpoint":
            file = newest_checkpoint(self._directory)
        more = {} if file is None else {"file": os.path.relpath(file, self._directory)}
        self._injector.announce(due, step, **more)
        self._slow = self.plan.slow_steps if self.plan.kind == "slow" else 0
        strike(self.plan.kind, step, self.plan.seconds_hung, file)

    def _arm(self) -> None:
        """Strike from a thread, wherever the process is then."""
        remaining = self._injector.remaining()
        if remaining is None:
            return

        def fail() -> None:
            if self._active:
                self._strike(Due(), self._last)
            if self._active:  # the fit may have ended meanwhile
                self._arm()

        self._timer = threading.Timer(min(remaining, threading.TIMEOUT_MAX), fail)
        self._timer.daemon = True
        self._timer.start()

    def _wrap(self, trainer: Trainer) -> None:
        """Be there when a checkpoint is written, by the innermost of what may be several writers in one another."""
        io = trainer.strategy.checkpoint_io
        while getattr(io, "checkpoint_io", None) is not None:
            io = io.checkpoint_io  # type: ignore[attr-defined]
        save = io.save_checkpoint

        @functools.wraps(save)
        def failing(checkpoint: dict[str, Any], path: Any, *args: Any, **kwargs: Any) -> None:
            step = self._step(trainer)
            due = self._injector.due("checkpoint", step) if self._active else None
            if due is None:
                save(checkpoint, path, *args, **kwargs)
                return
            with half_written(lambda: self._strike(due, step, Path(path))):
                save(checkpoint, path, *args, **kwargs)

        vars(io)["save_checkpoint"] = failing
        self._io = io
