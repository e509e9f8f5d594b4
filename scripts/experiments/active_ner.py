"""What the evidence of active NER needs besides runs of the command line: curves, a choice of start sets, pictures.

.venv/bin/python -m scripts.experiments.active_ner  draws docs/images/active-ner-*.png from docs/results/active_ner.json
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from framework.active.acquisition import PoolScores, acquisition
from framework.active.pool import LabelledItems
from framework.active.scoring import PoolRunner, pool_loader
from framework.evaluation.curves import mean_height
from framework.evaluation.records import Record, read_records
from framework.loaders import Stage, StageCallback, TrainPath
from framework.rundir import run_directory, write
from framework.seeding import derive, run_seed
from framework.text.sentences import Sentences

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "active_ner.json"
RANGE = (0.05, 0.45)
"""Shares of the words between which the mean height of a curve is taken: every arm has points on both sides."""


def curve(directory: Path) -> dict[str, Any]:
    """The rounds of a run of active learning, and the mean height of its curve of test F1.

    Args:
        directory: Directory of the run.
    """
    with (directory / "active_learning.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("share", "items", "cost", "val/f1", "test/f1")
    curves = {name: [round(float(row[name]), 6) for row in rows] for name in names}
    return {"metrics": {"area/f1": mean_height(curves["share"], curves["test/f1"], *RANGE)}, "curves": curves}


class StartSet(StageCallback):
    """Train on one half of the sentences, or on a part of it, and see what the model would buy of the other half.

    The paper's "under-explored genres": how often is a genre that the model has never seen among what it finds
    hardest? The halves are drawn from the seed alone, so that all arms choose from the same sentences.

    Args:
        genre: The genre in question.
        arm: ``without`` leaves the genre out of the half to train on; ``control`` leaves out as many words at random;
            ``only`` keeps nothing else; ``whole`` trains on all of the half.
        top: How many sentences MNLP picks.
    """

    def __init__(self, genre: str, arm: Literal["whole", "without", "control", "only"], top: int = 1000) -> None:
        super().__init__()
        self.genre, self.arm, self.top = genre, arm, top

    def make_stage(self, path: TrainPath, trainer: Trainer, pl_module: LightningModule) -> Stage:
        data = pool_loader(path).dataset
        self.sentences, self.positions = _sentences(data)
        order = torch.randperm(
            len(self.positions), generator=torch.Generator().manual_seed(derive(run_seed(), "halves"))
        )
        half, self.rest = order[: len(order) // 2], order[len(order) // 2 :].sort().values
        return LabelledItems(self._start(half))

    def _start(self, half: Tensor) -> Tensor:
        mine = self._of_genre(half)
        if self.arm == "control":
            words = self.sentences.words[self.positions[half]].cumsum(0)
            return half[: int((words <= words[-1] - self.sentences.words[self.positions[half[mine]]].sum()).sum())]
        return {"whole": half, "without": half[~mine], "only": half[mine]}[self.arm]

    def _of_genre(self, items: Tensor) -> Tensor:
        genres = [self.sentences.genres[position] == self.genre for position in self.positions[items].tolist()]
        return torch.tensor(genres)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        costs = torch.ones(len(self.positions))
        runner = PoolRunner(trainer, pl_module, pool_loader(TrainPath.of(trainer)), costs, 256, run_seed())
        pool = PoolScores(self.rest, costs[self.rest])
        found = runner.choose(acquisition("mnlp"), pool, self.stage.indices, self.top, torch.Generator()).indices
        shares = {
            "genre/top": self._of_genre(found).float().mean().item(),
            "genre/pool": self._of_genre(self.rest).float().mean().item(),
        }
        shares["genre/lift"] = shares["genre/top"] / shares["genre/pool"]
        write(run_directory(trainer) / "genre.json", json.dumps(shares))


def genre(directory: Path) -> dict[str, Any]:
    """What ``StartSet`` found.

    Args:
        directory: Directory of the run.
    """
    return {"metrics": json.loads((directory / "genre.json").read_text())}


def _sentences(data: Any) -> tuple[Sentences, Tensor]:
    """The data set under any subsets, and the position in it of every item."""
    positions = torch.arange(len(data))
    while not isinstance(data, Sentences):
        positions, data = torch.as_tensor(data.indices)[positions], data.dataset
    return data, positions


def curves_figure(records: list[Record], data: str, rows: list[str]) -> Any:
    """Test F1 against the share of words bought: mean over seeds, with 95 % intervals, and the model of all data.

    Args:
        records: Of ``docs/results/active_ner.json``.
        data: Data set.
        rows: Arms, in the order of the legend.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from scipy import stats

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        curves = [record.curves for record in records if (record.row, record.data) == (row, data)]
        if not curves:
            continue
        grid = np.linspace(max(c["share"][0] for c in curves), min(c["share"][-1] for c in curves), 60)
        heights = 100 * np.array([np.interp(grid, c["share"], c["test/f1"]) for c in curves])
        (line,) = axes.plot(100 * grid, heights.mean(0), label=row)
        if len(curves) > 1:
            half = stats.t.ppf(0.975, len(curves) - 1) * heights.std(0, ddof=1) / len(curves) ** 0.5
            axes.fill_between(
                100 * grid, heights.mean(0) - half, heights.mean(0) + half, color=line.get_color(), alpha=0.15
            )
    full = [100 * r.metrics["test/f1"] for r in records if (r.row, r.data) == ("All data", data)]
    if full:
        axes.axhline(np.mean(full), color="black", linestyle="--", linewidth=1, label="all data")
        axes.axhline(0.99 * np.mean(full), color="black", linestyle=":", linewidth=1, label="99 % of it")
    axes.set(xlabel="words labelled (%)", ylabel="test F1 (%)", title=data)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    everything = read_records(RESULTS)
    arms = ["MNLP", "LC", "BALD", "Submodular", "Longest", "Random"]
    for name in sorted({record.data for record in everything if record.curves}):
        path = RESULTS.parents[1] / "images" / f"active-ner-{name}.png"
        curves_figure(everything, name, arms).savefig(path, dpi=110)
