"""How returns grew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW = 20
"""Episodes of training whose mean is drawn."""


def returns_figure(
    training: Sequence[tuple[float, float]], evaluation: Sequence[tuple[float, float, float]]
) -> Figure | None:
    """Returns over environment steps: of episodes in training, and of evaluations with their spread.

    Args:
        training: Environment steps and return of each episode.
        evaluation: Environment steps, mean return, and standard deviation over episodes, of each evaluation.

    Returns:
        The figure; ``None`` where there is nothing to draw.
    """
    if not training and not evaluation:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    if training:
        steps, returns = np.array(training).T
        axes.plot(steps, returns, ".", color="0.75", markersize=3, label="episodes in training")
        if len(returns) >= WINDOW:
            means = np.convolve(returns, np.full(WINDOW, 1 / WINDOW), "valid")
            axes.plot(steps[WINDOW - 1 :], means, color="0.45", label=f"mean of {WINDOW}")
    if evaluation:
        steps, means, spread = np.array(evaluation).T
        axes.fill_between(steps, means - spread, means + spread, alpha=0.25, linewidth=0)
        axes.plot(steps, means, marker="o", markersize=3, label="evaluation, ± deviation over episodes")
    axes.set(xlabel="environment steps", ylabel="return")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
