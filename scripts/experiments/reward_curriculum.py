"""What the evidence of the reward curriculum needs besides runs of the command line: its last steps, and a picture.

.venv/bin/python -m scripts.experiments.reward_curriculum  draws docs/images/reward-curriculum-*.png from docs/results
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework.evaluation.records import Record, read_records
from framework.evaluation.statistics import stratified_iqm_interval

DOCS = Path(__file__).resolve().parents[2] / "docs"
LAST = 50_000
"""Environment steps at the end whose evaluations are averaged, as the successor of the paper reports them."""
SHOWN = [
    "Curriculum, by alpha loss",
    "No curriculum",
    "Old experience dropped",
    "Old rewards kept",
    "Task reward alone",
]


def last(directory: Path) -> dict[str, Any]:
    """Means over the evaluations of the last steps, the curves of the whole run, and where the stages began.

    Args:
        directory: Directory of the run.
    """
    with (directory / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    evaluated = [row for row in rows if "val/return" in row]
    end = evaluated[-1]["env_steps"]
    names = [name for name in ("val/return", "val/success", "val/length") if name in evaluated[0]]
    names += sorted(name for name in evaluated[0] if name.startswith("val/component/"))
    late = [row for row in evaluated if row["env_steps"] > end - LAST]
    metrics = {f"last/{name.removeprefix('val/')}": float(np.mean([row[name] for row in late])) for name in names}
    stages = [(row["env_steps"], row["curriculum/stage"]) for row in rows if "curriculum/stage" in row]
    # Those that never came began after the end.
    metrics["switch/steps"] = min((steps for steps, stage in stages if stage > 0), default=end)
    curves = {name: [round(row[name], 6) for row in evaluated] for name in ("env_steps", *names[:2])}
    return {"metrics": metrics, "curves": curves}


def curves_figure(records: Sequence[Record], metric: str, rows: Sequence[str] = SHOWN) -> Any:
    """Interquartile mean over seeds of an evaluated metric as training goes on, with its 95 % interval.

    Args:
        records: Of one data set, collected by ``last``.
        metric: Name of a curve.
        rows: The arms to show.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        several = [record.curves for record in records if record.row == row]
        if not several:
            continue
        places = range(min(len(curve[metric]) for curve in several))
        # Seeds switch at different steps, and are evaluated a little earlier after that.
        steps = [float(np.mean([curve["env_steps"][place] for curve in several])) for place in places]
        points = [
            stratified_iqm_interval({row: [curve[metric][place] for curve in several]}, resamples=2000)
            for place in places
        ]
        (line,) = axes.plot(steps, [point.estimate for point in points], label=row)
        low, high = [point.low for point in points], [point.high for point in points]
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="environment steps", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def draw(results: Path) -> None:
    """The pictures of the reward curriculum.

    Args:
        results: The file of records.
    """
    everything = read_records(results)
    for data in sorted({record.data for record in everything}):
        records = [record for record in everything if record.data == data]
        metric = "val/success" if "val/success" in records[0].curves else "val/return"
        curves_figure(records, metric).savefig(DOCS / "images" / f"reward-curriculum-{data}.png", dpi=110)


if __name__ == "__main__":
    draw(DOCS / "results" / "reward_curriculum.json")
