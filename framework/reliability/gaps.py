"""Times between failures: exponential, Weibull and gamma of a given mean, or drawn again from a trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from framework.reliability.rates import checked

if TYPE_CHECKING:
    import numpy as np

    Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

Shape = Literal["exponential", "weibull", "gamma"]
"""Families of distributions; a shape below 1 makes failures come in bursts, 1 is the exponential."""


@dataclass(frozen=True)
class Gaps:
    """Independent times between failures, counted while the job is scheduled.

    Attributes:
        mean: Mean time to failure in minutes, positive.
        family: Distribution.
        shape: Shape of a Weibull or gamma distribution, at least 0.01.

    Raises:
        ValueError: For values out of range.
    """

    mean: float
    family: Shape = "exponential"
    shape: float = 1.0

    def __post_init__(self) -> None:
        checked("mean", self.mean, positive=True)
        if checked("shape", self.shape) < 0.01:
            raise ValueError(f"shape must be at least 0.01, got {self.shape:g}")
        if self.family not in ("exponential", "weibull", "gamma"):
            raise ValueError(f"family must be exponential, weibull or gamma, got {self.family}")

    @property
    def longest(self) -> float:
        """Longest possible gap in minutes."""
        return math.inf

    def draw(self, generator: np.random.Generator, size: tuple[int, int]) -> Floats:
        """Gaps of the given shape of array, in minutes.

        Args:
            generator: Source of randomness.
            size: Rows and columns.
        """
        if self.family == "weibull":
            return generator.weibull(self.shape, size) * (self.mean / math.gamma(1 + 1 / self.shape))
        if self.family == "gamma":
            return generator.gamma(self.shape, self.mean / self.shape, size)
        return generator.exponential(self.mean, size)


class TraceGaps:
    """Gaps of a trace, drawn independently with replacement (bootstrap).

    Args:
        gaps: Times between failures, positive, at least two.
        mean: Mean to scale them to, in minutes: the trace then gives the shape alone. Without it they stay as they are.

    Raises:
        ValueError: For too few gaps, or one that is not positive and finite.
    """

    def __init__(self, gaps: Sequence[float] | Floats, mean: float | None = None) -> None:
        import numpy as np

        values = np.asarray(gaps, dtype=float)
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"a trace needs at least two gaps, got {values.size}")
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError("gaps of a trace must be positive and finite")
        scale = 1.0 if mean is None else checked("mean", mean, positive=True) / float(values.mean())
        self.values: Floats = values * scale

    @property
    def mean(self) -> float:
        """Mean gap in minutes."""
        return float(self.values.mean())

    @property
    def longest(self) -> float:
        """Longest possible gap in minutes."""
        return float(self.values.max())

    def draw(self, generator: np.random.Generator, size: tuple[int, int]) -> Floats:
        """Gaps of the given shape of array, in minutes.

        Args:
            generator: Source of randomness.
            size: Rows and columns.
        """
        return self.values[generator.integers(len(self.values), size=size)]
