"""CNN-CNN-LSTM tagger and its relatives: Shen, Yun, Lipton, Kronrod, Anandkumar, ICLR 2018."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from modules.ner.encoders import Activation
from modules.ner.shell import Reduction, SequenceTagger
from modules.ner.tagger import CharEncoder, TagDecoder, TaggerNetwork, WordEncoder


class Tagger(SequenceTagger):
    """Tag entities with a character encoder, a word encoder and a tag decoder.

    A batch is a ``framework.text.batch.TokenBatch``. The defaults are the paper's where it says what it used, but for
    the optimiser and the reduction of the loss. In training a sentence with a token that has no tag counts nowhere.

    A DataModule with a method ``word_vectors()`` that returns vectors of shape ``(words, word_dim)`` starts the
    embeddings of words with them; a module that was fitted or loaded from a checkpoint keeps its own.

    Args:
        words: Number of word ids; the command line takes it from the data.
        characters: Number of character ids; the command line takes it from the data.
        tags: Names of the tags in IOBES; the command line takes them from the data.
        char_encoder: ``cnn``, ``lstm``, or ``none`` for words by their embeddings alone.
        word_encoder: ``cnn`` or ``lstm``.
        decoder: ``lstm``, ``crf`` or ``softmax``.
        char_dim: Width of a character's embedding.
        char_filters: Filters of each layer of the character CNN.
        char_width: Characters that a filter sees, odd.
        char_layers: Layers of the character CNN.
        char_units: Units of the character LSTM in each direction.
        word_dim: Width of a word's embedding.
        word_filters: Filters of each layer of the word CNN.
        word_width: Words that a filter sees, odd.
        word_layers: Layers of the word CNN.
        word_units: Units of the word LSTM in each direction.
        activation: Of the word CNN: ``relu``, ``gelu`` or ``tanh``.
        residual: Whether layers of the word CNN add their input to their output.
        tag_dim: Width of a tag's embedding in the LSTM decoder.
        decoder_units: Units of the LSTM decoder.
        input_dropout: Probability of dropping a value of a word's vector, in [0, 1).
        encoder_dropout: The same between layers of characters, and on the outputs of the word encoder's layers.
        decoder_dropout: The same between the LSTM decoder and its softmax.
        unk_rate: Probability, in [0, 1), that a word's embedding is replaced by that of UNK in training; its characters
            stay.
        beam: Tag sequences that decoding keeps, of the LSTM decoder alone; 1 is greedy.
        constrained: Whether decoding leaves out tags that IOBES does not allow.
        strict: Whether only whole IOBES entities count in precision, recall and F1; else broken ones are read as
            conlleval (and seqeval by default) does.
        loss_reduction: What is minimised: the ``sum`` over the batch, the mean over its labelled sentences
            (``sentence``), or over their tokens (``token``). Logged is the mean over tokens.
        empty_weight: Weight in what is minimised of a sentence without an entity, in [0, 1].
        lr: Learning rate. None keeps the optimiser's own.
        optimizer: Builds the optimiser from the parameters; in YAML by ``class_path``.
        scheduler: Builds a learning-rate scheduler from the optimiser, stepped once per epoch; in YAML by
            ``class_path``. ReduceLROnPlateau watches ``val/loss``, with ``mode: max`` ``val/f1``.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    network: TaggerNetwork
    fitted: Tensor

    def __init__(
        self,
        words: int,
        characters: int,
        tags: Sequence[str],
        char_encoder: CharEncoder = "cnn",
        word_encoder: WordEncoder = "cnn",
        decoder: TagDecoder = "lstm",
        char_dim: int = 25,
        char_filters: int = 50,
        char_width: int = 5,
        char_layers: int = 1,
        char_units: int = 25,
        word_dim: int = 100,
        word_filters: int = 800,
        word_width: int = 3,
        word_layers: int = 2,
        word_units: int = 100,
        activation: Activation = "relu",
        residual: bool = False,
        tag_dim: int = 25,
        decoder_units: int = 256,
        input_dropout: float = 0.5,
        encoder_dropout: float = 0.5,
        decoder_dropout: float = 0.5,
        unk_rate: float = 0.5,
        beam: int = 1,
        constrained: bool = False,
        strict: bool = False,
        loss_reduction: Reduction = "sentence",
        empty_weight: float = 1.0,
        lr: float | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        given = dict(locals())
        network = TaggerNetwork(**{name: given[name] for name in inspect.signature(TaggerNetwork).parameters})
        super().__init__(tags, loss_reduction, empty_weight, strict, lr, optimizer, scheduler)
        # Objects stay out of hparams, so that checkpoints load with weights_only=True.
        self.save_hyperparameters(ignore=["optimizer", "scheduler"])
        self.network = network
        self.register_buffer("fitted", torch.tensor(False))

    def setup(self, stage: str) -> None:
        if stage != "fit" or self.fitted:  # a checkpoint that is restored later brings its own vectors
            return
        word_vectors = getattr(getattr(self.trainer, "datamodule", None), "word_vectors", None)
        vectors = word_vectors() if callable(word_vectors) else None
        if vectors is not None:
            weight = self.network.embedding.weight
            if vectors.shape != weight.shape:
                raise ValueError(
                    f"word vectors must be of shape (words, word_dim) = {tuple(weight.shape)}, "
                    f"got {tuple(vectors.shape)}: set word_dim to {vectors.shape[-1]}"
                )
            with torch.no_grad():
                weight.copy_(vectors)
        self.fitted.fill_(True)
