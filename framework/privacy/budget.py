"""How many of the steps that a trainer plans a privacy budget allows."""

from __future__ import annotations

import math

from lightning import Trainer
from opacus.accountants import IAccountant

from framework.privacy.accounting import steps_within


class Budget:
    """The steps that are left of a budget, of those planned.

    Args:
        epsilon: The budget; None for none.
        delta: Its delta.

    Attributes:
        left: Steps that are planned, and within the budget; infinite without one.
        scarce: Whether the budget allows fewer than are planned.
        rate: The sampling rate they were counted with.
    """

    def __init__(self, epsilon: float | None, delta: float) -> None:
        self.epsilon, self.delta = epsilon, delta
        self.left, self.scarce, self.rate = math.inf, False, 0.0

    def count(self, accountant: IAccountant, noise: float, rate: float, planned: int | None) -> None:
        """Count them, by what is known now.

        Args:
            accountant: What has been spent.
            noise: Noise multiplier of the steps to come.
            rate: Their sampling rate.
            planned: How many are planned; None if training goes on until something stops it.
        """
        self.left, self.scarce, self.rate = math.inf, False, rate
        if self.epsilon is not None:
            self.left = steps_within(accountant, noise, rate, self.epsilon, self.delta, planned)
            self.scarce = self.left != planned


def planned_steps(trainer: Trainer) -> int | None:
    """Steps that a trainer has yet to make.

    Args:
        trainer: The trainer, in ``on_train_start`` or later.

    Returns:
        Their number; None if it goes on until something stops it.
    """
    batches, loop = int(trainer.num_training_batches), trainer.fit_loop
    counts = []
    if trainer.max_steps != -1:
        counts.append(trainer.max_steps - trainer.global_step)
    if trainer.max_epochs not in (-1, None):
        done = loop.epoch_progress.current.processed * batches  # type: ignore[attr-defined]  # of whole epochs
        within = loop.epoch_loop.batch_progress.current.ready if loop.epoch_loop.restarting else 0
        counts.append(int(trainer.max_epochs) * batches - done - (within if within < batches else 0))
    return max(min(counts), 0) if counts else None
