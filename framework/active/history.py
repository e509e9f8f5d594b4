"""What active learning reached after each round, as a table and as curves over what had been bought."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS = ("round", "epochs", "items", "cost", "share")
"""Columns of every row; metrics come after."""
MAX_PANELS = 6


class History:
    """One row a round: its number, epochs trained so far, items, cost and share of the cost labelled, metrics.

    Attributes:
        rows: The rows, first round first.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def record(
        self, round: int, epochs: int, items: int, cost: float, share: float, metrics: Mapping[str, float]
    ) -> None:
        """Add a round, or replace it if it is there already.

        Args:
            round: Number of the round, from 0.
            epochs: Epochs trained since the start.
            items: Labelled items it was trained on.
            cost: What they cost.
            share: Share of the cost of all items, in [0, 1].
            metrics: Values by logged name, such as ``val/accuracy``.
        """
        self.rows = [row for row in self.rows if row["round"] < round]
        self.rows.append({**dict(zip(COUNTS, (round, epochs, items, cost, share))), **metrics})

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in the order in which they first appeared."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name not in COUNTS))

    def csv(self) -> str:
        """The rows as CSV; a cell is empty where a round lacks a metric."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*COUNTS, *self.metrics], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def figure(self, unit: str = "items") -> Figure | None:
        """Every metric against the cost bought; namesakes of other stages (``val/f1``, ``test/f1``) share a panel.

        Args:
            unit: What costs count, for the axis.

        Returns:
            The figure, not registered with pyplot; None as long as there is nothing to draw.
        """
        panels: dict[str, list[str]] = {}
        for name in self.metrics:
            panels.setdefault(re.sub(r"/dataloader_idx_\d+$", "", name).rpartition("/")[2], []).append(name)
        kept = list(panels.items())[:MAX_PANELS]
        if not kept:
            return None

        from matplotlib.figure import Figure

        columns = min(len(kept), 3)
        lines = -(-len(kept) // columns)
        figure = Figure(figsize=(5 * columns, 3.6 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(kept) :]:
            axes.remove()
        for axes, (label, names) in zip(grid.flat, kept):
            for name in names:
                points = [(row["cost"], row[name]) for row in self.rows if name in row]
                axes.plot(*zip(*points), marker="o", markersize=4, label=name)
            axes.set(xlabel=f"labelled {unit}", ylabel=label)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
        return figure

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, so that a checkpoint loads with ``weights_only=True``."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the rows of a checkpoint."""
        self.rows = [dict(row) for row in state["rows"]]
