"""CoNLL columns: what is read, what is refused and where, and that what is written is read again."""

from __future__ import annotations

import gzip
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.text.conll import read_conll, read_plain, tokenize, write_conll
from framework.text.tags import from_spans, spans


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "a.conll"):
        (tmp_path / name).write_bytes(text.encode())
        return tmp_path / name

    return write


# Counts of the corpora: sentences, tokens, entities, share of sentences with one, longest sentence and word.
REAL = {
    "btc/train": (7005, 112_321, 11_181, 0.660, 57),
    "btc/dev": (934, 15_152, 1461, 0.645, 37),
    "btc/test": (1400, 22_914, 2243, 0.680, 46),
    "wnut17/train": (3394, 62_730, 1975, 0.362, 41),
    "wnut17/dev": (1009, 15_733, 836, 0.622, 82),
    "wnut17/test": (1287, 23_394, 1079, 0.535, 105),
    "wikineural_en_trim/train": (11_590, 267_839, 19_621, 1.0, 143),
    "wikineural_en_trim/dev": (3000, 69_555, 5058, 1.0, 151),
    "wikineural_en_trim/test": (3500, 79_880, 6015, 1.0, 88),
}


@pytest.mark.parametrize("name", REAL)
def test_counts_of_the_real_corpora(data_root_or_skip, name):
    path = data_root_or_skip / f"{name}.conll.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found = read_conll(path, scheme="iob2")
    entities = [len(spans(tags)) for tags in found.tags]
    lengths = [len(tokens) for tokens in found.tokens]
    with_one = sum(map(bool, entities)) / len(entities)
    assert (len(lengths), sum(lengths), sum(entities), round(with_one, 3), max(lengths)) == REAL[name]


def test_genres_and_hashtags_of_btc(data_root_or_skip):
    path = data_root_or_skip / "btc/train.conll.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found = read_conll(path)
    counts = {genre: found.genres.count(genre) for genre in sorted(set(found.genres))}
    assert counts == {"a": 742, "b": 1534, "e": 143, "f": 1473, "g": 1607, "h": 1506}
    assert sum(token.startswith("#") for tokens in found.tokens for token in tokens) == 2484


def test_tabs_comments_hashtags_and_empty_tokens(write):
    text = (
        "# genre = news\n#\tO\n#tag\tB-X\nNew York\tO\n\n# other = 1\nalone\tS-X\n\n\n\n# genre = web\n\n\tO\nend\tI-X"
    )
    found = read_conll(write("\ufeff" + text.replace("\n", "\r\n")))
    assert found.tokens == [["#", "#tag", "New York"], ["alone"], ["", "end"]]
    assert found.tags == [["O", "S-X", "O"], ["S-X"], ["O", "S-X"]]
    assert found.genres == ["news", "", "web"]
    assert found.comments == ["# genre = news", "# other = 1", "# genre = web"]
    assert found.take([2, 0]).comments == ["# genre = web", "# genre = news"]
    assert found.types == ["X"]


def test_conll_2003(write):
    text = """-DOCSTART- -X- -X- O

# genre = news
EU NNP B-NP I-ORG
rejects VBZ B-VP O
# NN B-NP O

Ann NNP B-NP I-PER
Lee NNP I-NP I-PER
Bob NNP B-NP B-PER

-DOCSTART- -X- -X- O

end NN B-NP O
"""
    found = read_conll(write(text, "eng.train"), scheme="iob1")
    assert found.tokens == [["EU", "rejects", "#"], ["Ann", "Lee", "Bob"], ["end"]]
    assert found.tags == [["S-ORG", "O", "O"], ["B-PER", "E-PER", "S-PER"], ["O"]]
    assert found.genres == ["news", "", ""]
    chunks = read_conll(write(text, "eng.train"), tag_column=2, scheme="iob2")
    assert chunks.tags[1] == ["B-NP", "E-NP", "S-NP"]
    assert read_conll(write(text), tag_column=None).tags == [None, None, None]


def test_no_break_spaces_are_no_columns(write):
    assert read_conll(write("a\u00a0b O\n\u2028 O\n")).tokens == [["a\u00a0b", "\u2028"]]


