"""Lemon nodes: nodes that fail far more often than others, found from their history.

The study (Kokolis et al., HPCA 2025, arXiv 2410.21680) counts seven signals per node over 28 days, and sets a threshold
on each by hand, read off its distribution over the nodes; that it found 40 nodes with over 85 % accuracy is reported by
accounts of others, the thresholds are not. Here a threshold is a quantile, and a node has as many votes as signals
beyond it. Beside that stands a score that needs no thresholds: counts are Poisson, the rates of ordinary nodes are
gamma distributed, and a lemon's is some multiple of their mean, any in a range as likely on a logarithmic scale as any
other (empirical Bayes).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from framework.reliability.lemon_history import SIGNALS, UNCORRELATED, History
from framework.reliability.rates import checked

if TYPE_CHECKING:
    import numpy as np

    from framework.reliability.gaps import Floats

    Flags = np.ndarray[Any, np.dtype[np.bool_]]

PROBABILITY = 0.5
"""Least probability of being a lemon at which a node is flagged."""

VOTES = 4
"""Signals beyond their thresholds at which a node is flagged."""


MULTIPLES = (10.0, 300.0)
"""A lemon's rate over the mean of ordinary nodes: from and to."""

MOST_LEMONS = 0.05
"""Largest share of lemons that a fit may find: what more nodes than that do is ordinary."""


class Mixture(NamedTuple):
    """Failure rates of nodes: gamma distributed, and of a share of lemons log-uniform from ``MULTIPLES`` of the mean.

    Attributes:
        shape: Shape of the gamma distribution.
        mean: Its mean, failures per node-day.
        share: Share of lemons.
    """

    shape: float
    mean: float
    share: float


# -- scores ------------------------------------------------------------------------------------------------------------


def votes(signals: Floats, quantile: float = 0.98) -> Floats:
    """How many signals of each node lie beyond their threshold, the quantile of the signal over all nodes.

    Args:
        signals: Nodes x ``SIGNALS``.
        quantile: Between 0 and 1, both excluded.

    Raises:
        ValueError: If the quantile is out of range.
    """
    import numpy as np

    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie between 0 and 1, got {quantile:g}")
    voting = signals[:, [index for index, name in enumerate(SIGNALS) if name not in UNCORRELATED]]
    return (voting > np.quantile(voting, quantile, axis=0)).sum(axis=1).astype(float)


def fit_mixture(counts: Floats, days: float) -> Mixture:
    """Fit the rates of nodes by maximum likelihood of their counts.

    Args:
        counts: Failures of each node.
        days: Days of observation, positive.

    Raises:
        ValueError: If there is no failure.
    """
    import numpy as np
    from scipy.optimize import minimize

    checked("days", days, positive=True)
    if not counts.sum() > 0:
        raise ValueError("there is no failure to fit rates to")
    values, weights = np.unique(counts, return_counts=True)

    def loss(at: Floats) -> float:
        ordinary, lemon = _log_likelihoods(values, days, _mixture(at))
        return -float((weights * np.logaddexp(ordinary, lemon)).sum())

    middle = math.log(max(float(np.median(counts)), 0.5 * float(counts.mean())) / days)
    starts = [np.array([shape, middle, share]) for shape in (0.0, 2.0) for share in (-6.0, -4.0)]
    bounds = [(-4.0, 7.0), (middle - 5.0, middle + 5.0), (-14.0, math.log(MOST_LEMONS / (1 - MOST_LEMONS)))]
    found = [minimize(loss, start, method="L-BFGS-B", bounds=bounds) for start in starts]
    return _mixture(min(found, key=lambda each: each.fun).x)


def lemon_probability(counts: Floats, days: float, mixture: Mixture) -> Floats:
    """Probability that a node is a lemon, given its count.

    Args:
        counts: Failures of each node.
        days: Days of observation.
        mixture: The rates.
    """
    import numpy as np

    values, inverse = np.unique(counts, return_inverse=True)
    ordinary, lemon = _log_likelihoods(values, days, mixture)
    return np.exp(lemon - np.logaddexp(ordinary, lemon))[inverse]


def posterior_rate(counts: Floats, days: float, mixture: Mixture) -> Floats:
    """Mean failure rate of a node, given its count: what a ranking goes by.

    Args:
        counts: Failures of each node.
        days: Days of observation.
        mixture: The rates.
    """
    import numpy as np

    # E[rate | k] = (k + 1)/T P(k + 1)/P(k), Robbins' formula, here with the fitted probabilities.
    here, there = (np.logaddexp(*_log_likelihoods(values, days, mixture)) for values in (counts, counts + 1))
    return (counts + 1) / days * np.exp(there - here)


