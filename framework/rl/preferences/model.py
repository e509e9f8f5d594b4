"""The Bradley-Terry model of preferences that depend on sums of reward components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

RANK = 1e-9
"""Singular values below this share of the largest count as zero."""


class Pair(NamedTuple):
    """What was said of two trajectories.

    Attributes:
        better: Name of the preferred one.
        worse: Name of the other.
        tie: Neither is preferred.
        group: Who said it, or in which ranking; pairs of a group are not independent. Empty: a group of its own.
    """

    better: str
    worse: str
    tie: bool = False
    group: str = ""


@dataclass(frozen=True)
class Fit:
    """Weights with what is known about them.

    Attributes:
        names: Components.
        weights: Their weights, shape ``(K,)``.
        covariance: Of the weights, shape ``(K, K)``; NaN for a weight that is held at zero.
        confidence: Coverage of the intervals.
        log_likelihood: Of the preferences, without penalty.
        agreement: Share of the pairs without tie that the weights put in the right order; NaN without any.
        pairs: How many pairs went in.
        ties: How many of them are ties.
        rank: Rank of the differences; below the number of components, only a penalty makes weights unique.
        notes: Sentences about what limits the result.
    """

    names: tuple[str, ...]
    weights: Array
    covariance: Array
    confidence: float
    log_likelihood: float
    agreement: float
    pairs: int
    ties: int
    rank: int
    notes: tuple[str, ...]

    @property
    def errors(self) -> Array:
        """Standard error of each weight, shape ``(K,)``."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def intervals(self) -> Array:
        """Normal interval of each weight, low and high, shape ``(K, 2)``."""
        from scipy import stats

        half = stats.norm.ppf((1 + self.confidence) / 2) * self.errors
        return np.stack([self.weights - half, self.weights + half], axis=1)

    def relative_to(self, name: str) -> Fit:
        """The same weights divided by one of them, whose sign stays; errors by the delta method.

        Args:
            name: The component whose weight becomes 1, or -1.

        Raises:
            ValueError: If there is no such component, or its weight is zero.
        """
        if name not in self.names:
            raise ValueError(f"no such component {name}; there are {', '.join(self.names)}")
        at = self.names.index(name)
        scale = abs(float(self.weights[at]))
        if scale == 0:
            raise ValueError(f"weights cannot be relative to {name}, whose weight is 0")
        weights = self.weights / scale
        slope = np.eye(len(weights))
        slope[:, at] -= np.sign(self.weights[at]) * weights
        slope /= scale
        held = np.isnan(np.diag(self.covariance))
        covariance = slope @ np.where(np.isnan(self.covariance), 0, self.covariance) @ slope.T
        covariance[held] = covariance[:, held] = math.nan
        return replace(self, weights=weights, covariance=covariance)

    def report(self) -> dict[str, Any]:
        """Everything as plain types; what is not finite is None."""
        rows = zip(self.names, self.weights.tolist(), self.errors.tolist(), self.intervals.tolist())
        return {
            "weights": {
                name: {"weight": weight, "error": _plain(error), "low": _plain(low), "high": _plain(high)}
                for name, weight, error, (low, high) in rows
            },
            "confidence": self.confidence,
            "log_likelihood": self.log_likelihood,
            "agreement": _plain(self.agreement),
            "pairs": self.pairs,
            "ties": self.ties,
            "rank": self.rank,
            "notes": list(self.notes),
        }


