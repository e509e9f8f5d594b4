"""A user's module and data that use whatever can go wrong in a resume, and a callback that ends the process."""

from __future__ import annotations

import json
import os
import random
import signal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score


class Noisy(Dataset):
    """Items with an augmentation that draws from all three generators."""

    def __init__(self, items, inputs):
        self.x = torch.randn(items, inputs, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index] + 0.1 * torch.randn(self.x.shape[1]) + 0.1 * float(np.random.rand()) + 0.1 * random.random()
        return x, x.sum(), index


class Data(LightningDataModule):
    def __init__(self, items: int = 160, batch_size: int = 8, workers: int = 0, persistent: bool = False):
        super().__init__()
        self.items, self.batch_size, self.workers, self.persistent = items, batch_size, workers, persistent

    def train_dataloader(self):
        return DataLoader(
            Noisy(self.items, 4),
            batch_size=self.batch_size,
            shuffle=True,
            num_workers=self.workers,
            persistent_workers=self.persistent,
        )

    def val_dataloader(self):
        return DataLoader(Noisy(24, 4), batch_size=8)

    test_dataloader = val_dataloader


class Net(LightningModule):
    monitor, mode = "val/loss", "min"

    def __init__(self, plateau: bool = False, estimate: bool = False):
        super().__init__()
        self.save_hyperparameters()
        hidden = torch.nn.Linear(4, 8)
        self.net = torch.nn.Sequential(hidden, torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        self.metrics = MetricCollection([MeanSquaredError(), MeanAbsoluteError(), R2Score()], prefix="train/")
        self.own = MeanAbsoluteError()

    def training_step(self, batch, i):
        x, y, index = batch
        out = self.net(x).squeeze(1)
        loss = (out - y).pow(2).mean()
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/max", loss, on_epoch=True, on_step=False, reduce_fx="max")
        self.metrics(out, y)
        self.log_dict(self.metrics, on_step=False, on_epoch=True)
        self.own.update(out, y)
        with open(f"seen{self.global_rank}.jsonl", "a") as file:
            row = {"batch": self.trainer.fit_loop.total_batch_idx, "ids": index.tolist(), "loss": float(loss).hex()}
            file.write(json.dumps(row) + "\n")
        return loss

    def on_train_epoch_end(self):
        self.log("train/own", self.own.compute())
        self.own.reset()

    def validation_step(self, batch, i):
        x, y, _ = batch
        noise = 0.01 * torch.randn(())
        self.log("val/loss", (self.net(x).squeeze(1) - y).pow(2).mean() + noise, sync_dist=True)

    def test_step(self, batch, i):
        x, y, _ = batch
        self.log("test/loss", (self.net(x).squeeze(1) - y).pow(2).mean(), sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        if self.hparams.plateau:
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "train/own"}}
        steps = self.trainer.estimated_stepping_batches if self.hparams.estimate else 60
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Kill(Callback):
    """Ends the process at the given batch, counted over all epochs; KILL=where:batch."""

    def __init__(self):
        where, _, at = os.environ.get("KILL", "no:0").partition(":")
        self.where, self.at = where, int(at)

    def _at(self, trainer, where):
        if self.where == where and trainer.fit_loop.total_batch_idx == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def setup(self, trainer, pl_module, stage):
        if self.where == "write":
            save = torch.save

            def slow(what, file, *args, **kwargs):
                if trainer.fit_loop.total_batch_idx >= self.at:
                    file.write(b"PK\x03\x04half of it")
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                save(what, file, *args, **kwargs)

            torch.save = slow

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._at(trainer, "start")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self._at(trainer, "step")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking and batch_idx == 1:
            self._at(trainer, "validation")

    def on_train_epoch_end(self, trainer, pl_module):
        self._at(trainer, "epoch")  # before the checkpoint of the epoch's end
