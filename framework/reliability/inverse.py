"""What has to be true for an ETTR to be reached: interval, restart, queue, write, failure rate or size of the job."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from framework.reliability.interval import Rule, optimal_interval, with_rule
from framework.reliability.job import Job
from framework.reliability.renewal import log_ettr_exact

Quantity = Literal["rate", "write", "restart", "queue"]
"""What may grow only at the cost of ETTR. The number of GPUs does so through the rate, in proportion."""


def largest(job: Job, quantity: Quantity, target: float, rule: Rule = "fixed") -> float | None:
    """Largest value of one quantity at which the exact ETTR of a long run is at least a target.

    Args:
        job: The job; its own value of the quantity does not matter.
        quantity: Which one.
        target: ETTR to be reached, between 0 and 1, both excluded.
        rule: Whether the interval stays, or follows from rate and write.

    Returns:
        Minutes, or failures per minute for ``rate``; infinite if any value will do; ``None`` if not even zero does.

    Raises:
        ValueError: If the target is out of range.
    """
    goal = _log_target(target)
    latency = job.latency  # a factor of its own, which a short interval would have no room for
    job = replace(job, latency=0.0)

    def margin(value: float) -> float:
        changed = replace(job, **{quantity: value})
        return _log_ettr(changed, rule) - changed.rate * latency - goal

    if quantity in ("restart", "queue"):  # e^(-λu) and 1 / (1 + λq) are factors of their own
        at_zero = margin(0.0)
        if at_zero < 0:
            return None
        if not job.rate:
            return math.inf
        return (at_zero if quantity == "restart" else math.expm1(at_zero)) / job.rate
    if margin(0.0) < 0:
        return None
    high = 1.0
    while margin(high) >= 0:
        high *= 2
        if high > 1e150:
            return math.inf
    low = high
    while margin(low) < 0:
        low /= 2
        if low < 1e-300:
            return 0.0
    from scipy.optimize import brentq

    return math.exp(float(brentq(lambda log: margin(math.exp(log)), math.log(low), math.log(low) + 1, xtol=1e-13)))


def intervals(job: Job, target: float) -> tuple[float, float] | None:
    """Shortest and longest checkpoint interval at which the exact ETTR of a long run is at least a target.

    Args:
        job: The job; its own interval does not matter.
        target: ETTR to be reached, between 0 and 1, both excluded.

    Returns:
        Minutes, the first zero where checkpoints are free, the second infinite without failures; ``None`` if not even
        the best interval gets there.

    Raises:
        ValueError: If the target is out of range.
    """
    goal = _log_target(target)
    from scipy.optimize import brentq

    def margin(log_interval: float) -> float:
        interval = math.exp(log_interval)
        # A long latency has no place in the shortest intervals; its factor does not depend on the interval.
        return log_ettr_exact(replace(job, interval=interval, latency=0.0)) - job.rate * job.latency - goal

    if not job.rate:
        return job.write * target / (1 - target), math.inf
    best = optimal_interval(job.rate, job.write) if job.write else 1e-12 / job.rate
    top = math.log(best)
    if margin(top) < 0:
        return None
    low = 0.0
    if job.write:
        bottom = top
        while margin(bottom) >= 0:
            bottom -= 1
        low = math.exp(float(brentq(margin, bottom, top)))
    ceiling = top
    while margin(ceiling) >= 0:
        ceiling += 1
    return max(low, job.latency - job.write), math.exp(float(brentq(margin, top, ceiling)))


def _log_ettr(job: Job, rule: Rule) -> float:
    if rule == "fixed":
        return log_ettr_exact(job)
    if not job.rate * job.write:  # the limit: no cost of checkpoints, so none of lost work either
        return -job.rate * job.restart - math.log1p(job.rate * job.queue)
    return log_ettr_exact(with_rule(job, rule))


def _log_target(target: float) -> float:
    if not 0 < target < 1:
        raise ValueError(f"the ETTR to be reached must lie between 0 and 1, got {target:g}")
    return math.log(target)
