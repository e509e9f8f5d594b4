"""Sentences as a map-style data set, encoded once, and made into batches without a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from framework.text.batch import BOS, EOS, IGNORED, PAD, TokenBatch
from framework.text.conll import Annotated
from framework.text.pieces import Pieces
from framework.text.tags import convert, split_tag
from framework.text.vocabulary import Vocabulary

_PAD_FORM, _BOS_FORM, _EOS_FORM = 0, 1, 2
_SPECIAL_FORMS = ("", "", "")  # no characters of their own


class Sentence(NamedTuple):
    """An item of :class:`Sentences`: which data set, and which sentence of it.

    Attributes:
        data: The data set.
        position: Position of the sentence in it.
    """

    data: Sentences
    position: int

    @property
    def tokens(self) -> list[str]:
        """The tokens as they were read."""
        return self.data.tokens[self.position]

    @property
    def tags(self) -> list[str] | None:
        """IOBES tags, or None without labels."""
        return self.data.tags_of(self.position)


class Sentences(Dataset[Sentence]):
    """Sentences with their tags, held as flat tensors.

    Serve it with ``collate_fn=collate``; any subset of it works too.

    Args:
        annotated: The sentences.
        vocabulary: Numbers of words and characters.
        tag_names: IOBES names by number.
        max_word_length: Characters of a word beyond this are cut off; at least 1.
        pieces: Sub-word pieces of the same sentences, for transformers.

    Attributes:
        unit: In what labels are paid: ``words``.
        words: Number of words of each sentence, shape ``(sentences,)``, int64: what its labels cost.
        genres: Genre of each sentence, empty where unknown.
        comments: Comment lines before each sentence, or nothing; see :class:`framework.text.conll.Annotated`.
        tokens: The tokens as they were read.
        tags: Tag numbers of all tokens of all sentences in turn, shape ``(sum of words,)``, int64; -100 without label.
        offsets: Where each sentence begins in ``tags``, and the end, shape ``(sentences + 1,)``.
        tag_names: As given.

    Raises:
        ValueError: If a tag is not among ``tag_names``.
    """

    unit = "words"

    def __init__(
        self,
        annotated: Annotated,
        vocabulary: Vocabulary,
        tag_names: Sequence[str],
        max_word_length: int = 20,
        pieces: Pieces | None = None,
    ) -> None:
        if max_word_length < 1:
            raise ValueError(f"max_word_length must be at least 1, got {max_word_length}")
        self.tokens, self.genres, self.tag_names = annotated.tokens, annotated.genres, list(tag_names)
        self.comments = annotated.comments
        self.words = torch.tensor([len(tokens) for tokens in self.tokens], dtype=torch.int64)
        self.offsets = torch.tensor([0, *accumulate(map(len, self.tokens))], dtype=torch.int64)
        # Every spelling is looked up once, however often it occurs.
        rows: dict[str, int] = {}
        spellings = chain.from_iterable(self.tokens)
        forms = [rows.setdefault(token, len(rows) + len(_SPECIAL_FORMS)) for token in spellings]
        self._forms = torch.tensor(forms, dtype=torch.int64)
        self._form_words = torch.cat([torch.tensor([PAD, BOS, EOS]), vocabulary.word_ids(rows)])
        self._chars, self._char_lengths = vocabulary.character_rows([*_SPECIAL_FORMS, *rows], max_word_length)
        self._pieces = pieces
        self._tag_ids = {name: number for number, name in enumerate(self.tag_names)}
        tags = (t or [""] * len(words) for t, words in zip(annotated.tags, self.tokens))
        try:
            numbers = [self._tag_ids[tag] if tag else IGNORED for tag in chain.from_iterable(tags)]
        except KeyError as error:
            raise ValueError(f"tag {error.args[0]} is not among the tags {', '.join(self.tag_names)}") from None
        self.tags = torch.tensor(numbers, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sentence:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sentence {index} of {len(self)}")
        return Sentence(self, int(index) % len(self))

    def tags_of(self, index: int) -> list[str] | None:
        """IOBES tags of a sentence.

        Args:
            index: Position of the sentence.

        Returns:
            One tag per token, or None without labels.
        """
        numbers = self.tags[self.offsets[index] : self.offsets[index + 1]].tolist()
        return None if IGNORED in numbers else [self.tag_names[number] for number in numbers]

    def is_labelled(self) -> Tensor:
        """Which sentences have labels, shape ``(sentences,)``, bool."""
        return self.tags[self.offsets[:-1]] != IGNORED  # a sentence is labelled as a whole

    def describe(self, index: int) -> dict[str, Any]:
        """What somebody who labels the sentence has to see; never its labels.

        Args:
            index: Position of the sentence.

        Returns:
            ``text``, ``tokens`` and, where known, ``genre``.
        """
        tokens, genre = self.tokens[index], self.genres[index]
        return {"text": " ".join(tokens), "tokens": list(tokens)} | ({"genre": genre} if genre else {})

    def set_labels(self, labels: Mapping[int, Any]) -> None:
        """Take labels that somebody has given; all of them or, if one is wrong, none.

        Args:
            labels: Tags by position of the sentence: a list with one tag per token, in any of the schemes, or one
                string of them with white space between.

        Raises:
            ValueError: If a position or a tag is unknown, or tags are not as many as tokens.
        """
        accepted: dict[int, list[int]] = {}
        for index, given in labels.items():
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self):
                raise ValueError(f"labels are for sentences 0 to {len(self) - 1}, got {index!r}")
            tags = given.split() if isinstance(given, str) else given
            if not isinstance(tags, (list, tuple)) or not all(isinstance(tag, str) for tag in tags):
                raise ValueError(f"labels of sentence {index} must be a list of tags, got {given!r}")
            if len(tags) != len(self.tokens[index]):
                raise ValueError(
                    f"sentence {index} has {len(self.tokens[index])} tokens, got {len(tags)} tags: {given!r}"
                )
            for tag in tags:
                try:
                    kind = split_tag(tag)[1]
                except ValueError as error:
                    raise ValueError(f"labels of sentence {index}: {error}") from None
                if kind and f"S-{kind}" not in self._tag_ids:
                    types = ", ".join(name[2:] for name in self.tag_names if name.startswith("S-"))
                    raise ValueError(f"labels of sentence {index}: {tag!r} has an unknown type, known are {types}")
            accepted[index] = [self._tag_ids[tag] for tag in convert(tags, "iobes")]
        for index, numbers in accepted.items():
            self.tags[self.offsets[index] : self.offsets[index + 1]] = torch.tensor(numbers)

    def batch(self, indices: Tensor) -> TokenBatch:
        """A batch of some of the sentences.

        Args:
            indices: Positions, shape ``(batch,)``, int64, at least one.

        Returns:
            The batch, in the order of the positions.
        """
        lengths = self.words[indices]
        longest = int(lengths.max())
        position = torch.arange(longest)
        mask = position < lengths.unsqueeze(1)
        flat = (self.offsets[indices].unsqueeze(1) + position)[mask]
        tags = torch.full(mask.shape, IGNORED)
        tags[mask] = self.tags[flat]
        forms = torch.full((len(indices), longest + 2), _PAD_FORM)
        forms[:, 0] = _BOS_FORM
        forms[:, 1:-1][mask] = self._forms[flat]
        forms[torch.arange(len(indices)), lengths + 1] = _EOS_FORM
        different, word_forms = torch.unique(forms, return_inverse=True)
        chars = self._chars[different, : int(self._char_lengths[different].max())]
        tokens = [self.tokens[index] for index in indices.tolist()]
        whole = TokenBatch(indices, self._form_words[forms], chars, word_forms, tags, mask, tokens)
        if self._pieces is None:
            return whole
        pieces, pieces_mask = self._pieces.batch(indices)
        first = torch.zeros(mask.shape, dtype=torch.int64)
        first[mask] = self._pieces.first[flat]
        return whole._replace(pieces=pieces, pieces_mask=pieces_mask, first_piece=first)


def collate(items: Sequence[Sentence]) -> TokenBatch:
    """Make a batch of items of one :class:`Sentences`; the ``collate_fn`` of its loaders.

    Args:
        items: The items.

    Returns:
        The batch; its ``index`` holds their positions in the data set.

    Raises:
        TypeError: If the items come from several data sets, whose word forms are numbered differently.
    """
    data = items[0].data
    if any(item.data is not data for item in items):
        raise TypeError("a batch of sentences must come from one data set of Sentences, got several")
    return data.batch(torch.tensor([item.position for item in items]))
