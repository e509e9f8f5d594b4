"""The network of a tagger: vectors of words from characters and spelling, words in context, tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from framework.active.decisions import Decisions
from framework.text.batch import EOS, PAD, UNK, TokenBatch
from framework.text.tags import split_tag
from modules.ner.decoders import CRFDecoder, Decoder, LSTMDecoder, SoftmaxDecoder
from modules.ner.encoders import Activation, CharCNN, CharLSTM, WordCNN, WordLSTM

CharEncoder = Literal["cnn", "lstm", "none"]
WordEncoder = Literal["cnn", "lstm"]
TagDecoder = Literal["lstm", "crf", "softmax"]
CHOICES = {
    "char_encoder": get_args(CharEncoder),
    "word_encoder": get_args(WordEncoder),
    "decoder": get_args(TagDecoder),
    "activation": get_args(Activation),
}


class TaggerNetwork(nn.Module):
    """Character encoder, word encoder and tag decoder, each by name (Shen et al., 2018, section 3).

    The vector of a word is what the character encoder makes of its spelling beside its embedding. Every value is
    dropped at most once on its way: ``input_dropout`` is on the vectors of words, ``encoder_dropout`` between layers
    of characters and on the outputs of the word encoder's layers, ``decoder_dropout`` before the decoder's softmax.

    Args:
        words: Number of word ids, those of PAD, UNK, BOS and EOS among them.
        characters: Number of character ids, those of PAD, UNK, BOW and EOW among them.
        tags: Names of the tags in IOBES: ``O``, and ``B-``, ``I-``, ``E-`` and ``S-`` of each type.
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
        input_dropout: See above; in [0, 1).
        encoder_dropout: See above; in [0, 1).
        decoder_dropout: See above, of the LSTM decoder alone; in [0, 1).
        unk_rate: Probability, in [0, 1), that a word's embedding is replaced by that of UNK in training; its characters
            stay. BOS, EOS and PAD are never replaced.
        beam: Tag sequences that decoding keeps, of the LSTM decoder alone; 1 is greedy.
        constrained: Whether decoding leaves out tags that IOBES does not allow.

    Raises:
        ValueError: If a number is out of range or a name unknown; the message names it.
    """

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
    ) -> None:
        super().__init__()
        check_arguments(locals())
        self.unk_rate = unk_rate
        self.embedding = nn.Embedding(words, word_dim, padding_idx=PAD)
        bound = (3 / word_dim) ** 0.5  # vectors of length 1 on average, as in Ma and Hovy (2016)
        with torch.no_grad():
            self.embedding.weight[PAD + 1 :].uniform_(-bound, bound)
        self.characters: CharCNN | CharLSTM | None = None
        if char_encoder == "cnn":
            self.characters = CharCNN(characters, char_dim, char_filters, char_width, char_layers, encoder_dropout)
        elif char_encoder == "lstm":
            self.characters = CharLSTM(characters, char_dim, char_units)
        self.dropout = nn.Dropout(input_dropout)
        inputs = word_dim + (self.characters.outputs if self.characters is not None else 0)
        self.words: WordCNN | WordLSTM
        if word_encoder == "cnn":
            shape = (inputs, word_filters, word_width, word_layers)
            self.words = WordCNN(*shape, encoder_dropout, activation, residual)
        else:
            self.words = WordLSTM(inputs, word_units, encoder_dropout)
        sizes = (decoder_units, tag_dim, decoder_dropout, beam)
        self.decoder = make_decoder(decoder, self.words.outputs, tags, *sizes, constrained)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Vectors of the real tokens in context, shape ``(B, n, width)``: what the decoder reads."""
        words = batch.words
        if self.training and self.unk_rate > 0:
            replaced = torch.rand(words.shape, device=words.device) < self.unk_rate
            words = words.masked_fill(replaced & (words > EOS), UNK)
        x = self.embedding(words)
        if self.characters is not None:
            # Each different word once.
            x = torch.cat([embedding(batch.word_forms, self.characters(batch.chars)), x], dim=2)
        h: Tensor = self.words(self.dropout(x), batch.words != PAD)
        return h[:, 1:-1]

    def loss(self, batch: TokenBatch) -> Tensor:
        """-log P(tags | words) in nats, shape ``(B,)``; 0 for a sentence with a token that has no tag."""
        return self.decoder.loss(self(batch), batch.tags, batch.mask)

    def decode(self, batch: TokenBatch) -> Decisions:
        """The best tags and their conditional log-probabilities; the batch's own tags are not read."""
        return self.decoder.decode(self(batch), batch.mask)

    def mean_embedding(self, batch: TokenBatch) -> Tensor:
        """The mean of the embeddings of a sentence's words, shape ``(B, word_dim)``."""
        real = batch.mask.unsqueeze(2)
        return (self.embedding(batch.words[:, 1:-1]) * real).sum(1) / real.sum(1)


def make_decoder(
    kind: TagDecoder,
    inputs: int,
    tags: Sequence[str],
    units: int,
    tag_dim: int,
    dropout: float,
    beam: int,
    constrained: bool,
) -> Decoder:
    """The tag decoder of a name; ``units`` to ``beam`` are of the LSTM decoder alone."""
    if kind == "lstm":
        return LSTMDecoder(inputs, tags, units, tag_dim, dropout, beam, constrained)
    return (CRFDecoder if kind == "crf" else SoftmaxDecoder)(inputs, tags, constrained)


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the arguments of a network are in range; their names tell what they are."""
    tags = given["tags"]
    for tag in tags:
        split_tag(tag)
    if "O" not in tags or len(set(tags)) < max(len(tags), 2):
        raise ValueError(f"tags must be O and at least one other name, each once, got {list(tags)}")
    for name, value in given.items():
        if name in ("words", "characters") and value <= EOS + 1:
            raise ValueError(f"{name} must be more than {EOS + 1} (the special ids), got {value}")
        if name.endswith(("dim", "filters", "width", "layers", "units", "beam")) and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
        if name.endswith("_width") and value % 2 == 0:
            raise ValueError(f"{name} must be odd, so that a filter has a middle, got {value}")
        if name.endswith(("dropout", "unk_rate")) and not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
    decoder, beam = given["decoder"], given["beam"]
    if beam > 1 and decoder != "lstm":
        raise ValueError(f"beam must be 1 with decoder {decoder}, which finds the best tags without, got {beam}")