def _mixture(at: Floats) -> Mixture:
    return Mixture(math.exp(at[0]), math.exp(at[1]), 1 / (1 + math.exp(-at[2])))


def _log_likelihoods(counts: Floats, days: float, mixture: Mixture) -> tuple[Floats, Floats]:
    """Logarithm of the share times the probability of each count, for ordinary nodes and for lemons."""
    import numpy as np
    from scipy import stats
    from scipy.special import exp1, gammainc, gammaincc

    mean = mixture.mean * days
    ordinary = stats.nbinom.logpmf(counts, mixture.shape, mixture.shape / (mixture.shape + mean))
    low, high = (multiple * mean for multiple in MULTIPLES)
    # Poisson probabilities integrated over d(rate)/rate: incomplete gamma functions, by whichever tail is small.
    k = np.maximum(counts, 1.0)
    upper = gammaincc(k, low) - gammaincc(k, high)
    within = np.where(counts > low, gammainc(k, high) - gammainc(k, low), upper) / k
    within = np.where(counts > 0, within, exp1(low) - exp1(high)) / math.log(high / low)
    tail = stats.poisson.logpmf(counts, np.where(counts > low, high, low))  # where that underflows
    lemon = np.where(within > 1e-250, np.log(np.maximum(within, 1e-300)), tail)
    return ordinary + math.log1p(-mixture.share), lemon + math.log(mixture.share)


def find_lemons(history: History, begin: float, end: float, probability: float = PROBABILITY) -> Flags:
    """Nodes that are probably lemons, by their times out of service; none where there is no failure.

    Args:
        history: The nodes.
        begin: First day that counts.
        end: Last day.
        probability: Least probability, between 0 and 1.
    """
    import numpy as np

    counts = history.signals(begin, end)[:, SIGNALS.index("out_count")]
    if not counts.any():
        return np.zeros(len(counts), dtype=bool)
    return lemon_probability(counts, end - begin, fit_mixture(counts, end - begin)) >= probability


# -- how good they are -------------------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """Nodes that were flagged against nodes that turned out bad.

    Attributes:
        nodes: All nodes.
        flagged: How many were flagged.
        bad: How many were bad.
        hits: How many were both.
        low: Lower end of the exact 95 % interval of the precision; NaN where none was flagged.
        high: Upper end.
        p_value: Probability of as many hits or more for as many nodes flagged at random (hypergeometric: the exact
            permutation test).
    """

    nodes: int
    flagged: int
    bad: int
    hits: int
    low: float
    high: float
    p_value: float

    @property
    def precision(self) -> float:
        """Share of the flagged that are bad; NaN where none was flagged."""
        return self.hits / self.flagged if self.flagged else math.nan

    @property
    def recall(self) -> float:
        """Share of the bad that are flagged; NaN where none is bad."""
        return self.hits / self.bad if self.bad else math.nan

    @property
    def lift(self) -> float:
        """Precision over that of a random choice; NaN where either is not defined."""
        return self.precision / (self.bad / self.nodes) if self.bad else math.nan


def evaluate(flagged: Flags, bad: Flags) -> Evaluation:
    """Hold flags against the truth.

    Args:
        flagged: Whether each node was flagged.
        bad: Whether each was bad.
    """
    from scipy import stats

    nodes, chosen, wrong, hits = len(flagged), int(flagged.sum()), int(bad.sum()), int((flagged & bad).sum())
    low, high = math.nan, math.nan
    if chosen:
        low = float(stats.beta.ppf(0.025, hits, chosen - hits + 1)) if hits else 0.0
        high = float(stats.beta.ppf(0.975, hits + 1, chosen - hits)) if hits < chosen else 1.0
    return Evaluation(nodes, chosen, wrong, hits, low, high, float(stats.hypergeom.sf(hits - 1, nodes, wrong, chosen)))


def highest(values: Floats, share: float) -> Flags:
    """The nodes with the highest values, at least one; ties go to the first.

    Args:
        values: A value per node.
        share: Share of the nodes, between 0 and 1.
    """
    import numpy as np

    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[: max(1, round(share * len(values)))]] = True
    return chosen


def worst(counts: Floats, share: float) -> Flags:
    """Nodes with failures that are among the most, ties together: at most about a share of the nodes.

    Args:
        counts: Failures of each node.
        share: Share of the nodes, between 0 and 1.
    """
    import numpy as np

    return counts > max(0.0, float(np.quantile(counts, 1 - share)))


def marked(nodes: int, chosen: Iterable[int]) -> Flags:
    """Flags of nodes by their numbers.

    Args:
        nodes: How many there are.
        chosen: Numbers of those to flag.
    """
    import numpy as np

    flags = np.zeros(nodes, dtype=bool)
    flags[sorted(chosen)] = True
    return flags
