"""A thousand training steps that can be resumed bit for bit, against the same without.

The difference of the two in milliseconds is the overhead of one step in microseconds.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from callbacks.resumable import Resumable

STEPS = 1000
CASES = [{"batch_size": 1}, {"batch_size": 32}]


class Tiny(LightningModule):
    """As little work per step as Lightning allows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def setup(batch_size: int) -> DataLoader[Any]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    return DataLoader(TensorDataset(torch.ones(STEPS * batch_size, 4)), batch_size, shuffle=True)


def fit(loader: DataLoader[Any], callbacks: list[Any]) -> int:
    """Steps of one fit."""
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(Tiny(), loader)
    return trainer.global_step


def resumable(loader: DataLoader[Any]) -> int:
    return fit(loader, [Resumable()])


def plain(loader: DataLoader[Any]) -> int:
    return fit(loader, [])


def agree(ours: int, peer: int) -> None:
    if ours != peer:
        raise ValueError(f"steps differ: {ours} and {peer}")


VARIANTS = {"resumable": resumable, "plain": plain}
