"""The picture of a run: one row an attempt, its time in colours, failures as marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.reliability.measured import KINDS, Kind, Measured, merged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: dict[Kind, str] = {
    "queue": "0.85", "restart": "C1", "productive": "C2", "validation": "C8", "checkpoint": "C0", "redone": "C3",
    "lost": "C6",
}  # fmt: skip
_LABELS: dict[Kind, str] = {"lost": "cut off", "queue": "waiting"}
_UNITS = (("d", 1440.0), ("h", 60.0), ("min", 1.0), ("s", 1 / 60))


def timeline_figure(run: Measured) -> Figure:
    """Attempts as bars.

    Args:
        run: The run.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    wall = max(each.end for each in run.attempts)
    unit, minutes = next((each for each in _UNITS if wall >= 2 * each[1]), _UNITS[-1])
    figure = Figure(figsize=(9, min(10.0, 1.8 + 0.22 * len(run.attempts))), layout="constrained")
    axes = figure.subplots()
    shown: set[Kind] = set()
    for row, attempt in enumerate(run.attempts):
        spans = list(merged(attempt.spans))
        for kind in KINDS:
            bars = [(span.begin / minutes, (span.end - span.begin) / minutes) for span in spans if span.kind == kind]
            if bars:
                label = None if kind in shown else _LABELS.get(kind, kind)
                axes.broken_barh(bars, (row - 0.4, 0.8), color=COLOURS[kind], lw=0, label=label)
                shown.add(kind)
    failed = [(each.end / minutes, row) for row, each in enumerate(run.attempts) if each.failed]
    if failed:
        axes.plot(*zip(*failed), "kx", ms=5, label="failure", clip_on=False)
    axes.set(xlabel=f"wall-clock time, {unit}", ylabel="attempt", xlim=(0, wall / minutes))
    axes.set_ylim(len(run.attempts) - 0.4, -0.6)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"ETTR {run.budget.ettr:.3f}, failures: {run.failures}", loc="left", fontsize=10)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))
    names = [name for name in [*(_LABELS.get(kind, kind) for kind in KINDS), "failure"] if name in handles]
    axes.legend(
        [handles[name] for name in names],
        names,
        frameon=False,
        ncols=4,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=8,
    )
    return figure
