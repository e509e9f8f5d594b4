"""A small module with dropout and batch statistics, and small data, for tests of federations."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    """Somebody's classifier: it has never heard of a federation."""

    monitor, mode = "val/accuracy", "max"

    def __init__(self, dropout=0.2, norm=True, optimizer="sgd", lr=0.1):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU())
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)
        self.optimizer, self.lr = optimizer, lr

    def forward(self, x):
        return self.head(self.drop(self.body(x)))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]), batch_size=len(batch[1]))
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self):
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)
        adam = torch.optim.Adam(self.parameters(), self.lr)
        return {"optimizer": adam, "lr_scheduler": torch.optim.lr_scheduler.StepLR(adam, 1, 0.5)}


class Points(LightningDataModule):
    """Somebody's data: 96 points in three classes to train on, 30 to validate on."""

    def __init__(self, shuffle=True, batch_size=8):
        super().__init__()
        self.shuffle, self.batch_size = shuffle, batch_size
        self.set_ups = []

    def setup(self, stage=None):
        self.set_ups.append(stage)
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(126, 4, generator=draw)
        y = (x @ torch.randn(4, 3, generator=draw)).argmax(1)
        self.train, self.val = TensorDataset(x[:96], y[:96]), TensorDataset(x[96:], y[96:])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=self.shuffle)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=16)


class Deep(Net):
    """The same with four blocks of like structure in front of the head."""

    def __init__(self, decay=0.1, lr=0.05):
        super().__init__(dropout=0.2, norm=False, optimizer="adam", lr=lr)
        del self.body
        self.decay = decay
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.drop(self.blocks(x)))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.decay)
