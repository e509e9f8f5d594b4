"""Classification with any network: the plainest method, and the one on which every concern is tried first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from modules._classification import ClassifierBase


class MLP(nn.Sequential):
    """Fully connected network with ReLU, on flattened inputs.

    Args:
        inputs: Number of input features after flattening.
        classes: Number of logits.
        hidden: Widths of the hidden layers, first to last; none makes it logistic regression.
        dropout: Probability of dropping a hidden unit, in [0, 1).
    """

    def __init__(self, inputs: int, classes: int, hidden: Sequence[int] = (64,), dropout: float = 0.0) -> None:
        widths = (inputs, *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(widths[-1], classes))


class CNN(nn.Module):
    """LeNet-like network: two 5x5 convolutions with pooling, then the fully connected layers of an ``MLP``.

    It has no batch statistics, so it serves private and federated training as it is.

    Args:
        inputs: Number of values per image, ``channels * side * side``; the image is square, its side at least 4.
        classes: Number of logits.
        channels: Channels of the image: 1 for grey, 3 for colour.
        filters: Filters of the two convolutions.
        hidden: Widths of the fully connected hidden layers.
        dropout: Probability of dropping a fully connected hidden unit, in [0, 1).

    Raises:
        ValueError: If ``inputs`` is not ``channels`` times a square of at least 16.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        channels: int = 1,
        filters: tuple[int, int] = (16, 32),
        hidden: Sequence[int] = (128,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side = isqrt(inputs // max(channels, 1))
        if channels < 1 or side < 4 or channels * side * side != inputs:
            raise ValueError(
                f"network 'cnn' needs inputs = channels * side * side with a side of at least 4, "
                f"got inputs={inputs} and channels={channels}"
            )
        self.image = (channels, side, side)
        first, second = filters
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = MLP(second * (side // 4) ** 2, classes, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)`` from images, flattened or not."""
        logits: Tensor = self.head(self.features(x.reshape(-1, *self.image)))
        return logits


class Classifier(ClassifierBase):
    """Train a network to classify, by cross-entropy.

    A batch is ``(x, y)`` or ``(x, y, index)``: inputs of shape ``(batch, ...)``, integer classes of shape ``(batch,)``
    where -1 means "no label" and is left out of the loss and the metrics, and whatever names the items in predictions
    (row numbers, file names).

    Args:
        inputs: Number of input features after flattening, at least 1.
        classes: Number of classes, at least 2.
        network: ``mlp``, ``cnn`` (square images), or any module that maps inputs to logits of shape
            ``(batch, classes)``, in YAML by ``class_path``. The next four arguments shape the first two only.
        hidden: Widths of the fully connected hidden layers.
        channels: Channels of the image, for ``cnn``: 1 for grey, 3 for colour.
        filters: Filters of the two convolutions, for ``cnn``.
        dropout: Probability of dropping a fully connected hidden unit, in [0, 1).
        lr: Learning rate. None keeps the optimiser's own.
        optimizer: Builds the optimiser from the parameters; in YAML by ``class_path``.
        scheduler: Builds a learning-rate scheduler from the optimiser, stepped once per epoch; in YAML by
            ``class_path``. ReduceLROnPlateau watches ``val/loss``, with ``mode: max`` ``val/accuracy``.

    Raises:
        ValueError: If a number is out of range; the message names it.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        network: Literal["mlp", "cnn"] | nn.Module = "mlp",
        hidden: Sequence[int] = (64,),
        channels: int = 1,
        filters: tuple[int, int] = (16, 32),
        dropout: float = 0.0,
        lr: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(classes, lr, optimizer, scheduler)
        if inputs < 1:
            raise ValueError(f"inputs must be at least 1, got {inputs}")
        if any(width < 1 for width in hidden):
            raise ValueError(f"hidden must hold widths of at least 1, got {list(hidden)}")
        if len(filters) != 2 or min(filters) < 1:
            raise ValueError(f"filters must be two numbers of at least 1, got {list(filters)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        # Objects stay out of hparams, so that checkpoints load with weights_only=True.
        objects = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
        self.save_hyperparameters(ignore=[name for name, value in objects.items() if callable(value)])
        self.network = self.configure_network(network)

    def configure_network(self, network: str | nn.Module) -> nn.Module:
        """The network that maps inputs to logits."""
        if isinstance(network, nn.Module):
            return network
        shape = {name: self.hparams[name] for name in ("inputs", "classes", "hidden", "dropout")}
        if network == "mlp":
            return MLP(**shape)
        if network == "cnn":
            return CNN(**shape, channels=self.hparams["channels"], filters=self.hparams["filters"])
        raise ValueError(f"network must be 'mlp', 'cnn' or a torch.nn.Module, got {network!r}")
