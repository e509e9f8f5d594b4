"""From a trace to numbers: rate per node-day, distribution of the gaps, mean time to failure against size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from framework.reliability.rates import MINUTES_PER_DAY, checked, job_rate, mttf
from framework.reliability.traces import Trace

if TYPE_CHECKING:
    from framework.reliability.gaps import Floats


class Rate(NamedTuple):
    """A failure rate with its confidence interval.

    Attributes:
        value: Failures per unit of exposure.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


class Fit(NamedTuple):
    """A distribution fitted to gaps by maximum likelihood, its location fixed at zero.

    Attributes:
        family: ``exponential``, ``gamma`` or ``weibull``.
        shape: Its shape; 1 for the exponential.
        mean: Mean of the fitted distribution in minutes.
        log_likelihood: Sum of the log-densities of the gaps, in minutes.
        ks: Kolmogorov-Smirnov distance, between 0 and 1. No p-value: the parameters come from the same gaps.
    """

    family: str
    shape: float
    mean: float
    log_likelihood: float
    ks: float


class Size(NamedTuple):
    """Mean time to failure of jobs of one size.

    Attributes:
        nodes: Nodes of the job.
        mttf: Minutes, from the rate of the whole trace.
        low: Lower end of the confidence interval.
        high: Upper end; infinite without a failure.
    """

    nodes: float
    mttf: float
    low: float
    high: float


class Observed(NamedTuple):
    """Mean times to failure of groups of nodes of one size.

    Attributes:
        nodes: Nodes of a group.
        median: Median of the groups in minutes.
        low: 5 % quantile.
        high: 95 % quantile; infinite where groups saw no failure.
        groups: Number of groups.
    """

    nodes: int
    median: float
    low: float
    high: float
    groups: int


def rate_interval(count: int, exposure: float, confidence: float = 0.95) -> Rate:
    """Rate of a Poisson process and its exact (Garwood) confidence interval by quantiles of chi-squared.

    Args:
        count: Failures seen, not negative.
        exposure: Exposure, such as node-days, positive.
        confidence: Between 0 and 1, both excluded.

    Raises:
        ValueError: For values out of range.
    """
    checked("count", count)
    checked("exposure", exposure, positive=True)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence:g}")
    from scipy.stats import chi2

    tail = (1 - confidence) / 2
    low = float(chi2.ppf(tail, 2 * count)) / (2 * exposure) if count else 0.0
    return Rate(count / exposure, low, float(chi2.ppf(1 - tail, 2 * count + 2)) / (2 * exposure))


def node_rate_of(trace: Trace, confidence: float = 0.95) -> Rate:
    """Failures per node-day of a trace.

    Args:
        trace: The trace.
        confidence: Of the interval, which takes failures as independent; bursts make the truth wider.
    """
    return rate_interval(trace.count, trace.node_days, confidence)


def fit_gaps(gaps: Sequence[float] | Floats) -> list[Fit]:
    """Fit exponential, gamma and Weibull distributions.

    Args:
        gaps: Times between failures in minutes, positive, at least three that are not all equal.

    Returns:
        One fit per family, the most likely first.

    Raises:
        ValueError: For too few gaps, equal ones, or one that is not positive and finite.
    """
    import numpy as np
    from scipy import stats

    values = np.asarray(gaps, dtype=float)
    if values.ndim != 1 or len(values) < 3 or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"a fit needs at least three gaps, all positive and finite, got {values.size}")
    if not np.ptp(values) > 0:
        raise ValueError("a fit needs gaps that differ")
    scale = values.mean()  # the optimiser starts near 1
    fits = []
    for family, distribution in (("exponential", stats.expon), ("gamma", stats.gamma), ("weibull", stats.weibull_min)):
        parameters = distribution.fit(values / scale, floc=0)
        frozen = distribution(*parameters)
        shape = 1.0 if family == "exponential" else float(parameters[0])
        likelihood = float(frozen.logpdf(values / scale).sum() - len(values) * math.log(scale))
        ks = float(stats.kstest(values / scale, frozen.cdf).statistic)
        fits.append(Fit(family, shape, float(frozen.mean() * scale), likelihood, ks))
    return sorted(fits, key=lambda fit: -fit.log_likelihood)


def coefficient_of_variation(gaps: Sequence[float] | Floats) -> float:
    """Standard deviation over mean: 1 for an exponential, more where failures come in bursts.

    Args:
        gaps: Times between failures, at least two.
    """
    import numpy as np

    values = np.asarray(gaps, dtype=float)
    return float(values.std(ddof=1) / values.mean())


def project(rate: Rate, gpus: Sequence[float], gpus_per_node: float) -> list[Size]:
    """Mean time to failure of jobs of given sizes, ``1 / (nodes * rate)``, with the interval of the rate.

    Args:
        rate: Failures per node-day.
        gpus: GPUs of each job, positive.
        gpus_per_node: GPUs of a node, positive.

    Raises:
        ValueError: For a size that is not positive.
    """
    found = []
    for each in gpus:
        middle, high, low = (mttf(job_rate(value, each, gpus_per_node)) for value in rate)
        found.append(Size(each / gpus_per_node, middle, low, high))
    return found


def observed_by_size(trace: Trace, seed: int = 0) -> list[Observed]:
    """Mean times to failure of random groups of a trace's nodes, of 1, 2, 4, ... nodes.

    Groups of equal nodes would scatter as Poisson counts do; bad nodes widen the spread.

    Args:
        trace: A trace that names the nodes.
        seed: Seed of the grouping.

    Returns:
        One entry per size with at least eight groups; empty if the trace does not name nodes.
    """
    import numpy as np

    nodes = round(trace.nodes)
    by_node = Counter(failure.node for failure in trace.failures)
    if not trace.failures or "" in by_node or len(by_node) > nodes:
        return []
    counts = np.zeros(nodes)
    counts[: len(by_node)] = list(by_node.values())
    np.random.default_rng(seed).shuffle(counts)
    found = []
    size = 1
    while nodes // size >= 8:
        groups = nodes // size
        failures = counts[: groups * size].reshape(groups, size).sum(axis=1)
        with np.errstate(divide="ignore"):
            times = trace.days * MINUTES_PER_DAY / failures
        low, median, high = np.quantile(times, [0.05, 0.5, 0.95], method="nearest")  # quantiles may be infinite
        found.append(Observed(size, float(median), float(low), float(high), groups))
        size *= 2
    return found
