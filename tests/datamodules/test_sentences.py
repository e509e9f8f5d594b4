"""Sentences: pieces against transformers' own, splits, labels without tokenising, a user's own files, bad input."""

from __future__ import annotations

import gzip
import pickle
import re
import shutil
from pathlib import Path

import make_tiny
import pytest
import torch
from lightning import seed_everything
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.data import extract_batch_size

import datamodules.sentences
from datamodules.sentences import Sentences
from framework.federated.partition import Dirichlet
from framework.loaders import reindex
from framework.loaders.labels import labels_of

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny.tiny_texts(folder)
    make_tiny.tiny_encoder(folder, ["kalo", "miten", "##ra"])
    return folder


@pytest.fixture(autouse=True)
def _seed():
    seed_everything(0, verbose=False)


def make(tiny: Path, data: str | None = "ag_news", **options) -> Sentences:
    made = Sentences(**{
        "tokenizer": str(tiny / "encoder"), "data": data, "data_dir": str(tiny), "max_pieces": 64, **options
    })  # fmt: skip
    made.prepare_data()
    made.setup("fit")
    return made


def lines(tiny: Path, name: str) -> list[tuple[int, str]]:
    content = gzip.decompress((tiny / f"{name}.tsv.gz").read_bytes()).decode()
    return [(int(label), text) for label, text in (line.split("\t") for line in content.splitlines())]


