"""What the evidence of Robust-HDP needs besides runs of the command line: what clients spent, and pictures.

.venv/bin/python -m scripts.experiments.robust_hdp  draws docs/images/robust-hdp-*.png from docs/results
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from framework.evaluation.records import Record, read_records
from framework.evaluation.statistics import mean_interval
from scripts.experiments.federated import DOCS, rounds

DRAWN = ("small-dist4",)
"""Data sets with a picture of accuracy over rounds."""
ARMS = ["FedAvg", "Oracle", "Robust-HDP", "WeiAvg", "PFA", "DPFedAvg", "Equal weights", "MinEps"]


def accuracy(directory: Path) -> dict[str, Any]:
    """The curve of the accuracy on what clients hold out.

    Args:
        directory: Directory of the run.
    """
    return rounds(directory, "clients/val/accuracy")


def clients(directory: Path) -> dict[str, Any]:
    """As ``accuracy``, and how well noise was estimated, how clients were weighed, and what they spent.

    Returns:
        Metrics ``noise/correlation`` (estimated and true energies), ``weights/distance`` (sum of the absolute
        differences to one over the true energy), ``privacy/spent`` (largest share of a budget).
    """
    found = accuracy(directory)
    rows = json.loads((directory / "clients_privacy.json").read_text(encoding="utf-8"))
    true = np.array([row["energy"] for row in rows])
    ideal = 1 / true / (1 / true).sum()
    found["metrics"]["privacy/spent"] = max(row["spent"] / row["epsilon"] for row in rows)
    if all(row["weight"] is not None for row in rows):
        found["metrics"]["weights/distance"] = float(np.abs([row["weight"] for row in rows] - ideal).sum())
    if all(row["estimated"] is not None for row in rows):
        estimated = [row["estimated"] for row in rows]
        found["metrics"]["noise/correlation"] = float(np.corrcoef(estimated, true)[0, 1])
    return found


def accuracy_figure(records: list[Record]) -> Any:
    """Accuracy over rounds of all arms, mean over seeds with the 95 % interval.

    Args:
        records: Of one data set.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for number, arm in enumerate(arm for arm in ARMS if any(record.row == arm for record in records)):
        values = defaultdict(list)
        for record in records:
            if record.row == arm:
                for at, value in zip(record.curves["round"], record.curves["value"], strict=True):
                    values[at].append(100 * value)
        at = sorted(values)
        axes.plot(at, [np.mean(values[each]) for each in at], color=f"C{number}", label=arm)
        if all(len(values[each]) > 1 for each in at):
            bands = [mean_interval(values[each]) for each in at]
            axes.fill_between(at, [b.low for b in bands], [b.high for b in bands], color=f"C{number}", alpha=0.15)
    axes.set(xlabel="round", ylabel="accuracy on held-out images (%)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return figure


def draw(results: Path) -> None:
    """The pictures that the page shows.

    Args:
        results: The file of records.
    """
    everything = read_records(results)
    for data in DRAWN:
        figure = accuracy_figure([record for record in everything if record.data == data])
        figure.savefig(DOCS / "images" / f"robust-hdp-{data}.png", dpi=110)


if __name__ == "__main__":
    draw(DOCS / "results" / "robust_hdp.json")
