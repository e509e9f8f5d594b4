"""What is simulated: the nodes of a cluster and how they fail, and the jobs that ask for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from framework.reliability.rates import GPUS_PER_NODE, MINUTES_PER_DAY, checked

MAX_NODES = 10_000_000
"""Most nodes of a cluster: what is beyond has no machine, and no memory to be simulated in."""

SHARES = ("sudden", "transient", "lemon_share")
"""Attributes of a cluster that lie between 0 and 1."""


@dataclass(frozen=True)
class Cluster:
    """Nodes that fail independently at constant rates, in use or idle, until they are taken out for repair.

    Guard, lifetime and the interval of the health checks are those reported for the study; how failures divide into
    kinds and how long repairs take is not reported, and assumed.

    Attributes:
        nodes: Nodes.
        failure_rate: Failures per node-day of an ordinary node that end or hang the job on it.
        gpus_per_node: GPUs of a node.
        drain_rate: Failed checks per node-day of low severity: the node is taken out once its job has ended.
        sudden: Share of the failures that end the job at once. The rest hang it until the next health check.
        check: Minutes between health checks; zero finds every failure at once.
        transient: Share of the failures that a short repair mends.
        short_repair: Mean minutes of a short repair, exponential.
        long_repair: Mean minutes of a long repair, exponential.
        lemon_share: Share of the nodes that are lemons, rounded to whole nodes.
        lemon_factor: How many times the rates of an ordinary node those of a lemon are, at least 1.
        requeue: Minutes until the scheduler considers an interrupted job again; others may take its nodes meanwhile.
        guard: Minutes from its start for which a job is not preempted.
        lifetime: Minutes on nodes after which a job is ended, in all its attempts together.

    Raises:
        ValueError: For a value out of range, naming it.
    """

    nodes: int
    failure_rate: float
    gpus_per_node: float = GPUS_PER_NODE
    drain_rate: float = 0.0
    sudden: float = 0.5
    check: float = 5.0
    transient: float = 0.8
    short_repair: float = 30.0
    long_repair: float = 3 * MINUTES_PER_DAY
    lemon_share: float = 0.0
    lemon_factor: float = 20.0
    requeue: float = 2.0
    guard: float = 120.0
    lifetime: float = 7 * MINUTES_PER_DAY

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "lifetime" and value == math.inf:
                continue
            checked(field.name, value, positive=field.name in ("nodes", "gpus_per_node", "lifetime"))
            if field.name in SHARES and value > 1:
                raise ValueError(f"{field.name} must be between 0 and 1, got {value:g}")
        if self.nodes != int(self.nodes):
            raise ValueError(f"nodes must be a whole number, got {self.nodes:g}")
        if self.nodes > MAX_NODES:
            raise ValueError(f"nodes must be at most {MAX_NODES:,}, got {self.nodes:,}")
        if self.lemon_factor < 1:
            raise ValueError(f"lemon_factor must be at least 1, got {self.lemon_factor:g}")

    @property
    def lemons(self) -> int:
        """Number of lemons."""
        return round(self.lemon_share * self.nodes)


@dataclass(frozen=True)
class ClusterJob:
    """A job that runs on whole nodes, all of them or none (gang scheduling).

    Attributes:
        submit: When it is submitted.
        nodes: Nodes that it needs.
        work: Productive minutes to be done.
        priority: Jobs of higher priority start first, and may preempt those of lower.
        interval: Productive minutes between checkpoints.
        write: Minutes that training stands still for one.
        restart: Minutes from every start to the first step.

    Raises:
        ValueError: For a value out of range, naming it.
    """

    submit: float
    nodes: int
    work: float
    priority: int = 0
    interval: float = 60.0
    write: float = 0.0
    restart: float = 5.0

    def __post_init__(self) -> None:
        for name in ("submit", "write", "restart"):
            checked(name, getattr(self, name))
        for name in ("nodes", "work", "interval"):
            checked(name, getattr(self, name), positive=True)
        for name in ("nodes", "priority"):
            if getattr(self, name) != int(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name):g}")

    @property
    def cycle(self) -> float:
        """Minutes of an interval and its write."""
        return self.interval + self.write
