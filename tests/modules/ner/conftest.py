"""A small grammar of sentences with entities, and batches of it."""

from __future__ import annotations

import random

import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from framework.text.conll import Annotated
from framework.text.sentences import Sentences, collate
from framework.text.tags import tag_names
from framework.text.vocabulary import Vocabulary

TAGS = tag_names(["LOC", "PER"])
TEMPLATES = [
    "PER visited LOC with PER",
    "in LOC , PER met PER of LOC",
    "nothing happened here today",
    "LOC",
    "PER slept",
]
LEXICON = {
    "PER": ["Anna", "Boris", "Carla Dorn", "Emil van Fels", "Greta"],
    "LOC": ["Rome", "New York", "Ulm", "Rio de Janeiro"],
}


def grammar(count: int, seed: int) -> Annotated:
    """Sentences of the templates, filled at random."""
    draw = random.Random(seed)
    tokens, tags = [], []
    for _ in range(count):
        words, names = [], []
        for part in draw.choice(TEMPLATES).split():
            filled = draw.choice(LEXICON.get(part, [part])).split()
            inner = [f"I-{part}"] * (len(filled) - 2)
            names += (
                ["O"]
                if part not in LEXICON
                else [f"S-{part}"]
                if len(filled) == 1
                else [f"B-{part}", *inner, f"E-{part}"]
            )
            words += filled
        tokens.append(words)
        tags.append(names)
    return Annotated(tokens, tags, [""] * count)


class Grammar(LightningDataModule):
    """Sentences of the grammar for training, validation and test, with what the command line hands to a tagger."""

    tags = TAGS

    def __init__(self, count: int = 60, vectors: torch.Tensor | None = None, second: bool = False, batch_size: int = 8):
        super().__init__()
        self.parts = {name: grammar(count, seed) for seed, name in enumerate(("train", "val", "test"))}
        self.vocabulary = Vocabulary(self.parts["train"].tokens)
        self.words, self.characters = len(self.vocabulary.words), len(self.vocabulary.characters) + 4
        self.data = {name: Sentences(part, self.vocabulary, TAGS) for name, part in self.parts.items()}
        self.vectors, self.second, self.batch_size = vectors, second, batch_size

    @property
    def sizes(self) -> dict:
        return {"words": self.words, "characters": self.characters, "tags": TAGS}

    def word_vectors(self):
        return self.vectors

    def loader(self, name: str, shuffle: bool = False) -> DataLoader:
        return DataLoader(self.data[name], batch_size=self.batch_size, shuffle=shuffle, collate_fn=collate)

    def train_dataloader(self):
        return self.loader("train", shuffle=True)

    def val_dataloader(self):
        return [self.loader("val"), self.loader("test")] if self.second else self.loader("val")

    def test_dataloader(self):
        return self.loader("test")

    def predict_dataloader(self):
        return self.loader("test")

    def batch(self, name: str = "train", indices=range(32)):
        return self.data[name].batch(torch.tensor(list(indices)))


@pytest.fixture
def make_data():
    return Grammar


@pytest.fixture
def data():
    return Grammar()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
