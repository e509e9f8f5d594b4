"""Handwritten digits bundled with scikit-learn: real, tiny, no download."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from datamodules._classification import ClassificationData
from framework.loaders import TensorSubset
from framework.splits import check_shares, split_indices


class Digits(ClassificationData):
    """1,797 images of 8 x 8 pixels in 10 classes, split by seed into train, validation and test.

    Args:
        batch_size: Images per batch, at least 1.
        split: Shares of train, validation and test; they sum to 1.
        seed: Seed of the split.
        num_workers: Processes that load batches; 0 is quickest for data in memory.

    Attributes:
        inputs: 64 grey values in [0, 1].
        classes: 10.
        class_names: The digits.

    Raises:
        ValueError: If ``split`` are not positive shares that sum to 1 or ``batch_size`` is below 1.
    """

    inputs, classes = 64, 10
    class_names = [str(k) for k in range(10)]

    def __init__(
        self,
        batch_size: int = 64,
        split: tuple[float, float, float] = (0.7, 0.15, 0.15),
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_shares(split)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.save_hyperparameters()

    def setup(self, stage: str | None = None) -> None:
        from sklearn.datasets import load_digits  # heavy: only when data are needed

        x, y = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y, dtype=torch.int64))
        parts = split_indices(len(data), self.hparams["split"], self.hparams["seed"])
        self.train, self.val, self.test = (TensorSubset(data, part.tolist()) for part in parts)
