"""Words and characters as numbers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from framework.text.batch import BOW, EOW, UNK

SPECIAL_WORDS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
SPECIAL_CHARACTERS = 4
"""Numbers below this are padding, unknown, and the beginning and end of a word."""


class Vocabulary:
    """The words and characters of a text, numbered. Labels play no part in it.

    Args:
        sentences: Tokens of each sentence.
        lower: Whether words are numbered regardless of case; characters always keep theirs.
        min_count: Words that occur less often are unknown; at least 1.

    Attributes:
        words: Words by number: the four special ones, then by falling frequency, ties in alphabetical order.
        counts: How often each occurs, shape ``(len(words),)``, int64; 0 for the special words.
        characters: The known characters, sorted; the first has number 4.
        lower: As given.

    Raises:
        ValueError: If ``min_count`` is below 1 or there is no token.
    """

    def __init__(self, sentences: Iterable[Sequence[str]], lower: bool = True, min_count: int = 1) -> None:
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}")
        forms = Counter[str]()
        for tokens in sentences:
            forms.update(tokens)
        if not forms:
            raise ValueError("a vocabulary needs at least one token")
        counts = Counter[str]()
        for form, count in forms.items():
            counts[form.lower() if lower else form] += count
        kept = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        self.lower = lower
        self.words = [*SPECIAL_WORDS, *(word for _, word in kept)]
        self.counts = torch.tensor([0] * len(SPECIAL_WORDS) + [-count for count, _ in kept])
        self.characters = sorted(set("".join(forms)))
        self._ids = {word: number for number, word in enumerate(self.words) if number >= len(SPECIAL_WORDS)}

    def word_ids(self, words: Iterable[str]) -> Tensor:
        """Numbers of words.

        Args:
            words: Any words.

        Returns:
            Shape ``(words,)``, int64; 1 for an unknown word.
        """
        return torch.tensor(
            [self._ids.get(word.lower() if self.lower else word, UNK) for word in words], dtype=torch.int64
        )

    def character_rows(self, words: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """Characters of words between ``[BOW]`` and ``[EOW]``.

        Args:
            words: Any words.
            max_length: Characters of a word beyond this are cut off; at least 1.

        Returns:
            Numbers, shape ``(words, longest + 2)``, int64, padded with 0, and the length of each row without padding,
            shape ``(words,)``.
        """
        cut = [word[:max_length] for word in words]
        points = _code_points("".join(cut))
        known = np.append(_code_points("".join(self.characters)), np.uint32(2**32 - 1))  # beyond any character
        place = np.searchsorted(known, points)
        numbers = np.where(known[place] == points, place + SPECIAL_CHARACTERS, UNK)
        lengths = torch.tensor([len(word) for word in cut], dtype=torch.int64)
        width = max(map(len, cut), default=0)
        position = torch.arange(width + 2)
        rows = torch.zeros(len(cut), width + 2, dtype=torch.int64)
        rows[:, 0] = BOW
        rows[(position > 0) & (position <= lengths.unsqueeze(1))] = torch.from_numpy(numbers)
        rows[position == lengths.unsqueeze(1) + 1] = EOW
        return rows, lengths + 2

    @property
    def character_count(self) -> int:
        """Number of character ids, the special ones included."""
        return len(self.characters) + SPECIAL_CHARACTERS

    @property
    def fingerprint(self) -> str:
        """A hash of what numbers mean; equal for equal vocabularies on every machine."""
        content = json.dumps([self.lower, self.words, self.characters])
        return hashlib.sha256(content.encode()).hexdigest()


def _code_points(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
