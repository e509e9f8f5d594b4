"""How often to write checkpoints: Daly-Young's rule, the exact optimum, and that of the first-order form."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

from framework.reliability.job import Job
from framework.reliability.rates import checked

Rule = Literal["fixed", "young", "optimal"]
"""How an interval follows from rate and write: not at all, by Daly-Young's rule, or by the exact optimum."""


def young_interval(rate: float, write: float) -> float:
    """``sqrt(2w/λ)``, Young's rule of 1974, which Daly's of 2006 equals to first order; the one the study uses.

    Args:
        rate: Failures per minute of the whole job; zero gives infinity.
        write: Time that training stands still for a checkpoint in minutes, positive.

    Raises:
        ValueError: For values out of range; free checkpoints have no best interval, the shorter the better.
    """
    checked("rate", rate)
    _positive_write(write)
    return math.sqrt(2 * write / rate) if rate else math.inf


def optimal_interval(rate: float, write: float) -> float:
    """Interval with the highest exact ETTR, ``(1 + W(-e^(-1 - λw))) / λ`` with the principal branch of Lambert's W.

    Restart, queue and latency are factors that do not contain the interval, so they do not move it. For small ``λw`` it
    is about ``sqrt(2w/λ) - 2w/3``.

    Args:
        rate: Failures per minute of the whole job; zero gives infinity.
        write: Time that training stands still for a checkpoint in minutes, positive.

    Returns:
        Minutes, less than ``1 / rate``.

    Raises:
        ValueError: As :func:`young_interval`.
    """
    checked("rate", rate)
    _positive_write(write)
    return _share(rate * write) / rate if rate * write else math.inf


def linear_optimal_interval(rate: float, write: float, restart: float = 0.0) -> float:
    """Interval with the highest first-order ETTR, ``sqrt(w² + 2w(1 - λu)/λ) - w``.

    That it depends on the restart is an artefact of the form.

    Args:
        rate: Failures per minute of the whole job; zero gives infinity.
        write: Time that training stands still for a checkpoint in minutes, positive.
        restart: Time of a restart in minutes.

    Raises:
        ValueError: As :func:`young_interval`, and if ``rate * restart`` is 1 or more.
    """
    checked("rate", rate)
    checked("restart", restart)
    _positive_write(write)
    if rate * restart >= 1:
        raise ValueError(f"the first-order form needs rate x restart below 1, got {rate * restart:.3g}")
    if not rate:
        return math.inf
    gain = 2 * write * (1 - rate * restart) / rate
    return gain / (math.sqrt(write * write + gain) + write)


def with_rule(job: Job, rule: Rule) -> Job:
    """The job with the interval that a rule gives it.

    Args:
        job: The job.
        rule: ``young``, ``optimal``, or ``fixed`` to leave it alone.

    Raises:
        ValueError: If the rule is unknown, or gives no finite interval (no failures, free checkpoints).
    """
    if rule == "fixed":
        return job
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule}")
    interval = (young_interval if rule == "young" else optimal_interval)(job.rate, job.write)
    if math.isinf(interval):
        raise ValueError("without failures there is no best interval: the longer the better")
    return replace(job, interval=interval)


def _share(b: float) -> float:
    """Root of ``x = 1 - e^(-(x + b))``, which is the optimal interval times the rate."""
    p = math.sqrt(-2 * math.expm1(-b))
    if p < 3e-3:  # series of Lambert's W at its branch point, where 1 + W loses all digits
        return p * (1 - p * (1 / 3 - p * (11 / 72 - p * (43 / 540 - p * (769 / 17280 - p * 221 / 8505)))))
    x = min(p, 1.0)
    for _ in range(60):
        step = (x + math.expm1(-(x + b))) / -math.expm1(-(x + b))
        x -= step
        if abs(step) <= 1e-15 * x:
            break
    return x


def _positive_write(write: float) -> None:
    if not (math.isfinite(write) and write > 0):
        raise ValueError(
            f"write must be positive and finite, got {write:g}: free checkpoints are best written all the time"
        )
