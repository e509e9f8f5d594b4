"""Sub-word pieces of sentences, for transformers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pieces(NamedTuple):
    """Pieces of sentences, one after the other.

    Attributes:
        ids: Piece numbers with the special pieces of the tokenizer, shape ``(pieces,)``, int64.
        offsets: Where each sentence begins in ``ids``, and the end, shape ``(sentences + 1,)``, int64.
        first: Position of each token's first piece among the pieces of its sentence, shape ``(tokens,)``, int64.
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


def load_tokenizer(name: str) -> Any:
    """A fast tokenizer of Hugging Face, by name or from a folder (which needs no network).

    Args:
        name: Name of a model, or its folder.

    Returns:
        The tokenizer, set to take words.

    Raises:
        ValueError: If it cannot be loaded or is not a fast one, which alone knows which piece belongs to which word.
    """
    from transformers import AutoTokenizer  # heavy: only for transformers

    tokenizer = load_pretrained("tokenizer", AutoTokenizer, name, add_prefix_space=True)
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
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return Pieces(torch.tensor(ids), torch.tensor(offsets), torch.tensor(first), int(padding))


def load_pretrained(kind: str, auto: Any, name: str, **options: Any) -> Any:
    """Something of Hugging Face, from a folder or the local cache, or else fetched.

    Args:
        kind: What it is, for the error.
        auto: A class with ``from_pretrained``.
        name: Name of a model, or its folder.
        **options: More arguments of ``from_pretrained``.

    Returns:
        What ``from_pretrained`` returns.

    Raises:
        ValueError: If it cannot be loaded.
    """
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local:
        with suppress(OSError, ValueError):  # the cache first: asking a network that is down takes half a minute
            return auto.from_pretrained(name, local_files_only=True, **options)
    try:
        return auto.from_pretrained(str(folder) if local else name, local_files_only=local, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        hint = "" if local else ". It is no folder either: give one with its files where there is no network"
        raise ValueError(f"{kind} {name!r} cannot be loaded: {reason}{hint}") from error


def _encode(tokenizer: Any, part: list[list[str]]) -> Any:
    return tokenizer(part, is_split_into_words=True, truncation=False, verbose=False)
