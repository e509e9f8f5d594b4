"""Failure rates and mean times to failure at any scale.

A rate in a cluster is per node-day; a synchronous job fails as soon as one of its nodes does, so its rate is the rate
of a node times their number: ``MTTF = 1 / (nodes * rate)``.
"""

from __future__ import annotations

import math

MINUTES_PER_DAY = 1440.0
GPUS_PER_NODE = 8
"""GPUs of a node in the clusters of the study and in most since."""


def nodes_of(gpus: float, gpus_per_node: float = GPUS_PER_NODE) -> float:
    """Nodes of a job, a fraction where it does not fill its last one.

    Args:
        gpus: GPUs of the job, positive.
        gpus_per_node: GPUs of a node, positive.

    Raises:
        ValueError: For anything that is not positive and finite.
    """
    return checked("gpus", gpus, positive=True) / checked("gpus_per_node", gpus_per_node, positive=True)


def job_rate(node_rate: float, gpus: float, gpus_per_node: float = GPUS_PER_NODE) -> float:
    """Failures per minute of a whole job.

    Args:
        node_rate: Failures per node-day, not negative.
        gpus: GPUs of the job, positive.
        gpus_per_node: GPUs of a node, positive.

    Raises:
        ValueError: For a value out of range, naming it.
    """
    return checked("node_rate", node_rate) * nodes_of(gpus, gpus_per_node) / MINUTES_PER_DAY


def node_rate(rate: float, gpus: float, gpus_per_node: float = GPUS_PER_NODE) -> float:
    """Failures per node-day behind those of a job; the inverse of :func:`job_rate`.

    Args:
        rate: Failures per minute of the whole job, not negative.
        gpus: GPUs of the job, positive.
        gpus_per_node: GPUs of a node, positive.

    Raises:
        ValueError: For a value out of range, naming it.
    """
    return checked("rate", rate) * MINUTES_PER_DAY / nodes_of(gpus, gpus_per_node)


def mttf(rate: float) -> float:
    """Mean time to failure in minutes at a rate per minute; infinite at rate zero.

    Args:
        rate: Failures per minute, not negative.

    Raises:
        ValueError: For a negative rate or one that is not finite.
    """
    return 1 / rate if checked("rate", rate) else math.inf


def rate_of_mttf(mean: float) -> float:
    """Failures per minute at a mean time to failure; the inverse of :func:`mttf`.

    Args:
        mean: Mean time to failure in minutes, positive; infinite for no failures.

    Raises:
        ValueError: If it is not positive.
    """
    if not mean > 0:
        raise ValueError(f"mttf must be positive, got {mean:g}")
    return 1 / mean


def checked(name: str, value: float, positive: bool = False) -> float:
    """A finite number that is not negative.

    Args:
        name: What an error calls it.
        value: The number.
        positive: Whether zero is refused too.

    Raises:
        ValueError: Naming the value and what is allowed.
    """
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be {'positive' if positive else 'zero or more'} and finite, got {value:g}")
    return value
