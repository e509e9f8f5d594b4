"""What classifiers of any input share: the Lightning side, metrics and the picture of the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNLABELLED = -1


class Scores(MulticlassConfusionMatrix):
    """Mean loss, micro accuracy, macro F1 and confusion matrix of the labelled items, all from one set of counts.

    Every metric costs a step of a small network a few hundredths of its time, and a logged one some at the end of each
    epoch; so there is one.

    Args:
        classes: Number of classes, at least 2.
    """

    confmat: Tensor
    loss: Tensor

    def __init__(self, classes: int) -> None:
        # What torchmetrics would look at in every batch, the loss has met before or update looks at.
        super().__init__(classes, ignore_index=UNLABELLED, validate_args=False)
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor, loss: Tensor) -> None:  # type: ignore[override] # one more
        """Count a batch.

        Args:
            logits: Shape ``(batch, classes)``.
            target: Classes of shape ``(batch,)``; ``UNLABELLED`` are left out.
            loss: Sum of the loss over the labelled items.

        Raises:
            ValueError: If there are not as many logits as classes.
        """
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"network gives {logits.shape[1]} logits for {self.num_classes} classes")
        super().update(logits, target)
        self.loss = self.loss + loss

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override] # more than the counts
        """Values by name: ``loss``, ``accuracy``, ``f1`` and the counts, ``confusion``.

        Without any item, the loss is NaN and the others are 0. Classes that neither occur nor are predicted have no
        part in the mean of F1.
        """
        right, total = self.confmat.diag(), self.confmat.sum()
        either = self.confmat.sum(dim=0) + self.confmat.sum(dim=1)  # an item of a class, or taken for one
        f1 = (2 * right / either.clamp(min=1)).sum() / (either > 0).sum().clamp(min=1)
        accuracy = right.sum() / total.clamp(min=1)
        return {"loss": self.loss / total, "accuracy": accuracy, "f1": f1, "confusion": self.confmat}


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
        """Loss, micro accuracy and macro F1 per stage, and the confusion matrix of validation and test."""
        self.scores = nn.ModuleDict({f"{stage}_": Scores(self.classes) for stage in ("train", "val", "test")})
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

    def on_test_epoch_end(self) -> None:
        self._log("test")

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
        # Sum over the labelled items, so that a batch without any label gives 0 and not NaN; their number stays a
        # tensor, for which a GPU need not be waited for.
        total = nn.functional.cross_entropy(logits, y, ignore_index=UNLABELLED, reduction="sum")
        cast(Scores, self.scores[f"{stage}_"]).update(logits.detach(), y, total.detach())
        return total / (y != UNLABELLED).sum().clamp(min=1)

    def _log(self, stage: str) -> None:
        scores = cast(Scores, self.scores[f"{stage}_"])
        values = scores.compute()  # gathers over ranks: every rank comes here
        scores.reset()
        confusion = values.pop("confusion")
        if stage != "train":
            self.confusion_counts[stage] = confusion.cpu()
        # The values are the same on every rank already; to be told so spares Lightning a warning.
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)

    def _class_names(self) -> list[str] | None:
        trainer = self._trainer
        return getattr(getattr(trainer, "datamodule", None), "class_names", None)


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