def fit(
    sums: Mapping[str, ArrayLike],
    pairs: Sequence[Pair],
    names: Sequence[str],
    *,
    l2: float = 0.0,
    nonnegative: bool = False,
    ties: Literal["half", "drop"] = "half",
    confidence: float = 0.95,
) -> Fit:
    """The most likely weights.

    Args:
        sums: Sums of components by trajectory, shape ``(K,)`` each.
        pairs: Preferences, at least one.
        names: Components.
        l2: Penalty ``l2 / 2 |u|²``, at least 0, where ``u`` are the weights of components scaled so that their
            differences have a root mean square of 1: the units of the components do not matter.
        nonnegative: Hold weights at zero that would be negative.
        ties: ``half`` counts a tie as half a preference for each; ``drop`` leaves it out.
        confidence: Coverage of the intervals, in (0, 1).

    Returns:
        The fit. Its covariance is the inverse of the (penalised) information; where pairs share a group, the sandwich
        over groups, which a handful of groups makes too small.

    Raises:
        ValueError: If a value is out of range, a trajectory is unknown, or the data do not determine the weights and
            there is no penalty: differences of low rank, or weights that explain every preference, so that larger ones
            do it better still.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if not (math.isfinite(l2) and l2 >= 0):
        raise ValueError(f"l2 must be at least 0, got {l2}")
    if ties not in ("half", "drop"):
        raise ValueError(f"ties must be half or drop, got {ties!r}")
    used = [pair for pair in pairs if ties == "half" or not pair.tie]
    if not used:
        raise ValueError(f"weights need at least one preference, got {len(pairs)} ties" if pairs else "no preferences")
    differences, tied = _differences(sums, used, names), np.array([pair.tie for pair in used])
    spread = np.sqrt((differences**2).mean(axis=0))
    scaled = differences / np.where(spread > 0, spread, 1.0)
    rank, notes = _identified(scaled, tied, names, l2, nonnegative)

    target = np.where(tied, 0.5, 1.0)
    weights = _maximum(scaled, target, l2, nonnegative)
    free = ~(nonnegative & (weights == 0))
    probability = _sigmoid(scaled @ weights)
    covariance = np.full((len(names), len(names)), math.nan)
    curvature = (scaled.T * (probability * (1 - probability))) @ scaled + l2 * np.eye(len(names))
    inverse = np.linalg.inv(curvature[np.ix_(free, free)])
    groups: dict[str, list[int]] = {}
    for index, pair in enumerate(used):
        groups.setdefault(pair.group or f"\0{index}", []).append(index)
    if len(groups) < len(used):
        slopes = (target - probability)[:, None] * scaled[:, free]
        scores = np.stack([slopes[members].sum(axis=0) for members in groups.values()])
        inverse = inverse @ (scores.T @ scores) @ inverse
        if len(groups) < 10:
            notes.append(f"pairs come from {len(groups)} groups: with so few, standard errors are too small")
    covariance[np.ix_(free, free)] = inverse
    for name in (name for name, kept in zip(names, free) if not kept):
        notes.append(f"the weight of {name} is held at 0: preferences alone would make it negative")
    unit = np.where(spread > 0, spread, 1.0)
    margins = (scaled @ weights)[~tied]
    return Fit(
        names=tuple(names),
        weights=weights / unit,
        covariance=covariance / np.outer(unit, unit),
        confidence=confidence,
        log_likelihood=likelihood(weights, scaled, target)[0],
        agreement=float(np.mean(margins > 0)) if len(margins) else math.nan,
        pairs=len(used),
        ties=int(tied.sum()),
        rank=rank,
        notes=tuple(notes),
    )


def likelihood(weights: Array, differences: Array, target: Array, l2: float = 0.0) -> tuple[float, Array]:
    """Log-likelihood, less the penalty, and its gradient.

    Args:
        weights: Shape ``(K,)``.
        differences: Sums of the first trajectory less those of the second, shape ``(N, K)``.
        target: How far the first is preferred: 1, or 0.5 for a tie, shape ``(N,)``.
        l2: Penalty ``l2 / 2 |weights|²``.
    """
    margin = differences @ weights
    value = -(target * np.logaddexp(0, -margin) + (1 - target) * np.logaddexp(0, margin)).sum()
    gradient = differences.T @ (target - _sigmoid(margin)) - l2 * weights
    return float(value - l2 / 2 * (weights @ weights)), gradient


def _differences(sums: Mapping[str, ArrayLike], pairs: Sequence[Pair], names: Sequence[str]) -> Array:
    rows = []
    for pair in pairs:
        for name in pair[:2]:
            if name not in sums:
                raise ValueError(f"trajectory {name} has preferences, but no sums of components")
        if pair.better == pair.worse:
            raise ValueError(f"trajectory {pair.better} is compared with itself")
        rows.append(np.asarray(sums[pair.better], dtype=np.float64) - np.asarray(sums[pair.worse], dtype=np.float64))
    if any(row.shape != (len(names),) for row in rows) or not np.isfinite(rows).all():
        raise ValueError(f"sums of components must be {len(names)} finite numbers for every trajectory")
    return np.stack(rows)


def _identified(
    scaled: Array, tied: NDArray[np.bool_], names: Sequence[str], l2: float, nonnegative: bool
) -> tuple[int, list[str]]:
    """Rank of the differences, and notes on what they leave open.

    Raises:
        ValueError: If something is open and there is no penalty.
    """
    rows = np.concatenate(
        [scaled, np.zeros_like(scaled, shape=(len(names), len(names)))]
    )  # as many as columns, at least
    _, singular, directions = np.linalg.svd(rows, full_matrices=False)
    rank = int((singular > RANK * max(singular[0], 1e-300)).sum())
    notes = []
    if rank < len(names):
        open_ones = [name for name, part in zip(names, np.abs(directions[rank:]).max(axis=0)) if part > 1e-6]
        notes.append(
            f"differences of {len(scaled)} pairs have rank {rank} for {len(names)} components: they do not determine "
            f"the weights of {', '.join(open_ones)}"
        )
    else:
        along = _separation(scaled, tied, nonnegative)
        if along.any():
            moved = ", ".join(name for name, part in zip(names, along) if part)
            notes.append(
                f"no preference speaks against ever larger weights (in size) of {moved}: none is the most likely"
            )
    if notes and l2 == 0:
        raise ValueError(f"{notes[0]}; give more pairs, or l2 above 0")
    return rank, [f"{note}; what l2 = {l2:g} prefers was taken" for note in notes]


def _separation(scaled: Array, tied: NDArray[np.bool_], nonnegative: bool) -> Array:
    """A direction that contradicts no preference and fulfils some, so that no weights are the most likely; else zeros.

    A linear programme: the data overlap (Albert and Anderson, 1984) if and only if margins, none of which is negative,
    have a sum of at most zero.
    """
    from scipy.optimize import linprog

    strict, equal = scaled[~tied], scaled[tied]
    none = np.zeros(scaled.shape[1])
    if not len(strict):
        return none
    found = linprog(
        -strict.sum(axis=0),
        A_ub=-strict,
        b_ub=np.zeros(len(strict)),
        A_eq=equal if len(equal) else None,
        b_eq=np.zeros(len(equal)) if len(equal) else None,
        bounds=[(0.0 if nonnegative else -1.0, 1.0)] * scaled.shape[1],
    )
    if found.status != 0 or -found.fun <= 1e-7 * len(strict):
        return none
    return np.where(np.abs(found.x) > 1e-7, found.x, 0.0)


def _maximum(scaled: Array, target: Array, l2: float, nonnegative: bool) -> Array:
    """The most likely weights: L-BFGS, and Newton's steps on weights that are free for the last digits."""
    from scipy.optimize import minimize

    def loss(weights: Array) -> tuple[float, Array]:
        value, gradient = likelihood(weights, scaled, target, l2)
        return -value, -gradient

    components = scaled.shape[1]
    bounds = [(0.0, None)] * components if nonnegative else None
    options = {"maxiter": 10_000, "ftol": 1e-14, "gtol": 1e-9}
    start = np.zeros(components)
    weights: Array = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    if nonnegative:
        weights[weights < 1e-9] = 0
    free = (weights > 0) if nonnegative else np.ones(components, dtype=np.bool_)
    for _ in range(20):
        probability = _sigmoid(scaled @ weights)
        curvature = (scaled.T * (probability * (1 - probability))) @ scaled + l2 * np.eye(components)
        value, gradient = likelihood(weights, scaled, target, l2)
        step = np.zeros(components)
        step[free] = np.linalg.lstsq(curvature[np.ix_(free, free)], gradient[free], rcond=None)[0]
        tried = weights + step
        if likelihood(tried, scaled, target, l2)[0] <= value or (nonnegative and (tried < 0).any()):
            break
        weights = tried
    return weights


def _sigmoid(margin: Array) -> Array:
    return np.exp(-np.logaddexp(0, -margin))


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
