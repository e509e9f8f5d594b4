"""Third parties' data, loaders and modules: none of them knows anything about us."""

from __future__ import annotations

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


class TokenisedTexts(Dataset):
    """What Hugging Face's tutorials have people write: a class whose items are dicts."""

    def __init__(self, count: int) -> None:
        self.encodings = {"input_ids": torch.arange(count).unsqueeze(1), "attention_mask": torch.ones(count, 1)}
        self.labels = [i % 3 for i in range(count)]

    def __getitem__(self, i: int) -> dict:
        return {**{key: value[i] for key, value in self.encodings.items()}, "labels": torch.tensor(self.labels[i])}

    def __len__(self) -> int:
        return len(self.labels)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(4.0))


class FastLoader(DataLoader):
    """A stranger's loader whose ``__init__`` shares nothing with DataLoader's."""

    def __init__(self, tensors) -> None:
        super().__init__(TensorDataset(tensors), batch_size=2)


class Numbers(LightningDataModule):
    """A stranger's DataModule over the numbers 0, 1, ..., count - 1."""

    def __init__(self, count: int = 40, batch_size: int = 4, **kwargs) -> None:
        super().__init__()
        self.count, self.batch_size, self.kwargs = count, batch_size, kwargs

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.arange(self.count)), batch_size=self.batch_size, **self.kwargs)


class Recorder(LightningModule):
    """Remembers which numbers each epoch saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch, batch_idx):
        x = batch[0]
        self.seen[-1] += x.flatten().tolist()
        return self.layer(x.float().reshape(-1, 1)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(*callbacks, **kwargs) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False, **quiet, **kwargs}
    return Trainer(callbacks=list(callbacks), **options)


def numbers(loader: DataLoader) -> list[int]:
    """The numbers a loader yields, in its order."""
    return [int(x) for batch in loader for x in batch[0].flatten()]


def counting(count: int, **kwargs) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(count)), **{"batch_size": 4, **kwargs})
