"""Rounds inside one ``fit``: when one ends, what other callbacks must forget then, and starting from scratch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor


class RoundEnd(EarlyStopping):
    """Calls a function at the end of each epoch, after every EarlyStopping and before anything is saved.

    Lightning calls ``on_train_epoch_end`` of EarlyStopping and Checkpoint after that of all other callbacks, wherever
    they stand in the list, and knows them by their class; hence the base. It stops nothing and has no state.

    Args:
        call: The function, given the trainer and the module.
    """

    def __init__(self, call: Callable[[Trainer, LightningModule], None]) -> None:
        super().__init__(monitor="", patience=1)
        self._call = call

    @staticmethod
    def add(trainer: Trainer, call: Callable[[Trainer, LightningModule], None]) -> None:
        """Put one into the trainer's list, behind all EarlyStopping and in front of all Checkpoint callbacks."""
        RoundEnd.remove(trainer)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        savers = [each for each in callbacks if isinstance(each, Checkpoint)]
        others = [each for each in callbacks if not isinstance(each, Checkpoint)]
        trainer.callbacks = [*others, RoundEnd(call), *savers]  # type: ignore[attr-defined]

    @staticmethod
    def remove(trainer: Trainer) -> None:
        """Take it out again."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [each for each in callbacks if type(each) is not RoundEnd]  # type: ignore[attr-defined]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._call(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {}


def _stoppings(trainer: Trainer) -> list[EarlyStopping]:
    found = trainer.early_stopping_callbacks
    return [each for each in found if isinstance(each, EarlyStopping) and not isinstance(each, RoundEnd)]


def stopped_early(trainer: Trainer) -> bool:
    """Whether an EarlyStopping has had enough; the same on all ranks, which must all ask."""
    fired = any(each.stopping_reason != EarlyStoppingReason.NOT_STOPPED for each in _stoppings(trainer))
    return bool(trainer.strategy.reduce_boolean_decision(fired, all=False)) if _stoppings(trainer) else False


def diverged(trainer: Trainer) -> bool:
    """Whether an EarlyStopping stopped because its metric was no longer finite; the same on all ranks."""
    fired = any(each.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC for each in _stoppings(trainer))
    return bool(trainer.strategy.reduce_boolean_decision(fired, all=False)) if _stoppings(trainer) else False


def restart_early_stopping(trainer: Trainer) -> None:
    """Let every EarlyStopping begin anew."""
    for each in _stoppings(trainer):
        each.wait_count = each.stopped_epoch = 0
        each.best_score = torch.tensor(torch.inf if each.mode == "min" else -torch.inf)
        each.stopping_reason, each.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None


def restart_checkpoints(trainer: Trainer, keep: bool) -> None:
    """Let "best" of every ModelCheckpoint that watches a metric mean best of the round that begins.

    Args:
        trainer: The trainer.
        keep: Whether the files of the round that ended stay. Else each gives way once a new one has been saved, so
            that there is one at any time.
    """
    for each in trainer.checkpoint_callbacks:
        if isinstance(each, ModelCheckpoint) and each.monitor is not None:
            worst = torch.tensor(torch.inf if each.mode == "min" else -torch.inf)
            # As the worst of all they are the first to be replaced, by Lightning's own rule.
            each.best_k_models = {} if keep else dict.fromkeys(each.best_k_models, worst)
            each.kth_best_model_path = "" if keep else next(iter(each.best_k_models), "")
            each.kth_value = worst
            each.best_model_score = None if keep or not each.best_k_models else worst


def goes_on(trainer: Trainer) -> bool:
    """Whether, at the end of an epoch, the trainer has another one before it."""
    most, done = trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    steps_left = trainer.max_steps < 0 or trainer.global_step < trainer.max_steps
    return not trainer.should_stop and steps_left and (most is None or most < 0 or done < most)


def snapshot(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Weights and the states of optimisers, schedulers and loss scaling, as a copy on the CPU."""
    return {
        "module": {name: _copied(value) for name, value in module.state_dict().items()},
        "optimizers": [deepcopy(each.state_dict()) for each in trainer.optimizers],
        "schedule": schedule(trainer),
        "precision": deepcopy(trainer.precision_plugin.state_dict()),
    }


def restore(trainer: Trainer, module: LightningModule, state: dict[str, Any]) -> None:
    """Go back to a :func:`snapshot`, which stays as it is."""
    module.load_state_dict(state["module"])
    for optimizer, own in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(deepcopy(own))
    restart_schedule(trainer, state["schedule"])
    if state["precision"]:
        trainer.precision_plugin.load_state_dict(deepcopy(state["precision"]))


def schedule(trainer: Trainer) -> dict[str, Any]:
    """States of the schedulers, and what they set in the optimisers, as a copy."""
    return {
        "groups": [deepcopy(each.state_dict()["param_groups"]) for each in trainer.optimizers],
        "schedulers": [deepcopy(each.scheduler.state_dict()) for each in trainer.lr_scheduler_configs],
    }


def restart_schedule(trainer: Trainer, state: dict[str, Any]) -> None:
    """Go back to a :func:`schedule`, which stays as it is; optimisers keep their moments."""
    for optimizer, groups in zip(trainer.optimizers, state["groups"], strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group.update(deepcopy({key: value for key, value in own.items() if key != "params"}))
    for config, own in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
        config.scheduler.load_state_dict(deepcopy(own))


def _copied(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else deepcopy(value)
