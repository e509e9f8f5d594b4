"""Pictures: ETTR against the interval and the size of a job, and mean time to failure against size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from framework.reliability.fits import Observed, Size
from framework.reliability.job import Job
from framework.reliability.linear import ettr_linear
from framework.reliability.published import CASES
from framework.reliability.renewal import ettr_exact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 200


def ettr_figure(
    jobs: Sequence[tuple[str, Job]], marks: Sequence[tuple[str, float]] = (), line_at: float | None = None
) -> Figure:
    """Exact and first-order ETTR against the checkpoint interval, one colour per job.

    Args:
        jobs: Name and job; their own intervals are marked by points.
        marks: Name and minutes of intervals to mark, such as optima.
        line_at: An ETTR to draw a line at.
    """
    figure, axes = _canvas()
    own = [job.interval for _, job in jobs] + [at for _, at in marks]
    low, high = min(own) / 10, max(own) * 10
    for index, (name, job) in enumerate(jobs):
        smallest = max(low, job.latency - job.write, 1e-9)
        at = [smallest * (high / smallest) ** (step / POINTS) for step in range(POINTS + 1)]
        axes.plot(at, [ettr_exact(replace(job, interval=each)) for each in at], f"C{index}", label=name)
        linear = [(each, _linear(replace(job, interval=each))) for each in at]
        axes.plot(*zip(*linear), f"C{index}", ls=":", lw=1, label="first order" if not index else None)
        axes.plot([job.interval], [ettr_exact(job)], f"C{index}o")
    for index, (name, each) in enumerate(marks):
        axes.axvline(each, color="0.5", lw=1, ls=("--", "-", "-.")[index % 3], label=name)
    if line_at is not None:
        axes.axhline(line_at, color="0.7", lw=1)
    axes.set(xscale="log", xlabel="minutes between checkpoints", ylabel="ETTR", ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


def size_figure(
    sizes: Sequence[Size], observed: Sequence[Observed], gpus_per_node: float, published: bool = True
) -> Figure:
    """Mean time to failure against GPUs with its interval, groups of nodes, and the figures reported for the study.

    Args:
        sizes: Line and band, at least two sizes.
        observed: Groups of nodes of a trace.
        gpus_per_node: GPUs of a node.
        published: Whether to draw the reported figures.
    """
    figure, axes = _canvas()
    gpus = [size.nodes * gpus_per_node for size in sizes]
    axes.plot(gpus, [size.mttf / 60 for size in sizes], "C0", label="1 / (nodes x rate)")
    highs = [min(size.high, 1e12) / 60 for size in sizes]
    axes.fill_between(gpus, [size.low / 60 for size in sizes], highs, color="C0", alpha=0.25, lw=0, label="interval")
    finite = [each for each in observed if math.isfinite(each.median)]
    if finite:
        middle = [each.median / 60 for each in finite]
        down = [(each.median - each.low) / 60 for each in finite]
        up = [(min(each.high, 1e3 * each.median) - each.median) / 60 for each in finite]
        at = [each.nodes * gpus_per_node for each in finite]
        axes.errorbar(at, middle, [down, up], fmt="C1.", lw=1, label="groups of nodes, 5 to 95 %")
    if published:
        for seen, marker, label in ((True, "s", "reported for RSC-1, observed"), (False, "D", "reported, projected")):
            points = [
                (case.gpus, case.reported / 60)
                for case in CASES
                if case.what == "mttf" and case.reported and case.observed is seen
            ]
            axes.plot(*zip(*points), f"k{marker}", mfc="none", ls="", label=label)
    axes.set(
        xscale="log", yscale="log", xlabel=f"GPUs, {gpus_per_node:g} to a node", ylabel="mean time to failure, hours"
    )
    if finite and any(math.isinf(each.high) for each in finite):
        shown = [size.mttf / 60 for size in sizes] + [each.median / 60 for each in finite]
        shown += [case.reported / 60 for case in CASES if published and case.what == "mttf" and case.reported]
        axes.set_ylim(min(shown) / 2, 4 * max(shown))
    axes.legend(frameon=False)
    return figure


def budget_figure(shares: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Figure:
    """Where wall-clock time goes, one bar per name.

    Args:
        shares: Name of a bar and its parts, each with its share of the whole.
    """
    figure, axes = _canvas()
    names = [name for name, _ in shares]
    left = [0.0] * len(names)
    for index, (part, _) in enumerate(shares[0][1]):
        widths = [parts[index][1] for _, parts in shares]
        axes.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths)]
    axes.set(xlim=(0, 1), xlabel="share of wall-clock time")
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=len(shares[0][1]), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _linear(job: Job) -> float:
    return ettr_linear(job).value if job.pressure < 1 else math.nan


def _canvas() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes
