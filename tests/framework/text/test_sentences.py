"""Sentences against a batch made token by token, their vocabulary, and labels given by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from framework.text.batch import BOS, BOW, EOS, EOW, IGNORED, PAD, UNK, TokenBatch
from framework.text.conll import Annotated
from framework.text.sentences import Sentences, collate
from framework.text.tags import tag_names
from framework.text.vocabulary import Vocabulary

NAMES = tag_names(["LOC", "PER"])
SAMPLE = Annotated(
    [["Ann", "likes", "New", "York"], ["Hi"], ["ann", "ANN", "", "x" * 30]],
    [["S-PER", "O", "B-LOC", "E-LOC"], ["O"], None],
    ["news", "", "web"],
)


def naive(annotated: Annotated, indices: list[int], vocabulary: Vocabulary, max_length: int) -> dict:
    """A batch made of lists; characters by word, since the order of the different words is free."""
    longest = max(len(annotated.tokens[i]) for i in indices)
    ids = {word: number for number, word in enumerate(vocabulary.words)}
    points = {character: number for number, character in enumerate(vocabulary.characters, 4)}
    words, tags, mask, characters = [], [], [], []
    for i in indices:
        tokens, gap = annotated.tokens[i], longest - len(annotated.tokens[i])
        spelled = [token.lower() if vocabulary.lower else token for token in tokens]
        words.append([BOS, *(ids.get(token, UNK) for token in spelled), EOS, *[PAD] * gap])
        numbers = [NAMES.index(tag) for tag in annotated.tags[i]] if annotated.tags[i] else [IGNORED] * len(tokens)
        tags.append(numbers + [IGNORED] * gap)
        mask.append([True] * len(tokens) + [False] * gap)
        rows = [[points.get(c, UNK) for c in token[:max_length]] for token in ["", *tokens, "", *[""] * gap]]
        characters.append([[BOW, *row, EOW] for row in rows])
    return {"words": words, "tags": tags, "mask": mask, "characters": characters}


def check(batch: TokenBatch, wanted: dict) -> None:
    assert batch.words.tolist() == wanted["words"]
    assert batch.tags.tolist() == wanted["tags"]
    assert batch.mask.tolist() == wanted["mask"]
    spelled = [[batch.chars[form].tolist() for form in row] for row in batch.word_forms.tolist()]
    width = max(len(word) for row in wanted["characters"] for word in row)
    assert spelled == [[word + [PAD] * (width - len(word)) for word in row] for row in wanted["characters"]]


word = st.text("abAB#é'😀", max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    sentences=st.lists(st.lists(word, min_size=1, max_size=6), min_size=1, max_size=6),
    data=st.data(),
    lower=st.booleans(),
    min_count=st.integers(1, 2),
    max_length=st.integers(1, 6),
)
def test_batches_equal_a_naive_reference(sentences, data, lower, min_count, max_length):
    tags = [
        data.draw(st.none() | st.lists(st.sampled_from(NAMES), min_size=len(s), max_size=len(s))) for s in sentences
    ]
    annotated = Annotated(sentences, tags, [""] * len(sentences))
    vocabulary = Vocabulary(sentences[: data.draw(st.integers(1, len(sentences)))], lower, min_count)
    dataset = Sentences(annotated, vocabulary, NAMES, max_length)
    indices = data.draw(st.lists(st.integers(0, len(sentences) - 1), min_size=1, max_size=6))
    batch = collate([dataset[i] for i in indices])
    check(batch, naive(annotated, indices, vocabulary, max_length))
    assert batch.index.tolist() == indices
    assert batch.tokens == [sentences[i] for i in indices]
    assert batch.lengths.tolist() == [len(sentences[i]) for i in indices]
    assert len(batch.chars) == len(batch.word_forms.unique()), "each row of chars is a word of this batch"
    assert [dataset[i].tags for i in range(len(sentences))] == tags


def test_a_loader_over_a_subset_keeps_the_indices_of_the_data_set():
    dataset = Sentences(SAMPLE, Vocabulary(SAMPLE.tokens), NAMES)
    batch = next(iter(DataLoader(Subset(dataset, [2, 0]), batch_size=2, collate_fn=collate)))
    assert batch.index.tolist() == [2, 0]
    assert batch.words.shape == (2, 6)
    assert batch.chars.shape[1] == 22, "a word of 30 characters is cut to 20"


def test_the_same_word_in_another_case_is_another_form_with_the_same_number():
    dataset = Sentences(SAMPLE, Vocabulary(SAMPLE.tokens), NAMES)
    batch = collate([dataset[2]])
    assert batch.words[0, 1] == batch.words[0, 2]
    assert batch.word_forms[0, 1] != batch.word_forms[0, 2]


def test_moving_a_batch_moves_its_tensors_alone():
    batch = collate([Sentences(SAMPLE, Vocabulary(SAMPLE.tokens), NAMES)[0]])
    moved = batch.to("meta")
    assert isinstance(moved, TokenBatch)
    assert all(getattr(moved, name).is_meta for name in ("index", "words", "chars", "word_forms", "tags", "mask"))
    assert moved.tokens is batch.tokens
    assert moved.pieces is None


def test_attributes_without_decoding():
    dataset = Sentences(SAMPLE, Vocabulary(SAMPLE.tokens), NAMES)
    assert dataset.words.tolist() == [4, 1, 4]
    assert dataset.words.dtype == torch.int64
    assert dataset.genres == ["news", "", "web"]
    assert dataset.is_labelled().tolist() == [True, True, False]
    assert dataset.describe(0) == {
        "text": "Ann likes New York",
        "tokens": ["Ann", "likes", "New", "York"],
        "genre": "news",
    }
    assert "genre" not in dataset.describe(1)
    with pytest.raises(IndexError, match="sentence 3 of 3"):
        dataset[3]


def test_labels_given_by_hand():
    dataset = Sentences(SAMPLE, Vocabulary(SAMPLE.tokens), NAMES)
    dataset.set_labels({2: ["I-PER", "I-PER", "O", "B-LOC"], 1: "O"})
    assert dataset.tags_of(2) == ["B-PER", "E-PER", "O", "S-LOC"]
    assert dataset.tags_of(0) == SAMPLE.tags[0]
    assert dataset.is_labelled().all()
    assert collate([dataset[2]]).tags.tolist() == [[NAMES.index(tag) for tag in dataset.tags_of(2)]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({3: "O"}, "labels are for sentences 0 to 2, got 3"),
        ({True: "O"}, "labels are for sentences 0 to 2, got True"),
        ({1: "O O"}, "sentence 1 has 1 tokens, got 2 tags: 'O O'"),
        ({1: ["B-ORG"]}, "labels of sentence 1: 'B-ORG' has an unknown type, known are LOC, PER"),
        ({1: "PER"}, "labels of sentence 1: a tag must be O, or .* got 'PER'"),
        ({1: 4}, "labels of sentence 1 must be a list of tags, got 4"),
        ({1: [None]}, r"labels of sentence 1 must be a list of tags, got \[None\]"),
    ],
)
def test_wrong_labels_are_refused_and_change_nothing(labels, message):
    dataset = Sentences(SAMPLE, Vocabulary(SAMPLE.tokens), NAMES)
    before = dataset.tags.clone()
    with pytest.raises(ValueError, match=message):
        dataset.set_labels({2: "O O O O"} | labels)
    assert torch.equal(dataset.tags, before)


def test_what_does_not_fit_is_refused():
    vocabulary = Vocabulary(SAMPLE.tokens)
    with pytest.raises(ValueError, match="tag S-PER is not among the tags O, B-LOC, I-LOC, E-LOC, S-LOC"):
        Sentences(SAMPLE, vocabulary, tag_names(["LOC"]))
    with pytest.raises(ValueError, match="max_word_length must be at least 1, got 0"):
        Sentences(SAMPLE, vocabulary, NAMES, max_word_length=0)
    one, other = Sentences(SAMPLE, vocabulary, NAMES), Sentences(SAMPLE, vocabulary, NAMES)
    with pytest.raises(TypeError, match="must come from one data set"):
        collate([one[0], other[0]])


# -- the vocabulary


def test_vocabulary_is_numbered_by_frequency_then_alphabet():
    vocabulary = Vocabulary([["b", "B", "a"], ["c", "c", "C", "d"]])
    assert vocabulary.words == ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "c", "b", "a", "d"]
    assert vocabulary.counts.tolist() == [0, 0, 0, 0, 3, 2, 1, 1]
    assert vocabulary.characters == list("BCabcd")
    assert vocabulary.word_ids(["C", "e", "[PAD]"]).tolist() == [4, UNK, UNK]
    assert Vocabulary([["b", "B", "a"]], lower=False).words[4:] == ["B", "a", "b"]
    assert Vocabulary([["b", "B", "a"]], min_count=2).words[4:] == ["b"]


def test_fingerprint_follows_every_number():
    base = Vocabulary([["a", "b"]])
    assert base.fingerprint == Vocabulary([["b"], ["a"]]).fingerprint
    others = [Vocabulary([["a", "c"]]), Vocabulary([["a", "b", "b"]]), Vocabulary([["a", "b"]], lower=False)]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert base.fingerprint != Vocabulary([["A", "b"]]).fingerprint, "the characters differ"


def test_characters_of_a_text_without_any():
    rows, lengths = Vocabulary([[""]]).character_rows(["", "ab"], 5)
    assert rows.tolist() == [[BOW, EOW, PAD, PAD], [BOW, UNK, UNK, EOW]]
    assert lengths.tolist() == [2, 4]


def test_vocabulary_refuses():
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        Vocabulary([["a"]], min_count=0)
    with pytest.raises(ValueError, match="needs at least one token"):
        Vocabulary([])
