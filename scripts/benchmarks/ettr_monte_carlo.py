"""Monte Carlo of a job under failures: framework.reliability.simulation against a loop over failures.

The loop is what a reader of the model would write. Both simulate runs of 500 mean times to failure, some 500 to 2,000
failures each, so seconds over failures is the time of one.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from framework.reliability.gaps import Gaps
from framework.reliability.interval import young_interval
from framework.reliability.job import Job
from framework.reliability.rates import job_rate
from framework.reliability.simulation import simulate

RUNS, MTTFS = 100, 500
CASES = [
    {"gpus": gpus, "family": family} for gpus in (16_384, 131_072) for family in ("exponential", "weibull", "gamma")
]
SHAPES = {"exponential": 1.0, "weibull": 0.82, "gamma": 0.75}  # as of one of LANL's systems


class Given(NamedTuple):
    """A job, when it fails, and its work in minutes."""

    job: Job
    gaps: Gaps
    productive: float


def setup(gpus: int, family: str) -> Given:
    rate = job_rate(6.5e-3, gpus)
    job = Job(rate, young_interval(rate, 5.0), write=5.0, restart=5.0, queue=1.0)
    return Given(job, Gaps(1 / rate, family, SHAPES[family]), MTTFS / rate)


def vectorised(given: Given) -> tuple[float, int]:
    """ETTR and number of failures."""
    found = simulate(given.job, given.gaps, given.productive, RUNS)
    return found.ettr, int(found.failures.sum())


def loop(given: Given) -> tuple[float, int]:
    generator = random.Random(0)
    mean, shape, job = given.gaps.mean, given.gaps.shape, given.job
    draw = {
        "exponential": lambda: generator.expovariate(1 / mean),
        "weibull": lambda: generator.weibullvariate(mean / math.gamma(1 + 1 / shape), shape),
        "gamma": lambda: generator.gammavariate(shape, mean / shape),
    }[given.gaps.family]
    wall, failures = 0.0, 0
    for _ in range(RUNS):
        done, gap = 0.0, draw()
        wall += job.queue
        while True:
            while gap < job.restart:
                wall, failures, gap = wall + gap + job.queue, failures + 1, draw()
            running = gap - job.restart
            left = math.ceil((given.productive - done) / job.interval - 1e-12)
            finish = (left - 1) * job.cycle + given.productive - done - (left - 1) * job.interval
            if running >= finish:
                wall += job.restart + finish
                break
            done += math.floor(running / job.cycle) * job.interval
            wall, failures, gap = wall + gap + job.queue, failures + 1, draw()
    return RUNS * given.productive / wall, failures


def agree(ours: tuple[float, int], peer: tuple[float, int]) -> None:
    assert abs(ours[0] / peer[0] - 1) < 0.02
    assert abs(ours[1] / peer[1] - 1) < 0.05


VARIANTS = {"ours": vectorised, "loop": loop}
