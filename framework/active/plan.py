"""How much a run buys in a round, how long it trains on it, and what ends it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from framework.active.pool import LabelPool
from framework.loaders.reindexing import kind


class Plan:
    """The plan of a run. Amounts of at least 1 are units of cost, those below 1 a share of the cost of all items.

    Args:
        initial: Share of the total cost that is labelled at the start, in (0, 1].
        budget: What a round buys, positive.
        epochs_per_round: The most epochs of a round, at least 1.
        max_cost: What may be bought altogether, positive; None for everything.
        target: Value of ``metric`` that ends the run.
        metric: Name of a logged metric; None for the module's ``monitor``.
        mode: Whether ``metric`` should rise (``max``) or fall (``min``); None for the module's ``mode``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        initial: float,
        budget: float,
        epochs_per_round: int,
        max_cost: float | None = None,
        target: float | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] | None = None,
    ) -> None:
        if not 0 < initial <= 1:
            raise ValueError(f"initial must be a share in (0, 1], got {initial}")
        for field, amount in (("budget", budget), ("max_cost", math.inf if max_cost is None else max_cost)):
            if not amount > 0:
                raise ValueError(f"{field} must be positive (units of cost, or below 1 a share of it), got {amount}")
        if epochs_per_round < 1:
            raise ValueError(f"epochs_per_round must be at least 1, got {epochs_per_round}")
        if mode not in ("max", "min", None):
            raise ValueError(f"mode must be max, min or null, got {mode!r}")
        self.initial, self.budget, self.epochs_per_round, self.max_cost = initial, budget, epochs_per_round, max_cost
        self.target, self.metric, self.mode = target, metric, mode

    def most(self, pool: LabelPool) -> float:
        """What may be bought altogether, in units."""
        return pool.total_cost if self.max_cost is None else min(pool.units(self.max_cost), pool.total_cost)

    def next_budget(self, pool: LabelPool) -> float:
        """What the next round may cost, in units."""
        return min(pool.units(self.budget), self.most(pool) - pool.cost_bought)

    def reached(self, pool: LabelPool, row: Mapping[str, float]) -> str:
        """Why no round follows one that is over; empty if one does.

        Args:
            pool: What has been bought.
            row: What was measured in the round.

        Raises:
            RuntimeError: If the metric of the target is not in the row.
        """
        if not len(pool.left):
            return "everything is labelled"
        if self.max_cost is not None and pool.cost_bought >= self.most(pool):
            return f"max_cost={self.max_cost:g} is reached"
        if self.target is None:
            return ""
        found = row.get(str(self.metric))
        if found is None:
            raise RuntimeError(f"target needs {self.metric}, which was not measured in this round: {', '.join(row)}")
        good = found >= self.target if self.mode == "max" else found <= self.target
        return f"{self.metric} is {found:g}" if good else ""

    def attach(self, trainer: Trainer, module: LightningModule) -> None:
        """Take metric and mode of the module where none are given, and check that the target can be measured.

        Raises:
            ValueError: If there is a target, but no metric, mode or validation.
        """
        monitor = getattr(module, "monitor", None)
        self.metric = self.metric or monitor
        if self.mode is None and self.metric == monitor:
            self.mode = getattr(module, "mode", None)
        if self.target is None:
            return
        if self.metric is None or self.mode is None:
            missing = "metric" if self.metric is None else "mode"
            raise ValueError(f"target={self.target} needs {missing}, for {kind(module)} has none of its own")
        if not trainer.enable_validation:
            raise ValueError(f"target={self.target} needs {self.metric}, but this run has no validation")

    def warn(self, trainer: Trainer, pool: LabelPool) -> None:
        """Say where the trainer's epochs do not go with the rounds."""
        each, epochs, every = self.epochs_per_round, trainer.fit_loop.max_epochs, trainer.check_val_every_n_epoch
        if trainer.enable_validation and every is not None and each % every:
            rank_zero_warn(
                f"epochs_per_round ({each}) is not a multiple of trainer.check_val_every_n_epoch ({every}): "
                "rounds end on old metrics, or on none"
            )
        if epochs is None or epochs < 0:
            return
        to_buy = self.most(pool) - self.initial * pool.total_cost
        planned = 1 + max(0, math.ceil(to_buy / pool.units(self.budget)))
        if epochs < each * (planned if self.max_cost is not None else min(planned, 2)):
            rank_zero_warn(
                f"trainer.max_epochs ({epochs}) ends the run before its plan does: "
                f"{planned} rounds of {each} epochs take {planned * each}"
            )
        elif epochs % each and epochs < planned * each:
            rank_zero_warn(
                f"trainer.max_epochs ({epochs}) is not a multiple of epochs_per_round ({each}): "
                "the last round is cut short"
            )
