"""Encoders of characters and of words. What stands at padding never changes what they say of real positions."""

from __future__ import annotations

import functools
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from modules.ner.lstm import LSTM

Activation = Literal["relu", "gelu", "tanh"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class Convolution(nn.Conv1d):
    """A convolution that keeps the number of positions, as one matrix product over neighbours beside one another.

    On a CPU, routines for convolution prepare themselves for every new shape, and batches of sentences hardly ever
    repeat one.

    Args:
        inputs: Width of a position of the input.
        filters: Width of a position of the output.
        width: Positions that a filter sees, odd.
    """

    def __init__(self, inputs: int, filters: int, width: int) -> None:
        super().__init__(inputs, filters, width, padding=width // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Output of shape ``(batch, positions, filters)``, from input of shape ``(batch, positions, inputs)``."""
        width, beyond = self.kernel_size[0], self.kernel_size[0] // 2
        around = pad(x, (0, 0, beyond, beyond))
        seen = torch.cat([around[:, start : start + x.shape[1]] for start in range(width)], dim=2)
        return linear(seen, self.weight.transpose(1, 2).flatten(1), self.bias)


class Convolutions(nn.Module):
    """Layers of convolution that keep the number of positions, with dropout between them.

    Padding is set to zero before each layer, for a layer writes its bias there and the next one would read it.

    Args:
        inputs: Width of a position of the input.
        filters: Width of a position after each layer.
        width: Positions that a filter sees, odd.
        layers: Number of layers, at least 1.
        dropout: Probability of dropping a value between two layers, in [0, 1).
        activation: ``relu``, ``gelu`` or ``tanh``.
        residual: Whether the input of a layer is added to its output; where the two differ in width, through a linear
            map.
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        width: int,
        layers: int = 1,
        dropout: float = 0.5,
        activation: Activation = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()
        widths = [inputs, *[filters] * layers]
        self.convolutions = nn.ModuleList(Convolution(a, filters, width) for a in widths[:-1])
        self.skips = nn.ModuleList(
            nn.Linear(a, filters, bias=False) if a != filters else nn.Identity()
            for a in (widths[:-1] if residual else [])
        )
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Encode positions.

        Args:
            x: Input of shape ``(batch, positions, inputs)``.
            real: True where there is no padding, shape ``(batch, positions)``.

        Returns:
            Output of shape ``(batch, positions, filters)``; what stands at padding has no meaning.
        """
        padding = ~real.unsqueeze(2)
        for number, convolution in enumerate(self.convolutions):
            x = (self.dropout(x) if number else x).masked_fill(padding, 0)
            y = self.activation(convolution(x))
            x = y + self.skips[number](x) if self.skips else y
        return x


class CharCNN(nn.Module):
    """Words from their characters: embedding, convolutions with ReLU and residuals, the maximum over real characters.

    Shen et al. (2018), section 3.1 (the paper: one layer, 50 filters, width 5). What the first layer makes of a
    character at a place of the filter depends on the character alone: it is looked up and summed, not multiplied.

    Args:
        characters: Number of character ids, 0 being padding.
        dim: Width of a character's embedding.
        filters: Width of the word's vector.
        width: Characters that a filter sees, odd.
        layers: Number of layers, at least 1.
        dropout: Probability of dropping a value between two layers, in [0, 1).
    """

    def __init__(
        self, characters: int, dim: int = 25, filters: int = 50, width: int = 5, layers: int = 1, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, dim, padding_idx=0)
        self.first = Convolution(dim, filters, width)
        self.skip = nn.Linear(dim, filters, bias=False) if dim != filters else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.deeper = Convolutions(filters, filters, width, layers - 1, dropout, residual=True) if layers > 1 else None
        self.outputs = filters

    def forward(self, chars: Tensor) -> Tensor:
        """Vectors of words, shape ``(words, outputs)``, from character ids, shape ``(words, characters)``."""
        real = chars != 0
        x = self._first_layer(chars)
        if self.deeper is not None:
            x = self.deeper(self.dropout(x), real)
        return x.masked_fill(~real.unsqueeze(2), -torch.inf).amax(dim=1)

    def _first_layer(self, chars: Tensor) -> Tensor:
        """Shape ``(words, characters, filters)``."""
        vectors, weight = self.embedding.weight, self.first.weight
        tables = torch.einsum("ci,fiw->wcf", vectors, weight)  # by place in the filter
        beyond = len(tables) // 2
        around, length = pad(chars, (beyond, beyond)), chars.shape[1]
        places = (
            embedding(around[:, start : start + length], table, padding_idx=0) for start, table in enumerate(tables)
        )
        y = functools.reduce(torch.add, places, cast(Tensor, self.first.bias))
        return y.relu() + embedding(chars, self.skip(vectors), padding_idx=0)


class CharLSTM(nn.Module):
    """Words from their characters: the last states of a bidirectional LSTM.

    Shen et al. (2018), section 4.1, say one layer of 25 units; as in Lample et al. (2016), whose setting that is, it
    is 25 in each direction.

    Args:
        characters: Number of character ids, 0 being padding.
        dim: Width of a character's embedding.
        units: Units in each direction; the word's vector has twice as many.
    """

    def __init__(self, characters: int, dim: int = 25, units: int = 25) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, dim, padding_idx=0)
        self.lstm = LSTM(dim, units, batch_first=True, bidirectional=True)
        self.outputs = 2 * units

    def forward(self, chars: Tensor) -> Tensor:
        """Vectors of words, shape ``(words, outputs)``, from character ids, shape ``(words, characters)``."""
        lengths = (chars != 0).sum(1).cpu()
        packed = pack_padded_sequence(self.embedding(chars), lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return torch.cat([last[0], last[1]], dim=1)


class WordCNN(nn.Module):
    """Words in context: convolutions over the sentence, their top layer beside their input.

    Shen et al. (2018), section 3.2 (the paper: two layers, 800 filters, width 3, dropout 0.5).

    Args:
        inputs: Width of a word's vector.
        filters: Width of each layer.
        width: Words that a filter sees, odd.
        layers: Number of layers, at least 1.
        dropout: Probability of dropping an output of a layer, in [0, 1).
        activation: ``relu``, ``gelu`` or ``tanh``.
        residual: Whether the input of a layer is added to its output. The paper says so of characters only.
    """

    def __init__(
        self,
        inputs: int,
        filters: int = 800,
        width: int = 3,
        layers: int = 2,
        dropout: float = 0.5,
        activation: Activation = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.convolutions = Convolutions(inputs, filters, width, layers, dropout, activation, residual)
        self.dropout = nn.Dropout(dropout)
        self.outputs = filters + inputs

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Encode sentences.

        Args:
            x: Vectors of words, shape ``(batch, positions, inputs)``.
            real: True where there is no padding, shape ``(batch, positions)``.

        Returns:
            Vectors of words in context, shape ``(batch, positions, outputs)``; at padding they have no meaning.
        """
        return torch.cat([self.dropout(self.convolutions(x, real)), x], dim=2)


class WordLSTM(nn.Module):
    """Words in context: one bidirectional LSTM layer over the sentence.

    Shen et al. (2018), section 4.1, say one layer of 100 units; as in Lample et al. (2016) it is 100 in each direction.

    Args:
        inputs: Width of a word's vector.
        units: Units in each direction; the output has twice as many.
        dropout: Probability of dropping an output, in [0, 1).
    """

    def __init__(self, inputs: int, units: int = 100, dropout: float = 0.5) -> None:
        super().__init__()
        self.lstm = LSTM(inputs, units, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.outputs = 2 * units

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """As :meth:`WordCNN.forward`."""
        packed = pack_padded_sequence(x, real.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.dropout(output)
