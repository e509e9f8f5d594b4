"""ETTR as the exact long-run ratio of a renewal process, the time budget of a cycle, and the mean time of a finite run.

After a failure, the downtime until the first step has mean ``D = q e^(λu) + (e^(λu) - 1)/λ`` (queue ``q``, restart
``u``, which may itself be hit). A cycle of interval and write, ``c = Δt + w``, takes ``T = (e^(λc) - 1)(1/λ + D)`` in
the mean, since the time to the next failure has no memory. Each cycle yields Δt, so by renewal-reward::

    ETTR = Δt / T = λ Δt e^(-λu) / [(1 + λq)(e^(λ(Δt + w)) - 1)]

With asynchronous writing a failure within the latency ``l`` after a snapshot loses the interval before it as well: of a
stretch X without failures, ``floor((X - l)/c)`` intervals last, which multiplies the ratio by ``e^(-λl)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from framework.reliability.job import Job
from framework.reliability.rates import checked


@dataclass(frozen=True)
class Budget:
    """Where wall-clock time goes; the five times add up to all of it.

    Attributes:
        productive: Progress that lasts, R.
        write: Standing still for checkpoints that last.
        lost: Running or writing that a failure undid.
        restart: Starting up, also in vain.
        queue: Waiting to start, Q.
        failures: Number of failures, those in a restart included.
    """

    productive: float
    write: float
    lost: float
    restart: float
    queue: float
    failures: float

    @property
    def wall(self) -> float:
        """All of the time, W = Q + R + U."""
        return self.queue + self.productive + self.unproductive

    @property
    def unproductive(self) -> float:
        """Scheduled but without progress that lasts, U."""
        return self.write + self.lost + self.restart

    @property
    def ettr(self) -> float:
        """Productive share, R / W."""
        return self.productive / self.wall


def ettr_exact(job: Job) -> float:
    """ETTR of a long run, exact under the assumptions of :class:`~framework.reliability.job.Job`.

    Args:
        job: The job.

    Returns:
        A share in [0, 1]; ``interval / (interval + write)`` at rate zero.
    """
    return math.exp(log_ettr_exact(job))


def log_ettr_exact(job: Job) -> float:
    """Logarithm of :func:`ettr_exact`, finite where the ratio itself is too small for a float.

    Args:
        job: The job.
    """
    cycle = job.rate * job.cycle
    # log(y / (e^y - 1)) = -y/2 - log(sinh(y/2) / (y/2)), which loses no digits at either end.
    waste = job.rate * (job.restart + job.latency) + math.log1p(job.rate * job.queue) + cycle / 2 + log_sinhc(cycle / 2)
    return -math.log1p(job.write / job.interval) - waste


def downtime(job: Job) -> float:
    """Mean time from a failure to the next step: queues and restarts until one restart is not hit.

    Args:
        job: The job.

    Returns:
        Minutes; infinite where they are too many for a float.
    """
    return job.queue * _exp(job.rate * job.restart) + _growth(job.rate, job.restart)


def cycle_budget(job: Job) -> Budget:
    """Mean times and failures per completed cycle of a long run.

    Args:
        job: The job.

    Returns:
        Minutes per completed cycle; its ``ettr`` is :func:`ettr_exact`.

    Raises:
        ValueError: If a cycle takes too long for a float.
    """
    # Running time until a cycle is complete and safe, over λ where it counts failures: rate zero needs no branch.
    run = _growth(job.rate, job.cycle) * _exp(job.rate * job.latency)
    hit = run * _expm1(job.rate * job.restart)  # failures in a restart, over λ
    failures = job.rate * run * _exp(job.rate * job.restart)
    if not math.isfinite(failures):
        raise ValueError(f"a cycle takes more minutes than a float holds at {job.rate:g} failures per minute")
    lost = _excess(job.rate, job.cycle) + _growth(job.rate, job.cycle) * _expm1(job.rate * job.latency)
    return Budget(job.interval, job.write, lost, hit, job.queue * failures, failures)


def finite_wall(job: Job, productive: float) -> float:
    """Mean wall-clock time of a run with a given amount of work: ``D + (K - 1) T(Δt + w) + T(rest)``.

    It begins with a queue and a restart, and writes no checkpoint after its last interval.

    Args:
        job: The job, with synchronous writing.
        productive: Work to be done in minutes, positive.

    Returns:
        Minutes; infinite where they are too many for a float.

    Raises:
        ValueError: If ``productive`` is not positive, or the job writes asynchronously.
    """
    checked("productive", productive, positive=True)
    if job.latency:
        raise ValueError(f"a finite run has no closed form with asynchronous writing, got latency {job.latency:g} min")
    segments, rest = segments_of(productive, job.interval)
    per_failure = (1 + job.rate * job.queue) * _exp(job.rate * job.restart)
    growth = (segments - 1) * _growth(job.rate, job.cycle) if segments > 1 else 0.0
    return downtime(job) + per_failure * (growth + _growth(job.rate, rest))


def ettr_finite(job: Job, productive: float) -> float:
    """Work over mean wall-clock time of a finite run, R / E[W].

    The mean of the ratios of single runs, E[R / W], is larger: simulate for that.

    Args:
        job: The job, with synchronous writing.
        productive: Work to be done in minutes, positive.

    Raises:
        ValueError: As :func:`finite_wall`.
    """
    return productive / finite_wall(job, productive)


def segments_of(productive: float, interval: float) -> tuple[int, float]:
    """Number of intervals of a run, and the length of the last.

    Args:
        productive: Work to be done, positive.
        interval: Work between two checkpoints, positive.
    """
    segments = max(1, math.ceil(productive / interval - 1e-12))
    return segments, productive - (segments - 1) * interval


def log_sinhc(x: float) -> float:
    """``log(sinh(x) / x)`` for ``x >= 0``, with full relative precision near zero and no overflow.

    Args:
        x: Where.
    """
    if x < 0.03:
        square = x * x
        return square * (1 / 6 - square * (1 / 180 - square / 2835))
    return x + math.log(-math.expm1(-2 * x)) - math.log(2 * x)


def _growth(rate: float, time: float) -> float:
    """``(e^(rate time) - 1) / rate``: mean running time until a stretch of ``time`` is free of failures."""
    return _expm1(rate * time) / rate if rate * time > 0 else time


def _excess(rate: float, time: float) -> float:
    """``_growth(rate, time) - time``, also where the two are nearly equal."""
    y = rate * time
    if y < 0.01:
        return time * y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y / 5040)))))
    return _growth(rate, time) - time


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _expm1(x: float) -> float:
    return math.expm1(x) if x < 700 else math.inf
