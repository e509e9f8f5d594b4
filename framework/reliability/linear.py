"""ETTR to first order in the failure rate, as the study states it, with its error and where it may be used.

Reported for version 2 of the paper, for long runs and no queue (``p = λ(u + Δt/2)``)::

    ETTR ≈ (1 - p) / (1 + w/Δt)

Scheduled time is ``S = (R(1 + w/Δt) + u) / (1 - p)``, wall-clock time ``W = S + q(1 + λS)``; ``R / W`` contains it,
and to first order also version 1, which had no cost of writing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from framework.reliability.job import Job
from framework.reliability.rates import checked
from framework.reliability.renewal import ettr_finite, log_ettr_exact, log_sinhc

VALID_PRESSURE = 0.3
"""Largest p at which the form is called valid: its error is then at most about 5 % without cost of writing."""


@dataclass(frozen=True)
class Linear:
    """A first-order ETTR.

    Attributes:
        value: The ratio; above 1 or far off where it is not valid.
        pressure: ``p = λ(u + Δt/2 + latency)``.
        error: ``value / exact - 1``. The pressure alone does not bound it: a write as long as the interval adds to it.
    """

    value: float
    pressure: float
    error: float

    @property
    def valid(self) -> bool:
        """Whether the pressure is at most ``VALID_PRESSURE``."""
        return self.pressure <= VALID_PRESSURE


def ettr_linear(job: Job, productive: float = math.inf) -> Linear:
    """First-order ETTR; for a long run without queue the form reported for version 2 of the paper.

    Args:
        job: The job. ``latency`` adds to what a failure loses.
        productive: Work to be done in minutes, positive.

    Returns:
        The ratio with its error: in closed form ``(1 - p) e^(p + λw/2) sinh(h)/h - 1``, ``h = λ(Δt + w)/2``, for a long
        run; against :func:`~framework.reliability.renewal.ettr_finite` for a finite one.

    Raises:
        ValueError: If the pressure is 1 or more, where the form has no meaning; the exact one has no such limit.
    """
    pressure = _pressure(job)
    if math.isinf(productive):
        value = (1 - pressure) / ((1 + job.write / job.interval) * (1 + job.rate * job.queue))
        return Linear(value, pressure, linear_error(job))
    checked("productive", productive, positive=True)
    scheduled = (productive * (1 + job.write / job.interval) + job.restart) / (1 - pressure)
    value = productive / (scheduled + job.queue * (1 + job.rate * scheduled))
    return Linear(value, pressure, value / ettr_finite(job, productive) - 1)


def ettr_first_version(job: Job, productive: float = math.inf) -> Linear:
    """The form of version 1 of the paper, ``(1 - p) / (1 + (u + q)/R + λq)``: no cost of writing.

    It is given as it is remembered, and was not checked against the text of version 1.

    Args:
        job: The job; its ``write`` must be zero.
        productive: Work to be done in minutes, positive.

    Raises:
        ValueError: If checkpoints cost time, or the pressure is 1 or more.
    """
    if job.write:
        raise ValueError(f"version 1 has no cost of writing: write must be 0, got {job.write:g} min")
    pressure = _pressure(job)
    start = 0.0 if math.isinf(productive) else (job.restart + job.queue) / checked("productive", productive, True)
    value = (1 - pressure) / (1 + start + job.rate * job.queue)
    exact = math.exp(log_ettr_exact(job)) if math.isinf(productive) else ettr_finite(job, productive)
    return Linear(value, pressure, value / exact - 1)


def linear_error(job: Job) -> float:
    """Relative error of the first-order form of a long run against the exact one, in closed form.

    Args:
        job: The job, with a pressure below 1.

    Returns:
        About ``λw/2 - p²/2 - p³/3 + (λc)²/24``: neglected writes push it up, terms of second order down.

    Raises:
        ValueError: If the pressure is 1 or more.
    """
    pressure = _pressure(job)
    exponent = math.log1p(-pressure) + pressure + job.rate * job.write / 2 + log_sinhc(job.rate * job.cycle / 2)
    return math.expm1(exponent) if exponent < 700 else math.inf


def _pressure(job: Job) -> float:
    if job.pressure >= 1:
        raise ValueError(
            f"the first-order form needs rate x (restart + interval / 2 + latency) below 1, got {job.pressure:.3g}; "
            "the exact form has no such limit"
        )
    return job.pressure
