"""Heterogeneous systems: how fast each client computes and sends, who drops out, and who is too late."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from framework.seeding import derive


@dataclass(frozen=True)
class Profile:
    """One client's machine.

    Attributes:
        step_seconds: Seconds for an optimiser step.
        down: Bytes per second to the client.
        up: Bytes per second from it.
    """

    step_seconds: float
    down: float
    up: float


@dataclass(frozen=True)
class Systems:
    """A simulated clock over clients of different speed.

    Each client's values are drawn once, log-uniformly between the two bounds, from the seed of the run. A round takes
    as long as its slowest client, or until the deadline.

    Args:
        step_seconds: Least and most seconds for an optimiser step; two positive numbers.
        down_mbit: Least and most megabits per second to the client.
        up_mbit: Least and most megabits per second from it.
        drop_out: Probability that a chosen client does not answer in a round, in [0, 1).
        deadline: Seconds after which the server goes on without those that are late; ``None`` waits for all.

    Raises:
        ValueError: If a value is out of range, naming it.
    """

    step_seconds: tuple[float, float] = (0.01, 0.1)
    down_mbit: tuple[float, float] = (20.0, 100.0)
    up_mbit: tuple[float, float] = (5.0, 20.0)
    drop_out: float = 0.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        for name in ("step_seconds", "down_mbit", "up_mbit"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(
                    f"systems.{name} must be two positive numbers, the smaller one first, got {low} and {high}"
                )
        if not 0 <= self.drop_out < 1:
            raise ValueError(f"systems.drop_out must be in [0, 1), got {self.drop_out}")
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"systems.deadline must be positive, got {self.deadline}")

    def profile(self, client: int, seed: int) -> Profile:
        """The machine of a client.

        Args:
            client: Its number.
            seed: Seed of the run.
        """
        return _profile((self.step_seconds, self.down_mbit, self.up_mbit), client, seed)

    def seconds(self, client: int, seed: int, steps: float, down: int, up: int) -> float:
        """How long a client needs for a round: it receives, computes and sends.

        Args:
            client: Its number.
            seed: Seed of the run.
            steps: Optimiser steps.
            down: Bytes to it.
            up: Bytes from it.
        """
        machine = self.profile(client, seed)
        return down / machine.down + steps * machine.step_seconds + up / machine.up

    def drops_out(self, client: int, server_round: int, seed: int) -> bool:
        """Whether a client does not answer in a round."""
        if not self.drop_out:
            return False
        return bool(np.random.default_rng(derive(seed, "drop out", server_round, client)).random() < self.drop_out)

    def is_late(self, seconds: float) -> bool:
        """Whether the server no longer waits for a reply."""
        return self.deadline is not None and seconds > self.deadline


@cache
def _profile(bounds: tuple[tuple[float, float], ...], client: int, seed: int) -> Profile:
    draw = np.random.default_rng(derive(seed, "system", client))
    compute, down, up = (math.exp(draw.uniform(math.log(low), math.log(high))) for low, high in bounds)
    return Profile(compute, down * 1e6 / 8, up * 1e6 / 8)
