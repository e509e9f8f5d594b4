"""What data modules of items with classes share; no choice of the user, hence the underscore."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset


class ClassificationData(LightningDataModule):
    """Base of data in parts train, val and test: subclasses fill the parts, this class serves them in batches.

    Subclasses save the hyper-parameters ``batch_size`` and ``num_workers`` and set the parts in ``setup``.

    Attributes:
        train: Items to train on, shuffled in every epoch.
        val: Items to validate on.
        test: Items to test on; ``predict`` goes through them too where a subclass has nothing else to predict.
        persistent_workers: Whether processes that load batches live on from epoch to epoch.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]
    persistent_workers = False

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test)

    def _loader(self, data: Dataset[Any], shuffle: bool = False) -> DataLoader[Any]:
        """Batches of some items.

        Args:
            data: The items.
            shuffle: Whether their order is drawn anew in every epoch.
        """
        size, workers = self.hparams["batch_size"], self.hparams["num_workers"]
        persistent = self.persistent_workers and workers > 0
        # By keyword: Lightning rebuilds loaders and trips over a positional batch_size.
        return DataLoader(data, batch_size=size, shuffle=shuffle, num_workers=workers, persistent_workers=persistent)
