"""Pictures without pyplot: curves of what was logged, and figures as PNG bytes."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_METRICS = 6
"""How many metrics a learning curve shows where the module names none as its monitor."""


@runtime_checkable
class Drawable(Protocol):
    """A module or callback with pictures of its own."""

    def figures(self) -> dict[str, Figure]:
        """Figures by plain file name, drawn from the present state; called on rank zero alone."""
        ...


def learning_curve(history: Mapping[str, Sequence[tuple[float, float]]], monitor: str | None = None) -> Figure | None:
    """Losses, and beside them the monitored metric of every stage, over epochs.

    Args:
        history: Points ``(epochs done, value)`` by logged name, such as ``val/accuracy``.
        monitor: Name of the metric that decides; its namesakes of other stages (``train/accuracy``) are drawn with it.
            Without it, the first ``MAX_METRICS`` metrics are.

    Returns:
        The figure; ``None`` where nothing was logged.
    """
    history = {name: points for name, points in history.items() if points}
    losses = [name for name in history if _last_part(name).endswith("loss")]
    metrics = [name for name in history if name not in losses]
    if monitor in history:
        metrics = [name for name in metrics if _last_part(name) == _last_part(monitor)]
    panels = [(label, names) for label, names in (("loss", losses), ("metric", metrics[:MAX_METRICS])) if names]
    if not panels:
        return None

    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for name in names:
            epochs, values = zip(*history[name])
            axes.plot(epochs, values, marker="o" if len(values) < 2 else None, label=name)
        kinds = {_last_part(name) for name in names}
        axes.set(xlabel="epochs", ylabel=kinds.pop() if len(kinds) == 1 else label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as a PNG file; matplotlib draws PNG with Agg whatever backend is active.

    Args:
        figure: A figure made with or without pyplot.
        dpi: Dots per inch, positive.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})  # equal figures, equal bytes
    return buffer.getvalue()


def close(figure: Figure) -> None:
    """Free a figure that pyplot may know of; pyplot is not imported for that, and its other figures stay."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(figure)


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1]
