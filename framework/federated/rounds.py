"""What is known of a round once it is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class ClientReport:
    """What one client did in a round.

    Attributes:
        client: Its partition.
        outcome: ``used``, or why its reply was not: ``dropped out``, ``late``, ``failed``, ``rejected``,
            ``refused`` (by itself), ``silent``, ``not asked``.
        detail: The reason of a failure, a rejection or a refusal.
        examples: Items it trained on.
        down: Bytes to it.
        up: Bytes from it.
        seconds: Simulated seconds from the server's message to its reply; 0 without a simulated clock.
        flops: Floating-point operations of its backward passes, counted on one batch and scaled to the items that
            passed through; 0 where layers were not chosen for it.
        layers: Layers that it trained, where they were chosen for it.
        weight: Its weight in the mean, where the strategy does not go by numbers of items.
        noise: Noise energy of its updates as the strategy estimates it, where it does.
        metrics: What its training logged last.
    """

    client: int
    outcome: str = "used"
    detail: str = ""
    examples: float = 0.0
    down: int = 0
    up: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    layers: list[str] | None = None
    weight: float | None = None
    noise: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class RoundReport:
    """A round of a federation.

    Attributes:
        round: Its number, from 1; 0 is the state before the first round.
        clients: Those that were chosen.
        metrics: Evaluation by the server under the module's own names, and means over the clients' training and
            evaluation, weighted by their numbers of items, under ``clients/<name>``.
        wall_seconds: Time that passed.
        clock: Simulated seconds since the start of the federation; 0 without a simulated clock.
    """

    round: int
    clients: list[ClientReport] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    wall_seconds: float = 0.0
    clock: float = 0.0

    @property
    def down(self) -> int:
        """Bytes from the server."""
        return sum(client.down for client in self.clients)

    @property
    def up(self) -> int:
        """Bytes to the server."""
        return sum(client.up for client in self.clients)

    @property
    def used(self) -> list[ClientReport]:
        """The clients whose replies entered the new weights."""
        return [client for client in self.clients if client.outcome == "used"]

    def row(self, each_client: bool = False) -> dict[str, float]:
        """The round as one row of numbers, for a logger.

        Args:
            each_client: Whether it holds every client's numbers, too.
        """
        row: dict[str, float] = {"round": self.round, **self.metrics}
        for client in self.used if each_client else ():
            row |= {f"client/{client.client}/{name}": value for name, value in client.metrics.items()}
        if self.clients:
            row |= {
                "federation/chosen": len(self.clients), "federation/used": len(self.used),
                "federation/down_bytes": self.down, "federation/up_bytes": self.up,
            }  # fmt: skip
            if self.clock:
                row["federation/clock"] = self.clock
        return row

    def record(self) -> dict[str, Any]:
        """The round with its clients, ready for JSON."""
        return asdict(self)


def weighted_mean(entries: Iterable[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Mean of each metric over those that have it.

    Args:
        entries: Weight and metrics of each; weights are not negative.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for weight, metrics in entries:
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + weight * value
            weights[name] = weights.get(name, 0.0) + weight
    return {name: sums[name] / weights[name] for name in sums if weights[name] > 0}
