"""A callback with which a run that was killed goes on bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _resolve_overfit_batches
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
from torch.utils.data import DataLoader

from framework.loaders import TrainPath
from framework.loaders.resumable import Position, ResumableOrder
from framework.metrics_log import MetricsLog
from framework.resuming import metrics
from framework.resuming.progress import At, end_epoch, go_on, mend, place_of, position_of
from framework.seeding import derive, nth, run_seed, seed_all

KEY = "resumable"
"""Where a checkpoint holds what this callback adds to it."""


class ResumableRun(Callback):
    """Make a run that was killed, anywhere, go on from its checkpoint as if it had not been.

    The order of the train data becomes a function of (seed, epoch), and the generators of torch, NumPy and Python are
    seeded before each batch from (seed, rank, epoch, batch), before what fetches it (in workers, too), and before each
    validation. A checkpoint then needs no states of generators: where it was written says all. It also gets the running
    means of what the module logs, the states of its torchmetrics, and gradients that are still being accumulated. A
    validation or an end of an epoch that a checkpoint was written in front of is made up for.

    The module needs nothing for it. What it keeps besides weights, optimisers and torchmetrics belongs in its
    ``on_save_checkpoint``; ``on_train_epoch_start`` is not called again for an epoch that goes on.

    Args:
        strict: Whether data whose order cannot be resumed, and a checkpoint that does not fit, are refused. Else one
            line says what such a run cannot do, and only a checkpoint from the middle of an epoch is refused.

    Raises:
        ValueError: Before training, where something is refused: the message names it.
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self._trainer: Trainer | None = None
        self._path: TrainPath | None = None
        self._stage = ResumableOrder(self._prepare, self._report, self._compare)
        self._epoch: tuple[int, int] | None = None  # seed and number of the epoch, where no order of ours says it
        self._state: dict[str, Any] = {}  # of the checkpoint that this run goes on from
        self._place: At | None = None
        self._unfit = ""
        self._bases: dict[tuple[Any, ...], int] = {}

    # -- the train loader ---------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._trainer, self._state, self._place, self._unfit = trainer, {}, None, ""
        self._path = TrainPath.of(trainer)
        self._stage.start(Position(run_seed(), 0))
        self._path.add(self._stage)

    def _prepare(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """What Lightning does to a train loader, before the order is fixed and no longer after."""
        trainer = self._the_trainer
        if getattr(trainer, "overfit_batches", 0) > 0:
            combined = CombinedLoader(loader, "max_size_cycle")
            _resolve_overfit_batches(combined, mode=RunningStage.TRAINING)
            (loader,) = combined.flattened
        connector: Any = trainer._data_connector
        prepared: DataLoader[Any] = connector._prepare_dataloader(loader, shuffle=True, mode=RunningStage.TRAINING)
        return prepared

    def _report(self, reason: str) -> None:
        """Where the data cannot be honoured: say so once, or refuse."""
        if self.strict:
            raise ValueError(f"resumable: the order of the train data cannot be resumed: {reason}")
        if self._state and self._place is not At.EPOCH_END:
            raise ValueError(
                f"resumable: the checkpoint is from the middle of an epoch, which cannot be resumed: {reason}; "
                "take one from the end of an epoch, or give --resumable false to begin the epoch's data anew"
            )
        if not self._unfit:
            rank_zero_info(
                "This run can only be resumed from the end of an epoch, and with other draws than it would have made: "
                f"{reason}"
            )
        self._unfit = reason

    def _compare(self, found: dict[str, Any]) -> None:
        """Whether the loader is the one that the checkpoint speaks of."""
        before = self._state.get("facts")
        if not before:
            return
        changing = any(stage.changes for stage in self._path.stages) if self._path is not None else False
        for name, now in found.items():
            same = before[name] == now or (changing and self._place is At.EPOCH_END and name in ("items", "batches"))
            if not same:
                self._differs(f"{_CALLED[name]} is {now}", f"{before[name]}")
        self._state["facts"] = None  # compared once: a pool may grow from here

    def _differs(self, now: str, before: str) -> None:
        line = f"{now}, but was {before} in the run that the checkpoint is from"
        if self.strict or self._place is not At.EPOCH_END:
            raise ValueError(
                f"resumable: {line}: the order of its data cannot be continued; keep it, or start a new run"
            )
        rank_zero_info(f"Resumed with other draws than the run would have made: {line}")

    # -- what is drawn ------------------------------------------------------------------------------------------------

    def _seed(self, purpose: str, number: int = 0) -> None:
        what = (purpose, self._the_trainer.global_rank, *self._drawn())
        base = self._bases.get(what)
        if base is None:  # of the epoch
            seed, epoch = self._drawn()
            self._bases = {key: each for key, each in self._bases.items() if key[2:] == (seed, epoch)}
            base = self._bases[what] = derive(seed, purpose, self._the_trainer.global_rank, epoch)
        seed_all(nth(base, number))

    def _drawn(self) -> tuple[int, int]:
        """Seed and number of the epoch that is drawn: under active learning not always the one Lightning counts."""
        order = self._stage.order
        if order is not None and self._ordered:
            return order.running[:2]
        return self._epoch or (run_seed(), self._the_trainer.current_epoch)

    @property
    def _ordered(self) -> bool:
        return self._stage.order is not None and self._path is not None and self._path.has(self._stage)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch = (run_seed(), trainer.current_epoch)
        seed_all(derive(run_seed(), "epoch start", trainer.global_rank, trainer.current_epoch))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._seed("batch", batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._ordered:
            self._seed("fetch", batch_idx + 1)  # an order that is not ours does not seed what fetches its items

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._seed("validation", trainer.fit_loop.epoch_loop.batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not self._ordered:
            self._seed("fetch", trainer.fit_loop.epoch_loop.batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        end_epoch(trainer)
        self._seed("epoch end")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._trainer is trainer:  # the test that follows a fit
            seed_all(derive(run_seed(), "test", trainer.global_rank))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        place = place_of(checkpoint["loops"]["fit_loop"])
        own: dict[str, Any] = metrics.capture(trainer, pl_module, in_epoch=place is not At.EPOCH_END)
        loop = trainer.fit_loop.epoch_loop
        if place in (At.BATCH_END, At.AFTER_BATCH) and pl_module.automatic_optimization and loop._should_accumulate():
            own["gradients"] = {
                name: weight.grad.detach().to("cpu", copy=True)
                for name, weight in pl_module.named_parameters()
                if weight.grad is not None
            }
        ranks: list[Any] = [own]
        if trainer.world_size > 1 and torch.distributed.is_initialized():
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, own)
        state: dict[str, Any] = {"seed": run_seed(), "ranks": ranks, "drawn": list(self._drawn())}
        if self._ordered:
            state["facts"] = dict(self._stage.facts)
        if place is At.EPOCH_END:
            row = trainer._logger_connector.metrics["log"]
            state["row"] = {name: float(value) for name, value in row.items()} | {"epoch": trainer.current_epoch}
        checkpoint[KEY] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        loop = checkpoint["loops"]["fit_loop"]
        self._place = mend(loop)
        position = position_of(loop, run_seed())
        self._state = dict(checkpoint.get(KEY) or {})
        if not self._state:
            if self._place is not At.EPOCH_END:
                self._unknown()
        elif self._state["seed"] != run_seed():
            self._differs(f"seed_everything is {run_seed()}", str(self._state["seed"]))
        elif self._place is not At.EPOCH_END:
            seed, epoch = self._state["drawn"]
            position = Position(seed, epoch, position.batch)
        self._epoch = position[:2]
        self._stage.start(position)

    def _unknown(self) -> None:
        line = "the checkpoint is from the middle of an epoch of a run that was not resumable"
        if self.strict:
            raise ValueError(f"resumable: {line}; take one from the end of an epoch, or give --resumable false")
        rank_zero_info(f"What is left of the epoch is drawn anew: {line}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        place, state = self._place, self._state
        self._place = None
        if place is None:
            return
        if state:
            self._restore(trainer, pl_module, state, place)
        go_on(trainer, place)
        if not self._ordered:
            self._seed("fetch", trainer.fit_loop.epoch_loop.batch_progress.current.completed)

    def _restore(self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any], place: At) -> None:
        ranks = state["ranks"]
        own = ranks[trainer.global_rank] if trainer.global_rank < len(ranks) else ranks[0]
        metrics.restore(trainer, pl_module, own)
        weights = dict(pl_module.named_parameters())
        for name, gradient in own.get("gradients", {}).items():
            weights[name].grad = gradient.to(weights[name].device, copy=True)
        if place is At.BATCH_END and own["results"]:
            self._log_step(trainer)
        self._log_row(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_row(trainer)  # of a run of which nothing but this was left to do

    def _log_step(self, trainer: Trainer) -> None:
        """What the last batch logged, should the run have been killed between its checkpoint and its log."""
        row = trainer._logger_connector.metrics["log"]
        if not _logged(trainer, set(row), trainer.fit_loop.epoch_loop._batches_that_stepped):
            trainer._logger_connector.update_train_step_metrics()

    def _log_row(self, trainer: Trainer) -> None:
        """The same for the last epoch."""
        row = self._state.pop("row", None)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
        if row and len(row) > 1 and not _logged(trainer, set(row) - {"epoch"}, step):
            trainer._logger_connector.log_metrics(row, step=step)

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()  # Lightning calls no teardown then, and the DataModule may be fitted again

    def _leave(self) -> None:
        if self._path is not None:
            self._path.remove(self._stage)
        self._path = None

    @property
    def _the_trainer(self) -> Trainer:
        if self._trainer is None:
            raise RuntimeError("setup has not been called")
        return self._trainer


_CALLED = {
    "world_size": "the number of processes",
    "items": "the number of train items",
    "batch_size": "the batch size of the train data",
    "batches": "the number of train batches in an epoch",
}


def _logged(trainer: Trainer, names: set[str], step: int) -> bool:
    """Whether ``metrics.csv`` has a row already; without one, the loggers are taken to lack it."""
    logs = [logger for logger in trainer.loggers if isinstance(logger, MetricsLog)]
    return bool(logs) and all(logger.has(step, names) for logger in logs)