def own(folder: Path, **parts: str) -> Path:
    """A folder with a file for each part."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in parts.items():
        (folder / f"{part}.tsv").write_text(content)
    return folder


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [64, 20])
def test_pieces_are_those_of_transformers(tiny, most):
    data = make(tiny, max_pieces=most)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "encoder")
    wanted = lines(tiny, "ag_news/test2k")
    loader, cut = data.predict_dataloader(), 0
    for (x, y, index), begin in zip(loader, range(0, len(wanted), 16), strict=True):
        part = wanted[begin : begin + 16]
        texts = [text for _, text in part]
        coded = tokenizer(texts, truncation=True, max_length=most, padding=True, return_tensors="pt")
        assert torch.equal(x.input_ids, coded["input_ids"])
        assert torch.equal(x.attention_mask, coded["attention_mask"])
        assert y.tolist() == [label for label, _ in part]
        assert index.tolist() == list(range(begin, begin + len(part)))
        cut += int((x.attention_mask.sum(1) == most).sum())
    assert cut  # some were too long


def test_training_is_shuffled_in_batches_of_similar_length_and_loses_nothing(tiny):
    data = make(tiny)
    rounds = [list(data.train_dataloader()) for _ in range(2)]
    orders = [torch.cat([index for _, _, index in batches]) for batches in rounds]
    assert not torch.equal(*orders)
    for batches, order in zip(rounds, orders):
        assert torch.equal(order.sort().values, data.train.rows)
        padding = sum(int((x.attention_mask == 0).sum()) for x, _, _ in batches)
        assert padding < 0.2 * sum(x.input_ids.numel() for x, _, _ in batches)
        for x, y, index in batches:
            assert int(x.attention_mask.sum(1).max()) == x.input_ids.shape[1]
            place = torch.searchsorted(data.train.rows, index)
            assert torch.equal(y, data.train.targets[place])
    for loader, part in ((data.val_dataloader(), data.val), (data.test_dataloader(), data.test)):
        assert sorted(row for _, _, index in loader for row in index.tolist()) == part.rows.tolist()


def test_lightning_moves_and_counts_a_batch(tiny):
    batch = next(iter(make(tiny, batch_size=7).train_dataloader()))
    x, y, index = move_data_to_device(batch, torch.device("meta"))
    assert (x.input_ids.is_meta, x.attention_mask.is_meta, y.is_meta, index.is_meta) == (True,) * 4
    assert type(x) is type(batch[0])
    assert extract_batch_size(batch) == 7


def test_workers_can_be_started_afresh(tiny):
    data = make(tiny)
    again = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(again[3][0], data.train[3][0])
    assert again[3][1:] == data.train[3][1:]


# -- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_reached_without_tokenising(tiny, monkeypatch):
    def refuse(*_):
        raise AssertionError("tokenised")

    monkeypatch.setattr(datamodules.sentences, "encode_texts", refuse)
    data = make(tiny, "trec")
    loader = data.train_dataloader()
    labels = labels_of(loader.dataset)
    assert torch.equal(labels, data.train.targets)
    parts = Dirichlet(1.0).split(len(labels), labels, 3, seed=0)
    for part in parts:
        assert torch.equal(labels_of(reindex(loader, part).dataset), labels[part])
    with pytest.raises(AssertionError, match="tokenised"):
        next(iter(loader))


def test_a_clients_share_is_served_whole(tiny):
    data = make(tiny, "trec")
    part = torch.arange(0, len(data.train), 3)
    served = [row for _, _, index in reindex(data.train_dataloader(), part) for row in index.tolist()]
    assert sorted(served) == data.train.rows[part].tolist()


def test_sentences_are_described_without_their_labels(tiny):
    data = make(tiny)
    assert data.test.describe(2) == {"text": lines(tiny, "ag_news/test2k")[2][1]}


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "source", "sizes"),
    [
        ("ag_news", 4, {"train": "train", "val": "train", "test": "test2k"}, [107, 13, 40]),
        ("trec", 6, {"train": "train", "val": "train", "test": "test"}, [107, 13, 40]),
        ("sst2", 2, {"train": "train", "val": "dev", "test": "test"}, [80, 40, 40]),
        ("subj", 2, {"train": "all", "val": "all", "test": "all"}, [80, 10, 10]),
    ],
)
def test_parts_are_the_published_files_and_disjoint_pieces_of_train(tiny, name, classes, source, sizes):
    data = make(tiny, name)
    assert (data.classes, len(data.class_names)) == (classes, classes)
    parts = {part: getattr(data, part) for part in source}
    assert [len(part) for part in parts.values()] == sizes
    used: dict[str, list[int]] = {}
    for part, file in source.items():
        content, rows = lines(tiny, f"{name}/{file}"), parts[part].rows.tolist()
        assert parts[part].texts == [content[row][1] for row in rows]
        assert parts[part].targets.tolist() == [content[row][0] for row in rows]
        used.setdefault(file, []).extend(rows)
    for file, rows in used.items():
        content = lines(tiny, f"{name}/{file}")
        assert sorted(rows) == list(range(len(content)))  # each sentence in one part
        whole = torch.tensor([label for label, _ in content]).bincount(minlength=classes)
        for part in (part for part in source if source[part] == file):
            counts = parts[part].targets.bincount(minlength=classes)
            assert (counts - whole * len(parts[part]) / len(content)).abs().max() <= 1
    again, other = make(tiny, name), make(tiny, name, seed=1)
    assert torch.equal(again.train.rows, data.train.rows)
    assert torch.equal(other.train.rows, data.train.rows) is (name == "sst2")  # the only one with all its files


def test_shares_are_nested_and_stratified(tiny):
    whole, half, third = (make(tiny, share=share) for share in (1.0, 0.5, 0.3))
    assert [len(data.train) for data in (whole, half, third)] == [107, 54, 32]  # halves are rounded to the first
    assert set(third.train.rows.tolist()) < set(half.train.rows.tolist()) < set(whole.train.rows.tolist())
    counts = half.train.targets.bincount(minlength=4)
    assert (counts - 54 / 107 * whole.train.targets.bincount(minlength=4)).abs().max() <= 1
    assert torch.equal(half.val.rows, whole.val.rows)


def test_the_extra_file_of_ag_news_trains_or_validates(tiny):
    assert sorted(map(len, (make(tiny, extra="train").train, make(tiny, extra="train").val))) == [18, 142]
    data, extra = make(tiny, extra="val"), lines(tiny, "ag_news/extra")
    assert (len(data.train), data.val.texts) == (120, [text for _, text in extra])


def test_an_unknown_label_is_told_by_the_row_of_its_own_file(tiny, tmp_path):
    shutil.copytree(tiny / "ag_news", tmp_path / "ag_news")
    (file,) = (tmp_path / "ag_news").glob("extra*")
    rows = gzip.decompress(file.read_bytes()).decode().splitlines()
    rows[6] = "9" + rows[6][1:]
    file.write_bytes(gzip.compress("\n".join(rows).encode()))
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}:7: unknown label '9', known are 0, 1, 2, 3"):
        make(tiny, extra="train", data_dir=str(tmp_path))


# -- own files --------------------------------------------------------------------------------------------------------


def test_own_files_may_lack_labels_and_parts(tiny, tmp_path):
    train = "".join(f"{('no', 'yes')[row % 2] if row % 5 else ''}\tword {row}\n" for row in range(50))
    folder = own(tmp_path / "own", train=train)
    (folder / "test.tsv.gz").write_bytes(gzip.compress(b"yes\ta\nno\tb\n"))
    data = make(tiny, None, path=str(folder), split=(0.6, 0.2, 0.2))
    assert (data.class_names, data.classes) == (["no", "yes"], 2)
    assert int((data.train.targets == -1).sum()) == 10
    assert data.val.targets.bincount().tolist() == [5, 5]  # a quarter of the 40 that have labels
    assert (data.test.texts, data.test.targets.tolist()) == (["a", "b"], [1, 0])
    turned = make(tiny, None, path=str(folder), class_names=["yes", "no"])
    assert turned.test.targets.tolist() == [0, 1]


def test_labels_that_are_numbers_are_sorted_as_numbers(tiny, tmp_path):
    folder = own(tmp_path, train="".join(f"{row % 11}\tword {row}\n" for row in range(110)))
    data = make(tiny, None, path=str(folder))
    assert data.class_names == [str(number) for number in range(11)]
    assert [len(part) for part in (data.train, data.val, data.test)] == [88, 11, 11]


@pytest.mark.parametrize(
    ("name", "content", "targets"),
    [("a.txt", "one line\nanother\n", [-1, -1]), ("a.tsv", "1\tone line\n\tx\n", [1, -1])],
)
def test_other_sentences_can_be_predicted(tiny, tmp_path, name, content, targets):
    (tmp_path / name).write_text(content)
    data = make(tiny, predict_path=str(tmp_path / name))
    ((x, y, index),) = data.predict_dataloader()
    assert (y.tolist(), index.tolist(), x.input_ids.shape[0]) == (targets, [0, 1], 2)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "imdb"}, r"data must be one of ag_news, trec, sst2, subj, got 'imdb'"),
        ({"data": None}, "give either data or path, got data=None and path=None"),
        ({"path": "x"}, "give either data or path, got data='ag_news' and path='x'"),
        ({"max_pieces": 2}, "max_pieces must be at least 3, two special ones and one of the text, got 2"),
        ({"max_pieces": 65}, r"max_pieces must be at most 64, what tokenizer '.*' makes, got 65"),
        ({"tokenizer": "/nowhere"}, r"tokenizer '/nowhere' cannot be loaded: "),
        ({"split": (0.5, 0.5, 0.5)}, "split must be positive shares that sum to 1"),
        ({"share": 0.0}, r"share must be in \(0, 1\], got 0.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"extra": "test"}, "extra must be one of none, train, val, got 'test'"),
        ({"data": "trec", "extra": "train"}, "extra must be none unless data is ag_news"),
        ({"class_names": ["a", "b"]}, "class_names must be two or more labels of path, each once"),
        ({"data": None, "path": "/nowhere"}, "path is not a folder: /nowhere"),
        (
            {"data_dir": "/nowhere"},
            "needs files that are not in /nowhere/ag_news: train.tsv.gz, test2k.tsv.gz; download",
        ),
        ({"predict_path": "/nowhere.txt"}, "predict_path is not a file: /nowhere.txt"),
    ],
)
def test_bad_arguments_end_in_one_line(tiny, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        make(tiny, **options).predict_dataloader()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": "a\tx\n\nb\ty\n"}, r"train\.tsv:2: must be a label, a tab and a sentence, got an empty line"),
        ({"train": "a\tx\nfine film\n"}, r"train\.tsv:2: must be a label, .* got 'fine film'"),
        ({"train": "a\tx\nb\t \n"}, r"train\.tsv:2: must be a label, .* got a label alone"),
        ({"train": ""}, r"train\.tsv has no line"),
        ({"train": "a\tx\na\ty\n"}, r"the train file must have at least 2 different labels, got \['a'\]"),
        ({"train": "a\tx\nb\ty\n", "dev": "c\tx\n"}, r"dev\.tsv:1: unknown label 'c', known are a, b"),
        ({"train": "a\tx\nb\ty\n", "dev": "\tx\n"}, r"the val file must have labels: .*dev\.tsv"),
        ({"train": "a\tx\nb\ty\n"}, "leaves a part of 2 items empty"),
        ({"dev": "a\tx\n"}, r"path has no file of train \(train\.tsv or train\.tsv\.gz\)"),
        ({"train": "a\tx\n", "dev": "a\tx\n", "valid": "a\tx\n"}, r"one file of val, got dev\.tsv, valid\.tsv in"),
    ],
)
def test_bad_files_are_refused_with_their_line(tiny, tmp_path, parts, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(tiny, None, path=str(own(tmp_path, **parts)))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\tcaf\xe9\n", "must be UTF-8"), (gzip.compress(b"a\tx\nb\ty\n" * 9)[:-5], "not a complete gzip file")],
)
def test_files_that_cannot_be_read_are_refused(tiny, tmp_path, content, message):
    (tmp_path / ("train.tsv.gz" if content[:2] == b"\x1f\x8b" else "train.tsv")).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make(tiny, None, path=str(tmp_path))


# -- the real files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "test"),
    [
        ("ag_news", [4437, 555, 2000], [500] * 4),
        ("trec", [4846, 606, 500], [138, 94, 9, 65, 81, 113]),
        ("sst2", [6920, 872, 1821], [912, 909]),
        ("subj", [8000, 1000, 1000], [500, 500]),
    ],
)
def test_real_files_are_read(tiny, data_root_or_skip, name, sizes, test):
    data = make(tiny, name, data_dir=str(data_root_or_skip))
    assert [len(part) for part in (data.train, data.val, data.test)] == sizes
    assert data.test.targets.bincount().tolist() == test
