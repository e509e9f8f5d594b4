"""Classification with any network: the plainest method, and the one on which every concern is tried first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNLABELLED = -1


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


class ClassifierBase(LightningModule):
    """The Lightning side of a classifier; a subclass saves its hyper-parameters and makes ``self.network``.

    Args:
        classes: Number of classes, at least 2.
        lr: Learning rate, which the subclass saves as a hyper-parameter. None keeps the optimiser's own.
        optimizer: Builds the optimiser from the parameters.
        scheduler: Builds a learning-rate scheduler from the optimiser, stepped once per epoch.

    Raises:
        ValueError: If a number is out of range; the message names it.
    """

    monitor, mode = "val/accuracy", "max"
    network: nn.Module

    def __init__(
        self, classes: int, lr: float | None, optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        if lr is not None and lr <= 0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.classes, self.optimizer, self.scheduler = classes, optimizer, scheduler
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Micro accuracy and macro F1 per stage, and the confusion matrix of validation and test."""
        classes = self.classes
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=UNLABELLED),
                "f1": MulticlassF1Score(classes, average="macro", ignore_index=UNLABELLED),
            }
        )
        self.metrics = nn.ModuleDict({f"{stage}_": metrics.clone(f"{stage}/") for stage in ("train", "val", "test")})
        self.losses = nn.ModuleDict({f"{stage}_": MeanMetric() for stage in ("train", "val", "test")})
        confusion = MulticlassConfusionMatrix(classes, ignore_index=UNLABELLED)
        self.confusion = nn.ModuleDict({"val_": confusion, "test_": confusion.clone()})
        self.confusion_counts: dict[str, Tensor] = {}

    def forward(self, x: Any) -> Tensor:
        """Logits of shape ``(batch, classes)``."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | list[Any]]:
        """Columns of equal length: index and target where the batch has them, the class, all probabilities."""
        x, *rest = batch if isinstance(batch, (list, tuple)) else (batch,)
        probability = self(x).softmax(dim=1)
        columns: dict[str, Tensor | list[Any]] = {}
        if len(rest) > 1:
            columns["index"] = rest[1] if isinstance(rest[1], Tensor) else list(rest[1])
        if rest:
            columns["target"] = rest[0]
        return columns | {"prediction": probability.argmax(dim=1), "probability": probability}

    def on_train_epoch_end(self) -> None:
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        self._log("val")
        self._count_confusion("val")

    def on_test_epoch_end(self) -> None:
        self._log("test")
        self._count_confusion("test")

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.hparams["lr"] is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.hparams["lr"]
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        # ReduceLROnPlateau needs to know what to watch, and waits for something to fall unless its mode is "max"; other
        # schedulers ignore it.
        watched = "val/loss" if getattr(scheduler, "mode", None) == "min" else self.monitor
        watched = getattr(scheduler, "monitor", watched)  # Lightning's own plateau scheduler says it itself
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": watched}}

    def figures(self) -> dict[str, Figure]:
        """Confusion matrix of the last validation and of the last test, rows true and columns predicted."""
        names = self._class_names()
        return {f"confusion_{stage}": confusion_figure(m, names) for stage, m in self.confusion_counts.items()}

    def _step(self, batch: Sequence[Any], stage: str) -> Tensor:
        x, y = batch[0], batch[1]
        logits = self(x)
        labelled = int((y != UNLABELLED).sum())
        # Sum over the labelled items, so that a batch without any label gives 0 and not NaN.
        loss = nn.functional.cross_entropy(logits, y, ignore_index=UNLABELLED, reduction="sum") / max(labelled, 1)
        metrics = cast(MetricCollection, self.metrics[f"{stage}_"])
        metrics.update(logits, y)
        if stage != "train":
            self._confusion(stage).update(logits, y)
        cast(MeanMetric, self.losses[f"{stage}_"]).update(loss.detach(), labelled)
        return loss

    def _log(self, stage: str) -> None:
        """Log the metrics of an epoch; once, as every call costs as much as a step of a small network."""
        self.log(f"{stage}/loss", cast(MeanMetric, self.losses[f"{stage}_"]))
        self.log_dict(cast(MetricCollection, self.metrics[f"{stage}_"]))

    def _count_confusion(self, stage: str) -> None:
        metric = self._confusion(stage)
        self.confusion_counts[stage] = metric.compute().cpu()  # gathers over ranks: every rank comes here
        metric.reset()

    def _confusion(self, stage: str) -> MulticlassConfusionMatrix:
        return cast(MulticlassConfusionMatrix, self.confusion[f"{stage}_"])

    def _class_names(self) -> list[str] | None:
        trainer = self._trainer
        return getattr(getattr(trainer, "datamodule", None), "class_names", None)


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


def confusion_figure(counts: Tensor, names: Sequence[str] | None = None) -> Figure:
    """Draw a confusion matrix: colour is the share of a true class, the number is the count.

    Args:
        counts: Items by true class (row) and predicted class (column), shape ``(classes, classes)``.
        names: Names of the classes; numbers if None.

    Returns:
        A figure of its own, not registered with pyplot.
    """
    from matplotlib.figure import Figure

    classes = len(counts)
    labels = [str(name) for name in names] if names else [str(k) for k in range(classes)]
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    side = min(max(4.0, 0.5 * classes + 2), 20.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true", xticks=range(classes), yticks=range(classes))
    axes.set_xticklabels(labels, rotation=0 if max(map(len, labels)) < 4 else 90)
    axes.set_yticklabels(labels)
    if classes <= 25:  # beyond that the numbers are no longer readable
        for i, j in counts.nonzero().tolist():
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", color=colour, fontsize=8)
    return figure
