"""Sub-word pieces of sentences, for transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framework.text.encoders import load_pretrained


class Pieces(NamedTuple):
    """Pieces of sentences, one after the other.

    Attributes:
        ids: Piece numbers with the special pieces of the tokenizer, shape ``(pieces,)``, int64.
        offsets: Where each sentence begins in ``ids``, and the end, shape ``(sentences + 1,)``, int64.
        first: Position of each token's first piece among the pieces of its sentence, shape ``(tokens,)``, int64; empty
            where sentences were not given as tokens.
        padding: Number of the padding piece.
    """

    ids: Tensor
    offsets: Tensor
    first: Tensor
    padding: int

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Padded pieces of some sentences.

        Args:
            indices: Positions of the sentences, shape ``(batch,)``.

        Returns:
            Pieces and their mask (1 at pieces, 0 at padding), both of shape ``(batch, most pieces)``, int64.
        """
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        position = torch.arange(int(lengths.max()))
        mask = position < lengths.unsqueeze(1)
        pieces = torch.full(mask.shape, self.padding)
        pieces[mask] = self.ids[(starts.unsqueeze(1) + position)[mask]]
        return pieces, mask.long()


def load_tokenizer(name: str, words: bool = True) -> Any:
    """A fast tokenizer of Hugging Face.

    Args:
        name: Name of a model, its folder, or ``package:`` and the name of a package that carries one; see
            :func:`framework.text.encoders.load_pretrained`.
        words: Whether it is to take words, rather than whole sentences.

    Returns:
        The tokenizer.

    Raises:
        ValueError: If it cannot be loaded or is not a fast one, which alone knows which piece belongs to which word.
    """
    from transformers import AutoTokenizer  # heavy: only for transformers

    options = {"add_prefix_space": True} if words else {}
    tokenizer = load_pretrained("tokenizer", AutoTokenizer, name, **options)
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {name!r} must be a fast one, which knows the pieces of each word")
    return tokenizer


def encode_pieces(tokenizer: Any, sentences: Sequence[Sequence[str]], chunk: int = 1024) -> Pieces:
    """Split the words of sentences into pieces.

    A word without any piece (such as a lone control character) becomes the unknown piece. Nothing is cut off.

    Args:
        tokenizer: A fast tokenizer of Hugging Face.
        sentences: Tokens of each sentence.
        chunk: Sentences encoded at a time.

    Returns:
        The pieces.
    """
    ids: list[int] = []
    offsets, first = [0], []
    for begin in range(0, len(sentences), chunk):
        part = [list(tokens) for tokens in sentences[begin : begin + chunk]]
        coded = _encode(tokenizer, part)
        missing = [set(range(len(tokens))) - set(coded.word_ids(i)) for i, tokens in enumerate(part)]
        if any(missing):
            for tokens, gaps in zip(part, missing):
                for gap in gaps:
                    tokens[gap] = tokenizer.unk_token
            coded = _encode(tokenizer, part)
        for i, row in enumerate(coded["input_ids"]):
            words = coded.word_ids(i)
            first += [k for k, word in enumerate(words) if word is not None and (k == 0 or word != words[k - 1])]
            ids += row
            offsets.append(len(ids))
    return Pieces(torch.tensor(ids), torch.tensor(offsets), torch.tensor(first), _padding(tokenizer))


def encode_texts(tokenizer: Any, texts: Sequence[str], max_pieces: int, chunk: int = 1024) -> Pieces:
    """Split whole sentences into pieces, by the tokenizer's own rules of what a word is.

    Args:
        tokenizer: A tokenizer of Hugging Face.
        texts: The sentences.
        max_pieces: Pieces of a sentence, special ones included, beyond which it is cut off.
        chunk: Sentences encoded at a time.

    Returns:
        The pieces; ``first`` is empty, for there are no tokens.
    """
    ids: list[int] = []
    offsets = [0]
    for begin in range(0, len(texts), chunk):
        part = list(texts[begin : begin + chunk])
        for row in tokenizer(part, truncation=True, max_length=max_pieces, verbose=False)["input_ids"]:
            ids += row
            offsets.append(len(ids))
    return Pieces(torch.tensor(ids), torch.tensor(offsets), torch.zeros(0, dtype=torch.int64), _padding(tokenizer))


def _encode(tokenizer: Any, part: list[list[str]]) -> Any:
    return tokenizer(part, is_split_into_words=True, truncation=False, verbose=False)


def _padding(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0
