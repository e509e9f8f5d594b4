"""Pictures of how well a tagger finds entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def scores_figure(scores: Mapping[str, float], types: Sequence[str]) -> Figure:
    """Draw precision, recall and F1 of all entities and of each type as bars.

    Args:
        scores: What ``SpanF1(by_type=True).compute()`` gives, as numbers.
        types: The entity types.

    Returns:
        A figure of its own, not registered with pyplot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.5 + 0.9 * (len(types) + 1), 3.6), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(("precision", "recall", "f1")):
        heights = [scores[name], *(scores[f"{name}/{kind}"] for kind in types)]
        places = [place + 0.27 * (number - 1) for place in range(len(heights))]
        bars = axes.bar(places, heights, width=0.25, label=name)
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    counts = [f"{kind}\n({scores[f'entities/{kind}']:.0f})" for kind in types]
    total = sum(scores[f"entities/{kind}"] for kind in types)
    axes.set(ylim=(0, 1.05), xticks=range(len(types) + 1), ylabel="exact match")
    axes.set_xticklabels([f"all\n({total:.0f})", *counts])
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.15))
    return figure
