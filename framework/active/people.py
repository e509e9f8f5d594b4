"""Rounds whose labels come from people: asked for through a folder, filled in at the next start."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from framework.active.acquisition import PoolScores
from framework.active.labelling import LabelFolder, is_labelled
from framework.active.scoring import PoolRunner, pool_loader
from framework.errors import Paused
from framework.loaders import TrainPath
from framework.loaders.reindexing import kind


class People:
    """Asks for labels on rank zero, and takes them on all ranks.

    Args:
        folder: Where the files are.
        trainer: The trainer, in ``fit``. Names of classes come from its datamodule's ``class_names`` or ``tags``.
    """

    def __init__(self, folder: LabelFolder, trainer: Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        names = getattr(data, "class_names", None) or getattr(data, "tags", None)
        self.folder = LabelFolder(folder.path, folder.format, names, getattr(data, "classes", None))
        self.trainer = trainer

    def ask_first(self, dataset: Any, drawn: Tensor) -> Tensor:
        """The initial items: those that have labels, in the data or in the folder, or that people skipped.

        If there are none, people are asked.

        Args:
            dataset: The data to choose from.
            drawn: Indices of the items to ask for if none is labelled.

        Returns:
            Indices of the initial items.

        Raises:
            Paused: If a round waits for labels already, on all ranks.
            ValueError: If a label is not valid; the message names file and line.
        """
        self._fill(dataset)  # of an earlier run, too
        given = is_labelled(dataset).nonzero().squeeze(1)
        if len(given) == len(dataset):
            rank_zero_warn("oracle: every item of the train data has a label, so nobody will be asked")
        self.trainer.strategy.barrier("labels taken")  # nobody asks before all have looked
        if self.folder.skipped and not len(given):
            raise ValueError(
                f"oracle: all {len(self.folder.skipped)} items asked for in {self.folder.path} are skipped"
            )
        if len(given):
            return torch.cat([given, self._skipped()]).unique()
        if self.trainer.is_global_zero:
            self.folder.write(0, dataset, drawn.tolist())
        return drawn

    def ask(self, round: int, chosen: PoolScores, runner: PoolRunner, suggest: bool) -> None:
        """Ask for the labels of a round, with scores and, if the module can be asked, what it believes."""
        if self.trainer.is_global_zero:
            scores = None if chosen.scores is None else chosen.scores.tolist()
            suggestions = runner.suggestions(chosen.indices) if suggest else None
            self.folder.write(round, runner.loader.dataset, chosen.indices.tolist(), scores, suggestions)

    def take(self, path: TrainPath) -> None:
        """Fill all labels into the data.

        Raises:
            Paused: If a round waits for labels, on all ranks.
            TypeError: If the train data are made anew at each request, so that labels do not last.
            ValueError: If a label is not valid; the message names file and line.
        """
        self.trainer.strategy.barrier("labels asked for")
        dataset = pool_loader(path).dataset
        labels = self._fill(dataset)
        if not bool(is_labelled(pool_loader(path).dataset)[list(labels)].all()):
            raise TypeError(
                f"train_dataloader() makes its data ({kind(dataset)}) anew each time, and labels that were filled in "
                "are lost: make them in setup"
            )

    def usable(self, bought: Tensor) -> Tensor:
        """What can be trained on of the items bought: those that people did not skip."""
        return bought[~torch.isin(bought, self._skipped())]

    def check(self, path: TrainPath, bought: Tensor) -> None:
        """Check that what a resumed run has bought is labelled or skipped.

        Raises:
            ValueError: If an item is not; training would leave it out in silence.
        """
        bought = self.usable(bought)
        missing = bought[~is_labelled(pool_loader(path).dataset)[bought]]
        if len(missing):
            raise ValueError(
                f"oracle: {len(missing)} of the {len(bought)} items that the run has asked for have no label in "
                f"{self.folder.path} or in the data, such as item {int(missing[0])}: give it the folder it began with"
            )

    def _skipped(self) -> Tensor:
        return torch.tensor(sorted(self.folder.skipped), dtype=torch.int64)

    def _fill(self, dataset: Any) -> dict[int, Any]:
        """Fill in the labels of all rounds, or raise ``Paused`` if one waits."""
        waiting = self.folder.pending()
        if waiting is not None:
            raise Paused(str(waiting))
        labels = self.folder.read(dataset)
        self.folder.apply(dataset, labels)
        return labels
