"""Word vectors from files, and from co-occurrences against a dense computation."""

from __future__ import annotations

import gzip
import math
import os
from itertools import chain, product

import pytest
import torch

from framework.text import vectors
from framework.text.vectors import default_cache, ppmi_vectors, read_vectors
from framework.text.vocabulary import Vocabulary

TEXT = [["the", "cat", "sat"], ["the", "dog", "sat", "down"], ["a", "cat", "and", "a", "dog"], ["Hello"]]


def number(vocabulary: Vocabulary, word: str) -> int:
    return vocabulary.words.index(word)


# -- files


def test_needed_words_are_read_and_the_others_drawn(tmp_path):
    vocabulary = Vocabulary([["The", "cat", "Rome", "rare"]])
    path = tmp_path / "glove.txt"
    path.write_text("The 9 9\nthe 1 2\nTHE 8 8\nunneeded 5 6\n. . . 7 7\nRome 3 4\nROME 5 5\ncat -1 1e-1\n")
    found = read_vectors(path, vocabulary, dim=2)
    assert found.shape == (len(vocabulary.words), 2)
    assert found.dtype == torch.float32
    assert found[number(vocabulary, "the")].tolist() == [1, 2], "lower case goes first"
    assert found[number(vocabulary, "rome")].tolist() == [3, 4], "else the first spelling"
    torch.testing.assert_close(found[number(vocabulary, "cat")], torch.tensor([-1, 0.1]))
    assert found[0].tolist() == [0, 0]
    assert found[number(vocabulary, "rare")].abs().sum() > 0
    assert torch.equal(found, read_vectors(path, vocabulary))
    (tmp_path / "glove.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert torch.equal(found, read_vectors(tmp_path / "glove.txt.gz", vocabulary))
    path.write_text("7 2\n" + path.read_text().replace(" 1e-1", " 1e-1 "))
    assert torch.equal(found, read_vectors(path, vocabulary)), "the header of word2vec is skipped, and trailing spaces"


def test_case_counts_where_words_have_it(tmp_path):
    (tmp_path / "g.txt").write_text("The 9 9\nthe 1 2\n")
    vocabulary = Vocabulary([["The", "the"]], lower=False)
    found = read_vectors(tmp_path / "g.txt", vocabulary)
    assert found[number(vocabulary, "The")].tolist() == [9, 9]


@pytest.mark.parametrize(
    ("text", "dim", "message"),
    [
        ("the 1 2\ncat 1\n", None, "g.txt:2: must have 2 numbers after the word, got 1"),
        ("the 1 2\ncat 1 x\n", None, "g.txt:2: the vector of 'cat' is not made of numbers"),
        ("the 1 2\n", 3, "g.txt:1: has 2 numbers per word, and 3 are asked for"),
        ("400 2\nthe 1 2\n", 3, "g.txt:1: has 2 numbers per word, and 3 are asked for"),
        ("dog 1 2\n", None, "g.txt has no vector for any of the 2 words of the text"),
        ("", None, "g.txt has no vector for any of the 2 words"),
        ("the\n", None, "g.txt:1: has 0 numbers per word, and at least 1 are asked for"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, dim, message):
    (tmp_path / "g.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_vectors(tmp_path / "g.txt", Vocabulary([["the", "cat"]]), dim)


def test_cut_gzip_is_refused(tmp_path):
    (tmp_path / "g.gz").write_bytes(gzip.compress(b"the 1 2\n" * 99)[:-9])
    with pytest.raises(ValueError, match=r"g.gz is not a complete gzip file"):
        read_vectors(tmp_path / "g.gz", Vocabulary([["the"]]))


# -- co-occurrences


def dense_ppmi(vocabulary: Vocabulary, window: int) -> torch.Tensor:
    size = len(vocabulary.words)
    near = torch.zeros(size, size, dtype=torch.float64)
    for tokens in TEXT:
        ids = vocabulary.word_ids(tokens).tolist()
        for i, j in product(range(len(ids)), repeat=2):
            if 0 < abs(i - j) <= window:
                near[ids[i], ids[j]] += (window - abs(i - j) + 1) / window
    context = near.sum(0) ** 0.75
    context /= context.sum()
    result = torch.zeros_like(near)
    for i, j in near.nonzero().tolist():
        result[i, j] = max(0.0, math.log(near[i, j] / near[i].sum() / context[j]))
    return result


@pytest.mark.parametrize("window", [1, 2, 5])
def test_vectors_are_the_svd_of_the_ppmi_matrix(tmp_path, window):
    vocabulary = Vocabulary(TEXT)
    size = len(vocabulary.words)
    found = ppmi_vectors(TEXT, vocabulary, dim=size + 3, window=window, cache=tmp_path).double()
    left, values, _ = torch.linalg.svd(dense_ppmi(vocabulary, window))
    wanted = torch.nn.functional.normalize(left * values.sqrt())
    wanted[(left * values.sqrt()).norm(dim=1) < 1e-6] = 0
    assert found.shape == (size, size + 3)
    torch.testing.assert_close(found @ found.T, wanted @ wanted.T, atol=1e-4, rtol=0)  # vectors but for a rotation
    assert found[number(vocabulary, "hello")].abs().sum() == 0, "a word without neighbours"
    assert not found[0].any()
    near = found @ found[number(vocabulary, "cat")]
    assert near[number(vocabulary, "dog")] > near[number(vocabulary, "down")]


def test_unknown_words_take_part_as_one(tmp_path):
    vocabulary = Vocabulary(TEXT, min_count=2)
    found = ppmi_vectors(TEXT, vocabulary, dim=3, cache=tmp_path)
    assert found.shape == (len(vocabulary.words), 3)
    assert found[1].norm() == pytest.approx(1)


def test_vectors_are_kept_and_found_again(tmp_path, monkeypatch):
    vocabulary = Vocabulary(TEXT)
    first = ppmi_vectors(TEXT, vocabulary, 4, cache=tmp_path / "a" / "b")
    (file,) = (tmp_path / "a" / "b").iterdir()
    file_time = file.stat().st_mtime_ns
    monkeypatch.setattr(vectors, "_factors", lambda *_: pytest.fail("computed again"))
    assert torch.equal(first, ppmi_vectors(TEXT, vocabulary, 4, cache=tmp_path / "a" / "b"))
    monkeypatch.undo()
    others = [(TEXT, 5, 5), (TEXT, 4, 4), (TEXT[::-1], 4, 5), ([list(chain(*TEXT))], 4, 5)]
    for text, dim, window in others:
        ppmi_vectors(text, vocabulary, dim, window, cache=tmp_path / "a" / "b")
    assert len(os.listdir(tmp_path / "a" / "b")) == 1 + len(others), "another text or setting is another file"
    file.write_bytes(file.read_bytes()[:50])  # broken, as by a full disk
    assert torch.equal(first, ppmi_vectors(TEXT, vocabulary, 4, cache=tmp_path / "a" / "b"))
    assert file.stat().st_mtime_ns != file_time


def test_a_folder_that_cannot_be_written_is_only_warned_about(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="word vectors are not kept for the next run: .*file"):
        found = ppmi_vectors(TEXT, Vocabulary(TEXT), 4, cache=tmp_path / "file" / "below")
    assert found.any()


def test_the_usual_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ppmi_vectors(TEXT, Vocabulary(TEXT), 2)
    assert len(list((tmp_path / "fulgurite" / "vectors").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache().parts[-3:] == (".cache", "fulgurite", "vectors")


@pytest.mark.parametrize("field", ["dim", "window"])
def test_bad_sizes_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        ppmi_vectors(TEXT, Vocabulary(TEXT), **{field: 0})
