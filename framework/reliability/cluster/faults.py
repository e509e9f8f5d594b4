"""When which node fails, and how: the superposed process of all nodes, drawn at once.

Independent nodes at constant rates fail like one process of the sum of the rates, of which each failure falls on a node
in proportion to its rate. So the cost is per failure, and not per node. Failures that fall on a node under repair, or
on one that is not there, do not happen, which leaves the process of the others as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from framework.reliability.cluster.model import Cluster
from framework.reliability.rates import MINUTES_PER_DAY
from framework.seeding import derive

MAX_FAULTS = 20_000_000
"""Faults after which a simulation is refused: nobody would wait for it."""


class Fault(NamedTuple):
    """What may happen to a node.

    Attributes:
        minute: When.
        node: Which node.
        drains: Whether it is of low severity: its job goes on, and the node is taken out afterwards.
        sudden: Whether a failure ends the job at once; else the next health check finds it.
        transient: Whether a short repair mends it.
        repair: Minutes of the repair.
    """

    minute: float
    node: int
    drains: bool
    sudden: bool
    transient: bool
    repair: float


def lemons_of(cluster: Cluster, seed: int) -> list[int]:
    """Which nodes are lemons.

    Args:
        cluster: The cluster.
        seed: Seed of the simulation.
    """
    generator = np.random.default_rng(derive(seed, "lemons"))
    return sorted(generator.choice(cluster.nodes, cluster.lemons, replace=False).tolist())


def draw_faults(cluster: Cluster, minutes: float, seed: int, without: frozenset[int] = frozenset()) -> list[Fault]:
    """All faults in the order of time.

    Args:
        cluster: The cluster.
        minutes: Length of the simulation.
        seed: Seed of the simulation.
        without: Nodes that never fail, because they are not there; the faults of the others are the same with them.

    Raises:
        ValueError: If there would be more than ``MAX_FAULTS``.
    """
    weights = np.ones(cluster.nodes)
    weights[lemons_of(cluster, seed)] = cluster.lemon_factor
    ends = np.cumsum(weights)
    per_day = (cluster.failure_rate + cluster.drain_rate) * float(ends[-1])
    mean = per_day * minutes / MINUTES_PER_DAY
    if mean > MAX_FAULTS:
        raise ValueError(
            f"failure_rate gives some {mean:.3g} failures: more than {MAX_FAULTS:,} are too many to wait for"
        )
    generator = np.random.default_rng(derive(seed, "faults"))
    # Given their number, the times of a Poisson process are uniform.
    count = int(generator.poisson(mean))
    times = np.sort(generator.uniform(0.0, minutes, count))
    nodes = np.searchsorted(ends, generator.uniform(0.0, float(ends[-1]), count), side="right")
    share = cluster.drain_rate / (cluster.failure_rate + cluster.drain_rate) if mean else 0.0
    drains = generator.uniform(size=count) < share
    sudden = generator.uniform(size=count) < cluster.sudden
    transient = generator.uniform(size=count) < cluster.transient
    repair = generator.exponential(size=count) * np.where(transient, cluster.short_repair, cluster.long_repair)
    columns = (times, nodes, drains, sudden, transient, repair)
    drawn = (Fault(*row) for row in zip(*(column.tolist() for column in columns)))
    return [fault for fault in drawn if fault.node not in without]
