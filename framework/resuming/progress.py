"""Where a checkpoint was written within the course of training, and how Lightning is brought to go on from there.

Lightning 2.6 restores its counters and then leaves out what stood between them and the next batch: a checkpoint written
at the end of a batch loses the validation that was due after it and, if it was the last batch, the end of the epoch
(its means, early stopping, schedulers); with ``max_steps`` one written at the end of an epoch loses the next epoch.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage as EvaluationStage
from lightning.pytorch.loops.fit_loop import RestartStage as FitStage

from framework.loaders.resumable import Position


class At(Enum):
    """Where a checkpoint was written.

    Attributes:
        BATCH_END: In ``on_train_batch_end``: what follows the batch is still to come.
        AFTER_BATCH: After a batch and the validation that was due, such as in ``on_validation_end``.
        WITHIN: In the middle of a batch, by an exception, or in front of the first.
        EPOCH_END: In ``on_train_epoch_end``.
    """

    BATCH_END = "batch end"
    AFTER_BATCH = "after batch"
    WITHIN = "within"
    EPOCH_END = "epoch end"


def place_of(loop: dict[str, Any]) -> At:
    """Where a checkpoint was written.

    Args:
        loop: State of Lightning's fit loop, ``checkpoint["loops"]["fit_loop"]``.
    """
    epoch, batch = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["current"]
    if epoch["processed"] == epoch["ready"]:
        return At.EPOCH_END
    if epoch["started"] < epoch["ready"] or batch["processed"] < batch["ready"]:
        return At.WITHIN
    return At.BATCH_END if batch["completed"] < batch["processed"] else At.AFTER_BATCH


def position_of(loop: dict[str, Any], seed: int) -> Position:
    """The next batch after a checkpoint, of the epoch that Lightning counts.

    Args:
        loop: State of the fit loop.
        seed: Seed of the order.
    """
    epoch, batch = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["current"]
    inside = epoch["processed"] < epoch["started"]
    return Position(seed, epoch["processed"], batch["processed"] if inside else 0)


def mend(loop: dict[str, Any]) -> At:
    """Change the state of a fit loop so that Lightning does not take a batch or an epoch for one that is behind it.

    Args:
        loop: State of the fit loop; changed in place, before Lightning loads it.

    Returns:
        Where the checkpoint was written; for :func:`go_on`.
    """
    place = place_of(loop)
    if place is At.BATCH_END:
        for counts in (loop["epoch_loop.batch_progress"][part] for part in ("total", "current")):
            counts["completed"] = counts["processed"]
    if place is At.EPOCH_END:
        for counts in (loop["epoch_progress"][part] for part in ("total", "current")):
            counts["completed"] = counts["processed"]
    return place


def go_on(trainer: Trainer, place: At) -> None:
    """Bring the loops to do next what the checkpoint had before it; for a callback's ``on_train_start``.

    Args:
        trainer: The trainer, whose loops :func:`mend` has prepared.
        place: Where the checkpoint was written.
    """
    fit = trainer.fit_loop
    loop = fit.epoch_loop
    if place is At.EPOCH_END:
        # Lightning takes training by max_steps for interrupted even here; is_resuming keeps the iterator that was made.
        for each in (fit, loop, loop.val_loop, loop.automatic_optimization, loop.manual_optimization):
            each._restarting = False
        fit._restart_stage = FitStage.NONE
        _plateau(trainer, "epoch")
        return
    fit._restarting = False  # its schedulers are to step at the end of this epoch, too
    if place is At.WITHIN:
        if not loop.restarted_on_last and not loop._should_accumulate():
            loop._batches_that_stepped -= 1  # which Lightning adds for a batch that was done
        return
    if fit._data_fetcher is not None and loop._should_check_val_fx(fit._data_fetcher):
        if place is At.BATCH_END:
            # "Go back and finish running validation", from its first batch; then comes what follows it.
            loop.val_loop.batch_progress.current.reset()
            loop.val_loop._restart_stage = EvaluationStage.RESTARTED_MID_EVALUATION
        return
    loop.update_lr_schedulers("step", update_plateau_schedulers=True)
    if not loop._should_accumulate():
        loop._batches_that_stepped += 1
    if loop._num_ready_batches_reached():
        loop.val_loop._has_run = True  # nothing is left of the epoch but its end


def end_epoch(trainer: Trainer) -> None:
    """Take back that the loops are to restart, for a callback's ``on_train_epoch_end``.

    Lightning does so after a batch, of which an epoch that only had its end before it has none.
    """
    loop = trainer.fit_loop.epoch_loop
    loop.on_iteration_done()
    loop.val_loop.on_iteration_done()


def _plateau(trainer: Trainer, interval: str) -> None:
    """The step of the schedulers that watch a metric, which Lightning makes after the checkpoint of an epoch's end."""
    current = trainer.fit_loop.epoch_progress.current
    current.completed -= 1
    try:
        trainer.fit_loop.epoch_loop.update_lr_schedulers(interval, update_plateau_schedulers=True)
    finally:
        current.completed += 1
