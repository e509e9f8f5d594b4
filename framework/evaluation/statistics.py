"""What a few runs say about a method: means with intervals, paired differences, interquartile means.

Intervals cover the *mean over seeds*; they say nothing about a single run. numpy and scipy are imported when a
function is called, so that the command line stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """An estimate with a confidence interval.

    Attributes:
        estimate: The point estimate.
        low: Lower end; nan when the sample says nothing about the spread (one value).
        high: Upper end; nan likewise.
        n: How many values went in.
        confidence: Coverage aimed at, in (0, 1).
    """

    estimate: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent values with Student's t interval.

    Args:
        values: One value a run, at least one; a single value gives an interval of nan.
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: If ``values`` is empty, not one-dimensional or not finite, or ``confidence`` is not in (0, 1).
    """
    from scipy import stats

    x = _vector(values, "values")
    _check_confidence(confidence)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, 1, confidence)
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x), confidence)


def paired_difference(ours: Mapping[Any, float], other: Mapping[Any, float], confidence: float = 0.95) -> Interval:
    """Mean of ``ours - other`` over the keys both have (seeds, as a rule), with Student's t interval.

    Runs that share a seed share their split of the data, so that pairs differ far less than two independent samples.

    Args:
        ours: Value by seed.
        other: Value by seed.
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: If no key is shared, or a value is not finite.
    """
    shared = [key for key in ours if key in other]
    if not shared:
        raise ValueError(f"a paired difference needs shared seeds, got {sorted(ours)} and {sorted(other)}")
    return mean_interval([ours[key] - other[key] for key in shared], confidence)


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the middle half of all values (the lowest and highest quarter, rounded down, are dropped).

    Args:
        values: Any shape, at least one value; flattened.

    Raises:
        ValueError: If ``values`` is empty or not finite.
    """
    import numpy as np
    from scipy import stats

    return float(stats.trim_mean(_vector(np.ravel(values), "values"), 0.25))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Literal["mean", "median", "iqm"] = "mean",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    method: Literal["BCa", "percentile", "basic"] = "BCa",
) -> Interval:
    """A statistic of independent values with a bootstrap interval (``scipy.stats.bootstrap``).

    Args:
        values: One value a run, at least two.
        statistic: What to estimate: mean, median, or interquartile mean.
        confidence: Coverage, in (0, 1).
        resamples: Number of bootstrap samples, at least 1.
        seed: Seed of the resampling; the same seed gives the same interval.
        method: How the interval is read off the bootstrap distribution.

    Raises:
        ValueError: If there are fewer than two values, or an argument is out of its range.
    """
    import numpy as np
    from scipy import stats

    x = _vector(values, "values")
    _check_confidence(confidence)
    statistics: dict[str, Any] = {"mean": np.mean, "median": np.median, "iqm": _iqm_along}
    if statistic not in statistics:
        raise ValueError(f"statistic must be one of {', '.join(statistics)}, got {statistic!r}")
    if len(x) < 2:
        raise ValueError(f"values must hold at least two numbers for a bootstrap, got {len(x)}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    function = statistics[statistic]
    estimate = float(function(x, axis=0))
    if np.ptp(x) == 0:  # BCa divides by the spread of the bootstrap distribution
        return Interval(estimate, estimate, estimate, len(x), confidence)
    result = stats.bootstrap(
        (x,), function, n_resamples=resamples, confidence_level=confidence, rng=np.random.default_rng(seed),
        method=method, vectorized=True,
    )  # fmt: skip
    low, high = result.confidence_interval
    return Interval(estimate, float(low), float(high), len(x), confidence)


def stratified_iqm_interval(
    scores: Mapping[str, Sequence[float]], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Interquartile mean over runs of several tasks, with a percentile interval from a bootstrap stratified by task.

    The runs of each task are resampled among themselves (Agarwal et al., NeurIPS 2021), so that every bootstrap sample
    keeps the make-up of the tasks.

    Args:
        scores: Normalised scores of the runs by task; tasks may differ in their number of runs.
        confidence: Coverage, in (0, 1).
        resamples: Number of bootstrap samples, at least 1.
        seed: Seed of the resampling.

    Raises:
        ValueError: If there is no task, a task has no run, or a score is not finite.
    """
    import numpy as np

    _check_confidence(confidence)
    if not scores:
        raise ValueError("scores must hold at least one task, got none")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    tasks = [_vector(runs, f"scores[{task!r}]") for task, runs in scores.items()]
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([runs[rng.integers(len(runs), size=(resamples, len(runs)))] for runs in tasks], axis=1)
    low, high = np.quantile(_iqm_along(drawn, axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    everything = np.concatenate(tasks)
    return Interval(interquartile_mean(everything), float(low), float(high), len(everything), confidence)


def probability_of_improvement(
    ours: Mapping[str, Sequence[float]],
    other: Mapping[str, Sequence[float]],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """How often a run of ours is better than one of another method, with a stratified bootstrap interval.

    On each task it is the share of pairs of runs in which ours is larger, ties counting one half (the Mann-Whitney
    statistic); the mean over tasks is reported (Agarwal et al., NeurIPS 2021). One half says that neither is better.

    Args:
        ours: Scores of the runs by task, larger is better.
        other: The other method's, of the same tasks; numbers of runs may differ.
        confidence: Coverage of the percentile interval, in (0, 1).
        resamples: Number of bootstrap samples, at least 1.
        seed: Seed of the resampling.

    Raises:
        ValueError: If the tasks differ, there is none, a task has no run, or a score is not finite.
    """
    import numpy as np

    _check_confidence(confidence)
    if not ours or set(ours) != set(other):
        raise ValueError(f"both methods need scores of the same tasks, got {sorted(ours)} and {sorted(other)}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    rng = np.random.default_rng(seed)
    estimate, drawn, runs = 0.0, np.zeros(resamples), 0
    for task in ours:
        x, y = _vector(ours[task], f"ours[{task!r}]"), _vector(other[task], f"other[{task!r}]")
        better = (np.sign(x[:, None] - y[None, :]) + 1) / 2
        # A resample is how often each run was drawn: the share of pairs is then a product with the table of pairs.
        rows = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=resamples)
        columns = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=resamples)
        drawn += ((rows @ better) * columns).sum(1) / better.size
        estimate, runs = estimate + float(better.mean()), runs + len(x)
    low, high = np.quantile(drawn / len(ours), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate / len(ours), float(low), float(high), runs, confidence)


def _iqm_along(x: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    from scipy import stats

    return stats.trim_mean(x, 0.25, axis=axis)


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"{name} must be a non-empty list of numbers, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{name} must be finite, got {x[~np.isfinite(x)][0]} at position {int(np.argmin(np.isfinite(x)))}"
        )
    return x


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