def test_unlabelled_files_and_sentences(write):
    assert read_conll(write("# genre = a\none\ntwo\n\n#three\n")).tags == [None, None]
    found = read_conll(write("one\t_\ntwo\t_\n\nthree\tO\n"))
    assert found.tags == [None, ["O"]]
    assert found.types == []


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a\tO\nb\n", {}, r":2: must have 2 columns separated by tabs, got 'b'"),
        ("a O\nb O O\n", {}, r":2: must have 2 columns separated by spaces, got 'b O O'"),
        ("a\tO\n\nb\tPER\n", {}, r":3: a tag must be O, or B-, .* got 'PER'"),
        ("a\tO\n\n# c\nb\tO\nc\tI-X\n", {"scheme": "iob2"}, r":5: I-X breaks the rules of scheme iob2 here"),
        ("a\tO\nb\t_\n", {}, r":2: a sentence has a tag for every token or for none"),
        (
            "\n\na\tO\n",
            {"tag_column": 2},
            r":3: tag_column 2 is not there, the line has 2 columns \(separated by tabs\)",
        ),
        (
            "a O\n",
            {"token_column": -3},
            r":1: token_column -3 is not there, the line has 2 columns \(sep.* by spaces\)",
        ),
        ("a\tO\n", {"tag_column": 0}, "tag_column and token_column must differ, both are column 0 of 2"),
        ("", {}, "holds no sentence"),
        ("# only a comment with no token\n\n", {"scheme": "auto"}, "holds no sentence"),
        ("a\tO\n", {"scheme": "bio"}, "scheme must be one of auto, iob1, iob2, iobes, got 'bio'"),
    ],
)
def test_malformed_files_are_refused_with_their_line(write, text, options, message):
    path = write(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_conll(path, **options)
    assert "\n" not in str(caught.value)
    assert (":" not in message[:1]) or str(caught.value).startswith(str(path))


def test_broken_bytes_are_refused(tmp_path):
    (tmp_path / "a.conll").write_bytes(b"a\tO\n\nb\xff\tO\n")
    with pytest.raises(ValueError, match=r"a.conll:3: is not UTF-8"):
        read_conll(tmp_path / "a.conll")
    (tmp_path / "b.conll.gz").write_bytes(gzip.compress(b"a\tO\n")[:-3])
    with pytest.raises(ValueError, match=r"b.conll.gz is not a complete gzip file"):
        read_conll(tmp_path / "b.conll.gz")


token = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), max_size=6)


@given(st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=4), st.sampled_from(["a.conll", "a.gz"]))
def test_what_is_written_is_read_again(tmp_path_factory, sentences, name):
    path = tmp_path_factory.mktemp("conll") / "sub" / name
    tags = [from_spans([("X", 0, len(tokens))], len(tokens)) for tokens in sentences]
    confidence = [[0.25] * len(tokens) for tokens in sentences]
    comments = ["" if k % 2 else "# id = 7\n# genre = a b\n#x\ty\tz" for k in range(len(sentences))]
    write_conll(path, sentences, tags, confidence, comments=comments)
    found = read_conll(path, tag_column=1, scheme="iobes")
    assert (found.tokens, found.tags) == (sentences, tags)
    assert found.comments == [comment.replace("\t", " ") for comment in comments]
    assert found.genres == ["" if k % 2 else "a b" for k in range(len(sentences))]
    assert read_conll(path, tag_column=None, token_column=2).tokens == [["0.2500"] * len(s) for s in sentences]
    assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize("bad", ["a\tb", "a\nb", "a\rb"])
def test_values_that_could_not_be_read_are_not_written(tmp_path, bad):
    with pytest.raises(ValueError, match="sentence 0 has a tab or line break inside a value"):
        write_conll(tmp_path / "a.conll", [[bad]], [["O"]])
    with pytest.raises(ValueError, match=r"sentence 0 has 1 tokens, but columns of \[2\] values"):
        write_conll(tmp_path / "a.conll", [["a"]], [["O", "O"]])
    assert not list(tmp_path.iterdir())


def test_plain_text(write):
    path = write("Ann lives in  New\u00a0York.\n\n@bob #hi\n", "a.txt")
    assert read_plain(path).tokens == [["Ann", "lives", "in", "New", "York."], ["@bob", "#hi"]]
    assert read_plain(path, "words").tokens == [["Ann", "lives", "in", "New", "York", "."], ["@bob", "#hi"]]
    assert read_plain(path).tags == [None, None]
    with pytest.raises(ValueError, match="tokens must be one of whitespace, words, got 'chars'"):
        read_plain(path, "chars")
    with pytest.raises(ValueError, match="holds no sentence"):
        read_plain(write("\n \n", "b.txt"))


def test_tokenize_as_english_corpora_do():
    text = "Ann's F-16 didn't cost $3.5m, it\u2019s @bob's... see https://a.b/c?d=1 #wow!"
    assert tokenize(text) == [
        *("Ann", "'s", "F-16", "did", "n't", "cost", "$", "3.5m", ",", "it", "\u2019s", "@bob", "'s", "..."),
        *("see", "https://a.b/c?d=1", "#wow", "!"),
    ]


@given(st.text(max_size=30))
def test_tokens_joined_are_the_text(text):
    assert "".join(tokenize(text)) == "".join(text.split())
