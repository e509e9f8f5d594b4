"""Pictures of a simulated cluster, and of how well lemon nodes are found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from framework.reliability.cluster.summary import SizeClass

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from framework.reliability.gaps import Floats

LOSSES = (
    ("first_order", "own failures"),
    ("second_order", "preempted because of failures"),
    ("scheduling", "other preemption"),
    ("start", "first starts"),
    ("write", "checkpoints"),
    ("limit", "maximum lifetime"),
)
"""What does not become progress: attribute of a class of size, and what a reader calls it."""


def cluster_figure(classes: Sequence[SizeClass]) -> Figure:
    """By size of jobs: what their time on nodes is lost to, and their mean time to failure against 1 / (nodes x rate).

    Args:
        classes: Classes of size, at least one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{each.gpus:,.0f}" for each in classes]
    bottom = np.zeros(len(classes))
    for attribute, label in LOSSES:
        heights = np.array([getattr(each, attribute) / each.allotted if each.allotted else 0.0 for each in classes])
        if heights.any():
            left.bar(names, 100 * heights, bottom=100 * bottom, label=label)
            bottom += heights
    left.set(xlabel="GPUs, up to", ylabel="% of the time on nodes")
    left.tick_params(axis="x", rotation=45)
    if bottom.any():
        left.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    gpus = [each.gpus for each in classes]
    if any(math.isfinite(each.expected_mttf) for each in classes):
        right.plot(gpus, [each.expected_mttf / 60 for each in classes], "C0", label="1 / (nodes x rate)")
    seen = [(each.gpus, each.mttf / 60, each.failures) for each in classes if math.isfinite(each.mttf)]
    if seen:
        at, middle, failures = (np.array(column, dtype=float) for column in zip(*seen))
        spread = np.exp(1.96 / np.sqrt(failures))  # of a Poisson count, roughly
        right.errorbar(at, middle, [middle - middle / spread, middle * spread - middle], fmt="C1.", label="simulated")
    right.set(xscale="log", xlabel="GPUs, up to", ylabel="mean time to failure, hours")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if right.has_data():
        right.set_yscale("log")
        right.legend(frameon=False)
    return figure


def lemon_figure(later: Floats, ranks: Sequence[tuple[str, Floats]], flagged: int) -> Figure:
    """Share of the later failures that fall on the nodes ranked first, beside a random order and the best one.

    Args:
        later: Failures of each node after the split, at least one in all.
        ranks: Name of a score and its value per node, higher first.
        flagged: How many nodes were flagged; marked by a line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    share = np.arange(len(later) + 1) / len(later)
    for index, (name, scores) in enumerate((*ranks, ("the best order", later))):
        caught = np.cumsum(later[np.argsort(-scores, kind="stable")]) / later.sum()
        style = "0.6" if index == len(ranks) else f"C{index}"
        axes.plot(100 * share, 100 * np.concatenate(([0.0], caught)), style, label=name)
    axes.plot([0, 100], [0, 100], "k:", lw=1, label="random")
    if flagged:
        axes.axvline(100 * flagged / len(later), color="0.8", lw=1, label="flagged")
    axes.set(
        xlabel="% of the nodes, highest score first", ylabel="% of the later failures", xlim=(0, 100), ylim=(0, 101)
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
