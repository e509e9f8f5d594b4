"""The batches that taggers and classifiers of sentences read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

PAD, UNK, BOS, EOS = 0, 1, 2, 3
"""Ids of the words that stand for padding, an unknown word, the beginning and the end of a sentence."""

BOW, EOW = 2, 3
"""Ids of the characters that stand for the beginning and the end of a word; padding and unknown are PAD and UNK."""

IGNORED = -100
"""Tag of padding and of tokens without a label; what ``cross_entropy`` ignores by default."""


class TokenBatch(NamedTuple):
    """Sentences as ``[BOS] w_1 .. w_n [EOS] [PAD] ..``, with what they are made of.

    Below, B is the number of sentences, n the length of the longest of them, U the number of different words (by
    spelling, case included) in the batch, c the length of the longest of those, m the number of sub-word pieces of the
    sentence that has most.

    Attributes:
        index: Position of each sentence in its data set, shape ``(B,)``, int64.
        words: Word ids, shape ``(B, n + 2)``, int64.
        chars: Characters ``[BOW] c_1 .. [EOW]`` of the different words, padded with 0, shape ``(U, c)``, int64. BOS,
            EOS and PAD are words without a character between ``[BOW]`` and ``[EOW]``, each with its own row.
        word_forms: Row of ``chars`` of each word, shape ``(B, n + 2)``, int64.
        tags: Tag numbers of the real tokens (without BOS and EOS), shape ``(B, n)``, int64; -100 at padding and where
            there is no label.
        mask: True at real tokens, shape ``(B, n)``, bool.
        tokens: The words as they were read.
        pieces: Sub-word pieces with the special pieces of the tokenizer, shape ``(B, m)``, int64, or None.
        pieces_mask: 1 at pieces, 0 at padding, shape ``(B, m)``, int64, or None.
        first_piece: Position in ``pieces`` of the first piece of each token, 0 at padding, shape ``(B, n)``, int64, or
            None.
    """

    index: Tensor  # type: ignore[assignment]  # hides the search that every tuple has; a batch is never searched
    words: Tensor
    chars: Tensor
    word_forms: Tensor
    tags: Tensor
    mask: Tensor
    tokens: list[list[str]]
    pieces: Tensor | None = None
    pieces_mask: Tensor | None = None
    first_piece: Tensor | None = None

    def to(self, device: torch.device | str, **options: Any) -> TokenBatch:
        """The same batch with its tensors on a device; Lightning calls this, and so does not search the tokens.

        Args:
            device: Where to.
            **options: Options of ``torch.Tensor.to``, such as ``non_blocking``.

        Returns:
            The batch.
        """
        moved = {name: part.to(device, **options) for name, part in self._asdict().items() if isinstance(part, Tensor)}
        return self._replace(**moved)  # type: ignore[arg-type]  # every field that is moved is a tensor

    @property
    def lengths(self) -> Tensor:
        """Number of real tokens of each sentence, shape ``(B,)``, int64."""
        return self.mask.sum(dim=1)


class PieceBatch(NamedTuple):
    """Whole sentences as sub-word pieces.

    Lightning moves it to a device and counts its sentences as it does for any tuple of tensors.

    Attributes:
        input_ids: Piece numbers with the special pieces of the tokenizer, shape ``(batch, pieces)``, int64.
        attention_mask: 1 at pieces, 0 at padding, of the same shape and type.
    """

    input_ids: Tensor
    attention_mask: Tensor
