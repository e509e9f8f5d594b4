"""A cluster under failures: framework.reliability.cluster against a simpy model with an event per node.

In the simpy model every start of a job draws a time to failure for each of its nodes and waits for the first of these
events, as the failures of single components are usually modelled. Both simulate jobs that never end on nodes with
spares, failures found at once, and exponential repairs; the results agree within their statistical error.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator
from typing import Any, NamedTuple

from framework.reliability.cluster.account import FAILURE
from framework.reliability.cluster.engine import simulate_cluster
from framework.reliability.cluster.model import Cluster, ClusterJob
from framework.reliability.interval import optimal_interval
from framework.reliability.rates import job_rate

NEEDS = ["simpy"]
CASES = [
    {"gpus": 131_072, "jobs": 1, "days": 1},
    {"gpus": 16_384, "jobs": 1, "days": 20},
    {"gpus": 16_384, "jobs": 8, "days": 20},
]
RATE, REPAIR, WRITE, RESTART = 6.5e-3, 30.0, 10 / 60, 1.0


class Given(NamedTuple):
    """A cluster with some spare nodes, its jobs, and minutes to simulate."""

    cluster: Cluster
    jobs: list[ClusterJob]
    minutes: float


def setup(gpus: int, jobs: int, days: float) -> Given:
    each = gpus // 8 // jobs
    interval = optimal_interval(job_rate(RATE, each, 1), WRITE)
    nodes = gpus // 8 + 8 + gpus // 8 // 50
    cluster = Cluster(nodes, RATE, check=0, requeue=0, transient=1, short_repair=REPAIR, lifetime=math.inf)
    return Given(cluster, [ClusterJob(0, each, 1e9, 0, interval, WRITE, RESTART)] * jobs, days * 1440)


def ours(given: Given) -> tuple[float, int]:
    """Share of the time that becomes progress, and number of failures."""
    jobs = simulate_cluster(given.cluster, given.jobs, given.minutes).jobs
    productive, wall = (sum(getattr(job, name) for job in jobs) for name in ("productive", "wall"))
    return productive / wall, sum(job.ended[FAILURE] for job in jobs)


def per_node(given: Given) -> tuple[float, int]:
    import simpy

    generator = random.Random(0)
    environment = simpy.Environment()
    free = simpy.Container(environment, init=given.cluster.nodes)
    total = {"productive": 0.0, "failures": 0}
    per_minute = given.cluster.failure_rate / 1440

    def repair() -> Generator[Any, Any, None]:
        yield environment.timeout(generator.expovariate(1 / REPAIR))
        yield free.put(1)

    def run(job: ClusterJob) -> Generator[Any, Any, None]:
        while True:
            yield free.get(job.nodes)
            began = environment.now
            yield environment.any_of([environment.timeout(generator.expovariate(per_minute)) for _ in range(job.nodes)])
            elapsed = environment.now - began
            total["productive"] += max(0, math.floor((elapsed - job.restart) / job.cycle)) * job.interval
            total["failures"] += 1
            environment.process(repair())
            if job.nodes > 1:
                yield free.put(job.nodes - 1)

    for job in given.jobs:
        environment.process(run(job))
    environment.run(until=given.minutes)
    # The last attempts are cut off by the end; what they held is below the statistical error.
    return total["productive"] / (len(given.jobs) * given.minutes), int(total["failures"])


def agree(ours: tuple[float, int], peer: tuple[float, int]) -> None:
    assert abs(ours[0] - peer[0]) < 0.03, (ours, peer)
    assert abs(ours[1] - peer[1]) < 4.5 * math.sqrt(ours[1] + peer[1]), (ours, peer)


VARIANTS = {"ours": ours, "simpy, an event per node": per_node}
