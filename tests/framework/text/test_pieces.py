"""Sub-word pieces with a tokenizer made here."""

from __future__ import annotations

import pytest
import torch

from framework.text.conll import Annotated
from framework.text.pieces import encode_pieces, load_tokenizer
from framework.text.sentences import Sentences, collate
from framework.text.tags import tag_names
from framework.text.vocabulary import Vocabulary

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##er", "the", "a", "##b", "##c"]
TOKENS = [["the", "player", "playing"], ["abc", "zzz"], ["\u200b", "the"]]
WANTED = [[2, 7, 4, 6, 4, 5, 3], [2, 8, 9, 10, 1, 3], [2, 1, 7, 3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "vocab.txt").write_text("\n".join(PIECES))
    tokenizer = transformers.BertTokenizerFast(str(path / "vocab.txt"), model_max_length=8)
    tokenizer.save_pretrained(path)
    return str(path)


def test_pieces_of_a_tokenizer_in_a_folder(folder):
    pieces = encode_pieces(load_tokenizer(folder), TOKENS, chunk=2)
    rows = [pieces.ids[a:b].tolist() for a, b in zip(pieces.offsets, pieces.offsets[1:])]
    assert rows == WANTED
    assert pieces.first.tolist() == [1, 2, 4, 1, 4, 1, 2], "a word without a piece becomes the unknown piece"


def test_batches_carry_pieces(folder):
    annotated = Annotated(TOKENS, [None] * 3, [""] * 3)
    vocabulary = Vocabulary(TOKENS)
    pieces = encode_pieces(load_tokenizer(folder), TOKENS)
    data = Sentences(annotated, vocabulary, tag_names(["X"]), pieces=pieces)
    batch = collate([data[2], data[0]])
    assert batch.pieces.tolist() == [[2, 1, 7, 3, 0, 0, 0], WANTED[0]]
    assert batch.pieces_mask.tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
    assert batch.first_piece.tolist() == [[1, 2, 0], [1, 2, 4]]
    assert torch.equal(batch.mask, torch.tensor([[True, True, False], [True, True, True]]))


def test_long_sentences_keep_all_their_pieces(folder):
    pieces = encode_pieces(load_tokenizer(folder), [["player", "playing", "abc", "the"]])
    assert pieces.ids.tolist() == [2, 4, 6, 4, 5, 8, 9, 10, 7, 3]
    assert pieces.first.tolist() == [1, 3, 5, 8]


def test_what_is_no_tokenizer_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"tokenizer '.*' cannot be loaded: ") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
