"""Tables of a simulated cluster: loss by cause and ETTR, failures and preemptions by the size of jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from framework.reliability.cluster.account import (
    CASCADE,
    DONE,
    FAILURE,
    FIRST,
    LIMIT,
    OPEN,
    PREEMPTION,
    Account,
    Outcome,
)
from framework.reliability.rates import job_rate, mttf


class SizeClass(NamedTuple):
    """Jobs of similar size; times are node-minutes.

    Attributes:
        gpus: Most GPUs of the class, a power of two times those of a node; the least are just over half of it.
        jobs: Jobs that were submitted.
        done: Jobs that did all of their work.
        limited: Jobs that were ended at their maximum lifetime.
        attempts: Starts that have ended, for whatever reason.
        failures: Attempts that a failure ended.
        cascades: Attempts ended by jobs that a failure had brought back.
        preemptions: Attempts ended by other jobs.
        wall: From submission to the end, weighed by nodes.
        queue: Waiting.
        productive: Progress that lasts.
        write: Checkpoints that last.
        start: First starts.
        first_order: Undone by own failures, and the restarts after them.
        second_order: Undone by preemption that a failure of another job caused, and the restarts after it.
        scheduling: Undone by other preemption, and the restarts after it.
        limit: Undone at the maximum lifetime.
        study_first: The loss by own failures as the study counts it, at most half an hour of an attempt.
        study_second: That by preemption that a failure caused.
        mttf: Minutes on nodes per failure; infinite without one.
        expected_mttf: What the failure rate of an ordinary node gives for the mean size of these jobs.
    """

    gpus: float
    jobs: int
    done: int
    limited: int
    attempts: int
    failures: int
    cascades: int
    preemptions: int
    wall: float
    queue: float
    productive: float
    write: float
    start: float
    first_order: float
    second_order: float
    scheduling: float
    limit: float
    study_first: float
    study_second: float
    mttf: float
    expected_mttf: float

    @property
    def ettr(self) -> float:
        """Progress over wall-clock time, R / W; NaN without time."""
        return self.productive / self.wall if self.wall else math.nan

    @property
    def allotted(self) -> float:
        """Node-minutes on nodes."""
        return self.wall - self.queue

    @property
    def failed_share(self) -> float:
        """Share of the ended attempts that a failure ended; NaN without any."""
        return self.failures / self.attempts if self.attempts else math.nan


def by_size(outcome: Outcome) -> list[SizeClass]:
    """One entry per class of size that has jobs, from small to large.

    Args:
        outcome: The simulated cluster.
    """
    classes: dict[int, list[Account]] = {}
    for each in outcome.jobs:
        classes.setdefault((each.job.nodes - 1).bit_length(), []).append(each)
    per_node = outcome.cluster.gpus_per_node
    return [size_class(outcome, classes[power], per_node * 2**power) for power in sorted(classes)]


def size_class(outcome: Outcome, jobs: list[Account], gpus: float) -> SizeClass:
    """Sums over jobs.

    Args:
        outcome: The simulated cluster.
        jobs: Some of its jobs.
        gpus: What to call their size.
    """

    def total(values: Iterable[float]) -> float:
        return math.fsum(value * each.job.nodes for value, each in zip(values, jobs))

    ended = [sum(each.ended[why] for each in jobs) for why in range(OPEN)]
    allotted = sum(each.allotted for each in jobs)
    node_time = total(each.allotted for each in jobs)
    mean_nodes = node_time / allotted if allotted else sum(each.job.nodes for each in jobs) / len(jobs)
    lost, restart = (
        {why: total(getattr(each, name)[why] for each in jobs) for why in (FAILURE, CASCADE, PREEMPTION)}
        for name in ("lost", "restart")
    )
    return SizeClass(
        gpus,
        len(jobs),
        ended[DONE],
        sum(each.status == LIMIT for each in jobs),
        sum(ended),
        ended[FAILURE],
        ended[CASCADE],
        ended[PREEMPTION],
        total(each.wall for each in jobs),
        total(each.queue for each in jobs),
        total(each.productive for each in jobs),
        total(each.write for each in jobs),
        total(each.restart[FIRST] for each in jobs),
        lost[FAILURE] + restart[FAILURE],
        lost[CASCADE] + restart[CASCADE],
        lost[PREEMPTION] + restart[PREEMPTION],
        total(each.lost[LIMIT] for each in jobs),
        total(each.study_loss[FAILURE] for each in jobs),
        total(each.study_loss[CASCADE] for each in jobs),
        allotted / ended[FAILURE] if ended[FAILURE] else math.inf,
        mttf(job_rate(outcome.cluster.failure_rate, mean_nodes, 1)),
    )


def second_order_share(classes: Iterable[SizeClass]) -> float:
    """Share of the loss by failures that is of second order, as the study counts loss; NaN without loss.

    Args:
        classes: All classes of a cluster.
    """
    first, second = (math.fsum(getattr(each, f"study_{which}") for each in classes) for which in ("first", "second"))
    return second / (first + second) if first + second else math.nan


def failed_share(outcome: Outcome, gpus: float) -> tuple[int, int]:
    """Attempts of large jobs.

    Args:
        outcome: The simulated cluster.
        gpus: Least GPUs of a large job.

    Returns:
        How many a failure ended, and how many ended at all.
    """
    least = gpus / outcome.cluster.gpus_per_node
    jobs = [each for each in outcome.jobs if each.job.nodes >= least]
    return sum(each.ended[FAILURE] for each in jobs), sum(sum(each.ended[:OPEN]) for each in jobs)
