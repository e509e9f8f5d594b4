"""What every tagger does in training, validation, test and prediction, whatever its network is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from framework.active.decisions import Decisions
from framework.optimizers import fuse
from framework.text.batch import TokenBatch
from framework.text.tags import split_tag
from modules._classification import confusion_figure
from modules.ner.decoders import Decoder, labelled_sentences
from modules.ner.figures import scores_figure
from modules.ner.span_f1 import SpanF1

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Reduction = Literal["sum", "sentence", "token"]
SCORES = ("precision", "recall", "f1")


class Network(Protocol):
    """What the shell asks of a tagger's network, a torch module."""

    decoder: Decoder

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Vectors of the real tokens, shape ``(B, n, width)``."""
        ...

    def mean_embedding(self, batch: TokenBatch) -> Tensor:
        """A vector for each sentence, shape ``(B, dim)``."""
        ...


class SequenceTagger(LightningModule):
    """The Lightning side of a tagger; a subclass saves its hyper-parameters and makes ``self.network``.

    It logs the loss (nats a token, whatever the reduction), and precision, recall and F1 of entities. A second
    validation loader is taken as the test data, for curves over a training that never reads them otherwise.

    Args:
        tags: Names of the tags in IOBES.
        loss_reduction: What is minimised: the ``sum`` over the batch, the mean over its labelled sentences
            (``sentence``), or over their tokens (``token``).
        empty_weight: Weight in these of a sentence without an entity, in [0, 1]. Where most sentences are such, as in
            WNUT-17, less than 1 keeps training from settling on no entity at all.
        strict: Whether only whole IOBES entities count; see :class:`SpanF1`.
        lr: Learning rate. None keeps the optimiser's own.
        optimizer: Builds the optimiser from the parameters.
        scheduler: Builds a learning-rate scheduler from the optimiser, stepped once per epoch.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    monitor, mode = "val/f1", "max"
    prediction_order = ("sentence", "position")
    network: Network
    kind: Tensor

    def __init__(
        self,
        tags: Sequence[str],
        loss_reduction: Reduction,
        empty_weight: float,
        strict: bool,
        lr: float | None,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__()
        if loss_reduction not in ("sum", "sentence", "token"):
            raise ValueError(f"loss_reduction must be sum, sentence or token, got {loss_reduction!r}")
        if not 0 <= empty_weight <= 1:
            raise ValueError(f"empty_weight must be in [0, 1], got {empty_weight}")
        if lr is not None and lr <= 0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.tags, self.lr = list(tags), lr
        self.loss_reduction, self.empty_weight = loss_reduction, empty_weight
        self.optimizer, self.scheduler = optimizer, scheduler
        f1 = SpanF1(tags, "strict" if strict else "lenient", by_type=True)
        kinds = ["O", *f1.types]
        confusion = MulticlassConfusionMatrix(len(kinds), ignore_index=-1, validate_args=False)
        self.spans = nn.ModuleDict({"val_": f1, "test_": f1.clone()})
        self.confusion = nn.ModuleDict({"val_": confusion, "test_": confusion.clone()})
        self.register_buffer("kind", torch.tensor([kinds.index(split_tag(tag)[1] or "O") for tag in tags]), False)
        #: Of the last validation and test: the scores, and tokens by true and predicted type.
        self.scores: dict[str, dict[str, float]] = {}
        self.confusion_counts: dict[str, Tensor] = {}

    def forward(self, batch: TokenBatch) -> Decisions:
        """The best tags of a batch, and their conditional log-probabilities."""
        return self.network.decoder.decode(self.network(batch), batch.mask)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        losses = self.network.decoder.loss(self.network(batch), batch.tags, batch.mask)
        self._log_loss(losses, batch, "train")
        labelled = batch.mask & labelled_sentences(batch.tags, batch.mask).unsqueeze(1)
        has_entity = ((self.kind[batch.tags.clamp_min(0)] > 0) & labelled).any(1)
        weights = torch.where(has_entity, 1.0, self.empty_weight)
        total = (losses * weights).sum()
        if self.loss_reduction == "sum":
            return total
        counts = labelled.any(1) if self.loss_reduction == "sentence" else labelled.sum(1)
        # A batch of nothing but what has no weight moves nothing.
        return total / (weights * counts).sum().clamp_min(torch.finfo(total.dtype).tiny)

    def validation_step(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx > 1:
            raise ValueError("a tagger takes two validation loaders at most (validation and test), got a third one")
        self._evaluate(batch, "test" if dataloader_idx else "val")

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Columns with a row for each token.

        Returns:
            ``sentence``, its position in the data set; ``position`` of the token in it; ``token``; ``target``, the name
            of its tag, None where there is none; ``prediction``, the name of the tag that it gets; ``confidence``, the
            probability of that tag given the ones before it.
        """
        log_probs, chosen, mask = self(batch)
        confidence = log_probs.gather(2, chosen.unsqueeze(2)).squeeze(2).exp()
        sentence, position = mask.nonzero(as_tuple=True)
        return {
            "sentence": batch.index[sentence].tolist(),
            "position": position.tolist(),
            "token": [token for tokens in batch.tokens for token in tokens],
            "target": [self.tags[tag] if tag >= 0 else None for tag in batch.tags[mask].tolist()],
            "prediction": [self.tags[tag] for tag in chosen[mask].tolist()],
            "confidence": confidence[mask].tolist(),
        }

    def acquisition_scores(self, batch: TokenBatch) -> Decisions:
        """The tags that active learning judges: those of ``forward``. The batch's own tags are not read."""
        return cast(Decisions, self(batch))

    def acquisition_embedding(self, batch: TokenBatch) -> Tensor:
        """A vector for each sentence, shape ``(B, dim)``."""
        return self.network.mean_embedding(batch)

    def on_validation_epoch_start(self) -> None:
        self._reset("val", "test")

    def on_test_epoch_start(self) -> None:
        self._reset("test")

    def on_validation_epoch_end(self) -> None:
        loaders = self.trainer.num_sanity_val_batches if self.trainer.sanity_checking else self.trainer.num_val_batches
        self._report("val", *(["test"] if len(loaders) > 1 else []))

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def configure_optimizers(self) -> Any:
        optimizer = fuse(self.optimizer(self.parameter_groups()))
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        # As in the classifier: a plateau scheduler needs to know what to watch, and waits for a minimum by default.
        watched = "val/loss" if getattr(scheduler, "mode", None) == "min" else self.monitor
        watched = getattr(scheduler, "monitor", watched)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": watched}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser is made from: parameters, with a learning rate of their own where one is given."""
        return [{"params": list(self.parameters()), **({} if self.lr is None else {"lr": self.lr})}]

    def figures(self) -> dict[str, Figure]:
        """Of the last validation and the last test: tokens by true and predicted type, and the scores of each type."""
        kinds = ["O", *self._spans("val").types]
        figures = {f"confusion_{stage}": confusion_figure(n, kinds) for stage, n in self.confusion_counts.items()}
        return figures | {f"scores_{stage}": scores_figure(values, kinds[1:]) for stage, values in self.scores.items()}

    def _log_loss(self, losses: Tensor, batch: TokenBatch, stage: str) -> None:
        """Log the mean over labelled tokens."""
        labelled = labelled_sentences(batch.tags, batch.mask)
        tokens = int((batch.mask & labelled.unsqueeze(1)).sum())
        mean = losses.detach().sum() / max(tokens, 1)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "add_dataloader_idx": False}
        self.log(f"{stage}/loss", mean, batch_size=tokens, **options)

    def _evaluate(self, batch: TokenBatch, stage: str) -> None:
        h = self.network(batch)
        self._log_loss(self.network.decoder.loss(h, batch.tags, batch.mask), batch, stage)
        chosen = self.network.decoder.decode(h, batch.mask).chosen
        self._spans(stage).update(chosen, batch.tags, batch.mask)
        labelled = batch.mask & labelled_sentences(batch.tags, batch.mask).unsqueeze(1)
        true = self.kind[batch.tags.clamp_min(0)].masked_fill(~labelled, -1)
        self._confusion(stage).update(self.kind[chosen], true)

    def _report(self, *stages: str) -> None:
        for stage in stages:  # gathers over ranks: every rank comes here
            values = self._spans(stage).compute()
            self.scores[stage] = {name: value.item() for name, value in values.items()}
            self.confusion_counts[stage] = self._confusion(stage).compute().cpu()
            self.log_dict({f"{stage}/{name}": values[name] for name in SCORES}, sync_dist=True)

    def _reset(self, *stages: str) -> None:
        for stage in stages:
            self._spans(stage).reset()
            self._confusion(stage).reset()

    def _spans(self, stage: str) -> SpanF1:
        return cast(SpanF1, self.spans[f"{stage}_"])

    def _confusion(self, stage: str) -> MulticlassConfusionMatrix:
        return cast(MulticlassConfusionMatrix, self.confusion[f"{stage}_"])
